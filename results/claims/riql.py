from results.checks import Claim, end, noise
from results.grid import offline

REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"
KINDS = {"obs": "observations", "action": "actions", "reward": "rewards", "dynamics": "dynamics"}

bc = offline("bc", MAZE)
clean = [offline(*run) for d in (REPLAY, MAZE) for run in (("iql", d), ("riql", d, "--huber-sigma 0.1", "clean"))]
iql = {(d, kind): offline("iql", d, f"--corruption {kind}", kind) for d in (REPLAY, MAZE) for kind in KINDS}
riql = {(d, kind): offline("riql", d, f"--preset hopper-{kind}", kind) for d, kind in iql}

CLAIM = Claim(
    title="RIQL keeps its level where corrupted data costs IQL its own",
    paper="RIQL (arXiv 2310.12955) claims higher scores than IQL when 30 % of the transitions have noise of one "
    "standard deviation in observations, actions or next observations, or random rewards.",
    runs=[bc, *clean, *(run for both in zip(iql.values(), riql.values()) for run in both)],
    checks={
        f"{d}, corrupted {KINDS[kind]}: RIQL ends above IQL, beyond noise": (
            end(riql[d, kind]) > end(iql[d, kind]) + noise(end(riql[d, kind]), end(iql[d, kind]))
        )
        for d, kind in iql
    },
    observed={
        **{
            f"{MAZE}, corrupted {KINDS[kind]}: RIQL ends above IQL": end(riql[MAZE, kind]) > end(iql[MAZE, kind])
            for kind in ("reward", "dynamics", "action")
        },
        f"{MAZE}, corrupted rewards: IQL ends at less than half of cloning clean data": (
            end(iql[MAZE, "reward"]) < end(bc) / 2
        ),
        f"{REPLAY}, corrupted observations: RIQL ends at more than 1.5 times IQL's score": (
            end(riql[REPLAY, "obs"]) > 1.5 * end(iql[REPLAY, "obs"])
        ),
    },
    finding="On PointMaze under corrupted rewards IQL falls far below cloning and RIQL stays above it, and under "
    "corrupted dynamics and actions RIQL is ahead, as it is there on clean data; corrupted observations cost both the "
    "same. On hopper-medium-replay it is ahead under corrupted observations only: under corrupted actions it is level, "
    "and under corrupted rewards or dynamics it has not left its first level by 30,000 updates.",
)
