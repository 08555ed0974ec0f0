"""How well goal-conditioned values rank the ways to a goal, against exact shortest paths of point worlds.

  python results/goal_distances.py                      every finished run of algorithms whose claim file has a `value`
  python results/goal_distances.py --algorithms qrl     of these alone; the cases of others stay in the file

For goals drawn from the world's lattice: Spearman's rank correlation, over starts, of minus the value with the fewest
steps there are (breadth-first search, environments/point_truth.py); mean over the goals, of each lane's last
checkpoint. 1 is the right order everywhere. And of the first lane, for its claim's page, the values over the maze for
the goal of the world's last task, beside the fewest steps. `value(module, agent, obs, goal, args) -> [B]` of a claim
file says what an algorithm's value is; higher is nearer. Writes results/goal_distances.json.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]
from results.grid import claim_files, grid
from results.plans import walls
from shared.errors import InputError
from shared.evaluation import Policies, load_run
from shared.record import status_of
from shared.task import Task

GOALS, STARTS = 30, 200
PER_CELL = 4
"""Values along the side of a cell in a picture."""


def ways(world, goals: int = GOALS, starts: int = STARTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Goals [K, 2], starts [K, S, 2] from which they can be reached, and the fewest steps [K, S]; always the same."""
    from environments.point_truth import lattice, steps_to

    table, random = lattice(world), np.random.default_rng(0)
    chosen = table.points[random.choice(len(table.points), goals, replace=False)]
    found = [], []
    for goal in chosen:
        steps = steps_to(table, goal)
        start = random.choice(np.flatnonzero(np.isfinite(steps) & (steps > 0)), starts)
        found[0].append(table.points[start])
        found[1].append(steps[start])
    return chosen, np.array(found[0]), np.array(found[1])


def world_of(task: Task):
    """The point world that a task is of.

    Raises:
      InputError: it is none, or states and goals are not positions in it.
    """
    from environments.point import World

    if not (task.env_spec and "point_env" in str(task.env_spec.entry_point)):
        raise InputError(f"'{task.id}' is not of a point world: there are no exact distances.")
    if task.spec.obs_shape != (2,) or task.spec.goal_shape != (2,):
        raise InputError(f"States and goals of '{task.id}' are not positions.")
    return World(**task.env_spec.kwargs)


def values(policies: Policies, value: Callable, module, obs: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """[L, N] of states and goals [N, 2]."""
    obs, goals = obs.astype(np.float32), goals.astype(np.float32)
    evaluate = jax.jit(jax.vmap(lambda agent, args: value(module, agent, obs, goals, args)))
    return np.asarray(evaluate(policies.agent, policies.args))[: len(policies.settings)]


def correlations(policies: Policies, value: Callable, module) -> np.ndarray:
    """[L] mean over goals of the rank correlation of steps and minus the value.

    Raises:
      InputError: the run is not of a point world whose states and goals are positions.
    """
    goal, start, steps = ways(world_of(policies.task))
    goals = np.repeat(goal, start.shape[1], axis=0)
    lanes = values(policies, value, module, start.reshape(-1, 2), goals).reshape(-1, *steps.shape)
    return np.array([np.mean([spearmanr(-v, s).statistic for v, s in zip(lane, steps, strict=True)]) for lane in lanes])


def over_the_maze(policies: Policies, value: Callable, module) -> dict:
    """{maze, goal, steps, values}: of the first lane, [rows, columns], PER_CELL to a cell, None where nobody can be."""
    from environments.point_truth import lattice, steps_to

    table, maze = lattice(world_of(policies.task)), walls(policies.task)
    goal = np.asarray(policies.task.make_env().unwrapped.task_infos[-1]["goal"], float)
    y, x = (np.indices((len(maze) * PER_CELL, len(maze[0]) * PER_CELL)) + 0.5) / PER_CELL
    points = np.stack([x, y], -1)
    near = table.nearest(points)
    steps = np.where(near >= 0, steps_to(table, goal)[near], np.inf)
    flat = points.reshape(-1, 2)
    found = values(policies, value, module, flat, np.broadcast_to(goal, flat.shape))[0].reshape(near.shape)
    there = np.isfinite(steps)

    def rows(numbers: np.ndarray) -> list:
        return [[float(f"{v:.4g}") if ok else None for v, ok in zip(*row, strict=True)] for row in zip(numbers, there)]

    return {"maze": maze, "goal": goal.round(2).tolist(), "steps": rows(steps), "values": rows(found)}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line -> exit status: 0, or 2 where no run is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=[], help="of these alone; all by default")
    args = parser.parse_args(argv)
    out = root / "results" / "goal_distances.json"
    cases = {case["run"]: case for case in json.loads(out.read_text())["cases"]} if out.exists() else {}
    measured = 0
    for name, claim in claim_files(root).items():
        if not hasattr(claim, "value") or args.algorithms and name not in args.algorithms:
            continue
        for run in (run for run in grid(root) if run.algorithm == name and run.series == "claim"):
            directory = root / run.directory()
            state = directory / "checkpoint" / "state.npz"
            if not state.exists() or status_of(directory) != "finished":
                continue
            policies = load_run(directory)
            found = correlations(policies, claim.value, sys.modules[name])
            case = {"algorithm": name, "dataset": run.dataset, "run": run.directory().as_posix()}
            over = over_the_maze(policies, claim.value, sys.modules[name])
            cases[case["run"]] = {**case, "correlation": found.round(4).tolist(), "over_the_maze": over}
            print(f"{case['run']}: {found.mean():.3f} ({found.min():.3f} to {found.max():.3f})", flush=True)
            measured += 1
    if not measured:
        print(
            "goal_distances.py: no finished run has a checkpoint; results/benchmark.py makes them.",
            file=sys.stderr,
        )
        return 2
    record = {"command": " ".join(["results/goal_distances.py", *sys.argv[1:]]), "goals": GOALS, "starts": STARTS}
    lines = ",\n".join(json.dumps(cases[run]) for run in sorted(cases))
    out.write_text(f'{json.dumps(record)[:-1]}, "cases": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
