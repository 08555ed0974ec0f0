"""IL and PPO in generated levels: PPO that imitates demonstrations before it begins, beside its updates, or both.

Andres, Schäfer, Villar-Rodriguez, Albrecht and Del Ser, "Using Offline Data to Speed-up Reinforcement Learning in
Procedurally Generated Environments", arXiv 2304.09825. Every episode is another level, so that a sparse reward is
hardly found by chance; a few demonstrations are cloned. --imitation says when:

    0  PPO alone
    1  PRE: the policy clones them for --cloning-updates, then PPO alone
    2  CONC: after each update of PPO it clones a memory that begins as the demonstrations (--cloning-per-iteration)
    3  PRE and CONC
    4  RAPID: as 2, without demonstrations: the memory begins empty
    5  BC: as 1, and nothing follows

The memory is RAPID's ranking buffer (Zha, Ma, Yuan, Hu and Liu, ICLR 2021, arXiv 2101.08152): the --memory-size
transitions of the highest score are kept. An episode's score is w0 G + w1 local + w2 global: its return; the distinct
ones among its states, over its length; the mean of 1 / sqrt(N(s)), N counting how often the agent has been in s. The
agent's own episodes enter as they end, and may push demonstrations out (`demos_left` in metrics.csv: the share of the
memory that they make).

Phases: --cloning-updates come first (before.csv; who does not clone waits). An iteration has --steps-per-iteration
environment steps, by --n-envs environments at once; totals (those of cloning too) and intervals are rounded up to
whole ones.
--buffer-size is not used. Levels that are not trained on are evaluated with --eval-env.

Choose it when levels differ from episode to episode, rewards are sparse, and a few of the levels are demonstrated.

Parity: PPO's steps and cloning's are equal to the authors' code, update for update, but for the deviation that divides
advantages (results/parity.md).

Deviations from the paper (and the authors' code):
- point mazes in place of MiniGrid, whose reward does not fall with time, and 32 training levels (10,000);
- demonstrations are the dataset's; the authors take buffers of RAPID in training;
- 16 environments (1), and time limits that end an episode, not the bootstrapping (both do);
- the states of the score are observations, told apart by a hash of their hundredths; N is kept in --count-cells cells;
- an episode's global term stays as it was when it entered (there it is computed anew for the whole memory);
- a demonstration's global term is as if each of its states had been seen once;
- of the memories only the ranked one: not the first-in-first-out one, nor that of one episode per level;
- cloning moves the policy alone, as by default there (values may be regressed as well);
- the advantages' variance divides by the rows of a batch (there: by one less).

    python algorithms/hybrid/il_procgen.py --imitation 0 1 2 3 4 5 --eval-env PointMazesUnseen-v0 --env-steps 65536
    python algorithms/hybrid/il_procgen.py --imitation 3 --episodes 2 --seeds 4      # two demonstrations
"""

import dataclasses
import sys
from collections.abc import Callable
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
from shared.arguments import Count, EnvSteps, Float, Fraction, HybridArgs, Positive, Size, hyperparameters
from shared.checks import other_rewards
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.jax_envs import JaxEnv, begin_envs, require_jax_env, step_envs
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch


@hyperparameters
class Args(HybridArgs):
    dataset: str = "point-mazes-demos"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    eval_env: str = ""
    """Gymnasium id to evaluate in, of the same observations and actions; empty: where the agent interacts."""
    episodes: Count = 0
    """Episodes that are trained on, the same for all lanes; 0: all."""
    imitation: Float = 3.0
    """When demonstrations are cloned: 0 never (PPO), 1 before (PRE), 2 meanwhile (CONC), 3 both, 4 meanwhile the
    agent's own episodes alone (RAPID), 5 before, and nothing follows (BC)."""
    cloning_updates: Size = 3_000
    """Gradient steps of cloning before the first environment step."""
    cloning_per_iteration: Count = 5
    """Gradient steps of cloning after each update of PPO."""
    cloning_batch_size: Size = 256
    """Transitions per gradient step of cloning, drawn uniformly from the memory."""
    memory_size: Size = 10_000
    """Transitions that the memory keeps, those of the highest score."""
    return_score: Float = 1.0
    """w0: weight of an episode's return in its score."""
    local_score: Float = 0.1
    """w1: weight of the share of an episode's states that are distinct."""
    global_score: Float = 0.001
    """w2: weight of the mean of 1 / sqrt(N) over an episode's states."""
    count_cells: Size = 65_536
    """Cells that visits are counted in; states of one cell are counted together."""
    n_envs: Size = 16
    """Environments of each lane, stepped together: N steps at once."""
    steps_per_iteration: Size = 2_048
    """Environment steps between two updates of the policy, which learns from these alone."""
    ppo_epochs: Size = 4
    """Passes of an update over an iteration's steps."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    ratio_clip: Positive = 0.2
    """The ratio counts within 1 +- ratio_clip."""
    max_grad_norm: Float = 0.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    entropy_cost: Float = 0.01
    """Weight of the policy's entropy."""
    value_coefficient: Float = 0.5
    """Weight of the value function's error beside the policy's loss."""
    gae_lambda: Fraction = 0.95
    """lambda of the generalised advantage estimate, in [0, 1]."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layers of every network that has no argument of its own for them."""
    sample_actions: bool = True
    """Evaluate with sampled actions instead of the mean's."""
    env_steps: EnvSteps = 10_000_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""


PRESETS: dict[str, dict[str, Any]] = {}

PPO, PRE, CONC, BOTH, RAPID, BC = range(6)
"""Values of --imitation."""
dense_init = nn.initializers.orthogonal(2.0**0.5)


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.tanh(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(1.0))(x)


class Networks(NamedTuple):
    actor: MLP
    """Logits [B, A]"""
    value: MLP
    """V [B, 1]"""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    value: Any
    actor_opt: optax.OptState
    """Of PPO and of cloning."""
    value_opt: optax.OptState


class Steps(NamedTuple):
    """Of N environments [T, N, ...]."""

    batch: Batch
    log_prob: jax.Array
    """[T, N] of the action when it was drawn"""
    ended: jax.Array
    """[T, N] 1 where an episode did"""


class Memory(NamedTuple):
    """The ranking buffer, the highest scores first."""

    obs: jax.Array
    """[C, O]"""
    action: jax.Array
    """[C]"""
    score: jax.Array
    """[C] of the row's episode; -inf: no row is here."""
    demonstrated: jax.Array
    """[C] 1 where the row is of the demonstrations"""


class Past(NamedTuple):
    """The last K steps of N environments [K, N, ...], K an episode's most steps; those before the first have ended."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    ended: jax.Array


class Loop(NamedTuple):
    """What a lane has beside its agent."""

    env_state: Any
    """[N, ...]"""
    obs: jax.Array
    """[N, O]"""
    memory: Memory
    past: Past
    counts: jax.Array
    """[cells] visits of the agent"""


def whole_iterations(args: Args) -> Args:
    """`args` with iterations of whole steps of all environments, totals and intervals of whole iterations."""
    length = -(-args.steps_per_iteration // args.n_envs) * args.n_envs
    names = ("env_steps", "cloning_updates", "log_every", "eval_every", "checkpoint_every")
    whole = {n: -(-getattr(args, n) // length) * length for n in names}
    return dataclasses.replace(args, steps_per_iteration=length, **whole)


def during(args: Args, *kinds: int):
    """[] bool: whether --imitation is one of `kinds`."""
    return jnp.isin(jnp.int32(args.imitation), jnp.array(kinds))


# ------------------------------------------------------------------------------------------ the memory


def hashed(obs):
    """[...] uint32 that are the same for states [..., O] of the same hundredths."""
    whole = jnp.round(100.0 * obs).astype(jnp.int32).astype(jnp.uint32)
    factors = jax.random.bits(jax.random.key(0), obs.shape[-1:]) | jnp.uint32(1)
    h = ((whole ^ (whole >> 7)) * factors).sum(-1, dtype=jnp.uint32)
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    return h ^ (h >> 15)


def scores(state, episode, reward, seen, args: Args):
    """[R] w0 G + w1 distinct / length + w2 mean 1 / sqrt(N), of each row's episode.

    Of rows with the hash `state` [R], the number `episode` [R] in 0 .. R - 1, `reward` [R] and N = `seen` [R] >= 1.
    """
    rows = len(state)
    total = partial(jax.ops.segment_sum, segment_ids=episode, num_segments=rows)
    order = jnp.lexsort((state, episode))
    s, e = state[order], episode[order]
    first = jnp.ones(rows).at[order].set(jnp.concatenate([jnp.ones(1), (s[1:] != s[:-1]) | (e[1:] != e[:-1])]))
    length = jnp.maximum(total(jnp.ones(rows)), 1.0)
    local_bonus, global_bonus = total(first) / length, total(1.0 / jnp.sqrt(seen)) / length
    score = args.return_score * total(reward) + args.local_score * local_bonus + args.global_score * global_bonus
    return score[episode]


def ranked(memory: Memory, new: Memory) -> Memory:
    """The best rows of both, as many as `memory` has; among equals those that are new."""
    every = jax.tree.map(lambda a, b: jnp.concatenate([b, a]), memory, new)
    score, at = jax.lax.top_k(every.score, len(memory.score))
    return jax.tree.map(lambda x: x[at], every)._replace(score=score)


def no_memory(size: int, spec: Spec) -> Memory:
    zeros = jnp.zeros(size)
    return Memory(jnp.zeros((size, *spec.obs_shape)), jnp.zeros(size, jnp.int32), zeros - jnp.inf, zeros)


def demonstrations(data: Dataset) -> dict[str, np.ndarray]:
    """Their rows [N, ...]: what `first_memory` reads."""
    return {"obs": data.obs, "action": data.action, "reward": data.reward, "episode": data.episode().astype(np.int32)}


def first_memory(demos: dict, args: Args, spec: Spec) -> Memory:
    """The memory that training begins with: of the demonstrations, or empty with RAPID."""
    own = demos["obs"], demos["action"], demos["episode"]
    score = scores(hashed(own[0]), own[2], demos["reward"], jnp.ones(len(own[0])), args)
    known = Memory(own[0], own[1], jnp.where(during(args, RAPID), -jnp.inf, score), jnp.ones(len(score)))
    return ranked(no_memory(args.memory_size, spec), known)


def remember(loop: Loop, steps: Steps, args: Args) -> Loop:
    """`loop` with the steps [T, N] counted, and the episodes that ended in them in its memory, if they are best."""
    new = Past(steps.batch.obs, steps.batch.action, steps.batch.reward, steps.ended)
    past = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), loop.past, new)
    length, envs = past.ended.shape
    state = hashed(past.obs)
    cell = state % args.count_cells
    counts = loop.counts.at[cell[-len(steps.ended) :]].add(1)

    before = jnp.cumsum(past.ended, axis=0) - past.ended  # episodes that ended before a row, in its environment
    episode = before.astype(jnp.int32) * envs + jnp.arange(envs)
    is_new = jnp.arange(length)[:, None] >= length - len(steps.ended)
    ends = jnp.zeros(length * envs).at[episode].max(past.ended * is_new)[episode]  # whether the row's ended just now
    seen = jnp.maximum(counts[cell], 1)
    score = scores(*(x.ravel() for x in (state, episode, past.reward, seen)), args)
    rows = jax.tree.map(lambda x: x.reshape(length * envs, *x.shape[2:]), past)
    score = jnp.where(ends.ravel() > 0, score, -jnp.inf)
    memory = ranked(loop.memory, Memory(rows.obs, rows.action, score, jnp.zeros(len(score))))
    past = jax.tree.map(lambda x: x[len(steps.ended) :], past)
    return loop._replace(memory=memory, past=past, counts=counts)


def remembered(memory: Memory):
    """[] rows that are there."""
    return (memory.score > -jnp.inf).sum()


# ------------------------------------------------------------------------------------- what is learned


def surrogate(log_prob, old_log_prob, adv, clip):
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi(a|s) / pi_old(a|s): PPO's, offline and online."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * adv)


def advantages(v, next_v, batch: Batch, ended, args: Args):
    """[T] A_t = d_t + gamma lambda A_{t+1} within an episode, d_t = r + gamma V(s') - V(s) (V(s') counts 0 at its end).

    A time limit ends the sum, not the bootstrapping.
    """
    delta = batch.reward + args.discount * (1.0 - batch.terminal) * next_v - v

    def back(adv, x):
        delta, ended = x
        adv = delta + args.discount * args.gae_lambda * (1.0 - ended) * adv
        return adv, adv

    return jax.lax.scan(back, jnp.zeros(()), (delta, ended), reverse=True)[1]


def action_log_prob(net: MLP, actor, obs, action):
    """log pi(a|s) [...] of the actions [...], and of all [..., A]."""
    every = nn.log_softmax(net.apply(actor, obs))
    return jnp.take_along_axis(every, action[..., None], -1)[..., 0], every


def actor_loss(actor, net: MLP, batch: Batch, old_log_prob, adv, args: Args):
    """The surrogate of standardised advantages, minus the entropy."""
    log_prob, every = action_log_prob(net, actor, batch.obs, batch.action)
    chex.assert_equal_shape([log_prob, old_log_prob, adv])
    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    entropy = -(jnp.exp(every) * every).sum(-1).mean()
    loss = surrogate(log_prob, old_log_prob, adv, args.ratio_clip).mean() - args.entropy_cost * entropy
    return loss, {"entropy": entropy}


def value_loss(value, net: MLP, batch: Batch, old_v, target, args: Args):
    """c max(mean (V - R)^2, mean (V_clip - R)^2), V_clip within the clip of the old V."""
    v = net.apply(value, batch.obs)[..., 0]
    chex.assert_equal_shape([v, old_v, target])
    clipped = old_v + jnp.clip(v - old_v, -args.ratio_clip, args.ratio_clip)
    error = jnp.maximum(((v - target) ** 2).mean(), ((clipped - target) ** 2).mean())
    return args.value_coefficient * error, {"v": v.mean()}


def cloning_loss(actor, net: MLP, batch: Batch):
    """-log pi(a|s), without an entropy term."""
    log_prob, every = action_log_prob(net, actor, batch.obs, batch.action)
    return -log_prob.mean(), {"cloned_accuracy": (every.argmax(-1) == batch.action).mean()}


def optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(args.learning_rate, eps=1e-5)


def descend(loss: Callable, params, opt_state, args: Args, clip: bool, *inputs):
    """One gradient step of `loss(params, *inputs)`: the parameters, the optimiser's state, loss and metrics."""
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, *inputs)
    if clip:
        largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
        norm = optax.global_norm(grads)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, largest / (norm + 1e-6)), grads)
    updates, opt_state = optimizer(args).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, {loss.__name__: value, **info}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(MLP(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, 1))
    actor_key, value_key = jax.random.split(key)
    obs = jnp.zeros((1, *spec.obs_shape))
    actor, value = nets.actor.init(actor_key, obs), nets.value.init(value_key, obs)
    opts = optimizer(args).init(actor), optimizer(args).init(value)
    return Agent(nets=nets, actor=actor, value=value, actor_opt=opts[0], value_opt=opts[1])


def clone(agent: Agent, memory: Memory, keys, args: Args) -> tuple[Agent, dict]:
    """A gradient step of cloning for each of `keys`, its norm not clipped; of an empty memory nothing is learned."""

    def step(agent, key):
        row = jax.random.randint(key, (args.cloning_batch_size,), 0, jnp.maximum(remembered(memory), 1))
        batch = Batch(obs=memory.obs[row], action=memory.action[row])
        found = descend(cloning_loss, agent.actor, agent.actor_opt, args, False, agent.nets.actor, batch)
        return agent.replace(actor=found[0], actor_opt=found[1]), found[2]

    def learn():
        new, info = jax.lax.scan(step, agent, keys)
        return new, jax.tree.map(jnp.mean, info)

    return jax.lax.cond(remembered(memory) > 0, learn, lambda: nothing(learn, agent))


def nothing(learn: Callable, agent: Agent) -> tuple[Agent, dict]:
    """The agent as it is, with metrics of 0 in place of those of `learn`."""
    return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn)[1])


def update(agent: Agent, steps: Steps, key, args: Args) -> tuple[Agent, dict]:
    """PPO on the steps [T, N] of one iteration."""
    nets, v_of = agent.nets, lambda obs: agent.nets.value.apply(agent.value, obs)[..., 0]
    v, next_v = v_of(steps.batch.obs), v_of(steps.batch.next_obs)
    adv = jax.vmap(partial(advantages, args=args), 1, 1)(v, next_v, steps.batch, steps.ended)
    batch = Batch(obs=steps.batch.obs, action=steps.batch.action)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch, steps.log_prob, adv, v, adv + v))
    n = args.steps_per_iteration
    batches = n // args.batch_size

    def step(agent, index):
        batch, log_prob, adv, v, target = jax.tree.map(lambda x: x[index], rows)
        of_actor = (actor_loss, agent.actor, agent.actor_opt, args, True, nets.actor, batch, log_prob, adv, args)
        of_value = (value_loss, agent.value, agent.value_opt, args, True, nets.value, batch, v, target, args)
        (actor, actor_opt, info), (value, value_opt, info_v) = descend(*of_actor), descend(*of_value)
        agent = agent.replace(actor=actor, actor_opt=actor_opt, value=value, value_opt=value_opt)
        return agent, {**info, **info_v}

    order = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(key, args.ppo_epochs))
    order = order[:, : batches * args.batch_size].reshape(args.ppo_epochs * batches, -1)
    agent, info = jax.lax.scan(step, agent, order)
    return agent, jax.tree.map(jnp.mean, info)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B]: sampled, or the likeliest with --no-sample-actions."""
    logits = agent.nets.actor.apply(agent.actor, obs)
    return jax.random.categorical(key, logits) if args.sample_actions else logits.argmax(-1)


def begin(key, args: Args, demos: dict, env: JaxEnv, spec: Spec, limit: int) -> Loop:
    """One lane's environments at their first observations, and its first memory; `limit`: an episode's most steps."""
    env_state, obs = begin_envs(env, key, args.n_envs)
    shape = limit, args.n_envs
    none = jnp.zeros((*shape, *spec.obs_shape)), jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.ones(shape)
    return Loop(env_state, obs, first_memory(demos, args, spec), Past(*none), jnp.zeros(args.count_cells, jnp.int32))


def collect(agent: Agent, loop: Loop, key, args: Args, env: JaxEnv) -> tuple[Loop, Steps]:
    """An iteration's steps [T, N] of one lane."""

    def step(carry, key):
        env_state, obs = carry
        action_key, env_key = jax.random.split(key)
        action = jax.random.categorical(action_key, agent.nets.actor.apply(agent.actor, obs))
        log_prob, _ = action_log_prob(agent.nets.actor, agent.actor, obs, action)
        env_state, new, moved = step_envs(env, env_state, action, env_key)
        terminal = moved.terminal.astype(jnp.float32)
        batch = Batch(obs=obs, action=action, reward=moved.reward, terminal=terminal, next_obs=moved.next_obs)
        return (env_state, new), Steps(batch, log_prob, jnp.float32(moved.terminal | moved.truncated))

    keys = jax.random.split(key, args.steps_per_iteration // args.n_envs)
    (env_state, obs), steps = jax.lax.scan(step, (loop.env_state, loop.obs), keys)
    return loop._replace(env_state=env_state, obs=obs), steps


def pretrain(agent: Agent, keys, args: Args, memory: Memory) -> tuple[Agent, dict]:
    """One lane: a step of cloning for every key, where demonstrations are cloned before; mean metrics."""
    learn = partial(clone, agent, memory, keys, args)
    return jax.lax.cond(during(args, PRE, BOTH, BC), learn, lambda: nothing(learn, agent))


def train(carry: tuple[Agent, Loop], keys, args: Args, env: JaxEnv) -> tuple[tuple[Agent, Loop], dict]:
    """One lane: an iteration for every `steps_per_iteration` keys; mean metrics."""

    def iteration(carry, key):
        agent, loop = carry
        collect_key, update_key, cloning_key = jax.random.split(key, 3)
        loop, steps = collect(agent, loop, collect_key, args, env)
        loop = remember(loop, steps, args)

        ppo = partial(update, agent, steps, update_key, args)
        agent, info = jax.lax.cond(during(args, BC), lambda: nothing(ppo, agent), ppo)
        if args.cloning_per_iteration:
            cloning_keys = jax.random.split(cloning_key, args.cloning_per_iteration)
            cloning = partial(clone, agent, loop.memory, cloning_keys, args)
            kinds = during(args, CONC, BOTH, RAPID)
            agent, more = jax.lax.cond(kinds, cloning, lambda: nothing(cloning, agent))
            info = {**info, **more}
        there = loop.memory.score > -jnp.inf
        left = (loop.memory.demonstrated * there).sum() / jnp.maximum(there.sum(), 1)
        ended = jnp.maximum(steps.ended.sum(), 1.0)
        info |= {"demos_left": left, "remembered": there.sum(), "train_return": steps.batch.reward.sum() / ended}
        return (agent, loop), info

    carry, metrics = jax.lax.scan(iteration, carry, keys[:: args.steps_per_iteration])
    return carry, jax.tree.map(jnp.mean, metrics)


def possible(data: Dataset, args: Args) -> int:
    """The most steps of an episode; InputError where the arguments and the data do not go together."""
    limit = data.task.env_spec and data.task.env_spec.max_episode_steps
    if not limit:
        raise InputError(f"The memory ranks whole episodes; those of '{data.task.id}' have no time limit.")
    if args.steps_per_iteration < 1:
        raise InputError(f"--steps-per-iteration must be at least 1, not {args.steps_per_iteration}.")
    if args.batch_size > args.steps_per_iteration:
        raise InputError(f"--batch-size {args.batch_size} is more than an iteration's {args.steps_per_iteration}.")
    if not np.isin(np.atleast_1d(args.imitation), range(6)).all():
        raise InputError(f"--imitation is one of 0 to 5, not {args.imitation}.")
    if len(data.obs) > args.memory_size:
        raise InputError(f"--memory-size {args.memory_size}: the demonstrations have {len(data.obs):,} rows.")
    return limit


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True).some_episodes(args.episodes)
    env, limit = require_jax_env(data.task), possible(data, args)
    args = whole_iterations(args)
    evaluated = data.task.in_env(args.eval_env) if args.eval_env else data.task
    with Run(__file__, args, evaluated, act, unit=args.steps_per_iteration, before=args.cloning_updates) as run:
        run.note(other_rewards(data.task))
        demos = run.replicate(demonstrations(data))
        agent = run.init(partial(init, spec=data.spec))
        begin_lanes = run.over_lanes(partial(begin, env=env, spec=data.spec, limit=limit), in_axes=(0, 0, None))
        agent, loop = run.restore(agent, begin_lanes(run.step_keys(run.total), run.lane_args, demos))
        pretrain_lanes = run.over_lanes(pretrain, in_axes=(0, 0, 0, 0), donate=True)
        train_lanes = run.over_lanes(partial(train, env=env), in_axes=(0, 0, 0), donate=True)
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = pretrain_lanes(agent, keys, run.lane_args, loop.memory)
                run.log(agent, metrics, state=loop)
                continue
            (agent, loop), metrics = train_lanes((agent, loop), keys, run.lane_args)
            iterations = (run.done + run.chunk) // args.steps_per_iteration
            updates = iterations * args.ppo_epochs * (args.steps_per_iteration // args.batch_size)
            run.log(agent, metrics, updates=updates, state=loop)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
