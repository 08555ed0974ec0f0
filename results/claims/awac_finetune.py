from results.checks import Claim, course, gain, noise, start
from results.grid import Entry

DETOURS = "point-umaze-medium"
PHASES = "--offline-updates 5000 --offline-eval-every 5000 --env-steps 6000 --eval-every 1000 --eval-episodes 20"

run = Entry("awac_finetune", DETOURS, f"--seeds 8 --batch-size 128 --hidden-dims 64 64 {PHASES}", series="claim")

CLAIM = Claim(
    title="AWAC goes on from offline data online, and improves",
    paper="AWAC (arXiv 2006.09359) claims that its weighted cloning uses prior data and improves quickly in "
    "interaction, where methods with an explicit model of the behaviour stay where they are.",
    runs=[run],
    checks={
        f"{DETOURS}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run)),
        f"{DETOURS}: it never falls below its offline level beyond noise": (
            course(run)[1:].min() > start(run) - noise(start(run))
        ),
    },
)
