from results.checks import Claim, course, gain, noise, start
from results.grid import interaction

PENDULUM, WEAK, REPLAY, MAZE = "pendulum-mixed", "pendulum-weak", "hopper-medium-replay-v0", "pointmaze-umaze"

runs = {d: interaction("iql_finetune", d, "20000+9600") for d in (PENDULUM, REPLAY, MAZE)}
runs[WEAK] = interaction("iql_finetune", WEAK, "10000+4800")

CLAIM = Claim(
    title="IQL improves in fine-tuning without a dip",
    paper="IQL (arXiv 2110.06169) claims that its weighted regression goes on from offline to online training, and "
    "improves there.",
    runs=list(runs.values()),
    checks={
        **{
            f"{d}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run))
            for d, run in runs.items()
        },
        **{
            f"{d}: it never falls below its offline level beyond noise": (
                course(run)[1:].min() > start(run) - noise(start(run))
            )
            for d, run in runs.items()
        },
    },
    observed={
        f"{WEAK}: it ends more than 15 above its offline level": gain(runs[WEAK]) > 15,
        f"{WEAK}: it never falls more than 5 below its offline level": course(runs[WEAK]).min() > start(runs[WEAK]) - 5,
    },
    finding="On Pendulum, from data without an expert it goes on to the top without a dip, and where offline "
    "training has reached the top it stays there. In 9,600 steps on hopper-medium-replay and PointMaze "
    "the mean moves up and down around its offline level, by no more than the spread of the lanes.",
)
