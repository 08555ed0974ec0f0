from results.checks import Claim, course, end, gain, noise, start
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
        **{
            f"{d}: it never falls below its offline level beyond noise": (
                course(run)[1:].min() > start(run) - noise(start(run))
            )
            for d, run in lacking.items()
        },
    },
    observed={
        f"{FEW}: it begins above -200, where there is little left to learn": start(lacking[FEW]) > -200.0,
        f"{HALF}: it ends above -200, too": end(lacking[HALF]) > -200.0,
    },
    finding="Where the data lack the way up (uniform actions below the horizontal) AWAC's offline level is that of a "
    "pendulum that hangs, and it learns to swing up and balance in ten thousand steps, without a dip. Where a tenth of "
    "the transitions is left it balances before it interacts, and stays there: the gain is within noise.",
)
