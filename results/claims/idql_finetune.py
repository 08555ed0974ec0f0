from results.checks import Claim, above, course, end, gain, noise, online_mean, start, under
from results.grid import worlds

HALF = "pendulum-half"

RATES = "--normalize-return --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
SIZES = "--n-candidates 32 --residual-dim 64 --time-dim 32"
DIFFUSION = f"{RATES} {SIZES} --learning-starts 500 --online-batch-size 64"
IQL_RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"

frozen = worlds("idql_finetune", HALF, "10000+10000", DIFFUSION)._replace(evaluations=("n_candidates=1",))
plain = worlds("idql_finetune", HALF, "10000+10000", f"{DIFFUSION} --no-value-layer-norm", "plain")
iql = worlds("iql_finetune", HALF, "10000+10000", IQL_RATES)

CLAIM = Claim(
    title="IDQL improves online though its model of the actions stays as it was",
    paper="IDQL (arXiv 2304.10573) claims that with Q and V alone learning on, and the diffusion model of the data's "
    "actions as it was, the policy improves online, and beyond IQL's fine-tuning (its second variant, which trains "
    "the model too, is --online-actor).",
    runs=[frozen, plain, iql],
    checks={
        f"{HALF}: it ends above its offline level, beyond noise": gain(plain) > noise(gain(plain)),
        f"{HALF}: it never falls below its offline level beyond noise": (
            course(plain)[1:].min() > start(plain) - noise(start(plain))
        ),
        f"{HALF}: its mean over the online evaluations is above that of IQL's fine-tuning, beyond noise": (
            above(online_mean(plain), online_mean(iql))
        ),
        f"{HALF}: with the V of the offline script it ends above its offline level as well, beyond noise": (
            gain(frozen) > noise(gain(frozen))
        ),
    },
    observed={
        f"{HALF}: with the V of the offline script it ends below IQL's fine-tuning": end(frozen) < end(iql),
        f"{HALF}: there one action that is drawn and not chosen does better than the best of 32, beyond noise": (
            above(under("n_candidates=1", frozen), end(frozen))
        ),
    },
    finding="Where half of the data are uniform actions it improves without a dip to near where IQL ends, though the "
    "actions that it chooses from stay those of the data. But not with the V of the authors' offline script, which "
    "normalises what it sees over the numbers of an observation: of Pendulum's three that leaves one, V cannot tell "
    "states apart, and the choice by Q does worse than no choice, after the online phase as well. The learner that "
    "their fine-tuning was written for has no such V. Hence --no-value-layer-norm where observations have few numbers.",
)
