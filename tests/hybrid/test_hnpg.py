"""HNPG: both critics' targets, advantages and the natural gradient step against plain numpy."""

import dataclasses
import json

import jax
import locks
import make
import numpy as np
import pytest
from conftest import LOCK, SOFT_LOCK, load
from environments.combination_lock import LOGIT_LIMIT, Lock
from jax.flatten_util import ravel_pytree
from reference import close, compiled, mlp
from scipy.stats import norm

from shared.errors import InputError
from shared.evaluation import load_run
from shared.task import Spec
from shared.transitions import Batch

SMALL = {
    "value_samples": 2, "actor_hidden_dims": (8, 8), "horizon": 10, "critic_updates": 2, "steps_per_iteration": 8,
}  # fmt: skip

hnpg, jitted = load("hnpg"), compiled("hnpg")
H, D, A, E = 3, 8, 10, 4
SPEC = Spec((D + 1,), A, False, (-LOGIT_LIMIT,) * A, (LOGIT_LIMIT,) * A)
LOCK_OF_3 = Lock(H, continuous=True)

init, update = jax.jit(hnpg.init, static_argnums=2), jax.jit(hnpg.update)
targets = jax.jit(hnpg.targets, static_argnums=(0, 4))
trust_region_step = jax.jit(hnpg.trust_region_step, static_argnums=1)
critic_gradient = jax.jit(jax.grad(hnpg.critic_loss, has_aux=True), static_argnums=1)
"""Compiled once for all tests; operation by operation they take a minute."""


def args_of(**changes):
    values = {"horizon": H, "steps_per_iteration": H * E, "actor_hidden_dims": (5, 5), "hidden_dims": (6, 6)}
    return hnpg.Args(**(values | {"critic_updates": 2, "value_samples": 3} | changes))


def agent_of(args, seed=0):
    """In general position: log standard deviations and the biases of last layers are not zero."""
    agent = jax.device_get(init(jax.random.key(seed), args, SPEC))
    r = np.random.default_rng(seed)
    shake = lambda x: x + np.float32(0.2 * r.normal(size=x.shape))  # noqa: E731
    return agent.replace(actor=jax.tree.map(shake, agent.actor), critic=jax.tree.map(shake, agent.critic))


def tanh_mlp(params, *inputs):
    layers = {"params": {k: v for k, v in params["params"].items() if k != "log_std"}}
    return mlp(layers, *inputs, activation=np.tanh)


def one(tree, h):
    return jax.tree.map(lambda x: x[h], tree)


def data(n=E, seed=0, shape=()):
    r = np.random.default_rng(seed)
    x = lambda *s: np.float32(r.normal(size=(*shape, n, *s)))  # noqa: E731
    return Batch(obs=x(D), action=x(A), reward=x(), next_obs=x(D), return_to_go=x())


def test_networks_begin_near_the_uniform_policy():
    args = args_of(actor_hidden_dims=(16, 16))
    agent = jax.device_get(init(jax.random.key(0), args, SPEC))
    p = one(agent.actor, 0)["params"]
    assert p["Dense_0"]["kernel"].shape == (D, 16) and np.abs(p["Dense_0"]["kernel"]).max() <= D**-0.5
    assert np.abs(p["Dense_0"]["bias"]).max() <= D**-0.5 and np.abs(p["Dense_0"]["bias"]).max() > 0
    assert np.abs(p["Dense_2"]["kernel"]).max() <= 0.1 / 4 and not p["Dense_2"]["bias"].any()
    assert not p["log_std"].any()
    assert np.abs(agent.actor["params"]["Dense_0"]["kernel"][0] - agent.actor["params"]["Dense_0"]["kernel"][1]).max()


@pytest.mark.long
def test_critic_loss_is_on_returns_online_and_on_bootstrapped_targets_offline():
    args = args_of()
    agent, on, off = agent_of(args), data(seed=1), data(seed=2)
    y, critic = np.float32(np.random.default_rng(3).normal(size=E)), one(agent.critic, 0)
    loss_on = ((tanh_mlp(critic, on.obs, on.action)[:, 0] - on.return_to_go) ** 2).mean()
    loss_off = ((tanh_mlp(critic, off.obs, off.action)[:, 0] - y) ** 2).mean()
    for mode, expected in (("hybrid", loss_on + loss_off), ("online", loss_on), ("offline", loss_off)):
        changed = dataclasses.replace(args, mode=mode)
        close(jitted.critic_loss(critic, agent.nets.critic, on, off, y, changed)[0], expected)


def test_offline_targets_evaluate_the_current_policy():
    """An action of the policy, no maximum and not the dataset's; the reward alone at the last step."""
    args = args_of()
    agent, off, key = agent_of(args), data(seed=2), jax.random.key(4)
    actor, critic = one(agent.actor, 1), one(agent.critic, 1)
    noise = np.asarray(jax.random.normal(key, (E, A)))
    action = tanh_mlp(actor, off.next_obs) + np.exp(np.float64(actor["params"]["log_std"])) * noise
    y = off.reward + tanh_mlp(critic, off.next_obs, action)[:, 0]
    close(targets(agent.nets, actor, critic, off, False, key), y)
    close(targets(agent.nets, actor, critic, off, True, key), off.reward)


@pytest.mark.long
def test_critics_are_fitted_from_the_last_step_back_with_a_fresh_adam():
    """One Adam step moves every weight by its learning rate, in the second iteration as in the first."""
    args = args_of(critic_updates=1, critic_lr=0.01)
    agent = agent_of(args)
    on = data(seed=5, shape=(H,))._replace(next_obs=None, return_to_go=None)
    off, key = data(seed=6, shape=(H,))._replace(return_to_go=None), jax.random.key(7)
    for _ in range(2):
        new = jax.device_get(update(agent, on, off, key, args)[0])
        target_key = jax.random.split(key, 4)[0]
        returns = np.stack([np.asarray(on.reward)[h:].sum(0) for h in range(H)])
        for h, k in zip(range(H), jax.random.split(target_key, H)):
            last, later = h == H - 1, min(h + 1, H - 1)
            y = targets(agent.nets, one(agent.actor, later), one(new.critic, later), one(off, h), last, k)
            batch = one(on, h)._replace(return_to_go=returns[h])
            inputs = (agent.nets.critic, batch, one(off, h), y, args)
            grads = jax.device_get(critic_gradient(one(agent.critic, h), *inputs)[0])
            for a, b, g in zip(*map(jax.tree.leaves, (one(agent.critic, h), one(new.critic, h), grads))):
                sure = np.abs(g) > 1e-3
                np.testing.assert_allclose((b - a)[sure], -0.01 * np.sign(g)[sure], atol=1e-4)
        agent = new


def test_value_returns_and_advantages():
    args = args_of(gae_lambda=0.9)
    agent, obs, key = agent_of(args), data().obs, jax.random.key(0)
    actor, critic = one(agent.actor, 0), one(agent.critic, 0)
    noise = [np.asarray(jax.random.normal(k, (E, A))) for k in jax.random.split(key, 3)]
    std = np.exp(np.float64(actor["params"]["log_std"]))
    expected = np.mean([tanh_mlp(critic, obs, tanh_mlp(actor, obs) + std * n)[:, 0] for n in noise], 0)
    close(jitted.value(agent.nets, actor, critic, obs, key, args), expected)

    r = np.random.default_rng(1)
    reward, v = r.normal(size=(2, H, E))
    close(hnpg.returns_to_go(np.float32(reward)), [reward[h:].sum(0) for h in range(H)])
    delta = reward + np.r_[v[1:], np.zeros((1, E))] - v
    expected = [sum(0.9 ** (i - h) * delta[i] for i in range(h, H)) for h in range(H)]
    close(jitted.gae(np.float32(reward), np.float32(v), args), np.stack(expected))


def test_surrogate_and_divergence():
    args = args_of()
    agent, x = agent_of(args), data()
    actor, old = one(agent.actor, 0), one(agent.actor, 1)
    log_prob = {}
    for name, p in (("new", actor), ("old", old)):
        log_prob[name] = norm.logpdf(x.action, tanh_mlp(p, x.obs), np.exp(np.float64(p["params"]["log_std"]))).sum(-1)
    net, adv = agent.nets.actor, x.reward
    output = jax.jit(net.apply)(old, x.obs)
    close(jitted.gaussian_log_prob(*output, x.action), log_prob["old"])
    expected = -(adv * np.exp(log_prob["new"] - log_prob["old"])).mean()
    close(jitted.actor_loss(actor, net, x.obs, x.action, adv, np.float32(log_prob["old"])), expected)
    m0, m1 = tanh_mlp(old, x.obs), tanh_mlp(actor, x.obs)
    s0, s1 = (np.exp(np.float64(p["params"]["log_std"])) for p in (old, actor))
    kl = (np.log(s1 / s0) + (s0**2 + (m0 - m1) ** 2) / (2 * s1**2) - 0.5).sum(-1).mean()
    close(jitted.kl_divergence(actor, net, output, x.obs), kl)


@pytest.mark.long
def test_the_step_is_the_damped_natural_gradient_of_the_given_divergence():
    """Against a dense solve, where conjugate gradients have the steps to converge."""
    args = args_of(actor_hidden_dims=(3,), cg_steps=200, max_kl=1e-4, damping=0.3)
    agent, x = agent_of(args), data(n=40)
    actor, net = one(agent.actor, 0), agent.nets.actor
    new, info = trust_region_step(actor, net, x.obs, x.action, x.reward, args)
    flat, back = ravel_pytree(actor)
    old = jax.jit(net.apply)(actor, x.obs)
    old_log_prob = jitted.gaussian_log_prob(*old, x.action)
    kl = lambda w: hnpg.kl_divergence(back(w), net, old, x.obs)  # noqa: E731
    loss = lambda w: hnpg.actor_loss(back(w), net, x.obs, x.action, x.reward, old_log_prob)  # noqa: E731
    g = jax.jit(jax.grad(loss))(flat)
    fisher = np.float64(jax.jit(jax.hessian(kl))(flat)) + 0.3 * np.eye(len(flat))
    direction = np.linalg.solve(fisher, -np.float64(g))
    step = direction * np.sqrt(1e-4 / (0.5 * direction @ fisher @ direction))
    taken = np.float64(ravel_pytree(new)[0] - flat)
    assert info["accepted"] == 1 and info["improvement"] > 0
    length = np.linalg.norm(taken) / np.linalg.norm(step)
    assert abs(np.log2(length) - round(np.log2(length))) < 0.02 and length < 1.01
    np.testing.assert_allclose(taken / length, step, atol=0.02 * np.abs(step).max())


@pytest.mark.parametrize("trouble", ("no gain is enough", "not a number", "no gradient"))
def test_a_failed_line_search_leaves_the_policy_as_it_was(trouble):
    args = args_of(accept_ratio=1e9 if trouble == "no gain is enough" else 0.1)
    agent, x = agent_of(args), data(n=20)
    adv = {"not a number": x.reward * np.float32(np.nan), "no gradient": x.reward * 0.0}.get(trouble, x.reward)
    actor = one(agent.actor, 0)
    new, info = trust_region_step(actor, agent.nets.actor, x.obs, x.action, adv, args)
    assert info["accepted"] == 0 and info["improvement"] == 0
    jax.tree.map(np.testing.assert_array_equal, new, actor)


def test_the_line_search_halves_the_step_until_it_helps():
    args = args_of(max_kl=20.0)  # far too long a first step
    agent, x = agent_of(args), data(n=20)
    actor, net = one(agent.actor, 0), agent.nets.actor
    new, info = trust_region_step(actor, net, x.obs, x.action, x.reward, args)
    old_log_prob = jitted.gaussian_log_prob(*jax.jit(net.apply)(actor, x.obs), x.action)
    before = jitted.actor_loss(actor, net, x.obs, x.action, x.reward, old_log_prob)
    after = jitted.actor_loss(new, net, x.obs, x.action, x.reward, old_log_prob)
    assert info["accepted"] == 1
    close(info["improvement"], before - after)


@pytest.mark.long
@pytest.mark.parametrize("mode", ("hybrid", "online", "offline"))
def test_the_modes_learn_from_what_they_say(mode, monkeypatch):
    """Instead of the trust region's step one that feels all that it is given, and compiles in no time."""

    def step(actor, net, obs, action, adv, args):
        return jax.tree.map(lambda x: x + obs.sum() + action.sum() + adv.sum(), actor), {}

    monkeypatch.setattr(hnpg, "trust_region_step", step)
    update = jax.jit(lambda *x: hnpg.update(*x))
    args = args_of(mode=mode)
    agent, key = agent_of(args), jax.random.key(8)
    on = data(seed=5, shape=(H,))._replace(next_obs=None, return_to_go=None)
    off = data(seed=6, shape=(H,))._replace(return_to_go=None)

    def same(on_now, off_now):
        now = update(agent, on_now, off_now, key, args)[0]
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(as_they_are), jax.tree.leaves(now)))

    as_they_are = update(agent, on, off, key, args)[0]

    assert same(on, off._replace(obs=off.obs + 1.0, reward=off.reward + 1.0)) == (mode == "online")
    assert same(on._replace(obs=on.obs + 1.0, reward=on.reward + 1.0), off) == (mode == "offline")


@pytest.mark.long
def test_offline_states_have_their_actions_drawn_anew():
    """With standing critics, the dataset's actions and rewards do not matter to the policy; its states do."""
    args = args_of(critic_lr=0.0)
    agent, key = agent_of(args), jax.random.key(8)
    on = data(seed=5, shape=(H,))._replace(next_obs=None, return_to_go=None)
    off = data(seed=6, shape=(H,))._replace(return_to_go=None)
    step = lambda x: jax.tree.leaves(update(agent, on, x, key, args)[0].actor)  # noqa: E731
    base = step(off)
    for a, b in zip(base, step(off._replace(action=off.action + 1.0, reward=off.reward - 3.0))):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(base, step(off._replace(obs=off.obs + 1.0))))


@pytest.mark.long
def test_advantages_are_of_the_critics_that_were_just_fitted(monkeypatch):
    args = args_of(mode="online", critic_lr=0.3)
    agent, key = agent_of(args), jax.random.key(8)
    on = data(seed=5, shape=(H,))._replace(next_obs=None, return_to_go=None)
    off = data(seed=6, shape=(H,))._replace(return_to_go=None)
    step = lambda actor, net, obs, action, adv, args: (actor, {"advantage": adv.sum()})  # noqa: E731
    monkeypatch.setattr(hnpg, "trust_region_step", step)
    new, info = jax.device_get(jax.jit(lambda *x: hnpg.update(*x))(agent, on, off, key, args))
    value = jax.jit(lambda actor, critic, obs, key: hnpg.value(agent.nets, actor, critic, obs, key, args))
    keys = jax.random.split(jax.random.split(key, 4)[1], H)

    def advantage(critics):
        parts = [jax.tree.map(lambda x, h=h: x[h], (agent.actor, critics, on.obs)) for h in range(H)]
        v = np.stack([value(*parts[h], keys[h]) for h in range(H)])
        return float(np.sum(hnpg.gae(on.reward, v, args)) / H)

    np.testing.assert_allclose(info["advantage"], advantage(new.critic), rtol=1e-3)
    assert abs(advantage(new.critic) - advantage(agent.critic)) > 0.01 * abs(advantage(new.critic))


def test_offline_rows_are_of_their_step():
    args = args_of(steps_per_iteration=H * 500)
    lock_rows = LOCK_OF_3.offline_data(jax.random.key(0), 30, "trajectory")
    batch = jitted.sample(jax.random.key(1), lock_rows, args)
    assert batch.obs.shape == (H, 500, D)
    for h in range(H):
        own = {tuple(row) for row in np.asarray(lock_rows.obs[h])}
        drawn = {tuple(row) for row in np.asarray(batch.obs[h])}
        assert drawn == own  # 500 draws of 30


def test_collected_episodes_and_their_policy():
    """Each step acts with its own policy: the step's mean is put where the correct actions are."""
    args = args_of(steps_per_iteration=H * 2_000)
    agent, table = agent_of(args), LOCK_OF_3.correct()
    params = jax.tree.map(np.zeros_like, agent.actor)["params"]
    best = 8.0 * np.eye(A, dtype=np.float32)[table[:, 0]]
    last = params["Dense_2"] | {"bias": best}
    agent = agent.replace(actor={"params": params | {"Dense_2": last, "log_std": params["log_std"] - 3.0}})
    rows, info = jax.device_get(jitted.collect(agent, jax.random.key(0), args, LOCK_OF_3))
    assert rows.obs.shape == (H, 2_000, D)
    np.testing.assert_allclose(rows.action.mean(1), best, atol=0.01)
    share = np.cumprod(np.r_[1.0, np.where(table[:, 0] == table[:, 1], 1.0, 0.5)])[:H]
    np.testing.assert_allclose(info["good_state_at_end"], share[-1], atol=0.04)
    assert not rows.reward[:-1].any()


def test_the_policy_takes_each_observations_own_step():
    args = args_of(sample_actions=False)
    agent, obs = agent_of(args), np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    h = np.arange(9) % H
    expected = np.stack([tanh_mlp(one(agent.actor, i), o[None])[0] for i, o in zip(h, obs)])
    x = np.float32(np.c_[obs, h])
    close(jitted.act(agent, x, jax.random.key(0), args), expected / LOGIT_LIMIT)
    std = np.exp(np.stack([agent.actor["params"]["log_std"][i] for i in h]))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (9, A)))
    sampled = jitted.act(agent, x, jax.random.key(0), dataclasses.replace(args, sample_actions=True))
    close(sampled, (expected + std * noise) / LOGIT_LIMIT)


def test_steps_are_environment_steps_of_whole_episodes():
    args = hnpg.Args(horizon=30, env_steps=10_000, eval_every=1_020)
    assert hnpg.episodes(args) == 34 and hnpg.iteration_steps(args) == 1_020
    whole = hnpg.whole_iterations(args)
    assert (whole.env_steps, whole.eval_every) == (10_200, 1_020)


@pytest.mark.long
def test_a_run_learns_from_its_dataset_in_logits(tmp_path, monkeypatch):
    """Rows reach the updates as the lock drew them; the horizon is the lock's, and is recorded."""
    make.make(SOFT_LOCK, steps=80)
    out, seen, taken = tmp_path / "run", [], hnpg.Run.replicate
    monkeypatch.setattr(hnpg.Run, "replicate", lambda run, rows: seen.append(rows) or taken(run, rows))
    monkeypatch.setattr(hnpg, "update", lambda agent, *_: (agent, {}))  # the first agent will do
    hnpg.main(args_of(dataset=SOFT_LOCK, horizon=0, env_steps=1, out=str(out), eval_episodes=1))
    lock = Lock(10, continuous=True)
    drawn = lock.offline_data(locks.data_key(lock, 0), 8, "trajectory")
    for name in ("obs", "action", "reward", "next_obs"):
        np.testing.assert_array_equal(getattr(seen[0], name), getattr(drawn, name))
    assert json.loads((out / "run.json").read_text())["args"]["horizon"] == 10
    assert jax.tree.leaves(load_run(out).agent.critic)[0].shape[:2] == (1, 10)


@pytest.mark.long
def test_data_of_something_else_are_refused(pendulum):
    make.make(LOCK, steps=20)
    with pytest.raises(InputError, match="continuous"):
        hnpg.main(args_of(dataset=LOCK, horizon=0))
    with pytest.raises(InputError, match="no lock"):
        hnpg.main(args_of(dataset=pendulum, horizon=0))
    make.make(SOFT_LOCK, steps=20)
    with pytest.raises(InputError, match="10 steps"):
        hnpg.main(args_of(dataset=SOFT_LOCK, horizon=7))


@pytest.mark.parametrize("max_kl", [0.0, -0.01, (0.01, 0.0)])
def test_a_policy_that_may_not_move_is_refused(max_kl):
    with pytest.raises(InputError, match="^--max-kl must be above 0, not "):
        hnpg.main(args_of(dataset=SOFT_LOCK, horizon=0, max_kl=max_kl))
