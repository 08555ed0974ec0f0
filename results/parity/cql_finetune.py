"""CQL fine-tuning beside CORL's: its update, offline and with the environment's weight of the penalty."""

from functools import partial

from results.references import ROOT, Case, module

cql = module(ROOT / "results/parity/cql.py", "parity_cql")

FILE = "algorithms/finetune/cql.py"
compare = partial(cql.compare, algorithm="cql_finetune", file=FILE, layers={"n_hidden_layers": 3})
CASES = {
    "offline": Case(
        "corl-team/CORL",
        FILE,
        partial(compare, lagrange=False),
        still=("log alpha prime",),
        note="3 actions of each kind, temperature 0.7, critics of three layers.",
    ),
    "online": Case(
        "corl-team/CORL",
        FILE,
        partial(compare, lagrange=True, online=(2.0,)),
        note="The same with the environment's weight of the penalty, the Lagrange multiplier, the largest Q of 3 next "
        "actions less their entropy, the gap bounded.",
    ),
}
