"""The loss of gcbc against the equation in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load
from goal_reference import DISCRETE_SPEC, GOAL_SPEC, TINY, goal_batch, softmax_log_prob, unit_log_prob
from reference import agent_of, close, compiled, gelu, mlp

from shared.arguments import preset_for
from shared.checks import preset_misfit


def test_gcbc_is_regression_to_the_actions_of_the_goal():
    gcbc, batch = compiled("gcbc"), goal_batch()
    args = gcbc.Args(**TINY)
    agent = agent_of(gcbc, args, GOAL_SPEC)
    mean = mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu)
    loss, grads = jax.jit(jax.value_and_grad(gcbc.actor_loss))(agent.actor, agent, batch, args)
    close(loss, -unit_log_prob(batch.action, mean).mean())
    squared = jax.grad(lambda p: ((agent.net.apply(p, batch.obs, batch.actor_goal) - batch.action) ** 2).mean())
    jax.tree.map(
        lambda a, b: close(a, b), grads, jax.jit(squared)(agent.actor)
    )  # A / 2 = 1 times that of the mean squared error


def test_gcbc_of_discrete_actions_is_a_softmax():
    gcbc, batch = compiled("gcbc"), goal_batch(discrete=True)
    args = gcbc.Args(**TINY)
    agent = agent_of(gcbc, args, DISCRETE_SPEC)
    logits = mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu)
    close(gcbc.actor_loss(agent.actor, agent, batch, args), -softmax_log_prob(batch.action, logits).mean())
    greedy = gcbc.act(agent, batch.obs, batch.actor_goal, jax.random.key(0), args)
    np.testing.assert_array_equal(greedy, logits.argmax(-1))
    hot = gcbc.Args(**TINY, eval_temperature=1e6)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.vmap(lambda key: gcbc.act(agent, batch.obs, batch.actor_goal, key, hot))(keys)
    assert np.bincount(np.ravel(drawn), minlength=4).min() > 400


@pytest.mark.parametrize(
    "task",
    ["antmaze-teleport-explore", "humanoidmaze-giant-stitch", "cube-triple-noisy", "scene-play", "puzzle-4x6-play"],
)
def test_pictures_have_settings_of_their_own(task):
    """Batch and steps of all visual tasks in OGBench's hyperparameters.sh."""
    presets, pictures = load("gcbc").PRESETS, {"obs_shape": (64, 64, 3), "actions": 8, "reward": [0.0, 0.0]}
    key = preset_for(f"visual-{task}-v0", presets)
    assert presets[key] == {"batch_size": 256, "updates": 500_000}
    assert preset_misfit(key, presets[key], pictures) is None and preset_for(f"{task}-v0", presets) is None
