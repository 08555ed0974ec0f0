from results.checks import Claim, above, end, logged, lowest, noise
from results.grid import small

SIZES = "--scorer-updates 2000 --scorer-lr 1e-3 --score-temperature 0.03 --highest-score 50 --max-episode-steps 25"


DATA = "point-umaze-expert"
LEARNER = "--beta 10 --expectile 0.9 --discount 0.95 --tau 0.02 --actor-lr 1e-3 --critic-lr 1e-3 --value-lr 1e-3"
"""Of IQL where the goal is all that pays. Its constant reward is 0: any other tells which rows end an episode."""


def ptr(more: str, variant: str):
    return small("ptr", f"{SIZES} {more}", variant, DATA, 2_000)


spoilt = ptr("--spoil misattributed --mixing 0 0.5", "misattributed")
oracle = ptr("--spoil misattributed --trust clean", "misattributed-clean")
mirrored = ptr("--spoil mirrored --mixing 0 0.5", "mirrored")
whole = ptr("--mixing 0 0.5", "whole")
LIMIT = "--max-episode-steps 25"
true = small("iql", f"{LIMIT} {LEARNER}", "true-in-25-steps", DATA, 2_000)
constant = small("seabo", f"{LIMIT} --squash-alpha 0 {LEARNER}", "constant-in-25-steps", DATA, 2_000)
PLAIN, OURS = "mixing=0", "mixing=0.5"


def both(run):
    """What PTR and what plain cloning ends with."""
    return end(run, OURS), end(run, PLAIN)


ours, plain = both(spoilt)
seen, unseen = both(mirrored)
kept, none = both(whole)

CLAIM = Claim(
    title="An action that does not explain what followed counts less, and cloning gains by it",
    paper="PTR (arXiv 2603.16542) claims that weighing rows by how well their consequence is identified improves "
    "cloning of data of mixed quality, and costs nothing where the data is good. Here two fifths of a planner's rows "
    "have the action of another row, or two fifths of its episodes are seen mirrored; the goal must be reached within "
    "25 steps, hardly more than the planner needs. The clean rows are what is demonstrated. IQL, for which no rows are "
    "spoilt by this file, has the data as it was, with true rewards, and a constant 0 as SEABO with --squash-alpha 0.",
    runs=[spoilt, oracle, mirrored, whole, true, constant],
    checks={
        "Rows with another row's action score less: AUC above 0.8": logged("auc", spoilt, OURS) > 0.8,
        "Rows of mirrored episodes score less: AUC above 0.6": logged("auc", mirrored, OURS) > 0.6,
        "With actions of other rows PTR ends above plain cloning, beyond noise": above(ours, plain),
        "With actions of other rows it is level with cloning the clean rows, within noise": (
            ours + noise(ours, end(oracle)) > end(oracle)
        ),
        "With mirrored episodes PTR ends above plain cloning, beyond noise": above(seen, unseen),
        "On data that is not spoilt it is level with plain cloning, within noise": kept + noise(kept, none) >= none,
    },
    observed={
        "With actions of other rows a clean row weighs more than thrice what a spoilt one does": (
            logged("weight_clean", spoilt, OURS) > 3.0 * logged("weight_spoilt", spoilt, OURS)
        ),
        "PTR's policy is nearer to the clean rows' actions": (
            logged("mse_clean", spoilt, OURS) < logged("mse_clean", spoilt, PLAIN)
        ),
        "Cloning the clean rows always arrives": end(oracle) > 99.0,
        "On whole data so does PTR": kept > 99.0,
        "So does IQL on the data as it was, on true rewards or a constant one": lowest(end(true), end(constant)) > 99.0,
        "With mirrored frames the score is no better than a guess": logged("auc", mirrored, OURS) < 0.55,
    },
    finding="Actions of other rows are found, and cloning them with equal weights never arrives in time: a mean of "
    "unrelated actions is a slow one. With PTR's weights nearly all episodes arrive. What is left of the "
    "spoilt rows slows the policy a little still; cloning the clean rows alone always arrives. A spoilt row is "
    "not worthless to the scorer: a planner's states tell by themselves where it went, so that its "
    "score is no floor. On data that is whole both arms always "
    "arrive, so that no loss could be seen. Mirrored episodes are not found at all: "
    "state and next state are mirrored together, so that what followed is as predictable as ever by another "
    "rule, and the score asks no more than that (so it seems; no run tests it by itself). Neither arm arrives.",
)
