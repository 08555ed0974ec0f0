"""BCQ: Batch-Constrained deep Q-learning, for continuous actions.

Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration", ICML 2019, arXiv 1812.02900.
A conditional VAE imitates the data's actions; candidates are drawn from it, each is moved a little (at most phi) by a
perturbation network that climbs Q, and the one with the highest Q is taken: Q is never asked about actions that the
data does not suggest. The target weighs the lesser of two critics against the larger (eq. 13) before it takes the best
candidate. Drawn latents are clipped to half a standard deviation, which keeps to what the VAE knows best.

Choose it when the data's actions have several modes and you want the field's first constrained method as a baseline.

For discrete actions: dqn_offline.py --method bcq.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- the VAE's loss averages over dimensions and weighs the KL divergence by half, as the authors' code does;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/bcq.py --dataset hopper-medium --vae-hidden-dims 128 128 --hidden-dims 128 128 --seeds 4
    python algorithms/offline/bcq.py --dataset point-umaze-mixed --hidden-dims 64 64 --perturbation 0 0.05 0.5
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
    perturbation: Float = 0.05
    """phi: largest change of the VAE's actions by the perturbation network; 0: none."""
    min_weight: Fraction = 0.75
    """lambda: weight of the lesser of the two target critics, in [0, 1]; the larger one has the rest."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-3
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 1e-3
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    vae_lr: Float = 1e-3
    """Adam's step size: VAE."""
    target_candidates: Size = 10
    """Candidate actions at a next state, of which the target takes the best."""
    n_candidates: Size = 100
    """Candidate actions at each step of an episode, of which one is taken."""
    batch_size: Size = 100
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (400, 300)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""


PRESETS: dict[str, dict[str, Any]] = {}

LATENT_CLIP = 0.5
"""Latents that actions are drawn from are clipped to [-LATENT_CLIP, LATENT_CLIP]."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


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
    """q(z | s, a) and an action for each z [..., 2A]; the prior of z is N(0, 1)."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    def setup(self):
        self.encoder = MLP(self.hidden_dims, 2 * (2 * self.action_dim))
        self.decoder = MLP(self.hidden_dims, self.action_dim)

    def __call__(self, obs, action, key):
        """Mean and log standard deviation of z [B, 2A], and the action [B, A] of one draw of it."""
        mean, log_std = jnp.split(self.encoder(obs, action), 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        return mean, log_std, self.decode(obs, mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))

    def decode(self, obs, z):
        """Actions [..., A] in [-1, 1]."""
        return jnp.tanh(self.decoder(obs, z))


class Networks(NamedTuple):
    actor: MLP
    """The perturbation, before its tanh."""
    critic: MLP
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


def q_values(net: MLP, critics, obs, action):
    """[E, ...]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)[..., 0]


def perturb(net: MLP, actor, obs, action, args: Args):
    """xi(s, a) [..., A]: actions moved by at most phi, in [-1, 1]."""
    return jnp.clip(action + args.perturbation * jnp.tanh(net.apply(actor, obs, action)), -1.0, 1.0)


def candidates(agent: Agent, actor, obs, key, n: int, args: Args):
    """Observations [n, B, O] and n perturbed actions of the VAE at each [n, B, A]."""
    obs = jnp.broadcast_to(obs, (n, *obs.shape))
    z = jax.random.normal(key, (*obs.shape[:2], 2 * agent.nets.vae.action_dim))
    z = jnp.clip(z, -LATENT_CLIP, LATENT_CLIP)
    action = agent.nets.vae.apply(agent.vae, obs, z, method=VAE.decode)
    return obs, perturb(agent.nets.actor, actor, obs, action, args)


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """(a_z - a)^2 + KL(q(z|s, a) | N(0, 1)) kl_weight, z ~ q; means over the batch and dimensions."""
    mean, log_std, decoded = agent.nets.vae.apply(vae, batch.obs, batch.action, key)
    chex.assert_equal_shape([decoded, batch.action])
    reconstruction = ((decoded - batch.action) ** 2).mean()
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).mean()
    return reconstruction + args.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(Q_i(s, a) - r - gamma max_j [lambda min_k Q_k + (1 - lambda) max_k Q_k](s', a_j))^2; summed over the two."""
    q = q_values(
        agent.nets.critic,
        agent.target_critic,
        *candidates(agent, agent.target_actor, batch.next_obs, key, args.target_candidates, args),
    )
    target_q = (args.min_weight * q.min(0) + (1.0 - args.min_weight) * q.max(0)).max(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-Q_1(s, xi(s, a)), a of the VAE (eq. 12); only the perturbation learns."""
    obs, action = candidates(agent, actor, batch.obs, key, 1, args)
    q = q_values(agent.nets.critic, agent.critic, obs, action)[0]
    return -q.mean(), {"q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        MLP(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, 1), VAE(args.vae_hidden_dims, spec.action_dim)
    )
    actor_key, critic_key, vae_key, latent_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, action)
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


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VAE, then the critics, then the perturbation, each with the ones before it."""
    vae_key, critic_key, actor_key = jax.random.split(key, 3)
    (loss_vae, info_vae), grads = jax.value_and_grad(vae_loss, has_aux=True)(agent.vae, agent, batch, vae_key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    agent = agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    losses = {"vae_loss": loss_vae, "critic_loss": loss_q, "actor_loss": loss_pi}
    return agent, {**losses, **info_vae, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of n_candidates drawn ones those with the highest Q_1."""
    obs, action = candidates(agent, agent.actor, obs, key, args.n_candidates, args)
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    best = agent.nets.critic.apply(first_critic, obs, action)[..., 0].argmax(0)
    return jnp.take_along_axis(action, best[None, :, None], axis=0)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
