"""The losses, weights and spoilt rows of ptr against plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, differences, log_std_of, mlp
from scipy.special import log_softmax
from scipy.stats import mannwhitneyu, norm

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"scorer_updates": 4, "spoil": "misattributed"}


def setting(**changes):
    ptr = load("ptr")
    args = ptr.Args(**{"hidden_dims": (8, 6), "latent_dim": 4, "batch_size": B, **changes})
    return ptr, args, agent_of(ptr, args)


def scale_of(ptr, size: int = 3):
    r = np.random.default_rng(5)
    return ptr.Scale(r.normal(size=5), r.uniform(0.5, 2, 5), r.normal(size=size), r.uniform(0.5, 2, size))


def logits(agent, batch, scale, temperature, consequence):
    """[B, B] cosine of what is expected of each row with what came of each other."""
    f = mlp(agent.scorer, (np.concatenate([batch.obs, batch.action], 1) - scale.mean) / scale.std)
    e = mlp(agent.features, (consequence - scale.consequence_mean) / scale.consequence_std)
    e = e - e.mean(0)
    f, e = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (f, e))
    return f @ e.T / temperature


def test_its_policy_is_that_of_behavior_retrieval():
    assert {"Actor", "act"}.isdisjoint(differences(load("ptr"), load("behavior_retrieval")))


@pytest.mark.long
@pytest.mark.parametrize("consequence", ["change", "next_obs"])
def test_the_scorer_is_to_find_each_rows_own_consequence(consequence, batch):
    ptr, args, agent = setting(score_temperature=0.3, consequence=consequence)
    scale = scale_of(ptr)
    came = batch.next_obs - batch.obs if consequence == "change" else batch.next_obs
    log_q = np.diag(log_softmax(logits(agent, batch, scale, 0.3, came), axis=1))
    loss, info = ptr.scorer_loss(agent.scorer, agent, batch, scale, args)
    close(loss, -log_q.mean())
    close(info["identified"], np.exp(log_q).mean())
    close(ptr.ratios(agent, batch, scale, args), B * np.exp(log_q))


def test_a_weight_is_the_clipped_ratio_mixed_with_one():
    ptr, args, _ = setting(mixing=0.25, score_power=2.0, lowest_score=0.5, highest_score=4.0)
    rho, clean = np.float32([0.1, 1.5, 3.0]), np.float32([0, 1, 1])
    close(ptr.weights(rho, clean, args), 0.75 + 0.25 * np.array([0.5, 2.25, 4.0]))
    close(ptr.weights(rho, clean, dataclasses.replace(args, mixing=0.0)), np.ones(3))
    close(ptr.weights(rho, clean, dataclasses.replace(args, trust="clean")), clean)


def test_the_policy_is_cloned_with_weights_that_sum_to_one(batch):
    ptr, args, agent = setting()
    weight = np.float32([0.1, 2.0, 0.0, 1.0, 0.4])
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    expected = -(weight / weight.sum() * log_prob).sum()
    close(ptr.actor_loss(agent.actor, agent, batch, weight, args)[0], expected)
    close(ptr.actor_loss(agent.actor, agent, batch, 7 * weight, args)[0], expected)
    assert np.isfinite(ptr.actor_loss(agent.actor, agent, batch, 0 * weight, args)[0])


@pytest.mark.long
def test_weights_do_not_touch_the_scorer_and_nothing_touches_the_features(batch):
    ptr, args, agent = setting(spoil="misattributed", mixing=0.9, score_temperature=0.5, scorer_lr=0.01, actor_lr=0.01)
    scale, clean = scale_of(ptr), np.float32([1, 1, 0, 1, 0])
    update = jax.jit(ptr.update)
    new, metrics = update(agent, batch, clean, scale, args)
    weight = np.asarray(ptr.weights(ptr.ratios(agent, batch, scale, args), clean, args))
    close(metrics["actor_loss"], ptr.actor_loss(agent.actor, agent, batch, weight, args)[0])
    close([metrics["weight_clean"], metrics["weight_spoilt"]], [weight[clean > 0].mean(), weight[clean < 1].mean()])
    error = ((np.tanh(mlp(agent.actor, batch.obs)) - batch.action) ** 2).mean(1)
    close([metrics["mse_clean"], metrics["mse_spoilt"]], [error[clean > 0].mean(), error[clean < 1].mean()])
    assert np.ptp(weight) > 0.01
    alone, _ = ptr.update_scorer(agent, batch, scale, args)
    uniform, _ = update(agent, batch, clean, scale, dataclasses.replace(args, mixing=0.0))
    jax.tree.map(lambda *x: np.testing.assert_allclose(*x, rtol=1e-5, atol=1e-6), new.scorer, alone.scorer)
    jax.tree.map(np.testing.assert_array_equal, new.scorer, uniform.scorer)
    jax.tree.map(np.testing.assert_array_equal, new.features, agent.features)
    moved = jax.tree.map(lambda *x: np.abs(np.subtract(*x)).max(), new.actor, uniform.actor)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_auc_is_the_share_of_pairs_in_order():
    ptr, r = load("ptr"), np.random.default_rng(0)
    score, clean = r.integers(0, 5, 60).astype(np.float32), (r.random(60) < 0.6).astype(np.float32)
    u = mannwhitneyu(score[clean > 0], score[clean < 1]).statistic
    close(ptr.auc(jnp.asarray(score), jnp.asarray(clean)), u / (clean.sum() * (60 - clean.sum())))


def test_rows_are_spoilt_as_said(pendulum):
    ptr, data = load("ptr"), load_dataset(pendulum)
    same, clean = ptr.spoilt(data, ptr.Args())
    assert same is data and clean.all()

    other, clean = ptr.spoilt(data, ptr.Args(spoil="misattributed", spoilt_share=0.4))
    assert 0.3 < 1 - clean.mean() < 0.5 and other.task.hash != data.task.hash
    for name in ("obs", "next_obs", "reward", "terminal"):
        np.testing.assert_array_equal(getattr(other, name), getattr(data, name))
    np.testing.assert_array_equal(other.action[clean], data.action[clean])
    assert (other.action[~clean] != data.action[~clean]).mean() > 0.9
    assert {*other.action[~clean].ravel()} <= {*data.action.ravel()}
    again, _ = ptr.spoilt(data, ptr.Args(spoil="misattributed", spoil_seed=1))
    assert (again.action != other.action).any() and other.task.options["spoil"] == "misattributed"

    other, clean = ptr.spoilt(data, ptr.Args(spoil="mirrored", spoilt_share=0.5))
    assert {*clean.reshape(10, 30).mean(1)} == {0.0, 1.0}  # whole episodes
    np.testing.assert_array_equal(other.action, data.action)
    for name in ("obs", "next_obs"):
        seen, was = getattr(other, name), getattr(data, name)
        np.testing.assert_array_equal(seen[clean], was[clean])
        np.testing.assert_allclose(seen[~clean] + was[~clean], 2 * np.tile(data.obs.mean(0), ((~clean).sum(), 1)), 1e-4)


def test_only_known_consequences_are_scored_each_with_its_own_flag(pendulum):
    ptr, data = load("ptr"), load_dataset(pendulum)
    clean = np.arange(300) % 3 != 0
    data = dataclasses.replace(data, successor=np.arange(300) % 30 != 29)
    data.obs[:, 2] = 0.5  # a column that does not vary is no more than centred
    args = ptr.Args(consequence="change", spoil="misattributed")
    logged = ptr.logged_of(data, clean, args)
    rows = np.flatnonzero(data.successor)
    np.testing.assert_array_equal(logged.clean, clean[rows])
    np.testing.assert_array_equal(logged.transitions.take(jnp.arange(290)).next_obs, data.next_obs[rows])
    change = (data.next_obs - data.obs)[rows]
    close(logged.scale.consequence_mean, change.mean(0))
    close(logged.scale.std[:2], data.obs[rows, :2].std(0))
    assert logged.scale.std[2] == 1.0
    flag = {tuple(o): c for o, c in zip(data.next_obs[rows], clean[rows], strict=True)}
    assert [flag[tuple(o)] for o in np.asarray(logged.compared.next_obs)] == (logged.compared_clean > 0).tolist()
    with pytest.raises(InputError, match="there are no consequences"):
        ptr.logged_of(dataclasses.replace(data, successor=np.zeros(300, bool)), clean, args)


@pytest.mark.long
def test_misattributed_actions_are_found():
    """A change that is the action but for a little noise; two of five rows have another row's action."""
    ptr, args, agent = setting(hidden_dims=(32,), latent_dim=16, batch_size=64, scorer_lr=1e-2)
    r = np.random.default_rng(0)
    obs, action = r.normal(size=(800, 3)), r.uniform(-1, 1, (800, 2))
    came = obs + np.concatenate([action, np.zeros((800, 1))], 1) + 0.05 * r.normal(size=(800, 3))
    clean = r.random(800) > 0.4
    action = np.where(clean[:, None], action, action[r.permutation(800)])
    batch = ptr.Batch(*(np.float32(x) if x is not None else None for x in (obs, action, None, None, came)))
    one = lambda size: np.ones(size, np.float32)  # noqa: E731
    scale = ptr.Scale(0 * one(5), one(5), 0 * one(3), one(3))

    @jax.jit
    def trained(agent, keys):
        def step(agent, key):
            rows = jax.random.randint(key, (64,), 0, 800)
            return ptr.update_scorer(agent, jax.tree.map(lambda x: jnp.asarray(x)[rows], batch), scale, args)

        return jax.lax.scan(step, agent, keys)[0]

    agent = trained(agent, jax.random.split(jax.random.key(0), 200))
    assert ptr.auc(ptr.ratios(agent, batch, scale, args), np.float32(clean)) > 0.8


@pytest.mark.long
def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    ptr = load("ptr")
    for dataset, changes, message in (
        (pendulum, {"score_temperature": 0.0}, "--score-temperature must be above 0"),
        (pendulum, {"lowest_score": (0.1, 60.0)}, "--lowest-score not above --highest-score"),
        (pendulum, {"lowest_score": (0.1, 10.0), "highest_score": (5.0, 50.0)}, "--lowest-score not above"),  # a grid
        (pendulum, {"lowest_score": (0.1, 6.0), "highest_score": (5.0, 6.0, 7.0)}, "--lowest-score not above"),
        (pendulum, {"lowest_score": -9.0, "highest_score": -3.0}, "--highest-score must be above 0"),
        (pendulum, {"batch_size": 1}, "--batch-size must be at least 2: the batch is the pool"),
        (pendulum, {"spoilt_share": 0.0}, "--spoilt-share 0: of either kind"),
        (pendulum, {"spoil": "mirrored", "spoilt_share": 1.0}, "--spoilt-share 1: of either kind"),
        (cartpole, {"spoil": "none"}, "needs continuous actions"),
        (
            cartpole,
            {"spoil": "none", "lowest_score": (0.1, 0.2), "highest_score": (0.2, 6.0, 7.0)},
            "needs continuous actions",
        ),
    ):
        with pytest.raises(InputError, match=message):
            ptr.main(small("ptr", dataset, tmp_path / "run", **changes))
