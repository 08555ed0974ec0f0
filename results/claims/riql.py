from results.checks import Claim, above, end
from results.grid import offline, small

REPLAY, MAZE, MIXED = "hopper-medium-replay-v0", "pointmaze-umaze", "pendulum-mixed"
KINDS = {"obs": "observations", "action": "actions", "reward": "rewards", "dynamics": "dynamics"}

PLAIN = "--preset none"  # as RIQL has it: rewards as they are, expectile 0.7, beta 3
SAME = "--deterministic --normalize-obs"  # what else of RIQL is not what is claimed
RATES = "--actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3 --tau 0.02"  # slower, RIQL stays far from IQL on clean data
SIGMA = {"obs": 0.1, "action": 0.1, "reward": 1, "dynamics": 1}  # of the authors' hopper
FLOOR = "--min-target -2000"  # returns go down to -1,900
START = "--orthogonal"  # as IQL begins: from the authors' weights critics hardly tell actions apart in so few updates
clean = [
    offline(*run)
    for d in (REPLAY, MAZE)
    for run in (("iql", d, PLAIN, "plain"), ("riql", d, "--huber-sigma 0.1", "clean"))
]
iql = {
    (d, kind): offline("iql", d, f"{PLAIN} --corruption {kind}", f"plain-{kind}")
    for d in (REPLAY, MAZE)
    for kind in KINDS
}
riql = {
    (d, kind): offline("riql", d, f"--preset hopper-{kind} {START if d == REPLAY else ''}".strip(), kind)
    for d, kind in iql
}
clean += [
    small("iql", f"{SAME} {RATES}", "plain"),
    small("riql", f"{FLOOR} {RATES} --huber-sigma 1", "clean"),
    small("riql", f"{FLOOR} {RATES} --huber-sigma 1 {START}", "orthogonal"),
    offline("riql", REPLAY, f"--huber-sigma 0.1 {START}", "orthogonal"),
]
small_iql = {(MIXED, kind): small("iql", f"{SAME} {RATES} --corruption {kind}", f"plain-{kind}") for kind in KINDS}
small_riql = {
    (MIXED, kind): small("riql", f"{FLOOR} {RATES} --corruption {kind} --huber-sigma {SIGMA[kind]} {START}", kind)
    for kind in KINDS
}
iql, riql = small_iql | iql, small_riql | riql

CLAIM = Claim(
    title="RIQL keeps its level where corrupted data costs IQL its own",
    paper="RIQL (arXiv 2310.12955) claims higher scores than IQL when 30 % of the transitions have noise of one "
    "standard deviation in observations, actions or next observations, or random rewards.",
    runs=[*clean, *(run for both in zip(iql.values(), riql.values()) for run in both)],
    checks={
        f"{d}, corrupted {KINDS[kind]}: RIQL ends above IQL, beyond noise": (
            above(end(riql[d, kind]), end(iql[d, kind]))
        )
        for d, kind in iql
    },
    observed={
        f"{MAZE}, clean: RIQL ends above IQL": end(clean[3]) > end(clean[2]),
        f"{REPLAY}, clean: RIQL ends below IQL": end(clean[1]) < end(clean[0]),
        f"{MIXED}, clean: RIQL ends below IQL": end(clean[5]) < end(clean[4]),
        f"{MAZE}: corrupted rewards cost IQL more than half": (end(iql[MAZE, "reward"]) < 0.5 * end(clean[2])),
        f"{MAZE}: corrupted observations cost RIQL more than IQL": (
            end(clean[3]) - end(riql[MAZE, "obs"]) > end(clean[2]) - end(iql[MAZE, "obs"])
        ),
    },
    finding="Who is ahead on clean data is mostly ahead on corrupted data, too. On PointMaze RIQL is, and keeps its "
    "level under corrupted actions and more of it under rewards, where IQL loses half of its own; under corrupted "
    "observations RIQL is the one that loses most. On hopper-medium-replay and Pendulum RIQL, whose critics begin from "
    "smaller weights and lose as the absolute error, is behind IQL on clean data after so many updates. On Pendulum "
    "corrupted rewards and actions cost IQL next to nothing, so that there is nothing to keep; where observations or "
    "dynamics are corrupted RIQL is above.",
)
