"""The losses of awac against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, compiled, heads, log_std_of, mlp
from released import ADROIT, ANTMAZE, MAZE2D, MUJOCO, every, wrong_settings
from scipy.stats import norm

BOTH = pytest.mark.parametrize("name", ["awac", "awac_finetune"])


@BOTH
@pytest.mark.parametrize("mode", ["exp", "softmax"])
def test_awac_actor(name, batch, mode):
    awac = compiled(name)
    args = awac.Args(hidden_dims=(8, 8), batch_size=B, temperature=0.5, max_weight=2.0, weight_mode=mode)
    agent, key = agent_of(awac, args), jax.random.key(5)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    mean, std = mlp(agent.actor, batch.obs), np.exp(log_std_of(agent.actor))
    v = heads(agent.critic, batch.obs, np.clip(mean + std * noise, -1, 1)).min(0)
    adv = heads(agent.critic, batch.obs, batch.action).min(0) - v
    weight = np.minimum(np.exp(adv / 0.5), 2.0)
    if mode == "softmax":
        weight = np.exp(adv / 0.5) / np.exp(adv / 0.5).sum() * B
    expected = -(weight * norm.logpdf(batch.action, mean, std).sum(-1)).mean()
    close(awac.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
    # the weight is not differentiated: the gradient is that of weighted cloning
    grads = jax.grad(lambda a: awac.actor_loss(a, agent, batch, key, args)[0])(agent.actor)

    def cloning(actor):
        m, s = agent.nets.actor.apply(actor, batch.obs)
        return -(weight * jax.scipy.stats.norm.logpdf(batch.action, m, jnp.exp(s)).sum(-1)).mean()

    jax.tree.map(close, grads, jax.grad(cloning)(agent.actor))


@BOTH
def test_awac_critic_has_no_entropy_term(name, batch):
    awac = compiled(name)
    args = awac.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(awac, args), jax.random.key(5)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    next_action = np.clip(mlp(agent.actor, batch.next_obs) + np.exp(log_std_of(agent.actor)) * noise, -1, 1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    close(awac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())


def test_awac_settings_are_those_released():
    """configs/offline/awac of corl-team/CORL at eeeeef2."""
    common = {
        "batch_size": 256, "discount": 0.99, "tau": 0.005, "actor_lr": 3e-4, "critic_lr": 3e-4,
        "hidden_dims": (256, 256, 256), "normalize_return": False,
    }  # fmt: skip
    expected = {
        **every(MUJOCO, **common, temperature=1 / 3, reward_shift=0.0, eval_episodes=10),
        **every(ADROIT, **common, temperature=0.1, reward_shift=0.0, eval_episodes=10),
        **every(MAZE2D, **common, temperature=0.1, reward_shift=0.0, eval_episodes=100),
        **every(ANTMAZE, **common, temperature=0.1, reward_shift=-1.0, eval_episodes=100),
    }
    assert not wrong_settings(load("awac"), expected)
