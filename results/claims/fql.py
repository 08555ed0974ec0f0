from results.checks import Claim, action_ms, dataset_mean, end, noise
from results.grid import benchmark, offline, ogbench_task

REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"

BENCHMARK = [benchmark("fql", MAZE, "--eval-episodes 20", updates=30_000), ogbench_task("fql")]

diffusion_ql = {d: offline("diffusion_ql", d) for d in (REPLAY, MAZE)}
fql = {d: offline("fql", d) for d in (REPLAY, MAZE)}

CLAIM = Claim(
    title="FQL reaches Diffusion-QL's score with actions of one step",
    paper="FQL (arXiv 2502.02538) claims the scores of Diffusion-QL (arXiv 2208.06193) and above, with a policy that "
    "acts in one step.",
    runs=[*diffusion_ql.values(), *fql.values()],
    checks={
        **{
            f"{d}: FQL ends at Diffusion-QL's level or above, within noise": (
                end(fql[d]) > end(diffusion_ql[d]) - noise(end(fql[d]), end(diffusion_ql[d]))
            )
            for d in fql
        },
        "FQL needs less than half of Diffusion-QL's time for 1000 actions": (
            action_ms("fql") < action_ms("diffusion_ql") / 2
        ),
    },
    observed={
        f"{MAZE}: FQL ends above Diffusion-QL": end(fql[MAZE]) > end(diffusion_ql[MAZE]),
        **{
            f"{REPLAY}: {name} ends within 5 of the mean of the dataset's episodes": (
                abs(end(run) - dataset_mean(run)) < 5.0
            )
            for name, run in {"FQL": fql[REPLAY], "Diffusion-QL": diffusion_ql[REPLAY]}.items()
        },
    },
    finding="FQL is level with Diffusion-QL on hopper-medium-replay and above it on PointMaze, and needs a fraction of "
    "its time per action (results/speed.md). On hopper-medium-replay level says little: both end near the mean "
    "of the dataset's episodes, so that neither has learned much more than to clone them at this length.",
)
