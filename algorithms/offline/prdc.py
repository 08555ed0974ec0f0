"""PRDC: TD3 whose policy is pulled to the action of the nearest state-action pair of the whole dataset.

Ran, Li, Zhang, Zhang and Yu, "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
ICML 2023, arXiv 2306.06569. TD3+BC pulls pi(s) to the action recorded in s, good or bad. PRDC looks for the
pair (s', a') of the dataset nearest to (s, pi(s)) in the distance of (beta s, a), and pulls pi(s) to its a':
actions recorded in similar states are allowed too, actions far from all data are not. beta -> infinity is
TD3+BC, beta -> 0 ignores the state.

The search. pi moves, so the nearest pair cannot be known in advance; but s is a row of the dataset, so its nearest
states can, for every beta: scipy's k-d tree is asked for them once per run, and training never waits for the host.
Among these `neighbours` candidates the nearest pair is found exactly; it is the nearest of the dataset wherever no
row outside them can be nearer, which is checked and logged (`proven`: 0.98 of the states of hopper-medium-replay
after 30k updates, 0.84 of hopper-random-expert-5; results/runs/prdc). Elsewhere the pair found may be a little farther.
--search all compares with the whole dataset and is always right: for small beta, for checks, and for data whose
states have so many dimensions, or are so evenly spread, that the k-d tree is slow.

Choose it when better actions were taken in similar states of the same data.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- the search over candidates (above); the authors query a k-d tree over all pairs on the host at every actor update;
- always the nearest pair: the authors' code can take the k-th nearest instead, and its scripts take the first;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/prdc.py --dataset hopper-medium-replay --seeds 4 --updates 50000
    python algorithms/offline/prdc.py --dataset hopper-medium-replay --seeds 4 --state-weight 0.5 2 8
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
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    state_weight: Float = 2.0
    """beta: weight of the state in the distance of state-action pairs; large: TD3+BC."""
    search: Literal["neighbours", "all"] = "neighbours"
    """Where to look for the nearest pair: among the nearest states of each state, or in the whole dataset.
    The latter costs about 0.15 us per row and actor update at batch 256 on one CPU core."""
    neighbours: Size = 64
    """Candidates per state, 4 bytes each; more of them for smaller beta (see `proven` in metrics.csv)."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    "halfcheetah": {"alpha": 40.0},
    "antmaze": {"alpha": 7.5, "state_weight": 7.5, "reward_scale": 10_000.0, "reward_shift": -1.0},
}
BLOCK = 1000
"""Rows compared at once by --search all."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState


class Pairs(NamedTuple):
    """The state-action pairs of the dataset, as the search wants them."""

    points: jax.Array | None = None
    """[N, O + A]"""
    nearest: jax.Array | None = None
    """[N, K] rows of the nearest states of every row's state, itself included."""
    radius: jax.Array | None = None
    """[N] distance of the farthest of these states: no other is nearer."""
    blocks: jax.Array | None = None
    """[N / BLOCK, BLOCK, O + A + 2] for --search all: states, actions and their squared norms."""


def pairs_of(data: Dataset, args: Args) -> Pairs:
    """Once per run, on the host; `data`: the rows that `transitions` packs, by whose numbers they are asked for."""
    N = len(data.obs)
    if args.search == "all":
        norms = [(x**2).sum(1, keepdims=True) for x in (data.obs, data.action)]
        points = np.concatenate([data.obs, data.action, *norms], axis=1)
        points = np.pad(points, ((0, -N % BLOCK), (0, 0)), mode="edge")  # a row twice is no other neighbour
        return Pairs(blocks=jnp.asarray(points.reshape(-1, BLOCK, points.shape[1])))
    counts = np.arange(1, min(args.neighbours, N) + 1)
    distance, rows = cKDTree(data.obs).query(data.obs, counts, workers=-1)
    radius = distance[:, -1] if len(counts) < N else np.full(N, np.inf)
    points = np.concatenate([data.obs, data.action], axis=1)
    return Pairs(*(jnp.asarray(x) for x in (points, rows.astype(np.int32), radius.astype(np.float32))))


def nearest_action(obs, pi, index, pairs: Pairs, beta):
    """Action of the pair nearest to (obs, pi) [B, A], min over (s', a') of |beta (s - s')|^2 + |a - a'|^2.

    Args:
      index: [B] rows of `obs`.

    Returns the actions, and [B] whether no pair of the dataset can be nearer.
    """
    O, A = obs.shape[-1], pi.shape[-1]
    if pairs.blocks is None:
        candidates = pairs.points[pairs.nearest[index]]  # [B, K, O + A]
    else:  # which block, by |x - y|^2 - |x|^2 = |y|^2 - 2 x.y; only its minimum: argmin is slow on CPU
        weights = [jnp.full((len(obs), 1), beta**2), jnp.ones((len(obs), 1))]
        query = jnp.concatenate([-2.0 * beta**2 * obs, -2.0 * pi, *weights], axis=-1)
        # [N / BLOCK, B]; in full float32 on GPUs too, where the default rounds to fewer digits
        lowest = jax.lax.map(lambda block: jnp.matmul(query, block.T, precision="highest").min(1), pairs.blocks)
        candidates = pairs.blocks[lowest.argmin(0), :, : O + A]
    chex.assert_shape(candidates, (len(obs), None, O + A))
    state = beta**2 * ((candidates[..., :O] - obs[:, None]) ** 2).sum(-1)
    distance = state + ((candidates[..., O:] - pi[:, None]) ** 2).sum(-1)
    best = distance.argmin(1)[:, None]
    action = jnp.take_along_axis(candidates[..., O:], best[..., None], axis=1)[:, 0]
    if pairs.blocks is not None:
        return action, jnp.ones(len(obs), bool)
    return action, jnp.take_along_axis(distance, best, axis=1)[:, 0] <= (beta * pairs.radius[index]) ** 2


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Clipped double Q-learning with a smoothed target action (TD3); summed over the two critics."""
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, nearest, args: Args):
    """-lambda Q_1(s, pi(s)) + (pi(s) - a')^2, lambda = alpha / mean |Q_1|, a' of the nearest pair."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, nearest])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    dc = ((pi - nearest) ** 2).mean()
    return -lam * q.mean() + dc, {"dc_loss": dc, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, index, pairs: Pairs, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    pi = agent.nets.actor.apply(agent.actor, batch.obs)
    nearest, proven = nearest_action(batch.obs, pi, index, pairs, args.state_weight)
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, nearest, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, "proven": proven.mean(), **info}


def update(agent: Agent, batches: Batch, index, keys, pairs: Pairs, args: Args) -> tuple[Agent, dict]:
    """`policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), index[-1], pairs, args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, transitions: Transitions, pairs: Pairs) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        index = jax.random.randint(batch_key, (args.batch_size,), 0, len(transitions.rows))
        return transitions.take(index), index, noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), pairs, args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay) as run:
        data = data.select(data.usable())  # as `transitions` does: rows of both have the same numbers
        transitions, pairs = run.replicate((data.transitions(), pairs_of(data, args)))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, pairs)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
