from results.checks import Claim, end, noise, of_task
from results.grid import goals

STITCH = "point-medium-stitch"
PLANS = "--plan-updates 5000 --latent-dim 4"

gcbc = goals("gcbc", STITCH)
tacorl = goals("tacorl", STITCH, PLANS)
cloned = goals("tacorl", STITCH, f"{PLANS} --bc-steps 1000000", "cloned")

CLAIM = Claim(
    title="Values of latent plans put short ways together, which cloned plans do not",
    paper="TACO-RL (arXiv 2209.08959) claims many times the success of Play-LMP, whose plans are cloned, and of flat "
    "policies with relabelled goals, on goals that need behaviour of several episodes.",
    runs=[gcbc, tacorl, cloned],
    checks={
        **{
            f"TACO-RL ends above {label}, beyond noise": end(tacorl) > end(run) + noise(end(tacorl), end(run))
            for label, run in {"cloned plans": cloned, "GCBC": gcbc}.items()
        },
        "The farthest goal: TACO-RL succeeds more often than cloned plans, beyond noise": (
            of_task(5, tacorl) > of_task(5, cloned) + noise(of_task(5, tacorl), of_task(5, cloned))
        ),
    },
)
