"""Every loss against the same equation written out in plain numpy on a tiny batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from scipy.special import logsumexp
from scipy.stats import norm

from shared.data import Batch, Spec

SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0))
B = 5


@pytest.fixture
def batch():
    r = np.random.default_rng(0)
    return Batch(
        obs=r.normal(size=(B, 3)).astype(np.float32),
        action=r.uniform(-0.9, 0.9, (B, 2)).astype(np.float32),
        reward=r.normal(size=B).astype(np.float32),
        terminal=np.float32([0, 1, 0, 0, 1]),
        next_obs=r.normal(size=(B, 3)).astype(np.float32),
        next_action=r.uniform(-0.9, 0.9, (B, 2)).astype(np.float32),
    )


def agent_of(module, args, spec=SPEC, seed=0):
    """An agent whose targets differ from its online networks and whose biases are not zero."""
    agent = module.init(jax.random.key(seed), args, spec)
    other = module.init(jax.random.key(seed + 1), args, spec)

    def shake(tree, s):
        leaves, structure = jax.tree.flatten(tree)
        r = np.random.default_rng(s)
        return jax.tree.unflatten(structure, [x + 0.3 * r.normal(size=x.shape).astype(np.float32) for x in leaves])

    names = ("actor", "critic", "value", "policy", "target_actor", "target_critic", "flow")
    changed = {}
    for i, name in enumerate(names):
        if getattr(agent, name, None) is not None:
            changed[name] = shake(getattr(other if "target" in name else agent, name), i)
    return agent.replace(**changed)


def mlp(params, *inputs, layer_norm=False):
    """Plain numpy: relu between the Dense layers, LayerNorm after the relu if asked for."""
    layers = params["params"]
    x = np.concatenate(inputs, -1).astype(np.float64)
    n = sum(k.startswith("Dense") for k in layers)
    for i in range(n):
        x = x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])
        if i < n - 1:
            x = np.maximum(x, 0)
            if layer_norm:
                p = layers[f"LayerNorm_{i}"]
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * np.float64(p["scale"]) + np.float64(p["bias"])
    return x


def heads(critics, *inputs, **kwargs):
    """[E, ...] outputs of stacked critics."""
    return np.stack([mlp(jax.tree.map(lambda x, i=i: x[i], critics), *inputs, **kwargs)[..., 0] for i in range(2)])


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def log_std_of(params):
    return np.float64(params["params"]["log_std"])


# ------------------------------------------------------------------------------------------- bc


def test_bc_deterministic_is_a_mean_over_batch_and_dimensions(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(bc, args)
    expected = ((np.tanh(mlp(agent.actor, batch.obs)) - batch.action) ** 2).mean()
    close(bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_bc_gaussian_sums_the_log_density_over_dimensions(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B, policy="gaussian")
    agent = agent_of(bc, args)
    mean = np.tanh(mlp(agent.actor, batch.obs))
    expected = -norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1).mean()
    close(bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_bc_categorical_is_the_cross_entropy(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(bc, args, Spec((3,), 4, True))
    action = np.array([0, 3, 1, 1, 2])
    logits = mlp(agent.actor, batch.obs)
    expected = -(logits[np.arange(B), action] - logsumexp(logits, -1)).mean()
    close(bc.actor_loss(agent.actor, agent, batch._replace(action=jnp.array(action)), args)[0], expected)


# --------------------------------------------------------------------------------------- td3_bc


def smoothed_next_action(agent, batch, key, args):
    noise = np.clip(args.policy_noise * np.asarray(jax.random.normal(key, (B, 2))), -args.noise_clip, args.noise_clip)
    return np.clip(np.tanh(mlp(agent.target_actor, batch.next_obs)) + noise, -1, 1)


def test_td3_bc_critic(batch):
    td3_bc = load("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, policy_noise=0.6, noise_clip=0.4)
    agent, key = agent_of(td3_bc, args), jax.random.key(7)
    next_action = smoothed_next_action(agent, batch, key, args)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(td3_bc.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_td3_bc_actor_uses_the_first_critic_and_means_over_dimensions(batch):
    td3_bc = load("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, alpha=1.7)
    agent = agent_of(td3_bc, args)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -1.7 / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean()
    close(td3_bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_td3_bc_lambda_carries_no_gradient(batch):
    """With lambda differentiated, -lambda Q is the constant -alpha (Q > 0): only cloning would be left."""
    td3_bc = load("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B, alpha=50.0)
    agent = agent_of(td3_bc, args)
    bias = agent.critic["params"]["Dense_2"]["bias"] + 1000.0  # all Q positive
    critic = {"params": {**agent.critic["params"], "Dense_2": {**agent.critic["params"]["Dense_2"], "bias": bias}}}
    agent = agent.replace(critic=critic)
    grads = jax.grad(lambda a: td3_bc.actor_loss(a, agent, batch, args)[0])(agent.actor)
    cloning = jax.grad(lambda a: ((agent.nets.actor.apply(a, batch.obs) - batch.action) ** 2).mean())(agent.actor)
    difference = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), grads, cloning)
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_td3_bc_moves_actor_and_targets_once_per_delay(batch):
    td3_bc = load("td3_bc")
    args = td3_bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(td3_bc, args)
    batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
    new, _ = td3_bc.update(agent, batches, jax.random.split(jax.random.key(0)), args)
    assert int(new.critic_opt[0].count) == 2 and int(new.actor_opt[0].count) == 1
    expected = jax.tree.map(lambda old, online: 0.995 * old + 0.005 * online, agent.target_critic, new.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.target_critic, expected)


# --------------------------------------------------------------------------------------- rebrac


def test_rebrac_critic_penalises_the_next_action(batch):
    rebrac = load("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, critic_bc=0.3)
    agent, key = agent_of(rebrac, args), jax.random.key(3)
    next_action = smoothed_next_action(agent, batch, key, args)
    target_q = heads(agent.target_critic, batch.next_obs, next_action, layer_norm=True).min(0)
    target_q = target_q - 0.3 * ((next_action - batch.next_action) ** 2).sum(-1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action, layer_norm=True)
    close(rebrac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())


def test_rebrac_actor_sums_over_dimensions_and_takes_the_least_critic(batch):
    rebrac = load("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, actor_bc=0.4)
    agent = agent_of(rebrac, args)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi, layer_norm=True).min(0)
    expected = (0.4 * ((pi - batch.action) ** 2).sum(-1) - q / np.abs(q).mean()).mean()
    close(rebrac.actor_loss(agent.actor, agent, batch, args)[0], expected)


# ------------------------------------------------------------------------------------------ iql


def test_iql_value_is_an_upper_expectile_of_the_target_critics(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, expectile=0.9)
    agent = agent_of(iql, args, seed=7)
    u = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    assert (u > 0).any() and (u < 0).any()
    expected = (np.where(u < 0, 0.1, 0.9) * u**2).mean()
    close(iql.value_loss(agent.value, agent, batch, args)[0], expected)


def test_iql_actor_weights_come_from_the_target_critics_and_are_clipped(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, beta=4.0, max_weight=3.0)
    agent = agent_of(iql, args, seed=7)
    adv = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    weight = np.minimum(np.exp(4.0 * adv), 3.0)
    assert (weight == 3.0).any() and (weight < 3.0).any()
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(iql.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], -(weight * log_prob).mean())


def test_iql_critic_bootstraps_from_v_but_not_at_terminals(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, discount=0.9)
    agent = agent_of(iql, args, seed=7)
    y = batch.reward + 0.9 * (1 - batch.terminal) * mlp(agent.value, batch.next_obs)[:, 0]
    q = heads(agent.critic, batch.obs, batch.action)
    close(iql.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())


def test_iql_updates_v_before_the_actor_and_the_critic(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, value_lr=0.1)
    agent, key = agent_of(iql, args, seed=7), jax.random.key(0)
    new, metrics = iql.update(agent, batch, key, args)
    after = agent.replace(value=new.value)
    close(metrics["critic_loss"], iql.critic_loss(agent.critic, after, batch, args)[0])
    close(metrics["actor_loss"], iql.actor_loss(agent.actor, after, batch, key, args)[0])
    assert abs(float(metrics["critic_loss"] - iql.critic_loss(agent.critic, agent, batch, args)[0])) > 1e-3


def test_iql_actor_learning_rate_decays_to_zero(batch):
    iql = load("iql")
    args = iql.Args(hidden_dims=(8, 8), batch_size=B, updates=3)
    agent, key = agent_of(iql, args, seed=7), jax.random.key(0)
    for _ in range(3):
        agent, _ = iql.update(agent, batch, key, args)
    still, _ = iql.update(agent, batch, key, args)
    jax.tree.map(np.testing.assert_array_equal, still.actor, agent.actor)


# ----------------------------------------------------------------------------------------- awac


@pytest.mark.parametrize("mode", ["exp", "softmax"])
def test_awac_actor(batch, mode):
    awac = load("awac")
    args = awac.Args(hidden_dims=(8, 8), batch_size=B, temperature=0.5, max_weight=2.0, weight_mode=mode)
    agent, key = agent_of(awac, args), jax.random.key(5)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    mean, std = mlp(agent.actor, batch.obs), np.exp(log_std_of(agent.actor))
    v = heads(agent.critic, batch.obs, np.clip(mean + std * noise, -1, 1)).min(0)
    adv = heads(agent.critic, batch.obs, batch.action).min(0) - v
    weight = np.minimum(np.exp(adv / 0.5), 2.0)
    if mode == "softmax":
        weight = np.exp(adv / 0.5) / np.exp(adv / 0.5).sum() * B
    expected = -(weight * norm.logpdf(batch.action, mean, std).sum(-1)).mean()
    close(awac.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
    # the weight is not differentiated: the gradient is that of weighted cloning
    grads = jax.grad(lambda a: awac.actor_loss(a, agent, batch, key, args)[0])(agent.actor)

    def cloning(actor):
        m, s = agent.nets.actor.apply(actor, batch.obs)
        return -(weight * jax.scipy.stats.norm.logpdf(batch.action, m, jnp.exp(s)).sum(-1)).mean()

    jax.tree.map(close, grads, jax.grad(cloning)(agent.actor))


def test_awac_critic_has_no_entropy_term(batch):
    awac = load("awac")
    args = awac.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(awac, args), jax.random.key(5)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    next_action = np.clip(mlp(agent.actor, batch.next_obs) + np.exp(log_std_of(agent.actor)) * noise, -1, 1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    close(awac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())


# ------------------------------------------------------------------------------------------ cql


def cql_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


def tanh_normal(mean, log_std, noise):
    u = mean + np.exp(log_std) * noise
    log_prob = norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)
    return np.tanh(u), log_prob.sum(-1)


@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_critic(batch, lagrange):
    cql = load("cql")
    n = 3
    args = cql.Args(
        hidden_dims=(8, 8), batch_size=B, n_actions=n, cql_alpha=2.0, temperature=0.7, lagrange=lagrange, target_gap=0.5
    )
    agent, key = agent_of(cql, args), jax.random.key(2)
    agent = agent.replace(log_alpha_prime=jnp.float32(0.4))
    target_key, gap_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(target_key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*cql_policy(agent.policy, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    bellman = ((q - y) ** 2).mean(1).sum()

    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (n, B, 2), minval=-1.0, maxval=1.0))
    now, now_lp = tanh_normal(*cql_policy(agent.policy, batch.obs), np.asarray(jax.random.normal(now_key, (n, B, 2))))
    nxt, nxt_lp = tanh_normal(
        *cql_policy(agent.policy, batch.next_obs), np.asarray(jax.random.normal(next_key, (n, B, 2)))
    )
    gap = 0.0
    for i in range(2):
        per_state = []
        for b in range(B):
            values = []
            for actions, log_density in ((uniform, np.full((n, B), 2 * np.log(0.5))), (nxt, nxt_lp), (now, now_lp)):
                for k in range(n):
                    one = heads(agent.critic, batch.obs[b], actions[k, b])[i]
                    values.append(one - log_density[k, b])
            per_state.append(0.7 * logsumexp(np.array(values) / 0.7) - q[i, b])
        gap_i = np.mean(per_state)
        gap += np.exp(0.4) * (gap_i - 0.5) if lagrange else gap_i
    close(cql.critic_loss(agent.critic, agent, batch, key, args)[0], bellman + 2.0 * gap)


def test_cql_penalty_does_not_reach_the_policy(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=3)
    agent = agent_of(cql, args)
    grads = jax.grad(
        lambda p: cql.critic_loss(agent.critic, agent.replace(policy=p), batch, jax.random.key(0), args)[0]
    )(agent.policy)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


def test_cql_multiplier_ascends_the_penalty():
    cql = load("cql")
    args = cql.Args(target_gap=1.0)
    assert (
        jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 2.0, args)
        < 0
        < jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 0.5, args)
    )


def test_cql_max_target_backup_takes_the_best_of_the_least(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=4, max_target_backup=True)
    agent, key = agent_of(cql, args), jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (4, B, 2)))
    mean, log_std = cql_policy(agent.policy, batch.next_obs)
    q = [heads(agent.target_critic, batch.next_obs, tanh_normal(mean, log_std, e)[0]).min(0) for e in noise]
    close(cql.bootstrapped_q(agent, batch, key, args), np.max(q, axis=0))


def test_cql_policy_and_its_cloning_phase(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, bc_steps=10)
    agent, key = agent_of(cql, args), jax.random.key(4)
    agent = agent.replace(log_alpha=jnp.float32(-0.3))
    mean, log_std = cql_policy(agent.policy, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (1, B, 2)))[0])
    u = np.arctanh(np.clip(batch.action, -1 + 1e-3, 1 - 1e-3))
    data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    close(cql.policy_loss(agent.policy, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - data).mean())
    q = heads(agent.critic, batch.obs, action).min(0)
    later = agent.replace(step=jnp.int32(10))
    close(cql.policy_loss(agent.policy, later, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())


def test_cql_discrete_is_double_dqn_plus_the_gap(batch):
    cql = load("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, cql_alpha=0.6, discount=0.9)
    agent = agent_of(cql, args, Spec((3,), 4, True))
    action, rows = np.array([0, 3, 1, 1, 2]), np.arange(B)
    batch = batch._replace(action=jnp.array(action))

    def all_q(critics, obs):
        return np.stack([mlp(jax.tree.map(lambda x, i=i: x[i], critics), obs) for i in range(2)])

    greedy = all_q(agent.critic, batch.next_obs).min(0).argmax(-1)
    y = batch.reward + 0.9 * (1 - batch.terminal) * all_q(agent.target_critic, batch.next_obs).min(0)[rows, greedy]
    q = all_q(agent.critic, batch.obs)
    expected = ((q[:, rows, action] - y) ** 2).mean(1).sum()
    expected += 0.6 * (logsumexp(q, -1) - q[:, rows, action]).mean(1).sum()
    close(cql.discrete_critic_loss(agent.critic, agent, batch, args)[0], expected)


# ------------------------------------------------------------------------------------------ fql


def gelu_mlp(params, *inputs, layer_norm=False):
    layers = params["params"]
    x = np.concatenate(inputs, -1).astype(np.float64)
    n = sum(k.startswith("Dense") for k in layers)
    for i in range(n):
        x = x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])
        if i < n - 1:
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            if layer_norm:
                p = layers[f"LayerNorm_{i}"]
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * np.float64(p["scale"]) + np.float64(p["bias"])
    return x


def gelu_heads(critics, obs, action):
    one = [jax.tree.map(lambda x, i=i: x[i], critics) for i in range(2)]
    return np.stack([gelu_mlp(c, obs, action, layer_norm=True)[:, 0] for c in one])


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_fql_critic(batch, aggregation):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, q_aggregation=aggregation)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    next_action = np.clip(gelu_mlp(agent.actor, batch.next_obs, noise), -1, 1)
    target_q = getattr(gelu_heads(agent.target_critic, batch.next_obs, next_action), aggregation)(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    expected = ((gelu_heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean()
    close(fql.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_fql_flow_matching(batch):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise_key, time_key = jax.random.split(key)
    z, t = np.asarray(jax.random.normal(noise_key, (B, 2))), np.asarray(jax.random.uniform(time_key, (B, 1)))
    velocity = gelu_mlp(agent.flow, batch.obs, (1 - t) * z + t * batch.action, t)
    close(fql.flow_loss(agent.flow, agent, batch, key, args), ((velocity - (batch.action - z)) ** 2).mean())


@pytest.mark.parametrize("normalize_q", [True, False])
def test_fql_actor_is_distilled_from_the_clipped_flow(batch, normalize_q):
    fql = load("fql")
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, alpha=3.0, flow_steps=4, normalize_q=normalize_q)
    agent, key = agent_of(fql, args), jax.random.key(6)
    z = np.asarray(jax.random.normal(key, (B, 2)))
    x = z.astype(np.float64)
    for i in range(4):
        x = x + gelu_mlp(agent.flow, batch.obs, x, np.full((B, 1), i / 4)) / 4
    action = gelu_mlp(agent.actor, batch.obs, z)
    q = gelu_heads(agent.critic, batch.obs, np.clip(action, -1, 1)).mean(0)
    lam = 1 / np.abs(q).mean() if normalize_q else 1.0
    expected = 3.0 * ((action - np.clip(x, -1, 1)) ** 2).mean() - lam * q.mean()
    close(fql.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


# ------------------------------------------------------------------------------------------ sac


def sac_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def test_sac_losses(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(sac, args), jax.random.key(9)
    agent = agent.replace(log_alpha=jnp.float32(-0.5))
    alpha, noise = np.exp(-0.5), np.asarray(jax.random.normal(key, (B, 2)))
    next_action, next_lp = tanh_normal(*sac_policy(agent.actor, batch.next_obs), noise)
    target_v = heads(agent.target_critic, batch.next_obs, next_action).min(0) - alpha * next_lp
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    q = heads(agent.critic, batch.obs, batch.action)
    close(sac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())

    action, lp = tanh_normal(*sac_policy(agent.actor, batch.obs), noise)
    expected = (alpha * lp - heads(agent.critic, batch.obs, action).min(0)).mean()
    close(sac.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_sac_temperature_grows_while_the_entropy_is_too_low():
    sac = load("sac")
    slope = jax.grad(sac.alpha_loss)
    assert slope(jnp.float32(0.0), -5.0, 3) < 0 < slope(jnp.float32(0.0), -1.0, 3)


def test_sac_exported_policy_is_the_actor(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8))
    agent = agent_of(sac, args)
    p = sac.export_policy(agent)
    x = batch.obs
    for i in range(2):
        x = np.maximum(x @ p[f"W{i}"].T + p[f"b{i}"], 0)
    mean, log_std = sac_policy(agent.actor, batch.obs)
    close(x @ p["W2"].T + p["b2"], mean)
    close(np.clip(x @ p["logstd_W"].T + p["logstd_b"], -20, 2), log_std)
