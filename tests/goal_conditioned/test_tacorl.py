"""The losses of tacorl against the equations in plain numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import GOAL_SPEC
from jobs import small
from reference import B, agent_of, close, compiled, heads, mlp, tanh_normal
from scipy.special import logsumexp
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

SMALL = {"plan_updates": 2, "window": 4, "n_actions": 2}
Z, T = 4, 4


def setting(**changes):
    tacorl = compiled("tacorl")
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "latent_dim": Z, "window": T, "n_actions": 2}
    args, r = tacorl.Args(**{**sizes, "discount": 0.5, **changes}), np.random.default_rng(0)
    batch = tacorl.WindowBatch(
        obs=r.normal(size=(B, T, 3)).astype(np.float32),
        action=r.uniform(-0.9, 0.9, (B, T - 1, 2)).astype(np.float32),
        achieved=r.normal(size=(B, 2)).astype(np.float32),
        goal=r.normal(size=(B, 2)).astype(np.float32),
        reached=np.float32([0, 1, 0, 0, 1]),
    )
    agent = agent_of(tacorl, args, GOAL_SPEC).replace(log_alpha=np.float32(-0.7), log_alpha_prime=np.float32(0.4))
    return tacorl, args, agent, batch, np.float32(np.tanh(r.normal(size=(B, Z))))


def gaussian(params, *inputs):
    out = mlp({"params": params["params"]["MLP_0"]}, *inputs)
    return out[..., :Z], np.log(np.log1p(np.exp(out[..., Z:])) + 1e-4)


def normals(key, *shape):
    return np.asarray(jax.random.normal(key, shape))


def decoded(agent, batch, plan):
    """-log pi(a|s, z), mean over windows and steps."""
    total = 0.0
    for t in range(T - 1):
        mean = mlp(agent.decoder, batch.obs[:, t], plan)
        total -= norm.logpdf(batch.action[:, t], mean).sum(-1).mean() / (T - 1)
    return total


@pytest.mark.long
def test_a_plan_is_what_a_window_has_in_common():
    tacorl, args, agent, batch, _ = setting(kl_weight=0.3)
    key = jax.random.key(3)
    plan_key, chance_key = jax.random.split(key)
    mean, log_std = gaussian(agent.encoder, batch.obs.reshape(B, -1))
    prior_mean, prior_log_std = gaussian(agent.actor, batch.obs[:, 0], batch.achieved)
    s, p = np.exp(log_std), np.exp(prior_log_std)
    kl = (np.log(p / s) + (s**2 + (mean - prior_mean) ** 2) / (2 * p**2) - 0.5).sum(-1).mean()
    plan = np.tanh(mean + s * normals(plan_key, B, Z))
    params = agent.encoder, agent.actor, agent.decoder
    loss, info = tacorl.plan_loss(params, agent, batch, key, args)
    close([info["kl"], info["decoder_loss"]], [kl, decoded(agent, batch, plan)])
    close(loss, decoded(agent, batch, plan) + 0.3 * kl)
    slopes = {}
    for balance in (0.0, 0.8, 1.0):  # of the KL alone: what moves the encoder, what the prior
        changed = [args.__class__(**{**vars(args), "kl_balance": balance, "kl_weight": w}) for w in (0.0, 0.3)]
        without, with_kl = (
            jax.grad(lambda p, a=a: tacorl.plan_loss(p, agent, batch, key, a)[0])(params)[:2] for a in changed
        )
        slopes[balance] = jax.tree.map(lambda a, b: np.asarray(a - b), with_kl, without)
    for part, share in ((0, 0.2), (1, 0.8)):
        whole = slopes[0.0 if part == 0 else 1.0][part]
        assert max(np.abs(x).max() for x in jax.tree.leaves(whole)) > 1e-3
        jax.tree.map(
            lambda a, b, share=share: np.testing.assert_allclose(a, share * b, atol=1e-6), slopes[0.8][part], whole
        )
        none = slopes[1.0 if part == 0 else 0.0][part]
        assert max(np.abs(x).max() for x in jax.tree.leaves(none)) < 1e-6
    any_plan = np.asarray(jax.random.uniform(chance_key, (B, Z), minval=-1.0))
    close(info["any_plan_loss"], decoded(agent, batch, any_plan))


def soft_maximum(agent, batch, plan, gap_key):
    """[E] by hand."""
    keys = jax.random.split(gap_key, 3)
    first, last = batch.obs[:, 0], batch.obs[:, -1]
    now = tanh_normal(*gaussian(agent.actor, first, batch.goal), normals(keys[1], 2, B, Z))
    following = tanh_normal(*gaussian(agent.actor, last, batch.goal), normals(keys[2], 2, B, Z))
    uniform = np.asarray(jax.random.uniform(keys[0], (2, B, Z), minval=-1.0))
    every = []
    for plans, log_density in ((uniform, np.full((2, B), Z * np.log(0.5))), following, now):
        for n in range(2):
            every.append(heads(agent.critic, first, batch.goal, plans[n]) - log_density[n])
    return (logsumexp(every, axis=0) - heads(agent.critic, first, batch.goal, plan)).mean(1)


@pytest.mark.long
@pytest.mark.parametrize("lagrange", [True, False])
def test_critics_value_plans_of_whole_windows(lagrange):
    tacorl, args, agent, batch, plan = setting(lagrange=lagrange, cql_alpha=0.5, target_gap=1.5, reward_scale=3.0)
    key = jax.random.key(1)
    next_key, gap_key = jax.random.split(key)
    last = batch.obs[:, -1]
    next_plan, _ = tanh_normal(*gaussian(agent.actor, last, batch.goal), normals(next_key, B, Z))
    next_q = heads(agent.target_critic, last, batch.goal, next_plan)
    assert (next_q[0] < next_q[1]).any() and (next_q[0] > next_q[1]).any()
    y = np.where(batch.reached > 0, 3.0, 0.5 * next_q.min(0))
    bellman = ((heads(agent.critic, batch.obs[:, 0], batch.goal, plan) - y) ** 2).mean(1).sum()
    gap = 0.5 * soft_maximum(agent, batch, plan, gap_key)
    penalty = np.exp(0.4) * (gap - 1.5).sum() if lagrange else gap.sum()
    loss, info = tacorl.critic_loss(agent.critic, agent, batch, plan, key, args)
    close([loss, info["gap"]], [bellman + penalty, gap.mean()])
    close(tacorl.alpha_prime_loss(0.4, 2.0, args), -np.exp(0.4) * 0.5)
    close(tacorl.alpha_prime_loss(30.0, 2.0, args), -0.5e6)
    huge = agent.replace(log_alpha_prime=np.float32(30.0))
    found = tacorl.critic_loss(agent.critic, huge, batch, plan, key, args)[0]
    np.testing.assert_allclose(found, bellman + 1e6 * (gap - 1.5).sum() if lagrange else loss, rtol=1e-3)


def test_the_actor_climbs_q_or_clones_the_windows_plans():
    tacorl, args, agent, batch, plan = setting(bc_steps=5)
    key, first = jax.random.key(2), batch.obs[:, 0]
    mean, log_std = gaussian(agent.actor, first, batch.goal)
    proposed, log_prob = tanh_normal(mean, log_std, normals(key, B, Z))
    u = np.arctanh(np.clip(plan, -1 + 1e-3, 1 - 1e-3))
    of_data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    q = heads(agent.critic, first, batch.goal, proposed)
    assert (q[0] < q[1]).any() and (q[0] > q[1]).any()
    for step, value in ((4, of_data), (5, q.min(0))):
        found = tacorl.actor_loss(agent.actor, agent.replace(step=np.int32(step)), batch, plan, key, args)[0]
        close(found, (np.exp(-0.7) * log_prob - value).mean())
    close(tacorl.alpha_loss(0.3, -3.0, 2), 0.3 * (-3.0 + 2))
    edge = np.full_like(plan, 1.0)
    near = tacorl.actor_loss(agent.actor, agent.replace(step=np.int32(4)), batch, edge, key, args)[0]
    u = np.full((B, Z), np.arctanh(1 - 1e-3))
    of_data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    np.testing.assert_allclose(near, (np.exp(-0.7) * log_prob - of_data).mean(), rtol=1e-3)


def moved(before, after) -> bool:
    return any(np.abs(x - y).max() > 0 for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@pytest.mark.long
def test_what_each_stage_learns():
    tacorl, args, agent, batch, _ = setting(tau=0.5, target_gap=0.0)
    new, _ = tacorl.update_plans(agent, batch, jax.random.key(0), args)
    learned = {f for f in ("encoder", "actor", "decoder", "critic") if moved(getattr(agent, f), getattr(new, f))}
    assert learned == {"encoder", "actor", "decoder"}
    key = jax.random.key(0)
    plan_key, actor_key, critic_key = jax.random.split(key, 3)
    new, metrics = tacorl.update(agent, batch, key, args)
    learned = {f for f in ("encoder", "actor", "decoder", "critic") if moved(getattr(agent, f), getattr(new, f))}
    assert learned == {"actor", "decoder", "critic"} and new.step == 1
    mean, log_std = gaussian(agent.encoder, batch.obs.reshape(B, -1))
    plan = np.float32(np.tanh(mean + np.exp(log_std) * normals(plan_key, B, Z)))
    close(metrics["decoder_loss"], decoded(agent, batch, plan))
    critic_loss, info = tacorl.critic_loss(agent.critic, agent, batch, plan, critic_key, args)
    actor_loss, _ = tacorl.actor_loss(agent.actor, agent, batch, plan, actor_key, args)
    np.testing.assert_allclose([metrics["critic_loss"], metrics["actor_loss"]], [critic_loss, actor_loss], rtol=1e-3)
    half = jax.tree.map(lambda a, b: (a + b) / 2, *jax.device_get((agent.target_critic, new.critic)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), new.target_critic, half)
    assert (new.log_alpha_prime > agent.log_alpha_prime) == (info["gap"] > 0)
    multiplier = jax.jit(lambda *x: tacorl.update(*x)[0].log_alpha_prime)
    assert multiplier(agent, batch, key, dataclasses.replace(args, lagrange=False)) == agent.log_alpha_prime


def test_goals_are_whole_windows_ahead(tmp_path):
    tacorl = compiled("tacorl")
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    states = np.asarray(data.take(np.arange(300)).obs)
    row_of = {tuple(x): i for i, x in enumerate(states)}
    starts = np.arange(300)[np.arange(300) % 30 <= 26]
    windows = tacorl.Windows(data, starts)
    for more in ({"random_goals": 0.0}, {"random_goals": 0.5}, {"goal_radius": 0.5}):
        args = tacorl.Args(batch_size=5000, window=4, goal_chance=0.4, **more)
        batch = tacorl.sample(jax.random.key(0), windows, args)
        rows, goal = (np.vectorize(lambda *x: row_of[x])(*np.moveaxis(np.asarray(y), -1, 0))
                      for y in (batch.obs, batch.goal))  # fmt: skip
        first, last = rows[:, 0], rows[:, -1]
        np.testing.assert_array_equal(rows, first[:, None] + np.arange(4))
        assert (first // 30 == last // 30).all() and set(first) == set(starts)
        np.testing.assert_array_equal(batch.action, np.asarray(data.take(rows[:, :-1]).action))
        np.testing.assert_array_equal(batch.achieved, states[last])
        ahead = (goal - first) / 3
        own = (goal > first) & (goal // 30 == first // 30) & ((ahead % 1 == 0) | (goal % 30 == 29))
        apart = np.linalg.norm(states[goal] - states[last], axis=-1)
        np.testing.assert_array_equal(batch.reached, apart <= args.goal_radius)
        if more == {"random_goals": 0.0}:
            assert own.all() and 0.38 < (ahead[first % 30 < 20] == 1).mean() < 0.42
            assert abs((ahead[first % 30 < 20] == 2).mean() - 0.24) < 0.02
            for chance, end in ((0.0, first // 30 * 30 + 29), (1.0, last)):
                args = dataclasses.replace(args, goal_chance=chance)
                np.testing.assert_array_equal(tacorl.sample(jax.random.key(0), windows, args).goal, states[end])
        if more == {"random_goals": 0.5}:
            assert 0.5 < own.mean() < 0.62
        if more == {"goal_radius": 0.5}:
            assert 0.42 < np.asarray(batch.reached).mean() < 0.6


def test_windows_need_two_states_and_an_episode_longer_than_they_are(tmp_path):
    for window, message in ((1, "--window 1: at least 2 states"), (30, "30 rows; --window 30 needs a longer one")):
        args = small("tacorl", write_goals(tmp_path / "goals.npz"), tmp_path / "run", window=window)
        with pytest.raises(InputError, match=message):
            load("tacorl").main(args)


def test_sizes_and_rates_are_those_released():
    """config/module/tacorl_d4rl.yaml, config/networks/actor_critic of ErickRosete/tacorl."""
    args = load("tacorl").Args()
    assert args.hidden_dims == (256, 256, 256) and args.latent_dim == 16 and args.window == 8 and args.n_actions == 4
    assert (args.discount, args.reward_scale, args.goal_chance) == (0.95, 10.0, 0.3)
    assert (args.actor_lr, args.critic_lr, args.decoder_lr, args.plan_lr) == (1e-4, 3e-4, 3e-4, 1e-4)
