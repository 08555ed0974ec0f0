"""NEUBAY: long rollouts in samples of a posterior over models, by an agent with a memory and without conservatism.

Ni, Derman, Jain, Taboga, Ravanbakhsh and Bacon, "Long-Horizon Model-Based Offline Reinforcement Learning Without
Conservatism", arXiv 2512.04341. An ensemble of models stands for what the data leaves open about the environment. Every
rollout is made in one of them from its beginning to its end, and the agent, which remembers what has happened, can tell
in which: its best policy explores where that pays, and rewards are not penalised. Rollouts begin after a piece of an
episode of the data, which the memory has seen, and go on until the episode's end, --rollout-steps, or where the models
disagree more than they do anywhere in the data; where they are cut, values bootstrap. After a piece that ends its
episode nothing is imagined: there the data's last rows are learned from.
1. Model phase, logged to before.csv: at most --model-updates, until no member's hold-out error falls any more.
2. --updates of recurrent SAC with --n-critics heads, of which two random ones make a target (REDQ). Before the first
   and after every `rollout_every` of them the model makes new rollouts.

Where observations tell the whole state of a known environment (Pendulum, point worlds), metrics.csv holds how far the
model is from it after one step and after a whole rollout (error_1, error_h).

Choose it when the data covers little of what could be done, and a look at what happens tells what was not known.

Deviations from the paper (twni2016/neubay):
- a batch is --rollouts-per-update whole rollouts with their histories (--batch-size is the model's), where the authors
  cut a tape of 2,048 steps; histories have at most --history steps; the step at which the models disagree is not
  learned from;
- between two batches of rollouts lie --rollout-every updates, in place of a twentieth of the steps made, and
  --rollout-rounds batches are kept (40 million steps);
- the threshold of disagreement, and its mean, the unit of --reward-penalty, are taken from at most 10,000 rows;
- a rollout from late in an episode may go on beyond the environment's time limit, where the authors' is cut;
- the hold-out error is looked at as in mopo.py; no gradient is clipped, which the authors do at a norm of 1,000; layer
  normalisation has no weights in ensembles; the temperature is always learned, which is fixed for Hopper: no presets;
- a layer of the memory is a recurrence, a leaky ReLU and a skip (with layer normalisation, a gated linear unit and an
  input scale that is learned for itself); weights are drawn from normal distributions (from uniform ones), and the
  critics' last layers begin as the others do (at a tenth); the temperature's loss is linear in its logarithm;
- actions are continuous: the paper's bandit has a form of its own here (bandit-unknown-arm), without its recurrent
  Q-learning.

    python algorithms/model_based/neubay.py --dataset hopper-medium-replay --seeds 2 --n-models 20 --n-elites 16
    python algorithms/model_based/neubay.py --dataset road-free --n-models 10 --n-elites 8 --model-hidden-dims 32 32 \\
        --hidden-dims 64 64 --memory-dim 64 --lru-dim 32 --rollout-steps 40 --history 10 --model-updates 3000 \\
        --updates 3000 --rollout-every 250
"""

import dataclasses
import math
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.checks import fewer_held_out
from shared.data import load_dataset, moments
from shared.env_models import exact_model, termination
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, sequences
from shared.task import Spec
from shared.transitions import FIELDS, Batch


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 2_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    real_weight: Fraction = 0.8
    """Weight of the data's steps in the losses; the others are the model's."""
    disagreement_quantile: Fraction = 1.0
    """Of the data: where the models disagree more, a rollout is cut."""
    truncation: bool = True
    """Rollouts are cut where the models disagree; without it, by --rollout-steps alone."""
    reward_penalty: Float = 0.0
    """lambda: what the reward loses per unit of uncertainty; 0: nothing (MBPO)."""
    rollout_steps: Float = 1000.0
    """h: steps of a rollout in the model."""
    history: Count = 50
    """Most steps of the data before a rollout, which the memory sees and learns from."""
    rollout_batch: int = 100
    """Rollouts made together, from states of the data."""
    rollout_every: int = 1_000
    """Updates between two batches of rollouts."""
    rollout_rounds: int = 5
    """Batches of rollouts that are kept."""
    termination: bool = True
    """Rollouts end where the environment's episodes would; without it, nowhere."""
    model_updates: Count = 200_000
    """Most updates of the model before the first of the agent; 0 only where it goes on learning then, or is exact."""
    holdout_rows: int = 1_000
    """Rows that the model does not learn from, at most a fifth of the data; its members are judged by them."""
    holdout_every: int = 1_000
    """Updates of the model between two looks at its hold-out error."""
    patience: Size = 5
    """Looks without an improvement by 1 % of any member after which the model is done."""
    n_models: Size = 128
    """Models in the ensemble."""
    n_elites: int = 100
    """Of these, the ones of least hold-out error, which make the rollouts."""
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of the model of the dynamics."""
    model_decay: Float = 5e-5
    """Decoupled weight decay of the model."""
    memory_dim: Size = 256
    """Numbers that a layer of the memory gives to the next."""
    lru_dim: Size = 128
    """Complex numbers that a layer of the memory keeps."""
    memory_layers: Size = 2
    """Layers of the memory."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    model_lr: Float = 1e-3
    """Adam's step size: model of the dynamics."""
    memory_lr: Float = 1e-5
    """Adam's step size: memories of actor and critics."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 1e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    rollouts_per_update: Size = 16
    """Rollouts, each with its history, in a batch."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


def _of(memory_lr: float, real_weight: float) -> dict:
    return {"memory_lr": memory_lr, "real_weight": real_weight}


PRESETS = {  # the authors', D4RL
    **dict.fromkeys(("halfcheetah", "halfcheetah-random", "halfcheetah-medium"), _of(3e-5, 0.8)),
    "halfcheetah-medium-expert": _of(3e-5, 0.8),
    "halfcheetah-medium-replay": _of(1e-5, 0.05),
    "walker2d-random": _of(3e-5, 0.5),
    **dict.fromkeys(("walker2d", "walker2d-medium"), _of(3e-6, 0.5)),
    "walker2d-medium-expert": _of(1e-6, 0.8),
    "walker2d-medium-replay": _of(1e-6, 0.5),
}

THRESHOLD_ROWS = 10_000


class Dense(nn.Module):
    """A linear layer, layer normalisation, leaky ReLU."""

    size: int

    @nn.compact
    def __call__(self, x):
        return nn.leaky_relu(nn.LayerNorm()(nn.Dense(self.size)(x)))


class EnsembleDense(nn.Module):
    """A layer of each member: [E, B, in] -> [E, B, out]."""

    members: int
    size: int

    @nn.compact
    def __call__(self, x):
        fan_in = x.shape[-1]
        init = nn.initializers.truncated_normal(1.0 / np.sqrt(fan_in))
        kernel = self.param("kernel", init, (self.members, fan_in, self.size))
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.members, 1, self.size))


def leaky_norm(x):
    """Layer normalisation without weights, then leaky ReLU."""
    x = x - x.mean(-1, keepdims=True)
    return nn.leaky_relu(x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6))


class LRU(nn.Module):
    """A linear recurrent unit [B, T, W] -> [B, T, W]: h_t = lambda h_{t-1} + gamma B x_t, complex and diagonal.

    Orvieto et al., arXiv 2303.06349; |lambda| begins in [0, 0.9]. `state` [B, H, 2], real and imaginary, comes before
    the first step; the last one is returned, too.
    """

    size: int

    @nn.compact
    def __call__(self, x, state):
        def decay(key, shape):
            radius = 0.9 * jnp.sqrt(jax.random.uniform(key, shape, minval=1e-4))
            return jnp.log(-jnp.log(radius))

        width = x.shape[-1]
        decay = self.param("decay", decay, (self.size,))
        angle = self.param(
            "angle", lambda key, shape: jnp.log(jax.random.uniform(key, shape, maxval=6.28)), (self.size,)
        )
        size = jnp.exp(-jnp.exp(decay))
        turn = jnp.exp(angle)
        factor = size * jax.lax.complex(jnp.cos(turn), jnp.sin(turn))
        into = jnp.sqrt(1.0 - size**2) * jax.lax.complex(*jnp.split(nn.Dense(2 * self.size, use_bias=False)(x), 2, -1))
        into = into.at[:, 0].add(factor * jax.lax.complex(state[..., 0], state[..., 1]))

        def join(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, h = jax.lax.associative_scan(join, (jnp.broadcast_to(factor, into.shape), into), axis=1)
        out = nn.Dense(width)(jnp.concatenate([h.real, h.imag], axis=-1))
        return nn.leaky_relu(out) + x, jnp.stack([h[:, -1].real, h[:, -1].imag], axis=-1)


class Memory(nn.Module):
    """What has happened up to each step [B, T, W], of inputs (s, previous a, previous r) [B, T, I].

    `state` [B, layers, H, 2]: what is kept between two calls.
    """

    width: int
    size: int
    layers: int

    @nn.compact
    def __call__(self, x, state=None):
        x = Dense(self.width)(x)
        state = jnp.zeros((len(x), self.layers, self.size, 2)) if state is None else state
        kept = []
        for i in range(self.layers):
            x, last = LRU(self.size)(x, state[:, i])
            kept.append(last)
        return x, jnp.stack(kept, axis=1)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation at each step, and the memory's state."""

    memory: Memory
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, inputs, state=None):
        x, state = self.memory(inputs, state)
        for size in self.hidden_dims:
            x = Dense(size)(x)
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0), state


class Critic(nn.Module):
    """[E, B, T]: E heads on one memory."""

    memory: Memory
    hidden_dims: tuple[int, ...]
    heads: int

    @nn.compact
    def __call__(self, inputs, action):
        x, _ = self.memory(inputs)
        shape = x.shape[:2]
        x = jnp.concatenate([x, action], axis=-1).reshape(1, -1, x.shape[-1] + action.shape[-1])
        for size in self.hidden_dims:
            x = leaky_norm(EnsembleDense(self.heads, size)(jnp.broadcast_to(x, (self.heads, *x.shape[1:]))))
        return EnsembleDense(self.heads, 1)(x).reshape(self.heads, *shape)


class Model(nn.Module):
    """Mean and log variance [E, B, D] of every member for its inputs [E, B, O + A]; the log std is bounded softly."""

    members: int
    hidden_dims: tuple[int, ...]
    outputs: int
    log_std_range: tuple[float, float] = (-5.0, 0.25)

    @nn.compact
    def __call__(self, x):
        for i, size in enumerate(self.hidden_dims):
            x = leaky_norm(EnsembleDense(self.members, size, name=f"Dense_{i}")(x))
        x = EnsembleDense(self.members, 2 * self.outputs, name=f"Dense_{len(self.hidden_dims)}")(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        low, high = self.log_std_range
        log_std = high - nn.softplus(high - log_std)
        return mean, 2.0 * (low + nn.softplus(log_std - low))


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    model: Model


class Rollouts(NamedTuple):
    """A ring of C rollouts of T steps with their histories; what is not `valid` means nothing."""

    obs: jax.Array
    """[C, T, O]"""
    action: jax.Array
    reward: jax.Array
    """[C, T]"""
    seen: jax.Array
    """[C, T] the reward that the memory is given, as in the environment: without the penalty"""
    terminal: jax.Array
    next_obs: jax.Array
    real: jax.Array
    """[C, T] 1: a step of the data"""
    valid: jax.Array
    """[C, T] 1 up to where the rollout ended or was cut"""
    made: jax.Array
    """Batches of rollouts ever made."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """One memory, and heads [E, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    model: Any
    """The ensemble; its layers have a leading axis [E, ...]."""
    best_model: Any
    """Each member as it was at its least hold-out error."""
    holdout_error: jax.Array
    """[E] that error"""
    waited: jax.Array
    """Looks at the hold-out error since one improved."""
    fitted: jax.Array
    """Updates of the model."""
    threshold: jax.Array
    """Disagreement of the elites at which a rollout is cut."""
    usual: jax.Array
    """Their mean disagreement in the data."""
    input_mean: jax.Array
    """[O + A] of the model's inputs in the data"""
    input_std: jax.Array
    output_mean: jax.Array
    """[O + 1] of the next observation and the reward in the data"""
    output_std: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    model_opt: optax.OptState


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


# ------------------------------------------------------------------------------------------- the model


def predict(model, agent: Agent, obs, action):
    """Mean and log variance [E, B, O + 1] of standardised (s', r); obs, action [B, ...], or [E, B, ...].

    The network gives the change of the standardised observation.
    """
    x = (jnp.concatenate([obs, action], axis=-1) - agent.input_mean) / agent.input_std
    x = jnp.broadcast_to(x, (agent.nets.model.members, *x.shape[-2:]))
    mean, log_var = agent.nets.model.apply(model, x)
    return mean.at[..., :-1].add(x[..., : obs.shape[-1]]), log_var


def model_target(agent: Agent, batch: Batch):
    """Standardised (s', r) [..., O + 1]"""
    outcome = jnp.concatenate([batch.next_obs, batch.reward[..., None]], axis=-1)
    return (outcome - agent.output_mean) / agent.output_std


def model_loss(model, agent: Agent, batch: Batch, args: Args):
    """(mu - y)^2 / sigma^2 + log sigma^2, mean over rows and dimensions; summed over the members.

    Each member has a batch [E, B] of its own. What follows an end is learned only where the data has it, rewards
    everywhere.
    """
    mean, log_var = predict(model, agent, batch.obs, batch.action)
    nll = (mean - model_target(agent, batch)) ** 2 * jnp.exp(-log_var) + log_var
    chex.assert_shape(nll, (args.n_models, args.batch_size, mean.shape[-1]))
    nll = nll.at[..., :-1].multiply(batch.successor[..., None]).mean((1, 2)).sum(0)
    return nll, {"model_nll": nll}


def squared_error(model, agent: Agent, batch: Batch):
    """[E]: (mu - y)^2 over the rows [B] whose next observation is known."""
    error = ((predict(model, agent, batch.obs, batch.action)[0] - model_target(agent, batch)) ** 2).mean(-1)
    return (batch.successor * error).sum(1) / jnp.maximum(batch.successor.sum(), 1.0)


def judge(agent: Agent, held_out: Batch) -> Agent:
    """After a look at the hold-out error: keeps the members that improved by more than 1 %."""
    error = squared_error(agent.model, agent, held_out)
    better = error < 0.99 * agent.holdout_error

    def keep(new, old):
        return jnp.where(better.reshape(-1, 1, 1), new, old)

    return agent.replace(
        best_model=jax.tree.map(keep, agent.model, agent.best_model),
        holdout_error=jnp.where(better, error, agent.holdout_error),
        waited=jnp.where(better.any(), 0, agent.waited + 1),
    )


def model_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adamw(args.model_lr, weight_decay=args.model_decay)


def update_model(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of all members, on batches [E, B]."""
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.model, agent, batch, args)
    updates, model_opt = model_optimizer(args).update(grads, agent.model_opt, agent.model)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt)
    return agent.replace(fitted=agent.fitted + 1), {"model_loss": loss, **info}


def elites(agent: Agent, args: Args):
    """[n_elites] numbers of the members of least hold-out error."""
    return jnp.argsort(agent.holdout_error)[: args.n_elites]


def disagreement(agent: Agent, mean, args: Args):
    """[B]: standard deviation over the elites of standardised means [E, B, D], root mean square over D."""
    return jnp.sqrt(mean[elites(agent, args)].var(0).mean(-1))


def cut_at(u, args: Args):
    """The disagreement at which rollouts are cut, of that on the data's rows [n]; inf without --truncation."""
    return jnp.quantile(u, args.disagreement_quantile) if args.truncation else jnp.float32(jnp.inf)


def scale_of(obs: np.ndarray, action: np.ndarray, reward: np.ndarray) -> dict[str, np.ndarray]:
    """Means and stds of the model's inputs (s, a) and outputs (s', r), the same for s and s', of the data's rows [n].

    What never changes is predicted as it is.
    """
    scale = {}
    for name, x, constant in (("input", [obs, action], 1.0), ("output", [obs, reward[:, None]], 1e-6)):
        mean, std = moments(np.concatenate(x, axis=1), constant=constant)
        scale |= {f"{name}_mean": mean, f"{name}_std": std}
    return scale


def fit(agent: Agent, keys, args: Args, data: Sequences, held_out: Batch, rows) -> tuple[Agent, dict]:
    """One lane, model phase: one update per key, unless the hold-out error has stopped falling; its end's metrics.

    `rows` [n]: those of the data that are not held out, in a random order.
    """
    keys = jax.random.key_data(keys).reshape(-1, args.holdout_every, 2)

    def step(agent, key):
        at = jax.random.randint(jax.random.wrap_key_data(key), (args.n_models, args.batch_size), 0, len(rows))
        return update_model(agent, data.transitions.take(rows[at]), args)

    def goes_on(carry):
        return (carry[0] < len(keys)) & (carry[1].waited < args.patience)

    def epoch(carry):
        i, agent, _ = carry
        agent, metrics = jax.lax.scan(step, agent, keys[i])
        return i + 1, judge(agent, held_out), jax.tree.map(jnp.mean, metrics)

    _, agent, metrics = jax.lax.while_loop(goes_on, epoch, (0, agent, {"model_loss": 0.0, "model_nll": 0.0}))
    seen = data.transitions.take(rows[:THRESHOLD_ROWS])
    u = disagreement(agent, predict(agent.best_model, agent, seen.obs, seen.action)[0], args)
    agent = agent.replace(threshold=cut_at(u, args), usual=u.mean())
    error = jnp.sort(agent.holdout_error)[: args.n_elites].mean()
    now = squared_error(agent.model, agent, held_out).mean()
    info = {"holdout_error": now, "elites_error": error}
    info |= {"threshold": agent.threshold} if args.truncation else {}  # what is not finite has diverged
    return agent, {**metrics, **info, "fitted": agent.fitted.astype(jnp.float32)}


# ------------------------------------------------------------------------------------------ rollouts


def beginnings(data: Sequences, key, n: int):
    """Rows [n] that rollouts begin in, and [n] whether instead the history is up to that row, an episode's last.

    Drawn uniformly from all rows and ends of episodes. At an end nothing is imagined: its row, in which tasks
    terminate, is learned from.
    """
    last = data.end == jnp.arange(len(data.end))
    place = jnp.arange(len(last)) + jnp.cumsum(last) - last
    drawn = jax.random.randint(key, (n,), 0, len(last) + last.sum())
    row = jnp.searchsorted(place, drawn, side="right") - 1
    return row, drawn > place[row]


def rollout(
    agent: Agent, made: Rollouts, key, args: Args, data: Sequences, ends: Callable, exact: Callable | None
) -> tuple[Rollouts, dict]:
    """--rollout-batch rollouts in place of the oldest, each in one elite, after a history of its own.

    Some are a history alone, that of an episode's end.
    """
    row_key, member_key, key = jax.random.split(key, 3)
    n, steps = args.rollout_batch, made.obs.shape[1]
    row, whole = beginnings(data, row_key, n)
    whole &= args.history > 0
    first = jnp.maximum(data.start[row], row + whole - args.history)
    member = jax.random.choice(member_key, elites(agent, args), (n,))

    def step(carry, t):
        obs, true_obs, action, reward, memory, alive = carry
        action_key, noise_key, exact_key, true_key = jax.random.split(jax.random.fold_in(key, t), 4)
        past = first + t < row + whole
        known = data.transitions.take(jnp.minimum(first + t, row))
        obs, true_obs = (jnp.where((first + t <= row)[:, None], known.obs, x) for x in (obs, true_obs))
        inputs = jnp.concatenate([obs, action, reward[:, None]], axis=-1)
        mean, log_std, memory = agent.nets.actor.apply(agent.actor, inputs[:, None], memory)
        action, _ = sample_tanh_gaussian(mean[:, 0], log_std[:, 0], action_key)
        action = jnp.where(past[:, None], known.action, action)
        mean, log_var = predict(agent.best_model, agent, obs, action)
        u = disagreement(agent, mean, args)
        noise = jax.random.normal(noise_key, mean.shape[1:])
        outcome = mean[member, jnp.arange(n)] + jnp.exp(0.5 * log_var[member, jnp.arange(n)]) * noise
        outcome = outcome * agent.output_std + agent.output_mean
        reward = jnp.where(past, known.reward, outcome[:, -1])
        penalty = jnp.where(past, 0.0, args.reward_penalty * u / agent.usual)
        next_obs = jnp.where(past[:, None], known.next_obs, outcome[:, :-1])
        terminal = jnp.where(past, known.terminal, ends(next_obs)).astype(jnp.float32)
        alive &= past | (~whole & (u <= agent.threshold) & (first + t - row < args.rollout_steps))
        next_obs = jnp.where(alive[:, None], next_obs, obs)  # nothing runs away where nobody looks
        made = Rollouts(obs, action, reward - penalty, reward, terminal, next_obs, past, alive, u)
        errors = {}
        if exact:
            errors["error_1"] = jnp.linalg.norm(next_obs - exact(obs, action, exact_key)[0], axis=-1)
            true_obs = exact(true_obs, action, true_key)[0]
            errors["error_h"] = jnp.linalg.norm(next_obs - true_obs, axis=-1)
        at_last = first + t - row + 1 >= args.rollout_steps
        return (next_obs, true_obs, action, reward, memory, alive & (terminal == 0.0)), (made, errors, at_last)

    A, layers = data.transitions.spec.action_dim, (args.memory_layers, args.lru_dim, 2)
    known = data.transitions.take(first)
    carry = (known.obs, known.obs, jnp.zeros((n, A)), jnp.zeros(n), jnp.zeros((n, *layers)), jnp.ones(n, bool))
    _, (new, errors, at_last) = jax.lax.scan(step, carry, jnp.arange(steps))
    u = new.made
    new = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).astype(jnp.float32), new._replace(made=None))
    at = made.made % args.rollout_rounds * n
    ring = [jax.lax.dynamic_update_slice_in_dim(old, x, at, 0) for old, x in zip(made[:-1], new[:-1], strict=True)]
    imagined = (new.valid * (1.0 - new.real)).T
    count = jnp.maximum(imagined.sum(), 1.0)
    info = {"rollout_length": imagined.sum() / n, "disagreement": (imagined * u).sum() / count}
    info |= {"model_reward": (imagined * new.reward.T).sum() / count, "history_length": (row + whole - first).mean()}
    over = {"error_1": imagined, "error_h": imagined * at_last}
    info |= {name: (over[name] * x).sum() / jnp.maximum(over[name].sum(), 1.0) for name, x in errors.items()}
    return Rollouts(*ring, made.made + 1), info


# ------------------------------------------------------------------------------------------ the agent


def inputs_of(batch: Rollouts):
    """[B, T + 1, O + A + 1]: what the memory is given at each step, (s, previous a, previous r), and after the last."""
    obs = jnp.concatenate([batch.obs[:, :1], batch.next_obs], axis=1)
    before = jnp.concatenate([batch.action, batch.seen[..., None]], axis=-1)
    return jnp.concatenate([obs, jnp.pad(before, ((0, 0), (1, 0), (0, 0)))], axis=-1)


def mixture(x, batch: Rollouts, args: Args):
    """Of x [..., B, T]: its mean over real steps and that over imagined ones, weighted by --real-weight."""
    real, imagined = batch.valid * batch.real, batch.valid * (1.0 - batch.real)
    means = [(x * mask).sum((-2, -1)) / jnp.maximum(mask.sum(), 1.0) for mask in (real, imagined)]
    return args.real_weight * means[0] + (1.0 - args.real_weight) * means[1]


def temperature(agent: Agent):
    """SAC's alpha."""
    return jnp.exp(agent.log_alpha)


def critic_loss(critic, agent: Agent, batch: Rollouts, key, args: Args):
    """Huber(Q_i(h, a) - y), y = r + gamma (min_{i in M} target Q_i(h', a') - alpha log pi(a'|h')), M: two random heads.

    Mean over the critics.
    """
    action_key, heads_key = jax.random.split(key)
    inputs = inputs_of(batch)
    mean, log_std, _ = agent.nets.actor.apply(agent.actor, inputs)
    action, log_prob = sample_tanh_gaussian(mean, log_std, action_key)
    heads = jax.random.choice(heads_key, args.n_critics, (min(2, args.n_critics),), replace=False)
    next_q = agent.nets.critic.apply(agent.target_critic, inputs, action)[heads].min(0)[:, 1:]
    next_v = next_q - temperature(agent) * log_prob[:, 1:]
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = agent.nets.critic.apply(critic, inputs[:, :-1], batch.action)
    chex.assert_equal_shape([y, q[0], batch.reward])
    info = {"q": mixture(q, batch, args).mean(), "q_max": jnp.where(batch.valid > 0, q, -jnp.inf).max()}
    return mixture(optax.huber_loss(q, y), batch, args).mean(), info


def actor_loss(actor, agent: Agent, batch: Rollouts, key, args: Args):
    """alpha log pi(a|h) - mean_i Q_i(h, a), a ~ pi."""
    inputs = inputs_of(batch)[:, :-1]
    mean, log_std, _ = agent.nets.actor.apply(actor, inputs)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = agent.nets.critic.apply(agent.critic, inputs, action).mean(0)
    chex.assert_equal_shape([q, log_prob, batch.reward])
    loss = mixture(temperature(agent) * log_prob - q, batch, args)
    surplus = mixture(action.shape[-1] - log_prob, batch, args)  # of the entropy over its target -dim(A)
    real = batch.valid * batch.real
    q_real = (q * real).sum() / jnp.maximum(real.sum(), 1.0)
    entropy = -mixture(log_prob, batch, args)
    return loss, {"entropy": entropy, "surplus": surplus, "q_pi": mixture(q, batch, args), "q_pi_real": q_real}


def alpha_loss(log_alpha, surplus):
    """SAC's temperature: log alpha grows while the entropy is under its target."""
    return log_alpha * surplus


def optimizer(rate, memory_rate) -> optax.GradientTransformation:
    """Adam at `rate`, memories at `memory_rate`."""

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "memory" if "memory" in str(path) else "head", params)

    return optax.multi_transform({"memory": optax.adam(memory_rate), "head": optax.adam(rate)}, labels)


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optimizer(*(optax.cosine_decay_schedule(rate, args.updates) for rate in (args.actor_lr, args.memory_lr)))


def init(key, args: Args, spec: Spec, input_mean=0.0, input_std=1.0, output_mean=0.0, output_std=1.0) -> Agent:
    """The agent of one lane. Means and stds are of the model's inputs [O + A] and outputs [O + 1] in the data."""
    obs_dim, action_dim = spec.obs_shape[0], spec.action_dim
    memory = Memory(args.memory_dim, args.lru_dim, args.memory_layers)
    nets = Networks(
        Actor(memory, args.hidden_dims, action_dim),
        Critic(memory, args.hidden_dims, args.n_critics),
        Model(args.n_models, args.model_hidden_dims, obs_dim + 1),
    )
    actor_key, critic_key, model_key = jax.random.split(key, 3)
    inputs, action = jnp.zeros((1, 1, obs_dim + action_dim + 1)), jnp.zeros((1, 1, action_dim))
    actor, critic = nets.actor.init(actor_key, inputs), nets.critic.init(critic_key, inputs, action)
    model = nets.model.init(model_key, jnp.zeros((args.n_models, 1, obs_dim + action_dim)))
    log_alpha = jnp.full((), math.log(0.2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        model=model,
        best_model=model,
        holdout_error=jnp.full(args.n_models, jnp.finfo(jnp.float32).max),
        waited=jnp.int32(0),
        fitted=jnp.int32(0),
        threshold=jnp.float32(jnp.inf),
        usual=jnp.float32(1.0),
        input_mean=jnp.broadcast_to(jnp.float32(input_mean), (obs_dim + action_dim,)),
        input_std=jnp.broadcast_to(jnp.float32(input_std), (obs_dim + action_dim,)),
        output_mean=jnp.broadcast_to(jnp.float32(output_mean), (obs_dim + 1,)),
        output_std=jnp.broadcast_to(jnp.float32(output_std), (obs_dim + 1,)),
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optimizer(args.critic_lr, args.memory_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        model_opt=model_optimizer(args).init(model),
    )


def update(agent: Agent, batch: Rollouts, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, then the actor, then the temperature; then a step of the targets."""
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optimizer(args.critic_lr, args.memory_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["surplus"])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": temperature(agent)}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_pi}


class Carry(NamedTuple):
    """Of one environment: the memory's state, and the action before."""

    memory: jax.Array
    action: jax.Array


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Nothing has happened."""
    return Carry(jnp.zeros((args.memory_layers, args.lru_dim, 2)), jnp.zeros(agent.nets.actor.action_dim))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's, after what has happened; and the carry after them."""
    inputs = jnp.concatenate([obs, carry.action, reward[:, None]], axis=-1)[:, None]
    mean, _, memory = agent.nets.actor.apply(agent.actor, inputs, carry.memory)
    action = jnp.tanh(mean[:, 0])
    return action, Carry(memory, action)


def train(lane: tuple[Agent, Rollouts], keys, args: Args, data: Sequences, make_rollouts: Callable):
    """One lane: one update per key, and rollouts before every `rollout_every` of them; mean metrics."""

    def rounds(lane, keys):
        agent, made = lane
        keys = jax.vmap(jax.random.split)(keys)
        made, info = make_rollouts(agent, made, keys[0, 1], args, data)
        count = jnp.minimum(made.made, args.rollout_rounds) * args.rollout_batch

        def step(agent, key):
            batch_key, update_key = jax.random.split(key)
            at = jax.random.randint(batch_key, (args.rollouts_per_update,), 0, count)
            batch = jax.tree.map(lambda x: x[at], made._replace(made=None))
            return update(agent, batch, update_key, args)

        agent, metrics = jax.lax.scan(step, agent, keys[:, 0])
        return (agent, made), {**jax.tree.map(jnp.mean, metrics), **info}

    lane, metrics = jax.lax.scan(rounds, lane, keys.reshape(-1, args.rollout_every))
    return lane, jax.tree.map(jnp.mean, metrics)


def empty_rollouts(args: Args, spec: Spec, steps: int) -> Rollouts:
    """A ring of --rollout-rounds batches, of which none is made yet."""
    shape = (args.rollout_rounds * args.rollout_batch, args.history + steps)
    number, obs = jnp.zeros(shape), jnp.zeros((*shape, spec.obs_shape[0]))
    action = jnp.zeros((*shape, spec.action_dim))
    return Rollouts(obs, action, number, number, number, obs, number, number, jnp.int32(0))


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    steps, rows = int(np.max(args.rollout_steps)), int(data.usable().sum())
    holdout = min(args.holdout_rows, rows // 5)
    sizes = [holdout, args.rollout_batch, args.rollout_every, args.rollout_rounds, args.holdout_every, args.n_elites]
    sizes += [args.model_updates, args.patience]
    whole = not np.any(np.mod(args.rollout_steps, 1))
    enough = whole and min(*sizes, np.min(args.rollout_steps)) >= 1
    if not enough or args.n_elites > args.n_models:
        raise InputError(
            "A model needs 5 rows of data or more; --holdout-rows, --model-updates, --patience, --n-elites, "
            "--rollout-steps and the like must be at least 1 and whole. "
            f"Here are {rows} rows, {args.holdout_rows} of them held out, {args.n_elites} elites of "
            f"{args.n_models} models and rollouts of {args.rollout_steps} steps."
        )
    if args.n_elites < 2 and (args.truncation or np.any(args.reward_penalty)):
        raise InputError("One elite disagrees with nobody: --n-elites 2 or more, or --no-truncation and no penalty.")
    asked, args = args.holdout_rows, dataclasses.replace(args, holdout_rows=holdout)
    order = np.random.default_rng(0).permutation(rows)
    held_rows, rows = order[:holdout], order[holdout:]
    kept = data.select(data.usable())
    scale = scale_of(kept.obs[rows], kept.action[rows], kept.reward[rows])
    ends, exact = termination(data.task, args.termination), exact_model(data.task)
    unit = math.lcm(args.rollout_every, args.holdout_every)
    policy = StatefulPolicy(initial_carry, act)
    with Run(__file__, args, data.task, policy, unit=unit, before=args.model_updates) as run:
        run.note(fewer_held_out(asked, holdout))
        sequence = run.replicate(sequences(data, *FIELDS, "successor"))
        held_out, rows = run.replicate((sequence.transitions.take(held_rows), jnp.asarray(rows)))
        agent = run.init(partial(init, spec=data.spec, **scale))
        made = run.init(lambda key, args: empty_rollouts(args, data.spec, steps))
        agent, made = run.restore(agent, made)
        make_rollouts = partial(rollout, ends=ends, exact=exact)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None, None, None), donate=True)
        train_lanes = run.over_lanes(
            partial(train, make_rollouts=make_rollouts), in_axes=(0, 0, 0, None), donate=True
        )  # fmt: skip
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, sequence, held_out, rows)
            else:
                (agent, made), metrics = train_lanes((agent, made), keys, run.lane_args, sequence)
            run.log(agent, metrics, state=made)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
