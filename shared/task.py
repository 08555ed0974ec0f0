"""Tasks: what a policy is evaluated in, how its returns become scores; environments of gymnasium and in JAX."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from shared.errors import ROOT, InputError, nearest, slugify

MAX_EPISODE_STEPS = 10_000
"""Of an episode where the environment has no time limit."""


class Spec(NamedTuple):
    """What networks need to know; hashable, so that it can be static under jit."""

    obs_shape: tuple[int, ...]
    action_dim: int
    """Continuous: dimensions. Discrete: number of actions."""
    discrete: bool
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What a policy is evaluated in, and how its returns become scores.

    Actions are in [-1, 1] inside every algorithm and rescaled to the environment's range here;
    observations are normalised here with the statistics the data was normalised with.
    """

    id: str
    hash: str
    spec: Spec
    env_spec: gym.envs.registration.EnvSpec | None = None
    obs_mean: np.ndarray | None = None
    obs_std: np.ndarray | None = None
    reference: dict | None = None
    """Returns worth 0 and 100: {min, max, episodes, source}."""
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)
    """Returns to show beside a result: the dataset's mean and best episode."""
    options: dict = dataclasses.field(default_factory=dict)
    """Options of `load_dataset` that change the problem."""

    def make_env(self, **kwargs) -> gym.Env:
        """The evaluation environment (with its time limit)."""
        return gym.make(self.env_spec, **kwargs)

    def capped(self, steps: int = 0) -> "Task":
        """This task with episodes of at most `steps`; 0: of MAX_EPISODE_STEPS where the environment has no limit."""
        if self.env_spec is None or not steps and self.env_spec.max_episode_steps:
            return self
        limit = min(steps or MAX_EPISODE_STEPS, self.env_spec.max_episode_steps or np.inf)
        return dataclasses.replace(self, env_spec=dataclasses.replace(self.env_spec, max_episode_steps=limit))

    def require(self, discrete: bool | None = None) -> "Task":
        """This task, or InputError where its actions are of the other kind or it has images."""
        if discrete is not None and discrete != self.spec.discrete:
            kinds = {True: "discrete", False: "continuous"}
            raise InputError(f"This needs {kinds[discrete]} actions; those of '{self.id}' are {kinds[not discrete]}.")
        if len(self.spec.obs_shape) != 1:
            raise InputError(f"'{self.id}' has image observations; this needs vectors.")
        return self

    def in_env(self, env_id: str, **kwargs) -> "Task":
        """This task in another environment of the same observations and actions, with this one's time limit.

        Raises:
          InputError: there is no environment here, no such id, or its observations or actions are others.
        """
        if self.env_spec is None:
            raise InputError(f"'{self.id}' has no environment to change; give one with --env.")
        env_spec = registered_env(env_id, kwargs, self.env_spec.max_episode_steps)
        env = gym.make(env_spec)
        spec = space_spec(flat_obs_shape(env.observation_space), env.action_space)
        env.close()
        if spec != self.spec:
            raise InputError(f"{env_id} has other observations or actions than '{self.id}'.")
        return dataclasses.replace(self, env_spec=env_spec)

    def observe(self, obs, xp=np) -> np.ndarray:
        """An environment's observation -> the network's input, computed by the module `xp` (numpy or jax.numpy)."""
        obs = flatten_obs(obs, xp)
        return obs if self.obs_mean is None else (obs - self.obs_mean) / self.obs_std

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in [-1, 1] (or discrete indices [...]) -> the environment's."""
        if self.spec.discrete:
            return actions.astype(np.int64) if isinstance(actions, np.ndarray) else actions
        low, high = np.float32(self.spec.action_low), np.float32(self.spec.action_high)
        return low + (actions.clip(-1.0, 1.0) + 1.0) * 0.5 * (high - low)

    def training_reward(self, reward):
        """An environment's reward -> what is learned from: as `Dataset.scale_rewards` did with the data's."""
        return reward * self.options.get("reward_scale", 1.0) + self.options.get("reward_shift", 0.0)

    def score(self, returns: np.ndarray) -> np.ndarray:
        """100 (R - min) / (max - min), NaN without a reference pair."""
        if self.reference is None:
            return np.full(np.shape(returns), np.nan)
        low, high = self.reference["min"], self.reference["max"]
        return 100.0 * (np.asarray(returns) - low) / (high - low)

    def describe(self) -> dict:
        """As JSON: for run.json and checkpoints."""
        env = self.env_spec
        return {
            "id": self.id,
            "hash": self.hash,
            "env": env and {"id": env.id, "kwargs": env.kwargs, "max_episode_steps": env.max_episode_steps},
            "spec": self.spec._asdict(),
            "obs_mean": None if self.obs_mean is None else self.obs_mean.tolist(),
            "obs_std": None if self.obs_std is None else self.obs_std.tolist(),
            "reference": self.reference,
            "baselines": self.baselines,
            "options": self.options,
        }

    @classmethod
    def from_description(cls, d: dict) -> "Task":
        """What `describe` described."""
        arrays = {k: None if d[k] is None else np.float32(d[k]) for k in ("obs_mean", "obs_std")}
        env = d["env"] and registered_env(d["env"]["id"], d["env"]["kwargs"], d["env"]["max_episode_steps"])
        spec = Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in d["spec"].items()})
        return cls(d["id"], d["hash"], spec, env, **arrays, **{k: d[k] for k in ("reference", "baselines", "options")})


OBS_ORDER = ("observation", "desired_goal", "achieved_goal")


def flatten_obs(obs, xp=np) -> np.ndarray:
    """Dictionaries are concatenated: observation, desired_goal, achieved_goal, then by name.

    Images (uint8, three axes) stay as they are; everything else becomes float32 [..., O].
    """
    if isinstance(obs, dict):
        names = [k for k in OBS_ORDER if k in obs] + sorted(obs.keys() - set(OBS_ORDER))
        return xp.concatenate([flatten_obs(obs[k], xp) for k in names], axis=-1)
    if isinstance(obs, tuple):
        return xp.concatenate([flatten_obs(o, xp) for o in obs], axis=-1)
    obs = xp.asarray(obs)
    if obs.dtype == np.uint8 and obs.ndim >= 3:
        return obs
    return obs.astype(np.float32) if obs.ndim else obs.astype(np.float32)[None]


def flat_obs_shape(space: gym.Space) -> tuple[int, ...]:
    """Shape of `flatten_obs` of one observation of `space`."""
    return flatten_obs(space.sample()).shape


PLUGINS = ("environments", "gymnasium_robotics")
"""Modules that register ids when they are imported; the first is datasets/environments."""
sys.path.append(str(ROOT / "datasets"))


def registered_env(env_id: str, kwargs: dict | None = None, max_episode_steps: int | None = None):
    """The EnvSpec of a registered id; nothing else is ever made, whatever a file says."""
    if not isinstance(env_id, str):
        raise InputError(f"{str(env_id)[:80]!r} is no environment's id.")
    for plugin in PLUGINS:
        if env_id not in gym.registry:
            importlib.import_module(plugin)
    if env_id not in gym.registry:
        raise InputError(f"Environment '{env_id}' is not registered; {nearest(env_id, gym.registry)}")
    spec = dataclasses.replace(gym.spec(env_id))
    spec.kwargs = {**spec.kwargs, **(kwargs or {})}
    spec.max_episode_steps = max_episode_steps or spec.max_episode_steps
    return spec


def space_spec(obs_shape: tuple[int, ...], action_space: gym.Space) -> Spec:
    """Spec from an observation shape (flattened) and an action space."""
    if isinstance(action_space, gym.spaces.Discrete):
        return Spec(obs_shape, int(action_space.n), True)
    if not isinstance(action_space, gym.spaces.Box):
        raise InputError(f"The action space {action_space} is neither a box nor one discrete choice.")
    low, high = action_space.low.ravel(), action_space.high.ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise InputError(f"The action space {action_space} is unbounded or empty; actions must lie in a box.")
    return Spec(obs_shape, low.size, False, tuple(low.tolist()), tuple(high.tolist()))


def env_task(env_id: str) -> Task:
    """The task of an environment without data (online algorithms)."""
    env_spec = registered_env(env_id)
    env = gym.make(env_spec)
    spec = space_spec(flat_obs_shape(env.observation_space), env.action_space)
    env.close()
    return Task(env_id, "", spec, env_spec, reference=reference_score(env_id, env_id))


def recipes() -> dict[str, str]:
    """{name: environment id} of datasets/recipes.txt."""
    path = ROOT / "datasets" / "recipes.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("\t")[:2] for line in lines if line and not line.startswith("#"))


def reference_score(dataset_id: str, env_id: str | None) -> dict | None:
    """{min, max, episodes, source} of datasets/reference_scores.json: by dataset, by environment, by D4RL's name.

    Names are found as whole words of the id. Data that is made here has no pair of D4RL's.
    """
    path = ROOT / "datasets" / "reference_scores.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    slug = f"-{slugify(dataset_id)}-"
    by_name = [k for k in table if "/" not in k and f"-{slugify(k)}-" in slug]
    d4rl = [k for k in table if k.startswith("d4rl/") and f"-{k[5:]}-" in slug and dataset_id not in recipes()]
    for key in (max(by_name, key=len, default=None), env_id, max(d4rl, key=len, default=None)):
        if key in table:
            return table[key]
    return None


def require_env(task: Task) -> Task:
    """`task`, or InputError where nothing can be interacted with."""
    if task.env_spec is None:
        raise InputError(f"'{task.id}' has no environment to interact with; give one with --env.")
    return task


# ----------------------------------------------------------------------- environments written in JAX


class JaxEnv(NamedTuple):
    """An environment as a pair of functions of arrays, of one environment."""

    reset: Callable
    """keys (2: of the state, of the observation) -> (state, obs [O])"""
    step: Callable
    """(state, action [A] in [-1, 1] or [], keys (4)) -> (state, obs [O], reward, terminal, truncated)

    The keys are of the transition, the observation, the reward and the end. The reward is the environment's own.
    """


PLAIN = (TimeLimit, OrderEnforcing, PassiveEnvChecker)
"""Wrappers that change nothing but the time limit, which is compiled, too."""


def jax_env(task: Task, env: gym.Env | None = None) -> JaxEnv | None:
    """The pair of a task whose environment is written in JAX (gymnasium's FuncEnv), else None.

    `env`: the task's, where it is made already.

    Raises:
      InputError: its reward is of several objectives.
    """
    env = env or task.make_env()
    while isinstance(env, PLAIN):
        env = env.env
    if not isinstance(env, FunctionalJaxEnv):
        return None
    if hasattr(env, "reward_space"):
        raise InputError(f"{task.env_spec.id} has a reward of several objectives; make it one number (weights).")
    f, limit = env.func_env, task.env_spec.max_episode_steps or np.inf

    def reset(keys):
        state = f.initial(keys[0])
        return (state, jnp.int32(0)), task.observe(f.observation(state, keys[1]), jnp)

    def step(state, action, keys):
        (old, t), action = state, task.to_env(action)
        new = f.transition(old, action, keys[0])
        obs = task.observe(f.observation(new, keys[1]), jnp)
        reward, terminal = f.reward(old, action, new, keys[2]), f.terminal(new, keys[3])
        return (new, t + 1), obs, jnp.float32(reward), jnp.bool_(terminal), t + 1 >= limit

    return JaxEnv(reset, step)
