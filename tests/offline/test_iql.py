"""The losses of iql, and of iql_finetune that has the same, against the equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, log_std_of, mlp
from released import ADROIT, ANTMAZE, KITCHEN, MUJOCO, every, wrong_settings
from scipy.stats import norm

from shared.arguments import preset_for

both = pytest.mark.parametrize("name", ["iql", "iql_finetune"])


@both
def test_iql_value_is_an_upper_expectile_of_the_target_critics(name, batch):
    iql = load(name)
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, expectile=0.9)
    agent = agent_of(iql, args, seed=7)
    u = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    assert (u > 0).any() and (u < 0).any()
    expected = (np.where(u < 0, 0.1, 0.9) * u**2).mean()
    close(iql.value_loss(agent.value, agent, batch, args)[0], expected)


@both
def test_iql_actor_weights_come_from_the_target_critics_and_are_clipped(name, batch):
    iql = load(name)
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, beta=4.0, max_weight=3.0)
    agent = agent_of(iql, args, seed=7)
    adv = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    weight = np.minimum(np.exp(4.0 * adv), 3.0)
    assert (weight == 3.0).any() and (weight < 3.0).any()
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(iql.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], -(weight * log_prob).mean())


@both
def test_iql_critic_bootstraps_from_v_but_not_at_terminals(name, batch):
    iql = load(name)
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, discount=0.9)
    agent = agent_of(iql, args, seed=7)
    y = batch.reward + 0.9 * (1 - batch.terminal) * mlp(agent.value, batch.next_obs)[:, 0]
    q = heads(agent.critic, batch.obs, batch.action)
    close(iql.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())


@pytest.mark.long
@both
def test_iql_updates_v_before_the_actor_and_the_critic(name, batch):
    iql = load(name)
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, value_lr=0.1)
    agent, key = agent_of(iql, args, seed=7), jax.random.key(0)
    new, metrics = iql.update(agent, batch, key, args)
    after = agent.replace(value=new.value)
    close(metrics["critic_loss"], iql.critic_loss(agent.critic, after, batch, args)[0])
    close(metrics["actor_loss"], iql.actor_loss(agent.actor, after, batch, key, args)[0])
    assert abs(float(metrics["critic_loss"] - iql.critic_loss(agent.critic, agent, batch, args)[0])) > 1e-3


@pytest.mark.long
def test_iql_actor_learning_rate_decays_to_zero(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, updates=3)
    agent, key = agent_of(iql, args, seed=7), jax.random.key(0)
    for _ in range(3):
        agent, _ = iql.update(agent, batch, key, args)
    still, _ = iql.update(agent, batch, key, args)
    jax.tree.map(np.testing.assert_array_equal, still.actor, agent.actor)


@both
def test_iql_settings_are_those_released(name):
    """configs/ and README of ikostrikov/implicit_q_learning at 09d7002."""
    common = {"batch_size": 256, "discount": 0.99, "tau": 0.005, "deterministic": False, "normalize_obs": False}
    expected = {
        **every(MUJOCO, **common, expectile=0.7, beta=3.0, dropout=0.0, normalize_return=True, eval_episodes=10),
        **every(ANTMAZE, **common, expectile=0.9, beta=10.0, dropout=0.0, reward_shift=-1.0, eval_episodes=100),
        **every(KITCHEN + ADROIT, **common, expectile=0.7, beta=0.5, dropout=0.1, normalize_return=False),
    }
    assert not wrong_settings(load(name), expected)


def test_iql_corls_hopper_is_to_be_had_by_name():
    """configs/offline/iql/hopper/medium_v2 and medium_replay_v2 of corl-team/CORL at eeeeef2."""
    for name in ("corl-hopper-medium", "corl-hopper-medium-replay"):
        assert load("iql").PRESETS[name] == {
            "deterministic": True, "tau": 0.001, "normalize_return": True, "normalize_obs": True
        }  # fmt: skip


@both
def test_iql_corls_adroit_is_to_be_had_by_name(name):
    """configs/offline/iql and configs/finetune/iql, {pen,door,hammer,relocate}, of corl-team/CORL; no other has it."""
    module = load(name)
    corl = {"expectile": 0.8, "beta": 3.0, "dropout": 0.1, "normalize_obs": True}
    assert module.PRESETS["corl-adroit"] == corl
    assert preset_for("corl-adroit", module.PRESETS) is None and preset_for("pen-cloned", module.PRESETS) == "pen-"


@both
def test_iql_a_deterministic_policy_is_cloned_with_weighted_squares(name, batch):
    iql = load(name)
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, beta=4.0, max_weight=3.0, deterministic=True)
    agent = agent_of(iql, args, seed=7)
    assert "log_std" not in agent.actor["params"]
    adv = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    pi = np.tanh(mlp(agent.actor, batch.obs))
    expected = (np.minimum(np.exp(4.0 * adv), 3.0) * ((pi - batch.action) ** 2).sum(-1)).mean()
    close(iql.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], expected)
    close(iql.act(agent, batch.obs, None, args), pi)


def test_iql_finetune_explores_a_deterministic_policy_with_clipped_noise(batch):
    iql = load("iql_finetune")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, deterministic=True, exploration_noise=0.4)
    agent, key = agent_of(iql, args, seed=7), jax.random.key(5)
    noise = 0.4 * np.asarray(jax.random.normal(key, (B, 2)))
    assert (np.abs(noise) > 0.5).any()
    expected = np.tanh(mlp(agent.actor, batch.obs)) + np.clip(noise, -0.5, 0.5)
    close(iql.explore(agent, batch.obs, key, args), expected)
