"""Single files -> flat arrays: D4RL hdf5, OGBench npz, plain npz and hdf5, robomimic, d3rlpy, tianshou, RLDS, dm_env.

A file is a table of rows, or groups of arrays that are one episode each. What an array is, `fields` knows by its name.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from shared.errors import InputError, first_line
from shared.fields import (
    DATA,
    FLAGS,
    GROUPS,
    Episodes,
    episodes,
    every,
    jumps,
    moves,
    parted,
    plain,
    roles,
    speaks_of_an_end,
    split_points,
    summary,
    unnamed_flags,
)
from shared.spaces import are_images, rows_of_images
from shared.untrusted import hdf5_shapes, npz_shapes, read_hdf5, read_npz

USUAL = {name: role for table in (DATA, FLAGS) for role, names in table.items() for name in names}
FOLLOWING = "the observations after the first"
"""Name of the next observations of an episode that has one observation more than actions."""


def read_file(path: Path, given: tuple[str, ...] = (), episode_length: int = 0) -> tuple[dict[str, np.ndarray], dict]:
    """Flat arrays of a file, and what is known of it.

    `given`: "role=name" of arrays with other names than the usual ones. `episode_length`: rows of an episode that did
    not terminate; 0: the file says where they end.

    Raises:
      InputError: an unreadable file, shapes or flags that disagree, nothing about where episodes end.
    """

    npz, shapes = path.suffix == ".npz", shapes_of(path)

    def stored_of(names: Iterable[str]) -> dict[str, np.ndarray]:
        return _attempt(read_npz, path, set(names).__contains__) if npz else _attempt(read_hdf5, path, names)

    tables, numbered = _tables(str(path), shapes)
    meaning = roles(tables[0], given)
    for role in ("obs", "action"):
        if role not in meaning.values():
            held = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:20])
            more = f" and {len(shapes) - 20} more" if len(shapes) > 20 else ""
            raise InputError(f"{path} has no {DATA[role][0]}; it holds {held or 'nothing'}{more}.")
    read = {name: role for name, role in meaning.items() if role != "ignore"}
    tables = [{base: names for base, names in table.items() if base in read} for table in tables]
    for table in tables:
        if lacking := read.keys() - table.keys():
            raise InputError(f"{path}: not every episode has {min(lacking)}.")
        for base, names in table.items():
            table[base] = [n for n in names if len(shapes[n]) < 3] or names[:1]  # beside numbers images are left out
    _require_the_same_keys(str(path), tables, read)
    stored = stored_of(name for table in tables for names in table.values() for name in names)
    columns = [{base: _joined(path, base, names, stored) for base, names in table.items()} for table in tables]
    notes: list[str] = []
    if not numbered and (splits := split_points(shapes, _more_observations(columns[0], read))):
        stored |= stored_of([splits])
        for name in _whole_or_not(columns[0], read, len(stored[splits]) + 1, given):
            notes.append(f"{name} says which episodes were whole, ended by a time limit or not: none terminates")
            del read[name], columns[0][name]
        columns, numbered = parted(str(path), columns[0], read, stored[splits], notes), True
        read[splits] = "splits"
    unread = {name: shape for name, shape in shapes.items() if name not in stored}
    if not numbered:
        others = stored_of(list(_flag_like(unread, columns[0], meaning)))
    else:
        columns, others = [_episodes_as_rows(str(path), columns, read)], {}
    not_read = [f"{name} {shape}" for name, shape in sorted(unread.items())]
    arrays, meta = _rows(str(path), columns[0], read, others, not_read, given, episode_length, notes)
    (base,) = (name for name, role in read.items() if role == "obs")
    if len(names := tables[0][base]) > 1:
        meta["data"]["keys"] = {name.split(f"{base}/")[-1]: int(np.prod(shapes[name][1:])) for name in names}
    return arrays, meta


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a file.

    Raises:
      InputError: an unreadable file.
    """
    return _attempt(npz_shapes if path.suffix == ".npz" else hdf5_shapes, path)


def names_in(path: Path) -> list[str]:
    """Names of the arrays of a file, as --fields may give them.

    Raises:
      InputError: an unreadable file.
    """
    return list(_tables(str(path), shapes_of(path))[0][0])


def _attempt(read: Callable, path: Path, *args) -> dict:
    try:
        return read(path, *args)
    except Exception as error:  # zipfile, zlib, h5py and numpy each raise their own kinds
        raise InputError(f"{path} cannot be read ({first_line(error)}).") from None


def _more_observations(columns: dict[str, np.ndarray], read: dict[str, str]) -> int:
    """How many a table has than actions."""
    obs, action = (next(columns[name] for name, of in read.items() if of == role) for role in ("obs", "action"))
    return len(obs) - len(action) if obs.ndim and action.ndim else 0


def _whole_or_not(columns: dict[str, np.ndarray], read: dict[str, str], episodes: int, given: tuple[str, ...]):
    """Flags of whole episodes that are called terminal, as of the library imitation, which sets them at time limits,
    too; not what the user said is one.
    """
    told = {word.partition("=")[2] for word in given}
    return [
        name
        for name, role in read.items()
        if role == "terminal" and name not in told and columns[name].size == episodes
    ]


def _tables(source: str, shapes: dict[str, tuple[int, ...]]) -> tuple[list[dict[str, list[str]]], bool]:
    """Of the arrays of a file, by what each is called in its group: the table of all rows, or one of every episode.

    Also whether it is the latter. An array may be a group of arrays: observations/arm, observations/object.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in shapes:
        group, base = _place(name)
        groups.setdefault(group, {}).setdefault(base, []).append(name)
    known = {g: {USUAL.get(plain(base)) for base in table} for g, table in groups.items()}
    whole = {g: table for g, table in groups.items() if known[g] >= {"obs", "action"}}
    if "" in whole or not whole:
        root = {base: sorted(names) for base, names in groups.get("", {}).items()}
        return [root | {name: [name] for name in shapes if _place(name)[0]}], False
    named = sorted(whole, key=lambda g: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", g)])
    if not all(re.search(r"\d$", group) for group in named):
        if len(named) == 1:
            return [{base: sorted(names) for base, names in whole[named[0]].items()}], False
        raise InputError(f"{source} holds several datasets ({', '.join(named[:8])}); keep one of them in a file.")
    if any("#" in group and not known[group] >= {"reward", "terminal"} for group in named):
        raise InputError(f"{source} holds numbered arrays ({', '.join(list(shapes)[:8])}) that are no episodes.")
    return [{base: sorted(names) for base, names in whole[group].items()} for group in named], True


def _require_the_same_keys(source: str, tables: list[dict[str, list[str]]], read: dict[str, str]) -> None:
    """InputError where observations, or next observations, are of other arrays than an episode's or their own."""
    found = [
        [name.rpartition(f"{base}/")[2] if f"{base}/" in name else "" for name in table[base]]
        for base, role in read.items()
        if role in ("obs", "next_obs")
        for table in tables
    ]
    for keys in found:
        unnamed = len(keys) == len(found[0]) == 1 and "" in (keys[0], found[0][0])
        if keys != found[0] and not unnamed:
            first, other = (", ".join(names) or "one array" for names in (found[0], keys))
            raise InputError(f"{source}: some observations are of {first}, others of {other}.")


def _place(name: str) -> tuple[str, str]:
    """Group and name in it: data/demo_0/obs/arm -> (data/demo_0, obs); observations_3 -> (#3, observations)."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
        if USUAL.get(plain(part)) in ("obs", "next_obs"):
            return "/".join(parts[:i]), part
    found = re.fullmatch(r"(.+)_(\d+)", parts[-1])
    if found and plain(found[1]) in USUAL and len(parts) == 1:
        return f"#{found[2]}", found[1]
    return "/".join(parts[:-1]), parts[-1]


def _joined(path: Path, base: str, names: list[str], stored: dict[str, np.ndarray]) -> np.ndarray:
    """The array, or those of its group side by side."""
    if len(names) == 1:
        return stored[names[0]]
    arrays = [stored[name] for name in names]
    if any(x.dtype.kind not in "biuf" or x.ndim == 0 or len(x) != len(arrays[0]) for x in arrays):
        raise InputError(f"{path}: the arrays of {base} are not numbers of the same rows.")
    return np.concatenate([x.reshape(len(x), -1) for x in arrays], axis=1)


def _episodes_as_rows(source: str, columns: list[dict[str, np.ndarray]], read: dict[str, str]) -> dict[str, np.ndarray]:
    """The rows of episodes one after the other, with GROUPS, the flag of their ends; adds to `read` what it finds."""
    parts: dict[str, list[np.ndarray]] = {}
    (obs_name,) = (name for name, role in read.items() if role == "obs")
    (action_name,) = (name for name, role in read.items() if role == "action")
    for episode in columns:
        rows = len(episode[action_name]) if episode[action_name].ndim else 0
        if rows == 0:
            raise InputError(f"{source}: {action_name} of an episode has no rows.")
        obs = episode[obs_name]
        if obs.ndim and len(obs) == rows + 1 and "next_obs" not in read.values():
            episode = episode | {obs_name: obs[:-1], FOLLOWING: obs[1:]}
        for name, x in episode.items():
            if read.get(name) in FLAGS and x.size == 1:
                x = _of_the_whole(read[name], x.ravel(), rows)
            parts.setdefault(name, []).append(x)
        parts.setdefault(GROUPS, []).append(np.arange(rows) == rows - 1)
    if len({len(of) for of in parts.values()}) > 1:
        raise InputError(f"{source}: only some episodes have one observation more than actions.")
    if FOLLOWING in parts:
        read[FOLLOWING] = "next_obs"
    read[GROUPS] = "end"
    try:
        return {name: np.concatenate(of) for name, of in parts.items()}
    except ValueError as error:
        raise InputError(f"{source}: arrays of its episodes do not fit each other ({first_line(error)}).") from None


def _of_the_whole(role: str, x: np.ndarray, rows: int) -> np.ndarray:
    """One value [1] that a flag has for an episode of so many rows, in each of them."""
    if role == "length":
        return x
    if role in ("episode", "valid", "step_type"):
        return np.repeat(x, rows)
    others = np.full(rows - 1, role == "not_terminal", x.dtype)
    return np.r_[x, others] if role == "start" else np.r_[others, x]


def _flag_like(unread: dict[str, tuple[int, ...]], columns: dict, meaning: dict[str, str]) -> Iterable[str]:
    """Arrays of one number a row that were not read, whose names speak of an end, and that nobody said to ignore."""
    n = next((len(x) for name, x in columns.items() if meaning[name] == "obs" and x.ndim), 0)
    for name, shape in unread.items():
        if shape in ((n,), (n, 1)) and speaks_of_an_end(name) and meaning.get(name) != "ignore":
            yield name


def _check_shapes(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Numbers in rows, as many of everything as of obs, one reward in a row."""
    for field, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name}: {field} is of type {array.dtype}, not of numbers.")
        if array.ndim == 0 or array.size == 0:
            raise InputError(f"{name}: {field} of shape {array.shape} has no rows.")
        if len(array) != len(arrays["obs"]):
            raise InputError(f"{name}: {field} has {len(array)} rows, obs has {len(arrays['obs'])}.")
        if field == "reward" and array.size != len(array):
            raise InputError(f"{name}: {field} of shape {array.shape} has more than one value in a row.")
    if "next_obs" in arrays and arrays["next_obs"].shape != arrays["obs"].shape:
        shapes = arrays["next_obs"].shape, arrays["obs"].shape
        raise InputError(f"{name}: next_obs of shape {shapes[0]} do not fit obs of shape {shapes[1]}.")


def _rows(
    source: str,
    columns: dict[str, np.ndarray],
    read: dict[str, str],
    others: dict[str, np.ndarray],
    not_read: list[str],
    given: tuple[str, ...],
    episode_length: int,
    notes: list[str],
) -> tuple[dict[str, np.ndarray], dict]:
    """Transitions and their episodes from the columns {name: array} whose roles are `read`.

    `others`: arrays of one number a row without a role. `notes`: what is known so far.
    """
    data = {role: columns[name] for name, role in read.items() if role in DATA}
    _check_shapes(source, data)
    n = len(data["obs"])
    rewarded = "reward" in data
    data["reward"] = data["reward"].reshape(n) if rewarded else np.zeros(n, np.float32)
    if are_images(data["obs"]):  # next observations may be of another type, where some are NaN
        data |= {role: rows_of_images(data[role]) for role in ("obs", "next_obs") if role in data}
    elif data["obs"].ndim > 2:
        notes.append(f"observations of shape {data['obs'].shape[1:]} are laid flat: images are uint8 of three axes")
    if data["action"].ndim > 2:
        notes.append(f"actions of shape {data['action'].shape[1:]} are laid flat")
    flags: dict[str, dict[str, np.ndarray]] = {}
    for name, role in read.items():
        if role in FLAGS:
            flags.setdefault(role, {})[name] = columns[name]
    valid = np.ones(n, bool)
    if "next_obs" not in data:
        data, flags, valid = _without_bare_states(source, data, flags, notes)
    after = np.r_[data["obs"][1:], data["obs"][-1:]] if "next_obs" not in data else data["next_obs"]
    recorded = np.r_[~valid[1:], False][valid]  # the row after holds nothing but the observation
    data = {role: x[valid] for role, x in data.items()} | {"next_obs": after[valid]}
    flags = {role: {k: _of(x, valid) for k, x in of.items()} for role, of in flags.items()}
    n = len(data["obs"])
    if n == 0:
        raise InputError(f"{source} has no rows that are transitions.")
    ep = episodes(source, flags, n, rewarded, {word.partition("=")[2] for word in given})
    notes += ep.notes
    stored_next = "next_obs" in read.values()
    last, timeout = _goes_on(data["obs"], ep, notes), ep.timeout
    apart = jumps(data["obs"], data["next_obs"]) if stored_next else np.zeros(n - 1, bool)
    if (gaps := apart & ~last[:-1]).any():
        if not ep.told:
            last = last | np.r_[gaps, False]
            if last.mean() > 0.5 and n > 2:
                notes.append("few next observations are the next row's: single transitions, which have no returns")
        else:
            notes.append(
                f"the next observation of {gaps.sum():,} rows within episodes (as flagged) is not the next row's"
            )
    if episode_length:
        cut = every(episode_length, last)
        timeout, last = timeout | (cut & ~ep.terminal), last | cut
    suspects = unnamed_flags(others, len(valid))
    if suspects and not (ep.told and flags.keys() & {"terminal", "done", "not_terminal"}):
        raise InputError(
            f"{source}: {', '.join(suspects)} may say where episodes end, but the name does not say how; pass "
            f"--fields ROLE={suspects[0]} (terminal, not_terminal, timeout, end, start, or ignore)."
        )
    if not (ep.told or stored_next or last[:-1].any()):
        raise InputError(
            f"{source} says nothing of where its {n:,} rows are parted into episodes, and stores no next observations "
            "to see it by; pass --episode-length N, or name a flag with --fields timeout=NAME (not read: "
            f"{', '.join(not_read[:8]) or 'nothing'})."
        )
    arrays = {
        "obs": data["obs"],
        "next_obs": data["next_obs"],
        "action": data["action"],
        "reward": data["reward"],
        "terminal": ep.terminal,
        "last": last,
    }
    if stored_next:  # some write NaN where an episode was cut
        numbers = data["next_obs"].dtype.kind == "f"
        has_next = ~last | np.isfinite(data["next_obs"]).reshape(n, -1).any(1) if numbers else np.ones(n, bool)
        has_next &= ~_of_the_next_episode(data["obs"], data["next_obs"], last, ~apart, notes)
    else:
        has_next = ~last | recorded
    if not has_next.all():
        at = has_next.reshape(-1, *(1,) * (after.ndim - 1))
        arrays |= {"next_obs": np.where(at, arrays["next_obs"], data["obs"]), "successor": has_next}
    return arrays, {"data": summary(arrays, timeout, read, not_read, notes, rewarded)}


def _goes_on(obs: np.ndarray, ep: Episodes, notes: list[str]) -> np.ndarray:
    """[N] last rows of episodes; of a log with time limits that goes on where the task has ended, these alone.

    D4RL's AntMaze says in every row at the goal that it terminates: what terminates row after row, without a larger
    change of the observation than there is within episodes, is one trajectory.
    """
    again = ep.terminal[:-1] & ep.terminal[1:]
    if not (again.any() and ep.timeout.any()):
        return ep.last
    step = moves(obs[:-1], obs[1:])
    on = ep.terminal[:-1] & (step <= step[~ep.last[:-1]].max(initial=0.0))
    if not on[again].all():
        return ep.last
    notes.append(f"the log goes on after {on.sum():,} rows that terminate: episodes end by time limits")
    return ep.last & ~np.r_[on, False]


def _of_the_next_episode(
    obs: np.ndarray, next_obs: np.ndarray, last: np.ndarray, follows: np.ndarray, notes: list[str]
) -> np.ndarray:
    """[N] last rows of which the stored next observation is the first of the next episode, as of a table that was
    shifted by a row: the next row's (`follows` [N - 1]), and of one episode at least farther away than any within them.
    """
    found = np.zeros(len(obs), bool)
    if (last[:-1] & follows).any() and not last[:-1].all():
        step = moves(obs, next_obs)
        shifted = last[:-1] & follows
        if (step[:-1][shifted] > step[:-1][~last[:-1]].max()).any():  # the others may begin nearer by
            found[:-1] = shifted
    if found.any():
        found[-1] = np.array_equal(next_obs[-1], obs[0]) or np.array_equal(next_obs[-1], obs[-1])
        notes.append(f"the next observation of {found.sum():,} last rows is the next episode's first: it is not used")
    return found


def _of(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The valid rows of a flag, where it has one of every row."""
    return x[valid] if x.ndim and len(x) == len(valid) else x


def _without_bare_states(
    source: str, data: dict[str, np.ndarray], flags: dict[str, dict[str, np.ndarray]], notes: list[str]
) -> tuple[dict, dict, np.ndarray]:
    """Columns and flags, and [N] the rows that are transitions; the others hold nothing but the observation after one.

    OGBench (compact) and jaxrl say so (valids). RLDS ends an episode with such a row, whose action is zero and whose
    flag is_terminal speaks of the observation. dm_env and Dreamer store the action and the reward that led to an
    observation beside it: those of an episode's first row are zero (or the reward is NaN: dm_env has none there).
    """
    n, reward = len(data["obs"]), data["reward"]
    zero = ~data["action"].reshape(n, -1).any(1) & ((reward == 0) | (reward != reward))
    valid = np.ones(n, bool)
    for name, x in flags.pop("valid", {}).items():
        if x.size != n or not np.isin(x, (0, 1)).all():
            raise InputError(f"{source}: {name} is no flag of {n} rows.")
        valid &= x.reshape(n).astype(bool)
    if not valid.all():
        return data, flags, valid
    by_plain = {plain(name): x.reshape(-1) for of in flags.values() for name, x in of.items() if x.size == n}
    step_type = by_plain.get("step_type", by_plain.get("step_types"))
    first = by_plain.get("is_first") if step_type is None else step_type == 0
    final = by_plain.get("is_last") if step_type is None else step_type == 2
    if first is not None and final is None:
        final = np.r_[first[1:], True]
    first, final = (None if x is None else x.astype(bool) for x in (first, final))
    moved = ("terminal", "done", "not_terminal", "timeout")
    if final is not None and final.any() and zero[final].all() and not zero.all() and "is_last" in by_plain:
        notes.append("the last row of an episode holds its last observation only (RLDS)")
        into = np.r_[final[1:], False]  # the row before

        def told(role: str, x: np.ndarray) -> np.ndarray:
            later = np.r_[x.reshape(n)[1:], x.reshape(n)[-1:]]
            return np.where(into, later, x.reshape(n)) if role in moved and x.size == n else x

        flags = {role: {k: told(role, x) for k, x in of.items()} for role, of in flags.items() if role != "start"}
        flags["end"] = {"is_last": into}
        return data, flags, ~final
    if first is not None and first.any() and zero[first].all() and not zero.all():
        notes.append("actions and rewards stand beside the observation that they led to (dm_env)")

        def earlier(x: np.ndarray) -> np.ndarray:
            return np.r_[x[1:], x[-1:]]

        data = data | {role: earlier(data[role]) for role in ("action", "reward")}
        flags = {
            role: {k: earlier(x.reshape(n)) if x.size == n else x for k, x in of.items()}
            for role, of in flags.items()
            if role in moved
        }
        flags["end"] = {"is_last": np.r_[final[1:], False]}
        return data, flags, ~final
    return data, flags, valid
