"""BernoulliBandit-v0: one choice between two arms, of which one pays 1 with probability p, the other with 1 - p.

Yang et al., "Dichotomy of Control", arXiv 2210.13435, section 6.1. The observation is always 0, an episode one step.
"""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv


class OneStep(FuncEnv):
    """In JAX: one action, and what it paid, which is the state; -1 before it. `transition` says what it pays."""

    observation_space = gym.spaces.Box(0.0, 0.0, (1,), np.float32)

    def initial(self, rng, params=None):
        return jnp.float32(-1.0)

    def observation(self, state, rng, params=None):
        return jnp.zeros(1)

    def reward(self, state, action, next_state, rng, params=None):
        return next_state

    def terminal(self, state, rng, params=None):
        return state >= 0.0


class BanditFunctional(OneStep):
    """Two arms."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def transition(self, state, action, rng, params=None):
        pays = jnp.where(action == 0, self.p, 1.0 - self.p)
        return jnp.float32(jax.random.uniform(rng) < pays)


class BernoulliBandit(FunctionalJaxEnv):
    """Arm 0 pays 1 with probability `p`, arm 1 with probability 1 - `p`."""

    metadata = {"render_modes": []}

    def __init__(self, p: float = 0.8, render_mode: str | None = None):
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p is a probability, not {p}")
        super().__init__(BanditFunctional(p), self.metadata, None)


gym.register("BernoulliBandit-v0", f"{__name__}:BernoulliBandit", max_episode_steps=1, disable_env_checker=True)
