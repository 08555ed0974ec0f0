"""OGBench's own data: names and sizes, the pair of files, the published behaviour, both formats, single-task rewards.

Without the package ogbench only the first half runs.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

import make  # noqa: E402
import ogbench_data  # noqa: E402

from shared.data import load_dataset  # noqa: E402
from shared.errors import InputError  # noqa: E402
from shared.task import recipes, reference_score, registered_env  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
with_ogbench = pytest.mark.skipif(importlib.util.find_spec("ogbench") is None, reason="the package ogbench is missing")

OURS = [name for name in recipes() if name.startswith("ogbench-")]
LISTED = [name for name in OURS if "-singletask" not in name and not name.endswith("-val")]
PUBLISHED = {  # training episodes, transitions in each: OGBench's own commands
    "ogbench-pointmaze-giant-navigate": (500, 2000),
    "ogbench-pointmaze-teleport-stitch": (5000, 200),
    "ogbench-cube-single-noisy": (1000, 1000),
    "ogbench-cube-triple-play": (3000, 1000),
    "ogbench-cube-quadruple-noisy": (5000, 1000),
    "ogbench-scene-play": (1000, 1000),
    "ogbench-puzzle-4x4-play": (1000, 1000),
    "ogbench-puzzle-4x5-noisy": (3000, 1000),
    "ogbench-puzzle-4x6-play": (5000, 1000),
    "ogbench-powderworld-easy-play": (1000, 1000),
    "ogbench-powderworld-medium-play": (3000, 1000),
    "ogbench-powderworld-hard-play": (5000, 1000),
}


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Empty folders for both forms; episodes are played in this process."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("OGBENCH_DATASETS_PATH", str(tmp_path / "ogbench"))
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ogbench_data, "cores", lambda: 1)
    return tmp_path


# -------------------------------------------------------------------------------- without ogbench


def test_names_sizes_and_environments():
    assert len(LISTED) == 8 + 8 + 2 + 8 + 3 and PUBLISHED.keys() <= set(LISTED)
    for name, (episodes, steps) in PUBLISHED.items():
        data = name.removeprefix("ogbench-")
        assert ogbench_data.published(data) == {"train": episodes, "val": episodes // 10}
        assert ogbench_data.rows_of_episode(data) == steps + 1
    for name in OURS:
        data = ogbench_data.NAME.fullmatch(name)[1]
        assert f"ogbench-{data}" in LISTED and make.description(name)
        assert reference_score(name, recipes()[name])["of"] == "success"
    assert recipes()["ogbench-cube-single-play-val"] == "cube-single-v0"
    assert recipes()["ogbench-scene-noisy-singletask"] == "scene-singletask-v0"
    assert recipes()["ogbench-puzzle-4x5-play-singletask-task5-val"] == "puzzle-4x5-singletask-task5-v0"
    assert not [name for name in recipes() if "powderworld" in name and "singletask" in name]
    assert not [name for name in make.own_recipes() if "ogbench" in name]  # --all makes none of them


def test_without_the_package_one_sentence(roots, monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(InputError, match=r"^ogbench-cube-single-play needs the package ogbench .*pip install"):
        make.main(["ogbench-cube-single-play"])
    assert not (roots / "ogbench").exists()


def test_cells_of_a_maze():
    maze_map = np.array([[1] * 6, [1, 0, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 1], [1] * 6])
    free, goals = ogbench_data.maze_cells(maze_map)
    assert len(free) == 10 and set(free) - set(goals) == {(1, 2), (1, 3), (2, 1), (2, 4), (3, 2), (3, 3)}
    assert set(ogbench_data.cells_away(maze_map, (1, 1), 4)) == {(2, 4), (3, 3)}
    assert set(ogbench_data.cells_away(maze_map, (1, 1), 5)) == {(3, 4)}
    assert ogbench_data.cells_away(maze_map, (1, 1), 6) == []


def test_scenes_out_of_sight_are_played_again():
    def rows(y: float, z: float) -> dict:
        qpos = np.zeros((3, 25), np.float32)
        qpos[1, 15:17] = y, z
        return {"qpos": qpos}

    seen = {at: ogbench_data.healthy("scene-play", rows(*at)) for at in [(0.28, 0), (0.29, 0), (-0.31, 0.07)]}
    assert list(seen.values()) == [True, False, True]
    assert not ogbench_data.healthy("scene-noisy", rows(-0.31, 0.05)) and ogbench_data.healthy("cube-single-play", {})


class Arm:
    """An environment of one number, the target that was set when it stepped."""

    def __init__(self):
        self.target, self.t, self.unwrapped = 0, 0, self

    def reset(self, seed=None):
        self.target = self.t = 0
        return np.zeros(1), self.info()

    def info(self):
        return {"privileged/target_task": "cube", "target": self.target, "prev_qpos": np.full(2, self.t)}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t), 0.0, False, self.t == 8, self.info() | {"prev_qpos": np.full(2, self.t - 1)}

    def set_new_target(self, p_stack):
        self.target += 1
        return np.full(1, self.t), self.info()


class Agent:
    def reset(self, obs, info):
        self.told, self.actions, self.done = info["target"], 0, False

    def select_action(self, obs, info):
        seen.append((self.told, info["target"]))
        self.actions += 1
        self.done = self.actions == 3
        return 2.0 * np.ones(5)


seen: list[tuple[int, int]] = []


def test_the_first_action_after_a_new_target_sees_the_old_one(monkeypatch):
    monkeypatch.setattr(ogbench_data, "oracles", lambda data: {"cube": Agent()})
    seen.clear()
    rows = ogbench_data.arm_episode("cube-single-play", Arm(), np.random.default_rng(0), 0)
    assert seen == [(0, 0), (0, 0), (0, 0), (1, 0), (1, 1), (1, 1), (2, 1), (2, 2)]
    np.testing.assert_array_equal(rows["observations"][:, 0], np.arange(8))  # before the step, as qpos
    np.testing.assert_array_equal(rows["qpos"][:, 0], np.arange(8))
    assert rows["terminals"].tolist() == [False] * 7 + [True] and (rows["actions"] == 1.0).all()  # clipped


def test_noisy_actions_are_noisy_and_a_tenth_of_them_uniform(monkeypatch):
    monkeypatch.setattr(ogbench_data, "oracles", lambda data: {"cube": Middle(), "button": Middle()})
    for data, rate in (("cube-single-noisy", 0.1), ("puzzle-3x3-noisy", 0.2)):
        rng = np.random.default_rng(0)
        actions = np.concatenate([ogbench_data.arm_episode(data, Arm(), rng, 0)["actions"] for _ in range(400)])
        uniform = np.abs(actions[:, 0]) > 0.4  # 4 standard deviations of the largest noise
        assert uniform.mean() / 0.6 == pytest.approx(rate, abs=0.03)
        noise = actions[~uniform & (np.abs(actions[:, 1:3]) < 0.4).all(1)]
        assert 2.0 < noise[:, 3].std() / noise[:, 0].std() < 4.5 and noise[:, 0].std() < 0.15
    quiet = ogbench_data.arm_episode("cube-single-play", Arm(), np.random.default_rng(0), 0)["actions"]
    assert (quiet == 0.0).all()  # the noise of plans is their own


class Middle(Agent):
    def select_action(self, obs, info):
        self.done = False
        return np.zeros(5)


def fake_rows(data: str, seed: int, split: str, episode: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, len(split), episode])
    rows = {
        "observations": rng.normal(size=(6, 3)),
        "actions": rng.normal(size=(6, 2)),
        "qpos": rng.normal(size=(6, 4)),
    }
    ends = {"terminals": np.arange(6) == 5, "button_states": rng.integers(2, size=(6, 2))}
    return {k: x.astype(np.float32) for k, x in rows.items()} | ends


@pytest.fixture
def faked(roots, monkeypatch):
    """Episodes of random numbers instead of OGBench's; each is noted in the list."""
    monkeypatch.setattr(ogbench_data, "PACKAGES", ("numpy",))
    monkeypatch.setattr(ogbench_data, "rows_of_episode", lambda data: 6)
    played = []

    def play(*args):
        played.append(args)
        return fake_rows(*args)

    monkeypatch.setattr(ogbench_data, "play_episode", play)
    return played


def test_a_pair_of_files_is_in_ogbenchs_form(roots, faked):
    ogbench_data.make_pair("scene-play", 23, seed=4)
    assert ogbench_data.about("scene-play")["episodes"] == {"train": 23, "val": 2}
    for split, count in (("train", 23), ("val", 2)):
        path = ogbench_data.file_of("scene-play", split)
        expected = [fake_rows("scene-play", 4, split, i) for i in range(count)]
        with np.load(path) as file:
            assert set(file.files) == set(expected[0])
            for name in file.files:
                whole = np.concatenate([rows[name] for rows in expected])
                assert file[name].dtype == whole.dtype
                np.testing.assert_array_equal(file[name], whole)
        for one, other in zip(ogbench_data.read_rows(path, 6), expected, strict=True):
            assert all((one[k] == other[k]).all() for k in other)
    assert sorted(p.name for p in (roots / "ogbench").iterdir()) == [
        ".parts",
        "scene-play-v0-val.npz",
        "scene-play-v0.json",
        "scene-play-v0.npz",
    ]
    assert not list((roots / "ogbench/.parts").iterdir())


def test_a_killed_job_goes_on_and_leaves_nothing_half_written(roots, faked, monkeypatch):
    ogbench_data.make_pair("scene-play", 33, seed=0)
    whole = ogbench_data.file_of("scene-play", "train").read_bytes()
    for path in (roots / "ogbench").glob("scene*"):
        path.unlink()
    faked.clear()

    def killed(data, seed, split, episode):
        if len(faked) == 25:
            raise KeyboardInterrupt
        faked.append((data, seed, split, episode))
        return fake_rows(data, seed, split, episode)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ogbench_data, "play_episode", killed)
        ogbench_data.make_pair("scene-play", 33, seed=0)
    assert ogbench_data.about("scene-play") is None and not list((roots / "ogbench").glob("*.npz"))
    faked.clear()
    ogbench_data.make_pair("scene-play", 33, seed=0)
    assert len(faked) == 33 + 3 - 20  # two blocks of ten were there
    assert ogbench_data.file_of("scene-play", "train").read_bytes() == whole
    faked.clear()
    ogbench_data.make_pair("scene-play", 33, seed=1)
    assert len(faked) == 36 and ogbench_data.file_of("scene-play", "train").read_bytes() != whole


def test_a_single_task_does_not_replace_the_pair(roots, faked, monkeypatch):
    def collected(name, steps, seed):
        return list(ogbench_data.collect(name, None, steps, seed))

    assert len(collected("ogbench-scene-play-val", 10, 0)) == 2  # nothing here yet: twenty for training, too
    assert ogbench_data.about("scene-play")["episodes"] == {"train": 20, "val": 2}
    faked.clear()
    assert len(collected("ogbench-scene-play", 100, 0)) == len(collected("ogbench-scene-play-singletask", 100, 0)) == 20
    for steps, seed in ((50, 0), (100, 1)):
        with pytest.raises(InputError, match="holds 20 episodes of seed 0, not .* --force"):
            collected("ogbench-scene-play-singletask", steps, seed)
    assert not faked
    assert len(collected("ogbench-scene-play", 46, 0)) == 10  # whole episodes
    assert len(faked) == 11


def test_a_solved_row_terminates_and_the_episode_goes_on(roots, faked, monkeypatch):
    ogbench_data.make_pair("scene-play", 2, seed=0)
    parts = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    asked = []
    monkeypatch.setattr(ogbench_data, "solved_parts", lambda task: lambda rows: asked.append(rows) or parts)
    path = ogbench_data.file_of("scene-play", "train")
    first, _ = ogbench_data.episodes_of(path, 6, "a task")
    rows = fake_rows("scene-play", 0, "train", 0)
    np.testing.assert_array_equal(asked[0]["qpos"], rows["qpos"][:5])  # the row's own state
    np.testing.assert_array_equal(first.observations, rows["observations"])
    np.testing.assert_array_equal(first.actions, rows["actions"][:5])
    assert first.rewards.tolist() == [-3, -1, 0, 0, -1]
    assert first.terminations.tolist() == [False, False, True, True, False]
    assert first.truncations.tolist() == [False] * 4 + [True]
    without, _ = ogbench_data.episodes_of(path, 6, None)
    assert not without.rewards.any() and not without.terminations.any() and without.truncations.tolist()[-1]


def test_numpys_global_generator_is_as_it_was():
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.rand(2)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    found = [np.random.rand()]  # noqa: NPY002
    with ogbench_data.numpy_seeded(5):
        inside = np.random.rand()  # noqa: NPY002
    found.append(np.random.rand())  # noqa: NPY002
    assert found == expected.tolist() and inside not in found


def test_published_figures_are_of_data_that_is_made_here():
    """The figures to hold ours against: every one with its source, of a name that `--dataset` takes."""
    published = json.loads((ROOT / "results" / "published.json").read_text())
    rows = published["rows"]
    assert len({(row["dataset"], row["tasks"], row["algorithm"]) for row in rows}) == len(rows) > 200
    for row in rows:
        assert row["dataset"] in recipes() and 0 <= row["mean"] <= 100 and row["source"] in published["sources"]
        assert ("singletask" in row["dataset"]) == (row["tasks"] in ("mean of 5", "default"))
    for source in published["sources"].values():
        assert source["paper"] and source["read"] and source["scale"] and source["updates"] == 1_000_000
    of_default = [row for row in rows if (row["tasks"], row["dataset"][:19]) == ("default", "ogbench-cube-single")]
    default = {row["algorithm"]: row["mean"] for row in of_default}
    assert default == {"bc": 3, "iql": 85, "rebrac": 92, "idql": 96, "ifql": 73, "fql": 97}


# ----------------------------------------------------------------------------------- with ogbench


def restored(env: gym.Env, qpos: np.ndarray, qvel: np.ndarray, buttons: np.ndarray | None) -> tuple[float, bool]:
    """What a single-task environment says of a stored state: reward, and whether the episode ends."""
    world = env.unwrapped
    world.set_state(qpos.astype(np.float64), qvel.astype(np.float64), *([] if buttons is None else [buttons.copy()]))
    if hasattr(world, "pre_step"):
        world.pre_step()
        world.post_step()
    _, reward, terminated, _, _ = world.step(np.zeros(env.action_space.shape))
    return reward, terminated


def near_the_goal(env: gym.Env, rows: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows with the parts of the task moved to about where it wants them, each in about half of the rows."""
    world, goal = env.unwrapped, env.unwrapped.cur_task_info
    qpos, n = rows["qpos"].copy(), len(rows["qpos"])
    moved = {**rows, "qpos": qpos}
    if hasattr(world, "maze_map"):
        qpos[:, :2] = world.ij_to_xy(goal["goal_ij"]) + rng.uniform(-1.2, 1.2, (n, 2))
        return moved
    goal = goal.get("goal", goal)
    for i, xyz in enumerate(goal.get("goal_xyzs", goal.get("block_xyzs", ()))):
        at = world.model.joint(f"object_joint_{i}").qposadr[0]
        qpos[:, at : at + 3] = xyz + rng.uniform(-0.03, 0.03, (n, 3))
    for part in ("drawer", "window"):
        if f"{part}_pos" in goal:
            at = world.model.joint(f"{part}_slide").qposadr[0]
            qpos[:, at] = goal[f"{part}_pos"] + rng.uniform(-0.06, 0.06, n)
    if "button_states" in rows:
        wanted = goal.get("goal_button_states", goal.get("button_states"))
        flips = rng.uniform(size=(n, len(wanted))) < 0.5 / len(wanted)
        moved["button_states"] = np.where(flips, 1 - wanted, wanted)
    return moved


def check_recipe(roots: Path, monkeypatch, data: str, rows: int) -> None:
    """Two episodes and one: the same in both forms, by OGBench's loader and by ours; single tasks."""
    import ogbench

    monkeypatch.setattr(ogbench_data, "rows_of_episode", lambda data: rows)
    path = roots / "ogbench" / f"{data}-v0.npz"
    make.make(f"ogbench-{data}", 2 * (rows - 1))
    make.make(f"ogbench-{data}-val")
    with np.load(path) as file:
        stored = {k: file[k] for k in file.files}
    assert {len(x) for x in stored.values()} == {2 * rows}
    assert np.flatnonzero(stored["terminals"]).tolist() == [rows - 1, 2 * rows - 1]
    assert (stored["actions"][:rows] != stored["actions"][rows:]).any()
    discrete = "powderworld" in data
    assert discrete or np.abs(stored["actions"]).max() <= 1.0 and stored["actions"].std() > 0.1

    name = f"{data}-v0"
    regular, val = ogbench.make_env_and_datasets(name, dataset_path=str(path), dataset_only=True)
    compact, _ = ogbench.make_env_and_datasets(name, dataset_path=str(path), dataset_only=True, compact_dataset=True)
    assert len(regular["actions"]) == 2 * (rows - 1) and len(val["actions"]) == rows - 1
    assert len(compact["actions"]) == 2 * rows and compact["valids"].sum() == 2 * (rows - 1)
    ours, theirs = load_dataset(f"ogbench-{data}"), load_dataset(str(path))
    with pytest.raises(InputError, match="has none"):
        ours.require()
    keep = theirs.successor
    for found in (ours, theirs.select(keep)):
        np.testing.assert_array_equal(found.obs, regular["observations"])
        np.testing.assert_array_equal(found.next_obs, regular["next_observations"])
        np.testing.assert_allclose(found.action, regular["actions"], atol=1.2e-7)  # rescaled to [-1, 1]
        assert not found.terminal.any()
    np.testing.assert_array_equal(ours.last, regular["terminals"])
    np.testing.assert_array_equal(load_dataset(f"ogbench-{data}-val").obs, val["observations"])
    if discrete:
        assert regular["observations"].dtype == np.uint8 and ours.spec.discrete and ours.spec.action_dim == 8
        return

    for task in ("", "-task3"):
        env, regular, _ = ogbench.make_env_and_datasets(f"{data}-singletask{task}-v0", dataset_path=str(path))
        make.make(f"ogbench-{data}-singletask{task}")
        ours = load_dataset(f"ogbench-{data}-singletask{task}").require()
        assert (
            ours.task.env_spec.id == env.spec.id and ours.task.env_spec.max_episode_steps == env.spec.max_episode_steps
        )
        assert ours.task.counts_successes
        np.testing.assert_array_equal(ours.reward, regular["rewards"])
        np.testing.assert_array_equal(ours.terminal, regular["masks"] == 0)
        np.testing.assert_array_equal(ours.last, regular["terminals"])
        solved = ogbench_data.solved_parts(registered_env(env.spec.id))
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        some = {k: x[rng.integers(2 * rows, size=50)] for k, x in stored.items()}
        both = [some, near_the_goal(env, some, rng)]
        every = {k: np.concatenate([one[k] for one in both]) for k in stored}
        parts = solved(every)
        buttons = every.get("button_states", [None] * 100)
        env_says = [restored(env, *state) for state in zip(every["qpos"], every["qvel"], buttons, strict=True)]
        np.testing.assert_array_equal(parts.sum(1) - parts.shape[1], [reward for reward, _ in env_says])
        np.testing.assert_array_equal(parts.all(1), [ended for _, ended in env_says])
        assert 0 < parts.all(1).sum() < 100
        env.close()


SOME = ("pointmaze-medium-navigate", "pointmaze-teleport-stitch", "cube-double-play", "scene-noisy", "puzzle-3x3-play")


@with_ogbench
@pytest.mark.parametrize("data", [*SOME, "powderworld-easy-play"])
def test_recipe(roots, monkeypatch, data):
    check_recipe(roots, monkeypatch, data, rows=61)


@with_ogbench
@pytest.mark.long
@pytest.mark.parametrize("name", LISTED)
def test_every_recipe(roots, monkeypatch, name):
    data = name.removeprefix("ogbench-")
    check_recipe(roots, monkeypatch, data, rows=ogbench_data.rows_of_episode(data))


@with_ogbench
@pytest.mark.parametrize(
    "data", ["pointmaze-teleport-navigate", "scene-noisy", "cube-double-play", "powderworld-hard-play"]
)
def test_an_episode_does_not_depend_on_those_before_it(monkeypatch, data):
    monkeypatch.setattr(ogbench_data, "rows_of_episode", lambda data: 81)
    for made_once in (ogbench_data.collection, ogbench_data.oracles, ogbench_data.behaviours):
        made_once.cache_clear()
    first = ogbench_data.play_episode(data, 0, "train", 5)
    others = [ogbench_data.play_episode(data, *at) for at in ((0, "train", 6), (0, "val", 5), (1, "train", 5))]
    again = ogbench_data.play_episode(data, 0, "train", 5)
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
    assert all((first["actions"] != other["actions"]).any() for other in others)
    for made_once in (ogbench_data.collection, ogbench_data.oracles, ogbench_data.behaviours):
        made_once.cache_clear()  # of short episodes


@with_ogbench
def test_the_ball_goes_where_the_recipe_says():
    env = ogbench_data.collection("pointmaze-medium-stitch").unwrapped
    reached = []
    for episode in range(10):
        rows = ogbench_data.play_episode("pointmaze-medium-stitch", 0, "train", episode)
        cells = [env.xy_to_ij(xy) for xy in rows["observations"]]
        assert all(env.maze_map[cell] == 0 for cell in cells)
        reached.append(cells[-1] in ogbench_data.cells_away(env.maze_map, cells[0], 4))
    assert sum(reached) >= 9
    rows = ogbench_data.play_episode("pointmaze-medium-navigate", 0, "train", 0)
    cells = {env.xy_to_ij(xy) for xy in rows["observations"]}
    assert len(cells) > 12  # one goal after the other
    np.testing.assert_array_equal(rows["observations"], rows["qpos"])
    data, jumps = "pointmaze-teleport-navigate", 0
    exits = np.array(ogbench_data.collection(data).unwrapped._teleport_info["teleport_out_xys"])
    for episode in range(3):
        rows = ogbench_data.play_episode(data, 0, "train", episode)
        jumped = (rows["observations"] != rows["qpos"]).any(1)  # the observation is the place that was left
        assert all((np.abs(exits - xy).max(1) < 1e-6).any() for xy in rows["qpos"][jumped])
        jumps += jumped.sum()
    assert jumps > 0


@with_ogbench
def test_a_process_that_fails_is_said(roots, monkeypatch):
    monkeypatch.setattr(ogbench_data, "cores", lambda: 2)
    with pytest.raises(InputError, match=r"A process that played cube-none-play failed \(exit code 1\)"):
        ogbench_data.play_all("cube-none-play", 0, [("train", 0, 1), ("train", 1, 1)], roots)


@with_ogbench
def test_killed_processes_go_on_and_the_file_does_not_depend_on_their_number(roots):
    data, episodes = "pointmaze-medium-stitch", 60
    ogbench_data.make_pair(data, episodes, seed=3)
    expected = [ogbench_data.file_of(data, split).read_bytes() for split in ("train", "val")]
    os.environ["OGBENCH_DATASETS_PATH"] = str(roots / "other")  # the fixture puts it back
    code = (
        f"import ogbench_data; ogbench_data.cores = lambda: 3\n"
        f"if __name__ == '__main__': ogbench_data.make_pair({data!r}, {episodes}, 3)\n"
    )
    (roots / "job.py").write_text(code)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'datasets'}"}
    job = subprocess.Popen([sys.executable, roots / "job.py"], env=env, stderr=subprocess.DEVNULL)
    while not list((roots / "other").glob(".parts/*/*.npz")) and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL and ogbench_data.about(data) is None
    subprocess.run([sys.executable, roots / "job.py"], env=env, check=True, stderr=subprocess.DEVNULL)
    assert [ogbench_data.file_of(data, split).read_bytes() for split in ("train", "val")] == expected
