from results.checks import Claim, course, dataset_mean, end, gain, logged, noise, start
from results.grid import worlds

FEW, HALF = "pendulum-few", "pendulum-half"
RATES = "--normalize-return --temperature 0.3 --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"

lacking = {d: worlds("awac_finetune", d, "10000+10000", RATES) for d in (FEW, HALF)}

CLAIM = Claim(
    title="AWAC goes on from offline data online, and improves",
    paper="AWAC (arXiv 2006.09359) claims that its weighted cloning uses prior data and improves quickly in "
    "interaction, where methods with an explicit model of the behaviour stay where they are.",
    runs=[*lacking.values()],
    checks={
        **{
            f"{d}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run))
            for d, run in lacking.items()
        },
        f"{FEW}: it never falls below its offline level beyond noise": (
            course(lacking[FEW])[1:].min() > start(lacking[FEW]) - noise(start(lacking[FEW]))
        ),
    },
    observed={
        f"{HALF}: it never falls below its offline level beyond noise": (
            course(lacking[HALF])[1:].min() > start(lacking[HALF]) - noise(start(lacking[HALF]))
        ),
        f"{HALF}: that level is more than 500 below the data's mean": (
            start(lacking[HALF]) < dataset_mean(lacking[HALF]) - 500
        ),
        f"{HALF}: its Q is above 0 at the end of offline training, where every reward is a cost": (
            logged("q", lacking[HALF], file="offline.csv") > 0
        ),
        f"{FEW}: it begins above -200, where there is little left to learn": start(lacking[FEW]) > -200.0,
        f"{HALF}: it ends above -200, too": end(lacking[HALF]) > -200.0,
    },
    finding="Where the data lack the way up (uniform actions below the horizontal) AWAC's offline level is that of a "
    "pendulum that hangs, far below the mean of the data, and its Q is above zero, though every reward is a "
    "cost. It learns to swing up and balance in ten thousand steps; that it does not dip holds from the floor, "
    "and whether prior data speed up what it gains was not held against learning without them. Where a tenth "
    "of the transitions is left it balances before it interacts, and stays there: the gain is within noise.",
)
