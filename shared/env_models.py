"""What is known of an environment's dynamics as functions of observations: where it terminates, and exact steps.

Learned models predict observations and rewards; the end of an episode is taken from the environment's own rule. Where a
state can be read off its observation, the exact step tells how wrong a model is.
"""

from collections.abc import Callable

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.phys2d.pendulum import PendulumFunctional, PendulumParams

from shared.errors import InputError
from shared.jax_envs import PLAIN
from shared.task import Task


def _never(env) -> Callable:
    return lambda obs: jnp.zeros(obs.shape[:-1], bool)


def _unhealthy(positions: int, *ranges: str) -> Callable:
    """MuJoCo's walkers: they fall. `positions`: leading coordinates that observations leave out by default."""

    def terminates(env) -> Callable:
        first = 0 if env._exclude_current_positions_from_observation else positions
        bounds = [getattr(env, f"_healthy_{name}_range", (-np.inf, np.inf)) for name in ranges]
        rest = getattr(env, "_healthy_state_range", (-np.inf, np.inf))
        if not getattr(env, "_terminate_when_unhealthy", True):
            return _never(env)

        def unhealthy(obs):
            obs = obs[..., first:]
            fine = ((rest[0] < obs[..., 1:]) & (obs[..., 1:] < rest[1])).all(-1)
            for i, (low, high) in enumerate(bounds):
                fine &= (low < obs[..., i]) & (obs[..., i] < high)
            return ~fine

        return unhealthy

    return terminates


def _reached_goal(env) -> Callable | None:
    return _never(env) if env.continuing_task else None


TERMINATIONS: dict[str, tuple[Callable, str]] = {
    **dict.fromkeys(("PendulumEnv", "PendulumJaxEnv"), (_never, "gymnasium classic_control/pendulum.py, step")),
    "Continuous_MountainCarEnv": (
        lambda env: lambda obs: (obs[..., 0] >= env.goal_position) & (obs[..., 1] >= env.goal_velocity),
        "gymnasium classic_control/continuous_mountain_car.py, step",
    ),
    **dict.fromkeys(("HalfCheetahEnv", "SwimmerEnv", "ReacherEnv"), (_never, "gymnasium mujoco/*_v5.py, step")),
    "HopperEnv": (_unhealthy(1, "z", "angle"), "gymnasium mujoco/hopper_v5.py, is_healthy"),
    "Walker2dEnv": (_unhealthy(1, "z", "angle"), "gymnasium mujoco/walker2d_v5.py, is_healthy"),
    "AntEnv": (_unhealthy(2, "z"), "gymnasium mujoco/ant_v5.py, is_healthy"),
    "HumanoidEnv": (_unhealthy(2, "z"), "gymnasium mujoco/humanoid_v5.py, is_healthy"),
    "InvertedPendulumEnv": (
        lambda env: lambda obs: jnp.abs(obs[..., 1]) > 0.2, "gymnasium mujoco/inverted_pendulum_v5.py, step"
    ),
    "PointMazeEnv": (_reached_goal, "gymnasium-robotics maze/maze_v4.py, compute_terminated; of continuing tasks"),
}  # fmt: skip
"""{class of the environment: (the environment -> whether next observations [..., O] are terminal, source)}.

The collection's own worlds say it themselves (`state_of`, `terminal`)."""


def bare_env(task: Task) -> gym.Env | None:
    """The task's environment without wrappers that change nothing; None: there is none, or there are others."""
    if task.env_spec is None:
        return None
    env = task.make_env()
    while isinstance(env, PLAIN):
        env = env.env
    return None if isinstance(env, gym.Wrapper) else env


def _functions(env: gym.Env | None) -> tuple | None:
    """(gymnasium's FuncEnv, raw observation [O] -> state, its further arguments), where observations tell all."""
    inner = getattr(env, "func_env", None)
    if getattr(inner, "state_of", None) and inner.tells_all:
        return inner, inner.state_of, {}
    if type(env).__name__ not in ("PendulumEnv", "PendulumJaxEnv"):
        return None
    params = PendulumParams(g=env.g) if hasattr(env, "g") else PendulumParams()
    return PendulumFunctional(), lambda obs: jnp.array([jnp.arctan2(obs[1], obs[0]), obs[2]]), {"params": params}


def _raw(task: Task, obs):
    return obs if task.obs_mean is None else obs * task.obs_std + task.obs_mean


def termination(task: Task, known: bool = True) -> Callable:
    """next_obs [..., O], as networks see it -> whether the task has ended there [...] bool.

    `known` False: it never does.

    Raises:
      InputError: the environment's rule is not known, or there is no environment.
    """
    if not known:
        return _never(None)
    env = bare_env(task)
    if functions := _functions(env):
        f, state_of, more = functions

        def ended(obs):
            return jnp.bool_(f.terminal(state_of(obs), None, **more))

        rule = jnp.vectorize(ended, signature="(o)->()")
    else:
        names = [cls.__name__ for cls in type(env).__mro__]
        rule = next((TERMINATIONS[name][0](env) for name in names if name in TERMINATIONS), None)
    if env is not None:
        env.close()
    if rule is None:
        what = task.env_spec.id if task.env_spec else f"'{task.id}' without an environment"
        raise InputError(
            f"Where {what} terminates is not known as a function; --no-termination: nowhere, in the model."
        )
    return lambda next_obs: rule(_raw(task, next_obs))


def costs(task: Task) -> Callable:
    """obs [..., O], as networks see it -> what it costs to be there [...].

    Raises:
      InputError: the environment does not tell costs by states that its observations show.
    """
    env = bare_env(task)
    functions = _functions(env)
    if env is not None:
        env.close()
    told = {}
    if functions:
        f, state_of, _ = functions
        told = jax.eval_shape(lambda obs: f.state_info(state_of(obs)), jnp.zeros(task.spec.obs_shape))
    if "cost" not in told:
        what = task.env_spec.id if task.env_spec else f"'{task.id}' without an environment"
        raise InputError(f"What states cost is needed, and {what} does not tell it by its observations.")
    rule = jnp.vectorize(lambda obs: f.state_info(state_of(obs))["cost"], signature="(o)->()")
    return lambda obs: rule(_raw(task, obs))


def exact_model(task: Task) -> Callable | None:
    """(obs [B, O], action [B, A], key) -> (next_obs [B, O], reward [B], terminal [B]) of the environment itself.

    Observations and actions as networks have them; rewards as they are learned from. None: a state cannot be read off
    its observation.
    """
    functions = _functions(bare_env(task))
    if functions is None:
        return None
    f, state_of, more = functions
    observe = (lambda obs: obs) if task.obs_mean is None else lambda obs: (obs - task.obs_mean) / task.obs_std

    def step(obs, action, key):
        state, action = state_of(_raw(task, obs)), task.to_env(action)
        new = f.transition(state, action, key, **more)
        reward, ends = f.reward(state, action, new, None, **more), f.terminal(new, None, **more)
        next_obs = observe(f.observation(new, None, **more))
        return next_obs, jnp.float32(task.training_reward(reward)), jnp.bool_(ends)

    return lambda obs, action, key: jax.vmap(step)(obs, action, jax.random.split(key, len(obs)))
