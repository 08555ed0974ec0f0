"""SS-ORL: semi-supervised offline RL with trajectories that have no actions.

Zheng, Henaff, Amos and Grover, "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories", ICML
2023, arXiv 2210.06518. A few trajectories have actions, all have states and rewards. An inverse dynamics model, a
Gaussian of a_t given the states s_{t-k}, ..., s_{t+1}, is fitted to those that have actions, before the first update
(eq. 1); its mean is the action of the others. IQL (Kostrikov et al., arXiv 2110.06169) learns from both.

With --unlabelled none the trajectories without actions are left out: what imputing is compared with.

Choose it when states and rewards are plenty and actions are few: logs of other robots of the same body, video with
tracked states. Trajectories with actions may be worse than the others; they must cover the same actions.

Parity: the inverse model's fit is equal to facebookresearch/ssorl, update for update, but for the tanh and the mean
(results/parity.md).
Deviations from the released code (facebookresearch/ssorl):
- the inverse model's action is a Gaussian, clipped where it is used; there it is the tanh of one. Its loss is the mean
  over the action's dimensions, there the sum;
- the learner is IQL; the paper has TD3+BC, CQL and Decision Transformer (--write-dataset, then those scripts);
- the last step of a trajectory takes its recorded next state; there the window is moved back by one;
- what lies before a trajectory's first state is the data's mean state; there it is the state 0;
- the weights of least error on the labelled rows held out are used; there they are kept, but the last ones are used.

    python algorithms/imitation/ss_orl.py --dataset pendulum-mixed --seeds 8 --updates 20000
    python algorithms/imitation/ss_orl.py --dataset hopper-medium-replay --labelled-fraction 0.1 --past 0
    python algorithms/imitation/ss_orl.py --dataset pendulum-mixed --updates 1000 --write-dataset pendulum-ss.npz
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
    labelled_below: StaticFraction = 0.5
    """Episodes that are labelled are of the lowest returns, of this share of all, in [0, 1]."""
    hide: tuple[Literal["rewards", "actions"], ...] = ("actions",)
    """What is hidden of the data without labels."""
    unlabelled: Literal["model", "none"] = "model"
    """Actions of rows without one: the inverse model's, or none: they are left out."""
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
    past: int = 1
    """k: states before s_t that the inverse model sees, beside s_t and s_{t+1}."""
    inverse_updates: Size = 10_000
    """Gradient updates of the inverse model before the first of the learner."""
    inverse_batch: Size = 1_024
    """Transitions per gradient update of the inverse model."""
    inverse_hidden_dims: tuple[int, ...] = (1024, 1024)
    """Hidden layers of the inverse model."""
    inverse_lr: Float = 1e-4
    """Adam's step size: inverse model."""
    inverse_dropout: Dropout = 0.1
    """Dropout before the inverse model's last layer, in [0, 1)."""
    holdout: StaticFraction = 0.1
    """Share of what is labelled that the model is judged by, in [0, 1]."""
    holdout_every: int = 100
    """Updates of the model between two looks at its hold-out error."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""


PRESETS = {**dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"normalize_return": True})}

dense_init, inverse_init = nn.initializers.orthogonal(jnp.sqrt(2.0)), nn.initializers.orthogonal()


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


class Inverse(nn.Module):
    """Mean and log standard deviation of the action, each by a network of its own."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float

    @nn.compact
    def __call__(self, states, training: bool = False):
        heads = []
        for _ in range(2):
            x = states
            for size in self.hidden_dims:
                x = nn.relu(nn.Dense(size, kernel_init=inverse_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
            heads.append(nn.Dense(self.action_dim, kernel_init=inverse_init)(x))
        return heads[0], -5.0 + 3.5 * (jnp.tanh(heads[1]) + 1.0)


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    inverse: Inverse


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    inverse: Any
    """The inverse dynamics model."""
    best_inverse: Any
    """The same at its least error on the rows held out; what gives actions."""
    holdout_error: jax.Array
    """That error."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    inverse_opt: optax.OptState


class Shown(NamedTuple):
    """Rows of states with the action that was taken."""

    states: jax.Array
    """[N, (k + 2) O] standardised"""
    action: jax.Array
    """[N, A]"""


class Watched(NamedTuple):
    """A dataset on the device of which some rows have an action."""

    transitions: Transitions
    """All rows that are trained on, actions 0 where there is none."""
    states: jax.Array
    """[M, (k + 2) O] of these rows, standardised"""
    labelled: jax.Array
    """[M] 1 where a row's action is known"""
    known: Shown
    """The labelled rows that the model is fitted to."""
    held_out: Shown
    """The labelled rows that it is judged by."""
    compared: Shown
    """Rows without an action, with the true one: the model is compared with it, nothing is learned from it."""


COMPARED = 2_000
"""Rows without an action that the model is compared with the truth by."""


def windows(data: Dataset, past: int) -> np.ndarray:
    """[N, (k + 2) O]: s_{t-k}, ..., s_t, s_{t+1} of every row, standardised; 0 before an episode's first state."""
    mean, std = moments(data.obs)
    obs, next_obs = ((x - mean) / std for x in (data.obs, data.next_obs))
    row, start = np.arange(len(obs)), data.starts()[data.episode()]
    seen = [obs[np.maximum(row - k, 0)] * (row - k >= start)[:, None] for k in range(past, -1, -1)]
    return np.concatenate([*seen, next_obs], axis=1).astype(np.float32)


def inverse_loss(inverse, nets: Networks, shown: Shown, key=None):
    """-log N(a; mu, sigma)(s_{t-k}, ..., s_{t+1}), mean over rows and dimensions (eq. 1); with dropout given a key."""
    rngs = {} if key is None else {"dropout": key}
    mean, log_std = nets.inverse.apply(inverse, shown.states, training=key is not None, rngs=rngs)
    return -jax.scipy.stats.norm.logpdf(shown.action, mean, jnp.exp(log_std)).mean()


def judge(agent: Agent, error) -> Agent:
    """Keeps the inverse model if its `error` on the rows held out is the least so far."""
    better = error < agent.holdout_error
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), agent.inverse, agent.best_inverse)
    return agent.replace(best_inverse=best, holdout_error=jnp.where(better, error, agent.holdout_error))


def fit(agent: Agent, keys, args: Args, data: Watched) -> tuple[Agent, dict]:
    """One lane, inverse phase: one update per key, judged every `holdout_every`; mean metrics."""

    def step(agent, key):
        row_key, dropout_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (args.inverse_batch,), 0, len(data.known.action))
        shown = jax.tree.map(lambda x: x[rows], data.known)
        loss, grads = jax.value_and_grad(inverse_loss)(agent.inverse, agent.nets, shown, dropout_key)
        updates, inverse_opt = optax.adam(args.inverse_lr).update(grads, agent.inverse_opt)
        return agent.replace(inverse=optax.apply_updates(agent.inverse, updates), inverse_opt=inverse_opt), loss

    def rounds(agent, keys):
        agent, loss = jax.lax.scan(step, agent, keys)
        error = inverse_loss(agent.inverse, agent.nets, data.held_out)
        return judge(agent, error), {"inverse_loss": loss.mean(), "holdout_error": error}

    agent, metrics = jax.lax.scan(rounds, agent, keys.reshape(-1, args.holdout_every))
    return agent, jax.tree.map(jnp.mean, metrics)


def imputed(agent: Agent, action, states, labelled):
    """[B, A]: the action where it is known, else the inverse model's mean, in [-1, 1]."""
    mean, _ = agent.nets.inverse.apply(agent.best_inverse, states)
    return jnp.where(labelled[:, None] > 0, action, jnp.clip(mean, -1.0, 1.0))


def accuracy(agent: Agent, data: Watched, args: Args) -> dict:
    """R^2 of what is imputed, of rows whose true actions are hidden; none where there are no such rows, or no model."""
    if args.unlabelled == "none" or not len(data.compared.action):
        return {}
    true = data.compared.action
    error = imputed(agent, true, data.compared.states, jnp.zeros(len(true))) - true
    return {"label_r2": 1.0 - (error**2).mean() / jnp.maximum(true.var(0).mean(), 1e-12)}


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


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.dropout),
        Critic(args.hidden_dims),
        Inverse(args.inverse_hidden_dims, spec.action_dim, args.inverse_dropout),
    )
    actor_key, critic_key, value_key, inverse_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    inverse = nets.inverse.init(inverse_key, jnp.zeros((1, (args.past + 2) * spec.obs_shape[0])))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        inverse=inverse,
        best_inverse=inverse,
        holdout_error=jnp.array(jnp.inf),
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
        inverse_opt=optax.adam(args.inverse_lr).init(inverse),
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


def train(agent: Agent, keys, args: Args, data: Watched) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        index = data.transitions.draw(batch_key, args.batch_size)
        batch = data.transitions.take(index)
        action = imputed(agent, batch.action, data.states[index], data.labelled[index])
        return update(agent, batch._replace(action=action), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **accuracy(agent, data, args)}


def watched(data: Dataset, labelled: np.ndarray, truth: np.ndarray, args: Args) -> Watched:
    """The rows that are trained on, those that the model is fitted to, judged by, and compared with the `truth` [N, A].

    Raises:
      InputError: too little is labelled to fit a model to some of it and to judge it by the rest.
    """
    usable, states, known = data.usable(), windows(data, args.past), labelled & data.successor
    units = np.unique(data.episode()[known]) if args.labelled_unit == "episodes" else np.flatnonzero(known)
    held = round(len(units) * args.holdout) or min(1, len(units) - 1)
    if args.unlabelled == "model" and not 0 < held < len(units):
        raise InputError(
            f"Of {len(units)} labelled {args.labelled_unit} {held} are held out: one of either kind is needed at least."
        )
    judged = np.random.default_rng(args.split_seed).permutation(units)[:held]
    held_out = known & np.isin(data.episode() if args.labelled_unit == "episodes" else np.arange(len(known)), judged)
    rows = usable & labelled if args.unlabelled == "none" else usable
    hidden = np.random.default_rng(0).permutation(np.flatnonzero(usable & ~labelled & data.successor))[:COMPARED]
    filled = data.replace({}, action=np.where(labelled[:, None], data.action, 0.0).astype(np.float32))
    shown = [Shown(states[at], a[at]) for at, a in ((known & ~held_out, data.action), (held_out, data.action))]
    columns = states[rows], labelled[rows].astype(np.float32), *shown, Shown(states[hidden], truth[hidden])
    return Watched(filled.select(rows).transitions(), *jax.tree.map(jnp.asarray, columns))


def write_labels(args: Args, agent: Agent, data: Dataset, labelled: np.ndarray) -> None:
    """Writes `data` with the actions that the first lane gives the rows that are not `labelled` [N]."""
    first = jax.tree.map(lambda x: x[0], agent)
    action = jax.jit(imputed)(first, data.action, windows(data, args.past), labelled.astype(np.float32))
    write_dataset(args.write_dataset, relabelled(data, action=action))


def main(args: Args) -> None:
    data, labelled, truth = load_labelled(args)
    if args.hide != ("actions",) or args.past < 0:
        raise InputError(f"--hide {' '.join(args.hide)}, --past {args.past}: actions alone are imputed, from states.")
    data = data.require(discrete=False)
    if args.write_dataset and args.unlabelled == "none":
        raise InputError("--write-dataset with --unlabelled none: there are no labels to write.")
    before = {}
    if args.unlabelled == "model":
        if args.holdout_every < 1 or args.inverse_updates < 1 or args.inverse_updates % args.holdout_every:
            raise InputError(
                f"--inverse-updates {args.inverse_updates} must be a multiple of --holdout-every, above 0."
            )
        before = {"before": args.inverse_updates, "unit": args.holdout_every}
    scaled = data.scale_rewards(1000.0 / data.return_range()) if args.normalize_return else data
    shared = watched(scaled, labelled, truth.action, args)
    with Run(__file__, args, scaled.task, act, **before) as run:
        shared = run.replicate(shared)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done == 0 and args.write_dataset:
                write_labels(args, agent, data, labelled)
            lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = lanes(agent, keys, run.lane_args, shared)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
