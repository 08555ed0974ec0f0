"""GOAT: generalizable offline goal-conditioned reinforcement learning.

Yang, Lin, Ma, Hu and Zhang, "What is Essential for Unseen Goal Generalization of Offline Goal-conditioned RL?", ICML
2023, arXiv 2305.18882, on WGCSL (Yang et al., ICLR 2022, arXiv 2202.04478). Actions are cloned with later states of the
episode as goals, each with a weight of three factors: exp(beta A), A the advantage of goal-conditioned values; less
where A is not among the best seen so far; and more where the ensemble of values disagrees, since rare goals are what
unseen ones resemble. The critics learn from hindsight rewards, 1 where the next state achieves the goal.

With --no-uncertainty-weight it is WGCSL (one critic in the released code, --n-critics 1), with --no-best-weight, too,
MARVIL with hindsight, with none of them GCSL.

Choose it when goals will come that the data never reached. It clones: it does not put episodes together.

Deviations from the released code:
- advantages that were multiplied by beta in place are compared there with percentiles of those that were not: here A is
  compared with A;
- observations and goals are not normalised by running statistics, nor clipped;
- targets move a little at every update, not by a twentieth after 20 (Fetch; FetchReach: 5) or a tenth after
  4 (Point);
- the standard deviations that an uncertainty is scaled by are as many as the advantages (10,000 there);
- all goals are states that were achieved (in FetchSlide half, or four fifths, are those that were recorded);
- point worlds are trained as long as the others (the authors' for 2,000 updates);
- the state that an episode's last row leads to, which the authors draw, too, is no row here, and so never a goal: one
  row of each episode has none, and of it nothing is learned.

    python algorithms/goal_conditioned/goat.py --dataset point-open-right --seeds 8 --updates 10000
    python algorithms/goal_conditioned/goat.py --dataset point-medium-navigate --no-uncertainty-weight --beta 1 2 4
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
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Expectile, Float, Fraction, GoalArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 40_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    exponential_weight: bool = True
    """Weigh actions by exp(beta A)."""
    best_weight: bool = True
    """Weigh actions by 0.05 where A is below a percentile of earlier ones, which rises during training."""
    uncertainty_weight: bool = True
    """Weigh actions by how much the ensemble disagrees about their state and goal."""
    beta: Float = 2.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 10.0
    """Clip of the exponential advantage weights."""
    percentile_rise: Float = 0.01
    """Rise, at each update, of the percentile (0 to 100) of advantages that --best-weight asks for."""
    max_percentile: Float = 80.0
    """Its highest value."""
    queue_size: int = 50_000
    """Advantages (and standard deviations) that are remembered, at least one batch."""
    uncertainty_scale: Float = 1.0
    """Weight of the uncertainty, which lies between 0 and 1."""
    min_uncertainty_weight: Float = 0.5
    """Weight where there is none."""
    max_uncertainty_weight: Float = 1.5
    """Clip of the weights by uncertainty."""
    td_expectile: Expectile = 0.5
    """Expectile of its targets that Q fits, in (0, 1): 0.5 is the mean, above it is optimistic."""
    goal_radius: Float = 0.0
    """Distance within which a state achieves a goal; 0: it is the very state that the goal was taken from."""
    n_critics: Size = 5
    """Critics in the ensemble."""
    discount: Fraction = 0.98
    """gamma, in [0, 1]."""
    tau: Fraction = 0.0025
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 5e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {
    "fetch": {"goal_radius": 0.05},
    "fetchreach": {"goal_radius": 0.05, "percentile_rise": 0.15, "tau": 0.01, "updates": 2_500},
    "hand": {"goal_radius": 0.01, "max_percentile": 50.0},
    "point": {"goal_radius": 0.5, "percentile_rise": 0.1, "tau": 0.025, "batch_size": 128},
}

dense_init = nn.initializers.xavier_uniform()


class MLP(nn.Module):
    """ReLU network on what it is given: the actor (its output goes through tanh), or Q(s, g, a)."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class HindsightBatch(NamedTuple):
    """Rows with a state of their episode as the goal."""

    obs: jax.Array
    action: jax.Array
    next_obs: jax.Array
    goal: jax.Array
    reward: jax.Array
    """1 where next_obs achieves the goal, else 0."""
    valid: jax.Array
    """0 in an episode's last row, which has no later one."""


class Networks(NamedTuple):
    actor: MLP
    critic: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    target_actor: Any
    critic: Any
    """Critics, stacked on a leading axis [E, ...]."""
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    advantages: jax.Array
    """[queue_size] the last ones, the newest at the end; NaN where there were none yet."""
    deviations: jax.Array
    """[queue_size] of the ensemble's values, likewise."""
    step: jax.Array


def mean_of_valid(x, batch: HindsightBatch):
    return (batch.valid * x).sum() / jnp.maximum(batch.valid.sum(), 1.0)


def q_of_policy(nets: Networks, actor, critic, obs, goal):
    """Q_k(s, g, pi(s, g)) [E, B]."""
    action = jnp.tanh(nets.actor.apply(actor, obs, goal))
    return jax.vmap(nets.critic.apply, (0, None, None, None))(critic, obs, goal, action)[..., 0]


def critic_loss(critic, agent: Agent, batch: HindsightBatch, args: Args):
    """|td_expectile - 1(u_k < 0)| u_k^2 over its mean weight, u_k = y_k - Q_k(s, g, a), summed over the critics.

    y_k = r + gamma target Q_k(s', g, target pi(s', g)) between -1 / (1 - gamma) and 1 / (1 - gamma).
    """
    next_q = q_of_policy(agent.nets, agent.target_actor, agent.target_critic, batch.next_obs, batch.goal)
    bound = 1.0 / (1.0 - args.discount)
    y = jnp.clip(batch.reward + args.discount * next_q, -bound, bound)
    q = jax.vmap(agent.nets.critic.apply, (0, None, None, None))(critic, batch.obs, batch.goal, batch.action)[..., 0]
    chex.assert_shape([q, y], (args.n_critics, args.batch_size))
    weight = jnp.where(y < q, 1.0 - args.td_expectile, args.td_expectile)
    one = jax.vmap(partial(mean_of_valid, batch=batch))
    return (one(weight * (y - q) ** 2) / one(weight)).sum(), {"q": q.mean()}


def advantages(agent: Agent, batch: HindsightBatch, args: Args):
    """A = r + gamma V(s', g) - V(s, g) [B], V the mean of Q_k(s, g, pi(s, g)), and the deviation of these at s [B]."""
    v = q_of_policy(agent.nets, agent.actor, agent.critic, batch.obs, batch.goal)
    next_v = q_of_policy(agent.nets, agent.actor, agent.critic, batch.next_obs, batch.goal)
    return batch.reward + args.discount * next_v.mean(0) - v.mean(0), v.std(0)


def remembered(queue, new):
    """The queue with `new` [B] at its end, and as much less at its start."""
    return jnp.concatenate([queue[len(new) :], new])


def weights(adv, deviation, queues, step, args: Args):
    """[B] the product of the weights that are asked for; `queues`: advantages and deviations, these among them."""
    weight = jnp.ones_like(adv)
    if args.exponential_weight:
        weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    if args.best_weight:
        percentile = jnp.minimum(args.percentile_rise * (step + 1), args.max_percentile)
        weight = weight * jnp.where(adv >= jnp.nanpercentile(queues[0], percentile), 1.0, 0.05)
    if args.uncertainty_weight:
        low, high = jnp.nanmin(queues[1]), jnp.nanmax(queues[1])
        uncertainty = args.uncertainty_scale * (deviation - low) / jnp.maximum(high - low, 1e-12)
        weight = weight * jnp.clip(uncertainty + args.min_uncertainty_weight, 0.0, args.max_uncertainty_weight)
    return weight


def actor_loss(actor, agent: Agent, batch: HindsightBatch, weight, args: Args):
    """w (pi(s, g) - a)^2, mean over dimensions."""
    error = ((jnp.tanh(agent.nets.actor.apply(actor, batch.obs, batch.goal)) - batch.action) ** 2).mean(-1)
    chex.assert_shape([weight, error], (args.batch_size,))
    return mean_of_valid(weight * error, batch)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(MLP(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, 1))
    actor_key, critic_key = jax.random.split(key)
    inputs = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    actor, action = nets.actor.init(actor_key, *inputs), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, *inputs, action), jax.random.split(critic_key, args.n_critics))
    adam, empty = optax.adam(args.learning_rate), jnp.full(args.queue_size, jnp.nan)
    opts = adam.init(actor), adam.init(critic)
    return Agent(nets, actor, actor, critic, critic, *opts, empty, empty, jnp.int32(0))


def sample(key, transitions: GoalTransitions, args: Args) -> HindsightBatch:
    """Rows, each with a later state of its episode, uniformly."""
    row_key, goal_key = jax.random.split(key)
    row = transitions.rows(row_key, args.batch_size)
    left = transitions.end[row] - row
    steps = 1 + jnp.floor(jax.random.uniform(goal_key, row.shape) * left).astype(row.dtype)
    goal_row, next_row = transitions.ahead(row, steps), transitions.ahead(row, 1)
    goal, achieved = transitions.goal(jnp.stack([goal_row, next_row]))
    reached = (goal_row == next_row) | (jnp.linalg.norm(goal - achieved, axis=-1) <= args.goal_radius)
    at = transitions.take(row)
    flags = (x.astype(jnp.float32) for x in (reached, left > 0))
    return HindsightBatch(at.obs, at.action, at.next_obs, goal, *flags)


def update(agent: Agent, batch: HindsightBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of actor and critics, each loss with the networks of before."""
    adv, deviation = advantages(agent, batch, args)
    known = jnp.where(batch.valid > 0, jnp.stack([adv, deviation]), jnp.nan)
    queues = tuple(map(remembered, (agent.advantages, agent.deviations), known))
    weight = weights(adv, deviation, queues, agent.step, args)
    loss_pi, actor_grads = jax.value_and_grad(actor_loss)(agent.actor, agent, batch, weight, args)
    (loss_q, info), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    adam = optax.adam(args.learning_rate)
    updates, actor_opt = adam.update(actor_grads, agent.actor_opt)
    actor = optax.apply_updates(agent.actor, updates)
    updates, critic_opt = adam.update(critic_grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    targets = optax.incremental_update((actor, critic), (agent.target_actor, agent.target_critic), args.tau)
    agent = Agent(agent.nets, actor, targets[0], critic, targets[1], actor_opt, critic_opt, *queues, agent.step + 1)
    info |= {"adv": adv.mean(), "deviation": deviation.mean(), "weight": weight.mean(), "reached": batch.reward.mean()}
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **info}


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
    if args.queue_size < args.batch_size:
        raise InputError(f"--queue-size {args.queue_size}: at least one batch of {args.batch_size}.")
    if np.min(args.percentile_rise) < 0.0 or np.min(args.max_percentile) < 0.0 or np.max(args.max_percentile) > 100.0:
        raise InputError("--percentile-rise must be at least 0, and --max-percentile lie in [0, 100].")
    data = goal_dataset(load_dataset(args).require(discrete=False, reward=False), args.tasks)
    data.require_steps(1, "a goal later by")
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
