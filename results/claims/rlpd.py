from results.checks import Claim, above, course, end, highest, online_mean, start
from results.grid import interaction, worlds

DEMOS, REPLAY, MAZE = "point-umaze-demos", "hopper-medium-replay-v0", "pointmaze-umaze"
STEPS = {REPLAY: "9000", MAZE: "6000"}
ARGUMENTS = "--learning-starts 500 --utd 5 --n-critics 5"
SPARSE = (
    "--utd 5 --n-critics 5 --learning-starts 200 --reward-shift -1 --no-backup-entropy --init-temperature 0.1 "
    "--learning-rate 1e-3 --discount 0.97 --tau 0.01"
)

rlpd = {d: interaction("rlpd", d, steps, ARGUMENTS) for d, steps in STEPS.items()}
alone = {d: interaction("rlpd", d, steps, f"{ARGUMENTS} --online-share 1", "online-only") for d, steps in STEPS.items()}
plain = {REPLAY: interaction("rlpd", REPLAY, STEPS[REPLAY], f"{ARGUMENTS} --no-critic-layer-norm", "no-layer-norm")}
rlpd[DEMOS] = worlds("rlpd", DEMOS, "3000", SPARSE)
alone[DEMOS] = worlds("rlpd", DEMOS, "3000", f"{SPARSE} --online-share 1", "online-only")
plain[DEMOS] = worlds("rlpd", DEMOS, "3000", f"{SPARSE} --no-critic-layer-norm", "no-layer-norm")


def higher(quantity, one, other):
    return above(quantity(one), quantity(other))


CLAIM = Claim(
    title="RLPD needs a third of the steps of its online-only version",
    paper="RLPD (arXiv 2302.02948) claims that half of each batch from the dataset, with layer normalisation in the "
    "critics, makes online learning several times more sample-efficient.",
    runs=[*(run for d in rlpd for run in (rlpd[d], alone[d])), *plain.values()],
    checks={
        f"{DEMOS}: RLPD is at the online-only version's last score after a third of the steps": (
            course(rlpd[DEMOS])[:3].max() > course(alone[DEMOS])[-1]
        ),
        f"{DEMOS}: RLPD ends above the online-only version, beyond noise": higher(end, rlpd[DEMOS], alone[DEMOS]),
        f"{DEMOS}: RLPD has a higher mean over the evaluations than without layer normalisation, beyond noise": (
            higher(online_mean, rlpd[DEMOS], plain[DEMOS])
        ),
        f"{REPLAY}: RLPD ends above the online-only version, beyond noise": higher(end, rlpd[REPLAY], alone[REPLAY]),
        f"{REPLAY}: RLPD ends above itself without layer normalisation, beyond noise": (
            higher(end, rlpd[REPLAY], plain[REPLAY])
        ),
    },
    observed={
        f"{DEMOS}: the online-only version never arrives: any score is at its last one": (course(alone[DEMOS]) <= 0.0),
        **{
            f"{DEMOS}: {name} always arrives from the third of ten evaluations on": course(run)[2:] >= 100.0
            for name, run in {"RLPD": rlpd[DEMOS], "it without layer normalisation": plain[DEMOS]}.items()
        },
        f"{DEMOS}: neither does at the first: they differ at the second alone": (
            highest(start(rlpd[DEMOS]), start(plain[DEMOS])) <= 0.0
        ),
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
    finding="The point maze pays nothing before the goal, which uniform actions do not find; the demonstrations show "
    "the way. There the online-only version never arrives, so that the check of a third of the steps holds for "
    "any success: how many times fewer steps RLPD needs is not measured. With layer normalisation and without "
    "RLPD is at the top of the scale from the third evaluation on, and nothing between them can be told there. "
    "On PointMaze RLPD is at the online-only version's last score after three quarters of the steps and ends "
    "far above it on average, with all lanes close together where those of the online-only version spread from "
    "nothing to the top. On hopper-medium-replay it ends at more than three times the score of the online-only "
    "version, which stays where it is from a third of the run on; but RLPD leaves that level only after two "
    "thirds of the run: these budgets end where the difference begins. Without layer normalisation it ends at "
    "less than half on hopper-medium-replay.",
)
