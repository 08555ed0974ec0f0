"""TurnedPoint's data, `turned-point-<kind>`: the tasks in turn, half of each one's episodes by a planner with noise.

The other half is of uniform actions (`mixed`; `few` is its first tenth), or of the planner that goes straight away from
the goal (`against`).
"""

from functools import partial

import numpy as np
from environments.turned_point import SPEED, TurnedFunctional
from episodes import Recipe, cut, episode
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

NOISE = 0.3
"""Standard deviation on the planner's actions."""


def recipe(name: str, env_id: str) -> Recipe:
    """`turned-point-mixed`, `turned-point-few` or `turned-point-against`."""
    spec, against = registered_env(env_id), name.endswith("-against")
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=600 if name.endswith("-few") else 6_000,
        policy=f"of each task every other episode: straight to the goal with noise {NOISE}, or "
        + (f"away from it with noise {NOISE}" if against else "uniform actions"),
        collect=partial(collect, spec, against),
        reference=env_id,
        expert="straight to the goal",
        returns=partial(returns, spec),
    )


def played(
    spec: EnvSpec, number: int, noise: float | None, rng: np.random.Generator, toward: float = 1.0
) -> EpisodeBuffer:
    """Episode `number`, of task `number` mod K; `noise`: of the planner, None: uniform actions; `toward` -1: away."""
    world, steps = TurnedFunctional(**spec.kwargs or {"tasks": 8}), spec.max_episode_steps
    task = number % world.tasks
    position, told = rng.uniform(-0.25, 0.25, 2), np.eye(world.tasks)[task]
    obs, actions, rewards = [np.r_[position, told]], [], []
    for _ in range(steps):
        action = rng.uniform(-1.0, 1.0, 2)
        if noise is not None:
            action = toward * world.signs[task] * (world.goals[task] - position) / SPEED + noise * rng.normal(size=2)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        position = position + SPEED * world.signs[task] * action
        obs.append(np.r_[position, told])
        actions.append(action)
        rewards.append(-np.linalg.norm(position - world.goals[task]))
    return episode(obs, actions, rewards, terminated=False)


def collect(spec: EnvSpec, against: bool, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes until there are so many steps; the last one is cut."""
    rng, episodes, tasks = np.random.default_rng(seed), [], TurnedFunctional(**spec.kwargs or {"tasks": 8}).tasks
    while steps > 0:
        number = len(episodes)
        planned, other = number // tasks % 2 == 0, (NOISE, rng, -1.0) if against else (None, rng)
        episodes.append(cut(played(spec, number, *((NOISE, rng) if planned else other)), steps))
        steps -= len(episodes[-1])
    return episodes


def returns(spec: EnvSpec, who: str, episodes: int) -> np.ndarray:
    """[episodes] of uniform actions ("random") or of the planner without noise ("expert"), the tasks in turn."""
    rng = np.random.default_rng(0)
    found = [played(spec, e, None if who == "random" else 0.0, rng) for e in range(episodes)]
    return np.array([x.rewards.sum() for x in found])
