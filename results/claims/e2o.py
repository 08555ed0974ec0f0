from results.checks import Claim, above, course, end, fall, online_mean, start
from results.grid import interaction, worlds

DEMOS, FEW = "point-umaze-demos", "pendulum-few"
PENDULUM, REPLAY, MAZE = "pendulum-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
ARGUMENTS = "--cql-alpha 5 --n-actions 4 --learning-starts 500"
SMALL = "--n-actions 4 --learning-starts 200 --actor-lr 3e-4 --alpha-lr 3e-4 --critic-lr 1e-3"
OPTIONS = {DEMOS: "--discount 0.97 --tau 0.01 --cql-alpha 5", FEW: "--discount 0.98 --tau 0.02"}
PLAIN = "--online-q-aggregation min --reweight none --exploration policy"


def run(dataset, more, variant):
    return interaction("e2o", dataset, "5000+3000", f"{ARGUMENTS} {more}", variant)


def small(dataset, more, variant):
    return worlds("e2o", dataset, "6000+3000", f"{SMALL} {OPTIONS[dataset]} {more}".replace("  ", " "), variant, 16)


two = {d: run(d, f"{PLAIN} --n-critics 2", "two") for d in (PENDULUM, REPLAY, MAZE)}
ten = {d: run(d, f"{PLAIN} --n-critics 10", "ten") for d in two}
full = run(PENDULUM, "--n-critics 10 --ucb 1 10", "full")
pair_min = run(PENDULUM, "--n-critics 10 --exploration policy", "pair-min")
AUTHORS, NARROW = (online_mean(full, f"ucb={ucb}") for ucb in (10, 1))

two[DEMOS] = small(DEMOS, f"{PLAIN} --n-critics 2", "two")
ten[DEMOS] = small(DEMOS, f"{PLAIN} --n-critics 10", "ten")
two[FEW] = small(FEW, f"{PLAIN} --n-critics 2 --cql-alpha 2.5", "two-authors")
ten[FEW] = small(FEW, f"{PLAIN} --n-critics 10 --cql-alpha 0.5", "ten-authors")
few_full = small(FEW, "--cql-alpha 0.5", "full-authors")
heavy = {n: small(FEW, f"{PLAIN} --n-critics {n} --cql-alpha 5", name) for name, n in (("two", 2), ("ten", 10))}
without = small(FEW, f"{PLAIN} --n-critics 10 --cql-alpha 0", "ten-no-penalty")

CLAIM = Claim(
    title="E2O's ensemble carries pessimistic values over to online training",
    paper="E2O (arXiv 2306.06871) claims that ten critics do not lose the offline level where two do, and that the "
    "minimum over pairs and exploration by the ensemble's spread then learn faster.",
    runs=[*(run for d in two for run in (two[d], ten[d])), few_full, *heavy.values(), without, full, pair_min],
    checks={
        **{
            f"{d}: two critics fall further below their offline level than ten, beyond noise": (
                above(fall(two[d]), fall(ten[d]))
            )
            for d in OPTIONS
        },
        f"{FEW}: ten critics have a higher mean over the online evaluations than two, beyond noise": (
            above(online_mean(ten[FEW]), online_mean(two[FEW]))
        ),
        f"{FEW}: with the minimum over pairs, weights and exploration by the spread it is higher still, beyond noise": (
            above(online_mean(few_full), online_mean(ten[FEW]))
        ),
    },
    observed={
        f"{DEMOS}: ten critics never fall": fall(ten[DEMOS]) < 1.0,
        f"{FEW}: ten critics end offline below two": start(ten[FEW]) < start(two[FEW]),
        f"{FEW}: so they do where each critic's penalty weighs ten times as much, and as much as with two": (
            start(heavy[10]) < start(heavy[2])
        ),
        f"{FEW}: ten critics without any penalty end offline below two with it": start(without) < start(two[FEW]),
        f"{FEW}: ten critics with ten times the penalty end offline lower still": start(heavy[10]) < start(ten[FEW]),
        f"{FEW}: ten critics end below two": end(ten[FEW]) < end(two[FEW]),
        f"{FEW}: the full method falls less than half as far as two critics": fall(few_full) < 0.5 * fall(two[FEW]),
        f"{FEW}: the full method has a higher mean over the online evaluations than two critics": (
            online_mean(few_full) > online_mean(two[FEW])
        ),
        f"{FEW}: the full method ends above two critics": end(few_full) > end(two[FEW]),
        f"{FEW}: the full method has a higher mean over the online evaluations than the plain ten": (
            online_mean(few_full) > online_mean(ten[FEW])
        ),
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
        **{f"{d}: ten critics end offline below 12": start(ten[d]) < 12 for d in (REPLAY, MAZE)},
    },
    finding="A level can be lost only where there is one, and where the data are narrow: demonstrations in a maze, "
    "and a tenth of Pendulum's data. In the maze ten critics never lose the level that they have from the "
    "demonstrations, where two lose a quarter of it, beyond noise: what the paper claims. On the tenth of "
    "Pendulum's data, with the authors' weights of the penalty (of each critic a tenth of five with ten, a half with "
    "two), ten critics end the offline phase far below two, fall less from there, within noise, and end lower. The "
    "weight is a part of that: ten times as much of it leaves ten critics lower still; but without any penalty they "
    "are below two, too, so that the rest lies in the ensemble, and by what is open. The minimum over pairs, weights "
    "and exploration by the spread end above both, beyond the noise of the plain ten. On all of Pendulum's data, where "
    "each critic has a weight of five, ten "
    "critics are slightly ahead of two offline, and online they are at the top a little sooner and steadier; "
    "but neither loses its level for longer than one evaluation. The full method learns more slowly there, "
    "and the cause is its exploration by upper confidence bounds: with the policy's own, minimum over pairs "
    "and weights are as fast as the plain ensemble; one standard deviation is worse than the authors' ten. On"
    " hopper-medium-replay and PointMaze 5,000 updates leave ten critics as low as two, with nothing to lose.",
)
