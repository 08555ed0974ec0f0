"""The losses of dqn_offline against the same equations in plain numpy, and what its methods do to absent actions."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, mlp
from scipy.special import log_softmax, logsumexp

from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SIZES = {"hidden_dims": (8, 8), "batch_size": B}
SPEC = Spec((3,), 4, True)


@pytest.fixture
def dqn():
    return load("dqn_offline")


@pytest.fixture
def rows(batch):
    return batch._replace(action=np.int32([0, 3, 1, 2, 3]), next_action=None)


def agent_for(dqn, **settings):
    args = dqn.Args(**SIZES, **settings)
    return agent_of(dqn, args, SPEC, seed=2), args


def returns_of(critic, obs, n):
    return mlp(critic, obs).reshape(len(obs), 4, max(1, n))


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def target(agent, rows, n, double=True, allowed=None):
    q = returns_of(agent.critic if double else agent.target_critic, rows.next_obs, n).mean(-1)
    if allowed is not None:
        q = np.where(allowed, q, -np.inf)
    values = returns_of(agent.target_critic, rows.next_obs, n)[np.arange(B), q.argmax(1)]
    return rows.reward[:, None] + 0.9 * (1 - rows.terminal)[:, None] * values


def bellman(values, y):
    """Of quantiles [B, M], pair by pair."""
    n, total = values.shape[1], 0.0
    if n == 1:
        return huber(y - values).mean()
    for i in range(n):
        for j in range(n):
            u = y[:, j] - values[:, i]
            total = total + np.abs((2 * i + 1) / (2 * n) - (u < 0)) * huber(u) / n
    return total.mean()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("n", [0, 5])
def test_dqn_bellman_error_of_a_mean_and_of_quantiles(dqn, rows, n, double):
    agent, args = agent_for(dqn, method="none", n_quantiles=n, double=double, discount=0.9)
    rows = rows._replace(reward=3 * rows.reward)  # errors on both sides of 1
    agent = agent.replace(target_critic=jax.tree.map(jnp.negative, agent.critic))  # which prefers other actions
    y = target(agent, rows, n, double)
    values = returns_of(agent.critic, rows.obs, n)[np.arange(B), rows.action]
    close(dqn.critic_loss((agent.critic, None), agent, rows, args)[0], bellman(values, y))
    assert (np.abs(y - values) > 1).any() and (np.abs(y - values) < 1).any()
    other = target(agent, rows, n, not double)
    assert not np.allclose(y, other)


def test_dqn_quantiles_of_a_known_distribution_are_found(dqn):
    """The loss is least at the quantiles of the targets: four of ten numbers that lie far apart."""
    y = jnp.broadcast_to(10.0 * jnp.arange(10.0), (1, 10))

    @jax.jit
    def descend(theta):
        return jax.lax.fori_loop(0, 2000, lambda _, t: t - jax.grad(dqn.bellman_loss)(t, y), theta)

    theta = descend(jnp.zeros((1, 4)))
    expected = np.quantile(10.0 * np.arange(10), [0.125, 0.375, 0.625, 0.875], method="inverted_cdf")
    np.testing.assert_allclose(theta[0], expected, atol=1.5)


def test_dqn_cql_adds_the_soft_maximum_less_the_datas_q(dqn, rows):
    for n in (0, 5):
        agent, args = agent_for(dqn, method="cql", n_quantiles=n, cql_alpha=0.7, discount=0.9)
        values = returns_of(agent.critic, rows.obs, n)
        chosen, q = values[np.arange(B), rows.action], values.mean(-1)
        gap = (logsumexp(q, axis=1) - chosen.mean(-1)).mean()
        loss, info = dqn.critic_loss((agent.critic, None), agent, rows, args)
        close(loss, bellman(chosen, target(agent, rows, n)) + 0.7 * gap)
        close(info["gap"], gap)


def test_dqn_bcq_takes_only_actions_that_are_likely_beside_the_likeliest(dqn, rows):
    agent, args = agent_for(dqn, method="bcq", bcq_threshold=0.6, logit_weight=0.2, discount=0.9)
    log_prob = log_softmax(mlp(agent.behaviour, rows.next_obs), axis=1)
    allowed = np.exp(log_prob - log_prob.max(1, keepdims=True)) > 0.6
    assert 0 < allowed.sum() - B < 3 * B  # some of the others
    np.testing.assert_array_equal(dqn.allowed(agent, rows.next_obs, args), allowed)
    values = returns_of(agent.critic, rows.obs, 0)[np.arange(B), rows.action]
    logits = mlp(agent.behaviour, rows.obs)
    cloning = -log_softmax(logits, axis=1)[np.arange(B), rows.action].mean()
    expected = bellman(values, target(agent, rows, 0, allowed=allowed)) + cloning + 0.2 * (logits**2).mean()
    close(dqn.critic_loss((agent.critic, agent.behaviour), agent, rows, args)[0], expected)
    q = np.where(allowed, returns_of(agent.critic, rows.next_obs, 0)[..., 0], -np.inf)
    np.testing.assert_array_equal(dqn.act(agent, rows.next_obs, None, args), q.argmax(1))


@pytest.mark.parametrize("threshold, expected", [(0.0, 4), (1.0, 1)])
def test_dqn_bcq_thresholds_of_0_and_1_allow_all_and_the_likeliest(dqn, rows, threshold, expected):
    agent, args = agent_for(dqn, method="bcq", bcq_threshold=threshold)
    assert (np.asarray(dqn.allowed(agent, rows.obs, args)).sum(1) == expected).all()


def test_dqn_updates_then_moves_the_target(dqn, rows):
    agent, args = agent_for(dqn, method="bcq", tau=0.2)
    new, metrics = jax.jit(dqn.update)(agent, rows, args)
    close(metrics["critic_loss"], dqn.critic_loss((agent.critic, agent.behaviour), agent, rows, args)[0])
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)
    copies = dataclasses.replace(args, copy_every=2)
    step = jax.jit(dqn.update)
    first, _ = step(agent, rows, copies)
    second, _ = step(first, rows, copies)
    jax.tree.map(np.testing.assert_array_equal, first.target_critic, agent.target_critic)
    jax.tree.map(np.testing.assert_array_equal, second.target_critic, second.critic)


@pytest.mark.long
def test_dqn_absent_actions_are_preferred_without_bcq_and_cql(dqn):
    """A chain of five states, -1 a step, one action of two recorded: the other, of values near 0, seems better."""
    state = np.tile(np.arange(4), 8)
    obs, next_obs = np.eye(5, dtype=np.float32)[state], np.eye(5, dtype=np.float32)[state + 1]
    terminal = np.float32(state == 3)
    action, reward = np.zeros(32, np.int32), -np.ones(32, np.float32)
    batch = Batch(obs=obs, action=action, reward=reward, terminal=terminal, next_obs=next_obs)
    values = {}
    for method in ("none", "bcq", "cql"):
        args = dqn.Args(
            method=method, hidden_dims=(16,), batch_size=32, learning_rate=1e-2, tau=0.1, discount=1.0, cql_alpha=0.5
        )
        agent = dqn.init(jax.random.key(0), args, Spec((5,), 2, True))
        step = partial(dqn.update, batch=batch, args=args)
        agent = jax.jit(lambda a, step=step: jax.lax.scan(lambda a, _: (step(a)[0], None), a, None, 800)[0])(agent)
        chosen = np.asarray(dqn.act(agent, np.eye(5, dtype=np.float32)[:4], None, args))
        values[method] = mlp(agent.critic, np.eye(5)[:4])[:, 0]
        assert (chosen == 0).all() == (method != "none"), (method, chosen)
    np.testing.assert_allclose(values["bcq"], [-4, -3, -2, -1], atol=0.2)  # exact: steps to the end
    assert values["none"][0] > -3  # the absent action cuts the way short


def test_dqn_refuses_continuous_actions(dqn, pendulum, tmp_path):
    with pytest.raises(InputError, match="needs discrete actions"):
        dqn.main(small("dqn_offline", pendulum, tmp_path / "run"))


def test_dqn_settings_are_those_of_discrete_bcq_for_vectors(dqn):
    """discrete_BCQ/main.py of sfujim/BCQ, regular_parameters."""
    args = dqn.Args()
    assert (args.bcq_threshold, args.logit_weight, args.discount, args.tau) == (0.3, 0.01, 0.99, 0.005)
    assert (args.learning_rate, args.batch_size, args.hidden_dims, args.copy_every) == (3e-4, 64, (256, 256), 0)
