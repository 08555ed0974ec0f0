"""SynthER online: SAC whose replay buffer is filled up with samples of a diffusion model of itself.

Lu, Ball, Teh and Parker-Holder, "Synthetic Experience Replay", NeurIPS 2023, arXiv 2303.06614, section 4.2. Many
updates per environment step make SAC learn from fewer steps, but on a small replay buffer its critics fit what is there
and nothing else. Every --retrain-every environment steps a new diffusion model of whole transitions (EDM's, as in
synther.py) is fitted to the replay buffer, from scratch, and --synthetic-rows samples of it take the place of the last
model's; from then on --synthetic-share of every batch are samples, the rest is replayed. SAC itself is left as it is.

The first --learning-starts steps take uniform random actions. Every environment step is followed by --utd updates of
the critics, each on a minibatch of its own, and one of actor and temperature on the last. --synthetic-share 0 is SAC
with that many updates; with --n-critics 10 it is REDQ (Chen, Wang, Zhou and Ross, ICLR 2021, arXiv 2101.05982).

metrics.csv says how good the last samples are, as synther.py does, beside the replay buffer: marginal_distance, and
sample_error and reward_error in environments whose state can be read off observations; nan before the first model.

Choose it when steps in the environment are dear and updates are cheap, and there is no dataset.

Deviations from the authors' code:
- rewards are normalised for the model in every environment (the code: not in DeepMind Control), and terminal rows are
  always modelled; actions of samples are clipped to [-1, 1];
- a sample is terminal over 0.5 and else not, as offline; the online code has no threshold, so that whatever number the
  model gives enters 1 - terminal;
- the temperature's loss is SAC's, of alpha; the code's is of log alpha;
- the actor climbs critics that have made their last step; the code's takes its gradient before that step;
- EDM's last step evaluates the network once more than it needs;
- everything of one model, its fit and its samples, is one compiled call, after which a signal is answered.

    python algorithms/online/synther_online.py --env Hopper-v5 --env-steps 100000
    python algorithms/online/synther_online.py --env phys2d/Pendulum-v0 --synthetic-share 0 0.5 --seeds 4 \\
        --env-steps 3000 --learning-starts 500 --retrain-every 500 --utd 5 --hidden-dims 64 64 --batch-size 128 \\
        --denoiser-width 128 --denoiser-blocks 2 --time-dim 32 --diffusion-updates 1000 --sampling-steps 16 \\
        --synthetic-rows 5000 --sampling-batch 5000
"""

import dataclasses
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
from shared.arguments import Count, EnvSteps, Float, Fraction, OnlineArgs, Positive, Size, hyperparameters
from shared.env_models import exact_model
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import Batch, unpack


@hyperparameters
class Args(OnlineArgs):
    env: str = "Hopper-v5"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    env_steps: EnvSteps = 100_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    learning_starts: Count = 5_000
    """Environment steps before the first online update."""
    utd: Size = 20
    """Gradient updates of the critics per environment step."""
    synthetic_share: Fraction = 0.5
    """Share of a batch's rows that are samples of the model, in [0, 1]; 0: the data alone."""
    synthetic_rows: int = 1_000_000
    """Samples drawn of the model, once."""
    retrain_every: int = 10_000
    """Environment steps between two diffusion models."""
    diffusion_updates: int = 100_000
    """Updates of the diffusion model before the first of the policy."""
    denoiser_lr: Float = 3e-4
    """Adam's step size: diffusion model; a cosine to 0."""
    denoiser_batch_size: int = 256
    """Rows per update of the diffusion model; 0: 1024 of data or a replay buffer of 800,000 or more, else 256."""
    denoiser_width: Size = 1024
    """Width of the diffusion model's residual blocks."""
    denoiser_blocks: Size = 6
    """Residual blocks of the diffusion model."""
    time_dim: Size = 256
    """Size of the embedding of a time (of a diffusion step)."""
    ema_decay: Fraction = 0.995
    """Decay of the diffusion model's average, which samples are drawn of, every ten of its updates, in [0, 1]."""
    sampling_steps: int = 128
    """Steps from noise to a sample."""
    churn: Float = 80.0
    """Noise that a sample is given anew on its way, over all steps (EDM's S_churn); 0: none."""
    sampling_batch: int = 100_000
    """Samples drawn together."""
    n_critics: Size = 2
    """Critics in the ensemble."""
    subset_size: Size = 2
    """Random critics, drawn anew for every update, whose least target value is bootstrapped."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    init_temperature: Positive = 1.0
    """First value of the entropy temperature."""


PRESETS: dict[str, dict[str, Any]] = {}

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
"""EDM's least and largest noise in sampling, and how their steps are spaced."""
CHURN_MIN, CHURN_MAX, CHURN_NOISE = 0.05, 50.0, 1.003
"""Between which noises samples are given noise anew, and its scale (S_tmin, S_tmax, S_noise)."""
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2
"""Of the noise's logarithm in training (P_mean, P_std)."""
JUDGED = 1_000
"""Samples whose quality is measured."""

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
xavier_init = nn.initializers.xavier_uniform()


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
            x = nn.relu(nn.Dense(size, kernel_init=xavier_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=xavier_init)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -20.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=xavier_init)(x))
        return nn.Dense(1, kernel_init=xavier_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """E critics, stacked on a leading axis [E, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


class Model(flax.struct.PyTreeNode):
    """The diffusion model, which lives until its samples are drawn."""

    net: Denoiser = flax.struct.field(pytree_node=False)
    denoiser: Any
    ema_denoiser: Any
    """Average of the diffusion model, which samples are drawn of."""
    fitted: Any
    """Updates of the diffusion model so far."""
    row_mean: Any
    """[D] of the replay buffer's rows (obs, action, reward, terminal, next_obs); 0 for `terminal`."""
    row_std: Any
    """[D], 1 for `terminal`."""
    denoiser_opt: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Filled(Replay):
    """A replay buffer, and beside it the last diffusion model's samples."""

    synthetic: jax.Array | None = None
    """[L, N, D]"""
    models: jax.Array | None = None
    """[L] models so far"""
    quality: dict[str, jax.Array] | None = None
    """[L] how good the samples are"""


# ------------------------------------------------------------------------------- the diffusion model


def preconditioning(sigma):
    """EDM's c_skip, c_out, c_in and c_noise of noise sigma, for data of standard deviation 1 (table 1)."""
    total = sigma**2 + 1.0
    return 1.0 / total, sigma / jnp.sqrt(total), 1.0 / jnp.sqrt(total), jnp.log(sigma) / 4.0


def denoise(model: Model, denoiser, x, sigma):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of rows x [B, D] with noise sigma [B] (eq. 7)."""
    c_skip, c_out, c_in, c_noise = (c[:, None] for c in preconditioning(sigma))
    return c_skip * x + c_out * model.net.apply(denoiser, c_in * x, c_noise[:, 0])


def diffusion_loss(denoiser, model: Model, rows, key):
    """(sigma^2 + 1) / sigma^2 mean_d (D(x + sigma n; sigma) - x)^2, log sigma normal (EDM's eq. 2 and table 1)."""
    sigma_key, noise_key = jax.random.split(key)
    x = (rows - model.row_mean) / model.row_std
    sigma = jnp.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * jax.random.normal(sigma_key, x.shape[:1]))
    noised = x + sigma[:, None] * jax.random.normal(noise_key, x.shape)
    error = ((denoise(model, denoiser, noised, sigma) - x) ** 2).mean(-1)
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


def update_denoiser(model: Model, rows, key, args: Args) -> tuple[Model, dict]:
    """One gradient step on rows [B, D], and one of the average."""
    loss, grads = jax.value_and_grad(diffusion_loss)(model.denoiser, model, rows, key)
    updates, denoiser_opt = denoiser_optimizer(args).update(grads, model.denoiser_opt)
    denoiser, fitted = optax.apply_updates(model.denoiser, updates), model.fitted + 1
    ema = optax.incremental_update(denoiser, model.ema_denoiser, ema_step(fitted, args))
    model = model.replace(denoiser=denoiser, denoiser_opt=denoiser_opt, ema_denoiser=ema, fitted=fitted)
    return model, {"diffusion_loss": loss}


def noise_levels(steps: int) -> np.ndarray:
    """[steps + 1] sigma from 80 down to 0.002, then 0 (EDM's eq. 5)."""
    along = np.linspace(SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO), steps)
    return np.append(along**RHO, 0.0)


def sampler_step(model: Model, x, noise, sigma, next_sigma, args: Args):
    """Rows x [B, D] from noise sigma to next_sigma (EDM's algorithm 2).

    They are first noised up by --churn, with `noise` [B, D]; then Heun's step, and Euler's to sigma 0.
    """

    def slope(x, sigma):
        return (x - denoise(model, model.ema_denoiser, x, jnp.full(len(x), sigma))) / sigma

    gamma = jnp.minimum(args.churn / args.sampling_steps, jnp.sqrt(2.0) - 1.0)
    growth = 1.0 + jnp.where((sigma >= CHURN_MIN) & (sigma <= CHURN_MAX), gamma, 0.0)
    higher = sigma * growth
    x = x + sigma * jnp.sqrt(growth**2 - 1.0) * CHURN_NOISE * noise  # higher^2 - sigma^2 may round to below 0
    first = slope(x, higher)
    euler = x + (next_sigma - higher) * first
    second = slope(euler, jnp.maximum(next_sigma, SIGMA_MIN))
    return jnp.where(next_sigma > 0.0, x + (next_sigma - higher) * 0.5 * (first + second), euler)


def sample_rows(model: Model, key, n: int, args: Args):
    """[n, D] samples in the data's units, as the sampler leaves them."""
    first_key, noise_key = jax.random.split(key)
    sigma = jnp.asarray(noise_levels(args.sampling_steps), jnp.float32)
    shape = (n, len(model.row_mean))

    def step(x, at):
        sigma, next_sigma, key = at
        return sampler_step(model, x, jax.random.normal(key, shape), sigma, next_sigma, args), None

    x = sigma[0] * jax.random.normal(first_key, shape)
    x, _ = jax.lax.scan(step, x, (sigma[:-1], sigma[1:], jax.random.split(noise_key, args.sampling_steps)))
    return x * model.row_std + model.row_mean


def row_statistics(replay: Replay):
    """Mean and standard deviation [D] of what is in a ring; the column of `terminal` stays as it is."""
    there = (jnp.arange(len(replay.rows)) < replay.size())[:, None]
    mean = jnp.where(there, replay.rows, 0.0).sum(0) / replay.size()
    std = jnp.sqrt(jnp.where(there, (replay.rows - mean) ** 2, 0.0).sum(0) / replay.size()) + 1e-5
    at = replay.spec.obs_shape[0] + replay.spec.action_dim + 1
    return mean.at[at].set(0.0), std.at[at].set(1.0)


def drawn_rows(replay: Replay, key, n: int):
    """[n, D] rows of a ring, uniformly."""
    return replay.rows[jax.random.randint(key, (n,), 0, replay.size())]


def fit(key, args: Args, replay: Replay) -> tuple[Model, dict]:
    """A new diffusion model of what is in a ring."""
    init_key, key = jax.random.split(key)
    net = Denoiser(args.denoiser_width, args.denoiser_blocks, args.time_dim)
    denoiser = net.init(init_key, jnp.zeros((1, replay.rows.shape[-1])), jnp.zeros(1))
    row_mean, row_std = row_statistics(replay)
    model = Model(net, denoiser, denoiser, jnp.int32(0), row_mean, row_std, denoiser_optimizer(args).init(denoiser))
    size = args.denoiser_batch_size or (1024 if len(replay.rows) >= 800_000 else 256)

    def step(model, key):
        row_key, noise_key = jax.random.split(key)
        return update_denoiser(model, drawn_rows(replay, row_key, size), noise_key, args)

    model, metrics = jax.lax.scan(step, model, jax.random.split(key, args.diffusion_updates))
    return model, jax.tree.map(jnp.mean, metrics)


def as_transitions(rows, spec: Spec):
    """Rows [N, D] whose actions are clipped to [-1, 1], and whose `terminal` is 1 over 0.5 and else 0."""
    batch = unpack(rows, spec)
    action, terminal = jnp.clip(batch.action, -1.0, 1.0), (batch.terminal > 0.5).astype(jnp.float32)
    return jnp.concatenate([batch.obs, action, batch.reward[:, None], terminal[:, None], batch.next_obs], axis=-1)


def quality(rows, key, replay: Replay, exact: Callable | None) -> dict:
    """How good samples [N, D] are: see above; of at most 1,000 of them."""
    real_key, exact_key = jax.random.split(key)
    rows = rows[:JUDGED]
    real = drawn_rows(replay, real_key, len(rows))
    apart = jnp.abs(jnp.sort(rows, axis=0) - jnp.sort(real, axis=0)) / row_statistics(replay)[1]
    found = {"marginal_distance": apart.mean()}
    if exact:
        batch = unpack(rows, replay.spec)
        next_obs, reward, _ = exact(batch.obs, batch.action, exact_key)
        found["sample_error"] = jnp.linalg.norm(batch.next_obs - next_obs, axis=-1).mean()
        found["reward_error"] = jnp.abs(batch.reward - reward).mean()
    return found


def refill(replay: Filled, key, args: Args, exact: Callable | None) -> Filled:
    """One lane: the samples of a new diffusion model in the place of the last one's."""
    fit_key, sample_key, quality_key = jax.random.split(key, 3)
    model, info = fit(fit_key, args, replay)
    size = min(args.sampling_batch, args.synthetic_rows)
    keys = jax.random.split(sample_key, -(-args.synthetic_rows // size))
    rows = jax.lax.map(lambda key: sample_rows(model, key, size, args), keys)
    rows = as_transitions(rows.reshape(-1, rows.shape[-1])[: args.synthetic_rows], replay.spec)
    info |= quality(rows, quality_key, replay, exact)
    return dataclasses.replace(replay, synthetic=rows, models=replay.models + 1, quality=info)


def begin(replay: Replay, args: Args, judged: tuple[str, ...]) -> Filled:
    """Rings of all lanes without samples; `judged`: the names of what is measured of them."""
    lanes, _, width = replay.rows.shape
    zeros = partial(jnp.zeros, device=replay.inserted.sharding)
    synthetic = jnp.zeros((lanes, args.synthetic_rows, width), device=replay.rows.sharding)
    measured = {name: zeros(lanes) for name in judged}
    return Filled(
        replay.rows,
        replay.inserted,
        replay.ready,
        replay.spec,
        replay.fields,
        synthetic,
        zeros(lanes, jnp.int32),
        measured,
    )


# ------------------------------------------------------------------------------------------------ SAC


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def random_subset(critics, key, args: Args):
    """`subset_size` of the E critics, each at most once."""
    index = jax.random.permutation(key, args.n_critics)[: args.subset_size]
    return jax.tree.map(lambda x: x[index], critics)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma (min over Z target critics - alpha log pi) - Q_i)^2, summed over the critics."""
    subset_key, action_key = jax.random.split(key)
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), action_key)
    targets = random_subset(agent.target_critic, subset_key, args)
    target_q = q_values(agent.nets.critic, targets, batch.next_obs, next_action).min(0)
    target_v = target_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """E[alpha log pi(a|s) - mean_i Q_i(s, a)], a ~ pi as REDQ has it: the mean, not the minimum."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).mean(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """alpha (H(pi) + dim(A)): alpha grows while the entropy is under its target -dim(A) (eq. 18)."""
    return jnp.exp(log_alpha) * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    log_alpha = jnp.log(args.init_temperature)
    adam = optax.adam(args.learning_rate)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        log_alpha=log_alpha,
        actor_opt=adam.init(actor),
        critic_opt=adam.init(critic),
        alpha_opt=adam.init(log_alpha),
    )


def sample(key, data, replay: Filled, args: Args) -> Batch:
    """[G, B]: of every minibatch the first rows, --synthetic-share of it, are samples once there is a model."""
    real_key, key = jax.random.split(key)
    shape = args.utd, args.batch_size
    real = replay.sample(real_key, shape)
    samples = unpack(replay.synthetic[jax.random.randint(key, shape, 0, args.synthetic_rows)], replay.spec)
    synthetic = (jnp.arange(args.batch_size) + 1 <= args.synthetic_share * args.batch_size) & (replay.models > 0)

    def choose(a, b):
        return None if b is None else jnp.where(synthetic.reshape(-1, *(1,) * (b.ndim - 2)), a, b)

    return Batch(*(choose(a, b) for a, b in zip(samples, real, strict=True)))


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the ensemble on one minibatch [B], and of its targets."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.learning_rate).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(critic=critic, target_critic=target, critic_opt=critic_opt)
    return agent, {"critic_loss": loss_q, **info_q}


def update(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """After one environment step: G critic updates on batch [G, B], then actor and temperature on the last one."""
    critic_key, actor_key = jax.random.split(key)
    adam = optax.adam(args.learning_rate)

    def step(agent, x):
        return update_critic(agent, *x, args)

    agent, metrics = jax.lax.scan(step, agent, (batch, jax.random.split(critic_key, args.utd)))
    batch = jax.tree.map(lambda x: x[-1], batch)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = adam.update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, alpha_opt = adam.update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)
    return agent, {
        **jax.tree.map(jnp.mean, metrics),
        "actor_loss": loss_pi,
        "alpha": jnp.exp(agent.log_alpha),
        **info_pi,
    }


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mode's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def check(args: Args, chunk: int) -> None:
    """InputError: sizes that no model or ensemble has, or a --retrain-every that does not fit the other intervals."""
    if min(args.diffusion_updates, args.synthetic_rows, args.sampling_batch) < 1 or args.denoiser_batch_size < 0:
        raise InputError(
            "--diffusion-updates, --synthetic-rows and --sampling-batch must be at least 1, --denoiser-batch-size at "
            "least 0."
        )
    if args.sampling_steps < 2:
        raise InputError(f"--sampling-steps must be at least 2, not {args.sampling_steps}.")
    if args.subset_size > args.n_critics:
        raise InputError(f"--subset-size {args.subset_size} is more than --n-critics {args.n_critics}.")
    if args.retrain_every < 1 or args.retrain_every % chunk:
        raise InputError(f"--retrain-every must be a multiple of {chunk}, which divides the other intervals.")


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=False)
    exact = exact_model(task)
    judged = ("diffusion_loss", "marginal_distance", *(("reward_error", "sample_error") if exact else ()))
    with Run(__file__, args, task, act) as run:
        check(args, run.chunk)
        if args.retrain_every >= run.total:
            run.note(f"--retrain-every {args.retrain_every:,}: no model is fitted in {run.total:,} environment steps.")
        agent = run.init(partial(init, spec=task.spec))
        online = Interaction(
            run, None, explore, sample, update,
            warmup=args.learning_starts, random_warmup=True, updates_per_step=args.utd, capacity=args.buffer_size,
        )  # fmt: skip
        online.replay = begin(online.replay, args, judged)
        agent = online.restore(agent)
        refill_lanes = run.over_lanes(partial(refill, exact=exact), in_axes=(0, 0, 0))
        for keys in run.chunks():
            if run.done and run.done % args.retrain_every == 0:
                online.replay = refill_lanes(online.replay, run.step_keys(run.total + 2 + run.done), run.lane_args)
            agent, metrics = online.steps(agent, keys)
            if metrics:  # none before --learning-starts
                metrics |= online.replay.quality if run.done >= args.retrain_every else dict.fromkeys(judged)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
