"""LAEO: learning to achieve examples offline.

Hatch, Eysenbach, Rafailov, Yu, Salakhutdinov, Levine and Finn, "Contrastive Example-Based Control", L4DC 2023, arXiv
2307.13101. There are transitions without rewards and a set of states in which the task is solved. f(s, a, g) =
phi(s, a) . psi(g) tells the state that a row came to (geometrically later) from those of the other rows of the batch,
as contrastive RL does (Eysenbach et al., NeurIPS 2022, arXiv 2206.07568): exp f is how much likelier g is visited after
(s, a) than anywhere. The policy knows no goal: it climbs f towards success examples, drawn anew for every state.

Choose it when success can be shown but not scored. There is no reward model and no bootstrapping: with --reward
classifier there are both, for comparison (the learned reward of ORIL, Zolna et al., arXiv 2011.13885, with TD3's
critics).

Parity: the contrastive update is equal to khatch31/laeo but for the deviation of actions and log pi beyond 0.999, with
a learned temperature and without entropy (results/parity.md).
Deviations from the released code (khatch31/laeo):
- the entropy's temperature is learned; their command lines have no entropy (--first-alpha 0), and with their learned
  temperature the code does not start: its loss gives the policy, made for states, the later state, too;
- a future beyond an episode's end is its last state; there P(k) is that of the steps that are left, scaled to one;
- the last layer is the log standard deviation of actions, between -5 and 2, as everywhere here; there the standard
  deviation is its softplus plus 1e-6;
- log pi of an action beyond 0.999 is that of 0.999, or the action's own where pi drew it; there the logarithm of the
  mean density beyond 0.999;
- with --reward classifier all unlabelled rows count as failures, and the next action is drawn from the actor. Its
  networks are those of the rest; there (learning_td3.py) critics have layer norm and tanh, weights begin uniform with
  fan_in, not fan_avg, and the target adds the logged reward where the learned one is meant.

    python algorithms/imitation/laeo.py --dataset point-umaze-mixed --seeds 8 --updates 10000
    python algorithms/imitation/laeo.py --dataset point-umaze-mixed --bc-share 0 0.05 0.5 --examples 20
"""

import dataclasses
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.goals import GoalDataset, GoalTransitions, geometric
from shared.parts import every, load_all, with_parts
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-umaze-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    examples: int = 200
    """States in which the task is solved, at most."""
    success_reward: float = 1.0
    """Lowest reward of a row that came to such a state: all that rewards are used for."""
    examples_from: str = ""
    """Dataset whose observations are all examples of success; empty: they are taken from this one, by its rewards."""
    reward: Literal["none", "classifier"] = "none"
    """Where Q comes from: contrastive, without rewards (none), or bootstrapped from a learned reward (classifier)."""
    bc_share: Fraction = 0.0
    """Share of -log pi(a|s) in the actor's loss, in [0, 1]."""
    kept_entropy: Float = 0.0
    """Entropy of the policy that the temperature keeps."""
    first_alpha: Float = 1.0
    """Entropy temperature at the start; 0: there is none, and none is learned."""
    latent_dim: Size = 64
    """Size of the representations."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}

actor_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
encoder_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=actor_init)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=actor_init)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Embedding(nn.Module):
    """[B, outputs]: phi(s, a), psi(g); with one output Q(s, a), or the classifier of success."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=encoder_init)(x))
        return nn.Dense(self.outputs, kernel_init=encoder_init)(x)


class ExampleBatch(NamedTuple):
    """Rows with a later state of their episode and a success example."""

    obs: jax.Array
    action: jax.Array
    next_obs: jax.Array
    terminal: jax.Array
    """1 where the episode stays in next_obs for ever."""
    future: jax.Array
    example: jax.Array


class Networks(NamedTuple):
    actor: Actor
    encoder: Embedding
    scalar: Embedding


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two pairs (phi, psi), or two critics of the learned reward, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    """The pairs have no part in any loss here."""
    classifier: Any
    """Of success; None without --reward classifier."""
    log_alpha: Any
    """Of SAC's entropy temperature."""
    opt: optax.OptState
    """Of (actor, critic, classifier, log_alpha)."""


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def contrastive_loss(critic, agent: Agent, batch: ExampleBatch, args: Args):
    """Binary cross-entropy of phi(s_i, a_i) . psi(g_j) with the identity, mean of all entries and both critics."""
    net = agent.nets.encoder
    phi = jax.vmap(net.apply, (0, None, None))(critic[0], batch.obs, batch.action)
    psi = jax.vmap(net.apply, (0, None))(critic[1], batch.future)
    logits = phi @ psi.swapaxes(1, 2)
    chex.assert_shape(logits, (2, args.batch_size, args.batch_size))
    labels = jnp.eye(args.batch_size)
    own = jnp.diagonal(logits.mean(0)).mean()
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), {"own_logit": own, "logit": logits.mean()}


def classifier_loss(classifier, agent: Agent, batch: ExampleBatch):
    """Binary cross-entropy of examples against the states that rows came to."""
    success = agent.nets.scalar.apply(classifier, batch.example)
    other = agent.nets.scalar.apply(classifier, batch.next_obs)
    return nn.softplus(-success).mean() + nn.softplus(other).mean()


def td_loss(critic, agent: Agent, batch: ExampleBatch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q_i(s, a))^2, r = sigmoid of the classifier at s', a' ~ pi.

    A terminal s' is worth r / (1 - gamma): ending is no loss, as it is none to the contrastive f.
    """
    reward = nn.sigmoid(agent.nets.scalar.apply(agent.classifier, batch.next_obs)[:, 0])
    next_action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    q_values = jax.vmap(agent.nets.scalar.apply, (0, None, None))
    next_q = q_values(agent.target_critic, batch.next_obs, next_action)[..., 0].min(0)
    y = reward + args.discount * jnp.where(batch.terminal > 0, reward / (1.0 - args.discount), next_q)
    q = q_values(critic, batch.obs, batch.action)[..., 0]
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "reward": reward.mean()}


def value_of(agent: Agent, batch: ExampleBatch, action, args: Args):
    """min_k f_k(s, a, g*) [B], g* the row's success example; of critics min_i Q_i(s, a)."""
    if args.reward == "classifier":
        return jax.vmap(agent.nets.scalar.apply, (0, None, None))(agent.critic, batch.obs, action)[..., 0].min(0)
    net = agent.nets.encoder
    phi = jax.vmap(net.apply, (0, None, None))(agent.critic[0], batch.obs, action)
    return (phi * jax.vmap(net.apply, (0, None))(agent.critic[1], batch.example)).sum(-1).min(0)


def actor_loss(actor, agent: Agent, batch: ExampleBatch, key, args: Args):
    """(1 - c) (alpha log pi(a|s) - f(s, a, g*)) - c log pi(a_data|s), a ~ pi, c = bc_share."""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = value_of(agent, batch, action, args)
    of_data = tanh_gaussian_log_prob(mean, log_std, jnp.arctanh(jnp.clip(batch.action, -1.0 + 1e-3, 1.0 - 1e-3)))
    chex.assert_shape([q, log_prob, of_data], (args.batch_size,))
    climb = jnp.exp(agent.log_alpha) * log_prob - q
    loss = (1.0 - args.bc_share) * climb - args.bc_share * of_data
    return loss.mean(), {"entropy": -log_prob.mean(), "f_pi": q.mean(), "bc_loss": -of_data.mean()}


def alpha_loss(log_alpha, entropy, args: Args):
    """SAC's temperature: alpha grows while the entropy is under its target."""
    return jnp.exp(log_alpha) * (entropy - args.kept_entropy)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    dims = args.hidden_dims
    nets = Networks(Actor(dims, spec.action_dim), Embedding(dims, args.latent_dim), Embedding(dims, 1))
    actor_key, critic_key, classifier_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))

    def pair(key):
        keys = jax.random.split(key)
        return nets.encoder.init(keys[0], obs, action), nets.encoder.init(keys[1], obs)

    classifies, keys = args.reward == "classifier", jax.random.split(critic_key, 2)
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map((lambda k: nets.scalar.init(k, obs, action)) if classifies else pair, keys)
    classifier = nets.scalar.init(classifier_key, obs) if classifies else None
    log_alpha = jnp.log(jnp.asarray(args.first_alpha, jnp.float32))  # of 0 it stays -inf: its gradient is 0
    opt = optax.adam(args.learning_rate).init((actor, critic, classifier, log_alpha))
    return Agent(nets, actor, critic, critic, classifier, log_alpha, opt)


class Shown(NamedTuple):
    """A dataset on the device with examples of success."""

    transitions: GoalTransitions
    terminal: jax.Array
    """[N]"""
    examples: jax.Array
    """[M, O]"""


def sample(key, data: Shown, args: Args) -> ExampleBatch:
    """Rows, each with an example and the state k steps later (or the last), P(k) = (1 - gamma) gamma^(k - 1)."""
    row_key, future_key, example_key = jax.random.split(key, 3)
    transitions = data.transitions
    row = transitions.rows(row_key, args.batch_size)
    steps = geometric(jax.random.uniform(future_key, row.shape), args.discount) - 1.0
    before = transitions.ahead(row, jnp.minimum(steps, len(transitions.end)).astype(row.dtype))
    at, future = transitions.take(row), transitions.take(before).next_obs
    example = data.examples[jax.random.randint(example_key, row.shape, 0, len(data.examples))]
    return ExampleBatch(at.obs, at.action, at.next_obs, data.terminal[row], future, example)


def update(agent: Agent, batch: ExampleBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of everything; all losses are of the old parameters."""
    actor_key, critic_key = jax.random.split(key)
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), actor_grads = grad(agent.actor, agent, batch, actor_key, args)
    losses, classifier_grads = {"actor_loss": loss_pi}, None
    if args.reward == "classifier":
        grad = jax.value_and_grad(classifier_loss)
        losses["classifier_loss"], classifier_grads = grad(agent.classifier, agent, batch)
        grad = jax.value_and_grad(td_loss, has_aux=True)
        (loss_q, info_q), critic_grads = grad(agent.critic, agent, batch, critic_key, args)
    else:
        grad = jax.value_and_grad(contrastive_loss, has_aux=True)
        (loss_q, info_q), critic_grads = grad(agent.critic, agent, batch, args)
    alpha_grad = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], args)
    params = agent.actor, agent.critic, agent.classifier, agent.log_alpha
    grads = actor_grads, critic_grads, classifier_grads, alpha_grad
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    actor, critic, classifier, log_alpha = optax.apply_updates(params, updates)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    losses |= {"critic_loss": loss_q, "alpha": jnp.exp(agent.log_alpha)}
    return Agent(agent.nets, actor, critic, target_critic, classifier, log_alpha, opt), {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def train(agent: Agent, keys, args: Args, data: Shown) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, data, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def success_examples(data: Dataset, args: Args) -> tuple[np.ndarray, Dataset]:
    """[at most --examples, O] states in which the task is solved, spread evenly over all that there are; and `data`,
    whose task names both parts if the examples are another dataset's.

    Raises:
      InputError: there is none, or they are no observations of this data.
    """
    if args.examples_from:
        shown = load_all(dataclasses.replace(args, env="none"), [args.examples_from], [args.dataset])
        found, source, least = shown.obs, f"'{args.examples_from}'", ""
        if found.shape[1:] != data.obs.shape[1:]:
            sizes = f"{found.shape[1:]}, not {data.obs.shape[1:]}"
            raise InputError(f"--examples-from: observations of {source} have the shape {sizes}.")
    else:
        found, source = data.next_obs[data.successor & (data.reward >= args.success_reward)], f"'{data.task.id}'"
        least = f" of reward {args.success_reward} or more (--success-reward)"
    if args.examples < 1 or not len(found):
        raise InputError(f"--examples {args.examples}: {source} has {len(found)} rows{least}; at least one is needed.")
    chosen = np.unique(np.linspace(0, len(found) - 1, min(args.examples, len(found))).round().astype(int))
    if args.examples_from:
        parts = {"examples": (shown, np.isin(np.arange(len(found)), chosen)), "unlabelled": (data, every(data))}
        data = with_parts(data, parts)
    print(f"examples: {len(chosen)} of {len(found):,} states of {source}; no other use is made of rewards", flush=True)
    return found[chosen], data


def main(args: Args) -> None:
    if args.reward == "classifier" and np.max(args.discount) >= 1.0:
        raise InputError("--reward classifier: with --discount 1 a terminal state has no finite value.")
    if args.reward == "none" and args.batch_size < 2:
        raise InputError("--batch-size 1: a future is told from those of the other rows of a batch; there are none.")
    if np.min(args.first_alpha) < 0.0:
        raise InputError(f"--first-alpha must be at least 0, not {args.first_alpha}.")
    beside = [args.examples_from] if args.examples_from else []
    data = load_all(args, [args.dataset], beside).require(discrete=False, reward=not args.examples_from)
    examples, data = success_examples(data, args)
    with Run(__file__, args, data.task, act) as run:
        terminal = jnp.asarray(data.terminal[data.successor].astype(np.float32))
        shown = run.replicate(Shown(GoalDataset(data, None).transitions(), terminal, jnp.asarray(examples)))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, shown)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
