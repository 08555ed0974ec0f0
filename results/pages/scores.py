"""Score tables, comparisons and the selection of hyperparameters: results/tables.md."""

import json
from pathlib import Path

import numpy as np

from results.aggregate import budget_curve, iqm_interval, probability_of_improvement
from results.pages.text import budget, clock, iqm_text, markdown, mean_std, number, rate
from results.pictures import slug
from results.raw import (
    PUBLISHED,
    Row,
    baselines,
    changed_settings,
    family,
    final_episodes,
    hardware,
    labels,
    lane_notes,
    published,
    runs_of,
    speed,
)

CAPTION = """\
Mean ± standard deviation over lanes, and their interquartile mean with its 95 %
stratified-bootstrap interval. A lane is one seed of one setting; its result is the mean over the
episodes of its last evaluation (the best over training is used nowhere). Normalised scores, or
returns where the header says so. Diverged lanes are kept and marked †."""

COMPARISONS = """\
Probability that a lane of the row's algorithm scores above one of the column's on a dataset drawn at random, and
performance profiles: the share of lanes and datasets above a score (arXiv 2108.13264). Only of algorithms that were run
on all datasets of the family."""
SELECTION = """\
An offline algorithm does not say which of its settings is good. Here one lane of each was trained, a bandit (UCB1)
spends online episodes on them, and the policy of the highest mean so far is taken: its expected score, by the number of
episodes (arXiv 2110.04156, 2504.11453). After one episode it is a policy drawn at random."""
PULLS = 100


def cell(row: Row, compact: bool = False) -> str:
    text = mean_std(row.final, row.metric) + (" †" if row.marked else "")
    if compact:
        return text
    interval = iqm_text(row.final, row.metric)
    text += f"<br>IQM {interval}" if interval else ""
    return f"{text}<br>{len(row.lanes)} lane{'s' * (len(row.lanes) > 1)} × {budget(row)}"


def stacked(rows: list[Row], datasets: list[str]) -> np.ndarray | None:
    """Finite scores [lanes, datasets]; None where a dataset or two lanes are missing, or there are returns only."""
    values = {row.dataset: row.final[np.isfinite(row.final)] for row in rows}
    counts = {len(x) for x in values.values()}
    if set(values) != set(datasets) or len(counts) > 1 or counts & {0, 1} or any(r.metric != "score" for r in rows):
        return None
    return np.stack([values[dataset] for dataset in datasets], 1)


def overall(rows: list[Row], datasets: list[str]) -> str:
    """IQM over all datasets of a family, stratified by dataset; only where nothing is missing."""
    scores = stacked(rows, datasets)
    if scores is None:
        return "–"
    middle, low, high = iqm_interval(scores)
    return f"IQM {middle:.1f} [{low:.1f}, {high:.1f}]"


def score_table(rows: list[Row], compact: bool = False) -> str:
    """Algorithms by datasets, of one family."""
    datasets = sorted({row.dataset for row in rows})
    metric = {row.dataset: row.metric for row in rows}
    # the unit stands in the header only where it is not the usual one
    header = ["algorithm", *(d if metric[d] == "score" else f"{d} (return)" for d in datasets)]
    whole = not compact and len(datasets) > 1
    body = []
    for label, group in labels(rows).items():
        by_dataset = {row.dataset: row for row in group}
        cells = [cell(by_dataset[d], compact) if d in by_dataset else "–" for d in datasets]
        body.append([label, *cells, *([overall(group, datasets)] if whole else [])])
    for label, values in baselines(rows).items():
        cells = [number(values.get(d, np.nan), metric[d]) for d in datasets]
        body.append([f"*{label}*", *cells, *([""] if whole else [])])
    theirs: dict[str, dict[str, str]] = {}
    for known in published(rows):
        text = f"{known['mean']}" + ("" if known["sd"] is None else f" ± {known['sd']}")
        theirs.setdefault(known["algorithm"], {})[known["dataset"]] = text
    for algorithm, cells in theirs.items():
        body.append([f"*published: {algorithm}*", *(cells.get(d, "–") for d in datasets), *([""] if whole else [])])
    return markdown(header + ([f"all {len(datasets)}"] if whole else []), body)


def notes(rows: list[Row], root: Path) -> list[str]:
    """What a reader must know of a table's runs: diverged lanes, changed settings, unequal data."""
    lines = [line for row in rows for line in lane_notes(row)]
    changed: dict[str, set[str]] = {}
    versions: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        for name, (value, usual) in changed_settings(row, root).items():
            changed.setdefault(f"`{name}` {value} instead of {usual}", set()).add(row.algorithm)
        task = row.record["task"]
        versions.setdefault(task["id"], {}).setdefault(task["hash"][:12], set()).add(row.algorithm)
    if changed:
        listed = "; ".join(f"{what} ({', '.join(sorted(changed[what]))})" for what in sorted(changed))
        lines.append(f"Other settings than the files' defaults and presets: {listed}.")
    sources = json.loads(PUBLISHED.read_text())["sources"]
    for name in sorted({known["source"] for known in published(rows)}):
        of = sources[name]
        how = [of["scale"], f"{of['updates']:,} updates", f"{of['seeds']} seeds", of.get("networks"), of.get("notes")]
        lines.append(f"*Published*: {of['paper']} ({of['read']}): {'; '.join(filter(None, how))}.")
    beside = {known["dataset"] for known in published(rows)}
    counts = {row.dataset: row.record["task"].get("data", {}).get("rows") for row in rows if row.dataset in beside}
    if told := ", ".join(f"{n:,} of {dataset}" for dataset, n in sorted(counts.items()) if n):
        lines.append(f"Rows that were learned from here: {told}; the published figures are of the recipes' own sizes.")
    for dataset, users in versions.items():
        if len(users) > 1:
            listed = "; ".join(f"{h}: {', '.join(sorted(names))}" for h, names in users.items())
            lines.append(f"**Not comparable**: {dataset} differs between runs ({listed}).")
    return lines


def details_table(rows: list[Row], root: Path) -> str:
    """One line per run: how it was made."""
    header = ["run", "command", "changed settings", "updates", "lanes", "episodes", "wall time"]
    header += ["compile", "updates/s, all lanes", "hardware", "jax", "dataset hash"]
    body = []
    for run, record in runs_of(rows).items():
        row = next(row for row in rows if row.run == run)
        changed = "; ".join(f"{n} {v}" for n, (v, _) in changed_settings(row, root).items())
        body.append(
            [
                f"`{run.relative_to(root / 'results' / 'runs').as_posix()}`",
                f"`python {record['command']}`",
                changed or "–",
                budget(row),
                str(len(record["lanes"])),
                str(record["args"]["eval_episodes"]),
                clock(record["wall_s"]),
                f"{record['compile_s']:.1f} s",
                rate(speed(record)),
                hardware(record),
                record["versions"]["jax"],
                f"`{record['task']['hash'][:12]}`",
            ]
        )
    return markdown(header, body)


def score_section(rows: list[Row], root: Path, compact: bool) -> str:
    """The tables of all families, each with its notes."""
    if not rows:
        return "No finished runs."
    families: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (family(r), r.dataset, r.algorithm, r.run.name)):
        families.setdefault(family(row), []).append(row)
    parts = []
    for name, group in families.items():
        lines = notes(group, root)
        if compact:
            made = sorted({f"{len(r.lanes)} lanes × {budget(r)}" for r in group})
            what = "Mean ± standard deviation over lanes of the last evaluation"
            lines = [f"{what}; {', '.join(made)}.", *lines]
        parts += [f"### {name}", score_table(group, compact), *lines]
    return "\n\n".join(parts)


def families_scores(rows: list[Row]) -> dict[str, dict[str, np.ndarray]]:
    """{family: {label: scores [lanes, datasets]}} of what has run on all datasets of a family that has two such."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted({family(row) for row in rows}):
        group = [row for row in rows if family(row) == name]
        datasets = sorted({row.dataset for row in group})
        scores = {label: stacked(same, datasets) for label, same in labels(group).items()}
        complete = {label: x for label, x in scores.items() if x is not None}
        if len(complete) > 1:
            found[name] = complete
    return found


def comparison_section(rows: list[Row]) -> list[str]:
    """Of each family the profiles, and who improves on whom."""
    parts = ["## Comparisons", COMPARISONS]
    for name, scores in families_scores(rows).items():
        body = []
        for label, x in scores.items():
            chances = ["" if y is x else probability_of_improvement(x, y) for y in scores.values()]
            body.append([label, *(c and f"{c[0]:.2f} [{c[1]:.2f}, {c[2]:.2f}]" for c in chances)])
        picture = f"![Performance profiles, {name}](curves/profile-{name}.png)"
        parts += [f"### {name}", markdown(["row above column", *scores], body), picture]
    return parts if len(parts) > 2 else []


def selections(rows: list[Row]) -> dict[str, dict[str, np.ndarray]]:
    """{dataset: {label: expected score after 1, 2, ... episodes}} of the runs with several settings."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for run in runs_of(rows):
        settings = [row for row in rows if row.run == run and np.isfinite(row.final).all()]
        if len(settings) > 1 and settings[0].metric == "score":
            swept = " ".join(part.split("=")[0] for part in settings[0].setting.split())
            label = f"{settings[0].algorithm} {swept} ({run.name})"
            curve = budget_curve([final_episodes(row) for row in settings], PULLS)
            found.setdefault(settings[0].dataset, {})[label] = curve
    return dict(sorted(found.items()))


def selection_section(rows: list[Row]) -> list[str]:
    """What an offline policy is worth when online episodes choose its hyperparameters."""
    shown = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= PULLS]
    parts = ["## Choosing hyperparameters by online episodes", SELECTION]
    for dataset, curves in selections(rows).items():
        body = [[label, *(number(curve[n - 1], "score") for n in shown)] for label, curve in curves.items()]
        picture = f"![Score against the episodes that choose, {dataset}](curves/selection-{slug(dataset)}.png)"
        parts += [f"### {dataset}", markdown(["run", *(f"{n} episode{'s' * (n > 1)}" for n in shown)], body), picture]
    return parts if len(parts) > 2 else []


def pictures(rows: list[Row]) -> list[str]:
    datasets = sorted({row.dataset for row in rows})
    return [f"![Learning curves on {d}](curves/{slug(d)}.png)" for d in datasets]
