"""The run around an algorithm: command line, schedule, files, kills and resume, wandb, lanes.

Training jobs are small ones of bc and td3_bc; what only concerns the loop uses `toy`, which compiles nothing.
"""

import csv
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, timeless, write_pendulum

import shared.run
from results import benchmark
from shared.arguments import Float, OfflineArgs, float_fields, hyperparameters, parse, preset_for
from shared.checkpoint import load_tree, read_header, save_tree
from shared.errors import InputError, Interrupted
from shared.lanes import make_mesh, over_lanes
from shared.record import Tables, print_summary, summarise
from shared.run import Run, launch
from shared.task import Spec, Task, registered_env

DEVICES = len(jax.devices())  # starts the backend, before `launch` asks for one device per lane


class Line(gym.Env):
    """Pendulum-v1's spaces, but no chaos; a time limit ends it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-2.0, 2.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = self.np_random.normal(size=3).astype(np.float32)
        return self.obs, {}

    def step(self, action):
        self.obs = (0.9 * self.obs + 0.1 * action).astype(np.float32)
        return self.obs, -float((self.obs**2).sum()), False, False, {}


gym.register("RunTest/Line-v0", Line, max_episode_steps=5)


class Killed(BaseException):
    """The process is gone."""


PADDED = -(-3 // DEVICES) * DEVICES  # lanes of a job with three


TABLES = ("before", "offline", "metrics", "returns")


def rows(out: Path, name: str) -> list[dict]:
    return list(csv.DictReader((out / f"{name}.csv").open()))


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def outcome(out: Path) -> tuple[dict, list, list]:
    """What two runs must share: parameters, metrics (of all phases), returns; without times."""
    with np.load(out / "checkpoint" / "state.npz") as file:
        arrays = {k: file[k] for k in file.files if k != "__header__"}
    tables = {name: timeless(path) for name in TABLES if (path := out / f"{name}.csv").exists()}
    returns = tables.pop("returns", [])
    return arrays, [{"table": name, **row} for name in tables for row in tables[name]], returns


def assert_same(out: Path, other: Path) -> None:
    (arrays, metrics, returns), (arrays_2, metrics_2, returns_2) = outcome(out), outcome(other)
    assert metrics == metrics_2
    assert returns == returns_2
    assert arrays.keys() == arrays_2.keys() and arrays
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, arrays_2[name], err_msg=name)


def at_step(monkeypatch, step: int, action, after: bool = False) -> None:
    """`action()` once, when the chunk that ends at `step` is logged (or after it was)."""
    log = Run.log

    def patched(self, *args, **kwargs):
        now = self.done + self.chunk == step
        if now:
            monkeypatch.setattr(Run, "log", log)
        if now and not after:
            action()
        log(self, *args, **kwargs)
        if now and after:
            action()

    monkeypatch.setattr(Run, "log", patched)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise Killed


# ------------------------------------------------------------------------------------------- a toy


@hyperparameters
class ToyArgs(OfflineArgs):
    rate: Float = 1.0
    """Its only hyperparameter."""


PENDULUM = Spec((3,), 1, False, (-2.0,), (2.0,))


def toy(out: Path, task: Task | None = None, during=None, before: int = 0, **changes) -> Run:
    """A job without a network: the agent counts updates; metric m is the mean index of the updates, plus the lane."""
    args = ToyArgs(**{"updates": 12, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "out": str(out)} | changes)
    task = task or Task("toy", "hash of the data", PENDULUM)
    with Run(__file__, args, task, lambda agent, obs, key, args: obs[:, :1], before=before) as run:
        lanes = len(run.init_keys)
        agent = {"count": jax.device_put(np.zeros(lanes, np.float32), run.sharding)}
        agent = run.restore(agent)
        for _ in run.chunks():
            if during:
                during(run)
            index = run.done + np.arange(run.chunk)
            agent = {"count": agent["count"] + run.chunk}
            run.log(agent, {"m": index.mean() + np.arange(lanes)})
    return run


# ---------------------------------------------------------------------------------- kill and resume


@pytest.fixture(scope="module")
def logged(folder) -> list[dict]:
    """The metrics of each chunk of the run `bc`."""
    seen, log = [], Run.log

    def keep(self, agent, metrics, **kwargs):
        seen.append(metrics)
        log(self, agent, metrics, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", keep)
        load("bc").main(job(folder, "bc", folder / "bc"))
    return seen


@pytest.fixture(scope="module")
def bc(folder, logged) -> Path:
    """Three lanes, padded to four on two devices."""
    return folder / "bc"


@pytest.fixture(scope="module")
def td3_bc(folder) -> Path:
    load("td3_bc").main(job(folder, "td3_bc", folder / "td3_bc"))
    return folder / "td3_bc"


def job(folder: Path, name: str, out: Path, **changes):
    """A tiny job: 12 updates in chunks of 2, evaluated and saved at 4, 8 and 12."""
    tiny = {
        "dataset": str(folder / "pendulum.npz"), "env": "RunTest/Line-v0", "updates": 12, "log_every": 2,
        "eval_every": 4, "checkpoint_every": 4, "eval_episodes": 2, "batch_size": 8, "hidden_dims": (8, 8),
        "seeds": 3 if name == "bc" else 1, "out": str(out),
    }  # fmt: skip
    return load(name).Args(**tiny | changes)


@pytest.mark.parametrize("name", ["bc", pytest.param("td3_bc", marks=pytest.mark.long)])
def test_a_stopped_run_resumes_bit_identically(name, folder, request, tmp_path, monkeypatch):
    whole, out = request.getfixturevalue(name), tmp_path / "run"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    at_step(monkeypatch, 6, terminate)
    with pytest.raises(Interrupted) as stop:
        load(name).main(job(folder, name, out))
    assert stop.value.signal == signal.SIGTERM and stop.value.out == out
    assert record(out)["status"] == "interrupted" and record(out)["steps_done"] == 6
    assert read_header(out / "checkpoint" / "state.npz")["done"] == 6
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    load(name).main(job(folder, name, out, resume=True))
    assert record(out)["status"] == "finished" and record(out)["steps_done"] == 12
    assert (out / "curve.png").exists()
    assert_same(out, whole)


@pytest.fixture
def line_task() -> Task:
    return Task("toy", "hash of the data", PENDULUM, registered_env("RunTest/Line-v0"))


def test_rows_written_after_the_last_checkpoint_are_not_doubled(line_task, tmp_path, monkeypatch):
    """Killed while the checkpoint of update 8 is written: rows of 6 and 8 and an evaluation are cut off."""
    out, replace = tmp_path / "run", os.replace

    def at_the_second_checkpoint(source, target):
        if Path(target).name == "state.npz" and Path(target).exists():
            raise Killed
        replace(source, target)

    toy(tmp_path / "whole", line_task, seeds=3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", at_the_second_checkpoint)
        toy(out, line_task, seeds=3)
    assert [r["update"] for r in rows(out, "metrics")][-1] == [r["update"] for r in rows(out, "returns")][-1] == "8"
    toy(out, line_task, seeds=3, resume=True)
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize("first, second", [(6, 10), (8, 10), (6, 8)])
def test_a_run_may_be_killed_again_and_again(first, second, line_task, tmp_path, monkeypatch):
    """By a signal, then without warning; evaluations and logging points fall between the checkpoints."""
    every = {"task": line_task, "log_every": 4, "eval_every": 6, "checkpoint_every": 2, "eval_episodes": 2}
    toy(tmp_path / "whole", **every)
    at_step(monkeypatch, first, terminate)
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", **every)
    at_step(monkeypatch, second, kill, after=True)
    with pytest.raises(Killed):
        toy(tmp_path / "run", resume=True, **every)
    toy(tmp_path / "run", resume=True, **every)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_killed_after_its_last_checkpoint_is_completed_by_resume(line_task, tmp_path, monkeypatch):
    toy(tmp_path / "whole", line_task)
    at_step(monkeypatch, 12, kill, after=True)
    with pytest.raises(Killed):
        toy(tmp_path / "run", line_task)
    toy(tmp_path / "run", line_task, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert record(tmp_path / "run")["status"] == "finished"
    assert (tmp_path / "run" / "curve.png").exists()


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(line_task, tmp_path, monkeypatch):
    toy(tmp_path / "whole", line_task)
    at_step(monkeypatch, 2, kill, after=True)
    with pytest.raises(Killed):
        toy(tmp_path / "run", line_task)
    toy(tmp_path / "run", line_task)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_what_comes_before_the_first_update_has_its_own_file_and_changes_no_other(line_task, tmp_path):
    toy(tmp_path / "plain", line_task, log_every=4)
    toy(tmp_path / "run", line_task, log_every=4, before=6)
    for name in ("metrics", "returns"):
        plain, run = rows(tmp_path / "plain", name), rows(tmp_path / "run", name)
        assert [r | {"wall_s": ""} for r in plain] == [r | {"wall_s": ""} for r in run]
    assert [r["update"] for r in rows(tmp_path / "run", "before")] == ["4", "6"]
    assert not (tmp_path / "plain" / "before.csv").exists()
    assert outcome(tmp_path / "run")[0]["[0]['count']"] == 18


def test_updates_before_the_first_have_keys_of_their_own(tmp_path):
    seen = []
    toy(tmp_path / "run", before=4, during=lambda run: seen.append(run.done))
    assert seen == [-4, -2, 0, 2, 4, 6, 8, 10]
    with Run(
        __file__, ToyArgs(out=str(tmp_path / "keys"), updates=4), Task("toy", "", PENDULUM), None, before=4
    ) as run:
        keys = [jax.random.key_data(k) for k in (next(run.chunks()), setattr(run, "done", 0) or next(run.chunks()))]
    assert len(np.unique(np.concatenate(keys, 1)[0], axis=0)) == 8


@pytest.mark.parametrize("first, second", [(-4, -2), (-2, 6), (0, 2)])
def test_a_run_killed_before_its_first_update_resumes_there(first, second, line_task, tmp_path, monkeypatch):
    every = {"task": line_task, "before": 6, "log_every": 4, "eval_every": 6, "checkpoint_every": 2}
    toy(tmp_path / "whole", **every)
    at_step(monkeypatch, first, terminate)
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", **every)
    at_step(monkeypatch, second, kill, after=True)
    with pytest.raises(Killed):
        toy(tmp_path / "run", resume=True, **every)
    toy(tmp_path / "run", resume=True, **every)
    assert_same(tmp_path / "run", tmp_path / "whole")
    early = [
        [{k: v for k, v in r.items() if k != "wall_s"} for r in rows(tmp_path / n, "before")] for n in ("run", "whole")
    ]
    assert early[0] == early[1]


def test_resuming_a_finished_run_changes_nothing(line_task, tmp_path):
    toy(tmp_path / "run", line_task)
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*.csv")}
    toy(tmp_path / "run", line_task, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*.csv")} == before
    assert record(tmp_path / "run")["status"] == "finished"


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(run):
        terminate()
        terminate()

    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "run", during=twice)
    assert record(tmp_path / "run")["status"] in ("interrupted", "failed")
    assert not (tmp_path / "run" / "checkpoint" / "state.npz").exists()


def test_a_signal_in_the_last_chunk_lets_the_run_finish(tmp_path, monkeypatch):
    at_step(monkeypatch, 12, terminate)
    toy(tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "finished"


def test_wall_time_goes_on_and_the_divergence_is_remembered(tmp_path, monkeypatch):
    def sick(run):  # lane 1 of 2 reports NaN in the first chunk only
        log = run.log
        values = np.array([1.0, np.nan if run.done == 0 else 1.0])
        run.log = lambda agent, metrics: log(agent, {"m": values})

    at_step(monkeypatch, 4, terminate)
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", seeds=2, during=sick)
    before = rows(tmp_path / "run", "metrics")
    path = tmp_path / "run" / "checkpoint" / "state.npz"
    save_tree(path, load_tree(path, ({"count": np.zeros(2)}, None)), read_header(path) | {"wall_s": 1000.0})
    toy(tmp_path / "run", seeds=2, resume=True)
    after = rows(tmp_path / "run", "metrics")
    assert after[: len(before)] == before
    assert 1000 < float(after[len(before)]["wall_s"]) <= float(after[-1]["wall_s"]) < 1100
    assert record(tmp_path / "run")["diverged"] == {"1": 2}


@pytest.mark.parametrize("name, steps, every", [("bc", "--updates", 1000), ("rlpd", "--env-steps", 100)])
def test_signals_to_a_real_process(name, steps, every, folder, tmp_path):
    """SIGTERM: status 143, SIGINT: 130; each says how to go on, and leaves a checkpoint from which it does.

    Where steps are interaction, only the first of these; that such a run goes on is for tests/test_online.py.
    """
    column = "update" if name == "bc" else "env_step"
    more_networks = [] if name == "bc" else ["--n-critics", 2, "--learning-starts", 0]
    command = [
        sys.executable, load(name).__file__, "--dataset", folder / "pendulum.npz", steps, 10**6, *more_networks,
        "--log-every", every, "--eval-every", 10**6, "--eval-episodes", 1, "--checkpoint-every", 10**6,
        "--batch-size", 8, "--hidden-dims", 8, 8, "--out", "run",
    ]  # fmt: skip
    done = 0
    stops = ((signal.SIGTERM, 143, []), (signal.SIGINT, 130, ["--resume"]))
    for number, status, more in stops if name == "bc" else stops[:1]:
        words = [str(w) for w in [*command, *more]]
        process = subprocess.Popen(words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            size, deadline = len(rows(tmp_path / "run", "metrics")) if done else 0, time.time() + 120
            while not ((tmp_path / "run" / "metrics.csv").exists() and len(rows(tmp_path / "run", "metrics")) > size):
                assert process.poll() is None and time.time() < deadline, process.communicate()
                time.sleep(0.05)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == status, err
        assert f"continue with --out {tmp_path / 'run'} --resume" in err and "Traceback" not in err
        header = read_header(tmp_path / "run" / "checkpoint" / "state.npz")
        assert header["done"] > done and record(tmp_path / "run")["status"] == "interrupted"
        done = header["done"]
        logged = [int(r[column]) for r in rows(tmp_path / "run", "metrics")]
        assert logged == list(range(every, done + 1, every))


# ------------------------------------------------------------------- errors through the command line


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and directory but those that datasets are kept in."""
    paths = [p for p in folder.rglob("*") if not {"cache", "minari"} & {*p.parts}]
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in paths}


@pytest.fixture
def refused(tmp_path, folder, tiny, monkeypatch, capfd):
    """refused(algorithm, *arguments) -> stderr, for a command that must fail in tmp_path.

    There lie pendulum.npz, cartpole.npz and `done`: a finished run of bc on the former.
    """
    shutil.copy(folder / "pendulum.npz", tmp_path)
    shutil.copytree(tiny, tmp_path / "done")
    monkeypatch.chdir(tmp_path)

    def refused(name: str, *argv: str, command: list[str] = TINY) -> str:
        module, before = load(name), tree(tmp_path)
        monkeypatch.setattr(sys, "argv", [module.__file__, *command, *argv])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            launch(module.main, module.Args, module.PRESETS, module.__doc__)
        lines = capfd.readouterr().err.splitlines(keepends=True)
        err = "".join(line for line in lines if "Gymnasium-Robotics" not in line)  # it warns when imported
        assert stop.value.code == 2, err
        assert "Traceback" not in err
        assert tree(tmp_path) == before
        return err

    return refused


TINY = [
    *("--dataset", "pendulum.npz", "--env", "RunTest/Line-v0", "--updates", "4", "--log-every", "2"),
    *("--eval-every", "4", "--checkpoint-every", "4", "--eval-episodes", "1", "--batch-size", "8"),
    *("--hidden-dims", "8", "8", "--out", "new"),
]


@pytest.fixture(scope="module")
def tiny(folder) -> Path:
    """The run of the command TINY, made through `launch`."""
    module = load("bc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module.__file__, *TINY, "--out", "tiny"])
        launch(module.main, module.Args, module.PRESETS, module.__doc__)
    return folder / "tiny"


# (what is wrong, algorithm, arguments, words of the answer)
MISTAKES = [
    ("missing file", "bc", ["--dataset", "pendulun.npz"], ["no file", "pendulun.npz"]),
    ("typo in a dataset", "bc", ["--dataset", "pendulum-mixd"], ["'pendulum-mixd'", "pendulum-mixed"]),
    ("typo in an environment", "bc", ["--env", "RunTest/Lin-v0"], ["'RunTest/Lin-v0'", "RunTest/Line-v0"]),
    ("unknown preset", "cql", ["--preset", "hoper"], ["'hoper'", "hopper"]),
    ("actions are continuous", "bc", ["--head", "categorical"], ["discrete", "continuous"]),
    ("no common divisor", "bc", ["--updates", "5000", "--log-every", "7"], ["--log-every 7", "common divisor"]),
    (
        "too many updates at once",
        "bc",
        [x for flag in ("updates", "log-every", "eval-every", "checkpoint-every") for x in (f"--{flag}", "1000001")],
        ["1,000,001 steps", "--log-every"],
    ),
    ("not a multiple of the policy delay", "td3_bc", ["--updates", "5"], ["common divisor"]),
    ("no seeds", "bc", ["--seeds", "0"], ["--seeds", "at least 1"]),
    ("seeds beyond memory", "bc", ["--seeds", "100001"], ["100,001 lanes", "100,000"]),
    ("a seed of more than 32 bits", "bc", ["--seed", str(2**32)], ["--seed", "below 2,147,483,648", "4294967296"]),
    ("a size that no array has", "bc", ["--hidden-dims", "8", str(10**20)], ["--hidden-dims", "below 2,147,483,648"]),
    ("infinite in the update", "bc", ["--actor-lr", "1e39"], ["--actor-lr must be finite"]),
    ("0 in the update", "awac", ["--temperature", "1e-50"], ["--temperature must be above 0"]),
    ("a value given twice", "td3_bc", ["--alpha", "1", "2.5", "1"], ["--alpha 1 2.5 1", "twice"]),
    ("no updates", "bc", ["--updates", "0"], ["--updates", "at least 1"]),
    ("no interval", "bc", ["--eval-every", "-1"], ["--eval-every", "at least 1"]),
    ("NaN", "bc", ["--actor-lr", "nan"], ["--actor-lr", "finite"]),
    ("infinity among several", "bc", ["--actor-lr", "1e-3", "inf"], ["--actor-lr", "finite"]),
    ("NaN in a float that is not swept", "td3_bc", ["--reward-shift", "nan"], ["--reward-shift", "finite"]),
    ("fraction out of range", "bc", ["--top-fraction", "1.5"], ["1.5"]),
    ("--out holds a run", "bc", ["--out", "done"], ["done", "--resume"]),
    ("--out is under a file", "bc", ["--out", "pendulum.npz/run"], ["Cannot write"]),
    ("--resume without a run", "bc", ["--resume"], ["no checkpoint"]),
    ("--resume of another algorithm", "td3_bc", ["--out", "done", "--resume"], ["run of bc", "td3_bc"]),
    ("--resume with another size", "bc", ["--out", "done", "--resume", "--hidden-dims", "9"], ["--hidden-dims"]),
    ("--resume with more seeds", "bc", ["--out", "done", "--resume", "--seeds", "2"], ["--seeds", "2", "1"]),
    ("--resume with another rate", "bc", ["--out", "done", "--resume", "--actor-lr", "1"], ["--actor-lr"]),
]


@pytest.mark.parametrize("name, argv, words", [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_in_one_sentence(name, argv, words, refused):
    err = refused(name, *argv)
    assert err.startswith(f"{name}.py: ") and len(err.splitlines()) == 1, err
    assert all(w in err for w in words), err


@pytest.mark.parametrize(
    "name, argument, value",
    [
        ("td3_bc", "discount", "99"),
        ("td3_bc", "tau", "-0.1"),
        ("crl", "discount", "1.2"),
        ("rlpd", "online_share", "2"),
        ("rorl", "q_smooth_tau", "1.5"),
    ],
)
def test_a_fraction_lies_between_0_and_1(name, argument, value):
    """One value of a grid is enough to refuse it."""
    module, flag = load(name), f"--{argument.replace('_', '-')}"
    swept = argument in float_fields(module.Args)
    with pytest.raises(InputError, match=f"^{flag} must lie in "):
        parse(module.Args, module.PRESETS, module.__doc__, [flag, *(["0.5"] if swept else []), value])
    parse(module.Args, module.PRESETS, module.__doc__, [flag, "0.5"])


@pytest.mark.parametrize(
    "name, argument, least",
    [
        ("c_cql", "inverse_updates", 1),
        ("pac", "warmup_updates", 0),
        ("pac", "layers", 1),
        ("semi_pessimistic", "reward_batch", 1),
        ("imputed_rewards", "reward_batch", 1),
        ("ptr", "latent_dim", 1),
        ("bisimulation_history", "latent_dim", 1),
        ("cocoa", "n_models", 1),
        ("edp", "target_every", 1),
        ("crr_plus", "value_samples", 1),
        ("imputed_rewards", "split_seed", 0),
        ("bcq", "batch_size", 1),
        ("bcq", "n_candidates", 1),
        ("bcq", "target_candidates", 1),
        ("mcq", "n_draws", 1),
        ("edac", "n_critics", 1),
        ("cql", "n_actions", 1),
        ("idql", "flow_steps", 1),
        ("idql", "diffusion_steps", 1),
        ("spot", "latent_samples", 1),
        ("td3_bc", "policy_delay", 1),
        ("plas", "vae_updates", 1),
        ("moorl", "inner_steps", 1),
        ("nce_aux_reward", "steps_per_iteration", 1),
        ("three_regimes", "subset_size", 1),
        ("optimistic_forgetting", "n_models", 1),
        ("uni_o4", "gate_every", 1),
        ("wsrl", "learning_starts", 0),
        ("doc", "warmup_updates", 0),
        ("guda", "augment_seed", 0),
    ],
)
def test_a_size_is_not_too_small(name, argument, least):
    module, flag = load(name), f"--{argument.replace('_', '-')}"
    with pytest.raises(InputError, match=f"^{flag} must be at least {least}, not {least - 1}"):
        parse(module.Args, module.PRESETS, module.__doc__, [flag, str(least - 1)])
    parse(module.Args, module.PRESETS, module.__doc__, [flag, str(least)])


@pytest.mark.parametrize("flag", ["--hidden-dims", "--critic-hidden-dims"])
def test_a_layer_has_a_unit(flag):
    """None at all is a linear network, or as the others."""
    module = load("rebrac")
    for value in ("0", "-3"):
        with pytest.raises(InputError, match=f"^{flag} must be sizes of at least 1, unlike 8 {value}.$"):
            parse(module.Args, module.PRESETS, module.__doc__, [flag, "8", value])
    for values in ([], ["8", "1"]):
        parse(module.Args, module.PRESETS, module.__doc__, [flag, *values])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--expectile", "0.5", "1"), r"--expectile must lie in \(0, 1\), not \(0.5, 1.0\)."),
        (("--expectile", "0"), r"--expectile must lie in \(0, 1\), not 0.0."),
        (("--dropout", "1"), r"--dropout must lie in \[0, 1\), not 1.0."),
        (("--actor-lr", "0.001", "-0.001"), r"--actor-lr must be at least 0, not \(0.001, -0.001\)."),
    ],
)
def test_an_expectile_a_dropout_and_a_learning_rate_are_what_their_names_say(given, said):
    module = load("iql")
    with pytest.raises(InputError, match=f"^{said}$"):
        parse(module.Args, module.PRESETS, module.__doc__, [*given])
    parse(
        module.Args, module.PRESETS, module.__doc__, ["--expectile", "0.1", "0.9", "--dropout", "0", "--actor-lr", "0"]
    )


def test_discrete_actions_are_refused_by_a_continuous_algorithm(refused, cartpole):
    for name, more in (("td3_bc", []), ("bc", ["--head", "gaussian"])):
        assert "continuous" in refused(name, "--dataset", "cartpole.npz", "--env", "CartPole-v1", *more)


def test_an_online_script_needs_steps(refused):
    command = ["--env", "RunTest/Line-v0", "--out", "new", "--env-steps"]
    assert "--env-steps must be at least 1" in refused("sac", "0", command=command)
    assert "not registered" in refused("sac", "100", "--env", "RunTest/Lin-v0", command=command)


@pytest.mark.parametrize(
    "argv, word",
    [(["--batch-sze", "8"], "--batch-size"), (["--updates", "many"], "--updates"), (["--actor-lr"], "--actor-lr")],
)
def test_a_typo_in_a_flag_or_number_names_the_nearest(argv, word, refused):
    assert word in refused("bc", *argv)


@pytest.fixture
def anyones():
    """A folder outside pytest's own, which belong to one user; in the test the user is not root."""
    root, folder = os.geteuid() == 0, Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    os.seteuid(0) if root else None
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777)
    shutil.rmtree(folder)


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def stopped(out: Path, monkeypatch, after: int = 6) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, after, terminate)
        toy(out)


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("place", ["locked", "locked/run"])
def test_a_folder_that_cannot_be_written(place, mode, anyones):
    (anyones / "locked").mkdir()
    (anyones / "locked").chmod(mode)
    become_nobody()
    with pytest.raises(InputError, match="^Cannot write to .*Permission denied"):
        toy(anyones / place)


@pytest.mark.parametrize(
    "path, mode", [(".", 0o555), (".", 0o000), ("run.json", 0o000), ("checkpoint", 0o555), ("checkpoint", 0o000)]
)
def test_a_run_that_may_not_be_changed_is_not_resumed(path, mode, anyones, monkeypatch):
    out = anyones / "run"
    stopped(out, monkeypatch)
    for file in [out, *out.rglob("*")]:
        file.chmod(0o777)
    before = {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    read_header(out / "checkpoint" / "state.npz")  # zipfile imports a codec when it is first used
    (out / path).chmod(mode)
    become_nobody()
    if path == "run.json":  # it is written anew, and says nothing that the checkpoint does not
        toy(out, resume=True)
        return
    with pytest.raises(InputError, match="^Cannot write to .*Permission denied"):
        toy(out, resume=True)
    if os.getuid() == 0:
        os.seteuid(0)
    (out / path).chmod(0o777)
    after = {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"run.json", "metrics.csv"}  # the record says that the run has failed
    assert after["metrics.csv"].startswith(before["metrics.csv"])


def test_a_folder_that_is_locked_while_the_run_works(anyones):
    def lock(run):
        if run.done == 6:
            (anyones / "run" / "checkpoint").chmod(0o555)

    anyones.chmod(0o777)
    become_nobody()
    with pytest.raises(InputError, match="Cannot write to .* any more: Permission denied; mend that"):
        toy(anyones / "run", during=lock)
    assert read_header(anyones / "run" / "checkpoint" / "state.npz")["done"] == 4


@pytest.mark.parametrize("damage", ["one bit", "another size"])
def test_a_resume_that_is_refused_leaves_the_rows_beyond_the_checkpoint(damage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 6, kill, after=True)  # the checkpoint is of update 4
        toy(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "state.npz"
    if damage == "another size":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        np.savez(path, **arrays | {"[0]['count']": np.zeros((1, 5), np.float32)})
    else:
        with zipfile.ZipFile(path) as file:
            member = next(m for m in file.infolist() if "count" in m.filename)
            content = file.read(member)
        at = path.read_bytes().rindex(content[-4:])
        path.write_bytes(path.read_bytes()[: at + 3] + b"\x7f" + path.read_bytes()[at + 4 :])
    tables = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.csv")}
    assert tables["metrics.csv"].count(b"\n") == 4
    with pytest.raises(InputError, match="readable checkpoint|does not fit"):
        toy(tmp_path / "run", resume=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.csv")} == tables


def test_a_run_of_which_only_the_checkpoint_before_the_last_is_left_is_not_begun_anew(tmp_path, monkeypatch):
    """As between the two renamings that put it in the place of a damaged one."""
    stopped(tmp_path / "run", monkeypatch, after=10)
    (tmp_path / "run" / "checkpoint" / "state.npz").unlink()
    with pytest.raises(InputError, match="holds a run"):
        toy(tmp_path / "run")
    assert benchmark.state(benchmark.Job("toy", "toy", [], tmp_path / "run")) == "resume"
    toy(tmp_path / "whole")
    toy(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_record_that_cannot_be_read_is_not_overwritten(tmp_path):
    toy(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "run.json").write_text('{"stat')
    with pytest.raises(InputError, match="holds a run"):
        toy(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == '{"stat'


def test_a_table_that_is_of_no_run_is_not_overwritten(tmp_path):
    table = tmp_path / "mine" / "metrics.csv"
    table.parent.mkdir()
    table.write_text("weeks,of,work\n")
    with pytest.raises(InputError, match=r"holds a metrics.csv that is of no run here"):
        toy(tmp_path / "mine")
    assert table.read_text() == "weeks,of,work\n" and len(list(table.parent.iterdir())) == 1


def test_a_signal_between_two_looks_at_it_is_not_taken_for_saved(tmp_path, monkeypatch):
    passes = Run._passes

    def late(self, every, count):
        now = passes(self, every, count)
        if self.done == 6 and every == self.args.checkpoint_every:
            terminate()
        return now

    monkeypatch.setattr(Run, "_passes", late)
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", checkpoint_every=100)
    assert read_header(tmp_path / "run" / "checkpoint" / "state.npz")["done"] == 8


def test_another_dataset_under_the_same_name(refused, tmp_path):
    write_pendulum(tmp_path / "pendulum.npz", seed=1)
    err = refused("bc", "--out", "done", "--resume")
    assert "changed" in err and "pendulum.npz" in err


def test_a_finished_run_is_not_overwritten_where_its_checkpoint_was_not_kept(refused, tmp_path):
    """As in a clone of the repository: results/ holds tables and records only."""
    shutil.rmtree(tmp_path / "done" / "checkpoint")
    assert "holds a run" in refused("bc", "--out", "done")


def damaged(path: Path, damage: str) -> None:
    content, header = path.read_bytes(), read_header(path)
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files if k != "__header__"}
    kernel = next((k for k in arrays if "kernel" in k), "[0]['count']")
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "one bit":
        at = content.index(arrays[kernel].tobytes()) + 3
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        arrays[kernel] = arrays[kernel][..., :-1]
        if damage == "an array is missing":
            del arrays[kernel]
        np.savez(path, __header__=np.array(json.dumps(header)), **arrays)


@pytest.mark.parametrize(
    "damage, words",
    [
        ("truncated", ["not a readable checkpoint"]),
        ("empty", ["not a readable checkpoint"]),
        ("one bit", ["not a readable checkpoint"]),
        ("an array is missing", ["does not fit", "kernel"]),
        ("an array is smaller", ["does not fit", "kernel", "shape"]),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(damage, words, refused, tmp_path):
    damaged(tmp_path / "done" / "checkpoint" / "state.npz", damage)
    err = refused("bc", "--out", "done", "--resume")
    assert err.startswith("bc.py: ") and len(err.splitlines()) == 1, err
    assert all(w in err for w in words), err


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_used(damage, line_task, tmp_path, monkeypatch, capfd):
    """Stopped after update 10; the checkpoint of 8 stands in, its rows are cut to it, and the damaged file is kept."""
    out, last = tmp_path / "run", tmp_path / "run" / "checkpoint" / "state.npz"
    toy(tmp_path / "whole", line_task, seeds=3)
    at_step(monkeypatch, 10, terminate)
    with pytest.raises(Interrupted):
        toy(out, line_task, seeds=3)
    assert read_header(last)["done"] == 10 and read_header(last.with_name("previous.npz"))["done"] == 8
    if damage == "missing":
        last.unlink()
    else:
        damaged(last, damage)
        bytes_of_it = last.read_bytes()
    toy(out, line_task, seeds=3, resume=True)
    assert_same(out, tmp_path / "whole")
    assert f"{last} is damaged: the checkpoint before it is used." in capfd.readouterr().err
    kept = {path.name: path.read_bytes() for path in last.parent.iterdir()} | {"state.npz": b""}
    assert kept == {"state.npz": b""} | ({} if damage == "missing" else {"damaged.npz": bytes_of_it})


def test_where_both_checkpoints_are_damaged_the_run_is_refused(tmp_path, monkeypatch):
    out, last = tmp_path / "run", tmp_path / "run" / "checkpoint" / "state.npz"
    at_step(monkeypatch, 10, terminate)
    with pytest.raises(Interrupted):
        toy(out)
    for path in (last, last.with_name("previous.npz")):
        path.write_bytes(b"no archive")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="state.npz is not a readable checkpoint"):
        toy(out, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_killed_between_keeping_a_checkpoint_and_writing_the_next_goes_on(tmp_path, monkeypatch):
    """The two names are one file then; a file system without links keeps the last only."""
    out, link = tmp_path / "run", os.link

    def linked(source, target):
        link(source, target)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "link", linked)
        toy(out)
    checkpoint = out / "checkpoint"
    assert os.path.samefile(checkpoint / "state.npz", checkpoint / "previous.npz")
    with monkeypatch.context() as patch:
        at_step(patch, 10, terminate)
        with pytest.raises(Interrupted):
            toy(out, resume=True)
    assert read_header(checkpoint / "previous.npz")["done"] == 8 and len(list(checkpoint.iterdir())) == 2

    def unable(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", unable)
    toy(out, resume=True)
    assert record(out)["status"] == "finished" and [p.name for p in checkpoint.iterdir()] == ["state.npz"]


def test_a_refused_resume_gives_signals_back_and_opens_nothing(tmp_path, monkeypatch):
    toy(tmp_path / "run")
    fake = fake_wandb(monkeypatch)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(InputError, match="--eval-episodes"):
        toy(tmp_path / "run", eval_episodes=16, resume=True, wandb="offline")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not fake.runs


# ------------------------------------------------------------------------------- presets and arguments

KEYS = {
    "hopper": {"batch_size": 1, "actor_lr": 0.5},
    "hopper-medium": {"batch_size": 2},
    "hopper-medium-expert": {"batch_size": 3, "hidden_dims": (7,)},
    "walker2d-medium": {"batch_size": 4},
    "pen-": {"batch_size": 5},
}


@pytest.mark.parametrize(
    "dataset, key",
    [
        ("hopper-random", "hopper"),
        ("hopper-medium", "hopper-medium"),
        ("hopper-medium-expert", "hopper-medium-expert"),
        ("mujoco/hopper/medium-v0", "hopper-medium"),
        ("data/hopper_medium_expert-v2.hdf5", "hopper-medium-expert"),
        ("hopper_medium-v2.hdf5", "hopper-medium"),
        ("Hopper_Medium.npz", "hopper-medium"),
        ("runs/hopper-medium-expert/walker2d_medium-v2.hdf5", "walker2d-medium"),
        ("runs-with-hopper/halfcheetah_medium-v2.hdf5", None),
        ("halfcheetah-medium", None),
        ("D4RL/pen/human-v2", "pen-"),
        ("D4RL/pointmaze/open-v2", None),  # not o-pen-
    ],
)
def test_the_longest_name_contained_in_the_datasets_picks_the_preset(dataset, key):
    assert preset_for(dataset, KEYS) == key
    assert preset_for(dataset, dict(reversed(KEYS.items()))) == key


def test_the_command_line_wins_over_the_preset_and_the_preset_over_the_defaults():
    cls = load("bc").Args

    def settings(*argv):
        args = parse(cls, KEYS, "doc", ["--dataset", "hopper-medium-expert", *argv])
        return args.batch_size, args.hidden_dims, args.actor_lr

    assert settings() == (3, (7,), 3e-4)
    assert settings("--batch-size", "9") == (9, (7,), 3e-4)
    assert settings("--batch-size", "256") == (256, (7,), 3e-4)  # the default, but asked for
    assert settings("--preset", "none") == (256, (256, 256), 3e-4)
    assert settings("--preset", "hopper") == (1, (256, 256), 0.5)
    assert settings("--preset", "hopper", "--actor-lr", "1") == (1, (256, 256), 1.0)
    with pytest.raises(InputError, match="hopper"):
        settings("--preset", "hoper")


def test_several_values_of_a_float_become_a_tuple():
    def lr(*argv):
        args = parse(load("bc").Args, {}, "doc", ["--actor-lr", *argv])
        assert args.batch_size == (8 if "8" in argv else 256)
        return args.actor_lr

    assert lr("1e-3") == 1e-3 and isinstance(lr("1"), float)
    assert lr("1e-3", "3e-4", "0") == (1e-3, 3e-4, 0.0)
    assert parse(load("td3_bc").Args, {}, "doc", ["--alpha", "2", "-1"]).alpha == (2.0, -1.0)
    assert lr("1e-3", "3e-4", "--batch-size", "8") == (1e-3, 3e-4)


def test_every_lane_gets_its_own_value(tmp_path):
    run = toy(tmp_path / "run", seeds=2, seed=3, rate=(0.5, 0.25))
    assert run.lane_args.rate.tolist() == [0.5, 0.5, 0.25, 0.25]
    assert [(r["lane"], r["seed"], r["rate"]) for r in rows(tmp_path / "run", "metrics")[:4]] == [
        ("0", "3", "0.5"), ("1", "4", "0.5"), ("2", "3", "0.25"), ("3", "4", "0.25"),
    ]  # fmt: skip
    assert record(tmp_path / "run")["lanes"][2] == {"lane": 2, "seed": 3, "rate": 0.25}


# ---------------------------------------------------------------------------------------- the schedule


def test_intervals_are_counted_in_updates(line_task, tmp_path):
    """The chunk is 2; a row of metrics is the mean over the 4 updates since the last."""
    run = toy(tmp_path / "run", line_task, log_every=4, eval_every=6, eval_episodes=3)
    assert run.chunk == 2
    assert [(r["update"], float(r["m"])) for r in rows(tmp_path / "run", "metrics")] == [
        ("4", 1.5), ("8", 5.5), ("12", 9.5),
    ]  # fmt: skip
    returns = rows(tmp_path / "run", "returns")
    assert [(r["update"], r["episode"]) for r in returns] == [(u, e) for u in ("6", "12") for e in "012"]
    assert all(r["env_step"] == "0" for r in returns)


@pytest.mark.parametrize("eval_every, at", [(4, ["4", "8", "10"]), (10, ["10"]), (1000, ["10"])])
def test_the_last_update_is_always_evaluated_logged_and_saved(eval_every, at, line_task, tmp_path):
    every = {"eval_every": eval_every, "log_every": eval_every, "checkpoint_every": eval_every}
    toy(tmp_path / "run", line_task, updates=10, eval_episodes=1, **every)
    assert [r["update"] for r in rows(tmp_path / "run", "returns")] == at
    assert [r["update"] for r in rows(tmp_path / "run", "metrics")][-1] == "10"
    assert read_header(tmp_path / "run" / "checkpoint" / "state.npz")["done"] == 10


def test_checkpoints_are_written_when_they_are_due(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(shared.checkpoint, "save_tree", lambda path, tree, header, lanes: saved.append(header["done"]))
    toy(tmp_path / "run", updates=20, checkpoint_every=6)
    assert saved == [6, 12, 18, 20]


def test_the_length_of_a_chunk_does_not_change_the_result(folder, bc, tmp_path):
    with np.load(bc / "checkpoint" / "state.npz") as file:
        expected = {k: file[k] for k in file.files if "actor" in k}
    load("bc").main(job(folder, "bc", tmp_path / "run", log_every=4))
    with np.load(tmp_path / "run" / "checkpoint" / "state.npz") as file:
        for name, value in expected.items():
            np.testing.assert_allclose(file[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_keys_of_updates_depend_on_seed_and_update_only(tmp_path, monkeypatch):
    def keys(out, **changes):
        seen, chunks = [], Run.chunks

        def patched(self):
            for keys in chunks(self):
                seen.append(np.asarray(jax.random.key_data(keys)))
                yield keys

        with monkeypatch.context() as patch:
            patch.setattr(Run, "chunks", patched)
            toy(tmp_path / out, **changes)
        return np.concatenate(seen, axis=1)  # [L, updates, 2]

    twos, fours = keys("a", seeds=2, seed=1), keys("b", seeds=2, seed=1, log_every=4)
    np.testing.assert_array_equal(twos, fours)
    np.testing.assert_array_equal(twos[1], keys("c", seed=2)[0])
    assert len(np.unique(twos.reshape(-1, 2), axis=0)) == 24


@pytest.mark.parametrize("broken", ["replace", "savez"])
def test_a_crash_while_a_checkpoint_is_written_leaves_the_previous_one(broken, tmp_path, monkeypatch):
    calls, replace, savez = [], os.replace, np.savez

    def crashing_replace(source, target):
        if Path(target).name == "state.npz":
            calls.append(target)
            if len(calls) == 2:
                raise Killed
        replace(source, target)

    def crashing_savez(file, **arrays):
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half of it")
            raise Killed
        savez(file, **arrays)

    toy(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if broken == "replace":
            patch.setattr(os, "replace", crashing_replace)
        else:
            patch.setattr(np, "savez", crashing_savez)
        toy(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "state.npz"
    assert read_header(path)["done"] == 4
    assert load_tree(path, ({"count": np.zeros(1)}, None))[0]["count"] == 4
    assert record(tmp_path / "run")["status"] == "failed"
    toy(tmp_path / "run", resume=True)
    assert read_header(path)["done"] == 12


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    lanes = jax.sharding.NamedSharding(make_mesh(2), jax.sharding.PartitionSpec("lane"))
    one = {
        "w": jax.device_put(jnp.arange(6.0).reshape(2, 3), lanes), "n": np.arange(2),
        "key": jax.device_put(jax.random.split(jax.random.key(3), 2), lanes), "none": None,
    }  # fmt: skip
    save_tree(tmp_path / "state.npz", one, {"done": 1})
    other = load_tree(tmp_path / "state.npz", jax.tree.map(lambda x: x * 0 if x.dtype != one["key"].dtype else x, one))
    assert jax.tree.structure(other) == jax.tree.structure(one)
    np.testing.assert_array_equal(other["w"], one["w"])
    np.testing.assert_array_equal(other["n"], one["n"])
    np.testing.assert_array_equal(jax.random.key_data(other["key"]), jax.random.key_data(one["key"]))
    assert other["w"].sharding == one["w"].sharding
    assert read_header(tmp_path / "state.npz") == {"done": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


# ------------------------------------------------------------------------------------------- the files


def test_the_record_of_a_run(folder, bc):
    r = record(bc)
    assert r["algorithm"] == "bc" and r["file"] == "algorithms/offline/bc.py" and r["status"] == "finished"
    assert r["args"]["batch_size"] == 8 and r["args"]["actor_lr"] == 3e-4 and r["args"]["seeds"] == 3
    assert r["task"]["id"] == str(folder / "pendulum.npz") and len(r["task"]["hash"]) >= 16
    assert r["task"]["env"]["id"] == "RunTest/Line-v0" and r["task"]["env"]["max_episode_steps"] == 5
    assert "normalize_obs" in r["task"]["options"] and len(r["task"]["obs_mean"]) == 3
    assert r["lanes"] == [{"lane": i, "seed": i} for i in range(3)]
    assert r["versions"]["jax"] == jax.__version__ and r["versions"]["numpy"] == np.__version__
    assert r["hardware"]["devices"] == min(3, DEVICES) and r["hardware"]["cores"] >= 1 and r["hardware"]["device"]
    assert r["compile_s"] > 0 and 0 < r["wall_s"] < 600 and r["peak_memory_mib"] > 1
    assert r["steps_done"] == 12 and r["diverged"] == {}
    assert (bc / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_arguments_are_recorded_after_the_preset(folder, tmp_path, monkeypatch):
    module = load("bc")
    out = tmp_path / "a run's"
    argv = ["--dataset", str(folder / "pendulum.npz"), *TINY[2:], "--out", str(out)]
    argv = [a for a in argv if a not in ("--batch-size",)]  # leave the batch size to the preset
    argv.remove("8")
    monkeypatch.setattr(sys, "argv", [module.__file__, *argv])
    monkeypatch.setattr(module, "main", lambda args: toy_with(args, out))
    launch(module.main, module.Args, {"pendulum": {"batch_size": 5}}, module.__doc__)
    assert record(out)["args"]["batch_size"] == 5
    assert shlex.split(record(out)["command"])[1:] == argv  # to be typed again


def toy_with(args, out: Path) -> None:
    """Opens and closes a run with these arguments."""
    with Run(__file__, args, Task("toy", "hash", PENDULUM), lambda agent, obs, key, args: obs):
        assert record(out)["status"] == "running"


def test_padded_lanes_are_trained_but_neither_saved_nor_reported(bc):
    with np.load(bc / "checkpoint" / "state.npz") as file:
        assert {file[k].shape[0] for k in file.files if "kernel" in k} == {3}
    for name, columns in (("metrics", {"actor_loss", "mse", "wall_s"}), ("returns", {"return", "length", "score"})):
        table = rows(bc, name)
        assert {r["lane"] for r in table} == {r["seed"] for r in table} == {"0", "1", "2"}
        assert columns | {"lane", "seed", "update", "env_step"} <= table[0].keys()
        assert all(np.isfinite(float(r[c])) for r in table for c in columns - {"score"})


def test_a_failure_is_recorded(tmp_path):
    def fail(run):
        if run.done == 6:
            assert record(tmp_path / "run")["status"] == "running"
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        toy(tmp_path / "run", during=fail)
    assert record(tmp_path / "run")["status"] == "failed"


def test_the_default_folder_is_named_after_algorithm_and_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(shared.run, "ROOT", tmp_path)
    run = toy("", Task("D4RL/some/task-v2", "hash", PENDULUM))
    assert run.out.parent == tmp_path / "results" / "runs" / "test_run" / "D4RL-some-task-v2"
    assert record(run.out)["status"] == "finished"


# ---------------------------------------------------------------------------------------------- wandb


def fake_wandb(monkeypatch, fail: str = "") -> types.ModuleType:
    """A wandb whose runs keep what they are given, and fail at `fail`: init, second, log or finish."""
    fake = types.ModuleType("wandb")
    fake.runs = []

    def init(**options):
        if fail == "init" or (fail == "second" and fake.runs):
            raise OSError("no network")
        one = types.SimpleNamespace(options=options, rows=[], finished=False)

        def log(row):
            if fail == "log" and len(one.rows) == 2:
                raise OSError("no network")
            one.rows.append(row)

        def finish():
            if fail == "finish":
                raise OSError("no network")
            one.finished = True

        one.log, one.finish = log, finish
        fake.runs.append(one)
        return one

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_one_run_per_lane(line_task, tmp_path, monkeypatch):
    fake = fake_wandb(monkeypatch)
    toy(tmp_path / "run", line_task, seeds=3, rate=(1.0, 2.0), wandb="offline", eval_episodes=2)
    assert len(fake.runs) == 6 and all(r.finished for r in fake.runs)
    assert len({r.options["name"] for r in fake.runs}) == 6 and len({r.options["group"] for r in fake.runs}) == 1
    for lane, one in enumerate(fake.runs):
        config = one.options["config"]
        assert one.options["mode"] == "offline"
        assert (config["lane"], config["seed"], config["rate"]) == (lane, lane % 3, 1.0 + lane // 3)
        logged = [(r["update"], r["m"]) for r in one.rows if "m" in r]
        assert logged == [(u, u - 1.5 + lane) for u in (2, 4, 6, 8, 10, 12)]
        mean = np.mean([float(r["return"]) for r in rows(tmp_path / "run", "returns") if r["lane"] == str(lane)][-2:])
        assert one.rows[-1]["update"] == 12 and np.isclose(one.rows[-1]["return"], mean, rtol=1e-4)


@pytest.mark.parametrize("fail, opened", [("init", 0), ("second", 1), ("log", 2), ("finish", 2)])
def test_wandb_may_fail(fail, opened, tmp_path, monkeypatch, capfd):
    fake = fake_wandb(monkeypatch, fail)
    run = toy(tmp_path / "run", seeds=2, wandb="online")
    assert len(fake.runs) == opened
    assert record(tmp_path / "run")["status"] == "finished" and run.done == 12
    assert len(rows(tmp_path / "run", "metrics")) == 2 * 6
    assert capfd.readouterr().err.count("wandb failed") == 1


def test_wandb_is_not_even_imported_when_off(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    toy(tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "finished"


# ---------------------------------------------------------------------------------------------- lanes


@pytest.mark.parametrize("lanes, devices", [(1, 1), (2, 2), (4, 2), (4, 1)])
def test_over_lanes_is_vmap(lanes, devices):
    if devices > DEVICES:
        pytest.skip(f"there is only {DEVICES} device")
    x, y, shared_by_all = np.arange(lanes * 3.0).reshape(lanes, 3), np.ones((lanes, 2, 3)), np.arange(3.0)

    def f(x, y, z):
        return {"dot": y @ x + z.sum(), "mean": x.mean()}

    mesh = jax.make_mesh((devices,), ("lane",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    out = over_lanes(f, mesh, in_axes=(0, 0, None))(x, y, shared_by_all)
    expected = jax.vmap(f, (0, 0, None))(x, y, shared_by_all)
    assert out["mean"].shape == (lanes,) and out["dot"].shape == (lanes, 2)
    for name in out:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-6)
        assert len(out[name].sharding.device_set) == devices


def test_donate_gives_up_the_first_argument_only():
    mesh = make_mesh(2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lane"))
    for donate in (True, False):
        x, y = (jax.device_put(np.ones((4, 3), np.float32), sharding) for _ in range(2))
        out = over_lanes(lambda x, y: x + y, mesh, in_axes=(0, 0), donate=donate)(x, y)
        assert x.is_deleted() == donate and not y.is_deleted() and out.sum() == 24


def test_a_mesh_has_no_more_devices_than_lanes():
    assert [make_mesh(lanes).devices.size for lanes in (1, 2, 3)] == [min(lanes, DEVICES) for lanes in (1, 2, 3)]


def test_metrics_have_one_value_per_lane(logged):
    assert len(logged) == 6
    for metrics in logged:
        assert all(m.shape == (PADDED,) and np.isfinite(m).all() for m in metrics.values())
        assert all((m[2:] == m[2]).all() and m[0] != m[2] for m in metrics.values())  # the last lane again


def test_a_metric_that_is_not_known_yet_has_its_column_and_is_no_divergence(tmp_path, monkeypatch, capfd):
    """nan until a whole row's chunks know it; the number of another lane that is none is one."""
    log = Run.log
    later = lambda run: None if run.done < 6 else np.arange(len(run.init_keys)) / (run.done < 10)  # noqa: E731
    monkeypatch.setattr(Run, "log", lambda run, agent, metrics: log(run, agent, metrics | {"later": later(run)}))
    with np.errstate(all="ignore"):
        toy(tmp_path / "run", log_every=4, checkpoint_every=2, seeds=2)
    assert [r["later"] for r in rows(tmp_path / "run", "metrics")] == ["nan", "nan", "nan", "nan", "nan", "inf"]
    assert record(tmp_path / "run")["diverged"] == {"0": 12, "1": 12}


@pytest.mark.parametrize(("last", "said"), [(10.9, False), (12.0, True), (-12.0, True)])
def test_a_run_says_when_its_values_had_not_settled(last, said, tmp_path, capsys):
    rows = [
        f"{lane},{lane},{update},0,1.0,{q}" for update, q in ((1, 0), (2, 5), (3, 10), (4, last)) for lane in (0, 1)
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(["lane,seed,update,env_step,wall_s,q", *rows]) + "\n")
    none = np.empty((2, 0))
    summarise(tmp_path, "toy", None, [{"seed": 0}, {"seed": 1}], [], none, none, False)
    assert (f"the mean value went from 10 to {last:.3g}: it had not settled" in capsys.readouterr().out) == said


def test_a_table_takes_no_rows_of_other_columns(tmp_path):
    """Neither of the same run nor of one that goes on: they would stand below another header."""
    rows = [[0, 0, 1.0]]
    for tables in (Tables(tmp_path, []), Tables(tmp_path, [])):
        tables.append("before", ["lane", "seed", "loss"], rows)
        with pytest.raises(InputError, match="has the columns lane, seed, loss, not lane, seed, other"):
            tables.append("before", ["lane", "seed", "other"], rows)
        tables.close()
    assert (tmp_path / "before.csv").read_text() == "lane,seed,loss\n0,0,1\n0,0,1\n"


def test_a_metric_of_a_swept_arguments_name_is_refused(tmp_path):
    """Readers by name would take the one for the other: lanes of one setting had as many settings as values."""
    with pytest.raises(InputError, match="metrics.csv would have two columns 'alpha': name the metric unlike"):
        Tables(tmp_path, ["alpha"]).append("metrics", ["lane", "seed", "loss", "alpha"], [[0, 0, 1.0, 2.0]])
    assert not (tmp_path / "metrics.csv").stat().st_size


@pytest.mark.parametrize("reference", [None, {"min": 0.0, "max": 2.0}, {"min": 0.0, "max": 1.0, "of": "success"}])
def test_the_table_of_tasks_says_what_it_shows(reference, capsys):
    task = Task("toy", "hash", PENDULUM, reference=reference, tasks=(2, 5))
    returns = np.array([[1.0, 2.0, 3.0, 4.0]])
    print_summary("toy", task, [{"seed": 0}], returns, 50.0 * returns, None)
    heading, row = capsys.readouterr().out.splitlines()[-2:]
    what = "return" if reference is None else "success (%)" if "of" in reference else "score"
    assert heading.split("  ")[0] == what and heading.split()[-4:] == ["task", "2", "task", "5"]
    assert row.split() == ["toy", *(("2.0", "3.0") if reference is None else ("100.0", "150.0"))]
