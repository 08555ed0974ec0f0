from results.checks import Claim, above, below, end, logged, noise, online_mean
from results.grid import Entry

PENDULUM = "phys2d/Pendulum-v0"
REAL, MIXED = "synthetic_share=0", "synthetic_share=0.5"


def shares(variant, steps, every, width, updates):
    """`steps` in the environment, a new model of `width` by so many `updates` after `every` of them."""
    length = f"--seeds 8 --env-steps {steps} " + " ".join(
        f"--{name} {every}" for name in ("learning-starts", "retrain-every", "eval-every", "log-every")
    )
    policy = "--eval-episodes 10 --utd 5 --batch-size 128 --hidden-dims 64 64 --learning-rate 1e-3"
    model = (
        f"--denoiser-batch-size 128 --denoiser-width {width} --denoiser-blocks 2 --time-dim 32 --denoiser-lr 1e-3 "
        f"--diffusion-updates {updates} --sampling-steps 16 --synthetic-rows 2000 --sampling-batch 2000"
    )
    arguments = f"{length} {policy} {model} --buffer-size {steps} --synthetic-share 0 0.5"
    return Entry("synther_online", PENDULUM, arguments, variant, "claim")


short, long = shares("shares", 1200, 200, 64, 500), shares("fitted", 1600, 400, 128, 4000)


def beyond(quantity, run):
    mixed, real = quantity(run, MIXED), quantity(run, REAL)
    return above(mixed, real)


CLAIM = Claim(
    title="A replay buffer filled up with samples of it makes more of every step in the environment",
    paper="SynthER (arXiv 2303.06614) claims that online SAC with many updates per environment step learns from fewer "
    "steps when half of each batch are samples of a diffusion model of its replay buffer.",
    runs=[short, long],
    checks={
        f"Pendulum, models of {fit} updates: half samples {what} replay alone, beyond noise": beyond(quantity, run)
        for fit, run in (("500", short), ("4,000", long))
        for what, quantity in (("end above", end), ("are over all evaluations above", online_mean))
    },
    observed={
        "Samples of models of 500 updates: their next states are more than 0.5 from the environment's": (
            logged("sample_error", short, MIXED) > 0.5
        ),
        "Samples of models of 4,000 updates: less than 0.3": logged("sample_error", long, MIXED) < 0.3,
        "Models of 500 updates: half samples end below replay alone, beyond noise": (
            below(end(short, MIXED), end(short, REAL))
        ),
        "Models of 4,000 updates: they end no lower, but for noise": (
            end(long, MIXED) > end(long, REAL) - noise(end(long, MIXED), end(long, REAL))
        ),
    },
    finding="Samples of models that were hardly fitted are far from what the environment does, and cost most of what "
    "replay alone learns. Of models with eight times the updates and twice the width they are near, and cost "
    "nothing; but they add nothing either, on a problem that replay alone learns in as few steps.",
)
