"""E2O (ENOTO): Ensemble-based Offline-to-Online RL: CQL with N critics offline, SAC with N critics online.

Zhao, Hao, Ma, Liu, Zheng and Meng, "ENOTO: Improving Offline-to-Online Reinforcement Learning with Q-Ensembles",
IJCAI 2024, arXiv 2306.06871 (its first version names the method E2O). The least of N critics is pessimistic enough
for CQL's penalty to be dropped at the first environment step without a collapse, which two critics are not. Online
the pessimism is loosened: the target is the mean over all pairs of critics of the lesser one (WeightedMinPair), its
errors weigh less where the critics disagree, and of N actions that with the highest upper confidence bound is done
(both as in SUNRISE, arXiv 2007.04938). The replay buffer begins empty.

The first --learning-starts environment steps are the offline agent's; one update follows each step after them.
Online the next action's entropy is always in the target, and there is no conservative penalty.

Choose it when you would pre-train with CQL and can afford an ensemble in place of its penalty online.

Deviations from the paper:
- one weight per transition, as in SUNRISE; the authors' code has one of the whole batch: --reweight batch;
- settings of the authors' code, with the same learning rates in both phases. Its CQL averages the penalty over the
  critics, times 5, beside a sum of their Bellman errors; here each critic has its penalty, and the default is theirs
  with ten critics (5/N with N);
- its bootstrap is from the policy's mode; here the next action is a sample, as in cql; so are the policy's log standard
  deviation (a learned scale and offset), the initialisation, and a temperature loss linear in log alpha;
- exploration is the paper's; the authors' script for the online phase takes the policy's own actions
  (--exploration policy);
- standard deviations over critics are the population's; in the authors' code the sample's in the upper bound;
- all losses of an update are of the parameters before it, as in cql; the authors' code steps one after the other;
- mazes, where the paper starts from another offline algorithm, have no settings of their own.

    python algorithms/offline_to_online/e2o.py --dataset hopper-medium --seeds 4
    python algorithms/offline_to_online/e2o.py --dataset hopper-medium --n-critics 2 --cql-alpha 2.5 \\
        --online-q-aggregation min --reweight none --exploration policy

The second one is CQL, then SAC, which collapses; with --n-critics 10 it is CQL-N, then SAC-N.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, EnvSteps, FinetuneArgs, Float, Fraction, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    env_steps: EnvSteps = 250_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    online_q_aggregation: Literal["pair_min", "min", "mean"] = "pair_min"
    """Of the N target critics' values online: mean over all pairs of the lesser one, least of all, or mean."""
    reweight: Literal["sample", "batch", "none"] = "sample"
    """Whose disagreement weighs the online Bellman errors: each transition's, or the whole batch's (Adam, blind to
    the scale of a loss, almost undoes that)."""
    reweight_temperature: Float = 10.0
    """T: how much the weights fall with the critics' standard deviation."""
    exploration: Literal["ucb", "policy"] = "ucb"
    """The best of N actions of the policy by their upper confidence bound, or one action of the policy."""
    ucb: Float = 10.0
    """lambda: standard deviations of the critics in the upper confidence bound; 10 may drown Q itself where rewards
    are dense."""
    cql_alpha: Float = 0.5
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    backup_entropy: bool = False
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-5
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    alpha_lr: Float = 1e-4
    """Adam's step size: entropy temperature."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""


PRESETS: dict[str, dict[str, Any]] = {}

actor_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
actor_last_init = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")  # Xavier's with gain 1e-2
critic_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
critic_last_init = nn.initializers.orthogonal(1e-2)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation, the latter through a learned scale and offset."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=actor_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=actor_last_init)(x), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * log_std + offset, -20.0, 2.0)


class Critic(nn.Module):
    """Q(s, a) [B]."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=critic_init)(x))
        return nn.Dense(1, kernel_init=critic_last_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """N critics, stacked on a leading axis [E=N, ...]."""
    target_critic: Any
    critic_opt: optax.OptState
    actor: Any
    actor_opt: optax.OptState
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
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
    """[E, B]; with actions [n, B, A], [E, n, B].

    Flat rows, repeated for each critic, are plain batched products: on CPU a fifth faster than shared rows.
    """
    shape = (len(jax.tree.leaves(critics)[0]), *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(shape[0], -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def conservative_gap(critic, agent: Agent, batch: Batch, q, key, args: Args):
    """log sum_a exp Q_i(s, a) minus Q_i of the data's action, mean over the batch: [E] (eq. 4 of CQL).

    Importance-weighted: uniform actions have density 0.5^dim(A), policy actions pi(a|s). Policy actions at s'
    are evaluated at s. None of the actions carries a gradient.
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
    chex.assert_shape(all_q, (args.n_critics, 3 * args.n_actions, B))
    return (jax.nn.logsumexp(all_q, axis=1) - q).mean(1)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Offline: Bellman error with the least of N target critics plus the conservative penalty, summed over critics."""
    target_key, gap_key = jax.random.split(key)
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), target_key)
    target_v = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    target_v = target_v - jnp.exp(agent.log_alpha) * next_log_prob if args.backup_entropy else target_v
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - jax.lax.stop_gradient(y)) ** 2).mean(1).sum(0)
    gap = conservative_gap(critic, agent, batch, q, gap_key, args)
    info = {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean(), "q_std": q.std(0).mean()}
    return bellman + args.cql_alpha * gap.sum(), info


def pair_min(q):
    """Mean over all pairs i < j of min(Q_i, Q_j), of q [E, B]: sorted upwards, the k-th is the lesser in E - k."""
    n = len(q)
    pairs = jnp.arange(n - 1, -1, -1)
    return (pairs[:, None] * jnp.sort(q, axis=0)).sum(0) / (n * (n - 1) / 2)


def bellman_weight(agent: Agent, batch: Batch, target_q, key, args: Args):
    """sigmoid(-T std_i) + 0.5, in [0.5, 1], of the target critics' Q_i(s', a'): [B].

    Of the whole batch: std_i of the critics' mean over it, averaged over N actions a' per s'.
    """
    if args.reweight == "none":
        return jnp.ones(args.batch_size)
    std = target_q.std(0)
    if args.reweight == "batch":
        action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key, args.n_critics)
        q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action)
        std = jnp.full(args.batch_size, q.mean(-1).std(0).mean())
    return nn.sigmoid(-args.reweight_temperature * std) + 0.5


def online_critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Online: w (Q_i(s, a) - y)^2, y = r + gamma (pair_min target Q(s', a') - alpha log pi(a'|s')), summed over i."""
    target_key, weight_key = jax.random.split(key)
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), target_key)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action)
    aggregates = {"pair_min": pair_min, "min": partial(jnp.min, axis=0), "mean": partial(jnp.mean, axis=0)}
    reduced = aggregates[args.online_q_aggregation]
    target_v = reduced(target_q) - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    weight = bellman_weight(agent, batch, target_q, weight_key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, weight, q[0]], (args.batch_size,))
    y, weight = jax.lax.stop_gradient((y, weight))
    loss = (weight * (q - y) ** 2).mean(1).sum(0)
    return loss, {"q": q.mean(), "q_std": q.std(0).mean(), "weight": weight.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi; offline and online."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    actor, log_alpha = nets.actor.init(actor_key, obs), jnp.zeros(())
    return Agent(
        nets=nets,
        critic=critic,
        target_critic=critic,
        critic_opt=optax.adam(args.critic_lr).init(critic),
        actor=actor,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        log_alpha=log_alpha,
        alpha_opt=optax.adam(args.alpha_lr).init(log_alpha),
    )


def sample(key, data, replay: Replay, args: Args) -> Batch:
    """[B] uniform over what was collected; none of the dataset."""
    return replay.sample(key, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, loss_of_critics: Callable = critic_loss) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
    new = {}
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, new["alpha_opt"] = optax.adam(args.alpha_lr).update(grads, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)

    grad = jax.value_and_grad(loss_of_critics, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)

    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent.replace(**new), metrics


def update_online(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """The same, without the conservative penalty."""
    return update(agent, batch, key, args, online_critic_loss)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Of N sampled actions that with the highest mean_i Q_i(s, a) + lambda std_i Q_i(s, a) [B, A]; or one."""
    actions, _ = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, obs), key, args.n_critics if args.exploration == "ucb" else 1
    )
    q = q_values(agent.nets.critic, agent.critic, obs, actions)
    best = (q.mean(0) + args.ucb * q.std(0)).argmax(0)
    return jnp.take_along_axis(actions, best[None, :, None], axis=0)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.n_critics < 2:
        raise InputError(f"--n-critics must be at least 2, not {args.n_critics}.")
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, None, explore, sample, update_online, warmup=args.learning_starts, capacity=args.buffer_size
        )
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
