"""HNPG: Hybrid Natural Policy Gradient, on-policy TRPO whose critic and policy also learn from offline data.

Zhou, Sekhari, Song and Sun, "Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees", ICLR 2024,
arXiv 2311.08384. On the continuous combination lock, with a Gaussian policy and a critic of its own for every step h.
Each iteration collects episodes with the current policy and fits Q_h, backwards in h, to their Monte-Carlo returns
and, on offline transitions, to r + Q_{h+1}(s', a') with a' from the current policy (hybrid fitted policy evaluation,
algorithm 2). The policy then takes a natural gradient step on the union of both kinds of states (algorithm 3): the
advantages are GAE's on-policy, and Q - V with actions drawn anew from the policy in offline states.

Steps are environment steps: an iteration has --steps-per-iteration of them, rounded up to
whole episodes, and draws as many offline transitions; intervals are rounded up to whole iterations.

--critic-lr is of an Adam that begins anew in every fit. --buffer-size is not used: an iteration learns from its own
episodes.

Choose it when you want an on-policy method that also learns from a dataset; long chains in which exploration is hard.

Parity: equal to the authors' code, iteration for iteration, but for the weight decay (results/parity.md).

Deviations from the paper:
- the natural gradient step is TRPO's, with its line search, as in the authors' code;
- float32, where the authors' code has float64;
- the lock and its dataset are the same in all lanes, which differ in initialisation and samples;
- the lock clips actions (logits) to [-10, 10], far outside of what the policies need;
- no weight decay (in the authors' code it reaches the last bias of each critic alone).

    python algorithms/hybrid/hnpg.py --dataset continuous-combination-lock-h10-trajectory --env-steps 300000 --seeds 4
    python algorithms/hybrid/hnpg.py --dataset continuous-combination-lock-h10-random --env-steps 300000 --mode online
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
from shared.arguments import EnvSteps, Float, Fraction, HybridArgs, Size, hyperparameters
from shared.checks import other_rewards
from shared.data import load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch


@hyperparameters
class Args(HybridArgs):
    dataset: str = "continuous-combination-lock-h50-trajectory"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    horizon: int = 0
    """Steps H of an episode, each with networks or tables of its own; 0: the lock's (and no other is possible)."""
    mode: Literal["hybrid", "online", "offline"] = "hybrid"
    """What is learned from: both kinds of data, or only what is collected, or only the dataset."""
    steps_per_iteration: Size = 1_000
    """Environment steps between two updates of the policy, which learns from these alone."""
    max_kl: Float = 0.01
    """KL divergence of one policy step, in its quadratic model."""
    damping: Float = 0.1
    """Added to the diagonal of the Fisher matrix."""
    gae_lambda: Fraction = 0.97
    """lambda of the generalised advantage estimate, in [0, 1]."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    critic_updates: Size = 30
    """Gradient updates of every critic in a fit."""
    value_samples: Size = 10
    """Actions of the policy that the value of a state is estimated from."""
    cg_steps: Size = 10
    """Conjugate gradient steps."""
    backtracks: Size = 10
    """Step lengths 1, 1/2, 1/4, ... that the line search tries."""
    accept_ratio: Fraction = 0.1
    """Least improvement that the line search accepts, as a share of the linear model's."""
    actor_hidden_dims: tuple[int, ...] = (16, 16)
    """Hidden layers of the actor."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layers of every network that has no argument of its own for them."""
    sample_actions: bool = True
    """Evaluate with sampled actions instead of the mean's."""
    env_steps: EnvSteps = 1_500_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    eval_episodes: Size = 30
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}


def dense(x, size: int, scale: float | None = None):
    """A layer with weights and biases in +-1 / sqrt(inputs); with `scale`, weights times it and no bias at first."""
    bound = x.shape[-1] ** -0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound) * (1.0 if scale is None else scale)

    return nn.Dense(size, kernel_init=uniform, bias_init=uniform if scale is None else nn.initializers.zeros)(x)


class Actor(nn.Module):
    """Mean and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.tanh(dense(x, size))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return dense(x, self.action_dim, scale=0.1), log_std


class Critic(nn.Module):
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.tanh(dense(x, size))
        return dense(x, 1, scale=0.1)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    action_limit: float
    """Actions are logits, up to this size in the lock."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    """One for each step, stacked on a leading axis [H, ...]."""
    critic: Any
    """[H, ...]"""


def lock_of(task: Task, args: Args):
    """The lock of the task's environment, as functions of many episodes at the same step."""
    lock = getattr(task.env_spec and task.make_env().unwrapped, "lock", None)
    if lock is None:
        raise InputError(f"'{task.id}' is no lock; try --dataset continuous-combination-lock-h10-trajectory.")
    if args.horizon not in (0, lock.horizon):
        raise InputError(f"--horizon {args.horizon}: the lock of '{task.id}' has {lock.horizon} steps.")
    return lock


def episodes(args: Args) -> int:
    """Episodes E of an iteration."""
    return -(-args.steps_per_iteration // args.horizon)


def iteration_steps(args: Args) -> int:
    return episodes(args) * args.horizon


def whole_iterations(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole iterations."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    length = iteration_steps(args)
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // length) * length for n in names})


def sample_actions(net: Actor, actor, obs, key):
    """Actions [..., A] of one step's policy."""
    mean, log_std = net.apply(actor, obs)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def gaussian_log_prob(mean, log_std, action):
    """log N(a; mean, std) [...] of actions [..., A]."""
    return jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)


def value(nets: Networks, actor, critic, obs, key, args: Args):
    """V_h(s) [B]: the mean of Q_h(s, a) over actions of the policy."""
    keys = jax.random.split(key, args.value_samples)
    return jax.vmap(lambda k: nets.critic.apply(critic, obs, sample_actions(nets.actor, actor, obs, k)))(keys).mean(0)


def returns_to_go(reward):
    """sum_{i >= h} r_i of [H, E] rewards; finite-horizon, undiscounted."""
    return jnp.cumsum(reward[::-1], axis=0)[::-1]


def gae(reward, v, args: Args):
    """sum_i lambda^i delta_{h+i}, delta_h = r_h + V_{h+1} - V_h, V_H = 0; all [H, E]."""
    delta = reward + jnp.concatenate([v[1:], jnp.zeros_like(v[:1])]) - v

    def back(adv, delta):
        adv = delta + args.gae_lambda * adv
        return adv, adv

    return jax.lax.scan(back, jnp.zeros_like(v[0]), delta, reverse=True)[1]


def critic_loss(critic, net: Critic, online: Batch, offline: Batch, y, args: Args):
    """(Q_h - R)^2 on-policy, R the return, plus (Q_h - y)^2 offline, y the bootstrapped target (algorithm 2)."""
    q_on, q_off = net.apply(critic, online.obs, online.action), net.apply(critic, offline.obs, offline.action)
    chex.assert_equal_shape([q_on, online.return_to_go, q_off, y])
    loss_on, loss_off = ((q_on - online.return_to_go) ** 2).mean(), ((q_off - y) ** 2).mean()
    loss = {"hybrid": loss_on + loss_off, "online": loss_on, "offline": loss_off}[args.mode]
    return loss, {"online_loss": loss_on, "offline_loss": loss_off}


def targets(nets: Networks, actor, critic, offline: Batch, last, key):
    """r + Q_{h+1}(s', a') [E], a' ~ pi_{h+1}: of the current policy, no maximum; `policy`, `critic`: step h + 1's."""
    next_q = nets.critic.apply(critic, offline.next_obs, sample_actions(nets.actor, actor, offline.next_obs, key))
    return offline.reward + jnp.where(last, 0.0, next_q)


def actor_loss(actor, net: Actor, obs, action, adv, old_log_prob):
    """-A pi(a|s) / pi_old(a|s)"""
    chex.assert_equal_shape([adv, old_log_prob])
    return -(adv * jnp.exp(gaussian_log_prob(*net.apply(actor, obs), action) - old_log_prob)).mean()


def kl_divergence(actor, net: Actor, old, obs):
    """KL(pi_old || pi), the mean over states."""
    (mean, log_std), (old_mean, old_log_std) = net.apply(actor, obs), old
    ratio = (jnp.exp(2.0 * old_log_std) + (old_mean - mean) ** 2) / (2.0 * jnp.exp(2.0 * log_std))
    return (log_std - old_log_std + ratio - 0.5).sum(-1).mean()


def trust_region_step(actor, net: Actor, obs, action, adv, args: Args):
    """x = F^-1 g, scaled to x' F x / 2 = max_kl, and a line search on the loss; the old policy if that fails."""
    old_log_prob, old = gaussian_log_prob(*net.apply(actor, obs), action), net.apply(actor, obs)
    loss_of = partial(actor_loss, net=net, obs=obs, action=action, adv=adv, old_log_prob=old_log_prob)
    loss, grads = jax.value_and_grad(loss_of)(actor)
    descent = jax.tree.map(jnp.negative, grads)
    grad_kl = jax.grad(partial(kl_divergence, net=net, old=old, obs=obs))

    def fisher(x):
        product = jax.jvp(grad_kl, (actor,), (x,))[1]
        return jax.tree.map(lambda f, x: f + args.damping * x, product, x)

    x, _ = jax.scipy.sparse.linalg.cg(fisher, descent, tol=0.0, atol=1e-5, maxiter=args.cg_steps)
    scale = jnp.sqrt(args.max_kl / (0.5 * optax.tree.vdot(x, fisher(x))))
    expected = scale * optax.tree.vdot(descent, x)

    def at(k):
        """Policy, loss and whether they are accepted, at the step length 1 / 2^k."""
        length = 0.5**k
        new = jax.tree.map(lambda p, x: p + length * scale * x, actor, x)
        new_loss = loss_of(new)
        gain = loss - new_loss
        return new, new_loss, (gain > args.accept_ratio * length * expected) & (gain > 0.0)

    search = lambda c: (c[0] + 1, *at(jnp.float32(c[0] + 1)))  # noqa: E731
    goes_on = lambda c: ~c[3] & (c[0] + 1 < args.backtracks)  # noqa: E731
    _, new, new_loss, accepted = jax.lax.while_loop(goes_on, search, (jnp.int32(0), *at(jnp.float32(0))))
    new = jax.tree.map(partial(jnp.where, accepted), new, actor)
    gain = jnp.where(accepted, loss - new_loss, 0.0)
    kl = kl_divergence(new, net, old, obs)
    return new, {"improvement": gain, "accepted": jnp.float32(accepted), "kl": kl, "std": jnp.exp(old[1]).mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane; the last entry of observations is the step h, which chooses the networks."""
    nets = Networks(Actor(args.actor_hidden_dims, spec.action_dim), Critic(args.hidden_dims), spec.action_high[0])
    obs, action = jnp.zeros((1, spec.obs_shape[0] - 1)), jnp.zeros((1, spec.action_dim))
    actor_key, critic_key = jax.random.split(key)
    actor = jax.lax.map(lambda k: nets.actor.init(k, obs), jax.random.split(actor_key, args.horizon))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.horizon))
    return Agent(nets=nets, actor=actor, critic=critic)


def sample(key, data: Batch, args: Args) -> Batch:
    """[H, E] offline transitions, uniform with replacement: as many of each step as the policy has made."""
    row = jax.random.randint(key, (args.horizon, episodes(args)), 0, data.reward.shape[1])
    return jax.tree.map(lambda x: jax.vmap(lambda column, i: column[i])(x, row), data)


def update(agent: Agent, online: Batch, offline: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One iteration's critics, the last step's first, and then policies; `online`, `offline` [H, E, ...]."""
    nets, adam = agent.nets, optax.adam(args.critic_lr)
    target_key, value_key, action_key, off_value_key = jax.random.split(key, 4)
    online = online._replace(return_to_go=returns_to_go(online.reward))

    def fit(next_critic, x):
        h, next_actor, critic, on, off, key = x
        y = targets(nets, next_actor, next_critic, off, h == args.horizon - 1, key)

        def step(carry, _):
            critic, opt = carry
            grads, info = jax.grad(critic_loss, has_aux=True)(critic, nets.critic, on, off, y, args)
            updates, opt = adam.update(grads, opt)
            return (optax.apply_updates(critic, updates), opt), info

        (critic, _), info = jax.lax.scan(step, (critic, adam.init(critic)), None, args.critic_updates)
        return critic, (critic, jax.tree.map(lambda m: m[-1], info))

    split = partial(jax.random.split, num=args.horizon)
    next_actor = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), agent.actor)
    steps = (jnp.arange(args.horizon), next_actor, agent.critic, online, offline, split(target_key))
    none = jax.tree.map(lambda x: x[0], agent.critic)
    critic, info_q = jax.lax.scan(fit, none, steps, reverse=True)[1]

    values = jax.vmap(lambda p, c, obs, k: value(nets, p, c, obs, k, args))
    adv_on = gae(online.reward, values(agent.actor, critic, online.obs, split(value_key)), args)
    action_off = jax.vmap(partial(sample_actions, nets.actor))(agent.actor, offline.obs, split(action_key))
    q_off = jax.vmap(nets.critic.apply)(critic, offline.obs, action_off)
    adv_off = q_off - values(agent.actor, critic, offline.obs, split(off_value_key))
    on, off = (online.obs, online.action, adv_on), (offline.obs, action_off, adv_off)
    union = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), on, off)
    states = {"hybrid": union, "online": on, "offline": off}[args.mode]

    improve = lambda x: trust_region_step(x[0], nets.actor, *x[1:], args)  # noqa: E731
    actor, info_pi = jax.lax.map(improve, (agent.actor, *states))
    return agent.replace(actor=actor, critic=critic), jax.tree.map(jnp.mean, {**info_q, **info_pi})


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], each by the policy of its observation's step: samples, or means."""
    h = obs[:, -1].astype(jnp.int32)
    mean, log_std = jax.vmap(agent.nets.actor.apply)(jax.tree.map(lambda x: x[h], agent.actor), obs[:, :-1])
    noise = jax.random.normal(key, mean.shape) if args.sample_actions else 0.0
    return (mean + jnp.exp(log_std) * noise) / agent.nets.action_limit


def collect(agent: Agent, key, args: Args, lock) -> tuple[Batch, dict]:
    """Episodes of the policy [H, E, ...]."""

    def step(carry, x):
        state, obs = carry
        actor, key = x
        action_key, step_key = jax.random.split(key)
        action = sample_actions(agent.nets.actor, actor, obs, action_key)
        new, next_obs, reward, _ = lock.step(state, action, step_key)
        return (new, next_obs), (Batch(obs=obs, action=action, reward=reward), lock.good(state).mean())

    first_key, key = jax.random.split(key)
    steps = (agent.actor, jax.random.split(key, args.horizon))
    rows, good = jax.lax.scan(step, lock.reset(first_key, (episodes(args),)), steps)[1]
    return rows, {"train_return": rows.reward.sum(0).mean(), "good_state": good.mean(), "good_state_at_end": good[-1]}


def train(agent: Agent, keys, args: Args, data: Batch, lock) -> tuple[Agent, dict]:
    """One lane: an iteration for every `iteration_steps` keys; mean metrics."""

    def iteration(agent, key):
        collect_key, sample_key, update_key = jax.random.split(key, 3)
        online, info = collect(agent, collect_key, args, lock)
        agent, metrics = update(agent, online, sample(sample_key, data, args), update_key, args)
        return agent, {**metrics, **info}

    agent, metrics = jax.lax.scan(iteration, agent, keys[:: iteration_steps(args)])
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    if np.min(args.max_kl) <= 0.0:
        raise InputError(f"--max-kl must be above 0, not {args.max_kl}: the policy would stay as it is.")
    data = load_dataset(args, env_units=True).require(discrete=False)
    lock = lock_of(data.task, args)
    args = whole_iterations(dataclasses.replace(args, horizon=lock.horizon))
    with Run(__file__, args, data.task, act, unit=iteration_steps(args)) as run:
        run.note(other_rewards(data.task))
        rows = run.replicate(data.by_step(lock.horizon))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(partial(train, lock=lock), in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, rows)
            iterations = (run.done + run.chunk) // iteration_steps(args)
            run.log(agent, metrics, updates=iterations * args.horizon * args.critic_updates)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
