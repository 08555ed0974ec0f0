"""ProcMaze: mazes that a depth-first search carves, steps by hand, the end, what observations tell, and its data."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import make
import mazes
import numpy as np
import pytest
from environments.proc_maze import MazeFunctional, State

from shared.data import load_dataset
from shared.env_models import exact_model
from shared.jax_envs import jax_env
from shared.task import env_task

MAZE = MazeFunctional(3)
STAY, UP, LEFT, DOWN, RIGHT = range(5)
OPEN = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 1]], bool).ravel()
"""Cells 0 1 2 / # # 5 / 6 7 8."""


@pytest.fixture(scope="module")
def states() -> State:
    """500 beginnings [N, ...]."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(MAZE.initial))(jax.random.split(jax.random.key(0), 500)))


def around(cell: int) -> list[int]:
    row, column = divmod(cell, 3)
    places = [(row - 1, column), (row, column - 1), (row + 1, column), (row, column + 1)]
    return [3 * r + c for r, c in places if 0 <= r < 3 and 0 <= c < 3]


def test_mazes_are_trees_that_no_cell_can_be_added_to(states):
    """As many open cells as passages and one more, all connected; no wall could be opened without closing a circle."""
    for is_open in np.unique(states.open, axis=0):
        cells = np.flatnonzero(is_open).tolist()
        passages = sum(n in cells for cell in cells for n in around(cell)) // 2
        reached = [cells[0]]
        for cell in reached:
            reached += [n for n in around(cell) if n in cells and n not in reached]
        assert sorted(reached) == cells and passages == len(cells) - 1
        assert all(sum(n in cells for n in around(wall)) != 1 for wall in np.flatnonzero(~is_open))
    assert len(np.unique(states.open, axis=0)) == 18


def test_start_and_goal_are_any_open_cells(states):
    n = np.arange(500)
    assert states.open[n, states.player].all() and states.open[n, states.goal].all()
    assert len({*states.player.tolist()}) == len({*states.goal.tolist()}) == 9
    same = 1 / states.open.sum(1)
    assert abs((states.player == states.goal).mean() - same.mean()) < 0.05


def step(player: int, action: int, goal: int = 6, n: int = 1) -> State:
    state = State(jnp.int32(player), jnp.int32(goal), jnp.asarray(OPEN))
    keys = jax.random.split(jax.random.key(player), n)
    return jax.jit(jax.vmap(lambda key: MAZE.transition(state, action, key)))(keys)


@pytest.mark.parametrize(
    "player, action, to",
    [(1, STAY, 1), (1, LEFT, 0), (1, RIGHT, 2), (2, DOWN, 5), (8, UP, 5), (1, DOWN, 1), (0, LEFT, 0), (2, RIGHT, 2),
     (0, UP, 0), (8, RIGHT, 8), (7, DOWN, 7), (5, LEFT, 5)],
)  # fmt: skip
def test_walls_and_the_rim_stop_a_move_and_few_steps_end_at_the_goal(player, action, to):
    """One step in 70: a tenth of one by the seven steps of the longest way that the paper's formula has."""
    found = np.asarray(step(player, action, n=4000).player)
    assert {*found.tolist()} == {to, 6} and 0.008 < (found == 6).mean() < 0.021


def test_the_step_from_the_goal_ends_the_episode_and_the_player_is_nowhere():
    for action in range(5):
        new = jax.tree.map(lambda x: x[0], step(6, action))
        assert MAZE.terminal(new, None) and int(new.player) == -1
        obs = MAZE.observation(new, None).reshape(9, 4)
        assert not obs[:, 0].any() and obs[:, 1].argmax() == 6
        assert MAZE.terminal(MAZE.transition(new, action, jax.random.key(0)), None)
    arrived = jax.tree.map(lambda x: x[0], step(7, LEFT))
    assert int(arrived.player) == 6 and not MAZE.terminal(arrived, None)
    assert MAZE.reward(None, None, None, None) == -1.0


def test_observations_show_all_and_states_come_back(states):
    first = jax.tree.map(lambda x: x[0], states)
    obs = np.asarray(MAZE.observation(first, None)).reshape(9, 4)
    np.testing.assert_array_equal(obs[:, 0], np.arange(9) == first.player)
    np.testing.assert_array_equal(obs[:, 1], np.arange(9) == first.goal)
    np.testing.assert_array_equal(obs[:, 2:], np.stack([~first.open, first.open], 1))
    ended = states._replace(player=np.where(np.arange(500) < 9, -1, states.player))
    back = jax.jit(jax.vmap(lambda state: MAZE.state_of(MAZE.observation(state, None))))(ended)
    jax.tree.map(np.testing.assert_array_equal, back, ended)


def test_the_registered_environment_is_compiled_and_a_model_of_itself():
    task = env_task("ProcMaze-v0")
    assert task.spec.obs_shape == (64,) and task.spec.action_dim == 5 and jax_env(task)
    env, model = gym.make("ProcMazeSmall-v0"), exact_model(env_task("ProcMazeSmall-v0"))
    obs, _ = env.reset(seed=3)
    steps, over = 0, False
    while not over:
        new, reward, over, cut, _ = env.step(steps % 5)
        expected, r, end = (np.asarray(x)[0] for x in model(obs[None], np.array([steps % 5]), jax.random.key(0)))
        assert reward == r == -1.0 and over == end and not cut
        np.testing.assert_array_equal(new, expected)  # no step of these ends at the goal by chance
        obs, steps = new, steps + 1
    assert steps > 1
    with pytest.raises(ValueError, match="at least 2 x 2"):
        gym.make("ProcMaze-v0", size=1)


@pytest.mark.parametrize(
    "player, goal, action",
    [(0, 6, RIGHT), (2, 6, DOWN), (5, 0, UP), (8, 6, LEFT), (6, 0, RIGHT), (7, 7, STAY)],
)
def test_players_of_the_data_know_the_shortest_way(player, goal, action):
    state = State(jnp.int32(player), jnp.int32(goal), jnp.asarray(OPEN))
    assert int(jax.jit(mazes.onward)(state)) == action


def test_the_data_is_of_good_players_and_of_bad_ones():
    """Each step costs 1; episodes end where the goal was reached the step before, or are cut."""
    make.make("maze-small-mixed", steps=300)
    data = load_dataset("maze-small-mixed")
    assert len(data.obs) == 300 and (data.reward == -1).all() and data.terminal.sum() >= data.last.sum() - 1
    grid = data.obs.reshape(300, 9, 4)
    on_goal = (grid[..., 0] * grid[..., 1]).any(1)
    np.testing.assert_array_equal(data.terminal, on_goal)
    state = jax.jit(jax.vmap(MAZE.state_of))(data.obs)
    best = np.asarray(jax.jit(jax.vmap(mazes.onward))(state))
    assert 0.4 < (best == data.action)[~on_goal].mean() < 0.9
    assert mazes.returns("expert", 30).mean() > mazes.returns("random", 30).mean() + 5
