"""CombinationLock-v0: the rich-observation combination lock, with discrete or continuous actions.

`Lock` holds it as functions of any number of locks at the same step, for algorithms that compile whole episodes;
they get it as `task.make_env().unwrapped.lock`.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from shared.transitions import Batch

BAD = 2
"""The latent state that is never left; 0 and 1 are good."""
LOGIT_LIMIT = 10.0
"""Continuous actions are clipped to [-LOGIT_LIMIT, LOGIT_LIMIT]: gymnasium's boxes must be bounded."""


class LockState(NamedTuple):
    """Any number of locks at the same step."""

    latent: jax.Array
    """[...] int32"""
    h: jax.Array
    """[] int32 in 0 .. H"""


@dataclasses.dataclass(frozen=True)
class Lock:
    """The combination lock of arXiv 2210.06718, section 6, and its continuous form of arXiv 2311.08384, section 5.

    Latent states are good (0, 1) or bad (2). In each good state of every step h, one action is correct: it leads to
    the same good state or, with probability `switch_prob`, to the other one; all others lead to the bad state for
    good. The correct action of the last step is rewarded with 1. A wrong one is rewarded with `anti_reward` with
    probability `anti_prob`: at the step that falls into the bad state (discrete), or at the last step in whatever
    state (continuous). The optimal return is 1.

    Observations are R (onehot(latent) + onehot(3 + h) + noise): R is a Hadamard matrix, and the noise is Gaussian in
    the first H + 3 entries. A `tabular` lock shows the latent state itself, onehot(latent) [3].
    """

    horizon: int = 100
    continuous: bool = False
    """Actions are logits [A]; the discrete action is drawn from softmax(action / temperature)."""
    tabular: bool = False
    """Observations are the latent state, which algorithms that keep tables need."""
    seed: int = 0
    """Of the correct actions."""
    num_actions: int = 10
    switch_prob: float = 0.5
    anti_reward: float = 0.1
    anti_prob: float = 0.5
    noise: float = 0.1
    temperature: float = 0.1

    @property
    def obs_dim(self) -> int:
        """The smallest power of two that holds a latent state and a step 0 .. H; the states of a tabular lock."""
        return BAD + 1 if self.tabular else 1 << (self.horizon + 3).bit_length()

    def correct(self) -> np.ndarray:
        """[H, 2] the correct action of each step in the good states."""
        return np.random.default_rng(self.seed).integers(self.num_actions, size=(self.horizon, 2))

    def rotation(self) -> np.ndarray:
        """[D, D] Hadamard matrix (Sylvester's)."""
        matrix = np.ones((1, 1), np.float32)
        while len(matrix) < self.obs_dim:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return matrix

    def reset(self, key: jax.Array, shape: tuple[int, ...] = ()) -> tuple[LockState, jax.Array]:
        """`shape` locks in a random good state: state and observations [..., D]."""
        latent_key, obs_key = jax.random.split(key)
        state = LockState(jax.random.randint(latent_key, shape, 0, 2), jnp.int32(0))
        return state, self.observe(state, obs_key)

    def step(self, state: LockState, action: jax.Array, key: jax.Array):
        """`action` [...], or [..., A] where continuous -> (state, obs [..., D], reward [...], terminal [])."""
        action_key, switch_key, reward_key, obs_key = jax.random.split(key, 4)
        latent, h = state
        if self.continuous:
            logits = jnp.clip(action, -LOGIT_LIMIT, LOGIT_LIMIT) / self.temperature
            action = jax.random.categorical(action_key, logits)
        right = (latent != BAD) & (action == jnp.asarray(self.correct())[h][jnp.minimum(latent, 1)])
        switch = jax.random.bernoulli(switch_key, self.switch_prob, latent.shape)
        new = jnp.where(right, jnp.where(switch, 1 - latent, latent), BAD)
        anti = self.anti_reward * jax.random.bernoulli(reward_key, self.anti_prob, latent.shape)
        last = h == self.horizon - 1
        if self.continuous:
            reward = jnp.where(last, jnp.where(right, 1.0, anti), 0.0)
        else:
            reward = jnp.where(right, jnp.float32(last), jnp.where(latent == BAD, 0.0, anti))
        state = LockState(new, h + 1)
        return state, self.observe(state, obs_key), reward, last

    def observe(self, state: LockState, key: jax.Array) -> jax.Array:
        """[..., D]"""
        if self.tabular:
            return jax.nn.one_hot(state.latent, BAD + 1)
        entry = jnp.arange(self.obs_dim)
        clean = jnp.float32(state.latent[..., None] == entry) + (entry == BAD + 1 + state.h)
        noise = self.noise * jax.random.normal(key, clean.shape)
        return (clean + jnp.where(entry < self.horizon + 3, noise, 0.0)) @ self.rotation()

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transitions [H, S, A, S], expected rewards [H, S, A] and first states [S] of the discrete lock, S = 3."""
        right = self.correct()[..., None] == np.arange(self.num_actions)
        right = np.concatenate([right, np.zeros_like(right[:, :1])], axis=1)
        stay, bad = np.eye(BAD + 1), np.eye(BAD + 1)[BAD]
        follow = (1 - self.switch_prob) * stay + self.switch_prob * stay[[1, 0, BAD]]
        transition = np.where(right[..., None], follow[None, :, None], bad)
        last = np.arange(self.horizon)[:, None, None] == self.horizon - 1
        wrong = self.anti_reward * self.anti_prob * (np.arange(BAD + 1) != BAD)[None, :, None]
        return transition, np.where(right, last * 1.0, wrong), np.array([0.5, 0.5, 0.0])

    def good(self, state: LockState) -> jax.Array:
        """[...] bool, whether the reward of 1 can still be reached."""
        return state.latent != BAD

    def optimal_action(self, state: LockState) -> jax.Array:
        """The correct actions [...] (any in the bad state); where continuous, their one-hot vectors [..., A]."""
        action = jnp.asarray(self.correct())[state.h][jnp.minimum(state.latent, 1)]
        return jax.nn.one_hot(action, self.num_actions) if self.continuous else action

    def random_action(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform actions [...]; where continuous, uniform vectors [..., A] in [0, 1]."""
        if self.continuous:
            return jax.random.uniform(key, (*shape, self.num_actions))
        return jax.random.randint(key, shape, 0, self.num_actions)

    @partial(jax.jit, static_argnames=("self", "episodes", "quality"))
    def offline_data(self, key: jax.Array, episodes: int, quality: str) -> Batch:
        """Offline transitions [H, episodes, ...] (obs, action, reward, next_obs).

        `quality`: "trajectory": episodes of the optimal policy with random actions at a rate of 1/H and, in the
        discrete lock, at step H // 2 (as either paper's); "occupancy": states of the optimal policy, each with a
        random action that the episode does not follow; "random": episodes of random actions.
        """

        def step(carry, key):
            state, obs = carry
            random_key, choice_key, step_key, next_key = jax.random.split(key, 4)
            best, random = self.optimal_action(state), self.random_action(random_key, (episodes,))
            explores = jax.random.bernoulli(choice_key, 1.0 / self.horizon, (episodes,))
            explores |= (state.h == self.horizon // 2) & (not self.continuous) | (quality != "trajectory")
            action = jnp.where(explores.reshape(-1, *(1,) * (best.ndim - 1)), random, best)
            new, next_obs, reward, _ = self.step(state, action, step_key)
            follow = self.step(state, best, next_key)[:2] if quality == "occupancy" else (new, next_obs)
            return follow, Batch(obs=obs, action=action, reward=reward, next_obs=next_obs)

        first_key, key = jax.random.split(key)
        first = self.reset(first_key, (episodes,))
        return jax.lax.scan(step, first, jax.random.split(key, self.horizon))[1]


class CombinationLock(gym.Env):
    """One lock. Its observation [D + 1] ends with the step h, which a policy of a finite horizon is given."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None, **lock):
        """`lock`: fields of `Lock`."""
        self.lock = Lock(**lock)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self.lock.obs_dim + 1,), np.float32)
        logits = gym.spaces.Box(-LOGIT_LIMIT, LOGIT_LIMIT, (self.lock.num_actions,), np.float32)
        self.action_space = logits if self.lock.continuous else gym.spaces.Discrete(self.lock.num_actions)
        self._cpu = jax.local_devices(backend="cpu")[0]

    def reset(self, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        with jax.default_device(self._cpu):
            self._key = jax.random.key(int(self.np_random.integers(2**31)))
            self._state, obs = _reset(self.lock, self._key)
        return self._observation(obs), {}

    def step(self, action):
        with jax.default_device(self._cpu):
            self._state, obs, reward, terminal = _step(self.lock, self._state, np.asarray(action), self._key)
        return self._observation(obs), float(reward), bool(terminal), False, {}

    def _observation(self, obs: jax.Array) -> np.ndarray:
        return np.append(np.asarray(obs), np.float32(self._state.h))


@partial(jax.jit, static_argnames="lock")
def _reset(lock: Lock, key: jax.Array):
    return lock.reset(jax.random.fold_in(key, lock.horizon))


@partial(jax.jit, static_argnames="lock")
def _step(lock: Lock, state: LockState, action: jax.Array, key: jax.Array):
    return lock.step(state, action, jax.random.fold_in(key, state.h))


gym.register("CombinationLock-v0", f"{__name__}:CombinationLock", disable_env_checker=True)
