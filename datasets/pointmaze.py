"""PointMaze by D4RL's scheme: a noisy waypoint controller chases one random goal after another.

Scheme: Fu et al., D4RL (arXiv 2004.07219), and Minari's D4RL/pointmaze sets. The ball is never put
back: when it reaches its goal the episode is cut there (truncated: the task goes on) and the next
one starts from the same place and speed with a new goal. Evaluation: one fixed goal per maze,
random starting cells, reward for as long as the ball stays.
"""

from collections import deque
from functools import partial

import gymnasium as gym
import numpy as np
from episodes import Act, Recipe, episode, play_returns, random_policy
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from shared.task import registered_env

GOAL_CELL = {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
"""Row and column of the goal in evaluation, as in Minari's sets."""
STEPS = {"umaze": 100_000, "medium": 200_000, "large": 200_000}
NOISE = 0.5
"""Standard deviation of the noise on the controller's actions, before the clip to [-1, 1]."""
POSITION_GAIN, VELOCITY_GAIN = 10.0, -1.0
WAYPOINT_RADIUS = 0.1
"""Distance (cells) at which a waypoint counts as passed."""


def recipe(name: str, env_id: str) -> Recipe:
    """`pointmaze-{umaze,medium,large}` or the same with `-dense`."""
    size = name.split("-")[1]
    eval_env = evaluation_env(env_id, GOAL_CELL[size])
    policies = {
        "random": random_policy,
        "expert": lambda env: waypoint_controller(env.unwrapped.maze),
    }
    return Recipe(
        env=collection_env(env_id),
        eval_env=eval_env,
        steps=STEPS[size],
        policy=f"waypoint PD controller on shortest paths, Gaussian action noise {NOISE}",
        collect=partial(collect, env_id),
        reference=name,
        expert="the waypoint controller without noise, in the evaluation environment",
        returns=lambda who, episodes: play_returns(eval_env, policies[who], episodes),
    )


def collection_env(env_id: str) -> EnvSpec:
    """The environment with a new random goal whenever one is reached."""
    return registered_env(env_id, {"continuing_task": True, "reset_target": True})


def evaluation_env(env_id: str, goal: tuple[int, int]) -> EnvSpec:
    """The environment with one goal cell ("g") and every other free cell a start ("r")."""
    maze_map = [["r" if cell == 0 else cell for cell in row] for row in registered_map(env_id)]
    maze_map[goal[0]][goal[1]] = "g"
    kwargs = {"maze_map": maze_map, "continuing_task": True, "reset_target": False}
    return registered_env(env_id, kwargs)


def registered_map(env_id: str) -> list[list[int]]:
    """The registered maze: rows of 1 (wall) and 0 (free)."""
    return registered_env(env_id).kwargs["maze_map"]


def shortest_path(maze_map: list[list], start: tuple, goal: tuple) -> list[tuple[int, int]]:
    """Cells after `start` up to `goal` along free cells (not 1), by breadth-first search."""
    came_from = {goal: goal}
    queue = deque([goal])
    while queue and start not in came_from:
        row, col = cell = queue.popleft()
        for near in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            if maze_map[near[0]][near[1]] != 1 and near not in came_from:
                came_from[near] = cell
                queue.append(near)
    path = [start]
    while path[-1] != goal:
        path.append(came_from[path[-1]])
    return path[1:]


def waypoint_controller(maze) -> Act:
    """Noise-free PD controller: through the cells' centres, then to the goal itself."""
    goal, waypoints = None, []

    def act(obs: dict) -> np.ndarray:
        nonlocal goal, waypoints
        position = obs["achieved_goal"]
        if goal is None or (obs["desired_goal"] != goal).any():
            goal = obs["desired_goal"].copy()
            cells = [tuple(maze.cell_xy_to_rowcol(xy)) for xy in (position, goal)]
            path = shortest_path(maze.maze_map, *cells)
            waypoints = [maze.cell_rowcol_to_xy(cell) for cell in path[:-1]] + [goal]
        while len(waypoints) > 1 and np.hypot(*(waypoints[0] - position)) <= WAYPOINT_RADIUS:
            waypoints.pop(0)
        velocity = obs["observation"][2:]
        action = POSITION_GAIN * (waypoints[0] - position) + VELOCITY_GAIN * velocity
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return act


def collect(env_id: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """One long run cut at every reached goal; after the environment's time limit it is reset."""
    spec = collection_env(env_id)
    env = gym.make(spec, disable_env_checker=True).unwrapped
    controller = waypoint_controller(env.maze)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    episodes, total = [], 0
    while total < steps:
        observations, actions, rewards, success = [obs], [], [], False
        while not success and len(actions) < min(spec.max_episode_steps, steps - total):
            noisy = controller(obs) + NOISE * rng.standard_normal(2)
            action = np.clip(noisy, -1.0, 1.0).astype(np.float32)
            obs, reward, _, _, info = env.step(action)
            success = info["success"]
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
        first = seed if not episodes else None
        episodes.append(episode(observations, actions, rewards, terminated=False, seed=first))
        total += len(actions)
        # The observation that reports a success still shows the goal that was reached.
        obs = {**obs, "desired_goal": env.goal.copy()} if success else env.reset()[0]
    return episodes
