"""Pareto fronts against brute force, and indicators against areas and sums by hand."""

import jax.numpy as jnp
import numpy as np

from shared.pareto import crowding_distance, expected_utility, hypervolume, non_dominated, simplex_lattice, sparsity

INF = np.inf


def test_what_no_other_point_dominates_and_of_equal_ones_the_first():
    points = np.float32([[1, 3], [2, 2], [2, 2], [0, 3], [3, 0], [2, 1], [-INF, -INF], [np.nan, 9]])
    assert np.asarray(non_dominated(points)).tolist() == [True, True, False, False, True, False, False, False]
    random = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.float32)
    brute = [
        not any(
            (b >= a).all() and ((b > a).any() or j < i) for j, b in enumerate(random) if j != i
        )
        for i, a in enumerate(random)
    ]  # fmt: skip
    assert np.asarray(non_dominated(random)).tolist() == brute and 0 < sum(brute) < 20


def test_crowding_distance_is_of_neighbours_in_each_objective_as_shares_of_its_range():
    points = np.float32([[0, 10], [1, 6], [4, 5], [-INF, -INF], [10, 0]])
    present = np.isfinite(points).all(1)
    found = np.asarray(crowding_distance(points, present))
    np.testing.assert_allclose(found, [INF, 4 / 10 + 5 / 10, 9 / 10 + 6 / 10, -INF, INF], rtol=1e-6)
    one = np.asarray(crowding_distance(points, jnp.arange(5) == 2))
    assert one.tolist() == [-INF, -INF, INF, -INF, -INF]
    assert np.isneginf(np.asarray(crowding_distance(points, jnp.zeros(5, bool)))).all()
    alike = np.asarray(crowding_distance(np.float32([[0, 1], [0, 1], [0, 1]]), jnp.ones(3, bool)))
    assert not np.isnan(alike).any()


def test_weights_lie_on_a_lattice_of_the_simplex():
    np.testing.assert_allclose(simplex_lattice(2, 2), [[1, 0], [0.5, 0.5], [0, 1]])
    three = simplex_lattice(3, 4)
    assert len(three) == 15 == len({tuple(row) for row in three}) and (three >= 0).all()
    np.testing.assert_allclose(three.sum(1), 1.0)


def test_indicators_by_hand():
    """Above (0, 1) the points (1, 3) and (2, 2) dominate 1 x 2 + 1 x 1; (3, 1) and (-1, 9) add nothing."""
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [-1.0, 9.0]])
    assert hypervolume(points, np.array([0.0, 1.0])) == 3.0
    assert hypervolume(points[2:], np.array([0.0, 1.0])) == 0.0
    np.testing.assert_allclose(sparsity(points), (4 + 1 + 1 + 1 + 1 + 36) / 3)
    assert sparsity(points[:1]) == sparsity(points[:0]) == 0.0
    np.testing.assert_allclose(expected_utility(points, np.array([[1.0, 0.0], [0.5, 0.5]])), (3.0 + 4.0) / 2)
    assert np.isnan(expected_utility(points[:0], np.array([[1.0, 0.0]])))
