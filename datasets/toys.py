"""Actions in the plane of a density that is known: `toy-modes8`, eight Gaussians, and `toy-rings`."""

from functools import partial

import jax
import numpy as np
from environments.plane_bandit import PlaneFunctional
from episodes import Recipe, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env


def recipe(name: str, env_id: str) -> Recipe:
    """`toy-modes8` or `toy-rings`."""
    density = name.split("-")[1]
    spec = registered_env(env_id, {"density": density})
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=4_000,
        policy="actions of the density, which pay by where they fall",
        collect=partial(collect, density),
        reference=name,
        expert="an action that pays most",
        returns=None,
    )


def collect(density: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of one step."""
    world = PlaneFunctional(density)
    actions = world.draw(jax.random.key(seed), steps)
    actions, rewards = np.asarray(actions), np.asarray(jax.jit(jax.vmap(world.pays))(actions))
    obs = np.zeros((2, 1), np.float32)
    return [episode(obs, actions[[i]], rewards[[i]], terminated=True) for i in range(steps)]
