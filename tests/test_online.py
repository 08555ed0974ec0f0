"""Interaction: transitions of environments that end, and the ring buffer against a plain deque."""

from collections import deque

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from shared.data import Spec, env_task, unpack
from shared.online import LaneEnvs, init_buffer, insert, sample


class Counter(gym.Env):
    """Observation = steps since reset; terminates after `until` steps; reward = the action."""

    observation_space = gym.spaces.Box(-1000, 1000, (1,))
    action_space = gym.spaces.Box(-2, 2, (1,))

    def __init__(self, until: int = 3):
        self.until = until

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.float32([self.t]), {}

    def step(self, action):
        self.t += 1
        return np.float32([self.t]), float(action[0]), self.t == self.until, False, {}


def counter_task(until: int, limit: int):
    name = f"Counter{until}x{limit}-v0"
    if name not in gym.registry:
        gym.register(name, entry_point=lambda **k: Counter(until), max_episode_steps=limit)
    return env_task(name)


def rollout(until: int, limit: int, steps: int):
    envs = LaneEnvs(counter_task(until, limit), seeds=[0, 1])
    rows = [envs.step(np.full((2, 1), 0.5, np.float32)) for _ in range(steps)]
    batch = unpack(jnp.array(np.stack(rows)), envs.task.spec)
    return envs, jax.tree.map(lambda x: np.asarray(x)[:, 0].squeeze(), batch)


def test_a_terminal_step_keeps_its_own_next_observation_and_the_environment_starts_again():
    envs, batch = rollout(until=3, limit=100, steps=5)
    assert batch.obs.tolist() == [0, 1, 2, 0, 1] and batch.next_obs.tolist() == [1, 2, 3, 1, 2]
    assert batch.terminal.tolist() == [0, 0, 1, 0, 0]
    assert envs.pop_returns().tolist() == [3.0, 3.0]  # actions 0.5 are 1.0 in the environment's range
    assert np.isnan(envs.pop_returns()).all()


def test_a_time_limit_is_not_terminal():
    _, batch = rollout(until=100, limit=2, steps=4)
    assert batch.obs.tolist() == [0, 1, 0, 1] and batch.next_obs.tolist() == [1, 2, 1, 2]
    assert not batch.terminal.any()


def test_the_buffer_is_a_ring():
    spec = Spec((1,), 1, False, (-1.0,), (1.0,))
    buffer, plain = init_buffer(2, 4, spec, SingleDeviceSharding(jax.devices()[0])), deque(maxlen=4)
    for t in range(7):
        row = np.full((2, 5), t, np.float32) + np.float32([[0], [100]])
        buffer = insert(buffer, jnp.array(row))
        plain.append(t)
        seen = np.asarray(sample(buffer, jax.random.split(jax.random.key(t)), (200,)))
        assert seen.shape == (2, 200, 5)
        assert set(seen[0, :, 0]) == set(plain) and set(seen[1, :, 0]) == {100 + x for x in plain}
    assert int(buffer.inserted) == 7


def test_random_actions_are_each_lanes_own():
    task = counter_task(3, 100)
    both, alone = LaneEnvs(task, seeds=[4, 5]), LaneEnvs(task, seeds=[5])
    actions = np.stack([both.sample_actions() for _ in range(50)])
    assert np.array_equal(actions[:, 1:], np.stack([alone.sample_actions() for _ in range(50)]))
    assert np.abs(actions[:, 0] - actions[:, 1]).min() > 0 and np.abs(actions).max() <= 1
