"""ReBRAC: TD3+BC with the behaviour-cloning penalty in the critic too, and the field's later practice.

Tarasov, Kurenkov, Nikulin and Kolesnikov, "Revisiting the Minimalist Approach to Offline Reinforcement
Learning", NeurIPS 2023, arXiv 2305.09836. Actor and critic are each penalised for leaving the data, with
their own weights (section 4), on deeper networks with layer normalisation in the critics, larger batches
and learning rates. The next action of the dataset enters the critic's penalty.

Choose it when you want TD3+BC's form with the field's later practice and can tune two weights.

Parity: equal to CORL's rebrac.py, update for update, but for the target actor (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- the last row of an episode that did not terminate has no next action and is left out;
- targets follow the actor after its step (before it in the authors' code).

    python algorithms/offline/rebrac.py --dataset hopper-medium --seeds 4 --updates 50000 --batch-size 256
    python algorithms/offline/rebrac.py --dataset hopper-medium-replay --seeds 4 --actor-bc 0.01 0.05 0.1
"""

import json
import sys
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    actor_bc: Float = 0.01
    """beta_actor: weight of (pi(s) - a)^2 in the actor's loss."""
    critic_bc: Float = 0.01
    """beta_critic: weight of (pi(s') - a')^2 in the critic's target."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-3
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 1e-3
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    normalize_q: bool = True
    """Divide Q in the actor's loss by its mean absolute value."""
    actor_layer_norm: bool = False
    """Layer normalisation in the actor."""
    critic_layer_norm: bool = True
    """Layer normalisation in the critics."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_hidden_dims: tuple[int, ...] = ()
    """Hidden layers of the critics; none: as hidden_dims."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""


# The authors' configurations, which the offline script and its fine-tuning share.
PRESETS = json.loads((Path(__file__).resolve().parents[1] / "rebrac_presets.json").read_text())

hidden_init = {
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # +-sqrt(1 / fan_in)
    "bias_init": nn.initializers.constant(0.1),
}


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int
    layer_norm: bool

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return nn.Dense(1, kernel_init=uniform(3e-3), bias_init=uniform(3e-3))(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """y = r + gamma (min_i target Q_i(s', pi(s')) - beta_critic |pi(s') - a'|^2); summed over the two critics."""
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    penalty = ((next_action - batch.next_action) ** 2).sum(-1)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * (target_q - args.critic_bc * penalty)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "critic_penalty": penalty.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """beta_actor |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s)), lambda = 1 / mean |Q|; summed over dimensions."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    q = q_values(agent.nets.critic, agent.critic, batch.obs, pi).min(0)
    lam = 1.0 / jax.lax.stop_gradient(jnp.abs(q).mean()) if args.normalize_q else 1.0
    bc = ((pi - batch.action) ** 2).sum(-1)
    return (args.actor_bc * bc - lam * q).mean(), {"bc_loss": bc.mean(), "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.actor_layer_norm),
        Critic(args.critic_hidden_dims or args.hidden_dims, args.critic_layer_norm),
    )
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, **info}


def update(agent: Agent, batches: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """`policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        return transitions.sample(batch_key, args.batch_size), noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay) as run:
        transitions = run.replicate(data.transitions(*FIELDS, "next_action"))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
