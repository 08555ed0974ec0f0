"""COCOA: Compositional Conservatism with Anchor-seeking, networks of an anchor and of the difference to it, on CQL.

Song, Lee and Kim, "Compositional Conservatism: A Transductive Approach in Offline Reinforcement Learning", ICLR 2024,
arXiv 2404.04682. A state is seen as an anchor near the data and a difference that the data knows: networks are inner
products of an embedding of the one with an embedding of the other (bilinear transduction), so that a state that was
never seen may still be made of parts that were. The anchor is where the anchor seeker's action leads in a model.
1. --dynamics-updates: models of the dynamics, forwards and backwards, both ensembles of Gaussians.
2. --seeker-updates: from the data's next states the backward model rolls out, each rollout in the direction of one
   random action of the data: its steps, played forwards, lead back to the data. The seeker h(s) clones these actions.
3. --updates: CQL with all networks in that form; seeker and models stand still.

The csv files say how far states 1 to --backward-steps steps away from the data are from the nearest of 1,000 rows of it
(distance_state) and how far their anchors are (distance_anchor): where this is no less, the method has nothing to give.

Choose it when states beyond the data will be met, and a model of the dynamics can be learned from it.

Deviations from the paper:
- settings and networks are those of the authors' code (runamu/compositional-conservatism); CQL's soft maximum is over
  all its actions (eq. 4 and appendix F of arXiv 2006.04779), there by a slip over each three of them;
- models and seeker are fitted for fixed numbers of updates, not until errors stop falling, and all members are used,
  not the 5 of 7 with the least hold-out error; rollouts are drawn anew for every update of the seeker;
- the models are ReLU networks without decay and without a reward, which no anchor needs; their members see the same
  batches and differ by their first weights, and the bounds of the log variance, -10 and 0.5, are not learned;
- actor and critics share one seeker and its anchors; biases start at zero;
- --anchors random takes random states of the data for anchors, none leaves the transduction out: CQL (ablations).

    python algorithms/offline/cocoa.py --dataset hopper-medium --transduction-dim 8 --hidden-dims 64 64 --n-actions 4
    python algorithms/offline/cocoa.py --dataset point-openstarts-onestart --seeds 8 --preset none \\
        --transduction-dim 4 --hidden-dims 32 32 --n-actions 2 --dynamics-updates 2000 --seeker-updates 1000
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset, moments
from shared.errors import InputError
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    anchors: Literal["seeker", "random", "none"] = "seeker"
    """Where anchors come from: the seeker, random states of the data, or nowhere (CQL)."""
    anchor_steps: Size = 1
    """Steps of seeker and forward model from a state to its anchor."""
    transduction_dim: Size = 32
    """Length of the two embeddings whose inner product is one feature."""
    backward_steps: Size = 5
    """Steps of a backward rollout."""
    direction_scale: Float = 0.8
    """Factor of the direction in a rollout's actions."""
    direction_noise: Float = 0.1
    """Standard deviation of the Gaussian noise on them."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    dynamics_updates: Count = 200_000
    """Updates of the models before the first of the seeker; 0 only where no anchor is sought."""
    seeker_updates: Count = 100_000
    """Updates of the seeker before the first of the agent; 0 only where no anchor is sought."""
    n_models: Size = 7
    """Models in the ensemble."""
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of the model of the dynamics."""
    seeker_hidden_dims: tuple[int, ...] = (100, 100)
    """Hidden layers of the anchor seeker."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    model_lr: Float = 1e-3
    """Adam's step size: model of the dynamics."""
    seeker_lr: Float = 1e-3
    """Adam's step size: anchor seeker."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}

POOL = 1_000
"""Rows of the data that distances are measured to, and that random anchors are drawn from."""

torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


class MLP(nn.Module):
    """ReLU layers, with `norm` each followed by LayerNorm."""

    hidden_dims: tuple[int, ...]
    outputs: int
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=torch_init)(x))
            x = nn.LayerNorm()(x) if self.norm else x
        return nn.Dense(self.outputs, kernel_init=torch_init)(x)


class Transduction(nn.Module):
    """Outputs [..., D] for a state [..., O], its anchor [..., O] and an action or none.

    Each of as many features as the last layer has units is the inner product of an embedding of the difference and
    one of the anchor; the action stands beside both. `transduction_dim` 0: an MLP on the state itself.
    """

    hidden_dims: tuple[int, ...]
    transduction_dim: int
    outputs: int

    @nn.compact
    def __call__(self, obs, anchor, *action):
        if self.transduction_dim:
            shape = (*obs.shape[:-1], self.hidden_dims[-1], self.transduction_dim)
            difference, anchor = (
                nn.LayerNorm()(MLP(self.hidden_dims, shape[-2] * shape[-1], True)(jnp.concatenate([x, *action], -1)))
                for x in (obs - anchor, anchor)
            )
            x = (difference.reshape(shape) * anchor.reshape(shape)).sum(-1)
        else:
            x = jnp.concatenate([obs, *action], axis=-1)
        return MLP(self.hidden_dims, self.outputs)(x)


class Networks(NamedTuple):
    actor: Transduction
    """Tanh-Gaussian: mean and log standard deviation."""
    critic: Transduction
    model: MLP
    """Mean and log variance of a step, forwards or backwards."""
    seeker: MLP
    """h(s), under a tanh: the action [..., A] that leads towards the data."""


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    log_alpha: jax.Array
    """Of SAC's entropy temperature."""
    model: Any
    """Two ensembles, forwards and backwards: leading axes [2, E, ...]."""
    seeker: Any
    pool: jax.Array
    """[P, O] states of the data"""
    input_mean: jax.Array
    """[2, O + A] of the models' inputs in the data"""
    input_std: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    model_opt: optax.OptState
    seeker_opt: optax.OptState


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


# ------------------------------------------------------------------------------- models and the seeker


def predict(model, agent: Agent, way: int, start, action):
    """Mean and log variance [E, B, O] of end - start, forwards (0) or backwards (1); start and action are [B, ...]."""
    x = (jnp.concatenate([start, action], axis=-1) - agent.input_mean[way]) / agent.input_std[way]
    members = jax.tree.map(lambda x: x[way], model)
    mean, log_var = jnp.split(jax.vmap(agent.nets.model.apply, (0, None))(members, x), 2, axis=-1)
    log_var = 0.5 - nn.softplus(0.5 - log_var)
    return mean, -10.0 + nn.softplus(log_var + 10.0)


def model_loss(model, agent: Agent, batch: Batch):
    """(mu - y)^2 / sigma^2 + log sigma^2, mean over rows and dimensions; summed over the members of both ways.

    What follows an end is learned only where the data has it.
    """
    loss = 0.0
    for way, (start, end) in enumerate(((batch.obs, batch.next_obs), (batch.next_obs, batch.obs))):
        mean, log_var = predict(model, agent, way, start, batch.action)
        nll = ((mean - (end - start)) ** 2 * jnp.exp(-log_var) + log_var).mean(-1)
        loss += (batch.successor * nll).mean(-1).sum()
    return loss


def backward_rollout(agent: Agent, batch: Batch, key, args: Args):
    """States [T, B, O] before the next states of a batch, and actions [T, B, A] that lead back to them step by step.

    These are near to the batch's actions in reverse order, one direction for each rollout.
    """
    direction = batch.action[::-1]

    def step(obs, key):
        action_key, member_key, noise_key = jax.random.split(key, 3)
        noise = args.direction_noise * jax.random.normal(action_key, direction.shape)
        action = jnp.clip(args.direction_scale * direction + noise, -1.0, 1.0)
        mean, log_var = predict(agent.model, agent, 1, obs, action)
        member, rows = jax.random.randint(member_key, (len(obs),), 0, len(mean)), jnp.arange(len(obs))
        std = jnp.exp(0.5 * log_var[member, rows])
        before = obs + mean[member, rows] + std * jax.random.normal(noise_key, obs.shape)
        return before, (before, action)

    start = jnp.where(batch.successor[:, None] > 0, batch.next_obs, batch.obs)
    return jax.lax.scan(step, start, jax.random.split(key, args.backward_steps))[1]


def seeker_loss(seeker, agent: Agent, obs, action):
    """(h(s) - a)^2, mean, of states [T, B, O] and actions [T, B, A] of backward rollouts."""
    return ((jnp.tanh(agent.nets.seeker.apply(seeker, obs)) - action) ** 2).mean()


def anchors_of(agent: Agent, obs, key, args: Args):
    """[B, O]: where the seeker leads in the mean of the forward models; random states; or obs itself."""
    if args.anchors == "none":
        return obs
    if args.anchors == "random":
        return agent.pool[jax.random.randint(key, obs.shape[:1], 0, len(agent.pool))]

    def step(obs, _):
        action = jnp.tanh(agent.nets.seeker.apply(agent.seeker, obs))
        return obs + predict(agent.model, agent, 0, obs, action)[0].mean(0), None

    return jax.lax.scan(step, obs, length=args.anchor_steps)[0]


def judge(agent: Agent, batch: Batch, key, args: Args) -> dict:
    """Losses of the models and the seeker, and mean distances to the pool, in standard deviations of the data."""
    roll_key, anchor_key = jax.random.split(key)
    obs, action = backward_rollout(agent, batch, roll_key, args)
    away = obs.reshape(-1, obs.shape[-1])
    seen = {"state": away, "anchor": anchors_of(agent, away, anchor_key, args)}

    def nearest(x):
        return jnp.sqrt((((x - agent.pool) / agent.input_std[0, : len(x)]) ** 2).sum(-1).min())

    found = {f"distance_{name}": jax.lax.map(nearest, x).mean() for name, x in seen.items()}
    of_model, of_seeker = model_loss(agent.model, agent, batch), seeker_loss(agent.seeker, agent, obs, action)
    return {"model_loss": of_model, "seeker_loss": of_seeker, **found}


# ------------------------------------------------------------------------------------------- the agent


class Seen(NamedTuple):
    """A batch's states with their anchors, which hold for all networks."""

    obs: jax.Array
    anchor: jax.Array


def policy(agent: Agent, actor, seen: Seen):
    """Mean and log standard deviation [B, A] under the tanh."""
    mean, log_std = jnp.split(agent.nets.actor.apply(actor, *seen), 2, axis=-1)
    return mean, jnp.clip(log_std, -5.0, 2.0)


def q_values(net: Transduction, critics, seen: Seen, action):
    """[E, B]; with actions [n, B, A], [E, n, B]."""
    obs, anchor = (jnp.broadcast_to(x, (*action.shape[:-1], x.shape[-1])) for x in seen)
    return jax.vmap(net.apply, (0, None, None, None))(critics, obs, anchor, action)[..., 0]


def conservative_gap(critic, agent: Agent, now: Seen, following: Seen, q, key, args: Args):
    """Soft maximum of Q_i over actions minus Q_i of the data's, mean over the batch: [E] (CQL's eq. 4).

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions pi(a|s).
    Policy actions at s' are evaluated at s. None of the actions carries a gradient.
    """
    uniform_key, *keys = jax.random.split(key, 3)
    own, next_own = (
        sample_tanh_gaussian(*policy(agent, agent.actor, seen), k, args.n_actions)
        for seen, k in zip((now, following), keys, strict=True)
    )
    uniform = jax.random.uniform(uniform_key, own[0].shape, minval=-1.0, maxval=1.0)
    uniform = uniform, jnp.full(own[1].shape, uniform.shape[-1] * jnp.log(0.5))
    action, log_density = (jnp.concatenate(x) for x in zip(uniform, own, next_own, strict=True))
    all_q = q_values(agent.nets.critic, critic, now, action) - log_density
    chex.assert_shape(all_q, (2, 3 * args.n_actions, q.shape[1]))
    return (jax.nn.logsumexp(all_q, axis=1) - q).mean(1)


def critic_loss(critic, agent: Agent, batch: Batch, now: Seen, following: Seen, key, args: Args):
    """Bellman error plus the conservative penalty, each summed over the two critics."""
    target_key, gap_key = jax.random.split(key)
    action, _ = sample_tanh_gaussian(*policy(agent, agent.actor, following), target_key)
    next_q = q_values(agent.nets.critic, agent.target_critic, following, action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, now, batch.action)
    chex.assert_equal_shape([y, q[0], batch.reward])
    bellman = ((q - y) ** 2).mean(1).sum(0)
    gap = conservative_gap(critic, agent, now, following, q, gap_key, args)
    return bellman + args.cql_alpha * gap.sum(), {"bellman_loss": bellman, "gap": gap.mean(), "q": q.mean()}


def actor_loss(actor, agent: Agent, now: Seen, key, args: Args):
    """alpha log pi(a|s) - min_i Q_i(s, a), a ~ pi."""
    action, log_prob = sample_tanh_gaussian(*policy(agent, actor, now), key)
    q = q_values(agent.nets.critic, agent.critic, now, action).min(0)
    chex.assert_equal_shape([q, log_prob])
    return (jnp.exp(agent.log_alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec, pool=None, input_mean=0.0, input_std=1.0) -> Agent:
    """The agent of one lane. `pool` [P, O]: states of the data; `input_mean`, `input_std` [2, O + A]: of the states
    (forwards: obs, backwards: next_obs) and actions."""
    o, a = spec.obs_shape[0], spec.action_dim
    transduction_dim = 0 if args.anchors == "none" else args.transduction_dim
    nets = Networks(
        Transduction(args.hidden_dims, transduction_dim, 2 * a),
        Transduction(args.hidden_dims, transduction_dim, 1),
        MLP(args.model_hidden_dims, 2 * o),
        MLP(args.seeker_hidden_dims, a, norm=True),
    )
    actor_key, critic_key, model_key, seeker_key = jax.random.split(key, 4)
    obs, action, log_alpha = jnp.zeros((1, o)), jnp.zeros((1, a)), jnp.zeros(())
    actor, seeker = nets.actor.init(actor_key, obs, obs), nets.seeker.init(seeker_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, obs, action), jax.random.split(critic_key, 2))
    members = jax.lax.map(
        lambda k: nets.model.init(k, jnp.zeros((1, o + a))), jax.random.split(model_key, 2 * args.n_models)
    )
    model = jax.tree.map(lambda x: x.reshape(2, args.n_models, *x.shape[1:]), members)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        log_alpha=log_alpha,
        model=model,
        seeker=seeker,
        pool=jnp.zeros((1, o)) if pool is None else jnp.asarray(pool),
        input_mean=jnp.broadcast_to(jnp.float32(input_mean), (2, o + a)),
        input_std=jnp.broadcast_to(jnp.float32(input_std), (2, o + a)),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        model_opt=optax.adam(args.model_lr).init(model),
        seeker_opt=optax.adam(args.seeker_lr).init(seeker),
    )


def update_model(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of all members of both ways."""
    grads = jax.grad(model_loss)(agent.model, agent, batch)
    updates, model_opt = optax.adam(args.model_lr).update(grads, agent.model_opt)
    return agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt), {}


def update_seeker(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the seeker on rollouts of a batch; the models stand still."""
    grads = jax.grad(seeker_loss)(agent.seeker, agent, *backward_rollout(agent, batch, key, args))
    updates, seeker_opt = optax.adam(args.seeker_lr).update(grads, agent.seeker_opt)
    return agent.replace(seeker=optax.apply_updates(agent.seeker, updates), seeker_opt=seeker_opt), {}


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor, the temperature, then the critics with the new actor; then of the targets."""
    anchor_key, next_key, actor_key, critic_key = jax.random.split(key, 4)
    now = Seen(batch.obs, anchors_of(agent, batch.obs, anchor_key, args))
    following = Seen(batch.next_obs, anchors_of(agent, batch.next_obs, next_key, args))
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, now, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info_pi["entropy"], batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    agent = agent.replace(log_alpha=optax.apply_updates(agent.log_alpha, updates), alpha_opt=alpha_opt)

    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss_q, info_q), grads = grad(agent.critic, agent, batch, now, following, critic_key, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)
    target_critic = optax.incremental_update(critic, agent.target_critic, args.tau)
    metrics = {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": jnp.exp(agent.log_alpha), **info_q, **info_pi}
    return agent.replace(critic=critic, critic_opt=critic_opt, target_critic=target_critic), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the policy's mean."""
    return jnp.tanh(policy(agent, agent.actor, Seen(obs, anchors_of(agent, obs, key, args)))[0])


def train(agent: Agent, keys, args: Args, transitions: Transitions, learn) -> tuple[Agent, dict]:
    """One lane, one phase: one update by `learn` per key; mean metrics, and those of `judge` at the end."""

    def step(agent, key):
        return learn(agent, transitions.sample(key[0], args.batch_size), key[1], args)

    keys = jax.vmap(partial(jax.random.split, num=3))(keys)
    agent, metrics = jax.lax.scan(step, agent, keys[:, :2])
    batch_key, judge_key = jax.random.split(keys[-1, 2])
    found = judge(agent, transitions.sample(batch_key, args.batch_size), judge_key, args)
    return agent, jax.tree.map(jnp.mean, metrics) | found


def main(args: Args) -> None:
    if args.anchors == "seeker" and min(args.dynamics_updates, args.seeker_updates) < 1:
        raise InputError("--anchors seeker: --dynamics-updates and --seeker-updates must be at least 1.")
    if args.anchors != "none" and not args.hidden_dims:
        raise InputError("--hidden-dims: embeddings are as many as the last hidden layer has units; give one.")
    data = load_dataset(args).require(discrete=False)
    inputs = [np.concatenate([x, data.action], axis=1) for x in (data.obs, data.next_obs)]
    mean, std = (np.stack(of) for of in zip(*(moments(x, 1e-12) for x in inputs)))
    pool = data.obs[np.random.default_rng(0).permutation(len(data.obs))[:POOL]]
    scale = {"input_mean": mean, "input_std": std, "pool": pool}
    before = args.dynamics_updates + args.seeker_updates
    with Run(__file__, args, data.task, act, before=before) as run:
        if args.seeker_updates % run.chunk:
            raise InputError(f"--dynamics-updates and --seeker-updates must be multiples of {run.chunk} here.")
        transitions = run.replicate(data.transitions(*FIELDS, "successor"))
        agent = run.init(partial(init, spec=data.spec, **scale))
        agent = run.restore(agent)
        model_lanes, seeker_lanes, train_lanes = (
            run.over_lanes(partial(train, learn=learn), in_axes=(0, 0, 0, None), donate=True)
            for learn in (update_model, update_seeker, update)
        )
        for keys in run.chunks():
            step = model_lanes if run.done < -args.seeker_updates else seeker_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
