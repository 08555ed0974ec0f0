from results.checks import Claim, above, below, end
from results.grid import replay, replay_bc, small

NEAR, REPLAY = "point-hazard-explore", "hopper-medium-replay-v0"
SHORT = "--discount 0.9"  # of all: a step is worth a tenth of Q

bc = small("bc", dataset=NEAR)
near, far = (
    small("bcq", f"{SHORT} --vae-hidden-dims 64 64 --perturbation {phi}", f"phi{phi}", NEAR) for phi in (0.05, 2)
)
hopper = replay("bcq", "--vae-hidden-dims 64 64", updates=12_000, batch_size=64)
hopper_bc = replay_bc(12_000, 64)

CLAIM = Claim(
    title="Candidates of the data's own actions make Q-learning work without interaction",
    paper="BCQ (arXiv 1812.02900) claims that Q-learning over actions that a model of the data suggests beats cloning "
    "on imperfect demonstrations, where off-policy learning without that constraint fails.",
    runs=[bc, near, far, hopper_bc, hopper],
    checks={
        f"{NEAR}: BCQ ends above cloning, beyond noise": above(end(near), end(bc)),
        f"{NEAR}: with a perturbation of up to 2, that reaches every action, BCQ ends lower, beyond noise": (
            below(end(far), end(near))
        ),
        f"{REPLAY}: BCQ ends above cloning, beyond noise": above(end(hopper), end(hopper_bc)),
    },
    finding="The data's directions are random, so that cloning hardly moves, and the best of a few candidates leads to "
    "the goal in every lane. A perturbation that reaches every action ends above that in half of the lanes and "
    "nowhere in the others: here it does not take the support of the data to go wrong, since actions of all kinds are "
    "in it, and what the perturbation finds between them is as often right as not. On hopper-medium-replay it is just "
    "above cloning after 12,000 updates; values had not settled, and more were not made.",
)
