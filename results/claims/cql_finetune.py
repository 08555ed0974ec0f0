from results.checks import Claim, course, dataset_mean, dip, end, gain, highest, logged_at, noise, start
from results.grid import worlds

FEW, HALF, MIXED = "pendulum-few", "pendulum-half", "point-umaze-mixed"
FORM = {
    FEW: "--n-actions 4 --reward-scale 0.1 --critic-lr 1e-3 --actor-lr 3e-4",
    HALF: "--n-actions 4 --reward-scale 0.1 --discount 0.98 --tau 0.01 --critic-lr 1e-3 --actor-lr 3e-4",
    MIXED: "--n-actions 4 --reward-scale 10 --reward-shift -5 --discount 0.97 --tau 0.01 --critic-lr 1e-3",
}

runs = {d: worlds("cql_finetune", d, "8000+3000", form, seeds=16) for d, form in FORM.items() if d != HALF}
runs[HALF] = worlds("cql_finetune", HALF, "8000+10000", FORM[HALF])

CLAIM = Claim(
    title="CQL that is fine-tuned falls before it rises",
    paper="Cal-QL (arXiv 2303.05479) claims of its baseline that CQL's values are too low for what is tried online: "
    "the policy first unlearns, and then improves beyond its offline level.",
    runs=[*runs.values()],
    checks={
        **{
            f"{d}: it falls below its offline level at the onset, beyond noise": dip(run) > noise(dip(run))
            for d, run in runs.items()
        },
        **{
            f"{d}: it ends above its offline level, beyond noise": gain(runs[d]) > noise(gain(runs[d]))
            for d in runs
            if d != MIXED
        },
    },
    observed={
        f"{FEW}: it begins and ends below -1250": highest(start(runs[FEW]), end(runs[FEW])) < -1250.0,
        f"{HALF}: it loses more than 300": end(runs[HALF]) < start(runs[HALF]) - 300.0,
        f"{HALF}: and hangs before the end": course(runs[HALF])[1:].min() < -1450.0,
        f"{HALF}: its offline level is below the data's mean": start(runs[HALF]) < dataset_mean(runs[HALF]),
        f"{HALF}: in the last 2,000 of 8,000 offline updates the entropy rises by more than 0.5": (
            logged_at(8000, "entropy", runs[HALF], file="offline.csv")
            > logged_at(6000, "entropy", runs[HALF], file="offline.csv") + 0.5
        ),
        f"{HALF}: and CQL's gap falls to less than half": (
            logged_at(8000, "gap", runs[HALF], file="offline.csv")
            < logged_at(6000, "gap", runs[HALF], file="offline.csv") / 2
        ),
        f"{HALF}: the temperature is then above 1.4": logged_at(8000, "alpha", runs[HALF], file="offline.csv") > 1.4,
        f"{HALF}: after 2,000 steps online the entropy is above 0.5, of 0.69 that uniform actions have": (
            logged_at(2000, "entropy", runs[HALF]) > 0.5
        ),
        f"{MIXED}: it begins above 95": start(runs[MIXED]) > 95.0,
        f"{MIXED}: it falls by less than 1": dip(runs[MIXED]) < 1.0,
    },
    finding="Where half of Pendulum's data are uniform actions CQL loses all that it had at the onset, until the "
    "pendulum hangs, and it does not come back in more steps than it had offline updates. But the fall has "
    "begun before the first step online: in the last offline updates the policy's entropy rises, the gap that "
    "CQL keeps falls, and the temperature has grown past where it began, so that online actions are nearly "
    "uniform. Its offline level is below the mean of the data, and its values had not settled. So this fall "
    "may be one of a temperature that has overshot as well as the unlearning that the paper means: they were "
    "not tried apart. On a tenth of the data it has learned next to nothing that it could lose, and loses some "
    "of that. On the U maze the goal is reached before and after, and there is no fall.",
)
