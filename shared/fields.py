"""Arrays of a file, known by their names, and what its flags say of episodes.

An end of an episode is a termination only where the file says so. Flags that contradict each other are refused, and
so is a file that says nothing of its episodes: no boundary is ever made up.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from shared.errors import InputError, nearest

# Role of an array -> its names; the first that a file has is the one. "(name)" below: lower case, with _ for . - /
DATA = {
    "obs": ("observations", "obs", "observation", "states", "state", "images", "image", "pixels"),
    "next_obs": (
        *("next_observations", "next_obs", "obs_next", "next_observation", "observations_next", "observation_next"),
        *("next_states", "next_state", "new_observations", "new_obs", "next_images", "next_image"),
    ),
    "action": ("actions", "action", "acts", "act"),
    "reward": ("rewards", "reward", "rews", "rew"),
}
FLAGS = {
    "terminal": (
        *("terminals", "terminal", "terminated", "terminateds", "terminations", "termination", "terminates"),
        *("is_terminal", "is_terminated", "is_terminals"),
    ),
    "done": ("dones", "done", "is_done"),  # the task ended; beside other flags for that: the episode ended
    "not_terminal": (
        *("masks", "not_done", "not_dones", "nonterminals", "nonterminal", "non_terminals", "non_terminal"),
        *("not_terminals", "not_terminal", "not_terminated", "discounts", "discount", "continues", "continue"),
    ),
    "timeout": (
        *("timeouts", "timeout", "time_outs", "time_limits", "time_limit", "timelimit_truncated", "is_timeout"),
        *("truncateds", "truncated", "truncations", "truncation", "is_truncated", "truncates"),
    ),
    "end": (
        *(
            "episode_ends",
            "episode_end",
            "episode_terminals",
            "episode_dones",
            "dones_float",
            "ends",
            "is_last",
            "last",
        ),
        *("is_end", "traj_ends", "trajectory_ends", "path_ends"),
        "source_terminal_flag",  # of cs285's rollouts, whose terminal is set at their longest length, too
    ),
    "start": (
        *("is_first", "first", "starts", "episode_starts", "episode_start", "is_start", "is_initial"),
        *("traj_starts", "trajectory_starts", "path_starts"),
    ),
    "episode": (
        *("episode_ids", "episode_id", "episode_index", "episode_idx", "episodes", "episode", "ep_ids", "ep_id"),
        *("traj_ids", "traj_id", "trajectory_ids", "trajectory_id", "traj_index", "trajectory", "demo_ids", "demo_id"),
    ),
    "length": ("episode_lengths", "traj_lengths", "traj_lens", "trajectory_lengths", "path_lengths", "ep_lens"),
    "step_type": ("step_type", "step_types"),
    "valid": ("valids", "valid"),
}
ROLES = (*DATA, *FLAGS, "ignore")
SPLITS = ("indices",)
"""Names of split points: numbers of rows before each episode but the first."""
_SUSPICIOUS = ("done", "term", "end", "last", "first", "trunc", "timeout", "mask", "final", "reset", "start", "abort")


def plain(name: str) -> str:
    """A name in the form of the tables."""
    return name.lower().replace(".", "_").replace("-", "_").replace("/", "_")


def roles(names: Iterable[str], given: Iterable[str] = ()) -> dict[str, str]:
    """{name: role} of the arrays that are read, by their usual names or as `given` ("terminal=name") says.

    Raises:
      InputError: no such role, no array of that name, two roles of one array, or two arrays that cannot both be read.
    """
    names = list(names)
    found = {}
    for word in given:
        role, _, name = word.partition("=")
        if role not in ROLES or not name:
            raise InputError(f"--fields {word}: expected ROLE=NAME; of the roles, {nearest(role, ROLES)}")
        if name not in names:
            raise InputError(f"--fields {word}: there is no array '{name}'; {nearest(name, names)}")
        if found.setdefault(name, role) != role:
            raise InputError(f"--fields {word}: '{name}' is {found[name]} already; an array has one role.")
        if role in DATA and list(found.values()).count(role) > 1:
            first = next(other for other, of in found.items() if of == role)
            raise InputError(f"--fields {word}: '{first}' is {role} already; only one array can be.")
    for role, usual in DATA.items():
        if role not in found.values():
            held = [name for known in usual for name in names if plain(name) == known and name not in found]
            found |= dict.fromkeys(held[:1], role)
    told = {role for role in found.values() if role in FLAGS}
    for role, usual in FLAGS.items():
        if role not in told:
            found |= {name: role for name in names if plain(name) in usual and name not in found}
    return found


class Episodes(NamedTuple):
    """What the flags of a file say."""

    terminal: np.ndarray
    """[N] bool"""
    last: np.ndarray
    """[N] bool"""
    timeout: np.ndarray
    """[N] bool: ended by a time limit, as the file says"""
    told: bool
    """Whether it says where episodes end, and not only which of them terminate."""
    notes: list[str]


GROUPS = "groups"
"""The name of ends that are those of groups of a file, each of one episode."""


class _Flag(NamedTuple):
    name: str
    rows: np.ndarray


def episodes(
    source: str, flags: dict[str, dict[str, np.ndarray]], n: int, rewarded: bool, given: Iterable[str] = ()
) -> Episodes:
    """Of {role: {name: array}}: which rows of N terminate and which are the last of their episode.

    `rewarded`: the file has rewards. `given`: names whose meaning the user said.

    Raises:
      InputError: flags that are none, or that contradict each other.
    """
    notes: list[str] = []
    binary = {
        role: {name: _binary(source, name, x, n) for name, x in flags.get(role, {}).items()}
        for role in ("terminal", "done", "timeout")
    }
    term, done, timeout = (_agreed(source, binary[role]) for role in ("terminal", "done", "timeout"))
    ends = _ends(source, flags, n, notes)
    alive = {name: _continues(source, name, x, n) for name, x in flags.get("not_terminal", {}).items()}
    notes += [f"{name} has several values besides 0: it is not used" for name, rows in alive.items() if rows is None]
    dead = _agreed(source, {name: ~rows for name, rows in alive.items() if rows is not None})
    theirs = bool(term and plain(term.name) == "terminals" and term.name not in given)  # OGBench's name of the ends
    free = False  # terminations may lie within episodes
    if dead and term and not np.array_equal(term.rows, dead.rows):
        if not theirs:
            _contradict(source, term, dead)
        notes.append(
            f"{term.name} are ends of episodes, {dead.name} say which rows terminate, of which "
            f"{(dead.rows & ~term.rows).sum():,} lie within episodes"
        )
        ends, term, free = ends or term, dead, True
    elif theirs and not (rewarded or dead or done or ends or timeout):
        notes.append(f"without rewards {term.name} are ends of episodes, none terminates")
        ends, term = term, None
    term = term or dead
    if done and term:
        union = term.rows | (timeout.rows if timeout else False)
        if not (np.array_equal(done.rows, term.rows) or (done.rows | ~union).all()):
            _contradict(source, done, term)
        ends = ends or done
    elif done and timeout:
        shared = done.rows & timeout.rows
        if shared.any() and not np.array_equal(shared, timeout.rows):
            _contradict(source, done, timeout)
        if shared.any():
            notes.append(f"{done.name} mark ends of episodes; those without {timeout.name} terminate")
        term = _Flag(done.name, done.rows & ~timeout.rows)
    else:
        term = term or done
    no = np.zeros(n, bool)
    terminal, limit = (flag.rows if flag else no for flag in (term, timeout))
    if limit.any() and terminal[limit].all():
        _contradict(source, term, timeout)
    if ends and ends.name != GROUPS and not free:
        for flag in (term, timeout):
            if flag and (flag.rows & ~ends.rows)[:-1].any():
                _contradict(source, flag, ends)
    last = limit | (ends.rows if ends else no) | (no if free else terminal)
    last[-1] = True
    told = bool(ends or (timeout and last[:-1].any()))
    return Episodes(terminal, last, limit & ~terminal, told, notes)


def _binary(source: str, name: str, x: np.ndarray, n: int) -> np.ndarray:
    """[N] bool of a flag."""
    if x.dtype.kind not in "biuf" or x.size != n:
        raise InputError(f"{source}: {name} of shape {x.shape} and type {x.dtype} is no flag of {n} rows.")
    x = x.reshape(n)
    if not np.isin(x, (0, 1)).all():
        raise InputError(f"{source}: {name} holds {x[~np.isin(x, (0, 1))][0]}; a flag is 0 or 1.")
    return x.astype(bool)


def _continues(source: str, name: str, x: np.ndarray, n: int) -> np.ndarray | None:
    """[N] bool: where the task goes on; None for a discount that is of more than one value besides 0."""
    if plain(name) not in ("discount", "discounts"):
        return _binary(source, name, x, n)
    if x.size != n or x.dtype.kind not in "biuf":
        return None
    x = x.reshape(n)
    high = x.max(initial=0)
    return x > 0 if high > 0 and np.isin(x, (0, high)).all() else None


def _agreed(source: str, flags: dict[str, np.ndarray]) -> _Flag | None:
    """One flag of those that mean the same."""
    if not flags:
        return None
    (first, rows), *others = flags.items()
    for name, other in others:
        if not np.array_equal(rows, other):
            _contradict(source, _Flag(first, rows), _Flag(name, other))
    return _Flag(first, rows)


def _contradict(source: str, one: _Flag, other: _Flag) -> None:
    counts = [int(rows.sum()) for rows in (one.rows, other.rows, one.rows & other.rows)]
    raise InputError(
        f"{source}: {one.name} and {other.name} contradict each other: they say it of {counts[0]:,} and {counts[1]:,} "
        f"rows, {counts[2]:,} of them in common; leave one out with --fields ignore=NAME."
    )


def _ends(source: str, flags: dict[str, dict[str, np.ndarray]], n: int, notes: list[str]) -> _Flag | None:
    """Ends of episodes, by whatever way a file has of saying them; what is none of these ways is told."""
    found = {}
    for name, x in flags.get("end", {}).items():
        if x.ndim == 1 and x.dtype.kind in "iu" and len(x) and x[-1] == n and (np.diff(x) > 0).all() and x[0] > 0:
            found[name] = np.isin(np.arange(1, n + 1), x)  # rows up to each episode's end
        else:
            found[name] = _binary(source, name, x, n)
    for name, x in flags.get("start", {}).items():
        starts = _binary(source, name, x, n)
        found[name] = np.r_[starts[1:], True]
    for name, x in flags.get("episode", {}).items():
        if x.size == n and x.dtype.kind in "biufSU":
            x = x.reshape(n)
            found[name] = np.r_[x[1:] != x[:-1], True]
            if (again := found[name].sum() - len(np.unique(x))) > 0:
                notes.append(
                    f"{name}: {again:,} times a value comes back after another's rows, and is taken for a new episode "
                    "(rows of one episode must stand together)"
                )
    for name, x in flags.get("length", {}).items():
        if x.dtype.kind not in "iu" or x.size == n > 1:  # of every row
            continue
        if x.sum() != n or (x < 1).any():
            raise InputError(
                f"{source}: {name} are {x.sum():,} rows in {x.size:,} episodes, here are {n:,} rows; leave it out with "
                f"--fields ignore={name}."
            )
        found[name] = np.isin(np.arange(1, n + 1), np.cumsum(x))
    for name, x in flags.get("step_type", {}).items():
        if x.size == n and np.isin(x, (0, 1, 2)).all():
            found[name] = x.reshape(n) == 2  # dm_env: FIRST, MID, LAST
    for role in ("episode", "length", "step_type"):
        for name, x in flags.get(role, {}).items():
            if name not in found:
                notes.append(f"{name} of shape {x.shape} says nothing of the ends of {n:,} rows: it is not used")
    for rows in found.values():
        rows[-1] = True  # of the last episode nothing need be said
    return _agreed(source, found)


def speaks_of_an_end(name: str) -> bool:
    """Whether an array may be a flag, by its name."""
    words = [word for word in plain(name).split("_") if word]
    return any(word.startswith(s) or word.endswith(s) for word in words for s in _SUSPICIOUS)


def unnamed_flags(arrays: dict[str, np.ndarray], n: int) -> list[str]:
    """Those of 0 and 1, not all 0, in N rows whose names speak of an end, but not of which."""
    return sorted(
        name
        for name, x in arrays.items()
        if speaks_of_an_end(name) and x.size == n and x.dtype.kind in "biuf" and np.isin(x, (0, 1)).all() and x.any()
    )


def split_points(shapes: dict[str, tuple[int, ...]], more: int) -> str | None:
    """Name of the split points of a file with `more` observations than actions: each episode has one more."""
    return next((name for name, x in shapes.items() if plain(name) in SPLITS and more > 0 and x == (more - 1,)), None)


def parted(
    source: str, columns: dict[str, np.ndarray], read: dict[str, str], splits: np.ndarray, notes: list[str]
) -> list[dict[str, np.ndarray]]:
    """The columns of every episode, those of observations with one row more; `splits` [E - 1]: see SPLITS.

    Raises:
      InputError: split points that are none, or an array that is neither of rows nor of episodes.
    """
    (obs_name,) = (name for name, role in read.items() if role == "obs")
    (action_name,) = (name for name, role in read.items() if role == "action")
    frames, rows = len(columns[obs_name]), len(columns[action_name])
    whole = splits.dtype.kind in "iuf" and np.isin(splits, np.arange(1, rows)).all()
    bounds = np.r_[0, splits.astype(np.int64), rows] if whole else np.zeros(2)
    if (np.diff(bounds) < 1).any():
        raise InputError(f"{source}: its split points do not part {rows:,} rows into episodes of at least one.")
    found = [{} for _ in bounds[1:]]
    for name, x in columns.items():
        of_frames, of_rows, of_episodes = (x.ndim > 0 and len(x) == n for n in (frames, rows, len(found)))
        if not (of_frames or of_rows or of_episodes):
            raise InputError(f"{source}: {name} of shape {x.shape} is neither of {rows:,} rows nor of their episodes.")
        for e, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            at = slice(start + e, stop + e + 1) if of_frames else slice(start, stop) if of_rows else slice(e, e + 1)
            found[e][name] = x[at]
    notes.append(f"{len(found):,} episodes with one observation more than actions, by their split points")
    return found


def every(length: int, last: np.ndarray) -> np.ndarray:
    """[N] bool: rows at which an episode between those that are `last` [N] is cut after `length` rows."""
    start = np.flatnonzero(np.r_[True, last[:-1]])
    step = np.arange(len(last)) - np.repeat(start, np.diff(np.r_[start, len(last)]))
    return step % length == length - 1


def jumps(obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
    """[N - 1] bool: rows whose next observation is not the following row's, at the coarser precision of the two."""
    n = len(obs) - 1
    one, other = (x.reshape(n, obs[0].size) for x in (next_obs[:-1], obs[1:]))
    differ = np.concatenate([(one[at] != other[at]).any(1) for at in _blocks(n)] or [np.zeros(0, bool)])
    if obs.dtype == next_obs.dtype and not (obs.dtype.kind == "f" and differ.any()):
        return differ
    absolute, relative = np.maximum(_precision(next_obs), _precision(obs))
    allowed = absolute + relative * np.abs(other).max(0, initial=0.0).astype(np.float64)
    with np.errstate(all="ignore"):
        for at in _blocks(n):
            differ[at] = ~(np.abs(one[at].astype(np.float64) - other[at]) <= allowed).all(1)
    return differ


def moves(obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
    """[N] the largest change of a number of an observation in each row."""
    one, other = obs.reshape(len(obs), -1), next_obs.reshape(len(obs), -1)
    parts = [np.abs(other[at].astype(np.float64) - one[at]).max(1, initial=0.0) for at in _blocks(len(obs))]
    return np.concatenate(parts or [np.zeros(0)])


def _blocks(n: int, rows: int = 1 << 16) -> list[slice]:
    """Parts of N rows, so that little is held at a time."""
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _precision(x: np.ndarray) -> tuple[float, float]:
    """(absolute, relative) error with which the numbers of `x` stand for others."""
    if x.dtype.kind != "f":
        return 0.0, 0.0
    x = x[:: max(1, len(x) // 2000)]  # a sample is enough to know how numbers were rounded
    wide = x.astype(np.float64)
    eps = float(np.finfo(x.dtype).eps)
    scale = np.abs(wide).max(initial=0.0)
    with np.errstate(all="ignore"):
        for digits in range(7):
            if np.isfinite(scale) and 0 < scale < 1e6 and np.allclose(wide, wide.round(digits), 0, 4 * eps * scale):
                return (0.0 if digits == 0 else 10.0**-digits), 4 * eps  # whole numbers are exact
        for kind, its in ((np.float16, 2.0**-10), (np.float32, 2.0**-22)):
            if np.array_equal(wide, wide.astype(kind).astype(np.float64)):
                return (2.0**-24 if kind is np.float16 else 1e-38), its
    return 0.0, 2.0**-50


def summary(
    arrays: dict[str, np.ndarray],
    timeout: np.ndarray,
    read: dict[str, str],
    not_read: list[str],
    notes: Iterable[str] = (),
    rewarded: bool = True,
) -> dict:
    """What was understood of a dataset, for its user to see and for run.json.

    `arrays`: as `read_dataset` returns them. `timeout` [N]: rows cut by a time limit. `read`: {name of an array: its
    role}.
    """
    terminal, last = arrays["terminal"].astype(bool), arrays["last"]
    ends = np.flatnonzero(last)
    lengths = np.diff(np.r_[-1, ends])
    limits = int((timeout.astype(bool) & last & ~terminal).sum())
    has_next = arrays.get("successor", np.ones(len(last), bool))
    return {
        "rows": len(last),
        "episodes": len(ends),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "terminals": int(terminal.sum()),
        "time_limits": limits,
        "cuts": int((last & ~terminal).sum()) - limits,
        "without_successor": int((~has_next).sum()),
        "rewards": rewarded,
        "read": read,
        "not_read": not_read,
        "notes": list(notes),
    }


def described(data: dict) -> str:
    """A summary in words, one line for each thing to know."""
    lengths = f"{data['shortest']:,} to {data['longest']:,}" if data["shortest"] < data["longest"] else data["longest"]
    line = (
        f"{data['rows']:,} rows in {data['episodes']:,} episodes of {lengths} rows: {data['terminals']:,} terminate, "
        f"{data['time_limits']:,} end by a time limit, {data['cuts']:,} are cut"
    )
    if data["without_successor"]:
        line += f"; {data['without_successor']:,} rows have no next observation"
    if not data["rewards"]:
        line += "; no rewards"
    if data["not_read"]:
        some, more = data["not_read"][:8], len(data["not_read"]) - 8
        line += f"; not read: {', '.join(some)}{f' and {more} more' if more > 0 else ''}"
    return "\n".join([line, *(f"note: {note}" for note in data["notes"])])
