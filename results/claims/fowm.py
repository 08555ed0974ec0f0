from results.checks import Claim, above, course, end, gain, lost, noise, online_mean, start
from results.grid import Entry

DEMOS = "point-umaze-demos"
SIZES = (
    "--seeds 8 --preset small --batch-size 32 --hidden-dims 32 32 --discount 0.95 --offline-updates 1500 "
    "--offline-eval-every 1500 --env-steps 800 --learning-starts 100 --eval-every 200 --log-every 100"
)

fowm = Entry("fowm", DEMOS, f"{SIZES} --uncertainty-cost 0 20", "", "claim", ("planning=False",))
FREE, SHY = "uncertainty_cost=0", "uncertainty_cost=20"

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
    observed={
        f"{DEMOS}: after offline training the planner without the penalty scores less than 1": start(fowm, FREE) < 1.0,
        f"{DEMOS}: with the penalty it scores above 50": start(fowm, SHY) > 50.0,
        f"{DEMOS}: without the penalty it gains online, beyond noise": gain(fowm, FREE) > noise(gain(fowm, FREE)),
        f"{DEMOS}: with the penalty the policy alone ends within the noise of the planner": (
            abs(lost("planning=False", fowm, SHY)) < noise(lost("planning=False", fowm, SHY))
        ),
        f"{DEMOS}: at the end of the online phase both planners are within noise of each other": (
            abs(end(fowm, SHY) - end(fowm, FREE)) < noise(end(fowm, SHY), end(fowm, FREE))
        ),
    },
    finding="The demonstrations lead around a wall, straight behind which the goal is. Without the penalty the offline "
    "planner hardly ever arrives; online it gains, as it meets what the data do not show, until both planners "
    "are within noise of each other. With the penalty the offline planner arrives more often than not, and does "
    "not fall when it goes online. That it keeps the planner from harm is all that is seen: the policy alone, "
    "cloned with advantages, ends within the noise of the planner.",
)
