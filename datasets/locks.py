"""Combination locks: the papers' three kinds of offline data, drawn by the environment itself.

`[continuous-|tabular-]combination-lock-h<H>[-seed<S>]-<kind>`: H steps, and the correct actions of seed S. Tabular: the
latent states are seen, and there are 4 actions instead of 10. Kinds: `trajectory`, `occupancy` and `random`
(`Lock.offline_data`). The rows of `occupancy` do not follow each other, so that each is an episode of its own, cut
after its one step.
"""

import dataclasses
import re
from functools import partial

import jax
import numpy as np
from environments.combination_lock import Lock
from episodes import Recipe, cut, episode
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

PAPER_EPISODES = {"combination-lock-h100": 10_000, "continuous-combination-lock-h50": 50_000}
"""Episodes of arXiv 2210.06718 and 2311.08384; all others have EPISODES."""
EPISODES = 2_000
TABULAR_ACTIONS = 4


def recipe(name: str, env_id: str) -> Recipe:
    """Every name of the form above, listed in recipes.txt or not."""
    form, kind = name.rsplit("-", 1)
    which, horizon, seed = re.fullmatch(r"(\w+-)?combination-lock-h(\d+)(?:-seed(\d+))?", form).groups()
    lock = Lock(int(horizon), which == "continuous-", which == "tabular-", int(seed or 0))
    lock = dataclasses.replace(lock, num_actions=TABULAR_ACTIONS) if lock.tabular else lock
    spec = registered_env(env_id, dataclasses.asdict(lock))
    who = {
        "trajectory": "the optimal policy, with random actions at a rate of 1 / H"
        + " and at the step in the middle" * (not lock.continuous),
        "occupancy": "random actions in the states of the optimal policy",
        "random": "random actions",
    }
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=PAPER_EPISODES.get(form, EPISODES) * lock.horizon,
        policy=who[kind],
        collect=partial(collect, lock, kind),
        reference=env_id,
        expert="the optimal policy",
        returns=None,
    )


def data_key(lock: Lock, seed: int) -> jax.Array:
    """Of a lock's dataset; children 0 to 2 of a seed's key are those of a training lane of that seed."""
    return jax.random.fold_in(jax.random.key(lock.seed), 3 + seed)


def collect(lock: Lock, kind: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of H steps, the last one cut at `steps` rows; single rows of `occupancy`."""
    horizon, count = lock.horizon, -(-steps // lock.horizon)
    data = lock.offline_data(data_key(lock, seed), count, kind)
    obs, action, reward, next_obs = (
        np.asarray(x).swapaxes(0, 1) for x in (data.obs, data.action, data.reward, data.next_obs)
    )  # [episodes, H, ...]
    action = action if lock.continuous else action.astype(np.int64)
    h = np.arange(horizon + 1, dtype=np.float32)
    episodes = []
    for e in range(count):
        now, then = np.c_[obs[e], h[:-1]], np.c_[next_obs[e], h[1:]]
        if kind == "occupancy":
            pairs = np.stack([now, then], axis=1)
            rows = range(min(horizon, steps - len(episodes)))
            episodes += [episode(pairs[i], action[e, [i]], reward[e, [i]], i == horizon - 1) for i in rows]
        else:
            whole = episode(np.concatenate([now, then[-1:]]), action[e], reward[e], terminated=True)
            episodes.append(cut(whole, steps - e * horizon))
    return episodes
