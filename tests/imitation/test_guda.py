"""Augmentation of guda against the worlds themselves and against turns by hand; what its learner sees."""

import dataclasses
import functools
import sys

import gymnasium as gym
import jax
import numpy as np
import pytest
from conftest import ROOT, load
from iql_in_numpy import check_iql
from jobs import small

from shared.data import load_dataset
from shared.env_models import exact_model
from shared.errors import InputError
from shared.parts import write_dataset
from shared.task import registered_env

sys.path.insert(0, str(ROOT / "datasets"))
import environments  # noqa: F401  (registers the point worlds)

SMALL = {"augment": "none"}
UMAZE = "PointUMaze-v0"
GUIDE = {(1, 1): "r", (1, 2): "r", (1, 3): "d", (2, 3): "d", (3, 3): "l", (3, 2): "l", (3, 1): "lrud"}
"""{(row, column) of the U maze: where its goal lies}; y grows downwards."""
WAYS = {"r": (1, 0), "d": (0, 1), "l": (-1, 0), "u": (0, -1)}


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("guda"), batch)


def write_moves(path, env_id, n=300, seed=0):
    """Uniform actions at uniform places of the U maze: what the world makes of each, in episodes of ten rows."""
    world, r = gym.make(env_id).unwrapped.func_env, np.random.default_rng(seed)
    free = np.argwhere(~world.world.grid.wall[0])[r.integers(0, 7, n)]
    obs = np.float32(free[:, ::-1] + r.uniform(0.02, 0.98, (n, 2)))
    if world.world.inertia:
        obs = np.c_[obs, r.uniform(-0.1, 0.1, (n, 2))]
    obs = np.float32(np.c_[obs, np.tile([1.5, 3.5], (n, 1))])
    action = np.float32(r.uniform(-1, 1, (n, 2)))
    state = jax.vmap(world.state_of)(obs)
    new = jax.vmap(lambda s, a: world.transition(s, a, jax.random.key(0)))(state, action)
    arrays = {
        "observations": obs,
        "actions": action,
        "rewards": jax.vmap(lambda s, a, x: world.reward(s, a, x, None))(state, action, new),
        "next_observations": jax.vmap(lambda x: world.observation(x, None))(new),
        "terminals": jax.vmap(lambda x: world.terminal(x, None))(new),
    }
    arrays["timeouts"] = (np.arange(n) % 10 == 9) & ~np.asarray(arrays["terminals"])
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    return str(path)


@pytest.fixture(scope="module")
def moves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moves")
    return {i: write_moves(folder / f"{i}.npz", i) for i in (UMAZE, "PointForce-v0")}


def learned(moves, env_id=UMAZE, **changes):
    guda = load("guda")
    args = guda.Args(**{"dataset": moves[env_id], "env": env_id, **changes})
    return guda, guda.learned_from(args)


@pytest.mark.long
@pytest.mark.parametrize("env_id", [UMAZE, "PointForce-v0"])
def test_augmented_transitions_are_those_of_the_world(env_id, moves):
    _, data = learned(moves, env_id, augment="mixed", augment_ratio=4)
    assert len(data.obs) == 1500 and data.last[300:].all() and data.successor.all()
    next_obs, reward, terminal = jax.jit(exact_model(data.task))(data.obs, data.action, jax.random.key(0))
    np.testing.assert_allclose(next_obs, data.next_obs, atol=2e-6)
    np.testing.assert_array_equal(reward, data.reward)
    np.testing.assert_array_equal(terminal, data.terminal)
    assert data.terminal[300:].any() and not data.terminal[300:].all()
    assert len(np.unique(np.floor(data.obs[300:, :2]), axis=0)) == 7  # in every cell


def progress(data):
    """Cosine between a movement and the nearest direction that leads to the goal, and whether it began beside it."""
    shift = (data.next_obs - data.obs)[:, :2]
    shift = shift / np.linalg.norm(shift, axis=1, keepdims=True)
    rows = [GUIDE[int(y), int(x)] for x, y in data.obs[:, :2]]
    return np.array([max(np.dot(x, WAYS[w]) for w in ways) for x, ways in zip(shift, rows)]), np.char.str_len(rows) > 1


@pytest.mark.long
def test_guided_movements_are_the_nearest_to_where_the_goal_lies(moves):
    cosine = {}
    for augment in ("random", "guided", "mixed"):
        guda, data = learned(moves, augment=augment, augment_ratio=5)
        cosine[augment], at_goal = progress(data.select(np.arange(300, 1800)))
        cosine[augment] = cosine[augment][~at_goal]
    assert cosine["guided"].min() >= np.sqrt(0.5) - 1e-3  # no further than 45 degrees
    assert 0.2 < (cosine["random"] >= np.sqrt(0.5)).mean() < 0.3
    assert 0.8 < (cosine["mixed"] >= np.sqrt(0.5)).mean() < 0.9
    one, other = (learned(moves, augment_seed=seed)[1] for seed in (0, 1))
    assert (one.obs[:300] == other.obs[:300]).all() and (one.obs[300:] != other.obs[300:]).any()


def test_ways_are_shortest(moves):
    guda = load("guda")
    maze = guda.maze_of(load_dataset(guda.Args(dataset=moves[UMAZE], env=UMAZE)).task)
    ways = guda.guide(maze)[:, 3 * 5 + 1]
    expected = np.zeros((25, 4), bool)
    for (row, column), found in GUIDE.items():
        expected[row * 5 + column] = [WAYS[x] in [WAYS[w] for w in found] for x in "rdlu"]
    np.testing.assert_array_equal(ways, expected)
    open_ground = maze._replace(wall=np.pad(np.zeros((2, 2), bool), 1, constant_values=True))
    np.testing.assert_array_equal(guda.guide(open_ground)[5, 10], [True, True, False, False])  # two shortest ways
    up = guda.guide(open_ground._replace(unit=np.array([1, -1])))[5, 10]
    np.testing.assert_array_equal(up, [True, False, False, True])  # where y grows upwards
    apart = maze._replace(wall=np.array([[1] * 5, [1, 0, 1, 0, 1], [1] * 5], bool))
    assert not guda.guide(apart)[6, 8].any()


def test_places_are_clear_of_walls(moves):
    guda = load("guda")
    maze = guda.maze_of(load_dataset(guda.Args(dataset=moves[UMAZE], env=UMAZE)).task)
    xy = np.array([(1.5, 1.5), (1.1, 1.5), (1.2, 1.5), (3.1, 2.2), (2.9, 1.9), (2.9, 1.8), (-1.0, 9.0)])
    np.testing.assert_array_equal(guda.clear(maze, xy, 0.15), [True, False, True, False, False, True, False])
    _, data = learned(moves, clearance=0.3)
    for x in (data.obs, data.next_obs):
        assert guda.clear(maze, x[300:, :2], 0.3).all()


def test_what_may_have_touched_a_wall_is_not_augmented(moves, tmp_path):
    """Of two transitions the one beside a wall did not move as its action would have moved it."""
    goal, path = [1.5, 3.5], tmp_path / "two.npz"
    np.savez(
        path,
        observations=np.float32([[1.5, 1.5, *goal], [2.5, 1.9, *goal]]),
        next_observations=np.float32([[1.75, 1.5, *goal], [2.5, 1.9, *goal]]),
        actions=np.float32([[1, 0], [0, 1]]),
        rewards=np.zeros(2),
        timeouts=np.ones(2, bool),
    )
    _, data = learned({UMAZE: str(path)}, augment_ratio=20)
    shift = np.abs(data.next_obs - data.obs)[2:, :2]
    np.testing.assert_allclose(np.sort(shift, axis=1), np.tile([0, 0.25], (40, 1)), atol=1e-5)


MAZE = "PointMaze_UMazeDense-v3"


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """MuJoCo's maze, whose goal is in its middle row and whose y grows upwards, and a dataset of two moves in it."""
    path = tmp_path_factory.mktemp("ball") / "ball.npz"
    obs = np.float32([[-1, 1, 0.5, 0.1, 0.2, 1.1, -1, 1], [-0.8, 0.9, -0.2, 0.3, 0.2, 1.1, -0.8, 0.9]])
    action = np.float32([[0.3, -0.8], [0.6, 0.5]])
    new = np.stack([step(MAZE, *row) for row in zip(obs, action)])
    np.savez(path, observations=obs, next_observations=new, actions=action, rewards=[0, 0], timeouts=[True, True])
    return str(path)


@functools.cache
def env_of(env_id):
    return gym.make(registered_env(env_id)).unwrapped


def step(env_id, obs, action):
    """What the simulator sees after `action`, put where `obs` says."""
    env = env_of(env_id)
    env.reset(seed=0)
    env.goal = np.float64(obs[4:6])
    env.point_env.set_state(np.float64(obs[:2]), np.float64(obs[2:4]))
    seen = env.step(action)[0]
    return np.float32(np.concatenate([seen[name] for name in ("observation", "desired_goal", "achieved_goal")]))


def test_balls_roll_as_in_the_simulator(ball):
    guda, data = learned({MAZE: ball}, MAZE, augment_ratio=8)
    assert len(data.obs) == 18 and not data.terminal.any()  # a continuing task
    for row in range(2, 18):
        np.testing.assert_allclose(step(MAZE, data.obs[row], data.action[row]), data.next_obs[row], atol=1e-4)
    np.testing.assert_array_equal(data.obs[:, 6:], data.obs[:, :2])
    np.testing.assert_array_equal(data.obs[:, 4:6], np.tile(np.float32([0.2, 1.1]), (18, 1)))
    np.testing.assert_allclose(
        data.reward[2:], np.exp(-np.linalg.norm(data.next_obs[2:, :2] - [0.2, 1.1], axis=1)), rtol=1e-5
    )


def test_a_move_turned_by_hand(ball):
    """A quarter turn: position, velocity, action, and the position's second place."""
    guda = load("guda")
    data = load_dataset(guda.Args(dataset=ball, env=MAZE)).select(np.arange(1))
    made = guda.moved(data, guda.maze_of(data.task), np.float32([[0.7, 1.0]]), guda.TURNS[[1]])
    shift = (data.next_obs - data.obs)[0]
    np.testing.assert_allclose(made.obs[0], [0.7, 1.0, -0.1, 0.5, 0.2, 1.1, 0.7, 1.0], rtol=1e-6)
    np.testing.assert_allclose(made.action[0], [0.8, 0.3], rtol=1e-6)
    np.testing.assert_allclose(made.next_obs[0, :2], [0.7 - shift[1], 1.0 + shift[0]], rtol=1e-6)
    np.testing.assert_allclose(made.next_obs[0, 2:4], [-data.next_obs[0, 3], data.next_obs[0, 2]], rtol=1e-6)


def test_only_the_first_transitions_are_used(moves):
    guda, data = learned(moves, observed=25, augment="none")
    assert len(data.obs) == 25 and data.last[24] and list(data.task.data["parts"]) == ["observed"]
    guda, data = learned(moves, observed=25, augment_ratio=2, reward_shift=-1.0)
    parts = data.task.data["parts"]
    assert [parts[k]["rows"] for k in ("observed", "augmented")] == [25, 50]
    assert set(np.unique(data.reward[25:])) <= {-1.0, 0.0} and data.task.hash != learned(moves)[1].task.hash


def test_what_was_made_is_written_as_a_dataset(moves, tmp_path):
    guda, path = load("guda"), tmp_path / "made.npz"
    args = guda.Args(dataset=moves[UMAZE], env=UMAZE, observed=40)
    data = guda.learned_from(args)
    write_dataset(path, data)
    read = load_dataset(guda.Args(dataset=str(path), env=UMAZE))
    np.testing.assert_allclose(read.transitions().rows, data.transitions().rows, atol=1e-6)


def test_what_is_written_has_the_environments_rewards(moves, tmp_path, monkeypatch):
    """A shift is of training alone: whoever learns from the file adds their own."""
    guda, seen = load("guda"), []

    def stop(path, data):
        seen.append(data)
        raise InputError("enough")

    monkeypatch.setattr(guda, "write_dataset", stop)
    sizes = {"env": UMAZE, "augment": "guided", "reward_shift": -1.0, "write_dataset": str(tmp_path / "made.npz")}
    args = small("guda", moves[UMAZE], tmp_path / "run", **sizes)
    with pytest.raises(InputError, match="enough"):
        guda.main(args)
    trained, plain = guda.learned_from(args), guda.learned_from(dataclasses.replace(args, reward_shift=0.0))
    np.testing.assert_array_equal(seen[0].reward, plain.reward)
    np.testing.assert_array_equal(trained.reward, plain.reward - 1.0)


def test_bad_input_is_one_sentence(pendulum, moves, cartpole, tmp_path, monkeypatch):
    for dataset, changes, message in (
        (pendulum, {"augment": "guided", "env": "Pendulum-v1"}, "not for Pendulum-v1"),
        (pendulum, {"augment": "random", "env": "none"}, "without an environment"),
        (moves[UMAZE], {"augment": "random", "env": UMAZE, "clearance": 0.5}, "is 0.50 cells away from all walls"),
        (
            moves[UMAZE],
            {"augment": "random", "env": UMAZE, "clearance": 0.6},
            "--clearance must be at most 0.5",
        ),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            load("guda").main(small("guda", dataset, tmp_path / "run", **changes))
    monkeypatch.setattr(load("guda"), "TRIES", 0)
    with pytest.raises(InputError, match="300 transitions of .* found no place in the maze"):
        learned(moves)
