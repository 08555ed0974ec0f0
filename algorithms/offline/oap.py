"""OAP: Offline with Action Preferences.

Yang, Wang, Lin, Song and Huang, "Boosting Offline Reinforcement Learning with Action Preference Query", ICML 2023,
arXiv 2306.03362. Nobody interacts, but somebody may be asked which of two actions is better in a state. From time to
time the states in which policy and data differ most are chosen, and an oracle is asked for its preference between the
data's action and the policy's own (eq. 2). RankNet, a ranking function f(s, a), learns from all answers so far (eq. 3)
and answers for the rows that were not asked for (eq. 4). TD3+BC then clones the preferred action (eq. 6): where the
policy is better it is held to itself, where it is worse, to the data.

The oracle: RUN_DIR, a run whose critics' least value decides (the paper: of SAC, trained for 3M steps; IQL on AntMaze);
module:function, `function(task)` -> a function of JAX, (observations [n, O] as the environment gives them, actions
[n, A] in [-1, 1]) -> values [n], of which the higher is preferred; or random answers, for comparison.
--no-pseudo-queries leaves RankNet out, --n-queries as many as there are rows asks for all.

Choose it when no interaction is possible, but a judge of single actions is there, and data are poor.

Deviations from the paper:
- only TD3+BC is the base (the paper has IQL, too); what IQL's form of eq. 6 is, is not said;
- after each round RankNet makes a fixed number of updates on rows drawn from all answers (there: 100 passes over
  them); its step size is not said, 3e-4 here; of equal values the data's action is preferred;
- there is no round of questions after the last update, so that a share of the queries is never asked.

    python algorithms/offline/oap.py --dataset point-umaze-mixed --oracle environments.point_truth:nearer \\
        --updates 20000 --query-every 2000 --n-queries 5000 --rank-updates 2000 --hidden-dims 64 64 --seeds 8
    python algorithms/offline/oap.py --dataset hopper-medium-replay --oracle results/runs/sac/Hopper-v5/RUN
"""

import dataclasses
import importlib
import os
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Dropout, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.checkpoint import read_header
from shared.data import load_dataset
from shared.errors import InputError, first_line
from shared.evaluation import load_run
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    oracle: str = ""
    """Who is asked: RUN_DIR of a run with critics, module:function, or random."""
    n_queries: Size = 100_000
    """Questions that the oracle answers in the whole run, in equal parts after every `query_every` updates."""
    query_every: Size = 100_000
    """Updates between two rounds of questions."""
    pseudo_queries: bool = True
    """RankNet answers for the rows that were not asked for; else their preferred action is the data's."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    rank_lr: Float = 3e-4
    """Adam's step size: RankNet."""
    rank_updates: Size = 20_000
    """Updates of RankNet after each round of questions."""
    rank_dropout: Dropout = 0.5
    """Dropout after RankNet's hidden layers, in [0, 1)."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    rank_hidden_dims: tuple[int, ...] = (512, 256)
    """Hidden layers of RankNet."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    "antmaze": {"reward_shift": -1.0, "eval_episodes": 100},  # TD3+BC's
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), {"alpha": 0.1}),
}

ROWS_AT_ONCE = 4096
"""Rows of the dataset for which actions are computed together."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class RankNet(nn.Module):
    """f(s, a) [...]: higher for actions that are preferred."""

    hidden_dims: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, obs, action, training: bool = False):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    ranker: RankNet


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    ranker: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    ranker_opt: optax.OptState


class Answers(NamedTuple):
    """What the oracle said so far, of K questions at most, and what is cloned."""

    preferred: jax.Array
    """[N, A] of each row of the dataset, the action that is cloned."""
    asked: jax.Array
    """[N] bool"""
    row: jax.Array
    """[K] of each question, the row of the dataset"""
    learned: jax.Array
    """[K, A] the policy's action when it was asked"""
    kept: jax.Array
    """[K] 1 where the data's action was preferred to it"""
    count: jax.Array
    """[] questions so far"""
    info: dict[str, jax.Array]
    """Of the last round: metrics."""


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Clipped double Q-learning with a smoothed target action (TD3); summed over the two critics."""
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, preferred, args: Args):
    """-lambda Q_1(s, pi(s)) + (pi(s) - preferred)^2, lambda = alpha / mean |Q_1| (eq. 6)."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, preferred])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - preferred) ** 2).mean()
    away = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean(), "distance_to_data": away}


def rank_loss(ranker, agent: Agent, obs, action, learned, kept, key):
    """Cross-entropy of sigmoid(f(s, a) - f(s, pi(s))) for the answers `kept` (eq. 3)."""
    action_key, learned_key = jax.random.split(key)

    def f(a, key):
        return agent.nets.ranker.apply(ranker, obs, a, training=True, rngs={"dropout": key})

    margin = f(action, action_key) - f(learned, learned_key)
    chex.assert_equal_shape([margin, kept])
    return optax.sigmoid_binary_cross_entropy(margin, kept).mean()


def keeps(agent: Agent, obs, action, learned):
    """[...] bool: RankNet prefers the data's action (eq. 4)."""
    f = partial(agent.nets.ranker.apply, agent.ranker, obs)
    return f(action) >= f(learned)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        Critic(args.hidden_dims),
        RankNet(args.rank_hidden_dims, args.rank_dropout),
    )
    actor_key, critic_key, ranker_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor, ranker = nets.actor.init(actor_key, obs), nets.ranker.init(ranker_key, obs, action)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        ranker=ranker,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        ranker_opt=optax.adam(args.rank_lr).init(ranker),
    )


def rounds_of(args: Args, rows: int) -> tuple[int, int]:
    """Rounds of questions, and questions in each (as many as there are rows at most)."""
    each = min(rows, max(1, args.n_queries * args.query_every // args.updates))
    return (args.updates - 1) // args.query_every, each


def first_answers(args: Args, transitions: Transitions) -> Answers:
    """Nothing was asked: the data's actions are cloned."""
    action = transitions.take(jnp.arange(len(transitions.rows))).action
    rounds, each = rounds_of(args, len(action))
    asked = max(1, rounds * each)
    return Answers(
        preferred=action,
        asked=jnp.zeros(len(action), bool),
        row=jnp.zeros(asked, jnp.int32),
        learned=jnp.zeros((asked, action.shape[1])),
        kept=jnp.zeros(asked),
        count=jnp.int32(0),
        info=dict.fromkeys(("oracle_keeps", "rank_accuracy", "rank_loss", "cloned_own"), jnp.zeros(())),
    )


def ask(
    agent: Agent, answers: Answers, key, args: Args, transitions: Transitions, value: Callable | None
) -> tuple[Agent, Answers]:
    """One lane, one round: questions, RankNet's updates, and what is cloned from now on.

    `value(obs, action)` [n] is the oracle's, of observations as the networks see them; None: it answers at random.
    """
    answer_key, rank_key = jax.random.split(key)
    data = transitions.take(jnp.arange(len(transitions.rows)))
    _, each = rounds_of(args, len(data.action))
    learned = jax.lax.map(lambda obs: agent.nets.actor.apply(agent.actor, obs), data.obs, batch_size=ROWS_AT_ONCE)
    distance = ((learned - data.action) ** 2).sum(-1)
    row = jax.lax.top_k(jnp.where(answers.asked, -1.0, distance), each)[1]  # those that were not asked for come first

    obs, action, own = data.obs[row], data.action[row], learned[row]
    if value is None:
        kept = jax.random.bernoulli(answer_key, shape=(each,))
    else:
        kept = value(obs, action) >= value(obs, own)
    guessed = keeps(agent, obs, action, own)  # before RankNet has seen the answers
    new = {"row": row, "learned": own, "kept": kept.astype(jnp.float32)}
    lists = {n: jax.lax.dynamic_update_slice_in_dim(getattr(answers, n), x, answers.count, 0) for n, x in new.items()}
    answers = answers._replace(**lists, asked=answers.asked.at[row].set(True), count=answers.count + each)

    def step(agent, key):
        row_key, drop_key = jax.random.split(key)
        i = jax.random.randint(row_key, (args.batch_size,), 0, answers.count)
        at = answers.row[i]
        asked = (data.obs[at], data.action[at], answers.learned[i], answers.kept[i])
        loss, grads = jax.value_and_grad(rank_loss)(agent.ranker, agent, *asked, drop_key)
        updates, ranker_opt = optax.adam(args.rank_lr).update(grads, agent.ranker_opt)
        return agent.replace(ranker=optax.apply_updates(agent.ranker, updates), ranker_opt=ranker_opt), loss

    agent, losses = jax.lax.scan(step, agent, jax.random.split(rank_key, args.rank_updates))
    preferred = answers.preferred
    if args.pseudo_queries:
        pseudo = jax.lax.map(lambda x: keeps(agent, *x), (data.obs, data.action, learned), batch_size=ROWS_AT_ONCE)
        pseudo = jnp.where(pseudo[:, None], data.action, learned)
        preferred = jnp.where(answers.asked[:, None], preferred, pseudo)
    preferred = preferred.at[row].set(jnp.where(kept[:, None], action, own))
    info = {
        "oracle_keeps": kept.mean(),
        "rank_accuracy": (guessed == kept).mean(),
        "rank_loss": losses[-len(losses) // 4 :].mean(),
        "cloned_own": (preferred != data.action).any(-1).mean(),
    }
    return agent, answers._replace(preferred=preferred, info=info)


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, preferred, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, preferred, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, **info}


def update(agent: Agent, batches: Batch, preferred, keys, args: Args) -> tuple[Agent, dict]:
    """`policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), preferred[-1], args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, transitions: Transitions, preferred) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics. `preferred` [N, A]: what is cloned in each row."""

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        row = transitions.draw(batch_key, args.batch_size)
        return transitions.take(row), preferred[row], noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def oracle_of(name: str, task: Task) -> Callable | None:
    """`value(obs, action)` of observations as the networks see them; None for random answers.

    Raises:
      InputError: no oracle is named, there is none of that name, or it is one of another task.
    """
    if name == "random":
        return None
    if not name:
        raise InputError("OAP asks an oracle: name one with --oracle (a run's directory, module:function, or random).")
    module, _, function = name.rpartition(":")
    if module and not Path(name).exists():
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            value = getattr(importlib.import_module(module), function)(task)
        except InputError:
            raise
        except Exception as error:  # whatever somebody's module raises
            raise InputError(f"--oracle {name} gives no oracle ({first_line(error)}).") from None
    else:
        value = critics_of(Path(name), task)
    mean, std = (0.0, 1.0) if task.obs_mean is None else (task.obs_mean, task.obs_std)
    judge = lambda obs, action: value(obs * std + mean, action)  # noqa: E731
    rows = [jax.ShapeDtypeStruct((3, size), jnp.float32) for size in (task.spec.obs_shape[0], task.spec.action_dim)]
    try:
        given = jax.eval_shape(judge, *rows).shape
    except Exception as error:  # of somebody's module, or of critics that are asked in another way
        raise InputError(f"--oracle {name} cannot judge actions in these states ({first_line(error)}).") from None
    if given != (3,):
        raise InputError(f"--oracle {name} gives values of shape {given} for 3 actions, not one for each.")
    return judge


def critics_of(run_dir: Path, task: Task) -> Callable:
    """The least value of the critics of a run's first lane."""
    run = load_run(run_dir)
    nets = getattr(run.agent, "nets", None)
    if not (hasattr(run.agent, "critic") and hasattr(nets, "critic")):
        raise InputError(f"--oracle {run_dir}: the agents of this run have no critics.")
    agent = jax.tree.map(lambda x: x[0], run.agent)
    theirs, ours = run.task.spec, task.spec
    if (theirs.obs_shape, theirs.action_dim, theirs.discrete) != (ours.obs_shape, ours.action_dim, ours.discrete):
        raise InputError(f"--oracle {run_dir}: observations or actions of this run are of other sizes than the data's.")
    mean, std = (0.0, 1.0) if run.task.obs_mean is None else (run.task.obs_mean, run.task.obs_std)

    def value(obs, action):
        q = jax.vmap(nets.critic.apply, (0, None, None))(agent.critic, (obs - mean) / std, action)
        return q.reshape(len(q), len(obs)).min(0)

    return value


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    value = oracle_of(args.oracle, data.task)
    if args.updates <= args.query_every:
        raise InputError(
            f"--query-every {args.query_every}: the first questions come after so many updates, and --updates "
            f"{args.updates} leave none to learn from the answers."
        )
    if args.n_queries * args.query_every < args.updates:
        raise InputError(
            f"--n-queries {args.n_queries}: of {args.updates:,} updates no whole question falls to every "
            f"{args.query_every:,}."
        )
    with Run(__file__, args, data.task, act, unit=args.policy_delay) as run:
        if args.query_every % run.chunk:
            raise InputError(f"--query-every must be a multiple of {run.chunk}, which divides the other intervals.")
        transitions = run.replicate(data.transitions())
        if args.resume:
            before = read_header(run.out / "checkpoint" / "state.npz")["args"]["updates"]
            rounds = [
                rounds_of(dataclasses.replace(args, updates=n), len(transitions.rows)) for n in (before, args.updates)
            ]
            if rounds[0] != rounds[1]:
                raise InputError(
                    f"--resume with --updates {args.updates:,}, but the questions were shared out over {before:,}; use "
                    "the same."
                )
        agent = run.init(partial(init, spec=data.spec))
        answers = run.over_lanes(first_answers, in_axes=(0, None))(run.lane_args, transitions)
        agent, answers = run.restore(agent, answers)
        ask_lanes = run.over_lanes(partial(ask, value=value), in_axes=(0, 0, 0, 0, None))
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, 0), donate=True)
        for keys in run.chunks():
            if run.done and run.done % args.query_every == 0:
                asked = run.step_keys(-1 - run.done)  # no step's, however many --updates follow
                agent, answers = ask_lanes(agent, answers, asked, run.lane_args, transitions)
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, answers.preferred)
            unknown = {} if run.done >= args.query_every else dict.fromkeys(answers.info)
            run.log(agent, metrics | answers.info | unknown, state=answers)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
