"""ICU-Sepsis: the compact tables, exact values, the environment and its datasets against the file's own matrices."""

import gymnasium as gym
import jax
import make
import numpy as np
import pytest
import sepsis
from environments import icu_sepsis
from environments.icu_sepsis import ACTIONS, DEATH, FILE, STATES, SURVIVAL, action_values, dynamics, expected_return

from shared.data import load_dataset
from shared.errors import InputError


@pytest.fixture(scope="module")
def transitions():
    return icu_sepsis.tables()[0]


def test_the_compact_rows_are_those_of_the_file(transitions):
    known = dynamics()
    for state, action in np.random.default_rng(0).integers((STATES, ACTIONS), size=(60, 2)):
        row = known.row[state, action]
        probability = np.diff(np.minimum(known.cumulative[row], 1.0), prepend=0.0)
        dense = np.zeros(STATES)
        np.add.at(dense, known.following[row], probability)
        np.testing.assert_allclose(dense, transitions[state, action], atol=2e-7)
    assert known.row.max() + 1 == len(known.following) < 4000


def test_the_reward_is_the_files(transitions):
    with np.load(FILE) as file:
        reward = file["r_mat"]
    np.testing.assert_array_equal((transitions * reward).sum(-1)[:DEATH], transitions[:DEATH, :, SURVIVAL])


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_values_satisfy_bellmans_equations(transitions, discount):
    """Of a policy, and of the best one, which no policy is above."""
    clinicians, reward = icu_sepsis.policy_of_clinicians(), transitions[:, :, SURVIVAL]
    q, best = action_values(discount, clinicians), action_values(discount)
    for values, v in ((q, (clinicians * q).sum(1)), (best, best.max(1))):
        np.testing.assert_allclose(values[:DEATH], (reward + discount * transitions @ v)[:DEATH], atol=1e-10)
        assert (values[DEATH:] == 0).all()
    assert (q <= best + 1e-10).all() and q.max() <= 1


def test_scores_are_worth_their_exact_returns():
    best = np.eye(ACTIONS)[action_values(1.0).argmax(1)]
    pair = make.reference_scores()["ICUSepsis-v0"]
    assert round(expected_return(best), 4) == pair["max"]
    assert round(expected_return(np.full((STATES, ACTIONS), 1 / ACTIONS)), 4) == pair["min"]


@pytest.mark.long
def test_survival_in_data_is_as_likely_as_its_exact_value():
    """Of 2,000 patients under uniform treatment, within four standard errors; hardly one meets the time limit."""
    uniform = np.full((STATES, ACTIONS), 1 / ACTIONS)
    keys = jax.random.split(jax.random.key(0), 2000)
    states, _, rewards = sepsis._play(keys, np.log(uniform).astype(np.float32), 500)
    survived, exact = np.asarray(rewards.sum(1)), expected_return(uniform)
    assert set(np.unique(survived)) == {0.0, 1.0} and (np.asarray(states)[:, -1] >= DEATH).mean() > 0.999
    assert abs(survived.mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / 2000)


@pytest.mark.parametrize("observation", ["state", "features"])
def test_the_environment_ends_with_survival_or_death(observation):
    env = gym.make("ICUSepsis-v0", observation=observation)
    seen = []
    for _ in range(2):
        obs, _ = env.reset(seed=3)
        rows = [obs]
        terminated = False
        while not terminated:
            obs, reward, terminated, truncated, info = env.step(7)
            assert env.observation_space.contains(obs) and not truncated
            rows.append(obs)
        assert reward == info["success"] == (env.unwrapped.state == SURVIVAL)
        seen.append(np.array(rows))
    np.testing.assert_array_equal(*seen)
    if observation == "state":
        assert (seen[0][:-1] < DEATH).all() and seen[0][-1] in (DEATH, SURVIVAL)
    with pytest.raises(ValueError, match="choose from state, features"):
        icu_sepsis.SepsisFunctional("picture")


def test_a_dataset_holds_one_hot_states_and_ends(transitions):
    make.make("icu-sepsis-mixed", steps=400)
    data = load_dataset("icu-sepsis-mixed")
    assert data.spec.discrete and data.spec.action_dim == ACTIONS and data.obs.shape == (400, STATES)
    state, following = data.obs.argmax(1), data.next_obs.argmax(1)
    assert (data.obs.sum(1) == 1).all() and (transitions[state, data.action, following] > 0).all()
    np.testing.assert_array_equal(data.terminal > 0, following >= DEATH)
    np.testing.assert_array_equal(data.reward, following == SURVIVAL)
    with pytest.raises(InputError, match="choose from clinicians, random, mixed"):
        sepsis.recipe("icu-sepsis-expert", "ICUSepsis-v0")
