"""The model-Bellman inconsistency of mobile against plain numpy; what it shares with mopo is the same, line by line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, compiled, differences, heads, mlp, tanh_normal

from shared.arguments import preset_for
from shared.errors import InputError

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,), "next_samples": 2,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B, "real_share": 0.4, "n_critics": 3}


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, *mean.shape))))


@pytest.fixture
def mobile():
    return compiled("mobile")


@pytest.fixture
def agent(mobile):
    agent = agent_of(mobile, mobile.Args(**SIZES))
    return agent.replace(log_alpha=jnp.float32(-0.3), holdout_error=jnp.float32([1.0, 3.0, 2.0]))


def test_mobile_differs_from_mopo_in_its_targets_and_rollouts_alone(mobile):
    """What mopo's tests hold of the model, of the other losses and of the order of updates holds here."""
    found = differences(load("mobile"), load("mopo"))
    assert found == {"Args", "Agent", "critic_loss", "_of", "q_values", "init", "main", "rollout"}


@pytest.mark.long
def test_mobile_penalty_is_the_elites_disagreement_about_values(mobile, agent, batch):
    """Members 0 and 2; the mean over samples comes first, so that their own noise is averaged out."""
    args, key = mobile.Args(**SIZES), jax.random.key(2)
    model_key, action_key = jax.random.split(key)
    mean, std = (np.asarray(x)[[0, 2], :, :3] for x in mobile.outcomes(agent, batch.obs, batch.action))
    next_obs = mean + std * np.asarray(jax.random.normal(model_key, (2, 2, B, 3)))
    flat = next_obs.reshape(-1, 3)
    action, _ = drawn(agent.actor, flat, action_key)
    q = heads(agent.target_critic, flat, action).min(0).reshape(2, 2, B)  # [M, E, B]
    expected = q.mean(0).std(0, ddof=1)
    found = mobile.value_disagreement(agent, batch, key, args)
    close(found[2:], expected[2:])
    close(found[:2], [0.0, 0.0])  # the data's rows
    assert (expected > 1e-3).all()


@pytest.mark.long
def test_mobile_penalty_is_none_where_the_elites_agree(mobile, agent, batch):
    """Alike and sure of themselves, with a policy of little noise: what is left is its own."""
    args, key = mobile.Args(**SIZES), jax.random.key(2)
    agent.actor["params"]["Dense_2"]["bias"] = jnp.float32([0.0, 0.0, -100.0, -100.0])
    usual = mobile.value_disagreement(agent, batch, key, args)
    same = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[:1], x.shape) if x.ndim == 3 else x, agent.best_model)
    same["params"] |= {"max_log_var": jnp.full(4, -30.0), "min_log_var": jnp.full(4, -40.0)}
    found = mobile.value_disagreement(agent.replace(best_model=same), batch, key, args)
    assert (found[2:] < 0.1 * usual[2:]).all() and found.max() < 0.05


@pytest.mark.parametrize("backup_entropy", [True, False])
def test_mobile_targets_lose_the_penalty_and_have_a_floor(mobile, agent, batch, backup_entropy):
    key = jax.random.key(3)
    args = mobile.Args(**SIZES, inconsistency=1.5, backup_entropy=backup_entropy)
    model_key, target_key = jax.random.split(key)
    action, log_prob = drawn(agent.actor, batch.next_obs, target_key)
    next_q = heads(agent.target_critic, batch.next_obs, action).min(0) - backup_entropy * np.exp(-0.3) * log_prob
    u = np.asarray(mobile.value_disagreement(agent, batch, model_key, args))
    y = batch.reward - 1.5 * u + 0.99 * (1 - batch.terminal) * next_q
    q = heads(agent.critic, batch.obs, batch.action)
    loss, info = mobile.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, ((q - y) ** 2).mean(1).sum())
    close(info["value_std"], u.mean())
    floor = float(np.median(y))
    args = mobile.Args(**SIZES, inconsistency=1.5, backup_entropy=backup_entropy, target_floor=floor)
    expected = ((q - np.maximum(y, floor)) ** 2).mean(1).sum()
    close(mobile.critic_loss(agent.critic, agent, batch, key, args)[0], expected)
    assert mobile.Args().target_floor < -1e9  # none, unless a preset has one


def test_mobile_max_q_backup_takes_each_critics_best_action_then_the_least_critic(mobile, agent, batch):
    args, others = mobile.Args(**SIZES, max_q_backup=True), []
    for key in jax.random.split(jax.random.key(2), 4):
        actions, _ = drawn(agent.actor, batch.next_obs, key, 10)
        q = np.stack([heads(agent.target_critic, batch.next_obs, a) for a in actions])
        close(mobile.next_value(agent, batch, key, args), q.max(0).min(0))
        others.append(np.abs(q.max(0).min(0) - q.min(1).max(0)).max())
    assert max(others) > 1e-3  # the other order differs


def test_mobile_needs_two_elites(mobile, pendulum, tmp_path):
    for change in ({"next_samples": 0}, {"n_critics": 0}):
        with pytest.raises(InputError, match="--next-samples and --n-critics must be at least 1"):
            load("mobile").main(small("mobile", pendulum, tmp_path / "run", **change))
    with pytest.raises(InputError, match="at least 2"):
        load("mobile").main(small("mobile", pendulum, tmp_path / "run", n_elites=1))


def test_mobile_presets_are_the_kits_table(mobile):
    def of(dataset):
        preset = mobile.PRESETS[preset_for(dataset, mobile.PRESETS)]
        return preset["rollout_steps"], preset["inconsistency"], preset["target_floor"]

    assert of("hopper-medium-replay-v2") == (5, 0.1, 0) and of("hopper-medium-v2") == (5, 1.5, 0)
    assert of("walker2d-medium-expert-v2") == (1, 1.5, 0) and of("walker2d-random-v2") == (5, 2, 0)
    assert preset_for("pendulum-weak", mobile.PRESETS) is None
