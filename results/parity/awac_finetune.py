"""AWAC fine-tuning beside CORL's: its update, the same offline and online."""

from functools import partial

from results.references import ROOT, Case, module

awac = module(ROOT / "results/parity/awac.py", "parity_awac")

FILE = "algorithms/finetune/awac.py"
CASES = {"": Case("corl-team/CORL", FILE, partial(awac.compare, algorithm="awac_finetune", file=FILE))}
