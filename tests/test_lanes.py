"""The contracts of lanes, for every algorithm file that exists: a new file is covered by being there."""

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
from conftest import ALGORITHMS, ROOT, load

from shared.arguments import float_fields
from shared.lanes import lane_settings, over_lanes
from shared.task import Spec

NAMES = [p.stem for p in ALGORITHMS]


def small(name: str, dataset: str, out, **changes):
    """A tiny job's Args: small networks, small batches, few updates."""
    cls = load(name).Args
    fields = {f.name for f in dataclasses.fields(cls)}
    values = {
        "dataset": dataset, "updates": 4, "log_every": 2, "eval_every": 4, "eval_episodes": 1, "checkpoint_every": 4,
        "out": str(out), "batch_size": 8, "hidden_dims": (8, 8), "n_actions": 2, "n_critics": 3, "n_samples": 2,
        "gap_samples": 2, "latent_samples": 2, "value_samples": 2, "actor_hidden_dims": (8, 8),
        "vae_hidden_dims": (8, 8), "vae_updates": 2, "time_dim": 4, "solver_steps": 2,
        "n_candidates": 2, "n_finalists": 2, "target_start": 0, "target_every": 1,
        # interaction
        "env": "Pendulum-v1", "env_steps": 8, "learning_starts": 4, "utd": 2 if name != "moorl" else 1,
        "inner_steps": 2, "offline_updates": 4, "offline_eval_every": 4,
        # the combination lock
        "horizon": 10, "episodes_per_step": 2, "critic_updates": 2,
        # PPO after offline stages
        "pretrain_updates": 4, "critic_per_clone": 2, "critic_hidden_dims": (8, 8), "value_hidden_dims": (8, 8),
        "model_hidden_dims": (8, 8), "n_actors": 2, "n_models": 2, "rollout_length": 3, "rollout_starts": 4,
        "gate_every": 2, "steps_per_iteration": 8 if name == "hnpg" else 4, "minibatch_size": 2, "epochs": 2,
    } | changes  # fmt: skip
    if "env_steps" not in fields or "lock" in dataset:
        values["env"] = ""
    return cls(**{k: v for k, v in values.items() if k in fields})


def train(name: str, dataset: str, out, **changes) -> dict[str, np.ndarray]:
    """Runs `main` and returns the checkpoint's agent: {path in the tree: [L, ...]}."""
    load(name).main(small(name, dataset, out, **changes))
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k.startswith("[0]")}


def learning_rate(name: str) -> str:
    return next(f for f in float_fields(load(name).Args) if f.endswith(("_lr", "learning_rate")))


@pytest.mark.parametrize("name", NAMES)
def test_the_contracts_of_lanes(name, data_for, tmp_path, capfd):
    """One test, since compiling a job costs more than running it: three jobs serve all contracts.

    - A lane is the same seed and setting alone; the number of lanes need not divide the devices.
    - Lanes of different seeds share nothing.
    - No key is used twice.
    - A lane that diverges is named, and leaves the others alone to the last bit.
    - Targets are the networks themselves with tau = 1, and follow them more slowly with less.
    """
    data, rate, steps = data_for(name), learning_rate(name), {"updates": 8, "env_steps": 12, "discount": 0.9}
    fields = {f.name for f in dataclasses.fields(load(name).Args)}
    follows = {"tau": (0.01, 1.0)} if "tau" in fields else {}
    steps |= {"tau": 0.01} if follows else {}
    if {"policy_delay", "env_steps"} <= fields:
        steps["policy_delay"] = 1  # else the last step is the critics' alone
    job = train(name, data, tmp_path / "job", seeds=3, seed=5, **steps | {rate: (1e-3, 1e-2)} | follows)
    with jax.debug_key_reuse(True):
        alone = train(name, data, tmp_path / "alone", seed=6, **steps | {rate: 1e-2})
    settings = json.loads((tmp_path / "job" / "run.json").read_text())["lanes"]

    def lanes(**wanted) -> list[int]:
        return [s["lane"] for s in settings if all(s[k] == v for k, v in wanted.items())]

    slow = {"tau": 0.01} if follows else {}
    (lane,) = lanes(seed=6, **{rate: 1e-2}, **slow)
    for path, value in alone.items():
        np.testing.assert_allclose(job[path][lane], value[0], rtol=1e-5, atol=1e-6, err_msg=path)
    kernels = [v for k, v in job.items() if "kernel" in k and "opt" not in k]
    for v in kernels:
        for other in (*lanes(seed=5), *lanes(seed=7)):
            assert np.abs(v[lane] - v[other]).max() > 1e-6

    followed = 0
    for path, target in job.items():
        if path.startswith("[0].target_") and target[0].size > 1 and follows:
            own = path.replace(".target_", ".meta_" if "[0].meta_critic" in " ".join(job) else ".")
            at_once, slowly = lanes(tau=1.0, **{rate: 1e-3}), lanes(tau=0.01, **{rate: 1e-3})
            np.testing.assert_allclose(target[at_once], job[own][at_once], rtol=1e-6, atol=1e-7, err_msg=path)
            moved = np.abs(target[slowly] - job[own][slowly]).max()
            followed += moved > 0
    assert followed or not follows

    sick = train(name, data, tmp_path / "sick", seeds=3, seed=5, **steps | {rate: (1e-3, 1e38)} | follows)
    well, ill = lanes(**{rate: 1e-3}), lanes(**{rate: 1e-2})
    for path, value in job.items():
        np.testing.assert_array_equal(value[well], sick[path][well], err_msg=path)
    record = json.loads((tmp_path / "sick" / "run.json").read_text())
    assert sorted(record["diverged"]) == sorted(map(str, ill))
    said = capfd.readouterr().err
    assert all(f"Lane {i} (seed={settings[i]['seed']}, " in said for i in ill) and f"{rate}=1e+38" in said


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_decomposes_no_batch_of_matrices(name):
    """LAPACK on a batch waits in JAX's CPU thread pool for threads of that pool: on two cores it hung for ever."""
    module = load(name)
    init = partial(module.init, args=small(name, "", ""), spec=Spec((11,), 3, False, (-1.0,) * 3, (1.0,) * 3))
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
            assert len(four[path]) == 8
            np.testing.assert_allclose(four[path][:6], value, rtol=1e-5, atol=1e-6, err_msg=path)
