"""Pictures over mazes: paths of results/plans.json, values of results/goal_distances.json.

Curves do not change with this file.
"""

from pathlib import Path

import numpy as np

from results.pictures import COLOURS, GREY, grid_of_panels, picture

SHARES = (1.0, 0.6, 0.3, 0.15, 0.0)
"""Of blue, from the farthest band of values to the nearest: shades that the pictures' palette has."""
BANDS = len(SHARES)


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


def values_picture_name(name: str) -> str:
    """File name of the values of an algorithm's runs."""
    return f"values-{name}.png"


def values_picture(cases: list[dict], path: Path) -> bytes:
    """Of each run of results/goal_distances.json values over the maze, lighter where higher, after the fewest steps."""
    panels, seen = [], set()
    for case in cases:
        over, dataset = case["over_the_maze"], case["dataset"]
        if dataset not in seen:
            seen.add(dataset)
            steps = [[None if x is None else -x for x in row] for row in over["steps"]]
            panels.append((f"{dataset}: fewest steps", over["maze"], over["goal"], steps))
        panels.append((Path(case["run"]).name, over["maze"], over["goal"], over["values"]))

    def draw(figure) -> None:
        for axes, panel in zip(grid_of_panels(figure, len(panels)), panels, strict=True):
            draw_values(axes, *panel)

    return picture(["values", Path(__file__).read_text(), panels], draw, path, len(panels))


def draw_values(axes, title: str, maze: list[str], goal: list, values: list) -> None:
    """Values [rows, columns], None in walls, in bands of equal area, with lines of equal value; a cross at the goal."""
    field = np.array([[np.nan if x is None else x for x in row] for row in values])
    rows, columns = len(maze), len(maze[0])
    edges = np.nanquantile(field, np.arange(1, BANDS) / BANDS)
    blue = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    shades = [255 - share * (255 - blue) for share in SHARES]
    pixels = np.where(np.isnan(field)[..., None], 217, np.array(shades)[np.digitize(field, edges)]).astype(np.uint8)
    axes.imshow(pixels, extent=(0, columns, rows, 0), interpolation="nearest")
    y, x = ((np.arange(n) + 0.5) * size / n for n, size in zip(field.shape, (rows, columns), strict=True))
    axes.contour(x, y, np.ma.masked_invalid(field), levels=12, colors=GREY, linewidths=0.4)
    axes.plot(*goal, "x", color=COLOURS[1], ms=6, mew=2, ls="")
    axes.set_title(title, loc="left", fontsize=8, fontweight="bold")
    axes.set_axis_off()


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
