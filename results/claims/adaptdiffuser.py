import jax
import jax.numpy as jnp
import numpy as np

from results.checks import Claim, above, end, end_return, gain, logged, noise
from results.grid import Entry

STITCH = "point-medium-stitch"
SIZES = (
    "--seeds 8 --updates 20000 --eval-every 10000 --eval-episodes 10 --batch-size 32 --hidden-dims 64 64 --channels 16 "
    "--channel-factors 1 2 --window-steps 48 --plan-steps 96 --diffusion-steps 16 --ema-decay 0.95"
)
ROUND = "--rounds 1 --round-updates 10000 --generated-plans 2048 --reference-rows 2000"

diffuser = Entry("adaptdiffuser", STITCH, f"--preset diffuser {SIZES}", "diffuser", "claim")
adapted = Entry("adaptdiffuser", STITCH, f"{SIZES} {ROUND} --kept-share 0.25", "adapted", "claim")
unfiltered = Entry("adaptdiffuser", STITCH, f"{SIZES} {ROUND} --kept-share 1", "unfiltered", "claim")

HAZARDS = "point-hazard-goals-explore"
GUIDED = (
    "--preset diffuser --seeds 8 --updates 2000 --eval-every 2000 --log-every 1000 --eval-episodes 10 --batch-size 32 "
    "--hidden-dims 32 32 --channels 16 --channel-factors 1 2 --window-steps 32 --plan-steps 48 --diffusion-steps 10 "
    "--sampling-steps 10 --ema-decay 0.95 --ema-start 500 --learning-rate 1e-3 --discount 0.95 --guide-steps 2 "
    "--guide-scale 0 30"
)
guided = Entry("adaptdiffuser", HAZARDS, GUIDED, "guided", "claim")
FREE, LED = "guide_scale=0", "guide_scale=30"


def plans(module, policies, run):
    """Of three tasks of the world, eight plans each, from the start to the goal."""
    agent, args = jax.tree.map(lambda x: x[0], (policies.agent, policies.args))
    layout, unit = agent.nets.layout, lambda x, at: module.to_unit(x, agent.low[at], agent.high[at])
    panels = {}
    for number, task in enumerate(policies.task.make_env().unwrapped.task_infos[:3], 1):
        ends = (jnp.tile(jnp.float32(task[name]), (8, 1)) for name in ("start", "goal"))
        ends = module.Ends(*(unit(x, at) for x, at in zip(ends, (layout.obs, layout.goal), strict=True)))
        made = jax.jit(module.make_plans)(agent, ends, jax.random.key(number), args)[..., layout.obs]
        low, high = np.asarray(agent.low[layout.obs]), np.asarray(agent.high[layout.obs])
        panels[f"{run.name}: task {number}"] = 0.5 * (np.asarray(made) * (high - low) + low + high)
    return panels


CLAIM = Claim(
    title="A planner that learns from the best of its own plans goes where no episode of the data went",
    paper="AdaptDiffuser (arXiv 2302.01877) claims that Diffuser becomes better in mazes, and on goals that its data "
    "do not show, by being fine-tuned on plans of its own that a discriminator keeps. Diffuser (arXiv 2205.09991) "
    "claims that the gradient of learned returns leads its plans to high ones.",
    runs=[diffuser, adapted, unfiltered, guided],
    checks={
        f"{STITCH}: with a round of its own plans it ends above Diffuser, beyond noise": (
            above(end(adapted), end(diffuser))
        ),
        f"{STITCH}: it ends above the same without the discriminator, beyond noise": (
            above(end(adapted), end(unfiltered))
        ),
        f"{STITCH}: the plans that are kept are nearer to the data's steps": (
            logged("kept_distance", adapted) < logged("plan_distance", adapted)
        ),
        f"{HAZARDS}: Diffuser guided by returns spends fewer steps in hazards than without the guide, beyond noise": (
            above(end_return(guided, LED), end_return(guided, FREE))
        ),
        f"{HAZARDS}: it reaches as many goals, within noise": (
            end(guided, LED) > end(guided, FREE) - noise(end(guided, LED), end(guided, FREE))
        ),
    },
    observed={
        f"{STITCH}: Diffuser gains in the updates that the others spend on a round, beyond noise": (
            gain(diffuser) > noise(gain(diffuser))
        ),
        f"{STITCH}: with the round nothing is gained in them, beyond noise": gain(adapted) < noise(gain(adapted)),
    },
    finding="The discriminator does its work: what it keeps is nearer to the data's steps than what was generated. "
    "But all arms have the same number of updates, and Diffuser still gains in those that the others spend on"
    " plans of their own, so that a round before the planner has converged costs more than it gives. The "
    "guide by returns leads plans around hazards, and as many of them arrive.",
)
