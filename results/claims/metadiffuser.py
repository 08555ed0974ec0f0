from results.checks import Claim, noise, under
from results.grid import Entry

HIDDEN = "point-hidden-medium"
SIZES = (
    "--seeds 8 --batch-size 32 --hidden-dims 64 64 --window-steps 8 --channels 16 --channel-factors 1 2 "
    "--context-updates 5000 --updates 3000 --eval-every 3000 --log-every 500 --eval-episodes 20 --learning-rate 3e-3 "
    "--diffusion-steps 10 --ema-start 500 --ema-decay 0.95"
)
UNCONDITIONAL = "context_guidance=0 reward_guide=0 dynamics_guide=0"
CONDITIONAL = "context_guidance=1 reward_guide=0 dynamics_guide=0"
REWARD = "context_guidance=1 reward_guide=3 dynamics_guide=0"
DUAL = "context_guidance=1 reward_guide=3 dynamics_guide=1"
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
            conditional > unconditional + noise(conditional, unconditional)
        ),
        f"{HIDDEN}: with the reward's guide they end above those without, beyond noise": (
            reward > conditional + noise(reward, conditional)
        ),
        f"{HIDDEN}: with both guides they end above those with the reward's alone, beyond noise": (
            dual > reward + noise(dual, reward)
        ),
    },
    finding="The context is what the planner lacks: without it the same network ends below uniform actions, and "
    "the guide to rewards, whose model needs the context, lifts it above the data's mean in every lane. "
    "Given the context alone it imitates data of mixed quality and stays below their mean; that a new "
    "plan at every step forgets what the last one intended may be why. The guide to the dynamics changes "
    "nothing; how far plans disagree with the dynamics, of which a step here is little more than the "
    "action, was not logged. In tries of two lanes that are not kept, a guide to rewards ten times as "
    "strong was worse, and guides to the dynamics made up for a little of that or, where stronger, did "
    "harm. All stay far below the planner that knows the goal: the task is found out while the episode "
    "runs.",
)
