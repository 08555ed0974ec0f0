"""What a run leaves behind: run.json, its tables, curve.png, the table on the terminal, and wandb."""

import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import resource
import sys
import uuid
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from shared.checkpoint import holds_checkpoint, replacing
from shared.errors import InputError
from shared.evaluation import fine_tuning, interval
from shared.task import Task

TABLES = ("before", "offline", "metrics", "returns")
LANE_COLUMNS = ["lane", "seed", "update", "env_step"]
_PACKAGES = ("jax", "flax", "optax", "gymnasium", "mujoco", "numpy")


def status_of(run_dir: Path) -> str:
    """The status in run.json; empty where that is not readable."""
    try:
        return str(json.loads((run_dir / "run.json").read_text())["status"])
    except (ValueError, KeyError, TypeError):
        return ""


def refuse_to_overwrite(folder: Path) -> None:
    """InputError where a new run would overwrite another that can go on, or tables that are of no run."""
    recorded = (folder / "run.json").exists()
    if recorded and status_of(folder) in ("finished", "") or holds_checkpoint(folder):
        raise InputError(f"{folder} holds a run already; add --resume or choose another --out.")
    tables = [folder / f"{name}.csv" for name in TABLES]
    if found := [path.name for path in tables if not recorded and path.exists() and path.stat().st_size]:
        raise InputError(f"{folder} holds a {found[0]} that is of no run here; choose another --out.")


class Tables:
    """The CSV files of a run: rows are appended whole or not at all."""

    def __init__(self, out: Path, swept: list[str]):
        """`swept`: columns that follow the lane's seed."""
        self.out, self.swept = out, swept
        self._files: dict[str, io.RawIOBase] = {}

    def append(self, name: str, columns: list[str], rows: list[list]) -> None:
        """Rows of `<name>.csv` in one write, below a header where it is new.

        Raises:
          InputError: the file has other columns, of another version or of another stage's metrics, or two of one name.
        """
        path = self.out / f"{name}.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if name not in self._files:
            self._files[name] = path.open("ab", buffering=0)
        size, at = path.stat().st_size, columns.index("seed") + 1
        columns = [*columns[:at], *self.swept, *columns[at:]]
        if twice := sorted({c for c in columns if columns.count(c) > 1}):
            raise InputError(f"{path} would have two columns '{twice[0]}': name the metric unlike the argument.")
        if size == 0:
            writer.writerow(columns)
        else:
            with path.open(newline="") as file:
                header = next(csv.reader(file))
            if header != columns:
                raise InputError(f"{path} has the columns {', '.join(header)}, not {', '.join(columns)}.")
        writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])
        left = text.getvalue().encode()
        try:
            while left:
                left = left[self._files[name].write(left) :]
        except OSError:
            os.truncate(path, size)  # of these rows all or none
            raise

    def sizes(self) -> dict[str, int]:
        """{name: bytes}, for a checkpoint."""
        return {path.stem: path.stat().st_size for path in self.out.glob("*.csv")}

    def cut(self, sizes: dict[str, int]) -> None:
        """Takes away what was written after those `sizes`: it is computed again."""
        for name in TABLES:
            if (path := self.out / f"{name}.csv").exists():
                os.truncate(path, sizes.get(name, 0))

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Means:
    """The means of metrics {name: [L]} over the chunks since the last logging point.

    Attributes:
      sums: {name: [L]}, of so many chunks: `count`. Both are in a checkpoint.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None, count: int = 0):
        self.sums, self.count = {name: np.array(total) for name, total in (sums or {}).items()}, count

    @staticmethod
    def known_and_all(metrics: dict, lanes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """{name: [L]} of the metrics that are not None (not known yet), and of all of them, those with nan."""
        known = {name: np.asarray(value, np.float64) for name, value in metrics.items() if value is not None}
        return known, {name: known.get(name, np.full(lanes, np.nan)) for name in metrics}

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Those of one chunk; a name that is not among them is dropped."""
        self.sums = {name: self.sums.get(name, 0.0) + m for name, m in metrics.items()}
        self.count += 1

    def take(self) -> dict[str, np.ndarray]:
        """The means, which begin anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def write_record(path: Path, found: dict, devices: int) -> None:
    """run.json: what the run `found` out about itself, with the machine that it ran on."""
    device = jax.local_devices()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = found | {
        "versions": {package: _version(package) for package in _PACKAGES},
        "hardware": {
            "device": device.device_kind,
            "devices": devices,
            "cpu": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "peak_memory_mib": round((device.memory_stats() or {}).get("peak_bytes_in_use", peak) / 2**20),
    }
    with replacing(path) as file:
        file.write(json.dumps(record, indent=1).encode())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# ---------------------------------------------------------------------------- the table at the end


def summarise(
    out: Path, algorithm: str, task: Task, settings: list[dict], swept: list[str],
    returns: np.ndarray, scores: np.ndarray, fine_tuned: bool,
) -> None:  # fmt: skip
    """curve.png, and the table of the last evaluation; `returns` and `scores` [L, episodes], empty without one."""
    table = out / "returns.csv"
    if table.exists():
        plot_curve(out, swept, f"{algorithm} on {task.id}")
    if returns.size:
        print_summary(algorithm, task, settings, returns, scores, table if fine_tuned else None)
    if unsettled(course := value_course(out)):
        print(
            f"\nnote: over the last third of the updates on data alone the mean value went from {course[0]:.3g} to "
            f"{course[1]:.3g}: it had not settled, and more --updates, or targets that follow faster, may end elsewhere"
        )


def value_course(run: Path, lanes: Container[int] | None = None) -> tuple[float, float] | None:
    """Mean Q (V where there is no Q) of the lanes at two thirds of the updates on data alone, and at their end.

    Of the first log with values: of the offline updates, of what came before them, or metrics.csv of a run that never
    interacts. None where there is none of four rows or more.
    """
    for file in ("offline.csv", "before.csv", "metrics.csv"):
        rows = _rows(run / file) if (run / file).exists() else []
        name = next((name for name in ("q", "v") if rows and name in rows[0]), None)
        if name is None or (file == "metrics.csv" and any(int(r["env_step"]) for r in rows)):
            continue
        values: dict[int, list[float]] = {}
        for r in rows:
            if lanes is None or int(r["lane"]) in lanes:
                values.setdefault(int(r["update"]), []).append(float(r[name] or "nan"))
        means = np.array([np.mean(x) for x in values.values()])
        if len(means) >= 4 and np.isfinite(means).all():
            return float(means[round(2 * len(means) / 3) - 1]), float(means[-1])
    return None


def unsettled(course: tuple[float, float] | None) -> bool:
    """Whether the values of `value_course` moved by more than a tenth of what they came to."""
    return course is not None and abs(course[1] - course[0]) > 0.1 * abs(course[1])


def print_summary(
    algorithm: str, task: Task, settings: list[dict], returns: np.ndarray, scores: np.ndarray, table: Path | None
) -> None:
    """The last evaluation of every setting, beside the data's; `returns`, `scores` [L, episodes].

    `table`: returns.csv, of a run that was fine-tuned.
    """
    print(f"\n{'setting':<34}{'lanes':>6}{'return':>10}{'score':>9}{'std':>7}")
    groups: dict[str, list[int]] = {}
    for i, setting in enumerate(settings):
        swept = [f"{k}={v:g}" for k, v in setting.items() if k != "seed"]
        groups.setdefault(" ".join([algorithm, *swept]), []).append(i)
    for label, lanes in groups.items():
        means = scores[lanes].mean(1)
        print(f"{label:<34}{len(lanes):>6}{returns[lanes].mean():>10.1f}{means.mean():>9.1f}{means.std():>7.1f}")
    if task.tasks:
        what = "success (%)" if task.counts_successes else "score" if task.reference else "return"
        values = scores if task.reference else returns
        print(f"\n{what:<34}" + "".join(f"{f'task {number}':>9}" for number in task.tasks))
        for label, lanes in groups.items():
            means = (values[lanes][:, i :: len(task.tasks)].mean() for i in range(len(task.tasks)))
            print(f"{label:<34}" + "".join(f"{mean:>9.1f}" for mean in means))
    for label, value in task.baselines.items():
        print(f"{label:<34}{'':>6}{value:>10.1f}{float(task.score(np.array(value))):>9.1f}")
    if table:
        unit = "score" if np.isfinite(scores).any() else "return"
        curve = _by_env_step(table, unit)
        result = fine_tuning(np.array(list(curve)), np.array(list(curve.values())), unit == "score")
        head = "".join(f"{name:>24}" for name in result._fields)
        print(f"\n{f'fine-tuning ({unit}) [95 % of mean]':<34}{'lanes':>6}{head}")
        for label, lanes in groups.items():
            cells = "".join(f"{_with_interval(x[lanes]):>24}" for x in result)
            print(f"{label:<34}{len(lanes):>6}{cells}")


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open() as f:
        return list(csv.DictReader(f))


def _evaluations(returns: Path) -> list[dict[str, str]]:
    """Rows of returns.csv; where a run interacted, without those from before the end of offline training."""
    rows = _rows(returns)
    if not any(int(r["env_step"]) for r in rows):
        return rows
    first = max((int(r["update"]) for r in rows if r["env_step"] == "0"), default=0)
    return [r for r in rows if r["env_step"] != "0" or int(r["update"]) == first]


def _with_interval(x: np.ndarray) -> str:
    low, high = interval(x)
    return f"{x.mean():.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(x).all() else "-"


def _by_env_step(returns: Path, unit: str) -> dict[int, list[float]]:
    """{environment step: mean "score" or "return" of every lane}."""
    lanes: dict[int, dict[int, list[float]]] = {}
    for r in _evaluations(returns):
        lanes.setdefault(int(r["env_step"]), {}).setdefault(int(r["lane"]), []).append(float(r[unit]))
    return {step: [float(np.mean(of[i])) for i in sorted(of)] for step, of in lanes.items()}


def plot_curve(out: Path, swept: list[str], title: str) -> None:
    """curve.png from returns.csv: every lane thin, the mean of each setting thick."""
    from matplotlib.figure import Figure  # its import takes longer than all else here

    rows = _evaluations(out / "returns.csv")
    y = "score" if all(r["score"] not in ("", "nan") for r in rows) else "return"
    x = "env_step" if any(int(r["env_step"]) for r in rows) else "update"
    lanes: dict[tuple, dict[int, list[float]]] = {}
    for r in rows:
        key = (tuple(f"{k}={r[k]}" for k in swept), r["lane"])
        lanes.setdefault(key, {}).setdefault(int(r[x]), []).append(float(r[y]))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys(key[0] for key in lanes))
    for n, setting in enumerate(settings):
        curves = [{u: np.mean(v) for u, v in c.items()} for k, c in lanes.items() if k[0] == setting]
        for c in curves:
            axes.plot(c.keys(), c.values(), color=f"C{n % 10}", alpha=0.3, lw=0.8)
        mean = {u: np.mean([c[u] for c in curves if u in c]) for u in curves[0]}
        label = " ".join(setting) or f"mean of {len(curves)} seeds"
        axes.plot(mean.keys(), mean.values(), color=f"C{n % 10}", lw=2, marker="o", ms=3, label=label)
    axes.set(xlabel=x.replace("_", " "), ylabel="normalised score" if y == "score" else "return", title=title)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    with replacing(out / "curve.png") as file:
        figure.savefig(file, dpi=120, format="png")


# ------------------------------------------------------------------------------------------ wandb


class WandbLanes:
    """One wandb run per lane of a `Run`, grouped; the first failure is reported and ends the logging only."""

    def __init__(self, run: Any, ids: list[str]):
        """`ids` of the runs that are to go on; empty: new ones."""
        self.runs, self.ids, self.ok = [], ids, True
        self._try(self._open, run)

    def _open(self, run: Any) -> None:
        import wandb

        self.ids = self.ids or [uuid.uuid4().hex[:8] for _ in run.settings]
        for i, (setting, id) in enumerate(zip(run.settings, self.ids, strict=True)):
            self.runs.append(
                wandb.init(
                    project=f"offline-rl-{run.algorithm}",
                    group=f"{run.task.id}/{run.out.name}",
                    name="-".join([run.task.id, *(f"{k}{v}" for k, v in setting.items())]),
                    config={**dataclasses.asdict(run.args), **setting, "lane": i},
                    mode=run.args.wandb,
                    dir=str(run.out),
                    reinit="create_new",
                    id=id,
                    resume="allow",
                )
            )

    def log(self, values: dict[str, np.ndarray], steps: list[int]) -> None:
        axes = dict(zip(("update", "env_step"), steps, strict=True))
        for i, one in enumerate(self.runs if self.ok else []):
            self._try(one.log, {n: float(v[i]) for n, v in values.items()} | axes)

    def close(self) -> None:
        for one in self.runs:  # after a failure too: what was logged before is kept
            self._try(one.finish)

    def _try(self, f: Callable, *args: Any) -> None:
        try:
            f(*args)
        except Exception as error:
            if self.ok:
                tqdm.write(f"wandb failed and is off from here on ({error}); training goes on.", file=sys.stderr)
            self.ok = False
