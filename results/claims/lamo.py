from results.checks import Claim, above, below, end, logged, noise
from results.grid import Entry

DATA = "turned-point-few"
LENGTH = "--seeds 8 --updates 800 --log-every 400 --eval-every 800 --eval-episodes 32 --width 16 --layers 1 --context"
RATES = "--batch-size 32 --learning-rate 3e-3 --warmup-updates 100 --token-dropout 0 --max-grad-norm 0"
TEXT = "--language-updates 800 --language-batch 16 --language-length 24 --bracket-kinds 4 --heads 2 --rank 4"
SWEPT = "--adapter-lr 3e-3 --language-lr 0 3e-3 --language-weight 0 0.1"

lamo = Entry("lamo", DATA, f"{LENGTH} 4 {RATES} {TEXT} {SWEPT}", "", "claim")
one_step = Entry(
    "lamo",
    DATA,
    f"{LENGTH} 1 {RATES} {TEXT} --adapter-lr 3e-3 --language-lr 3e-3 --language-weight 0",
    "one-step",
    "claim",
)
scratch = Entry(
    "lamo",
    DATA,
    f"{LENGTH} 4 {RATES} {TEXT} --adapter-lr 3e-3 --adapt all --language-lr 0 --language-weight 0",
    "scratch",
    "claim",
)
dt = Entry("decision_transformer", DATA, f"{LENGTH} 4 {RATES}", "beside-lamo", "claim")
REPLAY = "hopper-medium-replay-v0"
REAL = (
    "--seeds 8 --updates 2000 --log-every 500 --eval-every 2000 --eval-episodes 10 --batch-size 64 --context 5 "
    "--width 32 --layers 2 --heads 1 --learning-rate 1e-3 --warmup-updates 200 --weight-decay 1e-4 --target-return 1950"
)
REAL_TEXT = (
    "--language-updates 1000 --language-batch 16 --language-length 24 --bracket-kinds 4 --rank 4 --adapter-lr 1e-3 "
    "--language-weight 0 --language-lr"
)
real = Entry("lamo", REPLAY, f"{REAL} {REAL_TEXT} 3e-3", "", "claim")
real_drawn = Entry("lamo", REPLAY, f"{REAL} {REAL_TEXT} 0", "random", "claim")
real_dt = Entry("decision_transformer", REPLAY, REAL, "small", "claim")
DRAWN, TAUGHT = "language_lr=0 language_weight=0", "language_lr=0.003 language_weight=0"
GOES_ON = "language_lr=0.003 language_weight=0.1"
MODELS = {TAUGHT: "Taught by text before", GOES_ON: "Taught by text before and while"}
RANDOM = {TAUGHT: end(lamo, DRAWN), GOES_ON: end(lamo, "language_lr=0 language_weight=0.1")}

CLAIM = Claim(
    title="What text has taught helps to act where data are few",
    paper="LaMo (arXiv 2310.20587) claims that a language model's weights, changed by a low rank alone, end above the "
    "same network that begins at random, and above DT, most of all where few trajectories are there. Here these are "
    "40 of 400 episodes, on hopper-medium-replay all that there are, and the text is nested brackets, of which a tiny "
    "model learns what closes next.",
    runs=[lamo, dt, one_step, scratch, real, real_drawn, real_dt],
    checks={
        f"{model}: it ends above {what}, beyond noise": above(end(lamo, setting), other)
        for setting, model in MODELS.items()
        for other, what in ((RANDOM[setting], "the same from random weights"), (end(dt), "DT"))
    }
    | {
        f"{REPLAY}: taught by text before, it ends above {what}, beyond noise": (above(end(real), end(other)))
        for other, what in ((real_drawn, "the same from random weights"), (real_dt, "DT"))
    },
    observed={
        f"{REPLAY}: it ends above the same from random weights by less than 1 beyond noise": (
            end(real) < end(real_drawn) + noise(end(real), end(real_drawn)) + 1
        ),
        f"{REPLAY}: its error of the data's actions is above that from random weights, beyond noise": (
            above(logged("actor_loss", real), logged("actor_loss", real_drawn))
        ),
        "While it acts and goes on with text it tells text better than random weights do, beyond noise": (
            below(logged("language_loss", lamo, GOES_ON), logged("language_loss", lamo, DRAWN))
        ),
        "Without going on it tells text worse than random weights do, beyond noise": (
            above(logged("language_loss", lamo, TAUGHT), logged("language_loss", lamo, DRAWN))
        ),
        "A network that begins at random and is learned whole ends above what text has taught, beyond noise": (
            above(end(scratch), end(lamo, TAUGHT))
        ),
        "Seeing one step alone it is level with seeing four, within noise": (
            abs(end(one_step) - end(lamo, TAUGHT)) < noise(end(one_step), end(lamo, TAUGHT))
        ),
        **{
            f"{model}: it is level with {what}, within noise": (
                abs(end(lamo, setting) - other) < noise(end(lamo, setting), other)
            )
            for setting, model in MODELS.items()
            for other, what in ((RANDOM[setting], "the same from random weights"), (end(dt), "DT"))
        },
        **{
            f"{model}: its error of the data's actions is that from random weights, within noise": (
                abs(logged("actor_loss", lamo, setting) - logged("actor_loss", lamo, DRAWN))
                < noise(logged("actor_loss", lamo, setting), logged("actor_loss", lamo, DRAWN))
            )
            for setting, model in MODELS.items()
        },
    },
    finding="Weights that text has taught end level with random ones and with DT, with more text while they act or "
    "without, and err as much on the data's actions. Where all weights are learned, from random ones, the "
    "policy ends above: what is lost to the low rank is not won back by text. With more text while it acts the "
    "model stays better at text than random weights are; without, the change of the weights leaves it worse. "
    "What text teaches, to look back, is of no use here: a policy that sees a single step is level with one "
    "that sees the steps before it. A problem that needs memory, and a large model of real text, were not "
    "tried; DT has one head and a larger weight decay. On hopper-medium-replay, whose episodes are not few, "
    "what text has taught barely helps: under the same low rank it ends above random weights by little more "
    "than noise, though it errs more on the data's actions. It is not above DT, all of whose weights are "
    "learned.",
)
