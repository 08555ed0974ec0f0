"""A claim and its checks: comparisons over the raw files of runs, of which the degree is computed.

A check is an ordinary comparison between quantities of runs, which is not evaluated until someone reads it:

    ours, plain = offline("riql", MAZE, ...), offline("iql", MAZE, ...)
    end(ours) > end(plain) + noise(end(ours), end(plain))

Scores are normalised (0 to 100) where the dataset has reference returns, else returns. `end`, `start`, `dip`, ...
are means over the lanes of a run; `course` is the curve of that mean; arrays are compared element by element, and
the comparison holds if it does everywhere. A value that is not finite lets no comparison hold.
"""

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_1samp, ttest_ind

from results import raw
from results.grid import Entry, evaluation_file
from shared.errors import InputError
from shared.evaluation import fine_tuning


class Missing(InputError):
    """A run or measurement that a check needs is not there, or not finished."""


class Raw:
    """The raw files under `root`, each read once."""

    def __init__(self, root: Path):
        self.root = root
        self._rows: dict[Path, list[raw.Row]] = {}
        self.sides: dict[Comparison, tuple[float, float]] = {}
        """Of the comparisons that were made: every page asks for some of them again."""

    def rows(self, run: Entry) -> list[raw.Row]:
        """Of a finished run, one row for each swept setting.

        Raises:
          Missing: there is no such run, or it has not been finished.
        """
        directory = self.root / run.directory()
        if directory not in self._rows:
            found = raw.read_run(directory) if (directory / "run.json").exists() else []
            self._rows[directory] = [row for row in found if row.record["status"] == "finished"]
        if not self._rows[directory]:
            raise Missing(f"{run.directory().as_posix()} has not been run.")
        return self._rows[directory]

    def row(self, run: Entry, setting: str) -> raw.Row:
        rows = {row.setting: row for row in self.rows(run)}
        if setting not in rows:
            raise InputError(f"{run.directory().as_posix()} has no setting '{setting}', but {', '.join(rows)}.")
        return rows[setting]

    def changed(self, run: Entry, setting: str, change: str) -> raw.Row:
        """The same lanes evaluated under changed arguments."""
        row = self.row(run, setting)
        if not evaluation_file(row.run, change).exists():
            raise Missing(f"{run.directory().as_posix()} was not evaluated under {change}.")
        return raw.read_evaluation(row, change)

    def measurement(self, name: str, **which) -> dict:
        """The case of results/<name>.json with these values."""
        path = self.root / "results" / f"{name}.json"
        cases = json.loads(path.read_text())["cases"] if path.exists() else []
        found = [case for case in cases if all(case.get(key) == value for key, value in which.items())]
        if len(found) != 1:
            raise Missing(f"results/{name}.json has {len(found)} measurements of {which}.")
        return found[0]


class Quantity:
    """A number or a curve [T] that the raw files give; arithmetic and comparisons make other ones of it."""

    def __init__(self, value: Callable[[Raw], np.ndarray], runs: frozenset[Entry] = frozenset()):
        self.value = value
        self.runs = runs

    def __getitem__(self, index) -> "Quantity":
        return Quantity(lambda files: self.value(files)[index], self.runs)

    def min(self) -> "Quantity":
        return Quantity(lambda files: self.value(files).min(), self.runs)

    def max(self) -> "Quantity":
        return Quantity(lambda files: self.value(files).max(), self.runs)

    def mean(self) -> "Quantity":
        return Quantity(lambda files: self.value(files).mean(), self.runs)

    def __add__(self, other):
        return combined(operator.add, self, other)

    def __sub__(self, other):
        return combined(operator.sub, self, other)

    def __mul__(self, other):
        return combined(operator.mul, self, other)

    def __truediv__(self, other):
        return combined(operator.truediv, self, other)

    def __rmul__(self, other):
        return combined(operator.mul, other, self)

    def __abs__(self):
        return Quantity(lambda files: np.abs(self.value(files)), self.runs)

    def __gt__(self, other):
        return Comparison(self, ">", quantity(other))

    def __lt__(self, other):
        return Comparison(self, "<", quantity(other))

    def __ge__(self, other):
        return Comparison(self, ">=", quantity(other))

    def __le__(self, other):
        return Comparison(self, "<=", quantity(other))

    def __bool__(self):
        raise TypeError("a quantity has no truth before the raw files are read")


class LaneMean(Quantity):
    """The mean over the lanes of a run, whose values [L] stay known for `noise`."""

    def __init__(self, lanes: Callable[[Raw], np.ndarray], runs: frozenset[Entry]):
        super().__init__(lambda files: lanes(files).mean(), runs)
        self.lanes = lanes


SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


class Comparison:
    """`left` > `right` (or <, >=, <=), once the raw files are read."""

    def __init__(self, left: Quantity, sign: str, right: Quantity):
        self.left, self.sign, self.right = left, sign, right
        self.runs = left.runs | right.runs

    def sides(self, files: Raw) -> tuple[float, float]:
        """Left and right; of curves, where it is the closest to not holding.

        Raises:
          Missing: a run or a measurement is not there.
        """
        if self not in files.sides:
            left, right = np.broadcast_arrays(*(np.asarray(q.value(files), float) for q in (self.left, self.right)))
            ahead = (left - right if self.sign[0] == ">" else right - left).ravel()
            closest = int(np.argmin(np.where(np.isfinite(ahead), ahead, -np.inf)))
            files.sides[self] = float(left.ravel()[closest]), float(right.ravel()[closest])
        return files.sides[self]

    def holds(self, files: Raw) -> bool:
        return SIGNS[self.sign](*self.sides(files))

    def __bool__(self):
        raise TypeError("a comparison has no truth before the raw files are read; of two, state each by itself")


def quantity(x: "Quantity | float") -> Quantity:
    return x if isinstance(x, Quantity) else Quantity(lambda files: np.asarray(x, float))


def combined(how: Callable, *operands: "Quantity | float") -> Quantity:
    parts = [quantity(x) for x in operands]
    return Quantity(lambda files: how(*(part.value(files) for part in parts)), runs_of(parts))


def runs_of(parts) -> frozenset[Entry]:
    return frozenset().union(*(part.runs for part in parts))


# ------------------------------------------------------------------------- what is read of a run


def of_lanes(run: Entry, setting: str, value: Callable[[raw.Row], np.ndarray]) -> LaneMean:
    return LaneMean(lambda files: value(files.row(run, setting)), frozenset([run]))


def course(run: Entry, setting: str = "") -> Quantity:
    """[T]: mean over lanes at each evaluation; a fine-tuning run begins with the end of its offline training."""
    return Quantity(lambda files: files.row(run, setting).curve.mean(0), frozenset([run]))


def end(run: Entry, setting: str = "") -> LaneMean:
    """At the last evaluation."""
    return of_lanes(run, setting, lambda row: row.final)


def end_return(run: Entry, setting: str = "") -> LaneMean:
    """At the last evaluation, in the unit of the rewards even where there are scores."""
    return of_lanes(run, setting, lambda row: raw.final_episodes(row._replace(metric="return")).mean(1))


def of_task(number: int, run: Entry, setting: str = "") -> LaneMean:
    """At the last evaluation, in one of the environment's tasks."""
    return of_lanes(run, setting, lambda row: raw.final_episodes(row, number).mean(1))


def start(run: Entry, setting: str = "") -> LaneMean:
    """At the first evaluation: of a fine-tuning run, at the end of its offline training."""
    return of_lanes(run, setting, lambda row: row.curve[:, 0])


def gain(run: Entry, setting: str = "") -> LaneMean:
    """`end` minus `start`, lane by lane."""
    return of_lanes(run, setting, lambda row: row.final - row.curve[:, 0])


def online_mean(run: Entry, setting: str = "") -> LaneMean:
    """Mean over the evaluations after the first environment step: high for who learns early."""
    return of_lanes(run, setting, lambda row: row.curve[:, row.steps["env_step"] > 0].mean(1))


def last_mean(run: Entry, setting: str = "") -> LaneMean:
    """Mean over the last quarter of the evaluations after the first environment step."""
    return of_lanes(run, setting, lambda row: row.curve[:, -max(1, (row.steps["env_step"] > 0).sum() // 4) :].mean(1))


def dip(run: Entry, setting: str = "") -> LaneMean:
    """How far a lane falls below its offline level in the first fifth of the environment steps; at least 0."""
    return of_lanes(run, setting, lambda row: fine_tuning(row.steps["env_step"], row.curve.T).dip)


def fall(run: Entry, setting: str = "") -> LaneMean:
    """How far a lane ever falls below its offline level while it interacts; at least 0."""
    return of_lanes(run, setting, lambda row: np.maximum(row.curve[:, 0] - row.curve[:, 1:].min(1), 0))


def under(change: str, run: Entry, setting: str = "") -> LaneMean:
    """Score of the finished run, evaluated again under changed arguments (`a=1 b=2`)."""
    return LaneMean(lambda files: files.changed(run, setting, change).final, frozenset([run]))


def lost(change: str, run: Entry, setting: str = "") -> LaneMean:
    """`end` minus `under`, lane by lane."""
    return LaneMean(
        lambda files: files.row(run, setting).final - files.changed(run, setting, change).final, frozenset([run])
    )


def logged(name: str, run: Entry, setting: str = "", file: str = "metrics.csv") -> LaneMean:
    """Mean of a metric over the last fifth of the run, or of the phase that `file` logs: what the mechanism acts on."""
    return of_log(file, run, setting, lambda row: raw.logged(row, name, file))


def logged_at(step: int, name: str, run: Entry, setting: str = "", file: str = "metrics.csv") -> LaneMean:
    """A metric as it was logged at one step of the environment, or at one update where `file` has no such steps."""
    return of_log(file, run, setting, lambda row: raw.logged_at(row, name, step, file))


def of_log(file: str, run: Entry, setting: str, value: Callable[[raw.Row], np.ndarray]) -> LaneMean:
    def found(row: raw.Row) -> np.ndarray:
        if not (row.run / file).exists():
            raise Missing(f"{run.directory().as_posix()} has no {file}: what it logged was lost.")
        return value(row)

    return of_lanes(run, setting, found)


def first_step(name: str, level: float, run: Entry, setting: str = "", unit: float = 1.0) -> LaneMean:
    """Environment steps, in `unit`s, until a logged metric is `level` or more; the whole run where it never is."""
    return of_lanes(run, setting, lambda row: raw.first_step(row, name, level) / unit)


def pace(run: Entry) -> Quantity:
    """Updates per second of all lanes together, without compilation and evaluation; of runs on one machine."""
    return Quantity(lambda files: np.asarray(raw.pace(files.rows(run)[0])), frozenset([run]))


def highest(*means: LaneMean) -> LaneMean:
    """The one with the highest mean."""
    return LaneMean(lambda files: max((m.lanes(files) for m in means), key=np.mean), runs_of(means))


def lowest(*means: LaneMean) -> LaneMean:
    """The one with the lowest mean."""
    return LaneMean(lambda files: min((m.lanes(files) for m in means), key=np.mean), runs_of(means))


def noise(*means: LaneMean) -> Quantity:
    """Two standard errors of the difference (or sum) of means over lanes: what chance alone does to it."""

    def value(files: Raw) -> np.ndarray:
        lanes = [m.lanes(files) for m in means]
        return 2 * np.sqrt(sum(x.var(ddof=1) / len(x) for x in lanes))

    return Quantity(value, runs_of(means))


def above(one: LaneMean, other: LaneMean) -> "Comparison":
    """Whether `one` is above `other`, beyond noise."""
    return one > other + noise(one, other)


def below(one: LaneMean, other: LaneMean) -> "Comparison":
    """Whether `one` is below `other`, beyond noise."""
    return one < other - noise(one, other)


def dataset_mean(run: Entry) -> Quantity:
    """The mean over the episodes of the run's dataset, in the unit of its results."""
    return Quantity(
        lambda files: np.asarray(raw.baselines(files.rows(run)[:1])["dataset mean"][files.rows(run)[0].dataset]),
        frozenset([run]),
    )


SIGNIFICANT = 0.05
"""Of `verdict`: the probability with which chance alone makes a difference as large."""


def verdict(mean: LaneMean, other: "LaneMean | Quantity | float", margin: float = 0.0) -> Quantity:
    """1 where `mean` is significantly more than `margin` above `other`, -1 where it is as far below, else 0.

    One-sided t-tests over the lanes: Welch's against other lanes, the one of one sample against a number. NaN where a
    lane is not finite.
    """
    other = quantity(other)

    def value(files: Raw) -> np.ndarray:
        lanes = mean.lanes(files)
        if isinstance(other, LaneMean):
            test = lambda shift, way: ttest_ind(lanes, other.lanes(files) + shift, equal_var=False, alternative=way)  # noqa: E731
        else:
            test = lambda shift, way: ttest_1samp(lanes, float(other.value(files)) + shift, alternative=way)  # noqa: E731
        higher, lower = test(margin, "greater").pvalue, test(-margin, "less").pvalue
        decided = float(higher < SIGNIFICANT) - float(lower < SIGNIFICANT)
        return np.asarray(decided if np.isfinite([higher, lower]).all() else np.nan)

    return Quantity(value, runs_of([mean, other]))


def share(conditions: "list[Comparison]") -> Quantity:
    """Of the comparisons, how many hold, from 0 to 1."""
    return Quantity(lambda files: np.mean([c.holds(files) for c in conditions]), runs_of(conditions))


def rank_correlation(run: Entry) -> LaneMean:
    """Of a run's values with the fewest steps to goals, by results/goal_distances.py: 1 is the right order."""
    which = {"run": run.directory().as_posix()}
    return LaneMean(
        lambda files: np.array(files.measurement("goal_distances", **which)["correlation"]), frozenset([run])
    )


def updates_per_s(algorithm: str) -> Quantity:
    """Of one lane with the file's default sizes, by results/speed.py."""
    which = {"algorithm": algorithm, "shape": "hopper", "lanes": 1}
    return Quantity(lambda files: np.asarray(files.measurement("speed", **which)["updates_per_s"]["median"]))


def action_ms(algorithm: str, observations: int = 1000, candidates: int = 1) -> Quantity:
    """Milliseconds to choose actions, by results/action_time.py."""
    which = {"algorithm": algorithm, "batch": observations, "candidates": candidates}
    return Quantity(lambda files: np.asarray(files.measurement("action_time", **which)["ms"]["median"]))


# ---------------------------------------------------------------------------------------- claims

SEEN, IN_PART, HARDLY, NOT_SEEN, NOT_RUN = "seen", "seen in part", "hardly seen", "not seen", "not run yet"
DEGREES = (SEEN, IN_PART, HARDLY, NOT_SEEN, NOT_RUN)
RULE = """\
How far a claim is seen is computed from its checks, comparisons that state what the paper says, on each problem
that was tried: *seen* if all hold, *seen in part* if more than a third hold, *hardly seen* if fewer do, *not seen* if
none does. A check whose runs are missing does not hold; a claim of which all are missing is *not run yet*. Where a
check asks for a difference beyond noise, that is two standard errors of the difference of the means over lanes. The
numbers beside a check are its two sides, that margin included; of curves, where they are closest to not holding.
A page also names the runs whose values had not settled: a claim may be seen with more updates, or faster targets."""


class Said(NamedTuple):
    """A cell of a table: the word for what a quantity is."""

    quantity: Quantity
    words: dict[float, str]

    def __call__(self, files: Raw) -> str:
        return self.words.get(float(self.quantity.value(files)), "–")


class Table(NamedTuple):
    """A table of a claim's page, made from the raw files; a cell is a text, a quantity, or what is said of one."""

    caption: str
    header: list[str]
    rows: list[list[str | Quantity | Said]]


class Amounts(NamedTuple):
    """A picture of a claim's page: means over lanes against an amount."""

    title: str
    x: str
    y: str
    lines: dict[str, dict[str, LaneMean]]
    """{line: {amount, as the axis has it: what is drawn above it}}, least amount first"""

    def points(self, files: Raw) -> dict[str, dict[str, tuple[float, float]]]:
        """{line: {amount: (mean, two standard errors)}} of the runs that are there."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for line, values in self.lines.items():
            for amount, mean in values.items():
                try:
                    point = float(mean.value(files)), float(noise(mean).value(files))
                except Missing:
                    continue
                found.setdefault(line, {})[amount] = point
        return found


class Claim(NamedTuple):
    """What a paper says its algorithm does, the runs that can show it, and what they show."""

    title: str
    paper: str
    """What the paper claims, with the source."""
    runs: list[Entry]
    checks: dict[str, Comparison]
    """{a sentence: the comparison that it says}: the paper's claim on each problem. They decide the degree."""
    finding: str = ""
    """What the runs show, and why where they contradict the paper. No degree, and no number without a comparison."""
    observed: dict[str, Comparison] = {}
    """What else the finding rests on; these must hold. They count for nothing."""
    table: Table | None = None
    amounts: Amounts | None = None


def holds(comparison: Comparison, files: Raw) -> bool | None:
    """None if a run or measurement is missing."""
    try:
        return comparison.holds(files)
    except Missing:
        return None


def degree(claim: Claim, files: Raw) -> str:
    """One of DEGREES, by RULE."""
    found = [holds(comparison, files) for comparison in claim.checks.values()]
    held = found.count(True)
    if found.count(None) == len(found):
        return NOT_RUN
    if held == len(found):
        return SEEN
    return IN_PART if 3 * held > len(found) else HARDLY if held else NOT_SEEN
