"""The hybrid actor-critic against plain numpy: counts, the optimistic fit, rare switches, resets, exact values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LOCK, load
from environments.combination_lock import Lock
from jobs import small
from reference import close

from shared.data import load_dataset
from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"horizon": 8}

hac = load("hybrid_actor_critic")
H, S, A, N = 3, 3, 4, 7
TABULAR = Lock(H, tabular=True, num_actions=A)
r = np.random.default_rng(0)
STATE, NEXT = r.integers(S, size=(2, H, N))
ACTION, REWARD = r.integers(A, size=(H, N)), r.random((H, N))
ROWS = Batch(obs=jnp.eye(S)[STATE], action=jnp.asarray(ACTION), reward=jnp.float32(REWARD), next_obs=jnp.eye(S)[NEXT])
WEIGHT = np.float32([1, 1, 0, 1, 1, 0, 1])
ARGS = hac.Args(horizon=H, bonus=0.3, ridge=0.5, softmax_lr=0.7)


def known():
    return hac.count(ROWS, jnp.asarray(WEIGHT), A)


def fit_numpy(args):
    """Row by row, with the least squares solved as such."""
    f = np.zeros((H + 1, S, A))
    for h in reversed(range(H)):
        phi = np.eye(S * A)[STATE[h] * A + ACTION[h]] * WEIGHT[:, None]
        y = REWARD[h] + f[h + 1].max(-1)[NEXT[h]]
        gram = phi.T @ phi + args.ridge * np.eye(S * A)
        w = np.linalg.solve(gram, phi.T @ y)
        bonus = args.bonus * np.sqrt(np.diag(np.linalg.inv(gram)))
        f[h] = np.clip(w + bonus, 0, H - h).reshape(S, A)
    return f[:H]


def test_counts_and_information():
    counts = known()
    visits = np.zeros((H, S, A))
    for h in range(H):
        for i in np.flatnonzero(WEIGHT):
            visits[h, STATE[h, i], ACTION[h, i]] += 1
    close(counts.visits, visits)
    close(counts.following.sum(-1), visits)
    logdet = [np.linalg.slogdet(np.diag(v.ravel()) + 0.5 * np.eye(S * A))[1] for v in visits]
    close(hac.information(counts, ARGS), logdet)


@pytest.mark.parametrize("bonus", (0.0, 0.3, 50.0))
def test_the_critic_is_least_squares_to_the_optimal_values_with_a_bonus(bonus):
    args = dataclasses.replace(ARGS, bonus=bonus)
    f = hac.fit(known(), args)
    close(f, fit_numpy(args))
    if bonus == 50.0:  # clipped
        assert (np.asarray(f) == np.arange(H, 0, -1)[:, None, None]).all()


def test_the_critic_is_fitted_rarely_and_resets_the_actor():
    agent, counts = hac.init(jax.random.key(0), ARGS, Spec((S + 1,), A, True)), known()
    close(jax.nn.softmax(agent.logits), np.full((H, S, A), 1 / A))
    first, info = hac.update(agent, counts, ARGS)
    f = fit_numpy(ARGS)
    close(first.logits, 0.7 * f)
    assert info["fits"] == 1
    stale = first.replace(critic=first.critic + 1.0)  # no fit: the critic stays as it is, the actor goes on
    second, info = hac.update(stale, counts, ARGS)
    close(second.logits, 0.7 * (2 * f + 1.0))
    assert info["fits"] == 1
    more = jax.tree.map(lambda x: 3 * x, counts)  # log det grows by more than log 2
    for reset, logits in ((True, 0.0), (False, 0.7 * (2 * f + 1.0))):
        third, info = hac.update(second, more, dataclasses.replace(ARGS, reset=reset))
        close(third.logits, logits + 0.7 * hac.fit(more, ARGS))
        assert info["fits"] == 2
    unchanged, info = hac.update(second, more, dataclasses.replace(ARGS, switch_factor=1e9))
    assert info["fits"] == 1


def test_policies_and_exact_values():
    transition, reward, start = TABULAR.tables()
    logits = jnp.asarray(r.normal(size=(H, S, A)), jnp.float32)
    agent = hac.Agent(critic=logits, logits=2 * logits, information=jnp.zeros(H), fits=jnp.float32(1))
    policy = np.exp(2 * np.float64(logits))
    policy /= policy.sum(-1, keepdims=True)
    close(jnp.exp(hac.log_policy(agent, ARGS)), policy)
    greedy = jnp.exp(hac.log_policy(agent, dataclasses.replace(ARGS, actor="greedy")))
    np.testing.assert_array_equal(greedy, np.eye(A)[np.asarray(logits).argmax(-1)])
    v = np.zeros(S)
    for h in reversed(range(H)):
        v = (policy[h] * (reward[h] + transition[h] @ v)).sum(-1)
    exact = [jnp.asarray(x, jnp.float32) for x in (policy, transition, reward, start)]
    close(hac.policy_value(*exact), start @ v)
    obs = jnp.float32([[1, 0, 0, 2], [0, 0, 1, 1]])
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.asarray(jax.vmap(lambda k: hac.act(agent, obs, k, ARGS))(keys))
    for i, (h, s) in enumerate(((2, 0), (1, 2))):
        np.testing.assert_allclose(np.bincount(drawn[:, i], minlength=A) / 4000, policy[h, s], atol=0.03)


def test_what_is_known_before_the_first_episode():
    for mode, fraction, rows in (("hybrid", 1.0, N), ("hybrid", 0.43, 3), ("offline", 1.0, N), ("online", 1.0, 0)):
        args = dataclasses.replace(ARGS, mode=mode, offline_fraction=fraction)
        counts = hac.start(args, ROWS, A)
        close(counts.visits, hac.count(ROWS, jnp.float32(np.arange(N) < rows), A).visits)


def test_an_episode_is_the_locks():
    rows = hac.play(jnp.log(jnp.full((H, S, A), 1 / A)), jax.random.key(3), TABULAR)
    assert rows.obs.shape == (H, 1, S) and (rows.obs.sum(-1) == 1).all()
    np.testing.assert_array_equal(rows.obs[1:], rows.next_obs[:-1])
    state, good = np.asarray(rows.obs[:, 0].argmax(-1)), TABULAR.correct()
    for h in range(H):
        right = state[h] < 2 and rows.action[h, 0] == good[h, state[h]]
        assert (rows.next_obs[h, 0, 2] == 0) == right


def test_a_lock_whose_states_are_not_seen_is_refused(tmp_path):
    import make

    make.make(LOCK, steps=160)
    args = hac.Args(dataset=LOCK)
    with pytest.raises(InputError, match="states are seen"):
        hac.lock_of(load_dataset(args).task, args)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ridge": (1.0, 0.0)}, "--ridge must be above 0, not (1.0, 0.0)."),
        ({"switch_factor": -2.0}, "--switch-factor must be above 0, not -2.0."),
        ({"switch_factor": 0.0}, "--switch-factor must be above 0, not 0.0."),
        (
            {"mode": "offline", "offline_fraction": 0.0},
            "--mode offline --offline-fraction 0.0: none of 20 rows is there.",
        ),
    ],
)
def test_what_divides_by_0_or_never_switches_is_refused(wrong, said, data_for, tmp_path):
    with pytest.raises(InputError) as error:
        hac.main(small("hybrid_actor_critic", data_for("hybrid_actor_critic"), tmp_path / "run", **wrong))
    assert str(error.value) == said
