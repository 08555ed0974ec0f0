from results import raw
from results.checks import Claim, LaneMean, above, end, lowest, of_lanes, of_task
from results.grid import goals

RIGHT = "point-open-right"
SIZES = "--queue-size 5120 --max-episode-steps 40"
FAR = {"far to the left": 5, "to the left": 4}

goat = goals("goat", RIGHT, SIZES, updates=5_000)
wgcsl = goals("goat", RIGHT, f"{SIZES} --no-uncertainty-weight", "wgcsl", updates=5_000)
gcsl = goals(
    "goat", RIGHT, f"{SIZES} --no-uncertainty-weight --no-best-weight --no-exponential-weight", "gcsl", updates=5_000
)


def value(module, agent, obs, goal, args):
    """The mean of Q_k(s, g, pi(s, g))."""
    return module.q_of_policy(agent.nets, agent.actor, agent.critic, obs, goal).mean(0)


def half_way(task: int, run) -> LaneMean:
    """`of_task` at the first of two evaluations."""
    at_first = lambda row: row._replace(steps={name: at[:1] for name, at in row.steps.items()})  # noqa: E731
    return of_lanes(run, "", lambda row: raw.final_episodes(at_first(row), task).mean(1))


CLAIM = Claim(
    title="Weights by advantage and uncertainty carry cloning to goals that were never reached",
    paper="GOAT (arXiv 2305.18882) claims higher success than WGCSL, and both than plain cloning (GCSL), where goals "
    "lie outside the data; inside it they are level. Here all data is of the right half of an open world, and an "
    "episode must end within 40 steps.",
    runs=[goat, wgcsl, gcsl],
    checks={
        **{
            f"A goal {where}: GOAT succeeds more often than {label}, beyond noise": (
                above(of_task(task, goat), of_task(task, run))
            )
            for where, task in FAR.items()
            for label, run in {"WGCSL": wgcsl, "GCSL": gcsl}.items()
        },
        "All tasks: GOAT ends above GCSL, beyond noise": above(end(goat), end(gcsl)),
    },
    observed={
        **{
            f"A goal {where}: GOAT and WGCSL always arrive: neither can be above the other": (
                lowest(of_task(task, goat), of_task(task, wgcsl)) >= 100.0
            )
            for where, task in FAR.items()
        },
        **{
            f"A goal {where}: they do already after 2,500 updates": (
                lowest(half_way(task, goat), half_way(task, wgcsl)) >= 100.0
            )
            for where, task in FAR.items()
        },
        "A goal far to the left: GCSL never arrives": of_task(FAR["far to the left"], gcsl) <= 0.0,
        "A goal to the left: GCSL arrives in more than half of the episodes": of_task(FAR["to the left"], gcsl) > 50.0,
    },
    finding="Advantages, with or without uncertainty, carry cloning to a goal that nothing was seen of and at which "
    "plain cloning never arrives. What the uncertainty of values adds cannot be seen here: with it and without "
    "it every episode arrives at both goals outside the data, already half way through the updates, so that "
    "neither can be above the other. The nearer goal outside the data is reached by plain cloning, too, in "
    "most seeds.",
)
