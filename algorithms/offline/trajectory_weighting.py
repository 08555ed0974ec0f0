"""Trajectory weighting: transitions of better episodes are sampled more often, under an unchanged algorithm.

Hong, Agrawal, Tachet des Combes and Laroche, "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory
Weighting", ICLR 2023, arXiv 2306.13085. Offline algorithms stay near the data's policy; when most of the data is bad,
that holds them back. A transition is drawn with probability proportional to exp(c / temperature), where c is its
episode's return (rw), or its advantage over what the first state promises (aw), scaled to [0, 1] over the episodes:
the data of a better policy, from the same log. Nothing is corrected for it, on purpose. `top` is the paper's baseline:
the best episodes only. Below it: IQL (arXiv 2110.06169) or TD3+BC (arXiv 2106.06860), the very ones of iql.py and
td3_bc.py, which --sampler uniform gives back.

Arguments of --base iql alone: beta, expectile, max_weight, value_lr, dropout, normalize_return; its actor's step size
decays to zero over the run as a cosine. Of --base td3_bc alone: alpha, policy_noise, noise_clip, policy_delay,
normalize_obs.

Choose it when few episodes of the data are good and most are bad; it goes with IQL and TD3+BC.

Parity: weights and IQL's update are equal to the authors' code (results/parity.md).

Deviations from the paper:
- rewards and observations are scaled as each base's own paper does, weights computed from the scaled rewards;
- batches are drawn by an alias table and not from rows that were drawn beforehand;
- where all episodes return the same, all weights are equal (the authors' code divides by zero);
- CQL as a third base is left out.

    python algorithms/offline/trajectory_weighting.py --dataset hopper-random-expert-5 --seeds 4 --updates 50000
    python algorithms/offline/trajectory_weighting.py --dataset hopper-random-expert-5 --base td3_bc --sampler uniform
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
from shared.arguments import (
    Dropout,
    Expectile,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    base: Literal["iql", "td3_bc"] = "iql"
    """Base algorithm, by whose losses critics and actor learn."""
    sampler: Literal["aw", "rw", "top", "uniform"] = "aw"
    """How transitions are drawn: by advantage, by return, from the best episodes only, or all alike."""
    weight_temperature: float = 0.1
    """Of rw and aw, over 0, with returns scaled to [0, 1]; large is uniform."""
    top_fraction: StaticFraction = 0.1
    """Share of the episodes that is used, those with the highest return, in (0, 1]."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
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
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"normalize_return": True}),
    "antmaze": {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0},
    **dict.fromkeys(("maze2d", "pointmaze"), {"expectile": 0.9, "beta": 10.0}),
    "kitchen": {"beta": 0.5, "dropout": 0.1},
}


def advantages(data: Dataset) -> np.ndarray:
    """[E] an episode's return minus V(s_0), a linear regression of the returns on the first observations."""
    returns = data.episode_returns().astype(np.float64)
    first = np.c_[data.obs[data.starts()], np.ones(len(returns))].astype(np.float64)
    return returns - first @ np.linalg.lstsq(first, returns)[0]


def sampling_weights(data: Dataset, args: Args) -> np.ndarray | None:
    """[N] exp(c / temperature), c in [0, 1] the scaled return (rw) or advantage (aw) of a transition's episode.

    Every transition has its episode's weight: longer episodes have more in sum, as in the paper. None: all alike.
    """
    if args.sampler in ("uniform", "top"):
        return None
    if args.weight_temperature <= 0:
        raise InputError(f"--weight-temperature must be over 0, not {args.weight_temperature}.")
    c = advantages(data) if args.sampler == "aw" else data.episode_returns().astype(np.float64)
    rounding = np.finfo(np.float32).eps * np.bincount(data.episode(), np.abs(data.reward)).max()
    if np.ptp(c) <= 4.0 * rounding:  # of float32 rewards; scaled to [0, 1] it would be a preference
        c = np.zeros_like(c)
    c = (c - c.min()) / (np.ptp(c) or 1.0)
    return np.exp((c - c.max()) / args.weight_temperature)[data.episode()]


def effective_rows(weights: np.ndarray) -> float:
    """Of how many equally likely rows the samples are worth: 1 / sum p^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


dense_init = {
    "iql": nn.initializers.orthogonal(jnp.sqrt(2.0)),
    "td3_bc": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # PyTorch's default
}


class Actor(nn.Module):
    """Mean (through tanh); iql: and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    base: str
    dropout: float

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init[self.base])(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init[self.base])(x))
        if self.base == "td3_bc":
            return mean
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]
    base: str

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init[self.base])(x))
        return nn.Dense(1, kernel_init=dense_init[self.base])(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    target_actor: Any = None
    """td3_bc"""
    value: Any = None
    """iql"""
    value_opt: optax.OptState = None


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """iql: |expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def next_value(agent: Agent, batch: Batch, key, args: Args):
    """What is bootstrapped [B]: iql, V(s'); td3_bc, min_i target Q_i(s', a') with a smoothed target action."""
    if args.base == "iql":
        return agent.nets.critic.apply(agent.value, batch.next_obs)
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    return q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma next value - Q(s, a))^2; summed over the two critics."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_value(agent, batch, key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def iql_actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def td3_bc_actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1|."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    if args.base == "td3_bc":
        return optax.adam(args.actor_lr)
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor_net = Actor(args.hidden_dims, spec.action_dim, args.base, args.dropout)
    nets = Networks(actor_net, Critic(args.hidden_dims, args.base))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    agent = Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )
    if args.base == "td3_bc":
        return agent.replace(target_actor=actor)
    value = nets.critic.init(value_key, obs)
    return agent.replace(value=value, value_opt=optax.adam(args.value_lr).init(value))


def update_value(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V."""
    (loss, info), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)
    return agent, {"value_loss": loss, **info}


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor."""
    grad = jax.value_and_grad(iql_actor_loss if args.base == "iql" else td3_bc_actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, **info}


def update_targets(agent: Agent, args: Args) -> Agent:
    """A Polyak step of the targets that there are."""
    agent = agent.replace(target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau))
    if args.base == "iql":
        return agent
    return agent.replace(target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau))


def delay(args: Args) -> int:
    """Critic updates per update of the actor and of the targets."""
    return 1 if args.base == "iql" else args.policy_delay


def update(agent: Agent, batches: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """On batches [delay, B, ...]: iql, V, the actor and Q in turn; td3_bc, `delay` critic steps, then the actor."""
    last = jax.tree.map(lambda x: x[-1], batches)
    if args.base == "iql":
        agent, value_info = update_value(agent, last, args)
        agent, actor_info = update_actor(agent, last, keys[-1], args)
        agent, critic_info = update_critic(agent, last, None, args)
        return update_targets(agent, args), {**value_info, **actor_info, **critic_info}
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    agent, actor_info = update_actor(agent, last, None, args)
    return update_targets(agent, args), {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    output = agent.nets.actor.apply(agent.actor, obs)
    return output[0] if args.base == "iql" else output


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, update_key = jax.random.split(key)
        return transitions.sample(batch_key, args.batch_size), update_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, delay(args)))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    normalize_return = args.normalize_return and args.base == "iql"
    scale = 1000.0 / data.return_range() if normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs and args.base == "td3_bc" else data
    data = data.top_episodes(args.top_fraction) if args.sampler == "top" else data
    weights = sampling_weights(data, args)
    data = data if weights is None else data.replace({"effective_rows": effective_rows(weights)})
    with Run(__file__, args, data.task, act, unit=delay(args)) as run:
        transitions = run.replicate(data.transitions(weights=weights))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
