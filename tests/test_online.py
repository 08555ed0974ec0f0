"""Interaction: transitions of environments that end, the replay ring against a plain deque, and the compiled loop."""

import contextlib
import csv
import dataclasses
import io
import json
import shutil
from collections import deque
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, timeless
from jax.sharding import SingleDeviceSharding

from shared import checks, online
from shared.arguments import parse
from shared.checks import other_rewards, random_rewards
from shared.data import load_dataset, return_to_go
from shared.errors import InputError, Interrupted
from shared.jax_envs import JaxEnv, begin_envs, jax_env, step_envs
from shared.online import Interaction, LaneEnvs
from shared.policies import StatefulPolicy
from shared.replay import Replay, concatenate, episode_returns, init_replay, sample_union
from shared.run import Run
from shared.task import Spec, env_task, registered_env
from shared.transitions import FIELDS, Batch, Transitions, unpack

SPEC = Spec((1,), 1, False, (-1.0,), (1.0,))


class Counter(gym.Env):
    """Observation = steps since reset; terminates after `until` steps; reward = the action."""

    observation_space = gym.spaces.Box(-1000, 1000, (1,))
    action_space = gym.spaces.Box(-2, 2, (1,))

    def __init__(self, until: int = 3, start: str = "zero"):
        self.until, self.start, self.made = until, start, np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = {"zero": 0, "seeded": self.np_random.integers(100), "unseeded": self.made.integers(10**9)}[self.start]
        self.end = self.t + self.until
        return np.float32([self.t]), {}

    def step(self, action):
        self.t += 1
        return np.float32([self.t]), float(action[0]), self.t == self.end, False, {}


def counter_task(until: int, limit: int, start: str = "zero"):
    name = f"Counter{until}x{limit}{start}-v0"
    if name not in gym.registry:
        gym.register(name, entry_point=lambda **k: Counter(until, start), max_episode_steps=limit)
    return env_task(name)


def rollout(until: int, limit: int, steps: int):
    envs = LaneEnvs(counter_task(until, limit), seeds=[0, 1])
    rows = [envs.step(np.full((2, 1), 0.5, np.float32)) for _ in range(steps)]
    batch = unpack(jnp.array(np.stack(rows)), envs.task.spec)
    return envs, jax.tree.map(lambda x: np.asarray(x)[:, 0].squeeze(), batch)


# ----------------------------------------------------------------------------------- environments


def test_a_terminal_step_keeps_its_own_next_observation_and_the_environment_starts_again():
    envs, batch = rollout(until=3, limit=100, steps=5)
    assert batch.obs.tolist() == [0, 1, 2, 0, 1] and batch.next_obs.tolist() == [1, 2, 3, 1, 2]
    assert batch.terminal.tolist() == [0, 0, 1, 0, 0]
    assert batch.reward.tolist() == [1, 1, 1, 1, 1]  # actions 0.5 are 1.0 in the environment's range


def test_a_time_limit_is_not_terminal():
    _, batch = rollout(until=100, limit=2, steps=4)
    assert batch.obs.tolist() == [0, 1, 0, 1] and batch.next_obs.tolist() == [1, 2, 1, 2]
    assert not batch.terminal.any()


def test_lanes_are_single_environments_stepped_by_hand():
    """No transition starts in one episode and ends in the next, as gymnasium's vector environments' resets would."""
    task = env_task("Pendulum-v1")
    envs, r = LaneEnvs(task, seeds=[7, 8]), np.random.default_rng(0)
    hand, episode = gym.make("Pendulum-v1"), 0

    def reset():
        return hand.reset(seed=int(np.random.SeedSequence([8, episode]).generate_state(1)[0]))[0]

    obs = reset()
    for _ in range(450):  # episodes are cut at 200
        actions = r.uniform(-1.5, 1.5, (2, 1)).astype(np.float32)
        row = envs.step(actions)[1]
        new, reward, terminated, truncated, _ = hand.step(task.to_env(actions[1]))
        expected = np.concatenate([obs, np.clip(actions[1], -1, 1), [reward, terminated], new])
        np.testing.assert_allclose(row, expected.astype(np.float32), rtol=1e-6)
        obs = new
        if terminated or truncated:
            episode += 1
            obs = reset()
    assert episode == 2


def test_rewards_are_transformed_as_the_datas_were():
    task = counter_task(3, 100)
    task = task.__class__(**{**task.__dict__, "options": {"reward_scale": 10.0, "reward_shift": -5.0}})
    row = LaneEnvs(task, seeds=[0]).step(np.float32([[0.5]]))
    assert unpack(jnp.array(row), task.spec).reward.tolist() == [10.0 * 1.0 - 5.0]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_environments_are_restored_in_the_middle_of_an_episode(env_id):
    task, r = env_task(env_id), np.random.default_rng(0)
    draw = partial(r.uniform, -1, 1, (2, task.spec.action_dim))
    envs = LaneEnvs(task, seeds=[3, 4])
    for _ in range(230):
        envs.step(draw().astype(np.float32))
    assert (envs.length > 0).any() and (envs.episode > 0).any()
    again = LaneEnvs(task, seeds=[3, 4])
    again.restore(envs.state())
    for _ in range(100):
        actions = draw().astype(np.float32)
        np.testing.assert_array_equal(envs.step(actions), again.step(actions))
    assert envs.episode.tolist() == again.episode.tolist() and envs.length.tolist() == again.length.tolist()


def test_an_environment_that_cannot_be_restored_starts_its_next_episode_and_says_so(capfd):
    task = counter_task(50, 100, start="unseeded")
    envs = LaneEnvs(task, seeds=[0])
    for _ in range(5):
        envs.step(np.zeros((1, 1), np.float32))
    again = LaneEnvs(task, seeds=[0])
    again.restore(envs.state())
    assert "Lane 0" in capfd.readouterr().err
    assert again.episode.tolist() == [1] and again.length.tolist() == [0]
    first = again.obs.copy()
    row = again.step(np.zeros((1, 1), np.float32))
    assert row[0, 0] == first[0, 0] and again.length.tolist() == [1]


class Broken(Counter):
    """Raises what no caller knows, wherever it is asked."""

    at = ""

    def __init__(self, **kwargs):
        super().__init__()
        assert self.at != "made", "no such\nmotor"

    def reset(self, **kwargs):
        assert self.at != "reset", "no such\nmotor"
        return super().reset(**kwargs)

    def step(self, action):
        assert self.at != "step", "no such\nmotor"
        return super().step(action)


@pytest.mark.parametrize("at", ["made", "reset", "step"])
def test_an_environment_that_fails_is_told_in_one_sentence(at, monkeypatch):
    if "OnlineTest/Broken-v0" not in gym.registry:
        gym.register("OnlineTest/Broken-v0", Broken, max_episode_steps=9)
    task = env_task("OnlineTest/Broken-v0")
    envs = LaneEnvs(task, [0])
    envs.step(np.zeros((1, 1), np.float32))
    state = envs.state()
    monkeypatch.setattr(Broken, "at", at)
    asked = [lambda: random_rewards(task)]
    asked += [lambda: env_task("OnlineTest/Broken-v0")] * (at == "made")
    asked += [lambda: envs.restore(state)] * (at != "made")
    asked += [lambda: envs.step(np.zeros((1, 1), np.float32))] * (at == "step")
    for ask in asked:
        with pytest.raises(InputError, match=r"^OnlineTest/Broken-v0 failed .*\(no such.*\)\.$"):
            ask()


def test_jax_environments_are_gymnasiums_own():
    """The compiled pair against Pendulum-v1 from the same states; a time limit truncates and is not terminal."""
    task = env_task("phys2d/Pendulum-v0")
    env, hand = jax_env(task), gym.make("Pendulum-v1").unwrapped
    assert isinstance(env, JaxEnv) and jax_env(env_task("Pendulum-v1")) is None
    state, obs = env.reset(jax.random.split(jax.random.key(0)))
    hand.reset(seed=0)
    step = jax.jit(env.step)
    for t, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (200, 1)).astype(np.float32)):
        hand.state = np.float64(state[0])
        new, reward, *_ = hand.step(2.0 * action)
        state, obs, ours, terminal, truncated = step(state, action, jax.random.split(jax.random.key(t), 4))
        np.testing.assert_allclose(obs, new, atol=1e-4)
        np.testing.assert_allclose(ours, reward, rtol=1e-3, atol=1e-4)
        assert terminal == 0 and truncated == (t == 199)


def test_of_many_environments_each_goes_on_in_its_own_episode():
    """Actions above 0.5 are terminal, the third step truncates; the second number is drawn anew in every episode."""

    def reset(keys, params=None):
        state = jnp.int32(0), jax.random.uniform(keys[0])
        return state, jnp.stack([0.0, state[1]])

    def step(state, action, keys):
        new = state[0] + 1, state[1]
        return new, jnp.stack([new[0], new[1]]), action[0], action[0] > 0.5, new[0] >= 3

    env = JaxEnv(reset, step, None)
    state, obs = begin_envs(env, jax.random.key(0), 3)
    assert len(np.unique(obs[:, 1])) == 3
    actions = np.float32([[1, 0, 0], [0, 0, 1], [0, 0, 0]])[..., None]
    at, drawn = [0, 0, 0], np.array(obs[:, 1])
    for t, action in enumerate(actions):
        state, obs, moved = jax.jit(partial(step_envs, env))(state, action, jax.random.key(t + 1))
        ended = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)[t]
        at = [n + 1 for n in at]
        np.testing.assert_allclose(moved.next_obs, np.stack([at, drawn], 1))
        assert moved.reward.tolist() == action[:, 0].tolist()
        assert moved.terminal.tolist() == (action[:, 0] > 0.5).tolist()
        assert moved.truncated.tolist() == (ended & (action[:, 0] <= 0.5)).tolist()
        at = [0 if end else n for n, end in zip(at, ended, strict=True)]
        assert obs[:, 0].tolist() == at and ((obs[:, 1] != drawn) == ended).all()
        drawn = np.array(obs[:, 1])


# ---------------------------------------------------------------------------------- replay buffer


insert = jax.jit(Replay.insert, static_argnames="ready")


def one_lane(replay):
    return jax.tree.map(lambda x: x[0], replay)


def filled(capacity: int, rows: int, ready=True, fields=FIELDS):
    """One lane's ring after `rows` insertions of constant rows 0, 1, 2, ..."""
    replay = one_lane(init_replay(1, capacity, SPEC, SingleDeviceSharding(jax.devices()[0]), fields))
    for t in range(rows):
        replay = insert(replay, jnp.full(replay.rows.shape[1], float(t)), ready=ready)
    return replay


def test_the_buffer_is_a_ring():
    plain = deque(maxlen=4)
    for n in range(1, 9):
        plain.append(n - 1)
        replay = filled(4, n)
        seen = np.asarray(replay.sample(jax.random.key(n), 200).obs)
        assert set(seen[:, 0]) == set(plain) and int(replay.size()) == len(plain)
        assert np.asarray(replay.take(jnp.arange(len(plain))).reward).tolist() == list(plain)[::-1]


def test_the_newest_rows_only():
    seen = np.asarray(filled(10, 25).sample(jax.random.key(0), (50, 8), newest=3).reward)
    assert seen.shape == (50, 8) and set(seen.ravel()) == {22, 23, 24}


def test_rows_of_unfinished_episodes_are_not_sampled_until_their_returns_are_known():
    """A return is ten times the reward here; the ring's columns: obs, action, reward, terminal, next_obs, it."""
    fields = (*FIELDS, "return_to_go")
    known = []

    def complete(replay, ended=True):
        def returns(reward, steps):
            known.append((reward[:steps].tolist(), reward[steps:].tolist()))
            return 10.0 * reward

        return replay.complete(jnp.bool_(ended), 2, 5, returns)

    replay = filled(6, 4, ready=False, fields=fields)
    assert int(replay.size()) == 0
    replay = complete(replay)
    assert known.pop() == ([0, 1, 2, 3], [0])
    batch = replay.take(jnp.arange(4))
    assert batch.reward.tolist() == [3, 2, 1, 0] and batch.return_to_go.tolist() == [30, 20, 10, 0]
    for t in (4, 5, 6):  # the ring of 6 overwrites row 0 with the unfinished row 6
        replay = insert(replay, jnp.full(6, float(t)), ready=False)
    assert int(replay.size()) == 3
    assert set(np.asarray(replay.sample(jax.random.key(0), 100).reward)) == {1, 2, 3}
    goes_on = complete(replay, ended=False)
    assert int(goes_on.ready) == 4 and (goes_on.rows == replay.rows).all()
    replay = complete(replay)
    assert known.pop() == ([4, 5, 6], [0, 0])
    assert replay.take(jnp.arange(6)).return_to_go.tolist() == [60, 50, 40, 30, 20, 10]


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("failure", [None, -1.0])
@pytest.mark.parametrize("endless", [True, False])
def test_an_episodes_returns_compiled_are_those_of_the_datas(terminated, failure, endless):
    """Also where all of it failed; nothing behind its steps counts."""
    one = jax.jit(partial(episode_returns, failure=failure, endless=endless))
    for reward in (np.float32([0.5, -1, 2, 1, -1]), np.full(5, -1.0, np.float32), np.float32([3.0])):
        n = len(reward)
        ours = one(jnp.pad(jnp.asarray(reward), (0, 7 - n)), n, terminated, 0.9)[:n]
        last = np.arange(n) == n - 1
        theirs = return_to_go(reward, last & terminated, last, 0.9, failure, endless)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_union_is_sampled_uniformly():
    data = Transitions(jnp.arange(60.0)[:, None] * jnp.ones(5), None, None, SPEC, FIELDS)
    replay = filled(50, 20)
    replay = replay.__class__(**{**replay.__dict__, "rows": replay.rows + 100.0})
    seen = np.asarray(sample_union(jax.random.key(0), data, replay, 40_000).reward)
    assert set(seen) == {*range(60), *range(100, 120)}
    counts = np.array([(seen == v).sum() for v in sorted(set(seen))])
    assert abs((seen >= 100).mean() - 20 / 80) < 0.01 and counts.min() > 0.8 * 500 and counts.max() < 1.2 * 500
    assert (np.asarray(sample_union(jax.random.key(0), data, filled(50, 0), (3, 30)).reward) < 60).all()


def test_batches_are_concatenated_by_the_fields_that_all_have():
    a = Batch(obs=jnp.zeros((2, 3)), reward=jnp.zeros(2), next_action=jnp.zeros((2, 1)))
    b = Batch(obs=jnp.ones((4, 3)), reward=jnp.ones(4))
    both = concatenate(a, b)
    assert both.obs.shape == (6, 3) and both.reward.tolist() == [0, 0, 1, 1, 1, 1] and both.next_action is None


# ------------------------------------------------------------------------------------ interaction

ITERATIONS = {"log_every": 10, "eval_every": 20, "eval_episodes": 1, "batch_size": 4, "hidden_dims": (8,)}


def final(out):
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k != "__header__"}


def stop_after(monkeypatch, steps: int):
    """The run is asked to stop as soon as `steps` are done."""
    log = Run.log

    def log_then_stop(self, *args, **kwargs):
        if self.done + self.chunk >= steps:
            self._signals.number = 15
        return log(self, *args, **kwargs)

    monkeypatch.setattr(Run, "log", log_then_stop)


def stopped(monkeypatch, steps: int, main, args) -> None:
    """`main(args)` until the end of the chunk in which `steps` are done."""
    with monkeypatch.context() as m, pytest.raises(Interrupted, match="15"):
        stop_after(m, steps)
        main(args)


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    """Where each step takes its time, chunks are of 5 at most: what is done between two looks at the signals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "MAX_CHUNK", 5)
        yield


@contextlib.contextmanager
def noted_chunks():
    """(whether it is of the offline phase, its length) of every chunk that is logged."""
    chunks, log = [], Run.log

    def noted(self, *args, **kwargs):
        chunks.append((self.offline, self.chunk))
        return log(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", noted)
        yield chunks


def assert_same(out, other, tables=("metrics.csv", "returns.csv")) -> None:
    """Two runs have the same checkpoint, agents, buffers and environments, and the same tables but for the times."""
    one, two = final(out), final(other)
    assert one.keys() == two.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    for table in tables:
        assert timeless(out / table) == timeless(other / table)


@pytest.mark.parametrize(
    "env", ["Pendulum-v1", "phys2d/Pendulum-v0", pytest.param("Hopper-v5", marks=pytest.mark.long)]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(env, tmp_path, monkeypatch):
    """In the warm-up and after it, in the middle of episodes. Updates begin after the warm-up and are counted.

    A signal waits for few environment steps where each takes its time; environments in JAX keep their long chunks.
    """
    sac, out, compiled = load("sac"), tmp_path / "stopped", "phys2d" in env
    warmup = 20 if compiled else 15
    args = sac.Args(**ITERATIONS, env=env, env_steps=40, learning_starts=warmup, seeds=2, out=str(out))
    with noted_chunks() as chunks:
        sac.main(dataclasses.replace(args, out=str(tmp_path / "whole")))
    assert chunks == ([(False, 10)] * 4 if compiled else [(False, 5)] * 8)
    stopped(monkeypatch, 10, sac.main, args)
    stopped(monkeypatch, 30, sac.main, dataclasses.replace(args, resume=True))
    sac.main(dataclasses.replace(args, resume=True))
    assert_same(tmp_path / "whole", out)
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    counts = [(int(r["update"]), int(r["env_step"])) for r in rows if r["lane"] == "0"]
    assert counts == [(step - warmup, step) for step in (20, 30, 40) if step > warmup]
    state = final(out)
    assert state["[0].actor_opt[0].count"].tolist() == [40 - warmup] * 2
    assert state["[1]['replay'].inserted"].tolist() == [40] * 2 == state["[1]['replay'].ready"].tolist()


def bare_run(task, lanes: int, steps: int):
    """What `Interaction` asks of a run that makes all its steps in one chunk; and the keys [L, steps] of these."""
    keys = jax.random.split(jax.random.key(0), (lanes, steps + 2))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=steps,
        sharding=SingleDeviceSharding(jax.devices()[0]), lane_args=jnp.zeros(lanes),
        step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None, note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip
    return run, keys[:, :steps]


def draw(key, data, replay, args):
    return replay.sample(key, 4)


def count(agent, batch, key, args, t):
    """An update that is only counted."""
    return agent + 1, {"seen": batch.obs.mean()}


def test_the_compiled_chunk_stores_what_its_environment_did():
    """Environments in JAX: stored transitions are the environment's, and no episode leaks into the next."""
    task = env_task("phys2d/Pendulum-v0")
    run, keys = bare_run(task, 2, 420)
    run.chunk = 210
    loop = Interaction(
        run, None, lambda agent, obs, key, args: jax.random.uniform(key, (len(obs), 1), minval=-1.0), draw, count,
        warmup=400, random_warmup=True,
    )  # fmt: skip
    agent = jnp.zeros(2)
    for run.done in (0, 210):
        agent, _ = loop.steps(agent, keys[:, run.done : run.done + 210])
    assert agent.tolist() == [20, 20]
    rows = np.asarray(loop.replay.rows)
    batch = unpack(rows, task.spec)
    hand = gym.make("Pendulum-v1").unwrapped
    hand.reset(seed=0)
    for lane in range(2):
        for i in (0, 1, 198, 199, 200, 201, 399, 400, 419):
            cos, sin, speed = (float(x) for x in batch.obs[lane, i])
            hand.state = np.array([np.arctan2(sin, cos), speed])
            new, reward, *_ = hand.step(2.0 * np.asarray(batch.action[lane, i]))
            np.testing.assert_allclose(batch.next_obs[lane, i], new, atol=1e-3)
            np.testing.assert_allclose(batch.reward[lane, i], reward, atol=2e-2)
    goes_on = (batch.next_obs[:, :-1] == batch.obs[:, 1:]).all(-1)
    assert [np.flatnonzero(~goes_on[lane]).tolist() for lane in range(2)] == [[199, 399]] * 2
    assert not batch.terminal.any() and np.abs(rows[0] - rows[1]).max(1).min() > 0


@pytest.mark.parametrize("compiled", [True, False])
def test_discrete_actions_and_normalised_observations_interact_compiled_as_stepped(compiled, monkeypatch):
    """In either path rows are what gymnasium's environment does, normalised, and episodes begin anew at their ends."""
    mean, std = np.float32([1, 2, 3, 4]), np.float32([2, 4, 2, 4])
    task = dataclasses.replace(env_task("PointGrid-v0"), obs_mean=mean, obs_std=std)
    task = dataclasses.replace(task, env_spec=registered_env("PointGrid-v0", {"goal": (3.5, 1.5)}, 6))
    if not compiled:
        monkeypatch.setattr(online, "jax_env", lambda task: None)
    lanes, steps = 2, 40
    run, keys = bare_run(task, lanes, steps)

    def explore(agent, obs, key, args):
        """Right, or what the key says: the goal, the time limit and walls are met."""
        return jnp.where(jax.random.bernoulli(key, 0.5, (1,)), 1, jax.random.randint(key, (1,), 0, 5))

    loop = Interaction(run, None, explore, draw, count)
    _, metrics = loop.steps(jnp.zeros(lanes), keys)
    assert metrics["seen"].shape == (lanes,)
    batch, hand = unpack(loop.replay.rows, task.spec), gym.make("PointGrid-v0", goal=(3.5, 1.5)).unwrapped
    ends = np.zeros((lanes, steps), bool)
    for lane, t in np.ndindex(lanes, steps):
        hand.reset(seed=0, options={"start": (batch.obs[lane, t] * std + mean)[:2]})
        new, reward, terminal, *_ = hand.step(int(batch.action[lane, t]))
        np.testing.assert_allclose(batch.next_obs[lane, t], (new - mean) / std, rtol=1e-6)
        assert (reward, terminal) == (batch.reward[lane, t], batch.terminal[lane, t])
        since = t - max(np.flatnonzero(ends[lane, :t]), default=-1)
        ends[lane, t] = terminal or since == 6
        begins = (hand.reset(seed=0)[0] - mean) / std if ends[lane, t] else batch.next_obs[lane, t]
        if t + 1 < steps:
            np.testing.assert_allclose(batch.obs[lane, t + 1], begins, rtol=1e-6)
    assert ends.sum() > batch.terminal.sum() > 0 and len(np.unique(batch.action)) == 5


@pytest.mark.parametrize("compiled", [True, False])
def test_returns_to_go_are_filled_in_compiled_as_stepped(compiled, monkeypatch):
    """Those of whole episodes, which alone are sampled: some are cut after 6 steps, some reach the goal."""
    task = env_task("PointGrid-v0")
    task = dataclasses.replace(
        task, env_spec=registered_env("PointGrid-v0", {"goal": (3.5, 1.5)}, 6), options={"reward_shift": -0.25}
    )
    if not compiled:
        monkeypatch.setattr(online, "jax_env", lambda task: None)
    lanes, steps = 2, 45
    run, keys = bare_run(task, lanes, steps)
    run.lane_args = jnp.float32([0.5, 0.9])

    def explore(agent, obs, key, args):
        return jnp.where(jax.random.bernoulli(key, 0.5, (1,)), 1, jax.random.randint(key, (1,), 0, 5))

    def update(agent, batch, key, args, t):
        return agent, {"ready": batch.reward}

    def returns(reward, steps, terminated, args):
        return episode_returns(reward, steps, terminated, discount=args)

    loop = Interaction(
        run, None, explore, lambda key, data, replay, args: Batch(reward=1.0 * replay.ready), update,
        return_to_go=returns,
    )  # fmt: skip
    _, metrics = loop.steps(jnp.zeros(lanes), keys)
    batch, kinds, unfinished = unpack(loop.replay.rows, task.spec, (*FIELDS, "return_to_go")), set(), 0
    for lane, discount in enumerate((0.5, 0.9)):
        reward, terminal = np.asarray(batch.reward[lane]), np.asarray(batch.terminal[lane]) > 0
        ends = []
        for t in range(steps):
            if terminal[t] or t - max(ends, default=-1) == 6:
                ends.append(t)
        whole = ends[-1] + 1
        assert int(loop.replay.ready[lane]) == whole
        unfinished += steps - whole
        expected = return_to_go(reward, terminal, np.isin(np.arange(steps), [*ends, steps - 1]), discount)
        np.testing.assert_allclose(batch.return_to_go[lane, :whole], expected[:whole], rtol=1e-5)
        assert not batch.return_to_go[lane, whole:].any()
        kinds |= set(terminal[ends])
    assert kinds == {False, True} and unfinished and metrics["ready"].min() > 0


# ------------------------------------------------------------------------ offline, then fine-tuning

FINETUNE = {
    "offline_updates": 20, "offline_eval_every": 10, "env_steps": 20, "log_every": 10, "eval_every": 10,
    "eval_episodes": 2, "batch_size": 4, "hidden_dims": (8,), "seeds": 2,
}  # fmt: skip


@pytest.mark.parametrize("env", ["Pendulum-v1", "phys2d/Pendulum-v0"])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_data_of_another_reward_convention_is_told(env, shift, tmp_path):
    """Its own rewards are between -16.3 and 0; what the run shifts both by makes no difference."""
    r, path = np.random.default_rng(0), tmp_path / "log.npz"
    reward = shift - r.uniform(0, 16.2, 100)
    np.savez(
        path, observations=r.normal(size=(100, 3)), actions=r.uniform(-2, 2, (100, 1)), rewards=reward,
        terminals=np.arange(100) % 10 == 9,
    )  # fmt: skip
    data = load_dataset(str(path), env=env)
    for moved in (0.0, 20.0):
        said = other_rewards(data.scale_rewards(shift=moved).task)
        if shift == 0.0:
            assert said is None
        else:
            assert f"are {reward.min() + moved:.4g} to {reward.max() + moved:.4g}, those of 1,000 random" in said
            assert env in said


@pytest.mark.parametrize(
    ("random", "of_data", "told"),
    [
        ((0, 0), (0, 1), False),  # a success that random steps do not see
        ((0, 0), (-1, 0), True),
        ((-1, -1), (-1, 0), False),
        ((-1, -1), (0, 1), True),
        ((-2, 2), (-1.9, 12), False),  # a better policy
        ((-2, 2), (-3, 2), False),  # more rows
        ((-2, 2), (-20, 20), True),
        ((-2, 2), (0, 6), True),
    ],
)
def test_rewards_that_a_good_policy_earns_are_not_told(random, of_data, told, monkeypatch):
    monkeypatch.setattr(checks, "random_rewards", lambda task: np.float64(random))
    task = dataclasses.replace(env_task("Pendulum-v1"), data={"reward_range": of_data})
    assert (other_rewards(task) is not None) == told
    assert other_rewards(dataclasses.replace(task, data=task.data | {"rewards": False})) is None
    assert other_rewards(dataclasses.replace(task, env_spec=None)) is None


@pytest.fixture(scope="module")
def tuned(folder):
    """A run of iql_finetune, offline and then online; what it printed, and its chunks."""
    iql, said = load("iql_finetune"), io.StringIO()
    with contextlib.redirect_stdout(said), noted_chunks() as chunks:
        iql.main(iql.Args(dataset=str(folder / "pendulum.npz"), out=str(folder / "tuned"), **FINETUNE))
    return folder / "tuned", said.getvalue(), chunks


@pytest.fixture(scope="module")
def stopped_offline(folder):
    """The same run, stopped in the middle of its offline phase."""
    iql = load("iql_finetune")
    args = iql.Args(dataset=str(folder / "pendulum.npz"), out=str(folder / "offline"), **FINETUNE)
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, -10, iql.main, args)
    return folder / "offline"


OFFLINE = {"batch_size": 4, "hidden_dims": (8,), "log_every": 10, "eval_episodes": 2}


@pytest.fixture(scope="module")
def trained(folder):
    """Three lanes of iql, from seed 5 on; and `unfinished`, the same at half of its updates."""
    iql, out, log = load("iql"), folder / "trained", Run.log

    def copied(self, *args, **kwargs):
        log(self, *args, **kwargs)
        if self.done == 10:
            shutil.copytree(out, folder / "unfinished")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", copied)
        sizes = {"updates": 20, "checkpoint_every": 10, "seeds": 3, "seed": 5}
        iql.main(iql.Args(dataset=str(folder / "pendulum.npz"), out=str(out), **OFFLINE, **sizes))
    return out


def test_the_three_axes_of_a_fine_tuning_run(tuned):
    out, said, _ = tuned

    def axes(name):
        rows = csv.DictReader((out / f"{name}.csv").open())
        return [(r["lane"], r["update"], r["env_step"]) for r in rows if r.get("episode", "0") == "0"]

    assert axes("offline") == [(lane, u, "0") for u in ("10", "20") for lane in "01"]
    assert axes("metrics") == [(lane, u, e) for u, e in (("30", "10"), ("40", "20")) for lane in "01"]
    expected = [("10", "0"), ("20", "0"), ("30", "10"), ("40", "20")]
    assert axes("returns") == [(lane, *at) for at in expected for lane in "01"]
    for table in ("metrics.csv", "returns.csv"):
        assert all(float(r["wall_s"]) > 0 for r in csv.DictReader((out / table).open()))
    assert "regret" in said
    notes = json.loads((out / "run.json").read_text())["notes"]
    assert len(notes) == 1 and said.count("random steps in Pendulum-v1") == said.count(notes[0]) == 1


def test_an_unfinished_offline_run_is_no_source(folder, trained, tmp_path):
    iql, unfinished = load("iql_finetune"), str(trained.with_name("unfinished"))
    args = iql.Args(dataset=str(folder / "pendulum.npz"), env_steps=20, from_run=unfinished, seed=5, **OFFLINE)
    with pytest.raises(InputError, match="ended after 10 of 20 updates"):
        iql.main(dataclasses.replace(args, out=str(tmp_path / "on")))


def test_a_signal_waits_for_few_environment_steps_but_for_whole_chunks_of_offline_updates(tuned):
    assert tuned[2] == [*[(True, 10)] * 2, *[(False, 5)] * 4]


def test_a_run_goes_on_from_another_ones_agents(folder, trained, tmp_path):
    """Lane by lane of the same seed, and as if both had been one job from the first environment step on."""
    iql, online = load("iql_finetune"), {"env_steps": 20, "eval_every": 10, "from_run": str(trained)}
    args = iql.Args(dataset=str(folder / "pendulum.npz"), **OFFLINE, **online, seeds=1, seed=6, actor_lr=0.0)
    iql.main(dataclasses.replace(args, out=str(tmp_path / "tuned")))
    old, new = final(trained), final(tmp_path / "tuned")
    kernel = "[0].actor['params']['Dense_0']['kernel']"
    np.testing.assert_array_equal(new[kernel][0], old[kernel][1])
    assert new["[0].critic_opt[0].count"].tolist() == [40]
    rows = list(csv.DictReader((tmp_path / "tuned" / "returns.csv").open()))
    assert [(r["update"], r["env_step"]) for r in rows[::2]] == [("20", "0"), ("30", "10"), ("40", "20")]
    returns = [r["return"] for r in csv.DictReader((trained / "returns.csv").open()) if r["seed"] == "6"]
    assert [r["return"] for r in rows[:2]] == returns


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 9}, "no lanes with seed=9"),
        ({"hidden_dims": (16,)}, "does not fit this algorithm's networks"),
        ({"normalize_obs": True}, "other observation statistics"),
        ({"reward_shift": -1.0}, "other options"),
        ({"dataset": "cartpole"}, "needs continuous actions"),
        ({"from_run": "nowhere"}, "there is no checkpoint in nowhere"),
    ],
)
def test_agents_that_do_not_fit_are_refused(change, words, folder, trained, cartpole, tmp_path):
    iql, data = load("iql_finetune"), str(folder / "pendulum.npz")
    if "dataset" in change:
        change = {"dataset": str(cartpole)}
    online = {"dataset": data, "env_steps": 20, "eval_every": 10, "from_run": str(trained), "seed": 5}
    with pytest.raises(InputError, match=words):
        iql.main(iql.Args(**OFFLINE | online | change, out=str(tmp_path / "tuned")))


def test_a_fine_tuned_runs_agents_are_taken_as_they_were_before_they_interacted(folder, tuned, tmp_path):
    """As often as one likes; where that is not kept (in runs of earlier versions), they are refused."""
    iql, name = load("iql_finetune"), "[0].critic['params']['Dense_0']['kernel']"
    one = shutil.copytree(tuned[0], tmp_path / "one")
    online = FINETUNE | {"critic_lr": 0.0, "value_lr": 0.0, "actor_lr": 0.0, "from_run": str(one)}
    args = iql.Args(dataset=str(folder / "pendulum.npz"), **online)
    iql.main(dataclasses.replace(args, out=str(tmp_path / "two")))
    with np.load(one / "checkpoint" / "offline.npz") as file:
        before = file[name]
        assert not any(k.startswith("[1]") for k in file.files)  # no replay buffer
    np.testing.assert_array_equal(final(tmp_path / "two")[name], before)
    assert np.abs(final(one)[name] - before).max() > 0
    (one / "checkpoint" / "offline.npz").unlink()
    with pytest.raises(InputError, match="have interacted already"):
        iql.main(dataclasses.replace(args, out=str(tmp_path / "three")))


def test_agents_of_an_unfinished_offline_phase_are_refused(folder, stopped_offline, tmp_path):
    iql, online = load("iql_finetune"), FINETUNE | {"from_run": str(stopped_offline)}
    with pytest.raises(InputError, match="are still in their offline phase"):
        iql.main(iql.Args(dataset=str(folder / "pendulum.npz"), out=str(tmp_path / "two"), **online))


@pytest.fixture
def counter_log(tmp_path) -> str:
    """Random numbers of the shapes of `Counter`."""
    r = np.random.default_rng(0)
    obs, actions = r.normal(size=(40, 1)), r.uniform(-1, 1, (40, 1))
    ends = np.arange(40) % 10 == 9
    path = tmp_path / "log.npz"
    np.savez(path, observations=obs, actions=actions, rewards=r.normal(size=40), terminals=ends)
    return str(path)


@pytest.mark.parametrize("name", ["rlpd", "uni_o4"])
def test_a_dataset_without_an_environment_is_refused(name, counter_log, tmp_path):
    module, small = load(name), {"dataset": counter_log, "batch_size": 4, "hidden_dims": (8,), "env_steps": 100}
    if name == "uni_o4":
        small |= {
            "pretrain_updates": 5,
            "offline_updates": 5,
            "steps_per_iteration": 10,
            "minibatch_size": 5,
            "critic_hidden_dims": (8,),
            "value_hidden_dims": (8,),
            "model_hidden_dims": (8,),
        }
    with pytest.raises(InputError, match="has no environment to interact with; give one with --env"):
        module.main(module.Args(**small, out=str(tmp_path / "run")))


def test_actions_that_leave_the_space_are_clipped_where_environments_compile_too():
    """What is stored is what was done."""
    task = env_task("phys2d/Pendulum-v0")
    run, keys = bare_run(task, 2, 8)
    too_far = lambda agent, obs, key, args: jnp.full((len(obs), 1), 3.0)  # noqa: E731
    loop = Interaction(run, None, too_far, draw, count, warmup=3, random_warmup=True)
    loop.steps(jnp.zeros(2), keys)
    actions = unpack(loop.replay.rows, task.spec).action
    assert np.abs(actions).max() == 1.0 and (actions[:, 3:] == 1.0).all() and np.abs(actions[:, :3]).max() < 1.0


def check_returns(rows, ready, ends: list[int]) -> None:
    """Of one lane's rows, that are ready up to the last of `ends`: discounted by a half, none beyond its episode."""
    assert int(ready) == ends[-1]
    rewards, returns = rows[: ends[-1], 2], rows[: ends[-1], -1]
    for begin, end in zip([0, *ends], ends, strict=False):
        for t in range(begin, end):
            np.testing.assert_allclose(
                returns[t], sum(0.5 ** (k - t) * rewards[k] for k in range(t, end)), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("start", ["zero", "unseeded"])
def test_returns_to_go_do_not_cross_a_restart(start):
    """Stopped after 10 steps in episodes of 7; an environment that is not restored cuts its episode there."""
    run, keys = bare_run(counter_task(100, 7, start), 1, 30)
    explore = lambda agent, obs, key, args: jax.random.uniform(key, (len(obs), 1), minval=-1.0)  # noqa: E731

    def finished(reward, steps, terminated, args):
        """sum_k 0.5^(k - t) r_k; `reward` is 0 behind the episode's steps."""
        t = jnp.arange(len(reward))
        return jnp.triu(0.5 ** (t[None, :] - t[:, None])) @ reward

    loop = Interaction(run, None, explore, draw, count, return_to_go=finished)
    agent, _ = loop.steps(jnp.zeros(1), keys[:, :10])
    saved = jax.tree.map(jnp.array, loop.state())
    run.done, run.args, run.restore = 10, SimpleNamespace(resume=True), lambda agent, state: (agent, saved)
    again = Interaction(run, None, explore, draw, count, return_to_go=finished)
    agent = again.restore(agent)
    again.steps(agent, keys[:, 10:])
    ends = [7, 14, 21, 28] if start == "zero" else [7, 10, 17, 24]  # 10: the restart
    check_returns(np.asarray(again.replay.rows[0]), again.replay.ready[0], ends)


def test_a_stopped_run_that_needs_returns_to_go_goes_on_with_them(counter_log, tmp_path, monkeypatch):
    cal_ql, task = load("cal_ql"), counter_task(100, 7)
    args = FINETUNE | {
        "dataset": counter_log, "env": task.env_spec.id, "env_steps": 30, "actor_hidden_dims": (8,),
        "n_actions": 2, "seeds": 1, "discount": 0.5, "out": str(tmp_path / "run"),
    }  # fmt: skip
    stopped(monkeypatch, 10, cal_ql.main, cal_ql.Args(**args))
    cal_ql.main(cal_ql.Args(**args, resume=True))
    state = final(tmp_path / "run")
    check_returns(state["[1]['replay'].rows"][0], state["[1]['replay'].ready"][0], [7, 14, 21, 28])


def test_returns_to_go_need_a_time_limit(counter_log, tmp_path):
    if "Endless-v0" not in gym.registry:
        gym.register("Endless-v0", entry_point=lambda **k: Counter(3))
    cal_ql = load("cal_ql")
    with pytest.raises(InputError, match="Endless-v0 has no time limit"):
        cal_ql.main(cal_ql.Args(dataset=counter_log, env="Endless-v0", batch_size=4, out=str(tmp_path / "run")))


def test_a_fine_tuning_run_stopped_in_either_phase_goes_on(
    folder, tuned, stopped_offline, tmp_path, monkeypatch, capsys
):
    """In the offline phase, between the two, and in the online one."""
    iql, out = load("iql_finetune"), shutil.copytree(stopped_offline, tmp_path / "stopped")
    args = iql.Args(dataset=str(folder / "pendulum.npz"), out=str(out), resume=True, **FINETUNE)
    capsys.readouterr()
    for step in (0, 10):
        stopped(monkeypatch, step, iql.main, args)
    iql.main(args)
    assert_same(tuned[0], out, ("offline.csv", "metrics.csv", "returns.csv"))
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and len(record["notes"]) == 1
    assert record["notes"][0] not in capsys.readouterr().out  # it was said when the run began


def test_the_command_line_has_the_fields_names():
    tuned = load("iql_finetune")
    argv = ["--online-steps", "300", "--offline-updates", "100", "--from", "results/x", "--dataset", "hopper-medium"]
    args = parse(tuned.Args, tuned.PRESETS, tuned.__doc__, argv)
    assert (args.env_steps, args.offline_updates, args.from_run) == (300, 100, "results/x")
    assert parse(tuned.Args, tuned.PRESETS, "", ["--env-steps", "7"]).env_steps == 7


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("warmup", [1, 3])
@pytest.mark.parametrize("random", [True, False])
def test_a_warm_up_of_w_steps_takes_w_random_actions(warmup, random, compiled, monkeypatch):
    """The policy acts from step W on, before its first update (RLPD's and SAC's own loops); here it says 0.25."""
    task = env_task("phys2d/Pendulum-v0" if compiled else "Pendulum-v1")
    lanes, steps = 2, 8
    run, keys = bare_run(task, lanes, steps)

    def explore(agent, obs, key, args):
        return jnp.full((1, 1), 0.25)

    loop = Interaction(run, None, explore, draw, count, warmup=warmup, random_warmup=random)
    agent, _ = loop.steps(jnp.zeros(lanes), keys)
    assert agent.tolist() == [steps - warmup] * lanes
    of_policy = unpack(loop.replay.rows, task.spec).action[..., 0] == 0.25
    assert (of_policy == (np.arange(steps) >= (warmup if random else 0))).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_what_a_policy_carries_goes_from_step_to_step_and_begins_anew_with_each_episode(compiled, monkeypatch):
    """It counts its steps, from the agent's number on, and adds up what it was paid, in the environment's unit.

    A run that is resumed goes on with it.
    """
    task = env_task("PointUMaze-v0")
    task = dataclasses.replace(task, options={"reward_scale": 10.0, "reward_shift": -5.0})
    task = dataclasses.replace(task, env_spec=registered_env("PointUMaze-v0", {"reward": "dense"}, 4))
    if not compiled:
        monkeypatch.setattr(online, "jax_env", lambda task: None)
    lanes, steps = 2, 11
    run, keys = bare_run(task, lanes, steps)

    def explore(agent, carry, obs, reward, key, args):
        count, paid = carry[0] + 1.0, carry[1] + reward
        return 0.01 * jnp.stack([count, paid], -1), (count, paid)

    policy = StatefulPolicy(lambda agent, args: (agent, jnp.float32(0.0)), explore)
    learn, agent = lambda agent, batch, key, args, t: (agent, {"seen": batch.obs.mean()}), jnp.float32([0.0, 5.0])
    loop = Interaction(run, None, policy, draw, learn)
    agent, _ = loop.steps(agent, keys[:, :6])
    saved = jax.tree.map(jnp.array, loop.state())
    run.done, run.args, run.restore = 6, SimpleNamespace(resume=True), lambda agent, state: (agent, saved)
    again = Interaction(run, None, policy, draw, learn)
    again.restore(agent)
    for one in (loop, again):
        one.steps(jnp.array(agent), keys[:, 6:steps])
    jax.tree.map(np.testing.assert_array_equal, loop.state(), again.state())
    rows = unpack(loop.replay.rows, task.spec)
    for lane, t in np.ndindex(lanes, steps):
        begun = t - t % 4
        paid = (rows.reward[lane, begun:t] + 5.0).sum() / 10.0
        np.testing.assert_allclose(100 * rows.action[lane, t], [5 * lane + 1 + t - begun, paid], rtol=1e-4, atol=1e-4)
    assert rows.reward.std() > 0
    kept = jax.tree.leaves(loop.state()["memory"])
    np.testing.assert_allclose(kept[0], [4.0, 9.0])  # the action after step 11 is chosen already


def test_a_lane_that_cannot_be_restored_begins_with_a_fresh_carry_and_its_action():
    """The policy's action is the number of steps it remembers, in hundredths."""
    task = counter_task(50, 100, start="unseeded")
    run, keys = bare_run(task, 1, 8)
    run.chunk = 4

    def explore(agent, carry, obs, reward, key, args):
        return 0.01 * (carry[:, None] + 1.0), carry + 1.0

    policy = StatefulPolicy(lambda agent, args: jnp.float32(0.0), explore)
    learn = lambda agent, *rest: (agent, {"a": agent})  # noqa: E731
    loop = Interaction(run, None, policy, draw, learn)
    loop.steps(jnp.zeros(1), keys[:, :4])
    saved = jax.tree.map(np.array, loop.state())
    assert saved["memory"].tolist() == [5.0]
    run.done, run.args, run.restore = 4, SimpleNamespace(resume=True), lambda agent, state: (agent, saved)
    again = Interaction(run, None, policy, draw, learn)
    again.restore(jnp.zeros(1))
    assert np.asarray(again.memory).tolist() == [1.0]
    np.testing.assert_allclose(again.action, [[0.01]])
