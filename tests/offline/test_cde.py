"""The losses of cde against the same equations in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, relu
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import norm

from shared.arguments import preset_for
from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"dual_updates": 2}
SIZES = {"hidden_dims": (8, 8), "batch_size": B, "n_ood_actions": 3, "discount": 0.9}


@pytest.fixture(scope="module")
def cde():
    return load("cde")


@pytest.fixture(scope="module")
def agent(cde):
    agent = agent_of(cde, cde.Args(**SIZES), seed=2)
    return agent.replace(eta_v=jnp.float32(0.2), eta_e=jnp.float32(-0.1), log_alpha=jnp.float32(-0.3))


@pytest.fixture(scope="module")
def jitted(cde):
    """Compiled once."""
    names = ("value_loss", "advantage_loss", "behavior_loss", "actor_loss", "update", "ood_actions")
    return {name: jax.jit(getattr(cde, name)) for name in names}


@pytest.fixture
def rows(cde, batch):
    first_obs = np.random.default_rng(3).normal(size=(B, 3)).astype(np.float32)
    return cde.Rows(batch, np.float32([1, 0, 1, 1, 0]), first_obs)


def net(params, *inputs, heads=("Dense_2",)):
    """Outputs of two hidden layers, one for each head."""
    layers, x = params["params"], np.concatenate(inputs, -1).astype(np.float64)
    for name in ("Dense_0", "Dense_1"):
        x = relu(x @ np.float64(layers[name]["kernel"]) + np.float64(layers[name]["bias"]))
    return [x @ np.float64(layers[name]["kernel"]) + np.float64(layers[name]["bias"]) for name in heads]


def value(params, *inputs):
    return net(params, *inputs)[0][..., 0]


def policy(agent, obs):
    mean, log_std = net(agent.actor, obs, heads=("mean", "log_std"))
    return np.clip(mean, -7.24, 7.24), np.clip(log_std, -5, 2)


def mixture(agent, obs):
    mean, log_std, weight = net(agent.behavior, obs, heads=("mean", "log_std", "weight"))
    shape = (*obs.shape[:-1], 3, 2)
    weight = weight - logsumexp(weight, -1, keepdims=True)
    return mean.reshape(shape), np.clip(log_std, -5, 2).reshape(shape), weight


def behavior_log_prob(agent, obs, u):
    mean, log_std, weight = mixture(agent, obs)
    return logsumexp(weight + norm.logpdf(u[:, None], mean, np.exp(log_std)).sum(-1), -1)


def adv_of(agent, batch):
    next_v = value(agent.value, batch.next_obs)
    return batch.reward + 0.9 * (1 - batch.terminal) * next_v - value(agent.value, batch.obs)


def w_of(x):
    return np.where(x < 0, np.exp(np.minimum(x, 0)), x + 1)


def f_of(w):
    """Soft chi-square of a ratio, not of its argument."""
    return np.where(w < 1, w * np.log(w) - w + 1, (w - 1) ** 2 / 2)


def before_tanh(action):
    return np.arctanh(np.clip(action, -1 + 1e-6, 1 - 1e-6))


def test_cde_ratio_is_the_best_weight_of_an_advantage_under_the_divergence(cde):
    """w maximises w x - f(w); the largest value is the conjugate w x - f(w(x))."""
    for x in (-3.0, -0.4, 0.0, 0.7, 5.0):
        best = minimize_scalar(lambda w, x=x: -(w * x - f_of(w)), bounds=(1e-9, 20), method="bounded")
        np.testing.assert_allclose(cde.ratio(x), best.x, atol=1e-3)
        close(cde.divergence(x), f_of(w_of(np.float64(x))))
        close(cde.log_ratio(x), np.log(w_of(np.float64(x))))
        close(cde.slope(cde.ratio(x)), x)
    assert cde.log_ratio(-200.0) == -200.0  # where the ratio itself is 0


def test_cde_value_loss_is_the_dual(cde, agent, rows, jitted):
    args = cde.Args(**SIZES, divergence_weight=0.5)
    adv = adv_of(agent, rows.batch) - 0.2
    w = w_of(adv / 0.5)
    expected = (w * adv - 0.5 * f_of(w)).mean() + 0.2 + 0.1 * value(agent.value, rows.first_obs).mean()
    loss, info = jitted["value_loss"](agent.value, agent, rows, args)
    close(loss, expected)
    close([info["ratio"], info["ratio_max"]], [w.mean(), w.max()])


def test_cde_gradient_of_the_dual_is_that_of_weighted_advantages_in_full(cde, agent, rows):
    """By the envelope theorem it passes through A alone, with weight w; and A's through V(s') as well as V(s)."""
    args = cde.Args(**SIZES, divergence_weight=0.5)
    w = jnp.float32(w_of((adv_of(agent, rows.batch) - 0.2) / 0.5))

    def weighted(params):
        first = agent.nets.value.apply(params, rows.first_obs).mean()
        return (w * cde.td_advantage(params, agent, rows.batch, args)).mean() + 0.1 * first

    grads = jax.jit(jax.grad(lambda p: cde.value_loss(p, agent, rows, args)[0]))(agent.value)
    for found, expected in zip(*map(jax.tree.leaves, (grads, jax.jit(jax.grad(weighted))(agent.value))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_cde_multipliers_bring_the_mean_ratio_to_one(cde):
    args, adv = cde.Args(divergence_weight=0.5), jnp.float32([1.0, -0.5, 0.3])
    for eta in (-0.4, 1.5):
        slope = jax.grad(cde.multiplier_loss)(jnp.float32(eta), adv, args)
        close(slope, 1 - w_of((np.float64(adv) - eta) / 0.5).mean())


@pytest.mark.parametrize("zeta", [0.8, 1.0])
def test_cde_advantage_is_bounded_where_there_are_no_data(cde, agent, rows, jitted, zeta):
    args, key = cde.Args(**SIZES, divergence_weight=0.5, zeta=zeta, ood_ratio=0.3), jax.random.key(1)
    batch, adv = rows.batch, adv_of(agent, rows.batch)
    action = np.asarray(jitted["ood_actions"](agent, batch, key, args))
    e = value(agent.advantage, batch.obs, batch.action)
    e_ood = np.stack([value(agent.advantage, batch.obs, a) for a in action])
    above = np.maximum(e_ood + 0.1 - 0.5 * np.log(0.3), 0)
    expected = zeta * ((e - adv) ** 2).mean() + (1 - zeta) * (above**2).mean()
    loss, info = jitted["advantage_loss"](agent.advantage, agent, batch, jnp.float32(adv), key, args)
    close(loss, expected)
    close(info["ratio_ood"], w_of((e_ood + 0.1) / 0.5).mean())


def test_cde_actions_away_from_the_data_are_uniform_in_what_is_left(cde, agent, batch, jitted):
    """Their distance is the least of --ood-distance and the mean std of the mixture's components."""
    batch = batch._replace(action=np.float32([[-1.0, 0.97], [0.0, 0.3], [0.9, -0.9], [0.5, 0.5], [0.2, -0.2]]))
    args = cde.Args(**{**SIZES, "n_ood_actions": 4000}, ood_distance=0.3)
    narrow = agent.replace(behavior=jax.tree.map(lambda x: x, agent.behavior))
    layer = narrow.behavior["params"]["log_std"]
    layer["bias"] = layer["bias"] - jnp.float32([3, 1, 3, 1, 3, 1])
    near = np.minimum(np.exp(mixture(narrow, batch.obs)[1]).mean(-2), 0.3)
    assert near.min() < 0.29 and near.max() > 0.299
    action = np.asarray(jitted["ood_actions"](narrow, batch, jax.random.key(0), args))
    assert (np.abs(action - batch.action) >= near - 1e-5).all() and np.abs(action).max() <= 1.0
    low, high = np.maximum(batch.action - near, -1), np.minimum(batch.action + near, 1)
    below = (action < batch.action).mean(0)
    np.testing.assert_allclose(below, (low + 1) / (2 - (high - low)), atol=0.03)
    cloning = np.asarray(jitted["ood_actions"](narrow, batch, jax.random.key(0), _replace(args, extraction="cloning")))
    assert (np.abs(cloning - batch.action).min(0) < 0.01).all()


def _replace(args, **changes):
    return dataclasses.replace(args, **changes)


def test_cde_behavior_is_the_likelihood_of_the_mixture(cde, agent, batch, jitted):
    expected = -behavior_log_prob(agent, batch.obs, before_tanh(batch.action)).mean()
    close(jitted["behavior_loss"](agent.behavior, agent, batch), expected)


def test_cde_policy_is_the_projection_of_ratio_and_behavior(cde, agent, rows, jitted):
    args, key = cde.Args(**SIZES, divergence_weight=0.5, zeta=0.8), jax.random.key(2)
    mean, log_std = policy(agent, rows.batch.obs)
    u = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, mean.shape))
    x = (value(agent.advantage, rows.batch.obs, np.tanh(u)) + 0.1) / 0.5
    log_prob = norm.logpdf(u, mean, np.exp(log_std)).sum(-1)
    gain = rows.optimal * (np.log(w_of(x)) - log_prob + 0.8 * behavior_log_prob(agent, rows.batch.obs, u))
    entropy = -(log_prob - np.log(1 - np.tanh(u) ** 2).sum(-1)).mean()
    loss, info = jitted["actor_loss"](agent.actor, agent, rows, key, args)
    close(loss, -gain.mean() - np.exp(-0.3) * entropy)
    close(info["entropy"], entropy)


def test_cde_cloning_is_weighted_by_the_ratio_of_all_rows(cde, agent, rows, jitted):
    args, key = cde.Args(**SIZES, divergence_weight=0.5, extraction="cloning"), jax.random.key(2)
    mean, log_std = policy(agent, rows.batch.obs)
    w = w_of((value(agent.advantage, rows.batch.obs, rows.batch.action) + 0.1) / 0.5)
    u = before_tanh(rows.batch.action)
    log_prob = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    loss, info = jitted["actor_loss"](agent.actor, agent, rows, key, args)
    close(loss + np.exp(-0.3) * info["entropy"], -(w * log_prob).mean())


@pytest.mark.long
def test_cde_updates_the_dual_then_the_policy_with_it(cde, agent, rows, jitted):
    args, key = cde.Args(**SIZES), jax.random.key(3)
    new, metrics = jitted["update"](agent, rows, key, args)
    _, actor_key = jax.random.split(key)
    close(metrics["value_loss"], jitted["value_loss"](agent.value, agent, rows, args)[0])
    with_dual = new.replace(actor=agent.actor, log_alpha=agent.log_alpha)
    close(metrics["actor_loss"], jitted["actor_loss"](agent.actor, with_dual, rows, actor_key, args)[0])
    assert (new.log_alpha > agent.log_alpha) == (metrics["entropy"] < -2)
    for name, adv in (("v", adv_of(agent, rows.batch)), ("e", value(agent.advantage, *rows.batch[:2]))):
        before, after = (float(getattr(x, f"eta_{name}")) for x in (agent, new))
        above = w_of((adv - before) / args.divergence_weight).mean() > 1
        np.testing.assert_allclose(after - before, 3e-4 if above else -3e-4, rtol=1e-2)  # Adam's first step


def test_cde_rows_know_whether_their_episode_ends_in_a_reward(cde, tmp_path):
    """Three episodes of 12, 12 and 8 rows, of which the first and the last end in a reward, the last one by time."""
    ends = np.isin(np.arange(32), (11, 23, 31))
    reward = np.float32(np.isin(np.arange(32), (11, 15, 31)))
    np.savez(
        tmp_path / "log.npz", observations=np.arange(32.0)[:, None], actions=np.zeros((32, 1)), rewards=reward,
        terminals=ends & (np.arange(32) < 31), timeouts=ends & (np.arange(32) == 31),
        next_observations=np.arange(1.0, 33.0)[:, None],
    )  # fmt: skip
    data = load_dataset(str(tmp_path / "log.npz"), env="none")
    on_device = cde.on_device(data, data.reward)
    np.testing.assert_array_equal(on_device.optimal, np.r_[np.ones(12), np.zeros(12), np.ones(8)])
    np.testing.assert_array_equal(on_device.first_obs, [[0], [12], [24]])
    few = cde.on_device(data, np.where(np.arange(32) == 31, 1, 0))  # 8 rows
    assert (np.asarray(few.optimal) == 1).all()
    rows = cde.sample(on_device, jax.random.key(0), cde.Args(batch_size=64))
    row = np.asarray(rows.batch.obs[:, 0], int)
    np.testing.assert_array_equal(rows.optimal, np.asarray(on_device.optimal)[row])
    assert set(np.asarray(rows.first_obs)[:, 0]) == {0, 12, 24}


def test_cde_rewards_are_standardised_before_their_scale_and_ratios_are_positive(cde, pendulum, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cde, "on_device", lambda data, reward: seen.append((data.reward, reward)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cde.main(small("cde", pendulum, tmp_path / "run", env="none"))
    scaled, raw = seen[0]
    close(scaled, 0.1 * (raw - raw.mean()) / raw.std())
    for name in ("divergence_weight", "ood_ratio"):
        with pytest.raises(InputError, match="must be over 0"):
            cde.main(small("cde", pendulum, tmp_path / "run", **{name: (0.1, 0.0)}))


def test_cde_settings_are_those_released(cde):
    """hyper_params/cde of czp16/cde-offline-rl: epochs of 1000 updates, of which the first are without a policy."""

    def of(dataset):
        own = cde.PRESETS[preset_for(dataset, cde.PRESETS)]
        args = dataclasses.replace(cde.Args(), **own)
        return args.divergence_weight, args.dual_updates, args.dual_updates + args.updates, args.extraction

    assert of("maze2d-large-v1") == of("D4RL/pointmaze/umaze-v2") == (0.001, 20_000, 100_000, "projection")
    assert of("hopper-medium-v2") == (0.1, 100_000, 500_000, "projection")
    assert (
        of("pen-expert-v1") == of("D4RL/door/expert-v2")[:3] + ("projection",) == (0.01, 40_000, 200_000, "projection")
    )
    assert of("hammer-human-v1") == (0.01, 40_000, 200_000, "cloning")
    args = cde.Args()
    assert (args.zeta, args.ood_ratio, args.n_ood_actions, args.batch_size) == (0.9, 0.3, 5, 512)
