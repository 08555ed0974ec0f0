"""DEAS: values of action sequences, learned without any policy, choose among the chunks of a flow.

Kim, Lee, Seo, Lee and Zhu, "DEAS: DEtached value learning with Action Sequence for Scalable Offline RL", ICLR 2026,
arXiv 2510.07730. A decision is a chunk of H actions: Q(s, a_t .. a_{t+H-1}) is backed up over H steps at once, by
V(s_{t+H}), an upper expectile of Q over the data's chunks (IQL's). No policy enters a target, so that none can exploit
the errors of Q in the large space of chunks. Q and V are distributions over classes of values (HL-Gauss): V's label is
the target critic's own distribution, weighted by the expectile; Q's is a Gaussian around its target. Rewards within a
chunk are discounted by --chunk-discount, what comes after it by --discount for each of its steps. The policy is a flow
that clones chunks: the best of N by Q is executed to its end, then the next is chosen.

--next-value policy puts the policy back into the target: Q of its own best candidate at s_{t+H}, as Q-chunking has it
(Li, Zhou and Levine, NeurIPS 2025, arXiv 2507.07969); --no-classification regresses Q and V as IQL does.

Choose it when rewards are sparse and far away and the data's behaviour is coherent over several steps; for feedback at
every step use IDQL.

Deviations from the paper (its OGBench code is not public; what the text leaves open is that of the authors' critic for
GR00T, csmile-1006/Isaac-GR00T-DEAS: the lesser critic's distribution, one step of all losses from the old parameters):
- the classes span the returns of the data's own episodes under both discounts, the last reward of one that was cut
  going on for ever; the authors take [-1 / (1 - discount), 0] for rewards of -1 and 0, else [0, 1];
- a chunk that is cut by a time limit or by the log's end is left out; one within which the task ends is filled up with
  its last action, so that chunks near the end have a value;
- N and the expectile on OGBench are not stated: 32, as FQL's family has it, and the script's 0.7;
- layers are normalised after the activation, FQL's way; the authors' V is a residual network.

    python algorithms/generative/deas.py --dataset point-umaze-mixed --seeds 4 --updates 20000 --hidden-dims 64 64
    python algorithms/generative/deas.py --dataset ogbench-cube-single-play-singletask --seeds 4
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
from shared.arguments import Count, Expectile, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import require_context, sequences, window_starts
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    chunk_length: Size = 8
    """H: actions of a chunk; 1: single actions."""
    replan_every: Count = 0
    """Steps of an episode after which a new plan is made; 0: at a plan's end."""
    next_value: Literal["expectile", "policy"] = "expectile"
    """Of the state after a chunk: V, or Q of the best of the policy's own candidates there."""
    classification: bool = True
    """Q and V are distributions over classes of values; else numbers, regressed."""
    value_classes: Size = 101
    """Classes of values, of equal width."""
    label_std: Float = 0.75
    """Standard deviation of the label of a number, in widths of a class."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    n_candidates: Size = 32
    """Candidate actions at each step of an episode, of which one is taken."""
    flow_steps: Size = 10
    """Euler steps of the flow policy's integration."""
    chunk_discount: Fraction = 0.9
    """gamma_1 of the rewards within a chunk, in [0, 1]."""
    discount: Fraction = 0.999
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of every network that has no argument of its own for them."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    **dict.fromkeys(("scene-play", "puzzle"), {"chunk_length": 8}),
    "cube": {"chunk_length": 4},
}

dense_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class MLP(nn.Module):
    """GELU network on the concatenated inputs; layer normalisation after the activations if asked for."""

    hidden_dims: tuple[int, ...]
    outputs: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.gelu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Networks(NamedTuple):
    actor: MLP
    """Velocity v(s, x, t) of the flow of chunks."""
    critic: MLP
    value: MLP
    action_dim: int
    """Of a chunk: H times that of an action."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    low: Any
    """Where the first class of values begins."""
    high: Any
    """Where the last one ends."""


# -------------------------------------------------------------------------------------------- chunks


class Chunks(NamedTuple):
    """The data on the device, and where its chunks begin and must end."""

    transitions: Transitions
    starts: jax.Array
    """[S] rows after which a whole chunk follows, or the task's end."""
    stop: jax.Array
    """[N] the last row of a chunk that begins in a row: of its episode, or where the task ends."""

    def sample(self, key, n: int, length: int) -> Batch:
        """Chunks [n, length * A] from the state obs, their rewards [n, length] and the state after them.

        `terminal`: the task ended within a chunk; there the last action is repeated, and rewards are 0.
        """
        row = self.starts[jax.random.randint(key, (n,), 0, len(self.starts))][:, None]
        ahead = row + jnp.arange(length)
        found = self.transitions.take(jnp.minimum(ahead, self.stop[row]))
        return Batch(
            obs=found.obs[:, 0],
            action=found.action.reshape(n, -1),
            reward=jnp.where(ahead <= self.stop[row], found.reward, 0.0),
            terminal=found.terminal[:, -1],
            next_obs=found.next_obs[:, -1],
        )


def chunks_of(data: Dataset, length: int) -> Chunks:
    """Raises InputError where no chunk of that length is whole."""
    require_context(data, length, "--chunk-length")
    found = sequences(data, "obs", "action", "reward", "terminal", "next_obs")
    starts = window_starts(data, length, "--chunk-length")
    terminal, end = data.terminal[data.usable()], np.asarray(found.end)
    ends = np.where(terminal, np.arange(len(end)), len(end))
    stop = np.minimum(end, np.minimum.accumulate(ends[::-1])[::-1])
    return Chunks(found.transitions, jnp.asarray(starts), jnp.asarray(stop.astype(np.int32)))


def value_range(data: Dataset, length: int, chunk_discount: float, discount: float) -> tuple[float, float]:
    """Least and largest return of a row, chunk after chunk; the last reward of a cut episode goes on for ever.

    Raises:
      InputError: all are equal.
    """
    row, ends = np.arange(len(data.obs)), np.flatnonzero(data.terminal | data.last)
    end = ends[np.searchsorted(ends, row)]
    weights, decay = chunk_discount ** np.arange(length), min(discount**length, 1.0 - 1e-6)
    after = np.where(data.terminal, 0.0, data.reward)[end]  # of every step behind the end
    value = after * weights.sum() / (1.0 - decay)
    for back in range(int((end - row).max()) + 1):  # from the ends towards the starts
        rows = ends[ends - back >= np.r_[0, ends[:-1] + 1]] - back
        ahead = rows[:, None] + np.arange(length)
        known = ahead <= end[rows, None]
        reward = np.where(known, data.reward[np.minimum(ahead, end[rows, None])], after[rows, None])
        value[rows] = reward @ weights + decay * (value[rows + length] if back >= length else value[rows])
    low, high = float(value.min()), float(value.max())
    if not high > low:
        raise InputError(f"All chunks of '{data.task.id}' have one return, {low:g}: there is nothing to be learned.")
    return low, high


def value_ranges(data: Dataset, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """The `value_range` of every lane of `args`: lows [L] and highs [L]."""
    pairs = list(zip(np.asarray(args.chunk_discount).tolist(), np.asarray(args.discount).tolist(), strict=True))
    found = {pair: value_range(data, args.chunk_length, *pair) for pair in set(pairs)}
    low, high = np.float32([found[pair] for pair in pairs]).T
    return low, high


# -------------------------------------------------------------------------------------------- values


def label(agent: Agent, target, args: Args):
    """[..., bins] the share of each class in a Gaussian around `target` [...], cut at the ends of all (HL-Gauss)."""
    width = (agent.high - agent.low) / args.value_classes
    edges = agent.low + width * jnp.arange(args.value_classes + 1)
    target = jnp.clip(target, agent.low, agent.high)[..., None]
    below = jax.scipy.special.erf((edges - target) / (jnp.sqrt(2.0) * args.label_std * width))
    return jnp.diff(below, axis=-1) / (below[..., -1:] - below[..., :1])


def expected(agent: Agent, output, args: Args):
    """[...] the value that a network's output [..., bins] stands for; of regression, [..., 1], it is the output."""
    if not args.classification:
        return output[..., 0]
    middles = agent.low + (agent.high - agent.low) / args.value_classes * (jnp.arange(args.value_classes) + 0.5)
    return jax.nn.softmax(output) @ middles


def q_outputs(agent: Agent, critics, obs, action):
    """[E, ..., bins]"""
    return jax.vmap(agent.nets.critic.apply, (0, None, None))(critics, obs, action)


def q_values(agent: Agent, critics, obs, action, args: Args):
    """[E, ...]"""
    return expected(agent, q_outputs(agent, critics, obs, action), args)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|tau - 1(q < v)| CE(p(Z_q), p(Z_v)) of the target critic of the lesser q (eq. 7); without classes (q - v)^2."""
    outputs = q_outputs(agent, agent.target_critic, batch.obs, batch.action)
    q = expected(agent, outputs, args)
    output = agent.nets.value.apply(value, batch.obs)
    v = expected(agent, output, args)
    chex.assert_shape([q[0], v], (args.batch_size,))
    error = (q.min(0) - v) ** 2
    if args.classification:
        lesser = jnp.take_along_axis(outputs, q.argmin(0)[None, :, None], axis=0)[0]
        error = optax.softmax_cross_entropy(output, jax.nn.softmax(lesser))
    weight = jnp.where(q.min(0) >= v, args.expectile, 1.0 - args.expectile)
    return (weight * error).mean(), {"v": v.mean(), "above_v": (q.min(0) >= v).mean()}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """CE(label(y), p(Z_q)), y = sum_k gamma_1^k r_k + gamma^H V(s_{t+H}) (eq. 8), mean over the two critics."""
    if args.next_value == "policy":
        next_v = best_of(agent, agent.target_critic, batch.next_obs, key, args)[1]
    else:
        next_v = expected(agent, agent.nets.value.apply(agent.value, batch.next_obs), args)
    reward = batch.reward @ args.chunk_discount ** jnp.arange(args.chunk_length)
    y = reward + args.discount**args.chunk_length * (1.0 - batch.terminal) * next_v
    outputs = q_outputs(agent, critic, batch.obs, batch.action)
    q = expected(agent, outputs, args)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    if args.classification:
        errors = optax.softmax_cross_entropy(outputs, jnp.broadcast_to(label(agent, y, args), outputs.shape))
    else:
        errors = (q - y) ** 2
    return errors.mean(), {"q": q.mean(), "target": y.mean()}


# -------------------------------------------------------------------------------------------- policy


def flow_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """Flow matching: |v(s, x_t, t) - (a - z)|^2 at x_t = (1 - t) z + t a; mean over dimensions."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.action.shape)
    t = jax.random.uniform(time_key, (args.batch_size, 1))
    velocity = agent.nets.actor.apply(actor, batch.obs, (1.0 - t) * noise + t * batch.action, t)
    chex.assert_equal_shape([velocity, batch.action])
    return ((velocity - (batch.action - noise)) ** 2).mean()


def integrate(agent: Agent, obs, key, args: Args):
    """Actions [..., A] by Euler integration of the flow from noise, clipped to [-1, 1]."""

    def euler(x, i):
        t = jnp.full((*x.shape[:-1], 1), i / args.flow_steps)
        return x + agent.nets.actor.apply(agent.actor, obs, x, t) / args.flow_steps, None

    noise = jax.random.normal(key, (*obs.shape[:-1], agent.nets.action_dim))
    return jnp.clip(jax.lax.scan(euler, noise, jnp.arange(args.flow_steps))[0], -1.0, 1.0)


def best_of(agent: Agent, critics, obs, key, args: Args):
    """Of n_candidates chunks of the flow the best [B, H * A] by min_i Q_i of `critics`, and its Q [B]."""
    repeated = jnp.broadcast_to(obs, (args.n_candidates, *obs.shape))
    action = integrate(agent, repeated, key, args)
    q = q_values(agent, critics, repeated, action, args).min(0)
    return jnp.take_along_axis(action, q.argmax(0)[None, :, None], axis=0)[0], q.max(0)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane; its classes are between 0 and 1 until `main` says where."""
    chunk_dim, outputs = args.chunk_length * spec.action_dim, args.value_classes if args.classification else 1
    nets = Networks(
        MLP(args.hidden_dims, chunk_dim),
        MLP(args.hidden_dims, outputs, layer_norm=True),
        MLP(args.hidden_dims, outputs, layer_norm=True),
        chunk_dim,
    )
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, chunk_dim))
    actor = nets.actor.init(actor_key, obs, action, jnp.zeros((1, 1)))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.value.init(value_key, obs)
    adam = optax.adam(args.learning_rate)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=adam.init(actor),
        critic_opt=adam.init(critic),
        value_opt=adam.init(value),
        low=jnp.float32(0.0),
        high=jnp.float32(1.0),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, the critics and the flow; all losses of the old parameters."""
    critic_key, flow_key = jax.random.split(key)
    adam = optax.adam(args.learning_rate)
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    value_updates, value_opt = adam.update(grads, agent.value_opt)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    critic_updates, critic_opt = adam.update(grads, agent.critic_opt)
    loss_pi, grads = jax.value_and_grad(flow_loss)(agent.actor, agent, batch, flow_key, args)
    actor_updates, actor_opt = adam.update(grads, agent.actor_opt)
    critic = optax.apply_updates(agent.critic, critic_updates)
    agent = agent.replace(
        actor=optax.apply_updates(agent.actor, actor_updates),
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        value=optax.apply_updates(agent.value, value_updates),
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        value_opt=value_opt,
    )
    return agent, {"value_loss": loss_v, "critic_loss": loss_q, "actor_loss": loss_pi, **info_v, **info_q}


class Carry(NamedTuple):
    """Of one environment: the chunk [H, A] that is being executed, and how many of its actions were."""

    chunk: jax.Array
    taken: jax.Array


def initial_carry(agent: Agent, args: Args) -> Carry:
    return Carry(jnp.zeros((args.chunk_length, agent.nets.action_dim // args.chunk_length)), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], sampled: the chunk's next ones; where it is used up, of the best new chunk."""
    fresh = carry.taken == 0

    def choose(chunk):
        best, _ = best_of(agent, agent.critic, obs, key, args)
        return jnp.where(fresh[:, None, None], best.reshape(chunk.shape), chunk)

    chunk = jax.lax.cond(fresh.any(), choose, lambda chunk: chunk, carry.chunk)
    action = chunk[jnp.arange(len(obs)), carry.taken]
    length = min(args.replan_every or args.chunk_length, args.chunk_length)
    return action, Carry(chunk, (carry.taken + 1) % length)


def train(agent: Agent, keys, args: Args, chunks: Chunks) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        batch = chunks.sample(batch_key, args.batch_size, args.chunk_length)
        return update(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def check(args: Args) -> None:
    """InputError: classes among which nothing is told apart, labels without a width."""
    if args.classification and args.value_classes < 2:
        raise InputError("--value-classes must be at least 2, or --no-classification.")
    if args.classification and np.min(args.label_std) <= 0.0:
        raise InputError(f"--label-std must be above 0, not {args.label_std}.")


def main(args: Args) -> None:
    check(args)
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    found = chunks_of(data, args.chunk_length)
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        chunks = run.replicate(found)
        low, high = jax.device_put(value_ranges(data, run.lane_args), run.sharding)
        agent = run.init(partial(init, spec=data.spec)).replace(low=low, high=high)
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, chunks)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
