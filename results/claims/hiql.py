from results import raw
from results.checks import Claim, LaneMean, above, below, end, highest, logged, of_lanes, of_task, rank_correlation
from results.grid import OGBENCH_GOALS, goals, ogbench, ogbench_goals

LARGE = "point-large-navigate"

gcbc, gcivl, hiql = (goals(name, LARGE, updates=50_000) for name in ("gcbc", "gcivl", "hiql"))


def value(module, agent, obs, goal, args):
    """V(s, phi([s; g]))."""
    return module.mean_value(agent, obs, goal)


def early(run, task: int | None = None) -> LaneMean:
    """Percent of the episodes of the last evaluation that arrive within 100 steps: none of these ends otherwise."""
    return of_lanes(
        run, "", lambda row: 100.0 * (raw.final_episodes(row._replace(metric="length"), task) <= 100).mean(1)
    )


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
    observed={
        f"{LARGE}, task 4: GCBC succeeds more often than HIQL": of_task(4, gcbc) > of_task(4, hiql),
        f"{LARGE}, task 4: within 100 steps HIQL arrives more often than GCBC, beyond noise": (
            above(early(hiql, 4), early(gcbc, 4))
        ),
        f"{LARGE}, task 4: GCBC never arrives within them": early(gcbc, 4) <= 0.0,
        f"{LARGE}, task 4: HIQL does in more than half of the episodes": early(hiql, 4) > 50.0,
        f"{LARGE}, all tasks: within 100 steps, too, beyond noise": above(early(hiql), early(gcbc)),
        f"{LARGE}, task 5: no method ever succeeds": highest(*(of_task(5, run) for run in (gcbc, gcivl, hiql))) <= 0.0,
        f"{LARGE}: HIQL's values of the data are lower than GCIVL's, beyond noise": (
            below(logged("v", hiql), logged("v", gcivl))
        ),
    },
    finding="On OGBench's own medium maze, in networks of the published size, HIQL is above its flat sibling and above "
    "cloning. In the larger point world it is above GCIVL on the fourth goal, but not above cloning, and no "
    "method reaches the fifth. Success there has much time: clones find the fourth goal late. Within 100 steps "
    "they never arrive, HIQL in more than half of the episodes. GCIVL is not the flat policy of the same "
    "value: it has its own file's settings, a higher expectile and a sharper weight of advantages, and its "
    "values are not HIQL's. A flat policy of HIQL's value was not run, so that neither world shows what the "
    "second policy adds.",
)
