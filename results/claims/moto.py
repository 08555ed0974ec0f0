from results.checks import Claim, above, course, end, noise, start
from results.grid import Entry

DEMOS = "point-umaze-demos"
SIZES = (
    "--seeds 8 --preset small --batch-size 8 --window-steps 8 --hidden-dims 32 32 --model-hidden-dims 32 "
    "--recurrent-dim 32 --latent-variables 4 --discount 0.95 --offline-updates 600 --offline-eval-every 600 "
    "--env-steps 300 --learning-starts 50 --eval-every 100 --log-every 50 --eval-episodes 20"
)

moto = Entry("moto", DEMOS, f"{SIZES} --clone-weight 0 1", "", "claim")
free = Entry("moto", DEMOS, f"{SIZES} --reward-penalty 0", "free", "claim")
scratch = Entry("moto", DEMOS, f"{SIZES} --from-scratch --offline-updates 0", "scratch", "claim")
PRIOR, NONE = "clone_weight=1", "clone_weight=0"

CLAIM = Claim(
    title="A behaviour prior and a penalty carry a latent world model from a dataset into its environment",
    paper="MOTO (arXiv 2401.03306) claims that imagined returns less the model's uncertainty, with a policy held to "
    "the data, let model-based learning go online without a collapse, and that each of these parts adds.",
    runs=[moto, free, scratch],
    checks={
        f"{DEMOS}: after offline training it is above itself without the prior, beyond noise": (
            above(start(moto, PRIOR), start(moto, NONE))
        ),
        f"{DEMOS}: online it never falls below its offline level beyond noise": (
            course(moto, PRIOR)[1:].min() > start(moto, PRIOR) - noise(start(moto, PRIOR))
        ),
        f"{DEMOS}: it ends above itself without the prior, beyond noise": above(end(moto, PRIOR), end(moto, NONE)),
        f"{DEMOS}: it ends above itself without the penalty, beyond noise": above(end(moto, PRIOR), end(free)),
        f"{DEMOS}: it ends above itself from scratch, beyond noise": above(end(moto, PRIOR), end(scratch)),
    },
    observed={
        f"{DEMOS}: without the prior no lane ever arrives": course(moto, NONE).max() < 0.01,
        f"{DEMOS}: it ends online more than 20 below its offline level": end(moto, PRIOR) < start(moto, PRIOR) - 20,
        f"{DEMOS}: without the penalty it ends more than 30 higher": end(free) > end(moto, PRIOR) + 30,
        f"{DEMOS}: without the penalty it is never below 94": course(free).min() > 94,
    },
    finding="The behaviour prior decides: with it the demonstrated way is learned offline, without it nothing is, "
    "neither offline nor in 300 steps online. The penalty works against its purpose here: with it some lanes "
    "lose online what they had, without it they keep it. Networks of 32 units and 600 updates are what two "
    "cores carry.",
)
