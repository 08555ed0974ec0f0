from results.checks import Claim, above, course, dataset_mean, end, gain, noise, online_mean, start
from results.grid import worlds

FEW, HALF, MAZE = "pendulum-few", "pendulum-half", "point-umaze-mixed"

RATES = "--discount 0.98 --tau 0.01 --learning-rate 1e-3"
fql = {d: worlds("fql_finetune", d, "10000+10000", f"{RATES} --distillation-weight 0.1") for d in (FEW, HALF)}
held = worlds("fql_finetune", FEW, "10000+10000", RATES, "weight-1")
fql[MAZE] = worlds("fql_finetune", MAZE, "10000+3000")
IQL_RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
iql = {d: worlds("iql_finetune", d, "10000+10000", IQL_RATES) for d in (FEW, HALF)}

CLAIM = Claim(
    title="FQL goes on online without a drop, and further than IQL",
    paper="FQL (arXiv 2502.02538) claims that the same losses go on from offline to online training, without a drop "
    "and to higher scores than IQL's fine-tuning and others.",
    runs=[*fql.values(), held, *iql.values()],
    checks={
        **{f"{d}: it ends above its offline level, beyond noise": gain(fql[d]) > noise(gain(fql[d])) for d in iql},
        **{
            f"{d}: it never falls below its offline level beyond noise": (
                course(run)[1:].min() > start(run) - noise(start(run))
            )
            for d, run in fql.items()
        },
        **{
            f"{d}: its mean over the online evaluations is above that of IQL's fine-tuning, beyond noise": (
                above(online_mean(fql[d]), online_mean(iql[d]))
            )
            for d in iql
        },
    },
    observed={
        f"{HALF}: IQL begins more than 500 below the data's mean": start(iql[HALF]) < dataset_mean(iql[HALF]) - 500,
        f"{HALF}: it ends above IQL's fine-tuning": end(fql[HALF]) > end(iql[HALF]),
        f"{FEW}: it ends below IQL's fine-tuning": end(fql[FEW]) < end(iql[FEW]),
        f"{FEW}: with ten times the weight of the distillation the gain is within the noise": (
            gain(held) < noise(gain(held))
        ),
    },
    finding="Where half of the data are uniform actions the one-step policy is far above IQL's before the first step "
    "online, and goes on to the top in small steps, without a dip. IQL begins far below the mean of the data "
    "there, and ends about as high: FQL's higher mean online is likely that of the beginning. On a tenth of "
    "the data it begins below IQL, whose Gaussian has found the top offline, and comes near it online: what "
    "lacks is data, and they come. The weight of the distillation decides: with the one that the files have "
    "where nothing is known the policy stays what the data did, offline and online, since the flow that holds "
    "it clones the data above all. On the maze the offline policy arrives nearly always, and single lanes miss "
    "goals in one evaluation or another.",
)
