"""HIQL beside OGBench's own code."""

import jax.numpy as jnp

from results.ogbench_references import DEVIATION, REFERENCE, compare, nth
from results.references import Case

NETWORKS = {
    "high_actor": ("high_actor", nth(0)),
    "low_actor": ("low_actor", nth(1)),
    "representation": ("goal_rep", nth(2, 0)),
    "value": ("value", nth(2, 1)),
}
NAMES = ("high_actor", "low_actor", "value")
LOSSES = {name: (f"{name}_loss",) for name in NAMES}
THEIRS = {name: (f"{name}/{'value' if name == 'value' else 'actor'}_loss",) for name in NAMES}
SIZES = {"representation_dim": 4}


def batch_of(module, rows):
    own = {name: jnp.asarray(rows[name]) for name in ("obs", "action", "next_obs", "goal", "terminal", "low_goal")}
    later = {"subgoal_obs": jnp.asarray(rows["subgoal"]), "subgoal": jnp.asarray(rows["subgoal"])}
    goals = {"high_goal": jnp.asarray(rows["actor_goal"]), "reward": own["terminal"] - 1.0}
    return module.HierarchicalBatch(**own, **goals, **later)


CASES = {
    "": Case(
        REFERENCE,
        "impls/agents/hiql.py",
        lambda c, u: compare(
            c, u, "hiql", NETWORKS, LOSSES, THEIRS, "value", batch_of, settings=SIZES, config={"rep_dim": 4}
        ),
        DEVIATION,
    )
}
