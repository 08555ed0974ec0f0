"""SAC: Soft Actor-Critic with automatic entropy tuning; this collection's data collector.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905 (first version ICML
2018, arXiv 1801.01290). An off-policy actor-critic that maximises return plus the policy's entropy: the
critic's target contains the entropy of the next action (eq. 3), the actor descends the KL divergence
to the critic's Boltzmann distribution (eq. 7), and the temperature keeps the entropy at -dim(A) (eq. 18).

The first --learning-starts steps take uniform random actions; one update follows each step after them.

Choose it when you have an environment and no data, or want to collect some.

Parity: equal to pranz24's pytorch-soft-actor-critic, update for update, but for the temperature's loss and the form
of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- weights begin as Flax's do (pranz24's: Xavier's, uniform);
- one environment per lane, all lanes stepped together; one update per environment step, as in the paper,
  in one compiled call that also inserts, samples and acts;
- updates begin after 5,000 uniform steps (10,000 in Minari's generation scripts, whose other settings these are).

    python algorithms/online/sac.py --env Pendulum-v1 --env-steps 20000 --seeds 4
    python algorithms/online/sac.py --env Hopper-v5 --env-steps 1000000 --seeds 2 --save-policy-every 10000
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
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, Fraction, OnlineArgs, Positive, Size, hyperparameters
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "Pendulum-v1"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    learning_starts: Count = 5_000
    """Environment steps before the first online update."""
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
    sample_actions: bool = False
    """Evaluate with sampled actions instead of the mean's."""
    save_policy_every: Count = 0
    """Environment steps between two snapshots of the policy in <out>/policies (0: none)."""


PRESETS: dict[str, dict[str, Any]] = {}


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -20.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
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


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Soft Bellman error (eq. 5) to the target of eq. 3 and 6; summed over the two critics."""
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    target_v = target_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], batch.reward.shape)
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """E[alpha log pi(a|s) - min_i Q_i(s, a)], a ~ pi (eq. 7)."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_equal_shape([q, log_prob, batch.reward])
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
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
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


def sample(key, data, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the replay buffer."""
    return replay.sample(key, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One gradient step of the critics, the actor and the temperature."""
    chex.assert_shape(batch.obs, (args.batch_size, *batch.next_obs.shape[1:]))
    critic_key, actor_key = jax.random.split(key)
    adam = optax.adam(args.learning_rate)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = adam.update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = adam.update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, alpha_opt = adam.update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    target = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent.replace(target_critic=target), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's, or sampled ones with --sample-actions."""
    mean, log_std = agent.nets.actor.apply(agent.actor, obs)
    return sample_tanh_gaussian(mean, log_std, key)[0] if args.sample_actions else jnp.tanh(mean)


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def export_policy(agent: Agent) -> dict[str, np.ndarray]:
    """One lane's policy as plain arrays: x = relu(W x + b); mean, log_std from the last two layers."""
    layers = agent.actor["params"]
    n = len(agent.nets.actor.hidden_dims)
    arrays = {}
    for i in range(n + 1):
        arrays[f"W{i}"], arrays[f"b{i}"] = layers[f"Dense_{i}"]["kernel"].T, layers[f"Dense_{i}"]["bias"]
    for mean, log_std in ((f"W{n}", "logstd_W"), (f"b{n}", "logstd_b")):
        arrays[mean], arrays[log_std] = np.split(np.asarray(arrays[mean]), 2)
    return {k: np.asarray(v, np.float32) for k, v in arrays.items()} | {"activation": "relu", "squash": 1}


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=False)
    with Run(__file__, args, task, act) as run:
        agent = run.init(partial(init, spec=task.spec))
        online = Interaction(
            run, None, explore, sample, update,
            warmup=args.learning_starts, random_warmup=True, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            step, every = run.done + run.chunk, args.save_policy_every
            if every and step // every > run.done // every:  # before `log`, after which a signal ends the run
                (run.out / "policies").mkdir(exist_ok=True)
                for i in range(len(run.settings)):
                    policy = export_policy(jax.tree.map(lambda x, i=i: x[i], agent))
                    np.savez_compressed(run.out / "policies" / f"lane{i}-step{step:08d}.npz", **policy)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
