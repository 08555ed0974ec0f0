from results.checks import Claim, end, logged, noise
from results.grid import small

NARROW = "pendulum-narrow"

runs = {n: small("sac_n", f"--n-critics {n}", f"n{n}", NARROW, updates=20_000) for n in (2, 10, 50)}

CLAIM = Claim(
    title="The least of many critics alone makes SAC an offline method",
    paper="SAC-N (arXiv 2110.01548) claims that the least of enough critics (up to 500) keeps SAC near "
    "the data, where the least of two overestimates what lies outside, with no other regulariser.",
    runs=list(runs.values()),
    checks={
        f"{NARROW}: fifty critics end above two, beyond noise": (
            end(runs[50]) > end(runs[2]) + noise(end(runs[50]), end(runs[2]))
        ),
        **{
            f"{NARROW}: {n} critics disagree more at the policy's actions than at the data's": (
                logged("q_pi_std", runs[n]) > logged("q_std", runs[n])
            )
            for n in runs
        },
    },
)
