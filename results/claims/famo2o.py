from results.checks import Claim, end, highest, noise, start
from results.grid import interaction

PENDULUM, WEAK, REPLAY, MAZE = "pendulum-mixed", "pendulum-weak", "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {PENDULUM: "20000+9600", WEAK: "10000+4800", REPLAY: "10000+4800", MAZE: "10000+4800"}
BETAS = ("beta=1", "beta=3", "beta=5")

famo2o = {d: interaction("famo2o", d, steps) for d, steps in STEPS.items()}
fixed = {d: interaction("iql_finetune", d, steps, "--beta 1 3 5", "beta") for d, steps in STEPS.items()}

CLAIM = Claim(
    title="FamO2O's state-dependent balance is better than the best fixed one",
    paper="FamO2O (arXiv 2310.17966) claims that a balance between improvement and constraint chosen in each state is "
    "better than IQL's fixed inverse temperature.",
    runs=[run for d in STEPS for run in (famo2o[d], fixed[d])],
    checks={
        f"{d}: {when} FamO2O is above the best of three fixed inverse temperatures, beyond noise": (
            at(famo2o[d]) > (best := highest(*(at(fixed[d], beta) for beta in BETAS))) + noise(at(famo2o[d]), best)
        )
        for when, at in (("offline", start), ("at the end", end))
        for d in STEPS
    },
    finding="Where Pendulum's data lack an expert FamO2O is offline within the spread of IQL at three inverse "
    "temperatures, and all of them are at the top after the first tenth or two of the online steps; with the "
    "expert's data they begin there. On hopper-medium-replay it rises by as much as IQL with the three "
    "temperatures; on PointMaze it loses a little, IQL stays where it is.",
)
