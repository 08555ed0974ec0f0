from results.checks import Claim, above, end, noise
from results.grid import small

SHOWN = "--demo-episodes 10"

everything = small("bc")
shown = small("bc", "--top-fraction 0.1", "top10")
true = small("iql", "--normalize-return", "true-rewards")
otr = small("otr", f"{SHOWN} --squash-beta 0 5")
ours, constant = end(otr, "squash_beta=5"), end(otr, "squash_beta=0")

CLAIM = Claim(
    title="Optimal transport to a few demonstrations gives rewards that offline RL can learn from",
    paper="OTR (arXiv 2303.13971, tables 1 and 2) claims that IQL on its labels, from 1 or 10 demonstrations, is level "
    "with IQL on the true rewards, and above cloning. Here the ten best of a hundred episodes are demonstrations.",
    runs=[everything, shown, true, otr],
    checks={
        **{
            f"OTR ends above {label}, beyond noise": above(ours, other)
            for label, other in {
                "cloning everything": end(everything),
                "cloning the demonstrations": end(shown),
                "constant rewards": constant,
            }.items()
        },
        "OTR is nearer to true rewards than to constant ones": ours > 0.5 * (end(true) + constant),
        "OTR is level with true rewards, within noise": ours + noise(ours, end(true)) > end(true),
    },
    observed={
        "Cloning the demonstrations ends more than 300 above OTR": end(shown) > ours + 300,
        "IQL on true rewards ends more than 250 above OTR": end(true) > ours + 250,
    },
    finding="IQL on OTR's labels ends far above constant rewards and above cloning everything, but not at the level "
    "of the true rewards, and cloning the ten demonstrations alone is better still: ten whole episodes of the "
    "controller show all that there is to know here.",
)
