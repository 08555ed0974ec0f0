"""A dataset's own metadata before any table; environments of one's own, by name, or none."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from conftest import write_pendulum
from gymnasium.wrappers import FlattenObservation, RescaleAction
from minari.data_collector import EpisodeBuffer
from test_spaces import stacked

from shared.data import load_dataset
from shared.errors import InputError, nearest
from shared.task import Task, registered_env


def dataset(name: str, env: gym.Env, rewards=(0.0, 0.5, 1.0), **known) -> str:
    """Two episodes of samples of the environment's spaces."""
    episodes = []
    for _ in range(2):
        episodes.append(
            EpisodeBuffer(
                observations=stacked([env.observation_space.sample() for _ in range(len(rewards) + 1)]),
                actions=stacked([env.action_space.sample() for _ in rewards]),
                rewards=list(rewards),
                terminations=[False] * len(rewards),
                truncations=[False] * (len(rewards) - 1) + [True],
                infos={},
            )
        )
    return str(minari.create_dataset_from_buffers(name, buffer=episodes, env=env, **known).spec.data_path)


# ----------------------------------------------------------------------------------- its own pair


def test_the_datasets_own_pair_comes_before_any_table():
    """Hopper-v5 has a pair in the table; and a name may be one of D4RL's."""
    dataset("lab/hopper-v0", gym.make("Hopper-v5"), ref_min_score=5.0, ref_max_score=400.0)
    data = load_dataset("lab/hopper-v0")
    assert (data.task.reference["min"], data.task.reference["max"]) == (5.0, 400.0)
    assert data.task.reference["source"] == "the Minari dataset's metadata"
    assert data.task.score(np.array(202.5)) == 50.0


def test_its_pair_is_of_its_environment():
    dataset("lab/pendulum-v0", gym.make("Pendulum-v1"), ref_min_score=5.0, ref_max_score=400.0)
    assert load_dataset("lab/pendulum-v0", "Pendulum-v1").task.reference["min"] == 5.0
    gym.register("EnvsTest/Pendulum-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=50)
    assert load_dataset("lab/pendulum-v0", "EnvsTest/Pendulum-v0").task.reference is None


def test_a_maze_that_goes_on_scores_its_own_pair_or_successes():
    """An ant at the goal for 200 steps: 60.6 by the dataset's own pair; without one a success, once, and not 20,000."""
    maze = gym.make(registered_env("AntMaze_UMaze-v4", {"continuing_task": True}, 700))
    dataset("D4RL/antmaze/umaze-v1", maze, (0.0, 1.0, 1.0), ref_min_score=0.0, ref_max_score=330.0)
    data = load_dataset("D4RL/antmaze/umaze-v1")
    assert not data.task.counts_successes and data.task.env_spec.kwargs["continuing_task"]
    np.testing.assert_allclose(data.task.score(np.array(200.0)), 60.606, atol=1e-3)
    dataset("D4RL/antmaze/medium-play-v1", maze, (0.0, 1.0, 1.0))
    data = load_dataset("D4RL/antmaze/medium-play-v1")
    assert data.task.counts_successes and data.task.score(np.array(200.0)) == 100.0
    assert data.task.score(np.array(200.0), np.array(False)) == 0.0
    assert data.task.baselines == {"dataset mean": 1.0, "dataset best episode": 1.0}


# --------------------------------------------------------------------------------------- wrappers


def test_wrappers_are_made_again():
    env = RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0)
    dataset("lab/rescaled-v0", env)
    data = load_dataset("lab/rescaled-v0")
    assert data.spec.action_high == (1.0,)
    again = Task.from_description(json.loads(json.dumps(data.task.describe())))
    for made in (data.task.make_env(), again.make_env()):
        assert made.action_space.high.tolist() == [1.0] and isinstance(made, RescaleAction)


def test_wrapped_dictionaries_are_flattened_as_they_were():
    maze = FlattenObservation(gym.make(registered_env("PointMaze_UMaze-v3")))
    dataset("lab/flat-maze-v0", maze)
    data = load_dataset("lab/flat-maze-v0")
    obs, _ = data.task.make_env().reset(seed=0)
    assert data.task.observe(obs).tolist() == np.float32(obs).tolist() and data.spec.obs_shape == (8,)


def test_a_wrapper_that_cannot_be_made_is_refused_by_name(tmp_path):
    path = dataset("lab/doubled-v0", gym.make("Pendulum-v1"))
    metadata = Path(path) / "metadata.json"
    stored = json.loads(metadata.read_text())
    for wrapper in (
        {"name": "TransformReward", "entry_point": "gymnasium.wrappers:TransformReward", "kwargs": None},
        {"name": "TransformReward", "entry_point": f"{__name__}:dataset", "kwargs": {}},
    ):
        spec = json.loads(stored["env_spec"]) | {"additional_wrappers": [wrapper]}
        metadata.write_text(json.dumps(stored | {"env_spec": json.dumps(spec)}))
        with pytest.raises(InputError, match="behind the wrapper TransformReward.*--env") as error:
            load_dataset("lab/doubled-v0")
        assert "\n" not in str(error.value)
        assert load_dataset("lab/doubled-v0", "none").task.env_spec is None
        assert load_dataset("lab/doubled-v0", "Pendulum-v1").task.env_spec.additional_wrappers == ()


# ------------------------------------------------------------------------- naming one, or none

MODULE = """
import gymnasium as gym
import numpy as np

class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (1,))
    def reset(self, seed=None, options=None):
        return np.zeros(3, np.float32), {}
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}

gym.register("%s", Own, max_episode_steps=20)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module in the folder that one is in; forgotten afterwards."""
    (tmp_path / "own_arm.py").write_text(MODULE % "OwnArm-v0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "own_arm"
    sys.path[:] = before
    sys.modules.pop("own_arm", None)
    gym.registry.pop("OwnArm-v0", None)


def test_an_environment_of_ones_own_by_its_module(own, tmp_path):
    path = write_pendulum(tmp_path / "log.npz")
    with pytest.raises(InputError, match="not registered.*--env module:id.*--env none"):
        load_dataset(path, "OwnArm-v0")
    data = load_dataset(path, "own_arm:OwnArm-v0")
    described = json.loads(json.dumps(data.task.describe()))
    assert described["env"]["id"] == "OwnArm-v0" and described["env"]["module"] == "own_arm"
    sys.modules.pop("own_arm")
    gym.registry.pop("OwnArm-v0")  # as in another process
    again = Task.from_description(described)
    assert again.env_spec.id == "OwnArm-v0" and again.make_env().spec.max_episode_steps == 20


def test_a_module_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_arm.py").write_text("raise RuntimeError('no licence')\nmore lines")
    path = write_pendulum(tmp_path / "log.npz")
    for name, words in (("no_such_module:X-v0", "No module named"), ("broken_arm:X-v0", "invalid syntax")):
        with pytest.raises(InputError, match=f"module {name[:-5]} cannot be imported.*{words}") as error:
            load_dataset(path, name)
        assert "\n" not in str(error.value)


def test_a_file_never_names_a_module():
    """Only the user does: an id with a colon in metadata is an id that nobody registered."""
    path = Path(dataset("lab/module-v0", gym.make("Pendulum-v1"))) / "metadata.json"
    stored = json.loads(path.read_text())
    spec = json.loads(stored["env_spec"]) | {"id": "antigravity:Pendulum-v1"}
    path.write_text(json.dumps(stored | {"env_spec": json.dumps(spec)}))
    with pytest.raises(InputError, match="'antigravity:Pendulum-v1' is not registered"):
        load_dataset("lab/module-v0")
    assert "antigravity" not in sys.modules


def test_none_trains_without_an_environment(tmp_path):
    data = load_dataset(write_pendulum(tmp_path / "pendulum.npz"), "none")
    assert data.task.env_spec is None and data.task.describe()["env"] is None
    dataset("lab/pendulum-v0", gym.make("Pendulum-v1"))
    assert load_dataset("lab/pendulum-v0", "none").task.env_spec is None


def test_no_error_lists_a_thousand_names():
    names = [f"Environment{i}-v0" for i in range(1000)]
    assert nearest("qqq", names) == "none of 1,000 known names is like it"
    assert nearest("Environment7-v1", names).startswith("did you mean")
    assert nearest("qqq", ["a", "b"]) == "choose from a, b"
    with pytest.raises(InputError) as error:
        registered_env("ZZZZZ")
    assert len(str(error.value)) < 300


# --------------------------------------------------------------------------------------- storages


def test_arrow_storage_is_read_through_minari_or_the_missing_package_is_named(monkeypatch):
    path = Path(dataset("lab/arrow-v0", gym.make("Pendulum-v1")))
    metadata = json.loads((path / "metadata.json").read_text())
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (path / "main_data.hdf5").unlink()
        (path / "0").mkdir()
        (path / "metadata.json").write_text(json.dumps(metadata | {"data_format": "arrow"}))
        with pytest.raises(InputError, match="pyarrow is not installed") as error:
            load_dataset("lab/arrow-v0")
        assert "\n" not in str(error.value)
        return
    right = load_dataset("lab/arrow-v0")
    env, found = gym.make("Pendulum-v1"), minari.load_dataset("lab/arrow-v0")
    buffers = [
        EpisodeBuffer(
            observations=e.observations,
            actions=e.actions,
            rewards=e.rewards,
            terminations=e.terminations,
            truncations=e.truncations,
            infos={},
        )
        for e in found.iterate_episodes()
    ]
    minari.create_dataset_from_buffers("lab/arrow2-v0", buffer=buffers, env=env, data_format="arrow")
    data = load_dataset("lab/arrow2-v0")
    for name in ("obs", "next_obs", "action", "reward", "terminal", "last"):
        np.testing.assert_array_equal(getattr(data, name), getattr(right, name))
