"""Offline DV2: offline DreamerV2, an actor-critic in a latent world model whose reward is less where heads differ.

Lu, Ball, Rudner, Parker-Holder, Osborne and Teh, "Challenges and Opportunities in Offline Reinforcement Learning from
Visual Observations", TMLR 2023, arXiv 2206.04779; the world model is DreamerV2's (Hafner, Lillicrap, Norouzi and Ba,
"Mastering Atari with Discrete World Models", ICLR 2021, arXiv 2010.02193). A recurrent state h and categorical
variables z tell what was seen (RSSM): h_t of (h, z, a)_{t-1}, the posterior z_t ~ q(z | h_t, x_t), the prior
p(z | h_t), an ensemble of heads; one head, drawn for each step, is the prior there and the only one that learns.
1. Model phase, logged to before.csv: --model-updates on windows of the data, of the squared errors of observation and
   reward, the likelihood of ends, and 0.8 max(KL(sg q | p), free) + 0.2 max(KL(q | sg p), free) (DreamerV2, eq. 2 and
   algorithm 2: KL balancing).
2. --updates of actor and critic: from every latent state of a batch the actor is followed for H steps in the model,
   whose reward is r - lambda u with u = mean_i |p_i(z | h) - mean_j p_j(z | h)| (the mean disagreement of
   V-D4RL). The critic learns lambda-returns (DreamerV2, eq. 4), the actor ascends them through the model (eq. 6).
--reward-penalty 0 is DreamerV2 on a dataset. The paper's other method, DrQ+BC, is td3_bc.py on images.

Choose it when the data is broad (random or replayed), and single observations or pictures do not tell the whole state.
On narrow data of an expert it fails, as the paper shows: see td3_bc.py.

Deviations from the paper:
- observations may be vectors, normalised; encoder and decoder are then --hidden-dims wide, as in DreamerV2's code;
- of the authors' code: V(z) counts rewards from the next latent on (there: from z's own on), so that all H actions
  learn, not H - 1; the weight decay of 1e-6 is left out;
  the critic's loss is divided by the sum of its weights, the actor's by the number of imagined steps;
- a head says where episodes end (DreamerV2's; the authors turn it off, as their tasks have no ends); of a terminal
  row whose next observation is not in the data neither end nor reward is learned;
- pictures are halved down to 4x4 by padded 4x4 convolutions and doubled again by 2x2 ones, written as products of
  matrices (there: unpadded, of kernels 4 and 5 to 6); sides are 4 times a power of 2;
- windows begin with rows drawn uniformly; behind an episode's end they are empty (there: whole windows alone);
- of the penalties only the one that their commands choose; lambda is not tuned.

    python algorithms/model_based/offline_dv2.py --dataset point-pixels-mixed --preset small --seeds 2
    python algorithms/model_based/offline_dv2.py --dataset hopper-medium-replay --seeds 4 --reward-penalty 0 10
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
from jax.scipy.special import ndtr, ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, sequences
from shared.task import Spec
from shared.transitions import FIELDS


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 200_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    reward_penalty: Float = 10.0
    """lambda: what the reward loses per unit of uncertainty; 0: nothing (MBPO)."""
    n_models: Size = 7
    """Models in the ensemble."""
    model_updates: Count = 25_000
    """Most updates of the model before the first of the agent; 0 only where it goes on learning then, or is exact."""
    window_steps: Size = 50
    """Steps of a window of the data."""
    imagination_steps: Size = 5
    """H: steps that are imagined from every latent state of a batch."""
    return_lambda: Fraction = 0.95
    """lambda of the imagined returns, in [0, 1]: 0 bootstraps after one step, 1 at the end alone."""
    entropy_cost: Float = 1e-4
    """Weight of the policy's entropy."""
    kl_balance: Fraction = 0.8
    """Share of the KL divergence's gradient that the prior gets, in [0, 1]; the posterior has the rest."""
    free_nats: Float = 1.0
    """The KL divergence costs no less than this: under it neither side learns."""
    obs_weight: Float = 1.0
    """Weight of the observation's squared error, halved and summed over its numbers, in the model's loss."""
    model_reward_weight: Float = 0.5
    """Weight of the reward's squared error in the model's loss."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    copy_every: Count = 100
    """Updates between two copies of the network to its target, in place of Polyak steps; 0: none."""
    model_lr: Float = 3e-4
    """Adam's step size: model of the dynamics."""
    actor_lr: Float = 8e-5
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 8e-5
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    max_grad_norm: Float = 100.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    recurrent_dim: Size = 200
    """Units of the recurrent network that reads histories."""
    latent_variables: Size = 32
    """Categorical variables of a latent state."""
    latent_classes: Size = 32
    """Classes of each of them."""
    model_hidden_dims: tuple[int, ...] = (200,)
    """Hidden layers of the model of the dynamics."""
    hidden_dims: tuple[int, ...] = (400, 400, 400, 400)
    """Hidden layers of every network that has no argument of its own for them."""
    image_channels: Size = 48
    """Channels of the first layer of the encoder of images; each layer that follows has twice as many."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    "small": {  # ours: learns on two cores
        "n_models": 4, "model_updates": 2_000, "updates": 2_000, "window_steps": 12, "free_nats": 0.1,
        "obs_weight": 10.0, "model_reward_weight": 5.0, "discount": 0.97, "tau": 0.02, "copy_every": 0,
        "model_lr": 1e-3, "actor_lr": 5e-4, "critic_lr": 1e-3, "batch_size": 16, "recurrent_dim": 64,
        "latent_variables": 8, "latent_classes": 8, "model_hidden_dims": (64,), "hidden_dims": (64, 64),
        "image_channels": 16, "entropy_cost": 1e-3, "eval_every": 1_000,
    },
}  # fmt: skip

xavier = nn.initializers.xavier_uniform()
MIN_STD = 0.1
"""Of the policy, before its Gaussian is cut at -1 and 1."""


class MLP(nn.Module):
    """Of one or more inputs, laid side by side: `outputs` numbers; 0: the last hidden layer."""

    hidden_dims: tuple[int, ...]
    outputs: int = 0

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.elu(nn.Dense(size, kernel_init=xavier)(x))
        return nn.Dense(self.outputs, kernel_init=xavier)(x) if self.outputs else x


def blocks(x):
    """[B, H, W, C] -> [B, H / 2, W / 2, 16 C]: what a padded 4x4 convolution of stride 2 multiplies by its kernel.

    As a product of matrices it is many times faster in a scan on CPU, and needs no grouped one where lanes are vmapped.
    """
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + height : 2, j : j + width : 2] for i in range(4) for j in range(4)], -1)


class ImageEncoder(nn.Module):
    """Images [..., S, S, C] uint8 -> [..., D]: halved by `levels` convolutions down to 4x4."""

    channels: int
    levels: int

    @nn.compact
    def __call__(self, obs):
        x = (obs / 255.0 - 0.5).reshape(-1, *obs.shape[-3:])
        for level in range(self.levels):
            x = nn.elu(nn.Dense(self.channels * 2**level, kernel_init=xavier)(blocks(x)))
        return x.reshape(*obs.shape[:-3], -1)


class ImageDecoder(nn.Module):
    """[..., D] -> images [..., S, S, C] between -0.5 and 0.5, from 4x4 by 2x2 convolutions that double the sides."""

    channels: int
    levels: int
    obs_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, features):
        size = self.channels * 2 ** (self.levels - 1)
        x = nn.elu(nn.Dense(16 * size, kernel_init=xavier)(features)).reshape(-1, 4, 4, size)
        for level in reversed(range(self.levels)):
            size = self.channels * 2 ** (level - 1) if level else self.obs_shape[-1]
            x = nn.Dense(4 * size, kernel_init=xavier)(x)
            batch, side, *_ = x.shape
            x = x.reshape(batch, side, side, 2, 2, size).swapaxes(2, 3).reshape(batch, 2 * side, 2 * side, size)
            x = nn.elu(x) if level else x
        return x.reshape(*features.shape[:-1], *self.obs_shape)


class Recurrence(nn.Module):
    """h_t [..., D] of h, z and a of the step before: a gated recurrent unit with a layer norm, slow to change."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, h, z, action):
        x = MLP(self.hidden_dims)(z, action)
        x = nn.LayerNorm()(nn.Dense(3 * h.shape[-1], kernel_init=xavier)(jnp.concatenate([x, h], axis=-1)))
        reset, new, gate = jnp.split(x, 3, axis=-1)
        gate = nn.sigmoid(gate - 1.0)
        return gate * jnp.tanh(nn.sigmoid(reset) * new) + (1.0 - gate) * h


class Networks(NamedTuple):
    encoder: MLP | ImageEncoder
    decoder: MLP | ImageDecoder
    recurrence: Recurrence
    posterior: MLP
    prior: MLP
    """One head of the ensemble."""
    reward: MLP
    end: MLP
    """Logit of the probability that the task has ended."""
    actor: MLP
    critic: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    model: Any
    """{name of one of the networks up to `end`: its parameters}; those of the prior's heads have an axis [E, ...]."""
    actor: Any
    critic: Any
    target_critic: Any
    updates: jax.Array
    """[] of actor and critic so far."""
    model_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState


class Latent(NamedTuple):
    """A state of the model."""

    h: jax.Array
    """[..., D]"""
    z: jax.Array
    """[..., S, K] one-hot"""


class Frames(NamedTuple):
    """What was seen [B, F], each with what led to it: F is one more than the steps of a window."""

    obs: jax.Array
    action: jax.Array
    """[B, F, A] 0 at the first frame, as its reward and end are."""
    reward: jax.Array
    terminal: jax.Array
    mask: jax.Array
    """1 where there is a frame: 0 behind the end of the episode or of the task, and where next_obs is not known."""


# ------------------------------------------------------------------------------------------- the model


def frames_of(window: Window) -> Frames:
    """The frames [B, T + 1] of a window [B, T]: its first observation, then what every step led to."""
    later = lambda x: jnp.concatenate([jnp.zeros_like(x[:, :1]), x], axis=1)  # noqa: E731
    goes_on = jnp.cumprod(1.0 - later(window.terminal)[:, :-1], axis=1)
    mask = window.mask * window.successor * goes_on
    return Frames(
        obs=jnp.concatenate([window.obs[:, :1], window.next_obs], axis=1),
        action=later(window.action),
        reward=later(window.reward),
        terminal=later(window.terminal),
        mask=jnp.concatenate([window.mask[:, :1], mask], axis=1),
    )


def features(latent: Latent):
    """[..., S K + D] what all heads see."""
    return jnp.concatenate([latent.z.reshape(*latent.z.shape[:-2], -1), latent.h], axis=-1)


def logits_of(net: MLP, params, *inputs, args: Args):
    """[..., S, K] log-probabilities of z."""
    out = net.apply(params, *inputs)
    return nn.log_softmax(out.reshape(*out.shape[:-1], args.latent_variables, args.latent_classes))


def one_hot_sample(logits, key):
    """z [..., S, K] of log-probabilities; its gradient is that of the probabilities (straight through)."""
    probs = jnp.exp(logits)
    drawn = jax.nn.one_hot(jax.random.categorical(key, logits), logits.shape[-1])
    return drawn + probs - jax.lax.stop_gradient(probs)


def head(model, member):
    """Parameters of the prior's heads `member` [...]."""
    return jax.tree.map(lambda x: x[member], model["prior"])


def recur(model, nets: Networks, latent: Latent, action):
    """h [..., D] of the step after `latent` and `action`."""
    z = latent.z.reshape(*latent.z.shape[:-2], -1)
    return nets.recurrence.apply(model["recurrence"], latent.h, z, action)


def correct(model, nets: Networks, h, embedded, key, args: Args):
    """The latent state that follows when an observation is seen, and the posterior's log-probabilities."""
    logits = logits_of(nets.posterior, model["posterior"], h, embedded, args=args)
    return Latent(h, one_hot_sample(logits, key)), logits


def empty_latent(shape: tuple[int, ...], args: Args) -> Latent:
    """Before anything was seen."""
    return Latent(
        jnp.zeros((*shape, args.recurrent_dim)), jnp.zeros((*shape, args.latent_variables, args.latent_classes))
    )


def observe(model, nets: Networks, obs, action, key, args: Args):
    """Latent states [B, F] of frames in their order, and the posteriors' log-probabilities [B, F, S, K]."""
    embedded = nets.encoder.apply(model["encoder"], obs)

    def step(latent, x):
        action, embedded, key = x
        latent, logits = correct(model, nets, recur(model, nets, latent, action), embedded, key, args)
        return latent, (latent, logits)

    xs = jnp.moveaxis(action, 1, 0), jnp.moveaxis(embedded, 1, 0), jax.random.split(key, action.shape[1])
    _, found = jax.lax.scan(step, empty_latent(action.shape[:1], args), xs)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def kl(p, q):
    """KL(p | q) [...] of log-probabilities [..., S, K], summed over the S variables."""
    return (jnp.exp(p) * (p - q)).sum((-2, -1))


def kl_loss(posterior, prior, mask, args: Args):
    """balance max(KL(sg posterior | prior), free) + (1 - balance) max(KL(posterior | sg prior), free): of the means."""
    sg, mean = jax.lax.stop_gradient, lambda x: (mask * x).sum() / mask.sum()
    of_prior = jnp.maximum(mean(kl(sg(posterior), prior)), args.free_nats)
    of_posterior = jnp.maximum(mean(kl(posterior, sg(prior))), args.free_nats)
    return args.kl_balance * of_prior + (1.0 - args.kl_balance) * of_posterior


def model_loss(model, agent: Agent, frames: Frames, key, args: Args):
    """|x - x^|^2 / 2 + 0.5 (r - r^)^2 - log p(end) + KL, each a mean over the frames that are there.

    Of what led to a window's first frame nothing is known. The prior of each frame's place is one head, drawn for all.
    """
    nets = agent.nets
    key, member_key = jax.random.split(key)
    latent, posterior = observe(model, nets, frames.obs, frames.action, key, args)
    member = jax.random.randint(member_key, frames.mask.shape[1:], 0, args.n_models)
    of_frame = lambda params, h: logits_of(nets.prior, params, h, args=args)  # noqa: E731
    prior = jax.vmap(of_frame, (0, 1), 1)(head(model, member), latent.h)
    x, led = features(latent), frames.mask.at[:, 0].set(0.0)
    mean = lambda x, mask: (mask * x).sum() / jnp.maximum(mask.sum(), 1.0)  # noqa: E731
    seen = frames.obs / 255.0 - 0.5 if frames.obs.dtype == jnp.uint8 else frames.obs
    missed = (nets.decoder.apply(model["decoder"], x) - seen) ** 2
    reward, end = (nets._asdict()[name].apply(model[name], x)[..., 0] for name in ("reward", "end"))
    chex.assert_equal_shape([reward, end, frames.reward, frames.mask])
    terms = {
        "obs_loss": mean(0.5 * missed.reshape(*missed.shape[:2], -1).sum(-1), frames.mask),
        "reward_loss": mean((reward - frames.reward) ** 2, led),
        "end_loss": mean(optax.sigmoid_binary_cross_entropy(end, frames.terminal), led),
    }
    total = args.obs_weight * terms["obs_loss"] + args.model_reward_weight * terms["reward_loss"] + terms["end_loss"]
    info = {**terms, "kl": mean(kl(posterior, prior), frames.mask)}
    return total + kl_loss(posterior, prior, frames.mask, args), info


# ---------------------------------------------------------------------------------------- imagination


def disagreement(probs):
    """u [...] = mean_i |p_i - mean_j p_j| of the heads' probabilities [E, ..., S, K]; the norm is over both S and K."""
    return jnp.sqrt(((probs - probs.mean(0)) ** 2).sum((-2, -1)) + 1e-12).mean(0)


def policy(agent: Agent, actor, latent: Latent):
    """Mean and standard deviation [..., A] of the Gaussian that is cut at -1 and 1."""
    mean, std = jnp.split(agent.nets.actor.apply(actor, jax.lax.stop_gradient(features(latent))), 2, axis=-1)
    return jnp.tanh(mean), 2.0 * nn.sigmoid(0.5 * std) + MIN_STD


def sample_truncated(mean, std, key):
    """Actions [..., A] of that Gaussian, by its inverse distribution function, which has gradients."""
    low, high = ndtr((-1.0 - mean) / std), ndtr((1.0 - mean) / std)
    drawn = jax.random.uniform(key, mean.shape, minval=1e-6, maxval=1.0 - 1e-6)
    action = mean + std * ndtri(low + drawn * (high - low))
    return action + jax.lax.stop_gradient(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6) - action)


def truncated_entropy(mean, std):
    """[...] summed over the actions' dimensions."""
    a, b = (-1.0 - mean) / std, (1.0 - mean) / std
    mass, density = ndtr(b) - ndtr(a), jax.scipy.stats.norm.pdf
    entropy = jnp.log(jnp.sqrt(2.0 * jnp.pi * jnp.e) * std * mass) + (a * density(a) - b * density(b)) / (2.0 * mass)
    return entropy.sum(-1)


def imagine(actor, agent: Agent, start: Latent, key, args: Args) -> Latent:
    """Latent states [H + 1, N] that the actor leads to from `start` [N]; each step's prior is one head, drawn for all.

    The actor's features carry no gradient, its actions do.
    """
    nets, model = agent.nets, agent.model

    def step(latent, key):
        action_key, member_key, latent_key = jax.random.split(key, 3)
        action = sample_truncated(*policy(agent, actor, latent), action_key)
        h, member = recur(model, nets, latent, action), jax.random.randint(member_key, (), 0, args.n_models)
        latent = Latent(h, one_hot_sample(logits_of(nets.prior, head(model, member), h, args=args), latent_key))
        return latent, latent

    _, later = jax.lax.scan(step, start, jax.random.split(key, args.imagination_steps))
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), start, later)


def lambda_returns(reward, discount, value, args: Args):
    """R_t [H, N] = r_{t+1} + d_{t+1} ((1 - lambda) V_{t+1} + lambda R_{t+1}), R_H = V_H.

    Of what each step t = 1 .. H led to: reward, discount and value [H, N].
    """

    def back(later, x):
        reward, discount, value = x
        total = reward + discount * ((1.0 - args.return_lambda) * value + args.return_lambda * later)
        return total, total

    return jax.lax.scan(back, value[-1], (reward, discount, value), reverse=True)[1]


def actor_loss(actor, agent: Agent, start: Latent, mask, key, args: Args):
    """-(R_t + cost * entropy), t = 0 .. H - 1, each weighted by the discounts up to it; a mean over starts [N].

    `mask` [N]: 0 where a start is none. Also what the critic learns from: features, returns and weights [H, N].
    """
    nets, model = agent.nets, agent.model
    latent = imagine(actor, agent, start, key, args)
    x, later = features(latent), jax.tree.map(lambda x: x[1:], latent)
    of_head = lambda params: jnp.exp(logits_of(nets.prior, params, later.h, args=args))  # noqa: E731
    u = disagreement(jax.vmap(of_head)(model["prior"]))
    model_reward = nets.reward.apply(model["reward"], x[1:])[..., 0]
    goes_on = nn.sigmoid(-nets.end.apply(model["end"], x[1:])[..., 0])
    discount = args.discount * goes_on
    value = nets.critic.apply(agent.target_critic, x[1:])[..., 0]
    returns = lambda_returns(model_reward - args.reward_penalty * u, discount, value, args)
    weight = jax.lax.stop_gradient(mask * jnp.cumprod(jnp.concatenate([jnp.ones_like(discount[:1]), discount[:-1]]), 0))
    entropy = truncated_entropy(*policy(agent, actor, jax.tree.map(lambda x: x[:-1], latent)))
    chex.assert_equal_shape([returns, entropy, weight])
    mean = lambda x: (mask * x).sum() / (args.imagination_steps * jnp.maximum(mask.sum(), 1.0))  # noqa: E731
    loss = -mean(jnp.where(mask > 0, weight * (returns + args.entropy_cost * entropy), 0.0))
    info = {"model_reward": mean(model_reward), "penalty": args.reward_penalty * mean(u), "disagreement": mean(u)}
    info |= {"entropy": mean(entropy), "imagined_return": mean(returns), "ends": mean(1.0 - goes_on)}
    return loss, (jax.lax.stop_gradient((x[:-1], returns, weight)), info)


def critic_loss(critic, agent: Agent, x, returns, weight):
    """(V(z_t) - R_t)^2 / 2, weighted likewise; returns carry no gradient."""
    v = agent.nets.critic.apply(critic, x)[..., 0]
    chex.assert_equal_shape([v, returns, weight])
    return 0.5 * (weight * (v - returns) ** 2).sum() / jnp.maximum(weight.sum(), 1e-6), {"v": v[0].mean()}


# ------------------------------------------------------------------------------------------ the agent


def optimizer(lr, args: Args) -> optax.GradientTransformation:
    """Adam on gradients of at most `max_grad_norm`."""

    def clip(grads, state, params=None):
        norm = optax.global_norm(grads)
        scale = jnp.where((args.max_grad_norm > 0) & (norm > args.max_grad_norm), args.max_grad_norm / norm, 1.0)
        return jax.tree.map(lambda g: scale * g, grads), state

    return optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), clip), optax.adam(lr, eps=1e-5))


def levels(spec: Spec) -> int:
    """Times that a picture is halved down to 4x4.

    Raises:
      InputError: its sides are not alike, or not 4 times a power of 2, of at least 2.
    """
    height, width, _ = spec.obs_shape
    found = (height // 4).bit_length() - 1
    if height != width or found < 1 or height != 4 * 2**found:
        raise InputError(f"Images must be square, of 8, 16, 32, 64, ... pixels, not {height}x{width}.")
    return found


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    dims, latent = args.hidden_dims, args.latent_variables * args.latent_classes
    encoder, decoder = MLP(dims), MLP(dims, spec.obs_shape[0])
    if spec.images:
        encoder = ImageEncoder(args.image_channels, levels(spec))
        decoder = ImageDecoder(args.image_channels, levels(spec), spec.obs_shape)
    nets = Networks(
        encoder=encoder,
        decoder=decoder,
        recurrence=Recurrence(args.model_hidden_dims),
        posterior=MLP(args.model_hidden_dims, latent),
        prior=MLP(args.model_hidden_dims, latent),
        reward=MLP(dims, 1),
        end=MLP(dims, 1),
        actor=MLP(dims, 2 * spec.action_dim),
        critic=MLP(dims, 1),
    )
    keys = dict(zip(Networks._fields, jax.random.split(key, len(Networks._fields)), strict=True))
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    z, h, x = jnp.zeros((1, latent)), jnp.zeros((1, args.recurrent_dim)), jnp.zeros((1, latent + args.recurrent_dim))
    model = {"encoder": nets.encoder.init(keys["encoder"], obs)}
    embedded = nets.encoder.apply(model["encoder"], obs)
    model |= {
        "decoder": nets.decoder.init(keys["decoder"], x),
        "recurrence": nets.recurrence.init(keys["recurrence"], h, z, action),
        "posterior": nets.posterior.init(keys["posterior"], h, embedded),
        "prior": jax.lax.map(lambda k: nets.prior.init(k, h), jax.random.split(keys["prior"], args.n_models)),
        "reward": nets.reward.init(keys["reward"], x),
        "end": nets.end.init(keys["end"], x),
    }
    actor, critic = nets.actor.init(keys["actor"], x), nets.critic.init(keys["critic"], x)
    return Agent(
        nets=nets,
        model=model,
        actor=actor,
        critic=critic,
        target_critic=critic,
        updates=jnp.int32(0),
        model_opt=optimizer(args.model_lr, args).init(model),
        actor_opt=optimizer(args.actor_lr, args).init(actor),
        critic_opt=optimizer(args.critic_lr, args).init(critic),
    )


def update_model(agent: Agent, batch: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the whole model, on windows [B, T]."""
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.model, agent, frames_of(batch), key, args)
    updates, model_opt = optimizer(args.model_lr, args).update(grads, agent.model_opt)
    return agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt), {
        "model_loss": loss,
        **info,
    }


def move_target(agent: Agent, args: Args) -> Agent:
    """The end of an update: the slow critic is copied from the critic when it is time, or follows it."""
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    target_critic = optax.incremental_update(agent.critic, agent.target_critic, step)
    return agent.replace(target_critic=target_critic, updates=agent.updates + 1)


def update(agent: Agent, batch: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor in imagination, then of the critic on the same returns, then the target's.

    It begins in the latent states of all frames of the windows [B, T] after which the task goes on.
    """
    observe_key, imagine_key = jax.random.split(key)
    frames = frames_of(batch)
    latent, _ = observe(agent.model, agent.nets, frames.obs, frames.action, observe_key, args)
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latent)
    mask = (frames.mask * (1.0 - frames.terminal)).reshape(-1)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, (seen, info)), grads = grad(agent.actor, agent, start, mask, imagine_key, args)
    updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_v, info_v), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, *seen)
    updates, critic_opt = optimizer(args.critic_lr, args).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    return move_target(agent, args), {"actor_loss": loss_pi, "critic_loss": loss_v, **info, **info_v}


class Carry(NamedTuple):
    """What is remembered of an episode."""

    latent: Latent
    action: jax.Array
    """[A] of the last step."""


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    outputs = agent.nets.actor.outputs
    return Carry(empty_latent((), args), jnp.zeros(outputs // 2))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], the mode of the policy, and what to remember; the latent state is drawn."""
    h = recur(agent.model, agent.nets, carry.latent, carry.action)
    embedded = agent.nets.encoder.apply(agent.model["encoder"], obs)
    latent, _ = correct(agent.model, agent.nets, h, embedded, key, args)
    action, _ = policy(agent, agent.actor, latent)
    return action, Carry(latent, action)


def train(agent: Agent, keys, args: Args, data: Sequences, learn: Any) -> tuple[Agent, dict]:
    """One lane: one update per key, by `learn` (of the model, or of actor and critic); mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.take(data.rows(batch_key, args.batch_size), jnp.arange(args.window_steps))
        return learn(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False, images=True)
    if args.model_updates < 1:
        raise InputError("--model-updates must be at least 1: behaviour is learned in a world model.")
    if len(data.obs) < args.window_steps:
        raise InputError(
            f"'{data.task.id}' has {len(data.obs)} rows; a window of --window-steps needs {args.window_steps} or more."
        )
    if args.n_models == 1 and np.any(np.array(args.reward_penalty) != 0.0):
        raise InputError("--n-models 1: a single head disagrees with none; pass --reward-penalty 0.")
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act), before=args.model_updates) as run:
        windows = run.replicate(sequences(data, *FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes, train_lanes = (
            run.over_lanes(partial(train, learn=learn), in_axes=(0, 0, 0, None), donate=True)
            for learn in (update_model, update)
        )
        for keys in run.chunks():
            learn_lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = learn_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
