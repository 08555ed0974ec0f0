"""Point worlds: a point (or several) among walls, in JAX. One step is

  velocity <- inertia velocity + (1 - inertia) speed action
  position <- slide(position, velocity + wind + current(position))

`slide` goes along x, then along y, and does not go where a wall is. Without inertia actions are velocities, with it
they are forces; `speed` is what a constant full action leads to. Lengths are in cells (y downwards), times in steps.

A `World` holds all options and is static under jit. The functions are of one world and one state: `vmap` them.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from environments.point_layouts import Grid, grid

MOVES = np.float32([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)])
"""Of the discrete actions: stay, right, down, left, up."""


@dataclasses.dataclass(frozen=True)
class World:
    """Options of a point world. Lists become tuples, so that JSON can hold them."""

    layout: str = "umaze"
    """A name of point_layouts.LAYOUTS, `random-<rows>x<cols>-<seed>`, or the text of a layout."""
    levels: int = 1
    """Mazes of which each episode draws one (random layouts: those of the seeds that follow)."""
    agents: int = 1
    """Points that move together: one action holds all of theirs, and the reward is the team's."""

    speed: float = 0.25
    """Cells per step at full action, at most 1."""
    inertia: float = 0.0
    """Share of the velocity that is kept, in [0, 1); above 0 the velocity is part of the observation."""
    discrete: bool = False
    """Actions are 0 .. 4 for each agent (MOVES); else in [-1, 1]^2. Of several agents: sum of 5^i action_i."""
    wind: tuple[float, float] = (0.0, 0.0)
    """(x, y) cells per step."""
    current: float = 0.125
    """Cells per step where the layout has < > ^ v."""
    turn: float = 0.0
    """Angle (radians, from x to y) by which every action is turned."""
    noise: float = 0.0
    """Standard deviation of what is added to actions."""
    slip: float = 0.5
    """Probability that a slippery cell replaces the action by a uniform one."""

    start: Literal["fixed", "sampled"] | tuple[float, float] = "fixed"
    """The layout's S (one of them), any free cell, or (x, y)."""
    goal: Literal["fixed", "sampled"] | tuple[float, float] = "fixed"
    """The layout's G (one of them), any free cell but the start's, or (x, y)."""
    jitter: float = 0.25
    """Starts in a cell lie up to this far from its centre, along x and along y."""
    show_goal: bool = True
    """Whether vectors and pixels show the goal; False hides it (goal dictionaries always have it)."""
    goal_radius: float = 0.5
    at_goal: Literal["end", "stay", "next"] = "end"
    """The episode ends (terminal), goes on, or goes on with a new goal (`next`: sampled)."""
    cover: bool = False
    """Several agents: each goal may be reached by any of them, rather than by its own."""

    reward: str | tuple[str, ...] = "success"
    """A term of REWARDS, or several: a vector, unless there are `weights`."""
    weights: tuple[float, ...] = ()
    """Of the terms; the reward is the weighted sum."""
    treasures: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 24.0, 50.0, 74.0)
    """Values of the cells 1 .. 9; reaching one ends the episode."""
    deadly: bool = False
    """Hazards end the episode (terminal)."""

    observation: Literal["vector", "goal", "pixels"] = "vector"
    """Positions and so on, gymnasium's goal dictionary of such vectors, or uint8 pictures."""
    pixels: int = 32
    """Height and width of pictures, 16 to 64."""
    distractors: int = 0
    """Further coordinates, z <- 0.9 z + N(0, 0.1^2), that nothing depends on."""
    view: int = 0
    """Vectors tell the walls of the (2 view + 1)^2 cells around each agent."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        cells = self.grid
        wrong = [name for name in self.terms if name not in REWARDS]
        checks = {
            f"no reward '{' '.join(wrong)}'; choose from {', '.join(REWARDS)}": not wrong,
            "as many weights as rewards, or none": len(self.weights) in (0, len(self.terms)),
            "speed is in (0, 1]": 0 < self.speed <= 1,
            "inertia is in [0, 1)": 0 <= self.inertia < 1,
            "jitter is in [0, 0.5)": 0 <= self.jitter < 0.5,
            "pixels are 16 to 64": 16 <= self.pixels <= 64,
            "at least one agent": self.agents >= 1,
            "goals end, stay or have a next": self.at_goal in ("end", "stay", "next"),
            "observations are vector, goal or pixels": self.observation in ("vector", "goal", "pixels"),
            "nine treasures": len(self.treasures) == 9,
        }
        for name, mask in {"start": cells.starts, "goal": cells.goals}.items():
            value = getattr(self, name)
            if value == "fixed":
                checks[f"the layout has no fixed {name}"] = mask.any((1, 2)).all() or name == "goal" and not self.aims
            elif value == "sampled":
                checks["more agents than free cells"] = 2 * self.agents <= cells.free.sum((1, 2)).min()
            else:
                inside = len(value) == 2 and all(0 <= v < n for v, n in zip(value, cells.size))
                checks[f"{name} {value} is in a wall"] = (
                    inside and not cells.wall[:, int(value[1]), int(value[0])].any()
                )
        if failed := [text for text, holds in checks.items() if not holds]:
            raise ValueError(f"point world: {failed[0]}")

    @property
    def grid(self) -> Grid:
        """The tables of the layout."""
        return grid(self.layout, self.levels)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the reward's terms."""
        return (self.reward,) if isinstance(self.reward, str) else self.reward

    @property
    def aims(self) -> bool:
        """Whether there is a goal: not in worlds of treasures only."""
        return not self.grid.treasure.any()

    @property
    def num_actions(self) -> int:
        """Discrete joint actions."""
        return len(MOVES) ** self.agents


class State(NamedTuple):
    """Of one world with n agents."""

    position: jax.Array
    """[n, 2] (x, y)"""
    velocity: jax.Array
    """[n, 2] cells per step"""
    goal: jax.Array
    """[n, 2]"""
    distractors: jax.Array
    """[D]"""
    level: jax.Array
    """[] int32"""


# ---------------------------------------------------------------------------------------- dynamics


def reset(
    world: World, key: jax.Array, start: jax.Array | None = None, goal: jax.Array | None = None, jitter: bool = False
) -> State:
    """A first state; `start` and `goal` [n, 2] take the place of the world's own, `jitter` moves such a start, too."""
    level, distractors = jnp.int32(0), jnp.zeros(world.distractors)
    if world.levels > 1:
        level = jax.random.randint(jax.random.fold_in(key, 0), (), 0, world.levels)
    if start is None:
        start = _place(world, world.start, world.grid.starts, level, jax.random.fold_in(key, 1))
        jitter = isinstance(world.start, str)
    if jitter and world.jitter:  # in whole 128ths: the same on every processor
        steps = jax.random.randint(jax.random.fold_in(key, 2), start.shape, -128, 129)
        start = start + world.jitter / 128 * steps
    if goal is None:
        goal = _place(world, world.goal, world.grid.goals, level, jax.random.fold_in(key, 3), taken=start)
    start, goal = (jnp.broadcast_to(jnp.float32(x), (world.agents, 2)) for x in (start, goal))
    if world.distractors:
        spread = 0.1 / np.float32(np.sqrt(1 - 0.9**2))  # as they are in the long run
        distractors = spread * jax.random.normal(jax.random.fold_in(key, 4), distractors.shape)
    return State(start, jnp.zeros_like(start), goal, distractors, level)


def transition(world: World, state: State, action: jax.Array, key: jax.Array) -> State:
    """The next state; `action` [2 n], or [] where discrete."""
    push = directions(world, action)
    if world.noise:
        push += world.noise * jax.random.normal(jax.random.fold_in(key, 0), push.shape)
    if world.grid.slippery.any():
        push = jnp.where(_slips(world, state, key)[:, None], _random_push(world, key), push)
    velocity = world.inertia * state.velocity + (1 - world.inertia) * world.speed * turned(push, world.turn)
    drift = jnp.float32(world.wind) + _current(world, state.position, state.level)
    position, moved = slide(world, state.position, velocity + drift, state.level)
    velocity = jnp.where(moved, velocity, 0.0)
    if world.grid.exits.size:
        position, velocity = _teleport(world, position, velocity, state.level, jax.random.fold_in(key, 1))
    distractors = state.distractors
    if world.distractors:
        noise = jax.random.normal(jax.random.fold_in(key, 2), distractors.shape)
        distractors = 0.9 * distractors + 0.1 * noise
    goal = state.goal
    if world.at_goal == "next":
        new = _place(world, "sampled", world.grid.goals, state.level, jax.random.fold_in(key, 3), taken=position)
        goal = jnp.where(reached(world, position, goal), new, goal)
    return State(position, velocity, goal, distractors, state.level)


def slide(world: World, position: jax.Array, shift: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Along x, then along y, not into a wall and at most one cell: the new position and what moved, [n, 2] each."""
    shift = jnp.clip(shift, -1.0, 1.0)
    x, y = position[:, 0], position[:, 1]
    new_x, new_y = x + shift[:, 0], y + shift[:, 1]
    x_free = ~at(world.grid.wall, jnp.stack([new_x, y], -1), level)
    x = jnp.where(x_free, new_x, x)
    y_free = ~at(world.grid.wall, jnp.stack([x, new_y], -1), level)
    y = jnp.where(y_free, new_y, y)
    return jnp.stack([x, y], -1), jnp.stack([x_free, y_free], -1)


def directions(world: World, action: jax.Array) -> jax.Array:
    """[n, 2] in [-1, 1] of an action."""
    if world.discrete:
        return jnp.asarray(MOVES)[action // len(MOVES) ** np.arange(world.agents) % len(MOVES)]
    return jnp.clip(action.reshape(world.agents, 2), -1.0, 1.0)


def turned(push: jax.Array, angle: float) -> jax.Array:
    """[..., 2] turned from x to y."""
    cos, sin, x, y = np.cos(angle), np.sin(angle), push[..., 0], push[..., 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], -1) if angle else push


def at(table: np.ndarray, position: jax.Array, level: jax.Array) -> jax.Array:
    """Entries of a table [K, H, W, ...] at positions [..., 2]."""
    col, row = jnp.floor(position[..., 0]).astype(jnp.int32), jnp.floor(position[..., 1]).astype(jnp.int32)
    return jnp.asarray(table)[level, row, col]


def _slips(world: World, state: State, key: jax.Array) -> jax.Array:
    slips = jax.random.bernoulli(jax.random.fold_in(key, 4), world.slip, (world.agents,))
    return slips & at(world.grid.slippery, state.position, state.level)


def _random_push(world: World, key: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, 5)
    if world.discrete:
        return jnp.asarray(MOVES)[jax.random.randint(key, (world.agents,), 0, len(MOVES))]
    return jax.random.uniform(key, (world.agents, 2), minval=-1.0, maxval=1.0)


def _current(world: World, position: jax.Array, level: jax.Array) -> jax.Array:
    return world.current * at(world.grid.current, position, level) if world.grid.current.any() else jnp.zeros(2)


def _teleport(world: World, position, velocity, level, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whoever is in a way into a teleport comes out, at rest, at the centre of one of its exits."""
    entrance = at(world.grid.entrance, position, level)
    letter = jnp.maximum(entrance - 1, 0)
    exit = jax.random.randint(key, letter.shape, 0, jnp.asarray(world.grid.exit_count)[letter])
    enters = (entrance > 0)[:, None]
    return jnp.where(enters, jnp.asarray(world.grid.exits)[letter, exit], position), jnp.where(enters, 0.0, velocity)


def _place(world: World, how, fixed: np.ndarray, level: jax.Array, key: jax.Array, taken=None) -> jax.Array:
    """[n, 2]: (x, y), or centres of cells drawn without replacement, of `fixed` or of all free ones but `taken`."""
    if not isinstance(how, str):
        return jnp.float32(how)
    if how == "fixed" and fixed.sum() == fixed.shape[0] == 1:  # one cell: nothing to be drawn
        return jnp.asarray(np.argwhere(fixed[0])[:, ::-1] + 0.5, jnp.float32)
    if how == "fixed" and not fixed.any():
        return jnp.zeros(2)
    cells = jnp.asarray(fixed if how == "fixed" else world.grid.free)[level]
    if how == "sampled" and taken is not None:
        col, row = jnp.floor(taken).astype(jnp.int32).T
        cells = cells.at[row, col].set(False)
    order = jnp.where(cells.ravel(), jax.random.uniform(key, (cells.size,)), -1.0)
    count = min(world.agents, int(fixed.sum((1, 2)).min())) if how == "fixed" else world.agents
    chosen = jax.lax.top_k(order, count)[1]
    chosen = chosen[np.arange(world.agents) % count]
    return jnp.stack([chosen % cells.shape[1], chosen // cells.shape[1]], -1).astype(jnp.float32) + 0.5


# --------------------------------------------------------------------------------- reward and ends


def distance(world: World, position: jax.Array, goal: jax.Array) -> jax.Array:
    """[..., n] straight from each goal to its agent, or to the nearest one (`cover`)."""
    if not world.cover:
        return jnp.linalg.norm(position - goal, axis=-1)
    return jnp.linalg.norm(goal[..., :, None, :] - position[..., None, :, :], axis=-1).min(-1)


def reached(world: World, position: jax.Array, goal: jax.Array) -> jax.Array:
    """[...] bool: every goal is reached."""
    if not world.aims:
        return jnp.zeros(position.shape[:-2], bool)
    return (distance(world, position, goal) <= world.goal_radius).all(-1)


def cost(world: World, state: State) -> jax.Array:
    """[] share of the agents in a hazard."""
    return at(world.grid.hazard, state.position, state.level).mean(dtype=jnp.float32)


def _effort(world: World, state: State, action: jax.Array, new: State) -> jax.Array:
    return -(directions(world, action) ** 2).sum(-1).mean()


def _treasure(world: World, state: State, action: jax.Array, new: State) -> jax.Array:
    values = jnp.float32((0.0, *world.treasures))
    return values[at(world.grid.treasure, new.position, new.level)].sum()


def _crowding(world: World, state: State, action: jax.Array, new: State) -> jax.Array:
    apart = jnp.linalg.norm(new.position[:, None] - new.position[None], axis=-1)
    return -jnp.float32(jnp.triu(apart < 0.5, 1).sum())


REWARDS: dict[str, Callable] = {
    "success": lambda w, s, a, n: jnp.float32(reached(w, n.position, s.goal)),
    "sparse": lambda w, s, a, n: jnp.float32(reached(w, n.position, s.goal)) - 1.0,
    "dense": lambda w, s, a, n: -distance(w, n.position, s.goal).mean(),
    "time": lambda w, s, a, n: jnp.float32(-1.0),
    "safety": lambda w, s, a, n: -cost(w, n),
    "effort": _effort,
    "treasure": _treasure,
    "crowding": _crowding,
}
"""(world, state, action, next state) -> []: 1 at the goal; 0 there, else -1; minus the straight distance; -1; minus the
cost; minus the action's squared length; the treasure's value; minus the pairs of agents closer than half a cell."""


def objectives(world: World, state: State, action: jax.Array, new: State) -> jax.Array:
    """[K] the reward's terms."""
    return jnp.stack([REWARDS[name](world, state, action, new) for name in world.terms])


def reward(world: World, state: State, action: jax.Array, new: State) -> jax.Array:
    """[] of one term or with weights, else [K]."""
    terms = objectives(world, state, action, new)
    if world.weights:
        return terms @ jnp.float32(world.weights)
    return terms[0] if isinstance(world.reward, str) else terms


def terminal(world: World, state: State) -> jax.Array:
    """[] bool: the task has ended. (A time limit is the environment's, and not terminal.)"""
    ends = jnp.bool_(False)
    if world.at_goal == "end":
        ends |= reached(world, state.position, state.goal)
    if world.deadly:
        ends |= cost(world, state) > 0
    if world.grid.treasure.any():
        ends |= (at(world.grid.treasure, state.position, state.level) > 0).any()
    return ends


def step(world: World, state: State, action: jax.Array, key: jax.Array):
    """(next state, reward, terminal, cost)."""
    new = transition(world, state, action, key)
    return new, reward(world, state, action, new), terminal(world, new), cost(world, new)
