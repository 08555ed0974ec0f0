from results.checks import Claim, above, end, noise
from results.grid import small

few = {kind: small("imputed_rewards", f"--impute {kind}", kind) for kind in ("model", "zero", "none")}
true = small("imputed_rewards", "--labelled-fraction 1", "true-rewards")
shown = small("bc", "--top-fraction 0.1", "top10")
everything = small("bc")
constant = small("otr", "--demo-episodes 10 --squash-beta 0 5")
floor = end(constant, "squash_beta=0")
ours = end(few["model"])

CLAIM = Claim(
    title="Rewards of one transition in a hundred are enough where rewards are dense",
    paper="'Offline RL with Imputed Rewards' (arXiv 2407.10839) claims that with 1 % of the rewards and a model of the "
    "others, offline RL is close to what it is with all rewards, and far above training on the 1 % alone. Nothing is "
    "demonstrated here: the best tenth of the episodes is cloned beside it. IQL on constant rewards is OTR with "
    "--squash-beta 0.",
    runs=[*few.values(), true, shown, everything, constant],
    checks={
        "Imputing ends above training on the labelled transitions alone, beyond noise": (above(ours, end(few["none"]))),
        "Imputing ends above rewards of 0 for the others, beyond noise": (above(ours, end(few["zero"]))),
        "Imputing is level with all true rewards, within noise": ours + noise(ours, end(true)) > end(true),
    },
    observed={
        "Imputing ends above cloning everything, beyond noise": above(ours, end(everything)),
        "Imputing ends above IQL on constant rewards, beyond noise": above(ours, floor),
        "Cloning the best tenth ends above imputing, beyond noise": above(end(shown), ours),
    },
    finding="With the model IQL ends where it ends with all true rewards. The rewards here are a smooth function of "
    "what is observed, and of every part of the data some are known; sparse rewards were not tried.",
)
