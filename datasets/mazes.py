"""ProcMazeSmall's data, `maze-small-mixed`: players who take a shortest way in a share of their steps, else any."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from environments.proc_maze import STEPS, MazeFunctional, State, neighbours
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

TOGETHER = 64
"""Mazes that are played side by side."""
MAZE = MazeFunctional(3)


def recipe(name: str, env_id: str) -> Recipe:
    """`maze-small-mixed`."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=4_000,
        policy="players who take a shortest way in a share of their steps, from 0 to 1, else move at random",
        collect=collect,
        reference=name,
        expert="the player who always takes a shortest way",
        returns=returns,
    )


def onward(state: State) -> jax.Array:
    """The action that a shortest way begins with; at the goal: stay."""
    near, cells = jnp.asarray(neighbours(MAZE.size)), MAZE.size**2
    distance = jnp.where(jnp.arange(cells + 1) == state.goal, 0, cells)
    is_open = jnp.append(state.open, False)
    for _ in range(cells):
        distance = jnp.where(is_open, jnp.minimum(distance, 1 + distance[near].min(1)), cells)
    here = jnp.maximum(state.player, 0)
    return distance[jnp.append(here, near[here])].argmin()


def play(keys: jax.Array, share: jax.Array) -> tuple[jax.Array, ...]:
    """One maze for each key [G], in which a share [G] of the steps is on a shortest way.

    Returns:
      Observations [T + 1, G, O], actions [T, G] and terminations [T, G]; what follows an end is to be cut off.
    """

    def one(key, share):
        def step(state, key):
            move_key, share_key, random_key = jax.random.split(key, 3)
            random = jax.random.randint(random_key, (), 0, 5)
            action = jnp.where(jax.random.uniform(share_key) < share, onward(state), random)
            after = MAZE.transition(state, action, move_key)
            return after, (MAZE.observation(state, None), action, MAZE.terminal(after, None))

        keys = jax.random.split(key, STEPS + 1)
        last, (obs, action, terminal) = jax.lax.scan(step, MAZE.initial(keys[0]), keys[1:])
        return jnp.concatenate([obs, MAZE.observation(last, None)[None]]), action, terminal

    return jax.vmap(one, out_axes=1)(keys, share)


def episodes(seed: int, share: float | None) -> Iterator[EpisodeBuffer]:
    """Whole episodes without end; `share` None: another one in each."""
    compiled, rng = jax.jit(play), np.random.default_rng(seed)
    for block in range(1_000_000):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), block), TOGETHER)
        shares = rng.random(TOGETHER) if share is None else np.full(TOGETHER, share)
        obs, action, terminal = map(np.asarray, compiled(keys, shares))
        for g in range(TOGETHER):
            ends = bool(terminal[:, g].any())
            length = terminal[:, g].argmax() + 1 if ends else STEPS
            yield episode(obs[: length + 1, g], np.int64(action[:length, g]), np.full(length, -1.0), terminated=ends)


def collect(steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of at least `steps` rows; the last one is cut."""
    found: list[EpisodeBuffer] = []
    for maze in episodes(seed, None):
        found.append(cut(maze, steps))
        steps -= len(found[-1])
        if steps <= 0:
            return found
    return found


def returns(who: str, count: int) -> np.ndarray:
    """Returns [count] of "random" or "expert"."""
    every = episodes(0, {"random": 0.0, "expert": 1.0}[who])
    return np.array([next(every).rewards.sum() for _ in range(count)])
