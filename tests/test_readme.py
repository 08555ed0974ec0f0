"""The README's worked example is a patch that applies, has about 20 changed lines, and trains."""

import importlib.util
import re
import shutil
import subprocess
import sys

from conftest import ROOT, load

README = (ROOT / "README.md").read_text()


def test_the_worked_example_applies_and_trains(tmp_path, pendulum):
    diff = re.search(r"```diff\n(.*?)```", README, re.S)[1]
    changed = [x for x in diff.splitlines() if x[:1] in "+-" and x[:3] not in ("+++", "---")]
    assert len(changed) <= 20
    folder = tmp_path / "algorithms" / "offline"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "algorithms" / "offline" / "td3_bc.py", folder / "td3_gc.py")
    patch = diff.replace("a/algorithms/offline/td3_bc.py", "a/algorithms/offline/td3_gc.py")
    subprocess.run(["git", "apply", "-"], input=patch, text=True, cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("td3_gc", folder / "td3_gc.py")
    module = sys.modules["td3_gc"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.Args(
        dataset=pendulum, updates=4, log_every=2, eval_every=4, eval_episodes=1, checkpoint_every=4,
        hidden_dims=(8, 8), batch_size=8, margin=(-1.0, 1.0), out=str(tmp_path / "run"),
    )  # fmt: skip
    module.main(args)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "cloned" in header and "margin" in header


def test_the_ten_lines_that_use_a_trained_policy(tmp_path, pendulum, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "load_run" in block]
    bc = load("bc")
    bc.main(
        bc.Args(
            dataset=pendulum, updates=4, log_every=2, eval_every=4, eval_episodes=1, checkpoint_every=4,
            hidden_dims=(8, 8), batch_size=8, out=str(tmp_path / "run"),
        )
    )  # fmt: skip
    path = re.search(r'load_run\("(.*?)"\)', code)[1]
    found = {}
    exec(code.replace(path, str(tmp_path / "run")), found)
    assert found["done"] and found["obs"].shape == (3,)
