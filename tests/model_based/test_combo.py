"""The two sides of combo's critics against plain numpy; what it shares with mopo is the same, line by line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import SPEC, B, agent_of, close, compiled, differences, heads, mlp, tanh_normal
from test_mopo import data_of

from shared.arguments import preset_for
from shared.errors import InputError

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,), "n_actions": 3,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B, "real_share": 0.4}


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, *mean.shape))))


@pytest.fixture
def combo():
    return compiled("combo")


@pytest.fixture
def agent(combo):
    return agent_of(combo, combo.Args(**SIZES))


def test_combo_differs_from_mopo_in_its_critics_and_rollouts_alone(combo):
    """What mopo's tests hold of the model, of the other losses and of the order of updates holds here."""
    assert differences(load("combo"), load("mopo")) == {
        "Args",
        "critic_loss",
        "_of",
        "q_values",
        "main",
        "rollout",
        "temperature",
    }


@pytest.mark.parametrize("pushed_down", ["mix", "model"])
def test_combo_pushes_down_the_policys_actions_and_up_the_datas_rows(combo, agent, batch, pushed_down):
    args = combo.Args(**SIZES, pushed_down=pushed_down, cql_temperature=2.0)
    key = jax.random.key(2)
    keys = jax.random.split(key, 3)
    down = batch if pushed_down == "mix" else jax.tree.map(lambda x: x[2:], batch)
    uniform = np.asarray(jax.random.uniform(keys[0], (3, *down.action.shape), minval=-1, maxval=1))
    now, now_log_prob = drawn(agent.actor, down.obs, keys[1], 3)
    following, following_log_prob = drawn(agent.actor, down.next_obs, keys[2], 3)
    actions = [*uniform, *now, *following]
    log_density = np.stack([*np.full((3, len(down.obs)), 2 * np.log(0.5)), *now_log_prob, *following_log_prob])
    q = np.stack([heads(agent.critic, down.obs, a) for a in actions], 1)  # [E, 3 n, rows]
    soft_max = 2 * np.log(np.exp((q - log_density) / 2).sum(1))
    gap = soft_max.mean(1) - heads(agent.critic, batch.obs[:2], batch.action[:2]).mean(1)
    close(combo.conservative_gap(agent.critic, agent, batch, key, args), gap)


def test_combo_critics_bootstrap_without_entropy_from_penalised_values(combo, agent, batch):
    args, key = combo.Args(**SIZES, cql_alpha=0.7), jax.random.key(3)
    target_key, gap_key = jax.random.split(key)
    action, _ = drawn(agent.actor, batch.next_obs, target_key)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, action).min(0)
    gap = np.asarray(combo.conservative_gap(agent.critic, agent, batch, gap_key, args))
    q = heads(agent.critic, batch.obs, batch.action)
    loss, info = combo.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, ((q - y) ** 2).mean(1).sum() + 0.7 * gap.sum())
    close(combo.temperature(agent.replace(log_alpha=jnp.float32(0.3))), np.exp(0.3))  # not bounded, as mopo's is
    close(info["q_data"], q[:, :2].mean())
    close(info["q_model"], q[:, 2:].mean())


def test_combo_the_penalty_moves_values_of_model_and_data_apart(combo, agent, batch):
    """Descending the gap lowers Q at sampled actions and raises it at the data's: the signs of the two sides."""
    args, key = combo.Args(**SIZES, pushed_down="model"), jax.random.key(4)
    slope = jax.jit(jax.grad(lambda critic: combo.conservative_gap(critic, agent, batch, key, args).sum()))
    grads = slope(agent.critic)
    stepped = jax.tree.map(lambda x, g: np.asarray(x) - np.float32(1e-3) * np.asarray(g), agent.critic, grads)
    gap = [combo.conservative_gap(c, agent, batch, key, args).sum() for c in (agent.critic, stepped)]
    assert gap[1] < gap[0]
    bias = grads["params"]["Dense_2"]["bias"]
    close(bias, np.zeros_like(bias))  # a constant cancels: one side is down by as much as the other is up


@pytest.mark.parametrize("uniform", [True, False])
def test_combo_rollouts_are_of_the_policy_or_of_uniform_actions(combo, agent, uniform):
    """A policy that does the same everywhere: 0.99 along both axes."""
    args = combo.Args(**SIZES, uniform_rollouts=uniform)
    agent.actor["params"]["Dense_2"] = {"kernel": np.zeros((8, 4)), "bias": np.float32([3.0, 3.0, -5.0, -5.0])}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    replay = jax.tree.map(lambda x: x[0], load("combo").init_replay(1, 40, SPEC, sharding))
    never = lambda next_obs: next_obs[..., 0] > np.inf  # noqa: E731
    replay, info = combo.rollout(agent, replay, jax.random.key(0), args, data_of(combo), 2, never, None)
    action = np.asarray(jax.jit(replay.take)(np.arange(16)).action)
    assert replay.size() == 16 and info["rollout_length"] == 2
    assert (action.min() < -0.5 and action.max() < 1.0) if uniform else np.allclose(action, np.tanh(3.0), atol=1e-2)


def test_combo_needs_rows_of_both_kinds(combo, pendulum, tmp_path):
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="rows of the data and of the model"):
            load("combo").main(small("combo", pendulum, tmp_path / "run", real_share=share))


def test_combo_presets_are_the_kits_table(combo):
    def of(dataset):
        preset = combo.PRESETS[preset_for(dataset, combo.PRESETS)]
        return preset["rollout_steps"], preset["cql_alpha"]

    assert of("hopper-medium-replay-v2") == (5, 0.5) and of("hopper-medium-v2") == (5, 5.0)
    assert of("walker2d-medium-replay-v2") == (1, 0.5) and of("halfcheetah-medium-expert-v2") == (5, 5.0)
