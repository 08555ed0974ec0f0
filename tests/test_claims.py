"""What results/grid.py says was seen of the papers' claims, read off the raw files.

One test for each claim with something seen. A run that is made again, or a finding that says more than its runs, fails.
"""

from functools import cache

import numpy as np
import pytest
from conftest import ROOT

from results import raw
from results.grid import CLAIMS, EXPERT, LOCK, MAZE, MIXED, PENDULUM, REPLAY, SEEN, WEAK

FOUND = {claim.slug: claim for claim in CLAIMS}


@cache
def rows(slug: str, algorithm: str, dataset: str, variant: str) -> list[raw.Row]:
    entries = [e for e in FOUND[slug].entries if (e.algorithm, e.dataset, e.variant) == (algorithm, dataset, variant)]
    assert len(entries) == 1, f"{slug} has {len(entries)} runs of {algorithm} on {dataset} named {variant!r}"
    return raw.read_run(ROOT / entries[0].directory())


def curve(slug: str, algorithm: str, dataset: str, variant: str = "", setting: str = "") -> np.ndarray:
    """[T] mean score of the lanes with `setting` at each evaluation; a fine-tuning run begins with its offline end."""
    (row,) = [row for row in rows(slug, algorithm, dataset, variant) if row.setting == setting]
    assert len(row.lanes) >= 4 and np.isfinite(row.curve).all()
    return row.curve.mean(0)


def end(*run: str) -> float:
    return curve(*run)[-1]


def under(change: str, *run: str) -> float:
    """Mean score of the finished run, evaluated again under changed arguments."""
    (row,) = rows(*run)
    return raw.read_evaluation(row, change).final.mean()


def test_every_finding_begins_with_how_far_the_claim_is_seen():
    for claim in CLAIMS:
        assert claim.seen in SEEN, claim.slug


def test_riql():
    for kind in ("reward", "dynamics", "action"):
        assert end("riql", "riql", MAZE, kind) > end("riql", "iql", MAZE, kind)
    assert end("riql", "iql", MAZE, "reward") < end("crr-plus", "bc", MAZE) / 2
    assert end("riql", "riql", REPLAY, "obs") > 1.5 * end("riql", "iql", REPLAY, "obs")


def test_trajectory_weighting():
    for base in ("iql", "td3_bc"):
        uniform = end("trajectory-weighting", "trajectory_weighting", MIXED, f"{base}-uniform")
        for sampler in ("rw", "aw"):
            assert end("trajectory-weighting", "trajectory_weighting", MIXED, f"{base}-{sampler}") > uniform + 25
    for sampler in ("rw", "aw"):
        ours = end("trajectory-weighting", "trajectory_weighting", REPLAY, f"td3_bc-{sampler}")
        assert ours > 3 * end("trajectory-weighting", "trajectory_weighting", REPLAY, "td3_bc-uniform")


def test_mcep():
    evaluated = end("mcep", "mcep", REPLAY, "td3_bc")
    assert evaluated > 1.5 * under("act_with=target", "mcep", "mcep", REPLAY, "td3_bc")
    assert evaluated > 1.5 * end("mcep", "mcep", REPLAY, "mild-values")
    assert end("mcep", "mcep", EXPERT, "td3_bc") < under("act_with=target", "mcep", "mcep", EXPERT, "td3_bc")


@pytest.mark.parametrize("dataset", [REPLAY, MAZE])
def test_f_dvl(dataset):
    temperatures = [end("f-dvl", "f_dvl", dataset, "xql", f"loss_temperature={t}") for t in ("0.1", "0.5", "2", "10")]
    assert min(temperatures) == temperatures[0]


def test_crr_plus():
    assert end("crr-plus", "crr_plus", MAZE, "plus") > end("crr-plus", "crr_plus", MAZE, "crr")
    assert end("crr-plus", "crr_plus", MAZE, "crr") > end("crr-plus", "bc", MAZE)


def test_generative():
    for dataset in (REPLAY, MAZE):
        assert end("generative", "ofql", dataset) > end("generative", "diffusion_ql", dataset)
        assert end("generative", "edp", dataset, "td3") < end("generative", "diffusion_ql", dataset)
    assert end("generative", "fql", MAZE) > end("generative", "diffusion_ql", MAZE)
    assert end("generative", "ofql", REPLAY, "eta-0.3") < 5


def test_hy_q():
    for variant in ("hybrid", "hybrid-lock-1"):
        assert end("hy-q", "hy_q", LOCK, variant) > 70
    assert end("hy-q", "hy_q", LOCK, "hybrid-lock-1") == 100
    assert end("hy-q", "hy_q", LOCK, "online") < 10
    for variant in ("offline", "offline-lock-1"):
        assert end("hy-q", "hy_q", LOCK, variant) < 50


def test_hnpg():
    assert end("hnpg", "hnpg", LOCK, "hybrid") > 95
    assert max(end("hnpg", "hnpg", LOCK, mode) for mode in ("online", "offline")) < 10


def test_rlpd():
    ours, alone = (curve("rlpd", "rlpd", REPLAY, variant) for variant in ("", "online-only"))
    assert ours[-1] > 3 * alone[-1]
    assert ours[-1] > 2 * end("rlpd", "rlpd", REPLAY, "no-layer-norm")
    assert (ours[:7] < alone[-1] + 5).all()  # the part of the claim that is not seen
    ours, alone = (curve("rlpd", "rlpd", MAZE, variant) for variant in ("", "online-only"))
    assert ours[-1] > alone[-1] + 30
    assert ours[: 2 * len(ours) // 3].max() < alone[-1] < ours[3 * len(ours) // 4 - 1]


def test_cal_ql():
    ours, plain = curve("cal-ql", "cal_ql", REPLAY), curve("cal-ql", "cal_ql", REPLAY, "cql")
    assert plain[1:4].min() < plain[0] / 2
    assert ours[1:].min() > ours[0] - 1
    ours, plain = curve("cal-ql", "cal_ql", MAZE), curve("cal-ql", "cal_ql", MAZE, "cql")
    assert ours[0] > plain[0] + 10 and ours[-1] > 2 * plain[-1]


def test_wsrl():
    with_warm_up, without = curve("wsrl", "wsrl", PENDULUM), curve("wsrl", "wsrl", PENDULUM, "no-warm-up")
    assert without[1:].min() < 0.75 * without[0] and with_warm_up[1:].min() > 0.8 * with_warm_up[0]
    assert min(with_warm_up[-1], without[-1]) > 100
    with_warm_up, without = curve("wsrl", "wsrl", REPLAY), curve("wsrl", "wsrl", REPLAY, "no-warm-up")
    assert without[1] < without[0] / 2.5 and without[1:].max() < without[0]
    assert with_warm_up.min() > 0.8 * with_warm_up[0] and with_warm_up[-1] > with_warm_up[0]
    for variant in ("", "no-warm-up", "retention"):
        rises = curve("wsrl", "wsrl", MAZE, variant)
        assert rises[-1] > 2.5 * rises[0] and rises.min() == rises[0]


def test_h2o():
    ours = end("h2o", "h2o", PENDULUM)
    assert ours > 95
    assert max(end("h2o", "h2o", PENDULUM, variant) for variant in ("plain-mix", "simulator-only")) < 50
    assert end("h2o", "cql", PENDULUM) > 95  # the part of the claim that is not seen


def test_iql_finetune():
    weak = curve("iql-finetune", "iql_finetune", WEAK)
    assert weak[-1] > weak[0] + 15 and weak.min() > weak[0] - 5


def test_ro2o():
    ours, without = curve("ro2o", "ro2o", MAZE), curve("ro2o", "ro2o", MAZE, "no-terms")
    assert ours.min() > ours[0] / 2 and without.min() < without[0] / 5
    assert ours[-1] < 0.8 * ours[0] and without[-1] > 0.9 * without[0]  # the part of the claim that is not seen


def test_e2o():
    two, ten = curve("e2o", "e2o", PENDULUM, "two"), curve("e2o", "e2o", PENDULUM, "ten")
    assert ten[0] > two[0] and ten[1:].mean() > two[1:].mean()
    pair_min, full = curve("e2o", "e2o", PENDULUM, "pair-min"), curve("e2o", "e2o", PENDULUM, "full", "ucb=10")
    assert abs(pair_min[1:].mean() - ten[1:].mean()) < 5 and full[1:].mean() < pair_min[1:].mean() - 10


def test_sung():
    ours, td3 = curve("sung", "sung", PENDULUM), curve("sung", "sung", PENDULUM, "td3")
    assert ours[-1] > 2 * end("sung", "sung", PENDULUM, "td3-bc")
    assert ours[1] > ours[0] and td3[1] < td3[0]
    for variant in ("", "td3", "td3-bc"):  # the part of the claim that is not seen
        assert end("sung", "sung", MAZE, variant) < curve("sung", "sung", MAZE, variant)[0]


def test_uni_o4():
    for dataset, more in ((PENDULUM, 5), (REPLAY, 1)):
        ours, cloned = curve("uni-o4", "uni_o4", dataset), end("uni-o4", "bc", dataset)
        assert ours[0] > cloned + more and ours[0] > curve("uni-o4", "uni_o4", dataset, "no-gate")[0] + more
    assert curve("uni-o4", "uni_o4", MAZE)[0] < end("uni-o4", "bc", MAZE)
    for dataset, more in ((PENDULUM, 10), (REPLAY, 2), (MAZE, 8)):
        ours = curve("uni-o4", "uni_o4", dataset)
        assert ours[-1] > ours[0] + more and ours.min() > ours[0] - 1
