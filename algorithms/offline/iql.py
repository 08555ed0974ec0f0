"""IQL: Implicit Q-Learning.

Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022,
arXiv 2110.06169. The value of the best action *in the data* is an upper expectile of Q over the dataset's
actions (eq. 5), so that no unseen action is ever evaluated; Q regresses to r + gamma V(s') (eq. 6), and the
policy is cloned with weights exp(beta (Q - V)) (eq. 7).

The actor's step size decays to zero over the run as a cosine.

The paper has no images. Here an encoder (V-D4RL's: Lu et al., TMLR 2023, arXiv 2206.04779) is trained by the loss of
Q alone; V and the actor learn from its features, and their gradients stop there.

Presets are the authors'. CORL's (arXiv 2210.07105) all normalise observations and differ most on two of hopper's sets,
with a deterministic policy and slower targets: --preset corl-hopper-medium, corl-hopper-medium-replay; and on Adroit,
with a higher expectile and six times the inverse temperature: --preset corl-adroit.

Choose it when you want a robust first method on any dataset, sparse rewards too, that never asks for an unseen
action.

Parity: equal to the authors' code, update for update, and to CORL's but for the order of the steps (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- the return range that rewards are divided by is taken over the dataset's own episodes.

    python algorithms/offline/iql.py --dataset hopper-medium --seeds 4 --updates 50000
    python algorithms/offline/iql.py --dataset pointmaze-umaze --seeds 5 --expectile 0.5 0.7 0.9
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
from shared.arguments import (
    Count,
    Dropout,
    Expectile,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    StaticFraction,
    by_name,
    hyperparameters,
)
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    deterministic: bool = False
    """Deterministic policy, cloned with a weighted squared error; else a Gaussian's log-likelihood."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    random_shift: Count = 0
    """Pixels by which images are moved at random in training, at most (DrQ uses 4); 0: they are not."""
    corruption: tuple[str, ...] = ()
    """What is spoilt in the training data: obs, action, reward, dynamics, adversarial_reward."""
    corruption_rate: StaticFraction = 0.3
    """Share of the transitions of which it is spoilt, in [0, 1]."""
    corruption_scale: float = 1.0
    """Size of the noise: standard deviations of the data, for rewards units of 30."""
    corruption_seed: Count = 0
    """Of the corruption, which all lanes share."""


_mujoco = {"expectile": 0.7, "beta": 3.0, "normalize_return": True}
_human = {"expectile": 0.7, "beta": 0.5, "dropout": 0.1}
_corl_adroit = {"expectile": 0.8, "beta": 3.0, "dropout": 0.1, "normalize_obs": True}
_corl_hopper = {"deterministic": True, "tau": 0.001, "normalize_return": True, "normalize_obs": True}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant-"), _mujoco),
    "antmaze": {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0, "eval_episodes": 100},
    "pointmaze": {"expectile": 0.9, "beta": 10.0},  # ours, after AntMaze: the paper has no PointMaze
    **dict.fromkeys(("kitchen", "pen-", "door-", "hammer-", "relocate-"), _human),
    **by_name(dict.fromkeys(("corl-hopper-medium", "corl-hopper-medium-replay"), _corl_hopper)),
    **by_name({"corl-adroit": _corl_adroit}),
}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


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
    """Mean (through tanh) and a log standard deviation that does not depend on the state, None if deterministic."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float
    deterministic: bool

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        if self.deterministic:
            return mean, None
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
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
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    encoder: Any = None
    """Of images; None: observations are vectors."""
    encoder_opt: optax.OptState = None


def encode(agent: Agent, encoder, obs):
    """What the networks see: features of images [B, 50], vectors as they are."""
    return obs if encoder is None else agent.nets.encoder.apply(encoder, obs)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped (eq. 7); or |pi(s) - a|^2 for -log pi."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    if args.deterministic:
        log_prob = -((mean - batch.action) ** 2).sum(-1)
    else:
        action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
        log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2 (eq. 6); summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor = Actor(args.hidden_dims, spec.action_dim, args.dropout, args.deterministic)
    nets = Networks(actor, Critic(args.hidden_dims), Encoder())
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    encoder, encoder_opt = None, None
    if spec.images:
        actor_key, encoder_key = jax.random.split(actor_key)
        encoder = nets.encoder.init(encoder_key, obs)
        encoder_opt, obs = optax.adam(args.critic_lr).init(encoder), nets.encoder.apply(encoder, obs)
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
        encoder=encoder,
        encoder_opt=encoder_opt,
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, then the actor with the new V, then Q (and the encoder of images) with the new V."""
    obs, next_obs = (encode(agent, agent.encoder, x) for x in (batch.obs, batch.next_obs))
    seen = batch._replace(obs=obs, next_obs=next_obs)
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, seen, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, seen, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    def loss_of(critic, encoder):
        return critic_loss(critic, agent, seen._replace(obs=encode(agent, encoder, batch.obs)), args)

    grad = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss_q, info_q), (grads, encoder_grads) = grad(agent.critic, agent.encoder)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    if agent.encoder is not None:
        updates, encoder_opt = optax.adam(args.critic_lr).update(encoder_grads, agent.encoder_opt)
        agent = agent.replace(encoder=optax.apply_updates(agent.encoder, updates), encoder_opt=encoder_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, encode(agent, agent.encoder, obs))[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False, images=True)
    data = data.corrupt(args.corruption, args.corruption_rate, args.corruption_scale, args.corruption_seed)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions(random_shift=args.random_shift))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
