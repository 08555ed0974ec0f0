"""SPL: semi-pessimistic RL, from data of which few transitions have a reward.

Zhu, Zhou, Yao, Aminian, Rivasplata, Little, Li and Shi, "Semi-pessimistic Reinforcement Learning", 2025, arXiv
2505.19002. Pessimism enters once, in the reward: an ensemble of reward models R_m(s, a) is fitted to bootstrap samples
of the labelled data before the first update; transitions without a reward get a lower bound of it, mean_m R_m -
pessimism std_m R_m. A learner without further pessimism then learns from both: double DQN for discrete actions, TD3+BC
(Fujimoto and Gu, arXiv 2106.06860) for continuous ones.

--pessimism 0 is the models' mean; with --impute zero the others get 0 (UDS: Yu et al., ICML 2022, arXiv 2202.01741),
with --impute none they are left out: what the bound is compared with. --labelled-fraction 1 has all true rewards.

Choose it when few episodes have rewards, of a narrow policy, and there is much broader data without: what is not known
to be good is not promised. Where the reward models err in the same way, the bound is none.

Deviations from the paper:
- it has no released code: the ensemble, its size, the bootstrap by episodes (--labelled-unit episodes, else by
  transitions), the bound by standard deviations, clipped to the rewards that are known, are choices of this file;
- its model-based form is not here;
- continuous actions keep TD3+BC's pull to the data and its least of two critics: TD3 alone diverges offline. The actor
  is updated with every update of the critics;
- with discrete actions, too, the least of two critics chooses and is bootstrapped from, which is a little pessimistic
  beside the bound; double DQN has one critic;
- TD3+BC's standardised states are not here: the networks of the learner see the states as they are.

    python algorithms/imitation/semi_pessimistic.py --dataset point-hazard-explore --seeds 8 --pessimism 0 1 2
    python algorithms/imitation/semi_pessimistic.py --dataset point-grid-mixed --labelled-fraction 0.05 --seeds 8
    python algorithms/imitation/semi_pessimistic.py --dataset pendulum-mixed --updates 1000 --write-dataset low.npz
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
from shared.arguments import Float, Fraction, LabelArgs, Size, hyperparameters
from shared.data import Dataset, moments
from shared.errors import InputError
from shared.parts import load_labelled, relabelled, write_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(LabelArgs):
    dataset: str = "pendulum-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    impute: Literal["model", "zero", "none"] = "model"
    """Rewards of transitions without one: the model's, 0, or none: they are left out."""
    pessimism: Float = 1.0
    """Standard deviations, of an ensemble or of futures, by which a bound lies below their mean; 0: the mean."""
    keep_known: bool = True
    """Rewards that are known stay as they are; else they are replaced by the bound, too."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    n_models: Size = 10
    """Models in the ensemble."""
    reward_updates: int = 5_000
    """Gradient updates of the reward model before the first of the learner."""
    reward_batch: Size = 256
    """Transitions per gradient update of the reward model."""
    reward_hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layers of the reward model."""
    reward_lr: Float = 1e-3
    """Adam's step size: reward model."""
    reward_decay: Float = 1e-4
    """Weight decay of the reward model (AdamW)."""
    unit_reward_std: bool = True
    """Divide rewards by the standard deviation of those that are known."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""


PRESETS = {}

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class Actor(nn.Module):
    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))


class Critic(nn.Module):
    """Q(s, a) [B]; or, with `outputs` discrete actions, Q(s, .) [B, outputs]."""

    hidden_dims: tuple[int, ...]
    outputs: int = 1

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        x = nn.Dense(self.outputs, kernel_init=dense_init)(x)
        return x[..., 0] if action is not None else x


class Reward(nn.Module):
    """R(s, a) [B] of standardised inputs, in units of the labelled rewards' standard deviation."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor | None
    """None: discrete actions, the policy is the greedy one."""
    critic: Critic
    reward: Reward
    action_dim: int


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    critic_opt: optax.OptState
    reward: Any
    """M reward models, stacked on a leading axis."""
    reward_opt: optax.OptState
    bootstrap: jax.Array
    """[2] the key of the bootstrap samples."""
    actor: Any = None
    target_actor: Any = None
    actor_opt: optax.OptState = None


class Scales(NamedTuple):
    """Statistics of the data's inputs (all rows) and of the rewards that are known."""

    input_mean: jax.Array
    """[O + A]"""
    input_std: jax.Array
    reward_mean: jax.Array
    reward_std: jax.Array
    reward_low: jax.Array
    reward_high: jax.Array


class Imputable(NamedTuple):
    """A dataset on the device of which some rows have a reward."""

    transitions: Transitions
    """All rows that are trained on, rewards 0 where there is none."""
    labelled: jax.Array
    """[N] 1 where a row's reward is known"""
    known: Transitions
    """The labelled rows, to which the models are fitted."""
    unit: jax.Array
    """[K] the number of their episode among those that are labelled, or their own: what the bootstrap draws."""
    compared: Batch
    """Rows without a reward, with their true ones: the bound is compared with them, nothing is learned from it."""
    scales: Scales


COMPARED = 2_000
"""Rows without a reward that the bound is compared with the truth by."""


def inputs_of(nets: Networks, batch: Batch):
    """[B, O + A] of the reward models."""
    action = jax.nn.one_hot(batch.action, nets.action_dim) if nets.actor is None else batch.action
    return jnp.concatenate([batch.obs, action], axis=-1)


def predict(rewards, nets: Networks, batch: Batch, scales: Scales):
    """R_m(s, a) [M, B], in the units of the rewards."""
    x = (inputs_of(nets, batch) - scales.input_mean) / scales.input_std
    return scales.reward_mean + scales.reward_std * jax.vmap(nets.reward.apply, (0, None))(rewards, x)


def reward_loss(rewards, nets: Networks, batch: Batch, counts, scales: Scales):
    """((R_m(s, a) - r) / std(r))^2, mean over the bootstrap sample of each model (`counts` [M, B]); summed over m."""
    error = ((predict(rewards, nets, batch, scales) - batch.reward) / scales.reward_std) ** 2
    return ((counts * error).sum(1) / jnp.maximum(counts.sum(1), 1.0)).sum()


def reward_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adamw(args.reward_lr, weight_decay=args.reward_decay)


def bootstrapped(agent: Agent, unit, args: Args):
    """[M, K] how often the unit of each labelled row is in the sample of each reward model: as many units as there are,
    drawn with replacement, of `unit` [K], their numbers from 0."""
    place, units = jnp.arange(len(unit)), unit.max() + 1
    drawn = jax.random.randint(jax.random.wrap_key_data(agent.bootstrap), (args.n_models, len(unit)), 0, units)
    counts = jnp.zeros(drawn.shape).at[jnp.arange(args.n_models)[:, None], drawn].add(place < units)
    return counts[:, unit]


def fit(agent: Agent, keys, args: Args, data: Imputable) -> tuple[Agent, dict]:
    """One lane, reward phase: one update of all reward models per key; mean metrics."""
    times = bootstrapped(agent, data.unit, args)

    def step(agent, key):
        row = data.known.draw(key, args.reward_batch)
        batch, counts = data.known.take(row), times[:, row]
        loss, grads = jax.value_and_grad(reward_loss)(agent.reward, agent.nets, batch, counts, data.scales)
        updates, reward_opt = reward_optimizer(args).update(grads, agent.reward_opt, agent.reward)
        agent = agent.replace(reward=optax.apply_updates(agent.reward, updates), reward_opt=reward_opt)
        return agent, loss / args.n_models

    agent, loss = jax.lax.scan(step, agent, keys)
    return agent, {"reward_loss": loss.mean(), **accuracy(agent, data, args)}


def lower_bound(agent: Agent, batch: Batch, scales: Scales, args: Args):
    """mean_m R_m - pessimism std_m R_m [B], no lower and no higher than any reward that is known."""
    rewards = predict(agent.reward, agent.nets, batch, scales)
    return jnp.clip(rewards.mean(0) - args.pessimism * rewards.std(0), scales.reward_low, scales.reward_high)


def imputed(agent: Agent, batch: Batch, labelled, scales: Scales, args: Args):
    """[B]: the reward where it is known, else its lower bound (or 0)."""
    other = lower_bound(agent, batch, scales, args) if args.impute == "model" else 0.0
    return jnp.where((labelled > 0) & (args.keep_known or args.impute != "model"), batch.reward, other)


def accuracy(agent: Agent, data: Imputable, args: Args) -> dict:
    """Of rows whose true rewards are hidden: R^2 of what is imputed, the share of true rewards that are no lower, the
    models' mean standard deviation; none without such rows, or without models."""
    if args.impute != "model" or not len(data.compared.reward):
        return {}
    true = data.compared.reward
    bound = lower_bound(agent, data.compared, data.scales, args)
    spread = predict(agent.reward, agent.nets, data.compared, data.scales).std(0).mean()
    r2 = 1.0 - ((bound - true) ** 2).mean() / jnp.maximum(true.var(), 1e-12)
    return {"label_r2": r2, "label_below": (bound <= true + 1e-3 * data.scales.reward_std).mean(), "label_std": spread}


def q_values(net: Critic, critics, *inputs):
    """[E, B], or [E, B, outputs]"""
    return jax.vmap(net.apply, (0, *(None,) * len(inputs)))(critics, *inputs)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Squared Bellman errors, summed over the two critics: of TD3 with a smoothed target action; of double DQN, whose
    next action and its value are those of the least of the two."""
    net = agent.nets.critic
    if agent.nets.actor is None:
        rows = jnp.arange(args.batch_size)
        next_action = q_values(net, agent.critic, batch.next_obs).min(0).argmax(-1)
        target_q = q_values(net, agent.target_critic, batch.next_obs)[:, rows, next_action].min(0)
        q = q_values(net, critic, batch.obs)[:, rows, batch.action]
    else:
        noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
        next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
        next_action = jnp.clip(next_action, -1.0, 1.0)
        target_q = q_values(net, agent.target_critic, batch.next_obs, next_action).min(0)
        q = q_values(net, critic, batch.obs, batch.action)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - jax.lax.stop_gradient(y)) ** 2).mean(1).sum(0), {"q": q.mean(), "reward": batch.reward.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1| (TD3+BC's eq. 3 and 5)."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    first_critic = jax.tree.map(lambda x: x[0], agent.critic)
    q = agent.nets.critic.apply(first_critic, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    actor = None if spec.discrete else Actor(args.hidden_dims, spec.action_dim)
    critic = Critic(args.hidden_dims, spec.action_dim if spec.discrete else 1)
    nets = Networks(actor, critic, Reward(args.reward_hidden_dims), spec.action_dim)
    actor_key, critic_key, reward_key, bootstrap_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    inputs = (obs,) if spec.discrete else (obs, action)
    critic = jax.lax.map(lambda k: nets.critic.init(k, *inputs), jax.random.split(critic_key, 2))
    one = jnp.concatenate([obs, action], axis=-1)
    reward = jax.lax.map(lambda k: nets.reward.init(k, one), jax.random.split(reward_key, args.n_models))
    agent = Agent(
        nets=nets,
        critic=critic,
        target_critic=critic,
        critic_opt=optax.adam(args.critic_lr).init(critic),
        reward=reward,
        reward_opt=reward_optimizer(args).init(reward),
        bootstrap=jax.random.key_data(bootstrap_key),
    )
    if spec.discrete:
        return agent
    actor = nets.actor.init(actor_key, obs)
    return agent.replace(actor=actor, target_actor=actor, actor_opt=optax.adam(args.actor_lr).init(actor))


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the critics, of the actor with the new critics, and a Polyak step of the targets."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    agent = agent.replace(critic=critic, target_critic=target_critic, critic_opt=critic_opt)
    info = {"critic_loss": loss, **info}
    if agent.nets.actor is not None:
        (loss, more), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
        updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
        actor = optax.apply_updates(agent.actor, updates)
        target_actor = optax.incremental_update(actor, agent.target_actor, args.tau)
        agent = agent.replace(actor=actor, target_actor=target_actor, actor_opt=actor_opt)
        info |= {"actor_loss": loss, **more}
    return agent, info


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic; discrete: [B] indices, greedy in min_i Q_i."""
    if agent.nets.actor is None:
        return q_values(agent.nets.critic, agent.critic, obs).min(0).argmax(-1)
    return agent.nets.actor.apply(agent.actor, obs)


def train(agent: Agent, keys, args: Args, data: Imputable) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""
    scale = 1.0 / data.scales.reward_std if args.unit_reward_std else 1.0

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        index = data.transitions.draw(batch_key, args.batch_size)
        batch = data.transitions.take(index)
        reward = scale * imputed(agent, batch, data.labelled[index], data.scales, args)
        return update(agent, batch._replace(reward=reward), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **accuracy(agent, data, args)}


def batch_of(data: Dataset) -> Batch:
    """All rows."""
    return Batch(*map(jnp.asarray, (data.obs, data.action, data.reward, data.terminal, data.next_obs)))


def imputable(data: Dataset, labelled: np.ndarray, truth: np.ndarray, args: Args) -> Imputable:
    """The rows that are trained on, those that the models are fitted to, and some to compare with the `truth` [N].

    Raises:
      InputError: no labelled row can be used.
    """
    usable = data.usable()
    known = np.flatnonzero(usable & labelled)
    if not len(known):
        raise InputError(f"'{data.task.id}': no labelled row is followed by another.")
    group = data.episode()[known] if args.labelled_unit == "episodes" else known
    action = np.eye(data.spec.action_dim)[data.action] if data.spec.discrete else data.action
    inputs, rewards = np.concatenate([data.obs, action], axis=1)[usable], data.reward[known]
    low, high = rewards.min(), rewards.max()
    scales = Scales(*moments(inputs), *moments(rewards, 1e-12), low, high)
    filled = data.replace({}, reward=np.where(labelled, data.reward, 0.0).astype(np.float32))
    rows = usable & labelled if args.impute == "none" else usable
    unlabelled = np.random.default_rng(0).permutation(np.flatnonzero(usable & ~labelled))[:COMPARED]
    return Imputable(
        filled.select(rows).transitions(),
        jnp.asarray(labelled[rows], jnp.float32),
        filled.select(known).transitions(),
        jnp.asarray(np.unique(group, return_inverse=True)[1], jnp.int32),
        batch_of(data.replace({}, reward=truth).select(unlabelled)),
        jax.tree.map(jnp.float32, scales),
    )


def write_labels(lane_args: Args, agent: Agent, data: Dataset, labelled: np.ndarray, scales: Scales) -> None:
    """Writes `data` with the rewards that the first lane imputes to the rows that are not `labelled` [N]."""
    first, args = jax.tree.map(lambda x: x[0], (agent, lane_args))
    reward = jax.jit(imputed)(first, batch_of(data), labelled.astype(np.float32), scales, args)
    write_dataset(args.write_dataset, relabelled(data, reward=reward))


def main(args: Args) -> None:
    data, labelled, truth = load_labelled(args)
    data = data.require(reward=False)
    if args.hide != ("rewards",):
        raise InputError(f"--hide {' '.join(args.hide)}: rewards are what is imputed here, and they alone.")
    if args.write_dataset and args.impute == "none":
        raise InputError("--write-dataset with --impute none: there are no labels to write.")
    if args.n_models < 1 or (args.impute == "model" and args.reward_updates < 1):
        raise InputError("--reward-updates and --n-models must be at least 1.")
    if args.impute == "model" and args.n_models < 2 and np.any(args.pessimism):
        raise InputError("--n-models must be at least 2 with --pessimism: one model has no deviation, and no bound.")
    before = {"before": args.reward_updates} if args.impute == "model" else {}
    shared = imputable(data, labelled, truth.reward, args)
    with Run(__file__, args, data.task, act, **before) as run:
        shared = run.replicate(shared)
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done == 0 and args.write_dataset:
                write_labels(run.lane_args, agent, data, labelled, shared.scales)
            lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = lanes(agent, keys, run.lane_args, shared)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
