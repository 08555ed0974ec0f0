from results.checks import Claim, above, end
from results.grid import benchmark, ogbench_task

MEDIUM, REPLAY, MAZE = "hopper-medium-v0", "hopper-medium-replay-v0", "pointmaze-umaze"
EPISODES = {MEDIUM: "", REPLAY: "", MAZE: "--eval-episodes 20"}

bc = {d: benchmark("bc", d, more) for d, more in EPISODES.items()}
iql = {d: benchmark("iql", d, more) for d, more in EPISODES.items()}

AS_FQL_HAS_IT = "--expectile 0.9 --beta 1"
"""Table of hyperparameters of arXiv 2502.02538, whose figures are shown beside."""

BENCHMARK = [*iql.values(), ogbench_task("iql", AS_FQL_HAS_IT)]

CLAIM = Claim(
    title="IQL is better than behavioural cloning",
    paper="IQL (arXiv 2110.06169) reports higher scores than behavioural cloning on D4RL's sets, by improving on "
    "the data without unseen actions.",
    runs=[*bc.values(), *iql.values()],
    checks={f"{d}: IQL ends above cloning, beyond noise": above(end(iql[d]), end(bc[d])) for d in iql},
    observed={f"{d}: IQL ends above cloning": end(iql[d]) > end(bc[d]) for d in iql},
    finding="IQL ends above cloning on all three sets.",
)
