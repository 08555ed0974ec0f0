"""MCQ: Mildly Conservative Q-learning.

Lyu, Ma, Li and Lu, "Mildly Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2022,
arXiv 2206.04745. Q of the policy's own actions is not pushed down without end, as CQL does, but pulled to a pseudo
value: the largest Q of a few actions of a behaviour model (a VAE) at that state, the least over the critics. So an
action outside the data is never worth more than the best one inside, and hardly less. Everything else is SAC.

Choose it when CQL's values are too low to leave poor data, and a model of the behaviour policy can be learned.

Parity: equal to the authors' code in its plain form, update for update, but for the floor of pseudo values, a draw and
the form of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- the plain form of its loss. The authors' code also holds pseudo values at 0 or above, which is wrong where rewards are
  negative, lowers them by 5 and counts only some actions on five of its datasets, and counts only too high values of Q
  on the mazes: the published scores may rest on these;
- the two critics and the pseudo values share their draws of actions (the authors' code draws for each);
- the temperature's step has an action of its own (in the authors' code the actor's), and their networks but the VAE's
  have a third hidden layer: --hidden-dims 400 400 400;
- lambda is the authors' default of 0.7 but where their README gives another: the paper's table is not in their code;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks; biases start at zero.

    python algorithms/offline/mcq.py --dataset hopper-medium-replay --vae-hidden-dims 128 128 --hidden-dims 128 128
    python algorithms/offline/mcq.py --dataset pendulum-mixed --hidden-dims 64 64 --bellman-weight 0.5 0.7 0.9 1
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
    bellman_weight: Fraction = 0.7
    """lambda: weight of the Bellman error, in [0, 1]; the loss on the policy's actions has the rest. 1: SAC."""
    n_draws: Size = 10
    """N: actions of the behaviour model, and of the policy, at each state."""
    kl_weight: Float = 1.0
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
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (400, 400)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""


PRESETS = dict.fromkeys(("hopper-medium-replay", "maze2d-medium"), {"bellman_weight": 0.9})

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
    """Mean and log standard deviation of a tanh-Gaussian."""
    critic: MLP
    vae: VAE


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    vae: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    vae_opt: optax.OptState
    alpha_opt: optax.OptState


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def distribution(agent: Agent, actor, obs):
    """Mean and log standard deviation [..., A] of the policy before its tanh."""
    mean, log_std = jnp.split(agent.nets.actor.apply(actor, obs), 2, axis=-1)
    return mean, jnp.clip(log_std, -5.0, 2.0)


def q_values(net: MLP, critics, obs, action):
    """[E, ...]; observations [B, O] are repeated for actions [n, B, A]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)[..., 0]


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """(a_z - a)^2 + KL(q(z|s, a) | N(0, 1)) kl_weight, z ~ q; sums over dimensions, means over the batch."""
    mean, log_std, decoded = agent.nets.vae.apply(vae, batch.obs, batch.action, key)
    chex.assert_equal_shape([decoded, batch.action])
    reconstruction = ((decoded - batch.action) ** 2).sum(-1).mean()
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).sum(-1).mean()
    return reconstruction + args.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def pseudo_value(agent: Agent, obs, key, args: Args):
    """min_i max_j Q_i(s, a_j), a_j of the behaviour model [...]."""
    z = jax.random.normal(key, (args.n_draws, *obs.shape[:-1], 2 * agent.nets.vae.action_dim))
    z = jnp.clip(z, -LATENT_CLIP, LATENT_CLIP)
    repeated = jnp.broadcast_to(obs, (args.n_draws, *obs.shape))
    action = agent.nets.vae.apply(agent.vae, repeated, z, method=VAE.decode)
    return q_values(agent.nets.critic, agent.critic, obs, action).max(1).min(0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """lambda (Q_i(s, a) - y)^2 + (1 - lambda) (Q_i(s~, a~) - pseudo value(s~))^2, a~ ~ pi at s and s'."""
    next_key, pi_key, vae_key = jax.random.split(key, 3)
    action, log_prob = sample_tanh_gaussian(*distribution(agent, agent.actor, batch.next_obs), next_key)
    next_v = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    next_v = next_v - jnp.exp(agent.log_alpha) * log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - y) ** 2).mean(1).sum(0)

    obs = jnp.concatenate([batch.obs, batch.next_obs])
    ood, _ = sample_tanh_gaussian(*distribution(agent, agent.actor, obs), pi_key, args.n_draws)
    q_ood, limit = q_values(agent.nets.critic, critic, obs, ood), pseudo_value(agent, obs, vae_key, args)
    chex.assert_equal_shape([q_ood[0, 0], limit])
    ood_loss = ((q_ood - limit) ** 2).mean((1, 2)).sum(0)
    info = {"bellman_loss": bellman, "ood_loss": ood_loss, "q": q.mean(), "excess": (q_ood - limit).mean()}
    return args.bellman_weight * bellman + (1.0 - args.bellman_weight) * ood_loss, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*distribution(agent, actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        MLP(args.hidden_dims, 2 * spec.action_dim),
        MLP(args.hidden_dims, 1),
        VAE(args.vae_hidden_dims, spec.action_dim),
    )
    actor_key, critic_key, vae_key, latent_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    vae = nets.vae.init(vae_key, obs, action, latent_key)
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        vae=vae,
        log_alpha=log_alpha,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        vae_opt=optax.adam(args.vae_lr).init(vae),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VAE, the temperature, the critics, then the actor, each with the ones before it."""
    vae_key, alpha_key, critic_key, actor_key = jax.random.split(key, 4)
    (loss_vae, info_vae), grads = jax.value_and_grad(vae_loss, has_aux=True)(agent.vae, agent, batch, vae_key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    agent = agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt)

    _, log_prob = sample_tanh_gaussian(*distribution(agent, agent.actor, batch.obs), alpha_key)
    grads = jax.grad(alpha_loss)(agent.log_alpha, -log_prob.mean(), batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"vae_loss": loss_vae, "critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha)}
    return agent.replace(target_critic=target_critic), {**losses, **info_vae, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(distribution(agent, agent.actor, obs)[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
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
