"""The replay buffer on the device: a ring of transitions per lane."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions, unpack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replay:
    """A ring of transitions per lane; inside a function mapped over lanes, one lane's (no L)."""

    rows: jax.Array
    """[L, C, D]"""
    inserted: jax.Array
    """[L] rows ever inserted, less whole turns of the ring: a number that does not outgrow int32"""
    ready: jax.Array
    """[L] of these, how many may be sampled: all, unless something about the newest ones is still unknown"""
    spec: Spec = dataclasses.field(metadata={"static": True})
    fields: tuple[str, ...] = dataclasses.field(metadata={"static": True}, default=FIELDS)

    def size(self) -> jax.Array:
        """Rows that may be sampled."""
        return jnp.minimum(self.ready, self.rows.shape[-2] - (self.inserted - self.ready))

    def insert(self, row: jax.Array, ready: bool = True) -> "Replay":
        """One row [D] into one lane's ring."""
        rows = self.rows.at[self.inserted % len(self.rows)].set(row)
        inserted = self.inserted + 1
        ready = inserted if ready else self.ready
        return dataclasses.replace(self, rows=rows, inserted=inserted, ready=ready)._turned()

    def extend(self, batch: Batch, valid: jax.Array) -> "Replay":
        """The rows of `batch` [n, ...] that are `valid` [n] into one lane's ring, in order; n is at most its size.

        Rows that are not valid take no place: every row up to `size` is one that was inserted.
        """
        columns = [getattr(batch, name) for name in self.fields]
        rows = jnp.concatenate([x.reshape(len(valid), -1).astype(jnp.float32) for x in columns], axis=1)
        if len(valid) > len(self.rows):
            raise ValueError(f"{len(valid)} rows do not fit into a ring of {len(self.rows)}.")
        at = (self.inserted + jnp.cumsum(valid, dtype=jnp.int32) - 1) % len(self.rows)
        rows = self.rows.at[jnp.where(valid, at, len(self.rows))].set(rows, mode="drop")
        inserted = self.inserted + valid.sum(dtype=jnp.int32)
        return dataclasses.replace(self, rows=rows, inserted=inserted, ready=inserted)._turned()

    def complete(self, ended: jax.Array, reward_at: int, limit: int, return_to_go: Callable) -> "Replay":
        """One lane: if its episode `ended`, the last column of its rows becomes `return_to_go`, and all are ready.

        The rows that are not ready yet are of that episode, which has `limit` steps at most.
        `return_to_go(reward [T], steps)` -> [T], `reward` in column `reward_at` of the rows.
        """
        step, steps = jnp.arange(limit), self.inserted - self.ready
        at = (self.ready + step) % len(self.rows)
        values = return_to_go(jnp.where(step < steps, self.rows[at, reward_at], 0.0), steps)
        at = jnp.where(ended & (step < steps), at, len(self.rows))
        rows = self.rows.at[at, -1].set(values, mode="drop")
        return dataclasses.replace(self, rows=rows, ready=jnp.where(ended, self.inserted, self.ready))

    def _turned(self) -> "Replay":
        """The same with whole turns taken off the counts of a full ring."""
        turns = jnp.maximum(self.inserted // len(self.rows) - 1, 0) * len(self.rows)
        return dataclasses.replace(self, inserted=self.inserted - turns, ready=self.ready - turns)

    def take(self, age: jax.Array) -> Batch:
        """Rows by age: 0 is the newest that may be sampled."""
        return unpack(self.rows[(self.ready - 1 - age) % len(self.rows)], self.spec, self.fields)

    def sample(self, key: jax.Array, shape: int | tuple[int, ...], newest: int | None = None) -> Batch:
        """`shape` rows with replacement, uniform over one lane's ring (or its `newest` rows)."""
        size = self.size() if newest is None else jnp.minimum(self.size(), newest)
        shape = (shape,) if isinstance(shape, int) else shape
        return self.take(jax.random.randint(key, shape, 0, jnp.maximum(size, 1)))


def init_replay(
    lanes: int, capacity: int, spec: Spec, sharding: jax.sharding.Sharding, fields: tuple[str, ...] = FIELDS
) -> Replay:
    """Empty rings, placed like the lanes they belong to."""
    width = 2 * spec.obs_shape[0] + (1 if spec.discrete else spec.action_dim) + len(fields) - 3
    zero = partial(jnp.zeros, lanes, jnp.int32, device=sharding)
    return Replay(jnp.zeros((lanes, capacity, width), device=sharding), zero(), zero(), spec, fields)


def episode_returns(
    reward: jax.Array,
    steps: jax.Array,
    terminated: jax.Array,
    discount: jax.Array,
    failure: float | None = None,
    endless: bool = False,
) -> jax.Array:
    """[T] `data.return_to_go` of one episode of so many `steps`, inside a compiled program; `reward` is 0 behind them.

    In float32, and in log T operations one after the other.
    """
    step = jnp.arange(len(reward))
    if endless:
        reward_for_ever = reward / (1.0 - discount)
        reward = jnp.where((step == steps - 1) & ~terminated, reward_for_ever, reward)

    def join(later, earlier):
        """Of two stretches of steps: the discount over both, and the return of both."""
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    total = jax.lax.associative_scan(join, (jnp.full(len(reward), discount), reward), reverse=True)[1]
    if failure is None:
        return total
    failed = (jnp.isclose(reward, failure) | (step >= steps)).all()
    return jnp.where(failed, failure / (1.0 - discount), total)


def concatenate(*batches: Batch, axis: int = 0) -> Batch:
    """Batches one after the other along `axis`, the fields that all of them have."""
    columns = [[getattr(b, f) for b in batches] for f in Batch._fields]
    return Batch(*(None if any(x is None for x in c) else jnp.concatenate(c, axis) for c in columns))


def sample_union(key: jax.Array, data: Transitions, replay: Replay, shape: int | tuple[int, ...]) -> Batch:
    """`shape` rows, uniform over the dataset and one lane's ring taken together."""
    shape, n = (shape,) if isinstance(shape, int) else shape, len(data.rows)
    at = jax.random.randint(key, shape, 0, n + replay.size())
    old, new = data.take(jnp.minimum(at, n - 1)), replay.take(jnp.maximum(at - n, 0))

    def choose(a, b):
        return None if a is None or b is None else jnp.where((at < n).reshape(shape + (1,) * (a.ndim - at.ndim)), a, b)

    return Batch(*(choose(a, b) for a, b in zip(old, new, strict=True)))
