"""OTA: option-aware temporally abstracted value, for a hierarchical policy.

Ahn, Choi, Han and Moon, "Option-aware Temporally Abstracted Value for Offline Goal-Conditioned Reinforcement Learning",
NeurIPS 2025, arXiv 2505.12737. HIQL (see hiql.py) with a value of its own for the higher policy, whose step is an
option: what the data did in n steps. It counts options, not steps, so that the horizon is n times shorter, and the sign
of its differences stays right for far goals, where that of a value of single steps is lost.

Choose it when goals are so far that HIQL's higher policy wavers.

How goals are mixed, and that the discount is applied once for an option, is from the authors' code, of which
ktolnos/TTGS holds a copy.

Deviations from the paper: n is 5 everywhere, the default of the authors' code; they tune it for each task. Targets
follow the networks of after the step.

    python algorithms/goal_conditioned/ota.py --dataset point-large-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/ota.py --dataset point-large-navigate --option-steps 10 --subgoal-steps 25
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
from shared.errors import InputError
from shared.goals import GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    subgoal_steps: int = 25
    """k: steps between a state and the subgoal that the higher policy proposes."""
    option_steps: int = 5
    """n: steps of an option, of which the higher policy's value counts how many are left; at most subgoal_steps."""
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


PRESETS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _RANDOM},
    **{f"{task}-{kind}": {"subgoal_steps": 10} for task in _MANIPULATION for kind in ("play", "noisy")},
}


class HierarchicalBatch(NamedTuple):
    """Rows with the goals of the value and of both policies."""

    obs: jax.Array
    action: jax.Array
    next_obs: jax.Array
    goal: jax.Array
    """Of the value of single steps."""
    terminal: jax.Array
    """1 where obs achieves `goal`: bootstrapping stops."""
    option_obs: jax.Array
    """The state where the option ends: n steps ahead, or where its goal is reached before."""
    option_goal: jax.Array
    """Of the value of options."""
    option_terminal: jax.Array
    """1 where option_obs achieves `option_goal`."""
    low_goal: jax.Array
    """What the state k steps ahead achieves."""
    high_goal: jax.Array
    subgoal_obs: jax.Array
    """The state k steps ahead, or that of the high goal where it is nearer."""
    subgoal: jax.Array
    """What it achieves."""


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


class Representation(nn.Module):
    """phi([s; g]) [B, representation_dim] of norm sqrt(representation_dim)."""

    hidden_dims: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, obs, goal):
        x = jnp.concatenate([obs, goal], axis=-1)
        for size in self.hidden_dims:
            x = nn.LayerNorm()(nn.gelu(nn.Dense(size, kernel_init=dense_init())(x)))
        return of_unit_scale(nn.Dense(self.size, kernel_init=dense_init())(x))


class Value(nn.Module):
    """V(s, phi): layer normalisation after every activation."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, representation):
        x = jnp.concatenate([obs, representation], axis=-1)
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
    low_value: Any
    """Of single steps; two value functions, stacked on a leading axis [E=2, ...]."""
    target_low_value: Any
    high_value: Any
    """Of options; two, likewise."""
    target_high_value: Any
    opt: optax.OptState
    """Of (high_actor, low_actor, (representation, low_value, high_value))."""


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


def expectile_loss(v, next_target, target, terminal, args: Args):
    """|expectile - 1(adv < 0)| (r + gamma target V_k(s', g) - V_k(s, g))^2, summed over the two values.

    r = -1 until the goal; adv = r + gamma min_k target V_k(s', g) - mean_k target V_k(s, g). All values [E, B].
    """
    reward, discount = terminal - 1.0, args.discount * (1.0 - terminal)
    adv = reward + discount * next_target.min(0) - target.mean(0)
    weight = jnp.where(adv < 0, 1.0 - args.expectile, args.expectile)
    chex.assert_shape([adv, v[0]], (args.batch_size,))
    return (weight * (reward + discount * next_target - v) ** 2).mean(1).sum(0)


def value_loss(params, agent: Agent, batch: HierarchicalBatch, args: Args):
    """The expectile losses of single steps (s, s', g) and of options (s, s_e, g'); the discount is once an option's."""
    representation, low_value, high_value = params
    low_target = partial(values, agent.nets, agent.representation, agent.target_low_value)
    high_target = partial(values, agent.nets, agent.representation, agent.target_high_value)
    low = values(agent.nets, representation, low_value, batch.obs, batch.goal)
    high = values(agent.nets, representation, high_value, batch.obs, batch.option_goal)
    low_ends = (low_target(x, batch.goal) for x in (batch.next_obs, batch.obs))
    high_ends = (high_target(x, batch.option_goal) for x in (batch.option_obs, batch.obs))
    low_loss = expectile_loss(low, *low_ends, batch.terminal, args)
    high_loss = expectile_loss(high, *high_ends, batch.option_terminal, args)
    info = {"low_value_loss": low_loss, "high_value_loss": high_loss, "low_v": low.mean(), "high_v": high.mean()}
    return low_loss + high_loss, info


def advantage(agent: Agent, value, later, obs, goal):
    """V(later, g) - V(obs, g) [B], V the mean of the two value functions."""
    later, now = (values(agent.nets, agent.representation, value, x, goal).mean(0) for x in (later, obs))
    return later - now


def high_actor_loss(high_actor, agent: Agent, batch: HierarchicalBatch, args: Args):
    """-exp(beta (V_h(s_{t+k}, g) - V_h(s, g))) log pi_h(phi([s; s_{t+k}])|s, g), weights clipped."""
    adv = advantage(agent, agent.high_value, batch.subgoal_obs, batch.obs, batch.high_goal)
    weight = jnp.minimum(jnp.exp(args.high_beta * adv), args.max_weight)
    proposed = agent.nets.high_actor.apply(high_actor, batch.obs, batch.high_goal)
    wanted = agent.nets.representation.apply(agent.representation, batch.obs, batch.subgoal)
    log_prob = actor_log_prob(proposed, wanted)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"high_adv": adv.mean(), "high_weight": weight.mean()}


def low_actor_loss(low_actor, agent: Agent, batch: HierarchicalBatch, args: Args):
    """-exp(beta (V_l(s', w) - V_l(s, w))) log pi_l(a|s, phi([s; w])), w = s_{t+k}, weights clipped."""
    adv = advantage(agent, agent.low_value, batch.next_obs, batch.obs, batch.low_goal)
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
    high_key, low_key, representation_key, low_value_key, high_value_key = jax.random.split(key, 5)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    phi = jnp.zeros((1, args.representation_dim))
    high_actor, low_actor = nets.high_actor.init(high_key, obs, goal), nets.low_actor.init(low_key, obs, phi)
    representation = nets.representation.init(representation_key, obs, goal)
    low_value, high_value = (
        jax.lax.map(lambda k: nets.value.init(k, obs, phi), jax.random.split(k, 2))
        for k in (low_value_key, high_value_key)
    )
    opt = optax.adam(args.learning_rate).init((high_actor, low_actor, (representation, low_value, high_value)))
    return Agent(nets, high_actor, low_actor, representation, low_value, low_value, high_value, high_value, opt)


def option_rows(key, row, transitions: GoalTransitions, args: Args):
    """Where the option of each row ends, and its goal's row.

    The goal that an option is for is a later state of the episode, where it ends if that is nearer, or any state of the
    data. In place of the row's own state, and whatever the option is for, the state where it ends is the goal.
    """
    kind_key, own_key, future_key, any_key = jax.random.split(key, 4)
    current, future, other = (share / sum(args.value_goals) for share in args.value_goals)
    of_future = jax.random.uniform(kind_key, row.shape) * (future + other) < future
    ahead, future_row = transitions.ahead(row, args.option_steps), transitions.future(future_key, row, args.discount)
    end_row = jnp.where(of_future, jnp.minimum(ahead, future_row), ahead)
    goal_row = jnp.where(of_future, future_row, transitions.rows(any_key, row.shape))
    return end_row, jnp.where(jax.random.uniform(own_key, row.shape) < current, end_row, goal_row)


def sample(key, transitions: GoalTransitions, args: Args) -> HierarchicalBatch:
    """Rows with the goals of both values, the state k steps ahead, and a later or any state beyond a subgoal."""
    row_key, goal_key, option_key, future_key, any_key, kind_key = jax.random.split(key, 6)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, args.discount)
    end_row, option_goal_row = option_rows(option_key, row, transitions, args)
    low_row = transitions.ahead(row, args.subgoal_steps)
    future_row, any_row = transitions.future(future_key, row), transitions.rows(any_key, row.shape)
    of_any = jax.random.uniform(kind_key, row.shape) < args.random_actor_goals
    high_row = jnp.where(of_any, any_row, future_row)
    subgoal_row = jnp.where(of_any, low_row, jnp.minimum(low_row, future_row))
    at, (option_obs, subgoal_obs) = transitions.take(row), transitions.take(jnp.stack([end_row, subgoal_row])).obs
    rows = jnp.stack([goal_row, option_goal_row, low_row, high_row, subgoal_row])
    goal, option_goal, low_goal, high_goal, subgoal = transitions.goal(rows)
    terminal, option_terminal = ((a == b).astype(jnp.float32) for a, b in ((goal_row, row), (option_goal_row, end_row)))
    goals = goal, terminal, option_obs, option_goal, option_terminal, low_goal, high_goal, subgoal_obs, subgoal
    return HierarchicalBatch(at.obs, at.action, at.next_obs, *goals)


def update(agent: Agent, batch: HierarchicalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of both values and both policies together, each loss with the networks of before."""
    params = agent.high_actor, agent.low_actor, (agent.representation, agent.low_value, agent.high_value)
    (loss_h, info_h), high_grads = jax.value_and_grad(high_actor_loss, has_aux=True)(params[0], agent, batch, args)
    (loss_l, info_l), low_grads = jax.value_and_grad(low_actor_loss, has_aux=True)(params[1], agent, batch, args)
    (_, info_v), value_grads = jax.value_and_grad(value_loss, has_aux=True)(params[2], agent, batch, args)
    updates, opt = optax.adam(args.learning_rate).update((high_grads, low_grads, value_grads), agent.opt)
    high_actor, low_actor, (representation, low_value, high_value) = optax.apply_updates(params, updates)
    target_low_value = optax.incremental_update(low_value, agent.target_low_value, args.tau)
    target_high_value = optax.incremental_update(high_value, agent.target_high_value, args.tau)
    learned = low_value, target_low_value, high_value, target_high_value
    agent = Agent(agent.nets, high_actor, low_actor, representation, *learned, opt)
    return agent, {"high_actor_loss": loss_h, "low_actor_loss": loss_l, **info_v, **info_h, **info_l}


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
    data = goal_dataset(load_dataset(args).require(reward=False), args.tasks)
    data.require_steps(args.subgoal_steps, "--subgoal-steps")
    if not 1 <= args.option_steps <= args.subgoal_steps:
        raise InputError(f"--option-steps {args.option_steps}: 1 to --subgoal-steps {args.subgoal_steps}.")
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
