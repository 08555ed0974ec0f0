from results.checks import Claim, above, end, of_task, rank_correlation
from results.grid import OGBENCH_GOALS, goals, ogbench, ogbench_goals

LARGE = "point-large-navigate"

gcbc, gcivl, hiql = (goals(name, LARGE, updates=50_000) for name in ("gcbc", "gcivl", "hiql"))


def value(module, agent, obs, goal, args):
    """V(s, phi([s; g]))."""
    return module.mean_value(agent, obs, goal)


OGBENCH = OGBENCH_GOALS[0]
BENCHMARK = ogbench_goals("hiql")
others = {name.upper(): ogbench(name, OGBENCH) for name in ("gcbc", "gcivl")}

CLAIM = Claim(
    title="Two policies of one value reach farther than one",
    paper="HIQL (arXiv 2307.11949) claims higher success than flat policies of the same value where goals are far: the "
    "signs of a value's differences drown in its noise for single steps, not for subgoals.",
    runs=[gcbc, gcivl, hiql, BENCHMARK[0], *others.values()],
    checks={
        **{
            f"{LARGE}, task {task}: HIQL succeeds more often than {label}, beyond noise": (
                above(of_task(task, hiql), of_task(task, run))
            )
            for task in (4, 5)
            for label, run in {"GCIVL": gcivl, "GCBC": gcbc}.items()
        },
        **{
            f"{OGBENCH}: HIQL ends above {label}, beyond noise": above(end(BENCHMARK[0]), end(run))
            for label, run in others.items()
        },
        f"{LARGE}: values rank the ways to a goal as they are, correlation above 0.9": (rank_correlation(hiql) > 0.9),
    },
    finding="On OGBench's own medium maze, in networks of the published size, HIQL is above its flat sibling and "
    "above cloning. In the larger point world it is above GCIVL on the fourth goal, but not above cloning, "
    "and no method reaches the fifth.",
)
