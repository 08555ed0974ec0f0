from results.checks import Claim, LaneMean, above, below, end, logged, lowest, start
from results.grid import MODEL, WALL, WALL_RATES, Entry, behind_the_wall, replay, small

WEAK, REPLAY = "pendulum-weak", "hopper-medium-replay-v0"
ENV = "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --updates 10000 --eval-every 5000"
SIZES = f"{ENV} --model-hidden-dims 64 64 --model-updates 5000 --rollout-batch 1000 --rollout-steps 5"

bc = Entry("bc", WEAK, ENV, "phys2d", "claim")
cql = Entry("cql", WEAK, f"{ENV} --cql-alpha 0.5", "phys2d", "claim")
combo = Entry("combo", WEAK, f"{SIZES} --cql-alpha 0 0.5", "", "claim")
hopper = {
    "TD3+BC": replay("td3_bc"),
    "CQL": replay("cql", "--n-actions 4"),
    "COMBO": replay("combo", f"{MODEL} --n-actions 4"),
}
plain, ours = "cql_alpha=0", "cql_alpha=0.5"
wall = behind_the_wall("combo", "--rollout-steps 5 --n-actions 4 --cql-alpha 0 5")
cloning = small("bc", dataset=WALL)
model_free = small("cql", f"{WALL_RATES} --n-actions 4 --cql-alpha 5", dataset=WALL)
conservative = "cql_alpha=5"


def over(run: Entry, setting: str) -> LaneMean:
    """Q of the model's rows minus that of the data's, lane by lane."""
    model, data = logged("q_model", run, setting), logged("q_data", run, setting)
    return LaneMean(lambda files: model.lanes(files) - data.lanes(files), frozenset([run]))


CLAIM = Claim(
    title="Conservative values make a model useful where its uncertainty is not estimated",
    paper="COMBO (arXiv 2102.08363) claims to be better than its model-free half (CQL) and than model-based learning "
    "without it, because Q is bounded on what the model makes up.",
    runs=[wall, cloning, model_free, bc, cql, combo, *hopper.values()],
    checks={
        f"{WALL}: COMBO ends above itself without the regulariser, beyond noise": (
            above(end(wall, conservative), end(wall, plain))
        ),
        **{
            f"{WALL}: COMBO ends above {name}, beyond noise": (above(end(wall, conservative), end(run)))
            for name, run in (("CQL", model_free), ("cloning", cloning))
        },
        f"{WEAK}: COMBO ends above CQL, beyond noise": above(end(combo, ours), end(cql)),
        f"{WEAK}: COMBO ends above cloning, beyond noise": (above(end(combo, ours), end(bc))),
        f"{WEAK}: COMBO ends above itself without the regulariser, beyond noise": (
            above(end(combo, ours), end(combo, plain))
        ),
        **{
            f"{d}: the regulariser lowers Q of the model's rows against that of the data's, beyond noise": (
                below(over(run, held), over(run, plain))
            )
            for d, run, held in ((WALL, wall, conservative), (WEAK, combo, ours))
        },
        **{
            f"{REPLAY}: COMBO ends above {name}, beyond noise": (above(end(hopper["COMBO"]), end(hopper[name])))
            for name in ("TD3+BC", "CQL")
        },
    },
    observed={
        f"{WALL}: without the regulariser it ends below -160, before the wall": end(wall, plain) < -160.0,
        f"{REPLAY}: COMBO is within 10 of TD3+BC": abs(end(hopper["COMBO"]) - end(hopper["TD3+BC"])) < 10.0,
        f"{REPLAY}: CQL ends above COMBO, beyond noise": (above(end(hopper["CQL"]), end(hopper["COMBO"]))),
        f"{WEAK}: CQL ends above -160, where nothing is left to gain": end(cql) > -160,
        f"{WEAK}: COMBO still rises between its two evaluations, by more than 300": (
            end(combo, ours) > start(combo, ours) + 300
        ),
        f"{WEAK}: so does model-based learning without the regulariser": end(combo, plain) > start(combo, plain) + 300,
        f"{WEAK}: the temperature of both is above 0.4": (
            lowest(logged("alpha", combo, ours), logged("alpha", combo, plain)) > 0.4
        ),
        f"{WEAK}: CQL's is below 0.2": logged("alpha", cql) < 0.2,
        f"{WEAK}: the entropy of both is above -0.5, where the target is -1": (
            lowest(logged("entropy", combo, ours), logged("entropy", combo, plain)) > -0.5
        ),
        f"{WEAK}: CQL's is below -0.9": logged("entropy", cql) < -0.9,
        f"{WEAK}: the model's error is below 0.1 after five steps": logged("error_h", combo, ours) < 0.1,
    },
    finding="Where the straight way to the goal leads through a wall that the data never touch, the regulariser "
    "decides: without it the policy stands before the wall, of which the model knows nothing; with it the policy "
    "goes round, faster than cloning and, by little, than CQL of the same weight. On Pendulum CQL alone reaches the "
    "top from the same data, so that a model can add nothing, and COMBO, which learns from the model's rows for half "
    "of each batch, is not done after as many updates: with the regulariser and without it, it still rises from one "
    "evaluation to the next. The arms are not equal there: COMBO's actor and temperature have its default step size, "
    "a third of CQL's, and its policy is still nearer to random than CQL's. Whether it is that or the model's rows "
    "that holds COMBO back is open. The regulariser does not lower Q of the model's rows beyond noise with this "
    "weight, as it does behind the wall with ten times as large a one. On hopper-medium-replay, with the same "
    "networks, batches, step sizes and as many updates, a small part of the papers', COMBO ends near TD3+BC and "
    "below CQL; each has its preset's weight of the regulariser, COMBO's a twentieth of CQL's. Everywhere the step "
    "size of COMBO's actor falls as a cosine, that of CQL's stays.",
)
