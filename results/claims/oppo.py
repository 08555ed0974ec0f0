from results.checks import Claim, above, end, logged, lost, noise, under
from results.grid import Entry

DATA = "turned-point-against"
LENGTH = "--seeds 8 --updates 800 --log-every 400 --eval-every 800 --eval-episodes 32 --context 4 --width 16 --layers 1"
RATES = "--batch-size 32 --learning-rate 3e-3 --warmup-updates 100 --token-dropout 0 --max-grad-norm 0"
TOLD = "--foresee 15 --latent-dim 1 --encoder-heads 1 --latent-lr 1e-2 --preference-weight 1 --known-pairs 100 1e6"
MEAN, RANDOM, UNIT = "told_context=mean", "told_context=random", "told_context=unit"

oppo = Entry("oppo", DATA, f"{LENGTH} {RATES} {TOLD}", "", "claim", (MEAN, RANDOM, UNIT))
dt = Entry("decision_transformer", DATA, f"{LENGTH} {RATES}", "beside-oppo", "claim")
REPLAY = "hopper-medium-replay-v0"
REAL = (
    "--seeds 8 --updates 2000 --log-every 500 --eval-every 2000 --eval-episodes 10 --batch-size 64 --context 5 "
    "--width 32 --layers 2 --heads 1 --learning-rate 1e-3 --warmup-updates 200 --weight-decay 1e-4"
)
real = Entry("oppo", REPLAY, f"{REAL} --encoder-heads 1 --latent-lr 1e-2", "", "claim", (MEAN,))
real_dt = Entry("decision_transformer", REPLAY, f"{REAL} --target-return 1950", "small", "claim")
FEW, FULL = "known_pairs=100", "known_pairs=1e+06"
PAIRS = {FULL: "New pairs all the time", FEW: "A hundred pairs"}

CLAIM = Claim(
    title="Preferences alone say which of two behaviours to have",
    paper="OPPO (arXiv 2305.16217) claims to reach, without any reward, what methods with true rewards reach, by the "
    "optimal context that it learns from preferences. Here half of the episodes go to their goal and half away from "
    "it, from the same states, so that a policy which is told neither does neither.",
    runs=[oppo, dt, real, real_dt],
    checks={
        **{
            f"{pairs}: it is level with DT, which is asked for the best return, within noise": (
                end(oppo, setting) + noise(end(oppo, setting), end(dt)) > end(dt)
            )
            for setting, pairs in PAIRS.items()
        },
        **{
            f"{pairs}: z* is better than {what}, beyond noise": (
                above(end(oppo, setting), under(change, oppo, setting))
            )
            for setting, pairs in PAIRS.items()
            for change, what in ((MEAN, "the mean context of the data"), (RANDOM, "a random context"))
        },
        "New pairs all the time: nearness to z* orders pieces as their rewards do (Spearman above 0.7)": (
            logged("correlation", oppo, FULL) > 0.7
        ),
        f"{REPLAY}: it is level with DT, which is asked for the best return, within noise": (
            end(real) + noise(end(real), end(real_dt)) > end(real_dt)
        ),
        f"{REPLAY}: z* is better than the mean context of the data, beyond noise": (
            above(end(real), under(MEAN, real))
        ),
        f"{REPLAY}: nearness to z* orders pieces as their rewards do (Spearman above 0.7)": (
            logged("correlation", real) > 0.7
        ),
    },
    observed={
        f"{REPLAY}: z* is more than four times as long as contexts are": logged("z_star_norm", real)
        > 4 * logged("z_norm", real),
        "New pairs all the time: nearness to z* orders pieces better than with a hundred, beyond noise": (
            above(logged("correlation", oppo, FULL), logged("correlation", oppo, FEW))
        ),
        "A hundred pairs are told apart better than many are: they are learned by heart, beyond noise": (
            above(logged("accuracy", oppo, FEW), logged("accuracy", oppo, FULL))
        ),
        "New pairs all the time: z* is longer than contexts are": logged("z_star_norm", oppo, FULL)
        > logged("z_norm", oppo, FULL),
        "New pairs all the time: z* of length 1 is level with z*, within noise": (
            abs(lost(UNIT, oppo, FULL)) < noise(lost(UNIT, oppo, FULL))
        ),
    },
    finding="What is told decides: with z* the policy ends far above what it does with the mean context, which leaves "
    "it with both behaviours. With new pairs all the time it is level with DT on true rewards, within noise "
    "that is large, since both differ much from seed to seed. With a hundred pairs the encoder learns them by "
    "heart, contexts order the data's pieces less well, and it ends below DT. A random context is not beaten "
    "beyond noise: contexts are a single number here, so that it is z* or its opposite, but for the length, as "
    "chance has it; contexts of more numbers were not compared. On hopper-medium-replay it is level with DT on "
    "true rewards, within noise, and nearness to z* orders pieces as their rewards do; yet z* is not better "
    "there than the mean context, beyond noise. There it is several times as long as any context of the data, "
    "about as long as it was drawn, so that the policy is told what it never saw. Unit length was not "
    "evaluated there; whether the length is the cause is open.",
)
