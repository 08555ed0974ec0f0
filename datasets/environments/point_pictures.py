"""Draws layouts.png: every layout with the length of the shortest path to its goal.

python datasets/environments/point_pictures.py
"""

import sys
from pathlib import Path

sys.path += [str(parent) for parent in Path(__file__).resolve().parents[1:3]]

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from environments.point import World
from environments.point_layouts import LAYOUTS
from environments.point_truth import path_length

MARKS = {
    "S": "S", "G": "G", "~": "~", ">": "→", "<": "←", "^": "↑", "v": "↓",
    **{c: c for c in "123456789abcABC"},
}  # fmt: skip


def draw(path: Path) -> None:
    """One sheet: walls dark, the length of the way to G (cells) from light to darker blue, where there is none white;
    hazards red, marks of the other special cells."""
    names = [*LAYOUTS, "random-9x11-0"]
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(9.6, 3.3), dpi=100)
    for axis, name in zip(axes.flat, names + [None] * (axes.size - len(names))):
        axis.axis("off")
        if name is None:
            continue
        world = World(name)
        text, (width, height) = world.grid.text[0], world.grid.size
        side = 4
        centres = (np.arange(max(width, height) * side) + 0.5) / side
        x, y = np.meshgrid(centres[: width * side], centres[: height * side])
        goals = np.argwhere(world.grid.goals[0])[:, ::-1] + 0.5
        if len(goals) == 0:
            goals = np.argwhere(text == "9")[:, ::-1] + 0.5
        spots = np.stack([x, y], -1)
        length = np.min([path_length(world, goal, fine=side)(spots) for goal in goals], axis=0)
        longest = length[np.isfinite(length)].max()
        axis.imshow(
            np.where(np.isinf(length), np.nan, length), extent=(0, width, height, 0), cmap="Blues", vmax=1.6 * longest
        )
        for cells, colour in ((world.grid.wall[0], "0.3"), (world.grid.hazard[0], "salmon")):
            axis.imshow(np.where(cells, 0, np.nan), extent=(0, width, height, 0), cmap=ListedColormap([colour]))
        for row, col in np.argwhere(np.isin(text, list(MARKS))):
            axis.text(col + 0.5, row + 0.55, MARKS[text[row, col]], ha="center", va="center", fontsize=7)
        axis.set_title(f"{name} ({longest:.0f})", fontsize=8, pad=2)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.93, 0.06, 0.14)
    figure.savefig(path, pil_kwargs={"optimize": True})
    plt.close(figure)
    smaller(path)


def smaller(path: Path) -> None:
    """The picture in 32 colours: a third of the size."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).with_name("layouts.png"))
