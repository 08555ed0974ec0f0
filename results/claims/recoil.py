from results.checks import Claim, end, logged, noise
from results.grid import small

SIZES = "--step-cost 0.1 --gumbel-temperature 0.3 --beta 30"

ours = small("recoil", SIZES)
ten = small("recoil", f"{SIZES} --demo-episodes 10", "ten")
everything = small("bc")
shown = small("bc", "--top-fraction 0.01", "top1")
true = small("iql", "--normalize-return", "true-rewards")

CLAIM = Claim(
    title="What one demonstration shows is found again in mixed data, without a discriminator",
    paper="ReCOIL (arXiv 2302.08560, ICLR 2024) claims near-expert returns from one demonstration and much data of "
    "random actions in which some of the expert's episodes are hidden, where cloning either fails. Here the data are "
    "of four controllers, a quarter of one that swings up and balances; the best of a hundred episodes is shown.",
    runs=[ours, ten, everything, shown, true],
    checks={
        **{
            f"ReCOIL ends above {label}, beyond noise": end(ours) > other + noise(end(ours), other)
            for label, other in {
                "cloning everything": end(everything),
                "cloning the demonstration": end(shown),
            }.items()
        },
        "Q follows the true returns of episodes: rank correlation above 0.5": logged("q_correlation", ours) > 0.5,
        "ReCOIL is level with IQL on true rewards, within noise": end(ours) + noise(end(ours), end(true)) > end(true),
    },
    observed={
        "IQL on true rewards ends above ReCOIL, beyond noise": end(true) > end(ours) + noise(end(true), end(ours)),
        "Demonstrated pairs come within a tenth of their bound of 10": logged("q_demo", ours) > 9.0,
        "The data are worth far less on average": logged("q", ours) < 2.0,
    },
    finding="",
)
