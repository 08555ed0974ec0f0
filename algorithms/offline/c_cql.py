"""C-CQL: Contextual Conservative Q-Learning, CQL that also learns at perturbed states.

Jiang, Yao and Tan, "Contextual Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2301.01298. A model
of the inverse dynamics, I(s, s'), the action that leads from s to s', is fitted to the data first and then frozen. At
perturbed states s^ = s + noise it names the action that leads back to the data's own next state s'. There a second
conservative penalty pushes Q of uniform and policy actions down and Q of that action up. Without noise it is CQL's own
penalty; with a large weight it is aggressive state deviation correction (SDC).

Choose it when states or observations will be disturbed when the policy is used, and you would take CQL.

No code was released, and the paper's settings could not be read: what follows is a reconstruction from its abstract.

Deviations from the paper, as far as they are known:
- the form of the penalty at s^ is CQL's with importance weights (uniform and policy actions at s^), weighed by
  --context-weight relative to cql_alpha; the noise is Gaussian, in standard deviations of the data;
- the policy climbs Q at s^ as it does at s, by --actor-weight: Q at s^ reaches it in no other way than by the networks'
  smoothness. With 0 the policy's loss is CQL's;
- transitions that end in a terminal state have no penalty at s^: nothing is to be steered into them;
- the inverse model is deterministic and fitted without noise. With --noisy-inverse its inputs have the same noise: then
  it learns the data's action again, and the context is gone (an ablation);
- CQL's part has CORL's settings for MuJoCo, and none of its options (Lagrange, clips, best of several next actions,
  rewards scaled by the returns).

--obs-noise adds Gaussian noise to what the policy sees in evaluation; training does not know of it.

    python algorithms/offline/c_cql.py --dataset hopper-medium --seeds 4 --updates 50000 --n-actions 4
    python algorithms/offline/c_cql.py --dataset pendulum-mixed --context-weight 0 1 --obs-noise 0.2 --hidden-dims 64 64

The second one, with a weight of 0, is CQL, but that its policy learns at perturbed states too (--actor-weight 0).
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
from shared.arguments import Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    context_weight: Float = 1.0
    """Weight of the penalty at perturbed states, relative to cql_alpha; 0: none, CQL."""
    actor_weight: Float = 1.0
    """Weight of the policy's loss at perturbed states against that at the data's; 0: none, as in CQL."""
    state_noise: Float = 0.1
    """Standard deviation of the noise that makes s^ of s, in those of the data with --normalize-obs."""
    noisy_inverse: bool = False
    """Fit the inverse model to states with that noise and the data's actions: it no longer corrects anything."""
    inverse_updates: Size = 100_000
    """Gradient updates of the inverse model before the first of the learner."""
    obs_noise: Float = 0.0
    """Standard deviation of Gaussian noise on what the policy sees in evaluation, in those of the data with
    --normalize-obs; lanes that differ in it train alike."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    cql_temperature: Positive = 1.0
    """Temperature of the soft maximum."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    inverse_lr: Float = 3e-4
    """Adam's step size: inverse model."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    inverse_hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of the inverse model."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""


PRESETS = dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"cql_alpha": 10.0, "actor_lr": 3e-5})  # CQL's in CORL

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
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=critic_init)(x))
        return nn.Dense(1, kernel_init=critic_last_init)(x)[..., 0]


class InverseModel(nn.Module):
    """I(s, s'): the action [B, A] that leads from s to s'."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, next_obs):
        x = jnp.concatenate([obs, next_obs], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=actor_init)(x))
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=actor_init)(x))


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    inverse: InverseModel


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    inverse: Any
    """Frozen after its phase."""
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    inverse_opt: optax.OptState
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
    shape = (2, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(2, -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def perturbed(obs, args: Args, key):
    """s^ = s + noise [B, O]"""
    return obs + args.state_noise * jax.random.normal(key, obs.shape)


def inverse_loss(inverse, agent: Agent, batch: Batch, key, args: Args):
    """(I(s, s') - a)^2, mean over rows that do not terminate and over dimensions."""
    obs = perturbed(batch.obs, args, key) if args.noisy_inverse else batch.obs
    error = ((agent.nets.inverse.apply(inverse, obs, batch.next_obs) - batch.action) ** 2).mean(-1)
    chex.assert_shape(error, (args.batch_size,))
    return ((1.0 - batch.terminal) * error).sum() / jnp.maximum((1.0 - batch.terminal).sum(), 1.0)


def soft_maximum(critic, agent: Agent, obs, actions, log_density, args: Args):
    """log sum_a exp Q_i(s, a) of actions [n, B, A] that are weighted by their densities [n, B]: [E, B]."""
    q = q_values(agent.nets.critic, critic, obs, actions) - log_density
    chex.assert_shape(q, (2, *actions.shape[:2]))
    return args.cql_temperature * jax.nn.logsumexp(q / args.cql_temperature, axis=1)


def uniform_actions(batch: Batch, key, args: Args):
    """Uniform actions [n, B, A] and their log density [n, B], 0.5^dim(A)."""
    shape = (args.n_actions, *batch.action.shape)
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), jnp.full(shape[:2], shape[2] * jnp.log(0.5))


def conservative_gap(critic, agent: Agent, batch: Batch, q, key, args: Args):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch: [E] (CQL's eq. 4).

    Policy actions at s' are evaluated at s. None of the actions carries a gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    policies = [agent.nets.actor.apply(agent.actor, obs) for obs in (batch.next_obs, batch.obs)]
    drawn = [
        uniform_actions(batch, uniform_key, args),
        *(sample_tanh_gaussian(*x, k, args.n_actions) for x, k in zip(policies, (next_key, actor_key), strict=True)),
    ]
    actions, log_density = (jnp.concatenate(x) for x in zip(*drawn, strict=True))
    return (soft_maximum(critic, agent, batch.obs, actions, log_density, args) - q).mean(1)


def context_gap(critic, agent: Agent, batch: Batch, key, args: Args):
    """Soft maximum of Q_i(s^, .) minus Q_i(s^, I(s^, s')), mean over the batch, terminal rows as 0: [E]."""
    noise_key, uniform_key, actor_key = jax.random.split(key, 3)
    near = perturbed(batch.obs, args, noise_key)
    context = agent.nets.inverse.apply(agent.inverse, near, batch.next_obs)
    policy = agent.nets.actor.apply(agent.actor, near)
    drawn = uniform_actions(batch, uniform_key, args), sample_tanh_gaussian(*policy, actor_key, args.n_actions)
    actions, log_density = (jnp.concatenate(x) for x in zip(*drawn, strict=True))
    q = q_values(agent.nets.critic, critic, near, context)
    chex.assert_shape(q, (2, args.batch_size))
    gap = soft_maximum(critic, agent, near, actions, log_density, args) - q
    alive, moved = 1.0 - batch.terminal, jnp.abs(context - batch.action).mean(-1)
    return (alive * gap).mean(1), {"correction": (alive * moved).mean(), "q_context": q.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Bellman error plus both conservative penalties, each summed over the two critics."""
    target_key, gap_key, context_key = jax.random.split(key, 3)
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), target_key)
    next_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    bellman = ((q - y) ** 2).mean(1).sum(0)
    gap = conservative_gap(critic, agent, batch, q, gap_key, args)
    at_perturbed, info = context_gap(critic, agent, batch, context_key, args)
    penalty = args.cql_alpha * (gap.sum() + args.context_weight * at_perturbed.sum())
    info |= {"bellman_loss": bellman, "gap": gap.mean(), "context_gap": at_perturbed.mean(), "q": q.mean()}
    return bellman + penalty, info


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi; and the same at s^ by its weight."""
    data_key, noise_key, near_key = jax.random.split(key, 3)

    def sac_loss(obs, key):
        action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, obs), key)
        q = q_values(agent.nets.critic, agent.critic, obs, action).min(0)
        chex.assert_shape([q, log_prob], (args.batch_size,))
        return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}

    loss, info = sac_loss(batch.obs, data_key)
    at_perturbed, _ = sac_loss(perturbed(batch.obs, args, noise_key), near_key)
    return loss + args.actor_weight * at_perturbed, info


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        Critic(args.hidden_dims),
        InverseModel(args.inverse_hidden_dims, spec.action_dim),
    )
    critic_key, actor_key, inverse_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    actor, inverse = nets.actor.init(actor_key, obs), nets.inverse.init(inverse_key, obs, obs)
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        inverse=inverse,
        log_alpha=log_alpha,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        inverse_opt=optax.adam(args.inverse_lr).init(inverse),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
    )


def update_inverse(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the inverse model (before the agent's first)."""
    loss, grads = jax.value_and_grad(inverse_loss)(agent.inverse, agent, batch, key, args)
    updates, inverse_opt = optax.adam(args.inverse_lr).update(grads, agent.inverse_opt)
    inverse = optax.apply_updates(agent.inverse, updates)
    return agent.replace(inverse=inverse, inverse_opt=inverse_opt), {"inverse_loss": loss}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything but the inverse model; all losses are of the old parameters."""
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
    return agent.replace(**new), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean, at the observations with --obs-noise."""
    seen = obs + args.obs_noise * jax.random.normal(key, obs.shape)
    return jnp.tanh(agent.nets.actor.apply(agent.actor, seen)[0])


def fit_inverse(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the inverse model per key; mean metrics."""

    def step(agent, key):
        batch_key, noise_key = jax.random.split(key)
        return update_inverse(agent, transitions.sample(batch_key, args.batch_size), noise_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, before=args.inverse_updates) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit_inverse, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
