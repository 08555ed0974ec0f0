"""C-MORL: a set of policies for all preferences, found by PPO on weighted sums and then along the front by constraints.

Liu, Pan, Xu, Song, Bian, You and Chen, "Efficient Discovery of Pareto Front for Multi-Objective Reinforcement
Learning", ICLR 2025, arXiv 2410.02236. Rewards are of K objectives. Stage 1 (initialization) trains a policy by PPO for
each of a few preferences. Every policy on the way is evaluated, and those that no other dominates are kept in an
archive. Stage 2 (extension) takes the --n-selected policies of the archive around which the front is emptiest (crowding
distance) and trains each once for every objective: J_i is maximised while every other J_j keeps at least
--constraint-share of the selected policy's, by PPO with a logarithmic barrier (C-MORL-IPO, section 4.3). After
--round-iterations the next ones are selected. A preference w is served by the archive's policy with the highest w'J.

An iteration has --steps-per-iteration environment steps of each policy, in --n-envs environments of its own; a round of
stage 2 has --n-selected times K policies, one of stage 1 as many steps. Steps are rounded up to whole rounds. The
environment must tell its objectives (the ids that begin with Preferred): its observations end with the preference,
which policies do not see, and returns.csv has the utility under preferences drawn at random. Hypervolume, expected
utility and sparsity of the archive, by discounted returns, are in metrics.csv. Evaluations of policies are no
environment steps, as in the paper's budgets. --buffer-size is not used.

Choose it when what is wanted is weighed only after training, and there are few objectives.

Parity: PPO's steps, of a weighted sum and with the barrier, are equal to the authors' code, update for update, but for
the barrier, the scale of values, the deviation that divides advantages and 1e-6 beside a gradient's norm
(results/parity.md).

Deviations from the paper:
- the constraint is on the mean return of the visited states, for which PPO's surrogate of objective j is the estimate,
  relative to the first batch of the round; beneath --least-margin the barrier goes on as its tangent, so that what is
  violated comes back. The released code's barrier (--barrier ratios) is of the probability ratios of single actions,
  whatever they return (released: of positive ones; of negative ones it vanishes, or turns round): it holds the policy
  near the last one, and does not tell objectives apart. An iteration should have whole episodes of each environment,
  else its returns are of other parts of them than the first one's;
- an update has --steps-per-iteration steps in all, 2,048, and the step size stays (the released runs: 512 of each of 8
  environments, 5 policies selected, a rate that falls to zero in the first stage, and steps counted for one
  environment); hidden layers begin with a gain of sqrt 2, the last one of a Gaussian policy with 1 (1 and 0.01);
- where too few policies were never selected, former ones are selected again;
- in stage 1, too, every iteration's policies are candidates for the archive (released code: every tenth);
- values are scaled by the root mean square of their targets, where the released code scales rewards by the standard
  deviation of discounted returns; episodes bootstrap at time limits;
- the advantages' variance divides by the steps of an update (released: by one less);
- the trust-region form (C-MORL-CPO) is not here.

    python algorithms/online/c_morl.py --seeds 4 --n-envs 16 --steps-per-iteration 400 --round-iterations 5
    python algorithms/online/c_morl.py --env PreferredTreasure-v0 --reference-point 0 -30
"""

import dataclasses
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
from shared.arguments import EnvSteps, Float, Fraction, OnlineArgs, Positive, Size, hyperparameters
from shared.errors import InputError
from shared.jax_envs import JaxEnv, begin_envs, of_objectives, require_jax_env, step_envs
from shared.pareto import crowding_distance, expected_utility, hypervolume, non_dominated, simplex_lattice, sparsity
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "PreferredPeaks-v0"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    init_steps: Size = 983_040
    """Environment steps of the first stage; the other ones are the second's."""
    weight_divisions: Size = 5
    """Preferences of the first stage: all weights in multiples of 1 / weight_divisions that sum to 1."""
    n_selected: Size = 6
    """Policies of the archive that a round of the second stage goes on from."""
    round_iterations: Size = 20
    """PPO updates of each policy in a round of the second stage."""
    constraint_share: Fraction = 0.9
    """beta, in [0, 1]: the share of its other objectives that a selected policy must keep."""
    barrier_sharpness: Float = 20.0
    """t: the barrier has the weight 1 / t; the larger, the closer to a hard constraint, felt at its edge alone."""
    barrier: Literal["returns", "ratios"] = "returns"
    """What it keeps up: the other objectives' mean returns, or the ratios of single actions as in the released code."""
    least_margin: Float = 1e-3
    """Beneath this share of the selected policy's return above the constraint, the barrier is its tangent (returns) or
    constant (ratios)."""
    archive_size: Size = 200
    """Policies that the archive holds; the most crowded are dropped."""
    reference_point: tuple[float, ...] = (0.0, 0.0)
    """Discounted returns, one for each objective, that every policy of the archive reaches; hypervolume is above it."""
    archive_episodes: Size = 5
    """Episodes, the same for all, by which policies are compared."""
    archive_discount: Fraction = 0.99
    """Discount of the returns by which policies are compared, in [0, 1]."""
    n_envs: Size = 4
    """Environments of each lane, stepped together: N steps at once."""
    steps_per_iteration: Size = 2_048
    """Environment steps between two updates of the policy, which learns from these alone."""
    ppo_epochs: Size = 10
    """Passes of an update over an iteration's steps."""
    n_batches: Size = 32
    """Gradient updates of such a pass."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layers of every network that has no argument of its own for them."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    max_grad_norm: Float = 0.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    ratio_clip: Positive = 0.2
    """The ratio counts within 1 +- ratio_clip."""
    entropy_cost: Float = 0.0
    """Weight of the policy's entropy."""
    value_coefficient: Float = 0.5
    """Weight of the value function's error beside the policy's loss."""
    gae_lambda: Fraction = 0.95
    """lambda of the generalised advantage estimate, in [0, 1]."""
    discount: Fraction = 0.995
    """gamma, in [0, 1]."""
    env_steps: EnvSteps = 1_474_560
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    log_every: Size = 491_520
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 491_520
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 100
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""
    checkpoint_every: Size = 491_520
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""


PRESETS: dict[str, dict[str, Any]] = {}


class MLP(nn.Module):
    """Tanh network; `log_std`: its outputs are followed by as many parameters that do not depend on the input."""

    hidden_dims: tuple[int, ...]
    outputs: int
    gain: float = 1.0
    log_std: bool = False

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.tanh(nn.Dense(size, kernel_init=nn.initializers.orthogonal(np.sqrt(2.0)))(x))
        x = nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))(x)
        if self.log_std:
            log_std = self.param("log_std", nn.initializers.zeros, (self.outputs,))
            x = jnp.concatenate([x, jnp.broadcast_to(log_std, x.shape)], axis=-1)
        return x


class Networks(NamedTuple):
    actor: MLP
    """Mean and log standard deviation of a Gaussian, or logits"""
    value: MLP
    """[K] of the objectives, scaled"""
    discrete: bool


class Moments(NamedTuple):
    """Of all vectors so far."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array


class Learner(NamedTuple):
    """A policy and all that it needs to be trained on."""

    actor: Any
    value: Any
    opt: optax.OptState
    obs: Moments
    """[O] of observations"""
    returns: Moments
    """[K] of the values' targets"""


class Archive(NamedTuple):
    """At most C policies that do not dominate each other, in any order."""

    policies: Learner
    """[C, ...]"""
    values: jax.Array
    """[C, K] discounted returns; minus infinity where there is no policy"""
    selected: jax.Array
    """[C] bool: whether a round went on from it"""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    learners: Learner
    """[M, ...] of the first stage, one for each of its preferences"""
    archive: Archive


class Steps(NamedTuple):
    """An iteration's, [T, N] of T steps of N environments."""

    batch: Batch
    """Rewards are [T, N, K]."""
    log_prob: jax.Array
    ended: jax.Array
    """[T, N] float: the episode ended, terminal or not."""


class Aim(NamedTuple):
    """What a policy is trained for."""

    weights: jax.Array
    """[K] of the objectives in what is maximised"""
    kept: jax.Array
    """[K] 1 for the objectives that are constrained, else 0"""


def round_steps(args: Args, n_objectives: int) -> int:
    """Environment steps of a round."""
    return args.n_selected * n_objectives * args.round_iterations * args.steps_per_iteration


def whole_rounds(args: Args, n_objectives: int) -> Args:
    """`args` with iterations of equally many steps of all environments, and all other steps of whole rounds."""
    per_env = -(-args.steps_per_iteration // args.n_envs)
    args = dataclasses.replace(args, steps_per_iteration=per_env * args.n_envs)
    unit = round_steps(args, n_objectives)
    names = ("init_steps", "env_steps", "log_every", "eval_every", "checkpoint_every")
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // unit) * unit for n in names})


def seen(obs, n_objectives: int):
    """What a policy sees [..., O] of observations that end with the preference."""
    return obs[..., :-n_objectives]


def observe(moments: Moments, x) -> Moments:
    """With the vectors x [n, D] among them."""
    n, count = len(x), moments.count + len(x)
    shift = x.mean(0) - moments.mean
    squares = moments.var * moments.count + x.var(0) * n + shift**2 * moments.count * n / count
    return Moments(moments.mean + shift * n / count, squares / count, count)


def normalize(learner: Learner, obs):
    """[..., O] by the running mean and variance, within [-10, 10]."""
    return jnp.clip((obs - learner.obs.mean) / jnp.sqrt(learner.obs.var + 1e-8), -10.0, 10.0)


def scale(learner: Learner):
    """[K] root mean square of the targets so far: values are learned in units of it."""
    return jnp.sqrt(learner.returns.mean**2 + learner.returns.var + 1e-8)


def log_prob_and_entropy(nets: Networks, out, action):
    """log pi(a|s) and the entropy [...] of the actor's outputs."""
    if nets.discrete:
        log_p = jax.nn.log_softmax(out)
        chosen = jnp.take_along_axis(log_p, action[..., None], -1)[..., 0]
        return chosen, -(jnp.exp(log_p) * log_p).sum(-1)
    mean, log_std = jnp.split(out, 2, axis=-1)
    entropy = (log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(-1)
    return jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1), entropy


def mode(nets: Networks, out):
    """The most probable actions."""
    return out.argmax(-1) if nets.discrete else jnp.split(out, 2, axis=-1)[0]


def sample_actions(nets: Networks, out, key):
    """Actions of the policy."""
    if nets.discrete:
        return jax.random.categorical(key, out)
    mean, log_std = jnp.split(out, 2, axis=-1)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def advantages(v, next_v, batch: Batch, ended, args: Args):
    """[T, N, K] A_t = d_t + gamma lambda A_{t+1} within an episode, d_t = r + gamma V(s') - V(s), for each objective.

    V(s') counts 0 at a terminal state. A time limit ends the sum, not the bootstrapping.
    """
    delta = batch.reward + args.discount * (1.0 - batch.terminal)[..., None] * next_v - v

    def back(adv, x):
        delta, ended = x
        adv = delta + args.discount * args.gae_lambda * (1.0 - ended)[..., None] * adv
        return adv, adv

    return jax.lax.scan(back, jnp.zeros_like(v[0]), (delta, ended), reverse=True)[1]


def surrogate(ratio, adv, clip):
    """min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi(a|s) / pi_old(a|s): PPO's."""
    return jnp.minimum(ratio * adv, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * adv)


def log_barrier(margin, args: Args):
    """-log(margin) / t, beneath the least margin its tangent."""
    least = args.least_margin
    inside = jnp.maximum(margin, least)
    return -(jnp.log(inside) + jnp.minimum(margin - least, 0.0) / least) / args.barrier_sharpness


def constraint_loss(ratio, adv, mean_return, kept_return, args: Args):
    """Barrier of each objective [K], and its margin: J_j(pi) / J_j(pi_k) - beta, where returns are positive.

    `ratio` [B], `adv` [B, K]; J_j(pi) = J_j(pi_old) + E[surrogate of A_j], both of the visited states. In general a
    return may lie at most (1 - beta) |J_j(pi_k)| below J_j(pi_k).
    """
    now = mean_return + surrogate(ratio[:, None], adv, args.ratio_clip).mean(0)
    size = jnp.abs(kept_return) + 1e-8
    margin = (now - kept_return) / size + 1.0 - args.constraint_share
    if args.barrier == "returns":
        return log_barrier(margin, args), margin
    above = jnp.clip(ratio, 1.0 - args.ratio_clip, 1.0 + args.ratio_clip) - args.constraint_share
    barrier = -jnp.log(jnp.maximum(above, args.least_margin)).mean() / args.barrier_sharpness
    return jnp.broadcast_to(barrier, margin.shape), margin


def actor_loss(actor, nets: Networks, batch: Batch, old_log_prob, adv, aim: Aim, returns, args: Args):
    """-E[surrogate of the weighted advantage] + mean of the constrained objectives' barriers (C-MORL-IPO).

    `adv` [B, K + 1]: of the objectives, and the normalised one of their weighted sum; `returns` ([K], [K]): means of
    the targets in this iteration and in the round's first one.
    """
    log_prob, entropy = log_prob_and_entropy(nets, nets.actor.apply(actor, batch.obs), batch.action)
    chex.assert_equal_shape([log_prob, old_log_prob, adv[:, 0]])
    ratio = jnp.exp(log_prob - old_log_prob)
    barrier, margin = constraint_loss(ratio, adv[:, :-1], *returns, args)
    constraint = (aim.kept * barrier).sum() / jnp.maximum(aim.kept.sum(), 1.0)
    loss = constraint - surrogate(ratio, adv[:, -1], args.ratio_clip).mean() - args.entropy_cost * entropy.mean()
    margin = jnp.where(aim.kept > 0, margin, jnp.inf).min()
    return loss, {"barrier": constraint, "margin": jnp.where(aim.kept.any(), margin, 0.0), "entropy": entropy.mean()}


def value_loss(value, net: MLP, batch: Batch, old_v, target, args: Args):
    """max of (V(s) - R)^2 / 2 and the same of V within --ratio-clip of what it was; scaled, mean over objectives."""
    v = net.apply(value, batch.obs)
    chex.assert_equal_shape([v, target])
    near = old_v + jnp.clip(v - old_v, -args.ratio_clip, args.ratio_clip)
    return 0.5 * jnp.maximum((v - target) ** 2, (near - target) ** 2).mean(), {}


def optimizer(args: Args) -> optax.GradientTransformation:
    largest = jnp.where(args.max_grad_norm > 0.0, args.max_grad_norm, jnp.inf)
    return optax.chain(optax.clip_by_global_norm(largest), optax.adam(args.learning_rate, eps=1e-5))


def init(key, args: Args, spec: Spec, n_objectives: int = 2) -> Agent:
    """The agent of one lane, with an empty archive."""
    action = spec.action_dim
    gain = 0.01 if spec.discrete else 1.0
    actor = MLP(args.hidden_dims, action, gain, log_std=not spec.discrete)
    nets = Networks(actor, MLP(args.hidden_dims, n_objectives), spec.discrete)
    size = spec.obs_shape[0] - n_objectives

    def learner(key):
        actor_key, value_key = jax.random.split(key)
        params = nets.actor.init(actor_key, jnp.zeros((1, size))), nets.value.init(value_key, jnp.zeros((1, size)))
        obs, returns = (Moments(jnp.zeros(n), jnp.ones(n), jnp.float32(1e-4)) for n in (size, n_objectives))
        return Learner(*params, optimizer(args).init(params), obs, returns)

    n = len(simplex_lattice(n_objectives, args.weight_divisions))
    learners = jax.lax.map(learner, jax.random.split(key, n))
    places = jax.tree.map(lambda x: jnp.repeat(x[:1], args.archive_size, axis=0), learners)
    values = jnp.full((args.archive_size, n_objectives), -jnp.inf)
    return Agent(nets, learners, Archive(places, values, jnp.zeros(args.archive_size, bool)))


def collect(learner: Learner, envs, key, nets: Networks, args: Args, env: JaxEnv) -> tuple[Any, Steps]:
    """An iteration's steps [T, N] of one policy in its environments: their states, and observations."""
    k = nets.value.outputs

    def step(envs, key):
        env_state, obs = envs
        act_key, env_key = jax.random.split(key)
        out = nets.actor.apply(learner.actor, normalize(learner, seen(obs, k)))
        action = sample_actions(nets, out, act_key)
        env_state, new, moved = step_envs(env, env_state, action, env_key)
        log_prob, _ = log_prob_and_entropy(nets, out, action)
        batch = Batch(
            obs=seen(obs, k), action=action, reward=moved.reward,
            terminal=moved.terminal.astype(jnp.float32), next_obs=seen(moved.next_obs, k),
        )  # fmt: skip
        return (env_state, new), Steps(batch, log_prob, jnp.float32(moved.terminal | moved.truncated))

    return jax.lax.scan(step, envs, jax.random.split(key, args.steps_per_iteration // args.n_envs))


def update(
    learner: Learner, steps: Steps, first_return, aim: Aim, key, nets: Networks, args: Args
) -> tuple[Learner, jax.Array, dict]:
    """PPO of one policy on an iteration's steps [T, N]; `first_return` [K] of the round's first one, NaN in that one.

    Returns the mean targets [K], too.
    """
    n, unit = args.steps_per_iteration, scale(learner)
    obs, next_obs = normalize(learner, steps.batch.obs), normalize(learner, steps.batch.next_obs)
    v, next_v = (unit * nets.value.apply(learner.value, x) for x in (obs, next_obs))
    adv = advantages(v, next_v, steps.batch, steps.ended, args)
    target = adv + v
    learner = learner._replace(returns=observe(learner.returns, target.reshape(n, -1)))
    unit, mean_return = scale(learner), target.mean((0, 1))
    first_return = jnp.where(jnp.isnan(first_return), mean_return, first_return)
    weighted = adv @ aim.weights
    weighted = (weighted - weighted.mean()) / (weighted.std() + 1e-5)
    adv = jnp.concatenate([adv - adv.mean((0, 1)), weighted[..., None]], axis=-1)
    batch = Batch(obs=obs, action=steps.batch.action)
    rows = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), (batch, steps.log_prob, adv, v / unit, target / unit))

    def ppo_loss(params, batch, old_log_prob, adv, old_v, target):
        returns = (mean_return, first_return)
        loss, info = actor_loss(params[0], nets, batch, old_log_prob, adv, aim, returns, args)
        loss_v, _ = value_loss(params[1], nets.value, batch, old_v, target, args)
        return loss + args.value_coefficient * loss_v, {"actor_loss": loss, "value_loss": loss_v, **info}

    def step(carry, index):
        params, opt = carry
        grads, info = jax.grad(ppo_loss, has_aux=True)(params, *jax.tree.map(lambda x: x[index], rows))
        updates, opt = optimizer(args).update(grads, opt)
        return (optax.apply_updates(params, updates), opt), info

    order = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(key, args.ppo_epochs))
    size = n // args.n_batches
    order = order[:, : size * args.n_batches].reshape(-1, size)
    (params, opt), info = jax.lax.scan(step, ((learner.actor, learner.value), learner.opt), order)
    seen_now = observe(learner.obs, steps.batch.obs.reshape(n, -1))  # after the update: the ratio began at 1
    learner = learner._replace(actor=params[0], value=params[1], opt=opt, obs=seen_now)
    return learner, first_return, jax.tree.map(jnp.mean, info)


def discounted_returns(learner: Learner, nets: Networks, args: Args, env: JaxEnv):
    """[K] of the policy's most probable actions, mean over the episodes that all policies are compared by."""
    k, n = nets.value.outputs, args.archive_episodes

    def keys(t, count):
        """[n, count] of step t, the same for all policies."""
        return jax.vmap(lambda seed: jax.random.split(jax.random.PRNGKey(seed), count))(20_000 + t * n + jnp.arange(n))

    def step(now):
        t, state, obs, weight, total = now
        action = mode(nets, nets.actor.apply(learner.actor, normalize(learner, seen(obs, k))))
        state, obs, reward, terminal, truncated = jax.vmap(env.step)(state, action, keys(t, 4))
        total = total + weight[:, None] * reward
        return t + 1, state, obs, jnp.where(terminal | truncated, 0.0, args.archive_discount * weight), total

    begun = 1, *jax.vmap(env.reset)(keys(0, 2)), jnp.ones(n), jnp.zeros((n, k))
    return jax.lax.while_loop(lambda now: (now[3] > 0.0).any(), step, begun)[-1].mean(0)


def insert(archive: Archive, learners: Learner, values, args: Args) -> Archive:
    """The archive with those of `learners` [P, ...] of discounted returns `values` [P, K] that belong in it."""
    everyone = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), archive.policies, learners)
    new = jnp.where((values >= jnp.float32(args.reference_point)).all(1, keepdims=True), values, -jnp.inf)
    values = jnp.concatenate([archive.values, new])
    selected = jnp.concatenate([archive.selected, jnp.zeros(len(new), bool)])
    kept = non_dominated(values)
    order = jnp.argsort(-crowding_distance(values, kept))[: args.archive_size]
    take = lambda x: x[order]  # noqa: E731
    values = jnp.where(kept[:, None], values, -jnp.inf)
    return Archive(jax.tree.map(take, everyone), take(values), take(selected & kept))


def select(archive: Archive, args: Args) -> tuple[Archive, jax.Array]:
    """[n_selected] places of the policies that a round goes on from: in the widest gaps, new ones before former ones.

    Where the archive has fewer, they are taken again.
    """
    present = jnp.isfinite(archive.values).all(1)
    by_gap = jnp.argsort(-crowding_distance(archive.values, present))
    order = by_gap[jnp.argsort(jnp.where(present, archive.selected, 2)[by_gap])]  # stable
    chosen = order[jnp.arange(args.n_selected) % jnp.maximum(present.sum(), 1)]
    return archive._replace(selected=archive.selected.at[chosen].set(True)), chosen


def key_numbers(key, n: int):
    """n keys as plain numbers: of a batch of keys, JAX's check for those used twice takes a part for the whole."""
    return jax.random.key_data(jax.random.split(key, n))


def train_round(
    agent: Agent, learners: Learner, aims: Aim, iterations: int, key, args: Args, env: JaxEnv
) -> tuple[Agent, Learner, dict]:
    """So many iterations of the policies [P, ...], each for its aim, in new environments; each enters the archive."""
    nets, n = agent.nets, len(aims.weights)
    begin_key, key = jax.random.split(key)
    envs = jax.vmap(lambda key: begin_envs(env, key, args.n_envs))(key_numbers(begin_key, n))

    def of_one(learner, envs, first_return, aim, key):
        collect_key, update_key = jax.random.split(key)
        envs, steps = collect(learner, envs, collect_key, nets, args, env)
        learner, first_return, info = update(learner, steps, first_return, aim, update_key, nets, args)
        return learner, envs, first_return, discounted_returns(learner, nets, args, env), info

    def iteration(carry, key):
        learners, envs, first_return, archive = carry
        learners, envs, first_return, values, info = jax.vmap(of_one)(
            learners, envs, first_return, aims, key_numbers(key, n)
        )
        return (learners, envs, first_return, insert(archive, learners, values, args)), info

    none = jnp.full((n, nets.value.outputs), jnp.nan)
    keys = jax.random.split(key, iterations)
    (learners, _, _, archive), info = jax.lax.scan(iteration, (learners, envs, none, agent.archive), keys)
    return agent.replace(archive=archive), learners, jax.tree.map(jnp.mean, info)


def init_round(agent: Agent, key, args: Args, env: JaxEnv) -> tuple[Agent, dict]:
    """A round of the first stage: PPO on weighted sums."""
    k = agent.nets.value.outputs
    weights = jnp.float32(simplex_lattice(k, args.weight_divisions))
    iterations = args.n_selected * k * args.round_iterations // len(weights)
    aims = Aim(weights, jnp.zeros_like(weights))
    agent, learners, info = train_round(agent, agent.learners, aims, iterations, key, args, env)
    return agent.replace(learners=learners), info


def extend(agent: Agent, key, args: Args, env: JaxEnv) -> tuple[Agent, dict]:
    """A round of the second stage: every selected policy is trained once for each objective, the others kept."""
    k = agent.nets.value.outputs
    archive, chosen = select(agent.archive, args)
    learners = jax.tree.map(lambda x: x[jnp.repeat(chosen, k)], archive.policies)
    one = jnp.tile(jnp.eye(k), (args.n_selected, 1))
    aims = Aim(one, 1.0 - one)
    agent, _, info = train_round(agent.replace(archive=archive), learners, aims, args.round_iterations, key, args, env)
    return agent, info


def act(agent: Agent, obs, key, args: Args):
    """Deterministic actions [B, A] (or [B]) for observations [B, O + K] that end with a preference w.

    Each is of the archive's policy with the highest w'J.
    """
    k, archive = agent.nets.value.outputs, agent.archive
    present = jnp.isfinite(archive.values).all(1)
    utility = obs[:, -k:] @ jnp.where(present[:, None], archive.values, 0.0).T
    chosen = jnp.where(present, utility, -jnp.inf).argmax(1)

    def one(obs, chosen):
        policy = jax.tree.map(lambda x: x[chosen], archive.policies._replace(opt=(), value=()))
        return mode(agent.nets, agent.nets.actor.apply(policy.actor, normalize(policy, seen(obs, k))))

    return jax.vmap(one)(obs, chosen)


def train(agent: Agent, keys, args: Args, start, env: JaxEnv) -> tuple[Agent, dict]:
    """One lane from environment step `start` on: a round for as many keys as it has steps; mean metrics."""
    unit = round_steps(args, agent.nets.value.outputs)
    keys = keys[::unit]

    def one(agent, x):
        number, key = x
        stages = partial(init_round, args=args, env=env), partial(extend, args=args, env=env)
        return jax.lax.cond(number * unit < args.init_steps, *stages, agent, key)

    agent, metrics = jax.lax.scan(one, agent, (start // unit + jnp.arange(len(keys)), keys))
    return agent, jax.tree.map(jnp.mean, metrics)


def indicators(values: np.ndarray, args: Args) -> dict[str, np.ndarray]:
    """How good each lane's archive [L, C, K] is, an empty one's utility that of the reference point: {name: [L]}."""
    weights = simplex_lattice(values.shape[2], 100 if values.shape[2] == 2 else 10)
    fronts = [lane[np.isfinite(lane).all(1)] for lane in np.asarray(values, np.float64)]
    reference = np.array([args.reference_point])
    return {
        "hypervolume": np.array([hypervolume(x, reference[0]) for x in fronts]),
        "expected_utility": np.array([expected_utility(x if len(x) else reference, weights) for x in fronts]),
        "sparsity": np.array([sparsity(x) for x in fronts]),
        "policies": np.array([len(x) for x in fronts], float),
    }


def count_objectives(env: JaxEnv, spec: Spec) -> int:
    """K."""

    def reward(key):
        begin_key, step_key = jax.random.split(key)
        state, _ = begin_envs(env, begin_key, 1)
        action = jnp.zeros(1, jnp.int32) if spec.discrete else jnp.zeros((1, spec.action_dim))
        return step_envs(env, state, action, step_key)[2].reward

    return jax.eval_shape(reward, jax.random.key(0)).shape[-1]


def checked(args: Args, n_objectives: int) -> Args:
    """`args` in whole rounds.

    Raises:
      InputError: they do not fit each other, or the objectives.
    """
    if len(args.reference_point) != n_objectives:
        raise InputError(f"--reference-point has {len(args.reference_point)} numbers for {n_objectives} objectives.")
    for name in ("barrier_sharpness", "least_margin"):
        if np.min(getattr(args, name)) <= 0.0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}.")
    policies, extended = len(simplex_lattice(n_objectives, args.weight_divisions)), args.n_selected * n_objectives
    if extended * args.round_iterations % policies:
        raise InputError(
            f"A round of {extended} policies x {args.round_iterations} iterations is no whole number of iterations of "
            f"the first stage's {policies} policies; change --round-iterations or --n-selected."
        )
    args = whole_rounds(args, n_objectives)
    if args.n_batches > args.steps_per_iteration:
        raise InputError(f"--n-batches {args.n_batches} is more than an iteration's {args.steps_per_iteration} steps.")
    return args


def main(args: Args) -> None:
    task = env_task(args.env)
    env = of_objectives(require_jax_env(task))
    n_objectives = count_objectives(env, task.spec)
    args = checked(args, n_objectives)
    with Run(__file__, args, task, act, unit=round_steps(args, n_objectives)) as run:
        agent = run.restore(run.init(partial(init, spec=task.spec, n_objectives=n_objectives)))
        train_lanes = run.over_lanes(partial(train, env=env), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, run.done)
            rounds = (run.done + run.chunk) // round_steps(args, n_objectives)
            iterations = args.n_selected * n_objectives * args.round_iterations
            updates = rounds * iterations * args.ppo_epochs * args.n_batches
            run.log(agent, {**metrics, **indicators(agent.archive.values, args)}, updates=updates)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
