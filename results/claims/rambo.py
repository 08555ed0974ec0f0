from results.checks import Claim, above, end, logged
from results.grid import WALL, Entry, behind_the_wall

WEAK = "pendulum-weak"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 "
    "--model-updates 5000 --updates 10000 --rollout-batch 1000 --eval-every 5000 --rollout-steps 5"
)

rambo = Entry("rambo", WEAK, f"{SIZES} --adversary-updates 200 --adversary-weight 0 1", "", "claim")
wall = behind_the_wall("rambo", "--rollout-steps 5 --adversary-updates 200 --adversary-weight 0 1 3")
plain, ours = "adversary_weight=0", "adversary_weight=1"

CLAIM = Claim(
    title="A model that plays against the policy keeps its values low",
    paper="RAMBO (arXiv 2204.12581) claims that adversarial updates of the model make it pessimistic where data are "
    "missing while it keeps to the data, and that policies get better than those of the model alone.",
    runs=[wall, rambo],
    checks={
        **{
            f"{WALL}: with a weight of {weight} RAMBO ends above itself without the game, beyond noise": (
                above(end(wall, game), end(wall, plain))
            )
            for weight, game in ((1, ours), (3, "adversary_weight=3"))
        },
        f"{WALL}: the game lowers Q at the policy's actions": logged("q_pi", wall, ours) < logged("q_pi", wall, plain),
        f"{WALL}: the model's hold-out error grows by less than a half": (
            logged("holdout_error", wall, ours) < 1.5 * logged("holdout_error", wall, plain)
        ),
        f"{WEAK}: RAMBO ends above itself without the game, beyond noise": (above(end(rambo, ours), end(rambo, plain))),
        f"{WEAK}: the game lowers Q at the policy's actions": logged("q_pi", rambo, ours)
        < logged("q_pi", rambo, plain),
        f"{WEAK}: the model's hold-out error grows by less than a half": (
            logged("holdout_error", rambo, ours) < 1.5 * logged("holdout_error", rambo, plain)
        ),
    },
    observed={
        f"{WALL}: without the game it ends below -160, before the wall": end(wall, plain) < -160.0,
        f"{WALL}: with a weight of 3 the temperature is above 1, mopo.py's cap": (
            logged("alpha", wall, "adversary_weight=3") > 1.0
        ),
        f"{WALL}: with a weight of 0 it is below 0.2": logged("alpha", wall, plain) < 0.2,
        **{
            f"{WALL}: with a weight of {weight} the bonus for entropy, for ever, is more than half of Q": (
                logged("alpha", wall, game) * logged("entropy", wall, game) / (1 - 0.97)
                < 0.5 * logged("q_pi", wall, game)
            )
            for weight, game in ((1, ours), (3, "adversary_weight=3"))
        },
        f"{WALL}: with a weight of 3 Q is lower than any discounted return, which is above -100": (
            logged("q_pi", wall, "adversary_weight=3") < -100.0
        ),
    },
    finding="Where the straight way to the goal leads through a wall that the data never touch, the policy of the "
    "model alone stands before the wall; against a model that plays against it the policy goes round, in every lane. "
    "Q at the policy's actions falls on and on, with the larger weight below anything that could be returned, and "
    "some lanes of that are lost again. Most of the fall is the temperature's: the policy's entropy stays under its "
    "target, the temperature rises, which mopo.py caps and this file does not, and the bonus for entropy, negative "
    "here, is the larger part of Q. How far Q falls by the game itself, and whether lanes are lost with a cap, is "
    "open. On Pendulum's data, which cover the states, Q falls and the model keeps to the data, but policies get no "
    "better by it, after so few updates that values had not settled.",
)
