"""The losses of diffusion_ql against the same equations in plain numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from networks_in_numpy import mish, noise_net, posterior_chain, q_values
from reference import B, agent_of, close
from released import table, wrong_settings

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"time_dim": 4, "n_candidates": 2, "target_start": 0, "target_every": 1}

T = 5
BETA = 1 - np.exp(-0.1 / T - 0.5 * 9.9 * (2 * np.arange(1, T + 1) - 1) / T**2)


def args_of(**changes):
    return load("diffusion_ql").Args(**{"hidden_dims": (8, 8), "batch_size": B, "time_dim": 6} | changes)


@functools.cache
def tiny_agent():
    return agent_of(load("diffusion_ql"), args_of())


def chain(actor, obs, key, shape, args):
    first_key, noise_key = jax.random.split(key)
    first, noise = jax.random.normal(first_key, shape), jax.random.normal(noise_key, (T, *shape))
    return posterior_chain(lambda a, t: noise_net(actor, obs, a, t, args.time_dim), first, np.asarray(noise), BETA)


def denoising_loss(actor, batch, key, args):
    time_key, noise_key = jax.random.split(key)
    t = np.asarray(jax.random.randint(time_key, (B,), 0, T))
    z = np.asarray(jax.random.normal(noise_key, (B, 2)))
    abar = np.cumprod(1 - BETA)[t][:, None]
    noised = np.sqrt(abar) * batch.action + np.sqrt(1 - abar) * z
    return ((noise_net(actor, batch.obs, noised, t, args.time_dim) - z) ** 2).mean()


def test_diffusion_ql_mish_and_its_gradient():
    module = load("diffusion_ql")
    x = np.linspace(-50, 50, 1001)
    np.testing.assert_allclose(module.mish(jnp.float32(x)), mish(x), rtol=1e-5, atol=1e-6)
    slope = (mish(x + 1e-6) - mish(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.vmap(jax.grad(module.mish))(jnp.float32(x)), slope, rtol=1e-4, atol=1e-5)


def test_diffusion_ql_noise_schedule():
    np.testing.assert_allclose(load("diffusion_ql").alpha_bars(T), np.cumprod(1 - BETA), rtol=1e-6)


@pytest.mark.long
def test_diffusion_ql_actions_are_the_reverse_chain(batch):
    module = load("diffusion_ql")
    args = args_of()
    agent, key = tiny_agent(), jax.random.key(3)
    expected = chain(agent.actor, batch.obs, key, (B, 2), args)
    assert (np.abs(expected) == 1).any() and (np.abs(expected) < 1).any()
    close(jax.jit(module.sample_actions)(agent, agent.actor, batch.obs, key, args), expected)


@pytest.mark.long
def test_diffusion_ql_chain_reaches_a_known_distribution():
    """With the exact noise of data N(0.3, 0.2^2), a long chain draws that distribution."""
    module = load("diffusion_ql")
    args = args_of(diffusion_steps=1000)
    abar = jnp.asarray(module.alpha_bars(1000), jnp.float32)

    class Exact:
        action_dim = 1

        def apply(self, _, obs, a, t):
            left = abar[t.astype(int)]
            return jnp.sqrt(1 - left) * (a - 0.3 * jnp.sqrt(left)) / (left * 0.2**2 + 1 - left)

    agent = tiny_agent().replace(nets=module.Networks(Exact(), None))
    a = jax.jit(module.sample_actions)(agent, None, jnp.zeros((10_000, 3)), jax.random.key(0), args)
    np.testing.assert_allclose([a.mean(), a.std()], [0.3, 0.2], atol=0.01)


@pytest.mark.parametrize("max_q_backup", [False, True])
def test_diffusion_ql_critic_bootstraps_from_the_target_policy(batch, max_q_backup):
    module = load("diffusion_ql")
    args = args_of(max_q_backup=max_q_backup)
    agent, key = tiny_agent(), jax.random.key(7)
    n = 10 if max_q_backup else 1
    next_obs = np.broadcast_to(batch.next_obs, (n, B, 3))
    next_action = chain(agent.target_actor, next_obs, key, (n, B, 2), args)
    y = batch.reward + 0.99 * (1 - batch.terminal) * q_values(agent.target_critic, next_obs, next_action).max(1).min(0)
    expected = sum(((q - y) ** 2).mean() for q in q_values(agent.critic, batch.obs, batch.action))
    close(jax.jit(module.critic_loss)(agent.critic, agent, batch, key, args)[0], expected)


def test_diffusion_ql_denoising_loss(batch):
    module = load("diffusion_ql")
    args = args_of()
    agent, key = tiny_agent(), jax.random.key(8)
    expected = denoising_loss(agent.actor, batch, key, args)
    close(jax.jit(module.diffusion_loss)(agent.actor, agent, batch, key, args), expected)


def test_diffusion_ql_actor_divides_by_the_other_critic(batch):
    module = load("diffusion_ql")
    args = args_of(eta=0.7)
    agent, loss = tiny_agent(), jax.jit(module.actor_loss)
    drawn = set()
    for seed in range(6):
        key = jax.random.key(seed)
        diffusion_key, sample_key, critic_key = jax.random.split(key, 3)
        pi = chain(agent.actor, batch.obs, sample_key, (B, 2), args)
        q = q_values(agent.critic, batch.obs, pi)
        i = int(jax.random.randint(critic_key, (), 0, 2))
        drawn.add(i)
        expected = denoising_loss(agent.actor, batch, diffusion_key, args) - 0.7 * q[i].mean() / np.abs(q[1 - i]).mean()
        close(loss(agent.actor, agent, batch, key, args)[0], expected)
    assert drawn == {0, 1}


@pytest.mark.long
def test_diffusion_ql_gradient_passes_through_the_chain_and_not_through_the_normaliser(batch):
    """Against finite differences of the loss with the normaliser held fixed, along a random direction."""
    module = load("diffusion_ql")
    args = args_of(eta=3.0)
    agent, key = tiny_agent(), jax.random.key(1)
    diffusion_key, sample_key, critic_key = jax.random.split(key, 3)
    i = int(jax.random.randint(critic_key, (), 0, 2))

    def q_of(actor):
        return q_values(agent.critic, batch.obs, chain(actor, batch.obs, sample_key, (B, 2), args))

    scale = np.abs(q_of(agent.actor)[1 - i]).mean()

    def loss(step):
        moved = jax.tree.map(lambda x, d: np.float64(x) + step * np.float64(d), agent.actor, direction)
        return denoising_loss(moved, batch, diffusion_key, args) - 3.0 * q_of(moved)[i].mean() / scale

    direction = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), agent.actor)
    grads = jax.jit(jax.grad(module.actor_loss, has_aux=True))(agent.actor, agent, batch, key, args)[0]
    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-3)


@pytest.mark.long
def test_diffusion_ql_moves_the_target_policy_rarely_and_the_critics_always(batch):
    module = load("diffusion_ql")
    args = args_of(target_start=4, target_every=2, tau=0.1)
    agent, update = tiny_agent(), jax.jit(module.update)
    moved = []
    for i in range(7):
        new, _ = update(agent, batch, jax.random.key(i), args)
        for name in ("actor", "critic"):
            old, online = getattr(agent, f"target_{name}"), getattr(new, name)
            tau = 0.1 if name == "critic" or i in (4, 6) else 0.0
            expected = jax.tree.map(lambda o, n, tau=tau: (1 - tau) * o + tau * n, old, online)
            target = getattr(new, f"target_{name}")
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), target, expected)
        moved.append(any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), agent.actor, new.actor))))
        agent = new
    assert all(moved) and int(agent.step) == 7


def test_diffusion_ql_clips_gradients_unless_zero():
    module = load("diffusion_ql")
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    for max_grad_norm, norm in ((0.0, 13.0), (2.0, 2.0), (20.0, 13.0)):
        clip = module.optimizer(1e-3, args_of(max_grad_norm=max_grad_norm))
        _, state = clip.update(grads, clip.init(grads))
        first_moment = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state[1][0].mu)]) / 0.1
        np.testing.assert_allclose(np.linalg.norm(first_moment), norm, rtol=1e-5)


@pytest.mark.long
def test_diffusion_ql_acts_by_softmax_of_the_target_critics(batch, monkeypatch):
    """The frequencies of the candidates of one state are softmax(min_i target Q_i); they are the online policy's."""
    module = load("diffusion_ql")
    args, key = args_of(n_candidates=4), jax.random.key(0)
    agent, obs = tiny_agent(), np.broadcast_to(batch.obs, (4, B, 3))
    candidates = chain(agent.actor, obs, jax.random.split(key)[0], (4, B, 2), args)
    action = jax.jit(module.act)(agent, batch.obs, key, args)
    assert (np.abs(np.asarray(action) - candidates).max(-1).min(0) < 1e-4).all()

    fixed = np.random.default_rng(0).uniform(-1, 1, (4, B, 2)).astype(np.float32)
    monkeypatch.setattr(module, "sample_actions", lambda *_: jnp.asarray(fixed))
    agent = agent.replace(target_critic=jax.tree.map(lambda x: 3 * x, agent.target_critic))
    keys = jax.random.split(key, 2000)
    actions = np.asarray(jax.jit(jax.vmap(lambda k: module.act(agent, jnp.asarray(batch.obs), k, args)))(keys))
    q = q_values(agent.target_critic, obs, fixed).min(0)
    expected = np.exp(q) / np.exp(q).sum(0)
    assert expected.max() > 0.5
    np.testing.assert_allclose((actions[:, None] == fixed).all(-1).mean(0), expected, atol=0.04)


def test_diffusion_ql_rewards_and_presets(pendulum):
    module = load("diffusion_ql")
    reward = np.float32([0, 0, 1, 3])
    data = dataclasses.replace(load_dataset(pendulum), reward=reward)
    scale, shift = module.reward_map(data, "antmaze")
    np.testing.assert_allclose(reward * scale + shift, 4 * (reward - 0.5))
    scale, shift = module.reward_map(data, "normalize")
    np.testing.assert_allclose(reward * scale + shift, (reward - reward.mean()) / reward.std(), rtol=1e-5)
    assert module.reward_map(data, "none") == (1.0, 0.0)
    with pytest.raises(InputError, match="are equal"):
        module.reward_map(dataclasses.replace(data, reward=np.float32([1, 1])), "normalize")
    for changes in module.PRESETS.values():
        module.Args(**changes)


RELEASED = """
    halfcheetah-medium-v2 3e-4 1.0 False 9.0
    hopper-medium-v2 3e-4 1.0 False 9.0
    walker2d-medium-v2 3e-4 1.0 False 1.0
    halfcheetah-medium-replay-v2 3e-4 1.0 False 2.0
    hopper-medium-replay-v2 3e-4 1.0 False 4.0
    walker2d-medium-replay-v2 3e-4 1.0 False 4.0
    halfcheetah-medium-expert-v2 3e-4 1.0 False 7.0
    hopper-medium-expert-v2 3e-4 1.0 False 5.0
    walker2d-medium-expert-v2 3e-4 1.0 False 5.0
    antmaze-umaze-v0 3e-4 0.5 False 2.0
    antmaze-umaze-diverse-v0 3e-4 2.0 True 3.0
    antmaze-medium-play-v0 1e-3 2.0 True 2.0
    antmaze-medium-diverse-v0 3e-4 3.0 True 1.0
    antmaze-large-play-v0 3e-4 4.5 True 10.0
    antmaze-large-diverse-v0 3e-4 3.5 True 7.0
    pen-human-v1 3e-5 0.15 False 7.0
    pen-cloned-v1 3e-5 0.1 False 8.0
    kitchen-complete-v0 3e-4 0.005 False 9.0
    kitchen-partial-v0 3e-4 0.005 False 10.0
    kitchen-mixed-v0 3e-4 0.005 False 10.0
"""


def test_diffusion_ql_settings_are_those_released():
    """main.py of Zhendong-Wang/Diffusion-Policies-for-Offline-RL at d871f5c; the critics' rate is fixed there."""
    expected = table(
        RELEASED, actor_lr=float, eta=float, max_q_backup=lambda word: word == "True", max_grad_norm=float
    )  # fmt: skip
    tuning = {"antmaze": "antmaze", "pen": "normalize"}
    epochs = {"-v2": 2000, "complete-v0": 250}
    for dataset, row in expected.items():
        row["reward_tuning"] = tuning.get(dataset.split("-")[0], "none")
        row["updates"] = 1000 * next((n for end, n in epochs.items() if dataset.endswith(end)), 1000)
        row |= {"critic_lr": 3e-4, "eval_episodes": 10 if dataset.endswith("-v2") else 100}
    assert not wrong_settings(load("diffusion_ql"), expected)


def test_ofql_settings_are_diffusion_qls_but_eta():
    """Which the paper tunes for every set; the number of updates is one million for all."""
    expected = table(
        RELEASED, actor_lr=float, eta=float, max_q_backup=lambda word: word == "True", max_grad_norm=float
    )  # fmt: skip
    for dataset, row in expected.items():
        del row["eta"]
        row |= {"updates": 1_000_000, "eval_episodes": 10 if dataset.endswith("-v2") else 100}
    assert not wrong_settings(load("ofql"), expected)


def test_diffusion_ql_refuses_an_embedding_of_less_than_a_pair():
    module = load("diffusion_ql")
    with pytest.raises(InputError, match="--time-dim must be at least 2"):
        module.main(module.Args(time_dim=1))
