"""R-BVE: Regularised Behaviour Value Estimation, for discrete actions.

Gulcehre, Gomez Colmenarejo, Wang, Sygnowski, Paine, Zolna, Chen, Hoffman, Pascanu and de Freitas, "Regularized Behavior
Value Estimation", 2021, arXiv 2103.09575. Q is the behaviour's: it regresses to r + gamma Q(s', a') with the data's own
next action, so that no maximum over actions is ever learned, and the policy improves once, when it acts by the largest
Q. There actions without data would win: a ranking loss holds each of them under the recorded one, by a margin, and the
more so the better the episode went on.

Choose it when actions are discrete and few of them occur in each state: a single step of improvement is stable.

Deviations from the paper:
- the weight of a row is the exponential of its return-to-go, in standard deviations over the mean of the data's and
  divided by beta_G, clipped, and divided by the batch's mean weight, so that alpha keeps its meaning; alpha, beta_G and
  the clip are ours, since no code of the ranking loss was released;
- rows that a time limit cuts are left out: they have no next action;
- targets follow by Polyak steps (the paper copies them).

    python algorithms/offline/r_bve.py --dataset cartpole-mixed --seeds 4 --updates 20000 --hidden-dims 64 64
    python algorithms/offline/r_bve.py --dataset point-grid-expert --ranking-weight 0 0.5 5 --seeds 4 --updates 10000
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
from shared.arguments import Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, TransitionsWithReturns


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "cartpole-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    ranking_weight: Float = 0.5
    """alpha: weight of the ranking loss against the Bellman error; 0: values of the behaviour alone (BVE)."""
    margin: Float = 0.05
    """nu: by how much the recorded action's Q shall be above the others'."""
    return_temperature: Positive = 2.0
    """beta_G: standard deviations of the return-to-go that a weight of e belongs to; large: all rows weigh alike."""
    max_return_weight: Positive = 20.0
    """Clip of these weights."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    batch_size: Size = 256
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


class Critic(nn.Module):
    """Q(s, .) [B, A]"""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init)(x)


class Networks(NamedTuple):
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    target_critic: Any
    critic_opt: optax.OptState


def of_action(q, action):
    """[B] Q of one action each."""
    return jnp.take_along_axis(q, action[:, None], axis=1)[:, 0]


def behaviour_loss(q, agent: Agent, batch: Batch, args: Args):
    """Huber(Q(s, a) - r - gamma target Q(s', a')), a' the data's next action, for q [B, A]."""
    next_q = of_action(agent.nets.critic.apply(agent.target_critic, batch.next_obs), batch.next_action)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    chosen = of_action(q, batch.action)
    chex.assert_shape([y, chosen], (args.batch_size,))
    return optax.losses.huber_loss(chosen, y, delta=1.0).mean()


def return_weight(return_to_go, args: Args):
    """min(exp(G / beta_G), clip) over their mean [B], of standardised returns-to-go G [B]."""
    weight = jnp.minimum(jnp.exp(return_to_go / args.return_temperature), args.max_return_weight)
    return weight / weight.mean()


def ranking_loss(q, batch: Batch, args: Args):
    """w sum_{i != a} max(Q(s, i) - Q(s, a) + nu, 0)^2, w by the return-to-go, for q [B, A]."""
    over = jnp.maximum(q - of_action(q, batch.action)[:, None] + args.margin, 0.0) ** 2
    others = 1.0 - jax.nn.one_hot(batch.action, q.shape[-1])
    return (return_weight(batch.return_to_go, args) * (others * over).sum(-1)).mean()


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """The behaviour's Bellman error plus alpha times the ranking loss."""
    q = agent.nets.critic.apply(critic, batch.obs)
    bellman = behaviour_loss(q, agent, batch, args)
    ranking = ranking_loss(q, batch, args)
    agrees = (q.argmax(-1) == batch.action).mean()
    info = {"bellman_loss": bellman, "ranking_loss": ranking, "q": q.mean(), "agrees": agrees}
    return bellman + args.ranking_weight * ranking, info


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Critic(args.hidden_dims, spec.action_dim))
    critic = nets.critic.init(key, jnp.zeros((1, *spec.obs_shape)))
    return Agent(nets=nets, critic=critic, target_critic=critic, critic_opt=optax.adam(args.learning_rate).init(critic))


def update(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of Q, and a Polyak step of its target."""
    (loss, info), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.learning_rate).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    return agent.replace(critic=critic, target_critic=target_critic, critic_opt=critic_opt), {
        "critic_loss": loss,
        **info,
    }


def act(agent: Agent, obs, key, args: Args):
    """Actions [B]: the only step of improvement, argmax Q(s, .)."""
    return agent.nets.critic.apply(agent.critic, obs).argmax(-1)


def standardized(data: TransitionsWithReturns, args: Args) -> TransitionsWithReturns:
    """A lane's own returns-to-go alone, with mean 0 and standard deviation 1 over the data."""
    mine = data.return_to_go[jnp.abs(data.discounts - args.discount).argmin()]
    mine = (mine - mine.mean()) / (mine.std() + 1e-8)
    return data._replace(discounts=jnp.reshape(args.discount, 1), return_to_go=mine[None])


def train(agent: Agent, keys, args: Args, data: TransitionsWithReturns) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""
    data = standardized(data, args)

    def step(agent, key):
        return update(agent, data.sample(key, args.batch_size, args.discount), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        fields, discounts = (*FIELDS, "next_action"), np.unique(run.lane_args.discount)
        returns = np.stack([data.return_to_go(float(discount))[data.usable(*fields)] for discount in discounts])
        rows = run.replicate(TransitionsWithReturns(data.transitions(*fields), discounts, returns))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, rows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
