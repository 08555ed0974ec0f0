"""MinAtarBreakout-v0: Breakout of MinAtar in JAX, by the package pgx (an extra: pip install pgx==2.6.0).

Young and Tian, "MinAtar", arXiv 1903.03176; Koyamada et al., "Pgx", arXiv 2303.17503. A ball, a paddle and three rows
of bricks on a grid of 10 x 10: a brick is worth 1, an episode ends when the ball is missed. Observations are the grid's
four channels (paddle, ball, its trail, bricks) as 400 numbers, 0 or 1. Actions: stay, left, right; with probability
0.1 the last one is done again.
"""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

GRID = (10, 10, 4)
STEPS = 500
"""Of an episode at most; MinAtar's own has no limit."""


class BreakoutFunctional(FuncEnv):
    """In JAX; the state is pgx's.

    Raises:
      gym.error.DependencyNotInstalled: pgx is not there.
    """

    observation_space = gym.spaces.Box(0.0, 1.0, (int(np.prod(GRID)),), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self):
        super().__init__()
        try:
            with jax.ensure_compile_time_eval():  # its files make arrays when they are first read, be it within a trace
                import pgx

                self.game = pgx.make("minatar-breakout")
        except ImportError:
            raise gym.error.DependencyNotInstalled(
                "MinAtarBreakout-v0 needs the package pgx: pip install pgx==2.6.0"
            ) from None

    def initial(self, rng, params=None):
        return self.game.init(rng)

    def transition(self, state, action, rng, params=None):
        return self.game.step(state, action, rng)

    def observation(self, state, rng, params=None):
        return state.observation.astype(jnp.float32).reshape(-1)

    def reward(self, state, action, next_state, rng, params=None):
        return next_state.rewards[0]

    def terminal(self, state, rng, params=None):
        return state.terminated


class MinAtarBreakout(FunctionalJaxEnv):
    """One game."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        super().__init__(BreakoutFunctional(), self.metadata, None)


gym.register("MinAtarBreakout-v0", f"{__name__}:MinAtarBreakout", max_episode_steps=STEPS, disable_env_checker=True)
