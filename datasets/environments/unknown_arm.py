"""UnknownArm-v0: twenty choices between an arm that pays in half of the cases and one of which nothing is known.

After Ni et al., arXiv 2512.04341, whose data is of one arm alone. An action is a number: below -0.5 it is the known
arm, which pays 1 with probability 0.5, else the unknown one, whose probability is drawn from [0, 1] in each episode.
The observation is a uniform number that means nothing: without it a normalised layer takes the least difference from
the data's one action for the unknown arm. Whoever stays with either arm has 10 in the mean; whoever tries the unknown
one, remembers what it paid and stays with the better of the two has more, 12.5 if the arm were told.
"""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

BORDER = -0.5
"""Actions below it are the known arm."""
KNOWN = 0.5
"""How often the known arm pays."""
STEPS = 20
"""Choices of an episode, which a time limit cuts."""


class State(NamedTuple):
    unknown: jax.Array
    """[] how often the other arm pays"""
    paid: jax.Array
    """[] what the last choice paid"""
    shown: jax.Array
    """[] what is observed"""


class UnknownArmFunctional(FuncEnv):
    """In JAX."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def initial(self, rng, params=None) -> State:
        arm_key, shown_key = jax.random.split(rng)
        return State(jax.random.uniform(arm_key), jnp.float32(0.0), jax.random.uniform(shown_key, minval=-1.0))

    def transition(self, state, action, rng, params=None) -> State:
        pay_key, shown_key = jax.random.split(rng)
        pays = jnp.where(jnp.asarray(action)[0] < BORDER, KNOWN, state.unknown)
        paid = jnp.float32(jax.random.uniform(pay_key) < pays)
        return State(state.unknown, paid, jax.random.uniform(shown_key, minval=-1.0))

    def observation(self, state, rng, params=None):
        return state.shown[None]

    def reward(self, state, action, next_state, rng, params=None):
        return next_state.paid

    def terminal(self, state, rng, params=None):
        return jnp.bool_(False)


class UnknownArm(FunctionalJaxEnv):
    """Each episode has an unknown arm of its own."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        super().__init__(UnknownArmFunctional(), self.metadata, None)


gym.register("UnknownArm-v0", f"{__name__}:UnknownArm", max_episode_steps=STEPS, disable_env_checker=True)
