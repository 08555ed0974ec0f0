from results.checks import Claim, dataset_mean, end, noise, pace
from results.grid import offline, small

REPLAY, MAZE, MIXED = "hopper-medium-replay-v0", "pointmaze-umaze", "pendulum-mixed"
TD3 = "--improvement td3 --max-grad-norm 4"

SAME = "--eta 1 --n-candidates 10"
few, many = (small("diffusion_ql", f"{SAME} --diffusion-steps {t}", f"t{t}", updates=4000) for t in (5, 100))
ours = small("edp", f"{SAME} --diffusion-steps 100", "t100", updates=4000)
diffusion_ql = {d: offline("diffusion_ql", d) for d in (REPLAY, MAZE)}
edp = {
    (REPLAY, "td3"): offline("edp", REPLAY, TD3, "td3"),
    (MAZE, "td3"): offline("edp", MAZE, TD3, "td3"),
    (REPLAY, "crr"): offline("edp", REPLAY, "--improvement crr", "crr"),
    (REPLAY, "iql"): offline("edp", REPLAY, "--improvement iql", "iql"),
}

CLAIM = Claim(
    title="EDP reaches Diffusion-QL's score in a fraction of its training time",
    paper="EDP (arXiv 2305.20081, section 5 and figure 2) claims the scores of Diffusion-QL (arXiv 2208.06193) at a "
    "fraction of its training time where the diffusion has many steps: it neither samples nor differentiates through "
    "the whole chain.",
    runs=[few, many, ours, *diffusion_ql.values(), *edp.values()],
    checks={
        f"{MIXED}: of 100 diffusion steps EDP makes more than 4 times as many updates per second": (
            pace(ours) > 4 * pace(many)
        ),
        f"{MIXED}: of 100 diffusion steps EDP ends at Diffusion-QL's level or above, within noise": (
            end(ours) > end(many) - noise(end(ours), end(many))
        ),
        **{
            f"{d}: EDP with {base} ends at Diffusion-QL's level or above, within noise": (
                end(run) > end(diffusion_ql[d]) - noise(end(run), end(diffusion_ql[d]))
            )
            for (d, base), run in edp.items()
        },
    },
    observed={
        **{
            f"{d}: EDP with {base} ends below Diffusion-QL": end(run) < end(diffusion_ql[d])
            for (d, base), run in edp.items()
        },
        **{
            f"{REPLAY}: {name} ends within 5 of the mean of the dataset's episodes": (
                abs(end(run) - dataset_mean(run)) < 5.0
            )
            for name, run in {
                "Diffusion-QL": diffusion_ql[REPLAY],
                **{f"EDP with {base}": run for (d, base), run in edp.items() if d == REPLAY},
            }.items()
        },
    },
    finding="At this budget EDP is behind Diffusion-QL: with td3 on both datasets, with crr and iql on hopper-medium- "
    "replay, the only one they were run on; with td3 and iql there by no more than the lanes differ. There "
    "level says little: all end near the mean of the dataset's episodes. The time is compared where the paper "
    "compares it, at equal steps of the diffusion: with Diffusion-QL's default of 5 the chain that EDP avoids "
    "is shorter than EDP's own solver.",
)
