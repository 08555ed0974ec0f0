"""RO2O: Robust Offline-to-Online RL: RORL's smoothing and uncertainty, offline and online alike.

Wen, Yu, Yang, Chen, Bai and Wang, "Towards Robust Offline-to-Online Reinforcement Learning via Uncertainty and
Smoothness", JAIR 2024, arXiv 2309.16973. SAC with the minimum of N critics, and three terms on perturbed
observations s^ around those of the data (section 4): the policy's distribution and Q shall not change from s to
s^, an increase of Q weighing more than a decrease; and Q of the policy's actions at s^ is lowered where the critics
disagree. An agent that is smooth around its data, and knows where it knows little, bears the shift towards its own
interactions, so that the learning goes on online as it is; the replay buffer begins empty.

The first --learning-starts environment steps are the offline policy's; one update follows each step after them.

Choose it when observations are noisy offline and online alike, and you can afford an ensemble.

Parity: equal to the authors' offline code, update for update, but for the order of the steps and the form of
log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- the authors' fine-tuning code computes the three terms and leaves them out of its losses: --no-online-reg is that;
- the n perturbations of an update are shared by the observations of its batch, and smoothing and lowering count
  as means over the critics beside a sum of their Bellman errors, as in the authors' code with its weights;
- all losses of an update are of the parameters before it, as in rorl; the authors' code steps one after the other;
- the authors give the settings of one data set of each kind (walker2d-medium, antmaze-umaze, antmaze-large-play);
  in their AntMaze ones each critic has its own target. Their fine-tuning of antmaze-umaze has a cloning weight of 1:
  pre-train, then --from RUN --bc-reg 1.

    python algorithms/offline_to_online/ro2o.py --dataset hopper-medium --seeds 4
    python algorithms/offline_to_online/ro2o.py --dataset hopper-medium --from results/runs/rorl/hopper-medium/RUN

With --terms and nothing after it this is SAC-N in both phases, the baseline; --from RUN --no-online-reg continues
the same agents without the terms.
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
    offline_updates: Size = 2_500_000
    """Gradient updates of each lane before its first environment step."""
    env_steps: EnvSteps = 250_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    buffer_size: Size = 250_000
    """Transitions kept in each lane's replay buffer."""
    learning_starts: Count = 2_500
    """Environment steps before the first online update."""
    online_reg: bool = True
    """Keep the terms online; without them it is SAC-N there (cloning stays), as in the authors' code."""
    terms: tuple[Literal["policy", "q", "ood", "bc"], ...] = ("policy", "q", "ood")
    """Which of the terms are computed at all; none of them: SAC-N."""
    n_samples: Size = 20
    """n: perturbed observations per observation, in each term."""
    policy_smooth_eps: Float = 0.01
    """Perturbation of the policy's smoothing, in standard deviations of the data (as all of them)."""
    policy_smooth_reg: Float = 1.0
    """Weight of the policy's smoothing (eta_3 in RO2O)."""
    q_smooth_eps: Float = 0.01
    """Perturbation of Q's smoothing."""
    q_smooth_reg: Float = 1e-4
    """Weight of Q's smoothing (eta_1 in RO2O)."""
    q_smooth_tau: Fraction = 0.2
    """Share of decreases in Q's smoothing, in [0, 1]; increases have the rest."""
    ood_eps: Float = 0.01
    """Perturbation of the observations where Q is lowered."""
    ood_reg: Float = 0.1
    """Weight of the lowering (eta_2 in RO2O)."""
    uncertainty: Float = 1.0
    """lambda: standard deviations of the critics by which Q is lowered, at first."""
    uncertainty_min: Float = 0.1
    """What lambda falls to, and what it is online."""
    uncertainty_decay: Float = 5e-7
    """What lambda loses at every offline update."""
    bc_reg: Float = 1.0
    """Weight of cloning, the squared distance of the policy's actions to the data's (AntMaze)."""
    actor_q: Literal["min", "lcb"] = "min"
    """What the actor ascends: the least of the critics, or their mean minus lcb standard deviations (AntMaze)."""
    lcb: Float = 4.0
    """Standard deviations under the mean with actor_q lcb."""
    own_targets: bool = False
    """Each critic's target is of its own target critic, not of the least of all (AntMaze)."""
    n_critics: Size = 10
    """Critics in the ensemble."""
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
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_antmaze = {
    "terms": ("policy", "ood", "bc"), "policy_smooth_eps": 0.005, "own_targets": True,
    "reward_scale": 4.0, "reward_shift": -2.0,
}  # fmt: skip
_umaze = {"actor_q": "lcb", "bc_reg": 5.0, "ood_reg": 0.3, "uncertainty_min": 1.0, "uncertainty_decay": 0.0}
_large = {"bc_reg": 1.0, "ood_reg": 0.5, "uncertainty": 2.0, "uncertainty_min": 1.0, "uncertainty_decay": 1e-6}
PRESETS = {
    "antmaze": {**_antmaze, **_large, "eval_episodes": 100},
    "antmaze-umaze": {**_antmaze, **_umaze, "eval_episodes": 100},
    "pointmaze": {**_antmaze, **_umaze},  # ours, after AntMaze: the paper has no PointMaze
}

hidden_init = {
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # +-sqrt(1 / fan_in)
    "bias_init": nn.initializers.constant(0.1),
}
critic_init = {
    # +-sqrt(1 / outputs): the authors' matrices are [inputs, outputs], of which PyTorch reads the second as the inputs
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
    "bias_init": nn.initializers.constant(0.1),
}


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
        x = nn.Dense(2 * self.action_dim, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **critic_init)(x))
        return nn.Dense(1, kernel_init=uniform(3e-3), bias_init=uniform(3e-3))(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """N critics, stacked on a leading axis [E=N, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    step: jax.Array
    """Updates done, by which lambda has fallen."""


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
    """[E, B]; with observations or actions [n, B, ...], [E, n, B]."""
    rows = jnp.broadcast_shapes(obs.shape[:-1], action.shape[:-1])
    obs, action = (jnp.broadcast_to(x, (*rows, x.shape[-1])) for x in (obs, action))
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def perturbed(obs, eps, key, n: int):
    """n observations s^ per observation [n, B, O], within eps of it in every dimension."""
    return obs + eps * jax.random.uniform(key, (n, 1, obs.shape[-1]), minval=-1.0, maxval=1.0)


def symmetric_kl(one, other):
    """KL(one || other) + KL(other || one) of Gaussians (mean, log_std), before tanh, summed over dimensions.

    In a form without differences of large terms: float32 resolves the smallest divergences.
    """
    (mean, log_std), (other_mean, other_log_std) = one, other
    precision = 0.5 * (jnp.exp(-2.0 * log_std) + jnp.exp(-2.0 * other_log_std))
    return (2.0 * jnp.sinh(log_std - other_log_std) ** 2 + precision * (mean - other_mean) ** 2).sum(-1)


def policy_smoothing(actor, agent: Agent, batch: Batch, key, args: Args):
    """max over s^ of KL(pi(s) || pi(s^)) + KL(pi(s^) || pi(s)), mean over the batch."""
    near = perturbed(batch.obs, args.policy_smooth_eps, key, args.n_samples)
    divergence = symmetric_kl(agent.nets.actor.apply(actor, batch.obs), agent.nets.actor.apply(actor, near))
    chex.assert_shape(divergence, (args.n_samples, args.batch_size))
    return divergence.max(0).mean()


def q_smoothing(critic, agent: Agent, batch: Batch, q, key, args: Args):
    """max over s^ of (1 - tau) max(d, 0)^2 + tau min(d, 0)^2, d = Q_i(s^, a) - Q_i(s, a), mean over i."""
    near = perturbed(batch.obs, args.q_smooth_eps, key, args.n_samples)
    d = q_values(agent.nets.critic, critic, near, batch.action) - q[:, None]
    chex.assert_shape(d, (args.n_critics, args.n_samples, args.batch_size))
    loss = (1.0 - args.q_smooth_tau) * jnp.maximum(d, 0.0) ** 2 + args.q_smooth_tau * jnp.minimum(d, 0.0) ** 2
    return loss.mean(0).max(0).mean()


def ood_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(Q_i(s^, a^) - stop[Q_i(s^, a^) - lambda std_i Q_i(s^, a^)])^2, a^ ~ pi(s^) without gradient."""
    near_key, action_key = jax.random.split(key)
    near = perturbed(batch.obs, args.ood_eps, near_key, args.n_samples)
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, near), action_key)
    action = jax.lax.stop_gradient(action)
    q = q_values(agent.nets.critic, critic, near, action)
    chex.assert_shape(q, (args.n_critics, args.n_samples, args.batch_size))
    lam = jnp.maximum(args.uncertainty - args.uncertainty_decay * agent.step, args.uncertainty_min)
    std = q.std(0, ddof=1)
    target = jax.lax.stop_gradient(q - lam * std)
    return ((q - target) ** 2).mean(), {"q_ood": q.mean(), "std_ood": std.mean(), "lambda": lam}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """SAC's Bellman error with the least of N target critics, summed over the critics; smoothing and lowering."""
    target_key, smooth_key, ood_key = jax.random.split(key, 3)
    mean, log_std = agent.nets.actor.apply(agent.actor, batch.next_obs)
    next_action, next_log_prob = sample_tanh_gaussian(mean, log_std, target_key)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action)
    target_q = target_q if args.own_targets else target_q.min(0)
    target_v = target_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape(y, q.shape if args.own_targets else (args.batch_size,))
    loss = bellman = ((q - y) ** 2).mean(1).sum(0)
    info = {"bellman_loss": bellman, "q": q.mean(), "q_std": q.std(0).mean()}
    if "q" in args.terms:
        info["q_smooth_loss"] = q_smoothing(critic, agent, batch, q, smooth_key, args)
        loss = loss + args.q_smooth_reg * info["q_smooth_loss"]
    if "ood" in args.terms:
        info["ood_loss"], info_ood = ood_loss(critic, agent, batch, ood_key, args)
        loss, info = loss + args.ood_reg * info["ood_loss"], info | info_ood
    return loss, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a) (or mean_i - lcb std_i), a ~ pi; smoothing; |a - a_data|^2 per dimension."""
    action_key, smooth_key = jax.random.split(key)
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), action_key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action)
    q = q.mean(0) - args.lcb * q.std(0, ddof=1) if args.actor_q == "lcb" else q.min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    loss = (jnp.exp(agent.log_alpha) * log_prob - q).mean()
    info = {"entropy": -log_prob.mean(), "q_pi": q.mean()}
    if "policy" in args.terms:
        info["policy_smooth_loss"] = policy_smoothing(actor, agent, batch, smooth_key, args)
        loss = loss + args.policy_smooth_reg * info["policy_smooth_loss"]
    if "bc" in args.terms:
        info["bc_loss"] = ((action - batch.action) ** 2).mean()
        loss = loss + args.bc_reg * info["bc_loss"]
    return loss, info


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        step=jnp.int32(0),
    )


def sample(key, data, replay: Replay, args: Args) -> Batch:
    """[B] uniform over what was collected; none of the dataset."""
    return replay.sample(key, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
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

    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent.replace(**new, step=agent.step + 1), metrics


def update_online(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """The same, with lambda at its minimum; of the terms only cloning without --online-reg."""
    terms = args.terms if args.online_reg else tuple(term for term in args.terms if term == "bc")
    return update(agent, batch, key, dataclasses.replace(args, terms=terms, uncertainty=args.uncertainty_min))


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.n_critics < 2 and ("ood" in args.terms or args.actor_q == "lcb"):
        raise InputError("--n-critics must be at least 2 with --terms ood or --actor-q lcb: of one there is no spread.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
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
