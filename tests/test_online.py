"""Interaction: transitions of environments that end, the replay ring against a plain deque, and the compiled loop."""

import csv
import dataclasses
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
from shared.checks import other_rewards
from shared.data import load_dataset, return_to_go
from shared.errors import InputError
from shared.jax_envs import JaxEnv, begin_envs, jax_env, step_envs
from shared.online import Interaction, LaneEnvs
from shared.policies import StatefulPolicy
from shared.replay import concatenate, episode_returns, init_replay, sample_union
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


def one_lane(replay):
    return jax.tree.map(lambda x: x[0], replay)


def filled(capacity: int, rows: int, ready=True, fields=FIELDS):
    """One lane's ring after `rows` insertions of constant rows 0, 1, 2, ..."""
    replay = one_lane(init_replay(1, capacity, SPEC, SingleDeviceSharding(jax.devices()[0]), fields))
    for t in range(rows):
        replay = replay.insert(jnp.full(replay.rows.shape[1], float(t)), ready=ready)
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
        replay = replay.insert(jnp.full(6, float(t)), ready=False)
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


@pytest.mark.parametrize("env", ["Pendulum-v1", "phys2d/Pendulum-v0", "Hopper-v5"])
@pytest.mark.parametrize("stop", [10, 30])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(env, stop, tmp_path, monkeypatch):
    """Parameters, replay buffers, environments and tables; in the warm-up and after it, in the middle of episodes."""
    sac = load("sac")
    args = {**ITERATIONS, "env": env, "env_steps": 40, "learning_starts": 20, "seeds": 2}
    sac.main(sac.Args(**args, out=str(tmp_path / "whole")))
    with monkeypatch.context() as m:
        stop_after(m, stop)
        with pytest.raises(Exception, match="15"):
            sac.main(sac.Args(**args, out=str(tmp_path / "stopped")))
    sac.main(sac.Args(**args, out=str(tmp_path / "stopped"), resume=True))
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, stopped[name], err_msg=name)
    for table in ("metrics.csv", "returns.csv"):
        assert timeless(tmp_path / "whole" / table) == timeless(tmp_path / "stopped" / table)


def test_the_compiled_chunk_stores_what_its_environment_did(tmp_path):
    """Environments in JAX: stored transitions are the environment's, and no episode leaks into the next."""
    sac = load("sac")
    args = sac.Args(
        **ITERATIONS | {"log_every": 210, "eval_every": 420}, env="phys2d/Pendulum-v0", env_steps=420,
        learning_starts=400, seeds=2, out=str(tmp_path),
    )  # fmt: skip
    sac.main(args)
    rows = final(tmp_path)["[1]['replay'].rows"]
    batch = unpack(rows, env_task("Pendulum-v1").spec)
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
    keys = jax.random.split(jax.random.key(0), (lanes, steps + 2))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=steps,
        sharding=SingleDeviceSharding(jax.devices()[0]), lane_args=jnp.zeros(lanes),
        step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None, note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip

    def explore(agent, obs, key, args):
        """Right, or what the key says: the goal, the time limit and walls are met."""
        return jnp.where(jax.random.bernoulli(key, 0.5, (1,)), 1, jax.random.randint(key, (1,), 0, 5))

    def update(agent, batch, key, args, t):
        return agent, {"seen": batch.obs.mean()}

    loop = Interaction(run, None, explore, lambda key, data, replay, args: replay.sample(key, 4), update)
    _, metrics = loop.steps(jnp.zeros(lanes), keys[:, :steps])
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
    keys = jax.random.split(jax.random.key(0), (lanes, steps + 2))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=steps,
        sharding=SingleDeviceSharding(jax.devices()[0]), lane_args=jnp.float32([0.5, 0.9]),
        step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None, note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip

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
    _, metrics = loop.steps(jnp.zeros(lanes), keys[:, :steps])
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


def test_updates_begin_after_the_warm_up_and_are_counted(tmp_path):
    sac = load("sac")
    args = {**ITERATIONS, "env": "Pendulum-v1", "env_steps": 40, "learning_starts": 15}
    sac.main(sac.Args(**args, out=str(tmp_path)))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(r["update"], r["env_step"]) for r in rows] == [("5", "20"), ("15", "30"), ("25", "40")]
    state = final(tmp_path)
    assert state["[0].actor_opt[0].count"].tolist() == [25]
    assert state["[1]['replay'].inserted"].tolist() == [40] == state["[1]['replay'].ready"].tolist()


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


def test_the_three_axes_of_a_fine_tuning_run(pendulum, tmp_path, capsys):
    iql = load("iql_finetune")
    iql.main(iql.Args(dataset=pendulum, out=str(tmp_path), **FINETUNE))

    def axes(name):
        rows = csv.DictReader((tmp_path / f"{name}.csv").open())
        return [(r["lane"], r["update"], r["env_step"]) for r in rows if r.get("episode", "0") == "0"]

    assert axes("offline") == [(lane, u, "0") for u in ("10", "20") for lane in "01"]
    assert axes("metrics") == [(lane, u, e) for u, e in (("30", "10"), ("40", "20")) for lane in "01"]
    expected = [("10", "0"), ("20", "0"), ("30", "10"), ("40", "20")]
    assert axes("returns") == [(lane, *at) for at in expected for lane in "01"]
    for table in ("metrics.csv", "returns.csv"):
        assert all(float(r["wall_s"]) > 0 for r in csv.DictReader((tmp_path / table).open()))
    told, notes = capsys.readouterr().out, json.loads((tmp_path / "run.json").read_text())["notes"]
    assert "regret" in told
    assert len(notes) == 1 and told.count("random steps in Pendulum-v1") == told.count(notes[0]) == 1


def test_an_unfinished_offline_run_is_no_source(pendulum, tmp_path, monkeypatch):
    iql, tuned = load("iql"), load("iql_finetune")
    small = {"log_every": 10, "eval_every": 40, "eval_episodes": 1, "batch_size": 4, "hidden_dims": (8,)}
    with monkeypatch.context() as m, pytest.raises(Exception, match="15"):
        stop_after(m, 20)
        iql.main(iql.Args(dataset=pendulum, out=str(tmp_path / "iql"), updates=40, **small))
    with pytest.raises(InputError, match="ended after 20 of 40 updates"):
        tuned.main(
            tuned.Args(
                dataset=pendulum, out=str(tmp_path / "on"), from_run=str(tmp_path / "iql"), env_steps=40, **small
            )
        )


def test_a_signal_waits_for_few_environment_steps(pendulum, tmp_path, monkeypatch):
    """Where each takes its time; environments in JAX keep their long chunks, and so do offline updates."""
    chunks, log = [], Run.log

    def noted(self, *args, **kwargs):
        chunks.append((self.offline, self.chunk))
        return log(self, *args, **kwargs)

    monkeypatch.setattr(Run, "log", noted)
    tuned = load("iql_finetune")
    steps = {"offline_updates": 200, "env_steps": 200, "log_every": 200, "eval_every": 200, "eval_episodes": 1}
    small = {"batch_size": 4, "hidden_dims": (8,), "checkpoint_every": 200, "offline_eval_every": 200}
    tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "a"), **steps, **small))
    assert chunks == [(True, 200), *[(False, 50)] * 4]
    assert len(timeless(tmp_path / "a" / "metrics.csv")) == 1
    chunks.clear()
    sac = load("sac")
    sac.main(
        sac.Args(
            env="phys2d/Pendulum-v0", env_steps=200, log_every=200, eval_every=200, eval_episodes=1, batch_size=4,
            hidden_dims=(8,), learning_starts=50, out=str(tmp_path / "b"),
        )
    )  # fmt: skip
    assert chunks == [(False, 200)]


def test_a_run_goes_on_from_another_ones_agents(pendulum, tmp_path):
    """Lane by lane of the same seed, and as if both had been one job from the first environment step on."""
    iql, tuned = load("iql"), load("iql_finetune")
    small = {"dataset": pendulum, "batch_size": 4, "hidden_dims": (8,), "log_every": 10, "eval_episodes": 2}
    iql.main(iql.Args(**small, updates=20, seeds=3, seed=5, out=str(tmp_path / "offline")))
    online = {**small, "env_steps": 20, "eval_every": 10, "from_run": str(tmp_path / "offline")}
    tuned.main(tuned.Args(**online, seeds=1, seed=6, actor_lr=0.0, out=str(tmp_path / "tuned")))
    old, new = final(tmp_path / "offline"), final(tmp_path / "tuned")
    kernel = "[0].actor['params']['Dense_0']['kernel']"
    np.testing.assert_array_equal(new[kernel][0], old[kernel][1])
    assert new["[0].critic_opt[0].count"].tolist() == [40]
    rows = list(csv.DictReader((tmp_path / "tuned" / "returns.csv").open()))
    assert [(r["update"], r["env_step"]) for r in rows[::2]] == [("20", "0"), ("30", "10"), ("40", "20")]
    returns = [r["return"] for r in csv.DictReader((tmp_path / "offline" / "returns.csv").open()) if r["seed"] == "6"]
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
def test_agents_that_do_not_fit_are_refused(change, words, pendulum, cartpole, tmp_path):
    iql, tuned = load("iql"), load("iql_finetune")
    small = {"dataset": pendulum, "batch_size": 4, "hidden_dims": (8,), "log_every": 10, "eval_episodes": 1}
    iql.main(iql.Args(**small, updates=10, out=str(tmp_path / "offline")))
    if "dataset" in change:
        change = {"dataset": str(cartpole)}
    online = {**small, "env_steps": 20, "eval_every": 10, "from_run": str(tmp_path / "offline")} | change
    with pytest.raises(InputError, match=words):
        tuned.main(tuned.Args(**online, out=str(tmp_path / "tuned")))


def test_a_fine_tuned_runs_agents_are_taken_as_they_were_before_they_interacted(pendulum, tmp_path):
    """As often as one likes; where that is not kept (in runs of earlier versions), they are refused."""
    tuned, name = load("iql_finetune"), "[0].critic['params']['Dense_0']['kernel']"
    tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "one"), **FINETUNE))
    online = FINETUNE | {"critic_lr": 0.0, "value_lr": 0.0, "actor_lr": 0.0, "from_run": str(tmp_path / "one")}
    tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "two"), **online))
    with np.load(tmp_path / "one" / "checkpoint" / "offline.npz") as file:
        before = file[name]
        assert not any(k.startswith("[1]") for k in file.files)  # no replay buffer
    np.testing.assert_array_equal(final(tmp_path / "two")[name], before)
    assert np.abs(final(tmp_path / "one")[name] - before).max() > 0
    (tmp_path / "one" / "checkpoint" / "offline.npz").unlink()
    with pytest.raises(InputError, match="have interacted already"):
        tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "three"), **online))


def test_agents_of_an_unfinished_offline_phase_are_refused(pendulum, tmp_path, monkeypatch):
    tuned = load("iql_finetune")
    with monkeypatch.context() as m:
        stop_after(m, -10)
        with pytest.raises(Exception, match="15"):
            tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "one"), **FINETUNE))
    with pytest.raises(InputError, match="are still in their offline phase"):
        tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "two"), from_run=str(tmp_path / "one"), **FINETUNE))


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
            "critic_hidden_dims": (8,),
            "value_hidden_dims": (8,),
            "model_hidden_dims": (8,),
        }
    with pytest.raises(InputError, match="has no environment to interact with; give one with --env"):
        module.main(module.Args(**small, out=str(tmp_path / "run")))


def test_actions_that_leave_the_space_are_clipped_where_environments_compile_too(tmp_path, monkeypatch):
    """What is stored is what was done."""
    sac = load("sac")
    monkeypatch.setattr(sac, "explore", lambda agent, obs, key, args: jnp.full((len(obs), 1), 3.0))
    args = {**ITERATIONS, "env": "phys2d/Pendulum-v0", "env_steps": 40, "learning_starts": 20}
    sac.main(sac.Args(**args, out=str(tmp_path)))
    actions = unpack(final(tmp_path)["[1]['replay'].rows"], env_task("Pendulum-v1").spec).action
    assert np.abs(actions).max() == 1.0 and (actions[0, 25:] == 1.0).all()


@pytest.mark.parametrize("start", ["zero", "unseeded"])
def test_returns_to_go_do_not_cross_a_restart(start, counter_log, tmp_path, monkeypatch):
    """Stopped after 10 steps in episodes of 7; an environment that is not restored cuts its episode there."""
    cal_ql, task = load("cal_ql"), counter_task(100, 7, start)
    args = FINETUNE | {
        "dataset": counter_log, "env": task.env_spec.id, "env_steps": 30, "actor_hidden_dims": (8,),
        "n_actions": 2, "seeds": 1, "discount": 0.5, "out": str(tmp_path / "run"),
    }  # fmt: skip
    with monkeypatch.context() as m:
        stop_after(m, 10)
        with pytest.raises(Exception, match="15"):
            cal_ql.main(cal_ql.Args(**args))
    cal_ql.main(cal_ql.Args(**args, resume=True))
    state = final(tmp_path / "run")
    ends = [7, 14, 21, 28] if start == "zero" else [7, 10, 17, 24]  # 10: the restart
    assert state["[1]['replay'].ready"].tolist() == [ends[-1]]
    rewards, returns = (state["[1]['replay'].rows"][0, : ends[-1], column] for column in (2, -1))
    for begin, end in zip([0, *ends], ends, strict=False):
        for t in range(begin, end):
            np.testing.assert_allclose(
                returns[t], sum(0.5 ** (k - t) * rewards[k] for k in range(t, end)), rtol=1e-4, atol=1e-5
            )


def test_returns_to_go_need_a_time_limit(counter_log, tmp_path):
    if "Endless-v0" not in gym.registry:
        gym.register("Endless-v0", entry_point=lambda **k: Counter(3))
    cal_ql = load("cal_ql")
    with pytest.raises(InputError, match="Endless-v0 has no time limit"):
        cal_ql.main(cal_ql.Args(dataset=counter_log, env="Endless-v0", batch_size=4, out=str(tmp_path / "run")))


@pytest.mark.parametrize("stop", [-10, 0, 10])
def test_a_fine_tuning_run_stopped_in_either_phase_goes_on(stop, pendulum, tmp_path, monkeypatch, capsys):
    tuned = load("iql_finetune")
    shutil.copy(pendulum, tmp_path / "data.npz")
    tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "whole"), **FINETUNE))
    with monkeypatch.context() as m:
        stop_after(m, stop)
        with pytest.raises(Exception, match="15"):
            tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "stopped"), **FINETUNE))
    tuned.main(tuned.Args(dataset=pendulum, out=str(tmp_path / "stopped"), resume=True, **FINETUNE))
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    for name, value in whole.items():
        np.testing.assert_array_equal(value, stopped[name], err_msg=name)
    for table in ("offline.csv", "metrics.csv", "returns.csv"):
        assert timeless(tmp_path / "whole" / table) == timeless(tmp_path / "stopped" / table)
    record = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert record["status"] == "finished" and len(record["notes"]) == 1
    assert capsys.readouterr().out.count(record["notes"][0]) == 2  # of the whole run and of the one that is stopped


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
    keys = jax.random.split(jax.random.key(0), (lanes, steps + 2))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=steps,
        sharding=SingleDeviceSharding(jax.devices()[0]), lane_args=jnp.zeros(lanes),
        step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None, note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip

    def explore(agent, obs, key, args):
        return jnp.full((1, 1), 0.25)

    def update(agent, batch, key, args, t):
        return agent + 1, {"seen": batch.obs.mean()}

    loop = Interaction(
        run, None, explore, lambda key, data, replay, args: replay.sample(key, 4), update, warmup=warmup,
        random_warmup=random,
    )  # fmt: skip
    agent, _ = loop.steps(jnp.zeros(lanes), keys[:, :steps])
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
    keys = jax.random.split(jax.random.key(0), (lanes, steps + 2))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=steps,
        sharding=SingleDeviceSharding(jax.devices()[0]), lane_args=jnp.zeros(lanes),
        step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None, note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip

    def explore(agent, carry, obs, reward, key, args):
        count, paid = carry[0] + 1.0, carry[1] + reward
        return 0.01 * jnp.stack([count, paid], -1), (count, paid)

    policy = StatefulPolicy(lambda agent, args: (agent, jnp.float32(0.0)), explore)
    draw = lambda key, data, replay, args: replay.sample(key, 4)  # noqa: E731
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
    keys = jax.random.split(jax.random.key(0), (1, 10))
    run = SimpleNamespace(
        task=task, padded_settings=[{"seed": 0}], total=8, done=0, chunk=4, sharding=SingleDeviceSharding(
            jax.devices()[0]
        ), lane_args=jnp.zeros(1), step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None,
        note=lambda sentence: None,
        over_lanes=lambda f, in_axes, **k: jax.vmap(f, in_axes),
    )  # fmt: skip

    def explore(agent, carry, obs, reward, key, args):
        return 0.01 * (carry[:, None] + 1.0), carry + 1.0

    policy = StatefulPolicy(lambda agent, args: jnp.float32(0.0), explore)
    draw, learn = lambda key, data, replay, args: replay.sample(key, 4), lambda agent, *rest: (agent, {"a": agent})
    loop = Interaction(run, None, policy, draw, learn)
    loop.steps(jnp.zeros(1), keys[:, :4])
    saved = jax.tree.map(np.array, loop.state())
    assert saved["memory"].tolist() == [5.0]
    run.done, run.args, run.restore = 4, SimpleNamespace(resume=True), lambda agent, state: (agent, saved)
    again = Interaction(run, None, policy, draw, learn)
    again.restore(jnp.zeros(1))
    assert np.asarray(again.memory).tolist() == [1.0]
    np.testing.assert_allclose(again.action, [[0.01]])
