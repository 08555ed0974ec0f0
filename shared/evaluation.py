"""Evaluation: all lanes and episodes in vectorised environments under one compiled policy."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from shared.data import Task

MAX_ENVS = 256


class Returns(NamedTuple):
    """Per lane and episode."""

    returns: np.ndarray
    """[L, episodes], undiscounted."""
    lengths: np.ndarray
    """[L, episodes], environment steps."""


class Evaluator:
    """Rolls out every lane's policy for the same seeded episodes.

    Each environment has its own quota of episodes, so that short ones are not favoured; episode e is
    reset with seed `seed + e` in every lane and at every evaluation.
    """

    def __init__(self, task: Task, policy: Callable, padded: int, lanes: int, episodes: int, seed: int = 10_000):
        """`policy(agent, obs [L, E, O], step, keys [L], args) -> actions [L, E, A]`, compiled once.

        `padded`: lanes that `policy` takes; `lanes`: those that are evaluated.
        """
        self.task, self.policy, self.padded, self.lanes = task, policy, padded, lanes
        self.episodes, self.seed = episodes, seed
        self.per_lane = min(episodes, max(1, MAX_ENVS // lanes))
        self.workers = len(os.sched_getaffinity(0))
        self.envs: list = []

    def __call__(self, agent: Any, keys: Any, args: Any) -> Returns:
        """Plays `episodes` episodes with every lane's `agent` (leading axis L)."""
        if not self.envs:
            self.envs = [self.task.make_env() for _ in range(self.lanes * self.per_lane)]
        n = len(self.envs)
        returns = np.zeros((self.lanes, self.episodes))
        lengths = np.zeros((self.lanes, self.episodes), int)
        obs = np.zeros((self.padded, self.per_lane, *self.task.spec.obs_shape), np.float32)
        if len(self.task.spec.obs_shape) == 3:
            obs = obs.astype(np.uint8)
        episode = np.arange(n) % self.per_lane  # the episode that environment k plays
        for k in range(n):
            obs[divmod(k, self.per_lane)] = self._reset(k, episode[k])
        active = list(range(n))

        def step(ks: list[int], actions: np.ndarray) -> None:
            for k in ks:
                lane, slot = divmod(k, self.per_lane)
                new, reward, terminated, truncated, _ = self.envs[k].step(actions[lane, slot])
                returns[lane, episode[k]] += reward
                lengths[lane, episode[k]] += 1
                if terminated or truncated:
                    episode[k] += self.per_lane
                    if episode[k] < self.episodes:
                        obs[lane, slot] = self._reset(k, episode[k])
                else:
                    obs[lane, slot] = self.task.observe(new)

        with ThreadPoolExecutor(self.workers) as pool:
            t = 0
            while active:
                actions = self.task.to_env(np.asarray(self.policy(agent, obs, t, keys, args)))
                list(pool.map(lambda w: step(active[w :: self.workers], actions), range(self.workers)))
                active = [k for k in active if episode[k] < self.episodes]
                t += 1
        return Returns(returns, lengths)

    def _reset(self, k: int, episode: int) -> np.ndarray:
        return self.task.observe(self.envs[k].reset(seed=int(self.seed + episode))[0])
