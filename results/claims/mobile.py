from results.checks import Claim, end, logged, noise
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

CLAIM = Claim(
    title="Disagreement about values is a better penalty than disagreement about states",
    paper="MOBILE (ICML 2023, PMLR 202) claims that the inconsistency of Bellman estimates over an ensemble beats the "
    "penalties of earlier methods, MOPO (arXiv 2005.13239) among them.",
    runs=[mopo, mobile, hopper, *others.values()],
    checks={
        f"{FEW}: MOBILE ends above itself without the penalty, beyond noise": (
            end(mobile, ours) > end(mobile, plain) + noise(end(mobile, ours), end(mobile, plain))
        ),
        f"{FEW}: MOBILE ends above MOPO, beyond noise": (
            end(mobile, ours) > end(mopo, "reward_penalty=1") + noise(end(mobile, ours), end(mopo, "reward_penalty=1"))
        ),
        f"{FEW}: the penalty lowers Q at the policy's actions": (
            logged("q_pi", mobile, ours) < logged("q_pi", mobile, plain)
        ),
        **{
            f"{REPLAY}: MOBILE ends above {name}, beyond noise": (end(hopper) > end(run) + noise(end(hopper), end(run)))
            for name, run in others.items()
        },
    },
    observed={
        f"{FEW}: it ends above -160, where nothing is left to gain": end(mobile, ours) > -160.0,
        f"{FEW}: without the penalty, too": end(mobile, plain) > -160.0,
    },
    finding="The inconsistency of values lowers Q at the policy's actions, as it should. On a tenth of Pendulum's data "
    "that buys nothing, since with values that had settled the model alone is enough: MOBILE is at the top with the "
    "penalty and without it, and so is MOPO. On hopper-medium-replay, with the same networks, batches, step sizes and "
    "as many updates, a small part of the papers', MOBILE is above none of TD3+BC, CQL, MOPO and COMBO beyond noise.",
)
