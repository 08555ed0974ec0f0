"""ReCOIL: imitation from arbitrary data, without a discriminator.

Sikchi, Zheng, Zhang and Niekum, "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning", ICLR
2024, arXiv 2302.08560. Visits of the policy, mixed with the data's, are matched to the expert's, mixed with the same:
the data need not cover what the expert does. In the dual of the chi-square divergence Q rises where the demonstrations
are, falls where the data is, and obeys Bellman's equation on the data; nothing tells rewards or classifies. The values
are those of a reward of -2 on the data, with two bounds: demonstrated pairs are worth 2 / (1 - gamma), the end of an
episode -2 / (1 - gamma). V is the implicit maximum of Q over the data's actions, the policy is cloned with
exp(beta (Q - V)).

Choose it when there are a few demonstrations with actions, and much data of any quality without rewards, in which
behaviour like theirs is hidden. Where it holds nothing like the demonstrations, clone them: the policy only ever
sees actions of the data. A pair that was demonstrated and is in the data is pulled both ways.

Parity: equal to the authors' code, update for update, but for the Gumbel loss's scale and, with the expectile, V's
second term (results/parity.md).
Deviations from the released code (kept in chufanchen/ReCOIL with its authors' history):
- the Gumbel loss is rescaled by the largest (Q - V) of the data, there by that of data and demonstrations;
- with --maximizer expectile V's loss is the expectile's alone, there with 0.1 (mean V of data - of demonstrations);
- V always has layer norm, there where a setting says so;
- no noise or uniform actions in V's loss, no gradient penalty of Q (all off there).

    python algorithms/imitation/recoil.py --dataset pendulum-rare --seeds 8 --updates 20000
    python algorithms/imitation/recoil.py --dataset hopper-random-expert-5 --demos hopper-expert --seeds 4
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
from shared.arguments import DemoArgs, Dropout, Expectile, Float, Fraction, Positive, Size, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.parts import load_demonstrated, rank_correlation
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(DemoArgs):
    dataset: str = "pendulum-rare"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    step_cost: Float = 2.0
    """c > 0: a step of the data costs c; demonstrated pairs are worth c / (1 - gamma), ends -c / (1 - gamma)."""
    maximizer: Literal["gumbel", "expectile"] = "gumbel"
    """How V is the largest Q of the data's actions: XQL's Gumbel regression, or IQL's expectile."""
    gumbel_temperature: Float = 1.0
    """The scale that Q - V is divided by, > 0: the smaller, the nearer V is to the maximum."""
    gumbel_clip: Float = 7.0
    """(Q - V) / gumbel_temperature is clipped here from above, > 0."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
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
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), {"dropout": 0.1}),
    "kitchen": {"beta": 0.5, "dropout": 0.1},
}
COMPARED = 2_000
"""Rows by which values are compared with true returns, for the log alone."""

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


class Parts(NamedTuple):
    """A dataset and demonstrations on the device."""

    transitions: Transitions
    demos: Transitions
    compared: Batch
    """Some rows of the dataset"""
    returns: jax.Array
    """[C] the true returns of these rows' episodes, logged beside their values; [0]: there are none"""


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def maximizer_loss(adv, args: Args):
    """[B] of Q - V: |expectile - 1(u < 0)| u^2, or exp(z) - z - 1 of z = u / temperature.

    The gradient of the latter is rescaled by exp(-max z) of the batch, as in XQL.
    """
    if args.maximizer == "expectile":
        return jnp.where(adv < 0, 1.0 - args.expectile, args.expectile) * adv**2
    z = jnp.minimum(adv / args.gumbel_temperature, args.gumbel_clip)
    max_z = jax.lax.stop_gradient(jnp.maximum(z.max(), -1.0))
    return jnp.exp(z - max_z) - z * jnp.exp(-max_z) - jnp.exp(-max_z)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """The mean of maximizer_loss(min_i target Q_i(s, a) - V(s)) over the data; no demonstration is in it."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    return maximizer_loss(q - v, args).mean(), {"v": v.mean()}


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


def critic_loss(critic, agent: Agent, batch: Batch, demos: Batch, args: Args):
    """(Q(s_E, a_E) - b)^2 / 2 + (Q(s, a) - y)^2 / 2 with y = -c + gamma V(s'), b = c / (1 - gamma); both critics' sum.

    Where an episode of the data terminates, y = -c - gamma b = -b: it costs c for ever.
    """
    bound = args.step_cost / (1.0 - args.discount)
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = -args.step_cost + args.discount * jnp.where(batch.terminal > 0, -bound, next_v)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    q_demo = q_values(agent.nets.critic, critic, demos.obs, demos.action)
    chex.assert_shape([y, q[0], q_demo[0]], (args.batch_size,))
    loss = 0.5 * (q_demo - bound) ** 2 + 0.5 * (q - y) ** 2
    return loss.mean(1).sum(0), {"q": q.mean(), "q_demo": q_demo.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


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


def update(agent: Agent, batch: Batch, demos: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, then the actor with the new V, then Q with the new V."""
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, demos, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def train(agent: Agent, keys, args: Args, parts: Parts) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, demo_key, update_key = jax.random.split(key, 3)
        batch = parts.transitions.sample(batch_key, args.batch_size)
        return update(agent, batch, parts.demos.sample(demo_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    metrics = jax.tree.map(jnp.mean, metrics)
    if len(parts.returns):
        q = q_values(agent.nets.critic, agent.critic, parts.compared.obs, parts.compared.action).min(0)
        metrics["q_correlation"] = rank_correlation(q, parts.returns)
    return agent, metrics


def parts_of(data: Dataset, demos: Dataset, returns: np.ndarray | None) -> Parts:
    """The rows that are trained on; the true `returns` [E] of the data's episodes are compared with and no more."""
    fields = ("obs", "action", "terminal", "next_obs")
    transitions = data.transitions(*fields)
    rows = np.random.default_rng(0).permutation(len(transitions.rows))[:COMPARED]
    of_rows = np.zeros(0) if returns is None else returns[data.episode()[data.usable(*fields)]][rows]
    compared = transitions.take(jnp.asarray(rows))
    return Parts(transitions, demos.transitions("obs", "action"), compared, jnp.asarray(np.float32(of_rows)))


def main(args: Args) -> None:
    if np.max(args.discount) >= 1.0:
        raise InputError(
            f"--discount must be below 1, not {args.discount}: what a step costs for ever has no sum else."
        )
    if min(np.min(args.step_cost), np.min(args.gumbel_temperature)) <= 0.0:
        raise InputError("--step-cost and --gumbel-temperature must be above 0.")
    if np.min(args.gumbel_clip) <= 0.0:
        raise InputError(f"--gumbel-clip must be above 0, not {args.gumbel_clip}: V would only fall, under every Q.")
    data, demos, returns = load_demonstrated(args)
    data = data.require(discrete=False, reward=False)
    with Run(__file__, args, data.task, act) as run:
        parts = run.replicate(parts_of(data, demos, returns))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, parts)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
