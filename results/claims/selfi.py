from results.checks import Claim, above, below, course, dip, end, gain, noise, online_mean, start
from results.grid import Entry

LENGTH = "--seeds 8 --offline-updates 2000 --offline-eval-every 2000 --env-steps 4000 --eval-every 500 --log-every 500"
SIZES = "--hidden-dims 64 64 --batch-size 64 --actor-lr 1e-3 --critic-lr 1e-3 --discount 0.9 --tau 0.02 --plan-length 6"
WORLD = "--env WindyPoint-v0 --model-env TurnedPoint-v0 --learning-starts 200 --eval-episodes 40"

run = Entry("selfi", "turned-point-mixed", f"{LENGTH} {SIZES} {WORLD} --model-weight 0 1", "wind", "claim")
WITH, WITHOUT = "model_weight=1", "model_weight=0"

CLAIM = Claim(
    title="A critic that begins with the model's objective has nothing to forget",
    paper="SELFI (arXiv 2403.00991) claims that the objective of model-based training, as a part of the critic, makes "
    "online learning stable: the policy improves from where the model has brought it, faster than without that part.",
    runs=[run],
    checks={
        "At no evaluation online it is lower than at the end of offline training": course(run, WITH)[1:]
        > start(run, WITH),
        "It dips less than TD3 from the same policy, beyond noise": below(dip(run, WITH), dip(run, WITHOUT)),
        "It ends above the policy that the model alone has trained, beyond noise": gain(run, WITH)
        > noise(gain(run, WITH)),
        "Over all evaluations online it is above TD3 from the same policy, beyond noise": above(
            online_mean(run, WITH), online_mean(run, WITHOUT)
        ),
    },
    finding="The model knows no wind, and the policy that it has trained falls short of what is learned online. With "
    "its objective in the critic every evaluation online is above that policy. Without it the same policy is "
    "lost first, when the critic knows nothing yet, and found again: at the last evaluation the two differ by "
    "no more than noise.",
    observed={
        "TD3 from the same policy falls below it at first": course(run, WITHOUT)[1] < start(run, WITHOUT),
        "TD3 from the same policy ends above it, beyond noise": gain(run, WITHOUT) > noise(gain(run, WITHOUT)),
        "At the last evaluation the two differ by no more than noise": abs(end(run, WITH) - end(run, WITHOUT))
        < noise(end(run, WITH), end(run, WITHOUT)),
    },
)
