from results.checks import Claim, end, gain, noise, online_mean
from results.grid import interaction, worlds

HALF, WEAK, REPLAY = "pendulum-half", "pendulum-weak", "hopper-medium-replay-v0"
STEPS = {WEAK: "10000+6000", REPLAY: "10000+4800"}
DECAYING, CONSTANT = "min_decay=0.5", "min_decay=1"

decay = {d: interaction("rebrac_finetune", d, steps, "--min-decay 0.5 1", "decay") for d, steps in STEPS.items()}
free = {
    d: interaction("rebrac_finetune", d, steps, "--actor-bc 0 --critic-bc 0", "no-penalty")
    for d, steps in STEPS.items()
}


def above(a, b):
    return a > b + noise(a, b)
