"""bisimulation_history: its losses and its network in plain numpy; its distances on an MDP whose metric is exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close, mlp
from scipy.special import logsumexp
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError
from shared.sequences import Window
from shared.task import Spec

SMALL = {"window_steps": 3, "recurrent_dim": 8}
B, K, A, Z, H = 3, 4, 3, 2, 5
TINY = {"batch_size": B, "window_steps": K, "recurrent_dim": H, "latent_dim": Z, "hidden_dims": (6,), "discount": 0.9}


@pytest.fixture(scope="module")
def module():
    return load("bisimulation_history")


@pytest.fixture(scope="module")
def args(module):
    return module.Args(**TINY, cql_alpha=0.7, bisimulation_weight=0.3)


@pytest.fixture(scope="module")
def agent(module, args):
    return agent_of(module, args, Spec((2,), A, True), seed=4)


@pytest.fixture(scope="module")
def window():
    """Windows of which the first two begin with padding; a terminal at the end of one."""
    r = np.random.default_rng(0)
    mask = np.float32([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    obs = r.normal(size=(B, K + 1, 2)).astype(np.float32) * np.c_[mask, np.ones(B)][..., None].astype(np.float32)
    return Window(
        mask=mask,
        timestep=np.zeros((B, K), np.int32),
        obs=obs[:, :-1],
        next_obs=obs[:, 1:],
        action=(r.integers(0, A, (B, K)) * mask).astype(np.int32),
        reward=(r.normal(size=(B, K)) * mask).astype(np.float32),
        terminal=np.float32([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]),
    )


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def representations(params, window) -> np.ndarray:
    """[B, K + 1, Z], step by step."""
    p, found = params["params"], []
    for b in range(len(window.mask)):
        h, last = np.zeros(H), np.zeros(A)
        for t in range(K + 1):
            if t == K or window.mask[b, t]:
                x = np.concatenate([window.next_obs[b, -1] if t == K else window.obs[b, t], last])
                reset, keep = np.split(sigmoid(dense(p["cell"]["Dense_0"], np.concatenate([x, h]))), 2)
                new = np.tanh(dense(p["cell"]["Dense_1"], np.concatenate([x, reset * h])))
                h = keep * h + (1 - keep) * new
            if t < K and window.mask[b, t]:
                last = np.eye(A)[window.action[b, t]]
            found.append(dense(p["Dense_0"], h))
    return np.array(found).reshape(-1, K + 1, Z)


def predicted(params, z, action):
    out = mlp(params, z).reshape(*z.shape[:-1], A, 1 + 2 * Z)
    out = np.take_along_axis(out, action[..., None, None], axis=-2)[..., 0, :]
    return out[..., 0], out[..., 1 : 1 + Z], np.exp(np.clip(out[..., 1 + Z :], -5, 2))


def test_a_history_is_read_step_by_step_and_knows_the_last_action(module, agent, window, args):
    found = jax.jit(module.encode)(agent, agent.history, window, args)
    mask = np.c_[window.mask, np.ones(B)] > 0
    close(np.asarray(found)[mask], representations(agent.history, window)[mask])


def test_the_policy_reads_an_episode_as_the_windows_do(module, agent, window, args):
    z = representations(agent.history, window)[2]
    start = module.initial_carry(agent, args)
    carry = jax.tree.map(lambda x: x[None], start)
    act = jax.jit(module.act)
    for t in range(K):
        action, carry = act(agent, carry, window.obs[2, t][None], np.zeros(1), None, args)
        assert int(action[0]) == mlp(agent.critic, z[t]).argmax()
        assert carry.action[0].tolist() == np.eye(A)[int(action[0])].tolist()
        carry = carry._replace(action=np.eye(A, dtype=np.float32)[window.action[2, t]][None])


def test_the_learner_is_discrete_cql_with_double_dqns_target(module, agent, window, args):
    z, slow = (representations(x, window) for x in (agent.history, agent.target_history))
    q, following = mlp(agent.critic, z[:, :-1]), mlp(agent.critic, z[:, 1:]).argmax(-1)
    target_q = np.take_along_axis(mlp(agent.target_critic, slow[:, 1:]), following[..., None], -1)[..., 0]
    y = window.reward + 0.9 * (1 - window.terminal) * target_q
    taken = np.take_along_axis(q, window.action[..., None], -1)[..., 0]
    valid = window.mask > 0
    bellman, gap = ((taken - y) ** 2)[valid].mean(), (logsumexp(q, -1) - taken)[valid].mean()
    found, info = module.rl_loss(agent.critic, agent, z, slow, window, args)
    close([found, info["gap"]], [bellman + 0.7 * gap, gap])


def test_the_model_predicts_rewards_and_representations_that_follow(module, agent, window):
    z, slow = (representations(x, window) for x in (agent.history, agent.target_history))
    reward, mean, std = predicted(agent.model, z[:, :-1], window.action)
    valid, follows = window.mask > 0, (window.mask > 0) & (window.terminal == 0)
    expected = ((reward - window.reward) ** 2)[valid].mean()
    expected -= norm.logpdf(slow[:, 1:], mean, std).sum(-1)[follows].mean()
    close(module.model_loss(agent.model, agent, z, slow, window)[0], expected)


@pytest.fixture(scope="module")
def graded(module, agent, window, args):
    """The whole loss and its gradient, compiled once; the pairs."""
    partner = np.random.default_rng(1).permutation(B * K)
    whole = jax.jit(jax.value_and_grad(module.loss, has_aux=True))

    def at(agent=agent, window=window, args=args, **changes):
        params, args = (agent.history, agent.critic, agent.model), dataclasses.replace(args, **changes)
        return whole(params, agent, window, partner, args)

    return at, partner


def test_pairs_are_compared_under_the_first_ones_action(agent, window, graded):
    (loss, info), _ = graded[0]()
    z, slow = (representations(x, window)[:, :-1].reshape(-1, Z) for x in (agent.history, agent.target_history))
    partner, action, valid, total = graded[1], window.action.ravel(), window.mask.ravel() > 0, []
    assert (partner == np.arange(B * K)).sum() < 4
    for i, j in enumerate(partner):
        if valid[i] and valid[j]:
            one, other = (predicted(agent.model, slow[k], action[i]) for k in (i, j))
            apart = np.sqrt(((one[1] - other[1]) ** 2 + (one[2] - other[2]) ** 2).sum())
            total.append((np.linalg.norm(z[i] - z[j]) - abs(one[0] - other[0]) - 0.9 * apart) ** 2)
    np.testing.assert_allclose(info["bisimulation_loss"], np.mean(total), rtol=1e-3)
    (without, _), _ = graded[0](bisimulation_weight=0.0)
    np.testing.assert_allclose(loss - without, 0.3 * np.mean(total), rtol=1e-3)


@pytest.mark.long
def test_gradients_stop_where_they_should(module, agent, window, args, graded):
    """The model learns from its own loss alone; representations from the learner and the distances, not the model."""
    at, partner = graded
    _, grads = at()
    _, without = at(bisimulation_weight=0.0)
    jax.tree.map(np.testing.assert_array_equal, grads[2], without[2])
    jax.tree.map(np.testing.assert_array_equal, grads[1], without[1])
    slow = module.encode(agent, agent.target_history, window, args)
    rows = slow[:, :-1].reshape(-1, Z)
    action, valid = window.action.ravel(), window.mask.ravel() * window.mask.ravel()[partner]
    one, other = (module.predict(agent, agent.model, x, action) for x in (rows, rows[partner]))
    target = np.asarray(module.bisimulation_target(one, other, 0.9))

    def of_history(history):
        z = module.encode(agent, history, window, args)
        value, _ = module.rl_loss(agent.critic, agent, z, slow, window, args)
        return value + 0.3 * module.bisimulation_loss(z[:, :-1].reshape(-1, Z), partner, target, valid)

    expected = jax.jit(jax.grad(of_history))(agent.history)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads[0], expected)
    assert max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (grads[0], without[0])), strict=True)) > 1e-3


def test_padding_counts_nothing(window, graded):
    (loss, info), grads = graded[0]()
    junk = np.random.default_rng(2).normal(size=(B, K)) * (1 - window.mask)
    dirty = window._replace(
        obs=(window.obs + junk[..., None]).astype(np.float32),
        reward=(window.reward + junk).astype(np.float32),
        action=np.where(window.mask > 0, window.action, 2).astype(np.int32),
    )
    (other, _), others = graded[0](window=dirty)
    close(other, loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), others, grads)


def test_the_spread_of_representations_is_that_of_valid_steps(agent, window, graded):
    """Also where they are all the same, by a cell whose state is the same after every step and 0 before the first."""
    (_, info), _ = graded[0]()
    z = representations(agent.history, window)[:, :-1][window.mask > 0]
    close(info["latent_std"], np.sqrt(z.var(0).mean()))
    params = agent.history["params"]
    cell = jax.tree.map(jnp.zeros_like, params["cell"])
    cell["Dense_0"]["bias"] = jnp.repeat(jnp.float32([0.0, -100.0]), H)  # nothing is kept
    cell["Dense_1"]["bias"] = jnp.ones(H)
    history = {"params": {**params, "cell": cell}}
    z = representations(history, window)[:, :-1]
    assert np.ptp(z[window.mask > 0], axis=0).max() < 1e-6 < 0.1 < np.ptp(z, axis=(0, 1)).max()
    (_, info), _ = graded[0](agent=agent.replace(history=history))
    assert info["latent_std"] < 1e-5


# ------------------------------------------------------------------------------------ the metric


def test_the_distance_of_gaussians_is_the_wasserstein_distance(module):
    """In one dimension: the quantiles' distance, by quadrature."""
    levels = (np.arange(200_000) + 0.5) / 200_000
    quantiles = [norm.ppf(levels, 0.3, 0.5), norm.ppf(levels, -1.0, 2.0)]
    one = module.Predicted(np.float32(1.5), np.float32([0.3]), np.float32([0.5]))
    other = module.Predicted(np.float32(-0.5), np.float32([-1.0]), np.float32([2.0]))
    expected = 2.0 + 0.9 * np.sqrt(((quantiles[0] - quantiles[1]) ** 2).mean())
    np.testing.assert_allclose(module.bisimulation_target(one, other, 0.9), expected, rtol=1e-3)


REWARD = np.array([0.0, 0.2, 0.5, 1.0, 0.0, 0.2, 0.5, 1.0])
NEXT = np.array([1, 6, 3, 3, 5, 2, 7, 3])
"""A chain, twice: states 4 .. 7 mean what 0 .. 3 do, and lead to either."""


BOTH = np.r_[64 + np.arange(64), np.arange(64)]
"""Partners of the rows i, j of all pairs: each other."""


def exact(discount: float) -> np.ndarray:
    """[S, S] the fixed point of d(s, t) = |r(s) - r(t)| + gamma d(s', t')."""
    d = np.zeros((8, 8))
    for _ in range(500):
        d = np.abs(REWARD[:, None] - REWARD) + discount * d[NEXT][:, NEXT]
    return d


def pairs(module, z, discount):
    """Partner and target of all 64 pairs, the model being right."""
    i, j = np.divmod(np.arange(64), 8)
    one, other = (module.Predicted(REWARD[k], z[NEXT[k]], jnp.ones((64, z.shape[1]))) for k in (i, j))
    return i, j, module.bisimulation_target(one, other, discount)


def test_the_exact_metric_is_where_the_loss_is_nothing(module):
    """Here it is a distance on a line, on which each state stands where its value is."""
    value = np.zeros(8)
    for _ in range(500):
        value = REWARD + 0.6 * value[NEXT]
    z = jnp.float32(value[:, None])
    i, j, target = pairs(module, z, 0.6)
    np.testing.assert_allclose(target.reshape(8, 8), exact(0.6), atol=1e-5)
    rows, targets = jnp.concatenate([z[i], z[j]]), jnp.tile(target, 2)
    assert module.bisimulation_loss(rows, BOTH, targets, jnp.ones(128)) < 1e-6
    assert module.bisimulation_loss(2 * rows, BOTH, targets, jnp.ones(128)) > 0.1


def test_representations_that_descend_the_loss_reach_the_exact_metric(module):
    """Targets from a copy that follows, as target networks do; what means the same becomes one."""

    @jax.jit
    def descend(z):
        def loss(z, slow):
            i, j, target = pairs(module, slow, 0.6)
            return module.bisimulation_loss(jnp.concatenate([z[i], z[j]]), BOTH, jnp.tile(target, 2), jnp.ones(128))

        def step(_, now):
            z, slow = now
            z = z - 0.5 * jax.grad(loss)(z, slow)
            return z, slow + 0.05 * (z - slow)

        return jax.lax.fori_loop(0, 4000, step, (z, z))[0]

    z = np.asarray(descend(jnp.float32(np.random.default_rng(0).normal(size=(8, 3)))))
    found, right = np.linalg.norm(z[:, None] - z, axis=-1), exact(0.6)
    assert right[0, 4] == 0 and right[0, 3] > 0.5
    np.testing.assert_allclose(found, right, atol=0.05)


def test_no_more_episodes_than_there_are_and_no_longer_context(pendulum, tmp_path, module):
    with np.load(pendulum) as file:
        arrays = dict(file) | {"actions": np.arange(300) % 3}
    np.savez(pendulum, **arrays)  # ten episodes of thirty rows
    args = small("bisimulation_history", pendulum, tmp_path / "run", env="none", episodes=11)
    with pytest.raises(InputError, match=r"--episodes 11: .* has 10"):
        module.main(args)
    with pytest.raises(InputError, match="--window-steps 31: the longest episode of .* has 30 rows"):
        module.main(dataclasses.replace(args, window_steps=31))


def test_observations_are_normalised_by_the_episodes_that_are_trained_on(pendulum, tmp_path, module, monkeypatch):
    """The others are as if they were not there."""
    with np.load(pendulum) as file:
        arrays = dict(file) | {"actions": np.arange(300) % 3}
    np.savez(pendulum, **arrays)
    args = small("bisimulation_history", pendulum, tmp_path / "run", env="none", episodes=2)

    def seen(file, args, task, policy):
        raise RuntimeError(task.obs_mean, task.obs_std)

    monkeypatch.setattr(module, "Run", seen)
    with pytest.raises(RuntimeError) as raised:
        module.main(args)
    data = load_dataset(args)
    drawn = data.some_episodes(2).obs
    assert np.abs(drawn.mean(0) - data.obs.mean(0)).max() > 0.01
    np.testing.assert_allclose(raised.value.args, (drawn.mean(0), drawn.std(0) + 1e-3), rtol=1e-4)
