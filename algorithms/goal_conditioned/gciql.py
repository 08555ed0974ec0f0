"""GCIQL: goal-conditioned implicit Q-learning.

Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022, arXiv 2110.06169, in
the goal-conditioned form of OGBench (Park, Frans, Eysenbach and Levine, ICLR 2025, arXiv 2410.20092, appendix C). V(s,
g) is an upper expectile of Q(s, g, a) over the data's actions, and Q regresses to r + gamma V(s', g), so that luck of
the transition is averaged, not chased. The policy is extracted by DDPG+BC (Park et al., arXiv 2406.09329): it climbs Q
and is held to the data by its likelihood; by weighted cloning where actions are discrete.

Choose it when the data's actions are noisy or poor and better ones lie nearby: Q is climbed, not only weighted.

Deviations from OGBench: targets follow the networks of after the step; its code mixes in those of before it, so that
they are one step later.

Parity: equal to OGBench's gciql.py, update for update, but for the targets (results/parity.md).

    python algorithms/goal_conditioned/gciql.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/gciql.py --dataset point-medium-navigate --bc-weight 0.003 0.03 0.3 --seeds 4
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    actor_objective: Literal["auto", "ddpg_bc", "awr"] = "auto"
    """How the actor learns: along Q's gradient, held to the data (ddpg_bc), or by weighted cloning (awr); auto: ddpg_bc
    where actions are continuous."""
    bc_weight: Float = 0.3
    """alpha: weight of -log pi(a|s, g) against the normalised Q (ddpg_bc)."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    expectile: Expectile = 0.9
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
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
_MANIPULATION = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
_WEIGHTS = {"point": 0.003, "pointmaze": 0.003, "antmaze": 0.3, "humanoidmaze": 0.1, "antsoccer": 0.1}
_GOALS = {"navigate": (0.0, 1.0, 0.0), "stitch": (0.0, 0.5, 0.5), "explore": (0.0, 0.0, 1.0)}


def _maze(maze: str, kind: str) -> dict:
    robot = maze.split("-")[0]
    weight = 0.01 if (robot, kind) == ("antmaze", "explore") else _WEIGHTS[robot]
    long = {"discount": 0.995} if "giant" in maze or robot == "humanoidmaze" else {}
    return {"bc_weight": weight, "actor_goals": _GOALS[kind], **long}


PRESETS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _GOALS},
    **{f"{task}-play": {"bc_weight": 1.0} for task in _MANIPULATION},
    **{f"{task}-noisy": {"bc_weight": 0.03} for task in _MANIPULATION},
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
    """V(s, g) and Q(s, g, a); discrete actions one-hot."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    value: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    opt: optax.OptState
    """Of (actor, value, critic)."""


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def q_values(agent: Agent, critics, obs, goal, action):
    """[E, B]"""
    if jnp.issubdtype(action.dtype, jnp.integer):
        action = nn.one_hot(action, agent.nets.actor.action_dim)
    return jax.vmap(agent.nets.value.apply, (0, None, None, None))(critics, obs, goal, action)


def value_loss(value, agent: Agent, batch: GoalBatch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_k target Q_k(s, g, a) - V(s, g)."""
    q = q_values(agent, agent.target_critic, batch.obs, batch.goal, batch.action).min(0)
    v = agent.nets.value.apply(value, batch.obs, batch.goal)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def critic_loss(critic, agent: Agent, batch: GoalBatch, args: Args):
    """(r + gamma V(s', g) - Q_k(s, g, a))^2, summed over the two critics."""
    next_v = agent.nets.value.apply(agent.value, batch.next_obs, batch.goal)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent, critic, batch.obs, batch.goal, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def ddpg_bc_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-Q(s, g, pi(s, g)) / mean |Q| - alpha log pi(a|s, g), Q the least of the two."""
    output = agent.nets.actor.apply(actor, batch.obs, batch.actor_goal)
    q = q_values(agent, agent.critic, batch.obs, batch.actor_goal, jnp.clip(output, -1.0, 1.0)).min(0)
    log_prob = actor_log_prob(output, batch.action)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    q_loss = -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean() + 1e-6)
    return q_loss - args.bc_weight * log_prob.mean(), {"q_pi": q.mean(), "bc_loss": -log_prob.mean()}


def awr_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-exp(beta (min_k Q_k(s, g, a) - V(s, g))) log pi(a|s, g), weights clipped."""
    q = q_values(agent, agent.critic, batch.obs, batch.actor_goal, batch.action).min(0)
    adv = q - agent.nets.value.apply(agent.value, batch.obs, batch.actor_goal)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    log_prob = actor_log_prob(agent.nets.actor.apply(actor, batch.obs, batch.actor_goal), batch.action)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, spec.discrete), Value(args.hidden_dims))
    actor_key, value_key, critic_key = jax.random.split(key, 3)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    action = jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, goal)
    value = nets.value.init(value_key, obs, goal)
    critic = jax.lax.map(lambda k: nets.value.init(k, obs, goal, action), jax.random.split(critic_key, 2))
    opt = optax.adam(args.learning_rate).init((actor, value, critic))
    return Agent(nets=nets, actor=actor, value=value, critic=critic, target_critic=critic, opt=opt)


def sample(key, transitions: GoalTransitions, args: Args) -> GoalBatch:
    """Rows, each with a goal of the value's mixture and one of the actor's."""
    row_key, goal_key, actor_key = jax.random.split(key, 3)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, args.discount)
    return transitions.batch(row, goal_row, transitions.mixture(actor_key, row, args.actor_goals))


def update(agent: Agent, batch: GoalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of actor, V and Q together, each loss with the networks of before."""
    awr = args.actor_objective == "awr" or args.actor_objective == "auto" and agent.nets.actor.discrete
    actor_loss = awr_loss if awr else ddpg_bc_loss
    (loss_v, info_v), value_grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    (loss_q, info_q), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    (loss_pi, info_pi), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    grads, params = (actor_grads, value_grads, critic_grads), (agent.actor, agent.value, agent.critic)
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    actor, value, critic = optax.apply_updates(params, updates)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(actor=actor, value=value, critic=critic, target_critic=target_critic, opt=opt)
    losses = {"value_loss": loss_v, "critic_loss": loss_q, "actor_loss": loss_pi}
    return agent, {**losses, **info_v, **info_q, **info_pi}


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
    discrete = False if args.actor_objective == "ddpg_bc" else None
    data = goal_dataset(load_dataset(args).require(discrete, reward=False), args.tasks)
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
