"""GCIVL beside OGBench's own code."""

from results.ogbench_references import DEVIATION, REFERENCE, compare, nth
from results.references import Case

NETWORKS = {"actor": ("actor", nth(0)), "value": ("value", nth(1))}
LOSSES = {"actor": ("actor_loss",), "value": ("value_loss",)}
THEIRS = {"actor": ("actor/actor_loss",), "value": ("value/value_loss",)}

CASES = {
    "": Case(
        REFERENCE,
        "impls/agents/gcivl.py",
        lambda c, u: compare(c, u, "gcivl", NETWORKS, LOSSES, THEIRS, "value"),
        DEVIATION,
    )
}
