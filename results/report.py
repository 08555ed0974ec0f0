"""Tables, learning curves and the report pages, made from the raw files of the runs alone.

    python results/report.py             # everything; what `make report` runs
    python results/report.py --check     # exit 1 if a committed table is not what the raw files say
    python results/report.py RUN_DIR RUN_DIR --picture FILE     # these runs side by side

Reads results/runs/<algorithm>/<dataset>/<run>/{run.json, returns.csv} and the docstrings of algorithms/;
writes results/index.html, results/tables.md, results/claims.md, results/curves/, and what stands between
the markers `<!-- begin:NAME -->` and `<!-- end:NAME -->` of README.md and results/README.md.

A lane's result is the mean over the episodes of its LAST evaluation, never the best over training.
The raw files are read by results/raw.py, the statistics are in results/aggregate.py.
"""

import argparse
import ast
import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.aggregate import budget_curve, iqm_interval, probability_of_improvement
from results.grid import CLAIMS, Claim, evaluation_file
from results.page import page
from results.pictures import appearances, slug, write_picture, write_profiles, write_selection
from results.raw import (
    Row,
    baselines,
    changed_settings,
    family,
    final_episodes,
    hardware,
    labels,
    lane_notes,
    online,
    read_evaluation,
    read_run,
    read_runs,
    runs_of,
    short,
    speed,
)
from shared.checkpoint import replacing
from shared.errors import InputError, nearest
from shared.evaluation import fine_tuning

ROOT = Path(__file__).resolve().parents[1]


def mean_std(x: np.ndarray, metric: str) -> str:
    """Over the finite lanes."""
    x = x[np.isfinite(x)]
    return f"{number(x.mean(), metric)} ± {number(x.std(), metric)}" if len(x) else "–"


def iqm_text(x: np.ndarray, metric: str) -> str:
    """Over the finite lanes; empty for fewer than two: one lane says nothing about another."""
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return ""
    middle, low, high = (number(v, metric) for v in iqm_interval(x[:, None]))
    return f"{middle} [{low}, {high}]"


# ------------------------------------------------------------------------------------------ tables


def number(value: float, metric: str) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:,.1f}" if metric == "score" or abs(value) >= 10 else f"{value:.2f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Columns of numbers are aligned right."""
    numeric = [all(re.match(r"[-–\d]|$", text) for text in column) for column in zip(*rows, strict=True)]
    align = ["---:" if right else "---" for right in numeric] or ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, align, *rows])


def cell(row: Row, compact: bool = False) -> str:
    text = mean_std(row.final, row.metric) + (" †" if row.marked else "")
    if compact:
        return text
    interval = iqm_text(row.final, row.metric)
    text += f"<br>IQM {interval}" if interval else ""
    return f"{text}<br>{len(row.lanes)} lane{'s' * (len(row.lanes) > 1)} × {budget(row)}"


def budget(row: Row) -> str:
    return f"{short(row.record['steps_done'])} {'env steps' if online(row) else 'updates'}"


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


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------- what the algorithm files say of themselves


def algorithms_table(root: Path) -> str:
    """One line per file of algorithms/, from its docstring: `Name: long name`, then its paper."""
    body = []
    for file in sorted((root / "algorithms").rglob("*.py")):
        source = file.read_text()
        doc = ast.get_docstring(ast.parse(source))
        if not doc:
            continue
        title, _, rest = doc.partition("\n")
        name, _, long_name = title.partition(":")
        path = file.relative_to(root).as_posix()
        body.append(
            [
                f"[{name.strip()}]({path})",
                long_name.strip().rstrip("."),
                file.parent.relative_to(root / "algorithms").as_posix().replace("_", " "),
                citation(rest),
                str(len(source.splitlines())),
            ]
        )
    return markdown(["algorithm", "", "setting", "paper", "lines"], body)


def citation(text: str) -> str:
    """A docstring's citation: up to its first arXiv id, which becomes a link, else one sentence."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split()).replace("|", "/")
    if found := re.search(r"arXiv[: ] ?(\d{4}\.\d{4,5})", paragraph):
        words = paragraph[: found.start()].rstrip(" ,;(")
        return f"{words}, [arXiv {found[1]}](https://arxiv.org/abs/{found[1]})"
    sentence = re.match(r'[^"]*"[^"]+"[^.]*', paragraph)
    return sentence.group() if sentence else paragraph.split(". ")[0].rstrip(".")


# ------------------------------------------------------------------------------------------- pages


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


def speed_section(root: Path) -> str:
    """The measurements of speed.py, peer_speed.py, online_speed.py and action_time.py, where they exist."""
    made = {"speed": speed_table, "peer_speed": peer_table, "online_speed": online_table, "action_time": action_table}
    paths = {root / "results" / f"{name}.json": table for name, table in made.items()}
    parts = [table(json.loads(path.read_text())) for path, table in paths.items() if path.exists()]
    return "\n\n".join(parts) or "Not measured yet."


def online_table(measured: dict) -> str:
    """Of rlpd, beside a plain loop over one environment with one jitted update per call."""
    body = [
        [
            f"{case['name']}, {case['lanes']} lane{'s' * (case['lanes'] > 1)}",
            str(case["utd"]),
            rate(case["env_steps_per_s"]["median"]),
            rate(case["gradient_steps_per_s"]),
            f"{case['ratio_to_plain_loop']:.2f}",
        ]
        for case in measured["cases"]
    ]
    header = ["", "updates per step", "environment steps/s", "gradient steps/s", "ratio to the plain loop"]
    note = "Interaction with Hopper-v5, sums over the lanes, ratios within rounds, " + made_on(measured)
    return "\n\n".join([note, markdown(header, body)])


def rate(per_second: float) -> str:
    """Three figures of a slow one; a dash where there is none."""
    if not np.isfinite(per_second):
        return "–"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.{1 if per_second >= 10 else 2}f}"


def made_on(measured: dict) -> str:
    """How many cores and which command."""
    cores = measured["hardware"]["cores"]
    return f"{cores} core{'s' * (cores > 1)} (`python {measured['command']}`)."


def action_table(measured: dict) -> str:
    """Of the generative policies."""
    body = [
        [
            case["algorithm"],
            f"{case['batch']:,}",
            str(case["candidates"]),
            f"{case['ms']['median']:,.2f}",
            f"{case['over_ofql']:.2f}",
        ]
        for case in measured["cases"]
    ]
    header = ["", "observations", "candidates", "milliseconds", "over ofql's"]
    sizes = "×".join(map(str, measured["hidden_dims"]))
    note = f"Time to choose actions with networks of {sizes}, ratios within rounds, " + made_on(measured)
    return "\n\n".join([note, markdown(header, body)])


def speed_table(measured: dict) -> str:
    """One row per algorithm and shape, one column per number of lanes."""
    cases = [c for c in measured["cases"] if "updates_per_s" in c]
    lanes = sorted({c["lanes"] for c in cases})
    body = []
    order = sorted(cases, key=lambda c: (c["shape"] != cases[0]["shape"], c["algorithm"]))
    for key in dict.fromkeys((c["algorithm"], c["shape"]) for c in order):
        of = {c["lanes"]: c for c in cases if (c["algorithm"], c["shape"]) == key}
        one = next(iter(of.values()))
        nets = f"{len(one['hidden_dims'])} × {one['hidden_dims'][0]}, batch {one['batch_size']}"
        rates = [rate(of[n]["updates_per_s"]["median"]) if n in of else "" for n in lanes]
        memory = f"{max(c['memory_mib'] for c in of.values()):,.0f} MiB"
        data = f"{one['dataset_mib']:,.0f} MiB"
        compile_s = f"{max(c['compile_s'] for c in of.values()):.1f} s"
        cores = "/".join(sorted({str(c.get("cores", measured["hardware"]["cores"])) for c in of.values()}))
        body.append([*key, nets, cores, *rates, compile_s, memory, data])
    titles = [f"{n} lane{'s' * (n > 1)}" for n in lanes]
    header = ["algorithm", "data", "networks", "cores", *titles, "compile", "peak memory", "dataset"]
    device = next(c["device"] for c in measured["cases"])
    note = (
        f"Gradient updates per second, all lanes together, compile time apart, on 1M synthetic transitions "
        f"(hopper: obs 11, act 3; ant: obs 111, act 8); {device}, on as many cores as stated (rows with other "
        f"numbers of cores were not measured together); median of the timed calls "
        f"(`make speed`). On CPU every device holds the dataset once."
    )
    evaluation = [
        f"{c['env_steps_per_s']:,.0f} environment steps/s with {c['lanes']} lane{'s' * (c['lanes'] > 1)}"
        for c in measured["cases"]
        if "env_steps_per_s" in c
    ]
    parts = [note, markdown(header, body)]
    if evaluation:
        parts.append(f"Evaluation in HalfCheetah-v5, 10 episodes a lane: {'; '.join(evaluation)}.")
    return "\n\n".join(parts)


def peer_table(measured: dict) -> str:
    """Median of the rounds' rates, and of their ratios: both sides of a round ran back to back."""
    body = []
    for case in measured["cases"]:
        ours = np.array(case["updates_per_s"]["ours"])
        for name, rates in case["updates_per_s"].items():
            ratio = ours / np.array(rates)
            text = f"{np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})"
            compile_s = f"{case['compile_s'][name]:.1f} s"
            rate = f"{np.median(rates):,.0f}"
            body.append([case["name"], name, rate, "" if name == "ours" else text, compile_s])
    header = ["", "code", "updates/s, all lanes", "ours / theirs (lowest–highest round)", "compile"]
    return "\n\n".join([measured["note"] + " (`python results/peer_speed.py`)", markdown(header, body)])


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


def documents(rows: list[Row], left_out: list[str], root: Path) -> dict[Path, str]:
    """{file: its whole text} of everything that is generated, pictures apart."""
    full = score_section(rows, root, compact=False)
    parts = ["# Results", "Made by `make report`; do not edit.", CAPTION, full, *left_out]
    everything, _ = read_runs(root, "*")
    parts += comparison_section(rows) + selection_section(everything)
    if rows:
        ordered = sorted(rows, key=lambda r: r.run)
        parts += ["## Runs", details_table(ordered, root)]
    pages = {root / "results" / "tables.md": "\n\n".join(parts) + "\n"}
    pages[root / "results" / "index.html"] = page(everything, root)
    if CLAIMS:
        pages[root / "results" / "claims.md"] = claims_page(root)
    datasets = root / "datasets" / "table.md"
    sections: dict[str, Callable[[], str]] = {
        "tables": lambda: "\n\n".join([CAPTION, full, *left_out, *pictures(rows)]),
        "results": lambda: score_section(rows, root, compact=True),
        "speed": lambda: speed_section(root),
        "algorithms": lambda: algorithms_table(root),
        "datasets": lambda: without_title(datasets.read_text()) if datasets.exists() else "No table yet.",
        "claims": lambda: claims_summary(root),
    }
    for path in (root / "README.md", root / "results" / "README.md"):
        if path.exists():
            pages[path] = replace_sections(path.read_text(), sections)
    return pages


def without_title(text: str) -> str:
    """A page as a section of another."""
    return re.sub(r"^# .*\n", "", text).strip()


def claim_rows(claim: Claim, root: Path) -> list[Row]:
    """The finished runs of a claim, in its order, each followed by its evaluations under changed arguments."""
    rows = []
    for entry in dict.fromkeys(claim.entries):
        directory = root / entry.directory()
        if (directory / "run.json").exists():
            rows += (own := [row for row in read_run(directory) if row.record["status"] == "finished"])
            for change in entry.evaluations if own else ():
                if evaluation_file(directory, change).exists():
                    rows += [read_evaluation(row, change) for row in own]
    return rows


def claim_table(rows: list[Row]) -> str:
    body = []
    for row in sorted(rows, key=lambda r: r.dataset):  # stable: the claim's own order within a dataset
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        score = mean_std(row.final, row.metric) + (" †" if row.marked else "")
        cells = [row.dataset, name, score, iqm_text(row.final, row.metric) or "–", f"{len(row.lanes)} × {budget(row)}"]
        body.append([*cells, rate(speed(row.record))])
    for label, values in baselines(rows).items():
        body += [[d, f"*{label}*", f"{value:.1f}", "", "", ""] for d, value in values.items()]
    body.sort(key=lambda cells: cells[0])
    return markdown(["dataset", "run", "score", "IQM [95 %]", "lanes × budget", "steps/s"], body)


def fine_tuning_table(rows: list[Row]) -> str:
    """What interaction did to the policies of offline runs; empty where there are none."""
    rows = [row for row in rows if online(row) and row.steps["env_step"].any()]
    body = []
    for row in sorted(rows, key=lambda r: r.dataset):
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        result = fine_tuning(row.steps["env_step"], row.curve.T, row.metric == "score")
        regret = iqm_text(100 * result.regret, row.metric)
        cells = [iqm_text(x, row.metric) for x in (result.offline, result.dip, result.final)]
        body.append([row.dataset, name, *(text or "–" for text in (*cells, regret))])
    header = ["dataset", "run", "end of offline training", "dip at the onset", "final", "100 × cumulative regret"]
    return markdown(header, body) if body else ""


def claims_page(root: Path) -> str:
    """Each claim: the paper's sentence, the runs side by side, their curves, and what was found."""
    parts = ["# The papers' claims", "Made by `make report`; do not edit. The runs and findings: `results/grid.py`."]
    parts += [CAPTION]
    for claim in CLAIMS:
        rows = claim_rows(claim, root)
        parts += [f"## {claim.title}", claim.paper]
        parts += (
            [claim_table(rows), f"![{claim.title}](curves/claim-{claim.slug}.png)"] if rows else ["No finished runs."]
        )
        parts += [table] if (table := fine_tuning_table(rows)) else []
        parts += [f"**Found:** {claim.finding}"] * bool(claim.finding)
        missing = [e for e in claim.entries if not (root / e.directory() / "run.json").exists()]
        if missing:
            parts += [f"Not run yet: {', '.join(f'`{e.directory().as_posix()}`' for e in missing)}."]
    return "\n\n".join(parts) + "\n"


def claims_summary(root: Path) -> str:
    """One line per claim: how far it was seen, and on which data."""
    link = "results/claims.md"
    unsaid = {True: "some of its runs are still missing", False: "not run yet"}
    rows = []
    for claim in CLAIMS:
        found = claim_rows(claim, root)
        datasets = ", ".join(dict.fromkeys(row.dataset.split("+")[0] for row in found))
        rows.append(
            [f"[{claim.title}]({link}#{anchor(claim.title)})", claim.seen or unsaid[bool(found)], datasets or "–"]
        )
    return markdown(["claim", "seen", "on"], rows) if rows else "None yet."


def anchor(title: str) -> str:
    """A heading's anchor, as Git hosts make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def pictures(rows: list[Row]) -> list[str]:
    datasets = sorted({row.dataset for row in rows})
    return [f"![Learning curves on {d}](curves/{slug(d)}.png)" for d in datasets]


def replace_sections(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """`text` with everything between a known name's markers made anew."""
    for name, make in sections.items():
        begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
        if begin in text:
            head, _, tail = text.partition(begin)
            _, found, tail = tail.partition(end)
            if not found:
                raise InputError(f"'{begin}' has no '{end}' after it.")
            text = f"{head}{begin}\n\n{make()}\n\n{end}{tail}"
    return text


# -------------------------------------------------------------------------------- the command line


def plain_table(rows: list[Row]) -> str:
    """The rows side by side for a terminal; unfinished runs are shown with what they have."""
    lines = []
    for dataset in sorted({row.dataset for row in rows}):
        group = [row for row in rows if row.dataset == dataset]
        metric = group[0].metric
        head = f"{metric} ± std"
        lines.append(f"{dataset:<36}{head:>18}   {'IQM [95 %]':<24}{'lanes':>5}  {'steps':>10}")
        for label, same in labels(group).items():
            for row in same:
                mark = "†" if row.marked else ""
                step = row.steps["env_step" if online(row) else "update"][-1]
                lines.append(
                    f"{label:<36}{mean_std(row.final, metric) + mark:>18}   "
                    f"{iqm_text(row.final, metric):<24}{len(row.lanes):>5}  {step:>10,}"
                )
        for label, values in baselines(group).items():
            lines.append(f"{label:<36}{number(values[dataset], metric):>18}")
        lines += [line for row in group for line in lane_notes(row)]
        lines.append("")
    return "\n".join(lines).rstrip()


def check(pages: dict[Path, str], root: Path) -> int:
    """0 if every page on disk is what the raw files say, else 1 and the first lines that differ."""
    stale = 0
    for path, text in pages.items():
        old = path.read_text() if path.exists() else ""
        if old != text:
            stale = 1
            name = path.relative_to(root).as_posix()
            print(f"{name} is not what the raw files say; run `make report`.", file=sys.stderr)
            difference = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "made anew", "", n=0)
            print("\n".join(list(difference)[:12]), file=sys.stderr)
    return stale


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("run", nargs="*", type=Path, help="run directories: only print one table of these")
    option("--runs", default="benchmark*", metavar="GLOB", help="runs to report (%(default)s)")
    option("--picture", type=Path, metavar="FILE", help="with run directories: draw their curves")
    option("--check", action="store_true", help="exit 1 if a committed table is out of date")
    args = parser.parse_args(argv)
    try:
        if args.picture and not args.run:
            raise InputError("--picture needs run directories to draw.")
        if args.run:
            for run in args.run:
                if not run.is_dir():
                    siblings = [str(p) for p in sorted(run.parent.glob("*/"))]
                    hint = f"; {nearest(str(run), siblings)}" if siblings else ""
                    raise InputError(f"There is no run directory {run}{hint}.")
            rows = [row for run in args.run for row in read_run(run)]
            if not rows:
                raise InputError("None of these runs has been evaluated.")
            print(plain_table(rows))
            if args.picture:
                write_picture(args.picture, rows, appearances(rows))
                print(f"picture: {args.picture}")
            return 0
        rows, left_out = read_runs(root, args.runs)
        pages = documents(rows, left_out, root)
        if args.check:
            return check(pages, root)
        for path, text in pages.items():
            with replacing(path) as file:
                file.write(text.encode())
        looks = appearances(rows)
        for dataset in sorted({row.dataset for row in rows}):
            group = [row for row in rows if row.dataset == dataset]
            write_picture(root / "results" / "curves" / f"{slug(dataset)}.png", group, looks)
        for name, scores in families_scores(rows).items():
            write_profiles(root / "results" / "curves" / f"profile-{name}.png", name, scores)
        for dataset, curves in selections(read_runs(root, "*")[0]).items():
            write_selection(root / "results" / "curves" / f"selection-{slug(dataset)}.png", dataset, curves)
        for claim in CLAIMS:
            if group := [row for row in claim_rows(claim, root) if row.curve.shape[1] > 1]:
                write_picture(root / "results" / "curves" / f"claim-{claim.slug}.png", group, appearances(group))
        written = ", ".join(page.relative_to(root).as_posix() for page in pages)
        print(f"{len(runs_of(rows))} runs -> {written}")
        print("\n".join(left_out), file=sys.stderr, end="\n" if left_out else "")
        return 0
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
