"""PlaneBandit-v0: one action in the plane, paid by where it falls; data of it come from a density that is known.

`modes8`: eight Gaussians on a circle, of which mode k pays (k + 1) / 8 within three standard deviations, and nothing
between them. `rings`: two rings, of which the outer one pays 1 and the inner one 1/2. The observation is always 0, an
episode one step. What a generative model of actions draws can be held against the density itself (shared/densities.py).
"""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv

from environments.bandit import OneStep

STD = 0.08
RADIUS = 0.7
RINGS = (0.4, 0.8)


class PlaneFunctional(OneStep):
    """An action in the plane.

    Attributes:
      centres: [K, 2] of the modes; none of the rings.
      reach: how far a mode reaches.
    """

    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, density: str):
        super().__init__()
        self.density = density
        angle = np.arange(8) * np.pi / 4
        circle = RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.centres = np.float32(circle if density == "modes8" else circle[:0])
        self.reach = 3 * STD

    def draw(self, key, n: int):
        """[n, 2] actions of the density."""
        which_key, angle_key, noise_key = jax.random.split(key, 3)
        noise = STD * jax.random.normal(noise_key, (n, 2))
        if self.density == "modes8":
            middle = jnp.asarray(self.centres)[jax.random.randint(which_key, (n,), 0, 8)]
        else:
            radius = jnp.float32(RINGS)[jax.random.randint(which_key, (n,), 0, 2)]
            angle = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
            middle = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return jnp.clip(middle + noise, -1.0, 1.0)

    def pays(self, action):
        """Reward of an action [2]."""
        if self.density == "modes8":
            apart = jnp.linalg.norm(action - self.centres, axis=-1)
            return jnp.where(apart.min() < self.reach, (apart.argmin() + 1) / 8, 0.0)
        apart = jnp.abs(jnp.linalg.norm(action) - jnp.float32(RINGS))
        return jnp.where(apart.min() < self.reach, (apart.argmin() + 1) / 2, 0.0)

    def transition(self, state, action, rng, params=None):
        return jnp.float32(self.pays(action))


class PlaneBandit(FunctionalJaxEnv):
    """`density`: modes8 or rings."""

    metadata = {"render_modes": []}

    def __init__(self, density: str = "modes8", render_mode: str | None = None):
        if density not in ("modes8", "rings"):
            raise ValueError(f"density is modes8 or rings, not {density}")
        super().__init__(PlaneFunctional(density), self.metadata, None)


gym.register("PlaneBandit-v0", f"{__name__}:PlaneBandit", max_episode_steps=1, disable_env_checker=True)
