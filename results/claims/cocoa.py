from results.checks import Claim, above, below, end, logged
from results.grid import Entry

STARTS = "point-openstarts-onestart"
SIZES = (
    "--seeds 8 --preset none --batch-size 64 --hidden-dims 32 32 --transduction-dim 4 --n-actions 2 --actor-lr 1e-3 "
    "--critic-lr 1e-3 --cql-alpha 1 --n-models 3 --model-hidden-dims 64 64 --seeker-hidden-dims 32 32 "
    "--dynamics-updates 2000 --seeker-updates 1000 --updates 2000 --eval-every 1000 --log-every 500 --eval-episodes 20"
)

seeker, random, plain = (
    Entry("cocoa", STARTS, f"{SIZES} --anchors {anchors}", anchors, "claim") for anchors in ("seeker", "random", "none")
)

CLAIM = Claim(
    title="Anchors that are sought let CQL's networks meet states that the data do not show",
    paper="COCOA (arXiv 2404.04682) claims better scores than CQL's own (its code: 64.0 against 61.6 on average of 12 "
    "MuJoCo sets), from anchors nearer to the data than the states, which the seeker finds.",
    runs=[seeker, random, plain],
    checks={
        f"{STARTS}: the anchors of states away from the data are nearer to it, beyond noise": (
            below(logged("distance_anchor", seeker), logged("distance_state", seeker))
        ),
        f"{STARTS}: COCOA ends above CQL, beyond noise": above(end(seeker), end(plain)),
        f"{STARTS}: COCOA ends above the same with random anchors, beyond noise": (above(end(seeker), end(random))),
    },
    finding="The data come from one start, and episodes of the evaluation begin anywhere in an open world. With "
    "anchors that are sought every episode of every lane reaches the goal; with CQL that is so in one "
    "lane of eight, and with random anchors, in networks of the same size, in none: where the anchor lies "
    "decides, not the form of the network (CQL's have no embeddings and no layer "
    "normalisation). The anchors of states up to five steps away from the data lie "
    "nearer to it by about a third. Dynamics are nearly the action here, which makes models and seeker "
    "easy to learn. Where backward rollouts hardly leave the data, as on Pendulum's, anchors can bring "
    "little; a run there was broken off.",
)
