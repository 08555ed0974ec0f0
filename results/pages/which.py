"""results/which.md: algorithms side by side on small worlds, in one form, so that the data decides."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from results.pages.algorithms import algorithms
from results.pages.text import iqm_text, markdown, mean_std, number
from results.raw import Row, baselines, online

FORM = {"preset": "none", "batch_size": 128, "hidden_dims": [64, 64]}
"""What the runs of grid.small have in common."""
LEAST = 3
"""Algorithms, below which there is nothing to choose from."""


def which_page(rows: Iterable[Row], root: Path) -> str:
    """One table for each dataset that at least three algorithms were trained on in the small form."""
    rows = [row for row in rows if in_form(row)]
    described = descriptions(root)
    parts = [
        "# Which algorithm when",
        "Made by `make report` from the runs of the claims; do not edit. The same data, networks of two layers of 64, "
        "batches of 128, eight seeds, no presets: what differs is the algorithm and the data, and the order changes "
        "with the data. Read the table whose data is like yours. These are small worlds and short runs: they show "
        "which mechanism fits which data, not which score to expect. Time is of one gradient update, that of TD3+BC "
        "being 1, where [speed.md](speed.md) has both at one lane, at the sizes given there.",
    ]
    pace, names = update_time(root), {one.name: one.title for one in algorithms(root)}
    for dataset in sorted({row.dataset for row in rows}):
        group = [row for row in rows if row.dataset == dataset]
        if len({row.algorithm for row in group}) < LEAST:
            continue
        group.sort(key=lambda row: -np.nan_to_num(np.mean(row.final), nan=-np.inf))
        metric = group[0].metric
        body = [
            [
                " ".join(filter(None, [names.get(row.algorithm, row.algorithm), variant(row)])),
                mean_std(row.final, metric),
                iqm_text(row.final, metric),
                str(len(row.lanes)),
                f"{row.record['steps_done']:,}",
                f"{pace[row.algorithm]:.1f}" if row.algorithm in pace else "",
            ]
            for row in group
        ]
        of_data = ", ".join(
            f"{label} {number(value[dataset], metric)}" for label, value in baselines(group).items() if dataset in value
        )
        parts += [
            f"## {dataset}",
            "; ".join(filter(None, [described.get(dataset, "A dataset of its own"), of_data])) + ".",
            markdown(["algorithm", metric, "IQM [95 %]", "lanes", "updates", "time"], body),
        ]
    return "\n\n".join(parts) + "\n"


def in_form(row: Row) -> bool:
    """Whether a run is offline, of whole data, eight or more lanes and the small form."""
    args = row.record["args"]
    if online(row) or len(row.lanes) < 8 or args.get("corruption") or row.record["task"].get("tasks"):
        return False
    return all(args.get(name) == value for name, value in FORM.items())


def variant(row: Row) -> str:
    """What its name says beside the series and the length, and its swept setting."""
    words = row.run.name.split("-")[1:-1]
    return " ".join(filter(None, [f"({'-'.join(words)})" if words else "", row.setting]))


def descriptions(root: Path) -> dict[str, str]:
    """{dataset: what datasets/recipes.txt says of it}."""
    file = root / "datasets" / "recipes.txt"
    lines = [line.split("\t") for line in file.read_text().splitlines() if "\t" in line] if file.exists() else []
    return {line[0]: line[2] for line in lines if len(line) > 2}


def update_time(root: Path) -> dict[str, float]:
    """{algorithm: seconds of an update at one lane, in units of TD3+BC's}, of speed.json."""
    file = root / "results" / "speed.json"
    cases = json.loads(file.read_text())["cases"] if file.exists() else []
    rates = {c["algorithm"]: c["updates_per_s"]["median"] for c in cases if _one_lane(c)}
    return {name: rates["td3_bc"] / rate for name, rate in rates.items()} if "td3_bc" in rates else {}


def _one_lane(case: dict) -> bool:
    return "updates_per_s" in case and case["lanes"] == 1 and case["shape"] == "hopper"
