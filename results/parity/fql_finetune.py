"""FQL fine-tuning beside the authors' code: its update, the same offline and online."""

from results.references import ROOT, Case, module

fql = module(ROOT / "results/parity/fql.py", "parity_fql")


def compare(checkout, undo, **setting):
    yield from fql.compare(checkout, undo, algorithm="fql_finetune", **setting)


CASES = {"": Case("seohongpark/fql", fql.FILE, compare, fql.DEVIATIONS)}
