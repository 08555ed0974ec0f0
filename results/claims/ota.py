from results.checks import Claim, above, of_task
from results.grid import goals

LARGE = "point-large-navigate"

hiql, ota = (goals(name, LARGE, updates=50_000) for name in ("hiql", "ota"))


def value(module, agent, obs, goal, args):
    """V(s, phi([s; g])) of single steps."""
    return module.values(agent.nets, agent.representation, agent.low_value, obs, goal).mean(0)


CLAIM = Claim(
    title="A value of options reaches farther than a value of steps",
    paper="OTA (arXiv 2505.12737) claims higher success than HIQL in long tasks, by a higher policy whose value counts "
    "options.",
    runs=[hiql, ota],
    checks={
        f"{LARGE}, task {task}: OTA succeeds more often than HIQL, beyond noise": (
            above(of_task(task, ota), of_task(task, hiql))
        )
        for task in (4, 5)
    },
    observed={
        f"{LARGE}, task 4: HIQL is more than 20 above OTA": of_task(4, hiql) > of_task(4, ota) + 20,
        f"{LARGE}, task 5: HIQL never arrives": of_task(5, hiql) < 0.1,
    },
    finding="Of the two far tasks OTA wins the one where HIQL never arrives, by hardly more than the spread of its "
    "lanes, and loses the other. Its networks are the small ones of this collection's runs; a longer world, "
    "where every task is out of reach of HIQL's value, would decide. OTA's run is of before an option whose end is "
    "the goal could be a short one, which concerns few of the rows: it is to be made again.",
)
