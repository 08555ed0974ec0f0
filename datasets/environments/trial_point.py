"""TrialPoint-v0: a point in an open plane that tries to find one hidden goal several times.

A trial is of one goal, drawn uniformly from a line on the right, which no observation shows: a task. It holds several
tries, each from the same start: after the last step of a try the point is put back there, which is the observation
that follows. An observation is the position. The reward is minus the distance to the goal after the step, and the same
everywhere beyond 0.75 of it: where the goal is shows when half of the way is gone. A trial has four tries of ten steps;
what was found out in one is worth something in the next.
"""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

SPEED = 0.25
"""Length of a step along an axis at full action."""
STEPS, TRIES = 10, 4
"""Steps of a try, tries of a trial."""
GOALS = (1.0, 0.0), (1.0, 1.5)
"""The ends of their line; the start is (0, 0)."""
SIGHT = 0.75
"""Distance beyond which rewards are the same."""


class State(NamedTuple):
    position: jax.Array
    """[2]"""
    goal: jax.Array
    """[2]"""
    step: jax.Array
    """[] of the trial, from 0"""


class TrialFunctional(FuncEnv):
    """In JAX."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def initial(self, rng, params=None) -> State:
        return State(jnp.zeros(2), goal_at(jax.random.uniform(rng)), jnp.int32(0))

    def transition(self, state, action, rng, params=None) -> State:
        back = (state.step + 1) % STEPS == 0
        return State(jnp.where(back, 0.0, moved(state.position, action)), state.goal, state.step + 1)

    def observation(self, state, rng, params=None):
        return state.position

    def reward(self, state, action, next_state, rng, params=None):
        return -jnp.minimum(jnp.linalg.norm(moved(state.position, action) - state.goal), SIGHT)

    def terminal(self, state, rng, params=None):
        return jnp.bool_(False)


def goal_at(share):
    """[2] the goal at a share of their line, from 0 to 1."""
    first, last = np.float32(GOALS)
    return first + share * (last - first)


def moved(position, action):
    """Where an action leads."""
    return position + SPEED * jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)


class TrialPoint(FunctionalJaxEnv):
    """Each episode is a trial."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        super().__init__(TrialFunctional(), self.metadata, None)


gym.register("TrialPoint-v0", f"{__name__}:TrialPoint", max_episode_steps=STEPS * TRIES, disable_env_checker=True)
