from results.checks import Claim, end, noise
from results.grid import goals

STITCH = "point-medium-stitch"

gcbc, gciql = (goals(name, STITCH, updates=50_000) for name in ("gcbc", "gciql"))


def value(module, agent, obs, goal, args):
    """V(s, g)."""
    return agent.nets.value.apply(agent.value, obs, goal)


CLAIM = Claim(
    title="GCIQL puts short ways together, which cloning cannot",
    paper="OGBench (arXiv 2410.20092, table 2) has GCIQL above GCBC on stitch data of the larger mazes and on nearly "
    "all manipulation tasks.",
    runs=[gcbc, gciql],
    checks={
        f"{STITCH}: GCIQL ends above GCBC, beyond noise": end(gciql) > end(gcbc) + noise(end(gciql), end(gcbc)),
    },
)
