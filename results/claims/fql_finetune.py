from results.checks import Claim, course, end, gain, noise, online_mean, start
from results.grid import worlds

FEW, HALF, MAZE = "pendulum-few", "pendulum-half", "point-umaze-mixed"

RATES = "--discount 0.98 --tau 0.01 --distillation-weight 0.1"
fql = {d: worlds("fql_finetune", d, "10000+10000", f"{RATES} --learning-rate 1e-3") for d in (FEW, HALF)}
fql[MAZE] = worlds("fql_finetune", MAZE, "10000+3000")
IQL_RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
iql = {d: worlds("iql_finetune", d, "10000+10000", IQL_RATES) for d in (FEW, HALF)}

CLAIM = Claim(
    title="FQL goes on online without a drop, and further than IQL",
    paper="FQL (arXiv 2502.02538) claims that the same losses go on from offline to online training, without a drop "
    "and to higher scores than IQL's fine-tuning and others.",
    runs=[*fql.values(), *iql.values()],
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
                online_mean(fql[d]) > online_mean(iql[d]) + noise(online_mean(fql[d]), online_mean(iql[d]))
            )
            for d in iql
        },
    },
    observed={f"{d}: it ends above IQL's fine-tuning": end(fql[d]) > end(iql[d]) for d in iql},
    finding="",
)
