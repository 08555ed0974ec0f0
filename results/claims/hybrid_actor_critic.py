from results.checks import Amounts, Claim, end, first_step, logged, online_mean
from results.grid import Entry

LOCK = "tabular-combination-lock-h8-trajectory"


def lock(variant, more=""):
    return Entry(
        "hybrid_actor_critic", LOCK, f"--seeds 16 --env-steps 16000 --eval-every 4000 {more}", variant, "claim"
    )


optimistic, neither = lock("optimistic", "--mode online"), lock("neither", "--mode online --bonus 0")
greedy, stale = lock("greedy", "--mode online --actor greedy"), lock("no-reset", "--mode online --no-reset")
both = lock("both")
SHARES = "--offline-fraction 0.0005 0.001 0.005 0.05"
amounts, beside = lock("data-alone", f"--bonus 0 {SHARES}"), lock("data-beside", SHARES)
FEW, MANY = "offline_fraction=0.0005", "offline_fraction=0.05"
EPISODES = {"1": "0.0005", "2": "0.001", "10": "0.005", "100": "0.05"}
"""Of the dataset's 2,000."""


def episodes(run, setting=""):
    """Online episodes, of 8 steps, until the policies played are worth 0.9."""
    return first_step("value", 0.9, run, setting, unit=8)


CLAIM = Claim(
    title="An actor-critic with optimism, or with enough data, opens the lock; with neither it does not",
    paper="Tan, Fan and Wei (arXiv 2505.03710) claim that an actor-critic that fits optimal values rarely and resets "
    "its actor is as efficient as optimistic value iteration, and that enough offline data can take optimism's place.",
    runs=[optimistic, neither, greedy, stale, both, amounts, beside],
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
    observed={
        "An actor that is never reset needs more than 1.5 times the episodes": (
            episodes(stale) > 1.5 * episodes(optimistic)
        ),
        "But less than 2.5 times": episodes(stale) < 2.5 * episodes(optimistic),
        "The greedy one needs fewer": episodes(greedy) < episodes(optimistic),
    },
    amounts=Amounts(
        "Episodes to a policy worth 0.9 against the data",
        "episodes of data",
        "online episodes",
        {
            "without optimism": {
                "0": episodes(neither),
                **{n: episodes(amounts, f"offline_fraction={share}") for n, share in EPISODES.items()},
            },
            "with optimism": {
                "0": episodes(optimistic),
                **{n: episodes(beside, f"offline_fraction={share}") for n, share in EPISODES.items()},
                "2,000": episodes(both),
            },
        },
    ),
    finding="Optimism alone opens the lock, though somewhat later than the greedy LSVI-UCB does. An actor that is "
    "never reset follows sums of old critics, and needs about twice as long. With the whole dataset the first "
    "fit opens the lock at once. Without optimism, one episode of data is worth nothing, two open the lock in "
    "half of the lanes, ten in all.",
)
