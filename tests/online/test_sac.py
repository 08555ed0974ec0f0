"""The losses of sac against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import load
from reference import B, agent_of, close, heads, mlp, tanh_normal


def sac_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def test_sac_losses(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(sac, args), jax.random.key(9)
    agent = agent.replace(log_alpha=jnp.float32(-0.5))
    alpha, noise = np.exp(-0.5), np.asarray(jax.random.normal(key, (B, 2)))
    next_action, next_lp = tanh_normal(*sac_policy(agent.actor, batch.next_obs), noise)
    target_v = heads(agent.target_critic, batch.next_obs, next_action).min(0) - alpha * next_lp
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    q = heads(agent.critic, batch.obs, batch.action)
    close(sac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())

    action, lp = tanh_normal(*sac_policy(agent.actor, batch.obs), noise)
    expected = (alpha * lp - heads(agent.critic, batch.obs, action).min(0)).mean()
    close(sac.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_sac_temperature_grows_while_the_entropy_is_too_low():
    sac = load("sac")
    slope = jax.grad(sac.alpha_loss)
    assert slope(jnp.float32(0.0), -5.0, 3) < 0 < slope(jnp.float32(0.0), -1.0, 3)


def test_sac_exported_policy_is_the_actor(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8))
    agent = agent_of(sac, args)
    p = sac.export_policy(agent)
    x = batch.obs
    for i in range(2):
        x = np.maximum(x @ p[f"W{i}"].T + p[f"b{i}"], 0)
    mean, log_std = sac_policy(agent.actor, batch.obs)
    close(x @ p["W2"].T + p["b2"], mean)
    close(np.clip(x @ p["logstd_W"].T + p["logstd_b"], -20, 2), log_std)
