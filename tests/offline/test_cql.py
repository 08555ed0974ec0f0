"""The losses of cql against the same equations in plain numpy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from released import ADROIT, ANTMAZE, MAZE2D, MUJOCO, every, settings, wrong_settings
from scipy.special import logsumexp
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError
from shared.task import Spec

SMALL = {"n_actions": 2}


def cql_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


BOTH = pytest.mark.parametrize("name", ["cql", "cql_finetune"])


@BOTH
@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_critic(name, batch, lagrange):
    cql = compiled(name)
    n = 3
    args = cql.Args(
        hidden_dims=(8, 8), batch_size=B, n_actions=n, cql_alpha=2.0, cql_temperature=0.7, lagrange=lagrange,
        target_gap=0.5,
    )  # fmt: skip
    agent, key = agent_of(cql, args), jax.random.key(2)
    agent = agent.replace(log_alpha_prime=jnp.float32(0.4))
    target_key, gap_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(target_key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    q = heads(agent.critic, batch.obs, batch.action)
    bellman = ((q - y) ** 2).mean(1).sum()

    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (n, B, 2), minval=-1.0, maxval=1.0))
    now, now_lp = tanh_normal(*cql_policy(agent.actor, batch.obs), np.asarray(jax.random.normal(now_key, (n, B, 2))))
    nxt, nxt_lp = tanh_normal(
        *cql_policy(agent.actor, batch.next_obs), np.asarray(jax.random.normal(next_key, (n, B, 2)))
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


@BOTH
def test_cql_penalty_does_not_reach_the_policy(name, batch):
    cql = compiled(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=3)
    agent = agent_of(cql, args)
    grads = jax.grad(
        lambda p: cql.critic_loss(agent.critic, agent.replace(actor=p), batch, jax.random.key(0), args)[0]
    )(agent.actor)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


@BOTH
def test_cql_multiplier_ascends_the_penalty(name):
    cql = compiled(name)
    args = cql.Args(target_gap=1.0)
    assert (
        jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 2.0, args)
        < 0
        < jax.grad(cql.alpha_prime_loss)(jnp.float32(0.3), 0.5, args)
    )


@BOTH
def test_cql_max_target_backup_takes_the_best_of_the_least(name, batch):
    cql = compiled(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=4, max_q_backup=True)
    agent, key = agent_of(cql, args), jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (4, B, 2)))
    mean, log_std = cql_policy(agent.actor, batch.next_obs)
    q = [heads(agent.target_critic, batch.next_obs, tanh_normal(mean, log_std, e)[0]).min(0) for e in noise]
    close(cql.bootstrapped_q(agent, batch, key, args), np.max(q, axis=0))


def test_cql_policy_and_its_cloning_phase(batch):
    cql = compiled("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, bc_steps=10)
    agent, key = agent_of(cql, args), jax.random.key(4)
    agent = agent.replace(log_alpha=jnp.float32(-0.3))
    mean, log_std = cql_policy(agent.actor, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (1, B, 2)))[0])
    u = np.arctanh(np.clip(batch.action, -1 + 1e-3, 1 - 1e-3))
    data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    close(cql.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - data).mean())
    q = heads(agent.critic, batch.obs, action).min(0)
    later = agent.replace(step=jnp.int32(10))
    close(cql.actor_loss(agent.actor, later, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())


def test_cql_discrete_is_double_dqn_plus_the_gap(batch):
    cql = compiled("cql")
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


def test_cql_settings_are_those_released():
    """configs/offline/cql of corl-team/CORL at eeeeef2; PointMaze, Minari's maze2d, as maze2d."""
    common = {
        "importance_sampling": True, "n_actions": 10, "cql_temperature": 1.0, "clip_diff_max": 1e9, "bc_steps": 0,
        "backup_entropy": False, "tune_temperature": True, "batch_size": 256, "discount": 0.99, "critic_lr": 3e-4,
        "tau": 0.005, "hidden_dims": (256,) * 3,
    }  # fmt: skip
    dense = {**common, "normalize_obs": True, "reward_scale": 1.0, "reward_shift": 0.0, "max_q_backup": False}
    dense |= {"clip_diff_min": -1e9, "critic_hidden_dims": ()}
    mujoco = {**dense, "cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": False, "eval_episodes": 10}
    maze = {**dense, "cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": True, "target_gap": 5.0}
    maze |= {"normalize_return": False}
    hand = {**mujoco, "cql_alpha": 1.0, "actor_lr": 1e-4, "normalize_return": False}
    expected = {
        **{d: {**mujoco, "normalize_return": d == "hopper-medium-v2"} for d in MUJOCO},
        **every(MAZE2D, **maze, eval_episodes=100),
        **every(["pointmaze-umaze", "D4RL/pointmaze/large-v2"], **maze),
        **every(ADROIT, **hand),
        **every(
            ANTMAZE, **common, cql_alpha=5.0, actor_lr=1e-4, lagrange=True, target_gap=0.8, max_q_backup=True,
            clip_diff_min=-200.0, critic_hidden_dims=(256,) * 5, normalize_obs=False, reward_scale=10.0,
            reward_shift=-5.0, eval_episodes=100, normalize_return=False,
        ),
    }  # fmt: skip
    assert not wrong_settings(load("cql"), expected)


@pytest.mark.parametrize("name", ["cql", "e2o"])
def test_cql_begins_with_small_outputs(name):
    """Of last layers, as in CORL: Xavier's uniform of gain 0.01 (policy), orthogonal of gain 0.01 (critics)."""
    module = compiled(name)
    agent = module.init(jax.random.key(0), module.Args(hidden_dims=(64, 64)), SPEC)
    layers = agent.actor["params"]
    last, first = np.asarray(layers["Dense_2"]["kernel"]), np.asarray(layers["Dense_0"]["kernel"])
    bound = 0.01 * np.sqrt(6 / (64 + 4))
    assert 0.9 * bound < np.abs(last).max() <= bound
    assert 0.9 / np.sqrt(3) < np.abs(first).max() <= 1 / np.sqrt(3)
    critics = agent.critic["params"]
    np.testing.assert_allclose(np.linalg.norm(critics["Dense_2"]["kernel"], axis=(1, 2)), 0.01, rtol=1e-4)
    hidden = np.asarray(critics["Dense_1"]["kernel"][0])
    np.testing.assert_allclose(hidden.T @ hidden, 2 * np.eye(64), atol=1e-4)


def test_cql_in_antmaze_only_the_critics_have_five_layers():
    cql = compiled("cql")
    args = dataclasses.replace(settings(cql, "antmaze-umaze-v2"), hidden_dims=(8,) * 3, critic_hidden_dims=(8,) * 5)
    agent = cql.init(jax.random.key(0), args, SPEC)
    depth = [sum(k.startswith("Dense") for k in net["params"]) for net in (agent.actor, agent.critic)]
    assert depth == [4, 6]


@BOTH
def test_cql_without_importance_sampling_the_datas_action_is_one_of_them(name, batch):
    cql, n = compiled(name), 3
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=n, importance_sampling=False)
    agent, key = agent_of(cql, args), jax.random.key(2)
    q = heads(agent.critic, batch.obs, batch.action)
    uniform_key, now_key, next_key = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (n, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (n, B, 2))) for k in (now_key, next_key)]
    now = tanh_normal(*cql_policy(agent.actor, batch.obs), noise[0])[0]
    following = tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise[1])[0]
    of_actions = [heads(agent.critic, batch.obs, a[k]) for a in (uniform, following, now) for k in range(n)]
    expected = (logsumexp(np.stack([*of_actions, q]), axis=0) - q).mean(1)
    close(cql.conservative_gap(agent.critic, agent, batch, q, key, args), expected)


@BOTH
def test_cql_gaps_are_clipped_on_both_sides(name, batch):
    cql = compiled(name)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=2)
    agent, key = agent_of(cql, args), jax.random.key(2)
    alone = batch._replace(obs=batch.obs[:1], action=batch.action[:1], next_obs=batch.next_obs[:1])
    q = heads(agent.critic, alone.obs, alone.action)
    free = np.asarray(cql.conservative_gap(agent.critic, agent, alone, q, key, args))
    low, high = free.min(), free.max()
    middle = float(low + high) / 2

    def clipped(**bounds):
        return cql.conservative_gap(agent.critic, agent, alone, q, key, dataclasses.replace(args, **bounds))

    close(np.sort(clipped(clip_diff_min=middle)), [middle, high])
    close(np.sort(clipped(clip_diff_max=middle)), [low, middle])


@pytest.mark.long
@BOTH
def test_cql_temperature_stays_where_it_is_not_tuned(name, batch):
    cql = compiled(name)
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "n_actions": 2}
    fixed = cql.Args(**sizes, init_temperature=0.3, tune_temperature=False)
    agent = cql.init(jax.random.key(0), fixed, SPEC)
    after, metrics = cql.update(agent, batch, jax.random.key(1), fixed)
    close([metrics["alpha"], np.exp(after.log_alpha)], 0.3)
    tuned, _ = cql.update(agent, batch, jax.random.key(1), dataclasses.replace(fixed, tune_temperature=True))
    assert abs(float(tuned.log_alpha) - np.log(0.3)) > 1e-5


# ------------------------------------------------------------------------- regularisers of the critics


def layer(params, name, x):
    return x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])


def through_bottleneck(critics, *inputs):
    """Q, KL from N(0, I) and features [2, B, ...] of the bottleneck's mean."""
    found = []
    for i in range(2):
        p = jax.tree.map(lambda x, i=i: x[i], critics)["params"]
        x = np.maximum(layer(p, "Dense_0", np.concatenate(inputs, -1)), 0)
        mean, log_std = np.split(layer(p, "bottleneck", x), 2, -1)
        kl = (0.5 * (mean**2 + np.exp(2 * log_std)) - 0.5 - log_std).sum(-1)
        features = np.maximum(layer(p, "Dense_1", mean), 0)
        found.append((layer(p, "Dense_2", features)[..., 0], kl, features))
    return [np.stack(x) for x in zip(*found, strict=True)]


def both(*arrays):
    return [jnp.stack([x, x]) for x in arrays]


@pytest.mark.long
def test_the_bottleneck_costs_its_divergence_and_is_noise_in_the_critics_loss_alone(batch):
    cql = compiled("cql")
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=2, bottleneck_dim=3, bottleneck_weight=0.2)
    agent, key = agent_of(cql, args), jax.random.key(2)
    q, kl, features = through_bottleneck(agent.critic, batch.obs, batch.action)
    found, noted = cql.critics_on(agent.nets.critic, agent.critic, *both(batch.obs, batch.action))
    close(found, q)
    close(noted["kl"], kl)
    close(noted["features"], features)

    def loss(**changes):
        return cql.critic_loss(agent.critic, agent, batch, key, dataclasses.replace(args, **changes), training=False)[0]

    close(loss() - loss(bottleneck_weight=0.0), 0.2 * kl.mean(1).sum())
    net, keys = agent.nets.critic, jax.random.split(jax.random.key(0), 400)
    q_values = partial(cql.q_values, net, agent.critic, batch.obs, batch.action)
    noisy = np.asarray(jax.jit(jax.vmap(q_values))(keys))
    assert np.std(noisy, axis=0).min() > 0.01 and abs(np.corrcoef(noisy[:, :, 0].T)[0, 1]) < 0.2
    narrow = jax.tree.map(lambda x: x, agent.critic)
    bias = narrow["params"]["bottleneck"]["bias"]
    narrow["params"]["bottleneck"]["bias"] = bias.at[:, 3:].add(-30.0)
    close(*(cql.q_values(net, narrow, batch.obs, batch.action, k) for k in (jax.random.key(0), None)))
    trained, still = (cql.critic_loss(agent.critic, agent, batch, key, args, training)[1] for training in (True, False))
    assert abs(trained["bellman_loss"] - still["bellman_loss"]) > 1e-3 and abs(trained["gap"] - still["gap"]) > 1e-3
    close(trained["bottleneck_kl"], kl.mean())
    mean, log_std = cql_policy(agent.actor, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (1, B, 2)))[0])
    least = through_bottleneck(agent.critic, batch.obs, action)[0].min(0)
    close(cql.actor_loss(agent.actor, agent, batch, key, args)[0], (log_prob - least).mean())
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    following = tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise)[0]
    target = through_bottleneck(agent.target_critic, batch.next_obs, following)[0].min(0)
    close(cql.bootstrapped_q(agent, batch, key, args), target)


def test_dropout_takes_units_of_the_critics_in_training(batch):
    cql = compiled("cql")
    args = cql.Args(hidden_dims=(64,), batch_size=B, critic_dropout=0.25)
    agent = agent_of(cql, args)
    rows = both(batch.obs, batch.action)
    whole = np.asarray(cql.critics_on(agent.nets.critic, agent.critic, *rows)[1]["features"])
    some = np.asarray(cql.critics_on(agent.nets.critic, agent.critic, *rows, key=jax.random.key(0))[1]["features"])
    live = whole > 0
    kept = some[live] > 0
    assert 0.65 < kept.mean() < 0.85
    np.testing.assert_allclose(some[live][kept], whole[live][kept] / 0.75, rtol=1e-5)
    assert (some[0] > 0).tolist() != (some[1] > 0).tolist()


@pytest.mark.parametrize("discrete", [False, True])
def test_further_penalties_of_the_critics(batch, discrete):
    cql, key = compiled("cql"), jax.random.key(5)
    args = cql.Args(hidden_dims=(8, 8), batch_size=B, critic_penalty_weight=0.3)
    agent = agent_of(cql, args, *([Spec((3,), 4, True)] if discrete else []))
    now, following = [batch.obs], [batch.next_obs]
    if not discrete:
        noise = np.asarray(jax.random.normal(key, (B, 2)))
        now.append(batch.action)
        following.append(tanh_normal(*cql_policy(agent.actor, batch.next_obs), noise)[0])
    _, noted = cql.critics_on(agent.nets.critic, agent.critic, *both(*now))

    def found(*penalties, critic=agent.critic):
        changed = dataclasses.replace(args, critic_penalty=penalties)
        return cql.regularised(critic, agent, batch, noted, key, changed)[0]

    weights, dot = jax.tree.leaves(agent.critic), 0.0
    close(found("l1"), 0.3 * sum(np.abs(w[i]).mean() for w in weights for i in range(2)))
    close(found("l2"), 0.3 * 0.5 * sum((np.float64(w) ** 2).sum() for w in weights))
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], agent.critic)
        one["params"].pop("Dense_2")
        f, f_next = (np.maximum(mlp(one, *x), 0) for x in (now, following))
        dot += (f * f_next).sum(-1).mean()
    close(found("dr3"), 0.3 * dot)
    close(found("l2", "dr3"), found("l2") + found("dr3"))
    assert found() == 0.0
    moved = jax.grad(lambda critic: found("dr3", critic=critic))(agent.critic)  # what was noted is given: f' alone
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(moved))


@pytest.mark.long
def test_episodes_held_out_are_judged_and_not_trained_on(pendulum):
    cql = compiled("cql")
    data = load_dataset(pendulum, env="none")
    kept, parts = cql.parted(data, 0.3)
    assert len(kept.ends()) == 7 and parts["holdout"].obs.shape == (90, 3) and parts["train"].obs.shape == (210, 3)
    rows = {name: {tuple(x) for x in np.asarray(part.obs).tolist()} for name, part in parts.items()}
    assert not rows["train"] & rows["holdout"] and rows["train"] == {tuple(x) for x in kept.obs.tolist()}
    assert cql.parted(data, 0.0) == (data, {})
    for share in (0.01, 0.99):
        with pytest.raises(InputError, match=f"--holdout-episodes {share:g}: of 10 episodes"):
            cql.parted(data, share)
    args = cql.Args(hidden_dims=(8, 8), n_actions=2, bottleneck_dim=3)
    agent = agent_of(cql, args, data.spec)
    found = jax.jit(cql.judge)(agent, parts, args)
    assert set(found) == {f"{part}_{what}" for part in parts for what in ("q", "bellman_loss", "gap")}
    for name, part in parts.items():
        close(found[f"{name}_q"], through_bottleneck(agent.critic, part.obs, part.action)[0].mean())


@pytest.mark.parametrize(
    "changes",
    [{"lagrange": True}, {"max_q_backup": True}, {"bc_steps": 5}, {"tune_temperature": False}, {"clip_diff_min": -1.0},
     {"importance_sampling": False}, {"init_temperature": (0.1, 1.0)}],
)  # fmt: skip
def test_cql_refuses_arguments_that_discrete_actions_do_not_know(cartpole, changes):
    cql, (flag,) = load("cql"), changes
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} is of continuous actions"):
        cql.main(cql.Args(dataset=cartpole, **changes))


def test_cql_refuses_clips_that_undo_the_penalty():
    cql = load("cql")
    for low, high in ((1.0, 1.0), (1.0, -1.0)):
        with pytest.raises(InputError, match="--clip-diff-min .* must be lower than --clip-diff-max"):
            cql.main(cql.Args(dataset="/nowhere.npz", clip_diff_min=low, clip_diff_max=high))
