from results.checks import Claim, above, end, highest, logged, lowest, noise
from results.grid import MODEL, Entry, replay

PARTIAL, REPLAY = "point-fourrooms-partial", "hopper-medium-replay-v0"
SIZES = (
    "--seeds 8 --dynamics exact --model-updates 0 --batch-size 128 --hidden-dims 64 64 --updates 6000 "
    "--rollout-batch 1000 --eval-every 3000 --rollout-steps 5"
)

two = Entry("ravl", PARTIAL, f"{SIZES} --n-critics 2 --diversity 0", "sac", "claim")
ravl = Entry("ravl", PARTIAL, f"{SIZES} --n-critics 10 --diversity 1", "n10", "claim")
hopper = replay("ravl", f"{MODEL} --n-critics 10")
others = {"TD3+BC": replay("td3_bc"), "CQL": replay("cql", "--n-actions 4"), "MOPO": replay("mopo", MODEL)}

CLAIM = Claim(
    title="Values explode at the edge of reach of a perfect model, and many critics cure it",
    paper="RAVL (arXiv 2402.12527) claims that model-based methods fail by values of states that cut rollouts only "
    "reach in their last step: with the true dynamics in the model's place plain SAC's values explode, RAVL's do not.",
    runs=[two, ravl, hopper, *others.values()],
    checks={
        f"{PARTIAL}: RAVL ends above two critics, beyond noise": above(end(ravl), end(two)),
        **{
            f"{REPLAY}: RAVL ends above {name}, beyond noise": above(end(hopper), end(run))
            for name, run in others.items()
        },
    },
    observed={
        f"{PARTIAL}: two critics make more of the edge than of where rollouts begin, RAVL less so, beyond noise": (
            logged("q_edge", two) - logged("q_start", two)
            > logged("q_edge", ravl)
            - logged("q_start", ravl)
            + noise(logged("q_edge", two), logged("q_start", two), logged("q_edge", ravl), logged("q_start", ravl))
        ),
        f"{PARTIAL}: two critics' values are higher at the edge, beyond noise": (
            above(logged("q_edge", two), logged("q_edge", ravl))
        ),
        f"{PARTIAL}: so they are where rollouts begin, beyond noise": (
            above(logged("q_start", two), logged("q_start", ravl))
        ),
        f"{PARTIAL}: both value the edge above 9, where a return is 1 at most": (
            lowest(logged("q_edge", two), logged("q_edge", ravl)) > 9.0
        ),
        f"{PARTIAL}: a step in the model earns either less than 0.01": (
            highest(logged("model_reward", two), logged("model_reward", ravl)) < 0.01
        ),
        f"{PARTIAL}: the entropy of both is above 1, where the target is -2": (
            lowest(logged("entropy", two), logged("entropy", ravl)) > 1.0
        ),
        f"{REPLAY}: CQL ends above RAVL, beyond noise": (above(end(others["CQL"]), end(hopper))),
        f"{REPLAY}: RAVL is no lower than TD3+BC, within noise": (
            end(hopper) > end(others["TD3+BC"]) - noise(end(hopper), end(others["TD3+BC"]))
        ),
    },
    finding="The four rooms show nothing of the claim within this budget. With the true dynamics in the model's "
    "place the values of two critics are higher than RAVL's at the edge of what rollouts reach, but also where they "
    "begin: the least of two is above the least of ten at both. Neither policy has left the phase in which it acts "
    "nearly uniformly, a step earns next to nothing, and the values of both are nearly all bonus for entropy, far "
    "above any return. Neither reaches the goal. The two arms differ in the number of critics and in the term that "
    "turns them apart, which were not tried by themselves. On hopper-medium-replay, with a learned model and the "
    "same networks, batches, step sizes and as many updates, a small part of the papers', many critics without a "
    "penalty for the model end above MOPO's two with one, and level with TD3+BC; CQL is far above all.",
)
