from results.checks import Claim, course, dip, end, noise, start
from results.grid import interaction

PENDULUM, REPLAY, MAZE = "pendulum-mixed", "hopper-medium-replay-v0", "pointmaze-umaze"
ARGUMENTS = "--vae-updates 10000 --vae-hidden-dims 128 128"
ARMS = {
    "": "",
    "td3": "--online-bc 0 --n-candidates 1 --n-finalists 1",
    "td3-bc": "--online-bc 1 --constrained-share 1 --n-candidates 1 --n-finalists 1",
}
NAMES = {"": "SUNG", "td3": "TD3", "td3-bc": "TD3+BC"}

runs = {
    (d, arm): interaction("sung", d, "10000+6000", f"{ARGUMENTS} {more}".strip(), arm)
    for d in (PENDULUM, REPLAY, MAZE)
    for arm, more in ARMS.items()
}

CLAIM = Claim(
    title="SUNG fine-tunes TD3+BC better than TD3 or TD3+BC does",
    paper="SUNG (arXiv 2306.07541) claims that exploration by value and uncertainty with a constraint on uncertain "
    "samples only ends above keeping the constraint, and dips less than dropping it.",
    runs=list(runs.values()),
    checks={
        **{
            f"{d}: SUNG ends above TD3+BC, which keeps the constraint, beyond noise": (
                end(runs[d, ""]) > end(runs[d, "td3-bc"]) + noise(end(runs[d, ""]), end(runs[d, "td3-bc"]))
            )
            for d in (PENDULUM, REPLAY, MAZE)
        },
        **{
            f"{d}: TD3, which drops it, dips by more than SUNG at the onset, beyond noise": (
                dip(runs[d, "td3"]) > dip(runs[d, ""]) + noise(dip(runs[d, "td3"]), dip(runs[d, ""]))
            )
            for d in (PENDULUM, REPLAY, MAZE)
        },
    },
    observed={
        f"{PENDULUM}: SUNG ends at more than twice TD3+BC's score": (
            end(runs[PENDULUM, ""]) > 2 * end(runs[PENDULUM, "td3-bc"])
        ),
        f"{PENDULUM}: at the first online evaluation SUNG is above its offline level": (
            course(runs[PENDULUM, ""])[1] > start(runs[PENDULUM, ""])
        ),
        f"{PENDULUM}: TD3 is below it": course(runs[PENDULUM, "td3"])[1] < start(runs[PENDULUM, "td3"]),
        **{
            f"{MAZE}: {name} ends below its offline level": end(runs[MAZE, arm]) < start(runs[MAZE, arm])
            for arm, name in NAMES.items()
        },
    },
    finding="On Pendulum SUNG ends far above the constraint kept on all samples, and rises at once where "
    "TD3 without exploration by value and constraint first falls; TD3 has caught up after a third of the steps "
    "and ends slightly higher. On PointMaze all three lose most of their offline level, SUNG the most at the "
    "onset, and on average none has regained it after 6,000 steps, though SUNG ends highest. On hopper-medium-"
    "replay all end within each other's spread, and SUNG dips first. Batches are the paper's, nine tenths of "
    "them from the few online transitions.",
)
