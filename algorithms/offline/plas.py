"""PLAS: Policy in the Latent Action Space.

Zhou, Bajracharya and Held, "PLAS: Latent Action Space for Offline Reinforcement Learning", CoRL 2020,
arXiv 2011.07213. A conditional VAE of the data's actions is trained first and then frozen. The policy chooses a latent
action within bounds, the decoder makes an action of it, and Q is climbed through the decoder: whatever the policy
chooses, the action is one that the data suggests, with no penalty to weigh. With --perturbation above 0 the decoded
action may leave the data by that much (PLAS+P).

Choose it when the data's actions are narrow or lie on a curved set, and the constraint shall be hard without a weight.

The limit of the latents decides how far into the tails of the data's actions the policy reaches. A VAE that ignores
its latents makes PLAS cloning: the metric latent_spread shows it, the standard deviation of actions over the prior.

Parity: equal to the authors' code in both forms, update for update (results/parity.md).
Deviations from the paper:
- phi is in units of actions in [-1, 1] (the authors' code: of the environment's own);
- biases start at zero (PyTorch's default draws them like the weights); every lane trains a VAE of its own;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

Presets by name, d3rlpy-<robot>-<level>, are the perturbations of d3rlpy's reproduction (arXiv 2111.03788), with the
lesser critic alone.

    python algorithms/offline/plas.py --dataset hopper-medium --vae-updates 20000 --vae-hidden-dims 128 128 --seeds 4
    python algorithms/offline/plas.py --dataset point-umaze-mixed --vae-updates 5000 --max-latent 0.5 2 5
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    max_latent: Float = 2.0
    """Largest entry of the policy's latent actions, whose prior has standard deviation 1."""
    perturbation: Float = 0.0
    """phi: largest change of the VAE's actions by the perturbation network; 0: none."""
    min_weight: Fraction = 0.75
    """lambda: weight of the lesser of the two target critics, in [0, 1]; the larger one has the rest."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 1e-3
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    vae_lr: Float = 1e-4
    """Adam's step size: VAE."""
    updates: Size = 500_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    vae_updates: Size = 500_000
    """Updates of the VAE before the first one of the agent."""
    batch_size: Size = 100
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (400, 300)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""


def _perturbed(perturbation: float, **more) -> dict:
    return {"perturbation": perturbation, "min_weight": 1.0, **more}


_LEVELS = ("random", "medium", "medium-replay", "medium-expert")
_PERTURBATIONS = {
    "halfcheetah": (0.01, 0.1, 0.05, 0.01), "hopper": (0.5, 0.01, 0.2, 0.01), "walker2d": (0.05, 0.1, 0.01, 0.01)
}  # fmt: skip
PRESETS = by_name({
    f"d3rlpy-{robot}-{level}": _perturbed(phi, **({"vae_hidden_dims": (128, 128)} if level == "medium-replay" else {}))
    for robot, values in _PERTURBATIONS.items()
    for level, phi in zip(_LEVELS, values, strict=True)
})  # fmt: skip

LATENT_DRAWS = 4
"""Latents of which a state's spread of actions is taken (a metric)."""

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


class Actor(nn.Module):
    """The latent action and the perturbation, both in [-1, 1]."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    def setup(self):
        self.latent_net = MLP(self.hidden_dims, 2 * self.action_dim)
        self.change_net = MLP(self.hidden_dims, self.action_dim)

    def __call__(self, obs, action):
        """Latents [..., 2A] at `obs` and changes [..., A] of `action`."""
        return self.latent(obs), self.change(obs, action)

    def latent(self, obs):
        return jnp.tanh(self.latent_net(obs))

    def change(self, obs, action):
        return jnp.tanh(self.change_net(obs, action))


class Networks(NamedTuple):
    actor: Actor
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
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)[..., 0]


def policy(agent: Agent, actor, obs, args: Args):
    """Actions [B, A]: the decoder's at the actor's latents, moved by at most phi."""
    z = args.max_latent * agent.nets.actor.apply(actor, obs, method=Actor.latent)
    action = agent.nets.vae.apply(agent.vae, obs, z, method=VAE.decode)
    change = agent.nets.actor.apply(actor, obs, action, method=Actor.change)
    return jnp.clip(action + args.perturbation * change, -1.0, 1.0)


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """(a_z - a)^2 + KL(q(z|s, a) | N(0, 1)) kl_weight, z ~ q; means over the batch and dimensions."""
    latent_key, spread_key = jax.random.split(key)
    mean, log_std, decoded = agent.nets.vae.apply(vae, batch.obs, batch.action, latent_key)
    chex.assert_equal_shape([decoded, batch.action])
    reconstruction = ((decoded - batch.action) ** 2).mean()
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).mean()
    obs = jnp.broadcast_to(batch.obs, (LATENT_DRAWS, *batch.obs.shape))
    z = jax.random.normal(spread_key, (*obs.shape[:2], mean.shape[-1]))
    drawn = agent.nets.vae.apply(vae, obs, z, method=VAE.decode)
    info = {"reconstruction": reconstruction, "kl": kl, "latent_spread": drawn.std(0).mean()}
    return reconstruction + args.kl_weight * kl, info


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(Q_i(s, a) - r - gamma [lambda min_k Q_k + (1 - lambda) max_k Q_k](s', pi(s')))^2; summed over the two."""
    action = policy(agent, agent.target_actor, batch.next_obs, args)
    q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action)
    target_q = args.min_weight * q.min(0) + (1.0 - args.min_weight) * q.max(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """-Q_1(s, pi(s)), through the frozen decoder."""
    q = q_values(agent.nets.critic, agent.critic, batch.obs, policy(agent, actor, batch.obs, args))[0]
    return -q.mean(), {"q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, 1), VAE(args.vae_hidden_dims, spec.action_dim)
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


def update_vae(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VAE (before the agent's first)."""
    (loss, info), grads = jax.value_and_grad(vae_loss, has_aux=True)(agent.vae, agent, batch, key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    return agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt), {"vae_loss": loss, **info}


def update(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, then of the actor with the new critics, and a Polyak step of the targets."""
    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    (loss_pi, info_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return policy(agent, agent.actor, obs, args)


def fit_vae(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the VAE per key; mean metrics."""

    def step(agent, key):
        batch_key, vae_key = jax.random.split(key)
        return update_vae(agent, transitions.sample(batch_key, args.batch_size), vae_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        return update(agent, transitions.sample(key, args.batch_size), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    with Run(__file__, args, data.task, act, before=args.vae_updates) as run:
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
