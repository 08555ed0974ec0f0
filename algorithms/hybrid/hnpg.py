"""HNPG: Hybrid Natural Policy Gradient, on-policy TRPO whose critic and policy also learn from offline data.

Zhou, Sekhari, Song and Sun, "Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees", ICLR 2024,
arXiv 2311.08384. On the continuous combination lock, with a Gaussian policy and a critic of its own for every step h.
Each iteration collects episodes with the current policy and fits Q_h, backwards in h, to their Monte-Carlo returns
and, on offline transitions, to r + Q_{h+1}(s', a') with a' from the current policy (hybrid fitted policy evaluation,
algorithm 2). The policy then takes a natural gradient step on the union of both kinds of states (algorithm 3): the
advantages are GAE's on-policy, and Q - V with actions drawn anew from the policy in offline states.

Steps are environment steps: an iteration has `batch_size` of them in whole episodes; intervals are rounded up to
whole iterations.

Deviations from the paper:
- the natural gradient step is TRPO's, with its line search, as in the authors' code;
- float32, where the authors' code has float64;
- the lock and its dataset are drawn once (--lock-seed) for all lanes; lanes differ in initialisation and samples;
- the lock clips actions (logits) to [-10, 10], far outside of what the policies need.

    python algorithms/hybrid/hnpg.py --horizon 10 --offline-episodes 2000 --env-steps 300000 --seeds 4
    python algorithms/hybrid/hnpg.py --horizon 10 --env-steps 300000 --seeds 4 --mode online
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
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import EnvSteps, Float, OnlineArgs, hyperparameters
from shared.environments import BAD, LOGIT_LIMIT, Lock, lock_data, lock_reset, lock_step, lock_task
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    buffer_size: int = 1_000_000
    """Not used: every iteration learns from its own episodes."""
    horizon: int = 50
    """Steps H of an episode, each with a policy and a critic of its own."""
    mode: Literal["hybrid", "online", "offline"] = "hybrid"
    """What is learned from: both kinds of data, or only the policy's own (TRPO), or only the dataset."""
    offline_data: Literal["trajectory", "occupancy", "random"] = "trajectory"
    """Dataset: near-optimal episodes, random actions in the optimal policy's states, or random episodes."""
    offline_episodes: int = 50_000
    """Transitions of the dataset per step h."""
    lock_seed: int = 0
    """Seed of the correct actions and of the dataset, the same in all lanes."""
    batch_size: int = 1_000
    """Environment steps of an iteration, rounded up to whole episodes; as many offline transitions are drawn."""
    max_kl: Float = 0.01
    """KL divergence of one policy step, in its quadratic model."""
    damping: Float = 0.1
    """Added to the diagonal of the Fisher matrix."""
    gae_lambda: Float = 0.97
    """Of the on-policy advantages, in [0, 1]."""
    critic_lr: Float = 3e-4
    """Adam, begun anew in every fit."""
    critic_updates: int = 30
    """Full-batch gradient updates of each critic in an iteration."""
    value_samples: int = 10
    """Actions that V(s), the mean of Q(s, a), is estimated with."""
    cg_steps: int = 10
    """Conjugate gradient steps."""
    backtracks: int = 10
    """Step lengths 1, 1/2, 1/4, ... that the line search tries."""
    accept_ratio: Float = 0.1
    """Least improvement that the line search accepts, as a share of the linear model's."""
    policy_dims: tuple[int, ...] = (16, 16)
    """Hidden layers of the policies."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layers of the critics."""
    sample_actions: bool = True
    """Evaluate with sampled actions, as the authors do, instead of the mean's."""
    env_steps: EnvSteps = 1_500_000
    """Environment steps of each lane, rounded up to whole iterations (1500 of the paper's size)."""
    eval_episodes: int = 30
    """Episodes of every lane at each evaluation, seeded alike for all lanes."""


PRESETS: dict[str, dict[str, Any]] = {}


def dense(x, size: int, scale: float | None = None):
    """A layer with weights and biases in +-1 / sqrt(inputs); with `scale`, weights times it and no bias at first."""
    bound = x.shape[-1] ** -0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound) * (1.0 if scale is None else scale)

    return nn.Dense(size, kernel_init=uniform, bias_init=uniform if scale is None else nn.initializers.zeros)(x)


class Policy(nn.Module):
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
    policy: Policy
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    policy: Any
    """One for each step, stacked on a leading axis [H, ...]."""
    critic: Any
    """[H, ...]"""


def lock_of(args: Args) -> Lock:
    return Lock(args.horizon, continuous=True, seed=args.lock_seed)


def episodes(args: Args) -> int:
    """Episodes E of an iteration."""
    return -(-args.batch_size // args.horizon)


def iteration_steps(args: Args) -> int:
    return episodes(args) * args.horizon


def whole_iterations(args: Args) -> Args:
    """`args` with the total and all intervals rounded up to whole iterations."""
    names = ("env_steps", "log_every", "eval_every", "checkpoint_every")
    length = iteration_steps(args)
    return dataclasses.replace(args, **{n: -(-getattr(args, n) // length) * length for n in names})


def draw(net: Policy, policy, obs, key):
    """Actions [..., A] of one step's policy."""
    mean, log_std = net.apply(policy, obs)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def log_prob(net: Policy, policy, obs, action):
    """log pi(a|s) [B]"""
    mean, log_std = net.apply(policy, obs)
    return jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)


def value(nets: Networks, policy, critic, obs, key, args: Args):
    """V_h(s) [B]: the mean of Q_h(s, a) over actions of the policy."""
    keys = jax.random.split(key, args.value_samples)
    return jax.vmap(lambda k: nets.critic.apply(critic, obs, draw(nets.policy, policy, obs, k)))(keys).mean(0)


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


def targets(nets: Networks, policy, critic, offline: Batch, last, key):
    """r + Q_{h+1}(s', a') [E], a' ~ pi_{h+1}: of the current policy, no maximum; `policy`, `critic`: step h + 1's."""
    next_q = nets.critic.apply(critic, offline.next_obs, draw(nets.policy, policy, offline.next_obs, key))
    return offline.reward + jnp.where(last, 0.0, next_q)


def policy_loss(policy, net: Policy, obs, action, adv, old_log_prob):
    """-A pi(a|s) / pi_old(a|s)"""
    chex.assert_equal_shape([adv, old_log_prob])
    return -(adv * jnp.exp(log_prob(net, policy, obs, action) - old_log_prob)).mean()


def kl_divergence(policy, net: Policy, old, obs):
    """KL(pi_old || pi), the mean over states."""
    (mean, log_std), (old_mean, old_log_std) = net.apply(policy, obs), old
    ratio = (jnp.exp(2.0 * old_log_std) + (old_mean - mean) ** 2) / (2.0 * jnp.exp(2.0 * log_std))
    return (log_std - old_log_std + ratio - 0.5).sum(-1).mean()


def trust_region_step(policy, net: Policy, obs, action, adv, args: Args):
    """x = F^-1 g, scaled to x' F x / 2 = max_kl, and a line search on the loss; the old policy if that fails."""
    old_log_prob, old = log_prob(net, policy, obs, action), net.apply(policy, obs)
    loss_of = partial(policy_loss, net=net, obs=obs, action=action, adv=adv, old_log_prob=old_log_prob)
    loss, grads = jax.value_and_grad(loss_of)(policy)
    descent = jax.tree.map(jnp.negative, grads)
    grad_kl = jax.grad(partial(kl_divergence, net=net, old=old, obs=obs))

    def fisher(x):
        product = jax.jvp(grad_kl, (policy,), (x,))[1]
        return jax.tree.map(lambda f, x: f + args.damping * x, product, x)

    x, _ = jax.scipy.sparse.linalg.cg(fisher, descent, tol=0.0, atol=1e-5, maxiter=args.cg_steps)
    scale = jnp.sqrt(args.max_kl / (0.5 * optax.tree.vdot(x, fisher(x))))
    expected = scale * optax.tree.vdot(descent, x)

    def at(k):
        """Policy, loss and whether they are accepted, at the step length 1 / 2^k."""
        length = 0.5**k
        new = jax.tree.map(lambda p, x: p + length * scale * x, policy, x)
        new_loss = loss_of(new)
        gain = loss - new_loss
        return new, new_loss, (gain > args.accept_ratio * length * expected) & (gain > 0.0)

    search = lambda c: (c[0] + 1, *at(jnp.float32(c[0] + 1)))  # noqa: E731
    goes_on = lambda c: ~c[3] & (c[0] + 1 < args.backtracks)  # noqa: E731
    _, new, new_loss, accepted = jax.lax.while_loop(goes_on, search, (jnp.int32(0), *at(jnp.float32(0))))
    new = jax.tree.map(partial(jnp.where, accepted), new, policy)
    gain = jnp.where(accepted, loss - new_loss, 0.0)
    kl = kl_divergence(new, net, old, obs)
    return new, {"improvement": gain, "accepted": jnp.float32(accepted), "kl": kl, "std": jnp.exp(old[1]).mean()}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane; the last entry of observations is the step h, which chooses the networks."""
    nets = Networks(Policy(args.policy_dims, spec.action_dim), Critic(args.hidden_dims))
    obs, action = jnp.zeros((1, spec.obs_shape[0] - 1)), jnp.zeros((1, spec.action_dim))
    policy_key, critic_key = jax.random.split(key)
    policy = jax.lax.map(lambda k: nets.policy.init(k, obs), jax.random.split(policy_key, args.horizon))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, args.horizon))
    return Agent(nets=nets, policy=policy, critic=critic)


def sample(key, data: Batch, args: Args) -> Batch:
    """[H, E] offline transitions, uniform with replacement: as many of each step as the policy has made."""
    row = jax.random.randint(key, (args.horizon, episodes(args)), 0, args.offline_episodes)
    return jax.tree.map(lambda x: jax.vmap(lambda column, i: column[i])(x, row), data)


def update(agent: Agent, online: Batch, offline: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One iteration's critics, the last step's first, and then policies; `online`, `offline` [H, E, ...]."""
    nets, adam = agent.nets, optax.adam(args.critic_lr)
    target_key, value_key, action_key, off_value_key = jax.random.split(key, 4)
    online = online._replace(return_to_go=returns_to_go(online.reward))

    def fit(next_critic, x):
        h, next_policy, critic, on, off, key = x
        y = targets(nets, next_policy, next_critic, off, h == args.horizon - 1, key)

        def step(carry, _):
            critic, opt = carry
            grads, info = jax.grad(critic_loss, has_aux=True)(critic, nets.critic, on, off, y, args)
            updates, opt = adam.update(grads, opt)
            return (optax.apply_updates(critic, updates), opt), info

        (critic, _), info = jax.lax.scan(step, (critic, adam.init(critic)), None, args.critic_updates)
        return critic, (critic, jax.tree.map(lambda m: m[-1], info))

    split = partial(jax.random.split, num=args.horizon)
    next_policy = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), agent.policy)
    steps = (jnp.arange(args.horizon), next_policy, agent.critic, online, offline, split(target_key))
    none = jax.tree.map(lambda x: x[0], agent.critic)
    critic, info_q = jax.lax.scan(fit, none, steps, reverse=True)[1]

    values = jax.vmap(lambda p, c, obs, k: value(nets, p, c, obs, k, args))
    adv_on = gae(online.reward, values(agent.policy, critic, online.obs, split(value_key)), args)
    action_off = jax.vmap(partial(draw, nets.policy))(agent.policy, offline.obs, split(action_key))
    q_off = jax.vmap(nets.critic.apply)(critic, offline.obs, action_off)
    adv_off = q_off - values(agent.policy, critic, offline.obs, split(off_value_key))
    on, off = (online.obs, online.action, adv_on), (offline.obs, action_off, adv_off)
    union = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), on, off)
    states = {"hybrid": union, "online": on, "offline": off}[args.mode]

    improve = lambda x: trust_region_step(x[0], nets.policy, *x[1:], args)  # noqa: E731
    policy, info_pi = jax.lax.map(improve, (agent.policy, *states))
    return agent.replace(policy=policy, critic=critic), jax.tree.map(jnp.mean, {**info_q, **info_pi})


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], each by the policy of its observation's step: samples, or means."""
    h = obs[:, -1].astype(jnp.int32)
    mean, log_std = jax.vmap(agent.nets.policy.apply)(jax.tree.map(lambda x: x[h], agent.policy), obs[:, :-1])
    noise = jax.random.normal(key, mean.shape) if args.sample_actions else 0.0
    return (mean + jnp.exp(log_std) * noise) / LOGIT_LIMIT


def collect(agent: Agent, key, args: Args) -> tuple[Batch, dict]:
    """Episodes of the policy [H, E, ...]."""
    lock = lock_of(args)

    def step(carry, x):
        state, obs = carry
        policy, key = x
        action_key, step_key = jax.random.split(key)
        action = draw(agent.nets.policy, policy, obs, action_key)
        new, next_obs, reward, _ = lock_step(lock, state, action, step_key)
        return (new, next_obs), (Batch(obs=obs, action=action, reward=reward), (state.latent != BAD).mean())

    first_key, key = jax.random.split(key)
    steps = (agent.policy, jax.random.split(key, args.horizon))
    rows, good = jax.lax.scan(step, lock_reset(lock, first_key, (episodes(args),)), steps)[1]
    return rows, {"train_return": rows.reward.sum(0).mean(), "good_state": good.mean(), "good_state_at_end": good[-1]}


def train(agent: Agent, keys, args: Args, data: Batch) -> tuple[Agent, dict]:
    """One lane: an iteration for every `iteration_steps` keys; mean metrics."""

    def iteration(agent, key):
        collect_key, sample_key, update_key = jax.random.split(key, 3)
        online, info = collect(agent, collect_key, args)
        agent, metrics = update(agent, online, sample(sample_key, data, args), update_key, args)
        return agent, {**metrics, **info}

    agent, metrics = jax.lax.scan(iteration, agent, keys[:: iteration_steps(args)])
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    args, lock = whole_iterations(args), lock_of(args)
    data_key = jax.random.fold_in(jax.random.key(args.lock_seed), 3)  # 0 to 2 are the keys of a lane of that seed
    data = lock_data(lock, data_key, args.offline_episodes, args.offline_data)
    task = lock_task(lock, data, args.offline_data)
    with Run(__file__, args, task, act, unit=iteration_steps(args)) as run:
        data = run.replicate(data)
        agent = run.init(partial(init, spec=task.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, data)
            iterations = (run.done + run.chunk) // iteration_steps(args)
            run.log(agent, metrics, updates=iterations * args.horizon * args.critic_updates)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
