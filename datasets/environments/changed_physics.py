"""ChangedPhysics-v0: another environment with other gravity or friction, or with noise on its actions."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv

from shared.errors import InputError
from shared.task import registered_env


class ChangedPhysics(gym.Env):
    """An environment with `gravity` and `friction` times its own, and Gaussian `noise` on every action.

    Rewards, spaces and the time limit are the environment's own. Friction is that of all contacts (sliding,
    torsional, rolling); noisy actions are clipped to the action space, and their noise is the seed's of the episode.
    """

    metadata = {"render_modes": ["human", "rgb_array"]}

    def __init__(
        self,
        env: str | dict[str, Any] = "Pendulum-v1",
        gravity: float = 1.0,
        friction: float = 1.0,
        noise: float = 0.0,
        render_mode: str | None = None,
    ):
        """`env`: a registered id, or {id, kwargs, max_episode_steps} as `Task.describe` has it.

        `gravity`, `friction`: factors. `noise`: standard deviation on actions whose range is [-1, 1].

        Raises:
          InputError: an environment without such physics (all but MuJoCo ones and Pendulum-v1), or discrete actions.
        """
        of = {"id": env} if isinstance(env, str) else env
        spec = registered_env(of.get("id"), of.get("kwargs"), of.get("max_episode_steps"))
        self.env = gym.make(spec, render_mode=render_mode)
        self.action_space, self.observation_space = self.env.action_space, self.env.observation_space
        self.metadata, self.render_mode = self.env.metadata, render_mode
        self.noise, self.random = noise, np.random.default_rng(0)
        if not isinstance(self.action_space, gym.spaces.Box) or not (friction >= 0.0 and noise >= 0.0):
            raise InputError(f"{spec.id}: noise needs continuous actions; noise and friction are at least 0.")
        inner = self.env.unwrapped
        if isinstance(inner, FunctionalJaxEnv):
            raise InputError(f"{spec.id} is written in JAX; its physics cannot be changed.")
        if isinstance(model := getattr(inner, "model", None), mujoco.MjModel):
            model.opt.gravity *= gravity
            model.geom_friction *= friction
        elif spec.id.startswith("Pendulum") and friction == 1.0:
            inner.g *= gravity
        elif (gravity, friction) != (1.0, 1.0):
            raise InputError(f"{spec.id} has no such physics; MuJoCo environments have both, Pendulum-v1 has gravity.")

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:
            self.random = np.random.default_rng([seed, 1])
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        if self.noise > 0.0:
            space = self.action_space
            noise = self.noise * self.random.standard_normal(space.shape) * 0.5 * (space.high - space.low)
            action = np.clip(action + noise, space.low, space.high).astype(space.dtype)
        return self.env.step(action)

    def render(self):
        return self.env.render()

    def close(self):
        self.env.close()


gym.register("ChangedPhysics-v0", f"{__name__}:ChangedPhysics", disable_env_checker=True)
