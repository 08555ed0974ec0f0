"""PTR: posterior-transition reweighting, cloning that trusts a row as far as its action explains what came of it.

Zhang, Luo, Zheng, Feng, Xu, Xi, Xu, Yuan and Lu, "Conservative Offline Robot Policy Learning via Posterior-Transition
Reweighting", arXiv 2603.16542. What followed an action is put among what followed others, and a scorer that sees state
and action must tell it apart (InfoNCE). How much more probable than chance it finds the true one, rho = K q_i(i) in
(0, K], weighs the row: w = (1 - lambda) + lambda clip(rho^beta, low, high). The policy is cloned by self-normalised
weighted regression; neither rewards nor likelihoods of the policy are used, and no weight touches the scorer.

--mixing 0 is plain cloning. --spoil makes rows bad on purpose, to see whether they are found.

Choose it when data of several sources is cloned, in some of which actions do not belong to what is seen, as in shifted
logs. It finds what is not predictable, not what is useless: bad behaviour that is recorded well weighs no less than
good, an expert whose world is noisy weighs less, and an error that is the same in whole episodes (mirrored frames)
is learned as another rule where nothing else is seen.

Deviations from the paper, whose code (BeingBeyond/PTR) and settings could not be had here:
- actions are single, with a Gaussian policy; there chunks of them, by diffusion or flow matching;
- a consequence is the change of the observation in one step, standardised, in random features that stay as they are;
  there a latent of the image after the chunk. The next observation itself would give the state away: any action would
  do to find it (--consequence next_obs);
- the pool is the batch; temperature, clip, mixing and sizes are ours.

    python algorithms/imitation/ptr.py --dataset point-umaze-expert --spoil misattributed --mixing 0 0.5 1 --seeds 8
    python algorithms/imitation/ptr.py --dataset hopper-expert --more-data hopper-medium --updates 100000
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
from shared.arguments import Count, Float, Fraction, OfflineArgs, Size, StaticFraction, hyperparameters
from shared.data import ARRAYS, Dataset, moments
from shared.errors import InputError
from shared.formats import content_hash
from shared.parts import load_all
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-umaze-expert"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    more_data: tuple[str, ...] = ()
    """Further datasets of the same environment; their episodes follow those of --dataset."""
    spoil: Literal["none", "misattributed", "mirrored"] = "none"
    """Rows get the action of any other row, or episodes are seen mirrored at the data's mean, actions as they were."""
    spoilt_share: StaticFraction = 0.4
    """Share of the rows or episodes that --spoil changes, in [0, 1]."""
    spoil_seed: Count = 0
    """Of what is spoilt, which all lanes share."""
    trust: Literal["scored", "clean"] = "scored"
    """How rows are weighed: by the scorer, or 1 if they were not spoilt and 0 if they were (for comparison)."""
    consequence: Literal["change", "next_obs"] = "change"
    """What is to be told apart: the change of the observation, or the next observation."""
    mixing: Fraction = 0.5
    """lambda: share of the score in a weight, in [0, 1]; the rest is 1."""
    score_power: Float = 1.0
    """beta: power of the posterior-to-uniform ratio."""
    lowest_score: Float = 0.1
    """Scores are clipped here from below."""
    highest_score: Float = 50.0
    """Scores are clipped here from above."""
    score_temperature: Float = 0.03
    """The scale that cosines are divided by, > 0."""
    scorer_updates: Count = 5_000
    """Gradient updates of the scorer before the first of the policy; it goes on with each of those. 0: none before."""
    scorer_lr: Float = 1e-3
    """Adam's step size: scorer."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    latent_dim: Size = 64
    """Size of the representations."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {}
COMPARED = 1_000
"""Rows among which it is seen whether the spoilt ones score less, for the log alone."""


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
    """[B, outputs]; biases begin at random, so that without training, too, the size of the input counts."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, bias_init=nn.initializers.normal(1.0))(x))
        return nn.Dense(self.outputs)(x)


class Networks(NamedTuple):
    actor: Actor
    scorer: MLP
    features: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    scorer: Any
    features: Any
    """Of consequences; never trained."""
    actor_opt: optax.OptState
    scorer_opt: optax.OptState


class Scale(NamedTuple):
    """What inputs are standardised by."""

    mean: jax.Array
    """[O + A] of (s, a)"""
    std: jax.Array
    consequence_mean: jax.Array
    """[O]"""
    consequence_std: jax.Array


class Logged(NamedTuple):
    """The data on the device."""

    transitions: Transitions
    clean: jax.Array
    """[N] 1 where a row was not spoilt"""
    scale: Scale
    compared: Batch
    """Some rows"""
    compared_clean: jax.Array
    """[C]"""


def consequence_of(batch: Batch, args: Args):
    """[B, O]"""
    return batch.next_obs - batch.obs if args.consequence == "change" else batch.next_obs


def similarities(scorer, agent: Agent, batch: Batch, scale: Scale, args: Args):
    """[B, K=B] cos(f(s_i, a_i), e(c_j)) / temperature of every row and every row's consequence.

    Features are taken from their mean over the batch: all have much in common, and cosines would be near 1.
    """
    x = (jnp.concatenate([batch.obs, batch.action], axis=-1) - scale.mean) / scale.std
    c = (consequence_of(batch, args) - scale.consequence_mean) / scale.consequence_std
    f, e = agent.nets.scorer.apply(scorer, x), agent.nets.features.apply(agent.features, c)
    e = e - e.mean(0)
    f, e = (z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-6) for z in (f, e))
    return f @ e.T / args.score_temperature


def scorer_loss(scorer, agent: Agent, batch: Batch, scale: Scale, args: Args):
    """-log q_i(i), q_i the softmax over the consequences of the batch."""
    log_q = jnp.diagonal(jax.nn.log_softmax(similarities(scorer, agent, batch, scale, args)))
    chex.assert_shape(log_q, (args.batch_size,))
    return -log_q.mean(), {"identified": jnp.exp(log_q).mean()}


def ratios(agent: Agent, batch: Batch, scale: Scale, args: Args):
    """[B] rho_i = K q_i(i), the posterior of a row's own consequence over that of chance."""
    posterior = jax.nn.softmax(similarities(agent.scorer, agent, batch, scale, args))
    return len(posterior) * jnp.diagonal(posterior)


def weights(rho, clean, args: Args):
    """[B] (1 - lambda) + lambda clip(rho^beta, lowest, highest); or 1 where a row is `clean`."""
    if args.trust == "clean":
        return clean
    score = jnp.clip(rho**args.score_power, args.lowest_score, args.highest_score)
    return 1.0 - args.mixing + args.mixing * score


def actor_loss(actor, agent: Agent, batch: Batch, weight, args: Args):
    """-sum_i w_i log pi(a_i|s_i) / sum_i w_i, and the squared errors [B] of the mean action."""
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([log_prob, weight], (args.batch_size,))
    return -(weight * log_prob).sum() / jnp.maximum(weight.sum(), 1e-6), ((mean - batch.action) ** 2).mean(-1)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.hidden_dims, spec.action_dim),
        MLP(args.hidden_dims, args.latent_dim),
        MLP(args.hidden_dims, args.latent_dim),
    )
    actor_key, scorer_key, features_key = jax.random.split(key, 3)
    obs = jnp.zeros((1, *spec.obs_shape))
    actor = nets.actor.init(actor_key, obs)
    scorer = nets.scorer.init(scorer_key, jnp.zeros((1, spec.obs_shape[0] + spec.action_dim)))
    return Agent(
        nets=nets,
        actor=actor,
        scorer=scorer,
        features=nets.features.init(features_key, obs),
        actor_opt=optax.adam(args.actor_lr).init(actor),
        scorer_opt=optax.adam(args.scorer_lr).init(scorer),
    )


def update_scorer(agent: Agent, batch: Batch, scale: Scale, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the scorer."""
    grad = jax.value_and_grad(scorer_loss, has_aux=True)
    (loss, info), grads = grad(agent.scorer, agent, batch, scale, args)
    updates, scorer_opt = optax.adam(args.scorer_lr).update(grads, agent.scorer_opt)
    agent = agent.replace(scorer=optax.apply_updates(agent.scorer, updates), scorer_opt=scorer_opt)
    return agent, {"scorer_loss": loss, **info}


def update(agent: Agent, batch: Batch, clean, scale: Scale, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the policy with the scorer's weights, then one of the scorer."""
    weight, bad = weights(ratios(agent, batch, scale, args), clean, args), 1.0 - clean
    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, error), grads = grad(agent.actor, agent, batch, weight, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    agent, scored = update_scorer(agent, batch, scale, args)
    info = {"actor_loss": loss, "mse": error.mean(), "weight": weight.mean(), **scored}
    if args.spoil != "none":
        for name, rows in (("clean", clean), ("spoilt", bad)):
            share = rows / jnp.maximum(rows.sum(), 1.0)
            info |= {f"weight_{name}": (weight * share).sum(), f"mse_{name}": (error * share).sum()}
    return agent, info


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def auc(score, clean):
    """Probability that a clean row scores more than a spoilt one, ties counting half; of scores [n], `clean` [n]."""
    above = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    pairs = clean[:, None] * (1.0 - clean)[None]
    return (above * pairs).sum() / jnp.maximum(pairs.sum(), 1.0)


def judged(agent: Agent, logged: Logged, args: Args) -> dict:
    """Whether spoilt rows score less than clean ones; nothing where there are none."""
    if args.spoil == "none":
        return {}
    return {"auc": auc(ratios(agent, logged.compared, logged.scale, args), logged.compared_clean)}


def fit(agent: Agent, keys, args: Args, logged: Logged) -> tuple[Agent, dict]:
    """One lane, scorer phase: one update per key; mean metrics."""

    def step(agent, key):
        return update_scorer(agent, logged.transitions.sample(key, args.batch_size), logged.scale, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **judged(agent, logged, args)}


def train(agent: Agent, keys, args: Args, logged: Logged) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        index = logged.transitions.draw(key, args.batch_size)
        return update(agent, logged.transitions.take(index), logged.clean[index], logged.scale, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, {**jax.tree.map(jnp.mean, metrics), **judged(agent, logged, args)}


def spoilt(data: Dataset, args: Args) -> tuple[Dataset, np.ndarray]:
    """The data with a share of its rows or episodes spoilt, and [N] bool: the rows that were not.

    `misattributed`: the action of any row in its place, what followed stays. `mirrored`: s and s' at 2 mean - s.
    """
    r, n = np.random.default_rng(args.spoil_seed), len(data.obs)
    if args.spoil == "none":
        return data, np.ones(n, bool)
    if args.spoil == "misattributed":
        bad, other = r.random(n) < args.spoilt_share, r.integers(0, n, n)
        changed = {"action": np.where(bad[:, None], data.action[other], data.action)}
    else:
        bad = (r.random(len(data.ends())) < args.spoilt_share)[data.episode()]
        twice = 2.0 * data.obs.mean(0)
        changed = {k: np.where(bad[:, None], twice - getattr(data, k), getattr(data, k)) for k in ("obs", "next_obs")}
    if bad.all() or not bad.any():
        raise InputError(f"--spoilt-share {args.spoilt_share:g}: of either kind of rows there must be some.")
    arrays = {name: getattr(data, name) for name in ARRAYS} | changed
    task = {"id": f"{data.task.id}+{args.spoil}", "hash": content_hash(arrays)}
    return data.replace({"spoil": args.spoil, "spoilt_share": args.spoilt_share}, task, **changed), ~bad


def logged_of(data: Dataset, clean: np.ndarray, args: Args) -> Logged:
    """On the device: the rows whose next observation is known."""

    rows = data.usable() & data.successor
    if not rows.any():
        raise InputError(f"'{data.task.id}' has no row whose next observation is known: there are no consequences.")
    data, clean = data.select(rows), jnp.asarray(clean[rows], jnp.float32)
    transitions = data.transitions("obs", "action", "next_obs")
    some = jnp.asarray(np.random.default_rng(0).permutation(len(clean))[:COMPARED])
    scale = Scale(*moments(np.concatenate([data.obs, data.action], 1)), *moments(consequence_of(data, args)))
    return Logged(transitions, clean, scale, transitions.take(some), clean[some])


def main(args: Args) -> None:
    if np.min(args.score_temperature) <= 0.0 or np.max(args.lowest_score) > np.min(args.highest_score):
        raise InputError("--score-temperature must be above 0, and --lowest-score not above --highest-score.")
    if np.min(args.highest_score) <= 0.0:
        raise InputError(f"--highest-score must be above 0, not {args.highest_score}: it bounds weights.")
    if args.batch_size < 2:
        raise InputError("--batch-size must be at least 2: the batch is the pool that a consequence is told apart in.")
    data = load_all(args, (args.dataset, *args.more_data)).require(discrete=False, reward=False)
    data, clean = spoilt(data, args)
    with Run(__file__, args, data.task, act, before=args.scorer_updates) as run:
        logged = run.replicate(logged_of(data, clean, args))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            lanes = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = lanes(agent, keys, run.lane_args, logged)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
