"""The learner of files that label rewards is IQL: its losses against the equations in plain numpy."""

import jax
import numpy as np
from reference import B, agent_of, close, heads, log_std_of, mlp
from scipy.stats import norm


def setting(module, **changes):
    args = module.Args(**{"hidden_dims": (8, 8), "batch_size": B, "discount": 0.9, **changes})
    return args, agent_of(module, args, seed=7)


def advantage(agent, batch):
    return heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]


def check_iql(module, batch):
    """Every loss, the order of the updates, and the actor's step size."""
    args, agent = setting(module, expectile=0.9, beta=4.0, max_weight=3.0)
    u = advantage(agent, batch)
    assert (u > 0).any() and (u < 0).any()
    close(module.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.1, 0.9) * u**2).mean())
    weight = np.minimum(np.exp(4.0 * u), 3.0)
    assert (weight == 3.0).any() and (weight < 3.0).any()
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(module.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], -(weight * log_prob).mean())
    edge = batch._replace(action=np.ones((B, 2), np.float32))
    of_edge = norm.logpdf(1 - 1e-5, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    weight = np.minimum(np.exp(4.0 * advantage(agent, edge)), 3.0)
    close(module.actor_loss(agent.actor, agent, edge, jax.random.key(0), args)[0], -(weight * of_edge).mean())
    y = batch.reward + 0.9 * (1 - batch.terminal) * mlp(agent.value, batch.next_obs)[:, 0]
    q = heads(agent.critic, batch.obs, batch.action)
    close(module.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())

    args, agent = setting(module, value_lr=0.1, updates=3, tau=0.5)
    key = jax.random.key(0)
    update = jax.jit(module.update)
    new, metrics = update(agent, batch, key, args)
    after = agent.replace(value=new.value)
    close(metrics["critic_loss"], module.critic_loss(agent.critic, after, batch, args)[0])
    close(metrics["actor_loss"], module.actor_loss(agent.actor, after, batch, key, args)[0])
    assert abs(float(metrics["critic_loss"] - module.critic_loss(agent.critic, agent, batch, args)[0])) > 1e-3
    half = jax.tree.map(lambda a, b: (a + b) / 2, agent.target_critic, new.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.target_critic, half)
    for _ in range(2):
        new, _ = update(new, batch, key, args)
    still, _ = update(new, batch, key, args)
    jax.tree.map(np.testing.assert_array_equal, still.actor, new.actor)
