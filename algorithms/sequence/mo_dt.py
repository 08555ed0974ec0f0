"""MO-DT: a Decision Transformer that predicts states and returns beside actions; without them it is DT.

Ghanem, Ciblat and Ghogho, "Multi-Objective Decision Transformers for Offline Reinforcement Learning", 2023, arXiv
2308.16379. A transformer that is asked for actions alone looks at few of its tokens. Here it is asked for the next
state and the next return-to-go, too, which it reads off at the token of the action: three objectives
(`objectives`), whose gradients are combined with equal weights, with weights that are learned (Kendall, Gal and
Cipolla, CVPR 2018, arXiv 1705.07115), or as their shortest convex combination (MGDA, Sener and Koltun, NeurIPS 2018,
arXiv 1810.04650). --regions B puts a token between state and action: which of the B parts of each of its dimensions
the action lies in. It is chosen first, the action within it second; what follows is smoother in the region than in the
action of a policy that jumps.

--next-obs-weight 0 --next-return-weight 0 is DT.

Choose it when DT would be, and episodes are few or long, so that what follows teaches more than actions do.

Deviations from the paper, of which no code was released, and whose text we know in part:
- objectives are mean squared errors, and the region's cross-entropy; with learned weights these are likelihoods with
  one variance for each objective;
- how objectives are weighted, the number of regions and what the token is made of (a sum of learned embeddings, one
  for each dimension) are our choices;
- what follows the last step of a window is not predicted;
- with the shortest combination the heads follow its weights, too (arXiv 1810.04650: each its own objective);
- the attention's entropy is logged, as a share of what evenly spread attention has.

    python algorithms/sequence/mo_dt.py --dataset hopper-medium-replay --seeds 4 --target-return 3600 1800
    python algorithms/sequence/mo_dt.py --dataset pendulum-mixed --seeds 8 --updates 5000 --width 32 --layers 1 \\
        --warmup-updates 500 --next-obs-weight 0 1 --next-return-weight 0 1
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
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
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
    objective_weights: Literal["equal", "uncertainty", "mgda"] = "equal"
    """How objectives are combined: with the weights below, with learned ones, or as the shortest convex combination of
    their gradients."""
    next_obs_weight: Float = 1.0
    """Weight of the error of the next state, beside 1 for the action's; 0: it is not learned."""
    next_return_weight: Float = 1.0
    """Weight of the error of the next return-to-go, beside 1 for the action's; 0: it is not learned."""
    regions: Count = 0
    """Parts of each dimension of the actions, of which a token says where the action lies; 0: no such token."""
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
        attention = nn.softmax(jnp.where(visible[:, None], scores, -1e9))
        self.sow("intermediates", "attention", attention)
        weights = drop(attention)
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


class Outputs(NamedTuple):
    """Of each step of a window."""

    action: jax.Array
    """[B, T, A] in [-1, 1]"""
    region: jax.Array | None
    """[B, T, A, regions] logits; None: there are none."""
    next_obs: jax.Array
    """[B, T, O]"""
    next_return: jax.Array
    """[B, T] in the scale of the network's."""


class MultiObjectiveTransformer(nn.Module):
    """What to do at each step of a window, and what follows."""

    spec: Spec
    regions: int
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, region, training: bool = False) -> Outputs:
        """`window` [B, T], its returns-to-go divided by their scale; `region` [B, T, A] of the actions.

        Tokens in their order: return, state, (region), action.
        """
        dense, actions = partial(nn.Dense, kernel_init=dense_init), self.spec.action_dim
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        parts = {"return": window.return_to_go[..., None], "obs": window.obs}
        if self.regions:
            parts["region"] = jax.nn.one_hot(region, self.regions).reshape(*window.mask.shape, -1)
        parts["action"] = window.action
        tokens = jnp.stack([dense(self.width, name=f"embed_{name}")(x) + time for name, x in parts.items()], 2)
        batch, steps, kinds, _ = tokens.shape  # [B, T, 3 or 4, W]
        tokens = nn.LayerNorm(epsilon=1e-5)(tokens).reshape(batch, kinds * steps, self.width)
        trunk = Transformer(self.layers, self.heads, self.dropout)
        x = trunk(tokens, jnp.repeat(window.mask, kinds, 1), training).reshape(batch, steps, kinds, self.width)
        action = jnp.tanh(dense(actions, name="head_action")(x[:, :, -2]))  # has not seen the action
        logits = None
        if self.regions:
            action = (2.0 * region + 1.0 + action) / self.regions - 1.0
            logits = dense(actions * self.regions, name="head_region")(x[:, :, 1])  # has not seen the region
            logits = logits.reshape(batch, steps, actions, self.regions)
        next_obs = dense(self.spec.obs_shape[0], name="head_obs")(x[:, :, -1])
        next_return = dense(1, name="head_return")(x[:, :, -1])[..., 0]
        self.param("log_variance", nn.initializers.zeros, (4,))  # of the objectives, where weights are learned
        return Outputs(action, logits, next_obs, next_return)


class Agent(flax.struct.PyTreeNode):
    net: MultiObjectiveTransformer = flax.struct.field(pytree_node=False)
    actor: Any
    actor_opt: optax.OptState


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    wanted: jax.Array
    """[] the return that is still asked for, in the environment's unit."""
    step: jax.Array
    """[] of the observation that comes next."""


def region_of(action, regions: int):
    """[..., A] which of the equal parts of [-1, 1] each number of the actions lies in, from 0."""
    return jnp.clip(jnp.floor((action + 1.0) / 2.0 * regions), 0, max(regions - 1, 0)).astype(jnp.int32)


def attention_entropy(attention, mask):
    """[] mean entropy of attention [B, H, N, N] at the tokens of `mask` [B, N], as a share of the largest there is.

    A token that sees itself alone counts nothing.
    """
    seen = jnp.cumsum(mask, 1)
    entropy = jax.scipy.special.entr(attention).sum(-1).mean(1) / jnp.log(jnp.maximum(seen, 2.0))
    known = mask * (seen > 1.0)
    return (known * entropy).sum() / known.sum()


def objectives(actor, agent: Agent, window: Window, key):
    """Losses [3], or [4] with regions: errors of actions, next states and next returns, and -log p(region).

    Means over the steps, and over the dimensions of each.
    """
    region = region_of(window.action, agent.net.regions)
    out, seen = agent.net.apply(actor, window, region, training=True, rngs={"dropout": key}, mutable="intermediates")
    chex.assert_equal_shape([out.action, window.action])
    chex.assert_equal_shape([out.next_obs, window.obs])

    def mean(x, mask):
        chex.assert_equal_shape([x, mask])
        return (mask * x).sum() / jnp.maximum(mask.sum(), 1.0)

    followed = window.mask[:, :-1] * window.mask[:, 1:]
    losses = {
        "action": mean(((out.action - window.action) ** 2).mean(-1), window.mask),
        "obs": mean(((out.next_obs[:, :-1] - window.obs[:, 1:]) ** 2).mean(-1), followed),
        "return": mean((out.next_return[:, :-1] - window.return_to_go[:, 1:]) ** 2, followed),
    }
    if agent.net.regions:
        surprise = optax.softmax_cross_entropy_with_integer_labels(out.region, region)
        losses["region"] = mean(surprise.mean(-1), window.mask)
    attention = jnp.stack(jax.tree.leaves(seen))  # [layers, B, H, N, N]
    mask = jnp.repeat(window.mask, attention.shape[-1] // window.mask.shape[1], 1)
    spread = jax.vmap(attention_entropy, (0, None))(attention, mask).mean()
    info = {f"{name}_loss": loss for name, loss in losses.items()} | {"attention_entropy": spread}
    return jnp.stack([*losses.values()]), info


def weighted_loss(actor, agent: Agent, window: Window, key, args: Args):
    """sum_i w_i L_i with fixed weights, or sum_i exp(-c_i) L_i / 2 + c_i / 2 with learned c (arXiv 1705.07115).

    A cross-entropy, of the regions, counts exp(-c) L + c / 2.
    """
    losses, info = objectives(actor, agent, window, key)
    if args.objective_weights == "uncertainty":
        c = actor["params"]["log_variance"][: len(losses)]
        weights = jnp.exp(-c) * jnp.array([0.5, 0.5, 0.5, 1.0])[: len(losses)]
        loss = weights @ losses + c.sum() / 2.0
    else:
        weights = jnp.array([1.0, args.next_obs_weight, args.next_return_weight, 1.0])[: len(losses)]
        loss = weights @ losses
    return loss, {"loss": loss, **info, "action_weight": weights[0] / weights.sum()}


def min_norm(gram, steps: int = 50):
    """Weights [M] on the simplex with the least w G w, by Frank-Wolfe (arXiv 1810.04650, algorithm 2).

    `gram` [M, M]: the inner products of the objectives' gradients.
    """

    def step(_, w):
        to = jax.nn.one_hot((gram @ w).argmin(), len(gram)) - w
        length = -(to @ gram @ w) / jnp.maximum(to @ gram @ to, 1e-12)
        return w + jnp.clip(length, 0.0, 1.0) * to

    return jax.lax.fori_loop(0, steps, step, jnp.full(len(gram), 1.0 / len(gram)))


def mgda_gradient(agent: Agent, window: Window, key):
    """The gradients' convex combination that is shortest in what the objectives share: all but the heads."""
    grads, info = jax.jacrev(objectives, has_aux=True)(agent.actor, agent, window, key)
    shared = {name: x for name, x in grads["params"].items() if not name.startswith("head")}
    rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(shared)
    weights = min_norm(rows @ rows.T)
    return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), grads), {**info, "action_weight": weights[0]}


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
    sizes = args.regions, args.width, args.layers, args.heads, args.token_dropout, max(args.max_timestep, 1)
    net = MultiObjectiveTransformer(spec, *sizes)
    window = jax.tree.map(lambda x: x[None], empty(spec, args))
    actor = {"params": net.init(key, window, region_of(window.action, args.regions))["params"]}
    return Agent(net=net, actor=actor, actor_opt=optimizer(args).init(actor))


def update(agent: Agent, window: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor; `window` [B, K] with returns-to-go as the data has them."""
    window = window._replace(return_to_go=window.return_to_go / args.return_scale)
    if args.objective_weights == "mgda":
        grads, info = mgda_gradient(agent, window, key)
    else:
        grads, info = jax.grad(weighted_loss, has_aux=True)(agent.actor, agent, window, key, args)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {**info, "grad_norm": optax.global_norm(grads)}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps = (args.context,)
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": jnp.zeros((*steps, spec.action_dim))}
    return Window(jnp.zeros(steps), jnp.zeros(steps, jnp.int32), **seen, return_to_go=jnp.zeros(steps))


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.net.spec, args), jnp.float32(args.target_return), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and what to remember; what was earned is asked for no more.

    With regions the most probable one is chosen first, and the action within it by a second call.
    """
    wanted = carry.wanted - reward
    now = {"obs": obs, "return_to_go": wanted / args.return_scale, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    region = region_of(moved["action"], args.regions)
    out = agent.net.apply(agent.actor, Window(**moved), region)
    if args.regions:
        out = agent.net.apply(agent.actor, Window(**moved), region.at[:, -1].set(out.region[:, -1].argmax(-1)))
    action = out.action[:, -1]
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
    if args.context < 2:
        raise InputError("--context must be at least 2: what follows a step is read off the next one.")
    require_heads(args.width, args.heads)
    if args.regions == 1:
        raise InputError("--regions 1: one region tells nothing; at least 2, or 0 for none.")
    given = np.append(args.next_obs_weight, args.next_return_weight)
    if args.objective_weights != "equal" and (given != 1.0).any():
        raise InputError(f"--objective-weights {args.objective_weights} finds its weights, none can be given.")
    asked = {"target_return": target_returns(data, args.target_return)}
    asked |= {"return_scale": return_scale(data, args.return_scale)}
    return dataclasses.replace(args, **asked, max_timestep=args.max_timestep or horizon(data))


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False).normalize_obs(1e-6)
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
