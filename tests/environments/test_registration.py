"""The collection's environments are found by their ids alone, and shared/ knows none of them."""

import ast
import re
import subprocess
import sys

import environments  # noqa: F401  (registers its ids)
import gymnasium as gym
import pytest
from conftest import ROOT

IDS = [name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("environments.")]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_ids_are_found_by_a_fresh_process_that_only_knows_shared():
    code = "from shared.task import env_task; print(env_task('CombinationLock-v0').spec.obs_shape)"
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout.strip() == "(129,)", done.stderr


@pytest.mark.parametrize("env, said", [("CombinationLock-v0", "discrete"), ("CombinationLok-v0", "CombinationLock-v0")])
def test_an_online_script_reaches_the_lock_by_id(env, said, tmp_path):
    """The lock's actions are not SAC's; a typo is answered with the lock's name."""
    done = python("algorithms/online/sac.py", "--env", env, "--env-steps", "4", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_shared_names_none_of_them():
    """However the name is written: CombinationLock-v0, combination_lock, combination lock."""
    assert {"CombinationLock-v0", "ChangedPhysics-v0"} <= set(IDS)
    names = [re.sub(r"-v\d+$|[\W_]", "", name).lower() for name in IDS]
    for path in (ROOT / "shared").glob("*.py"):
        text = re.sub(r"[\W_]", "", path.read_text().lower())
        assert not [name for name in names if name in text], path


def test_algorithms_and_shared_import_nothing_of_datasets():
    ours = {p.stem for p in (ROOT / "datasets").glob("[a-z]*.py")} | {"environments", "datasets"}
    for path in [*(ROOT / "algorithms").glob("*/*.py"), *(ROOT / "shared").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & ours, path
