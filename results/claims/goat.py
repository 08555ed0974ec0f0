from results.checks import Claim, above, end, of_task
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
    finding="Advantages, with or without uncertainty, carry cloning to a goal that nothing was seen of and at which "
    "plain cloning never arrives. The uncertainty of values adds nothing to that here: both succeed at the same "
    "goals. The nearer goal outside the data is reached by plain cloning, too, in most seeds.",
)
