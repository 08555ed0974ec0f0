from results.checks import Claim, above, end, logged
from results.grid import Entry, ogbench_task

MAZE = "point-umaze-mixed"


def run(variant: str, more: str) -> Entry:
    sizes = "--seeds 8 --batch-size 64 --hidden-dims 64 64 --updates 2000 --eval-every 1000 --log-every 200"
    sizes += " --eval-episodes 20 --value-classes 51 --n-candidates 8 --flow-steps 5"
    return Entry("deas", MAZE, f"{sizes} {more}", variant, "claim")


deas = run("h8", "--chunk-length 8")
single = run("h1", "--chunk-length 1 --discount 0.99 0.999")
coupled = run("coupled", "--chunk-length 8 --next-value policy")
regressed = run("regressed", "--chunk-length 8 --no-classification")

BENCHMARK = [ogbench_task("deas")]

CLAIM = Claim(
    title="Values of chunks see far in few updates, without any policy in their targets",
    paper="DEAS (arXiv 2510.07730) claims that values of action sequences shorten the horizon where those of single "
    "actions barely learn (chunks of one action: 21 of 100, of eight: 88), and that both a target without the policy "
    "and classification are needed (each alone: 63 and 75).",
    runs=[deas, single, coupled, regressed],
    checks={
        **{
            f"{MAZE}: chunks of eight actions end above single actions with discount {discount}, beyond noise": (
                above(end(deas), end(single, f"discount={discount}"))
            )
            for discount in ("0.99", "0.999")
        },
        f"{MAZE}: V in the target ends above the policy's own Q there, beyond noise": (above(end(deas), end(coupled))),
        f"{MAZE}: classification ends above regression, beyond noise": (above(end(deas), end(regressed))),
    },
    observed={
        "With the policy's own Q in the target values are higher, beyond noise": (
            above(logged("q", coupled), logged("q", deas))
        ),
    },
    finding="Chunks decide: with the same networks and data, values of eight actions at once lead to the goal nearly "
    "always, those of single actions hardly ever, whichever their discount; runs of more than 2,000 updates were not "
    "made, in which they may catch up. The policy's own Q in the target raises the values, but does no harm here, "
    "where the policy is the best of eight candidates of a clone; the paper compares with QC-FQL, whose policy follows "
    "the gradient of Q. Regression fails in one lane and is level with classification in the others.",
)
