"""TrialPoint's data, `trial-point-mixed`: tries at a goal by a planner that is distracted in every other one."""

import numpy as np
from environments.trial_point import SIGHT, SPEED, STEPS, TRIES, goal_at
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

NOISE = 0.3
"""Standard deviation on the planner's actions."""
DISTRACTED = (0.0, 0.5)
"""Shares of a try's actions that are uniform, of every other try each."""


def recipe(name: str, env_id: str) -> Recipe:
    """The one there is."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=12_000,
        policy=f"straight to the goal with noise {NOISE}; every other try has {DISTRACTED[1]} of uniform actions",
        collect=collect,
        reference=env_id,
        expert="straight to the goal",
        returns=returns,
    )


def played(goal: np.ndarray, distracted: np.ndarray, noise: float, rng: np.random.Generator) -> EpisodeBuffer:
    """A trial for `goal` [2]; `distracted` [tries]: the probability of a uniform action in each of its tries."""
    position, obs, actions, rewards = np.zeros(2), [np.zeros(2)], [], []
    for share in distracted:
        for step in range(STEPS):
            action, uniform = (goal - position) / SPEED + noise * rng.normal(size=2), rng.uniform(-1.0, 1.0, 2)
            action = np.clip(uniform if rng.uniform() < share else action, -1.0, 1.0).astype(np.float32)
            position = position + SPEED * action
            rewards.append(-min(np.linalg.norm(position - goal), SIGHT))
            position = position if step < STEPS - 1 else np.zeros(2)
            obs.append(position)
            actions.append(action)
    return episode(obs, actions, rewards, terminated=False)


def collect(steps: int, seed: int) -> list[EpisodeBuffer]:
    """Trials until there are so many steps; the last one is cut."""
    rng, trials = np.random.default_rng(seed), []
    while steps > 0:
        distracted = rng.permutation(np.resize(DISTRACTED, TRIES))
        trials.append(cut(played(goal_at(rng.uniform()), distracted, NOISE, rng), steps))
        steps -= len(trials[-1])
    return trials


def returns(who: str, episodes: int) -> np.ndarray:
    """[episodes] of uniform actions ("random") or of the planner without noise ("expert")."""
    rng, share = np.random.default_rng(0), np.full(TRIES, who == "random", float)
    return np.array([played(goal_at(rng.uniform()), share, 0.0, rng).rewards.sum() for _ in range(episodes)])
