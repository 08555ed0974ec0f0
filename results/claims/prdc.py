from results.checks import Claim, above, end
from results.grid import SETTLING, offline, small

MIXED, REPLAY = "hopper-random-expert-5-v0", "hopper-medium-replay-v0"
NEAR = "point-hazard-explore"
SHORT = "--discount 0.9"  # of all three: a step is worth a tenth of Q
ARGUMENTS = ""

bc = {NEAR: small("bc", dataset=NEAR)} | {d: offline("bc", d) for d in (MIXED, REPLAY)}
td3_bc = {NEAR: small("td3_bc", SHORT, "short", NEAR)} | {d: offline("td3_bc", d) for d in (MIXED, REPLAY)}
prdc = {NEAR: small("prdc", SHORT, "short", NEAR)} | {d: offline("prdc", d, ARGUMENTS) for d in (MIXED, REPLAY)}
fast = {name: offline(name, REPLAY, more, "settling") for name, more in {"td3_bc": SETTLING, "prdc": SETTLING}.items()}

CLAIM = Claim(
    title="PRDC beats TD3+BC on mixed data",
    paper="PRDC (arXiv 2306.06569) claims scores above TD3+BC's: a pull to the nearest state-action pair of "
    "the dataset in place of the distance to the action that was taken.",
    runs=[*bc.values(), *td3_bc.values(), *prdc.values(), *fast.values()],
    checks={f"{d}: PRDC ends above TD3+BC, beyond noise": (above(end(prdc[d]), end(td3_bc[d]))) for d in prdc}
    | {
        f"{REPLAY}, with targets that follow faster: PRDC ends above TD3+BC, beyond noise": (
            above(end(fast["prdc"]), end(fast["td3_bc"]))
        )
    },
    finding="Where the better action was taken in a neighbouring state and a hazard pays for staying, the "
    "constraint to the nearest pairs leaves TD3+BC, which is held to the action of the very state, far "
    "behind. On hopper-medium-replay PRDC is slightly but clearly above TD3+BC, and with targets that follow "
    "faster, with which the values of both have settled, by far. On the mixture it is not, "
    "and both stay far below what sampling by return makes of TD3+BC itself (trajectory weighting): what "
    "is missing there is the weighting of the data, not the form of the constraint. The paper trains for "
    "a million updates.",
)
