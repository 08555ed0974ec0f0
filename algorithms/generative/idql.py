"""IDQL: Implicit Q-Learning whose policy is the best of many actions of a diffusion model; IFQL with a flow.

Hansen-Estruch, Kostrikov, Janner, Kuba and Levine, "IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion
Policies", 2023, arXiv 2304.10573. Q and V are IQL's: V is an upper expectile of Q over the data's actions, so that no
other action is ever valued. IQL's implicit actor has several modes where the data has, which a Gaussian cannot follow:
here a diffusion model clones the data without any weights, N candidates are drawn from it, and Q chooses among them.

--preset ifql is IFQL, the flow form (Park, Li and Levine, "Flow Q-Learning", ICML 2025, arXiv 2502.02538): a flow in
place of the diffusion model, its networks and its settings, and one step of all losses from the old parameters.

Where the environment knows the density of the data's actions (toy-modes8), metrics.csv holds the energy_distance to it
of actions that are drawn, of which none is chosen, and modes_covered.

Choose it when the data's actions have several modes and the policy shall be improved after training, by N alone.

Parity: IDQL and IFQL are equal to their authors' code, update for update, but for the target critic of IFQL
(results/parity.md).

Deviations from the papers:
- offline training only;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks; no part of the data is held out;
- the paper sweeps N in evaluation and reports the best one of a domain; here it is 64, IFQL's 32;
- IFQL's losses have an Adam each, of the same rate; one Adam for all would be the same. Its target critic follows the
  critics after their step, in the authors' code before it.

    python algorithms/generative/idql.py --dataset hopper-medium --updates 50000 --hidden-dims 128 128 --seeds 4
    python algorithms/generative/idql.py --dataset point-umaze-mixed --preset ifql --hidden-dims 64 64 --seeds 4
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
from shared.arguments import Dropout, Expectile, Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.densities import JUDGED, Density, density_of, judged
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    model: Literal["diffusion", "flow"] = "diffusion"
    """Of the data's actions: a diffusion model, or a flow with IFQL's networks and order of updates."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    n_candidates: Size = 64
    """Candidate actions at each step of an episode, of which one is taken."""
    choice: Literal["best", "implicit"] = "best"
    """Which one: that of the highest Q, or one drawn by the weights of IQL's implicit policy."""
    diffusion_steps: Size = 5
    """T: steps of the diffusion."""
    flow_steps: Size = 10
    """Euler steps of the flow policy's integration."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    average_step: Fraction = 0.001
    """Polyak step of the diffusion model's average, which acts, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    actor_weight_decay: Float = 1e-4
    """Of the actor's weights, by AdamW (the diffusion model alone)."""
    dropout: Dropout = 0.1
    """Dropout after the actor's hidden layers, in [0, 1)."""
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    batch_size: Size = 512
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    residual_dim: Size = 256
    """Width of the diffusion model's residual blocks."""
    residual_blocks: Size = 3
    """Their number."""
    time_dim: Size = 128
    """Size of the embedding of a time (of a diffusion step)."""
    value_layer_norm: bool = True
    """Layer normalisation of what V sees (the diffusion form); switch it off where observations have few numbers."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_mujoco = {"expectile": 0.7, "normalize_return": True, "eval_episodes": 50}
_ifql = {
    "model": "flow", "expectile": 0.9, "n_candidates": 32, "hidden_dims": (512, 512, 512, 512), "batch_size": 256,
    "updates": 1_000_000, "eval_episodes": 50,
}  # fmt: skip
PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _mujoco),
    "antmaze": {"expectile": 0.9, "reward_shift": -1.0, "eval_episodes": 50},
    **by_name({"ifql": _ifql, "ifql-humanoidmaze": {**_ifql, "discount": 0.995}}),
}

dense_init = nn.initializers.xavier_uniform()
VP_MIN, VP_MAX = 0.1, 10.0
"""Ends of the variance-preserving schedule's rate."""


class MLP(nn.Module):
    """ReLU network, normalised at its input if asked for; or IFQL's: GELU, normalised after every activation."""

    hidden_dims: tuple[int, ...]
    outputs: int
    gelu: bool
    layer_norm: bool

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        if self.layer_norm and not self.gelu:
            x = nn.LayerNorm()(x)
        for size in self.hidden_dims:
            x = nn.Dense(size, kernel_init=dense_init)(x)
            x = nn.gelu(x) if self.gelu else nn.relu(x)
            x = nn.LayerNorm()(x) if self.layer_norm and self.gelu else x
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Diffusion(nn.Module):
    """The noise in a noisy action [..., A] after t [..., 1] of the steps: a residual network."""

    action_dim: int
    width: int
    blocks: int
    time_dim: int
    dropout: float

    @nn.compact
    def __call__(self, obs, action, t, training: bool = False):
        frequency = self.param("frequency", nn.initializers.normal(0.2), (self.time_dim // 2, 1))
        angle = 2 * jnp.pi * t @ frequency.T
        time = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        time = nn.swish(nn.Dense(2 * self.time_dim, kernel_init=dense_init)(time))
        time = nn.Dense(2 * self.time_dim, kernel_init=dense_init)(time)
        x = nn.Dense(self.width, kernel_init=dense_init)(jnp.concatenate([action, obs, time], axis=-1))
        for _ in range(self.blocks):
            change = nn.Dropout(self.dropout, deterministic=not training)(x)
            change = nn.swish(nn.Dense(4 * self.width)(nn.LayerNorm()(change)))
            x = x + nn.Dense(self.width)(change)
        return nn.Dense(self.action_dim, kernel_init=dense_init)(nn.swish(x))


class Networks(NamedTuple):
    actor: Diffusion | MLP
    """The noise of the diffusion, or the velocity of the flow."""
    critic: MLP
    value: MLP
    action_dim: int


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    average_actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


def q_values(net: MLP, critics, obs, action):
    """[E, ...]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)[..., 0]


def schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances beta_t [T] of the diffusion's steps and the share of the action that is left after them [T]."""
    t = np.arange(1, steps + 1)
    beta = 1.0 - np.exp(-VP_MIN / steps - 0.5 * (VP_MAX - VP_MIN) * (2 * t - 1) / steps**2)
    return np.float32(beta), np.float32(np.cumprod(1.0 - beta))


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """Expectile regression |tau - 1(q < V)| (q - V)^2 of V(s), q = min_i target Q_i(s, a)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.value.apply(value, batch.obs)[..., 0]
    chex.assert_shape([q, v], (args.batch_size,))
    weight = jnp.where(q >= v, args.expectile, 1.0 - args.expectile)
    return (weight * (q - v) ** 2).mean(), {"v": v.mean()}


def critic_loss(critic, value, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q_i(s, a))^2; mean over the two critics, for the flow their sum."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * agent.nets.value.apply(value, batch.next_obs)[..., 0]
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    errors = ((q - y) ** 2).mean(1)
    return errors.sum() if args.model == "flow" else errors.mean(), {"q": q.mean()}


def diffusion_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """|eps - eps(s, sqrt(left) a + sqrt(1 - left) eps, t)|^2 at a random step t; summed over dimensions."""
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    t = jax.random.randint(time_key, (args.batch_size, 1), 0, args.diffusion_steps)
    left = jnp.asarray(schedule(args.diffusion_steps)[1])[t]
    noise = jax.random.normal(noise_key, batch.action.shape)
    noisy = jnp.sqrt(left) * batch.action + jnp.sqrt(1.0 - left) * noise
    found = agent.nets.actor.apply(
        actor, batch.obs, noisy, jnp.float32(t), training=True, rngs={"dropout": dropout_key}
    )
    chex.assert_equal_shape([found, noise])
    return ((found - noise) ** 2).sum(-1).mean()


def flow_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """Flow matching: |v(s, x_t, t) - (a - z)|^2 at x_t = (1 - t) z + t a; mean over dimensions."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.action.shape)
    t = jax.random.uniform(time_key, (args.batch_size, 1))
    velocity = agent.nets.actor.apply(actor, batch.obs, (1.0 - t) * noise + t * batch.action, t)
    chex.assert_equal_shape([velocity, batch.action])
    return ((velocity - (batch.action - noise)) ** 2).mean()


def denoise(agent: Agent, obs, key, args: Args):
    """Actions [..., A] of the averaged diffusion model, from noise; clipped at every step."""
    beta, left = schedule(args.diffusion_steps)
    first_key, key = jax.random.split(key)
    shape = (*obs.shape[:-1], agent.nets.action_dim)

    def step(x, at):
        t, beta, left, key = at
        noise = agent.nets.actor.apply(agent.average_actor, obs, x, jnp.full((*shape[:-1], 1), t, jnp.float32))
        x = (x - beta / jnp.sqrt(1.0 - left) * noise) / jnp.sqrt(1.0 - beta)
        x = x + (t > 0) * jnp.sqrt(beta) * jax.random.normal(key, shape)
        return jnp.clip(x, -1.0, 1.0), None

    steps = (jnp.arange(args.diffusion_steps), beta, left, jax.random.split(key, args.diffusion_steps))
    return jax.lax.scan(step, jax.random.normal(first_key, shape), steps, reverse=True)[0]


def integrate(agent: Agent, obs, key, args: Args):
    """Actions [..., A] by Euler integration of the flow from noise, clipped to [-1, 1]."""

    def euler(x, i):
        t = jnp.full((*x.shape[:-1], 1), i / args.flow_steps)
        return x + agent.nets.actor.apply(agent.actor, obs, x, t) / args.flow_steps, None

    noise = jax.random.normal(key, (*obs.shape[:-1], agent.nets.action_dim))
    return jnp.clip(jax.lax.scan(euler, noise, jnp.arange(args.flow_steps))[0], -1.0, 1.0)


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    if args.model == "flow":
        return optax.adam(args.actor_lr)
    return optax.adamw(optax.cosine_decay_schedule(args.actor_lr, args.updates), weight_decay=args.actor_weight_decay)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    gelu = args.model == "flow"
    if gelu:
        actor_net = MLP(args.hidden_dims, spec.action_dim, gelu=True, layer_norm=False)
    else:
        actor_net = Diffusion(spec.action_dim, args.residual_dim, args.residual_blocks, args.time_dim, args.dropout)
    nets = Networks(
        actor_net,
        MLP(args.hidden_dims, 1, gelu, gelu),
        MLP(args.hidden_dims, 1, gelu, gelu or args.value_layer_norm),
        spec.action_dim,
    )
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs, action, jnp.zeros((1, 1)))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.value.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        average_actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.critic_lr).init(value),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the model of the data's actions, of V, and of Q with the new V (for the flow the old V)."""
    actor_loss = flow_loss if args.model == "flow" else diffusion_loss
    loss_pi, grads = jax.value_and_grad(actor_loss)(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt, agent.actor)
    actor = optax.apply_updates(agent.actor, updates)

    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.critic_lr).update(grads, agent.value_opt)
    value = optax.apply_updates(agent.value, updates)

    next_value = agent.value if args.model == "flow" else value
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, next_value, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)

    agent = agent.replace(
        actor=actor,
        average_actor=optax.incremental_update(actor, agent.average_actor, args.average_step),
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        value=value,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        value_opt=value_opt,
    )
    return agent, {"actor_loss": loss_pi, "value_loss": loss_v, "critic_loss": loss_q, **info_v, **info_q}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of n_candidates drawn ones the best by min_i Q_i, or one of the implicit policy.

    Q is the target critics', for the flow the critics'.
    """
    draw_key, choice_key = jax.random.split(key)
    repeated = jnp.broadcast_to(obs, (args.n_candidates, *obs.shape))
    action = (integrate if args.model == "flow" else denoise)(agent, repeated, draw_key, args)
    critics = agent.critic if args.model == "flow" else agent.target_critic
    q = q_values(agent.nets.critic, critics, repeated, action).min(0)
    chosen = q.argmax(0)
    if args.choice == "implicit":
        v = agent.nets.value.apply(agent.value, obs)[..., 0]
        weight = jnp.where(q >= v, args.expectile, 1.0 - args.expectile)
        chosen = jax.random.categorical(choice_key, jnp.log(weight), axis=0)
    return jnp.take_along_axis(action, chosen[None, :, None], axis=0)[0]


def judge(agent: Agent, key, args: Args, obs, density: Density) -> dict:
    """One lane: how near actions that are drawn at obs [N, O] are to the data's density."""
    draw_key, density_key = jax.random.split(key)
    action = (integrate if args.model == "flow" else denoise)(agent, obs, draw_key, args)
    return judged(action, density, density_key)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.time_dim < 2:
        raise InputError("--time-dim must be at least 2: a sine and a cosine.")
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    density, obs = density_of(data.task), data.obs[np.arange(JUDGED) % len(data.obs)]
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        judge_lanes = run.over_lanes(partial(judge, density=density), in_axes=(0, 0, 0, None))
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            if density:
                drawn = run.step_keys(-1 - run.done)  # no step's, however many --updates follow
                metrics |= judge_lanes(agent, drawn, run.lane_args, obs)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
