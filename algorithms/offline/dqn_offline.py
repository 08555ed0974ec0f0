"""Offline DQN: double DQN and QR-DQN on a log of discrete actions, alone, as discrete BCQ, or with CQL's penalty.

Double DQN: van Hasselt, Guez and Silver, AAAI 2016, arXiv 1509.06461. QR-DQN (--n-quantiles 32): Dabney, Rowland,
Bellemare and Munos, AAAI 2018, arXiv 1710.10044: each action has quantiles of its return's distribution, and their mean
decides. --method bcq: Fujimoto, Conti, Ghavamzadeh and Pineau, "Benchmarking Batch Deep Reinforcement Learning
Algorithms", arXiv 1910.01708: a second network imitates the behaviour, and actions that it finds less likely than a
share of the likeliest one are never taken, neither by the policy nor by the target. --method cql: Kumar, Zhou, Tucker
and Levine, NeurIPS 2020, arXiv 2006.04779: log sum_a exp Q(s, a) - Q(s, a_data) is lowered.

Choose it when actions are discrete: --method bcq where some of them are rare in the data, cql where all occur, none to
see what is gained by either.

Parity: --method bcq is equal to the authors' code, plain DQN and --method cql with quantiles to d3rlpy's, update for
update (results/parity.md).

Deviations from the papers:
- observations are vectors: the settings for Atari's frames, and its clipped rewards, are not here;
- BCQ's behaviour network shares no layer with Q, as in the authors' code for vectors;
- targets follow by Polyak steps; --copy-every copies them as for Atari;
- biases start at zero (PyTorch's default draws them like the weights).

    python algorithms/offline/dqn_offline.py --dataset cartpole-mixed --method bcq --seeds 4 --updates 20000
    python algorithms/offline/dqn_offline.py --dataset icu-sepsis-mixed --method cql --cql-alpha 0 0.1 1 --seeds 4
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "cartpole-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    method: Literal["none", "bcq", "cql"] = "bcq"
    """What keeps the policy to the data: nothing, the behaviour's likely actions (bcq), or lowered values (cql)."""
    n_quantiles: Count = 0
    """Quantiles of the return's distribution that each action has (QR-DQN); 0: its mean alone."""
    double: bool = True
    """The online network chooses the next action, whose target value is learned; else the target network itself."""
    bcq_threshold: Fraction = 0.3
    """bcq: least probability of an action, as a share of the likeliest one's, in [0, 1]; 0: double DQN."""
    logit_weight: Float = 0.01
    """bcq: weight of the mean squared logits of the behaviour network."""
    cql_alpha: Float = 1.0
    """Weight of the conservative penalty against the Bellman error."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    copy_every: Count = 0
    """Updates between two copies of the network to its target, in place of Polyak steps; 0: none."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS: dict[str, dict[str, Any]] = {}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.output_dim, kernel_init=dense_init)(x)


class Networks(NamedTuple):
    critic: MLP
    behaviour: MLP
    """Logits of the data's actions [B, A]."""
    action_dim: int


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    target_critic: Any
    behaviour: Any
    """None: nothing imitates the data."""
    opt: optax.OptState
    """Of the critic and the behaviour network together."""
    updates: jax.Array
    """[] updates so far."""


def returns_of(agent: Agent, critic, obs):
    """[B, A, M]: M quantiles of each action's return, or its mean (M = 1)."""
    outputs = agent.nets.critic.apply(critic, obs)
    return outputs.reshape(*outputs.shape[:-1], agent.nets.action_dim, -1)


def allowed(agent: Agent, obs, args: Args):
    """[B, A] bool: which actions the policy and the target may take; the likeliest one always."""
    if args.method != "bcq":
        return jnp.ones((*obs.shape[:-1], agent.nets.action_dim), bool)
    log_prob = nn.log_softmax(agent.nets.behaviour.apply(agent.behaviour, obs))
    highest = log_prob.max(-1, keepdims=True)
    return (log_prob - highest > jnp.log(args.bcq_threshold)) | (log_prob == highest)


def greedy(agent: Agent, critic, obs, args: Args):
    """[B] the best of the allowed actions by the mean return."""
    q = returns_of(agent, critic, obs).mean(-1)
    return jnp.where(allowed(agent, obs, args), q, -jnp.inf).argmax(-1)


def target(agent: Agent, batch: Batch, args: Args):
    """r + gamma theta_j(s', a*) [B, M] of the target network; a* is greedy for the online one (double) or it."""
    chooser = agent.critic if args.double else agent.target_critic
    action = greedy(agent, chooser, batch.next_obs, args)
    values = returns_of(agent, agent.target_critic, batch.next_obs)
    values = jnp.take_along_axis(values, action[:, None, None], axis=1)[:, 0]
    return batch.reward[:, None] + args.discount * (1.0 - batch.terminal)[:, None] * values


def huber(x):
    """x^2 / 2 up to 1, linear beyond."""
    return optax.losses.huber_loss(x, delta=1.0)


def bellman_loss(values, y):
    """Quantile regression (QR-DQN, eq. 10): |tau_i - 1(u_ij < 0)| huber(u_ij), u_ij = y_j - theta_i, summed over i,
    averaged over j, for `values` theta [B, M] and targets y [B, M]; of a mean (M = 1) the Huber loss itself."""
    u = y[:, None, :] - values[:, :, None]  # [B, i, j]
    n = values.shape[-1]
    levels = (jnp.arange(n) + 0.5) / n
    weight = jnp.abs(levels[:, None] - (u < 0)) if n > 1 else 1.0
    return (weight * huber(u)).mean(2).sum(1).mean()


def critic_loss(params: tuple, agent: Agent, batch: Batch, args: Args):
    """The Bellman error, and with bcq the behaviour network's cross-entropy, with cql the conservative penalty."""
    critic, behaviour = params
    values = returns_of(agent, critic, batch.obs)
    y = target(agent, batch, args)
    chosen = jnp.take_along_axis(values, batch.action[:, None, None], axis=1)[:, 0]
    chex.assert_equal_shape([chosen, y])
    loss = bellman = bellman_loss(chosen, y)
    q = values.mean(-1)
    info = {"bellman_loss": bellman, "q": chosen.mean(), "q_max": q.max(-1).mean()}
    if args.method == "cql":
        gap = (jax.nn.logsumexp(q, axis=-1) - chosen.mean(-1)).mean()
        loss, info = loss + args.cql_alpha * gap, {**info, "gap": gap}
    if args.method == "bcq":
        logits = agent.nets.behaviour.apply(behaviour, batch.obs)
        cloning = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.action).mean()
        loss = loss + cloning + args.logit_weight * (logits**2).mean()
        info = {**info, "behaviour_loss": cloning, "allowed": allowed(agent, batch.obs, args).mean()}
    return loss, info


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    n = spec.action_dim
    nets = Networks(MLP(args.hidden_dims, n * max(1, args.n_quantiles)), MLP(args.hidden_dims, n), n)
    critic_key, behaviour_key = jax.random.split(key)
    obs = jnp.zeros((1, *spec.obs_shape))
    critic = nets.critic.init(critic_key, obs)
    behaviour = nets.behaviour.init(behaviour_key, obs) if args.method == "bcq" else None
    return Agent(
        nets=nets,
        critic=critic,
        target_critic=critic,
        behaviour=behaviour,
        opt=optax.adam(args.learning_rate).init((critic, behaviour)),
        updates=jnp.int32(0),
    )


def update(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of Q and of the behaviour network, and a step of the target."""
    params = agent.critic, agent.behaviour
    (loss, info), grads = jax.value_and_grad(critic_loss, has_aux=True)(params, agent, batch, args)
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    critic, behaviour = optax.apply_updates(params, updates)
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    agent = agent.replace(
        critic=critic,
        behaviour=behaviour,
        target_critic=optax.incremental_update(critic, agent.target_critic, step),
        opt=opt,
        updates=agent.updates + 1,
    )
    return agent, {"critic_loss": loss, **info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B]: the best of the allowed ones."""
    return greedy(agent, agent.critic, obs, args)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        return update(agent, transitions.sample(key, args.batch_size), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
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
