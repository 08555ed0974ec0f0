"""Goal-conditioned data: which state is whose goal, drawn on the device.

What a state achieves is `achieved_goal` where a dataset has goal dictionaries (gymnasium-robotics), else the whole
observation (OGBench). A state that does not hold what it achieves, as that of gymnasium-robotics' AntMaze, which has
no position, is seen with it in front. Goals that were wanted when the data was recorded play no part unless they are
asked for: every goal is one that was achieved somewhere in the data (hindsight), and a row's goal is reached if it is
the row's own.
"""

import dataclasses
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from shared.data import Dataset
from shared.errors import InputError, environment_fails
from shared.spaces import OBS_ORDER, flat_obs_shape, flatten_obs, goal_parts
from shared.task import Task
from shared.transitions import Batch, Transitions

STATE_GOALS, ACHIEVED_IN_STATE = "shared.goals:StateGoals", "shared.goals:AchievedInState"


def geometric(u: jax.Array, discount) -> jax.Array:
    """Numbers k >= 1 [...] of uniform `u` [...]: P(k) = (1 - gamma) gamma^(k - 1); inf with a `discount` gamma of 1."""
    return jnp.where(discount < 1.0, 1.0 + jnp.floor(jnp.log1p(-u) / jnp.log(discount)), jnp.inf)


class GoalBatch(NamedTuple):
    """Transitions with goals; the leading axes are those of the rows they were taken from."""

    obs: jax.Array | None = None
    action: jax.Array | None = None
    next_obs: jax.Array | None = None
    goal: jax.Array | None = None
    """Of the value."""
    terminal: jax.Array | None = None
    """1 where obs achieves `goal`: bootstrapping stops."""
    reward: jax.Array | None = None
    """0 where obs achieves `goal`, else -1."""
    actor_goal: jax.Array | None = None
    weight: jax.Array | None = None
    """Of the pair of a row and its goal; None: all are 1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GoalTransitions:
    """A dataset on the device with what each row's state achieves. Rows are numbers in 0 .. N - 1.

    The state that an episode's last row leads to is no row, and so never a goal.
    """

    transitions: Transitions
    """Of obs, action and next_obs."""
    achieved: jax.Array | None
    """[N, G]; None: the observation."""
    end: jax.Array
    """[N] the last row of a row's episode."""
    wanted: jax.Array | None = None
    """[N, G] the goal that was wanted when the row was recorded; None: not asked for."""
    wanted_end: jax.Array | None = None
    """[N] the last row of its episode until which it was wanted."""

    def rows(self, key: jax.Array, shape: int | tuple[int, ...]) -> jax.Array:
        """`shape` rows, uniformly."""
        return jax.random.randint(key, (shape,) if isinstance(shape, int) else shape, 0, len(self.end))

    def take(self, row: jax.Array) -> Batch:
        """obs, action and next_obs of rows [...]."""
        return self.transitions.take(row)

    def goal(self, row: jax.Array) -> jax.Array:
        """[..., G] what the states of rows [...] achieve."""
        return self.take(row).obs if self.achieved is None else self.achieved[row]

    def batch(self, row: jax.Array, goal_row: jax.Array, actor_row: jax.Array) -> GoalBatch:
        """Rows [...] with the goals that the states of `goal_row` and `actor_row` [...] achieve."""
        found, (goal, actor_goal) = self.take(row), self.goal(jnp.stack([goal_row, actor_row]))
        terminal = (goal_row == row).astype(jnp.float32)
        return GoalBatch(found.obs, found.action, found.next_obs, goal, terminal, terminal - 1.0, actor_goal)

    def ahead(self, row: jax.Array, steps) -> jax.Array:
        """[...] the rows that are `steps` later, at most the episode's last."""
        return jnp.minimum(row + steps, self.end[row])

    def future(self, key: jax.Array, row: jax.Array, discount=None) -> jax.Array:
        """[...] later rows of the same episode (its last one has only itself).

        Uniformly; with a `discount` gamma k steps ahead, P(k) = (1 - gamma) gamma^(k - 1), and the last row beyond it.
        """
        u = jax.random.uniform(key, row.shape)
        if discount is None:
            first, last = self.ahead(row, 1), self.end[row]
            return first + jnp.round(u * (last - first)).astype(row.dtype)  # its two ends half as often, as OGBench
        return self.ahead(row, jnp.minimum(geometric(u, discount), len(self.end)).astype(row.dtype))

    def mixture(self, key: jax.Array, row: jax.Array, shares: tuple[float, ...], discount=None) -> jax.Array:
        """[...] a goal's row for each row: by `shares` (own row, future, any row of the data); see `future`."""
        kind_key, future_key, any_key = jax.random.split(key, 3)
        current, future, _ = (float(share) / sum(shares) for share in shares)
        u = jax.random.uniform(kind_key, row.shape)
        drawn = jnp.where(u < current + future, self.future(future_key, row, discount), self.rows(any_key, row.shape))
        return jnp.where(u < current, row, drawn)


@dataclasses.dataclass(frozen=True)
class GoalDataset:
    """A dataset whose observations are states, and what they achieve."""

    data: Dataset
    achieved: np.ndarray | None
    """[N, G] float32; None: the observation."""
    wanted: np.ndarray | None = None
    """[N, G] float32, likewise of dictionaries; None: there are none."""

    @property
    def task(self) -> Task:
        return self.data.task

    def transitions(self, wanted: bool = False) -> GoalTransitions:
        """On the default device; rows of which the next observation is not known are left out.

        `wanted`: with the goals that were wanted when the data was recorded.

        Raises:
          InputError: there are none, or no row has a next observation.
        """
        fields = ("obs", "action", "next_obs")
        keep = self.data.successor
        if not keep.any():
            raise InputError(f"'{self.task.id}' has no row that is followed by another: there is no next observation.")
        data = dataclasses.replace(self.data, terminal=np.zeros_like(self.data.terminal))  # goals alone end a way
        transitions = data.transitions(*fields)
        episode = self.data.episode()[keep]
        end = np.searchsorted(episode, episode, side="right") - 1
        achieved = None if self.achieved is None else jnp.asarray(self.achieved[keep])
        found = GoalTransitions(transitions, achieved, jnp.asarray(end.astype(np.int32)))
        if not wanted:
            return found
        if self.wanted is None:
            raise InputError(
                f"'{self.task.id}' has no wanted goals (desired_goal), as dictionaries of goals have them."
            )
        goals = self.wanted[keep]
        changes = np.r_[True, (goals[1:] != goals[:-1]).any(1) | (episode[1:] != episode[:-1])]
        stretch = np.cumsum(changes)
        last = np.searchsorted(stretch, stretch, side="right") - 1
        return dataclasses.replace(found, wanted=jnp.asarray(goals), wanted_end=jnp.asarray(last.astype(np.int32)))

    def require_steps(self, steps: int, option: str) -> "GoalDataset":
        """This dataset, or InputError where no episode has more than `steps` rows; `option`: what asks for them."""
        if steps < 1:
            raise InputError(f"{option} {steps}: at least 1 step.")
        longest = int((self.data.ends() - self.data.starts()).max()) + 1
        if longest <= steps:
            raise InputError(
                f"The longest episode of '{self.task.id}' has {longest} rows; {option} {steps} needs a longer one."
            )
        return self


def goal_dataset(data: Dataset, tasks: tuple[int, ...] = ()) -> GoalDataset:
    """`data` for goal-conditioned learning; its policies are evaluated by success, in `tasks` of the environment.

    Empty `tasks`: all that the environment has, or its own resets where it has none.

    Raises:
      InputError: an environment that gives no goals, or goals of another size; no task of such a number.
    """
    task, parts = data.task, data.task.data.get("goal")
    if parts is None and task.env_spec:
        parts = goal_parts(task.obs_space)
    achieved, wanted, arrays = None, None, {}
    if parts:
        states, goals = parts
        if data.obs.shape[-1] != states + 2 * goals:
            raise InputError(
                f"'{task.id}' has {data.obs.shape[-1]} numbers in an observation; a state of {states} and wanted and "
                f"achieved goals of {goals} make {states + 2 * goals}."
            )
        arrays = {name: np.ascontiguousarray(getattr(data, name)[..., :states]) for name in ("obs", "next_obs")}
        achieved = np.ascontiguousarray(data.obs[..., states + goals :])
        wanted = np.ascontiguousarray(data.obs[..., states : states + goals])
        if data.obs.ndim == 2 and not _holds(arrays["obs"], achieved):
            arrays = {name: np.c_[getattr(data, name)[:, states + goals :], x] for name, x in arrays.items()}
            task = _wrapped(task, ACHIEVED_IN_STATE)
            print("goals: the state does not hold achieved_goal; policies see it in front of the state", flush=True)
    obs_shape = (arrays["obs"] if arrays else data.obs).shape[1:]
    goal_shape = obs_shape if achieved is None else achieved.shape[1:]
    spec = task.spec._replace(obs_shape=obs_shape, goal_shape=goal_shape)
    what = "the whole state" if achieved is None else f"achieved_goal ({achieved.shape[-1]} numbers)"
    print(
        f"goals: {what} of any row; wanted goals and rewards are not used; scores are the share of successes",
        flush=True,
    )
    known = {"options": {**task.options, "goals": "states" if achieved is None else "achieved_goal"}}
    known |= {"reference": {"min": 0.0, "max": 1.0, "episodes": 0, "of": "success", "source": "the share of successes"}}
    task = dataclasses.replace(task, spec=spec, baselines={}, **known)
    if task.env_spec:
        task = _with_goals(task, tasks)
    elif tasks:
        raise InputError(f"--tasks: '{task.id}' has no environment; name one with --env.")
    if len(obs_shape) == 3 and achieved is not None:
        achieved = None if np.array_equal(achieved, arrays["obs"]) else achieved
    return GoalDataset(dataclasses.replace(data, task=task, **arrays), achieved, wanted)


def _with_goals(task: Task, tasks: tuple[int, ...]) -> Task:
    """`task` in an environment whose observations hold the goal, with the numbers of its tasks."""
    spec, env = task.env_spec, task.make_env()
    known = len(getattr(env.unwrapped, "task_infos", ()))
    if goal_parts(env.observation_space) is None:
        with environment_fails(spec.id, "when it was reset"):
            _, info = env.reset(seed=0, options={"task_id": 1} if known else None)
        if "goal" not in info:
            raise InputError(f"{spec.id} gives no goals: this needs a goal-conditioned environment (--env, or none).")
        task = _wrapped(task, STATE_GOALS)
    env.close()
    if wrong := [number for number in tasks if not 1 <= number <= known]:
        has = f"tasks 1 to {known}" if known else "no tasks"
        raise InputError(f"--tasks {wrong[0]}: {spec.id} has {has}.")
    task = dataclasses.replace(task, tasks=tuple(tasks) or tuple(range(1, known + 1)))
    shown = goal_parts(task.obs_space)
    if shown != [task.spec.obs_shape[-1], task.spec.goal_shape[-1]]:
        raise InputError(
            f"{spec.id} gives states and goals of {shown[0]} and {shown[1]} numbers; those of '{task.id}' have "
            f"{task.spec.obs_shape[-1]} and {task.spec.goal_shape[-1]}."
        )
    return task


def _wrapped(task: Task, entry_point: str) -> Task:
    """`task` with its environment, where it has one, behind one of the wrappers below."""
    if (spec := task.env_spec) is None:
        return task
    wrapper = gym.envs.registration.WrapperSpec(entry_point.partition(":")[2], entry_point, {})
    wrappers = (*spec.additional_wrappers, wrapper)
    return dataclasses.replace(task, env_spec=dataclasses.replace(spec, additional_wrappers=wrappers))


def _holds(state: np.ndarray, achieved: np.ndarray) -> bool:
    """Whether every number of `achieved` [N, G] is one of `state` [N, O], in all rows."""
    return all(any(np.array_equal(x, y) for y in state.T if x[0] == y[0]) for x in achieved.T)


class AchievedInState(gym.ObservationWrapper):
    """Puts what is achieved in front of a state that does not hold it, in a goal environment's dictionaries."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.space = env.observation_space
        size = sum(flat_obs_shape(self.space[name])[0] for name in (OBS_ORDER[0], OBS_ORDER[2]))
        state = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = gym.spaces.Dict({**self.space.spaces, OBS_ORDER[0]: state})

    def observation(self, observation):
        parts = [flatten_obs(observation[name], self.space[name]) for name in (OBS_ORDER[2], OBS_ORDER[0])]
        return {**observation, OBS_ORDER[0]: np.concatenate(parts)}


class StateGoals(gym.Wrapper):
    """Shows the goal that an environment tells in `info` when it is reset (OGBench), as goal dictionaries do."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gym.spaces.Dict({"observation": space, "desired_goal": space})
        self.goal = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        obs, info = self.env.reset(seed=seed, options=options)
        self.goal = info["goal"]
        return {"observation": obs, "desired_goal": self.goal}, info

    def step(self, action):
        obs, *rest = self.env.step(action)
        return {"observation": obs, "desired_goal": self.goal}, *rest
