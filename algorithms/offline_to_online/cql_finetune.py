"""CQL fine-tuning: Conservative Q-Learning offline, then with the same losses online.

Kumar, Zhou, Tucker and Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020,
arXiv 2006.04779. The critic's loss pushes down a soft maximum of Q over actions and pushes up Q of the data's actions
(CQL(H), eq. 4). Online, the replay buffer begins with the whole dataset, every environment step appends one transition
of the sampled policy and is followed by one update on rows of both, drawn uniformly; the penalty stays, with a weight
of its own. What it costs to come with values that are too low is what Cal-QL, WSRL and ENOTO were made against.

Choose it when CQL was the offline method, as the baseline of cal_ql.py, wsrl.py and e2o.py. (cal_ql.py --no-calibrate
is CQL under Cal-QL's settings, with half of every batch from the data.)

Parity: equal to CORL's finetune/cql.py, update for update, offline and online (results/parity.md).

Deviations from the paper:
- settings as in CORL (arXiv 2210.07105), whose fine-tuning has AntMaze and Adroit; other sets have those of its
  offline runs. First weights are its fine-tuning's: all layers are orthogonal alike, where cql.py's last are small;
- next actions' Q is not reduced by their entropy (--backup-entropy does it), as in the authors' code;
- continuous actions only.

    python algorithms/offline_to_online/cql_finetune.py --dataset hopper-medium --seeds 4 --n-actions 4
    python algorithms/offline_to_online/cql_finetune.py --dataset hopper-medium --from results/runs/cql/RUN
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
from shared.arguments import Count, FinetuneArgs, Float, Fraction, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.online import Interaction
from shared.replay import Replay, sample_union
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    online_cql_alpha: Float = 5.0
    """The same in the environment."""
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
    clip_diff_min: float = -1e9
    """The gap is not pushed under this (-200 in CORL's AntMaze)."""
    clip_diff_max: float = 1e9
    """The gap is not pushed where it is over this."""
    max_q_backup: bool = False
    """Bootstrap from the best of several actions of the policy instead of one."""
    backup_entropy: bool = False
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    init_temperature: Positive = 1.0
    """First value of the entropy temperature."""
    tune_temperature: bool = True
    """Tune the entropy temperature to the entropy -dim(A); without it it keeps its first value."""
    bc_steps: Count = 0
    """First updates in which the actor clones the data instead of following Q."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_hidden_dims: tuple[int, ...] = ()
    """Hidden layers of the critics; none: as hidden_dims."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_antmaze = {
    "cql_alpha": 5.0, "online_cql_alpha": 5.0, "lagrange": True, "target_gap": 0.8, "max_q_backup": True,
    "clip_diff_min": -200.0, "actor_lr": 1e-4, "critic_hidden_dims": (256,) * 5, "normalize_obs": False,
    "eval_episodes": 100, "reward_scale": 10.0, "reward_shift": -5.0,
}  # fmt: skip
_adroit = {
    "cql_alpha": 1.0, "online_cql_alpha": 1.0, "max_q_backup": True, "clip_diff_min": -200.0, "actor_lr": 1e-4,
    "normalize_obs": False,
}  # fmt: skip
_mujoco = {"cql_alpha": 10.0, "online_cql_alpha": 10.0, "actor_lr": 3e-5}
_maze = {**_mujoco, "lagrange": True, "target_gap": 5.0}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _mujoco),
    **dict.fromkeys(("hopper-medium-replay", "hopper-medium-expert"), _mujoco),
    "hopper-medium": {**_mujoco, "normalize_return": True},  # of all sets CORL's configurations have it here alone
    "maze2d": {**_maze, "eval_episodes": 100},
    "pointmaze": _maze,
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), _adroit),
    "antmaze": _antmaze,
}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation, the latter through a learned scale and offset."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=dense_init)(x), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * log_std + offset, -20.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


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
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    alpha_opt: optax.OptState
    log_alpha_prime: jax.Array
    """Of the Lagrange multiplier."""
    alpha_prime_opt: optax.OptState
    step: jax.Array


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
    pi(a|s); or not, with the data's action among them. Policy actions at s' are evaluated at s. None of the actions
    carries a gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    B, A = batch.action.shape
    uniform = jax.random.uniform(uniform_key, (args.n_actions, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, args.n_actions)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, args.n_actions
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions)
    chex.assert_shape(all_q, (2, 3 * args.n_actions, B))
    if args.importance_sampling:
        uniform_log_prob = jnp.full((args.n_actions, B), A * jnp.log(0.5))
        log_density = jnp.concatenate([uniform_log_prob, following_log_prob, now_log_prob])
        all_q = all_q - jax.lax.stop_gradient(log_density)
    else:
        all_q = jnp.concatenate([all_q, q[:, None]], axis=1)
    soft_max = args.cql_temperature * jax.nn.logsumexp(all_q / args.cql_temperature, axis=1)
    return jnp.clip(soft_max - q, args.clip_diff_min, args.clip_diff_max).mean(1)


def bootstrapped_q(agent: Agent, batch: Batch, key, args: Args):
    """min_i target Q_i(s', a'), a' ~ pi; or the largest over n_actions of them."""
    n = args.n_actions if args.max_q_backup else 1
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key, n)
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
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.critic_hidden_dims or args.hidden_dims))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    actor = nets.actor.init(actor_key, obs)
    log_alpha, log_alpha_prime = jnp.log(jnp.float32(args.init_temperature)), jnp.ones(())
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
        step=jnp.int32(0),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the dataset and what was collected since."""
    return sample_union(key, data, replay, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
    new = {}
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (actor_value, actor_info), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    if args.tune_temperature:
        grads = jax.grad(alpha_loss)(agent.log_alpha, actor_info["entropy"], batch.action.shape[-1])
        updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
        new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, critic_key, args)
    if args.lagrange:
        slope = jax.grad(alpha_prime_loss)(agent.log_alpha_prime, info["gap"], args)
        updates, new["alpha_prime_opt"] = optax.adam(args.critic_lr).update(slope, agent.alpha_prime_opt)
        new["log_alpha_prime"] = optax.apply_updates(agent.log_alpha_prime, updates)
        info["alpha_prime"] = jnp.exp(agent.log_alpha_prime)
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)
    new["step"] = agent.step + 1
    info |= {"critic_loss": loss, "actor_loss": actor_value, "alpha": jnp.exp(agent.log_alpha), **actor_info}
    return agent.replace(**new), info


def update_online(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """The same with the environment's weight of the penalty."""
    return update(agent, batch, key, dataclasses.replace(args, cql_alpha=args.online_cql_alpha))


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A] in [-1, 1]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale * args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(run, transitions, explore, sample, update_online, capacity=args.buffer_size)
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
