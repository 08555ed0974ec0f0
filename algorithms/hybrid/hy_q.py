"""Hy-Q: Hybrid Q-learning, fitted Q iteration over offline and online data together, on the combination lock.

Song, Zhou, Sekhari, Bagnell, Krishnamurthy and Sun, "Hybrid RL: Using Both Offline and Online Data Can Make RL
Efficient", ICLR 2023, arXiv 2210.06718, algorithm 1 and section 6.1. Each round collects with the greedy policy and
then fits, backwards in h, Q_h to r + max_a' Q_{h+1}(s', a') on the union of the dataset and all that was collected.
Neither optimism nor pessimism is needed: the dataset covers a good policy, and what the dataset does not cover and Q
overestimates is visited and corrected.

A round explores every step h with its own --episodes-per-step: h greedy actions, then a uniformly random one, whose
transition is stored. Steps are environment steps: a round has H (H + 1) / 2 of them for each; intervals are rounded up
to whole rounds.

Adam's state is kept from round to round.

Choose it when actions are discrete, episodes short, and exploration alone does not find the reward that a dataset
shows.

Parity: equal to the authors' code, fit for fit (results/parity.md).

Deviations from the paper:
- the lock and its dataset are the same in all lanes, which differ in initialisation and samples;
- the buffers of the authors' code are not built (the dataset, and with every collected row another of the dataset):
  rows are drawn with the probabilities that they would have there;
- the regression targets of a fit, which stand still, are computed once for all rows;
- a fit takes 500 steps, as the paper says; the authors' code takes 499;
- the dataset takes all steps h from the same episodes (the authors roll in anew for every h);
- training goes on after the return has reached 1.

    python algorithms/hybrid/hy_q.py --dataset combination-lock-h10-trajectory --env-steps 82500 --seeds 4
    python algorithms/hybrid/hy_q.py --dataset combination-lock-h10-trajectory --env-steps 82500 --seeds 4 --mode online
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import EnvSteps, Float, HybridArgs, Positive, Size, hyperparameters
from shared.checks import other_rewards
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch


@hyperparameters
class Args(HybridArgs):
    dataset: str = "combination-lock-h100-trajectory"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    horizon: int = 0
    """Steps H of an episode, each with networks or tables of its own; 0: the lock's (and no other is possible)."""
    mode: Literal["hybrid", "online", "offline"] = "hybrid"
    """What is learned from: both kinds of data, or only what is collected, or only the dataset."""
    episodes_per_step: Size = 50
    """Episodes that explore each step h in a round."""
    learning_rate: Float = 2.5e-3
    """Adam's step size: everything that is learned."""
    encoder_temperature: Positive = 1.0
    """Of the softmax over latent states."""
    critic_updates: Size = 500
    """Gradient updates of every critic in a fit."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    state_dim: Size = 3
    """Latent states of the encoder."""
    env_steps: EnvSteps = 50_500_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 1
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_episodes: Size = 20
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}


class Critic(nn.Module):
    """Q(s, a) = w . (onehot(a) x softmax(E s / temperature)) + b; of all actions where none is given."""

    state_dim: int
    n_actions: Size

    @nn.compact
    def __call__(self, obs, temperature, action=None):
        dense = partial(nn.Dense, kernel_init=nn.initializers.orthogonal())
        state = nn.softmax(dense(self.state_dim, use_bias=False, name="encoder")(obs) / temperature)
        if action is None:
            action, state = jnp.arange(self.n_actions), state[..., None, :]
        chosen = jax.nn.one_hot(action, self.n_actions)
        features = chosen[..., :, None] * state[..., None, :]
        return dense(1, name="head")(features.reshape(*features.shape[:-2], -1))[..., 0]


class Networks(NamedTuple):
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """One critic for each step, stacked on a leading axis [H, ...]."""
    critic_opt: optax.OptState
    """[H, ...]"""


class Buffer(NamedTuple):
    """What was collected: a ring for each step."""

    rows: Batch
    """[H, C, ...]"""
    inserted: jax.Array
    """[] rows ever inserted into each ring"""


def lock_of(task: Task, args: Args):
    """The lock of the task's environment, as functions of many episodes at the same step."""
    lock = getattr(task.env_spec and task.make_env().unwrapped, "lock", None)
    if lock is None:
        raise InputError(f"'{task.id}' is no combination lock; try --dataset combination-lock-h10-trajectory.")
    if args.horizon not in (0, lock.horizon):
        raise InputError(f"--horizon {args.horizon}: the lock of '{task.id}' has {lock.horizon} steps.")
    return lock


def round_steps(args: Args) -> int:
    """Environment steps of a round: step h is explored after h greedy steps."""
    return args.episodes_per_step * args.horizon * (args.horizon + 1) // 2


def whole_rounds(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole rounds."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    length = round_steps(args)
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // length) * length for n in names})


def targets(critic, net: Critic, pool: Batch, last, args: Args):
    """r + max_a' Q_{h+1}(s', a') [P] for step h's rows, r alone at the last step; `critic`: step h + 1's."""
    next_v = net.apply(critic, pool.next_obs, args.encoder_temperature).max(-1)
    chex.assert_equal_shape([next_v, pool.reward])
    return pool.reward + jnp.where(last, 0.0, next_v)


def critic_loss(critic, net: Critic, obs, action, y, args: Args):
    """(Q_h(s, a) - y)^2 (algorithm 1, line 5)."""
    q = net.apply(critic, obs, args.encoder_temperature, action)
    chex.assert_shape([q, y], (args.batch_size,))
    return ((q - y) ** 2).mean(), {"q": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane; the last entry of observations is the step h, which chooses the network."""
    nets = Networks(Critic(args.state_dim, spec.action_dim))
    obs = jnp.zeros((1, spec.obs_shape[0] - 1))
    keys = jax.random.split(key, args.horizon)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, args.encoder_temperature), keys)
    return Agent(nets=nets, critic=critic, critic_opt=jax.vmap(optax.adam(args.learning_rate).init)(critic))


def init_buffer(args: Args, spec: Spec) -> Buffer:
    """Empty rings for all that is collected, or the newest `buffer_size` rows of all steps together."""
    rounds = min(
        args.env_steps // round_steps(args), max(1, args.buffer_size // (args.horizon * args.episodes_per_step))
    )
    shape, obs = (args.horizon, rounds * args.episodes_per_step), (spec.obs_shape[0] - 1,)
    rows = Batch(
        obs=jnp.zeros(shape + obs),
        action=jnp.zeros(shape, jnp.int32),
        reward=jnp.zeros(shape),
        next_obs=jnp.zeros(shape + obs),
    )
    return Buffer(rows, jnp.int32(0))


def sample(key, offline: int, collected, args: Args):
    """[critic_updates, B] rows of a step's pool: `offline` ones of the dataset come first, then `collected` [] ones.

    Hybrid: uniform over the dataset, the collected rows, and as many again of the dataset.
    """
    kind_key, old_key, new_key = jax.random.split(key, 3)
    shape, n = (args.critic_updates, args.batch_size), offline
    share = {"hybrid": collected / (n + 2 * collected), "online": 1.0, "offline": 0.0}[args.mode]
    old = jax.random.randint(old_key, shape, 0, n)
    new = n + jax.random.randint(new_key, shape, 0, jnp.maximum(collected, 1))
    return jnp.where(jax.random.bernoulli(kind_key, share, shape), new, old)


def update(agent: Agent, pool: Batch, offline: int, collected, key, args: Args) -> tuple[Agent, dict]:
    """Fits all steps of `pool` [H, P, ...], the last one first; Q_h begins with the encoder of Q_{h+1}.

    Of each step's P rows, the first `offline` are the dataset's and the next `collected` [] were collected.
    """
    net, adam = agent.nets.critic, optax.adam(args.learning_rate)

    def fit(next_critic, x):
        h, critic, opt, pool, key = x
        last = h == args.horizon - 1
        y = targets(next_critic, net, pool, last, args)
        warm = jax.tree.map(partial(jnp.where, last), critic["params"]["encoder"], next_critic["params"]["encoder"])
        critic = {"params": critic["params"] | {"encoder": warm}}

        def step(carry, row):
            critic, opt = carry
            grad = jax.value_and_grad(critic_loss, has_aux=True)
            (loss, info), grads = grad(critic, net, pool.obs[row], pool.action[row], y[row], args)
            updates, opt = adam.update(grads, opt)
            return (optax.apply_updates(critic, updates), opt), {"critic_loss": loss, **info}

        (critic, opt), metrics = jax.lax.scan(step, (critic, opt), sample(key, offline, collected, args))
        return critic, (critic, opt, jax.tree.map(lambda m: m[-1], metrics))

    steps = (jnp.arange(args.horizon), agent.critic, agent.critic_opt, pool, jax.random.split(key, args.horizon))
    none = jax.tree.map(lambda x: x[0], agent.critic)
    critic, critic_opt, metrics = jax.lax.scan(fit, none, steps, reverse=True)[1]
    return agent.replace(critic=critic, critic_opt=critic_opt), jax.tree.map(jnp.mean, metrics)


def act(agent: Agent, obs, key, args: Args):
    """Greedy actions [B], each by the critic of its observation's step."""
    h = obs[:, -1].astype(jnp.int32)
    critic = jax.tree.map(lambda x: x[h], agent.critic)
    q = jax.vmap(agent.nets.critic.apply, (0, 0, None))(critic, obs[:, :-1], args.encoder_temperature)
    return q.argmax(-1)


def play(agent: Agent, key, args: Args, lock, explores) -> tuple[Batch, jax.Array, jax.Array]:
    """Episodes [N] of the greedy policy, with a random action at step `explores` [N] (H: none).

    Returns their transitions [H, N, ...], whether the states [H, N] acted in are good, and the returns [N].
    """
    n = explores.shape

    def step(carry, x):
        state, obs = carry
        critic, key = x
        random_key, step_key = jax.random.split(key)
        greedy = agent.nets.critic.apply(critic, obs, args.encoder_temperature).argmax(-1)
        action = jnp.where(explores == state.h, lock.random_action(random_key, n), greedy)
        new, next_obs, reward, _ = lock.step(state, action, step_key)
        return (new, next_obs), (Batch(obs=obs, action=action, reward=reward, next_obs=next_obs), lock.good(state))

    first_key, key = jax.random.split(key)
    steps = (agent.critic, jax.random.split(key, args.horizon))
    rows, good = jax.lax.scan(step, lock.reset(first_key, n), steps)[1]
    return rows, good, rows.reward.sum(0)


def collect(agent: Agent, buffer: Buffer, key, args: Args, lock) -> tuple[Buffer, dict]:
    """One round's transitions: of the episodes that explore step h, that of step h alone."""
    n, horizon = args.episodes_per_step, jnp.arange(args.horizon)
    rows, good, _ = play(agent, key, args, lock, jnp.repeat(horizon, n))
    own = lambda x: x.reshape(args.horizon, args.horizon, n, *x.shape[2:])[horizon, horizon]  # noqa: E731
    at = buffer.inserted % buffer.rows.reward.shape[1]
    insert = lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, at, axis=1)  # noqa: E731
    rows = jax.tree.map(insert, buffer.rows, jax.tree.map(own, rows))
    good = own(good).mean(1)
    return Buffer(rows, buffer.inserted + n), {"good_state": good.mean(), "good_state_at_end": good[-1]}


def train(carry: tuple[Agent, Buffer], keys, args: Args, data: Batch, lock) -> tuple[tuple[Agent, Buffer], dict]:
    """One lane: a round for every `round_steps` keys; mean metrics."""

    def one_round(carry, key):
        agent, buffer = carry
        collect_key, update_key, play_key = jax.random.split(key, 3)
        buffer, info = collect(agent, buffer, collect_key, args, lock)
        pool = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), data, buffer.rows)
        collected = jnp.minimum(buffer.inserted, buffer.rows.reward.shape[1])
        agent, metrics = update(agent, pool, data.reward.shape[1], collected, update_key, args)
        never = jnp.full(args.episodes_per_step, args.horizon)
        greedy = play(agent, play_key, args, lock, never)[2]  # not counted as steps
        return (agent, buffer), {**metrics, **info, "greedy_return": greedy.mean()}

    carry, metrics = jax.lax.scan(one_round, carry, keys[:: round_steps(args)])
    return carry, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    lock = lock_of(data.task, args)
    args = whole_rounds(dataclasses.replace(args, horizon=lock.horizon))
    with Run(__file__, args, data.task, act, unit=round_steps(args)) as run:
        run.note(other_rewards(data.task))
        rows = run.replicate(data.by_step(lock.horizon))
        agent = run.init(partial(init, spec=data.spec))
        buffer = run.over_lanes(partial(init_buffer, spec=data.spec), in_axes=(0,))(run.lane_args)
        agent, buffer = run.restore(agent, buffer)
        train_lanes = run.over_lanes(partial(train, lock=lock), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            (agent, buffer), metrics = train_lanes((agent, buffer), keys, run.lane_args, rows)
            rounds = (run.done + run.chunk) // round_steps(args)
            run.log(agent, metrics, updates=rounds * args.horizon * args.critic_updates, state=buffer)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
