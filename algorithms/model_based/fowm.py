"""FOWM: finetuning offline world models. TD-MPC with IQL's losses, and a planner that shuns what its critics dispute.

Feng, Hansen, Xiong, Rajagopalan and Wang, "Finetuning Offline World Models in the Real World", CoRL 2023, arXiv
2310.16029; the world model is TD-MPC's (Hansen, Wang and Su, ICML 2022, arXiv 2203.04955). A latent model is unrolled
from z_0 = enc(s_0) along the actions of a sequence of H steps, and learns four things together: the latent that a
target encoder gives the next observation (consistency), the reward, Q by r + gamma V(enc(s')), and V by an expectile of
Q over the data's actions, as in IQL, so that no loss asks for an action that is not in the data. The policy is cloned
with advantages as weights. A planner acts (MPPI): of --plan-samples sequences of actions, and a few of the policy's, it
keeps those with the highest

    sum_t gamma^t (R - c u)(z_t, a_t) + gamma^H (min_2 Q - c u)(z_H, pi(z_H)),    u = std_i Q_i,

where u, how much the critics disagree, keeps the planner where they were trained: offline, and online while what is
found out moves it on. Online half of each batch is the dataset's (balanced sampling), and losses stay as they are.
--uncertainty-cost 0 is the planner without it, --no-planning acts with the policy alone (IQL on latents).

Choose it when data is of few kinds, an environment follows, and the time to plan each action is there.

Deviations from the paper:
- observations are vectors; the encoders of pictures, and of both, are not here;
- sequences are drawn uniformly (there: by priority, TD-MPC's prioritised replay);
- every plan begins anew, with mean 0 (there: with the former plan moved on by a step), since what explores here
  remembers nothing;
- one update per environment step, after the first --learning-starts (there: as many as an episode had steps, at its
  end);
- targets move at every update, by half as much as the authors' code moves them at every second;
- actions of the data are not kept off the bounds by 1e-5;
- the policy does not learn from rows behind an episode's end, which the authors' code leaves in its loss;
- where the paper is silent the authors' code is followed: orthogonal weights, zeros in the last layers of reward and Q,
  gradients divided by H before they are clipped, V's own prediction at the true next encoding in Q's target, two random
  critics in every minimum.

    python algorithms/model_based/fowm.py --dataset hopper-medium --seeds 4
    python algorithms/model_based/fowm.py --dataset point-umaze-demos --preset small --seeds 2
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
from shared.arguments import (
    Count,
    Expectile,
    FinetuneArgs,
    Float,
    Fraction,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.sequences import Sequences, Window, replay_windows, sequences
from shared.task import Spec
from shared.transitions import FIELDS


@hyperparameters
class Args(FinetuneArgs):
    uncertainty_cost: Float = 1.0
    """c: what the value of a plan loses per unit of the critics' standard deviation; 0: nothing."""
    planning: bool = True
    """Act by planning; else with the policy alone."""
    steps: Size = 5
    """H: steps of a plan, and of the sequences that the model is unrolled along."""
    plan_samples: Size = 512
    """Sequences of actions that are drawn in each iteration of a plan."""
    policy_plans: Size = 51
    """Sequences that the policy takes in the model, which are among the candidates of every iteration."""
    plan_elites: Size = 50
    """Sequences of the highest value, which the next iteration's mean and deviation are taken of."""
    plan_iterations: Size = 1
    """Iterations of a plan."""
    plan_temperature: Float = 0.5
    """Elites are weighed by exp(temperature * value): 0 weighs them alike."""
    plan_momentum: Fraction = 0.1
    """Share of the old mean in the new one, in [0, 1]."""
    min_std: Float = 0.05
    """Least standard deviation of a plan's actions, and of the policy's where there is one."""
    max_std: Float = 2.0
    """Largest standard deviation of a plan's actions, with which it begins."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    rho: Fraction = 0.5
    """Weight of a step of a sequence against the one before it, in [0, 1]."""
    latent_weight: Float = 20.0
    """Weight of the consistency of latents."""
    model_reward_weight: Float = 0.5
    """Weight of the reward's squared error in the model's loss."""
    td_weight: Float = 0.1
    """Weight of the losses of Q and V in the model's loss."""
    online_share: StaticFraction = 0.5
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    model_lr: Float = 3e-4
    """Adam's step size: model of the dynamics."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    max_grad_norm: Float = 10.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    n_critics: Size = 5
    """Critics in the ensemble."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    latent_dim: Size = 50
    """Size of the representations."""
    encoder_hidden_dims: tuple[int, ...] = (256,)
    """Hidden layers of the encoder."""
    hidden_dims: tuple[int, ...] = (512, 512)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_d4rl = {"offline_updates": 500_000, "env_steps": 500_000, "buffer_size": 200_000}
_maze = {"expectile": 0.9, "beta": 10.0, "uncertainty_cost": 3.0, "reward_shift": -1.0, **_d4rl}
PRESETS = {
    "hopper": {"uncertainty_cost": 20.0, "normalize_return": True, **_d4rl},
    "antmaze": _maze,
    "pointmaze": _maze,  # ours, after AntMaze: the paper has no PointMaze
    "xarm": {
        "expectile": 0.9, "discount": 0.9, "plan_iterations": 6, "offline_updates": 25_000, "env_steps": 25_000,
        "buffer_size": 10_000,
    },
    "small": {  # ours: learns on two cores
        "steps": 3, "plan_samples": 32, "policy_plans": 8, "plan_elites": 6, "plan_iterations": 2,
        "plan_temperature": 20.0, "beta": 10.0, "batch_size": 64, "latent_dim": 16, "encoder_hidden_dims": (64,),
        "hidden_dims": (64, 64), "model_lr": 1e-3, "actor_lr": 1e-3, "tau": 0.01, "discount": 0.98,
        "learning_starts": 200, "offline_updates": 5_000, "env_steps": 5_000, "offline_eval_every": 5_000,
        "eval_every": 1_000, "eval_episodes": 5,
    },
}  # fmt: skip

dense_init = nn.initializers.orthogonal()
LEARNED = ("encoder", "dynamics", "reward", "critic", "value")
"""Networks that the model's loss trains together."""


def layer_norm(name: str | None = None):
    return nn.LayerNorm(epsilon=1e-5, name=name)


class LatentEncoder(nn.Module):
    """enc(s): a latent whose entries lie between 0 and 1."""

    hidden_dims: tuple[int, ...]
    latent_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.elu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.sigmoid(layer_norm()(nn.Dense(self.latent_dim, kernel_init=dense_init)(x)))


class MLP(nn.Module):
    """Of a latent, or of one with an action: `outputs` numbers; squashed, as latents are, if `latent`."""

    hidden_dims: tuple[int, ...]
    outputs: int
    latent: bool = False
    last_init: Any = dense_init

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = jax.nn.mish(layer_norm()(nn.Dense(size, kernel_init=dense_init)(x)))
        x = nn.Dense(self.outputs, kernel_init=self.last_init)(x)
        return nn.sigmoid(layer_norm("norm")(x)) if self.latent else x


class Critic(nn.Module):
    """Q(z, a), or V(z) without an action."""

    hidden_dims: tuple[int, ...]
    last_init: Any = dense_init

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for i, size in enumerate(self.hidden_dims):
            x = nn.Dense(size, kernel_init=dense_init)(x)
            x = nn.elu(x) if i else jnp.tanh(layer_norm()(x))
        return nn.Dense(1, kernel_init=self.last_init)(x)[..., 0]


class Networks(NamedTuple):
    encoder: LatentEncoder
    dynamics: MLP
    reward: MLP
    critic: Critic
    value: Critic
    actor: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    encoder: Any
    dynamics: Any
    reward: Any
    critic: Any
    """The critics, stacked on a leading axis [E, ...]."""
    value: Any
    actor: Any
    target_encoder: Any
    target_critic: Any
    model_opt: optax.OptState
    actor_opt: optax.OptState


def q_values(net: Critic, critics, z, action):
    """[E, ...]"""
    return jax.vmap(net.apply, (0, None, None))(critics, z, action)


def least_of_two(q, key):
    """[...]: the smaller one of two critics of q [E, ...], drawn for all of it."""
    return q[jax.random.permutation(key, len(q))[:2]].min(0)


def uncertainty(q):
    """u = std_i Q_i [...] of q [E, ...]."""
    return q.std(0, ddof=1)


# --------------------------------------------------------------------------------------- what is learned


def step_weights(batch: Window, args: Args):
    """[B, H]: rho^t, 0 behind the end of the episode, or of the task."""
    goes_on = jnp.cumprod(1.0 - batch.terminal, axis=1)
    mask = batch.mask * jnp.concatenate([jnp.ones_like(goes_on[:, :1]), goes_on[:, :-1]], axis=1)
    return mask * args.rho ** jnp.arange(args.steps)


def unroll(model, nets: Networks, obs, action):
    """Latents z_0 .. z_H [B, H + 1, Z] of z_0 = enc(obs [B, O]), z_{t+1} = d(z_t, a_t), along actions [B, H, A]."""

    def step(z, action):
        z = nets.dynamics.apply(model["dynamics"], z, action)
        return z, z

    first = nets.encoder.apply(model["encoder"], obs)
    _, others = jax.lax.scan(step, first, jnp.moveaxis(action, 1, 0))
    return jnp.concatenate([first[:, None], jnp.moveaxis(others, 0, 1)], axis=1)


def latent_loss(z, target_z):
    """Consistency [B, H]: mean over dimensions of (z_{t+1} - target enc(s_{t+1}))^2."""
    return ((z[:, 1:] - target_z) ** 2).mean(-1)


def critic_loss(q, batch: Window, next_v, args: Args):
    """[B, H]: sum_i (Q_i(z_t, a_t) - y)^2, y = r + gamma V(enc(s_{t+1})); q [E, B, H]."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    return ((q - y) ** 2).sum(0)


def value_loss(v, target_q, args: Args):
    """[B, H]: |expectile - 1(u < 0)| u^2, u = min_2 target Q(z_t, a_t) - V(z_t)."""
    u = target_q - v
    return jnp.where(u < 0, 1.0 - args.expectile, args.expectile) * u**2


def model_loss(model, agent: Agent, batch: Window, key, args: Args):
    """Sum over t of rho^t (20 consistency + 0.5 reward + 0.1 Q + 0.1 V), over H; mean over sequences.

    Targets carry no gradient: the encodings of next observations, the target critics (at latents held fixed), V(s').
    """
    nets, pair_key = agent.nets, key
    z = unroll(model, nets, batch.obs[:, 0], batch.action)
    at = z[:, :-1]
    target_z = nets.encoder.apply(agent.target_encoder, batch.next_obs)
    next_v = nets.value.apply(agent.value, nets.encoder.apply(agent.encoder, batch.next_obs))
    fixed = jax.lax.stop_gradient(at)
    target_q = least_of_two(q_values(nets.critic, agent.target_critic, fixed, batch.action), pair_key)
    reward = nets.reward.apply(model["reward"], at, batch.action)[..., 0]
    q = q_values(nets.critic, model["critic"], at, batch.action)
    v = nets.value.apply(model["value"], at)
    terms = {
        "latent_loss": (args.latent_weight, batch.successor * latent_loss(z, target_z)),
        "reward_loss": (args.model_reward_weight, (reward - batch.reward) ** 2),
        "critic_loss": (args.td_weight, critic_loss(q, batch, next_v, args)),
        "value_loss": (args.td_weight, value_loss(v, target_q, args)),
    }
    weights = step_weights(batch, args)
    means = {name: (weights * term).sum(1).mean() for name, (_, term) in terms.items()}
    chex.assert_equal_shape([weights, *(term for _, term in terms.values())])
    total = sum(terms[name][0] * mean for name, mean in means.items()) / args.steps
    return total, ({**means, "q": q.mean(), "v": v.mean(), "q_std": uncertainty(q).mean()}, fixed)


def actor_loss(actor, agent: Agent, z, batch: Window, key, args: Args):
    """-exp(beta (min_2 target Q(z, a) - V(z))) log N(a; pi(z), 1), weights clipped; rho^t, mean over steps."""
    nets = agent.nets
    adv = least_of_two(q_values(nets.critic, agent.target_critic, z, batch.action), key)
    adv = adv - nets.value.apply(agent.value, z)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean = jnp.tanh(nets.actor.apply(actor, z))
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, mean, 1.0).sum(-1)
    chex.assert_equal_shape([weight, log_prob, batch.reward])
    return -(step_weights(batch, args) * weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


# -------------------------------------------------------------------------------------- how it is acted


def policy_action(agent: Agent, z, key, args: Args):
    """The policy's actions [..., A] at latents [..., Z], with its noise, of at most 0.3."""
    mean = jnp.tanh(agent.nets.actor.apply(agent.actor, z))
    noise = jnp.clip(args.min_std * jax.random.normal(key, mean.shape), -0.3, 0.3)
    return jnp.clip(mean + noise, -1.0, 1.0)


def plans_of_policy(agent: Agent, z, key, args: Args):
    """What the policy does in the model from z [B, Z]: [H, B, --policy-plans, A]."""

    def step(z, key):
        action = policy_action(agent, z, key, args)
        return agent.nets.dynamics.apply(agent.dynamics, z, action), action

    z = jnp.repeat(z[:, None], args.policy_plans, axis=1)
    return jax.lax.scan(step, z, jax.random.split(key, args.steps))[1]


def plan_values(agent: Agent, z, actions, key, args: Args):
    """sum_t gamma^t (R - c u)(z_t, a_t) + gamma^H (min_2 Q - c u)(z_H, pi(z_H)) [B, N].

    Of actions [H, B, N, A] from z [B, Z].
    """
    nets = agent.nets

    def step(carry, action):
        z, total, weight = carry
        u = uncertainty(q_values(nets.critic, agent.critic, z, action))
        reward = nets.reward.apply(agent.reward, z, action)[..., 0]
        total = total + weight * (reward - args.uncertainty_cost * u)
        return (nets.dynamics.apply(agent.dynamics, z, action), total, weight * args.discount), None

    z = jnp.repeat(z[:, None], actions.shape[2], axis=1)
    (z, total, weight), _ = jax.lax.scan(step, (z, jnp.zeros(z.shape[:2]), jnp.float32(1.0)), actions)
    action_key, pair_key = jax.random.split(key)
    q = q_values(nets.critic, agent.critic, z, policy_action(agent, z, action_key, args))
    return total + weight * (least_of_two(q, pair_key) - args.uncertainty_cost * uncertainty(q))


def refit(values, actions, mean, args: Args):
    """MPPI: the elites' weights [E], their actions [H, E, A], and the next iteration's mean and std [H, A].

    Of one observation's values [N], actions [H, N, A] and mean [H, A]. Weights are exp(temperature * value), summing
    to 1; of them mean and deviation of the elites' actions.
    """
    best, at = jax.lax.top_k(values, args.plan_elites)
    weights, elites = jax.nn.softmax(args.plan_temperature * best), actions[:, at]
    new = jnp.einsum("e,hea->ha", weights, elites)
    std = jnp.sqrt(jnp.einsum("e,hea->ha", weights, (elites - new[:, None]) ** 2))
    mean = args.plan_momentum * mean + (1.0 - args.plan_momentum) * new
    return weights, elites, mean, jnp.clip(std, args.min_std, args.max_std)


def plan(agent: Agent, obs, key, args: Args):
    """First actions of plans from obs [B, O], each of an elite drawn by its weight, and their deviations: [B, A]."""
    policy_key, draw_key, key = jax.random.split(key, 3)
    z = agent.nets.encoder.apply(agent.encoder, obs)
    of_policy = plans_of_policy(agent, z, policy_key, args)
    mean = jnp.zeros((args.steps, len(z), of_policy.shape[-1]))
    refit_all = jax.vmap(refit, in_axes=(0, 1, 1, None), out_axes=(0, 1, 1, 1))

    def iteration(carry, key):
        mean, std = carry
        noise_key, value_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (args.steps, len(z), args.plan_samples, mean.shape[-1]))
        actions = jnp.clip(mean[:, :, None] + std[:, :, None] * noise, -1.0, 1.0)
        actions = jnp.concatenate([actions, of_policy], axis=2)
        weights, elites, mean, std = refit_all(plan_values(agent, z, actions, value_key, args), actions, mean, args)
        return (mean, std), (weights, elites[0])

    start = (mean, jnp.full_like(mean, 1.0) * args.max_std)
    (_, std), (weights, first) = jax.lax.scan(iteration, start, jax.random.split(key, args.plan_iterations))
    chosen = jax.random.categorical(draw_key, jnp.log(weights[-1]))
    return first[-1, jnp.arange(len(z)), chosen], std[0]


# --------------------------------------------------------------------------------------------- the agent


def optimizer(lr, args: Args) -> optax.GradientTransformation:
    """Adam on gradients of at most `max_grad_norm`."""

    def clip(grads, state, params=None):
        norm = optax.global_norm(grads)
        scale = jnp.where((args.max_grad_norm > 0) & (norm > args.max_grad_norm), args.max_grad_norm / norm, 1.0)
        return jax.tree.map(lambda g: scale * g, grads), state

    return optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), clip), optax.adam(lr))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    zero, dims = nn.initializers.zeros, args.hidden_dims
    nets = Networks(
        LatentEncoder(args.encoder_hidden_dims, args.latent_dim),
        MLP(dims, args.latent_dim, latent=True),
        MLP(dims, 1, last_init=zero),
        Critic(dims, last_init=zero),
        Critic(dims),
        MLP(dims, spec.action_dim),
    )
    keys = jax.random.split(key, 6)
    obs, z, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, args.latent_dim)), jnp.zeros((1, spec.action_dim))
    model = {
        "encoder": nets.encoder.init(keys[0], obs),
        "dynamics": nets.dynamics.init(keys[1], z, action),
        "reward": nets.reward.init(keys[2], z, action),
        "critic": jax.lax.map(lambda k: nets.critic.init(k, z, action), jax.random.split(keys[3], args.n_critics)),
        "value": nets.value.init(keys[4], z),
    }
    actor = nets.actor.init(keys[5], z)
    return Agent(
        nets=nets,
        **model,
        actor=actor,
        target_encoder=model["encoder"],
        target_critic=model["critic"],
        model_opt=optimizer(args.model_lr, args).init(model),
        actor_opt=optimizer(args.actor_lr, args).init(actor),
    )


def sample(key, data: Sequences, replay: Replay, args: Args) -> Window:
    """[B, H] sequences, --online-share of them of experience."""
    old_key, new_key = jax.random.split(key)
    online = round(args.online_share * args.batch_size)
    old = data.take(data.rows(old_key, args.batch_size - online), jnp.arange(args.steps))._replace(timestep=None)
    new = replay_windows(replay, new_key, online, args.steps)
    return jax.tree.map(lambda *x: jnp.concatenate(x), old, new)


def update(agent: Agent, batch: Window, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One gradient step of the model with Q and V, then of the policy at its latents; then one of the targets."""
    model_key, actor_key = jax.random.split(key)
    model = {name: getattr(agent, name) for name in LEARNED}
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, (info, z)), grads = grad(model, agent, batch, model_key, args)
    updates, model_opt = optimizer(args.model_lr, args).update(grads, agent.model_opt)
    agent = agent.replace(**optax.apply_updates(model, updates), model_opt=model_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, z, batch, actor_key, args)
    updates, actor_opt = optimizer(args.actor_lr, args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    agent = agent.replace(
        target_encoder=optax.incremental_update(agent.encoder, agent.target_encoder, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"model_loss": loss, "actor_loss": loss_pi, **info, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: planned, without noise; or the policy's mean."""
    if args.planning:
        return plan(agent, obs, key, args)[0]
    return jnp.tanh(agent.nets.actor.apply(agent.actor, agent.nets.encoder.apply(agent.encoder, obs)))


def explore(agent: Agent, obs, key, args: Args):
    """The same with noise [B, A]: of the plan's deviation, or of the policy's; the environment clips them."""
    plan_key, noise_key = jax.random.split(key)
    if args.planning:
        action, std = plan(agent, obs, plan_key, args)
        return action + std * jax.random.normal(noise_key, action.shape)
    return policy_action(agent, agent.nets.encoder.apply(agent.encoder, obs), noise_key, args)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.take(data.rows(batch_key, args.batch_size), jnp.arange(args.steps))
        return update(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    if args.n_critics < 2:
        raise InputError(f"--n-critics {args.n_critics}: critics that disagree are at least 2.")
    if args.plan_elites > args.plan_samples + args.policy_plans:
        candidates = args.plan_samples + args.policy_plans
        raise InputError(f"--plan-elites {args.plan_elites}: a plan has {candidates} candidates.")
    if np.min(args.min_std) < 0 or np.max(args.min_std) > np.min(args.max_std):
        raise InputError(f"--min-std {args.min_std} must be at least 0, and at most --max-std {args.max_std}.")
    if len(data.obs) < args.steps:
        raise InputError(f"'{data.task.id}' has {len(data.obs)} rows; a window of --steps needs {args.steps} or more.")
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale * args.reward_scale, args.reward_shift)
    with Run(__file__, args, data.task, act) as run:
        windows = run.replicate(sequences(data, *FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, windows, explore, sample, update, warmup=args.learning_starts, capacity=args.buffer_size
        )  # fmt: skip
        agent = online.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
