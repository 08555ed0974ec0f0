from results.checks import Claim, above, end, highest, logged, noise
from results.grid import Entry, replay

NARROW, REPLAY = "point-umaze-expert", "hopper-medium-replay-v0"
SIZES = "--seeds 8 --batch-size 64 --hidden-dims 32 32 --updates 6000 --eval-every 3000 --eval-episodes 20"
RATES = "--preset none --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01"

edac = Entry("edac", NARROW, f"{SIZES} {RATES} --n-critics 5 --diversity-weight 1 5", "n5", "claim")
sac_n = Entry("sac_n", NARROW, f"{SIZES} {RATES} --n-critics 10 --n-least 2 5 10", "n", "claim")
APART, FURTHER = "diversity_weight=1", "diversity_weight=5"
hopper = replay("edac", "--n-critics 5", "n5", 12_000, 64)
many = replay("sac_n", "--n-critics 20 --n-least 2 5 20", "n", 12_000, 64)
td3_bc = replay("td3_bc", updates=12_000, batch_size=64)
FIVE, TEN, TWENTY = (f"n_least={n}" for n in (5, 10, 20))

CLAIM = Claim(
    title="Five critics that are turned apart do the work of many",
    paper="EDAC (arXiv 2110.01548) claims SAC-N's results with a tenth of its critics, by turning their action "
    "gradients apart; LB-SAC (arXiv 2211.11092) that larger batches do the same. CORL's published table has EDAC on "
    "hopper-medium-replay level with SAC-N and far above TD3+BC (99.7, 100.3 and 64.4).",
    runs=[edac, sac_n, hopper, many, td3_bc],
    checks={
        f"{NARROW}: EDAC with 5 critics ends above SAC-N with 5, beyond noise": (
            above(end(edac, APART), end(sac_n, FIVE))
        ),
        f"{NARROW}: EDAC with 5 critics ends no lower than SAC-N with 10, within noise": (
            end(edac, APART) > end(sac_n, TEN) - noise(end(edac, APART), end(sac_n, TEN))
        ),
        f"{NARROW}: with a weight of 5 it ends no lower than with 1, within noise": (
            end(edac, FURTHER) > end(edac, APART) - noise(end(edac, FURTHER), end(edac, APART))
        ),
        f"{REPLAY}: EDAC with 5 critics ends above SAC-N with 5, beyond noise": (above(end(hopper), end(many, FIVE))),
        f"{REPLAY}: EDAC ends above TD3+BC, as CORL has it, beyond noise": (above(end(hopper), end(td3_bc))),
    },
    observed={
        f"{REPLAY}: five critics end below 2, with the term that turns them apart or without": (
            highest(end(hopper), end(many, FIVE)) < 2.0
        ),
        f"{REPLAY}: EDAC with 5 critics ends no lower than SAC-N with 20, within noise": (
            end(hopper) > end(many, TWENTY) - noise(end(hopper), end(many, TWENTY))
        ),
        f"{REPLAY}: SAC-N with 20 critics ends below 2, too": end(many, TWENTY) < 2.0,
        f"{REPLAY}: the term, -1.25 where gradients are fully apart, 5 where all are parallel, is above 3": (
            logged("diversity_loss", hopper) > 3.0
        ),
        f"{REPLAY}: the critics' loss is more than 1,000 times as large": (
            logged("critic_loss", hopper) > 1_000 * logged("diversity_loss", hopper)
        ),
        f"{REPLAY}: Q of SAC-N with 20 is above 3,000": logged("q", many, TWENTY) > 3_000,
        f"{NARROW}: with either weight the term is below -1.2": (
            highest(logged("diversity_loss", edac, APART), logged("diversity_loss", edac, FURTHER)) < -1.2
        ),
        f"{NARROW}: SAC-N with 5 and with 10 critics ends below 1": highest(end(sac_n, FIVE), end(sac_n, TEN)) < 1.0,
    },
    finding="In the U maze, where the least of five or ten critics lets values run away and no lane reaches the "
    "goal, five critics whose gradients are turned apart keep the policy at the data: most lanes nearly always "
    "arrive, the others never. A weight of five does as well as one, within noise. So EDAC does there what ten "
    "critics do not do either: how many critics would do as much was not found. Data of one planner are what the "
    "method is for, as most actions are without data; larger batches (LB-SAC) were not run. On hopper-medium-replay, "
    "with a tenth of the paper's critics and a small part of its updates, nothing was compared: SAC-N with twenty "
    "critics learns nothing, which is why EDAC is no lower, and its values run away. The gradients of the five were "
    "not turned apart there: the term rises towards that of parallel gradients, beside a Bellman error that is by "
    "far larger. Larger weights, or smaller steps, were not tried.",
)
