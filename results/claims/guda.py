from results.checks import Claim, end, highest, logged, noise
from results.grid import Entry

SIZES = (
    "--seeds 8 --preset none --batch-size 64 --hidden-dims 64 64 --updates 10000 --eval-every 2500 --eval-episodes 20"
)
LEARNER = (
    "--observed 2000 --beta 0 10 --expectile 0.9 --discount 0.95 --tau 0.02 "
    "--actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3"
)
BETAS = {"cloning": "beta=0", "IQL": "beta=10"}


def run(augment: str) -> Entry:
    """Both learners in one job."""
    return Entry("guda", "point-umaze-mixed", f"{SIZES} {LEARNER} --augment {augment}", augment, "claim")


none, at_random, guided = run("none"), run("random"), run("guided")


def above(better: Entry, other: Entry, learner: str):
    one, two = (end(x, BETAS[learner]) for x in (better, other))
    return one > two + noise(one, two)


CLAIM = Claim(
    title="Augmented data that show progress teach more than data augmented at random",
    paper="GuDA (arXiv 2310.18247, RLC 2024) claims that guided augmentation is above random augmentation, and both "
    "above the observed data alone, for cloning and for offline RL. Here 2,000 transitions of uniform actions are "
    "observed, one of which reaches the goal of a U maze, and as many are made of them.",
    runs=[none, at_random, guided],
    checks={
        f"{learner}: {sentence}, beyond noise": above(*pair, learner)
        for learner in BETAS
        for sentence, pair in {
            "guided augmentation ends above none": (guided, none),
            "guided above random augmentation": (guided, at_random),
            "random augmentation above none": (at_random, none),
        }.items()
    },
    observed={
        "The goal is in more than twice as many guided batches as in observed ones": logged("reward", guided, "beta=0")
        > 2.0 * logged("reward", none, "beta=0"),
        "IQL ends below 20 whatever is learned from": highest(
            *(end(x, BETAS["IQL"]) for x in (none, at_random, guided))
        )
        < 20.0,
        "Cloning and random augmentation end at 0": end(at_random, BETAS["cloning"]) <= 0.0,
    },
    finding="A policy cloned from uniform actions goes nowhere, and so does one cloned from them at more places; "
    "cloned from guided ones it reaches the goal, though the data hold the same actions, only turned. Cloning says "
    "nothing for random augmentation here, whose actions point nowhere on average. IQL is no test of augmentation in "
    "this form: it fails with all three datasets, also with the one from which cloning succeeds. Its settings and its "
    "short budget were not tried otherwise, so that what the paper claims of offline RL stays open. Mixed augmentation "
    "was not run.",
)
