"""GuDA's guided augmentation beside its authors' function for PointMaze, in the U."""

import types

import numpy as np

from results import references as ref

FILE = "src/augment/maze/point_maze_aug_function.py"
SIZE, OFFSET = 5, 0.2
FREE = [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
"""Cells (x, y) from the goal's, (1, 1), on, of which a single direction leads towards it."""
WALL, EMPTY = 10, 11


def compare(checkout, undo):
    module = ref.constants_in_double(ref.ours("guda"))
    peer = ref.theirs(checkout, FILE)
    peer.WALL, peer.EMPTY, peer.GOAL = WALL, EMPTY, 12
    rng = np.random.default_rng(0)
    args = module.Args(augment="guided")
    cells = np.full((SIZE, SIZE), WALL)  # [x, y]
    for x, y in [(1, 1), *FREE]:
        cells[x, y] = EMPTY
    target = np.array([1.0, 1.0]) - OFFSET
    env = types.SimpleNamespace(maze_arr=cells, get_target=lambda: target, reward_type="dense")
    augmentation = peer.PointMazeGuidedAugmentationFunction(env)

    def outcome(obs, action, next_obs):
        return np.exp(-np.linalg.norm(next_obs[:, :2] - target, axis=1)), np.zeros(len(obs))

    def goals(obs):
        return np.tile(target, (len(obs), 1))

    maze = module.Maze((cells == WALL).T, np.full(2, -0.5 - OFFSET), np.ones(2), True, None, goals, outcome)

    def places():
        """In free cells, so near to their centres that every movement fits."""
        at = rng.integers(0, len(FREE), ref.ROWS)
        cell = np.array(FREE)[at]
        return cell - OFFSET + 0.1 * rng.uniform(-1.0, 1.0, (ref.ROWS, 2)), cell

    obs = np.concatenate([places()[0], rng.standard_normal((ref.ROWS, 2))], 1)
    moved = np.concatenate([0.1 * rng.uniform(-1.0, 1.0, (ref.ROWS, 2)), rng.standard_normal((ref.ROWS, 2))], 1)
    ours = {"obs": obs, "action": rng.uniform(-1.0, 1.0, (ref.ROWS, 2)), "next_obs": obs + moved}
    ours["reward"] = outcome(**ours)[0]
    theirs = {name: x.copy() for name, x in ours.items()}
    losses = {}
    while True:
        yield ref.Step(losses, {name: ([ours[name]], [theirs[name]]) for name in ours})
        place, cell = places()
        module.place_in = lambda *_, place=place, cell=cell: (place, cell[:, 1] * SIZE + cell[:, 0])
        ours = module.augmented(Rows(**ours), maze, args).arrays
        made = []
        for i in range(ref.ROWS):
            augmentation._sample_pos = lambda n=1, at=(place[i], cell[i]): at
            row = {name: theirs[name][i] for name in ("obs", "action", "next_obs", "reward")}
            new_obs, action, reward, next_obs, _ = augmentation.augment(**row, done=False)
            made.append({"obs": new_obs, "action": action, "next_obs": next_obs, "reward": reward})
        theirs = {name: np.stack([row[name] for row in made]) for name in ours}
        losses = {"reward": ([ours["reward"]], [theirs["reward"]])}


class Rows:
    """What augmentation asks of a dataset."""

    task = types.SimpleNamespace(id="rows", training_reward=lambda reward: reward)

    def __init__(self, **arrays):
        self.arrays, self.successor = arrays, np.ones(len(arrays["obs"]), bool)

    def __getattr__(self, name):
        return self.arrays[name]

    def select(self, rows):
        return Rows(**{name: x[rows] for name, x in self.arrays.items()})

    def replace(self, options, **arrays):
        return Rows(**{name: arrays[name] for name in self.arrays})


CASES = {
    "": ref.Case(
        "Badger-RL/Guided-Data-Augmentation",
        FILE,
        compare,
        note="Each update augments all rows; both sides are given the places, in cells whose way to the goal has one "
        "direction (its table's is that of the shortest way in the U). The learner is not compared.",
    )
}
