"""Data quality in imitation: what makes demonstrations good to clone, measured on the data and on the clone's way.

Belkhale, Cui and Sadigh, "Data Quality in Imitation Learning", NeurIPS 2023, arXiv 2306.02437. A clone fails where it
comes to states that the data do not show, and acts there as the expert would not. Its states differ from the expert's
by no more than the sum of its action divergences, D(pi(.|s), pi_E(.|s)), at the states that it comes to. Two properties
of data decide about that: how consistent its actions are, and how diverse its transitions. There is no new learner:
every lane clones one of several datasets, or all of them (bc.py's deterministic head), and metrics.csv has beside its
score, of the data:

- action_variance: of the actions of the --n-neighbours nearest states, summed over dimensions, mean over rows;
- transition_diversity: of the changes s' - s of the nearest (s, a), likewise;
- state_similarity: share of the other rows within --radius of a row, high where states are concentrated;
- horizon: mean rows of an episode;

and of the clone, in an environment written in JAX, at the states that it comes to: visited_distance to the nearest row
of its data, and, with --expert, action_divergence, |pi(s) - pi_E(s)|^2 / A.

Datasets s<S>p<P> of point worlds are of one planner. Gaussian noise disturbs its moves (system noise) or its actions
(policy noise): both show states beside the way, but the actions of the latter are not those that the planner meant.

Choose it when there are several sources of demonstrations of one task, and it is to be known which are worth having,
or why a clone fails. Compare datasets of one task alone: the measures have no meaning of their own, and distances
say little in more than some twenty dimensions.

Deviations from the paper, which has no released code:
- numbers of neighbours, the radius and all scales (mean 0 and standard deviation 1 over all datasets) are ours;
- policies are deterministic, so that their divergence is a squared distance; clones of human data with mixtures of
  Gaussians are not here;
- what a planner with policy noise meant to do is not stored: actions are those that were taken.

    python algorithms/imitation/data_quality.py --dataset point-obstacle-s0p0 --parts point-obstacle-s50p0 \\
        point-obstacle-s0p50 --part 0 1 2 --seeds 8 --updates 2000 --expert environments.point_behaviour:expert
    python algorithms/imitation/data_quality.py --dataset hopper-expert --parts hopper-medium --part 0 1 --seeds 4
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, OfflineArgs, Size, function_named, hyperparameters
from shared.data import Dataset, load_dataset, moments
from shared.errors import InputError, first_line
from shared.formats import given_of
from shared.jax_envs import JaxEnv, begin_envs, jax_env, step_envs
from shared.parts import joined
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-obstacle-s0p0"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    parts: tuple[str, ...] = ()
    """Further datasets of the same environment."""
    part: Float = 0.0
    """Number of the dataset that a lane clones: 0 is --dataset, 1 the first of --parts, and so on; -1: all together."""
    part_episodes: Count = 0
    """Episodes of each dataset that are used, its first ones; 0: all."""
    n_neighbours: Size = 10
    """Rows in a neighbourhood, itself among them."""
    radius: float = 0.1
    """Rows no further apart are alike (standardised observations)."""
    expert: str = ""
    """What the clone is compared with: module:function, `function(task)` -> a function of JAX, observations [n, O] as
    the environment gives them -> actions [n, A] in [-1, 1]; empty: nothing."""
    watch_envs: Size = 10
    """Environments in which the clone's states are collected, each time that metrics are."""
    watch_steps: Size = 100
    """Steps in each of them; where an episode ends, another one begins."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    """Actions [B, A] in [-1, 1]."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))


class Agent(flax.struct.PyTreeNode):
    net: Actor = flax.struct.field(pytree_node=False)
    actor: Any
    actor_opt: optax.OptState


class Parts(NamedTuple):
    """P datasets on the device, one after the other."""

    transitions: Transitions
    obs: jax.Array
    """[N + longest, O] of all rows; zeros behind them"""
    first: jax.Array
    """[P] row"""
    size: jax.Array
    """[P] rows"""
    longest: jax.Array
    """[longest] numbers from 0: the rows of the largest part"""
    measures: dict[str, jax.Array]
    """{name: [P]} what is measured of the data"""


class Watched(NamedTuple):
    """Where the clone is watched."""

    env: JaxEnv | None
    """None: nowhere"""
    expert: Callable | None
    """Observations [n, O] as the clone sees them -> actions [n, A]; None: not known"""


# ------------------------------------------------------------------------------- measures of the data


def spread(points: np.ndarray, values: np.ndarray, neighbours: int) -> float:
    """Variance of `values` [N, K] among the `neighbours` nearest of `points` [N, D], summed over K, mean over rows."""
    nearest = cKDTree(points).query(points, k=min(neighbours, len(points)), workers=-1)[1].reshape(len(points), -1)
    return float(values[nearest].var(1).sum(-1).mean())


def measures_of(data: Dataset, action: np.ndarray, args: Args) -> dict[str, float]:
    """What is measured of one dataset; its observations and `action` [N, A] are standardised."""
    known = data.successor
    at = np.concatenate([data.obs, action], axis=1)[known]
    alike = cKDTree(data.obs).query_ball_point(data.obs, args.radius, return_length=True, workers=-1)
    return {
        "action_variance": spread(data.obs, action, args.n_neighbours),
        "transition_diversity": spread(at, (data.next_obs - data.obs)[known], args.n_neighbours),
        "state_similarity": float((alike - 1).mean() / max(1, len(alike) - 1)),
        "horizon": len(data.obs) / len(data.ends()),
    }


# ------------------------------------------------------------------------------------------ the clone


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """Mean over the batch of (pi(s) - a)^2, meaned over dimensions."""
    pi = agent.net.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    return ((pi - batch.action) ** 2).mean()


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    net = Actor(args.hidden_dims, spec.action_dim)
    actor = net.init(key, jnp.zeros((1, *spec.obs_shape)))
    return Agent(net=net, actor=actor, actor_opt=optax.adam(args.actor_lr).init(actor))


def update(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor."""
    loss, grads = jax.value_and_grad(actor_loss)(agent.actor, agent, batch, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    return agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt), {"actor_loss": loss}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]."""
    return agent.net.apply(agent.actor, obs)


# ----------------------------------------------------------------------------------- on the clone's way


def visit(agent: Agent, key, args: Args, env: JaxEnv):
    """[T R, O] observations that the clone comes to in R environments."""
    first_key, step_key = jax.random.split(key)

    def step(envs, key):
        state, obs = envs
        state, next_obs, _ = step_envs(env, state, act(agent, obs, None, args), key)
        return (state, next_obs), obs

    envs = begin_envs(env, first_key, args.watch_envs)
    return jax.lax.scan(step, envs, jax.random.split(step_key, args.watch_steps))[1].reshape(-1, envs[1].shape[-1])


def distance_to_data(visited, parts: Parts, part):
    """Mean distance of observations [n, O] to the nearest row of a part."""
    rows = jax.lax.dynamic_slice_in_dim(parts.obs, parts.first[part], len(parts.longest))
    outside = jnp.where(parts.longest < parts.size[part], 0.0, jnp.inf)
    return jax.lax.map(lambda obs: jnp.sqrt((((rows - obs) ** 2).sum(1) + outside).min()), visited).mean()


def watch(agent: Agent, key, args: Args, parts: Parts, watched: Watched) -> dict:
    """How far the clone is from its data, and from what the expert would do, at the states that it comes to."""
    if watched.env is None:
        return {}
    visited = visit(agent, key, args, watched.env)
    found = {"visited_distance": distance_to_data(visited, parts, args.part.astype(int))}
    if watched.expert:
        gap = act(agent, visited, None, args) - watched.expert(visited)
        found["action_divergence"] = (gap**2).mean()
    return found


def train(agent: Agent, keys, args: Args, parts: Parts, watched: Watched) -> tuple[Agent, dict]:
    """One lane: one update per key on rows of its part; mean metrics, and what is measured of part and clone."""
    part = args.part.astype(int)

    def step(agent, key):
        batch_key, watch_key = jax.random.split(key)
        index = parts.first[part] + jax.random.randint(batch_key, (args.batch_size,), 0, parts.size[part])
        agent, metrics = update(agent, parts.transitions.take(index), args)
        return agent, (metrics, watch_key)

    agent, (metrics, watch_keys) = jax.lax.scan(step, agent, keys)
    metrics = jax.tree.map(jnp.mean, metrics) | {name: x[part] for name, x in parts.measures.items()}
    return agent, metrics | watch(agent, watch_keys[0], args, parts, watched)


def find_expert(name: str, task: Task) -> Callable:
    """The expert that --expert names, of observations as the clone sees them.

    Raises:
      InputError: there is none, or it is not one of this task.
    """
    made = function_named("--expert", name)
    try:
        expert = made(task)
    except Exception as error:  # whatever somebody's function raises
        raise InputError(f"--expert {name} gives no expert of '{task.id}' ({first_line(error)}).") from None
    return lambda obs: expert(obs * task.obs_std + task.obs_mean)


def load_parts(args: Args) -> tuple[Dataset, np.ndarray]:
    """All parts as one dataset, observations standardised over all of them, and the part of each row [N].

    Raises:
      InputError: as `load_dataset`; the parts are not of one environment, or a lane's part is none of them.
    """
    names = (args.dataset, *args.parts)
    if wrong := [x for x in np.atleast_1d(args.part) if x not in range(-1, len(names))]:
        raise InputError(f"--part {wrong[0]:g}: there are {len(names)} datasets, with numbers from 0; -1 is all.")
    parts, given = [], given_of(names, args.fields, args.episode_length)
    for name in names:
        data = load_dataset(name, args.env, args.clip_actions, False, *given[name], args.discrete)
        data = data.require(discrete=False, reward=False)
        parts.append(data.select(data.episode() < args.part_episodes) if args.part_episodes else data)
    whole = joined(parts)
    if args.parts:  # named in run.json one by one
        whole = whole.replace({}, {"id": f"{parts[0].task.id}+{len(args.parts)}"})
    return whole.normalize_obs(), np.repeat(np.arange(len(parts)), [len(data.obs) for data in parts])


def on_device(data: Dataset, of: np.ndarray, args: Args) -> Parts:
    """The parts and their measures; `of` [N]: each row's part. All together are the last, if a lane clones them."""
    action = data.action / moments(data.action)[1]
    size = np.bincount(of)
    first, chosen = np.cumsum(size) - size, [of == p for p in range(len(size))]
    if -1 in np.atleast_1d(args.part):
        first, size, chosen = np.append(first, 0), np.append(size, len(of)), [*chosen, of >= 0]
    found = [measures_of(data.select(rows), action[rows], args) for rows in chosen]
    obs = np.concatenate([data.obs, np.zeros((size.max(), data.obs.shape[1]), np.float32)])
    measures = {name: jnp.float32([x[name] for x in found]) for name in found[0]}
    columns = obs, first, size, np.arange(size.max())
    return Parts(data.transitions("obs", "action"), *map(jnp.asarray, columns), measures)


def main(args: Args) -> None:
    data, of = load_parts(args)
    if args.n_neighbours < 2 or args.radius <= 0.0:
        raise InputError("--n-neighbours must be at least 2, and --radius above 0.")
    watched = Watched(jax_env(data.task) if data.task.env_spec else None, None)
    if args.expert:
        if watched.env is None:
            raise InputError("--expert is asked about states that the clone comes to: an environment in JAX is needed.")
        watched = watched._replace(expert=find_expert(args.expert, data.task))
    with Run(__file__, args, data.task, act) as run:
        parts = run.replicate(on_device(data, of, args))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(partial(train, watched=watched), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, parts)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
