"""Sequences on the device: windows of consecutive rows of an episode, padded and masked; what is asked of a policy.

A window never leaves its episode. Rows drawn uniformly draw episodes in proportion to their length.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.data import Dataset
from shared.errors import InputError
from shared.replay import Replay
from shared.task import Task
from shared.transitions import Transitions


class Window(NamedTuple):
    """Rows [..., T], the steps of one episode in their order; everything is 0 where `mask` is."""

    mask: jax.Array
    """1: a step, 0: padding."""
    timestep: jax.Array | None = None
    """Of the episode, from 0; int32."""
    obs: jax.Array | None = None
    action: jax.Array | None = None
    reward: jax.Array | None = None
    terminal: jax.Array | None = None
    return_to_go: jax.Array | None = None
    """Undiscounted sum of the rewards from this step on, to where the task ended, or the episode did."""
    next_obs: jax.Array | None = None
    successor: jax.Array | None = None
    """0 at terminal rows whose next_obs is not known."""


def shown(mask: jax.Array, known: dict[str, jax.Array]) -> Window:
    """The arrays `known` [..., T, *] where `mask` [..., T] is, 0 elsewhere."""
    arrays = {n: jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, 0) for n, x in known.items()}
    return Window(mask=mask.astype(jnp.float32), **arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """A dataset on the device with the bounds of its episodes. Rows are numbers in 0 .. N - 1."""

    transitions: Transitions
    start: jax.Array
    """[N] the first row of a row's episode."""
    end: jax.Array
    """[N] the last one."""

    def rows(self, key: jax.Array, shape: int | tuple[int, ...]) -> jax.Array:
        """`shape` rows: uniformly, or by the weights given to `sequences`."""
        return self.transitions.draw(key, shape)

    def take(self, row: jax.Array, offsets: jax.Array) -> Window:
        """The rows `row` [...] + `offsets` [..., T], as far as they are of the episode of `row`: one gather."""
        start, end = self.start[row][..., None], self.end[row][..., None]
        index = row[..., None] + offsets
        mask = (index >= start) & (index <= end)
        index = jnp.clip(index, start, end)
        found = self.transitions.take(index)._asdict() | {"timestep": index - start}
        known = {name: found[name] for name in Window._fields if found.get(name) is not None}
        return shown(mask, known)

    def until(self, row: jax.Array, length: int) -> Window:
        """The `length` rows that end with `row` [...], padded on the left where the episode begins later."""
        return self.take(row, jnp.arange(1 - length, 1))

    def after(self, row: jax.Array, length: int) -> Window:
        """The `length` rows that begin with `row` [...]; of as many as there are, padded on the left, too."""
        missing = jnp.maximum(length - 1 - (self.end[row] - row), 0)
        offsets = jnp.arange(length) - missing[..., None]
        return self.take(row, jnp.where(offsets < 0, -len(self.end), offsets))


def sequences(data: Dataset, *fields: str, weights: np.ndarray | None = None) -> Sequences:
    """The columns `fields` of `data` on the default device; `weights` [N]: as `Dataset.transitions` has them.

    Raises:
      InputError: its rows were cut out of episodes one by one.
    """
    if data.last.all() and not data.terminal.all():
        raise InputError(f"'{data.task.id}' has single rows that were cut out of episodes: there are no sequences.")
    keep = data.usable(*fields)
    episode = data.episode()[keep]
    start = np.searchsorted(episode, episode, side="left").astype(np.int32)
    end = np.searchsorted(episode, episode, side="right").astype(np.int32) - 1
    return Sequences(data.transitions(*fields, weights=weights), jnp.asarray(start), jnp.asarray(end))


def replay_windows(replay: Replay, key: jax.Array, n: int, length: int) -> Window:
    """Windows [n, T] of one lane's ring that begin with rows drawn uniformly, padded behind the end of their episode.

    It ends with a row that is terminal, or whose next_obs is not the next row's obs, and with the newest one.
    """
    age = jax.random.randint(key, (n, 1), 0, jnp.maximum(replay.size(), 1)) - jnp.arange(length)
    rows = replay.take(jnp.maximum(age, 0))
    goes_on = (rows.next_obs[:, :-1] == rows.obs[:, 1:]).all(-1) & (rows.terminal[:, :-1] == 0) & (age[:, 1:] >= 0)
    mask = jnp.cumprod(jnp.pad(goes_on, ((0, 0), (1, 0)), constant_values=True), axis=1, dtype=jnp.int32) > 0
    known = {name: getattr(rows, name) for name in ("obs", "action", "reward", "terminal", "next_obs")}
    return shown(mask, known | {"successor": jnp.ones(mask.shape)})


def window_starts(data: Dataset, steps: int, option: str = "--window-steps") -> np.ndarray:
    """[S] rows of `sequences(data)` that windows begin with: `steps` rows of one episode, or all up to a terminal one.

    `option`: what asks for so many steps.

    Raises:
      InputError: there is none.
    """
    keep = data.usable()
    terminal, episode = data.terminal[keep], data.episode()[keep]
    row, end = np.arange(len(episode)), np.searchsorted(episode, episode, side="right") - 1
    ends = np.append(np.flatnonzero(terminal), 2 * len(row))
    following = ends[np.searchsorted(ends, row)]  # the next terminal row
    starts = np.flatnonzero((end - row >= steps - 1) | (following <= end))
    if len(starts) == 0:
        raise InputError(f"{option} {steps}: no episode of '{data.task.id}' has so many rows with a successor.")
    return starts


# ------------------------------------------------------------------------------- what is asked for


def longest_episode(data: Dataset) -> int:
    """Rows of the longest episode."""
    return int((data.ends() - data.starts()).max()) + 1


def require_context(data: Dataset, context: int, option: str = "--context") -> int:
    """`context`, or InputError: no episode has as many steps, neither of the data nor of the environment.

    `option`: what asks for it.
    """
    if context < 1:
        raise InputError(f"{option} must be at least 1, not {context}.")
    limit = data.task.env_spec.max_episode_steps if data.task.env_spec else None
    if limit and context > limit:
        raise InputError(f"{option} {context}: episodes of {data.task.env_spec.id} end after {limit} steps.")
    if context > (longest := longest_episode(data)):
        raise InputError(f"{option} {context}: the longest episode of '{data.task.id}' has {longest} rows.")
    return context


def require_heads(width: int, heads: int) -> None:
    """InputError where tokens of `width` numbers are not to be shared evenly among `heads`."""
    if heads < 1 or width < 1 or width % heads:
        raise InputError(f"--width {width} must be a multiple of --heads {heads}, both at least 1.")


def horizon(data: Dataset) -> int:
    """Steps that an episode may have: the environment's limit, at least those of the data's longest episode."""
    limit = data.task.env_spec.max_episode_steps if data.task.env_spec else None
    return max(limit or 0, longest_episode(data))


def target_returns(data: Dataset, wanted: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Returns to be asked of a policy, in the unit of the data's rewards; 0 means that of the best episode.

    Raises:
      InputError: a return of another sign than all that are in the data, or ten times as large.
    """
    returns = data.episode_returns()
    low, high = float(returns.min()), float(returns.max())

    def checked(target: float) -> float:
        _require_like(target or high, low, high, f"--target-return {target:g}", data.task.id)
        return target or high

    return tuple(map(checked, wanted)) if isinstance(wanted, tuple) else checked(wanted)


def require_target(target: float, task: Task) -> None:
    """InputError where the data of `task` has no returns of the sign or scale of what a trained policy is asked for.

    0 is the return 0 here, since no data is at hand: it must lie among theirs. The record of a run from before they
    were kept in it refuses nothing.
    """
    if not (known := task.data.get("episode_returns")):
        return
    low, high = known
    if target == 0.0 and not low <= 0.0 <= high:
        raise InputError(
            f"--set target_return=0 asks for a return of 0, not for the best episode's as in training, and the returns "
            f"of '{task.id}' are {low:g} to {high:g}."
        )
    _require_like(target, low, high, f"--set target_return={target:g}", task.id)


def _require_like(target: float, low: float, high: float, given: str, name: str) -> None:
    if high <= 0.0 < target or target < 0.0 <= low or abs(target) > 10.0 * max(abs(low), abs(high)):
        raise InputError(
            f"{given} is of another sign or scale than the returns of '{name}', which are {low:g} to {high:g}."
        )


def return_scale(data: Dataset, wanted: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """What returns are divided by; 0 means the largest magnitude of the data's returns-to-go, or 1.

    Raises:
      InputError: it is negative.
    """
    largest = float(np.abs(data.return_to_go()).max()) or 1.0
    if np.min(wanted) < 0:
        raise InputError(
            f"--return-scale {np.min(wanted):g}: returns are divided by it, so it is above 0, or 0 for the largest of "
            f"'{data.task.id}', {largest:g}."
        )
    return tuple(x or largest for x in wanted) if isinstance(wanted, tuple) else wanted or largest
