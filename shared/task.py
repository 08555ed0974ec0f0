"""Tasks: what a policy is evaluated in, how its returns become scores; environments of gymnasium and in JAX."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import WrapperSpec

from shared.errors import ROOT, InputError, environment_fails, files_for, first_line, nearest, slugify
from shared.names import is_ogbench, misfit, ogbench_env, ogbench_variants, standard_name
from shared.spaces import flat_obs_shape, flatten_goal_obs, flatten_obs, less, without

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
    action_shape: tuple[int, ...] = ()
    """Of the environment's action, where it is no vector; networks have it laid flat."""
    action_start: int = 0
    """Discrete: the environment's number of action 0."""
    goal_shape: tuple[int, ...] = ()
    """Of a goal, where policies are given one (`shared.goals`)."""

    @property
    def images(self) -> bool:
        """Whether observations are images [H, W, C] uint8."""
        return len(self.obs_shape) == 3


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
    """Returns worth 0 and 100: {min, max, episodes, source}; of: "success" where an episode's success is counted."""
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)
    """Returns to show beside a result: the dataset's mean and best episode."""
    options: dict = dataclasses.field(default_factory=dict)
    """Options of `load_dataset` that change the problem."""
    env_module: str = ""
    """The module that registers the environment, where one was named."""
    data: dict = dataclasses.field(default_factory=dict)
    """What was understood of the dataset when it was loaded; see `shared.fields.summary`."""
    tasks: tuple[int, ...] = ()
    """Numbers of the environment's tasks that are evaluated, each with its start and goal; empty: its own resets."""
    left_out: tuple[str, ...] = ()
    """Fields of the environment's observations that the data says nothing by."""

    def make_env(self, **kwargs) -> gym.Env:
        """The evaluation environment (with its time limit)."""
        return made(self.env_spec, **kwargs)

    def capped(self, steps: int = 0) -> "Task":
        """This task with episodes of at most `steps`; 0: of MAX_EPISODE_STEPS where the environment has no limit."""
        if self.env_spec is None or not steps and self.env_spec.max_episode_steps:
            return self
        limit = min(steps or MAX_EPISODE_STEPS, self.env_spec.max_episode_steps or np.inf)
        return dataclasses.replace(self, env_spec=dataclasses.replace(self.env_spec, max_episode_steps=limit))

    @cached_property
    def obs_space(self) -> gym.Space:
        """The environment's own space of observations, of what is seen of them."""
        env = self.make_env()
        env.close()
        return without(env.observation_space, self.left_out)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what `observe` returns for one observation."""
        *lead, size = self.spec.obs_shape
        return (*lead, size + (self.spec.goal_shape[-1] if self.spec.goal_shape else 0))

    def reset_options(self, episode: int) -> dict | None:
        """What an environment is reset with: episode e is of task e mod their number."""
        return {"task_id": self.tasks[episode % len(self.tasks)]} if self.tasks else None

    def require(self, discrete: bool | None = None, images: bool = False) -> "Task":
        """This task, or InputError where its actions are of the other kind, or it has images and they are not asked."""
        if discrete is not None and discrete != self.spec.discrete:
            kinds = {True: "discrete", False: "continuous"}
            others = files_for(not discrete)
            names = ", ".join(others) if len(others) < 20 else "most files of algorithms/offline"
            raise InputError(
                f"This needs {kinds[discrete]} actions; those of '{self.id}' are {kinds[not discrete]}"
                + (f", for which there are {names}." if others else ".")
            )
        if self.spec.images and not images:
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
        env = made(env_spec)
        spec = space_spec(flat_obs_shape(without(env.observation_space, self.left_out)), env.action_space)
        env.close()
        if spec != self.spec:
            raise InputError(f"{env_id} has other observations or actions than '{self.id}'.")
        return dataclasses.replace(self, env_spec=env_spec)

    def observe(self, obs, xp=np) -> np.ndarray:
        """An environment's observation -> the network's input, computed by the module `xp` (numpy or jax.numpy).

        Where policies are given goals: the state, then the desired goal, along the last axis.
        """
        if self.spec.goal_shape:
            return flatten_goal_obs(obs, self.obs_space, xp)
        obs = flatten_obs(less(obs, self.left_out), self.obs_space if self.env_spec else None, xp)
        return obs if self.obs_mean is None else (obs - self.obs_mean) / self.obs_std

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in [-1, 1] (or discrete indices [...]) -> the environment's."""
        if self.spec.discrete:
            actions = actions.astype(np.int64) if isinstance(actions, np.ndarray) else actions
            return actions + self.spec.action_start if self.spec.action_start else actions
        low, high = np.float32(self.spec.action_low), np.float32(self.spec.action_high)
        actions = low + (actions.clip(-1.0, 1.0) + 1.0) * 0.5 * (high - low)
        return actions.reshape(*actions.shape[:-1], *self.spec.action_shape) if self.spec.action_shape else actions

    def training_reward(self, reward):
        """An environment's reward -> what is learned from: as `Dataset.scale_rewards` did with the data's."""
        return reward * self.options.get("reward_scale", 1.0) + self.options.get("reward_shift", 0.0)

    def own_reward(self, reward):
        """The environment's reward of one that is learned from: `training_reward` undone."""
        return (reward - self.options.get("reward_shift", 0.0)) / self.options.get("reward_scale", 1.0)

    @property
    def counts_successes(self) -> bool:
        """Whether an episode is scored by whether it succeeded, once, and not by its return."""
        return bool(self.reference) and self.reference.get("of") == "success"

    def score(self, returns: np.ndarray, success: np.ndarray | None = None) -> np.ndarray:
        """100 (R - min) / (max - min), NaN without a reference pair.

        Where successes are counted, R is `success`, 0 or 1; without it, whether the return shows a reward of 1.
        """
        if self.reference is None:
            return np.full(np.shape(returns), np.nan)
        if self.counts_successes:
            returns = np.clip(returns, 0.0, 1.0) if success is None else success
        low, high = self.reference["min"], self.reference["max"]
        return 100.0 * (np.asarray(returns) - low) / (high - low)

    def describe(self) -> dict:
        """As JSON: for run.json and checkpoints."""
        env = self.env_spec
        return {
            "id": self.id,
            "hash": self.hash,
            "env": env
            and {
                "id": env.id,
                "kwargs": env.kwargs,
                "max_episode_steps": env.max_episode_steps,
                **({"module": self.env_module} if self.env_module else {}),
                **(
                    {"wrappers": list(map(dataclasses.asdict, env.additional_wrappers))}
                    if env.additional_wrappers
                    else {}
                ),
            },
            "spec": self.spec._asdict(),
            "obs_mean": None if self.obs_mean is None else self.obs_mean.tolist(),
            "obs_std": None if self.obs_std is None else self.obs_std.tolist(),
            "reference": self.reference,
            "baselines": self.baselines,
            "options": self.options,
            "data": self.data,
            **({"tasks": list(self.tasks)} if self.tasks else {}),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }

    @classmethod
    def from_description(cls, d: dict) -> "Task":
        """What `describe` described."""
        arrays = {k: None if d[k] is None else np.float32(d[k]) for k in ("obs_mean", "obs_std")}
        env, module = d["env"], ""
        if env:
            module = env.get("module", "")
            name = f"{module}:{env['id']}" if module else env["id"]
            env = named_env(name, env["kwargs"], env["max_episode_steps"])[0]
            env = with_wrappers(env, d["env"].get("wrappers", []))
        spec = Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in d["spec"].items()})
        known = {k: d[k] for k in ("reference", "baselines", "options")}
        known |= {"env_module": module, "data": d.get("data", {})}
        known |= {name: tuple(d.get(name, ())) for name in ("tasks", "left_out")}
        return cls(d["id"], d["hash"], spec, env, **arrays, **known)


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
        for package in ("ogbench", "minigrid"):  # not of requirements.txt
            with contextlib.suppress(ImportError):
                importlib.import_module(package)
    if env_id not in gym.registry:
        raise InputError(
            f"Environment '{env_id}' is not registered; {nearest(env_id, gym.registry)} "
            "(--env module:id imports a module that registers one, --env none trains without)"
        )
    spec = dataclasses.replace(gym.spec(env_id))
    spec.kwargs = {**spec.kwargs, **(kwargs or {})}
    spec.max_episode_steps = max_episode_steps or spec.max_episode_steps
    return spec


WRAPPERS = re.compile(r"(gymnasium|gymnasium_robotics|minigrid|ogbench|environments|shared)[.:]")
"""Of the wrappers that a file names, those of these packages are made; nothing else is imported because it says so."""


def made(env_spec: gym.envs.registration.EnvSpec, **kwargs) -> gym.Env:
    """An environment, or InputError where it raises something, as at arguments that it does not know or lacks."""
    with environment_fails(env_spec.id, f"when it was made with {env_spec.kwargs}"):
        return gym.make(env_spec, **kwargs)


def with_wrappers(env_spec: gym.envs.registration.EnvSpec, wrappers: list[dict]) -> gym.envs.registration.EnvSpec:
    """`env_spec` behind `wrappers` {name, entry_point, kwargs}, the innermost first.

    Raises:
      InputError: one that is of another package, or that was stored without its arguments.
    """
    made = []
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        stored = wrapper if isinstance(wrapper, dict) else {}
        name, entry, kwargs = (stored.get(key) for key in ("name", "entry_point", "kwargs"))
        if not (WRAPPERS.match(str(entry)) and isinstance(kwargs, dict)):
            raise InputError(
                f"{env_spec.id} was recorded behind the wrapper {name or wrapper} ({entry}), which cannot be made from "
                "what is stored; name an environment of the same observations and actions with --env, or none."
            )
        made.append(WrapperSpec(str(name), entry, kwargs))
    return dataclasses.replace(env_spec, additional_wrappers=(*env_spec.additional_wrappers, *made))


def named_env(
    name: str, kwargs: dict | None = None, max_episode_steps: int | None = None
) -> tuple[gym.envs.registration.EnvSpec, str]:
    """The EnvSpec of an id that the user names, and the module to import first, if `name` is module:id.

    Raises:
      InputError: no such module, or it fails, or no such id.
    """
    module, _, env_id = name.rpartition(":")
    if module:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module raises when it is imported
            raise InputError(f"--env {name}: the module {module} cannot be imported ({first_line(error)}).") from None
    return registered_env(env_id, kwargs, max_episode_steps), module


def space_spec(obs_shape: tuple[int, ...], action_space: gym.Space) -> Spec:
    """Spec from an observation shape (flattened) and an action space."""
    if isinstance(action_space, gym.spaces.Discrete):
        return Spec(obs_shape, int(action_space.n), True, action_start=int(action_space.start))
    if not isinstance(action_space, gym.spaces.Box):
        raise InputError(f"The action space {action_space} is neither a box nor one discrete choice.")
    low, high = action_space.low.ravel(), action_space.high.ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise InputError(f"The action space {action_space} is unbounded or empty; actions must lie in a box.")
    shape = action_space.shape if len(action_space.shape) != 1 else ()
    return Spec(obs_shape, low.size, False, tuple(low.tolist()), tuple(high.tolist()), shape)


def env_task(env_id: str) -> Task:
    """The task of an environment without data (online algorithms)."""
    env_spec, module = named_env(env_id)
    env = made(env_spec)
    spec = space_spec(flat_obs_shape(env.observation_space), env.action_space)
    env.close()
    reference = reference_score(env_spec.id, env_spec.id)
    return Task(env_spec.id, "", spec, env_spec, reference=reference, env_module=module)


def recipes(root: Path = ROOT) -> dict[str, str]:
    """{name: environment id} of datasets/recipes.txt, and of the variants of OGBench's data."""
    path = root / "datasets" / "recipes.txt"
    return dict(_recipes_of(path.read_text() if path.exists() else ""))


@cache
def _recipes_of(text: str) -> dict[str, str]:
    listed = dict(line.split("\t")[:2] for line in text.splitlines() if line and not line.startswith("#"))
    theirs = [variant for name in listed if name.startswith("ogbench-") for variant in ogbench_variants(name)]
    return listed | {variant: ogbench_env(variant.removeprefix("ogbench-")) for variant in theirs}


def recipe_name(name: str) -> str | None:
    """The recipe that `name` or `local/<name>` means, if any: without a version (-v0, -v1, ...) the newest."""
    known, name = recipes(), name.removeprefix("local/")
    versions = [k for k in known if re.fullmatch(rf"{re.escape(name)}-v\d+", k)]
    newest = max(versions, key=lambda k: int(k.rpartition("-v")[2]), default=None)
    return next((k for k in (name, newest, name.removesuffix("-v0")) if k in known), None)


def recipe_id(recipe: str) -> str:
    """Minari's id of what a recipe makes: local/<recipe>, version 0 where its name has none."""
    return f"local/{recipe}" if re.search(r"-v\d+$", recipe) else f"local/{recipe}-v0"


def reference_score(dataset_id: str, env_id: str | None, facts: dict | None = None) -> dict | None:
    """{min, max, episodes, source} of datasets/reference_scores.json: by dataset, by D4RL's name, by environment.

    Names are found as whole words of the id. D4RL's data keeps D4RL's pair, which published scores are in, whatever
    environment it is evaluated in. Data that is made here has no pair of D4RL's, nor has OGBench's: there
    successes are counted ("of"), as in D4RL's AntMaze. `facts` of the data (obs_shape, actions, reward [low, high]):
    a pair found by the dataset's name must be for such data.
    """
    path = ROOT / "datasets" / "reference_scores.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    if is_ogbench(dataset_id):
        return {"min": 0.0, "max": 1.0, "episodes": 0, "of": "success", "source": "OGBench: the share of successes"}
    slug = f"-{standard_name(dataset_id)}-"
    by_name = [k for k in table if "/" not in k and f"-{slugify(k)}-" in slug]
    foreign = recipe_name(dataset_id) is None
    d4rl = [k for k in table if foreign and k.startswith("d4rl/") and f"-{k[5:]}-" in slug]
    by_name, d4rl = (max((k for k in keys if _is_for(k, facts)), key=len, default=None) for keys in (by_name, d4rl))
    for key in (by_name, d4rl, env_id):
        if key in table:
            return table[key]
    return None


def _is_for(key: str, facts: dict | None) -> bool:
    if facts is None:
        return True
    sparse = key == "d4rl/antmaze"  # a share of successes: rewards are 0 and 1
    return misfit(key, facts["obs_shape"], facts["actions"]) is None and not (
        sparse and (facts["reward"][0] < 0.0 or facts["reward"][1] > 1.0)
    )


def require_env(task: Task) -> Task:
    """`task`, or InputError where nothing can be interacted with."""
    if task.env_spec is None:
        raise InputError(f"'{task.id}' has no environment to interact with; give one with --env.")
    return task
