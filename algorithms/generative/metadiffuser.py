"""MetaDiffuser: a diffusion planner for tasks that must be found out; without a context it is a plain Diffuser.

Ni, Hao, Mu, Yuan, Zheng, Wang and Liang, "MetaDiffuser: Diffusion Model as Conditional Planner for Offline Meta-RL",
ICML 2023, arXiv 2305.19923. The episodes of the data are of many tasks, which differ in rewards or dynamics that no
observation tells. An encoder makes a context z of some transitions of a task, so that models of the reward and of the
dynamics are right (`context_loss`, the first --context-updates, then frozen). A temporal U-Net denoises windows of
states and actions given z, which is left out of some (classifier-free guidance); --guidance exaggerates what z
changes. While a plan is made, two gradients move it: to a high reward, and to what the dynamics allow (dual guide).

Acting, every step has a plan of its own, for the context of the episode's transitions so far; the first one, and with
`--preset diffuser` all, are unconditional. --warm-steps makes it of the last one, and takes less time.

Choose it when episodes are of different tasks, a few steps tell which, and there is no time to learn anew.

Deviations from the paper, of which no code was released:
- an episode is a task: its context are transitions before the window that is denoised, and in evaluation its own first
  steps are the warm start, where the paper is given an episode of the task;
- the encoder is an MLP on single transitions, of which the mean is taken, so that acting carries a sum;
- the denoiser predicts windows, not noise, and both guides are gradients at the predicted window, times the variance
  of the step, with --sampling ddim, too;
- the average of weights is that of Diffuser's code, a step every ten updates, but is the denoiser itself before
  --ema-start;
- sizes of windows, contexts and networks, steps of the diffusion and weights of the guides are ours: the paper's are
  not known to us;
- what a window would hold behind a terminal row is in no loss.

    python algorithms/generative/metadiffuser.py --dataset point-hidden-medium --updates 20000 --channels 16 \\
        --channel-factors 1 2
    python algorithms/generative/metadiffuser.py --preset diffuser --dataset point-hidden-medium
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, sequences, window_starts
from shared.task import Spec
from shared.transitions import FIELDS, Batch


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-hidden-medium"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    context_updates: Size = 100_000
    """Gradient updates of the encoder and the models before all others."""
    context_rows: Size = 20
    """Transitions of a context, drawn from those of the episode before a window."""
    latent_dim: Size = 16
    """Size of the representations."""
    window_steps: Size = 16
    """Steps of a window of the data."""
    diffusion_steps: Size = 20
    """T: steps of the diffusion."""
    sampling_steps: int = 20
    """Steps from noise to a sample."""
    sampling: Literal["ddpm", "ddim"] = "ddpm"
    """How: with noise of the posterior at each of these steps, or with none after the first."""
    warm_steps: Count = 0
    """Of these, the last ones that a plan after an episode's first has, from the plan before it, noised; 0: all."""
    context_dropout: Fraction = 0.25
    """Probability that a window is denoised without its context."""
    guidance: Float = 1.2
    """omega: weight of what samples are asked for; 0: the unconditional model, 1: the conditional one, larger: more."""
    reward_guide: Float = 1.0
    """Weight of the gradient to high rewards."""
    dynamics_guide: Float = 1.0
    """Weight of the gradient to plans that the model of the dynamics agrees with."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    channels: int = 32
    """Channels of the temporal U-Net's first level, a multiple of 8."""
    channel_factors: tuple[int, ...] = (1, 4, 8)
    """Multiples of them at its levels; from one to the next the steps are halved."""
    ema_decay: Fraction = 0.995
    """Decay of the diffusion model's average, which samples are drawn of, every ten of its updates, in [0, 1]."""
    ema_start: Count = 2000
    """Updates before which that average is the model itself."""
    learning_rate: Float = 2e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 32
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {"diffuser": {"guidance": 0.0, "reward_guide": 0.0, "dynamics_guide": 0.0, "context_dropout": 1.0}}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def mish(x):
    """x tanh(log(1 + e^x)), with one exponential instead of three transcendental functions."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    return x * (e * (e + 2.0) / (e * (e + 2.0) + 2.0))


def sinusoidal(t, size: int):
    """Features [..., size] of t [...]: sine and cosine of t times frequencies from 1 down to 1e-4."""
    angle = jnp.asarray(t, jnp.float32)[..., None] * jnp.geomspace(1.0, 1e-4, size // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def neighbours(x, kernel: int, stride: int = 1):
    """[B, T, C] -> [B, T / stride, kernel C]: what a padded convolution over time multiplies by its kernel.

    As a product of matrices it needs no grouped convolution where lanes are vmapped.
    """
    steps = x.shape[1]
    x = jnp.pad(x, ((0, 0), (kernel // 2, kernel // 2), (0, 0)))
    return jnp.concatenate([x[:, i : i + steps : stride] for i in range(kernel)], axis=-1)


class ConvBlock(nn.Module):
    """Convolution over time, GroupNorm of 8 groups, mish."""

    channels: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.channels, kernel_init=dense_init)(neighbours(x, 5))
        return mish(nn.GroupNorm(8, epsilon=1e-5)(x))


class ResidualBlock(nn.Module):
    """Two convolutions [B, T, C] -> [B, T, channels]; the time of the diffusion [B, E] is added after the first."""

    channels: int

    @nn.compact
    def __call__(self, x, time):
        h = ConvBlock(self.channels)(x) + nn.Dense(self.channels, kernel_init=dense_init)(mish(time))[:, None]
        h = ConvBlock(self.channels)(h)
        return h + (x if x.shape[-1] == self.channels else nn.Dense(self.channels, kernel_init=dense_init)(x))


class TemporalUNet(nn.Module):
    """Noised windows [B, T, D], steps of the diffusion [B] and contexts [B, Z] -> the clean windows."""

    channels: int
    channel_factors: tuple[int, ...]

    @nn.compact
    def __call__(self, x, t, z):
        dim, sizes, before = x.shape[-1], [self.channels * factor for factor in self.channel_factors], []
        time = mish(nn.Dense(4 * self.channels, kernel_init=dense_init)(sinusoidal(t, self.channels)))
        time = nn.Dense(self.channels, kernel_init=dense_init)(time)
        task = mish(nn.Dense(4 * self.channels, kernel_init=dense_init)(z))
        time = time + nn.Dense(self.channels, kernel_init=dense_init)(task)
        for i, size in enumerate(sizes):
            for _ in range(2):
                x = ResidualBlock(size)(x, time)
            before.append(x)
            if i < len(sizes) - 1:
                x = nn.Dense(size, kernel_init=dense_init)(neighbours(x, 3, stride=2))
        for _ in range(2):
            x = ResidualBlock(sizes[-1])(x, time)
        for size in reversed(sizes[:-1]):
            x = jnp.concatenate([x, before.pop()], axis=-1)
            for _ in range(2):
                x = ResidualBlock(size)(x, time)
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))  # a transposed convolution, phase by phase
            pairs = jnp.concatenate([padded[:, :-1], padded[:, 1:]], axis=-1)
            even, odd = (nn.Dense(size, kernel_init=dense_init)(p) for p in (pairs[:, :-1], pairs[:, 1:]))
            x = jnp.stack([even, odd], axis=2).reshape(len(x), -1, size)
        return nn.Dense(dim, kernel_init=dense_init)(ConvBlock(sizes[0])(x))


class MLP(nn.Module):
    """ReLU network on the concatenated inputs."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Models(nn.Module):
    """An encoder of transitions, and models of rewards and dynamics, which are told what it says of a task."""

    hidden_dims: tuple[int, ...]
    latent_dim: int
    obs_dim: int

    def setup(self):
        sizes = self.latent_dim, 1, self.obs_dim
        self.encoder, self.reward_model, self.dynamics_model = (MLP(self.hidden_dims, size) for size in sizes)

    def features(self, obs, action, reward, next_obs):
        """[..., Z] of single transitions."""
        return self.encoder(obs, action, reward[..., None], next_obs)

    def __call__(self, obs, action, z):
        """R(s, a, z) [B, T] and P(s, a, z) [B, T, O] at the steps of windows, z [B, Z]."""
        inputs = obs, action, jnp.broadcast_to(z[:, None], (*obs.shape[:2], z.shape[-1]))
        return self.reward_model(*inputs)[..., 0], obs + self.dynamics_model(*inputs)


class Networks(NamedTuple):
    denoiser: TemporalUNet
    models: Models
    action_dim: int


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    models: Any
    denoiser: Any
    ema_denoiser: Any
    """Average of the denoiser, which plans are made with."""
    models_opt: optax.OptState
    denoiser_opt: optax.OptState
    rewards: Any
    """[2] what an environment's reward is multiplied by, and what is added then."""


# --------------------------------------------------------------------------- windows, contexts, plans


class WindowBatch(NamedTuple):
    """Windows of T steps with transitions of the same task."""

    steps: Window
    """[B, T, ...] masked behind a terminal row."""
    context: Batch
    """[B, --context-rows, ...] of the episode before the window."""
    known: jax.Array
    """[B] 0: the window begins its episode, there is no context."""

    def mean(self, x):
        """Of x [B, T] over the steps that there are."""
        chex.assert_equal_shape([x, self.steps.mask])
        return (self.steps.mask * x).sum() / self.steps.mask.sum()


class Windows(NamedTuple):
    """The data on the device, and where windows begin."""

    sequences: Sequences
    starts: jax.Array
    """[S] rows that --window-steps rows of their episode follow, or its terminal one."""

    def sample(self, key, args: Args) -> WindowBatch:
        row_key, context_key = jax.random.split(key)
        row = self.starts[jax.random.randint(row_key, (args.batch_size,), 0, len(self.starts))]
        steps, first = self.sequences.take(row, jnp.arange(args.window_steps)), self.sequences.start[row]
        ended = jnp.cumsum(steps.terminal, axis=1) - steps.terminal
        steps = steps._replace(mask=steps.mask * (ended == 0.0))
        share = jax.random.uniform(context_key, (args.batch_size, args.context_rows))
        before = first[:, None] + jnp.floor(share * (row - first)[:, None]).astype(row.dtype)
        return WindowBatch(steps, self.sequences.transitions.take(before), jnp.float32(row > first))


def in_limits(data: Dataset) -> tuple[Dataset, np.ndarray]:
    """The data with observations and rewards from -1 to 1, and how rewards became so: the agent's `rewards`."""
    low, high = data.obs.min(0), data.obs.max(0)
    middle, half = (high + low) / 2, np.maximum((high - low) / 2, 1e-5)
    arrays = {"obs": (data.obs - middle) / half, "next_obs": (data.next_obs - middle) / half}
    data = data.replace({"obs_limits": True}, {"obs_mean": middle, "obs_std": half}, **arrays)
    least, most = data.reward_range()
    rewards = np.array([2.0, -(most + least)]) / (most - least)
    return data.scale_rewards(*rewards.tolist()), rewards


def context_of(agent: Agent, models, batch: WindowBatch):
    """z [B, Z] of a window's context: the mean over its transitions; 0 where there are none."""
    c = batch.context
    found = agent.nets.models.apply(models, c.obs, c.action, c.reward, c.next_obs, method="features")
    return found.mean(1) * batch.known[:, None]


def context_loss(models, agent: Agent, batch: WindowBatch):
    """(r - R(s, a, z))^2 + |s' - P(s, a, z)|^2 over the steps of windows, z of other steps of their tasks."""
    steps = batch.steps
    reward, next_obs = agent.nets.models.apply(models, steps.obs, steps.action, context_of(agent, models, batch))
    of_reward = batch.mean((reward - steps.reward) ** 2)
    of_dynamics = batch.mean(steps.successor * ((next_obs - steps.next_obs) ** 2).sum(-1))
    return of_reward + of_dynamics, {"reward_loss": of_reward, "dynamics_loss": of_dynamics}


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


def inpaint(x, obs):
    """Windows x [B, T, A + O] with their first state as it is given, [B, O]."""
    return x.at[:, 0, -obs.shape[-1] :].set(obs)


def diffusion_loss(denoiser, agent: Agent, batch: WindowBatch, key, args: Args):
    """|net(sqrt(abar_t) x + sqrt(1 - abar_t) n, t, z or 0) - x|^2 with given first states, t uniform."""
    t_key, noise_key, drop_key = jax.random.split(key, 3)
    x = jnp.concatenate([batch.steps.action, batch.steps.obs], axis=-1)
    t = jax.random.randint(t_key, (len(x),), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None, None]
    noised = jnp.sqrt(abar) * x + jnp.sqrt(1.0 - abar) * jax.random.normal(noise_key, x.shape)
    kept = jax.random.uniform(drop_key, (len(x), 1)) >= args.context_dropout
    z = context_of(agent, agent.models, batch) * kept
    obs = batch.steps.obs[:, 0]
    clean = inpaint(agent.nets.denoiser.apply(denoiser, inpaint(noised, obs), t, z), obs)
    chex.assert_equal_shape([clean, x])
    return batch.mean(((clean - x) ** 2).mean(-1))


def objective(x, agent: Agent, z, args: Args):
    """[B] reward_guide sum_t gamma^t R(s_t, a_t, z) - dynamics_guide sum_t |s_{t+1} - P(s_t, a_t, z)|^2 of windows."""
    action, obs = jnp.split(x, [agent.nets.action_dim], axis=-1)
    reward, next_obs = agent.nets.models.apply(agent.models, obs, action, z)
    wrong = ((obs[:, 1:] - next_obs[:, :-1]) ** 2).sum((1, 2))
    return args.reward_guide * reward @ args.discount ** jnp.arange(x.shape[1]) - args.dynamics_guide * wrong


def make_plans(agent: Agent, obs, z, known, key, args: Args, last=None):
    """Plans [B, T, A + O] from obs [B, O] by the reverse chain, guided towards the objective where z is `known` [B].

    What is denoised is net(0) + w (net(z) - net(0)), w the guidance. From noise, or the last --warm-steps from the
    noised plans `last`.
    """
    table = posteriors(args)
    variance = posteriors(dataclasses.replace(args, sampling="ddpm"))["std"] ** 2
    first_key, noise_key = jax.random.split(key)
    shape = (len(obs), args.window_steps, agent.nets.action_dim + obs.shape[-1])
    slope = jax.grad(lambda x: (known * objective(x, agent, z, args)).sum())

    def step(x, at):
        p, key = at
        t, z_or_0 = jnp.broadcast_to(p["t"], 2 * shape[0]), jnp.concatenate([z, jnp.zeros_like(z)])
        both = agent.nets.denoiser.apply(agent.ema_denoiser, jnp.concatenate([x, x]), t, z_or_0)
        conditional, unconditional = jnp.split(both, 2)
        clean = inpaint(jnp.clip(unconditional + args.guidance * (conditional - unconditional), -1.0, 1.0), obs)
        mean = p["of_x_0"] * clean + p["of_x_t"] * x + p["variance"] * slope(clean)
        return inpaint(mean + p["std"] * jax.random.normal(key, shape), obs), None

    x, table = jax.random.normal(first_key, shape), table | {"variance": variance}
    if last is not None:
        table = {name: column[-args.warm_steps :] for name, column in table.items()}
        abar = alpha_bars(args.diffusion_steps)[table["t"][0]]
        x = np.sqrt(abar) * last + np.sqrt(1.0 - abar) * x
    table = {name: jnp.asarray(x, jnp.int32 if name == "t" else jnp.float32) for name, x in table.items()}
    return jax.lax.scan(step, inpaint(x, obs), (table, jax.random.split(noise_key, len(table["t"]))))[0]


# ------------------------------------------------------------------------------------------- the agent


def init(key, args: Args, spec: Spec, rewards=(1.0, 0.0)) -> Agent:
    """The agent of one lane. `rewards`: factor and shift of an environment's rewards."""
    a, o = spec.action_dim, spec.obs_shape[-1]
    nets = Networks(TemporalUNet(args.channels, args.channel_factors), Models(args.hidden_dims, args.latent_dim, o), a)
    denoiser_key, model_key = jax.random.split(key)
    obs, action, t = jnp.zeros((1, args.window_steps, o)), jnp.zeros((1, args.window_steps, a)), jnp.zeros(1, jnp.int32)
    whole = lambda m, obs, action: m(obs, action, m.features(obs, action, obs[..., 0], obs).mean(1))  # noqa: E731
    models = nets.models.init(model_key, obs, action, method=whole)
    x, z = jnp.concatenate([action, obs], axis=-1), jnp.zeros((1, args.latent_dim))
    denoiser = nets.denoiser.init(denoiser_key, x, t, z)
    return Agent(
        nets=nets,
        models=models,
        denoiser=denoiser,
        ema_denoiser=denoiser,
        models_opt=optax.adam(args.learning_rate).init(models),
        denoiser_opt=optax.adam(args.learning_rate).init(denoiser),
        rewards=jnp.float32(rewards),
    )


def update_models(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the encoder and the models."""
    (loss, info), grads = jax.value_and_grad(context_loss, has_aux=True)(agent.models, agent, batch)
    updates, models_opt = optax.adam(args.learning_rate).update(grads, agent.models_opt)
    models = optax.apply_updates(agent.models, updates)
    return agent.replace(models=models, models_opt=models_opt), {"context_loss": loss, **info}


def update(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the denoiser."""
    loss, grads = jax.value_and_grad(diffusion_loss)(agent.denoiser, agent, batch, key, args)
    updates, denoiser_opt = optax.adam(args.learning_rate).update(grads, agent.denoiser_opt)
    denoiser, step = optax.apply_updates(agent.denoiser, updates), denoiser_opt[0].count
    follows = jnp.where(step % 10 == 0, 1.0 - args.ema_decay, 0.0)
    weight = jnp.where(step < args.ema_start, 1.0, follows)
    ema_denoiser = optax.incremental_update(denoiser, agent.ema_denoiser, weight)
    agent = agent.replace(denoiser=denoiser, ema_denoiser=ema_denoiser, denoiser_opt=denoiser_opt)
    return agent, {"diffusion_loss": loss}


class Carry(NamedTuple):
    """Of one environment."""

    obs: jax.Array
    """The last observation,"""
    action: jax.Array
    """and what was done there."""
    total: jax.Array
    """[Z] sum of the features of the episode's transitions so far."""
    count: jax.Array
    """Of these; -1 before the first observation."""
    plan: jax.Array
    """[T, A + O] the last one."""


def initial_carry(agent: Agent, args: Args) -> Carry:
    obs, action = jnp.zeros(agent.nets.models.obs_dim), jnp.zeros(agent.nets.action_dim)
    plan = jnp.zeros((args.window_steps, action.size + obs.size))
    return Carry(obs, action, jnp.zeros(args.latent_dim), jnp.int32(-1), plan)


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """First actions [B, A] in [-1, 1] of plans for the task that the episode's transitions tell."""
    reward = reward * agent.rewards[0] + agent.rewards[1]
    seen = agent.nets.models.apply(agent.models, carry.obs, carry.action, reward, obs, method="features")
    total, count = carry.total + jnp.float32(carry.count >= 0)[:, None] * seen, carry.count + 1
    known = jnp.float32(count > 0)
    z = known[:, None] * total / jnp.maximum(count, 1)[:, None]
    if args.warm_steps:
        key, warm_key = jax.random.split(key)
        first, rest = carry.count < 0, jnp.concatenate([carry.plan[:, 1:], carry.plan[:, -1:]], axis=1)
        plans = make_plans(agent, obs, z, known, warm_key, args, rest)

        def begin(plans):
            return jnp.where(first[:, None, None], make_plans(agent, obs, z, known, key, args), plans)

        plans = jax.lax.cond(first.any(), begin, lambda plans: plans, plans)
    else:
        plans = make_plans(agent, obs, z, known, key, args)
    action = jnp.clip(plans[:, 0, : carry.action.shape[-1]], -1.0, 1.0)
    return action, Carry(obs, action, total, count, plans)


def train(agent: Agent, keys, args: Args, windows: Windows, learn) -> tuple[Agent, dict]:
    """One lane: one step of `learn` (update_models or update) per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return learn(agent, windows.sample(batch_key, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def check(args: Args) -> None:
    """InputError: steps that the U-Net cannot halve, channels that are of no eight groups, no noise to guide."""
    if min(args.diffusion_steps, args.sampling_steps) < 2:
        raise InputError(
            "--diffusion-steps and --sampling-steps must be at least 2: the last step has no noise, by which guides "
            "are scaled."
        )
    if args.warm_steps > args.sampling_steps:
        raise InputError(f"--warm-steps {args.warm_steps}: a plan is made in --sampling-steps {args.sampling_steps}.")
    if min(args.channel_factors, default=0) < 1:
        raise InputError("--channel-factors: at least one level, of a factor of at least 1.")
    halved = 2 ** (len(args.channel_factors) - 1)
    for flag, n, of in (("window-steps", args.window_steps, halved), ("channels", args.channels, 8)):
        if n < of or n % of:
            raise InputError(f"--{flag} must be a multiple of {of}, which the U-Net divides it by, and not {n}.")


def resolved(args: Args) -> Args:
    """`args`, with as many --sampling-steps as there are levels of noise where they ask for more."""
    if args.sampling_steps > args.diffusion_steps:
        print(
            f"--sampling-steps {args.sampling_steps}: a plan is made in all {args.diffusion_steps} there are",
            flush=True,
        )
        args = dataclasses.replace(args, sampling_steps=args.diffusion_steps)
    check(args)
    return args


def main(args: Args) -> None:
    args = resolved(args)
    data, rewards = in_limits(load_dataset(args).require(discrete=False))
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act), before=args.context_updates) as run:
        starts = jnp.asarray(window_starts(data, args.window_steps))
        windows = run.replicate(Windows(sequences(data, *FIELDS, "successor"), starts))
        agent = run.init(partial(init, spec=data.spec, rewards=rewards))
        agent = run.restore(agent)
        model_lanes, train_lanes = (
            run.over_lanes(partial(train, learn=learn), in_axes=(0, 0, 0, None), donate=True)
            for learn in (update_models, update)
        )
        for keys in run.chunks():
            step = model_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
