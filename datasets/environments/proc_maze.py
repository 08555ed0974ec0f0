"""ProcMaze-v0: a new maze in every episode, which the observation shows whole (4 x 4; ProcMazeSmall-v0: 3 x 3).

Young et al., "The Benefits of Model-Based Generalization in Reinforcement Learning", arXiv 2211.02222, section 4. A
depth-first search carves the maze into a grid of walls: from the cell it is in, it goes on to a random one whose only
open neighbour that is, and turns back where there is none. Start and goal are random open cells, perhaps the same.
Actions: stay, up, left, down, right; a wall or the rim stops a move. With a small probability, a tenth of one by the
longest way in such a grid, a step ends at the goal, wherever it went. The step after the player has come to the goal
ends the episode, whatever it is. Each step is worth -1.

An observation has for each cell, row by row, four numbers of 0 or 1: player, goal, wall, open. A player whose episode
has ended is nowhere, so that observations tell all there is to know.
"""

import math
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

MOVES = np.array([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])
"""(rows, columns): stay, up, left, down, right."""
STEPS = 100
"""Of an episode at most."""


class State(NamedTuple):
    """Cells are counted row by row."""

    player: jax.Array
    """[] int32; -1: the episode has ended"""
    goal: jax.Array
    """[] int32"""
    open: jax.Array
    """[C] bool"""


def neighbours(size: int) -> np.ndarray:
    """[C + 1, 4] the cells above, left of, below and right of each; C, which has only itself, where there is none."""
    cells = size * size
    at = np.stack(np.divmod(np.arange(cells), size), 1)[:, None] + MOVES[1:]
    inside = ((at >= 0) & (at < size)).all(-1)
    return np.concatenate([np.where(inside, at @ [size, 1], cells), np.full((1, 4), cells)]).astype(np.int32)


def carve(key: jax.Array, size: int) -> jax.Array:
    """[C] bool: the open cells of a random maze."""
    near, cells = jnp.asarray(neighbours(size)), size * size
    first_key, key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, cells)

    def dig(carry):
        is_open, way, length, key = carry
        choice_key, key = jax.random.split(key)
        around = near[way[length - 1]]
        free = (around < cells) & ~is_open[around] & (is_open[near[around]].sum(1) == 1)
        chosen = around[jax.random.categorical(choice_key, jnp.where(free, 0.0, -jnp.inf))]
        goes = free.any()
        is_open = is_open.at[chosen].set(is_open[chosen] | goes)
        return is_open, way.at[length].set(chosen), length + jnp.where(goes, 1, -1), key  # beyond its length: anything

    way = jnp.zeros(cells + 1, jnp.int32).at[0].set(first)
    begun = jnp.zeros(cells + 1, bool).at[first].set(True), way, jnp.int32(1), key
    return jax.lax.while_loop(lambda carry: carry[2] > 0, dig, begun)[0][:cells]


class MazeFunctional(FuncEnv):
    """In JAX."""

    action_space = gym.spaces.Discrete(len(MOVES))
    tells_all = True

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.jump = 0.1 / ((size + 1) * math.ceil(size / 2) - size % 2)
        """Probability of a step that ends at the goal."""
        self.observation_space = gym.spaces.Box(0.0, 1.0, (4 * size * size,), np.float32)

    def initial(self, rng, params=None) -> State:
        maze_key, *keys = jax.random.split(rng, 3)
        is_open = carve(maze_key, self.size)
        player, goal = (jax.random.categorical(key, jnp.where(is_open, 0.0, -jnp.inf)) for key in keys)
        return State(jnp.int32(player), jnp.int32(goal), is_open)

    def transition(self, state: State, action, rng, params=None) -> State:
        around = jnp.concatenate([jnp.arange(self.size**2 + 1, dtype=jnp.int32)[:, None], neighbours(self.size)], 1)
        to = around[state.player, action]
        passes = jnp.append(state.open, False)[to]
        player = jnp.where(passes, to, state.player)
        player = jnp.where(jax.random.uniform(rng) < self.jump, state.goal, player)
        ended = (state.player == state.goal) | (state.player < 0)
        return state._replace(player=jnp.where(ended, -1, player))

    def observation(self, state: State, rng, params=None):
        cell = jnp.arange(self.size**2)
        channels = cell == state.player, cell == state.goal, ~state.open, state.open
        return jnp.stack(channels, 1).reshape(-1).astype(jnp.float32)

    def state_of(self, obs) -> State:
        """The state that `observation` shows as [4 C]; of anything else that has 0 and 1, some state."""
        player, goal, _, is_open = obs.reshape(-1, 4).T > 0.5
        player = jnp.where(player.any(), player.argmax(), -1)
        return State(jnp.int32(player), jnp.int32(goal.argmax()), is_open)

    def reward(self, state: State, action, next_state: State, rng, params=None):
        return -1.0

    def terminal(self, state: State, rng, params=None):
        return state.player < 0


class ProcMaze(FunctionalJaxEnv):
    """Mazes of `size` x `size` cells."""

    metadata = {"render_modes": []}

    def __init__(self, size: int = 4, render_mode: str | None = None):
        if size < 2:
            raise ValueError(f"a maze has at least 2 x 2 cells, not {size} x {size}")
        super().__init__(MazeFunctional(size), self.metadata, None)


gym.register("ProcMaze-v0", f"{__name__}:ProcMaze", max_episode_steps=STEPS, disable_env_checker=True)
gym.register(
    "ProcMazeSmall-v0", f"{__name__}:ProcMaze", max_episode_steps=STEPS, disable_env_checker=True, kwargs={"size": 3}
)
