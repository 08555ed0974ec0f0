from results.checks import Claim, end, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000 --eval-episodes 20"

bc = Entry("bc", DETOURS, SIZES, series="claim")
near, far = (
    Entry("bcq", DETOURS, f"{SIZES} --vae-hidden-dims 64 64 --perturbation {phi}", f"phi{phi}", "claim")
    for phi in (0.05, 2)
)

CLAIM = Claim(
    title="Candidates of the data's own actions make Q-learning work without interaction",
    paper="BCQ (arXiv 1812.02900) claims that Q-learning over actions that a model of the data suggests beats cloning "
    "on imperfect demonstrations, where off-policy learning without that constraint fails.",
    runs=[bc, near, far],
    checks={
        f"{DETOURS}: BCQ ends above cloning, beyond noise": end(near) > end(bc) + noise(end(near), end(bc)),
        f"{DETOURS}: with a perturbation of up to 2, that reaches every action, BCQ ends lower, beyond noise": (
            end(far) < end(near) - noise(end(far), end(near))
        ),
    },
)
