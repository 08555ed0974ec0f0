from results.checks import Claim, above, end, logged
from results.grid import small

NEAR = "point-hazard-explore"
SHORT = "--discount 0.9"  # of all: a step is worth a tenth of Q
ORACLE = "--oracle environments.point_truth:nearer"
SIZES = "--query-every 1000 --n-queries 2500 --rank-updates 500 --rank-hidden-dims 64 64 --rank-lr 1e-3"


def oap(more: str, variant: str):
    return small("oap", f"{SHORT} {ORACLE} {SIZES} {more}".strip(), variant, NEAR)


plain = small("td3_bc", SHORT, "short", NEAR)
asked = oap("", "asked")
alone = oap("--no-pseudo-queries", "no-ranknet")

CLAIM = Claim(
    title="Asking which action is better loosens the constraint where it is in the way",
    paper="OAP (arXiv 2306.03362) claims higher scores than TD3+BC by asking for preferences between the data's and "
    "the policy's actions, and that RankNet's answers for the other rows are needed for it.",
    runs=[plain, asked, alone],
    checks={
        f"{NEAR}: OAP ends above TD3+BC, beyond noise": above(end(asked), end(plain)),
        f"{NEAR}: it ends above itself without RankNet, beyond noise": (above(end(asked), end(alone))),
    },
    observed={
        f"{NEAR}: fewer than 1 % of the new answers are for the data's action": logged("oracle_keeps", asked) < 0.01,
        f"{NEAR}: by the end it foresees more than 0.9": logged("rank_accuracy", asked) > 0.9,
        f"{NEAR}: by the end more than half of the rows clone the policy's own action": (
            logged("cloned_own", asked) > 0.5
        ),
        f"{NEAR}: it ends above the planner that is worth 100": end(asked) > 100,
    },
    finding="The data's directions are random, so that the policy's own action soon leads nearer to the goal than that "
    "of the row, to which TD3+BC is held. By the end most rows clone the policy's own action: the constraint is "
    "gone where it was in the way. RankNet's accuracy on new questions shows no skill, since only the rows "
    "farthest from the policy are asked, whose answers are nearly all the same by then; but its answers for all "
    "other rows are what loosens them, and without it the policy ends little above TD3+BC. It ends above the "
    "planner by which scores are measured, which keeps clear of hazards that cost nothing here. The oracle is "
    "exact, by the shortest ways to the goal; worse ones were not tried.",
)
