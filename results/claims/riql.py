from results.checks import Claim, above, below, end, logged
from results.grid import offline, small

REPLAY, MAZE, MIXED = "hopper-medium-replay-v0", "pointmaze-umaze", "pendulum-mixed"
KINDS = {"obs": "observations", "action": "actions", "reward": "rewards", "dynamics": "dynamics"}

PLAIN = "--preset none"  # as RIQL has it: rewards as they are, expectile 0.7, beta 3
SAME = "--deterministic --normalize-obs"  # what else of RIQL is not what is claimed
RATES = "--actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3 --tau 0.02"
SIGMA = {"obs": 0.1, "action": 0.1, "reward": 1, "dynamics": 1}  # of the authors' hopper
FLOOR = "--min-target -2000"  # returns go down to -1,900
START = "--orthogonal"  # as IQL begins: the first weights are not what is claimed


def iql_run(dataset: str, corruption: str = "", variant: str = ""):
    """One of IQL, with what else of RIQL is not what is claimed."""
    if dataset == MIXED:
        return small("iql", f"{SAME} {RATES} {corruption}".strip(), variant)
    return offline("iql", dataset, f"{PLAIN} {corruption}".strip(), variant)


def riql_run(dataset: str, given: str, variant: str, sigma: float = 1):
    """One of RIQL that begins as IQL does; not in the maze, where it is ahead from the authors' weights, too."""
    if dataset == MIXED:
        return small("riql", f"{FLOOR} {RATES} {given} --huber-sigma {sigma} {START}", variant)
    return offline("riql", dataset, f"{given} {START if dataset == REPLAY else ''}".strip(), variant)


DATASETS = (MIXED, REPLAY, MAZE)
iql = {(d, kind): iql_run(d, f"--corruption {kind}", f"plain-{kind}") for d in DATASETS for kind in KINDS}
riql = {
    (d, kind): riql_run(d, f"--corruption {kind}" if d == MIXED else f"--preset hopper-{kind}", kind, SIGMA[kind])
    for d, kind in iql
}
clean_iql = {d: iql_run(d, variant="plain") for d in DATASETS}
authors = {
    MIXED: small("riql", f"{FLOOR} {RATES} --huber-sigma 1", "clean"),
    **{d: offline("riql", d, "--huber-sigma 0.1", "clean") for d in (REPLAY, MAZE)},
}
clean = {
    MIXED: riql_run(MIXED, "", "orthogonal"),
    REPLAY: riql_run(REPLAY, "--huber-sigma 0.1", "orthogonal"),
    MAZE: authors[MAZE],
}

CLAIM = Claim(
    title="RIQL keeps its level where corrupted data costs IQL its own",
    paper="RIQL (arXiv 2310.12955) claims higher scores than IQL when 30 % of the transitions have noise of one "
    "standard deviation in observations, actions or next observations, or random rewards.",
    runs=[
        *(run[d] for d in DATASETS for run in (clean_iql, clean, authors)),
        *(run for both in zip(iql.values(), riql.values()) for run in both),
    ],
    checks={
        f"{d}, corrupted {KINDS[kind]}: RIQL ends above IQL, beyond noise": (
            above(end(riql[d, kind]), end(iql[d, kind]))
        )
        for d, kind in iql
    },
    observed={
        **{
            f"{d}, clean: from the authors' weights RIQL ends below IQL, beyond noise": (
                below(end(authors[d]), end(clean_iql[d]))
            )
            for d in (MIXED, REPLAY)
        },
        **{
            f"{d}, clean: from IQL's weights it is above what it was from the authors', beyond noise": (
                above(end(clean[d]), end(authors[d]))
            )
            for d in (MIXED, REPLAY)
        },
        f"{MIXED}: corrupted dynamics cost RIQL less than 10": end(clean[MIXED]) - end(riql[MIXED, "dynamics"]) < 10,
        **{
            f"{MIXED}: corrupted observations cost {name} more than 1,000": end(of[MIXED]) - end(run[MIXED, "obs"])
            > 1000
            for name, of, run in (("RIQL", clean, riql), ("IQL", clean_iql, iql))
        },
        f"{REPLAY}: corrupted dynamics leave IQL a mean Q below two thirds of RIQL's": (
            logged("q", iql[REPLAY, "dynamics"]) < 2 / 3 * logged("q", riql[REPLAY, "dynamics"])
        ),
        f"{MAZE}, clean: RIQL ends above IQL": end(clean[MAZE]) > end(clean_iql[MAZE]),
        f"{MAZE}: corrupted rewards cost IQL more than half": (end(iql[MAZE, "reward"]) < 0.5 * end(clean_iql[MAZE])),
        f"{MAZE}: corrupted observations cost RIQL more than IQL": (
            end(clean[MAZE]) - end(riql[MAZE, "obs"]) > end(clean_iql[MAZE]) - end(iql[MAZE, "obs"])
        ),
    },
    finding="Where corrupted dynamics make targets heavy-tailed RIQL does what it is for: on Pendulum they cost IQL "
    "the whole task and RIQL next to nothing. Corrupted rewards and actions cost IQL little there, so that there is "
    "nothing to keep, and noise in the observations defeats both. On Pendulum that is seen only once the arms were "
    "made equal: the authors' networks begin from far smaller weights than IQL's; from them RIQL is far behind on "
    "clean data already, on Pendulum and on hopper-medium-replay, and from IQL's it is not. On hopper RIQL is above "
    "under corrupted observations, about equal under actions, and behind under rewards and dynamics, though under "
    "dynamics IQL's values stay far below RIQL's, as the paper has it. Why is open: RIQL's values had not settled, "
    "and faster targets were not tried there. On PointMaze RIQL is ahead on clean data, keeps its level under "
    "corrupted actions and more of it under rewards, where IQL loses half of its own; under corrupted observations "
    "RIQL is the one that loses most. On hopper and PointMaze the arms are not equal: IQL's policy is stochastic and "
    "its observations are as they are, RIQL's is deterministic and its observations are scaled. How much of a "
    "difference is due to that was not tried.",
)
