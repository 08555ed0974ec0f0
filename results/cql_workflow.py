"""Which regularisation, early stopping and capacity the workflow for CQL would choose, from what its runs logged.

Kumar, Singh, Tian, Finn and Levine, "A Workflow for Offline Model-Free Robotic Reinforcement Learning", CoRL 2021,
arXiv 2109.10813: as in supervised learning, but by curves that need no environment.

  python results/cql_workflow.py RUN_DIR RUN_DIR ...
  python results/cql_workflow.py results/runs/cql/point-umaze-demos/claim-workflow* --write results/cql_workflow.json

- Over-fitting: the mean Q of the data's actions rises, peaks and falls. The policy at the peak is taken, and what comes
  next is less capacity: a variational bottleneck, then dropout, then l1, then l2, until a curve falls no more.
- Under-fitting: a run that has more capacity, and nothing else, has a lower Bellman error, or a lower value of CQL's
  regulariser (the gap). It takes the place of the smaller one; DR3 goes with it.
- Neither: the last policy.

Runs are compared where they differ in capacity, in regularisation, and in nothing else (data, alpha, rewards, ...). A
curve is the mean over lanes, smoothed over a tenth of its points. It falls where it ends below its peak by more than
--fall of its range, and by more than two standard errors of the lanes; an error is lower by the same two measures, of
its size. These numbers are this file's: the paper judges by eye. A curve that only falls is not called over-fitting:
with rewards below 0 it is learning. Held-out errors and returns are shown beside the choice, and are no part of it.

Metrics: train_q, train_bellman_loss, train_gap (--holdout-episodes), else q, bellman_loss, gap.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.raw import BOOKKEEPING
from shared.checkpoint import replacing
from shared.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CHOICES = {"hidden_dims", "critic_hidden_dims", "critic_dropout", "bottleneck_dim", "bottleneck_weight"}
CHOICES |= {"critic_penalty", "critic_penalty_weight"}
"""Arguments that the workflow chooses."""
FREE = BOOKKEEPING | CHOICES | {"eval_episodes", "max_episode_steps"}
"""Arguments in which runs that are compared may differ."""
WEAKER = {
    "bottleneck": "--bottleneck-dim 16",
    "dropout": "--critic-dropout 0.1",
    "l1": "--critic-penalty l1",
    "l2": "--critic-penalty l2",
}
"""What takes capacity away, in the workflow's order, and how it is asked for."""
POINTS = 10
"""Logging points that a curve needs at least."""


class Curves(NamedTuple):
    """One setting of one run: L lanes at T logging points."""

    run: str
    setting: str
    """Its values of the swept hyperparameters; empty if there are none."""
    args: dict
    step: np.ndarray
    """[T]"""
    q: np.ndarray
    """[L, T] mean Q of the data's actions."""
    bellman_loss: np.ndarray
    gap: np.ndarray
    """[L, T] CQL's regulariser."""
    holdout: np.ndarray | None
    """[L, T] Bellman error of the episodes held out; None: there are none."""
    returns: dict[int, np.ndarray]
    """{update: [L] mean return}: looked at after the choice alone."""

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.run, self.setting]))

    @property
    def capacity(self) -> int:
        """Weights between the critics' hidden layers, and of the first for each input."""
        dims = self.args.get("critic_hidden_dims") or self.args["hidden_dims"]
        return dims[0] + sum(a * b for a, b in zip(dims, dims[1:], strict=False))

    @property
    def regulariser(self) -> tuple[str, ...]:
        """Of WEAKER and "dr3"; empty without any."""
        found = ["bottleneck"] if self.args.get("bottleneck_dim") else []
        found += ["dropout"] if self.args.get("critic_dropout") else []
        return (*found, *self.args.get("critic_penalty", ()))


class Course(NamedTuple):
    """How a curve of the data's Q goes."""

    peak: int
    """Number of the logging point."""
    fall: float
    """From the peak to the end, as a share of the curve's range."""
    kind: str
    """"rises", "peaks" (over-fitting), or "only falls"."""


class Advice(NamedTuple):
    """What the workflow makes of runs that may be compared."""

    verdict: str
    chosen: Curves
    update: int
    """Of the policy to take."""
    next_run: str
    """Arguments of the run to make next, beside those of the chosen one; empty: none."""
    why: list[str]


def read(run: Path) -> list[Curves]:
    """The curves of a run directory, one for each swept setting; lanes that diverged are left out.

    Raises:
      InputError: no run, not of CQL, too few logging points, or nothing finite.
    """
    try:
        record = json.loads((run / "run.json").read_text())
        table = pd.read_csv(run / "metrics.csv")
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run directory: run.json or metrics.csv is not readable ({error}).") from None
    if missing := [name for name in ("q", "bellman_loss", "gap") if name not in table]:
        raise InputError(f"{run} has logged no {missing[0]}: the workflow is for CQL.")
    names = [f"train_{name}" if f"train_{name}" in table else name for name in ("q", "bellman_loss", "gap")]
    names += ["holdout_bellman_loss"] if "holdout_bellman_loss" in table else []
    returns = pd.read_csv(run / "returns.csv") if (run / "returns.csv").exists() else None
    groups: dict[str, list[dict]] = {}
    for lane in record["lanes"]:
        groups.setdefault(" ".join(f"{k}={v:g}" for k, v in lane.items() if k not in ("lane", "seed")), []).append(lane)
    found = []
    for setting, lanes in groups.items():
        numbers = [lane["lane"] for lane in lanes]
        rows = [table.pivot(index="lane", columns="update", values=n).reindex(numbers) for n in names]
        step = rows[0].columns.to_numpy()
        if len(step) < POINTS:
            raise InputError(f"{run} has {len(step)} logging points; a curve needs {POINTS}: lower --log-every.")
        finite = np.all([np.isfinite(x.to_numpy()).all(1) for x in rows], axis=0)
        if not finite.any():
            raise InputError(f"{run} {setting} has no lane whose curves are finite.")
        values, earned = [x.to_numpy()[finite] for x in rows], {}
        if returns is not None:
            means = returns.groupby(["update", "lane"])["return"].mean().unstack().reindex(columns=numbers)
            earned = {int(update): row.to_numpy()[finite] for update, row in means.iterrows()}
        args = record["args"] | {k: v for k, v in lanes[0].items() if k not in ("lane", "seed")}
        args["data"] = record["task"].get("hash", record["task"]["id"])
        holdout = values[3] if len(values) > 3 else None
        found.append(Curves(run.name, setting, args, step, *values[:3], holdout, earned))
    return found


def comparable(curves: list[Curves]) -> list[list[Curves]]:
    """Those that differ in what the workflow chooses alone, together."""
    groups: dict[str, list[Curves]] = {}
    for one in curves:
        fixed = {name: value for name, value in one.args.items() if name not in FREE}
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(one)
    return list(groups.values())


def smooth(curve: np.ndarray) -> np.ndarray:
    """[..., T] means over a tenth of the points around each; of as many as there are at the ends."""
    width = max(1, curve.shape[-1] // 10)
    kernel = np.ones(width)
    counts = np.convolve(np.ones(curve.shape[-1]), kernel, "same")
    return np.apply_along_axis(lambda x: np.convolve(x, kernel, "same"), -1, curve) / counts


def beyond_noise(lanes: np.ndarray) -> bool:
    """Whether the mean of differences [L] is above two of its standard errors; of one lane, above 0."""
    noise = 2 * lanes.std(ddof=1) / np.sqrt(len(lanes)) if len(lanes) > 1 else 0.0
    return bool(lanes.mean() > noise)


def course(curves: Curves, threshold: float) -> Course:
    """Where the data's Q peaks after it has risen, and whether it falls from there."""
    lanes = smooth(curves.q)
    q = lanes.mean(0)
    span = float(np.ptp(q)) or 1.0
    risen = q - np.minimum.accumulate(q) > threshold * span
    if not risen.any():
        kind = "only falls" if beyond_noise(lanes[:, 0] - lanes[:, -1]) else "rises"
        return Course(0, float(q[0] - q[-1]) / span, kind)
    peak = int(np.argmax(np.where(risen, q, -np.inf)))
    fall = float(q[peak] - q[-1]) / span
    falls = fall > threshold and beyond_noise(lanes[:, peak] - lanes[:, -1])
    return Course(peak, fall, "peaks" if falls else "rises")


def end(lanes: np.ndarray) -> np.ndarray:
    """[L] means over the last fifth of the points [L, T]."""
    return lanes[:, -max(1, lanes.shape[1] // 5) :].mean(1)


def underfits(smaller: Curves, larger: Curves, threshold: float) -> list[str]:
    """What `larger`, of more capacity, has made lower at the end; lanes are of the same seeds or of as many others."""
    found = []
    for name, said in (("bellman_loss", "the Bellman error"), ("gap", "the regulariser")):
        one, two = (end(getattr(x, name)) for x in (smaller, larger))
        noise = 2 * np.sqrt(sum(x.var(ddof=1) / len(x) for x in (one, two) if len(x) > 1))
        lower = one.mean() - two.mean()
        if lower > max(noise, threshold * abs(one.mean())):
            found.append(f"{said} ends at {two.mean():.3g} in place of {one.mean():.3g}")
    return found


def advise(group: list[Curves], threshold: float = 0.1) -> Advice:
    """What the workflow makes of runs that may be compared; it begins with the least capacity without a regulariser."""
    plain = [x for x in group if not set(x.regulariser) - {"dr3"}]
    now, why = min(plain or group, key=lambda x: (x.capacity, len(x.regulariser))), []
    verdict = "neither over- nor under-fitting is seen"
    while True:
        at = course(now, threshold)
        if at.kind == "peaks":
            after = f"after update {now.step[at.peak]:,}"
            why.append(f"{now.name}: the data's Q falls {after}, by {at.fall:.0%} of its range")
            weaker = [x for name in WEAKER for x in group if x.capacity == now.capacity and name in x.regulariser[:1]]
            for other in weaker:
                if (its := course(other, threshold)).kind != "peaks":
                    why.append(f"{other.name}: the data's Q {its.kind}")
                    return Advice("over-fitting", other, int(other.step[-1]), "", why)
                why.append(f"{other.name}: the data's Q still falls, after update {other.step[its.peak]:,}")
            chosen = next(iter(weaker), now)
            used = {x.regulariser[0] for x in weaker}
            left = next((flags for name, flags in WEAKER.items() if name not in used), "")
            return Advice("over-fitting", chosen, int(chosen.step[course(chosen, threshold).peak]), left, why)
        why.append(f"{now.name}: the data's Q {at.kind}")
        more = sorted((x for x in plain if x.capacity > now.capacity), key=lambda x: (x.capacity, -len(x.regulariser)))
        if not more:
            dims = now.args.get("critic_hidden_dims") or now.args["hidden_dims"]
            more_capacity = "--critic-hidden-dims " + " ".join(str(2 * size) for size in dims)
            return Advice(verdict, now, int(now.step[-1]), f"{more_capacity} --critic-penalty dr3", why)
        lower = underfits(now, more[0], threshold)
        if not lower:
            why.append(f"{more[0].name}: no lower error with more capacity")
            return Advice(verdict, now, int(now.step[-1]), "", why)
        why += [f"{more[0].name}: {what}" for what in lower]
        verdict, now = "under-fitting", more[0]


def earned(curves: Curves, update: int) -> float:
    """Mean return at the last evaluation up to `update` (the first, if that is later); NaN without evaluations."""
    before = [step for step in curves.returns if step <= update] or list(curves.returns)[:1]
    return float(curves.returns[max(before)].mean()) if before else np.nan


def case(advice: Advice, group: list[Curves]) -> dict:
    """The advice, and what it is worth, as numbers for a file."""
    chosen, first = advice.chosen, min(group, key=lambda x: (len(x.regulariser), x.capacity))
    held = None if first.holdout is None else int(first.step[smooth(first.holdout).mean(0).argmin()])
    found = {
        "runs": [x.name for x in group],
        "verdict": advice.verdict,
        "chosen": chosen.name,
        "update": advice.update,
        "last": advice.update == int(chosen.step[-1]),
        "next_run": advice.next_run,
        "why": advice.why,
        "lanes": len(chosen.q),
        "return_chosen": earned(chosen, advice.update),
        "return_last": earned(first, int(first.step[-1])),
        "least_holdout_error_at": held,
        "return_there": None if held is None else earned(first, held),
    }
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in found.items()}


def shown(found: dict) -> str:
    """A case for the terminal."""
    lines = [f"{found['verdict']}: {found['chosen']}, the policy after update {found['update']:,}"]
    if not found["last"]:
        lines[0] += f"; the same command with --updates {found['update']} makes it"
    lines += [f"  {reason}" for reason in found["why"]]
    if found["next_run"]:
        lines.append(f"  next: the same run with {found['next_run']}")
    if found["return_chosen"] is not None:
        lines.append(f"  returns, which decided nothing: {found['return_chosen']:.3g} there, ")
        last = found["return_last"]
        lines[-1] += "not measured" if last is None else f"{last:.3g}"
        lines[-1] += " at the end of the run without a regulariser"
    if found["return_there"] is not None:
        lines.append("  the least Bellman error of held-out episodes, which decides nothing, is at update ")
        lines[-1] += f"{found['least_holdout_error_at']:,}: return {found['return_there']:.3g}"
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path, help="run directories of CQL")
    parser.add_argument("--fall", type=float, default=0.1, help="share of a range that counts (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the cases as JSON, too")
    args = parser.parse_args(argv)
    try:
        if not 0.0 < args.fall < 1.0:
            raise InputError(f"--fall must lie between 0 and 1, not {args.fall:g}.")
        groups = comparable([curves for run in args.run for curves in read(run)])
        cases = [case(advise(group, args.fall), group) for group in groups]
        print("\n\n".join(shown(found) for found in cases))
        if args.write:
            with replacing(args.write) as file:
                file.write((json.dumps({"fall": args.fall, "cases": cases}, indent=1) + "\n").encode())
    except OSError as error:
        print(f"cql_workflow.py: Cannot write to {args.write}: {error.strerror}.", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"cql_workflow.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
