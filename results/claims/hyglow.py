from results.checks import Amounts, Claim, above, below, end, first_step, logged, online_mean
from results.grid import Entry

LOCK = "tabular-combination-lock-h8-trajectory"


def lock(variant, more=""):
    length = "--seeds 16 --env-steps 2400 --log-every 160 --eval-every 480"
    return Entry("hyglow", LOCK, f"{length} {more}".strip(), variant, "claim")


SHARES = "--offline-fraction 0.001 0.02"
hybrid, offline = lock("hybrid", SHARES), lock("offline", f"--mode offline {SHARES}")
unclipped = lock("unclipped", f"--density-clip 1e6 --ratio-penalty 0 {SHARES}")
online, glow = lock("online", "--mode online"), lock("glow", "--mode online --optimistic")
amounts = lock("amounts", "--offline-fraction 0.0005 0.0025 0.005")
FEW, SOME = "offline_fraction=0.001", "offline_fraction=0.02"


def episodes(run, setting=""):
    """Online episodes, of 8 steps, until the policies played are worth 0.9."""
    return first_step("value", 0.9, run, setting, unit=8)


CLAIM = Claim(
    title="Clipped density ratios and data that cover the way open the lock; without data it takes optimism",
    paper="Amortila et al. (arXiv 2401.09681) claim that values with small average residuals under clipped density "
    "ratios find near-optimal policies: with an offline dataset that covers one (HyGLOW), or with optimism (GLOW).",
    runs=[hybrid, offline, unclipped, online, glow, amounts],
    checks={
        "From 40 episodes of data HyGLOW ends above 90": end(hybrid, SOME) > 90,
        "The same without data or optimism ends below 20": end(online) < 20,
        "GLOW, without data, is above 0.5 at last": logged("value", glow) > 0.5,
        "The dataset is worth more than optimism, over all rounds": online_mean(hybrid, SOME) > online_mean(glow),
        "From 2 episodes HyGLOW ends above MABO.CR on them alone, beyond noise": above(
            end(hybrid, FEW), end(offline, FEW)
        ),
        "From 2 episodes, without clip and penalty it ends lower, beyond noise": below(
            end(unclipped, FEW), end(hybrid, FEW)
        ),
    },
    amounts=Amounts(
        "Episodes to a policy worth 0.9 against the data",
        "episodes of data",
        "online episodes",
        {
            "HyGLOW": {
                "0": episodes(online),
                "1": episodes(amounts, "offline_fraction=0.0005"),
                "2": episodes(hybrid, FEW),
                "5": episodes(amounts, "offline_fraction=0.0025"),
                "10": episodes(amounts, "offline_fraction=0.005"),
                "40": episodes(hybrid, SOME),
            },
            "GLOW": {"0": episodes(glow)},
        },
    ),
    finding="A dataset of 40 episodes opens the lock in the first round, with or without interaction. From 2 episodes "
    "what is collected helps a little, and less without clip and penalty. Without data the values stay where they "
    "began, and GLOW's promise at the start leads through the lock in most lanes, later than the dataset does.",
)
