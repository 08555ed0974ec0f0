from results.checks import Claim, above, course, dataset_mean, dip, end, logged, lowest, online_mean, start
from results.grid import interaction, worlds

MIXED, REPLAY, MAZE = "point-umaze-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
ARGUMENTS = "--actor-hidden-dims 128 128 --n-actions 4"
SPARSE = (
    "--actor-hidden-dims 64 64 --n-actions 4 --reward-scale 10 --reward-shift -5 --failure-reward 0 --discount 0.97 "
    "--tau 0.01 --actor-lr 3e-4 --critic-lr 1e-3"
)

cal_ql = {d: interaction("cal_ql", d, "10000+4800", ARGUMENTS) for d in (REPLAY, MAZE)}
cql = {d: interaction("cal_ql", d, "10000+4800", f"{ARGUMENTS} --no-calibrate", "cql") for d in (REPLAY, MAZE)}
cal_ql[MIXED] = worlds("cal_ql", MIXED, "10000+3000", SPARSE, seeds=16, compiled=False)
cql[MIXED] = worlds("cal_ql", MIXED, "10000+3000", f"{SPARSE} --no-calibrate", "cql", seeds=16, compiled=False)

CLAIM = Claim(
    title="Cal-QL does not dip where CQL dips",
    paper="Cal-QL (arXiv 2303.05479) claims that CQL's values, kept above the returns of the behaviour policy, do not "
    "unlearn at the onset of fine-tuning.",
    runs=[run for d in cal_ql for run in (cal_ql[d], cql[d])],
    checks={
        **{
            f"{d}: CQL dips at the onset by more than Cal-QL, beyond noise": above(dip(cql[d]), dip(cal_ql[d]))
            for d in (MIXED, MAZE)
        },
        f"{MAZE}: Cal-QL never falls below nine tenths of its offline level": (
            course(cal_ql[MAZE])[1:].min() > 0.9 * course(cal_ql[MAZE])[0]
        ),
        **{
            f"{d}: Cal-QL has a higher mean over the online evaluations than CQL, beyond noise": (
                above(online_mean(cal_ql[d]), online_mean(cql[d]))
            )
            for d in (MIXED, REPLAY, MAZE)
        },
        f"{MAZE}: Cal-QL ends above CQL, beyond noise": above(end(cal_ql[MAZE]), end(cql[MAZE])),
    },
    observed={
        f"{REPLAY}: CQL dips at the onset by more than Cal-QL, beyond noise": above(
            dip(cql[REPLAY]), dip(cal_ql[REPLAY])
        ),
        **{
            f"{d}: Cal-QL never falls below nine tenths of its offline level": (
                course(cal_ql[d])[1:].min() > 0.9 * course(cal_ql[d])[0]
            )
            for d in (MIXED, REPLAY)
        },
        f"{MIXED}: nor does CQL": course(cql[MIXED])[1:].min() > 0.9 * course(cql[MIXED])[0],
        f"{MIXED}: offline both end above 98": lowest(start(cal_ql[MIXED]), start(cql[MIXED])) > 98,
        f"{REPLAY}: Cal-QL's offline level is below the data's mean": start(cal_ql[REPLAY])
        < dataset_mean(cal_ql[REPLAY]),
        f"{REPLAY}: it is below a third of CQL's": start(cal_ql[REPLAY]) < start(cql[REPLAY]) / 3,
        **{
            f"{d}, {name}: in the last fifth of the run the entropy is above -2, of a target of {target}": (
                logged("entropy", run) > -2.0
            )
            for d, target in ((REPLAY, -3), (MAZE, -2))
            for name, run in (("Cal-QL", cal_ql[d]), ("CQL", cql[d]))
        },
        f"{REPLAY}: within the first three evaluations CQL falls to less than half of its offline level": (
            course(cql[REPLAY])[1:4].min() < course(cql[REPLAY])[0] / 2
        ),
        f"{REPLAY}: Cal-QL never falls more than 1 below its offline level": (
            course(cal_ql[REPLAY])[1:].min() > start(cal_ql[REPLAY]) - 1
        ),
        f"{MAZE}: offline Cal-QL ends more than 10 above CQL": start(cal_ql[MAZE]) > start(cql[MAZE]) + 10,
        f"{MAZE}: Cal-QL ends at more than twice CQL's score": end(cal_ql[MAZE]) > 2 * end(cql[MAZE]),
    },
    finding="On hopper-medium-replay CQL loses more than half of its offline level at the onset and needs two thirds "
    "of the run to regain it; Cal-QL does not dip, but begins far lower after these 10,000 updates, below the "
    "mean of the data, where there is nothing to lose, and ends level. So that it dips less shows nothing "
    "there. On PointMaze Cal-QL ends offline well above CQL and rises to twice its score, after lower first "
    "evaluations; CQL stays near where it was and has little to unlearn. On the point maze both reach nearly "
    "every goal before they interact, and lose next to nothing when they do: no difference could show. On "
    "hopper-medium-replay and PointMaze the policies' entropy never comes down to its target, offline or "
    "online: all of it happens while the temperature still falls, and what comes later is open.",
)
