"""FTPEDEL: policies are eliminated by online episodes that are designed to fill in what the offline data does not say.

Wagenmaker and Pacchiano, "Leveraging Offline Data in Online Reinforcement Learning", ICML 2023, arXiv 2211.04974:
theory made small, with tables on a combination lock whose states are seen. Of a finite class of policies the learner
wants one that is eps-optimal, known to be so. In epoch l (eps_l = 2^-l), for each step h of an episode, it plays what
lowers max_pi ||phi_pi,h||^2 in the norm Lambda_h^-1 until that is at most eps_l^2 / beta, pi among the policies left;
then those whose estimated value is more than 2 eps_l below the best are eliminated. Lambda_h counts offline rows and
online ones alike, so that episodes go only where the offline data is thin and a good policy may come by (the
offline-to-online concentrability). Without a dataset it is PEDEL (Wagenmaker and Jamieson, arXiv 2207.02575).

--covered-steps hides the dataset beyond the first steps of an episode: a known and an unknown part.

Choose it when you want to see how many episodes a dataset saves, and what it takes to know that a policy is good.

Deviations from the paper (which has no experiments):
- tables, of which the features phi(s, a) are one-hot and Lambda_h the counts; all rows count in all estimates;
- the class is the lock's best policy, and policies that follow it for some first steps and are random afterwards: who
  learns does not know which is which. All deterministic policies of the lock are 4^16;
- beta is c_beta log(N H S A / delta), without the powers of H of the theory, which would ask for millions of episodes,
  and c_beta is 0.1, so that some hundreds are enough: what it stops with is eps-optimal by its own widths, which are
  of one step each, and not by the theory's;
- where an episode may begin is known;
- the design is a Frank-Wolfe step per episode: the policy whose norm is the largest gives the reward (phi / Lambda)^2
  at step h, and the episode follows the best policy for it in the estimated model, without optimism: what the policies
  left visit before step h has been learned by then. After step h it goes on as that policy;
- it also ends where one policy is left; from then on nothing is collected, and the last rows of the log repeat;
- the lock and its dataset are the same in all lanes, which differ in their class and episodes;
- --buffer-size is not used: counts forget nothing.

    python algorithms/hybrid/ftpedel.py --seeds 8 --covered-steps 0 0.5 1
    python algorithms/hybrid/ftpedel.py --seeds 8 --mode offline --covered-steps 0.5
"""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

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
    ridge: Float = 0.125
    """Added to the diagonal of Lambda."""
    covered_steps: Fraction = 0.5
    """Share of an episode's steps, the first ones, of which the dataset's rows are there, in [0, 1]."""
    c_beta: Float = 0.1
    """Times log(N H S A / delta): beta, by which a norm must be smaller than the square of the accuracy."""
    accuracy: Float = 0.1
    """eps: the epoch whose accuracy 2^-l is at most this is the last one."""
    class_size: Size = 200
    """Policies N of the class, the best one among them."""
    env_steps: EnvSteps = 12_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 800
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 6_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 50
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}

DELTA = 0.1
"""Probability with which the theory lets it fail."""


class Counts(NamedTuple):
    """What is known of each step, state and action: Lambda without its ridge, and what is estimated from it."""

    visits: jax.Array
    """[H, S, A]"""
    reward: jax.Array
    """[H, S, A] sum"""
    following: jax.Array
    """[H, S, A, S] how often each state came next"""


class Agent(flax.struct.PyTreeNode):
    policies: jax.Array
    """[N, H, S, A] one-hot: the class"""
    known: Counts
    left: jax.Array
    """[N] 1: not eliminated"""
    epoch: jax.Array
    """[] l, from 1 on"""
    stage: jax.Array
    """[] h, the step of an episode that is designed for"""
    episodes: jax.Array
    """[] online ones so far"""
    searched: jax.Array
    """[] of these, until `output` is eps-optimal and stays so, 0 at once, one more than there were where it is not yet:
    exact, and not known to the learner"""
    explorer: jax.Array
    """[H, S, A] one-hot: what the next episode follows"""
    output: jax.Array
    """[H, S, A] one-hot: of the policies left, the one of the highest estimated value"""


def lock_of(task: Task, args: Args):
    """The lock of the task's environment, as functions of many episodes at the same step."""
    lock = getattr(task.env_spec and task.make_env().unwrapped, "lock", None)
    if lock is None or not lock.tabular:
        raise InputError(f"'{task.id}' is no lock whose states are seen; try --dataset {Args.dataset}.")
    if args.horizon not in (0, lock.horizon):
        raise InputError(f"--horizon {args.horizon}: the lock of '{task.id}' has {lock.horizon} steps.")
    return lock


def checked(args: Args) -> None:
    """InputError where an epoch could never end, has nothing to decide, or knows nothing to decide by."""
    for name in ("ridge", "c_beta", "accuracy"):
        if not (np.asarray(getattr(args, name)) > 0).all():
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}.")
    if args.class_size < 2:
        raise InputError(f"--class-size {args.class_size}: the best policy and another one are needed at least.")
    if args.mode == "offline" and (np.round(np.asarray(args.covered_steps) * args.horizon) < 1).any():
        raise InputError(f"--mode offline --covered-steps {args.covered_steps}: none of {args.horizon} steps is there.")


def whole_episodes(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole episodes."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // args.horizon) * args.horizon for n in names})


def count(rows: Batch, weight, n_actions: int) -> Counts:
    """Of rows [H, n] with one-hot states, each as often as `weight` [H, n] says."""
    action = jax.nn.one_hot(rows.action, n_actions) * weight[..., None]
    pair = rows.obs[..., :, None] * action[..., None, :]  # [H, n, S, A]
    reward = jnp.einsum("hnsa,hn->hsa", pair, rows.reward)
    return Counts(pair.sum(1), reward, jnp.einsum("hnsa,hnt->hsat", pair, rows.next_obs))


def estimates(known: Counts):
    """P^ [H, S, A, S] and r^ [H, S, A]; 0 where nothing is known."""
    visits = jnp.maximum(known.visits, 1.0)
    return known.following / visits[..., None], known.reward / visits


def features(policy, model, first):
    """phi^_pi,h [H, S, A]: how often a policy comes by each pair in the model, from first states [S] on."""

    def forward(state, x):
        policy, model = x
        pair = state[:, None] * policy
        return jnp.einsum("sa,sat->t", pair, model), pair

    return jax.lax.scan(forward, first, (policy, model))[1]


def norms(phi, known: Counts, args: Args):
    """||phi||^2 in the norm Lambda_h^-1: [..., H] of features [..., H, S, A]."""
    return (phi**2 / (known.visits + args.ridge)).sum((-2, -1))


def beta(shape: tuple[int, ...], args: Args):
    """c log(N H S A / delta) of a class of the shape [N, H, S, A]."""
    return args.c_beta * math.log(math.prod(shape) / DELTA)


def best_policy(model, reward):
    """[H, S, A] one-hot: greedy for its own values in a model."""

    def back(v, x):
        model, reward = x
        q = reward + model @ v
        return q.max(-1), jax.nn.one_hot(q.argmax(-1), q.shape[-1])

    return jax.lax.scan(back, jnp.zeros(model.shape[1]), (model, reward), reverse=True)[1]


def policy_value(policy, transition, reward, start):
    """The return [] of a policy [H, S, A], exactly, on known dynamics."""

    def back(v, x):
        policy, transition, reward = x
        return (policy * (reward + transition @ v)).sum(-1), None

    return start @ jax.lax.scan(back, jnp.zeros_like(start), (policy, transition, reward), reverse=True)[0]


def searched(agent: Agent, transition, reward, first, args: Args):
    """`searched` [] of the agent now, and the return [] of its `output`; exact, on the lock's tables."""
    value, best = (policy_value(p, transition, reward, first) for p in (agent.output, best_policy(transition, reward)))
    return jnp.where(best - value > args.accuracy, agent.episodes + 1.0, agent.searched), value


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane, whose class is random policies; `start` makes them follow the best one at first."""
    shape = (args.horizon, spec.obs_shape[0] - 1, spec.action_dim)
    draws = jax.random.uniform(key, (args.class_size, *shape))
    policies = jax.nn.one_hot(draws.argmax(-1), shape[-1])
    known = Counts(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((*shape, shape[1])))
    one, zero = jnp.float32(1), jnp.float32(0)
    return Agent(policies, known, jnp.ones(args.class_size), one, zero, zero, zero, policies[0], policies[0])


def eliminate(left, values, tolerance):
    """[N]: of the policies left, those whose value is at most twice the tolerance below the best."""
    return left * (values >= jnp.where(left > 0, values, -jnp.inf).max() - 2.0 * tolerance)


def finished(epoch, left, args: Args):
    """Whether the last epoch was the last one, or one policy is left."""
    return (2.0 ** (1.0 - epoch) <= args.accuracy) | (left.sum() <= 1)


def update(agent: Agent, first, args: Args) -> tuple[Agent, dict]:
    """Goes on through steps and epochs as far as the data carries; then the next episode's policy. `first` [S]."""
    known = agent.known
    model, reward = estimates(known)
    phi = jax.vmap(features, (0, None, None))(agent.policies, model, first)
    width = jnp.sqrt(beta(agent.policies.shape, args) * norms(phi, known, args))  # [N, H]
    values = (phi * reward).sum((-3, -2, -1))

    def enough(now):
        epoch, stage, left = now
        widest = (left * width[:, stage.astype(jnp.int32)]).max()
        return (widest <= 2.0**-epoch) & ~finished(epoch, left, args)

    def go_on(now):
        epoch, stage, left = now
        ends = stage + 1 == args.horizon
        left = jnp.where(ends, eliminate(left, values, 2.0**-epoch), left)
        return epoch + ends, jnp.where(ends, 0.0, stage + 1), left

    epoch, stage, left = jax.lax.while_loop(enough, go_on, (agent.epoch, agent.stage, agent.left))
    output = agent.policies[jnp.where(left > 0, values, -jnp.inf).argmax()]
    explorer = design(agent.policies, phi, left * width[:, stage.astype(jnp.int32)], stage, model, known, args)
    new = agent.replace(epoch=epoch, stage=stage, left=left, output=output, explorer=explorer)
    information = jnp.log(known.visits + args.ridge).sum()
    return new, {"epoch": epoch, "left": left.sum(), "width": (left[:, None] * width).max(), "information": information}


def design(policies, phi, width, stage, model, known: Counts, args: Args):
    """[H, S, A]: up to the step `stage` best for the reward (phi / Lambda)^2 of the widest policy, then that policy."""
    widest = width.argmax()
    step = jnp.arange(args.horizon)[:, None, None]
    reward = (phi[widest] / (known.visits + args.ridge)) ** 2
    reward = jnp.where(step == stage, reward / jnp.maximum(reward.max(), 1e-30), 0.0)
    return jnp.where(step <= stage, best_policy(model, reward), policies[widest])


def act(agent: Agent, obs, key, args: Args):
    """Actions [B] of the policy that would be given out now, by each observation's step."""
    h, state = obs[:, -1].astype(jnp.int32), obs[:, :-1].argmax(-1)
    return agent.output[h, state].argmax(-1)


def play(policy, key, lock) -> Batch:
    """One episode [H, 1, ...] of a policy [H, S, A]."""

    def step(carry, x):
        state, obs = carry
        policy, key = x
        action = policy[obs.argmax(-1)].argmax(-1)
        new, next_obs, reward, _ = lock.step(state, action, key)
        return (new, next_obs), Batch(obs=obs, action=action, reward=reward, next_obs=next_obs)

    first_key, key = jax.random.split(key)
    steps = (policy, jax.random.split(key, lock.horizon))
    return jax.lax.scan(step, lock.reset(first_key, (1,)), steps)[1]


def start(agent: Agent, args: Args, data: Batch, lock) -> Agent:
    """The agent with its class, what it has of the dataset [H, n, ...], and its first plan."""
    transition, reward, first = (jnp.asarray(x, jnp.float32) for x in lock.tables())
    followed = jnp.arange(args.class_size) * args.horizon // max(args.class_size - 1, 1)  # 0 .. H, the last alone H
    follows = jnp.arange(args.horizon) < followed[:, None]
    policies = jnp.where(follows[..., None, None], best_policy(transition, reward), agent.policies)
    there = jnp.arange(args.horizon) < jnp.round(args.covered_steps * args.horizon)
    weight = jnp.broadcast_to((there & (args.mode != "online"))[:, None], data.reward.shape)
    known = count(data, weight.astype(jnp.float32), lock.num_actions)
    agent = update(agent.replace(policies=policies, known=known), first, args)[0]
    return agent.replace(searched=searched(agent, transition, reward, first, args)[0])


def train(agent: Agent, keys, args: Args, lock) -> tuple[Agent, dict]:
    """One lane: an episode for every `horizon` keys, until it has ended; mean metrics."""
    exact = [jnp.asarray(x, jnp.float32) for x in lock.tables()]

    def episode(agent, key):
        goes_on = 1.0 - (finished(agent.epoch, agent.left, args) | (args.mode == "offline"))
        rows = play(agent.explorer, key, lock)
        new = count(rows, goes_on * jnp.ones((lock.horizon, 1)), lock.num_actions)
        agent = agent.replace(known=jax.tree.map(jnp.add, agent.known, new), episodes=agent.episodes + goes_on)
        agent, metrics = update(agent, exact[-1], args)
        so_far, value = searched(agent, *exact, args)
        agent = agent.replace(searched=so_far)
        if args.mode != "offline":  # where no episode changes anything
            metrics["searched"] = so_far
        return agent, {**metrics, "episodes": agent.episodes, "value": value}

    agent, metrics = jax.lax.scan(episode, agent, keys[:: args.horizon])
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    lock = lock_of(data.task, args)
    args = whole_episodes(dataclasses.replace(args, horizon=lock.horizon))
    checked(args)
    with Run(__file__, args, data.task, act, unit=args.horizon) as run:
        run.note(other_rewards(data.task))
        rows = run.replicate(data.by_step(lock.horizon))
        agent = run.init(partial(init, spec=data.spec))
        begin = run.over_lanes(partial(start, lock=lock), in_axes=(0, 0, None))
        agent = run.restore(begin(agent, run.lane_args, rows))
        train_lanes = run.over_lanes(partial(train, lock=lock), in_axes=(0, 0, 0), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args)
            run.log(agent, metrics, updates=(run.done + run.chunk) // args.horizon)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
