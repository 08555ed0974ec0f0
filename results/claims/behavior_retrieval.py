from results.checks import Claim, end, logged, noise
from results.grid import small

PRIOR = "--more-data point-umaze-random --demos point-umaze-demos --demo-episodes 1 --max-episode-steps 21"
SIZES = "--embed-updates 5000 --embed-hidden-dims 64 64"


def retrieval(more: str, variant: str):
    return small("behavior_retrieval", f"{PRIOR} {SIZES} {more}", variant, "point-umaze-expert", 5_000)


ours = retrieval("--threshold 0 0.9", "retrieved")
alone = retrieval("--task-share 1", "demos")
retrieved, everything = ("threshold=0.9", "threshold=0")

CLAIM = Claim(
    title="What looks like the demonstrations is worth retrieving from data of mixed quality",
    paper="Behavior Retrieval (arXiv 2304.08742) claims higher success than cloning the demonstrations alone, and than "
    "cloning them with all prior data. Here the prior data is half a planner's, half uniform actions; one episode is "
    "demonstrated, and the goal must be reached within 21 steps, about what the planner needs.",
    runs=[ours, alone],
    checks={
        "More of what is retrieved is the planner's than of the prior data": (
            logged("of_dataset", ours, retrieved) > 1.5 * logged("of_dataset", ours, everything)
        ),
        **{
            f"Behavior Retrieval ends above cloning {label}, beyond noise": (
                end(ours, retrieved) > other + noise(end(ours, retrieved), other)
            )
            for label, other in {
                "the demonstrations with all prior data": end(ours, everything),
                "the demonstrations alone": end(alone),
            }.items()
        },
    },
    finding="Nearly all that is retrieved is the planner's, and cloning it keeps the pace that cloning with half "
    "uniform actions loses. One demonstration alone is nearly enough in this maze, so that what retrieval adds "
    "to it is small.",
)
