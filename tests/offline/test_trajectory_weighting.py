"""The weights of trajectory_weighting against their equations; uniform sampling against the base algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from released import ADROIT, ANTMAZE, KITCHEN, MUJOCO, every, wrong_settings
from scipy.special import softmax

from shared.data import Dataset
from shared.errors import InputError
from shared.task import Spec, Task

LENGTHS = (4, 1, 3, 7)


def log_of(returns, first=None, lengths=LENGTHS) -> Dataset:
    """Episodes of these returns (spread over their rows unevenly), lengths and first observations."""
    r = np.random.default_rng(0)
    last = np.zeros(sum(lengths), bool)
    last[np.cumsum(lengths) - 1] = True
    reward = r.normal(size=len(last))
    obs = r.normal(size=(len(last), 2)).astype(np.float32)
    for i, (end, n) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        reward[end - 1] += returns[i] - reward[end - n : end].sum()
        if first is not None:
            obs[end - n] = first[i]
    spec = Spec((2,), 1, False, (-1.0,), (1.0,))
    action = np.zeros((len(last), 1), np.float32)
    return Dataset(Task("log", "", spec), obs, action, reward.astype(np.float32), obs, last, last)


def probabilities(data, **settings) -> np.ndarray:
    module = load("trajectory_weighting")
    weights = module.sampling_weights(data, module.Args(**settings))
    return weights / weights.sum()


def test_rw_is_a_softmax_over_transitions_of_the_scaled_return():
    returns = np.array([5.0, -3.0, 13.0, 1.0])
    c = np.repeat((returns + 3) / 16, LENGTHS)
    p = probabilities(log_of(returns), sampler="rw", weight_temperature=0.2)
    np.testing.assert_allclose(p, softmax(c / 0.2), rtol=1e-5)
    scaled = probabilities(log_of(returns).scale_rewards(1000.0), sampler="rw", weight_temperature=0.2)
    np.testing.assert_allclose(scaled, p, rtol=1e-5)  # the size of rewards does not matter


def test_longer_episodes_have_more_mass():
    p = probabilities(log_of([1.0, 1.0, 0.0, 0.0]), sampler="rw")
    np.testing.assert_allclose(p[:4].sum() / p[4], 4.0, rtol=1e-5)


def test_aw_is_over_what_the_first_state_promises():
    """RW prefers the lucky start; AW the episode that did better than its start lets expect."""
    r = np.random.default_rng(1)
    lengths = (3,) * 40
    first = r.normal(size=(40, 2))
    skill = r.normal(size=40)
    returns = 50.0 * first[:, 0] - 20.0 * first[:, 1] + 7.0 + skill
    data = log_of(returns, first, lengths)
    p = probabilities(data, sampler="aw", weight_temperature=0.3)
    design = np.c_[first, np.ones(40)]
    a = returns - design @ np.linalg.solve(design.T @ design, design.T @ returns)
    expected = softmax(np.repeat((a - a.min()) / np.ptp(a), 3) / 0.3)
    np.testing.assert_allclose(p, expected, rtol=1e-3)
    by_rw = probabilities(data, sampler="rw", weight_temperature=0.3)
    assert skill[p[::3].argmax()] == pytest.approx(skill.max(), abs=0.5) and by_rw[::3].argmax() == returns.argmax()


@pytest.mark.parametrize("sampler", ["aw", "rw"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1234.567])
def test_equal_returns_are_sampled_uniformly(sampler, value):
    """0 / 0 in the scaling; and what float32 rewards leave of the returns, or of a regression, is no preference."""
    data = log_of(np.full(60, value), lengths=(5,) * 60)
    np.testing.assert_array_equal(probabilities(data, sampler=sampler, weight_temperature=1e-3), 1 / 300)


def test_returns_that_differ_little_are_told_apart():
    returns = 1000.0 + np.array([0.0, 0.25, 1.0, 0.5])
    p = probabilities(log_of(returns), sampler="rw", weight_temperature=0.2)
    np.testing.assert_allclose(p, softmax(np.repeat(returns - 1000.0, LENGTHS) / 0.2), rtol=0.01)


def test_advantages_of_fewer_episodes_than_observations_are_rounding():
    """The regression explains every return: nothing is left to prefer."""
    p = probabilities(log_of([5.0, -3.0, 13.0], lengths=(4, 1, 3)), sampler="aw", weight_temperature=1e-3)
    np.testing.assert_array_equal(p, 1 / 8)


def test_effective_rows():
    module = load("trajectory_weighting")
    assert module.effective_rows(np.ones(7)) == pytest.approx(7) and module.effective_rows(np.eye(9)[2]) == 1


@pytest.mark.parametrize("temperature", [0.0, -0.1])
@pytest.mark.parametrize("sampler", ["aw", "rw"])
def test_a_temperature_that_is_not_over_zero_is_one_sentence(sampler, temperature):
    with pytest.raises(InputError, match="must be over 0"):
        probabilities(log_of([1.0, 2.0, 3.0, 4.0]), sampler=sampler, weight_temperature=temperature)


@pytest.mark.long
@pytest.mark.parametrize("base", ["iql", "td3_bc"])
def test_uniform_sampling_is_the_base_algorithm(pendulum, tmp_path, base):
    """A whole run: the same networks and optimiser states as iql.py or td3_bc.py of the same seed."""
    ours = train("trajectory_weighting", pendulum, tmp_path / "ours", base=base, sampler="uniform", updates=20)
    theirs = train(base, pendulum, tmp_path / "theirs", updates=20)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("base", ["iql", "td3_bc"])
@pytest.mark.parametrize("sampler", ["rw", "top"])
def test_every_sampler_trains_under_every_base(pendulum, tmp_path, base, sampler):
    mapped = {"base": base, "layout": "map"}
    with jax.debug_key_reuse(True):  # the check takes a part of a batch of keys for the whole: mapped
        agent = train("trajectory_weighting", pendulum, tmp_path / "run", sampler=sampler, **mapped)
    other = train("trajectory_weighting", pendulum, tmp_path / "uniform", sampler="uniform", **mapped)
    assert all(np.isfinite(v).all() for v in agent.values())
    assert any(np.abs(agent[name] - other[name]).max() > 1e-6 for name in agent if ".critic[" in name)
    record = (tmp_path / "run" / "run.json").read_text()
    assert ("effective_rows" in record) == (sampler == "rw") and ("top_fraction" in record)


def test_the_sampled_rows_are_those_of_the_good_episodes():
    """5 good episodes among 1000: almost all of what is drawn."""
    r = np.random.default_rng(0)
    returns = np.where(np.arange(1000) < 5, 100.0, r.uniform(0, 5, 1000))
    data = log_of(returns, lengths=(20,) * 1000)
    module = load("trajectory_weighting")
    weights = module.sampling_weights(data, module.Args(sampler="rw"))
    drawn = data.transitions(weights=weights).sample(jax.random.key(0), 20_000).obs
    good = np.isin(np.asarray(drawn)[:, 0], data.obs[:100, 0]).mean()
    p = softmax(np.repeat((returns - returns.min()) / np.ptp(returns), 20) / 0.1)
    assert good == pytest.approx(p[:100].sum(), abs=0.01) and good > 0.98
    assert jnp.asarray(drawn).shape == (20_000, 2)


def test_settings_are_those_released():
    """experiments/d4rl/run_iql.py of Improbable-AI/harness-offline-rl at cb6e709; its Adroit is MuJoCo's."""
    common = {"base": "iql", "weight_temperature": 0.1, "top_fraction": 0.1, "batch_size": 256, "eval_episodes": 10}
    expected = {
        **every(MUJOCO, **common, expectile=0.7, beta=3.0, dropout=0.0, normalize_return=True),
        **every(ADROIT, **common, expectile=0.7, beta=3.0, dropout=0.0, normalize_return=False),
        **every(ANTMAZE, **common, expectile=0.9, beta=10.0, dropout=0.0, reward_shift=-1.0),
        **every(["maze2d-umaze-v1", "maze2d-large-dense-v1"], **common, expectile=0.9, beta=10.0, reward_shift=0.0),
        **every(KITCHEN, **common, expectile=0.7, beta=0.5, dropout=0.1),
    }
    assert not wrong_settings(load("trajectory_weighting"), expected)
