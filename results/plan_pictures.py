"""Pictures of results/plans.json: paths over the maze, one panel each. Curves do not change with this file."""

from pathlib import Path

import numpy as np

from results.pictures import COLOURS, GREY, grid_of_panels, picture


def plans_picture_name(name: str) -> str:
    """File name of the plans of an algorithm's runs."""
    return f"plans-{name}.png"


def plans_picture(cases: list[dict], path: Path) -> bytes:
    """Paths over the maze, one panel for each of results/plans.json; the first of each is drawn darker."""
    panels = [(title, case["maze"], paths) for case in cases for title, paths in case["panels"].items()]

    def draw(figure) -> None:
        for axes, panel in zip(grid_of_panels(figure, len(panels)), panels, strict=True):
            draw_paths(axes, *panel)

    return picture(["plans", Path(__file__).read_text(), panels], draw, path, len(panels))


def draw_paths(axes, title: str, maze: list[str], paths: list) -> None:
    """Paths [K, T, 2] in cells, y downwards; a dot where one begins, a cross where it ends; of one point dots alone."""
    paths = np.array(paths)
    wall = np.array([[217 if cell == "#" else 255 for cell in row] for row in maze], np.uint8)
    axes.imshow(np.repeat(wall[..., None], 3, -1), extent=(0, wall.shape[1], wall.shape[0], 0))
    for n, path in reversed(list(enumerate(paths))):
        colour = COLOURS[1] if n == 0 else COLOURS[0]
        axes.plot(*path.T, color=colour, lw=1.6 if n == 0 else 0.7, alpha=1.0 if n == 0 else 0.6)
    if paths.shape[1] == 1:
        axes.plot(*paths[:, 0].T, "o", color=COLOURS[0], ms=1.5, ls="")
    else:
        axes.plot(*paths[:, 0].T, "o", color=GREY, ms=3, ls="")
        axes.plot(*paths[:, -1].T, "x", color=COLOURS[2], ms=4, ls="")
    axes.set_title(title, loc="left", fontsize=8, fontweight="bold")
    axes.set_axis_off()
