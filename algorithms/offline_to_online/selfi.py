"""SELFI: a policy trained against a known model, then online by TD3 whose critics begin with what the model says.

Hirose, Shah, Stachowicz, Sridhar and Levine, "SELFI: Autonomous Self-Improvement with Reinforcement Learning for Social
Navigation", CoRL 2024, arXiv 2403.00991. The policy gives a plan tau of --plan-length actions; the first is taken.
Offline it maximises J(s, tau), a differentiable objective of a model that is known, in the states of the dataset.
Online the same objective is a part of the critic, Q(s, tau) = J(s, tau) + Q_res(s, a), with a the plan's first action:
TD learning fits the residual Q_res alone to what the model does not know (its errors, and what lies beyond the plan),
and the policy maximises the sum. The residual begins as zero, so that the first online objective is the offline one
and the policy has nothing to forget at the switch.

Here J is the discounted reward of the plan in the exact functions of an environment (--model-env), which may be another
than the one that is interacted with (--env). With --model-weight 0, J trains the policy offline and has no part
online: TD3 from a good policy and an empty critic.

Choose it when you have a model that is differentiable and nearly right, and a world in which it is not.

Deviations from the paper:
- states are vectors, and the model an environment's own functions: no pictures, no encoder shared with the policy, and
  rewards of the environment in place of goals, collisions and the space around people;
- no code is public: sizes, rates and exploration are TD3's, and the equations are as the text has them;
- the plan that belongs to an action of the replay buffer is that action, then the target policy's plan without its
  first one: plans are not stored;
- online batches are of the replay buffer alone.

    python algorithms/offline_to_online/selfi.py --env WindyPoint-v0 --model-env TurnedPoint-v0 --env-steps 10000
    python algorithms/offline_to_online/selfi.py --dataset pendulum-mixed --offline-updates 5000 --model-weight 0 1
"""

import sys
from collections.abc import Callable
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
from shared.arguments import Count, FinetuneArgs, Float, Fraction, Size, hyperparameters
from shared.data import load_dataset
from shared.env_models import exact_model
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    dataset: str = "turned-point-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    model_env: str = ""
    """Gymnasium id whose functions are the model, of the same observations and actions; empty: the environment's."""
    plan_length: Size = 8
    """Actions of a plan."""
    model_weight: Float = 1.0
    """Weight of J in the critic and in the policy's objective online; 0: TD3 from the policy that J has trained."""
    exploration_noise: Float = 0.1
    """Standard deviation of the noise on the actor's actions in the environment."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    offline_updates: Size = 10_000
    """Gradient updates of each lane before its first environment step."""


PRESETS: dict[str, dict[str, Any]] = {}

Model = Callable
"""(obs [B, O], action [B, A], key) -> (next_obs [B, O], reward [B], terminal [B]), see `shared.env_models`."""


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    horizon: int
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        """[..., H, A]"""
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        x = nn.tanh(nn.Dense(self.horizon * self.action_dim)(x))
        return x.reshape(*x.shape[:-1], self.horizon, self.action_dim)


class Critic(nn.Module):
    """Begins as zero everywhere."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two residuals, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def model_objective(model: Model, obs, plan, key, args: Args):
    """J(s, tau) [B]: the discounted reward of a plan [B, H, A] in the model, up to where the task has ended.

    Of a model with noise, which `key` is for, one draw.
    """

    def step(carry, x):
        (obs, weight), (action, key) = carry, x
        next_obs, reward, terminal = model(obs, action, key)
        return (next_obs, args.discount * weight * (1.0 - terminal)), weight * reward

    key = jax.random.key_data(key)  # plain numbers: worlds fold into a key more than once
    keys = jax.random.split(key, plan.shape[1])
    rewards = jax.lax.scan(step, (obs, jnp.ones(len(obs))), (jnp.swapaxes(plan, 0, 1), keys))[1]
    return rewards.sum(0)


def residuals(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def critic_loss(critic, agent: Agent, model: Model, batch: Batch, key, args: Args):
    """(w J(s, tau) + Q_res(s, a) - y)^2, summed over the two residuals, in which alone there is a gradient.

    y = r + gamma (w J(s', tau') + min_i target Q_res_i(s', a')), a' being the target plan's first action with TD3's
    noise. tau is the target policy's plan whose first action is a.
    """
    model_keys = jax.random.split(jax.random.fold_in(key, 1))
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_plan, plan = (agent.nets.actor.apply(agent.target_actor, obs) for obs in (batch.next_obs, batch.obs))
    next_action = jnp.clip(next_plan[:, 0] + noise, -1.0, 1.0)
    next_plan, plan = next_plan.at[:, 0].set(next_action), plan.at[:, 0].set(batch.action)
    base, next_base = (
        args.model_weight * model_objective(model, obs, actions, key, args)
        for obs, actions, key in zip((batch.obs, batch.next_obs), (plan, next_plan), model_keys, strict=True)
    )
    target_q = next_base + residuals(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    residual = residuals(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, base, residual[0]], (args.batch_size,))
    info = {"q": (base + residual).mean(), "model_q": base.mean(), "residual": jnp.abs(residual).mean()}
    return ((base + residual - y) ** 2).mean(1).sum(0), info


def model_loss(actor, net: Actor, model: Model, obs, key, args: Args):
    """-J(s, pi(s)): offline."""
    objective = model_objective(model, obs, net.apply(actor, obs), key, args)
    return -objective.mean(), {}


def actor_loss(actor, agent: Agent, model: Model, obs, key, args: Args):
    """-(w J(s, tau) + Q_res_1(s, a)), tau = pi(s), a its first action: online."""
    plan = agent.nets.actor.apply(actor, obs)
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    residual = agent.nets.critic.apply(first_critic, obs, plan[:, 0])
    objective = model_objective(model, obs, plan, key, args)
    chex.assert_equal_shape([residual, objective])
    return -(args.model_weight * objective + residual).mean(), {"objective": objective.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, args.plan_length, spec.action_dim), Critic(args.hidden_dims))
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=jax.tree.map(jnp.copy, actor),
        target_critic=jax.tree.map(jnp.copy, critic),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def update_critic(agent: Agent, model: Model, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two residuals."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, model, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def descend_actor(agent: Agent, grads, args: Args) -> Agent:
    """One step of the actor along its gradient, and a Polyak step of all targets."""
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )


def update(agent: Agent, model: Model, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """Offline: one gradient step of the policy in the model."""
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent.nets.actor, model, batch.obs, key, args)
    return descend_actor(agent, grads, args), {"model_loss": loss, **info}


def update_online(agent: Agent, batch: Batch, key, args: Args, t, model: Model) -> tuple[Agent, dict]:
    """One critic step, and an actor step where environment step t is a multiple of `policy_delay`."""
    actor_key = jax.random.fold_in(key, 2)
    agent, critic_info = update_critic(agent, model, batch, key, args)

    def move(agent):  # what is seldom counts more, so that means over all steps are those over actor steps
        grad = jax.value_and_grad(actor_loss, has_aux=True)
        (loss, info), grads = grad(agent.actor, agent, model, batch.obs, actor_key, args)
        info = {"actor_loss": loss, **info}
        return descend_actor(agent, grads, args), jax.tree.map(lambda x: args.policy_delay * x, info)

    def stay(agent):
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(move, agent)[1])

    agent, actor_info = jax.lax.cond(t % args.policy_delay == 0, move, stay, agent)
    return agent, {**critic_info, **actor_info}


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the replay buffer."""
    return replay.sample(key, args.batch_size)


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic: the first ones of the plans."""
    return agent.nets.actor.apply(agent.actor, obs)[:, 0]


def explore(agent: Agent, obs, key, args: Args):
    """The policy's actions [B, A], noisy if asked for; the environment clips them."""
    action = act(agent, obs, None, args)
    return action + args.exploration_noise * jax.random.normal(key, action.shape)


def train(agent: Agent, keys, args: Args, transitions: Transitions, model: Model) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        model_key = jax.random.fold_in(key, 1)
        return update(agent, model, transitions.sample(key, args.batch_size), model_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False, reward=False)  # its states alone are learned from
    modelled = data.task.in_env(args.model_env) if args.model_env else data.task
    model = exact_model(modelled)
    if model is None:
        what = modelled.env_spec.id if modelled.env_spec else f"'{data.task.id}' without an environment"
        raise InputError(f"The dynamics of {what} are not known as functions; give another --model-env.")
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, transitions, explore, sample, partial(update_online, model=model),
            warmup=args.learning_starts, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        train_lanes = run.over_lanes(partial(train, model=model), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done < 0:
                agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
