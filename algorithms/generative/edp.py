"""EDP: Efficient Diffusion Policies, with TD3, CRR or IQL.

Kang, Ma, Du, Pang and Yan, "Efficient Diffusion Policies for Offline Reinforcement Learning", NeurIPS 2023,
arXiv 2305.20081. Diffusion-QL differentiates Q through its whole chain. Here the policy's improvement uses the
action that the noise prediction implies for a noised action of the data (eq. 9), from the network call of the
denoising loss (eq. 5), whatever the number of diffusion steps; and sampling, for the critic's target and for
acting, takes 15 network calls of an ODE solver instead of T = 1000. A Gaussian around that action gives a
likelihood, so that the policy can be improved by TD3's loss (eq. 10), CRR's or IQL's weighted regression
(section 4.3). Acting is energy-based action selection: of several samples one with probability softmax(Q).

Arguments of --improvement td3 alone: eta (alpha in the authors' code). Of crr: those with crr in their name, and
value_samples; of iql: those with iql in their name, and expectile. --reward-tuning: antmaze is 4 (r - 0.5), with iql
r - 1; range is to [-1, 1]; returns is IQL's, times 1000 / (highest - lowest episode return).

Choose it when the data's actions have several modes and you want one diffusion policy under TD3, CRR or IQL.

Parity: equal to the authors' code, update for update, with all three improvements, but for the solver, the embedding
and how gradients are clipped (results/parity.md).

Deviations from the paper:
- the ODE solver is the multistep DPM-Solver++(2M), which extrapolates clipped predictions of the action, with steps
  uniform in log(alpha / sigma); the authors' is the singlestep third-order DPM-Solver, with steps uniform in time;
- settings are those of the authors' code; 50 samples are drawn for acting, as there; the last policy is evaluated;
- as in Diffusion-QL: PyTorch's initial weights (biases zero), the embedding of the diffusion step, and the gradients
  of the two critics clipped together;
- the data's actions are not clipped to 0.999;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/generative/edp.py --dataset hopper-medium-replay --seeds 4 --updates 50000
    python algorithms/generative/edp.py --dataset pointmaze-umaze --seeds 4 --improvement iql --iql-beta 1 3 10
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
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 2_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    improvement: Literal["td3", "crr", "iql"] = "td3"
    """What the critics learn and how they improve the policy (section 4.3)."""
    eta: Float = 2.0
    """eta: weight of the normalised Q against cloning; 0 clones."""
    crr_temperature: Positive = 1.0
    """crr: the advantage is divided by this, in units of Q; small follows it, large clones."""
    crr_max_weight: Positive = 20.0
    """crr: the weights are clipped here."""
    value_samples: Size = 10
    """Actions of the policy that the value of a state is estimated from."""
    iql_beta: Float = 3.0
    """iql: the advantage is multiplied by this; 0 clones."""
    iql_max_weight: Positive = 100.0
    """iql: the weights are clipped here."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    diffusion_steps: Size = 1000
    """T: steps of the diffusion."""
    solver_steps: Size = 15
    """Steps of the ODE solver, one network call each."""
    n_candidates: Size = 50
    """Candidate actions at each step of an episode, of which one is taken."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    target_every: Size = 5
    """Updates between two Polyak steps of the target actor."""
    target_start: Count = 1000
    """Updates before the first Polyak step of the target actor."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    max_grad_norm: Float = 0.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    time_dim: Size = 16
    """Size of the embedding of a time (of a diffusion step)."""
    reward_tuning: Literal["none", "antmaze", "range", "returns"] = "none"
    """How rewards are changed for training, suite by suite: see above."""


_iql = {"improvement": "iql", "reward_tuning": "range"}
_antmaze = {"improvement": "iql", "reward_tuning": "antmaze", "expectile": 0.9, "iql_beta": 10.0}  # as in IQL
PRESETS = {  # TD3 on MuJoCo and IQL elsewhere; clipping from the authors' code
    "halfcheetah-medium": {"max_grad_norm": 9.0},
    "hopper-medium": {"max_grad_norm": 9.0},
    "walker2d-medium": {"max_grad_norm": 1.0},
    "halfcheetah-medium-replay": {"max_grad_norm": 2.0},
    "hopper-medium-replay": {"max_grad_norm": 4.0},
    "walker2d-medium-replay": {"max_grad_norm": 4.0},
    "halfcheetah-medium-expert": {"max_grad_norm": 7.0},
    "hopper-medium-expert": {"max_grad_norm": 5.0},
    "walker2d-medium-expert": {"max_grad_norm": 5.0},
    "antmaze-umaze": {**_antmaze, "max_grad_norm": 2.0},
    "antmaze-umaze-diverse": {**_antmaze, "max_grad_norm": 3.0},
    "antmaze-medium-play": {**_antmaze, "max_grad_norm": 2.0},
    "antmaze-medium-diverse": {**_antmaze, "max_grad_norm": 1.0},
    "antmaze-large-play": {**_antmaze, "max_grad_norm": 10.0},
    "antmaze-large-diverse": {**_antmaze, "max_grad_norm": 7.0},
    "pen-human": {**_iql, "max_grad_norm": 7.0},
    "pen-cloned": {**_iql, "max_grad_norm": 8.0},
    "kitchen-complete": {**_iql, "max_grad_norm": 9.0},
    **dict.fromkeys(("kitchen-partial", "kitchen-mixed"), {**_iql, "max_grad_norm": 10.0}),
}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def mish(x):
    """x tanh(log(1 + e^x)), with one exponential instead of three transcendental functions."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    return x * (e * (e + 2.0) / (e * (e + 2.0) + 2.0))


def sinusoidal(t, size: int):
    """Features [..., size] of t [...]: sine and cosine of t times frequencies from 1 down to 1e-4."""
    angle = jnp.asarray(t, jnp.float32)[..., None] * jnp.geomspace(1.0, 1e-4, size // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class NoiseNet(nn.Module):
    """epsilon(a_t, s, t): the noise in a_t [..., A]; step t in [0, T-1] is [...] or a scalar."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    time_dim: int

    @nn.compact
    def __call__(self, obs, noised, t):
        time = mish(nn.Dense(2 * self.time_dim, kernel_init=dense_init)(sinusoidal(t, self.time_dim)))
        time = nn.Dense(self.time_dim, kernel_init=dense_init)(time)
        time = jnp.broadcast_to(time, (*noised.shape[:-1], self.time_dim))
        x = jnp.concatenate([noised, time, obs], axis=-1)
        for size in self.hidden_dims:
            x = mish(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init)(x)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = mish(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: NoiseNet
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    step: Any
    """Updates done."""
    value: Any = None
    """V, for iql."""
    value_opt: optax.OptState = None


def q_values(net: Critic, critics, obs, action):
    """[E, ...] of obs [..., O] and action [..., A]."""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def alpha_bars(T: int) -> np.ndarray:
    """abar_t = prod_{s <= t} (1 - beta_s), t = 1..T: what is left of the action's variance in a_t.

    DDPM's schedule: beta_t rises linearly from 0.1 / T to 20 / T.
    """
    if T <= 20:
        raise InputError(f"--diffusion-steps must be more than 20 with this noise schedule, not {T}.")
    return np.cumprod(1.0 - np.linspace(0.1, 20.0, T) / T)


def solver_table(args: Args) -> dict[str, np.ndarray]:
    """Steps of the solver [n]: uniform in log(alpha / sigma), from step T of the diffusion to step 1.

    `t` is the step, in [0, T-1] and not always whole, `history` the weight of the change since the last prediction.
    """
    abar, steps = alpha_bars(args.diffusion_steps), np.arange(args.diffusion_steps)
    log_snr = 0.5 * np.log(abar / (1.0 - abar))
    grid = np.linspace(log_snr[-1], log_snr[0], args.solver_steps + 1)
    alpha, sigma = 1.0 / np.sqrt(1.0 + np.exp(-2.0 * grid)), 1.0 / np.sqrt(1.0 + np.exp(2.0 * grid))
    return {
        "t": np.interp(grid, log_snr[::-1], steps[::-1])[:-1],
        "alpha": alpha[:-1],
        "sigma": sigma[:-1],
        "of_a": sigma[1:] / sigma[:-1],
        "of_a_0": -alpha[1:] * np.expm1(grid[:-1] - grid[1:]),
        "history": np.where(np.arange(args.solver_steps) > 0, 0.5, 0.0),
    }


def sample_actions(agent: Agent, actor, obs, key, args: Args):
    """Actions [..., A]: the diffusion's ODE from a_T ~ N(0, 1), by the second-order multistep solver DPM-Solver++(2M).

    Each step predicts a_0, clips it to [-1, 1] and extrapolates from it and the last step's (Lu et al. 2022).
    """

    def step(carry, x):
        a, last = carry
        epsilon = agent.nets.actor.apply(actor, obs, a, x["t"])
        a_0 = jnp.clip((a - x["sigma"] * epsilon) / x["alpha"], -1.0, 1.0)
        return (x["of_a"] * a + x["of_a_0"] * (a_0 + x["history"] * (a_0 - last)), a_0), None

    table = {name: jnp.asarray(x, jnp.float32) for name, x in solver_table(args).items()}
    a = jax.random.normal(key, (*obs.shape[:-1], agent.nets.actor.action_dim))
    (a, _), _ = jax.lax.scan(step, (a, jnp.zeros_like(a)), table, unroll=5)
    return jnp.clip(a, -1.0, 1.0)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """iql: |expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma v' - Q(s, a))^2; summed over the two critics.

    v' = min_i target Q_i(s', a'), a' of the target policy; iql: V(s').
    """
    if args.improvement == "iql":
        next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    else:
        next_action = sample_actions(agent, agent.target_actor, batch.next_obs, key, args)
        next_v = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def diffusion_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """L_diff = |z - epsilon(a_t, s, t)|^2, a_t = sqrt(abar_t) a + sqrt(1 - abar_t) z (eq. 5); mean over dimensions.

    Also the action approximation [B, A] (eq. 9): (a_t - sqrt(1 - abar_t) epsilon) / sqrt(abar_t), clipped.
    """
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, (args.batch_size,), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None]
    noise = jax.random.normal(noise_key, batch.action.shape)
    noised = jnp.sqrt(abar) * batch.action + jnp.sqrt(1.0 - abar) * noise
    epsilon = agent.nets.actor.apply(actor, batch.obs, noised, t)
    chex.assert_equal_shape([epsilon, noise])
    approximation = jnp.clip((noised - jnp.sqrt(1.0 - abar) * epsilon) / jnp.sqrt(abar), -1.0, 1.0)
    return ((epsilon - noise) ** 2).mean(), approximation


def td3_loss(pi, agent: Agent, batch: Batch, key, args: Args):
    """-eta mean Q_k(s, pi) / mean |Q_k(s, pi)| (eq. 10), k drawn at random."""
    k = jax.random.randint(key, (), 0, 2)
    q = agent.nets.critic.apply(jax.tree.map(lambda x: x[k], agent.critic), batch.obs, pi)
    return -args.eta / jax.lax.stop_gradient(jnp.abs(q).mean()) * q.mean(), {"q_pi": q.mean()}


def regression_loss(pi, agent: Agent, batch: Batch, key, args: Args):
    """-w log N(a; pi, 1) without its constant: w |a - pi|^2 / 2, summed over dimensions; no gradient to w.

    crr: w = exp(A / temperature), A = min_i Q_i(s, a) - mean_j min_i Q_i(s, a_j), a_j ~ N(pi, 1);
    iql: w = exp(beta A), A = min_i target Q_i(s, a) - V(s); both clipped.
    """
    if args.improvement == "crr":
        others = pi + jax.random.normal(key, (args.value_samples, *pi.shape))
        obs = jnp.broadcast_to(batch.obs, (args.value_samples, *batch.obs.shape))
        v = q_values(agent.nets.critic, agent.critic, obs, others).min(0).mean(0)
        adv = q_values(agent.nets.critic, agent.critic, batch.obs, batch.action).min(0) - v
        weight = jnp.minimum(jnp.exp(adv / args.crr_temperature), args.crr_max_weight)
    else:
        v = agent.nets.critic.apply(agent.value, batch.obs)
        adv = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0) - v
        weight = jnp.minimum(jnp.exp(args.iql_beta * adv), args.iql_max_weight)
    distance = 0.5 * ((batch.action - pi) ** 2).sum(-1)
    chex.assert_shape([weight, distance], (args.batch_size,))
    return (jax.lax.stop_gradient(weight) * distance).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """L_diff + the improvement of the action approximation: TD3's, or weighted regression (section 4.3)."""
    diffusion_key, improvement_key = jax.random.split(key)
    bc, pi = diffusion_loss(actor, agent, batch, diffusion_key, args)
    chex.assert_equal_shape([pi, batch.action])
    improvement_loss = td3_loss if args.improvement == "td3" else regression_loss
    loss, info = improvement_loss(pi, agent, batch, improvement_key, args)
    return bc + loss, {"bc_loss": bc, **info}


def optimizer(learning_rate, args: Args) -> optax.GradientTransformation:
    """Adam on clipped gradients."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(learning_rate))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(NoiseNet(args.hidden_dims, spec.action_dim, args.time_dim), Critic(args.hidden_dims))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, action, 0)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs) if args.improvement == "iql" else None
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optimizer(args.actor_lr, args).init(actor),
        critic_opt=optimizer(args.critic_lr, args).init(critic),
        step=jnp.int32(0),
        value=value,
        value_opt=optimizer(args.critic_lr, args).init(value),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V (iql), then of critics and policy, both from the old parameters; Polyak steps."""
    critic_key, actor_key = jax.random.split(key)
    metrics = {}
    if args.improvement == "iql":
        (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
        updates, value_opt = optimizer(args.critic_lr, args).update(grads, agent.value_opt)
        agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)
        metrics = {"value_loss": loss_v, **info_v}

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    critic_updates, critic_opt = optimizer(args.critic_lr, args).update(grads, agent.critic_opt)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    actor_updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt)
    agent = agent.replace(
        critic=optax.apply_updates(agent.critic, critic_updates),
        actor=optax.apply_updates(agent.actor, actor_updates),
        critic_opt=critic_opt,
        actor_opt=actor_opt,
    )

    moves = (agent.step >= args.target_start) & (agent.step % args.target_every == 0)
    agent = agent.replace(
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, jnp.where(moves, args.tau, 0.0)),
        step=agent.step + 1,
    )
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **metrics, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of n_candidates samples one, drawn with probability softmax(min_i Q_i)."""
    sample_key, choice_key = jax.random.split(key)
    obs = jnp.broadcast_to(obs, (args.n_candidates, *obs.shape))
    action = sample_actions(agent, agent.actor, obs, sample_key, args)
    if args.n_candidates == 1:
        return action[0]
    q = q_values(agent.nets.critic, agent.critic, obs, action).min(0)
    chosen = jax.random.categorical(choice_key, q, axis=0)
    return jnp.take_along_axis(action, chosen[None, :, None], axis=0)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def reward_map(data: Dataset, args: Args) -> tuple[float, float]:
    """Scale and shift of the rewards in training."""
    if args.reward_tuning == "antmaze":
        return (1.0, -1.0) if args.improvement == "iql" else (4.0, -2.0)
    if args.reward_tuning == "range":
        low, high = data.reward_range()
        return 2.0 / (high - low), -(high + low) / (high - low)
    if args.reward_tuning == "returns":
        return 1000.0 / data.return_range(), 0.0
    return 1.0, 0.0


def main(args: Args) -> None:
    if args.time_dim < 2:
        raise InputError("--time-dim must be at least 2: a sine and a cosine.")
    alpha_bars(args.diffusion_steps)  # refuses too few steps before anything is written
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(*reward_map(data, args))
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
