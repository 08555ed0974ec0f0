"""HyGLOW and GLOW: values whose average Bellman residual is small under every clipped density ratio.

Amortila, Foster, Jiang, Sekhari and Xie, "Harnessing Density Ratios for Online Reinforcement Learning", ICLR 2024,
arXiv 2401.09681: theory made small, with tables on a combination lock whose states are seen. A round fits f to all
data: it minimises over f, and maximises over weights w, the sum over steps h of |mean of clip(w_h) (f_h - r - max_a'
f_{h+1})| minus a penalty on w^2 (MABO.CR, the minimax average Bellman optimisation with clipped ratios), the dataset
and what was collected weighing equally; then the greedy policy of f plays. Averages are not biased by two samples of
one next state, as squares are; the clip bounds what a state that is hardly in the data can do. GLOW (--optimistic) has
no dataset: of all f whose residuals are within beta it takes the one that promises most at the start.

Choose it when you want to see density ratios do the work that optimism or pessimism does elsewhere, in seconds.

Deviations from the paper (which has no experiments):
- f is a table in [0, 1], where the lock's returns lie; W holds the ratios of random policies and of f's greedy one by
  the empirical model, and of each state and action alone;
- the minimum is sought by Adam, which begins near 0, and then where the last round ended; GLOW's constraint is a
  penalty, and its search begins in each round at the top of F, so that what is not tried keeps its promise;
- the bound of the ratios grows with the square root of the round, where algorithm 1 has gamma t with a gamma that falls
  with the square root of the number T of rounds, which is not asked for here: after T both are alike
  (--density-clip-growth 1: gamma t);
- a round plays first and fits then, so that the first one plays at random, whatever the dataset;
- the last policy is evaluated, not the mixture of all;
- the lock and its dataset are the same in all lanes, which differ in their policies and episodes;
- --buffer-size is not used: counts forget nothing.

    python algorithms/hybrid/hyglow.py --seeds 8
    python algorithms/hybrid/hyglow.py --seeds 8 --mode online --optimistic
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import EnvSteps, Float, Fraction, HybridArgs, Size, hyperparameters
from shared.checks import other_rewards
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch


@hyperparameters
class Args(HybridArgs):
    dataset: str = "tabular-combination-lock-h8-trajectory"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    horizon: int = 0
    """Steps H of an episode, each with networks or tables of its own; 0: the lock's (and no other is possible)."""
    mode: Literal["hybrid", "online", "offline"] = "hybrid"
    """What is learned from: both kinds of data, or only what is collected, or only the dataset."""
    offline_fraction: Fraction = 1.0
    """Share of the dataset's rows of each step that is there, the first ones, in [0, 1]."""
    optimistic: bool = False
    """Of all f within --residual-bound, the one that promises most (GLOW), not the one with the least residuals."""
    episodes_per_round: Size = 4
    """Episodes of each greedy policy."""
    n_policies: Size = 50
    """Random policies whose density ratios are in W."""
    density_clip: Float = 2.0
    """Bound gamma of the density ratios in the first round."""
    density_clip_growth: Float = 0.5
    """In round t the bound is t to this power times as high."""
    ratio_penalty: Float = 0.05
    """Times the mean of w^2 / gamma: alpha is this over gamma."""
    residual_bound: Float = 0.01
    """beta: the residual of one step that GLOW allows."""
    residual_weight: Float = 20.0
    """Of residuals above beta, in GLOW's objective."""
    critic_lr: Float = 0.02
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    critic_updates: Size = 300
    """Gradient updates of every critic in a fit."""
    env_steps: EnvSteps = 3_200
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 160
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 800
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 50
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}


class Counts(NamedTuple):
    """What is known of each step, state and action: sums over rows, or their means."""

    visits: jax.Array
    """[H, S, A]"""
    reward: jax.Array
    """[H, S, A]"""
    following: jax.Array
    """[H, S, A, S] how often each state came next"""


class Agent(flax.struct.PyTreeNode):
    critic: jax.Array
    """f [H, S, A]"""
    critic_opt: optax.OptState
    policies: jax.Array
    """[K, H, S, A] one-hot: those whose ratios are in W"""
    rounds: jax.Array
    """[] so far"""


def lock_of(task: Task, args: Args):
    """The lock of the task's environment, as functions of many episodes at the same step."""
    lock = getattr(task.env_spec and task.make_env().unwrapped, "lock", None)
    if lock is None or not lock.tabular:
        raise InputError(f"'{task.id}' is no lock whose states are seen; try --dataset {Args.dataset}.")
    if args.horizon not in (0, lock.horizon):
        raise InputError(f"--horizon {args.horizon}: the lock of '{task.id}' has {lock.horizon} steps.")
    return lock


def checked(args: Args, n: int) -> None:
    """InputError where no ratio is left of the clipping: all weights would be 0, and the penalty 0 / 0; or where there
    is nothing to learn from. `n`: rows that the dataset has of each step."""
    if not (np.asarray(args.density_clip) > 0).all():
        raise InputError(f"--density-clip must be above 0, not {args.density_clip}.")
    if args.mode == "offline" and (np.round(np.asarray(args.offline_fraction) * n) < 1).any():
        raise InputError(f"--mode offline --offline-fraction {args.offline_fraction}: none of {n:,} rows is there.")


def round_steps(args: Args) -> int:
    """Environment steps of a round."""
    return args.episodes_per_round * args.horizon


def whole_rounds(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole rounds."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    length = round_steps(args)
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // length) * length for n in names})


def count(rows: Batch, weight, n_actions: int) -> Counts:
    """Of rows [H, n] with one-hot states, each as often as `weight` [n] says."""
    action = jax.nn.one_hot(rows.action, n_actions) * weight[:, None]
    pair = rows.obs[..., :, None] * action[..., None, :]  # [H, n, S, A]
    reward = jnp.einsum("hnsa,hn->hsa", pair, rows.reward)
    return Counts(pair.sum(1), reward, jnp.einsum("hnsa,hnt->hsat", pair, rows.next_obs))


def mixture(offline: Counts, online: Counts, args: Args) -> Counts:
    """Means over the data: of both kinds with half the weight each, where there are both."""
    n_off, n_on = offline.visits[0].sum(), online.visits[0].sum()
    both = jnp.where(n_on > 0, jnp.where(n_off > 0, 0.5, 1.0), 0.0)
    share = {"hybrid": both, "online": 1.0, "offline": 0.0}[args.mode]
    weights = (1.0 - share) / jnp.maximum(n_off, 1.0), share / jnp.maximum(n_on, 1.0)
    return jax.tree.map(lambda old, new: weights[0] * old + weights[1] * new, offline, online)


def occupancy(policy, data: Counts):
    """d_h(s, a) [H, S, A] of a policy by the empirical model; what leads beyond the data is lost."""
    model = data.following / jnp.maximum(data.visits, 1e-9)[..., None]

    def forward(state, x):
        policy, model = x
        pair = state[:, None] * policy
        return jnp.einsum("sa,sat->t", pair, model), pair

    return jax.lax.scan(forward, data.visits[0].sum(-1), (policy, model))[1]


def ratios(policy, data: Counts, clip):
    """clip(d / mu) [H, S, A]; 0 where there is no data."""
    ratio = occupancy(policy, data) / jnp.maximum(data.visits, 1e-9)
    return jnp.where(data.visits > 0, jnp.clip(ratio, -clip, clip), 0.0)


def residual(f, data: Counts):
    """mu(s, a) (f_h - r - max_a' f_{h+1}(s', a')) [H, S, A]: the part that each pair has in the mean."""
    next_v = jnp.concatenate([f[1:].max(-1), jnp.zeros_like(f[:1, :, 0])])
    return data.visits * f - data.reward - jnp.einsum("hsat,ht->hsa", data.following, next_v)


def greedy(f):
    """[H, S, A] one-hot"""
    return jax.nn.one_hot(f.argmax(-1), f.shape[-1])


def violations(f, weights, data: Counts, clip, args: Args):
    """max over w in W_h of |mean of w (f_h - r - max f_{h+1})| - alpha mean of w^2: [H]; weights [K, H, S, A]."""
    own = ratios(jax.lax.stop_gradient(greedy(f)), data, clip)
    weights, alpha = jnp.concatenate([weights, own[None]]), args.ratio_penalty / clip
    left, mean = residual(f, data), lambda w, x: (w * x).sum((-2, -1))
    of_policies = jnp.abs(mean(weights, left)) - alpha * mean(weights**2, data.visits)  # [K + 1, H]
    single = jnp.where(data.visits > 0, jnp.minimum(1.0 / jnp.maximum(data.visits, 1e-9), clip), 0.0)
    of_pairs = jnp.abs(single * left) - alpha * data.visits * single**2
    return jnp.maximum(of_policies.max(0), of_pairs.max((-2, -1)))


def critic_loss(f, weights, data: Counts, first, clip, args: Args):
    """The sum of what W finds (MABO.CR); or minus what f promises, and what is above beta (GLOW). `first` [S]."""
    found = violations(f, weights, data, clip, args)
    chex.assert_shape(found, (args.horizon,))
    promise = first @ f[0].max(-1)
    above = args.residual_weight * jax.nn.relu(found - args.residual_bound).sum() - promise
    return above if args.optimistic else found.sum(), {"residual": found.sum(), "promise": promise}


def policy_value(policy, transition, reward, start):
    """The return [] of a policy [H, S, A], exactly, on known dynamics."""

    def back(v, x):
        policy, transition, reward = x
        return (policy * (reward + transition @ v)).sum(-1), None

    return start @ jax.lax.scan(back, jnp.zeros_like(start), (policy, transition, reward), reverse=True)[0]


def init(key, args: Args, spec: Spec) -> Agent:
    shape = (args.horizon, spec.obs_shape[0] - 1, spec.action_dim)
    critic_key, policy_key = jax.random.split(key)
    critic = 0.01 * jax.random.uniform(critic_key, shape)
    policies = greedy(jax.random.uniform(policy_key, (args.n_policies, *shape)))
    return Agent(critic, optax.adam(args.critic_lr).init(critic), policies, jnp.float32(0))


def update(agent: Agent, data: Counts, args: Args) -> tuple[Agent, dict]:
    """One round's f."""
    rounds, adam = agent.rounds + 1, optax.adam(args.critic_lr)
    clip, first = args.density_clip * rounds**args.density_clip_growth, data.visits[0].sum(-1)
    weights = jax.vmap(ratios, (0, None, None))(agent.policies, data, clip)

    def step(carry, _):
        f, opt = carry
        grads, info = jax.grad(critic_loss, has_aux=True)(f, weights, data, first, clip, args)
        updates, opt = adam.update(grads, opt)
        return (jnp.clip(optax.apply_updates(f, updates), 0.0, 1.0), opt), info

    top = jnp.ones_like(agent.critic)
    start = (top, adam.init(top)) if args.optimistic else (agent.critic, agent.critic_opt)
    (critic, opt), info = jax.lax.scan(step, start, None, args.critic_updates)
    info = jax.tree.map(lambda x: x[-1], info)
    own = ratios(greedy(critic), data, jnp.inf)
    new = agent.replace(critic=critic, critic_opt=opt, rounds=rounds)
    return new, {**info, "clip": clip, "ratio_max": own.max(), "clipped": (own > clip).mean()}


def act(agent: Agent, obs, key, args: Args):
    """Greedy actions [B], each by the values of its observation's step."""
    h, state = obs[:, -1].astype(jnp.int32), obs[:, :-1].argmax(-1)
    return agent.critic[h, state].argmax(-1)


def play(f, key, args: Args, lock) -> Batch:
    """Episodes [H, n, ...] of the greedy policy."""

    def step(carry, x):
        state, obs = carry
        f, key = x
        action = f[obs.argmax(-1)].argmax(-1)
        new, next_obs, reward, _ = lock.step(state, action, key)
        return (new, next_obs), Batch(obs=obs, action=action, reward=reward, next_obs=next_obs)

    first_key, key = jax.random.split(key)
    first = lock.reset(first_key, (args.episodes_per_round,))
    return jax.lax.scan(step, first, (f, jax.random.split(key, args.horizon)))[1]


def start(args: Args, data: Batch, n_actions: int) -> Counts:
    """What one lane has of the dataset [H, n, ...]."""
    n = data.reward.shape[1]
    there = jnp.arange(n) < jnp.round(args.offline_fraction * n)
    return count(data, there.astype(jnp.float32), n_actions)


def train(carry: tuple[Agent, Counts], keys, args: Args, offline: Counts, lock) -> tuple[tuple[Agent, Counts], dict]:
    """One lane: a round for every `round_steps` keys; mean metrics."""
    exact = [jnp.asarray(x, jnp.float32) for x in lock.tables()]

    def one_round(carry, key):
        agent, online = carry
        new = count(play(agent.critic, key, args, lock), jnp.ones(args.episodes_per_round), lock.num_actions)
        online = jax.tree.map(jnp.add, online, new)
        agent, metrics = update(agent, mixture(offline, online, args), args)
        return (agent, online), {**metrics, "value": policy_value(greedy(agent.critic), *exact)}

    carry, metrics = jax.lax.scan(one_round, carry, keys[:: round_steps(args)])
    return carry, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    lock = lock_of(data.task, args)
    args = whole_rounds(dataclasses.replace(args, horizon=lock.horizon))
    rows = data.by_step(lock.horizon)
    checked(args, rows.reward.shape[1])
    with Run(__file__, args, data.task, act, unit=round_steps(args)) as run:
        run.note(other_rewards(data.task))
        rows = run.replicate(rows)
        agent = run.init(partial(init, spec=data.spec))
        offline = run.over_lanes(partial(start, n_actions=lock.num_actions), in_axes=(0, None))(run.lane_args, rows)
        online = jax.tree.map(jnp.zeros_like, offline)
        agent, online = run.restore(agent, online)
        train_lanes = run.over_lanes(partial(train, lock=lock), in_axes=(0, 0, 0, 0), donate=True)
        for keys in run.chunks():
            (agent, online), metrics = train_lanes((agent, online), keys, run.lane_args, offline)
            rounds = (run.done + run.chunk) // round_steps(args)
            run.log(agent, metrics, updates=rounds * args.critic_updates, state=online)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
