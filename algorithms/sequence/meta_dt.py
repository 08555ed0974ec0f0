"""Meta-DT: a Decision Transformer for tasks that must be found out, told of them by a world model's encoder.

Wang, Zhang, Wu, Zhu, Zhao and Chen, "Meta-DT: Offline Meta-RL as Conditional Sequence Modeling with World Model
Disentanglement", NeurIPS 2024, arXiv 2410.11448. The tasks of the data differ in rewards or dynamics that no
observation tells. An encoder makes z_t of the last steps before t, so that a model of the reward (or of the next state)
that is given z_t is right (`model_loss`, the first --context-updates, then frozen): z tells the task, and not who
acted. z_t stands beside the state in a Decision Transformer. What the last steps do not tell, a prompt does: a piece of
another try at the task, drawn where the world model is most wrong.

An episode is a trial: several tries of --try-steps at one task. Few-shot, the policy keeps its best tries so far from
one to the next, and is prompted with a piece of one; the first try has no prompt. --prompt-share 0 is zero-shot,
--task-weight 0 is a Prompt-DT (arXiv 2206.13499) whose prompts are its own, both are DT.

Choose it when episodes are of different tasks, a task is tried more than once, and the first steps tell little of it.

Parity: the model of the reward and the actor are equal to the authors' code, update for update, but for the prompt's
normalisation, a clip and biases (results/parity.md).

Deviations from the paper (and the authors' code):
- tasks are the data's trials, few tries each (45 tasks of 100 episodes); those of the evaluation are new ones;
- a prompt is drawn for each window, of any other try of its trial (one for each trajectory, of three good ones);
- it is drawn in proportion to its error (as the code; in the paper, it is the piece with the largest one), in acting
  too, where the code's errors are summed up to the end of the try;
- the encoder sees standardised states, and of a try's first steps those that there are (in the code's evaluation z is 0
  at the first, and comes from zeros at the next ones); the reward of a try's last step is not learned;
- the prompt's tokens are normalised before the transformer, as the window's (these alone); the gates of the encoder's
  GRU have one bias (two that add up, so that their step is twice as large);
- the world model's gradients are not clipped (to a norm of 1), and --context is 10 (20);
- the world model's last parameters are used (the best ones on held-out tasks);
- everyone is asked for the same return (each task for the best one of its own data).

    python algorithms/sequence/meta_dt.py --seeds 8 --updates 5000 --unprompted-updates 1000 --context-updates 5000 \\
        --warmup-updates 500 --width 64 --layers 2
    python algorithms/sequence/meta_dt.py --seeds 8 --prompt-share 0 1 --task-weight 0 1
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
from shared.arguments import Count, Dropout, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import (
    Sequences,
    Window,
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
    dataset: str = "trial-point-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    try_steps: Size = 10
    """Steps of a try: an episode is a trial, several tries at one task, each from the start."""
    context_updates: Size = 200_000
    """Gradient updates of the encoder and the models before all others."""
    varies: tuple[Literal["rewards", "dynamics"], ...] = ("rewards",)
    """What differs from task to task, which the world model learns."""
    history_steps: Size = 4
    """h: steps before each one that tell its task, of the same try."""
    latent_dim: Size = 16
    """Size of the representations."""
    recurrent_dim: Size = 128
    """Units of the recurrent network that reads histories."""
    hidden_dims: tuple[int, ...] = (128, 128)
    """Hidden layers of every network that has no argument of its own for them."""
    context_lr: Float = 1e-3
    """Adam's step size: encoder and world model."""
    task_weight: Float = 1.0
    """What the encoder says of the task is multiplied by it; 0: the policy is told nothing."""
    prompt_share: Fraction = 1.0
    """Share of the windows that have a prompt, in [0, 1]; 0: zero-shot, the policy has none either."""
    unprompted_updates: Count = 20_000
    """First updates, in which there are no prompts."""
    error_power: Float = 1.0
    """Pieces are drawn as prompts in proportion to this power of the world model's error; 0: evenly."""
    prompt_steps: Size = 5
    """Steps of the task, a prompt, that are put before the window."""
    prompt_tries: Size = 3
    """Tries that the policy keeps and draws its prompts of, those with the highest returns so far."""
    context: int = 10
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
    batch_size: Size = 128
    """Transitions per gradient update."""


PRESETS = {}

CHECKS = {"target_return": require_target}
"""Of arguments that a trained run is given anew (shared.evaluation --set)."""

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
xavier = nn.initializers.xavier_uniform()
gates_init = nn.initializers.orthogonal(3**-0.5)  # of three gates, which are one orthogonal matrix together
BLOCK = 1024
"""Rows that the world model is asked about at once."""


class TaskEncoder(nn.Module):
    """What the steps before one tell of its task."""

    latent_dim: int
    recurrent_dim: int

    @nn.compact
    def __call__(self, *steps):
        """`steps`: states [..., h, O], actions [..., h, A], rewards [..., h, 1], the oldest first -> z [..., Z]."""
        embedded = [nn.relu(nn.Dense(self.latent_dim, kernel_init=xavier)(x)) for x in steps]
        x = jnp.concatenate(embedded, -1)
        cell = nn.GRUCell(self.recurrent_dim, kernel_init=gates_init, recurrent_kernel_init=gates_init)
        memory = jnp.zeros((*x.shape[:-2], self.recurrent_dim))
        for step in range(x.shape[-2]):
            memory, _ = cell(memory, x[..., step, :])
        return nn.Dense(self.latent_dim, kernel_init=xavier)(memory)


class Decoder(nn.Module):
    """What follows from a state, an action, (a next state) and what is known of the task."""

    latent_dim: int
    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, z, action, *obs):
        dense = partial(nn.Dense, kernel_init=xavier)
        embed = dense(self.latent_dim, name="embed_obs")  # one for both states
        embedded = [nn.relu(embed(x)) for x in obs]
        x = jnp.concatenate([z, nn.relu(dense(self.latent_dim, name="embed_action")(action)), *embedded], -1)
        for size in self.hidden_dims:
            x = nn.relu(dense(size)(x))
        return dense(self.outputs)(x)


class WorldModel(nn.Module):
    """An encoder of the steps before one, and models of its reward and of the state that follows."""

    latent_dim: int
    recurrent_dim: int
    hidden_dims: tuple[int, ...]
    obs_dim: int

    def setup(self):
        self.encoder = TaskEncoder(self.latent_dim, self.recurrent_dim)
        self.reward_model = Decoder(self.latent_dim, self.hidden_dims, 1)
        self.dynamics_model = Decoder(self.latent_dim, self.hidden_dims, self.obs_dim)

    def task(self, obs, action, reward):
        """z [..., Z] of the steps [..., h] before one."""
        return self.encoder(obs, action, reward[..., None])

    def __call__(self, z, obs, action, next_obs):
        """r(s, a, s', z) [...] and s'(s, a, z) [..., O]."""
        return self.reward_model(z, action, obs, next_obs)[..., 0], self.dynamics_model(z, action, obs)


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


class MetaTransformer(nn.Module):
    """What to do at each step of a window, after the prompt, for the task that is told: actions in [-1, 1]."""

    action_dim: int
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, z, prompt: Window, training: bool = False):
        """`window` [B, T], `z` [B, T, Z] and `prompt` [B, P], returns-to-go divided by their scale -> [B, T, A]."""
        batch, steps = window.mask.shape
        state = nn.Dense(z.shape[-1], kernel_init=dense_init, name="encode_obs")(window.obs)
        told = window._replace(obs=jnp.concatenate([state, z], -1))
        tokens = [
            self.tokens(x, name).reshape(batch, -1, self.width) for name, x in (("prompt", prompt), ("embed", told))
        ]
        tokens = nn.LayerNorm(epsilon=1e-5)(jnp.concatenate(tokens, 1))
        mask = jnp.repeat(jnp.concatenate([prompt.mask, window.mask], 1), 3, 1)
        x = Transformer(self.layers, self.heads, self.dropout)(tokens, mask, training)
        x = x[:, -3 * steps :].reshape(batch, steps, 3, self.width)[:, :, 1]  # has not seen the action
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init, name="head")(x))

    def tokens(self, window: Window, name: str):
        """[B, T, 3, W]: return, state and action of each step."""
        dense = partial(nn.Dense, self.width, kernel_init=dense_init)
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0), name=f"{name}_time")(
            window.timestep
        )
        parts = {"return": window.return_to_go[..., None], "obs": window.obs, "action": window.action}
        return jnp.stack([dense(name=f"{name}_{kind}")(x) + time for kind, x in parts.items()], 2)


class Networks(NamedTuple):
    actor: MetaTransformer
    models: WorldModel
    spec: Spec


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    models: Any
    actor: Any
    updates: jax.Array
    """[] of the actor so far."""
    models_opt: optax.OptState
    actor_opt: optax.OptState


# ------------------------------------------------------------------------------------ the data


class Batch(NamedTuple):
    """Windows of tries, what is known of their tasks, and pieces of other tries at them."""

    window: Window
    """[B, K]"""
    z: jax.Array
    """[B, K, Z]"""
    prompt: Window
    """[B, P] all padding where there is none."""


class Notes(NamedTuple):
    """What the world model says of each row of the data."""

    z: jax.Array
    """[N, Z] from the steps before it."""
    error: jax.Array
    """[N] of its reward and next state, as far as they vary; 0 at a try's last one, whose next state is not there."""


class Trials(NamedTuple):
    """A dataset on the device, its tries as episodes, and the trials that they belong to."""

    tries: Sequences
    trial: jax.Array
    """[N] the first row of a row's trial."""
    count: jax.Array
    """[N] whole tries of it."""

    def around(self, row, args: Args) -> Window:
        """[..., h + 2]: rows [...] with the steps before and the one after, as far as they are of the same try."""
        return self.tries.take(row, jnp.arange(-args.history_steps, 2))

    def prompts(self, row, error, key, args: Args) -> Window:
        """[B, P] pieces of other whole tries at the tasks of the rows [B]; padding where there is no such try."""
        try_key, piece_key = jax.random.split(key)
        own = (row - self.trial[row]) // args.try_steps
        others = self.count[row] - (own < self.count[row])
        drawn = jax.random.randint(try_key, row.shape, 0, jnp.maximum(others, 1))
        first = self.trial[row] + args.try_steps * jnp.where(others > 0, drawn + (drawn >= own), 0)
        errors = error[first[:, None] + jnp.arange(args.try_steps)]
        offset = jax.vmap(partial(piece, args=args))(jax.random.split(piece_key, len(row)), errors)
        found = self.tries.take(first + offset, jnp.arange(args.prompt_steps))
        return found._replace(mask=found.mask * (others > 0)[:, None])

    def sample(self, notes: Notes, key, args: Args) -> Batch:
        """Windows that begin at rows drawn uniformly."""
        row_key, prompt_key, share_key = jax.random.split(key, 3)
        row = self.tries.rows(row_key, args.batch_size)
        window = self.tries.after(row, args.context)
        prompt = self.prompts(row, notes.error, prompt_key, args)
        shown = jax.random.uniform(share_key, (len(row), 1)) < args.prompt_share
        z = notes.z[self.tries.start[row][:, None] + window.timestep]
        return Batch(window, z, prompt._replace(mask=prompt.mask * shown))


def piece(key, error, args: Args):
    """[] where a prompt begins in a try whose steps have `error` [T]: from h on, in proportion to its sum."""
    sums = jnp.convolve(error, jnp.ones(args.prompt_steps), "valid")[args.history_steps :]
    return args.history_steps + jax.random.categorical(key, args.error_power * jnp.log(sums + 1e-8))


# ------------------------------------------------------------------------------------ losses


def model_misses(agent: Agent, models, steps: Window):
    """z [B, Z], r - r(s, a, s', z) [B] and s' - s'(s, a, z) [B, O] of the last step but one of `steps` [B, h + 2].

    s' is the last one's state, z of those before it.
    """
    before, now, after = (jax.tree.map(lambda x, part=part: x[:, part], steps) for part in (slice(-2), -2, -1))
    z = agent.nets.models.apply(models, before.obs, before.action, before.reward, method="task")
    reward, next_obs = agent.nets.models.apply(models, z, now.obs, now.action, after.obs)
    chex.assert_equal_shape([reward, now.reward])
    return z, now.reward - reward, after.obs - next_obs


def model_loss(models, agent: Agent, steps: Window, args: Args):
    """(r - r(s, a, s', z))^2 + |s' - s'(s, a, z)|^2 / O, of what varies, where there is a next state."""
    _, of_reward, of_obs = model_misses(agent, models, steps)
    known = steps.mask[:, -1]
    mean = lambda x: (known * x).sum() / jnp.maximum(known.sum(), 1.0)  # noqa: E731
    losses = {"rewards": mean(of_reward**2), "dynamics": mean((of_obs**2).mean(-1))}
    return sum(losses[what] for what in args.varies), {"reward_loss": losses["rewards"]}


def model_error(of_reward, of_obs, args: Args):
    """|r - r(s, a, s', z)| + |s' - s'(s, a, z)| [...], of what varies."""
    errors = {"rewards": jnp.abs(of_reward), "dynamics": jnp.abs(of_obs).sum(-1)}
    return sum(errors[what] for what in args.varies)


def actor_loss(actor, agent: Agent, batch: Batch, key):
    """Mean over the steps of |pi - a|^2 / A."""
    window = batch.window
    out = agent.nets.actor.apply(actor, window, batch.z, batch.prompt, training=True, rngs={"dropout": key})
    chex.assert_equal_shape([out, window.action])
    return (window.mask * ((out - window.action) ** 2).mean(-1)).sum() / window.mask.sum()


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


# ------------------------------------------------------------------------------------ the agent


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor = MetaTransformer(spec.action_dim, args.width, args.layers, args.heads, args.token_dropout, args.try_steps)
    models = WorldModel(args.latent_dim, args.recurrent_dim, args.hidden_dims, spec.obs_shape[0])
    models_key, actor_key = jax.random.split(key)
    window, prompt, before = (
        jax.tree.map(lambda x: x[None], empty(spec, n)) for n in (args.context, args.prompt_steps, args.history_steps)
    )
    whole = lambda m, b: m(m.task(b.obs, b.action, b.reward), b.obs[:, 0], b.action[:, 0], b.obs[:, 0])  # noqa: E731
    models_params = models.init(models_key, before, method=whole)
    actor_params = actor.init(actor_key, window, jnp.zeros((1, args.context, args.latent_dim)), prompt)
    return Agent(
        nets=Networks(actor, models, spec),
        models=models_params,
        actor=actor_params,
        updates=jnp.int32(0),
        models_opt=optax.adam(args.context_lr).init(models_params),
        actor_opt=optimizer(args).init(actor_params),
    )


def scaled(agent: Agent, batch: Batch, args: Args) -> Batch:
    """`batch` as the actor sees it: returns in their scale, the task's weight, no prompts in the first updates."""
    window, prompt = (x._replace(return_to_go=x.return_to_go / args.return_scale) for x in (batch.window, batch.prompt))
    prompted = (agent.updates >= args.unprompted_updates) & (args.prompt_share > 0.0)
    return Batch(window, batch.z * args.task_weight, prompt._replace(mask=prompt.mask * prompted))


def update_models(agent: Agent, steps: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the encoder and the world model."""
    (loss, info), grads = jax.value_and_grad(model_loss, has_aux=True)(agent.models, agent, steps, args)
    updates, models_opt = optax.adam(args.context_lr).update(grads, agent.models_opt)
    return agent.replace(models=optax.apply_updates(agent.models, updates), models_opt=models_opt), {
        "model_loss": loss,
        **info,
    }


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor; returns-to-go as the data has them."""
    loss, grads = jax.value_and_grad(actor_loss)(agent.actor, agent, scaled(agent, batch, args), key)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent.replace(updates=agent.updates + 1), {"actor_loss": loss, "grad_norm": optax.global_norm(grads)}


# ------------------------------------------------------------------------------------ acting


class Carry(NamedTuple):
    """What the policy remembers of one trial."""

    now: Window
    """[T] the steps of this try so far, from the left."""
    z: jax.Array
    """[T, Z] what was known of the task at each."""
    error: jax.Array
    """[T] of the world model."""
    kept: Window
    """[M, T] earlier tries with their returns-to-go; all padding where there was none yet."""
    kept_error: jax.Array
    """[M, T]"""
    prompt: Window
    """[P] of this try."""
    step: jax.Array
    """[] of the observation that comes next, in the trial."""


def empty(spec: Spec, steps: int) -> Window:
    """A window [T] of padding alone."""
    zeros, action = jnp.zeros(steps), jnp.zeros((steps, spec.action_dim))
    seen = {"obs": jnp.zeros((steps, *spec.obs_shape)), "action": action, "reward": zeros, "return_to_go": zeros}
    return Window(mask=zeros, timestep=jnp.zeros(steps, jnp.int32), **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before a trial's first observation."""
    steps, spec = args.try_steps, agent.nets.spec
    now, prompt = empty(spec, steps), empty(spec, args.prompt_steps)
    kept = jax.tree.map(lambda x: jnp.stack([x] * args.prompt_tries), now)
    zeros = jnp.zeros((steps, args.latent_dim)), jnp.zeros(steps)
    return Carry(now, *zeros, kept, jnp.zeros((args.prompt_tries, steps)), prompt, jnp.int32(0))


def learned(agent: Agent, carry: Carry, obs, reward, args: Args) -> Carry:
    """`carry` of one environment with what followed its last step: the reward and `obs` [O], the model's error."""
    at = (carry.step - 1) % args.try_steps
    now = carry.now._replace(reward=carry.now.reward.at[at].set(reward))
    guess, next_guess = agent.nets.models.apply(agent.models, carry.z[at], now.obs[at], now.action[at], obs)
    known = carry.step % args.try_steps > 0  # what follows a try's last step is another one's state
    error = known * model_error(reward - guess, obs - next_guess, args)
    return carry._replace(now=now, error=carry.error.at[at].set(error))


def next_try(agent: Agent, carry: Carry, key, args: Args) -> Carry:
    """`carry` of one environment where a try begins: the last one is kept if it is good, and a prompt drawn."""
    spec, done = agent.nets.spec, carry.now._replace(return_to_go=jnp.cumsum(carry.now.reward[::-1])[::-1])
    try_key, piece_key = jax.random.split(key)
    returns = jnp.where(carry.kept.mask[:, 0] > 0, carry.kept.return_to_go[:, 0], -jnp.inf)
    better, worst = done.return_to_go[0] > returns.min(), returns.argmin()
    keep = lambda kept, new: jnp.where(better, kept.at[worst].set(new), kept)  # noqa: E731
    kept, kept_error = jax.tree.map(keep, (carry.kept, carry.kept_error), (done, carry.error))
    which = jax.random.categorical(try_key, jnp.where(kept.mask[:, 0] > 0, 0.0, -jnp.inf))
    offset = piece(piece_key, kept_error[which], args)
    prompt = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x[which], offset, args.prompt_steps), kept)
    fresh = empty(spec, args.try_steps)
    return Carry(fresh, 0.0 * carry.z, 0.0 * carry.error, kept, kept_error, prompt, carry.step)


def begun(agent: Agent, carry: Carry, obs, args: Args) -> Carry:
    """`carry` of one environment with its next step: `obs` [O], and what the steps before it tell of the task."""
    at = carry.step % args.try_steps
    before = last_of(carry.now, at - 1, args.history_steps)
    z = agent.nets.models.apply(agent.models, before.obs, before.action, before.reward, method="task")
    new = {"mask": 1.0, "timestep": at, "obs": obs}
    now = carry.now._replace(**{name: getattr(carry.now, name).at[at].set(x) for name, x in new.items()})
    return carry._replace(now=now, z=carry.z.at[at].set(z), step=carry.step + 1)


def last_of(steps, at, n: int):
    """The `n` rows of `steps` [T, ...] that end with row `at`; zeros where there are not so many."""
    index = at - n + 1 + jnp.arange(n)
    there = lambda x: (index >= 0).reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    return jax.tree.map(lambda x: jnp.where(there(x), x[jnp.maximum(index, 0)], 0), steps)


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and what to remember; what was earned in a try is asked for no more in it."""
    keys = jax.random.split(key, len(obs))

    def see(carry, obs, reward, key):
        after = learned(agent, carry, obs, reward, args)
        ended = (carry.step > 0) & (carry.step % args.try_steps == 0)
        again = next_try(agent, after, key, args)
        carry = begun(agent, jax.tree.map(lambda a, b: jnp.where(ended, a, b), again, after), obs, args)
        earned = jnp.cumsum(carry.now.reward) - carry.now.reward
        asked = carry.now._replace(return_to_go=args.target_return - earned)
        window, z = last_of((asked, carry.z), (carry.step - 1) % args.try_steps, args.context)
        return carry, Batch(window, z, carry.prompt)

    carry, batch = jax.vmap(see)(carry, obs, reward, keys)
    batch = scaled(agent, batch, args)
    action = agent.nets.actor.apply(agent.actor, *batch)[:, -1]
    actions = carry.now.action.at[jnp.arange(len(obs)), (carry.step - 1) % args.try_steps].set(action)
    return action, carry._replace(now=carry.now._replace(action=actions))


# ------------------------------------------------------------------------------------ the path of the data


def noted(agent: Agent, data: Trials, args: Args) -> Notes:
    """What the world model says of all rows."""

    def one(row):
        steps = data.around(row[None], args)
        z, of_reward, of_obs = model_misses(agent, agent.models, steps)
        return Notes(z[0], (steps.mask[:, -1] * model_error(of_reward, of_obs, args))[0])

    return jax.lax.map(one, jnp.arange(len(data.trial)), batch_size=BLOCK)


def train_models(agent: Agent, keys, args: Args, data: Trials) -> tuple[Agent, dict]:
    """One lane: one update of the encoder and the world model per key; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update_models(agent, data.around(data.tries.rows(row_key, args.batch_size), args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, data: Trials) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics. The world model, which is frozen, is asked about the data once."""
    notes = noted(agent, data, args)

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, data.sample(notes, row_key, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), "model_error": notes.error.mean()}


def trials_of(data: Dataset, args: Args) -> tuple[Dataset, Trials]:
    """`data` with every try an episode, and the same on the device.

    Raises:
      InputError: there is no episode of two tries.
    """
    starts = data.starts()[data.episode()]
    count = (data.ends()[data.episode()] + 1 - starts) // args.try_steps
    if count.max() < 2:
        raise InputError(f"--try-steps {args.try_steps}: no episode of '{data.task.id}' has two such tries.")
    last = data.last | ((np.arange(len(starts)) - starts + 1) % args.try_steps == 0)
    tries = dataclasses.replace(data, last=last)
    returns = tries.episode_returns()
    known = data.task.data | {"episode_returns": [float(returns.min()), float(returns.max())]}
    tries = dataclasses.replace(tries, task=dataclasses.replace(data.task, data=known))
    on_device = sequences(tries, "obs", "action", "reward", "return_to_go")
    return tries, Trials(on_device, *(jnp.asarray(x, jnp.int32) for x in (starts, count)))


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False).normalize_obs(1e-6)
    tries, trials = trials_of(data, args)
    require_context(tries, args.context)
    require_heads(args.width, args.heads)
    if args.history_steps + args.prompt_steps > args.try_steps:
        raise InputError(
            f"--history-steps {args.history_steps} and --prompt-steps {args.prompt_steps} are more than a try's steps, "
            f"--try-steps {args.try_steps}."
        )
    if not args.varies:
        raise InputError("--varies: name what the world model learns, rewards or dynamics.")
    asked = {"target_return": target_returns(tries, args.target_return)}
    args = dataclasses.replace(args, **asked, return_scale=return_scale(tries, args.return_scale))
    with Run(__file__, args, tries.task, StatefulPolicy(initial_carry, act), before=args.context_updates) as run:
        trials = run.replicate(trials)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        model_lanes, train_lanes = (
            run.over_lanes(learn, in_axes=(0, 0, 0, None), donate=True) for learn in (train_models, train)
        )
        for keys in run.chunks():
            step = model_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, trials)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
