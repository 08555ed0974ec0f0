"""The losses of c_morl against the same equations in plain numpy; the archive, and what each stage trains."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, close, mlp
from scipy.stats import norm

from shared.errors import InputError
from shared.jax_envs import JaxEnv
from shared.task import Spec
from shared.transitions import Batch

SMALL = {
    "env": "PreferredPeaks-v0", "weight_divisions": 1, "n_selected": 1, "round_iterations": 1, "n_envs": 2,
    "steps_per_iteration": 2, "ppo_epochs": 1, "n_batches": 2, "archive_size": 3, "archive_episodes": 1,
    "init_steps": 4,
}  # fmt: skip

morl = load("c_morl")
SPEC = Spec((4,), 2, False, (-1.0, -1.0), (1.0, 1.0))
"""Two numbers that a policy sees, and the preference."""
ARGS = morl.Args(
    hidden_dims=(8, 8), weight_divisions=1, n_selected=2, round_iterations=2, n_envs=2, steps_per_iteration=4,
    ppo_epochs=1, n_batches=2, archive_size=6, archive_episodes=2, gae_lambda=0.8, discount=0.9, ratio_clip=0.1,
    entropy_cost=0.2, init_steps=32, archive_discount=0.5, learning_rate=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def agent():
    return jax.jit(morl.init, static_argnums=2)(jax.random.key(0), ARGS, SPEC)


@pytest.fixture(scope="module")
def learner(agent):
    """One that has seen observations and targets."""
    r = np.random.default_rng(1)
    one = jax.tree.map(lambda x: x[0], agent.learners)
    one = one._replace(obs=morl.observe(one.obs, r.normal(1, 2, (6, 2)).astype(np.float32)))
    return one._replace(returns=morl.observe(one.returns, r.normal(3, 1, (6, 2)).astype(np.float32)))


def test_c_morl_policies_do_not_see_the_preference_and_values_are_scaled(agent, learner):
    obs = np.random.default_rng(0).normal(1, 2, (6, 4)).astype(np.float32)
    assert morl.seen(obs, 2).tolist() == obs[:, :2].tolist()
    x = np.random.default_rng(1).normal(1, 2, (6, 2)).astype(np.float32)
    close(morl.normalize(learner, obs[:, :2]), (obs[:, :2] - x.mean(0)) / x.std(0))
    assert float(morl.normalize(learner, jnp.full(2, 1e6)).max()) == 10.0
    targets = np.random.default_rng(1)
    targets.normal(1, 2, (6, 2))
    close(morl.scale(learner), np.sqrt((targets.normal(3, 1, (6, 2)) ** 2).mean(0)))


def test_c_morl_advantages_are_of_each_objective_and_end_with_the_episode():
    v, next_v = (np.float32(x)[:, None] for x in ([[1, 0], [2, 0], [3, 0]], [[2, 0], [9, 1], [4, 7]]))
    batch = Batch(reward=np.float32([[1, 2], [1, 2], [1, 2]])[:, None], terminal=np.float32([0, 0, 1])[:, None])
    found = morl.advantages(v, next_v, batch, np.float32([0, 1, 1])[:, None], ARGS)[:, 0]
    first, second = [1 + 1.8 - 1, 1 + 8.1 - 2, 1 - 3], [2, 2 + 0.9, 2]
    close(found[:, 0], [first[0] + 0.72 * first[1], *first[1:]])
    close(found[:, 1], [second[0] + 0.72 * second[1], *second[1:]])


@pytest.mark.parametrize("margin", (0.5, 1e-3, -0.2))
def test_c_morl_barrier_is_a_logarithm_and_beneath_the_least_margin_its_tangent(margin):
    value, slope = jax.value_and_grad(lambda m: morl.log_barrier(m, ARGS))(margin)
    inside = max(margin, 1e-3)
    close(value, -(np.log(inside) + min(margin - 1e-3, 0) / 1e-3) / 20)
    close(slope, -1 / (20 * inside))


actor_loss = jax.jit(morl.actor_loss, static_argnums=1)
insert, select = jax.jit(morl.insert), jax.jit(morl.select)


def sampled(agent, scale=0.2):
    """A batch, its log densities under the actor, and those of a former policy."""
    r = np.random.default_rng(4)
    actor = jax.tree.map(lambda x: np.asarray(x[0]), agent.learners.actor)
    batch = Batch(obs=r.normal(size=(B, 2)).astype(np.float32), action=r.normal(size=(B, 2)).astype(np.float32))
    mean, log_std = mlp(actor, batch.obs, activation=np.tanh), np.float64(actor["params"]["log_std"])
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std)).sum(-1)
    old = (log_prob + r.normal(scale=scale, size=B)).astype(np.float32)
    return actor, batch, old, np.exp(log_prob - old), norm.entropy(scale=np.exp(log_std)).sum()


def clipped(ratio, adv):
    return np.minimum(ratio * adv, np.clip(ratio, 0.9, 1.1) * adv)


def test_c_morl_maximises_one_objective_and_keeps_the_others_above_their_share(agent):
    """With three objectives; the second's return is negative: it may lie 0.1 x 2 below -2."""
    actor, batch, old, ratio, entropy = sampled(agent)
    adv = np.random.default_rng(5).normal(size=(B, 4)).astype(np.float32)
    aim = morl.Aim(jnp.float32([1, 0, 0]), jnp.float32([0, 1, 1]))
    returns = np.float32([5.0, -2.05, 3.1]), np.float32([1.0, -2.0, 3.0])
    loss, info = actor_loss(actor, agent.nets, batch, old, adv, aim, returns, ARGS)
    now = returns[0] + clipped(ratio[:, None], adv[:, :3]).mean(0)
    margin = (now - returns[1]) / np.abs(returns[1]) + 0.1
    inside = np.maximum(margin, 1e-3)
    barrier = -(np.log(inside) + np.minimum(margin - 1e-3, 0) / 1e-3) / 20
    close(loss, barrier[1:].mean() - clipped(ratio, adv[:, 3]).mean() - 0.2 * entropy)
    close(info["barrier"], barrier[1:].mean())
    close(info["margin"], margin[1:].min())
    free = morl.Aim(jnp.float32([0.5, 0.2, 0.3]), jnp.zeros(3))
    loss, info = actor_loss(actor, agent.nets, batch, old, adv, free, returns, ARGS)
    close(loss, -clipped(ratio, adv[:, 3]).mean() - 0.2 * entropy)
    assert float(info["barrier"]) == float(info["margin"]) == 0.0


def test_c_morl_barrier_of_ratios_is_blind_to_what_actions_return(agent):
    actor, batch, old, ratio, entropy = sampled(agent)
    adv, aim = np.zeros((B, 3), np.float32), morl.Aim(jnp.float32([1, 0]), jnp.float32([0, 1]))
    args = dataclasses.replace(ARGS, barrier="ratios")
    for mean in (3.0, 300.0):
        loss, _ = actor_loss(actor, agent.nets, batch, old, adv, aim, (np.full(2, mean), np.ones(2)), args)
        above = np.maximum(np.clip(ratio, 0.9, 1.1) - 0.9, 1e-3)
        close(loss, -np.log(above).mean() / 20 - 0.2 * entropy)


def test_c_morl_values_regress_on_targets_within_the_clip(learner, agent):
    r = np.random.default_rng(6)
    obs, old, target = (r.normal(size=(B, 2)).astype(np.float32) for _ in range(3))
    v = mlp(learner.value, obs, activation=np.tanh)
    near = old + np.clip(v - old, -0.1, 0.1)
    expected = 0.5 * np.maximum((v - target) ** 2, (near - target) ** 2).mean()
    close(morl.value_loss(learner.value, agent.nets.value, Batch(obs=obs), old, target, ARGS)[0], expected)


def test_c_morl_choices_have_a_softmax():
    nets = morl.Networks(None, None, True)
    out, action = np.float32([[1, 2, 0.5]]), np.int32([2])
    p = np.exp(out) / np.exp(out).sum()
    log_prob, entropy = morl.log_prob_and_entropy(nets, out, action)
    close(log_prob, np.log(p[:, 2]))
    close(entropy, -(p * np.log(p)).sum(-1))
    assert int(morl.mode(nets, out)[0]) == 1


# ----------------------------------------------------------------------------------------- archive


def holding(agent, values, selected=None):
    """The agent's archive with these discounted returns; policy i has a bias of i everywhere."""
    n = ARGS.archive_size
    policies = jax.tree.map(
        lambda x: jnp.arange(n, dtype=x.dtype).reshape(n, *(1,) * (x.ndim - 1)) + 0 * x, agent.archive.policies
    )
    rows = np.full((n, 2), -np.inf, np.float32)
    rows[: len(values)] = values
    chosen = np.zeros(n, bool)
    chosen[list(selected or [])] = True
    return morl.Archive(policies, jnp.asarray(rows), jnp.asarray(chosen))


def held(archive) -> dict:
    """{discounted returns: (what marks the policy, selected)}"""
    mark = np.asarray(archive.policies.actor["params"]["log_std"][:, 0])
    rows = zip(np.asarray(archive.values).tolist(), mark, np.asarray(archive.selected).tolist(), strict=True)
    return {tuple(v): (m, s) for v, m, s in rows if np.isfinite(v).all()}


def test_c_morl_archive_keeps_what_is_not_dominated_and_reaches_the_reference_point(agent):
    archive = holding(agent, [[1, 5], [3, 3], [5, 1]], selected=[0, 1])
    new = jax.tree.map(lambda x: x[:4] * 0 + 9, archive.policies)
    after = insert(archive, new, np.float32([[3, 4], [2, 2], [9, -1], [np.nan, 9]]), ARGS)
    assert held(after) == {(1, 5): (0, True), (3, 4): (9, False), (5, 1): (2, False)}
    assert after.values.shape == (6, 2) and not np.asarray(after.selected)[~np.isfinite(after.values).all(1)].any()


def test_c_morl_archive_drops_the_most_crowded(agent):
    archive = holding(agent, [[0, 10], [1, 9], [2, 8], [5, 5], [10, 0]])
    new = jax.tree.map(lambda x: x[:3] * 0 + 9, archive.policies)
    after = insert(archive, new, np.float32([[1.5, 8.5], [7, 3], [8, 2]]), ARGS)
    assert {k: v[0] for k, v in held(after).items()} == {
        (0, 10): 0,
        (10, 0): 4,
        (5, 5): 3,
        (7, 3): 9,
        (2, 8): 2,
        (8, 2): 9,
    }


def test_c_morl_rounds_go_on_from_new_policies_in_the_widest_gaps(agent):
    values = [[0, 10], [1, 9], [4, 6], [10, 0]]
    archive, chosen = select(holding(agent, values), ARGS)
    assert sorted(chosen.tolist()) == [0, 3]  # the ends, whose gaps are infinite
    archive, chosen = select(archive, ARGS)
    assert chosen.tolist() == [2, 1] and np.asarray(archive.selected).tolist() == [True] * 4 + [False] * 2
    _, chosen = select(archive, ARGS)
    assert sorted(chosen.tolist()) == [0, 3]  # again
    _, chosen = select(holding(agent, [[1, 1]]), ARGS)
    assert chosen.tolist() == [0, 0]


def test_c_morl_serves_a_preference_by_the_policy_with_the_highest_utility(agent):
    policies = jax.tree.map(lambda x: jnp.concatenate([x, x, x]), agent.learners)
    values = np.float32([[9, 0], [5, 5], [0, 9], *[[-np.inf] * 2] * 3])
    agent = agent.replace(archive=morl.Archive(policies, values, jnp.zeros(6, bool)))
    obs = np.float32([[0.3, -0.2, 1, 0], [0.3, -0.2, 0, 1], [0.3, -0.2, 0.5, 0.5]])
    for x, i, action in zip(obs, (0, 2, 1), morl.act(agent, obs, None, ARGS), strict=True):
        actor = jax.tree.map(lambda x, i=i: np.asarray(x[i]), policies.actor)
        close(action, mlp(actor, np.clip(x[None, :2] / np.sqrt(1 + 1e-8), -10, 10), activation=np.tanh)[0])


# ------------------------------------------------------------------------------------------ stages


def counting(limit: int) -> JaxEnv:
    """Observations count the steps since reset; objectives are 1, and 5 plus the first action; a time limit ends it."""
    obs = lambda t: jnp.stack([t, 1.0 - t, 0.3 + 0 * t, 0.7 + 0 * t]).astype(jnp.float32)  # noqa: E731

    def step(t, action, keys):
        return t + 1, obs(t + 1), jnp.stack([1.0, 5.0 + action[0]]), False, t + 1 >= limit

    return JaxEnv(lambda keys, params=None: (jnp.int32(0), obs(jnp.int32(0))), step, None)


def test_c_morl_compares_policies_by_discounted_returns_of_their_means(agent, learner):
    found = morl.discounted_returns(learner, agent.nets, ARGS, counting(3))
    seen = np.array([[0, 1], [1, 0], [2, -1]], np.float32)
    action = mlp(learner.actor, np.asarray(morl.normalize(learner, seen)), activation=np.tanh)
    close(found, [1.75, 8.75 + action[:, 0] @ [1, 0.5, 0.25]])


def same(before, after) -> bool:
    pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in pairs)


def test_c_morl_trains_for_all_preferences_and_then_from_the_archive(agent):
    """Rounds of 2 x 2 x 2 x 4 = 32 steps: one of the first stage, then one of the second."""
    one = jax.jit(partial(morl.train, env=counting(3), args=ARGS))
    first, info = one(agent, jax.random.split(jax.random.key(1), 32), start=0)
    assert not same(agent.learners, first.learners) and not first.archive.selected.any()
    assert float(info["margin"]) == 0 and np.asarray(first.learners.obs.count).tolist() == pytest.approx(
        [16, 16], abs=1e-3
    )
    assert 0 < np.isfinite(first.archive.values).all(1).sum() <= 6
    second, info = one(first, jax.random.split(jax.random.key(2), 32), start=32)
    assert same(first.learners, second.learners) and not same(first.archive.values, second.archive.values)
    assert float(info["margin"]) != 0
    assert (
        second.archive.policies.obs.count.max() > 8.5
    )  # two iterations have 8 steps: they go on from the first stage's


def test_c_morl_update_is_for_its_aim_and_relative_to_the_rounds_first_batch(agent, learner):
    envs = jax.jit(lambda key: morl.begin_envs(counting(3), key, 2))(jax.random.key(0))
    _, steps = jax.jit(lambda key: morl.collect(learner, envs, key, agent.nets, ARGS, counting(3)))(jax.random.key(3))
    assert steps.batch.reward.shape == (2, 2, 2) and steps.batch.obs[0].tolist() == [[0, 1]] * 2
    update = jax.jit(lambda first, aim: morl.update(learner, steps, first, aim, jax.random.key(4), agent.nets, ARGS))
    aims = [morl.Aim(jnp.eye(2)[i], kept) for i, kept in ((0, jnp.zeros(2)), (1, jnp.zeros(2)), (1, jnp.eye(2)[0]))]
    none = jnp.full(2, jnp.nan)
    (a, first, _), (b, *_), (c, *_) = (update(none, aim) for aim in aims)
    assert np.isfinite(first).all() and not same(a.actor, b.actor) and not same(b.actor, c.actor)
    again, kept, info = update(first + 5, aims[2])
    np.testing.assert_array_equal(kept, first + 5)
    assert float(info["margin"]) < 0  # what had returned 5 more would be violated
    assert not same(c.actor, again.actor) and float(a.obs.count) == pytest.approx(10, abs=1e-3)


def test_c_morl_indicators_are_of_the_policies_there_are():
    values = np.float32([[[1, 3], [2, 2], [-np.inf] * 2], [[-np.inf] * 2] * 3])
    found = morl.indicators(values, dataclasses.replace(ARGS, reference_point=(0.0, 1.0)))
    assert found["hypervolume"].tolist() == [3, 0] and found["policies"].tolist() == [2, 0]
    assert found["sparsity"].tolist() == [2, 0]
    w = np.arange(101) / 100
    np.testing.assert_allclose(found["expected_utility"], [np.maximum(w + 3 * (1 - w), 2).mean(), 0.5])
    # (the second lane's archive is empty: the reference point's own mean utility)


def test_c_morl_refuses_what_does_not_fit():
    args = morl.checked(dataclasses.replace(ARGS, steps_per_iteration=3, env_steps=33, log_every=1), 2)
    assert (args.steps_per_iteration, args.init_steps, args.env_steps, args.log_every) == (4, 32, 64, 32)
    with pytest.raises(InputError, match="2 numbers for 3 objectives"):
        morl.checked(ARGS, 3)
    with pytest.raises(InputError, match="4 policies x 2 iterations is no whole number .* first stage's 6 policies"):
        morl.checked(dataclasses.replace(ARGS, weight_divisions=5), 2)
    with pytest.raises(InputError, match="--n-batches 5 is more than an iteration's 4"):
        morl.checked(dataclasses.replace(ARGS, n_batches=5), 2)


@pytest.mark.parametrize("name", ["barrier_sharpness", "least_margin"])
def test_c_morl_refuses_a_barrier_that_would_push_down(name):
    for wrong in (0.0, -1.0, (1.0, -1.0)):
        with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} must be above 0, not "):
            morl.checked(dataclasses.replace(ARGS, **{name: wrong}), 2)
