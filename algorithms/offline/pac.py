"""PAC: Perceiver Actor-Critic, an offline actor-critic between cloning and policy improvement in one transformer.

Springenberg, Abdolmaleki, Zhang, Groth, Bloesch, Lampe, Brakel, Bechtle, Kapturowski, Hafner, Heess and Riedmiller,
"Offline Actor-Critic Reinforcement Learning Scales to Large Models", ICML 2024, arXiv 2402.05546. A few learned latents
read the observation's tokens once and then only each other. Queries read the latents: a learned one gives the policy, a
distribution over bins for each dimension of the action; an encoded action gives the distribution of its return. So one
pass of the trunk serves any number of actions. The policy is cloned with share alpha, and improved with the rest:
actions of the target policy, weighted by exp(Q / eta), are what it is to imitate there. --system says which one:

- pac: as above;
- pac_v: a value V(s) as a third output; no actions are drawn, those of the data are weighted by exp((Q - V) / eta);
- bc_q: alpha 1, the critic learns beside the policy without a say (BC+Q);
- bc: alpha 1 and no critic.

Choose it when you want one transformer that moves from cloning to reinforcement learning by one number. It is slow
beside files with plain networks, and needs no other penalty. Discrete actions are one dimension whose bins they are.

Deviations from the paper:
- one task at a time, of vectors: no tokens of images, language or the task; a token for every entry of the observation;
- only the offline phase; data that the policy collects may be given to another run, with less cloning;
- no code was released. Sizes are for small problems, where the paper's networks have up to a billion parameters; the
  scales of inputs, the weights and the step sizes are ours, and eta is a share of the range of values; the GELU is by a
  tanh, JAX's, in which its authors' laboratory has released its Perceivers;
- V of pac_v has the target of Q, weighted as its policy is, so that it is the weighted policy's value;
- targets follow by Polyak steps.

    python algorithms/offline/pac.py --dataset pendulum-mixed --width 32 --n-latents 4 --layers 1 --updates 5000
    python algorithms/offline/pac.py --dataset hopper-medium-replay --cloning 0.25 0.75 1 --updates 20000
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.run import Run, launch
from shared.sequences import require_heads
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    system: Literal["pac", "pac_v", "bc_q", "bc"] = "pac"
    """Which system: PAC, PAC+V, BC+Q or BC."""
    cloning: Fraction = 0.75
    """alpha: share of cloning in the policy's loss, in [0, 1]; 0: improvement alone. Of pac and pac_v."""
    improvement_temperature: Positive = 0.1
    """eta: the improved policy weighs actions by exp(Q / eta); a share of the range of values."""
    critic_weight: Float = 1.0
    """Weight of the critics' loss beside the actor's."""
    policy_samples: Size = 10
    """Actions of the target policy at a state that are weighted, and at a next state that the critic's target is of."""
    max_weight: Positive = 20.0
    """Clip of the exponential advantage weights."""
    n_bins: Size = 101
    """Bins of each dimension of continuous actions, evenly between -1 and 1."""
    n_atoms: Size = 101
    """Returns that the critic's distributions are over, evenly between v_min and v_max."""
    v_min: Float = 0.0
    """Lowest return of the critic's distributions; that and the highest at 0: the range of the data's returns-to-go."""
    v_max: Float = 0.0
    """Highest return of the critic's distributions."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    width: int = 128
    """Size of a token."""
    layers: Size = 2
    """Blocks of the transformer."""
    heads: int = 4
    """Attention heads of each block."""
    n_latents: Size = 8
    """Latents that read the observation's tokens."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-3
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 1_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 10.0
    """Global norm that gradients are clipped to; 0: not clipped."""
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS: dict[str, dict[str, Any]] = {}

SCALES = (0.1, 1.0, 10.0)
"""A number x is seen as tanh(c x) for each of these c."""

token_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def multi_scale(x):
    """[..., 3] of x [...]"""
    return jnp.tanh(x[..., None] * jnp.array(SCALES))


class Block(nn.Module):
    """Queries read tokens, each for itself, then a feed-forward layer; both are added to them."""

    heads: int

    @nn.compact
    def __call__(self, x, tokens=None):
        """`x` [B, Q, W] reads normalised `tokens` [B, N, W]; None: itself, normalised."""
        width = x.shape[-1]
        normal = nn.LayerNorm(epsilon=1e-5)(x)
        q = nn.Dense(width, kernel_init=dense_init)(normal)
        # A bias of the keys would change no weight, and one of the values is the output's: neither has any.
        kv = nn.Dense(2 * width, use_bias=False, kernel_init=dense_init)(normal if tokens is None else tokens)
        q, k, v = (y.reshape(*y.shape[:-1], self.heads, -1) for y in (q, *jnp.split(kv, 2, axis=-1)))
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + nn.Dense(width, kernel_init=dense_init)(seen)
        normal = nn.LayerNorm(epsilon=1e-5)(x)
        hidden = nn.gelu(nn.Dense(4 * width, kernel_init=dense_init)(normal))
        return x + nn.Dense(width, kernel_init=dense_init)(hidden)


class Head(nn.Module):
    """Logits [B, Q, outputs] of queries [B, Q, W] that read normalised latents [B, N, W]."""

    heads: int
    outputs: int

    @nn.compact
    def __call__(self, queries, latents):
        x = nn.LayerNorm(epsilon=1e-5)(Block(self.heads)(queries, latents))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Perceiver(nn.Module):
    """Latents of observations, and what is read from them: the policy, the returns of actions, the state's return."""

    dims: int
    bins: int
    atoms: int
    width: int
    layers: int
    heads: int
    n_latents: int
    obs_dim: int
    has_value: bool

    def setup(self):
        vectors = lambda name, n: self.param(name, token_init, (n, self.width))  # noqa: E731
        self.embed_obs, self.embed_action = (nn.Dense(self.width, kernel_init=dense_init) for _ in range(2))
        self.entries, self.latents = vectors("entries", self.obs_dim), vectors("latents", self.n_latents)
        self.policy_query = vectors("policy_query", 1)
        self.read, self.think = Block(self.heads), [Block(self.heads) for _ in range(self.layers)]
        self.policy_head = Head(self.heads, self.dims * self.bins)
        self.q_head = Head(self.heads, self.atoms)
        if self.has_value:
            self.value_query, self.value_head = vectors("value_query", 1), Head(self.heads, self.atoms)
        self.normal_tokens, self.normal_latents = nn.LayerNorm(epsilon=1e-5), nn.LayerNorm(epsilon=1e-5)

    def __call__(self, obs, seen_action):
        """All of it, of one action for each observation."""
        latents = self.encode(obs)
        out = self.policy(latents), self.returns(latents, seen_action[:, None])
        return (*out, self.value(latents)) if self.has_value else out

    def repeated(self, vectors, n: int):
        return jnp.broadcast_to(vectors, (n, *vectors.shape))

    def encode(self, obs):
        """[B, N, W]: no action enters here."""
        tokens = self.normal_tokens(self.embed_obs(multi_scale(obs)) + self.entries)
        latents = self.read(self.repeated(self.latents, len(obs)), tokens)
        for block in self.think:
            latents = block(latents)
        return self.normal_latents(latents)

    def policy(self, latents):
        """[B, D, bins] logits"""
        logits = self.policy_head(self.repeated(self.policy_query, len(latents)), latents)
        return logits.reshape(len(latents), self.dims, self.bins)

    def returns(self, latents, seen_actions):
        """[B, n, atoms] logits of n actions at each state; the latents are the same for all."""
        return self.q_head(self.embed_action(seen_actions), latents)

    def value(self, latents):
        """[B, atoms] logits"""
        return self.value_head(self.repeated(self.value_query, len(latents)), latents)[:, 0]


class Agent(flax.struct.PyTreeNode):
    net: Perceiver = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    actor_critic: Any
    """Policy, Q and V in one network."""
    target_actor_critic: Any
    actor_critic_opt: optax.OptState


class Judged(NamedTuple):
    """What the target network makes of a batch."""

    y: jax.Array
    """[B, atoms] distribution of the return of the data's actions, which the critic learns"""
    bins: jax.Array | None = None
    """[B, n, D] of the actions that the policy is to imitate beside the data's; None: of none."""
    weight: jax.Array | None = None
    """[B, n] how much; of pac they add up to 1."""


def to_bins(action, agent: Agent):
    """[..., D] of actions: the nearest bins, or the discrete actions themselves."""
    if agent.spec.discrete:
        return action[..., None]
    last = agent.net.bins - 1
    return jnp.clip(jnp.round((action + 1.0) / 2.0 * last), 0, last).astype(jnp.int32)


def from_bins(bins, agent: Agent):
    """Actions of bins [..., D]."""
    return bins[..., 0] if agent.spec.discrete else bins / max(agent.net.bins - 1, 1) * 2.0 - 1.0


def seen_action(action, spec: Spec):
    """[..., I] what the critic sees of actions."""
    if spec.discrete:
        return jax.nn.one_hot(action, spec.action_dim)
    return multi_scale(action).reshape(*action.shape[:-1], -1)


def part(agent: Agent, params, name: str, *inputs):
    """The output of one part of the network."""
    return agent.net.apply(params, *inputs, method=getattr(Perceiver, name))


def atoms(args: Args):
    """[atoms] returns"""
    return jnp.linspace(args.v_min, args.v_max, args.n_atoms)


def mean_return(logits, args: Args):
    """[...] of distributions [..., atoms]"""
    return (nn.softmax(logits) * atoms(args)).sum(-1)


def log_prob(logits, bins):
    """log pi [B, n] of actions in bins [B, n, D], for logits [B, D, bins]: a sum over the dimensions."""
    chosen = jnp.take_along_axis(nn.log_softmax(logits)[:, None], bins[..., None], axis=-1)
    return chosen[..., 0].sum(-1)


def projected(batch: Batch, probs, args: Args):
    """[B, atoms]: r + gamma z, z distributed as `probs` [B, atoms], each atom's share between its two neighbours."""
    z = atoms(args)
    moved = batch.reward[:, None] + args.discount * (1.0 - batch.terminal)[:, None] * z
    moved = jnp.clip(moved, args.v_min, args.v_max)
    near = 1.0 - jnp.abs(moved[:, None, :] - z[:, None]) / (z[1] - z[0])  # [B, new, old]
    return (jnp.clip(near, 0.0, 1.0) * probs[:, None, :]).sum(-1)


def judge(agent: Agent, batch: Batch, key, args: Args) -> Judged:
    """The critic's target, of what the target policy does next, or of V (pac_v); and pi_imp ~ pi exp(Q / eta).

    pi_imp is of actions of the target policy, weighted among each other, of pac_v of the data with exp((Q - V) / eta).
    """
    net, size = partial(part, agent, agent.target_actor_critic), len(batch.obs)
    eta = args.improvement_temperature * (args.v_max - args.v_min)
    states = batch.next_obs if args.system == "bc_q" else jnp.concatenate([batch.next_obs, batch.obs])
    latents = net("encode", states)
    if args.system == "pac_v":
        value = net("value", latents)
        q = mean_return(net("returns", latents[size:], seen_action(batch.action, agent.spec)[:, None]), args)
        adv = q - mean_return(value[size:], args)[:, None]
        weight = jnp.minimum(jnp.exp(adv / eta), args.max_weight)
        return Judged(projected(batch, nn.softmax(value[:size]), args), to_bins(batch.action, agent)[:, None], weight)
    logits = net("policy", latents)
    bins = jax.random.categorical(key, logits, shape=(args.policy_samples, *logits.shape[:-1]))
    bins = jnp.moveaxis(bins, 0, 1)  # [2 B, n, D]
    returns = net("returns", latents, seen_action(from_bins(bins, agent), agent.spec))
    y = projected(batch, nn.softmax(returns[:size]).mean(1), args)
    if args.system == "bc_q":
        return Judged(y)
    return Judged(y, bins[size:], nn.softmax(mean_return(returns[size:], args) / eta))


def actor_loss(params, agent: Agent, latents, batch: Batch, judged: Judged | None, args: Args):
    """-(1 - alpha) sum_j w_j log pi(a_j|s) - alpha log pi(a|s); of bc_q and bc the second alone."""
    logits = part(agent, params, "policy", latents)
    cloning = -log_prob(logits, to_bins(batch.action, agent)[:, None]).mean()
    if judged is None or judged.bins is None:
        return cloning, {"bc_loss": cloning}
    each = log_prob(logits, judged.bins)
    chex.assert_equal_shape([each, judged.weight])
    loss = -(judged.weight * each).sum(1).mean()
    info = {"bc_loss": cloning, "improvement_loss": loss, "weight_max": judged.weight.max(1).mean()}
    return (1.0 - args.cloning) * loss + args.cloning * cloning, info


def critic_loss(params, agent: Agent, latents, batch: Batch, judged: Judged, args: Args):
    """-sum_i y_i log p_i(s, a) for the target y; with V (pac_v) also that of p_i(s), weighted as the policy is."""
    logits = part(agent, params, "returns", latents, seen_action(batch.action, agent.spec)[:, None])[:, 0]
    chex.assert_equal_shape([logits, judged.y])
    loss = -(judged.y * nn.log_softmax(logits)).sum(-1).mean()
    edge = (judged.y[:, 0] + judged.y[:, -1]).mean()  # of the first and the last atom: the range may be too narrow
    info = {"q": mean_return(logits, args).mean(), "edge": edge}
    if args.system == "pac_v":
        logits = part(agent, params, "value", latents)
        loss = loss - (judged.weight[:, 0] * (judged.y * nn.log_softmax(logits)).sum(-1)).mean()
        info["v"] = mean_return(logits, args).mean()
    return loss, info


def actor_critic_loss(params, agent: Agent, batch: Batch, key, args: Args):
    """Of the policy and beta times the critic's; the trunk learns by both, the target networks by neither."""
    judged = None if args.system == "bc" else judge(agent, batch, key, args)
    latents = part(agent, params, "encode", batch.obs)
    loss, info = actor_loss(params, agent, latents, batch, judged, args)
    if judged is None:
        return loss, {"actor_loss": loss, **info}
    loss_q, info_q = critic_loss(params, agent, latents, batch, judged, args)
    return loss + args.critic_weight * loss_q, {"actor_loss": loss, "critic_loss": loss_q, **info, **info_q}


def optimizer(args: Args) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the step size rises, then falls to 0 as a cosine over the run."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    cosine = optax.cosine_decay_schedule(args.learning_rate, args.updates)
    schedule = lambda step: cosine(step) * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    dims, bins = (1, spec.action_dim) if spec.discrete else (spec.action_dim, args.n_bins)
    sizes = args.n_atoms, args.width, args.layers, args.heads, args.n_latents
    net = Perceiver(dims, bins, *sizes, spec.obs_shape[0], args.system == "pac_v")
    action = jnp.zeros(1, jnp.int32) if spec.discrete else jnp.zeros((1, spec.action_dim))
    params = net.init(key, jnp.zeros((1, *spec.obs_shape)), seen_action(action, spec))
    return Agent(
        net=net,
        spec=spec,
        actor_critic=params,
        target_actor_critic=params,
        actor_critic_opt=optimizer(args).init(params),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the network, and a Polyak step of its target."""
    grad = jax.value_and_grad(actor_critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor_critic, agent, batch, key, args)
    updates, opt = optimizer(args).update(grads, agent.actor_critic_opt, agent.actor_critic)
    params = optax.apply_updates(agent.actor_critic, updates)
    agent = agent.replace(
        actor_critic=params,
        target_actor_critic=optax.incremental_update(params, agent.target_actor_critic, args.tau),
        actor_critic_opt=opt,
    )
    return agent, {"loss": loss, "grad_norm": optax.global_norm(grads), **info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1], or [B] indices: the likeliest bin of each dimension."""
    latents = part(agent, agent.actor_critic, "encode", obs)
    return from_bins(part(agent, agent.actor_critic, "policy", latents).argmax(-1), agent)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def value_range(data: Dataset, discount: float) -> tuple[float, float]:
    """Lowest and highest return-to-go of the data; InputError where they are one."""
    returns = data.return_to_go(discount, endless=discount < 1.0)
    low, high = float(np.min(returns)), float(np.max(returns))
    if low >= high:
        raise InputError(f"--v-min {low} must be lower than --v-max {high}.")
    return low, high


def resolved(args: Args, data: Dataset) -> Args:
    """`args` with the range of values that the data has under one discount; InputError where sizes do not fit.

    Of several discounts each lane has its own range (`lane_ranges`): here it stays as it is.
    """
    require_heads(args.width, args.heads)
    if args.n_atoms < 2 or args.n_bins < 2:
        raise InputError("--n-atoms and --n-bins must be at least 2.")
    if np.any(args.v_min) or np.any(args.v_max):
        if np.max(args.v_min) >= np.min(args.v_max):
            raise InputError(f"--v-min {args.v_min} must be lower than --v-max {args.v_max}.")
    elif np.ndim(args.discount) == 0:
        low, high = value_range(data, args.discount)
        args = dataclasses.replace(args, v_min=low, v_max=high)
    return args


def lane_ranges(args: Args, data: Dataset, settings: list[dict]) -> np.ndarray | None:
    """[L, 2] lowest and highest return of each lane's own discount; None: `args` say them."""
    if np.any(args.v_min) or np.any(args.v_max):
        return None
    known = {discount: value_range(data, discount) for discount in np.ravel(args.discount).tolist()}
    return np.float32([known[setting["discount"]] for setting in settings])


def main(args: Args) -> None:
    data = load_dataset(args).require()
    data = data.scale_rewards(args.reward_scale, args.reward_shift)
    args = resolved(args, data)
    with Run(__file__, args, data.task, act) as run:
        ranges = lane_ranges(args, data, run.padded_settings)
        if ranges is not None:
            own = dataclasses.replace(run.lane_args, v_min=ranges[:, 0], v_max=ranges[:, 1])
            run.lane_args = jax.device_put(own, run.sharding)
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
