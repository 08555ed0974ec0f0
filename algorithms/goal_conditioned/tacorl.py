"""TACO-RL: latent plans for task-agnostic offline reinforcement learning.

Rosete-Beas, Mees, Kalweit, Boedecker and Burgard, "Latent Plans for Task-Agnostic Offline Reinforcement Learning", CoRL
2022, arXiv 2209.08959, on Play-LMP (Lynch et al., CoRL 2019, arXiv 1903.01973) and CQL (Kumar et al., NeurIPS 2020,
arXiv 2006.04779). Two stages: a plan z is what a window of states has in common with its actions (`plan_loss`, a
variational autoencoder: z from the states of the window, actions from state and z, a prior of z from the first state
and the last). Then z is an action of a window's length: CQL learns Q(s, g, z) from windows relabelled with later
states as goals, 1 where a window ends at its goal, and its actor, which begins as the prior, proposes plans.

Choose it when data is play without any task and goals are many windows away: values bridge windows, not steps. With
--bc-steps of all --updates plans are cloned only: Play-LMP with relabelled goals.

Deviations from the released code:
- observations are vectors: the encoder of a window is an MLP on all of its states, not a transformer, and the decoder
  an MLP with a Gaussian of standard deviation 1, not a recurrent one with a mixture of logistics;
- networks have ReLU, no clips of means and standard deviations, and first weights of one kind; the released actor and
  critics have SiLU and first weights near 0 in their last layers, the actor means within 9 and log standard deviations
  within -5 and 2;
- a plan is proposed anew at every step, where the released code follows one for a window;
- all windows have one length, as its settings for D4RL have it; goals come from the window's episode, and with
  --random-goals also from any other (in its settings for pictures);
- in the first --bc-steps the actor has the critics' batch, with its goals; gradients are clipped network by network;
- all losses are of the old parameters; the released actor's has the new temperature.
As there, the entropy that plans aim at is minus the size of an action, not of a plan.

    python algorithms/goal_conditioned/tacorl.py --dataset point-medium-stitch --seeds 8 --updates 10000
    python algorithms/goal_conditioned/tacorl.py --dataset point-medium-navigate --cql-alpha 0.1 1 --latent-dim 4
"""

import sys
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
from shared.arguments import Count, Float, Fraction, GoalArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalTransitions, geometric, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    plan_updates: Size = 50_000
    """Updates of the plans' autoencoder before the first one of actor and critics."""
    window: int = 8
    """States of a window: a plan lasts one step less."""
    latent_dim: Size = 16
    """Size of the representations."""
    kl_weight: Float = 1e-3
    """Weight of the VAE's KL divergence."""
    kl_balance: Fraction = 0.8
    """Share of the KL divergence's gradient that the prior gets, in [0, 1]; the posterior has the rest."""
    plan_lr: Float = 1e-4
    """Adam's step size: the plans' autoencoder and prior."""
    decoder_lr: Float = 3e-4
    """Adam's step size: the decoder of plans while actor and critics learn."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    max_grad_norm: Float = 1.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    goal_chance: Fraction = 0.3
    """Probability that the goal is the window's own end; if not, that it is that of the next, and so on."""
    random_goals: Fraction = 0.0
    """Share of goals that are any state of the data."""
    goal_radius: Float = 0.0
    """Distance within which a state achieves a goal; 0: it is the very state that the goal was taken from."""
    reward_scale: float = 10.0
    """Rewards are multiplied by this in training."""
    cql_alpha: Float = 1.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 4
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    lagrange: bool = True
    """Tune the penalty's weight so that the gap stays near target_gap."""
    target_gap: Float = 5.0
    """Gap between soft maximum and the data's Q that --lagrange aims at."""
    bc_steps: Count = 0
    """First updates in which the actor clones the data instead of following Q."""
    discount: Fraction = 0.95
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


_stitch = {"random_goals": 0.5}
PRESETS = {  # AntMaze: the released distance; the others are ours
    "antmaze": {"goal_radius": 0.5},
    "point": {"goal_radius": 0.5},
    **{f"point-{size}-stitch": {"goal_radius": 0.5, **_stitch} for size in ("medium", "large")},
}


class MLP(nn.Module):
    """ReLU network on what it is given."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


class Gaussian(nn.Module):
    """Mean and log standard deviation [B, Z] of a plan before tanh: of a window's states, or of a state and a goal."""

    hidden_dims: tuple[int, ...]
    latent_dim: int

    @nn.compact
    def __call__(self, *inputs):
        out = MLP(self.hidden_dims, 2 * self.latent_dim)(*inputs)
        mean, std = jnp.split(out, 2, axis=-1)
        return mean, jnp.log(nn.softplus(std) + 1e-4)


class WindowBatch(NamedTuple):
    """Windows of T states with a goal."""

    obs: jax.Array
    """[B, T, O]"""
    action: jax.Array
    """[B, T - 1, A]"""
    achieved: jax.Array
    """[B, G] what the last state achieves."""
    goal: jax.Array
    """[B, G]"""
    reached: jax.Array
    """1 where the window ends at its goal: bootstrapping stops."""


class Networks(NamedTuple):
    encoder: Gaussian
    actor: Gaussian
    decoder: MLP
    critic: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    encoder: Any
    """q(z | window)"""
    actor: Any
    """p(z | s, g): the plans' prior first."""
    decoder: Any
    """Mean action of s and z."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    log_alpha: Any
    """Of SAC's entropy temperature."""
    log_alpha_prime: Any
    """Of the Lagrange multiplier."""
    plan_opt: optax.OptState
    """Of (encoder, actor, decoder)."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    decoder_opt: optax.OptState
    alpha_opt: optax.OptState
    alpha_prime_opt: optax.OptState
    step: jax.Array


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def clipped_adam(rate, args: Args):
    """Adam after the clip of a network's gradient."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(rate))


def encoded(agent: Agent, encoder, batch: WindowBatch):
    """Mean and log standard deviation [B, Z] of the plan of a window, before tanh."""
    return agent.nets.encoder.apply(encoder, batch.obs.reshape(len(batch.obs), -1))


def decoder_loss(decoder, agent: Agent, batch: WindowBatch, plan):
    """-log pi(a | s, z), Gaussian with standard deviation 1, mean over the window's steps."""
    plans = jnp.broadcast_to(plan[:, None], (*batch.action.shape[:2], plan.shape[-1]))
    mean = agent.nets.decoder.apply(decoder, batch.obs[:, :-1], plans)
    chex.assert_equal_shape([mean, batch.action])
    return -jax.scipy.stats.norm.logpdf(batch.action, mean).sum(-1).mean()


def gaussian_kl(mean, log_std, other_mean, other_log_std):
    """KL(N(mean, std) || N(other_mean, other_std)) [...], summed over the last axis."""
    variances = jnp.exp(2.0 * (log_std - other_log_std)) + ((mean - other_mean) / jnp.exp(other_log_std)) ** 2
    return (other_log_std - log_std + (variances - 1.0) / 2.0).sum(-1)


def plan_loss(params, agent: Agent, batch: WindowBatch, key, args: Args):
    """-log pi(a | s, z) + kl_weight KL(q(z | window) | p(z | first state, what the last achieves)).

    The KL's gradient reaches the prior p with the weight kl_balance, the encoder q with the rest of 1.
    """
    encoder, actor, decoder = params
    plan_key, chance_key = jax.random.split(key)
    mean, log_std = encoded(agent, encoder, batch)
    posterior, prior = (mean, log_std), agent.nets.actor.apply(actor, batch.obs[:, 0], batch.achieved)
    of_prior = gaussian_kl(*jax.lax.stop_gradient(posterior), *prior)
    of_encoder = gaussian_kl(*posterior, *jax.lax.stop_gradient(prior))
    kl = args.kl_balance * of_prior + (1.0 - args.kl_balance) * of_encoder
    plan, _ = sample_tanh_gaussian(mean, log_std, plan_key)
    loss = decoder_loss(decoder, agent, batch, plan)
    chance = decoder_loss(decoder, agent, batch, jax.random.uniform(chance_key, plan.shape, minval=-1.0))
    return loss + args.kl_weight * kl.mean(), {"kl": kl.mean(), "decoder_loss": loss, "any_plan_loss": chance}


def q_values(agent: Agent, critic, obs, goal, plan):
    """[E, B]; with plans [n, B, Z], [E, n, B]."""
    obs, goal = (jnp.broadcast_to(x, (*plan.shape[:-1], x.shape[-1])) for x in (obs, goal))
    return jax.vmap(agent.nets.critic.apply, (0, None, None, None))(critic, obs, goal, plan)[..., 0]


def conservative_gap(critic, agent: Agent, batch: WindowBatch, q, key, args: Args):
    """log sum_z exp(Q_i(s, g, z) - log density(z)) minus Q_i of the window's plan, mean over the batch: [E].

    Plans are uniform ones, the actor's at s, and the actor's at the window's end, all valued at s.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    first, last = batch.obs[:, 0], batch.obs[:, -1]
    now, now_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, first, batch.goal), actor_key, args.n_actions
    )
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, last, batch.goal), next_key, args.n_actions
    )
    uniform = jax.random.uniform(uniform_key, now.shape, minval=-1.0)
    uniform_log_prob = jnp.full_like(now_log_prob, now.shape[-1] * jnp.log(0.5))
    all_q = q_values(agent, critic, first, batch.goal, jnp.concatenate([uniform, following, now]))
    log_density = jnp.concatenate([uniform_log_prob, following_log_prob, now_log_prob])
    chex.assert_shape(all_q, (2, 3 * args.n_actions, args.batch_size))
    return (jax.nn.logsumexp(all_q - log_density, axis=1) - q).mean(1)


def critic_loss(critic, agent: Agent, batch: WindowBatch, plan, key, args: Args):
    """Bellman error of windows plus the conservative penalty, each summed over the two critics.

    y = scale 1(reached) + gamma (1 - 1(reached)) min_i target Q_i(s', g, z'), z' ~ pi, s' the window's end.
    """
    next_key, gap_key = jax.random.split(key)
    next_plan, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs[:, -1], batch.goal), next_key)
    next_q = q_values(agent, agent.target_critic, batch.obs[:, -1], batch.goal, next_plan).min(0)
    y = args.reward_scale * batch.reached + args.discount * (1.0 - batch.reached) * next_q
    q = q_values(agent, critic, batch.obs[:, 0], batch.goal, plan)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - y) ** 2).mean(1).sum(0)
    gap = args.cql_alpha * conservative_gap(critic, agent, batch, q, gap_key, args)
    weight = jnp.clip(jnp.exp(agent.log_alpha_prime), 0.0, 1e6) if args.lagrange else 1.0
    penalty = (weight * (gap - args.target_gap)).sum() if args.lagrange else gap.sum()
    return bellman + penalty, {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean()}


def alpha_prime_loss(log_alpha_prime, gap, args: Args):
    """The multiplier ascends the penalty: it grows while the gap is over its target."""
    return -jnp.clip(jnp.exp(log_alpha_prime), 0.0, 1e6) * (gap - args.target_gap)


def actor_loss(actor, agent: Agent, batch: WindowBatch, plan, key, args: Args):
    """alpha log pi(z|s, g) - min_i Q_i(s, g, z), z ~ pi; in the first bc_steps -log pi(window's plan|s, g) for Q."""
    distribution = agent.nets.actor.apply(actor, batch.obs[:, 0], batch.goal)
    proposed, log_prob = sample_tanh_gaussian(*distribution, key)
    q = q_values(agent, agent.critic, batch.obs[:, 0], batch.goal, proposed).min(0)
    if args.bc_steps:
        of_data = tanh_gaussian_log_prob(*distribution, jnp.arctanh(jnp.clip(plan, -1.0 + 1e-3, 1.0 - 1e-3)))
        q = jnp.where(agent.step < args.bc_steps, of_data, q)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A), A the environment's."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Gaussian(args.hidden_dims, args.latent_dim),
        Gaussian(args.hidden_dims, args.latent_dim),
        MLP(args.hidden_dims, spec.action_dim),
        MLP(args.hidden_dims, 1),
    )
    encoder_key, actor_key, decoder_key, critic_key = jax.random.split(key, 4)
    obs, goal = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape))
    plan = jnp.zeros((1, args.latent_dim))
    encoder = nets.encoder.init(encoder_key, jnp.tile(obs, args.window))
    actor, decoder = nets.actor.init(actor_key, obs, goal), nets.decoder.init(decoder_key, obs, plan)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, goal, plan), jax.random.split(critic_key, 2))
    zero = jnp.zeros(())
    return Agent(
        nets, encoder, actor, decoder, critic, critic, zero, zero,
        optax.adam(args.plan_lr).init((encoder, actor, decoder)),
        clipped_adam(args.actor_lr, args).init(actor),
        jax.vmap(clipped_adam(args.critic_lr, args).init)(critic),
        optax.adam(args.decoder_lr).init(decoder),
        optax.adam(args.actor_lr).init(zero),
        optax.adam(args.critic_lr).init(zero),
        jnp.int32(0),
    )  # fmt: skip


class Windows(NamedTuple):
    """A dataset on the device with the rows that begin a window."""

    transitions: GoalTransitions
    starts: jax.Array
    """[M]"""


def sample(key, windows: Windows, args: Args) -> WindowBatch:
    """Windows, each with a later state of its episode as the goal, whole windows ahead, or any state of the data."""
    row_key, goal_key, any_key, kind_key = jax.random.split(key, 4)
    data, (chosen,) = windows.transitions, jax.random.randint(row_key, (1, args.batch_size), 0, len(windows.starts))
    rows = windows.starts[chosen][:, None] + jnp.arange(args.window)
    ahead = geometric(jax.random.uniform(goal_key, chosen.shape), 1.0 - args.goal_chance)
    ahead = jnp.minimum(ahead, len(data.end)).astype(rows.dtype)
    later = data.ahead(rows[:, 0], (args.window - 1) * ahead)
    of_any = jax.random.uniform(kind_key, chosen.shape) < args.random_goals
    goal_row = jnp.where(of_any, data.rows(any_key, chosen.shape), later)
    achieved, goal = data.goal(jnp.stack([rows[:, -1], goal_row]))
    reached = (goal_row == rows[:, -1]) | (jnp.linalg.norm(goal - achieved, axis=-1) <= args.goal_radius)
    at = data.take(rows)
    return WindowBatch(at.obs, at.action[:, :-1], achieved, goal, reached.astype(jnp.float32))


def update_plans(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the plans' autoencoder and prior."""
    params = agent.encoder, agent.actor, agent.decoder
    (loss, info), grads = jax.value_and_grad(plan_loss, has_aux=True)(params, agent, batch, key, args)
    updates, plan_opt = optax.adam(args.plan_lr).update(grads, agent.plan_opt)
    encoder, actor, decoder = optax.apply_updates(params, updates)
    return agent.replace(encoder=encoder, actor=actor, decoder=decoder, plan_opt=plan_opt), {"plan_loss": loss, **info}


def update(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything but the encoder; all losses are of the old parameters."""
    plan_key, actor_key, critic_key = jax.random.split(key, 3)
    plan, _ = sample_tanh_gaussian(*encoded(agent, agent.encoder, batch), plan_key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), actor_grads = grad(agent.actor, agent, batch, plan, actor_key, args)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), critic_grads = grad(agent.critic, agent, batch, plan, critic_key, args)
    loss_d, decoder_grads = jax.value_and_grad(decoder_loss)(agent.decoder, agent, batch, plan)
    alpha_grad = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])

    new = {}
    updates, new["actor_opt"] = clipped_adam(args.actor_lr, args).update(actor_grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)
    updates, new["critic_opt"] = jax.vmap(clipped_adam(args.critic_lr, args).update)(critic_grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    updates, new["decoder_opt"] = optax.adam(args.decoder_lr).update(decoder_grads, agent.decoder_opt)
    new["decoder"] = optax.apply_updates(agent.decoder, updates)
    updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(alpha_grad, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)
    if args.lagrange:
        slope = jax.grad(alpha_prime_loss)(agent.log_alpha_prime, info_q["gap"], args)
        updates, new["alpha_prime_opt"] = optax.adam(args.critic_lr).update(slope, agent.alpha_prime_opt)
        new["log_alpha_prime"] = optax.apply_updates(agent.log_alpha_prime, updates)
        info_q["alpha_prime"] = jnp.exp(agent.log_alpha_prime)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "decoder_loss": loss_d, "reached": batch.reached.mean()}
    return agent.replace(**new, step=agent.step + 1), {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, goal, key, args: Args):
    """Actions [B, A] in [-1, 1] of the mean's plan."""
    plan = jnp.tanh(agent.nets.actor.apply(agent.actor, obs, goal)[0])
    return jnp.clip(agent.nets.decoder.apply(agent.decoder, obs, plan), -1.0, 1.0)


def learn_plans(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the plans per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update_plans(agent, sample(batch_key, windows, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, windows, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.window < 2:
        raise InputError(f"--window {args.window}: at least 2 states, between which there is an action.")
    data = goal_dataset(load_dataset(args).require(discrete=False, reward=False), args.tasks)
    data.require_steps(args.window, "--window")
    with Run(__file__, args, data.task, act, before=args.plan_updates) as run:
        transitions = data.transitions()
        end = np.asarray(transitions.end)
        starts = np.flatnonzero(end - np.arange(len(end)) >= args.window - 1).astype(np.int32)
        windows = run.replicate(Windows(transitions, jnp.asarray(starts)))
        agent = run.init(partial(init, spec=data.task.spec))
        agent = run.restore(agent)
        plan_lanes = run.over_lanes(learn_plans, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = plan_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
