"""The README: its worked examples run, its links lead somewhere, and its tables are what the files say."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ALGORITHMS, ROOT, load
from test_claims import FILES

from results.pages.algorithms import algorithms, algorithms_tables, families, families_table, finder
from results.pages.claims import degrees, evidence

README_FILE = ROOT / "README.md"
README = README_FILE.read_text()


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


PAGES = [
    README_FILE,
    *(ROOT / folder / "README.md" for folder in ("algorithms", "results", "results/claims", "datasets")),
]


def test_the_readme_is_short():
    """One row per family: what grows with the algorithms is on the pages beside them."""
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_algorithm_is_on_its_page_and_in_the_finder():
    page = (ROOT / "algorithms" / "README.md").read_text()
    found = {one.name for one in algorithms(ROOT)}
    assert found == {path.stem for path in ALGORITHMS}
    for one in algorithms(ROOT):
        assert one.when, f"the docstring of {one.name}.py does not say 'Choose it when ...'"
        assert page.count(f"[{one.title}]({one.family}/{one.name}.py)") == 2, f"{one.name}: make report"
    assert finder(ROOT) in page and algorithms_tables(ROOT, degrees(ROOT, FILES)) in page, "make report"


def test_every_family_is_in_the_readme_with_what_it_is_for():
    for name, (what, _) in families(ROOT).items():
        assert what, f"algorithms/{name}/README.md does not say what the family is for"
    assert families_table(ROOT) in README and evidence(ROOT, FILES) in README, "make report"
