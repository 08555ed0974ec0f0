"""Missions of MiniGrid told as texts (pip install minigrid==3.2.0): `minigrid-gotodoor-mixed`."""

from functools import partial

import gymnasium as gym
import numpy as np
from environments.go_to_door import ACTIONS, COLOURS
from episodes import Recipe
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

LEFT, RIGHT, FORWARD, DONE = (ACTIONS.index(a) for a in ("turn left", "turn right", "go forward", "done"))
NOISE = 0.1
"""Share of uniform actions (but done and toggle) in those of the walkers."""


def recipe(name: str, env_id: str) -> Recipe:
    """`minigrid-gotodoor-mixed`."""
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=8_000,
        policy="episodes in turn: to the door of the mission, to another door, to another door, uniform actions",
        collect=partial(collect, spec),
        reference=env_id,
        expert="to the door of the mission",
        returns=partial(returns, spec),
        packages=("minigrid==3.2.0",),
    )


def toward(obs: dict, colour: str) -> int:
    """The action that leads to the door of `colour`, by what is shown."""
    there, side, ahead = obs["doors"][COLOURS.index(colour)]
    if not there:
        return RIGHT
    if abs(side) + ahead == 0.25:
        return DONE
    return FORWARD if ahead and not obs["blocked"][0] else LEFT if side < 0 else RIGHT


def play(env: gym.Env, who: str, seed: int, noise: float = NOISE) -> EpisodeBuffer:
    """One episode of "expert" (to the mission's door), "other" (to another one) or "random"."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    told = obs["mission"].split()[-2]
    goal = told
    if who == "other":
        seen = {d.color for d in env.unwrapped.game.grid.grid if d is not None and d.type == "door"} - {told}
        goal = sorted(seen)[rng.integers(len(seen))]
    rows, actions, rewards, over, cut = [obs], [], [], False, False
    while not (over or cut):
        action = toward(obs, goal)
        if who == "random":
            action = int(rng.integers(len(ACTIONS)))
        elif rng.random() < noise:
            action = int(rng.choice([LEFT, RIGHT, FORWARD]))
        obs, reward, over, cut, _ = env.step(action)
        rows.append(obs)
        actions.append(action)
        rewards.append(reward)
    last = np.arange(len(actions)) == len(actions) - 1
    return EpisodeBuffer(
        seed=seed,
        observations={
            **{name: np.stack([o[name] for o in rows]) for name in ("blocked", "doors")},
            "mission": [o["mission"] for o in rows],
        },
        actions=np.int64(actions),
        rewards=np.float32(rewards),
        terminations=last & over,
        truncations=last & (not over),
    )


def collect(spec: EnvSpec, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Whole episodes of at least `steps` rows, but the last one's, which is left out."""
    env, episodes, left = gym.make(spec, disable_env_checker=True), [], steps
    while True:
        number = len(episodes)
        found = play(env, ("expert", "other", "other", "random")[number % 4], seed + number)
        if len(found) > left:
            return episodes
        episodes.append(found)
        left -= len(found)


def returns(spec: EnvSpec, who: str, episodes: int) -> np.ndarray:
    """[episodes] of uniform actions ("random") or of who goes to the right door without noise ("expert")."""
    env = gym.make(spec, disable_env_checker=True)
    return np.array([play(env, who, seed, 0.0).rewards.sum() for seed in range(episodes)])
