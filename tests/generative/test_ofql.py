"""The losses of ofql against the same equations in plain numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small
from networks_in_numpy import q_values, velocity_net
from reference import B, agent_of, close

from shared.data import load_dataset
from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"time_dim": 4, "n_candidates": 2, "target_start": 0, "target_every": 1}


def args_of(**changes):
    return load("ofql").Args(**{"hidden_dims": (8, 8), "batch_size": B, "time_dim": 6} | changes)


@functools.cache
def tiny_agent():
    return agent_of(load("ofql"), args_of())


def one_step(actor, obs, key, shape, args):
    noise = np.asarray(jax.random.normal(key, shape))
    return np.clip(noise - velocity_net(actor, obs, noise, np.zeros(1), np.ones(1), args.time_dim), -1, 1)


def mean_flow_parts(actor, batch, key, args):
    """u at a random point of the path, and its target by a finite difference along the path."""
    noise_key, time_key = jax.random.split(key)
    z = np.asarray(jax.random.normal(noise_key, (B, 2)), np.float64)
    r, t = (np.asarray(x, np.float64) for x in load("ofql").draw_times(time_key, args))

    def u(t):
        return velocity_net(actor, batch.obs, (1 - t) * batch.action + t * z, r, t, args.time_dim)

    return u(t), (z - batch.action) - (t - r) * (u(t + 1e-4) - u(t - 1e-4)) / 2e-4


def test_ofql_times_are_ordered_logit_normal_draws():
    ofql = load("ofql")
    args = args_of(batch_size=40_000, flow_ratio=0.3, time_mean=-0.4, time_std=1.0)
    r, t = (np.asarray(x)[:, 0] for x in jax.jit(ofql.draw_times)(jax.random.key(0), args))
    assert (r > 0).all() and (r <= t).all() and (t < 1).all()
    np.testing.assert_allclose((r == t).mean(), 0.3, atol=0.01)
    logits = np.log(np.stack([r, t])[:, r < t] / (1 - np.stack([r, t])[:, r < t]))
    np.testing.assert_allclose([logits.mean(), logits.std()], [-0.4, 1.0], atol=0.02)
    for ratio, share in ((0.0, 0.0), (1.0, 1.0)):
        r, t = ofql.draw_times(jax.random.key(0), args_of(flow_ratio=ratio))
        assert (r == t).mean() == share


@pytest.mark.long
def test_ofql_mean_flow_loss_and_that_its_target_has_no_gradient(batch):
    """The target by finite differences along the path; the slope of the loss with the target held fixed."""
    ofql = load("ofql")
    args = args_of(flow_ratio=0.2)
    agent, key = tiny_agent(), jax.random.key(8)
    actor = jax.tree.map(np.float64, agent.actor)
    u, target = mean_flow_parts(actor, batch, key, args)
    loss, grads = jax.jit(jax.value_and_grad(ofql.flow_loss))(agent.actor, agent, batch, key, args)
    close(loss, ((u - target) ** 2).mean())

    direction = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), actor)

    def moved(step):
        u, _ = mean_flow_parts(jax.tree.map(lambda x, d: x + step * d, actor, direction), batch, key, args)
        return ((u - target) ** 2).mean()

    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


def test_ofql_is_plain_flow_matching_where_the_times_are_equal(batch):
    ofql = load("ofql")
    args = args_of(flow_ratio=1.0)
    agent, key = tiny_agent(), jax.random.key(8)
    z = np.asarray(jax.random.normal(jax.random.split(key)[0], (B, 2)))
    u, _ = mean_flow_parts(agent.actor, batch, key, args)
    close(jax.jit(ofql.flow_loss)(agent.actor, agent, batch, key, args), ((u - (z - batch.action)) ** 2).mean())


@pytest.mark.parametrize("max_q_backup", [False, True])
def test_ofql_critic_bootstraps_from_the_target_policy(batch, max_q_backup):
    ofql = load("ofql")
    args = args_of(max_q_backup=max_q_backup)
    agent, key = tiny_agent(), jax.random.key(7)
    n = 10 if max_q_backup else 1
    next_obs = np.broadcast_to(batch.next_obs, (n, B, 3))
    next_action = one_step(agent.target_actor, next_obs, key, (n, B, 2), args)
    assert (np.abs(next_action) == 1).any() and (np.abs(next_action) < 1).any()
    y = batch.reward + 0.99 * (1 - batch.terminal) * q_values(agent.target_critic, next_obs, next_action).max(1).min(0)
    expected = sum(((q - y) ** 2).mean() for q in q_values(agent.critic, batch.obs, batch.action))
    close(jax.jit(ofql.critic_loss)(agent.critic, agent, batch, key, args)[0], expected)


def test_ofql_actor_divides_by_the_other_critic(batch):
    """The loss; and its gradient is the sum of those of its terms, the normaliser held fixed."""
    ofql = load("ofql")
    args = args_of(eta=0.7)
    agent, loss_and_grad = tiny_agent(), jax.jit(jax.value_and_grad(ofql.actor_loss, has_aux=True))
    actor = jax.tree.map(np.float64, agent.actor)
    direction = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), actor)
    drawn = set()
    for seed in range(4):
        key = jax.random.key(seed)
        flow_key, sample_key, critic_key = jax.random.split(key, 3)
        i = int(jax.random.randint(critic_key, (), 0, 2))
        drawn.add(i)
        _, target = mean_flow_parts(actor, batch, flow_key, args)

        def q(actor, key=sample_key):
            return q_values(agent.critic, batch.obs, one_step(actor, batch.obs, key, (B, 2), args))

        scale = np.abs(q(actor)[1 - i]).mean()

        def loss(step, key=flow_key, i=i, scale=scale, target=target, q=q):
            moved = jax.tree.map(lambda x, v: x + step * v, actor, direction)
            u, _ = mean_flow_parts(moved, batch, key, args)
            return ((u - target) ** 2).mean() - 0.7 * q(moved)[i].mean() / scale

        (actual, _), grads = loss_and_grad(agent.actor, agent, batch, key, args)
        close(actual, loss(0.0))
        slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=2e-3)
    assert drawn == {0, 1}


@pytest.mark.long
def test_ofql_moves_the_target_policy_rarely_and_the_critics_always(batch):
    ofql = load("ofql")
    args = args_of(target_start=4, target_every=2, tau=0.1)
    agent, update = tiny_agent(), jax.jit(ofql.update)
    for i in range(6):
        new, _ = update(agent, batch, jax.random.key(i), args)
        for name in ("actor", "critic"):
            old, online = getattr(agent, f"target_{name}"), getattr(new, name)
            tau = 0.1 if name == "critic" or i == 4 else 0.0
            expected = jax.tree.map(lambda o, n, tau=tau: (1 - tau) * o + tau * n, old, online)
            target = getattr(new, f"target_{name}")
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), target, expected)
        assert any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), agent.actor, new.actor)))
        agent = new
    assert int(agent.step) == 6


def test_ofql_acts_by_softmax_of_the_target_critics_or_with_one_sample(batch, monkeypatch):
    ofql = load("ofql")
    agent, key, obs = tiny_agent(), jax.random.key(0), jnp.asarray(batch.obs)
    alone = one_step(agent.actor, batch.obs[None], jax.random.split(key)[0], (1, B, 2), args_of())[0]
    close(jax.jit(ofql.act)(agent, obs, key, args_of(n_candidates=1)), alone)

    fixed = np.random.default_rng(0).uniform(-1, 1, (4, B, 2)).astype(np.float32)
    monkeypatch.setattr(ofql, "sample_actions", lambda *_: jnp.asarray(fixed))
    agent = agent.replace(target_critic=jax.tree.map(lambda x: 3 * x, agent.target_critic))
    act = jax.jit(jax.vmap(lambda k: ofql.act(agent, obs, k, args_of(n_candidates=4))))
    actions = np.asarray(act(jax.random.split(key, 2000)))
    q = q_values(agent.target_critic, np.broadcast_to(batch.obs, (4, B, 3)), fixed).min(0)
    expected = np.exp(q) / np.exp(q).sum(0)
    assert expected.max() > 0.5
    np.testing.assert_allclose((actions[:, None] == fixed).all(-1).mean(0), expected, atol=0.04)


@pytest.mark.long
def test_ofql_one_step_hits_two_modes_where_plain_flow_matching_misses():
    """Actions are -0.7 or 0.7: cloned with the average velocity, and with flow_ratio 1."""
    ofql = load("ofql")
    spec = Spec((1,), 1, False, (-1.0,), (1.0,))
    shape = {"hidden_dims": (32, 32), "batch_size": 128, "time_dim": 8}

    @jax.jit
    def near_a_mode(args):
        def step(carry, key):
            actor, opt = carry
            data_key, loss_key = jax.random.split(key)
            action = 0.7 * jax.random.rademacher(data_key, (128, 1), jnp.float32)
            batch = Batch(jnp.zeros((128, 1)), action)
            grads = jax.grad(ofql.flow_loss)(actor, agent, batch, loss_key, args)
            updates, opt = optax.adam(5e-3).update(grads, opt)
            return (optax.apply_updates(actor, updates), opt), None

        agent = ofql.init(jax.random.key(0), args, spec)
        carry = (agent.actor, optax.adam(5e-3).init(agent.actor))
        (actor, _), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), 3000))
        action = ofql.sample_actions(agent, actor, jnp.zeros((1000, 1)), jax.random.key(2))
        return (jnp.abs(jnp.abs(action) - 0.7) < 0.25).mean()

    assert near_a_mode(args_of(**shape)) > 0.6
    assert near_a_mode(args_of(**shape, flow_ratio=1.0)) < 0.4


def test_ofql_rewards_and_presets(pendulum):
    ofql = load("ofql")
    reward = np.float32([0, 0, 1, 3])
    data = dataclasses.replace(load_dataset(pendulum), reward=reward)
    scale, shift = ofql.reward_map(data, "antmaze")
    np.testing.assert_allclose(reward * scale + shift, 4 * (reward - 0.5))
    scale, shift = ofql.reward_map(data, "normalize")
    np.testing.assert_allclose(reward * scale + shift, (reward - reward.mean()) / reward.std(), rtol=1e-5)
    with pytest.raises(InputError, match="are equal"):
        ofql.reward_map(dataclasses.replace(data, reward=np.float32([1, 1])), "normalize")
    for changes in ofql.PRESETS.values():
        ofql.Args(**changes)


def test_ofql_refuses_an_embedding_of_less_than_a_pair():
    module = load("ofql")
    with pytest.raises(InputError, match="--time-dim must be at least 2"):
        module.main(module.Args(time_dim=1))


def test_ofql_refuses_times_that_are_all_one(pendulum, tmp_path):
    with pytest.raises(InputError, match="--time-std must be above 0, not 0.0: all times would be one"):
        load("ofql").main(small("ofql", pendulum, tmp_path / "run", env="none", time_std=0.0))
