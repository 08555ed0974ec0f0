from results.checks import Claim, above, end, logged, noise, online_mean
from results.grid import Entry


def world(variant, more):
    """32,768 steps of play and 2,048 of cloning on 32 levels; evaluated on 32 others."""
    length = "--seeds 8 --env-steps 32768 --cloning-updates 2048 --log-every 8192 --eval-every 8192"
    where = "--eval-env PointMazesUnseen-v0 --eval-episodes 32"
    sizes = "--batch-size 256 --learning-rate 1e-3 --cloning-batch-size 128 --cloning-per-iteration 20"
    return Entry("il_procgen", "point-mazes-demos", f"{length} {where} {sizes} {more}", variant, "claim")


every = world("kinds", "--imitation 0 1 2 3 4 5")
ten, two = (world(f"{n}-demos", f"--imitation 1 5 --episodes {n}") for n in (10, 2))
PPO, PRE, CONC, BOTH, RAPID, BC = (f"imitation={kind}" for kind in range(6))


def early(a, b):
    """Over all evaluations a is better than b, beyond noise: (run, setting)."""
    a, b = online_mean(*a), online_mean(*b)
    return above(a, b)


CLAIM = Claim(
    title="In generated levels PPO learns faster from demonstrations cloned before it begins, beside it, or both",
    paper="Andres et al. (arXiv 2304.09825) claim that cloning a few demonstrations, before PPO or beside it, makes it "
    "sample-efficient where rewards are sparse and levels differ, already from two trajectories of pre-training.",
    runs=[every, ten, two],
    checks={
        "In unseen levels, over all evaluations: cloned before (PRE), it is above PPO alone": early(
            (every, PRE), (every, PPO)
        ),
        "Cloned beside it (CONC), it is above PPO alone": early((every, CONC), (every, PPO)),
        "Cloned before and beside, it is above PPO alone": early((every, BOTH), (every, PPO)),
        "CONC is above RAPID, which has no demonstrations": early((every, CONC), (every, RAPID)),
        "PRE with ten demonstrations is above PPO alone": early((ten, PRE), (every, PPO)),
        "PRE with two demonstrations is above PPO alone": early((two, PRE), (every, PPO)),
        "With two, too, it ends above cloning alone, beyond noise": (above(end(two, PRE), end(two, BC))),
    },
    observed={
        "PPO alone ends below 10": end(every, PPO) < 10.0,
        "So does RAPID": end(every, RAPID) < 10.0,
        "CONC ends above 25": end(every, CONC) > 25.0,
        "PRE ends above CONC, beyond noise": above(end(every, PRE), end(every, CONC)),
        "Over all evaluations, both together are within noise of PRE": abs(
            online_mean(every, BOTH) - online_mean(every, PRE)
        )
        < noise(online_mean(every, BOTH), online_mean(every, PRE)),
        "PRE ends above cloning alone, beyond noise": above(end(every, PRE), end(every, BC)),
        "With ten demonstrations, too": above(end(ten, PRE), end(ten, BC)),
        "With two it ends within noise of it": abs(end(two, PRE) - end(two, BC)) < noise(end(two, PRE), end(two, BC)),
        "In the last fifth of the run, less than a fifth of what CONC remembers are demonstrations": (
            logged("demos_left", every, CONC) < 0.2
        ),
    },
    finding="PPO alone ends low in this budget, and so does RAPID. After cloning, PPO is above that over all "
    "evaluations, and goes past what was cloned: with all demonstrations and with ten it ends above cloning alone. "
    "With two it stays where that is: what is above PPO there is the cloning. Beside PPO, where far fewer steps of "
    "cloning are made, the same demonstrations help, but it ends lower than with cloning before it; before and beside "
    "is no better than before, within noise. Most of what is remembered in the end is the agent's own.",
)
