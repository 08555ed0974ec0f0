"""How near actions that a generative model draws are to a density that is known: of an environment that draws, too."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.env_models import bare_env
from shared.task import Task

JUDGED = 1000
"""Actions that are drawn to be judged."""


class Density(NamedTuple):
    """Of actions, as networks see them."""

    draw: Callable
    """(key, n) -> [n, A]"""
    centres: np.ndarray
    """[K, A] of its modes; K may be 0."""
    reach: float
    """How far a mode reaches."""


def density_of(task: Task) -> Density | None:
    """What the data's actions were drawn from; None where the environment does not say."""
    env = bare_env(task)
    inner = getattr(env, "func_env", None)
    if env is not None:
        env.close()
    return Density(inner.draw, inner.centres, inner.reach) if hasattr(inner, "centres") else None


def energy_distance(x, y):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples x [N, D] and y [M, D], pairs of different ones: 0 for one density.

    Szekely and Rizzo, "Energy statistics", 2013; without bias, so that it may be a little below 0.
    """

    def apart(x, y):
        square = ((x[:, None] - y) ** 2).sum(-1)
        return jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0).sum()

    n, m = len(x), len(y)
    return 2.0 * apart(x, y) / (n * m) - apart(x, x) / (n * (n - 1)) - apart(y, y) / (m * (m - 1))


def modes_covered(x, density: Density):
    """Of the modes, how many have a quarter or more of their share of the samples x [N, A] within their reach."""
    apart = jnp.linalg.norm(x[:, None] - density.centres, axis=-1)
    share = (apart < density.reach).mean(0)
    return (share >= 0.25 / len(density.centres)).sum().astype(jnp.float32)


def judged(action, density: Density, key: jax.Array) -> dict[str, jax.Array]:
    """energy_distance of actions [N, A] to as many of the density, and modes_covered, where it has modes."""
    found = {"energy_distance": energy_distance(action, density.draw(key, len(action)))}
    return found | ({"modes_covered": modes_covered(action, density)} if len(density.centres) else {})
