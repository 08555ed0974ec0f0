"""The losses of bcq against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, heads, mlp

from shared.task import Spec
from shared.transitions import Batch

SMALL = {"vae_hidden_dims": (8, 8), "target_candidates": 3, "n_candidates": 4}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture
def bcq():
    return load("bcq")


@pytest.fixture
def agent(bcq):
    return agent_of(bcq, bcq.Args(**SIZES), seed=2)


def part(vae, name):
    return {"params": vae["params"][name]}


def decoded(vae, obs, z):
    return np.tanh(mlp(part(vae, "decoder"), obs, z))


def drawn(agent, actor, obs, key, n, phi):
    """[n, B, A] perturbed actions of clipped latents."""
    z = np.clip(np.asarray(jax.random.normal(key, (n, len(obs), 4))), -0.5, 0.5)
    actions = [decoded(agent.vae, obs, one) for one in z]
    return np.stack([np.clip(a + phi * np.tanh(mlp(actor, obs, a)), -1, 1) for a in actions])


@pytest.mark.parametrize("min_weight", [0.75, 1.0, 0.2])
def test_bcq_critics_learn_the_best_candidate_of_the_mixed_targets(bcq, agent, batch, min_weight):
    args, key = bcq.Args(**SIZES, min_weight=min_weight, perturbation=0.3, discount=0.9), jax.random.key(1)
    actions = drawn(agent, agent.target_actor, batch.next_obs, key, 3, 0.3)
    q = np.stack([heads(agent.target_critic, batch.next_obs, a) for a in actions])  # [n, E, B]
    mixed = min_weight * q.min(1) + (1 - min_weight) * q.max(1)
    y = batch.reward + 0.9 * (1 - batch.terminal) * mixed.max(0)
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(bcq.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_bcq_vae_loss_is_reconstruction_plus_kl_in_means(bcq, agent, batch):
    args, key = bcq.Args(**SIZES, kl_weight=0.7), jax.random.key(1)
    mean, log_std = np.split(mlp(part(agent.vae, "encoder"), batch.obs, batch.action), 2, -1)
    log_std = np.clip(log_std, -4, 15)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, mean.shape))
    error = ((decoded(agent.vae, batch.obs, z) - batch.action) ** 2).mean()
    kl = (np.log(1 / np.exp(log_std)) + (np.exp(2 * log_std) + mean**2) / 2 - 0.5).mean()  # of two normal distributions
    close(bcq.vae_loss(agent.vae, agent, batch, key, args)[0], error + 0.7 * kl)


@pytest.mark.parametrize("by, at", [(-100.0, -4.0), (100.0, 15.0)])
def test_bcq_log_std_of_the_latent_is_clipped(agent, batch, by, at):
    moved = jax.tree.map(lambda x: x, agent.vae)
    moved["params"]["encoder"]["Dense_2"]["bias"] += by
    close(agent.nets.vae.apply(moved, batch.obs, batch.action, jax.random.key(1))[1], np.full((B, 4), at))


def test_bcq_actor_climbs_the_first_critic_from_the_vaes_action(bcq, agent, batch):
    args, key = bcq.Args(**SIZES, perturbation=0.3), jax.random.key(2)
    action = drawn(agent, agent.actor, batch.obs, key, 1, 0.3)[0]
    expected = -heads(agent.critic, batch.obs, action)[0].mean()
    close(bcq.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


@pytest.mark.long
def test_bcq_updates_vae_then_critics_then_perturbation(bcq, agent, batch):
    args, key = bcq.Args(**SIZES, tau=0.2), jax.random.key(3)
    new, metrics = jax.jit(bcq.update)(agent, batch, key, args)
    vae_key, critic_key, actor_key = jax.random.split(key, 3)
    close(metrics["vae_loss"], bcq.vae_loss(agent.vae, agent, batch, vae_key, args)[0])
    with_vae = agent.replace(vae=new.vae)
    close(metrics["critic_loss"], bcq.critic_loss(agent.critic, with_vae, batch, critic_key, args)[0])
    with_critic = with_vae.replace(critic=new.critic)
    close(metrics["actor_loss"], bcq.actor_loss(agent.actor, with_critic, batch, actor_key, args)[0])
    for other in (agent, with_vae):  # the ones of before give other losses
        assert abs(float(bcq.actor_loss(agent.actor, other, batch, actor_key, args)[0] - metrics["actor_loss"])) > 1e-5
    old = bcq.critic_loss(agent.critic, agent, batch, critic_key, args)[0]
    assert abs(float(old - metrics["critic_loss"])) > 1e-6
    for net in ("actor", "critic"):
        expected = jax.tree.map(lambda n, o: 0.2 * n + 0.8 * o, getattr(new, net), getattr(agent, f"target_{net}"))
        jax.tree.map(close, getattr(new, f"target_{net}"), expected)


def test_bcq_acts_by_the_first_critics_best_candidate(bcq, agent, batch):
    args, key = bcq.Args(**SIZES, perturbation=0.3), jax.random.key(4)
    actions = drawn(agent, agent.actor, batch.obs, key, 4, 0.3)
    q = np.stack([heads(agent.critic, batch.obs, a)[0] for a in actions])
    close(bcq.act(agent, batch.obs, key, args), actions[q.argmax(0), np.arange(B)])


@pytest.mark.long
def test_bcq_candidates_stay_near_the_data_and_without_perturbation_in_it(bcq):
    """Actions -0.8 and 0.8 in the data, Q(a) = a at these: BCQ takes 0.8, not the bound that Q is largest at."""
    side = np.where(np.arange(64) % 2, 0.8, -0.8).astype(np.float32)[:, None]
    obs = np.ones((64, 1), np.float32)
    batch = Batch(obs=obs, action=side, reward=side[:, 0], terminal=obs[:, 0], next_obs=obs)
    args = bcq.Args(hidden_dims=(16,), vae_hidden_dims=(32, 32), batch_size=64, vae_lr=3e-3, kl_weight=0.02)
    agent = bcq.init(jax.random.key(0), args, Spec((1,), 1, False, (-1.0,), (1.0,)))

    @jax.jit
    def run(phi):
        one = bcq.Args(**{**vars(args), "perturbation": phi})
        keys = jax.random.split(jax.random.key(1), 1000)
        last = jax.lax.scan(lambda a, key: bcq.update(a, batch, key, one), agent, keys)[0]
        return bcq.act(last, obs[:8], jax.random.key(2), one)

    near = {phi: np.asarray(run(jnp.float32(phi))) for phi in (0.0, 0.5)}
    assert (np.abs(near[0.0] - 0.8) < 0.1).all()
    assert (near[0.5] > 0.95).all()  # a wide perturbation climbs past the data


@pytest.mark.long
def test_bcq_settings_are_the_authors(bcq):
    """continuous_BCQ/BCQ.py and main.py of sfujim/BCQ."""
    args = bcq.Args()
    assert (args.actor_lr, args.critic_lr, args.vae_lr, args.batch_size) == (1e-3, 1e-3, 1e-3, 100)
    assert (args.perturbation, args.min_weight, args.tau, args.discount) == (0.05, 0.75, 0.005, 0.99)
    assert (args.target_candidates, args.n_candidates, args.hidden_dims) == (10, 100, (400, 300))
    agent = bcq.init(jax.random.key(0), bcq.Args(**SIZES), SPEC)
    assert agent.vae["params"]["decoder"]["Dense_0"]["kernel"].shape == (3 + 4, 8)
