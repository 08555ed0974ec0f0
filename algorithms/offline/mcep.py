"""MCEP: a mildly constrained evaluation policy beside the policy that values are learned with.

Xu, Jiang, Wang, Song and Bian, "Mildly Constrained Evaluation Policy for Offline Reinforcement Learning", 2023,
arXiv 2306.03680. The constraint to the data that keeps the values from diverging is often too strict to act well. So
a second policy, the evaluation policy, is extracted from the same critics under a milder constraint and acts at test
time only; the target policy, and with it the values, are those of the base algorithm, TD3+BC or AWAC (--base).
--act-with target evaluates the target policy instead: the same seeds train the same networks, so that two runs show
both (or one: python -m shared.evaluation RUN_DIR --set act_with=target). With --base td3_bc the target policy is that
of td3_bc.py to the last bit (there rewards are raw: --no-normalize-return). The control, a mild constraint in the
values too, is --alpha 10 --act-with target.

Arguments of --base td3_bc alone: alpha, evaluation_alpha, actor_lr, policy_noise, noise_clip, policy_delay,
normalize_obs. Of --base awac alone: temperature, evaluation_temperature, max_weight, max_q, awac_actor_lr; there
every update is one of the actors, too.

Choose it when the constraint that keeps the values stable leaves the policy too close to poor data.

Parity: equal to the authors' code, update for update, with both bases, but for a factor that Adam does not show
(results/parity.md).

Deviations from the paper:
- layers start as in td3_bc.py and awac.py (the authors' code: orthogonal);
- the authors' code can weigh the evaluation policy's cloning by a running mean of the target policy's, and does so on
  Adroit (bc_norm): left out;
- the critic's loss is the sum over the two critics (in the authors' code the mean: Adam's steps are the same).

    python algorithms/offline/mcep.py --dataset hopper-medium --seeds 4 --updates 50000
    python algorithms/offline/mcep.py --dataset hopper-medium --seeds 4 --base awac --evaluation-temperature 0.3 0.6 1
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
from shared.arguments import Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    base: Literal["td3_bc", "awac"] = "td3_bc"
    """Base algorithm, by whose losses critics and actor learn."""
    act_with: Literal["evaluation", "target"] = "evaluation"
    """Policy that is evaluated; training is the same."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    evaluation_alpha: Float = 10.0
    """With --base td3_bc: alpha of the evaluation policy, over --alpha."""
    temperature: Positive = 1.0
    """Temperature that advantages are divided by, in units of Q: small follows the advantage, large clones."""
    evaluation_temperature: Float = 0.6
    """With --base awac: weight of log pi(a|s) against Q in the evaluation policy's loss, under --temperature."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    awac_actor_lr: Float = 3e-5
    """Adam's step size with --base awac: both actors."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    max_weight: Positive = 1000.0
    """Clip of the exponential advantage weights."""
    max_q: Float = 10_000.0
    """With --base awac: clip of Q in the evaluation policy's loss."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""


_adroit = {"alpha": 10.0, "evaluation_alpha": 100.0, "max_weight": 100.0, "max_q": 100.0}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"normalize_return": True}),
    "antmaze": {"reward_scale": 100.0},
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), _adroit),
}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    """The action; or, if `gaussian`, mean and log standard deviation of a tanh-Gaussian."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    gaussian: bool

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        if not self.gaussian:
            return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=dense_init)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -20.0, 2.0)


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
    actor: Any
    """The target policy, pi~: the only one that the values know of."""
    evaluation: Any
    """The evaluation policy, pi_e: acts at test time."""
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    """Polyak average of pi~ (td3_bc)."""
    target_critic: Any
    actor_opt: optax.OptState
    evaluation_opt: optax.OptState
    critic_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
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
    return jnp.arctanh(jnp.clip(action, -1.0 + 1e-5, 1.0 - 1e-5))


def next_action_of(agent: Agent, batch: Batch, key, args: Args):
    """a' of the target policy [B, A]: td3_bc, the target actor's with clipped noise; awac, a sample."""
    if args.base == "awac":
        return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)[0]
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    return jnp.clip(next_action, -1.0, 1.0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q(s, a))^2, a' ~ pi~, never pi_e; summed over the two critics."""
    next_action = next_action_of(agent, batch, key, args)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def td3_bc_actor_loss(actor, agent: Agent, batch: Batch, alpha):
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1(s, pi(s))|: each policy has its own."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def awac_actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-w log pi~(a|s), w = exp((min_i Q_i(s, a) - min_i Q_i(s, a~pi~)) / lambda), clipped."""
    sampled = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), key)[0]
    v = q_values(agent.nets.critic, agent.critic, batch.obs, sampled).min(0)
    adv = q_values(agent.nets.critic, agent.critic, batch.obs, batch.action).min(0) - v
    weight = jnp.minimum(jnp.exp(adv / args.temperature), args.max_weight)
    log_prob = tanh_gaussian_log_prob(*agent.nets.actor.apply(actor, batch.obs), before_tanh(batch.action))
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    info = {"adv": adv.mean(), "weight": weight.mean(), "clipped": (weight >= args.max_weight).mean()}
    return -(jax.lax.stop_gradient(weight) * log_prob).mean(), {"log_prob": log_prob.mean(), "q_pi": v.mean(), **info}


def awac_evaluation_loss(evaluation, agent: Agent, batch: Batch, key, args: Args):
    """-mean_i Q_i(s, a_e) - lambda_e log pi_e(a|s), a_e ~ pi_e reparameterised, Q clipped from above."""
    mean, log_std = agent.nets.actor.apply(evaluation, batch.obs)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, sample_tanh_gaussian(mean, log_std, key)[0]).mean(0)
    log_prob = tanh_gaussian_log_prob(mean, log_std, before_tanh(batch.action))
    chex.assert_shape([q, log_prob], (args.batch_size,))
    loss = -jnp.minimum(q, args.max_q) - args.evaluation_temperature * log_prob
    return loss.mean(), {"log_prob": log_prob.mean(), "q_pi": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """The base algorithm's."""
    if args.base == "awac":
        return awac_actor_loss(actor, agent, batch, key, args)
    return td3_bc_actor_loss(actor, agent, batch, args.alpha)


def evaluation_loss(evaluation, agent: Agent, batch: Batch, key, args: Args):
    """The milder one; nothing else depends on its outcome."""
    if args.base == "awac":
        return awac_evaluation_loss(evaluation, agent, batch, key, args)
    return td3_bc_actor_loss(evaluation, agent, batch, args.evaluation_alpha)


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(args.awac_actor_lr if args.base == "awac" else args.actor_lr)


def delay(args: Args) -> int:
    """Critic updates per update of the actors."""
    return 1 if args.base == "awac" else args.policy_delay


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor_net = Actor(args.hidden_dims, spec.action_dim, gaussian=args.base == "awac")
    nets = Networks(actor_net, Critic(args.hidden_dims))
    actor_key, critic_key, evaluation_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor, evaluation = nets.actor.init(actor_key, obs), nets.actor.init(evaluation_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        evaluation=evaluation,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt=actor_optimizer(args).init(actor),
        evaluation_opt=actor_optimizer(args).init(evaluation),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actors(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of both policies, and a Polyak step of the targets."""
    target_key, evaluation_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, batch, target_key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)

    grad = jax.value_and_grad(evaluation_loss, has_aux=True)
    (loss_e, info_e), grads_e = grad(agent.evaluation, agent, batch, evaluation_key, args)
    updates_e, evaluation_opt = actor_optimizer(args).update(grads_e, agent.evaluation_opt)

    agent = agent.replace(
        actor=optax.apply_updates(agent.actor, updates),
        evaluation=optax.apply_updates(agent.evaluation, updates_e),
        actor_opt=actor_opt,
        evaluation_opt=evaluation_opt,
    )
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    info_e = {f"evaluation_{name}": value for name, value in {"loss": loss_e, **info_e}.items()}
    return agent, {"actor_loss": loss, **info, **info_e}


def update(agent: Agent, batches: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """`delay` critic steps, on batches [delay, B, ...], then one step of both actors on the last one."""
    critic_keys, actor_keys = keys
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, critic_keys))
    agent, actor_info = update_actors(agent, jax.tree.map(lambda x: x[-1], batches), actor_keys[-1], args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic, of the policy that --act-with names."""
    output = agent.nets.actor.apply(agent.evaluation if args.act_with == "evaluation" else agent.actor, obs)
    return jnp.tanh(output[0]) if args.base == "awac" else output


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, critic_key, actor_key = jax.random.split(key, 3)
        return transitions.sample(batch_key, args.batch_size), (critic_key, actor_key)

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, delay(args)))
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(args.reward_scale * scale)
    data = data.normalize_obs() if args.normalize_obs and args.base == "td3_bc" else data
    with Run(__file__, args, data.task, act, unit=delay(args)) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
