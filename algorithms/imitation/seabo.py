"""SEABO: search-based offline imitation learning.

Lyu, Ma, Wan, Liu, Li and Lu, "SEABO: A Simple Search-Based Method for Offline Imitation Learning", ICLR 2024, arXiv
2402.03807. The data has no rewards. A transition is as good as it is near to one that was demonstrated: its reward is
alpha exp(-beta d / dim(A)), d the Euclidean distance of (s, a, s') to the nearest of the demonstrations' transitions
(eq. 3). IQL (Kostrikov et al., arXiv 2110.06169) learns from these rewards.

scipy's k-d tree is asked for the distances once per run, before the first update.

Choose it when there are a few demonstrations, whole or not, also without their actions (--key ss), and much data
without rewards. Dimensions of large scale decide: there is no other measure of likeness than the distance. Where it is
the course of an episode that counts, see otr.py.

Parity: the labels are equal to dmksjfl/SEABO, and so is IQL's update but for the policy (results/parity.md).
Deviations from the released code (dmksjfl/SEABO):
- the policy is IQL's Gaussian, cloned by its log-likelihood; there it is deterministic, with a squared error;
- weights begin as IQL's do, orthogonal; there as PyTorch's;
- actions are in [-1, 1], also in the distance;
- on AntMaze demonstrations are chosen by return alone, there by return over the start's distance to the origin.

    python algorithms/imitation/seabo.py --dataset pendulum-rare --seeds 8 --updates 20000
    python algorithms/imitation/seabo.py --dataset hopper-medium-replay --key ss --squash-beta 0.1 0.5 1
    python algorithms/imitation/seabo.py --dataset pendulum-rare --updates 1000 --write-dataset pendulum-seabo.npz
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
from shared.arguments import DemoArgs, Dropout, Expectile, Float, Fraction, Positive, Size, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.parts import load_demonstrated, rank_correlation, relabelled, with_something_in_common, write_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(DemoArgs):
    dataset: str = "pendulum-rare"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    key: Literal["sas", "sa", "ss"] = "sas"
    """What is compared: (s, a, s'), (s, a), or (s, s') where demonstrations are of observations."""
    neighbour: int = 1
    """The distance is that to the k-th nearest demonstrated transition."""
    squash_alpha: Float = 1.0
    """alpha: the reward of a distance of 0; the label is alpha exp(-beta distance)."""
    squash_beta: Float = 0.5
    """beta: how fast labels fall with the distance; 0: all are alpha."""
    by_dimensions: bool = True
    """Divide the distance by the number of dimensions that the method counts."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


_adroit = {"by_dimensions": False, "beta": 0.5, "dropout": 0.1}
PRESETS = {
    "antmaze": {"squash_beta": 5.0, "expectile": 0.9, "beta": 10.0, "reward_shift": -1.0, "eval_episodes": 100},
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), _adroit),
}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


class Actor(nn.Module):
    """Mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
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
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


class Searched(NamedTuple):
    """A dataset on the device with how far its transitions are from what was demonstrated."""

    transitions: Transitions
    distance: jax.Array
    """[N] of every row of the dataset"""
    episode: jax.Array
    """[N] of the row"""
    starts: jax.Array
    """[E] first rows of episodes"""
    row: jax.Array
    """[M] the rows that `transitions` holds"""
    returns: jax.Array
    """[E] true returns, logged beside those of the labels; [0]: there are none"""


def keys_of(data: Dataset, key: str) -> np.ndarray:
    """[N, D] what is compared of every transition."""
    parts = {"sas": (data.obs, data.action, data.next_obs), "sa": (data.obs, data.action)}
    return np.concatenate(parts.get(key, (data.obs, data.next_obs)), axis=1)


def distances(data: Dataset, demos: Dataset, args: Args) -> np.ndarray:
    """[N] Euclidean distance of every transition to the k-th nearest of the demonstrations.

    Raises:
      InputError: the demonstrations have fewer than k, or nothing in common with the data.
    """
    shown = keys_of(demos, args.key)
    shown = shown if args.key == "sa" else shown[demos.successor]
    if not 1 <= args.neighbour <= len(shown):
        raise InputError(f"--neighbour {args.neighbour}: the demonstrations have {len(shown)} transitions to search.")
    found = cKDTree(shown).query(keys_of(data, args.key), k=[args.neighbour], workers=-1)[0][:, 0].astype(np.float32)
    rate = np.asarray(args.squash_beta) / (data.spec.action_dim if args.by_dimensions else 1)
    return with_something_in_common(data, demos, found, args.squash_alpha, rate)


def labels(searched: Searched, args: Args):
    """[N]: alpha exp(-beta d / dim(A)) (eq. 3)."""
    size = searched.transitions.spec.action_dim if args.by_dimensions else 1
    return args.squash_alpha * jnp.exp(-args.squash_beta * searched.distance / size)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (IQL's eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped (IQL's eq. 7)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2 (IQL's eq. 6), r the label; summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "reward": batch.reward.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, args.dropout), Critic(args.hidden_dims))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, then the actor with the new V, then Q with the new V."""
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def train(agent: Agent, keys, args: Args, searched: Searched) -> tuple[Agent, dict]:
    """One lane: one update per key, from this lane's labels; mean metrics."""
    label = labels(searched, args)
    reward = label[searched.row] + args.reward_shift

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        index = searched.transitions.draw(batch_key, args.batch_size)
        return update(agent, searched.transitions.take(index)._replace(reward=reward[index]), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    metrics = jax.tree.map(jnp.mean, metrics)
    if len(searched.returns):
        label_returns = jax.ops.segment_sum(label, searched.episode, len(searched.starts))
        metrics["label_correlation"] = rank_correlation(label_returns, searched.returns)
    return agent, metrics


def main(args: Args) -> None:
    data, demos, returns = load_demonstrated(args)
    data = data.require(discrete=False, reward=False)
    rows = np.flatnonzero(data.usable())
    returns = np.zeros(0, np.float32) if returns is None else returns
    columns = (distances(data, demos, args), data.episode(), data.starts(), rows, returns)
    searched = Searched(data.transitions(), *map(jnp.asarray, columns))
    with Run(__file__, args, data.task, act) as run:
        if args.write_dataset and not args.resume:
            first = jax.tree.map(lambda x: x[0], run.lane_args)
            write_dataset(args.write_dataset, relabelled(data, reward=jax.jit(labels)(searched, first)))
        searched = run.replicate(searched)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, searched)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
