from results.checks import Claim, end, noise
from results.grid import Entry

MIXED = "point-umaze-mixed"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000 --eval-episodes 20"
FLOW = f"--preset ifql {SIZES}"

bc = Entry("bc", MIXED, SIZES, series="claim")
one, many = (Entry("idql", MIXED, f"{FLOW} --n-candidates {n}", f"flow-n{n}", "claim") for n in (1, 32))

CLAIM = Claim(
    title="The best of many cloned actions improves a policy that was never told of rewards",
    paper="IDQL (arXiv 2304.10573) claims that a policy is improved by choosing among candidates of a model of the "
    "data with IQL's Q, and that more candidates improve it more; FQL's paper (arXiv 2502.02538) has its flow form.",
    runs=[bc, one, many],
    checks={
        f"{MIXED}: the best of 32 candidates ends above one of them, beyond noise": (
            end(many) > end(one) + noise(end(many), end(one))
        ),
        f"{MIXED}: it ends above cloning, beyond noise": end(many) > end(bc) + noise(end(many), end(bc)),
    },
)
