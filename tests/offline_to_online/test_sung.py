"""The losses, the mixture, the exploration and the phases of sung."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, smoothed_next_action

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Batch, Transitions

SMALL = {"vae_hidden_dims": (8, 8), "vae_updates": 2, "n_candidates": 2, "n_finalists": 2}


def tiny(**changes):
    sizes = {"hidden_dims": (8, 8), "vae_hidden_dims": (8, 8), "batch_size": B, "n_candidates": 12, "n_finalists": 4}
    return load("sung").Args(**sizes | changes)


@pytest.fixture
def agent():
    return agent_of(compiled("sung"), tiny(), seed=3)


def bound(vae, obs, action, key, kl_weight=0.5, squash=True):
    """[B] negative evidence lower bound of (s, a); every mean as in the authors' code."""
    part = {name: {"params": vae["params"][name]} for name in ("encoder", "decoder")}
    x = np.concatenate([obs, action], -1)
    mean, log_std = np.split(mlp(part["encoder"], x), 2, axis=-1)
    log_std = np.clip(log_std, -4, 15)
    decoded = mlp(part["decoder"], mean + np.exp(log_std) * np.asarray(jax.random.normal(key, mean.shape)))
    kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))
    return (((np.tanh(decoded) if squash else decoded) - x) ** 2).mean(-1) + kl_weight * kl.mean(-1)


def test_sung_uncertainty_is_the_negative_bound_of_the_pair(agent, batch):
    sung, key, args = compiled("sung"), jax.random.key(1), tiny(kl_weight=0.7)
    expected = bound(agent.vae, batch.obs, batch.action, key, 0.7)
    close(sung.uncertainty(agent.vae, agent, batch.obs, batch.action, key, args), expected)
    close(sung.vae_loss(agent.vae, agent, batch, key, args)[0], expected.mean())
    free = agent_of(sung, tiny(squash=False), seed=3)
    expected = bound(free.vae, batch.obs, batch.action, key, squash=False)
    close(sung.uncertainty(free.vae, free, batch.obs, batch.action, key, tiny(squash=False)), expected)
    mean, log_std, decoded = agent.nets.vae.apply(agent.vae, np.zeros((B, 5)), key)
    assert mean.shape == log_std.shape == (B, 4) and decoded.shape == (B, 5)


def test_sung_critic_is_td3s(agent, batch):
    sung, key, args = compiled("sung"), jax.random.key(5), tiny(discount=0.9)
    q = heads(agent.target_critic, batch.next_obs, smoothed_next_action(agent, batch, key, args)).min(0)
    y = batch.reward + 0.9 * (1 - batch.terminal) * q
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(sung.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_sung_clones_everywhere_offline_and_where_it_is_uncertain_online(agent, batch):
    """Of five actions the two most uncertain ones; the mean over them and their dimensions."""
    sung, key, args = compiled("sung"), jax.random.key(2), tiny(alpha=1.7, online_bc=0.3, constrained_share=0.4)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    error = ((pi - batch.action) ** 2).mean(-1)
    close(sung.actor_loss(agent.actor, agent, batch, args)[0], -1.7 / np.abs(q).mean() * q.mean() + error.mean())
    u = bound(agent.vae, batch.obs, pi, key)
    rows = np.argsort(-u)[:2]
    loss, info = sung.online_actor_loss(agent.actor, agent, batch, key, args)
    close(loss, -1.7 / np.abs(q).mean() * q.mean() + 0.3 * error[rows].mean())
    close([info["uncertainty"], info["constrained_uncertainty"]], [u.mean(), u[rows].mean()])
    share = dataclasses.replace(args, constrained_share=0.05)  # of five less than one: still the most uncertain
    loss, _ = sung.online_actor_loss(agent.actor, agent, batch, key, share)
    close(loss, -1.7 / np.abs(q).mean() * q.mean() + 0.3 * error[u.argmax()])


def test_sung_actor_follows_q_and_the_chosen_clones_only(agent, batch):
    """No gradient through U, through the choice, or through lambda."""
    sung, key, args = compiled("sung"), jax.random.key(2), tiny(online_bc=3.0, constrained_share=0.4)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    rows = np.argsort(-bound(agent.vae, batch.obs, pi, key))[:2]
    scale = 2.5 / np.abs(heads(agent.critic, batch.obs, pi)[0]).mean()

    def plain(actor):
        pi = agent.nets.actor.apply(actor, batch.obs)
        return -scale * sung.first_q(agent, batch.obs, pi).mean() + 3.0 * ((pi - batch.action)[rows] ** 2).mean()

    grads = jax.grad(sung.online_actor_loss, has_aux=True)(agent.actor, agent, batch, key, args)[0]
    jax.tree.map(close, grads, jax.grad(plain)(agent.actor))


def test_sung_finalists_are_the_candidates_of_highest_q(agent, batch):
    sung, key, args = compiled("sung"), jax.random.key(6), tiny(exploration_noise=0.4)
    noise_key, vae_key = jax.random.split(key)
    obs = batch.obs[0]
    candidates = np.tanh(mlp(agent.actor, obs)) + 0.4 * np.asarray(jax.random.normal(noise_key, (12, 2)))
    q = heads(agent.critic, np.repeat(obs[None], 12, axis=0), candidates)[0]
    best = np.argsort(-q)[:4]
    actions, u = sung.finalists(agent, obs, key, args)
    close(actions, candidates[best])
    close(u, bound(agent.vae, np.repeat(obs[None], 4, axis=0), candidates[best], vae_key))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sung_explores_finalists_in_proportion_to_exp_u(agent, batch, monkeypatch, temperature):
    sung, actions = load("sung"), jnp.float32([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    monkeypatch.setattr(sung, "finalists", lambda *_: (actions, jnp.log(jnp.float32([0.2, 0.1, 0.7]))))
    keys = jax.random.split(jax.random.key(0), 4000)
    args = tiny(choice_temperature=temperature)
    done = jax.vmap(lambda key: sung.explore(agent, batch.obs[:1], key, args))(keys)
    assert done.shape == (4000, 1, 2)
    frequency = [(done[:, 0, 0] == a).mean() for a in actions[:, 0]]
    expected = {1.0: [0.2, 0.1, 0.7], 0.5: np.array([0.04, 0.01, 0.49]) / 0.54}[temperature]
    np.testing.assert_allclose(frequency, expected, atol=0.03)


def test_sung_evaluates_the_policy_itself(agent, batch):
    close(compiled("sung").act(agent, batch.obs, None, tiny()), np.tanh(mlp(agent.actor, batch.obs)))


def test_sung_batches_are_mostly_new_but_never_more_than_there_is():
    """Data rows are 1, the ring's -1, -2, ... by age of insertion."""
    sung, args = compiled("sung"), tiny(batch_size=40, recent_size=4)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.ones((7, width)), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 100, SPEC, SingleDeviceSharding(jax.devices()[0])))
    keys = jax.random.split(jax.random.key(0), 400)
    wide = dataclasses.replace(args, recent_size=50)
    for row in range(1, 61):
        replay = replay.insert(jnp.full(width, -float(row)))
        if row not in (1, 3, 60):
            continue
        drawn = np.asarray(jax.vmap(lambda k: sung.sample(k, data, replay, wide).reward)(keys))  # noqa: B023
        recent = min(36, row)
        assert drawn.shape == (400, 40) and (drawn[:, :recent] < 0).all()
        np.testing.assert_allclose((drawn[:, recent:] > 0).mean(), 7 / (7 + row), atol=0.05)
    drawn = sung.sample(keys[0], data, replay, dataclasses.replace(args, mixed_share=0.0))
    assert set(np.asarray(drawn.reward)[:4].tolist()) <= {-57.0, -58.0, -59.0, -60.0}
    assert drawn.obs.shape == (40, 3) and drawn.next_action is None


def test_sung_one_step_of_each_and_the_actor_at_every_second(agent, batch):
    sung, args = compiled("sung"), tiny()
    step = jax.jit(sung.update_online)
    new, info = step(agent, batch, jax.random.key(0), args, 4)
    counts = [int(o[0].count) for o in (new.critic_opt, new.vae_opt, new.actor_opt)]
    assert counts == [1, 1, 1] and 2 <= float(info["perplexity"]) <= 2 * 4 + 1e-4
    expected = jax.tree.map(lambda old, online: 0.995 * old + 0.005 * online, agent.target_critic, new.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.target_critic, expected)
    surest = dataclasses.replace(args, choice_temperature=1e-6)
    np.testing.assert_allclose(step(agent, batch, jax.random.key(0), surest, 4)[1]["perplexity"], 2.0, atol=1e-3)
    new, info = step(agent, batch, jax.random.key(0), args, 5)
    counts = [int(o[0].count) for o in (new.critic_opt, new.vae_opt, new.actor_opt)]
    assert counts == [1, 1, 0] and info["perplexity"] == info["actor_loss"] == 0 != info["vae_loss"]
    for name in ("actor", "target_actor", "target_critic"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(agent, name))


def test_sung_actor_steps_stay_conditional_over_lanes(agent, batch):
    """A step counter that were one per lane would make every lane compute both branches."""
    sung, args, keys = compiled("sung"), tiny(), jax.random.split(jax.random.key(0))
    agents, batches = jax.tree.map(lambda x: jnp.stack([x, x]), (agent, batch))
    lanes = jax.vmap(sung.update_online, (0, 0, 0, None, None))
    assert " cond[" in str(jax.make_jaxpr(lanes)(agents, batches, keys, args, jnp.int32(3)))


def test_sung_uncertainty_tells_strange_actions_from_the_datas():
    """Data with a = (s_1, -s_1): after some training U ranks pairs with other actions above them."""
    sung, args = compiled("sung"), tiny(vae_hidden_dims=(64, 64), batch_size=64, kl_weight=0.05)
    agent = sung.init(jax.random.key(0), args, SPEC)
    obs = jax.random.uniform(jax.random.key(1), (256, 3), minval=-1.0, maxval=1.0)
    action = 0.8 * jnp.stack([obs[:, 0], -obs[:, 0]], axis=1)

    def step(agent, key):
        rows_key, vae_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (64,), 0, 256)
        return sung.update_vae(agent, Batch(obs=obs[rows], action=action[rows]), vae_key, args)[0], None

    agent, _ = jax.jit(lambda a, k: jax.lax.scan(step, a, k))(agent, jax.random.split(jax.random.key(2), 1500))
    strange = jax.random.uniform(jax.random.key(3), (256, 2), minval=-1.0, maxval=1.0)
    known, unknown = (sung.uncertainty(agent.vae, agent, obs, a, jax.random.key(4), args) for a in (action, strange))
    assert (unknown[:, None] > known).mean() > 0.85


def test_sung_trains_the_vae_before_and_goes_on_online(pendulum, tmp_path):
    out = tmp_path / "run"
    trained = train("sung", pendulum, out)
    counts = {n: trained[f"[0].{n}_opt[0].count"].tolist() for n in ("vae", "critic", "actor")}
    assert counts == {"vae": [2 + 8], "critic": [4 + 8], "actor": [2 + 4]}
    rows = {n: list(csv.DictReader((out / f"{n}.csv").open())) for n in ("before", "offline", "metrics")}
    assert [r["update"] for r in rows["before"]] == ["2"] and "critic_loss" not in rows["before"][0]
    assert "vae_loss" not in rows["offline"][0] and "vae_loss" in rows["metrics"][0]
    assert all(1 <= float(r["perplexity"]) <= 2.001 for r in rows["metrics"])


def test_sung_goes_on_from_a_run_of_td3_bc_with_a_vae_of_its_own(pendulum, tmp_path, capfd):
    train("td3_bc", pendulum, tmp_path / "offline", seeds=2)
    capfd.readouterr()
    trained = train("sung", pendulum, tmp_path / "online", seeds=2, from_run=str(tmp_path / "offline"))
    told = "".join(capfd.readouterr())
    assert told.count("starts anew") == 2 and "'vae'" in told and "'vae_opt'" in told
    assert trained["[0].critic_opt[0].count"].tolist() == [12, 12]
    assert trained["[0].vae_opt[0].count"].tolist() == [10, 10]
    assert (tmp_path / "online" / "before.csv").exists() and not (tmp_path / "online" / "offline.csv").exists()


def test_sung_goes_on_from_a_run_of_its_own_with_the_vae_that_is_there(pendulum, tmp_path):
    train("sung", pendulum, tmp_path / "offline")
    trained = train("sung", pendulum, tmp_path / "online", from_run=str(tmp_path / "offline"))
    assert trained["[0].vae_opt[0].count"].tolist() == [2 + 8]  # those of before there, one per environment step here
    assert not (tmp_path / "online" / "before.csv").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"n_candidates": 4, "n_finalists": 5}, "--n-finalists 5: there are --n-candidates 4"),
    ],
)
def test_sung_refuses(changes, words):
    sung = load("sung")
    with pytest.raises(InputError, match=words):
        sung.main(sung.Args(**changes))
