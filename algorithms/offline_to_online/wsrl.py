"""WSRL: warm-start RL. Conservative pre-training, a few steps of the frozen policy, then SAC without the dataset.

Zhou, Peng, Li, Levine and Kumar, "Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline
Data", ICLR 2025, arXiv 2412.07762. What retained data did for fine-tuning was to keep Q from collapsing in the
first updates, in which it meets states that it was not trained on. A short warm-up does that too: the pre-trained
policy fills an empty replay buffer with --learning-starts transitions before anything is learned from it. Then
pessimism and dataset are dropped and an ordinary fast online learner goes on with the same networks: SAC with ten
layer-normalised critics, the least of two random ones in the target, four critic updates per step. Pre-training is
Cal-QL (arXiv 2303.05479, eq. 5.1), or CQL with --no-calibrate, on the same ensemble.
The paper's ablations: --learning-starts 0, and --online-share 0.5 to retain the dataset.

With --lagrange the multiplier, which begins at 1, takes the place of --cql-alpha.
The conservative penalty is on --subset-size random critics, too; it, and --max-q-backup, are of the offline phase.
Online every environment step has --utd critic updates, then one of actor and temperature on all their batches.

Choose it when the offline data cannot be kept while fine-tuning.

Parity: equal to the authors' code, update for update, offline and online, but for the critics' output layers, the
temperature and what stands still (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- the two target critics differ (the released code draws them with replacement); as there, the conservative penalty
  of an update is on two random critics, which makes it as cheap as CQL's;
- small initial weights are the output layers', as in Cal-QL; the released code has them in the last hidden layer,
  where the layer normalisation undoes them;
- every critic has an output layer of its own (in the released code all share one);
- what is not updated stands still: in the released code Adam's momentum goes on moving policy and temperature in the
  critics' steps, and the critics in the policy's;
- entropy temperature and Lagrange multiplier are exponentials (softplus there), and the temperature's loss is linear
  in its logarithm, as in Cal-QL;
- the temperature is tuned on the entropy at s, of one action (at s' in the released code, of as many as its target
  takes); actions are not clipped to 0.99999;
- Kitchen's reward is taken as the number of tasks that are done; the released code ends episodes at the fourth;
- with --learning-starts 0 updates begin with the first transition; the released code waits for one batch (1024).

    python algorithms/offline_to_online/wsrl.py --dataset hopper-medium-replay --seeds 4
    python algorithms/offline_to_online/wsrl.py --dataset hopper-medium-replay --seeds 4 --learning-starts 0
"""

import sys
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
from shared.arguments import Count, EnvSteps, FinetuneArgs, Float, Fraction, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, concatenate
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, TransitionsWithReturns


@hyperparameters
class Args(FinetuneArgs):
    env_steps: EnvSteps = 500_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    eval_every: Size = 20_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 20
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""
    learning_starts: Count = 5_000
    """Environment steps before the first online update."""
    online_share: StaticFraction = 1.0
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    utd: Size = 4
    """Gradient updates of the critics per environment step."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    subset_size: Size = 2
    """Random critics, drawn anew for every update, whose least target value is bootstrapped."""
    online_max_q_backup: bool = False
    """The same online (AntMaze)."""
    calibrate: bool = True
    """Bound the policy actions' Q in the soft maximum by the return-to-go (eq. 5.1 of Cal-QL); without it: CQL."""
    failure_reward: float | None = None
    """Sparse tasks: the environment's reward of a step without success (0 in AntMaze, -1 in binary Adroit); an
    episode of nothing else counts as failing for ever, failure_reward / (1 - gamma) after scale and shift."""
    endless: bool = False
    """An episode's last reward goes on for ever where it did not terminate (tasks that go on paying)."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
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
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    layer_norm: bool = True
    """Layer normalisation before every activation, of actor and critics."""
    state_dependent_std: bool = True
    """The policy's standard deviation is a network output; else one number per dimension (AntMaze)."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_sparse = {
    "hidden_dims": (256,) * 4, "state_dependent_std": False, "online_max_q_backup": True,
    "reward_scale": 10.0, "reward_shift": -5.0, "failure_reward": 0.0,
}  # fmt: skip
_binary_hand = {
    "cql_alpha": 1.0, "hidden_dims": (512,) * 3, "actor_hidden_dims": (512, 512), "offline_updates": 20_000,
    "reward_scale": 10.0, "reward_shift": 5.0, "failure_reward": -1.0,
}  # fmt: skip
PRESETS = {
    "antmaze": {**_sparse, "lagrange": True, "target_gap": 0.8},
    "pointmaze": {**_sparse, "endless": True},  # ours, after AntMaze: the environment goes on paying at the goal
    "kitchen": {
        "hidden_dims": (512,) * 3, "actor_hidden_dims": (512,) * 3, "offline_updates": 250_000,
        "importance_sampling": False, "reward_shift": -4.0,
    },
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"calibrate": False, "offline_updates": 250_000}),
    **dict.fromkeys(("pen-binary", "door-binary", "relocate-binary"), _binary_hand),
}  # fmt: skip

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
last_init = nn.initializers.orthogonal(1e-2)


class Layers(nn.Module):
    """Dense, layer normalisation, ReLU."""

    hidden_dims: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.Dense(size, kernel_init=dense_init)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    layer_norm: bool
    state_dependent_std: bool

    @nn.compact
    def __call__(self, obs):
        x = Layers(self.hidden_dims, self.layer_norm)(obs)
        if self.state_dependent_std:
            mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=last_init)(x), 2, axis=-1)
        else:
            mean = nn.Dense(self.action_dim, kernel_init=last_init)(x)
            log_std = jnp.broadcast_to(self.param("log_std", nn.initializers.zeros, mean.shape[-1:]), mean.shape)
        return mean, jnp.clip(log_std, jnp.log(1e-5), jnp.log(10.0))


class Critic(nn.Module):
    """Q(s, a) [B]"""

    hidden_dims: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, obs, action):
        x = Layers(self.hidden_dims, self.layer_norm)(jnp.concatenate([obs, action], axis=-1))
        return nn.Dense(1, kernel_init=last_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """n_critics critics, stacked on a leading axis [E, ...]."""
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
    E = len(jax.tree.leaves(critics)[0])
    shape = (E, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(E, -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def random_subset(critics, key, args: Args):
    """`subset_size` of the E critics, each at most once."""
    index = jax.random.permutation(key, args.n_critics)[: args.subset_size]
    return jax.tree.map(lambda x: x[index], critics)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args, best_of_actions: bool):
    """(r + gamma min_{i in a random subset} target Q_i(s', a') - Q_j(s, a))^2, mean over the critics j; a' ~ pi.

    Without entropy in the target. best_of_actions: the largest such target over n_actions a'.
    """
    action_key, subset_key = jax.random.split(key)
    n = args.n_actions if best_of_actions else 1
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), action_key, n)
    targets = random_subset(agent.target_critic, subset_key, args)
    next_q = q_values(agent.nets.critic, targets, batch.next_obs, action).min(0).max(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    loss = ((q - jax.lax.stop_gradient(y)) ** 2).mean()
    return loss, {"bellman_loss": loss, "q": q.mean(), "q_std": q.std(0).mean()}


def conservative_gap(critic, agent: Agent, batch: Batch, key, args: Args):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch and the critics given.

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions
    pi(a|s). Policy actions at s' are evaluated at s. None of the actions carries a gradient. Calibrated, a policy
    action counts with max(Q(s, a), R(s)): where the return is higher, there is no gradient.
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
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape(all_q, (args.subset_size, 3 * n, B))
    chex.assert_shape(batch.return_to_go, (B,))
    info = {"bound_rate": (all_q[:, n:] < batch.return_to_go).mean(), "return_to_go": batch.return_to_go.mean()}
    if args.calibrate:
        is_uniform = jnp.arange(3 * n)[:, None] < n
        all_q = jnp.maximum(all_q, jnp.where(is_uniform, -jnp.inf, batch.return_to_go))
    if args.importance_sampling:
        log_density = jnp.concatenate([jnp.full((n, B), A * jnp.log(0.5)), following_log_prob, now_log_prob])
        all_q = all_q - jax.lax.stop_gradient(log_density)
    else:
        all_q = jnp.concatenate([all_q, q[:, None]], axis=1)
    soft_max = jax.nn.logsumexp(all_q, axis=1)
    gap = (soft_max - q).mean()
    return gap, {"gap": gap, **info}


def conservative_critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Bellman error of all critics plus the conservative penalty of a random subset, each the mean over them."""
    bellman_key, gap_key, subset_key = jax.random.split(key, 3)
    bellman, info = critic_loss(critic, agent, batch, bellman_key, args, args.max_q_backup)
    gap, info_gap = conservative_gap(random_subset(critic, subset_key, args), agent, batch, gap_key, args)
    if args.lagrange:
        alpha_prime = jnp.clip(jnp.exp(agent.log_alpha_prime), 0.0, 1e6)
        penalty = alpha_prime * (gap - args.target_gap)
    else:
        penalty = args.cql_alpha * gap
    return bellman + penalty, {**info, **info_gap}


def alpha_prime_loss(log_alpha_prime, gap, args: Args):
    """The multiplier ascends the penalty: it grows while the gap is over its target."""
    return -jnp.clip(jnp.exp(log_alpha_prime), 0.0, 1e6) * (gap - args.target_gap)


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a) over all critics, a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_equal_shape([q, log_prob, batch.reward])
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.actor_hidden_dims, spec.action_dim, args.layer_norm, args.state_dependent_std),
        Critic(args.hidden_dims, args.layer_norm),
    )
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    actor = nets.actor.init(actor_key, obs)
    log_alpha, log_alpha_prime = jnp.zeros(()), jnp.zeros(())
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
    """[utd, B] uniform over the replay buffer; with online_share below 1 the rest uniform over the dataset."""
    online = round(args.online_share * args.batch_size)
    if online == args.batch_size:
        return replay.sample(key, (args.utd, args.batch_size))
    data_key, replay_key = jax.random.split(key)
    old = data.transitions.sample(data_key, (args.utd, args.batch_size - online))
    return concatenate(old, replay.sample(replay_key, (args.utd, online)), axis=1)


def actor_step(agent: Agent, batch: Batch, key, args: Args) -> tuple[dict, dict]:
    """One gradient step of policy and temperature: the new fields, and metrics."""
    new = {}
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, batch, key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info["entropy"], batch.action.shape[-1])
    updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)
    return new, {"actor_loss": loss, "alpha": jnp.exp(agent.log_alpha), **info}


def critic_step(agent: Agent, grads, args: Args) -> dict:
    """The critics after a step along `grads`, and their targets: the new fields."""
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target = optax.incremental_update(critic, agent.target_critic, args.tau)
    return {"critic": critic, "critic_opt": critic_opt, "target_critic": target}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """Offline: one gradient step of everything; all losses are of the old parameters."""
    critic_key, actor_key = jax.random.split(key)
    new, info_pi = actor_step(agent, batch, actor_key, args)
    grad = jax.value_and_grad(conservative_critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    new |= critic_step(agent, grads, args)
    if args.lagrange:
        slope = jax.grad(alpha_prime_loss)(agent.log_alpha_prime, info_q["gap"], args)
        updates, new["alpha_prime_opt"] = optax.adam(args.critic_lr).update(slope, agent.alpha_prime_opt)
        new["log_alpha_prime"] = optax.apply_updates(agent.log_alpha_prime, updates)
        info_q["alpha_prime"] = jnp.exp(agent.log_alpha_prime)
    return agent.replace(**new), {"critic_loss": loss_q, **info_q, **info_pi}


def update_online(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """SAC on [utd, B]: one step of the critics on each B, then one of policy and temperature on all of them."""
    critic_key, actor_key = jax.random.split(key)

    def step(agent, x):
        grad = jax.value_and_grad(critic_loss, has_aux=True)
        (_, info), grads = grad(agent.critic, agent, *x, args, args.online_max_q_backup)
        return agent.replace(**critic_step(agent, grads, args)), info

    agent, info_q = jax.lax.scan(step, agent, (batch, jax.random.split(critic_key, args.utd)))
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    new, info_pi = actor_step(agent, rows, actor_key, args)
    return agent.replace(**new), {**jax.tree.map(jnp.mean, info_q), **info_pi}


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
    if args.subset_size > args.n_critics:
        raise InputError(f"--subset-size {args.subset_size}: there are --n-critics {args.n_critics}.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        failure = None if args.failure_reward is None else data.task.training_reward(args.failure_reward)
        offline_data = run.replicate(data.with_returns(np.asarray(run.lane_args.discount), failure, args.endless))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, offline_data, explore, sample, update_online,
            warmup=args.learning_starts, updates_per_step=args.utd, capacity=args.buffer_size,
        )  # fmt: skip
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
