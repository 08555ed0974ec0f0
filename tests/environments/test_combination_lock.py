"""The combination lock against a plain re-implementation, and its datasets."""

import csv
import dataclasses
from collections.abc import Callable

import gymnasium as gym
import jax
import jax.numpy as jnp
import locks
import make
import numpy as np
import pytest
from environments.combination_lock import BAD, LOGIT_LIMIT, Lock, LockState
from jobs import train
from scipy.linalg import hadamard

from shared.data import Dataset, load_dataset
from shared.errors import InputError
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


def test_the_tables_are_the_means_of_its_steps():
    """Every state, step and action, of a lock whose states are seen."""
    lock = Lock(horizon=4, tabular=True, num_actions=3, seed=1, switch_prob=0.3, anti_prob=0.4)
    transition, reward, start = lock.tables()
    assert (transition.sum(-1) == 1).all() and start.tolist() == [0.5, 0.5, 0.0]
    shape = (N, 3, 3)
    latent, action = (jnp.broadcast_to(jnp.arange(3).reshape(x), shape) for x in ((3, 1), (1, 3)))
    for h in range(4):
        state = LockState(latent, jnp.int32(h))
        np.testing.assert_array_equal(lock.observe(state, jax.random.key(0)), np.eye(3)[np.asarray(latent)])
        _, obs, paid, last = lock.step(state, action, jax.random.key(h))
        np.testing.assert_allclose(obs.mean(0), transition[h], atol=0.015)
        np.testing.assert_allclose(paid.mean(0), reward[h], atol=0.002)
        assert last == (h == 3)


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
                new, obs, reward, terminal = lock.step(state, given, jax.random.key(h))
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
        new, obs, _, _ = lock.step(state, lock.optimal_action(state), jax.random.key(h)) if h else (
            *lock.reset(jax.random.key(h), (N // 10,)), None, None
        )  # fmt: skip
        back = np.asarray(obs) @ hadamard(size) / size
        back[np.arange(len(back)), new.latent] -= 1
        back[:, 3 + h] -= 1
        np.testing.assert_allclose(back[:, : horizon + 3].std(), 0.1, rtol=0.05)
        np.testing.assert_allclose(back[:, horizon + 3 :], 0.0, atol=1e-5)


def test_random_events_have_their_probabilities():
    lock = Lock(horizon=3, seed=2)
    state, _ = lock.reset(jax.random.key(0), (N,))
    assert abs(float(state.latent.mean()) - 0.5) < 0.02
    new, _, reward, _ = lock.step(state, lock.optimal_action(state), jax.random.key(1))
    assert abs(float((new.latent != state.latent).mean()) - 0.5) < 0.02 and not reward.any()
    # independent of where it was, of the rewards, and of the next step's
    assert abs(np.corrcoef(new.latent, state.latent)[0, 1]) < 0.03
    wrong = (lock.optimal_action(state) + 1) % 10
    fallen, _, reward, _ = lock.step(state, wrong, jax.random.key(1))
    assert (fallen.latent == BAD).all() and abs(float(reward.mean()) - 0.05) < 0.002
    assert set(np.unique(reward)) == {np.float32(0.0), np.float32(0.1)}


def test_continuous_actions_are_logits_at_temperature_one_tenth():
    lock = Lock(horizon=3, continuous=True, num_actions=4, seed=2)
    state = LockState(jnp.zeros(N, jnp.int32), jnp.int32(0))
    logits = np.random.default_rng(0).uniform(0, 0.3, 4).astype(np.float32)
    probs = np.exp(logits / 0.1) / np.exp(logits / 0.1).sum()
    right = lock.step(state, jnp.tile(logits, (N, 1)), jax.random.key(0))[0].latent != BAD
    assert abs(float(right.mean()) - probs[lock.correct()[0, 0]]) < 0.015
    random = lock.random_action(jax.random.key(3), (N,))
    assert random.shape == (N, 4) and random.min() >= 0 and random.max() <= 1


def play(lock: Lock, policy, n: int = 500):
    state, _ = lock.reset(jax.random.key(5), (n,))
    total = np.zeros(n)
    for h in range(lock.horizon):
        state, _, reward, _ = lock.step(state, policy(state, h), jax.random.key(h))
        total += np.asarray(reward)
    return total


def test_the_optimal_value_is_one_and_random_actions_are_worth_next_to_nothing():
    lock = Lock(horizon=20)
    assert (play(lock, lambda s, h: lock.optimal_action(s)) == 1.0).all()
    random = play(lock, lambda s, h: lock.random_action(jax.random.key(100 + h), s.latent.shape))
    assert set(np.unique(np.round(random, 3))) == {0.0, 0.1}  # at most one fall
    soft = dataclasses.replace(lock, continuous=True)
    assert (play(soft, lambda s, h: LOGIT_LIMIT * soft.optimal_action(s)) == 1.0).all()
    assert play(soft, lambda s, h: soft.optimal_action(s)).mean() > 0.97  # e^10 / (e^10 + 9) at each step


def latents(lock: Lock, obs) -> np.ndarray:
    return (np.asarray(obs) @ lock.rotation() / lock.obs_dim)[..., :3].argmax(-1)


@pytest.mark.long
@pytest.mark.parametrize("continuous", (False, True))
def test_offline_data(continuous):
    lock, n = Lock(horizon=8, continuous=continuous, seed=3), 8_000
    table = lock.correct()

    def chosen(data):
        return np.asarray(data.action).argmax(-1) if continuous else np.asarray(data.action)

    def correct(data):
        z = latents(lock, data.obs)
        return np.take_along_axis(table, np.minimum(z, 1), axis=1) == chosen(data), z

    data = lock.offline_data(jax.random.key(0), n, "trajectory")
    assert data.obs.shape == (8, n, 16) and data.reward.shape == (8, n)
    assert (latents(lock, data.next_obs[:-1]) == latents(lock, data.obs[1:])).all()  # whole episodes
    right, z = correct(data)
    rate = [right[h][z[h] != BAD].mean() for h in range(8)]
    middle = 4
    expected = [1 - 1 / 8 * 0.9] * 8
    if not continuous:
        expected[middle] = 0.1
    np.testing.assert_allclose(rate, expected, atol=0.03)

    data = lock.offline_data(jax.random.key(0), n, "occupancy")
    right, z = correct(data)
    assert (z != BAD).mean() > (0.995 if continuous else 1.0 - 1e-9)
    np.testing.assert_allclose([np.mean(chosen(data) == a) for a in range(10)], 0.1, atol=0.01)
    falls = latents(lock, data.next_obs) == BAD
    assert (falls == ~right)[z != BAD].mean() > (0.7 if continuous else 1.0 - 1e-9)

    data = lock.offline_data(jax.random.key(0), n, "random")
    right, z = correct(data)
    np.testing.assert_allclose((z[:3] != BAD).mean(1), [1.0, 0.1, 0.01], atol=0.02)
    assert float(data.reward.max()) == np.float32(0.1)


@pytest.fixture
def dataset() -> Callable[..., Dataset]:
    """A small recipe's dataset, made and loaded."""

    def load(name: str, steps: int, **options) -> Dataset:
        make.make(name, steps=steps)
        return load_dataset(name, **options)

    return load


@pytest.mark.parametrize("soft", ["", "continuous-"])
@pytest.mark.parametrize("kind", ["trajectory", "random", "occupancy"])
def test_a_recipes_dataset_is_what_the_lock_draws(kind, soft, dataset):
    """To the last bit, where actions stay in the environment's units; steps come back from any order of the rows."""
    name = f"{soft}combination-lock-h10-{kind}"
    data = dataset(name, 70, env_units=True)
    assert (len(data.obs), data.spec.obs_shape, data.spec.discrete) == (70, (17,), not soft)
    lock = data.task.make_env().unwrapped.lock
    assert lock == Lock(10, continuous=bool(soft))
    drawn = lock.offline_data(locks.data_key(lock, 0), 7, kind)
    shuffled = data.select(np.random.default_rng(0).permutation(70)).by_step(10)
    for field in ("obs", "action", "reward", "next_obs"):
        expected = np.asarray(getattr(drawn, field))
        np.testing.assert_array_equal(getattr(data.by_step(10), field), expected, err_msg=field)
        found = getattr(shuffled, field)
        assert [sorted(map(str, x)) for x in found] == [sorted(map(str, x)) for x in expected]
    np.testing.assert_array_equal(data.terminal, data.obs[:, -1] == 9)
    np.testing.assert_array_equal(data.last, True if kind == "occupancy" else data.terminal)
    np.testing.assert_array_equal(data.next_obs[:, -1], data.obs[:, -1] + 1)
    returns = np.asarray(drawn.reward).sum(0)
    means = {} if kind == "occupancy" else {"dataset mean": returns.mean(), "dataset best episode": returns.max()}
    assert data.task.baselines == pytest.approx(means)
    assert data.task.reference["min"] == 0.0 and data.task.score(np.array(1.0)) == 100.0


def test_other_seeds_are_other_locks_and_other_rows(dataset):
    first, second = (dataset(f"combination-lock-h10-{seed}trajectory", 40) for seed in ("", "seed1-"))
    of = [data.task.make_env().unwrapped.lock for data in (first, second)]
    assert [lock.seed for lock in of] == [0, 1] and (of[0].correct() != of[1].correct()).any()
    assert first.task.hash != second.task.hash
    make.make("combination-lock-h10-trajectory", steps=40, seed=1, force=True)
    again = load_dataset("combination-lock-h10-trajectory")
    assert again.task.hash not in (first.task.hash, second.task.hash) and again.task.env_spec == first.task.env_spec


@pytest.mark.parametrize("seed", [0, 3])
def test_a_datasets_keys_are_no_training_lanes_keys(seed):
    """Not even where lane and lock have one seed: a lane's keys are the children of its seed's (shared.run)."""
    data_key, root = locks.data_key(Lock(8, seed=seed), 0), jax.random.key(seed)
    key_bytes = lambda keys: {bytes(np.asarray(jax.random.key_data(k))) for k in keys}  # noqa: E731
    ours = key_bytes([data_key, *jax.random.split(data_key, 8)])
    children = jax.random.split(root, 3)
    assert not ours & key_bytes([root, *children, *(k for child in children for k in jax.random.split(child, 8))])


def test_rows_of_a_cut_dataset_are_as_many_for_every_step(dataset):
    data = dataset("combination-lock-h10-random", 34)
    assert len(data.obs) == 34 and data.last.sum() == 4 and not data.terminal[-1]
    rows = data.by_step(10)
    assert rows.obs.shape == (10, 3, 16)
    np.testing.assert_array_equal(rows.reward, data.reward[:30].reshape(3, 10).T)
    with pytest.raises(InputError, match="step 10"):
        data.by_step(11)


def test_the_gymnasium_environment_is_the_lock_and_carries_the_step(dataset):
    task = Task.from_description(dataset("combination-lock-h10-seed1-trajectory", 20).task.describe())
    lock, env = Lock(10, seed=1), task.make_env()
    assert task.env_spec.kwargs["seed"] == 1 and task.score(np.array(1.0)) == 100.0
    for seed in (0, 1):
        obs, total, h, done = env.reset(seed=seed)[0], 0.0, 0, False
        first = obs
        while not done:
            assert obs.dtype == np.float32 and obs.shape == (17,) and obs[-1] == h
            obs, reward, done, truncated, _ = env.step(lock.correct()[h, latents(lock, obs[:-1])])
            total, h = total + reward, h + 1
            assert not truncated
        assert (total, h) == (1.0, 10)
        np.testing.assert_array_equal(env.reset(seed=seed)[0], first)
    assert np.abs(env.reset(seed=7)[0] - env.reset(seed=8)[0]).max() > 0


def test_actions_of_a_continuous_task_reach_the_lock_as_logits(dataset):
    task, lock = dataset("continuous-combination-lock-h10-random", 20).task, Lock(10, continuous=True)
    env = task.make_env()
    obs, total, done = env.reset(seed=0)[0], 0.0, False
    while not done:
        best = lock.correct()[int(obs[-1]), latents(lock, obs[:-1])]
        obs, reward, done, _, _ = env.step(task.to_env(np.eye(10, dtype=np.float32)[best]))
        total += reward
    assert total == 1.0
    assert isinstance(env.action_space, gym.spaces.Box) and env.action_space.high[0] == LOGIT_LIMIT


@pytest.mark.parametrize("algorithm, kind", [("bc", "trajectory"), ("cql", "random")])
def test_other_algorithms_reach_the_lock_by_its_datasets_name(algorithm, kind, dataset, tmp_path):
    name = f"combination-lock-h10-{kind}"
    dataset(name, 40)
    train(algorithm, name, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "returns.csv").open()))
    assert len(rows) == 1 and rows[0]["length"] == "10" and 0.0 <= float(rows[0]["score"]) <= 100.0
