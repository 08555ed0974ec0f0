"""HyGLOW against plain numpy: the mixture of data, density ratios, clipped average residuals, both objectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from environments.combination_lock import Lock
from jobs import small
from reference import close, compiled

from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"horizon": 8, "episodes_per_round": 1, "critic_updates": 3, "n_policies": 3}

hyglow, jitted = load("hyglow"), compiled("hyglow")
H, S, A, K = 3, 3, 4, 5
TABULAR = Lock(H, tabular=True, num_actions=A)
ARGS = hyglow.Args(horizon=H, n_policies=K, ratio_penalty=0.2, critic_updates=4)
SPEC = Spec((S + 1,), A, True)


def rows(n, seed):
    """Of which steps follow each other: the next state of a row is the state of the next step's."""
    r = np.random.default_rng(seed)
    state = r.integers(S, size=(H + 1, n))
    return Batch(
        obs=jnp.eye(S)[state[:-1]],
        action=jnp.asarray(r.integers(A, size=(H, n))),
        reward=jnp.float32(r.random((H, n))),
        next_obs=jnp.eye(S)[state[1:]],
    )


OLD, NEW = rows(30, 0), rows(8, 1)


def counted(rows):
    return jitted.count(rows, jnp.ones(rows.reward.shape[1]), A)


def mixed(mode="hybrid"):
    return jitted.mixture(counted(OLD), counted(NEW), dataclasses.replace(ARGS, mode=mode))


def as_rows(mode):
    """[(h, s, a, r, s', weight)] of the mixture."""
    share = {"hybrid": (0.5, 0.5), "online": (0.0, 1.0), "offline": (1.0, 0.0)}[mode]
    for data, w in ((OLD, share[0] / 30), (NEW, share[1] / 8)):
        s, t = np.asarray(data.obs.argmax(-1)), np.asarray(data.next_obs.argmax(-1))
        action, reward = np.asarray(data.action), np.asarray(data.reward)
        for h in range(H):
            for i in range(s.shape[1]):
                yield h, s[h, i], action[h, i], float(reward[h, i]), t[h, i], w


def model_numpy(mode="hybrid"):
    mu, following = np.zeros((H, S, A)), np.zeros((H, S, A, S))
    for h, s, a, _, t, w in as_rows(mode):
        mu[h, s, a] += w
        following[h, s, a, t] += w
    return mu, following


def ratios_numpy(policy, clip):
    mu, following = model_numpy()
    state, d = mu[0].sum(-1), np.zeros((H, S, A))
    for h in range(H):
        d[h] = state[:, None] * policy[h]
        model = np.divide(following[h], mu[h][..., None], out=np.zeros((S, A, S)), where=mu[h][..., None] > 0)
        state = np.einsum("sa,sat->t", d[h], model)
    return np.clip(np.divide(d, mu, out=np.zeros_like(d), where=mu > 0), -clip, clip)


def violations_numpy(f, policies, clip, args):
    """Row by row."""
    mu, _ = model_numpy()
    greedy = np.eye(A)[f.argmax(-1)]
    weights = [ratios_numpy(p, clip) for p in [*policies, greedy]]
    for h, s, a in np.ndindex(H, S, A):
        if mu[h, s, a] > 0:
            single = np.zeros((H, S, A))
            single[h, s, a] = min(1 / mu[h, s, a], clip)
            weights.append(single)
    mixed_rows = list(as_rows("hybrid"))
    found, v = np.full(H, -np.inf), np.concatenate([f.max(-1), np.zeros((1, S))])
    for w in weights:
        mean, square = np.zeros(H), np.zeros(H)
        for h, s, a, reward, t, weight in mixed_rows:
            mean[h] += weight * w[h, s, a] * (f[h, s, a] - reward - v[h + 1, t])
            square[h] += weight * w[h, s, a] ** 2
        found = np.maximum(found, np.abs(mean) - args.ratio_penalty / clip * square)
    return found


@pytest.fixture(scope="module")
def agent():
    return jax.device_get(jitted.init(jax.random.key(0), ARGS, SPEC))


@pytest.mark.parametrize("mode", ("hybrid", "online", "offline"))
def test_both_kinds_of_data_weigh_equally(mode):
    data = mixed(mode)
    mu, following = model_numpy(mode)
    close(data.visits, mu)
    close(data.following, following)
    close(data.visits.sum((-2, -1)), np.ones(H))
    none = jax.tree.map(jnp.zeros_like, counted(NEW))
    first = jitted.mixture(counted(OLD), none, ARGS)  # before anything is collected
    close(first.visits.sum((-2, -1)), np.ones(H))
    no_data = jitted.mixture(none, counted(NEW), ARGS)
    close(no_data.visits.sum((-2, -1)), np.ones(H))


def test_a_share_of_the_dataset_is_its_first_rows():
    some = jitted.start(dataclasses.replace(ARGS, offline_fraction=0.5), OLD, A)
    close(some.visits, counted(jax.tree.map(lambda x: x[:, :15], OLD)).visits)


def test_ratios_are_of_the_empirical_model_and_clipped(agent):
    policy = np.asarray(agent.policies[0])
    for clip in (1.5, 100.0):
        close(jitted.ratios(agent.policies[0], mixed(), clip), ratios_numpy(policy, clip))
    assert ratios_numpy(policy, 100.0).max() > 1.5
    assert (agent.policies.sum(-1) == 1).all() and len({p.tobytes() for p in np.asarray(agent.policies)}) == K


@pytest.mark.parametrize("clip", (1.5, 100.0))
def test_what_the_weights_find_and_both_objectives(agent, clip):
    f, data = jnp.float32(np.random.default_rng(2).random((H, S, A))), mixed()
    weights = jax.jit(jax.vmap(hyglow.ratios, (0, None, None)))(agent.policies, data, clip)
    found = violations_numpy(np.float64(f), np.asarray(agent.policies), clip, ARGS)
    close(jitted.violations(f, weights, data, clip, ARGS), found)
    first = data.visits[0].sum(-1)
    loss, info = jitted.critic_loss(f, weights, data, first, clip, ARGS)
    close(loss, found.sum())
    promise = float(model_numpy()[0][0].sum(-1) @ np.asarray(f[0].max(-1)))
    glow = dataclasses.replace(ARGS, optimistic=True, residual_bound=float(np.median(found)), residual_weight=3.0)
    loss, info = jitted.critic_loss(f, weights, data, first, clip, glow)
    close(loss, 3.0 * np.maximum(found - np.median(found), 0).sum() - promise)
    close(info["promise"], promise)


def test_the_residual_of_the_exact_values_is_nothing():
    """On the lock's own transitions, whichever the weights: data that are the exact model."""
    transition, reward, start = TABULAR.tables()
    q, v = np.zeros((H, S, A)), np.zeros(S)
    for h in reversed(range(H)):
        q[h] = reward[h] + transition[h] @ v
        v = q[h].max(-1)
    mu = np.full((H, S, A), 1 / (S * A))
    data = hyglow.Counts(*(jnp.float32(x) for x in (mu, mu * reward, mu[..., None] * transition)))
    close(jitted.residual(jnp.float32(q), data), np.zeros((H, S, A)))
    assert np.abs(jitted.residual(jnp.float32(q + 0.1), data)).max() > 0.005
    exact = [jnp.float32(x) for x in (transition, reward, start)]
    close(hyglow.policy_value(hyglow.greedy(jnp.float32(q)), *exact), start @ v)


def test_a_round_goes_on_from_the_last_one_but_glow_from_the_top(agent):
    data = mixed()
    new, info = jitted.update(agent, data, ARGS)
    assert new.rounds == 1 and new.critic_opt[0].count == 4
    again, info = jitted.update(new, data, ARGS)
    assert again.critic_opt[0].count == 8
    close(info["clip"], 2.0 * 2**0.5)
    assert np.abs(new.critic - agent.critic).max() <= 4 * 0.021 and (new.critic >= 0).all()
    glow, _ = jitted.update(agent, data, dataclasses.replace(ARGS, optimistic=True))
    assert glow.critic.min() >= 1 - 4 * 0.021 and glow.critic.max() <= 1
    untried = np.asarray(data.visits) == 0
    assert untried[0].any() and (np.asarray(glow.critic)[0][untried[0]] == 1).all()


def test_the_greedy_policy_plays_and_acts(agent):
    rows = jitted.play(agent.critic, jax.random.key(1), dataclasses.replace(ARGS, episodes_per_round=6), TABULAR)
    state, f = np.asarray(rows.obs.argmax(-1)), np.asarray(agent.critic)
    np.testing.assert_array_equal(rows.action, f[np.arange(H)[:, None], state].argmax(-1))
    np.testing.assert_array_equal(rows.obs[1:], rows.next_obs[:-1])
    obs = jnp.c_[jnp.eye(S), jnp.array([0.0, 2.0, 1.0])]
    np.testing.assert_array_equal(jitted.act(agent, obs, None, ARGS), f[[0, 2, 1], [0, 1, 2]].argmax(-1))


@pytest.mark.parametrize("clip", [0.0, -1.0, (2.0, 0.0)])
def test_a_bound_that_leaves_no_ratio_is_refused(clip, data_for, tmp_path):
    with pytest.raises(InputError, match=r"^--density-clip must be above 0, not "):
        hyglow.main(small("hyglow", data_for("hyglow"), tmp_path / "run", density_clip=clip))


@pytest.mark.parametrize("fraction", [0.0, (1.0, 1e-4)])
def test_offline_without_rows_is_refused(fraction, data_for, tmp_path):
    with pytest.raises(InputError, match=r"^--mode offline --offline-fraction .*: none of \d+ rows is there"):
        job = {"mode": "offline", "offline_fraction": fraction}
        hyglow.main(small("hyglow", data_for("hyglow"), tmp_path / "run", **job))
