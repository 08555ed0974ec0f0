from results.checks import Claim, above, end, highest, logged, lowest
from results.grid import Entry, goals, small

DATA = "point-umaze-mixed"
SIZES = (
    "--seeds 8 --preset none --batch-size 64 --hidden-dims 64 64 --updates 10000 --eval-every 2500 --eval-episodes 20"
)
RATES = "--expectile 0.9 --discount 0.95 --tau 0.02 --actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3"
LEARNER = f"--observed 2000 --beta 0 10 {RATES}"
BETAS = {"cloning": "beta=0", "IQL": "beta=10"}


def run(augment: str) -> Entry:
    """Both learners in one job."""
    return Entry("guda", DATA, f"{SIZES} {LEARNER} --augment {augment}", augment, "claim")


none, at_random, guided = run("none"), run("random"), run("guided")
everything = goals("bc", DATA, variant="imitation")
shown = goals("bc", DATA, "--top-fraction 0.1", "imitation-top10")
true = goals("iql", DATA, f"--beta 10 {RATES}", "true-rewards")
constant = goals("seabo", DATA, f"--squash-alpha 0 --beta 10 {RATES}", "constant-rewards")
MIXED = "--more-data point-umaze-random --max-episode-steps 21"
SHARPER = f"{MIXED} --impute none --labelled-fraction 1 --no-unit-reward-std {RATES} --beta 10 100"
sharper = small("imputed_rewards", SHARPER, "true-with-random", "point-umaze-expert", 5_000)
"""IQL in the same maze, with other data, at two betas."""


def ends_above(better: Entry, other: Entry, learner: str):
    one, two = (end(x, BETAS[learner]) for x in (better, other))
    return above(one, two)


CLAIM = Claim(
    title="Augmented data that show progress teach more than data augmented at random",
    paper="GuDA (arXiv 2310.18247, RLC 2024) claims that guided augmentation is above random augmentation, and both "
    "above the observed data alone, for cloning and for offline RL. Here 2,000 transitions of uniform actions are "
    "observed, one of which reaches the goal of a U maze, and as many are made of them. No demonstrations are among "
    "them: what cloning and IQL make of all 20,000 transitions, with the planner's, stands beside.",
    runs=[none, at_random, guided, everything, shown, true, constant, sharper],
    checks={
        f"{learner}: {sentence}, beyond noise": ends_above(*pair, learner)
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
        "With random augmentation the goal is in as many batches, within a fifth": (
            logged("reward", at_random, "beta=0") > 0.8 * logged("reward", guided, "beta=0")
        ),
        "But both learners end at 0": highest(*(end(at_random, beta) for beta in BETAS.values())) <= 0.0,
        "In every arm IQL's mean weight is above 0.8, where cloning's is 1": (
            lowest(*(logged("weight", x, "beta=10") for x in (none, at_random, guided))) > 0.8
        ),
        "And below 0.9": (highest(*(logged("weight", x, "beta=10") for x in (none, at_random, guided))) < 0.9),
        "With other data of this maze, and advantages as small, a beta of 100 ends above one of 10, beyond noise": (
            above(end(sharper, "beta=100"), end(sharper, "beta=10"))
        ),
        "Cloning all 20,000 transitions, or their best tenth, and IQL on them always arrive, whatever it is paid": (
            lowest(end(everything), end(shown), end(true), end(constant)) > 99.0
        ),
    },
    finding="Cloned from guided transitions a policy reaches the goal, though they are the same uniform actions, only "
    "turned; cloned from observed ones, or from as many at random places, it goes nowhere, as those actions "
    "point nowhere on average. IQL, too, always arrives with guided augmentation, and seldom with what was "
    "observed alone. Random augmentation helps neither learner here, although it shows the goal as often. For "
    "IQL that is said of a beta of 10 alone, with which it hardly weighs: a reward at the goal only makes "
    "advantages so small that its mean weights are near cloning's. With other data of this maze, and "
    "advantages as small, a beta of 100 is what reaches the goal; here it was not tried. What was made at "
    "random shows no walls, too, as only transitions that touch none can be moved; whether that matters is "
    "open. Mixed augmentation was not run. Of all the data, which were not augmented, every learner arrives.",
)
