"""MAHALO: offline learning from rewards without actions, or from demonstrations, beside actions without rewards.

Li, Boots and Cheng, "MAHALO: Unifying Offline Reinforcement Learning and Imitation Learning from Observations", ICML
2023, arXiv 2303.17156. One part of the data (--dataset, --more-data) has actions and no rewards, another, small one
(--demos) has rewards of transitions (s, s') and perhaps no actions. The policy plays a game, as in ATAC (Cheng et al.,
arXiv 2202.02446), against critic and reward function together: those look for values that agree with Bellman's equation
on the first part and with the rewards of the second, and under which the policy is least better than the data. So a
transition that is unlike the rewarded ones is worth as little as the data allows.

--scenario says what the second part is: demonstrations without rewards (ilfo: their reward is 1) and with actions (il),
rewards without actions (rlfo) and with (rl), or rewards of a few random episodes of the first part (rl_sample). With
--adversarial 0 the reward function is fitted first and left as it is: two steps, reward prediction and ATAC.

With --no-relative the game lowers the policy's values themselves, not what they are above the data's: PSPI (Xie, Cheng,
Jiang, Mineiro and Agarwal, arXiv 2106.06926) in ATAC's place, as --run_pspi of the released code has it, in states of
both parts (PSPI's own are initial ones). To do no worse than the data is ATAC's promise alone.

All three kinds of data may be there at once: with --labelled-fraction a share of the data keeps its labels, beside the
demonstrations of the scenario (in rl_sample: in place of the random episodes), and --hide says what the rest is
without. Every row whose action is known is in the first part, every row whose reward is known (or that is demonstrated)
in the second, in which all rows count alike.

Choose it when rewards or demonstrations come without actions and cover little of what the other data do. Bounds of the
values follow the rewards' range; where episodes end by success, keep --no-remove-terminals.

Parity: one update of the game and of PSPI is equal to AnqiLi/mahalo, with one action dimension (results/parity.md).

Deviations from the released code (AnqiLi/mahalo):
- the fit of the reward function and the warm start of policy and critics run side by side, there one after the other;
- in the warm start no gradient of the critics' loss reaches the reward function, whose fit weighs 1e5 there, and next
  values are clipped, there targets;
- log-probabilities are sums over the action's dimensions, there means;
- weights begin as Flax's do (PyTorch's);
- optimiser states and the entropy's weight go on from the warm start, there they begin anew.

    python algorithms/imitation/mahalo.py --dataset hopper-medium-replay --demos hopper-expert --scenario ilfo
    python algorithms/imitation/mahalo.py --dataset pendulum-weak --demos pendulum-narrow --scenario rlfo --seeds 8 \\
        --adversarial 0 1 --updates 10000 --warm-updates 2000 --actor-lr 1e-4
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
from shared.arguments import Count, DemoArgs, Float, Fraction, LabelArgs, Size, StaticFraction, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.parts import (
    every,
    hidden,
    joined,
    labelled_rows,
    load_all,
    load_demos,
    rank_correlation,
    true_returns,
    with_parts,
)
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(DemoArgs, LabelArgs):
    dataset: str = "hopper-medium-replay"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    scenario: Literal["il", "ilfo", "rl", "rlfo", "rl_sample"] = "rl_sample"
    """What is known of the second part: that it is demonstrated, or its rewards; fo: without its actions; rl_sample: it
    is --demo-episodes random episodes of the data itself."""
    adversarial: Float = 1.0
    """Weight of the reward function's part in the game; 0: it is fitted in the warm start and left as it is."""
    labelled_fraction: StaticFraction = 0.0
    """Share of the data that keeps its labels, in [0, 1]; of the rest (D_U) they are hidden."""
    relative: bool = True
    """The game lowers Q of the policy's actions against that of the data's (ATAC); else by itself, in states of both
    parts (PSPI)."""
    consistency_weight: Float = 10.0
    """beta >= 0: weight of Bellman's errors against pessimism; 0: pessimism alone."""
    reward_weight: Float = 1e5
    """Weight of the known rewards against Bellman's errors, in the reward function's loss."""
    remove_terminals: bool = True
    """Leave out the rows of the data at which an episode terminates (those of demonstrations stay)."""
    warm_updates: Count = 100_000
    """Gradient updates of the warm start, before the first of the game: cloning, its values, and the rewards' fit.
    0: the game begins at once."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 5e-7
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 5e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    alpha_lr: Float = 5e-4
    """Adam's step size: entropy temperature."""
    max_norm: Float = 100.0
    """Largest Frobenius norm of a weight matrix of the critics."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}
LOG_STD = (float(np.log(1e-5)), float(np.log(10.0)))


class Actor(nn.Module):
    """Mean and log standard deviation of a Gaussian under tanh; the latter begins at 0 everywhere."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        mean = nn.Dense(self.action_dim)(x)
        log_std = nn.Dense(self.action_dim, kernel_init=nn.initializers.zeros)(x)
        return mean, jnp.clip(log_std, *LOG_STD)


class MLP(nn.Module):
    """[B] of inputs behind each other: Q(s, a), or R(s, s', terminal)."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    net: MLP
    """Of critics and of the reward function."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    reward: Any
    """The reward function."""
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    """Of (critic, reward)."""
    alpha_opt: optax.OptState


class Bounds(NamedTuple):
    """Of rewards."""

    reward_low: jax.Array
    reward_high: jax.Array


class Parts(NamedTuple):
    """Both parts of the data on the device."""

    transitions: Transitions
    """With actions, without rewards"""
    rewarded: Transitions
    """With rewards, without actions"""
    bounds: Bounds
    every: Transitions
    """Rows of the first part's whole episodes, by which labels are compared with the truth, for the log alone"""
    episode: jax.Array
    """[N] of them"""
    returns: jax.Array
    """[E] true returns; [0]: there are none"""


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def tanh_gaussian(mean, log_std, noise):
    """Actions a = tanh(mean + std noise) [..., A], and log pi(a) [...]."""
    u = mean + jnp.exp(log_std) * noise
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def weighted_sum(first, second, weight):
    """first + weight second, divided by the weight where that is above 1: gradients stay of one size."""
    return jnp.where(weight > 1.0, first / jnp.maximum(weight, 1.0) + second, first + weight * second)


def q_values(net: MLP, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def rewards_of(net: MLP, reward, batch: Batch):
    """[B] R(s, s', terminal)"""
    return net.apply(reward, batch.obs, batch.next_obs, batch.terminal[..., None])


def squares(q, y):
    """Mean squared errors of Q [E, B], summed over the critics."""
    return ((q - y) ** 2).mean(-1).sum()


def bellman(params, agent: Agent, batch: Batch, noise, bounds: Bounds, args: Args):
    """Q [E, B], rewards [B] as given and within their bounds, and discounted next values: the targets' [B], own [E, B].

    Next values lie between twice the rewards' bounds (and -1 and 1) over 1 - gamma.
    """
    critic, reward = params
    label = rewards_of(agent.nets.net, reward, batch)
    low = jnp.minimum(-1.0, 2.0 * bounds.reward_low) / (1.0 - args.discount)
    high = jnp.maximum(1.0, 2.0 * bounds.reward_high) / (1.0 - args.discount)
    action, _ = tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), noise)
    left = args.discount * (1.0 - batch.terminal)
    target = left * jnp.clip(q_values(agent.nets.net, agent.target_critic, batch.next_obs, action).min(0), low, high)
    own = left * jnp.clip(q_values(agent.nets.net, critic, batch.next_obs, action), low, high)
    q = q_values(agent.nets.net, critic, batch.obs, batch.action)
    chex.assert_shape([label, target, own[0], q[0]], (args.batch_size,))
    return q, label, jnp.clip(label, *bounds), target, own


def reward_loss(reward, agent: Agent, rewarded: Batch):
    """(R(s, s', terminal) - r)^2 on the part whose rewards are known."""
    return ((rewards_of(agent.nets.net, reward, rewarded) - rewarded.reward) ** 2).mean()


def critic_loss(params, agent: Agent, batch: Batch, rewarded: Batch, noise, bounds: Bounds, args: Args, states=None):
    """The game's: pessimism + beta Bellman's errors of Q, and those of R + reward_weight its fit (in weighted_sum).

    Bellman's errors are half with target critics and half residual, through the critics' own next values. Rewards see
    Q as given and Q sees the rewards as given, within their bounds. Pessimism is Q(s, pi) - Q(s, a) of the batch, or
    Q(s, pi) of `states` [B, O] alone.
    """
    stop = jax.lax.stop_gradient
    q, label, clipped, target, own = bellman(params, agent, batch, noise[0], bounds, args)
    states, over = (batch.obs, q) if args.relative else (states, 0.0)
    action, _ = tanh_gaussian(*agent.nets.actor.apply(agent.actor, states), noise[1 if args.relative else 2])
    pessimism = (q_values(agent.nets.net, params[0], states, action) - over).mean(1).sum()
    error = 0.5 * squares(q, stop(clipped) + target) + 0.5 * squares(q, stop(clipped) + own)
    reward_error = 0.5 * squares(stop(q), label + target) + 0.5 * squares(stop(q), label + stop(own))
    fit = reward_loss(params[1], agent, rewarded)
    loss = weighted_sum(pessimism, error, args.consistency_weight)
    loss += args.adversarial * weighted_sum(reward_error, fit, args.reward_weight)
    info = {"pessimism": pessimism, "bellman_error": error, "reward_error": fit, "reward": clipped.mean()}
    return loss, {**info, "q": q.mean()}


def warm_critic_loss(params, agent: Agent, batch: Batch, rewarded: Batch, noise, bounds: Bounds, args: Args):
    """The warm start's: Bellman's errors of Q with rewards as given, and the fit of R."""
    q, _, clipped, target, own = bellman(params, agent, batch, noise[0], bounds, args)
    reward = jax.lax.stop_gradient(clipped)
    error = 0.5 * squares(q, reward + target) + 0.5 * squares(q, reward + own)
    fit = reward_loss(params[1], agent, rewarded)
    return error + fit, {"bellman_error": error, "reward_error": fit, "reward": clipped.mean(), "q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, noise, args: Args):
    """-Q_2(s, a) - alpha entropy (in weighted_sum), a ~ pi."""
    action, log_prob = tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), noise)
    q = agent.nets.net.apply(jax.tree.map(lambda x: x[-1], agent.critic), batch.obs, action)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    alpha = jnp.exp(agent.log_alpha)
    return weighted_sum(-q.mean(), log_prob.mean(), alpha), {"entropy": -log_prob.mean(), "alpha": alpha}


def warm_actor_loss(actor, agent: Agent, batch: Batch, noise, args: Args):
    """-log pi(a|s) of the data - alpha entropy (in weighted_sum)."""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    of_data = tanh_gaussian_log_prob(mean, log_std, jnp.arctanh(jnp.clip(batch.action, -1.0 + 1e-6, 1.0 - 1e-6)))
    _, log_prob = tanh_gaussian(mean, log_std, noise)
    chex.assert_shape([of_data, log_prob], (args.batch_size,))
    alpha = jnp.exp(agent.log_alpha)
    return weighted_sum(-of_data.mean(), log_prob.mean(), alpha), {"entropy": -log_prob.mean(), "alpha": alpha}


def bounded(critic, args: Args):
    """The critics, their weight matrices scaled down to a norm of at most `max_norm`."""

    def scaled(x):
        if x.ndim < 3:  # a bias [E, H]
            return x
        norm = jnp.linalg.norm(x, axis=(1, 2), keepdims=True)
        return x * jnp.minimum(args.max_norm / jnp.maximum(norm, 1e-12), 1.0)

    return jax.tree.map(scaled, critic)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims))
    actor_key, critic_key, reward_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.net.init(k, obs, action), jax.random.split(critic_key, 2))
    reward = nets.net.init(reward_key, obs, obs, jnp.zeros((1, 1)))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        reward=reward,
        log_alpha=jnp.zeros(()),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init((critic, reward)),
        alpha_opt=optax.adam(args.alpha_lr).init(jnp.zeros(())),
    )


def update(
    agent: Agent, batch: Batch, rewarded: Batch, key, bounds: Bounds, args: Args, warm: bool = False, states=None
) -> tuple[Agent, dict]:
    """One gradient step of critics and rewards, then of the entropy's weight, then of the actor by the new critics.

    In the warm start the actor is cloned, with the critics' step size.
    """
    noise = jax.random.normal(key, (2 if warm or args.relative else 3, *batch.action.shape))
    grad = jax.value_and_grad(warm_critic_loss if warm else partial(critic_loss, states=states), has_aux=True)
    params = agent.critic, agent.reward
    (loss_q, info_q), grads = grad(params, agent, batch, rewarded, noise, bounds, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic, reward = optax.apply_updates(params, updates)
    critic = bounded(critic, args)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(critic=critic, reward=reward, target_critic=target_critic, critic_opt=critic_opt)

    _, log_prob = tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), noise[1])
    grad_alpha = batch.action.shape[-1] - log_prob.mean()  # of log alpha (entropy - target), the target -dim(A)
    updates, alpha_opt = optax.adam(args.alpha_lr).update(grad_alpha, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    grad = jax.value_and_grad(warm_actor_loss if warm else actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, noise[1], args)
    updates, actor_opt = optax.adam(args.critic_lr if warm else args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: tanh of the mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def states_of_both(keys, parts: Parts, args: Args):
    """[B, O] observations, of all rows of both parts alike."""
    first, second = parts.transitions.sample(keys[0], args.batch_size), parts.rewarded.sample(keys[1], args.batch_size)
    share = len(parts.rewarded.rows) / (len(parts.transitions.rows) + len(parts.rewarded.rows))
    return jnp.where(jax.random.bernoulli(keys[2], share, (args.batch_size, 1)), second.obs, first.obs)


def train(agent: Agent, keys, args: Args, parts: Parts, warm: bool) -> tuple[Agent, dict]:
    """One lane: one update per key, of the game or of the warm start; mean metrics."""

    def step(agent, key):
        absolute = not (warm or args.relative)
        batch_key, rewarded_key, update_key, *more = jax.random.split(key, 6 if absolute else 3)
        batch = parts.transitions.sample(batch_key, args.batch_size)
        rewarded = parts.rewarded.sample(rewarded_key, args.batch_size)
        states = states_of_both(more, parts, args) if absolute else None
        return update(agent, batch, rewarded, update_key, parts.bounds, args, warm, states)

    agent, metrics = jax.lax.scan(step, agent, keys)
    metrics = jax.tree.map(jnp.mean, metrics)
    if len(parts.returns):
        label = rewards_of(agent.nets.net, agent.reward, parts.every.take(jnp.arange(len(parts.episode))))
        label = jnp.clip(label, *parts.bounds)
        label_returns = jax.ops.segment_sum(label, parts.episode, len(parts.returns))
        metrics["label_correlation"] = rank_correlation(label_returns, parts.returns)
    return agent, metrics


def labelled_part(data: Dataset, args: Args) -> np.ndarray:
    """[N] bool: rows of the data that keep their labels.

    Raises:
      InputError: rl_sample has none.
    """
    if args.labelled_fraction:
        return labelled_rows(data, args)
    if args.scenario != "rl_sample":
        return ~every(data)
    chosen = np.random.default_rng(args.split_seed).permutation(len(data.ends()))[: args.demo_episodes]
    rows = np.isin(data.episode(), chosen)
    if not rows.any():
        raise InputError(f"--demo-episodes {args.demo_episodes}: rl_sample needs one whose rewards are known.")
    return rows


def load_parts(args: Args) -> tuple[Dataset, Dataset, Dataset, np.ndarray | None]:
    """The rows with actions, those with rewards, the data before anything was joined or left out, its true returns.

    Raises:
      InputError: as `load_all` and `load_demos`; a scenario without --demos; no row is left.
    """
    demonstrates = args.scenario != "rl_sample"
    if demonstrates and not args.demos:
        raise InputError(f"--scenario {args.scenario} needs --demos: demonstrations apart from the data.")
    truth = load_all(args, (args.dataset, *args.more_data), args.demos if demonstrates else ())
    needs_rewards = not demonstrates or args.labelled_fraction > 0 or "rewards" not in args.hide
    truth = truth.require(discrete=False, reward=needs_rewards)
    labelled, parts, rewarded = labelled_part(truth, args), {}, []
    if demonstrates:
        demos, shows = load_demos(args, truth), args.scenario.startswith("il")
        parts["demonstrations"] = demos, every(demos)
        demos = demos.require(discrete=False, reward=not shows)
        rewarded.append(demos.replace({}, reward=np.ones(len(demos.obs), np.float32)) if shows else demos)
    if labelled.any():
        parts["labelled"] = truth, labelled
    parts["unlabelled"] = truth, ~labelled
    with_action, with_reward = (labelled | (what not in args.hide) for what in ("actions", "rewards"))
    if with_reward.any():
        rewarded.append(truth.select(with_reward).replace({}, {"baselines": {}}))  # rows are no episodes
    rewarded, whole = joined(rewarded), with_parts(hidden(truth, ("rewards",)), parts)
    if "actions" in args.hide:
        whole = hidden(whole, ("actions",), ~labelled)
    whole = whole.replace({"hidden": sorted(args.hide)})
    kept = ~whole.terminal if args.remove_terminals else every(whole)
    data = [whole.select(kept & with_action)] if with_action.any() else []
    if args.scenario in ("il", "rl"):
        data.append(hidden(demos, ("rewards",)))
    if not any(x.usable("obs", "action", "next_obs").any() for x in data):
        raise InputError(
            f"'{whole.task.id}' has no row of known action that is not its episode's last; pass --no-remove-terminals "
            "or --hide rewards."
        )
    return joined(data), rewarded, whole, true_returns(truth)


def parts_of(args: Args) -> tuple[Dataset, Parts]:
    """The data whose task is trained on, and what lies on the device."""
    data, rewarded, whole, returns = load_parts(args)
    fields = ("obs", "action", "terminal", "next_obs")
    known = [rewarded.reward, [0.0, 1.0] if args.scenario.startswith("il") else []]
    bounds = Bounds(*(jnp.float32(end(np.concatenate(known))) for end in (np.min, np.max)))
    episode = jnp.asarray(whole.episode()[whole.usable(*fields)])
    true = jnp.asarray(np.zeros(0) if returns is None else returns, jnp.float32)
    shown = rewarded.transitions("obs", "reward", "terminal", "next_obs")
    return data, Parts(data.transitions(*fields), shown, bounds, whole.transitions(*fields), episode, true)


def main(args: Args) -> None:
    if np.max(args.discount) >= 1.0:
        raise InputError(f"--discount must be below 1, not {args.discount}: values have no bounds else.")
    for name in ("adversarial", "consistency_weight", "reward_weight"):
        if np.min(getattr(args, name)) < 0.0:
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(args, name)}.")
    if np.min(args.max_norm) <= 0.0:
        raise InputError(f"--max-norm must be above 0, not {args.max_norm}: critics have no weights else.")
    if not args.warm_updates and np.min(args.adversarial) == 0.0:
        raise InputError("--adversarial 0: rewards are fitted in the warm start alone, and --warm-updates 0 has none.")
    data, parts = parts_of(args)
    with Run(__file__, args, data.task, act, before=args.warm_updates) as run:
        parts = run.replicate(parts)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        axes = (0, 0, 0, None)
        warm_lanes = run.over_lanes(partial(train, warm=True), in_axes=axes, donate=True)
        train_lanes = run.over_lanes(partial(train, warm=False), in_axes=axes, donate=True)
        for keys in run.chunks():
            agent, metrics = (warm_lanes if run.done < 0 else train_lanes)(agent, keys, run.lane_args, parts)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
