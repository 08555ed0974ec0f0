"""results/: tables from known numbers, and the benchmark's bookkeeping. Nothing is trained here."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import benchmark, raw, report, sides
from results.checks import Raw
from results.grid import Entry
from results.pages.claims import evidence
from results.pages.speeds import share_table, speed_section
from results.pages.which import which_page
from results.pictures import order_of_arms, short_labels, slug
from results.step_profile import KINDS
from shared.errors import InputError

ALGORITHM = '''"""{title}

Fujimoto and Gu, "A Minimalist Approach to Offline RL", NeurIPS 2021, arXiv 2106.06860. Then prose.

Choose it when the data are
good and you are in a hurry.

Deviations from the paper: none, and arXiv 9999.99999 is not its number.
"""

from shared.arguments import Float, OfflineArgs, hyperparameters


@hyperparameters
class Args(OfflineArgs):
    alpha: Float = 2.5
    batch_size: int = 256
    hidden_dims: tuple[int, ...] = (256, 256)

_shared = {{"batch_size": 512}}
PRESETS: dict = {{**dict.fromkeys(("walker2d", "ant"), _shared)}}
'''


def make_run(
    root: Path,
    algorithm: str,
    dataset: str,
    scores: list,
    name: str = "benchmark",
    swept: dict[str, list[float]] | None = None,
    diverged: dict[str, int] | None = None,
    status: str = "finished",
    reference: bool = True,
    data_hash: str = "0123456789abcdef",
    **args,
) -> Path:
    """A run directory with `scores` [lanes, evaluations, episodes]; return = 10 score."""
    run = root / "results" / "runs" / algorithm / dataset / name
    run.mkdir(parents=True)
    scores = np.asarray(scores, float)
    settings = swept or {}
    lanes = [{"lane": i, "seed": 100 + i, **{k: v[i] for k, v in settings.items()}} for i in range(len(scores))]
    record = {
        "algorithm": algorithm,
        "file": f"algorithms/offline/{algorithm}.py",
        "status": status,
        "command": f"algorithms/offline/{algorithm}.py --dataset {dataset}",
        "args": {"updates": 3000, "batch_size": 256, "hidden_dims": [256, 256], "alpha": 2.5}
        | {"eval_episodes": scores.shape[2], "preset": "auto"}
        | {k: sorted(set(v)) for k, v in settings.items()}
        | args,
        "task": {
            "id": dataset,
            "hash": data_hash,
            "env": f"{dataset.split('-')[0].capitalize()}-v5",
            "reference": {"min": 0.0, "max": 1000.0} if reference else None,
            "baselines": {"dataset mean": 444.0, "dataset best episode": 888.0},
        },
        "lanes": lanes,
        "diverged": diverged or {},
        "steps_done": 3000,
        "versions": {"jax": "0.10.2"},
        "hardware": {"device": "cpu", "devices": 2, "cpu": "x86_64", "cores": 2},
        "compile_s": 2.0,
        "wall_s": 12.0,
        "peak_memory_mib": 900,
    }
    (run / "run.json").write_text(json.dumps(record))
    with (run / "returns.csv").open("w") as f:
        rows = csv.writer(f, lineterminator="\n")
        header = ["lane", "seed", *settings, "update", "env_step", "episode", "return", "length"]
        rows.writerow([*header, "score"])
        for t in range(scores.shape[1]):
            for lane in lanes:
                for episode, score in enumerate(scores[lane["lane"], t]):
                    row = [*lane.values(), 1000 * (t + 1), 0, episode, 10 * score, 7]
                    rows.writerow([*row, score if reference else "nan"])
    return run


def write_algorithm(root: Path, name: str, title: str = "TD3+BC: TD3 with a cloning term.") -> None:
    path = root / "algorithms" / "offline" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ALGORITHM.format(title=title))


def table_of(root: Path) -> dict[str, list[str]]:
    """The score tables of tables.md: {first cell: the other cells}."""
    assert report.main([], root) == 0
    text = re.split("## (Comparisons|Choosing|Runs)", (root / "results" / "tables.md").read_text())[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


RISES_THEN_FALLS = [  # [4 lanes, 3 evaluations, 2 episodes]; the last is not the best
    [[5, 7], [90, 94], [10, 14]],
    [[5, 7], [90, 94], [20, 24]],
    [[5, 7], [90, 94], [30, 34]],
    [[5, 7], [90, 94], [80, 84]],
]


def test_last_evaluation_mean_std_and_iqm(tmp_path):
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS)
    table = table_of(tmp_path)
    lanes = np.array([12.0, 22.0, 32.0, 82.0])
    assert lanes.mean() == 37.0 and round(lanes.std(), 1) == 26.9  # not over the eight episodes
    cell = table["td3_bc"][0]
    assert cell.startswith("37.0 ± 26.9<br>IQM 27.0 [")  # (22 + 32) / 2
    assert cell.endswith("4 lanes × 3k updates")
    assert table["*dataset mean*"] == ["44.4"] and table["*dataset best episode*"] == ["88.8"]


def test_published_figures_stand_beside_ours(tmp_path):
    for algorithm in ("iql", "td3_bc"):
        run = make_run(tmp_path, algorithm, "ogbench-cube-single-play-singletask", RISES_THEN_FALLS)
        record = json.loads((run / "run.json").read_text())
        record["task"]["data"] = {"rows": 200_000}
        (run / "run.json").write_text(json.dumps(record))
    table = table_of(tmp_path)
    assert table["*published: iql*"] == ["85"]  # of that task; the mean of five is 83
    assert not [label for label in table if "published" in label and "iql" not in label]
    text = (tmp_path / "results" / "tables.md").read_text()
    assert text.count("*Published*: Park, Li, Levine: Flow Q-Learning") == 1 and "8 seeds; 512x512x512x512" in text
    assert "Rows that were learned from here: 200,000 of ogbench-cube-single-play-singletask; the published" in text


def test_returns_of_a_dataset_that_are_not_known_are_not_shown(tmp_path):
    run = make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS)
    record = json.loads((run / "run.json").read_text())
    record["task"]["baselines"] = {"dataset mean": float("nan"), "dataset best episode": 888.0}
    (run / "run.json").write_text(json.dumps(record))
    table = table_of(tmp_path)
    assert "*dataset mean*" not in table and table["*dataset best episode*"] == ["88.8"]


def test_returns_where_there_is_no_reference(tmp_path):
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS, reference=False)
    table = table_of(tmp_path)
    assert table["algorithm"] == ["hopper-medium (return)"]
    assert table["td3_bc"][0].startswith("370.0 ± 269.") and table["*dataset mean*"] == ["444.0"]


def test_every_measurement_of_speed_has_its_table(tmp_path):
    cases = [{"algorithm": "fql", "batch": 1000, "candidates": 1, "ms": {"median": 3.569}, "over_ofql": 0.874}]
    measured = {
        "command": "results/action_time.py",
        "hidden_dims": [256, 256],
        "cases": cases,
        "hardware": {"cores": 1},
    }
    case = {"algorithm": "deas", "lanes": 8, "actions_per_s": {"median": 1234.5}, "over_ofql": 2.345}
    command = "results/action_time.py --lanes 8"
    measured["episodes"] = {"command": command, "steps": 32, "cases": [case], "hardware": {"cores": 1}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "action_time.json").write_text(json.dumps(measured))
    case = {"name": "rlpd", "lanes": 8, "utd": 20, "ratio_to_plain_loop": 3.21}
    rates = [(1234.5, 24690.0), (1.6442, 32.88)]
    cases = [case | {"env_steps_per_s": {"median": e}, "gradient_steps_per_s": g} for e, g in rates]
    cases[1]["ratio_to_authors"] = 1.876
    shares = {"environment": 0.05, "transfer": 0.012, "arithmetic": 0.9, "host": 0.038}
    profiles = [{"lanes": 1, "utd": 20, "ms": 123.45, "shares": shares}]
    measured = {"command": "results/online_speed.py", "cases": cases, "profiles": profiles, "hardware": {"cores": 2}}
    case = {"sizes": "small", "lanes": 8, "ms": {"stepped": 3.456, "compiled": 1.2}}
    case["stepped_over_compiled"] = [2.5, 3.0, 4.0]
    command = "results/online_speed.py --compiled"
    measured["compiled"] = {"command": command, "cases": [case], "hardware": {"cores": 1}}
    (tmp_path / "results" / "online_speed.json").write_text(json.dumps(measured))
    rates = {"ours": [4.0, 8.0, 6.0], "CORL": [2.0, 2.0, 3.0]}
    case = {"name": "EDAC, 50 critics, 1 lane", "updates_per_s": rates, "compile_s": {"ours": 2.25, "CORL": 0.0}}
    measured = {"note": "Beside others.", "cases": [case | {"peak_mib": {"ours": 1234, "CORL": 987}}]}
    (tmp_path / "results" / "ensemble_speed.json").write_text(json.dumps(measured))
    measured["cases"][0]["name"] = "IQL, 8 lanes"
    (tmp_path / "results" / "corl_speed.json").write_text(json.dumps(measured))
    case = {"name": "hiql, 8 lanes", "updates_per_s": {"ours": [30.0, 20.0], "theirs": [10.0, 10.0]}}
    case["compile_s"] = dict.fromkeys(("ours", "theirs"), 1.0)
    (tmp_path / "results" / "agent_speed.json").write_text(json.dumps({"note": "Beside agents.", "cases": [case]}))
    text = speed_section(tmp_path)
    assert "| EDAC, 50 critics, 1 lane | ours | 6.00 |  | 2.2 s | 1,234 MiB |" in text
    assert "| EDAC, 50 critics, 1 lane | CORL | 2.00 | 2.00 (2.00–4.00) | 0.0 s | 987 MiB |" in text
    assert "Beside others. (`python results/ensemble_speed.py`)" in text
    assert "Beside others. (`python results/corl_speed.py`)" in text and "| IQL, 8 lanes | CORL | 2.00 |" in text
    assert "Beside agents. (`python results/agent_speed.py`)" in text
    assert "| hiql, 8 lanes | theirs | 10.0 | 2.50 (2.00–3.00) | 1.0 s |" in text
    assert (
        "| fql | 1,000 | 1 | 3.57 | 0.87 |" in text
        and "256×256" in text
        and "1 core (`python results/action_time.py`)" in text
    )
    assert "| deas | 8 | 1,234 | 2.35 |" in text and "(`python results/action_time.py --lanes 8`)" in text
    assert "| rlpd, 8 lanes | 20 | 1,234 | 24,690 | 3.21 |  |" in text
    assert "| rlpd, 8 lanes | 20 | 1.64 | 32.9 | 3.21 | 1.88 |" in text
    assert "| rlpd, 1 lane | 20 | 123.5 | 5 % | 1 % | 90 % | 4 % |" in text
    assert "| small, 8 lanes | 3.46 | 1.20 | 3.00 (2.50–4.00) |" in text and f"1 core (`python {command}`)" in text


def test_an_updates_parts_have_their_table(tmp_path):
    (tmp_path / "results").mkdir()
    shares = dict(zip(KINDS, (0.5, 0.25, 0.125, 0.0625, 0.05, 0.0125), strict=True))
    case = {"algorithm": "iql", "ms": 1.234, "shares": shares, "operations": 1234.5, "covered": 0.98, "cores": 1}
    (tmp_path / "results" / "step_profile.json").write_text(json.dumps({"cases": [case]}))
    text = speed_section(tmp_path)
    assert "| iql | 50 % | 25 % | 12 % | 6 % | 5 % | 1 % | 1.23 | 1,234 | 98 % |" in text
    assert "On 1 core (`python results/step_profile.py`)." in text


def test_the_planners_speed_has_its_table(tmp_path):
    (tmp_path / "results").mkdir()
    rates = {
        "updates": {"ours": [8.0] * 3, "the authors'": [1.0] * 3},
        "plans": {"ours": [16.0] * 3, "the authors'": [2.0] * 3},
    }
    measured = {"note": "Beside.", "cases": [{"lanes": 8, "per_s": rates, "compile_s": {"ours": 1.5}}]}
    (tmp_path / "results" / "planner_speed.json").write_text(json.dumps(measured))
    text = speed_section(tmp_path)
    assert "Beside. (`python results/planner_speed.py`)" in text
    assert "| updates, 8 lanes | ours | 8.00 |  | 1.5 s |" in text
    assert "| plans, 1 lane | the authors' | 2.00 | 8.00 (8.00–8.00) |  |" in text


def test_the_sequence_models_speed_has_its_tables(tmp_path):
    (tmp_path / "results").mkdir()
    rates = {"updates": {"ours": [8.0] * 3, "CORL": [4.0, 2.0, 1.0]}, "actions": {"ours": [9.0] * 3, "CORL": [3.0] * 3}}
    how = {"width": 8, "layers": 1, "hardware": {"cores": 2}, "command": "results/sequence_speed.py --lanes 1 8"}
    actions = [
        {"algorithm": "mtm", "lanes": n, "actions_per_s": [n * 10.0] * 3, "dt_per_s": [4.0, 5.0, 10.0]} for n in (1, 8)
    ]
    updates = [{"algorithm": "mtm", "lanes": 8, "updates_per_s": {"median": 50.0}, "share": {"median": 0.4}}]
    ms = {"ring": [2.0, 2.0, 2.0], "cache": [1.0, 2.0, 4.0], "whole": [6.0, 8.0, 10.0]}
    measured = {
        "beside": {"note": "Beside.", "cases": [{"lanes": 8, "per_s": rates, "compile_s": {"ours": 1.5}}]},
        "updates": {"context": 20, "batch": 16, "cases": updates, "remark": "; so", **how},
        "actions": {"context": 20, "cases": actions, **how},
        "memory": {"history": 1000, "cases": [{"context": 20, "lanes": 8, "ms": ms}], **how},
    }
    (tmp_path / "results" / "sequence_speed.json").write_text(json.dumps(measured))
    text = speed_section(tmp_path)
    assert "Beside. (`python results/sequence_speed.py`)" in text
    assert "| updates, 1 lane | CORL | 2.00 | 4.00 (2.00–8.00) |  |" in text
    assert "| mtm | 50.0, 40 % |" in text and "Updates of batches of 16, 1 block of width 8" in text
    assert "made by themselves in turn; so; on 2" in text
    assert "| mtm | 10.0, 2.00 (1.00–2.50) | 80.0, 16.00 (8.00–20.00) |" in text and "windows of 20 steps" in text
    assert "| 20, 8 lanes | 2.00 | 4.00 (3.00–5.00) | 1.00 (0.50–2.00) |" in text
    assert "1 block of width 8; an episode has 1,000 steps" in text


SIDE = """
import sys

sys.path.insert(0, "{root}")
from results import sides

name, log = sys.argv[1:]


def a_round(what):
    with open(log, "a") as file:
        file.write(name + what)


ticks = iter(range(1000))
sides.time.perf_counter = lambda: next(ticks) * {{"a": 0.5, "b": 2.0}}[name]
sides.serve({{what: lambda what=what: a_round(what) for what in "xy"}}, 1.5)
"""


def test_the_sides_of_a_comparison_take_turns_in_changing_order(tmp_path):
    (tmp_path / "side.py").write_text(SIDE.format(root=report.ROOT))
    log = tmp_path / "log"
    commands = {name: [sys.executable, str(tmp_path / "side.py"), name, str(log)] for name in "ab"}
    amounts = {"x": {"a": 4, "b": 4}, "y": {"a": 1, "b": 2}}
    found = sides.take_turns(commands, amounts, rounds=3)
    assert log.read_text() == "axaybxby" + "axbxayby" + "bxaxbyay" + "axbxayby"  # the first of each is not timed
    assert found.per_s == {"x": {"a": [8.0] * 3, "b": [2.0] * 3}, "y": {"a": [2.0] * 3, "b": [1.0] * 3}}
    assert found.compile_s == {"a": 1.5, "b": 1.5} and all(0 < x < 4000 for x in found.peak_mib.values())
    with pytest.raises(InputError, match="b ended"):
        sides.take_turns(commands | {"b": [sys.executable, "-c", "pass"]}, amounts, 1)


def test_family_column_needs_every_dataset(tmp_path):
    flat = [[[10, 10]], [[10, 10]]]
    for dataset in ("hopper-medium", "hopper-expert"):
        make_run(tmp_path, "bc", dataset, flat)
    make_run(tmp_path, "iql", "hopper-expert", flat)
    table = table_of(tmp_path)
    assert table["algorithm"] == ["hopper-expert", "hopper-medium", "all 2"]
    assert table["bc"][2] == "IQM 10.0 [10.0, 10.0]"
    assert table["iql"][1:] == ["–", "–"]


def test_swept_settings_are_rows(tmp_path):
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS, swept={"alpha": [1.0, 1.0, 2.5, 2.5]})
    table = table_of(tmp_path)
    assert "td3_bc" not in table
    assert table["td3_bc alpha=1"][0].startswith("17.0 ± 5.0<br>")
    assert table["td3_bc alpha=2.5"][0].startswith("57.0 ± 25.0<br>")
    assert table["td3_bc alpha=2.5"][0].endswith("2 lanes × 3k updates")


def test_bc_comes_first_and_several_runs_are_told_apart(tmp_path):
    make_run(tmp_path, "awac", "hopper-medium", RISES_THEN_FALLS, name="benchmark-a")
    make_run(tmp_path, "awac", "hopper-medium", RISES_THEN_FALLS, name="benchmark-b")
    make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS, name="benchmark-a")
    names = list(table_of(tmp_path))
    assert names[2:5] == ["bc (benchmark-a)", "awac (benchmark-a)", "awac (benchmark-b)"]


def test_algorithms_stand_side_by_side_where_nothing_but_the_data_differs(tmp_path):
    """which.md: eight lanes in the small form, whole data; no others, and no table of two."""
    form = {"preset": "none", "batch_size": 128, "hidden_dims": [64, 64]}
    scores = {name: np.full((8, 1, 1), value) for name, value in (("bc", 10), ("iql", 30), ("td3_bc", 20))}
    for name, score in scores.items():
        write_algorithm(tmp_path, name, f"{name.upper()}: a method.")
        make_run(tmp_path, name, "pendulum-good", score, "claim-10k", **form)
        make_run(tmp_path, name, "pendulum-broken", score, "claim-10k", **form, corruption=["reward"])
        make_run(tmp_path, name, "pendulum-tuned", score, "claim-10k", **form | {"preset": "auto"})
        make_run(tmp_path, name, "pendulum-few", score[:4], "claim-10k", **form)
    make_run(tmp_path, "bc", "pendulum-good", scores["iql"] + 10, "claim-top10-10k", **form)
    make_run(tmp_path, "bc", "pendulum-two", scores["bc"], "claim-10k", **form)
    make_run(tmp_path, "iql", "pendulum-two", scores["iql"], "claim-10k", **form)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "recipes.txt").write_text("pendulum-good\tPendulum-v1\tonly good actions\n")
    (tmp_path / "results" / "speed.json").write_text(
        json.dumps(
            {
                "cases": [
                    {"algorithm": name, "shape": "hopper", "lanes": 1, "updates_per_s": {"median": rate}}
                    for name, rate in (("td3_bc", 100), ("iql", 50))
                ]
            }
        )
    )
    text = which_page(raw.read_runs(tmp_path, "*")[0], tmp_path)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    assert [line[0] for line in lines] == ["BC (top10)", "IQL", "TD3_BC", "BC"]
    assert [line[5].strip() for line in lines[1:3]] == ["2.0", "1.0"]
    assert re.findall("^## (.*)", text, re.M) == ["pendulum-good"] and "only good actions; dataset mean 44.4" in text


def test_nan_lane_is_marked_and_counted(tmp_path):
    scores = np.array(RISES_THEN_FALLS, float)
    scores[2, 1:] = np.nan
    make_run(tmp_path, "iql", "hopper-medium", scores, diverged={"2": 1500})
    cell = table_of(tmp_path)["iql"][0]
    kept = np.array([12.0, 22.0, 82.0])
    assert cell.startswith(f"{kept.mean():.1f} ± {kept.std():.1f} †<br>")
    assert cell.endswith("4 lanes × 3k updates")
    text = (tmp_path / "results" / "tables.md").read_text()
    assert "lane 2 (seed 102) diverged at step 1,500; it is counted, but in no mean." in text


def test_diverged_lane_with_a_finite_return_stays_in_the_mean(tmp_path):
    make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS, diverged={"3": 2000})
    assert table_of(tmp_path)["iql"][0].startswith("37.0 ± 26.9 †")
    assert "lane 3 (seed 103) diverged" in (tmp_path / "results" / "tables.md").read_text()


def test_a_lane_missing_from_the_last_evaluation_is_marked(tmp_path):
    run = make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS)
    lines = (run / "returns.csv").read_text().splitlines()
    (run / "returns.csv").write_text("\n".join(lines[:-2]) + "\n")  # the two episodes of lane 3
    assert table_of(tmp_path)["iql"][0].startswith("22.0 ± 8.2 †")


def test_unfinished_runs_and_other_names_are_left_out(tmp_path):
    make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS)
    make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS, status="interrupted")
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS, name="20260101-000000")
    table = table_of(tmp_path)
    assert "bc" in table and "iql" not in table and "td3_bc" not in table
    text = (tmp_path / "results" / "tables.md").read_text()
    assert "`iql/hopper-medium/benchmark` is left out: its status is interrupted." in text


def test_changed_settings_and_unequal_data_are_shown(tmp_path):
    for name in ("iql", "td3_bc"):
        write_algorithm(tmp_path, name)
    make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS, batch_size=64)
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS, data_hash="fedcba9876543210")
    make_run(tmp_path, "td3_bc", "walker2d-medium", RISES_THEN_FALLS)  # the preset says 512
    table_of(tmp_path)
    text = (tmp_path / "results" / "tables.md").read_text()
    hopper, walker = text.split("### Walker2d")
    assert "`batch_size` 64 instead of 256 (iql)" in hopper
    assert "`batch_size` 256 instead of 512 (td3_bc)" in walker
    assert "**Not comparable**: hopper-medium" in hopper and "**Not comparable**" not in walker


def test_data_is_one_dataset_with_its_version_and_without(tmp_path):
    make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS)
    make_run(tmp_path, "td3_bc", "hopper-medium-v0", RISES_THEN_FALLS)
    make_run(tmp_path, "bc", "hopper-medium-v1", RISES_THEN_FALLS, data_hash="fedcba9876543210")
    rows, _ = raw.read_runs(tmp_path, "*")
    named = {row.algorithm: row.dataset for row in rows}
    assert named == {"iql": "hopper-medium", "td3_bc": "hopper-medium", "bc": "hopper-medium-v1"}


def test_a_record_that_names_another_file_has_it_not_evaluated(tmp_path):
    write_algorithm(tmp_path, "iql")
    inside = tmp_path / "algorithms" / "offline" / "iql.py"
    (tmp_path / "elsewhere.py").write_text(inside.read_text())
    assert raw.default_settings(tmp_path, "algorithms/offline/iql.py", "hopper-medium", "auto")
    for file in ("elsewhere.py", "algorithms/../elsewhere.py", str(tmp_path / "elsewhere.py")):
        assert not raw.default_settings(tmp_path, file, "hopper-medium", "auto")


def test_details_and_speed(tmp_path):
    make_run(tmp_path, "iql", "hopper-medium", RISES_THEN_FALLS)
    case = {"algorithm": "iql", "shape": "hopper", "batch_size": 256, "hidden_dims": [256, 256], "device": "cpu"}
    case |= {"compile_s": 3.0, "memory_mib": 900.0, "dataset_mib": 103.0, "mflop_per_update": 403.7}
    rates, shares = {1: 340.4, 8: 612.0}, {1: 0.404, 8: 0.776}
    cases = [
        {**case, "lanes": n, "updates_per_s": {"median": rates[n]}, "share": {"median": shares[n]}, "layout": "map"}
        for n in rates
    ]
    cases.append({**cases[0], "algorithm": "awac", "updates_per_s": {"median": 7.0}, "hidden_dims": []})
    left_out = [{"asked": {"algorithm": "dwm", "lanes": n}, "why": "it took longer than 7 seconds"} for n in rates]
    measured = {"cases": cases, "hardware": {"cores": 1, "side_by_side": 2}, "left_out": left_out}
    (tmp_path / "results" / "speed.json").write_text(json.dumps(measured))
    table_of(tmp_path)
    details = (tmp_path / "results" / "tables.md").read_text().split("## Runs")[1]
    assert "`python algorithms/offline/iql.py --dataset hopper-medium`" in details
    assert "| 1,200 | 2 × cpu on 2 cores | 0.10.2 | `0123456789ab` |" in details  # 4 x 3000 / 10 s
    page = (tmp_path / "results" / "speed.md").read_text()
    assert "2 cases side by side, each on 1 core of its own" in page
    assert "Left out, with one lane or with several: dwm: it took longer than 7 seconds." in page
    assert "| iql | hopper | 2 × 256, batch 256 | 40 % | 78 % | 340 | 612 | 404 | 3.0 s | 900 MiB |" in page
    assert "| awac | hopper | batch 256 | 40 % |  | 7.00 |  | 404 | 3.0 s | 900 MiB |" in page


def test_layouts_and_precisions_are_told_apart_on_an_accelerator():
    case = {"algorithm": "iql", "shape": "hopper", "lanes": 8, "batch_size": 256, "hidden_dims": [256], "chunk": 12}
    case |= {"compile_s": 3.0, "memory_mib": 900.0, "mflop_per_update": 100.0, "share": {"median": 0.5}}
    cases = [
        {**case, "layout": "map", "precision": p, "asked": {"layout": layout, "precision": p, "chunk": 12}}
        | {"updates_per_s": {"median": rate}}
        for layout, p, rate in (("auto", "float32", 1.0), ("vmap", "float32", 2.0), ("vmap", "bfloat16", 3.0))
    ]
    lines = share_table(cases).splitlines()
    assert lines[0].startswith("| algorithm | data | layout | precision | networks | share, 8 lanes |")
    assert [line.split(" | ")[2:4] + [line.split(" | ")[6]] for line in lines[2:]] == [
        ["auto", "float32", "1.00"],
        ["vmap", "float32", "2.00"],
        ["vmap", "bfloat16", "3.00"],
    ]


def test_two_reports_are_the_same_bytes(tmp_path):
    """In two processes that hash, and so order sets, differently."""
    scores = np.random.default_rng(3).normal(size=(7, 3, 2))
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from results import report; "
    code += "sys.exit(report.main([], pathlib.Path(sys.argv[2])))"
    roots = [tmp_path / "a", tmp_path / "b"]
    for hash_seed, root in enumerate(roots, 1):
        for n, name in enumerate(("bc", "td3_bc", "iql", "awac")):
            write_algorithm(root, name)
            changed = {"batch_size": 64, "alpha": 3.0, "hidden_dims": [64, 64]}
            make_run(root, name, "hopper-medium", scores + n, data_hash=f"{n:016d}", **changed)
        command = [sys.executable, "-c", code, str(report.ROOT), str(root)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": str(hash_seed)})
    for name in ("tables.md", "curves/hopper-medium.png"):
        a, b = ((root / "results" / name).read_bytes() for root in roots)
        assert len(a) > 100 and a == b


@pytest.mark.parametrize("page", ["returns.csv", "README.md"])
def test_check_sees_one_changed_number(tmp_path, page, capsys):
    run = make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS)
    readme = tmp_path / "results" / "README.md"
    readme.write_text("# Results\n<!-- begin:scores -->\nSTALE\n<!-- end:scores -->\ntail\n")
    assert report.main([], tmp_path) == 0
    assert "STALE" not in readme.read_text() and readme.read_text().endswith("<!-- end:scores -->\ntail\n")
    assert report.main(["--check"], tmp_path) == 0
    changed = run / "returns.csv" if page == "returns.csv" else readme
    text = changed.read_text()
    old, new = ("84.0\n", "83.0\n") if page == "returns.csv" else ("37.0", "38.0")
    assert old in text
    changed.write_text(text.replace(old, new))
    before = readme.read_bytes()
    assert report.main(["--check"], tmp_path) == 1
    assert "README.md is not what the raw files say" in capsys.readouterr().err
    assert readme.read_bytes() == before  # --check writes nothing


def test_markers_without_an_end_are_refused(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("<!-- begin:evidence -->\nmy prose\n")
    assert report.main([], tmp_path) == 2
    assert "has no '<!-- end:evidence -->'" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text().endswith("my prose\n")


def sections(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"<!-- begin:{n} -->\n<!-- end:{n} -->\n" for n in names))


def rows_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("|") and "---" not in line]


def test_algorithms_and_families_come_from_the_files(tmp_path):
    """A new folder is a family, by itself; one that says what it is for says so in the tables."""
    write_algorithm(tmp_path, "td3_bc")
    (tmp_path / "algorithms" / "offline" / "helper.py").write_text("x = 1\n")
    (tmp_path / "algorithms" / "offline" / "README.md").write_text(
        "# Offline\n\nA dataset in,\na policy out.\n\nMore.\n"
    )
    (tmp_path / "algorithms" / "model_based").mkdir()
    (tmp_path / "algorithms" / "model_based" / "mopo.py").write_text('"""MOPO: a model.\n\nYu, 2020.\n"""\n')
    sections(tmp_path / "README.md", "families")
    sections(tmp_path / "algorithms" / "README.md", "finder", "algorithms")
    assert report.main([], tmp_path) == 0
    assert rows_of(tmp_path / "README.md") == [
        "| family | what it is for | algorithms |",
        "| [model based](algorithms/README.md#model-based) |  | 1 |",
        "| [offline](algorithms/README.md#offline) | A dataset in, a policy out. | 1 |",
    ]
    page = tmp_path / "algorithms" / "README.md"
    assert rows_of(page) == [
        "| family | choose it when | algorithm |",
        "| offline | the data are good and you are in a hurry | [TD3+BC](offline/td3_bc.py) |",
        "| algorithm |  | paper | its claim is |",
        "| [MOPO](model_based/mopo.py) | a model | Yu, 2020 | – |",
        "| algorithm |  | paper | its claim is |",
        "| [TD3+BC](offline/td3_bc.py) | TD3 with a cloning term "
        '| Fujimoto and Gu, "A Minimalist Approach to Offline RL", NeurIPS 2021, '
        "[arXiv 2106.06860](https://arxiv.org/abs/2106.06860) | – |",
    ]
    assert "## Model based" in page.read_text() and "## Offline\n\nA dataset in, a policy out." in page.read_text()


CLAIM = """from results.checks import Claim, end
from results.grid import Entry

runs = [Entry(a, "hopper-medium", "{arguments}", "x", "claim", {evaluations}) for a in {algorithms}]
CLAIM = Claim(
    title="Ours beats BC", paper="A paper.", runs=runs, finding="It does.",
    checks={{"it is above 30": end(runs[0]) > 30, "it is above 40": end(runs[0]) > 40, "the last": end(runs[-1]) > 0}},
    observed={{"it is below 40": end(runs[0]) < 40}},
)
"""


def write_claim(root: Path, algorithms: list[str], arguments: str = "--updates 1000", evaluations: tuple = ()) -> Path:
    """results/claims/ours.py -> the page that the report makes of it."""
    file = root / "results" / "claims" / "ours.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CLAIM.format(algorithms=algorithms, arguments=arguments, evaluations=evaluations))
    return file.with_suffix(".md")


def test_claims_stand_beside_the_runs_that_show_them(tmp_path):
    page = write_claim(tmp_path, ["bc", "td3_bc", "iql"])
    for algorithm in ("bc", "td3_bc"):
        make_run(tmp_path, algorithm, "hopper-medium", RISES_THEN_FALLS, name="claim-x-1k")
    write_algorithm(tmp_path, "ours", "Ours: the best.")
    write_algorithm(tmp_path, "theirs", "Theirs: the second best.")
    assert report.main([], tmp_path) == 0
    text = page.read_text()
    rows = [line.split(" | ")[1:3] for line in text.splitlines() if line.startswith("| hopper-medium")]
    assert rows == [
        ["bc (claim-x-1k)", "37.0 ± 26.9"],
        ["td3_bc (claim-x-1k)", "37.0 ± 26.9"],
        ["*dataset mean*", "44.4"],
        ["*dataset best episode*", "88.8"],
    ]
    assert text.startswith("# Ours beats BC\n") and "A paper." in text and "It does." in text
    assert "**Hardly seen**: 1 of 3 checks hold" in text
    assert "| it is above 30 | 37.0 > 30.0 | yes |" in text and "| it is above 40 | 37.0 > 40.0 | **no** |" in text
    assert "has not been run.) | not run yet |" in text and "| it is below 40 | 37.0 &lt; 40.0 | yes |" in text
    assert "Not run yet: `results/runs/iql/hopper-medium/claim-x-1k`" in text
    assert (tmp_path / "results" / "curves" / "claim-ours.png").exists()
    assert "37.0" not in (tmp_path / "results" / "tables.md").read_text()  # the score tables hold benchmark runs only
    overview = (page.parent / "README.md").read_text()
    assert "| Ours | [Ours beats BC](ours.md) | hardly seen | 1 of 3 | hopper-medium |" in overview
    assert "No claim yet: Theirs." in overview
    assert evidence(tmp_path, Raw(tmp_path)).splitlines()[2:] == [
        "| offline | – | – | 1 | – | – | 1 |",
        "| all | – | – | 1 | – | – | 1 |",
    ]


def test_a_claim_of_fine_tuning_shows_its_course(tmp_path):
    """Of the evaluations before the first environment step only the last counts."""
    page = write_claim(tmp_path, ["iql"])
    lanes = [[[99], [40], [30], [50], [80]], [[99], [20], [20], [60], [90]]]
    run = make_run(tmp_path, "iql", "hopper-medium", lanes, name="claim-x-1k", env_steps=300)
    table = pd.read_csv(run / "returns.csv")
    table["env_step"] = np.maximum(table["update"] - 2000, 0)  # two evaluations offline, three online
    table.to_csv(run / "returns.csv", index=False)
    assert report.main([], tmp_path) == 0
    lines = page.read_text().splitlines()
    (cells,) = [line.split(" | ")[2:] for line in lines if line.startswith("| hopper-medium | iql")][1:]
    assert [c.split(" [")[0] for c in cells] == ["30.0", "5.0", "85.0", "45.0"]  # regret: 1 - mean of (30, 50, 80) ...


def test_a_claim_of_interaction_alone_has_no_offline_score_and_no_dip(tmp_path):
    page = write_claim(tmp_path, ["iql"], "--env-steps 300")
    run = make_run(tmp_path, "iql", "hopper-medium", [[[30], [80]], [[60], [90]]], name="claim-x-300", env_steps=300)
    table = pd.read_csv(run / "returns.csv")
    table["env_step"] = table["update"]
    table.to_csv(run / "returns.csv", index=False)
    assert report.main([], tmp_path) == 0
    lines = page.read_text().splitlines()
    (cells,) = [line.split(" | ")[2:] for line in lines if line.startswith("| hopper-medium | iql")][1:]
    assert [c.split(" [")[0] for c in cells] == ["–", "–", "85.0", "35.0"]


def test_a_claim_shows_its_runs_under_changed_arguments(tmp_path):
    """Below the run itself, from the run's file of that evaluation; the picture has the curves only."""
    page = write_claim(tmp_path, ["bc"], evaluations=("a=1 b=2", "a=3"))
    run = make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS, name="claim-x-1k")
    lanes = len(RISES_THEN_FALLS)
    rows = [f"{lane},{100 + lane},{e},0,5,{10 * lane + e}" for lane in range(lanes) for e in (0, 4)]
    (run / "evaluation-a=1-b=2.csv").write_text("lane,seed,episode,return,length,score\n" + "\n".join(rows) + "\n")
    assert report.main([], tmp_path) == 0
    table = [line.split(" | ")[1:3] for line in page.read_text().splitlines() if line.startswith("| hopper-medium")]
    scores = 10 * np.arange(lanes) + 2
    assert table[0][0] == "bc (claim-x-1k)"
    assert table[1] == ["bc a=1 b=2 (claim-x-1k)", f"{scores.mean():.1f} ± {scores.std():.1f}"]
    assert "a=3" not in page.read_text()


def test_a_second_report_writes_nothing_and_removes_what_is_made_no_more(tmp_path, capsys):
    """Not even a picture, though a library might compress it differently; one that shows something else is drawn."""
    page = write_claim(tmp_path, ["bc"])
    runs = [make_run(tmp_path, "bc", "hopper-medium", RISES_THEN_FALLS, name=n) for n in ("benchmark", "claim-x-1k")]
    assert report.main([], tmp_path) == 0
    pictures = [tmp_path / "results" / "curves" / name for name in ("hopper-medium.png", "claim-ours.png")]
    pictures[0].write_bytes(pictures[0].read_bytes() + b"as another library would")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert report.main([], tmp_path) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert "0 changed" in capsys.readouterr().out
    table = (runs[0] / "returns.csv").read_text()
    (runs[0] / "returns.csv").write_text(table.replace("84.0\n", "83.0\n"))
    page.with_suffix(".py").unlink()
    assert report.main([], tmp_path) == 0
    assert pictures[0].stat().st_mtime_ns > before[pictures[0]] and not pictures[1].exists() and not page.exists()


def test_a_legend_says_what_tells_its_lines_apart(tmp_path):
    """Without the series and length of a run where they do not; claims give a method one colour on all datasets."""
    for dataset, arms in (
        ("a", ("claim-1k", "claim-two-1k")),
        ("b", ("claim-three-1k", "claim-two-1k", "claim-two-2k")),
    ):
        for name in arms:
            make_run(tmp_path, "iql", dataset, RISES_THEN_FALLS, name=name)
    rows, _ = raw.read_runs(tmp_path, "*")
    rows.sort(key=lambda row: (row.run.name != "claim-two-1k", row.run.name))
    of = {d: list(short_labels([row for row in rows if row.dataset == d]).values()) for d in "ab"}
    assert of == {"a": ["iql", "two"], "b": ["three", "iql (claim-two-1k)", "iql (claim-two-2k)"]}
    looks = order_of_arms(rows)
    assert [looks[d, ("iql", "", "claim-two-1k")] for d in "ab"] == [0, 0] and set(looks.values()) == {0, 1, 2}


def test_pictures_are_small(tmp_path):
    make_run(tmp_path, "td3_bc", "hopper-medium", RISES_THEN_FALLS, swept={"alpha": [1.0, 1.0, 2.5, 2.5]})
    assert report.main([], tmp_path) == 0
    assert 2_000 < (tmp_path / "results" / "curves" / "hopper-medium.png").stat().st_size < 15_000


def test_run_directories_side_by_side(tmp_path, capsys):
    runs = [make_run(tmp_path, a, "hopper-medium", RISES_THEN_FALLS, name="x") for a in ("bc", "td3_bc")]
    picture = tmp_path / "two.png"
    assert report.main([*map(str, runs), "--picture", str(picture)], tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [[a, "37.0", "±", "26.9"] for a in ("bc", "td3_bc")]
    assert lines[3].split() == ["dataset", "mean", "44.4"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "results" / "tables.md").exists()
    assert report.main([str(runs[0].parent / "y")], tmp_path) == 2
    assert "did you mean" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- benchmark

JOB = """import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).resolve()
with open(out.parents[4] / "log", "a") as f:
    f.write(" ".join([pathlib.Path(__file__).stem, *sys.argv[1:]]) + "\\n")
left = sorted(p.name for p in out.iterdir())
if "fail" in sys.argv:
    sys.exit(3)
args, words = {}, sys.argv[1:]
while words:
    name, values = words.pop(0)[2:].replace("-", "_"), []
    while words and words[0][:2] != "--":
        values.append(words.pop(0))
    args[name.removeprefix("no_")] = values or not name.startswith("no_")
(out / "run.json").write_text(json.dumps({"status": "finished", "found": left, "args": args}))
"""


@pytest.fixture
def grid(tmp_path):
    """A root with two algorithms that only write down how they were called, and two datasets."""
    for setting, name in (("offline", "bc"), ("generative", "fql")):
        (tmp_path / "algorithms" / setting).mkdir(parents=True)
        (tmp_path / "algorithms" / setting / f"{name}.py").write_text(JOB)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "recipes.txt").write_text("# name\nhopper-medium\tx\nhopper-expert\ty\n")

    def run(*argv: str, datasets: tuple[str, ...] = ("hopper-medium", "hopper-expert")) -> int:
        names = ["--algorithms", "bc", "fql", "--datasets", *datasets]
        return benchmark.main([*names, *argv], tmp_path)

    def log() -> list[list[str]]:
        path = tmp_path / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    return tmp_path, run, log


def test_dry_run_prints_the_jobs_in_order(grid, capsys):
    root, run, log = grid
    assert run("--dry-run", "--seeds", "5", "--extra", "--batch-size 64", "--name", "benchmark-x") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(Path(line[2]).stem, line[4]) for line in lines] == [
        ("bc", "hopper-medium"),
        ("fql", "hopper-medium"),
        ("bc", "hopper-expert"),
        ("fql", "hopper-expert"),
    ]
    assert lines[0][5:] == [
        *("--seeds", "5", "--batch-size", "64"),
        *("--out", "results/runs/bc/hopper-medium/benchmark-x"),
    ]
    assert not log() and not (root / "results").exists()


def test_an_algorithm_without_a_dataset_is_given_its_environment(grid):
    root, _, log = grid
    (root / "algorithms" / "online").mkdir()
    (root / "algorithms" / "online" / "mex.py").write_text(JOB)
    assert benchmark.main(["--algorithms", "mex", "--datasets", "PointUMaze-v0"], root) == 0
    assert log()[0][:3] == ["mex", "--env", "PointUMaze-v0"]


def test_finished_jobs_are_never_run_again(grid, capsys):
    _, run, log = grid
    assert run("--max-jobs", "1") == 1  # something is missing still
    assert "Missing: fql on hopper-medium, bc on hopper-expert" in capsys.readouterr().out
    assert run() == 0
    assert run() == 0
    assert [(line[0], line[2]) for line in log()] == [
        ("bc", "hopper-medium"),
        ("fql", "hopper-medium"),
        ("bc", "hopper-expert"),
        ("fql", "hopper-expert"),
    ]


def test_a_run_that_was_made_with_other_arguments_is_not_taken_for_this_one(grid, capsys):
    _, run, log = grid
    given = ("--seeds", "8", "--extra", "--actor-lr 1e-3 --no-gate")
    assert run(*given) == 0
    done = len(log())
    path = grid[0] / log()[0][-1] / "run.json"
    record = json.loads(path.read_text())
    for args, said in (
        ({"seeds": 16}, "--seeds 16"),
        ({"actor_lr": [0.001, 0.01]}, "--actor-lr 0.001 0.01"),
        ({"gate": True}, "--gate True"),
        ({"actor_lr": None, "policy_lr": 1e-2}, "--actor-lr 0.01"),  # its former name
        ({"actor_lr": None}, "no --actor-lr"),
        ({"seeds": 8, "actor_lr": [1e-3], "gate": False}, ""),
    ):
        args = {name: value for name, value in (record["args"] | args).items() if value is not None}
        path.write_text(json.dumps(record | {"args": args}))
        assert run(*given) == bool(said)
        out, err = capsys.readouterr()
        assert not said or ("Missing: bc on hopper-medium." in out and f"was made with {said}: remove it" in err)
        assert len(log()) == done


def test_every_entry_of_the_grid_has_a_directory_of_its_own():
    jobs = benchmark.make_jobs(benchmark.grid(), "", [], benchmark.ROOT)
    assert len({job.out for job in jobs}) == len(jobs) > 200


def test_a_variant_is_part_of_the_name(grid):
    entry = benchmark.Entry("bc", "hopper-medium", "--updates 2000", "top10")
    assert benchmark.make_jobs([entry], "", [], grid[0])[0].out.name == "benchmark-top10-2k"


def test_the_name_says_how_long_each_phase_was():
    lengths = ["", "--updates 1500", "--updates 9 --updates 2000", "--env-steps 82500"]
    names = [Entry("a", "b", arguments, series="claim").directory().name for arguments in lengths]
    assert names == ["claim-1000k", "claim-1500", "claim-2k", "claim-82500"]
    assert Entry("a", "b", "--env-steps 6000 --offline-updates 10000").directory().name == "benchmark-10k+6k"


def test_a_dataset_that_is_not_there_is_said_before_anything_runs(grid):
    with pytest.raises(benchmark.InputError, match="no dataset 'a-lock'"):
        benchmark.make_jobs([benchmark.Entry("bc", "a-lock", "--updates 2000")], "", [], grid[0])
    with (grid[0] / "datasets" / "recipes.txt").open("a") as file:
        file.write("ogbench-cube-single-play\tcube-single-v0\n")
    for name in ("ogbench-cube-single-play", "ogbench-cube-single-play-singletask-task2"):  # the variants are no lines
        assert benchmark.make_jobs([benchmark.Entry("bc", name, "--updates 2000")], "", [], grid[0])


def test_checkpoints_are_resumed_and_remains_removed(grid):
    root, run, log = grid
    done = root / "results" / "runs" / "bc" / "hopper-medium" / "benchmark-1000k"
    (done / "checkpoint").mkdir(parents=True)
    (done / "run.json").write_text('{"status": "interrupted"}')
    (done / "checkpoint" / "state.npz").write_bytes(b"x")
    remains = root / "results" / "runs" / "fql" / "hopper-medium" / "benchmark-1000k"
    (remains / "checkpoint").mkdir(parents=True)  # killed before its first checkpoint
    (remains / "run.json").write_text('{"status": "running"}')
    assert run(datasets=("hopper-medium",)) == 0
    assert [line[-1] == "--resume" for line in log()] == [True, False]
    assert json.loads((done / "run.json").read_text())["found"] == ["checkpoint", "run.json"]
    assert json.loads((remains / "run.json").read_text())["found"] == []


def test_of_an_argument_that_is_given_twice_the_last_value_counts(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text('{"status": "finished", "args": {"context": 5, "world_weight": [1.0]}}')
    command = shlex.split("python jowa.py --context 3 --world-weight 0 1 --context 5 --world-weight 1")
    assert benchmark.state(benchmark.Job("jowa", "maze", command, out)) == "finished"
    assert benchmark.changed(benchmark.Job("jowa", "maze", command[:-4], out)) == "--context 5"


def test_a_finished_run_is_evaluated_under_the_entrys_changed_arguments(tmp_path, monkeypatch):
    """Once each, without training again; in the file in which the report looks for it."""
    entry = Entry("bc", "hopper-medium", "--updates 2000", "x", "claim", ("a=1 b=2", "a=3"))
    out = tmp_path / entry.directory()
    out.mkdir(parents=True)
    (out / "run.json").write_text('{"status": "finished"}')
    job, done = benchmark.Job("bc", "hopper-medium", ["train"], out, entry.evaluations), []

    def execute(command, root, end):
        done.append(command)
        (out / ("-".join(["evaluation", *command[command.index("--set") + 1 :]]) + ".csv")).touch()
        return 0

    monkeypatch.setattr(benchmark, "execute", execute)
    (out / "evaluation-a=3.csv").touch()
    assert benchmark.state(job) == "evaluate"
    benchmark.run_jobs([job], 1, 9, tmp_path)
    assert benchmark.finish([job]) == 0
    assert [c[1:] for c in done] == [["-m", "shared.evaluation", str(out), "--set", "a=1", "b=2"]]
    assert benchmark.state(job) == "finished" and benchmark.perform(job, tmp_path) is None and len(done) == 1


def test_a_job_in_other_hands_is_left_alone(grid):
    root, run, log = grid
    out = root / "results" / "runs" / "bc" / "hopper-medium" / "benchmark-1000k"
    job = benchmark.Job("bc", "hopper-medium", [], out)
    with benchmark.locked(job) as mine:
        assert mine and run(datasets=("hopper-medium",)) == 1
    assert [line[0] for line in log()] == ["fql"]


def test_jobs_side_by_side_are_done_once_each(grid):
    root, run, log = grid
    meets = "import time\nwhile len((out.parents[4] / 'log').read_text().splitlines()) < 2: time.sleep(0.05)\n"
    for name in ("offline/bc", "generative/fql"):
        (root / "algorithms" / f"{name}.py").write_text(JOB.replace('(out / "run', meets + '(out / "run'))
    assert run("--at-once", "2") == 0  # where no two ran together, the first would wait for ever
    assert sorted(line[0] for line in log()) == ["bc", "bc", "fql", "fql"]


def test_the_full_grid_is_at_the_files_own_sizes(capsys):
    """`make benchmark-gpu`: what made a run small is gone, what makes it another setting stays."""
    entry = Entry(
        "bc", "hopper-medium-v0", "--seeds 5 --hidden-dims 128 128 --updates 100000 --top-fraction 0.1", "top10"
    )
    assert entry.full() == Entry("bc", "hopper-medium-v0", "--seeds 10 --eval-every 100000 --top-fraction 0.1", "top10")
    assert entry.full().directory().name == "benchmark-top10-1000k"
    assert benchmark.main(["--full", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and not [line for line in lines if "--hidden-dims" in line or "--batch-size" in line]


def test_a_failed_job_does_not_stop_the_others(grid, capsys):
    _, run, log = grid
    assert run("--extra", "fail", "--hours", "1", datasets=("hopper-medium",)) == 1
    assert len(log()) == 2
    assert "bc on hopper-medium ended with status 3." in capsys.readouterr().err


def test_a_signal_reaches_the_job_and_no_other_begins(grid):
    root, _, log = grid
    waits = "import signal, time\nsignal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
    job = JOB.replace("(out /", "print('ready', flush=True)\ntime.sleep(60)\n(out /")
    (root / "algorithms" / "offline" / "bc.py").write_text(job.replace("left =", waits + "left ="))
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from results import benchmark; "
    code += "sys.exit(benchmark.main(sys.argv[3:], pathlib.Path(sys.argv[2])))"
    argv = ["--algorithms", "bc", "fql", "--datasets", "hopper-medium"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(report.ROOT), str(root), *argv],
        stdout=subprocess.PIPE,
        text=True,
    )
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    out, _ = process.communicate()
    assert "saved" in out and "0 of 2 jobs are finished" in out and process.returncode == 1
    assert [line[0] for line in log()] == ["bc"]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False


def test_a_job_dies_with_its_owner(tmp_path):
    """Else two would write to one directory once the lock of a killed owner is gone."""
    job = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from results import benchmark; "
    code += "benchmark.execute([sys.executable, '-c', sys.argv[2]], pathlib.Path.cwd())"
    owner = subprocess.Popen([sys.executable, "-c", code, str(report.ROOT), job], cwd=tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert owner.poll() is None
        time.sleep(0.02)
    number = int((tmp_path / "pid").read_text())
    assert alive(number)
    owner.kill()
    owner.wait()
    deadline = time.time() + 10
    while alive(number) and time.time() < deadline:
        time.sleep(0.05)
    assert not alive(number)


def test_no_job_begins_after_the_time_bound(grid):
    _, run, log = grid
    assert run("--hours", "0") == 1
    assert not log()


def test_a_job_is_told_to_save_at_the_time_bound(grid):
    root, run, log = grid
    waits = "import signal, time\nsignal.signal(15, lambda *_: sys.exit(143))\n"
    job = JOB.replace("(out /", "time.sleep(60)\n(out /")
    (root / "algorithms" / "offline" / "bc.py").write_text(job.replace("left =", waits + "left ="))
    began = time.time()
    assert run("--hours", str(2 / 3600)) == 1
    assert time.time() - began < 30 and [line[0] for line in log()] == ["bc"]


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--algorithms", "bcc", "--datasets", "hopper-medium"],
            "no algorithm 'bcc'; did you mean bc",
        ),
        (["--algorithms", "bc", "--datasets", "hoper-expert"], "did you mean hopper-expert"),
        (["--algorithms", "no-such"], "No run of results/claims/ has 'no-such'"),
    ],
)
def test_unknown_names_are_one_sentence(grid, capsys, argv, said):
    root, _, log = grid
    assert benchmark.main(argv, root) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not log()


def test_a_pictures_name_fits_a_file_system():
    many = ["+".join(f"point-obstacle-s{i}p{j}" for i in range(4) for j in range(n)) for n in (1, 4, 5)]
    assert slug(many[0]) == many[0] and slug("a/b-v0") == "a-b-v0"
    assert len({slug(name) for name in many}) == 3 and all(len(slug(name)) <= 100 for name in many)
