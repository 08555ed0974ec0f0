"""HiddenTeam's data, `hidden-team-mixed`: games of players of three kinds, of which one both remembers and is right."""

import jax
import jax.numpy as jnp
import numpy as np
from environments.hidden_team import ELEMENTS, TEAM, TURNS, HiddenTeamFunctional
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

SHARES = {"adept": 0.4, "echo": 0.4, "clumsy": 0.2}
"""Of the games. An adept beats what was shown three turns ago, an echo what was shown last; the clumsy one, three turns
ago, too, plays what loses to it. Where nothing was shown yet their actions are uniform."""
DISTRACTED = 0.2
"""Share of uniform actions in the data."""
TOGETHER = 256
"""Games that are played side by side."""


def recipe(name: str, env_id: str) -> Recipe:
    """The one there is."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=20_000,
        policy=f"adepts, echoes and clumsy players, {DISTRACTED} of whose actions are uniform",
        collect=collect,
        reference=env_id,
        expert="the adept without uniform actions",
        returns=returns,
    )


def play(keys: jax.Array, kind: jax.Array, distracted: float) -> tuple[jax.Array, ...]:
    """One game for each key [G] by a player of a `kind` [G] of SHARES; `distracted`: its share of uniform actions.

    Returns:
      Observations [T + 1, G, 6], actions [T, G], rewards [T, G] and ends [T, G]; what follows a game's end is to be cut
      off.
    """
    game = HiddenTeamFunctional()

    def one(key, kind):
        def step(carry, key):
            state, before = carry  # what was shown one, two and three turns ago
            move_key, any_key, which_key = jax.random.split(key, 3)
            known = jnp.where(kind == 1, before[0], before[TEAM - 1])
            meant = (known + jnp.where(kind == 2, -1, 1)) % ELEMENTS
            uniform = (jax.random.uniform(any_key) < distracted) | (known == ELEMENTS)
            action = jnp.where(uniform, jax.random.randint(which_key, (), 0, ELEMENTS), meant)
            after = game.transition(state, action, move_key)
            found = game.observation(state, None), action, game.reward(state, action, after, None)
            return (after, jnp.roll(before, 1).at[0].set(after.shown)), (*found, game.terminal(after, None))

        keys = jax.random.split(key, TURNS + 1)
        start = game.initial(keys[0]), jnp.full(TEAM, ELEMENTS)
        (last, _), (obs, action, reward, end) = jax.lax.scan(step, start, keys[1:])
        return jnp.concatenate([obs, game.observation(last, None)[None]]), action, reward, end

    return jax.vmap(one, out_axes=1)(keys, kind)


def games(seed: int, shares: tuple[float, ...], distracted: float):
    """Whole episodes without end of players drawn by their `shares`."""
    compiled, rng = jax.jit(play), np.random.default_rng(seed)
    for block in range(1_000_000):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), block), TOGETHER)
        kind = rng.choice(len(shares), TOGETHER, p=shares)
        obs, action, reward, end = map(np.asarray, compiled(keys, kind, distracted))
        for g, length in enumerate(end.argmax(0) + 1):
            yield episode(obs[: length + 1, g], np.int64(action[:length, g]), reward[:length, g], terminated=True)


def collect(steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of at least `steps` rows; the last one is cut."""
    found: list[EpisodeBuffer] = []
    for game in games(seed, tuple(SHARES.values()), DISTRACTED):
        found.append(cut(game, steps))
        steps -= len(found[-1])
        if steps <= 0:
            return found
    return found


def returns(who: str, episodes: int) -> np.ndarray:
    """[episodes] of uniform actions ("random") or of the adept without any ("expert")."""
    every = games(0, (1.0, 0.0, 0.0), float(who == "random"))
    return np.array([next(every).rewards.sum() for _ in range(episodes)])
