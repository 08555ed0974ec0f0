"""The algorithms of results/index.html: idea, command, claim, parity, published figures and speed of each."""

import json
from pathlib import Path

from results.checks import Claim, Missing, Raw, degree, holds
from results.grid import claims
from results.pages.algorithms import Algorithm, docstring, families
from results.pages.claims import NO_CLAIM
from results.pages.parity import verdict
from results.pages.text import rate


def family_views(root: Path, files: Raw) -> list[dict]:
    """One per family, in the order of the folders, with its algorithms; every value is text, a number, or a list."""
    known, parity, speed, figures = claims(root), parities(root), speeds(root), published(root)
    found = []
    for name, (what, members) in families(root).items():
        views = []
        for one in members:
            claim = known.get(one.name)
            views.append(
                {
                    **algorithm_view(one, root),
                    **(claim_view(claim, files) if claim else {"degree": NO_CLAIM}),
                    "parity": parity.get(one.name, []),
                    "published": figures.get(one.name, []),
                    "speed": speed.get(one.name, ""),
                }
            )
        found.append({"family": name.replace("_", " "), "what": what, "algorithms": views})
    return found


def algorithm_view(one: Algorithm, root: Path) -> dict:
    """What its docstring says."""
    text, _, link = one.paper.partition(", [")
    doc = docstring((root / "algorithms" / one.family / f"{one.name}.py").read_text()) or ""
    return {
        "name": one.name,
        "title": one.title,
        "long": one.long_name,
        "paper": text,
        "link": link.partition("](")[2].rstrip(")"),
        "when": one.when,
        "command": command(doc),
    }


def command(doc: str) -> str:
    """The first command of a docstring, its continued lines joined."""
    lines = iter(doc.splitlines())
    first = next((line.strip() for line in lines if line.startswith("    python ")), "")
    while first.endswith("\\"):
        first = f"{first[:-1].strip()} {next(lines, '').strip()}"
    return first


def claim_view(claim: Claim, files: Raw) -> dict:
    """How far it is seen; each check with what is compared; the runs' directories in results/runs/."""
    checks = []
    for sentence, comparison in claim.checks.items():
        try:
            sides = [round(float(side), 4) for side in comparison.sides(files)]
        except Missing:
            sides = []
        checks.append([sentence, holds(comparison, files), comparison.sign, *sides])
    runs = [entry.directory().relative_to("results/runs").as_posix() for entry in dict.fromkeys(claim.runs)]
    return {
        "degree": degree(claim, files),
        "claim": claim.title,
        "claimed": claim.paper,
        "checks": checks,
        "finding": claim.finding,
        "runs": runs,
    }


def parities(root: Path) -> dict[str, list[str]]:
    """{algorithm: "agrees to 1e-12 with owner/name at 1234567" of each comparison}."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "results" / "parity").glob("*.json")):
        for result in json.loads(path.read_text()).values():
            text = f"{verdict(result)} with {result['reference']} at {result['commit'][:7]}"
            found.setdefault(path.stem.split("-")[0], []).append(text)
    return found


def published(root: Path) -> dict[str, list[list]]:
    """{algorithm: [dataset, tasks, mean, source] of every figure of a paper}."""
    path, found = root / "results" / "published.json", {}
    for row in json.loads(path.read_text())["rows"] if path.exists() else []:
        mean = f"{row['mean']:g}" + (f" ± {row['sd']:g}" if row["sd"] is not None else "")
        found.setdefault(row["algorithm"], []).append([row["dataset"], row["tasks"], mean, row["source"]])
    return found


def speeds(root: Path) -> dict[str, str]:
    """{algorithm: its rates and shares of the machine's limit}, of speed.json's first shape."""
    path, found = root / "results" / "speed.json", {}
    for case in json.loads(path.read_text())["cases"] if path.exists() else []:
        if case.get("shape") != "hopper" or "share" not in case:
            continue
        words = (
            f"{rate(case['updates_per_s']['median'])} updates/s with {case['lanes']} lane{'s' * (case['lanes'] > 1)}"
        )
        found.setdefault(case["algorithm"], []).append(f"{words} ({100 * case['share']['median']:.0f} % of the limit)")
    return {name: "; ".join(words) for name, words in found.items()}
