"""Exact solutions of point worlds: shortest paths by breadth-first search, optimal values by value iteration.

Both work on a lattice, over which the world's own moves lead from point to point:
  discrete actions    spacing `speed`: exact for every start. With speed 1 the lattice is the cells.
  continuous actions  spacing `speed / fine`, actions in multiples of 1 / fine: exact for these actions. All actions
                      may need fewer steps; on the named layouts never more than 5 % + 1 fewer (tests).
A position stands for the lattice point nearest to it. What has no lattice (inertia, noise, a turn, a wind or current
that is no multiple of the spacing, slips of continuous actions, several agents) raises ValueError.
`path_length` needs no exact moves and holds for all worlds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from environments.point import MOVES, State, World, at, reached, reward, slide, terminal, turned


class Lattice(NamedTuple):
    """A point world with M points and A actions."""

    world: World
    level: int
    spacing: float
    index: np.ndarray
    """[rows, cols] number of the point, -1 in walls"""
    points: np.ndarray
    """[M, 2] (x, y)"""
    pushes: np.ndarray
    """[A, 2] in [-1, 1]"""
    arrival: np.ndarray
    """[M, A] point after each action that does not slip, before teleports"""
    outcomes: np.ndarray
    """[M, E] points at which one is that arrives somewhere, each with probability 1 / E: E = 1 without teleports"""

    def nearest(self, position) -> np.ndarray:
        """[...] numbers of the points nearest to positions [..., 2]; -1 in walls."""
        spot = np.floor(np.asarray(position) / self.spacing).astype(int)
        return self.index[spot[..., 1], spot[..., 0]]


def lattice(world: World, fine: int = 2, level: int = 0) -> Lattice:
    """The lattice of a world with one agent.

    Raises:
      ValueError: the world has none.
    """
    cells = world.grid
    spacing = world.speed if world.discrete else world.speed / fine
    per_cell = round(1 / spacing)
    drift = np.float64(world.wind) + world.current * cells.current[level]
    steps = np.arange(-fine, fine + 1) / fine
    pushes = MOVES if world.discrete else np.float32([(x, y) for y in steps for x in steps])
    checks = {
        "has several agents": world.agents == 1,
        "has inertia": world.inertia == 0,
        "has noise": world.noise == 0,
        "turns its actions": world.turn == 0,
        "has new goals": world.at_goal != "next",
        f"moves by {spacing}, no unit fraction of a cell": np.isclose(per_cell * spacing, 1),
        f"has a drift that is no multiple of {spacing}": np.allclose(drift / spacing, np.round(drift / spacing)),
        "has slippery cells for continuous actions": world.discrete or not cells.slippery.any() or world.slip == 0,
    }
    if failed := [text for text, holds in checks.items() if not holds]:
        raise ValueError(f"this point world {failed[0]}: it has no exact solution here")

    def spread(table):
        return np.repeat(np.repeat(table, per_cell, 0), per_cell, 1)

    wall = spread(cells.wall[level])
    index = np.where(wall, -1, np.cumsum(~wall).reshape(wall.shape) - 1)
    row, col = np.argwhere(~wall).T
    shift = pushes[None] * np.float64(world.speed) + spread(drift)[row, col][:, None]
    shift = np.round(np.clip(shift, -1, 1) / spacing).astype(int)  # [M, A, 2], in points
    x, y = col[:, None], row[:, None]
    x = np.where(wall[y, np.clip(x + shift[..., 0], 0, wall.shape[1] - 1)], x, x + shift[..., 0])
    y = np.where(wall[np.clip(y + shift[..., 1], 0, wall.shape[0] - 1), x], y, y + shift[..., 1])
    entrance = spread(cells.entrance[level])[row, col]
    own = np.arange(len(row))
    width = int(np.lcm.reduce(cells.exit_count)) if len(cells.exit_count) else 1
    outcomes = np.repeat(own[:, None], width, 1)
    for letter, count in enumerate(cells.exit_count):
        exits = np.floor(cells.exits[letter, :count] / spacing).astype(int)
        outcomes[entrance == letter + 1] = np.resize(index[exits[:, 1], exits[:, 0]], width)
    points = (np.stack([col, row], -1) + 0.5) * spacing
    return Lattice(world, level, spacing, index, points, pushes, index[y, x], outcomes)


def steps_to(table: Lattice, goal=None, avoid_hazards: bool = False) -> np.ndarray:
    """[M] fewest steps from every point to within the goal's radius; inf where there is no way.

    `goal`: (x, y); the world's own by default. A teleport of several exits is taken to lead to the best one, and a
    slippery cell not to slip.
    """
    targets = np.flatnonzero(_reaches(table, goal))
    return dijkstra(_edges(table, avoid_hazards).T, unweighted=True, indices=targets, min_only=True)


def steps_between(table: Lattice, avoid_hazards: bool = False) -> np.ndarray:
    """[M, M] fewest steps from every point (row) to every other."""
    return dijkstra(_edges(table, avoid_hazards), unweighted=True)


def path_length(world: World, goal=None, fine: int = 8, level: int = 0):
    """A function: positions [..., 2] -> length [...] (cells) of the shortest path to within the goal's radius.

    Lengths are in the max norm, max(|dx|, |dy|): diagonals cost what a straight step does, as actions in a box make
    it. Too short by at most 1 / fine, and too long by at most about 1 / fine for each turn of the way: 5 / fine on the
    named layouts (tests). Hazards, treasures, currents and what is random have no part in it; teleports have.
    """
    table, lengths = _lengths(world, goal, fine, level)
    return lambda positions: lengths[table.nearest(positions)]


def nearer(task):
    """A judge of single actions: a function of JAX, (observations [n, O], actions [n, 2]) -> values [n].

    Of a world of one agent, one maze and no inertia, whose observations are vectors: minus the length of the shortest
    way to the goal that is left after the move, noise, slips and teleports aside. Of two actions the one of higher
    value leads nearer to the goal; they are equal where both do by as much.

    Raises:
      ValueError: another world, or one whose goal is not fixed.
    """
    world = task.make_env().unwrapped.world
    if world.inertia or world.discrete or world.observation != "vector" or (world.agents, world.levels) != (1, 1):
        raise ValueError("only worlds of one agent, one maze, velocities and vectors tell which action leads nearer")
    table, lengths = _lengths(world, None, 16, 0)
    index, lengths = jnp.asarray(table.index), jnp.float32(lengths)

    def value(obs, action):
        position = obs[:, :2]
        shift = world.speed * turned(jnp.clip(action, -1.0, 1.0), world.turn) + jnp.float32(world.wind)
        shift += world.current * at(world.grid.current, position, 0)
        after, _ = slide(world, position, shift, 0)
        spot = jnp.floor(after / table.spacing).astype(jnp.int32)
        return -lengths[index[spot[:, 1], spot[:, 0]]]

    return value


def _lengths(world: World, goal, fine: int, level: int) -> tuple[Lattice, np.ndarray]:
    """A lattice of spacing 1 / fine, and the shortest way from each point [M + 1]; the last, inf, is for walls."""
    goal, text = _goal(world, goal, level), world.grid.text[level]
    layout = "\n".join(map("".join, np.where(np.char.isdigit(text), ".", text)))
    shape = {"layout": layout, "goal_radius": world.goal_radius, "start": "sampled", "goal": "sampled"}
    table = lattice(World(**shape, speed=1 / fine, current=0.0, slip=0.0), fine=1)
    return table, np.append(steps_to(table, goal) / fine, np.inf)


def optimal_values(table: Lattice, discount: float, goal=None) -> tuple[np.ndarray, np.ndarray]:
    """V [M] and Q [M, A] of the optimal policy, by value iteration to 1e-10 (float64).

    Of the world's reward, slips and teleports included, without a time limit. At terminal points V is 0. (A slip
    draws another action, whose reward counts: for `effort` that is not what the world does.)
    """
    world, m = table.world, len(table.points)
    goal = _goal(world, goal, table.level)
    target = table.outcomes[table.arrival]  # [M, A, E]
    actions = np.arange(len(MOVES)) if world.discrete else table.pushes
    points = jnp.float32(table.points)

    def state(position):
        level, zero = jnp.int32(table.level), jnp.zeros((1, 2))
        return State(position[None], zero, jnp.float32(goal)[None], jnp.zeros(world.distractors), level)

    def outcome(start, action, end):
        return reward(world, state(points[start]), action, state(points[end]))

    over_outcomes = jax.vmap(jax.vmap(jax.vmap(outcome, (None, None, 0)), (None, 0, 0)), (0, None, 0))
    rewards = np.asarray(jax.jit(over_outcomes)(np.arange(m), actions, target), np.float64)
    done = np.asarray(jax.vmap(lambda point: terminal(world, state(point)))(points))
    if rewards.ndim > 3:
        raise ValueError("a reward of several terms has no one optimal value: give weights")
    slips = (world.slip * of_cells(table, world.grid.slippery))[:, None]
    v = np.zeros(m)
    for _ in range(100_000):
        q = (rewards + discount * v[target]).mean(-1)
        q = (1 - slips) * q + slips * q.mean(1, keepdims=True)
        new = np.where(done, 0.0, q.max(1))
        if np.abs(new - v).max() < 1e-10:
            return new, q
        v = new
    raise ValueError("value iteration does not converge: take a discount below 1")


def value_of_steps(world: World, steps, discount: float) -> np.ndarray:
    """Discounted return of reaching the goal at step `steps` [...], where the reward is `success` or `sparse`."""
    if world.reward not in ("success", "sparse") or world.at_goal != "end":
        raise ValueError("only rewards success and sparse that end at the goal depend on steps alone")
    n = np.maximum(np.asarray(steps, float), 1)  # one that starts at its goal is there after its first step
    late = np.where(np.isinf(n), 0.0, discount ** np.where(np.isinf(n), 0, n - 1))
    return late if world.reward == "success" else -(1 - late) / (1 - discount)


def _edges(table: Lattice, avoid_hazards: bool) -> csr_array:
    """[M, M] adjacency: one step leads from row to column."""
    m, actions = table.arrival.shape
    ends = table.outcomes[table.arrival]
    starts = np.broadcast_to(np.arange(m)[:, None, None], ends.shape)
    keep = np.ones(ends.shape, bool)
    if avoid_hazards:
        hazard = of_cells(table, table.world.grid.hazard)
        keep &= ~(hazard[table.arrival][..., None] | hazard[ends])
    return csr_array((np.ones(keep.sum()), (starts[keep], ends[keep])), shape=(m, m))


def _goal(world: World, goal, level: int) -> np.ndarray:
    """[2] the goal asked for, or the world's one fixed goal."""
    if goal is None and not isinstance(world.goal, str):
        goal = world.goal
    elif goal is None:
        fixed = np.argwhere(world.grid.goals[level])[:, ::-1] + 0.5
        if world.goal != "fixed" or len(fixed) > 1:
            raise ValueError("the world has not one goal: say which")
        goal = fixed[0] if len(fixed) else (0.0, 0.0)
    return np.asarray(goal, np.float64).reshape(2)


def of_cells(table: Lattice, cells: np.ndarray) -> np.ndarray:
    """[M] entries of a table [K, H, W] at the points."""
    col, row = np.floor(table.points).astype(int).T
    return cells[table.level, row, col]


def _reaches(table: Lattice, goal) -> np.ndarray:
    """[M] whether a point is within the goal's radius."""
    goal = jnp.float32(_goal(table.world, goal, table.level))
    return np.asarray(reached(table.world, jnp.float32(table.points)[:, None], goal[None]))
