"""Do a dataset's arrays, its spaces and its environment agree? What is only guessed gives way; all else is refused."""

import importlib.util
from functools import cache, partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec

from shared.errors import InputError, environment_fails
from shared.jax_envs import JaxEnv, jax_env
from shared.names import FAMILIES, family_of, is_ogbench, misfit, ogbench_env
from shared.spaces import flat_obs_shape, without
from shared.task import Spec, Task, made, registered_env, space_spec, with_wrappers


def stored_env(meta: dict) -> EnvSpec:
    """The environment that a dataset's metadata names, with its wrappers.

    Raises:
      InputError: it is not registered, or a wrapper cannot be made.
    """
    env_spec = registered_env(meta["env"], meta.get("env_kwargs"), meta.get("max_episode_steps"))
    return with_wrappers(env_spec, meta.get("wrappers") or [])


def facts(arrays: dict, meta: dict) -> dict:
    """What a word of a dataset's name is compared with: obs_shape, actions (size, or number), reward [low, high]."""
    obs, action, reward = arrays["obs"], arrays["action"], arrays["reward"]
    if action.size == len(action) and np.issubdtype(action.dtype, np.integer):
        actions = meta.get("actions") or max(int(action.max()), 0) + 1
    else:
        actions = meta.get("actions") or action[0].size
    return {
        "obs_shape": obs.shape[1:] if _is_image(obs) else (obs[0].size,),
        "actions": actions,
        "reward": [float(reward.min()), float(reward.max())],
    }


def guessed_env(name: str, arrays: dict, notes: list[str]) -> EnvSpec | None:
    """Of a file that names none, by the words of its name and the sizes of its arrays; `notes` tells of it."""
    obs, shape, actions = arrays["obs"], *(facts(arrays, {})[key] for key in ("obs_shape", "actions"))
    if is_ogbench(name):
        return _of_ogbench(name, shape, notes)
    family = family_of(name)
    if family is None or not FAMILIES[family].envs:
        return None
    if (why := misfit(name, shape, actions)) is None:
        for env_id, kwargs in FAMILIES[family].envs:
            if "use_contact_forces" in kwargs and not obs[:, 27:].any():
                why = "its contact forces are all zero (as D4RL's), those of Ant-v4 are not"
                continue
            if _obs_shape(env_id, **kwargs) == shape:
                with_kwargs = f" with {kwargs}" if kwargs else ""
                notes.append(f"environment {env_id}{with_kwargs}, by the word '{family}' of the dataset's name")
                return registered_env(env_id, kwargs)
        why = why or f"no version of {family} here has {shape[0]} observations"
    notes.append(f"no environment is guessed from the name: {why}; trained without evaluation unless --env names one")
    return None


@cache
def _obs_shape(env_id: str, **kwargs) -> tuple[int, ...]:
    return flat_obs_shape(made(registered_env(env_id, kwargs)).observation_space)


def _of_ogbench(name: str, shape: tuple[int, ...], notes: list[str]) -> EnvSpec | None:
    """The environment of a dataset with one task; with goals of its own, none."""
    env_id = ogbench_env(name)
    if "singletask" not in env_id:
        notes.append("an OGBench dataset of many goals: no evaluation unless --env names an environment with one")
        return None
    try:
        if importlib.util.find_spec("ogbench") is None:
            raise InputError("the package ogbench is not installed")
        env_spec = registered_env(env_id)
    except InputError as error:
        notes.append(f"no evaluation in {env_id}: {error}")
        return None
    theirs = flat_obs_shape(made(env_spec).observation_space)
    notes.append(
        f"environment {env_id}, by the dataset's name"
        if theirs == shape
        else f"no evaluation: {env_id} has observations of shape {theirs}, the data {shape}"
    )
    return env_spec if theirs == shape else None


def _is_image(obs: np.ndarray) -> bool:
    return obs.dtype == np.uint8 and obs.ndim == 4


def checked(
    name: str,
    arrays: dict,
    meta: dict,
    env_spec: EnvSpec | None,
    clip_actions: bool = False,
    discrete: bool = False,
    env_units: bool = False,
) -> tuple[Spec, dict[str, np.ndarray]]:
    """What `read_dataset` returned, in the types of `Dataset`, with actions rescaled to [-1, 1] unless `env_units`.

    `discrete`: actions are whole numbers, whatever their type. `meta["data"]["notes"]` tells of what was decided.

    Raises:
      InputError: NaN, shapes that disagree with each other or with the environment's, actions outside the action
        space (unless `clip_actions`), actions or spaces of which it is not clear what they are.
    """
    obs, next_obs, action = arrays["obs"], arrays["next_obs"], arrays["action"]
    n = len(obs)
    if n < 2:
        raise InputError(f"{name} holds {n} transitions; nothing can be learned from it.")
    if not _is_image(obs):
        obs, next_obs = (np.ascontiguousarray(x.reshape(n, -1), np.float32) for x in (obs, next_obs))
    reward = arrays["reward"].astype(np.float32)
    named = {"observations": obs, "next observations": next_obs, "rewards": reward, "actions": action}
    for label, array in named.items():
        if not (array.dtype == np.uint8 or np.isfinite(array).all()):
            row = int(np.flatnonzero(~np.isfinite(array).reshape(n, -1).all(1))[0])
            raise InputError(f"{name} has NaN or infinite {label}, first in row {row}; clean the file first.")
    space = _action_space(name, action, meta, env_spec, discrete, clip_actions)
    spec = space_spec(obs.shape[1:], space)
    if spec.discrete:
        if action.size != n:
            raise InputError(f"{name} has {action.size // n} actions in a row, {space} has one.")
        action = action.reshape(n) - spec.action_start
        if (action < 0).any() or (action >= spec.action_dim).any() or (action != action.astype(np.int32)).any():
            raise InputError(f"{name} has actions outside {space}; is this the right environment?")
        action = action.astype(np.int32)
    else:
        action = action.reshape(n, -1).astype(np.float32)
        if action.shape[1] != spec.action_dim:
            raise InputError(f"{name} has actions of {action.shape[1]} dimensions, {space} has {spec.action_dim}.")
        low, high = np.float32(spec.action_low), np.float32(spec.action_high)
        scaled = 2.0 * (action - low) / (high - low) - 1.0
        if not clip_actions and np.abs(scaled).max() > 1.0 + 1e-4:
            raise InputError(
                f"{name} has actions outside {space} (up to {np.abs(scaled).max():.2f} times its half-width); "
                "pass --clip-actions to clip them."
            )
        action = np.clip(action, low, high) if env_units else np.clip(scaled, -1.0, 1.0)
    seen = without(made(env_spec).observation_space, meta.get("left_out", ())) if env_spec else None
    if env_spec and (shape := flat_obs_shape(seen)) != obs.shape[1:]:
        raise InputError(
            f"{name} has observations of shape {obs.shape[1:]}, {env_spec.id} gives {shape}; name the environment with "
            "--env, or train without one: --env none."
        )
    flags = {flag: arrays[flag].astype(bool) for flag in ("terminal", "last", "successor") if flag in arrays}
    return spec, {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, **flags}


def _action_space(
    name: str, action: np.ndarray, meta: dict, env_spec: EnvSpec | None, discrete: bool, clip_actions: bool
) -> gym.Space:
    """That of the dataset's metadata, of the environment, or of the actions themselves; the first two must agree."""
    n, notes = len(action), meta["data"]["notes"]
    theirs = made(env_spec).action_space if env_spec else None
    if "low" in meta:
        own = gym.spaces.Box(np.float32(meta["low"]), np.float32(meta["high"]))
    elif "actions" in meta:
        own = gym.spaces.Discrete(meta["actions"], start=meta.get("action_start", 0))
    elif theirs is not None:
        return theirs
    else:
        whole = action.size == n and (action == np.floor(action)).all() and action.min() >= 0
        integer = np.issubdtype(action.dtype, np.integer)
        if discrete and not whole:
            raise InputError(f"{name}: --discrete needs one whole number of at least 0 in every row of the actions.")
        if (integer and action.size == n) or discrete:
            return gym.spaces.Discrete(max(int(action.max()), 0) + 1)
        if integer:
            raise InputError(
                f"{name} has {action.size // n} whole numbers as an action, choices of several kinds; only one choice, "
                "or numbers of floating point, can be learned."
            )
        if whole and action.max() > 1:
            raise InputError(
                f"{name} has the whole numbers 0 to {int(action.max())} as actions: pass --discrete if they are "
                "choices, or --env for an environment whose actions they are."
            )
        if whole and action.any():
            notes.append("actions are all 0 or 1: pass --discrete if they are choices")
        columns = action.reshape(n, -1).astype(np.float32)
        most = np.abs(columns).max()
        if clip_actions or most <= 1.0 + 1e-4:
            return gym.spaces.Box(-1, 1, (columns.shape[1],))
        notes.append(f"without an environment actions are taken to lie in [-{most:.4g}, {most:.4g}], as the data's do")
        return gym.spaces.Box(-most, most, (columns.shape[1],))
    if theirs is not None and not _same(own, theirs):
        raise InputError(
            f"{name} has actions of {own}, its environment {env_spec.id} has {theirs}; name another with --env, "
            "or none."
        )
    return own


def _same(one: gym.Space, other: gym.Space) -> bool:
    if isinstance(one, gym.spaces.Discrete) and isinstance(other, gym.spaces.Discrete):
        return (one.n, one.start) == (other.n, other.start)
    if not (isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box) and one.shape == other.shape):
        return False
    return np.allclose(one.low, other.low, rtol=1e-5) and np.allclose(one.high, other.high, rtol=1e-5)


def preset_misfit(key: str, settings: dict, facts: dict) -> str | None:
    """Why a preset picked by a name is not for data of these `facts` (obs_shape, actions, reward [low, high])."""
    if why := misfit(key, facts["obs_shape"], facts["actions"]):
        return why
    low, high = facts["reward"]
    if settings.get("reward_shift") and low < 0.0 and high <= 0.0:
        return (
            f"its reward_shift {settings['reward_shift']:g} is for rewards of at least 0, here they are {low:g} to "
            f"{high:g}"
        )
    return None


def fewer_held_out(asked: int, held_out: int) -> str | None:
    """One sentence where a model's hold-out is smaller than was `asked` for."""
    if held_out == asked:
        return None
    return f"--holdout-rows {asked:,} is more than a fifth of the data: {held_out:,} rows are held out."


RANDOM_STEPS = 1_000
"""Whose rewards a dataset's are compared with."""


def random_rewards(task: Task) -> np.ndarray:
    """[RANDOM_STEPS] rewards of uniform actions in the task's environment, the same in every call.

    They take no random numbers of a run, nor numpy's. One written in JAX plays ten episodes, each from its own start.
    """
    env = task.make_env(disable_env_checker=True)
    if pair := jax_env(task, env):
        return _random_rewards_compiled(pair, task.spec)
    rewards = np.empty(RANDOM_STEPS)
    env.action_space.seed(0)
    with environment_fails(task.env_spec.id, "in random steps"):
        env.reset(seed=0)
        for t in range(RANDOM_STEPS):
            _, rewards[t], terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        env.close()
    return rewards


def _random_rewards_compiled(env: JaxEnv, spec: Spec) -> np.ndarray:
    def play(key):
        begin_key, act_key, key = jax.random.split(key, 3)
        first, steps = env.reset(jax.random.split(begin_key))[0], RANDOM_STEPS // 10
        if spec.discrete:
            actions = jax.random.randint(act_key, (steps,), 0, spec.action_dim)
        else:
            actions = jax.random.uniform(act_key, (steps, spec.action_dim), minval=-1.0, maxval=1.0)

        def step(state, now):
            new, _, reward, terminal, truncated = env.step(state, now[0], jax.random.split(now[1], 4))
            return jax.tree.map(partial(jnp.where, terminal | truncated), first, new), reward

        return jax.lax.scan(step, first, (actions, jax.random.split(key, steps)))[1]

    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # it runs once
    options = quick if jax.default_backend() == "cpu" else None
    keys = jax.random.split(jax.random.key(0), 10)
    with jax.debug_key_reuse(False):  # an episode begins again as the first one did, with the same key
        return np.asarray(jax.jit(jax.vmap(play), compiler_options=options)(keys)).ravel()


def other_rewards(task: Task) -> str | None:
    """One sentence where the data's rewards may be of another convention than the environment's, both in training.

    Its range is looked at, against that of uniform random steps: both of its ends lie above theirs, or below, by a
    tenth of the random range; or it begins below by half of it. One that only ends above is what a better policy
    earns, and where rewards are sparse random steps do not see the success.
    """
    between = task.data.get("reward_range")
    if task.env_spec is None or between is None or not task.data.get("rewards", True):
        return None
    random = task.training_reward(random_rewards(task))
    low, high, least, most = *(task.training_reward(x) for x in between), random.min(), random.max()
    rounding, width = 1e-5 * max(abs(least), abs(most)), most - least
    below, above = np.array([least - low, most - high]), np.array([low - least, high - most])
    apart = max(below.min(), above.min()) > 0.1 * width + rounding
    if not (apart or least - low > 0.5 * width + rounding):
        return None
    return (
        f"The rewards of '{task.id}' are {low:.4g} to {high:.4g}, those of {RANDOM_STEPS:,} random steps in "
        f"{task.env_spec.id} {least:.4g} to {most:.4g}: as it should be where its policies saw better or worse steps "
        "than random ones do, but of two conventions nothing good is learned together (--reward-shift and the like "
        "change both; correct the file, or name its own environment with --env)."
    )
