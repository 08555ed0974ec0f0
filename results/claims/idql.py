from results.checks import Claim, end, noise, under
from results.grid import Entry

NEAR = "point-hazard-explore"
SIZES = "--seeds 8 --batch-size 64 --hidden-dims 64 64 --updates 5000 --eval-every 2500 --eval-episodes 20"
SHORT = "--discount 0.9"  # a step is worth a tenth of Q

bc = Entry("bc", NEAR, f"--preset none {SIZES}", series="claim")
flow = Entry("idql", NEAR, f"--preset ifql {SIZES} {SHORT}", "flow", "claim", ("n_candidates=1", "n_candidates=4"))
one, four = (under(f"n_candidates={n}", flow) for n in (1, 4))

CLAIM = Claim(
    title="The best of many cloned actions improves a policy that was never told of rewards",
    paper="IDQL (arXiv 2304.10573) claims that a policy is improved by choosing among candidates of a model of the "
    "data with IQL's Q, and that more candidates improve it more; FQL's paper (arXiv 2502.02538) has its flow form.",
    runs=[bc, flow],
    checks={
        f"{NEAR}: the best of 32 candidates ends above one of them, beyond noise": (
            end(flow) > one + noise(end(flow), one)
        ),
        f"{NEAR}: the best of 32 ends above the best of 4, beyond noise": end(flow) > four + noise(end(flow), four),
        f"{NEAR}: it ends above cloning, beyond noise": end(flow) > end(bc) + noise(end(flow), end(bc)),
    },
    finding="Of one policy that clones the data, the best of 32 actions by Q ends above the best of four, and that "
    "above one action, which is what cloning does. Only what acts differs: the three are evaluations of one training.",
)
