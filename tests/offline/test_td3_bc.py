"""The losses of td3_bc against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, compiled, heads, mlp, smoothed_next_action
from released import ADROIT, ANTMAZE, MAZE2D, MUJOCO, every, wrong_settings

from shared.data import load_dataset


def test_td3_bc_critic(batch):
    td3_bc = compiled("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, policy_noise=0.6, noise_clip=0.4)
    agent, key = agent_of(td3_bc, args), jax.random.key(7)
    next_action = smoothed_next_action(agent, batch, key, args)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(td3_bc.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_td3_bc_actor_uses_the_first_critic_and_means_over_dimensions(batch):
    td3_bc = compiled("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, alpha=1.7)
    agent = agent_of(td3_bc, args)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -1.7 / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean()
    close(td3_bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_td3_bc_lambda_carries_no_gradient(batch):
    """With lambda differentiated, -lambda Q is the constant -alpha (Q > 0): only cloning would be left."""
    td3_bc = compiled("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, alpha=50.0)
    agent = agent_of(td3_bc, args)
    bias = agent.critic["params"]["Dense_2"]["bias"] + 1000.0  # all Q positive
    critic = {"params": {**agent.critic["params"], "Dense_2": {**agent.critic["params"]["Dense_2"], "bias": bias}}}
    agent = agent.replace(critic=critic)
    grads = jax.grad(lambda a: td3_bc.actor_loss(a, agent, batch, args)[0])(agent.actor)
    cloning = jax.grad(lambda a: ((agent.nets.actor.apply(a, batch.obs) - batch.action) ** 2).mean())(agent.actor)
    difference = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), grads, cloning)
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_td3_bc_moves_actor_and_targets_once_per_delay(batch):
    td3_bc = compiled("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(td3_bc, args)
    batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
    new, _ = td3_bc.update(agent, batches, jax.random.split(jax.random.key(0)), args)
    assert int(new.critic_opt[0].count) == 2 and int(new.actor_opt[0].count) == 1
    expected = jax.tree.map(lambda old, online: 0.995 * old + 0.005 * online, agent.target_critic, new.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.target_critic, expected)


def test_td3_bc_settings_are_those_released():
    """configs/offline/td3_bc of corl-team/CORL at eeeeef2."""
    common = {
        "alpha": 2.5, "batch_size": 256, "discount": 0.99, "tau": 0.005, "policy_noise": 0.2, "noise_clip": 0.5,
        "policy_delay": 2, "normalize_obs": True, "normalize_return": False,
    }  # fmt: skip
    expected = {
        **every(MUJOCO + ADROIT, **common, reward_shift=0.0, eval_episodes=10),
        **every(MAZE2D, **common, reward_shift=0.0, eval_episodes=100),
        **every(ANTMAZE, **common, reward_shift=-1.0, eval_episodes=100),
    }
    assert not wrong_settings(load("td3_bc"), expected)


@pytest.mark.parametrize("name", ["td3_bc", "awac", "cql"])
def test_rewards_are_divided_by_the_range_of_returns(name, pendulum, tmp_path, monkeypatch):
    """Times 1000, as iql's; the shift comes after it, and cql's scale as a factor."""
    module, seen = load(name), {}

    def stop(self, *fields, **kwargs):
        seen["reward"] = self.reward
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.data.Dataset.transitions", stop)
    more = {"reward_scale": 2.0} if name == "cql" else {}
    with pytest.raises(KeyboardInterrupt):
        module.main(
            module.Args(dataset=pendulum, normalize_return=True, reward_shift=-1.0, out=str(tmp_path / "run"), **more)
        )
    data = load_dataset(pendulum)
    expected = data.reward * (1000.0 * more.get("reward_scale", 1.0)) / np.ptp(data.episode_returns()) - 1.0
    np.testing.assert_allclose(seen["reward"], expected, rtol=1e-5, atol=1e-4)
