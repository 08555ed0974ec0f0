"""FamO2O: a family of IQL policies, and a balance policy that chooses among them state by state.

Wang, Yang, Gao et al., "Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online Reinforcement
Learning", NeurIPS 2023, arXiv 2310.17966. IQL clones the data's actions with weights exp(beta (Q - V)); one beta
balances improvement against cloning everywhere, though the data is good in some states and bad in others. Here beta
is an input of the policy. Offline the universal policy pi_u(a|s, beta) learns all of a range of betas at once, and
the balance policy pi_b(beta|s) learns which of them has the highest Q in a state; online pi_u learns the chosen ones.
V and Q are IQL's (eq. 5 and 6 of arXiv 2110.06169), and so is the replay buffer that begins with the whole dataset.

Choose it when the data is good in some states and bad in others, and you will fine-tune.

Parity: equal to the authors' code, update for update, but for the weights (results/parity.md).

Deviations from the paper:
- the balance policy maximises its entropy besides Q, with a learned temperature, as in the authors' code
  (--no-balance-entropy: Q alone);
- beta and the action in the balance policy's loss are drawn with keys of their own (the authors' code uses one);
- a transition's weight is that of its own beta, as the paper says; in the authors' code, where [B] times [B, 1] is
  [B, B], it is the mean over all betas of the batch;
- the paper's ranges of beta for locomotion are not in the authors' code: what stands here is its default range;
- the version on CQL is left out: it shares no loss with this one but the balance policy's;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks; explored ones are clipped;
- the return range that rewards are divided by is taken over the dataset's own episodes.

    python algorithms/offline_to_online/famo2o.py --dataset hopper-medium --seeds 4
    python algorithms/offline_to_online/famo2o.py --dataset pointmaze-umaze --beta-min 1 --beta-max 5
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
from shared.arguments import Dropout, Expectile, FinetuneArgs, Float, Fraction, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, sample_union
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta_min: Float = 1.0
    """Least beta of the family: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    beta_max: Float = 5.0
    """Greatest beta of the family; beta_min itself makes this IQL with that inverse temperature."""
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
    balance_lr: Float = 3e-4
    """Adam's step size: balance policy and its temperature."""
    balance_entropy: bool = True
    """The balance policy maximises its entropy besides Q, as in the authors' code."""
    init_temperature: Positive = 1.0
    """First value of the entropy temperature."""
    target_entropy: Float = -0.5
    """Entropy of the balance policy over (-1, 1) that the temperature keeps; uniform is log 2."""
    encoding_dim: Size = 6
    """Sines and cosines that beta enters the universal policy as, half of each."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""


_mujoco = {"expectile": 0.7, "normalize_return": True}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant-"), _mujoco),
    "antmaze": {"expectile": 0.9, "beta_min": 8.0, "beta_max": 14.0, "reward_shift": -1.0, "eval_episodes": 100},
    "pointmaze": {"expectile": 0.9, "beta_min": 8.0, "beta_max": 14.0},  # ours, after AntMaze
}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


def encode(beta, dim: int):
    """[B] -> [B, dim]: sin and cos of beta / 10000^(2 i / dim), i < dim / 2, in turn."""
    angle = beta[..., None] / 10_000.0 ** (jnp.arange(0, dim, 2) / dim)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*beta.shape, dim)


class Actor(nn.Module):
    """The universal policy: mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float
    encoding_dim: int

    @nn.compact
    def __call__(self, obs, beta, training: bool = False):
        x = jnp.concatenate([obs, encode(beta, self.encoding_dim)], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Balance(nn.Module):
    """The balance policy: Gaussian of one number, later squashed into the range of beta."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean = nn.Dense(1, kernel_init=dense_init)(x)[..., 0]
        log_std = self.param("log_std", nn.initializers.zeros, ())
        return mean, jnp.clip(log_std, -10.0, 2.0)


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
    balance: Balance
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    balance: Any
    log_alpha: jax.Array
    """Of the balance policy's entropy temperature."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    balance_opt: optax.OptState
    alpha_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def to_range(u, args: Args):
    """(-1, 1) -> (beta_min, beta_max)."""
    return args.beta_min + (u + 1.0) * 0.5 * (args.beta_max - args.beta_min)


def sample_beta(agent: Agent, balance, obs, key, args: Args):
    """beta(u), u = tanh(z) ~ pi_b(.|s) [B], and the log-density of u [B]."""
    mean, log_std = agent.nets.balance.apply(balance, obs)
    z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    log_prob = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - z - nn.softplus(-2.0 * z))  # log(1 - tanh(z)^2), stable
    return to_range(jnp.tanh(z), args), log_prob - log_det


def best_beta(agent: Agent, obs, args: Args):
    """beta [B] of the balance policy's mean."""
    return to_range(jnp.tanh(agent.nets.balance.apply(agent.balance, obs)[0]), args)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, beta, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi_u(a|s, beta), weights clipped: eq. 7 with a beta [B] each."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, beta, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([beta, weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def balance_loss(balance, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi_b(u|s) - min_i target Q_i(s, a), a ~ pi_u(.|s, beta(u)), u ~ pi_b: through a into u, pi_u stands."""
    beta_key, action_key = jax.random.split(key)
    beta, log_prob = sample_beta(agent, balance, batch.obs, beta_key, args)
    mean, log_std = agent.nets.actor.apply(agent.actor, batch.obs, beta)
    action = mean + jnp.exp(log_std) * jax.random.normal(action_key, mean.shape)
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, action).min(0)
    chex.assert_shape([beta, log_prob, q], (args.batch_size,))
    alpha = jnp.exp(agent.log_alpha) if args.balance_entropy else 0.0
    return (alpha * log_prob - q).mean(), {"beta": beta.mean(), "balance_entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, args: Args):
    """alpha (H(pi_b) - target): alpha grows while the entropy is under its target."""
    return jnp.exp(log_alpha) * (entropy - args.target_entropy)


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2 (eq. 6); summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor_net = Actor(args.hidden_dims, spec.action_dim, args.dropout, args.encoding_dim)
    nets = Networks(actor_net, Balance(args.hidden_dims), Critic(args.hidden_dims))
    actor_key, balance_key, critic_key, value_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, jnp.zeros(1))
    balance = nets.balance.init(balance_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    log_alpha = jnp.log(args.init_temperature)
    return Agent(
        nets=nets,
        actor=actor,
        balance=balance,
        log_alpha=log_alpha,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        balance_opt=optax.adam(args.balance_lr).init(balance),
        alpha_opt=optax.adam(args.balance_lr).init(log_alpha),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the dataset and what was collected since."""
    return sample_union(key, data, replay, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, t=None, online: bool = False) -> tuple[Agent, dict]:
    """One gradient step of V, then both policies with the new V (each with the old other one), then Q with the new V.

    The universal policy learns betas drawn uniformly offline, and online those that the balance policy draws.
    """
    beta_key, actor_key, balance_key = jax.random.split(key, 3)
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    if online:
        beta = sample_beta(agent, agent.balance, batch.obs, beta_key, args)[0]
    else:
        beta = to_range(jax.random.uniform(beta_key, (args.batch_size,), minval=-1.0, maxval=1.0), args)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, beta, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    actor = optax.apply_updates(agent.actor, updates)

    grad = jax.value_and_grad(balance_loss, has_aux=True)
    (loss_b, info_b), grads = grad(agent.balance, agent, batch, balance_key, args)
    updates, balance_opt = optax.adam(args.balance_lr).update(grads, agent.balance_opt)
    balance = optax.apply_updates(agent.balance, updates)
    agent = agent.replace(actor=actor, actor_opt=actor_opt, balance=balance, balance_opt=balance_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_b["balance_entropy"], args)
    updates, alpha_opt = optax.adam(args.balance_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi, "balance_loss": loss_b}
    info = {**info_q, **info_v, **info_pi, **info_b, **family(agent, batch.obs[:16], args)}
    return agent.replace(target_critic=target_critic), {**losses, **info, "alpha": jnp.exp(agent.log_alpha)}


def update_online(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """`update` with the betas of the balance policy."""
    return update(agent, batch, key, args, t, online=True)


def family(agent: Agent, obs, args: Args) -> dict:
    """Over a few states: how far apart the family's ends act, and the chosen beta's standard deviation."""
    ends = [agent.nets.actor.apply(agent.actor, obs, jnp.full(len(obs), b))[0] for b in (args.beta_min, args.beta_max)]
    return {"family_width": jnp.abs(ends[1] - ends[0]).mean(), "beta_std": best_beta(agent, obs, args).std()}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's, at the balance policy's mean."""
    return agent.nets.actor.apply(agent.actor, obs, best_beta(agent, obs, args))[0]


def explore(agent: Agent, obs, key, args: Args):
    """Actions [B, A] sampled at the balance policy's mean; the environment clips them."""
    mean, log_std = agent.nets.actor.apply(agent.actor, obs, best_beta(agent, obs, args))
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.encoding_dim % 2:
        raise InputError(f"--encoding-dim must be even, not {args.encoding_dim}: half are sines, half cosines.")
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(run, transitions, explore, sample, update_online, capacity=args.buffer_size)
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
