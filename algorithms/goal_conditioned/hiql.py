"""HIQL: hierarchical implicit Q-learning.

Park, Ghosh, Eysenbach and Levine, "HIQL: Offline Goal-Conditioned RL with Latent States as Actions", NeurIPS 2023,
arXiv 2307.11949, in the form of OGBench (Park, Frans, Eysenbach and Levine, ICLR 2025, arXiv 2410.20092, appendix C).
One value V(s, g) without actions (eq. 4); two policies cloned by its differences: the high one proposes the
representation of a state k steps ahead (eq. 6), the low one acts towards it (eq. 7). Near goals the signs of V's
differences are right even where far goals drown them in noise.

Choose it when goals are far: the higher policy needs only a rough value, and the lower one only a near one.

Deviations from OGBench: targets follow the networks of after the step; its code mixes in those of before it, so that
they are one step later. From the paper, as OGBench has it: the goal representation phi([s; g]) is of state and goal
and has norm sqrt(its size); the target value shares it. Pictures have V-D4RL's encoder (arXiv 2206.04779), one in each
network, and are not moved at random; there, too, the representation is learned by the value alone.

Parity: equal to OGBench's hiql.py, update for update, but for the targets (results/parity.md).

    python algorithms/goal_conditioned/hiql.py --dataset point-large-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/hiql.py --dataset point-large-navigate --subgoal-steps 25 --high-beta 1 3 10
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
from shared.arguments import (
    Expectile,
    Float,
    Fraction,
    GoalArgs,
    Positive,
    Shares,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import load_dataset
from shared.goals import GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    subgoal_steps: int = 25
    """k: steps between a state and the subgoal that the higher policy proposes."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    high_beta: Float = 3.0
    """Inverse temperature of the higher policy's advantage weights."""
    low_beta: Float = 3.0
    """Inverse temperature of the lower policy's advantage weights."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    representation_dim: Size = 10
    """Size of a goal's representation."""
    value_goals: Shares = (0.2, 0.5, 0.3)
    """Shares of the value's goals: the row's own state, a later one of its episode (geometrically), any of the data."""
    random_actor_goals: StaticFraction = 0.0
    """Share of the higher policy's goals that are any of the data; the others are later ones of the episode."""
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
_MANIPULATION = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
_RANDOM = {"navigate": 0.0, "stitch": 0.5, "explore": 1.0}
_STEPS = {"point": 10, "humanoidmaze": 100}  # the first is ours: its ways are short


def _maze(maze: str, kind: str) -> dict:
    robot = maze.split("-")[0]
    long = {"discount": 0.995} if "giant" in maze or robot == "humanoidmaze" else {}
    steep = {"high_beta": 10.0, "low_beta": 10.0} if (robot, kind) == ("antmaze", "explore") else {}
    return {"random_actor_goals": _RANDOM[kind], "subgoal_steps": _STEPS.get(robot, 25), **long, **steep}


_PICTURES = {"batch_size": 256, "updates": 500_000}
_VECTORS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _RANDOM},
    **{f"{task}-{kind}": {"subgoal_steps": 10} for task in _MANIPULATION for kind in ("play", "noisy")},
}
_VISUAL = ("antmaze", "humanoidmaze", *_MANIPULATION)
PRESETS = {
    **_VECTORS,
    **{f"visual-{task}": {**preset, **_PICTURES} for task, preset in _VECTORS.items() if task.startswith(_VISUAL)},
    "powderworld": {"subgoal_steps": 10, **_PICTURES, "eval_temperature": 0.3},
}


class HierarchicalBatch(NamedTuple):
    """Rows with the goals of the value and of both policies."""

    obs: jax.Array
    action: jax.Array
    next_obs: jax.Array
    goal: jax.Array
    terminal: jax.Array
    """1 where obs achieves `goal`: bootstrapping stops."""
    reward: jax.Array
    """0 where obs achieves `goal`, else -1."""
    low_goal: jax.Array
    """What the state k steps ahead achieves."""
    high_goal: jax.Array
    subgoal_obs: jax.Array
    """The state k steps ahead, or that of the high goal where it is nearer."""
    subgoal: jax.Array
    """What it achieves."""


def dense_init(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def patches(x, stride: int):
    """[B, H, W, C] -> [B, H / stride, W / stride, 9 C]: what a padded 3x3 convolution multiplies by its kernel.

    As a product of matrices it is many times faster in a scan on CPU, and needs no grouped one where lanes are vmapped.
    """
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], -1
    )


class Encoder(nn.Module):
    """Images [B, H, W, C] uint8 -> [B, 50]: V-D4RL's four convolutions (padded, so that small images do) and trunk."""

    @nn.compact
    def __call__(self, obs):
        x = obs / 255.0 - 0.5
        for stride in (2, 1, 1, 1):
            x = nn.relu(nn.Dense(32, kernel_init=nn.initializers.orthogonal(jnp.sqrt(2.0)))(patches(x, stride)))
        x = nn.Dense(50, kernel_init=nn.initializers.orthogonal())(x.reshape(len(x), -1))
        return jnp.tanh(nn.LayerNorm()(x))


def seen(obs, goal):
    """[B, D] of a state and a goal, or of a state and features; pictures go through an encoder of the caller's own."""
    if obs.ndim == 2:
        return jnp.concatenate([obs, goal], axis=-1)
    if goal.ndim == 2:
        return jnp.concatenate([Encoder()(obs), goal], axis=-1)
    return Encoder()(jnp.concatenate([obs, goal], axis=-1))


class Actor(nn.Module):
    """Mean of a Gaussian with standard deviation 1; logits of discrete actions."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, obs, goal):
        x = seen(obs, goal)
        for size in self.hidden_dims:
            x = nn.gelu(nn.Dense(size, kernel_init=dense_init())(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init(0.01))(x)


class Representation(nn.Module):
    """phi([s; g]) [B, representation_dim] of norm sqrt(representation_dim)."""

    hidden_dims: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, obs, goal):
        x = seen(obs, goal)
        for size in self.hidden_dims:
            x = nn.LayerNorm()(nn.gelu(nn.Dense(size, kernel_init=dense_init())(x)))
        return of_unit_scale(nn.Dense(self.size, kernel_init=dense_init())(x))


class Value(nn.Module):
    """V(s, phi): layer normalisation after every activation."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, representation):
        x = seen(obs, representation)
        for size in self.hidden_dims:
            x = nn.LayerNorm()(nn.gelu(nn.Dense(size, kernel_init=dense_init())(x)))
        return nn.Dense(1, kernel_init=dense_init())(x)[..., 0]


class Networks(NamedTuple):
    high_actor: Actor
    low_actor: Actor
    representation: Representation
    value: Value


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    high_actor: Any
    """Gaussian over representations, of state and goal."""
    low_actor: Any
    """Over actions, of state and a subgoal's representation."""
    representation: Any
    value: Any
    """Two value functions, stacked on a leading axis [E=2, ...]."""
    target_value: Any
    opt: optax.OptState
    """Of (high_actor, low_actor, (representation, value))."""


def of_unit_scale(x):
    """[..., D] scaled to norm sqrt(D)."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) * jnp.sqrt(x.shape[-1])


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def values(nets: Networks, representation, value, obs, goal):
    """V(s, phi([s; g])) [E, B]"""
    phi = nets.representation.apply(representation, obs, goal)
    return jax.vmap(nets.value.apply, (0, None, None))(value, obs, phi)


def value_loss(params, agent: Agent, batch: HierarchicalBatch, args: Args):
    """|expectile - 1(adv < 0)| (r + gamma target V_k(s', g) - V_k(s, g))^2, summed over the two values (eq. 4).

    adv = r + gamma min_k target V_k(s', g) - mean_k target V_k(s, g).
    """
    target = partial(values, agent.nets, agent.representation, agent.target_value)
    next_v, discount = target(batch.next_obs, batch.goal), args.discount * (1.0 - batch.terminal)
    adv = batch.reward + discount * next_v.min(0) - target(batch.obs, batch.goal).mean(0)
    weight = jnp.where(adv < 0, 1.0 - args.expectile, args.expectile)
    v = values(agent.nets, *params, batch.obs, batch.goal)
    chex.assert_shape([adv, v[0]], (args.batch_size,))
    return (weight * (batch.reward + discount * next_v - v) ** 2).mean(1).sum(0), {"v": v.mean()}


def mean_value(agent: Agent, obs, goal):
    """[B] the mean of the two value functions."""
    return values(agent.nets, agent.representation, agent.value, obs, goal).mean(0)


def high_actor_loss(high_actor, agent: Agent, batch: HierarchicalBatch, args: Args):
    """-exp(beta (V(s_{t+k}, g) - V(s, g))) log pi_h(phi([s; s_{t+k}])|s, g), weights clipped (eq. 6)."""
    adv = mean_value(agent, batch.subgoal_obs, batch.high_goal) - mean_value(agent, batch.obs, batch.high_goal)
    weight = jnp.minimum(jnp.exp(args.high_beta * adv), args.max_weight)
    proposed = agent.nets.high_actor.apply(high_actor, batch.obs, batch.high_goal)
    wanted = agent.nets.representation.apply(agent.representation, batch.obs, batch.subgoal)
    log_prob = actor_log_prob(proposed, wanted)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"high_adv": adv.mean(), "high_weight": weight.mean()}


def low_actor_loss(low_actor, agent: Agent, batch: HierarchicalBatch, args: Args):
    """-exp(beta (V(s', w) - V(s, w))) log pi_l(a|s, phi([s; w])), w = s_{t+k}, weights clipped (eq. 7)."""
    adv = mean_value(agent, batch.next_obs, batch.low_goal) - mean_value(agent, batch.obs, batch.low_goal)
    weight = jnp.minimum(jnp.exp(args.low_beta * adv), args.max_weight)
    phi = agent.nets.representation.apply(agent.representation, batch.obs, batch.low_goal)
    log_prob = actor_log_prob(agent.nets.low_actor.apply(low_actor, batch.obs, phi), batch.action)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"low_adv": adv.mean(), "low_weight": weight.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, args.representation_dim, discrete=False),
        Actor(args.hidden_dims, spec.action_dim, spec.discrete),
        Representation(args.hidden_dims, args.representation_dim),
        Value(args.hidden_dims),
    )
    high_key, low_key, representation_key, value_key = jax.random.split(key, 4)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    phi = jnp.zeros((1, args.representation_dim))
    high_actor, low_actor = nets.high_actor.init(high_key, obs, goal), nets.low_actor.init(low_key, obs, phi)
    representation = nets.representation.init(representation_key, obs, goal)
    value = jax.lax.map(lambda k: nets.value.init(k, obs, phi), jax.random.split(value_key, 2))
    opt = optax.adam(args.learning_rate).init((high_actor, low_actor, (representation, value)))
    return Agent(nets, high_actor, low_actor, representation, value, value, opt)


def sample(key, transitions: GoalTransitions, args: Args) -> HierarchicalBatch:
    """Rows with goals: the value's mixture, the state k steps ahead, and a later or any state beyond a subgoal."""
    row_key, goal_key, future_key, any_key, kind_key = jax.random.split(key, 5)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, args.discount)
    low_row = transitions.ahead(row, args.subgoal_steps)
    future_row, any_row = transitions.future(future_key, row), transitions.rows(any_key, row.shape)
    of_any = jax.random.uniform(kind_key, row.shape) < args.random_actor_goals
    high_row = jnp.where(of_any, any_row, future_row)
    subgoal_row = jnp.where(of_any, low_row, jnp.minimum(low_row, future_row))
    at, subgoal_obs = transitions.take(row), transitions.take(subgoal_row).obs
    goal, low_goal, high_goal, subgoal = transitions.goal(jnp.stack([goal_row, low_row, high_row, subgoal_row]))
    terminal = (goal_row == row).astype(jnp.float32)
    goals = goal, terminal, terminal - 1.0, low_goal, high_goal, subgoal_obs, subgoal
    return HierarchicalBatch(at.obs, at.action, at.next_obs, *goals)


def update(agent: Agent, batch: HierarchicalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of value and both policies together, each loss with the networks of before."""
    params = agent.high_actor, agent.low_actor, (agent.representation, agent.value)
    (loss_h, info_h), high_grads = jax.value_and_grad(high_actor_loss, has_aux=True)(params[0], agent, batch, args)
    (loss_l, info_l), low_grads = jax.value_and_grad(low_actor_loss, has_aux=True)(params[1], agent, batch, args)
    (loss_v, info_v), value_grads = jax.value_and_grad(value_loss, has_aux=True)(params[2], agent, batch, args)
    updates, opt = optax.adam(args.learning_rate).update((high_grads, low_grads, value_grads), agent.opt)
    high_actor, low_actor, (representation, value) = optax.apply_updates(params, updates)
    target_value = optax.incremental_update(value, agent.target_value, args.tau)
    losses = {"value_loss": loss_v, "high_actor_loss": loss_h, "low_actor_loss": loss_l}
    agent = Agent(agent.nets, high_actor, low_actor, representation, value, target_value, opt)
    return agent, {**losses, **info_v, **info_h, **info_l}


def act(agent: Agent, obs, goal, key, args: Args):
    """Actions [B, A] in [-1, 1]: both policies' means; discrete ones [B] are drawn at --eval-temperature."""
    phi = of_unit_scale(agent.nets.high_actor.apply(agent.high_actor, obs, goal))
    output = agent.nets.low_actor.apply(agent.low_actor, obs, phi)
    if agent.nets.low_actor.discrete:
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
    data = goal_dataset(load_dataset(args).require(reward=False, images=True), args.tasks)
    data.require_steps(args.subgoal_steps, "--subgoal-steps")
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
