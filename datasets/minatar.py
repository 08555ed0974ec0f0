"""MinAtar's Breakout (pip install pgx==2.6.0): `minatar-breakout-mixed`, whose paddles follow the ball more or less."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from environments.breakout import GRID, STEPS, BreakoutFunctional
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

TOGETHER = 64
"""Games that are played side by side."""


def recipe(name: str, env_id: str) -> Recipe:
    """`minatar-breakout-mixed`."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=20_000,
        policy="paddles that follow the ball in a share of their steps, from 0 to 1, else move at random",
        collect=collect,
        reference=env_id,
        expert="the paddle that always follows the ball",
        returns=returns,
        packages=("pgx==2.6.0",),
    )


def follow(obs: jax.Array) -> jax.Array:
    """Observation [400] -> the action that brings the paddle under the ball: 0 stay, 1 left, 2 right."""
    grid = obs.reshape(GRID)
    paddle, ball = (jnp.argmax(grid[..., channel].any(0)) for channel in (0, 1))
    return jnp.where(ball < paddle, 1, jnp.where(ball > paddle, 2, 0))


def play(keys: jax.Array, share: jax.Array) -> tuple[jax.Array, ...]:
    """One game for each key [G], which follows the ball in a share [G] of its steps.

    Returns:
      Observations [T + 1, G, 400], actions [T, G], rewards [T, G] and terminations [T, G]; what follows a game's end
      is to be cut off.
    """
    game = BreakoutFunctional()

    def one(key, share):
        def step(state, key):
            move_key, follow_key, random_key = jax.random.split(key, 3)
            obs = game.observation(state, None)
            action = jnp.where(
                jax.random.uniform(follow_key) < share, follow(obs), jax.random.randint(random_key, (), 0, 3)
            )
            after = game.transition(state, action, move_key)
            return after, (obs, action, game.reward(state, action, after, None), game.terminal(after, None))

        keys = jax.random.split(key, STEPS + 1)
        last, (obs, action, reward, terminal) = jax.lax.scan(step, game.initial(keys[0]), keys[1:])
        return jnp.concatenate([obs, game.observation(last, None)[None]]), action, reward, terminal

    return jax.vmap(one, out_axes=1)(keys, share)


def games(seed: int, share: float | None) -> Iterator[EpisodeBuffer]:
    """Whole episodes without end; `share` None: another one in each."""
    compiled, rng = jax.jit(play), np.random.default_rng(seed)
    for block in range(1_000_000):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), block), TOGETHER)
        shares = rng.random(TOGETHER) if share is None else np.full(TOGETHER, share)
        obs, action, reward, terminal = map(np.asarray, compiled(keys, shares))
        for g in range(TOGETHER):
            ends = terminal[:, g].any()
            length = terminal[:, g].argmax() + 1 if ends else STEPS
            yield episode(obs[: length + 1, g], np.int64(action[:length, g]), reward[:length, g], terminated=bool(ends))


def collect(steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of at least `steps` rows; the last one is cut."""
    found: list[EpisodeBuffer] = []
    for game in games(seed, None):
        found.append(cut(game, steps))
        steps -= len(found[-1])
        if steps <= 0:
            return found
    return found


def returns(who: str, episodes: int) -> np.ndarray:
    """Returns [episodes] of "random" or "expert"."""
    every = games(0, {"random": 0.0, "expert": 1.0}[who])
    return np.array([next(every).rewards.sum() for _ in range(episodes)])
