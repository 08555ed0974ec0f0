from results.checks import Claim, above, end, highest, online_mean
from results.grid import Entry


def world(variant, more=""):
    length = "--seeds 8 --env-steps 131072 --before-updates 4096 --log-every 16384 --eval-every 16384"
    where = "--eval-env PointMazesUnseen-v0 --eval-episodes 32"
    sizes = "--n-envs 16 --steps-per-iteration 2048 --batch-size 256 --hidden-dims 64 64 --latent-dim 32"
    arguments = f"{length} {where} {sizes} --learning-rate 1e-3 --before-batch-size 128 --before-lr 1e-3 {more}"
    return Entry("nce_aux_reward", "point-mazes-demos", arguments.strip(), variant, "claim")


WEIGHTS = "--aux-weight 0 0.01 0.1"
taught, anew = world("taught", WEIGHTS), world("anew", f"--no-pretrained-torso {WEIGHTS}")
NONE, SOME, MUCH = "aux_weight=0", "aux_weight=0.01", "aux_weight=0.1"
both, torso = online_mean(taught, SOME), online_mean(taught, NONE)
progress, neither = online_mean(anew, SOME), online_mean(anew, NONE)


CLAIM = Claim(
    title="A representation and a reward from watched demonstrations speed up exploration, most together",
    paper="Mazoure et al. (arXiv 2304.00046) claim that an agent learns faster with a representation and with a "
    "progress reward that were each learned from demonstrations without actions, and fastest with both.",
    runs=[taught, anew],
    checks={
        "In unseen mazes, over all evaluations: both more than neither": above(both, neither),
        "With both more than with the representation alone": above(both, torso),
        "With both more than with the progress alone": above(both, progress),
        "The progress alone: more than neither": above(progress, neither),
        "The representation alone: more than neither": above(torso, neither),
    },
    observed={
        "The progress's mean is higher than without it, with the representation": both > torso,
        "And without": progress > neither,
        "The representation's mean is no higher than that of neither": torso <= neither,
        "With the progress it makes less than a point": abs(both - progress) < 1.0,
        "With a progress of weight 0.1 it ends below 5": highest(end(taught, MUCH), end(anew, MUCH)) < 5.0,
    },
    finding="With the representation the progress adds more than the noise of eight lanes; without it as much in the "
    "mean, within noise. The representation itself adds nothing, with the progress or without it. The weight of the "
    "progress decides: at 0.1 the agent learns to stay away from the goal, where the episode ends, and with it what "
    "is paid for progress. Smaller weights than 0.01 and more lanes were not tried.",
)
