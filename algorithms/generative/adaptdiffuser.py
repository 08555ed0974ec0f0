"""AdaptDiffuser: a diffusion planner that learns from the best of its own plans; Diffuser is its round 0.

Liang, Mu, Ding, Ni, Tomizuka and Luo, "AdaptDiffuser: Diffusion Models as Adaptive Self-evolving Planners", ICML 2023,
arXiv 2302.01877; Janner, Du, Tenenbaum and Levine, "Planning with Diffusion for Flexible Behavior Synthesis"
(Diffuser), ICML 2022, arXiv 2205.09991. In the form for mazes: a temporal U-Net denoises windows of states and actions
whose first state and last goal are given (in-painted at every step of the diffusion), in training and in planning; an
episode follows a plan with an inverse model of the dynamics.

Each of --rounds makes --generated-plans plans between states of the data that no episode needs to connect, keeps the
--kept-share that a discriminator finds the most like the data, step for step, and goes on with them beside the data.
The last --rounds times --round-updates of --updates are these; before them, or with `--preset diffuser`, this is
Diffuser.
Plans are --plan-steps long: windows of the data may be shorter, as the network takes any length. They are made for all
lanes and episodes in one call; fewer --sampling-steps make it shorter, and --warm-steps those after the first.

metrics.csv holds the mean distance of a generated plan's worst step to the data's steps (plan_distance) and that of the
kept ones (kept_distance), in half ranges of the data, and the loss of kept plans (plan_loss): nan before a round.

--guide-steps and --guide-scale are Diffuser's guide by returns: a network J(x, t) learns from noised windows which
return follows them, and at every step of the diffusion its gradient moves a plan that many times, its ends as they are.

Choose it when goals are to be reached by long ways whose pieces the data holds, and actions may take their time.

Parity: round 0 is equal to Diffuser's code, update for update, in the denoiser, its average and its plans, with and
without a guide, but for when the average follows and the upsampling's biases (results/parity.md).

Deviations from the papers:
- plans are followed with a learned inverse model instead of a PD controller, which knows the environment; kept plans
  take its actions;
- the discriminator is the distance of each pair of successive states to its nearest in --reference-rows of the data,
  and keeps a share instead of all under a threshold; AdaptDiffuser's rules (rewards, walls) know the environment;
- returns are told to J in ranges of the data's, whatever the environment's unit; its last layer sees the mean over the
  steps, so that windows may be of another length than plans; the one plan is taken instead of the best by J of 64;
- extra rewards (coins) that guide the generation, and locomotion without goals, are not here;
- the step size is that of Diffuser in all rounds, gradients are not accumulated (--batch-size 64 for 2 x 32);
- the average is the denoiser itself before --ema-start and follows after updates 10, 20, ... (Diffuser's code: after
  1, 11, 21, ... all along);
- where goals are not the states, what a state achieves is part of a plan, and its end is given in these columns alone;
- the upsampling convolution has a bias for each of its two phases.

    python algorithms/generative/adaptdiffuser.py --dataset point-medium-stitch --seeds 4 --window-steps 48 \\
        --plan-steps 96 --diffusion-steps 16 --channels 16 --channel-factors 1 2 --updates 20000 --round-updates 5000
    python algorithms/generative/adaptdiffuser.py --preset diffuser --dataset pointmaze-umaze --window-steps 128 \\
        --plan-steps 128
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
from shared.arguments import Count, Float, Fraction, GoalArgs, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalDataset, GoalTransitions, goal_dataset
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import require_context
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-stitch"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    window_steps: Size = 32
    """Steps of a window of the data."""
    plan_steps: int = 64
    """Steps of a plan, from the state that is seen to the goal."""
    replan_every: Count = 0
    """Steps of an episode after which a new plan is made; 0: at a plan's end."""
    diffusion_steps: Size = 64
    """T: steps of the diffusion."""
    sampling_steps: int = 64
    """Steps from noise to a sample."""
    sampling: Literal["ddpm", "ddim"] = "ddpm"
    """How: with noise of the posterior at each of these steps, or with none after the first."""
    warm_steps: Count = 0
    """Of these, the last ones that a plan after an episode's first has, from the plan before it, noised; 0: all."""
    guide_steps: Count = 0
    """Gradient steps to higher returns at each step of the diffusion; 0: there is no guide (Diffuser's: 2)."""
    guide_scale: Float = 0.1
    """Their size, in units of that step's variance."""
    guide_stop: Count = 2
    """Steps of the diffusion, the last ones, that are not guided."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    rounds: int = 1
    """Times that the planner learns from its own plans; 0: Diffuser."""
    round_updates: int = 200_000
    """Gradient updates of a round."""
    generated_plans: int = 4096
    """Plans made at the beginning of a round."""
    kept_share: StaticFraction = 0.25
    """Share of them, in (0, 1], that the discriminator keeps; 1: all."""
    plan_share: Fraction = 0.5
    """Share of the kept plans in the loss of a round, against the data, in [0, 1]."""
    reference_rows: int = 5000
    """Steps of the data that plans are compared with."""
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
    batch_size: Size = 64
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {"diffuser": {"rounds": 0}}

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
    """Noised windows [B, T, D] and steps of the diffusion [B] -> the clean windows; T of any length that it halves."""

    channels: int
    channel_factors: tuple[int, ...]

    @nn.compact
    def __call__(self, x, t):
        dim, sizes, before = x.shape[-1], [self.channels * factor for factor in self.channel_factors], []
        time = mish(nn.Dense(4 * self.channels, kernel_init=dense_init)(sinusoidal(t, self.channels)))
        time = nn.Dense(self.channels, kernel_init=dense_init)(time)
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


class Return(nn.Module):
    """J(x, t): noised windows [B, T, D] and steps of the diffusion [B] -> [B]; the first half of the U-Net."""

    channels: int
    channel_factors: tuple[int, ...]

    @nn.compact
    def __call__(self, x, t):
        time = mish(nn.Dense(4 * self.channels, kernel_init=dense_init)(sinusoidal(t, self.channels)))
        time = nn.Dense(self.channels, kernel_init=dense_init)(time)
        for i, factor in enumerate(self.channel_factors):
            size = self.channels * factor
            for _ in range(2):
                x = ResidualBlock(size)(x, time)
            if i < len(self.channel_factors) - 1:
                x = nn.Dense(size, kernel_init=dense_init)(neighbours(x, 3, stride=2))
        x = mish(nn.Dense(self.channels, kernel_init=dense_init)(jnp.concatenate([x.mean(1), time], axis=-1)))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Inverse(nn.Module):
    """The action [..., A] that leads from one state to the next, both [..., O]."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, next_obs):
        x = jnp.concatenate([obs, next_obs - obs], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return jnp.clip(nn.Dense(self.action_dim, kernel_init=dense_init)(x), -1.0, 1.0)


class Layout(NamedTuple):
    """Where things are in a row [D]: action, obs, and the goal behind them where it is not the obs itself."""

    obs: slice
    goal: slice
    dim: int


class Networks(NamedTuple):
    denoiser: TemporalUNet
    inverse: Inverse
    guide: Return
    layout: Layout


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    denoiser: Any
    ema_denoiser: Any
    """Average of the denoiser, which plans are made with."""
    inverse: Any
    guide: Any
    """J; None with --guide-steps 0."""
    ema_guide: Any
    """Its average, which guides."""
    denoiser_opt: optax.OptState
    inverse_opt: optax.OptState
    guide_opt: Any
    low: Any
    """[D] least values of the data's rows; -1 for actions."""
    high: Any
    """[D] largest ones; 1 for actions."""
    plans: Any
    """[K, --plan-steps, D] the kept plans of the last round, in [-1, 1]."""
    plan_distance: Any
    """Of that round, of the plans that it made; 0 before the first."""
    kept_distance: Any
    """Of those that it kept."""
    step: Any
    """Updates done."""


# ------------------------------------------------------------------------------------------- windows


class Windows(NamedTuple):
    """The data on the device, and where windows of --window-steps steps begin."""

    transitions: GoalTransitions
    starts: jax.Array
    """[S] rows that so many of their episode follow."""
    discounts: jax.Array | None = None
    """[G]"""
    returns: jax.Array | None = None
    """[G, N] of each row to its episode's end, 0 is the data's least and 1 its largest; None: nobody asks."""

    def sample(self, key, n: int, steps: int):
        """[n, steps, D] in the data's units; `steps` at most --window-steps."""
        return self.take(self.first_rows(key, n), steps)

    def first_rows(self, key, n: int):
        """[n] rows that windows begin with."""
        return self.starts[jax.random.randint(key, (n,), 0, len(self.starts))]

    def return_of(self, row, discount):
        """[n] returns that follow rows [n], under a lane's discount."""
        return self.returns[jnp.abs(self.discounts - discount).argmin(), row]

    def take(self, row, steps: int):
        """[n, steps, D] windows that begin with rows [n]."""
        row = row[:, None] + jnp.arange(steps)
        found = self.transitions.take(row)
        apart = [] if self.transitions.achieved is None else [self.transitions.goal(row)]
        return jnp.concatenate([found.action, found.obs, *apart], axis=-1)

    def ends(self, key, n: int) -> "Ends":
        """n states and n goals that no episode needs to connect, in the data's units; of all rows alike."""
        start, goal = (self.transitions.rows(k, n) for k in jax.random.split(key))
        return Ends(self.transitions.take(start).obs, self.transitions.goal(goal))

    def steps(self, key, n: int):
        """[n, 2, O] states and the ones after them, in the data's units; of all rows alike."""
        found = self.transitions.take(self.transitions.rows(key, n))
        return jnp.stack([found.obs, found.next_obs], axis=1)


def to_unit(x, low, high):
    """From [low, high] to [-1, 1]; what does not vary to 0."""
    return (2.0 * x - low - high) / jnp.maximum(high - low, 1e-5)


class Ends(NamedTuple):
    """What is given of windows: the first state [B, O] and the last goal [B, G], in [-1, 1]."""

    obs: jax.Array
    goal: jax.Array


def ends_of(x, layout: Layout) -> Ends:
    return Ends(x[:, 0, layout.obs], x[:, -1, layout.goal])


def inpaint(x, ends: Ends, layout: Layout):
    """Windows x [B, T, D] with their ends as they are given."""
    return x.at[:, 0, layout.obs].set(ends.obs).at[:, -1, layout.goal].set(ends.goal)


# --------------------------------------------------------------------------------- the diffusion model


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


def diffusion_loss(denoiser, agent: Agent, x, key, args: Args):
    """|net(sqrt(abar_t) x + sqrt(1 - abar_t) n, t) - x|^2 with given ends, t uniform (Diffuser's eq. 5, of x)."""
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, (len(x),), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None, None]
    noised = jnp.sqrt(abar) * x + jnp.sqrt(1.0 - abar) * jax.random.normal(noise_key, x.shape)
    ends, layout = ends_of(x, agent.nets.layout), agent.nets.layout
    clean = inpaint(agent.nets.denoiser.apply(denoiser, inpaint(noised, ends, layout), t), ends, layout)
    chex.assert_equal_shape([clean, x])
    return ((clean - x) ** 2).mean()


def planner_loss(denoiser, agent: Agent, x, plans, key, args: Args):
    """The diffusion's loss of windows x of the data, and of kept plans where there are some."""
    data_key, plan_key = jax.random.split(key)
    of_data = diffusion_loss(denoiser, agent, x, data_key, args)
    if plans is None:
        return of_data, {"data_loss": of_data}
    of_plans = diffusion_loss(denoiser, agent, plans, plan_key, args)
    loss = (1.0 - args.plan_share) * of_data + args.plan_share * of_plans
    return loss, {"data_loss": of_data, "plan_loss": of_plans}


def guide_loss(guide, agent: Agent, x, value, key, args: Args):
    """(J(sqrt(abar_t) x + sqrt(1 - abar_t) n, t) - R)^2 with given ends, t uniform; R [B] follows the windows x."""
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, (len(x),), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None, None]
    noised = jnp.sqrt(abar) * x + jnp.sqrt(1.0 - abar) * jax.random.normal(noise_key, x.shape)
    noised = inpaint(noised, ends_of(x, agent.nets.layout), agent.nets.layout)
    found = agent.nets.guide.apply(guide, noised, t)
    chex.assert_equal_shape([found, value])
    return ((found - value) ** 2).mean()


def guided(agent: Agent, x, t, variance, ends: Ends, args: Args):
    """Windows x [B, T, D] at step t, moved --guide-steps times by scale variance grad J(x, t); ends stay given."""

    def step(x, _):
        slope = jax.grad(lambda x: agent.nets.guide.apply(agent.ema_guide, x, jnp.broadcast_to(t, len(x))).sum())(x)
        slope = jnp.where(t >= args.guide_stop, slope, 0.0)
        return inpaint(x + args.guide_scale * variance * slope, ends, agent.nets.layout), None

    return jax.lax.scan(step, x, None, args.guide_steps)[0]


def inverse_loss(inverse, agent: Agent, x):
    """|I(s_t, s_{t+1}) - a_t|^2 over the steps of windows x of the data."""
    obs, action = x[..., agent.nets.layout.obs], x[..., : agent.nets.layout.obs.start]
    found = agent.nets.inverse.apply(inverse, obs[:, :-1], obs[:, 1:])
    chex.assert_equal_shape([found, action[:, :-1]])
    return ((found - action[:, :-1]) ** 2).mean()


def make_plans(agent: Agent, ends: Ends, key, args: Args, last=None):
    """Plans [B, --plan-steps, D] between ends: the reverse chain of the averaged denoiser, which predicts them clean.

    Every step clips what is predicted to [-1, 1]. From noise, or the last --warm-steps from the noised plans `last`.
    """
    layout, table = agent.nets.layout, posteriors(args)
    table["variance"] = posteriors(dataclasses.replace(args, sampling="ddpm"))["std"] ** 2
    first_key, noise_key = jax.random.split(key)
    shape = (len(ends.obs), args.plan_steps, layout.dim)
    x = jax.random.normal(first_key, shape)
    if last is not None:
        table = {name: column[-args.warm_steps :] for name, column in table.items()}
        abar = alpha_bars(args.diffusion_steps)[table["t"][0]]
        x = np.sqrt(abar) * last + np.sqrt(1.0 - abar) * x
    table = {name: jnp.asarray(x, jnp.int32 if name == "t" else jnp.float32) for name, x in table.items()}

    def step(x, at):
        p, key = at
        if args.guide_steps:
            x = guided(agent, x, p["t"], p["variance"], ends, args)
        clean = agent.nets.denoiser.apply(agent.ema_denoiser, x, jnp.broadcast_to(p["t"], shape[:1]))
        x = p["of_x_0"] * jnp.clip(clean, -1.0, 1.0) + p["of_x_t"] * x + p["std"] * jax.random.normal(key, shape)
        return inpaint(x, ends, layout), None

    return jax.lax.scan(step, inpaint(x, ends, layout), (table, jax.random.split(noise_key, len(table["t"]))))[0]


# ------------------------------------------------------------------------------------------- rounds


def plan_distance(plans, reference, layout: Layout):
    """[K] distance of each plan's worst step: of its (s_t, s_{t+1}) to the nearest of `reference` [R, 2, O]."""
    steps_of = lambda obs: jnp.concatenate([obs[:, :-1], obs[:, 1:]], axis=-1)  # noqa: E731
    known = steps_of(reference)[:, 0]

    def worst(steps):
        return jnp.sqrt(((steps[:, None] - known) ** 2).sum(-1)).min(1).max()

    return jax.lax.map(worst, steps_of(plans[..., layout.obs]))


def kept_plans(args: Args) -> int:
    return max(1, int(args.kept_share * args.generated_plans)) if args.rounds else 1


def begin_round(agent: Agent, key, args: Args, windows: Windows) -> Agent:
    """One lane: plans between states of the data, the best of which, with the inverse model's actions, are kept."""
    plan_key, reference_key = jax.random.split(key)
    layout, n, size = agent.nets.layout, args.generated_plans, min(256, args.generated_plans)
    unit = lambda x, at: to_unit(x, agent.low[at], agent.high[at])  # noqa: E731

    def some(key):
        ends_key, plan_key = jax.random.split(key)
        ends = windows.ends(ends_key, size)
        return make_plans(agent, Ends(unit(ends.obs, layout.obs), unit(ends.goal, layout.goal)), plan_key, args)

    plans = jax.lax.map(some, jax.random.split(plan_key, -(-n // size)))
    plans = plans.reshape(-1, *plans.shape[2:])[:n]
    distance = plan_distance(plans, unit(windows.steps(reference_key, args.reference_rows), layout.obs), layout)
    best = jnp.argsort(distance)[: kept_plans(args)]
    kept, obs = plans[best], plans[best][..., layout.obs]
    action = agent.nets.inverse.apply(agent.inverse, obs[:, :-1], obs[:, 1:])
    kept = kept.at[:, :-1, : layout.obs.start].set(action)
    return agent.replace(plans=kept, plan_distance=distance.mean(), kept_distance=distance[best].mean())


# ------------------------------------------------------------------------------------------- the agent


def init(key, args: Args, spec: Spec, low=-1.0, high=1.0, apart: bool | None = None) -> Agent:
    """The agent of one lane. `low`, `high` [D]: of the data's rows; `apart`: the goal is not the obs."""
    a, o, g = spec.action_dim, spec.obs_shape[-1], spec.goal_shape[-1]
    apart = g != o if apart is None else apart
    layout = Layout(slice(a, a + o), slice(a + o, a + o + g) if apart else slice(a, a + o), a + o + apart * g)
    unet, guide_net = TemporalUNet(args.channels, args.channel_factors), Return(args.channels, args.channel_factors)
    nets = Networks(unet, Inverse(args.hidden_dims, a), guide_net, layout)
    denoiser_key, inverse_key = jax.random.split(key)
    window = jnp.zeros((1, args.window_steps, layout.dim)), jnp.zeros(1, jnp.int32)
    guide = None
    if args.guide_steps:
        denoiser_key, guide_key = jax.random.split(denoiser_key)
        guide = nets.guide.init(guide_key, *window)
    denoiser = nets.denoiser.init(denoiser_key, *window)
    inverse = nets.inverse.init(inverse_key, jnp.zeros((1, o)), jnp.zeros((1, o)))
    return Agent(
        nets=nets,
        denoiser=denoiser,
        ema_denoiser=denoiser,
        inverse=inverse,
        guide=guide,
        ema_guide=guide,
        denoiser_opt=optax.adam(args.learning_rate).init(denoiser),
        inverse_opt=optax.adam(args.learning_rate).init(inverse),
        guide_opt=None if guide is None else optax.adam(args.learning_rate).init(guide),
        low=jnp.broadcast_to(jnp.float32(low), (layout.dim,)),
        high=jnp.broadcast_to(jnp.float32(high), (layout.dim,)),
        plans=jnp.zeros((kept_plans(args), args.plan_steps, layout.dim)),
        plan_distance=jnp.float32(0.0),
        kept_distance=jnp.float32(0.0),
        step=jnp.int32(0),
    )


def update(agent: Agent, x, plans, key, args: Args, value=None) -> tuple[Agent, dict]:
    """One gradient step of the denoiser, on windows of the data and on kept plans or None, and of the inverse model.

    With `value` [B], the returns that follow the windows, one of the guide before.
    """
    if value is not None:
        key, guide_key = jax.random.split(key)
        loss_g, grads = jax.value_and_grad(guide_loss)(agent.guide, agent, x, value, guide_key, args)
        updates, guide_opt = optax.adam(args.learning_rate).update(grads, agent.guide_opt)
        agent = agent.replace(guide=optax.apply_updates(agent.guide, updates), guide_opt=guide_opt)
    (loss, info), grads = jax.value_and_grad(planner_loss, has_aux=True)(agent.denoiser, agent, x, plans, key, args)
    updates, denoiser_opt = optax.adam(args.learning_rate).update(grads, agent.denoiser_opt)
    denoiser, step = optax.apply_updates(agent.denoiser, updates), agent.step + 1
    loss_i, grads = jax.value_and_grad(inverse_loss)(agent.inverse, agent, x)
    updates, inverse_opt = optax.adam(args.learning_rate).update(grads, agent.inverse_opt)
    follows = jnp.where(step % 10 == 0, 1.0 - args.ema_decay, 0.0)
    weight = jnp.where(step < args.ema_start, 1.0, follows)
    if value is not None:
        agent = agent.replace(ema_guide=optax.incremental_update(agent.guide, agent.ema_guide, weight))
    agent = agent.replace(
        denoiser=denoiser,
        ema_denoiser=optax.incremental_update(denoiser, agent.ema_denoiser, weight),
        inverse=optax.apply_updates(agent.inverse, updates),
        denoiser_opt=denoiser_opt,
        inverse_opt=inverse_opt,
        step=step,
    )
    info |= {} if value is None else {"guide_loss": loss_g}
    return agent, {"diffusion_loss": loss, "inverse_loss": loss_i, **info}


class Carry(NamedTuple):
    """Of one environment: the plan [--plan-steps, D] in [-1, 1], and the steps taken since it was made; -1: no plan."""

    plan: jax.Array
    taken: jax.Array


def initial_carry(agent: Agent, args: Args) -> Carry:
    return Carry(jnp.zeros((args.plan_steps, agent.nets.layout.dim)), jnp.int32(-1))


def act(agent: Agent, carry: Carry, obs, goal, reward, key, args: Args):
    """Actions [B, A] in [-1, 1] that lead to the plan's next state; where a plan is used up a new one is made."""
    layout = agent.nets.layout
    low, high = agent.low, agent.high
    obs = to_unit(obs, low[layout.obs], high[layout.obs])
    goal = to_unit(goal, low[layout.goal], high[layout.goal])
    length = min(args.replan_every or args.plan_steps - 1, args.plan_steps - 1)
    first, used_up = carry.taken < 0, carry.taken == length

    def made(plan, anew, key, last=None):
        """`plan`, and new ones where `anew` [B] says so."""

        def replan(plan):
            return jnp.where(anew[:, None, None], make_plans(agent, Ends(obs, goal), key, args, last), plan)

        return jax.lax.cond(anew.any(), replan, lambda plan: plan, plan)

    if args.warm_steps:
        key, warm_key = jax.random.split(key)
        rest = jnp.minimum(jnp.arange(args.plan_steps) + length, args.plan_steps - 1)
        plan = made(carry.plan, used_up, warm_key, carry.plan[:, rest])
        plan = made(plan, first, key)
    else:
        plan = made(carry.plan, first | used_up, key)
    taken = jnp.where(first | used_up, 0, carry.taken)
    following = plan[jnp.arange(len(obs)), taken + 1][:, layout.obs]
    return agent.nets.inverse.apply(agent.inverse, obs, following), Carry(plan, taken + 1)


def train(agent: Agent, keys, args: Args, windows: Windows, adapts: bool) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics. `adapts`: also to the kept plans."""

    def step(agent, key):
        window_key, plan_key, update_key = jax.random.split(key, 3)
        row = windows.first_rows(window_key, args.batch_size)
        x = to_unit(windows.take(row, args.window_steps), agent.low, agent.high)
        value = windows.return_of(row, args.discount) if args.guide_steps else None
        plans = agent.plans[jax.random.randint(plan_key, (args.batch_size,), 0, len(agent.plans))] if adapts else None
        return update(agent, x, plans, update_key, args, value)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def returns_of(data: GoalDataset, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """The lanes' discounts [G] that differ, and returns [G, N] of the rows on the device, in ranges of the data's."""
    discounts = np.unique(np.float32(args.discount))
    returns = np.stack([data.data.return_to_go(float(discount))[data.data.successor] for discount in discounts])
    low, high = returns.min(1, keepdims=True), returns.max(1, keepdims=True)
    return discounts, np.float32((returns - low) / np.maximum(high - low, 1e-5))


def check(args: Args) -> None:
    """InputError: sizes that the network cannot halve, rounds that do not fit into the updates, no steps."""
    halved = 2 ** (len(args.channel_factors) - 1)
    for name, steps in (("window-steps", args.window_steps), ("plan-steps", args.plan_steps)):
        if steps < 2 or steps % halved:
            raise InputError(f"--{name} must be a multiple of {halved}, as the U-Net halves it, and not {steps}.")
    if any(args.channels * factor % 8 for factor in args.channel_factors) or args.channels < 8:
        raise InputError(f"--channels must be a multiple of 8, the groups of GroupNorm, not {args.channels}.")
    if args.rounds < 0 or args.rounds * args.round_updates > args.updates or args.round_updates < 1:
        raise InputError(
            f"{args.rounds} rounds of {args.round_updates} updates do not fit into --updates {args.updates}."
        )
    if min(args.generated_plans, args.reference_rows) < 1:
        raise InputError("--generated-plans and --reference-rows must be at least 1.")
    if args.sampling_steps < 1:
        raise InputError(f"--sampling-steps must be at least 1, not {args.sampling_steps}.")
    if args.kept_share <= 0.0:
        raise InputError("--kept-share must be above 0: a round learns from the plans that are kept.")
    if args.warm_steps > args.sampling_steps:
        raise InputError(f"--warm-steps {args.warm_steps}: a plan is made in --sampling-steps {args.sampling_steps}.")


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
    data = goal_dataset(load_dataset(args).require(discrete=False, reward=args.guide_steps > 0), args.tasks)
    require_context(data.data, args.window_steps, "--window-steps")
    rows = [data.data.action, data.data.obs, *([] if data.achieved is None else [data.achieved])]
    low, high = (np.concatenate([edge(x, axis=0) for x in rows]) for edge in (np.min, np.max))
    low[: data.task.spec.action_dim], high[: data.task.spec.action_dim] = -1.0, 1.0
    scale = {"low": low, "high": high, "apart": data.achieved is not None}
    first_round = args.updates - args.rounds * args.round_updates
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        if args.rounds and (args.round_updates % run.chunk or first_round % run.chunk):
            raise InputError(f"--round-updates must be a multiple of {run.chunk}, which divides the other intervals.")
        transitions = data.transitions()
        starts = np.flatnonzero(np.asarray(transitions.end) - np.arange(len(transitions.end)) >= args.window_steps - 1)
        if len(starts) == 0:  # the last row of an episode has no next observation
            raise InputError(
                f"--window-steps {args.window_steps}: no episode of '{data.task.id}' has so many rows with a successor."
            )
        returns = returns_of(data, args) if args.guide_steps else (None, None)
        windows = run.replicate(Windows(transitions, jnp.asarray(starts), *jax.tree.map(jnp.asarray, returns)))
        agent = run.init(partial(init, spec=data.task.spec, **scale))
        agent = run.restore(agent)
        lanes = partial(run.over_lanes, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = {adapts: lanes(partial(train, adapts=adapts)) for adapts in (False, True)}
        begin_lanes = lanes(begin_round)
        unknown = dict.fromkeys(("plan_loss", "plan_distance", "kept_distance") if args.rounds else ())
        for keys in run.chunks():
            adapts = run.done >= first_round and args.rounds > 0
            if adapts and (run.done - first_round) % args.round_updates == 0:
                drawn = run.step_keys(-1 - run.done)  # no step's, however many --updates follow
                agent = begin_lanes(agent, drawn, run.lane_args, windows)
            agent, metrics = train_lanes[adapts](agent, keys, run.lane_args, windows)
            if adapts:
                metrics |= {"plan_distance": agent.plan_distance, "kept_distance": agent.kept_distance}
            run.log(agent, unknown | metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
