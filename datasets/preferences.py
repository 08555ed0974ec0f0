"""Preferences between pieces of episodes, drawn from any dataset by its true rewards."""

from typing import NamedTuple

import numpy as np


class Preferences(NamedTuple):
    """M pairs of pieces of T rows."""

    first: np.ndarray
    """[M] row where the first piece starts"""
    second: np.ndarray
    """[M] likewise of the second"""
    label: np.ndarray
    """[M] 1.0 where the first is preferred, 0.0 the second, 0.5 where their returns are equal"""


def preferences(
    reward: np.ndarray, last: np.ndarray, pairs: int, length: int, flips: float = 0.0, seed: int = 0
) -> Preferences:
    """Pairs of pieces that start uniformly where `length` rows of one episode follow; more reward is preferred.

    `reward` [N] and `last` [N] (an episode's last row) are the dataset's; a share `flips` of the labels is inverted.

    Raises:
      ValueError: no episode has `length` rows.
    """
    rng = np.random.default_rng(seed)
    ends = np.flatnonzero(last)
    rows_left = ends[np.searchsorted(ends, np.arange(len(last)).clip(max=ends[-1]))] - np.arange(len(last)) + 1
    starts = np.flatnonzero(rows_left >= length)
    if not len(starts):
        raise ValueError(f"no episode has {length} rows")
    first, second = rng.choice(starts, (2, pairs))
    sums = np.append(0.0, np.cumsum(reward, dtype=np.float64))
    better = np.sign(np.round(sums[first + length] - sums[first] - sums[second + length] + sums[second], 9))
    label = np.float32(0.5 + 0.5 * better)
    return Preferences(first, second, np.where(rng.random(pairs) < flips, 1.0 - label, label).astype(np.float32))
