"""DWM: a diffusion model of whole futures, which values are expanded with in one call instead of step by step.

Ding, Zhang, Tian and Zheng, "Diffusion World Model: Future Modeling Beyond Step-by-Step Rollout for Offline
Reinforcement Learning", 2024, arXiv 2402.03570. A temporal U-Net denoises the next --window-steps states and rewards at
once, given the first state (in-painted), the first action and a return-to-go (eq. 4; classifier-free guidance). It is
then frozen, and targets of Q are H = --rollout-steps rewards of a sampled future and the value of where it has come to:
y = r_t + sum_{0 < h < H} gamma^h r_{t+h} + gamma^H V(s_{t+H}) (diffusion model value expansion). Later actions are the
data's, which the model knows of; it never meets those of the policy.
1. --model-updates of the model, logged to before.csv.
2. --updates of the agent: TD3+BC (DWM-TD3BC), or IQL by `--preset iql` (DWM-IQL), or pessimistic by `--preset pql`
   (DWM-PQL: the target is the mean over --futures minus --pessimism times their standard deviation).
--world-model one_step is the model it is held against: a network of single steps, unrolled with the policy's actions.

metrics.csv says how good the model is: error_1, error_3, error_7, ... are mean distances, in half ranges of the data,
of the states it predicts so many steps ahead from those of episodes that it has not seen. The diffusion model is told
their return-to-go, the one-step model all their actions. off_data is the distance of the states at H, from which
targets bootstrap, to the nearest ones of the data in a batch: models that err leave it.

Choose it when rewards are far away and a model of single steps goes astray before it is there.

Deviations from the paper (no code was released; what it leaves open follows Decision Diffuser, or is ours):
- the network predicts the clean window instead of the noise, which tells little where sampling steps are few;
- whether the task has ended is a third part of a window's rows; what follows is worth nothing;
- the average of weights is that of Diffuser's code, a step every ten updates, but is the model itself before
  --ema-start;
- the first reward and its end are the data's; the asked return-to-go is a share of the data's range;
- PQL's pessimism is over futures, as above, and its policy is TD3+BC's;
- the one-step model is a network of the mean, of as many updates, with the same clips;
- DWM-IQL's policy is deterministic: weights of squared errors.

    python algorithms/generative/dwm.py --dataset hopper-medium-replay --seeds 4 --model-updates 100000
    python algorithms/generative/dwm.py --dataset pendulum-mixed --rollout-steps 1 3 7 --channels 8 --seeds 4 \\
        --channel-factors 1 --model-updates 5000 --updates 10000 --hidden-dims 64 64 --batch-size 64
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
from shared.arguments import Count, Expectile, Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.sequences import Sequences, require_context, sequences, window_starts
from shared.task import Spec
from shared.transitions import Batch


@hyperparameters
class Args(OfflineArgs):
    world_model: Literal["diffusion", "one_step"] = "diffusion"
    """What predicts the future: the diffusion model, all at once, or a model of single steps and the policy."""
    learner: Literal["td3_bc", "iql"] = "td3_bc"
    """What learns, by its name in this collection."""
    rollout_steps: Float = 7.0
    """h: steps of a rollout in the model."""
    window_steps: Size = 8
    """Steps of a window of the data."""
    futures: Size = 1
    """Futures that are drawn of the model for each transition."""
    pessimism: Float = 0.0
    """Standard deviations, of an ensemble or of futures, by which a bound lies below their mean; 0: the mean."""
    asked_return: Fraction = 0.9
    """Return-to-go that the model is asked for: 0 is the least of the data, 1 the largest, in [0, 1]."""
    guidance: Float = 1.0
    """omega: weight of what samples are asked for; 0: the unconditional model, 1: the conditional one, larger: more."""
    return_dropout: Fraction = 0.25
    """Probability that the model learns without the return-to-go, in [0, 1]."""
    diffusion_steps: Size = 20
    """T: steps of the diffusion."""
    sampling_steps: int = 3
    """Steps from noise to a sample."""
    sampling: Literal["ddpm", "ddim"] = "ddpm"
    """How: with noise of the posterior at each of these steps, or with none after the first."""
    model_updates: Count = 1_000_000
    """Most updates of the model before the first of the agent; 0 only where it goes on learning then, or is exact."""
    model_lr: Float = 1e-4
    """Adam's step size: model of the dynamics."""
    windows_per_update: Size = 64
    """Windows of the data per update of the model."""
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of the model of the dynamics."""
    channels: int = 64
    """Channels of the temporal U-Net's first level, a multiple of 8."""
    channel_factors: tuple[int, ...] = (1, 2, 4)
    """Multiples of them at its levels; from one to the next the steps are halved."""
    ema_decay: Fraction = 0.995
    """Decay of the diffusion model's average, which samples are drawn of, every ten of its updates, in [0, 1]."""
    ema_start: Count = 2000
    """Updates before which that average is the model itself."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
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


PRESETS = {
    "iql": {"learner": "iql", "policy_delay": 1},
    "pql": {"futures": 5, "pessimism": 1.0},
}
JUDGED_WINDOWS = 500

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
    """Noised windows [B, T, D] and steps of the diffusion [B] -> the clean windows; T of any length that it halves.

    Given are actions [B, A], a return-to-go [B], and whether it is told [B].
    """

    channels: int
    channel_factors: tuple[int, ...]

    @nn.compact
    def __call__(self, x, t, action, wanted, told):
        dim, sizes, before = x.shape[-1], [self.channels * factor for factor in self.channel_factors], []
        time = mish(nn.Dense(4 * self.channels, kernel_init=dense_init)(sinusoidal(t, self.channels)))
        time = nn.Dense(self.channels, kernel_init=dense_init)(time)
        for given, shown in ((action, jnp.ones_like(told)), (wanted[:, None], told)):
            embedded = mish(nn.Dense(self.channels, kernel_init=dense_init)(given))
            time = time + shown[:, None] * nn.Dense(self.channels, kernel_init=dense_init)(embedded)
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


class OneStep(nn.Module):
    """The next row [..., D] of one step: obs [..., O] and action [..., A] -> next obs, reward, whether it ended."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        out = nn.Dense(obs.shape[-1] + 2, kernel_init=dense_init)(x)
        return jnp.concatenate([obs + out[..., :-2], out[..., -2:]], axis=-1)


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
    """Q of (obs, action), or V of obs alone."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    model: TemporalUNet | OneStep
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    model: Any
    ema_model: Any
    """Average of the diffusion model, which samples are drawn of."""
    low: Any
    """[D] least values of the data's rows (obs, reward, ended)."""
    high: Any
    """[D] largest ones."""
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    value: Any
    """V, or None where there is none to learn."""
    target_actor: Any
    target_critic: Any
    model_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: Any
    fitted: Any
    """Updates of the model so far."""


# ------------------------------------------------------------------------------------------- windows


class WindowBatch(NamedTuple):
    """Windows of T steps."""

    rows: jax.Array
    """[B, T, D] obs, reward, and whether the task had ended before, in the data's units."""
    action: jax.Array
    """[B, T, A]"""
    wanted: jax.Array
    """[B] return-to-go from the first step, as a share of the data's range."""


class Windows(NamedTuple):
    """The data on the device, and where windows begin."""

    sequences: Sequences
    discounts: jax.Array
    """[G]"""
    wanted: jax.Array
    """[G, N] returns-to-go under each discount that a lane has, as shares of their range."""
    starts: jax.Array
    """[S] rows that --window-steps rows of their episode follow, or its terminal one."""
    held_out: jax.Array
    """[S'] those of episodes that the model does not learn from."""

    def sample(self, key, starts, n: int, args: Args) -> WindowBatch:
        """After a terminal row its next_obs stands still, without rewards; its own obs where that is not known."""
        row = starts[jax.random.randint(key, (n,), 0, len(starts))]
        found = self.sequences.take(row, jnp.arange(args.window_steps))
        ends = found.terminal > 0.0
        first = jnp.where(ends.any(1), ends.argmax(1), args.window_steps)[:, None]
        over = jnp.arange(args.window_steps) > first
        last = jnp.take_along_axis(found.next_obs, jnp.minimum(first, args.window_steps - 1)[..., None], axis=1)
        obs, reward = jnp.where(over[..., None], last, found.obs), jnp.where(over, 0.0, found.reward)
        mine = jnp.abs(self.discounts - args.discount).argmin()
        rows = jnp.concatenate([obs, reward[..., None], over[..., None]], axis=-1)
        return WindowBatch(rows, found.action, self.wanted[mine, row])


def held_out_rows(start: np.ndarray) -> np.ndarray:
    """[N] bool: rows of a tenth of the episodes, whose first rows are `start` [N]; of one episode none."""
    episodes = np.unique(start)
    n = min(max(1, len(episodes) // 10), len(episodes) - 1)
    return np.isin(start, np.random.default_rng(0).permutation(episodes)[:n])


def to_unit(x, low, high):
    """From [low, high] to [-1, 1]; what does not vary to 0."""
    return (2.0 * x - low - high) / jnp.maximum(high - low, 1e-5)


def from_unit(x, low, high):
    """Back from [-1, 1]."""
    return 0.5 * (x * (high - low) + low + high)


def inpaint(x, obs):
    """Windows x [B, T, D] with their first state obs [B, O] as it is given, where nothing has ended yet."""
    return x.at[:, 0, :-2].set(obs).at[:, 0, -1].set(-1.0)


# ------------------------------------------------------------------------------------------- the model


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


def diffusion_loss(model, agent: Agent, x, action, wanted, key, args: Args):
    """|net(sqrt(abar_t) x + sqrt(1 - abar_t) n, t, a, y) - x|^2 given state, action, and y at times."""
    t_key, noise_key, told_key = jax.random.split(key, 3)
    t = jax.random.randint(t_key, (len(x),), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None, None]
    noised = jnp.sqrt(abar) * x + jnp.sqrt(1.0 - abar) * jax.random.normal(noise_key, x.shape)
    told = (jax.random.uniform(told_key, (len(x),)) >= args.return_dropout).astype(jnp.float32)
    obs = x[:, 0, :-2]
    clean = inpaint(agent.nets.model.apply(model, inpaint(noised, obs), t, action, wanted, told), obs)
    chex.assert_equal_shape([clean, x])
    return ((clean - x) ** 2).mean()


def one_step_loss(model, agent: Agent, x, action):
    """|f(s_h, a_h) - (s_{h+1}, r_h, ended_{h+1})|^2 over the steps of windows x [B, T, D] before their end."""
    target = jnp.concatenate([x[:, 1:, :-2], x[:, :-1, -2:-1], x[:, 1:, -1:]], axis=-1)
    found = agent.nets.model.apply(model, x[:, :-1, :-2], action[:, :-1])
    chex.assert_equal_shape([found, target])
    goes_on = (x[:, :-1, -1] < 0.0).astype(jnp.float32)
    return (goes_on * ((found - target) ** 2).mean(-1)).sum() / goes_on.sum()


def sampled_windows(agent: Agent, obs, action, wanted, key, args: Args):
    """Windows [B, T, D] of first states obs [B, O] in [-1, 1] and first actions: the averaged model's reverse chain.

    Every step clips what is predicted to [-1, 1]. `wanted` [B]: the return-to-go that is asked for.
    """
    first_key, noise_key = jax.random.split(key)
    shape, net = (len(obs), args.window_steps, obs.shape[-1] + 2), partial(agent.nets.model.apply, agent.ema_model)
    table = {name: jnp.asarray(x, jnp.int32 if name == "t" else jnp.float32) for name, x in posteriors(args).items()}
    told = jnp.ones(len(obs))

    def predicted(x, t):
        t = jnp.broadcast_to(t, shape[:1])
        with_y = net(x, t, action, wanted, told)

        def guided():
            without = net(x, t, action, wanted, 0.0 * told)
            return without + args.guidance * (with_y - without)

        return jax.lax.cond(args.guidance == 1.0, lambda: with_y, guided)  # half the work where lanes are mapped

    def step(x, at):
        p, key = at
        clean = jnp.clip(predicted(x, p["t"]), -1.0, 1.0)
        x = p["of_x_0"] * clean + p["of_x_t"] * x + p["std"] * jax.random.normal(key, shape)
        return inpaint(x, obs), None

    x = inpaint(jax.random.normal(first_key, shape), obs)
    return jax.lax.scan(step, x, (table, jax.random.split(noise_key, len(table["t"]))))[0]


def unrolled_windows(agent: Agent, obs, action, args: Args, actions=None):
    """Windows [B, T, D] of the one-step model; later actions are the policy's, or `actions` [B, T, A].

    Every step clips what is predicted to [-1, 1]; the last reward is not predicted.
    """

    def step(carry, t):
        obs, action = carry
        row = jnp.clip(agent.nets.model.apply(agent.model, obs, action), -1.0, 1.0)
        next_obs = row[..., :-2]
        of_policy = agent.nets.actor.apply(agent.actor, from_unit(next_obs, agent.low[:-2], agent.high[:-2]))
        return (next_obs, of_policy if actions is None else actions[:, t + 1]), row

    _, rows = jax.lax.scan(step, (obs, action), jnp.arange(args.window_steps - 1))
    first = jnp.concatenate([obs, jnp.zeros((len(obs), 1)), -jnp.ones((len(obs), 1))], axis=-1)
    x = jnp.concatenate([first[None], rows]).swapaxes(0, 1)
    return x.at[:, :-1, -2].set(x[:, 1:, -2]).at[:, -1, -2].set(0.0)  # a row's reward was that of coming to it


def predict(agent: Agent, obs, action, wanted, key, args: Args, actions=None):
    """Windows [B, T, D] in [-1, 1] from obs [B, O] in the data's units; `actions`: for the one-step model alone."""
    obs = to_unit(obs, agent.low[:-2], agent.high[:-2])
    if args.world_model == "one_step":
        return unrolled_windows(agent, obs, action, args, actions)
    return sampled_windows(agent, obs, action, wanted, key, args)


def update_model(agent: Agent, batch: WindowBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the model, and one of its average."""
    x = to_unit(batch.rows, agent.low, agent.high)
    if args.world_model == "one_step":
        loss, grads = jax.value_and_grad(one_step_loss)(agent.model, agent, x, batch.action)
    else:
        given = batch.action[:, 0], batch.wanted
        loss, grads = jax.value_and_grad(diffusion_loss)(agent.model, agent, x, *given, key, args)
    updates, model_opt = optax.adam(args.model_lr).update(grads, agent.model_opt)
    model, fitted = optax.apply_updates(agent.model, updates), agent.fitted + 1
    follows = jnp.where(fitted % 10 == 0, 1.0 - args.ema_decay, 0.0)
    weight = jnp.where(fitted < args.ema_start, 1.0, follows)
    ema = optax.incremental_update(model, agent.ema_model, weight)
    return agent.replace(model=model, ema_model=ema, model_opt=model_opt, fitted=fitted), {"model_loss": loss}


def fit(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the model per key; mean metrics."""

    def step(agent, key):
        window_key, noise_key = jax.random.split(key)
        batch = windows.sample(window_key, windows.starts, args.windows_per_update, args)
        return update_model(agent, batch, noise_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def judge(agent: Agent, key, args: Args, windows: Windows) -> dict:
    """One lane: mean distances of predicted from true states 1, 3, 7, 15, ... steps ahead, of windows held out."""
    window_key, model_key = jax.random.split(key)
    batch = windows.sample(window_key, windows.held_out, JUDGED_WINDOWS, args)
    first = batch.rows[:, 0, :-2], batch.action[:, 0], batch.wanted
    found = predict(agent, *first, model_key, args, batch.action)
    apart = jnp.linalg.norm((found - to_unit(batch.rows, agent.low, agent.high))[..., :-2], axis=-1)
    goes_on = 1.0 - batch.rows[..., -1]  # not of what stands still after an end
    apart = (goes_on * apart).sum(0) / jnp.maximum(goes_on.sum(0), 1.0)
    return {f"error_{h}": apart[h] for h in 2 ** np.arange(1, 10) - 1 if h < args.window_steps}


# ------------------------------------------------------------------------------------------ the agent


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def future_value(agent: Agent, obs, key, args: Args):
    """[B] of obs where a future has come to: min_i target Q_i at the smoothed target action (TD3), or V (IQL)."""
    if args.learner == "iql":
        return agent.nets.critic.apply(agent.value, obs)
    action = agent.nets.actor.apply(agent.target_actor, obs)
    noise = jnp.clip(args.policy_noise * jax.random.normal(key, action.shape), -args.noise_clip, args.noise_clip)
    return q_values(agent.nets.critic, agent.target_critic, obs, jnp.clip(action + noise, -1.0, 1.0)).min(0)


def expanded(reward, ended, terminal, value, args: Args):
    """[B]: sum_{h < H} gamma^h r_h + gamma^H V_H, rewards and ends [B, T], V [B]; nothing counts after an end.

    `terminal` [B]: of the first step.
    """
    h = jnp.arange(reward.shape[1])
    alive = jnp.cumprod(1.0 - ended, axis=1) * jnp.where(h == 0, 1.0, 1.0 - terminal[:, None])
    weight = args.discount**h * alive
    chex.assert_equal_shape([weight, reward])
    return ((h < args.rollout_steps) * weight * reward).sum(1) + weight[:, jnp.int32(args.rollout_steps)] * value


def off_data(x, known):
    """Mean distance of x [B, O] from the nearest of `known` [N, O]."""
    return jnp.sqrt(((x[:, None] - known) ** 2).sum(-1).min(1)).mean()


def target(agent: Agent, batch: Batch, key, args: Args):
    """y [B]: over the futures of (s, a) the mean expanded target minus --pessimism standard deviations."""
    model_key, value_key = jax.random.split(key)
    repeated, H = jax.tree.map(lambda x: jnp.concatenate([x] * args.futures), batch), jnp.int32(args.rollout_steps)
    wanted = jnp.full(len(repeated.reward), args.asked_return)
    x = predict(agent, repeated.obs, repeated.action, wanted, model_key, args)
    rows = from_unit(x, agent.low, agent.high)
    value = future_value(agent, rows[:, H, :-2], value_key, args)
    reward, ended = rows[..., -2].at[:, 0].set(repeated.reward), (rows[..., -1] > 0.5).astype(jnp.float32)
    y = expanded(reward, ended, repeated.terminal, value, args).reshape(args.futures, -1)
    apart = off_data(x[: len(batch.obs), H, :-2], to_unit(batch.obs, agent.low[:-2], agent.high[:-2]))
    return y.mean(0) - args.pessimism * y.std(0), {"off_data": apart}


def critic_loss(critic, agent: Agent, batch: Batch, y, args: Args):
    """(Q_i(s, a) - y)^2, summed over the two critics."""
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """TD3+BC's: -lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1|.

    IQL's: exp(beta (min_i target Q_i(s, a) - V(s))) (pi(s) - a)^2, weights clipped.
    """
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    if args.learner == "iql":
        q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
        adv = q - agent.nets.critic.apply(agent.value, batch.obs)
        weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
        return (weight * ((pi - batch.action) ** 2).sum(-1)).mean(), {"adv": adv.mean(), "weight": weight.mean()}
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec, low=-1.0, high=1.0) -> Agent:
    """The agent of one lane. `low`, `high` [D]: of the data's rows."""
    dim = spec.obs_shape[0] + 2
    one_step = args.world_model == "one_step"
    model = OneStep(args.model_hidden_dims) if one_step else TemporalUNet(args.channels, args.channel_factors)
    nets = Networks(model, Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key, model_key, value_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    window = jnp.zeros((1, args.window_steps, dim)), jnp.zeros(1, jnp.int32), action, jnp.zeros(1), jnp.zeros(1)
    model = nets.model.init(model_key, *((obs, action) if one_step else window))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs) if args.learner == "iql" else None
    return Agent(
        nets=nets,
        model=model,
        ema_model=model,
        low=jnp.broadcast_to(jnp.float32(low), (dim,)),
        high=jnp.broadcast_to(jnp.float32(high), (dim,)),
        actor=actor,
        critic=critic,
        value=value,
        target_actor=actor,
        target_critic=critic,
        model_opt=optax.adam(args.model_lr).init(model),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=None if value is None else optax.adam(args.critic_lr).init(value),
        fitted=jnp.int32(0),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics, and of V before them."""
    info = {}
    if args.learner == "iql":
        (_, info), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
        updates, value_opt = optax.adam(args.critic_lr).update(grads, agent.value_opt)
        agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)
    y, info_y = target(agent, batch, key, args)
    (loss, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, y, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info, **info_y, **info_q}


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


def train(agent: Agent, keys, args: Args, windows: Windows) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def step(agent, keys):
        keys = jax.vmap(jax.random.split)(keys)
        batches = jax.vmap(lambda key: windows.sequences.transitions.sample(key, args.batch_size))(keys[:, 0])
        return update(agent, batches, keys[:, 1], args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def windows_of(data: Dataset, args: Args) -> Windows:
    """The data on the device, and where windows begin, of episodes to learn from and of those held out."""
    found = sequences(data)
    starts = window_starts(data, args.window_steps)
    held_out = held_out_rows(np.asarray(found.start))
    parts = [starts[part[starts]] for part in (~held_out, held_out)]
    parts = [part if len(part) else starts for part in parts]
    discounts = np.unique(np.float32(args.discount))
    returns = np.stack([data.return_to_go(float(discount)) for discount in discounts])[:, data.usable()]
    low, high = returns.min(1, keepdims=True), returns.max(1, keepdims=True)
    wanted = (returns - low) / np.maximum(high - low, 1e-5)
    return Windows(found, *map(jnp.asarray, (discounts, np.float32(wanted), *map(np.int32, parts))))


def check(args: Args) -> None:
    """InputError: sizes that the network cannot halve, a horizon that a window does not have, what would do nothing."""
    if args.world_model == "one_step" and args.futures > 1:
        raise InputError(f"--futures {args.futures}: the model of single steps foretells one.")
    if args.futures == 1 and np.any(np.ravel(args.pessimism) > 0.0):
        raise InputError(f"--pessimism {args.pessimism} is over futures: it needs --futures of at least 2.")
    if min(args.channel_factors, default=0) < 1:
        raise InputError("--channel-factors: at least one level, of a factor of at least 1.")
    halved = 2 ** (len(args.channel_factors) - 1)
    if args.window_steps < 2 or args.window_steps % halved:
        raise InputError(
            f"--window-steps must be a multiple of {halved}, as the U-Net halves it, and not {args.window_steps}."
        )
    if any(args.channels * factor % 8 for factor in args.channel_factors) or args.channels < 8:
        raise InputError(f"--channels must be a multiple of 8, the groups of GroupNorm, not {args.channels}.")
    steps = np.ravel(args.rollout_steps)
    if np.any(steps % 1) or steps.min() < 1 or steps.max() >= args.window_steps:
        raise InputError(
            f"--rollout-steps must be whole, at least 1 and less than --window-steps {args.window_steps}, not "
            f"{args.rollout_steps}."
        )
    if not 1 <= args.sampling_steps <= args.diffusion_steps:
        raise InputError(
            f"--sampling-steps must be from 1 to --diffusion-steps {args.diffusion_steps}, not {args.sampling_steps}."
        )
    if args.model_updates < 1:
        raise InputError(f"--model-updates must be at least 1, not {args.model_updates}.")


def main(args: Args) -> None:
    check(args)
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
    require_context(data, args.window_steps, "--window-steps")
    low, high = (np.append(edge(data.obs, axis=0), [edge(data.reward), 0.0]) for edge in (np.min, np.max))
    low[-2], high[-2] = min(low[-2], 0.0), max(high[-2], 0.0)  # rewards after an end are 0
    high[-1] = 1.0
    with Run(__file__, args, data.task, act, unit=args.policy_delay, before=args.model_updates) as run:
        windows = run.replicate(windows_of(data, args))
        agent = run.init(partial(init, spec=data.spec, low=low, high=high))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        judge_lanes = run.over_lanes(judge, in_axes=(0, 0, 0, None))
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        found = None
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, windows)
            else:
                if found is None:
                    first = run.step_keys(-args.model_updates - 1)  # no step's, however many --updates follow
                    found = judge_lanes(agent, first, run.lane_args, windows)
                agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
                metrics |= found
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
