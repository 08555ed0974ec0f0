"""Pendulum-v1, CartPole-v1 and FrozenLake-v1 from scripted controllers of graded quality.

Each episode is played by one controller. The bad ones are wrong on purpose and not merely noisy:
averaging over noise would give the good action back, so that cloning would already be optimal.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial

import gymnasium as gym
import numpy as np
from episodes import Act, Recipe, cut, play_returns, random_policy, rollout
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

SHARES = {
    "pendulum-mixed": {"expert": 0.25, "spinner": 0.25, "damper": 0.30, "random": 0.20},
    "pendulum-weak": {"spinner": 0.35, "damper": 0.35, "random": 0.30},
    "pendulum-few": {"expert": 0.25, "spinner": 0.25, "damper": 0.30, "random": 0.20},
    "pendulum-half": {"half": 1.0},
    "pendulum-rare": {"expert": 0.05, "random": 0.95},
    "pendulum-narrow": {"expert": 1.0},
    "cartpole-mixed": {"expert": 0.15, "drifter": 0.50, "clumsy": 0.20, "random": 0.15},
    "frozen-lake-mixed": {"expert": 0.10, "hurried": 0.40, "random": 0.50},
}
"""Share of the steps that each controller plays."""
STEPS = {"pendulum-few": 2_000}
"""Where it is not 20,000."""
GRAVITY, INERTIA, MAX_TORQUE = 10.0, 1.0 / 3.0, 2.0  # Pendulum-v1, m = l = 1
LEFT_OUT = {"pendulum-narrow": 0.0}
"""Probability of a uniform action in place of the controller's, for coverage: 0.15 elsewhere."""
POLICIES = {
    "pendulum-half": "the scripted expert above the horizontal (15% of its actions uniform), uniform actions below it"
}
"""Who acts, where the shares do not say it."""


def pendulum(grade: str) -> Act:
    """obs [3] = (cos, sin, velocity) of the angle from upright -> torque [1].

    `expert` pumps energy, E = I w^2 / 2 + g cos / 2, up to that of standing still upright and holds
    the pole there with linear feedback; `spinner` pumps without ever holding; `damper` brakes.
    """

    def act(obs: np.ndarray) -> np.ndarray:
        cos, sin, velocity = obs
        angle = np.float32(np.arctan2(np.float64(sin), np.float64(cos)))  # float32 is not alike on all processors
        missing = 0.5 * GRAVITY * (1.0 - cos) - 0.5 * INERTIA * velocity**2
        if grade == "damper":
            torque = -velocity
        elif grade == "expert" and abs(angle) < 0.5 and abs(velocity) < 4.0:
            torque = -10.0 * angle - 2.5 * velocity
        else:
            pump = missing + (2.0 if grade == "spinner" else 0.0)
            torque = MAX_TORQUE * np.sign(pump * (velocity or 1.0))
        return np.clip([torque], -MAX_TORQUE, MAX_TORQUE).astype(np.float32)

    return act


GAINS = {  # on (position, velocity, angle, angular velocity); the sign of the sum is the push
    "expert": (0.1, 0.3, 3.0, 1.0),
    "drifter": (-1.0, -1.5, 3.0, 1.0),
    "clumsy": (0.0, 0.0, 1.0, 0.0),
}


def cartpole(grade: str) -> Act:
    """obs [4] -> push to the right (1) or left (0) by linear feedback with the grade's gains."""
    return lambda obs: np.int64(np.dot(GAINS[grade], obs) > 0)


def left_out(name: str) -> float:
    return LEFT_OUT.get(name, 0.15)


@lru_cache
def way_over_the_ice(slippery: bool) -> np.ndarray:
    """[16] the best action in each state of the lake, by value iteration; of equally good ones the first."""
    outcomes = gym.make("FrozenLake-v1", is_slippery=slippery).unwrapped.P
    q = np.zeros((len(outcomes), 4))
    for _ in range(1_000):
        v = q.max(1)
        for s, actions in outcomes.items():
            for a, found in actions.items():
                q[s, a] = sum(p * (r + 0.99 * v[to] * (not ends)) for p, to, r, ends in found)
    return np.round(q, 9).argmax(1)


def frozen_lake(grade: str) -> Act:
    """obs [] -> the best action, or (`hurried`) the one that would be if nothing slipped: past the holes."""
    way = way_over_the_ice(grade == "expert")
    return lambda obs: np.int64(way[obs])


CONTROLLERS: dict[str, Callable[[str], Act]] = {
    "Pendulum-v1": pendulum,
    "CartPole-v1": cartpole,
    "FrozenLake-v1": frozen_lake,
}


def recipe(name: str, env_id: str) -> Recipe:
    """A name of SHARES; with `-delayed` behind it, rewards come at the end."""
    spec, delayed, name = registered_env(env_id), name.endswith("-delayed"), name.removesuffix("-delayed")
    played_in = spec.kwargs.get("env", "Pendulum-v1") if delayed else env_id
    policies = {"random": random_policy, "expert": lambda env: CONTROLLERS[played_in]("expert")}
    shares = ", ".join(f"{share:.0%} {grade}" for grade, share in SHARES[name].items())
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=STEPS.get(name, 20_000),
        policy=POLICIES.get(name)
        or f"scripted controllers, one per episode ({shares} of the steps), "
        f"{left_out(name):.0%} of their actions uniform",
        collect=partial(collect, name, played_in, delayed),
        reference=env_id,
        expert="the scripted expert without random actions",
        returns=lambda who, episodes: play_returns(spec, policies[who], episodes),
    )


def collect(name: str, env_id: str, delayed: bool, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes seeded seed, seed + 1, ..., each by the controller furthest behind its share."""
    env = gym.make(env_id)
    env.action_space.seed(seed)
    rng = np.random.default_rng(seed)
    played = dict.fromkeys(SHARES[name], 0)

    def mixed(grade: str) -> Act:
        if grade == "random":
            return lambda obs: env.action_space.sample()
        half, grade = grade == "half", "expert" if grade == "half" else grade
        act = CONTROLLERS[env_id](grade)
        return lambda obs: (
            env.action_space.sample() if rng.random() < left_out(name) or (half and obs[0] <= 0.0) else act(obs)
        )

    episodes = []
    while (total := sum(played.values())) < steps:
        grade = min(played, key=lambda g: played[g] / SHARES[name][g])
        episodes.append(cut(rollout(env, mixed(grade), seed + len(episodes)), steps - total))
        played[grade] += len(episodes[-1])
    return [at_the_end(e) for e in episodes] if delayed else episodes


def at_the_end(episode: EpisodeBuffer) -> EpisodeBuffer:
    """The episode with all its rewards at its last step."""
    rewards = np.asarray(episode.rewards)
    paid = np.zeros_like(rewards)
    paid[-1] = rewards.sum()
    return dataclasses.replace(episode, rewards=paid)
