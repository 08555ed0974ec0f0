"""Puts defects into an algorithm's equations, one at a time, and runs its own tests on each: survivors are not tested.

    python tests/mutate.py spot rebrac fql        # `make mutate` takes all files: hours
    python tests/mutate.py --list spot            # the defects alone

A defect is one change of the syntax tree in a loss, an update or what they call: a stop_gradient dropped, a terminal
mask dropped, a target network exchanged for its online one, least and largest exchanged, sum and mean exchanged, a clip
dropped, the sign of a term, discount or tau, the agent of before where the one of after an update belongs; nothing in
the dictionaries of metrics. Results go to results/mutants.json, as they come: {algorithm: {defects, survivors: [{line,
where, change}]}}. A survivor that changes nothing is explained where the algorithm is tested: SURVIVORS = {"<change>":
"<why nothing changes>"}.
"""

import argparse
import ast
import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("init", "main", "act", "explore", "__call__", "setup")
"""Functions in which nothing is changed: what they do is held by the contracts of lanes."""


class Defect(NamedTuple):
    """One changed source of an algorithm. It is made when it is asked for: whoever lists defects has no use for it."""

    tree: ast.Module
    index: int
    """Of the changed function in the tree's body."""
    make: Callable[[], ast.FunctionDef]
    line: int
    change: str
    where: str

    @property
    def source(self) -> str:
        whole = copy.copy(self.tree)
        whole.body = [*self.tree.body[: self.index], self.make(), *self.tree.body[self.index + 1 :]]
        return ast.unparse(ast.fix_missing_locations(whole))


def last_name(node: ast.AST) -> str:
    """stop_gradient of jax.lax.stop_gradient."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.Call):
        name = last_name(node.func)
        if name == "stop_gradient" and node.args:
            yield node.args[0]
        if name == "clip":
            yield node.func.value if len(node.args) == 2 and isinstance(node.func, ast.Attribute) else node.args[0]
        if name in ("minimum", "maximum") and len(node.args) == 2:
            yield node.args[0]
        swaps = {"min": "max", "max": "min", "sum": "mean", "mean": "sum"}
        if name in swaps and isinstance(node.func, ast.Attribute):
            yield ast.Call(ast.Attribute(node.func.value, swaps[name], ast.Load()), node.args, node.keywords)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        if "terminal" in ast.unparse(node.right) and ast.unparse(node.left) in ("1", "1.0"):
            yield ast.Constant(1.0)  # the mask
        else:
            yield ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if node.attr.startswith("target_"):
            yield ast.Attribute(node.value, node.attr.removeprefix("target_"), ast.Load())
        if node.attr in ("discount", "tau") and last_name(node.value) == "args":
            yield ast.BinOp(node, ast.Mult(), ast.Constant(0.5))


def replaced(function: ast.FunctionDef, number: int, which: int) -> ast.FunctionDef:
    """The function with its node `number`, in the order of ast.walk, exchanged for its replacement `which`."""
    copied = copy.deepcopy(function)
    target = list(ast.walk(copied))[number]
    new = list(replacements(target))[which]
    for parent in ast.walk(copied):
        for field, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, field, new)
            elif isinstance(value, list):
                setattr(parent, field, [new if item is target else item for item in value])
    return copied


def with_agent_before(function: ast.FunctionDef, renewal: int, use: int) -> ast.FunctionDef:
    """The function whose statement `use` takes the agent of before its statement `renewal`."""
    changed = copy.deepcopy(function)
    for call in (n for n in ast.walk(changed.body[use]) if isinstance(n, ast.Call)):
        call.args = [
            ast.Name("agent_before", ast.Load()) if isinstance(a, ast.Name) and a.id == "agent" else a
            for a in call.args
        ]
    changed.body.insert(renewal, ast.parse("agent_before = agent").body[0])
    return changed


def stale_agents(function: ast.FunctionDef) -> Iterator[tuple[Callable[[], ast.FunctionDef], int, str]]:
    """Each use of the agent after `agent = agent.replace(...)`, made the one of before again: (maker, line, change)."""

    def renews(statement: ast.stmt) -> bool:
        return isinstance(statement, ast.Assign) and ast.unparse(statement).startswith("agent = agent.replace")

    for i, statement in enumerate(function.body):
        if not renews(statement):
            continue
        for j, later in enumerate(function.body[i + 1 :], i + 1):
            if renews(later) or isinstance(later, ast.Return):
                break
            calls = [n for n in ast.walk(later) if isinstance(n, ast.Call)]
            if any(isinstance(a, ast.Name) and a.id == "agent" for call in calls for a in call.args):
                change = f"agent_before for agent in: {ast.unparse(later)[:90]}"
                yield partial(with_agent_before, function, i, j), later.lineno, change


def defects(source: str) -> list[Defect]:
    """All single changes of the functions of an algorithm's file, in the order of its lines."""
    tree, found = ast.parse(source), []
    for index, function in enumerate(tree.body):
        if not isinstance(function, ast.FunctionDef) or function.name in OUTSIDE:
            continue
        metrics = {id(n) for d in ast.walk(function) if isinstance(d, ast.Dict) for n in ast.walk(d)}
        for number, node in enumerate(ast.walk(function)):
            if id(node) in metrics:
                continue
            for which, replacement in enumerate(replacements(node)):
                change = f"{ast.unparse(node)[:90]} -> {ast.unparse(replacement)[:90]}"
                make = partial(replaced, function, number, which)
                found.append(Defect(tree, index, make, node.lineno, change, function.name))
        for make, line, change in stale_agents(function):
            found.append(Defect(tree, index, make, line, change, function.name))
    return sorted(found, key=lambda d: d.line)


def files() -> dict[str, Path]:
    return {p.stem: p for p in sorted((ROOT / "algorithms").glob("*/*.py")) if p.stem != "__init__"}


def survives(name: str, path: Path, source: str, test: Path) -> bool:
    """Whether the algorithm's own tests pass on this source. In this process: imports are paid once."""
    import conftest  # noqa: F401 (it configures JAX, which a module may use when it is imported)
    import pytest

    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    sys.modules.pop(test.stem, None)  # what it has loaded at its top would be the source of before
    exec(compile(source, str(path), "exec"), module.__dict__)
    options = ["-x", "-q", "-m", "not learning", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", str(test)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(options) == 0


def explained(test: Path) -> dict[str, str]:
    """SURVIVORS of a test file: {change: why nothing changes}."""
    for node in ast.parse(test.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SURVIVORS":
            return ast.literal_eval(node.value)
    return {}


def examine(name: str) -> dict:
    """The entry of results/mutants.json of one algorithm; its tests must pass without a defect."""
    path = files()[name]
    test = ROOT / "tests" / path.parent.name / f"test_{name}.py"
    source, known = path.read_text(), explained(test)
    if not survives(name, path, source, test):
        raise SystemExit(f"{name}: its tests fail as it is; mend that first.")
    found, survivors = defects(source), []
    for defect in found:
        if survives(name, path, defect.source, test):
            entry = {"line": defect.line, "where": defect.where, "change": defect.change}
            survivors.append(entry | ({"why": known[defect.change]} if defect.change in known else {}))
            print(f"{path.relative_to(ROOT)}:{defect.line} {defect.change}", flush=True)
    return {"defects": len(found), "survivors": survivors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", help="names of files; all by default")
    parser.add_argument("--list", action="store_true", help="show the defects and run nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.algorithms or list(files())
    if unknown := set(names) - files().keys():
        parser.error(f"there is no algorithm '{min(unknown)}'")
    if options.list:
        for name in names:
            for defect in defects(files()[name].read_text()):
                print(f"{name}:{defect.line} {defect.where}: {defect.change}")
        return
    out = ROOT / "results" / "mutants.json"
    for name in names:
        if not options.one:  # each in a process of its own, whose compiled programs end with it
            if subprocess.run([sys.executable, __file__, "--one", name], check=False).returncode:
                sys.exit(f"{name} was not examined.")
            continue
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        entry = examine(name)
        table = json.loads(out.read_text()) if out.exists() else {}
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps(dict(sorted({**table, name: entry}.items())), indent=1) + "\n")
        os.replace(temporary, out)
        left = sum("why" not in survivor for survivor in entry["survivors"])
        print(f"{name}: {entry['defects']} defects, {left} unexplained survivors", flush=True)


if __name__ == "__main__":
    main()
