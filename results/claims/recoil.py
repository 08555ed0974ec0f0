from results.checks import Claim, above, course, end, logged, noise
from results.grid import small

SIZES = "--step-cost 0.1 --gumbel-temperature 0.3 --beta 30"

ours = small("recoil", SIZES)
ten = small("recoil", f"{SIZES} --demo-episodes 10", "ten")
everything = small("bc")
shown = small("bc", "--top-fraction 0.01", "top1")
true = small("iql", "--normalize-return", "true-rewards")
constant = small("otr", "--demo-episodes 10 --squash-beta 0 5")
floor = end(constant, "squash_beta=0")

CLAIM = Claim(
    title="What one demonstration shows is found again in mixed data, without a discriminator",
    paper="ReCOIL (arXiv 2302.08560, ICLR 2024) claims near-expert returns from one demonstration and much data of "
    "random actions in which some of the expert's episodes are hidden, where cloning either fails. Here the data are "
    "of four controllers, a quarter of one that swings up and balances; the best of a hundred episodes is shown. "
    "IQL on constant rewards is OTR with --squash-beta 0.",
    runs=[ours, ten, everything, shown, true, constant],
    checks={
        **{
            f"ReCOIL ends above {label}, beyond noise": above(end(ours), other)
            for label, other in {
                "cloning everything": end(everything),
                "cloning the demonstration": end(shown),
            }.items()
        },
        "Q follows the true returns of episodes: rank correlation above 0.5": logged("q_correlation", ours) > 0.5,
        "ReCOIL is level with IQL on true rewards, within noise": end(ours) + noise(end(ours), end(true)) > end(true),
    },
    observed={
        "IQL on true rewards ends above ReCOIL, beyond noise": above(end(true), end(ours)),
        "With ten demonstrations, too": above(end(true), end(ten)),
        "It ends above IQL on constant rewards, beyond noise": above(end(ours), floor),
        "With ten demonstrations it rises in the second half of the run": end(ten) > course(ten)[0],
        "Demonstrated pairs come near their bound of 10": logged("q_demo", ours) > 9.0,
        "The data are worth far less on average": logged("q", ours) < 2.0,
        "With ten demonstrations they are worth more": logged("q", ten) > logged("q", ours) + 2.0,
    },
    finding="ReCOIL ends far above cloning everything, which averages four controllers, and above cloning the "
    "demonstration, which begins upright and shows nothing of the swing: what leads there is found in the "
    "data by Bellman's equation. Its Q orders the data's episodes nearly as their true returns do, of which "
    "it knows none. It stays below IQL on the true rewards. That one demonstration is few is not the whole "
    "cause: with ten, of the swing too, it is below IQL as well when the budget ends, and still rises. Their "
    "states are all over the data, whose Q is higher then. Longer runs were not tried. The step's cost, the "
    "temperature and beta are not the released ones, which are for a hundred times as many updates: Q comes to "
    "its bounds within these. IQL has its defaults.",
)
