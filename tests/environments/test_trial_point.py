"""TrialPoint and its data: several tries at one hidden goal."""

import gymnasium as gym
import jax.numpy as jnp
import make  # of datasets/
import numpy as np
from environments.trial_point import State

from shared.data import load_dataset


def test_a_trial_is_four_tries_at_one_goal_that_is_not_seen():
    env = gym.make("TrialPoint-v0")
    obs, _ = env.reset(seed=3)
    goal, position, over = np.asarray(env.unwrapped.state.goal), np.zeros(2), False
    assert obs.tolist() == [0, 0] and goal[0] == 1 and 0 <= goal[1] <= 1.5
    for step in range(40):
        assert not over
        action = np.float32([0.5, 3.0])
        obs, reward, terminal, over, _ = env.step(action)
        position = position + 0.25 * np.array([0.5, 1.0])
        np.testing.assert_allclose(reward, -min(np.linalg.norm(position - goal), 0.75), rtol=1e-5)
        position = np.zeros(2) if step % 10 == 9 else position
        np.testing.assert_allclose(obs, position, atol=1e-6)
        assert not terminal
    assert over
    goals = np.stack([env.reset(seed=seed) and env.unwrapped.state.goal for seed in range(20)])
    assert len(set(goals[:, 1].tolist())) == 20 and goals[:, 1].min() < 0.5 and goals[:, 1].max() > 1.0


def test_the_last_reward_of_a_try_is_of_where_its_action_led():
    f = gym.make("TrialPoint-v0").unwrapped.func_env
    state = State(jnp.float32([0.5, 0.0]), jnp.float32([1.0, 0.0]), jnp.int32(9))
    new = f.transition(state, jnp.float32([1.0, 0.0]), None)
    assert new.position.tolist() == [0, 0] and int(new.step) == 10
    np.testing.assert_allclose(f.reward(state, jnp.float32([1.0, 0.0]), new, None), -0.25)


def test_of_each_trial_half_of_the_tries_are_better():
    make.make("trial-point-mixed", steps=1200)
    data = load_dataset("trial-point-mixed")
    assert len(data.starts()) == 30 and not data.terminal.any()
    tries = data.reward.reshape(30, 4, 10)
    assert (data.obs.reshape(30, 4, 10, 2)[:, :, 0] == 0).all()
    ranked = np.sort(tries.sum(2), 1)
    assert (ranked[:, 2:].mean(1) - ranked[:, :2].mean(1)).mean() > 1.5
    assert len(set(tries.sum(2).argmax(1).tolist())) == 4  # at different places
