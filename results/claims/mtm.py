from results.checks import Claim, above, below, end, logged, under
from results.grid import Entry

LENGTH = "--seeds 8 --updates 5000 --log-every 500 --eval-every 5000 --eval-episodes 16 --context 2"
SIZES = "--width 32 --layers 1 --heads 2 --token-dropout 0 --batch-size 64 --learning-rate 3e-3 --warmup-updates 250"
USES = {
    "rcbc": "Cloning with a return",
    "inverse": "Inverse dynamics",
    "forward": "Forward dynamics",
}


def run(more: str, variant: str = "", *evaluations: str) -> Entry:
    return Entry("mtm", "turned-point-mixed", f"{LENGTH} {SIZES} {more}", variant, "claim", evaluations)


FEW = "--labelled-fraction 0.2 --holdout 0.5"
whole = run("--holdout 0.1", "", "act_as=bc")
special = {use: run(f"--holdout 0.1 --train-mask {use}", use) for use in USES}
without_cut = run("--holdout 0.1 --train-mask random", "random")
few, alone = run(FEW, "few-actions"), run(f"{FEW} --labelled-only", "few-alone")

REPLAY = "hopper-medium-replay-v0"
REAL = (
    "--seeds 8 --updates 8000 --log-every 1000 --eval-every 8000 --eval-episodes 10 --context 4 --width 32 --layers 1 "
    "--heads 2 --token-dropout 0 --batch-size 64 --learning-rate 1e-3 --warmup-updates 800 --holdout 0.1"
)
real = Entry("mtm", REPLAY, REAL, "", "claim", ("act_as=bc",))
real_inverse = Entry("mtm", REPLAY, f"{REAL} --train-mask inverse", "inverse", "claim")

CLAIM = Claim(
    title="One model of masked trajectories does what models of one use do, and learns from steps without actions",
    paper="MTM (arXiv 2305.02968) claims that one network, trained under random autoregressive masks, matches or beats "
    "networks trained for one use (cloning with a return, inverse and forward dynamics), and that trajectories without "
    "actions make it better where few have them. Errors are of episodes that were held out.",
    runs=[whole, *special.values(), few, alone, without_cut, real, real_inverse],
    checks={
        **{
            f"{what}: one model errs at most a fifth more than the model of this use": (
                logged(f"{use}_error", whole) < 1.2 * logged(f"{use}_error", special[use])
            )
            for use, what in USES.items()
        },
        "Inverse dynamics: the model of this use has learned them, its error is below 0.15": (
            logged("inverse_error", special["inverse"]) < 0.15
        ),
        "A tenth of the episodes with actions: the rest helps cloning with a return, beyond noise": (
            below(logged("rcbc_error", few), logged("rcbc_error", alone))
        ),
        "A tenth of the episodes with actions: with the rest it ends higher, beyond noise": (
            above(end(few), end(alone))
        ),
        "Asked for a high return it ends above cloning, beyond noise": (above(end(whole), under("act_as=bc", whole))),
        f"{REPLAY}: asked for a high return it ends above cloning, beyond noise": (
            above(end(real), under("act_as=bc", real))
        ),
        f"{REPLAY}, inverse dynamics: one model errs at most a fifth more than the model of this use": (
            logged("inverse_error", real) < 1.2 * logged("inverse_error", real_inverse)
        ),
    },
    observed={
        "Random masks that do not cut the future off leave the error of inverse dynamics as high": (
            logged("inverse_error", without_cut) >= logged("inverse_error", whole)
        ),
        "And that of forward dynamics": logged("forward_error", without_cut) >= logged("forward_error", whole),
    },
    finding="One model clones with a return about as well as a model of this use. Inverse and forward dynamics it has "
    "hardly learned in updates in which models of one use learn them almost exactly. For forward dynamics it "
    "is not that masks cut the future off: random masks without the cut do not lower the error. For inverse "
    "dynamics it is open. In a window of two steps every share but the whole is rounded down to one step, so "
    "that most windows hide one of the two states, with the cut or without, and hardly any show both and hide "
    "the action between them: neither arm had much to learn from. On hopper-medium-replay windows are of four "
    "steps, neighbouring states are shown far more often, and the error of inverse dynamics is as far above "
    "that of its own model. What it is asked for decides how it acts: told a high return it ends near the "
    "planner, told none far lower, between the planner and the uniform actions that are the other half of the "
    "data. Episodes without actions do not lower the error of cloning with a return; the score that they add "
    "is small. On hopper-medium-replay what it is told matters less, and whether it ends above cloning is "
    "within noise.",
)
