"""The rooms of the house: imports point one way and in no circle, no room has two jobs, nothing is central."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ALGORITHMS, ROOT

LONGEST = 450
"""Lines of a room of shared/."""
ROOMS = sorted((ROOT / "shared").glob("*.py"))


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """What a syntax tree imports, (dotted name, line), wherever in it; `from a import b` is a and a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(module, node.lineno), *((f"{module}.{alias.name}", node.lineno) for alias in node.names)]
    return found


def inside_functions(tree: ast.AST) -> list[tuple[str, int]]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    return [one for function in functions for one in imports(function)]


def packages(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name, _ in imports(ast.parse(path.read_text()))}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Names along one circle of arrows; empty if there is none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :] + [name]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := follow(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := follow(name, []))), [])


def rooms_that(path: Path) -> set[str]:
    names = {room.stem for room in ROOMS}
    found = {name.removeprefix("shared.") for name, _ in imports(ast.parse(path.read_text()))}
    assert not any(name.startswith(".") for name in found), f"{path.name} imports by a relative name"
    return found & names


def test_the_rooms_of_shared_import_each_other_in_no_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    arrows = {room.stem: rooms_that(room) for room in ROOMS}
    assert arrows["run"] > {"lanes", "evaluation"}  # they are found
    assert circle(arrows) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_a_room_of_shared_has_one_job(room):
    """Its length; what it imports stands at its top; it knows no algorithm, no result and no recipe."""
    text = room.read_text()
    assert len(text.splitlines()) <= LONGEST
    tree = ast.parse(text)
    hidden = [(name, line) for name, line in inside_functions(tree) if name.split(".")[0] == "shared"]
    assert hidden == []
    assert not packages(room) & {"algorithms", "results", "tests"}
    assert not packages(room) & {path.stem for path in ALGORITHMS}


def test_an_import_inside_a_function_is_found():
    tree = ast.parse("import a\ndef f():\n    def g():\n        from shared import b\n")
    assert ("shared.b", 4) in inside_functions(tree) and ("a", 1) not in inside_functions(tree)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_an_algorithm_imports_shared_and_no_other_algorithm(path):
    found = packages(path)
    others = {other.stem for other in ALGORITHMS} - {path.stem}
    assert "shared" in found and not found & ({"algorithms", "datasets", "results", "tests"} | others)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda p: p.stem)
def test_what_data_are_scaled_by_is_taken_in_one_way(path):
    """`shared.data.moments`: a deviation in float32 is not 0 where a column is constant."""
    assert not re.search(r"np\.where\(\w*std\S* < ", path.read_text())


def test_datasets_import_shared_and_no_algorithm():
    files = sorted((ROOT / "datasets").rglob("*.py"))
    assert files
    for path in files:
        assert not packages(path) & ({"algorithms", "results", "tests"} | {a.stem for a in ALGORITHMS}), path.name


def test_data_that_is_learned_from_beside_an_environment_is_compared_with_it():
    """Its rewards: by `Interaction`, or where a file has a loop of its own. PDT and NCE do without the data's."""
    silent = {
        path.stem
        for path in ALGORITHMS
        if "load_dataset(" in (text := path.read_text())
        and any(name in text for name in ("(FinetuneArgs)", "(HybridArgs)"))
        and not any(name in text for name in ("Interaction(", "run.note(other_rewards("))
    }
    assert silent == {"nce_aux_reward", "pdt"}


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_every_algorithm_has_a_test_file(path):
    assert (ROOT / "tests" / path.parent.name / f"test_{path.name}").exists()
