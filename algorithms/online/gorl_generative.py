"""GoRL: PPO in the latent space of a flow, which then learns what PPO did, in turns.

Zhang, Wan, Chen, Yu, Tsang and An, "GoRL: An Algorithm-Agnostic Framework for Online Reinforcement Learning with
Generative Policies", arXiv 2512.02581. The policy is a Gaussian encoder pi(z|s) and a flow g(s, z) from z to the
action. Policy gradients are taken through the encoder's tractable density alone: to PPO the flow is a part of the
environment. At the end of a stage the policy acts for --collect-iterations without learning, a new flow is fitted to
these actions from fresh noise N(0, 1) (flow matching), and a new encoder begins on top of it: near N(0, 1) it does
about what the old policy did, from where it goes on. The first stage's flow is the identity: PPO with a Gaussian.

An iteration has --steps-per-iteration environment steps, by --n-envs environments at once; the total is rounded up
to stages of equally many iterations, intervals to whole ones. With --stages 1 it is PPO. --buffer-size is not used:
nothing but the last iterations of a stage is kept.

Choose it when the environment is written in JAX and a Gaussian's one mode is in PPO's way.

Parity: the flow's fit and its actions are equal to the authors' code, update for update; PPO's iterations are, but for
what the deviations say of advantages, minibatches, statistics and the clipped norm (results/parity.md).

Deviations from the paper:
- the last agent of a stage goes on, not the best by evaluation, and a stage ends by its length, which is that of all
  (the released code: 60, 60, 30 and 30 million steps); the collected steps count as environment steps;
- the flow is fitted for a number of updates on all that was collected, its rows drawn anew for each: nothing is held
  out;
- the diffusion decoder of the paper's other half is not here;
- advantages are computed once an iteration, over all its steps, and bootstrap at time limits (the released code:
  anew for every minibatch of pieces of 30 steps, without the last steps before a limit); they are the lambda return
  minus the value (the released code: r + gamma V_lambda(s') - V(s)), and minibatches are of single steps, not pieces;
- the running statistics of observations move after the update, so that the ratio begins at 1; their variance is that
  of all observations (the released code: the last iteration's sum of squares over the number of all, which shrinks as
  the iterations go on, and what the networks see grows);
- gradients are clipped to the norm exactly (the released code adds 1e-8 to theirs);
- a new episode begins in a state of its own (the released code: in the first one of its environment).

    python algorithms/online/gorl_generative.py --n-envs 16 --steps-per-iteration 1024 --batch-size 128 --seeds 4
    python algorithms/online/gorl_generative.py --env PointForce-v0 --stages 1 --env-steps 39321600 --seeds 4
"""

import dataclasses
import sys
from collections.abc import Callable
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
from shared.arguments import EnvSteps, Float, Fraction, OnlineArgs, Positive, Size, hyperparameters
from shared.errors import InputError
from shared.jax_envs import JaxEnv, begin_envs, require_jax_env, step_envs
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "phys2d/Pendulum-v0"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    stages: Size = 4
    """Encoders, one after the other, each but the first with a flow of its own."""
    n_envs: Size = 2_048
    """Environments of each lane, stepped together: N steps at once."""
    steps_per_iteration: Size = 983_040
    """Environment steps between two updates of the policy, which learns from these alone."""
    collect_iterations: Size = 20
    """Iterations at the end of a stage from which the next flow is learned."""
    ppo_epochs: Size = 16
    """Passes of an update over an iteration's steps."""
    batch_size: Size = 30_720
    """Transitions per gradient update."""
    learning_rate: Float = 1e-3
    """Adam's step size: everything that is learned."""
    first_ratio_clip: Positive = 0.15
    """In the first stage the ratio counts within 1 +- first_ratio_clip."""
    later_ratio_clip: Positive = 0.3
    """In the later stages the ratio counts within 1 +- later_ratio_clip."""
    first_latent_penalty: Float = 5e-4
    """Weight of the encoder's squared mean and deviation in the first stage."""
    latent_penalty: Float = 1e-3
    """Weight of the encoder's squared mean and deviation in the later stages."""
    first_grad_norm: Float = 0.5
    """Global norm that PPO's gradients are clipped to in the first stage; 0: not clipped."""
    later_grad_norm: Float = 1.0
    """Global norm that PPO's gradients are clipped to in the later stages; 0: not clipped."""
    entropy_cost: Float = 0.01
    """Weight of the policy's entropy."""
    value_coefficient: Float = 0.25
    """Weight of the value function's error beside the policy's loss."""
    gae_lambda: Fraction = 0.95
    """lambda of the generalised advantage estimate, in [0, 1]."""
    discount: Fraction = 0.995
    """gamma, in [0, 1]."""
    reward_scale: float = 10.0
    """Rewards are multiplied by this in training."""
    flow_steps: Size = 10
    """Euler steps of the flow policy's integration."""
    decoder_updates: Size = 50_000
    """Gradient updates of a new flow."""
    decoder_batch_size: Size = 8_192
    """Actions per gradient update of the flow."""
    decoder_draws: Size = 8
    """Times and noises that each of them is drawn with."""
    flow_lr: Float = 3e-4
    """Adam's step size: the flow."""
    hidden_dims: tuple[int, ...] = (32, 32, 32, 32)
    """Hidden layers of every network that has no argument of its own for them."""
    value_hidden_dims: tuple[int, ...] = (256, 256, 256, 256, 256)
    """Hidden layers of the value function."""
    decoder_hidden_dims: tuple[int, ...] = (64, 64, 64, 64)
    """Hidden layers of the flow."""
    sample_actions: bool = False
    """Evaluate with sampled actions instead of the mean's."""
    env_steps: EnvSteps = 176_947_200
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 983_040
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 9_830_400
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    checkpoint_every: Size = 9_830_400
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""


PRESETS: dict[str, dict[str, Any]] = {}

dense_init = nn.initializers.lecun_uniform()


class MLP(nn.Module):
    """SiLU network on the concatenated inputs."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.silu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Networks(NamedTuple):
    encoder: MLP
    value: MLP
    decoder: MLP
    """Velocity v(s, x, t) of the flow."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    encoder: Any
    value: Any
    ppo_opt: optax.OptState
    """Of encoder and value function together."""
    obs_mean: jax.Array
    """[O] of all observations so far"""
    obs_var: jax.Array
    """[O]"""
    obs_count: jax.Array
    """[] how many"""
    decoder: Any
    decoder_mean: jax.Array
    """[O] of the observations that the flow was fitted on"""
    decoder_std: jax.Array
    """[O]"""
    decoder_loss: jax.Array
    """[] at the end of the last fit"""


class Steps(NamedTuple):
    """Of N environments [T, N, ...]."""

    batch: Batch
    """Its actions are the latents z."""
    output: jax.Array
    """[T, N, A] the flow's, before the tanh"""
    log_prob: jax.Array
    """[T, N] of z when it was drawn"""
    ended: jax.Array
    """[T, N] 1 where an episode did"""


class Memory(NamedTuple):
    """What the next flow is fitted on."""

    obs: jax.Array
    """[C, O]"""
    output: jax.Array
    """[C, A]"""


class Loop(NamedTuple):
    """What a lane has beside its agent."""

    env_state: Any
    """[N, ...]"""
    obs: jax.Array
    """[N, O]"""
    memory: Memory


def whole_stages(args: Args) -> Args:
    """`args` with iterations of whole steps of all environments, stages and intervals of whole iterations."""
    length = -(-args.steps_per_iteration // args.n_envs) * args.n_envs
    stage = -(-args.env_steps // (length * args.stages)) * length
    names = ("log_every", "eval_every", "checkpoint_every")
    whole = {n: -(-getattr(args, n) // length) * length for n in names}
    return dataclasses.replace(args, steps_per_iteration=length, env_steps=stage * args.stages, **whole)


def stage_iterations(args: Args) -> int:
    """Iterations of a stage."""
    return args.env_steps // args.steps_per_iteration // args.stages


def improves(iteration, args: Args):
    """Whether PPO learns in an iteration; else, at the end of a stage, its actions are kept for the next flow."""
    length = stage_iterations(args)
    return (iteration // length == args.stages - 1) | (iteration % length < length - args.collect_iterations)


def normalize(agent: Agent, obs):
    """[..., O] by the running mean and variance."""
    return (obs - agent.obs_mean) / jnp.sqrt(jnp.maximum(agent.obs_var, 1e-12))


def observe(agent: Agent, obs) -> Agent:
    """The running mean and variance with `obs` [N, O] among them."""
    n, count = len(obs), agent.obs_count + len(obs)
    shift = obs.mean(0) - agent.obs_mean
    squares = agent.obs_var * agent.obs_count + obs.var(0) * n + shift**2 * agent.obs_count * n / count
    return agent.replace(obs_mean=agent.obs_mean + shift * n / count, obs_var=squares / count, obs_count=count)


def gaussian_log_prob(mean, log_std, action):
    """log N(a; mean, std) [...] of actions [..., A]."""
    return jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)


def latent(net: MLP, encoder, obs):
    """Mean and log standard deviation of z [..., A], of normalised observations."""
    mean, scale = jnp.split(net.apply(encoder, obs), 2, axis=-1)
    return mean, jnp.log(jnp.clip(nn.softplus(scale) + 1e-3, 1e-3, 10.0))


def velocity(net: MLP, decoder, obs, x, t):
    """v(s, x, t) [..., A] with t [..., 1] as cosines and sines of t, 2t, 4t, 8t."""
    angles = t * 2.0 ** jnp.arange(4)
    return net.apply(decoder, obs, x, jnp.cos(angles), jnp.sin(angles))


def decode(agent: Agent, obs, z, args: Args):
    """g(s, z) [..., A]: Euler steps from t = 1, where x is z, to t = 0."""
    obs = (obs - agent.decoder_mean) / (agent.decoder_std + 1e-8)

    def euler(x, i):
        t = jnp.full((*x.shape[:-1], 1), 1.0 - i / args.flow_steps)
        return x - velocity(agent.nets.decoder, agent.decoder, obs, x, t) / args.flow_steps, None

    return jax.lax.scan(euler, z, jnp.arange(args.flow_steps))[0]


def surrogate(log_prob, old_log_prob, adv, clip):
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi(a|s) / pi_old(a|s): PPO's, offline and online."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * adv)


def advantages(v, next_v, batch: Batch, ended, args: Args):
    """[T] A_t = d_t + gamma lambda A_{t+1} within an episode, d_t = r + gamma V(s') - V(s) (V(s') counts 0 at its end).

    A time limit ends the sum, not the bootstrapping.
    """
    delta = batch.reward + args.discount * (1.0 - batch.terminal) * next_v - v

    def back(adv, x):
        delta, ended = x
        adv = delta + args.discount * args.gae_lambda * (1.0 - ended) * adv
        return adv, adv

    return jax.lax.scan(back, jnp.zeros(()), (delta, ended), reverse=True)[1]


def encoder_loss(encoder, net: MLP, batch: Batch, old_log_prob, adv, first, args: Args):
    """The surrogate at the latents that were drawn, minus the entropy, plus the penalty of mean and deviation.

    `first` []: whether it is the first stage's; `adv` [B] is normalised here; observations are already.
    """
    clip = jnp.where(first, args.first_ratio_clip, args.later_ratio_clip)
    penalty = jnp.where(first, args.first_latent_penalty, args.latent_penalty)
    mean, log_std = latent(net, encoder, batch.obs)
    log_prob = gaussian_log_prob(mean, log_std, batch.action)
    chex.assert_equal_shape([log_prob, old_log_prob, adv])
    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    entropy = (log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(-1).mean()
    size = (mean**2).mean() + (jnp.exp(log_std) ** 2).mean()
    loss = surrogate(log_prob, old_log_prob, adv, clip).mean() - args.entropy_cost * entropy + penalty * size
    clipped = (jnp.abs(jnp.exp(log_prob - old_log_prob) - 1.0) > clip).mean()
    return loss, {"entropy": entropy, "clipped": clipped, "std": jnp.exp(log_std).mean()}


def value_loss(value, net: MLP, batch: Batch, target):
    """(V(s) - R)^2, R = A + V_old."""
    v = net.apply(value, batch.obs)[..., 0]
    chex.assert_equal_shape([v, target])
    return ((v - target) ** 2).mean(), {"v": v.mean()}


def decoder_loss(decoder, net: MLP, obs, output, key, args: Args):
    """Flow matching: |v(s, x_t, t) - (eps - x)|^2 at x_t = t eps + (1 - t) x, eps ~ N(0, 1) anew: not the z of x."""
    noise_key, time_key = jax.random.split(key)
    shape = (args.decoder_draws, *output.shape)
    noise = jax.random.normal(noise_key, shape)
    t = jax.random.uniform(time_key, (*shape[:-1], 1))
    obs = jnp.broadcast_to(obs, (args.decoder_draws, *obs.shape))
    found = velocity(net, decoder, obs, t * noise + (1.0 - t) * output, t)
    chex.assert_equal_shape([found, noise])
    return ((found - (noise - output)) ** 2).mean(), {}


def descend(loss: Callable, params, opt_state, optimizer: optax.GradientTransformation, *inputs):
    """One gradient step of `loss(params, *inputs)`: the parameters, the optimiser's state, loss and metrics."""
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, *inputs)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, {loss.__name__: value, **info}


def ppo_optimizer(first, args: Args) -> optax.GradientTransformation:
    """Adam after clipping the norm."""
    largest = jnp.where(first, args.first_grad_norm, args.later_grad_norm)
    largest = jnp.where(largest > 0.0, largest, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(args.learning_rate))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane, with the identity for a flow."""
    nets = Networks(
        MLP(args.hidden_dims, 2 * spec.action_dim),
        MLP(args.value_hidden_dims, 1),
        MLP(args.decoder_hidden_dims, spec.action_dim),
    )
    encoder_key, value_key, decoder_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    encoder, value = nets.encoder.init(encoder_key, obs), nets.value.init(value_key, obs)
    decoder = nets.decoder.init(decoder_key, obs, action, jnp.zeros((1, 8)))
    return Agent(
        nets=nets,
        encoder=encoder,
        value=value,
        ppo_opt=ppo_optimizer(True, args).init((encoder, value)),
        obs_mean=jnp.zeros(spec.obs_shape),
        obs_var=jnp.ones(spec.obs_shape),
        obs_count=jnp.float32(1e-4),
        decoder=jax.tree.map(jnp.zeros_like, decoder),
        decoder_mean=jnp.zeros(spec.obs_shape),
        decoder_std=jnp.ones(spec.obs_shape),
        decoder_loss=jnp.float32(0),
    )


def update(agent: Agent, steps: Steps, key, first, args: Args) -> tuple[Agent, dict]:
    """PPO on the steps [T, N] of one iteration; `first`: whether it is of the first stage."""
    nets, value_of = agent.nets, lambda obs: agent.nets.value.apply(agent.value, normalize(agent, obs))[..., 0]
    v, next_v = value_of(steps.batch.obs), value_of(steps.batch.next_obs)
    adv = jax.vmap(partial(advantages, args=args), 1, 1)(v, next_v, steps.batch, steps.ended)
    batch = Batch(obs=normalize(agent, steps.batch.obs), action=steps.batch.action)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch, steps.log_prob, adv, adv + v))
    n, optimizer = args.steps_per_iteration, ppo_optimizer(first, args)
    batches = n // args.batch_size

    def ppo_loss(params, batch, old_log_prob, adv, target):
        loss, info = encoder_loss(params[0], nets.encoder, batch, old_log_prob, adv, first, args)
        loss_v, info_v = value_loss(params[1], nets.value, batch, target)
        return loss + args.value_coefficient * loss_v, {"value_loss": loss_v, **info, **info_v}

    def step(carry, index):
        params, opt, info = descend(ppo_loss, *carry, optimizer, *jax.tree.map(lambda x: x[index], rows))
        return (params, opt), info

    order = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(key, args.ppo_epochs))
    order = order[:, : batches * args.batch_size].reshape(args.ppo_epochs * batches, -1)
    (params, opt), info = jax.lax.scan(step, ((agent.encoder, agent.value), agent.ppo_opt), order)
    agent = agent.replace(encoder=params[0], value=params[1], ppo_opt=opt)
    return observe(agent, steps.batch.obs.reshape(n, -1)), jax.tree.map(jnp.mean, info)


def new_stage(agent: Agent, memory: Memory, key, args: Args, spec: Spec) -> Agent:
    """A new flow, fitted to what the last stage did, and a new encoder and value function."""
    init_key, fit_key = jax.random.split(key)
    obs_dim, action_dim = memory.obs.shape[1], memory.output.shape[1]
    fresh = init(init_key, args, spec)
    mean, std = memory.obs.mean(0), memory.obs.std(0)
    adam, net = optax.adam(args.flow_lr), agent.nets.decoder
    chex.assert_shape([memory.obs, memory.output], [(None, obs_dim), (None, action_dim)])

    def step(carry, key):
        row_key, loss_key = jax.random.split(key)
        row = jax.random.randint(row_key, (args.decoder_batch_size,), 0, len(memory.obs))
        obs = (memory.obs[row] - mean) / (std + 1e-8)
        decoder, opt, info = descend(decoder_loss, *carry, adam, net, obs, memory.output[row], loss_key, args)
        return (decoder, opt), info["decoder_loss"]

    first_key, fit_key = jax.random.split(fit_key)
    blank = (jnp.zeros((1, obs_dim)), jnp.zeros((1, action_dim)), jnp.zeros((1, 8)))
    decoder = net.init(first_key, *blank)
    keys = jax.random.split(fit_key, args.decoder_updates)
    (decoder, _), losses = jax.lax.scan(step, (decoder, adam.init(decoder)), keys)
    last = losses[-max(1, args.decoder_updates // 10) :].mean()
    return fresh.replace(decoder=decoder, decoder_mean=mean, decoder_std=std, decoder_loss=last)


def sample_latents(agent: Agent, obs, key):
    """z ~ pi(.|s) [N, A], and its log density [N]."""
    mean, log_std = latent(agent.nets.encoder, agent.encoder, normalize(agent, obs))
    z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    return z, gaussian_log_prob(mean, log_std, z)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of the encoder's mean, or of sampled latents with --sample-actions."""
    if args.sample_actions:
        z = sample_latents(agent, obs, key)[0]
    else:
        z = latent(agent.nets.encoder, agent.encoder, normalize(agent, obs))[0]
    return jnp.tanh(decode(agent, obs, z, args))


def begin(key, args: Args, env: JaxEnv, spec: Spec) -> Loop:
    """One lane's environments at their first observations, and nothing collected."""
    n = args.collect_iterations * args.steps_per_iteration if args.stages > 1 else 0
    memory = Memory(jnp.zeros((n, *spec.obs_shape)), jnp.zeros((n, spec.action_dim)))
    return Loop(*begin_envs(env, key, args.n_envs), memory)


def collect(agent: Agent, loop: Loop, key, args: Args, env: JaxEnv) -> tuple[Loop, Steps]:
    """An iteration's steps [T, N] of one lane."""

    def step(carry, key):
        env_state, obs = carry
        latent_key, env_key = jax.random.split(key)
        z, log_prob = sample_latents(agent, obs, latent_key)
        output = decode(agent, obs, z, args)
        env_state, new, moved = step_envs(env, env_state, jnp.tanh(output), env_key)
        reward, terminal = args.reward_scale * moved.reward, moved.terminal.astype(jnp.float32)
        batch = Batch(obs=obs, action=z, reward=reward, terminal=terminal, next_obs=moved.next_obs)
        return (env_state, new), Steps(batch, output, log_prob, jnp.float32(moved.terminal | moved.truncated))

    keys = jax.random.split(key, args.steps_per_iteration // args.n_envs)
    (env_state, obs), steps = jax.lax.scan(step, (loop.env_state, loop.obs), keys)
    return Loop(env_state, obs, loop.memory), steps


def remember(memory: Memory, steps: Steps, at, args: Args) -> Memory:
    """With the steps of the stage's `at`-th collecting iteration."""
    new = Memory(steps.batch.obs, steps.output)
    place = lambda old, x: jax.lax.dynamic_update_slice(  # noqa: E731
        old, x.reshape(-1, x.shape[-1]), (at * args.steps_per_iteration, 0)
    )
    return jax.tree.map(place, memory, new)


def train(
    carry: tuple[Agent, Loop], keys, args: Args, start, env: JaxEnv, spec: Spec
) -> tuple[tuple[Agent, Loop], dict]:
    """One lane from environment step `start` on: an iteration for every `steps_per_iteration` keys; mean metrics."""
    length = stage_iterations(args)

    def iteration(carry, x):
        (agent, loop), (i, key) = carry, x
        collect_key, update_key, stage_key = jax.random.split(key, 3)
        learns, at = improves(i, args), i % length - (length - args.collect_iterations)
        loop, steps = collect(agent, loop, collect_key, args, env)

        def improve(agent):
            return update(agent, steps, update_key, i < length, args)

        def keep(agent):
            return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(improve, agent)[1])

        agent, metrics = jax.lax.cond(learns, improve, keep, agent)
        memory = loop.memory
        if args.stages > 1:
            store = lambda memory: remember(memory, steps, jnp.maximum(at, 0), args)  # noqa: E731
            memory = jax.lax.cond(learns, lambda memory: memory, store, memory)
            turn = lambda agent: new_stage(agent, memory, stage_key, args, spec)  # noqa: E731
            agent = jax.lax.cond(~learns & (i % length == length - 1), turn, lambda agent: agent, agent)
        always = {
            "reward": steps.batch.reward.mean() / args.reward_scale,
            "moved": jnp.abs(steps.output - steps.batch.action).mean(),
            "decoder_loss": agent.decoder_loss,
        }
        return (agent, loop._replace(memory=memory)), (learns, metrics, always)

    keys = keys[:: args.steps_per_iteration]
    number = start // args.steps_per_iteration + jnp.arange(len(keys))
    carry, (learns, metrics, always) = jax.lax.scan(iteration, carry, (number, keys))
    learned = jnp.maximum(learns.sum(), 1)
    return carry, {**jax.tree.map(lambda x: x.sum() / learned, metrics), **jax.tree.map(jnp.mean, always)}


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=False)
    env, args = require_jax_env(task), whole_stages(args)
    if args.stages > 1 and stage_iterations(args) <= args.collect_iterations:
        raise InputError(
            f"--env-steps {args.env_steps}: a stage has {stage_iterations(args)} iterations, of which "
            f"--collect-iterations {args.collect_iterations} leave none to learn in."
        )
    if args.batch_size > args.steps_per_iteration:
        raise InputError(f"--batch-size {args.batch_size} is more than an iteration's {args.steps_per_iteration}.")
    with Run(__file__, args, task, act, unit=args.steps_per_iteration) as run:
        agent = run.init(partial(init, spec=task.spec))
        begin_lanes = run.over_lanes(partial(begin, env=env, spec=task.spec), in_axes=(0, 0))
        agent, loop = run.restore(agent, begin_lanes(run.step_keys(run.total), run.lane_args))
        train_lanes = run.over_lanes(partial(train, env=env, spec=task.spec), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            (agent, loop), metrics = train_lanes((agent, loop), keys, run.lane_args, run.done)
            ends = np.array([run.done, run.done + run.chunk]) // args.steps_per_iteration
            learns = improves(np.arange(ends[1]), args)
            updates = learns.sum() * args.ppo_epochs * (args.steps_per_iteration // args.batch_size)
            run.log(agent, metrics if learns[ends[0] :].any() else {}, updates=int(updates), state=loop)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
