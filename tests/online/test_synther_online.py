"""The replay buffer of synther_online, its samples and what is learned from them, and its losses against numpy."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT_JAX, train
from reference import SPEC, B, agent_of, close, compiled, differences, heads, mlp, tanh_normal

from shared.errors import InputError
from shared.replay import init_replay

SMALL = {
    "learning_starts": 2, "utd": 2, "retrain_every": 4, "diffusion_updates": 4, "denoiser_batch_size": 8,
    "denoiser_width": 8, "denoiser_blocks": 1, "time_dim": 4, "sampling_steps": 4, "synthetic_rows": 6,
    "sampling_batch": 4, "buffer_size": 50,
}  # fmt: skip
D, E = 2 * 3 + 2 + 2, 3
"""Columns of a row of SPEC: obs 3, action 2, reward, terminal, next_obs 3; critics."""


def args_of(**changes):
    return load("synther_online").Args(**{**SMALL, "hidden_dims": (8, 8), "batch_size": B, "n_critics": E} | changes)


def ring(n: int, capacity: int = 20, seed=0):
    """One lane's replay buffer with n rows and nan where it is empty, without samples."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    empty = load("synther_online").begin(init_replay(1, capacity, SPEC, device), args_of(), ("marginal_distance",))
    replay = jax.tree.map(lambda x: x[0], empty)
    rows = np.full((capacity, D), np.nan, np.float32)
    rows[:n] = np.random.default_rng(seed).normal(size=(n, D))
    rows[:n, 6] = np.arange(n) % 4 == 3
    return dataclasses.replace(replay, rows=rows, inserted=n, ready=n), rows[:n]


def policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def test_synther_online_shares_what_it_shares():
    """With SAC, RLPD and the offline script, but for the model that stands in the agent's place."""
    module = load("synther_online")
    same_as = {
        "rlpd": {"update", "update_critic", "sample_tanh_gaussian", "random_subset", "q_values", "act"},
        "sac": {"alpha_loss", "tanh_gaussian_log_prob", "explore", "Networks"},
        "synther": {"Denoiser", "preconditioning", "ema_step", "denoiser_optimizer", "noise_levels"},
    }
    for other, names in same_as.items():
        assert not differences(module, load(other)) & names, other


@pytest.mark.long
def test_synther_online_diffusion_model_is_the_offline_scripts():
    """The same update of the same weights, and the same samples."""
    module, other, args = load("synther_online"), load("synther"), args_of()
    r = np.random.default_rng(0)
    net = module.Denoiser(8, 1, 4)
    params = net.init(jax.random.key(0), jnp.zeros((1, D)), jnp.zeros(1))
    parts = {"denoiser": params, "ema_denoiser": params, "fitted": jnp.int32(120)}
    parts |= {"row_mean": np.float32(r.normal(size=D)), "row_std": np.float32(r.uniform(0.5, 2, D))}
    model = module.Model(net=net, denoiser_opt=module.denoiser_optimizer(args).init(params), **parts)
    rest = dict.fromkeys(set(other.Agent.__dataclass_fields__) - set(parts) - {"nets", "denoiser_opt"})
    agent = other.Agent(nets=other.Networks(net, None, None), denoiser_opt=model.denoiser_opt, **parts, **rest)
    rows, key = np.float32(r.normal(size=(B, D))), jax.random.key(1)
    new, info = jax.jit(module.update_denoiser)(model, rows, key, args)
    expected, expected_info = jax.jit(other.update_denoiser)(agent, rows, key, args)
    for name in ("denoiser", "ema_denoiser", "fitted"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(expected, name))
    assert info == expected_info and int(new.fitted) == 121
    samples = jax.jit(module.sample_rows, static_argnums=2)(new, key, 3, args)
    np.testing.assert_array_equal(samples, jax.jit(other.sample_rows, static_argnums=2)(expected, key, 3, args))


def test_synther_online_fits_what_is_in_the_ring_alone():
    """Statistics and rows; where nothing was written there is nan here. `terminal` stays as it is."""
    module, (replay, rows) = compiled("synther_online"), ring(7)
    mean, std = module.row_statistics(replay)
    known = np.arange(D) != 6
    np.testing.assert_allclose(mean[known], rows.mean(0)[known], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std[known], rows.std(0)[known] + 1e-5, rtol=1e-4)
    assert (mean[6], std[6]) == (0.0, 1.0)
    drawn = np.asarray(module.drawn_rows(replay, jax.random.key(0), 200))
    assert {tuple(row) for row in drawn} == {tuple(row) for row in rows}


@pytest.mark.long
def test_synther_online_refill_replaces_the_samples():
    """All of them, by transitions of the new model; the ring is left alone."""
    module, (replay, _) = load("synther_online"), ring(7)
    old = dataclasses.replace(replay, synthetic=jnp.full((6, D), 9.0), models=jnp.int32(3))
    new = jax.jit(lambda replay, key: module.refill(replay, key, args_of(), None))(old, jax.random.key(0))
    samples = np.asarray(new.synthetic)
    assert samples.shape == (6, D) and np.isfinite(samples).all() and (samples != 9.0).all() and int(new.models) == 4
    assert len(np.unique(samples[:, 0])) == 6  # the second batch is not the first one again
    assert np.abs(samples[:, 3:5]).max() <= 1 and np.isin(samples[:, 6], (0, 1)).all()
    np.testing.assert_array_equal(new.rows, old.rows)
    assert (
        new.quality.keys() == {"diffusion_loss", "marginal_distance"} and np.isfinite(list(new.quality.values())).all()
    )


def test_synther_online_samples_are_transitions():
    module, rows = load("synther_online"), 3 * np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)
    expected = rows.copy()
    expected[:, 3:5], expected[:, 6] = rows[:, 3:5].clip(-1, 1), rows[:, 6] > 0.5
    np.testing.assert_array_equal(module.as_transitions(rows, SPEC), expected)
    assert 0 < expected[:, 6].mean() < 1


def test_synther_online_quality_of_samples():
    """The ring's own rows are at no distance; shifted ones at their shift in standard deviations."""
    module, (replay, rows) = load("synther_online"), ring(1)
    std = np.full(D, 1e-5, np.float32)
    std[6] = 1.0
    shifted = np.repeat(rows, 40, 0) + 0.5 * std
    exact = lambda obs, action, key: (obs + 1.0, action.sum(-1), None)  # noqa: E731
    found = module.quality(shifted, jax.random.key(0), replay, exact)
    np.testing.assert_allclose(found["marginal_distance"], 0.5, atol=0.02)
    close(found["sample_error"], np.linalg.norm(shifted[:, 7:] - shifted[:, :3] - 1.0, axis=1).mean())
    close(found["reward_error"], np.abs(shifted[:, 5] - shifted[:, 3:5].sum(1)).mean())


@pytest.mark.parametrize("share, models, samples", [(0.5, 1, 4), (0.5, 0, 0), (0.0, 2, 0), (1.0, 2, 8), (0.3, 1, 2)])
def test_synther_online_every_minibatch_has_its_share_of_samples(share, models, samples):
    """Once there is a model; as in the authors' code the share is rounded down."""
    module, (replay, rows) = compiled("synther_online"), ring(7)
    replay = dataclasses.replace(replay, synthetic=jnp.full((6, D), 9.0), models=jnp.int32(models))
    batch = module.sample(jax.random.key(0), 0.0, replay, args_of(batch_size=8, synthetic_share=share))
    reward = np.asarray(batch.reward)
    assert reward.shape == (2, 8) and (reward == 9.0).sum(1).tolist() == [samples] * 2
    assert np.isin(reward[reward != 9.0], rows[:, 5]).all()
    np.testing.assert_array_equal(batch.obs[..., 0] == 9.0, reward == 9.0)


@pytest.mark.long
def test_synther_online_critic_loss(batch):
    """SAC's, summed over the critics, the least of --subset-size drawn targets."""
    module, args, key = compiled("synther_online"), args_of(), jax.random.key(9)
    agent = agent_of(module, args).replace(log_alpha=jnp.float32(-0.5))
    subset_key, action_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(action_key, (B, 2)))
    next_action, next_lp = tanh_normal(*policy(agent.actor, batch.next_obs), noise)
    chosen = np.asarray(jax.random.permutation(subset_key, E))[:2]
    target = heads(agent.target_critic, batch.next_obs, next_action)[chosen].min(0) - np.exp(-0.5) * next_lp
    y = batch.reward + 0.99 * (1 - batch.terminal) * target
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(module.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_synther_online_actor_loss_takes_the_mean_of_the_critics(batch):
    module, args, key = compiled("synther_online"), args_of(), jax.random.key(9)
    agent = agent_of(module, args).replace(log_alpha=jnp.float32(-0.5))
    action, lp = tanh_normal(*policy(agent.actor, batch.obs), np.asarray(jax.random.normal(key, (B, 2))))
    expected = (np.exp(-0.5) * lp - heads(agent.critic, batch.obs, action).mean(0)).mean()
    close(module.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


@pytest.mark.long
def test_synther_online_has_a_new_model_every_so_many_steps(pendulum, tmp_path, monkeypatch):
    """After steps 4 and 8 of 10, of what is in the ring by then; nothing is known of samples before."""
    module, seen = load("synther_online"), []

    def refill(replay, key, args, exact):
        jax.debug.callback(lambda n: seen.append(int(n)), replay.inserted)
        quality = dict.fromkeys(replay.quality, jnp.float32(7.0))
        return dataclasses.replace(replay, models=replay.models + 1, quality=quality)

    monkeypatch.setattr(module, "refill", refill)
    train("synther_online", pendulum, tmp_path / "run", env=SHORT_JAX, log_every=2, retrain_every=4, env_steps=10)
    assert seen == [4, 8]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [row["sample_error"] for row in rows] == ["nan", "7", "7", "7"]  # of steps 4, 6, 8, 10


def test_synther_online_says_where_it_has_no_model(pendulum, tmp_path):
    for every, notes in ((4, []), (8, ["--retrain-every 8: no model is fitted in 8 environment steps."])):
        out = tmp_path / str(every)
        train("synther_online", pendulum, out, env=SHORT_JAX, log_every=4, retrain_every=every, env_steps=8)
        assert json.loads((out / "run.json").read_text())["notes"] == notes


@pytest.mark.long
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampling_steps": 1}, "--sampling-steps must be at least 2"),
        ({"n_critics": 2, "subset_size": 3}, "--subset-size 3 is more than --n-critics 2"),
        ({"synthetic_rows": 0}, "--synthetic-rows and --sampling-batch must be at least 1"),
        ({"denoiser_batch_size": -1}, "--denoiser-batch-size at least 0"),
        ({"retrain_every": 3}, "--retrain-every must be a multiple of 2, which divides"),
        ({"retrain_every": 0}, "--retrain-every must be a multiple of 2"),
    ],
)
def test_synther_online_refuses(changes, words):
    with pytest.raises(InputError, match=words):
        load("synther_online").check(args_of(**changes), 2)
