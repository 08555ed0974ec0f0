"""GCPC: goal-conditioned predictive coding.

Zeng, Zhang, Wang and Sun, "Goal-Conditioned Predictive Coding for Offline Reinforcement Learning", NeurIPS 2023, arXiv
2307.03406. Two stages. First a masked autoencoder of trajectories: a transformer reads a few states of the last steps
and the goal, and has to write down, in a few slots, what a decoder needs to draw the whole way, the last steps and the
future that is hidden from it (section 3.2). Then the slots, frozen, are a plan in the hand of a policy: a network on
the state, the goal and the slots is cloned (section 3.3).

Choose it when goals are far and cloning by goal loses its way: the plan is learned apart from the actions.

Parity: both stages are equal to the authors' code, update for update, but for the order of the sines and cosines of a
place (results/parity.md).

Deviations from the paper (and the authors' code):
- what is drawn is what each state achieves, in goals of any kind (the authors choose coordinates for each task);
- goals are later states of the episode, uniformly, also where few of the last steps are kept; the way is drawn to the
  end of the window, also beyond the goal (the authors draw it up to the goal);
- where few of the last steps are kept, they end where the future begins and its places stay (they begin the window, and
  the future follows them);
- the code of a place has its sines first (sines and cosines by turns); slots and blocks begin with GPT-2's weights
  (PyTorch's default ones), and the tokens that go into a transformer pass dropout (the hidden units of its blocks);
- on Kitchen the autoencoder has the policy's batches (four times as large), whose step size stays (halved half-way);
- no return-conditioned variant (gym), and no choice of the best of five evaluations.

    python algorithms/sequence/gcpc.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/sequence/gcpc.py --dataset point-large-navigate --seeds 4 --slots 0 --autoencoder-updates 0
"""

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
from shared.arguments import Count, Dropout, Float, GoalArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, require_context, require_heads, sequences
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    autoencoder_updates: Count = 50_000
    """Updates of the autoencoder before the first one of the policy; 0 only where there are no slots."""
    context: int = 10
    """K: steps that the policy sees."""
    future_steps: int = 70
    """Steps after the present one that are drawn in the first stage."""
    slots: int = 4
    """Tokens that hold the plan; 0: the policy has none."""
    width: int = 256
    """Size of a token."""
    layers: Size = 2
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    autoencoder_lr: Float = 1e-4
    """Adam's step size: the autoencoder."""
    actor_lr: Float = 1e-3
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    max_grad_norm: Float = 1.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (1024,)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {
    "antmaze": {"eval_episodes": 100},
    "kitchen": {
        "context": 5,
        "future_steps": 30,
        "autoencoder_updates": 10_000,
        "updates": 40_000,
        "actor_lr": 1e-4,
        "batch_size": 256,
        "eval_episodes": 50,
    },
}

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of the last steps that are left out."""


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


class Autoencoder(nn.Module):
    """From some states of the last steps and the goal, by way of the slots, to what all steps achieve."""

    slots: int
    width: int
    layers: int
    heads: int
    dropout: float
    steps: int
    """K + F: of the last steps, the present one the last of them, and of the future."""
    outputs: int

    def setup(self):
        self.slot = self.param("slot", gpt_init, (self.slots, self.width))
        self.hidden = self.param("hidden", gpt_init, (self.width,))
        self.embed_goal = nn.Dense(self.width, kernel_init=dense_init)
        self.embed_obs = nn.Dense(self.width, kernel_init=dense_init)
        self.encoder = Transformer(self.layers, self.heads, self.dropout)
        self.decoder = Transformer(1, self.heads, self.dropout)
        self.head = nn.Dense(self.outputs, kernel_init=dense_init)

    def __call__(self, obs, mask, goal, training: bool = False):
        """[B, K + F, G]; of `obs` [B, K, O] those with `mask` [B, K] are seen."""
        slots = self.plan(obs, mask, goal, training)
        hidden = jnp.broadcast_to(self.hidden, (len(obs), self.steps, self.width))
        tokens = jnp.concatenate([slots, hidden], 1) + sinusoid(self.slots + self.steps, self.width)
        return self.head(self.decoder(tokens, jnp.ones(tokens.shape[:2]), training)[:, self.slots :])

    def plan(self, obs, mask, goal, training: bool = False):
        """[B, S, W] the slots."""
        slots = jnp.broadcast_to(self.slot, (len(obs), self.slots, self.width))
        tokens = jnp.concatenate([slots, self.embed_goal(goal)[:, None], self.embed_obs(obs)], 1)
        tokens = tokens + sinusoid(tokens.shape[1], self.width)
        known = jnp.concatenate([jnp.ones((len(obs), self.slots + 1)), mask], 1)
        return self.encoder(tokens, known, training)[:, : self.slots]


class Actor(nn.Module):
    """Actions from the state, the goal and the slots."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, goal, slots):
        dense = partial(nn.Dense, kernel_init=dense_init)
        now = nn.relu(dense(self.hidden_dims[0])(jnp.concatenate([obs, goal], -1)))
        plan = nn.relu(dense(self.hidden_dims[0])(slots.reshape(len(obs), -1))) if slots.size else now[:, :0]
        x = jnp.concatenate([now, plan], -1)
        for size in self.hidden_dims:
            x = nn.relu(dense(size)(x))
        return dense(self.action_dim)(x)


class Networks(NamedTuple):
    autoencoder: Autoencoder
    actor: Actor


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    autoencoder: Any
    actor: Any
    autoencoder_opt: optax.OptState
    actor_opt: optax.OptState


class GoalWindows(NamedTuple):
    """A dataset on the device with what each row's state achieves."""

    data: Sequences
    achieved: jax.Array | None
    """[N, G]; None: the observation."""

    def achieves(self, row, offsets):
        """[..., T, G] of the rows `row` [...] + `offsets` [T] of the same episode, its ends repeated."""
        start, end = self.data.start[row][..., None], self.data.end[row][..., None]
        at = jnp.clip(row[..., None] + offsets, start, end)
        return self.data.transitions.take(at).obs if self.achieved is None else self.achieved[at]


class PlanBatch(NamedTuple):
    """Steps [B] with the last steps before each, the goal, and what is to be drawn."""

    past: Window
    """[B, K]; its mask is 0 where a state is left out, too."""
    goal: jax.Array
    """[B, G] of a later state of the episode."""
    drawn: jax.Array
    """[B, K + F, G]"""
    there: jax.Array
    """[B, K + F] 1: a step of the episode."""


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K states, at the right end."""

    obs: jax.Array
    mask: jax.Array


def reconstruction_loss(autoencoder, agent: Agent, batch: PlanBatch, key, args: Args):
    """Mean squared error over the steps that are there, hidden or not (section 3.2)."""
    seen = batch.past.obs, batch.past.mask, batch.goal
    drawn = agent.nets.autoencoder.apply(autoencoder, *seen, training=True, rngs={"dropout": key})
    chex.assert_equal_shape([drawn, batch.drawn])
    error = ((drawn - batch.drawn) ** 2).mean(-1)
    future = batch.there.at[:, : args.context].set(0.0)
    ahead = (future * error).sum() / jnp.maximum(future.sum(), 1.0)
    return (batch.there * error).sum() / batch.there.sum(), {"future_error": ahead}


def slots_of(agent: Agent, past: Window, goal):
    """[B, S, W] of the frozen autoencoder, without dropout."""
    return agent.nets.autoencoder.apply(agent.autoencoder, past.obs, past.mask, goal, method="plan")


def actor_loss(actor, agent: Agent, batch: PlanBatch, args: Args):
    """|pi(s, g, slots) - a|^2 / A at the present step (section 3.3)."""
    out = agent.nets.actor.apply(actor, batch.past.obs[:, -1], batch.goal, slots_of(agent, batch.past, batch.goal))
    action = batch.past.action[:, -1]
    chex.assert_equal_shape([out, action])
    return ((out - action) ** 2).mean()


def clipped_adam(rate, args: Args):
    """Adam after the clip of a network's gradient."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(rate))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    sizes = args.slots, args.width, args.layers, args.heads, args.token_dropout
    steps, outputs = args.context + args.future_steps, spec.goal_shape[0]
    nets = Networks(Autoencoder(*sizes, steps, outputs), Actor(args.hidden_dims, spec.action_dim))
    plan_key, actor_key = jax.random.split(key)
    obs, mask = jnp.zeros((1, args.context, *spec.obs_shape)), jnp.ones((1, args.context))
    goal = jnp.zeros((1, *spec.goal_shape))
    autoencoder = nets.autoencoder.init(plan_key, obs, mask, goal)
    actor = nets.actor.init(actor_key, obs[:, -1], goal, jnp.zeros((1, args.slots, args.width)))
    opts = clipped_adam(args.autoencoder_lr, args).init(autoencoder), clipped_adam(args.actor_lr, args).init(actor)
    return Agent(nets, spec, autoencoder, actor, *opts)


def sample(key, windows: GoalWindows, args: Args, hidden: bool) -> PlanBatch:
    """Rows, uniformly, with a goal; of the last steps as few are kept, at times, as an episode's beginning has.

    `hidden`: of those that are kept a share is left out, which for every row is one of RATIOS; one at least stays.
    """
    row_key, goal_key, keep_key, share_key, hide_key = jax.random.split(key, 5)
    row = windows.data.rows(row_key, args.batch_size)
    left = windows.data.end[row] - row
    ahead = jnp.minimum(1 + jnp.floor(jax.random.uniform(goal_key, row.shape) * left).astype(row.dtype), left)
    goal = windows.achieves(row + ahead, jnp.array([0]))[:, 0]
    past = windows.data.until(row, args.context)
    ratios = jnp.array(RATIOS)
    short = ratios[jax.random.choice(keep_key, len(RATIOS), row.shape, p=jnp.array([0.8, 0.05, 0.05, 0.05, 0.05]))]
    kept = jnp.maximum(jnp.floor(args.context * (1.0 - short) + 1e-4), 1.0)
    mask = past.mask * (jnp.arange(args.context) >= args.context - kept[:, None])
    if hidden:
        share = ratios[jax.random.randint(share_key, row.shape, 0, len(RATIOS))]
        order = jnp.where(mask > 0, jax.random.uniform(hide_key, mask.shape), -1.0)
        least = jnp.sort(order, 1)[:, ::-1]
        count = jnp.maximum(jnp.floor(mask.sum(1) * (1.0 - share) + 1e-4), 1.0).astype(jnp.int32)
        mask = mask * (order >= jnp.take_along_axis(least, count[:, None] - 1, 1))
    offsets = jnp.arange(1 - args.context, args.future_steps + 1)
    there = windows.data.take(row, offsets).mask if hidden else jnp.ones((args.batch_size, 1))
    drawn = windows.achieves(row, offsets) if hidden else goal[:, None]
    return PlanBatch(past._replace(mask=mask), goal, drawn, there)


def fit(agent: Agent, batch: PlanBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the autoencoder (before the policy's first)."""
    grad = jax.value_and_grad(reconstruction_loss, has_aux=True)
    (loss, info), grads = grad(agent.autoencoder, agent, batch, key, args)
    updates, autoencoder_opt = clipped_adam(args.autoencoder_lr, args).update(grads, agent.autoencoder_opt)
    autoencoder = optax.apply_updates(agent.autoencoder, updates)
    agent = agent.replace(autoencoder=autoencoder, autoencoder_opt=autoencoder_opt)
    return agent, {"reconstruction_loss": loss, **info}


def update(agent: Agent, batch: PlanBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor."""
    loss, grads = jax.value_and_grad(actor_loss)(agent.actor, agent, batch, args)
    updates, actor_opt = clipped_adam(args.actor_lr, args).update(grads, agent.actor_opt)
    return agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt), {"actor_loss": loss}


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(jnp.zeros((args.context, *agent.spec.obs_shape)), jnp.zeros(args.context))


def act(agent: Agent, carry: Carry, obs, goal, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and the last K states."""
    seen = jnp.roll(carry.obs, -1, axis=1).at[:, -1].set(obs)
    mask = jnp.roll(carry.mask, -1, axis=1).at[:, -1].set(1.0)
    plan = agent.nets.autoencoder.apply(agent.autoencoder, seen, mask, goal, method="plan")
    action = agent.nets.actor.apply(agent.actor, obs, goal, plan)
    return jnp.clip(action, -1.0, 1.0), Carry(seen, mask)


def train(agent: Agent, keys, args: Args, windows: GoalWindows, stage: int) -> tuple[Agent, dict]:
    """One lane: one update of the autoencoder (stage 1) or of the actor (2) per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        batch = sample(batch_key, windows, args, hidden=stage == 1)
        return (fit if stage == 1 else update)(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = goal_dataset(load_dataset(args).require(discrete=False, reward=False), args.tasks)
    require_context(data.data, args.context)
    require_heads(args.width, args.heads)
    if args.width % 2 or args.future_steps < 0 or args.slots < 0:
        given = f"{args.width}, {args.future_steps} and {args.slots}"
        raise InputError(f"--width must be even, --future-steps and --slots at least 0, not {given}.")
    if args.future_steps:
        require_context(data.data, args.future_steps, "--future-steps")
    if args.slots and not args.autoencoder_updates:
        raise InputError(f"--autoencoder-updates 0: nothing would have learned the plan of --slots {args.slots}.")
    if not args.slots and args.autoencoder_updates:
        raise InputError(f"--slots 0: without a plan --autoencoder-updates must be 0, not {args.autoencoder_updates}.")
    data.require_steps(1, "a goal later by")
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act), before=args.autoencoder_updates) as run:
        achieved = None if data.achieved is None else jnp.asarray(data.achieved)
        windows = run.replicate(GoalWindows(sequences(data.data, "obs", "action"), achieved))
        agent = run.init(partial(init, spec=data.task.spec))
        agent = run.restore(agent)
        stages = [run.over_lanes(partial(train, stage=s), in_axes=(0, 0, 0, None), donate=True) for s in (1, 2)]
        for keys in run.chunks():
            agent, metrics = stages[run.done >= 0](agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
