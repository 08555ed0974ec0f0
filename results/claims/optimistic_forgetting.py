from results.checks import Claim, above, end, logged, noise
from results.grid import Entry

WORLD = "point-guarded-mixed"
LENGTH = "--seeds 8 --env-steps 2400 --eval-every 2400 --offline-updates 1600 --eval-episodes 20"
SIZES = "--preset small --plan-samples 32 --plan-iterations 2 --n-models 2 --forget-steps 800"


def learner(demos, forgetting, shares):
    arguments = f"{LENGTH} {SIZES} --n-demos {demos} --forgetting {forgetting} --forget-share {shares}"
    return Entry("optimistic_forgetting", WORLD, arguments, f"{forgetting}-{demos}", "claim")


few, many, fifo = learner(5, "optimistic", "0 0.9"), learner(50, "optimistic", "0 0.9"), learner(5, "fifo", "0.9")
NOTHING, FORGETS = "forget_share=0", "forget_share=0.9"
ARMS = {"optimistic forgetting": (few, FORGETS), "no forgetting": (few, NOTHING), "FIFO": (fifo,)}
reached = {arm: end(*run) for arm, run in ARMS.items()}
violations = {arm: logged("violations", *run) for arm, run in ARMS.items()}
OURS, BASE, FIFO = ARMS


def alike(one, other):
    """Whether the two are within noise of each other."""
    return abs(one - other) <= noise(one, other)


CLAIM = Claim(
    title="A safe set that forgets what never failed grows to the goal",
    paper="Quessy et al. (arXiv 2501.04481) propose optimistic forgetting for learning safely with few demonstrations, "
    "where a safe set keeps a policy from the goal; the learner, and how it forgets, are reconstructed here from the "
    "abstract: with few demonstrations it should reach the goal more often at as few violations, and with many no "
    "difference is left. An online episode may have 80 steps.",
    runs=[few, many, fifo],
    checks={
        f"{WORLD}: with 5 demonstrations it ends above no forgetting, beyond noise": above(
            reached[OURS], reached[BASE]
        ),
        f"{WORLD}: with 5 demonstrations it ends above FIFO, beyond noise": above(reached[OURS], reached[FIFO]),
        f"{WORLD}: it has no more violations per online episode than no forgetting, within noise": violations[OURS]
        <= violations[BASE] + noise(violations[OURS], violations[BASE]),
        f"{WORLD}: FIFO has more violations per online episode, beyond noise": above(
            violations[FIFO], violations[OURS]
        ),
        f"{WORLD}: with 50 demonstrations the two end within noise of each other": alike(
            end(many, FORGETS), end(many, NOTHING)
        ),
    },
    finding="With few demonstrations and no forgetting, or with FIFO, most plans break a bound, and the goal is "
    "as good as never reached; where what never failed is forgotten more plans are feasible, and some "
    "seeds reach it always, others never, so that their mean is above the others' by less than the noise. "
    "FIFO is not dangerous here but idle. With many demonstrations the safe set is large enough without.",
    observed={
        f"{WORLD}: with FIFO most plans are not feasible": logged("unfeasible", fifo) > 0.5,
        f"{WORLD}: with FIFO there is less than one violation in twenty online episodes": violations[FIFO] < 0.05,
        f"{WORLD}: with FIFO it ends within noise of no forgetting": alike(reached[FIFO], reached[BASE]),
        f"{WORLD}: without forgetting 50 demonstrations end above 5, beyond noise": above(
            end(many, NOTHING), reached[BASE]
        ),
        f"{WORLD}: forgetting ends above no forgetting": reached[OURS] > reached[BASE] + 10.0,
        f"{WORLD}: without forgetting most plans are not feasible": logged("unfeasible", few, NOTHING) > 0.5,
        f"{WORLD}: with it fewer are, beyond noise": above(
            logged("unfeasible", few, NOTHING), logged("unfeasible", few, FORGETS)
        ),
    },
)
