"""The losses of edp against the same equations in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from networks_in_numpy import mish, noise_net, q_values
from reference import B, agent_of, close, mlp

from shared.errors import InputError

SMALL = {
    "value_samples": 2, "time_dim": 4, "solver_steps": 2, "n_candidates": 2, "target_start": 0, "target_every": 1,
}  # fmt: skip

T = 1000
ABAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))


def args_of(**changes):
    return load("edp").Args(**{"hidden_dims": (8, 8), "batch_size": B, "time_dim": 6, "value_samples": 4} | changes)


@functools.cache
def tiny_agent(improvement="td3"):
    return agent_of(load("edp"), args_of(improvement=improvement))


def v_of(agent, obs):
    return mlp(agent.value, obs, activation=mish)[:, 0]


def denoising(actor, batch, key, args):
    """The denoising loss and the action approximation."""
    time_key, noise_key = jax.random.split(key)
    t = np.asarray(jax.random.randint(time_key, (B,), 0, T))
    z = np.asarray(jax.random.normal(noise_key, (B, 2)))
    abar = ABAR[t][:, None]
    noised = np.sqrt(abar) * batch.action + np.sqrt(1 - abar) * z
    epsilon = noise_net(actor, batch.obs, noised, t, args.time_dim)
    return ((epsilon - z) ** 2).mean(), np.clip((noised - np.sqrt(1 - abar) * epsilon) / np.sqrt(abar), -1, 1)


def weight_of(pi, agent, batch, key, args):
    """What the gradient does not pass through: td3's normaliser, the advantage weights."""
    if args.improvement == "td3":
        k = int(jax.random.randint(key, (), 0, 2))
        return np.abs(q_values(agent.critic, batch.obs, pi)[k]).mean()
    if args.improvement == "iql":
        adv = q_values(agent.target_critic, batch.obs, batch.action).min(0) - v_of(agent, batch.obs)
        return np.minimum(np.exp(args.iql_beta * adv), args.iql_max_weight)
    others = pi + np.asarray(jax.random.normal(key, (args.value_samples, B, 2)))
    v = q_values(agent.critic, np.broadcast_to(batch.obs, (args.value_samples, B, 3)), others).min(0).mean(0)
    adv = q_values(agent.critic, batch.obs, batch.action).min(0) - v
    return np.minimum(np.exp(adv / args.crr_temperature), args.crr_max_weight)


def test_edp_noise_schedule():
    edp = load("edp")
    np.testing.assert_allclose(edp.alpha_bars(T), ABAR, rtol=1e-6)
    np.testing.assert_allclose(edp.alpha_bars(100), np.cumprod(1 - np.linspace(1e-3, 0.2, 100)), rtol=1e-6)
    with pytest.raises(InputError, match="more than 20"):
        edp.alpha_bars(20)


@pytest.mark.parametrize("steps, tolerance", [(15, 0.05), (100, 0.002)])
def test_edp_solver_follows_the_diffusions_ode(steps, tolerance):
    """With the exact noise of data N(0.1, 0.2^2) the ODE maps every quantile to itself; in few steps."""
    edp = load("edp")
    mean, std = 0.1, 0.2

    class Exact:
        action_dim = 1

        def apply(self, actor, obs, a, t):
            log_snr = jnp.interp(t, jnp.arange(T), jnp.asarray(0.5 * np.log(ABAR / (1 - ABAR)), jnp.float32))
            left = jax.nn.sigmoid(2 * log_snr)
            return jnp.sqrt(1 - left) * (a - mean * jnp.sqrt(left)) / (left * std**2 + 1 - left)

    agent = tiny_agent().replace(nets=edp.Networks(Exact(), None))
    key, obs = jax.random.key(0), jnp.zeros((2000, 3))
    action = jax.jit(edp.sample_actions)(agent, None, obs, key, args_of(solver_steps=steps))
    noise = np.asarray(jax.random.normal(key, (2000, 1)))

    def quantile(a, left):
        return (a - mean * np.sqrt(left)) / np.sqrt(left * std**2 + 1 - left)

    inside = np.abs(noise) < 2  # no prediction is clipped
    np.testing.assert_allclose(quantile(action, ABAR[0])[inside], quantile(noise, ABAR[-1])[inside], atol=tolerance)


def test_edp_samples_are_of_the_network_and_within_bounds(batch):
    """Two steps by hand."""
    edp = load("edp")
    args = args_of(solver_steps=2)
    agent, key = tiny_agent(), jax.random.key(3)
    snr = ABAR / (1 - ABAR)
    grid = np.exp(np.linspace(np.log(snr[-1]), np.log(snr[0]), 3))
    alpha, sigma = np.sqrt(grid / (1 + grid)), np.sqrt(1 / (1 + grid))
    a, last = np.asarray(jax.random.normal(key, (B, 2)), np.float64), None
    for i in range(2):
        t = np.interp(np.log(grid[i]), np.log(snr)[::-1], np.arange(T)[::-1])
        a_0 = np.clip((a - sigma[i] * noise_net(agent.actor, batch.obs, a, t, args.time_dim)) / alpha[i], -1, 1)
        guess = a_0 if last is None else 1.5 * a_0 - 0.5 * last
        a = sigma[i + 1] / sigma[i] * a + (alpha[i + 1] - sigma[i + 1] / sigma[i] * alpha[i]) * guess
        last = a_0
    close(jax.jit(edp.sample_actions)(agent, agent.actor, batch.obs, key, args), np.clip(a, -1, 1))


@pytest.mark.parametrize("improvement", ["td3", "crr", "iql"])
def test_edp_critic(batch, improvement):
    edp = load("edp")
    args = args_of(improvement=improvement)
    agent, key = tiny_agent(improvement), jax.random.key(7)
    if improvement == "iql":
        next_v = v_of(agent, batch.next_obs)
    else:
        next_action = jax.jit(edp.sample_actions)(agent, agent.target_actor, batch.next_obs, key, args)
        next_v = q_values(agent.target_critic, batch.next_obs, np.asarray(next_action)).min(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * next_v
    expected = sum(((q - y) ** 2).mean() for q in q_values(agent.critic, batch.obs, batch.action))
    close(jax.jit(edp.critic_loss)(agent.critic, agent, batch, key, args)[0], expected)


def test_edp_value(batch):
    edp = load("edp")
    args = args_of(improvement="iql", expectile=0.8)
    agent = tiny_agent("iql")
    u = q_values(agent.target_critic, batch.obs, batch.action).min(0) - v_of(agent, batch.obs)
    assert (u > 0).any() and (u < 0).any()
    close(jax.jit(edp.value_loss)(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.2, 0.8) * u**2).mean())


@pytest.mark.parametrize("improvement", ["td3", "crr", "iql"])
def test_edp_actor_and_what_its_gradient_passes_through(batch, improvement):
    """The loss, and its slope along a random direction with normaliser and weights held fixed."""
    edp = load("edp")
    args = args_of(improvement=improvement, eta=3.0, crr_max_weight=1.5, iql_max_weight=1.5)
    agent, loss_and_grad = tiny_agent(improvement), jax.jit(jax.value_and_grad(edp.actor_loss, has_aux=True))
    actor = jax.tree.map(np.float64, agent.actor)
    direction = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), agent.actor)
    drawn = set()
    for seed in range(4):
        key = jax.random.key(seed)
        diffusion_key, improvement_key = jax.random.split(key)
        k = int(jax.random.randint(improvement_key, (), 0, 2))
        drawn.add(k)
        _, pi = denoising(agent.actor, batch, diffusion_key, args)
        assert (np.abs(pi) < 1).any()
        weight = weight_of(pi, agent, batch, improvement_key, args)

        def loss(step, weight=weight, k=k, key=diffusion_key):
            bc, pi = denoising(jax.tree.map(lambda x, v: x + step * v, actor, direction), batch, key, args)
            if improvement == "td3":
                return bc - 3.0 * q_values(agent.critic, batch.obs, pi)[k].mean() / weight
            return bc + (weight * 0.5 * ((batch.action - pi) ** 2).sum(-1)).mean()

        (actual, _), grads = loss_and_grad(agent.actor, agent, batch, key, args)
        close(actual, loss(0.0))
        slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(slope, (loss(1e-7) - loss(-1e-7)) / 2e-7, rtol=2e-3, atol=1e-3)
    assert drawn == {0, 1}


def moves_against(grads, old, new):
    for g, o, n in zip(*map(jax.tree.leaves, (grads, old, new)), strict=True):
        clear = np.abs(g) > 1e-4
        np.testing.assert_allclose((n - o)[clear], -1e-3 * np.sign(g)[clear], rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("improvement", ["td3", "iql"])
def test_edp_update_takes_all_losses_of_the_old_parameters_but_v(batch, improvement):
    """The first step of Adam is the sign of the gradient; then the targets follow, the policy's rarely."""
    edp = load("edp")
    args = args_of(improvement=improvement, target_start=1, target_every=1, tau=0.1, actor_lr=1e-3, critic_lr=1e-3)
    agent, key = tiny_agent(improvement), jax.random.key(0)
    new, _ = jax.jit(edp.update)(agent, batch, key, args)
    old = agent
    if improvement == "iql":
        grads = jax.jit(jax.grad(edp.value_loss, has_aux=True))(agent.value, agent, batch, args)[0]
        moves_against(grads, agent.value, new.value)
        old = agent.replace(value=new.value)
    critic_key, actor_key = jax.random.split(key)
    for name, loss, k in (("critic", edp.critic_loss, critic_key), ("actor", edp.actor_loss, actor_key)):
        grads = jax.jit(jax.grad(loss, has_aux=True))(getattr(agent, name), old, batch, k, args)[0]
        moves_against(grads, getattr(agent, name), getattr(new, name))
    polyak = jax.tree.map(lambda o, n: 0.9 * o + 0.1 * n, agent.target_critic, new.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.target_critic, polyak)
    jax.tree.map(np.testing.assert_array_equal, new.target_actor, agent.target_actor)
    assert int(new.step) == 1


def test_edp_acts_by_softmax_of_the_online_critics(batch, monkeypatch):
    edp = load("edp")
    args = args_of(n_candidates=4)
    fixed = np.random.default_rng(0).uniform(-1, 1, (4, B, 2)).astype(np.float32)
    monkeypatch.setattr(edp, "sample_actions", lambda *_: jnp.asarray(fixed))
    agent = tiny_agent()
    agent = agent.replace(critic=jax.tree.map(lambda x: 3 * x, agent.critic))
    keys = jax.random.split(jax.random.key(0), 2000)
    actions = np.asarray(jax.jit(jax.vmap(lambda k: edp.act(agent, jnp.asarray(batch.obs), k, args)))(keys))
    q = q_values(agent.critic, np.broadcast_to(batch.obs, (4, B, 3)), fixed).min(0)
    expected = np.exp(q) / np.exp(q).sum(0)
    assert expected.max() > 0.5
    np.testing.assert_allclose((actions[:, None] == fixed).all(-1).mean(0), expected, atol=0.04)


def test_edp_rewards_and_presets():
    edp = load("edp")

    class Rewards:
        reward = np.float32([0, 0, 1, 3])

        def return_range(self):
            return 4.0

        def reward_range(self):
            return 0.0, 3.0

    def tuned(tuning, **changes):
        scale, shift = edp.reward_map(data, args_of(reward_tuning=tuning, **changes))
        return data.reward * scale + shift

    data = Rewards()
    np.testing.assert_allclose(tuned("antmaze"), [-2, -2, 2, 10])
    np.testing.assert_allclose(tuned("antmaze", improvement="iql"), [-1, -1, 0, 2])
    np.testing.assert_allclose(tuned("range"), [-1, -1, -1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(tuned("returns"), 250 * data.reward)
    np.testing.assert_array_equal(tuned("none"), data.reward)
    for changes in edp.PRESETS.values():
        edp.Args(**changes)


def test_edp_refuses_an_embedding_of_less_than_a_pair():
    module = load("edp")
    with pytest.raises(InputError, match="--time-dim must be at least 2"):
        module.main(module.Args(time_dim=1))
