from results.checks import Claim, above, noise, under
from results.grid import Entry

HIDDEN = "point-hidden-medium"
SIZES = (
    "--seeds 8 --batch-size 32 --hidden-dims 64 64 --window-steps 8 --channels 16 --channel-factors 1 2 "
    "--context-updates 5000 --updates 3000 --eval-every 3000 --log-every 500 --eval-episodes 20 --learning-rate 3e-3 "
    "--diffusion-steps 10 --ema-start 500 --ema-decay 0.95"
)
UNCONDITIONAL = "guidance=0 reward_guide=0 dynamics_guide=0"
CONDITIONAL = "guidance=1 reward_guide=0 dynamics_guide=0"
REWARD = "guidance=1 reward_guide=3 dynamics_guide=0"
DUAL = "guidance=1 reward_guide=3 dynamics_guide=1"
"""One planner, acting in four ways."""

planner = Entry("metadiffuser", HIDDEN, SIZES, "", "claim", (UNCONDITIONAL, CONDITIONAL, REWARD, DUAL))
unconditional, conditional, reward, dual = (under(how, planner) for how in planner.evaluations)

CLAIM = Claim(
    title="A few steps of a task tell a planner what to plan for",
    paper="MetaDiffuser (arXiv 2305.19923) claims that a diffusion planner goes to the goals of tasks that it was "
    "never told, given a context of the task, and that a guide to rewards and one to the dynamics add to that.",
    runs=[planner],
    checks={
        f"{HIDDEN}: plans for the context end above unconditional ones, beyond noise": (
            above(conditional, unconditional)
        ),
        f"{HIDDEN}: with the reward's guide they end above those without, beyond noise": (above(reward, conditional)),
        f"{HIDDEN}: with both guides they end above those with the reward's alone, beyond noise": (above(dual, reward)),
    },
    observed={
        f"{HIDDEN}: the unconditional planner ends below uniform actions, whose score is 0": unconditional < 0.0,
        f"{HIDDEN}: given the context alone, too": conditional < 0.0,
        f"{HIDDEN}: with the reward's guide it ends above them": reward > noise(reward),
        f"{HIDDEN}: the guide to the dynamics changes less than noise": (abs(dual - reward) < noise(dual, reward)),
        f"{HIDDEN}: with both guides it is below half of the planner that knows the goal": dual < 50.0,
    },
    finding="The context is what the planner lacks: the same network without it, which one window in four teaches, "
    "ends below uniform actions, and given the context less far below; the guide to rewards, whose model "
    "needs the context, lifts it above them. Given the context alone it imitates data of mixed quality; that "
    "a new plan at every step forgets what the last one intended may be why it does no better. The guide to "
    "the dynamics changes nothing; how far plans disagree with the dynamics, of which a step here is little "
    "more than the action, was not logged. All stay below the planner that knows the goal: the task is found "
    "out while the episode runs.",
)
