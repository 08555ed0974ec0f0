"""Tables, learning curves and the report pages, made from the raw files of the runs alone.

    python results/report.py             # everything; what `make report` runs
    python results/report.py --check     # exit 1 if a committed page is not what the raw files say
    python results/report.py RUN_DIR RUN_DIR --picture FILE     # these runs side by side

Reads results/runs/<algorithm>/<dataset>/<run>/{run.json, returns.csv}, results/claims/*.py, results/parity/*.json,
the measurements of speed beside this file, and the docstrings of algorithms/. Writes results/{index.html, tables.md,
speed.md, parity.md}, the pages of results/claims/, results/curves/, and what stands between the markers
`<!-- begin:NAME -->` and `<!-- end:NAME -->` of README.md, algorithms/README.md and results/README.md. A file whose
content would be the same is left alone; a page or picture of a claim that is gone is removed.

A lane's result is the mean over the episodes of its LAST evaluation, never the best over training.
What is read is in results/raw.py, the statistics in results/aggregate.py, what is written in results/pages/.
"""

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.amount_pictures import amounts_name, amounts_picture
from results.checks import Raw
from results.grid import claims
from results.pages.algorithms import algorithms_tables, families_table, finder
from results.pages.claims import claim_page, claim_rows, degrees, drawn, evidence, overview
from results.pages.parity import parity_page
from results.pages.scores import (
    CAPTION,
    comparison_section,
    details_table,
    families_scores,
    pictures,
    score_section,
    selection_section,
    selections,
)
from results.pages.site import page
from results.pages.speeds import speed_section
from results.pages.text import iqm_text, mean_std, number
from results.pages.which import which_page
from results.pictures import (
    appearances,
    claim_picture,
    curves_picture,
    order_of_arms,
    profiles_picture,
    selection_picture,
    slug,
)
from results.plan_pictures import plans_picture, plans_picture_name, values_picture, values_picture_name
from results.raw import (
    Row,
    baselines,
    labels,
    lane_notes,
    online,
    read_plans,
    read_run,
    read_runs,
    read_values,
    runs_of,
)
from shared.checkpoint import replacing
from shared.errors import InputError, nearest

ROOT = Path(__file__).resolve().parents[1]
MADE = "Made by `make report`; do not edit."


def documents(rows: list[Row], left_out: list[str], root: Path, files: Raw) -> dict[Path, str]:
    """{file: its whole text} of everything that is generated, pictures apart."""
    everything, _ = read_runs(root, "*")
    parts = ["# Scores", MADE, CAPTION, score_section(rows, root, compact=False), *left_out]
    parts += comparison_section(rows) + selection_section(everything)
    if rows:
        parts += ["## Runs", details_table(sorted(rows, key=lambda r: r.run), root)]
    results = root / "results"
    pages = {
        results / "tables.md": "\n\n".join(parts) + "\n",
        results / "index.html": page(everything, root, files),
        results / "speed.md": "\n\n".join(["# Speed", MADE, speed_section(root)]) + "\n",
        results / "parity.md": parity_page(root),
        results / "which.md": which_page(everything, root),
        results / "claims" / "README.md": overview(root, files),
    }
    for name, claim in claims(root).items():
        pages[results / "claims" / f"{name}.md"] = claim_page(name, claim, files)
    sections: dict[str, Callable[[], str]] = {
        "scores": lambda: "\n\n".join([score_section(rows, root, compact=True), *left_out, *pictures(rows)]),
        "families": lambda: families_table(root),
        "evidence": lambda: evidence(root, files),
        "finder": lambda: finder(root),
        "algorithms": lambda: algorithms_tables(root, degrees(root, files)),
    }
    for folder in (root, root / "algorithms", results):
        if (path := folder / "README.md").exists():
            pages[path] = replace_sections(path.read_text(), sections)
    return pages


def drawings(rows: list[Row], root: Path, files: Raw) -> dict[Path, bytes]:
    """{file: PNG} of every picture; one that shows the same as the file on disk is that file."""
    folder, found = root / "results" / "curves", {}
    looks = appearances(rows)
    for dataset in sorted({row.dataset for row in rows}):
        path = folder / f"{slug(dataset)}.png"
        found[path] = curves_picture([row for row in rows if row.dataset == dataset], looks, path)
    for name, scores in families_scores(rows).items():
        path = folder / f"profile-{name}.png"
        found[path] = profiles_picture(name, scores, path)
    for dataset, curves in selections(read_runs(root, "*")[0]).items():
        path = folder / f"selection-{slug(dataset)}.png"
        found[path] = selection_picture(dataset, curves, path)
    for name, claim in claims(root).items():
        if group := drawn(claim_rows(claim, files)):
            path = folder / claim_picture(name)
            found[path] = curves_picture(group, order_of_arms(group), path)
        if claim.amounts and (points := claim.amounts.points(files)):
            path, one = folder / amounts_name(name), claim.amounts
            ticks = list(dict.fromkeys(amount for values in one.lines.values() for amount in values))
            found[path] = amounts_picture(one.title, one.x, one.y, points, ticks, path)
    for name, cases in read_plans(root).items():
        path = folder / plans_picture_name(name)
        found[path] = plans_picture(cases, path)
    for name, cases in read_values(root).items():
        path = folder / values_picture_name(name)
        found[path] = values_picture(cases, path)
    return found


def replace_sections(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """`text` with everything between a known name's markers made anew."""
    for name, make in sections.items():
        begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
        if begin in text:
            head, _, tail = text.partition(begin)
            _, found, tail = tail.partition(end)
            if not found:
                raise InputError(f"'{begin}' has no '{end}' after it.")
            text = f"{head}{begin}\n\n{make()}\n\n{end}{tail}"
    return text


def write(made: dict[Path, bytes]) -> list[Path]:
    """Writes what is not on disk yet, to the last byte -> the files written."""
    changed = [path for path, content in made.items() if not path.exists() or path.read_bytes() != content]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(made[path])
    return changed


def outdated(made: set[Path], root: Path) -> list[Path]:
    """Pages and pictures in the generated folders that nothing makes any more."""
    results = root / "results"
    return sorted({*results.glob("curves/*.png"), *results.glob("claims/*.md")} - made)


# -------------------------------------------------------------------------------- the command line


def plain_table(rows: list[Row]) -> str:
    """The rows side by side for a terminal; unfinished runs are shown with what they have."""
    lines = []
    for dataset in sorted({row.dataset for row in rows}):
        group = [row for row in rows if row.dataset == dataset]
        metric = group[0].metric
        head = f"{metric} ± std"
        lines.append(f"{dataset:<36}{head:>18}   {'IQM [95 %]':<24}{'lanes':>5}  {'steps':>10}")
        for label, same in labels(group).items():
            for row in same:
                mark = "†" if row.marked else ""
                step = row.steps["env_step" if online(row) else "update"][-1]
                lines.append(
                    f"{label:<36}{mean_std(row.final, metric) + mark:>18}   "
                    f"{iqm_text(row.final, metric):<24}{len(row.lanes):>5}  {step:>10,}"
                )
        for label, values in baselines(group).items():
            lines.append(f"{label:<36}{number(values[dataset], metric):>18}")
        lines += [line for row in group for line in lane_notes(row)]
        lines.append("")
    return "\n".join(lines).rstrip()


def check(pages: dict[Path, str], root: Path) -> int:
    """0 if every page on disk is what the raw files say, else 1 and the first lines that differ."""
    stale = 0
    for path, text in pages.items():
        old = path.read_text() if path.exists() else ""
        if old != text:
            stale = 1
            name = path.relative_to(root).as_posix()
            print(f"{name} is not what the raw files say; run `make report`.", file=sys.stderr)
            difference = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "made anew", "", n=0)
            print("\n".join(list(difference)[:12]), file=sys.stderr)
    return stale


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("run", nargs="*", type=Path, help="run directories: only print one table of these")
    option("--runs", default="benchmark*", metavar="GLOB", help="runs of the score tables (%(default)s)")
    option("--picture", type=Path, metavar="FILE", help="with run directories: draw their curves")
    option("--check", action="store_true", help="exit 1 if a committed page is out of date")
    args = parser.parse_args(argv)
    try:
        if args.picture and not args.run:
            raise InputError("--picture needs run directories to draw.")
        if args.run:
            for run in args.run:
                if not run.is_dir():
                    siblings = [str(p) for p in sorted(run.parent.glob("*/"))]
                    hint = f"; {nearest(str(run), siblings)}" if siblings else ""
                    raise InputError(f"There is no run directory {run}{hint}.")
            rows = [row for run in args.run for row in read_run(run)]
            if not rows:
                raise InputError("None of these runs has been evaluated.")
            print(plain_table(rows))
            if args.picture:
                write({args.picture: curves_picture(rows, appearances(rows), args.picture)})
                print(f"picture: {args.picture}")
            return 0
        files = Raw(root)
        rows, left_out = read_runs(root, args.runs)
        pages = documents(rows, left_out, root, files)
        if args.check:
            return check(pages, root)
        made = {path: text.encode() for path, text in pages.items()} | drawings(rows, root, files)
        changed = write(made)
        for path in (gone := outdated(set(made), root)):
            path.unlink()
        print(f"{len(runs_of(rows))} runs; of {len(made)} pages and pictures {len(changed)} changed.")
        for path in [*changed, *gone]:
            print(f"  {path.relative_to(root).as_posix()}{'' if path in made else ' (removed)'}")
        print("\n".join(left_out), file=sys.stderr, end="\n" if left_out else "")
        return 0
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
