"""results/claims/: each paper's claim, its checks, and the runs side by side."""

from pathlib import Path
from statistics import fmean

from results.amount_pictures import amounts_name
from results.checks import DEGREES, RULE, Claim, Comparison, Missing, Quantity, Raw, Table, degree, holds
from results.grid import claims, evaluation_file
from results.pages.algorithms import Algorithm, algorithms
from results.pages.scores import CAPTION
from results.pages.text import budget, iqm_text, markdown, mean_std
from results.pictures import claim_picture
from results.plan_pictures import plans_picture_name, values_picture_name
from results.raw import Row, baselines, online, read_evaluation, read_plans, read_values
from shared.evaluation import fine_tuning
from shared.record import unsettled, value_course

NO_CLAIM = "no claim yet"
UNSETTLED = (
    "Over the last third of the updates on data alone the mean value of these runs changed by more than a tenth: what "
    "is far away was not yet known in full, and a longer run, or targets that follow faster (--tau), may end elsewhere."
)


def claim_rows(claim: Claim, files: Raw) -> list[Row]:
    """The finished runs of a claim, in its order, each followed by its evaluations under changed arguments."""
    rows = []
    for entry in dict.fromkeys(claim.runs):
        try:
            own = files.rows(entry)
        except Missing:
            continue
        rows += own
        for change in entry.evaluations:
            if evaluation_file(files.root / entry.directory(), change).exists():
                rows += [read_evaluation(row, change) for row in own]
    return rows


def checks_table(checks: dict[str, Comparison], files: Raw) -> str:
    """Each sentence with the two numbers that are compared."""
    body = []
    for sentence, comparison in checks.items():
        try:
            left, right = comparison.sides(files)
            decimals = 1 if max(abs(left), abs(right)) >= 10 else 2
            numbers = f"{left:,.{decimals}f} {comparison.sign.replace('<', '&lt;')} {right:,.{decimals}f}"
        except Missing as error:
            numbers = f"– ({error})"
        body.append([sentence, numbers, {True: "yes", False: "**no**", None: "not run yet"}[holds(comparison, files)]])
    return markdown(["check", "compared", "holds"], body)


def claim_table(rows: list[Row]) -> str:
    body = []
    for row in sorted(rows, key=lambda r: r.dataset):  # stable: the claim's own order within a dataset
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        score = mean_std(row.final, row.metric) + (" †" if row.marked else "")
        body.append(
            [row.dataset, name, score, iqm_text(row.final, row.metric) or "–", f"{len(row.lanes)} × {budget(row)}"]
        )
    for label, values in baselines(rows).items():
        body += [[d, f"*{label}*", f"{value:.1f}", "", ""] for d, value in values.items()]
    body.sort(key=lambda cells: cells[0])
    return markdown(["dataset", "run", "score", "IQM [95 %]", "lanes × budget"], body)


def fine_tuning_table(rows: list[Row]) -> str:
    """What interaction did to the policies of offline runs; empty where there are none."""
    rows = [row for row in rows if online(row) and row.steps["env_step"].any()]
    body = []
    for row in sorted(rows, key=lambda r: r.dataset):
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        result = fine_tuning(row.steps["env_step"], row.curve.T, row.metric == "score")
        regret = iqm_text(100 * result.regret, row.metric)
        cells = [iqm_text(x, row.metric) for x in (result.offline, result.dip, result.final)]
        body.append([row.dataset, name, *(text or "–" for text in (*cells, regret))])
    header = ["dataset", "run", "end of offline training", "dip at the onset", "final", "100 × cumulative regret"]
    return markdown(header, body) if body else ""


def settling_table(rows: list[Row]) -> str:
    """Runs on data alone whose values still moved: by more than a tenth over the last third of the updates."""
    body = []
    for row in sorted(drawn(rows), key=lambda r: r.dataset):
        course = value_course(row.run, row.lanes)
        if not unsettled(course):
            continue
        name = " ".join(filter(None, [row.algorithm, row.setting, f"({row.run.name})"]))
        body.append([row.dataset, name, *(f"{x:,.2f}" for x in course)])
    return markdown(["dataset", "run", "mean value at two thirds", "at the end"], body) if body else ""


def claim_head(name: str, claim: Claim, files: Raw) -> str:
    """What the paper says, how far it is seen, the checks, and what was found."""
    held = [holds(comparison, files) for comparison in claim.checks.values()]
    parts = [
        f"# {claim.title}",
        f"Made by `make report` from the raw files; the runs and checks: [{name}.py]({name}.py).",
        claim.paper,
        f"**{degree(claim, files).capitalize()}**: {held.count(True)} of {len(held)} checks hold "
        "([how this is computed](README.md)).",
        checks_table(claim.checks, files),
        *([claim.finding] if claim.finding else []),
        *(["What else this rests on:", checks_table(claim.observed, files)] if claim.observed else []),
    ]
    return "\n\n".join(parts)


def claim_page(name: str, claim: Claim, files: Raw) -> str:
    """The head, then the runs side by side and their curves."""
    rows = claim_rows(claim, files)
    parts = [
        claim_head(name, claim, files),
        *(["## " + claim.table.caption, table_of(claim.table, files)] if claim.table else []),
        *(amounts_section(name, claim, files) if claim.amounts else []),
        "## Runs",
        *([CAPTION, claim_table(rows)] if rows else ["No finished runs."]),
        *([f"![{claim.title}](../curves/{claim_picture(name)})"] if drawn(rows) else []),
        *([table] if (table := fine_tuning_table(rows)) else []),
        *(["## Values that had not settled", UNSETTLED, table] if (table := settling_table(rows)) else []),
        *plans_section(name, files.root),
        *values_section(name, files.root),
    ]
    missing = [e for e in claim.runs if not (files.root / e.directory() / "run.json").exists()]
    if missing:
        parts += [f"Not run yet: {', '.join(f'`{e.directory().as_posix()}`' for e in missing)}."]
    return "\n\n".join(parts) + "\n"


def table_of(table: Table, files: Raw) -> str:
    """The claim's own table; a dash where a run is missing."""

    def text(cell) -> str:
        try:
            if isinstance(cell, Quantity):
                return f"{float(cell.value(files)):,.1f}"
            return cell(files) if callable(cell) else cell
        except Missing:
            return "–"

    return markdown(table.header, [[text(cell) for cell in row] for row in table.rows])


def amounts_section(name: str, claim: Claim, files: Raw) -> list[str]:
    """The claim's picture against an amount; nothing where no run is there."""
    if not claim.amounts.points(files):
        return []
    note = "Means over lanes and two standard errors; a lane that never gets there counts with its whole run."
    return [f"## {claim.amounts.title}", f"![{claim.amounts.title}](../curves/{amounts_name(name)})", note]


def plans_section(name: str, root: Path) -> list[str]:
    """The picture of an algorithm's plans or samples, and how the runs that made them were made; or nothing."""
    cases = read_plans(root).get(name, [])
    if not cases:
        return []
    how = "\n".join(f"    {case['command']}" for case in cases)
    picture = f"![Plans or samples of {name}](../curves/{plans_picture_name(name)})"
    note = "A dot: where a path begins; a cross: where it ends. Made by `results/plans.py` of these runs:"
    return ["## Over the maze", picture, note, how]


def values_section(name: str, root: Path) -> list[str]:
    """The picture of an algorithm's values over the maze; or nothing."""
    cases = read_values(root).get(name, [])
    if not cases:
        return []
    picture = f"![Values of {name}](../curves/{values_picture_name(name)})"
    note = (
        "For the goal at the cross, of the first lane: the lighter, the nearer. How well they rank the ways to goals "
    )
    note += "(Spearman, mean of the lanes), by `results/goal_distances.py`: "
    ranked = "; ".join(f"`{case['run']}` {fmean(case['correlation']):.2f}" for case in cases)
    return ["## Values over the maze", picture, f"{note}{ranked}."]


def drawn(rows: list[Row]) -> list[Row]:
    """Those with a curve: an evaluation under changed arguments is one point."""
    return [row for row in rows if row.curve.shape[1] > 1]


def overview(root: Path, files: Raw) -> str:
    """One line per claim, by family."""
    parts = ["# What the papers claim, and how far it is seen here"]
    parts += ["Made by `make report`; do not edit. One file for each algorithm says what is checked.", RULE]
    found = claims(root)
    for family, members in by_family(root).items():
        body = []
        for member in members:
            if claim := found.get(member.name):
                held = sum(holds(comparison, files) is True for comparison in claim.checks.values())
                datasets = ", ".join(dict.fromkeys(row.dataset.split("+")[0] for row in claim_rows(claim, files)))
                link = f"[{claim.title}]({member.name}.md)"
                body.append(
                    [member.title, link, degree(claim, files), f"{held} of {len(claim.checks)}", datasets or "–"]
                )
        if body:
            header = ["algorithm", "claim", "how far", "checks that hold", "on"]
            parts += [f"## {family.replace('_', ' ').capitalize()}", markdown(header, body)]
        if without := [member.title for member in members if member.name not in found]:
            parts += [] if body else [f"## {family.replace('_', ' ').capitalize()}"]
            parts += [f"No claim yet: {', '.join(without)}."]
    return "\n\n".join(parts) + "\n"


def by_family(root: Path) -> dict[str, list[Algorithm]]:
    families: dict[str, list[Algorithm]] = {}
    for one in algorithms(root):
        families.setdefault(one.family, []).append(one)
    return families


def degrees(root: Path, files: Raw) -> dict[str, str]:
    """{algorithm: how far its claim is seen}."""
    return {name: degree(claim, files) for name, claim in claims(root).items()}


def evidence(root: Path, files: Raw) -> str:
    """How many claims of each family are seen how far."""
    found = degrees(root, files)
    body = []
    for family, members in by_family(root).items():
        own = [found.get(member.name, NO_CLAIM) for member in members]
        body.append([family.replace("_", " "), *(str(own.count(one) or "–") for one in (*DEGREES, NO_CLAIM))])
    totals = [sum(int(row[n]) for row in body if row[n] != "–") for n in range(1, len(DEGREES) + 2)]
    body.append(["all", *(str(total or "–") for total in totals)])
    return markdown(["family", *DEGREES, NO_CLAIM], body)
