"""BC: behavioural cloning, and 10%-BC (cloning of the best episodes only).

No single source: supervised imitation (Pomerleau, NeurIPS 1988). The filtered form is in Chen et al.,
"Decision Transformer", NeurIPS 2021, arXiv 2106.01345; settings and scores as in CORL (Tarasov et al.,
NeurIPS 2023, arXiv 2210.07105). The policy maximises the likelihood of the dataset's actions; every other
algorithm is compared with this one. Three heads: deterministic (squared error), gaussian (state-independent
standard deviation, IQL's policy head) and categorical (discrete actions). Images pass through a small encoder
(V-D4RL's: Lu et al., TMLR 2023, arXiv 2206.04779), which the same loss trains.

Choose it when you begin: it is what every other method has to beat, and enough where the data are an expert's.

Parity: equal to CORL's any_percent_bc.py, update for update (results/parity.md).

Deviations from CORL:
- episodes are the dataset's own (terminal, time limit or cut), not runs of 1000 steps;
- biases start at zero (PyTorch's default draws them like the weights).

    python algorithms/offline/bc.py --dataset hopper-medium --seeds 4 --updates 50000
    python algorithms/offline/bc.py --dataset hopper-medium-replay --top-fraction 0.1 --seeds 4
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Float, OfflineArgs, Size, StaticFraction, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    head: Literal["auto", "deterministic", "gaussian", "categorical"] = "auto"
    """Head of the policy; auto: deterministic, or categorical where actions are discrete."""
    top_fraction: StaticFraction = 1.0
    """Share of the episodes that is used, those with the highest return, in (0, 1]."""
    sort_discount: StaticFraction = 1.0
    """Discount of the returns that episodes are sorted by."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    normalize_obs: bool = True
    """Observations to mean 0 and standard deviation 1."""
    random_shift: Count = 0
    """Pixels by which images are moved at random in training, at most (DrQ uses 4); 0: they are not."""


PRESETS = dict.fromkeys(("antmaze", "maze2d"), {"eval_episodes": 100})

dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def patches(x, stride: int):
    """[B, H, W, C] -> [B, H / stride, W / stride, 9 C]: what a padded 3x3 convolution multiplies by its kernel.

    As a product of matrices it is many times faster in a scan on CPU, and needs no grouped one where lanes are vmapped.
    """
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)], -1
    )


class Encoder(nn.Module):
    """Images [B, H, W, C] uint8 -> [B, 50]: V-D4RL's four convolutions (padded, so that small images do) and trunk."""

    @nn.compact
    def __call__(self, obs):
        x = obs / 255.0 - 0.5
        for stride in (2, 1, 1, 1):
            x = nn.relu(nn.Dense(32, kernel_init=nn.initializers.orthogonal(jnp.sqrt(2.0)))(patches(x, stride)))
        x = nn.Dense(50, kernel_init=nn.initializers.orthogonal())(x.reshape(len(x), -1))
        return jnp.tanh(nn.LayerNorm()(x))


class Actor(nn.Module):
    """Returns (mean, log_std) of continuous actions, or (logits, None)."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    head: str

    @nn.compact
    def __call__(self, obs):
        x = obs if obs.ndim == 2 else Encoder()(obs)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        x = nn.Dense(self.action_dim, kernel_init=dense_init)(x)
        if self.head == "categorical":
            return x, None
        if self.head == "deterministic":
            return jnp.tanh(x), None
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return jnp.tanh(x), jnp.clip(log_std, -5.0, 2.0)


class Agent(flax.struct.PyTreeNode):
    net: Actor = flax.struct.field(pytree_node=False)
    actor: Any
    actor_opt: optax.OptState


def actor_loss(actor, agent: Agent, batch: Batch, args: Args):
    """Mean over the batch of (pi(s) - a)^2, meaned over dimensions, or of -log pi(a|s)."""
    out, log_std = agent.net.apply(actor, batch.obs)
    if agent.net.head == "categorical":
        log_prob = jax.nn.log_softmax(out)[jnp.arange(args.batch_size), batch.action]
        return -log_prob.mean(), {"accuracy": (out.argmax(-1) == batch.action).mean()}
    chex.assert_equal_shape([out, batch.action])
    mse = ((out - batch.action) ** 2).mean()
    if agent.net.head == "deterministic":
        return mse, {"mse": mse}
    log_prob = jax.scipy.stats.norm.logpdf(batch.action, out, jnp.exp(log_std)).sum(-1)
    return -log_prob.mean(), {"mse": mse}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    head = args.head
    if head == "auto":
        head = "categorical" if spec.discrete else "deterministic"
    net = Actor(args.hidden_dims, spec.action_dim, head)
    actor = net.init(key, jnp.zeros((1, *spec.obs_shape)))
    return Agent(net=net, actor=actor, actor_opt=optax.adam(args.actor_lr).init(actor))


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the actor."""
    chex.assert_axis_dimension(batch.obs, 0, args.batch_size)
    (loss, info), grads = jax.value_and_grad(actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)
    return agent, {"actor_loss": loss, **info}


def act(agent: Agent, obs, key, args: Args):
    """The mode: actions [B, A] in [-1, 1], or [B] indices."""
    out, _ = agent.net.apply(agent.actor, obs)
    return out.argmax(-1) if agent.net.head == "categorical" else out


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, transitions.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args)
    data = data.require({"auto": None, "categorical": True}.get(args.head, False), args.top_fraction != 1, images=True)
    data = data.top_episodes(args.top_fraction, args.sort_discount) if args.top_fraction != 1 else data
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions("obs", "action", random_shift=args.random_shift))
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
