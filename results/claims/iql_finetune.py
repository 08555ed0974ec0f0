from results.checks import Claim, course, dataset_mean, gain, noise, start
from results.grid import interaction, worlds

FEW, HALF, WEAK, MIXED = "pendulum-few", "pendulum-half", "pendulum-weak", "pendulum-mixed"
REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"

RATES = "--normalize-return --critic-lr 1e-3 --value-lr 1e-3 --actor-lr 1e-3 --tau 0.01 --discount 0.98"

lacking = {d: worlds("iql_finetune", d, "10000+10000", RATES) for d in (FEW, HALF)}
lacking[WEAK] = interaction("iql_finetune", WEAK, "10000+4800")
enough = {d: interaction("iql_finetune", d, "20000+9600") for d in (MIXED, REPLAY, MAZE)}

CLAIM = Claim(
    title="IQL improves in fine-tuning without a dip",
    paper="IQL (arXiv 2110.06169) claims that its weighted regression goes on from offline to online training, and "
    "improves there.",
    runs=[*lacking.values(), *enough.values()],
    checks={
        **{
            f"{d}: it ends above its offline level, beyond noise": gain(run) > noise(gain(run))
            for d, run in lacking.items()
        },
        **{
            f"{d}: it never falls below its offline level beyond noise": (
                course(run)[1:].min() > start(run) - noise(start(run))
            )
            for d, run in (lacking | enough).items()
            if d in (FEW, WEAK, MIXED)
        },
    },
    observed={
        f"{HALF}: it never falls below its offline level beyond noise": (
            course(lacking[HALF])[1:].min() > start(lacking[HALF]) - noise(start(lacking[HALF]))
        ),
        f"{HALF}: that level is more than 500 below the data's mean": (
            start(lacking[HALF]) < dataset_mean(lacking[HALF]) - 500
        ),
        f"{WEAK}: it ends more than 15 above its offline level": gain(lacking[WEAK]) > 15,
        f"{WEAK}: it never falls more than 5 below its offline level": (
            course(lacking[WEAK]).min() > start(lacking[WEAK]) - 5
        ),
        **{f"{d}: the gain is within the noise": abs(gain(enough[d])) < noise(gain(enough[d])) for d in (REPLAY, MAZE)},
    },
    finding="What can improve online is what the data lack: a tenth of the transitions, the way up (uniform actions "
    "below the horizontal), or the controller that balances. Where half of the data are uniform actions it "
    "begins far below the mean of the data, so that it rises, and does not dip, from the floor. From data "
    "without an expert it goes on to the top without a dip, and where offline training has reached the top it "
    "stays there. In 9,600 steps on hopper-medium-replay and PointMaze the mean moves up and down around its "
    "offline level, by no more than the spread of the lanes: too few steps for either part of the claim to "
    "show.",
)
