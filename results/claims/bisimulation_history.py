from results.checks import Claim, above, course, end, logged, noise
from results.grid import Entry

GRID = "point-grid-mixed"
SIZES = (
    "--preset none --seeds 8 --updates 2000 --eval-every 500 --log-every 250 --eval-episodes 20 --batch-size 16 "
    "--window-steps 12 --recurrent-dim 32 --latent-dim 8 --hidden-dims 32 --learning-rate 1e-3 --discount 0.95 "
    "--bisimulation-weight 0 0.3"
)
PLAIN, OURS = "bisimulation_weight=0", "bisimulation_weight=0.3"

few, many = (Entry("bisimulation_history", GRID, f"{SIZES} --episodes {n}", f"{n}-episodes", "claim") for n in (6, 100))


def relative(run, setting):
    """The loss shrinks with the representation; this does not."""
    distance = logged("distance", run, setting)
    return logged("bisimulation_loss", run, setting) / (distance * distance)


CLAIM = Claim(
    title="A bisimulation loss makes histories that mean the same one, where there are few of them",
    paper="'Offline RL with Observation Histories' (arXiv 2310.20663) claims that a bisimulation loss improves "
    "offline RL on histories, or that its value is low already without it.",
    runs=[few, many],
    checks={
        "6 episodes: with the loss CQL on histories ends higher, beyond noise": (
            above(end(few, OURS), end(few, PLAIN))
        ),
        "100 episodes: with the loss it ends no lower, within noise": (
            end(many, OURS) + noise(end(many, OURS), end(many, PLAIN)) > end(many, PLAIN)
        ),
        **{
            f"{n} episodes: the loss, in units of the squared distance, ends lower where it is learned": (
                relative(run, OURS) < relative(run, PLAIN)
            )
            for n, run in ((6, few), (100, many))
        },
    },
    observed={
        **{
            f"{n} episodes: the scores at the end differ by no more than noise": (
                abs(end(run, OURS) - end(run, PLAIN)) < noise(end(run, OURS), end(run, PLAIN))
            )
            for n, run in ((6, few), (100, many))
        },
        "100 episodes: after 1500 updates CQL alone is ahead": course(many, PLAIN)[2] > course(many, OURS)[2],
    },
    finding="With many episodes histories end as far apart as what follows from them, within a small part of the error "
    "that CQL alone leaves; with few the loss falls because the representation shrinks, and its error in units of the "
    "distance grows. The score gains nothing by it. What it would mend is not broken in this world, where the position "
    "is observed. A world whose observations hide the state is still to be tried. "
    "The runs are of before observations were normalised by the episodes that are trained on alone: they are to be "
    "made again.",
)
