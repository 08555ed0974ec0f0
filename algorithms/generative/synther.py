"""SynthER: a diffusion model of transitions fills the replay buffer.

Lu, Ball, Teh and Parker-Holder, "Synthetic Experience Replay", NeurIPS 2023, arXiv 2303.06614. A diffusion model of
whole transitions (s, a, r, terminal, s') is fitted to the data, in the form of Karras, Aittala, Aila and Laine,
"Elucidating the Design Space of Diffusion-Based Generative Models" (EDM), NeurIPS 2022, arXiv 2206.00364: its
preconditioning (eq. 7), its weighted loss, and its stochastic sampler (algorithm 2). The policy, TD3+BC's, learns from
the samples alone.
1. --diffusion-updates of the model, logged to before.csv.
2. --synthetic-rows samples; each lane's are written to OUT/samples/lane-<i>.npz, which every other script takes as its
   --dataset (with --env, as the file names no environment).
3. --updates of TD3+BC, of which --synthetic-share of each batch are samples.

metrics.csv says how good the samples are: marginal_distance, the mean over columns of the Wasserstein distance to the
data, in standard deviations; and where a known environment's state can be read off observations (Pendulum, point
worlds), sample_error and reward_error, the mean distance of s' and r from what the environment makes of (s, a).
Where the environment knows the density of the data's actions (toy-modes8), energy_distance to it and modes_covered.

Choose it when you have few transitions, and the method that you train would like many.

Parity: the diffusion model, its average and its samples are equal to the authors' code, update for update, but for 1e-6
in the clip of gradients (results/parity.md).

Deviations from the paper:
- offline only: the online half, which fits a new model to the replay buffer every 10,000 steps, is synther_online.py;
- actions of samples are clipped to [-1, 1], as every dataset's have to be;
- where the data does not know what follows its terminal rows, the model sees their s in the place of s' (left out, it
  would never terminate); those of samples are no transitions either: written without s', and in no sample_error;
- EDM's last step evaluates the network once more than it needs;
- samples are drawn again, the same ones, when a run is resumed; checkpoints do not hold them;
- biases start at zero (PyTorch's default draws them like the weights).

    python algorithms/generative/synther.py --dataset hopper-medium --data-share 0.1 --synthetic-rows 1000000
    python algorithms/generative/synther.py --dataset pendulum-mixed --data-share 0.1 --synthetic-share 0 1 --seeds 4 \\
        --denoiser-width 128 --denoiser-blocks 2 --diffusion-updates 10000 --sampling-steps 32 \\
        --synthetic-rows 20000 --sampling-batch 20000 --updates 20000 --hidden-dims 64 64
"""

import sys
from collections.abc import Callable
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, StaticFraction, hyperparameters
from shared.checkpoint import replacing
from shared.data import load_dataset
from shared.densities import JUDGED, Density, density_of, judged
from shared.env_models import exact_model
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import FIELDS, Batch, Transitions, unpack


@hyperparameters
class Args(OfflineArgs):
    synthetic_share: Fraction = 1.0
    """Share of a batch's rows that are samples of the model, in [0, 1]; 0: the data alone."""
    synthetic_rows: int = 5_000_000
    """Samples drawn of the model, once."""
    data_share: StaticFraction = 1.0
    """Share of the data's rows that is learned from, in (0, 1], drawn once for all seeds."""
    diffusion_updates: int = 100_000
    """Updates of the diffusion model before the first of the policy."""
    denoiser_lr: Float = 3e-4
    """Adam's step size: diffusion model; a cosine to 0."""
    denoiser_batch_size: int = 0
    """Rows per update of the diffusion model; 0: 1024 of data or a replay buffer of 800,000 or more, else 256."""
    denoiser_width: Size = 2048
    """Width of the diffusion model's residual blocks."""
    denoiser_blocks: Size = 6
    """Residual blocks of the diffusion model."""
    time_dim: Size = 128
    """Size of the embedding of a time (of a diffusion step)."""
    ema_decay: Fraction = 0.995
    """Decay of the diffusion model's average, which samples are drawn of, every ten of its updates, in [0, 1]."""
    sampling_steps: int = 128
    """Steps from noise to a sample."""
    churn: Float = 80.0
    """Noise that a sample is given anew on its way, over all steps (EDM's S_churn); 0: none."""
    sampling_batch: int = 100_000
    """Samples drawn together."""
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


PRESETS = {"antmaze": {"reward_shift": -1.0, "eval_episodes": 100}, "maze2d": {"eval_episodes": 100}}

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
"""EDM's least and largest noise in sampling, and how their steps are spaced."""
CHURN_MIN, CHURN_MAX, CHURN_NOISE = 0.05, 50.0, 1.003
"""Between which noises samples are given noise anew, and its scale (S_tmin, S_tmax, S_noise)."""
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2
"""Of the noise's logarithm in training (P_mean, P_std)."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Denoiser(nn.Module):
    """F(x, c): rows x [B, D] and their c_noise [B] -> [B, D]; residual blocks x + W relu(x)."""

    width: int
    blocks: int
    time_dim: int

    @nn.compact
    def __call__(self, x, noise):
        frequencies = jax.lax.stop_gradient(self.param("frequencies", nn.initializers.normal(1.0), (8,)))
        angle = 2.0 * jnp.pi * noise[:, None] * frequencies
        time = jnp.concatenate([noise[:, None], jnp.sin(angle), jnp.cos(angle)], axis=-1)
        time = nn.silu(nn.Dense(self.time_dim, kernel_init=dense_init)(time))
        time = nn.Dense(self.time_dim, kernel_init=dense_init)(time)
        h = nn.Dense(self.time_dim, kernel_init=dense_init)(x) + time
        h = nn.Dense(self.width, kernel_init=dense_init)(h)
        for _ in range(self.blocks):
            h = h + nn.Dense(self.width, kernel_init=dense_init)(nn.relu(h))
        return nn.Dense(x.shape[-1], kernel_init=dense_init)(nn.relu(h))


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


class Networks(NamedTuple):
    denoiser: Denoiser
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    denoiser: Any
    ema_denoiser: Any
    """Average of the diffusion model, which samples are drawn of."""
    fitted: Any
    """Updates of the diffusion model so far."""
    row_mean: Any
    """[D] of the data's rows (obs, action, reward, terminal, next_obs); 0 for `terminal`."""
    row_std: Any
    """[D], 1 for `terminal`."""
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    denoiser_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState


# ------------------------------------------------------------------------------- the diffusion model


def preconditioning(sigma):
    """EDM's c_skip, c_out, c_in and c_noise of noise sigma, for data of standard deviation 1 (table 1)."""
    total = sigma**2 + 1.0
    return 1.0 / total, sigma / jnp.sqrt(total), 1.0 / jnp.sqrt(total), jnp.log(sigma) / 4.0


def denoise(agent: Agent, denoiser, x, sigma):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of rows x [B, D] with noise sigma [B] (eq. 7)."""
    c_skip, c_out, c_in, c_noise = (c[:, None] for c in preconditioning(sigma))
    return c_skip * x + c_out * agent.nets.denoiser.apply(denoiser, c_in * x, c_noise[:, 0])


def diffusion_loss(denoiser, agent: Agent, rows, key):
    """(sigma^2 + 1) / sigma^2 mean_d (D(x + sigma n; sigma) - x)^2, log sigma normal (EDM's eq. 2 and table 1)."""
    sigma_key, noise_key = jax.random.split(key)
    x = (rows - agent.row_mean) / agent.row_std
    sigma = jnp.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * jax.random.normal(sigma_key, x.shape[:1]))
    noised = x + sigma[:, None] * jax.random.normal(noise_key, x.shape)
    error = ((denoise(agent, denoiser, noised, sigma) - x) ** 2).mean(-1)
    chex.assert_equal_shape([error, sigma])
    return ((sigma**2 + 1.0) / sigma**2 * error).mean()


def ema_step(fitted, args: Args):
    """Polyak step of the average after `fitted` updates: none but after 1, 11, 21, ..., all of it up to the 101st.

    The decay grows to --ema-decay as 1 - (1 + n)^(-2/3), n the updates since the 101st (ema_pytorch's defaults).
    """
    decay = 1.0 - (1.0 + jnp.maximum(fitted - 101, 0)) ** (-2.0 / 3.0)
    return jnp.where(fitted % 10 == 1, 1.0 - jnp.minimum(args.ema_decay, decay), 0.0)


def denoiser_optimizer(args: Args) -> optax.GradientTransformation:
    """Adam on clipped gradients, at a rate that falls to 0 as a cosine."""
    rate = optax.cosine_decay_schedule(args.denoiser_lr, args.diffusion_updates)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


def update_denoiser(agent: Agent, rows, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step on rows [B, D], and one of the average."""
    loss, grads = jax.value_and_grad(diffusion_loss)(agent.denoiser, agent, rows, key)
    updates, denoiser_opt = denoiser_optimizer(args).update(grads, agent.denoiser_opt)
    denoiser, fitted = optax.apply_updates(agent.denoiser, updates), agent.fitted + 1
    ema = optax.incremental_update(denoiser, agent.ema_denoiser, ema_step(fitted, args))
    agent = agent.replace(denoiser=denoiser, denoiser_opt=denoiser_opt, ema_denoiser=ema, fitted=fitted)
    return agent, {"diffusion_loss": loss}


def fit(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update of the diffusion model per key; mean metrics."""
    size = args.denoiser_batch_size or (1024 if len(transitions.rows) >= 800_000 else 256)

    def step(agent, key):
        row_key, noise_key = jax.random.split(key)
        rows = transitions.rows[transitions.draw(row_key, size)]
        return update_denoiser(agent, rows, noise_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def noise_levels(steps: int) -> np.ndarray:
    """[steps + 1] sigma from 80 down to 0.002, then 0 (EDM's eq. 5)."""
    along = np.linspace(SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO), steps)
    return np.append(along**RHO, 0.0)


def sampler_step(agent: Agent, x, noise, sigma, next_sigma, args: Args):
    """Rows x [B, D] from noise sigma to next_sigma (EDM's algorithm 2).

    They are first noised up by --churn, with `noise` [B, D]; then Heun's step, and Euler's to sigma 0.
    """

    def slope(x, sigma):
        return (x - denoise(agent, agent.ema_denoiser, x, jnp.full(len(x), sigma))) / sigma

    gamma = jnp.minimum(args.churn / args.sampling_steps, jnp.sqrt(2.0) - 1.0)
    growth = 1.0 + jnp.where((sigma >= CHURN_MIN) & (sigma <= CHURN_MAX), gamma, 0.0)
    higher = sigma * growth
    x = x + sigma * jnp.sqrt(growth**2 - 1.0) * CHURN_NOISE * noise  # higher^2 - sigma^2 may round to below 0
    first = slope(x, higher)
    euler = x + (next_sigma - higher) * first
    second = slope(euler, jnp.maximum(next_sigma, SIGMA_MIN))
    return jnp.where(next_sigma > 0.0, x + (next_sigma - higher) * 0.5 * (first + second), euler)


def sample_rows(agent: Agent, key, n: int, args: Args):
    """[n, D] samples in the data's units, as the sampler leaves them."""
    first_key, noise_key = jax.random.split(key)
    sigma = jnp.asarray(noise_levels(args.sampling_steps), jnp.float32)
    shape = (n, len(agent.row_mean))

    def step(x, at):
        sigma, next_sigma, key = at
        return sampler_step(agent, x, jax.random.normal(key, shape), sigma, next_sigma, args), None

    x = sigma[0] * jax.random.normal(first_key, shape)
    x, _ = jax.lax.scan(step, x, (sigma[:-1], sigma[1:], jax.random.split(noise_key, args.sampling_steps)))
    return x * agent.row_std + agent.row_mean


def as_transitions(rows, spec: Spec, known: bool):
    """Rows [N, D] whose actions are clipped to [-1, 1], and whose `terminal` is 1 over 0.5 and else 0.

    `known`: whether what follows terminal rows is; where not, their obs stand there, as in the data.
    """
    batch = unpack(rows, spec)
    action, terminal = jnp.clip(batch.action, -1.0, 1.0), (batch.terminal > 0.5).astype(jnp.float32)
    next_obs = batch.next_obs if known else jnp.where(terminal[:, None] > 0, batch.obs, batch.next_obs)
    return jnp.concatenate([batch.obs, action, batch.reward[:, None], terminal[:, None], next_obs], axis=-1)


def quality(
    agent: Agent, rows, key, transitions: Transitions, exact: Callable | None, known: bool, density: Density | None
) -> dict:
    """How good samples [N, D] are: see above; of at most 1,000 of them."""
    real_key, exact_key, density_key = jax.random.split(key, 3)
    rows = rows[:JUDGED]
    real = transitions.rows[transitions.draw(real_key, len(rows))]
    apart = jnp.abs(jnp.sort(rows, axis=0) - jnp.sort(real, axis=0)) / agent.row_std
    found = {"marginal_distance": apart.mean()}
    if density:
        found |= judged(unpack(rows, transitions.spec).action, density, density_key)
    if exact:
        batch = unpack(rows, transitions.spec)
        next_obs, reward, _ = exact(batch.obs, batch.action, exact_key)
        follows = jnp.ones(len(rows)) if known else 1.0 - batch.terminal
        error = follows * jnp.linalg.norm(batch.next_obs - next_obs, axis=-1)
        found["sample_error"] = error.sum() / jnp.maximum(follows.sum(), 1.0)
        found["reward_error"] = jnp.abs(batch.reward - reward).mean()
    return found


def draw_samples(
    agent: Agent,
    key,
    args: Args,
    transitions: Transitions,
    exact: Callable | None,
    known: bool,
    density: Density | None,
):
    """One lane's samples [--synthetic-rows, D], and how good they are; `known`: see `as_transitions`."""
    sample_key, quality_key = jax.random.split(key)
    size = min(args.sampling_batch, args.synthetic_rows)
    keys = jax.random.split(sample_key, -(-args.synthetic_rows // size))
    rows = jax.lax.map(lambda key: sample_rows(agent, key, size, args), keys)
    rows = as_transitions(rows.reshape(-1, rows.shape[-1])[: args.synthetic_rows], transitions.spec, known)
    return rows, quality(agent, rows, quality_key, transitions, exact, known, density)


def write_samples(path: Path, rows: np.ndarray, task: Task, known: bool) -> None:
    """Samples [N, D] as a dataset in the environment's units, every row an episode of its own.

    `known`: whether what follows terminal rows is; where not, it is written as NaN, which is read as unknown.
    """
    batch = jax.tree.map(np.asarray, unpack(rows, task.spec))
    obs, next_obs = batch.obs, batch.next_obs
    if task.obs_mean is not None:
        obs, next_obs = (x * task.obs_std + task.obs_mean for x in (obs, next_obs))
    terminal = batch.terminal > 0.5
    next_obs = next_obs if known else np.where(terminal[:, None], np.nan, next_obs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(
            file,
            observations=obs,
            actions=task.to_env(batch.action),
            rewards=batch.reward - task.options.get("reward_shift", 0.0),
            next_observations=next_obs,
            terminals=terminal,
            timeouts=~terminal,
        )


# ------------------------------------------------------------------------------------------ the policy


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


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1| (TD3+BC)."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec, row_mean=0.0, row_std=1.0) -> Agent:
    """The agent of one lane. `row_mean`, `row_std` [D]: of the data's rows."""
    nets = Networks(
        Denoiser(args.denoiser_width, args.denoiser_blocks, args.time_dim),
        Actor(args.hidden_dims, spec.action_dim),
        Critic(args.hidden_dims),
    )
    actor_key, critic_key, denoiser_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    dim = 2 * spec.obs_shape[0] + spec.action_dim + 2
    denoiser = nets.denoiser.init(denoiser_key, jnp.zeros((1, dim)), jnp.zeros(1))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        denoiser=denoiser,
        ema_denoiser=denoiser,
        fitted=jnp.int32(0),
        row_mean=jnp.broadcast_to(jnp.float32(row_mean), (dim,)),
        row_std=jnp.broadcast_to(jnp.float32(row_std), (dim,)),
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        denoiser_opt=denoiser_optimizer(args).init(denoiser),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    (loss, info), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, key, args)
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


def mixed_rows(key, real: Transitions, synthetic: Transitions, args: Args) -> Batch:
    """A batch, each row of which is a sample with probability --synthetic-share."""
    kind_key, real_key, synthetic_key = jax.random.split(key, 3)
    is_synthetic = jax.random.uniform(kind_key, (args.batch_size, 1)) < args.synthetic_share
    rows = [x.rows[x.draw(k, args.batch_size)] for x, k in ((synthetic, synthetic_key), (real, real_key))]
    return unpack(jnp.where(is_synthetic, *rows), real.spec)


def train(agent: Agent, keys, args: Args, transitions: Transitions, synthetic) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics. `synthetic` [N, D]: its samples."""
    samples = Transitions(synthetic, None, None, transitions.spec, FIELDS)

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        return mixed_rows(batch_key, transitions, samples, args), noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def row_statistics(rows: np.ndarray, spec: Spec) -> dict[str, np.ndarray]:
    """Mean and standard deviation [D] of rows [N, D]; the column of `terminal` stays as it is."""
    mean, std = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64) + 1e-5
    at = spec.obs_shape[0] + spec.action_dim + 1
    mean[at], std[at] = 0.0, 1.0
    return {"row_mean": mean.astype(np.float32), "row_std": std.astype(np.float32)}


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if min(args.diffusion_updates, args.synthetic_rows, args.sampling_batch) < 1 or args.denoiser_batch_size < 0:
        raise InputError(
            "--diffusion-updates, --synthetic-rows and --sampling-batch must be at least 1, --denoiser-batch-size at "
            "least 0."
        )
    if args.sampling_steps < 2:
        raise InputError(f"--sampling-steps must be at least 2, not {args.sampling_steps}.")
    kept = int(args.data_share * len(data.obs))
    if kept < 1:
        raise InputError(f"--data-share {args.data_share:g} leaves none of the {len(data.obs)} rows.")
    if kept < len(data.obs):
        data = data.select(np.sort(np.random.default_rng(0).permutation(len(data.obs))[:kept]))
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    judges = {"exact": exact_model(data.task), "density": density_of(data.task)}
    known = bool(data.successor[data.terminal].all())
    with Run(__file__, args, data.task, act, unit=args.policy_delay, before=args.diffusion_updates) as run:
        transitions = data.transitions()
        scale = row_statistics(np.asarray(transitions.rows), data.spec)
        transitions = run.replicate(transitions)
        agent = run.init(partial(init, spec=data.spec, **scale))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        sample_lanes = run.over_lanes(partial(draw_samples, known=known, **judges), in_axes=(0, 0, 0, None))
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, 0), donate=True)
        synthetic = None
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, transitions)
            else:
                if synthetic is None:
                    first = run.step_keys(-args.diffusion_updates - 1)  # no step's, however many --updates follow
                    synthetic, found = sample_lanes(agent, first, run.lane_args, transitions)
                    for i in range(len(run.settings)):
                        path = run.out / "samples" / f"lane-{run.first_lane + i}.npz"
                        write_samples(path, np.asarray(synthetic[i]), data.task, known)
                agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, synthetic)
                metrics |= found
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
