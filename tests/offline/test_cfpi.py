"""The closed forms of cfpi against numerical optimisation, its losses against the same equations in plain numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, heads, mlp, relu
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import norm

from shared.arguments import preset_for
from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"n_components": 2, "n_fractions": 2, "bc_updates": 2, "operator": "mode"}
K, N = 3, 4
SIZES = {"n_components": K, "n_fractions": N, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture(scope="module")
def cfpi():
    return load("cfpi")


@pytest.fixture(scope="module")
def args(cfpi):
    return cfpi.Args(**SIZES, delta=0.7, beta_lb=0.6)


@pytest.fixture(scope="module")
def agent(cfpi, args):
    return agent_of(cfpi, args, seed=2)


@pytest.fixture(scope="module")
def bound(cfpi):
    """`lower_bound` and its gradient in u, compiled."""
    value = lambda u, agent, obs, args: cfpi.lower_bound(agent, obs, u, args)  # noqa: E731
    return jax.jit(value), jax.jit(jax.grad(lambda *inputs: value(*inputs).sum()))


@pytest.fixture(scope="module")
def critic_loss(cfpi):
    return jax.jit(cfpi.critic_loss)


@pytest.fixture(scope="module")
def plain(cfpi):
    """An agent with critics of squared errors."""
    return agent_of(cfpi, cfpi.Args(**SIZES, critic="mse"), seed=2)


ONE = {**SIZES, "vae_hidden_dims": (8, 8), "critic": "mse", "operator": "jensen", "beta_lb": 0.6}


@pytest.fixture(scope="module")
def deterministic(cfpi):
    args = cfpi.Args(**ONE, behavior="deterministic")
    return agent_of(cfpi, args, seed=2), args


@pytest.fixture(scope="module")
def vae(cfpi):
    args = cfpi.Args(**ONE, behavior="vae", n_candidates=6)
    return agent_of(cfpi, args, seed=2), args


def dense(layers, i, x):
    return x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])


def mixture_of(actor, obs, n=K):
    """Mean and standard deviation [B, n, A], log weight [B, n]."""
    layers, x = actor["params"], np.float64(obs)
    for i in range(2):
        x = relu(dense(layers, i, x))
    mean, log_std = (dense(layers, i, x).reshape(*x.shape[:-1], n, 2) for i in (2, 3))
    logits = dense(layers, 4, x)
    return mean, np.exp(np.clip(log_std, -5, 2)), logits - logsumexp(logits, -1, keepdims=True)


def layer_norm(layers, i, x):
    p = layers[f"LayerNorm_{i}"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def quantiles(critics, obs, action, fraction):
    """[E, ..., N]"""
    found = []
    for e in range(2):
        layers = jax.tree.map(lambda x, e=e: x[e], critics)["params"]
        x = relu(layer_norm(layers, 0, dense(layers, 0, np.concatenate([obs, action], -1).astype(np.float64))))
        cosines = np.cos(np.pi * np.float64(fraction)[..., None] * np.arange(1, 65))
        x = x[..., None, :] / (1 + np.exp(-layer_norm(layers, 1, dense(layers, 1, cosines))))
        found.append(dense(layers, 3, relu(layer_norm(layers, 2, dense(layers, 2, x))))[..., 0])
    return np.stack(found)


def lower_bound(agent, obs, u, beta):
    obs = np.broadcast_to(obs, (*u.shape[:-1], obs.shape[-1]))
    fraction = np.broadcast_to((np.arange(32) + 0.5) / 32, (*u.shape[:-1], 32))
    q = quantiles(agent.critic, obs, np.tanh(u), fraction).mean(-1)
    return q.mean(0) - beta * q.std(0, ddof=1)


# ------------------------------------------------------------------- closed forms, by optimisation


def best_within(grad, room, start):
    """argmax of grad . u where room(u [n, 2]) >= 0, a convex set around `start`: along 20,000 rays, by bisection."""
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    ray, low, high = np.stack([np.cos(angle), np.sin(angle)], -1), np.zeros(20_000), np.full(20_000, 20.0)
    for _ in range(50):
        middle = (low + high) / 2
        inside = room(start + middle[:, None] * ray) >= 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    edge = start + low[:, None] * ray
    return edge[(edge @ grad).argmax()]


@pytest.fixture(scope="module")
def problem(cfpi):
    """Three Gaussians in two dimensions at one state, near enough to each other for a common ellipsoid; gradients."""
    r = np.random.default_rng(3)
    weight = np.array([0.5, 0.45, 0.05])
    mean, std = r.normal(scale=0.4, size=(K, 2)), r.uniform(0.4, 1.2, (K, 2))
    mixture = cfpi.Mixture(*(jnp.float32(x) for x in (np.log(weight)[:, None], mean[:, None], std[:, None])))
    return mixture, weight, mean, std, r.normal(size=(K, 2))


@pytest.mark.long
def test_cfpi_lse_is_the_best_action_within_each_components_ellipsoid(cfpi, problem):
    """Where the component's own density is e^-delta of the largest peak, of which the mixture has no less."""
    mixture, weight, mean, std, grad = problem
    log_density = lambda k, u: np.log(weight[k]) + norm.logpdf(u, mean[k], std[k]).sum(-1)  # noqa: E731
    highest = max(log_density(k, mean[k]) for k in range(K))
    deltas = np.array([0.3, 2.0], np.float32)
    u = cfpi.lse_proposals(mixture, mixture.std**2, jnp.float32(grad[:, None]), jnp.asarray(deltas), 1.0)
    low = 0
    for d, delta in enumerate(deltas):
        for k in range(K):
            if log_density(k, mean[k]) > highest - delta:
                expected = best_within(grad[k], lambda x, k=k, d=delta: log_density(k, x) - highest + d, mean[k])
                np.testing.assert_allclose(u[d, k, 0], expected, atol=2e-3)
                density = logsumexp([log_density(j, np.float64(u[d, k, 0])) for j in range(K)])
                assert density >= highest - delta - 1e-5
            else:
                low += 1
                close(u[d, k, 0], mean[k])
    assert 0 < low < 2 * K
    wide = cfpi.lse_proposals(mixture, mixture.std**2, jnp.float32(grad[:, None]), jnp.asarray(deltas), 2.0)
    close(wide - mixture.mean, np.sqrt(2) * (u - mixture.mean))


def test_cfpi_jensen_is_the_best_action_within_the_mean_ellipsoid(cfpi, problem):
    mixture, weight, mean, std, grad = problem
    center, width, least = cfpi.jensen_center(mixture, mixture.std**2)
    distance = lambda u: ((u[..., None, :] - mean) ** 2 / (std**2 + 1e-6)).sum(-1) @ weight  # noqa: E731
    np.testing.assert_allclose(center[0], minimize(distance, mean[0]).x, atol=1e-3)
    close(least[0], distance(np.float64(center[0])))
    for delta in (0.6, 1.5):
        assert 2 * delta > least[0]
        u = cfpi.ascend(center, width, jnp.float32(grad[:1]), jnp.sqrt(2 * delta - least))[0]
        expected = best_within(grad[0], lambda x, d=delta: 2 * d - distance(x), np.float64(center[0]))
        np.testing.assert_allclose(u, expected, atol=2e-3)


def test_cfpi_one_gaussian_moves_by_the_square_root_of_twice_delta(cfpi):
    one = cfpi.Mixture(*(jnp.float32(x) for x in ([[0.0]], [[[0.2, -0.1]]], [[[0.5, 1.5]]])))
    center, width, least = cfpi.jensen_center(one, one.std**2)
    grad = np.array([[3.0, -1.0]])
    expected = [0.2, -0.1] + np.sqrt(2 * 0.5) * np.array([0.25, 2.25]) * grad[0] / np.sqrt(0.25 * 9 + 2.25)
    np.testing.assert_allclose(
        cfpi.ascend(center, width, jnp.float32(grad), jnp.sqrt(1.0 - least))[0], expected, rtol=1e-5
    )


def test_cfpi_a_flat_q_moves_nothing(cfpi):
    flat = cfpi.ascend(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones(1))
    np.testing.assert_array_equal(flat, 1.0)


# -------------------------------------------------------------------------------------- choosing


def test_cfpi_the_lower_bound_is_of_the_mean_quantiles_of_two_critics(bound, agent, args, batch):
    u = np.random.default_rng(0).normal(size=(K, B, 2)).astype(np.float32)
    close(bound[0](u, agent, batch.obs, args), lower_bound(agent, batch.obs, u, 0.6))


def chosen(agent, obs, u, allowed, beta=0.6):
    """Of critics of squared errors."""
    q = heads(agent.critic, np.broadcast_to(obs, (*u.shape[:-1], 3)), np.tanh(u))
    value = np.where(allowed, q.mean(0) - beta * q.std(0, ddof=1), -np.inf)
    return np.tanh(u[value.argmax(0), np.arange(B)])


def proposed(cfpi, gradient, agent, obs, args, delta):
    """lse's proposals [K, B, A] and jensen's [1, B, A], and which of them count, by the tested closed forms."""
    mean, std, log_weight = mixture_of(agent.actor, obs)
    mixture = cfpi.Mixture(log_weight.T, np.moveaxis(mean, 1, 0), np.moveaxis(std, 1, 0))
    center, width, least = cfpi.jensen_center(mixture, mixture.std**2)
    at_means, at_center = (gradient(jnp.float32(x), agent, obs, args) for x in (mixture.mean, center))
    lse = cfpi.lse_proposals(mixture, mixture.std**2, at_means, np.array([delta]), 2.0)[0]
    kappa = 2 * delta - least
    jensen = cfpi.ascend(center, width, at_center, np.sqrt(np.maximum(kappa, 0)))[None]
    weight = np.exp(mixture.log_weight)
    return (np.array(lse), weight >= np.minimum(0.05, weight.max(0))), (np.array(jensen), np.array(kappa >= 0)[None])


@pytest.mark.long
def test_cfpi_takes_the_proposal_of_highest_lower_bound(cfpi, bound, plain, args, batch):
    heavy = {"min_component_weight": 0.3}
    arms = {
        **{operator: replace(args, operator=operator) for operator in ("both", "lse", "none")},
        "still": replace(args, operator="lse", delta=0.0, **heavy),
        "mode": replace(args, operator="mode", **heavy),
    }
    improve = jax.jit(lambda agent: {n: cfpi.improve(agent, batch.obs, jax.random.key(0), x) for n, x in arms.items()})
    actions = improve(plain)
    lse, jensen = proposed(cfpi, bound[1], plain, batch.obs, args, 0.7)
    close(actions["lse"], chosen(plain, batch.obs, *lse))
    close(actions["both"], chosen(plain, batch.obs, *map(np.concatenate, zip(lse, jensen, strict=True))))
    mean, _, log_weight = mixture_of(plain.actor, batch.obs)
    means, weight = np.moveaxis(mean, 1, 0), np.exp(log_weight.T)
    assert not (weight >= 0.3).all()
    close(actions["mode"], chosen(plain, batch.obs, means, weight >= 0.3))
    close(actions["still"], actions["mode"])
    close(actions["none"], np.tanh(mean[np.arange(B), log_weight.argmax(-1)]))


@pytest.mark.long
def test_cfpi_leaves_out_jensens_proposal_where_there_is_none(cfpi, bound, plain, args, batch):
    far = plain.replace(actor=jax.tree.map(lambda x: 4 * x, plain.actor))
    _, (_, allowed) = proposed(cfpi, bound[1], far, batch.obs, args, 0.7)
    assert not allowed.all()
    u, counts = jax.jit(cfpi.proposals)(far, batch.obs, jax.random.key(0), args)
    np.testing.assert_array_equal(counts[K:], allowed)
    assert np.isfinite(u).all()


def test_cfpi_draws_candidates_from_the_mixture(cfpi, plain, args, batch):
    many = replace(args, operator="sample", n_candidates=4000)
    u, allowed = jax.jit(cfpi.proposals)(plain, batch.obs, jax.random.key(1), many)
    mean, std, log_weight = mixture_of(plain.actor, batch.obs)
    weight = np.exp(log_weight)[..., None]
    expected = (weight * mean).sum(1)
    second = (weight * (mean**2 + std**2)).sum(1)
    assert u.shape == (4000, B, 2) and allowed.all()
    error = np.sqrt((second - expected**2) / 4000)
    assert (np.abs(u.mean(0) - expected) < 5 * error).all()
    np.testing.assert_allclose((u**2).mean(0), second, rtol=0.2)


@pytest.mark.long
def test_cfpi_a_deterministic_policys_action_is_the_center_of_a_ball(cfpi, bound, deterministic, batch):
    """Of the linear function with the bound's gradient, the proposal is the best by numerical optimisation."""
    agent, args = deterministic
    mean = mixture_of(agent.actor, batch.obs, 1)[0][:, 0]
    u, allowed = jax.jit(cfpi.proposals)(agent, batch.obs, jax.random.key(0), replace(args, delta=0.7))
    gradient = np.float64(bound[1](jnp.float32(mean), agent, batch.obs, args))
    assert u.shape == (1, B, 2) and allowed.all()
    for b in range(B):
        room = lambda x, b=b: 0.7 - ((x - mean[b]) ** 2).sum(-1) / 2  # noqa: E731
        np.testing.assert_allclose(u[0, b], best_within(gradient[b], room, mean[b]), atol=2e-3)


@pytest.mark.long
def test_cfpi_a_vaes_best_decoded_action_is_moved_along_the_gradient(cfpi, bound, vae, batch):
    agent, args = vae
    key = jax.random.key(5)
    z = np.clip(np.array(jax.random.normal(jax.random.split(key, 3)[0], (6, B, 4))), -0.5, 0.5)
    obs = np.broadcast_to(batch.obs, (6, B, 3))
    decoded = np.tanh(mlp_of(agent.actor["params"]["decoder"], np.concatenate([obs, z], -1).astype(np.float64)))
    q = heads(agent.critic, obs, decoded)
    best = (q.mean(0) - 0.6 * q.std(0, ddof=1)).argmax(0)
    assert len(set(best)) > 1
    center = np.arctanh(decoded[best, np.arange(B)])
    gradient = np.float64(bound[1](jnp.float32(center), agent, batch.obs, args))
    moved = center + np.sqrt(2 * 0.7) * gradient / np.sqrt((gradient**2).sum(-1, keepdims=True))
    arms = {
        "moved": replace(args, delta=0.7),
        "mode": replace(args, operator="mode"),
        "none": replace(args, operator="none"),
    }
    action = jax.jit(lambda agent: {n: cfpi.improve(agent, batch.obs, key, x) for n, x in arms.items()})(agent)
    close(action["moved"], np.tanh(moved))
    close(action["mode"], np.tanh(center))
    one = np.clip(np.array(jax.random.normal(jax.random.split(key, 3)[0], (1, B, 4))), -0.5, 0.5)[0]
    params = agent.actor["params"]["decoder"]
    close(action["none"], np.tanh(mlp_of(params, np.concatenate([batch.obs, one], -1).astype(np.float64))))


def test_cfpi_draws_as_many_deltas_as_asked_for(cfpi, plain, args, batch):
    drawn = replace(args, operator="lse", delta=0.2, delta_range=1.8, n_deltas=3, covariance="identity")
    u, allowed = jax.jit(cfpi.proposals)(plain, batch.obs, jax.random.key(4), drawn)
    mean, _, log_weight = mixture_of(plain.actor, batch.obs)
    moved = np.linalg.norm(np.array(u).reshape(3, K, B, 2) - np.moveaxis(mean, 1, 0), axis=-1)
    delta = 0.2 + 1.8 * np.array(jax.random.uniform(jax.random.split(jax.random.key(4), 3)[2], (3,)))
    room = np.maximum(delta[:, None, None] + log_weight.T - log_weight.T.max(0), 0)
    close(moved, np.sqrt(2 * 2 * room))
    np.testing.assert_array_equal(allowed, np.tile(np.exp(log_weight.T) >= 0.05, (3, 1)))


# ---------------------------------------------------------------------------------------- losses


def test_cfpi_clones_by_the_likelihood_of_the_mixture(cfpi, agent, batch):
    mean, std, log_weight = mixture_of(agent.actor, batch.obs)
    action = np.clip(np.float64(batch.action), -1 + 1e-6, 1 - 1e-6)
    density = norm.logpdf(np.arctanh(action)[:, None], mean, std).sum(-1) + log_weight
    log_prob = logsumexp(density, -1) - np.log(1 - action**2).sum(-1)
    loss, info = cfpi.actor_loss(agent.actor, agent, batch, jax.random.key(0), cfpi.Args())
    close(loss, -log_prob.mean())
    close(info["components_used"], np.exp(-(np.exp(log_weight) * log_weight).sum(-1)).mean())
    edge = batch._replace(action=np.ones_like(batch.action))
    assert np.isfinite(cfpi.actor_loss(agent.actor, agent, edge, jax.random.key(0), cfpi.Args())[0])


def mlp_of(params, x):
    """Layers Dense_0, Dense_1, Dense_2."""
    for i in range(2):
        x = relu(dense(params, i, x))
    return dense(params, 2, x)


def test_cfpi_a_deterministic_policy_clones_by_squared_errors(cfpi, deterministic, batch):
    agent, args = deterministic
    mean = mixture_of(agent.actor, batch.obs, 1)[0][:, 0]
    loss, _ = cfpi.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)
    close(loss, ((np.tanh(mean) - batch.action) ** 2).mean())


def test_cfpi_a_vae_clones_by_squared_errors_and_its_latents_stay_near_the_prior(cfpi, vae, batch):
    agent, args = vae
    params, key = agent.actor["params"], jax.random.key(3)
    mean, log_std = np.split(mlp_of(params["encoder"], np.concatenate([batch.obs, batch.action], -1)), 2, -1)
    log_std = np.clip(log_std, -4, 15)
    z = mean + np.exp(log_std) * np.array(jax.random.normal(key, mean.shape))
    decoded = np.tanh(mlp_of(params["decoder"], np.concatenate([batch.obs, z], -1)))
    kl = 0.5 * (np.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).mean()
    loss, _ = cfpi.actor_loss(agent.actor, agent, batch, key, replace(args, kl_weight=0.3))
    close(loss, ((decoded - batch.action) ** 2).mean() + 0.3 * kl)


def test_cfpi_the_weights_gradient_stops_at_the_hidden_layers(cfpi, agent, batch):
    grads = jax.grad(lambda actor: agent.nets.actor.apply(actor, batch.obs)[2][:, 0].sum())(agent.actor)["params"]
    assert np.abs(grads["Dense_4"]["kernel"]).max() > 0
    assert np.abs(grads["Dense_1"]["kernel"]).max() == 0


def test_cfpi_fractions_are_the_middles_of_parts_of_the_unit_interval(cfpi):
    fraction, length = (np.array(x) for x in cfpi.fractions(jax.random.key(0), (B, N)))
    raw = np.array(jax.random.uniform(jax.random.key(0), (B, N))) + 0.1
    close(length, raw / raw.sum(-1, keepdims=True))
    ends = np.cumsum(length, -1)
    close(fraction, (ends + np.c_[np.zeros(B), ends[:, :-1]]) / 2)


def quantile_loss(cfpi, agent, batch, key, next_action, least=False):
    _, fraction_key, next_key = jax.random.split(key, 3)
    fraction, _ = (np.float64(x) for x in cfpi.fractions(fraction_key, (B, N)))
    next_fraction, length = (np.float64(x) for x in cfpi.fractions(next_key, (B, N)))
    next_z = quantiles(agent.target_critic, batch.next_obs, next_action, next_fraction)
    next_z = np.stack([next_z.min(0)] * 2) if least else next_z
    y = np.array(batch.reward)[:, None] + 0.99 * (1 - np.array(batch.terminal))[:, None] * next_z
    z, total = quantiles(agent.critic, batch.obs, batch.action, fraction), 0.0
    for e, b, n, m in np.ndindex(2, B, N, N):
        x = z[e, b, n] - y[e, b, m]
        huber = 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5
        total += length[b, m] * abs(fraction[b, n] - (x > 0)) * huber / (B * N)
    return total


def test_cfpi_quantile_critics_learn_the_datas_next_action(cfpi, critic_loss, agent, args, batch):
    key = jax.random.key(5)
    expected = quantile_loss(cfpi, agent, batch, key, batch.next_action)
    close(critic_loss(agent.critic, agent, batch, key, args)[0], expected)
    assert (np.array(batch.terminal) == 1).any() and (np.array(batch.terminal) == 0).any()


def test_cfpi_multi_step_targets_take_the_improved_action_after_the_first_updates(
    cfpi, critic_loss, agent, args, batch
):
    key, multi = jax.random.key(5), replace(args, multi_step=True, sarsa_updates=3, operator="mode")

    def after(updates):
        adam, *rest = agent.critic_opt
        return agent.replace(critic_opt=(adam._replace(count=jnp.int32(updates)), *rest))

    action_key = jax.random.split(key, 3)[0]
    improve_key, noise_key = jax.random.split(action_key)
    noise = np.clip(0.1 * np.array(jax.random.normal(noise_key, (B, 2))), -0.5, 0.5)
    improved = np.array(jax.jit(cfpi.improve)(agent, batch.next_obs, improve_key, multi))
    improved = np.clip(improved + noise, -1, 1)
    for updates, action in ((2, batch.next_action), (3, improved)):
        expected = quantile_loss(cfpi, agent, batch, key, action, least=True)
        close(critic_loss(agent.critic, after(updates), batch, key, multi)[0], expected)


@pytest.mark.long
def test_cfpi_a_rounds_next_actions_are_those_of_its_beginning(cfpi, plain, batch):
    """In the first the data's, of the first updates without noise; later they are improved by the round's critics."""
    key, form = jax.random.key(5), {"critic": "mse", "multi_step": True, "sarsa_updates": 2, "policy_round_updates": 4}
    args = cfpi.Args(**SIZES, **form, operator="mode")
    other = agent_of(cfpi, args, seed=7).critic
    agent = plain.replace(round_critic=other)

    def after(updates):
        adam, *rest = agent.critic_opt
        return agent.replace(critic_opt=(adam._replace(count=jnp.int32(updates)), *rest))

    improve_key, noise_key = jax.random.split(key)
    noise = np.clip(0.1 * np.array(jax.random.normal(noise_key, (B, 2))), -0.5, 0.5)
    by_others = np.array(cfpi.improve(agent.replace(critic=other), batch.next_obs, improve_key, args))
    assert np.abs(by_others - np.array(cfpi.improve(agent, batch.next_obs, improve_key, args))).max() > 1e-3
    next_actions = jax.jit(cfpi.next_actions)
    for updates, action in ((1, None), (2, batch.next_action), (3, batch.next_action), (4, by_others), (9, by_others)):
        expected = batch.next_action if action is None else np.clip(action + noise, -1, 1)
        close(next_actions(after(updates), batch, key, args), expected)
    same = lambda x, y: all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))  # noqa: E731
    update = jax.jit(cfpi.update)
    for updates, begins in ((2, False), (3, True)):
        new, _ = update(after(updates), batch, key, args)
        assert same(new.round_critic, new.critic if begins else other)


def test_cfpi_plain_critics_learn_squared_errors_each_of_its_own_target(cfpi, critic_loss, plain, batch):
    args = cfpi.Args(**SIZES, critic="mse")
    next_q = heads(plain.target_critic, batch.next_obs, batch.next_action)
    y = batch.reward + 0.99 * (1 - batch.terminal) * next_q
    q = heads(plain.critic, batch.obs, batch.action)
    loss, _ = critic_loss(plain.critic, plain, batch, jax.random.key(0), args)
    close(loss, ((q - y) ** 2).mean(1).sum())


def test_cfpi_iql_critics_and_value(cfpi, plain, batch):
    args = cfpi.Args(**SIZES, critic="iql", expectile=0.8, operator="none")
    q = heads(plain.critic, batch.obs, batch.action)
    new, metrics = jax.jit(cfpi.update)(plain, batch, jax.random.key(0), replace(args, tau=0.2))
    y = batch.reward + 0.99 * (1 - batch.terminal) * mlp(new.value, batch.next_obs)[:, 0]
    close(metrics["critic_loss"], ((q - y) ** 2).mean(1).sum())
    u = heads(plain.target_critic, batch.obs, batch.action).min(0) - mlp(plain.value, batch.obs)[:, 0]
    close(metrics["value_loss"], (np.where(u < 0, 0.2, 0.8) * u**2).mean())
    expected = jax.tree.map(lambda n, o: 0.2 * n + 0.8 * o, new.critic, plain.target_critic)
    jax.tree.map(close, new.target_critic, expected)
    jax.tree.map(np.testing.assert_array_equal, new.actor, plain.actor)
    assert np.abs(new.value["params"]["Dense_0"]["kernel"] - plain.value["params"]["Dense_0"]["kernel"]).max() > 0


@pytest.mark.long
def test_cfpi_finds_the_better_of_two_modes_and_goes_beyond_it(cfpi):
    """Actions around (-0.5, 0) and (0.5, 0), of which the right ones are worth more, and the upper ones a little."""
    r = np.random.default_rng(0)
    side = np.where(r.random(256) < 0.6, -1.0, 1.0)
    u = np.stack([0.5 * side + 0.1 * r.normal(size=256), 0.2 * r.normal(size=256)], -1)
    action = np.tanh(u).astype(np.float32)
    reward = (2 * action[:, 0] + action[:, 1]).astype(np.float32)
    ones = np.ones(256, np.float32)
    obs = ones[:, None]
    batch = Batch(obs=obs, action=action, reward=reward, terminal=ones, next_obs=obs, next_action=action)
    rates = {"actor_lr": 1e-2, "critic_lr": 1e-2}
    args = cfpi.Args(hidden_dims=(16,), batch_size=256, n_components=2, critic="mse", operator="none", **rates)
    start = cfpi.init(jax.random.key(0), args, Spec((1,), 2, False, (-1.0, -1.0), (1.0, 1.0)))

    @jax.jit
    def fit(agent):
        agent = jax.lax.scan(
            lambda a, _: cfpi.update_actor(a, batch, jax.random.key(0), args), agent, None, length=400
        )[0]
        keys = jax.random.split(jax.random.key(1), 300)
        return jax.lax.scan(lambda a, key: cfpi.update(a, batch, key, args), agent, keys)[0]

    fitted = fit(start)
    arms = {operator: replace(args, operator=operator) for operator in ("both", "mode", "none")}
    act = jax.jit(lambda agent: {n: cfpi.act(agent, obs[:1], jax.random.key(2), x)[0] for n, x in arms.items()})
    at = act(fitted)
    np.testing.assert_allclose(at["none"], np.tanh([-0.5, 0.0]), atol=0.08)  # the heavier one
    np.testing.assert_allclose(at["mode"], np.tanh([0.5, 0.0]), atol=0.08)
    assert at["both"][0] > at["mode"][0] + 0.01 and at["both"][1] > at["mode"][1] + 0.1
    within = np.arctanh(np.float64(at["both"])) - np.arctanh(np.float64(at["mode"]))
    assert np.sqrt(((within / [0.1, 0.2]) ** 2).sum()) < 2.5


def test_cfpi_refuses_to_improve_targets_that_have_no_action(cfpi, pendulum, tmp_path):
    args = cfpi.Args(dataset=pendulum, env="none", out=str(tmp_path), critic="iql", multi_step=True)
    with pytest.raises(InputError, match="--multi-step"):
        cfpi.main(args)


def test_cfpi_refuses_to_draw_from_what_is_no_mixture(cfpi, pendulum, tmp_path):
    with pytest.raises(InputError, match="--operator mode"):
        cfpi.main(cfpi.Args(dataset=pendulum, env="none", out=str(tmp_path), behavior="vae", operator="sample"))


@pytest.mark.parametrize("name", ["delta", "lse_factor"])
def test_cfpi_refuses_radii_of_less_than_nothing(cfpi, pendulum, tmp_path, name):
    """lse's radius would be NaN; jensen would have no proposal that is allowed."""
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} must be at least 0, not -0.5"):
        cfpi.main(small("cfpi", pendulum, tmp_path / "run", env="none", **{name: -0.5}))


def test_cfpi_refuses_quantile_critics_without_a_layer(cfpi, pendulum, tmp_path):
    with pytest.raises(InputError, match="^--hidden-dims: quantile critics need a hidden layer"):
        cfpi.main(small("cfpi", pendulum, tmp_path / "run", env="none", hidden_dims=()))


def test_cfpi_settings_are_those_released(cfpi):
    """cfpi/variants of cfpi-icml23/cfpi: base, bc, sarsa_iqn, mg (base, MG8, IQL on AntMaze, multi-step), sg."""
    args = cfpi.Args()
    assert (args.operator, args.delta, args.delta_range, args.n_deltas, args.beta_lb) == ("both", 0.5, 0.0, 1, 1.0)
    assert (args.n_components, args.min_component_weight, args.n_candidates, args.n_fractions) == (4, 0.05, 10, 8)
    assert (args.actor_lr, args.critic_lr, args.tau, args.discount, args.batch_size) == (1e-4, 3e-4, 0.005, 0.99, 256)
    assert (args.bc_updates, args.updates, args.hidden_dims) == (500_000, 500_000, (256, 256, 256))
    assert (args.policy_noise, args.noise_clip, args.sarsa_updates) == (0.1, 0.5, 20_000)
    one = cfpi.Args(**cfpi.PRESETS["single-gaussian"])
    assert (one.n_components, one.delta, one.delta + one.delta_range, one.n_deltas) == (1, 0.2, 2.0, 10)
    maze = cfpi.Args(**cfpi.PRESETS["antmaze"])
    assert (maze.n_components, maze.critic, maze.delta, maze.min_component_weight) == (12, "iql", 0.0, 0.03)
    assert (maze.normalize_obs, maze.reward_shift, maze.critic_hidden_dims) == (False, -1.0, (256, 256))
    steps = cfpi.Args(**cfpi.PRESETS["multi-step-antmaze"])
    assert (steps.multi_step, steps.operator, steps.delta, steps.updates) == (True, "lse", 0.5, 5 * 200_000)
    assert (steps.policy_round_updates, steps.n_components) == (200_000, 12)
    every = cfpi.Args(**cfpi.PRESETS["iterative-antmaze"])
    assert (every.multi_step, every.policy_round_updates, every.n_components, every.updates) == (
        True,
        0,
        8,
        50 * 20_000,
    )
    assert cfpi.Args().vae_hidden_dims == (750, 750)


def test_cfpi_trains_critics_as_long_as_the_authors_found_best(cfpi):
    """Q_IQN.validation_optimal_epochs in cfpi/checkpoint_config.py of cfpi-icml23/cfpi, of a thousand updates each."""
    epochs = {"halfcheetah": (200, 1500, 400), "hopper": (400, 300, 400), "walker2d": (700, 1100, 400)}
    for body, of in epochs.items():
        for kind, n in zip(("medium", "medium-replay", "medium-expert"), of, strict=True):
            name = f"{body}-{kind}"
            assert cfpi.PRESETS[name] == {"updates": 1000 * n}
            ids = name, f"local/{name}-v1", f"{name.replace('-', '_')}-v2.hdf5"
            assert {preset_for(x, cfpi.PRESETS) for x in ids} == {name}
    assert preset_for("hopper-random", cfpi.PRESETS) is None and cfpi.Args().updates == 500_000  # AntMaze's
