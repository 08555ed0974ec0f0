"""The contracts of lanes, for every algorithm file: a new one is covered by being there, before it is committed."""

import ast
import csv
import dataclasses
import json
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT, load, of_today
from jax._src.config import persistent_cache_min_compile_time_secs as least_seconds_of_the_cache
from jax.experimental.key_reuse._core import check_key_reuse
from jobs import SHORT, learning_rate, own_sizes, small, train

import shared.run
from shared.evaluation import load_run
from shared.lanes import lane_settings, over_lanes
from shared.run import Run
from shared.task import Spec

NAMES = [p.stem for p in ALGORITHMS]
SLOW = {"fowm"}
"""Short files whose programs are not: a world model and a planner."""
SHORTEST = {
    min((p.stat().st_size, p.stem) for p in ALGORITHMS if p.parent == q.parent and p.stem not in SLOW)[1]
    for q in ALGORITHMS
}
"""One file of each family."""


TAKEN = SHORTEST | of_today()
EVERY = [name if name in TAKEN else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
"""`make test` takes one file of each family, and those that are being written; `make test-all` takes all."""


@pytest.fixture
def job(monkeypatch, data_for, tmp_path, capfd):
    """Trains lanes of any seeds and settings in one job; their agents at the start and at the end, and what it said."""

    def run(name: str, lanes: list[dict], copied: tuple[int, int] | None = None, **changes):
        """`copied` (i, j): after the start, lane j goes on with the agent of lane i and with its own keys."""
        first, init = {}, Run.init

        def start(run: Run, init_lane):
            agent = init(run, init_lane)
            first.update({jax.tree_util.keystr(p): np.array(x) for p, x in jax.tree_util.tree_leaves_with_path(agent)})
            if copied:
                i, j = copied
                rows = np.arange(len(jax.tree.leaves(agent)[0]))
                rows[j] = i
                agent = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[rows], x.sharding), agent)
            return agent

        def checked(run: Run, f, in_axes, donate: bool = False, vmap: bool = False):
            f = jax.jit(f)  # traced once for both
            program, mapped = over(run, f, in_axes, donate, vmap), over_lanes(f, run.mesh, in_axes, layout="map")
            seen = []

            def call(*operands):
                if not seen:
                    seen.append(check_key_reuse(mapped, *operands))
                return program(*operands)

            return call

        over = Run.over_lanes
        monkeypatch.setattr(Run, "init", start)
        if changes["layout"] == "vmap":  # the check takes a part of a batch of keys for the whole
            monkeypatch.setattr(Run, "over_lanes", checked)
        monkeypatch.setattr(shared.run, "lane_settings", lambda args: lanes)
        out, data = tmp_path / f"{len(lanes)}-{changes['layout']}", data_for(name)
        env = own_sizes(name).get("env", SHORT if "pendulum" in data else "")
        with jax.debug_key_reuse(changes["layout"] == "map"), least_seconds_of_the_cache(1e9):  # no one asks again
            last = train(name, data, out, env=env, **changes)
        monkeypatch.setattr(Run, "init", init)
        monkeypatch.setattr(Run, "over_lanes", over)
        assert len(load_run(out).settings) == len(lanes)
        record = json.loads((out / "run.json").read_text())
        assert record["layout"] == changes["layout"]
        assert record["lanes"] == [{"lane": i, **lane} for i, lane in enumerate(lanes)]
        return first, last, record["diverged"], capfd.readouterr().err

    return run


def kernels(agents: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The weights of the networks, or the tables of who has none [L, ...], of those that are not constant."""
    own = {k: v for k, v in agents.items() if "opt" not in k and v.size}
    found = [v for k, v in own.items() if "kernel" in k] or [v for v in own.values() if v.ndim > 2]
    return [v for v in found if all(np.ptp(lane) > 0 for lane in v)]


def lane(name: str, seed: int, rate: float = 1e-3, tau: float = 0.01) -> dict:
    return {"seed": seed, learning_rate(name): rate} | ({"tau": tau} if "tau" in fields(name) else {})


def fields(name: str) -> set[str]:
    return {f.name for f in dataclasses.fields(load(name).Args)}


def steps(name: str) -> dict:
    """Two calls of each phase; a delayed policy's last step must not be the critics' alone."""
    calls = {"updates": 8, "env_steps": 12, "log_every": 4, "eval_every": 1000, "checkpoint_every": 1000}
    delay = {"policy_delay": 1} if "env_steps" in fields(name) else {}
    return {**calls, "hidden_dims": (8,), "discount": 0.9, **delay}


@pytest.mark.parametrize("name", EVERY)
def test_the_contracts_of_lanes(name, job):
    """One job serves all contracts, since compiling costs more than running. It is vmapped, as on an accelerator.

    - A lane is the same wherever it stands, to the last bit. The number of lanes need not divide the devices.
    - Lanes of different seeds share nothing, neither the networks they begin with nor the data they draw.
    - No key is used twice, and the mapped layout can be traced.
    - A lane that diverges is named, and leaves the others alone to the last bit.
    - Targets are the networks themselves with tau = 1, and follow them more slowly with less.
    - The policies of the run load, also where arrays of the agent are as long as the data.
    """
    follows = "tau" in fields(name)
    lanes = [lane(name, 5), lane(name, 6), lane(name, 5, tau=1.0), lane(name, 7, np.inf), lane(name, 5)]
    first, last, diverged, said = job(name, lanes, copied=(0, 1), layout="vmap", **steps(name))
    assert [*diverged] == ["3"]
    assert f"Lane 3 (seed=7, {learning_rate(name)}=inf" in said
    for path, value in last.items():
        np.testing.assert_array_equal(value[0], value[4], err_msg=path)
    assert any("kernel" in path for path in first) <= bool(kernels(first))  # a table may begin as a constant
    assert all(np.abs(v[0] - v[1]).max() > 1e-6 for v in kernels(first))
    learned = kernels({k: v[:2] for k, v in last.items()})
    assert any(np.abs(v[0] - v[1]).max() > 1e-6 for v in learned)  # they begin with one agent: these are their data

    followed = {}  # {field: whether any of its arrays is behind}
    for path, target in last.items():
        if path.startswith("[0].target_") and target[0].size > 1 and follows:
            own = path.replace(".target_", ".meta_" if "[0].meta_critic" in " ".join(last) else ".")
            np.testing.assert_allclose(target[2], last[own][2], rtol=1e-6, atol=1e-7, err_msg=path)
            field = path.split("[")[1]
            followed[field] = followed.get(field, False) or np.abs(target[0] - last[own][0]).max() > 0
    assert all(followed.values()) and bool(followed) == follows


@pytest.mark.parametrize("name", EVERY)
def test_a_lane_is_the_same_in_the_other_layout_and_beside_others(name, job):
    """To float tolerance, and to the last bit within the mapped job, too."""
    _, vmapped, _, _ = job(name, [lane(name, 5), lane(name, 6), lane(name, 7)], layout="vmap", **steps(name))
    lanes = [lane(name, 8), lane(name, 5), lane(name, 6), lane(name, 9, np.inf), lane(name, 5)]
    _, mapped, diverged, _ = job(name, lanes, layout="map", **steps(name))
    assert [*diverged] == ["3"]
    for path, value in mapped.items():
        np.testing.assert_array_equal(value[1], value[4], err_msg=path)
        np.testing.assert_allclose(value[1], vmapped[path][0], rtol=1e-4, atol=1e-6, err_msg=path)
    assert any(np.abs(v[1] - v[2]).max() > 1e-6 for v in kernels({k: v[:3] for k, v in mapped.items()}))


def test_a_key_that_is_used_twice_in_a_step_of_a_lane_is_found():
    mesh = jax.make_mesh((2,), ("lane",), (jax.sharding.AxisType.Auto,))

    def lane(key, twice: bool):
        def step(total, key):
            a, b = (key, key) if twice else jax.random.split(key)
            return total + jax.random.normal(a) * jax.random.normal(b), None

        return jax.lax.scan(step, 0.0, jax.random.split(key, 3))[0]

    keys = jax.random.split(jax.random.key(0), 4)
    check_key_reuse(over_lanes(partial(lane, twice=False), mesh, in_axes=(0,), layout="map"), keys)
    with pytest.raises(jax.errors.KeyReuseError):
        check_key_reuse(over_lanes(partial(lane, twice=True), mesh, in_axes=(0,), layout="map"), keys)


def test_arrays_without_elements_stay_outside_of_the_devices_program():
    """XLA of JAX 0.11 ends with a segmentation fault where a `shard_map` takes or returns one, as a world's state."""
    mesh = jax.make_mesh((2,), ("lane",), (jax.sharding.AxisType.Auto,))
    program = over_lanes(
        lambda x, none, shared: {"none": none, "sum": x + none.sum() + shared.sum()}, mesh, (0, 0, None)
    )
    operands = np.arange(8.0, dtype=np.float32).reshape(4, 2), np.zeros((4, 0), np.float32), np.zeros((0, 3), np.int32)
    found = program(*operands)
    assert found["none"].shape == (4, 0) and found["none"].dtype == np.float32
    np.testing.assert_array_equal(found["sum"], operands[0])
    (mapped,) = [e for e in jax.make_jaxpr(program)(*operands).jaxpr.eqns[0].params["jaxpr"].eqns if "shard" in str(e)]
    assert [v.aval.shape for v in (*mapped.invars, *mapped.outvars)] == [(4, 2), (4, 2)]


@pytest.mark.parametrize("name", ["td3_bc", "rlpd"])
def test_a_lane_is_the_same_seed_and_setting_alone(name, pendulum, tmp_path):
    rate = learning_rate(name)
    together = train(name, pendulum, tmp_path / "job", seeds=3, seed=5, env=SHORT, **{rate: (1e-3, 1e-2)})
    alone = train(name, pendulum, tmp_path / "alone", seed=6, env=SHORT, **{rate: 1e-2})
    for path, value in alone.items():
        np.testing.assert_allclose(together[path][4], value[0], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_decomposes_no_batch_of_matrices(name):
    """LAPACK on a batch waits in JAX's CPU thread pool for threads of that pool: on two cores it hung for ever."""
    module = load(name)
    init = partial(
        module.init, args=small(name, "", ""), spec=Spec((11,), 3, False, (-1.0,) * 3, (1.0,) * 3, goal_shape=(11,))
    )
    text = jax.jit(init).lower(jax.random.key(0)).as_text()
    operands = re.findall(r"@lapack_\w+\(.*?: \(tensor<([\dx]+)xf32>", text)
    assert not [shape for shape in operands if shape.count("x") > 1]
    if name in ("iql", "cql"):  # orthogonal initialisation: the expression above does find what there is
        assert operands


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_the_house_form(name):
    """Docstring with paper, deviations and commands; help under every argument; the functions in order."""
    path = next(p for p in ALGORITHMS if p.stem == name)
    tree = ast.parse(path.read_text())
    doc = ast.get_docstring(tree)
    assert doc.split(":")[0].strip() and "Deviations from" in doc
    assert not re.search(r"[^\\]\\\n", path.read_text())  # a command of two lines would be shown as one
    assert "arXiv" in doc and f"python algorithms/{path.parent.name}/{name}.py" in doc
    args = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Args")
    for field, text in zip(args.body[::2], args.body[1::2], strict=True):
        assert isinstance(field, ast.AnnAssign) and isinstance(text.value, ast.Constant), ast.unparse(field)
    order = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    parts = [p for p in ("Args", "Agent", "init", "update", "act", "train", "main") if p in order]
    assert [n for n in order if n in parts] == parts and {"Args", "Agent", "init", "update", "act", "main"} <= {*parts}
    imported = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any(m and m.startswith("algorithms") for m in imported)


def test_settings_are_the_grid_of_swept_values_times_seeds():
    args = load("td3_bc").Args(seeds=2, seed=7, alpha=(1.0, 4.0), tau=(0.1, 0.2, 0.3))
    lanes = lane_settings(args)
    assert len(lanes) == 12 and lanes[0] == {"seed": 7, "alpha": 1.0, "tau": 0.1}
    assert lanes[3] == {"seed": 8, "alpha": 1.0, "tau": 0.2} and lanes[-1] == {"seed": 8, "alpha": 4.0, "tau": 0.3}


def test_rows_on_disk_name_every_lane(pendulum, tmp_path):
    train("bc", pendulum, tmp_path / "run", seeds=2, actor_lr=(1e-3, 1e-2), eval_episodes=3)
    rows = list(csv.DictReader((tmp_path / "run" / "returns.csv").open()))
    assert len(rows) == 4 * 3
    assert [(r["lane"], r["seed"], r["actor_lr"]) for r in rows[::3]] == [
        ("0", "0", "0.001"), ("1", "1", "0.001"), ("2", "0", "0.01"), ("3", "1", "0.01"),
    ]  # fmt: skip
    metrics = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [r["update"] for r in metrics] == ["2"] * 4 + ["4"] * 4


def test_the_compiled_program_does_not_communicate(pendulum):
    module = load("td3_bc")
    mesh = jax.make_mesh((2,), ("lane",), (jax.sharding.AxisType.Auto,))
    f = over_lanes(lambda x, shared: jax.numpy.tanh(x @ shared), mesh, in_axes=(0, None))
    text = f.lower(np.ones((4, 3, 3), np.float32), np.ones((3, 3), np.float32)).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
    assert module.Args().policy_delay == 2


ON_DEVICES = """
import sys
from pathlib import Path

sys.path.insert(0, "{tests}")
import conftest
import jax

jax.config.update("jax_num_cpu_devices", {count})
import test_lanes
from shared.online import Interaction
from shared.run import Run

over_lanes, programs = Run.over_lanes, []


def read(run, *args, **kwargs):
    program = over_lanes(run, *args, **kwargs)

    def call(*operands):
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(operands)):
            programs.append(program.lower(*operands).compile().as_text())
        return program(*operands)

    return call


def read_steps(self, *args, **kwargs):
    init(self, *args, **kwargs)
    for name in ("_step", "_scan"):

        def call(*operands, step=getattr(self, name), **static):
            steps.append(step.lower(*operands, **static).compile().as_text())
            return step(*operands, **static)

        setattr(self, name, call)


Run.over_lanes, init, steps = read, Interaction.__init__, []
Interaction.__init__ = read_steps
test_lanes.train("{name}", "{dataset}", Path("{out}"), seeds=6, seed=3)
assert len(jax.devices()) == {count} and len(programs) > 3
assert bool(steps) == {interacts}
programs += steps
words = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "send(", "recv(")
assert not [word for word in words for text in programs if word in text]
assert {count} == 1 or any("num_partitions={count}" in text for text in programs)
"""


@pytest.mark.parametrize("name", ["td3_bc", "rlpd"])
def test_four_devices_compute_what_one_does_and_tell_each_other_nothing(name, pendulum, tmp_path):
    """Six lanes, padded to eight on four devices; every program of the job is read, also interaction's."""
    ends = []
    for count in (1, 4):
        out = tmp_path / str(count)
        words = {"tests": ROOT / "tests", "count": count, "name": name, "dataset": pendulum, "out": out}
        words["interacts"] = name == "rlpd"
        code = ON_DEVICES.format(**words)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "run.json").read_text())["hardware"]["devices"] == count
        with np.load(out / "checkpoint" / "state.npz") as file:
            arrays = {k: file[k] for k in file.files if k != "__header__"}
        returns = list(csv.DictReader((out / "returns.csv").open()))
        ends.append((arrays, returns))
    (one, rows), (four, rows_4) = ends
    assert [(r["lane"], r["seed"]) for r in rows_4] == [(r["lane"], r["seed"]) for r in rows] and len(rows) >= 6
    np.testing.assert_allclose(
        [float(r["return"]) for r in rows_4], [float(r["return"]) for r in rows], rtol=1e-3
    )  # forces add up over 200 steps
    assert one.keys() == four.keys()
    for path, value in one.items():
        if path.startswith("[0]"):
            assert len(four[path]) == 6  # the lanes that fill up the devices are not saved
            np.testing.assert_allclose(four[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
