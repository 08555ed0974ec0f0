"""Evaluation: quotas, seeds, time limits, what the policy sees and does; policies of a run, and films of them."""

import csv
import dataclasses
import json
import os
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_pendulum

from shared import evaluation
from shared.arguments import Float, OfflineArgs, hyperparameters
from shared.checkpoint import read_header
from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import Evaluator, Policies, Returns, film, fine_tuning, interval, load_run, main
from shared.jax_envs import jax_env
from shared.lanes import make_mesh, over_lanes
from shared.run import Run
from shared.task import Spec, Task, env_task, registered_env

FIRST = 10_000  # the seed of episode 0
HIDDEN = (8, 8)


class Fake(gym.Env):
    """Writes down what happens to it; obs = (episode, 100 t), reward = its one action + the episode's worth.

    Episode e (by its seed) has LENGTHS[e % 5] steps, each worth WORTH[e % 5]: the short ones are bad.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-2.0, 6.0, (1,))
    LENGTHS = (2, 30, 1, 3, 7)
    WORTH = (-10.0, 1.0, -5.0, 0.0, 2.0)
    seeds: list[int]
    actions: list[np.ndarray]

    def __init__(self, discrete: bool = False, endless: bool = False):
        self.endless, self.seed = endless, None
        if discrete:
            self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        # Without a seed the kind of episode stays: whoever resets finished environments until there
        # are enough episodes counts the short ones again and again.
        self.seed = self.seed if seed is None else seed
        type(self).seeds.append(seed)
        self.t = 0
        return self.obs(), {}

    def obs(self):
        return np.array([self.seed - FIRST, 100 * self.t], np.float64)

    def step(self, action):
        type(self).actions.append(action)
        self.t += 1
        kind = (self.seed - FIRST) % 5
        over = self.t >= self.LENGTHS[kind] and not self.endless
        return self.obs(), float(np.sum(action)) + self.WORTH[kind], over, False, {}


class Line(gym.Env):
    """Pendulum-v1's spaces, but no chaos; a time limit ends it. It can be filmed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.t = self.np_random.normal(size=3).astype(np.float32), 0
        return self.obs, {}

    def step(self, action):
        self.obs, self.t = (0.9 * self.obs + 0.1 * action).astype(np.float32), self.t + 1
        return self.obs, -float((self.obs**2).sum()), False, False, {}

    def render(self):
        return np.full((16, 16, 3), 40 * self.t, np.uint8)


gym.register("EvaluationTest/Fake-v0", Fake)
gym.register("EvaluationTest/Short-v0", Fake, max_episode_steps=4)
gym.register("EvaluationTest/Line-v0", Line, max_episode_steps=5)


@pytest.fixture(autouse=True)
def clean_notes():
    Fake.seeds, Fake.actions = [], []


def fake_task(name: str = "Fake", limit: int | None = None, **changes) -> Task:
    env_spec = registered_env(f"EvaluationTest/{name}-v0", changes.pop("kwargs", None), limit)
    spec = changes.pop("spec", Spec((2,), 1, False, (-2.0,), (6.0,)))
    return Task("fake", "hash", spec, env_spec, **changes)


def constant(actions: list[float], seen: list | None = None):
    """A policy: lane i does actions[i], in [-1, 1]; `seen` collects (obs, step)."""

    def policy(agent, obs, step, keys, args):
        if seen is not None:
            seen.append((obs.copy(), step))
        return np.broadcast_to(np.float32(actions)[:, None, None], (*obs.shape[:2], 1))

    return policy


def unmapped(f, in_axes):
    return f  # the policies here are of all lanes


def evaluate(task: Task, policy, lanes: int = 1, episodes: int = 1, padded: int | None = None) -> Returns:
    return Evaluator(task, policy, unmapped, padded or lanes, lanes, episodes)(None, None, None)


# -------------------------------------------------------------------------------- quotas and seeds


@pytest.mark.parametrize("most", [256, 5, 3, 1])
def test_every_episode_is_played_once_in_every_lane(most, monkeypatch):
    """Also where there are fewer environments than episodes; a padded lane is not evaluated."""
    monkeypatch.setattr(evaluation, "MAX_ENVS", most)
    episodes = 7
    returns, lengths, _ = evaluate(fake_task(), constant([-1.0, 0.0, np.nan]), 2, episodes, padded=3)
    kind = np.arange(episodes) % 5
    length, worth = np.array(Fake.LENGTHS)[kind], np.array(Fake.WORTH)[kind]
    np.testing.assert_array_equal(lengths, [length, length])
    np.testing.assert_allclose(returns, [length * (worth - 2.0), length * (worth + 2.0)])  # actions -2 and 2
    assert sorted(Fake.seeds) == sorted([*range(FIRST, FIRST + episodes)] * 2)


def test_short_episodes_are_not_favoured(monkeypatch):
    """Four environments; taking the first episodes that end would see the long one never."""
    monkeypatch.setattr(evaluation, "MAX_ENVS", 4)
    returns, lengths, _ = evaluate(fake_task(), constant([-0.5]), episodes=4)  # the environment's action 0
    assert returns.tolist() == [[-20.0, 30.0, -5.0, 0.0]]
    ends = sorted((t, e) for e in range(4) for t in range(Fake.LENGTHS[e], 100, Fake.LENGTHS[e]))[:4]
    first_ended = np.mean([Fake.LENGTHS[e] * Fake.WORTH[e] for _, e in ends])
    assert returns.mean() == 1.25 and first_ended < -6


def test_environments_take_no_more_than_half_of_the_free_memory(monkeypatch, capsys):
    """An environment of OGBench's cube takes 170 MiB, and 256 of them more than most machines have."""
    alone = evaluate(fake_task(), constant([0.1, 0.2]), 2, 20)
    assert "at a time" not in capsys.readouterr().out

    class Large(gym.Wrapper):
        def reset(self, **more):
            self.kept = np.ones(4 << 20)  # 32 MiB
            return self.env.reset(**more)

    made, make = [], Task.make_env
    monkeypatch.setattr(Task, "make_env", lambda self: made.append(Large(make(self))) or made[-1])
    monkeypatch.setattr(evaluation, "free_host_bytes", lambda: 384 << 20)  # half of it holds six
    found = evaluate(fake_task(), constant([0.1, 0.2]), 2, 20)
    assert 4 <= len(made) <= 7 and f"Evaluation is in {len(made) // 2 * 2} environments" in capsys.readouterr().out
    np.testing.assert_array_equal(found.returns, alone.returns)
    monkeypatch.setattr(evaluation, "free_host_bytes", lambda: 0)  # each lane has one all the same
    np.testing.assert_array_equal(evaluate(fake_task(), constant([0.1, 0.2]), 2, 20).returns, alone.returns)


def test_environments_are_made_once_and_episodes_are_the_same_at_every_evaluation(monkeypatch):
    made = []
    monkeypatch.setattr(Task, "make_env", lambda self: made.append(gym.make(self.env_spec)) or made[-1])
    evaluator = Evaluator(fake_task(), constant([0.1, 0.2]), unmapped, 2, 2, 3)
    first = evaluator(None, None, None)
    seeds, Fake.seeds = Fake.seeds, []
    second = evaluator(None, None, None)
    assert sorted(seeds) == sorted(Fake.seeds) == sorted([FIRST, FIRST + 1, FIRST + 2] * 2)
    np.testing.assert_array_equal(first.returns, second.returns)
    np.testing.assert_array_equal(first.lengths, second.lengths)
    assert len(made) == 7  # one of them tells its space of observations


@pytest.mark.parametrize("name, limit, expected", [("Short", None, [2, 4, 1, 3, 4]), ("Fake", 3, [2, 3, 1, 3, 3])])
def test_time_limits_are_kept(name, limit, expected):
    assert evaluate(fake_task(name, limit), constant([-0.5]), episodes=5).lengths.tolist() == [expected]
    assert evaluate(fake_task(name, limit or 4, kwargs={"endless": True}), constant([0.0])).lengths == [[limit or 4]]


# --------------------------------------------------------------------- what the policy sees and does


def test_observations_are_normalised_exactly_as_the_datas(tmp_path):
    """The dataset holds what the environment shows: the policy must see the same rows, bit for bit."""
    e, t = np.repeat(np.arange(3), 30), np.tile(np.arange(31), (3, 1))
    obs = np.stack([e, 100 * t[:, :-1].ravel()], 1).astype(np.float32)
    next_obs = np.stack([e, 100 * t[:, 1:].ravel()], 1).astype(np.float32)
    np.savez(
        tmp_path / "log.npz", observations=obs, next_observations=next_obs, actions=np.zeros((90, 1)),
        rewards=np.ones(90), terminals=np.zeros(90), timeouts=np.arange(90) % 30 == 29,
    )  # fmt: skip
    raw = load_dataset(str(tmp_path / "log.npz"), "EvaluationTest/Fake-v0")
    for data in (raw, raw.normalize_obs()):
        seen = []
        evaluate(data.task, constant([0.0], seen), episodes=3)
        assert [step for _, step in seen] == list(range(30))
        for obs, step in seen:
            assert obs.dtype == np.float32 and obs.shape == (1, 3, 2)
            for episode in range(3):
                if step < Fake.LENGTHS[episode]:
                    np.testing.assert_array_equal(obs[0, episode], data.obs[30 * episode + step])
    assert np.abs(raw.obs).max() == 2900 and np.abs(data.obs).max() < 3


def test_actions_are_rescaled_to_the_environments_range_and_clipped():
    """-2 to 6 in the environment is -1 to 1 in every algorithm."""
    evaluate(fake_task(), constant([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0]), lanes=6)
    assert sorted(np.concatenate(Fake.actions[:6]).tolist()) == [-2.0, -2.0, 0.0, 2.0, 6.0, 6.0]
    assert Fake.actions[0].shape == (1,) and Fake.actions[0].dtype == np.float32


def test_discrete_actions_are_indices():
    task = fake_task(spec=Spec((2,), 3, True), kwargs={"discrete": True})

    def policy(agent, obs, step, keys, args):
        return jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32)[:, None], obs.shape[:2])

    returns = evaluate(task, policy, lanes=3, episodes=2).returns
    assert all(np.issubdtype(np.asarray(a).dtype, np.integer) and np.ndim(a) == 0 for a in Fake.actions)
    assert {int(a) for a in Fake.actions} == {0, 1, 2}
    assert (returns[:, 1] - returns[0, 1]).tolist() == [0.0, 30.0, 60.0]


@hyperparameters
class NoiseArgs(OfflineArgs):
    scale: Float = 1.0
    """Standard deviation of the actions."""


def noise_run(out: Path, task: Task, traces: list, **changes) -> None:
    """Three evaluations of lanes whose policy is noise, through `Run`."""

    def act(agent, obs, key, args):
        traces.append(obs.shape)
        return args.scale * jax.random.normal(key, (len(obs), 1)).clip(-0.9, 0.9) + agent["zero"]

    settings = {"updates": 6, "log_every": 2, "eval_every": 2, "checkpoint_every": 6, "eval_episodes": 2}
    args = NoiseArgs(**settings, **changes, out=str(out))
    with Run(__file__, args, task, act) as run:
        agent = {"zero": jax.device_put(np.zeros(len(run.init_keys), np.float32), run.sharding)}
        for _ in run.chunks():
            run.log(agent, {})


def test_the_policy_is_compiled_once_and_scores_come_from_the_reference_pair(tmp_path):
    """Three evaluations of up to 30 steps trace `act` once; a sampled policy has keys of its own."""
    traces: list = []
    reference = {"min": -20.0, "max": 180.0, "episodes": 1, "source": "here"}
    noise_run(tmp_path / "run", fake_task(reference=reference), traces, seeds=3)
    assert traces == [(2, 2)]
    rows = list(csv.DictReader((tmp_path / "run" / "returns.csv").open()))
    assert [(r["update"], r["lane"], r["episode"]) for r in rows] == [
        (u, lane, e) for u in "246" for lane in "012" for e in "01"
    ]
    assert [r["length"] for r in rows] == ["2", "30"] * 9
    for r in rows:
        assert np.isclose(float(r["score"]), (float(r["return"]) + 20.0) / 2.0, rtol=1e-4)
    assert [r["return"] for r in rows[:6]] == [r["return"] for r in rows[6:12]] == [r["return"] for r in rows[12:]]
    values = np.unique(np.concatenate(Fake.actions))
    assert len(values[(values > -1.6) & (values < 5.6)]) > 50  # of 3 lanes x (2 + 30) draws, those not clipped


def test_without_a_reference_pair_there_is_no_score(tmp_path):
    noise_run(tmp_path / "run", fake_task(), [])
    assert {r["score"] for r in csv.DictReader((tmp_path / "run" / "returns.csv").open())} == {"nan"}


# ----------------------------------------------------------------------------- policies of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of bc: 3 lanes on 2 devices, one rate each; and one without an environment."""
    folder = tmp_path_factory.mktemp("trained")
    common = {
        "updates": 4, "log_every": 4, "eval_every": 4, "eval_episodes": 3, "checkpoint_every": 4,
        "batch_size": 8, "hidden_dims": HIDDEN,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_RL_CACHE", str(folder / "cache"))
        bc, data = load("bc"), write_pendulum(folder / "log.npz")
        settings = {**common, "dataset": data, "seed": 7, "actor_lr": (1e-2, 2e-2, 3e-2)}
        bc.main(bc.Args(**settings, env="EvaluationTest/Line-v0", out=str(folder / "run")))
        bc.main(bc.Args(**common, dataset=data, clip_actions=True, out=str(folder / "blind")))
    return folder


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "run")


def last_returns(run_dir: Path) -> list[dict]:
    return list(csv.DictReader((run_dir / "returns.csv").open()))


def test_rolling_out_again_gives_the_runs_own_returns(run_dir, capsys):
    main([str(run_dir), "--episodes", "5"])
    rows = list(csv.DictReader((run_dir / "evaluation.csv").open()))
    assert list(rows[0]) == ["lane", "seed", "actor_lr", "episode", "return", "length", "score"]
    assert [(r["lane"], r["episode"]) for r in rows] == [(lane, e) for lane in "012" for e in "01234"]
    assert [(r["seed"], float(r["actor_lr"])) for r in rows[::5]] == [("7", 0.01), ("7", 0.02), ("7", 0.03)]
    again = {(r["lane"], r["episode"]): r for r in rows}
    for r in last_returns(run_dir):
        other = again[r["lane"], r["episode"]]
        np.testing.assert_allclose(float(other["return"]), float(r["return"]), rtol=1e-4)
        assert other["length"] == r["length"] == "5"
    assert len({r["return"] for r in rows}) == 15  # lanes and episodes differ
    assert "lane 2 (seed=7, actor_lr=0.03): return" in capsys.readouterr().out


def test_rolling_out_again_ends_episodes_where_the_run_did(trained, tmp_path):
    """--max-episode-steps is of every evaluation of a run: a return of longer episodes is another quantity."""
    bc, out = load("bc"), tmp_path / "short"
    settings = {"updates": 2, "log_every": 2, "eval_every": 2, "eval_episodes": 2, "checkpoint_every": 2}
    where = {"env": "EvaluationTest/Line-v0", "max_episode_steps": 4, "out": str(out)}
    bc.main(bc.Args(**settings, **where, dataset=str(trained / "log.npz"), batch_size=8, hidden_dims=HIDDEN))
    main([str(out), "--episodes", "2"])
    again = list(csv.DictReader((out / "evaluation.csv").open()))
    assert {r["length"] for r in [*last_returns(out), *again]} == {"4"}


def test_arguments_can_be_changed_for_an_evaluation(run_dir, monkeypatch):
    """`act` gets the changed value; the file says so; the plain evaluation is a file of its own."""
    seen = set()

    def act(agent, obs, key, args):
        seen.add(args.top_fraction)
        return obs[:, :1] * 0.0

    monkeypatch.setattr(sys.modules["bc"], "act", act)
    main([str(run_dir), "--episodes", "1", "--set", "top_fraction=0.5"])
    assert seen == {0.5} and (run_dir / "evaluation-top_fraction=0.5.csv").exists()
    assert not (run_dir / "evaluation.csv").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ("policy", "NAME=VALUE"),
        ("hea=gaussian", "hea.*head"),
        ("head=gauss", "choose from auto, deterministic, gaussian"),
        ("actor_lr=0.1", "values of their own"),
        ("top_fraction=much", "no such value"),
        ("policy=../x", "NAME=VALUE"),
        ("seeds=3", "plays no part"),
        ("env=none", "plays no part"),
        ("hidden_dims=9", "a list of values"),
        ("top_fraction=nan", "top-fraction must be finite"),
        ("max_episode_steps=-3", "must be at least 0"),
    ],
)
def test_changes_that_cannot_be_made(change, words, run_dir):
    with pytest.raises(InputError, match=words):
        main([str(run_dir), "--set", change])
    assert not list(run_dir.glob("evaluation*"))
    with pytest.raises(InputError, match="an argument has one value"):
        main([str(run_dir), "--set", "head=gaussian", "head=auto"])


def test_episodes_and_a_film_are_made_together(run_dir, tmp_path):
    main([str(run_dir), "--episodes", "2", "--video", str(tmp_path / "out.gif")])
    assert len((run_dir / "evaluation.csv").read_text().splitlines()) == 1 + 3 * 2
    assert imageio.get_reader(tmp_path / "out.gif").get_length() > 1


def test_an_environment_that_draws_nothing_is_not_filmed(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "metadata", {})
    with pytest.raises(InputError, match="cannot be filmed"):
        main([str(run_dir), "--episodes", "1", "--video", str(tmp_path / "out.gif")])


def test_a_full_disk_leaves_the_last_evaluation(run_dir, monkeypatch):
    main([str(run_dir), "--episodes", "1"])
    before = (run_dir / "evaluation.csv").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="^Cannot write .*evaluation.csv: No space left"):
        main([str(run_dir), "--episodes", "2"])
    assert (run_dir / "evaluation.csv").read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))


def test_the_interval_of_a_mean():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    low, high = interval(x)
    assert 0 <= low < 1.0 and 2.0 < high <= 3 and abs((low + high) / 2 - 1.5) < 0.2
    assert interval(np.array([4.0])) == (4.0, 4.0) and interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_returns_without_a_reference_have_a_dip_but_no_regret():
    found = fine_tuning(np.array([0, 10, 20]), np.array([[-50.0], [-80.0], [-20.0]]), normalized=False)
    assert (found.offline, found.dip, found.final) == (-50.0, 30.0, -20.0) and np.isnan(found.regret).all()


def test_a_loaded_policy_that_samples_does_so_anew_at_every_step(run_dir):
    policies = load_run(run_dir)
    noisy = policies._replace(act=lambda agent, obs, key, args: jax.random.uniform(key, (1, 1)))
    policy, again = noisy.act_in(0), noisy.act_in(0)
    draws = [float(policy(np.zeros(1))[0]) for _ in range(3)]
    assert len(set(draws)) == 3
    assert draws == [float(again(np.zeros(1))[0]) for _ in range(3)]


def test_a_loaded_policy_acts_in_the_plain_environment(run_dir, trained):
    policies = load_run(run_dir)
    assert [s["actor_lr"] for s in policies.settings] == [0.01, 0.02, 0.03]
    raw = load_dataset(str(trained / "log.npz"), "EvaluationTest/Line-v0")
    with np.load(run_dir / "checkpoint" / "state.npz") as file:
        layers = [[file[f"[0].actor['params']['Dense_{i}']['{n}']"] for n in ("kernel", "bias")] for i in range(3)]
    for lane in range(3):
        policy = policies.act_in(lane)
        env, total = gym.make("EvaluationTest/Line-v0"), 0.0
        obs, over = env.reset(seed=FIRST + 1)[0], False
        while not over:
            x = (obs - raw.obs.mean(0)) / (raw.obs.std(0) + 1e-3)
            for i, (kernel, bias) in enumerate(layers):
                x = x @ kernel[lane] + bias[lane]
                x = np.maximum(x, 0) if i < 2 else np.tanh(x)
            action = policy(obs)
            assert action.shape == (1,) and action in env.action_space
            np.testing.assert_allclose(action, 2.0 * x, rtol=1e-4, atol=1e-5)
            obs, reward, _, over, _ = env.step(action)
            total += reward
        recorded = next(r for r in last_returns(run_dir) if (r["lane"], r["episode"]) == (str(lane), "1"))
        np.testing.assert_allclose(total, float(recorded["return"]), rtol=1e-4)


def change_checkpoint(run_dir: Path, change_header=None, **arrays) -> None:
    path = run_dir / "checkpoint" / "state.npz"
    header = read_header(path)
    if change_header:
        change_header(header)
    with np.load(path) as file:
        stored = {k: file[k] for k in file.files if k != "__header__"}
    np.savez(path, __header__=np.array(json.dumps(header)), **stored, **arrays)


def test_a_checkpoint_may_hold_more_than_the_agent(run_dir):
    before = load_run(run_dir).agent
    change_checkpoint(run_dir, **{"[1].rows": np.zeros((4, 100, 5))})  # a replay buffer
    jax.tree.map(np.testing.assert_array_equal, before, load_run(run_dir).agent)


def no_run(run_dir):
    shutil.rmtree(run_dir)


def no_checkpoint(run_dir):
    (run_dir / "checkpoint" / "state.npz").unlink()


def truncated(run_dir):
    path = run_dir / "checkpoint" / "state.npz"
    path.write_bytes(path.read_bytes()[:-100])


def not_an_algorithm(run_dir):
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "evil.py").write_text("raise SystemExit('this was run')")
    (run_dir / "run.json").write_text(json.dumps(record | {"file": str(run_dir / "evil.py")}))


def an_argument_that_is_gone(run_dir):
    change_checkpoint(run_dir, lambda header: header["args"].update(temperature_of_the_sea=3))


def other_networks(run_dir):
    change_checkpoint(run_dir, lambda header: header["args"].update(hidden_dims=[8]))


def an_environment_that_is_gone(run_dir):
    change_checkpoint(run_dir, lambda header: header["task"]["env"].update(id="EvaluationTest/Lin-v0"))


@pytest.mark.parametrize(
    "break_it, words",
    [
        (no_run, "no run"),
        (no_checkpoint, "no run with a checkpoint"),
        (truncated, "not a readable checkpoint"),
        (not_an_algorithm, "not an algorithm of this collection"),
        (an_argument_that_is_gone, "temperature_of_the_sea"),
        (other_networks, "does not fit"),
        (an_environment_that_is_gone, "EvaluationTest/Line-v0"),
    ],
)
def test_a_folder_whose_policies_cannot_be_loaded(break_it, words, run_dir):
    break_it(run_dir)
    with pytest.raises(InputError, match=words):
        main([str(run_dir), "--episodes", "1"])
    assert not (run_dir / "evaluation.csv").exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--video", "x.gif", "--lane", "3"], "--lane 3.*0 to 2"),
        (["--video", "x.gif", "--lane", "-1"], "--lane -1"),
        (["--video", "x.avi"], "'.avi'"),
        (["--video", "x"], "--video"),
        (["--episodes", "0"], "--episodes"),
        (["--episodes", "-3"], "--episodes"),
    ],
)
def test_mistakes_on_the_command_line(argv, words, run_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main([str(run_dir), *argv])
    assert not list(tmp_path.glob("x*")) and not (run_dir / "evaluation.csv").exists()


@pytest.mark.parametrize("argv", [[], ["--video", "x.gif"]])
def test_a_run_without_an_environment_cannot_be_rolled_out(argv, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="environment"):
        main([str(trained / "blind"), *argv])


def test_the_module_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shared.evaluation", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as stop, pytest.warns(RuntimeWarning, match="sys.modules"):
        runpy.run_module("shared.evaluation", run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and str(tmp_path / "nothing") in err


# ---------------------------------------------------------------------------------------------- films


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_chosen_lane_is_filmed(suffix, run_dir, tmp_path, capsys):
    path = tmp_path / "new" / f"film{suffix}"
    main([str(run_dir), "--lane", "2", "--video", str(path)])
    frames = list(imageio.v3.imiter(path))
    assert len(frames) == 5 and frames[0].shape == (16, 16, 3)
    np.testing.assert_allclose([f.mean() for f in frames], [0, 40, 80, 120, 160], atol=6)
    recorded = next(r for r in last_returns(run_dir) if (r["lane"], r["episode"]) == ("2", "0"))
    assert f"return {float(recorded['return']):.1f} -> {path}" in capsys.readouterr().out
    if suffix == ".gif":
        assert imageio.v3.immeta(path)["duration"] == 100  # ms, of 10 frames a second


def test_pendulum_is_filmed_without_a_screen(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    spec = Spec((3,), 1, False, (-2.0,), (2.0,))
    task = Task("pendulum", "hash", spec, registered_env("Pendulum-v1", max_episode_steps=4))

    def act(agent, obs, key, args):
        return jnp.broadcast_to(agent["push"], (len(obs), 1))

    agent, args = {"push": jnp.array([0.0, 1.0])}, partial(NoiseArgs, scale=jnp.ones(2))()
    total = film(Policies(task, [{"seed": 0}, {"seed": 1}], agent, args, act), 1, tmp_path / "film.gif")
    frames = list(imageio.v3.imiter(tmp_path / "film.gif"))
    assert len(frames) == 4 and frames[0].shape[2] == 3 and frames[0].std() > 1
    env, expected = gym.make("Pendulum-v1"), 0.0
    env.reset(seed=FIRST)
    for _ in range(4):
        expected += float(env.step(np.float32([2.0]))[1])
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_fine_tuning_by_hand():
    """Two lanes: offline scores 50 and 20; the dip is looked for in the first fifth of the steps."""
    steps = np.array([0, 10, 20, 50, 100])
    scores = np.array([[50, 20], [30, 25], [40, 10], [0, 50], [90, 100]], float)
    result = fine_tuning(steps, scores)
    assert result.offline.tolist() == [50, 20] and result.final.tolist() == [90, 100]
    assert result.dip.tolist() == [20, 10]
    np.testing.assert_allclose(result.regret, [1 - 1.6 / 4, 1 - 1.85 / 4])
    assert fine_tuning(steps, scores + np.arange(5)[:, None] * 50).dip.tolist() == [0, 0]
    assert fine_tuning(np.array([0, 60, 100]), scores[[0, 1, 4]]).dip.tolist() == [20, 0]  # one evaluation at least
    alone = fine_tuning(steps[1:], scores[1:])  # without an offline phase there is nothing to fall from
    assert np.isnan(alone.offline).all() and np.isnan(alone.dip).all() and alone.final.tolist() == [90, 100]
    np.testing.assert_allclose(alone.regret, result.regret)
    with pytest.raises(ValueError, match="after the first"):
        fine_tuning(steps[:1], scores[:1])


# ----------------------------------------------------------------------- environments written in JAX

STATISTICS = {"obs_mean": np.arange(6, dtype=np.float32), "obs_std": np.float32([2, 1, 2, 1, 2, 1])}
IN_JAX = {
    "continuous, goals, normalised": ("PointUMazeGoals-v0", {"reward": "dense", "goal_radius": 1.0}, STATISTICS),
    "discrete, slippery, deadly": ("PointLake-v0", {"start": "sampled", "reward": "dense"}, {}),
    "pictures": ("PointPixels-v0", {"reward": "dense"}, {}),
    "gymnasium's own": ("phys2d/CartPole-v1", {}, {}),
}


def sampled_policy(task: Task):
    """Draws actions with the lane's key at each step; what it does depends on what it sees and on its lane."""

    def act(agent, obs, step, key, args):
        x = obs.reshape(len(obs), -1).astype(jnp.float32)
        score = x[:, :1] * agent + jax.random.normal(jax.random.fold_in(key, step), (len(obs), task.spec.action_dim))
        return jnp.argmax(score, -1) if task.spec.discrete else jnp.tanh(score)

    return act


@pytest.mark.parametrize("name", IN_JAX)
def test_the_compiled_evaluation_plays_the_episodes_of_gymnasium(name, monkeypatch):
    """The same returns and lengths of every lane and episode, in rounds, one lane after the other and all at once."""
    env_id, options, changes = IN_JAX[name]
    monkeypatch.setattr(evaluation, "MAX_ENVS", 4)
    task = dataclasses.replace(env_task(env_id), **changes)
    task = dataclasses.replace(task, env_spec=registered_env(env_id, options, 12))
    lanes, episodes = 2, 3
    inputs = jnp.float32([0.3, -0.2]), jax.random.split(jax.random.key(1), lanes), jnp.zeros(lanes)
    mesh = make_mesh(1)
    layouts = [lambda f, axes, layout=layout: over_lanes(f, mesh, axes, layout=layout) for layout in ("map", "vmap")]
    found = []
    for layout in layouts if "continuous" in name or "discrete" in name else layouts[:1]:
        evaluator = Evaluator(task, sampled_policy(task), layout, lanes, lanes, episodes)
        found.append(evaluator(*inputs))
        assert len(evaluator.envs) == 1
    stepped = Evaluator(task, sampled_policy(task), layouts[0], lanes, lanes, episodes)
    monkeypatch.setattr(evaluation, "jax_env", lambda task, env: None)
    wanted = stepped(*inputs)
    assert len(stepped.envs) == 4 and (wanted.lengths == 12).any()
    for returns, lengths, *_ in found:
        np.testing.assert_array_equal(lengths, wanted.lengths)
        np.testing.assert_allclose(returns, wanted.returns, rtol=1e-6)
    assert len(np.unique(wanted.lengths)) > 1 or name in ("pictures", "gymnasium's own")
    assert not np.array_equal(*wanted.returns) or name == "gymnasium's own"


def test_successes_are_counted_where_the_environment_is_in_jax():
    """One step to the goal, whatever the reward; the other way the time limit comes first."""
    reference = {"min": 0.0, "max": 1.0, "episodes": 0, "of": "success", "source": ""}
    options = {"start": (1.5, 1.5), "goal": (2.25, 1.5), "reward": "sparse", "at_goal": "stay"}
    task = dataclasses.replace(env_task("PointUMaze-v0"), reference=reference)
    task = dataclasses.replace(task, env_spec=registered_env("PointUMaze-v0", options, 3))
    for direction, steps, score in ((1.0, 1, 100.0), (-1.0, 0, 0.0)):
        played = evaluate(task, lambda *_, x=direction: np.float32([[[x, 0.0]]]))
        assert played.success_steps.tolist() == [[steps]] and played.scores(task).tolist() == [[score]]


def test_a_reward_of_several_objectives_is_refused():
    task = env_task("PointTreasure-v0")
    with pytest.raises(InputError, match="weights"):
        Evaluator(task, sampled_policy(task), unmapped, 1, 1, 1)(None, None, None)


def test_an_environment_behind_a_wrapper_is_not_compiled():
    """What a wrapper does would be lost."""
    task = env_task("phys2d/CartPole-v1")
    assert jax_env(task) and jax_env(task, gym.wrappers.TransformReward(task.make_env(), lambda r: -r)) is None


# ---------------------------------------------------------------------------------------- successes


class Goal(gym.Env):
    """Goes on at the goal, which it reaches after `after` steps, and pays 1 there at every step (an AntMaze)."""

    observation_space, action_space = Fake.observation_space, Fake.action_space

    def __init__(self, after: int = 3, told: bool = True):
        self.after, self.told = after, told

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        there = self.t >= self.after
        return np.zeros(2, np.float32), float(there), False, False, {"success": there} if self.told else {}


gym.register("EvaluationTest/Goal-v0", Goal, max_episode_steps=20)
SUCCESS = {"min": 0.0, "max": 1.0, "episodes": 0, "source": "test", "of": "success"}


@pytest.mark.parametrize("told", [True, False])
def test_a_success_counts_once_in_an_episode_that_goes_on(told):
    task = fake_task("Goal", reference=SUCCESS, kwargs={"told": told})
    played = evaluate(task, constant([0.0]), episodes=2)
    assert played.returns.tolist() == [[18.0, 18.0]] and played.scores(task).tolist() == [[100.0, 100.0]]
    assert played.success_steps.tolist() == [[3, 3]]
    failed = fake_task("Goal", reference=SUCCESS, kwargs={"told": told, "after": 21})
    played = evaluate(failed, constant([0.0]))
    assert played.scores(failed).tolist() == [[0.0]] and played.success_steps.tolist() == [[0]]


def test_a_pair_of_returns_scores_returns():
    """The dataset's own pair of a continuing maze is in units of the return."""
    task = fake_task("Goal", reference={"min": 0.0, "max": 36.0, "episodes": 0, "source": "test"})
    played = evaluate(task, constant([0.0]))
    assert played.scores(task).tolist() == [[50.0]] and played.success_steps is None
