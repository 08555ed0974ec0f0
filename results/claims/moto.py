from results.checks import Claim, above, course, end, logged, noise, start
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
ARMS = {"with": PRIOR, "without": NONE}

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
        f"{DEMOS}: without the prior, under the penalty, no lane ever arrives": course(moto, NONE).max() < 0.01,
        **{
            f"{DEMOS}, {name} the prior: in the end a step's penalty is more than 3 times the imagined reward": (
                logged("penalty", moto, setting) > 3.0 * logged("model_reward", moto, setting)
            )
            for name, setting in ARMS.items()
        },
        **{
            f"{DEMOS}, {name} the prior: V is below -3, where arriving pays 1": logged("v", moto, setting) < -3.0
            for name, setting in ARMS.items()
        },
        f"{DEMOS}: without the penalty V is above 0.5": logged("v", free) > 0.5,
        f"{DEMOS}: it ends online more than 20 below its offline level": end(moto, PRIOR) < start(moto, PRIOR) - 20,
        f"{DEMOS}: without the penalty it ends more than 30 higher": end(free) > end(moto, PRIOR) + 30,
        f"{DEMOS}: without the penalty it is never below 94": course(free).min() > 94,
    },
    finding="The penalty outweighs the reward: an imagined step loses several times what it earns, so that V is far "
    "below zero, where arriving pays one: what the policy is paid for is mostly the disagreement. With it some lanes "
    "lose online what they had, without it they keep it, near the ceiling: there is little left to gain. A penalty "
    "of a size that leaves the reward its say was not tried. Under this penalty the policy with the behaviour prior "
    "learns the demonstrated way offline, the one without it learns nothing, neither offline nor in 300 steps "
    "online. Without the prior it was not run without the penalty: whether the prior decides by itself is open, and "
    "so is whether it only keeps the policy from what the penalty asks for. Networks of 32 units and 600 updates are "
    "what two cores carry.",
)
