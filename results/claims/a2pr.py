from results.checks import Claim, above, end
from results.grid import SETTLING, offline, small

MIXED, REPLAY = "hopper-random-expert-5-v0", "hopper-medium-replay-v0"
NEAR = "point-hazard-explore"
SHORT = "--discount 0.9"  # of all three: a step is worth a tenth of Q
ARGUMENTS = "--vae-hidden-dims 128 128 --actor-hidden-dims 128 128"

bc = {NEAR: small("bc", dataset=NEAR)} | {d: offline("bc", d) for d in (MIXED, REPLAY)}
td3_bc = {NEAR: small("td3_bc", SHORT, "short", NEAR)} | {d: offline("td3_bc", d) for d in (MIXED, REPLAY)}
a2pr = {NEAR: small("a2pr", f"{SHORT} --vae-hidden-dims 64 64 --actor-hidden-dims 64 64", "short", NEAR)} | {
    d: offline("a2pr", d, ARGUMENTS) for d in (MIXED, REPLAY)
}
fast = {
    name: offline(name, REPLAY, more, "settling")
    for name, more in {"td3_bc": SETTLING, "a2pr": f"{SETTLING} {ARGUMENTS}"}.items()
}

CLAIM = Claim(
    title="A2PR beats TD3+BC on mixed data",
    paper="A2PR (arXiv 2405.19909) claims scores above TD3+BC's: a pull to actions better than the policy's own "
    "in place of the distance to the action that was taken.",
    runs=[*bc.values(), *td3_bc.values(), *a2pr.values(), *fast.values()],
    checks={f"{d}: A2PR ends above TD3+BC, beyond noise": (above(end(a2pr[d]), end(td3_bc[d]))) for d in a2pr}
    | {
        f"{REPLAY}, with targets that follow faster: A2PR ends above TD3+BC, beyond noise": (
            above(end(fast["a2pr"]), end(fast["td3_bc"]))
        )
    },
    finding="Where the better action was taken in a neighbouring state and a hazard pays for staying, the "
    "constraint to a model of good actions leaves TD3+BC, which is held to the action of the very state, "
    "far behind. On hopper A2PR ends below TD3+BC on both sets, and with targets that follow faster its values grow "
    "without bound on hopper-medium-replay. On the mixture both stay far below what "
    "sampling by return makes of TD3+BC itself (trajectory weighting): what is missing there is the "
    "weighting of the data, not the form of the constraint. The paper trains for a million updates.",
)
