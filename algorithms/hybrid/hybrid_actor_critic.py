"""Hybrid actor-critic: a rarely refitted critic of the optimal values and an actor that is reset with it.

Tan, Fan and Wei, "Actor-Critics Can Achieve Optimal Sample Efficiency", ICML 2025, arXiv 2505.03710: theory made small,
with tables on a combination lock whose states are seen. After each episode the critic f_h is fitted anew, backwards in
h, where what is known of a step has doubled since the last fit: to the optimal values (a maximum in the target, not
the actor's mean), on the dataset and all that was collected, with a bonus for what has hardly been tried. The actor
is softmax(sum of eta f since the last fit): with a new critic it begins again, so that it never follows old ones.

Choose it when you want to see what optimism and a dataset are worth to an actor-critic, exactly and in seconds.

Deviations from the paper:
- tables, of which least squares on one-hot features are the counts; no general function classes;
- the step size of the actor is no longer the theory's, sqrt(log A / (H^2 T)), which moves too little in few episodes;
- the dataset is fitted after the first episode, which is uniform (with --actor greedy: all of action 0);
- the lock and its dataset are the same in all lanes, which differ in their episodes;
- --buffer-size is not used: counts forget nothing.

    python algorithms/hybrid/hybrid_actor_critic.py --seeds 8
    python algorithms/hybrid/hybrid_actor_critic.py --seeds 8 --bonus 0 --offline-fraction 0 0.001 0.01 0.1 1
"""

import dataclasses
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
    actor: Literal["softmax", "greedy"] = "softmax"
    """The actor of the paper, or the action of the highest f (which is LSVI-UCB with rare switches)."""
    offline_fraction: Fraction = 1.0
    """Share of the dataset's rows of each step that is there, the first ones, in [0, 1]."""
    bonus: Float = 0.5
    """Times the uncertainty sqrt(phi' Lambda^-1 phi), added to the critic; 0: no optimism."""
    ridge: Float = 1.0
    """Added to the diagonal of Lambda."""
    switch_factor: Float = 2.0
    """The critic is fitted where det(Lambda_h) has grown by this factor since the last fit, for any h."""
    reset: bool = True
    """The actor begins again with a new critic."""
    softmax_lr: Float = 1.0
    """Step size eta of the actor: softmax(sum of eta f)."""
    env_steps: EnvSteps = 40_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 800
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 8_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 50
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}


class Counts(NamedTuple):
    """What is known of each step, state and action: Lambda without its ridge, and what is regressed on."""

    visits: jax.Array
    """[H, S, A]"""
    reward: jax.Array
    """[H, S, A] sum"""
    following: jax.Array
    """[H, S, A, S] how often each state came next"""


class Agent(flax.struct.PyTreeNode):
    critic: jax.Array
    """f [H, S, A]"""
    logits: jax.Array
    """[H, S, A] sum of eta f since the last reset"""
    information: jax.Array
    """[H] log det(Lambda_h) at the last fit"""
    fits: jax.Array
    """[] of the critic, so far"""


def lock_of(task: Task, args: Args):
    """The lock of the task's environment, as functions of many episodes at the same step."""
    lock = getattr(task.env_spec and task.make_env().unwrapped, "lock", None)
    if lock is None or not lock.tabular:
        raise InputError(f"'{task.id}' is no lock whose states are seen; try --dataset {Args.dataset}.")
    if args.horizon not in (0, lock.horizon):
        raise InputError(f"--horizon {args.horizon}: the lock of '{task.id}' has {lock.horizon} steps.")
    return lock


def checked(args: Args, n: int) -> None:
    """InputError where what was never tried would be divided by 0, no growth would be enough for another fit, or there
    is nothing to learn from. `n`: rows that the dataset has of each step."""
    for name in ("ridge", "switch_factor"):
        if not (np.asarray(getattr(args, name)) > 0).all():
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}.")
    if args.mode == "offline" and (np.round(np.asarray(args.offline_fraction) * n) < 1).any():
        raise InputError(f"--mode offline --offline-fraction {args.offline_fraction}: none of {n:,} rows is there.")


def whole_episodes(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole episodes."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // args.horizon) * args.horizon for n in names})


def count(rows: Batch, weight, n_actions: int) -> Counts:
    """Of rows [H, n] with one-hot states, each as often as `weight` [n] says."""
    action = jax.nn.one_hot(rows.action, n_actions) * weight[:, None]
    pair = rows.obs[..., :, None] * action[..., None, :]  # [H, n, S, A]
    reward = jnp.einsum("hnsa,hn->hsa", pair, rows.reward)
    return Counts(pair.sum(1), reward, jnp.einsum("hnsa,hnt->hsat", pair, rows.next_obs))


def fit(known: Counts, args: Args):
    """f_h = Lambda_h^-1 sum phi (r + max_a f_{h+1}(s', a)) + c sqrt(phi' Lambda_h^-1 phi), in [0, H - h]; [H, S, A]."""

    def back(next_v, x):
        left, visits, reward, following = x
        scale = visits + args.ridge
        f = (reward + following @ next_v) / scale + args.bonus / jnp.sqrt(scale)
        f = jnp.clip(f, 0.0, left)
        return f.max(-1), f

    left = jnp.arange(args.horizon, 0, -1, jnp.float32)
    return jax.lax.scan(back, jnp.zeros(known.visits.shape[1]), (left, *known), reverse=True)[1]


def information(known: Counts, args: Args):
    """log det(Lambda_h) [H]"""
    return jnp.log(known.visits + args.ridge).sum((-2, -1))


def log_policy(agent: Agent, args: Args):
    """log pi_h(a|s) [H, S, A]"""
    if args.actor == "greedy":
        return jnp.log(jax.nn.one_hot(agent.critic.argmax(-1), agent.critic.shape[-1]))
    return jax.nn.log_softmax(agent.logits)


def policy_value(policy, transition, reward, start):
    """The return [] of a policy [H, S, A], exactly, on known dynamics."""

    def back(v, x):
        policy, transition, reward = x
        return (policy * (reward + transition @ v)).sum(-1), None

    return start @ jax.lax.scan(back, jnp.zeros_like(start), (policy, transition, reward), reverse=True)[0]


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane. `key` is not used: tables begin with zeros, of which a softmax actor chooses uniformly, a
    greedy one action 0."""
    shape = (args.horizon, spec.obs_shape[0] - 1, spec.action_dim)
    tables = jnp.zeros(shape)
    return Agent(critic=tables, logits=tables, information=jnp.zeros(args.horizon), fits=jnp.float32(0))


def update(agent: Agent, known: Counts, args: Args) -> tuple[Agent, dict]:
    """Fits the critic and resets the actor where enough is new, then moves the actor."""
    now = information(known, args)
    switch = (agent.fits == 0) | jnp.any(now - agent.information > jnp.log(args.switch_factor))
    critic = jnp.where(switch, fit(known, args), agent.critic)
    logits = jnp.where(switch & args.reset, 0.0, agent.logits) + args.softmax_lr * critic
    fits = agent.fits + switch
    new = Agent(critic, logits, jnp.where(switch, now, agent.information), fits)
    return new, {"fits": fits, "v": critic[0].max(-1)[:2].mean()}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B] drawn from the policy of each observation's step."""
    h, state = obs[:, -1].astype(jnp.int32), obs[:, :-1].argmax(-1)
    return jax.random.categorical(key, log_policy(agent, args)[h, state])


def play(policy, key, lock) -> Batch:
    """One episode [H, 1, ...] of a log policy [H, S, A]."""

    def step(carry, x):
        state, obs = carry
        log_prob, key = x
        action_key, step_key = jax.random.split(key)
        action = jax.random.categorical(action_key, log_prob[obs.argmax(-1)])
        new, next_obs, reward, _ = lock.step(state, action, step_key)
        return (new, next_obs), Batch(obs=obs, action=action, reward=reward, next_obs=next_obs)

    first_key, key = jax.random.split(key)
    steps = (policy, jax.random.split(key, lock.horizon))
    return jax.lax.scan(step, lock.reset(first_key, (1,)), steps)[1]


def start(args: Args, data: Batch, n_actions: int) -> Counts:
    """What one lane knows before it interacts, of data [H, n, ...]."""
    n = data.reward.shape[1]
    there = jnp.arange(n) < jnp.round(args.offline_fraction * n)
    return count(data, (there & (args.mode != "online")).astype(jnp.float32), n_actions)


def train(carry: tuple[Agent, Counts], keys, args: Args, lock) -> tuple[tuple[Agent, Counts], dict]:
    """One lane: an episode for every `horizon` keys; mean metrics."""
    exact = [jnp.asarray(x, jnp.float32) for x in lock.tables()]

    def episode(carry, key):
        agent, known = carry
        policy = log_policy(agent, args)
        new = count(play(policy, key, lock), jnp.ones(1), lock.num_actions)
        if args.mode != "offline":
            known = jax.tree.map(jnp.add, known, new)
        agent, metrics = update(agent, known, args)
        prob = jnp.exp(policy)
        entropy = -jnp.where(prob > 0, prob * policy, 0.0).sum(-1).mean()
        return (agent, known), {**metrics, "value": policy_value(prob, *exact), "entropy": entropy}

    carry, metrics = jax.lax.scan(episode, carry, keys[:: args.horizon])
    return carry, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    lock = lock_of(data.task, args)
    args = whole_episodes(dataclasses.replace(args, horizon=lock.horizon))
    rows = data.by_step(lock.horizon)
    checked(args, rows.reward.shape[1])
    with Run(__file__, args, data.task, act, unit=args.horizon) as run:
        run.note(other_rewards(data.task))
        rows = run.replicate(rows)
        agent = run.init(partial(init, spec=data.spec))
        known = run.over_lanes(partial(start, n_actions=lock.num_actions), in_axes=(0, None))(run.lane_args, rows)
        agent, known = run.restore(agent, known)
        train_lanes = run.over_lanes(partial(train, lock=lock), in_axes=(0, 0, 0), donate=True)
        for keys in run.chunks():
            (agent, known), metrics = train_lanes((agent, known), keys, run.lane_args)
            run.log(agent, metrics, updates=(run.done + run.chunk) // args.horizon, state=known)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
