from results.checks import Claim, end, logged, noise
from results.grid import Entry

WEAK = "pendulum-weak"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 "
    "--model-updates 5000 --updates 10000 --rollout-batch 1000 --eval-every 5000 --rollout-steps 20"
)

morel = Entry("morel", WEAK, f"{SIZES} --unknown-above 2 1000000", "", "claim")
ours, naive = "unknown_above=2", "unknown_above=1e+06"

CLAIM = Claim(
    title="A model that halts where it is unknown does not promise what it does not know",
    paper="MOReL (arXiv 2005.05951) claims that the value in its pessimistic model bounds the true value from below, "
    "and that policies optimised in it are better than those of the naive model.",
    runs=[morel],
    checks={
        f"{WEAK}: MOReL ends above the naive model, beyond noise": (
            end(morel, ours) > end(morel, naive) + noise(end(morel, ours), end(morel, naive))
        ),
        f"{WEAK}: the pessimistic model promises less": logged("q_pi", morel, ours) < logged("q_pi", morel, naive),
        f"{WEAK}: its rollouts are nearer to the environment": (
            logged("error_1", morel, ours) < logged("error_1", morel, naive)
        ),
    },
    finding="The pessimistic model promises less and its rollouts stay nearer to the environment, as they should. Its "
    "policies are much worse here. Data of four controllers cover the states (see MOPO's claim), and HALT is "
    "worth less than any return of Pendulum; which of the two it is was not found out.",
)
