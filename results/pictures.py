"""Pictures of the results: learning curves over lanes, performance profiles, policy selection."""

from pathlib import Path

import numpy as np

from results.aggregate import iqm_interval, performance_profile
from results.raw import Row, baselines, identity, labels, online, short

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A"]
STYLES = ["-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
GREY = "#555555"


def draw(axes, rows: list[Row], looks: dict[tuple, int]) -> None:
    """IQM over lanes and its interval by updates (environment steps if all are online)."""
    x_name = "env_step" if all(online(row) for row in rows) else "update"
    last: dict[str, float] = {}
    for label, group in labels(rows).items():
        row = group[0]
        lanes = row.curve[np.isfinite(row.curve).all(1)]
        lost = len(row.curve) - len(lanes)
        label += f" ({lost} of {len(row.curve)} lanes lost)" if lost else ""
        if not len(lanes):
            continue
        middle, low, high = np.array([iqm_interval(lanes[:, [t]]) for t in range(lanes.shape[1])]).T
        reference, n = row.algorithm == "bc", looks[identity(row)]
        colour = GREY if reference else COLOURS[n % len(COLOURS)]
        style = (0, (4, 2)) if reference else STYLES[n // len(COLOURS) % len(STYLES)]
        axes.plot(row.steps[x_name], middle, color=colour, ls=style, lw=1.8, label=label, zorder=3)
        axes.fill_between(row.steps[x_name], low, high, color=colour, alpha=0.15, lw=0)
        last[label] = middle[-1]
    for n, (name, values) in enumerate(baselines(rows).items()):
        (value,) = values.values()
        axes.axhline(value, color="#999999", ls=":", lw=1.2, zorder=1)
        x, ha = (0, "left") if n % 2 == 0 else (1, "right")  # apart, should both be the same
        side = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": ha}
        axes.annotate(name, (x, value), xytext=(4 - 8 * x, 2), fontsize=8, color="#777777", **side)
    axes.set_xlabel("environment steps" if x_name == "env_step" else "gradient updates")
    axes.set_ylabel("normalised score" if rows[0].metric == "score" else "return")
    plain_axes(axes, rows[0].dataset, "IQM, 95 % interval")
    axes.xaxis.set_major_formatter(lambda x, _: short(round(x)))
    axes.set_xlim(left=0)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(handles, key=lambda label: -last[label])  # as the lines end, from top to bottom
    axes.legend(
        [handles[label] for label in order], order, frameon=False, fontsize=9,
        loc="upper left", bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip


def write_picture(path: Path, rows: list[Row], looks: dict[tuple, int]) -> None:
    """One panel per dataset."""
    from matplotlib.figure import Figure

    datasets = sorted({row.dataset for row in rows})
    figure = Figure(figsize=(7.2, 3.8 * len(datasets)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(datasets), squeeze=False)[:, 0]
    for axes, dataset in zip(panels, datasets, strict=True):
        draw(axes, [row for row in rows if row.dataset == dataset], looks)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def appearances(rows: list[Row]) -> dict[tuple, int]:
    """A number for every line but bc's, the same in all pictures of a report."""
    names = sorted({identity(row) for row in rows}, key=lambda name: (name[0] == "bc", name))
    return {name: n for n, name in enumerate(names)}


def slug(dataset: str) -> str:
    return dataset.replace("/", "-").strip("-")


def plain_axes(axes, title: str, caption: str) -> None:
    """What all pictures have in common."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_title(caption, loc="right", fontsize=8, color="#777777")
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_profiles(path: Path, title: str, scores: dict[str, np.ndarray]) -> None:
    """Performance profiles of {label: scores [lanes, tasks]}."""
    from matplotlib.figure import Figure

    taus = np.linspace(0, max(x.max() for x in scores.values()), 101)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for n, (label, x) in enumerate(scores.items()):
        share, (low, high) = performance_profile(x, taus)
        look = {"color": COLOURS[n % len(COLOURS)], "ls": STYLES[n // len(COLOURS) % len(STYLES)]}
        axes.plot(taus, share, label=label, lw=1.8, **look)
        axes.fill_between(taus, low, high, color=look["color"], alpha=0.15, lw=0)
    plain_axes(axes, title, "share of lanes and datasets above a score, 95 % bootstrap interval")
    axes.set_xlabel("normalised score")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)


def write_selection(path: Path, title: str, curves: dict[str, np.ndarray]) -> None:
    """Expected score of the picked policy [pulls], of each label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for n, (label, curve) in enumerate(curves.items()):
        look = {"color": COLOURS[n % len(COLOURS)], "ls": STYLES[n // len(COLOURS) % len(STYLES)]}
        axes.plot(np.arange(1, len(curve) + 1), curve, label=label, lw=1.8, **look)
    plain_axes(axes, title, "expected score of the policy that UCB1 picks")
    axes.set_xlabel("online episodes that choose among the settings")
    axes.set_ylabel("normalised score")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: short(round(x)))
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)
