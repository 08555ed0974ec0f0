"""Point worlds as gymnasium environments."""

import gymnasium as gym
import jax
import numpy as np
import pytest
from environments.point import World
from environments.point_env import IDS
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from shared.task import env_task, flatten_obs, registered_env


@pytest.mark.parametrize("name", ["PointUMaze", "PointMediumGoals", "PointTeam", "PointPixels", "PointGrid"])
@pytest.mark.filterwarnings("ignore")
def test_gymnasium_accepts_the_environment(name):
    check_env(gym.make(f"{name}-v0", disable_env_checker=True).unwrapped, skip_close_check=True)


def test_every_id_is_a_world_with_a_time_limit():
    for name, (options, limit) in IDS.items():
        assert World(**options) and registered_env(f"{name}-v0").max_episode_steps == limit


def test_a_time_limit_truncates_and_the_goal_terminates():
    env = gym.make("PointWorld-v0", goal=(2.5, 1.5), start=(1.5, 1.5), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.float32([-1, 0]))[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]
    env.reset(seed=0)
    ends = [env.step(np.float32([1, 0])) for _ in range(2)]
    assert [(r, done, cut) for _, r, done, cut, _ in ends] == [(0.0, False, False), (1.0, True, False)]
    assert ends[1][4]["success"] and ends[1][4]["cost"] == 0.0
    env.reset(seed=0)
    assert [env.step(np.float32([0.4, 0]))[2:4] for _ in range(3)][-1] == (False, True)


def test_steps_are_the_functions_of_the_functional_environment():
    env = gym.make("PointUMazeGoals-v0").unwrapped
    obs, _ = env.reset(seed=3)
    rng, key = jax.random.split(jax.random.PRNGKey(3))
    f = env.func_env
    state = f.initial(rng)
    for t in range(4):
        jax.tree.map(np.testing.assert_array_equal, f.observation(state, rng), obs)
        action = np.random.default_rng(t).uniform(-1, 1, 2).astype(np.float32)
        rng, key = jax.random.split(key)
        new = f.transition(state, action, rng)
        obs, reward, terminated, _, info = env.step(action)
        assert reward == f.reward(state, action, new, rng) and terminated == f.terminal(new, rng)
        jax.tree.map(np.testing.assert_array_equal, f.transition_info(state, action, new), info)
        assert env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info) == reward
        state = new


def test_resets_take_starts_and_goals():
    env = gym.make("PointMediumGoals-v0")
    obs, _ = env.reset(seed=0, options={"start": (1.5, 1.5), "goal": (6.5, 1.25)})
    assert obs["achieved_goal"].tolist() == [1.5, 1.5] and obs["desired_goal"].tolist() == [6.5, 1.25]


def test_a_reward_of_several_objectives_is_a_vector():
    env = gym.make("PointTreasure-v0")
    env.reset(seed=0)
    reward, terminated = env.step(2)[1:3]
    assert reward.tolist() == [1.0, -1.0] and terminated and env.unwrapped.reward_space.shape == (2,)


def test_rewards_of_goals_are_those_of_many_goals_at_once():
    env = gym.make("PointWorld-v0", reward="sparse", observation="goal").unwrapped
    achieved, desired = np.float32([[[1, 1], [2, 2]]]), np.float32([[[1, 1.4], [4, 4]]])
    assert env.compute_reward(achieved, desired).tolist() == [[0.0, -1.0]]
    dense = gym.make("PointWorld-v0", reward="dense", observation="goal").unwrapped
    np.testing.assert_allclose(dense.compute_reward(achieved, desired), [[-0.4, -(8**0.5)]], rtol=1e-6)
    with pytest.raises(ValueError, match="goals alone"):
        gym.make("PointWorld-v0", reward="time").unwrapped.compute_reward(achieved, desired)


def test_pictures_are_drawn():
    env = gym.make("PointUMaze-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3) and env.render().dtype == np.uint8


def test_a_world_comes_back_from_what_a_dataset_says_about_it():
    spec = registered_env("PointWorld-v0", {"layout": "open", "wind": (0.1, 0.0), "reward": ("success", "time")})
    again = gym.make(EnvSpec.from_json(spec.to_json())).unwrapped.world
    assert again == World("open", wind=(0.1, 0.0), reward=("success", "time"))


def test_tasks_flatten_goals():
    task = env_task("PointUMazeGoals-v0")
    obs, _ = task.make_env().reset(seed=0)
    assert task.spec.obs_shape == (6,)
    np.testing.assert_array_equal(flatten_obs(obs)[2:4], obs["desired_goal"])
