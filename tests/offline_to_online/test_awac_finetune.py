"""What awac_finetune does beside awac's losses, which tests/offline/test_awac.py compares for both."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, log_std_of, mlp
from released import ANTMAZE, every, wrong_settings

from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions


def tiny(**changes):
    return load("awac_finetune").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


@pytest.fixture
def agent():
    return agent_of(load("awac_finetune"), tiny(), seed=7)


def test_awac_finetune_batches_are_uniform_over_data_and_experience():
    """Of 30 rows of data and 10 collected ones a quarter is new; before the first step there is data only."""
    module, args = load("awac_finetune"), tiny(batch_size=4000)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((30, width)), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    assert module.sample(jax.random.key(0), data, replay, args).reward.sum() == 0
    for _ in range(10):
        replay = replay.insert(jnp.ones(width))
    assert 0.22 < module.sample(jax.random.key(0), data, replay, args).reward.mean() < 0.28


def test_awac_finetune_explores_with_its_standard_deviation_and_is_evaluated_without(agent, batch):
    module, obs = load("awac_finetune"), np.repeat(batch.obs[:1], 4000, axis=0)
    mean, std = mlp(agent.actor, batch.obs[:1]), np.exp(log_std_of(agent.actor))
    close(module.act(agent, obs[:3], None, tiny()), np.clip(np.repeat(mean, 3, axis=0), -1, 1))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (4000, 2)))
    close(module.explore(agent, obs, jax.random.key(0), tiny()), np.clip(mean + std * noise, -1, 1))


@pytest.mark.long
def test_awac_finetune_updates_critics_then_actor_in_both_phases(agent, batch):
    module, args, key = load("awac_finetune"), tiny(tau=0.2), jax.random.key(3)
    step = jax.jit(module.update)
    new, metrics = step(agent, batch, key, args, None)
    critic_key, actor_key = jax.random.split(key)
    close(metrics["critic_loss"], module.critic_loss(agent.critic, agent, batch, critic_key, args)[0])
    with_critic = agent.replace(critic=new.critic)
    close(metrics["actor_loss"], module.actor_loss(agent.actor, with_critic, batch, actor_key, args)[0])
    assert abs(float(module.actor_loss(agent.actor, agent, batch, actor_key, args)[0] - metrics["actor_loss"])) > 1e-5
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)


@pytest.mark.long
def test_awac_finetune_does_as_many_updates_as_it_says(pendulum, tmp_path):
    """4 offline and one for each of 8 environment steps, of the actor and the critics alike."""
    trained = train("awac_finetune", pendulum, tmp_path / "run")
    for name in ("actor", "critic"):
        assert trained[f"[0].{name}_opt[0].count"].tolist() == [12]
    rows = {n: list(csv.DictReader((tmp_path / "run" / f"{n}.csv").open())) for n in ("offline", "metrics")}
    assert rows["offline"][-1]["update"] == "4" and rows["metrics"][-1]["update"] == "12"


def test_awac_finetune_settings_are_those_released():
    """configs/finetune/awac of corl-team/CORL: AntMaze, and the cloned sets of Adroit."""
    common = {
        "batch_size": 256, "discount": 0.99, "tau": 0.005, "actor_lr": 3e-4, "critic_lr": 3e-4, "temperature": 0.1,
        "hidden_dims": (256, 256, 256), "offline_updates": 1_000_000, "env_steps": 1_000_000, "normalize_obs": True,
    }  # fmt: skip
    hands = [f"{hand}-cloned-v1" for hand in ("pen", "door", "hammer", "relocate")]
    expected = every(ANTMAZE, **common, reward_shift=-1.0, eval_episodes=100) | every(hands, **common, reward_shift=0.0)
    assert not wrong_settings(load("awac_finetune"), expected)
