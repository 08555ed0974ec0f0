from results.checks import Claim, course, end, fall, noise, start
from results.grid import interaction

PENDULUM, REPLAY, MAZE = "pendulum-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {PENDULUM: "10000+6000", REPLAY: "5000+3000", MAZE: "5000+3000"}
SAMPLES = {PENDULUM: 5, REPLAY: 2, MAZE: 2}
ARGUMENTS = "--n-critics 5 {} --learning-starts 500"

ro2o = {d: interaction("ro2o", d, steps, ARGUMENTS.format(f"--n-samples {SAMPLES[d]}")) for d, steps in STEPS.items()}
plain = {d: interaction("ro2o", d, steps, ARGUMENTS.format("--terms"), "no-terms") for d, steps in STEPS.items()}

CLAIM = Claim(
    title="RO2O is stable by smoothness and penalties out of the distribution",
    paper="RO2O (arXiv 2309.16973) claims that smooth policies and Q functions and the penalty on uncertain actions "
    "keep the level of offline training, which the same ensemble without them loses.",
    runs=[run for d in STEPS for run in (ro2o[d], plain[d])],
    checks={
        **{
            f"{d}: with the terms the score never falls below nine tenths of its offline level": (
                course(ro2o[d])[1:].min() > 0.9 * course(ro2o[d])[0]
            )
            for d in STEPS
        },
        **{
            f"{d}: without the terms it falls further below its offline level, beyond noise": (
                fall(plain[d]) > fall(ro2o[d]) + noise(fall(plain[d]), fall(ro2o[d]))
            )
            for d in STEPS
        },
        **{
            f"{d}: with the terms it ends above the ensemble without them, beyond noise": (
                end(ro2o[d]) > end(plain[d]) + noise(end(ro2o[d]), end(plain[d]))
            )
            for d in STEPS
        },
    },
    observed={
        f"{MAZE}: with the terms it never loses half of its offline level": course(ro2o[MAZE]).min()
        > start(ro2o[MAZE]) / 2,
        f"{MAZE}: without them it falls below a fifth of it": course(plain[MAZE]).min() < start(plain[MAZE]) / 5,
        f"{MAZE}: with the terms it ends below 0.8 of its offline level": end(ro2o[MAZE]) < 0.8 * start(ro2o[MAZE]),
        f"{MAZE}: without them it ends above 0.9 of it": end(plain[MAZE]) > 0.9 * start(plain[MAZE]),
    },
    finding="On PointMaze the ensemble without the terms loses nearly all of its level at the onset and "
    "ends near it, with a wide spread; with them it loses half at the worst and ends a quarter below it. On "
    "Pendulum both reach the top offline and both lose less than a tenth of it about a third into the online "
    "steps, and return; with the terms that much is lost once more in the last quarter, without them not. On "
    "hopper-medium-replay 5,000 updates teach neither anything.",
)
