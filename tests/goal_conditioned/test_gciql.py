"""The losses of gciql against the equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import write_goals
from goal_reference import DISCRETE_SPEC, GOAL_SPEC, TINY, goal_batch, softmax_log_prob, steps_to_goals, unit_log_prob
from reference import agent_of, close, compiled, gelu, heads, mlp

from shared.data import load_dataset
from shared.goals import goal_dataset

NET = {"activation": gelu, "layer_norm": True}


def setting(spec=GOAL_SPEC, **changes):
    gciql = compiled("gciql")
    args = gciql.Args(**TINY, discount=0.9, **changes)
    return gciql, args, agent_of(gciql, args, spec), goal_batch(discrete=spec.discrete)


def test_v_is_an_expectile_of_the_target_critics():
    gciql, args, agent, batch = setting(expectile=0.8)
    q = heads(agent.target_critic, batch.obs, batch.goal, batch.action, **NET).min(0)
    u = q - mlp(agent.value, batch.obs, batch.goal, **NET)[:, 0]
    assert (u > 0).any() and (u < 0).any()
    close(gciql.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.2, 0.8) * u**2).mean())


def test_q_bootstraps_from_v_until_the_goal():
    gciql, args, agent, batch = setting()
    next_v = mlp(agent.value, batch.next_obs, batch.goal, **NET)[:, 0]
    y = batch.reward + 0.9 * (1.0 - batch.terminal) * next_v
    q = heads(agent.critic, batch.obs, batch.goal, batch.action, **NET)
    close(gciql.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())


def test_the_actor_climbs_q_over_its_size_and_is_held_to_the_data():
    gciql, args, agent, batch = setting(bc_weight=0.7)
    agent = agent.replace(actor=jax.tree.map(lambda x: 2.0 * x, agent.actor))
    mean = mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu)
    assert (np.abs(mean) > 1).any()
    q = heads(agent.critic, batch.obs, batch.actor_goal, np.clip(mean, -1, 1), **NET).min(0)
    expected = -q.mean() / (np.abs(q).mean() + 1e-6) - 0.7 * unit_log_prob(batch.action, mean).mean()
    close(gciql.ddpg_bc_loss(agent.actor, agent, batch, args)[0], expected)
    size = np.abs(q).mean() + 1e-6

    def unscaled(actor):
        output = agent.nets.actor.apply(actor, batch.obs, batch.actor_goal)
        q = gciql.q_values(agent, agent.critic, batch.obs, batch.actor_goal, output.clip(-1, 1)).min(0).mean()
        return -q / size - 0.7 * gciql.actor_log_prob(output, batch.action).mean()

    slope = jax.jit(jax.grad(lambda p: gciql.ddpg_bc_loss(p, agent, batch, args)[0]))
    jax.tree.map(close, slope(agent.actor), jax.jit(jax.grad(unscaled))(agent.actor))  # the size of Q is a constant


@pytest.mark.long
def test_discrete_actions_are_cloned_by_advantages():
    gciql, args, agent, batch = setting(DISCRETE_SPEC, beta=2.0, max_weight=1.5)
    one_hot = np.eye(4)[batch.action]
    adv = heads(agent.critic, batch.obs, batch.actor_goal, one_hot, **NET).min(0)
    adv = adv - mlp(agent.value, batch.obs, batch.actor_goal, **NET)[:, 0]
    weight = np.minimum(np.exp(2.0 * adv), 1.5)
    assert (weight == 1.5).any() and (weight < 1.5).any()
    log_prob = softmax_log_prob(batch.action, mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu))
    metrics = jax.jit(lambda *x: gciql.update(*x)[1])(agent, batch, jax.random.key(0), args)
    close(metrics["actor_loss"], -(weight * log_prob).mean())
    close(metrics["critic_loss"], gciql.critic_loss(agent.critic, agent, batch, args)[0])


def test_goals_of_the_value_lie_as_far_ahead_as_the_discount_looks(tmp_path):
    gciql, data = compiled("gciql"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    args = gciql.Args(batch_size=4000, discount=0.8, value_goals=(0.0, 1.0, 0.0))
    batch = gciql.sample(jax.random.key(0), data, args)
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end
