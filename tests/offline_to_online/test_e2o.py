"""The losses of e2o against the same equations in plain numpy, its weights, its targets and its exploration."""

import csv
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from scipy.special import expit, logsumexp

from shared.errors import InputError
from shared.replay import init_replay

SMALL = {"n_actions": 2, "n_critics": 3, "learning_starts": 4}

E = 3
SIZES = {"hidden_dims": (8, 8), "batch_size": B, "n_critics": E, "n_actions": 3}


def distribution(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


def policy_sample(params, obs, key, n):
    return tanh_normal(*distribution(params, obs), np.asarray(jax.random.normal(key, (n, len(obs), 2))))


def general(e2o, args):
    return agent_of(e2o, args).replace(log_alpha=jnp.float32(-0.3))


def pairs(q):
    """The textbook's form of the pairs' mean minimum."""
    return np.mean([np.minimum(q[i], q[j]) for i, j in itertools.combinations(range(len(q)), 2)], axis=0)


REDUCED = {"pair_min": pairs, "min": lambda q: q.min(0), "mean": lambda q: q.mean(0)}


@pytest.mark.parametrize("entropy", [False, True])
def test_e2o_offline_critics_are_cqls(batch, entropy):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES, cql_alpha=2.0, backup_entropy=entropy)
    agent, key = general(e2o, args), jax.random.key(2)
    target_key, gap_key = jax.random.split(key)
    (action,), (log_prob,) = policy_sample(agent.actor, batch.next_obs, target_key, 1)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - entropy * np.exp(-0.3) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    q = heads(agent.critic, batch.obs, batch.action)

    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (3, B, 2), minval=-1.0, maxval=1.0))
    now, now_lp = policy_sample(agent.actor, batch.obs, now_key, 3)
    following, following_lp = policy_sample(agent.actor, batch.next_obs, next_key, 3)
    actions = np.concatenate([uniform, now, following])
    density = np.concatenate([np.full((3, B), 2 * np.log(0.5)), now_lp, following_lp])
    values = np.stack([heads(agent.critic, batch.obs, a) for a in actions], 1) - density  # [E, 9, B]
    gap = (logsumexp(values, axis=1) - q).mean(1).sum()
    close(e2o.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum() + 2.0 * gap)


@pytest.mark.parametrize("name", ["critic_loss", "online_critic_loss"])
def test_e2o_critic_losses_do_not_reach_the_policy(batch, name):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES)
    agent, loss = general(e2o, args), getattr(e2o, name)
    grad = jax.grad(lambda p: loss(agent.critic, agent.replace(actor=p), batch, jax.random.key(0), args)[0])
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grad(agent.actor)))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_e2o_pairs_are_less_pessimistic_than_all(n):
    e2o = compiled("e2o")
    q = np.random.default_rng(n).normal(size=(n, B))
    close(e2o.pair_min(jnp.float32(q)), pairs(q))
    assert (pairs(q) < q.mean(0)).all()
    assert np.allclose(pairs(q), q.min(0)) if n == 2 else (pairs(q) > q.min(0)).all()


def online_loss_of(agent, batch, key, reduce, weigh):
    target_key, weight_key = jax.random.split(key)
    (action,), (log_prob,) = policy_sample(agent.actor, batch.next_obs, target_key, 1)
    target_q = heads(agent.target_critic, batch.next_obs, action)
    y = batch.reward + 0.99 * (1 - batch.terminal) * (reduce(target_q) - np.exp(-0.3) * log_prob)
    error = heads(agent.critic, batch.obs, batch.action) - y
    return (weigh(target_q, weight_key) * error**2).mean(1).sum()


@pytest.mark.parametrize("target", ["pair_min", "min", "mean"])
def test_e2o_online_critics_have_no_penalty_and_the_target_asked_for(batch, target):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES, online_q_aggregation=target, reweight="none")
    agent, key = general(e2o, args), jax.random.key(3)
    loss, info = e2o.online_critic_loss(agent.critic, agent, batch, key, args)
    close(loss, online_loss_of(agent, batch, key, REDUCED[target], lambda q, _: 1.0))
    assert info["weight"] == 1.0 and "gap" not in info


def test_e2o_weights_fall_with_the_disagreement_of_the_target_critics(batch):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES, reweight_temperature=1.5)
    agent, key = general(e2o, args), jax.random.key(3)
    loss, _ = e2o.online_critic_loss(agent.critic, agent, batch, key, args)
    close(loss, online_loss_of(agent, batch, key, pairs, lambda q, _: expit(-1.5 * q.std(0)) + 0.5))
    q = jnp.float32([[0.0, 1.0, 5.0, -9.0, 2.0], [0.0, 1.1, 6.0, 9.0, 2.0], [0.0, 1.2, 7.0, 0.0, 2.0]])
    weight = np.asarray(e2o.bellman_weight(agent, batch, q, key, args))
    assert weight[0] == weight[4] == 1.0 and 1.0 > weight[1] > weight[2] > weight[3] > 0.5


def test_e2o_weight_of_the_whole_batch_is_of_the_critics_means(batch):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES, reweight_temperature=1.5, reweight="batch")
    agent, key = general(e2o, args), jax.random.key(3)

    def weigh(_, key):
        actions, _ = policy_sample(agent.actor, batch.next_obs, key, E)
        means = [[heads(agent.target_critic, batch.next_obs, a)[i].mean() for i in range(E)] for a in actions]
        return expit(-1.5 * np.std(means, axis=1).mean()) + 0.5

    loss, _ = e2o.online_critic_loss(agent.critic, agent, batch, key, args)
    close(loss, online_loss_of(agent, batch, key, pairs, weigh))


def test_e2o_policy_ascends_the_least_of_all_critics(batch):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES)
    agent, key = general(e2o, args), jax.random.key(4)
    (action,), (log_prob,) = policy_sample(agent.actor, batch.obs, key, 1)
    expected = (np.exp(-0.3) * log_prob - heads(agent.critic, batch.obs, action).min(0)).mean()
    close(e2o.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
    assert e2o.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows


@pytest.mark.long
def test_e2o_online_update_is_that_of_the_online_losses(batch):
    e2o = compiled("e2o")
    agent, key = general(e2o, e2o.Args(**SIZES)), jax.random.key(4)
    online, info = jax.jit(e2o.update_online)(agent, batch, key, e2o.Args(**SIZES), jnp.int32(3))
    other, _ = jax.jit(e2o.update_online)(agent, batch, key, e2o.Args(**SIZES, cql_alpha=0.0))
    jax.tree.map(np.testing.assert_array_equal, online, other)
    loss, _ = e2o.online_critic_loss(agent.critic, agent, batch, jax.random.split(key)[0], e2o.Args(**SIZES))
    close(info["critic_loss"], loss)
    offline, info = jax.jit(e2o.update)(agent, batch, key, e2o.Args(**SIZES))
    loss, _ = e2o.critic_loss(agent.critic, agent, batch, jax.random.split(key)[0], e2o.Args(**SIZES))
    close(info["critic_loss"], loss)
    jax.tree.map(np.testing.assert_array_equal, online.actor, offline.actor)


def test_e2o_explores_with_the_highest_upper_confidence_bound(batch):
    e2o = compiled("e2o")
    args = e2o.Args(**SIZES, ucb=2.0)
    agent, key = general(e2o, args), jax.random.key(6)
    actions, _ = policy_sample(agent.actor, batch.obs, key, E)
    q = np.stack([heads(agent.critic, batch.obs, a) for a in actions], 1)  # [E, n, B]
    best = (q.mean(0) + 2.0 * q.std(0)).argmax(0)
    assert (best != (q.mean(0)).argmax(0)).any() and (best != (q.mean(0) - 2.0 * q.std(0)).argmax(0)).any()
    close(e2o.explore(agent, batch.obs, key, args), actions[best, np.arange(B)])
    plain = e2o.explore(agent, batch.obs, key, e2o.Args(**SIZES, exploration="policy"))
    close(plain, policy_sample(agent.actor, batch.obs, key, 1)[0][0])
    close(e2o.act(agent, batch.obs, key, args), np.tanh(distribution(agent.actor, batch.obs)[0]))


def test_e2o_learns_online_from_what_it_collected_only():
    e2o = compiled("e2o")
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, jax.devices()[0]))
    for i in range(3):
        replay = replay.insert(jnp.full(replay.rows.shape[-1], i + 1.0))
    batch = e2o.sample(jax.random.key(0), None, replay, e2o.Args(batch_size=64))
    assert batch.obs.shape == (64, 3) and set(np.unique(batch.reward)) == {1.0, 2.0, 3.0}


def tiny(module, dataset, out, **changes):
    args = {
        "hidden_dims": (8, 8), "batch_size": 8, "n_actions": 2, "dataset": dataset, "env": "Pendulum-v1",
        "log_every": 2, "eval_every": 8, "eval_episodes": 1, "checkpoint_every": 8, "out": str(out),
    } | changes  # fmt: skip
    module.main(module.Args(**args))
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k != "__header__"}


@pytest.mark.long
def test_e2o_updates_once_per_step_after_the_first_ones_and_carries_everything_over(pendulum, tmp_path):
    state = tiny(
        load("e2o"), pendulum, tmp_path / "run", n_critics=4, offline_updates=4, offline_eval_every=4, env_steps=8,
        learning_starts=6,
    )  # fmt: skip
    counts = {k: v for k, v in state.items() if k.startswith("[0]") and k.endswith("count")}
    assert len(counts) == 3 and all(v == 6 for v in counts.values())
    assert all(v.shape[1] == 4 for k, v in state.items() if k.startswith(("[0].critic", "[0].target")) and v.ndim > 1)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [(r["update"], r["env_step"]) for r in rows] == [("6", "8")]
    assert "gap" not in rows[0] and "gap" in next(csv.DictReader((tmp_path / "run" / "offline.csv").open()))


@pytest.mark.long
def test_e2o_continues_an_agent_of_cql_with_two_critics(pendulum, tmp_path):
    before = tiny(
        load("cql"), pendulum, tmp_path / "cql", updates=4, eval_every=4, checkpoint_every=4, normalize_obs=False
    )
    online = {"from_run": str(tmp_path / "cql"), "env_steps": 8, "learning_starts": 8}
    after = tiny(load("e2o"), pendulum, tmp_path / "e2o", n_critics=2, **online)
    for name in (k for k in after if k.startswith("[0]")):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    with pytest.raises(InputError, match="critic"):
        tiny(load("e2o"), pendulum, tmp_path / "more", n_critics=4, **online)


def test_e2o_needs_two_critics():
    e2o = load("e2o")
    with pytest.raises(InputError, match="n-critics"):
        e2o.main(e2o.Args(n_critics=1))
