"""The Bernoulli bandit and its data: which arm pays how often, and who chose it."""

import gymnasium as gym
import make  # of datasets/
import numpy as np
import pytest
from environments.unknown_arm import STEPS

from shared.data import load_dataset
from shared.jax_envs import jax_env
from shared.task import env_task


def test_each_arm_pays_as_often_as_it_says():
    env = gym.make("BernoulliBandit-v0", p=0.9)
    paid = np.zeros((2, 100))
    for arm in (0, 1):
        for seed in range(100):
            obs, _ = env.reset(seed=seed)
            assert obs.tolist() == [0.0]
            _, paid[arm, seed], terminated, truncated, _ = env.step(arm)
            assert terminated and paid[arm, seed] in (0.0, 1.0)
    np.testing.assert_allclose(paid.mean(1), [0.9, 0.1], atol=0.1)
    assert jax_env(env_task("BernoulliBandit-v0"))
    with pytest.raises(ValueError, match="probability"):
        gym.make("BernoulliBandit-v0", p=1.5)


@pytest.mark.long
def test_the_data_is_of_the_arms_and_shares_in_its_name():
    make.make("bandit-p80-good50", steps=500)
    data = load_dataset("bandit-p80-good50")
    good = data.action == 0
    assert len(data.obs) == 500 and data.terminal.all() and not data.obs.any()
    np.testing.assert_allclose(
        [good.mean(), data.reward[good].mean(), data.reward[~good].mean()], [0.5, 0.8, 0.2], atol=0.08
    )
    assert data.task.make_env().unwrapped.func_env.p == 0.8
    assert data.return_to_go().max() == 1.0


def test_the_unknown_arm_is_another_one_in_each_episode_and_the_data_has_none_of_it():
    env = gym.make("UnknownArm-v0")
    paid = {action: [] for action in (-1.0, 1.0)}
    for action, episodes in paid.items():
        for seed in range(30):
            env.reset(seed=seed)
            episodes.append([])
            truncated = False
            while not truncated:
                obs, reward, terminated, truncated, _ = env.step(np.float32([action]))
                episodes[-1].append(reward)
                assert -1.0 <= obs[0] <= 1.0 and not terminated
    known, unknown = (np.array(x) for x in paid.values())
    assert known.shape == (30, STEPS) and set(np.unique(known)) == {0.0, 1.0}
    np.testing.assert_allclose([known.mean(), unknown.mean()], 0.5, atol=0.15)
    assert known.mean(1).std() < 0.2 < unknown.mean(1).std()  # of a binomial 0.11, of one of a uniform rate 0.3
    assert jax_env(env_task("UnknownArm-v0"))
    make.make("bandit-unknown-arm", steps=50)
    data = load_dataset("bandit-unknown-arm")
    assert len(data.obs) == 50 and (data.action == -1.0).all() and not data.terminal.any() and data.obs.std() > 0.4
    assert {*data.reward.tolist()} == {0.0, 1.0}
