"""OPPO: offline preference-guided policy optimization.

Kang, Shi, Liu, He and Wang, "Beyond Reward: Offline Preference-guided Policy Optimization", ICML 2023, arXiv
2305.16217. The data has no rewards, and no model of them is made: of pairs of pieces it is known which is preferred.
An encoder puts each window of states and actions into a context z, a policy is trained to give the actions of the
window when it is told z (hindsight information matching), and one more point of that space is learned, the optimal
context z*: nearer to what is preferred than to what is not (preference modelling, a triplet loss), which shapes the
encoder, too. To act, the policy is told z*, at every step (section 4).

Who prefers is scripted: the piece of --foresee steps with more reward, of pairs that each lane draws, --known-pairs of
them. Nothing else sees a reward. What z* is worth shows with --told-context mean (the data's mean context) or random.

Choose it when somebody can tell which of two pieces is better, and no reward is known. Contexts that are far from what
any window of the present state has are asked of a policy that never saw them: where good and bad pieces are in
different places, not of different behaviour, z* says little.

Parity: equal to the authors' code, update for update, but for the encoder's normalisation and mean, the weights of the
errors and what keeps a distance's gradient finite (results/parity.md).

Deviations from the paper (and the authors' code):
- pairs are of pieces as long as --foresee, or up to a terminal row (those that a time limit cuts are compared, too);
- there is a number of pairs, each of which may come again, and the action error is of other windows, of all the data
  (every pair of windows of a batch is compared, without end, and their windows are cloned);
- the encoder's tokens are averaged where there is a step (summed, padding included), its blocks normalise what they
  read, and it has no places but timesteps (BERT's blocks normalise what they write);
- z* follows contexts without dropout; errors are means over windows (sums of two batches' means, so that preferences
  weigh twice as much here);
- no answers of persons.

    python algorithms/sequence/oppo.py --dataset hopper-medium-replay --seeds 4
    python algorithms/sequence/oppo.py --dataset pendulum-mixed --seeds 8 --foresee 150 --known-pairs 100 1e6
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
from shared.arguments import Count, Dropout, Float, OfflineArgs, Size, hyperparameters
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.parts import hidden, rank_correlation
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, horizon, require_context, require_heads, sequences
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 100_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    context: int = 20
    """K: steps that the policy sees."""
    known_pairs: Float = 1e6
    """Pairs of which it is known which one is preferred; each lane draws its own."""
    foresee: Size = 200
    """Steps of the pieces that are compared, of which the encoder sees the first K."""
    latent_dim: Size = 8
    """Size of the representations."""
    told_context: Literal["learned", "unit", "mean", "random"] = "learned"
    """The context that the policy is told: z*, z* of length 1, the data's mean one, or a random one of length 1."""
    preference_weight: Float = 0.1
    """Weight of the triplet loss of preferences."""
    norm_weight: Float = 0.1
    """Weight of the squared difference between a context's length and 1."""
    preference_margin: Float = 1.0
    """By how much what is preferred shall be nearer to z* than what is not."""
    width: int = 128
    """Size of a token."""
    layers: Size = 3
    """Blocks of the transformer."""
    heads: int = 1
    """Attention heads of each block."""
    encoder_heads: int = 2
    """Attention heads of each block of the encoder."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    latent_lr: Float = 1e-3
    """Adam's step size: the optimal context."""
    weight_decay: Float = 1e-4
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 10_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 0.25
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {}

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
MEAN_STEP = 0.01
"""How far the mean context follows that of each batch."""
JUDGED = 256
"""Windows that contexts are judged by, once in a while."""


class Block(nn.Module):
    """Self-attention, then a feed-forward layer; both read normalised tokens and are added to them."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, visible, training: bool):
        """`x` [B, N, W]; `visible` [B, N, N]: which token (last axis) each one sees."""
        *lead, width = x.shape
        drop = lambda x: nn.Dropout(self.dropout, deterministic=not training)(x)  # noqa: E731
        qkv = nn.Dense(3 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = drop(nn.softmax(jnp.where(visible[:, None], scores, -1e9)))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + drop(nn.Dense(width, kernel_init=gpt_init)(seen))
        hidden = nn.relu(nn.Dense(4 * width, kernel_init=gpt_init)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + drop(nn.Dense(width, kernel_init=gpt_init)(hidden))


class Transformer(nn.Module):
    """Tokens [B, N, W] in their order, each of which sees all that are no padding, or of those none after it."""

    layers: int
    heads: int
    dropout: float
    causal: bool

    @nn.compact
    def __call__(self, x, mask, training: bool):
        """`mask` [B, N]: 0 at padding."""
        visible = jnp.ones((x.shape[1], x.shape[1]), bool)
        visible = (jnp.tril(visible) if self.causal else visible) & (mask[:, None] > 0)
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        return nn.LayerNorm(epsilon=1e-5)(x)


class WindowEncoder(nn.Module):
    """The context z of a window, of its states and actions."""

    latent_dim: int
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, training: bool = False):
        """`window` [B, T] -> [B, Z]."""
        dense = partial(nn.Dense, kernel_init=dense_init)
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        kinds = dense(self.width, name="embed_obs")(window.obs), dense(self.width, name="embed_action")(window.action)
        batch, steps = window.mask.shape
        tokens = nn.LayerNorm(epsilon=1e-5)(jnp.stack([x + time for x in kinds], 2)).reshape(batch, 2 * steps, -1)
        mask = jnp.repeat(window.mask, 2, 1)
        x = Transformer(self.layers, self.heads, self.dropout, causal=False)(tokens, mask, training)
        return dense(self.latent_dim, name="head")((mask[..., None] * x).sum(1) / mask.sum(1, keepdims=True))


class ContextTransformer(nn.Module):
    """What to do at each step of a window in a context: actions in [-1, 1]."""

    action_dim: int
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, z, training: bool = False):
        """`window` [B, T], `z` [B, Z] -> [B, T, A]."""
        dense = partial(nn.Dense, self.width, kernel_init=dense_init)
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        kinds = dense(name="embed_context")(z)[:, None], dense(name="embed_obs")(window.obs)
        tokens = jnp.stack([x + time for x in (*kinds, dense(name="embed_action")(window.action))], 2)  # [B, T, 3, W]
        batch, steps = window.mask.shape
        tokens = nn.LayerNorm(epsilon=1e-5)(tokens).reshape(batch, 3 * steps, self.width)
        trunk = Transformer(self.layers, self.heads, self.dropout, causal=True)
        x = trunk(tokens, jnp.repeat(window.mask, 3, 1), training).reshape(batch, steps, 3, self.width)
        return jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init, name="head")(x[:, :, 1]))


class Networks(NamedTuple):
    encoder: WindowEncoder
    actor: ContextTransformer


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    spec: Spec = flax.struct.field(pytree_node=False)
    encoder: Any
    actor: Any
    z_star: jax.Array
    """[Z] the optimal context."""
    z_mean: jax.Array
    """[Z] of the data's windows, lately."""
    z_other: jax.Array
    """[Z] of length 1, in a random direction."""
    pairs_key: jax.Array
    """[2] of the draw of the pairs."""
    encoder_opt: optax.OptState
    actor_opt: optax.OptState
    z_opt: optax.OptState


class Pairs(NamedTuple):
    """Pieces' first K steps [B, K], and which is preferred."""

    better: Window
    worse: Window
    told: jax.Array
    """[B] 0 where neither is."""


class Preferences(NamedTuple):
    """A dataset on the device, and what tells which of its pieces is preferred."""

    data: Sequences
    starts: jax.Array
    """[S] rows where pieces begin."""
    score: jax.Array
    """[S] the sum of a piece's rewards."""

    def pairs(self, agent: Agent, key, args: Args) -> Pairs:
        """Of the lane's --known-pairs some, uniformly: pair n is drawn by the n-th key."""
        number = jax.random.randint(key, (args.batch_size,), 0, jnp.int32(args.known_pairs))
        pairs_key = jax.random.wrap_key_data(agent.pairs_key)
        draw = lambda n: jax.random.randint(jax.random.fold_in(pairs_key, n), (2,), 0, len(self.starts))  # noqa: E731
        pair = jax.vmap(draw)(number)
        more = self.score[pair[:, 1]] - self.score[pair[:, 0]]
        better, worse = jnp.where(more > 0, pair.T[::-1], pair.T)
        windows = (self.data.after(self.starts[place], args.context) for place in (better, worse))
        return Pairs(*windows, (more != 0).astype(jnp.float32))


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    step: jax.Array
    """[] of the observation that comes next."""


def distance(x, y):
    """Euclidean, over the last axis; its gradient is finite where they are equal."""
    return jnp.sqrt(((x - y) ** 2).sum(-1) + 1e-12)


def matching_loss(actor, agent: Agent, window: Window, z, key):
    """Mean over the steps of |pi(s, z) - a|^2 / A, z of the same window (hindsight information matching)."""
    out = agent.nets.actor.apply(actor, window, z, training=True, rngs={"dropout": key})
    chex.assert_equal_shape([out, window.action])
    return (window.mask * ((out - window.action) ** 2).mean(-1)).sum() / window.mask.sum()


def preference_loss(z_star, better, worse, told, args: Args):
    """max(0, |z* - z+| - |z* - z-| + margin), mean over the pairs [B] of which one is preferred (`told`)."""
    nearer = distance(z_star, better) - distance(z_star, worse)
    chex.assert_equal_shape([nearer, told])
    count = jnp.maximum(told.sum(), 1.0)
    return (told * jnp.maximum(nearer + args.preference_margin, 0.0)).sum() / count, (told * (nearer < 0)).sum() / count


def norm_loss(z):
    """(|z| - 1)^2, mean over contexts [B, Z]."""
    return ((distance(z, 0.0) - 1.0) ** 2).mean()


def representation_loss(networks, agent: Agent, window: Window, pairs: Pairs, key, args: Args):
    """Of encoder and actor together: z* stays as it is."""
    encoder, actor = networks
    encoder_key, actor_key = jax.random.split(key)
    seen = jax.tree.map(lambda *x: jnp.concatenate(x), window, pairs.better, pairs.worse)
    z = agent.nets.encoder.apply(encoder, seen, training=True, rngs={"dropout": encoder_key})
    own, better, worse = jnp.split(z, 3)
    matching = matching_loss(actor, agent, window, own, actor_key)
    preference, accuracy = preference_loss(agent.z_star, better, worse, pairs.told, args)
    norm = norm_loss(z)
    info = {"actor_loss": matching, "preference_loss": preference, "norm_loss": norm, "accuracy": accuracy}
    return matching + args.preference_weight * preference + args.norm_weight * norm, (info, own.mean(0))


def optimizer(args: Args, warmup_updates: int) -> optax.GradientTransformation:
    """AdamW after a clip of the global norm; the first step already has a step size, 1 / warmup_updates of it."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.where(norm > 0, jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6)), 1.0)
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / warmup_updates, 1.0)  # noqa: E731
    adamw = optax.adamw(schedule, weight_decay=args.weight_decay)
    return optax.chain(optax.stateless(lambda grads, _: clip(grads)), adamw)


def optimizers(args: Args) -> tuple[optax.GradientTransformation, ...]:
    """Of encoder, actor and z*: the actor alone has a warm-up."""
    latent = optax.adamw(args.latent_lr, weight_decay=args.weight_decay)
    return optimizer(args, 1), optimizer(args, args.warmup_updates), latent


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane; z* begins far from the contexts, which have length 1."""
    sizes, most = (args.width, args.layers), (args.token_dropout, max(args.max_timestep, 1))
    encoder = WindowEncoder(args.latent_dim, *sizes, args.encoder_heads, *most)
    nets = Networks(encoder, ContextTransformer(spec.action_dim, *sizes, args.heads, *most))
    encoder_key, actor_key, star_key, other_key, pairs_key = jax.random.split(key, 5)
    window = jax.tree.map(lambda x: x[None], empty(spec, args))
    encoder = nets.encoder.init(encoder_key, window)
    z_star, other = (jax.random.normal(k, (args.latent_dim,)) for k in (star_key, other_key))
    actor = nets.actor.init(actor_key, window, z_star[None])
    parts = encoder, actor, 2.0 * z_star
    opts = (opt.init(part) for opt, part in zip(optimizers(args), parts, strict=True))
    others = jnp.zeros(args.latent_dim), other / distance(other, 0.0), jax.random.key_data(pairs_key)
    return Agent(nets, spec, *parts, *others, *opts)


def update(agent: Agent, window: Window, pairs: Pairs, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of encoder and actor, then of z* with the new encoder; `window` [B, K]."""
    encoder_opt, actor_opt, z_opt = optimizers(args)
    grad = jax.grad(representation_loss, has_aux=True)
    grads, (info, mean) = grad((agent.encoder, agent.actor), agent, window, pairs, key, args)
    updates, encoder_state = encoder_opt.update(grads[0], agent.encoder_opt, agent.encoder)
    agent = agent.replace(encoder=optax.apply_updates(agent.encoder, updates), encoder_opt=encoder_state)
    updates, actor_state = actor_opt.update(grads[1], agent.actor_opt, agent.actor)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_state)

    better, worse = (agent.nets.encoder.apply(agent.encoder, x) for x in (pairs.better, pairs.worse))
    grads, _ = jax.grad(preference_loss, has_aux=True)(agent.z_star, better, worse, pairs.told, args)
    updates, z_state = z_opt.update(grads, agent.z_opt, agent.z_star)
    z_mean = agent.z_mean + MEAN_STEP * (mean - agent.z_mean)
    agent = agent.replace(z_star=optax.apply_updates(agent.z_star, updates), z_opt=z_state, z_mean=z_mean)
    return agent, {**info, "z_star_norm": distance(agent.z_star, 0.0)}


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps, whole = (args.context,), jnp.zeros(args.context, jnp.int32)
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": jnp.zeros((*steps, spec.action_dim))}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.spec, args), jnp.int32(0))


def context_of(agent: Agent, args: Args):
    """[Z] that the policy is told."""
    unit = agent.z_star / distance(agent.z_star, 0.0)
    return {"learned": agent.z_star, "unit": unit, "mean": agent.z_mean, "random": agent.z_other}[args.told_context]


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], and what to remember; the context is the same at every step."""
    now = {"obs": obs, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    z = jnp.broadcast_to(context_of(agent, args), (len(obs), args.latent_dim))
    action = agent.nets.actor.apply(agent.actor, Window(**moved), z)[:, -1]
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, carry.step + 1)


def judged(agent: Agent, key, preferences: Preferences, args: Args) -> dict:
    """How the order of pieces by nearness to z* goes with that by reward, and what z* changes of the actions.

    `sensitivity`: the mean of |pi(s, z*) - pi(s, z)|, z of the window itself. Nothing learns from this.
    """
    place = jax.random.randint(key, (JUDGED,), 0, len(preferences.starts))
    window = preferences.data.after(preferences.starts[place], args.context)
    z = agent.nets.encoder.apply(agent.encoder, window)
    own, star = (agent.nets.actor.apply(agent.actor, window, x) for x in (z, jnp.broadcast_to(agent.z_star, z.shape)))
    changed = (window.mask * jnp.abs(own - star).mean(-1)).sum() / window.mask.sum()
    order = rank_correlation(-distance(agent.z_star, z), preferences.score[place])
    return {"correlation": order, "sensitivity": changed, "z_norm": distance(z, 0.0).mean()}


def train(agent: Agent, keys, args: Args, preferences: Preferences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        row_key, pair_key, update_key, judge_key = jax.random.split(key, 4)
        window = preferences.data.after(preferences.data.rows(row_key, args.batch_size), args.context)
        agent, info = update(agent, window, preferences.pairs(agent, pair_key, args), update_key, args)
        return agent, (info, judge_key)

    agent, (metrics, judge_keys) = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **judged(agent, judge_keys[-1], preferences, args)}


def pieces(data: Dataset, foresee: int) -> tuple[np.ndarray, np.ndarray]:
    """[S] rows where pieces begin that have `foresee` rows of an episode, or end with a terminal one; their rewards.

    Raises:
      InputError: there are no two that differ.
    """
    row, end = np.arange(len(data.obs)), data.ends()[data.episode()]
    starts = np.flatnonzero((end - row >= foresee - 1) | data.terminal[end])
    after = np.minimum(row + foresee, end + 1)
    sums = np.append(0.0, np.cumsum(data.reward, dtype=np.float64))
    score = np.round(sums[after] - sums[row], 6)[starts]
    if not len(starts) or np.ptp(score) == 0.0:
        raise InputError(f"--foresee {foresee}: '{data.task.id}' has no two pieces of so many rows that differ.")
    return starts.astype(np.int32), score.astype(np.float32)


def main(args: Args) -> None:
    truth = load_dataset(args).require(discrete=False)
    for steps, option in ((args.context, "--context"), (args.foresee, "--foresee")):
        require_context(truth, steps, option)
    for heads in (args.heads, args.encoder_heads):
        require_heads(args.width, heads)
    if np.min(args.known_pairs) < 1 or np.max(args.known_pairs) > 2**30:
        raise InputError(f"--known-pairs {args.known_pairs}: between 1 and {2**30:,} are needed.")
    starts, score = pieces(truth, args.foresee)
    data = hidden(truth, ("rewards",)).normalize_obs(1e-6)
    args = dataclasses.replace(args, max_timestep=args.max_timestep or horizon(data))
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        told = sequences(data, "obs", "action"), jnp.asarray(starts), jnp.asarray(score)
        preferences = run.replicate(Preferences(*told))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, preferences)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
