"""Tiny jobs for tests: small networks, few updates, short episodes, for every algorithm file by its name."""

import ast
import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT, load

import shared.record
from shared.arguments import float_fields

SHORT = "PendulumShort-v0"
"""Pendulum whose episodes end after eight steps."""
SHORT_JAX = "PendulumShortJax-v0"
"""The same, written in JAX."""
if SHORT not in gymnasium.registry:
    gymnasium.register(SHORT, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=8)
    gymnasium.register(SHORT_JAX, "gymnasium.envs.phys2d.pendulum:PendulumJaxEnv", max_episode_steps=8)

COMMON = {
    "updates": 4, "log_every": 2, "eval_every": 4, "eval_episodes": 1, "checkpoint_every": 4, "env_steps": 8,
    "offline_updates": 4, "offline_eval_every": 4, "batch_size": 8, "hidden_dims": (8, 8),
    "latent_dim": 8, "representation_dim": 4, "layout": "vmap",
}  # fmt: skip
"""Sizes of what many files share; an algorithm's own stand in its test file, as SMALL. Vmapped, as on an accelerator:
a job of the command line is mapped on CPUs, and so is one of each family in test_lanes.py."""


def own_sizes(name: str) -> dict:
    """SMALL in tests/<family>/test_<name>.py, a dict of plain values; without one the common sizes will do."""
    family = next(p for p in ALGORITHMS if p.stem == name).parent.name
    path = ROOT / "tests" / family / f"test_{name}.py"
    assert path.exists(), f"{name} has no tests: {path.relative_to(ROOT)} is missing"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SMALL":
            return ast.literal_eval(node.value)
    return {}


def small(name: str, dataset: str, out, **changes):
    """A tiny job's Args; `changes` that the file has no arguments for are left out."""
    cls = load(name).Args
    fields = {f.name for f in dataclasses.fields(cls)}
    own = own_sizes(name)
    assert own.keys() <= fields, f"SMALL of {name}: no such argument as {min(own.keys() - fields)}"
    env = "Pendulum-v1" if "env_steps" in fields and "lock" not in dataset else ""
    values = {**COMMON, "dataset": dataset, "out": str(out), "env": env, **own, **changes}
    return cls(**{k: v for k, v in values.items() if k in fields})


def agents(out: Path) -> dict[str, np.ndarray]:
    """The agents of a run's checkpoint: {path in the tree: [L, ...]}."""
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k.startswith("[0]")}


def train(name: str, dataset: str, out, **changes) -> dict[str, np.ndarray]:
    """Runs `main`, without its picture; the agents of its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.record, "plot_curve", lambda *args: None)
        load(name).main(small(name, dataset, out, **changes))
    return agents(out)


def learning_rate(name: str) -> str:
    """Of a file that has none, its first number that may be swept."""
    numbers = float_fields(load(name).Args)
    return next((f for f in numbers if f.endswith(("_lr", "learning_rate"))), numbers[0])
