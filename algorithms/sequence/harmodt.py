"""HarmoDT: harmony multi-task Decision Transformer.

Hu, Fan, Shen, Zhang, Wang and Tao, "HarmoDT: Harmony Multi-Task Decision Transformer for Offline RL", ICML 2024, arXiv
2405.18080. One Decision Transformer for many tasks, of which each has a mask of its own over the weights:
where tasks pull a weight in different directions, it is hidden from those that disagree with the rest. Now and then
each mask lets go of the weights whose gradient agrees least with that of all tasks, and takes in as many
of the hidden ones whose gradient agrees most; the number falls to zero by a cosine. The task is known: it picks the
mask, and a prompt, a few steps of a demonstration, that is put before the window (Prompt-DT, arXiv 2206.13499).

With --sparsity 0 it is Prompt-DT, with --mask-change 0 the masks are random ones for good.

Choose it when one policy shall do many tasks that disagree about the same states, and the task is known.

Parity: one task's update, and the exchange of weights by given gradients, are equal to the authors' code, but for the
prompt's normalisation and what is clipped (results/parity.md).

Deviations from the paper (and the authors' code):
- each update is of all tasks, their masked gradients averaged (one task after the other);
- the masks are of the weights of the attention and feed-forward layers, everywhere of the same density (of all
  parameters, denser in small layers; those of embeddings and heads hide nothing there, but keep entries as they are);
- the prompt's tokens are normalised before the transformer, as the window's (these alone);
- gradients are clipped to a norm after the masks (before; hidden weights count);
- what is taken in is chosen by gradients without the mask (those of hidden weights are zero in the code, so that the
  choice is arbitrary); the mean gradient is no task's own (the code's sum overwrites that of the first);
- the number of changed weights is a share of the trunk's: by default 94 of 4.7 million at most, as the authors' 100,
  so that a mask exchanges about 2 % of them over a run (small networks and short runs need a larger share);
- that number falls from the first update on (in the code, which defines its schedule twice, it rises to its largest
  in the middle and falls again); gradients that masks are chosen by are not clipped (each task's is);
- by default there are 8 tasks and windows of 10 steps, for the dataset here (20);
- all tasks are asked for the same return, on the same scale, and have one normalisation of observations (each its own);
- a prompt is the beginning of the task's best episode (pieces of some); unseen tasks have no mask here.

    python algorithms/sequence/harmodt.py --seeds 8 --updates 5000 --warmup-updates 500 --width 64
    python algorithms/sequence/harmodt.py --seeds 8 --updates 5000 --warmup-updates 500 --width 64 --sparsity 0 0.2
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
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Dropout, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
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
from shared.task import Spec, Task


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "turned-point-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 1_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    n_tasks: Size = 8
    """Tasks: the last numbers of an observation, as many, say by a one which it is; 1: none do."""
    sparsity: Fraction = 0.2
    """Share of the trunk's weights that a task's mask hides, in [0, 1]; 0: Prompt-DT."""
    mask_change: Fraction = 2e-5
    """Share of the trunk's weights that a mask exchanges at first, in [0, 1]; it falls to 0 by a cosine."""
    harmony: Float = 10.0
    """Weight of a gradient's agreement with that of all tasks, beside its square."""
    mask_every: Size = 500
    """Updates between two changes of the masks."""
    prompt_steps: Size = 5
    """Steps of the task, a prompt, that are put before the window."""
    context: int = 10
    """K: steps that the policy sees."""
    target_return: Float = 0.0
    """Return that the policy is asked for, in the environment's unit; 0: that of the data's best episode."""
    return_scale: Float = 0.0
    """Returns are divided by it; 0: by the largest magnitude of the data's returns-to-go."""
    width: int = 256
    """Size of a token."""
    layers: Size = 6
    """Blocks of the transformer."""
    heads: int = 8
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
    task_batch: Size = 8
    """Windows of each task per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {}

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


class PromptTransformer(nn.Module):
    """What to do at each step of a window, after the prompt: actions in [-1, 1]."""

    action_dim: int
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, prompt: Window, training: bool = False):
        """`window` [B, T] and `prompt` [B, P], their returns-to-go divided by their scale -> [B, T, A]."""
        batch, steps = window.mask.shape
        tokens = [
            self.tokens(x, name).reshape(batch, -1, self.width) for name, x in (("prompt", prompt), ("embed", window))
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
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        parts = {"return": window.return_to_go[..., None], "obs": window.obs, "action": window.action}
        return jnp.stack([dense(name=f"{name}_{kind}")(x) + time for kind, x in parts.items()], 2)


class Agent(flax.struct.PyTreeNode):
    net: PromptTransformer = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    actor: Any
    masks: jax.Array
    """[K, D] of each task over the trunk's weights."""
    prompts: Window
    """[K, P] of each task, returns-to-go as the data has them."""
    updates: jax.Array
    """[] so far."""
    actor_opt: optax.OptState


class TaskData(NamedTuple):
    """A dataset on the device, and its rows by task."""

    data: Sequences
    order: jax.Array
    """[N] all rows, task after task."""
    first: jax.Array
    """[K] where each begins in it."""
    count: jax.Array
    """[K] its rows."""

    def windows(self, key, args: Args) -> Window:
        """[K, B, T] that begin at rows of each task, uniformly, without what says the task."""
        place = jax.random.randint(key, (args.n_tasks, args.task_batch), 0, self.count[:, None])
        found = self.data.after(self.order[self.first[:, None] + place], args.context)
        return found._replace(obs=parted(found.obs, args)[0])


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    wanted: jax.Array
    """[] the return that is still asked for, in the environment's unit."""
    step: jax.Array
    """[] of the observation that comes next."""


def weights_of(actor) -> tuple[jax.Array, Any]:
    """The weights [D] of the trunk's attention and feed-forward layers, and what puts others in their place."""
    paths, structure = jax.tree_util.tree_flatten_with_path(actor)
    inside = [any("Block" in str(key) for key in path) and path[-1].key == "kernel" for path, _ in paths]
    flat, shaped = ravel_pytree([x for (_, x), own in zip(paths, inside, strict=True) if own])

    def put(weights):
        new = iter(shaped(weights))
        leaves = [next(new) if own else x for (_, x), own in zip(paths, inside, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    return flat, put


def masked(actor, mask):
    """`actor` with the weights alone that `mask` [D] leaves: that of one task."""
    weights, put = weights_of(actor)
    return put(weights * mask)


def actor_loss(actor, agent: Agent, window: Window, prompt: Window, key):
    """Mean over the steps of |pi - a|^2 / A, of one task's windows [B, T] and its prompt [P]."""
    prompts = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(window.mask), *x.shape)), prompt)
    out = agent.net.apply(actor, window, prompts, training=True, rngs={"dropout": key})
    chex.assert_equal_shape([out, window.action])
    return (window.mask * ((out - window.action) ** 2).mean(-1)).sum() / window.mask.sum()


def task_gradients(agent: Agent, windows: Window, key, args: Args):
    """Losses [K] and gradients [K, ...] of all tasks, each at its own masked weights, of the hidden ones, too."""
    scaled = windows._replace(return_to_go=windows.return_to_go / args.return_scale)
    prompts = agent.prompts._replace(return_to_go=agent.prompts.return_to_go / args.return_scale)

    def one(mask, window, prompt, key):
        return jax.value_and_grad(actor_loss)(masked(agent.actor, mask), agent, window, prompt, key)

    return jax.vmap(one)(agent.masks, scaled, prompts, jax.random.split(key, args.n_tasks))


def cosines(gradients):
    """[] mean cosine of the angles between the gradients [K, D] of different tasks; 0 with one task."""
    unit = gradients / jnp.maximum(jnp.linalg.norm(gradients, axis=1, keepdims=True), 1e-12)
    k = len(unit)
    return ((unit @ unit.T).sum() - (unit**2).sum()) / max(k * (k - 1), 1)


def exchanged(masks, gradients, count, args: Args):
    """Masks [K, D] of which each gives away `count` weights and takes in as many.

    Given away are those with the least harmony g g_i + g_i^2, taken in those with the largest g g_i; g_i: `gradients`
    [K, D] of the tasks, g: the mean over the tasks of what their masks leave of them.
    """
    own = masks * gradients
    mean = own.mean(0)
    worth = jnp.where(masks > 0, args.harmony * mean * own + own**2, jnp.inf)
    promise = jnp.where(masks > 0, -jnp.inf, mean * gradients)
    rank = lambda x: x.argsort(-1).argsort(-1)  # noqa: E731
    count = jnp.minimum(count, jnp.minimum(masks.sum(-1), (1.0 - masks).sum(-1)))[:, None]
    return masks - (rank(worth) < count) + (rank(-promise) < count)


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def init(key, args: Args, spec: Spec, prompts: Window | None = None) -> Agent:
    """The agent of one lane; `prompts` [K, P] of the tasks."""
    seen = (spec.obs_shape[0] - one_hot(args),)
    spec = spec._replace(obs_shape=seen)
    net = PromptTransformer(
        spec.action_dim, args.width, args.layers, args.heads, args.token_dropout, max(args.max_timestep, 1)
    )
    if prompts is None:
        prompts = jax.tree.map(lambda x: jnp.stack([x] * args.n_tasks), empty(spec, args.prompt_steps))
    net_key, mask_key = jax.random.split(key)
    window, prompt = jax.tree.map(lambda x: x[None], (empty(spec, args.context), empty(spec, args.prompt_steps)))
    actor = net.init(net_key, window, prompt)
    size = weights_of(actor)[0].size
    rank = jax.random.uniform(mask_key, (args.n_tasks, size)).argsort(-1).argsort(-1)
    masks = (rank >= jnp.round(args.sparsity * size)).astype(jnp.float32)
    return Agent(net, spec, actor, masks, prompts, jnp.int32(0), optimizer(args).init(actor))


def update(agent: Agent, windows: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor; `windows` [K, B, T] of all tasks with returns-to-go as the data has them."""
    losses, grads = task_gradients(agent, windows, key, args)
    grads = jax.tree.map(lambda g: g.mean(0), jax.vmap(masked)(grads, agent.masks))
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, agent.actor)
    updates = masked(updates, agent.masks.max(0))  # a weight that is hidden from all tasks stays as it is
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    info = {"actor_loss": losses.mean(), "worst_loss": losses.max(), "grad_norm": optax.global_norm(grads)}
    return agent.replace(updates=agent.updates + 1), info


def harmonize(agent: Agent, windows: Window, key, args: Args) -> tuple[Agent, dict]:
    """The masks of all tasks exchange as many weights as it is time for."""
    _, grads = task_gradients(agent, windows, key, args)
    gradients = jax.vmap(lambda g: weights_of(g)[0])(grads)
    size, done = agent.masks.shape[1], agent.updates / args.updates
    count = jnp.round(args.mask_change * size * 0.5 * (1.0 + jnp.cos(jnp.pi * done)))
    masks = exchanged(agent.masks, gradients, count, args)
    info = {"cosine": cosines(agent.masks * gradients), "whole_cosine": cosines(gradients), "density": masks.mean()}
    return agent.replace(masks=masks), {**info, "exchanged": jnp.abs(masks - agent.masks).mean() / 2.0}


def one_hot(args: Args) -> int:
    """Numbers of an observation that say which task it is."""
    return args.n_tasks if args.n_tasks > 1 else 0


def parted(obs, args: Args):
    """Observations [..., O] -> (without the task [..., O - K], the task [...])."""
    n = one_hot(args)
    return (obs[..., :-n], obs[..., -n:].argmax(-1)) if n else (obs, jnp.zeros(obs.shape[:-1], jnp.int32))


def empty(spec: Spec, steps: int) -> Window:
    """A window [T] of padding alone."""
    whole, seen = jnp.zeros(steps, jnp.int32), {"obs": jnp.zeros((steps, *spec.obs_shape))}
    seen |= {"action": jnp.zeros((steps, spec.action_dim)), "return_to_go": jnp.zeros(steps)}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.spec, args.context), jnp.float32(args.target_return), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and what to remember; what was earned is asked for no more.

    Each task's network in its turn acts for all, and is heard where the task is its own.
    """
    wanted, (obs, task) = carry.wanted - reward, parted(obs, args)
    now = {"obs": obs, "return_to_go": wanted / args.return_scale, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    prompts = agent.prompts._replace(return_to_go=agent.prompts.return_to_go / args.return_scale)

    def as_task(mask_and_prompt):
        mask, prompt = mask_and_prompt
        prompt = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(obs), *x.shape)), prompt)
        return agent.net.apply(masked(agent.actor, mask), Window(**moved), prompt)[:, -1]

    action = jax.lax.map(as_task, (agent.masks, prompts))[task, jnp.arange(len(obs))]
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, wanted, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: TaskData) -> tuple[Agent, dict]:
    """One lane: one update per key, and a change of the masks after every --mask-every of them; mean metrics."""

    def step(agent, key):
        row_key, update_key, mask_key = jax.random.split(key, 3)
        agent, info = update(agent, data.windows(row_key, args), update_key, args)
        return agent, (info, mask_key)

    def rounds(agent, keys):
        agent, (info, mask_keys) = jax.lax.scan(step, agent, keys)
        row_key, mask_key = jax.random.split(mask_keys[-1])
        agent, more = harmonize(agent, data.windows(row_key, args), mask_key, args)
        return agent, {**jax.tree.map(jnp.mean, info), **more}

    agent, metrics = jax.lax.scan(rounds, agent, keys.reshape(-1, args.mask_every))
    return agent, jax.tree.map(jnp.mean, metrics)


def by_task(data: Dataset, args: Args) -> tuple[TaskData, Window]:
    """`data` by task, and the prompts [K, P]: the beginnings of the tasks' best episodes.

    Raises:
      InputError: an episode is of several tasks, or there is a task without data.
    """
    task = parted(data.obs, args)[1]
    if (task != task[data.starts()][data.episode()]).any():
        raise InputError(f"--n-tasks {args.n_tasks}: an episode of '{data.task.id}' is of more than one task.")
    count = np.bincount(task, minlength=args.n_tasks)
    if not count.all():
        raise InputError(f"'{data.task.id}' has no row of task {int(count.argmin()) + 1} of --n-tasks {args.n_tasks}.")
    begun, returns = task[data.starts()], data.episode_returns()
    best = [np.flatnonzero(begun == k) for k in range(args.n_tasks)]
    best = data.starts()[[own[returns[own].argmax()] for own in best]]
    rows = sequences(data, "obs", "action", "return_to_go")
    first = np.cumsum(count) - count
    found = TaskData(rows, *(jnp.asarray(x, jnp.int32) for x in (np.argsort(task, kind="stable"), first, count)))
    prompts = rows.take(jnp.asarray(best), jnp.arange(args.prompt_steps))
    return found, prompts._replace(obs=parted(prompts.obs, args)[0])


def of_tasks(task: Task, args: Args) -> Task:
    """`task`, evaluated in each of the environment's tasks.

    Raises:
      InputError: the environment has another number of them.
    """
    if task.env_spec is None:
        return task
    env = task.make_env()
    tasks = max(1, len(getattr(env.unwrapped, "task_infos", ())))
    env.close()
    if tasks != args.n_tasks:
        raise InputError(f"--n-tasks {args.n_tasks}: {task.env_spec.id} has {tasks}.")
    if tasks == 1:
        return task
    return dataclasses.replace(task, tasks=tuple(range(1, args.n_tasks + 1)))


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if n := one_hot(args):
        told = data.obs[:, -n:]
        if data.obs.shape[1] <= n or not np.isin(told, (0.0, 1.0)).all() or not (told.sum(1) == 1.0).all():
            raise InputError(f"--n-tasks {n}: the last {n} numbers of an observation are not a one among zeros.")
    data = data.normalize_obs(1e-6)
    for steps, option in ((args.context, "--context"), (args.prompt_steps, "--prompt-steps")):
        require_context(data, steps, option)
    require_heads(args.width, args.heads)
    asked = {"target_return": target_returns(data, args.target_return)}
    asked |= {"return_scale": return_scale(data, args.return_scale)}
    args = dataclasses.replace(args, **asked, max_timestep=args.max_timestep or horizon(data))
    task, policy = of_tasks(data.task, args), StatefulPolicy(initial_carry, act)
    with Run(__file__, args, task, policy, unit=args.mask_every) as run:
        windows, prompts = by_task(data, args)
        windows = run.replicate(windows)
        agent = run.init(partial(init, spec=data.spec, prompts=prompts))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
