"""What generative models make, over the world they make it in: plans of planners over the maze, samples over the data.

  python results/plans.py RUN_DIR [RUN_DIR ...]     of these finished runs, into results/plans.json

`plans(module, policies, run) -> {panel: paths [K, T, 2]}` of the algorithm's claim file says what is drawn, in cells of
the maze, for the first lane of a run with a checkpoint in a point world. The first path of a panel is drawn darker.
Of a world of single actions of the plane paths are the actions, of one point each, over a square of eight cells.
A run that is there already is measured anew; `make report` draws results/plans.json for the page of the claim.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]
from results.grid import claim_files
from shared.densities import density_of
from shared.errors import InputError
from shared.evaluation import Policies, load_run
from shared.task import Task

CELLS = 8
"""Along the side of the square of actions from -1 to 1."""


def plans_of_actions(action: np.ndarray) -> np.ndarray:
    """Actions [K, 2] in [-1, 1] as paths [K, 1, 2] in cells."""
    return (np.asarray(action) + 1.0)[:, None] * CELLS / 2


def walls(task: Task) -> list[str]:
    """The rows of the maze, `#` a wall and `.` none.

    Raises:
      InputError: the environment is no point world.
    """
    from environments.point import World

    if density_of(task):
        return ["." * CELLS] * CELLS
    if not (task.env_spec and "point_env" in str(task.env_spec.entry_point)):
        raise InputError(f"'{task.id}' is not of a point world: there is no maze to draw on.")
    return ["".join(".#"[int(cell)] for cell in row) for row in World(**task.env_spec.kwargs).grid.wall[0]]


def case_of(policies: Policies, plans, module, run: Path, name: str) -> dict:
    """What results/plans.json holds of a run: coordinates to a hundredth of a cell."""
    maze = walls(policies.task)
    panels = {title: np.asarray(paths, float).round(2) for title, paths in plans(module, policies, run).items()}
    for title, paths in panels.items():
        if paths.ndim != 3 or paths.shape[-1] != 2 or not np.isfinite(paths).all():
            raise InputError(f"The plans '{title}' of {run} are {paths.shape} and not finite paths [K, T, 2].")
    return {"algorithm": name, "maze": maze, "panels": {title: paths.tolist() for title, paths in panels.items()}}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line -> exit status: 0, or 2 where a run has no plans to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path, help="run directories with a checkpoint")
    args = parser.parse_args(argv)
    out, claims = root / "results" / "plans.json", claim_files(root)
    cases = json.loads(out.read_text())["cases"] if out.exists() else {}
    try:
        for run in args.run:
            policies = load_run(run)
            record = json.loads((run / "run.json").read_text())
            name = record["algorithm"]
            if not hasattr(claims.get(name), "plans"):
                raise InputError(f"results/claims/{name}.py has no `plans`.")
            case = case_of(policies, claims[name].plans, sys.modules[name], run, name)
            cases[f"{name}/{run.name}"] = {"command": f"python {record['command']}", **case}
            print(f"{run}: {', '.join(case['panels'])}")
    except InputError as error:
        print(f"plans.py: {error}", file=sys.stderr)
        return 2
    lines = [f"{json.dumps(key)}: {json.dumps(case)}" for key, case in sorted(cases.items())]
    out.write_text('{"cases": {\n' + ",\n".join(lines) + "\n}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
