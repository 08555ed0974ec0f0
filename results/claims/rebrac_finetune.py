from results.checks import Claim, above, end, gain, noise, online_mean
from results.grid import interaction, worlds

HALF, WEAK, REPLAY = "pendulum-half", "pendulum-weak", "hopper-medium-replay-v0"
STEPS = {WEAK: "10000+6000", REPLAY: "10000+4800"}
DECAYING, CONSTANT = "min_decay=0.5", "min_decay=1"

decay = {d: interaction("rebrac_finetune", d, steps, "--min-decay 0.5 1", "decay") for d, steps in STEPS.items()}
free = {
    d: interaction("rebrac_finetune", d, steps, "--actor-bc 0 --critic-bc 0", "no-penalty")
    for d, steps in STEPS.items()
}

SMALL = "--critic-bc 0.01"
decay[HALF] = worlds("rebrac_finetune", HALF, "10000+5000", f"{SMALL} --actor-bc 0.5 --min-decay 0.5 1", "decay", 16)
free[HALF] = worlds("rebrac_finetune", HALF, "10000+5000", "--actor-bc 0 --critic-bc 0", "no-penalty", 16)

CLAIM = Claim(
    title="ReBRAC fine-tunes best with a decaying penalty",
    paper="ReBRAC (arXiv 2305.09836, appendix on fine-tuning) claims improvement online when the behaviour-cloning "
    "terms decay to half of their weight, beside constant ones and none (here: none in either phase).",
    runs=[run for d in decay for run in (decay[d], free[d])],
    checks={
        **{
            f"{d}: with a decaying penalty it ends above its offline level, beyond noise": (
                gain(decay[d], DECAYING) > noise(gain(decay[d], DECAYING))
            )
            for d in (HALF, WEAK)
        },
        f"{HALF}: the decaying penalty ends above the constant one, beyond noise": (
            above(end(decay[HALF], DECAYING), end(decay[HALF], CONSTANT))
        ),
        f"{HALF}: the decaying penalty has a higher mean over the online evaluations than none, beyond noise": (
            above(online_mean(decay[HALF], DECAYING), online_mean(free[HALF]))
        ),
        f"{REPLAY}: the decaying penalty ends above none, beyond noise": (
            above(end(decay[REPLAY], DECAYING), end(free[REPLAY]))
        ),
    },
    observed={
        f"{REPLAY}: the decaying penalty ends within the noise of its offline level": (
            abs(gain(decay[REPLAY], DECAYING)) < noise(gain(decay[REPLAY], DECAYING))
        ),
        **{
            f"{WEAK}: {name} ends above 103": end(run, setting) > 103
            for name, run, setting in (
                ("the decaying penalty", decay[WEAK], DECAYING),
                ("the constant one", decay[WEAK], CONSTANT),
                ("no penalty", free[WEAK], ""),
            )
        },
    },
    finding="On Pendulum without an expert in the data ReBRAC with the general weight is at the top offline already, "
    "and all arms end there: nothing is left to fine-tune. So the penalty is also looked at where it costs something: "
    "half of the data are uniform actions, to which a weight of 0.5 holds the policy. On hopper-medium-replay decaying "
    "and constant penalties end within each other's spread, near the offline level; without any the agent starts from "
    "nothing and has not reached them after 4,800 steps. The paper's gains are over a million steps.",
)
