"""GuDA: guided data augmentation.

Corrado, Qu, Balis, Labiosa and Hanna, "Guided Data Augmentation for Offline Reinforcement Learning and Imitation
Learning", RLC 2024, arXiv 2310.18247. A few transitions of a maze are multiplied without its simulator: one is moved to
another place and turned by a multiple of 90 degrees, which free ground does not change (velocity and action turn with
it); reward and end are those of the new place. At random this fills the maze with whatever the data do; guided, the
turn is the one after which the movement is nearest to a direction that leads to the goal, so that even poor data show
progress. IQL (Kostrikov et al., arXiv 2110.06169) learns from what was observed and what was made of it; with --beta 0
its policy is cloned from them.

Environments: point worlds of one agent on still ground, and PointMaze of gymnasium-robotics (--env where a dataset has
none). Augmentation is done once per run, before the first update.

Choose it when data of a maze are few or poor, its dynamics are the same everywhere, and the way to the goal is known.
Random augmentation is the better choice where recovery from mistakes counts: mixed has a fifth of it.

Parity: guided transitions of PointMaze's U are those of Badger-RL/Guided-Data-Augmentation (results/parity.md).
Deviations from the released code (Badger-RL/Guided-Data-Augmentation):
- directions are those of shortest ways over cells, there tables made by hand;
- transitions that may have touched a wall are not augmented, since free ground would move them otherwise;
- ends follow from the new place, too, there they are copied;
- the learner is IQL; --write-dataset for others. Functions for AntMaze, soccer and parking are not here.

    python algorithms/imitation/guda.py --dataset point-umaze-mixed --observed 2000 --seeds 8 --updates 20000
    python algorithms/imitation/guda.py --dataset pointmaze-medium --augment mixed --updates 100000
    python algorithms/imitation/guda.py --dataset point-umaze-mixed --updates 1000 --write-dataset point-guda.npz
"""

import sys
from collections.abc import Callable
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
from scipy.sparse.csgraph import shortest_path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import (
    Count,
    Dropout,
    Expectile,
    Float,
    Fraction,
    OfflineArgs,
    Positive,
    Size,
    StaticFraction,
    hyperparameters,
)
from shared.data import Dataset, load_dataset
from shared.errors import InputError
from shared.parts import every, with_parts, write_dataset
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    dataset: str = "point-umaze-mixed"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    observed: Size = 10_000
    """Transitions of the data that are used, the first ones; all if it has fewer."""
    augment: Literal["none", "random", "guided", "mixed"] = "guided"
    """How transitions are turned: at random, towards the goal, or a fifth at random and the others towards it."""
    augment_ratio: Size = 1
    """m: augmented transitions for each observed one."""
    augment_seed: Count = 0
    """Of the augmentation, which all lanes share."""
    clearance: StaticFraction = 0.15
    """Cells between a wall and any place of an augmented transition, at least, in [0, 0.5]; PointMaze's ball touches at
    0.1."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""
    write_dataset: str = ""
    """Also write the data with its labels here (.npz), those of the first lane, as a dataset for any other script."""
    expectile: Expectile = 0.7
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    beta: Float = 3.0
    """beta: inverse temperature of the advantage weights; 0 is behaviour cloning."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 3e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    value_lr: Float = 3e-4
    """Adam's step size: value function."""
    max_weight: Positive = 100.0
    """Clip of the exponential advantage weights."""
    dropout: Dropout = 0.0
    """Dropout after the actor's hidden layers, in [0, 1)."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS = {"pointmaze": {"expectile": 0.9, "beta": 10.0}}  # IQL's there

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))


class Actor(nn.Module):
    """Mean (through tanh) and a log standard deviation that does not depend on the state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    dropout: float

    @nn.compact
    def __call__(self, obs, training: bool = False):
        x = obs
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
            x = nn.Dropout(self.dropout, deterministic=not training)(x)
        mean = jnp.tanh(nn.Dense(self.action_dim, kernel_init=dense_init)(x))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


class Critic(nn.Module):
    """Q(s, a), or V(s) without an action."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action=None):
        x = obs if action is None else jnp.concatenate([obs, action], axis=-1)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=dense_init)(x))
        return nn.Dense(1, kernel_init=dense_init)(x)[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    actor: Any
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


class Maze(NamedTuple):
    """What augmentation knows of a maze and of its observations (x, y, [velocity,] ...)."""

    wall: np.ndarray
    """[H, W] bool, True at the rim"""
    corner: np.ndarray
    """[2] (x, y) of the first cell's outer corner"""
    unit: np.ndarray
    """[2] (x, y) of what the next column adds to x and the next row to y"""
    velocity: bool
    """Whether obs[2:4] is the velocity"""
    again: int | None
    """First column in which the position stands a second time"""
    goals: Callable
    """obs [N, O] -> [N, 2] (x, y)"""
    outcome: Callable
    """(obs, action, next_obs) -> reward [N], terminal [N]"""


DIRECTIONS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""(x, y) of 0, 90, 180 and 270 degrees."""
TURNS = np.array([[(x, -y), (y, x)] for x, y in DIRECTIONS])
"""[4, 2, 2] matrices that turn by as much."""
TRIES = 1000


def maze_of(task: Task) -> Maze:
    """The maze of a task's environment.

    Raises:
      InputError: it has none that augmentation is known for.
    """
    env = task.make_env().unwrapped if task.env_spec else None
    names = [cls.__name__ for cls in type(env).__mro__]
    if "PointMazeEnv" in names and task.spec.obs_shape == (8,):
        size, centre = env.maze.maze_size_scaling, (env.maze.x_map_center, env.maze.y_map_center)

        def outcome(obs, action, next_obs):
            reached = np.linalg.norm(next_obs[:, :2] - obs[:, 4:6], axis=1) <= 0.45  # its compute_terminated
            reward = env.compute_reward(next_obs[:, :2], obs[:, 4:6], None)
            return reward, reached & (not env.continuing_task)

        wall = np.array([[cell == 1 for cell in row] for row in env.maze.maze_map])
        corner, unit = np.array([-centre[0], centre[1]]), np.array([size, -size])
        return Maze(wall, corner, unit, True, 6, lambda obs: obs[:, 4:6], outcome)
    if "PointEnv" in names and steady(env):
        f = env.func_env

        def outcome(obs, action, next_obs):
            state, new = (jax.vmap(f.state_of)(jnp.asarray(x)) for x in (obs, next_obs))
            reward = jax.vmap(lambda s, a, n: f.reward(s, a, n, None))(state, task.to_env(action), new)
            return np.asarray(reward), np.asarray(jax.vmap(lambda n: f.terminal(n, None))(new))

        goals = jax.vmap(lambda obs: f.state_of(obs).goal[0])
        wall, velocity = env.world.grid.wall[0], env.world.inertia > 0
        return Maze(wall, np.zeros(2), np.ones(2), velocity, None, lambda obs: np.asarray(goals(obs)), outcome)
    what = task.env_spec.id if task.env_spec else f"'{task.id}' without an environment"
    raise InputError(f"--augment is for PointMaze and point worlds of one agent on still ground, not for {what}.")


def steady(env) -> bool:
    """Whether a point world's dynamics are the same at every place and turned by 90 degrees, and vectors tell all."""
    world, grid = env.world, env.world.grid
    alike = not (any(world.wind) or grid.current.any() or grid.slippery.any() or grid.exits.size or world.view)
    return alike and env.func_env.tells_all and world.aims and world.agents == 1 and not world.discrete


def cells(maze: Maze, xy: np.ndarray) -> np.ndarray:
    """[..., 2] (column, row) of places (x, y), with fractions."""
    return (xy - maze.corner) / maze.unit


def clear(maze: Maze, xy: np.ndarray, by: float) -> np.ndarray:
    """[...] bool: no wall within the square of `by` cells around (x, y)."""
    corners = cells(maze, xy)[..., None, :] + by * np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    column, row = np.moveaxis(np.floor(corners).astype(int), -1, 0)
    inside = (row >= 0) & (row < maze.wall.shape[0]) & (column >= 0) & (column < maze.wall.shape[1])
    return (inside & ~maze.wall[np.where(inside, row, 0), np.where(inside, column, 0)]).all(-1)


def guide(maze: Maze) -> np.ndarray:
    """[H W, H W, 4] bool: which DIRECTIONS lead from a cell (first axis) to another on a shortest way.

    In the goal's cell all four; none where there is no way.
    """
    height, width = maze.wall.shape
    moves = DIRECTIONS * np.sign(maze.unit).astype(int)  # (columns, rows)
    row, column = np.nonzero(~maze.wall)
    near = (row[:, None] + moves[:, 1]) * width + column[:, None] + moves[:, 0]  # [M, 4]
    cell, free = row * width + column, ~maze.wall.ravel()
    graph = np.zeros((height * width,) * 2)
    graph[cell[:, None], near] = free[near]
    steps = shortest_path(graph, unweighted=True)
    found = np.zeros((height * width, height * width, 4), bool)
    found[cell] = np.swapaxes(steps[near] == steps[cell][:, None] - 1, 1, 2) & np.isfinite(steps[cell])[..., None]
    found[cell, cell] = True
    return found


def augmented(data: Dataset, maze: Maze, args: Args) -> Dataset:
    """`augment_ratio` transitions for each of `data`, every one an episode of its own.

    Raises:
      InputError: no transition is far enough from all walls, or one finds no place.
    """
    rng = np.random.default_rng(args.augment_seed)
    shift = data.next_obs[:, :2] - data.obs[:, :2]
    away = max(np.abs(shift[data.successor] / maze.unit).max(initial=0.0), args.clearance)  # further than any movement
    untouched = clear(maze, data.obs[:, :2], away)
    untouched &= clear(maze, data.next_obs[:, :2], args.clearance) & data.successor
    if not untouched.any():
        raise InputError(f"No transition of '{data.task.id}' is {away:.2f} cells away from all walls.")
    count = args.augment_ratio * len(data.obs)
    source = np.resize(np.flatnonzero(untouched), count)
    at_random = {"random": count, "guided": 0, "mixed": count // 5}[args.augment]
    places, turns, left, ways = np.zeros((count, 2)), np.zeros(count, int), np.arange(count), guide(maze)
    goal_column, goal_row = np.floor(cells(maze, maze.goals(data.obs[source]))).astype(int).T
    goal = goal_row * maze.wall.shape[1] + goal_column
    heading = np.arctan2(shift[source, 1], shift[source, 0])
    for _ in range(TRIES):
        place, free = place_in(maze, len(left), args.clearance, rng)
        allowed = ways[free, goal[left]]
        wanted = np.argmax(np.where(allowed, rng.random(allowed.shape), -1.0), axis=1)
        apart = heading[left, None] + np.pi / 2 * (np.arange(4) - wanted[:, None])  # of each turn from the guide's
        turn = np.where(left < at_random, rng.integers(0, 4, len(left)), np.cos(apart).argmax(1))
        new = place + np.einsum("nij,nj->ni", TURNS[turn], shift[source[left]])
        between = np.stack([new[:, 0], place[:, 1]], axis=1)  # a point world moves along x, then along y
        fits = np.all([clear(maze, x, args.clearance) for x in (place, between, new)], axis=0)
        fits &= (left < at_random) | allowed.any(1)
        places[left[fits]], turns[left[fits]] = place[fits], turn[fits]
        left = left[~fits]
        if not len(left):
            return moved(data.select(source), maze, np.float32(places), TURNS[turns])
    raise InputError(f"{len(left):,} transitions of '{data.task.id}' found no place in the maze in {TRIES} tries.")


def place_in(maze: Maze, count: int, clearance: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """Places (x, y) [count, 2] in free cells drawn uniformly, away from the walls beside them; the cells' numbers."""
    free = np.argwhere(~maze.wall)[rng.integers(0, (~maze.wall).sum(), count)]
    row, column = free.T
    low, high = np.zeros((count, 2)), np.ones((count, 2))  # (column, row)
    for axis, (d_row, d_column) in enumerate(((0, 1), (1, 0))):
        low[:, axis] += clearance * maze.wall[row - d_row, column - d_column]
        high[:, axis] -= clearance * maze.wall[row + d_row, column + d_column]
    cell = free[:, ::-1] + rng.uniform(low, high)
    return maze.corner + maze.unit * cell, row * maze.wall.shape[1] + column


def moved(data: Dataset, maze: Maze, place: np.ndarray, turn: np.ndarray) -> Dataset:
    """The transitions of `data` from `place` [N, 2] on, turned by the matrices `turn` [N, 2, 2]."""
    turned = partial(np.einsum, "nij,nj->ni", turn.astype(np.float32))
    obs, next_obs = data.obs.copy(), data.next_obs.copy()
    obs[:, :2], next_obs[:, :2] = place, place + turned(data.next_obs[:, :2] - data.obs[:, :2])
    for x in (obs, next_obs):
        if maze.velocity:
            x[:, 2:4] = turned(x[:, 2:4])
        if maze.again is not None:
            x[:, maze.again : maze.again + 2] = x[:, :2]
    action = turned(data.action)
    reward, terminal = maze.outcome(obs, action, next_obs)
    arrays = {"reward": np.float32(data.task.training_reward(reward)), "terminal": terminal.astype(bool)}
    ends = {"last": np.ones(len(obs), bool), "successor": np.ones(len(obs), bool)}
    return data.replace({}, obs=obs, action=action, next_obs=next_obs, **arrays, **ends)


def learned_from(args: Args) -> Dataset:
    """What was observed, and what was made of it behind.

    Raises:
      InputError: as `load_dataset`, `maze_of` and `augmented`; corridors are narrower than --clearance asks for.
    """
    if args.clearance > 0.5:
        raise InputError(f"--clearance must be at most 0.5, not {args.clearance}: corridors are one cell wide.")
    data = load_dataset(args).require(discrete=False)
    observed = data.select(np.arange(min(args.observed, len(data.obs))))
    observed = observed.replace({}, last=np.r_[observed.last[:-1], True]).scale_rewards(shift=args.reward_shift)
    if args.augment == "none":
        return with_parts(observed, {"observed": (observed, every(observed))})
    made = augmented(observed, maze_of(data.task), args)
    names = ("obs", "action", "reward", "next_obs", "terminal", "last", "successor")
    both = {name: np.concatenate([getattr(observed, name), getattr(made, name)]) for name in names}
    parts = {"observed": (observed, every(observed)), "augmented": (made, every(made))}
    return with_parts(observed.replace({"augment": args.augment}, **both), parts)


def q_values(net: Critic, critics, obs, action):
    """[E, B]"""
    return jax.vmap(net.apply, (0, None, None))(critics, obs, action)


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = min_i target Q_i(s, a) - V(s) (IQL's eq. 5)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    v = agent.nets.critic.apply(value, batch.obs)
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def actor_loss(actor, agent: Agent, batch: Batch, key, args: Args):
    """-exp(beta (min_i target Q_i(s, a) - V(s))) log pi(a|s), weights clipped (IQL's eq. 7)."""
    q = q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, log_std = agent.nets.actor.apply(actor, batch.obs, training=True, rngs={"dropout": key})
    action = jnp.clip(batch.action, -1.0 + 1e-5, 1.0 - 1e-5)
    log_prob = jax.scipy.stats.norm.logpdf(action, mean, jnp.exp(log_std)).sum(-1)
    chex.assert_shape([weight, log_prob], (args.batch_size,))
    return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma V(s') - Q(s, a))^2 (IQL's eq. 6); summed over the two critics."""
    next_v = agent.nets.critic.apply(agent.value, batch.next_obs)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_v
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    return ((q - y) ** 2).mean(1).sum(0), {"q": q.mean(), "reward": batch.reward.mean()}


def actor_optimizer(args: Args) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(args.actor_lr, args.updates))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(Actor(args.hidden_dims, spec.action_dim, args.dropout), Critic(args.hidden_dims))
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    actor = nets.actor.init(actor_key, obs)
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    value = nets.critic.init(value_key, obs)
    return Agent(
        nets=nets,
        actor=actor,
        critic=critic,
        target_critic=critic,
        value=value,
        actor_opt=actor_optimizer(args).init(actor),
        critic_opt=optax.adam(args.critic_lr).init(critic),
        value_opt=optax.adam(args.value_lr).init(value),
    )


def update(agent: Agent, batch: Batch, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of V, then the actor with the new V, then Q with the new V."""
    (loss_v, info_v), grads = jax.value_and_grad(value_loss, has_aux=True)(agent.value, agent, batch, args)
    updates, value_opt = optax.adam(args.value_lr).update(grads, agent.value_opt)
    agent = agent.replace(value=optax.apply_updates(agent.value, updates), value_opt=value_opt)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss_pi, info_pi), grads = grad(agent.actor, agent, batch, key, args)
    updates, actor_opt = actor_optimizer(args).update(grads, agent.actor_opt)
    agent = agent.replace(actor=optax.apply_updates(agent.actor, updates), actor_opt=actor_opt)

    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(agent.critic, agent, batch, args)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    agent = agent.replace(critic=optax.apply_updates(agent.critic, updates), critic_opt=critic_opt)

    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    losses = {"critic_loss": loss_q, "value_loss": loss_v, "actor_loss": loss_pi}
    return agent.replace(target_critic=target_critic), {**losses, **info_q, **info_v, **info_pi}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: the mean's (temperature 0)."""
    return agent.nets.actor.apply(agent.actor, obs)[0]


def train(agent: Agent, keys, args: Args, data: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        batch_key, update_key = jax.random.split(key)
        return update(agent, data.sample(batch_key, args.batch_size), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = learned_from(args)
    with Run(__file__, args, data.task, act) as run:
        if args.write_dataset and not args.resume:
            write_dataset(args.write_dataset, data.replace({}, reward=np.float32(data.task.own_reward(data.reward))))
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
