from results.checks import Claim, above, end, under
from results.grid import small

MIXED = "point-umaze-mixed"
SIZES = "--critic mse --bc-updates 3000 --actor-lr 1e-3 --critic-lr 1e-3"
DRAWN, HEAVIEST, MODE, FAR = "operator=sample n_candidates=1", "operator=none", "operator=mode", "delta=8"


def cfpi(more: str, variant: str, evaluations=()):
    return small("cfpi", f"{SIZES} {more}".strip(), variant, MIXED, evaluations=evaluations)


four = cfpi("", "k4", (DRAWN, HEAVIEST, MODE, FAR))
one = cfpi("--n-components 1 --operator jensen", "k1")


def ends_above(a, b):
    return above(end(a), b)


CLAIM = Claim(
    title="One formula improves a cloned policy that is never trained for rewards",
    paper="CFPI (arXiv 2211.15956) claims that one closed-form step improves the cloned policy without training "
    "another one, that a mixture of Gaussians does so better than one where several policies made the data, and that a "
    "step too far loses it again.",
    runs=[four, one],
    checks={
        f"{MIXED}: CFPI ends above the clone, whose actions are drawn, beyond noise": ends_above(
            four, under(DRAWN, four)
        ),
        f"{MIXED}: above the mean of the clone's heaviest component, beyond noise": ends_above(
            four, under(HEAVIEST, four)
        ),
        f"{MIXED}: above the best of the components' means, without a step, beyond noise": ends_above(
            four, under(MODE, four)
        ),
        f"{MIXED}: a mixture of 4 ends above one Gaussian, beyond noise": ends_above(four, end(one)),
        f"{MIXED}: delta 0.5 ends above delta 8, beyond noise": ends_above(four, under(FAR, four)),
    },
    observed={
        f"{MIXED}: the best of the means, without a step, ends above 99": under(MODE, four) > 99,
        f"{MIXED}: one Gaussian ends above 95": end(one) > 95,
        f"{MIXED}: the heaviest component alone ends below 50": under(HEAVIEST, four) < 50,
    },
    finding="Half of the data are uniform actions, and the heaviest component is mostly theirs: its mean leads "
    "nowhere. Drawn actions reach the goal in most episodes. The choice among the components by the "
    "behaviour's Q is what decides here. It reaches the goal in every episode by itself, and so does one "
    "Gaussian in nearly all: this world is too easy to show what the step adds, or the mixture. A step much "
    "too far loses a little. The critics learn means, not the paper's quantiles.",
)
