"""Imputed rewards: offline RL from data of which few transitions have a reward.

Romeo and Bagdanov, "Offline Reinforcement Learning with Imputed Rewards", 2024, arXiv 2407.10839. A reward model
R(s, a, s') is fitted to the labelled transitions (1 %) by least squares, before the first update; transitions without a
reward get the model's. IQL (Kostrikov et al., arXiv 2110.06169) learns from both.

With --impute zero the others get 0 (UDS: Yu et al., "How to Leverage Unlabeled Data in Offline Reinforcement Learning",
ICML 2022, arXiv 2202.01741), with --impute none they are left out: what imputing is compared with. --labelled-fraction
1 is IQL on all true rewards.

Choose it when rewards are dense, nearly a function of the transition, and a few of them are known. Sparse rewards are
not of that kind: most labelled sets hold none.

Deviations from the paper:
- it has no released code; the model's size, learning rate, normalised inputs and targets and its early stopping (a
  tenth of the labelled rows is held out, the weights of its least error are kept) are choices of this file;
- the learner is IQL; the paper has TD3+BC beside it (--write-dataset, then algorithms/offline/td3_bc.py);
- rewards are divided by the standard deviation of the labelled ones (--unit-reward-std), not by the range of
  returns: those of episodes with missing rewards are not known;
- a terminal row whose next observation is not known is labelled as if it had led to where it began.

    python algorithms/imitation/imputed_rewards.py --dataset pendulum-mixed --seeds 8 --updates 20000
    python algorithms/imitation/imputed_rewards.py --dataset hopper-medium-replay --impute zero --labelled-fraction 0.01
    python algorithms/imitation/imputed_rewards.py --dataset pendulum-mixed --updates 1000 --write-dataset imputed.npz
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
from shared.arguments import (
    Dropout,
    Expectile,
    Float,
    Fraction,
    LabelArgs,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import Dataset, moments
from shared.errors import InputError
from shared.parts import load_labelled, relabelled, write_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(LabelArgs):
    dataset: str = "pendulum-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    labelled_fraction: StaticFraction = 0.01
    """Share of the data that keeps its labels, in [0, 1]; of the rest (D_U) they are hidden."""
    labelled_unit: Literal["episodes", "transitions"] = "transitions"
    """What is drawn to keep its labels: whole episodes, or single transitions of any episode."""
    impute: Literal["model", "zero", "none"] = "model"
    """Rewards of transitions without one: the model's, 0, or none: they are left out."""
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
    reward_updates: int = 5_000
    """Gradient updates of the reward model before the first of the learner."""
    reward_batch: Size = 256
    """Transitions per gradient update of the reward model."""
    reward_hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of the reward model."""
    reward_lr: Float = 1e-3
    """Adam's step size: reward model."""
    reward_decay: Float = 1e-4
    """Weight decay of the reward model (AdamW)."""
    holdout: StaticFraction = 0.1
    """Share of what is labelled that the model is judged by, in [0, 1]."""
    holdout_every: int = 100
    """Updates of the model between two looks at its hold-out error."""
    unit_reward_std: bool = True
    """Divide rewards by the standard deviation of those that are known."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""


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


class Reward(nn.Module):
    """R(s, a, s') [B] of standardised inputs, in units of the labelled rewards' standard deviation."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)[..., 0]


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
    """The reward model."""
    best_reward: Any
    """The same at its least error on the rows held out; what imputes."""
    holdout_error: jax.Array
    """That error."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    reward_opt: optax.OptState


class Scales(NamedTuple):
    """Statistics of the data's inputs (all rows) and of the rewards that are known."""

    input_mean: jax.Array
    """[O + A + O]"""
    input_std: jax.Array
    reward_mean: jax.Array
    reward_std: jax.Array


class Imputable(NamedTuple):
    """A dataset on the device of which some rows have a reward."""

    transitions: Transitions
    """All rows that are trained on, rewards 0 where there is none."""
    labelled: jax.Array
    """[M] 1 where a row's reward is known"""
    known: Transitions
    """The labelled rows that the model is fitted to."""
    held_out: Batch
    """The labelled rows that it is judged by."""
    compared: Batch
    """Rows without a reward, with their true ones: the model is compared with them, nothing is learned from it."""
    scales: Scales


COMPARED = 2_000
"""Rows without a reward that the model is compared with the truth by."""


def inputs_of(data: Dataset) -> np.ndarray:
    """[N, O + A + O] of the reward model"""
    return np.concatenate([data.obs, data.action, data.next_obs], axis=1)


def batch_of(data: Dataset) -> Batch:
    """All rows."""
    return Batch(*map(jnp.asarray, (data.obs, data.action, data.reward, data.terminal, data.next_obs)))


def predict(reward, nets: Networks, batch: Batch, scales: Scales):
    """R(s, a, s') [B], in the units of the rewards."""
    x = jnp.concatenate([batch.obs, batch.action, batch.next_obs], axis=-1)
    x = (x - scales.input_mean) / scales.input_std
    return scales.reward_mean + scales.reward_std * nets.reward.apply(reward, x)


def reward_loss(reward, nets: Networks, batch: Batch, scales: Scales):
    """((R(s, a, s') - r) / std(r))^2"""
    return (((predict(reward, nets, batch, scales) - batch.reward) / scales.reward_std) ** 2).mean()


def reward_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adamw(args.reward_lr, weight_decay=args.reward_decay)


def judge(agent: Agent, error) -> Agent:
    """Keeps the reward model if its `error` on the rows held out is the least so far."""
    better = error < agent.holdout_error
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), agent.reward, agent.best_reward)
    return agent.replace(best_reward=best, holdout_error=jnp.where(better, error, agent.holdout_error))


def fit(agent: Agent, keys, args: Args, data: Imputable) -> tuple[Agent, dict]:
    """One lane, reward phase: one update per key, judged every `holdout_every`; mean metrics."""

    def step(agent, key):
        batch = data.known.sample(key, args.reward_batch)
        loss, grads = jax.value_and_grad(reward_loss)(agent.reward, agent.nets, batch, data.scales)
        updates, reward_opt = reward_optimizer(args).update(grads, agent.reward_opt, agent.reward)
        return agent.replace(reward=optax.apply_updates(agent.reward, updates), reward_opt=reward_opt), loss

    def rounds(agent, keys):
        agent, loss = jax.lax.scan(step, agent, keys)
        error = reward_loss(agent.reward, agent.nets, data.held_out, data.scales)
        return judge(agent, error), {"reward_loss": loss.mean(), "holdout_error": error}

    agent, metrics = jax.lax.scan(rounds, agent, keys.reshape(-1, args.holdout_every))
    return agent, jax.tree.map(jnp.mean, metrics)


def imputed(agent: Agent, batch: Batch, labelled, scales: Scales, args: Args):
    """[B]: the reward where it is known, else the model's (or 0)."""
    other = predict(agent.best_reward, agent.nets, batch, scales) if args.impute == "model" else 0.0
    return jnp.where(labelled > 0, batch.reward, other)


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


def accuracy(agent: Agent, data: Imputable, args: Args) -> dict:
    """R^2 of what is imputed, of rows whose true rewards are hidden; none without such rows, or without labels."""
    if args.impute == "none" or not len(data.compared.reward):
        return {}
    true = data.compared.reward
    error = imputed(agent, data.compared, jnp.zeros(true.shape), data.scales, args) - true
    return {"label_r2": 1.0 - (error**2).mean() / jnp.maximum(true.var(), 1e-12)}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor = Actor(args.hidden_dims, spec.action_dim, args.dropout)
    nets = Networks(actor, Critic(args.hidden_dims), Reward(args.reward_hidden_dims))
    actor_key, critic_key, value_key, reward_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    reward = nets.reward.init(reward_key, jnp.concatenate([obs, action, obs], axis=-1))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        reward=reward,
        best_reward=reward,
        holdout_error=jnp.array(jnp.inf),
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
        reward_opt=reward_optimizer(args).init(reward),
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


def train(agent: Agent, keys, args: Args, data: Imputable) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""
    scale = 1.0 / data.scales.reward_std if args.unit_reward_std else 1.0

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        index = data.transitions.draw(batch_key, args.batch_size)
        batch = data.transitions.take(index)
        reward = scale * imputed(agent, batch, data.labelled[index], data.scales, args)
        return update(agent, batch._replace(reward=reward), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **accuracy(agent, data, args)}


def write_labels(args: Args, agent: Agent, data: Dataset, labelled: np.ndarray, scales: Scales) -> None:
    """Writes `data` with the rewards that the first lane imputes to the rows that are not `labelled` [N]."""
    first = jax.tree.map(lambda x: x[0], agent)
    reward = jax.jit(imputed)(first, batch_of(data), labelled.astype(np.float32), scales, args)
    write_dataset(args.write_dataset, relabelled(data, reward=reward))


def imputable(data: Dataset, labelled: np.ndarray, truth: np.ndarray, args: Args) -> Imputable:
    """The rows that are trained on, those that the model is fitted to, judged by, and compared with the `truth` [N].

    Raises:
      InputError: too few labelled rows to fit a model to some and to judge it by others; none, where there is no model.
    """
    usable = data.usable()
    known = np.random.default_rng(args.split_seed).permutation(np.flatnonzero(usable & labelled & data.successor))
    held = round(len(known) * args.holdout)
    if args.impute == "model" and not 0 < held < len(known):
        raise InputError(f"Of {len(known)} labelled rows {held} are held out: one of either kind is needed at least.")
    if held == len(known):
        raise InputError(f"Of {held} labelled rows all are held out: none is left to know the rewards' scale by.")
    inputs, rewards = inputs_of(data.select(usable & data.successor)), data.reward[known[held:]]
    scales = Scales(*moments(inputs), *moments(rewards, 1e-12))
    filled = data.replace({}, reward=np.where(labelled, data.reward, 0.0).astype(np.float32))
    rows = usable & labelled if args.impute == "none" else usable
    unlabelled = np.flatnonzero(usable & ~labelled & data.successor)
    unlabelled = np.random.default_rng(0).permutation(unlabelled)[:COMPARED]
    compared = data.replace({}, reward=truth).select(unlabelled)
    return Imputable(
        filled.select(rows).transitions(),
        jnp.asarray(labelled[rows], jnp.float32),
        filled.select(known[held:]).transitions(),
        batch_of(filled.select(known[:held])),
        batch_of(compared),
        jax.tree.map(jnp.float32, scales),
    )


def main(args: Args) -> None:
    data, labelled, truth = load_labelled(args)
    data = data.require(discrete=False, reward=False)
    if args.hide != ("rewards",):
        raise InputError(f"--hide {' '.join(args.hide)}: rewards are what is imputed here, and they alone.")
    if args.write_dataset and args.impute == "none":
        raise InputError("--write-dataset with --impute none: there are no labels to write.")
    before = {}
    if args.impute == "model":
        if args.holdout_every < 1 or args.reward_updates < 1 or args.reward_updates % args.holdout_every:
            raise InputError(f"--reward-updates {args.reward_updates} must be a multiple of --holdout-every, above 0.")
        before = {"before": args.reward_updates, "unit": args.holdout_every}
    shared = imputable(data, labelled, truth.reward, args)
    with Run(__file__, args, data.task, act, **before) as run:
        shared = run.replicate(shared)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done == 0 and args.write_dataset:
                write_labels(args, agent, data, labelled, shared.scales)
            lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = lanes(agent, keys, run.lane_args, shared)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
