from results.checks import Claim, dip, gain, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
PHASES = "--offline-updates 5000 --offline-eval-every 5000 --env-steps 6000 --eval-every 500 --eval-episodes 20"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --n-actions 4"

run = Entry("cql_finetune", DETOURS, f"{SIZES} {PHASES}", series="claim")

CLAIM = Claim(
    title="CQL that is fine-tuned falls before it rises",
    paper="Cal-QL (arXiv 2303.05479) claims of its baseline that CQL's values are too low for what is tried online: "
    "the policy first unlearns, and then improves beyond its offline level.",
    runs=[run],
    checks={
        f"{DETOURS}: it falls below its offline level at the onset, beyond noise": dip(run) > noise(dip(run)),
        f"{DETOURS}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run)),
    },
)
