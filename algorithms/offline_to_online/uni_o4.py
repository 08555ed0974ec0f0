"""Uni-O4: Unified offline and online RL with multi-step on-policy optimisation.

Lei, He, Lu, Hu, Gao and Xu, "Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step
On-Policy Optimization", ICLR 2024, arXiv 2311.03351. One objective, PPO's clipped surrogate, offline and online.
Offline, an ensemble of cloned policies, kept apart by a disagreement term, improves on its own sampled actions with
the advantage Q - V of IQL; the policy that the ratio is taken to is replaced only where AM-Q, the sum of Q along
rollouts in a learned model, has risen. The policy of highest AM-Q and V then go on as actor and baseline of PPO.
The stages, in the order of `Run`:
1. --pretrain-updates, logged to before.csv: what needs no policy. Every update is one step of IQL's Q and V; every
   `critic_per_clone`-th is also one of the clones and one of the model, which need neither Q nor V nor each other.
2. --offline-updates of the actors, logged to offline.csv and evaluated: PPO on the dataset's states, gated by AM-Q.
   The clones are judged before the first of these updates.
3. --env-steps, logged to metrics.csv: PPO on rollouts.

Step sizes of stage 2 and 3 (--actor-lr, --online-actor-lr, --online-value-lr) fall to 0 over their stage; gradients
of the actors are clipped one by one. --buffer-size is not used: PPO learns from its last steps.

Choose it when environment steps are cheap and you want PPO to go on from offline data without a dip.

Parity: every stage is equal to the authors' code, update for update, but for what is listed in results/parity.md;
AM-Q and the model are not compared.

Deviations from the paper:
- the policy for the environment is the one of highest AM-Q in the state in which AM-Q accepted it; the authors' code
  takes the last ones (--deploy last), and among their three highest the best in a few episodes: unpaid interaction;
- AM-Q sums Q, so that an early end wins nothing where Q is positive (it does where Q is negative); the authors' code
  takes the mean over visited pairs (--am-q mean);
- start states, model noise and members of all of a lane's AM-Q are the same, so that policies are compared;
- the disagreement is a KL divergence under the policy's own actions; the authors' code takes the ratio at the data's
  action (--disagreement data), whose gradient is the cloning loss's own; all policies are updated at once, not in turn;
- the model learns the end of an episode from the data instead of a function written for every environment; it has no
  reward, which AM-Q does not need; no hold-out set, no elites, no weight decay; a rollout keeps one member of the
  ensemble, and stays inside the data's range;
- rewards are scaled alike in all stages, so that V is good for PPO as it is (the authors' code scales them before PPO
  and fits a new V to Monte-Carlo returns), and by a number where the authors' scripts divide by a running deviation
  (HalfCheetah, and half of pen's and hammer's runs); observations are always normalised;
- sampled actions are clipped to [-1, 1], and the ratio is that of the clipped action, in both phases (the authors'
  offline code clips in Adroit only); actions are rescaled to the environment's range outside the networks;
- the log standard deviation is a tanh's output in [-5, 0], in both phases (the authors' PPO takes the tanh twice);
- biases of Q and V start at zero (PyTorch's default draws them like the weights);
- targets follow at every update by half of the step that the authors' code takes at every second.

    python algorithms/offline_to_online/uni_o4.py --dataset hopper-medium --seeds 4
    python algorithms/offline_to_online/uni_o4.py --dataset pendulum-mixed --pretrain-updates 20000 --env-steps 50000
"""

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
from shared.arguments import Count, Expectile, FinetuneArgs, Float, Fraction, Positive, Size, hyperparameters
from shared.checks import other_rewards
from shared.data import load_dataset
from shared.errors import InputError
from shared.jax_envs import jax_env, move
from shared.online import MAX_CHUNK, LaneEnvs
from shared.run import Run, launch
from shared.task import Spec, require_env
from shared.transitions import FIELDS, Batch, Transitions, unpack


@hyperparameters
class Args(FinetuneArgs):
    pretrain_updates: Size = 2_000_000
    """Updates of Q and V before the first of the policies (stage 1)."""
    offline_updates: Size = 10_000
    """Gradient updates of each lane before its first environment step."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    disagreement_weight: Float = 0.1
    """alpha: weight of the policies' disagreement in cloning; 0: plain cloning."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.0025
    """Polyak step of the target networks, in [0, 1]."""
    critic_lr: Float = 1e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    clone_lr: Float = 1e-4
    """Adam's step size: actors, in cloning (stage 1)."""
    model_lr: Float = 1e-3
    """Adam's step size: model of the dynamics."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    clip: Positive = 0.25
    """Offline: the ratio counts within 1 +- clip, which falls towards 0 for the first `clip_decay_updates`."""
    online_actor_lr: Float = 2e-5
    """Adam's step size: actor, in the environment."""
    online_value_lr: Float = 2e-4
    """Adam's step size: value function, in the environment."""
    online_clip: Positive = 0.05
    """Online: the ratio counts within 1 +- online_clip."""
    gae_lambda: Fraction = 0.95
    """lambda of the generalised advantage estimate, in [0, 1]."""
    entropy_weight: Float = 0.01
    """Weight of the actor's entropy online (offline 0)."""
    max_grad_norm: Float = 0.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    n_actors: Size = 4
    """Actors in the ensemble."""
    n_models: Size = 7
    """Models in the ensemble."""
    critic_per_clone: Size = 5
    """Updates of Q and V per update of the clones and of the model."""
    clip_decay_updates: Count = 200
    """Updates of stage 2 after which its clip stays."""
    disagreement: Literal["kl", "data"] = "kl"
    """Of a policy with the most likely other one: at its own actions, or at the data's."""
    gate: bool = True
    """Replace a policy's old one only where AM-Q has risen; otherwise after every `gate_every` updates."""
    gate_every: Size = 100
    """Updates between two judgements of AM-Q."""
    rollout_length: Size = 1_000
    """Steps of an AM-Q rollout; less where the model is poor (20-100 in Adroit, 5-20 in Kitchen)."""
    rollout_starts: Size = 512
    """AM-Q rollouts of every policy, shared by the model's members."""
    clone_successes: bool = False
    """Clone only rows from which a reward above 0 is still reached (the authors' --is_filter_bc, on AntMaze)."""
    am_q: Literal["sum", "mean"] = "sum"
    """Q counts 0 after a rollout's end (good or bad by the sign of Q), or the mean is over what comes before it."""
    deploy: Literal["accepted", "last"] = "accepted"
    """Which state of the policies is taken to the environment."""
    steps_per_iteration: Size = 2_048
    """Environment steps between two updates of the policy, which learns from these alone."""
    epochs: Size = 10
    """Passes of a PPO update over them (5-30 in the authors' scripts)."""
    minibatch_size: Size = 128
    """Transitions per gradient step of it; the rest of a pass is left out."""
    clip_value: bool = True
    """Online: V moves by at most `online_clip` per PPO update."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_hidden_dims: tuple[int, ...] = (1024, 1024)
    """Hidden layers of the critics; none: as hidden_dims."""
    value_hidden_dims: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of the value function."""
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of the model of the dynamics."""
    actor_activation: Literal["relu", "tanh"] = "relu"
    """Of the actors."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_maze = {
    "expectile": 0.9,
    "actor_lr": 3e-5,
    "rollout_length": 150,
    "critic_hidden_dims": (256,) * 3,
    "value_hidden_dims": (256,) * 3,
}
_adroit = {"actor_lr": 1e-5, "rollout_length": 50, "minibatch_size": 256, "online_actor_lr": 8e-6}
_tanh = {"actor_activation": "tanh"}
_scaled = {"reward_scale": 0.1}
_pen = {**_adroit, **_scaled, "online_actor_lr": 3e-6}
_kitchen = {"actor_lr": 1e-5, "rollout_length": 5, "offline_updates": 1_000, "pretrain_updates": 1_000_000}
PRESETS = {  # where the authors' scripts go through several values, one of them
    "hopper": _scaled,
    "halfcheetah": {**_tanh, **_scaled},
    **dict.fromkeys(("halfcheetah-medium", "halfcheetah-medium-replay"), {**_tanh, **_scaled, "online_actor_lr": 3e-5}),
    "halfcheetah-medium-expert": _scaled,
    "walker2d": {"online_actor_lr": 1e-5, "epochs": 20},
    "walker2d-medium-replay": {
        "online_actor_lr": 1e-5, "epochs": 20, "pretrain_updates": 500_000, "critic_per_clone": 1,
    },
    "antmaze": _maze | {"reward_scale": 10.0, "reward_shift": -5.0, "clone_successes": True, "eval_episodes": 30},
    # ours, after AntMaze and hopper: the paper has neither of the two
    "pointmaze": {**_maze, **_scaled},
    "pendulum": _scaled,
    "kitchen": _kitchen,
    "kitchen-complete": {**_kitchen, "pretrain_updates": 500_000},
    "kitchen-mixed": {**_kitchen, "disagreement_weight": 0.0},
    "pen-": _pen,
    "pen-human": {**_pen, "pretrain_updates": 1_000_000},
    "door-": _adroit,
    "door-human": {**_adroit, "offline_updates": 5_000},
    "hammer-": {**_adroit, **_tanh, **_scaled},
    "relocate-": {**_adroit, **_tanh},
}  # fmt: skip

actor_init = nn.initializers.orthogonal(1.0)
critic_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
model_init = nn.initializers.variance_scaling(1 / 4, "fan_in", "normal")  # half of what keeps a signal's size


class Actor(nn.Module):
    """Mean (through tanh) and log standard deviation in [-5, 0]."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    activation: str

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = getattr(nn, self.activation)(nn.Dense(size, kernel_init=actor_init)(x))
        mean, log_std = jnp.split(jnp.tanh(nn.Dense(2 * self.action_dim, kernel_init=actor_init)(x)), 2, axis=-1)
        return mean, 2.5 * (log_std - 1.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=critic_init)(x))
        return nn.Dense(1, kernel_init=critic_init)(x)[..., 0]


class Model(nn.Module):
    """Mean and log standard deviation of s' - s, and the logit of an episode's end."""

    hidden_dims: tuple[int, ...]
    obs_dim: int

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.swish(nn.Dense(size, kernel_init=model_init)(x))
        x = nn.Dense(2 * self.obs_dim + 1, kernel_init=model_init)(x)
        mean, log_std, end = jnp.split(x, [self.obs_dim, 2 * self.obs_dim], axis=-1)
        log_std = 0.25 - nn.softplus(0.25 - log_std)
        return mean, -5.0 + nn.softplus(log_std + 5.0), end[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    value: Critic
    model: Model


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actors: Any
    """The ensemble, stacked on a leading axis [P, ...]."""
    old_actors: Any
    """What the ratios are taken to: the policies when they were last accepted."""
    score: jax.Array
    """[P] AM-Q of the old policies"""
    last_score: jax.Array
    """[P] AM-Q of the policies when they were last judged"""
    accepted: jax.Array
    """[P] how often a policy was"""
    actor: Any
    """The chosen one; trained online."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    model: Any
    """Stacked on a leading axis [M, ...]."""
    clone_opt: optax.OptState
    actors_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    baseline_opt: optax.OptState
    """Of V, online."""
    model_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def gaussian_log_prob(mean, log_std, action):
    """log N(a; mean, std) [...] of actions [..., A]."""
    return jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)


def surrogate(log_prob, old_log_prob, adv, clip):
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi(a|s) / pi_old(a|s): PPO's, offline and online."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * adv)


# ------------------------------------------------------------------------------ stage 1: what PPO needs


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.value.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    weight = jnp.where(q < v, 1.0 - args.expectile, args.expectile)
    return (weight * (q - v) ** 2).mean(), {"v": v.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2; summed over the two critics."""
    next_v = agent.nets.value.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def clone_loss(actors, agent: Agent, batch: Batch, key, args: Args):
    """-log pi_i(a|s) - alpha (log pi_i(b|s) - max_{j != i} log pi_j(b|s)), b ~ pi_i (or b = a); summed over i."""
    mean, log_std = jax.vmap(agent.nets.actor.apply, (0, None))(actors, batch.obs)  # [P, B, A]
    log_prob = gaussian_log_prob(mean, log_std, batch.action)
    chex.assert_shape(log_prob, (args.n_actors, args.batch_size))
    disagreement = jnp.zeros_like(log_prob)
    if args.n_actors > 1:
        own = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        action = own if args.disagreement == "kl" else jnp.broadcast_to(batch.action, mean.shape)
        others = jax.lax.stop_gradient((mean, log_std))
        of_others = gaussian_log_prob(*others, action[:, None])  # [P, P, B]: i's action under j
        same = jnp.eye(args.n_actors, dtype=bool)[:, :, None]
        disagreement = gaussian_log_prob(mean, log_std, action) - jnp.where(same, -jnp.inf, of_others).max(1)
    loss = -log_prob - args.disagreement_weight * disagreement
    return loss.mean(1).sum(0), {"log_prob": log_prob.mean(), "disagreement": disagreement.mean()}


def model_loss(model, agent: Agent, batch: Batch):
    """-log N(s' - s; mean, std) - log p(end | s, a); summed over the members, each with a batch [M, B] of its own.

    What follows an end is learned only where the data has it.
    """
    mean, log_std, end = jax.vmap(agent.nets.model.apply)(model, batch.obs, batch.action)
    log_prob = gaussian_log_prob(mean, log_std, batch.next_obs - batch.obs)
    end_loss = optax.sigmoid_binary_cross_entropy(end, batch.terminal)
    known = jnp.ones_like(log_prob) if batch.successor is None else batch.successor
    chex.assert_equal_shape([log_prob, end_loss, batch.reward, known])
    error = (known[..., None] * (mean - batch.next_obs + batch.obs) ** 2).mean()
    return (end_loss - known * log_prob).mean(1).sum(0), {"model_error": error, "end_loss": end_loss.mean()}


# ------------------------------------------------------------------------ stage 2: PPO on the dataset


def actor_loss(actors, agent: Agent, batch: Batch, key, clip, args: Args):
    """The surrogate at a ~ pi_old,i(.|s), A = min_e Q_e(s, a) - V(s) normalised over the batch; summed over i."""
    apply = jax.vmap(agent.nets.actor.apply, (0, None))
    old = apply(agent.old_actors, batch.obs)
    action = jnp.clip(old[0] + jnp.exp(old[1]) * jax.random.normal(key, old[0].shape), -1.0, 1.0)
    q = jax.vmap(lambda a: q_values(agent.nets.critic, agent.critic, batch.obs, a).min(0))(action)
    adv = q - agent.nets.value.apply(agent.value, batch.obs)
    chex.assert_shape(adv, (args.n_actors, args.batch_size))
    normal = (adv - adv.mean(1, keepdims=True)) / (adv.std(1, keepdims=True) + 1e-8)
    log_prob, old_log_prob = gaussian_log_prob(*apply(actors, batch.obs), action), gaussian_log_prob(*old, action)
    loss = surrogate(log_prob, old_log_prob, normal, clip).mean(1).sum(0)
    clipped = (jnp.abs(jnp.exp(log_prob - old_log_prob) - 1.0) > clip).mean()
    return loss, {"adv": adv.mean(), "clipped": clipped}


def am_q(actors, agent: Agent, key, args: Args, transitions: Transitions):
    """[P] (1/H) sum_t min_e Q_e(s_t, a_t) of the mean's actions, in the model from the dataset's states."""
    members, n_actors = args.n_models, args.n_actors
    start_key, noise_key = jax.random.split(key)
    seen = unpack(transitions.rows, transitions.spec, transitions.fields).obs
    low, high = seen.min(0), seen.max(0)
    start = transitions.sample(start_key, (members, 1, max(1, args.rollout_starts // members))).obs
    obs = jnp.broadcast_to(start, (members, n_actors, *start.shape[2:]))  # [M, P, S, O]

    def step(carry, key):
        obs, alive = carry
        action = jax.vmap(agent.nets.actor.apply, (0, 1), 1)(actors, obs)[0]
        q = q_values(agent.nets.critic, agent.critic, obs, action).min(0)
        mean, log_std, end = jax.vmap(agent.nets.model.apply)(agent.model, obs, action)
        noise = jax.random.normal(key, start.shape)  # the same for all policies
        next_obs = jnp.clip(obs + mean + jnp.exp(log_std) * noise, low, high)
        return (next_obs, alive * (end < 0.0)), ((alive * q).sum((0, 2)), alive.sum((0, 2)))

    keys = jax.random.split(noise_key, args.rollout_length)
    _, (q, visited) = jax.lax.scan(step, (obs, jnp.ones(obs.shape[:-1])), keys)
    visited = visited.sum(0) if args.am_q == "mean" else start[..., 0].size * args.rollout_length
    return q.sum(0) / visited


def judge(agent: Agent, seed, args: Args, transitions: Transitions) -> Agent:
    """The policies whose AM-Q has risen become the old ones, and the best of these the actor.

    `seed`: of a lane, the data of a key; all its judgements have the same starts and noise.
    """
    score = am_q(agent.actors, agent, jax.random.wrap_key_data(seed), args, transitions)
    better = score > agent.score if args.gate else jnp.ones_like(score, bool)

    def accept(new, old):
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    old_actors, best = jax.tree.map(accept, (agent.actors, score), (agent.old_actors, agent.score))
    choice = {"accepted": (old_actors, best), "last": (agent.actors, score)}[args.deploy]
    i = jnp.argmax(jnp.nan_to_num(choice[1], nan=-jnp.inf))
    return agent.replace(
        old_actors=old_actors,
        score=best,
        last_score=score,
        accepted=agent.accepted + better,
        actor=jax.tree.map(lambda x: x[i], choice[0]),
    )


# ------------------------------------------------------------------------- stage 3: PPO on rollouts


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


def online_actor_loss(actor, agent: Agent, batch: Batch, old_log_prob, adv, args: Args):
    """The surrogate at the actions that were done, minus the weighted entropy."""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    log_prob = gaussian_log_prob(mean, log_std, batch.action)
    entropy = (log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(-1).mean()
    chex.assert_equal_shape([log_prob, old_log_prob, adv])
    loss = surrogate(log_prob, old_log_prob, adv, args.online_clip).mean() - args.entropy_weight * entropy
    return loss, {"entropy": entropy, "kl": (old_log_prob - log_prob).mean()}


def baseline_loss(value, agent: Agent, batch: Batch, old_v, target, args: Args):
    """max((V - R)^2, (V_old + clip(V - V_old) - R)^2), R = A + V_old."""
    v = agent.nets.value.apply(value, batch.obs)
    chex.assert_equal_shape([v, old_v, target])
    near = old_v + jnp.clip(v - old_v, -args.online_clip, args.online_clip)
    error = (v - target) ** 2
    return (jnp.maximum(error, (near - target) ** 2) if args.clip_value else error).mean(), {"v": v.mean()}


# ---------------------------------------------------------------------------------------------------


def descend(loss: Callable, params, opt_state, optimizer: optax.GradientTransformation, *inputs):
    """One gradient step of `loss(params, *inputs)`: the parameters, the optimiser's state, loss and metrics."""
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, *inputs)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, {loss.__name__: value, **info}


def ppo_optimizer(learning_rate, args: Args, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam after clipping the norm."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(learning_rate, eps=eps))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.actor_activation),
        Critic(args.critic_hidden_dims or args.hidden_dims),
        Critic(args.value_hidden_dims),
        Model(args.model_hidden_dims, spec.obs_shape[0]),
    )
    actor_key, critic_key, value_key, model_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actors = jax.lax.map(lambda k: nets.actor.init(k, obs), jax.random.split(actor_key, args.n_actors))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.value.init(value_key, obs)
    model = jax.lax.map(lambda k: nets.model.init(k, obs, action), jax.random.split(model_key, args.n_models))
    actor = jax.tree.map(lambda x: x[0], actors)
    return Agent(
        nets=nets,
        actors=actors,
        old_actors=actors,
        score=jnp.full(args.n_actors, -jnp.inf),
        last_score=jnp.full(args.n_actors, -jnp.inf),
        accepted=jnp.zeros(args.n_actors),
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        model=model,
        clone_opt=optax.adam(args.clone_lr).init(actors),
        actors_opt=jax.vmap(ppo_optimizer(args.actor_lr, args).init)(actors),
        actor_opt=ppo_optimizer(args.online_actor_lr, args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.critic_lr).init(value),
        baseline_opt=ppo_optimizer(args.online_value_lr, args).init(value),
        model_opt=optax.adam(args.model_lr).init(model),
    )


def update_critic(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """Stage 1: one gradient step of V, then of Q with the new V, then a step of the targets."""
    adam = optax.adam(args.critic_lr)
    value, value_opt, info_v = descend(value_loss, agent.value, agent.value_opt, adam, agent, batch, args)
    agent = agent.replace(value=value, value_opt=value_opt)
    critic, critic_opt, info_q = descend(critic_loss, agent.critic, agent.critic_opt, adam, agent, batch, args)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(critic=critic, target_critic=target_critic, critic_opt=critic_opt)
    return agent, {**info_q, **info_v}


def update_clones(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """Stage 1: one gradient step of all policies."""
    adam = optax.adam(args.clone_lr)
    actors, clone_opt, info = descend(clone_loss, agent.actors, agent.clone_opt, adam, agent, batch, key, args)
    return agent.replace(actors=actors, old_actors=actors, clone_opt=clone_opt), info


def update_model(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """Stage 1: one gradient step of all members, on batches [M, B]."""
    adam = optax.adam(args.model_lr)
    model, model_opt, info = descend(model_loss, agent.model, agent.model_opt, adam, agent, batch)
    return agent.replace(model=model, model_opt=model_opt), info


def update(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """Stage 2: one gradient step of all policies, `t` of them after the first."""
    clip = args.clip * (1.0 - jnp.minimum(t, args.clip_decay_updates) / args.offline_updates)
    one = ppo_optimizer(args.actor_lr * (1.0 - t / args.offline_updates), args)
    each = optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))
    inputs = (agent, batch, key, clip, args)
    actors, actors_opt, info = descend(actor_loss, agent.actors, agent.actors_opt, each, *inputs)
    scores = {"am_q": agent.last_score.mean(), "am_q_best": agent.score.max(), "accepted": agent.accepted.mean()}
    return agent.replace(actors=actors, actors_opt=actors_opt), {**info, **scores}


def update_online(agent: Agent, batch: Batch, ended, key, args: Args, t) -> tuple[Agent, dict]:
    """Stage 3: all gradient steps on a rollout [T], which ends after environment step `t`."""
    v, next_v = (agent.nets.value.apply(agent.value, x) for x in (batch.obs, batch.next_obs))
    adv = advantages(v, next_v, batch, ended, args)
    target = adv + v
    normal = (adv - adv.mean()) / (adv.std() + 1e-5)
    old_log_prob = gaussian_log_prob(*agent.nets.actor.apply(agent.actor, batch.obs), batch.action)
    left = 1.0 - (t + 1 - args.steps_per_iteration) / args.env_steps  # all of it in the first rollout's steps
    actor_optimizer = ppo_optimizer(args.online_actor_lr * left, args, eps=1e-5)
    value_optimizer = ppo_optimizer(args.online_value_lr * left, args, eps=1e-5)

    def step(agent, at):
        part, old_v, of_part, old, a = jax.tree.map(lambda x: x[at], (batch, v, target, old_log_prob, normal))
        inputs = (agent, part, old, a, args)
        actor, actor_opt, info_pi = descend(online_actor_loss, agent.actor, agent.actor_opt, actor_optimizer, *inputs)
        inputs = (agent, part, old_v, of_part, args)
        value, baseline_opt, info_v = descend(baseline_loss, agent.value, agent.baseline_opt, value_optimizer, *inputs)
        agent = agent.replace(actor=actor, actor_opt=actor_opt, value=value, baseline_opt=baseline_opt)
        return agent, {**info_pi, **info_v}

    keys, n = jax.random.split(key, args.epochs), gradient_steps(args) // args.epochs
    orders = jax.vmap(partial(jax.random.permutation, x=len(ended)))(keys)
    agent, metrics = jax.lax.scan(step, agent, orders[:, : n * args.minibatch_size].reshape(-1, args.minibatch_size))
    return agent, {**jax.tree.map(jnp.mean, metrics), "adv": adv.mean()}


def gradient_steps(args: Args) -> int:
    """Of one PPO update."""
    return args.epochs * (args.steps_per_iteration // args.minibatch_size)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]; the environment clips them."""
    mean, log_std = agent.nets.actor.apply(agent.actor, obs)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def fit(agent: Agent, keys, args: Args, transitions: Transitions, cloned: Transitions) -> tuple[Agent, dict]:
    """One lane, stage 1: one update of Q and V per key; mean metrics. `cloned`: what the policies learn from."""

    def critic_step(agent, key):
        return update_critic(agent, transitions.sample(key, args.batch_size), args)

    def step(agent, keys):
        keys = jax.vmap(jax.random.split)(keys)
        agent, metrics = jax.lax.scan(critic_step, agent, keys[:, 0])
        batch_key, clone_key, model_key = jax.random.split(keys[-1, 1], 3)
        agent, clone_info = update_clones(agent, cloned.sample(batch_key, args.batch_size), clone_key, args)
        agent, model_info = update_model(agent, transitions.sample(model_key, (args.n_models, args.batch_size)), args)
        return agent, {**jax.tree.map(jnp.mean, metrics), **clone_info, **model_info}

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.critic_per_clone))
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions, seed, start) -> tuple[Agent, dict]:
    """One lane, stage 2: one update per key, of which the first is number `start`; mean metrics."""

    def step(agent, x):
        key, t = x
        batch_key, update_key = jax.random.split(key)
        agent, metrics = update(agent, transitions.sample(batch_key, args.batch_size), update_key, args, t)
        due = (t + 1) % args.gate_every == 0  # the same in all lanes: stays a condition
        judged = partial(judge, seed=seed, args=args, transitions=transitions)
        return jax.lax.cond(due, judged, lambda agent: agent, agent), metrics

    agent, metrics = jax.lax.scan(step, agent, (keys, start + jnp.arange(len(keys))))
    return agent, jax.tree.map(jnp.mean, metrics)


class Rollout:
    """Stage 3 of all lanes: the environments, and what was seen since the last update; as `Interaction` else."""

    def __init__(self, run: Run):
        self.run, self.args, self.env = run, run.args, jax_env(require_env(run.task))
        lanes, spec, task = len(run.padded_settings), run.task.spec, run.task
        self.rows = np.zeros(
            (lanes, run.args.steps_per_iteration, 2 * spec.obs_shape[0] + spec.action_dim + 2), np.float32
        )
        """[L, T, D]"""
        self.ended = np.zeros((lanes, run.args.steps_per_iteration), np.float32)
        """[L, T] whether an episode ended there, for whatever reason"""
        if self.env:
            begin = run.over_lanes(lambda key: self.env.reset(jax.random.split(key)), in_axes=(0,))
            self.env_state, self.obs = begin(run.step_keys(run.total))
            self.rows, self.ended = (jax.device_put(x, run.sharding) for x in (self.rows, self.ended))
        else:
            run.shorten_chunks(MAX_CHUNK)
            self.envs = LaneEnvs(task, [s["seed"] for s in run.padded_settings])

        def collect(carry, agent, keys, args, at):
            """One step for each key [n], with the environment inside, into the rows from `at` on."""

            def step(carry, x):
                (env_state, obs, rows, ended), (key, i) = carry, x
                act_key, env_key = jax.random.split(jax.random.split(key)[0])
                action = explore(agent, obs[None], act_key, args)[0]
                env_state, obs, row, end = move(self.env, task, env_state, obs, action, env_key)
                return (env_state, obs, rows.at[i].set(row), ended.at[i].set(jnp.float32(end))), None

            return jax.lax.scan(step, carry, (keys, at + jnp.arange(len(keys))))[0]

        def act_in(agent, obs, key, args):
            return explore(agent, obs[None], key, args)[0]

        def learn(agent, rows, ended, key, args, t):
            return update_online(agent, unpack(rows, spec), ended, key, args, t)

        act_lanes = run.over_lanes(act_in, in_axes=(0, 0, 0, 0))
        learn_lanes = run.over_lanes(learn, in_axes=(0, 0, 0, 0, 0, None))

        def keys_of(key_data, i):
            return jax.vmap(jax.random.split)(jax.random.wrap_key_data(key_data[:, i]))

        @jax.jit
        def act_at(agent, obs, key_data, args, i):
            return act_lanes(agent, obs, keys_of(key_data, i)[:, 0], args)

        @partial(jax.jit, donate_argnums=0)
        def learn_at(agent, rows, ended, key_data, args, i, t):
            return learn_lanes(agent, rows, ended, keys_of(key_data, i)[:, 1], args, t)

        self._act, self._learn = act_at, learn_at
        self._collect = run.over_lanes(collect, in_axes=(0, 0, 0, 0, None), donate=True)

    @property
    def updates(self) -> int:
        """Gradient steps made online up to the end of the chunk that `steps` is at."""
        return max(0, self.run.done + self.run.chunk) // self.args.steps_per_iteration * gradient_steps(self.args)

    def steps(self, agent: Agent, keys) -> tuple[Agent, dict]:
        """One chunk of environment steps; the mean metrics of its updates, if there are any."""
        key_data, every, metrics, start = jax.random.key_data(keys), self.args.steps_per_iteration, [], 0
        while start < keys.shape[1]:
            at = (self.run.done + start) % every
            stop = min(keys.shape[1], start + every - at)
            self._play(agent, keys, key_data, start, stop, at)
            if at + stop - start == every:
                i, rows, ended = stop - 1, self.rows, self.ended
                rows, ended = (rows, ended) if self.env else (rows.copy(), ended.copy())
                agent, info = self._learn(agent, rows, ended, key_data, self.run.lane_args, i, self.run.done + i)
                metrics.append(info)
            start = stop
        return agent, jax.tree.map(lambda *x: sum(x) / len(x), *metrics) if metrics else {}

    def _play(self, agent: Agent, keys, key_data, start: int, stop: int, at: int) -> None:
        """The steps of the keys from `start` to `stop`, into the rows from `at` on."""
        if self.env:
            carry = self.env_state, self.obs, self.rows, self.ended
            out = self._collect(carry, agent, keys[:, start:stop], self.run.lane_args, at)
            self.env_state, self.obs, self.rows, self.ended = out
            return
        for i in range(start, stop):
            action = self._act(agent, self.envs.obs, key_data, self.run.lane_args, i)
            self.rows[:, at + i - start] = self.envs.step(np.asarray(action))
            self.ended[:, at + i - start] = self.envs.ended

    def state(self) -> dict:
        """For a checkpoint."""
        env = {"state": self.env_state, "obs": self.obs} if self.env else self.envs.state()
        return {"env": env, "rows": self.rows, "ended": self.ended}

    def restore(self, agent: Agent) -> Agent:
        """`agent`, and the state here, from the run's checkpoint when --resume was given."""
        agent, state = self.run.restore(agent, self.state())
        if self.args.resume and self.env:
            self.rows, self.ended = state["rows"], state["ended"]
            self.env_state, self.obs = state["env"]["state"], state["env"]["obs"]
        elif self.args.resume:
            self.rows, self.ended = np.array(state["rows"]), np.array(state["ended"])
            restored, seen = self.envs.restore(state["env"]), max(0, self.run.done) % self.args.steps_per_iteration
            if seen:  # an episode that does not come back ended with the newest row
                self.ended[~restored, seen - 1] = 1.0
        return agent


def main(args: Args) -> None:
    if args.minibatch_size > args.steps_per_iteration:
        raise InputError(
            f"--minibatch-size {args.minibatch_size} is more than --steps-per-iteration {args.steps_per_iteration}."
        )
    if args.env_steps < args.steps_per_iteration:
        raise InputError(
            f"--env-steps {args.env_steps} are less than --steps-per-iteration {args.steps_per_iteration}: nothing "
            "would be learned from them."
        )
    data = load_dataset(args).require(discrete=False)
    reached = data.return_to_go() > 0.0
    if args.clone_successes and not reached.any():
        raise InputError(f"--clone-successes: no reward above 0 is reached in '{data.task.id}'.")
    data = data.scale_rewards(args.reward_scale, args.reward_shift).normalize_obs()
    before = 0 if args.from_run else args.pretrain_updates
    with Run(__file__, args, data.task, act, unit=args.critic_per_clone if before else 1, before=before) as run:
        run.note(other_rewards(data.task))
        transitions = cloned = run.replicate(data.transitions(*FIELDS, "successor"))
        if args.clone_successes:
            cloned = run.replicate(data.select(reached).transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Rollout(run)
        agent = online.restore(agent)
        seeds = jax.vmap(lambda key: jax.random.key_data(jax.random.fold_in(key, 4)))(run.init_keys)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None, None), donate=True)
        judge_lanes = run.over_lanes(judge, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                t = run.done + run.offline_updates
                agent = judge_lanes(agent, seeds, run.lane_args, transitions) if t == 0 else agent
                agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, seeds, t)
            elif run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, transitions, cloned)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
