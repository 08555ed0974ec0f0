from results.checks import Claim, end, gain, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
PHASES = "--offline-updates 5000 --offline-eval-every 5000 --env-steps 6000 --eval-every 1000 --eval-episodes 20"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --vae-hidden-dims 64 64 --vae-updates 3000"

run = Entry("spot_finetune", DETOURS, f"{SIZES} {PHASES} --support-weight 1 --min-decay 0.2 1", "decay", "claim")
DECAYING, CONSTANT = "min_decay=0.2", "min_decay=1"

CLAIM = Claim(
    title="A constraint to the data's support is let go online, and the policy improves",
    paper="SPOT (arXiv 2202.06239) claims that its constraint, as a term of the loss, goes on online with a weight "
    "that falls, and that the policy improves beyond what the data allowed.",
    runs=[run],
    checks={
        f"{DETOURS}: with a falling weight it ends above its offline level, beyond noise": (
            gain(run, DECAYING) > noise(gain(run, DECAYING))
        ),
        f"{DETOURS}: the falling weight ends above the constant one, beyond noise": (
            end(run, DECAYING) > end(run, CONSTANT) + noise(end(run, DECAYING), end(run, CONSTANT))
        ),
    },
)
