"""Metamon: a sequence actor-critic that clones those actions of a mixed log which its critics find better than its own.

Grigsby, Xie, Sasek, Zheng and Zhu, "Human-Level Competitive Pokémon via Scalable Offline Reinforcement Learning with
Transformers", RLC 2025, arXiv 2504.04395; the learner is AMAGO's (Grigsby et al., arXiv 2310.09971 and 2411.11188).
What other players hide must be remembered: a causal transformer makes an embedding h_t of all steps so far, and
everything is learned from it in parallel at every step of a window and for several discounts g at once:

    critics   (Q_k,g(h_t, a_t) - y_g)^2,  y_g = r + g (1 - terminal) sum_a pi'(a|h_{t+1}) mean_2 Q'_g(h_{t+1}, a),
    actor     -f(A) log pi_g(a_t|h_t),    A = mean_k [Q_k,g(h_t, a_t) - sum_a pi_g(a|h_t) Q_k,g(h_t, a)],

in units of PopArt, the running mean and deviation of y_g. f is 1[A > 0] (binary) or exp(beta A), clipped (exp); the
short horizons steady the embedding, and the policy of the last discount acts. The probabilities of pi and pi' are kept
within [0.001, 0.99] before they sum to 1, in the losses as in play, as AMAGO's are. --filter none is imitation: f is 1
and no critic is trained. --memory 1 is the same without memory: h_t is of the present step alone.

Choose it when the log is of players good and bad, actions are discrete, and what was seen earlier tells what to do now.

Deviations from the paper (and the authors' code):
- observations are vectors; the network that reads a turn's text and numbers is an MLP here, of the observation, the
  last action and its reward;
- blocks of the transformer are those of this collection's other sequence files with leaky ReLU: no norms within
  sublayers, scaled heads and reparametrised weights (theirs), no dropout of 0.05;
- windows have --context steps, 20 (a whole battle, up to 200), and episodes are drawn in proportion to their length;
- A is in PopArt's units for both filters; the authors' training takes the networks' outputs before PopArt's own
  scale and shift, which differ by a positive factor that the binary filter does not see;
- exp(beta A) is clipped at 100, as in the authors' settings of the exponential filter (at 50 in their first public
  ones), without their least weight of 1e-7;
- imitation keeps the further actors, which the authors' leaves out;
- critics are asked for the data's action as it is (in AMAGO since April 2026 its one-hot is clipped, too);
- critics on two-hot returns, and AMAGO's ascent of the critics, which Metamon leaves out, are not here.
The paper's text asks for the least of two random critics; the authors' code takes their mean wherever critics are not
ascended, and so does this file. As there, the two are drawn for each step and discount, and may be the same.

    python algorithms/sequence/metamon.py --seeds 4 --updates 3000 --preset tiny
    python algorithms/sequence/metamon.py --seeds 4 --updates 3000 --preset tiny --filter none --memory 1 20
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.errors import InputError
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, require_context, require_heads, sequences, shown
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "hidden-team-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    updates: Size = 1_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    filter: Literal["none", "binary", "exp"] = "binary"
    """Which actions are cloned: all, and no critic is trained (none); those of a positive advantage (binary); all, with
    weights exp(beta * advantage), clipped (exp)."""
    beta: Float = 1.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    context: int = 20
    """K: steps that the policy sees."""
    memory: Float = 1000.0
    """Steps that each block of the transformer sees, the present one among them, at least 1; 1: no memory."""
    train_discounts: tuple[float, ...] = (0.1, 0.9, 0.95, 0.97, 0.99, 0.995)
    """Discounts of further actors and critics, which are trained beside the one that acts."""
    discount: Fraction = 0.999
    """gamma, in [0, 1]."""
    reward_scale: float = 10.0
    """Rewards are multiplied by this in training."""
    n_critics: Size = 4
    """Critics in the ensemble."""
    target_critics: Size = 2
    """Critics, drawn for each step and discount, whose mean target value is bootstrapped."""
    critic_weight: Float = 10.0
    """Weight of the critics' loss beside the actor's."""
    popart_rate: Fraction = 5e-4
    """Step of the running moments of the critics' targets, in [0, 1]; the first ones are larger, at 0 none moves."""
    width: int = 512
    """Size of a token."""
    layers: Size = 3
    """Blocks of the transformer."""
    heads: int = 8
    """Attention heads of each block."""
    hidden_dims: tuple[int, ...] = (300, 300)
    """Hidden layers of every network that has no argument of its own for them."""
    tau: Fraction = 0.004
    """Polyak step of the target networks, in [0, 1]."""
    learning_rate: Float = 1.5e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-4
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 1_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 1.5
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 32
    """Transitions per gradient update."""


PRESETS = {
    "medium": {"width": 768, "layers": 6, "hidden_dims": (400, 400)},
    "large": {"width": 1280, "layers": 9, "heads": 20, "hidden_dims": (512, 512)},
    "tiny": {"width": 32, "layers": 1, "heads": 2, "hidden_dims": (64,), "learning_rate": 1e-3},  # ours: on two cores
}

gpt_init = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention, then a feed-forward layer; both read normalised tokens and are added to them."""

    heads: int

    @nn.compact
    def __call__(self, x, visible):
        """`x` [B, N, W]; `visible` [B, N, N]: which token (last axis) each one sees."""
        *lead, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = nn.softmax(jnp.where(visible[:, None], scores, -1e9))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + nn.Dense(width, kernel_init=gpt_init)(seen)
        hidden = nn.leaky_relu(nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + nn.Dense(width, kernel_init=gpt_init)(hidden)


def sinusoids(timestep, width: int):
    """[..., W] sines, then cosines, of a timestep [...] at wavelengths from 2 pi to 2 pi 10,000."""
    rates = 10_000.0 ** -jnp.linspace(0.0, 1.0, -(-width // 2))
    angle = timestep[..., None] * rates
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :width]


class Trunk(nn.Module):
    """h_t [B, T, W] of the states of a window, each of which sees itself and the last ones before it."""

    action_dim: int
    hidden_dims: tuple[int, ...]
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, states: Window, memory):
        """`states` [B, T] with the action and the reward before each, which count for nothing at timestep 0."""
        before = (states.timestep > 0)[..., None]
        action = before * jax.nn.one_hot(states.action, self.action_dim)
        x = jnp.concatenate([states.obs, action, before * states.reward[..., None]], axis=-1)
        for size in self.hidden_dims:
            x = nn.leaky_relu(nn.Dense(size)(x))
        x = nn.Dense(self.width)(x) + sinusoids(states.timestep, self.width)
        steps = jnp.arange(x.shape[1])
        age = steps[:, None] - steps
        visible = (age >= 0) & (age < memory) & (states.mask[:, None] > 0)
        for _ in range(self.layers):
            x = Block(self.heads)(x, visible)
        return nn.LayerNorm(epsilon=1e-5)(x)


class Heads(nn.Module):
    """Logits or Q of every action for every discount [..., G, A]."""

    hidden_dims: tuple[int, ...]
    n_discounts: int
    action_dim: int

    @nn.compact
    def __call__(self, h):
        for size in self.hidden_dims:
            h = nn.leaky_relu(nn.Dense(size)(h))
        return nn.Dense(self.n_discounts * self.action_dim)(h).reshape(*h.shape[:-1], self.n_discounts, self.action_dim)


class Networks(NamedTuple):
    trunk: Trunk
    actor: Heads
    critic: Heads
    spec: Spec


class PopArt(NamedTuple):
    """Moments of the targets, and the scale and shift that keep values where they were when the moments move; [G]."""

    mean: jax.Array
    square: jax.Array
    scale: jax.Array
    shift: jax.Array
    count: jax.Array
    """[] updates so far"""

    def std(self):
        return jnp.sqrt(jnp.clip(self.square - self.mean**2, 1e-4, 1e8))

    def normal(self, x):
        """Normalised values of a critic's outputs x [..., G]."""
        return self.scale * x + self.shift

    def value(self, x):
        """Values, in the unit of returns."""
        return self.std() * self.normal(x) + self.mean

    def moved(self, y, mask, rate) -> "PopArt":
        """After targets y [B, T, G], of which those where `mask` [B, T] is count; no `value` changes."""
        so_far = 1.0 - (1.0 - rate) ** (self.count + 2)
        step = jnp.where(rate > 0, rate / jnp.where(rate > 0, so_far, 1.0), 0.0)
        of_targets = (jnp.einsum("bt,btg->g", mask, x) / mask.sum() for x in (y, y**2))
        mean, square = (old + step * (new - old) for old, new in zip(self[:2], of_targets, strict=True))
        new = PopArt(mean, square, self.scale, self.shift, self.count + 1)
        scale, shift = (self.std() * x / new.std() for x in (self.scale, self.shift + (self.mean - mean) / self.std()))
        return new._replace(scale=scale, shift=shift)


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    trunk: Any
    actor: Any
    critic: Any
    """The critics, stacked on a leading axis [E, ...]."""
    target_actor: Any
    target_critic: Any
    popart: PopArt
    opt: optax.OptState
    """Of trunk, actor and critics together."""


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K states, at the right end of the window."""

    states: Window
    action: jax.Array
    """[] the last one"""
    step: jax.Array
    """[] of the observation that comes next."""


def discounts(args: Args):
    """[G]; the last one is the acting policy's."""
    return jnp.stack([*map(jnp.float32, args.train_discounts), jnp.float32(args.discount)])


def states_of(rows: Window) -> Window:
    """The K + 1 states of K transitions [B, K + 1], the first of which is the row before them.

    Each with the action and the reward that led to it; the last state that there is, is a next_obs.
    """
    first = lambda x: x[:, 1:2]  # noqa: E731
    return Window(
        mask=jnp.concatenate([first(rows.mask), rows.mask[:, 1:]], 1),
        timestep=first(rows.timestep) + jnp.arange(rows.mask.shape[1]),
        obs=jnp.concatenate([first(rows.obs), rows.next_obs[:, 1:]], 1),
        action=rows.action,
        reward=rows.reward,
    )


def q_values(net: Heads, critics, h):
    """[E, B, T, G, A] outputs of the critics, before PopArt."""
    return jax.vmap(net.apply, (0, None))(critics, h)


def of_action(x, action):
    """x [..., B, T, G, A] at the actions [B, T]: [..., B, T, G]."""
    return (x * jax.nn.one_hot(action, x.shape[-1])[:, :, None]).sum(-1)


def probabilities(logits):
    """pi [..., A] of `logits`, each kept within [0.001, 0.99] before they sum to 1; what is at a bound has no gradient.

    Their sum has one: AMAGO stops it, but PyTorch's distribution divides by the sum once more, and there it counts.
    """
    kept = jnp.clip(jax.nn.softmax(logits), 1e-3, 0.99)
    return kept / kept.sum(-1, keepdims=True)


def td_target(agent: Agent, next_h, step: Window, key, args: Args):
    """y [B, K, G] = r + g (1 - terminal) sum_a pi'(a|s') mean_2 Q'(s', a): by the target heads at h of next states."""
    pi = probabilities(agent.nets.actor.apply(agent.target_actor, next_h))
    v = agent.popart.value((pi * q_values(agent.nets.critic, agent.target_critic, next_h)).sum(-1))
    drawn = jax.random.randint(key, (args.target_critics, *v.shape[1:]), 0, args.n_critics)
    v = jnp.take_along_axis(v, drawn, axis=0).mean(0)
    reward, goes_on = (x[..., None] for x in (args.reward_scale * step.reward, 1.0 - step.terminal))
    return reward + discounts(args) * goes_on * v


def critic_loss(critic, agent: Agent, popart: PopArt, h, step: Window, y):
    """Mean over steps, critics and discounts of (Q_k(s, a) - y)^2 in PopArt's units [B, K, G]."""
    q = popart.normal(of_action(q_values(agent.nets.critic, critic, h), step.action))
    target_q = (y - popart.mean) / popart.std()
    chex.assert_equal_shape([q[0], target_q])
    return masked_mean(((q - target_q) ** 2).mean((0, -1)), step.mask), q


def advantage(agent: Agent, popart: PopArt, h, step: Window):
    """A [B, K, G] = mean_k [Q_k(s, a) - sum_a pi(a|s) Q_k(s, a)] in PopArt's units; by the online heads."""
    q = q_values(agent.nets.critic, agent.critic, h).mean(0)
    pi = probabilities(agent.nets.actor.apply(agent.actor, h))
    return popart.scale * (of_action(q, step.action) - (pi * q).sum(-1))


def actor_loss(actor, agent: Agent, h, step: Window, adv, args: Args):
    """Mean over steps and discounts of -f(A) log pi(a|s), f = 1[A > 0], exp(beta A), clipped, or 1."""
    log_prob = of_action(jnp.log(probabilities(agent.nets.actor.apply(actor, h))), step.action)
    if args.filter == "none":
        weight = jnp.ones_like(log_prob)
    elif args.filter == "binary":
        weight = (adv > 0).astype(jnp.float32)
    else:
        weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    chex.assert_equal_shape([weight, log_prob])
    info = {"weight": masked_mean(weight[..., -1], step.mask), "log_prob": masked_mean(log_prob[..., -1], step.mask)}
    return -masked_mean((jax.lax.stop_gradient(weight) * log_prob).mean(-1), step.mask), info


def total_loss(params, agent: Agent, rows: Window, key, args: Args):
    """Actor's loss + critic_weight * critics' loss (of imitation: the actor's alone), and PopArt's new moments.

    The embedding learns from both; targets and the filter carry no gradient.
    """
    trunk, actor, critic = params
    h = agent.nets.trunk.apply(trunk, states_of(rows), args.memory)
    step, now, fixed = jax.tree.map(lambda x: x[:, 1:], rows), h[:, :-1], jax.lax.stop_gradient(h)
    if args.filter == "none":
        loss, info = actor_loss(actor, agent, now, step, None, args)
        return loss, (agent.popart, {"actor_loss": loss, **info})
    y = td_target(agent, fixed[:, 1:], step, key, args)
    popart = agent.popart.moved(y, step.mask, args.popart_rate)
    loss_q, q = critic_loss(critic, agent, popart, now, step, y)
    loss_pi, info = actor_loss(actor, agent, now, step, advantage(agent, popart, fixed[:, :-1], step), args)
    value = popart.std()[-1] * q.mean(0)[..., -1] + popart.mean[-1]
    info |= {"critic_loss": loss_q, "actor_loss": loss_pi, "q": masked_mean(value, step.mask)}
    return loss_pi + args.critic_weight * loss_q, (popart, info)


def masked_mean(x, mask):
    """Mean of x [B, K] where `mask` is 1."""
    chex.assert_equal_shape([x, mask])
    return (mask * x).sum() / mask.sum()


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    n = len(args.train_discounts) + 1
    trunk_net = Trunk(spec.action_dim, args.hidden_dims, args.width, args.layers, args.heads)
    nets = Networks(trunk_net, *(Heads(args.hidden_dims, n, spec.action_dim) for _ in range(2)), spec)
    trunk_key, actor_key, critic_key = jax.random.split(key, 3)
    h = jnp.zeros((1, args.context, args.width))
    trunk = nets.trunk.init(trunk_key, jax.tree.map(lambda x: x[None], empty(spec, args)), args.memory)
    actor = nets.actor.init(actor_key, h)
    critic = jax.lax.map(lambda k: nets.critic.init(k, h), jax.random.split(critic_key, args.n_critics))
    return Agent(
        nets=nets,
        trunk=trunk,
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        popart=PopArt(jnp.zeros(n), jnp.full(n, 100.0), jnp.ones(n), jnp.zeros(n), jnp.int32(0)),
        opt=optimizer(args).init((trunk, actor, critic)),
    )


def sample(key, data: Sequences, args: Args) -> Window:
    """Rows [B, K + 1]: the one before a window, and the window, anywhere in an episode, all of it if it is shorter."""
    row_key, begin_key = jax.random.split(key)
    row = data.rows(row_key, args.batch_size)
    places = jnp.maximum(data.end[row] - data.start[row] + 2 - args.context, 1)
    begin = data.start[row] + jax.random.randint(begin_key, row.shape, 0, places)
    return data.take(begin, jnp.arange(-1, args.context))


def update(agent: Agent, rows: Window, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the trunk, the actor and the critics together; then one of the targets."""
    params = agent.trunk, agent.actor, agent.critic
    grad = jax.value_and_grad(total_loss, has_aux=True)
    (_, (popart, info)), grads = grad(params, agent, rows, key, args)
    updates, opt = optimizer(args).update(grads, agent.opt, params)
    trunk, actor, critic = optax.apply_updates(params, updates)
    agent = agent.replace(
        trunk=trunk,
        actor=actor,
        critic=critic,
        target_actor=optax.incremental_update(actor, agent.target_actor, args.tau),
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        popart=popart,
        opt=opt,
    )
    return agent, {"grad_norm": optax.global_norm(grads), **info}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    zeros = jnp.zeros(args.context)
    known = {"timestep": zeros.astype(jnp.int32), "action": zeros.astype(jnp.int32), "reward": zeros}
    return shown(zeros > 0, known | {"obs": jnp.zeros((args.context, *spec.obs_shape))})


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.nets.spec, args), jnp.int32(0), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B], drawn from the policy of the last discount, as in the paper; and what to remember."""
    now = {"obs": obs, "action": carry.action, "reward": reward, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: jnp.roll(x, -1, axis=1) for name, x in carry.states._asdict().items() if x is not None}
    states = Window(**{name: x.at[:, -1].set(now[name]) for name, x in known.items()})
    h = agent.nets.trunk.apply(agent.trunk, states, args.memory)[:, -1]
    pi = probabilities(agent.nets.actor.apply(agent.actor, h)[:, -1])
    action = jax.random.categorical(key, jnp.log(pi)).astype(jnp.int32)
    return action, Carry(states, action, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, data, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=True)
    require_context(data, args.context)
    require_heads(args.width, args.heads)
    if np.min(args.memory) < 1.0:
        raise InputError(f"--memory {np.min(args.memory):g}: at least the present step is seen, 1.")
    if not all(0.0 <= discount <= 1.0 for discount in args.train_discounts):
        raise InputError(f"--train-discounts must lie in [0, 1], unlike {' '.join(map(str, args.train_discounts))}.")
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        windows = run.replicate(sequences(data, "obs", "action", "reward", "terminal", "next_obs"))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
