"""Numbers and tables as the pages write them."""

import re

import numpy as np

from results.aggregate import iqm_interval
from results.raw import Row, online, short


def number(value: float, metric: str) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:,.1f}" if metric == "score" or abs(value) >= 10 else f"{value:.2f}"


def mean_std(x: np.ndarray, metric: str) -> str:
    """Over the finite lanes."""
    x = x[np.isfinite(x)]
    return f"{number(x.mean(), metric)} ± {number(x.std(), metric)}" if len(x) else "–"


def iqm_text(x: np.ndarray, metric: str) -> str:
    """Over the finite lanes; empty for fewer than two: one lane says nothing about another."""
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return ""
    middle, low, high = (number(v, metric) for v in iqm_interval(x[:, None]))
    return f"{middle} [{low}, {high}]"


def rate(per_second: float) -> str:
    """Three figures of a slow one; a dash where there is none."""
    if not np.isfinite(per_second):
        return "–"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.{1 if per_second >= 10 else 2}f}"


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def budget(row: Row) -> str:
    return f"{short(row.record['steps_done'])} {'env steps' if online(row) else 'updates'}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Columns of numbers are aligned right."""
    numeric = [all(re.match(r"[-–\d]|$", text) for text in column) for column in zip(*rows, strict=True)]
    align = ["---:" if right else "---" for right in numeric] or ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, align, *rows])
