from results.checks import Claim, above, end, noise
from results.grid import Entry

NARROW = "point-grid-expert"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000 --eval-episodes 20"
FORM = f"{SIZES} --reward-shift -1"
"""A cost of 1 for every step: what was never tried seems better than what was."""

bc = Entry("bc", NARROW, SIZES, series="claim")
dqn = Entry("dqn_offline", NARROW, f"{FORM} --method none", "dqn", "claim")
ranked, alone = (
    Entry("r_bve", NARROW, f"{FORM} --ranking-weight {weight}", f"ranking{weight}", "claim") for weight in (0.5, 0)
)

CLAIM = Claim(
    title="One step of improvement over the behaviour's values, with absent actions ranked below",
    paper="R-BVE (arXiv 2103.09575) claims that values of the behaviour with a ranking loss beat double DQN on data of "
    "little coverage, and that the ranking is needed for it.",
    runs=[bc, dqn, ranked, alone],
    checks={
        f"{NARROW}: R-BVE ends above double DQN, beyond noise": above(end(ranked), end(dqn)),
        f"{NARROW}: R-BVE ends above the same without ranking, beyond noise": (above(end(ranked), end(alone))),
        f"{NARROW}: R-BVE ends no lower than cloning, within noise": (
            end(ranked) > end(bc) - noise(end(ranked), end(bc))
        ),
    },
    finding="The values of what the planner does are learned without a maximum, and one greedy step over them reaches "
    "the goal only where absent actions are ranked below: without ranking, and with double DQN, the greedy action is "
    "one that was never tried.",
)
