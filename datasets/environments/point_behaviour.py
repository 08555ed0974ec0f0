"""Who acts in the datasets of point worlds, and whole datasets of episodes in one compiled call.

Actions are multiples of 1/256, and normal noise is a sum of twelve uniform integers. With a speed and a jitter of few
binary digits (0.25) and no inertia all positions are exact in float32, and a dataset is the same on every processor.
"""

import dataclasses
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from environments.point import MOVES, State, World, at, cost, reset, reward, terminal, transition, turned
from environments.point_truth import lattice, of_cells, steps_between
from environments.point_views import observe


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A way to act."""

    kind: Literal["plan", "walk", "uniform"] = "plan"
    """Along the shortest path of cells to the goal; in a random direction for `hold` steps; at random every step."""
    noise: float = 0.0
    """Standard deviation on (continuous) actions."""
    random: float = 0.0
    """Probability of a uniform action."""
    detours: int = 0
    """A planner goes through 0 .. `detours` random cells before it goes to the goal."""
    hold: int = 10
    avoid_hazards: bool = False
    """A planner goes around hazards."""
    near: int = 0
    """Goals lie this many cells from the start along the shortest path (0: wherever the world puts them)."""
    region: tuple[int, int, int, int] | None = None
    """Starts, goals and detours lie in cells with x0 <= x < x1 and y0 <= y < y1: (x0, y0, x1, y1)."""


class Rollout(NamedTuple):
    """E episodes of up to T steps; what comes after an episode's end means nothing."""

    obs: Any
    """[E, T + 1, ...], or a dictionary of such"""
    action: jax.Array
    """[E, T, A], or [E, T] where discrete"""
    reward: jax.Array
    """[E, T], or [E, T, K]"""
    cost: jax.Array
    """[E, T]"""
    terminal: jax.Array
    """[E, T]"""
    length: jax.Array
    """[E]"""


QUICKLY = {"xla_backend_optimization_level": 0}
"""Compiling takes seconds and playing none: a third of the time in all."""


@partial(jax.jit, static_argnames=("world", "behaviour", "episodes", "steps"), compiler_options=QUICKLY)
def rollout(world: World, behaviour: Behaviour, key: jax.Array, first: int, episodes: int, steps: int) -> Rollout:
    """Episodes number `first`, `first` + 1, ...: each depends on (key, its number) alone."""
    act = partial(_act, world, behaviour)

    def episode(number):
        start_key, step_key = jax.random.split(jax.random.fold_in(key, number))
        state, memory = _begin(world, behaviour, start_key)

        def step(carry, key):
            state, memory, over = carry
            act_key, move_key = jax.random.split(key)
            action, memory = act(state, memory, act_key)
            new = transition(world, state, action, move_key)
            ends = terminal(world, new)
            row = (observe(world, new), action, reward(world, state, action, new), cost(world, new), ends, ~over)
            return (new, memory, over | ends), row

        carry = (state, memory, jnp.bool_(False))
        obs, action, r, c, ends, within = jax.lax.scan(step, carry, jax.random.split(step_key, steps))[1]
        obs = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), observe(world, state), obs)
        return Rollout(obs, action, r, c, ends, within.sum())

    return jax.vmap(episode)(first + jnp.arange(episodes))


# --------------------------------------------------------------------------------------- one episode


class Memory(NamedTuple):
    """What an actor keeps in mind, of n agents."""

    detours: jax.Array
    """[n, D, 2] cells to go through"""
    passed: jax.Array
    """[n] how many of them have been, or are left out"""
    direction: jax.Array
    """[n, 2] of a walk"""
    time: jax.Array


def _begin(world: World, behaviour: Behaviour, key: jax.Array) -> tuple[State, Memory]:
    keys = [jax.random.fold_in(key, i) for i in range(5)]
    state, n = reset(world, keys[0]), world.agents
    cells = np.broadcast_to(_inside(world, behaviour.region), world.grid.free.shape).reshape(world.levels, -1)
    cells = jnp.asarray(cells)[state.level]

    def draw(key, mask, count):
        """[count, 2] centres of cells drawn (one by one) from `mask` [H W]."""
        chosen = jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf), shape=(count,))
        return _centre(world, chosen)

    if behaviour.region:
        state = state._replace(position=draw(keys[1], cells, n))
        state = state._replace(goal=draw(keys[2], cells & ~_one_hot(world, state.position), n))
    if behaviour.near:
        steps = jnp.asarray(route(world, behaviour.avoid_hazards).steps)[state.level]
        far = jnp.where(cells, steps[_cell(world, state.position)[0]], -1)
        far = jnp.where(far < jnp.iinfo(jnp.int16).max, far, -1)
        wanted = jnp.minimum(behaviour.near, far.max())
        state = state._replace(goal=draw(keys[2], far == wanted, n))
    memory = _nothing(world, behaviour)
    if behaviour.detours:
        detours = draw(keys[3], cells, n * behaviour.detours).reshape(memory.detours.shape)
        passed = jax.random.randint(keys[4], (n,), 0, behaviour.detours + 1)
        memory = memory._replace(detours=detours, passed=passed)
    return state, memory


def _nothing(world: World, behaviour: Behaviour) -> Memory:
    n = world.agents
    return Memory(
        jnp.zeros((n, behaviour.detours, 2)), jnp.zeros(n, jnp.int32), jnp.zeros((n, 2)), jnp.zeros((), jnp.int32)
    )


def _act(world: World, behaviour: Behaviour, state: State, memory: Memory, key: jax.Array) -> tuple[Any, Memory]:
    """An action, and the memory after it."""
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    n, target = world.agents, state.goal
    if behaviour.detours:
        there = jnp.minimum(memory.passed, behaviour.detours - 1)
        detour = memory.detours[np.arange(n), there]
        on_the_way = memory.passed < behaviour.detours
        target = jnp.where(on_the_way[:, None], detour, target)
        met = on_the_way & (_cell(world, state.position) == _cell(world, detour))
        memory = memory._replace(passed=memory.passed + met)
    if behaviour.kind == "plan":
        push = plan(world, state, target, behaviour.avoid_hazards)
    else:
        push = _uniform(world, keys[0])
    if behaviour.kind == "walk":
        push = jnp.where(memory.time % behaviour.hold == 0, push, memory.direction)
        memory = memory._replace(direction=push)
    if behaviour.noise:
        push += behaviour.noise * _normal(keys[1], push.shape)
    if behaviour.random:
        push = jnp.where(jax.random.uniform(keys[2], (n, 1)) < behaviour.random, _uniform(world, keys[3]), push)
    memory = memory._replace(time=memory.time + 1)
    if not world.discrete:
        return jnp.round(jnp.clip(push, -1.0, 1.0) * 256).ravel() / 256, memory
    move = jnp.argmin(((push[:, None] - MOVES) ** 2).sum(-1), -1)
    return (move * len(MOVES) ** np.arange(n)).sum().astype(jnp.int32), memory


def plan(world: World, state: State, target: jax.Array, avoid_hazards: bool = False) -> jax.Array:
    """[n, 2] pushes towards `target` [n, 2], from cell to cell along a shortest path.

    Winds, currents and turns are made up for; what is random is not foreseen.
    """
    table = jnp.asarray(route(world, avoid_hazards).next)[state.level]
    cell, last = _cell(world, state.position), _cell(world, target)
    waypoint = jnp.where((cell == last)[:, None], target, _centre(world, table[cell, last]))
    drift = jnp.float32(world.wind) + world.current * at(world.grid.current, state.position, state.level)
    if world.discrete:
        ends = state.position[:, None] + world.speed * turned(jnp.asarray(MOVES), world.turn) + drift[:, None]
        return jnp.asarray(MOVES)[jnp.argmin(jnp.abs(ends - waypoint[:, None]).sum(-1), -1)]
    rest = 1.0 - world.inertia
    velocity = rest * (waypoint - state.position) - drift  # wanted
    push = (velocity - world.inertia * state.velocity) / (rest * world.speed)
    return jnp.clip(turned(push, -world.turn), -1.0, 1.0)


def planner(world: World, noise: float = 0.0):
    """A policy `(state, key) -> action` that goes to the goal."""
    behaviour = Behaviour(noise=noise, avoid_hazards=bool(world.grid.hazard.any()))
    return lambda state, key: _act(world, behaviour, state, _nothing(world, behaviour), key)[0]


def expert(task) -> Any:
    """The planner without noise as a function of JAX: observations [n, O] -> actions [n, 2] in [-1, 1].

    Of a world of one agent, one maze, no inertia and a fixed goal, whose observations are vectors.

    Raises:
      ValueError: another world.
    """
    world = task.make_env().unwrapped.world
    if world.inertia or world.discrete or world.observation != "vector" or (world.agents, world.levels) != (1, 1):
        raise ValueError("only worlds of one agent, one maze, velocities and vectors tell where a planner goes")
    if world.goal == "sampled":
        raise ValueError("the goal is not fixed")
    start = reset(world, jax.random.key(0))
    avoid = bool(world.grid.hazard.any())

    def act(obs):
        return plan(world, start._replace(position=obs[None, :2]), start.goal, avoid)[0]

    return jax.vmap(act)


def _uniform(world: World, key: jax.Array) -> jax.Array:
    """[n, 2] uniform pushes, in multiples of 1/256."""
    if world.discrete:
        return jnp.asarray(MOVES)[jax.random.randint(key, (world.agents,), 0, len(MOVES))]
    return jax.random.randint(key, (world.agents, 2), -256, 257) / 256


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Nearly standard normal, and exact in float32: the sum of twelve uniform 16-bit integers, shifted and scaled."""
    return (jax.random.bits(key, (12, *shape), jnp.uint16).astype(jnp.int32).sum(0) - 12 * 32768 + 6) / 65536


# -------------------------------------------------------------------------------------------- routes


class Route(NamedTuple):
    """Tables over cells, numbered row by row."""

    next: np.ndarray
    """[K, H W, H W] int16: the cell to go to from a cell (first axis) towards another; itself where there is no way"""
    steps: np.ndarray
    """[K, H W, H W] int16: cells to go, the largest int16 where there is no way"""


def route(world: World, avoid_hazards: bool = False) -> Route:
    """Shortest ways between the cells of a world's layout."""
    return _route(world.layout, world.levels, avoid_hazards)


@lru_cache(maxsize=64)
def _route(layout: str, levels: int, avoid_hazards: bool) -> Route:
    world = World(layout, levels, start="sampled", goal="sampled", discrete=True, speed=1.0, current=0.0, slip=0.0)
    size, none = world.grid.wall[0].size, np.iinfo(np.int16).max
    next_cell = np.tile(np.arange(size, dtype=np.int16)[:, None], (levels, 1, size))
    steps = np.full((levels, size, size), none, np.int16)
    for level in range(levels):
        table = lattice(world, level=level)
        numbers = np.flatnonzero(table.index >= 0)  # the points' cells
        between = steps_between(table, avoid_hazards)
        # A move leads into a cell, and from there on to where its teleport leads, at best.
        ends = table.outcomes[table.arrival]  # [M, A, E]
        after = between[ends].min(2)  # [M, A, M]
        if avoid_hazards:
            hazard = of_cells(table, world.grid.hazard)
            after[hazard[table.arrival] | hazard[ends].any(2)] = np.inf
        into = numbers[table.arrival][np.arange(len(numbers))[:, None], after.argmin(1)]
        next_cell[level][np.ix_(numbers, numbers)] = np.where(np.isinf(between), numbers[:, None], into)
        steps[level][np.ix_(numbers, numbers)] = np.where(np.isinf(between), none, between)
    return Route(next_cell, steps)


def _inside(world: World, region) -> np.ndarray:
    """[K, H, W] free cells of a region."""
    if region is None:
        return world.grid.free
    x0, y0, x1, y1 = region
    mask = np.zeros(world.grid.free.shape, bool)
    mask[:, y0:y1, x0:x1] = True
    return mask & world.grid.free


def _cell(world: World, position: jax.Array) -> jax.Array:
    """[...] numbers of the cells of positions [..., 2]."""
    col, row = jnp.floor(position[..., 0]).astype(jnp.int32), jnp.floor(position[..., 1]).astype(jnp.int32)
    return row * world.grid.size[0] + col


def _centre(world: World, cell: jax.Array) -> jax.Array:
    """[..., 2] centres of cells."""
    width = world.grid.size[0]
    return jnp.stack([cell % width, cell // width], -1).astype(jnp.float32) + 0.5


def _one_hot(world: World, position: jax.Array) -> jax.Array:
    """[H W] True in the cells of positions [n, 2]."""
    width, height = world.grid.size
    return jnp.zeros(width * height, bool).at[_cell(world, position)].set(True)
