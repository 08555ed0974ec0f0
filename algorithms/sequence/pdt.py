"""PDT: Pretrained Decision Transformer, futures in place of returns until there are any.

Xie, Lin, Ye, Fu, Yang and Li, "Future-conditioned Unsupervised Pretraining for Decision Transformer", ICML 2023, arXiv
2305.16683. The data has no rewards. A transformer reads backwards what comes after a step and puts it into a future
z ~ g(. | what follows), and the policy, Online DT's, is trained to give the data's actions when it is told z. A prior
p(z | s) learns which futures there are in a state, so that the policy can act before any reward was seen (section 4.1).
Then it interacts: what it earned trains a predictor f(R | s, z) of returns-to-go, whose gradient reaches g, too, and
from then on it is told, of --future-candidates futures of the prior, the one that promises most (section 4.2).

The first --learning-starts steps are played with futures of the prior, one for an episode; each two episodes in turn
share what is random in them (from one start: the future itself). `diversity` is how much more where episodes end
differs between such pairs than within one (intraclass correlation of the last observations; 0: futures change nothing,
1: they decide). Then f alone is trained, for --return-updates.

--pretrain return is Online DT on data without rewards: tokens are returns, random ones in pre-training, and online the
returns-to-go that episodes had; it is asked for its best one so far. --pretrain none begins with the interaction.

Choose it when there is much data of what can be done, nothing says what is good, and episodes can be played later.

Parity: pre-training, the return network alone and the online step are equal to the authors' code, update for update,
but for the futures, what padding sees, what entropy is averaged over, and LAMB's layers (results/parity.md).

Deviations from the paper (and the authors' code):
- a step's future begins with the next step and ends --lookahead steps after the window (the authors' step j of a
  window is told the first j steps after its end);
- the futures that are tried out first are kept for an episode (drawn anew at every step);
- acting sees as many steps as training (the authors': the last 5 of 20), and all that was played is kept;
- updates come after every --learn-every steps, of episodes that have ended (after every episode);
- all steps count, those before the first update, too (the authors' 210,000 come after them);
- actions that are learned from are kept away from -1 and 1 by 1e-3 (1e-6);
- blocks begin with weights of variance 1 / inputs (0.02 squared), so that narrow ones learn, too;
- entropy is averaged over the steps that are there (over padding, too), and padding sees itself alone (what it should
  not, since all that it sees is hidden); LAMB is Optax's, for which a head's mean and deviation are one layer (two);
- biases and LayerNorms take AdamW's step (LAMB's, which is next to nothing for a bias that begins at 0);
- f stays as it is in pre-training, which knows no returns;
- rewards are needed in no phase but the second; the data's are hidden.

    python algorithms/sequence/pdt.py --dataset hopper-medium-replay --seeds 4
    python algorithms/sequence/pdt.py --dataset point-hidden-expert --env PointHiddenCorner-v0 --reward-scale 0.01
"""

import dataclasses
import json
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
from shared.arguments import Count, Dropout, EnvSteps, FinetuneArgs, Float, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.jax_envs import jax_env
from shared.online import MAX_CHUNK, LaneEnvs, move
from shared.parts import hidden
from shared.policies import StatefulPolicy, stepped
from shared.run import Run, launch
from shared.sequences import Sequences, Window, require_context, require_heads, sequences
from shared.task import Spec, require_env
from shared.transitions import Transitions


@hyperparameters
class Args(FinetuneArgs):
    offline_updates: Size = 50_000
    """Gradient updates of each lane before its first environment step."""
    env_steps: EnvSteps = 210_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    pretrain: Literal["future", "return", "none"] = "future"
    """What tokens tell: futures; returns, of which pre-training knows none; futures without any pre-training."""
    context: int = 20
    """K: steps that the policy sees."""
    lookahead: Size = 20
    """Steps after the window that futures are made of."""
    latent_dim: Size = 16
    """Size of the representations."""
    kl_weight: Float = 1.0
    """Weight of the VAE's KL divergence."""
    future_candidates: Size = 256
    """Futures of the prior of which the one that promises most is told; 1: none is preferred."""
    learning_starts: Count = 10_000
    """Environment steps before the first online update."""
    return_updates: Size = 1_500
    """Updates of the return predictor alone, before the first online update of everything."""
    learn_every: Size = 1_000
    """Environment steps between two rounds of updates."""
    updates_per_round: Size = 300
    """Gradient updates of a round."""
    width: int = 512
    """Size of a token."""
    layers: Size = 4
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    return_lr: Float = 1e-3
    """Adam's step size: the return predictor, alone."""
    alpha_lr: Float = 1e-4
    """Adam's step size: entropy temperature."""
    init_temperature: Positive = 0.1
    """First value of the entropy temperature."""
    weight_decay: Float = 5e-4
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 10_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 0.25
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    reward_scale: float = 0.001
    """Rewards are multiplied by this in training."""


PRESETS = {"antmaze": {"reward_scale": 1.0}}

gpt_init = nn.initializers.lecun_normal()  # LAMB moves weights in proportion to them: 0.02 is for large networks
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def linear(inputs: int, width: int):
    """A layer whose bias, too, begins as PyTorch's: of a token that is normalised it tells how large the input is."""
    bound = inputs**-0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(width, kernel_init=dense_init, bias_init=uniform)


class Block(nn.Module):
    """Self-attention, then a feed-forward layer; both read normalised tokens and are added to them."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, visible, training: bool):
        """`x` [B, N, W]; `visible` [B, N, N]: which token (last axis) each one sees."""
        *lead, width = x.shape
        drop = lambda x: nn.Dropout(self.dropout, deterministic=not training)(x)  # noqa: E731
        qkv = nn.Dense(3 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = drop(nn.softmax(jnp.where(visible[:, None], scores, -1e9)))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + drop(nn.Dense(width, kernel_init=gpt_init)(seen))
        hidden = nn.relu(nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + drop(nn.Dense(width, kernel_init=gpt_init)(hidden))


class Transformer(nn.Module):
    """Tokens [B, N, W], each of which sees itself and those before it, or behind it, that are no padding."""

    layers: int
    heads: int
    dropout: float
    backwards: bool

    @nn.compact
    def __call__(self, x, mask, training: bool):
        """`mask` [B, N]: 0 at padding."""
        ordered = (jnp.triu if self.backwards else jnp.tril)(jnp.ones((x.shape[1], x.shape[1]), bool))
        visible = ordered & (mask[:, None] > 0) | jnp.eye(x.shape[1], dtype=bool)  # padding sees no more than itself
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        return nn.LayerNorm(epsilon=1e-5)(x)


def orthogonal_halves(key, shape, dtype=jnp.float32):
    """Of a head: mean and log standard deviation begin as two orthogonal layers."""
    inputs, outputs = shape
    halves = (nn.initializers.orthogonal()(k, (inputs, outputs // 2), dtype) for k in jax.random.split(key))
    return jnp.concatenate(list(halves), axis=1)


def gaussian(x):
    """Mean and log standard deviation, the halves of `x` [..., 2 n]."""
    mean, log_std = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(log_std, -10.0, 2.0)


class PretrainedTransformer(nn.Module):
    """The policy, and what it shares its embeddings with: prior and return predictor; and the reader of futures."""

    obs_dim: int
    action_dim: int
    latent_dim: int
    width: int
    layers: int
    heads: int
    dropout: float

    def setup(self):
        head = partial(nn.Dense, kernel_init=orthogonal_halves)
        self.embed_obs, self.embed_action = linear(self.obs_dim, self.width), linear(self.action_dim, self.width)
        self.embed_future = linear(self.latent_dim, self.width)
        self.norm = nn.LayerNorm(epsilon=1e-5)
        sizes = self.layers, self.heads, self.dropout
        self.trunk = Transformer(*sizes, backwards=False)
        self.head = head(2 * self.action_dim)
        self.prior_head, self.return_head = head(2 * self.latent_dim), head(2)
        self.read_obs, self.read_action = linear(self.obs_dim, self.width), linear(self.action_dim, self.width)
        self.read_norm = nn.LayerNorm(epsilon=1e-5)
        self.reader = Transformer(*sizes, backwards=True)
        self.future_head = head(2 * self.latent_dim)

    def __call__(self, window: Window, z, training: bool = False):
        """Mean and log standard deviation [B, K, A] of actions before tanh; tokens are s, z, a of each step."""
        kinds = self.embed_obs(window.obs), self.embed_future(z), self.embed_action(window.action)
        batch, steps = window.mask.shape
        tokens = self.norm(jnp.stack(kinds, 2)).reshape(batch, 3 * steps, self.width)
        x = self.trunk(tokens, jnp.repeat(window.mask, 3, 1), training).reshape(batch, steps, 3, self.width)
        mean, log_std = jnp.split(self.head(x[:, :, 1]), 2, axis=-1)  # has not seen the action
        return mean, 3.5 * jnp.tanh(log_std) - 1.5

    def future(self, window: Window, training: bool = False):
        """g(z | tau): mean and log standard deviation [B, T - 1, Z] of what follows each step of `window` [B, T]."""
        batch, steps = window.mask.shape
        tokens = self.read_norm(jnp.stack([self.read_obs(window.obs), self.read_action(window.action)], 2))
        tokens = tokens.reshape(batch, 2 * steps, self.width)
        x = self.reader(tokens, jnp.repeat(window.mask, 2, 1), training).reshape(batch, steps, 2, self.width)
        return gaussian(self.future_head(x[:, 1:, 0]))

    def prior(self, obs):
        """p(z | s): mean and log standard deviation [..., Z]."""
        return gaussian(self.prior_head(nn.relu(self.embed_obs(obs))))

    def returns(self, obs, z):
        """f(R | s, z): mean and log standard deviation [..., 1] of the return-to-go."""
        seen = jnp.concatenate([self.embed_obs(obs), self.embed_future(z)], -1)
        return gaussian(self.return_head(nn.relu(seen)))

    def everything(self, window: Window, z):
        return self(window, z), self.future(window), self.prior(window.obs), self.returns(window.obs, z)


class Agent(flax.struct.PyTreeNode):
    net: PretrainedTransformer = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    actor: Any
    """Of everything that is learned, but the temperature."""
    log_alpha: jax.Array
    tuned: jax.Array
    """[] 1 as soon as returns are predicted: from then on futures are chosen."""
    best_return: jax.Array
    """[] of the episodes that were played, in the environment's unit."""
    diversity: jax.Array
    """[] of the futures that were tried out."""
    actor_opt: optax.OptState
    return_opt: optax.OptState
    alpha_opt: optax.OptState


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end, with what it was told at each."""

    window: Window
    z: jax.Array
    """[K, Z]"""
    earned: jax.Array
    """[] since the episode began, in the environment's unit"""


class Played(NamedTuple):
    """What a lane has played [C], as far as episodes have ended."""

    rows: jax.Array
    """[C, D]: obs, action, return_to_go"""
    start: jax.Array
    end: jax.Array
    drawn: jax.Array
    """[C] the running sum of weights by which rows are drawn"""
    best_return: jax.Array

    def sample(self, key, args: Args, spec: Spec) -> Window:
        """[B, K + F] windows of episodes drawn by how much more they earned than the worst one."""
        at = jax.random.uniform(key, (args.batch_size,)) * self.drawn[-1]
        row = jnp.minimum(jnp.searchsorted(self.drawn, at, side="right"), len(self.drawn) - 1)
        transitions = Transitions(self.rows, None, None, spec, ("obs", "action", "return_to_go"))
        return Sequences(transitions, self.start, self.end).take(row, offsets(args))


def offsets(args: Args):
    """[K + F] from a window's first step to the last one of its future; its last own step is 0."""
    return jnp.arange(1 - args.context, args.lookahead + 1)


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def kl_divergence(one, other):
    """KL(one || other) [...] of Gaussians (mean, log std) [..., Z], the mean over their dimensions."""
    (mean, log_std), (other_mean, other_log_std) = one, other
    ratio = (jnp.exp(2.0 * log_std) + (mean - other_mean) ** 2) / (2.0 * jnp.exp(2.0 * other_log_std))
    return (other_log_std - log_std + ratio - 0.5).mean(-1)


def over(mask, x):
    """The mean of `x` [B, K] over the steps."""
    chex.assert_equal_shape([mask, x])
    return (mask * x).sum() / mask.sum()


def imitation_loss(actor, agent: Agent, window: Window, z, key):
    """-log pi(a | s, z) - alpha H(pi), and the entropy H, of windows [B, K] (Online DT's)."""
    drop_key, entropy_key = jax.random.split(key)
    mean, log_std = agent.net.apply(actor, window, z, training=True, rngs={"dropout": drop_key})
    u = jnp.arctanh(jnp.clip(window.action, -1.0 + 1e-3, 1.0 - 1e-3))
    nll = -over(window.mask, tanh_gaussian_log_prob(mean, log_std, u))
    entropy = -over(window.mask, sample_tanh_gaussian(mean, log_std, entropy_key)[1])
    return nll - jnp.exp(agent.log_alpha) * entropy, (nll, entropy)


def future_losses(actor, agent: Agent, window: Window, future):
    """KL(g || N(0, I)), which bounds what futures tell, and KL(sg g || p), from which the prior learns."""
    standard = jax.tree.map(jnp.zeros_like, future)
    prior = agent.net.apply(actor, window.obs, method="prior")
    fixed = jax.lax.stop_gradient(future)
    return over(window.mask, kl_divergence(future, standard)), over(window.mask, kl_divergence(fixed, prior))


def return_loss(actor, agent: Agent, window: Window, z, args: Args):
    """-log f(R | s, z), R the return-to-go."""
    mean, log_std = agent.net.apply(actor, window.obs, z, method="returns")
    earned = window.return_to_go * args.reward_scale
    return -over(window.mask, jax.scipy.stats.norm.logpdf(earned, mean[..., 0], jnp.exp(log_std[..., 0])))


def read(actor, agent: Agent, window: Window, key, args: Args, training: bool = True):
    """Futures z [B, K, Z] of the first K steps of windows [B, K + F], drawn, and (mean, log std) of g."""
    drop_key, draw_key = jax.random.split(key)
    future = agent.net.apply(actor, window, training=training, method="future", rngs={"dropout": drop_key})
    mean, log_std = jax.tree.map(lambda x: x[:, : args.context], future)
    z = mean + jnp.exp(log_std) * jax.random.normal(draw_key, mean.shape)
    return z * window.mask[:, : args.context, None], (mean, log_std)


def actor_loss(actor, agent: Agent, window: Window, key, args: Args, online: bool):
    """The sum of the losses, of windows [B, K + F]; that of returns is for what was played (`online`)."""
    read_key, policy_key = jax.random.split(key)
    past = jax.tree.map(lambda x: x[:, : args.context], window)
    bound = prior = returns = jnp.zeros(())
    if args.pretrain == "return":
        told = past.return_to_go * args.reward_scale if online else jax.random.normal(read_key, (args.batch_size, 1))
        z = as_token(jnp.broadcast_to(told, past.mask.shape), args)
    else:
        z, future = read(actor, agent, window, read_key, args)
        bound, prior = future_losses(actor, agent, past, future)
        returns = return_loss(actor, agent, past, z, args) if online else returns
    imitation, (nll, entropy) = imitation_loss(actor, agent, past, z, policy_key)
    info = {"nll": nll, "entropy": entropy, "kl": bound, "prior_kl": prior, "return_loss": returns}
    return imitation + args.kl_weight * bound + prior + returns, info


def alpha_loss(log_alpha, entropy, action_dim: int):
    """alpha (H - target), the target -A: below it alpha rises."""
    return jnp.exp(log_alpha) * (entropy + action_dim)


def as_token(told, args: Args):
    """A return [...] as a token [..., Z] of the size of a future."""
    return jnp.zeros((*told.shape, args.latent_dim)).at[..., 0].set(told)


def optimizer(args: Args) -> optax.GradientTransformation:
    """LAMB after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it.

    What has one axis takes AdamW's step: in proportion to its norm a bias would never leave 0.
    """

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.scale_by_adam(), optax.add_decayed_weights(args.weight_decay)
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    trust = optax.masked(optax.scale_by_trust_ratio(), matrices)
    step_size = optax.scale_by_learning_rate(schedule)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), *adamw, trust, step_size)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    sizes = args.latent_dim, args.width, args.layers, args.heads, args.token_dropout
    net = PretrainedTransformer(spec.obs_shape[-1], spec.action_dim, *sizes)
    window = jax.tree.map(lambda x: x[None], empty(spec, args))
    window = jax.tree.map(lambda x: jnp.concatenate([x, x], 1), window)
    actor = net.init(key, window, jnp.zeros((*window.mask.shape, args.latent_dim)), method="everything")
    log_alpha, zero = jnp.log(args.init_temperature), jnp.zeros(())
    heads = optax.adam(args.return_lr).init(actor["params"]["return_head"])
    opts = optimizer(args).init(actor), heads, optax.adam(args.alpha_lr).init(log_alpha)
    return Agent(net, spec, actor, log_alpha, zero, zero, zero, *opts)


def update(agent: Agent, window: Window, key, args: Args, online: bool = False) -> tuple[Agent, dict]:
    """One gradient step of everything, then of the temperature; `window` [B, K + F]."""
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, window, key, args, online)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    grad_alpha = jax.grad(alpha_loss)(agent.log_alpha, info["entropy"], agent.spec.action_dim)
    step, alpha_opt = optax.adam(args.alpha_lr).update(grad_alpha, agent.alpha_opt)
    if not online:  # without a gradient its decay would be as large as a step
        unmoved = jax.tree.map(jnp.zeros_like, updates["params"]["return_head"])
        updates = {"params": updates["params"] | {"return_head": unmoved}}
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, step), alpha_opt=alpha_opt)
    return agent, {"actor_loss": loss, **info, "alpha": jnp.exp(agent.log_alpha)}


def update_returns(agent: Agent, window: Window, key, args: Args) -> Agent:
    """One gradient step of the return predictor's own weights; embeddings and futures stay, read without dropout."""
    past = jax.tree.map(lambda x: x[:, : args.context], window)
    z, _ = read(agent.actor, agent, window, key, args, training=False)
    grads = jax.grad(return_loss)(agent.actor, agent, past, z, args)["params"]["return_head"]
    updates, return_opt = optax.adam(args.return_lr).update(grads, agent.return_opt)
    head = optax.apply_updates(agent.actor["params"]["return_head"], updates)
    return agent.replace(actor={"params": agent.actor["params"] | {"return_head": head}}, return_opt=return_opt)


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    seen = {"obs": jnp.zeros((args.context, *spec.obs_shape)), "action": jnp.zeros((args.context, spec.action_dim))}
    return Window(mask=jnp.zeros(args.context), **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.spec, args), jnp.zeros((args.context, args.latent_dim)), jnp.float32(0.0))


def told(agent: Agent, obs, earned, key, args: Args):
    """z [B, Z]: of the prior's, the one that promises most (section 4.2), or any as long as nothing was played.

    Where returns are told: what is left of the best one, or a random one.
    """
    if args.pretrain == "return":
        left = (agent.best_return - earned) * args.reward_scale
        return as_token(jnp.where(agent.tuned > 0, left, jax.random.normal(key, left.shape)), args)
    mean, log_std = agent.net.apply(agent.actor, obs, method="prior")
    z = mean + jnp.exp(log_std) * jax.random.normal(key, (args.future_candidates, *mean.shape))  # [N, B, Z]
    promised = agent.net.apply(agent.actor, jnp.broadcast_to(obs, (len(z), *obs.shape)), z, method="returns")[0]
    best = jnp.where(agent.tuned > 0, promised[..., 0].argmax(0), 0)
    return z[best, jnp.arange(len(obs))]


def decide(agent: Agent, carry: Carry, obs, z, earned):
    """Mean and log standard deviation [B, A], and the carry but for the action."""
    window = carry.window
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in window._asdict().items() if x is not None}
    moved |= {"obs": moved["obs"].at[:, -1].set(obs), "mask": moved["mask"].at[:, -1].set(1.0)}
    zs = jnp.roll(carry.z, -1, axis=1).at[:, -1].set(z)
    out = agent.net.apply(agent.actor, Window(**moved), zs)
    return *(x[:, -1] for x in out), Carry(Window(**moved), zs, earned)


def did(carry: Carry, action) -> Carry:
    """The carry with what was done."""
    window = carry.window._replace(action=carry.window.action.at[:, -1].set(action))
    return carry._replace(window=window)


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], the mean's, and what to remember; what to be told is chosen anew at every step."""
    earned = carry.earned + reward
    mean, _, carry = decide(agent, carry, obs, told(agent, obs, earned, key, args), earned)
    return jnp.tanh(mean), did(carry, jnp.tanh(mean))


def explore(agent: Agent, carry: Carry, obs, reward, episode_key, key, args: Args):
    """Sampled ones; as long as nothing is promised, one z for the whole episode, drawn by `episode_key`."""
    told_key, action_key = jax.random.split(key)
    earned, begins = carry.earned + reward, carry.window.mask[:, -1:] == 0
    kept = jnp.where(begins, told(agent, obs, earned, episode_key, args), carry.z[:, -1])
    z = jnp.where(agent.tuned > 0, told(agent, obs, earned, told_key, args), kept)
    mean, log_std, carry = decide(agent, carry, obs, z, earned)
    action = sample_tanh_gaussian(mean, log_std, action_key)[0]
    return action, did(carry, action)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, data.take(data.rows(row_key, args.batch_size), offsets(args)), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def learn(agent: Agent, played: Played, key, args: Args) -> tuple[Agent, dict]:
    """One lane, online: a round of updates; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, played.sample(row_key, args, agent.spec), update_key, args, online=True)

    agent, metrics = jax.lax.scan(step, agent, jax.random.split(key, args.updates_per_round))
    metrics = jax.tree.map(jnp.mean, metrics) | {"diversity": agent.diversity, "best_return": played.best_return}
    return agent.replace(best_return=played.best_return), metrics


def begin(agent: Agent, played: Played, key, args: Args) -> Agent:
    """One lane, before the first round: what was played so far trains the return predictor."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update_returns(agent, played.sample(row_key, args, agent.spec), update_key, args), None

    if args.pretrain != "return":
        agent, _ = jax.lax.scan(step, agent, jax.random.split(key, args.return_updates))
    return agent.replace(tuned=jnp.ones(()), best_return=played.best_return)


def played_by(obs, action, reward, ended) -> Played:
    """Of one lane, from its steps [C] in their order; rows of an episode that goes on are never drawn.

    `ended` [C]: whether an episode ended with the step. Episodes are drawn in proportion to their return less the least
    one, their rows uniformly.
    """
    row, count = np.arange(len(obs)), len(obs)
    start = np.maximum.accumulate(np.where(np.append(True, ended[:-1]), row, 0))
    end = np.minimum.accumulate(np.where(ended, row, count)[::-1])[::-1]
    whole = end < count
    end = np.minimum(end, count - 1)
    sums = np.append(0.0, np.cumsum(reward, dtype=np.float64))
    to_go, total = sums[end + 1] - sums[row], sums[end + 1] - sums[start]
    weight = (total - total[whole].min(initial=np.inf) + 1e-6) / (end - start + 1)
    rows = np.concatenate([obs, action, to_go[:, None]], 1)
    drawn, best = np.cumsum(np.where(whole, weight, 0.0)), total[whole].max(initial=-np.inf)
    return Played(np.float32(rows), np.int32(start), np.int32(end), np.float32(drawn), np.float32(best))


def diversity_of(last: np.ndarray) -> float:
    """Intraclass correlation of last observations [E, O], of which each two in turn shared a future's randomness."""
    pairs = last[: len(last) // 2 * 2].reshape(-1, 2, last.shape[-1]).astype(np.float64)
    if len(pairs) < 2:
        return 0.0
    means = pairs.mean(1, keepdims=True)
    between = 2.0 * ((means - means.mean(0)) ** 2).sum() / (len(pairs) - 1)
    within = ((pairs - means) ** 2).sum() / len(pairs)
    return float((between - within) / max(between + within, 1e-12))


class Rollout:
    """The second phase of all lanes: the environments, what was played, and the rounds of updates."""

    def __init__(self, run: Run):
        self.run, self.args, self.env, task = run, run.args, jax_env(require_env(run.task)), run.task
        lanes, steps, spec = len(run.padded_settings), run.total, run.task.spec
        self.obs = np.zeros((lanes, steps, *spec.obs_shape), np.float32)
        """[L, C, O]"""
        self.action = np.zeros((lanes, steps, spec.action_dim), np.float32)
        self.reward, self.ended = np.zeros((lanes, steps), np.float32), np.zeros((lanes, steps), bool)
        self.paid = spec.obs_shape[-1] + spec.action_dim
        """Where a row of a transition has the reward."""
        if not self.env:
            run.shorten_chunks(MAX_CHUNK)
            self.envs = LaneEnvs(task, [s["seed"] for s in run.padded_settings])
            self.first = np.ones((lanes, 1), bool)
            """[L, 1] whether an episode begins"""
        policy, self.carry = stepped(StatefulPolicy(initial_carry, explore)), None
        episode_keys = jax.random.key_data(run.step_keys(run.total))

        def begin_carry(agent, args, key):
            memory = policy.begin(agent, args, 1)
            if not self.env:
                return memory
            return *self.env.reset(jax.random.split(key)), memory, jnp.float32(0.0), jnp.bool_(True), jnp.int32(0)

        def collect(carry, agent, keys, args, episode_key):
            """One step for each key [n], with the environment inside; the carry, and what was played."""

            def step(carry, key):
                env_state, obs, memory, reward, first, episode = carry
                act_key, _, env_key = jax.random.split(key, 3)
                pair = jax.random.fold_in(episode_key, episode // 2)
                seen = obs[None], reward[None], first[None]
                action, memory = policy.act(memory, agent, *seen, pair, act_key, args)
                env_state, new, row, ended = move(self.env, task, env_state, obs, action[0], env_key)
                carry = env_state, new, memory, row[self.paid], ended, episode + ended
                return carry, (obs, action[0], row[self.paid], ended)

            return jax.lax.scan(step, carry, keys)

        begin_lanes = run.over_lanes(begin_carry, in_axes=(0, 0, 0))
        act_lanes = run.over_lanes(policy.act, in_axes=(0,) * 8)
        collect_lanes = run.over_lanes(collect, in_axes=(0,) * 5)
        learn_lanes = run.over_lanes(learn, in_axes=(0, 0, 0, 0), donate=True)
        begin_rounds = run.over_lanes(begin, in_axes=(0, 0, 0, 0), donate=True)

        def keys_of(key_data, i):
            return jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.wrap_key_data(key_data[:, i]))

        @partial(jax.jit, donate_argnums=0)
        def act_at(carry, agent, obs, reward, first, number, key_data, args, i):
            pair = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(episode_keys), number // 2)
            seen = obs[:, None], reward[:, None], first
            return act_lanes(carry, agent, *seen, pair, keys_of(key_data, i)[:, 0], args)

        self._act = act_at
        self._begin_carry = lambda agent: begin_lanes(agent, run.lane_args, run.step_keys(run.total + 1))
        self._collect = lambda carry, agent, keys: collect_lanes(
            carry, agent, keys, run.lane_args, jax.random.wrap_key_data(episode_keys)
        )
        self._learn = lambda agent, played, keys: learn_lanes(agent, played, keys, run.lane_args)
        self._begin = lambda agent, played, keys: begin_rounds(agent, played, keys, run.lane_args)
        self._keys = jax.jit(lambda key_data, i: keys_of(key_data, i)[:, 1])

    @property
    def updates(self) -> int:
        """Gradient updates made online up to the end of the chunk that `steps` is at."""
        played = self.run.done + self.run.chunk - self.args.learning_starts
        return max(0, played // self.args.learn_every) * self.args.updates_per_round

    def steps(self, agent: Agent, keys) -> tuple[Agent, dict]:
        """One chunk of environment steps; the mean metrics of its rounds, if there are any."""
        key_data, metrics, start = jax.random.key_data(keys), [], 0
        if self.carry is None:
            self.carry = self._begin_carry(agent)
        while start < keys.shape[1]:
            due, every = self.run.done + start - self.args.learning_starts, self.args.learn_every
            stop = min(keys.shape[1], start + (-due if due < 0 else every - due % every))
            self._play(agent, keys, key_data, start, stop)
            due, now = self.run.done + stop - self.args.learning_starts, stop - 1
            if due == 0:
                last = [o[e] for o, e in zip(self.obs, self.ended, strict=True)]
                found = np.float32([diversity_of(x) for x in last])
                agent = agent.replace(diversity=jax.device_put(found, agent.diversity.sharding))
                agent = self._begin(agent, self._played(), self._keys(key_data, now))
            elif due > 0 and due % every == 0:
                agent, info = self._learn(agent, self._played(), self._keys(key_data, now))
                metrics.append(info)
            start = stop
        return agent, jax.tree.map(lambda *x: sum(x) / len(x), *metrics) if metrics else {}

    def _play(self, agent: Agent, keys, key_data, start: int, stop: int) -> None:
        """The steps of the keys from `start` to `stop`."""
        done = self.run.done
        if self.env:
            self.carry, played = self._collect(self.carry, agent, keys[:, start:stop])
            for kept, new in zip((self.obs, self.action, self.reward, self.ended), played, strict=True):
                kept[:, done + start : done + stop] = new
            return
        for i in range(start, stop):
            t = done + i
            reward = self.reward[:, t - 1] if t else self.reward[:, 0]
            seen = self.envs.obs, reward, self.first, np.int32(self.envs.episode)
            action, self.carry = self._act(self.carry, agent, *seen, key_data, self.run.lane_args, i)
            self.obs[:, t], self.action[:, t] = self.envs.obs, np.asarray(action)[:, 0]
            self.reward[:, t] = self.envs.step(self.action[:, t])[:, self.paid]
            self.ended[:, t] = self.envs.ended
            self.first = self.envs.ended[:, None].copy()

    def _played(self) -> Played:
        """Of all lanes [L, C]."""
        lanes = zip(self.obs, self.action, self.reward, self.ended, strict=True)
        return jax.tree.map(lambda *x: np.stack(x), *(played_by(*lane) for lane in lanes))

    def state(self) -> dict:
        """For a checkpoint."""
        if self.carry is None:
            return {}
        env = {} if self.env else {"env": self.envs.state(), "first": self.first}
        return {**env, **{name: getattr(self, name) for name in ("obs", "action", "reward", "ended", "carry")}}

    def restore(self, agent: Agent) -> Agent:
        """`agent`, and the state here, from the run's checkpoint when --resume was given."""
        if not self.run.args.resume or self.run.done <= 0:
            return self.run.restore(agent)
        self.carry = self._begin_carry(agent)
        agent, state = self.run.restore(agent, self.state())
        for name in ("obs", "action", "reward", "ended"):
            setattr(self, name, np.array(state[name]))
        self.carry = state["carry"]
        if not self.env:
            self.first = np.array(state["first"])
            lost = ~self.envs.restore(state["env"])
            self.first[lost] = True
            self.ended[lost, self.run.done - 1] = True
        return agent


def require_pretrained_alike(args: Args) -> None:
    """InputError where --from names agents that --pretrain does not mean."""
    if args.from_run and args.pretrain == "none":
        raise InputError("--pretrain none begins with the interaction: it takes no agents by --from.")
    record = Path(args.from_run) / "run.json"
    if not args.from_run or not record.exists():
        return
    before = json.loads(record.read_text())["args"].get("pretrain")
    if before != args.pretrain:
        what = f"with --pretrain {before}" if before else "by another algorithm"
        raise InputError(f"--pretrain {args.pretrain}: the agents of {args.from_run} were trained {what}.")


def main(args: Args) -> None:
    require_pretrained_alike(args)
    truth = load_dataset(args).require(discrete=False, reward=False)
    for steps, option in ((args.context, "--context"), (args.lookahead, "--lookahead")):
        require_context(truth, steps, option)
    require_heads(args.width, args.heads)
    limit = require_env(truth.task).env_spec.max_episode_steps
    if not limit:
        raise InputError(f"{truth.task.env_spec.id} has no time limit: returns-to-go need episodes that end.")
    if args.learning_starts < limit:
        raise InputError(f"--learning-starts {args.learning_starts} is less than one episode, {limit} steps.")
    if args.learning_starts >= args.env_steps:
        raise InputError(
            f"--learning-starts {args.learning_starts}: of --env-steps {args.env_steps} none is left to learn after."
        )
    data = hidden(truth, ("rewards",)).normalize_obs(1e-6)
    if args.pretrain == "none":
        args = dataclasses.replace(args, offline_updates=0)
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, "obs", "action"))
        agent = run.init(partial(init, spec=data.spec))
        online = Rollout(run)
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
