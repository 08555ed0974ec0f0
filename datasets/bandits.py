"""Bernoulli bandits: `bandit-p<P>-good<G>`, where arm 0 pays in P % of the cases, arm 1 in the rest; G % choose 0.

Yang et al., arXiv 2210.13435: data of which most is of the worse arm, so that its luck outnumbers the better arm's.
And `bandit-unknown-arm`, which has one of two arms alone (Ni et al., arXiv 2512.04341).
"""

import re
from functools import partial

import numpy as np
from environments.unknown_arm import KNOWN, STEPS
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env


def recipe(name: str, env_id: str) -> Recipe:
    """Every name of the form above, listed in recipes.txt or not."""
    if name == "bandit-unknown-arm":
        return unknown_arm(env_id)
    p, good = (int(x) / 100 for x in re.fullmatch(r"bandit-p(\d+)-good(\d+)", name).groups())
    spec = registered_env(env_id, {"p": p})
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=2_000,
        policy=f"arm 0, which pays 1 with probability {p:g}, in {good:.0%} of the episodes, else arm 1",
        collect=partial(collect, p, good),
        reference=env_id,
        expert="arm 0",
        returns=None,
    )


def collect(p: float, good: float, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of one step."""
    rng = np.random.default_rng(seed)
    arm = np.int64(rng.random(steps) >= good)
    reward = np.float32(rng.random(steps) < np.where(arm == 0, p, 1.0 - p))
    obs = np.zeros((2, 1), np.float32)
    return [episode(obs, arm[[i]], reward[[i]], terminated=True) for i in range(steps)]


def unknown_arm(env_id: str) -> Recipe:
    """`bandit-unknown-arm`."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=200,
        policy="the known arm, by the action -1",
        collect=collect_known,
        reference=env_id,
        expert="the better arm, of one who is told which",
        returns=None,
    )


def collect_known(steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of STEPS choices of the known arm; the last one is cut at `steps` rows."""
    rng, count = np.random.default_rng(seed), -(-steps // STEPS)
    reward = np.float32(rng.random((count, STEPS)) < KNOWN)
    obs, action = rng.uniform(-1.0, 1.0, (count, STEPS + 1, 1)), np.full((STEPS, 1), -1.0)
    return [cut(episode(obs[e], action, reward[e], terminated=False), steps - e * STEPS) for e in range(count)]
