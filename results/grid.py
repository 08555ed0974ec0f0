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

CLAIMS: list[Claim] = []

GRID = list(dict.fromkeys([*BENCHMARK, *(entry for claim in CLAIMS for entry in claim.entries)]))
