"""DelayedReward-v0: another environment that pays all its rewards at the end of an episode, and nothing before it."""

import gymnasium as gym

from shared.task import registered_env


class DelayedReward(gym.Env):
    """An environment whose rewards are summed up and paid at an episode's last step, whether it ends or is cut.

    Spaces, dynamics and the time limit are the environment's own; so is an episode's return.
    """

    metadata = {"render_modes": ["human", "rgb_array"]}

    def __init__(self, env: str = "Pendulum-v1", render_mode: str | None = None):
        """`env`: a registered id with a time limit, or one whose episodes end by themselves."""
        self.env = gym.make(registered_env(env), render_mode=render_mode)
        self.action_space, self.observation_space = self.env.action_space, self.env.observation_space
        self.metadata, self.render_mode, self.earned = self.env.metadata, render_mode, 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.earned = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.earned += float(reward)
        return obs, self.earned if terminated or truncated else 0.0, terminated, truncated, info

    def render(self):
        return self.env.render()

    def close(self):
        self.env.close()


gym.register("DelayedReward-v0", f"{__name__}:DelayedReward", disable_env_checker=True)
