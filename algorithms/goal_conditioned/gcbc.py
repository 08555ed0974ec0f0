"""GCBC: goal-conditioned behavioural cloning.

Lynch et al., "Learning Latent Plans from Play", CoRL 2019, arXiv 1903.01973; Ghosh et al., "Learning to Reach Goals via
Iterated Supervised Learning", ICLR 2021, arXiv 1912.06088; in the form of OGBench (Park, Frans, Eysenbach and Levine,
ICLR 2025, arXiv 2410.20092, appendix C). Whatever an episode came to after a state is what its action was good for:
the policy is cloned with a later state of the same episode as its goal. No reward, no value, nothing that connects two
episodes.

Choose it when you begin with goals: it is what every goal-conditioned method has to beat.

Deviations from OGBench: none is known for vectors. Pictures have V-D4RL's encoder (arXiv 2206.04779), not a small
IMPALA, and are not moved at random.

Parity: equal to OGBench's gcbc.py, update for update (results/parity.md).

    python algorithms/goal_conditioned/gcbc.py --dataset point-medium-navigate --seeds 4 --updates 50000
    python algorithms/goal_conditioned/gcbc.py --dataset point-medium-stitch --hidden-dims 128 128 --seeds 8
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Float, GoalArgs, Shares, Size, hyperparameters
from shared.data import load_dataset
from shared.goals import GoalBatch, GoalTransitions, goal_dataset
from shared.run import Run, launch
from shared.task import Spec


@hyperparameters
class Args(GoalArgs):
    dataset: str = "point-medium-navigate"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    actor_goals: Shares = (0.0, 1.0, 0.0)
    """Shares of the actor's goals: the row's own state, a later one of its episode (uniformly), any of the data."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    batch_size: Size = 1024
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of every network that has no argument of its own for them."""
    eval_temperature: Float = 0.0
    """Of the softmax that discrete actions are drawn from in evaluation; 0: the likeliest."""


_PICTURES = {"batch_size": 256, "updates": 500_000}
_VISUAL = (
    *(
        f"visual-antmaze-{size}-{kind}"
        for size in ("medium", "large", "giant", "teleport")
        for kind in ("navigate", "stitch", "explore")
    ),
    *("visual-humanoidmaze", "visual-cube", "visual-scene", "visual-puzzle"),
)
PRESETS = {"powderworld": {**_PICTURES, "eval_temperature": 0.3}, **dict.fromkeys(_VISUAL, _PICTURES)}


def dense_init(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


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


def seen(obs, goal):
    """[B, D] of a state and a goal; pictures go through an encoder together, as channels."""
    x = jnp.concatenate([obs, goal], axis=-1)
    return x if x.ndim == 2 else Encoder()(x)


class Actor(nn.Module):
    """Mean of a Gaussian with standard deviation 1; logits of discrete actions."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, obs, goal):
        x = seen(obs, goal)
        for size in self.hidden_dims:
            x = nn.gelu(nn.Dense(size, kernel_init=dense_init())(x))
        return nn.Dense(self.action_dim, kernel_init=dense_init(0.01))(x)


class Agent(flax.struct.PyTreeNode):
    net: Actor = flax.struct.field(pytree_node=False)
    actor: Any
    opt: optax.OptState


def actor_log_prob(output, action):
    """log pi(a|s, g) [B] of the actor's `output` [B, A]: Gaussian with standard deviation 1, or a softmax."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.take_along_axis(nn.log_softmax(output), action[:, None], axis=-1)[:, 0]
    return jax.scipy.stats.norm.logpdf(action, output).sum(-1)


def actor_loss(actor, agent: Agent, batch: GoalBatch, args: Args):
    """-log pi(a|s, g), g a later state of the episode: half the squared error, but for a constant."""
    log_prob = actor_log_prob(agent.net.apply(actor, batch.obs, batch.actor_goal), batch.action)
    chex.assert_shape(log_prob, (args.batch_size,))
    return -log_prob.mean()


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    net = Actor(args.hidden_dims, spec.action_dim, spec.discrete)
    actor = net.init(key, jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, *spec.goal_shape)))
    return Agent(net, actor, optax.adam(args.learning_rate).init(actor))


def sample(key, transitions: GoalTransitions, args: Args) -> GoalBatch:
    """Rows, each with a goal of the actor's mixture."""
    row_key, goal_key = jax.random.split(key)
    row = transitions.rows(row_key, args.batch_size)
    goal_row = transitions.mixture(goal_key, row, args.actor_goals)
    return transitions.batch(row, goal_row, goal_row)


def update(agent: Agent, batch: GoalBatch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step."""
    loss, grads = jax.value_and_grad(actor_loss)(agent.actor, agent, batch, args)
    updates, opt = optax.adam(args.learning_rate).update(grads, agent.opt)
    return agent.replace(actor=optax.apply_updates(agent.actor, updates), opt=opt), {"actor_loss": loss}


def act(agent: Agent, obs, goal, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's; discrete ones [B] are drawn at --eval-temperature."""
    output = agent.net.apply(agent.actor, obs, goal)
    if agent.net.discrete:
        return jax.random.categorical(key, output / jnp.maximum(args.eval_temperature, 1e-6))
    return jnp.clip(output, -1.0, 1.0)


def train(agent: Agent, keys, args: Args, transitions: GoalTransitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, sample(batch_key, transitions, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = goal_dataset(load_dataset(args).require(reward=False, images=True), args.tasks)
    with Run(__file__, args, data.task, act) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.task.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
