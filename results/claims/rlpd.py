from results.checks import Claim, course, end, noise
from results.grid import interaction

PENDULUM, REPLAY, MAZE = "pendulum-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {PENDULUM: "6000", REPLAY: "9000", MAZE: "6000"}
ARGUMENTS = "--learning-starts 500 --utd 5 --n-critics 5"

rlpd = {d: interaction("rlpd", d, steps, ARGUMENTS) for d, steps in STEPS.items()}
alone = {d: interaction("rlpd", d, steps, f"{ARGUMENTS} --online-share 1", "online-only") for d, steps in STEPS.items()}
plain = {
    d: interaction("rlpd", d, STEPS[d], f"{ARGUMENTS} --no-critic-layer-norm", "no-layer-norm")
    for d in (PENDULUM, REPLAY)
}

CLAIM = Claim(
    title="RLPD needs a third of the steps of its online-only version",
    paper="RLPD (arXiv 2302.02948) claims that half of each batch from the dataset, with layer normalisation in the "
    "critics, makes online learning several times more sample-efficient.",
    runs=[*(run for d in STEPS for run in (rlpd[d], alone[d])), *plain.values()],
    checks={
        **{
            f"{d}: RLPD is at the online-only version's last score after a third of the steps": (
                course(rlpd[d])[:4].max() > course(alone[d])[-1]
            )
            for d in STEPS
        },
        **{
            f"{d}: RLPD ends above the online-only version, beyond noise": (
                end(rlpd[d]) > end(alone[d]) + noise(end(rlpd[d]), end(alone[d]))
            )
            for d in STEPS
        },
        **{
            f"{d}: RLPD ends above itself without layer normalisation, beyond noise": (
                end(rlpd[d]) > end(plain[d]) + noise(end(rlpd[d]), end(plain[d]))
            )
            for d in plain
        },
    },
    observed={
        f"{REPLAY}: RLPD ends at more than 3 times the online-only version's score": end(rlpd[REPLAY])
        > 3 * end(alone[REPLAY]),
        f"{REPLAY}: RLPD ends at more than twice its score without layer normalisation": end(rlpd[REPLAY])
        > 2 * end(plain[REPLAY]),
        f"{REPLAY}: in seven of twelve evaluations RLPD is less than 5 above the online-only version's last score": (
            course(rlpd[REPLAY])[:7] < end(alone[REPLAY]) + 5
        ),
        f"{MAZE}: RLPD ends more than 30 above the online-only version": end(rlpd[MAZE]) > end(alone[MAZE]) + 30,
        f"{MAZE}: after two thirds of the steps RLPD is below the online-only version's last score": (
            course(rlpd[MAZE])[:8].max() < end(alone[MAZE])
        ),
        f"{MAZE}: after three quarters it is above": end(alone[MAZE]) < course(rlpd[MAZE])[8],
    },
    finding="On PointMaze RLPD is at the online-only version's last score after three quarters of the "
    "steps and ends far above it, with all lanes close together where those of the online-only version spread "
    "from nothing to the top. On hopper-medium-replay it ends at more than three times the score of the online-"
    "only version, which stays where it is from a third of the run on; but RLPD leaves that level only after "
    "two thirds of the run. On Pendulum it is at the top after three quarters of the other's steps. A third of "
    "the steps is seen nowhere. Without layer normalisation it ends at less than half on hopper-medium-replay; "
    "on Pendulum that makes hardly a difference.",
)
