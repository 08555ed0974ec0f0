"""RAVL: reach-aware value learning, against values of states that no rollout goes on from.

Sims, Lu, Foerster and Teh, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", NeurIPS 2024,
arXiv 2402.12527. Rollouts in a model are cut after h steps. What can only be reached in the last of them, the edge of
reach, is bootstrapped from and never updated: errors there are carried back into all other values and grow, even if
the model is perfect. RAVL is SAC on such rollouts, without a penalty of the reward, with the least of N critics that
are kept apart by the diversity of their gradients, as in EDAC: they differ where nothing is learned, and the least is
low there.
1. Model phase, logged to before.csv: at most --model-updates, until no member's hold-out error falls any more.
2. --updates of the agent. Before the first and after every `rollout_every` of them the model makes new rollouts.

With --dynamics exact the environment itself takes the model's place (Pendulum, point worlds; --model-updates 0): the
paper's diagnosis. Two critics and --diversity 0 are plain SAC on rollouts (MBPO). q_edge in metrics.csv is the value
of where the last steps of rollouts lead, terminal or not, q_start of where they began.

Choose it when a model of the dynamics can be learned well from your data, and values explode all the same.

Deviations from the paper:
- the model is that of mopo.py: no least number of epochs, no reduction of its step size, at most 1,000 rows held out;
- the critics are updated before actor and temperature, which the authors' code updates first;
- number of critics, diversity, horizon and share of data by dataset are not known from the text: no presets.

    python algorithms/model_based/ravl.py --dataset hopper-medium-replay --seeds 4 --rollout-batch 10000 --n-critics 50
    python algorithms/model_based/ravl.py --dataset point-fourrooms-partial --dynamics exact --model-updates 0 \\
        --hidden-dims 64 64 --updates 20000 --rollout-batch 1000 --n-critics 10
"""

import dataclasses
import math
import sys
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, StaticFraction, hyperparameters
from shared.checks import fewer_held_out
from shared.data import load_dataset, moments
from shared.env_models import exact_model, termination
from shared.errors import InputError
from shared.replay import Replay, concatenate, init_replay
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    diversity: Float = 1.0
    """eta: weight of the alignment of the critics' gradients in the action (1 to 100 by dataset); 0: SAC-N."""
    dynamics: Literal["learned", "exact"] = "learned"
    """What makes the rollouts: the model, or the environment itself where its state can be read off observations."""
    rollout_steps: Float = 5.0
    """h: steps of a rollout in the model."""
    rollout_batch: int = 50_000
    """Rollouts made together, from states of the data."""
    rollout_every: int = 1_000
    """Updates between two batches of rollouts."""
    rollout_rounds: int = 5
    """Batches of rollouts that are kept."""
    real_share: StaticFraction = 0.05
    """Share of the data's rows in a batch; the others are the model's."""
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
    n_models: Size = 7
    """Models in the ensemble."""
    n_elites: int = 5
    """Of these, the ones of least hold-out error, which make the rollouts."""
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of the model of the dynamics."""
    decay_scale: Float = 1.0
    """Of the model: a factor of the paper's, which grow from 2.5e-5 in the first layer to 1e-4 in the last."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    model_lr: Float = 1e-3
    """Adam's step size: model of the dynamics."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}

hidden_init = {
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # +-sqrt(1 / fan_in)
    "bias_init": nn.initializers.constant(0.1),
}


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
        x = nn.Dense(2 * self.action_dim, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
        return nn.Dense(1, kernel_init=uniform(3e-3), bias_init=uniform(3e-3))(x)[..., 0]


class EnsembleDense(nn.Module):
    """A layer of each member: [E, B, in] -> [E, B, out]."""

    members: int
    size: int

    @nn.compact
    def __call__(self, x):
        fan_in = x.shape[-1]
        init = nn.initializers.truncated_normal(0.5 / np.sqrt(fan_in))
        kernel = self.param("kernel", init, (self.members, fan_in, self.size))
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.members, 1, self.size))


class Model(nn.Module):
    """Mean and log variance [E, B, D] of every member for its inputs [E, B, O + A]; the log variance is bounded softly.

    The bounds [D] are learned, and those of all members.
    """

    members: int
    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for i, size in enumerate(self.hidden_dims):
            x = nn.swish(EnsembleDense(self.members, size, name=f"Dense_{i}")(x))
        x = EnsembleDense(self.members, 2 * self.outputs, name=f"Dense_{len(self.hidden_dims)}")(x)
        mean, log_var = jnp.split(x, 2, axis=-1)
        high = self.param("max_log_var", nn.initializers.constant(0.5), (self.outputs,))
        low = self.param("min_log_var", nn.initializers.constant(-10.0), (self.outputs,))
        log_var = high - nn.softplus(high - log_var)
        return mean, low + nn.softplus(log_var - low)


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    model: Model


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Stacked on a leading axis [E=n_critics, ...]."""
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
    bootstrap: jax.Array
    """[2] data of the key of the members' bootstrap samples"""
    input_mean: jax.Array
    """[O + A] of the model's inputs in the data"""
    input_std: jax.Array
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


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


# ------------------------------------------------------------------------------------------- the model


def predict(model, agent: Agent, obs, action):
    """Mean and log variance [E, B, O + 1] of (s' - s, r); obs, action [B, ...], or [E, B, ...] for each member."""
    x = (jnp.concatenate([obs, action], axis=-1) - agent.input_mean) / agent.input_std
    return agent.nets.model.apply(model, jnp.broadcast_to(x, (agent.nets.model.members, *x.shape[-2:])))


def model_target(batch: Batch):
    """(s' - s, r) [..., O + 1]"""
    return jnp.concatenate([batch.next_obs - batch.obs, batch.reward[..., None]], axis=-1)


def model_decay(model, args: Args):
    """0.5 sum_l decay_l |W_l|^2, the decays of the paper's code spread over the layers."""
    layers = [f"Dense_{i}" for i in range(sum("Dense" in name for name in model["params"]))]
    decays = np.interp(np.linspace(0, 4, len(layers)), range(5), (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4))
    squares = [(model["params"][name]["kernel"] ** 2).sum() for name in layers]
    return 0.5 * args.decay_scale * sum(d * square for d, square in zip(decays, squares, strict=True))


def model_loss(model, agent: Agent, batch: Batch, args: Args):
    """(mu - y)^2 / sigma^2 + log sigma^2, mean over rows and dimensions; summed over the members.

    Beside it the decay, and 0.01 times the bounds of the log variance, which closes them. Each member has a batch
    [E, B] of its own. What follows an end is learned only where the data has it, rewards everywhere.
    """
    mean, log_var = predict(model, agent, batch.obs, batch.action)
    nll = (mean - model_target(batch)) ** 2 * jnp.exp(-log_var) + log_var
    chex.assert_shape(nll, (args.n_models, args.batch_size, mean.shape[-1]))
    bounds = model["params"]["max_log_var"].sum() - model["params"]["min_log_var"].sum()
    nll = nll.at[..., :-1].multiply(batch.successor[..., None]).mean((1, 2)).sum(0)
    return nll + model_decay(model, args) + 0.01 * bounds, {"model_nll": nll}


def squared_error(model, agent: Agent, batch: Batch):
    """[E]: (mu - y)^2 over the rows [B] whose next observation is known."""
    error = ((predict(model, agent, batch.obs, batch.action)[0] - model_target(batch)) ** 2).mean(-1)
    return (batch.successor * error).sum(1) / jnp.maximum(batch.successor.sum(), 1.0)


def judge(agent: Agent, held_out: Batch) -> Agent:
    """After a look at the hold-out error: keeps the members that improved by more than 1 %."""
    error = squared_error(agent.model, agent, held_out)
    better = error < 0.99 * agent.holdout_error

    def keep(new, old):  # the bounds, which are all members', are the last ones
        return jnp.where(better.reshape(-1, 1, 1), new, old) if new.ndim == 3 else new

    return agent.replace(
        best_model=jax.tree.map(keep, agent.model, agent.best_model),
        holdout_error=jnp.where(better, error, agent.holdout_error),
        waited=jnp.where(better.any(), 0, agent.waited + 1),
    )


def update_model(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of all members, on batches [E, B]."""
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.model, agent, batch, args)
    updates, model_opt = optax.adam(args.model_lr).update(grads, agent.model_opt)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt)
    return agent.replace(fitted=agent.fitted + 1), {"model_loss": loss, **info}


def bootstrap_rows(agent: Agent, key, shape: tuple[int, int], n: int):
    """[E, B] of n rows: random ones of the sample of n, drawn once with replacement, that each member has."""
    own = jax.random.wrap_key_data(agent.bootstrap)
    places = jax.random.randint(key, shape, 0, n)

    def row(member, place):
        return jax.random.randint(jax.random.fold_in(jax.random.fold_in(own, member), place), (), 0, n)

    return jax.vmap(jax.vmap(row, (None, 0)))(jnp.arange(shape[0]), places)


def fit(agent: Agent, keys, args: Args, transitions: Transitions, holdout: int) -> tuple[Agent, dict]:
    """One lane, model phase: one update per key, unless the hold-out error has stopped falling; its end's metrics.

    The first `holdout` rows are the ones held out.
    """
    n = len(transitions.rows) - holdout
    held_out = transitions.take(jnp.arange(holdout))
    data = jax.random.key_data(keys).reshape(-1, args.holdout_every, 2)

    def step(agent, data):
        rows = holdout + bootstrap_rows(agent, jax.random.wrap_key_data(data), (args.n_models, args.batch_size), n)
        return update_model(agent, transitions.take(rows), args)

    def goes_on(carry):
        return (carry[0] < len(data)) & (carry[1].waited < args.patience)

    def epoch(carry):
        i, agent, _ = carry
        agent, metrics = jax.lax.scan(step, agent, data[i])
        return i + 1, judge(agent, held_out), jax.tree.map(jnp.mean, metrics)

    _, agent, metrics = jax.lax.while_loop(goes_on, epoch, (0, agent, {"model_loss": 0.0, "model_nll": 0.0}))
    error = jnp.sort(agent.holdout_error)[: args.n_elites].mean()
    now = squared_error(agent.model, agent, held_out).mean()
    return agent, {**metrics, "holdout_error": now, "elites_error": error, "fitted": agent.fitted.astype(jnp.float32)}


# ------------------------------------------------------------------------------------------ rollouts


def outcomes(agent: Agent, obs, action):
    """Every member's mean and standard deviation [E, B, O + 1] of (s', r)."""
    mean, log_var = predict(agent.best_model, agent, obs, action)
    return mean.at[..., :-1].add(obs), jnp.exp(0.5 * log_var)


def draw(agent: Agent, mean, std, key, args: Args):
    """(s', r) [B, O + 1], each row of a random elite's Gaussian."""
    member_key, noise_key = jax.random.split(key)
    elites = jnp.argsort(agent.holdout_error)[: args.n_elites]
    member, rows = jax.random.choice(member_key, elites, mean.shape[1:2]), jnp.arange(mean.shape[1])
    return mean[member, rows] + std[member, rows] * jax.random.normal(noise_key, mean.shape[1:])


def rollout(
    agent: Agent, replay: Replay, key, args: Args, transitions: Transitions, steps: int, ends: Callable, exact: Callable
) -> tuple[Replay, dict]:
    """Rollouts of --rollout-steps, at most `steps`, into the ring; a terminated one goes no further."""
    start_key, key = jax.random.split(key)
    obs = transitions.sample(start_key, args.rollout_batch).obs

    def value(obs):
        action = jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])
        return q_values(agent.nets.critic, agent.critic, obs, action).min(0)

    def step(carry, t):
        obs, true_obs, alive, replay = carry
        action_key, model_key, exact_key, true_key = jax.random.split(jax.random.fold_in(key, t), 4)
        action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), action_key)
        if args.dynamics == "exact":
            next_obs, reward, terminal = exact(obs, action, model_key)
            terminal &= args.termination
        else:
            mean, std = outcomes(agent, obs, action)
            outcome = draw(agent, mean, std, model_key, args)
            next_obs, reward = outcome[:, :-1], outcome[:, -1]
            terminal = ends(next_obs)
        valid = alive & (t < args.rollout_steps)
        replay = replay.extend(Batch(obs, action, reward, terminal, next_obs), valid)
        means, last = {"model_reward": reward, "terminal": terminal}, {"q_edge": value(next_obs)}
        if exact:
            error = jnp.linalg.norm(next_obs - exact(obs, action, exact_key)[0], axis=-1)
            true_obs = exact(true_obs, action, true_key)[0]
            means["error_1"] = error
            last["error_h"] = jnp.linalg.norm(next_obs - true_obs, axis=-1)
        at_last = valid & (t + 1 >= args.rollout_steps)
        sums = {name: (valid * x).sum() for name, x in means.items()}
        last = {name: (at_last * x).sum() for name, x in last.items()}
        return (next_obs, true_obs, valid & ~terminal, replay), (sums, valid.sum(), last, at_last.sum())

    q_start = value(obs).mean()
    carry = (obs, obs, jnp.ones(len(obs), bool), replay)
    (*_, replay), found = jax.lax.scan(step, carry, jnp.arange(steps))
    sums, count, last, count_last = jax.tree.map(jnp.sum, found)
    means = {name: x / jnp.maximum(count, 1) for name, x in sums.items()}
    means |= {name: x / jnp.maximum(count_last, 1) for name, x in last.items()}
    return replay, {
        **means,
        "q_start": q_start,
        "rollout_length": count / len(obs),
        "model_rows": replay.size().astype(jnp.float32),
    }


def kept(args: Args):
    """Rows that `rollout_rounds` batches of rollouts have at most."""
    return jnp.int32(args.rollout_rounds * args.rollout_batch * args.rollout_steps)


# ------------------------------------------------------------------------------------------ the agent


def temperature(agent: Agent):
    """SAC's alpha."""
    return jnp.exp(agent.log_alpha)


def alignment(critic, agent: Agent, batch: Batch):
    """sum_{i != j} <g_i, g_j> / (N - 1), g_i = grad_a Q_i(s, a) of length 1, at the batch's actions; mean (EDAC)."""

    def gradients(one):
        return jax.grad(lambda action: agent.nets.critic.apply(one, batch.obs, action).sum())(batch.action)

    grads = jax.vmap(gradients)(critic)  # [E, B, A]
    squared = (grads**2).sum(-1, keepdims=True)  # where it is 0, a root would have no derivative
    grads = grads / (jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) + 1e-10)
    pairs = (grads.sum(0) ** 2).sum(-1) - (grads**2).sum((0, -1))
    return (pairs / max(len(grads) - 1, 1)).mean()


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(Q_i(s, a) - y)^2, y = r + gamma (min_i target Q_i(s', a') - alpha log pi(a'|s')); summed over the critics.

    Plus eta times the alignment of their gradients.
    """
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    next_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * (next_q - temperature(agent) * log_prob)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    aligned = alignment(critic, agent, batch)
    info = {"q": q.mean(), "q_max": q.max(), "q_std": q.std(0).mean(), "alignment": aligned}
    return ((q - y) ** 2).mean(1).sum(0) + args.diversity * aligned, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (temperature(agent) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(args.actor_lr)


def init(key, args: Args, spec: Spec, input_mean=0.0, input_std=1.0) -> Agent:
    """The agent of one lane. `input_mean`, `input_std` [O + A]: of the data's observations and actions."""
    obs_dim, action_dim = spec.obs_shape[0], spec.action_dim
    nets = Networks(
        Actor(args.hidden_dims, action_dim),
        Critic(args.hidden_dims),
        Model(args.n_models, args.model_hidden_dims, obs_dim + 1),
    )
    actor_key, critic_key, model_key, bootstrap_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, obs_dim)), jnp.zeros((1, action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    model = nets.model.init(model_key, jnp.zeros((args.n_models, 1, obs_dim + action_dim)))
    log_alpha = jnp.zeros(())
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
        bootstrap=jax.random.key_data(bootstrap_key),
        input_mean=jnp.broadcast_to(jnp.float32(input_mean), (obs_dim + action_dim,)),
        input_std=jnp.broadcast_to(jnp.float32(input_std), (obs_dim + action_dim,)),
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        model_opt=optax.adam(args.model_lr).init(model),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, then the actor, then the temperature; then a step of the targets."""
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": temperature(agent)}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def sample(transitions: Transitions, replay: Replay, key, args: Args) -> Batch:
    """A batch: first the rows of the data, then the model's."""
    real_key, model_key = jax.random.split(key)
    real = int(args.real_share * args.batch_size)
    of_model = replay.sample(model_key, args.batch_size - real, newest=kept(args))
    return concatenate(transitions.sample(real_key, real), of_model)


def train(lane: tuple[Agent, Replay], keys, args: Args, transitions: Transitions, make_rollouts: Callable):
    """One lane: one update per key, and rollouts before every `rollout_every` of them; mean metrics."""

    def rounds(lane, keys):
        agent, replay = lane
        keys = jax.vmap(jax.random.split)(keys)
        replay, info = make_rollouts(agent, replay, keys[0, 1], args, transitions)

        def step(agent, key):
            batch_key, update_key = jax.random.split(key)
            return update(agent, sample(transitions, replay, batch_key, args), update_key, args)

        agent, metrics = jax.lax.scan(step, agent, keys[:, 0])
        return (agent, replay), {**jax.tree.map(jnp.mean, metrics), **info}

    lane, metrics = jax.lax.scan(rounds, lane, keys.reshape(-1, args.rollout_every))
    return lane, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if args.n_critics < 1 or (args.n_critics < 2 and np.any(args.diversity)):
        raise InputError("--n-critics must be at least 2, or 1 with --diversity 0: one alone has none to differ from.")
    usable, steps = np.flatnonzero(data.usable()), int(np.max(args.rollout_steps))
    rows = len(usable)
    holdout = min(args.holdout_rows, rows // 5)
    sizes = [holdout, args.rollout_batch, args.rollout_every, args.rollout_rounds, args.holdout_every, args.n_elites]
    sizes += [args.patience]
    whole = not np.any(np.mod(args.rollout_steps, 1))
    enough = whole and min(*sizes, np.min(args.rollout_steps)) >= 1
    if not enough or args.n_elites > args.n_models or args.model_updates < (args.dynamics == "learned"):
        raise InputError(
            "A model needs 5 rows of data or more; --holdout-rows, --model-updates, --patience, --n-elites, "
            "--rollout-steps and the like must be at least 1 and whole. "
            f"Here are {rows} rows, {args.holdout_rows} of them held out, {args.n_elites} elites of "
            f"{args.n_models} models and rollouts of {args.rollout_steps} steps."
        )
    asked, args = args.holdout_rows, dataclasses.replace(args, holdout_rows=holdout)
    data = data.select(np.random.default_rng(0).permutation(usable))  # the rows held out are the first ones
    inputs = np.concatenate([data.obs, data.action], axis=1)[holdout:]
    scale = dict(zip(("input_mean", "input_std"), moments(inputs, 1e-12)))
    exact = exact_model(data.task)
    if args.dynamics == "exact" and (exact is None or args.model_updates):
        raise InputError(
            "--dynamics exact needs --model-updates 0 and an environment whose state can be read off its observations; "
            f"that of '{data.task.id}' {'is none' if exact is None else 'is one'}."
        )
    ends = exact if args.dynamics == "exact" else termination(data.task, args.termination)
    unit = math.lcm(args.rollout_every, args.holdout_every)
    with Run(__file__, args, data.task, act, unit=unit, before=args.model_updates) as run:
        run.note(fewer_held_out(asked, holdout))
        transitions = run.replicate(data.transitions(*FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec, **scale))
        capacity = args.rollout_rounds * args.rollout_batch * steps
        replay = init_replay(len(run.padded_settings), capacity, data.spec, run.sharding)
        agent, replay = run.restore(agent, replay)
        make_rollouts = partial(rollout, steps=steps, ends=ends, exact=exact)
        fit_lanes = run.over_lanes(partial(fit, holdout=holdout), in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(
            partial(train, make_rollouts=make_rollouts), in_axes=(0, 0, 0, None), donate=True
        )  # fmt: skip
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, transitions)
            else:
                (agent, replay), metrics = train_lanes((agent, replay), keys, run.lane_args, transitions)
            run.log(agent, metrics, state=replay)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
