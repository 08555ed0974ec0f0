"""MOTO: a latent world model that goes online: imagined returns less uncertainty, and a policy held to the data.

Rafailov, Hatch, Kolev, Martin, Phielipp and Finn, "MOTO: Offline Pre-training to Online Fine-tuning for Model-based
Robot Learning", CoRL 2023, arXiv 2401.03306. The world model is DreamerV2's with an ensemble of prior heads, as in
offline_dv2.py, which says more. Three things carry it from a dataset into an environment:
- value expansion: targets are lambda-returns of H imagined steps of the present policy, from latent states of old and
  new data, and bootstrapped from a slow V, so that old data never brings an old policy's value with it;
- epistemic control: the model's reward loses lambda u, u how far the heads are from their mean, also online;
- a behaviour prior: the actor's loss is -(returns + entropy) - beta E_data log pi(a | z), beta less online.
Offline and online each update is one step of model, actor and critic, in this order; online half of each batch is the
dataset's, on which alone the prior is laid. What is explored is a sample of the policy, whose latent state is carried
from step to step. --reward-penalty 0, --clone-weight 0 and --from-scratch (Dreamer, without data) are the ablations.

Choose it when the reward is sparse, the data shows it more or less, and an environment follows.

Deviations from the paper (no code was released, and settings that it does not tell are V-D4RL's or ours):
- observations are vectors: the replay buffer of this collection keeps no pictures;
- V(z) counts rewards from the next latent on, and a head says where episodes end, as in offline_dv2.py;
- u is V-D4RL's mean disagreement; beta is a number, for all of the data (ours: 1, and a tenth of it online);
- one update per environment step after the first --learning-starts (Dreamer: one per 5 to 10), on single steps as they
  come, not on whole episodes;
- windows begin with rows drawn uniformly; behind an episode's end they are empty;
- observations are normalised by the data's mean and deviation, also with --from-scratch.

    python algorithms/model_based/moto.py --dataset point-umaze-mixed --preset small --seeds 2
    python algorithms/model_based/moto.py --dataset pointmaze-umaze --seeds 4 --reward-penalty 0 10
"""

import dataclasses
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
from shared.arguments import Count, FinetuneArgs, Float, Fraction, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.policies import StatefulPolicy
from shared.replay import Replay
from shared.run import Run, launch
from shared.sequences import Sequences, Window, replay_windows, sequences
from shared.task import Spec
from shared.transitions import FIELDS


@hyperparameters
class Args(FinetuneArgs):
    from_scratch: bool = False
    """Nothing is learned before the first environment step, and nothing of the data: Dreamer."""
    clone_weight: Float = 1.0
    """beta: weight of -log pi(a | z) of the data's actions against the imagined returns; 0: none."""
    online_clone_share: Fraction = 0.1
    """Share of beta that is left from the first environment step on, in [0, 1]."""
    reward_penalty: Float = 10.0
    """lambda: what the reward loses per unit of uncertainty; 0: nothing (MBPO)."""
    n_models: Size = 7
    """Models in the ensemble."""
    online_share: StaticFraction = 0.5
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
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
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    "small": {  # ours: learns on two cores
        "n_models": 4, "offline_updates": 2_000, "env_steps": 1_000, "learning_starts": 100, "window_steps": 12,
        "free_nats": 0.1, "obs_weight": 10.0, "model_reward_weight": 5.0, "discount": 0.97, "tau": 0.02,
        "copy_every": 0, "model_lr": 1e-3, "actor_lr": 5e-4, "critic_lr": 1e-3, "batch_size": 16, "recurrent_dim": 64,
        "latent_variables": 8, "latent_classes": 8, "model_hidden_dims": (64,), "hidden_dims": (64, 64),
        "entropy_cost": 1e-3, "offline_eval_every": 1_000, "eval_every": 500,
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
    encoder: MLP
    decoder: MLP
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
    Also the latent states [B, F].
    """
    nets = agent.nets
    key, member_key = jax.random.split(key)
    latent, posterior = observe(model, nets, frames.obs, frames.action, key, args)
    member = jax.random.randint(member_key, frames.mask.shape[1:], 0, args.n_models)
    of_frame = lambda params, h: logits_of(nets.prior, params, h, args=args)  # noqa: E731
    prior = jax.vmap(of_frame, (0, 1), 1)(head(model, member), latent.h)
    x, led = features(latent), frames.mask.at[:, 0].set(0.0)
    mean = lambda x, mask: (mask * x).sum() / jnp.maximum(mask.sum(), 1.0)  # noqa: E731
    missed = ((nets.decoder.apply(model["decoder"], x) - frames.obs) ** 2).sum(-1)
    reward, end = (nets._asdict()[name].apply(model[name], x)[..., 0] for name in ("reward", "end"))
    chex.assert_equal_shape([reward, end, frames.reward, frames.mask])
    terms = {
        "obs_loss": mean(0.5 * missed, frames.mask),
        "reward_loss": mean((reward - frames.reward) ** 2, led),
        "end_loss": mean(optax.sigmoid_binary_cross_entropy(end, frames.terminal), led),
    }
    total = args.obs_weight * terms["obs_loss"] + args.model_reward_weight * terms["reward_loss"] + terms["end_loss"]
    info = {**terms, "kl": mean(kl(posterior, prior), frames.mask)}
    return total + kl_loss(posterior, prior, frames.mask, args), (info, latent)


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


def truncated_log_prob(mean, std, action):
    """[...] of actions [..., A] in [-1, 1], summed over their dimensions."""
    mass = ndtr((1.0 - mean) / std) - ndtr((-1.0 - mean) / std)
    return (jax.scipy.stats.norm.logpdf(action, mean, std) - jnp.log(mass)).sum(-1)


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


def expanded(actor, agent: Agent, start: Latent, mask, key, args: Args):
    """Features, returns and weights [H, N] of what the actor is imagined to do from `start` [N]; and metrics.

    `mask` [N]: 0 where a start is none. A weight is the product of the discounts up to its step.
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
    objective = mean(jnp.where(mask > 0, weight * (returns + args.entropy_cost * entropy), 0.0))
    info = {"model_reward": mean(model_reward), "penalty": args.reward_penalty * mean(u), "disagreement": mean(u)}
    info |= {"entropy": mean(entropy), "imagined_return": mean(returns), "ends": mean(1.0 - goes_on)}
    return objective, (jax.lax.stop_gradient((x[:-1], returns, weight)), info)


def clone_loss(actor, agent: Agent, latent: Latent, action, mask):
    """-log pi(a | z): of actions [B, T, A] in latent states [B, T], where `mask` [B, T] is."""
    log_prob = truncated_log_prob(*policy(agent, actor, latent), action)
    chex.assert_equal_shape([log_prob, mask])
    return -(mask * log_prob).sum() / jnp.maximum(mask.sum(), 1.0)


def actor_loss(actor, agent: Agent, latent: Latent, batch: Window, weight, rows: int, key, args: Args):
    """-(R_t + cost * entropy), weighted, a mean over all that is imagined, + beta (-log pi(a | z)) on the data.

    From latent states [B, F] of the frames of windows [B, T], of which the first `rows` are the data's; `weight`: beta.
    """
    frames = frames_of(batch)
    start, mask = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (latent, frames.mask * (1.0 - frames.terminal)))
    objective, (seen, info) = expanded(actor, agent, start, mask, key, args)
    goes_on = frames.mask[:, :-1] * (1.0 - frames.terminal[:, :-1]) * batch.mask
    clone = jnp.float32(0.0)
    if rows:
        told, action, there = jax.tree.map(lambda x: x[:rows], (latent, batch.action, goes_on))
        clone = clone_loss(actor, agent, jax.tree.map(lambda x: x[:, :-1], told), action, there)
    return weight * clone - objective, (seen, {**info, "clone_loss": clone})


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


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    dims, latent = args.hidden_dims, args.latent_variables * args.latent_classes
    nets = Networks(
        encoder=MLP(dims),
        decoder=MLP(dims, spec.obs_shape[0]),
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


def sample(key, data: Sequences, replay: Replay, args: Args) -> Window:
    """[B, T] windows, the data's first, --online-share of them of experience."""
    old_key, new_key = jax.random.split(key)
    online = round(args.online_share * args.batch_size)
    old = data.take(data.rows(old_key, args.batch_size - online), jnp.arange(args.window_steps))
    new = replay_windows(replay, new_key, online, args.window_steps)
    return jax.tree.map(lambda *x: jnp.concatenate(x), old._replace(timestep=None), new)


def move_target(agent: Agent, args: Args) -> Agent:
    """The end of an update: the slow critic is copied from the critic when it is time, or follows it."""
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    target_critic = optax.incremental_update(agent.critic, agent.target_critic, step)
    return agent.replace(target_critic=target_critic, updates=agent.updates + 1)


def learn(agent: Agent, batch: Window, key, args: Args, weight, rows: int) -> tuple[Agent, dict]:
    """One gradient step of the model, of the actor in it, and of the critic on the same returns; then the target's.

    Imagination begins in the latent states in which the model saw the windows [B, T] before its step. `weight`: beta,
    of cloning the first `rows` of them.
    """
    model_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, (info, latent)), grads = grad(agent.model, agent, frames_of(batch), model_key, args)
    updates, model_opt = optimizer(args.model_lr, args).update(grads, agent.model_opt)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, (seen, info_pi)), grads = grad(agent.actor, agent, latent, batch, weight, rows, actor_key, args)
    updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_v, info_v), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, *seen)
    updates, critic_opt = optimizer(args.critic_lr, args).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    losses = {"model_loss": loss, "actor_loss": loss_pi, "critic_loss": loss_v}
    return move_target(agent, args), {**losses, **info, **info_pi, **info_v}


def update(agent: Agent, batch: Window, key, args: Args) -> tuple[Agent, dict]:
    """One update before the first environment step."""
    return learn(agent, batch, key, args, args.clone_weight, args.batch_size)


def update_online(agent: Agent, batch: Window, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One update online, on the windows of `sample`."""
    rows = args.batch_size - round(args.online_share * args.batch_size)
    return learn(agent, batch, key, args, args.clone_weight * args.online_clone_share, rows)


class Carry(NamedTuple):
    """What is remembered of an episode."""

    latent: Latent
    action: jax.Array
    """[A] of the last step."""


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    outputs = agent.nets.actor.outputs
    return Carry(empty_latent((), args), jnp.zeros(outputs // 2))


def perceive(agent: Agent, carry: Carry, obs, key, args: Args) -> Latent:
    """The latent state in which `obs` [B, O] is seen, drawn, after what is carried."""
    h = recur(agent.model, agent.nets, carry.latent, carry.action)
    embedded = agent.nets.encoder.apply(agent.model["encoder"], obs)
    return correct(agent.model, agent.nets, h, embedded, key, args)[0]


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], the mode of the policy, and what to remember."""
    latent = perceive(agent, carry, obs, key, args)
    action, _ = policy(agent, agent.actor, latent)
    return action, Carry(latent, action)


def explore(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] that the policy draws, and what to remember."""
    latent_key, action_key = jax.random.split(key)
    latent = perceive(agent, carry, obs, latent_key, args)
    action = sample_truncated(*policy(agent, agent.actor, latent), action_key)
    return action, Carry(latent, action)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.take(data.rows(batch_key, args.batch_size), jnp.arange(args.window_steps))
        return update(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if len(data.obs) < args.window_steps:
        raise InputError(
            f"'{data.task.id}' has {len(data.obs)} rows; a window of --window-steps needs {args.window_steps} or more."
        )
    if args.n_models == 1 and np.any(np.array(args.reward_penalty) != 0.0):
        raise InputError("--n-models 1: a single head disagrees with none; pass --reward-penalty 0.")
    if args.from_scratch:
        if args.from_run:
            raise InputError("--from-scratch begins with nothing, --from with a run's agents: take one of them.")
        args = dataclasses.replace(args, offline_updates=0, online_share=1.0)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, *FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, windows, StatefulPolicy(initial_carry, explore), sample, update_online, warmup=args.learning_starts,
            capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
