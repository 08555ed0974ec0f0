"""The three regimes: which knowledge fine-tuning should keep, the pre-trained policy's or the dataset's.

Li, Ni, Sun and Bacon, "The Three Regimes of Offline-to-Online Reinforcement Learning", 2025, arXiv 2510.01460: a study.
Fine-tuning should preserve the better of two priors, the pre-trained policy pi0 or the dataset D, and stay plastic
beside that. Where J(pi0) > J(D) (superior), what keeps pi0 wins: a warm-up with the frozen policy, or the offline
regulariser kept online. Where J(pi0) < J(D) (inferior), what keeps D wins: replay of the dataset, with networks drawn
anew or not. Where both are alike (comparable), no intervention matters much. Each intervention is a number here, so
that a grid of them is one job: --frozen-steps, --regulariser, --offline-share, --new-networks; all 0 is the paper's
minimal baseline. The fine-tuner is SAC as in WSRL and RLPD; pre-training is Cal-QL, cloning, or TD3+BC (--pretraining),
whose regularisers are the conservative gap of Cal-QL (arXiv 2303.05479, eq. 5.1) and a cloning term.

Which regime a run is in needs nothing of this file: the score at the end of the offline phase is J(pi0), run.json has
J(D); results/checks.py has the t-test.

Choose it when you do not know what to keep for fine-tuning, and would rather measure it than guess.

Deviations from the paper:
- no code is public; losses and sizes are those of WSRL (arXiv 2412.07762) and RLPD (arXiv 2302.02948), with one critic
  update per step by default;
- TD3+BC's policy is the fine-tuner's Gaussian: the cloning term is -log pi(a|s), weighed by mean |Q| / alpha, which is
  TD3+BC's normalised objective times a number; it has the entropy term of SAC;
- cloning alone pre-trains critics, too: TD on the data under the cloned policy (--no-fit-critic: they begin fresh), and
  the cloning term that is kept online is TD3+BC's; a cloned policy has no temperature, which is 1 until interaction;
- Cal-QL's pre-training bootstraps from one action of the policy and penalises all critics, where WSRL's takes the
  maximum of several actions (max_q_backup) and --subset-size random critics;
- online, returns-to-go of episodes that go on are not known: Cal-QL's bound is what the pre-trained critics give to the
  pre-trained policy's action;
- the regulariser is on whole batches, of the replay buffer and of the dataset;
- a reset (--new-networks) draws policy and critics anew; their targets are copies of them, and their Adam states begin
  anew. It keeps what is no network: the entropy temperature with its Adam state (RLPD from scratch would begin at a
  temperature of 1), and pi0 with its critics, of which Cal-QL's bound is made;
- updates begin with the first transition after --frozen-steps; while they last the metrics are 0, and the log counts
  their steps as updates;
- as in our WSRL: actions are in [-1, 1], every critic has an output layer of its own, small initial weights are the
  output layers', the target has no entropy term, and the temperature's loss is linear in its logarithm.

    python algorithms/offline_to_online/three_regimes.py --dataset pendulum-mixed --seeds 4 --frozen-steps 0 1000
    python algorithms/offline_to_online/three_regimes.py --dataset pendulum-half --pretraining bc --offline-share 0 0.5
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
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import EnvSteps, FinetuneArgs, Float, Fraction, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, TransitionsWithReturns


@hyperparameters
class Args(FinetuneArgs):
    pretraining: Literal["cal_ql", "bc", "td3_bc"] = "cal_ql"
    """How the policy is pre-trained; its regulariser is the one that --regulariser keeps."""
    frozen_steps: Float = 0.0
    """Environment steps of the policy that interaction begins with, before the first online update (warm-up)."""
    regulariser: Float = 0.0
    """Times the pre-training's regulariser in the online losses; 0: dropped, 1: kept as it was."""
    offline_share: Fraction = 0.0
    """Share of an online batch that comes from the dataset, in [0, 1]; the rest is the replay buffer's."""
    new_networks: Float = 0.0
    """1: interaction begins with networks that are drawn anew (a reset); 0: with the pre-trained ones."""
    fit_critic: bool = True
    """With cloning: critics are pre-trained, too, by TD on the data under the cloned policy."""
    env_steps: EnvSteps = 100_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    eval_every: Size = 10_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    utd: Size = 1
    """Gradient updates of the critics per environment step."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    subset_size: Size = 2
    """Random critics, drawn anew for every update, whose least target value is bootstrapped."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    failure_reward: float | None = None
    """Sparse tasks: the environment's reward of a step without success (0 in AntMaze, -1 in binary Adroit); an
    episode of nothing else counts as failing for ever, failure_reward / (1 - gamma) after scale and shift."""
    endless: bool = False
    """An episode's last reward goes on for ever where it did not terminate (tasks that go on paying)."""
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
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS: dict[str, dict[str, Any]] = {}

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
last_init = nn.initializers.orthogonal(1e-2)


class Layers(nn.Module):
    """Dense, layer normalisation, ReLU."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.LayerNorm()(nn.Dense(size, kernel_init=dense_init)(x)))
        return x


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = nn.Dense(2 * self.action_dim, kernel_init=last_init)(Layers(self.hidden_dims)(obs))
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, jnp.log(1e-5), jnp.log(10.0))


class Critic(nn.Module):
    """Q(s, a) [B]"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = Layers(self.hidden_dims)(jnp.concatenate([obs, action], axis=-1))
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
    prior_actor: Any
    """pi0, as it was at the end of the offline phase; until then as the actor began."""
    prior_critic: Any
    """Of the same time."""


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


def bellman_error(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_{i in a random subset} target Q_i(s', a') - Q_j(s, a))^2, mean over the critics j; a' ~ pi.

    Without entropy in the target.
    """
    action_key, subset_key = jax.random.split(key)
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), action_key)
    targets = random_subset(agent.target_critic, subset_key, args)
    next_q = q_values(agent.nets.critic, targets, batch.next_obs, action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    loss = ((q - jax.lax.stop_gradient(y)) ** 2).mean()
    return loss, {"bellman_loss": loss, "q": q.mean()}


def conservative_gap(critic, agent: Agent, batch: Batch, key, args: Args):
    """Cal-QL's regulariser: soft maximum of Q over actions minus Q of the data's, mean over batch and critics [].

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions pi(a|s). Policy
    actions at s' are evaluated at s. None of the actions carries a gradient. A policy action counts with
    max(Q(s, a), batch.return_to_go): where that bound is higher, there is no gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    (B, A), n = batch.action.shape, args.n_actions
    uniform = jax.random.uniform(uniform_key, (n, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, n)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, n
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    log_density = jnp.concatenate([jnp.full((n, B), A * jnp.log(0.5)), following_log_prob, now_log_prob])
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions)
    chex.assert_shape([all_q[0], log_density], (3 * n, B))
    is_uniform = jnp.arange(3 * n)[:, None] < n
    all_q = jnp.maximum(all_q, jnp.where(is_uniform, -jnp.inf, batch.return_to_go))
    soft_max = jax.nn.logsumexp(all_q - jax.lax.stop_gradient(log_density), axis=1)
    return (soft_max - q_values(agent.nets.critic, critic, batch.obs, batch.action)).mean()


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args, kept):
    """Bellman error, plus `kept` times Cal-QL's penalty where that is the pre-training (not computed where it is 0)."""
    bellman_key, gap_key = jax.random.split(key)
    loss, info = bellman_error(critic, agent, batch, bellman_key, args)
    if args.pretraining == "cal_ql":
        penalty = partial(conservative_gap, agent=agent, batch=batch, key=gap_key, args=args)
        gap = jax.lax.cond(kept > 0, penalty, lambda critic: 0.0, critic)
        loss, info = loss + kept * args.cql_alpha * gap, {**info, "gap": gap}
    return loss, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args, kept):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi; for cloning and TD3+BC minus `kept` mean |Q| / alpha' log pi(a_D|s).

    (alpha' is TD3+BC's, and the mean over the batch carries no gradient.)
    """
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_equal_shape([q, log_prob, batch.reward])
    loss = (jnp.exp(agent.log_alpha) * log_prob - q).mean()
    if args.pretraining != "cal_ql":
        size = jax.lax.stop_gradient(jnp.abs(q).mean())
        loss += kept * size / args.alpha * cloning_loss(mean, log_std, batch.action)
    return loss, {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def cloning_loss(mean, log_std, action):
    """-log pi(a|s) [], the mean over actions [B, A]; they are kept off the rim, where it has no bound."""
    u = jnp.arctanh(jnp.clip(action, -1.0 + 1e-3, 1.0 - 1e-3))
    return -tanh_gaussian_log_prob(mean, log_std, u).mean()


def bc_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-log pi(a|s)"""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    _, log_prob = sample_tanh_gaussian(mean, log_std, key)
    return cloning_loss(mean, log_std, batch.action), {"entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.actor_hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
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
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        prior_actor=actor,
        prior_critic=critic,
    )


def begin(agent: Agent, key, args: Args, spec: Spec) -> Agent:
    """The agent that interaction begins with: it remembers the pre-trained one; its networks are others with
    `new_networks`, not so its temperature."""
    new = init(key, args, spec).replace(log_alpha=agent.log_alpha, alpha_opt=agent.alpha_opt)
    first = jax.tree.map(partial(jnp.where, args.new_networks > 0), new, agent)
    return first.replace(prior_actor=agent.actor, prior_critic=agent.critic)


def sample(key, data: TransitionsWithReturns, replay: Replay, args: Args) -> Batch:
    """[utd, B]: the first rows of each B uniform over the dataset, the others over the replay buffer."""
    data_key, replay_key = jax.random.split(key)
    shape = (args.utd, args.batch_size)
    old, new = data.transitions.sample(data_key, shape), replay.sample(replay_key, shape)
    offline = jnp.arange(args.batch_size) < jnp.round(args.offline_share * args.batch_size)

    def choose(a, b):
        return jnp.where(offline.reshape(-1, *(1,) * (a.ndim - 2)), a, b)

    return jax.tree.map(choose, old, new)


def actor_step(agent: Agent, loss: Callable, batch: Batch, key, args: Args) -> tuple[dict, dict]:
    """One gradient step of the policy, and of the temperature where the loss has one: the new fields, and metrics."""
    new = {}
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(agent.actor, agent, batch, key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    if loss is not bc_loss:  # a cloned policy's entropy does not follow a temperature, which would drift for ever
        grads = jax.grad(alpha_loss)(agent.log_alpha, info["entropy"], batch.action.shape[-1])
        updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
        new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)
    return new, {"actor_loss": value, "temperature": jnp.exp(agent.log_alpha), **info}


def critic_step(agent: Agent, batch: Batch, key, args: Args, kept) -> tuple[dict, dict]:
    """One gradient step of the critics, and a Polyak step of their targets: the new fields, and metrics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args, kept)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target = optax.incremental_update(critic, agent.target_critic, args.tau)
    return {"critic": critic, "critic_opt": critic_opt, "target_critic": target}, {"critic_loss": loss, **info}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """Offline: one gradient step of everything; all losses are of the old parameters."""
    critic_key, actor_key = jax.random.split(key)
    loss = bc_loss if args.pretraining == "bc" else partial(actor_loss, kept=1.0)
    new, info = actor_step(agent, loss, batch, actor_key, args)
    if args.pretraining != "bc" or args.fit_critic:
        critics, info_q = critic_step(agent, batch, critic_key, args, 1.0)
        new, info = new | critics, info | info_q
    return agent.replace(**new), info


def update_online(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """SAC on [utd, B]: one step of the critics on each B, then one of policy and temperature on the last of them.

    Nothing is learned before environment step `frozen_steps`.
    """

    def learn(agent):
        critic_key, actor_key = jax.random.split(key)

        def step(agent, x):
            new, info = critic_step(agent, with_prior_value(x[0], agent), x[1], args, args.regulariser)
            return agent.replace(**new), info

        new, info_q = jax.lax.scan(step, agent, (batch, jax.random.split(critic_key, args.utd)))
        last = jax.tree.map(lambda x: x[-1], batch)
        fields, info = actor_step(new, partial(actor_loss, kept=args.regulariser), last, actor_key, args)
        return new.replace(**fields), {**jax.tree.map(jnp.mean, info_q), **info}

    def stay(agent):
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, agent)[1])

    return jax.lax.cond(t >= args.frozen_steps, learn, stay, agent)


def with_prior_value(batch: Batch, agent: Agent) -> Batch:
    """The batch with min_i Q_i(s, tanh(mean)) of the pre-trained agent in place of returns-to-go."""
    action = jnp.tanh(agent.nets.actor.apply(agent.prior_actor, batch.obs)[0])
    value = q_values(agent.nets.critic, agent.prior_critic, batch.obs, action).min(0)
    return batch._replace(return_to_go=value)


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
    if args.pretraining != "cal_ql" and np.min(args.alpha) <= 0:
        raise InputError(f"--alpha must be above 0, not {args.alpha}: imitation's weight is mean |Q| divided by it.")
    data = load_dataset(args).require(discrete=False).scale_rewards(args.reward_scale, args.reward_shift)
    with Run(__file__, args, data.task, act) as run:
        if np.max(args.frozen_steps) >= run.total:
            run.note(f"--frozen-steps {np.max(args.frozen_steps):,g}: nothing is learned in {run.total:,} steps.")
        failure = None if args.failure_reward is None else data.task.training_reward(args.failure_reward)
        offline_data = run.replicate(data.with_returns(np.asarray(run.lane_args.discount), failure, args.endless))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, offline_data, explore, sample, update_online, updates_per_step=args.utd, capacity=args.buffer_size
        )
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        begin_lanes = run.over_lanes(partial(begin, spec=data.spec), in_axes=(0, 0, 0))
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, offline_data)
            else:
                if run.done == 0:
                    agent = begin_lanes(agent, run.step_keys(run.total + 2), run.lane_args)
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
