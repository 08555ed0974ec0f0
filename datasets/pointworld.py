"""Datasets of point worlds: `point-<world>-<kind>`, thousands of steps of rollouts in one compiled call.

The kinds follow the schemes of D4RL (expert, medium, random and mixtures; arXiv 2004.07219) and of OGBench (navigate,
stitch, explore; arXiv 2410.20092), in worlds small enough for their exact solution. `s<S>p<P>` follows the study of
Belkhale et al. (arXiv 2306.02437): noise of the system and of the policy, in percent of an action.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Literal

import jax
import numpy as np
from environments.point import World
from environments.point_behaviour import Behaviour, Rollout, rollout
from episodes import Recipe, cut
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from shared.errors import InputError
from shared.task import registered_env

EXPERT = Behaviour(noise=0.25, avoid_hazards=True)
MEDIUM = Behaviour(noise=0.5, random=0.2, detours=3)
RANDOM = Behaviour("uniform")
WALK = Behaviour("walk", hold=8)
NAVIGATE = Behaviour(noise=0.5)
"""OGBench's noise."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a dataset is played."""

    policy: str
    """Who acts, in one sentence."""
    parts: tuple[tuple[float, Behaviour], ...]
    """Shares of the steps, one after the other."""
    steps: int = 50_000
    """Of the whole dataset."""
    limit: int | None = None
    """Steps of an episode; the environment's time limit by default."""
    side: Literal["", "left", "right"] = ""
    """The half of the world in which starts and goals lie; empty: anywhere."""
    options: tuple[tuple[str, object], ...] = ()
    """Of the world in which the data is collected, where it is not the one of the evaluation."""


KINDS = {
    "expert": Kind("a planner on shortest paths, noise 0.25", ((1.0, EXPERT),), 20_000),
    "medium": Kind("a planner through up to 3 random cells, noise 0.5, a fifth uniform", ((1.0, MEDIUM),), 20_000),
    "random": Kind("uniform actions", ((1.0, RANDOM),), 20_000),
    "mixed": Kind(
        "uniform actions (50 % of the steps), a planner with detours (40 %), a planner (10 %)",
        ((0.5, RANDOM), (0.4, MEDIUM), (0.1, EXPERT)),
        20_000,
    ),
    "demos": Kind("a planner on shortest paths, noise 0.25: about 50 episodes", ((1.0, EXPERT),), 1_000),
    "onestart": Kind(
        "a planner on shortest paths from one start, noise 0.25", ((1.0, EXPERT),), 1_000, options=(("start", "fixed"),)
    ),
    "navigate": Kind(
        "a planner to one random goal after the other, noise 0.5", ((1.0, NAVIGATE),), options=(("at_goal", "next"),)
    ),
    "stitch": Kind(
        "a planner to a goal 4 cells away, where it stays, noise 0.5",
        ((1.0, dataclasses.replace(NAVIGATE, near=4)),),
        limit=50,
        options=(("at_goal", "stay"),),
    ),
    "explore": Kind(
        "a random direction every 8 steps, noise 0.5",
        ((1.0, dataclasses.replace(WALK, noise=0.5)),),
        options=(("at_goal", "stay"),),
    ),
    "partial": Kind(
        "a planner with starts and goals in the left half, noise 0.5",
        ((1.0, Behaviour(noise=0.5)),),
        20_000,
        side="left",
        options=(("start", "sampled"), ("goal", "sampled")),
    ),
    "right": Kind(
        "a planner with starts and goals in the right half, noise 0.5, half uniform",
        ((1.0, dataclasses.replace(NAVIGATE, random=0.5)),),
        2_000,
        side="right",
    ),
}


def kind_of(name: str) -> Kind | None:
    """The kind of a name; None: there is none."""
    found = re.fullmatch(r"s(\d+)p(\d+)", name)
    if not found:
        return KINDS.get(name)
    system, policy = (int(x) / 100 for x in found.groups())
    who = f"a planner on shortest paths, noise {policy} on its actions, {system} on what they do"
    return Kind(who, ((1.0, Behaviour(noise=policy, avoid_hazards=True)),), 8_000, options=(("noise", system),))


BATCH = 128
"""Episodes of one compiled call."""


def recipe(name: str, env_id: str) -> Recipe:
    """`point-<world>-<kind>` in the environment `env_id`.

    Raises:
      InputError: no such kind.
    """
    kind = name.rsplit("-", 1)[1]
    spec, made = registered_env(env_id), kind_of(kind)
    if not made:
        kinds = ", ".join([*KINDS, "s<percent>p<percent>"])
        raise InputError(f"{name}: there is no kind '{kind}' of data of point worlds; choose from {kinds}.")
    collection = registered_env(env_id, dict(made.options), made.limit)
    return Recipe(
        env=collection,
        eval_env=spec,
        steps=made.steps,
        policy=made.policy,
        collect=partial(collect, collection, made),
        reference=env_id,
        expert="the planner without noise",
        returns=partial(returns, spec),
    )


def collect(spec: EnvSpec, kind: Kind, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of each part in its turn; the last one of a part is cut at its share of the steps."""
    world, episodes = World(**spec.kwargs), []
    for number, (share, behaviour) in enumerate(kind.parts):
        if kind.side:
            width, height = world.grid.size
            columns = {"left": (0, width // 2), "right": (width - width // 2, width)}[kind.side]
            behaviour = dataclasses.replace(behaviour, region=(columns[0], 0, columns[1], height))
        left = round(share * steps)
        for played in _endless(world, behaviour, (seed, number), spec.max_episode_steps):
            episodes.append(cut(played, left))
            left -= len(episodes[-1])
            if left <= 0:
                break
    return episodes


def _endless(world: World, behaviour: Behaviour, seed: tuple[int, int], limit: int) -> Iterator[EpisodeBuffer]:
    """Episode after episode; each depends on the seed and its number alone."""
    key, first = jax.random.fold_in(jax.random.key(seed[0]), seed[1]), 0
    while True:
        batch = jax.tree.map(np.asarray, rollout(world, behaviour, key, first, BATCH, limit))
        for e in range(BATCH):
            yield buffer(batch, e, seed[0] + first + e if first + e == 0 else None)
        first += BATCH


def buffer(batch: Rollout, e: int, seed: int | None = None) -> EpisodeBuffer:
    """Episode e as Minari's; what it costs to be in the state after each step is in `infos`."""
    n = batch.length[e]
    last = np.arange(n) == n - 1
    terminal = batch.terminal[e, :n]
    return EpisodeBuffer(
        seed=seed,
        observations=jax.tree.map(lambda x: x[e, : n + 1], batch.obs),
        actions=batch.action[e, :n],
        rewards=batch.reward[e, :n],
        terminations=terminal,
        truncations=last & ~terminal,
        infos={"cost": np.append(np.float32(0), batch.cost[e, :n])},
    )


@lru_cache
def _played(spec_id: str, who: str, episodes: int) -> np.ndarray:
    spec = registered_env(spec_id)
    world = World(**spec.kwargs)
    behaviour = RANDOM if who == "random" else Behaviour(avoid_hazards=True)
    batch = rollout(world, behaviour, jax.random.key(0), 0, episodes, spec.max_episode_steps)
    within = np.arange(batch.reward.shape[1]) < np.asarray(batch.length)[:, None]
    return (np.asarray(batch.reward, np.float64) * within).sum(1)


def returns(spec: EnvSpec, who: str, episodes: int) -> np.ndarray:
    """[episodes] of uniform actions ("random") or of the planner without noise ("expert")."""
    return _played(spec.id, who, episodes)
