"""GCIQL beside OGBench's own code."""

from results.ogbench_references import DEVIATION, REFERENCE, compare, nth
from results.references import Case

FILE = "impls/agents/gciql.py"
NETWORKS = {"actor": ("actor", nth(0)), "value": ("value", nth(1)), "critic": ("critic", nth(2))}
LOSSES = {"actor": ("actor_loss",), "value": ("value_loss",), "critic": ("critic_loss",)}
THEIRS = {"actor": ("actor/actor_loss",), "value": ("value/value_loss",), "critic": ("critic/critic_loss",)}


def run(checkout, undo, objective, settings, config):
    settings = {"actor_objective": objective, **settings}
    config = {"actor_loss": objective.replace("_", ""), **config}
    return compare(checkout, undo, "gciql", NETWORKS, LOSSES, THEIRS, "critic", settings=settings, config=config)


CASES = {
    "": Case(REFERENCE, FILE, lambda c, u: run(c, u, "ddpg_bc", {"bc_weight": 0.3}, {"alpha": 0.3}), DEVIATION),
    "awr": Case(REFERENCE, FILE, lambda c, u: run(c, u, "awr", {"beta": 3.0}, {"alpha": 3.0}), DEVIATION),
}
