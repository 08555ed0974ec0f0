"""Worlds of several objectives: their rewards by hand, and the preference that weighs them."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments.preferred import PeaksFunctional, PreferredFunctional, State

from shared.errors import InputError
from shared.jax_envs import begin_envs, of_objectives, require_jax_env, step_envs
from shared.task import env_task


def test_the_reward_is_the_preferences_sum_of_what_each_peak_gives():
    world = PreferredFunctional(PeaksFunctional(0.5), 2)
    state = State(jnp.float32([-1.0, 0.5]), jnp.float32([0.25, 0.75]))
    new = world.transition(state, jnp.float32([2.0, -1.0]), jax.random.key(0))
    np.testing.assert_allclose(new.inner, [-0.75, 0.25])
    peaks = np.exp(-np.array([0.25**2 + 0.25**2, 1.75**2 + 0.25**2]) / 0.5)
    np.testing.assert_allclose(world.transition_info(state, None, new)["objectives"], peaks, rtol=1e-6)
    np.testing.assert_allclose(world.reward(state, None, new, jax.random.key(0)), peaks @ [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(world.observation(state, None), [-1.0, 0.5, 0.25, 0.75])


def test_preferences_are_uniform_over_weights_that_sum_to_1():
    world = PreferredFunctional(PeaksFunctional(0.5), 2)
    states = jax.jit(jax.vmap(world.initial))(jax.random.split(jax.random.key(0), 2000))
    first, second = np.asarray(states.preference).T
    np.testing.assert_allclose(first + second, 1.0, rtol=1e-6)
    counts = np.histogram(first, 4, (0.0, 1.0))[0]
    assert counts.min() > 430 and counts.max() < 570
    assert np.abs(np.asarray(states.inner) - [0.0, -1.5]).max() <= 0.25


def test_treasures_pay_their_value_and_every_step_costs():
    env = gym.make("PreferredTreasure-v0")
    obs, _ = env.reset(seed=3)
    w = np.asarray(obs)[-2:]
    _, reward, terminated, *_ = env.step(2)  # down, to the first treasure
    assert terminated and obs.shape == (4,)
    np.testing.assert_allclose(reward, w @ [1.0, -1.0], rtol=1e-5)


def test_objectives_take_the_place_of_the_reward():
    env = of_objectives(require_jax_env(env_task("PreferredPeaks-v0")))
    state, obs = begin_envs(env, jax.random.key(0), 3)
    _, new, moved = step_envs(env, state, jnp.zeros((3, 2)), jax.random.key(1))
    place = np.asarray(obs)[:, None, :2]
    peaks = np.exp(-((place - np.array([[-1, 0], [1, 0]])) ** 2).sum(-1) / (2 * 0.7**2))
    np.testing.assert_allclose(moved.reward, peaks, rtol=1e-5)
    np.testing.assert_array_equal(obs, new)
    with pytest.raises(InputError, match="does not tell its objectives: 'objectives' of its transition_info is needed"):
        of_objectives(require_jax_env(env_task("phys2d/Pendulum-v0")))
