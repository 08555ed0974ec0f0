"""The combination lock of shared/environments.py against a plain re-implementation."""

import dataclasses

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from shared.environments import (
    BAD,
    LOGIT_LIMIT,
    Lock,
    LockState,
    lock_data,
    lock_optimal,
    lock_random,
    lock_reset,
    lock_step,
    lock_task,
)
from shared.task import Task

N = 20_000


class Reference:
    """One lock, one number at a time; random events are given."""

    def __init__(self, lock: Lock):
        self.lock, self.table = lock, lock.correct()

    def step(self, latent: int, h: int, action: int, switch: bool, anti: bool):
        last = h == self.lock.horizon - 1
        if latent in (0, 1) and action == self.table[h][latent]:
            reward = 1.0 if last else 0.0
            return ((1 if latent == 0 else 0) if switch else latent), reward, last
        if self.lock.continuous:
            reward = 0.1 if last and anti else 0.0
        else:
            reward = 0.1 if latent in (0, 1) and anti else 0.0
        return 2, reward, last

    def observe(self, latent: int, h: int) -> np.ndarray:
        size = 2 ** int(np.ceil(np.log2(self.lock.horizon + 4)))
        x = np.zeros(size)
        x[latent] += 1
        x[3 + h] += 1
        return hadamard(size) @ x


def certain(lock: Lock, switch: bool, anti: bool) -> Lock:
    return dataclasses.replace(lock, switch_prob=float(switch), anti_prob=float(anti), noise=0.0)


@pytest.mark.parametrize("continuous", (False, True))
def test_transitions_rewards_and_observations(continuous):
    """All latent states, steps, actions and outcomes of the random events."""
    for switch in (False, True):
        for anti in (False, True):
            lock = certain(Lock(horizon=4, continuous=continuous, num_actions=3, seed=1), switch, anti)
            reference = Reference(lock)
            for h in range(4):
                latent, action = (x.ravel() for x in np.meshgrid(range(3), range(3)))
                given = jnp.eye(3)[action] * LOGIT_LIMIT if continuous else jnp.asarray(action)
                state = LockState(jnp.asarray(latent), jnp.int32(h))
                new, obs, reward, terminal = lock_step(lock, state, given, jax.random.key(h))
                expected = [reference.step(z, h, a, switch, anti) for z, a in zip(latent, action)]
                np.testing.assert_array_equal(new.latent, [e[0] for e in expected])
                np.testing.assert_allclose(reward, [e[1] for e in expected], rtol=1e-6)
                assert bool(terminal) == expected[0][2] and int(new.h) == h + 1
                seen = [reference.observe(e[0], h + 1) for e in expected]
                np.testing.assert_allclose(obs, seen, atol=1e-5)


@pytest.mark.parametrize("horizon", (1, 4, 5, 12, 13, 50, 100))
def test_observations_have_the_smallest_power_of_two_and_turn_back(horizon):
    lock = Lock(horizon=horizon)
    size = 2 ** int(np.ceil(np.log2(horizon + 4)))
    np.testing.assert_array_equal(lock.rotation(), hadamard(size))
    for h in {0, horizon // 2, horizon}:
        state = LockState(jnp.full(N // 10, 1), jnp.int32(h - 1))
        new, obs, _, _ = lock_step(lock, state, lock_optimal(lock, state), jax.random.key(h)) if h else (
            *lock_reset(lock, jax.random.key(h), (N // 10,)), None, None
        )  # fmt: skip
        back = np.asarray(obs) @ hadamard(size) / size
        back[np.arange(len(back)), new.latent] -= 1
        back[:, 3 + h] -= 1
        np.testing.assert_allclose(back[:, : horizon + 3].std(), 0.1, rtol=0.05)
        np.testing.assert_allclose(back[:, horizon + 3 :], 0.0, atol=1e-5)


def test_random_events_have_their_probabilities():
    lock = Lock(horizon=3, seed=2)
    state, _ = lock_reset(lock, jax.random.key(0), (N,))
    assert abs(float(state.latent.mean()) - 0.5) < 0.02
    new, _, reward, _ = lock_step(lock, state, lock_optimal(lock, state), jax.random.key(1))
    assert abs(float((new.latent != state.latent).mean()) - 0.5) < 0.02 and not reward.any()
    # independent of where it was, of the rewards, and of the next step's
    assert abs(np.corrcoef(new.latent, state.latent)[0, 1]) < 0.03
    wrong = (lock_optimal(lock, state) + 1) % 10
    fallen, _, reward, _ = lock_step(lock, state, wrong, jax.random.key(1))
    assert (fallen.latent == BAD).all() and abs(float(reward.mean()) - 0.05) < 0.002
    assert set(np.unique(reward)) == {np.float32(0.0), np.float32(0.1)}


def test_continuous_actions_are_logits_at_temperature_one_tenth():
    lock = Lock(horizon=3, continuous=True, num_actions=4, seed=2)
    state = LockState(jnp.zeros(N, jnp.int32), jnp.int32(0))
    logits = np.random.default_rng(0).uniform(0, 0.3, 4).astype(np.float32)
    probs = np.exp(logits / 0.1) / np.exp(logits / 0.1).sum()
    right = lock_step(lock, state, jnp.tile(logits, (N, 1)), jax.random.key(0))[0].latent != BAD
    assert abs(float(right.mean()) - probs[lock.correct()[0, 0]]) < 0.015
    random = lock_random(lock, jax.random.key(3), (N,))
    assert random.shape == (N, 4) and random.min() >= 0 and random.max() <= 1


def play(lock: Lock, policy, n: int = 500):
    state, _ = lock_reset(lock, jax.random.key(5), (n,))
    total = np.zeros(n)
    for h in range(lock.horizon):
        state, _, reward, _ = lock_step(lock, state, policy(state, h), jax.random.key(h))
        total += np.asarray(reward)
    return total


def test_the_optimal_value_is_one_and_random_actions_are_worth_next_to_nothing():
    lock = Lock(horizon=20)
    assert (play(lock, lambda s, h: lock_optimal(lock, s)) == 1.0).all()
    random = play(lock, lambda s, h: lock_random(lock, jax.random.key(100 + h), s.latent.shape))
    assert set(np.unique(np.round(random, 3))) == {0.0, 0.1}  # at most one fall
    soft = dataclasses.replace(lock, continuous=True)
    assert (play(soft, lambda s, h: LOGIT_LIMIT * lock_optimal(soft, s)) == 1.0).all()
    assert play(soft, lambda s, h: lock_optimal(soft, s)).mean() > 0.97  # e^10 / (e^10 + 9) at each step


def latents(lock: Lock, obs) -> np.ndarray:
    return (np.asarray(obs) @ lock.rotation() / lock.obs_dim)[..., :3].argmax(-1)


@pytest.mark.parametrize("continuous", (False, True))
def test_offline_data(continuous):
    lock, n = Lock(horizon=8, continuous=continuous, seed=3), 8_000
    table = lock.correct()

    def chosen(data):
        return np.asarray(data.action).argmax(-1) if continuous else np.asarray(data.action)

    def correct(data):
        z = latents(lock, data.obs)
        return np.take_along_axis(table, np.minimum(z, 1), axis=1) == chosen(data), z

    data = lock_data(lock, jax.random.key(0), n, "trajectory")
    assert data.obs.shape == (8, n, 16) and data.reward.shape == (8, n)
    assert (latents(lock, data.next_obs[:-1]) == latents(lock, data.obs[1:])).all()  # whole episodes
    right, z = correct(data)
    rate = [right[h][z[h] != BAD].mean() for h in range(8)]
    middle = 4
    expected = [1 - 1 / 8 * 0.9] * 8
    if not continuous:
        expected[middle] = 0.1
    np.testing.assert_allclose(rate, expected, atol=0.03)

    data = lock_data(lock, jax.random.key(0), n, "occupancy")
    right, z = correct(data)
    assert (z != BAD).mean() > (0.995 if continuous else 1.0 - 1e-9)
    np.testing.assert_allclose([np.mean(chosen(data) == a) for a in range(10)], 0.1, atol=0.01)
    falls = latents(lock, data.next_obs) == BAD
    assert (falls == ~right)[z != BAD].mean() > (0.7 if continuous else 1.0 - 1e-9)

    data = lock_data(lock, jax.random.key(0), n, "random")
    right, z = correct(data)
    np.testing.assert_allclose((z[:3] != BAD).mean(1), [1.0, 0.1, 0.01], atol=0.02)
    assert float(data.reward.max()) == np.float32(0.1)


def test_the_gymnasium_environment_is_the_lock_and_carries_the_step():
    lock = Lock(horizon=6, seed=4)
    data = lock_data(lock, jax.random.key(0), 10, "trajectory")
    task = Task.from_description(lock_task(lock, data, "trajectory").describe())
    assert task.env_spec.kwargs["seed"] == 4 and task.score(np.array(1.0)) == 100.0
    env = task.make_env()
    for seed in (0, 1):
        obs, total, h, done = env.reset(seed=seed)[0], 0.0, 0, False
        first = obs
        while not done:
            assert obs.dtype == np.float32 and obs.shape == (17,) and obs[-1] == h
            obs, reward, done, truncated, _ = env.step(lock.correct()[h, latents(lock, obs[:-1])])
            total, h = total + reward, h + 1
            assert not truncated
        assert (total, h) == (1.0, 6)
        np.testing.assert_array_equal(env.reset(seed=seed)[0], first)
    assert np.abs(env.reset(seed=7)[0] - env.reset(seed=8)[0]).max() > 0


def test_actions_of_a_continuous_task_reach_the_lock_as_logits():
    lock = Lock(horizon=6, continuous=True, seed=4)
    task = lock_task(lock, lock_data(lock, jax.random.key(0), 10, "random"), "random")
    env = task.make_env()
    obs, total, done = env.reset(seed=0)[0], 0.0, False
    while not done:
        best = lock.correct()[int(obs[-1]), latents(lock, obs[:-1])]
        obs, reward, done, _, _ = env.step(task.to_env(np.eye(10, dtype=np.float32)[best]))
        total += reward
    assert total == 1.0
    assert isinstance(env.action_space, gym.spaces.Box) and env.action_space.high[0] == LOGIT_LIMIT
