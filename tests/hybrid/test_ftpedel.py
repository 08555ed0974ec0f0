"""FTPEDEL against plain numpy: features, norms, elimination, the design, and what a dataset saves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from environments.combination_lock import Lock
from reference import close

from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"horizon": 8, "class_size": 6, "covered_steps": 0.25}

ftpedel = load("ftpedel")
H, S, A, N = 3, 3, 4, 10
LOCK = Lock(H, tabular=True, num_actions=A)
ARGS = ftpedel.Args(horizon=H, class_size=N, ridge=0.5, c_beta=0.1)
FIRST = jnp.array([0.5, 0.5, 0.0])
begin = jax.jit(
    lambda key, args, rows: ftpedel.start(ftpedel.init(key, args, Spec((S + 1,), A, True)), args, rows, LOCK)
)


def random_rows(n, seed):
    r = np.random.default_rng(seed)
    state = r.integers(S, size=(H + 1, n))
    return Batch(
        obs=jnp.eye(S)[state[:-1]],
        action=jnp.asarray(r.integers(A, size=(H, n))),
        reward=jnp.float32(r.random((H, n))),
        next_obs=jnp.eye(S)[state[1:]],
    )


ROWS = random_rows(30, 0)
KEYS = jax.random.split(jax.random.key(2), 150 * H)
KNOWN = ftpedel.count(ROWS, jnp.ones((H, 30)), A)


@pytest.fixture(scope="module")
def agent():
    return begin(jax.random.key(0), ARGS, ROWS)


def tables(rows, weight):
    """Row by row: visits, rewards, following."""
    visits, reward, following = np.zeros((H, S, A)), np.zeros((H, S, A)), np.zeros((H, S, A, S))
    for h, i in np.ndindex(*rows.reward.shape):
        s, a = int(rows.obs[h, i].argmax()), int(rows.action[h, i])
        visits[h, s, a] += weight[h, i]
        reward[h, s, a] += weight[h, i] * float(rows.reward[h, i])
        following[h, s, a, int(rows.next_obs[h, i].argmax())] += weight[h, i]
    return visits, reward, following


def features_of(policy, model):
    state, found = np.float64(FIRST), np.zeros((H, S, A))
    for h in range(H):
        for s, a in np.ndindex(S, A):
            found[h, s, a] = state[s] * policy[h, s, a]
        state = np.array([sum(found[h, s, a] * model[h, s, a, t] for s, a in np.ndindex(S, A)) for t in range(S)])
    return found


def model_of():
    visits, reward, following = tables(ROWS, np.ones((H, 30)))
    return following / np.maximum(visits, 1)[..., None], reward / np.maximum(visits, 1), visits


def test_counts_are_weighed_and_what_is_not_known_is_nothing():
    weight = np.random.default_rng(1).random((H, 30))
    for found, expected in zip(ftpedel.count(ROWS, jnp.float32(weight), A), tables(ROWS, weight), strict=True):
        close(found, expected)
    model, reward, visits = model_of()
    assert (visits == 0).any()
    close(ftpedel.estimates(KNOWN)[0], model)
    close(ftpedel.estimates(KNOWN)[1], reward)


def test_features_and_their_norms(agent):
    model, _, visits = model_of()
    policy = np.asarray(agent.policies[0])
    phi = features_of(policy, model)
    close(ftpedel.features(agent.policies[0], *(jnp.float32(x) for x in (model, FIRST))), phi)
    close(ftpedel.norms(jnp.float32(phi), KNOWN, ARGS), (phi**2 / (visits + 0.5)).sum((1, 2)))
    close(ftpedel.beta((N, H, S, A), ARGS), 0.1 * math.log(N * H * S * A / 0.1))


def test_policies_more_than_twice_the_accuracy_below_the_best_left_are_eliminated():
    left, values = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([0.5, 0.26, 0.24, 0.9])
    assert ftpedel.eliminate(left, values, 0.125).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("epoch, left, expected", [(3.0, 5, False), (4.0, 5, True), (1.0, 1, True), (1.0, 2, False)])
def test_it_ends_after_the_epoch_of_the_asked_accuracy_or_with_one_policy(epoch, left, expected):
    found = ftpedel.finished(jnp.float32(epoch), jnp.ones(left), dataclasses.replace(ARGS, accuracy=0.125))
    assert bool(found) == expected


def test_the_class_holds_the_best_policy_once_and_its_beginnings(agent):
    transition, reward, first = LOCK.tables()
    best = np.asarray(ftpedel.best_policy(jnp.float32(transition), jnp.float32(reward)))
    good = best[:, :2].argmax(-1)
    np.testing.assert_array_equal(good, LOCK.correct())
    same = (np.asarray(agent.policies) == best).all((2, 3))  # [N, H]
    assert [row.all() for row in same] == [False] * (N - 1) + [True]
    for i, row in enumerate(same):
        assert row[: i * H // (N - 1)].all()
    close(ftpedel.policy_value(jnp.float32(best), *(jnp.float32(x) for x in (transition, reward, first))), 1.0)


def test_the_designed_policy_goes_where_the_widest_one_is_not_known(agent):
    model, _, visits = model_of()
    phi = np.stack([features_of(np.asarray(p), model) for p in agent.policies])
    width = jnp.zeros(N).at[4].set(1.0)
    found = ftpedel.design(agent.policies, jnp.float32(phi), width, 1.0, jnp.float32(model), KNOWN, ARGS)
    found = np.asarray(found)
    np.testing.assert_array_equal(found[2], agent.policies[4, 2])
    reward = (phi[4, 1] / (visits[1] + 0.5)) ** 2  # at step 1
    value = reward.max(-1)
    reached = [s for s in range(S) if value[s] > 0]
    assert reached and [found[1, s].argmax() for s in reached] == [reward[s].argmax() for s in reached]
    np.testing.assert_array_equal(found[0].argmax(-1), (model[0] @ value).argmax(-1))


def exact_counts(n):
    """As if each pair had been tried n times, and had been the expectation."""
    transition, reward, _ = (jnp.float32(x) for x in LOCK.tables())
    return ftpedel.Counts(n * jnp.ones((H, S, A)), n * reward, n * transition)


def test_it_goes_on_as_far_as_the_data_carries(agent):
    update = jax.jit(ftpedel.update)
    new, metrics = update(agent.replace(known=exact_counts(1e6)), FIRST, ARGS)
    assert bool(ftpedel.finished(new.epoch, new.left, ARGS))
    transition, reward, first = (jnp.float32(x) for x in LOCK.tables())
    close(ftpedel.policy_value(new.output, transition, reward, first), 1.0)
    values = np.array([ftpedel.policy_value(p, transition, reward, first) for p in agent.policies])
    tolerance = 2.0 ** -(float(new.epoch) - 1)
    assert new.left.tolist() == [float(v >= 1 - 2 * tolerance) for v in values] and 0 < new.left.sum() < N
    # with less data: to the step and epoch whose width is over its accuracy
    fresh = begin(jax.random.key(0), ARGS, jax.tree.map(lambda x: x[:, :0], ROWS))
    new, metrics = update(fresh.replace(known=exact_counts(20.0)), FIRST, ARGS)
    model, _, _ = (np.asarray(x) for x in LOCK.tables())
    phi = np.stack([features_of(np.asarray(p), model) for p in fresh.policies])
    width = np.sqrt(0.1 * math.log(N * H * S * A / 0.1) * (phi**2 / 20.5).sum((2, 3)))
    epoch, h, left = 1, 0, np.ones(N)
    while (left * width[:, h]).max() <= 2.0**-epoch:
        h += 1
        if h == H:
            left, epoch, h = left * (values >= values[left > 0].max() - 2 * 2.0**-epoch), epoch + 1, 0
    assert (float(new.epoch), float(new.stage)) == (epoch, h) and epoch > 1
    close(metrics["width"], (left[:, None] * width).max())
    assert new.left.tolist() == left.tolist()


@pytest.mark.parametrize("mode, covered, expected", [("hybrid", 0.34, [30, 0, 0]), ("online", 1.0, [0, 0, 0])])
def test_the_dataset_covers_the_first_steps(mode, covered, expected):
    known = begin(jax.random.key(0), dataclasses.replace(ARGS, mode=mode, covered_steps=covered), ROWS).known
    assert known.visits.sum((1, 2)).tolist() == expected


@pytest.fixture(scope="module")
def trained():
    """{mode: (agent, its arguments)} after 150 episodes."""
    data = LOCK.offline_data(jax.random.key(1), 400, "trajectory")
    train, found = jax.jit(lambda agent, args: ftpedel.train(agent, KEYS, args, LOCK)), {}
    for mode, covered in (("hybrid", 1.0), ("online", 1.0), ("offline", 0.34)):
        args = dataclasses.replace(ARGS, mode=mode, covered_steps=covered, accuracy=0.25)
        found[mode] = train(begin(jax.random.key(0), args, data), args)[0], args
    return found


@pytest.mark.long
def test_a_dataset_saves_episodes_and_alone_is_not_enough(trained):
    exact = [jnp.float32(x) for x in LOCK.tables()]
    episodes = {mode: float(x[0].episodes) for mode, x in trained.items()}
    assert episodes["offline"] == 0 < episodes["hybrid"] < episodes["online"] < 150
    for mode, (agent, args) in trained.items():
        value = float(ftpedel.policy_value(agent.output, *exact))
        assert value == pytest.approx(1.0, abs=1e-5) if mode != "offline" else value < 0.9
        assert bool(ftpedel.finished(agent.epoch, agent.left, args)) == (mode != "offline")
        offline = {"hybrid": 400.0, "online": 0.0, "offline": 400.0}[mode]
        close(agent.known.visits[0].sum(), offline + episodes[mode])  # nothing is collected after the end
    assert trained["hybrid"][0].searched <= trained["online"][0].searched <= episodes["online"]
    assert trained["online"][0].searched > 0


def test_searched_counts_the_episode_that_was_needed_and_nothing_where_none_was():
    """What would be given out is good at once, or not yet: then one more episode is needed than there were."""
    data, exact = LOCK.offline_data(jax.random.key(1), 400, "trajectory"), [jnp.float32(x) for x in LOCK.tables()]
    known, ignorant = (
        begin(jax.random.key(0), dataclasses.replace(ARGS, covered_steps=share), data) for share in (1.0, 0.0)
    )
    assert (known.searched, ignorant.searched) == (0, 1)
    later = ignorant.replace(episodes=jnp.float32(5))
    assert ftpedel.searched(later, *exact, ARGS)[0] == 6
    assert ftpedel.searched(later.replace(output=known.output), *exact, ARGS)[0] == 1  # the first one was enough
    for mode in ("online", "offline"):  # no episode changes what is known offline
        args = dataclasses.replace(ARGS, mode=mode)
        metrics = jax.eval_shape(lambda agent, args=args: ftpedel.train(agent, KEYS, args, LOCK), known)[1]
        assert ("searched" in metrics) == (mode == "online")


def test_the_policy_that_would_be_given_out_acts(agent):
    obs = jnp.c_[jnp.eye(S), jnp.array([0.0, 2.0, 1.0])]
    expected = np.asarray(agent.output)[[0, 2, 1], [0, 1, 2]].argmax(-1)
    np.testing.assert_array_equal(ftpedel.act(agent, obs, None, ARGS), expected)
    rows = jax.jit(ftpedel.play, static_argnums=2)(agent.explorer, jax.random.key(3), LOCK)
    state = np.asarray(rows.obs.argmax(-1))[:, 0]
    np.testing.assert_array_equal(rows.action[:, 0], np.asarray(agent.explorer)[np.arange(H), state].argmax(-1))
    np.testing.assert_array_equal(rows.obs[1:], rows.next_obs[:-1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ridge": (0.1, 0.0)}, "--ridge must be above 0, not (0.1, 0.0)."),
        ({"c_beta": -1.0}, "--c-beta must be above 0, not -1.0."),
        ({"accuracy": 0.0}, "--accuracy must be above 0, not 0.0."),
        ({"class_size": 1}, "--class-size 1: the best policy and another one"),
        ({"mode": "offline", "covered_steps": (1.0, 0.0)}, "--mode offline --covered-steps (1.0, 0.0): none of "),
    ],
)
def test_what_could_never_end_or_has_nothing_to_decide_is_refused(wrong, said):
    with pytest.raises(InputError) as error:
        ftpedel.checked(dataclasses.replace(ARGS, **wrong))
    assert str(error.value).startswith(said)
    ftpedel.checked(ARGS)
