from results.checks import Claim, course, end, gain, noise, online_mean, start
from results.grid import worlds

HALF = "pendulum-half"

RATES = "--normalize-return --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
SIZES = "--n-candidates 32 --residual-dim 64 --time-dim 32"
DIFFUSION = f"{RATES} {SIZES} --learning-starts 500 --online-batch-size 64"
TRAINED = "--online-actor --online-choice implicit"

frozen = {d: worlds("idql_finetune", d, "10000+10000", DIFFUSION) for d in (HALF,)}
trained = {d: worlds("idql_finetune", d, "10000+10000", f"{DIFFUSION} {TRAINED}", "trained") for d in (HALF,)}
ifql = {d: worlds("idql_finetune", d, "10000+10000", f"--preset ifql {RATES}", "ifql") for d in (HALF,)}
IQL_RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
iql = {d: worlds("iql_finetune", d, "10000+10000", IQL_RATES) for d in (HALF,)}

CLAIM = Claim(
    title="IDQL improves online though its model of the actions stays as it was",
    paper="IDQL (arXiv 2304.10573) claims that with Q and V alone learning on, and the diffusion model of the data's "
    "actions as it was, the policy improves online, and beyond IQL's fine-tuning; its second variant trains the model "
    "too.",
    runs=[*frozen.values(), *trained.values(), *ifql.values(), *iql.values()],
    checks={
        **{
            f"{d}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run))
            for d, run in frozen.items()
        },
        **{
            f"{d}: it never falls below its offline level beyond noise": (
                course(run)[1:].min() > start(run) - noise(start(run))
            )
            for d, run in frozen.items()
        },
        **{
            f"{d}: its mean over the online evaluations is above that of IQL's fine-tuning, beyond noise": (
                online_mean(run) > online_mean(iql[d]) + noise(online_mean(run), online_mean(iql[d]))
            )
            for d, run in frozen.items()
        },
    },
    observed={
        **{
            f"{d}: with a model that is trained online it ends above that": end(trained[d]) > end(frozen[d])
            for d in frozen
        },
        **{f"{d}: IFQL ends above its offline level, beyond noise": gain(r) > noise(gain(r)) for d, r in ifql.items()},
    },
    finding="",
)
