"""Point worlds: dynamics against plain Python, walls, what ends an episode, rewards, starts and goals, what is seen."""

import dataclasses
import json
import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import point, point_views
from environments.point import MOVES, State, World
from environments.point_layouts import LAYOUTS, grid, random_maze
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEY = jax.random.key(0)
RESETS = jax.jit(jax.vmap(point.reset, (None, 0)), static_argnums=0)
RESET, OBSERVE = (jax.jit(f, static_argnums=0) for f in (point.reset, point_views.observe))


def state(world: World, *positions, goal=(0.0, 0.0), velocity=(0.0, 0.0)) -> State:
    """Agents at `positions`, all with one goal and velocity."""
    position = jnp.float32(positions)
    goal, velocity = (jnp.broadcast_to(jnp.float32(x), position.shape) for x in (goal, velocity))
    return State(position, velocity, goal, jnp.zeros(world.distractors), jnp.int32(0))


@lru_cache
def compiled(world: World):
    """(state, actions [T, ...], key) -> the states after each."""

    @jax.jit
    def play(first, actions, key):
        def step(s, x):
            new = point.transition(world, s, *x)
            return new, new

        return jax.lax.scan(step, first, (actions, jax.random.split(key, len(actions))))[1]

    return play


# ---------------------------------------------------------------------------------------- dynamics


def by_hand(world: World, rows: list[str], position, velocity, action):
    """One step of one agent in floats; returns (position, velocity)."""
    ax, ay = (min(max(a, -1.0), 1.0) for a in action)
    ax, ay = (
        ax * math.cos(world.turn) - ay * math.sin(world.turn),
        ax * math.sin(world.turn) + ay * math.cos(world.turn),
    )
    vx = world.inertia * velocity[0] + (1 - world.inertia) * world.speed * ax
    vy = world.inertia * velocity[1] + (1 - world.inertia) * world.speed * ay
    x, y = position
    flow = {">": (1, 0), "v": (0, 1), "<": (-1, 0), "^": (0, -1)}.get(rows[int(y)][int(x)], (0, 0))
    new_x = x + min(max(vx + world.wind[0] + world.current * flow[0], -1.0), 1.0)
    if rows[int(y)][int(new_x)] == "#":
        new_x, vx = x, 0.0
    new_y = y + min(max(vy + world.wind[1] + world.current * flow[1], -1.0), 1.0)
    if rows[int(new_y)][int(new_x)] == "#":
        new_y, vy = y, 0.0
    return (new_x, new_y), (vx, vy)


@pytest.mark.parametrize(
    "world",
    [
        World("umaze"),
        World("medium", inertia=0.7, speed=0.4),
        World("river", wind=(0.05, -0.1), current=0.3, turn=2.0, speed=0.9),
    ],
)
def test_the_dynamics_are_the_equation(world):
    rows = LAYOUTS[world.layout].split()
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (60, 2)).astype(np.float32)
    first = state(world, (1.5, 1.5))
    found = compiled(world)(first, actions, KEY)
    position, velocity = (1.5, 1.5), (0.0, 0.0)
    for t, action in enumerate(actions.tolist()):
        position, velocity = by_hand(world, rows, position, velocity, action)
        np.testing.assert_allclose(found.position[t, 0], position, atol=2e-5, err_msg=str(t))
        np.testing.assert_allclose(found.velocity[t, 0], velocity, atol=2e-5, err_msg=str(t))
    assert np.ptp(found.position[:, 0], axis=0).min() > 0.3


WALLED = [
    World("medium", speed=1.0, inertia=0.5, wind=(0.3, -0.2)),
    World("random-9x11-3", speed=0.6, agents=2, goal="sampled", start="sampled"),
    World("fourrooms", speed=1.0, discrete=True),
]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, len(WALLED) - 1), seed=st.integers(0, 2**16), scale=st.sampled_from([0.3, 1.0, 5.0]))
def test_no_wall_is_ever_crossed(which, seed, scale):
    """Every move goes along x, then along y, over two cells that touch; none of them is a wall."""
    world, rng = WALLED[which], np.random.default_rng(seed)
    cells = np.argwhere(world.grid.free[0])
    spots = cells[rng.integers(len(cells), size=world.agents)] + rng.uniform(0.01, 0.99, (world.agents, 2))
    actions = (
        rng.integers(0, world.num_actions, 40) if world.discrete else scale * rng.normal(size=(40, 2 * len(spots)))
    )
    first = state(world, *spots[:, ::-1])
    found = compiled(world)(first, jnp.asarray(actions, jnp.int32 if world.discrete else jnp.float32), KEY)
    path = np.concatenate([np.asarray(first.position)[None], found.position])
    corner = np.stack([path[1:, :, 0], path[:-1, :, 1]], -1)
    for spot in (path, corner):
        col, row = np.floor(spot).astype(int).reshape(-1, 2).T
        assert not world.grid.wall[0][row, col].any()
    assert np.abs(np.diff(np.floor(path), axis=0)).max() <= 1


def test_discrete_moves_go_from_cell_to_cell():
    world = World("umaze", discrete=True, speed=1.0, jitter=0.0)
    path = compiled(world)(state(world, (1.5, 1.5)), jnp.int32([1, 1, 1, 2, 2, 3, 0, 4, 2]), KEY).position[:, 0]
    assert path.tolist() == [
        [2.5, 1.5], [3.5, 1.5], [3.5, 1.5], [3.5, 2.5], [3.5, 3.5], [2.5, 3.5], [2.5, 3.5], [2.5, 3.5], [2.5, 3.5],
    ]  # fmt: skip


def test_several_agents_have_one_action_and_do_not_touch_each_other():
    world = World("open", agents=3, discrete=True, speed=1.0, goal="sampled", start="sampled")
    first = state(world, (2.5, 2.5), (2.5, 4.5), (5.5, 5.5))
    joint = 1 + 5 * 4 + 25 * 3  # right, up, left
    new = compiled(world)(first, jnp.int32([joint]), KEY).position[0]
    assert new.tolist() == [[3.5, 2.5], [2.5, 3.5], [4.5, 5.5]] and world.num_actions == 125


def test_slippery_cells_replace_the_action_at_their_rate():
    world = World("lake", discrete=True, speed=1.0, slip=0.5)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def moved(place, key):
        return point.transition(world, state(world, place), jnp.int32(1), key).position[0]

    shift = np.asarray(moved(jnp.float32([4.5, 4.5]), jax.random.split(KEY, 4000))) - 4.5
    share = [(shift == move).all(1).mean() for move in MOVES]
    np.testing.assert_allclose(share, [0.1, 0.6, 0.1, 0.1, 0.1], atol=0.03)
    assert (np.asarray(moved(jnp.float32([1.5, 1.5]), jax.random.split(KEY, 4000))) == [2.5, 1.5]).all()


def test_a_teleport_leads_to_each_of_its_exits_at_rest():
    world = World("teleport", inertia=0.5, speed=0.5)
    enter = state(world, (3.5, 2.9), velocity=(0.0, 0.4))
    arrive = jax.jit(jax.vmap(lambda key: point.transition(world, enter, jnp.float32([0, 1]), key)))
    new = arrive(jax.random.split(KEY, 2000))
    spots, counts = np.unique(np.asarray(new.position[:, 0]), axis=0, return_counts=True)
    assert spots.tolist() == [[1.5, 5.5], [5.5, 1.5]] and not new.velocity.any()
    np.testing.assert_allclose(counts / 2000, 0.5, atol=0.05)


def test_distractors_are_a_process_of_their_own():
    world = World("open", distractors=2)
    reset = RESETS(world, jax.random.split(KEY, 500))
    np.testing.assert_allclose(reset.distractors.std(), 0.1 / np.sqrt(1 - 0.81), rtol=0.1)
    both = [compiled(world)(state(world, (4.5, 4.5)), jnp.full((400, 2), a), KEY).distractors for a in (-1.0, 1.0)]
    np.testing.assert_array_equal(*both)
    z = np.asarray(both[0])
    np.testing.assert_allclose(np.std(z[1:] - 0.9 * z[:-1]), 0.1, rtol=0.1)


# --------------------------------------------------------------------------------- reward and ends


def outcome(world: World, old, new, goal=(7.5, 7.5), action=(0.0, 0.0)):
    """Reward, terminal and cost of a move from `old` to `new` (lists of positions)."""
    first, then = (state(world, *s, goal=goal) for s in (old, new))
    return (
        np.asarray(point.reward(world, first, jnp.float32(action), then)).tolist(),
        bool(point.terminal(world, then)),
        float(point.cost(world, then)),
    )


def test_rewards_and_ends_of_one_agent():
    at, away = [(7.4, 7.2)], [(4.5, 3.5)]
    assert outcome(World("hazard"), away, at) == (1.0, True, 0.0)
    assert outcome(World("hazard"), at, away) == (0.0, False, 1.0)  # an entry into a hazard, which costs
    assert outcome(World("hazard", deadly=True), at, away) == (0.0, True, 1.0)
    assert outcome(World("hazard", at_goal="stay"), away, at) == (1.0, False, 0.0)
    assert outcome(World("hazard", reward="sparse"), away, at)[0] == 0.0
    assert outcome(World("hazard", reward="sparse"), at, away)[0] == -1.0
    assert outcome(World("hazard", reward="dense"), at, away)[0] == pytest.approx(-5.0)
    many = World("hazard", reward=("time", "safety", "effort", "success"))
    assert outcome(many, at, away, action=(0.5, -3.0))[0] == [-1.0, -1.0, -1.25, 0.0]
    weighed = dataclasses.replace(many, weights=(1.0, 10.0, 2.0, 0.0))
    assert outcome(weighed, at, away, action=(0.5, -3.0))[0] == -13.5


def test_a_treasure_ends_the_search_with_its_value():
    world = World("deepsea", reward=("treasure", "time"))
    assert outcome(world, [(1.5, 1.5)], [(2.5, 3.5)]) == ([2.0, -1.0], True, 0.0)
    assert outcome(world, [(1.5, 1.5)], [(9.5, 10.5)])[:2] == ([74.0, -1.0], True)
    assert outcome(world, [(1.5, 1.5)], [(3.5, 2.5)])[:2] == ([0.0, -1.0], False)


def test_a_team_is_done_when_all_are():
    world = World("open", agents=2, start="sampled", goal="sampled", reward=("success", "dense", "crowding"))
    goals, swapped = jnp.float32([(2.5, 2.5), (6.5, 6.5)]), jnp.float32([(6.5, 6.5), (2.5, 2.5)])

    def result(world, positions):
        s = state(world, *positions.tolist())._replace(goal=goals)
        return point.objectives(world, s, jnp.zeros(4), s).tolist(), bool(point.terminal(world, s))

    assert result(world, goals) == ([1.0, 0.0, 0.0], True)
    assert result(world, goals.at[1].set(goals[0])) == ([0.0, pytest.approx(-(32**0.5) / 2), -1.0], False)
    assert not result(world, swapped)[1] and result(dataclasses.replace(world, cover=True), swapped)[1]


def test_the_next_goal_comes_when_one_is_reached():
    world = World("open", at_goal="next", goal="sampled")
    move = jax.jit(partial(point.transition, world))
    near = state(world, (5.3, 5.5), goal=(5.9, 5.5))
    seen = {tuple(move(near, jnp.float32([1, 0]), key).goal[0].tolist()) for key in jax.random.split(KEY, 30)}
    assert len(seen) > 10 and (5.5, 5.5) not in seen
    far = state(world, (2.5, 5.5), goal=(5.9, 5.5))
    new = move(far, jnp.float32([1, 0]), KEY)
    np.testing.assert_array_equal(new.goal, far.goal)
    assert point.reward(world, near, jnp.zeros(2), move(near, jnp.float32([1, 0]), KEY)) == 1.0
    assert not point.terminal(world, move(near, jnp.float32([1, 0]), KEY))


# ------------------------------------------------------------------------------- starts and goals


def test_starts_and_goals_are_where_the_options_say():
    keys = jax.random.split(KEY, 300)
    fixed = RESETS(World("umaze"), keys)
    assert (fixed.goal == jnp.float32([1.5, 3.5])).all() and np.abs(fixed.position - 1.5).max() <= 0.25
    assert len(np.unique(fixed.position[:, 0], axis=0)) > 250 and np.abs(fixed.position - 1.5).max() > 0.2
    world = World("lake", start="sampled", goal="sampled", jitter=0.0)
    s = RESETS(world, keys)
    cells, goals = (np.floor(x[:, 0]).astype(int) for x in (s.position, s.goal))
    assert (s.position % 1 == 0.5).all() and world.grid.free[0][cells[:, 1], cells[:, 0]].all()
    assert not (cells == goals).all(1).any()
    assert len(np.unique(cells, axis=0)) > 30 < len(np.unique(goals, axis=0))
    assert (RESETS(World("open", start=(2.25, 3.0), goal=(4.0, 4.5)), keys).position == jnp.float32([2.25, 3.0])).all()
    team = RESETS(World("umaze", agents=3, start="sampled", goal="sampled"), keys)
    for spots in (team.position, team.goal):
        assert all(len(np.unique(np.floor(x), axis=0)) == 3 for x in np.asarray(spots))
    crossing = RESETS(World("crossing"), keys).goal[:, 0]
    assert len(np.unique(crossing, axis=0)) == 4


def test_every_episode_draws_a_level():
    world = World("random-7x9-5", levels=3, start="sampled", goal="sampled", jitter=0.0)
    s = RESETS(world, jax.random.split(KEY, 200))
    assert np.bincount(s.level).min() > 40
    for level in range(3):
        assert "\n".join(map("".join, world.grid.text[level])) == random_maze(7, 9, 5 + level)
    row, col = (np.floor(s.position[:, 0, i]).astype(int) for i in (1, 0))
    assert world.grid.free[s.level, row, col].all()


def test_a_random_maze_is_connected_and_its_seeds_differ():
    mazes = [random_maze(11, 15, seed) for seed in range(6)]
    assert len(set(mazes)) == 6 and random_maze(11, 15, 0) == mazes[0]
    for maze in mazes:
        rows = maze.split()
        assert len(rows) == 11 and {len(r) for r in rows} == {15} and maze.count("S") == maze.count("G") == 1
        free = {(r, c) for r, row in enumerate(rows) for c, x in enumerate(row) if x != "#"}
        found, queue = {(1, 1)}, [(1, 1)]
        while queue:
            r, c = queue.pop()
            new = {(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)} & free - found
            found |= new
            queue += new
        assert found == free


# ------------------------------------------------------------------------------------ observations


def test_vectors_hold_what_they_say_and_no_more():
    world = World("medium", agents=2, inertia=0.5, start="sampled", goal="sampled", distractors=3, view=1)
    s = RESET(world, KEY)._replace(velocity=jnp.float32([(0.1, 0.2), (0.3, 0.4)]))
    vector = np.asarray(OBSERVE(world, s))
    each = vector[:-3].reshape(2, -1)
    np.testing.assert_array_equal(each[:, :6], np.concatenate([s.position, s.velocity, s.goal], 1))
    np.testing.assert_array_equal(vector[-3:], s.distractors)
    for agent in range(2):
        col, row = np.floor(s.position[agent]).astype(int)
        around = world.grid.wall[0, row - 1 : row + 2, col - 1 : col + 2]
        np.testing.assert_array_equal(each[agent, 6:].reshape(3, 3), around)
    hidden = dataclasses.replace(world, show_goal=False)
    other = s._replace(goal=s.goal + 1)
    np.testing.assert_array_equal(OBSERVE(hidden, s), OBSERVE(hidden, other))
    as_goal = OBSERVE(dataclasses.replace(world, observation="goal"), s)
    np.testing.assert_array_equal(as_goal["achieved_goal"], s.position.ravel())
    np.testing.assert_array_equal(as_goal["desired_goal"], s.goal.ravel())
    assert len(as_goal["observation"]) == len(vector) - 4


def test_a_view_reaches_beyond_the_rim():
    world = World("umaze", view=2, show_goal=False)
    assert OBSERVE(world, state(world, (1.5, 1.5)))[2:].reshape(5, 5).tolist() == [
        [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("side", [16, 64])
def test_pixels_show_positions_finely_and_the_goal_if_it_is_shown(side):
    world = World("umaze", observation="pixels", pixels=side)
    draw = partial(OBSERVE, world)
    here, there = state(world, (1.5, 1.5), goal=(1.5, 3.5)), state(world, (1.55, 1.5), goal=(1.5, 3.5))
    image = np.asarray(draw(here))
    assert image.shape == (side, side, 3) and image.dtype == np.uint8
    cell = side / 5
    pixel = lambda x, y: tuple(image[int(y * cell), int(x * cell)])  # noqa: E731
    assert pixel(0.5, 2.5) == point_views.WALL and pixel(3.5, 1.5) == point_views.FLOOR
    assert pixel(1.5, 1.5) == point_views.AGENTS[0] and pixel(1.5, 3.5) == point_views.GOAL
    assert (image != np.asarray(draw(there))).any()  # a twentieth of a cell: less than a pixel of the small ones
    hidden = dataclasses.replace(world, show_goal=False)
    assert tuple(np.asarray(OBSERVE(hidden, here))[int(3.5 * cell), int(1.5 * cell)]) == point_views.FLOOR
    moving = dataclasses.replace(world, inertia=0.5)
    still, fast = (OBSERVE(moving, state(moving, (2.5, 1.5), velocity=v)) for v in ((0, 0), (0.2, 0)))
    assert (still != fast).any()


# ----------------------------------------------------------------------------------------- options


def test_options_go_through_json_and_are_hashable():
    world = World("medium", wind=[0.1, 0.0], reward=["success", "time"], start=[1.5, 1.5])
    again = World(**json.loads(json.dumps(dataclasses.asdict(world))))
    assert world == again and hash(world) == hash(again) and again.wind == (0.1, 0.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": "umazes"}, "no layout 'umazes'"),
        ({"layout": "##\n#"}, "one length"),
        ({"layout": "###\n#S.\n###"}, "rim"),
        ({"layout": "####\n#S?#\n####"}, "character"),
        ({"layout": "#####\n#S.a#\n#####"}, "exit"),
        ({"layout": "random-4x5-1"}, "odd"),
        ({"layout": "umaze", "levels": 2}, "levels"),
        ({"layout": "#####\n#...#\n#####"}, "no fixed start"),
        ({"layout": "#####\n#S..#\n#####"}, "no fixed goal"),
        ({"speed": 1.5}, "speed"),
        ({"reward": "succes"}, "no reward"),
        ({"reward": ["success", "time"], "weights": [1.0]}, "weights"),
        ({"start": [0.5, 0.5]}, "in a wall"),
        ({"start": [50, 0.5]}, "in a wall"),
        ({"agents": 4, "start": "sampled"}, "agents"),
        ({"pixels": 8}, "pixels"),
        ({"at_goal": "stop"}, "goals"),
        ({"observation": "image"}, "observations"),
    ],
)
def test_options_that_make_no_world_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        World(**options)


def test_named_layouts_are_sound():
    for name in LAYOUTS:
        tables = grid(name)
        assert tables.starts.sum() == 1 and tables.free.sum() > 5
