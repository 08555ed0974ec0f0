"""That algorithms learn: short runs made here. What the committed runs show is in tests/test_claims.py.

Slow; marked `learning`, and run by `make benchmark`.
"""

import csv
from collections import defaultdict

import make
import numpy as np
import pytest
from conftest import load

from results.goal_distances import correlations
from results.grid import claim_files
from shared.evaluation import load_run

pytestmark = pytest.mark.learning


def train(name: str, tmp_path, **args) -> np.ndarray:
    """[L] mean return at the last evaluation of a job run here."""
    module = load(name)
    module.main(module.Args(out=str(tmp_path / name), **args))
    rows = list(csv.DictReader((tmp_path / name / "returns.csv").open()))
    at = max(int(r["env_step"]) or int(r["update"]) for r in rows)
    returns = defaultdict(list)
    for r in rows:
        if (int(r["env_step"]) or int(r["update"])) == at:
            returns[r["lane"]].append(float(r["return"]))
    return np.array([np.mean(r) for r in returns.values()])


def test_sac_solves_pendulum(tmp_path):
    returns = train(
        "sac", tmp_path, env="Pendulum-v1", env_steps=10_000, learning_starts=1_000, seeds=4,
        hidden_dims=(128, 128), eval_every=10_000,
    )  # fmt: skip
    assert returns.mean() > -250


def test_discrete_cql_beats_cloning_on_mixed_cartpole(tmp_path):
    shared = {"dataset": "cartpole-mixed", "seeds": 4, "updates": 20_000, "eval_every": 20_000, "hidden_dims": (64, 64)}
    cql = train("cql", tmp_path, **shared, cql_alpha=1.0)
    assert cql.mean() > train("bc", tmp_path, **shared).mean()


def test_cloning_and_td3_bc_learn_from_pictures(tmp_path):
    """The dataset's mean return is 0.76, a uniform policy's near 0."""
    shared = {"dataset": "point-pixels-mixed", "random_shift": 1, "updates": 1_200, "batch_size": 64}
    shared |= {"hidden_dims": (64, 64), "eval_every": 1_200, "eval_episodes": 20}
    assert train("bc", tmp_path, **shared).mean() > 0.9
    assert train("td3_bc", tmp_path, **shared, alpha=0.5, tau=0.02).mean() > 0.9


def test_the_gap_of_cql_falls_with_alpha(tmp_path):
    """A larger penalty leaves a smaller gap between the soft maximum of Q and the data's Q."""
    module = load("cql")
    args = module.Args(
        dataset="pendulum-mixed", cql_alpha=(0.0, 1.0, 5.0), updates=3_000, log_every=500, eval_every=3_000,
        eval_episodes=1, hidden_dims=(64, 64), batch_size=64, n_actions=4, out=str(tmp_path / "cql"),
    )  # fmt: skip
    module.main(args)
    rows = list(csv.DictReader((tmp_path / "cql" / "metrics.csv").open()))[-3:]
    gaps = [float(r["gap"]) for r in rows]
    assert gaps[0] > gaps[1] > gaps[2]


def test_a_higher_expectile_gives_a_higher_value(tmp_path):
    module = load("iql")
    args = module.Args(
        dataset="pointmaze-umaze", expectile=(0.5, 0.7, 0.9), beta=10.0, updates=20_000, eval_every=20_000,
        hidden_dims=(64, 64), out=str(tmp_path / "iql"),
    )  # fmt: skip
    module.main(args)
    rows = list(csv.DictReader((tmp_path / "iql" / "metrics.csv").open()))[-3:]
    values = [float(r["v"]) for r in rows]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["gcivl", "hiql", "qrl", "dwsl", "crl"])
def test_values_rank_the_ways_through_a_maze(name, tmp_path):
    """As exact shortest paths do, from all over the maze; the committed runs are in results/goal_distances.json."""
    make.make("point-medium-navigate")
    train(
        name, tmp_path, dataset="point-medium-navigate", seeds=2, updates=20_000, eval_every=20_000, eval_episodes=1,
        hidden_dims=(64, 64), batch_size=256, **({"latent_dim": 64} if name in ("qrl", "crl") else {}),
    )  # fmt: skip
    found = correlations(load_run(tmp_path / name), claim_files()[name].value, load(name))
    assert found.mean() > 0.9
