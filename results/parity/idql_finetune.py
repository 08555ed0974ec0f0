"""IDQL fine-tuning beside the authors' code: the online updates of IDQL, and of IFQL, its flow form."""

from functools import partial

from results.references import ROOT, Case, module

idql = module(ROOT / "results/parity/idql.py", "parity_idql")
ONLINE = {"algorithm": "idql_finetune", "update": "update_online"}
PHASES = {"online_actor": True, "offline_updates": 30, "env_steps": 20}

NOTE = "With --online-actor, within a decay over 50 updates; and the action that is chosen, of 4 candidates."
CASES = {
    "IDQL": Case("philippe-eecs/IDQL", idql.LEARNER, partial(idql.diffusion, rows=2, **ONLINE, **PHASES), note=NOTE),
    "IFQL": Case("seohongpark/fql", idql.FILE, partial(idql.flow, **ONLINE), idql.DEVIATIONS, note=idql.NOTE),
}
