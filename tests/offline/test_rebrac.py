"""The losses of rebrac against the same equations in plain numpy."""

import jax
import numpy as np
from conftest import load
from reference import B, agent_of, close, heads, mlp, smoothed_next_action


def test_rebrac_critic_penalises_the_next_action(batch):
    rebrac = load("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, critic_bc=0.3)
    agent, key = agent_of(rebrac, args), jax.random.key(3)
    next_action = smoothed_next_action(agent, batch, key, args)
    target_q = heads(agent.target_critic, batch.next_obs, next_action, layer_norm=True).min(0)
    target_q = target_q - 0.3 * ((next_action - batch.next_action) ** 2).sum(-1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action, layer_norm=True)
    close(rebrac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())


def test_rebrac_actor_sums_over_dimensions_and_takes_the_least_critic(batch):
    rebrac = load("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, actor_bc=0.4)
    agent = agent_of(rebrac, args)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi, layer_norm=True).min(0)
    expected = (0.4 * ((pi - batch.action) ** 2).sum(-1) - q / np.abs(q).mean()).mean()
    close(rebrac.actor_loss(agent.actor, agent, batch, args)[0], expected)
