from results.checks import Claim, above, course, dip, end, online_mean, start
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
            for d in (MIXED, REPLAY)
        },
        **{
            f"{d}: Cal-QL never falls below nine tenths of its offline level": (
                course(cal_ql[d])[1:].min() > 0.9 * course(cal_ql[d])[0]
            )
            for d in (MIXED, REPLAY)
        },
        f"{MIXED}: Cal-QL has a higher mean over the online evaluations than CQL, beyond noise": (
            above(online_mean(cal_ql[MIXED]), online_mean(cql[MIXED]))
        ),
        f"{MAZE}: Cal-QL ends above CQL, beyond noise": above(end(cal_ql[MAZE]), end(cql[MAZE])),
    },
    observed={
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
    "of the run to regain it; Cal-QL does not dip, but begins far lower after these 10,000 updates, and ends "
    "level. On PointMaze Cal-QL ends offline well above CQL and rises to twice its score, after slightly "
    "lower first evaluations; CQL stays near where it was and has little to unlearn. On the point maze both "
    "reach nearly every goal before they interact, and lose next to nothing when they do.",
)
