from results.checks import Claim, end
from results.grid import Entry

LOCK = "continuous-combination-lock-h10-trajectory"
LENGTH = "--seeds 4 --env-steps 300000 --log-every 5000 --eval-every 50000"


def lock(variant, more=""):
    return Entry("hnpg", LOCK, f"{LENGTH} {more}".strip(), variant, "claim")


hybrid, online, offline = lock("hybrid"), lock("online", "--mode online"), lock("offline", "--mode offline")

CLAIM = Claim(
    title="HNPG opens the lock by policy gradients with offline data",
    paper="HNPG (arXiv 2311.08384) claims to solve the combination lock where TRPO, which has no offline data, and "
    "learning from the offline data alone fail.",
    runs=[hybrid, online, offline],
    checks={
        "The hybrid ends above 95 of 100": end(hybrid) > 95,
        "TRPO without offline data ends below 10": end(online) < 10,
        "Learning from the offline data alone ends below 10": end(offline) < 10,
    },
    finding="All lanes of the hybrid reach the optimal return; TRPO without offline data and learning from the "
    "offline data alone stay where they began.",
)
