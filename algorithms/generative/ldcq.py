"""LDCQ: Q-learning over latent plans, which are drawn of a diffusion model of what the data does at a state.

Venkatraman, Khaitan, Akella, Dolan, Schneider and Berseth, "Reasoning with Latent Diffusion in Offline Reinforcement
Learning", ICLR 2024, arXiv 2309.06599. Windows of --window-steps steps are compressed to latents z (a beta-VAE, eq. 3);
a diffusion model learns p(z | s) (eq. 8), which has as many modes as the data; and Q(s, z) is learned with targets
whose maximum is over samples of it (algorithm 1): every plan that is valued is one of the data's, and values bridge
windows. An episode follows the best of --plan-candidates plans for --replan-every steps.
1. --plan-updates of the VAE, 2. --diffusion-updates of the diffusion model, both logged to before.csv; 3. --updates
of Q: each critic picks the plan that the other's target prefers, from prioritised windows.

metrics.csv holds choice_gap, by how much the best plan at a window's end is valued above the mean of the candidates.

--proposal prior draws plans of the VAE's Gaussian prior instead; with --window-steps 1 a plan is one action.

Choose it when ways must be put together of pieces that are longer than a few steps, and rewards are rare.

Parity: equal to the authors' code, update for update, in the critics, the diffusion model with its sampler, and the
autoencoder behind its encoder, but for what is listed below and 1e-6 in the clip of gradients (results/parity.md).

Deviations from the authors' code (ldcq/ldcq):
- plans to choose from are drawn anew, in --sampling-steps, where the code stores 1,000 of each window and takes 100;
- the schedule is a cosine, with noise of the posterior's variance; the code's linear one, at 100 steps, leaves 37 % of
  a plan's variance where sampling begins with pure noise; plans are scaled to mean 0 and standard deviation 1 for it;
- a window's value is sum_h gamma^h r_h + gamma^H max Q at the state after it (the code: undiscounted sums, and the
  window's last state, whose reward counts twice);
- windows that end in a terminal row are shorter and bootstrap from nothing; the code's mazes learn from whole ones;
- the encoder is a network on the whole window, not a recurrent one; decoded actions are means, not samples; Gaussians
  have one last layer for mean and deviation (the code: two each);
- the likelihood of a window's end shapes plans, too (the code stops its gradient at the plan);
- layers of one width in the diffusion model have normalisations of their own, where the code's share theirs;
- importance weights are each window's own (the code's shapes give all of a batch the mean) and reach 1 at the end of
  training, the rate of Q is constant, and that of diffusion falls once;
- discounts are of a step, so that a window counts gamma^H (the code's mazes and kitchen: gamma), and rewards of
  locomotion are not divided by 10; diffusion begins at half the code's rate, in batches four times as large;
- standard deviations are at least 0.01; observations are normalised.

    python algorithms/generative/ldcq.py --dataset antmaze-medium-diverse --seeds 4
    python algorithms/generative/ldcq.py --dataset point-umaze-mixed --preset none --seeds 4 --window-steps 8 \\
        --latent-dim 4 --hidden-dims 64 64 --denoiser-dims 64 32 16 --embedding-dim 32 --plan-candidates 32 \\
        --backup-candidates 8 --plan-updates 5000 --diffusion-updates 5000 --updates 10000
"""

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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, require_context, sequences, window_starts
from shared.task import Spec
from shared.transitions import FIELDS


@hyperparameters
class Args(OfflineArgs):
    window_steps: Size = 30
    """Steps of a window of the data."""
    replan_every: Count = 10
    """Steps of an episode after which a new plan is made; 0: at a plan's end."""
    latent_dim: Size = 16
    """Size of the representations."""
    kl_weight: Float = 0.05
    """Weight of the VAE's KL divergence."""
    proposal: Literal["diffusion", "prior"] = "diffusion"
    """What plans are drawn of: the diffusion model, or the VAE's Gaussian prior of a state."""
    diffusion_steps: Size = 100
    """T: steps of the diffusion."""
    sampling_steps: int = 10
    """Steps from noise to a sample."""
    sampling: Literal["ddpm", "ddim"] = "ddpm"
    """How: with noise of the posterior at each of these steps, or with none after the first."""
    extra_steps: Count = 5
    """Times that the last of these steps, which has no noise, is repeated."""
    snr_clip: Float = 5.0
    """Largest weight of the diffusion's loss; the weight is the signal-to-noise ratio."""
    plan_candidates: Size = 500
    """Plans that are drawn in an episode, of which the best is followed."""
    backup_candidates: Size = 100
    """Plans that are drawn at a window's end, of which the best is bootstrapped from."""
    priority: Fraction = 0.6
    """Exponent of the windows' priorities, their last squared errors, in [0, 1]; 0: all alike."""
    priority_weight: Fraction = 0.3
    """Exponent of the weights that undo the priorities; it grows to 1 over training, in [0, 1]."""
    plan_updates: Size = 500_000
    """Updates of the plans' autoencoder before the first one of actor and critics."""
    diffusion_updates: int = 500_000
    """Updates of the diffusion model before the first of the policy."""
    plan_lr: Float = 5e-5
    """Adam's step size: the plans' autoencoder and prior."""
    denoiser_lr: Float = 1e-4
    """Adam's step size: diffusion model; a cosine to 0."""
    critic_lr: Float = 5e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    max_grad_norm: Float = 1.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    discount: Fraction = 0.995
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    batch_size: Size = 128
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    denoiser_dims: tuple[int, ...] = (128, 32, 16, 8)
    """Widths of the diffusion model's levels, down and up again."""
    embedding_dim: Size = 256
    """Size of the diffusion model's embeddings of time and state."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""


PRESETS = {
    "antmaze": {"eval_episodes": 100},
    "kitchen": {"window_steps": 20},
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"window_steps": 10}),
}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
STD_MIN = 0.01
"""Least standard deviation of the VAE's Gaussians."""


def sinusoidal(t, size: int):
    """Features [..., size] of t [...]: sine and cosine of t times frequencies from 1 down to 1e-4."""
    angle = jnp.asarray(t, jnp.float32)[..., None] * jnp.geomspace(1.0, 1e-4, size // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Gaussian(nn.Module):
    """Mean and standard deviation [..., outputs] of what is given."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean, std = jnp.split(nn.Dense(2 * self.outputs, kernel_init=dense_init)(x), 2, axis=-1)
        return mean, nn.softplus(std) + STD_MIN


class Decoder(nn.Module):
    """Mean and standard deviation [..., A] of actions; each number has a network, and is told those before it.

    `action` [..., A]: the true ones; None: the means.
    """

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, plan, action=None):
        means, stds = [], []
        for i in range(self.action_dim):
            before = means if action is None else [action[..., j : j + 1] for j in range(i)]
            mean, std = Gaussian(self.hidden_dims, 1)(obs, plan, *before)
            means, stds = [*means, mean], [*stds, std]
        return jnp.concatenate(means, axis=-1), jnp.concatenate(stds, axis=-1)


gelu = partial(nn.gelu, approximate=False)  # PyTorch's default


class NormMLP(nn.Module):
    """Layers of Dense, LayerNorm, GELU."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.sizes:
            x = gelu(nn.LayerNorm(epsilon=1e-5)(nn.Dense(size, kernel_init=dense_init)(x)))
        return x


class ResidualBlock(nn.Module):
    """[B, C] -> [B, C]; time scales and shifts after the first layer, the state comes beside the input."""

    @nn.compact
    def __call__(self, x, time, state):
        size = x.shape[-1]
        scale, shift = jnp.split(nn.Dense(2 * size, kernel_init=dense_init)(time), 2, axis=-1)
        h = jnp.concatenate([x, nn.LayerNorm(epsilon=1e-5)(nn.Dense(size, kernel_init=dense_init)(state))], axis=-1)
        h = gelu(nn.LayerNorm(epsilon=1e-5)(nn.Dense(size, kernel_init=dense_init)(h)) * (scale + 1.0) + shift)
        return x + gelu(nn.LayerNorm(epsilon=1e-5)(nn.Dense(size, kernel_init=dense_init)(h)))


class Denoiser(nn.Module):
    """Noised plans [B, Z], steps of the diffusion [B] and states [B, O] -> the clean plans."""

    sizes: tuple[int, ...]
    embedding_dim: int

    @nn.compact
    def __call__(self, x, t, obs):
        dim, before = x.shape[-1], []
        time = NormMLP((self.embedding_dim,) * 2)(sinusoidal(t, 128))
        state = NormMLP((self.embedding_dim,) * 2)(obs)
        x = first = nn.Dense(self.sizes[0], kernel_init=dense_init)(x)
        for i in range(len(self.sizes)):
            x = ResidualBlock()(NormMLP(self.sizes[i : i + 1])(x) if i else x, time, state)
            before.append(x)
        before.pop()
        for size in reversed(self.sizes[:-1]):
            x = ResidualBlock()(NormMLP((size,))(x) + before.pop(), time, state)
        return nn.Dense(dim, kernel_init=dense_init)(ResidualBlock()(x + first, time, state))


class Critic(nn.Module):
    """Q(s, z)"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, plan):
        halves = tuple(size // 2 for size in self.hidden_dims)
        x = jnp.concatenate([NormMLP(self.hidden_dims)(obs), NormMLP(halves)(plan)], axis=-1)
        x = NormMLP(tuple(max(8, self.hidden_dims[-1] // n) for n in (2, 8)))(x)
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    encoder: Gaussian
    prior: Gaussian
    decoder: Decoder
    end_decoder: Gaussian
    denoiser: Denoiser
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    plans: Any
    """Parameters of (encoder, prior, decoder, end_decoder)."""
    plan_mean: Any
    """[Z] of the encoder's means over the data."""
    plan_std: Any
    denoiser: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    priorities: Any
    """[S] of the windows."""
    plan_opt: optax.OptState
    denoiser_opt: optax.OptState
    critic_opt: optax.OptState
    step: Any
    """Updates of Q."""


# ------------------------------------------------------------------------------------------- windows


class WindowBatch(NamedTuple):
    """Windows of H steps; after a terminal row everything is 0."""

    mask: jax.Array
    """[B, H] 1: a step."""
    obs: jax.Array
    """[B, H, O]"""
    action: jax.Array
    """[B, H, A]"""
    reward: jax.Array
    """[B] sum_h gamma^h r_h"""
    terminal: jax.Array
    """[B] 1 where the task ends in the window."""
    next_obs: jax.Array
    """[B, O] after its last step."""
    successor: jax.Array
    """[B] 1 where that is known."""


class Windows(NamedTuple):
    """The data on the device, and where windows begin."""

    sequences: Sequences
    starts: jax.Array
    """[S] rows that --window-steps rows of their episode follow, or its terminal one."""

    def take(self, window, args: Args) -> WindowBatch:
        """Those with the numbers `window` [B]."""
        found = self.sequences.take(self.starts[window], jnp.arange(args.window_steps))
        ends = found.terminal > 0.0
        last = jnp.where(ends.any(1), ends.argmax(1), args.window_steps - 1)
        mask = (jnp.arange(args.window_steps) <= last[:, None]).astype(jnp.float32)
        reward = (args.discount ** jnp.arange(args.window_steps) * mask * found.reward).sum(1)
        next_obs = jnp.take_along_axis(found.next_obs, last[:, None, None], axis=1)[:, 0]
        known = jnp.take_along_axis(found.successor, last[:, None], axis=1)[:, 0]
        obs, action = mask[..., None] * found.obs, mask[..., None] * found.action
        return WindowBatch(mask, obs, action, reward, ends.any(1).astype(jnp.float32), next_obs, known)

    def sample(self, key, n: int, args: Args) -> WindowBatch:
        return self.take(jax.random.randint(key, (n,), 0, len(self.starts)), args)


# --------------------------------------------------------------------------------------------- plans


def encoded(agent: Agent, plans, batch: WindowBatch):
    """Mean and standard deviation [B, Z] of q(z | window)."""
    rows = jnp.concatenate([batch.obs, batch.action, batch.mask[..., None]], axis=-1)
    return agent.nets.encoder.apply(plans[0], rows.reshape(len(rows), -1))


def plan_loss(plans, agent: Agent, batch: WindowBatch, key, args: Args):
    """-log p(a_t | s_t, z), mean over steps, - log p(s_H | s_0, z) / H + beta KL(q(z | window) || p(z | s_0)) / H."""
    _, prior, decoder, end_decoder = plans
    mean, std = encoded(agent, plans, batch)
    first = batch.obs[:, 0]
    prior_mean, prior_std = agent.nets.prior.apply(prior, first)
    kl = (jnp.log(prior_std / std) + (std**2 + (mean - prior_mean) ** 2) / (2.0 * prior_std**2) - 0.5).sum(-1)
    plan = mean + std * jax.random.normal(key, mean.shape)
    repeated = jnp.broadcast_to(plan[:, None], (*batch.mask.shape, plan.shape[-1]))
    of_action = agent.nets.decoder.apply(decoder, batch.obs, repeated, batch.action)
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, *of_action).sum(-1)
    of_end = agent.nets.end_decoder.apply(end_decoder, first, plan)
    end_log_prob = jax.scipy.stats.norm.logpdf(batch.next_obs, *of_end).sum(-1)
    chex.assert_equal_shape([log_prob, batch.mask])
    chex.assert_equal_shape([end_log_prob, kl])
    action_loss = -(batch.mask * log_prob).sum() / batch.mask.sum()
    end_loss = -(batch.successor * end_log_prob).sum() / jnp.maximum(batch.successor.sum(), 1.0) / args.window_steps
    kl = kl.mean() / args.window_steps
    return action_loss + end_loss + args.kl_weight * kl, {"decoder_loss": action_loss, "end_loss": end_loss, "kl": kl}


def plan_scale(agent: Agent, key, args: Args, windows: Windows) -> Agent:
    """One lane, after the autoencoder: mean and standard deviation of plans, of 2,000 windows."""
    mean, _ = encoded(agent, agent.plans, windows.sample(key, 2_000, args))
    return agent.replace(plan_mean=mean.mean(0), plan_std=mean.std(0) + 1e-3)


# ------------------------------------------------------------------------------- the diffusion model


def alpha_bars(T: int) -> np.ndarray:
    """abar_t = prod_{s <= t} (1 - beta_s), t = 1..T: the cosine schedule, no beta above 0.999."""
    left = np.cos((np.linspace(0.0, 1.0, T + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1.0 - np.clip(1.0 - left[1:] / left[:-1], 0.0, 0.999))


def posteriors(args: Args) -> dict[str, np.ndarray]:
    """Of --sampling-steps of the T steps, the noisiest first: each as x' = of_x_0 x_0 + of_x_t x_t + std n.

    From abar to the abar' of the next of these steps: the posterior q(x' | x_t, x_0), or DDIM's without noise.
    """
    at = np.unique(np.round(np.linspace(args.diffusion_steps - 1, 0, args.sampling_steps)).astype(int))
    abar = alpha_bars(args.diffusion_steps)[at]
    before = np.append(1.0, abar[:-1])
    beta = 1.0 - abar / before
    if args.sampling == "ddim":
        of_x_t = np.sqrt((1.0 - before) / (1.0 - abar))
        table = {"of_x_0": np.sqrt(before) - np.sqrt(abar) * of_x_t, "of_x_t": of_x_t, "std": 0.0 * abar}
    else:
        table = {
            "of_x_0": np.sqrt(before) * beta / (1.0 - abar),
            "of_x_t": np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - abar),
            "std": np.sqrt(beta * (1.0 - before) / (1.0 - abar)),  # 0 at the last step
        }
    return {"t": at[::-1], **{name: x[::-1] for name, x in table.items()}}


def diffusion_loss(denoiser, agent: Agent, plan, obs, key, args: Args):
    """min(SNR_t, clip) |net(sqrt(abar_t) z + sqrt(1 - abar_t) n, t, s) - z|^2, SNR = abar / (1 - abar), t uniform."""
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, (len(plan),), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None]
    noised = jnp.sqrt(abar) * plan + jnp.sqrt(1.0 - abar) * jax.random.normal(noise_key, plan.shape)
    clean = agent.nets.denoiser.apply(denoiser, noised, t, obs)
    chex.assert_equal_shape([clean, plan])
    return (jnp.minimum(abar / (1.0 - abar), args.snr_clip) * (clean - plan) ** 2).mean()


def sample_plans(agent: Agent, obs, key, args: Args):
    """Plans [B, Z], scaled, for states [B, O]: of the reverse chain, or of the prior."""
    shape = (len(obs), args.latent_dim)
    if args.proposal == "prior":
        mean, std = agent.nets.prior.apply(agent.plans[1], obs)
        return (mean + std * jax.random.normal(key, shape) - agent.plan_mean) / agent.plan_std
    first_key, noise_key = jax.random.split(key)
    table = posteriors(args)
    table = {name: np.append(x, np.repeat(x[-1:], args.extra_steps)) for name, x in table.items()}
    table = {name: jnp.asarray(x, jnp.int32 if name == "t" else jnp.float32) for name, x in table.items()}

    def step(x, at):
        p, key = at
        clean = agent.nets.denoiser.apply(agent.denoiser, x, jnp.broadcast_to(p["t"], shape[:1]), obs)
        return p["of_x_0"] * clean + p["of_x_t"] * x + p["std"] * jax.random.normal(key, shape), None

    keys = jax.random.split(noise_key, len(table["t"]))
    return jax.lax.scan(step, jax.random.normal(first_key, shape), (table, keys))[0]


# ------------------------------------------------------------------------------------------- values


def q_values(net: Critic, critics, obs, plan):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, plan)


def candidates(agent: Agent, obs, n: int, key, args: Args):
    """n plans [n, B, Z] at each state [B, O], and the target critics' values of them [E, n, B]."""
    repeated = jnp.concatenate([obs] * n)
    plan = sample_plans(agent, repeated, key, args)
    q = q_values(agent.nets.critic, agent.target_critic, repeated, plan)
    return plan.reshape(n, len(obs), -1), q.reshape(2, n, len(obs))


def target(agent: Agent, batch: WindowBatch, key, args: Args):
    """y [E, B] = R + gamma^H min_j target Q_j(s', z_i), z_i the candidate that the other critic's target prefers."""
    _, q = candidates(agent, batch.next_obs, args.backup_candidates, key, args)
    best = q.argmax(1)[::-1]  # [E, B]
    next_q = jnp.take_along_axis(q.min(0), best, axis=0)
    gap = (q.min(0).max(0) - q.min(0).mean(0)).mean()
    return batch.reward + args.discount**args.window_steps * (1.0 - batch.terminal) * next_q, {"choice_gap": gap}


def critic_loss(critic, agent: Agent, batch: WindowBatch, plan, y, weight):
    """weight (Q_i(s, z) - y_i)^2, summed over the two critics, and the mean squared error of each window [B]."""
    q = q_values(agent.nets.critic, critic, batch.obs[:, 0], plan)
    chex.assert_equal_shape([q, y])
    error = (q - y) ** 2
    return (weight * error).mean(1).sum(0), (error.mean(0), {"q": q.mean()})


BLOCK = 1024
"""Windows whose priorities are summed up together."""


def draw_windows(priorities, key, n: int, progress, args: Args):
    """n windows [n] in proportion to priority^--priority, and their weights, the largest 1.

    Weights are (S p)^-b; b grows from --priority-weight to 1 with `progress` from 0 to 1.
    """
    # Of a block first and then within it: one sum over a million windows leaves the rare ones no width in float32.
    block_key, key = jax.random.split(key)
    mass = jnp.pad(priorities**args.priority, (0, -len(priorities) % BLOCK)).reshape(-1, BLOCK)

    def draw(mass, key):
        total = jnp.cumsum(mass)
        return jnp.searchsorted(total, total[-1] * jax.random.uniform(key), side="right")

    block = jax.vmap(draw, (None, 0))(mass.sum(1), jax.random.split(block_key, n))
    window = block * BLOCK + jax.vmap(draw)(mass[block], jax.random.split(key, n))
    p = priorities[window] ** args.priority / mass.sum()
    b = args.priority_weight + (1.0 - args.priority_weight) * progress
    weight = (len(priorities) * p) ** -b
    return window, weight / weight.max()


# ------------------------------------------------------------------------------------------ the agent


def clipped_adam(rate, args: Args):
    """Adam after the clip of a network's gradient."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(rate))


def denoiser_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.denoiser_lr, args.diffusion_updates))


def init(key, args: Args, spec: Spec, n_windows: int = 1) -> Agent:
    """The agent of one lane. `n_windows`: S of the data."""
    nets = Networks(
        Gaussian(args.hidden_dims, args.latent_dim),
        Gaussian(args.hidden_dims, args.latent_dim),
        Decoder(args.hidden_dims, spec.action_dim),
        Gaussian(args.hidden_dims, spec.obs_shape[0]),
        Denoiser(args.denoiser_dims, args.embedding_dim),
        Critic(args.hidden_dims),
    )
    encoder_key, prior_key, decoder_key, end_key, denoiser_key, critic_key = jax.random.split(key, 6)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    plan, window = jnp.zeros((1, args.latent_dim)), jnp.zeros((1, args.window_steps * (obs.size + action.size + 1)))
    plans = (
        nets.encoder.init(encoder_key, window),
        nets.prior.init(prior_key, obs),
        nets.decoder.init(decoder_key, obs, plan, action),
        nets.end_decoder.init(end_key, obs, plan),
    )
    denoiser = nets.denoiser.init(denoiser_key, plan, jnp.zeros(1, jnp.int32), obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, plan), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        plans=plans,
        plan_mean=jnp.zeros(args.latent_dim),
        plan_std=jnp.ones(args.latent_dim),
        denoiser=denoiser,
        critic=critic,
        target_critic=critic,
        priorities=jnp.full(n_windows, 100.0),
        plan_opt=optax.adam(args.plan_lr).init(plans),
        denoiser_opt=denoiser_optimizer(args).init(denoiser),
        critic_opt=jax.vmap(clipped_adam(args.critic_lr, args).init)(critic),
        step=jnp.int32(0),
    )


def update_plans(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the plans' autoencoder and prior."""
    (loss, info), grads = jax.value_and_grad(plan_loss, has_aux=True)(agent.plans, agent, batch, key, args)
    updates, plan_opt = optax.adam(args.plan_lr).update(grads, agent.plan_opt)
    return agent.replace(plans=optax.apply_updates(agent.plans, updates), plan_opt=plan_opt), {
        "plan_loss": loss,
        **info,
    }


def update_denoiser(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the diffusion model, on the encoder's means."""
    plan = (encoded(agent, agent.plans, batch)[0] - agent.plan_mean) / agent.plan_std
    loss, grads = jax.value_and_grad(diffusion_loss)(agent.denoiser, agent, plan, batch.obs[:, 0], key, args)
    updates, denoiser_opt = denoiser_optimizer(args).update(grads, agent.denoiser_opt)
    agent = agent.replace(denoiser=optax.apply_updates(agent.denoiser, updates), denoiser_opt=denoiser_opt)
    return agent, {"diffusion_loss": loss}


def update(agent: Agent, windows: Windows, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of both critics on prioritised windows, and a Polyak step of their targets."""
    window_key, target_key = jax.random.split(key)
    progress = jnp.minimum(agent.step / args.updates, 1.0)
    window, weight = draw_windows(agent.priorities, window_key, args.batch_size, progress, args)
    batch = windows.take(window, args)
    plan = (encoded(agent, agent.plans, batch)[0] - agent.plan_mean) / agent.plan_std
    y, info = target(agent, batch, target_key, args)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, (error, info_q)), grads = grad(agent.critic, agent, batch, plan, y, weight)
    updates, critic_opt = jax.vmap(clipped_adam(args.critic_lr, args).update)(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    agent = agent.replace(
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        priorities=agent.priorities.at[window].set(error + 5e-6),
        critic_opt=critic_opt,
        step=agent.step + 1,
    )
    return agent, {"critic_loss": loss, **info, **info_q}


class Carry(NamedTuple):
    """Of one environment: the plan [Z], scaled, and the steps taken since it was made."""

    plan: jax.Array
    taken: jax.Array


def initial_carry(agent: Agent, args: Args) -> Carry:
    return Carry(jnp.zeros(args.latent_dim), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], the means that follow a plan; where it is used up a new one is made."""
    fresh = carry.taken == 0

    def replan(plan):
        made, q = candidates(agent, obs, args.plan_candidates, key, args)
        best = jnp.take_along_axis(made, q.min(0).argmax(0)[None, :, None], axis=0)[0]
        return jnp.where(fresh[:, None], best, plan)

    plan = jax.lax.cond(fresh.any(), replan, lambda plan: plan, carry.plan)
    action, _ = agent.nets.decoder.apply(agent.plans[2], obs, plan * agent.plan_std + agent.plan_mean)
    length = min(args.replan_every or args.window_steps, args.window_steps)
    return jnp.clip(action, -1.0, 1.0), Carry(plan, (carry.taken + 1) % length)


def fit(agent: Agent, keys, args: Args, windows: Windows, step) -> tuple[Agent, dict]:
    """One lane, before the first update: one `step` of the autoencoder or of diffusion per key; mean metrics.

    They are of both, since before.csv has one header: of what does not learn now, on one batch at the end.
    """
    keys = jax.vmap(partial(jax.random.split, num=3))(keys)

    def one(agent, key):
        return step(agent, windows.sample(key[0], args.batch_size, args), key[1], args)

    agent, metrics = jax.lax.scan(one, agent, keys[:, :2])
    window_key, plan_key, diffusion_key = jax.random.split(keys[-1, 2], 3)
    batch = windows.sample(window_key, args.batch_size, args)
    loss, info = plan_loss(agent.plans, agent, batch, plan_key, args)
    plan = (encoded(agent, agent.plans, batch)[0] - agent.plan_mean) / agent.plan_std
    diffusion = diffusion_loss(agent.denoiser, agent, plan, batch.obs[:, 0], diffusion_key, args)
    judged = {"plan_loss": loss, **info, "diffusion_loss": diffusion}
    return agent, judged | jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""
    agent, metrics = jax.lax.scan(lambda agent, key: update(agent, windows, key, args), agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if min(args.plan_updates, args.diffusion_updates, args.latent_dim) < 1:
        raise InputError("--plan-updates, --diffusion-updates and --latent-dim must be at least 1.")
    if np.min(args.snr_clip) <= 0.0:
        raise InputError(
            f"--snr-clip must be above 0, not {np.min(args.snr_clip):g}: it is the diffusion loss's weight."
        )
    if not 1 <= args.sampling_steps <= args.diffusion_steps:
        raise InputError(
            f"--sampling-steps must be from 1 to --diffusion-steps {args.diffusion_steps}, not {args.sampling_steps}."
        )
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
    require_context(data, args.window_steps, "--window-steps")
    policy, before = StatefulPolicy(initial_carry, act), args.plan_updates + args.diffusion_updates
    with Run(__file__, args, data.task, policy, before=before) as run:
        if args.plan_updates % run.chunk:
            raise InputError(f"--plan-updates must be a multiple of {run.chunk}, which divides the other intervals.")
        starts = jnp.asarray(window_starts(data, args.window_steps), jnp.int32)
        windows = run.replicate(Windows(sequences(data, *FIELDS, "successor"), starts))
        agent = run.init(partial(init, spec=data.spec, n_windows=len(windows.starts)))
        agent = run.restore(agent)
        lanes = partial(run.over_lanes, in_axes=(0, 0, 0, None), donate=True)
        fits = [lanes(partial(fit, step=step)) for step in (update_plans, update_denoiser)]
        scale_lanes, train_lanes = lanes(plan_scale), lanes(train)
        for keys in run.chunks():
            if run.done == -args.diffusion_updates:
                first = run.step_keys(-before - 1)  # no step's, however many --updates follow
                agent = scale_lanes(agent, first, run.lane_args, windows)
            stage = 0 if run.done < -args.diffusion_updates else 1
            step = train_lanes if run.done >= 0 else fits[stage]
            agent, metrics = step(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
