"""The runs behind every table: what `make benchmark` makes and `make report` reads.

No run is named here. Each file of results/claims/ belongs to one algorithm and gives its runs: `BENCHMARK`, a
list of entries for the score tables, and `CLAIM`, what its paper claims (results/checks.py). Whoever needs all of
them asks `grid` and `claims`, which read the folder.

Networks and batches are smaller than the papers', so that several seeds of everything fit a day of two CPU cores;
every other setting is the paper's preset.
"""

import functools
import importlib.util
import shlex
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


SMALLER = ("--seeds", "--batch-size", "--hidden-dims", "--updates", "--eval-every", "--n-actions")
"""Arguments by which the runs here are smaller than the papers'."""


class Entry(NamedTuple):
    """One job."""

    algorithm: str
    dataset: str
    """Or the environment, where an algorithm has no dataset (algorithms/online/)."""
    arguments: str
    variant: str = ""
    """Part of the run's name, where one algorithm and dataset have several."""
    series: str = "benchmark"
    """How the run's name begins: `benchmark` stands in the score tables, `claim` only beside its claim."""
    evaluations: tuple[str, ...] = ()
    """Changed arguments under which the finished run is evaluated too: `a=1 b=2`, as shared.evaluation's --set."""

    def full(self) -> "Entry":
        """The same run at its file's own sizes: what only made it small is gone, ten seeds, evaluated ten times."""
        words, kept = shlex.split(self.arguments), []
        while words:
            flag = words.pop(0)
            values = [words.pop(0) for _ in range(next((i for i, w in enumerate(words) if w[:2] == "--"), len(words)))]
            kept += [] if flag in SMALLER else [flag, *values]
        arguments = shlex.join(["--seeds", "10", "--eval-every", "100000", *kept])
        return self._replace(arguments=arguments)

    def directory(self, name: str = "", more: Iterable[str] = ()) -> Path:
        """results/runs/<algorithm>/<dataset>/<series>-<variant>-<length>, from the repository's root."""
        length = length_of([*shlex.split(self.arguments), *more])
        name = name or "-".join(filter(None, [self.series, self.variant, length]))
        return Path("results", "runs", self.algorithm, self.dataset.replace("/", "-").strip("-"), name)


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


# ------------------------------------------------------------------ the usual sizes of a run

SMALL = "--batch-size 128 --hidden-dims 128 128"


def benchmark(
    algorithm: str, dataset: str, more: str = "", variant: str = "", updates: int = 100_000, layers: int = 2
) -> Entry:
    """A run of the score tables: five seeds, layers of 128."""
    every = updates // 5 if updates > 30_000 else updates // 3
    length = f"--seeds 5 --batch-size 128 --updates {updates} --eval-every {every}"
    dims = " ".join(["--hidden-dims", *["128"] * layers])
    return Entry(algorithm, dataset, f"{length} {dims} {more}".strip(), variant)


def ogbench(algorithm: str, dataset: str, more: str = "", updates: int = 50_000) -> Entry:
    """A run on OGBench's own data, in networks of the published sizes and batches of 256: four seeds.

    Of the published million updates a part; ten episodes of each task, not fifty.
    """
    length = f"--seeds 4 --batch-size 256 --updates {updates} --eval-every {updates // 2} --eval-episodes 10"
    return Entry(algorithm, dataset, f"{length} {more}".strip())


def ogbench_small(algorithm: str, dataset: str, more: str = "", updates: int = 30_000) -> Entry:
    """The same, small enough for a CPU: two layers of 256.

    `more`: the hyperparameters that stand beside the published figures (arXiv 2502.02538), where the file's differ.
    """
    length = f"--seeds 4 --batch-size 256 --updates {updates} --eval-every {updates // 3} --eval-episodes 10"
    return Entry(algorithm, dataset, f"{length} --hidden-dims 256 256 {more}".strip())


def ogbench_task(algorithm: str, more: str = "") -> Entry:
    """What the algorithms without goals are held against published figures on."""
    return ogbench_small(algorithm, "ogbench-cube-single-play-singletask", more)


def ogbench_goals(algorithm: str) -> list[Entry]:
    """And those with goals."""
    large = [ogbench(algorithm, d) for d in OGBENCH_GOALS]
    return [*large, ogbench_small(algorithm, "ogbench-pointmaze-medium-stitch", updates=15_000)]


OGBENCH_GOALS = [
    f"ogbench-{data}" for data in ("pointmaze-medium-navigate", "pointmaze-large-navigate", "cube-single-play")
]


def offline(
    algorithm: str, dataset: str, more: str = "", variant: str = "", updates: int = 30_000, evaluations=()
) -> Entry:
    """An offline run in the small form in which claims are checked: four seeds, two layers of 128."""
    length = f"--seeds 4 --updates {updates} --eval-every {updates // 2}"
    return Entry(algorithm, dataset, f"{length} {SMALL} {more}".strip(), variant, "claim", tuple(evaluations))


FAST = "--tau 0.02 --discount 0.98 --critic-lr 1e-3 --actor-lr 1e-3"
"""For 10,000 updates on Pendulum, after which values are farther from settled with the presets' rates."""


SETTLING = "--tau 0.02 --critic-lr 1e-3 --actor-lr 1e-3"
"""For 30,000 updates on hopper, after which values are far from settled with the presets' rates."""


def interaction(algorithm: str, dataset: str, steps: str, more: str = "", variant: str = "") -> Entry:
    """`steps`: "4000" from the beginning, or "10000+6000" after so many offline updates; evaluated twelve times."""
    before, _, online = steps.rpartition("+")
    length = f"--env-steps {online} --eval-every {int(online) // 12}"
    if before:
        length = f"--offline-updates {before} --offline-eval-every {before} {length}"
    return Entry(algorithm, dataset, f"--seeds 4 {SMALL} {length} {more}".strip(), variant, "claim")


def worlds(
    algorithm: str, dataset: str, length: str, more: str = "", variant: str = "", seeds: int = 8, compiled: bool = True
) -> Entry:
    """A run in a small world: eight seeds, two layers of 64, batches of 64.

    Pendulum is the one written in JAX, for which there is no reference pair: results are returns.
    `length`: "2000" environment steps, or "5000+3000" after so many offline updates; evaluated ten times online.
    `compiled`: False where an algorithm steps its environments one by one, for which Pendulum in NumPy is faster.
    """
    before, _, online = length.rpartition("+")
    arguments = f"--env-steps {online} --eval-every {int(online) // 10} --log-every {int(online) // 10}"
    if before:
        arguments = f"--offline-updates {before} --offline-eval-every {before} {arguments}"
    env = " --env phys2d/Pendulum-v0" if compiled and dataset.startswith("pendulum") else ""
    sizes = f"--batch-size 64 --hidden-dims 64 64 --eval-episodes 20{env}"
    return Entry(algorithm, dataset, f"--seeds {seeds} {sizes} {arguments} {more}".strip(), variant, "claim")


def goals(algorithm: str, dataset: str, more: str = "", variant: str = "", updates: int = 12_000) -> Entry:
    """A run of goals or examples on a point world: eight seeds, two layers of 64, ten episodes of each task."""
    length = f"--seeds 8 --updates {updates} --eval-every {updates // 2} --eval-episodes 10"
    sizes = "--batch-size 256 --hidden-dims 64 64"
    return Entry(algorithm, dataset, f"{length} {sizes} {more}".strip(), variant, "claim")


def small(
    algorithm: str,
    more: str = "",
    variant: str = "",
    dataset: str = "pendulum-mixed",
    updates: int = 10_000,
    evaluations: Iterable[str] = (),
) -> Entry:
    """An offline run on the smallest problems: eight seeds, two layers of 64, evaluated in an environment of JAX.

    No preset, so that two algorithms differ in nothing but what is given here. On Pendulum results are returns.
    """
    length = f"--seeds 8 --updates {updates} --eval-every {updates // 2} --eval-episodes 20"
    where = "--env phys2d/Pendulum-v0" if dataset.startswith("pendulum") else ""
    sizes = "--preset none --batch-size 128 --hidden-dims 64 64"
    arguments = " ".join(filter(None, [length, where, sizes, more]))
    return Entry(algorithm, dataset, arguments, variant, "claim", tuple(evaluations))


def replay(algorithm: str, more: str = "", variant: str = "", updates: int = 20_000, batch_size: int = 128) -> Entry:
    """A run on hopper-medium-replay beside others of its size: eight seeds, two layers of 64, the papers' presets.

    Step sizes are larger than the papers', and the same in all: so few updates of those lead nowhere.
    """
    length = f"--seeds 8 --updates {updates} --eval-every {updates // 2}"
    sizes = f"--batch-size {batch_size} --hidden-dims 64 64 --critic-lr 1e-3 --actor-lr 1e-3 --tau 0.01"
    return Entry(algorithm, "hopper-medium-replay-v0", f"{length} {sizes} {more}".strip(), variant, "claim")


def replay_bc(updates: int = 20_000, batch_size: int = 128) -> Entry:
    """Cloning beside those: it has no critic."""
    length = f"--seeds 8 --updates {updates} --eval-every {updates // 2}"
    sizes = f"--batch-size {batch_size} --hidden-dims 64 64 --actor-lr 1e-3"
    return Entry("bc", "hopper-medium-replay-v0", f"{length} {sizes}", "small", "claim")


MODEL = "--model-hidden-dims 64 64 --model-updates 10000 --rollout-batch 2000"
"""Of `replay`, where a model is learned."""

WALL = "point-umaze-dense-expert"
WALL_RATES = "--tau 0.02 --discount 0.97 --critic-lr 1e-3 --actor-lr 1e-3"


def behind_the_wall(algorithm: str, more: str = "", variant: str = "") -> Entry:
    """A model-based run where what the model makes up decides: eight seeds, two layers of 64.

    The straight way to the goal is shorter, and leads through a wall that the data never touch.
    """
    length = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 --model-updates 3000"
    length += " --updates 10000 --rollout-batch 1000 --eval-every 5000 --eval-episodes 10"
    return Entry(algorithm, WALL, f"{length} {WALL_RATES} {more}".strip(), variant, "claim")


# ------------------------------------------------------------------ the files of results/claims/


def claim_files(root: Path = ROOT) -> dict[str, ModuleType]:
    """{algorithm: the module of its file}, by name."""
    return {path.stem: load(path) for path in sorted((root / "results" / "claims").glob("*.py"))}


def load(path: Path) -> ModuleType:
    return loaded(path, path.read_text())


@functools.cache
def loaded(path: Path, source: str) -> ModuleType:
    """One module as long as the file says the same: a comparison that was made is known by its object."""
    spec = importlib.util.spec_from_file_location(f"claim_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claims(root: Path = ROOT) -> dict:
    """{algorithm: its Claim}, of those whose file has one."""
    return {name: module.CLAIM for name, module in claim_files(root).items() if hasattr(module, "CLAIM")}


def grid(root: Path = ROOT) -> list[Entry]:
    """Every run that a file of results/claims/ names, once; those of the score tables first."""
    files = claim_files(root).values()
    tables = [entry for module in files for entry in getattr(module, "BENCHMARK", ())]
    beside = [entry for module in files if hasattr(module, "CLAIM") for entry in module.CLAIM.runs]
    return list(dict.fromkeys([*tables, *beside]))


def full_grid(root: Path = ROOT) -> list[Entry]:
    """The score tables' runs at the papers' sizes (`make benchmark-gpu`)."""
    files = claim_files(root).values()
    return list(dict.fromkeys(entry.full() for module in files for entry in getattr(module, "BENCHMARK", ())))
