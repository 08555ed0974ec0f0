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
    makes_data: bool = False
    """Whether the algorithm makes its data itself: it has no --dataset, and `dataset` is only the directory's name."""

    def directory(self, name: str = "", more: Iterable[str] = ()) -> Path:
        """results/<algorithm>/<dataset>/<series>-<variant>-<length>, from the repository's root."""
        length = length_of([*shlex.split(self.arguments), *more])
        name = name or "-".join(filter(None, [self.series, self.variant, length]))
        return Path("results", self.algorithm, self.dataset.replace("/", "-").strip("-"), name)


def length_of(arguments: list[str]) -> str:
    """The last --updates or --env-steps as '100k' or '1500', after '20k+' where --offline-updates came before.

    '1000k' (the scripts' default) where there is none.
    """
    given = dict(zip(arguments, arguments[1:], strict=False))
    steps = short(int(given.get("--env-steps", given.get("--updates", 1_000_000))))
    return f"{short(int(given['--offline-updates']))}+{steps}" if "--offline-updates" in given else steps


def short(n: int) -> str:
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def evaluation_file(run: Path, change: str) -> Path:
    """Where shared.evaluation writes the episodes under changed arguments."""
    return run / ("-".join(["evaluation", *change.split()]) + ".csv")


SEEN = ("seen", "seen in part", "hardly seen", "not seen")


class Claim(NamedTuple):
    """What a paper says its algorithm does, and the runs that show whether it does."""

    slug: str
    """Of its picture's file name."""
    title: str
    paper: str
    """One sentence, with the source."""
    entries: list[Entry]
    finding: str = ""
    """What the runs show, and why where they contradict the paper; its first sentence is one of SEEN."""

    @property
    def seen(self) -> str:
        """How far, in one or two words."""
        return self.finding.split(".")[0].lower()


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
REPLAY, MAZE, MIXED, EXPERT = (
    "hopper-medium-replay",
    "pointmaze-umaze",
    "hopper-random-expert-5",
    "hopper-medium-expert",
)

# Interaction: few lanes, small networks, few steps; one evaluation at the end of the offline phase.
PENDULUM, WEAK, LOCK = "pendulum-mixed", "pendulum-weak", "combination-lock-h10-trajectory"
FEW = f"--seeds 4 --batch-size 128 {TWO}"
BRIEF = f"{FEW} --updates 15000 --eval-every 7500"


def claim(algorithm: str, datasets: Iterable[str], more: str = "", variant: str = "", **kwargs) -> list[Entry]:
    """One job per dataset, in the small form in which claims are checked."""
    return [Entry(algorithm, d, f"{LITTLE} {more}".strip(), variant, "claim", **kwargs) for d in datasets]


BOTH = (REPLAY, MAZE)
CORRUPTIONS = ("obs", "action", "reward", "dynamics")
ATTACKS = tuple(f"attack={a} attack_scale={s}" for a in ("random", "min_q") for s in (0.05, 0.1))
STRONG = tuple(f"attack={a} attack_scale={s}" for a in ("random", "min_q") for s in (0.3, 0.6))

CLAIMS = [
    Claim(
        "riql",
        "RIQL keeps its level where corrupted data costs IQL its own",
        "RIQL (arXiv 2310.12955) claims higher scores than IQL when 30 % of the transitions have noise of one standard "
        "deviation in observations, actions or next observations, or random rewards.",
        [
            *claim("iql", BOTH),
            *claim("riql", BOTH, "--huber-sigma 0.1", "clean"),
            *(
                entry
                for dataset in BOTH
                for kind in CORRUPTIONS
                for entry in (
                    *claim("iql", [dataset], f"--corruption {kind}", kind),
                    *claim("riql", [dataset], f"--preset hopper-{kind}", kind),
                )
            ),
        ],
        "Seen in part. On PointMaze under corrupted rewards IQL falls far below cloning and RIQL stays above it, "
        "and under corrupted dynamics and actions RIQL is ahead, as it is there on clean data; corrupted "
        "observations cost both the same. On hopper-medium-replay it is ahead under corrupted observations only: under "
        "corrupted actions it is level, and under corrupted rewards or dynamics it has not left its first level by "
        "30,000 updates.",
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
        "Seen in part. For TD3+BC it is where the data is poor: on hopper-medium-replay the evaluation policy "
        "scores about twice the target policy of the same critics and twice the mild constraint in the values. Not "
        "on hopper-medium-expert, where half of the data is the expert's and the strict target policy clones it: "
        "the milder policy falls far below it (the mild constraint in the values still further). Not seen for AWAC, "
        "whose evaluation policy ends below the target policy on both sets: at this budget its critics "
        "overestimate, which a policy that maximises Q follows and weighted cloning does not.",
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
            *claim("spot", (MIXED, REPLAY), "--vae-updates 15000 --vae-hidden-dims 128 128"),
            *claim("prdc", (MIXED, REPLAY)),
            *claim("a2pr", (MIXED, REPLAY), "--vae-hidden-dims 128 128 --actor-hidden-dims 128 128"),
        ],
        "Not seen. On the mixture no constraint is better than TD3+BC's, and all four stay far below "
        "what sampling by return makes of TD3+BC itself (trajectory weighting, above): what is missing there is the "
        "weighting of the data, not the form of the constraint. On hopper-medium-replay PRDC is slightly above "
        "TD3+BC, the others are level with it. The papers train for a million updates; at a hundred thousand TD3+BC "
        "itself has twice its score here (benchmark table).",
    ),
    Claim(
        "f-dvl",
        "f-DVL stays stable where XQL's temperature is low",
        "f-DVL (arXiv 2302.08560) claims that its losses do not have the instability of XQL's exponential, and scores "
        "at the level of XQL and IQL or above.",
        [
            *claim("iql", BOTH),
            *claim("f_dvl", BOTH, "--divergence chi_square", "chi-square"),
            *claim("f_dvl", BOTH, "--divergence total_variation --loss-temperature 0.5 0.8", "tv"),
            *claim("f_dvl", [REPLAY], "--preset xql-gym --loss-temperature 0.1 0.5 2 10", "xql"),
            *claim("f_dvl", [MAZE], "--preset xql-pointmaze --loss-temperature 0.1 0.5 2 10", "xql"),
        ],
        "Seen in part. XQL is worst at its lowest temperature on both datasets, by far on "
        "hopper-medium-replay. f-DVL ends above IQL on PointMaze in two of three settings, and below it on "
        "hopper-medium-replay in all. Total variation is as sensitive to its temperature as XQL is.",
    ),
    Claim(
        "crr-plus",
        "CRR+ is better than CRR by its implementation choices",
        "CRR+ (arXiv 2306.00972) claims higher scores than CRR from layer normalisation, small last layers and an "
        "expectile critic.",
        [
            *claim("bc", BOTH),
            *claim("crr_plus", BOTH, "--preset crr --value-samples 4", "crr"),
            *claim("crr_plus", BOTH, "--value-samples 16", "plus"),
        ],
        "Seen in part. On PointMaze CRR+ ends above CRR and CRR above cloning. On hopper-medium-replay the means are "
        "in the same order, but CRR's lanes differ so much that CRR+ lies within their spread.",
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
        "Not seen. After 30,000 updates on hopper-medium-replay CQL+ has the higher mean, but the lanes of both spread "
        "far wider than that; on PointMaze CQL has, within the spread. With 4 sampled actions for both, one of the "
        "four choices (more actions) is not tested here.",
    ),
    Claim(
        "generative",
        "EDP, FQL and OFQL reach Diffusion-QL's score in less time",
        "EDP (arXiv 2305.20081) claims Diffusion-QL's scores (arXiv 2208.06193) at a fraction of its training time; "
        "FQL (arXiv 2502.02538) and OFQL (arXiv 2508.13904) claim them with one-step actions.",
        [
            *claim("diffusion_ql", BOTH),
            *claim("edp", BOTH, "--improvement td3 --max-grad-norm 4", "td3"),
            *claim("edp", [REPLAY], "--improvement crr", "crr"),
            *claim("edp", [REPLAY], "--improvement iql", "iql"),
            *claim("fql", BOTH),
            *claim("ofql", BOTH),
            *claim("ofql", [REPLAY], "--eta 0.3", "eta-0.3"),
        ],
        "Seen in part. The one-step policies hold it: OFQL ends above Diffusion-QL on both datasets, FQL level with "
        "it on hopper-medium-replay and above it on PointMaze, and both need less time per action "
        "(results/action_time.json). EDP is behind Diffusion-QL at this budget: with td3 on both datasets, with crr "
        "and iql on hopper-medium-replay, the only one they were run on. OFQL needs a small eta: with 0.3 its "
        "values grow without bound on hopper-medium-replay. Steps per second do not compare here: the runs shared "
        "the machine with others.",
    ),
    Claim(
        "rorl",
        "RORL loses less than SAC-N under attack on the observations",
        "RORL (arXiv 2206.02829) claims to keep more of its score than SAC-N when the observations that the policy "
        "sees are perturbed at random, or where they lower Q most.",
        [
            *claim("rorl", [REPLAY], "--terms --n-critics 5", "sac-n", evaluations=ATTACKS),
            *claim("rorl", [REPLAY], "--n-critics 5 --n-samples 2", "rorl", evaluations=ATTACKS),
            *(
                Entry("rorl", PENDULUM, f"{BRIEF} {more}", variant, "claim", ATTACKS + STRONG)
                for variant, more in (("sac-n", "--terms --n-critics 5"), ("rorl", "--n-critics 5 --n-samples 2"))
            ),
        ],
        "Hardly seen. On Pendulum both withstand weak attacks, and under strong ones RORL keeps a little more than "
        "SAC-N, within about one standard deviation of the lanes. On hopper-medium-replay neither has learned anything "
        "to lose within this budget, a hundredth of the paper's.",
    ),
]


def interaction(algorithm: str, dataset: str, steps: str, more: str = "", variant: str = "") -> Entry:
    """`steps`: "4000" from the beginning, or "10000+6000" after so many offline updates; evaluated twelve times."""
    offline, _, online = steps.rpartition("+")
    length = f"--env-steps {online} --eval-every {int(online) // 12}"
    if offline:
        length = f"--offline-updates {offline} --offline-eval-every {offline} {length}"
    return Entry(algorithm, dataset, f"{FEW} {length} {more}".strip(), variant, "claim")


def arms(algorithm: str, steps: dict[str, str], common: str, variants: dict[str, str]) -> list[Entry]:
    """A method and its baselines: every variant {name: arguments} on every dataset {name: steps}."""
    return [
        interaction(algorithm, dataset, length, f"{common} {more}".strip(), name)
        for dataset, length in steps.items()
        for name, more in variants.items()
    ]


def lock(algorithm: str, length: str, more: str = "", variant: str = "", quality: str = "trajectory") -> Entry:
    """On the combination lock, whose data the algorithms make themselves."""
    where = LOCK.replace("trajectory", quality)
    return Entry(algorithm, where, f"--horizon 10 --seeds 4 {length} {more}".strip(), variant, "claim", makes_data=True)


HY_Q = "--offline-samples 2000 --env-steps 82500 --eval-every 2750"
HNPG = "--offline-samples 2000 --env-steps 300000 --log-every 5000 --eval-every 50000"
RLPD = "--learning-starts 500 --utd 5 --n-critics 5"
CAL_QL = "--actor-hidden-dims 128 128 --n-actions 4"
WSRL = f"{CAL_QL} --n-critics 3 --eval-episodes 10"
E2O = "--n-actions 4 --learning-starts 500"
PLAIN_E2O = f"{E2O} --online-q-aggregation min --reweight none --exploration policy"

UNI_O4 = (
    "--pretrain-updates 12000 --critic-lr 3e-4 --clone-lr 3e-4 --online-actor-lr 1e-4 --critic-hidden-dims 128 128 "
    "--value-hidden-dims 128 128 --model-hidden-dims 128 128 --n-models 3 --rollout-length 200 --rollout-starts 64 "
    "--steps-per-iteration 1000"
)
SUNG = "--vae-updates 10000 --vae-hidden-dims 128 128"

CLAIMS += [
    Claim(
        "hy-q",
        "Hy-Q opens the lock with few episodes of data, where online or offline learning alone does not",
        "Hy-Q (arXiv 2210.06718) claims to solve the combination lock from both kinds of data; fitted Q iteration on "
        "its own samples only does not find the reward, on the dataset only it is misled by what the data lacks.",
        [
            lock("hy_q", HY_Q, variant="hybrid"),
            lock("hy_q", HY_Q, "--mode online", "online"),
            lock("hy_q", HY_Q, "--mode offline", "offline"),
            lock("hy_q", HY_Q, "--lock-seed 1", "hybrid-lock-1"),
            lock("hy_q", HY_Q, "--lock-seed 1 --mode offline", "offline-lock-1"),
        ],
        "Seen. On the second lock all lanes of the hybrid open it by two fifths of the steps and keep it; on "
        "the first three of four do, and the fourth has not within this budget. From its own samples alone no "
        "lane finds the reward; the dataset alone opens each lock for good in one lane of four, and loses it "
        "again in others.",
    ),
    Claim(
        "hnpg",
        "HNPG opens the lock by policy gradients with offline data",
        "HNPG (arXiv 2311.08384) claims to solve the combination lock where TRPO, which has no offline data, and "
        "learning from the offline data alone fail.",
        [
            lock("hnpg", HNPG, variant="hybrid"),
            lock("hnpg", HNPG, "--mode online", "online"),
            lock("hnpg", HNPG, "--mode offline", "offline"),
        ],
        "Seen. All lanes of the hybrid reach the optimal return; TRPO without offline data and learning from the "
        "offline data alone stay where they began.",
    ),
    Claim(
        "rlpd",
        "RLPD needs a third of the steps of its online-only version",
        "RLPD (arXiv 2302.02948) claims that half of each batch from the dataset, with layer normalisation in the "
        "critics, makes online learning several times more sample-efficient.",
        [
            *arms(
                "rlpd",
                {PENDULUM: "6000", REPLAY: "9000", MAZE: "6000"},
                RLPD,
                {"": "", "online-only": "--online-share 1"},
            ),
            *arms("rlpd", {PENDULUM: "6000", REPLAY: "9000"}, RLPD, {"no-layer-norm": "--no-critic-layer-norm"}),
        ],
        "Seen in part. On PointMaze RLPD is at the online-only version's last score after three quarters of the "
        "steps and ends far above it, with all lanes close together where those of the online-only version spread "
        "from nothing to the top. On hopper-medium-replay it ends at more than three times the score of the online-"
        "only version, which stays where it is from a third of the run on; but RLPD leaves that level only after "
        "two thirds of the run. On Pendulum it is at the top after three quarters of the other's steps. A third of "
        "the steps is seen nowhere. Without layer normalisation it ends at less than half on hopper-medium-replay; "
        "on Pendulum that makes no difference.",
    ),
    Claim(
        "cal-ql",
        "Cal-QL does not dip where CQL dips",
        "Cal-QL (arXiv 2303.05479) claims that CQL's values, kept above the returns of the behaviour policy, do not "
        "unlearn at the onset of fine-tuning.",
        arms("cal_ql", dict.fromkeys(BOTH, "10000+4800"), CAL_QL, {"": "", "cql": "--no-calibrate"}),
        "Seen in part. On hopper-medium-replay CQL loses more than half of its offline level at the onset and "
        "needs two thirds of the run to regain it; Cal-QL does not dip, but begins far lower after these "
        "10,000 updates, and ends level. On PointMaze Cal-QL ends offline well above CQL and rises to twice "
        "its score, after slightly lower first evaluations; CQL stays near where it was and has little to "
        "unlearn.",
    ),
    Claim(
        "wsrl",
        "WSRL fine-tunes without the offline data, given a warm-up",
        "WSRL (arXiv 2412.07762) claims that a short warm-up with the offline policy takes the place of the offline "
        "data: without it fine-tuning without data forgets, and keeping the data slows learning down.",
        arms(
            "wsrl",
            {PENDULUM: "4000+3000", MAZE: "8000+3000", REPLAY: "8000+3000"},
            WSRL,
            {
                "": "--learning-starts 500",
                "no-warm-up": "--learning-starts 0",
                "retention": "--learning-starts 500 --online-share 0.5",
            },
        ),
        "Seen in part. On hopper-medium-replay the score falls to a third at the onset without a warm-up and has "
        "not come back after 3,000 steps; with one the level is kept. On Pendulum it falls by a third without a "
        "warm-up, by a tenth with one, if for longer, and both end at the top without the dataset. On PointMaze all "
        "rise alike to three times their offline level. That keeping the data slows learning down is seen nowhere: "
        "with them the curves are the same within the spread, and on Pendulum, whose data show the whole task, "
        "nothing is lost at all. (Without warm-up, updates here begin at the first transition; the authors wait for "
        "one batch.)",
    ),
    Claim(
        "h2o",
        "H2O beats the wrong simulator alone and the data alone",
        "H2O (arXiv 2206.13464) claims that a simulator with other dynamics and data of the real ones together, with "
        "weights and a penalty by the dynamics gap, give a better policy than either.",
        [
            entry
            for dataset, gravity in ((PENDULUM, "0.3"), (REPLAY, "2"))
            for entry in (
                interaction("h2o", dataset, "12000", f"--sim-gravity {gravity}"),
                *(
                    interaction("h2o", dataset, "12000", f"--sim-gravity {gravity} {more}", variant)
                    for more, variant in (
                        ("--no-weights --no-adaptive --penalty-weight 0", "plain-mix"),
                        ("--sim-share 1 --backup-entropy", "simulator-only"),
                    )
                ),
                Entry("cql", dataset, f"{FEW} --updates 12000 --eval-every 6000 --n-actions 4", "", "claim"),
            )
        ],
        "Seen in part. On Pendulum, in a simulator with a third of the gravity, H2O learns the real task, where the "
        "simulator alone and mixed batches without weights and penalty do not; not seen against the data alone: "
        "these transitions show the whole task, and offline CQL solves it too. On hopper-medium-replay with a "
        "simulator of twice the gravity 12,000 steps are too few for any of the four: all end within two points of "
        "each other.",
    ),
    Claim(
        "moorl",
        "MOORL is at least as good as mixed batches, at less cost than an ensemble",
        "MOORL (arXiv 2506.09574) claims that averaging parameters over offline and online inner loops is better than "
        "training without data or on mixed batches.",
        arms(
            "moorl",
            {PENDULUM: "6000", REPLAY: "12000", MAZE: "12000"},
            "--learning-starts 500",
            {
                "": "",
                "mixed": "--inner-steps 1 --reptile-step 1 --batches mixed",
                "online": "--inner-steps 1 --reptile-step 1 --batches online",
            },
        ),
        "Not seen. On PointMaze the means are in the claimed order at the end, MOORL, mixed batches, no data, but "
        "the lanes of each spread over most of their range. On Pendulum batches mixed half and half learn faster "
        "than alternating inner loops with averaged parameters, which rise later than the same SAC without data, "
        "too, but with far less spread between seeds, and overtake it in the second half. On hopper-medium-replay "
        "all end within two points, mixed batches first. K and the outer step are ours: no code or full settings "
        "were published.",
    ),
    Claim(
        "iql-finetune",
        "IQL improves in fine-tuning without a dip",
        "IQL (arXiv 2110.06169) claims that its weighted regression goes on from offline to online training, and "
        "improves there.",
        [
            *(interaction("iql_finetune", d, "20000+9600") for d in (PENDULUM, *BOTH)),
            interaction("iql_finetune", WEAK, "10000+4800"),
        ],
        "Seen in part. On Pendulum, from data without an expert it goes on to the top without a dip, and where offline "
        "training has reached the top it stays there. In 9,600 steps on hopper-medium-replay and PointMaze "
        "the mean moves up and down around its offline level, by no more than the spread of the lanes.",
    ),
    Claim(
        "rebrac-finetune",
        "ReBRAC fine-tunes best with a decaying penalty",
        "ReBRAC (arXiv 2305.09836, appendix on fine-tuning) claims improvement online when the behaviour-cloning terms "
        "decay to half of their weight, beside constant ones and none (here: none in either phase).",
        arms(
            "rebrac_finetune",
            {PENDULUM: "10000+6000", WEAK: "10000+6000", REPLAY: "10000+4800", MAZE: "10000+4800"},
            "",
            {"decay": "--min-decay 0.5 1", "no-penalty": "--actor-bc 0 --critic-bc 0"},
        ),
        "Not seen. On Pendulum ReBRAC is at the top offline, even without an expert in the data, and stays there "
        "with every penalty and none. On hopper-medium-replay decaying and constant penalties end within each "
        "other's spread, slightly below the offline level; without any the agent starts from nothing and has not "
        "reached them after 4,800 steps. On PointMaze 10,000 offline updates leave nothing to fine-tune (the actor "
        "comes back slowly from the corners of the action space: results/README.md), and 4,800 steps do not change "
        "that. The paper's gains are over a million steps.",
    ),
    Claim(
        "ro2o",
        "RO2O is stable by smoothness and penalties out of the distribution",
        "RO2O (arXiv 2309.16973) claims that smooth policies and Q functions and the penalty on uncertain actions keep "
        "the level of offline training, which the same ensemble without them loses.",
        [
            interaction("ro2o", dataset, steps, f"--n-critics 5 {more} --learning-starts 500", variant)
            for dataset, steps, samples in (
                (PENDULUM, "10000+6000", 5),
                (REPLAY, "5000+3000", 2),
                (MAZE, "5000+3000", 2),
            )
            for more, variant in ((f"--n-samples {samples}", ""), ("--terms", "no-terms"))
        ],
        "Seen in part. On PointMaze the ensemble without the terms loses nearly all of its level at the onset and "
        "ends near it, with a wide spread; with them it loses half at the worst and ends a quarter below it. On "
        "Pendulum both reach the top offline and both lose less than a tenth of it about a third into the online "
        "steps, and return; with the terms that much is lost once more in the last quarter, without them not. On "
        "hopper-medium-replay 5,000 updates teach neither anything.",
    ),
    Claim(
        "famo2o",
        "FamO2O's state-dependent balance is at least the best fixed one",
        "FamO2O (arXiv 2310.17966) claims that a balance between improvement and constraint chosen in each state is "
        "better than IQL's fixed inverse temperature.",
        [
            entry
            for d, steps in ((PENDULUM, "20000+9600"), *((d, "10000+4800") for d in (WEAK, *BOTH)))
            for entry in (
                interaction("famo2o", d, steps),
                interaction("iql_finetune", d, steps, "--beta 1 3 5", "beta"),
            )
        ],
        "Not seen. Where Pendulum's data lack an expert FamO2O is offline within the spread of IQL at three inverse "
        "temperatures, and all of them are at the top after the first tenth or two of the online steps; with the "
        "expert's data they begin there. On hopper-medium-replay it rises from 13 to 18, IQL with all three "
        "temperatures to as much; on PointMaze it loses a little, IQL stays where it is.",
    ),
    Claim(
        "e2o",
        "E2O's ensemble carries pessimistic values over to online training",
        "E2O (arXiv 2306.06871) claims that ten critics do not lose the offline level where two do, and that the "
        "minimum over pairs and exploration by the ensemble's spread then learn faster.",
        [
            *arms(
                "e2o",
                dict.fromkeys((PENDULUM, *BOTH), "5000+3000"),
                PLAIN_E2O,
                {"two": "--n-critics 2", "ten": "--n-critics 10"},
            ),
            interaction("e2o", PENDULUM, "5000+3000", f"{E2O} --n-critics 10 --ucb 1 10", "full"),
            interaction("e2o", PENDULUM, "5000+3000", f"{E2O} --n-critics 10 --exploration policy", "pair-min"),
        ],
        "Seen in part. On Pendulum, after the same few offline updates, ten critics are slightly ahead of two, and "
        "online they are at the top a little sooner and steadier; but neither loses its level for longer than one "
        "evaluation, on data that show the whole task. The full method learns more slowly there, and the cause is "
        "its exploration by upper confidence bounds: with the policy's own, minimum over pairs and weights are as "
        "fast as the plain ensemble; one standard deviation is worse than the authors' ten. On hopper-medium-replay "
        "and PointMaze 5,000 updates leave ten critics as low as two, with little to lose.",
    ),
    Claim(
        "sung",
        "SUNG fine-tunes TD3+BC better than TD3 or TD3+BC does",
        "SUNG (arXiv 2306.07541) claims that exploration by value and uncertainty with a constraint on uncertain "
        "samples only ends above keeping the constraint, and dips less than dropping it.",
        arms(
            "sung",
            dict.fromkeys((PENDULUM, *BOTH), "10000+6000"),
            SUNG,
            {
                "": "",
                "td3": "--online-bc 0 --n-candidates 1 --n-finalists 1",
                "td3-bc": "--online-bc 1 --constrained-share 1 --n-candidates 1 --n-finalists 1",
            },
        ),
        "Seen in part. On Pendulum SUNG ends far above the constraint kept on all samples, and rises at once where "
        "TD3 without exploration by value and constraint first falls; TD3 has caught up after a third of the steps "
        "and ends slightly higher. On PointMaze all three lose most of their offline level, SUNG the most at the "
        "onset, and on average none has regained it after 6,000 steps, though SUNG ends highest. On hopper-medium-"
        "replay all end within each other's spread, and SUNG dips first. Batches are the paper's, nine tenths of "
        "them from the few online transitions.",
    ),
    Claim(
        "uni-o4",
        "Uni-O4 improves over its behaviour cloning, and again online",
        "Uni-O4 (arXiv 2311.03351) claims that steps of PPO judged by a learned model improve the cloned ensemble "
        "offline, and that online PPO goes on without a dip.",
        [
            *(Entry("bc", d, f"{FEW} --updates 12000 --eval-every 6000", "", "claim") for d in (PENDULUM, *BOTH)),
            *arms("uni_o4", dict.fromkeys((PENDULUM, *BOTH), "1000+24000"), UNI_O4, {"": "", "no-gate": "--no-gate"}),
        ],
        "Seen in part. On Pendulum and hopper-medium-replay the offline steps improve over the clones, and more so "
        "with the gate; on PointMaze they do not. From there online PPO rises on all three without a dip, on "
        "hopper-medium-replay by two points only.",
    ),
]

GRID = list(dict.fromkeys([*BENCHMARK, *(entry for one in CLAIMS for entry in one.entries)]))
