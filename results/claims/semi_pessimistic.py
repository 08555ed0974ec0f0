from results.checks import Claim, above, below, end, highest, logged, lowest, noise
from results.grid import Entry

GRID, HAZARD = "point-grid-mixed", "point-hazard-explore"
FORM = (
    "--preset none --seeds 8 --updates 5000 --eval-every 2500 --log-every 250 --eval-episodes 20 --batch-size 64 "
    "--hidden-dims 64 64 --critic-lr 1e-3 --tau 0.02 --discount 0.95 --labelled-fraction 0.05 --no-unit-reward-std"
)
MODELS = "--reward-updates 1000 --reward-batch 64 --reward-hidden-dims 32 32 --n-models 5"
MEAN, BOUND = "pessimism=0", "pessimism=5"


def run(dataset: str, variant: str, more: str) -> Entry:
    return Entry("semi_pessimistic", dataset, f"{FORM} {more}", variant, "claim")


ours = {d: run(d, "model", f"{MODELS} --pessimism 0 5") for d in (GRID, HAZARD)}
zero = {d: run(d, "zero", "--impute zero") for d in ours}
alone = {d: run(d, "labelled-alone", "--impute none") for d in ours}
STRONG = "--alpha 40"
"""Q weighs sixteen times as much against the distance to the data's actions."""
strong = {
    "model": run(HAZARD, "model-strong", f"{MODELS} --pessimism 0 5 {STRONG}"),
    "zero": run(HAZARD, "zero-strong", f"--impute zero {STRONG}"),
    "alone": run(HAZARD, "labelled-alone-strong", f"--impute none {STRONG}"),
}
cloned = Entry(
    "bc",
    HAZARD,
    "--preset none --seeds 8 --batch-size 64 --hidden-dims 64 64 --updates 5000 --eval-every 2500 --eval-episodes 20",
    series="claim",
)

CLAIM = Claim(
    title="A lower bound of the rewards that are not known makes much data without rewards useful",
    paper="SPL (arXiv 2505.19002) claims that imputing a lower bound of the reward and learning from all data without "
    "further pessimism improves on learning from the labelled data alone, and on other ways to impute.",
    runs=[*ours.values(), *zero.values(), *alone.values(), *strong.values(), cloned],
    checks={
        **{
            f"{d}: SPL ends above training on the labelled episodes alone, beyond noise": (
                above(end(ours[d], BOUND), end(alone[d]))
            )
            for d in ours
        },
        **{
            f"{d}: SPL ends above rewards of 0 for the others, beyond noise": (above(end(ours[d], BOUND), end(zero[d])))
            for d in ours
        },
        f"{HAZARD}: SPL ends no lower than the models' mean, within noise": (
            end(ours[HAZARD], BOUND) + noise(end(ours[HAZARD], BOUND), end(ours[HAZARD], MEAN))
            >= end(ours[HAZARD], MEAN)
        ),
        f"{HAZARD}, where Q weighs more: SPL ends above training on the labelled episodes alone, beyond noise": (
            above(end(strong["model"], BOUND), end(strong["alone"]))
        ),
        f"{HAZARD}, where Q weighs more: SPL ends above rewards of 0 for the others, beyond noise": (
            above(end(strong["model"], BOUND), end(strong["zero"]))
        ),
        f"{HAZARD}, where Q weighs more: SPL ends no lower than the models' mean, within noise": (
            end(strong["model"], BOUND) + noise(end(strong["model"], BOUND), end(strong["model"], MEAN))
            >= end(strong["model"], MEAN)
        ),
    },
    observed={
        f"{GRID}: values of the data's actions are lower with the bound than with the mean, beyond noise": (
            below(logged("q", ours[GRID], BOUND), logged("q", ours[GRID], MEAN))
        ),
        f"{GRID}: more true rewards lie no lower than the bound than lie no lower than the mean": (
            logged("label_below", ours[GRID], BOUND) > logged("label_below", ours[GRID], MEAN)
        ),
        f"{GRID}: no arm reaches the goal": (
            highest(*(end(arm[GRID]) for arm in (zero, alone)), end(ours[GRID], BOUND), end(ours[GRID], MEAN)) <= 0.0
        ),
        f"{HAZARD}: SPL's squared distance to the data's actions is a clone's, within a twentieth of it": (
            abs(logged("bc_loss", ours[HAZARD], BOUND) - logged("mse", cloned)) < 0.05 * logged("mse", cloned)
        ),
        f"{HAZARD}: but it ends above the clone, beyond noise": above(end(ours[HAZARD], BOUND), end(cloned)),
        f"{HAZARD}: its Q is more than 20 times as large as with rewards of 0 for the others": (
            abs(logged("q", ours[HAZARD], BOUND)) > 20.0 * abs(logged("q", zero[HAZARD]))
        ),
        f"{HAZARD}, where Q weighs more: every arm ends above 100": (
            lowest(*(end(strong[name]) for name in ("zero", "alone")), end(strong["model"], BOUND)) > 100.0
        ),
        f"{HAZARD}, where Q weighs more: rewards of 0 for the others end above SPL, beyond noise": (
            above(end(strong["zero"]), end(strong["model"], BOUND))
        ),
        f"{HAZARD}: the models' mean ends above the labelled episodes alone, too, beyond noise": (
            above(end(ours[HAZARD], MEAN), end(alone[HAZARD]))
        ),
    },
    finding="Among hazards, where there are no walls and every step is paid, the rewards that were imputed make the "
    "episodes without labels useful: SPL ends above training on the labelled ones alone, by little more than "
    "the noise. The bound is not what does it: the models' mean is no lower, and rewards of 0 for the others "
    "are within noise of both. There little can be told apart. The loss divides Q by its mean size, which is "
    "large where every step is paid, so that a difference of Q hardly weighs: policies lie as near to the "
    "data's actions as a clone does. They end above the clone all the same, whose observations are "
    "standardised, as theirs are not. With rewards of 0 for the others Q is much smaller and differences weigh "
    "that much more, so that this arm differs in more than its labels. Where Q weighs more in all arms, all of them "
    "solve the task, the labelled episodes alone too: there is little left that more labels could bring, and rewards "
    "of 0 for the others, a lower bound of no model, end highest. In rooms the bound acts as it should: "
    "with the models' mean values grow with false rewards, with the bound they stay low, and nearly all "
    "rewards that are hidden are no lower than it. The score cannot show it there: no arm reaches the goal, "
    "and none with all true rewards was run that could say whether it can be reached.",
)
