"""What must not go wrong: files that were made to break the loaders, full disks, and SIGKILL at any moment.

In CI a short form; `make test-faults` runs the whole: 10,000 malformed files, and every script of KILLED killed again
and again (`--whole-faults`).
"""

import ast
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from conftest import ROOT, load, write_pendulum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_run import assert_same, job, outcome, record, rows, toy

from shared import untrusted
from shared.checkpoint import load_tree, read_header
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.evaluation import Policies, load_run

RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def malformed(examples: int):
    """A property test of `examples` files in CI, of twenty times as many with --whole-faults."""
    count = examples * (20 if os.environ.get("WHOLE_FAULTS") else 1)  # from conftest.py
    return settings(max_examples=count, deadline=None, suppress_health_check=RELAXED, derandomize=True, database=None)


def test_the_number_of_examples(whole_faults):
    assert malformed(3).max_examples == (60 if whole_faults else 3)


def test_the_whole_is_whole_on_workers_too():
    """pytest-xdist's workers have another command line than the process that started them."""
    one = f"{__file__}::{test_the_number_of_examples.__name__}"
    words = [sys.executable, "-m", "pytest", "-n", "1", "--whole-faults", one]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


# ------------------------------------------------------------------------------- files of every kind

NAMES = ["observations", "obs", "actions", "rewards", "terminals", "timeouts", "masks", "next_observations", "x"]
FLAGS = ["dones", "not_done", "is_first", "is_last", "is_terminal", "step_type", "discount", "valids", "mask", "reset"]
COUNTS = ["episode_ends", "episode_ids", "episode_lengths", "terminated", "truncated"]
NAMES += [*FLAGS, *COUNTS, "obs/arm", "data/demo_0/obs/arm", "data/demo_0/actions", "data/demo_1/obs", "observations_0"]
NAMES += ["actions_0", "rewards_0", "terminated_0", "data/demo_1/actions"]
GIVEN = st.sampled_from(["terminal=dones", "ignore=mask", "end=reset", "obs=x", "action=x", "reward", "q=x"])
KINDS = [np.float32, np.float64, np.int64, np.uint8, np.bool_, np.complex64, "U3", "S3", "M8[s]", "f4,i4"]
ANY = st.sampled_from([np.dtype(kind) for kind in KINDS]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
)
ROWS = st.integers(1, 6)


@st.composite
def logs(draw):
    """Arrays that are almost a dataset: most have a common number of rows."""
    n = draw(ROWS)
    some = st.lists(st.sampled_from(NAMES), max_size=8, unique=True)
    some |= st.lists(st.sampled_from(FLAGS + COUNTS), max_size=4, unique=True).map(["obs", "actions"].__add__)
    shapes = st.sampled_from([(n,), (n, 1), (n, 3), (n, 0), (n, 2, 2)])
    numbers = st.floats(allow_nan=True, allow_infinity=True, width=64) | st.integers(-3, 3).map(float)
    flags = arrays.arrays(np.int64, st.just(n), elements=st.integers(0, 1))
    log = {}
    for name in draw(some):
        of_rows = flags if name in FLAGS + COUNTS else arrays.arrays(np.float64, shapes, elements=numbers)
        log[name] = draw(ANY | of_rows | of_rows)
    return log


def loads_or_says_why(path: Path | str, **options) -> None:
    try:
        data = load_dataset(str(path), **options)
        assert isinstance(data, Dataset) and data.last[-1] and data.last[data.terminal].all()
        assert len(data.obs) == data.task.data["rows"] and np.isfinite(data.obs).all()
    except InputError as error:
        assert str(error) and "\n" not in str(error), error


@malformed(150)
@given(
    log=logs(),
    kind=st.sampled_from(["npz", "hdf5"]),
    env=st.sampled_from(["pendulum", "x", "antmaze-medium-navigate-v0"]),
    fields=st.lists(GIVEN, max_size=2),
    length=st.integers(0, 3),
    discrete=st.booleans(),
)
def test_arrays_of_any_shape_and_type(log, kind, env, fields, length, discrete, tmp_path):
    path = tmp_path / f"{env}.{kind}"
    if kind == "npz":
        np.savez(path, **log)
    else:
        with h5py.File(path, "w") as file:
            for name, value in log.items():
                try:
                    file[name] = value
                except TypeError:  # what HDF5 has no type for
                    file.create_group(name)
                except ValueError:  # an array is where a group should be
                    pass
    with np.errstate(all="ignore"):
        loads_or_says_why(path, fields=tuple(fields), episode_length=length, discrete=discrete)


def mutated(content: bytes, changes) -> bytes:
    """`content` with bytes replaced, cut out, doubled, or cut off at the end."""
    content = bytearray(content)
    for where, what, value in changes:
        at = int(where * len(content))
        if what == "set":
            content[at : at + 1] = bytes([value])
        elif what == "cut":
            del content[at : at + value]
        elif what == "double":
            content[at:at] = content[at : at + value]
        else:
            del content[at:]
    return bytes(content)


CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "set", "set", "cut", "double", "end"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """Of each format a file that loads."""
    folder, r = tmp_path_factory.mktemp("good"), np.random.default_rng(0)
    write_pendulum(folder / "pendulum.npz", n=20)
    with np.load(folder / "pendulum.npz") as file, h5py.File(folder / "pendulum.hdf5", "w") as other:
        for name in file.files:
            other.create_dataset(name, data=file[name], compression="gzip" if r.random() < 0.5 else None)
        np.savez_compressed(folder / "compressed.npz", **file)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@malformed(200)
@given(changes=CHANGES, name=st.sampled_from(["pendulum.npz", "compressed.npz", "pendulum.hdf5"]))
def test_files_of_which_bytes_are_wrong(changes, name, good, tmp_path):
    path = tmp_path / name
    path.write_bytes(mutated(good[name], changes))
    loads_or_says_why(path)


@pytest.mark.parametrize("name", ["pendulum.npz", "pendulum.hdf5"])
def test_files_that_a_fuzzer_makes_by_coverage(name, good, whole_faults, tmp_path):
    pytest.importorskip("atheris")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes(good[name])
    runs = 10_000 if whole_faults else 500
    script = [
        sys.executable,
        ROOT / "tests" / "fuzz_loaders.py",
        Path(name).suffix,
        tmp_path,
        f"-runs={runs}",
        "-seed=1",
    ]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0 and f"Done {runs} runs" in done.stderr, done.stderr[-3000:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("Pendulum-v1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "kwargs", "n"]), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A Minari dataset of two episodes of Pendulum-v1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        env = minari.DataCollector(gym.make("Pendulum-v1", max_episode_steps=5))
        for seed in (0, 1):
            env.reset(seed=seed)
            while not env.step(env.action_space.sample())[3]:
                pass
        return Path(env.create_dataset("test/pendulum-v0", algorithm_name="random").spec.data_path)


@malformed(75)
@given(
    changes=st.none() | CHANGES,
    fields=st.dictionaries(
        st.sampled_from(["env_spec", "eval_env_spec", "action_space", "total_episodes", "ref_min_score"]), JSON
    ),
    spec=st.dictionaries(st.sampled_from(["id", "kwargs", "max_episode_steps", "entry_point"]), JSON),
)
def test_minari_directories_that_are_wrong(changes, fields, spec, stored, tmp_path):
    shutil.copytree(stored, tmp_path / "data", dirs_exist_ok=True)
    if changes:
        content = (stored / "main_data.hdf5").read_bytes()
        (tmp_path / "data" / "main_data.hdf5").write_bytes(mutated(content, changes))
    metadata = json.loads((stored / "metadata.json").read_text())
    told = json.dumps({**json.loads(metadata["env_spec"]), **spec})
    (tmp_path / "data" / "metadata.json").write_text(json.dumps({**metadata, "env_spec": told, **fields}))
    loads_or_says_why(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of bc."""
    folder = tmp_path_factory.mktemp("trained")
    write_pendulum(folder / "pendulum.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_RL_CACHE", str(folder / "cache"))
        load("bc").main(job(folder, "bc", folder / "run"))
    return folder / "run"


@malformed(75)
@given(
    changes=st.none() | CHANGES,
    header=st.dictionaries(st.sampled_from(["args", "task", "settings", "algorithm", "done"]), JSON),
    said=st.none() | JSON | st.dictionaries(st.just("file"), JSON),
)
def test_runs_that_are_wrong(changes, header, said, trained, tmp_path):
    path = tmp_path / "checkpoint" / "state.npz"
    path.parent.mkdir(exist_ok=True)
    whole = (trained / "checkpoint" / "state.npz").read_bytes()
    if changes:
        path.write_bytes(mutated(whole, changes))
    else:
        with np.load(trained / "checkpoint" / "state.npz") as file:
            kept = {name: file[name] for name in file.files if name != "__header__"}
        told = read_header(trained / "checkpoint" / "state.npz") | header
        np.savez(path, __header__=np.array(json.dumps(told)), **kept)
    text = (trained / "run.json").read_text()
    (tmp_path / "run.json").write_text(text if said is None else json.dumps(said))
    try:
        assert isinstance(load_run(tmp_path), Policies)
    except InputError as error:
        assert str(error)


# ------------------------------------------------------------------- what is refused before it is read


def npy(shape: str, kind: str = "<f8") -> bytes:
    """The header of an array file, whatever it claims."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("(1000000000000, 3)", "claims 24,000,000,000,000 bytes, more than the file can hold"),
        (f"({2**62}, {2**62})", "more than the file can hold"),
        ("(-5, 3)", "cannot be read"),
    ],
)
def test_an_array_that_claims_too_much_takes_no_memory(shape, words, tmp_path, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was read"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("observations.npy", npy(shape) + bytes(100))
        archive.writestr("actions.npy", npy("(3, 1)") + bytes(24))
    with pytest.raises(InputError, match=words):
        load_dataset(str(tmp_path / "x.npz"))


def test_a_header_that_claims_too_much_is_not_read(tmp_path, monkeypatch):
    """Deflated, 64 MiB of it are a few kilobytes."""
    read, length = [], 64 * 2**20
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b" " * length)
    zip_read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: read.append(n) or zip_read(self, n))
    for reader in (untrusted.read_npz, untrusted.npz_shapes):
        with pytest.raises(ValueError, match="header claims 67,108,864 bytes"):
            reader(tmp_path / "x.npz")
    assert read and min(read) >= 0 and max(read) < 100


def test_strings_which_one_place_may_hold_for_many_rows_are_not_read(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("observations", (3,), dtype=h5py.string_dtype())[:] = ["x" * 1000, "y", "z"]
    with pytest.raises(ValueError, match="holds Python objects"):
        untrusted.read_hdf5(tmp_path / "x.hdf5", ["observations"])
    untrusted.check_hdf5(tmp_path / "x.hdf5")  # Minari's own files have some


def test_zeros_that_were_compressed_well_are_read(tmp_path):
    """The ratio is deflate's own limit, not a guess."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, observations=np.zeros((200_000, 3)), actions=np.zeros((200_000, 1)))
    assert 3 * 8 * 200_000 / path.stat().st_size > 500
    assert len(untrusted.read_npz(path)["observations"]) == 200_000
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("observations", data=np.zeros((200_000, 3)), compression="gzip", compression_opts=9)
    assert len(untrusted.read_hdf5(tmp_path / "x.hdf5", ["observations"])["observations"]) == 200_000


@pytest.mark.parametrize("read", [lambda p: untrusted.read_hdf5(p, ["a/observations"]), untrusted.check_hdf5])
def test_hdf5_arrays_of_which_nothing_is_stored_are_refused(read, tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("a/observations", (10**13, 3), chunks=(1024, 3), dtype="f4")
    with pytest.raises(ValueError, match="claims 120,000,000,000,000 bytes, more than the file can hold"):
        read(tmp_path / "x.hdf5")


def test_more_than_the_machine_has_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", observations=np.zeros((1000, 3)), actions=np.zeros((1000, 1)))
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.raises(InputError, match="this machine has 0.0 GiB"):
        load_dataset(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("kind", ["soft", "external", "raw", "virtual"])
def test_hdf5_files_that_lead_elsewhere_are_refused(kind, tmp_path):
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["observations"] = np.zeros((5, 3))
    (tmp_path / "secret.raw").write_bytes(bytes(5 * 3 * 4))
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["actions"] = np.zeros((5, 1))
        if kind == "soft":
            file["observations"] = h5py.SoftLink("/actions")
        elif kind == "external":
            file["observations"] = h5py.ExternalLink("secret.hdf5", "observations")
        elif kind == "raw":
            file.create_dataset("observations", (5, 3), "f4", external=[(str(tmp_path / "secret.raw"), 0, 60)])
        else:
            layout = h5py.VirtualLayout((5, 3), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "observations", (5, 3))
            file.create_virtual_dataset("observations", layout)
    with pytest.raises(InputError, match="link to another place|lies in other files"):
        load_dataset(str(tmp_path / "x.hdf5"))
    with pytest.raises(ValueError, match="link to another place|lies in other files"):
        untrusted.check_hdf5(tmp_path / "x.hdf5")


def test_a_group_that_holds_itself_is_walked_once(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["a/b"] = np.zeros(3)
        file["a/a"] = file["a"]
    untrusted.check_hdf5(tmp_path / "x.hdf5")


LIBRARIES = {
    "environments",  # datasets/environments
    "PIL",
    "chex",
    "diffuser",  # by results/planner_speed.py only
    "distrax",  # these two by results/peer_speed.py only
    "omegaconf",
    "filelock",  # by results/speed.py only
    "flax",
    "gymnasium",
    "gymnasium_robotics",
    "h5py",
    "imageio",
    "jax",
    "matplotlib",
    "minari",
    "moocore",
    "mujoco",
    "numpy",
    "optax",
    "ott",
    "loralib",  # by results/parity/lamo.py only
    "torch_ac",  # by results/parity/il_procgen.py only
    "utils",  # of the reference, by results/parity/cde.py only
    "offlinerlkit",  # by results/kit_references.py and its comparisons only
    "ogbench",
    "pandas",
    "minigrid",  # by datasets/environments/go_to_door.py only, where it is there
    "pgx",  # by datasets/environments/breakout.py only, where it is there
    "ray",
    "safetensors",
    "scipy",
    "torch",
    "tqdm",
    "transformers",  # by results/references.py only
    "tyro",
    "wandb",
}
STANDARD_LIBRARY = {
    *("argparse", "ast", "collections", "concurrent", "contextlib", "csv", "ctypes", "dataclasses", "datetime"),
    *("difflib", "errno", "fcntl", "functools", "hashlib", "importlib", "inspect", "io", "itertools", "json", "math"),
    *(
        "operator",
        "uuid",
        "os",
        "pathlib",
        "platform",
        "queue",
        "re",
        "resource",
        "shlex",
        "shutil",
        "signal",
        "statistics",
        "subprocess",
        "sys",
    ),
    *("copy", "multiprocessing", "unittest", "tempfile", "threading", "time", "types", "typing", "warnings", "zipfile"),
}
SOURCES = [
    path for folder in ("shared", "algorithms", "datasets", "results") for path in ROOT.glob(f"{folder}/**/*.py")
]


def imported(tree: ast.AST) -> set[str]:
    """The packages that a source file imports."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def unpickling(tree: ast.AST) -> list[str]:
    """Readers of arrays that may make objects, and any other name that speaks of it."""
    found = []
    for node in ast.walk(tree):
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and function.attr in ("load", "read_array", "fromfile"):
            refused = [isinstance(k.value, ast.Constant) and k.value.value is False for k in node.keywords]
            named = [k.arg == "allow_pickle" for k in node.keywords]
            found += [] if any(r and n for r, n in zip(refused, named)) else [ast.unparse(node)]
        for name in (getattr(node, field, None) for field in ("id", "attr", "name", "module")):
            found += [name] if isinstance(name, str) and "pickle" in name else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_unpickles(path):
    """Only known libraries are imported, none of which reads objects unless told to; and none is told to."""
    tree = ast.parse(path.read_text())
    own = {"shared", "results", *(p.stem for p in path.parent.glob("*.py"))}
    assert imported(tree) <= LIBRARIES | STANDARD_LIBRARY | own
    assert not unpickling(tree)


@pytest.mark.parametrize("source", ["np.load(path)", "np.load(path, allow_pickle=yes)", "pandas.read_pickle(path)"])
def test_what_unpickles_is_found(source):
    assert unpickling(ast.parse(source))


# -------------------------------------------------------------------------------------- a full disk


class FullDisk:
    """Every write to files of a kind fails from the `after`-th on, the first of them after half of its bytes."""

    def __init__(self, monkeypatch, suffix: str, after: int):
        self.left, real_open = after, Path.open

        def opened(path, mode="r", *args, **kwargs):
            file = real_open(path, mode, *args, **kwargs)
            return self.wrap(file) if path.suffix == suffix and mode in ("ab", "wb") else file

        monkeypatch.setattr(Path, "open", opened)

    def wrap(self, file):
        disk, real = self, file.write

        class Wrapped:
            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, content):
                disk.left -= 1
                if disk.left < 0:
                    real(bytes(content)[: len(content) // 2 + 3])
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(content)

        return Wrapped()


@pytest.mark.parametrize("suffix, after", [*((".csv", n) for n in range(6)), *((".tmp", n) for n in range(1, 40, 5))])
def test_a_disk_that_fills_up_leaves_the_checkpoint_and_whole_rows(suffix, after, tmp_path, monkeypatch):
    """One sentence; then, with space, the run goes on to what it would have been."""
    toy(tmp_path / "whole", seeds=2)
    with monkeypatch.context() as patch:
        FullDisk(patch, suffix, after)
        try:
            toy(tmp_path / "run", seeds=2)
            full = False
        except InputError as error:
            full = True
            assert "No space left on device" in str(error) and "\n" not in str(error)
    for path in (tmp_path / "run").rglob("*"):
        assert path.suffix != ".tmp", "a half-written file was left"
        if path.suffix == ".csv":
            content = path.read_text()
            assert content == "" or content.endswith("\n")
            assert not content or len(rows(path.parent, path.stem)) % 2 == 0, "a step has rows of some lanes only"
    if full and (tmp_path / "run" / "checkpoint" / "state.npz").exists():
        assert load_tree(tmp_path / "run" / "checkpoint" / "state.npz", ({"count": np.zeros(2)}, None))
        toy(tmp_path / "run", seeds=2, resume=True)
        assert_same_rows(tmp_path / "run", tmp_path / "whole")
    elif full:
        shutil.rmtree(tmp_path / "run")
        toy(tmp_path / "run", seeds=2)
    assert record(tmp_path / "run")["status"] == "finished"


def assert_same_rows(out: Path, other: Path) -> None:
    without = [[{k: v for k, v in r.items() if k != "wall_s"} for r in rows(o, "metrics")] for o in (out, other)]
    assert without[0] == without[1]


# ------------------------------------------------------------------------------------------ SIGKILL

# Script, its own arguments, and the log whose growth says that it is working.
KILLED = {
    "bc, one lane": ("bc", "--updates 8000 --seeds 1"),
    "td3_bc, eight lanes": ("td3_bc", "--updates 3000 --seeds 8"),
    "iql_finetune, one lane": ("iql_finetune", "--offline-updates 1000 --env-steps 1000 --seeds 1"),
    "rlpd, eight lanes": ("rlpd", "--env-steps 400 --seeds 8 --utd 2 --n-critics 2 --learning-starts 50"),
}


def command(name: str, folder: Path, out: str) -> list[str]:
    script, arguments = KILLED[name]
    small = "--log-every 100 --eval-every 200 --checkpoint-every 100 --eval-episodes 1 --batch-size 8 --hidden-dims 8 8"
    if "offline" in arguments:
        small += " --offline-eval-every 200"
    words = [sys.executable, load(script).__file__, "--dataset", str(folder / "pendulum.npz")]
    return [*words, *arguments.split(), *small.split(), "--out", out]


def kill_at_random(name: str, times: int, folder: Path, r: random.Random) -> int:
    """`times` SIGKILLs of working processes, each resumed; every run that so came to its end is compared.

    A kill that came too late, after the end, is not counted: another run begins. Returns the number of runs.
    """
    whole = subprocess.run(command(name, folder, "whole"), cwd=folder, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    longest = record(folder / "whole")["wall_s"]
    run = folder / "run"
    kills = runs = 0
    while True:
        checkpoint = run / "checkpoint" / "state.npz"
        if not checkpoint.exists():
            shutil.rmtree(run, ignore_errors=True)
        more = ["--resume"] if checkpoint.exists() else []
        process = subprocess.Popen(
            [*command(name, folder, "run"), *more],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if kills < times:
            started = (run / "run.json").exists() and (run / "run.json").stat().st_mtime_ns
            while process.poll() is None:  # its imports are not what is to be hit
                path = run / "run.json"
                if path.exists() and path.stat().st_mtime_ns != started:
                    break
                time.sleep(0.01)
            time.sleep(r.uniform(0, longest / 2))
            process.kill()
        _, err = process.communicate(timeout=300)
        assert process.returncode in (-signal.SIGKILL, 0), err
        if (run / "run.json").exists():
            json.loads((run / "run.json").read_text())  # never half-written
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        runs += 1
        assert_same(run, folder / "whole")
        assert outcome(run)[1], "there are rows to compare"
        if kills == times:
            return runs
        shutil.rmtree(run)


@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(name, whole_faults, tmp_path):
    """Bit by bit the same agent, buffer and rows; nothing doubled, nothing lost."""
    if not whole_faults and name != "bc, one lane":
        pytest.skip("in make test-faults")
    write_pendulum(tmp_path / "pendulum.npz")
    times = 20 if whole_faults else 2
    runs = kill_at_random(name, times, tmp_path, random.Random(len(name)))
    print(f"{name}: killed {times} times in {runs} runs; nothing was lost")
