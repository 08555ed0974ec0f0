"""MEX: Maximize to Explore, TD3 whose critics also maximise the value that they estimate.

Liu, Lu, Xiong, Zhong, Hu, Zhang, Zheng, Yang and Wang, "Maximize to Explore: One Objective Function Fusing Estimation,
Planning, and Exploration", NeurIPS 2023, arXiv 2305.18258. The hypothesis that is played maximises its own value minus
eta times its loss on the data: exploration needs neither bonus nor confidence set. In the model-free form the critics
of TD3 descend the Bellman error minus eta times an optimism: Q(s, a) on the batch (--optimism value), or Q(s, pi(s))
minus a soft maximum over the data's, another state's and a random action, which does not depend on the level of Q
(--optimism advantage).

The first --learning-starts steps take uniform random actions; one update follows each step after them.

Choose it when rewards are sparse and a bonus would need a network of its own.

The authors' runs on sparse rewards have --optimism advantage --optimism-weight 0.005; the defaults here are those of
their code without such arguments.

Parity: equal to the authors' code, update for update, but for whose Q of the data's action the second critic's soft
maximum takes (results/parity.md).

Deviations from the paper:
- the model-based form is not here;
- in the soft maximum, pi(s') stands for an action of another state, as in the authors' code, which takes Q_1 of the
  data's action for both critics: here each critic takes its own;
- weights begin as Flax's do (PyTorch's);
- one environment per lane, all lanes stepped together.

    python algorithms/online/mex.py --env PointUMaze-v0 --env-steps 20000 --seeds 8
    python algorithms/online/mex.py --env PointUMaze-v0 --optimism advantage --optimism-weight 0.005 --seeds 2
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
from shared.arguments import Count, Float, Fraction, OnlineArgs, Size, hyperparameters
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec, env_task
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "Pendulum-v1"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    optimism: Literal["value", "advantage"] = "value"
    """What the critics maximise: Q(s, a), or Q(s, pi(s)) minus a soft maximum over other actions."""
    optimism_weight: Float = 1e-3
    """eta' of the optimism in the critics' loss; 0: TD3."""
    exploration_noise: Float = 0.1
    """Standard deviation of the noise on the actor's actions in the environment."""
    learning_starts: Count = 25_000
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


PRESETS: dict[str, dict[str, Any]] = {}


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.tanh(nn.Dense(self.action_dim)(x))


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)[..., 0]


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
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def optimism(critic, agent: Agent, batch: Batch, key, args: Args):
    """What the critics maximise [E, B]: Q(s, a), or Q(s, pi(s)) - logsumexp of Q(s, .) at a, pi(s') and at random."""
    q_of = lambda action: q_values(agent.nets.critic, critic, batch.obs, action)  # noqa: E731
    if args.optimism == "value":
        return q_of(batch.action)
    pi, next_pi = (agent.nets.actor.apply(agent.actor, obs) for obs in (batch.obs, batch.next_obs))
    random = jax.random.uniform(key, pi.shape, minval=-1.0, maxval=1.0)
    others = jnp.stack([q_of(batch.action), q_of(next_pi), q_of(random)])
    return q_of(pi) - jax.nn.logsumexp(others, axis=0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """TD3's Bellman error minus eta' times the optimism; both summed over the two critics."""
    noise_key, random_key = jax.random.split(key)
    noise = args.policy_noise * jax.random.normal(noise_key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    hope = optimism(critic, agent, batch, random_key, args).mean(1).sum(0)
    error = ((q - y) ** 2).mean(1).sum(0)
    return error - args.optimism_weight * hope, {"q": q.mean(), "bellman_error": error, "optimism": hope}


def actor_loss(actor, agent: Agent, batch: Batch):
    """-Q_1(s, pi(s))"""
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, agent.nets.actor.apply(actor, batch.obs))
    chex.assert_equal_shape([q, batch.reward])
    return -q.mean(), {}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim), Critic(args.hidden_dims))
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


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, and a Polyak step of all targets."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, **info}


def sample(key, data, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the replay buffer."""
    return replay.sample(key, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """One critic step, and an actor step where environment step t is a multiple of `policy_delay`."""
    agent, critic_info = update_critic(agent, batch, key, args)

    def move(agent):  # what is seldom counts more, so that means over all steps are those over actor steps
        agent, info = update_actor(agent, batch, args)
        return agent, jax.tree.map(lambda x: args.policy_delay * x, info)

    def stay(agent):
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(move, agent)[1])

    agent, actor_info = jax.lax.cond(t % args.policy_delay == 0, move, stay, agent)
    return agent, {**critic_info, **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def explore(agent: Agent, obs, key, args: Args):
    """The policy's actions [B, A], noisy if asked for; the environment clips them."""
    action = act(agent, obs, None, args)
    return action + args.exploration_noise * jax.random.normal(key, action.shape)


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=False)
    with Run(__file__, args, task, act) as run:
        agent = run.init(partial(init, spec=task.spec))
        online = Interaction(
            run, None, explore, sample, update,
            warmup=args.learning_starts, random_warmup=True, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
