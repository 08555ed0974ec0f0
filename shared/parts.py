"""Datasets made of parts: demonstrations D_E, labelled rows D_L, unlabelled rows D_U, and labels written as a dataset.

What is hidden is NaN from here on, so that a loss which looks at it shows. run.json names every part with its hash.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.arguments import DemoArgs, LabelArgs, OfflineArgs
from shared.data import ARRAYS, Dataset, load_dataset
from shared.errors import InputError
from shared.formats import content_hash, given_of
from shared.task import Task

HIDDEN = {"rewards": "reward", "actions": "action"}
"""What may be hidden -> the array."""
SUMMED = ("rows", "episodes", "terminals", "time_limits", "cuts", "without_successor")
"""Counts of `shared.fields.summary`."""


class Demonstrated(NamedTuple):
    """A dataset without rewards, and episodes that show what is wanted."""

    data: Dataset
    demos: Dataset
    returns: np.ndarray | None
    """[E] true returns of the data's episodes, to compare labels with and for nothing else; None: there are none."""


class Labelled(NamedTuple):
    """A dataset of which some rows keep their labels."""

    data: Dataset
    labelled: np.ndarray
    """[N] bool"""
    truth: Dataset
    """The data before anything was hidden, to compare labels with and for nothing else."""


def load_demonstrated(args: DemoArgs, hide: Iterable[str] = ("rewards",)) -> Demonstrated:
    """The data of `args`, of which `hide` is hidden, and its demonstrations, of which nothing is.

    Without --demos these are the best episodes of the data itself, where they stay, too.

    Raises:
      InputError: as `load_dataset`; demonstrations of another environment; no rewards to choose them by.
    """
    data = load_all(args, (args.dataset, *args.more_data), args.demos)
    demos = load_demos(args, data)
    parts = {"demonstrations": (demos, every(demos)), "unlabelled": (data, every(data))}
    return Demonstrated(with_parts(hidden(data, hide), parts), demos, true_returns(data))


def load_demos(args: DemoArgs, data: Dataset) -> Dataset:
    """The demonstrations beside (or in) the data of `args`, of which nothing was hidden.

    Raises:
      InputError: as `load_demonstrated`.
    """
    if not (args.demos or args.demo_episodes):
        raise InputError("--demo-episodes 0: without --demos at least one episode must be chosen.")
    demos = data
    if not args.demos and not data.task.data.get("rewards", True):
        raise InputError(f"'{data.task.id}' has no rewards to choose its best episodes by; name --demos.")
    if args.demos:
        demos = load_all(args, args.demos, (args.dataset, *args.more_data))
        refuse_another_task(data, demos)
    return best_episodes(demos, args.demo_episodes) if args.demo_episodes else demos


def true_returns(data: Dataset) -> np.ndarray | None:
    """[E] of the episodes of data of which nothing was hidden; None: it has no rewards."""
    return data.episode_returns() if data.task.data.get("rewards", True) else None


def load_labelled(args: LabelArgs) -> Labelled:
    """The data of `args`, with the labels of --labelled-fraction alone.

    Raises:
      InputError: as `load_dataset`; no row keeps its labels; there are no rewards.
    """
    data = load_all(args, (args.dataset, *args.more_data)).require(reward="rewards" in args.hide)
    labelled = labelled_rows(data, args)
    parts = {"labelled": (data, labelled), "unlabelled": (data, ~labelled)}
    return Labelled(with_parts(hidden(data, args.hide, ~labelled), parts), labelled, data)


# ----------------------------------------------------------------------------------- datasets together


def load_all(args: OfflineArgs, names: Iterable[str], beside: Iterable[str] = ()) -> Dataset:
    """The datasets `names` as one, each read as `args` say (--env, --fields, ...).

    What is told of arrays of files counts where these are: some dataset of `names` or `beside` must have them.
    """
    given = given_of([*names, *beside], args.fields, args.episode_length)
    told = [dict(zip(("fields", "episode_length"), given[name], strict=True), dataset=name) for name in names]
    return joined([load_dataset(dataclasses.replace(args, **of)) for of in told])


def joined(datasets: list[Dataset]) -> Dataset:
    """The episodes of several datasets of one environment, one dataset after the other.

    Raises:
      InputError: observations, actions or the environment differ.
    """
    first = datasets[0]
    if len(datasets) == 1:
        return first
    for other in datasets[1:]:
        refuse_another_task(first, other)
    arrays = {n: np.concatenate([getattr(d, n) for d in datasets]) for n in (*ARRAYS, "successor")}
    found = [d.task.data for d in datasets]
    understood = found[0] | {name: sum(x[name] for x in found) for name in SUMMED}
    understood.pop("episode_returns", None)
    understood |= {"shortest": min(x["shortest"] for x in found), "longest": max(x["longest"] for x in found)}
    understood["datasets"] = [{"id": d.task.id, "hash": d.task.hash, "rows": len(d.obs)} for d in datasets]
    understood |= {"rewards": all(x["rewards"] for x in found), "notes": [n for x in found for n in x["notes"]]}
    task = dataclasses.replace(
        first.task,
        id="+".join(d.task.id for d in datasets),
        hash=content_hash(arrays),
        data=understood,
        baselines={},
    )
    data = Dataset(task, **arrays)
    if (
        all(d.task.baselines and x["rewards"] for d, x in zip(datasets, found, strict=True))
        and not task.counts_successes
    ):
        returns = data.episode_returns()
        baselines = {"dataset mean": float(returns.mean()), "dataset best episode": float(returns.max())}
        data = dataclasses.replace(data, task=dataclasses.replace(task, baselines=baselines))
    return data


def refuse_another_task(data: Dataset, other: Dataset) -> None:
    """InputError where `other` has other observations, actions or another environment than `data` (versions aside)."""
    one, two = data.task, other.task
    for what, of in (("observations", lambda t: t.spec.obs_shape), ("actions", lambda t: t.spec[1:])):
        if of(one) != of(two):
            raise InputError(
                f"'{two.id}' has other {what} than '{one.id}': {shown(two)}, not {shown(one)}; --env names the "
                "environment of both."
            )
    keys = [t.data.get("keys") for t in (one, two)]
    if None not in keys and keys[0] != keys[1]:
        common = ", ".join(sorted(keys[0].keys() & keys[1].keys())) or "none"
        raise InputError(
            f"'{two.id}' observes {', '.join(keys[1])}, '{one.id}' {', '.join(keys[0])}: of these keys {common} are "
            "in both; the observations of both must be of the same keys and sizes."
        )
    ids = [t.env_spec and t.env_spec.id for t in (one, two)]
    if None not in ids and len({env_id.partition("-v")[0] for env_id in ids}) > 1:
        raise InputError(f"'{two.id}' is of {ids[1]}, '{one.id}' of {ids[0]}; --env ID says that both are of one.")


def shown(task: Task) -> str:
    """Sizes of a task's observations and actions, and the range of the latter."""
    spec = task.spec
    if spec.discrete:
        return f"{spec.obs_shape} and {spec.action_dim} choices"
    return f"{spec.obs_shape} and {spec.action_dim} numbers from {min(spec.action_low):g} to {max(spec.action_high):g}"


# ----------------------------------------------------------------------------------------------- parts


def best_episodes(data: Dataset, count: int) -> Dataset:
    """The `count` episodes of highest return, in their order in the data; all if it has fewer."""
    if count >= len(data.ends()):
        return data
    if not data.task.data.get("rewards", True):
        raise InputError(f"'{data.task.id}' has no rewards to choose its best episodes by; pass --demo-episodes 0.")
    best = np.argsort(-data.episode_returns(), kind="stable")[:count]
    return data.select(np.isin(data.episode(), best))


def labelled_rows(data: Dataset, args: LabelArgs) -> np.ndarray:
    """[N] bool: the rows that keep their labels, drawn by --split-seed."""
    returns = data.episode_returns()
    low = np.argsort(returns, kind="stable")[: max(1, round(args.labelled_below * len(returns)))]
    pool = low if args.labelled_unit == "episodes" else np.flatnonzero(np.isin(data.episode(), low))
    size = len(returns) if args.labelled_unit == "episodes" else len(data.obs)
    count = min(round(args.labelled_fraction * size), len(pool))
    if count < 1:
        raise InputError(
            f"--labelled-fraction {args.labelled_fraction:g}: none of the {size:,} {args.labelled_unit} of "
            f"'{data.task.id}' keeps its labels; at least one is needed."
        )
    chosen = np.random.default_rng(args.split_seed).permutation(pool)[:count]
    return np.isin(data.episode() if args.labelled_unit == "episodes" else np.arange(size), chosen)


def hidden(data: Dataset, what: Iterable[str], rows: np.ndarray | None = None) -> Dataset:
    """`data` with NaN for `what` (of HIDDEN) in `rows` [N] (default: all); returns and statistics of the truth remain
    in the task's baselines alone.

    Raises:
      InputError: actions that are to be hidden are discrete, which have no NaN.
    """
    rows, arrays = np.ones(len(data.obs), bool) if rows is None else rows, {}
    if "actions" in what:
        data.task.require(discrete=False, images=True)
    for name in what:
        array = getattr(data, HIDDEN[name]).copy()
        array[rows] = np.nan
        arrays[HIDDEN[name]] = array
    known = data.task.data
    if "rewards" in what and rows.any():
        known = known | {"rewards": False}
    return data.replace({"hidden": sorted(what)} if arrays else {}, {"data": known}, **arrays)


def every(data: Dataset) -> np.ndarray:
    """[N] bool: all rows."""
    return np.ones(len(data.obs), bool)


def with_parts(data: Dataset, parts: dict[str, tuple[Dataset, np.ndarray]]) -> Dataset:
    """`data` whose task names its `parts`, rows [N] of a dataset (id, hash, rows, episodes), and has a hash of all."""
    known = {}
    for name, (whole, rows) in parts.items():
        arrays = {n: getattr(whole, n)[rows] for n in ARRAYS}
        counts = {"rows": int(rows.sum()), "episodes": len(np.unique(whole.episode()[rows]))}
        known[name] = {"id": whole.task.id, "hash": content_hash(arrays), **counts}
        print(f"{name}: {counts['rows']:,} rows of {counts['episodes']:,} episodes of '{whole.task.id}'", flush=True)
    digest = hashlib.sha256(json.dumps([data.task.hash, known], sort_keys=True).encode()).hexdigest()[:16]
    return data.replace({}, {"hash": digest, "data": data.task.data | {"parts": known}})


# ---------------------------------------------------------------------------------------------- labels


def with_something_in_common(data: Dataset, demos: Dataset, distance: np.ndarray, alpha, rate) -> np.ndarray:
    """`distance` [..., N] of the data's rows to what `demos` show, of which labels alpha exp(-rate distance) are made.

    `alpha`, `rate`: of any number of lanes, each of which must tell rows apart, unless they are 0.

    Raises:
      InputError: no row is near enough for a label that float32 tells from 0 beside alpha, or all are equally far.
    """
    for k in (k for k in np.unique(rate) if k > 0 and np.any(alpha)):
        label = np.exp(-np.float32(k) * distance.astype(np.float32))
        nothing, equal = label.max() < np.finfo(np.float32).eps, np.ptp(label) <= 1e-5 * label.max()
        if nothing or (equal and distance.min() > 0):
            raise InputError(
                f"The demonstrations of '{demos.task.id}' have nothing in common with '{data.task.id}': its rows are "
                f"{distance.min():.3g} to {distance.max():.3g} away from them, for which --squash-beta makes all "
                f"labels {'0' if nothing else 'equal'}."
            )
    return distance


def relabelled(data: Dataset, reward: np.ndarray | None = None, action: np.ndarray | None = None) -> Dataset:
    """`data` with other rewards [N] or actions [N, A].

    Raises:
      InputError: a label that is not finite.
    """
    arrays = {"reward": reward, "action": action}
    arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items() if x is not None}
    for name, x in arrays.items():
        wrong = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
        if len(wrong):
            raise InputError(f"The labels of '{data.task.id}' are not finite: {name} of row {wrong[0]}.")
    known = data.task.data | ({"rewards": True} if "reward" in arrays else {})
    return data.replace({}, {"data": known}, **arrays)


def rank_correlation(x: jax.Array, y: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Spearman's correlation of x [n] and y [n] over the rows that are `valid` [n] (default: all).

    Ties have their mean rank; 0 where all of one are equal, or no row is valid.
    """
    valid = jnp.ones(len(x), bool) if valid is None else valid

    def ranks(v):
        v = jnp.where(valid, v, jnp.inf)
        ordered = jnp.sort(v)
        places = jnp.searchsorted(ordered, v, side="left") + jnp.searchsorted(ordered, v, side="right")
        return valid * (0.5 * places - 0.5 * valid.sum())

    x, y = ranks(x), ranks(y)
    return (x * y).sum() / jnp.maximum(jnp.sqrt((x**2).sum() * (y**2).sum()), 1e-12)


def write_dataset(path: str | Path, data: Dataset) -> None:
    """Writes `data` as an .npz that every script takes, whole or not at all; actions in the environment's units.

    An observation that is not known stands there as NaN. A log that goes on after a terminal row is read as two
    episodes.

    Raises:
      InputError: no .npz, or it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise InputError(f"--write-dataset {path}: the name of a dataset that is written ends in .npz.")
    if jax.process_index():
        return
    known = data.successor.reshape(-1, *(1,) * (data.obs.ndim - 1))
    arrays = {
        "observations": data.obs,
        "actions": data.task.to_env(data.action),
        "rewards": data.reward,
        "next_observations": np.where(known, data.next_obs, np.nan) if not known.all() else data.next_obs,
        "terminals": data.terminal,
        "timeouts": data.last & ~data.terminal,
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write to {path}: {error.strerror}.") from None
    env = f" --env {data.task.env_spec.id}" if data.task.env_spec else ""
    print(f"{len(data.obs):,} labelled rows written: --dataset {path}{env}", flush=True)
