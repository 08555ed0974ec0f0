from results.checks import Claim, above, end, logged, lowest
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
        "So does cloning everything, in every episode: nothing can end above 100": end(bc) >= 100.0,
        "From the classifier's reward the policy's Q is above 100, which a reward of 1 in every step is worth": (
            logged("f_pi", classifier) > 100.0
        ),
        "That reward is below 0.05 on average": logged("reward", classifier) < 0.05,
        "Its Q is more than ten times as large as the contrastive value": (
            logged("f_pi", classifier) > 10.0 * abs(logged("f_pi", laeo))
        ),
        "Its policy is less like the data's actions than LAEO's, beyond noise": (
            above(logged("bc_loss", classifier), logged("bc_loss", laeo))
        ),
        "LAEO ends with a temperature above 0.1": logged("alpha", laeo) > 0.1,
    },
    finding="From examples of success alone LAEO ends far above learning from a classifier's reward. That arm is not "
    "at its best: its Q grows beyond all that rewards can be worth, so it has diverged, and the share of "
    "cloning, the same number in both arms, weighs far less beside so large a Q: its policy is less like the "
    "data. That this is why it fails is likely; no other share was tried. LAEO itself keeps a learned "
    "temperature here, where the released command lines have no entropy. Cloning all of the data always "
    "arrives here, and so does IQL on a constant reward: the data are good enough to clone, and nothing can "
    "end above cloning. LAEO does not always arrive.",
)
