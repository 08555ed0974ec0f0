from results.checks import Claim, end, noise
from results.grid import Entry

NARROW = "point-umaze-expert"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 8000 --eval-every 4000 --eval-episodes 20"

edac = Entry("edac", NARROW, f"{SIZES} --n-critics 5 --preset none", "n5", "claim")
few, many = (Entry("sac_n", NARROW, f"{SIZES} --n-critics {n}", f"n{n}", "claim") for n in (5, 20))

CLAIM = Claim(
    title="Five critics that are turned apart do the work of twenty",
    paper="EDAC (arXiv 2110.01548) claims SAC-N's results with a tenth of its critics, by turning their action "
    "gradients apart; LB-SAC (arXiv 2211.11092) that larger batches do the same.",
    runs=[edac, few, many],
    checks={
        f"{NARROW}: EDAC with 5 critics ends above SAC-N with 5, beyond noise": (
            end(edac) > end(few) + noise(end(edac), end(few))
        ),
        f"{NARROW}: EDAC with 5 critics ends no lower than SAC-N with 20, within noise": (
            end(edac) > end(many) - noise(end(edac), end(many))
        ),
    },
)
