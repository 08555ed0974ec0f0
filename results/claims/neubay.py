from results.checks import Claim, above, end, highest, logged, lowest, noise
from results.grid import Entry

FREE, ARM = "road-free", "bandit-unknown-arm"
SIZES = (
    "--seeds 8 --preset none --hidden-dims 32 32 --memory-dim 32 --lru-dim 16 --memory-layers 1 --n-critics 4 "
    "--model-hidden-dims 32 32 --n-models 6 --n-elites 5 --model-updates 2000 --holdout-every 500 --history 8 "
    "--rollout-batch 100 --rollout-every 250 --rollouts-per-update 8 --memory-lr 3e-4 --actor-lr 1e-3 --critic-lr 1e-3 "
    "--real-weight 0.5 --updates 1500 --log-every 500 --eval-every 1500 --eval-episodes 20"
)

ARMS = (
    "--seeds 8 --preset none --hidden-dims 32 32 --memory-dim 32 --lru-dim 16 --memory-layers 1 --n-critics 2 "
    "--model-hidden-dims 32 32 --n-models 16 --n-elites 16 --model-updates 500 --holdout-every 100 --holdout-rows 40 "
    "--history 1 --rollout-batch 100 --rollout-every 100 --rollouts-per-update 8 --rollout-steps 20 --no-truncation "
    "--no-termination --memory-lr 1e-3 --actor-lr 1e-3 --critic-lr 1e-3 --tau 0.02 --discount 0.9 --real-weight 0.5 "
    "--updates 10000 --log-every 1000 --eval-every 5000 --eval-episodes 200"
)

# what the rewards lose by the ensemble's disagreement is all that the two differ in
bandit = Entry("neubay", ARM, f"{ARMS} --reward-penalty 0 1", "", "claim")
bayesian, conservative = "reward_penalty=0", "reward_penalty=1"
neubay = Entry("neubay", FREE, f"{SIZES} --rollout-steps 5 40", "", "claim")
# the same, cut earlier
careful = Entry("neubay", FREE, f"{SIZES} --rollout-steps 5 40 --disagreement-quantile 0.9", "cut", "claim")
short, long = "rollout_steps=5", "rollout_steps=40"

CLAIM = Claim(
    title="Without conservatism it is the long rollouts that learn, and the short ones that overestimate",
    paper="NEUBAY (arXiv 2512.04341) claims that a Bayesian agent needs no conservatism, but rollouts of hundreds of "
    "steps: with the short ones of earlier methods values are overestimated and policies fail. Rollouts are cut "
    "only where the models disagree more than anywhere in the data.",
    runs=[neubay, careful, bandit],
    checks={
        f"{FREE}: rollouts of 40 steps end above rollouts of 5, beyond noise": (
            above(end(neubay, long), end(neubay, short))
        ),
        f"{FREE}: rollouts of 40 steps end above uniform actions, whose score is 0, beyond noise": (
            end(neubay, long) > noise(end(neubay, long))
        ),
        f"{FREE}: rollouts of 5 steps value the policy's actions in the data's states higher, beyond noise": (
            above(logged("q_pi_real", neubay, short), logged("q_pi_real", neubay, long))
        ),
        f"{FREE}, cut beyond 90 % of the data's disagreements: rollouts of 40 steps end above rollouts of 5, "
        "beyond noise": (above(end(careful, long), end(careful, short))),
        f"{FREE}, 40 steps: cut beyond all of the data's disagreements they end above cut beyond 90 %, beyond noise": (
            above(end(neubay, long), end(careful, long))
        ),
        f"{ARM}: the agent without a penalty ends above the one with it, beyond noise": (
            above(end(bandit, bayesian), end(bandit, conservative))
        ),
        f"{ARM}: it ends above 10, which either arm alone pays in the mean, beyond noise": (
            end(bandit, bayesian) - noise(end(bandit, bayesian)) > 10.0
        ),
    },
    observed={
        f"{ARM}: with the penalty it is not above 10, within noise": (
            end(bandit, conservative) - noise(end(bandit, conservative)) < 10.0
        ),
        f"{FREE}, cut beyond 90 % of the data's disagreements: either length ends above uniform actions": (
            lowest(end(careful, short), end(careful, long)) > 20.0
        ),
        f"{FREE}, cut beyond 90 % of the data's disagreements: the two are level, within noise": (
            abs(end(careful, long) - end(careful, short)) < noise(end(careful, long), end(careful, short))
        ),
        f"{FREE}, cut beyond 90 % of the data's disagreements: both end below those cut beyond all": (
            highest(end(careful, short), end(careful, long)) < lowest(end(neubay, short), end(neubay, long))
        ),
        f"{FREE}, cut beyond 90 % of the data's disagreements: rollouts of 40 steps are shorter than 5": (
            logged("rollout_length", careful, long) < 5.0
        ),
        f"{FREE}: with either length, and cut or not, the entropy is above 0, where the target is -2": (
            lowest(*(logged("entropy", run, length) for run in (neubay, careful) for length in (short, long))) > 0.0
        ),
        f"{FREE}: values of the two lengths differ by less than a tenth of their noise": (
            abs(logged("q_pi_real", neubay, short) - logged("q_pi_real", neubay, long))
            < noise(logged("q_pi_real", neubay, short), logged("q_pi_real", neubay, long)) / 10.0
        ),
        f"{FREE}: those of 40 steps are longer than 20": logged("rollout_length", neubay, long) > 20,
        f"{FREE}: with either the policy ends far above uniform actions, whose score is 0": (
            lowest(end(neubay, short), end(neubay, long)) > 50.0
        ),
        f"{FREE}: the two are level, within noise": (
            abs(end(neubay, long) - end(neubay, short)) < noise(end(neubay, long), end(neubay, short))
        ),
        f"{FREE}: a step of the long ones earns less than 0 in the model, as every step on the road does": (
            logged("model_reward", neubay, long) < 0.0
        ),
    },
    finding="On the road rollouts of 40 steps and of 5 are level: with either the policy ends far above uniform "
    "actions, and values are not higher with the short ones. That tells nothing about overestimation: values of the "
    "two lengths differ by far less than those of the seeds, and the policies have not left their phase of high "
    "entropy. Cut beyond nine tenths of the data's disagreements, as the authors do not, both end lower in the mean. "
    "There most rollouts are cut so soon that a limit of 40 steps is hardly another than one of 5: the two say "
    "nothing about length. An episode has fifty steps and the models are good: where short rollouts fail, as in the "
    "paper's tasks of a thousand steps, would have to be seen there. The authors have many more members, and make "
    "over a thousand times as many updates. On the bandit no data has the other arm, and each member of the ensemble "
    "says something else of it. Without a penalty the agent earns more than either arm alone pays in the mean, for "
    "which it must try the unknown one and remember what came of it. With the penalty it earns no more than an arm "
    "alone.",
)
