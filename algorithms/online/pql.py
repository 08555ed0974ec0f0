"""PQL: Parallel Q-Learning, DDPG on many environments, whose noise goes from faint to strong.

Li, Chen, Hong, Ajay and Agrawal, "Parallel Q-Learning: Scaling Off-policy Reinforcement Learning under Massively
Parallel Simulation", ICML 2023, arXiv 2307.12983. Collection, critics and actor are three processes that run at fixed
ratios of speed: --critic-per-step and --actor-per-step updates for every step of all environments. Each learner works
with the other's networks as they were at the beginning of the step. The critics are DDPG's with double Q, n-step
targets and no target actor; environment i of N explores with Gaussian noise of the i-th of N standard deviations
between --noise-min and --noise-max, so that none has to be chosen (mixed exploration, section 3.3).

The first --learning-starts steps take uniform random actions. A step of a lane's N environments is N environment
steps; the total and all intervals are rounded up to whole steps of all environments.

Choose it when the environment is written in JAX and its steps cost next to nothing.

Parity: equal to the authors' code, update for update, but for 1e-6 that it adds to the norm of gradients that are
clipped (results/parity.md).

Deviations from the paper:
- one compiled loop in place of three processes: ratios are exact, and a learner waits for the step to end;
- n-step sums end where an episode does, with that power of the discount; the released code goes on across a time
  limit into the next episode;
- both learners draw from one replay buffer, where the actor's has a copy of its states;
- observations are clipped to 5 standard deviations in the environment as in the learners;
- weights begin as Flax's do (PyTorch's);
- no distributional critics (PQL-D).

    python algorithms/online/pql.py --env PointMedium-v0 --n-envs 64 --learning-starts 2048 --env-steps 320000 --seeds 8
    python algorithms/online/pql.py --n-envs 256 --noise-min 0.4 --noise-max 0.4 --env-steps 2560000
"""

import dataclasses
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
from shared.arguments import Count, EnvSteps, Float, Fraction, OnlineArgs, Size, hyperparameters
from shared.errors import InputError
from shared.jax_envs import JaxEnv, Moved, begin_envs, require_jax_env, step_envs
from shared.replay import Replay, init_replay
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import FIELDS, Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "phys2d/Pendulum-v0"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    n_envs: Size = 4_096
    """Environments of each lane, stepped together: N steps at once."""
    critic_per_step: Size = 8
    """Updates of the critics per step of all environments."""
    actor_per_step: Size = 4
    """Updates of the actor per step of all environments."""
    noise_min: Float = 0.05
    """Standard deviation of the exploration noise in the first environment (actions are in [-1, 1])."""
    noise_max: Float = 0.8
    """Standard deviation of the exploration noise in the last environment (one alone has --noise-min)."""
    learning_starts: Count = 131_072
    """Environment steps before the first online update."""
    n_step: Size = 3
    """Rewards that a target sums before it bootstraps."""
    batch_size: Size = 8_192
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    """Hidden layers of every network that has no argument of its own for them."""
    actor_lr: Float = 5e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 5e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    weight_decay: Float = 0.01
    """Weights lose this share of the step size at each update (AdamW)."""
    max_grad_norm: Float = 0.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.05
    """Polyak step of the target networks, in [0, 1]."""
    policy_noise: Float = 0.8
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.2
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    env_steps: EnvSteps = 102_400_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    buffer_size: Size = 5_000_000
    """Transitions kept in each lane's replay buffer."""
    log_every: Size = 409_600
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 4_096_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    checkpoint_every: Size = 40_960_000
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""


PRESETS: dict[str, dict[str, Any]] = {}


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.elu(nn.Dense(size)(x))
        return nn.tanh(nn.Dense(self.action_dim)(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.elu(nn.Dense(size)(x))
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
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    obs_mean: jax.Array
    """[O] of all observations so far"""
    obs_var: jax.Array
    """[O]"""
    obs_count: jax.Array
    """[] how many"""


class Window(NamedTuple):
    """The last n steps of N environments [n, N, ...], the oldest first."""

    obs: jax.Array
    action: jax.Array
    moved: Moved


class Loop(NamedTuple):
    """What a lane has beside its agent."""

    env_state: Any
    """[N, ...]"""
    obs: jax.Array
    """[N, O]"""
    window: Window
    replay: Replay


def whole_steps(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole steps of all environments."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // args.n_envs) * args.n_envs for n in names})


def first_update(args: Args) -> int:
    """Steps of all environments before the first update: the warm-up, and until n-step transitions are whole."""
    return max(-(-args.learning_starts // args.n_envs), args.n_step - 1)


def normalize(agent: Agent, obs):
    """[..., O] by the running mean and variance, within [-5, 5]."""
    return jnp.clip((obs - agent.obs_mean) / jnp.sqrt(agent.obs_var + 1e-4), -5.0, 5.0)


def observe(agent: Agent, obs) -> Agent:
    """The running mean and variance with `obs` [N, O] among them."""
    n, count = len(obs), agent.obs_count + len(obs)
    shift = obs.mean(0) - agent.obs_mean
    squares = agent.obs_var * agent.obs_count + obs.var(0) * n + shift**2 * agent.obs_count * n / count
    return agent.replace(obs_mean=agent.obs_mean + shift * n / count, obs_var=squares / count, obs_count=count)


def n_step_transitions(window: Window, args: Args) -> Batch:
    """[N] from the oldest step of the window to its newest, or to the first end of an episode."""
    moved = window.moved
    goes_on = jnp.cumprod(1.0 - (moved.terminal | moved.truncated)[:-1], axis=0)
    inside = jnp.concatenate([jnp.ones((1, goes_on.shape[1])), goes_on])  # [n, N]: no end before this step
    power = args.discount ** jnp.arange(args.n_step, dtype=jnp.float32)
    n_steps = inside.sum(0)
    last = lambda x: x[n_steps.astype(jnp.int32) - 1, jnp.arange(x.shape[1])]  # noqa: E731
    return Batch(
        obs=window.obs[0],
        action=window.action[0],
        reward=args.reward_scale * (power[:, None] * inside * moved.reward).sum(0),
        terminal=last(moved.terminal),
        next_obs=last(moved.next_obs),
        n_steps=n_steps,
    )


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(R_n + gamma^n min_i target Q_i(s_n, pi(s_n) + clipped noise) - Q(s, a))^2; summed over the two critics."""
    obs, next_obs = normalize(agent, batch.obs), normalize(agent, batch.next_obs)
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = jnp.clip(agent.nets.actor.apply(agent.actor, next_obs) + noise, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, next_obs, next_action).min(0)
    y = batch.reward + args.discount**batch.n_steps * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, obs, args: Args):
    """-min_i Q_i(s, pi(s)) of states `obs` [B, O]."""
    obs = normalize(agent, obs)
    q = q_values(agent.nets.critic, agent.critic, obs, agent.nets.actor.apply(actor, obs)).min(0)
    chex.assert_shape(q, (args.batch_size,))
    return -q.mean(), {}


def optimizer(learning_rate, args: Args) -> optax.GradientTransformation:
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    adamw = optax.adamw(learning_rate, weight_decay=args.weight_decay)
    return optax.chain(optax.clip_by_global_norm(largest), adamw)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        actor_opt=optimizer(args.actor_lr, args).init(actor),
        critic_opt=optimizer(args.critic_lr, args).init(critic),
        obs_mean=jnp.zeros(spec.obs_shape),
        obs_var=jnp.ones(spec.obs_shape),
        obs_count=jnp.float32(1e-4),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics, and of their targets."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optimizer(args.critic_lr, args).update(grads, agent.critic_opt, agent.critic)
    critic = optax.apply_updates(agent.critic, updates)
    target = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(critic=critic, target_critic=target, critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, obs, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor on states [B, O]."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, obs, args)
    updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt, agent.actor)
    return agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt), {
        "actor_loss": loss,
        **info,
    }


def sample(key, replay: Replay, args: Args) -> tuple[Batch, jax.Array]:
    """[V, B] transitions for the critics and [P, B, O] states for the actor, uniform over the replay buffer."""
    critic_key, actor_key = jax.random.split(key)
    batch = replay.sample(critic_key, (args.critic_per_step, args.batch_size))
    return batch, replay.sample(actor_key, (args.actor_per_step, args.batch_size)).obs


def update(agent: Agent, batch: Batch, obs, key, args: Args) -> tuple[Agent, dict]:
    """Both learners beside each other on [V, B] and [P, B]: each sees the other's networks of before."""
    keys = jax.random.split(key, args.critic_per_step)
    critics, info_q = jax.lax.scan(lambda agent, x: update_critic(agent, *x, args), agent, (batch, keys))
    actors, info_pi = jax.lax.scan(lambda agent, obs: update_actor(agent, obs, args), agent, obs)
    agent = critics.replace(actor=actors.actor, actor_opt=actors.actor_opt)
    return agent, jax.tree.map(jnp.mean, {**info_q, **info_pi})


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, normalize(agent, obs))


def explore(agent: Agent, obs, key, args: Args):
    """Noisy actions [N, A] in [-1, 1]: environment i has noise of the i-th strength."""
    action = act(agent, obs, None, args)
    std = jnp.linspace(args.noise_min, args.noise_max, len(obs))[:, None]
    return jnp.clip(action + std * jax.random.normal(key, action.shape), -1.0, 1.0)


def begin(key, args: Args, env: JaxEnv, spec: Spec) -> tuple[Any, jax.Array, Window]:
    """One lane's environments at their first observations, and no steps yet."""
    env_state, obs = begin_envs(env, key, args.n_envs)
    shape = (args.n_step, args.n_envs)
    zero, no = jnp.zeros(shape), jnp.zeros(shape, bool)
    actions = jnp.zeros((*shape, spec.action_dim))
    nothing = jnp.zeros((*shape, *spec.obs_shape))
    return env_state, obs, Window(nothing, actions, Moved(nothing, zero, no, no))


def interact(agent: Agent, loop: Loop, t, key, args: Args, env: JaxEnv) -> Loop:
    """Step t of all environments of one lane; the oldest step of the window goes into the replay buffer."""
    act_key, env_key = jax.random.split(key)

    def at_random(key):
        return jax.random.uniform(key, loop.window.action.shape[1:], minval=-1.0, maxval=1.0)

    policy = partial(explore, agent, loop.obs, args=args)
    action = jax.lax.cond(t * args.n_envs < args.learning_starts, at_random, policy, act_key)
    env_state, obs, moved = step_envs(env, loop.env_state, action, env_key)
    new = Window(loop.obs, action, moved)
    window = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), loop.window, new)
    whole = jnp.broadcast_to(t >= args.n_step - 1, args.n_envs)
    return Loop(env_state, obs, window, loop.replay.extend(n_step_transitions(window, args), whole))


def train(carry: tuple[Agent, Loop], keys, args: Args, start, env: JaxEnv) -> tuple[tuple[Agent, Loop], dict]:
    """One lane from environment step `start` on: a step of all environments for every `n_envs` keys; mean metrics."""

    def step(carry, x):
        (agent, loop), (t, key) = carry, x
        act_key, sample_key, update_key = jax.random.split(key, 3)
        agent = observe(agent, loop.obs)
        loop = interact(agent, loop, t, act_key, args, env)

        def learn(agent):
            return update(agent, *sample(sample_key, loop.replay, args), update_key, args)

        def wait(agent):
            return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, agent)[1])

        agent, metrics = jax.lax.cond(t >= first_update(args), learn, wait, agent)
        return (agent, loop), metrics

    keys = keys[:: args.n_envs]
    t = start // args.n_envs + jnp.arange(len(keys))
    carry, metrics = jax.lax.scan(step, carry, (t, keys))
    learned = jnp.maximum((t >= first_update(args)).sum(), 1)
    return carry, jax.tree.map(lambda x: x.sum() / learned, metrics)


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=False)
    env, args = require_jax_env(task), whole_steps(args)
    capacity = min(args.buffer_size, args.env_steps)
    if capacity < args.n_envs:
        raise InputError(f"--buffer-size {args.buffer_size} is less than one step of {args.n_envs} environments.")
    with Run(__file__, args, task, act, unit=args.n_envs) as run:
        if first_update(args) * args.n_envs >= args.env_steps:
            asked = f"--learning-starts {args.learning_starts:,} and --n-step {args.n_step}"
            run.note(f"{asked}: nothing is learned in {args.env_steps:,} environment steps.")
        agent = run.init(partial(init, spec=task.spec))
        begin_lanes = run.over_lanes(partial(begin, env=env, spec=task.spec), in_axes=(0, 0))
        replay = init_replay(len(run.padded_settings), capacity, task.spec, run.sharding, (*FIELDS, "n_steps"))
        loop = Loop(*begin_lanes(run.step_keys(run.total), run.lane_args), replay)
        agent, loop = run.restore(agent, loop)
        train_lanes = run.over_lanes(partial(train, env=env), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            (agent, loop), metrics = train_lanes((agent, loop), keys, run.lane_args, run.done)
            steps = max(0, (run.done + run.chunk) // args.n_envs - first_update(args))
            run.log(agent, metrics if steps else {}, updates=steps * args.critic_per_step, state=loop)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
