"""What fql_finetune does beside fql's losses, which tests/generative/test_fql.py compares for both."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, gelu, mlp
from released import every, table, wrong_settings

from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions


def tiny(**changes):
    return load("fql_finetune").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


def test_fql_finetune_batches_are_uniform_over_data_and_experience():
    """Of 30 rows of data and 10 collected ones a quarter is new; before the first step there is data only."""
    module, args = load("fql_finetune"), tiny(batch_size=4000)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((30, width)), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    assert module.sample(jax.random.key(0), data, replay, args).reward.sum() == 0
    for _ in range(10):
        replay = replay.insert(jnp.ones(width))
    drawn = module.sample(jax.random.key(0), data, replay, args)
    assert drawn.reward.shape == (4000,)
    assert 0.22 < drawn.reward.mean() < 0.28 and set(np.unique(drawn.obs)) == {0.0, 1.0}


def test_fql_finetune_acts_by_the_one_step_policy_at_a_sampled_noise(batch):
    module, args, key = load("fql_finetune"), tiny(), jax.random.key(5)
    agent = agent_of(module, args)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    close(
        module.act(agent, batch.obs, key, args),
        np.clip(mlp(agent.actor, batch.obs, noise, activation=gelu), -1.0, 1.0),
    )


@pytest.mark.long
def test_fql_finetune_goes_on_from_a_run_of_fql_with_all_that_it_learned(pendulum, tmp_path, capfd):
    """4 offline updates there and one for each of 8 environment steps here, of the flow, the actor and the critics."""
    train("fql", pendulum, tmp_path / "offline", seeds=2)
    capfd.readouterr()
    trained = train("fql_finetune", pendulum, tmp_path / "online", seeds=2, from_run=str(tmp_path / "offline"))
    assert "starts anew" not in "".join(capfd.readouterr())
    for name in ("flow", "actor", "critic"):
        assert trained[f"[0].{name}_opt[0].count"].tolist() == [12, 12]
    assert not (tmp_path / "online" / "offline.csv").exists()
    assert list(csv.DictReader((tmp_path / "online" / "metrics.csv").open()))[-1]["update"] == "12"


def test_fql_finetune_settings_are_those_released():
    """README of seohongpark/fql at 719d044: its commands with online steps, all of a million updates offline before."""
    theirs = table(
        """
        humanoidmaze-medium-navigate-singletask-v0 100 mean 0.995
        antsoccer-arena-navigate-singletask-v0 30 mean 0.995
        cube-double-play-singletask-v0 300 mean 0.99
        scene-play-singletask-v0 300 mean 0.99
        puzzle-4x4-play-singletask-v0 1000 mean 0.99
        antmaze-umaze-v2 10 mean 0.99
        antmaze-umaze-diverse-v2 10 mean 0.99
        antmaze-medium-play-v2 10 mean 0.99
        antmaze-medium-diverse-v2 10 mean 0.99
        antmaze-large-play-v2 3 mean 0.99
        antmaze-large-diverse-v2 3 mean 0.99
        pen-cloned-v1 1000 min 0.99
        door-cloned-v1 1000 min 0.99
        hammer-cloned-v1 1000 min 0.99
        relocate-cloned-v1 10000 min 0.99
        """,
        distillation_weight=float, q_aggregation=str, discount=float,
    )  # fmt: skip
    for dataset, row in theirs.items():
        d4rl_antmaze = "singletask" not in dataset and dataset.startswith("antmaze")
        row |= {"normalize_q": False, "eval_episodes": 50, "offline_updates": 1_000_000, "env_steps": 1_000_000}
        row |= {"reward_shift": -1.0 if d4rl_antmaze else 0.0}
    assert not wrong_settings(load("fql_finetune"), theirs)
    assert not wrong_settings(load("fql_finetune"), every(["hopper-medium-v2"], normalize_q=True))
