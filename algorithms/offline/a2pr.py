"""A2PR: TD3 whose policy is pulled to actions of positive advantage, the dataset's or those of a VAE.

Liu, Li, Lan, Gao, Pan and Xu, "Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning",
ICML 2024, arXiv 2405.19909. TD3+BC pulls pi(s) to the dataset's action also where that is a bad one. A2PR learns the
value V of the policy and a VAE of those actions only that are better than V, so that it generates good ones. pi(s) is
pulled to the better of two guides, by Q: the dataset's action, or the VAE's reconstruction of pi(s); and only where
at least one of them is better than V. Elsewhere, Q alone decides. The equations are in the losses' docstrings.

Choose it when the same states have good and bad actions in the data and imitating both holds TD3+BC back.

Parity: equal to the authors' code, update for update, but for V's age (results/parity.md).

Deviations from the paper:
- V in the VAE's and the actor's loss is the one after its step of this update (authors' code: before);
- details are those of the authors' code: an advantage counts from 0; V regresses on the lower of two one-step targets;
  networks are deeper than TD3+BC's, 3 hidden layers (actor) and 4 (critics, V): for a comparison, give both the same
  --hidden-dims and --actor-hidden-dims;
- the authors publish settings of three datasets, the medium ones; here they are the defaults of all datasets of these
  robots. No settings are published for AntMaze;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/a2pr.py --dataset hopper-medium-replay --seeds 4 --updates 50000 --vae-hidden-dims 256 256
    python algorithms/offline/a2pr.py --dataset hopper-medium-replay --seeds 4 --guide-weight 0 0.4 1
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    guide_weight: Float = 0.5
    """Weight of the pull to the guide, where one of the two is better than V (the authors' mask)."""
    vae_weight: Float = 1.0
    """Weight of the VAE's reconstruction of actions better than V (of the others: 0)."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    detach_guide: bool = False
    """Take the VAE's guide as a constant; else the actor is also moved through it, as in the authors' code."""
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
    vae_lr: Float = 1e-3
    """Adam's step size: VAE."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    actor_hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the actor."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    "halfcheetah": {"alpha": 40.0, "guide_weight": 1.0},
    "hopper": {"guide_weight": 0.4, "discount": 0.995},
    "walker2d": {"guide_weight": 1.0, "vae_weight": 1.5},
}

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


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.output_dim, kernel_init=dense_init)(x)


class VAE(nn.Module):
    """q(z | s, a), Gaussian, and a decoded action; the prior of z is N(0, 1)."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    def setup(self):
        self.encoder = MLP(self.hidden_dims, 2 * (2 * self.action_dim))
        self.decoder = MLP(self.hidden_dims, self.action_dim)

    def __call__(self, obs, action, key):
        """Mean and log standard deviation of z [B, 2A], the action decoded from a sample of it [B, A]."""
        mean, log_std = jnp.split(self.encoder(obs, action), 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return mean, log_std, jnp.tanh(self.decoder(obs, z))


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    value: MLP
    vae: VAE


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    value: Any
    vae: Any
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    vae_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def first_q(agent: Agent, obs, action):
    """Q_1, the critic that advantages and the policy are measured by: [B]."""
    return agent.nets.critic.apply(jax.tree.map(lambda x: x[0], agent.critic), obs, action)


def value_of(agent: Agent, value, obs):
    """V, of the current policy: [B]."""
    return agent.nets.value.apply(value, obs)[..., 0]


def next_action_of(agent: Agent, batch: Batch, key, args: Args):
    """a' of the target actor with clipped noise [B, A]."""
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    return jnp.clip(next_action, -1.0, 1.0)


def bellman_target(critic, agent: Agent, batch: Batch, next_action, args: Args):
    """r + gamma min_i Q_i(s', a')  [B]"""
    next_q = q_values(agent.nets.critic, critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    chex.assert_shape(y, (args.batch_size,))
    return y


def critic_loss(critic, agent: Agent, batch: Batch, y, args: Args):
    """(y - Q(s, a))^2, summed over the two critics; y from the target critics."""
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def value_loss(value, agent: Agent, batch: Batch, y, args: Args):
    """(min(y, y') - V(s))^2; y from the target critics, y' from the online ones, both with the same a'."""
    v = value_of(agent, value, batch.obs)
    chex.assert_shape([y, v], (args.batch_size,))
    return ((v - y) ** 2).mean(), {"v": v.mean()}


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """w 1[Q_1(s, a) > V(s)] (a_z - a)^2 + KL(q(z|s, a) | N(0, 1)) / 2; means over dimensions. KL has no indicator."""
    mean, log_std, decoded = agent.nets.vae.apply(vae, batch.obs, batch.action, key)
    better = first_q(agent, batch.obs, batch.action) > value_of(agent, agent.value, batch.obs)
    chex.assert_shape(better, (args.batch_size,))
    reconstruction = (args.vae_weight * better[:, None] * (decoded - batch.action) ** 2).mean()
    kl = -0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std)).mean()
    info = {"reconstruction": reconstruction, "kl": kl, "better": better.mean()}
    return reconstruction + args.kl_weight * kl, info


def guide(agent: Agent, batch: Batch, pi, key, args: Args):
    """The action to be pulled to, [B, A], and the weight of the pull, [B].

    The better by Q_1 of the VAE's reconstruction of pi(s) and the dataset's action; `mask` where one of them is
    better than V(s), else 0.
    """
    _, _, decoded = agent.nets.vae.apply(agent.vae, batch.obs, pi, key)
    decoded = jax.lax.stop_gradient(decoded) if args.detach_guide else decoded
    q_decoded, q_data = first_q(agent, batch.obs, decoded), first_q(agent, batch.obs, batch.action)
    v = value_of(agent, agent.value, batch.obs)
    chosen = q_decoded >= q_data
    gate = args.guide_weight * jnp.logical_or(q_decoded >= v, q_data > v)
    info = {"gate": gate.mean(), "vae_share": chosen.mean()}
    return jnp.where(chosen[:, None], decoded, batch.action), gate, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-lambda Q_1(s, pi(s)) + gate (pi(s) - guide)^2, lambda = alpha / mean |Q_1|."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    target, gate, info = guide(agent, batch, pi, key, args)
    chex.assert_equal_shape([pi, target])
    q = first_q(agent, batch.obs, pi)
    chex.assert_shape([q, gate], (args.batch_size,))
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    pull = (gate[:, None] * (pi - target) ** 2).mean()
    return -lam * q.mean() + pull, {"guide_loss": pull, "q_pi": q.mean(), **info}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.actor_hidden_dims, spec.action_dim),
        Critic(args.hidden_dims),
        MLP(args.hidden_dims, 1),
        VAE(args.vae_hidden_dims, spec.action_dim),
    )
    actor_key, critic_key, value_key, vae_key, latent_key = jax.random.split(key, 5)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor, value = nets.actor.init(actor_key, obs), nets.value.init(value_key, obs)
    vae = nets.vae.init(vae_key, obs, action, latent_key)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        value=value,
        vae=vae,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
        vae_opt=optax.adam(args.vae_lr).init(vae),
    )


def update_values(agent: Agent, batch: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, then of V, then of the VAE: each with what the one before has learned."""
    action_key, vae_key = keys
    next_action = next_action_of(agent, batch, action_key, args)
    y = bellman_target(agent.target_critic, agent, batch, next_action, args)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (q_loss, q_info), grads = grad(agent.critic, agent, batch, y, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    y = jnp.minimum(y, bellman_target(agent.critic, agent, batch, next_action, args))
    grad = jax.value_and_grad(value_loss, has_aux=True)
    (v_loss, v_info), grads = grad(agent.value, agent, batch, y, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(vae_loss, has_aux=True)
    (vae_loss_, vae_info), grads = grad(agent.vae, agent, batch, vae_key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    agent = agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt)
    losses = {"critic_loss": q_loss, "value_loss": v_loss, "vae_loss": vae_loss_}
    return agent, {**losses, **q_info, **v_info, **vae_info}


def update_actor(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, **info}


def update(agent: Agent, batches: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """`policy_delay` steps of critics, V and VAE, on batches [delay, B, ...], then one of the actor on the last one."""
    *value_keys, actor_keys = keys
    agent, value_info = jax.lax.scan(lambda a, x: update_values(a, *x, args), agent, (batches, value_keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), actor_keys[-1], args)
    return agent, {**jax.tree.map(jnp.mean, value_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, *noise_keys = jax.random.split(key, 4)
        return transitions.sample(batch_key, args.batch_size), noise_keys

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
