r"""Behavior Retrieval: imitation of a few demonstrations with what is like them in a large unlabelled dataset.

Du, Nair, Sadigh and Finn, "Behavior Retrieval: Few-Shot Imitation Learning by Querying Unlabeled Datasets", RSS 2023,
arXiv 2304.08742. A variational autoencoder of state-action pairs is fitted to the prior data, before the first update.
A pair of the prior data is embedded as (the encoder's mean, the action); its similarity is minus the distance to the
nearest of the demonstrated pairs, scaled to [0, 1] over the prior data. Pairs above a threshold are retrieved. The
policy is cloned from batches of which half are demonstrations, half are retrieved.

--threshold 0 retrieves everything (balanced cloning), --task-share 1 clones the demonstrations alone.

Choose it when there are a few demonstrations of a task, and much data of other tasks or of mixed quality, parts of
which look like it. There are no rewards; what is retrieved is only as good as the embedding.

Parity: autoencoder and similarities are equal to MaxDu17/BehaviorRetrieval but for the scale and the two next points
(results/parity.md).
Deviations from the released code (MaxDu17/BehaviorRetrieval):
- states and actions are standardised, in the autoencoder and in the distance, so that neither decides by its scale;
- the reconstruction's error is the mean over all numbers; there of the states' mean and the actions' mean;
- a latent may be drawn with a log standard deviation below -4;
- the decoder's hidden layers are the encoder's backwards; there in the same order;
- the autoencoder has 20,000 updates (--embed-updates), there a million;
- weights begin as Flax's do (PyTorch's);
- the policy is a Gaussian of one observation; there it is recurrent, with a mixture of five.

    python algorithms/imitation/behavior_retrieval.py --dataset point-umaze-expert --more-data point-umaze-random \\
        --demos point-umaze-demos --demo-episodes 2 --seeds 8 --updates 10000 --threshold 0 0.9
    python algorithms/imitation/behavior_retrieval.py --demos point-umaze-demos --demo-episodes 2 --task-share 1
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, DemoArgs, Float, Fraction, Size, StaticFraction, hyperparameters
from shared.data import Dataset, moments
from shared.errors import InputError
from shared.parts import load_demonstrated
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(DemoArgs):
    dataset: str = "point-umaze-expert"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    demo_episodes: Count = 10
    """Demonstrations: that many episodes of highest return; 0: all that --demos have."""
    threshold: Fraction = 0.9
    """Least similarity of what is retrieved, in [0, 1]; 0: everything is."""
    task_share: StaticFraction = 0.5
    """Share of a batch that is demonstrations, in [0, 1]; the rest is retrieved."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    latent_dim: Size = 14
    """Size of the representations."""
    embed_updates: int = 20_000
    """Gradient updates of the autoencoder before the first of the policy."""
    embed_lr: Float = 1e-3
    """Adam's step size: autoencoder."""
    embed_batch: Size = 100
    """Transitions per gradient update of the autoencoder."""
    embed_hidden_dims: tuple[int, ...] = (300, 400)
    """Hidden layers of the encoder; the decoder's are the same backwards."""
    kl_weight: Float = 1e-4
    """Weight of the VAE's KL divergence."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}
BLOCK = 4_096
"""Rows whose distances to all demonstrations are in memory at once."""


class Actor(nn.Module):
    """Mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        mean = jnp.tanh(nn.Dense(self.action_dim)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class MLP(nn.Module):
    """[B, outputs]: mean and log variance of the encoder, or what the decoder makes of a latent."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


class Networks(NamedTuple):
    actor: Actor
    encoder: MLP
    decoder: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    encoder: Any
    decoder: Any
    similarity: jax.Array
    """[N] of every row of the prior data, once the autoencoder is fitted."""
    actor_opt: optax.OptState
    embed_opt: optax.OptState


class Prior(NamedTuple):
    """The prior data and the demonstrations on the device."""

    transitions: Transitions
    demos: Transitions
    mean: jax.Array
    """[O + A] of (s, a) in the prior data"""
    std: jax.Array
    own: jax.Array
    """[N] 1 where a row is of --dataset, 0 where of --more-data: how many are retrieved of either is logged."""


def pairs(batch: Batch, prior: Prior):
    """(s, a) [B, O + A], standardised."""
    return (jnp.concatenate([batch.obs, batch.action], axis=-1) - prior.mean) / prior.std


def embed_loss(params, nets: Networks, x, key, args: Args):
    """|decoder(z) - x|^2 (mean over dimensions) + kl_weight KL(N(mu, sigma^2) || N(0, 1)), z ~ N(mu, sigma^2)."""
    encoder, decoder = params
    mean, log_var = jnp.split(nets.encoder.apply(encoder, x), 2, axis=-1)
    z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    error = ((nets.decoder.apply(decoder, z) - x) ** 2).mean()
    kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var).sum(-1).mean()
    return error + args.kl_weight * kl, {"embed_error": error, "kl": kl}


def embed(agent: Agent, batch: Batch, prior: Prior):
    """[B, latent + A]: the encoder's mean and the standardised action."""
    x = pairs(batch, prior)
    mean, _ = jnp.split(agent.nets.encoder.apply(agent.encoder, x), 2, axis=-1)
    return jnp.concatenate([mean, x[:, batch.obs.shape[-1] :]], axis=-1)


def retrieve(agent: Agent, prior: Prior) -> Agent:
    """Minus the distance to the nearest demonstrated pair, scaled to [0, 1] over the prior data; equal ones are 1."""
    shown, n = embed(agent, prior.demos.take(jnp.arange(len(prior.demos.rows))), prior), len(prior.transitions.rows)

    def nearest(rows):
        z = embed(agent, prior.transitions.take(rows), prior)
        square = (z**2).sum(1)[:, None] + (shown**2).sum(1) - 2.0 * z @ shown.T
        return jnp.linalg.norm(z - shown[square.argmin(1)], axis=1)  # a root of that difference is inexact near 0

    blocks = -(-n // BLOCK)
    distance = jax.lax.map(nearest, jnp.minimum(jnp.arange(blocks * BLOCK), n - 1).reshape(blocks, BLOCK)).ravel()[:n]
    between = distance.max() - distance.min()
    alike = between <= 1e-5 * jnp.linalg.norm(shown, axis=1).max()  # but for rounding: where all are demonstrated
    return agent.replace(similarity=jnp.where(alike, 1.0, (distance.max() - distance) / jnp.maximum(between, 1e-12)))


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """-log pi(a|s), summed over the action's dimensions."""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape(log_prob, (args.batch_size,))
    return -log_prob.mean(), {"mse": ((mean - batch.action) ** 2).mean()}


def init(key, args: Args, spec: Spec, rows: int = 1) -> Agent:
    """The agent of one lane; `rows` of the prior data."""
    size = spec.obs_shape[0] + spec.action_dim
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        MLP(args.embed_hidden_dims, 2 * args.latent_dim),
        MLP(args.embed_hidden_dims[::-1], size),
    )
    actor_key, encoder_key, decoder_key = jax.random.split(key, 3)
    actor = nets.actor.init(actor_key, jnp.zeros((1, *spec.obs_shape)))
    encoder = nets.encoder.init(encoder_key, jnp.zeros((1, size)))
    decoder = nets.decoder.init(decoder_key, jnp.zeros((1, args.latent_dim)))
    return Agent(
        nets=nets,
        actor=actor,
        encoder=encoder,
        decoder=decoder,
        similarity=jnp.zeros(rows),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        embed_opt=optax.adam(args.embed_lr).init((encoder, decoder)),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the policy."""
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, **info}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def fit(agent: Agent, keys, args: Args, prior: Prior) -> tuple[Agent, dict]:
    """One lane, autoencoder phase: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, noise_key = jax.random.split(key)
        x, params = pairs(prior.transitions.sample(batch_key, args.embed_batch), prior), (agent.encoder, agent.decoder)
        grad = jax.value_and_grad(embed_loss, has_aux=True)
        (loss, info), grads = grad(params, agent.nets, x, noise_key, args)
        updates, embed_opt = optax.adam(args.embed_lr).update(grads, agent.embed_opt)
        encoder, decoder = optax.apply_updates(params, updates)
        return agent.replace(encoder=encoder, decoder=decoder, embed_opt=embed_opt), {"embed_loss": loss, **info}

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def draw(key, chosen, n: int):
    """[n] numbers of rows that are `chosen` [N], uniformly with replacement."""
    places = jnp.cumsum(chosen)
    return jnp.searchsorted(places, jax.random.randint(key, (n,), 1, places[-1] + 1))


def train(agent: Agent, keys, args: Args, prior: Prior) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""
    chosen, shown = agent.similarity >= args.threshold, round(args.batch_size * args.task_share)

    def step(agent, key):
        demo_key, row_key, update_key = jax.random.split(key, 3)
        demos = prior.demos.sample(demo_key, shown)
        others = prior.transitions.take(draw(row_key, chosen, args.batch_size - shown))
        batch = jax.tree.map(lambda *x: jnp.concatenate(x), demos, others)
        return update(agent, batch, update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    retrieved = {"retrieved": chosen.mean(), "of_dataset": (chosen * prior.own).sum() / chosen.sum()}
    return agent, {**jax.tree.map(jnp.mean, metrics), **retrieved}


def prior_of(data: Dataset, demos: Dataset, rows: int) -> Prior:
    """On the device; the first `rows` are of --dataset itself."""
    inputs = np.concatenate([data.obs, data.action], axis=1)
    mean, std = moments(inputs)
    own = jnp.arange(len(data.obs)) < rows
    parts = (d.transitions("obs", "action") for d in (data, demos))
    return Prior(*parts, jnp.asarray(mean), jnp.asarray(std), own.astype(jnp.float32))


def main(args: Args) -> None:
    if args.embed_updates < 1:
        raise InputError(f"--embed-updates must be at least 1, not {args.embed_updates}: there is no embedding else.")
    data, demos, _ = load_demonstrated(args)
    data = data.require(discrete=False, reward=False)
    rows = data.task.data.get("datasets", [{"rows": len(data.obs)}])[0]["rows"]
    with Run(__file__, args, data.task, act, before=args.embed_updates) as run:
        prior = run.replicate(prior_of(data, demos, rows))
        agent = run.init(partial(init, spec=data.spec, rows=len(data.obs)))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        retrieve_lanes = run.over_lanes(retrieve, in_axes=(0, None))
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            if run.done == 0:
                agent = retrieve_lanes(agent, prior)
            lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = lanes(agent, keys, run.lane_args, prior)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
