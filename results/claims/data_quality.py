import numpy as np
from scipy.stats import spearmanr

from results import raw
from results.checks import Claim, Quantity, above, below, combined, end, logged, lowest, noise
from results.grid import Entry

LEVELS = (0, 25, 50, 75)
GRID = [f"point-obstacle-s{system}p{policy}" for system in LEVELS for policy in LEVELS]
"""Noise of the system, then of the policy, in percent of an action."""
LENGTH = "--seeds 8 --updates 1500 --eval-every 1500 --log-every 1500 --eval-episodes 20"
SIZES = f"{LENGTH} --batch-size 64 --hidden-dims 32 32 --actor-lr 2e-3"
WATCHED = f"{SIZES} --expert environments.point_behaviour:expert --watch-envs 5 --watch-steps 80"
FORM = f"--parts {' '.join(GRID[1:])} --part {' '.join(map(str, range(len(GRID))))} {WATCHED}"
LONGER = "--seeds 8 --updates 15000 --eval-every 15000 --log-every 15000 --eval-episodes 20"
TOGETHER = f"--more-data {' '.join(GRID[1:])} --preset none {SIZES.replace(LENGTH, LONGER)}"
"""All sixteen datasets. Observations are not standardised there, so that 1,500 updates are too few even to clone."""
LEARNER = "--expectile 0.9 --discount 0.95 --tau 0.02 --critic-lr 2e-3 --value-lr 2e-3"

run = Entry("data_quality", GRID[0], f"{FORM} --part-episodes 5", "5-episodes", "claim")
whole = Entry(
    "data_quality", GRID[0], f"--parts {' '.join(GRID[1:])} --part -1 {WATCHED} --part-episodes 5", "all", "claim"
)
"""One clone of all that the sixteen of `run` have, with as many updates as each of them."""
many = Entry("data_quality", GRID[0], f"{FORM} --part-episodes 25", "25-episodes", "claim")
TRUE = f"{TOGETHER} --impute none --labelled-fraction 1 --no-unit-reward-std {LEARNER} --beta 0 10"
together = Entry("imputed_rewards", GRID[0], TRUE, "together", "claim")
"""Cloned (beta 0), and IQL on true rewards."""
constant = Entry("seabo", GRID[0], f"{TOGETHER} --squash-alpha 0 {LEARNER} --beta 10", "together-constant", "claim")


def of(system: int, policy: int) -> str:
    """The setting of a dataset."""
    return f"part={LEVELS.index(system) * len(LEVELS) + LEVELS.index(policy)}"


def correlation(metric: str, job: Entry = run) -> Quantity:
    """Spearman's, of a metric with the score, over the datasets; each one's mean over its lanes."""

    def value(files):
        found = [[raw.logged(row, metric).mean(), row.final.mean()] for row in files.rows(job)]
        return np.asarray(spearmanr(*zip(*found, strict=True)).statistic)

    return Quantity(value, frozenset([job]))


def highest_of(one: Quantity, other: Quantity) -> Quantity:
    return combined(np.maximum, one, other)


CLEAN, SYSTEM, POLICY = of(0, 0), of(50, 0), of(0, 50)
clean, system, policy = (end(run, setting) for setting in (CLEAN, SYSTEM, POLICY))
most, both = end(run, of(75, 0)), end(run, of(75, 75))
gap = {setting: logged("action_divergence", run, setting) for setting in (CLEAN, SYSTEM, POLICY)}

CLAIM = Claim(
    title="Where the clone's actions are not the expert's, and its states not the data's, it fails",
    paper="'Data Quality in Imitation Learning' (arXiv 2306.02437) claims that what decides is the action divergence "
    "at the states that the clone comes to, that inconsistent actions make it large, and that noise of the system at "
    "collection helps by diverse transitions where noise of the policy does not. Here sixteen datasets of one planner, "
    "four levels of each noise, five episodes of each, are cloned, and tested under noise of the system. Each is what "
    "is demonstrated; beside it all sixteen together are cloned with as many updates, and, whole and with more, they "
    "are cloned, or IQL learns from them with true rewards, or a constant 0.",
    runs=[run, whole, many, together, constant],
    checks={
        "The score falls with the action divergence at visited states (Spearman below -0.5)": (
            correlation("action_divergence") < -0.5
        ),
        "The score falls with the distance of visited states to the data (below -0.5)": (
            correlation("visited_distance") < -0.5
        ),
        "The score falls with the variance of the data's actions (below -0.5)": correlation("action_variance") < -0.5,
        "Noise of the system at collection, 0.5, ends above none, beyond noise": above(system, clean),
        **{
            f"Noise of the policy, {level / 100}, ends below as much noise of the system, beyond noise": (
                below(end(run, of(0, level)), end(run, of(level, 0)))
            )
            for level in LEVELS[1:]
        },
    },
    observed={
        "All sixteen together arrive, cloned, with as many updates and with more, and by IQL on true rewards": (
            lowest(end(whole), end(together, "beta=0"), end(together, "beta=10")) > 99.0
        ),
        "IQL on a constant 0 ends no lower than cloning them, but for noise": (
            end(constant) > end(together, "beta=0") - noise(end(constant), end(together, "beta=0"))
        ),
        "Noise of the policy, 0.5, ends above none, beyond noise": above(policy, clean),
        "With noise of 0.5 both kinds end above 95: there is no room between them": lowest(policy, system) > 95.0,
        "Of 0.25 noise of the policy ends above that of the system": end(run, of(0, 25)) > end(run, of(25, 0)),
        "But not beyond noise": (
            end(run, of(0, 25)) < end(run, of(25, 0)) + noise(end(run, of(0, 25)), end(run, of(25, 0)))
        ),
        "Of 0.25 it does so with 25 episodes of each, beyond noise": above(end(many, of(0, 25)), end(many, of(25, 0))),
        "Of 0.75 noise of the policy ends below that of the system with 25 episodes of each, too, beyond noise": (
            below(end(many, of(0, 75)), end(many, of(75, 0)))
        ),
        "Noise of the system, 0.25, ends above none, beyond noise": above(end(run, of(25, 0)), clean),
        "At its visited states the clone of data without noise diverges most": (above(gap[CLEAN], gap[POLICY])),
        "The clone of noise of the policy diverges more than that of noise of the system, beyond noise": (
            above(gap[POLICY], gap[SYSTEM])
        ),
        "Noise of 0.75 of both kinds ends below that of the system alone, beyond noise": (below(both, most)),
        "The score does not go with the variance of the data's actions (Spearman within 0.3)": (
            abs(correlation("action_variance")) < 0.3
        ),
        "Of 25 episodes each, too, it falls with action divergence and with distance (both below -0.5)": (
            highest_of(correlation("action_divergence", many), correlation("visited_distance", many)) < -0.5
        ),
        "Of 25 episodes each, too, it does not go with the variance of actions (within 0.3)": (
            abs(correlation("action_variance", many)) < 0.3
        ),
        "Noise of 0.75 of both kinds ends higher with 25 episodes than with 5, beyond noise": (
            above(end(many, of(75, 75)), both)
        ),
        "Nor, by as much as with action divergence, does it go with how concentrated the data's states are": (
            abs(correlation("state_similarity")) < abs(correlation("action_divergence"))
        ),
    },
    finding="What is measured on the clone's way tells its score, and best of all its action divergence. What is "
    "measured on the data alone does not: actions are most consistent in the data without noise, whose clone "
    "is the worst, since the first push of the test's noise takes it to states that the data do not show. So "
    "either noise at collection helps. Which of the two helps more changes with how much there is: of little, "
    "that of the policy, beyond noise only where there are more episodes; of the middle, neither, as both are "
    "near the top of the scale, although clones of noise of the policy diverge more at the states they come "
    "to; of much, that of the system, as the paper has it. Where much noise of both kinds comes together "
    "inconsistent actions cost more than the states that they show are worth. In data that all cover the same "
    "states, variance of actions may well tell; that was not tried. With 25 episodes of each kind in place of "
    "5 the order of what tells is the same, and much noise of both kinds costs less. All sixteen together are "
    "enough for cloning, so that neither rewards nor IQL have anything to add.",
)
