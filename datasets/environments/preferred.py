"""Worlds of several objectives whose episodes have a preference: weights, drawn at the start and shown at the end of
every observation, of which the reward is the weighted sum. Uniform over all weights that sum to 1, the mean return is
the expected utility of a policy (or of a set of them from which one is chosen).

`transition_info` tells the objectives themselves. The worlds:

  PreferredPeaks-v0     a point in a plane with a peak at (-1, 0) and one at (1, 0); objective i is what a Gaussian of
                        the peak's `width` is at the point, so that up to a width of 0.9 being between the peaks
                        serves both less than the mean of being at either: the front is concave.
  PreferredTreasure-v0  deep sea treasure (PointTreasure-v0): the treasure's value, and minus the steps to it.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

PEAKS = np.float32([(-1.0, 0.0), (1.0, 0.0)])
SPEED = 0.25
"""Length of a step at full action along x or y."""


class PeaksFunctional(FuncEnv):
    """A point between two peaks; the state is its position [2]. Its reward is what each peak gives [2]."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, width: float):
        super().__init__()
        self.width = width

    def initial(self, rng, params=None):
        return jnp.float32([0.0, -1.5]) + jax.random.uniform(rng, (2,), minval=-0.25, maxval=0.25)

    def transition(self, state, action, rng, params=None):
        return state + SPEED * jnp.clip(action, -1.0, 1.0)

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return jnp.exp(-((next_state - PEAKS) ** 2).sum(-1) / (2.0 * self.width**2))

    def terminal(self, state, rng, params=None):
        return jnp.bool_(False)


class State(NamedTuple):
    inner: Any
    preference: jax.Array
    """[K] weights of the objectives, which sum to 1"""


class PreferredFunctional(FuncEnv):
    """Another functional environment, whose reward is of K objectives, under a preference."""

    def __init__(self, inner: FuncEnv, n_objectives: int):
        super().__init__()
        self.inner, self.n_objectives = inner, n_objectives
        self.action_space = inner.action_space
        (size,) = inner.observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size + n_objectives,), np.float32)

    def initial(self, rng, params=None) -> State:
        inner_key, preference_key = jax.random.split(rng)
        weights = jax.random.exponential(preference_key, (self.n_objectives,))  # uniform when they sum to 1
        return State(self.inner.initial(inner_key), weights / weights.sum())

    def transition(self, state, action, rng, params=None) -> State:
        return state._replace(inner=self.inner.transition(state.inner, action, rng))

    def observation(self, state, rng, params=None):
        return jnp.concatenate([self.inner.observation(state.inner, rng), state.preference])

    def reward(self, state, action, next_state, rng, params=None):
        return self.inner.reward(state.inner, action, next_state.inner, rng) @ state.preference

    def terminal(self, state, rng, params=None):
        return self.inner.terminal(state.inner, rng)

    def transition_info(self, state, action, next_state, params=None) -> dict:
        """`objectives` [K]."""
        return {"objectives": self.inner.reward(state.inner, action, next_state.inner, None)}


class PreferredPeaks(FunctionalJaxEnv):
    """The point between two peaks."""

    metadata = {"render_modes": []}

    def __init__(self, width: float = 0.7, render_mode: str | None = None):
        super().__init__(PreferredFunctional(PeaksFunctional(width), len(PEAKS)), self.metadata, None)


class PreferredTreasure(FunctionalJaxEnv):
    """Deep sea treasure."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        inner = gym.make("PointTreasure-v0").unwrapped
        super().__init__(PreferredFunctional(inner.func_env, len(inner.world.terms)), self.metadata, None)

    def step(self, action):
        return super().step(np.int32(action))


gym.register("PreferredPeaks-v0", f"{__name__}:PreferredPeaks", max_episode_steps=25, disable_env_checker=True)
gym.register("PreferredTreasure-v0", f"{__name__}:PreferredTreasure", max_episode_steps=100, disable_env_checker=True)
