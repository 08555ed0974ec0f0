"""QRL beside OGBench's own code."""

import jax.numpy as jnp

from results.jax_references import read, write
from results.ogbench_references import REFERENCE, compare, nth
from results.references import Case

FILE = "impls/agents/qrl.py"
SIZES = {"latent_dim": 16}


def reader(tree):
    """Of a network, or of a scalar."""
    return [tree] if hasattr(tree, "shape") else read(tree)


def writer(tree, arrays):
    return jnp.asarray(arrays[0]) if hasattr(tree, "shape") else write(tree, arrays)


def run(checkout, undo, objective, form, settings, config):
    networks = {
        "actor": ("actor", nth(0)),
        "encoder": ("value/phi", nth(1, 0)),
        "log_multiplier": ("lam/log_value", nth(2)),
    }
    if form == "iqe":
        networks["mixing"] = ("value/alpha/value", nth(1, 1))
    losses, theirs = {"actor": ("actor_loss",)}, {"actor": ("actor/actor_loss",)}
    losses["value"], theirs["value"] = ("value_loss",), ("value/value_loss",)
    if objective == "ddpg_bc":
        networks["dynamics"] = ("dynamics", nth(1, 2))
        theirs["value"] = ("value/value_loss", "dynamics/dynamics_loss")
    settings = {"actor_objective": objective, "distance": form, **SIZES, **settings}
    config = {"actor_loss": objective.replace("_", ""), "quasimetric_type": form, **SIZES, **config}
    shapes = {"reader": reader, "writer": writer}
    return compare(checkout, undo, "qrl", networks, losses, theirs, settings=settings, config=config, **shapes)


CASES = {
    "": Case(REFERENCE, FILE, lambda c, u: run(c, u, "ddpg_bc", "iqe", {"bc_weight": 0.003}, {"alpha": 0.003})),
    "mrn": Case(REFERENCE, FILE, lambda c, u: run(c, u, "ddpg_bc", "mrn", {"bc_weight": 0.003}, {"alpha": 0.003})),
    "awr": Case(REFERENCE, FILE, lambda c, u: run(c, u, "awr", "iqe", {"beta": 3.0}, {"alpha": 3.0})),
}
