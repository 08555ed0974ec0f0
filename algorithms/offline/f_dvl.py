"""f-DVL: Dual V-Learning with an f-divergence; its reverse-KL case is XQL, Extreme Q-Learning.

Sikchi, Zheng, Zhang and Niekum, "Dual RL: Unification and New Methods for Reinforcement and Imitation
Learning", ICLR 2024, arXiv 2302.08560; XQL: Garg, Hejna, Geist and Ermon, "Extreme Q-Learning: MaxEnt RL without
Entropy", ICLR 2023, arXiv 2301.02328. Offline RL regularised by an f-divergence has a dual in V alone: V minimises
(1 - lambda) V + lambda f*(Q - V) over the dataset's actions, f* being the convex conjugate, and so estimates the
value of the best action in the data without ever evaluating another one. Reverse KL gives XQL's Gumbel regression,
whose exponential is unstable at low temperatures; total variation and Pearson's chi-square grow linearly and as a
square instead. All the rest is IQL: Q regresses to r + gamma V(s'), and the policy is cloned with weights
exp(beta (Q - V)).

Total variation is quantile regression: V is the (2 lambda - 1) / lambda quantile of Q over the data's actions, for
lambda in (1/2, 1]; at 1/2 the loss is flat below it, and under 1/2 it falls without bound as V does.

Choose it when you would use IQL and want another regulariser than the expectile; XQL is one of its settings.

Parity: equal to the authors' code, update for update, and with reverse KL to that of XQL (results/parity.md).

Deviations from the paper:
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- the return range that rewards are divided by is taken over the dataset's own episodes;
- the authors' code for chi-square (chi_square) rises again for Q - V < -4, where the conjugate restricted to
  weights w >= 0 stays at -1; it is the default because the published scores come from it, and
  `--divergence chi_square_monotone` is the conjugate itself;
- AntMaze's constant step size of the actor is that of the authors' code, and of XQL's (a cosine everywhere else);
- several value updates in one step draw their own random actions (the authors' code repeats the same ones).

    python algorithms/offline/f_dvl.py --dataset hopper-medium --seeds 4 --updates 50000
    python algorithms/offline/f_dvl.py --dataset hopper-medium-replay --preset xql-hopper-medium-replay --seeds 4
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
from shared.arguments import Count, Dropout, Float, Fraction, OfflineArgs, Positive, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    divergence: Literal["chi_square", "chi_square_monotone", "total_variation", "reverse_kl"] = "chi_square"
    """f of the value's loss; reverse_kl is XQL."""
    loss_temperature: Float = 1.0
    """lambda: weight of f* in (0, 1], of total_variation in (1/2, 1] (the larger, the nearer V is to the maximum); for
    reverse_kl the scale that Q - V is divided by, > 0 (the smaller, the nearer to the maximum)."""
    max_clip: Positive = 7.0
    """reverse_kl: (Q - V) / lambda is clipped here from above, > 0."""
    n_random_actions: Count = 0
    """Uniform actions per state that the value's loss sees beside the dataset's."""
    action_noise: Float = 0.0
    """Standard deviation of the noise on the dataset's actions in the value's loss, clipped at 0.5."""
    value_updates: Size = 1
    """Value updates per step, on the same batch."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    decay_actor_lr: bool = True
    """The actor's step size decays to zero over the run as a cosine; else it is constant."""
    huber_delta: Positive = 20.0
    """TD errors count as a square up to here and linearly beyond."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""


def _xql(temperature: float, max_clip: float, batch_size: int = 1024, **more) -> dict[str, Any]:
    own = {"divergence": "reverse_kl", "loss_temperature": temperature, "max_clip": max_clip, "batch_size": batch_size}
    return own | more


_gym = {"beta": 3.0, "normalize_return": True}
_antmaze = {"beta": 10.0, "reward_shift": -1.0, "decay_actor_lr": False, "eval_episodes": 100}
_kitchen = {"beta": 0.5, "dropout": 0.1}
_random, _noise = {"n_random_actions": 1}, {"action_noise": 0.1}
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"loss_temperature": 1.0, "n_random_actions": 1, **_gym}),
    "antmaze": {"divergence": "total_variation", "loss_temperature": 0.8, **_antmaze},
    "pointmaze": {"divergence": "total_variation", "loss_temperature": 0.8, "beta": 10.0},  # ours, after AntMaze
    **dict.fromkeys(("kitchen", "pen-", "door-", "hammer-", "relocate-"), _xql(8.0, 5.0, **_random, **_kitchen)),
    **by_name({
        # XQL: one setting per domain ("consistent") ...
        "xql-gym": _xql(2.0, 7.0, 256, **_gym),
        "xql-antmaze": _xql(0.6, 7.0, 256, **_antmaze),
        "xql-kitchen": _xql(5.0, 7.0, 256, **_kitchen),
        "xql-pointmaze": _xql(0.6, 7.0, 256, beta=10.0),  # ours, after AntMaze
        # ... and tuned per dataset
        "xql-halfcheetah-medium": _xql(1.0, 7.0, **_gym, **_noise),
        "xql-halfcheetah-medium-replay": _xql(1.0, 5.0, 256, **_gym),
        "xql-halfcheetah-medium-expert": _xql(1.0, 5.0, **_gym),
        "xql-hopper-medium": _xql(5.0, 7.0, **_gym),
        "xql-hopper-medium-replay": _xql(2.0, 7.0, 256, **_gym),
        "xql-hopper-medium-expert": _xql(2.0, 7.0, **_gym, **_random),
        "xql-walker2d-medium": _xql(10.0, 7.0, **_gym),
        "xql-walker2d-medium-replay": _xql(5.0, 5.0, **_gym),
        "xql-walker2d-medium-expert": _xql(2.0, 5.0, 256, **_gym),
        "xql-antmaze-umaze": _xql(2.0, 7.0, 256, **_antmaze),
        "xql-antmaze-umaze-diverse": _xql(5.0, 7.0, 256, **_antmaze, **_random),
        "xql-antmaze-medium-play": _xql(0.8, 5.0, 256, **_antmaze),
        "xql-antmaze-medium-diverse": _xql(0.6, 7.0, 256, value_updates=4, **_antmaze),
        "xql-antmaze-large-play": _xql(0.6, 5.0, **_antmaze),
        "xql-antmaze-large-diverse": _xql(0.55, 5.0, **_antmaze),
        "xql-kitchen-complete": _xql(2.0, 7.0, **_kitchen),
        "xql-kitchen-partial": _xql(5.0, 7.0, **_kitchen),
        "xql-kitchen-mixed": _xql(8.0, 7.0, **_kitchen),
    }),
}  # fmt: skip

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


class Actor(nn.Module):
    """Mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a); or V(s) without an action, with layer norm before its activations."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.Dense(size, kernel_init=dense_init)(x)
            x = nn.relu(nn.LayerNorm()(x) if action is None else x)
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def conjugate_loss(adv, args: Args):
    """[N] lambda f*(d) - (1 - lambda) d of d = Q - V, f* the convex conjugate of the divergence's f.

    total variation: f* = max(d, 0); chi-square: f* = max(d + d^2 / 4, 0); reverse KL: XQL's Gumbel regression
    exp(z) - z - 1, z = d / lambda, its gradient rescaled by exp(-max z) of the batch.
    """
    lam = args.loss_temperature
    if args.divergence == "reverse_kl":
        z = jnp.minimum(adv / lam, args.max_clip)
        max_z = jax.lax.stop_gradient(jnp.maximum(z.max(), -1.0))
        return jnp.exp(z - max_z) - z * jnp.exp(-max_z) - jnp.exp(-max_z)
    conjugate = {
        "total_variation": jnp.maximum(adv, 0.0),
        "chi_square": jnp.maximum(adv + adv**2 / 4, 0.0),
        "chi_square_monotone": jnp.where(adv > -2.0, adv + adv**2 / 4, -1.0),
    }[args.divergence]
    return lam * conjugate - (1 - lam) * adv


def value_actions(batch: Batch, key, args: Args):
    """Observations and actions [B (1 + n_random_actions), ...] of the value's loss: the data's, then uniform ones."""
    noise_key, random_key = jax.random.split(key)
    noise = jnp.clip(args.action_noise * jax.random.normal(noise_key, batch.action.shape), -0.5, 0.5)
    n = args.n_random_actions
    uniform = jax.random.uniform(random_key, (n * args.batch_size, batch.action.shape[1]), minval=-1.0, maxval=1.0)
    action = jnp.concatenate([jnp.clip(batch.action + noise, -1.0, 1.0), uniform])
    return jnp.tile(batch.obs, (1 + n, 1)), action


def value_loss(value, agent: Agent, batch: Batch, key, args: Args):
    """The mean of conjugate_loss(min_i target Q_i(s, a) - V(s)), a from the data (and some uniform)."""
    obs, action = value_actions(batch, key, args)
    q = q_values(agent.nets.critic, agent.target_critic, obs, action).min(0)
    v = agent.nets.critic.apply(value, obs)
    chex.assert_shape([q, v], ((1 + args.n_random_actions) * args.batch_size,))
    adv = q - v
    return conjugate_loss(adv, args).mean(), {"v": v.mean(), "max_adv": adv.max()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """Huber loss of r + gamma V(s') - Q(s, a); summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return optax.huber_loss(q, y[None], delta=args.huber_delta).mean(1).sum(0), {"q": q.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    cosine = optax.cosine_decay_schedule(args.actor_lr, args.updates)
    return optax.adam(cosine if args.decay_actor_lr else args.actor_lr)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, args.dropout), Critic(args.hidden_dims))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
    )


def update_value(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V."""
    grad = jax.value_and_grad(value_loss, has_aux=True)
    (loss, info), grads = grad(agent.value, agent, batch, key, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)
    return agent, {"value_loss": loss, **info}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """`value_updates` gradient steps of V, then the actor with the new V, then Q with the new V."""
    value_key, actor_key = jax.random.split(key)
    value_keys = jax.random.split(value_key, args.value_updates)
    agent, infos = jax.lax.scan(lambda a, k: update_value(a, batch, k, args), agent, value_keys)
    info_v = jax.tree.map(lambda x: x[-1], infos)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def check_temperature(args: Args) -> None:
    """Refuses lambdas for which the value's loss has no minimum, or not one alone."""
    low, high = {"reverse_kl": (0.0, jnp.inf), "total_variation": (0.5, 1.0)}.get(args.divergence, (0.0, 1.0))
    temperatures = np.atleast_1d(args.loss_temperature)
    if not np.all((temperatures > low) & (temperatures <= high)):
        bounds = f"greater than {low:g}" + ("" if high == jnp.inf else f" and at most {high:g}")
        raise InputError(
            f"--loss-temperature of {args.divergence} must be {bounds}, not {args.loss_temperature}; V would fall or "
            "rise for ever."
        )


def main(args: Args) -> None:
    check_temperature(args)
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
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
