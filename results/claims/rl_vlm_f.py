from results.checks import Claim, above, below, end, highest, logged, noise
from results.grid import Entry, small

DATA = "pendulum-mixed"
FORM = (
    "--preset none --seeds 8 --updates 3000 --eval-every 3000 --log-every 1500 --eval-episodes 20 "
    "--env phys2d/Pendulum-v0 --batch-size 64 --hidden-dims 64 64 --actor-lr 1e-3"
)
IQL = f"{FORM} --critic-lr 1e-3 --value-lr 1e-3 --tau 0.02"
MODELS = "--reward-hidden-dims 32 32 --reward-lr 1e-3 --reward-epochs 100"

many = Entry("rl_vlm_f", DATA, f"{IQL} {MODELS} --flips 0.1 0.3 --preference-batch 125", "1000-pairs", "claim")
true = Entry("iql", DATA, f"{IQL} --normalize-return", "true-rewards-beside-preferences", "claim")
unit = small("imputed_rewards", "--labelled-fraction 1", "true-rewards")
constant = Entry("seabo", DATA, f"{IQL} --squash-alpha 0", "constant-beside-preferences", "claim")
cloned = Entry("bc", DATA, FORM, "beside-preferences", "claim")
best = Entry("bc", DATA, f"{FORM} --top-fraction 0.1", "top10-beside-preferences", "claim")
SOME, MANY = "flips=0.1", "flips=0.3"

ours, clone, ceiling = end(many, SOME), end(cloned), end(true)

CLAIM = Claim(
    title="Which of two states is better, asked a thousand times, is reward enough",
    paper="Offline RL-VLM-F (arXiv 2411.05273) claims that IQL on rewards learned from a model's preferences is above "
    "cloning, and near IQL on true rewards, though such answers are often wrong. Here an oracle answers, a tenth or "
    "three tenths of the time the wrong way. Nothing is demonstrated here: the best tenth of the episodes is cloned "
    "beside it. IQL on constant rewards is SEABO with --squash-alpha 0.",
    runs=[many, true, unit, constant, cloned, best],
    checks={
        "A tenth wrong: it ends above cloning, beyond noise": above(ours, clone),
        "A tenth wrong: it is level with true rewards, within noise": ours + noise(ours, ceiling) > ceiling,
        "Three tenths wrong: it ends above cloning, beyond noise": (above(end(many, MANY), clone)),
        "Three tenths wrong: it is level with true rewards, within noise": (
            end(many, MANY) + noise(end(many, MANY), ceiling) > ceiling
        ),
    },
    observed={
        **{
            f"{share} wrong: labels go with the true rewards of the rows (Spearman above 0.9)": (
                logged("reward_correlation", many, setting) > 0.9
            )
            for share, setting in (("A tenth", SOME), ("Three tenths", MANY))
        },
        "More wrong answers make labels that are further from the truth, beyond noise": (
            below(logged("reward_correlation", many, MANY), logged("reward_correlation", many, SOME))
        ),
        "But do not end lower, beyond noise": end(many, MANY) + noise(ours, end(many, MANY)) > ours,
        "Cloning the best tenth of the episodes ends above all others, beyond noise": (
            above(end(best), highest(ours, end(many, MANY), ceiling))
        ),
        "A tenth wrong: it ends above IQL on constant rewards, beyond noise": (above(ours, end(constant))),
        "True rewards make IQL's mean weight more than twice as large as the labels do": (
            logged("weight", true) > 2.0 * highest(logged("weight", many, SOME), logged("weight", many, MANY))
        ),
        "With more updates and larger batches true rewards of unit deviation end above these, beyond noise": (
            above(end(unit), ceiling)
        ),
        "A tenth wrong: it is nearer to true rewards than to cloning": ours > 0.5 * (clone + ceiling),
    },
    finding="Labels made of a thousand answers go with the true rewards, and IQL on them is far above cloning "
    "everything and level with IQL on true rewards. That level says little: means over lanes differ much, and "
    "the arm of true rewards is not their best. Their scale is an inverse temperature of IQL's weights; scaled "
    "by the range of returns they make larger weights than the labels, which have unit deviation. True rewards "
    "of unit deviation were not run at this size; with more updates, larger batches and smaller rates IQL ends "
    "higher on them. With three tenths of the answers wrong labels are further from the truth and the score is "
    "no lower: wrong answers that are independent of each other average out. A model's mistakes need not be "
    "independent, and no model was asked here. Pendulum's rewards can be told from one state; fewer answers, "
    "and rewards that need a motion, were not tried.",
)
