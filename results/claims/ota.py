from results.checks import Claim, noise, of_task
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
            of_task(task, ota) > of_task(task, hiql) + noise(of_task(task, ota), of_task(task, hiql))
        )
        for task in (4, 5)
    },
)
