"""CQL: Conservative Q-Learning, on SAC (continuous actions) or double DQN (discrete actions).

Kumar, Zhou, Tucker and Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020,
arXiv 2006.04779. The critic's loss pushes down a soft maximum of Q over actions and pushes up Q of the
dataset's actions (CQL(H), eq. 4), so that the learned values are a lower bound where the data says little.
The soft maximum is estimated with importance weights from uniform and policy actions (appendix F); with
--lagrange the penalty's weight is tuned to keep the gap at a target (eq. 30).

The critics may be regularised as in "A Workflow for Offline Model-Free Robotic Reinforcement Learning" (Kumar, Singh,
Tian, Finn and Levine, CoRL 2021, arXiv 2109.10813): a variational bottleneck (--bottleneck-dim 16), dropout, l1 or l2
of the weights against over-fitting; larger networks, and DR3 (arXiv 2112.04716) with them, against under-fitting.
results/cql_workflow.py reads runs and says which of these that workflow would choose, and where to stop.

Choose it when actions are discrete, or you want values that are pessimistic wherever the data say little.

Parity: equal to CORL's cql.py, update for update, with and without --lagrange (results/parity.md).

Deviations from the paper:
- settings per suite and first weights as in CORL (arXiv 2210.07105), whose scores are those that can be reproduced;
  AntMaze's critics both have five layers (by a slip CORL's second one has three);
- the policy's biases start at zero (PyTorch's default draws them like the weights);
- next actions' Q is not reduced by their entropy (--backup-entropy does it), as in the authors' code;
- the discrete form is on double DQN, not on QR-DQN;
- the bottleneck's noise and dropout act in the critics' loss alone; targets and the actor's loss take the mean (the
  workflow's code draws them everywhere). DR3's features are the last hidden layer, there those of convolutions.

    python algorithms/offline/cql.py --dataset hopper-medium --seeds 4 --updates 50000 --n-actions 4
    python algorithms/offline/cql.py --dataset cartpole-mixed --seeds 4 --updates 10000 --cql-alpha 0 1 5
    python algorithms/offline/cql.py --dataset point-umaze-demos --seeds 4 --updates 20000 --holdout-episodes 0.1
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
from shared.arguments import (
    Count,
    Dropout,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
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
    critic_dropout: Dropout = 0.0
    """Dropout after the critics' hidden layers, in [0, 1)."""
    bottleneck_dim: Count = 0
    """Size of the critics' variational bottleneck, after their first hidden layer; 0: there is none."""
    bottleneck_weight: Float = 1e-3
    """Weight of the bottleneck's KL divergence from N(0, I)."""
    critic_penalty: tuple[Literal["l1", "l2", "dr3"], ...] = ()
    """Further terms of the critics' loss: l1, l2: of their weights; dr3: products of features of s, a and s', a'."""
    critic_penalty_weight: Float = 1e-3
    """Weight of the critic_penalty."""
    holdout_episodes: StaticFraction = 0.0
    """Share of the episodes that are not trained on: the losses of both parts are logged, in [0, 1]; 0: none."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_antmaze = {
    "cql_alpha": 5.0, "lagrange": True, "target_gap": 0.8, "max_q_backup": True, "clip_diff_min": -200.0,
    "actor_lr": 1e-4, "critic_hidden_dims": (256,) * 5, "normalize_obs": False, "eval_episodes": 100,
    "reward_scale": 10.0, "reward_shift": -5.0,
}  # fmt: skip
_mujoco = {"cql_alpha": 10.0, "actor_lr": 3e-5}
_maze = {"cql_alpha": 10.0, "lagrange": True, "target_gap": 5.0, "actor_lr": 3e-5}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _mujoco),
    **dict.fromkeys(("hopper-medium-replay", "hopper-medium-expert"), _mujoco),
    "hopper-medium": {**_mujoco, "normalize_return": True},  # of all sets CORL's configurations have it here alone
    "maze2d": {**_maze, "eval_episodes": 100},
    "pointmaze": _maze,
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), {"cql_alpha": 1.0, "actor_lr": 1e-4}),
    "antmaze": _antmaze,
    "cartpole": {"cql_alpha": 1.0, "hidden_dims": (64, 64)},  # ours: the paper's discrete tasks are Atari games
}

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
    """Q(s, a) [B]; or, with `outputs` discrete actions, Q(s, .) [B, outputs].

    It notes its last hidden layer as `features` [B, H], and its bottleneck's KL divergence from N(0, I) as `kl` [B].
    """

    hidden_dims: tuple[int, ...]
    outputs: int = 1
    dropout: float = 0.0
    bottleneck_dim: int = 0

    @nn.compact
    def __call__(self, obs, action=None, training: bool = False):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for i, size in enumerate(self.hidden_dims):
            x = nn.relu(nn.Dense(size, kernel_init=critic_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
            if i == 0 and self.bottleneck_dim:
                x, log_std = jnp.split(nn.Dense(2 * self.bottleneck_dim, name="bottleneck")(x), 2, axis=-1)
                self.sow("intermediates", "kl", 0.5 * (x**2 + jnp.exp(2 * log_std) - 1.0 - 2 * log_std).sum(-1))
                if training:
                    x = x + jnp.exp(log_std) * jax.random.normal(self.make_rng("noise"), x.shape)
        self.sow("intermediates", "features", x)
        x = nn.Dense(self.outputs, kernel_init=critic_last_init)(x)
        return x[..., 0] if action is not None else x


class Networks(NamedTuple):
    actor: Actor | None
    """None: discrete actions, the policy is the greedy one."""
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    critic_opt: optax.OptState
    actor: Any = None
    actor_opt: optax.OptState = None
    log_alpha: Any = None
    """Of SAC's entropy temperature."""
    alpha_opt: optax.OptState = None
    log_alpha_prime: Any = None
    """Of the Lagrange multiplier."""
    alpha_prime_opt: optax.OptState = None
    step: Any = None


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


def critics_on(net: Critic, critics, *rows, key=None):
    """Q [E, B, ...] of rows [E, B, ...], one set for each critic, and what the critics noted {name: [E, B, ...]}.

    With a key under dropout and the bottleneck's noise.
    """

    def one(critic, key, *rows):
        rngs = {} if key is None else dict(zip(("dropout", "noise"), jax.random.split(key), strict=True))
        return net.apply(critic, *rows, training=key is not None, rngs=rngs, mutable="intermediates")

    keys = None if key is None else jax.random.split(key, 2)
    q, noted = jax.vmap(one)(critics, keys, *rows)
    return q, {name: x for name, (x,) in noted["intermediates"].items()}


def q_values(net: Critic, critics, obs, action, key=None):
    """[E, B]; with actions [n, B, A], [E, n, B].

    Flat rows, repeated for each critic, are plain batched products: on CPU a fifth faster than shared rows.
    """
    shape = (2, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(2, -1, x.shape[-1]) for x in (obs, action)]
    return critics_on(net, critics, *rows, key=key)[0].reshape(shape)


def regularised(critic, agent: Agent, batch: Batch, noted: dict, key, args: Args):
    """The bottleneck's divergence and the terms of critic_penalty, weighted and summed over the critics; metrics.

    l1: the mean |w| of each array; l2: half the sum of squares; dr3: f(s, a) f(s', a') with a' of the policy, of which
    the first factor alone carries a gradient.
    """
    loss, info, weights = 0.0, {}, jax.tree.leaves(critic)
    if args.bottleneck_dim:
        info["bottleneck_kl"] = noted["kl"].mean()
        loss = loss + args.bottleneck_weight * noted["kl"].mean(1).sum(0)
    if "l1" in args.critic_penalty:
        loss = loss + args.critic_penalty_weight * 2.0 * sum(jnp.abs(w).mean() for w in weights)
    if "l2" in args.critic_penalty:
        loss = loss + args.critic_penalty_weight * 0.5 * sum((w**2).sum() for w in weights)
    if "dr3" in args.critic_penalty:
        rows = [batch.next_obs]
        if agent.nets.actor is not None:
            rows.append(sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)[0])
        _, following = critics_on(agent.nets.critic, critic, *(jnp.stack([x, x]) for x in rows))
        dot = (noted["features"] * jax.lax.stop_gradient(following["features"])).sum(-1).mean(1)
        loss, info["dr3"] = loss + args.critic_penalty_weight * dot.sum(0), dot.mean()
    return loss, info


def conservative_gap(critic, agent: Agent, batch: Batch, q, key, args: Args, noise=None):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch: [E] (eq. 4).

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions
    pi(a|s); or not, with the data's action among them. Policy actions at s' are evaluated at s. None of the actions
    carries a gradient. `noise`: a key of the critics' dropout and bottleneck.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    B, A = batch.action.shape
    uniform = jax.random.uniform(uniform_key, (args.n_actions, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, args.n_actions)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, args.n_actions
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions, noise)
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


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args, training: bool = True):
    """Bellman error plus the conservative penalty, each summed over the two critics, and what regularises them."""
    target_key, gap_key, dr3_key, *noise = jax.random.split(key, 5)
    noise = noise if training and (args.critic_dropout or args.bottleneck_dim) else (None, None)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * bootstrapped_q(agent, batch, target_key, args)
    rows = (jnp.stack([x, x]) for x in (batch.obs, batch.action))
    q, noted = critics_on(agent.nets.critic, critic, *rows, key=noise[0])
    chex.assert_equal_shape([y, q[0], batch.reward])
    bellman = ((q - jax.lax.stop_gradient(y)) ** 2).mean(1).sum(0)
    gap = conservative_gap(critic, agent, batch, q, gap_key, args, noise[1])
    if args.lagrange:
        alpha_prime = jnp.clip(jnp.exp(agent.log_alpha_prime), 0.0, 1e6)
        penalty = (alpha_prime * args.cql_alpha * (gap - args.target_gap)).sum()
    else:
        penalty = args.cql_alpha * gap.sum()
    more, info = regularised(critic, agent, batch, noted, dr3_key, args)
    return bellman + penalty + more, {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean(), **info}


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


def discrete_critic_loss(critic, agent: Agent, batch: Batch, args: Args, key=None):
    """Double-DQN Bellman error plus cql_alpha (logsumexp_a Q(s, a) - Q(s, a_data)), for each critic, and what
    regularises them; without a key there is no noise."""
    apply = jax.vmap(agent.nets.critic.apply, (0, None))
    rows = jnp.arange(len(batch.reward))
    greedy = apply(agent.critic, batch.next_obs).min(0).argmax(-1)
    target_q = apply(agent.target_critic, batch.next_obs).min(0)[rows, greedy]
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    noise = key if args.critic_dropout or args.bottleneck_dim else None
    all_q, noted = critics_on(agent.nets.critic, critic, jnp.stack([batch.obs, batch.obs]), key=noise)
    q = all_q[:, rows, batch.action]
    chex.assert_equal_shape([y, q[0], batch.reward])
    bellman = ((q - y) ** 2).mean(1).sum(0)
    gap = (args.cql_temperature * jax.nn.logsumexp(all_q / args.cql_temperature, axis=-1) - q).mean(1)
    more, info = regularised(critic, agent, batch, noted, None, args)
    loss = bellman + args.cql_alpha * gap.sum() + more
    return loss, {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean(), **info}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    critic_key, actor_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    inputs = (obs,) if spec.discrete else (obs, action)
    outputs = spec.action_dim if spec.discrete else 1
    net = Critic(args.critic_hidden_dims or args.hidden_dims, outputs, args.critic_dropout, args.bottleneck_dim)
    critic = jax.lax.map(lambda k: net.init(k, *inputs), jax.random.split(critic_key, 2))
    agent = Agent(
        nets=Networks(None if spec.discrete else Actor(args.hidden_dims, spec.action_dim), net),
        critic=critic,
        target_critic=critic,
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )
    if spec.discrete:
        return agent
    actor = agent.nets.actor.init(actor_key, obs)
    log_alpha, log_alpha_prime = jnp.log(jnp.float32(args.init_temperature)), jnp.ones(())
    return agent.replace(
        actor=actor,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        log_alpha=log_alpha,
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        log_alpha_prime=log_alpha_prime,
        alpha_prime_opt=optax.adam(args.critic_lr).init(log_alpha_prime),
        step=jnp.int32(0),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
    new = {}
    if agent.nets.actor is None:
        grad = jax.value_and_grad(discrete_critic_loss, has_aux=True)
        (loss, info), grads = grad(agent.critic, agent, batch, args, key)
        info["critic_loss"] = loss
    else:
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
        new["step"] = agent.step + 1
        info |= {"critic_loss": loss, "actor_loss": actor_value, "alpha": jnp.exp(agent.log_alpha), **actor_info}
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)
    return agent.replace(**new), info


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean; discrete: [B] indices, greedy in min_i Q_i."""
    if agent.nets.actor is None:
        return jax.vmap(agent.nets.critic.apply, (0, None))(agent.critic, obs).min(0).argmax(-1)
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


JUDGED = 2_000
"""Rows of each part that are looked at with --holdout-episodes, always the same."""


def judge(agent: Agent, parts: dict[str, Batch], args: Args) -> dict:
    """{"<part>_q", "<part>_bellman_loss", "<part>_gap"} of fixed rows, without noise in the critics."""
    found = {}
    for name, rows in parts.items():
        if agent.nets.actor is None:
            _, info = discrete_critic_loss(agent.critic, agent, rows, args)
        else:
            _, info = critic_loss(agent.critic, agent, rows, jax.random.key(0), args, training=False)
        found |= {f"{name}_{what}": info[what] for what in ("q", "bellman_loss", "gap")}
    return found


def train(agent: Agent, keys, args: Args, transitions: Transitions, parts: dict | None = None) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics, and those of the `parts` {name: Batch} at the end."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **judge(agent, parts or {}, args)}


def parted(data: Dataset, share: float) -> tuple[Dataset, dict[str, Batch]]:
    """The episodes that are trained on, and rows {"train": ..., "holdout": ...} of both parts; all and none with 0.

    Raises:
      InputError: either part would have no episode.
    """
    if not share:
        return data, {}
    random, count = np.random.default_rng(0), len(data.ends())
    held = round(share * count)
    if not 0 < held < count:
        raise InputError(f"--holdout-episodes {share:g}: of {count} episodes {held} would be held out.")
    out = np.isin(data.episode(), random.permutation(count)[:held])
    found = {}
    for name, rows in (("train", ~out), ("holdout", out)):
        part = data.select(rows).transitions()
        found[name] = part.take(random.permutation(len(part.rows))[:JUDGED])
    return data.select(~out), found


OF_AN_ACTOR = (
    "importance_sampling", "lagrange", "clip_diff_min", "clip_diff_max", "max_q_backup", "backup_entropy",
    "init_temperature", "tune_temperature", "bc_steps",
)  # fmt: skip
"""Arguments that the losses of discrete actions do not know."""


def main(args: Args) -> None:
    if args.clip_diff_min >= args.clip_diff_max:
        raise InputError(
            f"--clip-diff-min {args.clip_diff_min} must be lower than --clip-diff-max {args.clip_diff_max}."
        )
    data = load_dataset(args).require()
    given = [name for name in OF_AN_ACTOR if getattr(args, name) != getattr(Args(), name)]
    if data.spec.discrete and given:
        raise InputError(f"--{given[0].replace('_', '-')} is of continuous actions; those of '{data.task.id}' are not.")
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale * args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    data, parts = parted(data, args.holdout_episodes)
    with Run(__file__, args, data.task, act) as run:
        transitions, parts = run.replicate((data.transitions(), parts))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions, parts)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
