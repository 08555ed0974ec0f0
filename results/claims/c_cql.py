from results.checks import Claim, above, dataset_mean, end, logged, under
from results.grid import Entry, small

NARROW = "pendulum-narrow"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --preset none --batch-size 64 --hidden-dims 64 64 --n-actions 2 --actor-lr "
    "1e-3 --critic-lr 1e-3 --inverse-hidden-dims 64 64 --inverse-updates 2000 --inverse-lr 1e-3 --state-noise 0.2 "
    "--updates 2500 --eval-every 1250 --eval-episodes 20"
)
NOISES = ("obs_noise=0.1", "obs_noise=0.3")

runs = Entry("c_cql", NARROW, f"{SIZES} --context-weight 0 1 --actor-weight 0 1", "weights", "claim", NOISES)
noisy = Entry("c_cql", NARROW, f"{SIZES} --noisy-inverse", "noisy", "claim", NOISES)
cloning = small("bc", "--top-fraction 0.1", "top10", NARROW)
cql, half, whole = (f"context_weight={c} actor_weight={a}" for c, a in ((0, 0), (1, 0), (1, 1)))

POINTS = {"": (end(runs, whole), end(runs, cql), end(noisy))} | {
    f", observations with noise of {x.split('=')[1]}": (under(x, runs, whole), under(x, runs, cql), under(x, noisy))
    for x in NOISES
}

CLAIM = Claim(
    title="A penalty at perturbed states, with the action that returns to the data, makes CQL robust",
    paper="C-CQL (arXiv 2301.01298) claims better scores than CQL's on most of MuJoCo's offline sets, and in a noisy "
    "form of these tasks: the policy learns to return from perturbed states to the states of the data.",
    runs=[runs, noisy, cloning],
    checks={
        **{
            f"{NARROW}{where}: C-CQL is above {name}, beyond noise": above(ours, theirs)
            for where, (ours, plain, same) in POINTS.items()
            for name, theirs in (("CQL", plain), ("the same with an inverse model that returns nowhere", same))
        },
        f"{NARROW}: the policy's own loss at perturbed states lifts the score, beyond noise": (
            above(end(runs, whole), end(runs, half))
        ),
    },
    observed={
        f"{NARROW}: CQL ends more than 1,000 below the data's mean": end(runs, cql) < dataset_mean(runs) - 1_000,
        f"{NARROW}: cloning of the best tenth, in another run of 10,000 updates, ends more than 500 below it, too": (
            end(cloning) < dataset_mean(cloning) - 500.0
        ),
        f"{NARROW}: C-CQL ends within 50 of it": end(runs, whole) > dataset_mean(runs) - 50.0,
        f"{NARROW}: the gap of values at perturbed states is below -10 without the policy's own loss there": (
            logged("context_gap", runs, half) < -10.0
        ),
    },
    finding="The data hold one action for each state, and the updates are few: CQL never swings the pendulum up, and "
    "does not learn to repeat the data. So C-CQL is above a CQL that fails at what cloning is for, and no cloning "
    "arm of these sizes stands beside it; of another run's, with four times the updates, cloning of the best tenth "
    "is far below the data, too. That C-CQL helps to stay at the data is seen, not that a CQL that works gains by "
    "it. It comes near the data's mean without noise, loses with noise, and stays far above CQL at both levels. With "
    "an inverse model fitted to noisy states, which gives the data's own action there, it ends between the two, far "
    "nearer to CQL: the action that leads back decides, which is a quarter of the range away from the data's on "
    "average. The policy's own loss at perturbed states is needed, too: without it Q of the returning action rises "
    "without a policy that follows it, and the gap there falls far below zero. CQL has little left to lose under "
    "noise: a slower fall from an equal score is not shown. The paper's own tasks were not run, and the form of the "
    "method is a reconstruction from its abstract.",
)
