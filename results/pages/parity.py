"""results/parity.md: our updates beside released code, from results/parity/*.json alone."""

import json
import math
from pathlib import Path

from results.pages.text import markdown

HEAD = """\
# Parity

Made by `make report`; do not edit.

Our update functions beside the released code's, in one process: the same parameters at the start (in general position),
the same batches, the same random numbers. Below are the largest relative differences of the losses and of all
parameters and targets after 1 and after 10 updates; a difference of one entry is taken relative to the largest entry
of its array. Where we differ on purpose, the deviations are undone on one side for these numbers, and the table below
says what each changes when it alone is left in. How it is measured, and how to do it again: `results/parity.py`."""


def parity_page(root: Path) -> str:
    rows, deviations, notes = [], [], []
    for path in sorted((root / "results" / "parity").glob("*.json")):
        for name, result in json.loads(path.read_text()).items():
            label = f"{path.stem} ({name})" if name else path.stem
            rows.append([label, reference(result), result["dtype"], *numbers(result), verdict(result)])
            for deviation, found in result["deviations"].items():
                changes = [f"{found[kind]:.0e}" for kind in ("losses", "parameters")]
                deviations.append([label, deviation, found["what"], *changes])
            if result["note"]:
                notes.append(f"- {label}: {result['note']}")
    if not rows:
        return f"{HEAD}\n\nNothing is compared yet.\n"
    header = ["algorithm", "reference", "numbers", "losses, 1", "parameters, 1", "losses, 10", "parameters, 10", ""]
    parts = [HEAD, markdown(header, rows)]
    if deviations:
        header = ["algorithm", "deviation", "what we do otherwise", "losses, 10", "parameters, 10"]
        parts += ["## Deviations, each left in alone", markdown(header, deviations)]
    if notes:
        parts += ["## What is compared", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def reference(result: dict) -> str:
    """A link to the file at the commit."""
    repository, commit, file = result["reference"], result["commit"], result["file"]
    return f"[{repository}](https://github.com/{repository}/blob/{commit}/{file}) at {commit[:7]}"


def numbers(result: dict) -> list[str]:
    return [
        f"{max(kinds[kind].values()):.0e}" for kinds in result["after"].values() for kind in ("losses", "parameters")
    ]


def verdict(result: dict) -> str:
    """The power of ten that no difference exceeds."""
    largest = max(max(kind.values()) for kinds in result["after"].values() for kind in kinds.values())
    power = math.ceil(math.log10(largest)) if largest else -16
    return f"agrees to 1e{power}" if result["agrees"] else f"differs by up to 1e{power}"
