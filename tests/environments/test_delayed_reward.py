"""Rewards that are paid at the end: the same episodes, the same returns."""

import gymnasium as gym
import make  # of datasets/
import numpy as np

from shared.data import load_dataset


def test_an_episode_pays_its_return_at_its_end():
    plain, delayed = gym.make("Pendulum-v1"), gym.make("DelayedReward-v0", env="Pendulum-v1")
    for seed in (3, 4):
        obs = [env.reset(seed=seed)[0] for env in (plain, delayed)]
        np.testing.assert_array_equal(*obs)
        total, over, t = 0.0, False, 0
        while not over:
            action = np.float32([np.sin(t)])
            (a, reward, *_), (b, paid, _, over, _) = plain.step(action), delayed.step(action)
            np.testing.assert_array_equal(a, b)
            total, t = total + reward, t + 1
            assert over or paid == 0.0
        assert t == 200
        np.testing.assert_allclose(paid, total)


def test_the_data_is_that_of_the_plain_recipe_with_its_rewards_at_the_ends():
    for name in ("pendulum-mixed", "pendulum-mixed-delayed"):
        make.make(name, steps=1000)
    plain, delayed = load_dataset("pendulum-mixed"), load_dataset("pendulum-mixed-delayed")
    for name in ("obs", "action", "next_obs", "terminal", "last"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(delayed, name))
    assert not delayed.reward[~delayed.last].any()
    np.testing.assert_allclose(delayed.reward[delayed.last], plain.episode_returns(), rtol=1e-5)
    assert delayed.task.env_spec.id == "DelayedReward-v0"
    assert delayed.task.reference["min"] == plain.task.reference["min"]
