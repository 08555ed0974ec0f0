"""RIQL: Robust Implicit Q-Learning, for corrupted data.

Yang, Zhong, Xu, Zhang, Zhang, Han and Zhang, "Towards Robust Offline Reinforcement Learning under Diverse
Data Corruption", ICLR 2024, arXiv 2310.12955. IQL clones the data's actions and so suffers little from
corrupted ones; what it suffers from is heavy-tailed targets, above all of corrupted dynamics. RIQL (section 4)
normalises the observations, regresses Q with Huber's loss, and has V and the policy learn from a quantile
of an ensemble of Q, low where corruption makes its members disagree.

The actor's step size decays to zero over the run as a cosine, as IQL's does.

Choose it when the data may be corrupted: noise or errors in observations, actions, rewards or next observations.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- observations are normalised with the statistics of s, not of s and s' together, which differ only by what
  is corrupted (under 3 percent of the standard deviation at the paper's rate and range);
- one corruption, with a seed of its own, for all lanes; the authors' differs from seed to seed;
- observations, actions and dynamics are corrupted at random only: the paper's adversarial kind attacks the
  Q-functions of an EDAC agent trained before (adversarial rewards need none and are offered);
- biases of V and of the policy start at zero (PyTorch's default draws them like the weights);
- Huber's threshold is 1 / sigma^2, targets are clipped and the policy is deterministic as in the authors'
  code, whose values the presets are: they go by environment and corruption, so they are named, not automatic.

    python algorithms/offline/riql.py --dataset hopper-medium-replay --preset hopper-dynamics --seeds 4 --updates 50000
    python algorithms/offline/iql.py --dataset hopper-medium-replay --preset none --corruption dynamics --seeds 4
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
from shared.arguments import (
    Count,
    Expectile,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    StaticFraction,
    by_name,
    hyperparameters,
)
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    huber_sigma: Positive = 1.0
    """sigma: Huber's loss is quadratic up to 1 / sigma^2 and linear beyond (section 4.2); a large one is almost L1."""
    quantile: Fraction = 0.25
    """alpha: quantile over the critics that V and the policy learn from, in [0, 1]; 0 is their minimum."""
    n_critics: Size = 5
    """Critics in the ensemble."""
    min_target: Float = -100.0
    """Targets of Q are clipped to at least this (fits D4RL's rewards of MuJoCo tasks) ..."""
    max_target: Float = 1000.0
    """... and to at most this."""
    orthogonal: bool = False
    """Weights begin as IQL's, orthogonal with gain sqrt(2), and biases at 0; else as the authors', far smaller ones."""
    deterministic: bool = True
    """Deterministic policy, cloned with a weighted squared error; else a Gaussian's log-likelihood."""
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
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    corruption: tuple[str, ...] = ()
    """What is spoilt in the training data: obs, action, reward, dynamics, adversarial_reward."""
    corruption_rate: StaticFraction = 0.3
    """Share of the transitions of which it is spoilt, in [0, 1]."""
    corruption_scale: float = 1.0
    """Size of the noise: standard deviations of the data, for rewards units of 30."""
    corruption_seed: Count = 0
    """Of the corruption, which all lanes share."""


PRESETS = by_name({  # --preset hopper-obs
    "halfcheetah-obs": {"corruption": ("obs",), "huber_sigma": 0.1, "quantile": 0.1},
    "halfcheetah-action": {"corruption": ("action",), "huber_sigma": 0.5, "quantile": 0.25, "n_critics": 3},
    "halfcheetah-reward": {"corruption": ("reward",), "huber_sigma": 3.0, "quantile": 0.25},
    "halfcheetah-dynamics": {"corruption": ("dynamics",), "huber_sigma": 3.0, "quantile": 0.25},
    "halfcheetah-adversarial": {"corruption": ("adversarial_reward",), "huber_sigma": 1.0, "quantile": 0.1},
    "walker2d-obs": {"corruption": ("obs",), "huber_sigma": 0.1, "quantile": 0.25},
    "walker2d-action": {"corruption": ("action",), "huber_sigma": 0.5, "quantile": 0.1},
    "walker2d-reward": {"corruption": ("reward",), "huber_sigma": 3.0, "quantile": 0.1},
    "walker2d-dynamics": {"corruption": ("dynamics",), "huber_sigma": 1.0, "quantile": 0.25, "n_critics": 3},
    "walker2d-adversarial": {"corruption": ("adversarial_reward",), "huber_sigma": 3.0, "quantile": 0.1},
    "hopper-obs": {"corruption": ("obs",), "huber_sigma": 0.1, "quantile": 0.25, "n_critics": 3},
    "hopper-action": {"corruption": ("action",), "huber_sigma": 0.1, "quantile": 0.25},
    "hopper-reward": {"corruption": ("reward",), "huber_sigma": 1.0, "quantile": 0.25, "n_critics": 3},
    "hopper-dynamics": {"corruption": ("dynamics",), "huber_sigma": 1.0, "quantile": 0.5},
    "hopper-adversarial": {"corruption": ("adversarial_reward",), "huber_sigma": 0.1, "quantile": 0.25},
})  # fmt: skip

iql_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
critic_init = {
    # +-sqrt(1 / outputs): the authors' matrices are [inputs, outputs], of which PyTorch reads the second as the inputs
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
    "bias_init": nn.initializers.constant(0.1),
}


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    """pi(s), through tanh; or a mean (without) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    deterministic: bool
    orthogonal: bool

    @nn.compact
    def __call__(self, obs):
        x, kernel_init = obs, iql_init if self.orthogonal else dense_init
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=kernel_init)(x))
        mean = nn.Dense(self.action_dim, kernel_init=kernel_init)(x)
        if self.deterministic:
            return jnp.tanh(mean), None
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    orthogonal: bool

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        hidden, last = critic_init, {"kernel_init": uniform(3e-3), "bias_init": uniform(3e-3)}
        if self.orthogonal:
            hidden = last = {"kernel_init": iql_init}
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden)(x))
        return nn.Dense(1, **last)(x)[..., 0]


class Value(nn.Module):
    hidden_dims: tuple[int, ...]
    orthogonal: bool

    @nn.compact
    def __call__(self, obs):
        x, kernel_init = obs, iql_init if self.orthogonal else dense_init
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=kernel_init)(x))
        return nn.Dense(1, kernel_init=kernel_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    value: Value


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """K critics, stacked on a leading axis [E=K, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def quantile_q(agent: Agent, batch: Batch, args: Args):
    """Q_alpha(s, a) [B]: the quantile of the target critics, linear between them (section 4.3)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action)
    return jnp.quantile(q, args.quantile, axis=0), {"q_std": q.std(0).mean()}


def huber(x, sigma):
    """x^2 / (2 delta) where |x| < delta, |x| - delta / 2 elsewhere; delta = 1 / sigma^2 (section 4.2)."""
    delta = 1.0 / sigma**2
    x = jnp.abs(x)
    return jnp.where(x < delta, 0.5 * x**2 / delta, x - 0.5 * delta)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = Q_alpha(s, a) - V(s)."""
    q, info = quantile_q(agent, batch, args)
    v = agent.nets.value.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean(), **info}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """exp(beta (Q_alpha(s, a) - V(s))) |pi(s) - a|^2 or -log pi(a|s) for the square, weights clipped."""
    adv = quantile_q(agent, batch, args)[0] - agent.nets.value.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    if args.deterministic:
        bc = ((mean - batch.action) ** 2).sum(-1)
    else:
        bc = -jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, bc], (args.batch_size,))
    return (weight * bc).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """Huber's loss of r + gamma V(s') - Q_i(s, a), the target clipped; mean over the critics (section 4.2)."""
    next_v = agent.nets.value.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    y = jnp.clip(y, args.min_target, args.max_target)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return huber(y - q, args.huber_sigma).mean(), {"q": q.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.deterministic, args.orthogonal),
        Critic(args.hidden_dims, args.orthogonal),
        Value(args.hidden_dims, args.orthogonal),
    )
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    value = nets.value.init(value_key, obs)
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
    """One gradient step of V, of the actor and of Q; all losses are of the old V and the old targets."""
    old = agent
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(old.value, old, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, old.value_opt)
    agent = agent.replace(value=optax.apply_updates(old.value, updates), value_opt=value_opt)

    (loss_pi, info_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(old.actor, old, batch, args)
    updates, actor_opt = actor_optimizer(args).update(grads, old.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(old.actor, updates), actor_opt=actor_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(old.critic, old, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, old.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(old.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, old.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A], deterministic: the policy's or its mean."""
    return jnp.clip(agent.nets.actor.apply(agent.actor, obs)[0], -1.0, 1.0)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if np.max(args.min_target) >= np.min(args.max_target):
        raise InputError(f"--min-target {args.min_target} must be lower than --max-target {args.max_target}.")
    data = load_dataset(args).require(discrete=False)
    data = data.corrupt(args.corruption, args.corruption_rate, args.corruption_scale, args.corruption_seed)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
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
