from results.checks import Claim, above, below, end, highest, logged, lowest, noise
from results.grid import Entry, small

SIZES = "--preset none --batch-size 64 --hidden-dims 32 32 --warm-updates 2000 --actor-lr 3e-4 --consistency-weight 10"
LENGTH = "--seeds 8 --updates 10000 --eval-every 5000 --eval-episodes 20 --env phys2d/Pendulum-v0"


def scenario(name: str, demos: str = "--demos pendulum-narrow") -> Entry:
    """Both arms in one job: the game, and reward prediction before ATAC."""
    arguments = f"{LENGTH} {SIZES} --scenario {name} --adversarial 0 1 {demos} --demo-episodes 10".replace("  ", " ")
    return Entry("mahalo", "pendulum-mixed", arguments, name.replace("_", "-"), "claim")


scenarios = {
    "Demonstrated observations": scenario("ilfo"),
    "Rewards without actions": scenario("rlfo"),
    "Rewards of ten of a hundred episodes": scenario("rl_sample", ""),
    "Demonstrations with actions": scenario("il"),
}
everything = small("bc")
shown = small("bc", "--top-fraction 0.1", "top10", "pendulum-narrow")
true = small("imputed_rewards", "--labelled-fraction 1", "true-rewards")
constant = small("otr", "--demo-episodes 10 --squash-beta 0 5")
floor = end(constant, "squash_beta=0")


def arms(run: Entry) -> tuple:
    """(the game, two steps)"""
    return end(run, "adversarial=1"), end(run, "adversarial=0")


def of_rewards(name: str, setting: str, adversarial: int):
    return logged(name, scenarios[setting], f"adversarial={adversarial}")


SHOWN, REWARDED, SAMPLE = "Demonstrated observations", "Rewards without actions", "Rewards of ten of a hundred episodes"
ORDER = "label_correlation"

CLAIM = Claim(
    title="Rewards that are part of the game are pessimistic where none is known; predicted ones are not",
    paper="MAHALO (arXiv 2303.17156, ICML 2023) claims to be level with the method made for each setting, of imitation "
    "and of RL, with actions and from observations, where predicting rewards and then learning fails in some. Here the "
    "data are of four controllers of a pendulum; what is shown or rewarded are ten episodes of the one that balances, "
    "which begin nearly upright (in the third setting: ten of the data's own). IQL on constant rewards is OTR with "
    "--squash-beta 0; on true ones, of unit deviation, imputed_rewards.py with all of them known.",
    runs=[everything, shown, true, constant, *scenarios.values()],
    checks={
        f"{label}: MAHALO ends above reward prediction and ATAC, beyond noise": arms(run)[0]
        > arms(run)[1] + noise(*arms(run))
        for label, run in scenarios.items()
    },
    observed={
        f"{SHOWN}: its rewards are lower over the data than predicted ones, by 0.3": of_rewards("reward", SHOWN, 1)
        < of_rewards("reward", SHOWN, 0) - 0.3,
        "Both order the data's episodes as true returns do: rank correlations above 0.8": lowest(
            of_rewards(ORDER, SHOWN, 0), of_rewards(ORDER, SHOWN, 1)
        )
        > 0.8,
        **{
            f"{SHOWN}: MAHALO ends above {label}, beyond noise": above(arms(scenarios[SHOWN])[0], other)
            for label, other in {
                "cloning what is shown, with its actions": end(shown),
                "cloning everything": end(everything),
                "IQL on constant rewards": floor,
            }.items()
        },
        **{
            f"{label}: MAHALO ends nearer to IQL on true rewards than to cloning everything": (
                arms(scenarios[label])[0] > 0.5 * (end(true) + end(everything))
            )
            for label in (SHOWN, "Demonstrations with actions")
        },
        **{
            f"{label}: but it ends below IQL on true rewards, beyond noise": below(arms(scenarios[label])[0], end(true))
            for label in (SHOWN, "Demonstrations with actions")
        },
        f"{SAMPLE}: both arms end below IQL on true rewards, beyond noise": (
            below(highest(*arms(scenarios[SAMPLE])), end(true))
        ),
        f"{SAMPLE}: but nearer to it than to cloning everything": (
            lowest(*arms(scenarios[SAMPLE])) > 0.5 * (end(true) + end(everything))
        ),
        f"{REWARDED}: neither arm's rewards follow true returns: below 0.1": highest(
            of_rewards(ORDER, REWARDED, 0), of_rewards(ORDER, REWARDED, 1)
        )
        < 0.1,
    },
    finding="Where episodes are demonstrated, with their actions or without, the game ends far above cloning "
    "everything, nearer to what IQL learns from true rewards, though below it, and reward prediction stays at "
    "cloning. Both arms' rewards order the data's episodes alike; those of the game are lower where nothing is "
    "known, predicted ones lie near the one value that they were fitted to. Where ten of the data's own "
    "episodes are rewarded, both arms come as near to true rewards. True rewards are of unit deviation: their "
    "scale is an inverse temperature of IQL's weights, and SEABO's claim has the same ones at others. Where "
    "the rewards of other episodes are known, neither arm learns any that follow the truth: what is rewarded "
    "begins nearly upright, where all rewards are near the best. That this is the cause was not tested. The "
    "weight of Bellman's errors was chosen with two seeds of both arms. Networks are smaller than IQL's.",
)
