"""The losses of prdc and its search for the nearest pair against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import B, agent_of, close, compiled, heads, mlp, smoothed_next_action

from shared.data import load_dataset


def args_of(**changes):
    return load("prdc").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


def brute_force(data, obs, pi, beta):
    """Rows of the nearest pairs, in plain numpy."""
    pairs = np.concatenate([beta * data.obs, data.action], 1).astype(np.float64)
    query = np.concatenate([beta * obs, pi], 1).astype(np.float64)
    return ((query[:, None] - pairs) ** 2).sum(-1).argmin(1)


@pytest.fixture
def data(pendulum):
    """300 rows."""
    return load_dataset(pendulum).require(discrete=False).normalize_obs()


def queries(n=40):
    """Rows of the data, and actions that are not theirs."""
    r = np.random.default_rng(1)
    return r.integers(0, 300, n), r.uniform(-1, 1, (n, 1)).astype(np.float32)


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0, 50.0])
@pytest.mark.parametrize("how", [{"search": "all"}, {"neighbours": 300}, {"neighbours": 10_000}])
def test_prdc_finds_the_nearest_pair(data, beta, how, monkeypatch):
    prdc = load("prdc")
    monkeypatch.setattr(prdc, "BLOCK", 64)  # 300 rows do not fill the last one
    index, pi = queries()
    pairs = prdc.pairs_of(data, args_of(**how))
    found, proven = prdc.nearest_action(data.obs[index], pi, index, pairs, jnp.float32(beta))
    expected = brute_force(data, data.obs[index], pi, beta)
    close(found, data.action[expected])
    assert beta == 0.0 or np.asarray(proven).all()
    if beta < 50:
        assert (expected != index).mean() > 0.3  # else finding the own row would do


@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_prdc_knows_where_few_candidates_are_enough(data, beta):
    """`proven` promises the nearest pair, and promises it where it can; the others are the nearest candidates."""
    prdc = compiled("prdc")
    index, pi = queries(200)
    pairs = prdc.pairs_of(data, args_of(neighbours=8))
    found, proven = (np.asarray(x) for x in prdc.nearest_action(data.obs[index], pi, index, pairs, beta))
    exact = brute_force(data, data.obs[index], pi, beta)
    right = np.isclose(found, data.action[exact]).all(1)
    assert right[proven].all() and 0 < proven.mean() < right.mean() < 1
    distance = ((data.obs[index][:, None] - data.obs) ** 2).sum(-1)
    for i, row in enumerate(index):
        eight = np.argsort(distance[i])[:8]
        assert row in eight
        best = (beta**2 * distance[i, eight] + ((data.action[eight] - pi[i]) ** 2).sum(1)).argmin()
        close(found[i], data.action[eight][best])


def test_prdc_critic(batch):
    prdc = compiled("prdc")
    args = args_of(policy_noise=0.6, noise_clip=0.4)
    agent, key = agent_of(prdc, args), jax.random.key(7)
    next_action = smoothed_next_action(agent, batch, key, args)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(prdc.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_prdc_actor_is_pulled_to_the_nearest_pair_not_to_the_own_action(batch):
    prdc = compiled("prdc")
    args = args_of(alpha=1.7)
    agent = agent_of(prdc, args)
    nearest = np.random.default_rng(2).uniform(-1, 1, batch.action.shape).astype(np.float32)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -1.7 / np.abs(q).mean() * q.mean() + ((pi - nearest) ** 2).mean()
    close(prdc.actor_loss(agent.actor, agent, batch, nearest, args)[0], expected)


def test_prdc_searches_for_the_current_policy_and_holds_the_neighbour_still(data):
    """The step of the actor is that on the loss with a constant a', found for the policy before the step."""
    prdc = compiled("prdc")
    args = args_of(state_weight=0.5, search="all", actor_lr=0.1, tau=0.3, batch_size=40)
    agent, (index, _) = agent_of(prdc, args, data.spec), queries()
    batch = data.transitions().take(index)
    pi, other = (np.tanh(mlp(actor, batch.obs)) for actor in (agent.actor, agent.target_actor))
    nearest, of_other = (data.action[brute_force(data, np.asarray(batch.obs), x, 0.5)] for x in (pi, other))
    assert (nearest != of_other).mean() > 0.3
    new, info = prdc.update_actor(agent, batch, index, prdc.pairs_of(data, args), args)
    close(info["dc_loss"], ((pi - nearest) ** 2).mean())
    grads = jax.grad(lambda a: prdc.actor_loss(a, agent, batch, nearest, args)[0])(agent.actor)
    expected = jax.tree.map(lambda x, g: x - 0.1 * g / (np.abs(g) + 1e-8), agent.actor, grads)  # Adam's first step
    jax.tree.map(close, new.actor, expected)
    for name in ("actor", "critic"):
        target = jax.tree.map(lambda x, y: 0.7 * x + 0.3 * y, getattr(agent, f"target_{name}"), getattr(new, name))
        jax.tree.map(close, getattr(new, f"target_{name}"), target)


@pytest.mark.long
@pytest.mark.parametrize("changes", [{"state_weight": 1e3}, {"neighbours": 1}])
def test_prdc_with_a_large_beta_is_td3_bc(pendulum, tmp_path, changes):
    """A whole run: the nearest pair is the own row, so the candidates belong to the rows that were sampled."""
    prdc = train("prdc", pendulum, tmp_path / "prdc", updates=20, **changes)
    td3_bc = train("td3_bc", pendulum, tmp_path / "td3_bc", updates=20)
    assert td3_bc.keys() == prdc.keys()
    for name, value in td3_bc.items():
        np.testing.assert_allclose(prdc[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_prdc_leaves_rows_without_a_next_observation_out_of_the_pairs(pendulum, tmp_path):
    """A log that stores none has none where a time limit ends an episode: rows are counted without these."""
    with np.load(pendulum) as file:
        np.savez(tmp_path / "log.npz", **{k: file[k] for k in file.files if k != "next_observations"})
    log = str(tmp_path / "log.npz")
    assert not load_dataset(log).usable().all()
    td3_bc = train("td3_bc", log, tmp_path / "td3_bc", updates=20)
    for how in ({"neighbours": 1}, {"search": "all", "state_weight": 1e3}):
        prdc = train("prdc", log, tmp_path / "".join(how), updates=20, **how)
        for name, value in td3_bc.items():
            np.testing.assert_allclose(prdc[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_prdc_searches_agree_over_a_whole_run(pendulum, tmp_path):
    """Also: the search sees the observations that training sees, normalised."""
    candidates = train("prdc", pendulum, tmp_path / "candidates", updates=20, neighbours=300)
    everywhere = train("prdc", pendulum, tmp_path / "all", updates=20, search="all")
    for name, value in candidates.items():
        np.testing.assert_allclose(everywhere[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_prdc_does_not_call_the_host(data):
    prdc = compiled("prdc")
    for search in ("neighbours", "all"):
        args = small("prdc", "", "", search=search)
        agent = prdc.init(jax.random.key(0), args, data.spec)
        keys = jax.random.split(jax.random.key(1), 4)
        text = str(jax.make_jaxpr(prdc.train)(agent, keys, args, data.transitions(), prdc.pairs_of(data, args)))
        assert "callback" not in text
