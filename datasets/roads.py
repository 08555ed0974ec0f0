"""The rainy road's drivers: `road-habit`, who wipe as hard as it rains; `road-free`, who wipe at random."""

from functools import partial

import jax
import numpy as np
from environments.rainy_road import STEPS, TARGET, RoadFunctional
from episodes import Recipe, cut, episode, play_returns, random_policy
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

HABIT = 0.1
"""Standard deviation of the wiper about the rain."""
DRIVERS = (0.1, 0.7)
"""The data's drivers keep speeds from this to this, most of them too slow."""


def recipe(name: str, env_id: str) -> Recipe:
    """`road-habit` or `road-free`."""
    spec, kind = registered_env(env_id), name.removeprefix("road-")
    wiper = f"the rain's strength, noise {HABIT:g}" if kind == "habit" else "uniform"
    policies = {"random": random_policy, "expert": lambda env: lambda obs: driver(np.asarray(obs), TARGET)}
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=2_000,
        policy=f"drivers who keep speeds from {DRIVERS[0]:g} to {DRIVERS[1]:g}, pedal noise 0.3; wiper: {wiper}",
        collect=partial(collect, kind),
        reference=env_id,
        expert="the driver who keeps the speed that is asked for, without noise",
        returns=lambda who, episodes: play_returns(spec, policies[who], episodes),
    )


def driver(obs: np.ndarray, speed: float | np.ndarray) -> np.ndarray:
    """Observations [..., 3] -> the actions [..., 2] that lead to `speed`, and wipe as hard as it rains."""
    drag = 0.6 * (1.0 + obs[..., 1]) * obs[..., 0]
    pedal = np.clip((speed - obs[..., 0]) / 0.2 + drag, -1.0, 1.0)
    return np.stack([pedal, obs[..., 1]], axis=-1).astype(np.float32)


def collect(kind: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of STEPS, played side by side; the last one is cut at `steps` rows."""
    road, rng, count = RoadFunctional(), np.random.default_rng(seed), -(-steps // STEPS)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(np.arange(count))
    state = jax.vmap(road.initial)(keys)
    move = jax.jit(jax.vmap(lambda s, a, key, t: road.transition(s, a, jax.random.fold_in(key, t)), (0, 0, 0, None)))
    speed = rng.uniform(*DRIVERS, count)
    rows = [(np.stack(state, axis=-1), None, None)]
    for t in range(STEPS):
        action = driver(rows[-1][0], speed)
        action[:, 0] += 0.3 * rng.normal(size=count)
        wiper = action[:, 1] + HABIT * rng.normal(size=count)
        action[:, 1] = wiper if kind == "habit" else rng.uniform(-1.0, 1.0, count)
        action = np.clip(action, -1.0, 1.0)
        state = move(state, action, keys, 1 + t)
        rows.append((np.stack(state, axis=-1), action, -np.abs(np.asarray(state.speed) - TARGET)))
    obs, action, reward = (np.stack([r[i] for r in rows[i > 0 :]], axis=1) for i in range(3))
    return [cut(episode(obs[e], action[e], reward[e], terminated=False), steps - e * STEPS) for e in range(count)]
