"""SAC-N: SAC whose target and policy take the least of N critics.

An, Moon, Kim and Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", NeurIPS 2021,
arXiv 2110.01548, section 3. Critics agree where there is data and differ where there is none, so that the least of N is
about their mean minus c_N standard deviations: N alone, with nothing said about the behaviour policy, sets how much an
action without data is worth less (c_N is 0.56 for N = 2, 1.5 for 10, 2.2 for 50, 3.0 for 500).

Several N in one job: --n-critics 50 --n-least 2 10 50 takes the least of the first 2, 10 or all 50 critics, and each
lane learns what --n-critics 2, 10 or 50 alone would.

Choose it when you can afford many critics and want no other regulariser, and no model of the behaviour policy.

Parity: equal to CORL's sac_n.py, update for update, but for the form of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- temperature, actor and critics are updated one after the other, each with the ones before it, as CORL does; the
  authors' code computes all three losses from the old parameters;
- hidden layers begin within 1 / sqrt(inputs); the authors' code reads the outputs in their place;
- N for maze2d, AntMaze and the random, expert and full-replay sets is of later code (CORL, LB-SAC).

    python algorithms/offline/sac_n.py --dataset hopper-medium --n-critics 20 --hidden-dims 128 128 --seeds 4
    python algorithms/offline/sac_n.py --dataset pendulum-mixed --n-critics 10 --hidden-dims 64 64 --updates 15000
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    n_least: Float = 0.0
    """Critics of which the least is taken, the first ones of the ensemble: several N in one job; 0: all."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    backup_entropy: bool = True
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    max_q_backup: bool = False
    """Bootstrap from the best of several actions of the policy instead of one."""
    standardize_reward: bool = False
    """Rewards to mean 0 and standard deviation 1 in training."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


def _n(n_critics: int) -> dict:
    return {"n_critics": n_critics}


PRESETS = {
    "halfcheetah": _n(10),
    "hopper": _n(200),
    "hopper-medium": _n(500),
    "hopper-medium-replay": _n(200),
    "hopper-medium-expert": _n(200),
    "hopper-random": _n(500),
    "hopper-expert": _n(500),
    "walker2d": _n(20),
    "walker2d-expert": _n(100),
    **dict.fromkeys(("maze2d", "antmaze"), _n(25)),
    **dict.fromkeys(
        ("pen-", "door-", "hammer-", "relocate-"),
        {**_n(100), "updates": 200_000, "actor_lr": 3e-5, "standardize_reward": True},
    ),
}

MAX_Q_ACTIONS = 10
"""Actions that --max-q-backup takes the largest Q of."""

hidden_init = {
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # +-sqrt(1 / fan_in)
    "bias_init": nn.initializers.constant(0.1),
}


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
        x = nn.Dense(2 * self.action_dim, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
        return nn.Dense(1, kernel_init=uniform(3e-3), bias_init=uniform(3e-3))(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """N critics, stacked on a leading axis [E=N, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def counted(q, args: Args):
    """Which critics count [E, 1]."""
    return (jnp.arange(len(q)) < jnp.where(args.n_least > 0, args.n_least, len(q)))[:, None]


def least(q, args: Args):
    """min_i Q_i [B] over the critics that count."""
    return jnp.where(counted(q, args), q, jnp.inf).min(0)


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action)
    chex.assert_shape([q[0], log_prob], (args.batch_size,))
    info = {"entropy": -log_prob.mean(), "q_pi": q.mean(), "q_pi_std": q.std(0, where=counted(q, args)).mean()}
    return (jnp.exp(agent.log_alpha) * log_prob - least(q, args)).mean(), info


def next_value(agent: Agent, batch: Batch, key, args: Args):
    """min_i target Q_i(s', a') - alpha log pi(a'|s'), a' ~ pi [B] (eq. 2 of the paper, over all N critics).

    With max_q_backup, the least over the critics (not their targets) of each one's largest Q of several actions.
    """
    mean, log_std = agent.nets.actor.apply(agent.actor, batch.next_obs)
    if args.max_q_backup:
        actions, _ = sample_tanh_gaussian(mean, log_std, key, MAX_Q_ACTIONS)
        q = jax.vmap(lambda action: q_values(agent.nets.critic, agent.critic, batch.next_obs, action))(actions)
        return least(q.max(0), args)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = least(q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action), args)
    return q - jnp.exp(agent.log_alpha) * log_prob if args.backup_entropy else q


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(Q_i(s, a) - y)^2, y = r + gamma next_value, one y for all critics; summed over them."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_value(agent, batch, key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "q_std": q.std(0, where=counted(q, args)).mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the temperature, then the actor, then the critics, each with the ones before it."""
    alpha_key, actor_key, critic_key = jax.random.split(key, 3)
    _, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), alpha_key)
    grads = jax.grad(alpha_loss)(agent.log_alpha, -log_prob.mean(), batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha)}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if np.min(args.n_least) < 0.0 or np.max(args.n_least) > args.n_critics:
        raise InputError(f"--n-least must lie in [0, --n-critics]: there are {args.n_critics} critics.")
    if args.standardize_reward:
        data.reward_range()  # refuses rewards that are all equal
        std = float(data.reward.std())
        data = data.scale_rewards(1.0 / std, -float(data.reward.mean()) / std)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
