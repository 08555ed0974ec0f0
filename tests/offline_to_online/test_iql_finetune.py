"""What iql_finetune does beside iql's losses, which tests/offline/test_iql.py compares for both."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, log_std_of, mlp

from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions


def tiny(**changes):
    return load("iql_finetune").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


@pytest.fixture
def agent():
    return agent_of(load("iql_finetune"), tiny(), seed=7)


def test_iql_finetune_batches_are_uniform_over_data_and_experience():
    """Of 30 rows of data and 10 collected ones a quarter is new; before the first step there is data only."""
    module, args = load("iql_finetune"), tiny(batch_size=4000)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((30, width)), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    assert module.sample(jax.random.key(0), data, replay, args).reward.sum() == 0
    for _ in range(10):
        replay = replay.insert(jnp.ones(width))
    drawn = module.sample(jax.random.key(0), data, replay, args)
    assert drawn.reward.shape == (4000,)
    assert 0.22 < drawn.reward.mean() < 0.28 and set(np.unique(drawn.obs)) == {0.0, 1.0}


def test_iql_finetune_explores_with_its_standard_deviation_and_is_evaluated_without(agent, batch):
    module, obs = load("iql_finetune"), np.repeat(batch.obs[:1], 4000, axis=0)
    mean = np.tanh(mlp(agent.actor, batch.obs[:1]))
    close(module.act(agent, obs[:3], jax.random.key(0), tiny()), np.repeat(mean, 3, axis=0))
    noise = module.explore(agent, obs, jax.random.key(0), tiny()) - mean
    np.testing.assert_allclose(noise.std(0), np.exp(log_std_of(agent.actor)), rtol=0.05)


@pytest.mark.long
def test_iql_finetune_actor_learning_rate_does_not_decay(agent, batch):
    """Adam's step for a constant gradient's sign is the learning rate: after the run's length as at its start."""
    module, args = load("iql_finetune"), tiny(env_steps=3, actor_lr=0.01)
    old, key = agent, jax.random.key(0)
    for _ in range(5):
        old, agent = agent, module.update(agent, batch, key, args)[0]
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), old.actor, agent.actor)
    assert max(map(float, jax.tree.leaves(moved))) > 0.005


@pytest.mark.long
def test_iql_finetune_does_as_many_updates_as_it_says(pendulum, tmp_path):
    """4 offline and one for each of 8 environment steps, of V, the actor and the critics alike."""
    trained = train("iql_finetune", pendulum, tmp_path / "run")
    for name in ("actor", "critic", "value"):
        assert trained[f"[0].{name}_opt[0].count"].tolist() == [12]
    rows = {n: list(csv.DictReader((tmp_path / "run" / f"{n}.csv").open())) for n in ("offline", "metrics")}
    assert rows["offline"][-1]["update"] == "4" and rows["metrics"][-1]["update"] == "12"
