from results.checks import Claim, above, below, end, highest, logged, noise
from results.grid import small

SHOWN = "--demo-episodes 10"

everything = small("bc")
shown = small("bc", "--top-fraction 0.1", "top10")
true = small("imputed_rewards", "--labelled-fraction 1", "true-rewards")
"""IQL whose rewards have a standard deviation of 1."""
scaled, raw = small("iql", "--normalize-return", "true-rewards"), small("iql", "", "raw")
"""The same in every other setting."""
seabo = small("seabo", f"{SHOWN} --squash-beta 0 0.5 2")
states = small("seabo", f"{SHOWN} --key ss", "ss")
ours, constant = end(seabo, "squash_beta=0.5"), end(seabo, "squash_beta=0")

CLAIM = Claim(
    title="The distance to the nearest demonstrated transition is reward enough",
    paper="SEABO (arXiv 2402.03807) claims that IQL on its labels is level with IQL on the true rewards or above it, "
    "above cloning, and as good without the demonstrations' actions. Here the ten best of a hundred episodes are "
    "demonstrations. True rewards have unit deviation, as imputed_rewards.py with all of them known.",
    runs=[everything, shown, true, scaled, raw, seabo, states],
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
    observed={
        "True rewards in their own unit make mean weights more than four times as large as those of unit deviation": (
            logged("weight", raw) > 4.0 * logged("weight", true)
        ),
        "And IQL on them ends lower, beyond noise": below(end(raw), end(true)),
        "Those scaled by the range of returns make weights more than twice as large": (
            logged("weight", scaled) > 2.0 * logged("weight", true)
        ),
        "SEABO is level with those scaled by the range of returns, within noise": (
            ours + noise(ours, end(scaled)) > end(scaled)
        ),
        "And with those in their own unit": ours + noise(ours, end(raw)) > end(raw),
        "SEABO's own weights are smaller than those of true rewards, with either temperature of its labels": (
            highest(logged("weight", seabo, "squash_beta=0.5"), logged("weight", seabo, "squash_beta=2"))
            < logged("weight", true)
        ),
        "It ends below true rewards, beyond noise, with either": (
            below(highest(ours, end(seabo, "squash_beta=2")), end(true))
        ),
        "Cloning the demonstrations ends above SEABO and above true rewards, beyond noise": (
            above(end(shown), highest(ours, end(true)))
        ),
    },
    finding="Labels by distance carry IQL far above cloning the data, from observations alone as well as with actions; "
    "with constant rewards it stays at cloning. It ends below IQL on true rewards. The scale of rewards is an "
    "inverse temperature of IQL's weights: the same true rewards in their own unit, or scaled by the range of "
    "returns, make much larger weights, and in their own unit they end lower. SEABO is level with both of "
    "these, whose lanes differ much. At which scale labels and true rewards would weigh rows alike was not "
    "tried. Cloning the demonstrations alone is better than either: they are the best episodes of the data, "
    "with their actions, and say all that is to be known here. Demonstrations that do not suffice by "
    "themselves were not tried.",
)
