"""The losses of r_bve against the same equations in plain numpy, and what ranking does to actions without data."""

from functools import partial

import jax
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, mlp

from shared.errors import InputError
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions, TransitionsWithReturns

SIZES = {"hidden_dims": (8, 8), "batch_size": B}
SPEC = Spec((3,), 4, True)


@pytest.fixture
def r_bve():
    return load("r_bve")


@pytest.fixture
def rows(batch):
    action, next_action = np.int32([0, 3, 1, 2, 3]), np.int32([2, 2, 0, 1, 3])
    returns = np.float32([-1.0, 0.5, 2.0, 9.0, 0.0])
    return batch._replace(action=action, next_action=next_action, return_to_go=returns, reward=3 * batch.reward)


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def losses(agent, rows, args):
    """The Bellman error and the ranking loss."""
    q, at = mlp(agent.critic, rows.obs), np.arange(B)
    y = (
        rows.reward
        + args.discount * (1 - rows.terminal) * mlp(agent.target_critic, rows.next_obs)[at, rows.next_action]
    )
    weight = np.minimum(np.exp(rows.return_to_go / args.return_temperature), args.max_return_weight)
    ranking = 0.0
    for b in range(B):
        others = [max(q[b, i] - q[b, rows.action[b]] + args.margin, 0) ** 2 for i in range(4) if i != rows.action[b]]
        ranking += weight[b] / weight.mean() * sum(others) / B
    return huber(q[at, rows.action] - y).mean(), ranking


def test_r_bve_learns_the_behaviours_values_and_ranks_what_was_done(r_bve, rows):
    args = r_bve.Args(
        **SIZES, ranking_weight=0.7, margin=0.2, return_temperature=1.5, max_return_weight=5.0, discount=0.9
    )
    agent = agent_of(r_bve, args, SPEC, seed=2)
    bellman, ranking = losses(agent, rows, args)
    loss, info = r_bve.critic_loss(agent.critic, agent, rows, args)
    close([info["bellman_loss"], info["ranking_loss"], loss], [bellman, ranking, bellman + 0.7 * ranking])
    close(r_bve.return_weight(rows.return_to_go, args)[3] / r_bve.return_weight(rows.return_to_go, args)[4], 5.0)
    np.testing.assert_array_equal(r_bve.act(agent, rows.obs, None, args), mlp(agent.critic, rows.obs).argmax(1))


def test_r_bve_updates_then_moves_the_target(r_bve, rows):
    args = r_bve.Args(**SIZES, tau=0.2)
    agent = agent_of(r_bve, args, SPEC, seed=2)
    new, metrics = jax.jit(r_bve.update)(agent, rows, args)
    close(metrics["critic_loss"], r_bve.critic_loss(agent.critic, agent, rows, args)[0])
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)


def test_r_bve_returns_are_standardised_over_the_data_under_the_lanes_own_discount(r_bve):
    """Two discounts have other returns; a lane sees its own, with mean 0 and standard deviation 1."""
    table = Transitions(np.zeros((50, 10), np.float32), None, None, SPEC, (*FIELDS, "next_action"))
    returns = np.stack([np.zeros(50), np.arange(50.0)]).astype(np.float32)
    data = TransitionsWithReturns(table, np.float32([0.5, 0.9]), returns)
    own = r_bve.standardized(data, r_bve.Args(discount=0.9))
    close(own.return_to_go, [(np.arange(50) - 24.5) / np.arange(50).std()])
    close(r_bve.standardized(data, r_bve.Args(discount=0.5)).return_to_go, np.zeros((1, 50)))  # all alike: no NaN
    assert own.discounts.shape == (1,)


def test_r_bve_ranking_keeps_absent_actions_under_the_recorded_one(r_bve):
    """A chain of five states, -1 a step, one action of two recorded: Q of the other, near 0, would win without it."""
    state = np.tile(np.arange(4), 8)
    one_hot = np.eye(5, dtype=np.float32)
    action, ones = np.zeros(32, np.int32), np.ones(32, np.float32)
    batch = Batch(
        obs=one_hot[state], action=action, reward=-ones, terminal=np.float32(state == 3), next_obs=one_hot[state + 1],
        next_action=action, return_to_go=0 * ones,
    )  # fmt: skip
    chosen = {}
    for weight in (0.0, 0.5):
        sizes = {"hidden_dims": (16,), "batch_size": 32, "learning_rate": 1e-2, "tau": 0.1, "discount": 1.0}
        args = r_bve.Args(**sizes, ranking_weight=weight)
        agent = r_bve.init(jax.random.key(0), args, Spec((5,), 2, True))
        step = partial(r_bve.update, batch=batch, args=args)
        agent = jax.jit(lambda a, step=step: jax.lax.scan(lambda a, _: (step(a)[0], None), a, None, 600)[0])(agent)
        chosen[weight] = np.asarray(r_bve.act(agent, one_hot[:4], None, args))
        q = mlp(agent.critic, np.eye(5)[:4])[:, 0]
    assert (chosen[0.5] == 0).all() and not (chosen[0.0] == 0).all()
    np.testing.assert_allclose(q, [-4, -3, -2, -1], atol=0.3)


def test_r_bve_refuses_continuous_actions(r_bve, pendulum, tmp_path):
    with pytest.raises(InputError, match="needs discrete actions"):
        r_bve.main(small("r_bve", pendulum, tmp_path / "run"))
