from results.checks import Claim, end, noise
from results.grid import offline

REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"

cql = {d: offline("cql_plus", d, "--preset cql --n-actions 4", "cql") for d in (REPLAY, MAZE)}
plus = {d: offline("cql_plus", d, "--n-actions 4", "plus") for d in (REPLAY, MAZE)}

CLAIM = Claim(
    title="CQL+ is better than CQL by its implementation choices",
    paper="CQL+ (arXiv 2306.00972) claims higher scores than CQL from more sampled actions, small last layers, ELU, "
    "and a slower policy.",
    runs=[*cql.values(), *plus.values()],
    checks={
        f"{d}: CQL+ ends above CQL, beyond noise": end(plus[d]) > end(cql[d]) + noise(end(plus[d]), end(cql[d]))
        for d in plus
    },
    observed={
        f"{REPLAY}: CQL+ has the higher mean": end(plus[REPLAY]) > end(cql[REPLAY]),
        f"{MAZE}: CQL has the higher mean": end(plus[MAZE]) < end(cql[MAZE]),
    },
    finding="After 30,000 updates on hopper-medium-replay CQL+ has the higher mean, but the lanes of both spread "
    "far wider than that; on PointMaze CQL has, within the spread. With 4 sampled actions for both, one of the "
    "four choices (more actions) is not tested here.",
)
