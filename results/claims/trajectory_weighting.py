from results.checks import Claim, above, end, noise
from results.grid import offline, small

RARE = "pendulum-rare"
MIXED, REPLAY = "hopper-random-expert-5-v0", "hopper-medium-replay-v0"
BASES = {"iql": "IQL", "td3_bc": "TD3+BC"}
SAMPLERS = {"rw": "by return", "aw": "by advantage"}

runs = {
    (d, base, sampler): offline(
        "trajectory_weighting", d, f"--base {base} --sampler {sampler}", f"{base}-{sampler}"
    )
    for base in BASES
    for sampler in ("uniform", *SAMPLERS, "top")
    for d in (MIXED, REPLAY)
}  # fmt: skip
runs |= {
    (RARE, base, sampler): small(
        "trajectory_weighting", f"--base {base} --sampler {sampler}", f"{base}-{sampler}", RARE
    )
    for base in BASES
    for sampler in ("uniform", *SAMPLERS)
}
pairs = [(base, sampler) for base in BASES for sampler in SAMPLERS]


def score(d, base, sampler):
    return end(runs[d, base, sampler])


CLAIM = Claim(
    title="Weighting trajectories finds the few good episodes",
    paper="Trajectory weighting (arXiv 2306.13085) claims that sampling by return (rw) or advantage (aw) lifts IQL and "
    "TD3+BC where few episodes are good, and costs nothing elsewhere.",
    runs=list(runs.values()),
    checks={
        **{
            f"{d}: sampling {SAMPLERS[sampler]} lifts {BASES[base]}, beyond noise": (
                above(score(d, base, sampler), score(d, base, "uniform"))
            )
            for d in (RARE, MIXED)
            for base, sampler in pairs
        },
        **{
            f"{REPLAY}: sampling {SAMPLERS[sampler]} costs {BASES[base]} nothing beyond noise": (
                score(REPLAY, base, sampler)
                > score(REPLAY, base, "uniform") - noise(score(REPLAY, base, sampler), score(REPLAY, base, "uniform"))
            )
            for base, sampler in pairs
        },
    },
    observed={
        **{
            f"{MIXED}: sampling {SAMPLERS[sampler]} adds more than 25 to {BASES[base]}": (
                score(MIXED, base, sampler) > score(MIXED, base, "uniform") + 25
            )
            for base, sampler in pairs
        },
        **{
            f"{REPLAY}: sampling {SAMPLERS[sampler]} more than triples TD3+BC's score": (
                score(REPLAY, "td3_bc", sampler) > 3 * score(REPLAY, "td3_bc", "uniform")
            )
            for sampler in SAMPLERS
        },
        f"{MIXED}: the best tenth of the episodes leaves TD3+BC below uniform sampling": (
            score(MIXED, "td3_bc", "top") < score(MIXED, "td3_bc", "uniform")
        ),
    },
    finding="Where one episode in twenty solves Pendulum, sampling by return lifts both algorithms; sampling by "
    "advantage does not: among the few good episodes it prefers those that began where the others did "
    "badly, and learns from fewer of them. On the mixture both samplings learn from the expert's episodes "
    "what uniform sampling does not find; TD3+BC reaches the expert's level with either. On "
    "hopper-medium-replay they multiply TD3+BC's score, while IQL, whose own weights prefer good actions "
    "already, gains nothing there within this budget. The best tenth of the episodes alone fails TD3+BC "
    "on the mixture: the expert's episodes are so long that they are far less than a tenth of the "
    "episodes.",
)
