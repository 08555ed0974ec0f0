from results.checks import Claim, end, noise
from results.grid import offline

MIXED, REPLAY = "hopper-random-expert-5-v0", "hopper-medium-replay-v0"
ARGUMENTS = ""

bc = {d: offline("bc", d) for d in (MIXED, REPLAY)}
td3_bc = {d: offline("td3_bc", d) for d in (MIXED, REPLAY)}
prdc = {d: offline("prdc", d, ARGUMENTS) for d in (MIXED, REPLAY)}

CLAIM = Claim(
    title="PRDC beats TD3+BC on mixed data",
    paper="PRDC (arXiv 2306.06569) claims scores above TD3+BC's: a pull to the nearest state-action pair of "
    "the dataset in place of the distance to the action that was taken.",
    runs=[*bc.values(), *td3_bc.values(), *prdc.values()],
    checks={
        f"{d}: PRDC ends above TD3+BC, beyond noise": (
            end(prdc[d]) > end(td3_bc[d]) + noise(end(prdc[d]), end(td3_bc[d]))
        )
        for d in prdc
    },
    finding="On hopper-medium-replay PRDC is slightly but clearly above TD3+BC. On the mixture it is not, and both "
    "stay far below what sampling by return makes of TD3+BC itself (trajectory weighting): what is missing "
    "there is the weighting of the data, not the form of the constraint. The paper trains for a million "
    "updates.",
)
