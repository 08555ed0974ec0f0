"""The losses of plas against the same equations in plain numpy."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import B, agent_of, close, heads, mlp

from shared.arguments import preset_for
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"vae_hidden_dims": (8, 8), "vae_updates": 2}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture
def plas():
    return load("plas")


@pytest.fixture
def agent(plas):
    return agent_of(plas, plas.Args(**SIZES), seed=2)


def part(net, name):
    return {"params": net["params"][name]}


def policy(agent, actor, obs, limit, phi):
    z = limit * np.tanh(mlp(part(actor, "latent_net"), obs))
    action = np.tanh(mlp(part(agent.vae, "decoder"), obs, z))
    return np.clip(action + phi * np.tanh(mlp(part(actor, "change_net"), obs, action)), -1, 1)


@pytest.mark.long
def test_plas_vae_loss_is_reconstruction_plus_kl_in_means(plas, agent, batch):
    args, key = plas.Args(**SIZES, kl_weight=0.7), jax.random.key(1)
    latent_key, spread_key = jax.random.split(key)
    mean, log_std = np.split(mlp(part(agent.vae, "encoder"), batch.obs, batch.action), 2, -1)
    log_std = np.clip(log_std, -4, 15)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(latent_key, mean.shape))
    error = ((np.tanh(mlp(part(agent.vae, "decoder"), batch.obs, z)) - batch.action) ** 2).mean()
    kl = (-log_std + (np.exp(2 * log_std) + mean**2) / 2 - 0.5).mean()
    loss, info = plas.vae_loss(agent.vae, agent, batch, key, args)
    close(loss, error + 0.7 * kl)
    drawn = [np.tanh(mlp(part(agent.vae, "decoder"), batch.obs, z)) for z in np.asarray(
        jax.random.normal(spread_key, (4, B, 4)))]  # fmt: skip
    close(info["latent_spread"], np.std(drawn, 0).mean())


@pytest.mark.parametrize("phi, min_weight", [(0.0, 0.75), (0.4, 1.0)])
def test_plas_critics_learn_the_mixed_targets_of_the_target_policy(plas, agent, batch, phi, min_weight):
    args = plas.Args(**SIZES, perturbation=phi, min_weight=min_weight, max_latent=1.5, discount=0.9)
    action = policy(agent, agent.target_actor, batch.next_obs, 1.5, phi)
    q = heads(agent.target_critic, batch.next_obs, action)
    y = batch.reward + 0.9 * (1 - batch.terminal) * (min_weight * q.min(0) + (1 - min_weight) * q.max(0))
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(plas.critic_loss(agent.critic, agent, batch, args)[0], expected)


@pytest.mark.parametrize("phi", [0.0, 0.4])
def test_plas_actor_climbs_the_first_critic_through_the_frozen_decoder(plas, agent, batch, phi):
    args = plas.Args(**SIZES, perturbation=phi, max_latent=1.5)

    def expected(actor):
        return -heads(agent.critic, batch.obs, policy(agent, actor, batch.obs, 1.5, phi))[0].mean()

    close(plas.actor_loss(agent.actor, agent, batch, args)[0], expected(agent.actor))
    grads, _ = jax.grad(plas.actor_loss, has_aux=True)(agent.actor, agent, batch, args)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))

    def along(step):
        return expected(jax.tree.map(lambda p, g: np.float64(p) + step * np.float64(g) / norm, agent.actor, grads))

    np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, norm, rtol=1e-3)
    moved = np.abs(grads["params"]["change_net"]["Dense_0"]["kernel"]).max()
    assert (moved > 0) == (phi > 0)
    close(plas.act(agent, batch.obs, None, args), policy(agent, agent.actor, batch.obs, 1.5, phi))


def test_plas_updates_critics_then_actor_and_leaves_the_vae(plas, agent, batch):
    args = plas.Args(**SIZES, tau=0.2)
    new, metrics = jax.jit(plas.update)(agent, batch, args)
    close(metrics["critic_loss"], plas.critic_loss(agent.critic, agent, batch, args)[0])
    close(metrics["actor_loss"], plas.actor_loss(agent.actor, agent.replace(critic=new.critic), batch, args)[0])
    assert abs(float(plas.actor_loss(agent.actor, agent, batch, args)[0] - metrics["actor_loss"])) > 1e-5
    jax.tree.map(np.testing.assert_array_equal, new.vae, agent.vae)
    for net in ("actor", "critic"):
        expected = jax.tree.map(lambda n, o: 0.2 * n + 0.8 * o, getattr(new, net), getattr(agent, f"target_{net}"))
        jax.tree.map(close, getattr(new, f"target_{net}"), expected)


@pytest.mark.long
def test_plas_trains_the_vae_first_and_then_leaves_it(pendulum, tmp_path):
    short = train("plas", pendulum, tmp_path / "short", updates=4, vae_updates=4, env="none")
    long = train("plas", pendulum, tmp_path / "long", updates=8, vae_updates=4, checkpoint_every=8, env="none")
    vae = [k for k in short if ".vae" in k and "opt" not in k]
    assert vae and all((short[k] == long[k]).all() for k in vae)
    rows = list(csv.DictReader((tmp_path / "short" / "before.csv").open()))
    assert [r["update"] for r in rows] == ["2", "4"] and "latent_spread" in rows[0]


@pytest.mark.long
def test_plas_takes_the_best_point_of_a_ring_and_stays_on_it(plas):
    """Actions on a ring of radius 0.8, rewards rising to the right and beyond it: Q is largest at a corner, off it."""
    r = np.random.default_rng(0)
    angle = r.uniform(0, 2 * np.pi, 256)
    action = 0.8 * np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    obs, ones = np.zeros((256, 1), np.float32), np.ones(256, np.float32)
    batch = Batch(obs=obs, action=action, reward=action[:, 0], terminal=ones, next_obs=obs)
    rates = dict.fromkeys(("actor_lr", "critic_lr", "vae_lr"), 3e-3)
    args = plas.Args(hidden_dims=(16,), vae_hidden_dims=(32, 32), batch_size=256, kl_weight=0.02, **rates)
    agent = plas.init(jax.random.key(0), args, Spec((1,), 2, False, (-1.0, -1.0), (1.0, 1.0)))

    @jax.jit
    def fit(agent):
        keys = jax.random.split(jax.random.key(1), 1000)
        return jax.lax.scan(lambda a, key: plas.update_vae(a, batch, key, args), agent, keys)[0]

    @jax.jit
    def run(agent, phi):
        one = plas.Args(**{**vars(args), "perturbation": phi})
        last = jax.lax.scan(lambda a, _: plas.update(a, batch, one), agent, None, length=500)[0]
        return plas.act(last, obs[:1], None, one)[0]

    fitted = fit(agent)
    on, off = (np.asarray(run(fitted, jnp.float32(phi))) for phi in (0.0, 0.5))
    assert abs(np.linalg.norm(on) - 0.8) < 0.1 and on[0] > 0.7
    assert off[0] > 0.95


def test_plas_settings_are_those_released(plas):
    """main.py of Wenxuan-Zhou/PLAS; perturbations: reproductions/offline/plas_with_perturbation.py of d3rlpy."""
    args = plas.Args()
    assert (args.actor_lr, args.critic_lr, args.vae_lr, args.batch_size) == (1e-4, 1e-3, 1e-4, 100)
    assert (args.updates, args.vae_updates, args.max_latent, args.perturbation) == (500_000, 500_000, 2.0, 0.0)
    assert (args.min_weight, args.tau, args.hidden_dims, args.vae_hidden_dims) == (0.75, 0.005, (400, 300), (750, 750))
    released = {
        "walker2d-random": 0.05, "hopper-random": 0.5, "halfcheetah-random": 0.01, "walker2d-medium": 0.1,
        "hopper-medium": 0.01, "halfcheetah-medium": 0.1, "walker2d-medium-replay": 0.01,
        "hopper-medium-replay": 0.2, "halfcheetah-medium-replay": 0.05, "walker2d-medium-expert": 0.01,
        "hopper-medium-expert": 0.01, "halfcheetah-medium-expert": 0.01,
    }  # fmt: skip
    for name, phi in released.items():
        args = plas.Args(**plas.PRESETS[preset_for("x", plas.PRESETS, f"d3rlpy-{name}")])
        assert (args.perturbation, args.min_weight) == (phi, 1.0)
        assert args.vae_hidden_dims == ((128, 128) if "replay" in name else (750, 750))
        assert preset_for(f"{name}-v0", plas.PRESETS) is None
