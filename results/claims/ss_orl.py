from results.checks import Claim, above, end, logged, noise
from results.grid import small

SIZES = "--inverse-updates 20000 --inverse-lr 1e-3 --inverse-batch 256 --inverse-hidden-dims 64 64"

ours = small("ss_orl", SIZES)
alone = small("ss_orl", "--unlabelled none", "labelled-alone")
shown = small("ss_orl", "--unlabelled none --beta 0", "labelled-cloned")
everything = small("bc")
true = small("iql", "", "raw")
constant = small("otr", "--demo-episodes 10 --squash-beta 0 5")
floor = end(constant, "squash_beta=0")

CLAIM = Claim(
    title="A tenth of the trajectories with actions, of the worse half, is enough",
    paper="SS-ORL (arXiv 2210.06518) claims that with actions of 10 % of the trajectories, of low returns, offline RL "
    "is close to what it is with all actions, and far above training on those trajectories alone. What is shown are "
    "these trajectories, which are cloned beside it. IQL on constant rewards is OTR with --squash-beta 0.",
    runs=[ours, alone, shown, everything, true, constant],
    checks={
        "SS-ORL ends above training on the labelled trajectories alone, beyond noise": (above(end(ours), end(alone))),
        "SS-ORL is level with all true actions, within noise": end(ours) + noise(end(ours), end(true)) > end(true),
    },
    observed={
        "Its labels explain less than half of the variance of the true actions": logged("label_r2", ours) < 0.5,
        "It ends above cloning everything, beyond noise": above(end(ours), end(everything)),
        "It ends above IQL on constant rewards, beyond noise": above(end(ours), floor),
    },
    finding="More is learned than from the labelled trajectories alone, but far less than from all true actions. The "
    "labels of the other trajectories explain little of what was done there. What makes them has seen only "
    "controllers of the worse half; that this is the cause is likely, but no other share or choice of "
    "trajectories was tried.",
)
