"""Transitions on the device: batches, and how rows are drawn."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.errors import InputError
from shared.task import Spec

FIELDS = ("obs", "action", "reward", "terminal", "next_obs")


class Batch(NamedTuple):
    """Transitions; the leading axes are those of the rows they were taken from."""

    obs: jax.Array | None = None
    action: jax.Array | None = None
    reward: jax.Array | None = None
    terminal: jax.Array | None = None
    """1 where bootstrapping stops."""
    next_obs: jax.Array | None = None
    next_action: jax.Array | None = None
    """The dataset's action in next_obs."""
    return_to_go: jax.Array | None = None
    n_steps: jax.Array | None = None
    """Steps from obs to next_obs, whose discounted rewards are summed; None: one."""
    successor: jax.Array | None = None
    """0 at terminal rows whose next_obs is not known; None: it is everywhere."""


def unpack(rows: jax.Array, spec: Spec, fields: tuple[str, ...] = FIELDS) -> Batch:
    """Rows [..., D] -> Batch; discrete actions become int32."""
    vectors = {"obs": spec.obs_shape[0], "next_obs": spec.obs_shape[0]}
    if not spec.discrete:
        vectors |= {"action": spec.action_dim, "next_action": spec.action_dim}
    ends = np.cumsum([vectors.get(f, 1) for f in fields])
    columns = dict(zip(fields, jnp.split(rows, ends[:-1], axis=-1), strict=True))
    for name in columns.keys() - vectors.keys():
        columns[name] = columns[name][..., 0]
        if "action" in name:
            columns[name] = columns[name].astype(jnp.int32)
    return Batch(**columns)


def random_shift(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Images [..., H, W, C], each moved by -most to most pixels in both directions; its rim is repeated outwards.

    Kostrikov et al., "Image Augmentation Is All You Need", arXiv 2004.13649 (whole pixels; DrQ-v2 interpolates).
    """
    height, width, channels = images.shape[-3:]
    flat = images.reshape(-1, height, width, channels)
    padded = jnp.pad(flat, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(flat), 2), 0, 2 * most + 1)
    crop = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), flat.shape[1:])  # noqa: E731
    return jax.vmap(crop)(padded, corners).reshape(images.shape)


class AliasTable(NamedTuple):
    """Draws row i in proportion to its weight with two look-ups (Walker's alias method).

    A drawn row is kept with probability `keep` and gives way to `other` else.
    """

    keep: jax.Array
    """[N] uint32, in units of 2^-32: float32 would round the weights of rare rows."""
    other: jax.Array
    """[N] int32"""


def alias_table(weights: np.ndarray) -> AliasTable:
    """The table of `weights` [N], which need not sum to one; in float64 on the host.

    Raises:
      InputError: weights that are negative, not finite, or all zero.
    """
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.max(initial=0) > 0):
        raise InputError("Sampling weights must be finite, not negative, and not all zero.")
    share = weights / weights.mean()  # a row's probability in units of 1 / N: what is over 1 fills up the others
    light = share < 1.0
    light[share.argmax()] = False
    low, high = np.flatnonzero(light), np.flatnonzero(~light)
    lacking, surplus = np.cumsum(1.0 - share[low]), np.cumsum(share[high] - 1.0)
    # The light rows in turn are filled up from the first heavy row that has surplus left. The row that a heavy one
    # gave too much to in the end is filled up from the next heavy row in its stead.
    keep, other = share.copy(), np.arange(len(share))
    filled = np.searchsorted(surplus, np.r_[0.0, lacking][:-1])
    other[low] = high[np.minimum(filled, len(high) - 1)]
    spent = np.r_[lacking, np.inf][np.searchsorted(lacking, surplus, side="right")]
    keep[high] = np.where(np.isfinite(spent), 1.0 + surplus - spent, 1.0)
    other[high] = np.r_[high[1:], high[-1]]
    keep = np.round(np.clip(keep, 0.0, 1.0) * 2.0**32)
    other = np.where(keep < 2.0**32, other, np.arange(len(other)))  # 1 has no uint32: the row gives way to itself
    keep = np.minimum(keep, 2.0**32 - 1)
    return AliasTable(jnp.asarray(keep.astype(np.uint32)), jnp.asarray(other.astype(np.int32)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
    """A dataset on the device: one packed array, so that a batch is one gather."""

    rows: jax.Array
    """[N, D] float32"""
    frames: jax.Array | None
    """[N + episodes, H, W, C] uint8: image observations, each stored once; else None."""
    frame: jax.Array | None
    """[N] index of a row's obs in `frames`; its next_obs is the one after."""
    spec: Spec = dataclasses.field(metadata={"static": True})
    fields: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    table: AliasTable | None = None
    """How rows are drawn; None: uniformly."""
    random_shift: int = dataclasses.field(default=0, metadata={"static": True})
    """Pixels that `sample` moves images by at most."""

    def take(self, index: jax.Array) -> Batch:
        """Rows `index` [...] as a Batch."""
        if self.frames is None:
            return unpack(self.rows[index], self.spec, self.fields)
        names = tuple(f for f in self.fields if "obs" not in f)
        batch = unpack(self.rows[index], self.spec._replace(obs_shape=(0,)), names)
        seen = [f for f in ("obs", "next_obs") if f in self.fields]
        at = self.frame[index][..., None] + np.array([("obs", "next_obs").index(f) for f in seen])
        return batch._replace(**dict(zip(seen, jnp.moveaxis(self.frames[at], index.ndim, 0), strict=True)))

    def sample(self, key: jax.Array, shape: int | tuple[int, ...]) -> Batch:
        """`shape` rows with replacement: uniformly, or by the weights given to `Dataset.transitions`.

        Of images obs and next_obs are moved, each by itself, by up to `random_shift` pixels.
        """
        if self.random_shift:
            key, obs_key, next_key = jax.random.split(key, 3)
            batch = dataclasses.replace(self, random_shift=0).sample(key, shape)
            keys = {"obs": obs_key, "next_obs": next_key}
            images = {f: random_shift(keys[f], getattr(batch, f), self.random_shift) for f in keys if f in self.fields}
            return batch._replace(**images)
        return self.take(self.draw(key, shape))

    def draw(self, key: jax.Array, shape: int | tuple[int, ...]) -> jax.Array:
        """`shape` rows' numbers with replacement: uniformly, or by the weights given to `Dataset.transitions`."""
        shape = (shape,) if isinstance(shape, int) else shape
        if self.table is None:
            return jax.random.randint(key, shape, 0, len(self.rows))
        row_key, keep_key = jax.random.split(key)
        row = jax.random.randint(row_key, shape, 0, len(self.rows))
        kept = jax.random.bits(keep_key, shape) < self.table.keep[row]
        return jnp.where(kept, row, self.table.other[row])


class TransitionsWithReturns(NamedTuple):
    """A dataset on the device with its returns-to-go, once for every discount that a lane has."""

    transitions: Transitions
    discounts: jax.Array
    """[D]"""
    return_to_go: jax.Array
    """[D, N]"""

    def sample(self, key: jax.Array, n: int, discount: jax.Array) -> Batch:
        """`n` rows with replacement, uniformly, with their returns-to-go under a lane's `discount`."""
        row = jax.random.randint(key, (n,), 0, len(self.transitions.rows))
        mine = jnp.abs(self.discounts - discount).argmin()
        return self.transitions.take(row)._replace(return_to_go=self.return_to_go[mine, row])
