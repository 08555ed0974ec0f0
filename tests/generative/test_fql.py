"""The losses of fql against the same equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, gelu, heads, mlp


def q_values(critics, obs, action):
    return heads(critics, obs, action, activation=gelu, layer_norm=True)


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_fql_critic(batch, aggregation):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, q_aggregation=aggregation)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    next_action = np.clip(mlp(agent.actor, batch.next_obs, noise, activation=gelu), -1, 1)
    target_q = getattr(q_values(agent.target_critic, batch.next_obs, next_action), aggregation)(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    expected = ((q_values(agent.critic, batch.obs, batch.action) - y) ** 2).mean()
    close(fql.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_fql_flow_matching(batch):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise_key, time_key = jax.random.split(key)
    z, t = np.asarray(jax.random.normal(noise_key, (B, 2))), np.asarray(jax.random.uniform(time_key, (B, 1)))
    velocity = mlp(agent.flow, batch.obs, (1 - t) * z + t * batch.action, t, activation=gelu)
    close(fql.flow_loss(agent.flow, agent, batch, key, args), ((velocity - (batch.action - z)) ** 2).mean())


@pytest.mark.parametrize("normalize_q", [True, False])
def test_fql_actor_is_distilled_from_the_clipped_flow(batch, normalize_q):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, distillation_weight=3.0, flow_steps=4, normalize_q=normalize_q)
    agent, key = agent_of(fql, args), jax.random.key(6)
    z = np.asarray(jax.random.normal(key, (B, 2)))
    x = z.astype(np.float64)
    for i in range(4):
        x = x + mlp(agent.flow, batch.obs, x, np.full((B, 1), i / 4), activation=gelu) / 4
    action = mlp(agent.actor, batch.obs, z, activation=gelu)
    q = q_values(agent.critic, batch.obs, np.clip(action, -1, 1)).mean(0)
    lam = 1 / np.abs(q).mean() if normalize_q else 1.0
    expected = 3.0 * ((action - np.clip(x, -1, 1)) ** 2).mean() - lam * q.mean()
    close(fql.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
