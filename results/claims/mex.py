from results.checks import Claim, end, online_mean
from results.grid import Entry


def world(variant, weights, more=""):
    length = "--seeds 8 --env-steps 12000 --learning-starts 500 --eval-every 1200 --log-every 1200 --eval-episodes 20"
    sizes = "--batch-size 64 --hidden-dims 64 64 --actor-lr 1e-3 --critic-lr 1e-3 --discount 0.97 --tau 0.01"
    arguments = f"{length} {sizes} --optimism-weight {weights} {more}"
    return Entry("mex", "PointUMaze-v0", arguments.strip(), variant, "claim")


value, advantage = world("value", "0 0.001 0.01 0.1"), world("advantage", "0.005 0.01 0.1", "--optimism advantage")
NONE, SOME, THEIRS = "optimism_weight=0", "optimism_weight=0.01", "optimism_weight=0.005"

CLAIM = Claim(
    title="MEX finds a sparse reward sooner than TD3",
    paper="MEX (arXiv 2305.18258) claims that critics that maximise their own values explore where rewards are sparse, "
    "and outperform TD3 there by a stable margin.",
    runs=[value, advantage],
    checks={
        "Values maximised: more than TD3 over all evaluations": online_mean(value, SOME) > online_mean(value, NONE),
        "Advantages maximised: more than TD3 over all evaluations": online_mean(advantage, SOME)
        > online_mean(value, NONE),
        "Advantages maximised with the authors' weight: more than TD3 over all evaluations": (
            online_mean(advantage, THEIRS) > online_mean(value, NONE)
        ),
        "Values maximised: it ends no lower": end(value, SOME) >= end(value, NONE),
        "Advantages maximised with the authors' weight: it ends no lower": end(advantage, THEIRS) >= end(value, NONE),
    },
    finding="One lane of TD3 finds the goal and keeps it, one of the largest weight finds it sooner and loses it, no "
    "other lane of any setting finds it: the comparison rests on luck. Where no reward has been met, the critics' "
    "optimism raises what has been tried, not what has not.",
)
