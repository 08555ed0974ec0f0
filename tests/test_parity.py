"""Parity with released code: a planted difference is found, and what is committed is what was measured."""

import ast
import json
import types

import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT

from results.pages.parity import parity_page
from results.parity import FOLDER, TOLERANCE, comparisons, follow, main, measure, relative
from results.references import Case, StandIn, Step, _Finder, replace, restore, tie
from shared.errors import InputError

PEER = """
import gym
from wandb.sdk import anything

@gym.register("x")
def step(w, target, x, y):
    w = w - 0.1 * 2 * ((x @ w - y)[:, None] * x).mean(0)
    return w, 0.9 * target + 0.1 * w, ((x @ w - y) ** 2).mean()
"""
"""A reference: least squares, with a target that follows; its loss is the one after the step."""


CONSTANTS = types.SimpleNamespace(decay=0.01)


def toy(checkout, undo):
    """Ours: the same with weight decay, which is the deviation `decay`."""
    from results.references import theirs

    peer, rng = theirs(checkout, "peer.py"), np.random.default_rng(0)
    w = v = rng.normal(size=3)
    t = u = rng.normal(size=3)
    losses = {}
    while True:
        yield Step(losses, {"w": ([w], [v]), "target": ([t], [u])})
        x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
        w = w - 0.1 * (2 * ((x @ w - y)[:, None] * x).mean(0) + CONSTANTS.decay * w)
        t = 0.9 * t + 0.1 * w
        v, u, loss = peer.step(v, u, x, y)
        losses = {"loss": ([((x @ w - y) ** 2).mean()], [loss])}


@pytest.fixture(autouse=True)
def nothing_replaced():
    yield
    restore()


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    return tmp_path


def compare(checkout, undo):
    if "decay" in undo:
        replace(CONSTANTS, "decay", 0.0)
    return toy(checkout, undo)


CASE = Case("someone/something", "peer.py", compare, deviations={"decay": "the weights decay"})


def test_sides_that_differ_by_the_deviation_alone_agree_and_it_is_measured(checkout):
    found = measure(CASE, checkout)
    assert found["agrees"] and set(found["after"]) == {1, 10}
    assert max(found["after"][10]["parameters"].values()) < 1e-12
    assert found["deviations"]["decay"]["parameters"] > 1e-4 and found["deviations"]["decay"]["losses"] > 1e-5


@pytest.mark.parametrize(
    "said, planted, where",
    [
        ("0.1 * 2 *", "0.1 * 2.0000001 *", "w"),
        ("0.1 * w", "0.1 * (w + 1e-7)", "target"),
        ("** 2).mean()", "** 2).mean() + 1e-7", "loss"),
    ],
)
def test_a_planted_difference_is_found(checkout, said, planted, where):
    (checkout / "peer.py").write_text(PEER.replace(said, planted))
    found = measure(CASE, checkout)
    last = found["after"][10]
    assert not found["agrees"] and {**last["losses"], **last["parameters"]}[where] > TOLERANCE["float64"]


def test_what_one_comparison_replaces_is_back_for_the_next(checkout):
    """Else the deviation, left in, would still be undone."""
    seen = []

    def looking(checkout, undo):
        seen.append(CONSTANTS.decay)
        return compare(checkout, undo)

    measure(CASE._replace(compare=looking), checkout)
    assert seen == [0.01, 0.01]


def test_a_network_that_never_moves_must_be_expected(checkout):
    """Equal because nothing happens is no agreement."""

    def frozen(checkout, undo):
        for step in compare(checkout, undo):
            yield step._replace(parameters={**step.parameters, "target": ([np.ones(3)], [np.ones(3)])})

    with pytest.raises(InputError, match="no update moved.*target"):
        measure(CASE._replace(compare=frozen), checkout)
    assert measure(CASE._replace(compare=frozen, still=("target",)), checkout)["agrees"]


def test_sides_must_start_alike():
    with pytest.raises(InputError, match="do not start with the same w"):
        follow(iter([Step({}, {"w": ([np.ones(3)], [np.zeros(3)])})]))


def test_relative_differences():
    assert relative([1.0, 2.0], [1.0, 4.0]) == 0.5  # of the largest entry
    assert relative([0.0], [0.0]) == 0 and relative([1.0], [np.nan]) == np.inf and relative([[1.0]], [1.0]) == np.inf


def test_a_stand_in_is_whatever_a_reference_asks_for():
    gym = StandIn("gym")

    class Wrapper(gym.Wrapper):
        pass

    @gym.wrap(1)
    def same(x):
        return x + 1

    assert Wrapper.__bases__ == (object,) and same(1) == 2
    assert _Finder(("gym",)).find_spec("gym.spaces", None) and not _Finder(("gym",)).find_spec("gymnasium", None)


class Linear:
    """What `tie` looks at of a torch layer."""

    def __init__(self, *shape):
        self.weight, self.bias = np.zeros(shape), np.zeros(shape[0])

    def modules(self):
        return [self]

    def parameters(self):
        return [self.weight, self.bias]


def test_parameters_are_tied_layer_by_layer_and_none_is_left_over():
    tree = {"params": {"Dense_0": {"kernel": np.ones((2, 5)), "bias": np.ones(5)}}}
    kernel, bias = tie(tree, Linear(5, 2))
    assert kernel.array.shape == (5, 2) and bias.array.shape == (5,)
    with pytest.raises(InputError, match="another shape"):
        tie(tree, Linear(2, 5))
    with pytest.raises(InputError, match="2 layers"):
        tie({"params": {**tree["params"], "Dense_1": tree["params"]["Dense_0"]}}, Linear(5, 2))
    other = Linear(5, 2)
    other.parameters = lambda: [other.weight, other.bias, np.zeros(1)]
    with pytest.raises(InputError, match="1 parameters of the reference"):
        tie(tree, other)


@pytest.mark.parametrize("words", [["td3_b"], ["td3_bc"], [], ["--corl", "/nowhere", "td3_bc"]])
def test_bad_input_is_one_sentence(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("parity.py: ")


RAW = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", RAW, ids=lambda path: path.stem)
def test_raw_results_are_of_the_comparisons_that_exist(path):
    """What is committed agrees, was measured whole, and the algorithm's docstring points to it."""
    file = next(p for p in ALGORITHMS if p.stem == path.stem.partition("-")[0])
    cases, results = comparisons()[path.stem], json.loads(path.read_text())
    assert results.keys() == cases.keys()
    for name, result in results.items():
        case = cases[name]
        assert (result["reference"], result["file"]) == (case.reference, case.file) and len(result["commit"]) == 40
        assert result["agrees"] and set(result["after"]) == {"1", "10"}
        assert {d: found["what"] for d, found in result["deviations"].items()} == case.deviations
        undone = max(max(kind.values()) for kind in result["after"]["10"].values())
        for found in result["deviations"].values():  # each changes something
            assert max(found["losses"], found["parameters"]) > 100 * undone
        assert result["note"] == case.note
    assert "\nParity: " in ast.get_docstring(ast.parse(file.read_text()))


def test_every_algorithm_that_claims_parity_has_a_result():
    claimed = {p.stem for p in ALGORITHMS if "\nParity: " in (ast.get_docstring(ast.parse(p.read_text())) or "")}
    assert claimed == {path.stem.partition("-")[0] for path in RAW}


def test_the_table_is_that_of_the_raw_results():
    page = parity_page(ROOT)
    assert (ROOT / "results" / "parity.md").read_text() == page
    assert all(f"| {path.stem}" in page for path in RAW) and "differs by" not in page
