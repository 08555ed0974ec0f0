import numpy as np

from results.checks import Claim, LaneMean, Quantity, above, combined, dataset_mean, end, gain, noise, start
from results.grid import FAST, worlds

HALF = "pendulum-half"
WEIGHTS = "--vae-hidden-dims 64 64 --vae-updates 4000 --support-weight 0.5 --min-decay 0.2 1"

slow = worlds("spot_finetune", HALF, "10000+5000", WEIGHTS, "decay", seeds=16)
run = worlds("spot_finetune", HALF, "10000+5000", f"{WEIGHTS} {FAST} --online-discount 0.98", "fast", seeds=16)
DECAYING, CONSTANT = "min_decay=0.2", "min_decay=1"


def lanes(mean: LaneMean) -> Quantity:
    """[lanes], in the order of their seeds: of two settings they are pairs, which differ online alone."""
    return Quantity(mean.lanes, mean.runs)


falling, constant = lanes(end(run, DECAYING)), lanes(end(run, CONSTANT))

CLAIM = Claim(
    title="A constraint to the data's support is let go online, and the policy improves",
    paper="SPOT (arXiv 2202.06239) claims that its constraint, as a term of the loss, goes on online with a weight "
    "that falls, and that the policy improves beyond what the data allowed.",
    runs=[run, slow],
    checks={
        f"{HALF}: with a falling weight it ends above its offline level, beyond noise": (
            gain(run, DECAYING) > noise(gain(run, DECAYING))
        ),
        f"{HALF}: the falling weight ends above the constant one, beyond noise": (
            above(end(run, DECAYING), end(run, CONSTANT))
        ),
    },
    observed={
        f"{HALF}: both begin online from the same offline level, lane by lane": (
            abs(lanes(start(run, DECAYING)) - lanes(start(run, CONSTANT))) < 0.01
        ),
        f"{HALF}: in more than nine tenths of the paired lanes the falling weight ends higher": (
            combined(np.greater, falling, constant).mean() > 0.9
        ),
        f"{HALF}: its median lane ends more than 50 above that of the constant weight": (
            combined(np.median, falling) > combined(np.median, constant) + 50.0
        ),
        f"{HALF}: one pair of lanes ends below -900 with either weight": (
            combined(np.maximum, falling, constant).min() < -900.0
        ),
        f"{HALF}: the offline level is below the data's mean": start(run, DECAYING) < dataset_mean(run),
        f"{HALF}: the constant weight ends above its offline level, too, beyond noise": (
            gain(run, CONSTANT) > noise(gain(run, CONSTANT))
        ),
        f"{HALF}: with the presets' rates the falling weight ends below its offline level, beyond noise": (
            gain(slow, DECAYING) + noise(gain(slow, DECAYING)) < 0.0
        ),
    },
    finding="With targets that follow faster, larger steps and a shorter horizon the policy rises online by most of "
    "the way to the top, with a falling weight and with a constant one. The falling weight ends higher in "
    "nearly every pair of lanes, which have the same seed and the same offline agent, and so does its median "
    "lane. The means differ by less than noise, since one pair stays stuck near the bottom with either weight. "
    "So letting go of the constraint helps, by little beside what experience brings. The rise begins below the "
    "mean of the data: that the policy goes beyond what the data allowed is shown by its end alone. With the "
    "presets' rates it was lost when the constraint was let go. Which of the rates decides was not tried; with "
    "neither had the values settled.",
)
