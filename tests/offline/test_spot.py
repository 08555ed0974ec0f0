"""The losses of spot against the same equations in plain numpy."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small, train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, smoothed_next_action
from released import ANTMAZE, every, table, wrong_settings
from scipy.special import logsumexp
from scipy.stats import norm

from shared.transitions import Batch

SMALL = {"latent_samples": 2, "vae_hidden_dims": (8, 8), "vae_updates": 2}


def tiny(**changes):
    sizes = {"hidden_dims": (8, 8), "vae_hidden_dims": (8, 8), "batch_size": B, "dropout": 0.0}
    return load("spot").Args(**sizes | changes)


def part(vae, name):
    return {"params": vae["params"][name]}


def encode(vae, obs, action):
    mean, log_std = np.split(mlp(part(vae, "encoder"), obs, action), 2, axis=-1)
    return mean, np.clip(log_std, -4, 15)


def latents(mean, log_std, key, n):
    return mean + np.exp(log_std) * np.asarray(jax.random.normal(key, (n, *mean.shape)))


def decode(vae, obs, z):
    return np.stack([np.tanh(mlp(part(vae, "decoder"), obs, one)) for one in z])


def elbo(vae, obs, action, key, beta, n=1):
    """[B] of the negative bound, every mean as in the authors' code."""
    mean, log_std = encode(vae, obs, action)
    error = (decode(vae, obs, latents(mean, log_std, key, n)) - action) ** 2
    kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))
    return error.mean((0, 2)) + beta * kl.mean(-1)


@pytest.fixture
def agent():
    return agent_of(compiled("spot"), tiny(), seed=3)


def test_spot_vae_loss_is_reconstruction_plus_kl_in_means(agent, batch):
    spot, key = compiled("spot"), jax.random.key(1)
    expected = elbo(agent.vae, batch.obs, batch.action, key, 0.7).mean()
    close(spot.vae_loss(agent.vae, agent, batch, key, tiny(kl_weight=0.7, latent_samples=3))[0], expected)


def test_spot_the_kl_is_that_of_the_two_normal_distributions(agent, batch):
    """Twice the action's dimensions of latents, averaged: one value per dimension of KL(N(m, s) | N(0, 1))."""
    mean, log_std = encode(agent.vae, batch.obs, batch.action)
    assert mean.shape == (B, 4)
    x = np.linspace(-30, 30, 200_001)
    m, s = mean[0, 0], np.exp(log_std[0, 0])
    numeric = np.trapezoid(norm.pdf(x, m, s) * (norm.logpdf(x, m, s) - norm.logpdf(x)), x)
    close(-0.5 * (1 + 2 * log_std[0, 0] - m**2 - s**2), numeric)


def test_spot_log_std_is_clipped(agent, batch):
    vae, key = agent.vae, jax.random.key(1)
    for by, at in ((-100.0, -4.0), (100.0, 15.0)):
        moved = jax.tree.map(lambda x: x, vae)
        moved["params"]["encoder"]["Dense_2"]["bias"] += by
        _, log_std, *_ = agent.nets.vae.apply(moved, batch.obs, batch.action, key)
        close(log_std, np.full((B, 4), at))


def test_spot_actor_maximises_normalised_q_inside_the_support(agent, batch):
    spot, key, args = compiled("spot"), jax.random.key(2), tiny(support_weight=0.3, kl_weight=0.7)
    vae_key = jax.random.split(key)[1]
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -q.mean() / np.abs(q).mean() + 0.3 * elbo(agent.vae, batch.obs, pi, vae_key, 0.7).mean()
    close(spot.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_spot_iwae_is_the_importance_weighted_estimate(agent, batch):
    spot, key, args = compiled("spot"), jax.random.key(2), tiny(kl_weight=0.7, latent_samples=6, density="iwae")
    mean, log_std = encode(agent.vae, batch.obs, batch.action)
    z = latents(mean, log_std, key, 6)
    log_p = norm.logpdf(batch.action, decode(agent.vae, batch.obs, z), np.sqrt(0.7 / 4)).sum(-1) + norm.logpdf(z).sum(
        -1
    )
    expected = np.log(6) - logsumexp(log_p - norm.logpdf(z, mean, np.exp(log_std)).sum(-1), axis=0)
    close(spot.negative_iwae(agent.vae, agent, batch.obs, batch.action, key, args), expected)
    pi = agent.nets.actor.apply(agent.actor, batch.obs)
    info = spot.actor_loss(agent.actor, agent, batch, key, args)[1]
    density = spot.negative_iwae(agent.vae, agent, batch.obs, pi, jax.random.split(key)[1], args)
    close(info["negative_density"], density.mean())


@pytest.mark.long
def test_spot_the_penalty_pulls_the_policy_through_the_frozen_vae(agent, batch):
    """The actor's gradient is not that of a penalty on fixed codes, and the VAE stays as it is."""
    spot, key, args = compiled("spot"), jax.random.key(2), tiny(support_weight=1e6)
    with_vae = jax.grad(spot.actor_loss, has_aux=True)(agent.actor, agent, batch, key, args)[0]
    step = 1e-3
    direction = jax.tree.map(lambda g: step * g / optax.global_norm(with_vae), with_vae)
    moved = jax.tree.map(jnp.add, agent.actor, direction)
    rise = spot.actor_loss(moved, agent, batch, key, args)[0] - spot.actor_loss(agent.actor, agent, batch, key, args)[0]
    np.testing.assert_allclose(rise / step, optax.global_norm(with_vae), rtol=0.05)
    keys = jax.random.split(key, 2)
    batches = jax.tree.map(lambda x: np.stack([x, x]), batch)
    new, _ = spot.update(agent, batches, (keys, keys), args)
    jax.tree.map(np.testing.assert_array_equal, new.vae, agent.vae)


def test_spot_critic_is_td3s(agent, batch):
    spot, key, args = compiled("spot"), jax.random.key(5), tiny(discount=0.9)
    q = heads(agent.target_critic, batch.next_obs, smoothed_next_action(agent, batch, key, args)).min(0)
    y = batch.reward + 0.9 * (1 - batch.terminal) * q
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(spot.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_spot_dropout_is_in_the_actors_update_only(agent, batch):
    spot, args = compiled("spot"), tiny(dropout=0.5)
    agent = spot.init(jax.random.key(0), args, SPEC)
    losses = [spot.actor_loss(agent.actor, agent, batch, jax.random.key(k), args)[0] for k in (0, 1)]
    assert losses[0] != losses[1]
    close(spot.act(agent, batch.obs, jax.random.key(0), args), np.tanh(mlp(agent.actor, batch.obs)))
    quiet = dataclasses.replace(args, policy_noise=0.0)
    targets = [spot.critic_loss(agent.critic, agent, batch, jax.random.key(k), quiet)[0] for k in (0, 1)]
    assert targets[0] == targets[1]


@pytest.mark.long
def test_spot_trains_the_vae_first_and_then_leaves_it(pendulum, tmp_path):
    short = train("spot", pendulum, tmp_path / "short", updates=4, vae_updates=4)
    long = train("spot", pendulum, tmp_path / "long", updates=8, vae_updates=4, checkpoint_every=8)
    more = train("spot", pendulum, tmp_path / "more", updates=4, vae_updates=8)
    vae = [k for k in short if ".vae" in k and "opt" not in k]
    assert vae and all((short[k] == long[k]).all() for k in vae)
    assert any((short[k] != more[k]).any() for k in vae)
    rows = list(csv.DictReader((tmp_path / "short" / "before.csv").open()))
    assert [r["update"] for r in rows] == ["2", "4"] and "vae_loss" in rows[0]
    assert small("spot", pendulum, tmp_path).vae_updates == 2


@pytest.mark.long
def test_spot_stays_on_one_of_two_modes_where_cloning_takes_their_mean():
    """Actions -0.8 and 0.8 in the data and Q(a) = a: neither the actions' mean 0 nor the bound 1 is supported."""
    spot = compiled("spot")
    sizes = {"hidden_dims": (16,), "vae_hidden_dims": (32, 32), "batch_size": 64, "dropout": 0.0}
    rates = dict.fromkeys(("actor_lr", "critic_lr", "vae_lr"), 3e-3)
    args = spot.Args(**sizes, **rates, support_weight=8.0, kl_weight=0.05)
    spec = SPEC._replace(obs_shape=(1,), action_dim=1)
    agent = spot.init(jax.random.key(0), args, spec)
    side = np.where(np.arange(64) % 2, 0.8, -0.8).astype(np.float32)[:, None]
    obs = np.ones((64, 1), np.float32)
    batch = Batch(obs, side, side[:, 0], obs[:, 0], obs)  # reward a, terminal: Q(a) = a

    def pretrain(agent, key):
        return spot.update_vae(agent, batch, key, args)

    def step(agent, key):
        a, b = jax.random.split(key)
        agent, _ = spot.update_critic(agent, batch, a, args)
        return spot.update_actor(agent, batch, b, args)

    agent, _ = jax.jit(lambda a, k: jax.lax.scan(pretrain, a, k))(agent, jax.random.split(jax.random.key(1), 1500))
    agent, _ = jax.jit(lambda a, k: jax.lax.scan(step, a, k))(agent, jax.random.split(jax.random.key(2), 1500))
    assert abs(abs(float(spot.act(agent, obs, None, args)[0, 0])) - 0.8) < 0.1


def test_spot_settings_are_those_released():
    """configs/offline of thuml/SPOT; those of online_finetune have another discount on the large mazes."""
    weights = table(
        """
        halfcheetah-medium-v2 0.05
        halfcheetah-medium-replay-v2 0.05
        halfcheetah-medium-expert-v2 1.0
        hopper-medium-v2 0.1
        hopper-medium-replay-v2 0.1
        hopper-medium-expert-v2 0.2
        walker2d-medium-v2 0.2
        walker2d-medium-replay-v2 0.2
        walker2d-medium-expert-v2 0.5
        antmaze-umaze-v2 0.25
        antmaze-umaze-diverse-v2 0.25
        antmaze-medium-play-v2 0.05
        antmaze-medium-diverse-v2 0.025
        antmaze-large-play-v2 0.025
        antmaze-large-diverse-v2 0.025
        """,
        support_weight=float,
    )
    antmaze = every(
        ANTMAZE, actor_lr=1e-4, dropout=0.0, small_last_layers=True, normalize_obs=False, eval_episodes=100,
        discount=0.99,
    )  # fmt: skip
    other = every(
        weights.keys() - antmaze.keys(), actor_lr=3e-4, dropout=0.1, small_last_layers=False, normalize_obs=True,
        eval_episodes=10, discount=0.99,
    )  # fmt: skip
    assert not wrong_settings(load("spot"), weights)
    assert not wrong_settings(load("spot"), antmaze | other)


@pytest.mark.parametrize("small_last", [True, False])
def test_spot_last_layers_are_small_where_asked(small_last):
    spot = compiled("spot")
    args = spot.Args(hidden_dims=(64, 64), vae_hidden_dims=(8, 8), small_last_layers=small_last)
    agent = spot.init(jax.random.key(0), args, SPEC)
    for net, bound in ((agent.actor, 1e-3), (agent.critic, 3e-3)):
        last = net["params"]["Dense_2"]
        largest = [float(np.abs(last[k]).max()) for k in ("kernel", "bias")]
        if small_last:
            assert 0.8 * bound < largest[0] <= bound and 0 < largest[1] <= bound
        else:
            assert 0.8 / 8 < largest[0] <= 1 / 8 and largest[1] == 0
