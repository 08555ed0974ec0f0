from results.checks import Claim, above, end
from results.grid import benchmark, ogbench_task, small

MEDIUM, REPLAY, MAZE = "hopper-medium-v0", "hopper-medium-replay-v0", "pointmaze-umaze"
MIXED = "pendulum-mixed"
TOP = "--top-fraction 0.1"

BENCHMARK = [
    benchmark("bc", MEDIUM),
    benchmark("bc", REPLAY),
    benchmark("bc", MAZE, "--eval-episodes 20"),
    benchmark("bc", MEDIUM, TOP, "top10"),
    benchmark("bc", REPLAY, TOP, "top10"),
    ogbench_task("bc"),
]

everything = {MIXED: small("bc"), MEDIUM: BENCHMARK[0], REPLAY: BENCHMARK[1]}
best = {MIXED: small("bc", TOP, "top10"), MEDIUM: BENCHMARK[3], REPLAY: BENCHMARK[4]}

CLAIM = Claim(
    title="Cloning the best tenth of the episodes is better than cloning all",
    paper="The Decision Transformer's paper (arXiv 2106.01345, table 3) has cloning the best 10 % of the data (10%-BC) "
    "far above cloning all of it where the data is mixed.",
    runs=[*everything.values(), *best.values()],
    checks={
        f"{d}: the best tenth ends above all, beyond noise": (above(end(best[d]), end(everything[d]))) for d in best
    },
    finding="On Pendulum, a quarter of whose episodes are a controller's, the best tenth is enough to solve the "
    "task and all episodes are not. So it is on hopper-medium-replay. On hopper-medium the episodes "
    "were picked by discounted returns; that run is to be made again with plain returns (results/README.md).",
)
