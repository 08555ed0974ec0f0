"""MORE-3S: states and the names of actions in one space of texts, returns in every layer's keys and values.

Zheng, Zhang, Qu, Kuang, Huang and He, "MORE-3S: Multimodal-based Offline Reinforcement Learning with Shared Semantic
Spaces", arXiv 2402.12845. What is seen, and a text that comes with it (a mission), make one token of each step; actions
are known by their names. A decoder reads the tokens of the last steps and gives the next action; the return-to-go is no
token, but stands beside what every layer makes its keys and values of, key' = W [key, R], value' = V [value, R]. States
and the texts of the actions that were taken in them are drawn together (contrastive alignment).

This is a small variant of it. Texts are read letter by letter by a small network that missions and actions share, and
vectors by a layer, all trained here from nothing, where the authors take frozen features of LXMERT and Faster R-CNN and
a pre-trained GPT-2. Where a text stands in an observation its space tells (gymnasium's Text in a Dict); without one,
actions alone have texts. --action-texts gives their names in order.

Choose it when actions are discrete and have names, and a text says what is wanted.

Deviations from the paper (and the authors' code):
- networks, as said; the texts before an action are the mission and the name of the action before it;
- keys and values are those of the authors' evaluation; in their training another layer (one for both) reads them with
  compressed ones of up to 20 batches before, which evaluation leaves out;
- the decoder is trained to give the action (theirs to give the next step's feature, from which a probe tells the
  action);
- after its rise the step size stays (theirs falls to 0 at the end), and AdamW stands for their BertAdam;
- what is no text is read as the data has it, not normalised;
- states are aligned with the action's text against the other actions' texts; what theirs is against is not known;
- discrete actions alone; the weights and sizes of the paper's runs are not known, nor are target returns.

    python algorithms/sequence/more_3s.py --dataset minigrid-gotodoor-mixed --seeds 4 --width 64 --layers 2 --heads 2
    python algorithms/sequence/more_3s.py --dataset cartpole-mixed --action-texts left right --alignment-weight 0 0.1
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, OfflineArgs, Positive, Size, hyperparameters
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
from shared.spaces import OBS_ORDER, flat_obs_shape
from shared.task import Spec, Task


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-mazes-demos"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    context: int = 20
    """K: steps that the policy sees."""
    target_return: Float = 0.0
    """Return that the policy is asked for, in the environment's unit; 0: that of the data's best episode."""
    return_scale: Float = 0.0
    """Returns are divided by it; 0: by the largest magnitude of the data's returns-to-go."""
    alignment_weight: Float = 0.1
    """Weight of the contrast of a state's action text with the other actions' texts; 0: states are not aligned."""
    alignment_temperature: Positive = 0.07
    """Cosines of states and texts are divided by it."""
    told: bool = True
    """Whether the policy is told the text of an observation; without it it sees the rest alone."""
    action_texts: tuple[str, ...] = ()
    """Names of the actions, in their order; none: action a, action b, ..."""
    width: int = 768
    """Size of a token."""
    layers: Size = 6
    """Blocks of the transformer."""
    heads: int = 12
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-2
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 10_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 5.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {
    "minigrid": {
        "action_texts": ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"),
    },
}

CHECKS = {"target_return": require_target}
"""Of arguments that a trained run is given anew (shared.evaluation --set)."""

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 "
"""Of actions' names, where no text of an observation has letters of its own."""


class Block(nn.Module):
    """Self-attention whose keys and values know the return, then a feed-forward layer; both are added to the tokens."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, wanted, visible, training: bool):
        """`x` [B, N, W]; `wanted` [B, N]; `visible` [B, N, N]: which token (last axis) each one sees."""
        *lead, width = x.shape
        drop = lambda x: nn.Dropout(self.dropout, deterministic=not training)(x)  # noqa: E731
        qkv = nn.Dense(3 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.split(qkv, 3, axis=-1)
        k = nn.Dense(width, kernel_init=dense_init, name="key")(jnp.concatenate([k, wanted[..., None]], -1))
        v = nn.Dense(width, kernel_init=dense_init, name="value")(jnp.concatenate([v, wanted[..., None]], -1))
        q, k, v = (y.reshape(*lead, self.heads, width // self.heads) for y in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = drop(nn.softmax(jnp.where(visible[:, None], scores, -1e9)))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + drop(nn.Dense(width, kernel_init=gpt_init)(seen))
        hidden = nn.relu(nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + drop(nn.Dense(width, kernel_init=gpt_init)(hidden))


class TextNetwork(nn.Module):
    """A text by its letters, each at its place."""

    width: int
    letters: int

    @nn.compact
    def __call__(self, codes):
        """`codes` [..., N], `letters` or more for none -> [..., W]."""
        seen = jax.nn.one_hot(codes.astype(jnp.int32), self.letters)
        x = nn.relu(nn.Dense(self.width, kernel_init=dense_init)(seen.reshape(*codes.shape[:-1], -1)))
        return nn.Dense(self.width, kernel_init=dense_init)(x)


class Texts(NamedTuple):
    """Where texts are, and what they say; whole numbers, all of them."""

    first: int
    """The column of an observation in which its text begins."""
    length: int
    """Letters of it; 0: it has none."""
    letters: int
    """That there are."""
    names: tuple[int, ...]
    """[A N] codes of the actions' names, one after the other, N at least the length of the observation's text."""


class TextTransformer(nn.Module):
    """What to do at each step of a window, and how near its state is to the text of each action."""

    spec: Spec
    texts: Texts
    told: bool
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, training: bool = False):
        """`window` [B, T], its returns-to-go divided by their scale -> logits [B, T, A], cosines [B, T, A]."""
        dense = partial(nn.Dense, self.width, kernel_init=dense_init)
        read = TextNetwork(self.width, self.texts.letters, name="text")
        names = read(jnp.array(self.texts.names, jnp.int32).reshape(self.spec.action_dim, -1))  # [A, W]
        first, length = self.texts.first, self.texts.length
        text = window.obs[..., first : first + length]
        rest = jnp.concatenate([window.obs[..., :first], window.obs[..., first + length :]], -1)
        kinds = [nn.relu(dense(name="embed_obs")(rest)), self._before(window, names)]
        if length and self.told:
            most = len(self.texts.names) // self.spec.action_dim
            padded = jnp.pad(text, ((0, 0), (0, 0), (0, most - length)), constant_values=self.texts.letters)
            kinds.append(read(padded))
        hidden = nn.relu(dense(name="fuse")(jnp.concatenate(kinds, -1)))
        state = dense(name="state")(hidden)  # [B, T, W]: what was seen and told before the action
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        x = nn.Dropout(self.dropout, deterministic=not training)(nn.LayerNorm(epsilon=1e-5)(state + time))
        steps = window.mask.shape[1]
        visible = jnp.tril(jnp.ones((steps, steps), bool)) & (window.mask[:, None] > 0)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, window.return_to_go, visible, training)
        x = nn.LayerNorm(epsilon=1e-5)(x)
        logits = nn.Dense(self.spec.action_dim, kernel_init=dense_init, name="head")(x)
        return logits, unit(state) @ unit(names).T

    def _before(self, window: Window, names):
        """[B, T, W] the text of the action before each step; 0 at the window's first one."""
        taken = names[window.action] * window.mask[..., None]
        return jnp.pad(taken[:, :-1], ((0, 0), (1, 0), (0, 0)))


def unit(x):
    """`x` [..., W] at length 1."""
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-12)


class Agent(flax.struct.PyTreeNode):
    net: TextTransformer = flax.struct.field(pytree_node=False)
    actor: Any
    actor_opt: optax.OptState


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    wanted: jax.Array
    """[] the return that is still asked for, in the environment's unit."""
    step: jax.Array
    """[] of the observation that comes next."""


def action_loss(logits, window: Window):
    """-log pi(a), mean over the steps, and the share of steps whose action is the likeliest one."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, window.action)
    chex.assert_equal_shape([loss, window.mask])
    right = logits.argmax(-1) == window.action
    return (window.mask * loss).sum() / window.mask.sum(), (window.mask * right).sum() / window.mask.sum()


def alignment_loss(cosines, window: Window, args: Args):
    """InfoNCE of states and texts: -log softmax_a(cos(state, text of a) / temperature) at the action that was taken."""
    loss = optax.softmax_cross_entropy_with_integer_labels(cosines / args.alignment_temperature, window.action)
    chex.assert_equal_shape([loss, window.mask])
    return (window.mask * loss).sum() / window.mask.sum()


def actor_loss(actor, agent: Agent, window: Window, key, args: Args):
    """Actions by the decoder, and the alignment of its tokens."""
    logits, cosines = agent.net.apply(actor, window, training=True, rngs={"dropout": key})
    loss, accuracy = action_loss(logits, window)
    alignment = alignment_loss(cosines, window, args)
    info = {"action_loss": loss, "alignment_loss": alignment, "accuracy": accuracy}
    return loss + args.alignment_weight * alignment, info


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def init(key, args: Args, spec: Spec, place: tuple[int, ...] = (0, 0, 0), names: tuple[int, ...] = ()) -> Agent:
    """The agent of one lane. `place`: first, length and letters of `Texts`; without them actions alone have texts."""
    texts = Texts(*place, names) if names else texts_of(args, spec, None)
    sizes = args.width, args.layers, args.heads, args.token_dropout, max(args.max_timestep, 1)
    net = TextTransformer(spec, texts, args.told, *sizes)
    actor = net.init(key, jax.tree.map(lambda x: x[None], empty(spec, args)))
    return Agent(net=net, actor=actor, actor_opt=optimizer(args).init(actor))


def update(agent: Agent, window: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor; `window` [B, K] with returns-to-go as the data has them."""
    window = window._replace(return_to_go=window.return_to_go / args.return_scale)
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, window, key, args)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, **info}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps, whole = (args.context,), jnp.zeros(args.context, jnp.int32)
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": whole, "return_to_go": jnp.zeros(steps)}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.net.spec, args), jnp.float32(args.target_return), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Likeliest actions [B], and what to remember; what was earned is asked for no more."""
    wanted = carry.wanted - reward
    now = {"obs": obs, "return_to_go": wanted / args.return_scale, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    action = agent.net.apply(agent.actor, Window(**moved))[0][:, -1].argmax(-1)
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, wanted, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, data.after(data.rows(row_key, args.batch_size), args.context), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def texts_of(args: Args, spec: Spec, task: Task | None) -> Texts:
    """The text in the observations of `task`, if any, and the actions' names in its letters.

    Raises:
      InputError: as many names as there are actions are needed, none twice and none empty; one has a letter that the
        text has not; observations have two texts.
    """
    names = args.action_texts or tuple(f"action {chr(97 + i % 26)}{i // 26 or ''}" for i in range(spec.action_dim))
    if len(names) != spec.action_dim:
        raise InputError(f"--action-texts: {len(names)} names, but there are {spec.action_dim} actions.")
    if len(set(names)) < len(names) or "" in names:
        raise InputError("--action-texts: every action needs a name of its own.")
    first, length, letters = 0, 0, LETTERS
    space = task.obs_space if task and task.env_spec else None
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    order = [name for name in OBS_ORDER if name in parts] + sorted(parts.keys() - set(OBS_ORDER))
    texts = [name for name in order if isinstance(parts[name], gym.spaces.Text)]
    if len(texts) > 1:
        raise InputError(f"Observations with one text at most can be read; those of '{task.id}' have {len(texts)}.")
    if texts:
        of = parts[texts[0]]
        first = sum(flat_obs_shape(parts[name])[0] for name in order[: order.index(texts[0])])
        length, letters = of.max_length, "".join(sorted(of.character_set))
    if foreign := {letter for name in names for letter in name} - set(letters):
        raise InputError(f"--action-texts: the texts of '{task.id if task else 'names'}' have no '{min(foreign)}'.")
    longest = max(length, *map(len, names))
    codes = [[letters.index(c) for c in name] + [len(letters)] * (longest - len(name)) for name in names]
    return Texts(first, length, len(letters), tuple(c for name in codes for c in name))


def resolved(args: Args, data) -> Args:
    """`args` with what the data says; InputError where they ask for what it cannot say."""
    require_context(data, args.context)
    require_heads(args.width, args.heads)
    asked = {"target_return": target_returns(data, args.target_return)}
    asked |= {"return_scale": return_scale(data, args.return_scale)}
    return dataclasses.replace(args, **asked, max_timestep=args.max_timestep or horizon(data))


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    args = resolved(args, data)
    texts = texts_of(args, data.spec, data.task)
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, "obs", "action", "return_to_go"))
        agent = run.init(partial(init, spec=data.spec, place=texts[:3], names=texts.names))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
