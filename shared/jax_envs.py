"""Environments written in JAX (gymnasium's FuncEnv) as functions of arrays; whole episodes as one compiled call."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from shared.errors import InputError
from shared.spaces import without
from shared.task import Task, require_env


class JaxEnv(NamedTuple):
    """An environment as a pair of functions of arrays, of one environment."""

    reset: Callable
    """(keys (2: of the state, of the observation), params) -> (state, obs [O]); `params`: of a task, else None"""
    step: Callable
    """(state, action [A] in [-1, 1] or [], keys (4)) -> (state, obs [O], reward, terminal, truncated)

    The keys are of the transition, the observation, the reward and the end. The reward is the environment's own.
    """
    succeeded: Callable | None
    """(state, action, next state) -> whether the task is solved then; None: the environment does not say"""
    task_params: Any = None
    """Arrays with a leading axis, one row for each of the task's `tasks`; None: there are none."""
    objectives: Callable | None = None
    """(state, action, next state) -> [K] what the reward is made of; None: the environment does not say"""


class Moved(NamedTuple):
    """What a step of n environments led to, each in the episode in which it was made."""

    next_obs: jax.Array
    """[n, O] the last one of an episode where it ended"""
    reward: jax.Array
    """[n], or [n, K] of K objectives"""
    terminal: jax.Array
    """[n] bool"""
    truncated: jax.Array
    """[n] bool"""


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
    task = dataclasses.replace(task)  # nothing is made while a function is compiled
    task.__dict__["obs_space"] = without(env.observation_space, task.left_out)

    def reset(keys, params=None):
        state = f.initial(keys[0]) if params is None else f.initial(keys[0], params)
        return (state, jnp.int32(0)), task.observe(f.observation(state, keys[1]), jnp)

    def step(state, action, keys):
        (old, t), action = state, task.to_env(action)
        new = f.transition(old, action, keys[0])
        obs = task.observe(f.observation(new, keys[1]), jnp)
        reward, terminal = f.reward(old, action, new, keys[2]), f.terminal(new, keys[3])
        return (new, t + 1), obs, jnp.float32(reward), jnp.bool_(terminal), t + 1 >= limit

    def told(name):
        return lambda state, action, new: f.transition_info(state[0], task.to_env(action), new[0])[name]

    first = jax.eval_shape(f.initial, jax.random.PRNGKey(0))
    action = jax.eval_shape(
        task.to_env, jnp.zeros((), jnp.int32) if task.spec.discrete else jnp.zeros(task.spec.action_dim)
    )
    infos = jax.eval_shape(f.transition_info, first, action, first)
    succeeded, objectives = (told(name) if name in infos else None for name in ("success", "objectives"))
    params = getattr(f, "task_params", None)
    if params is not None and task.tasks:
        params = jax.tree.map(lambda x: x[np.array(task.tasks) - 1], params)
    return JaxEnv(reset, step, succeeded, params if task.tasks else None, objectives)


def require_jax_env(task: Task) -> JaxEnv:
    """The pair of a task, or InputError where its environment is not written in JAX."""
    env = jax_env(require_env(task))
    if env is None:
        raise InputError(
            f"Many environments are stepped together here, so {task.env_spec.id} would have to be written in JAX; "
            "datasets/environments/README.md says which are."
        )
    return env


def of_objectives(env: JaxEnv) -> JaxEnv:
    """`env` with the objectives [K] for a reward.

    Raises:
      InputError: it does not tell them.
    """
    if env.objectives is None:
        raise InputError("The environment does not tell its objectives: 'objectives' of its transition_info is needed.")

    def step(state, action, keys):
        new, obs, _, terminal, truncated = env.step(state, action, keys)
        return new, obs, jnp.float32(env.objectives(state, action, new)), terminal, truncated

    return env._replace(step=step)


def move(
    env: JaxEnv, task: Task, state: Any, obs: jax.Array, action: jax.Array, key: jax.Array
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """One environment's step with `action` [A], clipped to [-1, 1] (or []): state and observation to go on from, those
    of a new episode where one ended; the transition as a row [D] (transitions.FIELDS); and whether one ended."""
    action = action if task.spec.discrete else jnp.clip(action, -1.0, 1.0)
    step_key, reset_key = jax.random.split(key)
    new, next_obs, reward, terminal, truncated = env.step(state, action, jax.random.split(step_key, 4))
    reward, ended = task.training_reward(reward), terminal | truncated
    row = jnp.concatenate([obs, action.reshape(-1), jnp.stack([reward, terminal]), next_obs])
    started = env.reset(jax.random.split(reset_key))
    return *jax.tree.map(partial(jnp.where, ended), started, (new, next_obs)), row, ended


def begin_envs(env: JaxEnv, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
    """States and first observations [n, O] of n environments."""
    return jax.vmap(env.reset)(jax.random.split(key, (n, 2)))


def step_envs(env: JaxEnv, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, jax.Array, Moved]:
    """A step of n environments with `action` [n, A] in [-1, 1] (or [n]): states and observations [n, O] to go on from.

    They are a new episode's where one ended.
    """
    n = len(action)
    step_key, reset_key = jax.random.split(key)
    new, next_obs, reward, terminal, truncated = jax.vmap(env.step)(state, action, jax.random.split(step_key, (n, 4)))
    ended = terminal | truncated

    def restart(envs):
        fresh = begin_envs(env, reset_key, n)
        return jax.tree.map(lambda a, b: jnp.where(ended.reshape(-1, *(1,) * (a.ndim - 1)), a, b), fresh, envs)

    state, obs = jax.lax.cond(ended.any(), restart, lambda envs: envs, (new, next_obs))
    return state, obs, Moved(next_obs, reward, terminal, truncated)


def play_compiled(
    env: JaxEnv,
    act: Callable,
    carry: Any,
    firsts: tuple[jax.Array, Any],
    last_round: np.ndarray,
    successes: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns, lengths and success steps [R, S] of episodes in S environments, s playing rounds 0 .. last_round[s].

    `act(carry [S, ...], obs [S, O], reward [S], first [S], step) -> (actions [S, A], carry)`, as `SteppedPolicy.act`,
    from this `carry` on. `firsts` [R, S]: the key of each episode and the parameters of its task (or None). Of the key
    every step splits off one, for all that is random in the step, as gymnasium's FunctionalJaxEnv does.
    `successes`: the steps up to the first success, 0 where there was none (else 0 everywhere).
    """
    slots = np.arange(len(last_round))

    @jax.vmap
    def begin(first):
        now, key = jax.random.split(first[0])
        return key, *env.reset((now, now), first[1])

    @jax.vmap
    def advance(key, state, action):
        now, key = jax.random.split(key)
        new, *rest = env.step(state, action, (now,) * 4)
        return key, new, *rest, env.succeeded(state, action, new) if successes else False

    def step(now):
        t, at, (key, state, obs), (carry, reward, first), returns, lengths, success_steps = now
        active = at <= last_round
        action, carry = act(carry, obs, reward, first, t)
        key, state, obs, reward, terminal, truncated, success = advance(key, state, action)
        returns = returns.at[at, slots].add(jnp.where(active, reward, 0.0), mode="drop")
        lengths = lengths.at[at, slots].add(active, mode="drop")
        if successes:
            solved = active & success & (success_steps.at[at, slots].get(mode="clip") == 0)
            success_steps = success_steps.at[at, slots].add(
                jnp.where(solved, lengths.at[at, slots].get(mode="clip"), 0), mode="drop"
            )
        ended = active & (terminal | truncated)
        at += ended

        def restart(envs):
            rounds = jnp.minimum(at, len(firsts[0]) - 1)
            new = begin(jax.tree.map(lambda x: x[rounds, slots], firsts))
            return jax.tree.map(lambda a, b: jnp.where(ended.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, envs)

        envs = jax.lax.cond(ended.any(), restart, lambda envs: envs, (key, state, obs))
        return t + 1, at, envs, (carry, reward, ended), returns, lengths, success_steps

    shape = firsts[0].shape[:2]
    none = jnp.zeros(shape, jnp.int32)
    policy = carry, jnp.zeros(len(slots)), jnp.ones(len(slots), bool)
    begun = (0, none[0], begin(jax.tree.map(lambda x: x[0], firsts)), policy, jnp.zeros(shape), none, none)
    return jax.lax.while_loop(lambda now: (now[1] <= last_round).any(), step, begun)[4:]
