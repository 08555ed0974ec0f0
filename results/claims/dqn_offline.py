from results.checks import Claim, above, end, noise
from results.grid import Entry

NARROW = "point-grid-expert"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000 --eval-episodes 20"
FORM = f"{SIZES} --reward-shift -1"
"""A cost of 1 for every step: what was never tried seems better than what was."""

bc = Entry("bc", NARROW, SIZES, series="claim")
dqn, quantiles, bcq, cql = (
    Entry("dqn_offline", NARROW, f"{FORM} {arguments}", name, "claim")
    for name, arguments in {
        "dqn": "--method none",
        "quantiles": "--method none --n-quantiles 32",
        "bcq": "--method bcq",
        "cql": "--method cql --cql-alpha 2",
    }.items()
)

CLAIM = Claim(
    title="Double DQN fails on a log of narrow data, with quantiles too; discrete BCQ and CQL do not",
    paper="The benchmark of discrete BCQ (arXiv 1910.01708) claims that DQN and QR-DQN fail on data of one behaviour "
    "policy, where BCQ matches or beats cloning; CQL (arXiv 2006.04779) claims more than both.",
    runs=[bc, dqn, quantiles, bcq, cql],
    checks={
        f"{NARROW}: BCQ ends above double DQN, beyond noise": above(end(bcq), end(dqn)),
        f"{NARROW}: BCQ ends above QR-DQN, beyond noise": above(end(bcq), end(quantiles)),
        f"{NARROW}: CQL ends above double DQN, beyond noise": above(end(cql), end(dqn)),
        f"{NARROW}: BCQ ends no lower than cloning, within noise": end(bcq) >= end(bc) - noise(end(bcq), end(bc)),
    },
    finding="Without a constraint all lanes choose actions that the planner never takes, whose values nothing "
    "corrects, and go nowhere, with quantiles too. Discrete BCQ and CQL reach the goal in all lanes, as cloning does: "
    "the data are of one planner, so that there is nothing to gain over it.",
)
