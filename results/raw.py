"""What the raw files of results/ say: runs, their lanes, and how they were made.

`results/runs/<algorithm>/<dataset>/<run>/{run.json, returns.csv}` are all that is read, beside the source of the
algorithm files, whose defaults and presets show which settings of a run were changed.
"""

import ast
import dataclasses
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd

from results.grid import evaluation_file
from shared.arguments import preset_for
from shared.checkpoint import renamed
from shared.errors import ROOT, InputError

# Arguments that say where and how a run was made, not what was computed.
BOOKKEEPING = {"dataset", "env", "seeds", "seed", "out", "resume", "wandb", "preset", "distributed", "layout"}
BOOKKEEPING |= {"log_every", "eval_every", "checkpoint_every"}


class Row(NamedTuple):
    """One setting of one run: its lanes differ only in their seed."""

    run: Path
    record: dict
    """run.json, its arguments under today's names."""
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
    known = arguments_of(ROOT / record["file"])
    record["args"] = renamed(record["args"], known)
    record["lanes"] = [renamed(lane, known) for lane in record["lanes"]]
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
    """All rows under `root`/results/runs, and a sentence for every run that is left out."""
    rows, left_out = [], []
    for path in sorted((root / "results" / "runs").glob(f"*/*/{glob}/run.json")):
        found = read_run(path.parent)
        status = json.loads(path.read_text())["status"]
        name = path.parent.relative_to(root / "results" / "runs").as_posix()
        if status != "finished":
            left_out.append(f"`{name}` is left out: its status is {status}.")
        elif not found:
            left_out.append(f"`{name}` is left out: it was never evaluated.")
        else:
            rows += found
    unversioned = {_data(row) for row in rows if row.dataset == _data(row)[0]}
    for row in rows:  # the same data is one dataset, whether a run names its version or not
        if _data(row) in unversioned:
            row.record["task"]["id"] = _data(row)[0]
    return rows, left_out


def _data(row: Row) -> tuple[str, str]:
    """Name without version, and hash, of what a run learned from."""
    return re.sub(r"-v\d+$", "", row.dataset), row.record["task"].get("hash", "")


def read_plans(root: Path) -> dict[str, list[dict]]:
    """{algorithm: its cases of results/plans.json}, which results/plans.py writes."""
    path, found = root / "results" / "plans.json", {}
    for case in json.loads(path.read_text())["cases"].values() if path.exists() else []:
        found.setdefault(case["algorithm"], []).append(case)
    return found


def read_values(root: Path) -> dict[str, list[dict]]:
    """{algorithm: its cases of results/goal_distances.json}, which results/goal_distances.py writes."""
    path, found = root / "results" / "goal_distances.json", {}
    for case in json.loads(path.read_text())["cases"] if path.exists() else []:
        if "over_the_maze" in case:
            found.setdefault(case["algorithm"], []).append(case)
    return found


def runs_of(rows: list[Row]) -> dict[Path, dict]:
    return {row.run: row.record for row in rows}


def online(row: Row) -> bool:
    return "env_steps" in row.record["args"]


def family(row: Row) -> str:
    """The environment without its version and variant: PointMaze_UMaze-v3 -> PointMaze."""
    env = row.record["task"].get("env") or row.dataset
    env_id = env["id"] if isinstance(env, dict) else env  # the first runs wrote the id alone
    return re.sub(r"-v\d+$", "", env_id.split("/")[-1]).split("_")[0]


def identity(row: Row) -> tuple[str, str, str]:
    return row.algorithm, row.setting, row.run.name


def baselines(rows: list[Row]) -> dict[str, dict[str, float]]:
    """{"dataset mean": {dataset id: value}, ...}, as scores where the dataset has them; of what is known alone."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        task = row.record["task"]
        known = {label: value for label, value in task["baselines"].items() if np.isfinite(value)}
        for label, value in known.items():
            if row.metric == "score":
                low, high = task["reference"]["min"], task["reference"]["max"]
                value = 100 * (value - low) / (high - low)
            found.setdefault(label, {})[row.dataset] = value
    return found


PUBLISHED = Path(__file__).resolve().parent / "published.json"
"""Figures of papers, typed: each with its source."""


def published(rows: list[Row], file: Path = PUBLISHED) -> list[dict]:
    """The figures of papers {dataset, tasks, algorithm, mean, sd, source} for algorithms and datasets that `rows` have.

    Of a single task's dataset those of that task; the means of five tasks are of five datasets.
    """
    here = {(row.algorithm, row.dataset) for row in rows}
    known = json.loads(file.read_text())["rows"]
    return [x for x in known if (x["algorithm"], x["dataset"]) in here and x["tasks"] != "mean of 5"]


def speed(record: dict) -> float:
    """Steps per second of all lanes together, evaluation and checkpoints in, compilation out.

    NaN where the time holds another phase than the steps': offline updates before interaction, or those of a VAE.
    """
    seconds = record["wall_s"] - record["compile_s"]
    phases = {"offline_updates", "vae_updates", "pretrain_updates"} & record["args"].keys()
    return np.nan if phases or seconds <= 0 else len(record["lanes"]) * record["steps_done"] / seconds


def hardware(record: dict) -> str:
    h = record["hardware"]
    cores = f" on {h['cores']} core{'s' * (h['cores'] > 1)}"
    return f"{h['devices']} × {h['device']}" + (cores if h["device"] == "cpu" else "")


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
    """Defaults of the arguments of an algorithm's file, then its preset, as run.json has them."""
    script = (root / file).resolve()  # it is imported, so that a record must not name any other
    if (root / "algorithms").resolve() not in script.parents or not script.exists():
        return {}
    module = load_algorithm(script)
    known = preset == "auto" or preset in module.PRESETS  # an old run may have one that is gone
    key = preset_for(dataset, module.PRESETS, preset if known else "none")
    usual = dataclasses.asdict(module.Args()) | module.PRESETS.get(key, {})
    return json.loads(json.dumps(usual))


@cache
def arguments_of(script: Path) -> frozenset[str]:
    """Names of the arguments of an algorithm's file that are its own; none where there is no such file any more."""
    if (ROOT / "algorithms").resolve() not in script.resolve().parents or not script.exists():
        return frozenset()
    (cls,) = [x for x in ast.parse(script.read_text()).body if isinstance(x, ast.ClassDef) and x.name == "Args"]
    return frozenset(x.target.id for x in cls.body if isinstance(x, ast.AnnAssign))


@cache
def load_algorithm(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(str(script), script)
    module = sys.modules[str(script)] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def final_episodes(row: Row, task: int | None = None) -> np.ndarray:
    """[lanes, episodes]: each episode of the last evaluation (those of one `task`), in the unit of `row`."""
    table = pd.read_csv(row.run / "returns.csv")
    last = table[(table["update"] == row.steps["update"][-1]) & (table["env_step"] == row.steps["env_step"][-1])]
    last = last if task is None else last[last["task"] == task]
    return last.pivot(index="lane", columns="episode", values=row.metric).loc[row.lanes].to_numpy()


def logged(row: Row, name: str, file: str = "metrics.csv") -> np.ndarray:
    """[lanes] mean of a metric over the last fifth of the steps in `file`.

    Raises:
      InputError: there is no such metric.
    """
    table = pd.read_csv(row.run / file)
    if name not in table:
        raise InputError(f"{row.run.name} has logged no '{name}', but {', '.join(table.columns)}.")
    at = "env_step" if table["env_step"].any() else "update"
    last = table[table[at] >= 0.8 * table[at].max()]
    return last.groupby("lane")[name].mean().reindex(row.lanes).to_numpy()


def logged_at(row: Row, name: str, step: int, file: str = "metrics.csv") -> np.ndarray:
    """[lanes] a metric in the row of `file` at one step of the environment, or one update where none were made.

    Raises:
      InputError: there is no such metric, or nothing was logged then.
    """
    table = pd.read_csv(row.run / file)
    if name not in table:
        raise InputError(f"{row.run.name} has logged no '{name}', but {', '.join(table.columns)}.")
    at = "env_step" if table["env_step"].any() else "update"
    then = table[table[at] == step]
    if then.empty:
        raise InputError(f"{row.run.name} has logged nothing at {at} {step:,} in {file}.")
    return then.groupby("lane")[name].mean().reindex(row.lanes).to_numpy()


def first_step(row: Row, name: str, level: float) -> np.ndarray:
    """[lanes] environment steps at the first row of metrics.csv where a metric is `level` or more.

    Those of the whole run where it never is.

    Raises:
      InputError: there is no such metric.
    """
    table = pd.read_csv(row.run / "metrics.csv")
    if name not in table:
        raise InputError(f"{row.run.name} has logged no '{name}', but {', '.join(table.columns)}.")
    first = table[table[name] >= level].groupby("lane")["env_step"].min()
    return first.reindex(row.lanes, fill_value=table["env_step"].max()).to_numpy(float)


def pace(row: Row) -> float:
    """Updates per second of all lanes of the run together: the median over the stretches between rows of metrics.csv.

    Compilation comes before the first row, and an evaluation makes one stretch longer: neither counts.

    Raises:
      InputError: fewer than four rows for each lane.
    """
    table = pd.read_csv(row.run / "metrics.csv")
    times = table.groupby("update")["wall_s"].max()
    if len(times) < 4:
        raise InputError(f"{row.run.name} has {len(times)} rows of metrics for each lane, too few for its pace.")
    return table["lane"].nunique() * float(np.median(np.diff(times.index) / np.diff(times)))


def labels(rows: list[Row]) -> dict[str, list[Row]]:
    """Table rows: bc first, then by name. The run's name is shown where there are several."""
    several = len({row.run.name for row in rows}) > 1
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.algorithm != "bc", r.algorithm, r.run.name)):
        name = f"({row.run.name})" if several else ""
        label = " ".join(filter(None, [row.algorithm, row.setting, name]))
        groups.setdefault(label, []).append(row)
    return groups


def short(n: int) -> str:
    """100000 -> 100k, 1500000 -> 1.5M."""
    if n >= 1_000_000 and n % 100_000 == 0:
        return f"{n / 1e6:g}M"
    return f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else f"{n:,}"
