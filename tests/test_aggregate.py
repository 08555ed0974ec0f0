"""Statistics over lanes against rliable's, and policy selection against what can be worked out by hand."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from results.aggregate import budget_curve, iqm, iqm_interval, performance_profile, probability_of_improvement

RNG = np.random.default_rng(5)
X, Y = RNG.normal(50, 20, (6, 3)).round(), RNG.normal(40, 20, (6, 3)).round()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 20])
def test_iqm_is_scipys_trimmed_mean(n):
    x = np.random.default_rng(n).normal(size=n) ** 3
    np.testing.assert_allclose(iqm(x), trim_mean(x, 0.25))


def test_interval_is_rliables():
    from rliable.library import get_interval_estimates

    # a lane is good or bad in all tasks: drawing whole lanes would give a far wider interval
    scores = np.arange(6)[:, None] * 10.0 + [0, 4, 8]
    np.random.seed(0)  # noqa: NPY002 (what rliable draws from)
    theirs = get_interval_estimates({"x": scores}, lambda s: np.array([trim_mean(s, 0.25, None)]), reps=4000)
    _, low, high = iqm_interval(scores, reps=20_000)
    np.testing.assert_allclose([low, high], theirs[1]["x"][:, 0], atol=0.5)


def test_interval_is_stratified():
    """Lanes that agree within every task leave no doubt, however much the tasks differ."""
    assert iqm_interval(np.tile([10.0, 50.0, 90.0], (5, 1))) == (50.0, 50.0, 50.0)


def test_profile_is_rliables():
    from rliable.library import create_performance_profile

    taus = np.linspace(0, 100, 6)
    np.random.seed(0)  # noqa: NPY002 (what rliable draws from)
    theirs, bounds = create_performance_profile({"x": X}, taus, reps=4000)
    share, interval = performance_profile(X, taus, reps=4000)
    np.testing.assert_allclose(share, theirs["x"])
    np.testing.assert_allclose(interval, bounds["x"], atol=0.06)


def test_probability_of_improvement_is_rliables():
    from rliable.metrics import probability_of_improvement as theirs

    middle, low, high = probability_of_improvement(X, Y)
    np.testing.assert_allclose(middle, theirs(X, Y))
    assert low < middle < high
    assert probability_of_improvement(X, X)[0] == 0.5  # ties count half
    assert probability_of_improvement(X + 200, Y) == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(probability_of_improvement(Y, X)[0], 1 - middle)


def test_probability_of_improvement_of_unequal_numbers_of_lanes():
    """Of 2 x 3 pairs on the first task 5, on the second 1.5 are won."""
    x, y = np.array([[2, 2], [4, 1]]), np.array([[1, 2], [3, 3], [0, 4]])
    np.testing.assert_allclose(probability_of_improvement(x, y)[0], (5 / 6 + 0.5 / 6) / 2)


def test_interval_of_improvement_is_stratified():
    """Lanes that agree within every task leave no doubt, though the winner changes with the task."""
    x, y = np.tile([10.0, 90.0], (4, 1)), np.tile([20.0, 30.0], (4, 1))
    assert probability_of_improvement(x, y) == (0.5, 0.5, 0.5)


def test_after_one_episode_the_pick_is_a_policy_at_random():
    settings = [np.full((2, 5), value) for value in (0.0, 30.0, 90.0)]
    curve = budget_curve(settings, 12)
    np.testing.assert_allclose(curve[0], 40.0, atol=2.5)
    # once every policy was tried, the best is known: its episodes are all alike
    assert (curve[2:] == 90.0).all() and curve[0] < curve[1] < 90.0


def test_a_policy_that_was_not_tried_is_not_picked():
    """Of negative scores too, where no mean yet is no zero: after two of three, the better of the two."""
    curve = budget_curve([np.full((1, 5), value) for value in (-90.0, -60.0, -30.0)], 3)
    np.testing.assert_allclose(curve, [-60, -40, -30], atol=2.5)


def test_noisy_episodes_cost_more_of_them():
    rng = np.random.default_rng(0)
    quiet = [mean + rng.normal(0, 1, (1, 50)) for mean in (40, 45, 50)]
    noisy = [mean + rng.normal(0, 60, (1, 50)) for mean in (40, 45, 50)]
    noisy = [x - x.mean() + mean for x, mean in zip(noisy, (40, 45, 50), strict=True)]
    quiet = [x - x.mean() + mean for x, mean in zip(quiet, (40, 45, 50), strict=True)]
    np.testing.assert_allclose(budget_curve(quiet, 3)[-1], 50)
    late = budget_curve(noisy, 100)
    assert late[2] < 48 and late[2] < late[-1] < 50


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_setting_is_worth_its_lanes_mean(lanes):
    """One lane of it is drawn in each repetition; a single setting has nothing to choose."""
    settings = [np.arange(lanes)[:, None] + np.zeros((lanes, 3))]
    np.testing.assert_allclose(budget_curve(settings, 4), (lanes - 1) / 2, atol=0.1)
