from results.checks import Claim, end, noise
from results.grid import goals

MIXED, SHARE = "point-umaze-mixed", "--bc-share 0.05"

bc = goals("bc", MIXED, variant="imitation")
laeo = goals("laeo", MIXED, SHARE)
classifier = goals("laeo", MIXED, f"{SHARE} --reward classifier", "classifier")

CLAIM = Claim(
    title="Examples of success are enough, without a reward model",
    paper="LAEO (arXiv 2307.13101) claims higher success than offline learning from a reward that was learned from the "
    "same examples, and than cloning.",
    runs=[bc, laeo, classifier],
    checks={
        f"LAEO ends above {label}, beyond noise": end(laeo) > end(run) + noise(end(laeo), end(run))
        for label, run in {"a learned classifier's reward": classifier, "cloning": bc}.items()
    },
    finding="From examples of success alone LAEO ends far above learning from a classifier's reward. Cloning all of "
    "the data always arrives here, which LAEO does not.",
)
