"""IQL fine-tuning beside the authors' code: its update, the same offline and online."""

from results.references import ROOT, Case, module

iql = module(ROOT / "results/parity/iql.py", "parity_iql")


def compare(checkout, undo):
    yield from iql.compare(checkout, undo, algorithm="iql_finetune", schedule=None, expectile=0.9, beta=10.0)


CASES = {"": Case(iql.REFERENCE, iql.FILE, compare)}
