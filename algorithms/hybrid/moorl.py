"""MOORL: Meta Offline-Online Reinforcement Learning; SAC in the inner loop, Reptile in the outer one.

Chaudhary, Mondal and Behera, "MOORL: A Framework for Integrating Offline-Online Reinforcement Learning", TMLR 2025,
arXiv 2506.09574. Dataset and replay buffer are two tasks of a meta-learner: one of them is drawn, K steps of plain
SAC on batches from it alone adapt a copy of the meta actor and meta critics, and the meta parameters then move
towards the adapted ones (algorithm 1). They also act. Averaging over the sources stands where other hybrid methods
have large ensembles, many updates per step, pessimism or mixed batches. `--batches` and K = 1 give what it is
compared with: `--batches mixed --inner-steps 1 --reptile-step 1` is SAC on batches half from each source (its critics
layer-normalised but for --no-critic-layer-norm), `--batches online` with the same SAC without data, `--batches
alternate` with the same SAC with alternating sources.

The first --learning-starts steps take uniform random actions.

Choose it when you have a dataset and an environment and can afford neither large ensembles nor many updates per step.

Deviations from the paper:
- one inner step follows each environment step, so that K steps of both make one round of the outer loop; algorithm 1
  makes K inner steps after each environment step: --utd K;
- the outer step is Reptile's, a convex combination of meta and adapted parameters; Adam's state lives on from round to
  round (--reset-optimizer begins it anew), and the temperature is no meta parameter: it is adapted in the inner loop;
- targets follow the meta critics, once per round by 1 - (1 - tau)^K: they move as fast as SAC's and do not jump with
  the source;
- K, the outer step, the probability of the dataset and layer normalisation (behind the ReLU, RLPD has it before) are
  ours: no code was published;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/hybrid/moorl.py --dataset hopper-medium --env-steps 250000 --seeds 4
    python algorithms/hybrid/moorl.py --dataset pendulum-mixed --env-steps 20000 --reptile-step 0.25 0.5 1
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
from shared.arguments import Count, Float, Fraction, HybridArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, concatenate
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(HybridArgs):
    reptile_step: Fraction = 0.5
    """epsilon: how far the meta parameters go towards the adapted ones, in (0, 1]; 1 replaces them."""
    offline_probability: Fraction = 0.5
    """Probability that a round's source is the dataset, in [0, 1]."""
    inner_steps: Size = 5
    """K: updates of a round; all from one source, after which the meta parameters move."""
    utd: Size = 1
    """Gradient updates of the critics per environment step."""
    batches: Literal["alternate", "mixed", "online"] = "alternate"
    """Every batch from the round's source; or half from each; or from the replay buffer alone, without data."""
    reset_optimizer: bool = False
    """Begin every round with Adam's state empty."""
    learning_starts: Count = 5_000
    """Environment steps before the first online update."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_layer_norm: bool = True
    """Layer normalisation in the critics."""
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


PRESETS: dict[str, dict[str, Any]] = {"antmaze": {"reward_shift": -1.0}}  # ours: the usual one, none is published


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
    layer_norm: bool

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return nn.Dense(1)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    meta_actor: Any
    """What acts."""
    meta_critic: Any
    actor: Any
    """Adapted to the round's source."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    source: jax.Array
    """Of the round: 0 is the replay buffer, 1 the dataset."""
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
    """(r + gamma (min_i target Q_i(s', a') - alpha log pi(a'|s')) - Q(s, a))^2; summed over the two critics."""
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    target_v = target_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "q_max": q.max()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """E[alpha log pi(a|s) - min_i Q_i(s, a)], a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """alpha (H(pi) + dim(A)): alpha grows while the entropy is under its target -dim(A)."""
    return jnp.exp(log_alpha) * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims, args.critic_layer_norm))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    log_alpha = jnp.log(args.init_temperature)
    adam = optax.adam(args.learning_rate)
    return Agent(
        nets=nets,
        meta_actor=actor,
        meta_critic=critic,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        source=jnp.int32(0),
        actor_opt=adam.init(actor),
        critic_opt=adam.init(critic),
        alpha_opt=adam.init(log_alpha),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[updates, sources, B]: one batch of either source for every update, or the one there is."""
    online_key, offline_key = jax.random.split(key)
    shape = (args.utd, 1)
    if args.batches == "online":
        return replay.sample(online_key, (*shape, args.batch_size))
    half = args.batch_size // 2
    online, offline = (args.batch_size - half, half) if args.batches == "mixed" else (args.batch_size,) * 2
    batches = replay.sample(online_key, (*shape, online)), data.sample(offline_key, (*shape, offline))
    return concatenate(*batches, axis=2 if args.batches == "mixed" else 1)


def adapt(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One inner step: SAC's gradient step of the critics, the actor and the temperature."""
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
    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent, metrics


def reptile(agent: Agent, args: Args) -> Agent:
    """meta <- meta + epsilon (adapted - meta), from where the next round starts; the targets follow."""
    actor = optax.incremental_update(agent.actor, agent.meta_actor, args.reptile_step)
    critic = optax.incremental_update(agent.critic, agent.meta_critic, args.reptile_step)
    tau = args.tau if args.inner_steps == 1 else 1.0 - (1.0 - args.tau) ** args.inner_steps
    target = optax.incremental_update(critic, agent.target_critic, tau)
    agent = agent.replace(meta_actor=actor, meta_critic=critic, actor=actor, critic=critic, target_critic=target)
    if not args.reset_optimizer:
        return agent
    adam = optax.adam(args.learning_rate)
    return agent.replace(actor_opt=adam.init(actor), critic_opt=adam.init(critic))


def update(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """The inner steps after environment step `t`; a round begins and ends at every `inner_steps` of them."""
    sources = 2 if args.batches == "alternate" else 1
    chex.assert_shape(batch.reward, (args.utd, sources, args.batch_size))
    first = (t - args.learning_starts) * args.utd

    def step(agent, x):
        i, batch, key = x  # i is the same in all lanes, so that both conditions stay conditions
        source_key, inner_key = jax.random.split(key)
        if sources == 2:
            source = jax.lax.cond(
                i % args.inner_steps == 0,
                lambda: jax.random.bernoulli(source_key, args.offline_probability).astype(jnp.int32),
                lambda: agent.source,
            )
            agent = agent.replace(source=source)
        batch = jax.tree.map(lambda x: x[agent.source], batch)
        agent, metrics = adapt(agent, batch, inner_key, args)
        ends = (i + 1) % args.inner_steps == 0
        agent = jax.lax.cond(ends, partial(reptile, args=args), lambda agent: agent, agent)
        return agent, {**metrics, "offline": jnp.float32(agent.source)}

    xs = first + jnp.arange(args.utd), batch, jax.random.split(key, args.utd)
    agent, metrics = jax.lax.scan(step, agent, xs)
    return agent, jax.tree.map(jnp.mean, metrics)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's, of the meta actor."""
    return jnp.tanh(agent.nets.actor.apply(agent.meta_actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A] of the meta actor."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.meta_actor, obs), key)[0]


def main(args: Args) -> None:
    if np.min(args.reptile_step) <= 0.0 or np.max(args.reptile_step) > 1.0:
        raise InputError(f"--reptile-step must lie in (0, 1], not {args.reptile_step}.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, transitions, explore, sample, update,
            warmup=args.learning_starts, random_warmup=True,
            updates_per_step=args.utd, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
