"""RORL: Robust Offline RL via conservative smoothing, on SAC-N.

Yang, Bai, Ma, Wang, Zhang and Han, "RORL: Robust Offline Reinforcement Learning via Conservative Smoothing",
NeurIPS 2022, arXiv 2206.02829. SAC with the minimum of N critics, and three terms on perturbed observations s^
around those of the data (section 4): the policy's distribution and Q shall not change from s to s^, an increase
of Q weighing more than a decrease; and Q of the policy's actions at s^ is lowered where the critics disagree.
Evaluation may attack the observation that the policy sees (section 6): --attack and --attack-scale.

Choose it when the observations will be noisy or attacked when the policy is used.

Parity: equal to the authors' code, update for update, but for the form of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- the n perturbations of an update are shared by the observations of its batch, and smoothing and lowering count
  as means over the critics beside a sum of their Bellman errors, as in the authors' code with its weights;
- an attack by gradients moves by signs, which is Adam's first step: the authors' code begins it anew each time;
- the attacker uses the evaluated agent's own networks; the diversity term of EDAC, off in the paper, is left out.

    python algorithms/offline/rorl.py --dataset hopper-medium --attack min_q --attack-scale 0 0.05 0.1 --seeds 2
    python algorithms/offline/rorl.py --dataset hopper-medium --terms --attack min_q --attack-scale 0 0.05 0.1 --seeds 2

The second one, without terms, is SAC-N, the baseline; --policy-smooth-reg 0 --q-smooth-reg 0 --ood-reg 0 is the same,
only slower.
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    terms: tuple[Literal["policy", "q", "ood"], ...] = ("policy", "q", "ood")
    """Which of the terms are computed at all; none of them: SAC-N."""
    n_samples: Size = 20
    """n: perturbed observations per observation, in each term."""
    policy_smooth_eps: Float = 0.005
    """Perturbation of the policy's smoothing, in standard deviations of the data (as all of them)."""
    policy_smooth_reg: Float = 0.1
    """Weight of the policy's smoothing (eta_3 in RO2O)."""
    q_smooth_eps: Float = 0.005
    """Perturbation of Q's smoothing."""
    q_smooth_reg: Float = 1e-4
    """Weight of Q's smoothing (eta_1 in RO2O)."""
    q_smooth_tau: Fraction = 0.2
    """Share of decreases in Q's smoothing, in [0, 1]; increases have the rest."""
    ood_eps: Float = 0.01
    """Perturbation of the observations where Q is lowered."""
    ood_reg: Float = 0.5
    """Weight of the lowering (eta_2 in RO2O)."""
    uncertainty: Float = 2.0
    """lambda: standard deviations of the critics by which Q is lowered, at first."""
    uncertainty_min: Float = 0.1
    """What lambda falls to, and what it is online."""
    uncertainty_decay: Float = 1e-6
    """What lambda loses at every offline update."""
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
    attack: Literal["none", "random", "action_diff", "min_q"] = "none"
    """What evaluation does to the observations that the policy sees; training does not know of it."""
    attack_scale: Float = 0.1
    """Largest perturbation of the attack, in [0, 0.3] in the paper; lanes that differ in it train alike."""
    attack_samples: Size = 50
    """Perturbations that action_diff and min_q choose from (20 with attack_steps)."""
    attack_steps: Count = 0
    """Gradient steps by which each of them is improved (10 in the paper's mixed-order attacks)."""


_cheetah = {"terms": ("policy", "q"), "n_samples": 10, "policy_smooth_eps": 0.001, "q_smooth_eps": 0.001}
_walker = {"policy_smooth_eps": 0.01, "policy_smooth_reg": 1.0, "q_smooth_eps": 0.01, "ood_reg": 0.1}
_far = {"policy_smooth_eps": 0.005, "policy_smooth_reg": 1.0, "q_smooth_eps": 0.005}
_steady = {"uncertainty": 0.1, "uncertainty_min": 0.1, "uncertainty_decay": 0.0}
PRESETS = {  # of the authors' configurations; the attack- ones are for robustness, by name
    "halfcheetah-random": {**_cheetah, "n_samples": 20},
    "halfcheetah-medium": _cheetah,
    "halfcheetah-medium-expert": _cheetah,
    "halfcheetah-medium-replay": _cheetah,
    "halfcheetah-expert": {**_cheetah, "policy_smooth_eps": 0.005, "q_smooth_eps": 0.005},
    "hopper-random": {"uncertainty": 1.0, "uncertainty_min": 0.5},
    "hopper-medium": {"uncertainty": 2.0, "uncertainty_min": 0.1},
    "hopper-medium-expert": {"uncertainty": 3.0, "uncertainty_min": 1.0},
    "hopper-medium-replay": {"uncertainty": 0.1, "uncertainty_min": 0.0},
    "hopper-expert": {"uncertainty": 4.0, "uncertainty_min": 1.0},
    "walker2d-random": {**_far, "uncertainty": 5.0, "uncertainty_min": 0.5, "uncertainty_decay": 1e-5},
    "walker2d-medium": {**_walker, "uncertainty": 1.0, "uncertainty_min": 0.1, "uncertainty_decay": 5e-7},
    "walker2d-medium-expert": {**_walker, **_steady},
    "walker2d-medium-replay": {**_walker, **_steady},
    "walker2d-expert": {**_far, "uncertainty": 1.0, "uncertainty_min": 0.5},
    **by_name({
        "attack-halfcheetah-medium": {
            "terms": ("policy", "q"), "policy_smooth_eps": 0.05, "policy_smooth_reg": 1.0, "q_smooth_eps": 0.03,
        },
        "attack-walker2d-medium": {
            "policy_smooth_eps": 0.07, "policy_smooth_reg": 0.5, "q_smooth_eps": 0.03, "ood_eps": 0.03,
            "uncertainty": 1.0, "uncertainty_min": 0.1,
        },
        "attack-hopper-medium": {"ood_eps": 0.02},
    }),
}  # fmt: skip

hidden_init = {
    "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # +-sqrt(1 / fan_in)
    "bias_init": nn.initializers.constant(0.1),
}
actor_init = {
    # +-sqrt(1 / outputs): of PyTorch's matrices, [outputs, inputs], the authors' code reads the first as the inputs
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
            x = nn.relu(nn.Dense(size, **actor_init)(x))
        x = nn.Dense(2 * self.action_dim, kernel_init=uniform(1e-3), bias_init=uniform(1e-3))(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, **hidden_init)(x))
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
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    target_v = target_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
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
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi; and smoothing."""
    action_key, smooth_key = jax.random.split(key)
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), action_key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    loss = (jnp.exp(agent.log_alpha) * log_prob - q).mean()
    info = {"entropy": -log_prob.mean(), "q_pi": q.mean()}
    if "policy" in args.terms:
        info["policy_smooth_loss"] = policy_smoothing(actor, agent, batch, smooth_key, args)
        loss = loss + args.policy_smooth_reg * info["policy_smooth_loss"]
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


def attacked(agent: Agent, obs, key, args: Args):
    """What the policy gets to see [B, O]: obs, or the worst of the perturbations tried, nothing among them.

    random: one of them; action_diff: that which changes the policy most, by the divergence above; min_q: that
    with the least Q(obs, pi(s^)), the mean of the critics at the true observation.
    """
    if args.attack == "none":
        return obs
    n = 1 if args.attack == "random" else args.attack_samples
    noise = args.attack_scale * jax.random.uniform(key, (n, *obs.shape), minval=-1.0, maxval=1.0)
    if args.attack == "random":
        return obs + noise[0]

    def harm(noise):
        out = agent.nets.actor.apply(agent.actor, obs + noise)
        if args.attack == "action_diff":
            return symmetric_kl(agent.nets.actor.apply(agent.actor, obs), out)
        return -q_values(agent.nets.critic, agent.critic, obs, jnp.tanh(out[0])).mean(0)

    def climb(noise, _):
        direction = jnp.sign(jax.grad(lambda x: harm(x).sum())(noise))
        noise = noise + 0.1 * args.attack_scale * direction
        return jnp.clip(noise, -args.attack_scale, args.attack_scale), None

    noise, _ = jax.lax.scan(climb, noise, length=args.attack_steps)
    noise = jnp.concatenate([noise, jnp.zeros_like(noise[:1])])
    return obs + jnp.take_along_axis(noise, harm(noise).argmax(0)[None, :, None], axis=0)[0]


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean, at the observations that the attack makes of obs."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, attacked(agent, obs, key, args))[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if "ood" in args.terms and args.n_critics < 2:
        raise InputError("--n-critics must be at least 2: one critic alone has no deviation by which Q is lowered.")
    data = load_dataset(args).require(discrete=False)
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
