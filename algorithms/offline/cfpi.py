"""CFPI: closed-form policy improvement of a mixture of Gaussians that clones the data.

Li, Zhang, Yin, Bai, Wang and Wang, "Offline Reinforcement Learning with Closed-Form Policy Improvement Operators", ICML
2023, arXiv 2211.15956. Near the data Q is about linear in the action. The best action of a linear function within an
ellipsoid is known in closed form, so that a cloned policy is improved by one formula, without training another one:
the behaviour policy is cloned, its Q is learned, and actions are improved where they are taken.

Actions are tanh(u). g is the gradient in u of a lower bound of Q, mean - beta_lb standard deviation over two critics.
- One Gaussian (--n-components 1 --operator jensen): mu + sqrt(2 delta) Sigma g / sqrt(g Sigma g), the best u with
  (u - mu) Sigma^-1 (u - mu) / 2 <= delta.
- lse: a mixture is at least its largest component. Each component has an ellipsoid of its own, in which the density is
  at least e^-delta of the largest peak (with --lse-factor 1); the proposal of highest Q is taken.
- jensen: sum_i w_i (u - mu_i) Sigma_i^-1 (u - mu_i) / 2 <= delta is one ellipsoid, around the mean of the means.
- both: of these proposals the best (the paper's choice). mode, sample, none: the best component's mean, the best of
  several draws (EBCQ), the heaviest component's mean (cloning), to compare with.
Two other behaviour policies are a Gaussian of covariance 1 around one action (--operator jensen): --behavior
deterministic around the action of a network that clones by squared errors, --behavior vae around the best by Q of
n_candidates that a VAE decodes. With --multi-step the improved policy is evaluated and improved again: at every update
(Iterative), or in rounds of --policy-round-updates, whose next actions stay those of the round's start (Multi-step).
A trained run acts with another operator or delta by `python -m shared.evaluation RUN_DIR --set operator=mode`.

Choose it when the data are of several policies, and the improvement shall be one step that cannot diverge.

Deviations from the released code (cfpi-icml23/cfpi):
- the peaks' log-densities are sums of logarithms (there the logarithm of a product, which under- and overflows);
- the heaviest component always takes part, --min-component-weight notwithstanding;
- means are not clipped in cloning (there at 9, where tanh is 1), so that a clone that diverges is seen;
- --critic mse does not occur there; a round of --multi-step keeps its first critics, in place of its actions;
- with --critic iql V steps before Q, whose target is the new V, as in IQL's own code (there both losses see the old V);
- a component's step is divided by its norm over action dimensions (there, of a mixture, over the components);
- hidden layers of the policy begin within 1 / sqrt(inputs); there the outputs are read in their place. The biases of
  the critics begin at zero, as the policy's do;
- observations are divided by their standard deviation plus 1e-3 (there 1e-8).
Squared radii of lse are twice the equation's there, which belongs to its delta of 0.5: --lse-factor 1 for the equation.

    python algorithms/offline/cfpi.py --dataset hopper-medium-replay --seeds 4 --updates 50000 --bc-updates 50000
    python algorithms/offline/cfpi.py --dataset pendulum-mixed --hidden-dims 64 64 --updates 10000 --bc-updates 10000
"""

import dataclasses
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
from shared.arguments import Count, Expectile, Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    operator: Literal["both", "lse", "jensen", "mode", "sample", "none"] = "both"
    """How the cloned policy is improved where an action is taken."""
    delta: Float = 0.5
    """delta: half of the squared Mahalanobis distance that an action may move; 0: the components' means."""
    delta_range: Float = 0.0
    """Deltas are drawn between delta and this much more."""
    n_deltas: Size = 1
    """Deltas that are drawn for each action, of which the best by Q is taken."""
    lse_factor: Float = 2.0
    """Factor of lse's squared radii: 1 by the equation, 2 in the released code."""
    covariance: Literal["policy", "identity"] = "policy"
    """Sigma: of the cloned policy, or 1 (of a deterministic one)."""
    behavior: Literal["mixture", "deterministic", "vae"] = "mixture"
    """What clones the data: a mixture of Gaussians, one action by squared errors, or a variational autoencoder."""
    n_components: Size = 4
    """Gaussians in the mixture that clones the data."""
    min_component_weight: Fraction = 0.05
    """Components below this weight are left out, in [0, 1]."""
    n_candidates: Size = 10
    """Candidate actions at each step of an episode, of which one is taken."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    beta_lb: Float = 1.0
    """Standard deviations over the two critics by which Q is lowered where actions are compared."""
    critic: Literal["quantile", "mse", "iql"] = "quantile"
    """Q of the behaviour by quantile regression, by squared errors, or IQL's with its value function."""
    n_fractions: Size = 8
    """Quantile fractions that are drawn for each row."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    multi_step: bool = False
    """Targets take the improved action in the next state, in place of the data's."""
    sarsa_updates: Count = 20_000
    """With --multi-step, first updates whose targets still take the data's next action."""
    policy_round_updates: Count = 0
    """With --multi-step, updates of a round, in which the improved actions stay as they were at its beginning (in the
    first the data's); 0: they are improved at every update."""
    policy_noise: Float = 0.1
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    updates: Size = 500_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    bc_updates: Size = 500_000
    """Updates of the cloned policy before the first one of the critics."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_hidden_dims: tuple[int, ...] = ()
    """Hidden layers of the critics; none: as hidden_dims."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_antmaze = {"normalize_obs": False, "reward_shift": -1.0, "eval_episodes": 100, "n_components": 12}
_one_action = {"n_components": 1, "operator": "jensen", "delta": 0.5, "delta_range": 0.5, "n_deltas": 5}
_validated = {  # thousands of updates of the critics, by the authors' validation
    "halfcheetah-medium": 200, "halfcheetah-medium-replay": 1500, "halfcheetah-medium-expert": 400,
    "hopper-medium": 400, "hopper-medium-replay": 300, "hopper-medium-expert": 400,
    "walker2d-medium": 700, "walker2d-medium-replay": 1100, "walker2d-medium-expert": 400,
}  # fmt: skip
PRESETS = {
    "antmaze": {
        **_antmaze, "critic": "iql", "critic_hidden_dims": (256, 256), "expectile": 0.9, "delta": 0.0,
        "min_component_weight": 0.03,
    },
    **{name: {"updates": 1000 * thousands} for name, thousands in _validated.items()},
    **by_name({
        "multi-step-antmaze": {
            **_antmaze, "multi_step": True, "operator": "lse", "updates": 1_000_000, "policy_round_updates": 200_000,
        },
        "iterative-antmaze": {
            **_antmaze, "multi_step": True, "operator": "lse", "updates": 1_000_000, "n_components": 8,
        },
        "single-gaussian": {"n_components": 1, "operator": "jensen", "delta": 0.2, "delta_range": 1.8, "n_deltas": 10},
        "deterministic": {"behavior": "deterministic", **_one_action},
        "vae": {"behavior": "vae", **_one_action},
    }),
}  # fmt: skip

EMBEDDING = 64
"""Cosines of which a quantile fraction is embedded."""
LATENT_CLIP = 0.5
"""Latents that actions are drawn from are clipped to [-LATENT_CLIP, LATENT_CLIP]."""
EVEN_FRACTIONS = 32
"""Fractions, evenly spaced, over which Q is the mean of the quantiles."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    """K Gaussians before the tanh: mean and log standard deviation [..., K, A], and log weight [..., K]."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    n_components: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        size, shape = self.n_components * self.action_dim, (*x.shape[:-1], self.n_components, self.action_dim)
        mean = nn.Dense(size, kernel_init=uniform(1e-3))(x).reshape(shape)
        log_std = nn.Dense(size, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x).reshape(shape)
        weights = nn.Dense(self.n_components, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))
        log_weight = nn.log_softmax(weights(jax.lax.stop_gradient(x)))  # its gradient stops at the hidden layers
        return mean, jnp.clip(log_std, -5.0, 2.0), log_weight


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.output_dim, kernel_init=dense_init)(x)


class VAE(nn.Module):
    """q(z | s, a) and an action for each z [..., 2A]; the prior of z is N(0, 1)."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    def setup(self):
        self.encoder = MLP(self.hidden_dims, 2 * (2 * self.action_dim))
        self.decoder = MLP(self.hidden_dims, self.action_dim)

    def __call__(self, obs, action, key):
        """Mean and log standard deviation of z [B, 2A], and the action [B, A] of one draw of it."""
        mean, log_std = jnp.split(self.encoder(obs, action), 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        return mean, log_std, self.decode(obs, mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))

    def decode(self, obs, z):
        """Actions [..., A] in [-1, 1]."""
        return jnp.tanh(self.decoder(obs, z))


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class QuantileCritic(nn.Module):
    """Quantiles of the return at fractions [..., N] (IQN's network), the last hidden layer after the fractions."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action, fraction):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims[:-1]:
            x = nn.relu(nn.LayerNorm()(nn.Dense(size, kernel_init=dense_init)(x)))
        cosines = jnp.cos(jnp.pi * fraction[..., None] * jnp.arange(1, EMBEDDING + 1))
        embedded = nn.sigmoid(nn.LayerNorm()(nn.Dense(x.shape[-1], kernel_init=dense_init)(cosines)))
        x = x[..., None, :] * embedded
        x = nn.relu(nn.LayerNorm()(nn.Dense(self.hidden_dims[-1], kernel_init=dense_init)(x)))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor | VAE
    critic: Critic | QuantileCritic
    value: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    """The cloned behaviour; there is no other policy."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    round_critic: Any
    """Of --policy-round-updates: the critics at the beginning of the round, by which its next actions are improved."""
    value: Any
    """V of --critic iql."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


class Mixture(NamedTuple):
    """K Gaussians before the tanh."""

    log_weight: jax.Array
    """[K, B]"""
    mean: jax.Array
    """[K, B, A]"""
    std: jax.Array
    """[K, B, A]"""


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def apply_critics(agent: Agent, critics, *inputs):
    """[E, ...]"""
    return jax.vmap(agent.nets.critic.apply, (0, *(None for _ in inputs)))(critics, *inputs)


def q_values(agent: Agent, critics, obs, action):
    """[E, ...]: of quantiles the mean over even fractions."""
    if isinstance(agent.nets.critic, Critic):
        return apply_critics(agent, critics, obs, action)
    fraction = (jnp.arange(EVEN_FRACTIONS) + 0.5) / EVEN_FRACTIONS
    fraction = jnp.broadcast_to(fraction, (*obs.shape[:-1], EVEN_FRACTIONS))
    return apply_critics(agent, critics, obs, action, fraction).mean(-1)


# ------------------------------------------------------------------------------ the improvement


def lower_bound(agent: Agent, obs, u, args: Args):
    """Mean - beta_lb standard deviation of Q(s, tanh(u)) over the two critics [..., B], u [..., B, A]."""
    obs = jnp.broadcast_to(obs, (*u.shape[:-1], obs.shape[-1]))
    q = q_values(agent, agent.critic, obs, jnp.tanh(u))
    return q.mean(0) - args.beta_lb * jnp.abs(q[0] - q[1]) / jnp.sqrt(2.0)  # the standard deviation of two


def ascend(center, variance, grad, radius):
    """argmax of grad . u over (u - center)^2 / variance <= radius^2, [..., A] each (radius [...])."""
    norm = jnp.sqrt((variance * grad**2).sum(-1, keepdims=True)) + 1e-7
    return center + radius[..., None] * variance * grad / norm


def lse_proposals(mixture: Mixture, variance, grad, delta, factor):
    """[D, K, B, A]: the best u of each component where its own density, with `factor` 1, is e^-delta of the peak's.

    delta [D]. Components whose peaks are lower than that stay at their means.
    """
    peak = mixture.log_weight - 0.5 * jnp.log(2.0 * jnp.pi * variance).sum(-1)
    room = jnp.maximum(delta[:, None, None] + peak - peak.max(0), 0.0)
    return ascend(mixture.mean, variance, grad, jnp.sqrt(2.0 * factor * room))


def jensen_center(mixture: Mixture, variance):
    """Center [B, A] and variance [B, A] of sum_i w_i (u - mu_i)^2 / variance_i, and its least value [B]."""
    precision = jnp.exp(mixture.log_weight)[..., None] / (variance + 1e-6)
    total = precision.sum(0)
    center = (precision * mixture.mean).sum(0) / total
    return center, 1.0 / total, (precision * (mixture.mean - center) ** 2).sum((0, -1))


def before_tanh(action):
    return jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))


def around(u) -> Mixture:
    """One Gaussian of covariance 1 around u [B, A]."""
    return Mixture(jnp.zeros((1, len(u))), u[None], jnp.ones_like(u)[None])


def best_decoded(agent: Agent, obs, key, args: Args):
    """u [B, A] of the VAE's action of highest lower bound among n_candidates (with --operator none of its first)."""
    n = 1 if args.operator == "none" else args.n_candidates
    z = jax.random.normal(key, (n, len(obs), 2 * agent.nets.actor.action_dim))
    z = jnp.clip(z, -LATENT_CLIP, LATENT_CLIP)
    repeated = jnp.broadcast_to(obs, (n, *obs.shape))
    u = before_tanh(agent.nets.actor.apply(agent.actor, repeated, z, method=VAE.decode))
    best = lower_bound(agent, obs, u, args).argmax(0)
    return jnp.take_along_axis(u, best[None, :, None], axis=0)[0]


def mixture_of(agent: Agent, obs, key, args: Args) -> Mixture:
    """The cloned policy at `obs` [B, O]; the VAE alone draws."""
    if args.behavior == "vae":
        return around(best_decoded(agent, obs, key, args))
    mean, log_std, log_weight = agent.nets.actor.apply(agent.actor, obs)
    if args.behavior == "deterministic":
        return around(mean[:, 0])
    return Mixture(log_weight.T, jnp.moveaxis(mean, -2, 0), jnp.exp(jnp.moveaxis(log_std, -2, 0)))


def heaviest(mixture: Mixture):
    """[B, A] the mean of the component of largest weight."""
    return jnp.take_along_axis(mixture.mean, mixture.log_weight.argmax(0)[None, :, None], axis=0)[0]


def proposals(agent: Agent, obs, key, args: Args):
    """u [M, B, A] among which the operator chooses, and whether it may [M, B]."""
    draw_key, component_key, delta_key = jax.random.split(key, 3)
    mixture = mixture_of(agent, obs, draw_key, args)
    if args.operator == "none":
        return heaviest(mixture)[None], jnp.ones((1, len(obs)), bool)
    if args.operator == "sample":
        at = jax.random.categorical(component_key, mixture.log_weight, axis=0, shape=(args.n_candidates, len(obs)))
        mean, std = (jnp.take_along_axis(x, at[..., None], axis=0) for x in (mixture.mean, mixture.std))
        return mean + std * jax.random.normal(draw_key, mean.shape), jnp.ones(at.shape, bool)
    weight = jnp.exp(mixture.log_weight)
    enough = weight >= jnp.minimum(args.min_component_weight, weight.max(0))
    if args.operator == "mode":
        return mixture.mean, enough

    delta = args.delta + args.delta_range * jax.random.uniform(delta_key, (args.n_deltas,))
    variance = mixture.std**2 if args.covariance == "policy" else jnp.ones_like(mixture.std)
    gradient = jax.grad(lambda u: lower_bound(agent, obs, u, args).sum())
    found = []
    if args.operator in ("lse", "both"):
        u = lse_proposals(mixture, variance, gradient(mixture.mean), delta, args.lse_factor)
        found.append((u.reshape(-1, *u.shape[2:]), jnp.tile(enough, (args.n_deltas, 1))))
    if args.operator in ("jensen", "both"):
        center, width, least = jensen_center(mixture, variance)
        kappa = 2.0 * delta[:, None] - least
        found.append((ascend(center, width, gradient(center), jnp.sqrt(jnp.maximum(kappa, 0.0))), kappa >= 0.0))
    return tuple(jnp.concatenate(x) for x in zip(*found, strict=True))


def improve(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the proposal of highest lower bound."""
    u, allowed = proposals(agent, obs, key, args)
    value = jnp.where(allowed, lower_bound(agent, obs, u, args), -jnp.inf)
    return jnp.tanh(jnp.take_along_axis(u, value.argmax(0)[None, :, None], axis=0)[0])


# -------------------------------------------------------------------------------------- losses


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """Cloning: -log sum_k w_k N_k(a | s), (tanh(mu) - a)^2, or the VAE's (a_z - a)^2 + kl_weight KL(q | N(0, 1))."""
    if args.behavior == "vae":
        mean, log_std, decoded = agent.nets.actor.apply(actor, batch.obs, batch.action, key)
        chex.assert_equal_shape([decoded, batch.action])
        reconstruction = ((decoded - batch.action) ** 2).mean()
        kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).mean()
        return reconstruction + args.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}
    mean, log_std, log_weight = agent.nets.actor.apply(actor, batch.obs)
    if args.behavior == "deterministic":
        chex.assert_equal_shape([mean[:, 0], batch.action])
        return ((jnp.tanh(mean[:, 0]) - batch.action) ** 2).mean(), {}
    u = before_tanh(batch.action)
    log_prob = jax.nn.logsumexp(log_weight + tanh_gaussian_log_prob(mean, log_std, u[:, None]), axis=-1)
    used = jnp.exp(-(jnp.exp(log_weight) * log_weight).sum(-1))
    return -log_prob.mean(), {"log_prob": log_prob.mean(), "components_used": used.mean()}


def next_actions(agent: Agent, batch: Batch, key, args: Args):
    """[B, A]: the data's; with --multi-step, after the first updates, the improved ones with smoothing noise."""
    if not args.multi_step:
        return batch.next_action
    improve_key, noise_key = jax.random.split(key)
    done = agent.critic_opt[0].count
    if args.policy_round_updates:
        improved = improve(agent.replace(critic=agent.round_critic), batch.next_obs, improve_key, args)
        improved = jnp.where(done < args.policy_round_updates, batch.next_action, improved)
    else:
        improved = improve(agent, batch.next_obs, improve_key, args)
    noise = args.policy_noise * jax.random.normal(noise_key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    return jnp.where(done < args.sarsa_updates, batch.next_action, jnp.clip(improved + noise, -1.0, 1.0))


def fractions(key, shape: tuple[int, int]):
    """Random fractions [B, N], the middles of N parts of [0, 1], and how long these parts are [B, N]."""
    length = jax.random.uniform(key, shape) + 0.1
    length = length / length.sum(-1, keepdims=True)
    return length.cumsum(-1) - 0.5 * length, length


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Z_i(s, a) against r + gamma Z'_i(s', a'), each critic with its own target; with --multi-step the lesser one.

    Of quantiles sum_m w_m |t_n - 1(z_n > y_m)| huber(z_n - y_m), mean over n and the batch; else (z - y)^2. With
    --critic iql y = r + gamma V(s'). Summed over the two critics.
    """
    action_key, fraction_key, next_key = jax.random.split(key, 3)
    inputs, next_inputs = (batch.obs, batch.action), ()
    if args.critic == "quantile":
        shape = (args.batch_size, args.n_fractions)
        fraction, _ = fractions(fraction_key, shape)
        next_fraction, length = fractions(next_key, shape)
        inputs, next_inputs = (*inputs, fraction), (next_fraction,)
    if args.critic == "iql":
        next_z = agent.nets.value.apply(agent.value, batch.next_obs)[None]
    else:
        next_action = next_actions(agent, batch, action_key, args)
        next_z = apply_critics(agent, agent.target_critic, batch.next_obs, next_action, *next_inputs)
        next_z = next_z.min(0, keepdims=True) if args.multi_step else next_z
    rows = (args.batch_size,) + (1,) * len(next_inputs)
    y = batch.reward.reshape(rows) + args.discount * (1.0 - batch.terminal.reshape(rows)) * next_z
    z = apply_critics(agent, critic, *inputs)
    chex.assert_equal_shape([z[0], y[0]])
    if args.critic == "quantile":
        error = z[..., :, None] - y[..., None, :]
        side = jnp.abs(fraction[..., None] - (error > 0.0))
        loss = (side * optax.huber_loss(error) * length[:, None]).sum(-1).mean((1, 2)).sum(0)
    else:
        loss = ((z - y) ** 2).mean(1).sum(0)
    return loss, {"q": z.mean(), "q_gap": jnp.abs(z[0] - z[1]).mean()}


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s), as in IQL."""
    q = q_values(agent, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.value.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    critic_dims = args.critic_hidden_dims or args.hidden_dims
    critic = QuantileCritic(critic_dims) if args.critic == "quantile" else Critic(critic_dims)
    n_components = 1 if args.behavior == "deterministic" else args.n_components
    actor = Actor(args.hidden_dims, spec.action_dim, n_components)
    actor = VAE(args.vae_hidden_dims, spec.action_dim) if args.behavior == "vae" else actor
    nets = Networks(actor, critic, Critic(critic_dims))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    inputs = (obs, action, jnp.zeros((1, 1))) if args.critic == "quantile" else (obs, action)
    if args.behavior == "vae":
        actor_key, latent_key = jax.random.split(actor_key)
        actor = nets.actor.init(actor_key, obs, action, latent_key)
    else:
        actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, *inputs), jax.random.split(critic_key, 2))
    value = nets.value.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        round_critic=critic if args.policy_round_updates else None,
        value=value,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
    )


def update_actor(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the cloned policy (before the critics' first)."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, **info}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, and before it of V with --critic iql; a Polyak step of the targets."""
    info = {}
    if args.critic == "iql":
        (loss, info), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
        updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
        agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)
        info = {"value_loss": loss, **info}
    (loss, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    if args.policy_round_updates:
        begins = agent.critic_opt[0].count % args.policy_round_updates == 0
        newest = jax.tree.map(lambda new, old: jnp.where(begins, new, old), agent.critic, agent.round_critic)
        agent = agent.replace(round_critic=newest)
    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    return agent.replace(target_critic=target_critic), {"critic_loss": loss, **info_q, **info}


def gain(agent: Agent, obs, key, args: Args) -> dict:
    """What the operator does at `obs` [B, O] to the cloned action: how much Q rises, how far actions move (metrics)."""
    improve_key, clone_key = jax.random.split(key)
    cloned = improve(agent, obs, clone_key, dataclasses.replace(args, operator="none"))
    improved = improve(agent, obs, improve_key, args)
    q, q_cloned = (q_values(agent, agent.critic, obs, action).mean() for action in (improved, cloned))
    return {"q_gain": q - q_cloned, "moved": jnp.abs(improved - cloned).mean()}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], improved; deterministic unless the operator draws candidates or deltas."""
    return improve(agent, obs, key, args)


def clone(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the cloned policy per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update_actor(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics, and the improvement at the end."""

    def step(agent, keys):
        batch_key, update_key = keys
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    *step_keys, row_keys, gain_keys = jax.vmap(lambda key: tuple(jax.random.split(key, 4)))(keys)
    agent, metrics = jax.lax.scan(step, agent, step_keys)
    obs = transitions.sample(row_keys[-1], args.batch_size).obs
    return agent, jax.tree.map(jnp.mean, metrics) | gain(agent, obs, gain_keys[-1], args)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if args.multi_step and args.critic == "iql":
        raise InputError("--multi-step improves the actions in Q's targets; those of --critic iql have none.")
    if args.behavior != "mixture" and args.operator == "sample":
        raise InputError("--operator sample draws from a mixture; --operator mode takes the best that a VAE decodes.")
    if args.critic == "quantile" and not (args.critic_hidden_dims or args.hidden_dims):
        raise InputError("--hidden-dims: quantile critics need a hidden layer, which the fractions enter.")
    for name in ("delta", "lse_factor"):
        if np.min(getattr(args, name)) < 0:
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(args, name)}.")
    fields = FIELDS if args.critic == "iql" else (*FIELDS, "next_action")
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, before=args.bc_updates) as run:
        transitions = run.replicate(data.transitions(*fields))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        clone_lanes = run.over_lanes(clone, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = clone_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
