from results.checks import Claim, above, end, noise
from results.grid import small

SHOWN = "--demo-episodes 10"

everything = small("bc")
shown = small("bc", "--top-fraction 0.1", "top10")
true = small("iql", "--normalize-return", "true-rewards")
seabo = small("seabo", f"{SHOWN} --squash-beta 0 0.5 2")
states = small("seabo", f"{SHOWN} --key ss", "ss")
ours, constant = end(seabo, "squash_beta=0.5"), end(seabo, "squash_beta=0")

CLAIM = Claim(
    title="The distance to the nearest demonstrated transition is reward enough",
    paper="SEABO (arXiv 2402.03807) claims that IQL on its labels is level with IQL on the true rewards or above it, "
    "above cloning, and as good without the demonstrations' actions. Here the ten best of a hundred episodes are "
    "demonstrations.",
    runs=[everything, shown, true, seabo, states],
    checks={
        **{
            f"SEABO ends above {label}, beyond noise": above(ours, other)
            for label, other in {
                "cloning everything": end(everything),
                "cloning the demonstrations": end(shown),
                "constant rewards": constant,
            }.items()
        },
        "SEABO is level with true rewards, within noise": ours + noise(ours, end(true)) > end(true),
        "Observations alone are enough: level with (s, a, s'), within noise": end(states) + noise(end(states), ours)
        > ours,
    },
    finding="Labels by distance carry IQL to what true rewards teach, from observations alone as well as with actions; "
    "with constant rewards it stays at cloning. Cloning the demonstrations alone is better than either: they "
    "are the best episodes of the data, with their actions, and say all that is to be known here. "
    "Demonstrations that do not suffice by themselves were not tried.",
)
