"""CRR+: Critic-Regularised Regression with better implementation choices.

Kang, Ma, Wang, Yue and Yan, "Improving and Benchmarking Offline Reinforcement Learning Algorithms", 2023,
arXiv 2306.00972; CRR: Wang et al., "Critic Regularized Regression", NeurIPS 2020, arXiv 2006.15134. The policy
clones the data weighted by exp(A / beta) or 1[A > 0], with the advantage over the policy's own actions, of which many
are sampled. The plus is in the choices: layer normalisation, small last layers, and a critic that learns a lower
expectile of its target. `--preset crr` is CRR without them, and without rescaling of rewards; each has its own flag
too.

--weight-mode: exp is the clipped exponential; indicator 1 where the advantage is positive; softmax is over the batch,
times its size.

Choose it when you want weighted cloning with an advantage over the policy's own actions.

Parity: equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- CRR has a distributional critic, targets copied every 100 updates and a deep residual network; here both have the
  plain critics and Polyak averages of the authors' code of CRR+, so that only the choices differ;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline/crr_plus.py --dataset hopper-medium-replay --seeds 4 --updates 50000 --value-samples 10
    python algorithms/offline/crr_plus.py --dataset hopper-medium-replay --seeds 4 --critic-expectile 0.5 0.7 0.9
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
from shared.arguments import Expectile, Float, Fraction, OfflineArgs, Positive, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 1_200_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    temperature: Positive = 1.0
    """Temperature that advantages are divided by, in units of Q: small follows the advantage, large clones."""
    weight_mode: Literal["exp", "indicator", "softmax"] = "exp"
    """How advantages become weights: see above."""
    max_weight: Positive = 20.0
    """Clip of the exponential advantage weights."""
    baseline: Literal["mean", "max"] = "mean"
    """What the advantage is over: the mean or the largest Q of the policy's value_samples actions."""
    value_samples: Size = 50
    """Actions of the policy that the value of a state is estimated from."""
    critic_expectile: Expectile = 0.7
    """Weight of a Q that is too high, 1 - critic_expectile of one that is too low, in (0, 1); 0.5: squared error."""
    layer_norm: bool = True
    """Layer normalisation before every activation, of actor and critics."""
    last_layer_scale: float = 0.01
    """Variance of the last layers' first weights, times their inputs (1: not scaled down)."""
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
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    normalize_reward: bool = False
    """Rewards to [-1, 1] by their range in the data."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    **by_name({"crr": {"critic_expectile": 0.5, "layer_norm": False, "last_layer_scale": 1.0}}),
    "antmaze": {"reward_scale": 4.0, "reward_shift": -2.0, "eval_episodes": 100},
    **dict.fromkeys(("kitchen", "pen-", "door-", "hammer-", "relocate-"), {"normalize_reward": True}),
}


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    outputs: int
    layer_norm: bool
    last_layer_scale: float

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.Dense(size)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        last_init = nn.initializers.variance_scaling(self.last_layer_scale, "fan_in", "uniform")
        return nn.Dense(self.outputs, kernel_init=last_init)(x)


class Actor(nn.Module):
    """Tanh-Gaussian: one network for the mean, one for the log standard deviation, scaled and shifted."""

    mean: MLP
    log_std: MLP

    @nn.compact
    def __call__(self, obs):
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return jnp.clip(self.mean(obs), -9.0, 9.0), jnp.clip(scale * self.log_std(obs) + offset, -5.0, 2.0)


class Critic(nn.Module):
    mlp: MLP

    def __call__(self, obs, action):
        return self.mlp(jnp.concatenate([obs, action], axis=-1))[..., 0]


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


def q_values(net: Critic, critics, obs, action):
    """[E, B]; with actions [n, B, A], [E, n, B]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


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
    return jnp.arctanh(jnp.clip(action, -0.999, 0.999))


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """|expectile - 1(d < 0)| d^2, d = Q(s, a) - (r + gamma min_i target Q_i(s', a')), a' ~ target pi; summed.

    It is a Q that is too HIGH that weighs more: the critic is pessimistic (IQL's V is the reverse).
    """
    next_action = sample_tanh_gaussian(*agent.nets.actor.apply(agent.target_actor, batch.next_obs), key)[0]
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    d = q_values(agent.nets.critic, critic, batch.obs, batch.action) - y
    chex.assert_shape([y, d[0]], (args.batch_size,))
    weight = jnp.where(d > 0, args.critic_expectile, 1.0 - args.critic_expectile)
    return (weight * d**2).mean(1).sum(0), {"q": (d + y).mean(), "td_error": jnp.abs(d).mean()}


def advantage(agent: Agent, batch: Batch, key, args: Args):
    """min_i Q_i(s, a) - mean_j (or max_j) min_i Q_i(s, a_j), a_j ~ pi: [B]; online networks."""
    actions, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), key, args.value_samples)
    v = q_values(agent.nets.critic, agent.critic, batch.obs, actions).min(0)
    v = v.max(0) if args.baseline == "max" else v.mean(0)
    return q_values(agent.nets.critic, agent.critic, batch.obs, batch.action).min(0) - v


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-f log pi(a|s), f = min(exp(A / beta), max_weight) or 1[A > 0]."""
    adv = advantage(agent, batch, key, args)
    if args.weight_mode == "indicator":
        weight = (adv > 0).astype(jnp.float32)
    elif args.weight_mode == "softmax":
        weight = jax.nn.softmax(adv / args.temperature) * len(adv)
    else:
        weight = jnp.minimum(jnp.exp(adv / args.temperature), args.max_weight)
    log_prob = tanh_gaussian_log_prob(*agent.nets.actor.apply(actor, batch.obs), before_tanh(batch.action))
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    info = {"adv": adv.mean(), "weight": weight.mean(), "clipped": (weight >= args.max_weight).mean()}
    return -(jax.lax.stop_gradient(weight) * log_prob).mean(), info


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    mlp = partial(MLP, args.hidden_dims, layer_norm=args.layer_norm, last_layer_scale=args.last_layer_scale)
    nets = Networks(Actor(mlp(outputs=spec.action_dim), mlp(outputs=spec.action_dim)), Critic(mlp(outputs=1)))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of critics and actor, both losses of the old parameters; then all targets."""
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads_q = grad(agent.critic, agent, batch, critic_key, args)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads_pi = grad(agent.actor, agent, batch, actor_key, args)

    updates, critic_opt = optax.adam(args.critic_lr).update(grads_q, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads_pi, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, **info_q, **info_pi}


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
