"""The runs behind every table: what `make benchmark` runs and `make report` reads.

Networks and batches are smaller than the papers', so that several seeds of everything fit a day of two CPU
cores; every other setting is the paper's preset. A finding says whether a claim is seen in the runs; its
numbers stand in the table above it, made from the raw files.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One job."""

    algorithm: str
    dataset: str
    arguments: str
    variant: str = ""
    """Part of the run's name, where one algorithm and dataset have several."""
    series: str = "benchmark"
    """How the run's name begins: `benchmark` stands in the score tables, `claim` only beside its claim."""
    evaluations: tuple[str, ...] = ()
    """Changed arguments under which the finished run is evaluated too: `a=1 b=2`, as shared.evaluation's --set."""

    def directory(self, name: str = "", more: Iterable[str] = ()) -> Path:
        """results/<algorithm>/<dataset>/<series>-<variant>-<updates>, from the repository's root."""
        updates = updates_of([*shlex.split(self.arguments), *more])
        name = name or "-".join(filter(None, [self.series, self.variant, updates]))
        return Path("results", self.algorithm, self.dataset.replace("/", "-").strip("-"), name)


def updates_of(arguments: list[str]) -> str:
    """The last --updates as '100k' or '1500'; '1000k' (the scripts' default) where there is none."""
    given = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--updates"]
    n = int(given[-1]) if given else 1_000_000
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def evaluation_file(run: Path, change: str) -> Path:
    """Where shared.evaluation writes the episodes under changed arguments."""
    return run / ("-".join(["evaluation", *change.split()]) + ".csv")


class Claim(NamedTuple):
    """What a paper says its algorithm does, and the runs that show whether it does."""

    slug: str
    """Of its picture's file name."""
    title: str
    paper: str
    """One sentence, with the source."""
    entries: list[Entry]
    finding: str = ""
    """What the runs show, and why where they contradict the paper."""


SMALL = "--seeds 5 --batch-size 128 --updates 100000 --eval-every 20000"
SHORT = "--seeds 5 --batch-size 128 --updates 30000 --eval-every 10000"
TWO, THREE = "--hidden-dims 128 128", "--hidden-dims 128 128 128"
HOPPER = {
    "bc": f"{SMALL} {TWO}",
    "td3_bc": f"{SMALL} {TWO}",
    "iql": f"{SMALL} {TWO}",
    "cql": f"{SMALL} {TWO} --n-actions 4",
}

# In the order in which they are run.
BENCHMARK = [
    *(Entry(a, d, extra) for d in ("hopper-medium", "hopper-medium-replay") for a, extra in HOPPER.items()),
    *(Entry("bc", d, f"{SMALL} {TWO} --top-fraction 0.1", "top10") for d in ("hopper-medium", "hopper-medium-replay")),
    *(Entry(a, "hopper-medium", f"{SMALL} {THREE}") for a in ("awac", "rebrac")),
    *(Entry(a, "hopper-medium-replay", f"{SMALL} {THREE}") for a in ("awac", "rebrac")),
    Entry("rebrac", "hopper-medium", f"{SHORT} {THREE} --actor-bc 0.01 0.05 0.1"),
    *(Entry(a, "pointmaze-umaze", f"{extra} --eval-episodes 20") for a, extra in HOPPER.items()),
    *(Entry(a, "pointmaze-umaze", f"{SMALL} {THREE} --eval-episodes 20") for a in ("awac", "rebrac")),
    Entry("fql", "pointmaze-umaze", f"{SHORT} {TWO} --eval-episodes 20"),
]

LITTLE = f"--seeds 4 --batch-size 128 --updates 30000 --eval-every 15000 {TWO}"
LONGER = f"--seeds 4 --batch-size 128 --updates 100000 --eval-every 25000 {TWO}"
REPLAY, MAZE, MIXED, EXPERT = (
    "hopper-medium-replay",
    "pointmaze-umaze",
    "hopper-random-expert-5",
    "hopper-medium-expert",
)


def claim(algorithm: str, datasets: Iterable[str], more: str = "", variant: str = "", **kwargs) -> list[Entry]:
    """One job per dataset, in the small form in which claims are checked."""
    return [Entry(algorithm, d, f"{LITTLE} {more}".strip(), variant, "claim", **kwargs) for d in datasets]


BOTH = (REPLAY, MAZE)
CORRUPTIONS = ("obs", "action", "reward", "dynamics")
ATTACKS = tuple(f"attack={a} attack_scale={s}" for a in ("random", "min_q") for s in (0.05, 0.1))

CLAIMS = [
    Claim(
        "riql",
        "RIQL keeps its level where corrupted data costs IQL its own",
        "RIQL (arXiv 2310.12955) claims higher scores than IQL when 30 % of the transitions have noise of one standard "
        "deviation in observations, actions or next observations, or random rewards.",
        [
            *claim("iql", BOTH),
            *claim("riql", BOTH, "--sigma 0.1", "clean"),
            *(
                entry
                for dataset in BOTH
                for kind in CORRUPTIONS
                for entry in (
                    *claim("iql", [dataset], f"--corruption {kind}", kind),
                    *claim("riql", [dataset], f"--preset hopper-{kind}", kind),
                )
            ),
            *(  # where RIQL's absolute error, which is slow to see rare falls, needs more updates than the others
                Entry(algorithm, REPLAY, f"{LONGER} {how}{kind}", kind, "claim")
                for kind in ("reward", "dynamics")
                for algorithm, how in (("iql", "--corruption "), ("riql", "--preset hopper-"))
            ),
        ],
    ),
    Claim(
        "trajectory-weighting",
        "Weighting trajectories finds the few good episodes",
        "Trajectory weighting (arXiv 2306.13085) claims that sampling by return (rw) or advantage (aw) lifts IQL and "
        "TD3+BC where few episodes are good, and costs nothing elsewhere.",
        [
            entry
            for base in ("iql", "td3_bc")
            for sampler in ("uniform", "rw", "aw", "top")
            for entry in claim(
                "trajectory_weighting", (MIXED, REPLAY), f"--base {base} --sampler {sampler}", f"{base}-{sampler}"
            )
        ],
        "Seen. On the mixture both samplings learn from the expert's episodes what uniform sampling does not find; "
        "TD3+BC reaches the expert's level with either. On hopper-medium-replay they multiply TD3+BC's score, while "
        "IQL, whose own weights prefer good actions already, gains nothing there within this budget. The best tenth "
        "of the episodes alone fails TD3+BC on the mixture: the expert's episodes are so long that they are far less "
        "than a tenth of the episodes.",
    ),
    Claim(
        "mcep",
        "MCEP's evaluation policy is better than the policy its values were learned with",
        "MCEP (arXiv 2306.03680) claims that a policy extracted under a milder constraint scores above the target "
        "policy of the same critics, and above a mild constraint in the values too (alpha 10).",
        [
            *claim("mcep", (REPLAY, EXPERT), "--base td3_bc", "td3_bc", evaluations=("act_with=target",)),
            # the paper's 3e-5 leaves the policies as wide as they began for most of so few updates
            *claim(
                "mcep", (REPLAY, EXPERT), "--base awac --awac-actor-lr 3e-4", "awac", evaluations=("act_with=target",)
            ),
            *claim("mcep", (REPLAY, EXPERT), "--alpha 10 --act-with target", "mild-values"),
        ],
        "Seen for TD3+BC where the data is poor: on hopper-medium-replay the evaluation policy scores about twice the "
        "target policy of the same critics and twice the mild constraint in the values. Not on hopper-medium-expert, "
        "where half of the data is the expert's and the strict target policy clones it: the milder policy falls far "
        "below it (the mild constraint in the values still further). Not seen for AWAC, whose evaluation policy ends "
        "below the target policy on both sets: at this budget its critics overestimate, which a policy that maximises "
        "Q follows and weighted cloning does not.",
    ),
    Claim(
        "support",
        "SPOT, PRDC and A2PR beat TD3+BC on mixed data",
        "SPOT (arXiv 2202.06239), PRDC (arXiv 2306.06569) and A2PR (arXiv 2405.19909) each claim scores above TD3+BC: "
        "a constraint to the data's support, to the nearest state-action pair, or to actions better than the policy's "
        "own, in place of the distance to the action that was taken.",
        [
            *claim("bc", (MIXED, REPLAY)),
            *claim("td3_bc", (MIXED, REPLAY)),
            *claim("spot", (MIXED, REPLAY), "--vae-updates 15000 --vae-dims 128 128"),
            *claim("prdc", (MIXED, REPLAY)),
            *claim("a2pr", (MIXED, REPLAY), "--vae-dims 128 128 --actor-hidden-dims 128 128"),
        ],
    ),
    Claim(
        "f-dvl",
        "f-DVL stays stable where XQL's temperature is low",
        "f-DVL (arXiv 2302.08560) claims that its losses do not have the instability of XQL's exponential, and scores "
        "at the level of XQL and IQL or above.",
        [
            *claim("iql", BOTH),
            *claim("f_dvl", BOTH, "--divergence chi_square", "chi-square"),
            *claim("f_dvl", BOTH, "--divergence total_variation --temperature 0.5 0.8", "tv"),
            *claim("f_dvl", [REPLAY], "--preset xql-gym --temperature 0.1 0.5 2 10", "xql"),
            *claim("f_dvl", [MAZE], "--preset xql-pointmaze --temperature 0.1 0.5 2 10", "xql"),
        ],
    ),
    Claim(
        "crr-plus",
        "CRR+ is better than CRR by its implementation choices",
        "CRR+ (arXiv 2306.00972) claims higher scores than CRR from layer normalisation, small last layers and an "
        "expectile critic.",
        [
            *claim("bc", BOTH),
            *claim("crr_plus", BOTH, "--preset crr --n-actions 4", "crr"),
            *claim("crr_plus", BOTH, "--n-actions 16", "plus"),
        ],
    ),
    Claim(
        "cql-plus",
        "CQL+ is better than CQL by its implementation choices",
        "CQL+ (arXiv 2306.00972) claims higher scores than CQL from more sampled actions, small last layers, ELU, and "
        "a slower policy.",
        [
            *claim("cql_plus", BOTH, "--preset cql --n-actions 4", "cql"),
            *claim("cql_plus", BOTH, "--n-actions 4", "plus"),
        ],
    ),
    Claim(
        "generative",
        "EDP, FQL and OFQL reach Diffusion-QL's score in less time",
        "EDP (arXiv 2305.20081) claims Diffusion-QL's scores (arXiv 2208.06193) at a fraction of its training time; "
        "FQL (arXiv 2502.02538) and OFQL (arXiv 2508.13904) claim them with one-step actions.",
        [
            *claim("diffusion_ql", BOTH),
            *claim("edp", BOTH, "--improvement td3 --grad-norm 4", "td3"),
            *claim("edp", BOTH, "--improvement crr", "crr"),
            *claim("edp", BOTH, "--improvement iql", "iql"),
            *claim("fql", BOTH),
            *claim("ofql", BOTH),
        ],
    ),
    Claim(
        "rorl",
        "RORL loses less than SAC-N under attack on the observations",
        "RORL (arXiv 2206.02829) claims to keep more of its score than SAC-N when the observations that the policy "
        "sees are perturbed at random, or where they lower Q most.",
        [
            *claim("rorl", (REPLAY, EXPERT), "--terms --n-critics 5", "sac-n", evaluations=ATTACKS),
            *claim("rorl", (REPLAY, EXPERT), "--n-critics 5 --n-samples 5", "rorl", evaluations=ATTACKS),
        ],
    ),
]

GRID = list(dict.fromkeys([*BENCHMARK, *(entry for one in CLAIMS for entry in one.entries)]))
