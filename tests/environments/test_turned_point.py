"""TurnedPoint and its data: tasks that disagree, told by the observation."""

import dataclasses

import gymnasium as gym
import jax
import jax.numpy as jnp
import make  # of datasets/
import numpy as np
import pytest

from shared.data import load_dataset
from shared.env_models import exact_model
from shared.jax_envs import jax_env
from shared.task import env_task


def test_each_task_has_its_goal_and_its_meaning_of_actions():
    env = gym.make("TurnedPoint-v0", tasks=4)
    infos = env.unwrapped.task_infos
    np.testing.assert_allclose([task["goal"] for task in infos], [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-6)
    assert [task["sign"] for task in infos] == [1, -1, 1, -1]
    for number, task in enumerate(infos, 1):
        obs, _ = env.reset(seed=7, options={"task_id": number})
        assert obs[2:].tolist() == np.eye(4)[number - 1].tolist() and np.abs(obs[:2]).max() <= 0.25
        new, reward, over, *_ = env.step(np.float32([1.0, -3.0]))
        np.testing.assert_allclose(new[:2] - obs[:2], 0.25 * task["sign"] * np.array([1, -1]), atol=1e-6)
        np.testing.assert_allclose(reward, -np.linalg.norm(np.subtract(new[:2], task["goal"])), rtol=1e-5)
        assert not over
    seen = {int(np.argmax(env.reset(seed=seed)[0][2:])) for seed in range(30)}
    assert seen == {0, 1, 2, 3}  # drawn where no task is named
    for number in (0, 5):
        with pytest.raises(ValueError, match="there are 4"):
            env.reset(options={"task_id": number})
    with pytest.raises(ValueError, match="at least two"):
        gym.make("TurnedPoint-v0", tasks=1)


def test_the_state_is_read_off_an_observation_and_a_wind_is_not_told_by_it():
    still, windy = (exact_model(env_task(name)) for name in ("TurnedPoint-v0", "WindyPoint-v0"))
    obs, action = np.float32([[0.5, -0.25, *np.eye(8)[3]]]), np.float32([[1.0, 0.5]])
    new, reward, terminal = still(obs, action, jax.random.key(0))
    np.testing.assert_allclose(new[0], [0.25, -0.375, *np.eye(8)[3]], atol=1e-6)  # task 4 turns actions round
    goal = [np.cos(0.75 * np.pi), np.sin(0.75 * np.pi)]
    np.testing.assert_allclose(reward, [-np.linalg.norm(np.array([0.25, -0.375]) - goal)], rtol=1e-5)
    np.testing.assert_allclose(windy(obs, action, jax.random.key(0))[0] - new, [[0.15, -0.1, *[0] * 8]], atol=1e-6)
    assert not terminal.any()


def test_the_compiled_environment_begins_in_the_task_it_is_given():
    env = jax_env(dataclasses.replace(env_task("TurnedPoint-v0"), tasks=(3, 8)))
    keys = jax.random.split(jax.random.key(0), 2)
    for i, task in enumerate((2, 7)):
        _, obs = env.reset(keys, jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], env.task_params))
        assert int(obs[2:].argmax()) == task


def test_the_data_has_good_and_random_episodes_of_every_task():
    make.make("turned-point-mixed", steps=480)
    data = load_dataset("turned-point-mixed")
    task, returns = data.obs[:, 2:].argmax(1), data.episode_returns()
    assert len(returns) == 32 and not data.terminal.any()
    np.testing.assert_array_equal(task.reshape(32, 15), np.tile(np.arange(8), 4)[:, None].repeat(15, 1))
    good = np.arange(32) // 8 % 2 == 0
    assert returns[good].min() > -5.0 and returns[~good].mean() < -10.0


def test_half_of_the_episodes_of_every_task_go_away_from_its_goal():
    make.make("turned-point-against", steps=480)
    data = load_dataset("turned-point-against")
    returns = data.episode_returns()
    good = np.arange(32) // 8 % 2 == 0
    assert len(returns) == 32 and returns[good].min() > -5.0 and returns[~good].max() < -30.0
