"""DoC: Dichotomy of Control.

Yang, Schuurmans, Abbeel and Nachum, "Dichotomy of Control: Separating What You Can Control from What You Cannot", ICLR
2023, arXiv 2210.13435. A policy that is asked for a high return imitates luck where returns are a matter of luck. Here
it is asked for a latent z of the future instead, and z is kept from knowing what the environment decides: given the
past of a step and its action, it must tell nothing of the reward and of the next state (eq. 7). A value V(z) then says
what z is worth, and what is promised is what is obtained (consistency, theorem 2).

The two constraints are one term: a classifier f tells the reward and next state that followed from those of other
steps, by the past, the action and z; the better it is, the more z knows (a lower bound of the information, eq. 8). f is
trained to be good at it, the encoder of the future to make it bad, by --mi-weight; at 0 nothing is kept from z.

Choose it when the dynamics or the rewards are random, and a high return in the data may have been luck.

Deviations from the paper:
- the released code minimises the classification loss by f and by the encoder together, which makes z tell more; here
  the two are opposed, as in the paper's equations, and the prior is trained (the released one is not, while the
  constraint is on);
- z is of the steps from the present one on and steers this step's action alone; in the released code it is of the
  window after, and steers the window;
- the released code keeps z from knowing the reward and the state that follow one step; here it is, as in eq. 7, every
  step that z is made of, of which each update draws one for each row of its batch;
- the policy reads the reward of the step before, not the one that has yet to come;
- the tables of its bandits are these networks, too, and have a prior, of weight 0.1 (the released tables have none: of
  all z the one whose return is most surely the highest is acted on);
- discrete actions are learned by cross-entropy, as in the tables (in the released networks by the squared error of tanh
  outputs), and a value has no bounds (theirs is a tanh).
No update is compared with the released code: its transformer's file names an argument twice in one call, which Python
refuses, and its tables have no weights that these networks could be given.

    python algorithms/sequence/doc.py --dataset bandit-p80-good10 --seeds 8 --updates 2000 --context 1 --future 1
    python algorithms/sequence/doc.py --dataset point-lake-random --seeds 4 --mi-weight 0 1
"""

import dataclasses
import sys
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
from shared.arguments import Count, Dropout, Float, OfflineArgs, Size, hyperparameters
from shared.data import load_dataset
from shared.policies import StatefulPolicy
from shared.run import Run, launch
from shared.sequences import Sequences, Window, horizon, require_context, require_heads, return_scale, sequences
from shared.task import Spec


@hyperparameters
class Args(OfflineArgs):
    updates: Size = 10_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""
    context: int = 20
    """K: steps that the policy sees."""
    future: int = 20
    """Steps of the future, from the present one on, that z is made of."""
    mi_weight: Float = 1.0
    """beta: weight of what z knows of rewards and next states; 0: it may know everything."""
    prior_weight: Float = 1.0
    """Weight of the divergence between z's distribution given the future and given the past."""
    value_weight: Float = 1.0
    """Weight of the value's squared error, in units of the return's scale."""
    latent_dim: Size = 32
    """Size of the representations."""
    prior_samples: Size = 100
    """z that are drawn at every step, of which the one of the highest value is acted on."""
    return_scale: Float = 0.0
    """Returns are divided by it; 0: by the largest magnitude of the data's returns-to-go."""
    width: int = 128
    """Size of a token."""
    layers: Size = 3
    """Blocks of the transformer."""
    heads: int = 1
    """Attention heads of each block."""
    token_dropout: Dropout = 0.1
    """Dropout of tokens, attention weights and the outputs of each block, in [0, 1)."""
    learning_rate: Float = 1e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-4
    """Weights lose this share of the step size at each update (AdamW)."""
    warmup_updates: Count = 1_000
    """Updates over which the step size rises from zero."""
    max_grad_norm: Float = 0.25
    """Global norm that gradients are clipped to; 0: not clipped."""
    batch_size: Size = 64
    """Transitions per gradient update."""
    max_timestep: Count = 0
    """Timesteps that have an embedding of their own; 0: the environment's limit, or the data's longest episode."""


PRESETS = {"bandit": {"context": 1, "future": 1, "prior_weight": 0.1}}  # the prior is ours: tables have none

gpt_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


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
    """Tokens [B, N, W] in their order, each of which sees itself and those before it that are no padding."""

    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, training: bool):
        """`mask` [B, N]: 0 at padding."""
        visible = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & (mask[:, None] > 0)
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, visible, training)
        return nn.LayerNorm(epsilon=1e-5)(x)


class Trunk(nn.Module):
    """Steps (reward, state, action) [B, T], and what each token has seen so far [B, T, 3, W]."""

    spec: Spec
    width: int
    layers: int
    heads: int
    dropout: float
    max_timestep: int

    @nn.compact
    def __call__(self, window: Window, training: bool = False):
        dense = partial(nn.Dense, self.width, kernel_init=dense_init)
        action = jax.nn.one_hot(window.action, self.spec.action_dim) if self.spec.discrete else window.action
        time = nn.Embed(self.max_timestep, self.width, embedding_init=nn.initializers.normal(1.0))(
            jnp.minimum(window.timestep, self.max_timestep - 1)
        )
        kinds = dense(name="embed_reward")(window.reward[..., None]), dense(name="embed_obs")(window.obs)
        tokens = jnp.stack([x + time for x in (*kinds, dense(name="embed_action")(action))], 2)
        batch, steps = window.mask.shape
        tokens = nn.LayerNorm(epsilon=1e-5)(tokens).reshape(batch, 3 * steps, self.width)
        trunk = Transformer(self.layers, self.heads, self.dropout)
        return trunk(tokens, jnp.repeat(window.mask, 3, 1), training).reshape(batch, steps, 3, self.width)


class MLP(nn.Module):
    """One hidden layer."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, *inputs):
        x = nn.relu(nn.Dense(self.width, kernel_init=dense_init)(jnp.concatenate(inputs, -1)))
        return nn.Dense(self.outputs, kernel_init=dense_init)(x)


class Latent(NamedTuple):
    """A Gaussian over z [B, Z]."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key, *lead: int):
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, (*lead, *self.mean.shape))


class Actor(nn.Module):
    """What the past tells, z's prior, the action and the value of z."""

    trunk: Trunk
    latent_dim: int

    def setup(self):
        width, spec = self.trunk.width, self.trunk.spec
        self.prior_head = nn.Dense(2 * self.latent_dim, kernel_init=dense_init)
        self.action_head, self.value_head = MLP(width, spec.action_dim), MLP(width, 1)

    def __call__(self, past: Window, z, training: bool = False):
        """-> (h [B, W], prior, action [B, A] or logits, value [B]); h has not seen the present action."""
        h = self.seen(past, training)
        return h, self.prior(h), self.action(h, z), self.value(h, z)

    def seen(self, past: Window, training: bool = False):
        return self.trunk(past, training)[:, -1, 1]

    def prior(self, h) -> Latent:
        mean, log_std = jnp.split(self.prior_head(h), 2, -1)
        return Latent(mean, jnp.clip(log_std, -5.0, 2.0))

    def action(self, h, z):
        out = self.action_head(h, z)
        return out if self.trunk.spec.discrete else jnp.tanh(out)

    def value(self, h, z):
        return self.value_head(h, z)[..., 0]


class FutureEncoder(nn.Module):
    """q(z | future), of the last token that is there."""

    trunk: Trunk
    latent_dim: int

    @nn.compact
    def __call__(self, future: Window, training: bool = False) -> Latent:
        tokens = self.trunk(future, training)[:, :, 2]
        last = jnp.maximum(future.mask.sum(1).astype(jnp.int32) - 1, 0)
        x = jnp.take_along_axis(tokens, last[:, None, None], 1)[:, 0]
        mean, log_std = jnp.split(nn.Dense(2 * self.latent_dim, kernel_init=dense_init)(x), 2, -1)
        return Latent(mean, jnp.clip(log_std, -5.0, 2.0))


class Classifier(nn.Module):
    """f [B, B]: how well outcome j (reward, next state) fits the past, the action and z of i."""

    spec: Spec
    width: int

    @nn.compact
    def __call__(self, h, action, z, reward, next_obs):
        action = jax.nn.one_hot(action, self.spec.action_dim) if self.spec.discrete else action
        cause, outcome = MLP(self.width, self.width), MLP(self.width, self.width)
        return cause(h, action, z) @ outcome(reward[:, None], next_obs).T


class Networks(NamedTuple):
    actor: Actor
    encoder: FutureEncoder
    classifier: Classifier


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    encoder: Any
    classifier: Any
    actor_opt: optax.OptState
    """Of the actor and the encoder."""
    classifier_opt: optax.OptState


class DocBatch(NamedTuple):
    """Steps [B] with what came before and what came after."""

    past: Window
    """[B, K]: its rewards are those of the step before each."""
    future: Window
    """[B, F], from the present step on."""
    return_to_go: jax.Array
    later: Window
    """[B, K]: one step of the future, with what came before it, as `past`."""
    reward: jax.Array
    """Of that step, which z must not tell."""
    next_obs: jax.Array
    known: jax.Array
    """0 where the task ended with it in a state that is not known."""


class Carry(NamedTuple):
    """What the policy remembers of one episode: the last K steps, at the right end of the window."""

    window: Window
    step: jax.Array
    """[] of the observation that comes next."""


def information(agent: Agent, classifier, h, batch: DocBatch, z):
    """E f - E log mean exp f (eq. 8): what z tells of a later step's outcome, and its past and action do without it.

    `h` [B, W]: what that past tells. Of outcomes that are not known nothing is asked.
    """
    step = batch.later.action[:, -1], z, batch.reward, batch.next_obs
    f = agent.nets.classifier.apply(classifier, h, *step)
    chex.assert_shape(f, (len(z), len(z)))
    outcomes = jnp.maximum(batch.known.sum(), 1.0)
    told = jnp.diagonal(f) - jax.nn.logsumexp(jnp.where(batch.known > 0, f, -1e9), axis=1)
    return (batch.known * told).sum() / outcomes + jnp.log(outcomes)


def divergence(q: Latent, p: Latent):
    """KL(q || p) [B]"""
    ratio = jnp.exp(2.0 * (q.log_std - p.log_std))
    far = ((q.mean - p.mean) * jnp.exp(-p.log_std)) ** 2
    return 0.5 * (ratio + far - 1.0).sum(-1) + (p.log_std - q.log_std).sum(-1)


def actor_loss(params, agent: Agent, batch: DocBatch, key, args: Args):
    """-log pi(a | past, z) + (V(past, z) - R)^2 + KL(q || p) + beta I, z ~ q (eq. 7 to 10); f stands still.

    Squared errors for continuous actions.
    """
    actor, encoder = params
    trunk_key, encoder_key, z_key = jax.random.split(key, 3)
    q = agent.nets.encoder.apply(encoder, batch.future, True, rngs={"dropout": encoder_key})
    z = q.sample(z_key)
    _, prior, out, v = agent.nets.actor.apply(actor, batch.past, z, True, rngs={"dropout": trunk_key})
    action = batch.past.action[:, -1]
    if agent.nets.classifier.spec.discrete:
        loss_pi = optax.softmax_cross_entropy_with_integer_labels(out, action).mean()
    else:
        loss_pi = ((out - action) ** 2).mean()
    chex.assert_equal_shape([v, batch.return_to_go])
    loss_v = ((v - batch.return_to_go) ** 2).mean()
    kl = divergence(q, prior).mean()
    h = agent.nets.actor.apply(agent.actor, batch.later, method="seen")
    mi = information(agent, agent.classifier, h, batch, z)
    loss = loss_pi + args.value_weight * loss_v + args.prior_weight * kl + args.mi_weight * mi
    return loss, ({"actor_loss": loss_pi, "value_loss": loss_v, "kl": kl, "mi": mi}, (h, z))


def classifier_loss(classifier, agent: Agent, batch: DocBatch, h, z):
    """-I: f tells outcomes apart as well as it can; h and z stand still."""
    h, z = jax.lax.stop_gradient((h, z))
    return -information(agent, classifier, h, batch, z)


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
    keys = jax.random.split(key, 3)
    trunk = partial(Trunk, spec, args.width, args.layers, args.heads, args.token_dropout, max(args.max_timestep, 1))
    nets = Networks(
        Actor(trunk(), args.latent_dim), FutureEncoder(trunk(), args.latent_dim), Classifier(spec, args.width)
    )
    past, z = jax.tree.map(lambda x: x[None], empty(spec, args)), jnp.zeros((1, args.latent_dim))
    actor, encoder = nets.actor.init(keys[0], past, z), nets.encoder.init(keys[1], past)
    now = past.action[:, -1], z, past.reward[:, -1], past.obs[:, -1]
    classifier = nets.classifier.init(keys[2], jnp.zeros((1, args.width)), *now)
    opt = optimizer(args)
    return Agent(nets, actor, encoder, classifier, opt.init((actor, encoder)), opt.init(classifier))


def sample(key, data: Sequences, args: Args) -> DocBatch:
    """Rows, uniformly, with their past and their future."""
    row_key, later_key = jax.random.split(key)
    row = data.rows(row_key, args.batch_size)
    last = jnp.minimum(row + args.future - 1, data.end[row])
    return batch_of(data, row, jax.random.randint(later_key, row.shape, row, last + 1), args)


def past_of(data: Sequences, row, args: Args) -> Window:
    """The rows [B] at the end of windows [B, K] in which rewards are those of the step before each."""
    return data.until(row, args.context)._replace(reward=data.take(row, jnp.arange(-args.context, 0)).reward)


def batch_of(data: Sequences, row, later, args: Args) -> DocBatch:
    """The rows [B] with their past, their future and its rows `later`, returns divided by their scale."""
    future, step = data.take(row, jnp.arange(args.future)), data.take(later, jnp.arange(1))
    return DocBatch(
        past_of(data, row, args),
        future,
        future.return_to_go[:, 0] / args.return_scale,
        past_of(data, later, args),
        step.reward[:, 0],
        step.next_obs[:, 0],
        step.successor[:, 0],
    )


def update(agent: Agent, batch: DocBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the policy and the encoder against the classifier, then one of the classifier."""
    params = agent.actor, agent.encoder
    (_, (info, seen)), grads = jax.value_and_grad(actor_loss, has_aux=True)(params, agent, batch, key, args)
    updates, actor_opt = optimizer(args).update(grads, agent.actor_opt, params)
    actor, encoder = optax.apply_updates(params, updates)
    loss_f, grads = jax.value_and_grad(classifier_loss)(agent.classifier, agent, batch, *seen)
    updates, classifier_opt = optimizer(args).update(grads, agent.classifier_opt, agent.classifier)
    classifier = optax.apply_updates(agent.classifier, updates)
    agent = Agent(agent.nets, actor, encoder, classifier, actor_opt, classifier_opt)
    return agent, {"classifier_loss": loss_f, **info}


def best_latent(agent: Agent, past: Window, key, args: Args):
    """(h [B, W], z [B, Z], V [B]): of --prior-samples z of the prior the one of the highest value."""
    net, actor = agent.nets.actor, agent.actor
    h = net.apply(actor, past, method="seen")
    z = net.apply(actor, h, method="prior").sample(key, args.prior_samples)
    v = net.apply(actor, jnp.broadcast_to(h, (args.prior_samples, *h.shape)), z, method="value")
    return h, jnp.take_along_axis(z, v.argmax(0)[None, :, None], 0)[0], v.max(0)


def promised(agent: Agent, data: Sequences, key, args: Args):
    """[] mean return that is promised at 64 first steps of the data's episodes, in the unit of its rewards."""
    row_key, z_key = jax.random.split(key)
    past = past_of(data, data.start[data.rows(row_key, 64)], args)
    return best_latent(agent, past, z_key, args)[2].mean() * args.return_scale


def empty(spec: Spec, args: Args) -> Window:
    """A window [K] of padding alone."""
    steps, whole = (args.context,), jnp.zeros(args.context, jnp.int32)
    action = whole if spec.discrete else jnp.zeros((*steps, spec.action_dim))
    seen = {"obs": jnp.zeros((*steps, *spec.obs_shape)), "action": action, "reward": jnp.zeros(steps)}
    return Window(mask=jnp.zeros(steps), timestep=whole, **seen)


def initial_carry(agent: Agent, args: Args) -> Carry:
    """Of one environment, before an episode's first observation."""
    return Carry(empty(agent.nets.classifier.spec, args), jnp.int32(0))


def act(agent: Agent, carry: Carry, obs, reward, key, args: Args):
    """Actions [B, A] in [-1, 1], or [B] indices, for the best of the z that are drawn; and what to remember."""
    now = {"obs": obs, "reward": reward, "timestep": carry.step, "mask": jnp.ones(len(obs))}
    known = {name: x for name, x in carry.window._asdict().items() if x is not None}
    moved = {name: jnp.roll(x, -1, axis=1) for name, x in known.items()}
    moved |= {name: moved[name].at[:, -1].set(x) for name, x in now.items()}
    h, z, _ = best_latent(agent, Window(**moved), key, args)
    out = agent.nets.actor.apply(agent.actor, h, z, method="action")
    action = out.argmax(-1) if agent.nets.classifier.spec.discrete else out
    window = Window(**moved | {"action": moved["action"].at[:, -1].set(action)})
    return action, Carry(window, carry.step + 1)


def train(agent: Agent, keys, args: Args, data: Sequences) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics, and what the agent promises in the end."""

    def step(agent, key):
        batch_key, update_key, promise_key = jax.random.split(key, 3)
        agent, metrics = update(agent, sample(batch_key, data, args), update_key, args)
        return agent, (metrics, promise_key)

    agent, (metrics, promise_keys) = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), "promised": promised(agent, data, promise_keys[-1], args)}


def main(args: Args) -> None:
    data = load_dataset(args).require().normalize_obs()
    require_context(data, args.context)
    require_context(data, args.future, "--future")
    require_heads(args.width, args.heads)
    scale = return_scale(data, args.return_scale)
    args = dataclasses.replace(args, return_scale=scale, max_timestep=args.max_timestep or horizon(data))
    with Run(__file__, args, data.task, StatefulPolicy(initial_carry, act)) as run:
        fields = "obs", "action", "reward", "terminal", "next_obs", "return_to_go", "successor"
        windows = run.replicate(sequences(data, *fields))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, windows)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
