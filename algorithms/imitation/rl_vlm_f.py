"""Offline RL-VLM-F: rewards learned from preferences between pictures, which a vision-language model may give.

Venkataraman, Wang, Wang, Ravi, Erickson and Held, "Real-World Offline Reinforcement Learning from Vision Language Model
Feedback", 2024, arXiv 2411.05273, after RL-VLM-F (Wang et al., ICML 2024, arXiv 2402.03681). The data has no rewards.
Pairs of its rows are drawn, and somebody is asked, once, which of the two shows more of what is wanted: -1 (no
difference), 0 (the first), 1 (the second); pairs without a difference are left out. An ensemble of reward models r_i
is fitted by Bradley-Terry's model, P(second preferred) = softmax(sum r_i(first), sum r_i(second)), until it tells more
than --stop-accuracy of the answers. All rows get the mean of the models, standardised, and IQL (Kostrikov et al., arXiv
2110.06169) learns from it.

Who is asked: an oracle that sees the data's true rewards, of whose answers a share is inverted (--flips; each lane
draws which); a file of answers (--preferences); or --judge module:function, a vision-language model for instance:
`function(first, second, text) -> -1, 0 or 1` sees --pictures of the rows where there are some, else observations, and
--goal-text. Its answers are kept in --preferences, and nothing is asked twice (algorithms/imitation/README.md).

Choose it when nobody can write a reward, but a model or a person can see which of two states is better. Where what
counts cannot be seen in one picture (speed, what was done before), no answer tells it; --segment-length compares pieces
of episodes, for an oracle or a file.

Parity: a pass of the reward models is equal to yufeiwang63/RL-VLM-F but for the convolutions' padding, and IQL to
corl-team/CORL but for its order (results/parity.md). Of the offline method there is a draft of its first author
(vsreyas/RL-VLM-F) with the same reward models and CORL's IQL.
Deviations from the papers and their code:
- the reward models' inputs are standardised; of pictures, their convolutions are padded, so that small ones do;
- the reward models' weights begin as Flax's do (PyTorch's; of pictures the last layer's within 0.001);
- IQL's networks are its authors': orthogonal weights, log standard deviations from -5 (CORL: PyTorch's, from -20);
- states are standardised there for IQL; here they are as they are;
- the number of pairs and of epochs, and labels of mean 0 and standard deviation 1, are choices of this file;
- the oracle makes mistakes and skips near ties; other simulated teachers (myopic, of bounded rationality) are not here;
- the policy and its values see vectors; pictures of the same rows are the reward models' alone.

    python algorithms/imitation/rl_vlm_f.py --dataset pendulum-mixed --flips 0 0.1 0.3 --seeds 8 --updates 20000
    python algorithms/imitation/rl_vlm_f.py --dataset hopper-medium-replay --judge mine:ask --preferences answers.npz
    python algorithms/imitation/rl_vlm_f.py --dataset pendulum-mixed --updates 1000 --write-dataset preferred.npz
"""

import dataclasses
import os
import sys
import zipfile
from collections.abc import Callable
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
from shared.arguments import (
    Count,
    Dropout,
    Expectile,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    function_named,
    hyperparameters,
)
from shared.data import Dataset, moments
from shared.errors import InputError, first_line
from shared.formats import content_hash
from shared.parts import hidden, load_all, rank_correlation, relabelled, write_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "pendulum-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    more_data: tuple[str, ...] = ()
    """Further datasets of the same environment; their episodes follow those of --dataset."""
    pictures: tuple[str, ...] = ()
    """Datasets of the same rows as --dataset and --more-data, whose observations are images: what is judged, and what
    the reward models see; empty: the observations themselves."""
    n_pairs: Size = 1_000
    """Pairs of rows that are compared, drawn uniformly."""
    segment_length: Size = 1
    """Rows of one episode that are compared together."""
    preference_seed: Count = 0
    """Of the draw of the pairs, which all lanes share."""
    preferences: str = ""
    """File of answers (.npz): read where it exists, else written as they are given; empty: the oracle's, not kept."""
    judge: str = ""
    """Who is asked: module:function, of two pictures (or observations) and a text; empty: an oracle of true rewards."""
    goal_text: str = ""
    """What is wanted, in words, for --judge."""
    flips: Fraction = 0.0
    """Probability that an answer is inverted, which each lane draws, in [0, 1]."""
    skip_margin: float = 0.0
    """The oracle sees no difference between (sums of) rewards that are no further apart than this."""
    reward_inputs: Literal["s", "sa"] = "s"
    """What the reward models see of a row: the observation, or observation and action."""
    n_models: Size = 3
    """Models in the ensemble."""
    reward_epochs: Size = 200
    """Passes over the answers before the first update of the learner, at most."""
    stop_accuracy: Fraction = 0.97
    """The reward models learn no more once they tell this share of the answers, in [0, 1]."""
    preference_batch: Size = 128
    """Pairs per gradient update of the reward models (the released code has 64 of pictures)."""
    reward_hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the reward model."""
    reward_lr: Float = 3e-4
    """Adam's step size: reward model."""
    label_scale: Literal["standard", "unit", "none"] = "standard"
    """Labels have mean 0 and standard deviation 1, lie in [0, 1], or are what the reward models say."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


class Actor(nn.Module):
    """Mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


def windows(x, size: int, stride: int):
    """[B, H, W, C] -> [B, H / stride, W / stride, size^2 C]: what a padded convolution multiplies by its kernel."""
    _, height, width, _ = x.shape
    edge = size // 2
    x = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    places = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate([x[:, i : i + height : stride, j : j + width : stride] for i, j in places], -1)


class Reward(nn.Module):
    """r [B] in [-1, 1]: of standardised vectors [B, D], or of pictures [B, H, W, C] uint8."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        if x.ndim == 4:
            x = x / 255.0
            for size, channels, stride in ((5, 16, 3), (3, 32, 2), (3, 64, 2), (3, 128, 2)):
                x = nn.relu(nn.Dense(channels)(windows(x, size, stride)))
            return jnp.tanh(nn.Dense(1)(x.reshape(len(x), -1))[..., 0])
        for size in self.hidden_dims:
            x = nn.leaky_relu(nn.Dense(size)(x))
        return jnp.tanh(nn.Dense(1)(x)[..., 0])


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    reward: Reward


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    reward: Any
    """M reward models, stacked on a leading axis."""
    accurate: jax.Array
    """[] whether the reward models tell enough of the answers, and stay as they are"""
    mistakes: jax.Array
    """[2] the key by which answers are inverted"""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    reward_opt: optax.OptState


class Preferences(NamedTuple):
    """P answers on the device."""

    first: jax.Array
    """[P, T, D], or pictures [P, 1, H, W, C], as the reward models see them"""
    second: jax.Array
    answer: jax.Array
    """[P] 1.0 where the second is preferred, 0.0 where the first is"""


class Judged(NamedTuple):
    """A dataset on the device, as its policy and its reward models see it."""

    transitions: Transitions
    seen: jax.Array
    """[N, D] standardised, or pictures [N, H, W, C], of every row of the dataset"""
    episode: jax.Array
    """[N] of the row"""
    starts: jax.Array
    """[E] first rows of episodes"""
    row: jax.Array
    """[M] the rows that `transitions` holds"""
    truth: jax.Array
    """[N] true rewards, which labels are compared with and nothing else; [0]: there are none"""


LABEL_BLOCK = 4_096
"""Rows that are labelled at once."""

# ------------------------------------------------------------------------------------------ answers


def piece_starts(data: Dataset, args: Args) -> np.ndarray:
    """Rows at which a piece of --segment-length rows of one episode may begin."""
    ends = data.ends()[data.episode()]
    return np.flatnonzero(ends - np.arange(len(ends)) >= args.segment_length - 1)


def draw_pairs(data: Dataset, args: Args) -> np.ndarray:
    """[P, 2] first rows of two pieces of --segment-length rows, each of one episode.

    Raises:
      InputError: no episode is as long.
    """
    starts = piece_starts(data, args)
    if not len(starts):
        raise InputError(f"--segment-length {args.segment_length}: '{data.task.id}' has no episode of so many rows.")
    return np.random.default_rng(args.preference_seed).choice(starts, (args.n_pairs, 2))


def oracle(reward: np.ndarray, pairs: np.ndarray, args: Args) -> np.ndarray:
    """[P] int8: 1 where the second piece of a pair has more reward [N], 0 where the first has, -1 within the margin."""
    rows = pairs[..., None] + np.arange(args.segment_length)
    more = np.diff(reward[rows].sum(-1, dtype=np.float64), axis=1)[:, 0]
    return np.where(np.abs(more) <= args.skip_margin, -1, more > 0).astype(np.int8)


def read_answers(path: Path, data: Dataset, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """The pairs [P, 2] and the answers [n <= P] of a file.

    Raises:
      InputError: it is no such file, or one of other data or of other pieces.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            pairs, answers, of = file["pairs"], file["answers"], str(file["data"])
            length = file["segment_length"].item()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--preferences {path}: no file of answers ({first_line(error)}).") from None
    if of != data.task.hash:
        raise InputError(f"--preferences {path}: these are answers about other data than '{data.task.id}'.")
    if length != args.segment_length:
        raise InputError(f"--preferences {path}: pieces of {length} rows were compared, not of {args.segment_length}.")
    fits = pairs.ndim == 2 and pairs.shape[1] == 2 and answers.ndim == 1 and len(answers) <= len(pairs)
    fits &= pairs.dtype.kind in "iu" and answers.dtype.kind in "iu" and np.isin(answers, (-1, 0, 1)).all()
    if not (fits and np.isin(pairs, piece_starts(data, args)).all()):
        raise InputError(
            f"--preferences {path}: pairs of rows [P, 2] at which pieces of one episode begin, and an answer of -1, 0 "
            "or 1 to each are needed."
        )
    print(f"--preferences {path}: {len(answers):,} answers to {len(pairs):,} pairs", flush=True)
    return pairs, answers.astype(np.int8)


def write_answers(path: Path, pairs: np.ndarray, answers: np.ndarray, data: Dataset, args: Args) -> None:
    """Writes them whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            about = {"data": data.task.hash, "segment_length": args.segment_length}
            np.savez(file, pairs=pairs, answers=np.asarray(answers, np.int8), **about)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write to {path}: {error.strerror}.") from None


def ask(judge: Callable, shown: np.ndarray, pairs: np.ndarray, answers: np.ndarray, args: Args, keep: Callable):
    """[P] int8: the `answers` [n] that there are, and those of `judge` about the other `pairs` of rows of `shown` [N].

    `keep(answers)` is called after every 25 of them, and when the judge fails.

    Raises:
      InputError: the judge fails, or says something else than -1, 0 and 1.
    """
    answers = list(answers)
    while len(answers) < len(pairs):
        first, second = shown[pairs[len(answers)]]
        try:
            said = judge(first, second, args.goal_text)
        except Exception as error:  # a server that does not answer, a model that is not there
            said = first_line(error)
        if said not in (-1, 0, 1):
            keep(answers)
            raise InputError(
                f"--judge {args.judge} says '{said}' of pair {len(answers)}, not -1, 0 or 1; the answers before it are "
                f"kept in {args.preferences}, and the same command goes on from there."
            )
        answers.append(int(said))
        if len(answers) % 25 == 0 or len(answers) == len(pairs):
            keep(answers)
    return np.array(answers, np.int8)


def answered(data: Dataset, shown: np.ndarray, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """The pairs [P, 2] and the answers [P] in {0, 1}: those of --preferences, of the judge, or of the oracle.

    Raises:
      InputError: nobody can answer, or all answers are equal.
    """
    path = Path(args.preferences).expanduser()
    if args.judge and (not args.preferences or args.segment_length > 1):
        raise InputError(
            "--judge compares single rows (--segment-length 1), and needs a file to keep answers in: --preferences."
        )
    pairs, answers = draw_pairs(data, args), np.zeros(0, np.int8)
    if args.preferences and path.suffix != ".npz":
        raise InputError(f"--preferences {path}: the name of a file of answers ends in .npz.")
    if args.preferences and path.exists():
        pairs, answers = read_answers(path, data, args)
    if len(answers) < len(pairs):
        if args.judge:
            keep = partial(write_answers, path, pairs, data=data, args=args)
            answers = ask(function_named("--judge", args.judge), shown, pairs, answers, args, keep)
        elif len(answers):
            raise InputError(
                f"--preferences {path}: {len(answers)} of {len(pairs)} pairs have answers; name the --judge."
            )
        else:
            answers = oracle(data.require().reward, pairs, args)
            if args.preferences:
                write_answers(path, pairs, answers, data, args)
    counts = {kind: int((answers == value).sum()) for kind, value in (("first", 0), ("second", 1), ("neither", -1))}
    print(f"preferred: {', '.join(f'{kind} {n:,}' for kind, n in counts.items())}", flush=True)
    if len(np.unique(answers)) < 2:
        raise InputError(f"All {len(answers)} preferences are equal ({answers[0]}): they do not tell what is better.")
    told = answers >= 0
    return pairs[told], answers[told]


# ------------------------------------------------------------------------------------ reward models


def r_hat(rewards, net: Reward, x):
    """[M, B, T] of x [M, B, T, ...], each model's own."""
    rows = x.reshape(len(x), -1, *x.shape[3:])
    return jax.vmap(net.apply)(rewards, rows).reshape(x.shape[:3])


def preference_loss(rewards, net: Reward, batch: Preferences, weight):
    """-log P(the preferred one) by softmax(sum_t r(first), sum_t r(second)), mean over a batch; summed over models.

    `batch`: [M, B, ...], each model's own; `weight` [B] is 0 of rows that fill up the last batch.
    """
    more = r_hat(rewards, net, batch.second).sum(-1) - r_hat(rewards, net, batch.first).sum(-1)
    chex.assert_equal_shape([more, batch.answer])
    log_prob = jax.nn.log_sigmoid(jnp.where(batch.answer > 0, more, -more))
    right = (weight * ((more > 0) == (batch.answer > 0))).sum()
    return -((weight * log_prob).sum(1) / weight.sum()).sum(), right


def inverted(agent: Agent, answer, args: Args):
    """[P] answers of this lane: each is inverted with probability `flips`."""
    drawn = jax.random.uniform(jax.random.wrap_key_data(agent.mistakes), answer.shape)
    return jnp.where(drawn < args.flips, 1.0 - answer, answer)


def fit(agent: Agent, keys, args: Args, preferences: Preferences) -> tuple[Agent, dict]:
    """One lane, reward phase: one pass over the answers per key; mean metrics."""
    size = len(preferences.answer)
    batch_size = min(args.preference_batch, size)
    n_batches = -(-size // batch_size)
    preferences = preferences._replace(answer=inverted(agent, preferences.answer, args))
    weights = (jnp.arange(n_batches * batch_size) < size).astype(jnp.float32).reshape(n_batches, batch_size)

    def step(agent, x):
        index, weight = x  # [M, B], [B]
        batch = jax.tree.map(lambda column: column[index], preferences)
        grad = jax.value_and_grad(preference_loss, has_aux=True)
        (loss, right), grads = grad(agent.reward, agent.nets.reward, batch, weight)
        updates, reward_opt = optax.adam(args.reward_lr).update(grads, agent.reward_opt)
        reward = optax.apply_updates(agent.reward, updates)
        new, old = (reward, reward_opt), (agent.reward, agent.reward_opt)
        reward, reward_opt = jax.tree.map(lambda a, b: jnp.where(agent.accurate, b, a), new, old)
        return agent.replace(reward=reward, reward_opt=reward_opt), (loss / args.n_models, right)

    def epoch(agent, key):
        order = jax.vmap(partial(jax.random.permutation, x=size))(jax.random.split(key, args.n_models))
        order = jnp.pad(order, ((0, 0), (0, weights.size - size))).reshape(-1, n_batches, batch_size)
        agent, (loss, right) = jax.lax.scan(step, agent, (order.swapaxes(0, 1), weights))
        accuracy = right.sum() / (size * args.n_models)
        agent = agent.replace(accurate=agent.accurate | (accuracy > args.stop_accuracy))
        return agent, {"reward_loss": loss.mean(), "accuracy": accuracy}

    agent, metrics = jax.lax.scan(epoch, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def labels(agent: Agent, args: Args, judged: Judged):
    """[N] rewards of all rows: the models' mean, on the scale of --label-scale. And how they go with the true ones."""
    models = jax.vmap(agent.nets.reward.apply, (0, None))
    label = jax.lax.map(lambda x: models(agent.reward, x[None]).mean(), judged.seen, batch_size=LABEL_BLOCK)
    if args.label_scale == "standard":
        label = (label - label.mean()) / jnp.maximum(label.std(), 1e-6)
    elif args.label_scale == "unit":
        label = (label - label.min()) / jnp.maximum(jnp.ptp(label), 1e-6)
    if not len(judged.truth):
        return label, {}
    summed = [jax.ops.segment_sum(x, judged.episode, len(judged.starts)) for x in (label, judged.truth)]
    found = {"reward_correlation": rank_correlation(label, judged.truth)}
    return label, found | {"label_correlation": rank_correlation(*summed)}


# -------------------------------------------------------------------------------------- the learner


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (IQL's eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped (IQL's eq. 7)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2 (IQL's eq. 6), r the label; summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "reward": batch.reward.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec, picture: tuple[int, ...] = ()) -> Agent:
    """The agent of one lane; `picture`: [H, W, C] of what the reward models see, if it is one."""
    actor = Actor(args.hidden_dims, spec.action_dim, args.dropout)
    nets = Networks(actor, Critic(args.hidden_dims), Reward(args.reward_hidden_dims))
    actor_key, critic_key, value_key, reward_key, mistakes_key = jax.random.split(key, 5)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    seen = jnp.zeros((1, *picture)) if picture else jnp.concatenate([obs, action][: len(args.reward_inputs)], axis=-1)
    reward = jax.lax.map(lambda k: nets.reward.init(k, seen), jax.random.split(reward_key, args.n_models))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        reward=reward,
        accurate=jnp.array(False),
        mistakes=jax.random.key_data(mistakes_key),
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
        reward_opt=optax.adam(args.reward_lr).init(reward),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, then the actor with the new V, then Q with the new V."""
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def train(agent: Agent, keys, args: Args, label, judged: Judged) -> tuple[Agent, dict]:
    """One lane: one update per key, from this lane's labels [N]; mean metrics."""
    reward = label[judged.row] + args.reward_shift

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        index = judged.transitions.draw(batch_key, args.batch_size)
        return update(agent, judged.transitions.take(index)._replace(reward=reward[index]), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def shown_rows(data: Dataset, args: Args) -> np.ndarray:
    """[N, ...] what of every row is judged: pictures, or observations.

    Raises:
      InputError: the pictures are of other rows.
    """
    if not args.pictures:
        return data.obs
    if args.reward_inputs == "sa":
        raise InputError("--reward-inputs sa: of pictures the reward models see nothing else.")
    if args.segment_length > 1:
        raise InputError("--pictures are compared one by one: --segment-length must be 1.")
    pictures = load_all(dataclasses.replace(args, env="none"), args.pictures, (args.dataset, *args.more_data))
    actions = [x.task.to_env(x.action) for x in (pictures, data)]
    same = np.array_equal(pictures.last, data.last) and np.shape(actions[0]) == np.shape(actions[1])
    if not (pictures.spec.images and same and np.allclose(*actions, atol=1e-5)):
        raise InputError(f"--pictures: '{pictures.task.id}' does not show the rows of '{data.task.id}' as images.")
    return pictures.obs


def on_device(data: Dataset, truth: Dataset, args: Args) -> tuple[Preferences, Judged]:
    """What the reward models are fitted to, and the dataset that is labelled; rewards are `truth`'s."""
    shown = shown_rows(truth, args)
    pairs, answer = answered(truth, shown, args)
    if not args.pictures:
        shown = np.concatenate([data.obs, data.action][: len(args.reward_inputs)], axis=1)
        mean, std = moments(shown)
        shown = (shown - mean) / std
    first, second = shown[pairs.T[..., None] + np.arange(args.segment_length)]
    rewards = truth.reward if truth.task.data.get("rewards", True) else np.zeros(0, np.float32)
    columns = shown, data.episode(), data.starts(), np.flatnonzero(data.usable()), rewards
    preferences = Preferences(jnp.asarray(first), jnp.asarray(second), jnp.asarray(answer, jnp.float32))
    return preferences, Judged(data.transitions(), *map(jnp.asarray, columns))


def main(args: Args) -> None:
    truth = load_all(args, (args.dataset, *args.more_data), args.pictures).require(discrete=False, reward=False)
    data = hidden(truth, ("rewards",))
    if args.n_models < 1:
        raise InputError(f"--n-models {args.n_models}: at least one is needed.")
    preferences, judged = on_device(data, truth, args)
    data = data.replace({"preferences": content_hash(preferences._asdict())})
    with Run(__file__, args, data.task, act, before=args.reward_epochs) as run:
        preferences, judged = run.replicate((preferences, judged))
        picture = judged.seen.shape[1:] if args.pictures else ()
        agent = run.init(partial(init, spec=data.spec, picture=picture))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        label_lanes = run.over_lanes(labels, in_axes=(0, 0, None))
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, 0, None), donate=True)
        label = None
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, preferences)
            else:
                if label is None:
                    label, found = label_lanes(agent, run.lane_args, judged)
                    if args.write_dataset:
                        write_dataset(args.write_dataset, relabelled(data, reward=label[0]))
                agent, metrics = train_lanes(agent, keys, run.lane_args, label, judged)
                metrics |= found
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
