"""LaMo: language models for motion control.

Shi, Liu, Ze, Du and Xu, "Unleashing the Power of Pre-trained Language Models for Offline Reinforcement Learning", ICLR
2024, arXiv 2310.20587. A Decision Transformer whose blocks are those of a language model, which was trained on text
before it sees an action. Its weights stay: what is learned is a low-rank change of each attention's weights (LoRA), W +
alpha / r A B, embeddings of returns, states and actions that are small networks in place of linear maps, and a head
that is one, too. While it learns to act, it goes on with text: --language-weight times the cross-entropy of the next
token is added (section 4). What text has taught, it is said, is worth most where there are few data.

The language model is a file of GPT-2's weights (--language-model gpt2.safetensors, with --text tokens.npy, the numbers
of a text's tokens, for the second loss), or a tiny one that is trained here first, on nested brackets: which kind is
closed next depends on what was opened long before. With --language-lr 0 it stays as it was drawn, and with --adapt all
the language model's own weights are learned, too.

Choose it when data are few, and a language model's weights are at hand.

Parity: equal to the authors' code, update for update, but for a text's places, the form of GELU, Adam's epsilon and the
step size and decay of what is changed (results/parity.md).

Deviations from the paper (and the authors' code):
- text is a tiny grammar unless a file is given (WikiText-103), and its tokens have places (none there);
- the change of the weights has no dropout of its own (0.1), and GELU is the tanh form everywhere;
- the score is of one target return (the best of several): each is a lane;
- AdamW is optax's for all that is learned, and what decays of an attention's bias is its change (the authors' code:
  epsilon 1e-6, the bias itself, and its low-rank changes in fact at the rate of the new networks);
- no images.

    python algorithms/sequence/lamo.py --dataset pendulum-few --seeds 4 --width 64 --layers 2 --updates 10000
    python algorithms/sequence/lamo.py --dataset hopper-medium --language-model gpt2.safetensors --heads 12 \\
        --language-weight 0
"""

import dataclasses
import re
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
from safetensors import SafetensorError
from safetensors.flax import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError, first_line
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
    language_model: str = ""
    """File of GPT-2's weights (.safetensors), which says width and layers; empty: one that is trained here."""
    text: str = ""
    """File of the numbers of a text's tokens (.npy); empty: strings of nested brackets."""
    language_updates: Count = 10_000
    """Updates of the language model before the first one of the policy; none of one that comes from a file. 0: it stays
    as it was drawn."""
    language_lr: Float = 1e-3
    """Adam's step size: the language model before the policy; 0: it stays as it was drawn."""
    language_weight: Float = 0.1
    """lambda: weight of the next token's cross-entropy while the policy learns; 0: no more text."""
    language_batch: Size = 16
    """Pieces of text per gradient update."""
    language_length: Size = 64
    """Tokens of a piece of text."""
    bracket_kinds: Size = 8
    """Kinds of brackets; there are twice as many tokens."""
    adapt: Literal["lora", "all"] = "lora"
    """What is learned of the language model: the low-rank change alone, or its own weights, too."""
    rank: Size = 16
    """r: rank of the change of each attention's query, key and value weights."""
    lora_alpha: float = 32.0
    """alpha: the change is multiplied by alpha / r."""
    width: int = 128
    """Size of a token."""
    layers: Size = 3
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    adapter_lr: Float = 1e-5
    """Adam's step size: what is learned of the language model while the policy learns."""
    weight_decay: Float = 1e-5
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 2_500
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 0.25
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {
    "hopper": {"target_return": 3600.0, "return_scale": 1000.0, "eval_episodes": 20},
    "halfcheetah": {"target_return": 12000.0, "return_scale": 1000.0, "eval_episodes": 20},
    "walker2d": {"target_return": 5000.0, "return_scale": 1000.0, "eval_episodes": 20},
}

CHECKS = {"target_return": require_target}
"""Of arguments that a trained run is given anew (shared.evaluation --set)."""

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
GPT2_HEAD = 64
"""Numbers of a token that one attention head of GPT-2 sees, whatever its size; no file of weights says it."""
DEPTH = 8
"""Brackets that are open at once, at most."""
OPENED = 0.5
"""How often a bracket is opened where one might as well be closed."""


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
        hidden = nn.gelu(nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + drop(nn.Dense(width, kernel_init=gpt_init)(hidden))


class Language(nn.Module):
    """GPT-2: what token comes next, [B, N, V] logits; and its blocks, for tokens of any kind."""

    tokens: int
    places: int
    width: int
    layers: int
    heads: int
    dropout: float

    def setup(self):
        self.wte = nn.Embed(self.tokens, self.width, embedding_init=gpt_init)
        self.wpe = nn.Embed(self.places, self.width, embedding_init=gpt_init)
        self.h = [Block(self.heads, self.dropout) for _ in range(self.layers)]
        self.ln_f = nn.LayerNorm(epsilon=1e-5)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, text, training: bool = False):
        """`text` [B, N] int."""
        x = self.wte(text) + self.wpe(jnp.arange(text.shape[1]))
        return self.wte.attend(self.trunk(x, jnp.ones(text.shape), training))

    def trunk(self, x, mask, training: bool = False):
        """`x` [B, N, W] in their order, each of which sees itself and those before it; `mask` [B, N]: 0 at padding."""
        visible = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & (mask[:, None] > 0)
        x = self.drop(x, deterministic=not training)
        for block in self.h:
            x = block(x, visible, training)
        return self.ln_f(x)


class Residual(nn.Module):
    """W2 gelu(h) + h, h = W1 x."""

    width: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width, kernel_init=dense_init)(x)
        return nn.Dense(self.width, kernel_init=dense_init)(nn.gelu(h)) + h


class Tokens(nn.Module):
    """Windows [B, T], their returns-to-go divided by their scale, as tokens [B, 3T, W]: return, state, action."""

    spec: Spec
    width: int
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window):
        action = jax.nn.one_hot(window.action, self.spec.action_dim) if self.spec.discrete else window.action
        parts = {"return": window.return_to_go[..., None], "obs": window.obs, "action": action}
        kinds = jnp.stack([Residual(self.width, name=f"embed_{name}")(x) for name, x in parts.items()], 2)
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        x = nn.LayerNorm(epsilon=1e-5)(kinds) + time[:, :, None]  # [B, T, 3, W]
        return x.reshape(len(x), -1, self.width)


class Head(nn.Module):
    """Actions, not bounded, or logits, from the tokens of states."""

    width: int
    action_dim: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(self.width, kernel_init=dense_init)(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init)(hidden)


class Networks(NamedTuple):
    language: Language
    tokens: Tokens
    head: Head


class Learned(NamedTuple):
    """What is learned while the policy learns."""

    tokens: Any
    head: Any
    adapters: dict
    """{block: a [3, W, R], b [3, R, W] of queries, keys and values, bias [3W]}, a change of the block's attention."""
    language: Any
    """The language model's own weights; nothing, unless all are learned."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    language: Any
    """The language model as it was before the policy."""
    actor: Learned
    language_opt: optax.OptState
    actor_opt: optax.OptState


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    wanted: jax.Array
    """[] the return that is still asked for, in the environment's unit."""
    step: jax.Array
    """[] of the observation that comes next."""


def adapted(language, adapters: dict, args: Args):
    """The language model with W + alpha / r A B in place of each attention's W, and its bias changed (LoRA)."""
    params = dict(language["params"])
    for name, own in adapters.items():
        kernel, bias = (params[name]["Dense_0"][part] for part in ("kernel", "bias"))
        change = jnp.moveaxis(own["a"] @ own["b"], 0, 1).reshape(kernel.shape)
        dense = {"kernel": kernel + args.lora_alpha / args.rank * change, "bias": bias + own["bias"]}
        params[name] = {**params[name], "Dense_0": dense}
    return {"params": params}


def language_of(agent: Agent, actor: Learned, args: Args):
    """The language model that the policy is made of."""
    return adapted(agent.language if args.adapt == "lora" else actor.language, actor.adapters, args)


def language_loss(language, net: Language, text, key):
    """-log P(token | those before it), mean over the tokens [B, N] but the first."""
    logits = net.apply(language, text[:, :-1], training=True, rngs={"dropout": key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def outputs(agent: Agent, actor: Learned, window: Window, args: Args, **training):
    """[B, T, A] what is done at each step: read where the state is, which has not seen the action."""
    nets, language = agent.nets, language_of(agent, actor, args)
    tokens, mask = nets.tokens.apply(actor.tokens, window), jnp.repeat(window.mask, 3, 1)
    x = nets.language.apply(language, tokens, mask, method="trunk", **training)
    return nets.head.apply(actor.head, x[:, 1::3])


def actor_loss(actor: Learned, agent: Agent, window: Window, key, args: Args):
    """Mean over the steps of |pi - a|^2 / A, or of -log pi(a)."""
    out = outputs(agent, actor, window, args, training=True, rngs={"dropout": key})
    if agent.spec.discrete:
        loss = optax.softmax_cross_entropy_with_integer_labels(out, window.action)
    else:
        chex.assert_equal_shape([out, window.action])
        loss = ((out - window.action) ** 2).mean(-1)
    return (window.mask * loss).sum() / window.mask.sum()


def joint_loss(actor: Learned, agent: Agent, window: Window, text, key, args: Args):
    """The policy's loss, and lambda times that of the same language model on text [B, N]."""
    actor_key, text_key = jax.random.split(key)
    acting = actor_loss(actor, agent, window, actor_key, args)
    telling = language_loss(language_of(agent, actor, args), agent.nets.language, text, text_key)
    return acting + args.language_weight * telling, {"actor_loss": acting, "language_loss": telling}


def brackets(chance, kind, kinds: int):
    """[N] a piece of text: what was opened last is closed first; token k opens, kinds + k closes.

    `chance` [N] in [0, 1]: a bracket is opened below OPENED, if either can be done; `kind` [N] of those that are.
    """

    def write(state, drawn):
        (stack, depth), (chance, kind) = state, drawn  # [DEPTH] kinds that are open, and how many
        opens = (depth == 0) | ((depth < DEPTH) & (chance < OPENED))
        token = jnp.where(opens, kind, kinds + stack[depth - 1])
        return (jnp.where(opens, stack.at[depth].set(kind), stack), jnp.where(opens, depth + 1, depth - 1)), token

    return jax.lax.scan(write, (jnp.zeros(DEPTH, jnp.int32), jnp.int32(0)), (chance, kind))[1]


def texts(key, args: Args, text: jax.Array | None):
    """[language_batch, language_length] pieces of the file's `text` [M], or of the grammar."""
    size, kinds = (args.language_batch, args.language_length), args.bracket_kinds
    if text is None:
        chance_key, kind_key = jax.random.split(key)
        drawn = jax.random.uniform(chance_key, size), jax.random.randint(kind_key, size, 0, kinds)
        return jax.vmap(partial(brackets, kinds=kinds))(*drawn)
    starts = jax.random.randint(key, (args.language_batch, 1), 0, len(text) - args.language_length + 1)
    return text[starts + jnp.arange(args.language_length)]


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm, slower for the language model's part; the first step already has a step
    size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    def adamw(rate):
        schedule = lambda step: rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
        return optax.adamw(schedule, weight_decay=args.weight_decay)

    rates = {"new": adamw(args.learning_rate), "language": adamw(args.adapter_lr)}
    own = optax.multi_transform(rates, Learned("new", "new", "language", "language"))
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), own)


def init(key, args: Args, spec: Spec, pretrained: Any = None, tokens: int = 0) -> Agent:
    """The agent of one lane; `pretrained`: the language model of a file, `tokens`: that there are in a text's file.

    The change begins as none: b and the bias are 0.
    """
    language_key, tokens_key, head_key, adapter_key = jax.random.split(key, 4)
    sizes = tokens or 2 * args.bracket_kinds, args.language_length
    if pretrained is not None:
        sizes = tuple(len(pretrained["params"][name]["embedding"]) for name in ("wte", "wpe"))
    language = Language(*sizes, args.width, args.layers, args.heads, args.token_dropout)
    nets = Networks(language, Tokens(spec, args.width, max(args.max_timestep, 1)), Head(args.width, spec.action_dim))
    language = pretrained or nets.language.init(language_key, jnp.zeros((1, 1), jnp.int32))
    window = jax.tree.map(lambda x: x[None], empty(spec, args))
    new = nets.tokens.init(tokens_key, window), nets.head.init(head_key, jnp.zeros((1, args.width)))
    draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=2, batch_axis=0)
    adapters = {
        f"h_{i}": {
            "a": draw(jax.random.fold_in(adapter_key, i), (3, args.width, args.rank)),
            "b": jnp.zeros((3, args.rank, args.width)),
            "bias": jnp.zeros(3 * args.width),
        }
        for i in range(args.layers)
    }
    actor = Learned(*new, adapters, language if args.adapt == "all" else ())
    opts = optax.adam(args.language_lr).init(language), optimizer(args).init(actor)
    return Agent(nets, spec, language, actor, *opts)


def fit(agent: Agent, keys, args: Args, text: jax.Array | None) -> tuple[Agent, dict]:
    """One lane, before the policy: one update of the language model per key; mean metrics."""

    def step(agent, key):
        text_key, loss_key = jax.random.split(key)
        pieces = texts(text_key, args, text)
        loss, grads = jax.value_and_grad(language_loss)(agent.language, agent.nets.language, pieces, loss_key)
        updates, language_opt = optax.adam(args.language_lr).update(grads, agent.language_opt)
        return agent.replace(language=optax.apply_updates(agent.language, updates), language_opt=language_opt), loss

    agent, loss = jax.lax.scan(step, agent, keys)
    if args.adapt == "all":
        agent = agent.replace(actor=agent.actor._replace(language=agent.language))
    return agent, {"language_loss": loss.mean()}


def update(agent: Agent, window: Window, text, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of what is learned; `window` [B, K] with returns-to-go as the data has them."""
    window = window._replace(return_to_go=window.return_to_go / args.return_scale)
    grads, info = jax.grad(joint_loss, has_aux=True)(agent.actor, agent, window, text, key, args)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {**info, "grad_norm": optax.global_norm(grads)}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps, whole = (args.context,), jnp.zeros(args.context, jnp.int32)
    action = whole if spec.discrete else jnp.zeros((*steps, spec.action_dim))
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": action, "return_to_go": jnp.zeros(steps)}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.spec, args), jnp.float32(args.target_return), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], or [B] indices, and what to remember; what was earned is asked for no more."""
    wanted = carry.wanted - reward
    now = {"obs": obs, "return_to_go": wanted / args.return_scale, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    out = outputs(agent, agent.actor, Window(**moved), args)[:, -1]
    action = out.argmax(-1) if agent.spec.discrete else jnp.clip(out, -1.0, 1.0)
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, wanted, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: Sequences, text: jax.Array | None) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        row_key, text_key, update_key = jax.random.split(key, 3)
        window = data.after(data.rows(row_key, args.batch_size), args.context)
        return update(agent, window, texts(text_key, args, text), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


NAMES = {
    "ln_1.weight": ("LayerNorm_0", "scale"), "ln_1.bias": ("LayerNorm_0", "bias"),
    "attn.c_attn.weight": ("Dense_0", "kernel"), "attn.c_attn.bias": ("Dense_0", "bias"),
    "attn.c_proj.weight": ("Dense_1", "kernel"), "attn.c_proj.bias": ("Dense_1", "bias"),
    "ln_2.weight": ("LayerNorm_1", "scale"), "ln_2.bias": ("LayerNorm_1", "bias"),
    "mlp.c_fc.weight": ("Dense_2", "kernel"), "mlp.c_fc.bias": ("Dense_2", "bias"),
    "mlp.c_proj.weight": ("Dense_3", "kernel"), "mlp.c_proj.bias": ("Dense_3", "bias"),
}  # fmt: skip
"""Of a block of GPT-2 in a file -> here. Kernels are [inputs, outputs] in both."""


def read_gpt2(path: str) -> dict:
    """The language model of a file of GPT-2's weights, of whatever size.

    Raises:
      InputError: it is no such file.
    """
    try:
        arrays = {name.removeprefix("transformer."): x for name, x in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"--language-model {path} is no file of .safetensors: {first_line(error)}.") from None
    layers = 1 + max((int(found[1]) for name in arrays if (found := re.match(r"h\.(\d+)\.", name))), default=-1)
    params = {}
    try:
        for name in ("wte", "wpe"):
            params[name] = {"embedding": arrays[f"{name}.weight"]}
        params["ln_f"] = {"scale": arrays["ln_f.weight"], "bias": arrays["ln_f.bias"]}
        for i in range(layers):
            for name, (layer, part) in NAMES.items():
                params.setdefault(f"h_{i}", {}).setdefault(layer, {})[part] = arrays[f"h.{i}.{name}"]
    except KeyError as error:
        raise InputError(f"--language-model {path}: these are no weights of GPT-2, there is no {error}.") from None
    width = params["wte"]["embedding"].shape[1]
    if not layers or any(params[f"h_{i}"]["Dense_0"]["kernel"].shape != (width, 3 * width) for i in range(layers)):
        raise InputError(f"--language-model {path}: these are no weights of GPT-2, whose blocks have one width.")
    return {"params": jax.tree.map(lambda x: np.asarray(x, np.float32), params)}


def read_text(path: str, length: int) -> np.ndarray:
    """[M] int32 the numbers of a file's tokens.

    Raises:
      InputError: it is no such file, or shorter than `length`.
    """
    try:
        text = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--text {path}: no .npy file can be read there ({first_line(error)}).") from None
    if not (isinstance(text, np.ndarray) and text.ndim == 1 and text.dtype.kind in "iu" and len(text) >= length):
        raise InputError(f"--text {path}: one row of whole numbers, at least {length:,} of them, is needed.")
    if text.min() < 0 or text.max() >= 2**31:
        raise InputError(f"--text {path}: tokens have numbers from 0 on, not {text.min()} to {text.max()}.")
    return text.astype(np.int32)


def resolved(args: Args, data, pretrained: dict | None, text: np.ndarray | None) -> Args:
    """`args` with what the data and the language model say; InputError where they do not fit together."""
    if args.language_length < 2:
        raise InputError("--language-length must be at least 2: of one token there is no next one.")
    if pretrained is not None:
        params = pretrained["params"]
        (vocabulary, width), places = params["wte"]["embedding"].shape, len(params["wpe"]["embedding"])
        layers = sum(name.startswith("h_") for name in params)
        args = dataclasses.replace(args, width=width, layers=layers, language_updates=0)
        if args.language_length > places:
            raise InputError(f"--language-length {args.language_length}: the language model has {places} places.")
        if text is None and np.any(np.asarray(args.language_weight) > 0):
            raise InputError("--language-model: it goes on with the --text of a file, or --language-weight must be 0.")
        if (most := 2 * args.bracket_kinds - 1 if text is None else int(text.max())) >= vocabulary:
            raise InputError(f"--text: token {most} is none of the language model's {vocabulary:,}.")
    require_context(data, args.context)
    if pretrained is not None and args.width != GPT2_HEAD * args.heads:
        raise InputError(f"--heads {args.heads}: GPT-2's heads see {GPT2_HEAD} numbers each, of {args.width} here.")
    require_heads(args.width, args.heads)
    asked = {"target_return": target_returns(data, args.target_return)}
    asked |= {"return_scale": return_scale(data, args.return_scale)}
    return dataclasses.replace(args, **asked, max_timestep=args.max_timestep or horizon(data))


def main(args: Args) -> None:
    data = load_dataset(args).require().normalize_obs(1e-6)
    pretrained = read_gpt2(args.language_model) if args.language_model else None
    text = read_text(args.text, args.language_length) if args.text else None
    args = resolved(args, data, pretrained, text)
    policy = StatefulPolicy(initial_carry, act)
    with Run(__file__, args, data.task, policy, before=args.language_updates) as run:
        windows = run.replicate(sequences(data, "obs", "action", "return_to_go"))
        tokens = 0 if text is None else int(text.max()) + 1
        text = None if text is None else run.replicate(jnp.asarray(text))
        agent = run.init(partial(init, spec=data.spec, pretrained=pretrained, tokens=tokens))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, None), donate=True)
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, text)
            else:
                agent, metrics = train_lanes(agent, keys, run.lane_args, windows, text)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
