"""The losses of cql against the same equations in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, heads, mlp, tanh_normal
from released import ADROIT, ANTMAZE, MAZE2D, MUJOCO, every, settings, wrong_settings
from scipy.special import logsumexp
from scipy.stats import norm

from shared.task import Spec

SMALL = {"n_actions": 2}


def cql_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


BOTH = pytest.mark.parametrize("name", ["cql", "cql_finetune"])


@BOTH
@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_critic(name, batch, lagrange):
    cql = load(name)
    n = 3
    args = cql.Args(
        hidden_dims=(8, 8), batch_size=B, n_actions=n, cql_alpha=2.0, cql_temperature=0.7, lagrange=lagrange,
        target_gap=0.5,
    )  # fmt: skip
    agent, key = agent_of(cql, args), jax.random.key(2)
    agent = agent.replace(log_alpha_prime=jnp.float32(0.4))
    target_key, gap_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(target_key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    bellman = ((q - y) ** 2).mean(1).sum()

    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (n, B, 2), minval=-1.0, maxval=1.0))
    now, now_lp = tanh_normal(*cql_policy(agent.actor, batch.obs), np.asarray(jax.random.normal(now_key, (n, B, 2))))
    nxt, nxt_lp = tanh_normal(
        *cql_policy(agent.actor, batch.next_obs), np.asarray(jax.random.normal(next_key, (n, B, 2)))
    )
    gap = 0.0
    for i in range(2):
        per_state = []
        for b in range(B):
            values = []
            for actions, log_density in ((uniform, np.full((n, B), 2 * np.log(0.5))), (nxt, nxt_lp), (now, now_lp)):
                for k in range(n):
                    one = heads(agent.critic, batch.obs[b], actions[k, b])[i]
                    values.append(one - log_density[k, b])
            per_state.append(0.7 * logsumexp(np.array(values) / 0.7) - q[i, b])
        gap_i = np.mean(per_state)
        gap += np.exp(0.4) * (gap_i - 0.5) if lagrange else gap_i
    close(cql.critic_loss(agent.critic, agent, batch, key, args)[0], bellman + 2.0 * gap)


@BOTH
def test_cql_penalty_does_not_reach_the_policy(name, batch):
    cql = load(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=3)
    agent = agent_of(cql, args)
    grads = jax.grad(
        lambda p: cql.critic_loss(agent.critic, agent.replace(actor=p), batch, jax.random.key(0), args)[0]
    )(agent.actor)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


@BOTH
def test_cql_multiplier_ascends_the_penalty(name):
    cql = load(name)
    args = cql.Args(target_gap=1.0)
    assert (
        jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 2.0, args)
        < 0
        < jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 0.5, args)
    )


@BOTH
def test_cql_max_target_backup_takes_the_best_of_the_least(name, batch):
    cql = load(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=4, max_q_backup=True)
    agent, key = agent_of(cql, args), jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (4, B, 2)))
    mean, log_std = cql_policy(agent.actor, batch.next_obs)
    q = [heads(agent.target_critic, batch.next_obs, tanh_normal(mean, log_std, e)[0]).min(0) for e in noise]
    close(cql.bootstrapped_q(agent, batch, key, args), np.max(q, axis=0))


def test_cql_policy_and_its_cloning_phase(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, bc_steps=10)
    agent, key = agent_of(cql, args), jax.random.key(4)
    agent = agent.replace(log_alpha=jnp.float32(-0.3))
    mean, log_std = cql_policy(agent.actor, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (1, B, 2)))[0])
    u = np.arctanh(np.clip(batch.action, -1 + 1e-3, 1 - 1e-3))
    data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    close(cql.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - data).mean())
    q = heads(agent.critic, batch.obs, action).min(0)
    later = agent.replace(step=jnp.int32(10))
    close(cql.actor_loss(agent.actor, later, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())


def test_cql_discrete_is_double_dqn_plus_the_gap(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, cql_alpha=0.6, discount=0.9)
    agent = agent_of(cql, args, Spec((3,), 4, True))
    action, rows = np.array([0, 3, 1, 1, 2]), np.arange(B)
    batch = batch._replace(action=jnp.array(action))

    def all_q(critics, obs):
        return np.stack([mlp(jax.tree.map(lambda x, i=i: x[i], critics), obs) for i in range(2)])

    greedy = all_q(agent.critic, batch.next_obs).min(0).argmax(-1)
    y = batch.reward + 0.9 * (1 - batch.terminal) * all_q(agent.target_critic, batch.next_obs).min(0)[rows, greedy]
    q = all_q(agent.critic, batch.obs)
    expected = ((q[:, rows, action] - y) ** 2).mean(1).sum()
    expected += 0.6 * (logsumexp(q, -1) - q[:, rows, action]).mean(1).sum()
    close(cql.discrete_critic_loss(agent.critic, agent, batch, args)[0], expected)


def test_cql_settings_are_those_released():
    """configs/offline/cql of corl-team/CORL at eeeeef2; PointMaze, Minari's maze2d, as maze2d."""
    common = {
        "importance_sampling": True, "n_actions": 10, "cql_temperature": 1.0, "clip_diff_max": 1e9, "bc_steps": 0,
        "backup_entropy": False, "tune_temperature": True, "batch_size": 256, "discount": 0.99, "critic_lr": 3e-4,
        "tau": 0.005, "hidden_dims": (256,) * 3,
    }  # fmt: skip
    dense = {**common, "normalize_obs": True, "reward_scale": 1.0, "reward_shift": 0.0, "max_q_backup": False}
    dense |= {"clip_diff_min": -1e9, "critic_hidden_dims": ()}
    mujoco = {**dense, "cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": False, "eval_episodes": 10}
    maze = {**dense, "cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": True, "target_gap": 5.0}
    maze |= {"normalize_return": False}
    hand = {**mujoco, "cql_alpha": 1.0, "actor_lr": 1e-4, "normalize_return": False}
    expected = {
        **{d: {**mujoco, "normalize_return": d == "hopper-medium-v2"} for d in MUJOCO},
        **every(MAZE2D, **maze, eval_episodes=100),
        **every(["pointmaze-umaze", "D4RL/pointmaze/large-v2"], **maze),
        **every(ADROIT, **hand),
        **every(
            ANTMAZE, **common, cql_alpha=5.0, actor_lr=1e-4, lagrange=True, target_gap=0.8, max_q_backup=True,
            clip_diff_min=-200.0, critic_hidden_dims=(256,) * 5, normalize_obs=False, reward_scale=10.0,
            reward_shift=-5.0, eval_episodes=100, normalize_return=False,
        ),
    }  # fmt: skip
    assert not wrong_settings(load("cql"), expected)


@pytest.mark.parametrize("name", ["cql", "e2o"])
def test_cql_begins_with_small_outputs(name):
    """Of last layers, as in CORL: Xavier's uniform of gain 0.01 (policy), orthogonal of gain 0.01 (critics)."""
    module = load(name)
    agent = module.init(jax.random.key(0), module.Args(hidden_dims=(64, 64)), SPEC)
    layers = agent.actor["params"]
    last, first = np.asarray(layers["Dense_2"]["kernel"]), np.asarray(layers["Dense_0"]["kernel"])
    bound = 0.01 * np.sqrt(6 / (64 + 4))
    assert 0.9 * bound < np.abs(last).max() <= bound
    assert 0.9 / np.sqrt(3) < np.abs(first).max() <= 1 / np.sqrt(3)
    critics = agent.critic["params"]
    np.testing.assert_allclose(np.linalg.norm(critics["Dense_2"]["kernel"], axis=(1, 2)), 0.01, rtol=1e-4)
    hidden = np.asarray(critics["Dense_1"]["kernel"][0])
    np.testing.assert_allclose(hidden.T @ hidden, 2 * np.eye(64), atol=1e-4)


def test_cql_in_antmaze_only_the_critics_have_five_layers():
    cql = load("cql")
    args = dataclasses.replace(settings(cql, "antmaze-umaze-v2"), hidden_dims=(8,) * 3, critic_hidden_dims=(8,) * 5)
    agent = cql.init(jax.random.key(0), args, SPEC)
    depth = [sum(k.startswith("Dense") for k in net["params"]) for net in (agent.actor, agent.critic)]
    assert depth == [4, 6]


@BOTH
def test_cql_without_importance_sampling_the_datas_action_is_one_of_them(name, batch):
    cql, n = load(name), 3
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=n, importance_sampling=False)
    agent, key = agent_of(cql, args), jax.random.key(2)
    q = heads(agent.critic, batch.obs, batch.action)
    uniform_key, now_key, next_key = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (n, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (n, B, 2))) for k in (now_key, next_key)]
    now = tanh_normal(*cql_policy(agent.actor, batch.obs), noise[0])[0]
    following = tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise[1])[0]
    of_actions = [heads(agent.critic, batch.obs, a[k]) for a in (uniform, following, now) for k in range(n)]
    expected = (logsumexp(np.stack([*of_actions, q]), axis=0) - q).mean(1)
    close(cql.conservative_gap(agent.critic, agent, batch, q, key, args), expected)


@BOTH
def test_cql_gaps_are_clipped_on_both_sides(name, batch):
    cql = load(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=2)
    agent, key = agent_of(cql, args), jax.random.key(2)
    alone = batch._replace(obs=batch.obs[:1], action=batch.action[:1], next_obs=batch.next_obs[:1])
    q = heads(agent.critic, alone.obs, alone.action)
    free = np.asarray(cql.conservative_gap(agent.critic, agent, alone, q, key, args))
    low, high = free.min(), free.max()
    middle = float(low + high) / 2

    def clipped(**bounds):
        return cql.conservative_gap(agent.critic, agent, alone, q, key, dataclasses.replace(args, **bounds))

    close(np.sort(clipped(clip_diff_min=middle)), [middle, high])
    close(np.sort(clipped(clip_diff_max=middle)), [low, middle])


@BOTH
def test_cql_temperature_stays_where_it_is_not_tuned(name, batch):
    cql = load(name)
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "n_actions": 2}
    fixed = cql.Args(**sizes, init_temperature=0.3, tune_temperature=False)
    agent = cql.init(jax.random.key(0), fixed, SPEC)
    after, metrics = cql.update(agent, batch, jax.random.key(1), fixed)
    close([metrics["alpha"], np.exp(after.log_alpha)], 0.3)
    tuned, _ = cql.update(agent, batch, jax.random.key(1), dataclasses.replace(fixed, tune_temperature=True))
    assert abs(float(tuned.log_alpha) - np.log(0.3)) > 1e-5
