import jax.numpy as jnp

from results.checks import Claim, above, end, of_task
from results.grid import goals

STITCH = "point-medium-stitch"
PLANS = "--plan-updates 5000 --latent-dim 4"

gcbc = goals("gcbc", STITCH)
tacorl = goals("tacorl", STITCH, PLANS)
cloned = goals("tacorl", STITCH, f"{PLANS} --bc-steps 1000000", "cloned")


def value(module, agent, obs, goal, args):
    """min_k Q_k(s, g, plan) of the mean's plan."""
    plan = jnp.tanh(agent.nets.actor.apply(agent.actor, obs, goal)[0])
    return module.q_values(agent, agent.critic, obs, goal, plan).min(0)


CLAIM = Claim(
    title="Values of latent plans put short ways together, which cloned plans do not",
    paper="TACO-RL (arXiv 2209.08959) claims many times the success of Play-LMP, whose plans are cloned, and of flat "
    "policies with relabelled goals, on goals that need behaviour of several episodes.",
    runs=[gcbc, tacorl, cloned],
    checks={
        **{
            f"TACO-RL ends above {label}, beyond noise": above(end(tacorl), end(run))
            for label, run in {"cloned plans": cloned, "GCBC": gcbc}.items()
        },
        "The farthest goal: TACO-RL succeeds more often than cloned plans, beyond noise": (
            above(of_task(5, tacorl), of_task(5, cloned))
        ),
    },
    observed={
        "TACO-RL ends above GCBC": end(tacorl) > end(gcbc),
        "The fourth goal: TACO-RL succeeds more often than cloned plans, by more than 50": (
            of_task(4, tacorl) > of_task(4, cloned) + 50.0
        ),
        "The farthest goal: neither does": of_task(5, tacorl) + of_task(5, cloned) < 1.0,
    },
    finding="Values of plans gain over plans that are cloned and over flat cloning with relabelled goals, most at the"
    " fourth of five goals, which asks for two episodes put together. The farthest goal is beyond all of them"
    " at this length.",
)
