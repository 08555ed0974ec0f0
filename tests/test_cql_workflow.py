"""The workflow's choice on curves that were made for it, and on files as runs of CQL write them."""

import csv
import json

import numpy as np
import pytest

from results import cql_workflow
from results.cql_workflow import Curves, advise, comparable, course, read, smooth

T = 40
STEP = 100 * np.arange(1, T + 1)
X = np.linspace(0.0, 1.0, T)
RISES = 5 * (1 - np.exp(-4 * X))
PEAKS = RISES - 6 * np.maximum(X - 0.4, 0)
FALLS = -80 * X
ARGS = {"hidden_dims": [64, 64], "critic_hidden_dims": [], "cql_alpha": 1.0, "critic_penalty": [], "data": "x"}


def curves(run: str, q=RISES, bellman=0.5, gap=-1.0, lanes: int = 4, noise: float = 0.05, **args) -> Curves:
    r = np.random.default_rng(0)
    arrays = [x + noise * r.normal(size=(lanes, T)) for x in (q, np.full(T, bellman), np.full(T, gap))]
    return Curves(run, "", ARGS | args, STEP, *arrays, None, {})


def test_a_mean_over_a_tenth_of_the_points_keeps_constants_and_lines():
    np.testing.assert_allclose(smooth(np.full((2, T), 3.0)), 3.0)
    np.testing.assert_allclose(smooth(np.arange(30.0))[3:-3], np.arange(30.0)[3:-3])
    assert smooth(np.eye(1, 9)[0]).tolist() == np.eye(1, 9)[0].tolist()  # fewer than twenty: as they are


def test_a_peak_is_found_where_it_is():
    at = course(curves("a", PEAKS), 0.1)
    assert at.kind == "peaks" and abs(STEP[at.peak] - STEP[PEAKS.argmax()]) <= 200
    assert abs(at.fall - (PEAKS.max() - PEAKS[-1]) / np.ptp(PEAKS)) < 0.08


@pytest.mark.parametrize(
    ("q", "kind"),
    [
        (RISES, "rises"),
        (RISES - 0.6 * np.maximum(X - 0.8, 0), "rises"),  # by less than a tenth of its range
        (FALLS, "only falls"),
        (np.where(X < 0.5, -80 * X, -40 + 30 * (X - 0.5)), "rises"),  # rewards below 0: first it falls
        (np.where(X < 0.5, -80 * X, -40 + 60 * np.minimum(X - 0.5, 1.2 - 1.5 * X)), "peaks"),  # and then it peaks
        (RISES - 3 * (abs(X - 0.5) < 0.1), "rises"),  # what comes back has not fallen
    ],
)
def test_what_is_and_what_is_not_over_fitting(q, kind):
    assert course(curves("a", q), 0.1).kind == kind


def test_a_fall_of_one_lane_among_others_is_noise():
    one = curves("a", RISES, lanes=4)
    q = one.q.copy()
    q[0] = PEAKS
    assert course(one._replace(q=q), 0.1).kind == "rises"
    assert course(one._replace(q=q[:1]), 0.1).kind == "peaks"


def test_over_fitting_stops_at_the_peak_and_asks_for_the_bottleneck():
    found = advise([curves("plain", PEAKS)])
    assert found.verdict == "over-fitting" and found.chosen.run == "plain"
    assert abs(found.update - STEP[PEAKS.argmax()]) <= 200 and found.next_run == "--bottleneck-dim 16"


def test_the_first_regulariser_whose_curve_falls_no_more_is_taken_to_its_end():
    plain, vib = curves("plain", PEAKS), curves("vib", PEAKS, bottleneck_dim=16)
    dropout = curves("dropout", critic_dropout=0.1)
    l2 = curves("l2", critic_penalty=["l2"])
    found = advise([l2, plain, dropout, vib])
    assert (found.verdict, found.chosen.run, found.update, found.next_run) == ("over-fitting", "dropout", STEP[-1], "")
    assert advise([plain, vib, dropout, curves("vib-8", bottleneck_dim=8)]).chosen.run == "vib-8"
    found = advise([plain, vib])  # which falls, too: at its peak, and the next in the order
    assert found.chosen.run == "vib" and found.update < STEP[-1] and found.next_run == "--critic-dropout 0.1"


def test_a_regulariser_at_another_capacity_mends_nothing():
    found = advise([curves("plain", PEAKS), curves("vib", bottleneck_dim=16, hidden_dims=[512, 512])])
    assert found.chosen.run == "plain" and found.next_run == "--bottleneck-dim 16"


@pytest.mark.parametrize("lower", [{"bellman": 0.2}, {"gap": -2.0}])
def test_under_fitting_takes_the_larger_run_as_long_as_its_errors_are_lower(lower):
    small = curves("small", hidden_dims=[16])
    larger, largest = curves("larger", **lower), curves("largest", hidden_dims=[256, 256], **lower)
    found = advise([largest, small, larger])
    assert (found.verdict, found.chosen.run, found.update) == ("under-fitting", "larger", STEP[-1])
    assert len(found.why) == 4 and "in place of" in found.why[1] and "no lower error" in found.why[3]


def test_a_larger_run_that_over_fits_is_stopped():
    found = advise([curves("small", hidden_dims=[16]), curves("larger", PEAKS, bellman=0.2)])
    assert found.verdict == "over-fitting" and found.chosen.run == "larger" and found.update < STEP[-1]


def test_an_error_that_is_lower_within_noise_is_not_lower():
    found = advise([curves("small", hidden_dims=[16], bellman=0.5), curves("larger", bellman=0.4, noise=2.0)])
    assert found.chosen.run == "small" and found.next_run == ""


def test_dr3_goes_with_more_capacity():
    small, larger = curves("small", hidden_dims=[16]), curves("larger", bellman=0.2)
    found = advise([small, larger, curves("dr3", bellman=0.2, critic_penalty=["dr3"])])
    assert found.verdict == "under-fitting" and found.chosen.run == "dr3"


def test_without_a_larger_run_one_is_asked_for():
    found = advise([curves("a", critic_hidden_dims=[32, 16])])
    assert found.verdict.startswith("neither") and found.update == STEP[-1]
    assert found.next_run == "--critic-hidden-dims 64 32 --critic-penalty dr3"


def test_runs_are_compared_where_nothing_else_differs():
    one, two = curves("a"), curves("b", bottleneck_dim=16)
    others = [curves("c", cql_alpha=5.0), curves("d", data="y"), curves("e", updates=7)]
    groups = [[x.run for x in group] for group in comparable([one, *others, two])]
    assert groups == [["a", "b"], ["c"], ["d"], ["e"]]


# ------------------------------------------------------------------------------------------ files


def write(path, lanes: list[dict], columns: dict, evaluations=(), **args):
    """A run directory; `columns` {metric: function of the lane's number -> [T]}."""
    path.mkdir()
    swept = [name for name in lanes[0] if name not in ("lane", "seed")]
    record = {"args": ARGS | args, "task": {"id": "points", "hash": "h"}, "lanes": lanes}
    (path / "run.json").write_text(json.dumps(record))
    with (path / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["lane", "seed", *swept, "update", "env_step", "wall_s", *columns])
        for t, step in enumerate(STEP):
            for lane in lanes:
                own = [lane[name] for name in swept]
                values = [column(lane["lane"])[t] for column in columns.values()]
                writer.writerow([lane["lane"], lane["seed"], *own, step, 0, 0.0, *values])
    with (path / "returns.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["lane", "seed", "update", "env_step", "wall_s", "episode", "return", "length", "score"])
        for step, value in evaluations:
            writer.writerows([x["lane"], x["seed"], step, 0, 0, e, value + e, 5, ""] for x in lanes for e in (0, 1))
    return path


LANES = [{"lane": i, "seed": i} for i in range(3)]


def logged(q, bellman=0.5) -> dict:
    return {"q": lambda i: q + i, "bellman_loss": lambda i: np.full(T, bellman), "gap": lambda i: np.full(T, -1.0)}


def test_a_run_directory_is_read_with_its_settings(tmp_path):
    lanes = [{"lane": i, "seed": i % 2, "cql_alpha": (1.0, 5.0)[i // 2]} for i in range(4)]
    found = read(write(tmp_path / "run", lanes, logged(PEAKS), [(100, 1.0), (4000, 3.0)]))
    assert [(x.name, x.args["cql_alpha"]) for x in found] == [("run cql_alpha=1", 1.0), ("run cql_alpha=5", 5.0)]
    np.testing.assert_allclose(found[1].q, [PEAKS + 2, PEAKS + 3])
    assert found[0].holdout is None and found[0].returns[4000].tolist() == [3.5, 3.5]
    assert len(comparable(found)) == 2


def test_what_is_measured_without_noise_comes_first_and_diverged_lanes_are_left_out(tmp_path):
    broken = logged(RISES) | {"train_q": lambda i: np.where((i == 1) & (X > 0.5), np.nan, PEAKS)}
    broken["holdout_bellman_loss"] = lambda i: np.full(T, 1.0 + i)
    (found,) = read(write(tmp_path / "run", LANES, broken))
    np.testing.assert_allclose(found.q, [PEAKS, PEAKS])
    np.testing.assert_allclose(found.holdout[:, 0], [1.0, 3.0])


def test_the_choice_is_told_and_written_with_what_it_is_worth(tmp_path, capsys):
    error = logged(PEAKS) | {"holdout_bellman_loss": lambda i: 1.0 + abs(X - 0.9)}
    peak = int(STEP[PEAKS.argmax()])
    plain = write(tmp_path / "plain", LANES, error, [(100, 1.0), (peak - 300, 7.0), (3600, 2.0), (4000, 3.0)])
    assert cql_workflow.main([str(plain), "--write", str(tmp_path / "x.json")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("over-fitting: plain, the policy after update") and "next: the same run with" in told
    (case,) = json.loads((tmp_path / "x.json").read_text())["cases"]
    assert (case["return_chosen"], case["return_last"], case["return_there"]) == (7.5, 3.5, 2.5)
    assert case["chosen"] == "plain" and case["update"] < 2500 and 3500 < case["least_holdout_error_at"] <= 3700


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "run.json").unlink(), "is not a run directory"),
        (lambda path: (path / "metrics.csv").write_text("lane,seed,update,q\n0,0,1,2\n"), "logged no bellman_loss"),
        (
            lambda path: (path / "metrics.csv").write_text("lane,seed,update,q,bellman_loss,gap\n0,0,1,2,3,4\n"),
            "has 1 logging points; a curve needs 10",
        ),
    ],
)
def test_what_is_no_run_of_cql_is_one_sentence(change, said, tmp_path, capsys):
    path = write(tmp_path / "run", LANES, logged(RISES))
    change(path)
    assert cql_workflow.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_share_outside_its_range_is_refused(tmp_path, capsys):
    assert cql_workflow.main([str(write(tmp_path / "run", LANES, logged(RISES))), "--fall", "1"]) == 2
    assert "--fall must lie between 0 and 1, not 1" in capsys.readouterr().err
