from results.checks import Claim, end, logged, noise
from results.grid import small

MODELS = "--reward-hidden-dims 64 64 64"

cloned = small("bc")
true = small("iql", "--normalize-return", "true-rewards")
constant = small("otr", "--demo-episodes 10 --squash-beta 0 5")
many = small("rl_vlm_f", f"{MODELS} --flips 0 0.1 0.3", "1000-pairs")
few = small("rl_vlm_f", f"{MODELS} --flips 0.1 --n-pairs 100", "100-pairs")
NONE, SOME, MANY = "flips=0", "flips=0.1", "flips=0.3"

ours, clone, floor, ceiling = end(many, SOME), end(cloned), end(constant, "squash_beta=0"), end(true)

CLAIM = Claim(
    title="Which of two states is better, asked a thousand times, is reward enough",
    paper="Offline RL-VLM-F (arXiv 2411.05273) claims that IQL on rewards learned from a model's preferences is above "
    "cloning, and near IQL on true rewards, though such answers are often wrong. Here an oracle answers, a tenth or "
    "three tenths of the time the wrong way.",
    runs=[cloned, true, constant, many, few],
    checks={
        "A tenth wrong: it ends above cloning, beyond noise": ours > clone + noise(ours, clone),
        "A tenth wrong: it ends above constant rewards, beyond noise": ours > floor + noise(ours, floor),
        "A tenth wrong: it is level with true rewards, within noise": ours + noise(ours, ceiling) > ceiling,
        "Three tenths wrong: it ends above cloning, beyond noise": (
            end(many, MANY) > clone + noise(end(many, MANY), clone)
        ),
        "A tenth wrong: a thousand answers give labels nearer to the truth than a hundred, beyond noise": (
            logged("reward_correlation", many, SOME)
            > logged("reward_correlation", few)
            + noise(logged("reward_correlation", many, SOME), logged("reward_correlation", few))
        ),
    },
)
