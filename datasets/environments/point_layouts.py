"""Layouts of point worlds: text of one character per cell, and what a world reads from it.

  #  wall          .  free           S  start         G  goal
  ~  slippery      x  hazard         <  >  ^  v       a current
  1 .. 9           a treasure of that number
  a .. c           the way into a teleport; it leads to one of the cells A .. C of its letter, drawn uniformly

Cells count from the upper left one: cell (row, col) covers x in [col, col + 1) and y in [row, row + 1), so that y
grows downwards as in a picture.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LAYOUTS = {
    "open": """
        #########
        #S......#
        #.......#
        #.......#
        #.......#
        #.......#
        #.......#
        #......G#
        #########""",
    "umaze": """
        #####
        #S..#
        ###.#
        #G..#
        #####""",
    "medium": """
        ########
        #S.#...#
        #..#.#.#
        #.##.#.#
        #....#.#
        #.##.#.#
        #..#..G#
        ########""",
    "large": """
        ############
        #S...#.....#
        #.##.#.##..#
        #..#...#..##
        ##.#.###.#.#
        #..#..#..#.#
        #.###.#.##.#
        #.....#...G#
        ############""",
    "fourrooms": """
        #############
        #S....#.....#
        #.....#.....#
        #...........#
        #.....#.....#
        #.....#.....#
        ##.####.....#
        #.....###.###
        #.....#.....#
        #.....#.....#
        #...........#
        #.....#....G#
        #############""",
    "corridor": """
        ###############
        #S...........G#
        ###############""",
    "crossing": """
        #########
        ####G####
        ####.####
        ####.####
        #G..S..G#
        ####.####
        ####.####
        ####G####
        #########""",
    "hazard": """
        #########
        #S......#
        #..xx...#
        #..xx...#
        #....xx.#
        #....xx.#
        #.......#
        #.x....G#
        #########""",
    "lake": """
        #########
        #S~~~~~.#
        #~~x~~~~#
        #~~~~x~~#
        #~~~~~~~#
        #~xx~~x~#
        #~x~~~x~#
        #.~~x~~G#
        #########""",
    "bridge": """
        ###########
        #.#xxxxx#.#
        #S.......G#
        #.#xxxxx#.#
        #.#######.#
        #.........#
        ###########""",
    "river": """
        #########
        #S......#
        #.......#
        #>>>>>>>#
        #>>>>>>>#
        #.......#
        #G......#
        #########""",
    "teleport": """
        #########
        #S..#A..#
        #...#...#
        #..a#..G#
        #########
        #A......#
        #########""",
    "deepsea": """
        ############
        #S.........#
        #1.........#
        ##2........#
        ###3.......#
        ####456....#
        #######....#
        #######....#
        #######78..#
        #########..#
        #########9.#
        ############""",
}
"""By name. Besides: random-<rows>x<cols>-<seed>, a maze of odd sizes."""

CURRENTS = {">": (1, 0), "v": (0, 1), "<": (-1, 0), "^": (0, -1)}


class Grid(NamedTuple):
    """Read-only tables of K levels of H x W cells."""

    text: np.ndarray
    """[K, H, W] characters"""
    wall: np.ndarray
    """[K, H, W] bool; so are the next ones"""
    slippery: np.ndarray
    hazard: np.ndarray
    starts: np.ndarray
    goals: np.ndarray
    free: np.ndarray
    """Where one may start or find a goal: no wall, no hazard, no treasure, no way into a teleport."""
    treasure: np.ndarray
    """[K, H, W] number 1 .. 9, 0 where there is none"""
    current: np.ndarray
    """[K, H, W, 2] (x, y) directions"""
    entrance: np.ndarray
    """[K, H, W] 1 + the letter's number, 0 elsewhere"""
    exits: np.ndarray
    """[letters, M, 2] (x, y) centres of the cells that a letter leads to, repeated where it has fewer than M"""
    exit_count: np.ndarray
    """[letters] how many are different"""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in cells."""
        return self.wall.shape[2], self.wall.shape[1]


@lru_cache(maxsize=256)
def grid(layout: str, levels: int = 1) -> Grid:
    """The tables of a layout: a name, the text itself, or `random-<rows>x<cols>-<seed>` (level k: of seed + k).

    Raises:
      ValueError: no such name; rows of several lengths; a free cell at the rim; a character that means nothing;
        a teleport without an exit; several levels of a layout that is not random.
    """
    drawn = re.fullmatch(r"random-(\d+)x(\d+)-(\d+)", layout)
    if levels < 1 or (levels > 1 and not drawn):
        raise ValueError(f"{levels} levels: only random layouts have several, every layout has one or more")
    if drawn:
        rows, cols, seed = map(int, drawn.groups())
        texts = [random_maze(rows, cols, seed + k) for k in range(levels)]
    elif layout in LAYOUTS or "\n" in layout:
        texts = [LAYOUTS.get(layout, layout)]
    else:
        raise ValueError(f"no layout '{layout}'; choose from {', '.join(LAYOUTS)}, random-<rows>x<cols>-<seed>")
    lines = [text.split() for text in texts]
    if len({len(line) for rows in lines for line in rows}) != 1:
        raise ValueError("the rows of a layout must have one length")
    text = np.array([[list(line) for line in rows] for rows in lines])
    if unknown := set(text.ravel()) - set("#.SG~x<>^v123456789abcABC"):
        raise ValueError(f"a layout has no character '{min(unknown)}'")
    wall = text == "#"
    if not (wall[:, [0, -1]].all() and wall[:, :, [0, -1]].all()):
        raise ValueError("the rim of a layout must be wall")
    letters = [c for c in "abc" if (text == c).any()]
    found = [np.argwhere(text[0] == c.upper())[:, ::-1] + 0.5 for c in letters]
    if not all(map(len, found)):
        raise ValueError("a teleport needs an exit: a cell with its letter in upper case")
    most = max(map(len, found), default=1)
    treasure = np.where(np.char.isdigit(text), text, "0").astype(np.int32)
    entrance = sum((n + 1) * (text == c) for n, c in enumerate(letters)) + np.zeros(text.shape, np.int32)
    current = np.zeros((*text.shape, 2), np.float32)
    for character, direction in CURRENTS.items():
        current[text == character] = direction
    return Grid(
        text=text,
        wall=wall,
        slippery=text == "~",
        hazard=text == "x",
        starts=text == "S",
        goals=text == "G",
        free=~(wall | (text == "x") | (treasure > 0) | (entrance > 0)),
        treasure=treasure,
        current=current,
        entrance=entrance,
        exits=np.array([np.resize(e, (most, 2)) for e in found], np.float32).reshape(-1, most, 2),
        exit_count=np.array([len(e) for e in found], np.int32),
    )


def random_maze(rows: int, cols: int, seed: int) -> str:
    """A maze without rooms in which every free cell reaches every other, with a few loops.

    Depth-first search over the cells of odd row and column; then one inner wall in ten that parts two corridors
    goes. The start is in the upper left corner, the goal in the lower right one.

    Raises:
      ValueError: `rows` or `cols` even or below 5.
    """
    if rows % 2 == 0 or cols % 2 == 0 or min(rows, cols) < 5:
        raise ValueError(f"a random maze has odd sizes of at least 5, not {rows}x{cols}")
    rng = np.random.default_rng(seed)
    text = np.full((rows, cols), "#")
    text[1, 1], path = ".", [(1, 1)]
    while path:
        row, col = path[-1]
        steps = [(row + dr, col + dc) for dr, dc in ((2, 0), (-2, 0), (0, 2), (0, -2))]
        steps = [(r, c) for r, c in steps if 0 < r < rows and 0 < c < cols and text[r, c] == "#"]
        if not steps:
            path.pop()
            continue
        r, c = steps[rng.integers(len(steps))]
        text[r, c] = text[(row + r) // 2, (col + c) // 2] = "."
        path.append((r, c))
    for row, col in np.argwhere(text[1:-1, 1:-1] == "#") + 1:
        across = text[row, col - 1] == text[row, col + 1] == "." and text[row - 1, col] == text[row + 1, col] == "#"
        along = text[row - 1, col] == text[row + 1, col] == "." and text[row, col - 1] == text[row, col + 1] == "#"
        if (across or along) and rng.random() < 0.1:
            text[row, col] = "."
    text[1, 1], text[-2, -2] = "S", "G"
    return "\n".join(map("".join, text))
