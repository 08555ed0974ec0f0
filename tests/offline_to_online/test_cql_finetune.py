"""What cql_finetune does beside cql's losses, which tests/offline/test_cql.py compares for both."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled
from released import ANTMAZE, MAZE2D, MUJOCO, every, settings, wrong_settings

from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions

SMALL = {"n_actions": 2}


def tiny(**changes):
    return load("cql_finetune").Args(**{"hidden_dims": (8, 8), "batch_size": B, "n_actions": 2} | changes)


@pytest.fixture
def agent():
    return agent_of(compiled("cql_finetune"), tiny(), seed=7)


def test_cql_finetune_batches_are_uniform_over_data_and_experience():
    module, args = compiled("cql_finetune"), tiny(batch_size=4000)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((30, width)), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    assert module.sample(jax.random.key(0), data, replay, args).reward.sum() == 0
    for _ in range(10):
        replay = replay.insert(jnp.ones(width))
    assert 0.22 < module.sample(jax.random.key(0), data, replay, args).reward.mean() < 0.28


@pytest.mark.long
def test_cql_finetune_has_a_weight_of_the_penalty_for_each_phase(agent, batch):
    module, key, args = compiled("cql_finetune"), jax.random.key(3), tiny(cql_alpha=3.0, online_cql_alpha=0.5)
    step = jax.jit(module.update)
    offline, online = step(agent, batch, key, args), jax.jit(module.update_online)(agent, batch, key, args, 7)
    for metrics, weight in ((offline[1], 3.0), (online[1], 0.5)):
        close(metrics["critic_loss"], metrics["bellman_loss"] + 2 * weight * metrics["gap"])
    same, _ = step(agent, batch, key, dataclasses.replace(args, cql_alpha=0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), online[0].critic, same.critic)


@pytest.mark.long
@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_finetune_updates_are_those_of_cql(batch, lagrange):
    cql, module, key = compiled("cql"), compiled("cql_finetune"), jax.random.key(3)
    args = tiny(lagrange=lagrange, tau=0.2)
    offline = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=2, lagrange=lagrange, tau=0.2)
    theirs = agent_of(cql, offline, seed=7)
    fields = {f: getattr(theirs, f) for f in theirs.__dataclass_fields__ if f != "nets"}
    ours = agent_of(module, args).replace(**fields)
    expected, info = jax.jit(cql.update)(theirs, batch, key, offline)
    new, metrics = jax.jit(module.update)(ours, batch, key, args)
    assert metrics.keys() == info.keys()
    for name in fields:
        jax.tree.map(close, getattr(new, name), getattr(expected, name))


def test_cql_finetune_explores_with_samples_and_is_evaluated_by_the_mean(agent, batch):
    module, obs = compiled("cql_finetune"), np.repeat(batch.obs[:1], 2000, axis=0)
    mean, log_std = (np.asarray(x) for x in agent.nets.actor.apply(agent.actor, batch.obs[:1]))
    close(module.act(agent, obs[:3], None, tiny()), np.repeat(np.tanh(mean), 3, axis=0))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (2000, 2)))
    close(module.explore(agent, obs, jax.random.key(0), tiny()), np.tanh(mean + np.exp(log_std) * noise))


@pytest.mark.long
def test_cql_finetune_goes_on_from_a_run_of_cql(pendulum, tmp_path, capfd):
    train("cql", pendulum, tmp_path / "offline")
    capfd.readouterr()
    trained = train("cql_finetune", pendulum, tmp_path / "online", from_run=str(tmp_path / "offline"))
    assert "starts anew" not in "".join(capfd.readouterr())
    assert trained["[0].critic_opt[0].count"].tolist() == trained["[0].actor_opt[0].count"].tolist() == [12]
    assert [row["update"] for row in csv.DictReader((tmp_path / "online" / "metrics.csv").open())][-1] == "12"


def test_cql_finetune_settings_are_those_released():
    """configs/finetune/cql of corl-team/CORL: AntMaze, and the cloned sets of Adroit."""
    common = {
        "batch_size": 256, "discount": 0.99, "tau": 0.005, "actor_lr": 1e-4, "critic_lr": 3e-4, "max_q_backup": True,
        "clip_diff_min": -200.0, "n_actions": 10, "normalize_obs": False, "backup_entropy": False,
        "importance_sampling": True, "cql_temperature": 1.0, "offline_updates": 1_000_000, "env_steps": 1_000_000,
    }  # fmt: skip
    hands = [f"{hand}-cloned-v1" for hand in ("pen", "door", "hammer", "relocate")]
    expected = every(
        ANTMAZE, **common, cql_alpha=5.0, online_cql_alpha=5.0, lagrange=True, target_gap=0.8, reward_scale=10.0,
        reward_shift=-5.0, critic_hidden_dims=(256,) * 5, eval_episodes=100,
    )  # fmt: skip
    expected |= every(
        hands, **common, cql_alpha=1.0, online_cql_alpha=1.0, lagrange=False, reward_scale=1.0, reward_shift=0.0,
        critic_hidden_dims=(), hidden_dims=(256, 256, 256),
    )  # fmt: skip
    assert not wrong_settings(load("cql_finetune"), expected)


def test_cql_finetune_settings_of_other_sets_are_cqls():
    """So that --from takes a run of cql: rewards and observations are those that its agents have seen."""
    cql, module = load("cql"), load("cql_finetune")
    names = (cql.Args.__dataclass_fields__.keys() & module.Args.__dataclass_fields__.keys()) - {"updates"}
    sets = (*MUJOCO, *MAZE2D, "hopper-medium", "pointmaze-umaze")
    assert {"normalize_obs", "normalize_return", "reward_scale", "cql_alpha", "actor_lr"} <= names
    assert not wrong_settings(module, {d: {n: getattr(settings(cql, d), n) for n in names} for d in sets})


def test_cql_finetune_begins_with_orthogonal_layers():
    """algorithms/finetune/cql.py of corl-team/CORL with orthogonal_init, as in all its settings: the last ones too."""
    module = compiled("cql_finetune")
    agent = module.init(jax.random.key(0), module.Args(hidden_dims=(64, 64)), SPEC)
    actor, critics = agent.actor["params"], agent.critic["params"]
    for kernel in (actor["Dense_1"]["kernel"], actor["Dense_2"]["kernel"], critics["Dense_2"]["kernel"][1]):
        np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(kernel.shape[1]), atol=1e-4)
    assert all((layer["bias"] == 0).all() for name, layer in (actor | critics).items() if "Dense" in name)
