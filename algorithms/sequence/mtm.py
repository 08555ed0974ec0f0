"""MTM: masked trajectory models.

Wu, Majumdar, Stone, Lin, Mordatch, Abbeel and Rajeswaran, "Masked Trajectory Models for Prediction, Representation, and
Control", ICML 2023, arXiv 2305.02968. One transformer fills in what is hidden of short trajectories of states, actions
and average rewards to come. What it is used as depends on what is hidden: of the last action, it clones the
data, with or without a return that is asked for; of all actions, it is an inverse model; of the last state, a forward
model. Trained under random autoregressive masks (a random part, and everything after a random token), one
network does it all. Steps without an action teach it, too: their actions are hidden (heteromodal data).

Choose it when one model shall predict and act, or when few episodes of many have actions (--labelled-fraction 0.05
--act-as two-stage: first which states follow when a return is asked for, then the action between them).

Parity: equal to the authors' code, update for update, under one mask for a batch, but for the step size's warm-up
(results/parity.md).

Deviations from the paper (and the authors' code):
- each window has a mask of its own (one for a batch); steps beyond an episode's end are hidden from everything and
  count nothing (such windows are left out);
- actions stay in [-1, 1], and average rewards to come are put there by the least and the largest one of the data
  (standardised; their statistics count zeros beyond an episode's end); they are of the present step on (of the next);
- every number of an observation is standardised (only those whose standard deviation is 0.1 or more);
- the forward mask shows the states and actions up to a random step, the last one, too (earlier states, all actions);
- where some steps have no action, at least half of the windows begin at one that has;
- cloning sees the last steps, too (the present state alone);
- the tokens that go into a transformer pass dropout (the hidden units of its blocks); blocks begin with GPT-2's
  weights (PyTorch's default ones); the first update has a step size (zero);
- no representations for TD3, and no discrete tokens.

    python algorithms/sequence/mtm.py --dataset hopper-medium-replay --seeds 4 --target 0.8
    python algorithms/sequence/mtm.py --dataset pendulum-mixed --seeds 8 --updates 10000 --warmup-updates 500 \\
        --labelled-fraction 0.05 --holdout 0.2
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
from shared.arguments import Count, Dropout, Float, LabelArgs, Size, StaticFraction, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.parts import load_labelled
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, horizon, require_context, require_heads, sequences
from shared.task import Spec, Task


@hyperparameters
class Args(LabelArgs):
    updates: Size = 140_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    labelled_fraction: StaticFraction = 1.0
    """Share of the data that keeps its labels, in [0, 1]; of the rest (D_U) they are hidden."""
    hide: tuple[Literal["rewards", "actions"], ...] = ("actions",)
    """What is hidden of the data without labels."""
    labelled_only: bool = False
    """Leave the data without labels out: what learning from it is compared with."""
    holdout: StaticFraction = 0.05
    """Share of what is labelled that the model is judged by, in [0, 1]."""
    context: int = 4
    """K: steps that the policy sees."""
    train_mask: Literal["autoregressive", "random", "rcbc", "bc", "inverse", "forward"] = "autoregressive"
    """What is hidden in training: a random part and all that follows a random token, a random part alone, or always
    what it is hidden for in one use."""
    act_as: Literal["rcbc", "bc", "two-stage"] = "rcbc"
    """How the policy acts: as cloning that is asked for a return, as cloning, or by the states that follow when a
    return is asked for and the action between them."""
    target: Float = 1.0
    """Average reward to come that is asked for: 0 the least one of the data, 1 the largest one."""
    width: int = 512
    """Size of a token."""
    layers: Size = 2
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 0.005
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 40_000
    """Updates over which the step size rises from zero."""
    batch_size: Size = 2048
    """Transitions per gradient update."""


PRESETS = {}


def require_share(target: float, task: Task) -> None:
    """InputError where a trained policy is asked for no share of the average rewards to come."""
    if not 0.0 <= target <= 10.0:
        raise InputError(f"--set target={target:g} is no share: 0 asks for the least of the data, 1 for the largest.")


CHECKS = {"target": require_share}
"""Of arguments that a trained run is given anew (shared.evaluation --set)."""

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Shares of a kind's tokens that are kept."""
CUT = (0.2, 0.1, 0.7)
"""How often the first token that is hidden of the future is a state, a return, an action."""
WITH_ACTIONS = 0.5
"""Share, at least, of the windows that begin at a step with an action, where some have none."""
JUDGED = 256
"""Windows that the model is judged by."""


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
        hidden = nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x))
        return x + drop(nn.Dense(width, kernel_init=gpt_init)(nn.gelu(hidden, approximate=False)))


class Transformer(nn.Module):
    """Tokens [B, N, W], each of which sees all that `mask` [B, N] leaves."""

    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, training: bool):
        visible = jnp.broadcast_to(mask[:, None] > 0, (*mask.shape, mask.shape[1]))
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        return nn.LayerNorm(epsilon=1e-5)(x)


def sinusoid(positions: int, width: int) -> np.ndarray:
    """[N, W] sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    angle = np.arange(positions)[:, None] / 10_000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


class Parts(NamedTuple):
    """The three kinds of tokens of windows [B, T], in the order in which masks have them."""

    obs: jax.Array
    """[B, T, O]"""
    returns: jax.Array
    """[B, T, 1] average rewards to come, in [-1, 1]"""
    action: jax.Array
    """[B, T, A]"""


def named(parts: Parts):
    return zip(parts._fields, parts, strict=True)


class MaskedModel(nn.Module):
    """All parts of windows, from those that are kept."""

    width: int
    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, parts: Parts, kept, there, training: bool = False) -> Parts:
        """`kept` [B, 3, T]: what is seen; `there` [B, T]: 0 beyond an episode's end, where nothing looks."""
        batch, steps, width = *there.shape, self.width
        dense, time = partial(nn.Dense, kernel_init=dense_init), sinusoid(steps, width) / 2.0
        of_kind = partial(nn.vmap, in_axes=1, out_axes=1, variable_axes={"params": 0}, split_rngs={"params": True})
        zeros = partial(self.param, init_fn=nn.initializers.zeros)
        codes = [zeros(f"{coder}_kinds", shape=(3, 1, width)) + time for coder in ("encoder", "decoder")]
        seen = kept[..., None] > 0
        x = [dense(width, name=f"embed_{n}")(jnp.where(seen[:, i], x, 0.0)) for i, (n, x) in enumerate(named(parts))]
        flat = (jnp.stack(x, 1) + codes[0]).reshape(batch, 3 * steps, width)
        x = Transformer(self.layers, self.heads, self.dropout, name="encoder")(flat, kept.reshape(batch, -1), training)
        x = jnp.where(seen, x.reshape(batch, 3, steps, width), zeros("hidden", shape=(3, 1, width)))
        x = of_kind(nn.Dense)(width, kernel_init=dense_init, name="decode")(x) + codes[1]
        flat, whole = x.reshape(batch, 3 * steps, width), jnp.tile(there, (1, 3))
        x = Transformer(1, self.heads, self.dropout, name="decoder")(flat, whole, training)
        x = of_kind(nn.LayerNorm)(epsilon=1e-5, name="norm")(x.reshape(batch, 3, steps, width))
        x = nn.gelu(of_kind(nn.Dense)(width, kernel_init=dense_init, name="last")(x), approximate=False)
        return Parts(*(dense(y.shape[-1], name=f"{n}_head")(x[:, i]) for i, (n, y) in enumerate(named(parts))))


class Agent(flax.struct.PyTreeNode):
    net: MaskedModel = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    model: Any
    model_opt: optax.OptState


class Windows(NamedTuple):
    """A dataset on the device, the windows that the model is judged by, and the scale of what may be asked."""

    data: Sequences
    judged: Window | None
    """[J, T]; None: nothing is held out."""
    horizon: jax.Array
    """[] steps that an episode may have."""
    low: jax.Array
    """[] the least average reward to come of the data."""
    high: jax.Array
    """[] the largest one."""

    def parts(self, window: Window) -> tuple[Parts, jax.Array]:
        """What is in `window`, and whether its actions are known [B, T]."""
        known = jnp.isfinite(window.action).all(-1)
        average = window.return_to_go / (self.horizon - window.timestep)
        returns = 2.0 * (average - self.low) / (self.high - self.low) - 1.0
        return Parts(window.obs, returns[..., None], jnp.where(known[..., None], window.action, 0.0)), known


class Carry(NamedTuple):
    """What the policy remembers of one episode: its last steps from the left, K - 1 at most."""

    obs: jax.Array
    """[K, O]"""
    action: jax.Array
    """[K, A]"""
    step: jax.Array
    """[] of the observation that comes next."""


def kept_for(use: str, position, steps: int):
    """[B, 3, T] what is shown at the step `position` [B] in one use: of states, returns and actions."""
    t = jnp.arange(steps)
    past, seen = t < position[:, None], t <= position[:, None]
    nothing, everything = jnp.zeros_like(seen), jnp.ones_like(seen)
    shown = {
        "bc": (seen, nothing, past),
        "rcbc": (seen, everything, past),
        "inverse": (everything, nothing, nothing),
        "forward": (seen, nothing, seen),
    }
    return jnp.stack(shown[use], 1).astype(jnp.float32)


def draw_mask(key, batch: int, args: Args):
    """[B, 3, T] what is kept of each window: by default random tokens before a random one."""
    ratio_key, order_key, cut_key, position_key = jax.random.split(key, 4)
    steps, position = args.context, jax.random.randint(position_key, (batch,), 0, args.context)
    if args.train_mask not in ("autoregressive", "random"):
        return kept_for(args.train_mask, position, steps)
    ratio = jnp.array(RATIOS)[jax.random.randint(ratio_key, (batch, 3, 1), 0, len(RATIOS))]
    rank = jax.random.uniform(order_key, (batch, 3, steps)).argsort(-1).argsort(-1)
    kept = rank < jnp.floor(steps * ratio + 1e-4)
    if args.train_mask == "autoregressive":
        first = jax.random.choice(cut_key, 3, (batch,), p=jnp.array(CUT))
        end = position[:, None] + (jnp.arange(3) < first[:, None])  # of the kinds before it this step is kept, too
        kept = kept & (jnp.arange(steps) < end[..., None])
    return kept.astype(jnp.float32)


def model_loss(model, agent: Agent, parts: Parts, known, there, kept, key):
    """Mean squared errors over the steps and dimensions, hidden or not, summed over the kinds.

    Actions that are not `known` [B, T] are hidden and count nothing, and so are steps that are not `there` [B, T].
    """
    real = jnp.stack([there, there, there * known], 1)
    found = agent.net.apply(model, parts, kept * real, there, training=True, rngs={"dropout": key})
    chex.assert_equal_shape([found.action, parts.action])
    errors = [((x - y) ** 2).mean(-1) for x, y in zip(found, parts, strict=True)]
    losses = [(r * e).sum() / jnp.maximum(r.sum(), 1.0) for r, e in zip(jnp.moveaxis(real, 1, 0), errors, strict=True)]
    info = {f"{name}_loss": loss for name, loss in zip(parts._fields, losses, strict=True)}
    return sum(losses), {**info, "kept": (kept * real).sum() / real.sum()}


def judge(agent: Agent, windows: Windows, args: Args) -> dict:
    """Mean squared errors of each use on windows held out: of the last action, the one before it, the last state."""
    if windows.judged is None:
        return {}
    (parts, _), there, last = windows.parts(windows.judged), windows.judged.mask, args.context - 1
    uses = {"bc": last, "rcbc": last, "inverse": last - 1, "forward": last - 1}
    kept = jnp.stack([kept_for(use, jnp.full(len(there), at), args.context) for use, at in uses.items()])
    found = jax.lax.map(lambda kept: agent.net.apply(agent.model, parts, kept, there), kept)
    errors = {}
    for i, (use, at) in enumerate(uses.items()):
        true, guess = (x.obs[..., -1, :] if use == "forward" else x.action[..., at, :] for x in (parts, found))
        errors[f"{use}_error"] = ((guess[i] - true) ** 2).mean()
    return errors


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW, of which biases, codes and norms do not decay; after the warm-up the step size falls to 0 by a cosine.

    The first step already has a step size, 1 / warmup_updates of it.
    """

    def schedule(step):
        fallen = jnp.clip((step - args.warmup_updates) / max(args.updates - args.warmup_updates, 1), 0.0, 1.0)
        risen = jnp.minimum((step + 1) / args.warmup_updates, 1.0)
        return args.learning_rate * risen * 0.5 * (1.0 + jnp.cos(jnp.pi * fallen))

    kernels = partial(jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key == "kernel")
    return optax.adamw(schedule, weight_decay=args.weight_decay, mask=kernels)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    net = MaskedModel(args.width, args.layers, args.heads, args.token_dropout)
    shape = 1, args.context
    parts = Parts(*(jnp.zeros((*shape, size)) for size in (spec.obs_shape[0], 1, spec.action_dim)))
    model = net.init(key, parts, jnp.ones((1, 3, args.context)), jnp.ones(shape))
    return Agent(net, spec, model, optimizer(args).init(model))


def update(agent: Agent, batch: tuple, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the model; `batch`: the parts of windows [B, K], which actions are known, and the steps."""
    parts, known, there = batch
    mask_key, dropout_key = jax.random.split(key)
    kept = draw_mask(mask_key, len(there), args)
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.model, agent, parts, known, there, kept, dropout_key)
    updates, model_opt = optimizer(args).update(grads, agent.model_opt, agent.model)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt)
    return agent, {"model_loss": loss, **info}


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    sizes = agent.spec.obs_shape[0], agent.spec.action_dim
    return Carry(*(jnp.zeros((args.context, size)) for size in sizes), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and the last steps.

    Two stages know the present state alone: what follows it when a return is asked for, then the action in between.
    """
    batch, steps = len(obs), args.context
    full = (carry.step >= steps)[:, None, None]
    past, done = (jnp.where(full, jnp.roll(x, -1, axis=1), x) for x in (carry.obs, carry.action))
    position, row = jnp.minimum(carry.step, steps - 1), jnp.arange(batch)
    past = past.at[row, position].set(obs)
    asked = jnp.full((batch, steps, 1), 2.0 * args.target - 1.0)
    fill = partial(agent.net.apply, agent.model, there=jnp.ones((batch, steps)))
    if args.act_as == "two-stage":
        now = (jnp.arange(steps) == 0)[:, None]
        first = jnp.broadcast_to(jnp.arange(steps) == 0, (batch, steps)).astype(jnp.float32)
        parts = Parts(jnp.broadcast_to(obs[:, None], past.shape), asked, jnp.zeros_like(done))
        found = fill(parts, jnp.stack([first, first, 0.0 * first], 1))
        parts = Parts(jnp.where(now, parts.obs, found.obs), jnp.where(now, asked, found.returns), parts.action)
        everything = jnp.ones_like(first)
        action = fill(parts, jnp.stack([everything, everything, 0.0 * first], 1)).action[:, 0]
    else:
        action = fill(Parts(past, asked, done), kept_for(args.act_as, position, steps)).action[row, position]
    action = jnp.clip(action, -1.0, 1.0)
    return action, Carry(past, done.at[row, position].set(action), carry.step + 1)


def train(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics, and the errors of all uses in the end."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        row = windows.data.rows(row_key, args.batch_size)
        window = windows.data.take(row, jnp.arange(args.context))
        return update(agent, (*windows.parts(window), window.mask), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **judge(agent, windows, args)}


def windows_of(data: Dataset, labelled: np.ndarray, args: Args) -> Windows:
    """`data`, of which the rows `labelled` [N] have actions, without the episodes that are held out, and these.

    Raises:
      InputError: nothing is left to learn from, all rewards are equal, or --target is of another scale.
    """
    episode, fields = data.episode(), ("obs", "action", "return_to_go")
    units = np.unique(episode[labelled])
    held = np.random.default_rng(args.split_seed).permutation(units)[: round(args.holdout * len(units))]
    judged = np.isin(episode, held)
    rows = ~judged & labelled if args.labelled_only else ~judged
    if not (rows & labelled).any():
        raise InputError(f"--holdout {args.holdout:g}: no episode with actions is left to learn from.")
    step = np.arange(len(episode)) - data.starts()[episode]
    average = data.return_to_go() / (horizon(data) - step)
    low, high = average[~judged].min(), average[~judged].max()
    if not high > low:
        raise InputError(f"All rewards to come of '{data.task.id}' are equal: there is no return to be asked for.")
    if np.min(args.target) < 0.0 or np.max(args.target) > 10.0:
        given = np.ravel(args.target)[np.abs(args.target).argmax()]
        raise InputError(
            f"--target {given:g} is no share: 0 asks for an average reward to come of {low:g}, 1 for {high:g}."
        )
    known = labelled[rows]
    share = max(WITH_ACTIONS, known.mean())
    shares = np.where(known, share / known.mean(), (1.0 - share) / max((~known).mean(), 1e-9))
    kept = sequences(data.select(rows), *fields, weights=None if known.all() else shares)
    shown = None
    if held.size:
        others = sequences(data.select(judged), *fields)
        whole = np.flatnonzero(np.asarray(others.end) - np.arange(judged.sum()) >= args.context - 1)
        at = whole[:, None] + np.arange(args.context)
        whole = np.random.default_rng(args.split_seed).permutation(whole[labelled[judged][at].all(1)])[:JUDGED]
        shown = others.take(jnp.asarray(whole), jnp.arange(args.context)) if len(whole) else None
    if args.holdout and shown is None:
        told = f"{held.size} of the {len(units)} with actions are held out, none has {args.context} such rows in a row"
        print(f"--holdout {args.holdout:g}: the model is judged by no episode, since {told}.", flush=True)
    return Windows(kept, shown, *(jnp.float32(x) for x in (horizon(data), low, high)))


def main(args: Args) -> None:
    data, labelled, _ = load_labelled(args)
    data = data.require(discrete=False).normalize_obs()
    if args.hide != ("actions",):
        raise InputError(f"--hide {' '.join(args.hide)}: actions alone may be missing.")
    if args.labelled_only and args.labelled_unit != "episodes":
        raise InputError("--labelled-only leaves whole episodes: it needs --labelled-unit episodes.")
    if args.context < 2 or args.width % 2:
        raise InputError(f"--context must be at least 2 and --width even, not {args.context} and {args.width}.")
    require_context(data, args.context)
    require_heads(args.width, args.heads)
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(windows_of(data, labelled, args))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
