from results.checks import Claim, above, end, rank_correlation
from results.grid import goals

EXPLORE, NAVIGATE = "point-medium-explore", "point-medium-navigate"

UPDATES = {EXPLORE: 12_000, NAVIGATE: 24_000}
gcbc, dwsl = ({d: goals(name, d, updates=n) for d, n in UPDATES.items()} for name in ("gcbc", "dwsl"))


def value(module, agent, obs, goal, args):
    """Minus the soft minimum of the distance."""
    return -module.soft_min_distance(agent, obs, goal, args)


CLAIM = Claim(
    title="Distances learned by classification shorten the ways of the data",
    paper="DWSL (arXiv 2304.13774) claims success at the level of the best methods by supervised learning alone, above "
    "goal-conditioned cloning, from data that wanders.",
    runs=[*gcbc.values(), *dwsl.values()],
    checks={
        **{f"{d}: DWSL ends above GCBC, beyond noise": above(end(dwsl[d]), end(gcbc[d])) for d in gcbc},
        f"{NAVIGATE}: values rank the ways to a goal as they are, correlation above 0.9": (
            rank_correlation(dwsl[NAVIGATE]) > 0.9
        ),
    },
    finding="On data that wander DWSL reaches more goals than cloning. On data that lead to goals already it does so "
    "in the mean, within noise, after twice as many updates; its distances rank the ways as well as asked for there.",
)
