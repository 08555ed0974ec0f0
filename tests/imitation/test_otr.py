"""The losses of otr against the equations in plain numpy; its plans, its labels, and what they are written as."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from iql_in_numpy import check_iql
from jobs import small
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import load_demonstrated

SMALL = {"sinkhorn_iterations": 5}


def plan_in_numpy(cost, a, b, epsilon, iterations=2000):
    """Sinkhorn and Knopp's scaling of a matrix."""
    kernel, v = np.exp(-cost / epsilon), np.ones(len(b))
    for _ in range(iterations):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return u[:, None] * kernel * v[None]


def two(seed=0, n=4, m=3, size=3):
    r = np.random.default_rng(seed)
    return r.normal(size=(n, size)).astype(np.float32), r.normal(size=(m, size)).astype(np.float32)


def cosine(x, y):
    norms = [np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    return 1 - (x / norms[0]) @ (y / norms[1]).T


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("otr"), batch)


def test_the_cost_is_one_minus_the_cosine():
    x, y = two()
    np.testing.assert_allclose(load("otr").cosine_cost(x, y), cosine(x, y), atol=1e-6)
    assert np.isfinite(load("otr").cosine_cost(0 * x, y)).all()


@pytest.mark.long
def test_a_plan_has_its_marginals_and_the_least_cost():
    otr, (x, y) = load("otr"), two()
    cost, a, b = cosine(x, y), np.full(4, 0.25), np.full(3, 1 / 3)
    plan = np.asarray(otr.transport_plan(cost, a, b, 0.1, 500))
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-5)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-5)
    np.testing.assert_allclose(plan, plan_in_numpy(cost, a, b, 0.1), atol=1e-5)
    x, y = two(1, 6, 6)
    plan = np.asarray(otr.transport_plan(cosine(x, y), np.full(6, 1 / 6), np.full(6, 1 / 6), 0.005, 3000))
    rows, columns = linear_sum_assignment(cosine(x, y))
    assert plan.argmax(1).tolist() == columns.tolist() and rows.tolist() == [*range(6)]
    np.testing.assert_allclose((plan * cosine(x, y)).sum(), cosine(x, y)[rows, columns].mean(), atol=1e-3)


@pytest.mark.parametrize("iterations", [1, 3])
def test_each_step_of_an_episode_has_its_weight_before_the_plan_converges(iterations):
    """Else a step that no demonstration is near to would weigh little, and its cost be taken for a small one."""
    otr, (x, y) = load("otr"), two()
    plan = np.asarray(otr.transport_plan(cosine(x, y), np.full(4, 0.25), np.full(3, 1 / 3), 0.01, iterations))
    np.testing.assert_allclose(plan.sum(1), 0.25, atol=1e-5)
    assert np.abs(plan.sum(0) - 1 / 3).max() > 1e-3


@pytest.mark.long
def test_zeros_behind_an_episode_change_nothing():
    otr, (x, y) = load("otr"), two()
    costs = np.asarray(otr.step_costs(x, 4, y, 3, 0.1, 500))
    expected = 4 * (plan_in_numpy(cosine(x, y), np.full(4, 0.25), np.full(3, 1 / 3), 0.1) * cosine(x, y)).sum(1)
    np.testing.assert_allclose(costs, expected, rtol=1e-4)
    more, longer = np.r_[x, np.zeros((3, 3), np.float32)], np.r_[y, np.zeros((5, 3), np.float32)]
    found = np.asarray(otr.step_costs(more, 4, longer, 3, 0.1, 500))
    np.testing.assert_allclose(found[:4], costs, rtol=1e-5)
    np.testing.assert_array_equal(found[4:], 0)


def priced(otr, data, distance, returns=()):
    rows = np.flatnonzero(data.usable())
    columns = np.float32(distance), data.episode(), data.starts(), rows, np.float32(returns)
    return otr.Priced(data.transitions(), *map(jax.numpy.asarray, columns))


def test_labels_are_of_the_demonstration_that_gives_most(pendulum):
    otr, data = load("otr"), load_dataset(pendulum)
    distance = np.random.default_rng(0).uniform(0, 2, (2, 300))
    of = 3.0 * np.exp(-2.0 * distance / 3)
    best = of.reshape(2, 10, 30).sum(2).argmax(0)
    assert 0 < best.sum() < 10
    expected = of.reshape(2, 10, 30)[best, np.arange(10)].ravel()
    args = otr.Args(squash_alpha=3.0, squash_beta=2.0, normalize_return=False)
    np.testing.assert_allclose(otr.labels(priced(otr, data, distance), args), expected, rtol=1e-5)
    whole = dataclasses.replace(args, by_dimensions=False)
    one = priced(otr, data, distance[:1])
    np.testing.assert_allclose(otr.labels(one, whole), 3.0 * np.exp(-2.0 * distance[0]), rtol=1e-5)
    np.testing.assert_allclose(otr.training_labels(priced(otr, data, distance), args), expected, rtol=1e-5)
    scaled = dataclasses.replace(args, normalize_return=True, reward_shift=-2.0)
    scale = 1000 / np.ptp(expected.reshape(10, 30).sum(1))
    found = otr.training_labels(priced(otr, data, distance), scaled)
    np.testing.assert_allclose(found, scale * expected - 2.0, rtol=1e-3, atol=1e-3)
    constant = otr.training_labels(priced(otr, data, distance), dataclasses.replace(scaled, squash_beta=0.0))
    np.testing.assert_allclose(constant, 1.0, rtol=1e-6)  # all 3, shifted by -2: there is no range to divide by


@pytest.mark.long
def test_an_episodes_labels_do_not_depend_on_the_others(pendulum):
    otr = load("otr")
    data, demos, _ = load_demonstrated(otr.Args(dataset=pendulum))
    args = otr.Args(sinkhorn_iterations=20)
    lengths = np.arange(300) % 30 == 29
    lengths[9] = True  # a shorter one
    data = dataclasses.replace(data, last=lengths)
    before = otr.distances(data, demos, args)
    assert before.shape == (1, 300)
    obs = data.obs.copy()
    obs[30:60] = np.random.default_rng(1).normal(size=(30, 3))
    after = otr.distances(dataclasses.replace(data, obs=obs), demos, args)
    same = np.r_[0:30, 60:300]
    np.testing.assert_array_equal(before[:, same], after[:, same])
    assert (np.abs(before - after)[:, 30:60] > 1e-4).mean() > 0.5
    alone = data.select(np.arange(300) < 10)
    np.testing.assert_allclose(otr.distances(alone, demos, args), before[:, :10], rtol=1e-4, atol=1e-6)


def test_a_row_is_trained_on_with_its_own_label(pendulum, monkeypatch):
    """Rows whose next observation is not known are left out: numbers of rows and of labels differ."""
    otr, data = load("otr"), load_dataset(pendulum)
    data = dataclasses.replace(data, reward=np.arange(300, dtype=np.float32), successor=np.arange(300) % 30 != 29)
    distance = np.arange(300)[None] / 300
    args = otr.Args(squash_alpha=1.0, squash_beta=3.0, normalize_return=False, batch_size=50)
    returns = -distance.reshape(10, 30).sum(1)

    monkeypatch.setattr(otr, "update", lambda agent, batch, key, args: (agent, {"r": batch.reward}))
    monkeypatch.setattr(otr.Transitions, "draw", lambda self, key, n: jax.numpy.arange(n))
    _, metrics = otr.train(None, jax.random.split(jax.random.key(0), 1), args, priced(otr, data, distance, returns))
    rows = np.flatnonzero(data.successor)[:50]
    np.testing.assert_allclose(metrics["r"], np.exp(-rows / 300).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["label_correlation"], 1.0, rtol=1e-5)
    data = dataclasses.replace(data, last=np.isin(np.arange(300), np.r_[4, 44, 59, 149, 299]))  # of any length
    returns = np.add.reduceat(np.exp(-distance[0]), data.starts())
    args = dataclasses.replace(args, reward_shift=-1.0)
    _, metrics = otr.train(None, jax.random.split(jax.random.key(0), 1), args, priced(otr, data, distance, returns))
    np.testing.assert_allclose(metrics["r"], np.exp(-rows / 300).mean() - 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["label_correlation"], 1.0, rtol=1e-5)  # of the labels, as they are written


@pytest.mark.long
def test_labels_follow_the_true_returns():
    """On data of four controllers, one demonstration."""
    import make  # of datasets/

    make.make("pendulum-mixed", steps=4000)
    otr = load("otr")
    data, demos, returns = load_demonstrated(otr.Args(dataset="pendulum-mixed", env="none"))
    distance = otr.distances(data, demos, otr.Args())
    label = np.asarray(otr.labels(priced(otr, data, distance), otr.Args()))
    assert len(returns) == 20 and spearmanr(label.reshape(20, 200).sum(1), returns).statistic > 0.7


@pytest.mark.long
def test_labels_are_written_for_any_other_script(pendulum, tmp_path):
    otr, path = load("otr"), tmp_path / "pendulum-otr.npz"
    args = small("otr", pendulum, tmp_path / "run", squash_beta=(2.0, 7.0), write_dataset=str(path))
    otr.main(args)
    data, demos, _ = load_demonstrated(args)
    one = dataclasses.replace(args, squash_beta=2.0)
    expected = otr.labels(priced(otr, data, otr.distances(data, demos, args)), one)
    written = load_dataset(str(path))
    np.testing.assert_allclose(written.reward, expected, rtol=1e-5)
    load("td3_bc").main(small("td3_bc", str(path), tmp_path / "td3_bc"))
    assert (tmp_path / "td3_bc" / "returns.csv").exists()


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    otr, goals = load("otr"), write_goals(tmp_path / "maze.npz")
    nowhere = write_pendulum(tmp_path / "pendulum-nowhere.npz", scale=0.0)
    for dataset, changes, message in (
        (pendulum, {"demos": (goals,)}, "has other observations"),
        (pendulum, {"demos": (nowhere,)}, "have nothing in common with '.*': its rows are 1 to 1 away .* labels equal"),
        (pendulum, {"epsilon": 0.0}, "--epsilon and --sinkhorn-iterations must be above 0"),
        (pendulum, {"sinkhorn_iterations": 0}, "--epsilon and --sinkhorn-iterations must be above 0"),
        (cartpole, {}, "needs continuous actions"),
        (goals, {"env": "none"}, "has no rewards to choose its best episodes by"),
    ):
        with pytest.raises(InputError, match=message):
            otr.main(small("otr", dataset, tmp_path / "run", **changes))


def test_settings_are_those_released():
    """otr/configs/ of ethanluoyc/optimal_transport_reward: MuJoCo, AntMaze and Adroit."""
    otr = load("otr")
    mujoco = otr.Args()
    assert (mujoco.squash_alpha, mujoco.squash_beta, mujoco.expectile, mujoco.beta) == (5.0, 5.0, 0.7, 3.0)
    assert (mujoco.epsilon, mujoco.sinkhorn_iterations, mujoco.by_dimensions) == (0.01, 100, True)
    maze, hand = otr.PRESETS["antmaze"], otr.PRESETS["pen-"]
    assert (maze["squash_beta"], maze["by_dimensions"], maze["reward_shift"]) == (1.0, False, -2.0)
    assert (maze["expectile"], maze["beta"], hand["beta"], hand["dropout"]) == (0.9, 10.0, 0.5, 0.1)
