"""SUNG: uncertainty-guided exploration and exploitation after TD3+BC.

Guo, Sun, Hu, Huang, Chen, Piao, Sun and Chang, "A Simple Unified Uncertainty-Guided Framework for
Offline-to-Online Reinforcement Learning", IEEE TNNLS 2025, arXiv 2306.07541. The uncertainty U(s, a) is a VAE's
negative evidence lower bound of the pair (s, a): high where few such pairs were seen. Online it does two things.
Optimistic exploration: of many noisy copies of the policy's action those with the highest Q are kept, and one of
them is done, the likelier the more uncertain it is. Adaptive exploitation: the offline constraint, here cloning,
is laid only on those actions of a batch that are the most uncertain; everything else is TD3. Batches come mostly
from the newest transitions, and for a small share from all there are, the dataset among them.

With --vae-updates the VAE is trained before the agent; online it has one update per environment step. --kl-weight is
its KL divergence's. Offline cloning has weight 1.

Choose it when you pre-train with TD3+BC and few environment steps are left to improve in.

Parity: equal to the authors' code, update for update, online (results/parity.md).

Deviations from the paper:
- TD3+BC is the only offline base: the version on CQL has another policy, exploration rule (U first, then Q) and
  critic loss, and would be a second algorithm in this file; it is not here;
- the VAE is trained before the agent, one in every lane (the authors' code trains one per dataset, afterwards);
- target networks and the VAE's optimiser go on into the online phase, where the authors' code, which loads
  networks from files, begins with copies of the online ones and a new one;
- details of the authors' code are kept: one latent sample per bound, means over its dimensions, candidates that are
  judged before they are clipped, and a tanh at the decoder's end, so that it cannot reach observations beyond one
  standard deviation (--no-squash leaves it out);
- --choice-temperature is ours: with few dimensions U differs so little between the finalists that the paper's softmax
  (temperature 1) is nearly uniform, which `perplexity` in metrics.csv shows;
- biases start at zero (PyTorch's default draws them like the weights);
- actions are in [-1, 1] and rescaled to the environment's range outside the networks.

    python algorithms/offline_to_online/sung.py --dataset hopper-medium --seeds 4 --vae-hidden-dims 256 256
    python algorithms/offline_to_online/sung.py --dataset hopper-medium --from results/runs/td3_bc/hopper-medium/RUN
"""

import json
import sys
from collections.abc import Callable
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
from shared.arguments import EnvSteps, FinetuneArgs, Float, Fraction, Positive, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay, sample_union
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(FinetuneArgs):
    env_steps: EnvSteps = 100_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    alpha: Float = 2.5
    """alpha: weight of the normalised Q against imitation; large: TD3, small: imitation."""
    online_bc: Float = 0.05
    """lambda: weight of behaviour cloning online (offline it is 1); 0: TD3."""
    constrained_share: StaticFraction = 0.05
    """Most uncertain share of a batch that this cloning is laid on, in (0, 1], of at least one transition."""
    n_candidates: Size = 100
    """Candidate actions at each step of an episode, of which one is taken."""
    n_finalists: Size = 10
    """Of these, those with the highest Q that uncertainty decides between; 1: greedy in Q."""
    choice_temperature: Positive = 1.0
    """Uncertainties are divided by this in the softmax that chooses among them; small: the most uncertain one."""
    exploration_noise: Float = 0.1
    """Standard deviation of the noise on the actor's actions in the environment."""
    recent_size: Size = 20_000
    """Newest transitions that most of a batch comes from online."""
    mixed_share: StaticFraction = 0.1
    """p: share of an online batch that comes from the dataset and all online transitions together, in [0, 1]."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    vae_lr: Float = 1e-3
    """Adam's step size: VAE."""
    kl_weight: Float = 0.5
    """Weight of the VAE's KL divergence."""
    squash: bool = True
    """The VAE's decoder ends in a tanh."""
    vae_updates: Size = 100_000
    """Updates of the VAE before the first one of the agent."""
    policy_noise: Float = 0.2
    """Standard deviation of the target policy's smoothing noise (actions are in [-1, 1])."""
    noise_clip: Float = 0.5
    """The target policy's smoothing noise is clipped to [-noise_clip, noise_clip]."""
    policy_delay: Size = 2
    """Critic updates per update of the actor and of the targets."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (750, 750)
    """Hidden layers of the VAE's encoder and decoder."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {"antmaze": {"reward_shift": -1.0}}  # ours, after td3_bc: the paper has CQL there

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
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(self.output_dim, kernel_init=dense_init)(x)


class VAE(nn.Module):
    """q(z | x) and p(x | z) of pairs x = (s, a), both Gaussian; the prior of z is N(0, 1)."""

    hidden_dims: tuple[int, ...]
    obs_dim: int
    action_dim: int
    squash: bool

    def setup(self):
        self.encoder = MLP(self.hidden_dims, 2 * (2 * self.action_dim))
        self.decoder = MLP(self.hidden_dims, self.obs_dim + self.action_dim)

    def __call__(self, x, key):
        """Of x [B, O + A]: mean and log standard deviation of z [B, 2A], and a sample of it decoded [B, O + A]."""
        mean, log_std = jnp.split(self.encoder(x), 2, axis=-1)
        log_std = jnp.clip(log_std, -4.0, 15.0)
        decoded = self.decoder(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))
        return mean, log_std, jnp.tanh(decoded) if self.squash else decoded


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    vae: VAE


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_actor: Any
    target_critic: Any
    vae: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    vae_opt: optax.OptState


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def first_q(agent: Agent, obs, action):
    """[B] of the first critic."""
    return agent.nets.critic.apply(jax.tree.map(lambda x: x[0], agent.critic), obs, action)


def uncertainty(vae, agent: Agent, obs, action, key, args: Args):
    """U(s, a) [B] = mean (x_z - x)^2 + kl_weight KL(q(z|x) | N(0, 1)), x = (s, a), means over dimensions."""
    x = jnp.concatenate([obs, action], axis=-1)
    mean, log_std, decoded = agent.nets.vae.apply(vae, x, key)
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - jnp.exp(2 * log_std))).mean(-1)
    return ((decoded - x) ** 2).mean(-1) + args.kl_weight * kl


def vae_loss(vae, agent: Agent, batch: Batch, key, args: Args):
    """The negative evidence lower bound of the batch's pairs."""
    loss = uncertainty(vae, agent, batch.obs, batch.action, key, args)
    chex.assert_shape(loss, (args.batch_size,))
    return loss.mean(), {}


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Clipped double Q-learning with a smoothed target action (TD3); summed over the two critics."""
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = agent.nets.actor.apply(agent.target_actor, batch.next_obs) + noise
    next_action = jnp.clip(next_action, -1.0, 1.0)
    target_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, next_action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """Offline, TD3+BC: -lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1|."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    q = first_q(agent, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc = ((pi - batch.action) ** 2).mean()
    return -lam * q.mean() + bc, {"bc_loss": bc, "q_pi": q.mean()}


def online_actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """The same with weight online_bc for cloning, and that only where U(s, pi(s)) is highest in the batch."""
    pi = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([pi, batch.action])
    q = first_q(agent, batch.obs, pi)
    lam = args.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    u = uncertainty(agent.vae, agent, batch.obs, jax.lax.stop_gradient(pi), key, args)
    _, rows = jax.lax.top_k(u, max(1, int(args.constrained_share * args.batch_size)))
    bc = ((pi[rows] - batch.action[rows]) ** 2).mean()
    info = {"bc_loss": bc, "q_pi": q.mean(), "uncertainty": u.mean(), "constrained_uncertainty": u[rows].mean()}
    return -lam * q.mean() + args.online_bc * bc, info


def finalists(agent: Agent, obs, key, args: Args):
    """Of n_candidates noisy actions in one state obs [O], those [K, A] with the highest Q_1, and their U [K]."""
    noise_key, vae_key = jax.random.split(key)
    pi = agent.nets.actor.apply(agent.actor, obs)
    candidates = pi + args.exploration_noise * jax.random.normal(noise_key, (args.n_candidates, *pi.shape))
    obs = jnp.broadcast_to(obs, (args.n_candidates, *obs.shape))
    _, best = jax.lax.top_k(first_q(agent, obs, candidates), args.n_finalists)
    return candidates[best], uncertainty(agent.vae, agent, obs[best], candidates[best], vae_key, args)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    (obs_dim,) = spec.obs_shape
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        Critic(args.hidden_dims),
        VAE(args.vae_hidden_dims, obs_dim, spec.action_dim, args.squash),
    )
    actor_key, critic_key, vae_key, latent_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    vae = nets.vae.init(vae_key, jnp.concatenate([obs, action], axis=-1), latent_key)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        vae=vae,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        vae_opt=optax.adam(args.vae_lr).init(vae),
    )


def sample(key, data: Transitions, replay: Replay, args: Args) -> Batch:
    """[B]: the newest transitions, or only as many rows as there are of them yet; the rest of everything."""
    all_key, recent_key = jax.random.split(key)
    everything = sample_union(all_key, data, replay, args.batch_size)
    recent = replay.sample(recent_key, args.batch_size, args.recent_size)
    most = min(args.batch_size - round(args.mixed_share * args.batch_size), args.recent_size)
    is_recent = jnp.arange(args.batch_size) < jnp.minimum(most, replay.size())

    def choose(a, b):
        return jnp.where(is_recent.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, recent, everything)


def update_vae(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VAE."""
    (loss, info), grads = jax.value_and_grad(vae_loss, has_aux=True)(agent.vae, agent, batch, key, args)
    updates, vae_opt = optax.adam(args.vae_lr).update(grads, agent.vae_opt)
    return agent.replace(vae=optax.apply_updates(agent.vae, updates), vae_opt=vae_opt), {"vae_loss": loss, **info}


def update_critic(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the two critics."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)
    return agent, {"critic_loss": loss, **info}


def update_actor(agent: Agent, loss_of: Callable, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor on `loss_of` its parameters, and a Polyak step of all targets."""
    (loss, info), grads = jax.value_and_grad(loss_of, has_aux=True)(agent.actor)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent = agent.replace(
        target_actor=optax.incremental_update(agent.actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(agent.critic, agent.target_critic, args.tau),
    )
    return agent, {"actor_loss": loss, **info}


def update(agent: Agent, batches: Batch, keys, args: Args) -> tuple[Agent, dict]:
    """Offline: `policy_delay` critic steps, on batches [delay, B, ...], then one actor step on the last one."""
    agent, critic_info = jax.lax.scan(lambda a, x: update_critic(a, *x, args), agent, (batches, keys))
    last = jax.tree.map(lambda x: x[-1], batches)
    agent, actor_info = update_actor(agent, partial(actor_loss, agent=agent, batch=last, args=args), args)
    return agent, {**jax.tree.map(jnp.mean, critic_info), **actor_info}


def update_online(agent: Agent, batch: Batch, key, args: Args, t) -> tuple[Agent, dict]:
    """One step of critics and VAE, and one of the actor where environment step t is a multiple of `policy_delay`."""
    critic_key, vae_key, actor_key, finalists_key = jax.random.split(key, 4)
    agent, critic_info = update_critic(agent, batch, critic_key, args)
    agent, vae_info = update_vae(agent, batch, vae_key, args)

    def move(agent):  # what is seldom counts more, so that means over all steps are those over actor steps
        loss_of = partial(online_actor_loss, agent=agent, batch=batch, key=actor_key, args=args)
        agent, info = update_actor(agent, loss_of, args)
        p = jax.nn.softmax(finalists(agent, batch.obs[0], finalists_key, args)[1] / args.choice_temperature)
        info["perplexity"] = jnp.exp(jax.scipy.special.entr(p).sum())  # n_finalists: U makes no difference
        return agent, jax.tree.map(lambda x: args.policy_delay * x, info)

    def stay(agent):
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(move, agent)[1])

    agent, actor_info = jax.lax.cond(t % args.policy_delay == 0, move, stay, agent)
    return agent, {**critic_info, **vae_info, **actor_info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], deterministic."""
    return agent.nets.actor.apply(agent.actor, obs)


def explore(agent: Agent, obs, key, args: Args):
    """Optimistic action [1, A] for obs [1, O]: one of the finalists, with probability softmax(U / temperature)."""
    finalists_key, choice_key = jax.random.split(key)
    actions, u = finalists(agent, obs[0], finalists_key, args)
    return actions[jax.random.categorical(choice_key, u / args.choice_temperature)][None]


def fit_vae(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the VAE per key; mean metrics."""

    def step(agent, key):
        batch_key, vae_key = jax.random.split(key)
        return update_vae(agent, transitions.sample(batch_key, args.batch_size), vae_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, offline: one critic update per key; mean metrics."""

    def draw(key):
        batch_key, noise_key = jax.random.split(key)
        return transitions.sample(batch_key, args.batch_size), noise_key

    def step(agent, keys):
        return update(agent, *jax.vmap(draw)(keys), args)

    agent, metrics = jax.lax.scan(step, agent, keys.reshape(-1, args.policy_delay))
    return agent, jax.tree.map(jnp.mean, metrics)


def vae_updates(args: Args) -> int:
    """Updates of the VAE before the first ones of the agent: none with --from a run that brings its own."""
    record = Path(args.from_run) / "run.json"
    if not args.from_run or not record.exists():
        return args.vae_updates
    return 0 if "vae_updates" in json.loads(record.read_text())["args"] else args.vae_updates


def main(args: Args) -> None:
    if args.n_finalists > args.n_candidates:
        raise InputError(f"--n-finalists {args.n_finalists}: there are --n-candidates {args.n_candidates}.")
    data = load_dataset(args).require(discrete=False)
    data = data.scale_rewards(shift=args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, unit=args.policy_delay, before=vae_updates(args)) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(run, transitions, explore, sample, update_online, capacity=args.buffer_size)
        agent = online.restore(agent)
        fit_lanes = run.over_lanes(fit_vae, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done < 0:
                step = train_lanes if run.offline else fit_lanes
                agent, metrics = step(agent, keys, run.lane_args, transitions)
            else:
                agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
