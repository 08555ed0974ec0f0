"""RLPD: Reinforcement Learning with Prior Data.

Ball, Smith, Kostrikov and Levine, "Efficient Online Reinforcement Learning with Offline Data", ICML 2023,
arXiv 2302.02948. SAC from scratch that has a dataset beside its replay buffer: every minibatch is half data and
half experience (section 4.1), the critics have LayerNorm, which bounds what they extrapolate (section 4.2), and an
ensemble of them takes many updates per environment step (section 4.3; algorithm 1). There is no pre-training.

The first --learning-starts steps take uniform random actions. Every environment step is followed by --utd critic
updates (G), each on a minibatch of its own, and one of actor and temperature on the last. --subset-size is Z.

Choose it when you have a dataset and an environment from the start: the first hybrid method to try.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks; those of the data are not
  moved away from +-1, since no density of a data action is ever taken.

    python algorithms/hybrid/rlpd.py --dataset hopper-medium-replay --seeds 4
    python algorithms/hybrid/rlpd.py --dataset hopper-medium-replay --seeds 4 --online-share 1   # without the data
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
    EnvSteps,
    Float,
    Fraction,
    HybridArgs,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, concatenate
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(HybridArgs):
    env_steps: EnvSteps = 250_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    learning_starts: Count = 5_000
    """Environment steps before the first online update."""
    utd: Size = 20
    """Gradient updates of the critics per environment step."""
    online_share: StaticFraction = 0.5
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    subset_size: Size = 2
    """Random critics, drawn anew for every update, whose least target value is bootstrapped."""
    backup_entropy: bool = True
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    critic_layer_norm: bool = True
    """Layer normalisation in the critics."""
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
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_sparse = {"backup_entropy": False, "hidden_dims": (256, 256, 256)}
PRESETS = {
    "antmaze": {**_sparse, "subset_size": 1, "reward_shift": -1.0, "env_steps": 300_000},
    "pointmaze": {**_sparse, "subset_size": 1, "reward_shift": -1.0},  # ours, after AntMaze: the paper has no PointMaze
    # the paper's hands pay -1 until success; the dense rewards under these names take the same settings
    **dict.fromkeys(("pen-", "door-", "relocate-"), {**_sparse, "env_steps": 1_000_000}),
}

dense_init = nn.initializers.xavier_uniform()


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=dense_init)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -20.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.Dense(size, kernel_init=dense_init)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


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
    """(r + gamma (min over Z target critics - alpha log pi) - Q_i)^2, mean over batch and ensemble (algorithm 1)."""
    subset_key, action_key = jax.random.split(key)
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), action_key)
    targets = random_subset(agent.target_critic, subset_key, args)
    target_v = q_values(agent.nets.critic, targets, batch.next_obs, next_action).min(0)
    if args.backup_entropy:
        target_v = target_v - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """E[alpha log pi(a|s) - mean_i Q_i(s, a)], a ~ pi (algorithm 1): the mean, not the minimum."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).mean(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """alpha (H(pi) + dim(A) / 2): the target entropy is half of SAC's."""
    return jnp.exp(log_alpha) * (entropy + 0.5 * action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims, args.critic_layer_norm))
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


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[G, B]: in every minibatch the stated share from the dataset, the rest from the replay buffer."""
    data_key, replay_key = jax.random.split(key)
    offline = round((1.0 - args.online_share) * args.batch_size)
    old = data.sample(data_key, (args.utd, offline))
    new = replay.sample(replay_key, (args.utd, args.batch_size - offline))
    return concatenate(old, new, axis=1)


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


def main(args: Args) -> None:
    if args.subset_size > args.n_critics:
        raise InputError(f"--subset-size {args.subset_size} is more than --n-critics {args.n_critics}.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, transitions, explore, sample, update,
            warmup=args.learning_starts, random_warmup=True, updates_per_step=args.utd, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
