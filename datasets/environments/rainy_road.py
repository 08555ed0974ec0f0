"""RainyRoad-v0: a car that keeps its speed in the rain, as a causal graph that is known; its wiper does not brake it.

After the example of Zhu et al., arXiv 2206.01474, section 1. Observations are (speed v, rain, place of the wiper's
blade), actions (pedal, wiper) in [-1, 1]. One step:

  v     <- v + 0.2 (pedal - 0.6 (1 + rain) v) + N(0, 0.005^2)
  blade <- blade + 0.3 (wiper - blade)

It rains as hard, from -1 to 1, all through an episode. The reward is -|v - 0.5| of the new speed. Wiper and blade
change nothing of it.
"""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

TARGET = 0.5
"""The speed that is asked for."""
STEPS = 50
"""Of an episode, which a time limit cuts."""


class State(NamedTuple):
    """Scalars."""

    speed: jax.Array
    rain: jax.Array
    blade: jax.Array


class RoadFunctional(FuncEnv):
    """In JAX."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    tells_all = True

    def initial(self, rng, params=None) -> State:
        speed, rain, blade = jax.random.uniform(rng, (3,), minval=-1.0, maxval=1.0)
        return State(jnp.abs(speed), rain, blade)

    def transition(self, state: State, action, rng, params=None) -> State:
        pedal, wiper = jnp.clip(action, -1.0, 1.0)
        gust = 0.005 * jax.random.normal(rng)
        speed = state.speed + 0.2 * (pedal - 0.6 * (1.0 + state.rain) * state.speed) + gust
        return State(speed, state.rain, state.blade + 0.3 * (wiper - state.blade))

    def observation(self, state: State, rng, params=None):
        return jnp.stack(state)

    def state_of(self, obs) -> State:
        """The state that `observation` shows as [3]."""
        return State(*obs)

    def reward(self, state: State, action, next_state: State, rng, params=None):
        return -jnp.abs(next_state.speed - TARGET)

    def terminal(self, state: State, rng, params=None):
        return jnp.bool_(False)


class RainyRoad(FunctionalJaxEnv):
    """One road."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        super().__init__(RoadFunctional(), self.metadata, None)


gym.register("RainyRoad-v0", f"{__name__}:RainyRoad", max_episode_steps=STEPS, disable_env_checker=True)
