"""The pessimistic model of morel on a made ensemble; what it shares with mopo is the same, line by line."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT, small, train
from reference import SPEC, B, agent_of, close, compiled, differences

from shared.errors import InputError

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,),
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture
def morel():
    return compiled("morel")


def test_morel_differs_from_mopo_in_its_rollouts_alone(morel):
    """What mopo's tests hold of the model, of SAC's losses and of the order of updates holds here."""
    assert differences(load("morel"), load("mopo")) == {"Args", "Agent", "init", "main", "rollout"}


def test_morel_disagreement_is_the_farthest_pair_of_next_states(morel):
    """At the same row; the reward, the last dimension, does not count."""
    mean = np.zeros((3, B, 4), np.float32)
    mean[0, :, 0], mean[2, :, 1], mean[1, :, 3] = 3.0, 4.0, 100.0
    mean[2, 1] = mean[0, 1] = 0.0
    close(morel.disagreement(mean), [5, 0, 5, 5, 5])


def test_morel_the_usual_is_that_of_the_data(morel, batch):
    args = morel.Args(**SIZES)
    agent = agent_of(morel, args)
    rows = np.concatenate([batch.obs, batch.action, batch.reward[:, None], batch.terminal[:, None], batch.next_obs], 1)
    data = morel.Transitions(jnp.asarray(rows), None, None, SPEC, morel.FIELDS)
    mean, _ = morel.outcomes(agent, batch.obs, batch.action)
    pairs = [np.linalg.norm(mean[i, :, :3] - mean[j, :, :3], axis=-1) for i in range(3) for j in range(3)]
    found = morel.measure(agent, args, data).usual
    close(found, [np.max(pairs, 0).mean(), np.max(pairs, 0).std()])
    assert found[1] > 0


@pytest.mark.parametrize(("least", "worth"), [(-2.0, -2.0 / 0.01 - 30.0), (3.0, -30.0)])
def test_morel_an_unknown_pair_leads_to_halt_which_is_worth_less_than_any_return(morel, least, worth):
    """Members two apart in rows 1 and 3; usual is 0.5 +- 0.25, and 4 std above it are known."""
    args = morel.Args(unknown_above=4.0, halt_penalty=30.0)
    agent = agent_of(morel, morel.Args(**SIZES)).replace(usual=jnp.float32([0.5, 0.25]))
    mean = np.zeros((2, B, 3), np.float32)
    mean[0, [1, 3], 0] = 2.0
    mean[0, 2, 0] = 1.4
    terminal = jnp.array([True, False, False, False, False])
    reward, ends, unknown = load("morel").halt(agent, mean, jnp.full(B, 7.0), terminal, least, args)
    np.testing.assert_array_equal(unknown, [False, True, False, True, False])
    np.testing.assert_array_equal(ends, [True, True, False, True, False])  # nothing is bootstrapped beyond
    np.testing.assert_allclose(reward, [7, worth, 7, worth, 7], rtol=1e-5)


def test_morel_refuses_what_knows_everything_and_an_end_that_is_worth_seeking(morel, pendulum, tmp_path):
    for change in ({"n_models": 1, "n_elites": 1}, {"halt_penalty": (50.0, -1.0)}):
        with pytest.raises(InputError, match="must be at least 2, --halt-penalty .* at least 0"):
            load("morel").main(small("morel", pendulum, tmp_path / "run", **change))


@pytest.mark.long
def test_morel_rollouts_end_at_the_first_unknown_pair(morel, pendulum, tmp_path):
    """With b far below the usual everything is unknown, far above nothing: a job of two lanes."""
    train("morel", pendulum, tmp_path / "run", env=SHORT, unknown_above=(-100.0, 100.0))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [float(rows[i]["unknown"]) for i in (0, 1)] == [1.0, 0.0]
    assert [float(rows[i]["rollout_length"]) for i in (0, 1)] == [1.0, 2.0]
    assert float(rows[0]["terminal"]) == 1.0
