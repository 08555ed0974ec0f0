from results.checks import Claim, end, logged, noise, under
from results.grid import Entry

LENGTH = "--seeds 8 --updates 1000 --log-every 100 --eval-every 1000 --eval-episodes 10 --env phys2d/Pendulum-v0"
SIZES = "--width 16 --layers 1 --heads 1 --token-dropout 0 --batch-size 32 --learning-rate 3e-3 --warmup-updates 50"


def run(more: str, variant: str, *evaluations: str) -> Entry:
    return Entry("mtm", "pendulum-mixed", f"{LENGTH} {SIZES} {more}", variant, "claim", evaluations)


FEW = "--labelled-fraction 0.2 --holdout 0.5"
whole = run("--holdout 0.1", "", "act_as=bc")
asked = run("--holdout 0.1 --train-mask rcbc", "rcbc")
inverse = run("--holdout 0.1 --train-mask inverse", "inverse")
few = run(FEW, "few-actions")
alone = run(f"{FEW} --labelled-only", "few-alone")

CLAIM = Claim(
    title="One model of masked trajectories does what models of one use do, and learns from steps without actions",
    paper="MTM (arXiv 2305.02968) claims that one network, trained under random autoregressive masks, matches or beats "
    "networks trained for one use (cloning with a return, inverse dynamics), and that trajectories without actions "
    "make it better where few have them. Errors are of actions of episodes that were held out.",
    runs=[whole, asked, inverse, few, alone],
    checks={
        "Cloning with a return: one model errs at most a fifth more than the model of this use": (
            logged("rcbc_error", whole) < 1.2 * logged("rcbc_error", asked)
        ),
        "Inverse dynamics: one model errs at most a fifth more than the model of this use": (
            logged("inverse_error", whole) < 1.2 * logged("inverse_error", inverse)
        ),
        "A tenth of the episodes with actions: the rest helps cloning with a return, beyond noise": (
            logged("rcbc_error", few)
            < logged("rcbc_error", alone) - noise(logged("rcbc_error", few), logged("rcbc_error", alone))
        ),
        "A tenth of the episodes with actions: the rest helps inverse dynamics, beyond noise": (
            logged("inverse_error", few)
            < logged("inverse_error", alone) - noise(logged("inverse_error", few), logged("inverse_error", alone))
        ),
        "Asked for a high return it ends above cloning, beyond noise": (
            end(whole) > under("act_as=bc", whole) + noise(end(whole), under("act_as=bc", whole))
        ),
    },
)
