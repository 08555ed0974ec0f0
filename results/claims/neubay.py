from results.checks import Claim, end, highest, logged, noise
from results.grid import Entry

FREE = "road-free"
SIZES = (
    "--seeds 8 --preset none --hidden-dims 32 32 --memory-dim 32 --lru-dim 16 --memory-layers 1 --n-critics 4 "
    "--model-hidden-dims 32 32 --n-models 6 --n-elites 5 --model-updates 2000 --holdout-every 500 --history 8 "
    "--rollout-batch 100 --rollout-every 250 --rollouts-per-update 8 --memory-lr 3e-4 --actor-lr 1e-3 --critic-lr 1e-3 "
    "--real-weight 0.5 --updates 1500 --log-every 500 --eval-every 1500 --eval-episodes 20"
)

neubay = Entry("neubay", FREE, f"{SIZES} --rollout-steps 5 40", "", "claim")
short, long = "rollout_steps=5", "rollout_steps=40"

CLAIM = Claim(
    title="Without conservatism it is the long rollouts that learn, and the short ones that overestimate",
    paper="NEUBAY (arXiv 2512.04341) claims that a Bayesian agent needs no conservatism, but rollouts of hundreds of "
    "steps: with the short ones of earlier methods values are overestimated and policies fail.",
    runs=[neubay],
    checks={
        f"{FREE}: rollouts of 40 steps end above rollouts of 5, beyond noise": (
            end(neubay, long) > end(neubay, short) + noise(end(neubay, long), end(neubay, short))
        ),
        f"{FREE}: rollouts of 40 steps end above uniform actions, whose score is 0, beyond noise": (
            end(neubay, long) > noise(end(neubay, long))
        ),
        f"{FREE}: rollouts of 5 steps value the policy's actions in the data's states higher, beyond noise": (
            logged("q_pi_real", neubay, short)
            > logged("q_pi_real", neubay, long)
            + noise(logged("q_pi_real", neubay, short), logged("q_pi_real", neubay, long))
        ),
    },
    observed={
        f"{FREE}: those of 40 steps are longer than 20": logged("rollout_length", neubay, long) > 20,
        f"{FREE}: with either the policy ends far below uniform actions, whose score is 0": (
            highest(end(neubay, short), end(neubay, long)) < -50.0
        ),
    },
    finding="Nothing is learned within this budget: with either length the policy is far worse than uniform actions, "
    "so that the long rollouts' lead says little. Values are not higher with short rollouts than with long ones. The "
    "authors make over a thousand times as many updates; a longer run was not made.",
)
