"""The diversity of ravl's critics against plain numpy, the edge of reach, and what it shares with mopo by lines."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT, small, train
from reference import B, agent_of, close, compiled, differences, heads, mlp, tanh_normal

from shared.errors import InputError

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,), "n_critics": 3,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, *mean.shape))))


@pytest.fixture
def ravl():
    return compiled("ravl")


@pytest.fixture
def agent(ravl):
    return agent_of(ravl, ravl.Args(**SIZES)).replace(log_alpha=jnp.float32(0.3))


def test_ravl_differs_from_mopo_in_its_critics_and_rollouts_alone(ravl):
    """What mopo's tests hold of the model, of the other losses and of the order of updates holds here."""
    found = differences(load("ravl"), load("mopo"))
    own = {
        "Args",
        "Agent",
        "Actor",
        "Critic",
        "critic_loss",
        "temperature",
        "actor_optimizer",
        "init",
        "main",
        "rollout",
    }
    assert found == own


@pytest.mark.long
def test_ravl_alignment_is_the_mean_cosine_of_the_critics_gradients(ravl, agent, batch):
    eps, grads = 1e-4, np.zeros((3, B, 2))
    for d in range(2):
        step = eps * np.eye(2)[d]
        up, down = (heads(agent.critic, batch.obs, batch.action + s) for s in (step, -step))
        grads[:, :, d] = (up - down) / (2 * eps)
    grads /= np.linalg.norm(grads, axis=-1, keepdims=True)
    pairs = sum((grads[i] * grads[j]).sum(-1) for i in range(3) for j in range(3) if i != j)
    np.testing.assert_allclose(ravl.alignment(agent.critic, agent, batch), (pairs / 2).mean(), rtol=1e-3)
    same = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[:1], x.shape), agent.critic)
    close(ravl.alignment(same, agent, batch), 3.0)  # N (N - 1) / (N - 1): all alike
    dead = jax.tree.map(np.zeros_like, agent.critic)  # of critics that do not depend on the action
    slope = jax.jit(jax.grad(ravl.alignment))(dead, agent, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_ravl_one_critic_has_none_to_differ_from(ravl, pendulum, tmp_path):
    for change in ({"n_critics": 1}, {"n_critics": 0, "diversity": 0.0}):
        with pytest.raises(InputError, match="--n-critics must be at least 2, or 1 with --diversity 0"):
            load("ravl").main(small("ravl", pendulum, tmp_path / "run", **change))


@pytest.mark.long
def test_ravl_critics_share_the_soft_target_of_the_least(ravl, agent, batch):
    args, key = ravl.Args(**SIZES, diversity=0.5), jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.next_obs, key)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - np.exp(0.3) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    loss, info = ravl.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, expected + 0.5 * info["alignment"])
    close(ravl.temperature(agent), np.exp(0.3))  # not bounded, as mopo's is


@pytest.mark.long
def test_ravl_the_edge_of_reach_is_cut_and_bootstrapped_but_never_updated(ravl):
    """A line world that moves by one, rollouts of three steps from 0: rows bootstrap from 3, and none begins there."""
    args = ravl.Args(**{**SIZES, "rollout_steps": 3.0, "dynamics": "exact"})
    spec = load("mopo").Spec((1,), 2, False, (-1.0, -1.0), (1.0, 1.0))
    agent = ravl.init(jax.random.key(0), args, spec)
    rows = np.zeros((10, 1 + 2 + 1 + 1 + 1 + 1), np.float32)
    rows[:, -1] = 1.0
    data = ravl.Transitions(jnp.asarray(rows), None, None, spec, (*ravl.FIELDS, "successor"))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    empty = jax.tree.map(lambda x: x[0], load("ravl").init_replay(1, 48, spec, sharding))

    def line(limit):
        return lambda obs, action, key: (obs + 1.0, jnp.ones(len(obs)), obs[:, 0] >= limit)

    replay, info = ravl.rollout(agent, empty, jax.random.key(1), args, data, 3, None, line(np.inf))
    made = replay.take(np.arange(24))
    assert set(np.asarray(made.obs[:, 0])) == {0.0, 1.0, 2.0} and set(np.asarray(made.next_obs[:, 0])) == {
        1.0,
        2.0,
        3.0,
    }
    assert not made.terminal.any() and (made.reward == 1).all()

    def least(x):
        obs = np.full((1, 1), x)
        return heads(agent.critic, obs, np.tanh(mlp(agent.actor, obs)[:, :2])).min(0)[0]

    close(info["q_edge"], least(3.0))
    close(info["q_start"], least(0.0))
    assert info["error_1"] == 0 and info["error_h"] == 0
    short = line(1.0)  # the second step ends an episode, but not without --termination
    for termination, rows_made in ((True, 16), (False, 24)):
        again = dataclasses.replace(args, termination=termination)
        made = ravl.rollout(agent, empty, jax.random.key(1), again, data, 3, None, short)[0]
        assert made.size() == rows_made and made.take(np.arange(16)).terminal.any() == termination


@pytest.mark.long
def test_ravl_runs_in_the_environment_itself(ravl, pendulum, tmp_path):
    """Without a model phase; the rollouts have no error."""
    train("ravl", pendulum, tmp_path / "run", dynamics="exact", model_updates=0, env=SHORT)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert float(rows[-1]["error_1"]) < 1e-5 and not (tmp_path / "run" / "before.csv").exists()
    for change in ({"model_updates": 4}, {"model_updates": 0, "env": "none"}):
        with pytest.raises(InputError, match="--dynamics exact needs"):
            load("ravl").main(small("ravl", pendulum, tmp_path / "bad", dynamics="exact", **change))
