"""Pictures of a claim's `Amounts`: means over lanes against an amount. Curves do not change with this file."""

from pathlib import Path

import numpy as np

from results.pictures import look, picture, plain_axes


def amounts_name(name: str) -> str:
    """File name of a claim's picture against an amount."""
    return f"amounts-{name}.png"


def amounts_picture(
    title: str, x: str, y: str, points: dict[str, dict[str, tuple[float, float]]], ticks: list[str], path: Path
) -> bytes:
    """`points` {line: {amount: (mean, half an interval)}} above the amounts `ticks`, which stand at equal distances."""

    def draw(figure) -> None:
        axes = figure.subplots()
        for n, (line, values) in enumerate(points.items()):
            mean, half = np.array(list(values.values())).T
            at = [ticks.index(amount) for amount in values]
            axes.errorbar(at, mean, half, label=line, lw=1.5, marker="o", ms=4, capsize=2, **look(n))
        plain_axes(axes, title, "means, two standard errors")
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return picture(["amounts", Path(__file__).read_text(), title, x, y, points, ticks], draw, path)
