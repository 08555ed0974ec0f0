from results.checks import Claim, end, logged, noise
from results.grid import Entry

DATA = "turned-point-few"
LENGTH = "--seeds 8 --updates 800 --log-every 400 --eval-every 800 --eval-episodes 32 --context 4 --width 16 --layers 1"
RATES = "--batch-size 32 --learning-rate 3e-3 --warmup-updates 100 --token-dropout 0 --max-grad-norm 0"
TEXT = "--language-updates 800 --language-batch 16 --language-length 24 --bracket-kinds 4 --heads 2 --rank 4"
SWEPT = "--adapter-lr 3e-3 --language-lr 0 3e-3 --language-weight 0 0.1"

lamo = Entry("lamo", DATA, f"{LENGTH} {RATES} {TEXT} {SWEPT}", "", "claim")
dt = Entry("decision_transformer", DATA, f"{LENGTH} {RATES}", "beside-lamo", "claim")
DRAWN, TAUGHT = "language_lr=0 language_weight=0", "language_lr=0.003 language_weight=0"
GOES_ON = "language_lr=0.003 language_weight=0.1"
MODELS = {TAUGHT: "Taught by text before", GOES_ON: "Taught by text before and while"}

CLAIM = Claim(
    title="What text has taught helps to act where data are few",
    paper="LaMo (arXiv 2310.20587) claims that a language model's weights, changed by a low rank alone, end above the "
    "same network that begins at random, and above DT, most of all where few trajectories are there. Here these are "
    "40 of 400 episodes, and the text is nested brackets, of which a tiny model learns what closes next.",
    runs=[lamo, dt],
    checks={
        f"{model}: it ends above {what}, beyond noise": end(lamo, setting) > other + noise(end(lamo, setting), other)
        for setting, model in MODELS.items()
        for other, what in ((end(lamo, DRAWN), "the same from random weights"), (end(dt), "DT"))
    },
    observed={
        "While it acts it still tells text better than from random weights": (
            logged("language_loss", lamo, GOES_ON) < logged("language_loss", lamo, DRAWN)
        ),
    },
)
