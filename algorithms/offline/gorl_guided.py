"""GORL: Guided Offline RL, a TD3+BC whose constraint is weighed for every sample by a few expert pairs.

Yang, Wang, Zhang, Huang and Song, "Hundreds Guide Millions: Adaptive Offline Reinforcement Learning with Expert
Guidance", IEEE TNNLS 2023, arXiv 2309.01448. TD3+BC weighs improvement against imitation by one number for all. Here
a small network B_w gives each sample a weight in (0, 1) from its constraint loss (eq. 2). It learns from a few hundred
expert pairs: the actor takes a virtual step with the present weights (eq. 3), and w descends the cloning loss of the
expert pairs after that step (eq. 4), a gradient through the gradient. So a sample's weight rises where its own gradient
points as the experts' does (theorem 1). The actor then steps with the new weights (eq. 5).

For comparison (--weighting): constant weights, alone, with the expert pairs mixed into the data, or with a cloning loss
of the expert pairs beside it. With --weighting constant --weight 1 it is TD3+BC.

Choose it when a few expert pairs exist, far too few to clone, beside much data of mixed quality.

The guiding network moves little: its paper's settings are a step of 1e-5 in every 500 updates. The metrics weight and
weight_std tell whether it moved at all; guides_weight is the mean weight at the expert pairs.

Deviations from the paper:
- TD3+BC alone is guided (the paper guides SAC+BC, IQL and CQL, too);
- the guiding network's step has a mini-batch of data of its own, drawn beside that of the actor's step;
- all lanes have the same expert pairs.

    python algorithms/offline/gorl_guided.py --dataset hopper-medium --demos hopper-expert --seeds 4 --updates 50000
    python algorithms/offline/gorl_guided.py --dataset point-umaze-mixed --demos point-umaze-expert --seeds 8 \\
        --updates 10000 --guide-every 10 --guide-lr 1e-3 --hidden-dims 64 64
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
from shared.arguments import Count, DemoArgs, Float, Fraction, Size, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.parts import load_demonstrated
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(DemoArgs):
    demo_episodes: Count = 0
    """Demonstrations: that many episodes of highest return; 0: all that --demos have."""
    n_guides: Size = 200
    """Expert pairs: rows of the demonstrations, drawn once."""
    weighting: Literal["network", "constant", "mixed", "cloned"] = "network"
    """Weights of the network, or constant ones: alone, with the expert pairs among the data, or cloned beside it."""
    weight: Fraction = 1.0
    """Of the constraint where it is constant, in [0, 1]."""
    guide_every: Size = 500
    """Updates between two steps of the guiding network."""
    guide_batch_size: Size = 20
    """Expert pairs in a step of the guiding network."""
    guide_lr: Float = 1e-5
    """Adam's step size: guiding network."""
    guide_hidden_dims: tuple[int, ...] = (100,)
    """Hidden layers of the guiding network."""
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
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), {"alpha": 0.1})

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


class GuidingNetwork(nn.Module):
    """B_w: a sample's constraint loss [...] -> its weight [...] in (0, 1)."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, loss):
        x = loss[..., None]
        for size in self.hidden_dims:
            x = nn.sigmoid(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.sigmoid(nn.Dense(1, kernel_init=dense_init)(x)[..., 0])


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    guide: GuidingNetwork


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    guide: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    guide_opt: optax.OptState


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


def constraint(agent: Agent, actor, batch: Batch):
    """(pi(s) - a)^2 [B], mean over the action's dimensions."""
    return ((agent.nets.actor.apply(actor, batch.obs) - batch.action) ** 2).mean(-1)


def weights(agent: Agent, guide, batch: Batch, args: Args):
    """B_w [B] of the samples' constraint losses under the present actor, which are not differentiated."""
    loss = jax.lax.stop_gradient(constraint(agent, agent.actor, batch))
    return agent.nets.guide.apply(guide, loss) if args.weighting == "network" else jnp.full_like(loss, args.weight)


def actor_loss(actor, agent: Agent, batch: Batch, weight, guides: Batch, args: Args):
    """-lambda Q_1(s, pi(s)) + B_w (pi(s) - a)^2, lambda = alpha / mean |Q_1| (eq. 2 with TD3+BC's terms)."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = constraint(agent, actor, batch)
    chex.assert_equal_shape([q, bc, weight])
    loss = -lam * q.mean() + (weight * bc).mean()
    if args.weighting == "cloned":
        loss += constraint(agent, actor, guides).mean()
    return loss, {"bc_loss": bc.mean(), "q_pi": q.mean()}


def guide_loss(guide, agent: Agent, batch: Batch, guides: Batch, args: Args):
    """The expert pairs' constraint loss after a plain step of the actor with the weights of `guide` (eq. 3 and 4)."""
    weight = weights(agent, guide, batch, args)
    grads, _ = jax.grad(actor_loss, has_aux=True)(agent.actor, agent, batch, weight, guides, args)
    virtual = jax.tree.map(lambda p, g: p - args.actor_lr * g, agent.actor, grads)
    return constraint(agent, virtual, guides).mean()


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims), GuidingNetwork(args.guide_hidden_dims)
    )
    actor_key, critic_key, guide_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor, guide = nets.actor.init(actor_key, obs), nets.guide.init(guide_key, jnp.zeros(1))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        guide=guide,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        guide_opt=optax.adam(args.guide_lr).init(guide),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, guides: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    weight = weights(agent, agent.guide, batch, args)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, batch, weight, guides, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    info |= {"weight": weight.mean(), "weight_std": weight.std()}
    return agent, {"actor_loss": loss, **info}


def update_guide(agent: Agent, batch: Batch, guides: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the guiding network; none where weights are constant."""
    loss, grads = jax.value_and_grad(guide_loss)(agent.guide, agent, batch, guides, args)
    updates, guide_opt = optax.adam(args.guide_lr).update(grads, agent.guide_opt)
    info = {"guide_loss": loss, "guides_weight": weights(agent, agent.guide, guides, args).mean()}
    return agent.replace(guide=optax.apply_updates(agent.guide, updates), guide_opt=guide_opt), info


def update(agent: Agent, batches: Batch, keys, guides: Batch, args: Args) -> tuple[Agent, dict]:
    """`policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), guides, args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, transitions: Transitions, guides: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key, a step of the guiding network before each `guide_every`; mean metrics."""

    def draw(key):
        return transitions.sample(key, args.batch_size)

    def experts(key):
        return guides.sample(key, args.guide_batch_size)

    def step(agent, keys):
        batch_keys, noise_keys, expert_keys = keys
        return update(agent, jax.vmap(draw)(batch_keys), noise_keys, experts(expert_keys[-1]), args)

    def block(agent, keys):
        split = jax.vmap(jax.vmap(lambda key: tuple(jax.random.split(key, 5))))
        *step_keys, data_keys, guide_keys = split(keys)
        agent, info = update_guide(agent, draw(data_keys[0, 0]), experts(guide_keys[0, 0]), args)
        agent, metrics = jax.lax.scan(step, agent, step_keys)
        return agent, {**jax.tree.map(jnp.mean, metrics), **info}

    per_step = args.policy_delay
    agent, metrics = jax.lax.scan(block, agent, keys.reshape(-1, args.guide_every // per_step, per_step))
    return agent, jax.tree.map(jnp.mean, metrics)


def guides_of(data: Dataset, demos: Dataset, n: int) -> Dataset:
    """`n` rows of the demonstrations at random, as the data's options leave them."""
    rows = np.flatnonzero(demos.usable())
    if n > len(rows):
        raise InputError(f"--n-guides {n}: the demonstrations have only {len(rows)} rows.")
    demos = demos.select(np.sort(np.random.default_rng(0).permutation(rows)[:n]))
    shift = data.task.options.get("reward_shift", 0.0)
    mean, std = (0.0, 1.0) if data.task.obs_mean is None else (data.task.obs_mean, data.task.obs_std)
    obs, next_obs = ((x - mean) / std for x in (demos.obs, demos.next_obs))
    return dataclasses.replace(demos, obs=obs, next_obs=next_obs, reward=demos.reward + np.float32(shift))


def main(args: Args) -> None:
    data, demos, _ = load_demonstrated(args, hide=())
    data = data.require(discrete=False)
    if args.weighting == "mixed":  # their rewards count, too
        demos.require()
    if args.guide_every % args.policy_delay:
        raise InputError(f"--guide-every must be a multiple of --policy-delay {args.policy_delay}.")
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.guide_every) as run:
        transitions, guides = data.transitions(), guides_of(data, demos, args.n_guides).transitions()
        if args.weighting == "mixed":
            transitions = dataclasses.replace(transitions, rows=jnp.concatenate([transitions.rows, guides.rows]))
        transitions, guides = run.replicate((transitions, guides))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, guides)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
