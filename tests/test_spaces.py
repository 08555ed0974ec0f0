"""Spaces: flattened as gymnasium does, the same in a dataset and in its environment, or refused by name."""

import dataclasses
import re

import gymnasium as gym
import minari
import numpy as np
import pytest
from conftest import ALGORITHMS, load
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from jobs import small
from minari.data_collector import EpisodeBuffer

from shared.data import load_dataset
from shared.errors import InputError, files_for
from shared.parts import joined
from shared.spaces import flat_obs_shape, flatten_obs
from shared.task import Spec, Task, env_task, space_spec

SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(0, 255, (5,), np.uint8),
    spaces.Box(0, 255, (4, 4), np.uint8),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.MultiBinary(5),
    spaces.MultiBinary((2, 3)),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([3, 2], start=[1, -1]),
    spaces.Text(6),
    spaces.Dict({"b": spaces.Discrete(3, start=1), "a": spaces.Box(-1, 1, (2,)), "c": spaces.MultiBinary(2)}),
    spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": spaces.Text(3), "y": spaces.Box(0, 1, (2, 2))}))),
    spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "direction": spaces.Discrete(4)}),
]


def stacked(samples: list):
    """Samples as a dataset has them: arrays of rows in the place of single values."""
    if isinstance(samples[0], dict):
        return {k: stacked([s[k] for s in samples]) for k in samples[0]}
    if isinstance(samples[0], tuple):
        return tuple(stacked([s[i] for s in samples]) for i in range(len(samples[0])))
    return samples if isinstance(samples[0], str) else np.stack(samples)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_flattened_as_gymnasium_does_one_or_many_at_once(space):
    space.seed(0)
    samples = [space.sample() for _ in range(20)]
    right = np.stack([flatten(space, sample) for sample in samples]).astype(np.float32)
    one = np.stack([flatten_obs(sample, space) for sample in samples])
    many = flatten_obs(stacked(samples), space)
    assert one.dtype == many.dtype == np.float32
    np.testing.assert_array_equal(one, right)
    np.testing.assert_array_equal(many, right)
    assert flat_obs_shape(space) == right.shape[1:]


def test_a_goal_environments_state_comes_before_its_goals():
    """The one order that is not gymnasium's (by name): that of D4RL's and gymnasium-robotics' papers."""
    names = ("achieved_goal", "desired_goal", "observation")
    space = spaces.Dict({name: spaces.Discrete(2, start=i) for i, name in enumerate(names)})
    assert flatten_obs({"achieved_goal": 0, "desired_goal": 2, "observation": 2}, space).tolist() == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("shape", "right"),
    [((8, 9, 3), (8, 9, 3)), ((4, 24, 24), (24, 24, 4)), ((2, 8, 9, 3), (8, 9, 6)), ((3, 64, 64), (64, 64, 3))],
)
def test_images_are_height_width_channels(shape, right):
    space = spaces.Box(0, 255, shape, np.uint8)
    x = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    found = flatten_obs(x, space)
    assert found.shape == (5, *right) and found.dtype == np.uint8 and flat_obs_shape(space) == right
    np.testing.assert_array_equal(flatten_obs(x[0], space), found[0])
    if len(shape) == 4:  # the frames one after the other
        np.testing.assert_array_equal(found[..., 3:], x[:, 1])


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), spaces.OneOf([spaces.Discrete(2)])], ids=str)
def test_a_space_without_a_size_is_refused_by_name(space):
    with pytest.raises(InputError, match=type(space).__name__):
        _ = flatten_obs(np.array([0, 1]), space)


def test_observations_outside_their_space_are_refused():
    with pytest.raises(InputError, match=r"outside Discrete\(3\)"):
        flatten_obs(np.array([0, 3]), spaces.Discrete(3))
    with pytest.raises(InputError, match="'go to it' is not of the observation space Text.*no letter ' '"):
        flatten_obs(["go to it"], spaces.Text(20))


# -------------------------------------------------------------------------- datasets and environments


def stored(name: str, obs_space: spaces.Space, action_space: spaces.Space, episodes: int = 3, n: int = 6, **known):
    """A Minari dataset of samples; observations and actions as they were stored."""
    obs_space.seed(0)
    action_space.seed(0)
    buffers, obs, actions = [], [], []
    for _ in range(episodes):
        obs.append([obs_space.sample() for _ in range(n + 1)])
        actions.append([action_space.sample() for _ in range(n)])
        buffers.append(
            EpisodeBuffer(
                observations=stacked(obs[-1]),
                actions=stacked(actions[-1]),
                rewards=list(range(n)),
                terminations=[False] * n,
                truncations=[False] * (n - 1) + [True],
                infos={},
            )
        )
    spaces_of = {} if "env" in known else {"observation_space": obs_space, "action_space": action_space}
    minari.create_dataset_from_buffers(name, buffer=buffers, **spaces_of, **known)
    return obs, actions


@pytest.mark.parametrize("i", [3, 5, 6, 8, 11, 13])
def test_a_dataset_without_an_environment(i):
    space = SPACES[i]
    if i == 3:  # minari stores greys of two axes as they are
        space = spaces.Box(0, 255, (4, 4), np.uint8)
    obs, _ = stored(f"test/space{i}-v0", space, spaces.Discrete(8))
    data = load_dataset(f"test/space{i}-v0")
    right = np.stack([flatten(space, o) for episode in obs for o in episode[:-1]])
    np.testing.assert_array_equal(data.obs, right.astype(np.float32))
    following = np.stack([flatten(space, o) for episode in obs for o in episode[1:]])
    np.testing.assert_array_equal(data.next_obs, following.astype(np.float32))
    assert data.spec.discrete and data.spec.action_dim == 8 and data.task.data["time_limits"] == 3


def test_images_of_more_channels_than_rows_are_turned_once():
    obs, _ = stored("test/frames-v0", spaces.Box(0, 255, (4, 8, 9, 3), np.uint8), spaces.Discrete(2), 1, 3)
    data = load_dataset("test/frames-v0")
    right = np.moveaxis(np.stack(obs[0]), 1, -2).reshape(4, 8, 9, 12)
    np.testing.assert_array_equal(data.obs, right[:3])
    np.testing.assert_array_equal(data.next_obs, right[1:])


def test_dictionaries_of_other_keys_are_not_joined():
    """Both are flattened to four numbers."""
    box = spaces.Box(-1, 1, (2,))
    for name, keys in (("one", "ab"), ("two", "bc")):
        stored(f"test/{name}-v0", spaces.Dict(dict.fromkeys(keys, box)), spaces.Box(-1, 1, (1,)))
    one, two = (load_dataset(f"test/{name}-v0") for name in ("one", "two"))
    assert one.obs.shape == two.obs.shape and one.task.data["keys"] == {"a": 2, "b": 2}
    with pytest.raises(InputError, match=r"'test/two-v0' observes b, c, 'test/one-v0' a, b: of these keys b are in"):
        joined([one, two])


def test_discrete_actions_begin_where_their_space_does():
    _, actions = stored("test/start-v0", spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=1))
    data = load_dataset("test/start-v0")
    assert data.spec.action_dim == 3 and set(data.action.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(data.task.to_env(data.action), np.concatenate(actions))


def test_actions_of_several_axes_go_back_into_their_shape():
    space = spaces.Box(np.float32([[-1, -2, -3], [-4, -5, -6]]), np.float32([[1, 2, 3], [4, 5, 6]]))
    _, actions = stored("test/matrix-v0", spaces.Box(-1, 1, (3,)), space)
    data = load_dataset("test/matrix-v0")
    assert data.action.shape == (18, 6) and data.spec.action_dim == 6
    back = data.task.to_env(data.action)
    np.testing.assert_allclose(back, np.concatenate(actions), atol=1e-5)
    assert all(space.contains(a) for a in data.task.to_env(np.ones((4, 6), np.float32)))


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Dict({"a": spaces.Discrete(2)})], ids=str
)
def test_an_action_space_that_cannot_be_learned_is_refused_by_name(space):
    stored("test/odd-v0", spaces.Box(-1, 1, (3,)), space)
    with pytest.raises(InputError, match=type(space).__name__) as error:
        load_dataset("test/odd-v0")
    assert "\n" not in str(error.value)


class Odd(gym.Env):
    """Observations of many kinds, choices that begin at 2, or actions that are a matrix."""

    observation_space = spaces.Dict({"b": spaces.Discrete(3, start=1), "a": spaces.Box(-1, 1, (2,), np.float64)})

    def __init__(self, matrix: bool = False):
        self.action_space = spaces.Box(-3, 3, (2, 3)) if matrix else spaces.Discrete(4, start=2)

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 1.0, False, False, {}


gym.register("SpacesTest/Odd-v0", f"{__name__}:Odd", max_episode_steps=5)


@pytest.mark.parametrize("matrix", [False, True])
def test_data_and_environment_are_flattened_alike(matrix):
    env = gym.make("SpacesTest/Odd-v0", matrix=matrix)
    stored("test/odd-env-v0", env.observation_space, env.action_space, env=env)
    data = load_dataset("test/odd-env-v0")
    env = data.task.make_env()
    obs, _ = env.reset(seed=3)
    np.testing.assert_array_equal(data.task.observe(obs), flatten(env.observation_space, obs).astype(np.float32))
    assert data.task.observe(obs).shape == data.spec.obs_shape == (5,)
    for action in data.action[:5]:
        env.step(data.task.to_env(action) if matrix else data.task.to_env(action[None])[0])
    again = Task.from_description(data.task.describe())
    assert again.spec == data.spec and again.observe(obs).tolist() == data.task.observe(obs).tolist()
    assert env_task("SpacesTest/Odd-v0").spec.obs_shape == (5,)


def test_the_datas_action_space_is_compared_with_the_environments():
    stored("test/wide-v0", spaces.Box(-8, 8, (3,)), spaces.Box(-1, 1, (1,)))
    assert load_dataset("test/wide-v0").spec.action_high == (1.0,)
    with pytest.raises(InputError, match=r"actions of Box\(-1.0, 1.0.*Pendulum-v1 has Box\(-2.0, 2.0"):
        load_dataset("test/wide-v0", "Pendulum-v1")
    stored("test/two-v0", spaces.Box(-8, 8, (4,)), spaces.Discrete(2, start=1))
    with pytest.raises(InputError, match=r"Discrete\(2, start=1\).*CartPole-v1 has Discrete\(2\)"):
        load_dataset("test/two-v0", "CartPole-v1")


def test_episodes_of_one_observation_too_few(monkeypatch):
    """Minari 199: as many observations as steps; what follows the last one is not known, and nothing is moved."""
    obs, _ = stored("test/few-v0", spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    whole, read = load_dataset("test/few-v0"), minari.MinariDataset.iterate_episodes

    def cut(by: int):
        def episodes(dataset):
            for e in read(dataset):
                yield e if e.id != 1 else dataclasses.replace(e, observations=e.observations[:-by])
                if e.id == 1:  # one without a step says nothing of the rows before it
                    none = {n: getattr(e, n)[:0] for n in ("actions", "rewards", "terminations", "truncations")}
                    yield dataclasses.replace(e, observations=e.observations[:1], **none)

        return episodes

    monkeypatch.setattr(minari.MinariDataset, "iterate_episodes", cut(1))
    monkeypatch.setenv("OFFLINE_RL_CACHE", "/dev/null")  # nothing is kept
    data = load_dataset("test/few-v0")
    np.testing.assert_array_equal(data.obs, whole.obs)
    assert data.successor.tolist() == [i != 11 for i in range(18)]
    assert "1 episodes without a step are left out" in data.task.data["notes"]
    np.testing.assert_array_equal(data.next_obs[data.successor], whole.next_obs[data.successor])
    monkeypatch.setattr(minari.MinariDataset, "iterate_episodes", cut(2))
    with pytest.raises(InputError, match="episode 1 has 5 observations of 6 steps"):
        load_dataset("test/few-v0")


def test_a_time_limit_that_is_shorter_than_the_datas_episodes_is_told():
    """Minari 286."""
    env = gym.make("SpacesTest/Odd-v0")
    stored("test/long-v0", env.observation_space, env.action_space, env=env)
    notes = load_dataset("test/long-v0").task.data["notes"]
    assert notes == ["the data has episodes of up to 6 rows, SpacesTest/Odd-v0 ends them after 5 steps"]


class Told(gym.Env):
    """MiniGrid's observations: picture, direction, and a mission of no space that gymnasium knows to flatten."""

    class Mission(spaces.Space):
        def sample(self, *_):
            return "reach the goal"

        def contains(self, x):
            return isinstance(x, str)

    seen = {"direction": spaces.Discrete(4), "image": spaces.Box(0, 255, (3, 3, 3), np.uint8)}
    action_space = spaces.Discrete(7)

    def __init__(self):
        self.observation_space = spaces.Dict(self.seen | {"mission": self.Mission()})

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


gym.register("SpacesTest/Told-v0", f"{__name__}:Told", max_episode_steps=5, disable_env_checker=True)


def told(name: str, missions: list[str]):
    """A dataset of three episodes, each with one of the missions."""
    space = spaces.Dict(Told.seen | {"mission": spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyz")})
    space.seed(0)
    buffers, obs = [], []
    for mission in missions:
        obs.append([space.sample() | {"mission": mission} for _ in range(5)])
        known = {"actions": np.arange(4), "rewards": [0.0] * 4, "terminations": [False] * 4, "infos": {}}
        buffers.append(EpisodeBuffer(observations=stacked(obs[-1]), truncations=[False] * 3 + [True], **known))
    minari.create_dataset_from_buffers(
        name, buffer=buffers, observation_space=space, action_space=Told.action_space, eval_env="SpacesTest/Told-v0"
    )
    return obs


def test_a_text_that_never_changes_is_left_out_and_told(capsys):
    obs = told("test/told-v0", ["reach the goal"] * 3)
    data = load_dataset("test/told-v0")
    right = [flatten(spaces.Dict(Told.seen), {k: o[k] for k in Told.seen}) for e in obs for o in e[:-1]]
    np.testing.assert_array_equal(data.obs, np.float32(right))
    assert capsys.readouterr().out.count("the text 'mission' is 'reach the goal' in every row: it is left out") == 1
    env = data.task.make_env()
    seen, _ = env.reset(seed=0)
    again = Task.from_description(data.task.describe())
    for task in (data.task, again, data.task.in_env("SpacesTest/Told-v0")):
        assert task.observe(seen).shape == data.spec.obs_shape == (31,)


def test_letters_have_the_same_numbers_in_whatever_order_a_space_has_them():
    """Minari stores them sorted, an environment may not, and a set has another order in every process."""
    one, other = (spaces.Dict({"x": spaces.Text(4, charset=letters)}) for letters in ("abc ", " cba"))
    assert flatten_obs({"x": "ca"}, one).tolist() == flatten_obs({"x": "ca"}, other).tolist() == [3, 1, 4, 4]


def test_texts_that_change_and_are_not_of_their_space_are_refused():
    told("test/told-v0", ["reach the goal", "go to the door", "reach the goal"])
    with pytest.raises(InputError, match="'reach the goal' is not of the observation space Text.*no letter ' '"):
        load_dataset("test/told-v0")


def test_a_spec_is_the_same_where_there_is_nothing_odd():
    assert space_spec((3,), spaces.Box(-2, 2, (1,))) == Spec((3,), 1, False, (-2.0,), (2.0,))
    assert space_spec((4,), spaces.Discrete(2)) == Spec((4,), 2, True)


@pytest.mark.parametrize("name", [path.stem for path in ALGORITHMS])
def test_data_of_the_other_kind_of_actions_is_refused_by_naming_files_that_take_it(name, cartpole, pendulum, tmp_path):
    """One sentence; the file itself is not among those that it names, and a file that is named does not refuse it."""
    source = next(path for path in ALGORITHMS if path.stem == name).read_text()
    required = re.search(r"\.require\((?:discrete=)?(True|False)\b", source)
    for path, discrete in ((cartpole, True), (pendulum, False)):
        takes = f"{name}.py" in files_for(discrete)
        refuses = bool(required) and required[1] != str(discrete)
        assert not (takes and refuses)
        if refuses and "Task" not in source and "env_task" not in source:
            with pytest.raises(InputError, match="actions; those of .*, for which there are .*") as refusal:
                load(name).main(small(name, path, tmp_path / "run", env="none"))
            assert f" {name}.py" not in str(refusal.value) and str(refusal.value).count(".") < 20
            if discrete:
                assert "for which there are bc.py, " in str(refusal.value)


def test_without_the_algorithms_nothing_is_named(tmp_path):
    assert files_for(True, tmp_path) == []
    (tmp_path / "family").mkdir()
    for file, asked in (("one", "discrete=False"), ("two", "images=True")):
        (tmp_path / "family" / f"{file}.py").write_text(f"class Args(OfflineArgs):\ndata.require({asked})\n")
    assert files_for(True, tmp_path) == ["two.py"] and files_for(False, tmp_path) == ["two.py", "one.py"]
    (tmp_path / "offline").mkdir()
    for file, more in (("a", "\n"), ("z", "")):  # the family of the usual baselines, the shortest of it
        (tmp_path / "offline" / f"{file}.py").write_text(f"class Args(OfflineArgs):\ndata.require(True){more}\n")
    assert files_for(True, tmp_path) == ["z.py", "a.py", "two.py"]
