from results.checks import Claim, above, end, highest, start
from results.grid import interaction, worlds

HALF, WEAK = "pendulum-half", "pendulum-weak"
REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {WEAK: "10000+4800", REPLAY: "10000+4800", MAZE: "10000+4800"}
RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
BETAS = {HALF: ("0", "1", "3", "10"), **dict.fromkeys(STEPS, ("1", "3", "5"))}

famo2o = {d: interaction("famo2o", d, steps) for d, steps in STEPS.items()}
fixed = {d: interaction("iql_finetune", d, steps, "--beta 1 3 5", "beta") for d, steps in STEPS.items()}
famo2o[HALF] = worlds("famo2o", HALF, "20000+5000", f"{RATES} --balance-lr 1e-3 --beta-min 0 --beta-max 10")
fixed[HALF] = worlds("iql_finetune", HALF, "20000+5000", f"{RATES} --beta 0 1 3 10", "beta")


def best(d, at):
    """Of the fixed inverse temperatures."""
    return highest(*(at(fixed[d], f"beta={beta}") for beta in BETAS[d]))


CLAIM = Claim(
    title="FamO2O's state-dependent balance is better than the best fixed one",
    paper="FamO2O (arXiv 2310.17966) claims that a balance between improvement and constraint chosen in each state is "
    "better than IQL's fixed inverse temperature.",
    runs=[run for d in famo2o for run in (famo2o[d], fixed[d])],
    checks={
        f"{HALF}: {when} FamO2O is above the best fixed inverse temperature, beyond noise": (
            above(at(famo2o[HALF]), best(HALF, at))
        )
        for when, at in (("offline", start), ("at the end", end))
    },
    observed={
        f"{HALF}: cloning (0) is the best fixed inverse temperature offline": (
            start(fixed[HALF], "beta=0")
            > highest(*(start(fixed[HALF], f"beta={beta}") for beta in ("1", "3", "10"))) + 300
        ),
        f"{HALF}: online cloning gains less than 50": end(fixed[HALF], "beta=0") < start(fixed[HALF], "beta=0") + 50,
        f"{HALF}: online FamO2O gains more than 900": end(famo2o[HALF]) > start(famo2o[HALF]) + 900,
        f"{HALF}: at the end FamO2O is within 60 of the best fixed inverse temperature": (
            end(famo2o[HALF]) > best(HALF, end) - 60
        ),
        **{
            f"{d}: {when} FamO2O is within 15 of the best of three fixed inverse temperatures": (
                abs(at(famo2o[d]) - best(d, at)) < 15
            )
            for d in STEPS
            for when, at in (("offline", start), ("at the end", end))
        },
    },
    finding="A balance that depends on the state can matter only where the data are good in some states and bad in "
    "others, and where the weights are neither all near 1 nor all at their clip: so the first problem has a "
    "controller's actions above the horizontal and uniform ones below it, scaled returns, and a family from "
    "cloning (0) to 10, beside IQL at four inverse temperatures of that range. There it starts below the best"
    " of them offline, which is cloning, and, unlike cloning, comes up online to where the others come. On "
    "the other data, all of a kind, with the default range, FamO2O is within the spread of IQL at three "
    "inverse temperatures, offline and online, and on Pendulum without an expert all of them are at the top "
    "after the first tenth or two of the online steps.",
)
