"""FQL fine-tuning: Flow Q-Learning offline, then with the same losses online.

Park, Li and Levine, "Flow Q-Learning", ICML 2025, arXiv 2502.02538, its offline-to-online experiments. A flow-matching
policy clones the data, however many modes it has; a one-step policy is distilled from it and maximises Q at the same
time. Online nothing changes: every transition that the one-step policy collects joins the dataset, batches are uniform
over both, and the flow clones what was collected as well, so that what holds the policy moves along with it.

Choose it when you pre-train with FQL and go on online, or when the data's actions have several modes.

Parity: equal to the authors' code, update for update, but for the target critic (results/parity.md).

Deviations from the paper:
- datasets without a preset use the normalised Q loss with --distillation-weight 1 (the paper's alpha), as the authors
  advise for new tasks; those that were not fine-tuned there have the settings of the offline experiments;
- actions are in [-1, 1] and rescaled to the environment's range outside the networks;
- the target critic follows the critics after their step (before it in the authors' code);
- the dataset is never overwritten: the authors' buffer forgets the oldest rows, data first, where data and experience
  are more than two million.

    python algorithms/offline_to_online/fql_finetune.py --dataset pointmaze-umaze --seeds 4 --hidden-dims 128 128
    python algorithms/offline_to_online/fql_finetune.py --dataset pointmaze-umaze --from results/runs/fql/RUN
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
from shared.arguments import FinetuneArgs, Float, Fraction, Size, hyperparameters
from shared.data import load_dataset
from shared.online import Interaction
from shared.replay import Replay, sample_union
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    distillation_weight: Float = 1.0
    """alpha: weight of the distillation against Q; its scale depends on Q unless normalize_q."""
    normalize_q: bool = True
    """Divide Q in the actor's loss by its mean absolute value."""
    q_aggregation: Literal["mean", "min"] = "mean"
    """How the two target critics are combined."""
    flow_steps: Size = 10
    """Euler steps of the flow policy's integration."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of every network that has no argument of its own for them."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


_raw = {"normalize_q": False, "eval_episodes": 50}
_adroit = {**_raw, "q_aggregation": "min"}
_d4rl_antmaze = {**_raw, "distillation_weight": 10.0, "reward_shift": -1.0}
PRESETS = {
    "antmaze-large-navigate": {**_raw, "distillation_weight": 10.0, "q_aggregation": "min"},
    "antmaze-giant-navigate": {**_raw, "distillation_weight": 10.0, "q_aggregation": "min", "discount": 0.995},
    "humanoidmaze-medium": {**_raw, "distillation_weight": 100.0, "discount": 0.995},
    "humanoidmaze": {**_raw, "distillation_weight": 30.0, "discount": 0.995},
    "antsoccer": {**_raw, "distillation_weight": 30.0, "discount": 0.995},
    **dict.fromkeys(("cube-single", "cube-double", "scene-play"), {**_raw, "distillation_weight": 300.0}),
    "puzzle": {**_raw, "distillation_weight": 1000.0},
    **dict.fromkeys(("antmaze-umaze", "antmaze-medium"), _d4rl_antmaze),
    **dict.fromkeys(("antmaze-large-play", "antmaze-large-diverse"), {**_d4rl_antmaze, "distillation_weight": 3.0}),
    **dict.fromkeys(("pen-cloned", "door-cloned", "hammer-cloned"), {**_adroit, "distillation_weight": 1e3}),
    "relocate-cloned": {**_adroit, "distillation_weight": 1e4},
    **dict.fromkeys(("pen-human", "relocate-human"), {**_adroit, "distillation_weight": 1e4}),
    "pen-expert": {**_adroit, "distillation_weight": 3e3},
    **dict.fromkeys(("door-human", "door-expert", "hammer-human"), {**_adroit, "distillation_weight": 3e4}),
    **dict.fromkeys(("hammer-expert", "relocate-expert"), {**_adroit, "distillation_weight": 3e4}),
}

dense_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class MLP(nn.Module):
    """GELU network on the concatenated inputs; layer normalisation after the activations if asked for."""

    hidden_dims: tuple[int, ...]
    outputs: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.gelu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Networks(NamedTuple):
    actor: MLP
    """Velocity v(s, x, t) of the flow, and the one-step policy mu(s, z)."""
    critic: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    flow: Any
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    flow_opt: optax.OptState
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def q_values(net: MLP, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)[..., 0]


def flow_actions(agent: Agent, obs, noise, args: Args):
    """Euler integration of the flow from noise [B, A], clipped to [-1, 1]."""

    def euler(x, i):
        t = jnp.full((*x.shape[:-1], 1), i / args.flow_steps)
        return x + agent.nets.actor.apply(agent.flow, obs, x, t) / args.flow_steps, None

    x, _ = jax.lax.scan(euler, noise, jnp.arange(args.flow_steps))
    return jnp.clip(x, -1.0, 1.0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma agg_i target Q_i(s', mu(s', z)) - Q(s, a))^2; mean over the two critics."""
    noise = jax.random.normal(key, batch.action.shape)
    next_action = jnp.clip(agent.nets.actor.apply(agent.actor, batch.next_obs, noise), -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action)
    target_q = target_q.min(0) if args.q_aggregation == "min" else target_q.mean(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(), {"q": q.mean()}


def flow_loss(flow, agent: Agent, batch: Batch, key, args: Args):
    """Flow matching: |v(s, x_t, t) - (a - z)|^2 at x_t = (1 - t) z + t a."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.action.shape)
    t = jax.random.uniform(time_key, (args.batch_size, 1))
    velocity = agent.nets.actor.apply(flow, batch.obs, (1.0 - t) * noise + t * batch.action, t)
    chex.assert_equal_shape([velocity, batch.action])
    return ((velocity - (batch.action - noise)) ** 2).mean()


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha |mu(s, z) - flow(s, z)|^2 - Q(s, mu(s, z)), mean over the two critics."""
    noise = jax.random.normal(key, batch.action.shape)
    teacher = flow_actions(agent, batch.obs, noise, args)
    action = agent.nets.actor.apply(actor, batch.obs, noise)
    chex.assert_equal_shape([teacher, action])
    distillation = ((action - teacher) ** 2).mean()
    q = q_values(agent.nets.critic, agent.critic, batch.obs, jnp.clip(action, -1.0, 1.0)).mean(0)
    lam = 1.0 / jax.lax.stop_gradient(jnp.abs(q).mean()) if args.normalize_q else 1.0
    return args.distillation_weight * distillation - lam * q.mean(), {
        "distillation_loss": distillation,
        "q_pi": q.mean(),
    }


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(MLP(args.hidden_dims, spec.action_dim), MLP(args.hidden_dims, 1, layer_norm=True))
    flow_key, actor_key, critic_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    flow = nets.actor.init(flow_key, obs, action, jnp.zeros((1, 1)))
    actor = nets.actor.init(actor_key, obs, action)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    adam = optax.adam(args.learning_rate)
    return Agent(
        nets=nets,
        flow=flow,
        actor=actor,
        critic=critic,
        target_critic=critic,
        flow_opt=adam.init(flow),
        actor_opt=adam.init(actor),
        critic_opt=adam.init(critic),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the dataset and what was collected since."""
    return sample_union(key, data, replay, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One gradient step of the critics, the flow and the one-step policy, all losses of the old parameters; offline and
    online alike.
    """
    critic_key, flow_key, actor_key = jax.random.split(key, 3)
    adam = optax.adam(args.learning_rate)
    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(
        agent.critic, agent, batch, critic_key, args
    )
    critic_updates, critic_opt = adam.update(grads, agent.critic_opt)
    loss_flow, grads = jax.value_and_grad(flow_loss)(agent.flow, agent, batch, flow_key, args)
    flow_updates, flow_opt = adam.update(grads, agent.flow_opt)
    (loss_pi, info_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, actor_key, args)
    actor_updates, actor_opt = adam.update(grads, agent.actor_opt)
    critic = optax.apply_updates(agent.critic, critic_updates)
    agent = agent.replace(
        critic=critic,
        flow=optax.apply_updates(agent.flow, flow_updates),
        actor=optax.apply_updates(agent.actor, actor_updates),
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        critic_opt=critic_opt,
        flow_opt=flow_opt,
        actor_opt=actor_opt,
    )
    losses = {"critic_loss": loss_q, "flow_loss": loss_flow, "actor_loss": loss_pi}
    return agent, {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], sampled: mu(s, z), z ~ N(0, 1), online and in evaluation alike."""
    noise = jax.random.normal(key, (len(obs), agent.nets.actor.outputs))
    return jnp.clip(agent.nets.actor.apply(agent.actor, obs, noise), -1.0, 1.0)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(run, transitions, act, sample, update, capacity=args.buffer_size)
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
