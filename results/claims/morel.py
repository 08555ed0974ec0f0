from results.checks import Claim, above, below, end, logged
from results.grid import WALL, Entry, behind_the_wall

WEAK = "pendulum-weak"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 "
    "--model-updates 5000 --updates 10000 --rollout-batch 1000 --eval-every 5000 --rollout-steps 20"
)

morel = Entry("morel", WEAK, f"{SIZES} --unknown-above 2 1000000", "", "claim")
wall = behind_the_wall("morel", "--rollout-steps 20 --unknown-above 2 5 1000000")
ours, default, naive = "unknown_above=2", "unknown_above=5", "unknown_above=1e+06"

CLAIM = Claim(
    title="A model that halts where it is unknown does not promise what it does not know",
    paper="MOReL (arXiv 2005.05951) claims that the value in its pessimistic model bounds the true value from below, "
    "and that policies optimised in it are better than those of the naive model.",
    runs=[wall, morel],
    checks={
        f"{WALL}: MOReL ends above the naive model, beyond noise": (above(end(wall, default), end(wall, naive))),
        f"{WALL}: the pessimistic model promises less": logged("q_pi", wall, default) < logged("q_pi", wall, naive),
        f"{WALL}: its rollouts are nearer to the environment, beyond noise": (
            below(logged("error_1", wall, default), logged("error_1", wall, naive))
        ),
        f"{WEAK}: MOReL ends above the naive model, beyond noise": (above(end(morel, ours), end(morel, naive))),
        f"{WEAK}: the pessimistic model promises less": logged("q_pi", morel, ours) < logged("q_pi", morel, naive),
        f"{WEAK}: the pessimistic model's values lie below the policy's return over 200 steps, discounted as if each "
        "earned as much": logged("q_pi", morel, ours) < end(morel, ours) * ((1 - 0.99**200) / (200 * (1 - 0.99))),
        f"{WEAK}: its rollouts are nearer to the environment": (
            logged("error_1", morel, ours) < logged("error_1", morel, naive)
        ),
    },
    observed={
        f"{WALL}: the naive model promises more than 100, where no return is above 0": (
            logged("q_pi", wall, naive) > 100.0
        ),
        f"{WEAK}: the temperature is above 0.9 in the pessimistic model, where it is capped at 1": (
            logged("alpha", morel, ours) > 0.9
        ),
        f"{WEAK}: it is below 0.5 in the naive one": logged("alpha", morel, naive) < 0.5,
        f"{WEAK}: the critics' loss is more than 100 times that in the naive model": (
            logged("critic_loss", morel, ours) > 100.0 * logged("critic_loss", morel, naive)
        ),
        f"{WALL}: the naive model's policy ends below -160, before the wall": end(wall, naive) < -160.0,
        f"{WALL}: with a threshold of 2 it ends above the naive model by more than 100": (
            end(wall, ours) > end(wall, naive) + 100.0
        ),
    },
    finding="Where the straight way to the goal leads through a wall that the data never touch, the naive model's "
    "policy stands before the wall, and promises much; in the model that halts where it is unknown the policy goes "
    "round, in most lanes of the default threshold and in all of a lower one. On Pendulum the pessimistic model "
    "promises less, too, and its rollouts stay nearer to the environment, but its policies are much worse, and what "
    "it promises is more than they earn: as its values still fall, that they bound the true ones is not shown. Why "
    "the policies are worse is open. Data of four controllers cover the states, so that there is nothing to be kept "
    "from; HALT is worth less than any return; and the few rows that end in it leave the critics a large error, "
    "beside which the temperature rises to its cap. These were not tried apart.",
)
