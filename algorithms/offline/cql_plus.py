"""CQL+: Conservative Q-Learning with better implementation choices.

Kang, Ma, Wang, Yue and Yan, "Improving and Benchmarking Offline Reinforcement Learning Algorithms", 2023,
arXiv 2306.00972; CQL: Kumar et al., NeurIPS 2020, arXiv 2006.04779. Losses are those of CQL(H), eq. 4 there, with
importance weights. The plus is in the choices that 20 ablations left standing: small last layers, ELU in the critics,
a slower policy, five times as many actions in the soft maximum, and a network of its own for the policy's standard
deviation. `--preset cql` undoes these five, without rescaling of rewards; each has its own flag too.

Choose it when you would use CQL and have the time for more sampled actions per update.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- the loss terms that the authors' code computes but leaves out (cloning) or has turned off (the cosine schedule of the
  policy's learning rate) are not here; --bc-steps of CQL is;
- the data's actions are not clipped to +-0.999 in the critics, only where their log-density is needed;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/cql_plus.py --dataset hopper-medium-replay --seeds 4 --updates 50000 --n-actions 10
    python algorithms/offline/cql_plus.py --dataset hopper-medium-replay --seeds 4 --updates 50000 --preset cql
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Positive, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 1_200_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 50
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    cql_temperature: Positive = 1.0
    """Temperature of the soft maximum."""
    lagrange: bool = False
    """Tune the penalty's weight so that the gap stays near target_gap."""
    target_gap: Float = 1.0
    """Gap between soft maximum and the data's Q that --lagrange aims at."""
    clip_diff_min: float = -1e9
    """The gap is not pushed under this (-200 in CORL's AntMaze)."""
    max_q_backup: bool = False
    """Bootstrap from the best of several actions of the policy instead of one."""
    backup_entropy: bool = False
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    use_target_actor: bool = False
    """Bootstrap from actions of the actor's Polyak average instead of the actor's own."""
    bc_steps: Count = 0
    """First updates in which the actor clones the data instead of following Q."""
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
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_activation: Literal["elu", "relu"] = "elu"
    """Of the critics (CQL: relu)."""
    last_layer_scale: float = 0.01
    """Variance of the last layers' first weights, times their inputs (1: not scaled down)."""
    separate_std: bool = True
    """A network of its own for the policy's standard deviation (CQL: shared with the mean's)."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    max_reward: float = 1e9
    """Rewards are clipped from above in training (20 or 40 for Adroit)."""
    normalize_reward: bool = False
    """Rewards to [-1, 1] by their range in the data."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_cql = {"n_actions": 10, "actor_lr": 3e-4, "critic_activation": "relu", "last_layer_scale": 1.0, "separate_std": False}
PRESETS = {
    **by_name({"cql": _cql}),
    "antmaze": {"reward_scale": 4.0, "reward_shift": -2.0, "eval_episodes": 100},
    "pointmaze": {"reward_scale": 4.0, "reward_shift": -2.0},  # ours, after AntMaze: the paper has no PointMaze
    "kitchen": {"normalize_reward": True},
    **dict.fromkeys(("pen-", "door-", "relocate-"), {"normalize_reward": True, "max_reward": 20.0}),
    "hammer-": {"normalize_reward": True, "max_reward": 40.0},
}


def last_init(scale: float):
    """Uniform, of variance scale / inputs."""
    return nn.initializers.variance_scaling(scale, "fan_in", "uniform")


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation, the latter through a learned scale and offset."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    separate_std: bool
    last_layer_scale: float

    @nn.compact
    def __call__(self, obs):
        outputs = [self.action_dim, self.action_dim] if self.separate_std else [2 * self.action_dim]
        heads = []
        for width in outputs:
            x = obs
            for size in self.hidden_dims:
                x = nn.relu(nn.Dense(size)(x))
            heads.append(nn.Dense(width, kernel_init=last_init(self.last_layer_scale))(x))
        mean, log_std = jnp.split(jnp.concatenate(heads, axis=-1), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return jnp.clip(mean, -9.0, 9.0), jnp.clip(scale * log_std + offset, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    activation: str
    last_layer_scale: float

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = getattr(nn, self.activation)(nn.Dense(size)(x))
        return nn.Dense(1, kernel_init=last_init(self.last_layer_scale))(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    log_alpha: Any
    """Of SAC's entropy temperature."""
    alpha_opt: optax.OptState
    log_alpha_prime: Any
    """Of the Lagrange multiplier."""
    alpha_prime_opt: optax.OptState
    step: Any


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
    return jnp.arctanh(jnp.clip(action, -1.0 + 1e-3, 1.0 - 1e-3))


def q_values(net: Critic, critics, obs, action):
    """[E, B]; with actions [n, B, A], [E, n, B].

    Flat rows, repeated for each critic, are plain batched products: on CPU a fifth faster than shared rows.
    """
    shape = (2, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(2, -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def conservative_gap(critic, agent: Agent, batch: Batch, q, key, args: Args):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch: [E] (eq. 4).

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions
    pi(a|s). Policy actions at s' are evaluated at s. None of the actions carries a gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    B, A = batch.action.shape
    uniform = jax.random.uniform(uniform_key, (args.n_actions, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, args.n_actions)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, args.n_actions
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    log_density = jnp.concatenate([jnp.full((args.n_actions, B), A * jnp.log(0.5)), following_log_prob, now_log_prob])
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions) - jax.lax.stop_gradient(log_density)
    chex.assert_shape(all_q, (2, 3 * args.n_actions, B))
    soft_max = args.cql_temperature * jax.nn.logsumexp(all_q / args.cql_temperature, axis=1)
    return jnp.maximum(soft_max - q, args.clip_diff_min).mean(1)


def bootstrapped_q(agent: Agent, batch: Batch, key, args: Args):
    """min_i target Q_i(s', a'), a' ~ pi; or the largest over n_actions of them."""
    n = args.n_actions if args.max_q_backup else 1
    actor = agent.target_actor if args.use_target_actor else agent.actor
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.next_obs), key, n)
    q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    best = q.argmax(0)[None]
    q, log_prob = (jnp.take_along_axis(x, best, axis=0)[0] for x in (q, log_prob))
    return q - jnp.exp(agent.log_alpha) * log_prob if args.backup_entropy else q


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Bellman error plus the conservative penalty, each summed over the two critics."""
    target_key, gap_key = jax.random.split(key)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * bootstrapped_q(agent, batch, target_key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - jax.lax.stop_gradient(y)) ** 2).mean(1).sum(0)
    gap = conservative_gap(critic, agent, batch, q, gap_key, args)
    if args.lagrange:
        alpha_prime = jnp.clip(jnp.exp(agent.log_alpha_prime), 0.0, 1e6)
        penalty = (alpha_prime * args.cql_alpha * (gap - args.target_gap)).sum()
    else:
        penalty = args.cql_alpha * gap.sum()
    return bellman + penalty, {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean()}


def alpha_prime_loss(log_alpha_prime, gap, args: Args):
    """The multiplier ascends the penalty: it grows while the gap is over its target."""
    return -jnp.clip(jnp.exp(log_alpha_prime), 0.0, 1e6) * args.cql_alpha * (gap - args.target_gap)


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi; in the first bc_steps -log pi(a_data|s) for Q."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    if args.bc_steps:
        mean, log_std = agent.nets.actor.apply(actor, batch.obs)
        of_data = tanh_gaussian_log_prob(mean, log_std, before_tanh(batch.action))
        q = jnp.where(agent.step < args.bc_steps, of_data, q)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.separate_std, args.last_layer_scale),
        Critic(args.hidden_dims, args.critic_activation, args.last_layer_scale),
    )
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    actor = nets.actor.init(actor_key, obs)
    log_alpha, log_alpha_prime = jnp.zeros(()), jnp.ones(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        log_alpha=log_alpha,
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        log_alpha_prime=log_alpha_prime,
        alpha_prime_opt=optax.adam(args.critic_lr).init(log_alpha_prime),
        step=jnp.int32(0),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
    new = {"step": agent.step + 1}
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (actor_value, actor_info), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, actor_info["entropy"], batch.action.shape[-1])
    updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    if args.lagrange:
        slope = jax.grad(alpha_prime_loss)(agent.log_alpha_prime, info["gap"], args)
        updates, new["alpha_prime_opt"] = optax.adam(args.critic_lr).update(slope, agent.alpha_prime_opt)
        new["log_alpha_prime"] = optax.apply_updates(agent.log_alpha_prime, updates)
        info["alpha_prime"] = jnp.exp(agent.log_alpha_prime)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)
    new["target_actor"] = optax.incremental_update(new["actor"], agent.target_actor, args.tau)
    info |= {"critic_loss": loss, "actor_loss": actor_value, "alpha": jnp.exp(agent.log_alpha), **actor_info}
    return agent.replace(**new), info


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.normalize_reward and (args.reward_scale, args.reward_shift) != (1.0, 0.0):
        raise InputError(
            "--normalize-reward would undo --reward-scale and --reward-shift: leave them out, or --no-normalize-reward."
        )
    data = load_dataset(args).require(discrete=False)
    if args.max_reward < data.reward.max():
        data = data.replace({"max_reward": args.max_reward}, reward=np.minimum(data.reward, args.max_reward))
    scale, shift = args.reward_scale, args.reward_shift
    if args.normalize_reward:
        low, high = data.reward_range()
        scale, shift = 2.0 / (high - low), -(high + low) / (high - low)
    data = data.scale_rewards(scale, shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
