from results.checks import Claim, above, end, logged
from results.grid import MODEL, WALL, Entry, behind_the_wall, replay

FEW, REPLAY = "pendulum-few", "hopper-medium-replay-v0"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 "
    "--model-updates 5000 --updates 10000 --rollout-batch 1000 --eval-every 5000 --rollout-steps 5 --tau 0.02 "
    "--discount 0.98 --critic-lr 1e-3 --actor-lr 3e-4"
)

mopo = Entry("mopo", FEW, f"{SIZES} --reward-penalty 0 1", "h5", "claim")
mobile = Entry("mobile", FEW, f"{SIZES} --n-elites 3 --next-samples 2 --inconsistency 0 0.3 1", "", "claim")
hopper = replay("mobile", f"{MODEL} --n-elites 3 --next-samples 2")
others = {
    "TD3+BC": replay("td3_bc"),
    "CQL": replay("cql", "--n-actions 4"),
    "MOPO": replay("mopo", MODEL),
    "COMBO": replay("combo", f"{MODEL} --n-actions 4"),
}
plain, ours = "inconsistency=0", "inconsistency=1"
# no return is below -100 there: the authors bound targets from below, too, at 0 for rewards above 0
bound = "--target-floor -100 --inconsistency 0 16 30"
wall = behind_the_wall("mobile", f"--rollout-steps 5 --n-elites 3 --next-samples 2 {bound}")
mopo_there = behind_the_wall("mopo", "--rollout-steps 5 --reward-penalty 50 --penalty-kind 1 2 3")
WEIGHTS = {16: "inconsistency=16", 30: "inconsistency=30"}
STATES = {"the largest aleatoric std": "penalty_kind=1", "the distance of two means": "penalty_kind=2"}

CLAIM = Claim(
    title="Disagreement about values is a better penalty than disagreement about states",
    paper="MOBILE (ICML 2023, PMLR 202) claims that the inconsistency of Bellman estimates over an ensemble beats the "
    "penalties of earlier methods, MOPO (arXiv 2005.13239) among them.",
    runs=[wall, mopo_there, mopo, mobile, hopper, *others.values()],
    checks={
        **{
            f"{WALL}: with a weight of {weight} MOBILE ends above itself without the penalty, beyond noise": (
                above(end(wall, setting), end(wall, plain))
            )
            for weight, setting in WEIGHTS.items()
        },
        **{
            f"{WALL}: it ends above MOPO, whose penalty is {u}, beyond noise": (
                above(end(wall, WEIGHTS[30]), end(mopo_there, kind))
            )
            for u, kind in STATES.items()
        },
        f"{FEW}: MOBILE ends above itself without the penalty, beyond noise": (
            above(end(mobile, ours), end(mobile, plain))
        ),
        f"{FEW}: MOBILE ends above MOPO, beyond noise": (above(end(mobile, ours), end(mopo, "reward_penalty=1"))),
        f"{FEW}: the penalty lowers Q at the policy's actions": (
            logged("q_pi", mobile, ours) < logged("q_pi", mobile, plain)
        ),
        **{
            f"{REPLAY}: MOBILE ends above {name}, beyond noise": (above(end(hopper), end(run)))
            for name, run in others.items()
        },
    },
    observed={
        f"{WALL}: without the penalty it ends below -160, before the wall": end(wall, plain) < -160.0,
        **{
            f"{WALL}: a weight of {weight} raises the mean by more than 30": (
                end(wall, setting) > end(wall, plain) + 30.0
            )
            for weight, setting in WEIGHTS.items()
        },
        f"{WALL}: MOPO's distance of two means ends more than 50 above it": (
            end(mopo_there, "penalty_kind=2") > end(wall, WEIGHTS[30]) + 50.0
        ),
        f"{FEW}: it ends above -160, where nothing is left to gain": end(mobile, ours) > -160.0,
        f"{FEW}: without the penalty, too": end(mobile, plain) > -160.0,
    },
    finding="Where the straight way to the goal leads through a wall that the data never touch, the policy of the "
    "model alone stands before the wall. The inconsistency of values leads a few lanes round it, with either "
    "weight; the others stay there or go astray: disagreement about states, MOPO's with the distance of two "
    "means, leads all of them round. What lies behind the wall is worth about the same whichever member is "
    "asked, far from the truth as all of them are; that this is the cause was not tried. Nor were equal ensembles: "
    "MOBILE asks the three best members for two next states each (the authors five for ten), MOPO's penalties all "
    "seven members. On a tenth of "
    "Pendulum's data the penalty lowers Q, as it should, and buys nothing, since with values that had settled "
    "the model alone is enough: MOBILE is at the top with the penalty and without it, and so is MOPO. On "
    "hopper-medium-replay, with the same networks, batches, step sizes and as many updates, a small part of "
    "the papers', MOBILE is above none of TD3+BC, CQL, MOPO and COMBO beyond noise.",
)
