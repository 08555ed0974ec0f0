"""The diffusion model, sampler and losses of synther against the same equations in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT, train
from reference import SPEC, B, agent_of, close, heads, mlp, smoothed_next_action

from shared.data import load_dataset
from shared.densities import Density
from shared.errors import InputError
from shared.transitions import FIELDS, Transitions

SMALL = {
    "diffusion_updates": 4, "denoiser_batch_size": 8, "denoiser_width": 8, "denoiser_blocks": 1, "time_dim": 4,
    "sampling_steps": 10, "synthetic_rows": 24, "sampling_batch": 16,
}  # fmt: skip
D = 2 * 3 + 2 + 2
"""Columns of a row of SPEC: obs 3, action 2, reward, terminal, next_obs 3."""


def args_of(**changes):
    return load("synther").Args(**{**SMALL, "hidden_dims": (8, 8), "batch_size": B} | changes)


@functools.cache
def tiny_agent():
    agent = agent_of(load("synther"), args_of())
    r = np.random.default_rng(0)
    return agent.replace(row_mean=np.float32(r.normal(size=D)), row_std=np.float32(r.uniform(0.5, 2, D)))


def rows_of(n=B, seed=1):
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def network(params, x, noise):
    """F(x, c_noise)"""
    p = params["params"]
    layer = lambda i, x: x @ np.float64(p[f"Dense_{i}"]["kernel"]) + np.float64(p[f"Dense_{i}"]["bias"])  # noqa: E731
    angle = 2 * np.pi * noise[:, None] * np.float64(p["frequencies"])
    time = layer(0, np.concatenate([noise[:, None], np.sin(angle), np.cos(angle)], -1))
    h = layer(3, layer(2, x) + layer(1, time / (1 + np.exp(-time))))
    for i in range(4, len(p) - 2):
        h = h + layer(i, np.maximum(h, 0))
    return layer(len(p) - 2, np.maximum(h, 0))


def denoised(params, x, sigma):
    """D(x; sigma), EDM's equation 7 with sigma_data = 1"""
    s = np.broadcast_to(np.float64(sigma), len(x))
    skip, out, into = 1 / (s**2 + 1), s / np.sqrt(s**2 + 1), 1 / np.sqrt(s**2 + 1)
    return skip[:, None] * x + out[:, None] * network(params, into[:, None] * x, np.log(s) / 4)


def test_synther_preconditioning_keeps_variances_at_one():
    """Inputs have variance 1, and so has what the network is to predict, at any noise (EDM's appendix B.6)."""
    sigma = np.geomspace(0.002, 80, 9)
    skip, out, into, noise = (np.float64(x) for x in load("synther").preconditioning(jnp.float32(sigma)))
    np.testing.assert_allclose(into**2 * (1 + sigma**2), 1, rtol=1e-5)
    np.testing.assert_allclose(((1 - skip) ** 2 + skip**2 * sigma**2) / out**2, 1, rtol=2e-4)
    np.testing.assert_allclose(out**2 * (sigma**2 + 1) / sigma**2, 1, rtol=1e-5)  # the loss weighs all noises alike
    np.testing.assert_allclose(noise, np.log(sigma) / 4, rtol=1e-5)


@pytest.mark.long
def test_synther_denoiser_and_its_loss():
    module, agent, key, rows = load("synther"), tiny_agent(), jax.random.key(3), rows_of()
    sigma_key, noise_key = jax.random.split(key)
    sigma = np.exp(-1.2 + 1.2 * np.float64(jax.random.normal(sigma_key, (B,))))
    x = (rows - agent.row_mean) / agent.row_std
    noised = x + sigma[:, None] * np.asarray(jax.random.normal(noise_key, (B, D)))
    close(jax.jit(module.denoise)(agent, agent.denoiser, jnp.float32(noised), jnp.float32(sigma)),
          denoised(agent.denoiser, noised, sigma))  # fmt: skip
    error = ((denoised(agent.denoiser, noised, sigma) - x) ** 2).mean(1)
    loss, grads = jax.jit(jax.value_and_grad(module.diffusion_loss))(agent.denoiser, agent, rows, key)
    close(loss, ((sigma**2 + 1) / sigma**2 * error).mean())
    assert not grads["params"]["frequencies"].any() and grads["params"]["Dense_0"]["kernel"].any()


def test_synther_noise_levels():
    levels = load("synther").noise_levels(5)
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)] + [0]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "sigma, following, churn, gamma",
    [(1.0, 0.6, 3.0, 0.3), (1.0, 0.6, 80.0, np.sqrt(2) - 1), (60.0, 20.0, 80.0, 0.0), (0.01, 0.0, 80.0, 0.0)],
)
def test_synther_one_step_of_the_sampler(sigma, following, churn, gamma):
    """The average network's slopes: Heun's step, Euler's to 0; noise is added between 0.05 and 50 only."""
    module, agent, args = load("synther"), tiny_agent(), args_of(churn=churn)
    agent = agent.replace(ema_denoiser=jax.tree.map(lambda x: 0.7 * x, agent.denoiser))
    x, z = sigma * rows_of(seed=2), rows_of(seed=3)
    higher = sigma * (1 + gamma)
    start = x + np.sqrt(higher**2 - sigma**2) * 1.003 * z
    first = (start - denoised(agent.ema_denoiser, start, higher)) / higher
    expected = start + (following - higher) * first
    if following:
        second = (expected - denoised(agent.ema_denoiser, expected, following)) / following
        expected = start + (following - higher) * (first + second) / 2
    close(jax.jit(module.sampler_step)(agent, x, z, sigma, following, args), expected)


@pytest.mark.parametrize("churn", [0.0, 80.0])
def test_synther_samples_a_known_distribution(churn):
    """With the exact denoiser of two modes, half of the samples lie at each, as wide as it is."""
    module = load("synther")
    args, mean, std = args_of(sampling_steps=64, churn=churn), np.array([-1.0, 1.0]), 0.2

    class Exact:
        def apply(self, _, x, noise):
            sigma = jnp.exp(4 * noise)[:, None]
            noised = x * jnp.sqrt(1 + sigma**2)
            share = jax.nn.softmax(-0.5 * (noised - mean) ** 2 / (std**2 + sigma**2), axis=-1)
            clean = (share * (std**2 * noised + sigma**2 * mean) / (std**2 + sigma**2)).sum(-1, keepdims=True)
            return (clean - noised / (1 + sigma**2)) * jnp.sqrt(1 + sigma**2) / sigma

    nets = tiny_agent().nets._replace(denoiser=Exact())
    agent = tiny_agent().replace(nets=nets, row_mean=jnp.float32([3.0]), row_std=jnp.float32([2.0]))
    x = np.asarray(jax.jit(module.sample_rows, static_argnums=2)(agent, jax.random.key(0), 10_000, args))[:, 0]
    x = (x - 3) / 2
    np.testing.assert_allclose([(x > 0).mean(), x[x > 0].mean(), x[x < 0].std()], [0.5, 1.0, 0.2], atol=0.02)


def test_synther_average_follows_every_tenth_update():
    """From the first on, as ema_pytorch does it."""
    module, args = load("synther"), args_of(ema_decay=0.9)
    steps = {n: float(module.ema_step(n, args)) for n in (1, 9, 10, 11, 101, 110, 111, 201, 10_001)}
    grown = {n: 1 - (1 - (1 + n - 101) ** (-2 / 3)) for n in (111, 201)}
    expected = {1: 1, 9: 0, 10: 0, 11: 1, 101: 1, 110: 0, 111: grown[111], 201: max(grown[201], 0.1), 10_001: 0.1}
    assert steps == pytest.approx(expected, rel=1e-4) and 0.1 < grown[111] < 1
    agent = tiny_agent()
    for decay, fitted in ((0.9, 120), (0.9, 121)):
        args = args_of(ema_decay=decay)
        new, _ = jax.jit(module.update_denoiser)(
            agent.replace(fitted=jnp.int32(fitted)), rows_of(), jax.random.key(0), args
        )
        tau = float(module.ema_step(fitted + 1, args))
        assert int(new.fitted) == fitted + 1 and (tau > 0) == (fitted == 120)
        expected = jax.tree.map(lambda o, n, tau=tau: (1 - tau) * o + tau * n, agent.ema_denoiser, new.denoiser)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.ema_denoiser, expected)


def test_synther_samples_are_transitions():
    """Actions are clipped, `terminal` is decided at a half, nothing else is touched; statistics leave `terminal` be."""
    module, rows = load("synther"), 3 * rows_of(50)
    found = np.asarray(module.as_transitions(rows, SPEC, True))
    expected = rows.copy()
    expected[:, 3:5] = rows[:, 3:5].clip(-1, 1)
    expected[:, 6] = rows[:, 6] > 0.5
    np.testing.assert_array_equal(found, expected)
    ends = expected[:, 6] > 0
    expected[ends, 7:] = rows[ends, :3]  # where nobody knows what follows them
    np.testing.assert_array_equal(module.as_transitions(rows, SPEC, False), expected)
    assert 0 < expected[:, 6].mean() < 1 and (np.abs(expected[:, 3:5]) == 1).any()
    scale = module.row_statistics(rows, SPEC)
    known = np.arange(D) != 6
    np.testing.assert_allclose(scale["row_mean"][known], rows.mean(0)[known], rtol=1e-4)
    np.testing.assert_allclose(scale["row_std"][known], rows.std(0)[known] + 1e-5, rtol=1e-4)
    assert scale["row_mean"][6] == 0 and scale["row_std"][6] == 1


def test_synther_quality_of_samples():
    """The same rows are at no distance; shifted ones at their shift in standard deviations."""
    module, agent = load("synther"), tiny_agent()
    one = np.repeat(rows_of(1), 40, 0)
    data = Transitions(jnp.asarray(one), None, None, SPEC, FIELDS)

    def exact(obs, action, key):
        return obs + 1.0, action.sum(-1), None

    found = module.quality(agent, one + 0.5 * agent.row_std, jax.random.key(0), data, exact, True, None)
    shifted = one + 0.5 * agent.row_std
    close(found["marginal_distance"], 0.5)
    close(found["sample_error"], np.linalg.norm(shifted[:, 7:] - shifted[:, :3] - 1.0, axis=1).mean())
    close(found["reward_error"], np.abs(shifted[:, 5] - shifted[:, 3:5].sum(1)).mean())
    shifted[:, 6] = np.arange(40) < 30
    shifted[:30, 7:] = 100.0  # stands for what is not known
    density = Density(lambda key, n: jnp.zeros((n, 2)), np.zeros((1, 2), np.float32), 0.1)
    at_once = module.quality(agent, 0 * one, jax.random.key(0), data, None, True, density)
    assert (float(at_once["energy_distance"]), float(at_once["modes_covered"])) == (0.0, 1.0)
    some = module.quality(agent, shifted, jax.random.key(0), data, exact, False, None)
    close(some["sample_error"], found["sample_error"])


def test_synther_critic(batch):
    module = load("synther")
    args = args_of(policy_noise=0.6, noise_clip=0.4)
    agent, key = tiny_agent(), jax.random.key(7)
    next_action = smoothed_next_action(agent, batch, key, args)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(module.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_synther_actor_and_what_its_gradient_leaves_out(batch):
    module = load("synther")
    args, agent = args_of(alpha=50.0), tiny_agent()
    bias = agent.critic["params"]["Dense_2"]["bias"] + 1000.0  # all Q positive: with lambda differentiated, constant
    critic = {"params": {**agent.critic["params"], "Dense_2": {**agent.critic["params"]["Dense_2"], "bias": bias}}}
    agent = agent.replace(critic=critic)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -50.0 / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean()
    (loss, _), grads = jax.jit(jax.value_and_grad(module.actor_loss, has_aux=True))(agent.actor, agent, batch, args)
    np.testing.assert_allclose(loss, expected, rtol=2e-4)
    cloning = jax.grad(lambda a: ((agent.nets.actor.apply(a, batch.obs) - batch.action) ** 2).mean())(agent.actor)
    difference = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), grads, cloning)
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_synther_moves_actor_and_targets_once_per_delay(batch):
    module, args, agent = load("synther"), args_of(tau=0.1), tiny_agent()
    batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
    new, _ = jax.jit(module.update)(agent, batches, jax.random.split(jax.random.key(0)), args)
    assert int(new.critic_opt[0].count) == 2 and int(new.actor_opt[0].count) == 1
    for name in ("actor", "critic"):
        expected = jax.tree.map(
            lambda old, online: 0.9 * old + 0.1 * online, getattr(agent, f"target_{name}"), getattr(new, name)
        )
        target = getattr(new, f"target_{name}")
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), target, expected)


def test_synther_batches_hold_their_share_of_samples():
    module = load("synther")
    real, synthetic = (Transitions(jnp.full((7, D), float(x)), None, None, SPEC, FIELDS) for x in (0, 1))
    for share in (0.0, 0.3, 1.0):
        args = args_of(batch_size=5000, synthetic_share=share)
        batch = module.mixed_rows(jax.random.key(0), real, synthetic, args)
        assert float(batch.reward.mean()) == pytest.approx(share, abs=0.03 * (0 < share < 1))
        np.testing.assert_array_equal(batch.obs[:, 0], batch.reward)


@pytest.mark.long
def test_synther_writes_samples_that_every_script_reads(pendulum, tmp_path, monkeypatch):
    """In the environment's units and as they were before the shift, one lane's in each file, all of its rows."""
    module, out = load("synther"), tmp_path / "run"

    def samples(agent, key, args, transitions, exact, known, density):
        rows = jnp.broadcast_to(args.alpha * jnp.arange(1.0, 10.0) / 10, (24, 9))
        return rows.at[:, 5].set(jnp.arange(24) % 2), {}

    monkeypatch.setattr(module, "draw_samples", samples)
    for name in ("fit", "train"):
        monkeypatch.setattr(module, name, lambda agent, keys, *_: (agent, {"loss": jnp.float32(0)}))
    train("synther", pendulum, out, env=SHORT, alpha=(0.5, 1.0), reward_shift=-100.0)
    assert sorted(f.name for f in (out / "samples").glob("*")) == ["lane-0.npz", "lane-1.npz"]
    real = load_dataset(pendulum).normalize_obs().task
    for i, alpha in enumerate((0.5, 1.0)):
        data = load_dataset(str(out / "samples" / f"lane-{i}.npz"), env="Pendulum-v1")
        row = alpha * np.arange(1, 10) / 10  # obs 3, action 1, reward, terminal, next_obs 3
        close(data.obs, np.tile(row[:3] * real.obs_std + real.obs_mean, (24, 1)))
        close(data.next_obs, np.tile(row[6:] * real.obs_std + real.obs_mean, (24, 1)))
        close(data.action[:, 0], np.full(24, row[3]))
        close(data.reward, np.full(24, row[4] + 100))
        np.testing.assert_array_equal(data.terminal, np.arange(24) % 2 == 1)
        assert data.last.all() and len(data.transitions().rows) == 24
        with np.load(out / "samples" / f"lane-{i}.npz") as stored:
            close(stored["actions"][:, 0], np.full(24, 2 * row[3]))


@pytest.mark.long
def test_synther_draws_the_same_samples_when_it_goes_on_for_longer(pendulum, tmp_path, monkeypatch):
    module, out, drawn = load("synther"), tmp_path / "run", []

    def samples(agent, key, args, transitions, exact, known, density):
        return jax.random.normal(key, (24, 9)), {}

    monkeypatch.setattr(module, "draw_samples", samples)
    for name in ("fit", "train"):
        monkeypatch.setattr(module, name, lambda agent, keys, *_: (agent, {"loss": jnp.float32(0)}))
    for updates in (4, 8):
        train("synther", pendulum, out, env=SHORT, updates=updates, resume=updates > 4)
        with np.load(out / "samples" / "lane-0.npz") as stored:
            drawn.append(stored["observations"])
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("known", [True, False])
def test_synther_what_follows_terminal_samples_is_as_unknown_as_in_the_data(known, tmp_path):
    module, r = load("synther"), np.random.default_rng(0)
    n, ends = 60, np.arange(60) % 10 == 9
    obs = r.normal(size=(n, 3)).astype(np.float32)
    following = {"next_observations": np.r_[obs[1:], obs[:1]] + 0.5} if known else {}
    log = {"observations": obs, "actions": r.uniform(-2, 2, (n, 1)), "rewards": np.ones(n), "terminals": ends}
    np.savez(tmp_path / "log.npz", **log, **following)
    data = load_dataset(str(tmp_path / "log.npz"), env="none")
    np.testing.assert_array_equal(data.successor, known | ~ends)
    rows = module.as_transitions(data.transitions().rows, data.spec, known)
    module.write_samples(tmp_path / "samples.npz", np.asarray(rows), data.task, known)
    written = load_dataset(str(tmp_path / "samples.npz"), env="none")
    for name in ("successor", "terminal", "next_obs"):
        np.testing.assert_array_equal(getattr(written, name), getattr(data, name), err_msg=name)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampling_steps": 1}, "--sampling-steps must be at least 2"),
        ({"synthetic_rows": 0}, "--synthetic-rows and --sampling-batch must be at least 1"),
        ({"denoiser_batch_size": -1}, "--denoiser-batch-size at least 0"),
        ({"data_share": 0.0}, "--data-share 0 leaves none of the 300 rows"),
    ],
)
def test_synther_refuses(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        train("synther", pendulum, tmp_path / "run", env=SHORT, **changes)
