"""The losses of mex against the same equations in plain numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, mlp
from scipy.special import logsumexp

SMALL = {"learning_starts": 4}

mex = load("mex")
ARGS = mex.Args(hidden_dims=(8, 8), batch_size=B, optimism_weight=0.3, policy_noise=0.4, noise_clip=0.3, tau=0.1)
loss_and_grad = jax.jit(jax.value_and_grad(mex.critic_loss, has_aux=True))
critic_loss = jax.jit(mex.critic_loss)


@pytest.fixture(scope="module")
def agent():
    """Its target actor's actions are near the limits, which the noise goes beyond."""
    agent = agent_of(mex, ARGS)
    return agent.replace(target_actor=jax.tree.map(lambda x: 2.0 * x, agent.target_actor))


def policy(params, obs):
    return np.tanh(mlp(params, obs))


def expected(agent, batch, key, args):
    noise_key, random_key = jax.random.split(key)
    noise = np.clip(0.4 * np.asarray(jax.random.normal(noise_key, (B, 2))), -0.3, 0.3)
    next_action = policy(agent.target_actor, batch.next_obs) + noise
    assert (np.abs(next_action) > 1).any()
    next_action = np.clip(next_action, -1, 1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    error = ((q - y) ** 2).mean(1).sum()
    if args.optimism == "value":
        return error - 0.3 * q.mean(1).sum()
    random = np.asarray(jax.random.uniform(random_key, (B, 2), minval=-1, maxval=1))
    others = [batch.action, policy(agent.actor, batch.next_obs), random]
    soft = logsumexp([heads(agent.critic, batch.obs, a) for a in others], axis=0)
    return error - 0.3 * (heads(agent.critic, batch.obs, policy(agent.actor, batch.obs)) - soft).mean(1).sum()


@pytest.mark.parametrize("optimism", ("value", "advantage"))
def test_mex_critics_descend_the_bellman_error_and_climb_their_optimism(agent, batch, optimism):
    args, key = dataclasses.replace(ARGS, optimism=optimism), jax.random.key(9)
    (loss, info), grads = loss_and_grad(agent.critic, agent, batch, key, args)
    close(loss, expected(agent, batch, key, args))
    close(info["bellman_error"] - 0.3 * info["optimism"], loss)
    step = jax.tree.map(lambda p, g: p - 1e-3 * g, agent.critic, grads)
    assert critic_loss(step, agent, batch, key, args)[0] < loss
    no = dataclasses.replace(args, optimism_weight=0.0)
    close(critic_loss(agent.critic, agent, batch, key, no)[0], info["bellman_error"])


def test_mex_advantage_does_not_depend_on_the_level_of_the_values(agent, batch):
    """A constant added to Q leaves the optimism as it is."""
    bias = agent.critic["params"]["Dense_2"]["bias"]
    raised = {"params": agent.critic["params"] | {"Dense_2": agent.critic["params"]["Dense_2"] | {"bias": bias + 7.0}}}
    args, key = dataclasses.replace(ARGS, optimism="advantage"), jax.random.key(1)
    optimism = jax.jit(mex.optimism)
    close(optimism(raised, agent, batch, key, args), optimism(agent.critic, agent, batch, key, args))
    value = dataclasses.replace(ARGS, optimism="value")
    close(optimism(raised, agent, batch, key, value) - optimism(agent.critic, agent, batch, key, value), 7.0)


def test_mex_actor_climbs_the_first_critic_every_other_step(agent, batch):
    close(mex.actor_loss(agent.actor, agent, batch)[0],
          -heads(agent.critic, batch.obs, policy(agent.actor, batch.obs))[0].mean())  # fmt: skip
    update = jax.jit(mex.update)
    for t, moves in ((1, False), (2, True)):
        new, info = update(agent, batch, jax.random.key(0), ARGS, t)
        for before, after in ((agent.actor, new.actor), (agent.target_critic, new.target_critic)):
            moved = [np.abs(x - y).max() > 0 for x, y in zip(*map(jax.tree.leaves, (before, after)))]
            assert all(moved) if moves else not any(moved)
        assert np.abs(new.critic["params"]["Dense_0"]["kernel"] - agent.critic["params"]["Dense_0"]["kernel"]).max() > 0
    for name in ("critic", "actor"):
        before, now = getattr(agent, f"target_{name}"), getattr(new, f"target_{name}")
        jax.tree.map(lambda t, own, now: close(now, t + 0.1 * (own - t)), before, getattr(new, name), now)
    close(info["actor_loss"], 2 * mex.actor_loss(agent.actor, new.replace(actor=agent.actor), batch)[0])
