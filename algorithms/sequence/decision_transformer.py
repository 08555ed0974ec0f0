"""DT: Decision Transformer.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas and Mordatch, "Decision Transformer: Reinforcement Learning
via Sequence Modeling", NeurIPS 2021, arXiv 2106.01345. Acting as supervised learning on sequences: a causal transformer
reads (return-to-go, state, action) of the last K steps and is trained to give the action that the data took (section
3). To act, it is asked for a return: the target, less what has been earned since the episode began.

The study of when that is to be preferred (Bhargava et al., ICLR 2024, arXiv 2305.14550) is its claim: rewards that come
late cost it nothing, luck in the data misleads it.

Choose it when rewards are sparse or late, the dynamics are not left to chance, and good episodes are in the data.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- biases of the embeddings and of the head start at zero (PyTorch's default draws them like the weights);
- the paper reports the better of two target returns; here each is a lane (--target-return 3600 1800), or another
  evaluation of the same lanes (shared.evaluation --set target_return=1800);
- timesteps past the largest one of training share its embedding; padding holds zeros (the authors': actions of -10),
  which nothing attends to;
- no images: the Atari runs are left out, of which discrete actions and their cross-entropy remain; of these the
  likeliest one is taken (the authors draw one).

    python algorithms/sequence/decision_transformer.py --dataset hopper-medium-replay --seeds 4
    python algorithms/sequence/decision_transformer.py --dataset hopper-medium --seeds 4 --target-return 3600 1800
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import (
    Sequences,
    Window,
    horizon,
    require_context,
    require_heads,
    require_target,
    return_scale,
    sequences,
    target_returns,
)
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    context: int = 20
    """K: steps that the policy sees."""
    target_return: Float = 0.0
    """Return that the policy is asked for, in the environment's unit; 0: that of the data's best episode."""
    return_scale: Float = 0.0
    """Returns are divided by it; 0: by the largest magnitude of the data's returns-to-go."""
    width: int = 128
    """Size of a token."""
    layers: Size = 3
    """Blocks of the transformer."""
    heads: int = 1
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-4
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 10_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 0.25
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {
    "hopper": {"target_return": 3600.0, "return_scale": 1000.0, "eval_episodes": 100},
    "halfcheetah": {"target_return": 12000.0, "return_scale": 1000.0, "eval_episodes": 100},
    "walker2d": {"target_return": 5000.0, "return_scale": 1000.0, "eval_episodes": 100},
}

CHECKS = {"target_return": require_target}
"""Of arguments that a trained run is given anew (shared.evaluation --set)."""

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


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
    """Tokens [B, N, W] in their order, each of which sees itself and those before it that are no padding."""

    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, training: bool):
        """`mask` [B, N]: 0 at padding."""
        visible = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & (mask[:, None] > 0)
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        return nn.LayerNorm(epsilon=1e-5)(x)


class DecisionTransformer(nn.Module):
    """What to do at each step of a window: actions in [-1, 1], or logits."""

    spec: Spec
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, training: bool = False):
        """`window` [B, T], its returns-to-go divided by their scale -> [B, T, A]."""
        dense = partial(nn.Dense, self.width, kernel_init=dense_init)
        action = jax.nn.one_hot(window.action, self.spec.action_dim) if self.spec.discrete else window.action
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        kinds = dense(name="embed_return")(window.return_to_go[..., None]), dense(name="embed_obs")(window.obs)
        tokens = jnp.stack([x + time for x in (*kinds, dense(name="embed_action")(action))], 2)  # [B, T, 3, W]
        batch, steps = window.mask.shape
        tokens = nn.LayerNorm(epsilon=1e-5)(tokens).reshape(batch, 3 * steps, self.width)
        trunk = Transformer(self.layers, self.heads, self.dropout)
        x = trunk(tokens, jnp.repeat(window.mask, 3, 1), training).reshape(batch, steps, 3, self.width)
        x = nn.Dense(self.spec.action_dim, kernel_init=dense_init, name="head")(x[:, :, 1])  # has not seen the action
        return x if self.spec.discrete else jnp.tanh(x)


class Agent(flax.struct.PyTreeNode):
    net: DecisionTransformer = flax.struct.field(pytree_node=False)
    actor: Any
    actor_opt: optax.OptState


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    wanted: jax.Array
    """[] the return that is still asked for, in the environment's unit."""
    step: jax.Array
    """[] of the observation that comes next."""


def actor_loss(actor, agent: Agent, window: Window, key, args: Args):
    """Mean over the steps of |pi - a|^2 / A, or of -log pi(a) (section 3)."""
    out = agent.net.apply(actor, window, training=True, rngs={"dropout": key})
    if agent.net.spec.discrete:
        loss = optax.softmax_cross_entropy_with_integer_labels(out, window.action)
    else:
        chex.assert_equal_shape([out, window.action])
        loss = ((out - window.action) ** 2).mean(-1)
    chex.assert_shape(loss, (args.batch_size, args.context))
    return (window.mask * loss).sum() / window.mask.sum(), {"padding": 1.0 - window.mask.mean()}


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    sizes = args.width, args.layers, args.heads, args.token_dropout, max(args.max_timestep, 1)
    net = DecisionTransformer(spec, *sizes)
    actor = net.init(key, jax.tree.map(lambda x: x[None], empty(spec, args)))
    return Agent(net=net, actor=actor, actor_opt=optimizer(args).init(actor))


def update(agent: Agent, window: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor; `window` [B, K] with returns-to-go as the data has them."""
    window = window._replace(return_to_go=window.return_to_go / args.return_scale)
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, window, key, args)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, "grad_norm": optax.global_norm(grads), **info}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps, whole = (args.context,), jnp.zeros(args.context, jnp.int32)
    action = whole if spec.discrete else jnp.zeros((*steps, spec.action_dim))
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": action, "return_to_go": jnp.zeros(steps)}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.net.spec, args), jnp.float32(args.target_return), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], or [B] indices, and what to remember; what was earned is asked for no more.

    A key-value cache would be another policy: once the window moves on, the steps in it have lost what they had seen.
    """
    wanted = carry.wanted - reward
    now = {"obs": obs, "return_to_go": wanted / args.return_scale, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    out = agent.net.apply(agent.actor, Window(**moved))[:, -1]
    action = out.argmax(-1) if agent.net.spec.discrete else out
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, wanted, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, data.after(data.rows(row_key, args.batch_size), args.context), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def resolved(args: Args, data) -> Args:
    """`args` with what the data says; InputError where they ask for what it cannot say."""
    require_context(data, args.context)
    require_heads(args.width, args.heads)
    asked = {"target_return": target_returns(data, args.target_return)}
    asked |= {"return_scale": return_scale(data, args.return_scale)}
    return dataclasses.replace(args, **asked, max_timestep=args.max_timestep or horizon(data))


def main(args: Args) -> None:
    data = load_dataset(args).require().normalize_obs(1e-6)
    args = resolved(args, data)
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, "obs", "action", "return_to_go"))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
