from results.checks import Claim, above, end, lowest
from results.grid import goals

MIXED, SHARE = "point-umaze-mixed", "--bc-share 0.05"

LEARNER = "--beta 10 --expectile 0.9 --discount 0.95 --tau 0.02 --actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3"
"""Of IQL where the goal is all that pays. Its constant reward is 0: any other tells which rows end an episode."""

bc = goals("bc", MIXED, variant="imitation")
shown = goals("bc", MIXED, "--top-fraction 0.1", "imitation-top10")
true = goals("iql", MIXED, LEARNER, "true-rewards")
constant = goals("seabo", MIXED, f"--squash-alpha 0 {LEARNER}", "constant-rewards")
laeo = goals("laeo", MIXED, SHARE)
classifier = goals("laeo", MIXED, f"{SHARE} --reward classifier", "classifier")

CLAIM = Claim(
    title="Examples of success are enough, without a reward model",
    paper="LAEO (arXiv 2307.13101) claims higher success than offline learning from a reward that was learned from the "
    "same examples, and than cloning. The best tenth of the episodes is cloned, too. IQL has true rewards, and a "
    "constant 0 as SEABO with --squash-alpha 0.",
    runs=[bc, shown, true, constant, laeo, classifier],
    checks={
        f"LAEO ends above {label}, beyond noise": above(end(laeo), end(run))
        for label, run in {"a learned classifier's reward": classifier, "cloning": bc}.items()
    },
    observed={
        "Cloning the best tenth and IQL always arrive, on true rewards or a constant one": (
            lowest(end(shown), end(true), end(constant)) > 99.0
        ),
    },
    finding="From examples of success alone LAEO ends far above learning from a classifier's reward. Cloning all of "
    "the data always arrives here, and so does IQL on a constant reward, so that the data are good enough to "
    "clone; LAEO does not always arrive.",
)
