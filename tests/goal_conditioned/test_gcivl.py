"""The losses of gcivl against the equations in plain numpy."""

import jax
import numpy as np
from conftest import write_goals
from goal_reference import GOAL_SPEC, TINY, goal_batch, steps_to_goals, unit_log_prob
from reference import agent_of, close, compiled, gelu, heads, mlp

from shared.data import load_dataset
from shared.goals import goal_dataset

NET = {"activation": gelu, "layer_norm": True}


def setting(**changes):
    gcivl = compiled("gcivl")
    args = gcivl.Args(**TINY, discount=0.9, **changes)
    return gcivl, args, agent_of(gcivl, args, GOAL_SPEC, seed=5), goal_batch()


def test_the_value_follows_each_target_of_its_own_weighted_by_the_least():
    gcivl, args, agent, batch = setting(expectile=0.8)
    next_v = heads(agent.target_value, batch.next_obs, batch.goal, **NET)
    mask = 1.0 - batch.terminal
    adv = batch.reward + 0.9 * mask * next_v.min(0) - heads(agent.target_value, batch.obs, batch.goal, **NET).mean(0)
    assert (adv > 0).any() and (adv < 0).any()
    summed = adv - heads(agent.target_value, batch.obs, batch.goal, **NET).mean(0)
    assert (np.sign(summed) != np.sign(adv)).any()  # the mean of the two, not their sum
    y = batch.reward + 0.9 * mask * next_v
    v = heads(agent.value, batch.obs, batch.goal, **NET)
    expected = (np.where(adv < 0, 0.2, 0.8) * (y - v) ** 2).mean(1).sum()
    close(gcivl.value_loss(agent.value, agent, batch, args)[0], expected)


def test_the_actor_is_cloned_by_the_online_values_differences():
    gcivl, args, agent, batch = setting(beta=2.0, max_weight=1.5)
    adv = np.subtract(*(heads(agent.value, x, batch.actor_goal, **NET).mean(0) for x in (batch.next_obs, batch.obs)))
    weight = np.minimum(np.exp(2.0 * adv), 1.5)
    assert (weight == 1.5).any() and (weight < 1.5).any()
    log_prob = unit_log_prob(batch.action, mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu))
    close(gcivl.actor_loss(agent.actor, agent, batch, args)[0], -(weight * log_prob).mean())


def test_both_losses_take_the_networks_of_before():
    gcivl, args, agent, batch = setting(learning_rate=0.1, tau=0.5)
    new, metrics = gcivl.update(agent, batch, jax.random.key(0), args)
    close(metrics["actor_loss"], gcivl.actor_loss(agent.actor, agent, batch, args)[0])
    close(metrics["value_loss"], gcivl.value_loss(agent.value, agent, batch, args)[0])
    half = jax.tree.map(lambda a, b: (a + b) / 2, *jax.device_get((agent.target_value, new.value)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.target_value, half)


def test_goals_of_the_value_lie_as_far_ahead_as_the_discount_looks(tmp_path):
    gcivl, data = compiled("gcivl"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    args = gcivl.Args(batch_size=4000, discount=0.8, value_goals=(0.0, 1.0, 0.0))
    batch = gcivl.sample(jax.random.key(0), data, args)
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end
