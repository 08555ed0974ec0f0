"""The recipes of point worlds, in small: their form, the same content twice, and grades of skill."""

import gymnasium as gym
import make
import minari
import numpy as np
import pytest

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"point-umaze-demos": 130, "point-grid-mixed": 700, "point-medium-stitch": 120}
"""{recipe: steps}; none ends where an episode does."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_makes_whole_episodes_of_its_environment(name):
    """Twice the same; the last episode of a part is cut; what it stores is what the environment does."""
    steps, contents = SMALL[name], []
    for _ in range(2):
        make.make(name, steps, force=True)
        contents.append(load_dataset(name).task.hash)
    assert contents[0] == contents[1]
    dataset = minari.load_dataset(f"local/{name}-v0")
    episodes, env = list(dataset.iterate_episodes()), dataset.recover_environment()
    assert sum(map(len, episodes)) == steps and episodes[-1].truncations[-1]
    for e in episodes:
        assert e.terminations[:-1].sum() == e.truncations[:-1].sum() == 0 and e.terminations[-1] != e.truncations[-1]
        assert e.infos["cost"].shape == (len(e) + 1,)
    e, goals = episodes[-1], isinstance(env.observation_space, gym.spaces.Dict)
    seen = [{k: v[t] for k, v in e.observations.items()} if goals else e.observations[t] for t in range(len(e) + 1)]
    places = {"start": seen[0]["achieved_goal"], "goal": seen[0]["desired_goal"]} if goals else {"start": seen[0][:2]}
    env.reset(seed=0, options=places)
    for t, action in enumerate(e.actions):
        obs, reward, terminated, *_ = env.step(action)
        if goals:
            np.testing.assert_array_equal(obs["achieved_goal"], seen[t + 1]["achieved_goal"])
        else:
            np.testing.assert_array_equal(obs, seen[t + 1])
        assert reward == e.rewards[t] and terminated == e.terminations[t]


@pytest.mark.filterwarnings("ignore")
def test_pictures_stay_bytes_where_an_episode_is_cut():
    make.make("point-pixels-mixed", 260)
    episodes = list(minari.load_dataset("local/point-pixels-mixed-v0").iterate_episodes())
    assert {(e.observations.dtype, e.observations.shape[1:]) for e in episodes} == {(np.dtype(np.uint8), (16, 16, 3))}
    assert len(np.unique(episodes[-1].observations)) > 5


@pytest.mark.parametrize(("name", "first", "last"), [("point-fourrooms-partial", 1, 6), ("point-open-right", 5, 8)])
def test_data_of_one_side_stays_there(name, first, last):
    """In columns first .. last - 1, but for the noise at their rim: new goals were once drawn anywhere."""
    episodes = make.recipe(name).collect(2_000, 0)
    seen = [e.observations["achieved_goal"] if isinstance(e.observations, dict) else e.observations for e in episodes]
    x = np.concatenate(seen)[:, 0]
    inside = (x >= first) & (x < last)
    assert inside.mean() > 0.97 and (np.abs(x - np.clip(x, first, last)) < 1).all()
    assert np.histogram(x, last - first, (first, last))[0].min() > 100


def test_noise_of_the_system_is_the_worlds_and_noise_of_the_policy_the_planners():
    """`s<S>p<P>`, in percent; the evaluation has the world's own."""
    made, kind = make.recipe("point-obstacle-s25p75"), make.pointworld.kind_of("s25p75")
    assert (made.env.kwargs["noise"], made.eval_env.kwargs["noise"]) == (0.25, 0.5)
    assert kind.parts == ((1.0, make.pointworld.Behaviour(noise=0.75, avoid_hazards=True)),)
    with pytest.raises(InputError, match="there is no kind 's5' of data of point worlds; choose from .*s<percent>p"):
        make.pointworld.recipe("point-obstacle-s5", "PointObstacle-v0")
