from results.checks import Claim, end, noise
from results.grid import small

SIZES = "--inverse-updates 20000 --inverse-lr 1e-3 --inverse-batch 256 --inverse-hidden-dims 64 64"

ours = small("ss_orl", SIZES)
alone = small("ss_orl", "--unlabelled none", "labelled-alone")
true = small("iql", "", "raw")

CLAIM = Claim(
    title="A tenth of the trajectories with actions, of the worse half, is enough",
    paper="SS-ORL (arXiv 2210.06518) claims that with actions of 10 % of the trajectories, of low returns, offline RL "
    "is close to what it is with all actions, and far above training on those trajectories alone.",
    runs=[ours, alone, true],
    checks={
        "SS-ORL ends above training on the labelled trajectories alone, beyond noise": (
            end(ours) > end(alone) + noise(end(ours), end(alone))
        ),
        "SS-ORL is level with all true actions, within noise": end(ours) + noise(end(ours), end(true)) > end(true),
    },
)
