from results.checks import Claim, end, logged, noise
from results.grid import Entry

PARTIAL = "point-fourrooms-partial"
SIZES = (
    "--seeds 8 --dynamics exact --model-updates 0 --batch-size 128 --hidden-dims 64 64 --updates 6000 "
    "--rollout-batch 1000 --eval-every 3000 --rollout-steps 5"
)

two = Entry("ravl", PARTIAL, f"{SIZES} --n-critics 2 --diversity 0", "sac", "claim")
ravl = Entry("ravl", PARTIAL, f"{SIZES} --n-critics 10 --diversity 1", "n10", "claim")

CLAIM = Claim(
    title="Values explode at the edge of reach of a perfect model, and many critics cure it",
    paper="RAVL (arXiv 2402.12527) claims that model-based methods fail by values of states that cut rollouts only "
    "reach in their last step: with the true dynamics in the model's place plain SAC's values explode, RAVL's do not.",
    runs=[two, ravl],
    checks={
        f"{PARTIAL}: two critics make more of the edge than of where rollouts begin, RAVL less so, beyond noise": (
            logged("q_edge", two) - logged("q_start", two)
            > logged("q_edge", ravl)
            - logged("q_start", ravl)
            + noise(logged("q_edge", two), logged("q_start", two), logged("q_edge", ravl), logged("q_start", ravl))
        ),
        f"{PARTIAL}: two critics' values are higher at the edge, beyond noise": (
            logged("q_edge", two) > logged("q_edge", ravl) + noise(logged("q_edge", two), logged("q_edge", ravl))
        ),
        f"{PARTIAL}: RAVL ends above two critics, beyond noise": end(ravl) > end(two) + noise(end(ravl), end(two)),
    },
    finding="With the true dynamics in the model's place the values of two critics are higher at the edge of what "
    "rollouts reach than those of RAVL, and are higher there against where rollouts begin. In this budget "
    "neither reaches the goal, so that it does not show what the values do to policies.",
)
