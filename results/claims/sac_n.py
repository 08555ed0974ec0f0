from results.checks import Claim, end, logged, noise
from results.grid import small

NARROW = "pendulum-narrow"

two, ten = (small("sac_n", f"--n-critics {n}", f"n{n}", NARROW) for n in (2, 10))


def above_the_data(run):
    """By how much the least Q of the policy's own actions exceeds that of the data."""
    return logged("q_pi", run) - logged("q", run)


CLAIM = Claim(
    title="The least of many critics alone makes SAC an offline method",
    paper="SAC-N (arXiv 2110.01548) claims that the least of enough critics keeps SAC near the data, where the least "
    "of two overestimates what lies outside, with no other regulariser.",
    runs=[two, ten],
    checks={
        f"{NARROW}: ten critics end above two, beyond noise": end(ten) > end(two) + noise(end(ten), end(two)),
        f"{NARROW}: the critics' disagreement at the policy's actions is larger than at the data's": (
            logged("q_pi_std", ten) > logged("q_std", ten)
        ),
        f"{NARROW}: ten critics value the policy's actions over the data's by less than two do": (
            above_the_data(ten) < above_the_data(two)
        ),
    },
)
