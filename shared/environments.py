"""Environments of this collection; importing the module registers them with gymnasium.

CombinationLock-v0: the rich-observation combination lock, with discrete or continuous actions.
changed_physics: a task with other gravity or friction, or noise on its actions.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.envs.registration import WrapperSpec

from shared.errors import InputError
from shared.formats import content_hash
from shared.task import Task, registered_env, space_spec
from shared.transitions import Batch

# ------------------------------------------------------------------------------ combination lock

BAD = 2
"""The latent state that is never left; 0 and 1 are good."""
LOGIT_LIMIT = 10.0
"""Continuous actions are clipped to [-LOGIT_LIMIT, LOGIT_LIMIT]: gymnasium's boxes must be bounded."""


@dataclasses.dataclass(frozen=True)
class Lock:
    """The combination lock of arXiv 2210.06718, section 6, and its continuous form of arXiv 2311.08384, section 5.

    Latent states are good (0, 1) or bad (2). In each good state of every step h, one action is correct: it leads to
    the same good state or, with probability `switch_prob`, to the other one; all others lead to the bad state for
    good. The correct action of the last step is rewarded with 1. A wrong one is rewarded with `anti_reward` with
    probability `anti_prob`: at the step that falls into the bad state (discrete), or at the last step in whatever
    state (continuous). The optimal return is 1.

    Observations are R (onehot(latent) + onehot(3 + h) + noise): R is a Hadamard matrix, and the noise is Gaussian in
    the first H + 3 entries.
    """

    horizon: int = 100
    continuous: bool = False
    """Actions are logits [A]; the discrete action is drawn from softmax(action / temperature)."""
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
        """The smallest power of two that holds a latent state and a step 0 .. H."""
        return 1 << (self.horizon + 3).bit_length()

    def correct(self) -> np.ndarray:
        """[H, 2] the correct action of each step in the good states."""
        return np.random.default_rng(self.seed).integers(self.num_actions, size=(self.horizon, 2))

    def rotation(self) -> np.ndarray:
        """[D, D] Hadamard matrix (Sylvester's)."""
        matrix = np.ones((1, 1), np.float32)
        while len(matrix) < self.obs_dim:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return matrix


class LockState(NamedTuple):
    """Any number of locks at the same step."""

    latent: jax.Array
    """[...] int32"""
    h: jax.Array
    """[] int32 in 0 .. H"""


def lock_observe(lock: Lock, state: LockState, key: jax.Array) -> jax.Array:
    """[..., D]"""
    entry = jnp.arange(lock.obs_dim)
    clean = jnp.float32(state.latent[..., None] == entry) + (entry == BAD + 1 + state.h)
    noise = lock.noise * jax.random.normal(key, clean.shape)
    return (clean + jnp.where(entry < lock.horizon + 3, noise, 0.0)) @ lock.rotation()


def lock_reset(lock: Lock, key: jax.Array, shape: tuple[int, ...] = ()) -> tuple[LockState, jax.Array]:
    """`shape` locks in a random good state: state and observations [..., D]."""
    latent_key, obs_key = jax.random.split(key)
    state = LockState(jax.random.randint(latent_key, shape, 0, 2), jnp.int32(0))
    return state, lock_observe(lock, state, obs_key)


def lock_step(lock: Lock, state: LockState, action: jax.Array, key: jax.Array):
    """`action` [...], or [..., A] where continuous -> (state, obs [..., D], reward [...], terminal [])."""
    action_key, switch_key, reward_key, obs_key = jax.random.split(key, 4)
    latent, h = state
    if lock.continuous:
        logits = jnp.clip(action, -LOGIT_LIMIT, LOGIT_LIMIT) / lock.temperature
        action = jax.random.categorical(action_key, logits)
    right = (latent != BAD) & (action == jnp.asarray(lock.correct())[h][jnp.minimum(latent, 1)])
    switch = jax.random.bernoulli(switch_key, lock.switch_prob, latent.shape)
    new = jnp.where(right, jnp.where(switch, 1 - latent, latent), BAD)
    anti = lock.anti_reward * jax.random.bernoulli(reward_key, lock.anti_prob, latent.shape)
    last = h == lock.horizon - 1
    if lock.continuous:
        reward = jnp.where(last, jnp.where(right, 1.0, anti), 0.0)
    else:
        reward = jnp.where(right, jnp.float32(last), jnp.where(latent == BAD, 0.0, anti))
    state = LockState(new, h + 1)
    return state, lock_observe(lock, state, obs_key), reward, last


def lock_optimal(lock: Lock, state: LockState) -> jax.Array:
    """The correct actions [...] (any in the bad state); where continuous, their one-hot vectors [..., A]."""
    action = jnp.asarray(lock.correct())[state.h][jnp.minimum(state.latent, 1)]
    return jax.nn.one_hot(action, lock.num_actions) if lock.continuous else action


def lock_random(lock: Lock, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform actions [...]; where continuous, uniform vectors [..., A] in [0, 1]."""
    if lock.continuous:
        return jax.random.uniform(key, (*shape, lock.num_actions))
    return jax.random.randint(key, shape, 0, lock.num_actions)


@partial(jax.jit, static_argnames=("lock", "episodes", "quality"))
def lock_data(lock: Lock, key: jax.Array, episodes: int, quality: str) -> Batch:
    """Offline transitions [H, episodes, ...] (obs, action, reward, next_obs).

    `quality`: "trajectory": episodes of the optimal policy with random actions at a rate of 1/H and, in the discrete
    lock, at step H // 2 (as either paper's); "occupancy": states of the optimal policy, each with a random action
    that the episode does not follow; "random": episodes of random actions.
    """

    def step(carry, key):
        state, obs = carry
        random_key, choice_key, step_key, next_key = jax.random.split(key, 4)
        best, random = lock_optimal(lock, state), lock_random(lock, random_key, (episodes,))
        explores = jax.random.bernoulli(choice_key, 1.0 / lock.horizon, (episodes,))
        explores |= (state.h == lock.horizon // 2) & (not lock.continuous) | (quality != "trajectory")
        action = jnp.where(explores.reshape(-1, *(1,) * (best.ndim - 1)), random, best)
        new, next_obs, reward, _ = lock_step(lock, state, action, step_key)
        follow = lock_step(lock, state, best, next_key)[:2] if quality == "occupancy" else (new, next_obs)
        return follow, Batch(obs=obs, action=action, reward=reward, next_obs=next_obs)

    first_key, key = jax.random.split(key)
    first = lock_reset(lock, first_key, (episodes,))
    return jax.lax.scan(step, first, jax.random.split(key, lock.horizon))[1]


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
    return lock_reset(lock, jax.random.fold_in(key, lock.horizon))


@partial(jax.jit, static_argnames="lock")
def _step(lock: Lock, state: LockState, action: jax.Array, key: jax.Array):
    return lock_step(lock, state, action, jax.random.fold_in(key, state.h))


gym.register("CombinationLock-v0", CombinationLock, disable_env_checker=True)


def lock_task(lock: Lock, data: Batch, quality: str) -> Task:
    """What a policy of `lock` is evaluated in, where it learned from `data` (of `lock_data`)."""
    name = f"{'continuous-' * lock.continuous}combination-lock-h{lock.horizon}-{quality}"
    env_spec = registered_env("CombinationLock-v0", dataclasses.asdict(lock))
    space = gym.make(env_spec).action_space
    arrays = {n: np.asarray(x) for n, x in data._asdict().items() if x is not None}
    returns = arrays["reward"].sum(0)
    trajectories = {"dataset mean": float(returns.mean()), "dataset best episode": float(returns.max())}
    return Task(
        name,
        content_hash(arrays),
        space_spec((lock.obs_dim + 1,), space),
        env_spec,
        reference={"min": 0.0, "max": 1.0, "episodes": 0, "source": "no reward; the optimal return"},
        baselines={} if quality == "occupancy" else trajectories,
    )


# ------------------------------------------------------------------------------- changed physics


class ChangedPhysics(gym.Wrapper):
    """An environment with other gravity and friction, and with noise on its actions."""

    def __init__(self, env: gym.Env, gravity: float = 1.0, friction: float = 1.0, noise: float = 0.0):
        """`gravity`, `friction`: factors. `noise`: standard deviation on actions whose range is [-1, 1]."""
        super().__init__(env)
        self.noise, self.random = noise, np.random.default_rng(0)
        model = getattr(env.unwrapped, "model", None)
        if isinstance(model, mujoco.MjModel):
            model.opt.gravity *= gravity
            model.geom_friction *= friction
        elif env.spec.id.startswith("Pendulum") and friction == 1.0:
            env.unwrapped.g *= gravity
        elif (gravity, friction) != (1.0, 1.0):
            raise InputError(
                f"{env.spec.id} has no such physics; MuJoCo environments have both, Pendulum-v1 has gravity."
            )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:  # so that the noise of an episode is its seed's, as all else
            self.random = np.random.default_rng([seed, 1])
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        if self.noise > 0.0:
            space = self.action_space
            noise = self.noise * self.random.standard_normal(space.shape) * 0.5 * (space.high - space.low)
            action = np.clip(action + noise, space.low, space.high).astype(space.dtype)
        return self.env.step(action)


def changed_physics(task: Task, gravity: float = 1.0, friction: float = 1.0, noise: float = 0.0) -> Task:
    """`task` in an environment with `gravity` and `friction` times its own, and Gaussian `noise` on every action.

    Rewards, observations, time limit and the data's statistics stay the task's. Friction is that of all contacts
    (sliding, torsional, rolling); noisy actions are clipped to the action space.

    Raises:
      InputError: an environment without such physics (all but MuJoCo ones and Pendulum-v1), or discrete actions.
    """
    if task.env_spec is None:
        raise InputError(f"'{task.id}' has no environment to change; give one with --env.")
    if task.spec.discrete or not (friction >= 0.0 and noise >= 0.0):
        raise InputError(f"{task.env_spec.id}: noise needs continuous actions; noise and friction are at least 0.")
    kwargs = {"gravity": gravity, "friction": friction, "noise": noise}
    wrapper = WrapperSpec("ChangedPhysics", f"{__name__}:ChangedPhysics", kwargs)
    env_spec = dataclasses.replace(task.env_spec, additional_wrappers=(*task.env_spec.additional_wrappers, wrapper))
    changed = dataclasses.replace(task, id=f"{task.id} with {kwargs}", env_spec=env_spec)
    env = changed.make_env()  # says at once what cannot be changed
    env.close()
    if isinstance(env.unwrapped, FunctionalJaxEnv):  # compiled without its wrappers
        raise InputError(f"{task.env_spec.id} is written in JAX; its physics cannot be changed.")
    return changed
