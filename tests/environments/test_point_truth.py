"""Exact solutions of point worlds: mazes counted by hand, brute force, what policies get in the worlds themselves."""

from collections import deque
from types import SimpleNamespace

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import point
from environments.point import MOVES, State, World, transition
from environments.point_layouts import LAYOUTS
from environments.point_truth import (
    lattice,
    nearer,
    optimal_values,
    path_length,
    steps_between,
    steps_to,
    value_of_steps,
)

GRID = {"discrete": True, "speed": 1.0, "jitter": 0.0}
TINY = """
    #####
    #S..#
    #.#.#
    #.#G#
    #####"""


def by_cells(table, values) -> dict[tuple[int, int], float]:
    """{(row, col): value} of a lattice of cells."""
    col, row = np.floor(table.points).astype(int).T
    return dict(zip(zip(row.tolist(), col.tolist()), values.tolist()))


def breadth_first(rows: list[str], goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Steps from every cell that reaches the goal, over cells without walls."""
    steps, queue = {goal: 0}, deque([goal])
    while queue:
        row, col = queue.popleft()
        for near in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            if rows[near[0]][near[1]] != "#" and near not in steps:
                steps[near] = steps[row, col] + 1
                queue.append(near)
    return steps


def test_a_maze_counted_by_hand():
    table = lattice(World(TINY, **GRID))
    wanted = {(1, 1): 4, (1, 2): 3, (1, 3): 2, (2, 1): 5, (2, 3): 1, (3, 1): 6, (3, 3): 0}
    assert by_cells(table, steps_to(table)) == wanted
    v, _ = optimal_values(table, 0.5)
    assert by_cells(table, v) == pytest.approx({c: 0.0 if n == 0 else 0.5 ** (n - 1) for c, n in wanted.items()})
    sparse = lattice(World(TINY, reward="sparse", **GRID))
    v, _ = optimal_values(sparse, 0.5)
    assert by_cells(sparse, v)[1, 1] == pytest.approx(-1.75) and by_cells(sparse, v)[2, 3] == 0.0
    np.testing.assert_array_equal(table.nearest([[1.1, 1.9], [2.5, 2.5]]), [0, -1])


@pytest.mark.parametrize("layout", ["large", "random-9x13-2"])
def test_steps_are_those_of_breadth_first_search(layout):
    world = World(layout, **GRID)
    table = lattice(world)
    rows = ["".join(r) for r in world.grid.text[0]]
    between = steps_between(table)
    for goal in ((1, 1), tuple(np.argwhere(world.grid.goals[0])[0].tolist())):
        wanted = breadth_first(rows, goal)
        to = by_cells(table, steps_to(table, (goal[1] + 0.5, goal[0] + 0.5)))
        assert to == wanted
        number = table.nearest([goal[1] + 0.5, goal[0] + 0.5])
        assert by_cells(table, between[:, number]) == wanted


def test_moves_of_the_lattice_are_the_worlds():
    """Every point and action, discrete and continuous, with a current and a teleport."""
    for world in (World("river", speed=0.5, current=0.25, wind=(0.0, 0.25)), World("teleport", **GRID)):
        table = lattice(world)
        actions = jnp.arange(len(MOVES)) if world.discrete else jnp.asarray(table.pushes)

        def move(position, action, key, world=world):
            s = State(position[None], jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros(0), jnp.int32(0))
            return point.transition(world, s, action, key).position[0]

        keys = jax.random.split(jax.random.key(0), 8)
        moved = jax.jit(jax.vmap(jax.vmap(jax.vmap(move, (None, None, 0)), (None, 0, None)), (0, None, None)))
        found = np.asarray(moved(jnp.float32(table.points), actions, keys))
        wanted = table.points[table.outcomes[table.arrival]]
        close = (np.abs(found[..., None, :] - wanted[..., None, :, :]) < 1e-4).all(-1)
        assert close.any(-1).all() and (close.any(-2) | (wanted.shape[2] == 1)).mean() > 0.99


def test_the_way_that_the_lattice_shows_takes_as_many_steps_in_the_world():
    """Continuous actions: greedy steps through the table, played by the world's own transition."""
    world = World("medium", jitter=0.0)
    table = lattice(world)
    steps = steps_to(table)
    best = jnp.asarray(table.pushes[steps[table.arrival].argmin(1)])
    index, start = jnp.asarray(table.index), table.points[::97]

    def play(position):
        s = State(position[None], jnp.zeros((1, 2)), jnp.float32([[6.5, 6.5]]), jnp.zeros(0), jnp.int32(0))

        def step(s, _):
            col, row = jnp.floor(s.position[0] / table.spacing).astype(int)
            new = point.transition(world, s, best[index[row, col]], jax.random.key(0))
            return new, point.reached(world, new.position, new.goal)

        return jax.lax.scan(step, s, length=100)[1]

    there = np.asarray(jax.jit(jax.vmap(play))(jnp.float32(start)))
    wanted = steps[table.nearest(start)]
    far = wanted > 0
    np.testing.assert_array_equal(there[far].argmax(1) + 1, wanted[far])
    assert wanted.max() == 30


def test_finer_actions_are_hardly_faster():
    """The claim of the module's docstring: at most 5 % and one step."""
    for layout in ("umaze", "medium", "hazard"):
        coarse, fine = (lattice(World(layout), fine) for fine in (2, 6))
        starts = coarse.points[::11]
        slow, fast = (steps_to(t)[t.nearest(starts)] for t in (coarse, fine))
        assert (fast >= 0.95 * slow - 1).all() and (fast <= slow + 1).all()


@pytest.mark.long
def test_values_are_the_returns_of_the_optimal_policy():
    """On slippery ground with deadly holes: the best actions, played in the world, get what V says; others less."""
    world = World("lake", deadly=True, slip=0.4, **GRID)
    table = lattice(world)
    v, q = optimal_values(table, 0.95)
    start = int(table.nearest([1.5, 1.5]))
    index = jnp.asarray(table.index)

    def returns(actions, key):
        def step(carry, key):
            s, left = carry
            col, row = jnp.floor(s.position[0]).astype(int)
            action = actions[index[row, col]]
            new = point.transition(world, s, action, key)
            r, ends = point.reward(world, s, action, new), point.terminal(world, new)
            return (new, jnp.where(ends, 0.0, 0.95 * left)), left * r

        goal = jnp.float32([[7.5, 7.5]])
        first = State(jnp.float32([[1.5, 1.5]]), jnp.zeros((1, 2)), goal, jnp.zeros(0), jnp.int32(0))
        return jax.lax.scan(step, (first, 1.0), jax.random.split(key, 150))[1].sum()

    play = jax.jit(jax.vmap(returns, (None, 0)))
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(play(jnp.asarray(q.argmax(1)), keys))
    assert abs(found.mean() - v[start]) < 4 * found.std() / np.sqrt(len(found)) and v[start] > 0.1
    shortest = lattice(World("lake", slip=0.0, **GRID))
    greedy = steps_to(shortest, avoid_hazards=True)[shortest.arrival].argmin(1)
    assert np.asarray(play(jnp.asarray(greedy), keys)).mean() < v[start]


def test_a_teleport_of_two_exits_is_worth_their_mean():
    """Breadth-first search takes the lucky exit, value iteration the mean of both."""
    world = World(LAYOUTS["teleport"].replace("S", "."), start=(3.5, 2.5), **GRID)
    table = lattice(world)
    before = int(table.nearest([3.5, 2.5]))
    assert steps_to(table)[before] == 5  # into the entrance, out at (5.5, 1.5), then four moves
    v, _ = optimal_values(table, 0.9)
    assert v[before] == pytest.approx(0.5 * 0.9**4)


def test_treasures_trade_value_for_time():
    world = World("deepsea", reward=("treasure", "time"), weights=(1.0, 1.0), **GRID)
    table = lattice(world)
    v, _ = optimal_values(table, 0.999999)
    assert v[table.nearest([1.5, 1.5])] == pytest.approx(74 - 17, abs=1e-2)
    impatient = lattice(World("deepsea", reward=("treasure", "time"), weights=(1.0, 10.0), **GRID))
    v, _ = optimal_values(impatient, 0.999999)
    assert v[impatient.nearest([1.5, 1.5])] == pytest.approx(1 - 10, abs=1e-2)


def test_values_of_steps_are_those_of_value_iteration():
    for reward in ("success", "sparse"):
        world = World("umaze", reward=reward, **GRID)
        table = lattice(world)
        steps, (v, _) = steps_to(table), optimal_values(table, 0.9)
        away = steps > 0
        np.testing.assert_allclose(value_of_steps(world, steps, 0.9)[away], v[away], atol=1e-9)
    world = World("umaze", reward="sparse")
    assert value_of_steps(world, np.inf, 0.9) == pytest.approx(-10) and value_of_steps(world, 1, 0.9) == 0


def test_path_lengths_go_around_walls_in_every_world():
    world = World("umaze", inertia=0.5, agents=2, start="sampled", goal="sampled", noise=1.0)
    length = path_length(world, (1.5, 3.5))
    np.testing.assert_allclose(length([[3.5, 3.5], [3.5, 1.5], [1.5, 1.5]]), [1.5, 2.5, 3.5], atol=0.13)
    assert np.isinf(length([0.5, 0.5]))
    straight = path_length(World("open"))
    np.testing.assert_allclose(straight([[1.5, 1.5], [7.5, 3.5]]), [6 - 8**-0.5, 3.5], atol=0.13)
    assert path_length(World("deepsea"), (9.5, 10.5))([9.5, 8.5]) == pytest.approx(1.5, abs=0.13)


def test_path_lengths_are_as_exact_as_they_say():
    """Against four times finer ones, which are themselves too long by at most a quarter of the bound."""
    for layout in ("large", "fourrooms"):
        world = World(layout)
        spots = np.argwhere(~world.grid.wall[0])[:, ::-1] + np.random.default_rng(0).uniform(0.02, 0.98, (1, 2))
        coarse, fine = (path_length(world, fine=n)(spots) for n in (8, 32))
        assert ((coarse - fine >= -1 / 8) & (coarse - fine <= (5 - 5 / 4) / 8)).all()


def task_of(**options):
    return SimpleNamespace(make_env=lambda: gym.make("PointWorld-v0", **options))


def test_an_action_is_worth_the_way_that_is_left_after_it():
    """In the U maze from the start's side the way to the goal leads around the wall, not through it."""
    world = World("umaze")
    value, left = nearer(task_of(layout="umaze")), path_length(world, fine=16)
    r = np.random.default_rng(0)
    free = np.argwhere(~world.grid.wall[0])[:, ::-1]
    start = np.float32(free[r.integers(len(free), size=200)] + r.uniform(0.1, 0.9, (200, 2)))
    action = r.uniform(-1, 1, (200, 2)).astype(np.float32)
    rest = jnp.zeros((200, 1, 2))
    states = State(start[:, None], rest, rest, jnp.zeros((200, 0)), jnp.zeros(200, jnp.int32))
    moved = jax.jit(jax.vmap(lambda state, push: transition(world, state, push, jax.random.key(0)).position))
    after = moved(states, action)
    np.testing.assert_array_equal(value(start, action), -np.float32(left(after[:, 0])))
    along, against, into_the_wall = value(jnp.full((3, 2), 1.5), jnp.float32([(1, 0), (-1, 0), (0, 1)]))
    assert along > into_the_wall >= against


@pytest.mark.parametrize(
    "options", [{"inertia": 0.5}, {"discrete": True}, {"observation": "goal"}, {"goal": "sampled"}]
)
def test_only_some_worlds_tell_which_action_leads_nearer(options):
    with pytest.raises(ValueError):
        nearer(task_of(layout="umaze", **options))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"inertia": 0.5}, "inertia"),
        ({"noise": 0.1}, "noise"),
        ({"turn": 0.1}, "turns"),
        ({"wind": (0.01, 0.0)}, "drift"),
        ({"speed": 0.3}, "fraction"),
        ({"agents": 2, "start": "sampled", "goal": "sampled"}, "agents"),
        ({"layout": "lake"}, "slippery"),
        ({"at_goal": "next"}, "goals"),
    ],
)
def test_what_is_not_exact_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lattice(World(**options))


def test_a_goal_must_be_known():
    table = lattice(World("open", goal="sampled"))
    with pytest.raises(ValueError, match="say which"):
        steps_to(table)
    several = lattice(World("umaze", reward=("success", "time"), **GRID))
    with pytest.raises(ValueError, match="weights"):
        optimal_values(several, 0.9)
    with pytest.raises(ValueError, match="steps alone"):
        value_of_steps(World(reward="dense"), 3, 0.9)
