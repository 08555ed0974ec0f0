"""Tables, learning curves and the report pages, made from the raw files of the runs alone.

    python results/report.py             # everything; what `make report` runs
    python results/report.py --check     # exit 1 if a committed table is not what the raw files say
    python results/report.py RUN_DIR RUN_DIR --picture FILE     # these runs side by side

Reads results/<algorithm>/<dataset>/<run>/{run.json, returns.csv} and the docstrings of algorithms/;
writes results/tables.md, results/claims.md, results/curves/, and what stands between the markers
`<!-- begin:NAME -->` and `<!-- end:NAME -->` of README.md and results/README.md.

A lane's result is the mean over the episodes of its LAST evaluation, never the best over training.
IQM and its intervals: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021, arXiv 2108.13264.
"""

import argparse
import ast
import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.grid import CLAIMS, Claim, evaluation_file
from shared.data import InputError, nearest
from shared.evaluation import fine_tuning

ROOT = Path(__file__).resolve().parents[1]
REPS = 2000

# Arguments that say where and how a run was made, not what was computed.
BOOKKEEPING = {"dataset", "env", "seeds", "seed", "out", "resume", "wandb", "preset"}
BOOKKEEPING |= {"log_every", "eval_every", "checkpoint_every"}

# --------------------------------------------------------------------------------------- raw files


class Row(NamedTuple):
    """One setting of one run: its lanes differ only in their seed."""

    run: Path
    record: dict
    """run.json."""
    setting: str
    """Its values of the swept hyperparameters; empty if there are none."""
    lanes: list[int]
    metric: str
    """"score" (0 to 100 by reference returns) where there is one, else "return"."""
    steps: dict[str, np.ndarray]
    """{"update", "env_step"}: [T], when the lanes were evaluated."""
    curve: np.ndarray
    """[lanes, T], mean over the episodes; NaN where a lane has no finite return."""

    @property
    def final(self) -> np.ndarray:
        """[lanes], at the last evaluation."""
        return self.curve[:, -1]

    @property
    def algorithm(self) -> str:
        return self.record["algorithm"]

    @property
    def dataset(self) -> str:
        return self.record["task"]["id"]

    @property
    def diverged(self) -> dict[int, int]:
        """{lane: step at which a metric was first not finite}."""
        found = {int(lane): step for lane, step in self.record.get("diverged", {}).items()}
        return {lane: step for lane, step in found.items() if lane in self.lanes}

    @property
    def marked(self) -> bool:
        """Whether a lane diverged or has no finite result."""
        return bool(self.diverged) or not np.isfinite(self.final).all()


def read_run(run: Path) -> list[Row]:
    """The rows of one run directory, one for each swept setting; none if it was never evaluated."""
    try:
        record = json.loads((run / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run directory: no readable run.json ({error}).") from None
    if not (run / "returns.csv").exists():
        return []
    table = pd.read_csv(run / "returns.csv")
    metric = "score" if np.isfinite(table["score"]).any() else "return"
    at = ["update", "env_step"]  # rows are appended in order, so that the last one is the latest
    steps = table[at].drop_duplicates().reset_index(drop=True)
    if steps["env_step"].any():  # of offline training that was fine-tuned, only its end
        steps = steps[(steps["env_step"] > 0) | (steps["env_step"].shift(-1) > 0)].reset_index(drop=True)
    means = table.groupby(["lane", *at])[metric].agg(lambda x: x.mean(skipna=False))
    groups: dict[str, list[int]] = {}
    for lane in record["lanes"]:
        swept = [f"{k}={v:g}" for k, v in lane.items() if k not in ("lane", "seed")]
        groups.setdefault(" ".join(swept), []).append(lane["lane"])
    rows = []
    for setting, lanes in groups.items():
        index = pd.MultiIndex.from_tuples([(lane, *step) for lane in lanes for step in steps.itertuples(index=False)])
        curve = means.reindex(index).to_numpy().reshape(len(lanes), len(steps))
        curve = np.where(np.isfinite(curve), curve, np.nan)
        times = {name: steps[name].to_numpy() for name in at}
        rows.append(Row(run, record, setting, lanes, metric, times, curve))
    return rows


def read_evaluation(row: Row, change: str) -> Row:
    """The lanes of `row` as they did after the run, under the arguments of `change`: one point in place of a curve."""
    table = pd.read_csv(evaluation_file(row.run, change))
    means = table.groupby("lane")[row.metric].agg(lambda x: x.mean(skipna=False)).reindex(row.lanes)
    steps = {name: at[-1:] for name, at in row.steps.items()}
    setting = " ".join(filter(None, [row.setting, change]))
    return row._replace(setting=setting, steps=steps, curve=means.to_numpy()[:, None])


def read_runs(root: Path, glob: str) -> tuple[list[Row], list[str]]:
    """All rows under `root`/results, and a sentence for every run that is left out."""
    rows, left_out = [], []
    for path in sorted((root / "results").glob(f"*/*/{glob}/run.json")):
        found = read_run(path.parent)
        status = json.loads(path.read_text())["status"]
        name = path.parent.relative_to(root / "results").as_posix()
        if status != "finished":
            left_out.append(f"`{name}` is left out: its status is {status}.")
        elif not found:
            left_out.append(f"`{name}` is left out: it was never evaluated.")
        else:
            rows += found
    return rows, left_out


# -------------------------------------------------------------------------------------- statistics


def iqm(x: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean without the lowest and highest quarter."""
    n = x.shape[-1]
    return np.sort(x, -1)[..., n // 4 : n - n // 4].mean(-1)


def iqm_interval(scores: np.ndarray, reps: int = REPS) -> tuple[float, float, float]:
    """IQM of scores [lanes, tasks], with its 95 % percentile interval by stratified bootstrap.

    Lanes are drawn anew within each task, as in `rliable.library.get_interval_estimates`, which the
    tests compare with; that one ignores its `random_state`, and a report must not change by chance.
    """
    n, tasks = scores.shape
    drawn = np.random.default_rng(0).integers(n, size=(reps, n, tasks))
    resampled = np.take_along_axis(scores[None], drawn, axis=1).reshape(reps, -1)
    low, high = np.percentile(iqm(resampled), [2.5, 97.5])
    return float(iqm(scores.ravel())), float(low), float(high)


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


def short(n: int) -> str:
    """100000 -> 100k, 1500000 -> 1.5M."""
    if n >= 1_000_000 and n % 100_000 == 0:
        return f"{n / 1e6:g}M"
    return f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else f"{n:,}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Columns of numbers are aligned right."""
    numeric = [all(re.match(r"[-–\d]|$", text) for text in column) for column in zip(*rows, strict=True)]
    align = ["---:" if right else "---" for right in numeric] or ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, align, *rows])


def family(row: Row) -> str:
    """The environment without its version and variant: PointMaze_UMaze-v3 -> PointMaze."""
    env = row.record["task"].get("env") or row.dataset
    env_id = env["id"] if isinstance(env, dict) else env  # the first runs wrote the id alone
    return re.sub(r"-v\d+$", "", env_id.split("/")[-1]).split("_")[0]


def labels(rows: list[Row]) -> dict[str, list[Row]]:
    """Table rows: bc first, then by name. The run's name is shown where there are several."""
    several = len({row.run.name for row in rows}) > 1
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.algorithm != "bc", r.algorithm, r.run.name)):
        name = f"({row.run.name})" if several else ""
        label = " ".join(filter(None, [row.algorithm, row.setting, name]))
        groups.setdefault(label, []).append(row)
    return groups


def baselines(rows: list[Row]) -> dict[str, dict[str, float]]:
    """{"dataset mean": {dataset id: value}, ...}, as scores where the dataset has them."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        task = row.record["task"]
        for label, value in task["baselines"].items():
            if row.metric == "score":
                low, high = task["reference"]["min"], task["reference"]["max"]
                value = 100 * (value - low) / (high - low)
            found.setdefault(label, {})[row.dataset] = value
    return found


def cell(row: Row, compact: bool = False) -> str:
    text = mean_std(row.final, row.metric) + (" †" if row.marked else "")
    if compact:
        return text
    interval = iqm_text(row.final, row.metric)
    text += f"<br>IQM {interval}" if interval else ""
    return f"{text}<br>{len(row.lanes)} lane{'s' * (len(row.lanes) > 1)} × {budget(row)}"


def budget(row: Row) -> str:
    return f"{short(row.record['steps_done'])} {'env steps' if online(row) else 'updates'}"


def online(row: Row) -> bool:
    return "env_steps" in row.record["args"]


def overall(rows: list[Row], datasets: list[str]) -> str:
    """IQM over all datasets of a family, stratified by dataset; only where nothing is missing."""
    values = [row.final[np.isfinite(row.final)] for row in rows]
    complete = {row.dataset for row in rows} == set(datasets)
    if not complete or len({len(v) for v in values}) > 1 or any(r.metric != "score" for r in rows):
        return "–"
    if len(values[0]) < 2:
        return "–"
    middle, low, high = iqm_interval(np.stack(values, 1))
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


def lane_notes(row: Row) -> list[str]:
    """A sentence for every lane that diverged or has no finite result."""
    lines = []
    seeds = {entry["lane"]: entry["seed"] for entry in row.record["lanes"]}
    who = " ".join(filter(None, [row.algorithm, row.setting]))
    for lane, value in zip(row.lanes, row.final, strict=True):
        step = row.diverged.get(lane)
        if step is None and np.isfinite(value):
            continue
        what = "has no finite return" if step is None else f"diverged at step {step:,}"
        counted = "its result is kept" if np.isfinite(value) else "it is counted, but in no mean"
        lines.append(f"† {who} on {row.dataset}: lane {lane} (seed {seeds[lane]}) {what}; {counted}.")
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
                f"`{run.relative_to(root / 'results').as_posix()}`",
                f"`python {record['command']}`",
                changed or "–",
                budget(row),
                str(len(record["lanes"])),
                str(record["args"]["eval_episodes"]),
                clock(record["wall_s"]),
                f"{record['compile_s']:.1f} s",
                f"{speed(record):,.0f}",
                hardware(record),
                record["versions"]["jax"],
                f"`{record['task']['hash'][:12]}`",
            ]
        )
    return markdown(header, body)


def runs_of(rows: list[Row]) -> dict[Path, dict]:
    return {row.run: row.record for row in rows}


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def speed(record: dict) -> float:
    """Updates per second of all lanes together, evaluation and checkpoints in, compilation out."""
    seconds = record["wall_s"] - record["compile_s"]
    return len(record["lanes"]) * record["steps_done"] / seconds if seconds > 0 else np.nan


def hardware(record: dict) -> str:
    h = record["hardware"]
    cores = f" on {h['cores']} core{'s' * (h['cores'] > 1)}"
    return f"{h['devices']} × {h['device']}" + (cores if h["device"] == "cpu" else "")


# ------------------------------------------------------- what the algorithm files say of themselves


def changed_settings(row: Row, root: Path) -> dict[str, tuple[str, str]]:
    """{argument: (value, default or preset)} where they differ; swept ones are rows."""
    args = row.record["args"]
    usual = default_settings(root, row.record["file"], row.dataset, args.get("preset", "auto"))
    return {
        name: (show(args[name]), show(usual[name]))
        for name in sorted(args.keys() & usual.keys() - BOOKKEEPING - row.record["lanes"][0].keys())
        if args[name] != usual[name]
    }


def show(value) -> str:
    if isinstance(value, list):
        return "×".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def default_settings(root: Path, file: str, dataset: str, preset: str) -> dict:
    """Defaults of RunArgs and of the file's Args, then its preset; nothing is imported."""
    usual: dict = {}
    names: dict = {}
    for path in (root / "shared" / "run.py", root / file):
        for node in ast.parse(path.read_text()).body if path.exists() else []:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Args"):
                fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
                usual |= {ast.unparse(f.target): _value(f.value, names) for f in fields}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                names[ast.unparse(target)] = _value(node.value, names)
    presets = names.get("PRESETS") or {}
    name = dataset.lower().replace("/", "-").replace("_", "-")
    picked = max((key for key in presets if key in name), key=len, default="")
    usual |= presets.get(picked if preset == "auto" else preset, {})
    known = {name: value for name, value in usual.items() if value is not None}
    return json.loads(json.dumps(known))  # tuples as run.json has them


def _value(node: ast.expr | None, names: dict):
    """What an expression of literals, `dict` and earlier such names is worth; else None."""
    try:
        scope = {"__builtins__": {}, "dict": dict, **names}
        return None if node is None else eval(compile(ast.Expression(node), "", "eval"), scope)
    except Exception:  # a call of something else
        return None


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


def speed_section(root: Path) -> str:
    """results/speed.json (of speed.py) and results/peer_speed.json (of peer_speed.py), where they exist."""
    made = ((root / "results" / "speed.json", speed_table), (root / "results" / "peer_speed.json", peer_table))
    parts = [table(json.loads(path.read_text())) for path, table in made if path.exists()]
    return "\n\n".join(parts) or "Not measured yet."


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
        rates = [f"{of[n]['updates_per_s']['median']:,.0f}" if n in of else "" for n in lanes]
        memory = f"{max(c['memory_mib'] for c in of.values()):,.0f} MiB"
        data = f"{one['dataset_mib']:,.0f} MiB"
        compile_s = f"{max(c['compile_s'] for c in of.values()):.1f} s"
        body.append([*key, nets, *rates, compile_s, memory, data])
    titles = [f"{n} lane{'s' * (n > 1)}" for n in lanes]
    header = ["algorithm", "data", "networks", *titles, "compile", "peak memory", "dataset"]
    device = next(c["device"] for c in measured["cases"])
    cores = measured["hardware"]["cores"]
    note = (
        f"Gradient updates per second, all lanes together, compile time apart, on 1M synthetic transitions "
        f"(hopper: obs 11, act 3; ant: obs 111, act 8); {device}, {cores} cores; median of the timed calls "
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
    return "\n\n".join([measured["note"], markdown(header, body)])


CAPTION = """\
Mean ± standard deviation over lanes, and their interquartile mean with its 95 %
stratified-bootstrap interval. A lane is one seed of one setting; its result is the mean over the
episodes of its last evaluation (the best over training is used nowhere). Normalised scores, or
returns where the header says so. Diverged lanes are kept and marked †."""


def documents(rows: list[Row], left_out: list[str], root: Path) -> dict[Path, str]:
    """{file: its whole text} of everything that is generated, pictures apart."""
    full = score_section(rows, root, compact=False)
    parts = ["# Results", "Made by `make report`; do not edit.", CAPTION, full, *left_out]
    if rows:
        ordered = sorted(rows, key=lambda r: r.run)
        parts += ["## Runs", details_table(ordered, root)]
    pages = {root / "results" / "tables.md": "\n\n".join(parts) + "\n"}
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
    for page in (root / "README.md", root / "results" / "README.md"):
        if page.exists():
            pages[page] = replace_sections(page.read_text(), sections)
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
        body.append([*cells, f"{speed(row.record):,.0f}"])
    for label, values in baselines(rows).items():
        body += [[d, f"*{label}*", f"{value:.1f}", "", "", ""] for d, value in values.items()]
    body.sort(key=lambda cells: cells[0])
    return markdown(["dataset", "run", "score", "IQM [95 %]", "lanes × budget", "steps/s"], body)


def fine_tuning_table(rows: list[Row]) -> str:
    """What interaction did to the policies of offline runs; empty where there are none."""
    rows = [row for row in rows if online(row) and row.metric == "score" and row.steps["env_step"].any()]
    body = []
    for row in sorted(rows, key=lambda r: r.dataset):
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        result = fine_tuning(row.steps["env_step"], row.curve.T)
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
    """One line per claim."""
    link = "results/claims.md"
    unsaid = {True: "some of its runs are still missing", False: "not run yet"}
    rows = [[f"[{c.title}]({link}#{anchor(c.title)})", c.finding or unsaid[bool(claim_rows(c, root))]] for c in CLAIMS]
    return markdown(["claim", "found"], rows) if rows else "None yet."


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


# ---------------------------------------------------------------------------------------- pictures

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A"]
STYLES = ["-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
GREY = "#555555"


def slug(dataset: str) -> str:
    return dataset.replace("/", "-").strip("-")


def draw(axes, rows: list[Row], looks: dict[tuple, int]) -> None:
    """IQM over lanes and its interval by updates (environment steps if all are online)."""
    x_name = "env_step" if all(online(row) for row in rows) else "update"
    last: dict[str, float] = {}
    for label, group in labels(rows).items():
        row = group[0]
        lanes = row.curve[np.isfinite(row.curve).all(1)]
        lost = len(row.curve) - len(lanes)
        label += f" ({lost} of {len(row.curve)} lanes lost)" if lost else ""
        if not len(lanes):
            continue
        middle, low, high = np.array([iqm_interval(lanes[:, [t]]) for t in range(lanes.shape[1])]).T
        reference, n = row.algorithm == "bc", looks[identity(row)]
        colour = GREY if reference else COLOURS[n % len(COLOURS)]
        style = (0, (4, 2)) if reference else STYLES[n // len(COLOURS) % len(STYLES)]
        axes.plot(row.steps[x_name], middle, color=colour, ls=style, lw=1.8, label=label, zorder=3)
        axes.fill_between(row.steps[x_name], low, high, color=colour, alpha=0.15, lw=0)
        last[label] = middle[-1]
    for n, (name, values) in enumerate(baselines(rows).items()):
        (value,) = values.values()
        axes.axhline(value, color="#999999", ls=":", lw=1.2, zorder=1)
        x, ha = (0, "left") if n % 2 == 0 else (1, "right")  # apart, should both be the same
        side = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": ha}
        axes.annotate(name, (x, value), xytext=(4 - 8 * x, 2), fontsize=8, color="#777777", **side)
    axes.set_xlabel("environment steps" if x_name == "env_step" else "gradient updates")
    axes.set_ylabel("normalised score" if rows[0].metric == "score" else "return")
    axes.set_title(rows[0].dataset, loc="left", fontsize=11, fontweight="bold")
    caption = "IQM over lanes, 95 % bootstrap interval"
    axes.set_title(caption, loc="right", fontsize=8, color="#777777")
    axes.xaxis.set_major_formatter(lambda x, _: short(round(x)))
    axes.set_xlim(left=0)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(handles, key=lambda label: -last[label])  # as the lines end, from top to bottom
    axes.legend(
        [handles[label] for label in order], order, frameon=False, fontsize=9,
        loc="upper left", bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip


def write_picture(path: Path, rows: list[Row], looks: dict[tuple, int]) -> None:
    """One panel per dataset."""
    from matplotlib.figure import Figure

    datasets = sorted({row.dataset for row in rows})
    figure = Figure(figsize=(7.2, 3.8 * len(datasets)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(datasets), squeeze=False)[:, 0]
    for axes, dataset in zip(panels, datasets, strict=True):
        draw(axes, [row for row in rows if row.dataset == dataset], looks)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def identity(row: Row) -> tuple[str, str, str]:
    return row.algorithm, row.setting, row.run.name


def appearances(rows: list[Row]) -> dict[tuple, int]:
    """A number for every line but bc's, the same in all pictures of a report."""
    names = sorted({identity(row) for row in rows}, key=lambda name: (name[0] == "bc", name))
    return {name: n for n, name in enumerate(names)}


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
            path.write_text(text)
        looks = appearances(rows)
        for dataset in sorted({row.dataset for row in rows}):
            group = [row for row in rows if row.dataset == dataset]
            write_picture(root / "results" / "curves" / f"{slug(dataset)}.png", group, looks)
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
