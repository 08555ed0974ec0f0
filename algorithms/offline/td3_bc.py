"""TD3+BC: TD3 with a behaviour-cloning term in the actor's loss.

Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021, arXiv 2106.06860.
The actor maximises lambda Q(s, pi(s)) - (pi(s) - a)^2 (eq. 3), with lambda = alpha / mean |Q| so that one
alpha serves rewards of any size (eq. 5); everything else is TD3 (clipped double Q-learning, target policy
smoothing, delayed actor), with normalised observations (eq. 4).

On images it is DrQ+BC of V-D4RL (Lu et al., TMLR 2023, arXiv 2206.04779): an encoder that the critics' loss trains
and at which the actor's gradient stops, without a target of its own, and --random-shift.

Choose it when actions are continuous and you want the simplest and fastest method with a critic.

Parity: equal to CORL's td3_bc.py, update for update (results/parity.md).

Deviations from the paper:
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- of DrQ+BC: padded convolutions, one trunk for actor and critics, 1-step targets, TD3's noise and target actor.

    python algorithms/offline/td3_bc.py --dataset hopper-medium --seeds 4 --updates 50000
    python algorithms/offline/td3_bc.py --dataset hopper-medium --seeds 8 --alpha 1 2.5 4
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
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
    random_shift: Count = 0
    """Pixels by which images are moved at random in training, at most (DrQ uses 4); 0: they are not."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {"antmaze": {"reward_shift": -1.0, "eval_episodes": 100}, "maze2d": {"eval_episodes": 100}}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def patches(x, stride: int):
    """[B, H, W, C] -> [B, H / stride, W / stride, 9 C]: what a padded 3x3 convolution multiplies by its kernel.

    As a product of matrices it is many times faster in a scan on CPU, and needs no grouped one where lanes are vmapped.
    """
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], -1
    )


class Encoder(nn.Module):
    """Images [B, H, W, C] uint8 -> [B, 50]: V-D4RL's four convolutions (padded, so that small images do) and trunk."""

    @nn.compact
    def __call__(self, obs):
        x = obs / 255.0 - 0.5
        for stride in (2, 1, 1, 1):
            x = nn.relu(nn.Dense(32, kernel_init=nn.initializers.orthogonal(jnp.sqrt(2.0)))(patches(x, stride)))
        x = nn.Dense(50, kernel_init=nn.initializers.orthogonal())(x.reshape(len(x), -1))
        return jnp.tanh(nn.LayerNorm()(x))


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
    actor: Actor
    critic: Critic
    encoder: Encoder


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    encoder: Any = None
    """Of images; None: observations are vectors."""
    encoder_opt: optax.OptState = None


def encode(agent: Agent, encoder, obs):
    """What the networks see: features of images [B, 50], vectors as they are."""
    return obs if encoder is None else agent.nets.encoder.apply(encoder, obs)


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
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1| (eq. 3 and 5)."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims), Encoder())
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    encoder, encoder_opt = None, None
    if spec.images:
        actor_key, encoder_key = jax.random.split(actor_key)
        encoder = nets.encoder.init(encoder_key, obs)
        encoder_opt, obs = optax.adam(args.critic_lr).init(encoder), nets.encoder.apply(encoder, obs)
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        encoder=encoder,
        encoder_opt=encoder_opt,
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics, and of the encoder of images, by their loss of its features of obs."""

    def loss_of(critic, encoder):
        obs, next_obs = encode(agent, encoder, batch.obs), encode(agent, agent.encoder, batch.next_obs)
        return critic_loss(critic, agent, batch._replace(obs=obs, next_obs=next_obs), key, args)

    grad = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, info), (grads, encoder_grads) = grad(agent.critic, agent.encoder)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    if agent.encoder is not None:
        updates, encoder_opt = optax.adam(args.critic_lr).update(encoder_grads, agent.encoder_opt)
        agent = agent.replace(encoder=optax.apply_updates(agent.encoder, updates), encoder_opt=encoder_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor (its gradient stops at the encoder), and a Polyak step of all targets."""
    batch = batch._replace(obs=encode(agent, agent.encoder, batch.obs))
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
    return agent.nets.actor.apply(agent.actor, encode(agent, agent.encoder, obs))


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        return transitions.sample(batch_key, args.batch_size), noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False, images=True)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay) as run:
        transitions = run.replicate(data.transitions(random_shift=args.random_shift))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
