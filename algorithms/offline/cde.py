"""CDE: Conservative Density Estimation, a ratio of densities that is bounded where there are no data.

Cen, Liu, Wang, Yao, Lam and Zhao, "Learning from Sparse Offline Datasets via Conservative Density Estimation", ICLR
2024, arXiv 2401.08819. As in other corrections of stationary distributions (DICE) the dual of maximising returns under
an f-divergence is a function V(s) alone; its advantage A = r + gamma V(s') - V(s) gives the ratio w = r((A - eta) /
alpha) of the best policy's density to the data's, whose mean is 1 by the multiplier eta. E(s, a) learns A as a function
of actions, and at actions away from the data it is pushed under the advantage at which the ratio is --ood-ratio. The
policy is the projection of w times the data's policy, which is a mixture of Gaussians, or weighted cloning.

Choose it when rewards are sparse or trajectories few, and values that are bootstrapped from unseen actions break down.

Parity: equal to the authors' code, update for update, but for how actions away from the data are drawn, the age of the
weights in cloning and the form of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- settings are those of the authors' code (czp16/cde-offline-rl): soft chi-square, E is the advantage itself;
- the updates of V, E and the data's policy before the first one of the policy are a phase of their own;
- actions away from the data are drawn at once, uniformly from what is left of [-1, 1], not by up to ten new draws;
- cloning is weighted by E and its multiplier after their step (the authors': before it);
- where fewer than 10 rows belong to episodes that end in a positive reward, all rows count alike in the projection;
- all policies are squashed by tanh (the authors' code leaves it out for Adroit's human demonstrations);
- observations are divided by std + 1e-3, biases start at zero but in the last layer of V and E;
- its sparse rewards for MuJoCo (1 from the step on at which the return exceeds a threshold) are not made here;
- --episode-share keeps some of the episodes, the same ones in all lanes; the authors' code draws them by its seed.

    python algorithms/offline/cde.py --dataset pointmaze-umaze --seeds 4 --updates 20000 --dual-updates 5000
    python algorithms/offline/cde.py --dataset point-umaze-mixed --episode-share 0.1 --zeta 0.9 1 --hidden-dims 64 64

The second one, with zeta = 1, is CDE without the bound.
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, StaticFraction, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 400_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    dual_updates: Count = 100_000
    """Updates of V, E and the data's policy before the first of the policy, with which they go on; 0: none before."""
    divergence_weight: Float = 0.1
    """alpha: weight of the f-divergence between the policy's density and the data's, > 0."""
    zeta: Fraction = 0.9
    """Weight of the data in E's loss and of log pi_data in the projection, in [0, 1]; the bound has the rest of E's."""
    ood_ratio: Float = 0.3
    """epsilon: largest ratio of densities at actions away from the data, > 0."""
    n_ood_actions: Size = 5
    """Such actions for each row of a batch."""
    ood_distance: Float = 0.1
    """Nearest that they are to the row's action in each dimension, or the std of the data's policy if that is less."""
    extraction: Literal["projection", "cloning"] = "projection"
    """How the policy follows from the ratio: information projection, or cloning weighted by it."""
    n_components: Size = 3
    """Gaussians in the mixture that clones the data."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    behavior_lr: Float = 3e-4
    """Adam's step size: the data's policy."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    standardize_reward: bool = True
    """Rewards to mean 0 and standard deviation 1 in training."""
    reward_scale: float = 0.1
    """Rewards are multiplied by this in training."""
    episode_share: StaticFraction = 1.0
    """Share of the episodes that is learned from, at least one."""


_maze = {"divergence_weight": 0.001, "dual_updates": 20_000, "updates": 80_000, "eval_episodes": 20}
_hand = {"divergence_weight": 0.01, "dual_updates": 40_000, "updates": 160_000, "eval_episodes": 20}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"divergence_weight": 0.1, "eval_episodes": 20}),
    **dict.fromkeys(("maze2d", "pointmaze"), _maze),
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), _hand),
    **{f"{hand}-human": {**_hand, "extraction": "cloning"} for hand in ("pen", "door", "hammer", "relocate")},
}

torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def uniform(bound: float):
    """Initialises within [-bound, bound]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=torch_init)(x))
        mean = nn.Dense(self.action_dim, kernel_init=torch_init, name="mean")(x)
        log_std = nn.Dense(self.action_dim, kernel_init=uniform(1e-3), name="log_std")(x)
        return jnp.clip(mean, -7.24, 7.24), jnp.clip(log_std, -5.0, 2.0)


class BehaviorPolicy(nn.Module):
    """The data's policy, a mixture of tanh-Gaussians: means, log stds [..., K, A], log weights [..., K]."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    components: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=torch_init)(x))
        shape = (*obs.shape[:-1], self.components, self.action_dim)
        mean = nn.Dense(self.components * self.action_dim, kernel_init=torch_init, name="mean")(x)
        log_std = nn.Dense(self.components * self.action_dim, kernel_init=uniform(1e-3), name="log_std")(x)
        weight = jax.nn.log_softmax(nn.Dense(self.components, kernel_init=torch_init, name="weight")(x))
        return mean.reshape(shape), jnp.clip(log_std, -5.0, 2.0).reshape(shape), weight


class Value(nn.Module):
    """V(s), or E(s, a) where there is an action: [...]"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=torch_init)(x))
        return nn.Dense(1, kernel_init=uniform(3e-3), bias_init=uniform(3e-3))(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    behavior: BehaviorPolicy
    value: Value


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    behavior: Any
    """The data's policy."""
    value: Any
    """V"""
    advantage: Any
    """E"""
    eta_v: jax.Array
    """Multiplier by which the ratio of V's advantage has mean 1."""
    eta_e: jax.Array
    """And of E's."""
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    behavior_opt: optax.OptState
    dual_opt: optax.OptState
    """Of V, its multiplier, E and its multiplier."""
    alpha_opt: optax.OptState


class Data(NamedTuple):
    """On the device."""

    transitions: Transitions
    optimal: jax.Array
    """[N] 1 in episodes that end in a positive reward, else 0."""
    first_obs: jax.Array
    """[E, O] first observations of the episodes"""


class Rows(NamedTuple):
    """A batch, and what belongs to it."""

    batch: Batch
    optimal: jax.Array
    """[B]"""
    first_obs: jax.Array
    """[B, O], of episodes of their own"""


# ------------------------------------------------------------------------------------- soft chi-square


def ratio(x):
    """w = (f')^-1(x), which is never negative: exp(x) below 0, x + 1 above."""
    return jnp.where(x < 0.0, jnp.exp(jnp.minimum(x, 0.0)), x + 1.0)


def log_ratio(x):
    """log w, without underflow."""
    return jnp.where(x < 0.0, x, jnp.log1p(jnp.maximum(x, 0.0)))


def divergence(x):
    """f(w(x)), f(w) = w log w - w + 1 below w = 1, (w - 1)^2 / 2 above."""
    below = jnp.minimum(x, 0.0)
    return jnp.where(x < 0.0, (below - 1.0) * jnp.exp(below) + 1.0, 0.5 * x**2)


def slope(w):
    """f'(w): log w below 1, w - 1 above."""
    return jnp.where(w < 1.0, jnp.log(w), w - 1.0)


# ---------------------------------------------------------------------------------------------- policies


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def before_tanh(action):
    """u [..., A] with tanh(u) = a, of actions kept away from -1 and 1."""
    return jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))


def behavior_log_prob(agent: Agent, behavior, obs, u):
    """log pi_data(u|s) [...] before tanh."""
    mean, log_std, weight = agent.nets.behavior.apply(behavior, obs)
    log_prob = jax.scipy.stats.norm.logpdf(u[..., None, :], mean, jnp.exp(log_std)).sum(-1)
    return jax.nn.logsumexp(weight + log_prob, axis=-1)


def ood_actions(agent: Agent, batch: Batch, key, args: Args):
    """Actions [n, B, A], in each dimension uniform in [-1, 1] without what is near to the row's action."""
    near = jnp.zeros(())
    if args.extraction == "projection":
        log_std = agent.nets.behavior.apply(agent.behavior, batch.obs)[1]
        near = jnp.minimum(jnp.exp(log_std).mean(-2), args.ood_distance)
    low, high = jnp.maximum(batch.action - near, -1.0), jnp.minimum(batch.action + near, 1.0)
    free = 2.0 - (high - low)
    action = free * jax.random.uniform(key, (args.n_ood_actions, *batch.action.shape)) - 1.0
    return jnp.where(action < low, action, action + (high - low))


# ------------------------------------------------------------------------------------------------ losses


def td_advantage(value, agent: Agent, batch: Batch, args: Args):
    """A(s, a) = r + gamma V(s') - V(s) [B]"""
    v, next_v = agent.nets.value.apply(value, batch.obs), agent.nets.value.apply(value, batch.next_obs)
    chex.assert_shape([v, next_v, batch.reward], (args.batch_size,))
    return batch.reward + args.discount * (1.0 - batch.terminal) * next_v - v


def value_loss(value, agent: Agent, rows: Rows, args: Args):
    """w (A - eta) - alpha f(w) + eta, and (1 - gamma) V(s_0): means. V learns through all of its terms."""
    adv = td_advantage(value, agent, rows.batch, args) - agent.eta_v
    x = adv / args.divergence_weight
    w, f = ratio(x), divergence(x)
    first = (1.0 - args.discount) * agent.nets.value.apply(value, rows.first_obs).mean()
    info = {"ratio": w.mean(), "ratio_max": w.max(), "divergence": f.mean(), "adv": adv.mean() + agent.eta_v}
    return (w * adv - args.divergence_weight * f).mean() + agent.eta_v + first, info


def multiplier_loss(eta, adv, args: Args):
    """w (A - eta) + eta with w held fixed: eta grows while the mean of w is above 1."""
    w = jax.lax.stop_gradient(ratio((adv - eta) / args.divergence_weight))
    return (w * (adv - eta) + eta).mean()


def advantage_loss(advantage, agent: Agent, batch: Batch, adv, key, args: Args):
    """zeta (E(s, a) - A)^2 + (1 - zeta) relu(E(s, a_ood) - eta - alpha f'(epsilon))^2: means."""
    e = agent.nets.value.apply(advantage, batch.obs, batch.action)
    action = ood_actions(agent, batch, key, args)
    e_ood = agent.nets.value.apply(advantage, jnp.broadcast_to(batch.obs, (len(action), *batch.obs.shape)), action)
    chex.assert_shape([e, adv], (args.batch_size,))
    chex.assert_shape(e_ood, (args.n_ood_actions, args.batch_size))
    error = ((e - adv) ** 2).mean()
    above = nn.relu(e_ood - agent.eta_e - args.divergence_weight * slope(args.ood_ratio))
    w_ood = ratio((e_ood - agent.eta_e) / args.divergence_weight)
    info = {"advantage_error": error, "ood_loss": (above**2).mean(), "ratio_ood": w_ood.mean()}
    return args.zeta * error + (1.0 - args.zeta) * (above**2).mean(), {"e": e, **info}


def behavior_loss(behavior, agent: Agent, batch: Batch):
    """-log pi_data(a|s), but for the density's term of tanh, which no parameter changes."""
    return -behavior_log_prob(agent, behavior, batch.obs, before_tanh(batch.action)).mean()


def actor_loss(actor, agent: Agent, rows: Rows, key, args: Args):
    """-optimal (log w(s, a) - log pi(u|s) + zeta log pi_data(u|s)), a = tanh(u) ~ pi; or -w log pi(a_data|s).

    Beside it minus the entropy by its temperature. Densities in the projection are those before tanh.
    """
    batch = rows.batch
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    entropy = -tanh_gaussian_log_prob(mean, log_std, u).mean()
    action = jnp.tanh(u) if args.extraction == "projection" else batch.action
    x = (agent.nets.value.apply(agent.advantage, batch.obs, action) - agent.eta_e) / args.divergence_weight
    if args.extraction == "projection":
        log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std)).sum(-1)
        kl = log_prob - args.zeta * behavior_log_prob(agent, agent.behavior, batch.obs, u)
        gain, info = rows.optimal * (log_ratio(x) - kl), {"log_ratio": log_ratio(x).mean(), "kl": kl.mean()}
    else:
        gain, info = ratio(x) * tanh_gaussian_log_prob(mean, log_std, before_tanh(action)), {}
    chex.assert_shape(gain, (args.batch_size,))
    return -gain.mean() - jnp.exp(agent.log_alpha) * entropy, {"entropy": entropy, **info}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        BehaviorPolicy(args.hidden_dims, spec.action_dim, args.n_components),
        Value(args.hidden_dims),
    )
    actor_key, behavior_key, value_key, advantage_key = jax.random.split(key, 4)
    obs, action, zero = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim)), jnp.zeros(())
    actor, behavior = nets.actor.init(actor_key, obs), nets.behavior.init(behavior_key, obs)
    value, advantage = nets.value.init(value_key, obs), nets.value.init(advantage_key, obs, action)
    return Agent(
        nets=nets,
        actor=actor,
        behavior=behavior,
        value=value,
        advantage=advantage,
        eta_v=zero,
        eta_e=zero,
        log_alpha=zero,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        behavior_opt=optax.adam(args.behavior_lr).init(behavior),
        dual_opt=optax.adam(args.critic_lr).init((value, zero, advantage, zero)),
        alpha_opt=optax.adam(args.actor_lr).init(zero),
    )


def update_dual(agent: Agent, rows: Rows, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, E, both multipliers and the data's policy; all losses are of the old parameters."""
    batch, adv = rows.batch, td_advantage(agent.value, agent, rows.batch, args)
    grad = jax.value_and_grad(value_loss, has_aux=True)
    (loss_v, info_v), grad_v = grad(agent.value, agent, rows, args)
    grad = jax.value_and_grad(advantage_loss, has_aux=True)
    (loss_e, info_e), grad_e = grad(agent.advantage, agent, batch, adv, key, args)
    grad_eta_v = jax.grad(multiplier_loss)(agent.eta_v, adv, args)
    grad_eta_e = jax.grad(multiplier_loss)(agent.eta_e, info_e.pop("e"), args)
    grads = (grad_v, grad_eta_v, grad_e, grad_eta_e)
    updates, dual_opt = optax.adam(args.critic_lr).update(grads, agent.dual_opt)
    dual = optax.apply_updates((agent.value, agent.eta_v, agent.advantage, agent.eta_e), updates)
    new = dict(zip(("value", "eta_v", "advantage", "eta_e"), dual, strict=True), dual_opt=dual_opt)

    metrics = {"value_loss": loss_v, "advantage_loss": loss_e, **info_v, **info_e}
    metrics |= {"eta_v": agent.eta_v, "eta_e": agent.eta_e}
    if args.extraction == "projection":
        metrics["behavior_loss"], grads = jax.value_and_grad(behavior_loss)(agent.behavior, agent, batch)
        updates, new["behavior_opt"] = optax.adam(args.behavior_lr).update(grads, agent.behavior_opt)
        new["behavior"] = optax.apply_updates(agent.behavior, updates)
    return agent.replace(**new), metrics


def update(agent: Agent, rows: Rows, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the dual, then of the policy with it, then of the temperature."""
    dual_key, actor_key = jax.random.split(key)
    agent, metrics = update_dual(agent, rows, dual_key, args)
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, rows, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info["entropy"], rows.batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    metrics |= {"actor_loss": loss, "alpha": jnp.exp(agent.log_alpha), **info}
    return agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def sample(data: Data, key, args: Args) -> Rows:
    """Rows of the data and, drawn by themselves, first observations."""
    row_key, first_key = jax.random.split(key)
    row = data.transitions.draw(row_key, args.batch_size)
    first = jax.random.randint(first_key, (args.batch_size,), 0, len(data.first_obs))
    return Rows(data.transitions.take(row), data.optimal[row], data.first_obs[first])


def fit_dual(agent: Agent, keys, args: Args, data: Data) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the dual per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update_dual(agent, sample(data, batch_key, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, data: Data) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(data, batch_key, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def on_device(data: Dataset, reward: np.ndarray) -> Data:
    """The usable rows, which of them belong to episodes whose last of `reward` [N] is positive, and first observations.

    Where there are fewer than 10 such rows, all are taken for them.
    """
    optimal = (reward[data.ends()] > 0.0)[data.episode()][data.usable()]
    optimal = optimal if optimal.sum() >= 10 else np.ones(len(optimal), bool)
    first_obs = jnp.asarray(data.obs[data.starts()])
    return Data(data.transitions(), jnp.asarray(optimal, jnp.float32), first_obs)


def main(args: Args) -> None:
    if min(*np.ravel(args.divergence_weight), *np.ravel(args.ood_ratio)) <= 0:
        raise InputError(
            "--divergence-weight and --ood-ratio must be over 0: advantages and ratios are divided by them."
        )
    data = load_dataset(args).require(discrete=False)
    data = data.some_episodes(max(1, round(args.episode_share * len(data.ends()))))
    reward = data.reward
    if args.standardize_reward:
        data.reward_range()  # refuses rewards that are all equal
        mean, scale = float(reward.mean(dtype=np.float64)), args.reward_scale / float(reward.std(dtype=np.float64))
        data = data.scale_rewards(scale, -scale * mean)
    else:
        data = data.scale_rewards(args.reward_scale)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, before=args.dual_updates) as run:
        rows = run.replicate(on_device(data, reward))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit_dual, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, rows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
