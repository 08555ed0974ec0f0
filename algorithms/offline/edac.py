"""EDAC: SAC-N whose critics are made to disagree where there is no data; LB-SAC by preset.

An, Moon, Kim and Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", NeurIPS 2021,
arXiv 2110.01548, section 4. Critics whose gradients by the action point the same way at the data's actions also agree
beyond them, so that SAC-N needs hundreds of them before their least is low there. A loss on the cosines between these
gradients turns them apart: the spread beside the data grows, and ten to fifty critics do.

--preset lb-sac-hopper-medium and its like are LB-SAC's (Nikulin, Kurenkov, Tarasov, Akimov and Kolesnikov,
"Q-Ensemble for Offline RL: Don't Scale the Ensemble, Scale the Batch Size", 2022, arXiv 2211.11092): SAC-N without
that loss, with batches of 10,000, rates larger by the square root of that growth, fewer critics and fewer updates.

Choose it when you would use SAC-N and cannot afford its critics; actions need two dimensions or more.

Parity: equal to CORL's edac.py, update for update, but for the form of log(1 - tanh(u)^2) (results/parity.md).

Deviations from the paper:
- temperature, actor and critics are updated one after the other, each with the ones before it, as CORL does; the
  authors' code computes all three losses from the old parameters;
- hidden layers begin within 1 / sqrt(inputs); the authors' code reads the outputs in their place;
- a gradient of length zero has no direction here, and no NaN;
- N and eta for maze2d, AntMaze, door, hammer, relocate and pen-expert are CORL's, those for the random, expert and
  full-replay sets and for Ant LB-SAC's authors'.

An action of one dimension has only two directions: the loss has no slope, and EDAC is SAC-N.

    python algorithms/offline/edac.py --dataset hopper-medium-replay --n-critics 10 --hidden-dims 128 128 --seeds 4
    python algorithms/offline/edac.py --dataset point-umaze-medium --hidden-dims 64 64 --diversity-weight 0 0.1 1
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
from shared.arguments import Float, Fraction, OfflineArgs, Size, by_name, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 3_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    n_critics: Size = 10
    """Critics in the ensemble."""
    diversity_weight: Float = 1.0
    """eta: weight of the critics' diversity loss."""
    diversify: bool = True
    """Compute the diversity loss; without it this is SAC-N."""
    critic_reduction: Literal["sum", "mean"] = "sum"
    """Of the critics' errors over the ensemble."""
    critic_layer_norm: bool = False
    """Layer normalisation in the critics."""
    first_weights: Literal["edac", "pytorch"] = "edac"
    """At the start: hidden biases of 0.1 and last layers within 1e-3 (actor) and 3e-3 (critics), or PyTorch's own."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    backup_entropy: bool = True
    """Subtract alpha log pi from the bootstrapped Q, as in SAC."""
    max_q_backup: bool = False
    """Bootstrap from the best of several actions of the policy instead of one."""
    standardize_reward: bool = False
    """Rewards to mean 0 and standard deviation 1 in training."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


def _edac(n_critics: int, eta: float) -> dict:
    return {"n_critics": n_critics, "diversity_weight": eta}


def _lb_sac(n_critics: int, **more) -> dict:
    rates = {"actor_lr": 0.0018, "critic_lr": 0.0018}
    form = {"diversify": False, "critic_reduction": "mean", "first_weights": "pytorch", "updates": 350_000}
    return {"n_critics": n_critics, "batch_size": 10_000, **rates, **form, **more}


_adroit = {"updates": 200_000, "actor_lr": 3e-5, "standardize_reward": True}
PRESETS = {
    "halfcheetah": _edac(10, 1.0),
    "halfcheetah-medium-expert": _edac(10, 5.0),
    "halfcheetah-random": _edac(10, 0.0),
    "hopper": _edac(50, 1.0),
    "hopper-random": _edac(50, 0.0),
    "walker2d": _edac(10, 1.0),
    **dict.fromkeys(("walker2d-medium-expert", "walker2d-expert"), _edac(10, 5.0)),
    "ant-": _edac(100, 5.0) | {"updates": 1_000_000},
    "maze2d": _edac(10, 0.1),
    "antmaze": _edac(10, 1.0),
    "pen-": _edac(20, 10.0) | _adroit,
    "pen-human": _edac(20, 1000.0) | _adroit,
    "pen-cloned": _edac(20, 10.0) | _adroit | {"max_q_backup": True},
    **dict.fromkeys(("door-", "hammer-", "relocate-"), _edac(50, 200.0) | _adroit),
    **by_name({
        **{
            f"lb-sac-{robot}-{level}": _lb_sac(n)
            for robot, sizes in {
                "halfcheetah": (2, 4, 10, 8, 6, 4), "hopper": (25, 25, 20, 40, 50, 25),
                "walker2d": (15, 10, 10, 10, 30, 4),
            }.items()
            for level, n in zip(
                ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"), sizes, strict=True
            )
        },
        "lb-sac-hopper-medium": _lb_sac(25, critic_layer_norm=True),
        "lb-sac-hopper-expert": _lb_sac(50, updates=500_000),
        "lb-sac-walker2d-expert": _lb_sac(30, first_weights="edac"),
        "lb-sac-ant-medium": _lb_sac(50),
    }),
}  # fmt: skip

MAX_Q_ACTIONS = 10
"""Actions that --max-q-backup takes the largest Q of."""


def uniform(scale: float):
    """Uniform in [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


def dense(size: int, inputs: int, first_weights: str, last: float = 0.0) -> nn.Dense:
    """A layer of `size` units; `last`: of a network, with this bound of its first weights where they are EDAC's."""
    bound = uniform(inputs**-0.5)  # PyTorch's, of weights and biases
    if first_weights == "pytorch":
        return nn.Dense(size, kernel_init=bound, bias_init=bound)
    if last:
        return nn.Dense(size, kernel_init=uniform(last), bias_init=uniform(last))
    return nn.Dense(size, kernel_init=bound, bias_init=nn.initializers.constant(0.1))


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    first_weights: str

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(dense(size, x.shape[-1], self.first_weights)(x))
        x = dense(2 * self.action_dim, x.shape[-1], self.first_weights, last=1e-3)(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]
    layer_norm: bool
    first_weights: str

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = dense(size, x.shape[-1], self.first_weights)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return dense(1, x.shape[-1], self.first_weights, last=3e-3)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """N critics, stacked on a leading axis [E=N, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(actor, batch.obs), key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action)
    chex.assert_shape([q[0], log_prob], (args.batch_size,))
    info = {"entropy": -log_prob.mean(), "q_pi": q.mean(), "q_pi_std": q.std(0).mean()}
    return (jnp.exp(agent.log_alpha) * log_prob - q.min(0)).mean(), info


def next_value(agent: Agent, batch: Batch, key, args: Args):
    """min_i target Q_i(s', a') - alpha log pi(a'|s'), a' ~ pi [B] (eq. 2 of the paper, over all N critics).

    With max_q_backup, the least over the critics (not their targets) of each one's largest Q of several actions.
    """
    mean, log_std = agent.nets.actor.apply(agent.actor, batch.next_obs)
    if args.max_q_backup:
        actions, _ = sample_tanh_gaussian(mean, log_std, key, MAX_Q_ACTIONS)
        q = jax.vmap(lambda action: q_values(agent.nets.critic, agent.critic, batch.next_obs, action))(actions)
        return q.max(0).min(0)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    return q - jnp.exp(agent.log_alpha) * log_prob if args.backup_entropy else q


def diversity_loss(critic, agent: Agent, batch: Batch):
    """sum_{i != j} cos(grad_a Q_i(s, a), grad_a Q_j(s, a)) / (N - 1) at the data's actions (section 4)."""

    def q_sum(action, one):
        return agent.nets.critic.apply(one, batch.obs, action).sum()

    grads = jax.vmap(jax.grad(q_sum), (None, 0))(batch.action, critic)  # [E, B, A]
    squared = (grads**2).sum(-1, keepdims=True)
    unit = grads / (jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) + 1e-10)
    if batch.action.shape[-1] == 1:
        unit = jax.lax.stop_gradient(unit)  # signs: all that is left of their slope is rounding
    cosines = (unit.sum(0) ** 2).sum(-1) - (unit**2).sum((0, 2))  # [B]: of all pairs, less each with itself
    return cosines.mean() / (len(grads) - 1)


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """(Q_i(s, a) - y)^2, y = r + gamma next_value, one y for all critics, and eta times the diversity loss."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_value(agent, batch, key, args)
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    errors = ((q - y) ** 2).mean(1)
    loss = errors.sum() if args.critic_reduction == "sum" else errors.mean()
    info = {"q": q.mean(), "q_std": q.std(0).mean()}
    if not args.diversify:
        return loss, info
    diversity = diversity_loss(critic, agent, batch)
    return loss + args.diversity_weight * diversity, {**info, "diversity_loss": diversity}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim, args.first_weights),
        Critic(args.hidden_dims, args.critic_layer_norm, args.first_weights),
    )
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.n_critics))
    log_alpha = jnp.zeros(())
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the temperature, then the actor, then the critics, each with the ones before it."""
    alpha_key, actor_key, critic_key = jax.random.split(key, 3)
    _, log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), alpha_key)
    grads = jax.grad(alpha_loss)(agent.log_alpha, -log_prob.mean(), batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha)}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, obs)[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if args.diversify and args.n_critics < 2:
        raise InputError("--n-critics must be at least 2: one critic alone has none to differ from.")
    data = load_dataset(args).require(discrete=False)
    if args.standardize_reward:
        data.reward_range()  # refuses rewards that are all equal
        std = float(data.reward.std())
        data = data.scale_rewards(1.0 / std, -float(data.reward.mean()) / std)
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
