"""The losses of moorl, its rounds (source, inner steps, Reptile), and the baselines that its switches give."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions

SMALL = {"learning_starts": 4, "inner_steps": 2}

K = 3


def tiny(**changes):
    values = {"hidden_dims": (8, 8), "batch_size": B, "inner_steps": K, "learning_starts": 0, "learning_rate": 1e-2}
    return load("moorl").Args(**values | changes)


@pytest.fixture
def agent():
    return agent_of(compiled("moorl"), tiny()).replace(log_alpha=jnp.float32(-0.5))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return any(np.abs(x - y).max() > 1e-6 for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def sources(batch, updates=1):
    """[updates, 2, B]: the replay buffer's `batch`, and as the dataset's the same with other rewards."""
    pair = jax.tree.map(lambda x: np.stack([x, x]), batch._replace(next_action=None))
    pair = pair._replace(reward=np.stack([np.zeros(B, np.float32), np.ones(B, np.float32)]))
    return jax.tree.map(lambda x: np.stack([x] * updates), pair)


@pytest.mark.long
@pytest.mark.parametrize("layer_norm", [True, False])
def test_moorl_losses_are_those_of_the_adapted_networks(agent, batch, layer_norm):
    module, args, key = compiled("moorl"), tiny(critic_layer_norm=layer_norm), jax.random.key(9)
    agent = agent_of(module, args).replace(log_alpha=jnp.float32(-0.5))
    alpha, noise = np.exp(-0.5), np.asarray(jax.random.normal(key, (B, 2)))
    ensemble = partial(heads, layer_norm=layer_norm)
    next_action, next_lp = tanh_normal(*policy(agent.actor, batch.next_obs), noise)
    target_v = ensemble(agent.target_critic, batch.next_obs, next_action).min(0) - alpha * next_lp
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    q = ensemble(agent.critic, batch.obs, batch.action)
    loss, info = module.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, ((q - y) ** 2).mean(1).sum())
    close(info["q_max"], q.max())

    action, lp = tanh_normal(*policy(agent.actor, batch.obs), noise)
    expected = (alpha * lp - ensemble(agent.critic, batch.obs, action).min(0)).mean()
    close(module.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
    slope = jax.grad(module.alpha_loss)
    assert slope(jnp.float32(0.0), -5.0, 3) < 0 < slope(jnp.float32(0.0), -1.0, 3)


def test_moorl_outer_step_is_reptile_and_targets_follow_the_meta_critics(agent):
    module, args = compiled("moorl"), tiny(reptile_step=0.3, tau=0.1)
    new = jax.device_get(module.reptile(agent, args))
    agent = jax.device_get(agent)
    for name in ("actor", "critic"):
        meta, adapted = getattr(agent, f"meta_{name}"), getattr(agent, name)
        jax.tree.map(lambda n, m, a: close(n, m + 0.3 * (a - m)), getattr(new, f"meta_{name}"), meta, adapted)
        same(getattr(new, name), getattr(new, f"meta_{name}"))  # the next round starts there
    step = 1 - 0.9**K
    jax.tree.map(lambda n, t, m: close(n, t + step * (m - t)), new.target_critic, agent.target_critic, new.meta_critic)
    same(new.actor_opt, agent.actor_opt)


@pytest.mark.long
@pytest.mark.parametrize("reset", [False, True])
def test_moorl_round_is_k_steps_from_one_source(agent, batch, reset):
    """From the first update on, whatever environment step it follows; Adam's state outlives the round."""
    module = compiled("moorl")
    args = tiny(learning_starts=7, reset_optimizer=reset)
    update = module.update
    agent = agent.replace(actor=agent.meta_actor, critic=agent.meta_critic)
    drawn = []
    for t in range(7, 7 + 12 * K):
        old = agent
        agent, info = update(agent, sources(batch), jax.random.key(t), args, jnp.int32(t))
        done = t - 6
        ends = done % K == 0
        assert differ(old.meta_actor, agent.meta_actor) == differ(old.meta_critic, agent.meta_critic) == ends
        assert differ(old.target_critic, agent.target_critic) == ends
        assert differ(agent.actor, agent.meta_actor) == differ(agent.critic, agent.meta_critic) == (not ends)
        assert int(agent.critic_opt[0].count) == int(agent.actor_opt[0].count) == (done % K if reset else done)
        assert int(agent.alpha_opt[0].count) == done
        drawn.append(int(agent.source))
        assert float(info["offline"]) == drawn[-1]
    rounds = np.array(drawn).reshape(-1, K)
    assert (rounds == rounds[:, :1]).all() and 0 < rounds[:, 0].mean() < 1


def test_moorl_learns_from_the_rounds_source_alone(agent, batch, monkeypatch):
    module = load("moorl")
    monkeypatch.setattr(module, "adapt", lambda agent, batch, key, args: (agent, {"reward": batch.reward.mean()}))
    update = jax.jit(lambda *x: module.update(*x))
    for t in range(4):
        for share, reward in ((0.0, 0.0), (1.0, 1.0)):  # as `sources` has them
            args = tiny(offline_probability=share, inner_steps=1)
            new, info = update(agent, sources(batch), jax.random.key(t), args, np.int32(t))
            assert float(info["reward"]) == reward == float(new.source)


@pytest.mark.long
def test_moorl_many_updates_per_environment_step(agent, batch):
    """Algorithm 1: a whole round after every environment step."""
    module, key = compiled("moorl"), jax.random.key(0)
    args = tiny(utd=K, offline_probability=1.0)
    agent = agent.replace(actor=agent.meta_actor, critic=agent.meta_critic)
    new, _ = module.update(agent, sources(batch, K), key, args, np.int32(5))
    expected = agent
    for k in jax.random.split(key, K):
        data = jax.tree.map(lambda x: x[0, 1], sources(batch))
        expected, _ = module.adapt(expected, data, jax.random.split(k)[1], args)
    assert int(new.critic_opt[0].count) == K
    expected = module.reptile(expected, args)
    jax.tree.map(close, new.meta_critic, expected.meta_critic)
    jax.tree.map(close, new.meta_actor, expected.meta_actor)


def buffers():
    width = 2 * SPEC.obs_shape[0] + SPEC.action_dim + 2
    data = Transitions(jnp.ones((50, width)), None, None, SPEC, FIELDS)
    replay = init_replay(1, 20, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay)
    for _ in range(4):
        replay = replay.insert(jnp.zeros(width))
    return data, replay


@pytest.mark.parametrize("updates", [1, 2])
def test_moorl_mixtures(updates):
    module, (data, replay) = compiled("moorl"), buffers()
    draw = partial(module.sample, jax.random.key(0), data, replay)
    args = tiny(batch_size=6, utd=updates)
    batch = jax.device_get(draw(args))
    assert batch.obs.shape == (updates, 2, 6, 3)
    assert (batch.reward[:, 0] == 0).all() and (batch.reward[:, 1] == 1).all()
    batch = jax.device_get(draw(dataclasses.replace(args, batches="mixed")))
    assert batch.obs.shape == (updates, 1, 6, 3) and (batch.reward.sum(-1) == 3).all()
    batch = jax.device_get(draw(dataclasses.replace(args, batches="online")))
    assert batch.obs.shape == (updates, 1, 6, 3) and (batch.reward == 0).all()


@pytest.mark.long
def test_moorl_without_data_and_averaging_is_sac(batch):
    module, sac, key = compiled("moorl"), compiled("sac"), jax.random.key(4)
    args = tiny(inner_steps=1, reptile_step=1.0, batches="online", critic_layer_norm=False)
    agent = jax.device_get(module.init(jax.random.key(0), args, SPEC))  # numpy has no weak types to compile for anew
    plain_args = sac.Args(hidden_dims=(8, 8), batch_size=B, learning_rate=1e-2)
    plain = jax.device_get(sac.init(jax.random.key(0), plain_args, SPEC))
    for name in ("actor", "critic", "target_critic"):
        same(getattr(agent, name), getattr(plain, name))
    one = jax.tree.map(lambda x: x[None, None], batch._replace(next_action=None))
    for t in range(3):
        inner_key = jax.random.split(jax.random.split(jax.random.fold_in(key, t), 1)[0])[1]
        agent, info = module.update(agent, one, jax.random.fold_in(key, t), args, np.int32(t))
        plain, plain_info = sac.update(plain, batch, inner_key, plain_args)
    for name in ("actor", "critic", "target_critic", "log_alpha"):
        jax.tree.map(close, getattr(agent, name), getattr(plain, name))
    same(agent.meta_actor, agent.actor)
    same(agent.meta_critic, agent.critic)
    close(info["critic_loss"], plain_info["critic_loss"])


def test_moorl_meta_actor_acts(agent, batch):
    module, args, key = compiled("moorl"), tiny(), jax.random.key(1)
    mean, log_std = policy(agent.meta_actor, batch.obs)
    close(module.act(agent, batch.obs, key, args), np.tanh(mean))
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    close(module.explore(agent, batch.obs, key, args), tanh_normal(mean, log_std, noise)[0])


@pytest.mark.parametrize("step", [0.0, (0.5, 0.0), -0.1, 1.1])
def test_moorl_meta_parameters_must_move(step):
    with pytest.raises(InputError, match=r"^--reptile-step must lie in \(0, 1\], not "):
        load("moorl").main(tiny(reptile_step=step))
