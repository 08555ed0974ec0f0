"""Goal sampling against plain Python, goal datasets of every kind of file, and evaluation over tasks."""

import csv
import dataclasses

import gymnasium as gym
import jax
import numpy as np
import pytest
from conftest import load, write_goals
from jobs import small
from scipy.stats import chisquare

from shared.arguments import parse
from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import Evaluator, load_run
from shared.goals import goal_dataset
from shared.policies import at_step, seen_by
from shared.task import Task, registered_env

N = 200_000


def write_episodes(path, lengths=(4, 1, 7), **more) -> str:
    """Episodes of these lengths; the observation of row i is (i, episode)."""
    rows, episode = np.arange(sum(lengths)), np.repeat(np.arange(len(lengths)), lengths)
    obs = np.stack([rows, episode], -1).astype(np.float32)
    last = np.r_[episode[1:] != episode[:-1], True]
    arrays = {"observations": obs, "next_observations": obs + np.float32([0.5, 0]), "actions": np.zeros((len(rows), 2))}
    np.savez(path, **arrays, timeouts=last, **more)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return goal_dataset(load_dataset(write_episodes(tmp_path / "three.npz"))).transitions()


def frequencies(drawn: np.ndarray) -> np.ndarray:
    return np.bincount(drawn, minlength=12)


def agrees(counts: np.ndarray, chances: np.ndarray) -> None:
    assert counts[chances == 0].sum() == 0
    if (chances > 0).sum() == 1:  # of one outcome there is no law to be tested
        return
    assert chisquare(counts[chances > 0], chances[chances > 0] * counts.sum()).pvalue > 1e-4


def chances_ahead(row: int, end: int, discount: float | None) -> np.ndarray:
    """Of the rows 0 .. 11, by hand."""
    chances = np.zeros(12)
    if discount is None:  # round(first + u (last - first)): both ends half as often
        first = min(row + 1, end)
        for goal in range(first, end + 1):
            chances[goal] = 1.0 if first == end else (0.5 if goal in (first, end) else 1.0) / (end - first)
        return chances
    if discount == 1.0:  # infinitely far: the last row
        chances[end] = 1.0
        return chances
    for k in range(1, 2000):
        chances[min(row + k, end)] += (1 - discount) * discount ** (k - 1)
    return chances / chances.sum()


@pytest.mark.parametrize("discount", [None, 0.7, 0.99, 0.0, 1.0])
@pytest.mark.parametrize(("row", "end"), [(0, 3), (2, 3), (3, 3), (4, 4), (5, 11), (10, 11)])
def test_future_goals_follow_their_law_inside_the_episode(data, row, end, discount):
    drawn = data.future(jax.random.key(row), np.full(N, row, np.int32), discount)
    agrees(frequencies(np.asarray(drawn)), chances_ahead(row, end, discount))


def test_a_mixture_draws_its_shares(data):
    row = np.full(N, 5, np.int32)
    drawn = np.asarray(data.mixture(jax.random.key(0), row, (0.2, 0.5, 0.3), 0.7))
    chances = 0.5 * chances_ahead(5, 11, 0.7) + 0.3 / 12
    chances[5] += 0.2
    agrees(frequencies(drawn), chances)
    assert (np.asarray(data.mixture(jax.random.key(0), row, (1.0, 0.0, 0.0))) == 5).all()
    agrees(frequencies(np.asarray(data.mixture(jax.random.key(1), row, (0.0, 0.0, 2.0)))), np.full(12, 1 / 12))


def test_steps_ahead_stop_at_the_end_and_a_batch_knows_what_is_reached(data):
    rows = np.arange(12)
    np.testing.assert_array_equal(data.ahead(rows, 3), [3, 3, 3, 3, 4, 8, 9, 10, 11, 11, 11, 11])
    goal_rows, actor_rows = np.r_[0, rows[:-1]], rows[::-1]
    batch = data.batch(rows, goal_rows, actor_rows)
    np.testing.assert_array_equal(batch.goal[:, 0], goal_rows)
    np.testing.assert_array_equal(batch.actor_goal[:, 0], actor_rows)
    np.testing.assert_array_equal(batch.terminal, rows == 0)
    np.testing.assert_array_equal(batch.reward, (rows == 0) - 1.0)
    np.testing.assert_array_equal(batch.next_obs[:, 0], rows + 0.5)


def test_discounts_may_differ_from_lane_to_lane(data):
    row = np.full((2, N), 5, np.int32)
    drawn = jax.vmap(data.future, (None, 0, 0))(jax.random.key(0), row, np.float32([0.0, 0.99]))
    assert (drawn[0] == 6).all() and drawn[1].mean() > 10.5
    drawn = jax.vmap(data.future, (None, 0, 0))(jax.random.key(0), row, np.float32([0.99, 1.0]))
    assert drawn[0].min() == 6 and (drawn[1] == 11).all()


def test_rows_without_a_successor_are_no_goals(tmp_path):
    path = tmp_path / "compact.npz"
    rows = np.arange(12)
    np.savez(path, observations=np.stack([rows, rows], -1).astype(np.float32), actions=np.zeros((12, 2)),
             timeouts=np.isin(rows, (3, 11)))  # fmt: skip
    data = goal_dataset(load_dataset(str(path))).transitions()
    held = data.take(np.arange(len(data.end))).obs[:, 0]
    np.testing.assert_array_equal(held, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
    np.testing.assert_array_equal(held[data.end], [2, 2, 2, 10, 10, 10, 10, 10, 10, 10])


# ------------------------------------------------------------------------------------- datasets


def write_dictionaries(path, states: int = 2, achieved: int = 2, apart: bool = False) -> str:
    """Flat rows of a goal environment's dictionaries: state, wanted goal, achieved goal; `apart`: not in the state."""
    r = np.random.default_rng(0)
    state, wanted = 100 + r.random((60, states)), 200 + r.random((60, achieved))
    got = 300 + r.random((60, achieved)) if apart else state[:, :achieved]
    obs = np.concatenate([state, wanted, got], -1).astype(np.float32)
    np.savez(path, observations=obs, next_observations=obs, actions=r.uniform(-1, 1, (60, 2)),
             timeouts=np.arange(60) % 20 == 19)  # fmt: skip
    return str(path)


def test_goals_of_dictionaries_are_what_was_achieved(tmp_path):
    found = goal_dataset(load_dataset(write_dictionaries(tmp_path / "d.npz"), "PointUMazeGoals-v0"))
    assert found.task.spec.obs_shape == found.task.spec.goal_shape == (2,)
    data = found.transitions()
    batch = data.batch(np.arange(9), np.arange(9), np.arange(9))
    assert ((batch.obs >= 100) & (batch.obs < 102)).all()
    np.testing.assert_array_equal(batch.goal, batch.obs)
    assert found.task.tasks == (1, 2, 3, 4, 5) and found.task.counts_successes


class Unplaced(gym.Env):
    """As gymnasium-robotics' AntMaze: the position is in achieved_goal, and not in the state."""

    observation_space = gym.spaces.Dict(
        {
            name: gym.spaces.Box(-9, 9, (n,))
            for name, n in (("observation", 3), ("achieved_goal", 2), ("desired_goal", 2))
        }
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def shown(self):
        return {"observation": np.ones(3), "achieved_goal": self.position, "desired_goal": np.full(2, 5.0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.zeros(2)
        return self.shown(), {}

    def step(self, action):
        self.position = self.position + action
        return self.shown(), 0.0, False, False, {}


gym.register("Unplaced-v0", lambda: Unplaced(), max_episode_steps=3)


def test_a_state_without_its_position_is_seen_with_it_in_data_and_environment(tmp_path, capsys):
    path = write_dictionaries(tmp_path / "d.npz", states=3, apart=True)
    found = goal_dataset(load_dataset(path, "Unplaced-v0"))
    assert "policies see it in front of the state" in capsys.readouterr().out
    assert found.task.spec.obs_shape == (5,) and found.task.spec.goal_shape == (2,)
    batch = found.transitions().take(np.arange(9))
    for seen in (batch.obs, batch.next_obs):
        assert (seen[:, :2] >= 300).all() and ((seen[:, 2:] >= 100) & (seen[:, 2:] < 102)).all()
    np.testing.assert_array_equal(found.transitions().goal(np.arange(9)), batch.obs[:, :2])
    again = Task.from_description(found.task.describe())
    env = again.make_env()
    env.reset(seed=0)
    obs = env.step(np.float32([0.5, 0.25]))[0]
    np.testing.assert_array_equal(again.observe(obs), [0.5, 0.25, 1, 1, 1, 5, 5])
    without = goal_dataset(load_dataset(write_dictionaries(tmp_path / "e.npz", states=3), "Unplaced-v0"))
    assert without.task.spec.obs_shape == (3,) and not without.task.env_spec.additional_wrappers


def test_goals_without_a_goal_environment_are_states(tmp_path):
    found = goal_dataset(load_dataset(write_goals(tmp_path / "g.npz")))
    assert found.achieved is None and found.task.tasks == ()
    data = found.transitions()
    np.testing.assert_array_equal(data.goal(np.arange(5)), data.take(np.arange(5)).obs)


def test_bad_input_is_one_sentence(tmp_path):
    plain, dictionaries = write_goals(tmp_path / "g.npz"), write_dictionaries(tmp_path / "d.npz")
    with pytest.raises(InputError, match="MountainCarContinuous-v0 gives no goals"):
        cars = dataclasses.replace(load_dataset(plain).task, env_spec=registered_env("MountainCarContinuous-v0"))
        goal_dataset(dataclasses.replace(load_dataset(plain), task=cars))
    with pytest.raises(InputError, match="--tasks 6: PointUMazeGoals-v0 has tasks 1 to 5"):
        goal_dataset(load_dataset(dictionaries, "PointUMazeGoals-v0"), (2, 6))
    with pytest.raises(InputError, match="--tasks: .* has no environment"):
        goal_dataset(load_dataset(plain), (1,))
    with pytest.raises(InputError, match="12 rows; --subgoal-steps 12 needs a longer one"):
        goal_dataset(load_dataset(write_episodes(tmp_path / "e.npz", (12, 3)))).require_steps(12, "--subgoal-steps")


def test_shares_and_steps_are_checked_before_anything_runs(tmp_path):
    crl = load("crl")
    for shares in (["0", "0", "0"], ["0.5", "1", "-0.5"], ["0", "nan", "1"], ["0", "inf", "1"]):
        with pytest.raises(InputError, match=r"^--value-goals must be shares: none below 0, and not all 0, unlike "):
            parse(crl.Args, crl.PRESETS, "", ["--dataset", "none", "--value-goals", *shares])
    for name, option in (("hiql", "subgoal_steps"), ("ota", "subgoal_steps"), ("dwsl", "nstep")):
        args = small(name, write_goals(tmp_path / "g.npz"), tmp_path / "run", **{option: 0})
        with pytest.raises(InputError, match=rf"--{option.replace('_', '-')} 0: at least 1 step"):
            load(name).main(args)
    with pytest.raises(InputError, match="--bins 1: at least 2 classes"):
        load("dwsl").main(small("dwsl", write_goals(tmp_path / "g.npz"), tmp_path / "run", bins=1))


class Told(gym.Env):
    """An environment of OGBench's form: a state that follows the action, and a goal told at the reset."""

    observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    task_infos = ({"goal": (0.5, 0.5)}, {"goal": (-0.5, 0.5)}, {"goal": (5.0, 5.0)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        number = (options or {}).get("task_id", 1)
        self.goal = np.float32(self.task_infos[number - 1]["goal"])
        return np.zeros(2, np.float32), {"goal": self.goal}

    def step(self, action):
        success = np.abs(action - self.goal).max() < 1e-3
        return np.float32(action), float(success), bool(success), False, {"success": float(success)}


gym.register("Told-v0", lambda: Told(), max_episode_steps=3)


def test_goals_that_are_told_at_the_reset_are_seen_and_tasks_are_counted(tmp_path):
    found = goal_dataset(load_dataset(write_goals(tmp_path / "g.npz"), "Told-v0"))
    assert found.task.tasks == (1, 2, 3)
    again = Task.from_description(found.task.describe())
    assert again.tasks == (1, 2, 3) and again.spec == found.task.spec

    def act(agent, obs, goal, key, args):
        return agent + goal

    policy = at_step(seen_by(act, again))
    evaluate = Evaluator(again, policy, lambda f, axes: jax.jit(jax.vmap(f, axes)), 2, 2, episodes=6)
    keys = jax.random.split(jax.random.key(0), 2)
    episodes = evaluate(np.zeros((2, 1, 2), np.float32) + np.float32([0, 1]).reshape(2, 1, 1), keys, None)
    columns = episodes.columns(again)
    np.testing.assert_array_equal(columns["task"], [[1, 2, 3, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(columns["score"][0], [100, 100, 0, 100, 100, 0])  # task 3 is out of reach
    np.testing.assert_array_equal(columns["success_step"][0], [1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(columns["score"][1], [0] * 6)
    assert (columns["length"][1] == 3).all()


def test_a_run_ends_with_a_success_rate_for_each_task(tmp_path, capsys):
    """And one compiled call plays what gymnasium's environments do."""
    path, out = write_dictionaries(tmp_path / "d.npz"), tmp_path / "run"
    gcbc = load("gcbc")
    args = small("gcbc", path, out, env="PointUMazeGoals-v0", seeds=2, eval_episodes=2, tasks=(5, 2))
    gcbc.main(args)
    assert "task 5   task 2" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "returns.csv").open()))
    assert [r["task"] for r in rows] == ["5", "2", "5", "2"] * 2
    policies = load_run(out)
    assert policies.task.tasks == (5, 2)
    env = policies.task.make_env()
    for row in rows[:4]:
        obs, _ = env.reset(seed=10_000 + int(row["episode"]), options={"task_id": int(row["task"])})
        act, length, over = policies.act_in(0), 0, False
        while not over:
            obs, reward, terminated, truncated, info = env.step(act(obs))
            length, over = length + 1, terminated or truncated
        assert (length, float(row["score"])) == (int(row["length"]), 100.0 * terminated)
