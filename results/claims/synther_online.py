from results.checks import Claim, end, logged, noise, online_mean
from results.grid import Entry

PENDULUM = "phys2d/Pendulum-v0"
SIZES = (
    "--seeds 8 --env-steps 1200 --learning-starts 200 --retrain-every 200 --eval-every 200 --log-every 200 "
    "--eval-episodes 10 --utd 5 --batch-size 128 --hidden-dims 64 64 --learning-rate 1e-3 --denoiser-batch-size 128 "
    "--denoiser-width 64 --denoiser-blocks 2 --time-dim 32 --denoiser-lr 1e-3 --diffusion-updates 500 "
    "--sampling-steps 16 --synthetic-rows 2000 --sampling-batch 2000 --buffer-size 1200 --synthetic-share 0 0.5"
)
run = Entry("synther_online", PENDULUM, SIZES, "shares", "claim")
REAL, MIXED = "synthetic_share=0", "synthetic_share=0.5"


def beyond(quantity):
    mixed, real = quantity(run, MIXED), quantity(run, REAL)
    return mixed > real + noise(mixed, real)


CLAIM = Claim(
    title="A replay buffer filled up with samples of it makes more of every step in the environment",
    paper="SynthER (arXiv 2303.06614) claims that online SAC with many updates per environment step learns from fewer "
    "steps when half of each batch are samples of a diffusion model of its replay buffer.",
    runs=[run],
    checks={
        "Pendulum, 5 updates per step: half samples end above replay alone, beyond noise": beyond(end),
        "Pendulum, 5 updates per step: half samples are above it over all evaluations, beyond noise": beyond(
            online_mean
        ),
    },
    observed={
        "Samples' next states are on average less than 0.5 from the environment's": (
            logged("sample_error", run, MIXED) < 0.5
        ),
    },
)
