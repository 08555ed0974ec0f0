from results.checks import Claim, above, end, highest, logged, lowest, start
from results.grid import interaction, worlds

HALF, WEAK = "pendulum-half", "pendulum-weak"
REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {WEAK: "10000+4800", REPLAY: "10000+4800", MAZE: "10000+4800"}
RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"
BETAS = {HALF: ("0", "0.1", "0.3", "1"), **dict.fromkeys(STEPS, ("1", "3", "5"))}

famo2o = {d: interaction("famo2o", d, steps) for d, steps in STEPS.items()}
fixed = {d: interaction("iql_finetune", d, steps, "--beta 1 3 5", "beta") for d, steps in STEPS.items()}
BALANCE = f"{RATES} --balance-lr 1e-3 --beta-min 0"
famo2o[HALF] = worlds("famo2o", HALF, "20000+5000", f"{BALANCE} --beta-max 1", "narrow")
fixed[HALF] = worlds("iql_finetune", HALF, "20000+5000", f"{RATES} --beta 0 0.1 0.3 1", "beta-narrow")
wide = worlds("famo2o", HALF, "20000+5000", f"{BALANCE} --beta-max 10")
fixed_wide = worlds("iql_finetune", HALF, "20000+5000", f"{RATES} --beta 0 1 3 10", "beta")


def best(d, at):
    """Of the fixed inverse temperatures."""
    return highest(*(at(fixed[d], f"beta={beta}") for beta in BETAS[d]))


CLAIM = Claim(
    title="FamO2O's state-dependent balance is better than the best fixed one",
    paper="FamO2O (arXiv 2310.17966) claims that a balance between improvement and constraint chosen in each state is "
    "better than IQL's fixed inverse temperature.",
    runs=[*(run for d in famo2o for run in (famo2o[d], fixed[d])), wide, fixed_wide],
    checks={
        f"{HALF}: {when} FamO2O is above the best fixed inverse temperature, beyond noise": (
            above(at(famo2o[HALF]), best(HALF, at))
        )
        for when, at in (("offline", start), ("at the end", end))
    },
    observed={
        f"{HALF}: 0.3 is the best fixed inverse temperature offline": (
            start(fixed[HALF], "beta=0.3")
            > highest(*(start(fixed[HALF], f"beta={beta}") for beta in ("0", "0.1", "1")))
        ),
        f"{HALF}: offline FamO2O is within 150 of cloning (0)": (
            abs(start(famo2o[HALF]) - start(fixed[HALF], "beta=0")) < 150
        ),
        f"{HALF}: online FamO2O gains more than 300": end(famo2o[HALF]) > start(famo2o[HALF]) + 300,
        f"{HALF}: the inverse temperature that the balance chooses is above 0.5 on average": (
            logged("beta", famo2o[HALF]) > 0.5
        ),
        f"{HALF}: over the range of inverse temperatures the policy's action moves by less than 0.25": (
            logged("family_width", famo2o[HALF]) < 0.25
        ),
        f"{HALF}: with a range up to 10 FamO2O ends offline below all of 0, 1, 3 and 10": (
            start(wide) < lowest(*(start(fixed_wide, f"beta={beta}") for beta in ("0", "1", "3", "10")))
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
    "others, and where the best inverse temperature lies inside the family's range: so the first problem has a "
    "controller's actions above the horizontal and uniform ones below it, and a family from cloning (0) to 1, beside "
    "IQL at four inverse temperatures of that range. One of these, the same in every state, ends offline far above "
    "cloning and above 1. FamO2O ends offline about where cloning does, and online comes up to below the best of "
    "them. Its balance chooses larger inverse temperatures than the best one, and over the whole range of them its "
    "policy's action hardly moves, so that there is little to choose from; why the family stays so narrow is open. "
    "With a range up to 10, where the clones are a small part of what is drawn, it ends offline below all of IQL's. On "
    "the other data, all of a kind, with the default range, FamO2O is within the spread of IQL at three "
    "inverse temperatures, offline and online, and on Pendulum without an expert all of them are at the top "
    "after the first tenth or two of the online steps.",
)
