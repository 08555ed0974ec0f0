from results.checks import Claim, end, logged, online_mean
from results.grid import Entry

LOCK = "tabular-combination-lock-h8-trajectory"


def lock(variant, more=""):
    length = "--seeds 8 --env-steps 2400 --log-every 160 --eval-every 480"
    return Entry("hyglow", LOCK, f"{length} {more}".strip(), variant, "claim")


hybrid, online, offline = lock("hybrid"), lock("online", "--mode online"), lock("offline", "--mode offline")
glow = lock("glow", "--mode online --optimistic")
unclipped = lock("unclipped", "--ratio-clip 1e6 --ratio-penalty 0")

CLAIM = Claim(
    title="Clipped density ratios and data that cover the way open the lock; without data it takes optimism",
    paper="Amortila et al. (arXiv 2401.09681) claim that values with small average residuals under clipped density "
    "ratios find near-optimal policies: with an offline dataset that covers one (HyGLOW), or with optimism (GLOW).",
    runs=[hybrid, online, offline, glow, unclipped],
    checks={
        "HyGLOW ends above 90": end(hybrid) > 90,
        "The same without data or optimism ends below 20": end(online) < 20,
        "GLOW, without data, is above 50 at last": logged("value", glow) > 0.5,
        "HyGLOW is above MABO.CR on the dataset alone": logged("value", hybrid) > logged("value", offline),
        "Without the clip its values are worth less": logged("value", unclipped) < logged("value", hybrid),
        "The dataset is worth more than optimism, over all rounds": online_mean(hybrid) > online_mean(glow),
    },
    finding="The runs are not made yet.",
)
