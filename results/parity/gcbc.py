"""GCBC beside OGBench's own code."""

from results.ogbench_references import REFERENCE, compare
from results.references import Case

CASES = {
    "": Case(
        REFERENCE,
        "impls/agents/gcbc.py",
        lambda c, u: compare(
            c, u, "gcbc", {"actor": ("actor", lambda mu: mu)}, {"actor": ("actor_loss",)},
            {"actor": ("actor/actor_loss",)},
        ),
    )
}  # fmt: skip
