"""OGBench's environments by name and its files, where the package is installed: pip install ogbench==1.2.2."""

import numpy as np
import pytest

from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import Evaluator

pytest.importorskip("ogbench")
N, T = 60, 20
ENDS = np.arange(N) % T == T - 1


def file(path, shape: tuple[int, ...], actions: int, single: bool = True, compact: bool = False) -> str:
    """Three trajectories; the first is at its goal in its middle, where OGBench's masks are 0 and its rewards 0."""
    r, goal = np.random.default_rng(0), np.arange(N) == 9
    obs = r.integers(0, 256, (N, *shape), dtype=np.uint8) if len(shape) == 3 else r.normal(size=(N, *shape))
    arrays = {
        "observations": obs if len(shape) == 3 else obs.astype(np.float32),
        "actions": r.uniform(-1, 1, (N, actions)).astype(np.float32),
        "terminals": ENDS.astype(np.float32),
    }
    if compact:  # the last two rows of a trajectory are terminals, the very last has no transition
        arrays |= {"terminals": (ENDS | np.roll(ENDS, -1)).astype(np.float32), "valids": 1.0 - ENDS}
    if single:
        arrays |= {"rewards": goal - 1.0, "masks": 1.0 - goal}
    np.savez(path, **arrays)
    return str(path)


SINGLE = {
    "pointmaze-medium-navigate-singletask-v0": ((2,), 2, "pointmaze-medium-singletask-v0"),
    "antmaze-medium-navigate-singletask-task2-v0": ((29,), 8, "antmaze-medium-singletask-task2-v0"),
    "cube-single-play-singletask-v0": ((28,), 5, "cube-single-singletask-v0"),
}


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_a_dataset_with_one_task_has_its_environment_and_counts_successes(name, compact, tmp_path):
    shape, actions, env_id = SINGLE[name]
    data = load_dataset(file(tmp_path / f"{name}.npz", shape, actions, compact=compact))
    assert data.task.env_spec.id == env_id and data.task.reference["of"] == "success"
    assert len(data.obs) == (N - 3 if compact else N) and len(data.ends()) == 3
    assert np.flatnonzero(data.terminal).tolist() == [9] and not data.last[9]
    assert data.usable().sum() == N - 3 and data.episode_returns()[0] == -9.0
    np.testing.assert_allclose(data.task.baselines["dataset mean"], 1 / 3)
    env = data.task.make_env()
    assert data.task.observe(env.reset(seed=0)[0]).shape == shape


def test_images_are_bytes(tmp_path):
    data = load_dataset(file(tmp_path / "visual-cube-single-play-v0.npz", (64, 64, 3), 5, single=False))
    assert data.obs.dtype == np.uint8 and data.spec.obs_shape == (64, 64, 3) and data.task.env_spec is None
    assert not data.terminal.any() and len(data.ends()) == 3
    with pytest.raises(InputError, match="learns from rewards"):
        data.require(images=True)
    assert data.require(reward=False, images=True) is data


def test_an_environment_is_named_and_played(tmp_path):
    """A dataset of many goals in the environment of one; nothing is reached in five steps."""
    path = file(tmp_path / "pointmaze-medium-navigate-v0.npz", (2,), 2)
    assert load_dataset(path).task.env_spec is None
    task = load_dataset(path, "pointmaze-medium-singletask-v0").task.capped(5)
    evaluator = Evaluator(task, lambda agent, obs, *_: np.zeros((1, len(obs[0]), 2)), lambda f, axes: f, 1, 1, 2)
    played = evaluator(None, None, None)
    assert played.returns.tolist() == [[-5.0, -5.0]] and played.lengths.tolist() == [[5, 5]]
    assert played.scores(task).tolist() == [[0.0, 0.0]]
