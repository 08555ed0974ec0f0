"""AWAC fine-tuning: Advantage-Weighted Actor-Critic offline, then with the same losses online.

Nair, Gupta, Dalal and Levine, "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", 2020,
arXiv 2006.09359. The policy is the data's, weighted by exp(A(s, a) / lambda) (algorithm 1), with the advantage from a
critic of the policy itself. The replay buffer begins with the whole dataset, every environment step appends one
transition of the sampled policy and is followed by one update of all networks on rows of both, drawn uniformly: the
constraint is to the whole buffer's actions, so that it loosens by itself while the policy improves.

Choose it when AWAC was the offline method and an environment is added; where the dip at the onset matters, see
iql_finetune.py first.

Parity: equal to CORL's finetune/awac.py, update for update (results/parity.md).

Deviations from the paper:
- weights are min(exp(A / lambda), 100) as in CORL; `--weight-mode softmax` normalises them over the batch, times
  its size, as the authors' code does;
- three hidden layers, batch 256, 1M offline updates and environment steps, lambda 0.1 (CORL, arXiv 2210.07105; the
  paper: 25k updates of batch 1024, then online);
- biases start at zero (PyTorch's default draws them like the weights);
- explored actions are clipped to [-1, 1].

    python algorithms/offline_to_online/awac_finetune.py --dataset hopper-medium --seeds 4
    python algorithms/offline_to_online/awac_finetune.py --dataset hopper-medium --from results/runs/awac/RUN
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
from shared.arguments import FinetuneArgs, Float, Fraction, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.online import Interaction
from shared.replay import Replay, sample_union
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    temperature: Positive = 0.1
    """Temperature that advantages are divided by, in units of Q: small follows the advantage, large clones."""
    weight_mode: Literal["exp", "softmax"] = "exp"
    """How advantages become weights: see above."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"temperature": 1 / 3}),  # of CORL's offline runs
    "antmaze": {"temperature": 0.1, "reward_shift": -1.0, "eval_episodes": 100},
    "maze2d": {"temperature": 0.1, "eval_episodes": 100},
}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    """Mean (not squashed) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        mean = nn.Dense(self.action_dim, kernel_init=dense_init)(x)
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
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
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def sample_actions(agent: Agent, obs, key):
    """Actions [B, A] of the current policy, clipped to [-1, 1]."""
    mean, log_std = agent.nets.actor.apply(agent.actor, obs)
    return jnp.clip(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape), -1.0, 1.0)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q(s, a))^2, a' ~ pi; summed over the two critics."""
    next_action = sample_actions(agent, batch.next_obs, key)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-w log pi(a|s), w = exp(A / lambda), A = min_i Q_i(s, a) - min_i Q_i(s, a~pi), both from the online critics."""
    v = q_values(agent.nets.critic, agent.critic, batch.obs, sample_actions(agent, batch.obs, key)).min(0)
    adv = q_values(agent.nets.critic, agent.critic, batch.obs, batch.action).min(0) - v
    if args.weight_mode == "softmax":
        weight = jax.nn.softmax(adv / args.temperature) * len(adv)
    else:
        weight = jnp.minimum(jnp.exp(adv / args.temperature), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    info = {"adv": adv.mean(), "weight": weight.mean(), "clipped": (weight >= args.max_weight).mean()}
    return -(jax.lax.stop_gradient(weight) * log_prob).mean(), info


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
        target_critic=critic,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B] uniform over the dataset and what was collected since."""
    return sample_union(key, data, replay, args.batch_size)


def update(agent: Agent, batch: Batch, key, args: Args, t=None) -> tuple[Agent, dict]:
    """One gradient step of the critics, then the actor with the new critics; offline and online alike."""
    critic_key, actor_key = jax.random.split(key)
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, **info_q, **info_pi}
    return agent.replace(target_critic=target_critic), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.clip(agent.nets.actor.apply(agent.actor, obs)[0], -1.0, 1.0)


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A], clipped to [-1, 1]."""
    return sample_actions(agent, obs, key)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(run, transitions, explore, sample, update, capacity=args.buffer_size)
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
