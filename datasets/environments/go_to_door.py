"""GoToDoorText-v0: MiniGrid's GoToDoor-5x5 with its mission as a text (an extra: pip install minigrid==3.2.0).

Chevalier-Boisvert et al., "Minigrid & Miniworld", arXiv 2306.13831. A room of nine cells has a door of another colour
in each wall; an agent in it is told "go to the <colour> door", and says done when it stands before that door, with its
face to it or not. It is shown where in the 5 x 5 cells ahead there is a door of each of six colours and whether the way
is blocked, and told the mission. The reward is MiniGrid's: 1 - 0.9 steps / 100 for the right door; done anywhere else,
and to toggle a door, end the episode with nothing.
"""

import gymnasium as gym
import numpy as np

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
"""In MiniGrid's order."""
WALL, DOOR = 2, 4
"""MiniGrid's numbers of what is in a cell."""
VIEW = 5
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done")


class GoToDoorText(gym.Env):
    """One room.

    Raises:
      gym.error.DependencyNotInstalled: minigrid is not there.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None):
        try:
            from minigrid.envs.gotodoor import GoToDoorEnv
        except ImportError:
            raise gym.error.DependencyNotInstalled(
                "GoToDoorText-v0 needs the package minigrid: pip install minigrid==3.2.0"
            ) from None
        self.game, self.render_mode = GoToDoorEnv(agent_view_size=VIEW, render_mode=render_mode), render_mode
        charset = " abcdefghijklmnopqrstuvwxyz"  # in order, in which Minari stores it
        self.observation_space = gym.spaces.Dict(
            {
                "blocked": gym.spaces.Box(0.0, 1.0, (1,), np.float32),
                "doors": gym.spaces.Box(-1.0, 1.0, (len(COLOURS), 3), np.float32),
                "mission": gym.spaces.Text(max(map(len, map(mission, COLOURS))), charset=charset),
            }
        )
        self.action_space = gym.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        obs, info = self.game.reset(seed=seed)
        return shown(obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.game.step(int(action))
        return shown(obs), float(reward), terminated, truncated, info | {"success": reward > 0}

    def render(self):
        return self.game.render()

    def close(self):
        self.game.close()


def mission(colour: str) -> str:
    return f"go to the {colour} door"


def shown(obs: dict) -> dict:
    """MiniGrid's observation as ours: of each colour 1 where its door is in sight, and its cells to the side (to the
    right positive) and ahead, divided by 4; 0 where it is not."""
    kind, colour = obs["image"][..., 0], obs["image"][..., 1]
    doors = np.zeros((len(COLOURS), 3), np.float32)
    for x, y in np.argwhere(kind == DOOR):
        doors[colour[x, y]] = 1.0, (x - VIEW // 2) / 4.0, (VIEW - 1 - y) / 4.0
    blocked = np.float32([kind[VIEW // 2, VIEW - 2] in (WALL, DOOR)])
    return {"blocked": blocked, "doors": doors, "mission": obs["mission"]}


gym.register("GoToDoorText-v0", f"{__name__}:GoToDoorText", max_episode_steps=32, disable_env_checker=True)
