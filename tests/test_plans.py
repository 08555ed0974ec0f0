"""Pictures of plans and samples: what is drawn is in the units of the world, and stands in the page of the claim."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from jobs import small

from results import plans
from results.checks import Raw
from results.grid import ROOT, claim_files, claims
from results.pages.claims import claim_page, plans_section
from results.pictures import digest_in
from results.plan_pictures import plans_picture
from results.raw import read_plans
from shared.errors import InputError
from shared.task import Spec, Task, registered_env

SQUARE = {"maze": ["###", "#.#", "###"], "panels": {"one": [[[1.2, 1.2], [1.8, 1.8]], [[1.5, 1.5], [1.5, 1.1]]]}}


def policies(name: str, env: str, spec: Spec, **init) -> SimpleNamespace:
    """Two lanes of an untrained agent, whose networks are random numbers; nothing of it is compiled."""
    module, r, args = load(name), np.random.default_rng(0), small(name, "", "")
    agent = jax.eval_shape(lambda key: module.init(key, args, spec, **init), jax.random.key(0))
    agent = jax.tree.map(lambda x: np.float32(0.3 * r.normal(size=(2, *x.shape))), agent)
    task = Task("points", "", spec, registered_env(env), obs_mean=np.float32([2.0] * 4), obs_std=np.float32([0.5] * 4))
    return SimpleNamespace(task=task, settings=[{"seed": 0}, {"seed": 1}], agent=agent, args=args)


def drawn_of(name: str, found: SimpleNamespace, run: Path) -> dict:
    """The case, as JSON has it."""
    found.args = jax.tree.map(lambda x: np.stack([x, x]), found.args)
    return json.loads(json.dumps(plans.case_of(found, claim_files()[name].plans, load(name), run, name)))


def test_adaptdiffusers_plans_lead_from_start_to_goal(tmp_path):
    spec = Spec((2,), 2, False, (-1.0,) * 2, (1.0,) * 2, goal_shape=(2,))
    found = policies("adaptdiffuser", "PointMediumGoals-v0", spec)
    low, high = np.float32([-1, -1, 0, 0]), np.float32([1, 1, 8, 9])
    found.agent = found.agent.replace(low=np.stack([low, low]), high=np.stack([high, high]))
    case = drawn_of("adaptdiffuser", found, tmp_path / "a-run")
    assert case["maze"][0] == "########" and case["maze"][1] == "#..#...#"
    tasks = found.task.make_env().unwrapped.task_infos
    assert [*case["panels"]] == ["a-run: task 1", "a-run: task 2", "a-run: task 3"]
    for paths, task in zip(case["panels"].values(), tasks, strict=False):
        assert np.shape(paths) == (8, 16, 2)
        np.testing.assert_allclose(np.array(paths)[:, 0], np.tile(task["start"], (8, 1)), atol=0.006)
        np.testing.assert_allclose(np.array(paths)[:, -1], np.tile(task["goal"], (8, 1)), atol=0.006)
        assert np.ptp(np.array(paths)[:, 1:-1], axis=0).min() > 0


def test_ldcqs_ends_begin_with_the_plan_that_q_prefers(tmp_path):
    spec = Spec((4,), 2, False, (-1.0,) * 2, (1.0,) * 2)
    found = policies("ldcq", "PointUMaze-v0", spec)
    case = drawn_of("ldcq", found, tmp_path / "b-run")
    paths = np.array(case["panels"]["b-run"])
    state = found.task.make_env().reset(seed=0)[0]
    assert paths.shape == (24, 2, 2) and np.ptp(paths[:, 1], axis=0).min() > 0
    np.testing.assert_allclose(paths[:, 0], np.tile(state[:2], (24, 1)), atol=0.006)
    agent, args = jax.tree.map(lambda x: x[0], (found.agent, found.args))
    module, obs = load("ldcq"), np.float32((state - 2.0) / 0.5)[None]
    plan, q = jax.jit(module.candidates, static_argnums=2)(agent, obs, 24, jax.random.key(0), args)
    z = plan[np.asarray(q).min(0)[:, 0].argmax(), 0] * agent.plan_std + agent.plan_mean
    end, _ = agent.nets.end_decoder.apply(agent.plans[3], obs[0], z)
    np.testing.assert_allclose(paths[0, 1], np.asarray(end)[:2] * 0.5 + 2.0, atol=0.02)


def test_synthers_samples_are_drawn_beside_the_data(tmp_path):
    run, r = tmp_path / "c-run", np.random.default_rng(0)
    (run / "samples").mkdir(parents=True)
    obs = r.uniform(1, 4, (200, 4))
    np.savez(run / "samples" / "lane-0.npz", observations=obs, next_observations=obs + 0.25)
    spec = Spec((2,), 2, False, (-1.0,) * 2, (1.0,) * 2)
    task = Task(write_goals(tmp_path / "goals.npz"), "", spec, registered_env("PointUMaze-v0"))
    panels = claim_files()["synther"].plans(load("synther"), SimpleNamespace(task=task), run)
    assert [*panels] == ["c-run: samples", "c-run: data"]
    samples, data = panels.values()
    assert samples.shape == data.shape == (150, 2, 2)
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 0.25)
    with np.load(task.id) as file:
        known = {tuple(row) for row in np.hstack([file["observations"], file["next_observations"]]).round(5)}
    assert {tuple(row) for row in data.reshape(150, 4).round(5)} <= known


def test_synthers_actions_are_drawn_over_their_square(tmp_path):
    run, actions = tmp_path / "toy-run", np.float32([[-1, 1], [0, 0.5]])
    (run / "samples").mkdir(parents=True)
    zero = np.zeros((2, 1), np.float32)
    np.savez(run / "samples" / "lane-0.npz", actions=actions, observations=zero, next_observations=zero)
    task = Task(write_goals(tmp_path / "goals.npz"), "", Spec((1,), 2, False), registered_env("PlaneBandit-v0"))
    assert plans.walls(task) == ["........"] * 8
    panels = claim_files()["synther"].plans(load("synther"), SimpleNamespace(task=task), run)
    samples, data = panels.values()
    np.testing.assert_allclose(samples, [[[0, 8]], [[4, 6]]])
    assert data.shape == (300, 1, 2)
    path, case = tmp_path / "x.png", {"maze": plans.walls(task), "panels": {"a": samples.tolist()}}
    assert plans_picture([case], path)[:4] == b"\x89PNG"


def test_plans_are_drawn_into_the_page_of_the_claim(tmp_path):
    (tmp_path / "results").mkdir()
    cases = {"ldcq/x": {"command": "python x.py", "algorithm": "ldcq", **SQUARE}}
    (tmp_path / "results" / "plans.json").write_text(json.dumps({"cases": cases}))
    page = claim_page("ldcq", claims()["ldcq"], Raw(tmp_path))
    assert "](../curves/plans-ldcq.png)" in page and "    python x.py" in page
    assert not plans_section("dwm", tmp_path) and not plans_section("ldcq", tmp_path / "elsewhere")
    path = tmp_path / "plans.png"
    path.write_bytes(drawing := plans_picture(read_plans(tmp_path)["ldcq"], path))
    assert drawing[:4] == b"\x89PNG" and plans_picture(read_plans(tmp_path)["ldcq"], path) == drawing
    other = [{**SQUARE, "maze": ["####", "#..#", "####"]}]
    assert digest_in(plans_picture(other, path)) != digest_in(drawing)


@pytest.mark.parametrize("name", read_plans(ROOT))
def test_paths_of_the_raw_file_are_whole(name):
    for case in read_plans(ROOT)[name]:
        assert case["command"].startswith("python algorithms/") and {*"".join(case["maze"])} <= {"#", "."}
        for paths in case["panels"].values():
            assert np.ndim(paths) == 3 and np.shape(paths)[-1] == 2


def test_other_worlds_and_shapes_are_refused(tmp_path, capsys):
    spec = Spec((3,), 1, False, (-1.0,), (1.0,))
    task = Task("pendulum", "", spec, registered_env("Pendulum-v1"))
    with pytest.raises(InputError, match="there is no maze"):
        plans.walls(task)
    maze = SimpleNamespace(task=Task("points", "", spec, registered_env("PointUMaze-v0")))
    with pytest.raises(InputError, match=r"\(3, 2\) and not finite paths"):
        plans.case_of(maze, lambda *_: {"one": np.zeros((3, 2))}, None, tmp_path, "ldcq")
    assert plans.main([str(tmp_path)], tmp_path) == 2
    assert "There is no run with a checkpoint" in capsys.readouterr().err
