from results.checks import Claim, course, fall, noise, online_mean, start
from results.grid import interaction

PENDULUM, REPLAY, MAZE = "pendulum-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
ARGUMENTS = "--n-actions 4 --learning-starts 500"
PLAIN = f"{ARGUMENTS} --online-q-aggregation min --reweight none --exploration policy"


def run(dataset, more, variant):
    return interaction("e2o", dataset, "5000+3000", more, variant)


two = {d: run(d, f"{PLAIN} --n-critics 2", "two") for d in (PENDULUM, REPLAY, MAZE)}
ten = {d: run(d, f"{PLAIN} --n-critics 10", "ten") for d in two}
full = run(PENDULUM, f"{ARGUMENTS} --n-critics 10 --ucb 1 10", "full")
pair_min = run(PENDULUM, f"{ARGUMENTS} --n-critics 10 --exploration policy", "pair-min")
AUTHORS, NARROW = (online_mean(full, f"ucb={ucb}") for ucb in (10, 1))


def faster(a, b):
    return a > b + noise(a, b)


CLAIM = Claim(
    title="E2O's ensemble carries pessimistic values over to online training",
    paper="E2O (arXiv 2306.06871) claims that ten critics do not lose the offline level where two do, and that the "
    "minimum over pairs and exploration by the ensemble's spread then learn faster.",
    runs=[*(run for d in two for run in (two[d], ten[d])), full, pair_min],
    checks={
        **{
            f"{d}: two critics fall further below their offline level than ten, beyond noise": (
                fall(two[d]) > fall(ten[d]) + noise(fall(two[d]), fall(ten[d]))
            )
            for d in two
        },
        f"{PENDULUM}: the minimum over pairs has a higher mean over the online evaluations, beyond noise": (
            faster(online_mean(pair_min), online_mean(ten[PENDULUM]))
        ),
        f"{PENDULUM}: with exploration by the spread, too, it is higher than with the policy's own, beyond noise": (
            faster(AUTHORS, online_mean(pair_min))
        ),
    },
    observed={
        f"{PENDULUM}: ten critics end offline above two": start(ten[PENDULUM]) > start(two[PENDULUM]),
        f"{PENDULUM}: ten critics have the higher mean over the online evaluations": (
            online_mean(ten[PENDULUM]) > online_mean(two[PENDULUM])
        ),
        f"{PENDULUM}: the minimum over pairs is within 5 of the plain ensemble over the online evaluations": (
            abs(course(pair_min)[1:].mean() - course(ten[PENDULUM])[1:].mean()) < 5
        ),
        f"{PENDULUM}: exploration by the spread is more than 10 below the policy's own": (
            online_mean(pair_min) - 10 > AUTHORS
        ),
        f"{PENDULUM}: one standard deviation is worse than ten": NARROW < AUTHORS,
    },
    finding="On Pendulum, after the same few offline updates, ten critics are slightly ahead of two, and "
    "online they are at the top a little sooner and steadier; but neither loses its level for longer than one "
    "evaluation, on data that show the whole task. The full method learns more slowly there, and the cause is "
    "its exploration by upper confidence bounds: with the policy's own, minimum over pairs and weights are as "
    "fast as the plain ensemble; one standard deviation is worse than the authors' ten. On hopper-medium-replay "
    "and PointMaze 5,000 updates leave ten critics as low as two, with little to lose.",
)
