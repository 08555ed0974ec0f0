from results.checks import Claim, above, course, dip, end, logged, noise, online_mean, start
from results.grid import interaction, worlds

FEW, PENDULUM, MAZE, REPLAY = "pendulum-few", "pendulum-mixed", "pointmaze-umaze", "hopper-medium-replay-v0"
STEPS = {PENDULUM: "4000+3000", MAZE: "8000+3000", REPLAY: "8000+3000"}
ARGUMENTS = "--actor-hidden-dims 128 128 --n-actions 4 --n-critics 3 --eval-episodes 10"
SMALL = "--actor-hidden-dims 64 64 --n-actions 4 --reward-scale 0.1 --critic-lr 1e-3 --actor-lr 3e-4"


def few(algorithm, more, variant):
    """In NumPy's Pendulum, since Cal-QL is not compiled with its environment."""
    return worlds(algorithm, FEW, "8000+3000", f"{SMALL} {more}".strip(), variant, seeds=16, compiled=False)


def arm(more, variant=""):
    runs = {d: interaction("wsrl", d, steps, f"{ARGUMENTS} {more}", variant) for d, steps in STEPS.items()}
    more = more.replace("500", "400")
    return runs | {FEW: few("wsrl", f"--n-critics 3 {more}", variant)}


wsrl = arm("--learning-starts 500")
cold = arm("--learning-starts 0", "no-warm-up")
retention = arm("--learning-starts 500 --online-share 0.5", "retention")
slow = few("wsrl", "--n-critics 3 --learning-starts 400 --utd 1", "one-update")
cal_ql = few("cal_ql", "", "beside-wsrl")

CLAIM = Claim(
    title="WSRL fine-tunes without the offline data, given a warm-up",
    paper="WSRL (arXiv 2412.07762) claims that a short warm-up with the offline policy takes the place of the offline "
    "data: without it fine-tuning without data forgets; with it, it is as good as with the data, and faster than "
    "methods that keep data and pessimism.",
    runs=[*(run for d in wsrl for run in (wsrl[d], cold[d], retention[d])), slow, cal_ql],
    checks={
        f"{FEW}: without a warm-up it dips at the onset by more than with one, beyond noise": (
            above(dip(cold[FEW]), dip(wsrl[FEW]))
        ),
        f"{FEW}: without data it has a higher mean over the online evaluations than Cal-QL with them, beyond noise": (
            above(online_mean(wsrl[FEW]), online_mean(cal_ql))
        ),
        f"{FEW}: so it has with one update per step, as Cal-QL, beyond noise": (
            above(online_mean(slow), online_mean(cal_ql))
        ),
        **{
            f"{d}: with a warm-up the score never falls below three quarters of its offline level": (
                course(wsrl[d])[1:].min() > 0.75 * course(wsrl[d])[0]
            )
            for d in STEPS
        },
        **{
            f"{d}: without a warm-up it falls below three quarters of its offline level": (
                course(cold[d])[1:].min() < 0.75 * course(cold[d])[0]
            )
            for d in (PENDULUM, REPLAY)
        },
        **{
            f"{d}: without the data it does not end below its version that keeps them, but for noise": (
                end(wsrl[d]) > end(retention[d]) - noise(end(wsrl[d]), end(retention[d]))
            )
            for d in (FEW, MAZE, REPLAY)
        },
    },
    observed={
        f"{FEW}: Cal-QL with the data stays below 0, what uniform actions get": course(cal_ql).max() < 0,
        f"{FEW}: WSRL begins above it": start(wsrl[FEW]) > 0,
        **{
            f"{FEW}: {when} the penalty is more than 0.75 of Cal-QL's loss": (
                logged("bellman_loss", cal_ql, file=file) < 0.25 * logged("critic_loss", cal_ql, file=file)
            )
            for when, file in (("offline", "offline.csv"), ("online", "metrics.csv"))
        },
        f"{FEW}: offline WSRL ends more than 1 above the same without a warm-up": start(wsrl[FEW])
        > start(cold[FEW]) + 1,
        f"{FEW}: the version that keeps the data ends where that does": (
            abs(start(retention[FEW]) - start(cold[FEW])) < 0.01
        ),
        **{
            f"{d}: at the end of the run WSRL's entropy is above -2": logged("entropy", wsrl[d]) > -2
            for d in (REPLAY, MAZE)
        },
        f"{PENDULUM}: with a warm-up never below 0.8 of the offline level": (
            course(wsrl[PENDULUM])[1:].min() > 0.8 * course(wsrl[PENDULUM])[0]
        ),
        f"{PENDULUM}: with a warm-up it ends above 100": end(wsrl[PENDULUM]) > 100,
        f"{PENDULUM}: without one it ends above 100": end(cold[PENDULUM]) > 100,
        f"{PENDULUM}: with the data it ends above 102": end(retention[PENDULUM]) > 102,
        f"{REPLAY}: without a warm-up the first evaluation is below the offline level divided by 2.5": (
            course(cold[REPLAY])[1] < course(cold[REPLAY])[0] / 2.5
        ),
        f"{REPLAY}: without a warm-up the offline level is not reached again": (
            course(cold[REPLAY])[1:].max() < start(cold[REPLAY])
        ),
        f"{REPLAY}: with a warm-up never below 0.8 of the offline level": (
            course(wsrl[REPLAY]).min() > 0.8 * course(wsrl[REPLAY])[0]
        ),
        f"{REPLAY}: with a warm-up it ends above the offline level": end(wsrl[REPLAY]) > start(wsrl[REPLAY]),
        **{
            f"{MAZE}, {name}: it ends at more than 2.5 times the offline level": end(run) > 2.5 * start(run)
            for name, run in (("warm-up", wsrl[MAZE]), ("none", cold[MAZE]), ("data kept", retention[MAZE]))
        },
        **{
            f"{MAZE}, {name}: it never falls below the offline level": course(run)[1:] >= course(run)[0]
            for name, run in (("warm-up", wsrl[MAZE]), ("none", cold[MAZE]), ("data kept", retention[MAZE]))
        },
    },
    finding="On hopper-medium-replay the score falls to a third at the onset without a warm-up and has not come back "
    "after 3,000 steps; with one the level is kept. On Pendulum's mixed data it falls by a third without a "
    "warm-up, by a tenth with one, if for longer, and both end at the top without the dataset, as does the "
    "version with it. On PointMaze all rise alike to three times their offline level, which is too low for "
    "anything to be lost. On few data of Pendulum, where there is little offline level to lose with a warm-up "
    "or without, WSRL is far above Cal-QL with the data, with one update per step too, and ends at the top, if "
    "a little below its version with the data. But Cal-QL never comes above uniform actions there, offline or "
    "online: most of its loss is the penalty. Being above it says little about data or warm-up. Two of the "
    "four versions of WSRL there were made with another version of JAX, and begin at a slightly higher offline "
    "level, likely for that, as their offline training is the same: small differences between the two pairs "
    "say nothing. On hopper-medium-replay and PointMaze the entropy is far above its target to the end. "
    "(Without warm-up, updates here begin at the first transition; the authors wait for one batch.)",
)
