from results.checks import Claim, course, end, noise, online_mean, start
from results.grid import Entry

DEMOS = "point-umaze-demos"
SIZES = (
    "--seeds 8 --preset small --batch-size 32 --hidden-dims 32 32 --discount 0.95 --offline-updates 1500 "
    "--offline-eval-every 1500 --env-steps 800 --learning-starts 100 --eval-every 200 --log-every 100"
)

fowm = Entry("fowm", DEMOS, f"{SIZES} --uncertainty-cost 0 20", "", "claim", ("planning=False",))
FREE, SHY = "uncertainty_cost=0", "uncertainty_cost=20"


def above(a, b):
    return a > b + noise(a, b)


CLAIM = Claim(
    title="A planner that shuns what its critics dispute neither starts low nor dips when it goes online",
    paper="FOWM (arXiv 2310.16029) claims that a world model of offline data misleads its planner, and that plans "
    "which weigh the return against the critics' disagreement prevent it, offline and while fine-tuning in few trials.",
    runs=[fowm],
    checks={
        f"{DEMOS}: after offline training it ends above the same planner without the penalty, beyond noise": (
            above(start(fowm, SHY), start(fowm, FREE))
        ),
        f"{DEMOS}: so it does on average over the online phase, beyond noise": (
            above(online_mean(fowm, SHY), online_mean(fowm, FREE))
        ),
        f"{DEMOS}: online it never falls below its offline level beyond noise": (
            course(fowm, SHY)[1:].min() > start(fowm, SHY) - noise(start(fowm, SHY))
        ),
        f"{DEMOS}: it ends above the planner without the penalty, beyond noise": (
            above(end(fowm, SHY), end(fowm, FREE))
        ),
    },
)
