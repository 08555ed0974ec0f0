"""The rainy road: its step by hand, what its data holds, and its scores."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import make
import numpy as np
import roads
from environments.rainy_road import RoadFunctional, State

from shared.data import load_dataset

ROAD = RoadFunctional()


def test_a_step_by_hand():
    """In rain 0.5 a speed of 0.4 loses 0.2 x 0.6 x 1.5 x 0.4 = 0.072; gusts have a standard deviation of 0.005."""
    state = State(jnp.float32(0.4), jnp.float32(0.5), jnp.float32(-0.2))
    keys = jax.random.split(jax.random.key(0), 400)
    new = jax.jit(jax.vmap(lambda key: ROAD.transition(state, jnp.float32([0.3, 0.8]), key)))(keys)
    gust = np.asarray(new.speed) - (0.4 + 0.2 * 0.3 - 0.072)
    assert abs(gust.mean()) < 0.001 and 0.004 < gust.std() < 0.006
    np.testing.assert_allclose(new.blade, -0.2 + 0.3 * 1.0, rtol=1e-6)
    np.testing.assert_array_equal(new.rain, 0.5)
    assert ROAD.reward(state, None, State(0.2, 0.5, 0.0), None) == -0.3
    assert not ROAD.terminal(state, None)
    for field, read in zip(state, ROAD.state_of(ROAD.observation(state, None)), strict=True):
        assert field == read


def test_the_wiper_does_not_brake():
    state, key = State(jnp.float32(0.4), jnp.float32(0.5), jnp.float32(0.0)), jax.random.key(0)
    speeds = [ROAD.transition(state, jnp.float32([0.3, wiper]), key).speed for wiper in (-1.0, 1.0)]
    assert speeds[0] == speeds[1]


def test_drivers_wipe_as_hard_as_it_rains_or_at_random():
    for kind, low, high in (("habit", 0.95, 1.0), ("free", -0.2, 0.2)):
        make.make(f"road-{kind}", steps=500)
        data = load_dataset(f"road-{kind}")
        assert len(data.obs) == 500 and not data.terminal.any() and data.last.sum() == 10
        assert low < np.corrcoef(data.obs[:, 1], data.action[:, 1])[0, 1] <= high
        speed = data.obs[:, 0].reshape(10, 50)[:, 10:].mean(1)
        assert 0.05 < speed.min() < 0.3 and 0.5 < speed.max() < 0.75  # from far too slow to too fast
        np.testing.assert_allclose(data.reward, -np.abs(data.next_obs[:, 0] - 0.5), atol=1e-6)


def test_the_driver_keeps_the_speed_that_is_asked_for():
    env = gym.make("RainyRoad-v0")
    obs, _ = env.reset(seed=0)
    rewards, truncated = [], False
    while not truncated:
        obs, reward, terminated, truncated, _ = env.step(roads.driver(np.asarray(obs), 0.5))
        rewards.append(reward)
        assert not terminated
    assert len(rewards) == 50 and min(rewards[5:]) > -0.03
