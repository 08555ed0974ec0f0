"""Several objectives: what dominates what, and how good a set of points is. Objectives are maximised.

What learns with an archive of points calls the functions of arrays [N, K] of JAX; the indicators are of NumPy.
"""

import itertools

import jax
import jax.numpy as jnp
import moocore
import numpy as np


def non_dominated(values: jax.Array) -> jax.Array:
    """[N] which of the points [N, K] no other one dominates; of equal ones the first. Those that are not finite: none.

    One point dominates another if it is nowhere lower, and higher somewhere.
    """
    finite = jnp.isfinite(values).all(1)
    at_least = (values[:, None] >= values[None]).all(-1)  # [i, j]: i is nowhere lower than j
    first = np.arange(len(values))[:, None] < np.arange(len(values))
    dominates = at_least & (~at_least.T | first) & finite[:, None]
    return finite & ~dominates.any(0)


def crowding_distance(values: jax.Array, present: jax.Array) -> jax.Array:
    """[N] how far apart the neighbours of each point [N, K] lie, summed over objectives, each as a share of its range.

    Infinite for the highest and the lowest of any objective, minus infinity for points that are not `present` [N]
    (Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002).
    """

    def along(value):
        place, count = jnp.arange(len(value)), present.sum()
        order = jnp.argsort(jnp.where(present, value, jnp.inf))
        ordered = value[order]
        gap = jnp.roll(ordered, -1) - jnp.roll(ordered, 1)
        span = ordered[jnp.maximum(count - 1, 0)] - ordered[0]
        inner = (place > 0) & (place < count - 1)
        share = jnp.where(inner, gap / jnp.where(span > 0.0, span, 1.0), jnp.inf)
        return jnp.zeros(len(value)).at[order].set(share)

    return jnp.where(present, jax.vmap(along, 1)(values).sum(0), -jnp.inf)


def simplex_lattice(n_objectives: int, divisions: int) -> np.ndarray:
    """[M, K] all weights of K objectives in multiples of 1 / divisions that sum to 1, the first objective's first."""
    counts = itertools.product(range(divisions, -1, -1), repeat=n_objectives)
    return np.array([row for row in counts if sum(row) == divisions]) / divisions


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Of what the points [N, K] dominate above `reference` [K] (moocore's, exact)."""
    above = values[(values > reference).all(1)]
    return float(moocore.hypervolume(above, ref=np.asarray(reference, float), maximise=True)) if len(above) else 0.0


def sparsity(values: np.ndarray) -> float:
    """Mean squared gap between neighbours of the points [N, K], summed over objectives; 0 of fewer than two.

    Xu et al., "Prediction-Guided Multi-Objective Reinforcement Learning", ICML 2020, section 3.
    """
    gaps = np.diff(np.sort(values, axis=0), axis=0)
    return float((gaps**2).sum() / len(gaps)) if len(gaps) else 0.0


def expected_utility(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean over preferences [M, K] of the highest weighted sum of any point [N, K]; NaN without points."""
    return float((weights @ values.T).max(1).mean()) if len(values) else float("nan")
