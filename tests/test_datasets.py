"""The recipes of datasets/: what they write, that it is reproducible, and never half-made."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

import locomotion  # noqa: E402
import make  # noqa: E402
import minari  # noqa: E402
import pointmaze  # noqa: E402
import scripted  # noqa: E402
from episodes import cut, episode  # noqa: E402
from minari.namespace import list_local_namespaces  # noqa: E402
from numpy._core._multiarray_umath import __cpu_dispatch__ as DISPATCH  # noqa: E402
from numpy._core._multiarray_umath import __cpu_features__ as FEATURES  # noqa: E402

from shared.arguments import preset_for  # noqa: E402
from shared.data import load_dataset  # noqa: E402
from shared.errors import InputError  # noqa: E402
from shared.task import recipe_id, recipe_name, recipes, reference_score  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty Minari root."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def made(name: str, steps: int, **kwargs) -> minari.MinariDataset:
    """Makes a dataset and reads it back."""
    make.make(name, steps, **kwargs)
    return minari.load_dataset(recipe_id(recipe_name(name)))


def digest(dataset: minari.MinariDataset) -> str:
    """Of everything the episodes hold."""
    total = hashlib.sha256()
    for e in dataset.iterate_episodes():
        obs = e.observations
        parts = [obs[k] for k in sorted(obs)] if isinstance(obs, dict) else [obs]
        for array in [*parts, e.actions, e.rewards, e.terminations, e.truncations]:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def check_form(dataset: minari.MinariDataset, steps: int) -> list:
    """T + 1 observations, one end per episode and in its last row, float32 or numbers of states, `steps` steps."""
    episodes = list(dataset.iterate_episodes())
    assert sum(len(e.rewards) for e in episodes) == steps
    for e in episodes:
        leaves = e.observations.values() if isinstance(e.observations, dict) else [e.observations]
        for leaf in leaves:
            assert leaf.dtype == (np.int64 if leaf.ndim == 1 else np.float32) and len(leaf) == len(e.rewards) + 1
        assert len(e.actions) == len(e.rewards) and e.rewards.dtype == np.float32
        ends = e.terminations.astype(int) + e.truncations
        assert ends[-1] == 1 and ends[:-1].sum() == 0
    return episodes


# --------------------------------------------------------------------------------------- scripted


def test_pendulum_is_mixed_and_only_truncated(root):
    episodes = check_form(made("pendulum-mixed", 4000), 4000)
    returns = np.array([e.rewards.sum() for e in episodes])
    assert len({e.observations[0, 0] for e in episodes}) == 20
    assert not any(e.terminations.any() for e in episodes)
    assert returns.max() > -450 and returns.min() < -1500 and ((returns > -1500) & (returns < -600)).any()
    assert all(np.abs(e.actions).max() <= 2.0 for e in episodes)


def test_pendulum_few_has_a_tenth_of_the_steps_and_all_of_the_mixture(root):
    episodes = check_form(made("pendulum-few", None), 2000)
    returns = np.array([e.rewards.sum() for e in episodes])
    assert len(episodes) == 10 and (returns > -450).any() and returns.min() < -1500


def test_pendulum_half_swings_from_above_the_horizontal_and_is_random_below(root):
    """Above, a state's action is the balancing controller's but for the uniform ones; below, nothing tells it."""
    episodes = check_form(made("pendulum-half", 4000), 4000)
    obs = np.concatenate([e.observations[:-1] for e in episodes])
    action = np.concatenate([e.actions for e in episodes])[:, 0]
    act = scripted.pendulum("expert")
    same = np.abs(np.array([act(o)[0] for o in obs]) - action) < 1e-4
    above = obs[:, 0] > 0.0
    assert 0.2 < above.mean() < 0.9
    assert 0.8 < same[above].mean() < 0.9 and same[~above].mean() < 0.05
    assert np.abs(action[~above].mean()) < 0.15 and abs(action[~above].std() - 4 / np.sqrt(12)) < 0.1
    assert "below it" in json.loads((root / "local/pendulum-half-v0/data/metadata.json").read_text())["policy"]


def test_cartpole_is_mixed_and_terminates(root):
    episodes = check_form(made("cartpole-mixed", 4000), 4000)
    lengths = np.array([len(e.rewards) for e in episodes])
    assert lengths.max() == 500 and lengths.min() < 30 and ((lengths > 60) & (lengths < 400)).any()
    assert all(e.terminations[-1] == (len(e.rewards) < 500) for e in episodes[:-1])
    assert {int(a) for e in episodes for a in e.actions} == {0, 1}


def test_frozen_lake_is_mixed_and_its_states_are_numbers(root):
    """Half uniform, and the hurried one falls where the best one, who keeps off the holes, arrives."""
    best, hurried = (scripted.frozen_lake(grade) for grade in ("expert", "hurried"))
    assert [int(hurried(s)) for s in (0, 4, 8, 9, 13, 14)] == [
        1,
        1,
        2,
        1,
        2,
        2,
    ]  # down, down, right, down, right, right
    assert [int(best(s)) for s in (0, 4, 8)] == [0, 0, 3]  # against the wall, so that it cannot slip into a hole
    episodes = check_form(made("frozen-lake-mixed", 2000), 2000)
    assert all(e.observations.dtype == np.int64 and e.observations[0] == 0 for e in episodes)
    obs = np.concatenate([e.observations[:-1] for e in episodes])
    action = np.concatenate([e.actions for e in episodes])
    as_best, as_hurried = (np.mean(action == [act(s) for s in obs]) for act in (best, hurried))
    assert 0.2 < as_best < as_hurried and 0.4 < as_hurried < 0.65
    data = load_dataset("frozen-lake-mixed")
    assert data.obs.shape == (2000, 16) and (data.obs.sum(1) == 1).all()
    assert 0 < data.reward.sum() < 0.1 * len(episodes) and (data.reward[~data.terminal] == 0).all()


def test_same_seed_same_content(root):
    first = digest(made("pendulum-mixed", 1000))
    assert digest(made("pendulum-mixed", 1000, force=True)) == first
    assert digest(made("pendulum-mixed", 1000, force=True, seed=7)) != first


def test_metadata_is_complete(root):
    dataset = made("pendulum-mixed", 1000)
    stored = json.loads((root / "local/pendulum-mixed-v0/data/metadata.json").read_text())
    returns = [float(e.rewards.sum()) for e in dataset.iterate_episodes()]
    assert stored["recipe"] == "pendulum-mixed" and stored["seed"] == 0 and stored["policy"]
    assert {"gymnasium", "mujoco", "minari"} <= stored["versions"].keys()
    assert stored["mean_return"] == pytest.approx(np.mean(returns))
    assert (stored["min_return"], stored["max_return"]) == pytest.approx((min(returns), max(returns)))
    reference = make.reference_scores()["Pendulum-v1"]
    assert (stored["ref_min_score"], stored["ref_max_score"]) == (
        reference["min"],
        reference["max"],
    )
    assert stored["num_episodes_average_score"] == 100
    assert stored["description"] and stored["code_permalink"] and stored["author"] == []
    assert list(minari.list_local_datasets()) == ["local/pendulum-mixed-v0"]
    assert "local" in list_local_namespaces()


def test_pendulums_shares_of_the_controllers(root):
    """`rare` has one episode of the expert in twenty, `narrow` nothing but its own actions."""
    rare = [e.rewards.sum() for e in made("pendulum-rare", 4000).iterate_episodes()]
    assert len(rare) == 20 and sum(r > -600 for r in rare) == 1
    act = scripted.pendulum("expert")
    for e in made("pendulum-narrow", 600).iterate_episodes():
        np.testing.assert_allclose(e.actions, [act(obs) for obs in e.observations[:-1]], atol=1e-5)
    mixed = list(made("pendulum-mixed", 600).iterate_episodes())
    assert not all(np.allclose(e.actions, [act(obs) for obs in e.observations[:-1]], atol=1e-5) for e in mixed)


# -------------------------------------------------------------------------------------- pointmaze


def test_pointmaze_episodes_end_at_success_and_nowhere_else(root):
    episodes = check_form(made("pointmaze-umaze", 3000), 3000)
    assert not any(e.terminations.any() for e in episodes)
    for e in episodes[:-1]:
        position, goal = e.observations["achieved_goal"][1:], e.observations["desired_goal"][1:]
        reached = np.linalg.norm(position - goal, axis=1) <= 0.45
        assert reached[-1] and not reached[:-1].any()
        np.testing.assert_array_equal(e.rewards, reached)
        assert (e.observations["desired_goal"] == e.observations["desired_goal"][0]).all()
    for before, after in zip(episodes[:-1], episodes[1:], strict=True):  # the ball is not put back
        np.testing.assert_array_equal(before.observations["observation"][-1], after.observations["observation"][0])
        assert (before.observations["desired_goal"][-1] != after.observations["desired_goal"][0]).any()


def test_pointmaze_respects_walls(root):
    dataset = made("pointmaze-medium", 3000)
    maze = gym.make(dataset.recover_environment().spec).unwrapped.maze
    for e in dataset.iterate_episodes():
        cells = [maze.cell_xy_to_rowcol(xy) for xy in e.observations["achieved_goal"]]
        assert all(maze.maze_map[row][col] == 0 for row, col in cells)


@pytest.mark.parametrize("size, cell, limit", [("umaze", (1, 1), 300), ("medium", (6, 6), 600), ("large", (7, 9), 800)])
def test_controller_reaches_the_fixed_goal_and_stays(size, cell, limit):
    made_by = make.recipe(f"pointmaze-{size}")
    spec = gym.envs.registration.EnvSpec.from_json(made_by.eval_env.to_json())
    env = gym.make(spec.id, **spec.kwargs, max_episode_steps=spec.max_episode_steps)
    goal = env.unwrapped.maze.cell_rowcol_to_xy(np.array(cell))
    returns = made_by.returns("expert", 5)
    assert env.spec.max_episode_steps == limit
    assert spec.kwargs["continuing_task"] and not spec.kwargs["reset_target"]
    for seed in range(3):
        assert np.abs(env.reset(seed=seed)[0]["desired_goal"] - goal).max() <= 0.25 + 1e-6
    assert (returns > 0.25 * limit).all()
    reference = make.reference_scores()[made_by.reference]
    assert reference["min"] < 0.2 * reference["max"]


def test_shortest_path():
    maze_map = [[1] * 5, [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", "r", 0, 1], [1] * 5]
    path = pointmaze.shortest_path(maze_map, (1, 1), (3, 1))
    assert path == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert pointmaze.shortest_path(maze_map, (1, 1), (1, 1)) == []


# ------------------------------------------------------------------------------------- locomotion


def test_hopper_random(root):
    episodes = check_form(made("hopper-random", 2000), 2000)
    assert all(len(e.rewards) <= 1000 for e in episodes)
    assert all(e.terminations[-1] for e in episodes[:-1])
    assert len({e.actions[0, 0] for e in episodes}) == len(episodes)
    assert np.std(np.concatenate([e.actions for e in episodes])) == pytest.approx(3**-0.5, abs=0.02)


def test_time_limit_is_not_terminal(root):
    episodes = check_form(made("halfcheetah-random", 1500), 1500)
    assert [len(e.rewards) for e in episodes] == [1000, 500]
    assert not any(e.terminations.any() for e in episodes)


def test_cut_never_flags_both():
    whole = episode(np.zeros((4, 2)), np.zeros((3, 1)), np.ones(3), terminated=True)
    assert cut(whole, 3).terminations[-1] and not cut(whole, 3).truncations.any()
    part = cut(whole, 2)
    assert len(part) == 2 and len(part.observations) == 3
    assert part.truncations[-1] and not part.terminations.any()


def test_episodes_do_not_depend_on_threads(monkeypatch):
    one, three = [], []
    for cores, episodes in ((1, one), (3, three)):
        monkeypatch.setattr(locomotion, "cores", lambda cores=cores: cores)
        episodes += locomotion.play_steps("Hopper-v5", None, 1000, seed=5)
    assert len(one) == len(three)
    for a, b in zip(one, three, strict=True):
        assert a.seed == b.seed
        np.testing.assert_array_equal(a.observations, b.observations)


def tiny_policy(seed: int, stack: tuple = ()) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "W0": (8, 11),
        "b0": (8,),
        "W1": (3, 8),
        "b1": (3,),
        "logstd_W": (3, 8),
        "logstd_b": (3,),
    }
    return {k: 0.1 * rng.standard_normal((*stack, *s)).astype(np.float32) for k, s in shapes.items()}


def test_policy_round_trip_and_actions(tmp_path):
    policy = tiny_policy(0)
    locomotion.save_policy(tmp_path / "p.npz", policy)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert file["W0"].dtype == np.float16
    loaded = locomotion.load_policy(tmp_path / "p.npz")
    assert loaded.keys() == policy.keys()
    obs, noise = np.ones((2, 11), np.float32), np.float32([[0, 0, 0], [1, -1, 2]])
    hidden = np.maximum(policy["W0"] @ obs[0] + policy["b0"], 0)
    mean = policy["W1"] @ hidden + policy["b1"]
    std = np.exp(policy["logstd_W"] @ hidden + policy["logstd_b"])
    expected = np.tanh([mean, mean + std * noise[1]])
    np.testing.assert_allclose(locomotion.sample(policy, obs, noise), expected, atol=1e-6)  # float32: version 0
    assert locomotion.sample(policy, obs, noise).dtype == np.float32
    exact = {k: v.astype(np.float64) for k, v in policy.items()}
    actions = locomotion.sample(exact, obs, noise)
    np.testing.assert_allclose(actions, expected, atol=1e-6 + locomotion.GRID / 2)
    cells = actions / locomotion.GRID - 0.5
    np.testing.assert_array_equal(cells, np.round(cells))
    np.testing.assert_array_equal(actions, actions.astype(np.float32))
    exact["b1"] = np.array([-99.0, 99.0, 0.0])  # never -1 or 1, whose atanh is infinite
    ends = locomotion.sample(exact, obs, noise)[0, :2]
    np.testing.assert_array_equal(ends, [locomotion.GRID / 2 - 1, 1 - locomotion.GRID / 2])
    np.testing.assert_allclose(locomotion.sample(loaded, obs, noise), expected, atol=5e-3)
    np.savez(tmp_path / "other.npz", **policy, activation="tanh", squash=1)
    with pytest.raises(InputError, match="relu"):
        locomotion.load_policy(tmp_path / "other.npz")


PROCESSORS = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1"},
    "two threads, AVX2": {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"},
    "SSE3": {"OPENBLAS_CORETYPE": "Prescott"},
    "no dispatch in NumPy": {"NPY_DISABLE_CPU_FEATURES": "the ones found", "OPENBLAS_CORETYPE": "Sandybridge"},
}
CONTENT = """
import hashlib, sys
import make, locomotion
import numpy as np

rng = np.random.default_rng(0)
noise, obs = rng.standard_normal((4096, 3)), rng.standard_normal((4096, 11)).astype(np.float32)
locomotion.BLOCK, locomotion.cores = 2, lambda: 1
for level in ("medium", "expert"):
    policy = locomotion.load_policy(locomotion.POLICIES / f"hopper-{level}.npz")
    for rows in (1, 16, 4096):  # one by one, a block as in a recipe, one product of many rows
        actions = [locomotion.sample(policy, obs[i : i + rows], noise[i : i + rows]) for i in range(0, 4096, rows)]
        print(level, hashlib.sha256(np.concatenate(actions).tobytes()).hexdigest())
for name, steps in (("pendulum-mixed", 1000), ("cartpole-mixed", 1000), ("pointmaze-umaze-dense", 500),
                    ("hopper-random", 200), ("hopper-medium", 300)):
    content = hashlib.sha256()
    for e in make.recipe(name).collect(steps, 0):
        obs = e.observations
        for x in (*(obs.values() if isinstance(obs, dict) else [obs]), e.actions, e.rewards, e.terminations):
            content.update(np.ascontiguousarray(x).tobytes())
    print(name, content.hexdigest())
"""


def test_content_depends_neither_on_blas_nor_on_the_processor():
    found = {}
    for processor, settings in PROCESSORS.items():
        if "NPY_DISABLE_CPU_FEATURES" in settings:
            settings = settings | {"NPY_DISABLE_CPU_FEATURES": " ".join(f for f in DISPATCH if FEATURES[f])}
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **settings, "PYTHONPATH": str(ROOT / "datasets")}
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", CONTENT], env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[processor] = run.stdout.splitlines()
    first = found["one thread"]
    assert len(first) == 11 and len(set(first)) == 7  # of a policy three times the same: whatever the rows of a product
    assert all(lines == first for lines in found.values()), found


def test_replay_plays_every_snapshot_for_its_share(root, tmp_path, monkeypatch):
    used = []
    replay = tiny_policy(1, (2,)) | {"steps": np.array([400, 200]), "random_steps": np.array(200)}
    locomotion.save_policy(tmp_path / "hopper-replay.npz", replay)
    monkeypatch.setattr(locomotion, "POLICIES", tmp_path)
    play_steps = locomotion.play_steps

    def spy(env_id, policy, steps, seed):
        used.append((None if policy is None else float(policy["b1"][0]), steps, seed))
        return play_steps(env_id, policy, steps, seed)

    monkeypatch.setattr(locomotion, "play_steps", spy)
    episodes = check_form(made("hopper-medium-replay", None), 800)
    stored = locomotion.load_policy(tmp_path / "hopper-replay.npz")
    assert [u[0] for u in used] == [None, *stored["b1"][:, 0].tolist()]
    assert used[0][1] == 200 and 200 < used[1][1] <= 400
    seeds = [
        e["seed"]
        for e in minari.load_dataset("local/hopper-medium-replay-v1").storage.get_episode_metadata(range(len(episodes)))
    ]
    assert seeds == list(range(len(episodes)))


def test_medium_expert_reuses_what_was_made(root, tmp_path, monkeypatch):
    for level, seed in (("medium", 0), ("expert", 1)):
        locomotion.save_policy(tmp_path / f"hopper-{level}.npz", tiny_policy(seed))
    monkeypatch.setattr(locomotion, "POLICIES", tmp_path)
    fresh = digest(made("hopper-medium-expert", 600))
    parts = [made(f"hopper-{level}", 300) for level in ("medium", "expert")]
    assert digest(parts[0]) != digest(parts[1])
    earlier = [digest(made(f"hopper-{level}-v0", 300)) for level in ("medium", "expert")]
    assert earlier[0] != digest(parts[0]) and earlier[1] != digest(parts[1])
    monkeypatch.setattr(locomotion, "play_steps", None)  # nothing is played again
    assert digest(made("hopper-medium-expert", 600, force=True)) == fresh
    of_version_0 = list(made("hopper-medium-expert-v0", 600).iterate_episodes())
    for level in ("medium", "expert"):
        for e in minari.load_dataset(f"local/hopper-{level}-v0").iterate_episodes():
            np.testing.assert_array_equal(of_version_0.pop(0).actions, e.actions)
    assert not of_version_0


def test_a_mixture_has_its_share_of_steps_in_whole_episodes(root, tmp_path, monkeypatch):
    policy = tiny_policy(1) | {"b1": np.full(3, 9.0, np.float32)}  # all actions near 1
    locomotion.save_policy(tmp_path / "hopper-expert.npz", policy)
    monkeypatch.setattr(locomotion, "POLICIES", tmp_path)
    dataset = made("hopper-random-expert-5", 2000)
    episodes = check_form(dataset, 2000)
    by_expert = [bool(e.actions.min() > 0.9) for e in episodes]
    assert sum(len(e.rewards) for e, expert in zip(episodes, by_expert, strict=True) if expert) == 100
    cuts = [i for i, e in enumerate(episodes) if not e.terminations[-1]]
    assert set(cuts) <= {by_expert.index(True) - 1, len(episodes) - 1} and by_expert == sorted(by_expert)
    fresh = digest(dataset)
    made("hopper-random", 2500)  # longer than the parts: their first episodes are these
    made("hopper-expert", 150)
    monkeypatch.setattr(locomotion, "play_steps", None)  # nothing is played again
    assert digest(made("hopper-random-expert-5", 2000, force=True)) == fresh


def test_select(tmp_path, monkeypatch):
    steps = [1000 * (i + 1) for i in range(6)]
    (tmp_path / "run.json").write_text(json.dumps({"args": {"env": "Hopper-v5", "learning_starts": 500}}))
    for i, step in enumerate(steps):
        policy = tiny_policy(i) | {"b1": np.full(3, float(i), np.float32)}
        locomotion.save_policy(tmp_path / "policies" / f"lane0-step{step:08d}.npz", policy)
    level = [0, 100, 350, 300, 800, 900]  # what the snapshots are worth
    worth = lambda p: 0.0 if p is None else float(level[int(p["b1"][0])])  # noqa: E731
    monkeypatch.setattr(locomotion, "returns_of_block", lambda env, p, n: worth(p))
    monkeypatch.setattr(locomotion, "play_returns", lambda env, p, n: np.full(n, worth(p)))
    picked = locomotion.select(tmp_path, "hopper", tmp_path / "out")
    assert picked["expert"]["step"] == 6000 and picked["medium"]["step"] == 3000
    assert picked["medium"]["level"] == pytest.approx(300)
    replay = locomotion.load_policy(tmp_path / "out" / "hopper-replay.npz")
    assert replay["random_steps"] == 500 and replay["steps"].tolist() == [500, 1000, 1000]
    assert replay["b1"][:, 0].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "out" / "hopper-selection.json").read_text()) == picked
    level[2] = 600  # it overshoots by more than a tenth of the range: the nearest one is taken
    assert locomotion.select(tmp_path, "hopper", tmp_path / "out")["medium"]["step"] == 4000


# ----------------------------------------------------------------------------------- command line


def test_mistyped_name_exits_2_with_one_sentence(root):
    command = [sys.executable, ROOT / "datasets" / "make.py", "pendulum-mixd"]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert run.returncode == 2 and "pendulum-mixed" in run.stderr and "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--steps 0", "--seed -1", f"--seed {2**31}"])
def test_numbers_that_no_dataset_is_made_with(option, capsys):
    with pytest.raises(SystemExit) as stop:
        make.main(["pendulum-mixed", *option.split()])
    assert stop.value.code == 2 and f"error: {option.split()[0]} must be" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("pgx") is not None, reason="pgx is installed")
def test_a_missing_package_is_one_sentence_that_says_how_to_install_it(root):
    command = [sys.executable, ROOT / "datasets" / "make.py", "minatar-breakout-mixed"]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    said = "minatar-breakout-mixed: It is made with what is not installed: pip install pgx==2.6.0\n"
    assert run.returncode == 2 and run.stderr.endswith(said) and "Traceback" not in run.stderr
    assert not list(root.glob("*/*"))


def test_missing_packages_are_named_all_at_once_and_only_they():
    make.require_packages(("numpy==0.1", "scipy"))
    with pytest.raises(InputError, match=r"pip install no-such==1\.0 nor-this$"):
        make.require_packages(("numpy", "no-such==1.0", "nor-this"))


def test_missing_policy_is_one_sentence_and_leaves_nothing(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locomotion, "POLICIES", tmp_path / "none")
    with pytest.raises(InputError, match="hopper-medium: There is no policy"):
        make.main(["hopper-medium", "pendulum-mixed", "--steps", "400"])
    assert list(minari.list_local_datasets()) == ["local/pendulum-mixed-v0"]  # the other was made


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_creation_leaves_nothing(root, monkeypatch, error):
    storage = minari.dataset._storages.hdf5_storage
    add, calls = storage._add_episode_to_group, []

    def fail_at_the_third_episode(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            assert list(root.glob(".making-*/local/pendulum-mixed-v0/data/main_data.hdf5"))
            assert not list(root.glob("[!.]*"))  # under way, but out of Minari's sight
            raise error
        return add(*args, **kwargs)

    monkeypatch.setattr(storage, "_add_episode_to_group", fail_at_the_third_episode)
    with pytest.raises(error):
        make.make("pendulum-mixed", 1000)
    assert len(calls) == 3 and list(root.iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(root)


def test_failed_replacement_keeps_the_old_dataset(root, monkeypatch):
    before = digest(made("pendulum-mixed", 1000))
    monkeypatch.setattr(make, "in_float32", None)
    with pytest.raises(TypeError):
        make.make("pendulum-mixed", 400, force=True)
    assert digest(minari.load_dataset("local/pendulum-mixed-v0")) == before


def test_table_keeps_rows_of_absent_datasets(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "table.json").write_text("[]")
    monkeypatch.setattr(make, "HERE", tmp_path / "here")
    monkeypatch.setattr(make, "description", lambda name: name)
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(tmp_path / "cache"))
    made("cartpole-mixed", 400)
    make.write_table()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    made("pendulum-mixed", 400)
    make.write_table()
    make.check_table()
    rows = json.loads((tmp_path / "here" / "table.json").read_text())
    assert [r["name"] for r in rows] == ["pendulum-mixed", "cartpole-mixed"]
    assert all(len(r["hash"]) == 16 and r["steps"] == 400 for r in rows)
    assert "cartpole-mixed" in (tmp_path / "here" / "table.md").read_text()
    capsys.readouterr()
    made("cartpole-mixed", 400, seed=1)  # as many steps as in the table, but others
    with pytest.raises(InputError, match=r"table.json: cartpole-mixed\.$"):
        make.main(["--check"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == ["pendulum-mixed: as in the table", lines[-2]]
    assert lines[-2].startswith("cartpole-mixed: hash ") and f"in the table {rows[1]['hash']}" in lines[-2]


def test_a_name_without_a_version_means_the_newest():
    assert [recipe_name(n) for n in ("hopper-medium", "local/hopper-medium-v0")] == [
        "hopper-medium-v1",
        "hopper-medium-v0",
    ]
    assert {recipe_name(n) for n in ("pendulum-mixed", "local/pendulum-mixed-v0")} == {"pendulum-mixed"}
    assert recipe_name("hopper-medium-v7") is recipe_name("pendulum-mixed-v1") is recipe_name("hopper") is None
    assert recipe_id("hopper-medium-v1") == "local/hopper-medium-v1" and recipe_id("a-b") == "local/a-b-v0"
    for version in ("", "-v0", "-v1"):  # presets and scores are those of the name without it
        dataset = f"hopper-medium{version}"
        assert preset_for(dataset, {"hopper": {}, "hopper-medium": {}, "hopper-medium-replay": {}}) == "hopper-medium"
        assert reference_score(dataset, "Hopper-v5") == make.reference_scores()["Hopper-v5"]


def test_the_pairs_of_d4rl_are_written_as_they_stand():
    """`make.py --reference` writes the whole file again: nothing of D4RL's pairs may be lost by it."""
    table = make.reference_scores()
    assert {k: v for k, v in table.items() if k.startswith("d4rl/")} == make.d4rl_pairs()


def test_every_recipe_is_whole():
    for name, env_id in recipes().items():
        if name.startswith("ogbench-") and importlib.util.find_spec("ogbench") is None:
            continue  # tests/test_ogbench_data.py
        made_by = make.recipe(name)
        assert made_by.env.id == made_by.eval_env.id == env_id
        assert made_by.reference in (name, env_id)
        assert make.description(name)


def test_no_pickles_in_policies():
    for path in (ROOT / "datasets" / "policies").glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(file[k].dtype.kind in "fiU" for k in file.files)
        if "replay" not in path.name:
            assert path.stat().st_size < 200_000
