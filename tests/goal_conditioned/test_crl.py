"""The losses of crl against plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import DISCRETE_SPEC, GOAL_SPEC, TINY, goal_batch, softmax_log_prob, steps_to_goals, unit_log_prob
from jobs import small
from reference import B, agent_of, close, compiled, gelu, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

NET = {"activation": gelu, "layer_norm": True}


def setting(spec=GOAL_SPEC, **changes):
    crl = compiled("crl")
    args = crl.Args(**TINY, latent_dim=6, **changes)
    return crl, args, agent_of(crl, args, spec), goal_batch(discrete=spec.discrete)


def logits_of(pair, goal, *inputs):
    """[B, B] by hand."""
    return mlp(pair[0], *inputs, **NET) @ mlp(pair[1], goal, **NET).T / np.sqrt(6)


def critics(agent, goal, *inputs):
    """[2, B, B]"""
    pairs = [jax.tree.map(lambda x, i=i: x[i], agent.critic) for i in range(2)]
    return np.stack([logits_of(pair, goal, *inputs) for pair in pairs])


def cross_entropy(logits):
    sigma = 1 / (1 + np.exp(-logits))
    own = np.eye(B, dtype=bool)
    return -(np.log(sigma[..., own]).sum() + np.log(1 - sigma[..., ~own]).sum()) / logits.size


@pytest.mark.long
def test_a_rows_goal_is_told_from_those_of_all_others():
    crl, args, agent, batch = setting()
    expected = cross_entropy(critics(agent, batch.goal, batch.obs, batch.action))
    close(crl.critic_loss(agent.critic, agent, batch, args)[0], expected)
    expected = cross_entropy(logits_of(agent.value, batch.goal, batch.obs))
    close(crl.value_loss(agent.value, agent, batch, args), expected)


@jax.jit
def actor_step(agent, batch, args):
    """Of an update V and the actor's loss: what makes up the rest is not compiled."""
    new, metrics = compiled("crl").update(agent, batch, jax.random.key(0), args)
    return new.value, metrics["actor_loss"]


def test_the_actor_climbs_the_lesser_critic():
    crl, args, agent, batch = setting(bc_weight=0.7)
    mean = mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu)
    q = critics(agent, batch.actor_goal, batch.obs, np.clip(mean, -1, 1)).diagonal(axis1=1, axis2=2).min(0)
    expected = -q.mean() / (np.abs(q).mean() + 1e-6) - 0.7 * unit_log_prob(batch.action, mean).mean()
    close(crl.ddpg_bc_loss(agent.actor, agent, batch, args)[0], expected)
    value, loss = actor_step(agent, batch, args)
    close(loss, expected)
    jax.tree.map(np.testing.assert_array_equal, value, agent.value)  # V is of the discrete actor alone


@pytest.mark.long
def test_discrete_actions_are_cloned_by_advantages():
    crl, args, agent, batch = setting(DISCRETE_SPEC, beta=2.0, max_weight=1.5)
    q = critics(agent, batch.actor_goal, batch.obs, np.eye(4)[batch.action]).diagonal(axis1=1, axis2=2).min(0)
    adv = q - logits_of(agent.value, batch.actor_goal, batch.obs).diagonal()
    weight = np.minimum(np.exp(2.0 * adv), 1.5)
    assert (weight == 1.5).any() and (weight < 1.5).any()
    log_prob = softmax_log_prob(batch.action, mlp(agent.actor, batch.obs, batch.actor_goal, activation=gelu))
    value, loss = actor_step(agent, batch, args)
    close(loss, -(weight * log_prob).mean())
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (value, agent.value)), strict=True))


def test_the_optimum_is_the_log_of_the_ratio_of_visits():
    """Of a table of logits the loss is least where f = log p(g|s) / p(g) - log(B - 1), for many equal batches."""
    crl, batches, size = load("crl"), 4000, 16
    r = np.random.default_rng(0)
    state = r.integers(0, 3, (batches, size))
    reach = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    goal = (r.random(state.shape)[..., None] > reach.cumsum(1)[state]).sum(-1)

    def loss(table, state, goal):
        return jax.vmap(lambda s, g: crl.contrastive_loss(table[s][:, g]))(state, goal).mean()

    table, step = np.zeros((3, 3)), jax.jit(jax.grad(loss))
    marginal = reach.mean(0)
    expected = np.log(reach / marginal) - np.log(size - 1)
    gradient = step(expected, state, goal)
    assert np.abs(gradient).max() < 1e-4 < np.abs(step(table, state, goal)).max()


def test_goals_of_the_value_lie_as_far_ahead_as_the_discount_looks(tmp_path):
    crl, data = compiled("crl"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    args = crl.Args(batch_size=4000, discount=0.8, value_goals=(0.0, 1.0, 0.0))
    batch = crl.sample(jax.random.key(0), data, args)
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end


def test_wanted_goals_weigh_by_how_soon_they_are_met_and_equal_ones_are_no_negatives():
    crl, args, agent, batch = setting()
    goal = batch.goal.copy()
    goal[3] = goal[1]
    goal[4, 0] = goal[0, 0]  # equal in one number only
    weight = np.float32([1.0, 0.5, 0.25, 0.9, 0.1])
    batch = batch._replace(goal=goal, weight=weight)
    logits = critics(agent, goal, batch.obs, batch.action)
    expected = 0.0
    for i in range(B):
        for j in range(B):
            sigma = 1 / (1 + np.exp(-logits[:, i, j]))
            if i == j:
                expected -= weight[i] * np.log(sigma).mean()
            elif {i, j} != {1, 3}:
                expected -= np.log(1 - sigma).mean()
    close(crl.critic_loss(agent.critic, agent, batch, args)[0], expected / B**2)


def test_wanted_goals_are_those_of_the_record(tmp_path):
    crl, path = compiled("crl"), tmp_path / "wanted.npz"
    row = np.arange(60)
    wanted = np.where(row < 20, row // 7, row // 20)  # the first episode's goal changes every 7 rows
    obs = np.stack([row, row, wanted, wanted, row, row], -1).astype(np.float32)  # state, wanted, achieved
    np.savez(path, observations=obs, next_observations=obs, actions=np.zeros((60, 2)), timeouts=row % 20 == 19)
    data = goal_dataset(load_dataset(str(path), "PointUMazeGoals-v0")).transitions(wanted=True)
    batch = crl.sample(jax.random.key(0), data, crl.Args(batch_size=500, discount=0.9, goals="wanted"))
    drawn = np.asarray(batch.obs)[:, 0].astype(int)
    np.testing.assert_array_equal(batch.goal, np.stack([wanted, wanted], -1)[drawn])
    np.testing.assert_array_equal(batch.actor_goal, batch.goal)
    last = np.where(row < 20, np.minimum(row // 7 * 7 + 6, 19), row // 20 * 20 + 19)
    np.testing.assert_allclose(batch.weight, 0.9 ** (last - row)[drawn], rtol=1e-5)
    assert set(drawn) == set(row)
    with pytest.raises(InputError, match="has no wanted goals"):
        goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions(wanted=True)


def test_a_batch_of_one_row_has_no_other_goals(tmp_path):
    args = small("crl", write_goals(tmp_path / "goals.npz"), tmp_path / "run", batch_size=1)
    with pytest.raises(InputError, match="--batch-size 1: .* other rows of a batch; there are none"):
        load("crl").main(args)
