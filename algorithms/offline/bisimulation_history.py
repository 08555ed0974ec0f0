"""Bisimulation on histories: conservative Q-learning on what a recurrent network makes of observation histories.

Hong, Dragan and Levine, "Offline RL with Observation Histories: Analyzing and Improving Sample Complexity", ICLR 2024,
arXiv 2310.20663. Where the state is not observed, a policy reads the history of observations and actions; but no two
episodes share one, so that good parts of them cannot be put together. A bisimulation loss makes the representations z
of two histories as far apart as the rewards and next representations that a model predicts from them under the same
action; those that mean the same become one. It is added to the loss of discrete CQL (Kumar et al., NeurIPS 2020, arXiv
2006.04779), whose value alone (--bisimulation-weight 0) is logged all the same: it tells whether CQL finds such a
representation by itself.

Choose it when actions are discrete, what is observed is not the state, and episodes must be put together. Where rewards
are rare, only the predicted representations tell histories apart.

Deviations from the paper:
- it has no released code, and the sizes, weights and learning rates are choices of this file;
- the two histories of a pair are compared under the first one's action; the distance of the predicted Gaussians is the
  2-Wasserstein distance, times gamma, as in the bisimulation metric (Ferns et al.);
- the learner is CQL; the paper has ILQL for language beside it. Observations are vectors;
- a batch is of --batch-size histories, which begin --window-steps rows back; when the policy acts its recurrent state
  goes on from the episode's first step.

    python algorithms/offline/bisimulation_history.py --dataset cartpole-mixed --seeds 4 --updates 20000
    python algorithms/offline/bisimulation_history.py --dataset point-grid-mixed --episodes 40 \\
        --bisimulation-weight 0 0.1 1
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, require_context, sequences
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "combination-lock-h10-trajectory"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    bisimulation_weight: Float = 0.1
    """eta: weight of the bisimulation loss; 0: CQL on histories."""
    cql_alpha: Float = 0.5
    """Weight of the conservative penalty against the Bellman error."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    batch_size: Size = 32
    """Transitions per gradient update."""
    window_steps: Size = 10
    """Steps of a window of the data."""
    episodes: Count = 0
    """Episodes that are trained on, the same for all lanes; 0: all."""
    recurrent_dim: Size = 128
    """Units of the recurrent network that reads histories."""
    latent_dim: Size = 32
    """Size of the representations."""
    hidden_dims: tuple[int, ...] = (128, 128)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS: dict[str, dict[str, Any]] = {}


class Cell(nn.Module):
    """One step of a gated recurrent unit; where `mask` [B] is 0 its state stays as it is."""

    @nn.compact
    def __call__(self, h, step):
        x, mask = step
        reset, keep = jnp.split(nn.sigmoid(nn.Dense(2 * h.shape[-1])(jnp.concatenate([x, h], -1))), 2, -1)
        new = jnp.tanh(nn.Dense(h.shape[-1])(jnp.concatenate([x, reset * h], -1)))
        h = jnp.where(mask[..., None] > 0, keep * h + (1.0 - keep) * new, h)
        return h, h


class History(nn.Module):
    """z of every history: the state h [B, H] before, x = (o_t, a_{t-1}) [B, T, X] -> h after, z [B, T, Z]."""

    latent_dim: int

    @nn.compact
    def __call__(self, h, x, mask):
        scan = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        h, states = scan(name="cell")(h, (x, mask))
        return h, nn.Dense(self.latent_dim)(states)


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.output_dim)(x)


class Networks(NamedTuple):
    history: History
    critic: MLP
    """Q(z, .) [..., A]"""
    model: MLP
    """Of every action the reward, and mean and log standard deviation of the next z: [..., A (1 + 2 Z)]."""
    spec: Spec


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    history: Any
    target_history: Any
    critic: Any
    target_critic: Any
    model: Any
    opt: optax.OptState
    """Of all three together."""


class Carry(NamedTuple):
    """What the policy remembers of one episode."""

    h: jax.Array
    """[H]"""
    action: jax.Array
    """[A] the last action, one-hot; 0 before the first."""


class Predicted(NamedTuple):
    """What the model says of representations and actions, [...] each."""

    reward: jax.Array
    mean: jax.Array
    """[..., Z] of the next representation."""
    std: jax.Array


def encode(agent: Agent, history, window: Window, args: Args):
    """z of the histories that end at each step of windows [B, K], and at the observation after the last: [B, K + 1, Z].

    z[:, t + 1] is that of the history behind z[:, t], one step later.
    """
    action = jax.nn.one_hot(window.action, agent.nets.spec.action_dim) * window.mask[..., None]
    obs = jnp.concatenate([window.obs, window.next_obs[:, -1:]], axis=1)
    before = jnp.concatenate([jnp.zeros_like(action[:, :1]), action], axis=1)
    mask = jnp.concatenate([window.mask, jnp.ones_like(window.mask[:, :1])], axis=1)
    h = jnp.zeros((len(obs), args.recurrent_dim))
    return agent.nets.history.apply(history, h, jnp.concatenate([obs, before], axis=-1), mask)[1]


def chosen(values, action):
    """values [..., A] or [..., A, Z] of the actions [...]."""
    index = action.reshape(*action.shape, *(1,) * (values.ndim - action.ndim))
    return jnp.take_along_axis(values, index, axis=action.ndim).squeeze(action.ndim)


def predict(agent: Agent, model, z, action) -> Predicted:
    """r(z, a), and the Gaussian of the next z, for z [..., Z] and actions [...]."""
    n, size = agent.nets.spec.action_dim, z.shape[-1]
    out = agent.nets.model.apply(model, z).reshape(*z.shape[:-1], n, 1 + 2 * size)
    out = chosen(out, action)
    return Predicted(out[..., 0], out[..., 1 : 1 + size], jnp.exp(jnp.clip(out[..., 1 + size :], -5.0, 2.0)))


def bisimulation_target(one: Predicted, other: Predicted, discount):
    """|r_i - r_j| + gamma W_2(P_i, P_j), of Gaussians with diagonal covariances: W_2^2 = |mu_i - mu_j|^2 +
    |sigma_i - sigma_j|^2."""
    square = ((one.mean - other.mean) ** 2 + (one.std - other.std) ** 2).sum(-1)
    return jnp.abs(one.reward - other.reward) + discount * jnp.sqrt(square)


def bisimulation_loss(z, partner, target, valid):
    """(|z_i - z_j| - target_ij)^2, mean over the pairs i, j = partner[i] that are valid; z [N, Z], others [N]."""
    distance = jnp.sqrt(((z - z[partner]) ** 2).sum(-1) + 1e-8)
    return (valid * (distance - target) ** 2).sum() / jnp.maximum(valid.sum(), 1.0)


def masked_mean(x, mask):
    return (x * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def rl_loss(critic, agent: Agent, z, target_z, window: Window, args: Args):
    """Discrete CQL on z and z' (z [B, K + 1, Z]): double DQN's squared error, and logsumexp Q(z, .) - Q(z, a)."""
    q = agent.nets.critic.apply(critic, z[:, :-1])
    greedy = agent.nets.critic.apply(agent.critic, jax.lax.stop_gradient(z[:, 1:])).argmax(-1)
    target_q = chosen(agent.nets.critic.apply(agent.target_critic, target_z[:, 1:]), greedy)
    y = window.reward + args.discount * (1.0 - window.terminal) * target_q
    taken = chosen(q, window.action)
    chex.assert_equal_shape([y, taken, window.mask])
    bellman = masked_mean((taken - jax.lax.stop_gradient(y)) ** 2, window.mask)
    gap = masked_mean(jax.nn.logsumexp(q, axis=-1) - taken, window.mask)
    info = {"bellman_loss": bellman, "gap": gap, "q": masked_mean(taken, window.mask)}
    return bellman + args.cql_alpha * gap, info


def model_loss(model, agent: Agent, z, target_z, window: Window):
    """(r(z, a) - r)^2 and -log P(z' | z, a), summed over the dimensions of z'; z' of the target networks."""
    found = predict(agent, model, z[:, :-1], window.action)
    reward = masked_mean((found.reward - window.reward) ** 2, window.mask)
    log_prob = jax.scipy.stats.norm.logpdf(target_z[:, 1:], found.mean, found.std).sum(-1)
    follows = window.mask * (1.0 - window.terminal)
    return reward - masked_mean(log_prob, follows), {"reward_loss": reward}


def loss(params: tuple, agent: Agent, window: Window, partner, args: Args):
    """The losses of CQL, of bisimulation and of the model; no gradient of the model's loss reaches z, none of z it.

    `partner` [B K]: a permutation, which pairs all steps of the batch.
    """
    history, critic, model = params
    z = encode(agent, history, window, args)
    target_z = encode(agent, agent.target_history, window, args)
    value, info = rl_loss(critic, agent, z, target_z, window, args)
    fit, more = model_loss(model, agent, jax.lax.stop_gradient(z), target_z, window)

    rows, slow, action, mask = (
        x.reshape(-1, *x.shape[2:]) for x in (z[:, :-1], target_z[:, :-1], window.action, window.mask)
    )
    one, other = (predict(agent, agent.model, x, action) for x in (slow, slow[partner]))
    target = jax.lax.stop_gradient(bisimulation_target(one, other, args.discount))
    bisimulation = bisimulation_loss(rows, partner, target, mask * mask[partner])
    info |= {"bisimulation_loss": bisimulation, "distance": masked_mean(target, mask * mask[partner]), **more}
    middle = (mask[:, None] * rows).sum(0) / jnp.maximum(mask.sum(), 1.0)
    info["latent_std"] = jnp.sqrt(masked_mean(((rows - middle) ** 2).mean(-1), mask))
    return value + args.bisimulation_weight * bisimulation + fit, info


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    n = spec.action_dim
    model = MLP(args.hidden_dims, n * (1 + 2 * args.latent_dim))
    nets = Networks(History(args.latent_dim), MLP(args.hidden_dims, n), model, spec)
    history_key, critic_key, model_key = jax.random.split(key, 3)
    h, x, z = jnp.zeros((1, args.recurrent_dim)), jnp.zeros((1, 1, *spec.obs_shape)), jnp.zeros((1, args.latent_dim))
    x = jnp.concatenate([x, jnp.zeros((1, 1, n))], axis=-1)
    history = nets.history.init(history_key, h, x, jnp.ones((1, 1)))
    critic, model = nets.critic.init(critic_key, z), nets.model.init(model_key, z)
    return Agent(
        nets=nets,
        history=history,
        target_history=history,
        critic=critic,
        target_critic=critic,
        model=model,
        opt=optax.adam(args.learning_rate).init((history, critic, model)),
    )


def update(agent: Agent, window: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything on windows [B, K], and a Polyak step of the targets."""
    partner = jax.random.permutation(key, window.mask.size)
    params = agent.history, agent.critic, agent.model
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, agent, window, partner, args)
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    history, critic, model = optax.apply_updates(params, updates)
    agent = agent.replace(
        history=history,
        target_history=optax.incremental_update(history, agent.target_history, args.tau),
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        model=model,
        opt=opt,
    )
    return agent, {"loss": value, **info}


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(jnp.zeros(args.recurrent_dim), jnp.zeros(agent.nets.spec.action_dim))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B], greedy in Q, and what to remember."""
    x = jnp.concatenate([obs, carry.action], axis=-1)[:, None]
    h, z = agent.nets.history.apply(agent.history, carry.h, x, jnp.ones((len(obs), 1)))
    action = agent.nets.critic.apply(agent.critic, z[:, 0]).argmax(-1)
    return action, Carry(h, jax.nn.one_hot(action, agent.nets.spec.action_dim))


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        row_key, update_key = jax.random.split(key)
        return update(agent, data.until(data.rows(row_key, args.batch_size), args.window_steps), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    require_context(data, args.window_steps, "--window-steps")
    data = data.some_episodes(args.episodes).scale_rewards(args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    fields = "obs", "action", "reward", "terminal", "next_obs"
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, *fields))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
