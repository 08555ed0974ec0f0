"""Optimistic forgetting: a planner that stays near where goals were reached, and lets go of what says elsewhere is bad.

A reconstruction. Quessy, Richardson and East, "Safe Reinforcement Learning with Minimal Supervision", 2025, arXiv
2501.04481: no code was found, and what is known here is the abstract; the learner is that of LS3 (Wilcox et al.,
"LS3: Latent Space Safe Sets for Long-Horizon Visuomotor Control of Sparse Reward Iterative Tasks", CoRL 2021, arXiv
2107.04775) without pictures. From a log an ensemble of dynamics, a value V and three classifiers are learned: f_C(s) of
violations, f_G(s) of the goal, and the safe set f_S(s) of states from which the goal was reached,

    y_S = max(1[a successful episode], gamma_S f_S'(s')).

V is minus the steps to the goal, discounted. A planner (CEM) takes the sequence of H actions that is nearest to it,
by f_G and V(s_H), among those with f_C <= 0.2 in all states and f_S(s_H) >= 0.8; where there is none, what breaks these
bounds least. Each online episode is followed by --updates-per-episode updates. With few demonstrations the safe set is
small, and the log's many states of no success keep it so. Therefore f_S and f_C forget them: over the first
--forget-steps the share --forget-share of the log's rows that neither succeeded nor violated anything is left out of
the batches of these two, in an order that each lane draws, so that what was never tried counts as safe until it is seen
not to be (--forgetting optimistic). Violations are never forgotten. --forgetting fifo lets f_S and f_C go of the log's
oldest rows, whatever they are; --forget-share 0 of nothing: LS3. Dynamics, V and f_G learn from all that there is.

The log holds episodes of any kind, and of those that succeeded without a violation the first --n-demos; or it is an
unsupervised agent's (--dataset point-guarded-explore --n-demos -1), whose few successes count as demonstrations. The
environment must be written in JAX and tell costs by states that observations show (point worlds do). metrics.csv has
success and violation of each online episode, and the violating steps per episode so far (violations). An online episode
counts as many steps as it may have; --env-steps and intervals are rounded up to whole ones.

Choose it when few demonstrations are all that is safe to begin with, and what follows must not be broken.

Deviations from the paper: which they are is not known. Of LS3:
- states are vectors, without an encoder; classifiers and dynamics have two hidden layers of 128;
- V is learned by TD with a target network alone (there: first by the returns of the data), and where an episode ends
  without a goal it is the worst there is (there: zero, so that hazards attract);
- the mean prediction of every model is a particle (there: draws of 20), and classifiers are averaged over them;
- a plan of no feasible sequence ranks by what it lacks (there: the threshold of f_S is lowered until one qualifies);
- experience is never forgotten, and a log has no dates: how old its episodes are each lane draws, too, as the order of
  a file is the one in which it was written (of point-guarded-mixed: uniform actions, then those that hold the
  demonstrations);
- terminal states belong to the safe set where they are a goal's, and do not where they are not.

    python algorithms/offline_to_online/optimistic_forgetting.py --preset small --seeds 4 --forget-share 0 0.9
    python algorithms/offline_to_online/optimistic_forgetting.py --preset small --forgetting fifo --n-demos 50
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
from shared.arguments import EnvSteps, FinetuneArgs, Float, Fraction, Size, StaticFraction, hyperparameters
from shared.checks import other_rewards
from shared.data import Dataset, load_dataset
from shared.env_models import costs
from shared.errors import InputError
from shared.jax_envs import JaxEnv, require_jax_env
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(FinetuneArgs):
    dataset: str = "point-guarded-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    n_demos: int = 5
    """Successful episodes of the data that are kept, the first ones; -1: all."""
    goal_reward: float = 1.0
    """Rewards of at least this are given at goals alone."""
    forgetting: Literal["optimistic", "fifo"] = "optimistic"
    """What f_S and f_C forget of the data: rows without success or violation, in random order, or the oldest ones."""
    forget_share: Fraction = 0.9
    """Share of what may be forgotten that is in the end, in [0, 1]."""
    forget_steps: Size = 1_000
    """Environment steps over which the forgotten share grows."""
    updates_per_episode: Size = 500
    """Gradient updates after each online episode."""
    constraint_threshold: Float = 0.2
    """Largest f_C of the states of a plan."""
    safe_threshold: Float = 0.8
    """Least f_S of a plan's last state."""
    safe_discount: Fraction = 0.3
    """gamma_S: what a state is worth to the safe set whose successor belongs to it, in [0, 1]."""
    steps: Size = 5
    """H: steps of a plan, and of the sequences that the model is unrolled along."""
    plan_samples: Size = 1_000
    """Sequences of actions that are drawn in each iteration of a plan."""
    elite_share: StaticFraction = 0.1
    """Share of the sequences that the next iteration's mean and deviation are taken of."""
    plan_iterations: Size = 5
    """Iterations of a plan."""
    min_std: Float = 0.05
    """Least standard deviation of a plan's actions, and of the policy's where there is one."""
    n_models: Size = 5
    """Models in the ensemble."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 1e-3
    """Adam's step size: everything that is learned."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (128, 128)
    """Hidden layers of every network that has no argument of its own for them."""
    offline_updates: Size = 10_000
    """Gradient updates of each lane before its first environment step."""
    env_steps: EnvSteps = 6_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""


PRESETS = {
    "small": {  # ours: on two cores
        "plan_samples": 60, "plan_iterations": 3, "n_models": 3, "hidden_dims": (32, 32), "batch_size": 128,
        "updates_per_episode": 50, "offline_updates": 1_600, "env_steps": 1_600, "eval_every": 1_600, "tau": 0.02,
        "log_every": 80, "offline_eval_every": 1_600,
    },
}  # fmt: skip

CLASSIFIERS = ("constraint", "goal", "safe")
LEARNED = ("dynamics", "value", *CLASSIFIERS)
INFEASIBLE = 1e3
"""What a plan loses that breaks the least of its bounds."""


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


class Networks(NamedTuple):
    dynamics: MLP
    """Mean and log variance of s' - s."""
    scalar: MLP
    """V, or a classifier's logit."""
    spec: Spec


class Rows(NamedTuple):
    """Transitions [N] with what is known when their episode has ended; float32."""

    obs: jax.Array
    action: jax.Array
    terminal: jax.Array
    next_obs: jax.Array
    violation: jax.Array
    """1: next_obs costs something."""
    goal: jax.Array
    """1: next_obs is a goal."""
    success: jax.Array
    """1: of an episode that came to the goal without a violation."""


class Log(NamedTuple):
    """The dataset on the device."""

    rows: Rows
    episode: jax.Array
    """[N] the number of a row's episode, less than N"""
    stays: jax.Array
    """[N] bool: a row that is never forgotten (but by fifo)"""


class Experience(NamedTuple):
    """Of a lane's online episodes, in a ring."""

    rows: Rows
    """[C]"""
    inserted: jax.Array
    """[] rows so far"""
    violations: jax.Array
    """[] of these"""


class Batches(NamedTuple):
    """What the networks learn from, each [B]."""

    all: Rows
    """Of all rows: dynamics, V and f_G."""
    kept: Rows
    """Of those that are not forgotten: f_S and f_C."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    dynamics: Any
    """The models, stacked on a leading axis [M, ...]."""
    value: Any
    constraint: Any
    goal: Any
    safe: Any
    target_value: Any
    target_safe: Any
    opt: optax.OptState
    order_key: jax.Array
    """Data of the key by which the order is drawn in which the log is forgotten."""


# --------------------------------------------------------------------------------------- what is learned


def predict(nets: Networks, models, obs, action):
    """Mean of s' and log variance [M, ..., O]."""
    mean, log_var = jnp.split(jax.vmap(nets.dynamics.apply, (0, None, None))(models, obs, action), 2, axis=-1)
    return obs + mean, jnp.clip(log_var, -10.0, 2.0)


def dynamics_loss(models, nets: Networks, batch: Rows):
    """Gaussian: mean over models, rows and dimensions of ((s' - mean)^2 / var + log var) / 2."""
    mean, log_var = predict(nets, models, batch.obs, batch.action)
    return 0.5 * ((batch.next_obs - mean) ** 2 * jnp.exp(-log_var) + log_var).mean()


def value_loss(value, agent: Agent, batch: Rows, args: Args):
    """(V(s) - y)^2, y = 0 at the goal, else -1 + gamma V'(s'); an episode that ends elsewhere is worth -1 for ever."""
    v, next_v = (
        agent.nets.scalar.apply(p, s)[:, 0] for p, s in ((value, batch.obs), (agent.target_value, batch.next_obs))
    )
    next_v = jnp.where(batch.terminal > 0, -1.0 / jnp.maximum(1.0 - args.discount, 1e-3), next_v)
    y = (1.0 - batch.goal) * (-1.0 + args.discount * next_v)
    chex.assert_equal_shape([v, y])
    return ((v - y) ** 2).mean()


def cross_entropy(classifier, nets: Networks, obs, label):
    """[B] -y log f(s) - (1 - y) log(1 - f(s))."""
    return optax.sigmoid_binary_cross_entropy(nets.scalar.apply(classifier, obs)[:, 0], label)


def safe_set_loss(safe, agent: Agent, batch: Rows, args: Args):
    """Cross-entropy of f_S(s) with max(success, gamma_S f_S'(s')), and of terminal states with whether it is a goal."""
    chance = jax.nn.sigmoid(agent.nets.scalar.apply(agent.target_safe, batch.next_obs)[:, 0])
    label = jnp.maximum(batch.success, args.safe_discount * (1.0 - batch.terminal) * chance)
    ends = batch.terminal * cross_entropy(safe, agent.nets, batch.next_obs, batch.goal * (1.0 - batch.violation))
    return (cross_entropy(safe, agent.nets, batch.obs, label) + ends).mean()


def total_loss(params: dict, agent: Agent, batches: Batches, args: Args):
    """The sum of what the five networks learn, which share nothing."""
    nets, batch, kept = agent.nets, batches.all, batches.kept
    losses = {
        "dynamics_loss": dynamics_loss(params["dynamics"], nets, batch),
        "value_loss": value_loss(params["value"], agent, batch, args),
        "constraint_loss": cross_entropy(params["constraint"], nets, kept.next_obs, kept.violation).mean(),
        "goal_loss": cross_entropy(params["goal"], nets, batch.next_obs, batch.goal).mean(),
        "safe_set_loss": safe_set_loss(params["safe"], agent, kept, args),
    }
    return sum(losses.values()), losses


# ------------------------------------------------------------------------------------------ how it plans


def chance(agent: Agent, name: str, obs):
    """f(s) [...] of a classifier."""
    return jax.nn.sigmoid(agent.nets.scalar.apply(getattr(agent, name), obs)[..., 0])


def plan_scores(agent: Agent, obs, actions, args: Args):
    """What sequences of actions [H, N, A] from obs [O] are worth [N], and which are feasible [N] bool.

    sum_t (f_G(s_t) - 1) + V(s_H), up to where the goal is reached, the mean over models; less INFEASIBLE for each bound
    that is broken, and more the more it is.
    """

    def step(carry, action):
        states, goes_on, total, danger = carry  # [M, N, O], [M, N], [M, N], [N]
        states = jax.vmap(lambda p, s: predict(agent.nets, jax.tree.map(lambda x: x[None], p), s, action)[0][0])(
            agent.dynamics, states
        )
        danger = jnp.maximum(danger, (goes_on * chance(agent, "constraint", states)).mean(0))
        reached = chance(agent, "goal", states)
        total = total + goes_on * (reached - 1.0)
        return (states, goes_on * (reached < 0.5), total, danger), None

    shape = (args.n_models, actions.shape[1])
    start = jnp.broadcast_to(obs, (*shape, len(obs))), jnp.ones(shape), jnp.zeros(shape), jnp.zeros(shape[1])
    (states, goes_on, total, danger), _ = jax.lax.scan(step, start, actions)
    value = (total + goes_on * agent.nets.scalar.apply(agent.value, states)[..., 0]).mean(0)
    safe = jnp.where(goes_on > 0, chance(agent, "safe", states), 1.0).mean(0)
    lacks = danger - args.constraint_threshold, args.safe_threshold - safe
    broken = sum(INFEASIBLE * jnp.where(x > 0, w + x, 0.0) for x, w in zip(lacks, (2.0, 1.0), strict=True))
    return value - broken, broken == 0.0


def plan(agent: Agent, obs, key, args: Args):
    """The first action [A] of the last iteration's best sequence from obs [O], and whether it is feasible.

    The best ones of earlier iterations are not kept.
    """
    dims = args.steps, agent.nets.spec.action_dim
    elites = max(1, round(args.elite_share * args.plan_samples))

    def iteration(carry, key):
        mean, std = carry
        noise = jax.random.normal(key, (dims[0], args.plan_samples, dims[1]))
        actions = jnp.clip(mean[:, None] + std[:, None] * noise, -1.0, 1.0)
        scores, feasible = plan_scores(agent, obs, actions, args)
        best = jax.lax.top_k(scores, elites)[1]
        chosen = actions[:, best]
        return (chosen.mean(1), jnp.maximum(chosen.std(1), args.min_std)), (actions[0, best[0]], feasible[best[0]])

    keys = jax.random.split(key, args.plan_iterations)
    _, (action, feasible) = jax.lax.scan(iteration, (jnp.zeros(dims), jnp.ones(dims)), keys)
    return action[-1], feasible[-1]


# --------------------------------------------------------------------------------------------- the agent


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    size = spec.obs_shape[0]
    nets = Networks(MLP(args.hidden_dims, 2 * size), MLP(args.hidden_dims, 1), spec)
    *keys, order_key = jax.random.split(key, len(LEARNED) + 1)
    obs, action = jnp.zeros((1, size)), jnp.zeros((1, spec.action_dim))
    params = {name: nets.scalar.init(k, obs) for name, k in zip(LEARNED[1:], keys[1:], strict=True)}
    model = lambda k: nets.dynamics.init(k, obs, action)  # noqa: E731
    params["dynamics"] = jax.lax.map(model, jax.random.split(keys[0], args.n_models))
    return Agent(
        nets=nets,
        **params,
        target_value=params["value"],
        target_safe=params["safe"],
        opt=optax.adam(args.learning_rate).init(params),
        order_key=jax.random.key_data(order_key),
    )


def no_rows(n: int, spec: Spec) -> Rows:
    """[n] zeros."""
    wide = {"obs": spec.obs_shape, "next_obs": spec.obs_shape, "action": (spec.action_dim,)}
    return Rows(*(jnp.zeros((n, *wide.get(name, ()))) for name in Rows._fields))


def no_experience(args: Args, spec: Spec) -> Experience:
    """An empty ring."""
    return Experience(no_rows(min(args.buffer_size, args.env_steps), spec), jnp.int32(0), jnp.float32(0))


def staying(agent: Agent, log: Log, args: Args):
    """[N] rows of the log in the order in which they stay: what is forgotten first stands last. The lane's own."""
    number = jax.random.permutation(jax.random.wrap_key_data(agent.order_key), len(log.stays))
    if args.forgetting == "fifo":
        return jnp.argsort(number[log.episode], stable=True)[::-1]  # episodes by age, of each its last row first
    return jnp.argsort(jnp.where(log.stays, -1, number))


def forgotten(log: Log, env_step, args: Args):
    """Rows of the log [] that are left out of batches after so many environment steps."""
    may = len(log.stays) if args.forgetting == "fifo" else (~log.stays).sum()
    return jnp.floor(args.forget_share * jnp.minimum(env_step / args.forget_steps, 1.0) * may).astype(jnp.int32)


def draw(key, log: Log, order, kept, replay: Experience, args: Args) -> Rows:
    """[B] rows, uniform over the first `kept` of the log's rows in `order` [N] and the experience together."""
    size = jnp.minimum(replay.inserted, len(replay.rows.goal))
    at = jax.random.randint(key, (args.batch_size,), 0, kept + size)
    old, row = at < kept, order[jnp.minimum(at, len(order) - 1)]

    def choose(a, b):
        return jnp.where(old.reshape(-1, *(1,) * (a.ndim - 1)), a[row], b[jnp.maximum(at - kept, 0)])

    return jax.tree.map(choose, log.rows, replay.rows)


def sample(key, log: Log, order, replay: Experience, env_step, args: Args) -> Batches:
    """Of what the networks learn from after so many environment steps."""
    all_key, kept_key = jax.random.split(key)
    left = len(order) - forgotten(log, env_step, args)
    return Batches(draw(all_key, log, order, len(order), replay, args), draw(kept_key, log, order, left, replay, args))


def update(agent: Agent, batches: Batches, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything, then one of the targets."""
    params = {name: getattr(agent, name) for name in LEARNED}
    (_, info), grads = jax.value_and_grad(total_loss, has_aux=True)(params, agent, batches, args)
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    agent = agent.replace(**optax.apply_updates(params, updates), opt=opt)
    agent = agent.replace(
        target_value=optax.incremental_update(agent.value, agent.target_value, args.tau),
        target_safe=optax.incremental_update(agent.safe, agent.target_safe, args.tau),
    )
    return agent, info


def insert(replay: Experience, rows: Rows, length) -> Experience:
    """With the first `length` of an episode's `rows` [T] in the ring, which is at least as long."""
    step, size = jnp.arange(len(rows.goal)), len(replay.rows.goal)
    at = jnp.where(step < length, (replay.inserted + step) % size, size)
    kept = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), replay.rows, rows)
    violations = jnp.where(step < length, rows.violation, 0.0).sum()
    return Experience(kept, replay.inserted + length, replay.violations + violations)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: planned."""
    keys = jax.random.key_data(jax.random.split(key, len(obs)))
    return jax.vmap(lambda obs, key: plan(agent, obs, key, args)[0])(obs, keys)


def play(agent: Agent, key, args: Args, env: JaxEnv, cost, limit: int) -> tuple[Rows, jax.Array, dict]:
    """One episode of at most `limit` steps: its rows [limit], how many of them there are, and how it went."""
    reset_key, key = jax.random.split(jax.random.key_data(key))  # plain numbers: worlds fold into a key more than once
    state, obs = env.reset(jax.random.split(reset_key))

    def step(now):
        t, _, state, obs, rows, unfeasible = now
        plan_key, step_key = jax.random.split(jax.random.fold_in(key, t))
        action, feasible = plan(agent, obs, plan_key, args)
        state, next_obs, reward, terminal, truncated = env.step(state, action, jax.random.split(step_key, 4))
        goal = jnp.float32(reward >= args.goal_reward)
        row = Rows(obs, action, jnp.float32(terminal), next_obs, jnp.float32(cost(next_obs) > 0), goal, 0.0)
        rows = jax.tree.map(lambda all, one: all.at[t].set(one), rows, row)
        return t + 1, terminal | truncated, state, next_obs, rows, unfeasible + ~feasible

    begun = jnp.int32(0), jnp.bool_(False), state, obs, no_rows(limit, agent.nets.spec), jnp.int32(0)
    length, _, _, _, rows, unfeasible = jax.lax.while_loop(lambda now: ~now[1] & (now[0] < limit), step, begun)
    violated = rows.violation.max()
    success = rows.goal.max() * (1.0 - violated)
    rows = rows._replace(success=jnp.full(limit, success))
    info = {"success": success, "violation": violated, "steps": length, "unfeasible": unfeasible / length}
    return rows, length, jax.tree.map(jnp.float32, info)


def learn(agent: Agent, keys, args: Args, log: Log, replay: Experience, env_step) -> tuple[Agent, dict]:
    """One update per key; mean metrics."""
    order = staying(agent, log, args)

    def step(agent, key):
        return update(agent, sample(key, log, order, replay, env_step, args), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, replay: Experience, log: Log) -> tuple[Agent, dict]:
    """One lane, offline."""
    return learn(agent, keys, args, log, replay, 0)


def train_online(
    carry: tuple[Agent, Experience], keys, args: Args, log: Log, start, env: JaxEnv, cost, limit: int
) -> tuple[tuple[Agent, Experience], dict]:
    """One lane from environment step `start` on: an episode and its updates for as many keys as it may have steps."""

    def one(carry, x):
        (agent, replay), (env_step, key) = carry, x
        play_key, key = jax.random.split(key)
        rows, length, played = play(agent, play_key, args, env, cost, limit)
        replay, keys = insert(replay, rows, length), jax.random.split(key, args.updates_per_episode)
        agent, metrics = learn(agent, keys, args, log, replay, env_step + limit)
        left = len(log.rows.goal) - forgotten(log, env_step + limit, args)
        so_far = {"kept_rows": left, "violations": replay.violations * limit / (env_step + limit)}
        return (agent, replay), {**metrics, **played, **jax.tree.map(jnp.float32, so_far)}

    keys = keys[::limit]
    carry, metrics = jax.lax.scan(one, carry, (start + limit * jnp.arange(len(keys)), keys))
    return carry, jax.tree.map(jnp.mean, metrics)


# ------------------------------------------------------------------------------------ the path of the data


def log_of(data: Dataset, cost, args: Args) -> Log:
    """`data` with at most --n-demos successful episodes, labelled; without rows whose next observation is not known.

    Raises:
      InputError: no row is left.
    """
    if not data.successor.any():
        raise InputError(f"'{data.task.id}' does not say which states it leads to (next observations).")
    violation = np.asarray(cost(data.next_obs)) > 0
    goal = data.reward >= args.goal_reward
    episode, starts = data.episode(), data.starts()
    success = np.logical_or.reduceat(goal, starts) & ~np.logical_or.reduceat(violation, starts)
    number = np.cumsum(success)
    left = ~success | (number <= args.n_demos) | (args.n_demos < 0)
    keep = np.flatnonzero(left[episode] & data.successor)  # labels are of next_obs
    if not len(keep):
        raise InputError(f"--n-demos {args.n_demos}: all episodes of '{data.task.id}' are successful, none is left.")
    labels = {"violation": violation, "goal": goal, "success": success[episode]}
    columns = {n: labels[n] if n in labels else getattr(data, n) for n in Rows._fields}
    rows = Rows(**{n: np.float32(x[keep]) for n, x in columns.items()})
    stays = (rows.success > 0) | (rows.violation > 0)
    may = len(keep) if args.forgetting == "fifo" else int((~stays).sum())
    print(f"{len(keep):,} rows, {int(success[left].sum())} demonstrations, {may:,} rows to be forgotten")
    number = np.unique(episode[keep], return_inverse=True)[1].astype(np.int32)
    return Log(jax.tree.map(jnp.asarray, rows), jnp.asarray(number), jnp.asarray(stays))


def ends_left_out(data: Dataset) -> str | None:
    """One sentence where the log does not say which states episodes ended in."""
    lost = int((data.terminal & ~data.successor).sum())
    if not lost:
        return None
    return (
        f"{lost:,} of {int(data.terminal.sum()):,} terminal rows of '{data.task.id}' are left out, as the states that "
        "they lead to are not known: of such ends nothing is learned from the log."
    )


def whole_episodes(args: Args, limit: int) -> Args:
    """`args` with steps, updates and intervals in multiples of an episode's `limit`."""
    names = ("env_steps", "offline_updates", "log_every", "eval_every", "offline_eval_every", "checkpoint_every")
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // limit) * limit for n in names})


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    env, cost, limit = require_jax_env(data.task), costs(data.task), data.task.env_spec.max_episode_steps
    if not limit:
        raise InputError(f"{data.task.env_spec.id} has no time limit: online episodes must end.")
    if args.buffer_size < limit:
        raise InputError(f"--buffer-size {args.buffer_size} is less than an episode's {limit} steps.")
    args = whole_episodes(args, limit)
    with Run(__file__, args, data.task, act, unit=limit) as run:
        run.note(other_rewards(data.task))
        run.note(ends_left_out(data))
        log = run.replicate(log_of(data, cost, args))
        replay = run.over_lanes(partial(no_experience, spec=data.spec), in_axes=(0,))(run.lane_args)
        agent, replay = run.restore(run.init(partial(init, spec=data.spec)), replay)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, 0, None), donate=True)
        online = partial(train_online, env=env, cost=cost, limit=limit)
        online_lanes = run.over_lanes(online, in_axes=(0, 0, 0, None, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, replay, log)
            else:
                (agent, replay), metrics = online_lanes((agent, replay), keys, run.lane_args, log, run.done)
            updates = max(0, run.done + run.chunk) // limit * args.updates_per_episode
            run.log(agent, metrics, updates=updates, state=replay)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
