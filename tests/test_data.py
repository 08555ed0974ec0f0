"""Loading, masks and derived columns, on a hand-written log: one terminal, one time limit, one cut.

rows      0 1 2 | 3 4 | 5 6
ends with terminal, time limit, end of the log
"""

import dataclasses
import json
import time
import zipfile
from pathlib import Path

import gymnasium as gym
import h5py
import jax
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from conftest import ROOT, write_pendulum
from minari.data_collector import EpisodeBuffer

from shared.data import Dataset, load_dataset, moments
from shared.errors import InputError
from shared.task import Spec, Task, flatten_obs, reference_score, registered_env
from shared.transitions import FIELDS, alias_table

SPEC = Spec((1,), 1, False, (-1.0,), (1.0,))
LAST = np.array([0, 0, 1, 0, 1, 0, 1], bool)
TERMINAL = np.array([0, 0, 1, 0, 0, 0, 0], bool)
REWARD = np.float32([1, 2, 3, 10, 20, 100, 200])


@pytest.fixture
def log() -> Dataset:
    obs = np.arange(7, dtype=np.float32)[:, None] * 10
    action = np.linspace(-0.6, 0.6, 7, dtype=np.float32)[:, None]
    return Dataset(Task("log", "", SPEC), obs, action, REWARD, obs + 1, TERMINAL, LAST)


def test_episodes(log):
    assert log.starts().tolist() == [0, 3, 5] and log.ends().tolist() == [2, 4, 6]
    assert log.episode().tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert log.episode_returns().tolist() == [6, 30, 300]


def test_return_to_go_stays_within_its_episode(log):
    assert log.return_to_go().tolist() == [6, 5, 3, 30, 20, 300, 200]
    np.testing.assert_allclose(log.return_to_go(0.5), [1 + 1 + 0.75, 3.5, 3, 20, 20, 200, 200])


def test_return_to_go_of_failures_and_of_episodes_without_an_end(log):
    failed = dataclasses.replace(log, reward=np.float32([-5, -5, 5, -5, -5, -5, -4]))
    np.testing.assert_allclose(failed.return_to_go(0.5, failure=-5.0), [-6.25, -2.5, 5, -10, -10, -7, -4])
    np.testing.assert_allclose(log.return_to_go(0.5, endless=True), [2.75, 3.5, 3, 30, 40, 300, 400])
    np.testing.assert_allclose(failed.return_to_go(0.5, endless=True)[3:5], -10)


def test_rows_carry_the_returns_of_a_lanes_own_discount():
    """AntMaze's transform: failures -5, successes 5; an episode of failures alone is worth -5 / (1 - gamma)."""
    reward, terminal, last = np.float32([-5, 5, -5, -5, -5]), np.bool_([0, 1, 0, 0, 0]), np.bool_([0, 1, 0, 0, 1])
    task = Task("log", "", SPEC, options={"reward_scale": 10.0, "reward_shift": -5.0})
    obs = np.arange(5, dtype=np.float32)[:, None]
    data = Dataset(task, obs, np.zeros((5, 1), np.float32), reward, obs, terminal, last)
    stored = data.with_returns(np.float32([0.5, 0.9, 0.5]), task.training_reward(0.0))
    expected = {0.5: [-2.5, 5, -10, -10, -10], 0.9: [-0.5, 5, -50, -50, -50]}
    assert stored.return_to_go.shape == (2, 5)
    for discount, returns in expected.items():
        seen = stored.sample(jax.random.key(0), 50, discount)
        row = np.asarray(seen.obs[:, 0]).astype(int)
        np.testing.assert_allclose(seen.return_to_go, np.array(returns)[row], rtol=1e-6)
        assert set(row) == set(range(5))
    dense = data.with_returns(np.float32([0.5]))
    np.testing.assert_allclose(dense.return_to_go[0], [-2.5, 5, -8.75, -7.5, -5])
    for forever in ({"endless": True}, {"failure": 0.0}):
        with pytest.raises(InputError, match="--discount 1: what --endless or --failure-reward takes"):
            data.with_returns(np.float32([0.5, 1.0]), **forever)
    np.testing.assert_array_equal(data.with_returns(np.float32([1.0])).return_to_go[0], data.return_to_go())
    endless = data.with_returns(np.float32([0.5]), endless=True)
    np.testing.assert_allclose(endless.return_to_go[0], [-2.5, 5, -10, -10, -10])


def test_next_action_does_not_exist_at_an_episodes_last_row(log):
    action, exists = log.next_action()
    assert exists.tolist() == [True, True, False, True, False, True, False]
    np.testing.assert_array_equal(action[exists], log.action[[1, 2, 4, 6]])


def test_next_action_rows_of_cut_and_timed_out_episodes_are_left_out(log):
    rows = np.asarray(log.transitions(*FIELDS, "next_action").rows)
    assert rows[:, 0].tolist() == [0, 10, 20, 30, 50]  # row 2 terminates: its next action is never used


def test_n_step_returns(log):
    reward, row, weight = log.n_step(3, 0.5)
    np.testing.assert_allclose(reward, [1 + 1 + 0.75, 2 + 1.5, 3, 10 + 10, 20, 100 + 100, 200])
    assert row.tolist() == [2, 2, 2, 4, 4, 6, 6]
    np.testing.assert_allclose(weight, [0, 0, 0, 0.25, 0.5, 0.25, 0.5])


def test_normalised_observations_are_what_the_policy_sees(log):
    data = log.normalize_obs()
    np.testing.assert_allclose(data.obs, (log.obs - log.obs.mean()) / (log.obs.std() + 1e-3), rtol=1e-5)
    np.testing.assert_allclose(data.next_obs, (log.next_obs - log.obs.mean()) / (log.obs.std() + 1e-3), rtol=1e-5)
    np.testing.assert_array_equal(data.task.observe(log.obs[3]), data.obs[3])
    assert "normalize_obs" in data.task.options


def test_reward_options_are_recorded_and_leave_scores_alone(log):
    data = log.scale_rewards(2.0, -1.0)
    assert data.reward.tolist() == (REWARD * 2 - 1).tolist()
    assert data.task.options == {"reward_scale": 2.0, "reward_shift": -1.0}


@pytest.fixture
def long_log() -> Dataset:
    r, n = np.random.default_rng(0), 4000
    obs, next_obs = (r.normal(size=(n, 2)).astype(np.float32) * np.float32([1, 50]) for _ in range(2))
    action = r.uniform(-1, 1, (n, 1)).astype(np.float32)
    last = np.arange(n) % 100 == 99
    task = Task("long", "0123", Spec((2,), 1, False, (-1.0,), (1.0,)))
    return Dataset(task, obs, action, r.normal(1000, 1, n).astype(np.float32), next_obs, last & False, last)


ARRAYS = {"obs": "obs", "action": "action", "dynamics": "next_obs"}


def changed_arrays(one: Dataset, other: Dataset) -> set[str]:
    names = ("obs", "action", "reward", "next_obs", "terminal", "last")
    return {n for n in names if not np.array_equal(getattr(one, n), getattr(other, n))}


@pytest.mark.parametrize("element", ARRAYS)
def test_random_corruption_is_uniform_in_units_of_the_datas_deviation(long_log, element):
    name = ARRAYS[element]
    before = getattr(long_log, name).copy()
    data = long_log.corrupt((element,), rate=0.25, scale=2.0)
    np.testing.assert_array_equal(getattr(long_log, name), before)  # the clean data is left as it was
    assert changed_arrays(data, long_log) == {name} and getattr(data, name).dtype == np.float32
    noise = (getattr(data, name) - before) / before.std(0)
    rows = (noise != 0).any(1)
    assert 0.22 < rows.mean() < 0.28 and (noise[rows] != 0).mean() > 0.99
    assert np.abs(noise).max() <= 2.001 and np.abs(noise).max() > 1.98
    np.testing.assert_allclose(noise[rows].std(0), 2 / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(noise[rows].mean(0), 0, atol=0.12)


def test_corrupted_rewards_are_replaced_and_adversarial_ones_turned_round(long_log):
    data = long_log.corrupt(("reward",), rate=0.5, scale=0.5)
    assert changed_arrays(data, long_log) == {"reward"} and data.reward.dtype == np.float32
    rows = data.reward < 500
    assert 0.47 < rows.mean() < 0.53 and 14.8 < np.abs(data.reward[rows]).max() <= 15
    np.testing.assert_array_equal(data.reward[~rows], long_log.reward[~rows])
    data = long_log.corrupt(("adversarial_reward",), rate=0.5, scale=0.5)
    rows = data.reward < 0
    assert 0.47 < rows.mean() < 0.53
    np.testing.assert_allclose(data.reward, np.where(rows, -0.5, 1) * long_log.reward)


def test_elements_are_corrupted_independently_and_in_any_order(long_log):
    both = long_log.corrupt(("reward", "obs", "dynamics", "action"))
    again = long_log.corrupt(["action", "dynamics", "obs", "reward"])
    assert changed_arrays(both, again) == set() and both.task.hash == again.task.hash
    rows = []
    for element, name in {**ARRAYS, "reward": "reward"}.items():
        alone = long_log.corrupt((element,))
        np.testing.assert_array_equal(getattr(alone, name), getattr(both, name))
        rows.append((getattr(alone, name) != getattr(long_log, name)).reshape(4000, -1).any(1))
    for i in range(4):
        for j in range(i):
            assert 0.07 < (rows[i] & rows[j]).mean() < 0.11  # 0.3 squared


def test_the_hash_and_the_options_tell_of_the_corruption(long_log):
    assert long_log.corrupt(()) is long_log
    data = long_log.corrupt(("obs",), 0.3, 1.0, seed=4)
    assert data.task.id == "long+obs"
    assert json.loads(json.dumps(data.task.describe()))["options"] == {
        "corruption": ["obs"], "corruption_rate": 0.3, "corruption_scale": 1.0, "corruption_seed": 4,
    }  # fmt: skip
    assert data.task.hash == long_log.corrupt(("obs",), 0.3, 1.0, seed=4).task.hash
    others = [
        long_log.corrupt(("obs",), 0.3, 1.0, seed=5),
        long_log.corrupt(("obs",), 0.2, 1.0, seed=4),
        long_log.corrupt(("obs",), 0.3, 0.9, seed=4),
        long_log.corrupt(("dynamics",), 0.3, 1.0, seed=4),
        long_log,
    ]
    assert len({data.task.hash, *(d.task.hash for d in others)}) == 6
    normalised = data.normalize_obs()
    np.testing.assert_allclose(normalised.task.obs_std, data.obs.std(0) + 1e-3, rtol=1e-4)


def test_bad_corruptions_get_one_sentence(long_log):
    for arguments, words in (
        ((("dynamic",),), "'dynamic'.*dynamics"),
        ((("obs",), 1.5), "rate in"),
        ((("obs",), 0.5, -1.0), "scale of at least 0"),
    ):
        with pytest.raises(InputError, match=words) as error:
            long_log.corrupt(*arguments)
        assert "\n" not in str(error.value)
    frames = np.zeros((4000, 4, 4, 3), np.uint8)
    images = Task("images", "", Spec((4, 4, 3), 1, False, (-1.0,), (1.0,)))
    data = Dataset(images, frames, long_log.action, long_log.reward, frames, long_log.terminal, long_log.last)
    with pytest.raises(InputError, match="images"):
        data.corrupt(("obs",))


def test_some_episodes_are_whole_and_always_the_same(log):
    there = len(log.ends())
    some = log.some_episodes(there - 1)
    assert len(some.ends()) == there - 1 and some.task.options["episodes"] == there - 1
    np.testing.assert_array_equal(some.obs, log.some_episodes(there - 1).obs)
    whole = [log.reward[a : b + 1].tolist() for a, b in zip(log.starts(), log.ends(), strict=True)]
    assert all(some.reward[a : b + 1].tolist() in whole for a, b in zip(some.starts(), some.ends(), strict=True))
    assert log.some_episodes(0) is log and log.some_episodes(there) is log
    with pytest.raises(InputError, match=f"--episodes {there + 1}: .* has {there}"):
        log.some_episodes(there + 1)


def test_top_episodes(log):
    best = log.top_episodes(0.67)
    assert best.reward.tolist() == [10, 20, 100, 200] and best.last.tolist() == [False, True, False, True]
    assert log.top_episodes(0.01).reward.tolist() == [100, 200]
    with pytest.raises(InputError, match="fraction"):
        log.top_episodes(1.5)


def test_transitions_are_one_packed_array(log):
    transitions = log.transitions()
    assert transitions.rows.shape == (7, 1 + 1 + 1 + 1 + 1) and transitions.rows.dtype == jnp.float32
    batch = transitions.take(jnp.array([2, 4]))
    assert batch.obs.tolist() == [[20], [40]] and batch.next_obs.tolist() == [[21], [41]]
    assert batch.reward.tolist() == [3, 20] and batch.terminal.tolist() == [1, 0]
    np.testing.assert_allclose(batch.action, log.action[[2, 4]])


def test_sampling_covers_all_rows_uniformly(log):
    rewards = log.transitions().sample(jax.random.key(0), 7000).reward
    counts = [(rewards == r).sum() for r in REWARD]
    assert min(counts) > 850 and max(counts) < 1150


def probabilities(table) -> np.ndarray:
    """Of every row, as the alias table has them."""
    keep, other = np.asarray(table.keep, np.float64) / 2**32, np.asarray(table.other)
    return (keep + np.bincount(other, 1.0 - keep, len(keep))) / len(keep)


def test_weighted_sampling_follows_the_weights(log):
    weights = np.array([1, 1, 1, 10, 10, 0, 477])
    rewards = log.transitions(weights=weights).sample(jax.random.key(0), 50_000).reward
    counts = np.array([(rewards == r).sum() for r in REWARD])
    np.testing.assert_allclose(counts, 100.0 * weights, atol=4 * np.sqrt(100.0 * weights.max()), rtol=0)
    assert counts[5] == 0 and (counts[:3] > 50).all() and (counts[:3] < 160).all()


def test_weights_belong_to_the_rows_that_are_kept(log):
    """With next_action rows 4 and 6 are left out, and their weights with them."""
    transitions = log.transitions(*FIELDS, "next_action", weights=np.array([0, 0, 0, 0, 9, 1, 9]))
    assert (transitions.sample(jax.random.key(0), 100).reward == 100).all()


@pytest.mark.parametrize("kind", ["rare rows", "ties", "one", "equal"])
def test_alias_table_keeps_the_weights_of_a_million_rows(kind):
    """A cumulative sum in float32 would lose every row under 6e-8 of the total: here all of the rare ones."""
    n, r = 1_000_000, np.random.default_rng(0)
    weights = {
        "rare rows": np.where(r.uniform(size=n) < 0.05, np.exp(10), r.uniform(0.9, 1.1, n)),
        "ties": r.integers(0, 5, n).astype(float),
        "one": np.eye(1, n, 17)[0],
        "equal": np.full(n, 0.1),
    }[kind]
    actual, expected = probabilities(alias_table(weights)), weights / weights.sum()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-15)


def test_weights_that_are_no_weights():
    for weights in ([1.0, -1.0], [np.nan, 1.0], [0.0, 0.0]):
        with pytest.raises(InputError, match="weights"):
            alias_table(np.array(weights))


def test_images_stay_uint8_and_are_stored_once(log):
    frames = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)  # 7 rows + 3 episodes
    at = np.array([0, 1, 2, 4, 5, 7, 8])
    task = Task("images", "", Spec((4, 4, 3), 1, False, (-1.0,), (1.0,)))
    data = Dataset(task, frames[at], log.action, log.reward, frames[at + 1], log.terminal, log.last)
    transitions = data.transitions()
    np.testing.assert_array_equal(transitions.frames, frames)
    batch = transitions.take(jnp.arange(7))
    assert batch.obs.dtype == jnp.uint8
    np.testing.assert_array_equal(batch.obs, data.obs)
    np.testing.assert_array_equal(batch.next_obs, data.next_obs)
    assert batch.reward.tolist() == REWARD.tolist()
    with pytest.raises(InputError, match="image"):
        data.require()


def test_goal_dictionaries_are_flattened_in_the_stated_order():
    obs = {
        "achieved_goal": np.ones(1) * 3,
        "desired_goal": np.ones(1) * 2,
        "observation": np.ones(2),
        "a": np.ones(1) * 9,
    }
    assert flatten_obs(obs).tolist() == [1, 1, 2, 3, 9]


def test_packed_size_on_the_device():
    n = 1000
    obs = np.zeros((n, 11), np.float32)
    task = Task("x", "", Spec((11,), 3, False, (-1.0,) * 3, (1.0,) * 3))
    last = np.arange(n) == n - 1
    data = Dataset(task, obs, np.zeros((n, 3), np.float32), np.zeros(n, np.float32), obs, ~last & False, last)
    raw = 4 * n * (11 + 3 + 1 + 1 + 11)
    assert data.transitions(*FIELDS, "next_action").rows.nbytes <= 1.3 * raw


# ---------------------------------------------------------------------------------------- formats


def d4rl_log(path, next_observations: bool):
    arrays = {
        "observations": np.arange(7, dtype=np.float32)[:, None] * np.ones(3, np.float32),
        "actions": np.linspace(-1, 1, 7, dtype=np.float32)[:, None],
        "rewards": REWARD,
        "terminals": TERMINAL,
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
    }
    if next_observations:
        arrays["next_observations"] = arrays["observations"] + 1
    with h5py.File(path, "w") as f:
        for k, v in arrays.items():
            f[k] = v
    return str(path)


def test_d4rl_hdf5_with_next_observations(tmp_path):
    data = load_dataset(d4rl_log(tmp_path / "pendulum-x.hdf5", True))
    assert data.terminal.tolist() == TERMINAL.tolist() and data.last.tolist() == LAST.tolist()
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert data.task.env_spec.id == "Pendulum-v1"
    np.testing.assert_allclose(data.action[:, 0], np.linspace(-0.5, 0.5, 7), atol=1e-6)  # torque in [-2, 2]


def test_d4rl_hdf5_without_next_observations_keeps_rows_that_have_none(tmp_path):
    """They count in returns; losses that bootstrap get the others, and the terminal one, whose next_obs has no use."""
    data = load_dataset(d4rl_log(tmp_path / "pendulum-x.hdf5", False))
    assert data.reward.tolist() == REWARD.tolist() and data.episode_returns().tolist() == [6, 30, 300]
    assert data.terminal.tolist() == TERMINAL.tolist() and data.last.tolist() == LAST.tolist()
    assert data.successor.tolist() == (~LAST).tolist()
    assert data.next_obs[[0, 1, 3, 5], 0].tolist() == [1, 2, 4, 6]
    assert data.transitions().take(jnp.arange(5)).reward.tolist() == [1, 2, 3, 10, 100]
    assert len(data.transitions("obs", "action").rows) == 7


def test_what_follows_a_terminal_row_is_never_another_episodes_first_observation(tmp_path):
    data = load_dataset(d4rl_log(tmp_path / "pendulum-x.hdf5", False))
    np.testing.assert_array_equal(data.next_obs[LAST], data.obs[LAST])
    batch = data.transitions(*FIELDS, "successor").take(jnp.arange(5))
    assert batch.successor.tolist() == [1, 1, 0, 1, 1] and batch.terminal.tolist() == [0, 0, 1, 0, 0]


def test_what_is_derived_skips_rows_without_a_successor(log):
    """Row 4 ends by a time limit and row 2 terminates, both without a next observation."""
    data = dataclasses.replace(log, successor=np.array([1, 1, 0, 1, 0, 1, 1], bool))
    assert data.usable().tolist() == [True, True, True, True, False, True, True]
    assert data.usable("obs", "action").all()
    reward, row, weight = data.n_step(3, 0.5)
    keep = data.usable()
    np.testing.assert_allclose(reward[keep], [1 + 1 + 0.75, 2 + 1.5, 3, 10, 100 + 100, 200])
    assert row[keep].tolist() == [2, 2, 2, 3, 6, 6]  # row 3 bootstraps from its own next_obs
    np.testing.assert_allclose(weight[keep], [0, 0, 0, 0.5, 0.25, 0.5])
    assert data.top_episodes(0.67).successor.tolist() == [True, False, True, True]
    weighted = data.transitions(weights=np.array([0, 0, 0, 0, 9, 1, 0]))
    assert (weighted.sample(jax.random.key(0), 50).reward == 100).all()


def test_ogbench_npz(tmp_path):
    path = tmp_path / "pointmaze.npz"
    obs = np.arange(7, dtype=np.float32)[:, None]
    np.savez(path, observations=obs, actions=np.zeros((7, 2), np.float32), terminals=LAST)
    data = load_dataset(str(path))
    assert not data.terminal.any() and not data.reward.any() and not data.task.data["rewards"]
    assert data.last.tolist() == LAST.tolist() and data.usable().tolist() == (~LAST).tolist()
    with pytest.raises(InputError, match="learns from rewards"):
        data.require()
    assert data.require(reward=False) is data
    np.savez(
        path, observations=obs, actions=np.zeros((7, 2), np.float32), terminals=LAST, rewards=REWARD, masks=~TERMINAL
    )
    data = load_dataset(str(path))
    assert data.terminal.tolist() == TERMINAL.tolist() and data.last.tolist() == LAST.tolist()


def test_discontinuity_ends_an_episode_of_a_plain_npz(tmp_path):
    path = tmp_path / "plain.npz"
    obs = np.float32([[0], [1], [2], [50], [51]])
    np.savez(path, obs=obs, next_obs=obs + 1, actions=np.zeros((5, 1), np.float32), rewards=np.ones(5))
    data = load_dataset(str(path))
    assert data.last.tolist() == [False, False, True, False, True] and not data.terminal.any()


def minari_log(name="test/pendulum-v0"):
    env = gym.make("Pendulum-v1")
    r = np.random.default_rng(0)
    episodes = []
    for n, terminated in ((3, True), (2, False)):
        episodes.append(
            EpisodeBuffer(
                observations=list(r.normal(size=(n + 1, 3)).astype(np.float32).clip(-1, 1)),
                actions=list(r.uniform(-2, 2, (n, 1)).astype(np.float32)),
                rewards=[float(x) for x in range(n)],
                terminations=[False] * (n - 1) + [terminated],
                truncations=[False] * (n - 1) + [not terminated],
                infos={},
            )
        )
    return minari.create_dataset_from_buffers(name, buffer=episodes, env=env, eval_env=env)


def test_minari(tmp_path):
    stored = minari_log()
    data = load_dataset("test/pendulum-v0")
    assert data.terminal.tolist() == [False, False, True, False, False]
    assert data.last.tolist() == [False, False, True, False, True]
    assert data.task.env_spec.id == "Pendulum-v1" and data.reward.tolist() == [0, 1, 2, 0, 1]
    episode = next(stored.iterate_episodes())
    np.testing.assert_array_equal(data.next_obs[:3], episode.observations[1:])
    by_path = load_dataset(str(tmp_path / "minari" / "test" / "pendulum-v0"))
    assert by_path.task.hash == data.task.hash


def test_loading_writes_nothing_beside_the_data_and_caches_by_content(tmp_path):
    path = tmp_path / "d" / "pendulum.npz"
    path.parent.mkdir()
    write_pendulum(path)
    before = path.read_bytes()
    first = load_dataset(str(path))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["pendulum.npz"]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert load_dataset(str(path)).task.hash == first.task.hash
    write_pendulum(path, seed=1)
    assert load_dataset(str(path)).task.hash != first.task.hash


def test_a_damaged_cache_is_rebuilt(tmp_path, pendulum):
    first = load_dataset(pendulum)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    np.testing.assert_array_equal(load_dataset(pendulum).obs, first.obs)


def test_a_million_hopper_rows_load_within_five_seconds_the_second_time(tmp_path):
    n, path = 1_000_000, tmp_path / "hopper.hdf5"
    r = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        f["observations"] = r.normal(size=(n, 11)).astype(np.float32)
        f["actions"] = r.uniform(-1, 1, (n, 3)).astype(np.float32)
        f["rewards"] = np.ones(n, np.float32)
        f["terminals"] = np.zeros(n, bool)
        f["timeouts"] = np.arange(n) % 1000 == 999
    load_dataset(str(path))
    start = time.process_time()  # CPU seconds: the machine may be busy
    load_dataset(str(path))
    assert time.process_time() - start < 5


# ----------------------------------------------------------------------------------------- errors


def break_pendulum(path, **changes):
    write_pendulum(path)
    with np.load(path) as f:
        arrays = {k: f[k] for k in f.files}
    np.savez(path, **{**arrays, **changes})
    return str(path)


def nan_rows():
    obs = np.zeros((300, 3), np.float32)
    obs[17] = np.nan
    return obs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": nan_rows()}, "NaN or infinite observations, first in row 17"),
        ({"rewards": np.full(300, np.inf)}, "infinite rewards"),
        ({"rewards": np.zeros(299)}, "reward has 299 rows, obs has 300"),
        ({"actions": np.full((300, 1), 3.0)}, "actions outside"),
        ({"actions": np.zeros((300, 2))}, "actions of 2 dimensions"),
        ({"observations": np.zeros((300, 4)), "next_observations": np.zeros((300, 4))}, "observations of shape"),
    ],
)
def test_bad_data_gets_one_sentence(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as error:
        load_dataset(break_pendulum(tmp_path / "pendulum.npz", **changes), "Pendulum-v1")
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        load_dataset(str(tmp_path / "absent.hdf5"))
    truncated = tmp_path / "pendulum-a.hdf5"
    d4rl_log(truncated, True)
    truncated.write_bytes(truncated.read_bytes()[:1500])
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(truncated))
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", something=np.zeros(3))
    with pytest.raises(InputError, match="has no observations"):
        load_dataset(str(tmp_path / "y.npz"))
    with pytest.raises(InputError, match="not a Minari dataset"):
        load_dataset(str(tmp_path))
    with pytest.raises(InputError, match=r"^There is no file .*absent\.$"):
        load_dataset(str(tmp_path / "absent"))
    path = write_pendulum(tmp_path / "pendulum.npz")
    with np.load(path) as file:
        np.savez(tmp_path / "one.npz", **{name: x[:1] for name, x in file.items()})
    with pytest.raises(InputError, match="holds 1 transitions"):
        load_dataset(str(tmp_path / "one.npz"))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("rewards.npy", archive.read("rewards.npy"))
    with pytest.raises(InputError, match="two arrays of the name rewards"):
        load_dataset(path)


def test_rewards_that_are_all_equal_have_no_range(tmp_path):
    path = write_pendulum(tmp_path / "pendulum.npz")
    with np.load(path) as file:
        arrays = dict(file)
    data = load_dataset(path)
    assert data.reward_range() == (arrays["rewards"].min(), arrays["rewards"].max())
    assert data.task.data["episode_returns"] == [data.episode_returns().min(), data.episode_returns().max()]
    np.savez(path, **{**arrays, "rewards": np.zeros_like(arrays["rewards"])})
    with pytest.raises(InputError, match="^All rewards of .* are equal"):
        load_dataset(path).reward_range()


@pytest.mark.parametrize(
    "dataset_id, env_id, source",
    [
        ("data/halfcheetah_medium-v2.hdf5", "HalfCheetah-v5", "d4rl/halfcheetah"),
        ("D4RL/pen/human-v2", "AdroitHandPen-v1", "d4rl/pen"),
        ("D4RL/pointmaze/open-v2", "PointMaze_Open-v3", None),  # its id holds "pen"
        ("halfcheetah-random", "HalfCheetah-v5", "HalfCheetah-v5"),  # made here, on another version than D4RL's
        ("data/walker2d_medium-v2.hdf5", "Walker2d-v5", "d4rl/walker2d"),  # D4RL's, though v5 has a pair
        ("my-robot", "Walker2d-v5", "Walker2d-v5"),
        ("D4RL/pointmaze/umaze-v2", "PointMaze_UMaze-v3", "pointmaze-umaze"),
        ("pointmaze-umaze-dense", "PointMaze_UMazeDense-v3", "pointmaze-umaze-dense"),
        ("hopper-medium", "Hopper-v5", "Hopper-v5"),
    ],
)
def test_the_pair_of_reference_scores(dataset_id, env_id, source):
    table = json.loads((ROOT / "datasets" / "reference_scores.json").read_text())
    assert reference_score(dataset_id, env_id) == (table[source] if source else None)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "z.npz", observations=np.array([{"a": 1}] * 3, dtype=object), actions=np.zeros((3, 1)))
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(tmp_path / "z.npz"))


def test_unknown_ids(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the attempts to download without a network
    with pytest.raises(InputError, match="did you mean pendulum-mixed"):
        load_dataset("pendulm-mixed")
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_dataset("mujoco/hopper/medium-v0")
    with pytest.raises(InputError, match="not registered.*Hopper-v5"):
        registered_env("Hoper-v5")


def test_an_environment_in_a_file_is_made_only_if_registered():
    stored = minari_log("test/evil-v0")
    path = Path(stored.spec.data_path) / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["eval_env_spec"])
    metadata["eval_env_spec"] = json.dumps({**spec, "id": "Evil-v0", "entry_point": "os:system"})
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="'Evil-v0' is not registered"):
        load_dataset("test/evil-v0")


def test_returns_that_are_all_equal_are_no_scale(tmp_path):
    """One sentence in place of a division by zero."""
    path, ends = tmp_path / "even.npz", np.arange(20) % 10 == 9
    log = {"observations": np.zeros((20, 3)), "actions": np.zeros((20, 1)), "terminals": ends}
    np.savez(path, **log, rewards=np.ones(20))
    with pytest.raises(InputError, match="have one return, 10: rewards cannot be scaled.*--no-normalize-return"):
        load_dataset(str(path)).return_range()
    np.savez(path, **log, rewards=np.arange(20.0))
    assert load_dataset(str(path)).return_range() == 100.0


def test_what_never_changes_is_not_magnified():
    """Of a thousand rows float32 makes 1.7 a mean that is none of them, and what is next to nothing a deviation."""
    r = np.random.default_rng(0)
    x = np.stack([np.full(1000, 1.7), np.full(1000, 3e4), r.normal(size=1000), 1e-8 * r.normal(size=1000)], 1)
    x = x.astype(np.float32)
    assert x.std(0)[0] > 1e-12 and x[0, 0] != x.mean(0)[0]  # what this is about
    mean, std = moments(x)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_array_equal(mean[:2], x[0, :2])
    np.testing.assert_array_equal(std[[0, 1, 3]], 1.0)
    np.testing.assert_allclose([mean[2], std[2]], [x[:, 2].mean(), x[:, 2].std()], rtol=1e-3)
    assert moments(x, 1e-12)[1][3] < 1e-7 and moments(x, constant=1e-6)[1][0] == np.float32(1e-6)
