"""The losses of hiql against the equations in plain numpy, and who is learned by which."""

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import GOAL_SPEC, TINY, goal_batch, steps_to_goals, unit_log_prob
from jobs import small
from reference import B, agent_of, close, compiled, gelu, heads, mlp

from shared.arguments import preset_for
from shared.checks import preset_misfit
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

SMALL = {"subgoal_steps": 5}
NET = {"activation": gelu, "layer_norm": True}


def setting(**changes):
    hiql = compiled("hiql")
    args = hiql.Args(**TINY, representation_dim=4, discount=0.9, **changes)
    r, plain = np.random.default_rng(1), goal_batch()
    goals = {k: r.normal(size=(B, 2)).astype(np.float32) for k in ("low_goal", "high_goal", "subgoal")}
    own = {k: getattr(plain, k) for k in ("obs", "action", "next_obs", "goal", "terminal", "reward")}
    batch = hiql.HierarchicalBatch(**own, **goals, subgoal_obs=r.normal(size=(B, 3)).astype(np.float32))
    return hiql, args, agent_of(hiql, args, GOAL_SPEC), batch


def phi(agent, obs, goal):
    x = mlp(agent.representation, obs, goal, **NET)
    return 2.0 * x / np.linalg.norm(x, axis=-1, keepdims=True)  # sqrt(4)


def values(agent, value, obs, goal):
    return heads(value, obs, phi(agent, obs, goal), **NET)


def test_a_representation_has_the_norm_of_its_size():
    hiql, args, agent, batch = setting()
    found = jax.jit(agent.nets.representation.apply)(agent.representation, batch.obs, batch.goal)
    close(found, phi(agent, batch.obs, batch.goal))
    close(np.linalg.norm(found, axis=-1), np.full(B, 2.0))


def test_the_value_is_an_expectile_over_transitions():
    hiql, args, agent, batch = setting(expectile=0.7)
    next_v = values(agent, agent.target_value, batch.next_obs, batch.goal)
    mask = 1.0 - batch.terminal
    adv = batch.reward + 0.9 * mask * next_v.min(0) - values(agent, agent.target_value, batch.obs, batch.goal).mean(0)
    assert (adv > 0).any() and (adv < 0).any()
    v = values(agent, agent.value, batch.obs, batch.goal)
    expected = (np.where(adv < 0, 0.3, 0.7) * (batch.reward + 0.9 * mask * next_v - v) ** 2).mean(1).sum()
    close(hiql.value_loss((agent.representation, agent.value), agent, batch, args)[0], expected)


def test_the_higher_policy_is_cloned_by_what_k_steps_gain():
    hiql, args, agent, batch = setting(high_beta=2.0, max_weight=1.5)
    ends = batch.subgoal_obs, batch.obs
    adv = np.subtract(*(values(agent, agent.value, x, batch.high_goal).mean(0) for x in ends))
    weight = np.minimum(np.exp(2.0 * adv), 1.5)
    assert (weight == 1.5).any() and (weight < 1.5).any()
    mean = mlp(agent.high_actor, batch.obs, batch.high_goal, activation=gelu)
    log_prob = unit_log_prob(phi(agent, batch.obs, batch.subgoal), mean)
    close(hiql.high_actor_loss(agent.high_actor, agent, batch, args)[0], -(weight * log_prob).mean())


def test_the_lower_policy_is_cloned_by_what_one_step_gains():
    hiql, args, agent, batch = setting(low_beta=2.0, max_weight=1.5)
    ends = batch.next_obs, batch.obs
    adv = np.subtract(*(values(agent, agent.value, x, batch.low_goal).mean(0) for x in ends))
    weight = np.minimum(np.exp(2.0 * adv), 1.5)
    assert (weight == 1.5).any() and (weight < 1.5).any()
    mean = mlp(agent.low_actor, batch.obs, phi(agent, batch.obs, batch.low_goal), activation=gelu)
    close(
        hiql.low_actor_loss(agent.low_actor, agent, batch, args)[0],
        -(weight * unit_log_prob(batch.action, mean)).mean(),
    )


@pytest.mark.long
def test_the_representation_is_learned_by_the_value_alone():
    hiql, args, agent, batch = setting(learning_rate=0.1)
    new, _ = hiql.update(agent, batch, jax.random.key(0), args)
    slope = jax.jit(jax.grad(lambda p: hiql.value_loss(p, agent, batch, args)[0]))
    grads = jax.device_get(slope((agent.representation, agent.value)))
    moved = jax.tree.map(np.subtract, new.representation, agent.representation)
    for step, grad in zip(*map(jax.tree.leaves, (moved, grads[0])), strict=True):
        felt = np.abs(grad) > 1e-6  # Adam's first step is the rate, against the gradient's sign
        np.testing.assert_allclose(step[felt], -0.1 * np.sign(grad[felt]), rtol=1e-2)
        assert felt.any()


def test_the_proposed_subgoal_is_scaled_before_it_is_acted_on():
    hiql, args, agent, batch = setting()
    z = mlp(agent.high_actor, batch.obs, batch.goal, activation=gelu)
    z = 2.0 * z / np.linalg.norm(z, axis=-1, keepdims=True)
    action = np.clip(mlp(agent.low_actor, batch.obs, z, activation=gelu), -1, 1)
    close(hiql.act(agent, batch.obs, batch.goal, jax.random.key(0), args), action)


def test_subgoals_lie_k_steps_ahead_and_not_beyond_the_goal(tmp_path):
    hiql = compiled("hiql")
    path = write_goals(tmp_path / "goals.npz")
    data = goal_dataset(load_dataset(path)).transitions()
    row_of = {tuple(x): i for i, x in enumerate(np.asarray(data.transitions.take(np.arange(300)).obs))}

    def rows(obs):
        return np.array([row_of[tuple(x)] for x in np.asarray(obs)])

    args = hiql.Args(hidden_dims=(8, 8), batch_size=4000, subgoal_steps=5, random_actor_goals=0.5)
    batch = hiql.sample(jax.random.key(0), data, args)
    row, low, high, sub = (rows(x) for x in (batch.obs, batch.low_goal, batch.high_goal, batch.subgoal))
    end = row // 30 * 30 + 29
    np.testing.assert_array_equal(rows(batch.subgoal_obs), sub)
    np.testing.assert_array_equal(low, np.minimum(row + 5, end))
    later = (high > row) & (high <= end)

    np.testing.assert_array_equal(sub[~later & (row < end)], low[~later & (row < end)])
    near = later & (high < low)
    assert (sub[near] == high[near]).mean() > 0.9 and 0.4 < later.mean() < 0.65


def test_episodes_shorter_than_a_subgoals_steps_are_refused(tmp_path):
    args = small("hiql", write_goals(tmp_path / "goals.npz"), tmp_path / "run", subgoal_steps=30)
    with pytest.raises(InputError, match="longest episode .* has 30 rows; --subgoal-steps 30 needs a longer one"):
        load("hiql").main(args)


def test_goals_of_the_value_lie_as_far_ahead_as_the_discount_looks(tmp_path):
    hiql, data = compiled("hiql"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    args = hiql.Args(batch_size=4000, discount=0.8, value_goals=(0.0, 1.0, 0.0))
    batch = hiql.sample(jax.random.key(0), data, args)
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end


@pytest.mark.parametrize(
    "task, settings",
    [
        ("antmaze-giant-stitch", {"random_actor_goals": 0.5, "subgoal_steps": 25, "discount": 0.995}),
        (
            "antmaze-teleport-explore",
            {"random_actor_goals": 1.0, "subgoal_steps": 25, "high_beta": 10.0, "low_beta": 10.0},
        ),
        ("humanoidmaze-medium-navigate", {"random_actor_goals": 0.0, "subgoal_steps": 100, "discount": 0.995}),
        ("puzzle-4x6-noisy", {"subgoal_steps": 10}),
    ],
)
def test_pictures_have_the_settings_of_their_task_and_of_pictures(task, settings):
    """Of OGBench's hyperparameters.sh."""
    presets, pictures = load("hiql").PRESETS, {"obs_shape": (64, 64, 3), "actions": 8, "reward": [0.0, 0.0]}
    key = preset_for(f"visual-{task}-v0", presets)
    assert presets[key] == {**settings, "batch_size": 256, "updates": 500_000}
    assert preset_misfit(key, presets[key], pictures) is None
    assert presets[preset_for(f"{task}-v0", presets)] == settings
