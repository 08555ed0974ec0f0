"""GoToDoorText: what is shown of MiniGrid's room, who goes to which door; without minigrid, one sentence."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "datasets"))
import environments  # noqa: F401
import missions
from environments.go_to_door import ACTIONS, COLOURS, shown

LEFT, RIGHT, FORWARD, DONE = (ACTIONS.index(a) for a in ("turn left", "turn right", "go forward", "done"))


def test_without_minigrid_the_game_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid.envs.gotodoor", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install minigrid==3\.2\.0"):
        gym.make("GoToDoorText-v0")


def seen(**cells) -> dict:
    """What is shown of walls and doors {colour or wall: (column, row)}; the agent is at (2, 4) and looks up."""
    image = np.zeros((5, 5, 3), np.uint8)
    for name, at in cells.items():
        image[at] = (2, 5, 0) if name == "wall" else (4, COLOURS.index(name), 1)
    return shown({"image": image, "mission": ""})


def test_doors_are_shown_and_what_blocks_the_way():
    obs = seen(wall=(0, 1), blue=(1, 2), grey=(2, 3))
    doors = np.zeros((6, 3))
    doors[2], doors[5] = (1, -0.25, 0.5), (1, 0, 0.25)
    np.testing.assert_array_equal(obs["doors"], doors)
    assert obs["blocked"] == [1] and seen(wall=(2, 3))["blocked"] == [1] and seen(wall=(2, 2))["blocked"] == [0]


@pytest.mark.parametrize(
    "cells, action",
    [
        ({"red": (2, 3)}, DONE), ({"red": (1, 4)}, DONE), ({"red": (3, 4)}, DONE), ({"red": (2, 1)}, FORWARD),
        ({"red": (0, 3)}, FORWARD), ({"red": (1, 3), "wall": (2, 3)}, LEFT), ({"red": (3, 3), "wall": (2, 3)}, RIGHT),
        ({"red": (0, 4)}, LEFT), ({"red": (4, 4)}, RIGHT), ({"blue": (2, 3)}, RIGHT),
    ],
)  # fmt: skip
def test_who_sees_its_door_goes_there_and_else_turns(cells, action):
    assert missions.toward(seen(**cells), "red") == action


def test_the_right_door_pays_and_others_end_with_nothing():
    pytest.importorskip("minigrid")
    env = gym.make("GoToDoorText-v0", disable_env_checker=True)
    assert env.action_space.n == len(ACTIONS)
    letters = env.observation_space["mission"].character_list
    assert list(letters) == sorted(letters)  # as Minari stores them
    for seed in range(12):
        right, other = (missions.play(env, who, seed, noise=0.0) for who in ("expert", "other"))
        assert right.rewards[-1] > 0.85 and other.rewards[-1] == 0
        assert right.terminations[-1] and other.terminations[-1] and right.actions[-1] == other.actions[-1] == DONE
        assert right.observations["mission"] == [right.observations["mission"][0]] * (len(right) + 1)


def test_the_recipe_makes_whole_episodes_in_turn():
    pytest.importorskip("minigrid")
    recipe = missions.recipe("minigrid-gotodoor-mixed", "GoToDoorText-v0")
    episodes = recipe.collect(200, 0)
    assert 150 < sum(map(len, episodes)) <= 200
    again = recipe.collect(200, 0)
    assert all((a.actions == b.actions).all() for a, b in zip(episodes, again, strict=True))
    assert np.mean([e.rewards.sum() > 0 for e in episodes[::4]]) > 0.8 and not any(
        e.rewards.sum() for e in episodes[1::4]
    )
    assert recipe.returns("expert", 5).mean() > 0.85
