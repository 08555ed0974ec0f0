"""The losses of f_dvl against the same equations in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, compiled, heads, log_std_of, mlp, normed_v
from released import ANTMAZE, MUJOCO, every, wrong_settings
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from shared.errors import InputError

DIVERGENCES = ("chi_square", "chi_square_monotone", "total_variation", "reverse_kl")


def small(**changes):
    return load("f_dvl").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


def conjugate(divergence, d):
    return {
        "chi_square": lambda: np.maximum(d + d**2 / 4, 0),
        "chi_square_monotone": lambda: np.where(d < -2, -1, d + d**2 / 4),
        "total_variation": lambda: np.maximum(d, 0),
    }[divergence]()


@pytest.mark.parametrize("divergence", DIVERGENCES[:3])
def test_f_dvl_value_loss_is_the_dual_of_its_divergence(divergence, batch):
    f_dvl, args = compiled("f_dvl"), small(divergence=divergence, loss_temperature=0.7)
    agent = agent_of(f_dvl, args, seed=7)
    d = heads(agent.target_critic, batch.obs, batch.action).min(0) - normed_v(agent.value, batch.obs)
    expected = (0.7 * conjugate(divergence, d) - 0.3 * d).mean()
    close(f_dvl.value_loss(agent.value, agent, batch, jax.random.key(0), args)[0], expected)


def test_f_dvl_reverse_kl_is_gumbel_regression_clipped_and_rescaled(batch):
    f_dvl, args = compiled("f_dvl"), small(divergence="reverse_kl", loss_temperature=0.5, max_clip=1.0)
    agent = agent_of(f_dvl, args, seed=7)
    d = heads(agent.target_critic, batch.obs, batch.action).min(0) - normed_v(agent.value, batch.obs)
    z = np.minimum(d / 0.5, 1.0)
    assert (z == 1.0).any() and (z < 1.0).any()
    expected = ((np.exp(z) - z - 1) * np.exp(-max(z.max(), -1.0))).mean()
    close(f_dvl.value_loss(agent.value, agent, batch, jax.random.key(0), args)[0], expected)


def test_f_dvl_the_rescaling_of_gumbel_regression_is_not_differentiated():
    f_dvl, args = compiled("f_dvl"), small(divergence="reverse_kl", loss_temperature=1.0)
    d = jnp.array([0.5, 2.0, -1.0])
    gradient = jax.grad(lambda d: f_dvl.conjugate_loss(d, args).sum())(d)
    close(gradient, (np.exp(d) - 1) * np.exp(-2.0))
    below = jax.grad(lambda d: f_dvl.conjugate_loss(d, args).sum())(jnp.array([-3.0, -2.0]))
    close(below, (np.exp([-3.0, -2.0]) - 1) * np.e)


def test_f_dvl_chi_square_differs_from_its_conjugate_below_zero_only():
    f_dvl = compiled("f_dvl")
    d = jnp.array([-10.0, -4.0, -3.0, -1.0, 0.0, 2.0])
    loss = {n: np.asarray(f_dvl.conjugate_loss(d, small(divergence=n))) for n in DIVERGENCES[:2]}
    close(loss["chi_square"], [15.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    close(loss["chi_square_monotone"], [-1.0, -1.0, -1.0, -0.75, 0.0, 3.0])


@pytest.mark.parametrize("divergence, settings", [("total_variation", (0.5, 0.9, 0.99)), ("reverse_kl", (10, 1, 0.1))])
def test_f_dvl_the_best_constant_value_goes_from_inside_the_data_to_its_maximum(divergence, settings):
    f_dvl, q = compiled("f_dvl"), np.linspace(-1.0, 1.0, 41)

    def best(temperature):
        args = small(divergence=divergence, loss_temperature=temperature, max_clip=100.0)
        if divergence == "reverse_kl":  # the rescaling depends on v: the minimiser is where the gradient is zero
            g = jax.grad(lambda v: f_dvl.conjugate_loss(q - v, args).mean())
            grid = np.linspace(-1, 1.2, 221)
            return grid[np.abs(jax.jit(jax.vmap(g))(grid)).argmin()]
        loss = jax.jit(lambda v: f_dvl.conjugate_loss(q - v, args).mean())
        return minimize_scalar(lambda v: float(loss(v)), bounds=(-2, 2)).x

    v = [best(t) for t in settings]
    assert v[0] < v[1] < v[2] <= 1.05 and v[0] < 0.2 and v[2] > 0.7


def test_f_dvl_random_and_noisy_actions_reach_the_value_only(batch):
    f_dvl, args = compiled("f_dvl"), small(n_random_actions=2, action_noise=0.4)
    agent, key = agent_of(f_dvl, args, seed=7), jax.random.key(3)
    noise_key, random_key = jax.random.split(key)
    noise = np.clip(0.4 * np.asarray(jax.random.normal(noise_key, batch.action.shape)), -0.5, 0.5)
    uniform = np.asarray(jax.random.uniform(random_key, (2 * B, 2), minval=-1.0, maxval=1.0))
    action = np.concatenate([np.clip(batch.action + noise, -1, 1), uniform])
    obs = np.tile(batch.obs, (3, 1))
    d = heads(agent.target_critic, obs, action).min(0) - normed_v(agent.value, obs)
    close(f_dvl.value_loss(agent.value, agent, batch, key, args)[0], np.maximum(d + d**2 / 4, 0).mean())
    plain = dataclasses.replace(args, n_random_actions=0, action_noise=0.0)
    for loss, params, more in ((f_dvl.actor_loss, agent.actor, (key,)), (f_dvl.critic_loss, agent.critic, ())):
        close(loss(params, agent, batch, *more, args)[0], loss(params, agent, batch, *more, plain)[0])


def test_f_dvl_critic_loss_is_huber_and_stops_at_terminals(batch):
    f_dvl, args = compiled("f_dvl"), small(discount=0.9, huber_delta=0.5)
    agent = agent_of(f_dvl, args, seed=7)
    y = batch.reward + 0.9 * (1 - batch.terminal) * normed_v(agent.value, batch.next_obs)
    x = np.abs(heads(agent.critic, batch.obs, batch.action) - y)
    assert (x > 0.5).any() and (x < 0.5).any()
    expected = np.where(x < 0.5, x**2 / 2, 0.5 * (x - 0.25)).mean(1).sum()
    close(f_dvl.critic_loss(agent.critic, agent, batch, args)[0], expected)


def test_f_dvl_actor_weights_are_iqls(batch):
    f_dvl, args = compiled("f_dvl"), small(beta=4.0, max_weight=3.0)
    agent = agent_of(f_dvl, args, seed=7)
    adv = heads(agent.target_critic, batch.obs, batch.action).min(0) - normed_v(agent.value, batch.obs)
    weight = np.minimum(np.exp(4.0 * adv), 3.0)
    assert (weight == 3.0).any() and (weight < 3.0).any()
    log_prob = norm.logpdf(batch.action, np.tanh(mlp(agent.actor, batch.obs)), np.exp(log_std_of(agent.actor))).sum(-1)
    close(f_dvl.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], -(weight * log_prob).mean())


@pytest.mark.long
def test_f_dvl_takes_several_value_steps_and_then_the_actor_and_the_critic(batch):
    f_dvl, args = compiled("f_dvl"), small(value_updates=3, value_lr=0.1)
    agent, key = agent_of(f_dvl, args, seed=7), jax.random.key(0)
    new, metrics = f_dvl.update(agent, batch, key, args)
    assert int(new.value_opt[0].count) == 3 and int(new.critic_opt[0].count) == 1
    after = agent.replace(value=new.value)
    close(metrics["critic_loss"], f_dvl.critic_loss(agent.critic, after, batch, args)[0])
    close(metrics["actor_loss"], f_dvl.actor_loss(agent.actor, after, batch, key, args)[0])
    assert abs(float(metrics["critic_loss"] - f_dvl.critic_loss(agent.critic, agent, batch, args)[0])) > 1e-3


def test_f_dvl_named_presets_are_xql():
    presets = load("f_dvl").PRESETS
    xql = {name: p for name, p in presets.items() if name.startswith("xql-")}
    assert len(xql) == 22 and all(p["divergence"] == "reverse_kl" for p in xql.values())
    assert presets["xql-hopper-medium-replay"]["loss_temperature"] == 2.0 and "divergence" not in presets["hopper"]


def test_f_dvl_settings_are_those_released():
    """README and configs of hari-sikchi/DVL; XQL's, by name, of Div99/XQL at dff09af (offline/reproduce)."""
    f_dvl = load("f_dvl")
    expected = {
        **every(
            [d for d in MUJOCO if "random" not in d], divergence="chi_square", loss_temperature=1.0,
            n_random_actions=1, beta=3.0, normalize_return=True, decay_actor_lr=True, batch_size=1024,
        ),
        **every(
            ANTMAZE, divergence="total_variation", loss_temperature=0.8, beta=10.0, reward_shift=-1.0,
            decay_actor_lr=False, batch_size=1024, eval_episodes=100,
        ),
        "pen-human-v1": {
            "divergence": "reverse_kl", "loss_temperature": 8.0, "max_clip": 5.0, "n_random_actions": 1, "beta": 0.5,
            "dropout": 0.1, "decay_actor_lr": True,
        },
    }  # fmt: skip
    assert not wrong_settings(f_dvl, expected)
    constant = {name for name, preset in f_dvl.PRESETS.items() if not preset.get("decay_actor_lr", True)}
    assert constant == {name for name in f_dvl.PRESETS if "antmaze" in name}


def test_f_dvl_the_actors_step_size_is_constant_where_it_does_not_decay(batch):
    f_dvl = load("f_dvl")
    sizes = {"updates": 3, "actor_lr": 0.1}
    gradient = {"x": jnp.ones(2)}
    steps = {}
    for decays in (True, False):
        optimizer = f_dvl.actor_optimizer(small(decay_actor_lr=decays, **sizes))
        state, steps[decays] = optimizer.init(gradient), []
        for _ in range(4):
            step, state = optimizer.update(gradient, state)
            steps[decays].append(-float(step["x"][0]))
    np.testing.assert_allclose(steps[False], 0.1, rtol=1e-4)
    np.testing.assert_allclose(steps[True], 0.1 * (1 + np.cos(np.pi * np.arange(4) / 3)) / 2, atol=1e-6)


def test_f_dvl_total_variation_is_quantile_regression():
    """Its least point over V of a sample of Q is the (2 lambda - 1) / lambda quantile."""
    f_dvl, q = compiled("f_dvl"), np.random.default_rng(0).normal(size=401).astype(np.float32)
    for temperature in (0.6, 0.8, 0.9):
        args = small(divergence="total_variation", loss_temperature=temperature)
        losses = [np.mean(f_dvl.conjugate_loss(q - v, args)) for v in np.sort(q)]
        assert abs(np.argmin(losses) / 400 - (2 * temperature - 1) / temperature) < 0.01


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_dvl_refuses_temperatures_for_which_v_has_no_bound(divergence):
    """Half and less of total variation: the loss does not rise where V falls under every Q; over 1 where it rises."""
    f_dvl = load("f_dvl")
    refused = {"total_variation": (0.5, 0.3, (0.8, 0.5), 1.2), "reverse_kl": (0.0, -1.0)}.get(divergence, (0.0, 1.2))
    accepted = {"total_variation": (0.51, 0.8, (0.6, 1.0)), "reverse_kl": (0.1, 10.0)}.get(divergence, (0.1, 1.0))
    for temperature in refused:
        with pytest.raises(InputError, match="--loss-temperature of"):
            f_dvl.main(small(divergence=divergence, loss_temperature=temperature, dataset="/nowhere.npz"))
    for temperature in accepted:
        f_dvl.check_temperature(small(divergence=divergence, loss_temperature=temperature))
    if divergence == "total_variation":
        d = jnp.array([1.0, 10.0, 100.0])
        for temperature, sign in ((0.4, -1), (0.5, 0), (0.6, 1)):
            slope = np.diff(f_dvl.conjugate_loss(d, small(divergence=divergence, loss_temperature=temperature)))
            assert (np.sign(np.round(slope, 5)) == sign).all()
