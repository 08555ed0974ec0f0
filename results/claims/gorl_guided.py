from results.checks import Claim, above, end, logged
from results.grid import small

NEAR = "point-hazard-explore"
SHORT = "--discount 0.9"  # of all: a step is worth a tenth of Q
# the paper's step of 1e-5 in every 500 of 1M updates, for 10,000; its experts are other data, these the data's best
GUIDES = "--demo-episodes 5 --guide-every 10 --guide-lr 3e-3"


def gorl(more: str, variant: str):
    return small("gorl_guided", f"{SHORT} {GUIDES} {more}".strip(), variant, NEAR)


plain = small("td3_bc", SHORT, "short", NEAR)
guided = gorl("", "guided")
half = gorl("--weighting constant --weight 0.5", "half")
mixed, cloned = gorl("--weighting mixed", "mixed"), gorl("--weighting cloned", "cloned")


def ends_above(a, b):
    return above(end(a), end(b))


CLAIM = Claim(
    title="A few expert pairs tell which samples shall constrain the policy",
    paper="GORL (arXiv 2309.01448) claims higher scores than TD3+BC by weights that 200 expert pairs guide, higher "
    "than constant weights give, and higher than the same pairs give as further data.",
    runs=[plain, guided, half, mixed, cloned],
    checks={
        f"{NEAR}: GORL ends above TD3+BC, beyond noise": ends_above(guided, plain),
        f"{NEAR}: it ends above a constant weight of 0.5, beyond noise": ends_above(guided, half),
        f"{NEAR}: it ends above TD3+BC with the pairs among its data, beyond noise": ends_above(guided, mixed),
        f"{NEAR}: it ends above TD3+BC that clones the pairs, too, beyond noise": ends_above(guided, cloned),
        f"{NEAR}: the pairs have larger weights than the data": (
            logged("guides_weight", guided) > logged("weight", guided)
        ),
    },
    finding="What loosens the constraint of all rows alike helps here, since the data's directions are random: a "
    "constant weight of a half ends as high as the learned ones, which are about a half themselves and no larger for "
    "the pairs than for the data. The pairs add nothing to that: what the weights should tell apart, they do not "
    "within this budget.",
)
