from results.checks import Claim, above, below, end
from results.grid import replay, replay_bc, small

NEAR, REPLAY = "point-hazard-explore", "hopper-medium-replay-v0"
SHORT = "--discount 0.9"  # of all: a step is worth a tenth of Q
VAE = "--vae-hidden-dims 64 64 --vae-updates 5000 --vae-lr 1e-3 --actor-lr 3e-4"

bc = small("bc", dataset=NEAR)
within, beyond = (small("plas", f"{SHORT} {VAE} --perturbation {phi}", f"phi{phi}", NEAR) for phi in (0, 2))
hopper = replay("plas", "--vae-hidden-dims 64 64 --vae-updates 6000 --vae-lr 1e-3", updates=12_000, batch_size=64)
hopper_bc = replay_bc(12_000, 64)

CLAIM = Claim(
    title="A policy that chooses latent actions stays in the data without a penalty",
    paper="PLAS (arXiv 2011.07213) claims that a policy in the latent space of a model of the data improves on the "
    "behaviour without leaving its support, where an explicit constraint has to be weighed.",
    runs=[bc, within, beyond, hopper_bc, hopper],
    checks={
        f"{NEAR}: PLAS ends above cloning, beyond noise": above(end(within), end(bc)),
        f"{NEAR}: with a perturbation of up to 2, that reaches every action, it ends lower, beyond noise": (
            below(end(beyond), end(within))
        ),
        f"{REPLAY}: PLAS ends above cloning, beyond noise": above(end(hopper), end(hopper_bc)),
    },
    finding="The data's directions are random, so that cloning hardly moves; the best latent action leads to the goal "
    "in every lane. With a perturbation that reaches every action most lanes end a little above that, and the others "
    "hardly leave their start: the spread of the lanes is as large as the loss of their mean. On hopper-medium-replay "
    "it is a little above cloning after 12,000 updates, within noise; more were not made.",
)
