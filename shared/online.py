"""Interaction: one environment per lane, stepped together, and the replay buffer on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.data import Spec, Task


class LaneEnvs:
    """One environment per lane. A finished one is reset at once; its true last observation is kept."""

    def __init__(self, task: Task, seeds: list[int]):
        """Environment of lane i is reset with `seeds[i]` once, and continues from its own stream."""
        self.task = task
        self.envs = [task.make_env() for _ in seeds]
        self.random = [np.random.default_rng(seed) for seed in seeds]
        self.obs = np.stack([task.observe(e.reset(seed=s)[0]) for e, s in zip(self.envs, seeds, strict=True)])
        self.returns = np.zeros(len(seeds))
        self.finished: list[list[float]] = [[] for _ in seeds]

    def sample_actions(self) -> np.ndarray:
        """[L, A] uniform in [-1, 1] (or [L] uniform action indices)."""
        spec = self.task.spec
        if spec.discrete:
            return np.array([r.integers(spec.action_dim) for r in self.random])
        return np.stack([r.uniform(-1, 1, spec.action_dim) for r in self.random]).astype(np.float32)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Steps every lane with `actions` [L, A]; returns the transitions as rows [L, D] (data.FIELDS)."""
        L = len(self.envs)
        actions = np.asarray(actions)[:L]
        env_actions = self.task.to_env(actions)
        obs, next_obs = self.obs, np.empty_like(self.obs)
        reward, terminal = np.zeros((L, 1), np.float32), np.zeros((L, 1), np.float32)
        self.obs = np.empty_like(obs)
        for i, env in enumerate(self.envs):
            new, r, terminated, truncated, _ = env.step(env_actions[i])
            next_obs[i] = self.task.observe(new)
            reward[i], terminal[i] = r, terminated
            self.returns[i] += r
            self.obs[i] = next_obs[i]
            if terminated or truncated:
                self.finished[i].append(self.returns[i])
                self.returns[i] = 0.0
                self.obs[i] = self.task.observe(env.reset()[0])
        return np.concatenate([obs, actions.reshape(L, -1), reward, terminal, next_obs], axis=1)

    def pop_returns(self) -> np.ndarray:
        """[L] mean return of the episodes finished since the last call (NaN: none)."""
        means = np.array([np.mean(f) if f else np.nan for f in self.finished])
        self.finished = [[] for _ in self.envs]
        return means


class Buffer(NamedTuple):
    """The replay buffers of all lanes: a ring."""

    rows: jax.Array
    """[L, capacity, D]"""
    inserted: jax.Array
    """Rows ever inserted, the same in every lane."""


def init_buffer(lanes: int, capacity: int, spec: Spec, sharding: jax.sharding.Sharding) -> Buffer:
    """Empty buffers, placed like the lanes they belong to."""
    width = 2 * spec.obs_shape[0] + (1 if spec.discrete else spec.action_dim) + 2
    return Buffer(jnp.zeros((lanes, capacity, width), device=sharding), jnp.int32(0))


def insert(buffer: Buffer, rows: jax.Array) -> Buffer:
    """One row [L, D] into every lane's buffer."""
    at = buffer.inserted % buffer.rows.shape[1]
    return Buffer(buffer.rows.at[:, at].set(rows), buffer.inserted + 1)


def sample(buffer: Buffer, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Rows [L, *shape, D], uniform over what each lane's buffer holds."""
    size = jnp.minimum(buffer.inserted, buffer.rows.shape[1])
    return jax.vmap(lambda rows, key: rows[jax.random.randint(key, shape, 0, size)])(buffer.rows, keys)
