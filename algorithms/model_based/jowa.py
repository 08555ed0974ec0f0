"""JOWA: one transformer that is world model and critic, and a search of few branches in it that acts.

Cheng, Qiao, Yin, Xiong, Sun, Sun and Li, "Scaling Offline Model-Based RL via Jointly-Optimized World-Action Model
Pretraining", ICLR 2025, arXiv 2410.00564. Each step is a block of tokens, K of the observation and one of the action.
A causal trunk reads the blocks of the last steps; heads on it predict the next token of the observation, the sign of
the reward and the end (both at the action's token), and at the last token of the observation, which has not seen the
action, the distribution of the return of each action on 51 atoms (C51, arXiv 1707.06887). All shape the trunk:

    stage 1   L_world = CE(tokens) + CE(reward) + CE(end)
    stage 2   --world-weight L_world + L_C51 + --cql-alpha (log sum_a exp Q(s, a) - Q(s, a_data))

Targets are of a copy of the last layers alone, on the same features, without a gradient; that of a window's last block
is of the window one row later, at its last place, where the policy acts for most of an episode (without dropout). To
act, a beam of --beam-width paths is followed for --plan-length steps in the model, each expanded by the actions of its
highest Q; paths are ranked by sum_h gamma^h r_h + gamma^H max_a Q, and the first action of the best one is taken.

Several tasks (games) are told by the last --n-tasks numbers of an observation: each has an embedding, and actions that
its data never has are no choice, neither in targets nor in Q's penalty nor in the search. Rewards count by their sign.

Choose it when observations are few discrete tokens, actions are discrete, and what happens next is easier to learn from
the data than what it is worth.

Deviations from the paper:
- tokens are not a VQ-VAE's: an observation is cut into pieces of --token-dims numbers, which are told apart as they
  are in the data; where it has more than --codes different ones, by the nearest of as many means (k-means);
- small worlds in place of Atari's pictures; windows begin at any row, and end with its episode;
- Adam's moments of stage 1 go on into stage 2, all weights decay, and blocks have ReLUs;
- Q's hidden layers are plain ones with ReLUs and dropout (there: layer normalisation and Mish, and dropout of the first
  alone), and begin as all others do; actions that a game has not count in Q's penalty there;
- in the authors' code a window's last block has no target but at an end, so that Q there, where all others bootstrap
  from, never learns: --no-learn-last, with which the policy keeps a block less (theirs keeps as many as did best in
  each game, 1 to 6 of 8);
- with a plan the policy sees as many steps less as the plan is long, without one all;
- actions that a game allows are those of its data, with one task all;
- what a path earns behind a predicted end counts nothing (the authors' code searches on);
- evaluation is greedy (there one action of a thousand is random); no imagined data, as by default there;
- the search computes its tokens anew, without a key-value cache;
- fine-tuning on a new game, and the sizes of 70 and 150 million weights, are the same file with other arguments.

    python algorithms/model_based/jowa.py --dataset maze-small-mixed --preset small --seeds 4
    python algorithms/model_based/jowa.py --dataset minatar-breakout-mixed --seeds 4 --no-planning --world-weight 0.1 1
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, require_context, require_heads, sequences
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "tabular-combination-lock-h8-trajectory"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 1_500_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    model_updates: Count = 250_000
    """Most updates of the model before the first of the agent; 0 only where it goes on learning then, or is exact."""
    n_tasks: Size = 1
    """Tasks: the last numbers of an observation, as many, say by a one which it is; 1: none do."""
    token_dims: Size = 1
    """Numbers of an observation that one token stands for; the last token is filled up with zeros."""
    codes: Size = 2_048
    """Most different tokens of observations."""
    context: int = 8
    """K: steps that the policy sees."""
    width: int = 512
    """Size of a token."""
    layers: Size = 4
    """Blocks of the transformer."""
    heads: int = 8
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    critic_hidden_dims: tuple[int, ...] = (768, 768)
    """Hidden layers of the critics; none: as hidden_dims."""
    critic_dropout: Dropout = 0.01
    """Dropout after the critics' hidden layers, in [0, 1)."""
    n_atoms: Size = 51
    """Returns that the critic's distributions are over, evenly between v_min and v_max."""
    v_min: Float = -10.0
    """Lowest return of the critic's distributions; that and the highest at 0: the range of the data's returns-to-go."""
    v_max: Float = 30.0
    """Highest return of the critic's distributions."""
    world_weight: Float = 0.1
    """Weight of the world model's loss while Q is learned; 0, with --model-updates 0 and --no-planning: Q alone."""
    learn_last: bool = True
    """Q of a window's last block learns, too, from the window one row later."""
    shared_trunk: bool = True
    """Q's losses move the trunk, too; else the last layers of Q alone."""
    cql_alpha: Float = 0.1
    """Weight of the conservative penalty against the Bellman error."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    copy_every: Count = 1_000
    """Updates between two copies of the network to its target, in place of Polyak steps; 0: none."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    model_lr: Float = 1e-4
    """Adam's step size: model of the dynamics."""
    learning_rate: Float = 5e-5
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 0.01
    """Weights lose this share of the step size at each update (AdamW)."""
    max_grad_norm: Float = 1.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    planning: bool = True
    """Act by planning; else with the policy alone."""
    beam_width: Size = 2
    """Paths of a plan that are kept at each step, and actions that each is expanded by."""
    plan_length: Size = 2
    """Actions of a plan."""


_small = {
    "token_dims": 4, "codes": 8, "context": 4, "width": 32, "layers": 2, "heads": 2, "token_dropout": 0.0,
    "critic_hidden_dims": (64,), "critic_dropout": 0.0, "n_atoms": 21, "v_min": -10.0, "v_max": 0.0,
    "discount": 0.9, "copy_every": 100, "model_lr": 1e-3, "learning_rate": 1e-3, "batch_size": 32,
    "model_updates": 1_000, "updates": 2_000, "eval_every": 1_000, "eval_episodes": 40,
}  # fmt: skip
PRESETS = {  # ours: learn on two cores
    **by_name({"small": _small}),
    # a token is a line of the game: ten cells of four channels, of which the data of Breakout has 134 kinds
    "minatar": {**_small, "token_dims": 40, "codes": 160, "context": 3, "v_min": 0.0, "v_max": 0.0, "discount": 0.95},
}

gpt_init = nn.initializers.normal(0.02)


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


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, training: bool = False):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=gpt_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        return nn.Dense(self.outputs, kernel_init=gpt_init)(x)


class Foreseen(NamedTuple):
    """What the world model says of blocks [B, T]; everything is a logit but the features."""

    features: jax.Array
    """[B, T, K + 1, W] of the trunk, the action's last"""
    tokens: jax.Array
    """[B, T, K + 1, V] of the token that follows; none is learned at the last token of the observation"""
    reward: jax.Array
    """[B, T, 3] of its sign: -1, 0, 1"""
    end: jax.Array
    """[B, T, 2] 1: the task ends"""


class WorldModel(nn.Module):
    """Blocks of K observation tokens and an action, in their order, each token seeing those before it."""

    codes: int
    action_dim: int
    n_tasks: int
    blocks: int
    width: int
    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, tokens, action, task, training: bool = False) -> Foreseen:
        """`tokens` [B, T, K], `action` [B, T], `task` [B], all int32; T at most `blocks`."""
        batch, steps, k = tokens.shape
        embed = lambda n, name: nn.Embed(n, self.width, embedding_init=gpt_init, name=name)  # noqa: E731
        x = embed(self.codes, "embed_obs")(tokens)
        a = embed(self.action_dim, "embed_action")(action)
        if self.n_tasks > 1:  # one table for each kind of token
            x += embed(self.n_tasks, "obs_task")(task)[:, None, None]
            a += embed(self.n_tasks, "action_task")(task)[:, None]
        place = self.param("position", gpt_init, (self.blocks * (k + 1), self.width))
        x = jnp.concatenate([x, a[:, :, None]], 2).reshape(batch, steps * (k + 1), self.width)
        x = nn.Dropout(self.dropout, deterministic=not training)(x + place[: steps * (k + 1)])
        visible = jnp.broadcast_to(jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)), (batch, x.shape[1], x.shape[1]))
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        x = nn.LayerNorm(epsilon=1e-5)(x).reshape(batch, steps, k + 1, self.width)
        head = lambda n, name: MLP((self.width,), n, name=name)  # noqa: E731
        acted = x[:, :, -1]
        return Foreseen(x, head(self.codes, "next")(x), head(3, "reward")(acted), head(2, "end")(acted))


class Networks(NamedTuple):
    model: WorldModel
    critic: MLP
    """Logits of the atoms of every action [..., A N], of the features at the observation's last token"""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    model: Any
    """The trunk and the world's heads."""
    critic: Any
    target_critic: Any
    model_opt: optax.OptState
    critic_opt: optax.OptState
    codebook: jax.Array
    """[V, --token-dims] what a token stands for; inf: nothing"""
    legal: jax.Array
    """[tasks, A] 1 where a task has the action"""
    updates: jax.Array
    """[] of Q so far."""


class Blocks(NamedTuple):
    """Steps of one episode each, [B, T], or T + 1 where Q learns; all that follows its end is masked."""

    tokens: jax.Array
    """[B, T, K]"""
    action: jax.Array
    reward: jax.Array
    """Its sign."""
    terminal: jax.Array
    mask: jax.Array
    task: jax.Array
    """[B]"""


class Carry(NamedTuple):
    """What the policy remembers of one episode: its last blocks, the oldest first."""

    tokens: jax.Array
    """[T, K]"""
    action: jax.Array
    """[T]"""
    seen: jax.Array
    """[] of these blocks, how many are there"""


# ----------------------------------------------------------------------------------------------- tokens


def told(args: Args) -> int:
    """Numbers of an observation that say the task."""
    return args.n_tasks if args.n_tasks > 1 else 0


def tokens_of(args: Args, spec: Spec) -> int:
    """K"""
    return -(-(spec.obs_shape[0] - told(args)) // args.token_dims)


def pieces(obs, args: Args, xp=jnp):
    """[..., K, --token-dims] of observations [..., O], and the tasks [...] that they say."""
    own, task = obs[..., : obs.shape[-1] - told(args)], obs[..., obs.shape[-1] - told(args) :]
    own = xp.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, -own.shape[-1] % args.token_dims)])
    task = task.argmax(-1) if told(args) else xp.zeros(obs.shape[:-1], int)
    return own.reshape(*own.shape[:-1], -1, args.token_dims), task.astype(xp.int32)


def codebook_of(obs: np.ndarray, args: Args) -> np.ndarray:
    """[V, --token-dims] the different pieces of the data, or as many means of them; inf where there are fewer."""
    every = pieces(obs, args, np)[0].reshape(-1, args.token_dims)
    found, count = np.unique(every, axis=0, return_counts=True)
    if len(found) > args.codes:
        means, apart = found[:1], np.inf  # each of the first means is the piece that is farthest from those before it
        while len(means) < args.codes:
            apart = np.minimum(apart, ((found - means[-1]) ** 2).sum(1))
            means = np.concatenate([means, found[[apart.argmax()]]])
        for _ in range(10):
            near = np.concatenate([nearest_code(part, means, np) for part in np.array_split(found, 64)])
            total = np.maximum(np.bincount(near, count, args.codes), 1e-9)[:, None]
            sums = np.stack([np.bincount(near, count * x, args.codes) for x in found.T], 1)
            means = np.where(total > 0.5, sums / total, means)
        found = means
    return np.pad(found, ((0, args.codes - len(found)), (0, 0)), constant_values=np.inf).astype(np.float32)


def nearest_code(piece, codebook, xp=jnp):
    """[...] the token of pieces [..., --token-dims]."""
    return ((piece[..., None, :] - codebook) ** 2).sum(-1).argmin(-1).astype(xp.int32)


def tokenised(data: Dataset, codebook: np.ndarray, args: Args) -> Dataset:
    """`data` whose observations are tokens [N, K] and the number of the task behind them."""
    piece, task = pieces(data.obs, args, np)
    split = np.array_split(piece, 1 + len(piece) // 1_000)
    tokens = np.concatenate([nearest_code(part, codebook, np) for part in split])
    obs = np.concatenate([tokens, task[:, None]], 1).astype(np.float32)
    spec = data.spec._replace(obs_shape=obs.shape[1:])
    return dataclasses.replace(data, obs=obs, next_obs=obs, task=dataclasses.replace(data.task, spec=spec))


def legal_actions(data: Dataset, args: Args) -> np.ndarray:
    """[tasks, A] 1 where the data of a task has the action; with one task, everywhere."""
    legal = np.zeros((args.n_tasks, data.spec.action_dim), np.float32)
    legal[pieces(data.obs, args, np)[1], data.action] = 1.0
    return legal if told(args) else np.ones_like(legal)


def blocks_of(window: Window) -> Blocks:
    """Of a window [B, T] of `tokenised` data."""
    seen = window.obs.astype(jnp.int32)
    masked = window.action, jnp.sign(window.reward), window.terminal, window.mask
    return Blocks(seen[..., :-1], *masked, seen[:, 0, -1])


def part(blocks: Blocks, first: int, length: int) -> Blocks:
    """`length` of the blocks, from the one with this number on."""
    within = blocks._replace(task=None)
    return jax.tree.map(lambda x: x[:, first : first + length], within)._replace(task=blocks.task)


# ------------------------------------------------------------------------------------- what is learned


def mean_where(x, mask):
    return (x * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def model_loss(out: Foreseen, blocks: Blocks):
    """CE of the next token, of the reward's sign and of the end, each the mean over the tokens that have it.

    An action's token foresees the next block's first one; what the observation's last token would foresee is the
    action, and is left out.
    """
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    mask, (batch, steps, k) = blocks.mask, blocks.tokens.shape
    goes_on = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))  # what masks this block, too
    following = jnp.pad(blocks.tokens[:, 1:, :1], ((0, 0), (0, 1), (0, 0)))
    logits = jnp.concatenate([out.tokens[:, :, : k - 1], out.tokens[:, :, -1:]], 2)
    labels = jnp.concatenate([blocks.tokens[:, :, 1:], following], 2)
    known = jnp.concatenate([jnp.broadcast_to(mask[..., None], (batch, steps, k - 1)), goes_on[..., None]], 2)
    terms = {
        "token_loss": mean_where(cross_entropy(logits, labels), known),
        "reward_loss": mean_where(cross_entropy(out.reward, blocks.reward.astype(jnp.int32) + 1), mask),
        "end_loss": mean_where(cross_entropy(out.end, blocks.terminal.astype(jnp.int32)), mask),
    }
    ahead = known.at[:, 0, : k - 1].set(0.0)  # the first block is not foreseen
    return sum(terms.values()), {**terms, "foreseen": mean_where(logits.argmax(-1) == labels, ahead)}


def atoms(args: Args):
    """[N] returns"""
    return args.v_min + (args.v_max - args.v_min) * jnp.linspace(0.0, 1.0, args.n_atoms)


def distribution(nets: Networks, critic, features, args: Args, **dropout):
    """Logits [..., A, N] of the return of every action, of features [..., W]."""
    logits = nets.critic.apply(critic, features, **dropout)
    return logits.reshape(*features.shape[:-1], nets.model.action_dim, args.n_atoms)


def q_of(logits, legal, args: Args):
    """Q [..., A] of logits [..., A, N]; -inf where `legal` [..., A] is 0."""
    return jnp.where(legal > 0, (nn.softmax(logits) * atoms(args)).sum(-1), -jnp.inf)


def projected(probabilities, reward, goes_on, args: Args):
    """C51's target [..., N]: the distribution [..., N] of r + gamma (1 - d) Z on the atoms Z, clipped to their ends."""
    z = atoms(args)
    moved = reward[..., None] + args.discount * goes_on[..., None] * z
    apart = (args.v_max - args.v_min) / (args.n_atoms - 1)
    nearness = 1.0 - jnp.abs(jnp.clip(moved, args.v_min, args.v_max)[..., None, :] - z[:, None]) / apart
    return (jnp.clip(nearness, 0.0, 1.0) * probabilities[..., None, :]).sum(-1)


def critic_losses(critic, agent: Agent, features, next_features, blocks: Blocks, args: Args, **dropout):
    """The C51 error, and the conservative penalty; blocks [B, T + 1].

    `features` [B, T, W]: of the first T observations' last tokens; `next_features` likewise of those that follow them.
    A block's target is the next block's, by the target's best legal action; without one only a terminal block has a
    target.
    """
    goes_on, blocks = blocks.mask[:, 1:], part(blocks, 0, features.shape[1])
    goes_on = goes_on if args.learn_last else goes_on.at[:, -1].set(0.0)
    legal = agent.legal[blocks.task][:, None]
    logits = distribution(agent.nets, critic, features, args, **dropout)
    chosen = jnp.take_along_axis(logits, blocks.action[..., None, None], 2)[:, :, 0]
    target = distribution(agent.nets, agent.target_critic, jax.lax.stop_gradient(next_features), args)
    best = q_of(target, legal, args).argmax(-1)
    next_z = nn.softmax(jnp.take_along_axis(target, best[..., None, None], 2)[:, :, 0])
    y = jax.lax.stop_gradient(projected(next_z, blocks.reward, 1.0 - blocks.terminal, args))
    chex.assert_equal_shape([y, chosen])
    bellman = mean_where(-(y * nn.log_softmax(chosen)).sum(-1), jnp.maximum(goes_on, blocks.terminal * blocks.mask))
    q = q_of(logits, legal, args)
    q_data = (nn.softmax(chosen) * atoms(args)).sum(-1)
    gap = mean_where(jax.nn.logsumexp(q, axis=-1) - q_data, blocks.mask)
    return bellman, gap, {"bellman_loss": bellman, "gap": gap, "q": mean_where(q_data, blocks.mask)}


def joint_loss(params, agent: Agent, blocks: Blocks, key, args: Args):
    """--world-weight L_world + L_C51 + --cql-alpha CQL, of (the model, the critic)."""
    model, critic = params
    model_key, critic_key = jax.random.split(key)
    now, later = (part(blocks, first, args.context) for first in (0, 1))
    out = agent.nets.model.apply(model, now.tokens, now.action, now.task, training=True, rngs={"dropout": model_key})
    world, info = model_loss(out, now)
    features = out.features[:, :, -2] if args.shared_trunk else jax.lax.stop_gradient(out.features[:, :, -2])
    last = features[:, -1:]
    if args.learn_last:
        seen = later.tokens, later.action, later.task
        last = agent.nets.model.apply(jax.lax.stop_gradient(model), *seen).features[:, -1:, -2]
    next_features = jnp.concatenate([features[:, 1:], last], 1)
    dropout = {"training": True, "rngs": {"dropout": critic_key}}
    bellman, gap, more = critic_losses(critic, agent, features, next_features, blocks, args, **dropout)
    return args.world_weight * world + bellman + args.cql_alpha * gap, {"model_loss": world, **info, **more}


def world_loss(model, agent: Agent, blocks: Blocks, key, args: Args):
    """L_world alone: stage 1."""
    blocks = part(blocks, 0, args.context)
    seen = blocks.tokens, blocks.action, blocks.task
    return model_loss(agent.nets.model.apply(model, *seen, training=True, rngs={"dropout": key}), blocks)


def optimizer(learning_rate, args: Args) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=args.weight_decay)


def clipped(grads, args: Args):
    """`grads` of at most --max-grad-norm together."""
    norm = optax.global_norm(grads)
    scale = jnp.where(args.max_grad_norm > 0.0, jnp.minimum(1.0, args.max_grad_norm / (norm + 1e-6)), 1.0)
    return jax.tree.map(lambda g: g * scale, grads)


def init(key, args: Args, spec: Spec, codebook: jax.Array | None = None, legal: jax.Array | None = None) -> Agent:
    """The agent of one lane; `codebook` and `legal` are what the data says."""
    sizes = args.context, args.width, args.layers, args.heads, args.token_dropout
    nets = Networks(
        WorldModel(args.codes, spec.action_dim, args.n_tasks, *sizes),
        MLP(args.critic_hidden_dims or (args.width,), spec.action_dim * args.n_atoms, args.critic_dropout),
    )
    model_key, critic_key = jax.random.split(key)
    whole = partial(jnp.zeros, dtype=jnp.int32)
    tokens = whole((1, args.context, tokens_of(args, spec)))
    model = nets.model.init(model_key, tokens, whole((1, args.context)), whole(1))
    critic = nets.critic.init(critic_key, jnp.zeros((1, args.width)))
    return Agent(
        nets=nets,
        model=model,
        critic=critic,
        target_critic=critic,
        model_opt=optimizer(args.learning_rate, args).init(model),
        critic_opt=optimizer(args.learning_rate, args).init(critic),
        codebook=jnp.zeros((args.codes, args.token_dims)) if codebook is None else jnp.asarray(codebook),
        legal=jnp.ones((args.n_tasks, spec.action_dim)) if legal is None else jnp.asarray(legal),
        updates=jnp.int32(0),
    )


def update_model(agent: Agent, blocks: Blocks, key, args: Args) -> tuple[Agent, dict]:
    """Stage 1: one gradient step of the world model."""
    (loss, info), grads = jax.value_and_grad(world_loss, has_aux=True)(agent.model, agent, blocks, key, args)
    updates, opt = optimizer(args.model_lr, args).update(clipped(grads, args), agent.model_opt, agent.model)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=opt)
    return agent, {"model_loss": loss, **info}


def update(agent: Agent, blocks: Blocks, key, args: Args) -> tuple[Agent, dict]:
    """Stage 2: one gradient step of world model and critic together, and a step of the target."""
    params, adam = (agent.model, agent.critic), optimizer(args.learning_rate, args)
    (loss, info), grads = jax.value_and_grad(joint_loss, has_aux=True)(params, agent, blocks, key, args)
    of_model, of_critic = clipped(grads, args)
    of_model, model_opt = adam.update(of_model, agent.model_opt, agent.model)
    of_critic, critic_opt = adam.update(of_critic, agent.critic_opt, agent.critic)
    critic = optax.apply_updates(agent.critic, of_critic)
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    agent = agent.replace(
        model=optax.apply_updates(agent.model, of_model),
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, step),
        model_opt=model_opt,
        critic_opt=critic_opt,
        updates=agent.updates + 1,
    )
    return agent, {"joint_loss": loss, **info}


# ------------------------------------------------------------------------------------- how it is acted


def values_at(agent: Agent, tokens, action, at, task, args: Args):
    """Q [B, A] at block `at` [B] of blocks [B, T]; what comes after it is not seen."""
    out = agent.nets.model.apply(agent.model, tokens, action, task)
    features = out.features[jnp.arange(len(at)), at, -2]
    return q_of(distribution(agent.nets, agent.critic, features, args), agent.legal[task], args)


def imagine(agent: Agent, tokens, action, at, task):
    """The likeliest reward [B], whether the task goes on [B], and `tokens` with those of block `at` + 1 [B, T, K].

    Of the action of block `at` [B]. Tokens are foreseen one after the other, each from those before it.
    """
    rows, k = jnp.arange(len(at)), tokens.shape[-1]
    model = partial(agent.nets.model.apply, agent.model)

    def foresee(tokens, place):
        out = model(tokens, action, task)
        logits = out.tokens[rows, at + (place > 0), jnp.where(place > 0, place - 1, k)]
        return tokens.at[rows, at + 1, place].set(logits.argmax(-1).astype(jnp.int32)), out

    tokens, out = foresee(tokens, jnp.int32(0))
    reward, end = out.reward[rows, at].argmax(-1) - 1.0, out.end[rows, at].argmax(-1)
    tokens, _ = jax.lax.scan(lambda tokens, place: (foresee(tokens, place)[0], None), tokens, jnp.arange(1, k))
    return reward, 1.0 - end, tokens


def plan(agent: Agent, tokens, action, at, task, args: Args):
    """The first actions [B] of the best paths from block `at` [B] of blocks [B, T], T at least at + 1 + --plan-length.

    A beam of at most W paths: each is expanded by its W actions of the highest Q; the W of all are kept that have the
    highest sum_h gamma^h r_h + gamma^H max_a Q, which counts what comes behind a predicted end as nothing.
    """
    batch, width = len(at), min(args.beam_width, agent.nets.model.action_dim)
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  [B, n, ...] -> [B n, ...]
    paths = tokens[:, None], action[:, None], jnp.zeros((batch, 1)), jnp.ones((batch, 1))  # ..., earned, gamma^h
    q, first = values_at(agent, tokens, action, at, task, args)[:, None], None
    for depth in range(args.plan_length):
        n = q.shape[1] * width
        best, choice = jax.lax.top_k(q, width)  # [B, n, W]
        tokens, action, earned, weight = jax.tree.map(lambda x: jnp.repeat(x, width, 1), paths)
        choice, where = choice.reshape(batch, n), jnp.repeat(at + depth, n)
        first = choice if first is None else jnp.repeat(first, width, 1)
        action = flat(action).at[jnp.arange(batch * n), where].set(choice.ravel())
        tasks = jnp.repeat(task, n)
        reward, goes_on, tokens = imagine(agent, flat(tokens), action, where, tasks)
        next_q = values_at(agent, tokens, action, where + 1, tasks, args)
        wide = lambda x, n=n: x.reshape(batch, n, *x.shape[1:])  # noqa: E731
        reward, goes_on, tokens, action, next_q = map(wide, (reward, goes_on, tokens, action, next_q))
        earned = jnp.where(best.reshape(batch, n) > -jnp.inf, earned + weight * reward, -jnp.inf)
        weight = weight * args.discount * goes_on
        kept = jax.lax.top_k(earned + weight * next_q.max(-1), min(args.beam_width, n))[1]
        take = lambda x, kept=kept: x[jnp.arange(batch)[:, None], kept]  # noqa: E731
        q, first, *paths = map(take, (next_q, first, tokens, action, earned, weight))
    return first[:, 0]


def room(args: Args) -> int:
    """Blocks that the policy keeps: the places at which Q learns, with a plan as many as leave room for it."""
    places = args.context if args.learn_last else args.context - 1
    return places - args.plan_length if args.planning else places


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    k = agent.model["params"]["position"].shape[-2] // args.context - 1
    return Carry(jnp.zeros((args.context, k), jnp.int32), jnp.zeros(args.context, jnp.int32), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B] and what to remember: the first of a plan, or those of the highest Q with --no-planning."""
    piece, task = pieces(obs, args)
    full = carry.seen == room(args)
    move = lambda x: jnp.where(full.reshape(-1, *(1,) * (x.ndim - 1)), jnp.roll(x, -1, axis=1), x)  # noqa: E731
    at, rows = jnp.minimum(carry.seen, room(args) - 1), jnp.arange(len(obs))
    tokens = move(carry.tokens).at[rows, at].set(nearest_code(piece, agent.codebook))
    action = move(carry.action)
    if args.planning:
        chosen = plan(agent, tokens, action, at, task, args)
    else:
        chosen = values_at(agent, tokens, action, at, task, args).argmax(-1)
    return chosen, Carry(tokens, action.at[rows, at].set(chosen), at + 1)


def pretrain(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane, stage 1: one update of the world model per key; mean metrics."""
    return over_keys(update_model, agent, keys, args, data)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane, stage 2: one update per key; mean metrics."""
    return over_keys(update, agent, keys, args, data)


def over_keys(learn, agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """`learn(agent, blocks, key, args)` for every key, on windows that begin at rows drawn uniformly."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        window = data.take(data.rows(row_key, args.batch_size), jnp.arange(args.context + 1))
        return learn(agent, blocks_of(window), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def resolved(args: Args, data: Dataset) -> Args:
    """`args` with what the data says; InputError where they ask for what cannot be."""
    require_context(data, args.context)
    require_heads(args.width, args.heads)
    least = max(2, 1 + args.planning * args.plan_length) + (not args.learn_last)
    if args.context < least:
        raise InputError(f"--context {args.context}: a block and those that follow it are at least {least}.")
    if args.n_atoms < 2:
        raise InputError(f"--n-atoms must be at least 2, not {args.n_atoms}.")
    if args.planning and np.any(np.equal(args.world_weight, 0.0)):
        raise InputError("--world-weight 0: a plan needs a model that goes on learning; add --no-planning.")
    if told(args) >= data.spec.obs_shape[0]:
        raise InputError(
            f"--n-tasks {args.n_tasks}: observations of '{data.task.id}' have {data.spec.obs_shape[0]} numbers."
        )
    if not np.any(args.v_min) and not np.any(args.v_max):
        if np.ptp(args.discount) > 0:  # a lane's atoms would be those of another
            raise InputError(
                f"--discount {args.discount}: each has its own range of returns; give --v-min and --v-max."
            )
        signs = dataclasses.replace(data, reward=np.sign(data.reward)).return_to_go(float(np.max(args.discount)))
        args = dataclasses.replace(args, v_min=float(signs.min()), v_max=float(signs.max()))
    if np.max(args.v_min) >= np.min(args.v_max):
        raise InputError(f"--v-min {args.v_min} must be less than --v-max {args.v_max}.")
    return args


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    args = resolved(args, data)
    codebook, legal = codebook_of(data.obs, args), legal_actions(data, args)
    policy = StatefulPolicy(initial_carry, act)
    with Run(__file__, args, data.task, policy, before=args.model_updates) as run:
        fields = "obs", "action", "reward", "terminal"
        windows = run.replicate(sequences(tokenised(data, codebook, args), *fields))
        agent = run.init(partial(init, spec=data.spec, codebook=codebook, legal=legal))
        agent = run.restore(agent)
        pretrain_lanes = run.over_lanes(pretrain, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            learn = pretrain_lanes if run.done < 0 else train_lanes
            agent, metrics = learn(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
