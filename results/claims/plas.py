from results.checks import Claim, end, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000 --eval-episodes 20"
VAE = "--vae-hidden-dims 64 64 --vae-updates 5000 --vae-lr 1e-3 --actor-lr 3e-4"

bc = Entry("bc", DETOURS, SIZES, series="claim")
within, beyond = (Entry("plas", DETOURS, f"{SIZES} {VAE} --perturbation {phi}", f"phi{phi}", "claim") for phi in (0, 2))

CLAIM = Claim(
    title="A policy that chooses latent actions stays in the data without a penalty",
    paper="PLAS (arXiv 2011.07213) claims that a policy in the latent space of a model of the data improves on the "
    "behaviour without leaving its support, where an explicit constraint has to be weighed.",
    runs=[bc, within, beyond],
    checks={
        f"{DETOURS}: PLAS ends above cloning, beyond noise": end(within) > end(bc) + noise(end(within), end(bc)),
        f"{DETOURS}: with a perturbation of up to 2, that reaches every action, it ends lower, beyond noise": (
            end(beyond) < end(within) - noise(end(beyond), end(within))
        ),
    },
)
