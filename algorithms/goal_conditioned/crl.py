"""CRL: contrastive reinforcement learning.

Eysenbach, Zhang, Salakhutdinov and Levine, "Contrastive Learning as Goal-Conditioned Reinforcement Learning", NeurIPS
2022, arXiv 2206.07568, in the form of OGBench (Park, Frans, Eysenbach and Levine, ICLR 2025, arXiv 2410.20092, appendix
C). f(s, a, g) = phi(s, a) . psi(g) tells the goal that a row came to (a later state, geometrically) from those of the
other rows of the batch (eq. 7): its optimum is the log of how much likelier g is visited after (s, a) than anywhere, up
to a constant. That is a Q value of the data's policy, learned without bootstrapping, and the actor climbs it.

Choose it when episodes lead to the goals that matter: values are learned by classification alone, so that nothing
diverges, and nothing connects two episodes either.

With --goals wanted the goals are those that the data was recorded for (desired_goal: a place, or the one-hot number of
a task), as PRTS (arXiv 2604.27472) does with instructions: a goal that is met at the end only, T, cannot be drawn
geometrically, so that a pair weighs gamma^(T - t) instead; rows with the same goal are no negatives of each other. Here
it is the loss of eq. 7 with these weights; PRTS' own, a softmax both ways on unit vectors, is not released.

Deviations from OGBench's present code: none is known. Before June 2025 it cut f at log 1e-6 in the actor's loss.

Parity: equal to OGBench's crl.py, update for update (results/parity.md).

    python algorithms/goal_conditioned/crl.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/crl.py --dataset point-medium-navigate --bc-weight 0.01 0.03 0.1 --seeds 4
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
from shared.arguments import Float, Fraction, GoalArgs, Positive, Shares, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
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
    bc_weight: Float = 0.1
    """alpha: weight of -log pi(a|s, g) against the normalised Q (ddpg_bc)."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    latent_dim: Size = 512
    """Size of the representations."""
    goals: Literal["achieved", "wanted"] = "achieved"
    """Goals that states of the data achieve (--value-goals, --actor-goals), or those that it was recorded for."""
    value_goals: Shares = (0.0, 1.0, 0.0)
    """Shares of the value's goals: the row's own state, a later one of its episode (geometrically), any of the data."""
    actor_goals: Shares = (0.0, 1.0, 0.0)
    """Shares of the actor's goals: the row's own state, a later one of its episode (uniformly), any of the data."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
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
_WEIGHTS = {"point": 0.03, "pointmaze": 0.03, "antmaze": 0.1, "humanoidmaze": 0.1, "antsoccer": 0.3}
_GOALS = {"navigate": (0.0, 1.0, 0.0), "stitch": (0.0, 0.5, 0.5), "explore": (0.0, 0.0, 1.0)}


def _maze(maze: str, kind: str) -> dict:
    robot = maze.split("-")[0]
    weight = 0.003 if (robot, kind) == ("antmaze", "explore") else _WEIGHTS[robot]
    long = {"discount": 0.995} if "giant" in maze or robot == "humanoidmaze" else {}
    return {"bc_weight": weight, "actor_goals": _GOALS[kind], **long}


PRESETS = {
    **{f"{maze}-{kind}": _maze(maze, kind) for maze in _MAZES for kind in _GOALS},
    **{f"{task}-play": {"bc_weight": 3.0} for task in _MANIPULATION},
    **{f"{task}-noisy": {"bc_weight": 0.1} for task in _MANIPULATION},
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
    """phi of (s, a) or s (discrete actions one-hot), psi of g."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two pairs (phi, psi), stacked on a leading axis [E=2, ...]."""
    value: Any
    """One pair without the action, for the advantages of awr."""
    opt: optax.OptState
    """Of (actor, critic, value)."""


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def similarities(net: Embedding, pair, inputs: tuple, goal):
    """f of every input with every goal [B, B]: phi(s, a) . psi(g) / sqrt(latent_dim)."""
    phi, psi = net.apply(pair[0], *inputs), net.apply(pair[1], goal)
    return phi @ psi.T / jnp.sqrt(net.outputs)


def similarity(net: Embedding, pair, inputs: tuple, goal):
    """f of each input with its own goal [B]."""
    return (net.apply(pair[0], *inputs) * net.apply(pair[1], goal)).sum(-1) / jnp.sqrt(net.outputs)


def as_vector(agent: Agent, action):
    """[B, A]: discrete actions one-hot."""
    discrete = jnp.issubdtype(action.dtype, jnp.integer)
    return nn.one_hot(action, agent.nets.actor.action_dim) if discrete else action


def contrastive_loss(logits, goal=None, weight=None):
    """Binary cross-entropy of logits [B, B] with the identity: row i's own goal against those of all others (eq. 7).

    With the weights [B] of pairs, goals of other rows that equal a row's own [B, G] are left out.
    """
    own = jnp.eye(len(logits))
    entropy = optax.sigmoid_binary_cross_entropy(logits, own)
    if weight is not None:
        other = (goal[:, None] != goal[None]).any(-1)
        entropy = jnp.where(own > 0, weight[:, None] * entropy, other * entropy)
    return entropy.mean()


def critic_loss(critic, agent: Agent, batch: GoalBatch, args: Args):
    """The contrastive loss of f(s, a, g), mean of the two critics."""
    inputs = batch.obs, as_vector(agent, batch.action)
    logits = jax.vmap(lambda pair: similarities(agent.nets.encoder, pair, inputs, batch.goal))(critic)
    chex.assert_shape(logits, (2, args.batch_size, args.batch_size))
    own = jnp.diagonal(logits.mean(0))
    others = (logits.mean(0).sum() - own.sum()) / (args.batch_size * (args.batch_size - 1))
    losses = jax.vmap(partial(contrastive_loss, goal=batch.goal, weight=batch.weight))(logits)
    return losses.mean(), {"own_logit": own.mean(), "other_logit": others}


def value_loss(value, agent: Agent, batch: GoalBatch, args: Args):
    """The contrastive loss of f(s, g)."""
    logits = similarities(agent.nets.encoder, value, (batch.obs,), batch.goal)
    return contrastive_loss(logits, batch.goal, batch.weight)


def ddpg_bc_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-Q(s, g, pi(s, g)) / mean |Q| - alpha log pi(a|s, g), Q = min_k f_k."""
    output = agent.nets.actor.apply(actor, batch.obs, batch.actor_goal)
    inputs = batch.obs, jnp.clip(output, -1.0, 1.0)
    q = jax.vmap(lambda pair: similarity(agent.nets.encoder, pair, inputs, batch.actor_goal))(agent.critic).min(0)
    log_prob = actor_log_prob(output, batch.action)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    q_loss = -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean() + 1e-6)
    return q_loss - args.bc_weight * log_prob.mean(), {"q_pi": q.mean(), "bc_loss": -log_prob.mean()}


def awr_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-exp(beta (min_k f_k(s, a, g) - f(s, g))) log pi(a|s, g), weights clipped."""
    net, inputs = agent.nets.encoder, (batch.obs, as_vector(agent, batch.action))
    q = jax.vmap(lambda pair: similarity(net, pair, inputs, batch.actor_goal))(agent.critic).min(0)
    adv = q - similarity(net, agent.value, (batch.obs,), batch.actor_goal)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    log_prob = actor_log_prob(agent.nets.actor.apply(actor, batch.obs, batch.actor_goal), batch.action)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    encoder = Embedding(args.hidden_dims, args.latent_dim)
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, spec.discrete), encoder)
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    action = jnp.zeros((1, spec.action_dim))

    def pair(key, *inputs):
        keys = jax.random.split(key)
        return nets.encoder.init(keys[0], *inputs), nets.encoder.init(keys[1], goal)

    actor = nets.actor.init(actor_key, obs, goal)
    critic = jax.lax.map(lambda k: pair(k, obs, action), jax.random.split(critic_key, 2))
    value = pair(value_key, obs)
    opt = optax.adam(args.learning_rate).init((actor, critic, value))
    return Agent(nets=nets, actor=actor, critic=critic, value=value, opt=opt)


def sample(key, transitions: GoalTransitions, args: Args) -> GoalBatch:
    """Rows, each with a goal of the value's mixture and one of the actor's, or with the goal that was wanted."""
    row_key, goal_key, actor_key = jax.random.split(key, 3)
    row = transitions.rows(row_key, args.batch_size)
    if args.goals == "wanted":
        at, goal = transitions.take(row), transitions.wanted[row]
        weight = args.discount ** (transitions.wanted_end[row] - row)
        return GoalBatch(at.obs, at.action, at.next_obs, goal, actor_goal=goal, weight=weight)
    goal_row = transitions.mixture(goal_key, row, args.value_goals, args.discount)
    return transitions.batch(row, goal_row, transitions.mixture(actor_key, row, args.actor_goals))


def update(agent: Agent, batch: GoalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of actor and critics together, each loss with the networks of before."""
    awr = args.actor_objective == "awr" or args.actor_objective == "auto" and agent.nets.actor.discrete
    actor_loss = awr_loss if awr else ddpg_bc_loss
    (loss_q, info_q), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    (loss_pi, info_pi), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi}
    value_grads = jax.tree.map(jnp.zeros_like, agent.value)  # which only awr needs
    if awr:
        losses["value_loss"], value_grads = jax.value_and_grad(value_loss)(agent.value, agent, batch, args)
    params = agent.actor, agent.critic, agent.value
    updates, opt = optax.adam(args.learning_rate).update((actor_grads, critic_grads, value_grads), agent.opt)
    actor, critic, value = optax.apply_updates(params, updates)
    agent = agent.replace(actor=actor, critic=critic, value=value, opt=opt)
    return agent, {**losses, **info_q, **info_pi}


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
    if args.batch_size < 2:
        raise InputError("--batch-size 1: a goal is told from those of the other rows of a batch; there are none.")
    discrete = False if args.actor_objective == "ddpg_bc" else None
    data = goal_dataset(load_dataset(args).require(discrete, reward=False), args.tasks)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions(wanted=args.goals == "wanted"))
        agent = run.init(partial(init, spec=data.task.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
