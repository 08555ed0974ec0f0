"""DWSL: distance weighted supervised learning.

Hejna, Gao and Sadigh, "Distance Weighted Supervised Learning for Offline Interaction Data", ICML 2023, arXiv
2304.13774.
Supervised twice: a classifier learns how many steps it took, in the data, from a state to a later one of its episode
(eq. 3); a soft minimum over that distribution (eq. 4) estimates the shortest way, without bootstrapping. Actions are
cloned with weights exp(A / beta), A what a step shortens it by (eq. 6).

Choose it when the data wanders: ways are shortened, nothing is bootstrapped, nothing diverges.

Deviations from the paper:
- observations are not normalised by running statistics, and there is no dropout (kitchen);
- one distance network: the paper's ensembles have one member in all its settings;
- rows are drawn uniformly; the released code draws an episode first, long or short;
- the state that an episode's last row leads to is no row here, and so never a goal, nor the state nstep steps later;
  the released code's buffer holds it. So one row more of each episode is left out of both losses, besides those whose
  episode does not go on for nstep steps (which are not drawn there).

    python algorithms/goal_conditioned/dwsl.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/dwsl.py --dataset point-medium-explore --soft-min 0.1 1.0 --seeds 4
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Float, GoalArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    bins: int = 50
    """B: classes of the distance; farther goals are in the last one."""
    nstep: int = 1
    """Steps of one class, and between the two states of an advantage."""
    soft_min: Positive = 1.0
    """alpha: temperature of the minimum over distances, of which the farthest is 1; large: their mean."""
    temperature: Positive = 0.05
    """Temperature that advantages are divided by, in units of Q: small follows the advantage, large clones."""
    max_weight: Positive = 10.0
    """Clip of the exponential advantage weights."""
    learning_rate: Float = 5e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


_antmaze = {"bins": 140, "nstep": 3, "hidden_dims": (512, 512), "updates": 80_000}
PRESETS = {  # antmaze's bins by maze are those that the released run_dwsl.json lists; 140 is its base's
    "antmaze": _antmaze,
    "antmaze-umaze": {**_antmaze, "bins": 100},
    "antmaze-medium": {**_antmaze, "bins": 150},
    "antmaze-large": {**_antmaze, "bins": 200},
    "kitchen": {"bins": 140, "nstep": 2, "hidden_dims": (512, 512), "updates": 400_000},
    **dict.fromkeys(("fetch", "hand"), {"updates": 200_000}),
}

dense_init = nn.initializers.orthogonal()


class MLP(nn.Module):
    """ReLU network on state and goal."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, obs, goal):
        x = jnp.concatenate([obs, goal], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class DistanceBatch(NamedTuple):
    """Rows with a state of their episode as the goal, nstep steps later at least."""

    obs: jax.Array
    action: jax.Array
    next_obs: jax.Array
    """nstep steps later."""
    goal: jax.Array
    steps: jax.Array
    """To the goal, at least nstep."""
    valid: jax.Array
    """0 where the episode has no state nstep steps later."""


class Networks(NamedTuple):
    actor: MLP
    distance: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    distance: Any
    """Logits of the classes."""
    actor_opt: optax.OptState
    distance_opt: optax.OptState


def mean_of_valid(x, batch: DistanceBatch):
    return (batch.valid * x).sum() / jnp.maximum(batch.valid.sum(), 1.0)


def soft_min_distance(agent: Agent, obs, goal, args: Args):
    """-alpha log sum_b p_b exp(-d_b / alpha), d_b = b / B [B] (eq. 4)."""
    log_p = nn.log_softmax(agent.nets.distance.apply(agent.distance, obs, goal))
    d = jnp.arange(args.bins) / args.bins
    return -args.soft_min * jax.nn.logsumexp(log_p - d / args.soft_min, axis=-1)


def distance_loss(distance, agent: Agent, batch: DistanceBatch, args: Args):
    """Cross-entropy of the class of the data's number of steps, nstep to a class (eq. 3)."""
    logits = agent.nets.distance.apply(distance, batch.obs, batch.goal)
    label = jnp.minimum((batch.steps - 1) // args.nstep, args.bins - 1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    chex.assert_shape(loss, (args.batch_size,))
    return mean_of_valid(loss, batch)


def actor_loss(actor, agent: Agent, batch: DistanceBatch, args: Args):
    """exp(A / beta) (pi(s, g) - a)^2, A = d(s, g) - c - d(s', g), weights clipped (eq. 5 and 6).

    c = 1 / B, one class: no goal is nearer than s', which is nstep steps ahead.
    """
    near, far = (soft_min_distance(agent, x, batch.goal, args) for x in (batch.next_obs, batch.obs))
    adv = far - 1.0 / args.bins - near
    weight = jnp.minimum(jnp.exp(adv / args.temperature), args.max_weight)
    error = ((jnp.tanh(agent.nets.actor.apply(actor, batch.obs, batch.goal)) - batch.action) ** 2).sum(-1)
    chex.assert_shape([weight, error], (args.batch_size,))
    info = {"adv": adv, "weight": weight, "distance": far}
    return mean_of_valid(weight * error, batch), {k: mean_of_valid(v, batch) for k, v in info.items()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(MLP(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, args.bins))
    actor_key, distance_key = jax.random.split(key)
    inputs = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    actor, distance = nets.actor.init(actor_key, *inputs), nets.distance.init(distance_key, *inputs)
    adam = optax.adam(args.learning_rate)
    return Agent(nets, actor, distance, adam.init(actor), adam.init(distance))


def sample(key, transitions: GoalTransitions, args: Args) -> DistanceBatch:
    """Rows, each with a state of its episode, nstep steps later or more, uniformly."""
    row_key, goal_key = jax.random.split(key)
    row = transitions.rows(row_key, args.batch_size)
    goals = jnp.maximum(transitions.ahead(row, len(transitions.end)) - row - args.nstep + 1, 0)  # that there are
    steps = args.nstep + jnp.floor(jax.random.uniform(goal_key, row.shape) * goals).astype(row.dtype)
    at, goal = transitions.take(row), transitions.goal(transitions.ahead(row, steps))
    next_obs = at.next_obs if args.nstep == 1 else transitions.take(transitions.ahead(row, args.nstep)).obs
    return DistanceBatch(at.obs, at.action, next_obs, goal, steps, (goals > 0).astype(jnp.float32))


def update(agent: Agent, batch: DistanceBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the distance and of the actor, with the distance of before."""
    adam = optax.adam(args.learning_rate)
    loss_d, distance_grads = jax.value_and_grad(distance_loss)(agent.distance, agent, batch, args)
    (loss_pi, info), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, distance_opt = adam.update(distance_grads, agent.distance_opt)
    distance = optax.apply_updates(agent.distance, updates)
    updates, actor_opt = adam.update(actor_grads, agent.actor_opt)
    actor = optax.apply_updates(agent.actor, updates)
    losses = {"distance_loss": loss_d, "actor_loss": loss_pi}
    return Agent(agent.nets, actor, distance, actor_opt, distance_opt), {**losses, **info}


def act(agent: Agent, obs, goal, key, args: Args):
    """Actions [B, A] in [-1, 1]."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs, goal))


def train(agent: Agent, keys, args: Args, transitions: GoalTransitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, transitions, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = goal_dataset(load_dataset(args).require(discrete=False, reward=False), args.tasks)
    data.require_steps(args.nstep, "--nstep")
    if args.bins < 2:
        raise InputError(f"--bins {args.bins}: at least 2 classes of the distance.")
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.task.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
