"""Every file of results/claims/ held against the raw files: its runs, its checks, its words and its page."""

import ast
import dataclasses
import functools
import inspect
import re
import shlex
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tyro
from conftest import ALGORITHMS, ROOT, load
from test_results import make_run

from results.amount_pictures import amounts_picture
from results.benchmark import changed, make_jobs, state
from results.checks import (
    DEGREES,
    Amounts,
    Claim,
    Missing,
    Quantity,
    Raw,
    Said,
    Table,
    combined,
    course,
    dataset_mean,
    degree,
    dip,
    end,
    end_return,
    fall,
    first_step,
    gain,
    highest,
    holds,
    last_mean,
    logged,
    logged_at,
    lost,
    lowest,
    noise,
    online_mean,
    pace,
    share,
    start,
    under,
    updates_per_s,
    verdict,
)
from results.grid import Entry, claim_files, claims, grid
from results.pages.claims import claim_head, claim_page, overview, settling_table
from results.pictures import digest_in
from shared.arguments import DatasetArgs, float_fields, preset_for
from shared.data import load_dataset
from shared.errors import InputError
from shared.record import value_course
from shared.schedule import chunk_length

FILES, CLAIMS, GRID = Raw(ROOT), claims(ROOT), grid(ROOT)


def numbers_of(text: str) -> set[float]:
    """Every number that stands by itself in a text: "30,000", "0.3", not the 3 of TD3."""
    return {float(x.replace(",", "")) for x in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)", text)}


def test_a_claim_file_has_its_algorithms_name_and_says_something():
    for name, module in claim_files(ROOT).items():
        assert name in {path.stem for path in ALGORITHMS}, f"results/claims/{name}.py belongs to no algorithm"
        assert hasattr(module, "CLAIM") or getattr(module, "BENCHMARK", ()), name


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_rests_on_its_runs(name):
    """Every run is there, or its page says that it is missing; a mean is one of four finite lanes or more."""
    claim = CLAIMS[name]
    assert (
        re.search(r"arXiv \d{4}\.\d{4,5}", claim.paper)
        and claim.checks
        and claim.title.endswith(claim.title.strip("."))
    )
    for comparison in [*claim.checks.values(), *claim.observed.values()]:
        assert comparison.runs <= set(claim.runs)
    page = (ROOT / "results" / "claims" / f"{name}.md").read_text()
    for run in claim.runs:
        if not (ROOT / run.directory() / "run.json").exists():
            assert f"`{run.directory().as_posix()}`" in page.split("Not run yet: ")[1]
            continue
        for row in FILES.rows(run):
            assert len(row.lanes) >= 4 and np.isfinite(row.curve).all(), run


@pytest.mark.parametrize("name", CLAIMS)
def test_what_was_observed_is_so_and_every_check_is_decided(name):
    claim = CLAIMS[name]
    for sentence, comparison in claim.observed.items():
        assert comparison.holds(FILES), f"{name}: {sentence}; {comparison.sides(FILES)}"
    for sentence, comparison in claim.checks.items():
        if all((ROOT / run.directory() / "run.json").exists() for run in comparison.runs) and measured(comparison):
            assert np.isfinite(comparison.sides(FILES)).all() and comparison.holds(FILES) in (True, False), sentence


def measured(comparison) -> bool:
    """Whether what results/goal_distances.py measures of a run's checkpoint is there: it may be made after the run."""
    try:
        comparison.sides(FILES)
    except Missing as missing:
        return "goal_distances.json" not in str(missing)
    return True


@pytest.mark.parametrize("name", CLAIMS)
def test_the_committed_page_says_what_the_checks_say_now(name):
    """A run that is made again and turns a check over fails here, so that the finding is read again."""
    head = claim_head(name, CLAIMS[name], FILES)
    assert degree(CLAIMS[name], FILES).capitalize() in head
    committed = (ROOT / "results" / "claims" / f"{name}.md").read_text()
    assert committed.startswith(head + "\n\n## "), "make report, then read the claim's finding again"


def test_the_overview_is_what_the_checks_say_now():
    assert (ROOT / "results" / "claims" / "README.md").read_text() == overview(ROOT, FILES), "make report"


@pytest.mark.parametrize("name", sorted({run.algorithm for run in GRID}))
def test_the_runs_can_be_made_again(name):
    """Every argument of a run is one of its algorithm, which may have been renamed since, and so is its preset."""
    module = load(name)
    fields = {field.name: field.type for field in dataclasses.fields(module.Args)}
    for run in (run for run in GRID if run.algorithm == name):
        given = shlex.split(run.arguments)
        for flag in (word[2:].replace("-", "_") for word in given if word.startswith("--")):
            off = flag.removeprefix("no_")
            assert flag in fields or fields.get(off) in (bool, "bool"), f"--{flag} of {run.directory()}"
        assert "--preset" not in given or given[given.index("--preset") + 1] in {"none", *module.PRESETS}, (
            run.directory()
        )
        for change in run.evaluations:
            assert {part.split("=")[0] for part in change.split()} <= fields.keys(), run.directory()


@functools.cache
def given_by(cls: type, words: tuple[str, ...]) -> dict:
    """{name: value} of what is given on a command line, by tyro: a parser of no more takes a tenth of the time."""
    named = {word[2:].replace("-", "_").removeprefix("no_") for word in words if word[:2] == "--"}
    fields = [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(cls)]
    given = tyro.cli(dataclasses.make_dataclass("Given", [f for f in fields if f[0] in named]), args=words)
    return {name: getattr(given, name) for name in given.__dataclass_fields__}


def args_of(module: ModuleType, run: Entry):
    """The Args of a run's command line over its preset, but for what may be swept: that decides no schedule."""
    kept, on, swept = [], True, float_fields(module.Args)
    for word in shlex.split(run.arguments):
        on = word[2:].replace("-", "_") not in swept if word[:2] == "--" else on
        kept += [word] * on
    of = "dataset" if issubclass(module.Args, DatasetArgs) else "env"
    given = given_by(module.Args, tuple(kept)) | {of: run.dataset}
    preset = preset_for(run.dataset, module.PRESETS, given.get("preset", "auto")) if of == "dataset" else None
    return module.Args(**module.PRESETS.get(preset, {}) | given)


@functools.cache
def before_the_run(module: ModuleType) -> tuple[list, dict]:
    """What `main` does, in single assignments, that Run's `args`, `unit` and `before` rest on; and the latter two."""
    body = ast.parse(inspect.getsource(module.main)).body[0].body
    opened = next(i for i, statement in enumerate(body) if isinstance(statement, ast.With))
    call = next(n for n in ast.walk(body[opened]) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Run")
    asked = {k.arg: compile(ast.unparse(k.value), k.arg, "eval") for k in call.keywords if k.arg in ("unit", "before")}
    needed, found = {n.id for n in ast.walk(call) if isinstance(n, ast.Name)} - {"data", "act"}, []
    for statement in reversed(body[:opened]):
        parts = [statement]
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple):
            pairs = zip(statement.targets[0].elts, getattr(statement.value, "elts", ()), strict=False)
            parts = [ast.Assign([x], y) for x, y in pairs] or parts
        for part in parts:
            words = [n for n in ast.walk(part) if isinstance(n, ast.Name)]
            if needed & {n.id for n in words if isinstance(n.ctx, ast.Store)}:
                needed |= {n.id for n in words if isinstance(n.ctx, ast.Load)}
                code = ast.unparse(ast.fix_missing_locations(ast.Module([part], [])))
                found.insert(0, compile(code, module.__name__, "exec"))
    return found, asked


def chunk_of(module: ModuleType, run: Entry) -> int:
    """Steps of a chunk, as `main` would ask them of Run; what needs the data is left out.

    Raises:
      InputError: they would be refused.
    """
    args = args_of(module, run)
    names = {**vars(module), "args": args, "limit": LIMITS.get(run.dataset)}
    if horizon := re.search(r"-h(\d+)", run.dataset):
        names["lock"] = SimpleNamespace(horizon=int(horizon[1]))
    statements, asked = before_the_run(module)
    for statement in statements:
        try:
            exec(statement, names)
        except NameError:
            continue
    args, given = names["args"], {"unit": 1, "before": 0} | {name: eval(code, names) for name, code in asked.items()}
    offline = 0 if getattr(args, "from_run", "") else getattr(args, "offline_updates", 0)
    total = args.env_steps if hasattr(args, "env_steps") else args.updates
    return chunk_length(args, total, given["unit"], given["before"], offline)


LIMITS = {"point-guarded-mixed": 80}
"""Steps of an episode, where that is the unit of a run."""


@pytest.fixture
def no_data(monkeypatch):
    def refuse(*_, **__):
        raise NameError("no data is read here")

    for name in {run.algorithm for run in GRID}:
        load(name)  # now: a file that is loaded below would keep what stands in for the function
    for module in list(sys.modules.values()):
        if vars(module).get("load_dataset") is load_dataset:
            monkeypatch.setattr(module, "load_dataset", refuse)


def test_no_run_is_refused_for_its_intervals(no_data):
    """Totals, intervals and what comes before have common divisors that are large enough, and whole units."""
    refused = []
    for run in GRID:
        try:
            chunk_of(load(run.algorithm), run)
        except InputError as error:
            refused.append(f"{run.directory()}: {error}")
    assert not refused, "\n".join(refused)


def test_a_run_that_would_be_refused_is_found(no_data):
    """Of GCPC's claim as it was, with one update of an autoencoder without slots; of a delayed policy, of a round."""
    (run, *_) = (run for run in GRID if run.algorithm == "gcpc" and "--slots 0" in run.arguments)
    assert chunk_of(load("gcpc"), run) == 1000
    once = run._replace(arguments=run.arguments.replace("--autoencoder-updates 0", "--autoencoder-updates 1"))
    with pytest.raises(InputError, match="12000 steps after 1 and --log-every 1000, .* have only 1 as a common"):
        chunk_of(load("gcpc"), once)
    (run, *_) = (run for run in GRID if run.algorithm == "td3_bc")
    with pytest.raises(InputError, match="have only 1 as a common"):
        chunk_of(load("td3_bc"), run._replace(arguments=f"{run.arguments} --log-every 333"))


def test_no_run_was_made_with_other_arguments():
    jobs = make_jobs(GRID, "", [], ROOT)
    assert sum(state(job) == "finished" for job in jobs) > 200
    assert not [f"{job.out}: {changed(job)}" for job in jobs if state(job) == "changed"]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_finding_has_no_typed_degree_and_no_number_of_its_own(name):
    """Its numbers are those of the runs' arguments, of the checks' sentences, or of what is compared."""
    claim = CLAIMS[name]
    assert not re.search("|".join(["^seen", *DEGREES[1:]]), claim.finding.lower())
    checks = claim.checks | claim.observed
    backed = numbers_of(" ".join([*checks, *(run.arguments for run in claim.runs)]))
    assert numbers_of(claim.finding) <= backed


# ------------------------------------------------------------------------------- how it is computed


def test_a_return_is_of_the_rewards_unit_where_scores_are_of_another():
    run = next(r for r in CLAIMS["decision_transformer"].runs if (r.algorithm, r.dataset) == ("bc", "pendulum-mixed"))
    (row,) = FILES.rows(run)
    low, high = (row.record["task"]["reference"][name] for name in ("min", "max"))
    assert row.metric == "score"
    returns = end_return(run).lanes(FILES)
    np.testing.assert_allclose(100.0 * (returns - low) / (high - low), end(run).lanes(FILES), rtol=1e-3)


def constant(x) -> Quantity:
    return combined(lambda y: y, x)


def absent(files: Raw):
    raise Missing("it is not there")


YES, NO, UNKNOWN = constant(1) > 0, constant(0) > 1, Quantity(absent) > 0


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([YES], "seen"),
        ([YES, YES, NO], "seen in part"),
        ([YES, NO], "seen in part"),
        ([YES, NO, NO], "hardly seen"),  # a third is not more than a third
        ([YES, YES, NO, NO, NO], "seen in part"),
        ([NO, NO], "not seen"),
        ([YES, UNKNOWN], "seen in part"),
        ([UNKNOWN, NO], "not seen"),
        ([UNKNOWN, UNKNOWN], "not run yet"),
    ],
)
def test_the_degree_is_the_share_of_checks_that_hold(checks, expected, tmp_path):
    claim = Claim("A title", "A paper.", [], {str(n): check for n, check in enumerate(checks)}, "", {"x": NO})
    assert degree(claim, Raw(tmp_path)) == expected
    assert f"**{expected.capitalize()}**: {checks.count(YES)} of {len(checks)} checks hold" in claim_page(
        "x", claim, Raw(tmp_path)
    )


@pytest.fixture
def run(tmp_path):
    """A fine-tuned run of four lanes [lane, evaluation], its entry, and its files."""
    curves = np.array([[40, 10, 50, 60], [20, 30, 0, 40], [30, 30, 30, 50], [30, 20, 40, 10]], float)
    entry = Entry("iql", "hopper-medium", "--env-steps 6000", "x", "claim", ("a=1",))
    path = make_run(tmp_path, "iql", "hopper-medium", curves[..., None], name=entry.directory().name, env_steps=6000)
    lines = (path / "returns.csv").read_text().splitlines()
    at = lines[0].split(",").index("env_step")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[at] = str((int(row[at - 1]) - 1000) * 2)  # 0, 2000, 4000, 6000
    (path / "returns.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    changed = [f"{lane},{100 + lane},0,0,5,{5 * lane}" for lane in range(4)]
    (path / "evaluation-a=1.csv").write_text("lane,seed,episode,return,length,score\n" + "\n".join(changed) + "\n")
    metrics = [f"{lane},{100 + lane},{step},0,{step * lane}" for step in (1000, 2000) for lane in range(4)]
    (path / "metrics.csv").write_text("lane,seed,update,env_step,q\n" + "\n".join(metrics) + "\n")
    return curves, entry, Raw(tmp_path)


def test_quantities_are_means_over_lanes(run):
    curves, entry, files = run
    known = {
        end(entry): curves[:, -1].mean(),
        start(entry): 30,
        gain(entry): 10,
        online_mean(entry): curves[:, 1:].mean(),
        last_mean(entry): curves[:, -1].mean(),  # of three evaluations
        dip(entry): (30 + 0 + 0 + 10) / 4,  # in the first fifth, of which there is one evaluation
        fall(entry): (30 + 20 + 0 + 20) / 4,
        under("a=1", entry): 7.5,
        lost("a=1", entry): 40 - 7.5,
        logged("q", entry): 2000 * 1.5,
        highest(start(entry), end(entry)): 40,
        lowest(start(entry), end(entry)): 30,
        course(entry)[1:].min(): curves.mean(0)[1:].min(),
        abs(start(entry) - 2 * end(entry)) / 10: 5,
    }
    for quantity, expected in known.items():
        np.testing.assert_allclose(quantity.value(files), expected)
    np.testing.assert_allclose(course(entry).value(files), curves.mean(0))
    errors = [np.std(x, ddof=1) / 2 for x in (curves[:, 0], curves[:, -1])]
    np.testing.assert_allclose(noise(start(entry), end(entry)).value(files), 2 * np.hypot(*errors))


def test_lanes_are_held_against_a_number_or_other_lanes_with_a_margin(run):
    """One-sided t-tests: p is 0.019 and 0.053 of -3.53 and -2.30 standard errors, 0.017 of 3.67, 0.003 of 4.32."""
    _, entry, files = run  # at the start 40, 20, 30, 30; under a=1 0, 5, 10, 15; the data 444 of 1000
    np.testing.assert_allclose(dataset_mean(entry).value(files), 44.4)
    known = {
        verdict(start(entry), dataset_mean(entry)): -1,
        verdict(start(entry), dataset_mean(entry), 5): 0,
        verdict(start(entry), 10, 5): 1,
        verdict(start(entry), under("a=1", entry)): 1,
        verdict(under("a=1", entry), start(entry)): -1,
        verdict(start(entry), under("a=1", entry), 15): 0,
        verdict(start(entry), end(entry)): 0,
    }
    for quantity, expected in known.items():
        assert quantity.value(files) == expected
        assert quantity.runs == {entry}
    assert np.isnan(verdict(start(entry), dataset_mean(entry) * np.nan).value(files))
    some = share([start(entry) > 10, start(entry) > 100, start(entry) > 20])
    np.testing.assert_allclose(some.value(files), 2 / 3)


@pytest.fixture
def swept(tmp_path):
    """Two settings and two seeds, logged at 1000 to 5000 updates: 2 s for 1000, 30 s more after an evaluation."""
    entry = Entry("iql", "hopper-medium", "--updates 5000", "x", "claim")
    lanes = {"alpha": [1.0, 1.0, 2.0, 2.0]}
    path = make_run(tmp_path, "iql", "hopper-medium", np.ones((4, 2, 1)), name=entry.directory().name, swept=lanes)

    def wall_s(update):
        return 7 + update / 500 + 30 * (update > 2000)

    lines = [
        f"{lane},{100 + lane},{lanes['alpha'][lane]},{update},0,{wall_s(update)},{10 * lane + update / 1000}"
        for update in range(1000, 6000, 1000)
        for lane in range(4)
    ]
    (path / "metrics.csv").write_text("\n".join(["lane,seed,alpha,update,env_step,wall_s,gap", *lines]) + "\n")
    return entry, Raw(tmp_path)


def test_a_metric_is_the_mean_of_a_setting_over_the_end_of_the_run(swept):
    entry, files = swept
    for setting, lanes in {"alpha=1": [0, 10], "alpha=2": [20, 30]}.items():
        np.testing.assert_allclose(logged("gap", entry, setting).lanes(files), np.add(lanes, (4 + 5) / 2))
        np.testing.assert_allclose(logged_at(3000, "gap", entry, setting).lanes(files), np.add(lanes, 3))
    with pytest.raises(InputError, match="has logged nothing at update 3,500"):
        logged_at(3500, "gap", entry, "alpha=1").value(files)
    with pytest.raises(InputError, match="has logged no 'gain', but .*gap"):
        logged("gain", entry, "alpha=1").value(files)
    path = files.root / entry.directory() / "metrics.csv"
    path.with_name("offline.csv").write_text(path.read_text().replace("gap", "score"))
    np.testing.assert_allclose(logged("score", entry, "alpha=2", file="offline.csv").lanes(files), [24.5, 34.5])
    with pytest.raises(Missing, match="no before.csv"):
        logged("score", entry, "alpha=2", file="before.csv").value(files)


def test_the_first_step_at_a_level_is_a_lanes_own(swept):
    """Of gaps 10 lane + 1, 2, ..., 5; a lane that never gets there counts with its whole run."""
    entry, files = swept
    path = files.root / entry.directory() / "metrics.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines = [lines[0], *([*a[:3], "0", a[3], *a[5:]] for a in lines[1:])]  # steps of the environment
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    found = first_step("gap", 3.5, entry, "alpha=1", unit=8).lanes(files)
    np.testing.assert_allclose(found, [4000 / 8, 1000 / 8])
    np.testing.assert_allclose(first_step("gap", 24.0, entry, "alpha=1").lanes(files), [5000, 5000])
    with pytest.raises(InputError, match="has logged no 'gain'"):
        first_step("gain", 1.0, entry, "alpha=1").value(files)


def test_values_that_still_move_are_named(swept):
    """q = 10 lane + n after n thousand updates on data alone, of lanes 0 and 1: 8 at two thirds (n = 3), 10 at last."""
    entry, files = swept
    path = files.root / entry.directory() / "metrics.csv"
    run, rows = path.parent, files.rows(entry)
    claim = Claim("t", "arXiv 2000.00000", [entry], {"x": logged("gap", entry, "alpha=1") > 0})
    assert value_course(run, [0, 1]) is None and "had not settled" not in claim_page("iql", claim, files)
    path.write_text(written := path.read_text().replace("gap", "q"))
    assert value_course(run, [0, 1]) == (8.0, 10.0) and value_course(run, [2, 3]) == (28.0, 30.0)
    table = settling_table(rows).splitlines()[2:]
    assert len(table) == 1 and "alpha=1" in table[0] and "8.00 | 10.00" in table[0]  # 28 to 30 is less than a tenth
    path.rename(path.with_name("offline.csv"))
    assert value_course(run, [0, 1]) == (8.0, 10.0)
    path.with_name("offline.csv").unlink()
    path.write_text(written.replace(",0,", ",5,"))  # while it interacts, values move for other reasons
    assert value_course(run, [0, 1]) is None


def test_a_claims_own_table_and_picture_say_what_the_runs_say(swept, tmp_path):
    entry, files = swept
    gone, gap = entry._replace(variant="gone"), logged("gap", entry, "alpha=2")
    words = {25.0: "large", 0.0: "none"}
    table = Table(
        "Gaps",
        ["", "gap", "gone", "word", "other"],
        [["a", gap, logged("gap", gone), Said(gap - 4.5 + 4.5 - 4.5, words), Said(gap, words)]],
    )
    points = {"here": {"0": gap, "5": logged("gap", gone)}, "there": {"5": logged("gap", gone)}}
    picture = Amounts("Gaps against data", "data", "gap", points)
    claim = Claim("t", "arXiv 2000.00000", [entry], {"x": gap > 0}, table=table, amounts=picture)
    page = claim_page("iql", claim, files)
    assert "## Gaps\n\n" in page and "| a | 29.5 | – | large | – |" in page
    assert "![Gaps against data](../curves/amounts-iql.png)" in page
    assert picture.points(files) == {"here": {"0": (29.5, 10.0)}}
    assert "amounts-iql" not in claim_page(
        "iql", claim._replace(runs=[gone], amounts=picture._replace(lines={})), files
    )
    path = tmp_path / "amounts.png"
    path.write_bytes(drawing := amounts_picture("t", "x", "y", picture.points(files), ["0", "5"], path))
    assert drawing[:4] == b"\x89PNG"
    other = amounts_picture("t", "x", "y", {"here": {"0": (29.0, 10.0)}}, ["0", "5"], path)
    assert digest_in(other) != digest_in(drawing)


def test_a_runs_pace_knows_neither_compilation_nor_evaluation(swept):
    entry, files = swept
    np.testing.assert_allclose(pace(entry).value(files), 4 * 1000 / 2)
    path = files.root / entry.directory() / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:13]))
    with pytest.raises(InputError, match="3 rows of metrics for each lane, too few"):
        pace(entry).value(files)


def test_a_comparison_of_curves_holds_everywhere_and_shows_where_it_is_closest(run):
    curves, entry, files = run
    mean = curves.mean(0)  # 30, 22.5, 30, 40
    assert holds(course(entry) > 22, files) and not holds(course(entry)[1:] > course(entry)[0], files)
    assert (course(entry) > 0).sides(files) == (mean.min(), 0)
    assert holds(course(entry)[2] >= course(entry)[0], files) and not holds(course(entry)[2] > start(entry), files)
    assert (end(entry) > start(entry)).runs == {entry}


def test_what_is_not_finite_lets_nothing_hold(run):
    _, entry, files = run
    for comparison in (end(entry) * np.nan > 0, end(entry) * np.nan < 0, course(entry) + [0, np.nan, 0, 0] > 0):
        assert not holds(comparison, files)


def test_what_is_missing_holds_not_and_is_named(run, tmp_path):
    _, entry, files = run
    with pytest.raises(InputError, match="has logged no .v"):
        logged("v", entry).value(files)
    absent = entry._replace(variant="y")
    for quantity, said in (
        (end(absent), "claim-y-6k has not been run"),
        (under("a=2", entry), "was not evaluated under a=2"),
        (updates_per_s("iql"), "results/speed.json has 0 measurements"),
    ):
        assert holds(quantity > 0, files) is None
        with pytest.raises(Missing, match=said):
            (quantity > 0).sides(files)
    (files.root / entry.directory() / "metrics.csv").unlink()
    assert holds(logged("v", entry) > 0, files) is None
    with pytest.raises(Missing, match="what it logged was lost"):
        logged("v", entry).value(files)


def test_a_check_cannot_be_taken_for_a_truth_before_the_files_are_read(run):
    """Python would make `a > b > c` of it, or `a and b`, of which one half is lost in silence."""
    _, entry, _ = run
    with pytest.raises(TypeError, match="state each by itself"):
        end(entry) > start(entry) > 3  # noqa: B015
    with pytest.raises(TypeError, match="no truth"):
        bool(end(entry))
