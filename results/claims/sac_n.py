from results.checks import Claim, end, noise
from results.grid import Entry

WEAK = "pendulum-weak"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 6000 --eval-every 2000"

two, ten = (Entry("sac_n", WEAK, f"{SIZES} --n-critics {n}", f"n{n}", "claim") for n in (2, 10))

CLAIM = Claim(
    title="The least of many critics alone makes SAC an offline method",
    paper="SAC-N (arXiv 2110.01548) claims that the least of enough critics keeps SAC near the data, where the least "
    "of two overestimates what lies outside, with no other regulariser.",
    runs=[two, ten],
    checks={
        f"{WEAK}: ten critics end above two, beyond noise": end(ten) > end(two) + noise(end(ten), end(two)),
    },
    observed={
        f"{WEAK}: two critics end above ten, beyond noise": end(two) > end(ten) + noise(end(two), end(ten)),
    },
    finding="This data cannot show it: its controllers fill the range of actions, so that the critics differ by less "
    "than a hundredth of Q at the policy's actions (q_pi_std beside q_pi in metrics.csv), and two do not overestimate. "
    "Ten only learn more slowly within 6,000 updates. What N does where there is no data is tested on the paper's "
    "bandit (tests/offline/test_sac_n.py); a problem with narrow data and dense rewards is wanted.",
)
