"""GCIVL: goal-conditioned implicit V-learning.

Park, Frans, Eysenbach and Levine, "OGBench: Benchmarking Offline Goal-Conditioned RL", ICLR 2025, arXiv 2410.20092,
appendix C; the value's loss is HIQL's (Park et al., NeurIPS 2023, arXiv 2307.11949, eq. 4), after IQL (Kostrikov et
al., arXiv 2110.06169). V(s, g) is minus the discounted number of steps to g: an upper expectile of -1 + gamma V(s', g)
over the data's transitions, 0 where s is g. The policy is cloned with weights exp(beta (V(s', g) - V(s, g))).

Choose it when goals are far apart in the data and actions are few or hard to value: V never sees an action. Where
chance decides, it takes the lucky outcome for the action's merit.

Deviations from OGBench: targets follow the networks of after the step; its code mixes in those of before it, so that
they are one step later.

Parity: equal to OGBench's gcivl.py, update for update, but for the targets (results/parity.md).

    python algorithms/goal_conditioned/gcivl.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/gcivl.py --dataset point-medium-stitch --actor-goals 0 0.5 0.5 --seeds 8
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
from shared.arguments import Expectile, Float, Fraction, GoalArgs, Positive, Shares, Size, hyperparameters
from shared.data import load_dataset
from shared.goals import GoalBatch, GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    expectile: Expectile = 0.9
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 10.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    value_goals: Shares = (0.2, 0.5, 0.3)
    """Shares of the value's goals: the row's own state, a later one of its episode (geometrically), any of the data."""
    actor_goals: Shares = (0.0, 1.0, 0.0)
    """Shares of the actor's goals: the row's own state, a later one of its episode (uniformly), any of the data."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of every network that has no argument of its own for them."""
    eval_temperature: Float = 0.0
    """Of the softmax that discrete actions are drawn from in evaluation; 0: the likeliest."""


_MAZES = [
    f"{robot}-{size}"
    for robot in ("point", "pointmaze", "antmaze", "humanoidmaze", "antsoccer")
    for size in ("umaze", "medium", "large", "giant", "teleport", "arena")
]
_GOALS = {"navigate": (0.0, 1.0, 0.0), "stitch": (0.0, 0.5, 0.5), "explore": (0.0, 0.0, 1.0)}


def _maze(maze: str, kind: str) -> dict:
    long = {"discount": 0.995} if "giant" in maze or "humanoid" in maze else {}
    return {"actor_goals": _GOALS[kind], **long}


PRESETS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _GOALS},
}


def dense_init(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


class Actor(nn.Module):
    """Mean of a Gaussian with standard deviation 1; logits of discrete actions."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, obs, goal):
        x = jnp.concatenate([obs, goal], axis=-1)
        for size in self.hidden_dims:
            x = nn.gelu(nn.Dense(size, kernel_init=dense_init())(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init(0.01))(x)


class Value(nn.Module):
    """V(s, g), or Q(s, g, a): layer normalisation after every activation."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.LayerNorm()(nn.gelu(nn.Dense(size, kernel_init=dense_init())(x)))
        return nn.Dense(1, kernel_init=dense_init())(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    value: Value


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    value: Any
    """Two value functions, stacked on a leading axis [E=2, ...]."""
    target_value: Any
    opt: optax.OptState
    """Of (actor, value)."""


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def values(net: Value, params, obs, goal):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(params, obs, goal)


def value_loss(value, agent: Agent, batch: GoalBatch, args: Args):
    """|expectile - 1(adv < 0)| (r + gamma target V_k(s', g) - V_k(s, g))^2, summed over the two value functions.

    adv = r + gamma min_k target V_k(s', g) - mean_k target V_k(s, g).
    """
    next_v = values(agent.nets.value, agent.target_value, batch.next_obs, batch.goal)
    target_v = values(agent.nets.value, agent.target_value, batch.obs, batch.goal).mean(0)
    discount = args.discount * (1.0 - batch.terminal)
    adv = batch.reward + discount * next_v.min(0) - target_v
    weight = jnp.where(adv < 0, 1.0 - args.expectile, args.expectile)
    v = values(agent.nets.value, value, batch.obs, batch.goal)
    chex.assert_shape([adv, v[0]], (args.batch_size,))
    return (weight * (batch.reward + discount * next_v - v) ** 2).mean(1).sum(0), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-exp(beta (V(s', g) - V(s, g))) log pi(a|s, g), V the mean of the two, weights clipped."""
    v = values(agent.nets.value, agent.value, batch.obs, batch.actor_goal).mean(0)
    next_v = values(agent.nets.value, agent.value, batch.next_obs, batch.actor_goal).mean(0)
    adv = next_v - v
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    log_prob = actor_log_prob(agent.nets.actor.apply(actor, batch.obs, batch.actor_goal), batch.action)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, spec.discrete), Value(args.hidden_dims))
    actor_key, value_key = jax.random.split(key)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    actor = nets.actor.init(actor_key, obs, goal)
    value = jax.lax.map(lambda k: nets.value.init(k, obs, goal), jax.random.split(value_key, 2))
    opt = optax.adam(args.learning_rate).init((actor, value))
    return Agent(nets=nets, actor=actor, value=value, target_value=value, opt=opt)


def sample(key, transitions: GoalTransitions, args: Args) -> GoalBatch:
    """Rows, each with a goal of the value's mixture and one of the actor's."""
    row_key, goal_key, actor_key = jax.random.split(key, 3)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, args.discount)
    return transitions.batch(row, goal_row, transitions.mixture(actor_key, row, args.actor_goals))


def update(agent: Agent, batch: GoalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of actor and value together, each loss with the networks of before."""
    (loss_v, info_v), value_grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    (loss_pi, info_pi), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, opt = optax.adam(args.learning_rate).update((actor_grads, value_grads), agent.opt)
    actor, value = optax.apply_updates((agent.actor, agent.value), updates)
    target_value = optax.incremental_update(value, agent.target_value, args.tau)
    losses = {"value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(actor=actor, value=value, target_value=target_value, opt=opt), {**losses, **info_v, **info_pi}


def act(agent: Agent, obs, goal, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's; discrete ones [B] are drawn at --eval-temperature."""
    output = agent.nets.actor.apply(agent.actor, obs, goal)
    if agent.nets.actor.discrete:
        return jax.random.categorical(key, output / jnp.maximum(args.eval_temperature, 1e-6))
    return jnp.clip(output, -1.0, 1.0)


def train(agent: Agent, keys, args: Args, transitions: GoalTransitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, transitions, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = goal_dataset(load_dataset(args).require(reward=False), args.tasks)
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
