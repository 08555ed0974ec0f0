"""SERA: Cal-QL whose online rewards grow with how rare a state is among those of the same value.

Zhang, Xiao Xiong, Zhuang et al., "Sample Efficient Reward Augmentation in Offline-to-Online Reinforcement Learning",
arXiv 2310.19805. A policy from offline data hardly leaves the data; rewards for rare states make it explore, but draw
it away from good ones. So a state's rarity is measured among states of like value only: the k-nearest-neighbour
estimate of the entropy of s given Q(s, a) (value-conditional state entropy, arXiv 2305.19476). Online, the critics
learn from r + weight tanh(H(s | Q)); the data's returns, which bound Cal-QL's penalty, stay those of the true reward.
--condition none is the plain state entropy, --bonus-weight 0 is Cal-QL.

Choose it when the data do not show the goal, and a policy pre-trained on them does not look for it.

Deviations from the paper:
- no code is public: the weight 1 and 12 neighbours are ours. The code of value-conditional state entropy has weights
  of 0.1 (with SAC and DrQ-v2) and 0.005 (MiniGrid), without tanh, and its 12 neighbours are the state and 11 others;
- Q is the current critics' lesser one, which begins as the offline one and learns from augmented rewards; that code
  has critics of their own for it, of the true reward;
- the bonus is of the state acted in;
- everything else is cal_ql's, word for word, with its deviations.

    python algorithms/offline_to_online/sera.py --dataset point-fourrooms-partial --seeds 4 --offline-updates 10000
    python algorithms/offline_to_online/sera.py --dataset pointmaze-umaze --seeds 4 --condition none
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
from shared.arguments import FinetuneArgs, Float, Fraction, Positive, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, concatenate, episode_returns
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, TransitionsWithReturns


@hyperparameters
class Args(FinetuneArgs):
    bonus_weight: Float = 1.0
    """Online, tanh of the state entropy's estimate, times this, is added to rewards in training; 0: Cal-QL."""
    entropy_neighbours: Size = 12
    """k of the nearest-neighbour estimate of the entropy."""
    condition: Literal["q", "none"] = "q"
    """A state's neighbours are those of like Q, or any."""
    calibrate: bool = True
    """Bound the policy actions' Q in the soft maximum by the return-to-go (eq. 5.1 of Cal-QL); without it: CQL."""
    failure_reward: float | None = None
    """Sparse tasks: the environment's reward of a step without success (0 in AntMaze, -1 in binary Adroit); an
    episode of nothing else counts as failing for ever, failure_reward / (1 - gamma) after scale and shift."""
    endless: bool = False
    """An episode's last reward goes on for ever where it did not terminate (tasks that go on paying)."""
    online_share: StaticFraction = 0.5
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    cql_temperature: Positive = 1.0
    """Temperature of the soft maximum."""
    importance_sampling: bool = True
    """Weight the soft maximum's actions by their densities; without it the data's action is one of them."""
    lagrange: bool = False
    """Tune the penalty's weight so that the gap stays near target_gap."""
    target_gap: Float = 1.0
    """Gap between soft maximum and the data's Q that --lagrange aims at."""
    max_q_backup: bool = True
    """Bootstrap from the best of several actions of the policy instead of one."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    actor_hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of the actor."""
    hidden_dims: tuple[int, ...] = (256, 256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_sparse = {"reward_scale": 10.0, "reward_shift": -5.0, "failure_reward": 0.0}
_eval = {"eval_episodes": 20}
_locomotion = {"hidden_dims": (256, 256), "offline_updates": 250_000}
_dense_hand = {"cql_alpha": 1.0, "hidden_dims": (256,) * 3, "actor_hidden_dims": (256,) * 3}
_binary_hand = {
    "cql_alpha": 1.0, "hidden_dims": (512,) * 3, "actor_hidden_dims": (512, 512), "offline_updates": 20_000,
    "reward_scale": 10.0, "reward_shift": 5.0, "failure_reward": -1.0, **_eval,
}  # fmt: skip
PRESETS = {
    "antmaze": {**_sparse, "lagrange": True, "target_gap": 0.8, **_eval},
    "pointmaze": {**_sparse, "endless": True},  # ours, after AntMaze: the environment goes on paying at the goal
    "kitchen": {
        "hidden_dims": (512,) * 3, "actor_hidden_dims": (512,) * 3, "offline_updates": 500_000,
        "env_steps": 1_500_000, "online_share": 0.75, "importance_sampling": False, "endless": True, **_eval,
    },
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _locomotion),
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), _dense_hand),
    **dict.fromkeys(("door-binary", "relocate-binary"), _binary_hand),
    "pen-binary": {**_binary_hand, "env_steps": 200_000},
}  # fmt: skip

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
last_init = nn.initializers.orthogonal(1e-2)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation, the latter through a learned scale and offset."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=last_init)(x), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * log_std + offset, -20.0, 2.0)


class Critic(nn.Module):
    """Q(s, a) [B]"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=last_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    critic_opt: optax.OptState
    actor: Any
    actor_opt: optax.OptState
    log_alpha: Any
    """Of SAC's entropy temperature."""
    alpha_opt: optax.OptState
    log_alpha_prime: Any
    """Of the Lagrange multiplier."""
    alpha_prime_opt: optax.OptState


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
    """[E, B]; with actions [n, B, A], [E, n, B].

    Flat rows, repeated for each critic, are plain batched products: on CPU a fifth faster than shared rows.
    """
    shape = (2, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(2, -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def conservative_gap(critic, agent: Agent, batch: Batch, q, key, args: Args):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch: [E]; and the bound rate.

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions
    pi(a|s). Policy actions at s' are evaluated at s. None of the actions carries a gradient. Calibrated, a policy
    action counts with max(Q(s, a), R(s)) (eq. 5.1): where the return is higher, there is no gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    (B, A), n = batch.action.shape, args.n_actions
    uniform = jax.random.uniform(uniform_key, (n, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, n)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, n
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions)
    chex.assert_shape(all_q, (2, 3 * n, B))
    chex.assert_shape(batch.return_to_go, (B,))
    bound_rate = (all_q[:, n:] < batch.return_to_go).mean()
    if args.calibrate:
        is_uniform = jnp.arange(3 * n)[:, None] < n
        all_q = jnp.maximum(all_q, jnp.where(is_uniform, -jnp.inf, batch.return_to_go))
    if args.importance_sampling:
        log_density = jnp.concatenate([jnp.full((n, B), A * jnp.log(0.5)), following_log_prob, now_log_prob])
        all_q = all_q - jax.lax.stop_gradient(log_density)
    else:
        all_q = jnp.concatenate([all_q, q[:, None]], axis=1)
    soft_max = args.cql_temperature * jax.nn.logsumexp(all_q / args.cql_temperature, axis=1)
    return (soft_max - q).mean(1), bound_rate


def state_entropy(agent: Agent, batch: Batch, args: Args):
    """How rare each state of the batch is among those of like value, psi(n_v + 1) / d + log e: [B].

    e is twice the distance to the k-th neighbour by the larger of the distances in s and in v = min_i Q_i(s, a), both
    standardised; n_v counts the states whose v is nearer than e / 2. Without a condition: log(1 + distance in s).
    """
    v = q_values(agent.nets.critic, agent.critic, batch.obs, batch.action).min(0)
    s, v = (((x - x.mean(0)) / (x.std(0) + 1e-6)).reshape(len(x), -1) for x in (batch.obs, v))
    far_s = jnp.sqrt(((s[:, None] - s[None]) ** 2).sum(-1))
    far_v = jnp.abs(v - v.T)
    far = jnp.maximum(far_s, far_v) if args.condition == "q" else far_s
    radius = jnp.sort(far, axis=1)[:, args.entropy_neighbours]  # the nearest is the state itself
    if args.condition == "none":
        return jnp.log(1.0 + radius)
    n_v = (far_v < radius[:, None]).sum(1) - 1  # nor does it count here
    return jax.scipy.special.digamma(jnp.maximum(n_v, 0) + 1.0) / s.shape[1] + jnp.log(2.0 * radius + 1e-6)


def bootstrapped_q(agent: Agent, batch: Batch, key, args: Args):
    """min_i target Q_i(s', a'), a' ~ pi; or the largest over n_actions of them."""
    n = args.n_actions if args.max_q_backup else 1
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key, n)
    return q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0).max(0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Bellman error plus the conservative penalty, each summed over the two critics (eq. 5.1)."""
    target_key, gap_key = jax.random.split(key)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * bootstrapped_q(agent, batch, target_key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - jax.lax.stop_gradient(y)) ** 2).mean(1).sum(0)
    gap, bound_rate = conservative_gap(critic, agent, batch, q, gap_key, args)
    if args.lagrange:
        alpha_prime = jnp.clip(jnp.exp(agent.log_alpha_prime), 0.0, 1e6)
        penalty = (alpha_prime * args.cql_alpha * (gap - args.target_gap)).sum()
    else:
        penalty = args.cql_alpha * gap.sum()
    info = {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean(), "bound_rate": bound_rate}
    return bellman + penalty, {**info, "return_to_go": batch.return_to_go.mean()}


def alpha_prime_loss(log_alpha_prime, gap, args: Args):
    """The multiplier ascends the penalty: it grows while the gap is over its target."""
    return -jnp.clip(jnp.exp(log_alpha_prime), 0.0, 1e6) * args.cql_alpha * (gap - args.target_gap)


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.actor_hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    actor = nets.actor.init(actor_key, obs)
    log_alpha, log_alpha_prime = jnp.zeros(()), jnp.ones(())
    return Agent(
        nets=nets,
        critic=critic,
        target_critic=critic,
        critic_opt=optax.adam(args.critic_lr).init(critic),
        actor=actor,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        log_alpha=log_alpha,
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        log_alpha_prime=log_alpha_prime,
        alpha_prime_opt=optax.adam(args.critic_lr).init(log_alpha_prime),
    )


def sample(key, data: TransitionsWithReturns, replay: Replay, args: Args) -> Batch:
    """[B]: data, and a share of the lane's finished episodes; data in their place until there is one."""
    data_key, replay_key = jax.random.split(key)
    online = round(args.online_share * args.batch_size)
    offline = args.batch_size - online
    old, new = data.sample(data_key, args.batch_size, args.discount), replay.sample(replay_key, online)
    new = jax.tree.map(lambda x, stand_in: jnp.where(replay.size() > 0, x, stand_in[offline:]), new, old)
    return concatenate(jax.tree.map(lambda x: x[:offline], old), new)


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything, offline and online alike; all losses are of the old parameters."""
    new = {}
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)

    if args.lagrange:
        slope = jax.grad(alpha_prime_loss)(agent.log_alpha_prime, info_q["gap"], args)
        updates, new["alpha_prime_opt"] = optax.adam(args.critic_lr).update(slope, agent.alpha_prime_opt)
        new["log_alpha_prime"] = optax.apply_updates(agent.log_alpha_prime, updates)
        info_q["alpha_prime"] = jnp.exp(agent.log_alpha_prime)
    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent.replace(**new), metrics


def update_online(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """The same with rewards for rare states."""
    entropy = state_entropy(agent, batch, args)
    bonus = args.bonus_weight * jnp.tanh(entropy)
    chex.assert_equal_shape([bonus, batch.reward])
    agent, metrics = update(agent, batch._replace(reward=batch.reward + bonus), key, args)
    return agent, {**metrics, "state_entropy": entropy.mean(), "bonus": bonus.mean(), "bonus_std": bonus.std()}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def train(agent: Agent, keys, args: Args, data: TransitionsWithReturns) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, data.sample(batch_key, args.batch_size, args.discount), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.entropy_neighbours >= args.batch_size:
        raise InputError(
            f"--entropy-neighbours {args.entropy_neighbours}: a batch of {args.batch_size} has no so many others."
        )
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        failure = None if args.failure_reward is None else data.task.training_reward(args.failure_reward)
        offline_data = run.replicate(data.with_returns(np.asarray(run.lane_args.discount), failure, args.endless))
        agent = run.init(partial(init, spec=data.spec))

        def finished(reward, steps, terminated, args):
            return episode_returns(reward, steps, terminated, args.discount, failure, args.endless)

        online = Interaction(
            run, offline_data, explore, sample, update_online, capacity=args.buffer_size, return_to_go=finished
        )
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, offline_data)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
