"""What the recipes share: the form of a recipe, of an episode, and one episode played."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gymnasium as gym
import jax
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

Act = Callable[[np.ndarray | dict], np.ndarray]
"""One observation of the environment -> one action."""


class Recipe(NamedTuple):
    """How a dataset is made, and what its returns are compared with."""

    env: EnvSpec
    eval_env: EnvSpec
    steps: int
    policy: str
    """Who acts, in one sentence."""
    collect: Callable[[int, int], Iterable[EpisodeBuffer]]
    """(steps, first seed) -> complete episodes, all played; the last one is cut at `steps` rows (not OGBench's)."""
    reference: str
    """Key in reference_scores.json."""
    expert: str
    """Whose returns are worth 100."""
    returns: Callable[[str, int], np.ndarray] | None
    """("random" | "expert", episodes) -> returns [episodes] in the evaluation environment; None: the pair in
    reference_scores.json is exact, and not measured."""
    packages: tuple[str, ...] = ()
    """Beyond those of requirements.txt, as pip takes them; which versions there are is recorded."""
    rewards: bool = True
    """False: goals are for whoever learns from it to choose; rewards are stored as 0."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def episode(observations, actions, rewards, terminated: bool, seed: int | None = None) -> EpisodeBuffer:
    """T + 1 observations, T actions, T rewards (lists or arrays) -> Minari's episode in float32; states by number stay.

    An episode ends either because the task did (`terminated`) or by a cut (truncated), never both:
    where a task ends exactly at the time limit, bootstrapping must stop, so termination wins.
    """
    if isinstance(observations[0], dict):
        observations = {k: np.float32([o[k] for o in observations]) for k in observations[0]}
    else:
        observations = np.asarray(observations)
        numbers = observations.ndim == 1 and np.issubdtype(observations.dtype, np.integer)
        observations = observations if numbers else observations.astype(np.float32)
    actions = np.asarray(actions)
    last = np.arange(len(actions)) == len(actions) - 1
    return EpisodeBuffer(
        seed=seed,
        observations=observations,
        actions=actions if np.issubdtype(actions.dtype, np.integer) else actions.astype(np.float32),
        rewards=np.asarray(rewards, np.float32),
        terminations=last & terminated,
        truncations=last & (not terminated),
    )


def cut(buffer: EpisodeBuffer, steps: int) -> EpisodeBuffer:
    """The first `steps` rows of an episode, flagged truncated if anything is missing."""
    if len(buffer) <= steps:
        return buffer
    seen = {k: jax.tree.map(lambda x: x[: steps + 1], getattr(buffer, k)) for k in ("observations", "infos")}
    return dataclasses.replace(
        buffer,
        actions=buffer.actions[:steps],
        rewards=buffer.rewards[:steps],
        terminations=np.zeros(steps, bool),
        truncations=np.arange(steps) == steps - 1,
        **seen,
    )


def rollout(env: gym.Env, act: Act, seed: int) -> EpisodeBuffer:
    """One episode in an environment with its time limit."""
    obs, _ = env.reset(seed=seed)
    observations, actions, rewards, terminated, truncated = [obs], [], [], False, False
    while not (terminated or truncated):
        action = act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(reward)
    return episode(observations, actions, rewards, terminated, seed)


def play_returns(spec: EnvSpec, act: Callable[[gym.Env], Act], episodes: int) -> np.ndarray:
    """Returns [episodes] of the policy that `act(env)` gives, in episodes seeded 0, 1, ..."""
    env = gym.make(spec, disable_env_checker=True)
    policy = act(env)
    return np.array([rollout(env, policy, seed).rewards.sum() for seed in range(episodes)])


def random_policy(env: gym.Env) -> Act:
    """Uniform actions of the environment's action space."""
    env.action_space.seed(0)
    return lambda obs: env.action_space.sample()
