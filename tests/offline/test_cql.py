"""The losses of cql against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, mlp, tanh_normal
from scipy.special import logsumexp
from scipy.stats import norm

from shared.task import Spec

SMALL = {"n_actions": 2}


def cql_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_critic(batch, lagrange):
    cql = load("cql")
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


def test_cql_penalty_does_not_reach_the_policy(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=3)
    agent = agent_of(cql, args)
    grads = jax.grad(
        lambda p: cql.critic_loss(agent.critic, agent.replace(actor=p), batch, jax.random.key(0), args)[0]
    )(agent.actor)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


def test_cql_multiplier_ascends_the_penalty():
    cql = load("cql")
    args = cql.Args(target_gap=1.0)
    assert (
        jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 2.0, args)
        < 0
        < jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 0.5, args)
    )


def test_cql_max_target_backup_takes_the_best_of_the_least(batch):
    cql = load("cql")
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
