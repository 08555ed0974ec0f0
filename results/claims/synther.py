import numpy as np

from results.checks import Claim, above, end, logged, noise
from results.grid import Entry
from results.plans import plans_of_actions
from shared.data import load_dataset

MIXED = "pendulum-mixed"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --eval-episodes 20 --batch-size 128 --hidden-dims 64 64 --updates 10000 "
    "--eval-every 5000 --diffusion-updates 5000 --denoiser-batch-size 128 --denoiser-width 128 --denoiser-blocks 2 "
    "--time-dim 32 --sampling-steps 32 --synthetic-rows 10000 --sampling-batch 10000 --synthetic-share 0 1 --alpha 40"
)
DATA, SAMPLES = "synthetic_share=0", "synthetic_share=1"

whole = Entry("synther", MIXED, SIZES, "whole", "claim")
tenth = Entry("synther", MIXED, f"{SIZES} --data-share 0.1", "tenth", "claim")

MODES, RINGS = "toy-modes8", "toy-rings"
TOY = (
    "--seeds 8 --diffusion-updates 3000 --denoiser-batch-size 256 --denoiser-width 128 --denoiser-blocks 2 "
    "--time-dim 32 --denoiser-lr 1e-3 --sampling-steps 16 --synthetic-rows 2000 --sampling-batch 2000 --updates 500 "
    "--eval-every 500 --log-every 500 --batch-size 64 --hidden-dims 32 32"
)
modes, rings = (Entry("synther", where, TOY, "density", "claim") for where in (MODES, RINGS))


def plans(module, policies, run):
    """150 steps of the samples, and 150 of the data that they were fitted to, in a world whose states are positions.

    In a world of single actions 500 of these.
    """
    arrays, data = np.load(run / "samples" / "lane-0.npz", allow_pickle=False), load_dataset(policies.task.id)
    if module.density_of(policies.task):
        found = {"samples": arrays["actions"][:500], "data": data.action[:500]}
        return {f"{policies.task.id}: {title}": plans_of_actions(x) for title, x in found.items()}
    steps = {"samples": (arrays["observations"], arrays["next_observations"]), "data": (data.obs, data.next_obs)}
    rows = {title: np.random.default_rng(0).choice(len(obs), 150, replace=False) for title, (obs, _) in steps.items()}
    return {
        f"{run.name}: {title}": np.stack([x[rows[title]] for x in steps[title]], axis=1)[..., :2] for title in steps
    }


CLAIM = Claim(
    title="Samples of a diffusion model stand for the data, and for more of it than there is",
    paper="SynthER (arXiv 2303.06614) claims that a policy learns from samples alone as well as from the data that "
    "they were fitted to, and better than from small data that are sampled up.",
    runs=[whole, tenth, modes, rings],
    checks={
        f"{MIXED}: from samples alone TD3+BC ends at the level of the data or above, within noise": (
            end(whole, SAMPLES) > end(whole, DATA) - noise(end(whole, SAMPLES), end(whole, DATA))
        ),
        f"{MIXED}, a tenth of its rows: samples end above the data alone, beyond noise": (
            above(end(tenth, SAMPLES), end(tenth, DATA))
        ),
        f"{MIXED}: samples' next states are nearer to the environment's with ten times the data": (
            logged("sample_error", whole, SAMPLES) < logged("sample_error", tenth, SAMPLES)
        ),
        f"{MODES}: samples are of all eight modes": logged("modes_covered", modes) > 7.9,
        **{
            f"{where}: the energy distance of samples to the density is below 0.01": (
                logged("energy_distance", run) < 0.01
            )
            for where, run in ((MODES, modes), (RINGS, rings))
        },
    },
    observed={
        f"{MIXED}: with a tenth of the data samples' next states are no further off than with all, within 0.01": (
            abs(logged("sample_error", whole, SAMPLES) - logged("sample_error", tenth, SAMPLES)) < 0.01
        ),
        f"{MIXED}: from all data TD3+BC swings the pendulum up": end(whole, DATA) > -200,
        f"{MIXED}: from samples of them, too": end(whole, SAMPLES) > -200,
        f"{MIXED}: from a tenth of the data it does so as well": end(tenth, DATA) > -200,
    },
    finding="Where the density is known samples cover all of its modes and lie close to it. On Pendulum, at a weight "
    "of Q at which TD3+BC learns from these mixed data, it swings the pendulum up from samples alone as it "
    "does from the data that they were fitted to. A tenth of the data is enough for that, too, so that samples "
    "of it have nothing to add. Nor are samples nearer to the environment when the model is fitted to ten "
    "times the data: their error is the same. The denoiser and its few updates likely set it; larger ones were "
    "not tried.",
)
