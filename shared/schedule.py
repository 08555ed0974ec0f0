"""The schedule of a run: how many steps are one compiled call, and their keys."""

import math

import jax
import jax.numpy as jnp

from shared.arguments import RunArgs
from shared.errors import InputError

MAX_CHUNK = 1_000_000
"""Steps of one compiled call, in which no signal is seen; a key is made for each beforehand."""


def chunk_keys(key: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    """[n] the keys of a lane's n steps from `start` on; `length` [n] stands for n."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(len(length)))


def chunk_length(args: RunArgs, total: int, unit: int, before: int = 0, offline: int = 0) -> int:
    """The longest chunk that divides the total, every interval and what comes before."""
    every = {n: getattr(args, n) for n in ("log_every", "eval_every", "checkpoint_every")}
    chunk = math.gcd(total, before, offline, *(min(v, max(total, offline)) for v in every.values()))
    if offline:
        chunk = math.gcd(chunk, min(args.offline_eval_every, offline))
    before += offline
    if chunk > MAX_CHUNK:
        raise InputError(f"{chunk:,} steps in one call cannot be stopped; --log-every must be {MAX_CHUNK:,} or less.")
    if chunk % unit or (chunk < 100 and total > 100 * chunk):
        intervals = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in every.items())
        raise InputError(
            f"{total} steps{f' after {before}' if before else ''} and {intervals} have only {chunk} as a common "
            f"divisor; choose multiples of {100 * unit}."
        )
    return chunk
