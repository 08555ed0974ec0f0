"""QRL: quasimetric reinforcement learning.

Wang, Torralba, Isola and Zhang, "Optimal Goal-Reaching Reinforcement Learning via Quasimetric Learning", ICML 2023,
arXiv 2304.01203, in the form of OGBench (Park, Frans, Eysenbach and Levine, ICLR 2025, arXiv 2410.20092, appendix C).
-V(s, g) is a distance d(s, g) that is a quasimetric by its form (interval quasimetric embeddings, Wang and Isola, arXiv
2211.15120): d(s, s) = 0, the triangle inequality, no symmetry. States that are one step apart are at most 1 apart, and
all others are pushed as far apart as that allows (eq. 10): what is left is the length of the shortest path.

Choose it when dynamics are deterministic and long ways must be put together from short pieces. Where chance decides, it
counts on the luckiest outcome.

Deviations from the paper, as OGBench has them: the actor climbs the distance after one step of a latent model
(continuous actions) or is cloned by weights (discrete ones).

Parity: equal to OGBench's qrl.py, update for update (results/parity.md).

    python algorithms/goal_conditioned/qrl.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/qrl.py --dataset point-medium-stitch --latent-dim 128 --hidden-dims 128 128
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
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Float, GoalArgs, Positive, Shares, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalBatch, GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    distance: Literal["iqe", "mrn"] = "iqe"
    """Form of the quasimetric: interval embeddings, or metric residual networks (Liu et al., arXiv 2208.08133)."""
    latent_dim: Size = 512
    """Size of the representations."""
    constraint_slack: Float = 0.05
    """epsilon: mean squared excess over 1 of the distance of one step that the multiplier aims at."""
    actor_objective: Literal["auto", "ddpg_bc", "awr"] = "auto"
    """How the actor learns: along Q's gradient, held to the data (ddpg_bc), or by weighted cloning (awr); auto: ddpg_bc
    where actions are continuous."""
    bc_weight: Float = 0.0003
    """alpha: weight of -log pi(a|s, g) against the normalised Q (ddpg_bc)."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    value_goals: Shares = (0.0, 0.0, 1.0)
    """Shares of the value's goals: the row's own state, a later one of its episode (geometrically), any of the data."""
    actor_goals: Shares = (0.0, 1.0, 0.0)
    """Shares of the actor's goals: the row's own state, a later one of its episode (uniformly), any of the data."""
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
_WEIGHTS = {"point": 0.0003, "pointmaze": 0.0003, "antmaze": 0.003, "humanoidmaze": 0.001, "antsoccer": 0.003}
_GOALS = {"navigate": (0.0, 1.0, 0.0), "stitch": (0.0, 0.5, 0.5), "explore": (0.0, 0.0, 1.0)}


def _maze(maze: str, kind: str) -> dict:
    robot = maze.split("-")[0]
    return {
        "bc_weight": 0.001 if (robot, kind) == ("antmaze", "explore") else _WEIGHTS[robot],
        "actor_goals": _GOALS[kind],
    }


PRESETS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _GOALS},
    **{f"{task}-play": {"bc_weight": 0.3} for task in _MANIPULATION},
    **{f"{task}-noisy": {"bc_weight": 0.03} for task in _MANIPULATION},
}

FAR, SOFTNESS = 500.0, 100.0
"""Distance beyond which pairs are pushed apart no more, and how softly that sets in."""
GROUP = 8
"""Intervals of one component of the interval embedding."""
DISCOUNT = 0.99
"""Of how far ahead the value's goals of an episode lie, where --value-goals asks for such; of nothing else."""


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


class Embedding(nn.Module):
    """[B, outputs]: layer normalisation after every activation."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.LayerNorm()(nn.gelu(nn.Dense(size, kernel_init=dense_init())(x)))
        return nn.Dense(self.outputs, kernel_init=dense_init())(x)


class Networks(NamedTuple):
    actor: Actor
    encoder: Embedding
    """phi, of states and goals alike, and the latent model's change of phi(s) under an action."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    encoder: Any
    mixing: jax.Array
    """Of the mean and the largest component of the distance, as a logit."""
    dynamics: Any
    log_multiplier: jax.Array
    opt: optax.OptState
    """Of (actor, (encoder, mixing, dynamics), log_multiplier)."""


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def union_length(x, y):
    """Length of the union of the intervals [x_i, y_i] over the last axis; those with x_i >= y_i are empty."""
    order = jnp.argsort(x, axis=-1)
    low, high = (jnp.take_along_axis(z, order, axis=-1) for z in (x, jnp.maximum(x, y)))
    covered = jax.lax.cummax(high, axis=high.ndim - 1)  # up to here, by this interval and those that begin before it
    start = jnp.maximum(low, jnp.concatenate([low[..., :1], covered[..., :-1]], axis=-1))
    return jnp.maximum(high - start, 0.0).sum(-1)


def iqe(x, y, mixing):
    """Interval quasimetric of latents [..., D]: a mixture of the mean and the largest of its D / 8 components."""
    components = union_length(*(z.reshape(*z.shape[:-1], -1, GROUP) for z in (x, y)))
    share = nn.sigmoid(mixing)
    return share * components.mean(-1) + (1.0 - share) * components.max(-1)


def mrn(x, y, mixing):
    """Metric residual network of latents [..., D]: Euclidean in one half, the largest excess of x in the other."""
    (x, x_rest), (y, y_rest) = (jnp.split(z, 2, axis=-1) for z in (x, y))
    symmetric = jnp.sqrt(jnp.maximum(((x - y) ** 2).sum(-1), 1e-12))
    return symmetric + jnp.maximum((x_rest - y_rest).max(-1), 0.0)


DISTANCES = {"iqe": iqe, "mrn": mrn}


def value_loss(params, agent: Agent, batch: GoalBatch, args: Args):
    """100 softplus(5 - d(s, g) / 100) + lambda max(0, d(s, s') - 1)^2, g of the data (eq. 10 and 11).

    And the latent model's: (d(phi(s'), z) + d(z, phi(s'))) / 2, z = phi(s) + f(phi(s), a); it reaches phi, too.
    """
    encoder, mixing, dynamics = params
    distance = partial(DISTANCES[args.distance], mixing=mixing)
    z, next_z, goal_z = (agent.nets.encoder.apply(encoder, x) for x in (batch.obs, batch.next_obs, batch.goal))
    far, step = distance(z, goal_z), distance(z, next_z)
    chex.assert_shape([far, step], (args.batch_size,))
    apart = (SOFTNESS * nn.softplus((FAR - far) / SOFTNESS)).mean()
    excess = (jnp.maximum(step - 1.0, 0.0) ** 2).mean()
    multiplier = jax.lax.stop_gradient(jnp.exp(agent.log_multiplier))
    loss, info = apart + multiplier * excess, {"distance": far.mean(), "step": step.mean(), "excess": excess}
    if learns_dynamics(agent, args):
        after = z + agent.nets.encoder.apply(dynamics, z, batch.action)
        model = (distance(next_z, after) + distance(after, next_z)).mean() / 2.0
        loss, info = loss + model, {**info, "model_loss": model}
    return loss, info


def multiplier_loss(log_multiplier, excess, args: Args):
    """lambda (epsilon - excess): lambda grows while one step is longer than 1 (eq. 12)."""
    return jnp.exp(log_multiplier) * (args.constraint_slack - excess)


def ddpg_bc_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-Q(s, g, pi(s, g)) / mean |Q| - alpha log pi(a|s, g), Q = -d(phi(s) + f(phi(s), a), phi(g))."""
    output = agent.nets.actor.apply(actor, batch.obs, batch.actor_goal)
    z, goal_z = (agent.nets.encoder.apply(agent.encoder, x) for x in (batch.obs, batch.actor_goal))
    after = z + agent.nets.encoder.apply(agent.dynamics, z, jnp.clip(output, -1.0, 1.0))
    q = -DISTANCES[args.distance](after, goal_z, agent.mixing)
    log_prob = actor_log_prob(output, batch.action)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    q_loss = -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean() + 1e-6)
    return q_loss - args.bc_weight * log_prob.mean(), {"q_pi": q.mean(), "bc_loss": -log_prob.mean()}


def awr_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-exp(beta (d(s, g) - d(s', g))) log pi(a|s, g), weights clipped."""
    inputs = batch.obs, batch.next_obs, batch.actor_goal
    z, next_z, goal_z = (agent.nets.encoder.apply(agent.encoder, x) for x in inputs)
    distance = partial(DISTANCES[args.distance], mixing=agent.mixing)
    adv = distance(z, goal_z) - distance(next_z, goal_z)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    log_prob = actor_log_prob(agent.nets.actor.apply(actor, batch.obs, batch.actor_goal), batch.action)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def learns_dynamics(agent: Agent, args: Args) -> bool:
    """Whether the actor climbs the distance through the latent model."""
    return args.actor_objective == "ddpg_bc" or args.actor_objective == "auto" and not agent.nets.actor.discrete


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    encoder = Embedding(args.hidden_dims, args.latent_dim)
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, spec.discrete), encoder)
    actor_key, encoder_key, dynamics_key = jax.random.split(key, 3)
    obs, z, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, args.latent_dim)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, jnp.zeros((1, *spec.goal_shape)))
    encoder, dynamics = nets.encoder.init(encoder_key, obs), nets.encoder.init(dynamics_key, z, action)
    mixing = log_multiplier = jnp.zeros(())
    opt = optax.adam(args.learning_rate).init((actor, (encoder, mixing, dynamics), log_multiplier))
    return Agent(nets, actor, encoder, mixing, dynamics, log_multiplier, opt)


def sample(key, transitions: GoalTransitions, args: Args) -> GoalBatch:
    """Rows, each with a goal of the value's mixture and one of the actor's."""
    row_key, goal_key, actor_key = jax.random.split(key, 3)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, DISCOUNT)
    return transitions.batch(row, goal_row, transitions.mixture(actor_key, row, args.actor_goals))


def update(agent: Agent, batch: GoalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of actor, distance, latent model and multiplier together, with the networks of before."""
    actor_loss = ddpg_bc_loss if learns_dynamics(agent, args) else awr_loss
    value = agent.encoder, agent.mixing, agent.dynamics
    (loss_v, info_v), value_grads = jax.value_and_grad(value_loss, has_aux=True)(value, agent, batch, args)
    (loss_pi, info_pi), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    multiplier_grad = jax.grad(multiplier_loss)(agent.log_multiplier, info_v["excess"], args)
    params = agent.actor, value, agent.log_multiplier
    updates, opt = optax.adam(args.learning_rate).update((actor_grads, value_grads, multiplier_grad), agent.opt)
    actor, (encoder, mixing, dynamics), log_multiplier = optax.apply_updates(params, updates)
    losses = {"value_loss": loss_v, "actor_loss": loss_pi, "multiplier": jnp.exp(agent.log_multiplier)}
    agent = Agent(agent.nets, actor, encoder, mixing, dynamics, log_multiplier, opt)
    return agent, {**losses, **info_v, **info_pi}


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
    if data.achieved is not None and not np.array_equal(data.achieved, data.data.obs):
        raise InputError(
            f"The distance is between states; the goals of '{data.task.id}' are none: they have only a part of a state."
        )
    if args.latent_dim % (GROUP if args.distance == "iqe" else 2):
        raise InputError(f"--latent-dim {args.latent_dim}: a multiple of 8 is needed (with --distance mrn, of 2).")
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
