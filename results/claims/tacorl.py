import jax.numpy as jnp

from results.checks import Claim, above, end, lowest, of_task
from results.grid import goals

STITCH = "point-medium-stitch"
PLANS = "--plan-updates 5000 --latent-dim 4"

gcbc = goals("gcbc", STITCH)
tacorl = goals("tacorl", STITCH, PLANS)
cloned = goals("tacorl", STITCH, f"{PLANS} --bc-steps 1000000", "cloned")
crl = goals("crl", STITCH, "--latent-dim 64")


def value(module, agent, obs, goal, args):
    """min_k Q_k(s, g, plan) of the mean's plan."""
    plan = jnp.tanh(agent.nets.actor.apply(agent.actor, obs, goal)[0])
    return module.q_values(agent, agent.critic, obs, goal, plan).min(0)


CLAIM = Claim(
    title="Values of latent plans put short ways together, which cloned plans do not",
    paper="TACO-RL (arXiv 2209.08959) claims many times the success of Play-LMP, whose plans are cloned, and of flat "
    "policies with relabelled goals, on goals that need behaviour of several episodes.",
    runs=[gcbc, tacorl, cloned, crl],
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
        "The fourth goal: CRL, without dynamic programming and without plans, always succeeds, as TACO-RL does": (
            lowest(of_task(4, crl), of_task(4, tacorl)) >= 100.0
        ),
        "The farthest goal: neither does": of_task(5, tacorl) + of_task(5, cloned) < 1.0,
    },
    finding="Values of plans gain over plans that are cloned and over flat cloning with relabelled goals, most at the "
    "fourth of five goals. That is no evidence that values put two episodes together: CRL, whose values are of "
    "the data's own behaviour, always reaches it, too, without plans. Half of the goals that TACO-RL and CRL "
    "learn of are of any episode; GCBC's are of its own. Cloned plans have TACO-RL's goals: they clone for "
    "them what leads elsewhere, which is no part of cloning from hindsight and may be what costs them that "
    "goal. None of this was tried apart. The farthest goal is beyond TACO-RL and cloned plans at this length.",
)
