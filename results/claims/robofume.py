from results.checks import Claim, above, below, end, gain, logged, lowest, noise, online_mean, start
from results.grid import Entry

LENGTH = "--seeds 8 --offline-updates 200 --offline-eval-every 200 --env-steps 1200 --eval-every 300 --log-every 300"
SIZES = (
    "--batch-size 64 --hidden-dims 32 32 --actor-hidden-dims 32 32 --n-actions 4 --critic-lr 1e-3 --actor-lr 1e-3 "
    "--classifier-lr 1e-3 --classifier-updates 1000 --tau 0.01 --discount 0.97 --cql-alpha 1 --cloning-weight 0.3"
)
WORLD = (
    "--back-dataset point-wayback-demos --prior-dataset point-noend-explore --practice-env PointNoEnd-v0 "
    "--reset-every 600 --attempt-steps 60 --eval-episodes 20"
)


def job(more, variant=""):
    return Entry("robofume", "point-roundtrip-demos", f"{LENGTH} {SIZES} {WORLD} {more}", variant, "claim")


run, new = job("--learned-reward 0 1 --rl-weight 0 1"), job("--new-networks 1", "new")
LEARNED, TRUE, CLONING = "learned_reward=1 rl_weight=1", "learned_reward=0 rl_weight=1", "learned_reward=1 rl_weight=0"

CLAIM = Claim(
    title="Practice without resets, judged by a classifier, improves a pre-trained policy",
    paper="RoboFuME (arXiv 2310.15145) claims that a policy that is pre-trained on demonstrations improves by practice "
    "that needs hardly a reset and no reward but a learned one, and ends above cloning.",
    runs=[run, new],
    checks={
        "With the learned reward it ends above the pre-trained policy, beyond noise": gain(run, LEARNED)
        > noise(gain(run, LEARNED)),
        "With the learned reward it is no lower than with the true one over all evaluations online, but for noise": (
            online_mean(run, LEARNED)
            >= online_mean(run, TRUE) - noise(online_mean(run, LEARNED), online_mean(run, TRUE))
        ),
        "With the learned reward it ends above cloning alone, beyond noise": above(
            end(run, LEARNED), end(run, CLONING)
        ),
        "With the learned reward it is above cloning alone over all evaluations online, beyond noise": above(
            online_mean(run, LEARNED), online_mean(run, CLONING)
        ),
        "Without what was pre-trained it is lower over all evaluations online, beyond noise": below(
            online_mean(new), online_mean(run, LEARNED)
        ),
    },
    observed={
        "With the learned reward it ends no lower than with the true one, but for noise": end(run, LEARNED)
        >= end(run, TRUE) - noise(end(run, LEARNED), end(run, TRUE)),
        "With the learned reward, with the true one and with cloning alone it ends above 0.95": (
            lowest(end(run, LEARNED), end(run, TRUE), end(run, CLONING)) > 0.95
        ),
        "The classifier says yes wrongly in fewer than a twentieth of the last steps": logged(
            "false_positive", run, LEARNED
        )
        < 0.05,
        "It says yes in fewer of the last steps than truly succeed": logged("predicted", run, LEARNED)
        < logged("success", run, LEARNED),
        "Until the last step there is one reset": abs(logged("resets", run, LEARNED) - 1) < 0.01,
        "At the end of offline training cloning alone is lower, beyond noise": below(
            start(run, CLONING), start(run, LEARNED)
        ),
        "Cloning alone ends above the pre-trained policy, too, beyond noise": gain(run, CLONING)
        > noise(gain(run, CLONING)),
    },
    finding="The classifier, whose negatives include the states of the prior data, says yes wrongly in few steps and "
    "misses more; practice with it, with a single reset, ends as high as with the true reward, and networks "
    "drawn anew are slower. But all arms end at the top, where no difference could show. On the way there the "
    "learned reward is level with the true one, within noise that is large, and not above cloning alone, "
    "beyond noise. That practice is what improves the policy is not shown: cloning alone, lower when offline "
    "training is stopped early, gets there by going on with the demonstrations. They are enough to solve this "
    "maze.",
)
