from results.checks import Claim, above, below, end, highest, logged
from results.grid import Entry, replay

NARROW, REPLAY = "point-umaze-expert", "hopper-medium-replay-v0"
SIZES = "--seeds 8 --batch-size 64 --hidden-dims 32 32 --updates 6000 --eval-every 3000 --eval-episodes 20"
RATES = "--preset none --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01"

# N as lanes of one job: each takes the least of the first N critics
sweep = Entry("sac_n", NARROW, f"{SIZES} {RATES} --n-critics 10 --n-least 2 5 10", "n", "claim")
TWO, FIVE, TEN = (f"n_least={n}" for n in (2, 5, 10))
hopper = replay("sac_n", "--n-critics 20 --n-least 2 5 20", "n", 12_000, 64)
td3_bc = replay("td3_bc", updates=12_000, batch_size=64)
TWENTY = "n_least=20"

CLAIM = Claim(
    title="The least of many critics alone makes SAC an offline method",
    paper="SAC-N (arXiv 2110.01548) claims that the least of enough critics (up to 500) keeps SAC near "
    "the data, where the least of two overestimates what lies outside, with no other regulariser. CORL's published "
    "table (D4RL, last checkpoint) has it level with EDAC on halfcheetah-medium (68.2 and 67.7), far below it on "
    "hopper-medium (40.8 and 101.7), both at 0.0 on AntMaze, and on hopper-medium-replay both far above TD3+BC (100.3, "
    "99.7 and 64.4).",
    runs=[sweep, hopper, td3_bc],
    checks={
        f"{NARROW}: ten critics end above two, beyond noise": (above(end(sweep, TEN), end(sweep, TWO))),
        f"{NARROW}: ten critics value the policy's actions lower than two, beyond noise": (
            below(logged("q_pi", sweep, TEN), logged("q_pi", sweep, TWO))
        ),
        **{
            f"{NARROW}: {setting[8:]} critics disagree more at the policy's actions than at the data's": (
                logged("q_pi_std", sweep, setting) > logged("q_std", sweep, setting)
            )
            for setting in (TWO, FIVE, TEN)
        },
        f"{REPLAY}: twenty critics end above two, beyond noise": (above(end(hopper, TWENTY), end(hopper, TWO))),
        f"{REPLAY}: twenty critics value the policy's actions lower than two, beyond noise": (
            below(logged("q_pi", hopper, TWENTY), logged("q_pi", hopper, TWO))
        ),
        f"{REPLAY}: twenty critics end above TD3+BC, as CORL has it, beyond noise": (
            above(end(hopper, TWENTY), end(td3_bc))
        ),
    },
    observed={
        f"{REPLAY}: no N ends above 2": highest(*(end(hopper, n) for n in (TWO, FIVE, TWENTY))) < 2.0,
        f"{REPLAY}: five critics value the policy's actions between those": (
            logged("q_pi", hopper, FIVE) < logged("q_pi", hopper, TWO)
        ),
        f"{NARROW}: no lane of any N reaches the goal": highest(*(end(sweep, n) for n in (TWO, FIVE, TEN))) < 1.0,
        f"{NARROW}: five critics value the policy's actions between those, too": (
            logged("q_pi", sweep, FIVE) < logged("q_pi", sweep, TWO)
        ),
        f"{NARROW}: with ten critics, too, values are above all returns, which are at most 1": (
            logged("q_pi", sweep, TEN) > 1.0
        ),
    },
    finding="In the U maze N is seen in the values, not in the score. Data of one planner, whose one reward is at the"
    " goal, leave most actions without data: values run away with each of these N, the more slowly the larger"
    " N is, as the critics differ at the policy's actions more than at the data's; no policy reaches the "
    "goal. Ten are too few here, as the paper needs hundreds on hopper; in CORL's table, too, it fails on "
    "AntMaze, whose rewards are as sparse. Larger N were not tried there. On hopper-medium-replay, too, "
    "values run away the more slowly the larger N is, and no N that was tried learns anything: it is at most "
    "a tenth of the paper's there, and the updates are a small part of its.",
)
