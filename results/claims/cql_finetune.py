from results.checks import Claim, dip, end, gain, noise, start
from results.grid import interaction, worlds

FEW, HALF, MIXED, REPLAY = "pendulum-few", "pendulum-half", "point-umaze-mixed", "hopper-medium-replay-v0"
FORM = {
    FEW: "--n-actions 4 --reward-scale 0.1 --critic-lr 1e-3 --actor-lr 3e-4",
    HALF: "--n-actions 4 --reward-scale 0.1 --discount 0.98 --tau 0.01 --critic-lr 1e-3 --actor-lr 3e-4",
    MIXED: "--n-actions 4 --reward-scale 10 --reward-shift -5 --discount 0.97 --tau 0.01 --critic-lr 1e-3",
}

runs = {d: worlds("cql_finetune", d, "8000+3000", form, seeds=16) for d, form in FORM.items() if d != HALF}
runs[HALF] = worlds("cql_finetune", HALF, "8000+10000", FORM[HALF])
runs[REPLAY] = interaction("cql_finetune", REPLAY, "10000+4800", "--n-actions 4")

CLAIM = Claim(
    title="CQL that is fine-tuned falls before it rises",
    paper="Cal-QL (arXiv 2303.05479) claims of its baseline that CQL's values are too low for what is tried online: "
    "the policy first unlearns, and then improves beyond its offline level.",
    runs=[*runs.values()],
    checks={
        f"{MIXED}: it falls below its offline level at the onset, beyond noise": (
            dip(runs[MIXED]) > noise(dip(runs[MIXED]))
        ),
        f"{FEW}: it falls below its offline level at the onset, beyond noise": dip(runs[FEW]) > noise(dip(runs[FEW])),
        f"{FEW}: it ends above its offline level, beyond noise": gain(runs[FEW]) > noise(gain(runs[FEW])),
    },
    observed={
        f"{FEW}: it begins at the return of a pendulum that hangs, below -1400": start(runs[FEW]) < -1400.0,
        f"{FEW}: it ends there, too": end(runs[FEW]) < -1400.0,
        f"{MIXED}: it begins above 95": start(runs[MIXED]) > 95.0,
        f"{MIXED}: it falls by less than 1": dip(runs[MIXED]) < 1.0,
    },
    finding="On Pendulum both the fall and the rise are beyond noise and mean nothing: the policy hangs before it "
    "interacts and after, where returns differ by a few parts in a hundred. CQL has learned nothing offline "
    "from these few transitions that it could lose online. On the U maze the goal is reached before and "
    "after, and there is no fall. The runs were made while networks began with the small outputs of cql.py; "
    "they are to be made again.",
)
