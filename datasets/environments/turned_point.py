"""TurnedPoint-v0: a point in an open plane, and tasks that want different things of the same position.

Task k of K has its goal at the angle 2 pi k / K on a circle of radius 1, and in every other task actions mean their
opposite: what is right in one task is wrong in another at every position. An observation is the position and which
task it is, as a one among K - 1 zeros. The reward is minus the distance to the goal; episodes have 15 steps.
WindyPoint-v0 is the same in a wind, which observations do not tell.
"""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

SPEED = 0.25
"""Length of a step at full action."""


class State(NamedTuple):
    position: jax.Array
    """[2]"""
    task: jax.Array
    """[] from 0"""


class TurnedFunctional(FuncEnv):
    """In JAX."""

    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, tasks: int, wind: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        self.tasks, self.wind = tasks, wind
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2 + tasks,), np.float32)
        angle = 2.0 * np.pi * np.arange(tasks) / tasks
        self.goals = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        self.signs = np.where(np.arange(tasks) % 2, -1.0, 1.0).astype(np.float32)

    @property
    def task_params(self) -> dict[str, np.ndarray]:
        """Of each task, for `initial`."""
        return {"task": np.arange(self.tasks, dtype=np.int32)}

    def initial(self, rng, params=None) -> State:
        place_key, task_key = jax.random.split(rng)
        task = jax.random.randint(task_key, (), 0, self.tasks) if params is None else params["task"]
        return State(jax.random.uniform(place_key, (2,), minval=-0.25, maxval=0.25), jnp.int32(task))

    def transition(self, state, action, rng, params=None) -> State:
        step = SPEED * jnp.asarray(self.signs)[state.task] * jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
        return state._replace(position=state.position + step + jnp.float32(self.wind))

    def observation(self, state, rng, params=None):
        return jnp.concatenate([state.position, jax.nn.one_hot(state.task, self.tasks)])

    tells_all = True

    def state_of(self, obs) -> State:
        """The state that `observation` shows as [2 + K]."""
        return State(obs[:2], obs[2:].argmax())

    def reward(self, state, action, next_state, rng, params=None):
        return -jnp.linalg.norm(next_state.position - jnp.asarray(self.goals)[state.task])

    def terminal(self, state, rng, params=None):
        return jnp.bool_(False)


class TurnedPoint(FunctionalJaxEnv):
    """`tasks` of them; each episode is of one, drawn unless `reset` is told its number. `wind`: (x, y) per step."""

    metadata = {"render_modes": []}

    def __init__(self, tasks: int = 8, wind: tuple[float, float] = (0.0, 0.0), render_mode: str | None = None):
        if tasks < 2:
            raise ValueError(f"at least two tasks, not {tasks}")
        super().__init__(TurnedFunctional(tasks, tuple(wind)), self.metadata, None)

    @property
    def task_infos(self) -> list[dict]:
        """Of each task, from number 1 on: its goal (x, y), and 1, or -1 where actions mean their opposite."""
        return [
            {"goal": tuple(map(float, goal)), "sign": float(sign)}
            for goal, sign in zip(self.func_env.goals, self.func_env.signs, strict=True)
        ]

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """`options`: `task_id`, the task's number from 1 on.

        Raises:
          ValueError: there is no such task.
        """
        obs, info = super().reset(seed=seed)
        if "task_id" in (options or {}):
            if not 1 <= options["task_id"] <= self.func_env.tasks:
                raise ValueError(f"task {options['task_id']}: there are {self.func_env.tasks}")
            self.state = self.state._replace(task=jnp.int32(options["task_id"] - 1))
            obs = np.asarray(self.func_env.observation(self.state, self.rng))
        return obs, info


for name, options in (("TurnedPoint-v0", {}), ("WindyPoint-v0", {"wind": (0.15, -0.1)})):
    gym.register(
        name, f"{__name__}:TurnedPoint", max_episode_steps=15, disable_env_checker=True, kwargs=options
    )  # fmt: skip
