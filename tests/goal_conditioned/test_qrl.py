"""The quasimetrics and losses of qrl against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import STATE_SPEC, TINY, goal_batch, steps_to_goals, unit_log_prob
from jobs import small
from reference import agent_of, close, compiled, gelu, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

NET = {"activation": gelu, "layer_norm": True}


def covered(x, y):
    """Length of the union of the intervals [x_i, y_i], by hand."""
    total, reach = 0.0, -np.inf
    for low, high in sorted(zip(x, y, strict=True)):
        if high > low:
            total += max(high, reach) - max(low, reach)
            reach = max(high, reach)
    return total


def iqe(x, y, share):
    components = np.array([covered(a, b) for a, b in zip(x.reshape(-1, 8), y.reshape(-1, 8), strict=True)])
    return share * components.mean() + (1 - share) * components.max()


def test_the_interval_embedding_measures_unions():
    r, qrl = np.random.default_rng(0), load("qrl")
    x, y = r.normal(size=(2, 50, 24))
    x[0], y[0] = np.repeat(np.arange(3), 8), np.repeat(np.arange(3), 8) + 0.5  # the same interval eight times
    expected = [iqe(a, b, 1 / (1 + np.exp(-0.3))) for a, b in zip(x, y, strict=True)]
    close(qrl.iqe(x, y, 0.3), expected)
    assert expected[0] == pytest.approx(0.5)


@pytest.mark.parametrize("form", ["iqe", "mrn"])
def test_the_distances_are_quasimetrics(form):
    r = np.random.default_rng(1)
    x, y, z = r.normal(size=(3, 2000, 16)).astype(np.float32)
    d = jax.jit(lambda a, b: load("qrl").DISTANCES[form](a, b, jnp.float32(-0.5)))
    assert (d(x, y) >= 0).all() and np.abs(d(x, x)).max() < 1e-5
    assert (d(x, z) <= d(x, y) + d(y, z) + 1e-4).all()
    assert np.abs(d(x, y) - d(y, x)).max() > 0.5  # and not symmetric


def setting(**changes):
    qrl = compiled("qrl")
    args = qrl.Args(**TINY, latent_dim=16, **changes)
    agent = agent_of(qrl, args, STATE_SPEC)
    agent = agent.replace(mixing=jnp.float32(0.3), log_multiplier=jnp.float32(0.7))
    return qrl, args, agent, goal_batch(goal_dim=3)


def distances(x, y):
    return np.array([iqe(a, b, 1 / (1 + np.exp(-0.3))) for a, b in zip(x, y, strict=True)])


def test_pairs_are_pushed_apart_and_steps_held_to_one():
    qrl, args, agent, batch = setting()
    z, next_z, goal_z = (mlp(agent.encoder, x, **NET) for x in (batch.obs, batch.next_obs, batch.goal))
    after = z + mlp(agent.dynamics, z, batch.action, **NET)
    excess = (np.maximum(distances(z, next_z) - 1, 0) ** 2).mean()
    assert excess > 0
    model = (distances(next_z, after) + distances(after, next_z)).mean() / 2
    apart = (100 * np.log1p(np.exp(5 - distances(z, goal_z) / 100))).mean()
    value = agent.encoder, agent.mixing, agent.dynamics
    loss, info = qrl.value_loss(value, agent, batch, args)
    close(loss, apart + np.exp(0.7) * excess + model)
    close(qrl.multiplier_loss(agent.log_multiplier, info["excess"], args), np.exp(0.7) * (0.05 - excess))
    awr = qrl.Args(**TINY, latent_dim=16, actor_objective="awr")
    close(qrl.value_loss(value, agent, batch, awr)[0], apart + np.exp(0.7) * excess)


@pytest.mark.long
def test_the_multiplier_and_the_distance_pull_at_each_other_from_outside():
    qrl, args, agent, batch = setting(learning_rate=0.01)
    new, metrics = qrl.update(agent, batch, jax.random.key(0), args)
    assert metrics["excess"] > 0.05 and new.log_multiplier > agent.log_multiplier
    easy = qrl.Args(**TINY, latent_dim=16, learning_rate=0.01, constraint_slack=1e6)
    assert qrl.update(agent, batch, jax.random.key(0), easy)[0].log_multiplier < agent.log_multiplier

    def loss(log_multiplier):
        value = agent.encoder, agent.mixing, agent.dynamics
        return qrl.value_loss(value, agent.replace(log_multiplier=log_multiplier), batch, args)[0]

    assert jax.jit(jax.grad(loss))(agent.log_multiplier) == 0.0


def test_the_actor_climbs_the_distance_after_one_step_of_the_model():
    qrl, args, agent, batch = setting(bc_weight=0.7)
    mean = mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu)
    z, goal_z = mlp(agent.encoder, batch.obs, **NET), mlp(agent.encoder, batch.actor_goal, **NET)
    q = -distances(z + mlp(agent.dynamics, z, np.clip(mean, -1, 1), **NET), goal_z)
    expected = -q.mean() / (np.abs(q).mean() + 1e-6) - 0.7 * unit_log_prob(batch.action, mean).mean()
    close(qrl.ddpg_bc_loss(agent.actor, agent, batch, args)[0], expected)


@pytest.mark.long
def test_weighted_cloning_follows_what_a_step_gains():
    qrl, args, agent, batch = setting(actor_objective="awr", beta=0.5, max_weight=1.2)
    z, next_z, goal_z = (mlp(agent.encoder, x, **NET) for x in (batch.obs, batch.next_obs, batch.actor_goal))
    weight = np.minimum(np.exp(0.5 * (distances(z, goal_z) - distances(next_z, goal_z))), 1.2)
    assert (weight == 1.2).any() and (weight < 1.2).any()
    log_prob = unit_log_prob(batch.action, mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu))
    close(qrl.awr_loss(agent.actor, agent, batch, args)[0], -(weight * log_prob).mean())
    metrics = jax.jit(lambda *x: qrl.update(*x)[1])(agent, batch, jax.random.key(0), args)
    close(metrics["actor_loss"], -(weight * log_prob).mean())


def test_sizes_that_do_not_go_are_refused(tmp_path):
    args = small("qrl", write_goals(tmp_path / "goals.npz"), tmp_path / "run", latent_dim=12)
    with pytest.raises(InputError, match="--latent-dim 12: a multiple of 8"):
        load("qrl").main(args)


def test_later_goals_of_the_value_are_drawn_geometrically_where_they_are_asked_for(tmp_path, monkeypatch):
    qrl, data = load("qrl"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    assert qrl.DISCOUNT == 0.99
    monkeypatch.setattr(qrl, "DISCOUNT", 0.8)
    sample = jax.jit(lambda *x: qrl.sample(*x))  # a program of its own, of the other discount
    batch = sample(jax.random.key(0), data, qrl.Args(batch_size=4000, value_goals=(0.0, 1.0, 0.0)))
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end
