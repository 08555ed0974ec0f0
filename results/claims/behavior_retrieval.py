from results.checks import Claim, above, below, end, highest, logged
from results.grid import small

MIXED = "--more-data point-umaze-random --max-episode-steps 21"
PRIOR = f"{MIXED} --demos point-umaze-demos --demo-episodes 1"
DATA = "point-umaze-expert"
LEARNER = "--expectile 0.9 --discount 0.95 --tau 0.02 --actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3"
"""Of IQL where the goal is all that pays. Its constant reward is 0: any other tells which rows end an episode."""
SIZES = "--embed-updates 5000 --embed-hidden-dims 64 64"


def retrieval(more: str, variant: str):
    return small("behavior_retrieval", f"{PRIOR} {SIZES} {more}", variant, DATA, 5_000)


ours = retrieval("--threshold 0 0.9", "retrieved")
alone = retrieval("--task-share 1", "demos")
TRUE = f"{MIXED} --impute none --labelled-fraction 1 --no-unit-reward-std {LEARNER} --beta 10 100"
true = small("imputed_rewards", TRUE, "true-with-random", DATA, 5_000)
constant = small("seabo", f"{MIXED} --squash-alpha 0 {LEARNER} --beta 10", "constant-with-random", DATA, 5_000)
best = end(true, "beta=100")
retrieved, everything = ("threshold=0.9", "threshold=0")

CLAIM = Claim(
    title="What looks like the demonstrations is worth retrieving from data of mixed quality",
    paper="Behavior Retrieval (arXiv 2304.08742) claims higher success than cloning the demonstrations alone, and than "
    "cloning them with all prior data. Here the prior data is half a planner's, half uniform actions; one episode is "
    "demonstrated, and the goal must be reached within 21 steps, about what the planner needs. IQL on the prior data "
    "has true rewards as imputed_rewards.py with all of them, and a constant 0 as SEABO with --squash-alpha 0.",
    runs=[ours, alone, true, constant],
    checks={
        "More of what is retrieved is the planner's than of the prior data": (
            logged("of_dataset", ours, retrieved) > 1.5 * logged("of_dataset", ours, everything)
        ),
        **{
            f"Behavior Retrieval ends above cloning {label}, beyond noise": (above(end(ours, retrieved), other))
            for label, other in {
                "the demonstrations with all prior data": end(ours, everything),
                "the demonstrations alone": end(alone),
            }.items()
        },
    },
    observed={
        "IQL on the prior data's true rewards, beta of 100, ends above cloning all of it, beyond noise": (
            above(best, end(ours, everything))
        ),
        "It ends below Behavior Retrieval, beyond noise": below(best, end(ours, retrieved)),
        "With a beta of 10, or a constant reward, IQL never arrives": highest(end(true, "beta=10"), end(constant))
        <= 0.0,
    },
    finding="Nearly all that is retrieved is the planner's, and cloning it keeps the pace that cloning with half "
    "uniform actions loses. One demonstration alone is nearly enough in this maze, so that what retrieval adds "
    "to it is small.",
)
