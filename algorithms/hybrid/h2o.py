"""H2O: real data and a wrong simulator together, the simulator trusted where its dynamics are the real ones.

Niu, Sharma, Qiu et al., "When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online Reinforcement
Learning", NeurIPS 2022, arXiv 2206.13464. The dataset is of the real environment, which is also the one evaluated in;
the agent interacts with a simulator of other dynamics only. Two discriminators tell real transitions from simulated
ones, and so estimate P_real / P_sim (s'|s, a). That ratio weighs the Bellman errors of simulated transitions, and
a CQL-like penalty (SAC is the base) pushes down Q of the simulated pairs whose dynamics gap u(s, a) is large, while
it pushes up Q of the data. The simulator here is the dataset's environment with --sim-gravity, --sim-friction times
its own, and --sim-noise on its actions.

The methods that the paper compares with: --sim-share 1 --backup-entropy is SAC in the simulator alone, --no-weights
--no-adaptive --penalty-weight 0 a plain mix of both, --no-adaptive by itself a penalty on all simulated pairs alike;
CQL on the data alone is offline/cql.py.

The first --learning-starts simulated steps are the first policy's; one update follows each step after them. The
discriminators see --batch-size real and as many simulated transitions.

Choose it when you have data of the real system and a simulator of it whose dynamics are wrong.

Parity: equal to the authors' code, update for update, but for the size of the noise on s' (results/parity.md).

Deviations from the paper:
- one update after each simulated step, not 1000 of these, then 1000 of those; all simulated steps are kept;
- the noise on s' in u is in units of the standard deviation of a batch of real observations (in the authors' code,
  of a buffer of which 10 of 11 rows are still zeros: about 0.3 of that; --next-obs-noise 0.3);
- u is at least 1e-8, not 1e-45, of which float32 has no logarithm; bounds that no ratio can reach are left out
  (1e-5 on the weights, 10 on u: the discriminators' logits are within +-2, so ratios are within exp(+-4));
- noise on actions is clipped to the action space; biases start at zero (PyTorch's default draws hidden ones).

    python algorithms/hybrid/h2o.py --dataset hopper-medium-replay --seeds 4 --sim-gravity 2
    python algorithms/hybrid/h2o.py --dataset pendulum-mixed --env-steps 20000 --sim-gravity 0.3 --penalty-weight 0 0.01
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, Fraction, HybridArgs, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, concatenate
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions


@hyperparameters
class Args(HybridArgs):
    sim_gravity: float = 2.0
    """The simulator's gravity, in units of the real environment's."""
    sim_friction: float = 1.0
    """The simulator's friction, likewise (0.3 in the paper; MuJoCo only)."""
    sim_noise: float = 0.0
    """Standard deviation of the noise on the simulator's actions, which are in [-1, 1] (1 in the paper)."""
    sim_share: StaticFraction = 0.5
    """Share of simulated transitions in a batch, in (0, 1]; 1: in the simulator, without real data."""
    weights: bool = True
    """Weigh simulated Bellman errors by P_real / P_sim, at most 1."""
    penalty_weight: Float = 0.01
    """beta: weight of the penalty on simulated pairs; 0: none."""
    adaptive: bool = True
    """The penalty looks for pairs of a large dynamics gap; without, all simulated pairs are alike to it."""
    gap_samples: Size = 10
    """Noisy next observations that u(s, a) is the mean of."""
    next_obs_noise: Float = 1.0
    """Their noise, in units of the real observations' standard deviation."""
    input_noise: Float = 0.1
    """Standard deviation of the noise on all that the discriminators are trained on."""
    backup_entropy: bool = False
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    discriminator_lr: Float = 3e-4
    """Adam's step size: discriminators."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""


PRESETS: dict[str, dict[str, Any]] = {}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
last_init = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")  # Xavier's with gain 1e-2


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
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=last_init)(x)[..., 0]


class Discriminator(nn.Module):
    """Logits of real and simulated [..., 2], within +-2; of (s, a) or of (s, a, s')."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return 2.0 * jnp.tanh(nn.Dense(2, kernel_init=dense_init)(x))


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    discriminator: Discriminator


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    d_sa: Any
    """Discriminator of pairs (s, a)."""
    d_sas: Any
    """What s' adds to its logits."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    discriminator_opt: optax.OptState


class Batches(NamedTuple):
    rows: Batch
    """[B] for policy and critics: real ones, then simulated ones."""
    real: Batch | None
    """[B] for the discriminators; None without real data."""
    sim: Batch | None
    """[B] likewise."""


def real_rows(args: Args) -> int:
    """Of the batch_size rows."""
    return round(args.batch_size * (1.0 - args.sim_share))


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
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def discriminator_loss(discriminators, agent: Agent, batches: Batches, key, args: Args):
    """Cross-entropies of p(real|s, a) = softmax D_sa and p(real|s, a, s') = softmax(D_sa + D_sas), on noisy inputs."""
    d_sa, d_sas = discriminators

    def losses(batch: Batch, label: int, key):
        inputs = (batch.obs, batch.action, batch.next_obs)
        keys = jax.random.split(key, 3)
        obs, action, next_obs = (
            x + args.input_noise * jax.random.normal(k, x.shape) for x, k in zip(inputs, keys, strict=True)
        )
        logits_sa = agent.nets.discriminator.apply(d_sa, obs, action)
        logits_sas = agent.nets.discriminator.apply(d_sas, obs, action, next_obs)
        chex.assert_shape([logits_sa, logits_sas], (args.batch_size, 2))
        known = jnp.ones(args.batch_size) if batch.successor is None else batch.successor
        log_p = jax.nn.log_softmax(logits_sa), jax.nn.log_softmax(logits_sa + logits_sas)
        loss = -sum((known * p[:, label]).sum() for p in log_p) / jnp.maximum(known.sum(), 1.0)
        return loss, (logits_sas[:, 1] - logits_sas[:, 0]).mean()

    real_key, sim_key = jax.random.split(key)
    real, gap_real = losses(batches.real, 0, real_key)
    sim, gap_sim = losses(batches.sim, 1, sim_key)
    return real + sim, {"gap_real": gap_real, "gap_sim": gap_sim}


def log_ratio(agent: Agent, obs, action, next_obs):
    """log P_real / P_sim (s'|s, a) [...]: log of p(real|s, a, s') p(sim|s, a) / (p(sim|s, a, s') p(real|s, a)).

    The logits of D_sa cancel, and those of D_sas are left.
    """
    logits = agent.nets.discriminator.apply(agent.d_sas, obs, action, next_obs)
    return logits[..., 0] - logits[..., 1]


def dynamics_gap(agent: Agent, sim: Batch, std, key, args: Args):
    """u(s, a) ~ KL(P_sim || P_real): the mean of log P_sim / P_real over noisy next observations [B], at least 1e-8."""
    noise = args.next_obs_noise * std * jax.random.normal(key, (args.gap_samples, *sim.next_obs.shape))
    obs, action = (jnp.broadcast_to(x, (args.gap_samples, *x.shape)) for x in (sim.obs, sim.action))
    return jnp.maximum(-log_ratio(agent, obs, action, sim.next_obs + noise).mean(0), 1e-8)


def critic_loss(critic, agent: Agent, batch: Batch, weight, omega, key, args: Args):
    """Bellman errors, real ones plus weighted simulated ones, plus the penalty; each summed over the two critics.

    beta (log sum_sim omega(s, a) exp Q_i(s, a) - mean_real Q_i(s, a)); `weight`, `omega` [B - real_rows].
    """
    n = real_rows(args)
    next_action, next_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    next_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    if args.backup_entropy:
        next_q = next_q - jnp.exp(agent.log_alpha) * next_log_prob
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    chex.assert_shape([weight, omega], (args.batch_size - n,))
    error = (q - y) ** 2
    loss_sim = (weight * error[:, n:]).mean(1).sum()
    if n == 0:
        return loss_sim, {"q_sim": q.mean()}
    loss_real = error[:, :n].mean(1).sum()
    soft_max = jax.nn.logsumexp(q[:, n:] + jnp.log(omega), axis=1)
    penalty = jnp.clip(soft_max - q[:, :n].mean(1), -1000.0, 1000.0).sum()
    info = {"loss_real": loss_real, "loss_sim": loss_sim, "penalty": penalty, "q": q[:, :n].mean()}
    return loss_real + loss_sim + args.penalty_weight * penalty, {**info, "q_sim": q[:, n:].mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi, in real and simulated states."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    chex.assert_shape([q, log_prob], (args.batch_size,))
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    d = args.hidden_dims
    nets = Networks(Actor(d, spec.action_dim), Critic(d), Discriminator(d))
    actor_key, critic_key, sa_key, sas_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    d_sa = nets.discriminator.init(sa_key, obs, action)
    d_sas = nets.discriminator.init(sas_key, obs, action, obs)
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        d_sa=d_sa,
        d_sas=d_sas,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        discriminator_opt=optax.adam(args.discriminator_lr).init((d_sa, d_sas)),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batches:
    """real_rows of the data and the rest of the simulator's; batch_size of each for the discriminators."""
    keys, n = jax.random.split(key, 4), real_rows(args)
    sim = replay.sample(keys[0], args.batch_size - n)
    if n == 0:
        return Batches(sim, None, None)
    rows = concatenate(data.sample(keys[1], n), sim)
    return Batches(rows, data.sample(keys[2], args.batch_size), replay.sample(keys[3], args.batch_size))


def update(agent: Agent, batches: Batches, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One gradient step of the discriminators, then of all else, whose losses are of the old parameters."""
    discriminator_key, gap_key, critic_key, actor_key = jax.random.split(key, 4)
    new, info, n = {}, {}, real_rows(args)
    batch = batches.rows
    sim = jax.tree.map(lambda x: x[n:], batch)
    weight, u = jnp.ones(args.batch_size - n), jnp.ones(args.batch_size - n)
    if n > 0:
        grad, d = jax.value_and_grad(discriminator_loss, has_aux=True), (agent.d_sa, agent.d_sas)
        (loss_d, info), grads = grad(d, agent, batches, discriminator_key, args)
        updates, discriminator_opt = optax.adam(args.discriminator_lr).update(grads, agent.discriminator_opt)
        d_sa, d_sas = optax.apply_updates(d, updates)
        agent = agent.replace(d_sa=d_sa, d_sas=d_sas, discriminator_opt=discriminator_opt)
        if args.weights:
            weight = jnp.minimum(jnp.exp(log_ratio(agent, sim.obs, sim.action, sim.next_obs)), 1.0)
        if args.adaptive:
            u = dynamics_gap(agent, sim, batches.real.obs.std(0), gap_key, args)
        info |= {"discriminator_loss": loss_d, "weight": weight.mean(), "u": u.mean()}

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, new["actor_opt"] = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    new["actor"] = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, new["alpha_opt"] = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    new["log_alpha"] = optax.apply_updates(agent.log_alpha, updates)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, weight, u / u.sum(), critic_key, args)
    updates, new["critic_opt"] = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    new["critic"] = optax.apply_updates(agent.critic, updates)
    new["target_critic"] = optax.incremental_update(new["critic"], agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(new["log_alpha"])}
    return agent.replace(**new), {**losses, **info, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A]."""
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, obs), key)[0]


def main(args: Args) -> None:
    if not (0.0 < args.sim_share <= 1.0 and real_rows(args) < args.batch_size):
        raise InputError(f"--sim-share must lie in (0, 1] and give a row of {args.batch_size}, not {args.sim_share}.")
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
    change = {"gravity": args.sim_gravity, "friction": args.sim_friction, "noise": args.sim_noise}
    simulator = data.task.in_env("ChangedPhysics-v0", env=data.task.describe()["env"], **change)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions(*FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, transitions, explore, sample, update,
            task=simulator, warmup=args.learning_starts, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
