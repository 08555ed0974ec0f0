"""SPOT: Supported Policy Optimization.

Wu, Wu, Qiu, Wang and Long, "Supported Policy Optimization for Offline Reinforcement Learning", NeurIPS 2022,
arXiv 2202.06239. A conditional VAE of the dataset's actions is trained first and then frozen; its evidence lower
bound estimates the density of the policy's action under the behaviour policy, and the actor maximises Q minus
lambda times the negative bound, so that it is held inside the data's support instead of near single actions.
Everything else is TD3.

Dropout is in the actor's update only. --kl-weight is the paper's beta; the decoder's variance is a quarter of it.

Choose it when the policy shall stay in the data's support by a density model, with one weight to tune.

Parity: equal to CORL's spot.py, update for update, without dropout (results/parity.md).

Deviations from the paper:
- offline training only; the fine-tuning phase, which lowers lambda over the environment steps, is not here;
- every lane trains a VAE of its own (the authors' code trains one per dataset);
- the target actor is used without dropout (the authors' code leaves it on there);
- training goes on where the authors' code stops because mean Q is above 1e4: the metric q_pi shows it;
- the bound's mean over latent dimensions, where the paper sums, is the authors' code's, which lambda is tuned for;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/spot.py --dataset hopper-medium --seeds 4 --vae-updates 20000 --updates 50000
    python algorithms/offline/spot.py --dataset hopper-medium-replay --seeds 4 --support-weight 0.05 0.1 0.2
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Dropout, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    support_weight: Float = 0.1
    """lambda: weight of the policy's negative log density against Q; small: TD3, large: cloning."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    vae_lr: Float = 1e-3
    """Adam's step size: VAE."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    dropout: Dropout = 0.1
    """Dropout after the actor's hidden layers, in [0, 1)."""
    density: Literal["elbo", "iwae"] = "elbo"
    """Estimate of the log density: the evidence lower bound, or its importance-weighted form."""
    latent_samples: Size = 1
    """Latent samples of that estimate (L in the paper)."""
    vae_updates: Size = 100_000
    """Updates of the VAE before the first one of the agent."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""
    small_last_layers: bool = False
    """Last layers begin uniform within 1e-3 (actor) and 3e-3 (critics), biases too; else as the others (AntMaze)."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_antmaze = {
    "reward_shift": -1.0, "normalize_obs": False, "dropout": 0.0, "actor_lr": 1e-4, "small_last_layers": True,
    "eval_episodes": 100,
}  # fmt: skip
PRESETS = {
    "halfcheetah": {"support_weight": 0.05},
    "halfcheetah-medium-expert": {"support_weight": 1.0},
    "hopper": {"support_weight": 0.1},
    "hopper-medium-expert": {"support_weight": 0.2},
    "walker2d": {"support_weight": 0.2},
    "walker2d-medium-expert": {"support_weight": 0.5},
    "antmaze": _antmaze | {"support_weight": 0.025},
    "antmaze-umaze": _antmaze | {"support_weight": 0.25},
    "antmaze-medium-play": _antmaze | {"support_weight": 0.05},
    "pointmaze": {"support_weight": 0.25, "normalize_obs": False, "dropout": 0.0},  # ours, after AntMaze's umaze
}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def last_init(scale: float, small: bool) -> dict:
    """First weights of a last layer: uniform in [-scale, scale] if `small`, or as those of the other layers."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return {"kernel_init": uniform, "bias_init": uniform} if small else {"kernel_init": dense_init}


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float
    small_last_layer: bool

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        return jnp.tanh(nn.Dense(self.action_dim, **last_init(1e-3, self.small_last_layer))(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    small_last_layer: bool

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, **last_init(3e-3, self.small_last_layer))(x)[..., 0]


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
    """q(z | s, a) and p(a | s, z), both Gaussian; the prior of z is N(0, 1)."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    def setup(self):
        self.encoder = MLP(self.hidden_dims, 2 * (2 * self.action_dim))
        self.decoder = MLP(self.hidden_dims, self.action_dim)

    def __call__(self, obs, action, key, n: int = 1):
        """Mean and log standard deviation of z [B, 2A], n samples of it [n, B, 2A], their decoded actions [n, B, A]."""
        mean, log_std = jnp.split(self.encoder(obs, action), 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, (n, *mean.shape))
        obs = jnp.broadcast_to(obs, (n, *obs.shape))
        return mean, log_std, z, jnp.tanh(self.decoder(obs, z))


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    vae: VAE


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    vae: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    vae_opt: optax.OptState


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


def negative_elbo(vae, agent: Agent, obs, action, key, args: Args):
    """[B] mean (a_z - a)^2 + beta KL(q(z|s,a) | N(0, 1)), means over samples and dimensions."""
    mean, log_std, _, decoded = agent.nets.vae.apply(vae, obs, action, key, args.latent_samples)
    reconstruction = ((decoded - action) ** 2).mean((0, 2))
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).mean(-1)
    return reconstruction + args.kl_weight * kl


def negative_iwae(vae, agent: Agent, obs, action, key, args: Args):
    """[B] -log mean_z p(a|s,z) p(z) / q(z|s,a), the decoder's variance being beta / 4."""
    mean, log_std, z, decoded = agent.nets.vae.apply(vae, obs, action, key, args.latent_samples)
    logpdf = jax.scipy.stats.norm.logpdf
    log_p = logpdf(action, decoded, jnp.sqrt(args.kl_weight / 4)).sum(-1) + logpdf(z).sum(-1)
    log_q = logpdf(z, mean, jnp.exp(log_std)).sum(-1)
    return jnp.log(args.latent_samples) - jax.nn.logsumexp(log_p - log_q, axis=0)


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """The negative evidence lower bound of the data's actions, one sample each."""
    loss = negative_elbo(vae, agent, batch.obs, batch.action, key, dataclasses.replace(args, latent_samples=1))
    chex.assert_shape(loss, (args.batch_size,))
    return loss.mean(), {}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-Q_1(s, pi(s)) / mean |Q_1| + lambda (negative log density of pi(s)), through the frozen VAE."""
    dropout_key, vae_key = jax.random.split(key)
    pi = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": dropout_key})
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    negative_density = {"elbo": negative_elbo, "iwae": negative_iwae}[args.density]
    penalty = negative_density(agent.vae, agent, batch.obs, pi, vae_key, args).mean()
    scale = jax.lax.stop_gradient(jnp.abs(q).mean())
    return -q.mean() / scale + args.support_weight * penalty, {"negative_density": penalty, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.dropout, args.small_last_layers),
        Critic(args.hidden_dims, args.small_last_layers),
        VAE(args.vae_hidden_dims, spec.action_dim),
    )
    actor_key, critic_key, vae_key, latent_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    vae = nets.vae.init(vae_key, obs, action, latent_key)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        vae=vae,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        vae_opt=optax.adam(args.vae_lr).init(vae),
    )


def update_vae(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VAE (before the agent's first)."""
    (loss, info), grads = jax.value_and_grad(vae_loss, has_aux=True)(agent.vae, agent, batch, key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    return agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt), {"vae_loss": loss, **info}


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


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
    """`policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    critic_keys, actor_keys = keys
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, critic_keys))
    agent, actor_info = update_actor(agent, jax.tree.map(lambda x: x[-1], batches), actor_keys[-1], args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def fit_vae(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the VAE per key; mean metrics."""

    def step(agent, key):
        batch_key, vae_key = jax.random.split(key)
        return update_vae(agent, transitions.sample(batch_key, args.batch_size), vae_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, critic_key, actor_key = jax.random.split(key, 3)
        return transitions.sample(batch_key, args.batch_size), (critic_key, actor_key)

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay, before=args.vae_updates) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit_vae, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
