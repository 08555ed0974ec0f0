"""CRL beside OGBench's own code."""

from results.jax_references import read, write
from results.ogbench_references import REFERENCE, compare, nth
from results.references import Case

FILE = "impls/agents/crl.py"
SIZES = {"latent_dim": 8}


def reader(tree):
    """Of a pair (phi, psi) on either side, or of an actor."""
    if isinstance(tree, tuple):
        return [*read(tree[0]), *read(tree[1])]
    return [*read(tree["phi"]), *read(tree["psi"])] if "phi" in tree else read(tree)


def writer(tree, arrays):
    if "phi" not in tree:
        return write(tree, arrays)
    half = len(arrays) // 2
    return {"phi": write(tree["phi"], arrays[:half]), "psi": write(tree["psi"], arrays[half:])}


def run(checkout, undo, objective, settings, config):
    networks = {"actor": ("actor", nth(0)), "critic": ("critic", nth(1))}
    losses = {"actor": ("actor_loss",), "critic": ("critic_loss",)}
    theirs = {"actor": ("actor/actor_loss",), "critic": ("critic/contrastive_loss",)}
    if objective == "awr":
        networks["value"] = ("value", nth(2))
        losses["value"], theirs["value"] = ("value_loss",), ("value/contrastive_loss",)
    settings = {"actor_objective": objective, **SIZES, **settings}
    config = {"actor_loss": objective.replace("_", ""), **SIZES, **config}
    shapes = {"reader": reader, "writer": writer}
    return compare(checkout, undo, "crl", networks, losses, theirs, settings=settings, config=config, **shapes)


CASES = {
    "": Case(REFERENCE, FILE, lambda c, u: run(c, u, "ddpg_bc", {"bc_weight": 0.1}, {"alpha": 0.1})),
    "awr": Case(REFERENCE, FILE, lambda c, u: run(c, u, "awr", {"beta": 3.0}, {"alpha": 3.0})),
}
