"""Bernoulli bandits: `bandit-p<P>-good<G>`, where arm 0 pays in P % of the cases, arm 1 in the rest; G % choose 0.

Yang et al., arXiv 2210.13435: data of which most is of the worse arm, so that its luck outnumbers the better arm's.
"""

import re
from functools import partial

import numpy as np
from episodes import Recipe, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env


def recipe(name: str, env_id: str) -> Recipe:
    """Every name of the form above, listed in recipes.txt or not."""
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
