from results.checks import Claim, end, gain, noise
from results.grid import interaction

PENDULUM, WEAK, REPLAY, MAZE = "pendulum-mixed", "pendulum-weak", "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {PENDULUM: "10000+6000", WEAK: "10000+6000", REPLAY: "10000+4800", MAZE: "10000+4800"}

decay = {d: interaction("rebrac_finetune", d, steps, "--min-decay 0.5 1", "decay") for d, steps in STEPS.items()}
free = {
    d: interaction("rebrac_finetune", d, steps, "--actor-bc 0 --critic-bc 0", "no-penalty")
    for d, steps in STEPS.items()
}
DECAYING, CONSTANT = "min_decay=0.5", "min_decay=1"


def above(a, b):
    return a > b + noise(a, b)


CLAIM = Claim(
    title="ReBRAC fine-tunes best with a decaying penalty",
    paper="ReBRAC (arXiv 2305.09836, appendix on fine-tuning) claims improvement online when the behaviour-cloning "
    "terms decay to half of their weight, beside constant ones and none (here: none in either phase).",
    runs=[run for d in STEPS for run in (decay[d], free[d])],
    checks={
        **{
            f"{d}: with a decaying penalty it ends above its offline level, beyond noise": (
                gain(decay[d], DECAYING) > noise(gain(decay[d], DECAYING))
            )
            for d in STEPS
        },
        **{
            f"{d}: the decaying penalty ends above the constant one, beyond noise": (
                above(end(decay[d], DECAYING), end(decay[d], CONSTANT))
            )
            for d in STEPS
        },
        **{
            f"{d}: the decaying penalty ends above none, beyond noise": above(end(decay[d], DECAYING), end(free[d]))
            for d in STEPS
        },
    },
    finding="On Pendulum ReBRAC is at the top offline, even without an expert in the data, and stays there "
    "with every penalty and none. On hopper-medium-replay decaying and constant penalties end within each "
    "other's spread, slightly below the offline level; without any the agent starts from nothing and has not "
    "reached them after 4,800 steps. On PointMaze 10,000 offline updates leave nothing to fine-tune (the actor "
    "comes back slowly from the corners of the action space: results/README.md), and 4,800 steps do not change "
    "that; these runs had the general settings, not CORL's for mazes, and are to be made again. The paper's gains "
    "are over a million steps.",
)
