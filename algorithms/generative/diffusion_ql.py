"""Diffusion-QL: Q-learning with a diffusion model as the policy.

Wang, Hunt and Zhou, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning",
ICLR 2023, arXiv 2208.06193. The policy is a denoising diffusion model of actions: a chain of T = 5 steps (eq. 1)
turns noise into an action, and can express several modes. Its loss is the denoising loss, which clones the data
(eq. 2), minus the normalised Q of the chain's action (eq. 3), whose gradient passes through all T steps; the
critics bootstrap from actions of an averaged policy (eq. 4). Acting draws 50 actions and one of them by its Q.

--reward-tuning: antmaze is 4 (r - 0.5); normalize is to mean 0 and standard deviation 1.

Choose it when the data's actions have several modes and the time to act does not matter; the generative baseline.

Parity: equal to the authors' code, update for update, but for 1e-6 in the clip of gradients (results/parity.md).

Deviations from the paper:
- each step of the chain clips the action that it predicts and adds noise of the posterior's variance (the authors'
  code) instead of beta_t (eq. 1);
- Q in eq. 3 is divided by mean |Q| of the other critic at the policy's actions (the authors' code), not of the
  data's actions;
- constant learning rates: the decay of the published runs is stepped once per 50,000 updates and lowers them by
  0.1 % in all; the last policy is evaluated, not the best one of the run;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/generative/diffusion_ql.py --dataset hopper-medium-replay --seeds 4 --updates 50000
    python algorithms/generative/diffusion_ql.py --dataset pointmaze-umaze --seeds 4 --eta 0 0.3 1 3
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
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    eta: Float = 1.0
    """eta: weight of the normalised Q against cloning; 0 clones."""
    diffusion_steps: Size = 5
    """T: steps of the diffusion."""
    max_q_backup: bool = False
    """Bootstrap from the best of several actions of the policy instead of one."""
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
    reward_tuning: Literal["none", "antmaze", "normalize"] = "none"
    """How rewards are changed for training, suite by suite: see above."""


_antmaze = {"reward_tuning": "antmaze", "max_q_backup": True, "eval_episodes": 100}
_pen = {"reward_tuning": "normalize", "actor_lr": 3e-5, "eval_episodes": 100}
_kitchen = {"eta": 0.005, "eval_episodes": 100}
PRESETS = {  # the table of the authors' code
    "halfcheetah-medium": {"updates": 2_000_000, "max_grad_norm": 9.0},
    "hopper-medium": {"updates": 2_000_000, "max_grad_norm": 9.0},
    "walker2d-medium": {"updates": 2_000_000, "max_grad_norm": 1.0},
    "halfcheetah-medium-replay": {"updates": 2_000_000, "max_grad_norm": 2.0},
    "hopper-medium-replay": {"updates": 2_000_000, "max_grad_norm": 4.0},
    "walker2d-medium-replay": {"updates": 2_000_000, "max_grad_norm": 4.0},
    "halfcheetah-medium-expert": {"updates": 2_000_000, "max_grad_norm": 7.0},
    "hopper-medium-expert": {"updates": 2_000_000, "max_grad_norm": 5.0},
    "walker2d-medium-expert": {"updates": 2_000_000, "max_grad_norm": 5.0},
    "antmaze-umaze": {**_antmaze, "max_q_backup": False, "eta": 0.5, "max_grad_norm": 2.0},
    "antmaze-umaze-diverse": {**_antmaze, "eta": 2.0, "max_grad_norm": 3.0},
    "antmaze-medium-play": {**_antmaze, "eta": 2.0, "max_grad_norm": 2.0, "actor_lr": 1e-3},
    "antmaze-medium-diverse": {**_antmaze, "eta": 3.0, "max_grad_norm": 1.0},
    "antmaze-large-play": {**_antmaze, "eta": 4.5, "max_grad_norm": 10.0},
    "antmaze-large-diverse": {**_antmaze, "eta": 3.5, "max_grad_norm": 7.0},
    "pen-human": {**_pen, "eta": 0.15, "max_grad_norm": 7.0},
    "pen-cloned": {**_pen, "eta": 0.1, "max_grad_norm": 8.0},
    "kitchen-complete": {**_kitchen, "updates": 250_000, "max_grad_norm": 9.0},
    **dict.fromkeys(("kitchen-partial", "kitchen-mixed"), {**_kitchen, "max_grad_norm": 10.0}),
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
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
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


def q_values(net: Critic, critics, obs, action):
    """[E, ...] of obs [..., O] and action [..., A]."""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def alpha_bars(T: int) -> np.ndarray:
    """abar_t = prod_{s <= t} (1 - beta_s), t = 1..T: what is left of the action's variance in a_t.

    Schedule of the variance-preserving SDE: 1 - beta_t = exp(-bmin / T - (bmax - bmin) (2t - 1) / (2 T^2)).
    """
    t = np.arange(1, T + 1)
    return np.exp(np.cumsum(-0.1 / T - 0.5 * (10.0 - 0.1) * (2 * t - 1) / T**2))


def sample_actions(agent: Agent, actor, obs, key, args: Args):
    """Actions [..., A] of the reverse chain a_T ~ N(0, 1), ..., a_0 (eq. 1), differentiable in `actor`.

    Each step predicts a_0, clips it to [-1, 1] and draws from the posterior q(a_{t-1} | a_t, a_0).
    """
    abar = alpha_bars(args.diffusion_steps)
    before = np.append(1.0, abar[:-1])
    beta = 1.0 - abar / before
    posterior = {
        "t": np.arange(len(abar)),
        "abar": abar,
        "of_a_0": np.sqrt(before) * beta / (1.0 - abar),
        "of_a_t": np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - abar),
        "std": np.sqrt(beta * (1.0 - before) / (1.0 - abar)),  # 0 at the last step
    }
    posterior = {name: jnp.asarray(x, jnp.float32)[::-1] for name, x in posterior.items()}
    first_key, noise_key = jax.random.split(key)
    shape = (*obs.shape[:-1], agent.nets.actor.action_dim)

    def denoise(a, x):
        p, noise = x
        epsilon = agent.nets.actor.apply(actor, obs, a, p["t"])
        a_0 = jnp.clip((a - jnp.sqrt(1.0 - p["abar"]) * epsilon) / jnp.sqrt(p["abar"]), -1.0, 1.0)
        return p["of_a_0"] * a_0 + p["of_a_t"] * a + p["std"] * noise, None

    noise = jax.random.normal(noise_key, (len(abar), *shape))
    a, _ = jax.lax.scan(denoise, jax.random.normal(first_key, shape), (posterior, noise), unroll=5)
    return jnp.clip(a, -1.0, 1.0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q(s, a))^2, a' of the target policy (eq. 4); summed over the critics.

    With max_q_backup the maximum over 10 a', for each target critic.
    """
    next_obs = jnp.broadcast_to(batch.next_obs, (10 if args.max_q_backup else 1, *batch.next_obs.shape))
    next_action = sample_actions(agent, agent.target_actor, next_obs, key, args)
    target_q = q_values(agent.nets.critic, agent.target_critic, next_obs, next_action).max(1).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def diffusion_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """L_d = |z - epsilon(sqrt(abar_t) a + sqrt(1 - abar_t) z, s, t)|^2, t uniform (eq. 2); mean over dimensions."""
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, (args.batch_size,), 0, args.diffusion_steps)
    abar = jnp.asarray(alpha_bars(args.diffusion_steps), jnp.float32)[t][:, None]
    noise = jax.random.normal(noise_key, batch.action.shape)
    noised = jnp.sqrt(abar) * batch.action + jnp.sqrt(1.0 - abar) * noise
    epsilon = agent.nets.actor.apply(actor, batch.obs, noised, t)
    chex.assert_equal_shape([epsilon, noise])
    return ((epsilon - noise) ** 2).mean()


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """L_d - eta mean Q_i(s, a) / mean |Q_j(s, a)|, a of the whole chain, i and j != i drawn at random (eq. 3)."""
    diffusion_key, sample_key, critic_key = jax.random.split(key, 3)
    bc = diffusion_loss(actor, agent, batch, diffusion_key, args)
    pi = sample_actions(agent, actor, batch.obs, sample_key, args)
    chex.assert_equal_shape([pi, batch.action])
    q = q_values(agent.nets.critic, agent.critic, batch.obs, pi)
    i = jax.random.randint(critic_key, (), 0, 2)
    lam = args.eta / jax.lax.stop_gradient(jnp.abs(q[1 - i]).mean())
    return bc - lam * q[i].mean(), {"bc_loss": bc, "q_pi": q.mean()}


def optimizer(learning_rate, args: Args) -> optax.GradientTransformation:
    """Adam on clipped gradients."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(learning_rate))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(NoiseNet(args.hidden_dims, spec.action_dim, args.time_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, action, 0)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optimizer(args.actor_lr, args).init(actor),
        critic_opt=optimizer(args.critic_lr, args).init(critic),
        step=jnp.int32(0),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, then of the policy with the new critics, and Polyak steps of the targets."""
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optimizer(args.critic_lr, args).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    moves = (agent.step >= args.target_start) & (agent.step % args.target_every == 0)
    agent = agent.replace(
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, jnp.where(moves, args.tau, 0.0)),
        step=agent.step + 1,
    )
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of n_candidates samples one, drawn with probability softmax(min_i target Q_i)."""
    sample_key, choice_key = jax.random.split(key)
    obs = jnp.broadcast_to(obs, (args.n_candidates, *obs.shape))
    action = sample_actions(agent, agent.actor, obs, sample_key, args)
    if args.n_candidates == 1:
        return action[0]
    q = q_values(agent.nets.critic, agent.target_critic, obs, action).min(0)
    chosen = jax.random.categorical(choice_key, q, axis=0)
    return jnp.take_along_axis(action, chosen[None, :, None], axis=0)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def reward_map(data: Dataset, tuning: str) -> tuple[float, float]:
    """Scale and shift of the rewards in training."""
    if tuning == "antmaze":
        return 4.0, -2.0
    if tuning == "normalize":
        data.reward_range()  # refuses equal rewards
        return 1.0 / float(data.reward.std()), -float(data.reward.mean() / data.reward.std())
    return 1.0, 0.0


def main(args: Args) -> None:
    if args.time_dim < 2:
        raise InputError("--time-dim must be at least 2: a sine and a cosine.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(*reward_map(data, args.reward_tuning))
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
