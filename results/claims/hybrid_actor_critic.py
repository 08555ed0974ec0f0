from results.checks import Claim, end, logged, online_mean
from results.grid import Entry

LOCK = "tabular-combination-lock-h8-trajectory"


def lock(variant, more=""):
    return Entry(
        "hybrid_actor_critic", LOCK, f"--seeds 16 --env-steps 16000 --eval-every 4000 {more}", variant, "claim"
    )


optimistic, neither = lock("optimistic", "--mode online"), lock("neither", "--mode online --bonus 0")
greedy, stale = lock("greedy", "--mode online --actor greedy"), lock("no-reset", "--mode online --no-reset")
both = lock("both")
amounts = lock("data-alone", "--bonus 0 --offline-fraction 0.0005 0.001 0.005 0.05")
FEW, MANY = "offline_fraction=0.0005", "offline_fraction=0.05"

CLAIM = Claim(
    title="An actor-critic with optimism, or with enough data, opens the lock; with neither it does not",
    paper="Tan, Fan and Wei (arXiv 2505.03710) claim that an actor-critic that fits optimal values rarely and resets "
    "its actor is as efficient as optimistic value iteration, and that enough offline data can take optimism's place.",
    runs=[optimistic, neither, greedy, stale, both, amounts],
    checks={
        "With optimism and no data it ends above 90": end(optimistic) > 90,
        "With neither it ends below 50": end(neither) < 50,
        "A twentieth of the data without optimism ends above 90": end(amounts, MANY) > 90,
        "One episode of it ends below 50": end(amounts, FEW) < 50,
        "With both, the policies of the last fifth are worth 0.9 or more": logged("value", both) > 0.9,
        "So are those with optimism alone": logged("value", optimistic) > 0.9,
        "LSVI-UCB, greedy, is not better by more than 0.05": logged("value", optimistic)
        > logged("value", greedy) - 0.05,
        "Over all evaluations, no resets cost 20": online_mean(stale) < online_mean(optimistic) - 20,
        "Over all evaluations, data beside optimism gain 5": online_mean(both) > online_mean(optimistic) + 5,
    },
    finding="Optimism alone opens the lock, though somewhat later than the greedy LSVI-UCB does. "
    " An actor that is never reset follows sums of old critics, and needs about three times as "
    "long. With the whole dataset the first fit opens the lock at once. Without optimism, one episode of data is worth "
    "nothing, two open the lock in half of the lanes, ten in all.",
)
