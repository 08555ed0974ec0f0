"""Point worlds as gymnasium environments; importing the module registers their ids.

`gym.make("PointWorld-v0", layout="medium", goal="sampled")`: any option of `point.World`; the other ids are worlds with
names. The functions of the environment (`env.unwrapped.func_env`) are those of point.py, so that what is compiled whole
and what gymnasium steps is the same.
"""

from functools import lru_cache, partial

import gymnasium as gym
import jax
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

from environments import point, point_views
from environments.point import State, World
from environments.point_truth import path_length

IDS = {
    "PointWorld": ({}, 200),
    "PointOpen": ({"layout": "open"}, 100),
    "PointOpenStarts": ({"layout": "open", "start": "sampled"}, 100),
    "PointUMaze": ({"layout": "umaze"}, 100),
    "PointUMazeDense": ({"layout": "umaze", "reward": "dense"}, 100),
    "PointRoundTrip": ({"layout": "umaze", "show_goal": False}, 100),
    "PointWayBack": ({"layout": "umaze", "show_goal": False, "start": (1.5, 3.5), "goal": (1.5, 1.5)}, 100),
    "PointNoEnd": ({"layout": "umaze", "show_goal": False, "at_goal": "stay"}, 100),
    "PointMedium": ({"layout": "medium"}, 200),
    "PointLarge": ({"layout": "large"}, 400),
    "PointFourRooms": ({"layout": "fourrooms"}, 200),
    "PointOpenGoals": ({"layout": "open", "observation": "goal", "start": "sampled", "goal": "sampled"}, 100),
    "PointUMazeGoals": ({"layout": "umaze", "observation": "goal", "start": "sampled", "goal": "sampled"}, 100),
    "PointMediumGoals": ({"layout": "medium", "observation": "goal", "start": "sampled", "goal": "sampled"}, 200),
    "PointLargeGoals": ({"layout": "large", "observation": "goal", "start": "sampled", "goal": "sampled"}, 400),
    "PointTeleportGoals": ({"layout": "teleport", "observation": "goal", "start": "sampled", "goal": "sampled"}, 200),
    "PointForce": ({"layout": "umaze", "inertia": 0.75}, 200),
    "PointGrid": ({"layout": "fourrooms", "discrete": True, "speed": 1.0, "jitter": 0.0}, 100),
    "PointMazes": (
        {"layout": "random-9x9-0", "levels": 32, "view": 4, "discrete": True, "speed": 1.0, "jitter": 0.0}, 60
    ),
    "PointMazesUnseen": (
        {"layout": "random-9x9-1000", "levels": 32, "view": 4, "discrete": True, "speed": 1.0, "jitter": 0.0}, 60
    ),
    "PointLake": ({"layout": "lake", "discrete": True, "speed": 1.0, "jitter": 0.0, "deadly": True}, 100),
    "PointHazard": ({"layout": "hazard", "reward": "dense"}, 100),
    "PointHazardGoals": (
        {"layout": "hazard", "observation": "goal", "start": "sampled", "goal": "sampled", "reward": "safety"}, 80
    ),
    "PointGuarded": ({"layout": "hazard", "deadly": True}, 80),
    "PointBridge": (
        {"layout": "bridge", "noise": 1.0, "deadly": True, "reward": ("success", "time"), "weights": (1.0, 0.01)}, 100
    ),
    "PointObstacle": (
        {"layout": "###########\n#.........#\n#...xxx...#\n#S..xxx..G#\n#...xxx...#\n#.........#\n###########",
         "noise": 0.5, "deadly": True, "show_goal": False}, 80
    ),
    "PointRiver": ({"layout": "river", "reward": "sparse"}, 100),
    "PointCrossing": ({"layout": "crossing"}, 50),
    "PointHidden": (
        {"layout": "open", "start": (4.5, 4.0), "goal": "sampled", "show_goal": False, "at_goal": "stay"}, 50
    ),
    "PointHiddenDense": (
        {"layout": "open", "start": (4.5, 4.0), "goal": "sampled", "show_goal": False, "at_goal": "stay",
         "reward": "dense"}, 50
    ),
    "PointHiddenCorner": (
        {"layout": "open", "start": (4.5, 4.0), "show_goal": False, "at_goal": "stay", "reward": "dense"}, 50
    ),
    "PointTreasure": (
        {"layout": "deepsea", "discrete": True, "speed": 1.0, "jitter": 0.0, "reward": ("treasure", "time")}, 100
    ),
    "PointTeam": ({"layout": "open", "agents": 2, "start": "sampled", "goal": "sampled", "reward": "dense"}, 100),
    "PointPixels": ({"layout": "umaze", "observation": "pixels", "pixels": 16}, 100),
    "PointPixelGoals": (
        {"layout": "umaze", "observation": "pixels", "pixels": 16, "start": "sampled", "goal": "sampled",
         "show_goal": False}, 100
    ),
}  # fmt: skip
"""{id without -v0: (options, time limit)}."""


@lru_cache
def tasks_of(world: World) -> list[dict]:
    """Five pairs of free cells where both start and goal are sampled and one agent moves in one maze; else none.

    Of all pairs, ordered by the length of the shortest way, the ones at 20, 40, 60, 80 and 100 %: task 5 is the
    farthest.
    """
    if (world.start, world.goal, world.agents, world.levels) != ("sampled", "sampled", 1, 1):
        return []
    cells = np.argwhere(world.grid.free[0])[:, ::-1] + 0.5
    lengths = np.stack([path_length(world, goal, fine=4)(cells) for goal in cells])  # [goal, start]
    lengths[np.eye(len(cells), dtype=bool)] = np.inf
    order = np.argsort(lengths, axis=None, kind="stable")[: np.isfinite(lengths).sum()]
    tasks = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        goal, start = np.unravel_index(order[round(share * (len(order) - 1))], lengths.shape)
        length = float(lengths[goal, start])
        tasks.append({"start": tuple(cells[start].tolist()), "goal": tuple(cells[goal].tolist()), "length": length})
    return tasks


class PointFunctional(FuncEnv):
    """The functions of one world."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world
        n = world.agents
        one = gym.spaces.Discrete(world.num_actions) if world.discrete else gym.spaces.Box(-1.0, 1.0, (2 * n,))
        self.action_space = one
        shapes = jax.eval_shape(lambda key: point_views.observe(world, point.reset(world, key)), jax.random.key(0))
        spaces = jax.tree.map(_space, shapes)
        self.observation_space = gym.spaces.Dict(spaces) if isinstance(spaces, dict) else spaces

    @property
    def task_params(self) -> dict[str, np.ndarray] | None:
        """Start and goal [K, 1, 2] of each task, for `initial`; None: the world has no tasks."""
        tasks = tasks_of(self.world)
        return (
            {k: np.stack([np.float32(t[k]).reshape(1, 2) for t in tasks]) for k in ("start", "goal")} if tasks else None
        )

    def initial(self, rng, params=None) -> State:
        return point.reset(self.world, rng, **(params or {}), jitter=params is not None)

    def transition(self, state, action, rng, params=None) -> State:
        return point.transition(self.world, state, action, rng)

    def observation(self, state, rng, params=None):
        return point_views.observe(self.world, state)

    def reward(self, state, action, next_state, rng, params=None):
        return point.reward(self.world, state, action, next_state)

    def terminal(self, state, rng, params=None):
        return point.terminal(self.world, state)

    @property
    def tells_all(self) -> bool:
        """Whether a vector shows the whole state: one maze, and a goal that is shown or always the same."""
        world = self.world
        fixed = not isinstance(world.goal, str) or world.goal == "fixed" and world.grid.goals.sum() <= 1
        same_goal = world.show_goal or fixed and world.at_goal != "next"
        return world.observation == "vector" and world.levels == 1 and (same_goal or not world.aims)

    def state_of(self, obs: jax.Array) -> State:
        """The state that `observation` shows as a vector [O]; where `tells_all`."""
        return point_views.state_of(self.world, obs)

    def state_info(self, state, params=None) -> dict:
        """`success`: the goal is reached; `cost`: share of the agents in a hazard."""
        success = point.reached(self.world, state.position, state.goal)
        return {"success": success, "cost": point.cost(self.world, state)}

    def transition_info(self, state, action, next_state, params=None) -> dict:
        """The same of the next state (and of the goal before it), and `objectives` [K]: the terms of the reward."""
        objectives = point.objectives(self.world, state, action, next_state)
        return {**self.state_info(next_state._replace(goal=state.goal)), "objectives": objectives}


class PointEnv(FunctionalJaxEnv):
    """One world. Keys are drawn as gymnasium's FunctionalJaxEnv does; each step is one compiled call on the CPU."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None, **options):
        """`options`: of `point.World`."""
        self.world = World(**options)
        super().__init__(PointFunctional(self.world), self.metadata, None)
        self.render_mode = render_mode
        if len(self.world.terms) > 1 and not self.world.weights:
            self.reward_space = gym.spaces.Box(-np.inf, np.inf, (len(self.world.terms),))
        self._cpu = jax.local_devices(backend="cpu")[0]

    @property
    def task_infos(self) -> list[dict]:
        """Of each task, from number 1 on: its start, its goal (x, y), and the length of the shortest way, in cells."""
        return tasks_of(self.world)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """`options`: `start` and `goal` (x, y), or one for each agent, in place of the world's own; or a `task_id`,
        whose start is moved by the world's jitter. Where pictures do not show the goal, `info` has the picture of who
        is there: `goal`.

        Raises:
          ValueError: there is no such task.
        """
        gym.Env.reset(self, seed=seed)
        if "task_id" in (options := dict(options or {})):
            number, tasks = options.pop("task_id"), self.task_infos
            if not 1 <= number <= len(tasks):
                raise ValueError(f"task {number}: this world has {len(tasks)} tasks")
            options = {k: tasks[number - 1][k] for k in ("start", "goal")} | {"jitter": True} | options
        with jax.default_device(self._cpu):
            if seed is not None:
                self.rng = jax.random.PRNGKey(seed)
            jitter = options.pop("jitter", False)
            places = {k: np.float32(v).reshape(-1, 2) for k, v in options.items()}
            self.state, obs, info, self.rng = _reset(self.world, self.rng, places, jitter)
            if self.world.observation == "pixels" and not self.world.show_goal:
                info["goal"] = _draw(self.world, self.state._replace(position=self.state.goal), self.world.pixels)
        return _plain((obs, info))

    def step(self, action):
        with jax.default_device(self._cpu):
            action = np.asarray(action, np.int32 if self.world.discrete else np.float32)
            self.state, obs, reward, terminal, info, self.rng = _step(self.world, self.state, action, self.rng)
        obs, reward, info = _plain((obs, reward, info))
        return obs, reward if np.ndim(reward) else float(reward), bool(terminal), False, info

    def compute_reward(self, achieved_goal, desired_goal, info=None) -> np.ndarray:
        """Rewards [...] of goals [..., 2 n], as a GoalEnv of gymnasium-robotics: success, sparse or dense."""
        world, (achieved, desired) = self.world, (
            np.asarray(x).reshape(*np.shape(x)[:-1], self.world.agents, 2) for x in (achieved_goal, desired_goal)
        )  # fmt: skip
        if world.reward == "dense":
            return -np.asarray(point.distance(world, achieved, desired).mean(-1))
        if world.reward not in ("success", "sparse"):
            raise ValueError(f"the reward '{world.reward}' is not of goals alone")
        return np.asarray(point.reached(world, achieved, desired), np.float32) - (world.reward == "sparse")

    def render(self) -> np.ndarray:
        """A picture of 256 x 256 pixels."""
        return np.asarray(_draw(self.world, self.state, 256))

    def close(self):
        """Nothing is open."""


_draw = partial(jax.jit, static_argnums=(0, 2))(point_views.draw)


@partial(jax.jit, static_argnums=(0, 3))
def _reset(world: World, key: jax.Array, places: dict, jitter: bool):
    rng, key = jax.random.split(key)
    state = point.reset(world, rng, **places, jitter=jitter)
    return state, point_views.observe(world, state), _info(world, state), key


@partial(jax.jit, static_argnums=0)
def _step(world: World, state: State, action: jax.Array, key: jax.Array):
    rng, key = jax.random.split(key)
    new = point.transition(world, state, action, rng)
    info = _info(world, new._replace(goal=state.goal)) | {"objectives": point.objectives(world, state, action, new)}
    reward, terminal = point.reward(world, state, action, new), point.terminal(world, new)
    return new, point_views.observe(world, new), reward, terminal, info, key


def _info(world: World, state: State) -> dict:
    return {"success": point.reached(world, state.position, state.goal), "cost": point.cost(world, state)}


def _plain(tree):
    """Arrays of NumPy; scalars of Python in what gymnasium calls info."""
    return jax.tree.map(np.asarray, tree)


def _space(shape: jax.ShapeDtypeStruct) -> gym.spaces.Box:
    if shape.dtype == np.uint8:
        return gym.spaces.Box(0, 255, shape.shape, np.uint8)
    return gym.spaces.Box(-np.inf, np.inf, shape.shape, np.float32)


for name, (options, limit) in IDS.items():
    gym.register(
        f"{name}-v0",
        "environments.point_env:PointEnv",
        max_episode_steps=limit,
        disable_env_checker=True,
        kwargs=options,
    )
