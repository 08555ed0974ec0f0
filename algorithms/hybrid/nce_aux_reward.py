"""NCE and progress: what demonstrations without actions teach an agent before it begins, and reward it for later.

Mazoure, Bruce, Precup, Fergus and Anand, "Accelerating exploration and representation learning with offline
pre-training", arXiv 2304.00046. From trajectories of states alone, without actions and rewards, two models are
learned, each by itself: a representation e(s), by noise-contrastive estimation of which state follows which (the
torso of the agent begins with it), and the progress f(s_i, s_j) from one state to another, the signed logarithm of
the steps between them, as in "Learning About Progress From Experts" (Bruce et al., ICLR 2023). PPO then interacts
with f(s_{t-k}, s_t) added to its rewards.

--before-updates of both models come first (before.csv). An iteration has --steps-per-iteration environment steps, by
--n-envs environments at once; the totals and intervals are rounded up to whole ones. --buffer-size is not used.

A goal that ends the episode ends what is paid for progress, too. So --aux-weight times the progress that can be kept up
(at most log(1 + k) a step), over 1 - gamma, must stay below what the goal pays, or the agent stays away from it. In
point-mazes-demos, whose goal pays 1, agents that never finish keep up 0.75 a step: worth 7.5 with a weight of 0.1.

Choose it when the task can be watched but not scored, and exploration alone does not find its reward.

Deviations from the paper:
- PPO in place of Muesli, networks on vectors in place of NetHack's encoders;
- the paper's text leaves open how pairs are drawn; here k is uniform for the representation, its logarithm for the
  progress, and both ends of a pair lie in one episode;
- before an episode has k steps, its first state stands for s_{t-k};
- actor and value function see e(s) through a ReLU, also where the representation was learned without one.

    python algorithms/hybrid/nce_aux_reward.py --n-envs 16 --steps-per-iteration 1024 --batch-size 256 --seeds 4
    python algorithms/hybrid/nce_aux_reward.py --no-pretrained-torso --aux-weight 0 --seeds 4   # PPO alone
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
from shared.arguments import Float, Fraction, HybridArgs, Positive, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.jax_envs import JaxEnv, begin_envs, require_jax_env, step_envs
from shared.run import Run, launch
from shared.sequences import Sequences, sequences
from shared.task import Spec
from shared.transitions import Batch


@hyperparameters
class Args(HybridArgs):
    dataset: str = "point-mazes-demos"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    eval_env: str = ""
    """Gymnasium id to evaluate in, of the same observations and actions; empty: where the agent interacts."""
    before_updates: Size = 100_000
    """Updates of representation and progress before the first environment step."""
    pretrained_torso: bool = True
    """The agent's torso begins with the representation; else anew."""
    frozen_torso: bool = False
    """PPO leaves the torso as it is."""
    aux_weight: Float = 0.01
    """lambda: weight of the progress beside the environment's reward; 0: none."""
    aux_steps: Size = 8
    """k: steps over which progress is rewarded."""
    nce_steps: Size = 16
    """K: pairs of states of the representation are 1 to K steps apart."""
    nce_temperature: Positive = 0.1
    """Similarities are divided by it."""
    progress_steps: Size = 64
    """Pairs of states of the progress are at most so many steps apart."""
    before_batch_size: Size = 256
    """Pairs per update of representation and progress."""
    before_lr: Float = 3e-4
    """Adam's step size: representation and progress."""
    n_envs: Size = 16
    """Environments of each lane, stepped together: N steps at once."""
    steps_per_iteration: Size = 2_048
    """Environment steps between two updates of the policy, which learns from these alone."""
    ppo_epochs: Size = 4
    """Passes of an update over an iteration's steps."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    learning_rate: Float = 2.5e-4
    """Adam's step size: everything that is learned."""
    ratio_clip: Positive = 0.2
    """The ratio counts within 1 +- ratio_clip."""
    max_grad_norm: Float = 0.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    entropy_cost: Float = 0.01
    """Weight of the policy's entropy."""
    value_coefficient: Float = 0.5
    """Weight of the value function's error beside the policy's loss."""
    gae_lambda: Fraction = 0.95
    """lambda of the generalised advantage estimate, in [0, 1]."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    latent_dim: Size = 64
    """Size of the representations."""
    sample_actions: bool = True
    """Evaluate with sampled actions instead of the mean's."""


PRESETS: dict[str, dict[str, Any]] = {}

dense_init = nn.initializers.orthogonal(2.0**0.5)


class MLP(nn.Module):
    """ReLU network on the concatenated inputs."""

    hidden_dims: tuple[int, ...]
    outputs: int
    scale: float = 1.0
    """Of the last layer's first weights."""

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.scale))(x)


class Networks(NamedTuple):
    torso: MLP
    """e(s) [B, Z]"""
    query: MLP
    """g(e(s)) [B, Z]"""
    successor: MLP
    """e'(s+) [B, Z]"""
    progress: MLP
    """f(s_i, s_j) [B, 1]"""
    actor: MLP
    """Logits of relu(e(s)) [B, A]"""
    value: MLP
    """V of relu(e(s)) [B, 1]"""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    models: dict[str, Any]
    """Of torso, query, successor and progress, as the demonstrations taught them."""
    models_opt: optax.OptState
    torso: Any
    actor: Any
    value: Any
    ppo_opt: optax.OptState
    """Of torso, actor and value function together."""


class Pairs(NamedTuple):
    """Two states [B, O] of one episode each."""

    first: jax.Array
    second: jax.Array
    steps: jax.Array
    """[B] from the first to the second, negative where that came before."""


class Steps(NamedTuple):
    """Of N environments [T, N, ...]."""

    batch: Batch
    log_prob: jax.Array
    """[T, N] of the action when it was drawn"""
    ended: jax.Array
    """[T, N] 1 where an episode did"""
    env_reward: jax.Array
    """[T, N]"""
    progress: jax.Array
    """[T, N]"""


class Loop(NamedTuple):
    """What a lane has beside its agent."""

    env_state: Any
    """[N, ...]"""
    obs: jax.Array
    """[N, O]"""
    history: jax.Array
    """[k, N, O] the last states of the episodes, the oldest first; their first one where there are fewer"""


def whole_iterations(args: Args) -> Args:
    """`args` with iterations of whole steps of all environments, totals and intervals of whole iterations."""
    length = -(-args.steps_per_iteration // args.n_envs) * args.n_envs
    names = ("env_steps", "before_updates", "log_every", "eval_every", "checkpoint_every")
    whole = {n: -(-getattr(args, n) // length) * length for n in names}
    return dataclasses.replace(args, steps_per_iteration=length, **whole)


def pairs(key, data: Sequences, steps, args: Args) -> Pairs:
    """[B] states of the demonstrations and those `steps` [B] later, or the last one of the episode that is known."""
    row = data.rows(key, args.before_batch_size)
    at = jnp.minimum(row + steps - 1, data.end[row])
    at = jnp.where(data.transitions.take(at).successor > 0, at, at - 1)
    return Pairs(data.transitions.take(row).obs, data.transitions.take(at).next_obs, at + 1 - row)


def nce_pairs(key, data: Sequences, args: Args) -> Pairs:
    """1 to K steps apart, uniformly."""
    row_key, step_key = jax.random.split(key)
    return pairs(row_key, data, jax.random.randint(step_key, (args.before_batch_size,), 1, args.nce_steps + 1), args)


def progress_pairs(key, data: Sequences, args: Args) -> Pairs:
    """Up to --progress-steps apart, the logarithm uniformly; half of them in the order of time, half against it."""
    row_key, step_key, turn_key = jax.random.split(key, 3)
    u = jax.random.uniform(step_key, (args.before_batch_size,))
    found = pairs(row_key, data, jnp.int32((args.progress_steps + 1.0) ** u), args)
    turn = jax.random.bernoulli(turn_key, 0.5, u.shape)
    first, second = (jnp.where(turn[:, None], a, b) for a, b in (found[1::-1], found[:2]))
    return Pairs(first, second, jnp.where(turn, -found.steps, found.steps))


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-8)


def nce_loss(models, nets: Networks, batch: Pairs, args: Args):
    """-log of the share of exp(<g(e(s_i)), e'(s_i+)> / tau) among those of all s_j+ of the batch; unit vectors."""
    query = nets.query.apply(models["query"], nets.torso.apply(models["torso"], batch.first))
    logits = unit(query) @ unit(nets.successor.apply(models["successor"], batch.second)).T / args.nce_temperature
    chex.assert_shape(logits, (args.before_batch_size, args.before_batch_size))
    right = logits.argmax(1) == jnp.arange(len(logits))
    return -jnp.diag(nn.log_softmax(logits)).mean(), {"nce_accuracy": right.mean()}


def progress_loss(models, nets: Networks, batch: Pairs):
    """(f(s_i, s_j) - sign(d) log(1 + |d|))^2, d the steps from the first state to the second."""
    f = nets.progress.apply(models["progress"], batch.first, batch.second)[..., 0]
    target = jnp.sign(batch.steps) * jnp.log1p(jnp.abs(batch.steps))
    chex.assert_equal_shape([f, target])
    return ((f - target) ** 2).mean(), {}


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


def represent(nets: Networks, torso, obs, args: Args):
    """[..., Z] what actor and value function see; a frozen torso is not differentiated."""
    z = nn.relu(nets.torso.apply(torso, obs))
    return jax.lax.stop_gradient(z) if args.frozen_torso else z


def action_log_prob(nets: Networks, torso, actor, obs, args: Args):
    """log pi(a|s) [..., A]"""
    return nn.log_softmax(nets.actor.apply(actor, represent(nets, torso, obs, args)))


def value_of(nets: Networks, torso, value, obs, args: Args):
    """V(s) [...]"""
    return nets.value.apply(value, represent(nets, torso, obs, args))[..., 0]


def ppo_loss(params, nets: Networks, batch: Batch, old_log_prob, adv, target, args: Args):
    """The surrogate minus the entropy plus the value's squared error; params: torso, actor and value function."""
    torso, actor, value = params
    log_prob_of = action_log_prob(nets, torso, actor, batch.obs, args)
    log_prob = jnp.take_along_axis(log_prob_of, batch.action[:, None], 1)[:, 0]
    v = value_of(nets, torso, value, batch.obs, args)
    chex.assert_equal_shape([log_prob, old_log_prob, adv, v, target])
    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    entropy = -(jnp.exp(log_prob_of) * log_prob_of).sum(-1).mean()
    policy, error = surrogate(log_prob, old_log_prob, adv, args.ratio_clip).mean(), ((v - target) ** 2).mean()
    loss = policy - args.entropy_cost * entropy + args.value_coefficient * error
    return loss, {"entropy": entropy, "v": v.mean(), "value_loss": error}


def descend(loss: Callable, params, opt_state, optimizer: optax.GradientTransformation, *inputs):
    """One gradient step of `loss(params, *inputs)`: the parameters, the optimiser's state, loss and metrics."""
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, *inputs)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, {loss.__name__: value, **info}


def ppo_optimizer(args: Args) -> optax.GradientTransformation:
    """Adam after clipping the norm."""
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(args.learning_rate, eps=1e-5))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    width, size = args.hidden_dims, args.latent_dim
    nets = Networks(
        MLP(width, size), MLP((), size), MLP(width, size), MLP(width, 1), MLP((), spec.action_dim, 0.01), MLP((), 1)
    )
    obs, z = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, size))
    keys = jax.random.split(key, 7)
    inputs = {"torso": (obs,), "query": (z,), "successor": (obs,), "progress": (obs, obs)}
    models = {n: getattr(nets, n).init(k, *inputs[n]) for n, k in zip(inputs, keys, strict=False)}
    actor, value = nets.actor.init(keys[4], z), nets.value.init(keys[5], z)
    torso = nets.torso.init(keys[6], obs)
    return Agent(
        nets=nets,
        models=models,
        models_opt=optax.adam(args.before_lr).init(models),
        torso=torso,
        actor=actor,
        value=value,
        ppo_opt=ppo_optimizer(args).init((torso, actor, value)),
    )


def update_models(agent: Agent, near: Pairs, far: Pairs, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the representation on `near` and of the progress on `far`, which share nothing."""

    def models_loss(models):
        loss, info = nce_loss(models, agent.nets, near, args)
        loss_f, info_f = progress_loss(models, agent.nets, far)
        return loss + loss_f, {"nce_loss": loss, "progress_loss": loss_f, **info, **info_f}

    models, opt, info = descend(models_loss, agent.models, agent.models_opt, optax.adam(args.before_lr))
    return agent.replace(models=models, models_opt=opt), info


def take_torso(agent: Agent, args: Args) -> Agent:
    """The agent begins with the representation of the demonstrations, if it is to."""
    return agent.replace(torso=agent.models["torso"]) if args.pretrained_torso else agent


def update(agent: Agent, steps: Steps, key, args: Args) -> tuple[Agent, dict]:
    """PPO on the steps [T, N] of one iteration."""
    nets, v_of = agent.nets, lambda obs: value_of(agent.nets, agent.torso, agent.value, obs, args)
    v, next_v = v_of(steps.batch.obs), v_of(steps.batch.next_obs)
    adv = jax.vmap(partial(advantages, args=args), 1, 1)(v, next_v, steps.batch, steps.ended)
    batch = Batch(obs=steps.batch.obs, action=steps.batch.action)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch, steps.log_prob, adv, adv + v))
    n, optimizer = args.steps_per_iteration, ppo_optimizer(args)
    batches = n // args.batch_size

    def step(carry, index):
        batch = jax.tree.map(lambda x: x[index], rows)
        params, opt, info = descend(ppo_loss, *carry, optimizer, nets, *batch, args)
        return (params, opt), info

    order = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(key, args.ppo_epochs))
    order = order[:, : batches * args.batch_size].reshape(args.ppo_epochs * batches, -1)
    start = ((agent.torso, agent.actor, agent.value), agent.ppo_opt)
    ((torso, actor, value), opt), info = jax.lax.scan(step, start, order)
    agent = agent.replace(torso=torso, actor=actor, value=value, ppo_opt=opt)
    return agent, jax.tree.map(jnp.mean, info)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B]: sampled, or the likeliest with --no-sample-actions."""
    logits = action_log_prob(agent.nets, agent.torso, agent.actor, obs, args)
    return jax.random.categorical(key, logits) if args.sample_actions else logits.argmax(-1)


def begin(key, args: Args, env: JaxEnv) -> Loop:
    """One lane's environments at their first observations."""
    env_state, obs = begin_envs(env, key, args.n_envs)
    return Loop(env_state, obs, jnp.broadcast_to(obs, (args.aux_steps, *obs.shape)))


def collect(agent: Agent, loop: Loop, key, args: Args, env: JaxEnv) -> tuple[Loop, Steps]:
    """An iteration's steps [T, N] of one lane, with their progress rewarded."""

    def step(loop, key):
        action_key, env_key = jax.random.split(key)
        logits = action_log_prob(agent.nets, agent.torso, agent.actor, loop.obs, args)
        action = jax.random.categorical(action_key, logits)
        log_prob = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        env_state, obs, moved = step_envs(env, loop.env_state, action, env_key)
        ended = moved.terminal | moved.truncated
        progress = agent.nets.progress.apply(agent.models["progress"], loop.history[0], moved.next_obs)[:, 0]
        history = jnp.concatenate([loop.history[1:], obs[None]])
        history = jnp.where(ended[:, None], obs, history)
        batch = Batch(
            obs=loop.obs,
            action=action,
            reward=moved.reward + args.aux_weight * progress,
            terminal=moved.terminal.astype(jnp.float32),
            next_obs=moved.next_obs,
        )
        return Loop(env_state, obs, history), Steps(batch, log_prob, jnp.float32(ended), moved.reward, progress)

    return jax.lax.scan(step, loop, jax.random.split(key, args.steps_per_iteration // args.n_envs))


def pretrain(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: an update of the models for every key; mean metrics."""

    def step(agent, key):
        near_key, far_key = jax.random.split(key)
        return update_models(agent, nce_pairs(near_key, data, args), progress_pairs(far_key, data, args), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def watched(data: Dataset) -> Sequences:
    """The demonstrations' states and those that follow; rows are drawn where one is known to.

    Raises:
      InputError: nowhere.
    """
    if not data.successor.any():
        raise InputError(f"'{data.task.id}' does not say which states it leads to (next observations).")
    weights = None if data.successor.all() else data.successor.astype(np.float64)
    return sequences(data, "obs", "next_obs", "successor", weights=weights)


def train(carry: tuple[Agent, Loop], keys, args: Args, env: JaxEnv) -> tuple[tuple[Agent, Loop], dict]:
    """One lane: an iteration for every `steps_per_iteration` keys; mean metrics."""

    def iteration(carry, key):
        agent, loop = carry
        collect_key, update_key = jax.random.split(key)
        loop, steps = collect(agent, loop, collect_key, args, env)
        agent, metrics = update(agent, steps, update_key, args)
        return (agent, loop), {**metrics, "reward": steps.env_reward.mean(), "progress": steps.progress.mean()}

    carry, metrics = jax.lax.scan(iteration, carry, keys[:: args.steps_per_iteration])
    return carry, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True, reward=False).normalize_obs()
    env, args = require_jax_env(data.task), whole_iterations(args)
    if args.batch_size > args.steps_per_iteration:
        raise InputError(f"--batch-size {args.batch_size} is more than an iteration's {args.steps_per_iteration}.")
    if args.before_batch_size < 2:
        raise InputError("--before-batch-size must be at least 2, since of one pair nothing is told apart.")
    evaluated = data.task.in_env(args.eval_env) if args.eval_env else data.task
    with Run(__file__, args, evaluated, act, unit=args.steps_per_iteration, before=args.before_updates) as run:
        demos = run.replicate(watched(data))
        agent = run.init(partial(init, spec=data.spec))
        begin_lanes = run.over_lanes(partial(begin, env=env), in_axes=(0, 0))
        agent, loop = run.restore(agent, begin_lanes(run.step_keys(run.total), run.lane_args))
        pretrain_lanes = run.over_lanes(pretrain, in_axes=(0, 0, 0, None), donate=True)
        begin_online = run.over_lanes(take_torso, in_axes=(0, 0))
        train_lanes = run.over_lanes(partial(train, env=env), in_axes=(0, 0, 0), donate=True)
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = pretrain_lanes(agent, keys, run.lane_args, demos)
                if run.done + run.chunk == 0:
                    agent = begin_online(agent, run.lane_args)
                run.log(agent, metrics, state=loop)
                continue
            (agent, loop), metrics = train_lanes((agent, loop), keys, run.lane_args)
            iterations = (run.done + run.chunk) // args.steps_per_iteration
            updates = iterations * args.ppo_epochs * (args.steps_per_iteration // args.batch_size)
            run.log(agent, metrics, updates=updates, state=loop)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
