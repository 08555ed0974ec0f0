"""Rank correlations of values with exact shortest ways: of values that are right, reversed, and blind to walls."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from environments.point import World
from environments.point_truth import path_length
from jobs import small

from results import goal_distances
from results.checks import Raw, rank_correlation
from results.grid import ROOT, goals
from results.pages.claims import values_section
from results.plan_pictures import values_picture
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset
from shared.task import Task, registered_env

NAMES = ("gcivl", "gciql", "hiql", "ota", "dwsl", "qrl", "crl", "goat", "tacorl")


def policies(env: str, spec) -> SimpleNamespace:
    """Two lanes, the second of which is padding, whose `agent` is the sign of its value."""
    task = Task("points", "", spec, registered_env(env))
    return SimpleNamespace(task=task, settings=[{"seed": 0}], agent=np.float32([1, -1]), args=np.zeros(2))


@pytest.fixture
def spec(tmp_path):
    return goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).task.spec


def straight(module, agent, obs, goal, args):
    return -agent * abs(obs - goal).max(-1)


def test_straight_distances_rank_ways_where_there_is_no_wall(spec):
    found = goal_distances.correlations(policies("PointOpenGoals-v0", spec), straight, None)
    assert found.shape == (1,) and 0.97 < found[0] <= 1
    reverse = policies("PointOpenGoals-v0", spec)
    reverse.agent = -reverse.agent
    np.testing.assert_allclose(goal_distances.correlations(reverse, straight, None), -found, atol=1e-3)


def test_walls_count(spec):
    """The ways of the truth itself are ranked right where straight distances are not."""
    goal, start, steps = goal_distances.ways(World(layout="medium"), goals=5, starts=50)
    assert goal.shape == (5, 2) and start.shape == (5, 50, 2) and steps.shape == (5, 50) and (steps > 0).all()
    exact = [path_length(World(layout="medium"), g)(s) for g, s in zip(goal, start, strict=True)]
    assert np.abs(np.array(exact) / 0.25 - steps).max() < 4
    assert goal_distances.correlations(policies("PointMediumGoals-v0", spec), straight, None)[0] < 0.9


def test_values_over_the_maze_stand_where_they_belong(spec, tmp_path):
    """[rows, columns], y downwards: nothing in walls, 0 steps and the highest value at the goal."""
    over = goal_distances.over_the_maze(policies("PointMediumGoals-v0", spec), straight, None)
    maze, goal = over["maze"], np.array(over["goal"])
    free = np.array([[cell == "." for cell in row] for row in maze]).repeat(4, 0).repeat(4, 1)
    for name in ("steps", "values"):
        found = np.array(over[name], float)
        np.testing.assert_array_equal(np.isfinite(found), free)
    here = tuple(np.floor(4 * goal[::-1]).astype(int))
    assert over["steps"][here[0]][here[1]] == 0 and over["values"][here[0]][here[1]] > -0.2
    x, y = 0.25 * (np.argwhere(free)[0][::-1] + 0.5)
    np.testing.assert_allclose(np.array(over["values"], float)[free][0], -max(abs(goal - [x, y])), atol=1e-3)

    case = {
        "algorithm": "qrl",
        "dataset": "a maze",
        "run": "runs/qrl",
        "correlation": [0.9, 1.0],
        "over_the_maze": over,
    }
    assert values_picture([case], tmp_path / "values.png").startswith(b"\x89PNG")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "goal_distances.json").write_text(json.dumps({"cases": [case]}))
    assert "values-qrl.png" in (text := "\n".join(values_section("qrl", tmp_path))) and "`runs/qrl` 0.95." in text


def test_other_worlds_are_refused(spec):
    for env, other, message in (
        ("Pendulum-v1", spec, "not of a point world"),
        ("PointMediumGoals-v0", spec._replace(obs_shape=(4,)), "are not positions"),
    ):
        with pytest.raises(InputError, match=message):
            goal_distances.correlations(policies(env, other), straight, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_claims_value_is_one_number_for_a_state_and_a_goal(name, spec):
    module, path = load(name), ROOT / "results" / "claims" / f"{name}.py"
    described = importlib.util.spec_from_file_location(f"value_of_{name}", path)
    claim = importlib.util.module_from_spec(described)
    described.loader.exec_module(claim)

    args, r = small(name, "", ""), np.random.default_rng(0)
    agent = jax.eval_shape(lambda key: module.init(key, args, spec), jax.random.key(0))  # nothing of it is compiled
    agent = jax.tree.map(lambda x: np.float32(0.3 * r.normal(size=x.shape)), agent)
    obs, goal = r.normal(size=(2, 6, 2)).astype(np.float32)
    found = np.asarray(jax.jit(lambda *x: claim.value(module, *x, args))(agent, obs, goal))
    assert found.shape == (6,) and np.ptp(found) > 0


def test_a_check_reads_the_case_of_its_run(tmp_path):
    run = goals("qrl", "point-medium-stitch")
    (tmp_path / "results").mkdir()
    case = {"run": run.directory().as_posix(), "correlation": [0.9, 1.0]}
    (tmp_path / "results" / "goal_distances.json").write_text(json.dumps({"cases": [case]}))
    assert (rank_correlation(run) > 0.9).sides(Raw(tmp_path)) == (0.95, 0.9)


def test_without_a_run_there_is_nothing_to_measure(tmp_path, capsys):
    assert goal_distances.main([], tmp_path) == 2
    assert "no finished run has" in capsys.readouterr().err
