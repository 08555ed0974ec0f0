"""Shared by all tests: two virtual CPU devices, private dataset and cache folders, tiny datasets."""

import atexit
import csv
import functools
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["WANDB_MODE"] = "disabled"
CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="compiled-")
"""Of this session: its workers and the scripts that they start compile no program twice."""
if CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]
jax.config.update("jax_num_cpu_devices", 2)

from shared.arguments import GoalArgs
from shared.transitions import Batch

QUICK_COMPILES = (
    "--xla_backend_optimization_level=0 --xla_cpu_max_isa=AVX --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
"""Tests compile much and run little: XLA takes less time for these than for programs that run fast. With AVX and no
more there are no fused multiply-adds: level 0 fuses what is computed twice in one place and not in another, and then
the gradient of a maximum finds none (NaN)."""

ALGORITHMS = sorted(p for p in (ROOT / "algorithms").glob("*/*.py") if p.stem != "__init__")


def load(name: str):
    """The module of an algorithm file, by name."""
    path = next(p for p in ALGORITHMS if p.stem == name)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@functools.cache
def of_today() -> set[str]:
    """Names of files that are new or changed since the last commit: `make test` takes the long tests of their names."""
    where = ["algorithms", "shared", "datasets", "tests"]
    command = ["git", "status", "--porcelain", "-uall", "--", *where]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {Path(line[3:]).stem.removeprefix("test_") for line in found.stdout.splitlines()}


def timeless(table: Path) -> list[dict]:
    """The rows of a CSV, without their times."""
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(table.open())]


@pytest.fixture(autouse=True)
def private_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's datasets or cache."""
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_module():
    """Compiled programs are let go when there are many: each holds several of the process's 65,530 memory maps."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 4_000:
        jax.clear_caches()
        gc.collect()


def write_pendulum(path: Path, n: int = 300, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> str:
    """A D4RL-like npz of the shapes of Pendulum-v1 with random numbers; 30-step episodes.

    `scale`, `shift`: of the observations.
    """
    r = np.random.default_rng(seed)
    timeouts = np.arange(n) % 30 == 29
    frames = r.normal(size=(n + 1, 3)).astype(np.float32)
    next_obs = np.where(timeouts[:, None], r.normal(size=(n, 3)).astype(np.float32), frames[1:])
    np.savez(
        path,
        observations=scale * frames[:-1] + np.float32(shift),
        actions=r.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=r.normal(size=n).astype(np.float32),
        terminals=np.zeros(n, bool),
        timeouts=timeouts,
        next_observations=scale * next_obs + np.float32(shift),
    )
    return str(path)


@pytest.fixture
def pendulum(tmp_path) -> str:
    return write_pendulum(tmp_path / "pendulum.npz")


def write_goals(path: Path, n: int = 300, seed: int = 0) -> str:
    """An npz of states of two numbers and actions of two, without rewards; episodes of 30 rows, cut by a time limit."""
    r = np.random.default_rng(seed)
    frames = r.normal(size=(n + 1, 2)).astype(np.float32)
    np.savez(
        path,
        observations=frames[:-1],
        next_observations=frames[1:],
        actions=r.uniform(-1, 1, (n, 2)).astype(np.float32),
        timeouts=np.arange(n) % 30 == 29,
    )
    return str(path)


@pytest.fixture
def goals(tmp_path) -> str:
    return write_goals(tmp_path / "goals.npz")


LOCK, SOFT_LOCK = "combination-lock-h10-trajectory", "continuous-combination-lock-h10-trajectory"
TABULAR_LOCK = "tabular-combination-lock-h8-trajectory"


@pytest.fixture
def data_for(pendulum, goals, cartpole) -> Callable[[str], str]:
    """An algorithm's name -> a tiny dataset of its default's kind: a lock's, mazes', goals, CartPole's, Pendulum's."""
    import make  # of datasets/

    def data(name: str) -> str:
        usual = getattr(load(name).Args, "dataset", "")
        if issubclass(load(name).Args, GoalArgs):
            return goals
        if usual.startswith("cartpole"):
            return cartpole
        if usual.startswith(("point-mazes", "point-guarded", "hidden-team")):
            with jax.debug_key_reuse(False):  # worlds fold numbers into one key
                make.make(usual, steps=160)
            return usual
        if "combination-lock" not in usual:
            return pendulum
        lock = {"continuous": SOFT_LOCK, "tabular": TABULAR_LOCK}.get(usual.split("-")[0], LOCK)
        make.make(lock, steps=160)
        return lock

    return data


@pytest.fixture
def cartpole(tmp_path) -> str:
    r = np.random.default_rng(0)
    n, path = 300, tmp_path / "cartpole.npz"
    np.savez(
        path,
        observations=r.normal(size=(n, 4)).astype(np.float32),
        actions=r.integers(0, 2, n),
        rewards=np.ones(n, np.float32),
        terminals=np.arange(n) % 20 == 19,
        next_observations=r.normal(size=(n, 4)).astype(np.float32),
    )
    return str(path)


@pytest.fixture
def batch() -> Batch:
    """Five transitions of 3 observations and 2 actions, two of them terminal."""
    r = np.random.default_rng(0)
    return Batch(
        obs=r.normal(size=(5, 3)).astype(np.float32),
        action=r.uniform(-0.9, 0.9, (5, 2)).astype(np.float32),
        reward=r.normal(size=5).astype(np.float32),
        terminal=np.float32([0, 1, 0, 0, 1]),
        next_obs=r.normal(size=(5, 3)).astype(np.float32),
        next_action=r.uniform(-0.9, 0.9, (5, 2)).astype(np.float32),
    )


def pytest_addoption(parser):
    parser.addoption("--whole-faults", action="store_true", help="the whole of tests/test_faults.py (make test-faults)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What is being written has its long tests taken, before others are left out."""
    names = of_today() & {path.stem for path in [*ALGORITHMS, *(ROOT / "shared").glob("*.py")]}
    names -= {"lanes"}  # the contracts of all algorithms, an hour
    for item in items:
        if item.path.stem.removeprefix("test_") in names:
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "long"]


def pytest_collection_finish(session):
    """Tracing makes many objects and few cycles: looking for these took up to a seventh of a contract's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_configure(config):
    if config.getoption("--whole-faults"):
        os.environ["WHOLE_FAULTS"] = "1"  # hypothesis' settings are made when a test file is imported
    if config.option.markexpr != "learning" and jax.__version_info__ < (0, 12):  # later ones may not know these flags
        older = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), QUICK_COMPILES, older])


@pytest.fixture
def whole_faults(request) -> bool:
    return request.config.getoption("--whole-faults")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a dataset, and of runs on it that several tests of a module look at."""
    folder = tmp_path_factory.mktemp("runs")
    write_pendulum(folder / "pendulum.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_RL_CACHE", str(folder / "cache"))
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        yield folder
