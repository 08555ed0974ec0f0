"""OFQL: One-Step Flow Q-Learning.

Nguyen and Yoo, "One-Step Flow Q-Learning: Addressing the Diffusion Policy Bottleneck in Offline Reinforcement
Learning", ICLR 2026, arXiv 2508.13904. Diffusion-QL with another policy: on the straight path a_t = (1 - t) a + t z
from the data (t = 0) to noise (t = 1, eq. 8), the network learns the average velocity u(a_t, r, t) between two times
(eq. 10) instead of the velocity at one, so that one call, z - u(z, 0, 1), is an action (eq. 12). Its target (eq. 15)
comes from the mean-flow identity (eq. 13), with one Jacobian-vector product. Nothing is distilled, and Q is
differentiated through one network call.

--reward-tuning: antmaze is 4 (r - 0.5); normalize is to mean 0 and standard deviation 1.

Choose it when the data's actions have several modes, acting must take one network call, and nothing shall be
distilled.

Deviations from the paper:
- the paper searches eta over 0.001, 0.01, 0.1, 0.3 and 0.5 for each dataset and does not say what it found;
  the presets take only the other settings from Diffusion-QL, as the paper does; 0.1 is ours: with 0.3 the values
  grow without bound on hopper-medium-replay (results/claims/ofql.md);
- the loss is a mean over action dimensions, as Diffusion-QL's code has it, so that eta means the same as there;
- acting is Diffusion-QL's: of 50 candidates one with probability softmax(Q); the paper follows a protocol that also
  scales Q for each task. `--n-candidates 1` acts with one network call;
- a time's embedding has 64 numbers, as in CleanDiffuser's Diffusion-QL; in the authors' own it has 16, and how many the
  paper's has is not known to us;
- biases start at zero; the last policy is evaluated;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/generative/ofql.py --dataset hopper-medium-replay --seeds 4 --updates 50000
    python algorithms/generative/ofql.py --dataset pointmaze-umaze --seeds 4 --eta 0.01 0.1 0.3 0.5
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
    eta: Float = 0.1
    """eta: weight of the normalised Q against cloning; 0 clones."""
    flow_ratio: Fraction = 0.5
    """lambda: probability of r = t, plain flow matching; 0 and 1 fail (table 3)."""
    time_mean: Float = -0.4
    """Times are the sigmoid of Gaussians of this mean ..."""
    time_std: Float = 1.0
    """... and this standard deviation."""
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
    time_dim: Size = 64
    """Size of the embedding of a time (of a diffusion step)."""
    reward_tuning: Literal["none", "antmaze", "normalize"] = "none"
    """How rewards are changed for training, suite by suite: see above."""


_antmaze = {"reward_tuning": "antmaze", "max_q_backup": True, "eval_episodes": 100}
_pen = {"reward_tuning": "normalize", "actor_lr": 3e-5, "eval_episodes": 100}
_kitchen = {"eval_episodes": 100}
PRESETS = {  # Diffusion-QL's, but eta and updates: all are trained for a million
    "halfcheetah-medium": {"max_grad_norm": 9.0},
    "hopper-medium": {"max_grad_norm": 9.0},
    "walker2d-medium": {"max_grad_norm": 1.0},
    "halfcheetah-medium-replay": {"max_grad_norm": 2.0},
    "hopper-medium-replay": {"max_grad_norm": 4.0},
    "walker2d-medium-replay": {"max_grad_norm": 4.0},
    "halfcheetah-medium-expert": {"max_grad_norm": 7.0},
    "hopper-medium-expert": {"max_grad_norm": 5.0},
    "walker2d-medium-expert": {"max_grad_norm": 5.0},
    "antmaze-umaze": {**_antmaze, "max_q_backup": False, "max_grad_norm": 2.0},
    "antmaze-umaze-diverse": {**_antmaze, "max_grad_norm": 3.0},
    "antmaze-medium-play": {**_antmaze, "max_grad_norm": 2.0, "actor_lr": 1e-3},
    "antmaze-medium-diverse": {**_antmaze, "max_grad_norm": 1.0},
    "antmaze-large-play": {**_antmaze, "max_grad_norm": 10.0},
    "antmaze-large-diverse": {**_antmaze, "max_grad_norm": 7.0},
    "pen-human": {**_pen, "max_grad_norm": 7.0},
    "pen-cloned": {**_pen, "max_grad_norm": 8.0},
    "kitchen-complete": {**_kitchen, "max_grad_norm": 9.0},
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


class VelocityNet(nn.Module):
    """u(a_t, s, r, t): average velocity [..., A] from t back to r, both [..., 1]; a_t is [..., A]."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    time_dim: int

    @nn.compact
    def __call__(self, obs, noised, r, t):
        times = []
        for time in (t, r):
            time = mish(nn.Dense(2 * self.time_dim, kernel_init=dense_init)(sinusoidal(time[..., 0], self.time_dim)))
            times.append(nn.Dense(self.time_dim, kernel_init=dense_init)(time))
        times = jnp.broadcast_to(jnp.concatenate(times, axis=-1), (*noised.shape[:-1], 2 * self.time_dim))
        x = jnp.concatenate([noised, times, obs], axis=-1)
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
    actor: VelocityNet
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


def sample_actions(agent: Agent, actor, obs, key):
    """Actions [..., A] in one step, z - u(z, 0, 1), z ~ N(0, 1), clipped to [-1, 1] (eq. 12)."""
    noise = jax.random.normal(key, (*obs.shape[:-1], agent.nets.actor.action_dim))
    velocity = agent.nets.actor.apply(actor, obs, noise, jnp.zeros(1), jnp.ones(1))
    return jnp.clip(noise - velocity, -1.0, 1.0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q(s, a))^2, a' of the target policy (eq. 17); summed over them.

    With max_q_backup the maximum over 10 a', for each target critic.
    """
    next_obs = jnp.broadcast_to(batch.next_obs, (10 if args.max_q_backup else 1, *batch.next_obs.shape))
    next_action = sample_actions(agent, agent.target_actor, next_obs, key)
    target_q = q_values(agent.nets.critic, agent.target_critic, next_obs, next_action).max(1).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def draw_times(key, args: Args):
    """r <= t, both [B, 1]: two logit-normal draws in order, or r = t with probability flow_ratio."""
    time_key, equal_key = jax.random.split(key)
    time = jax.nn.sigmoid(args.time_mean + args.time_std * jax.random.normal(time_key, (2, args.batch_size, 1)))
    r, t = time.min(0), time.max(0)
    return jnp.where(jax.random.uniform(equal_key, t.shape) < args.flow_ratio, t, r), t


def flow_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """|u(a_t, r, t) - sg(v - (t - r) du/dt)|^2, v = z - a (eq. 14 and 15); mean over dimensions.

    du/dt is the derivative along the path: of a_t it is v, of r zero, of t one.
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.action.shape)
    r, t = draw_times(time_key, args)
    velocity = noise - batch.action
    u, du_dt = jax.jvp(
        lambda a_t, r, t: agent.nets.actor.apply(actor, batch.obs, a_t, r, t),
        ((1.0 - t) * batch.action + t * noise, r, t),
        (velocity, jnp.zeros_like(r), jnp.ones_like(t)),
    )
    chex.assert_equal_shape([u, du_dt, velocity])
    return ((u - jax.lax.stop_gradient(velocity - (t - r) * du_dt)) ** 2).mean()


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """L_flow - eta mean Q_i(s, a) / mean |Q_j(s, a)|, a in one step, i and j != i drawn at random (eq. 17)."""
    flow_key, sample_key, critic_key = jax.random.split(key, 3)
    bc = flow_loss(actor, agent, batch, flow_key, args)
    pi = sample_actions(agent, actor, batch.obs, sample_key)
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
    nets = Networks(VelocityNet(args.hidden_dims, spec.action_dim, args.time_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, action, jnp.zeros(1), jnp.ones(1))
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
    action = sample_actions(agent, agent.actor, obs, sample_key)
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
    if np.min(args.time_std) <= 0.0:
        raise InputError(f"--time-std must be above 0, not {args.time_std}: all times would be one.")
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
