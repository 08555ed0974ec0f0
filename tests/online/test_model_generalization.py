"""The losses of model_generalization against numpy; rollouts, their weights, and what each kind of experience is."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import agent_of, close, mlp

from shared.env_models import exact_model
from shared.errors import InputError
from shared.task import Spec, env_task
from shared.transitions import Batch

SMALL = {"env": "ProcMazeSmall-v0", "imagined_steps": 2, "learning_starts": 4, "utd": 2, "copy_every": 0}

mg = load("model_generalization")
SPEC = Spec((4,), 3, True)
ARGS = mg.Args(
    hidden_dims=(8, 8), batch_size=6, imagined_steps=3, explore_temperature=0.5, utd=2, copy_every=3, critic_lr=0.01,
    model_lr=0.02, discount=0.8,
)  # fmt: skip
update_model, update_critic = jax.jit(mg.update_model), jax.jit(mg.update_critic)
model_loss = jax.jit(jax.value_and_grad(mg.model_loss, has_aux=True), static_argnums=1)
critic_loss = jax.jit(jax.value_and_grad(mg.critic_loss, has_aux=True))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def agent():
    return agent_of(mg, ARGS, SPEC)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Six transitions, two of them terminal."""
    r = np.random.default_rng(0)
    return Batch(
        obs=r.integers(0, 2, (6, 4)).astype(np.float32),
        action=np.int32([0, 1, 2, 2, 1, 0]),
        reward=r.normal(size=6).astype(np.float32),
        terminal=np.float32([0, 1, 0, 0, 1, 0]),
        next_obs=r.integers(0, 2, (6, 4)).astype(np.float32),
    )


def part(agent, name, obs, action):
    return mlp({"params": agent.model["params"][name]}, obs, np.eye(3)[action], activation=elu)


def q_of(critic, obs):
    return mlp(critic, obs, activation=elu)


def test_the_models_loss_is_three_likelihoods_and_terminal_rows_have_no_next_observation(agent, batch):
    loss_of = lambda batch: model_loss(agent.model, agent.nets.model, batch)[0]  # noqa: E731
    loss, _ = loss_of(batch)
    reward, goes_on = (part(agent, name, batch.obs, batch.action)[:, 0] for name in ("reward", "goes_on"))
    p = sigmoid(part(agent, "next_obs", batch.obs, batch.action))
    end = -np.where(batch.terminal > 0, np.log(1 - sigmoid(goes_on)), np.log(sigmoid(goes_on)))
    bits = -np.where(batch.next_obs > 0, np.log(p), np.log(1 - p)).sum(1)
    close(loss, ((batch.reward - reward) ** 2 / 2 + end + np.where(batch.terminal > 0, 0, bits)).mean())
    likelier = np.where((np.arange(6) > 0)[:, None], p > 0.5, 1 - (p > 0.5))  # row 0 wrong in all bits
    close(loss_of(batch._replace(next_obs=np.float32(likelier)))[1]["foreseen"], 3 / 4)
    elsewhere = batch._replace(next_obs=np.where(batch.terminal[:, None] > 0, 1 - batch.next_obs, batch.next_obs))
    close(loss_of(elsewhere)[0], loss)


def test_q_regresses_on_the_target_network_by_weights_and_probabilities_of_the_end(agent, batch):
    weight, terminal = np.float32([1, 0.5, 0, 1, 0.2, 1]), np.float32([0, 1, 0.5, 0.25, 0, 1])
    rows = batch._replace(terminal=terminal)
    (loss, info), grads = critic_loss(agent.critic, agent, rows, weight, ARGS)
    y = rows.reward + 0.8 * (1 - terminal) * q_of(agent.target_critic, rows.next_obs).max(1)
    q = q_of(agent.critic, rows.obs)[np.arange(6), rows.action]
    close(loss, (weight * (q - y) ** 2).mean())
    close(info["q"], q.mean())
    # a gradient through Q(s, a) alone: of the last bias, 2 w (Q - y) where the action was taken
    expected = [(2 * weight * (q - y) * (rows.action == a)).sum() / 6 for a in range(3)]
    close(grads["params"]["Dense_2"]["bias"], expected)


def test_a_step_is_adams_and_weights_lose_a_millionth_whatever_its_size(agent, batch):
    """Of the model, and of Q, whose target is its copy after every third update."""
    grads = model_loss(agent.model, agent.nets.model, batch)[1]
    new, _ = update_model(agent, batch, ARGS)
    step = lambda p, g: p - 0.02 * g / (np.abs(g) + 1e-5) - 1e-6 * p  # noqa: E731
    jax.tree.map(lambda p, g, now: close(now, step(np.float64(p), np.float64(g))), agent.model, grads, new.model)
    assert same(new.critic, agent.critic)
    still = update_model(agent, batch, dataclasses.replace(ARGS, model_lr=0.0))[0].model
    jax.tree.map(lambda p, now: np.testing.assert_allclose(now - p, -1e-6 * p, atol=1e-7), agent.model, still)
    assert not same(still, agent.model)

    now, ones = agent, np.ones(6, np.float32)
    for i in range(1, 4):
        now, _ = update_critic(now, batch, ones, ARGS)
        assert int(now.updates) == i and same(now.target_critic, now.critic if i == 3 else agent.target_critic)
    grads = critic_loss(agent.critic, agent, batch, ones, ARGS)[1]
    first, _ = update_critic(agent, batch, ones, ARGS)
    step = lambda p, g: p - 0.01 * g / (np.abs(g) + 1e-5) - 1e-6 * p  # noqa: E731
    jax.tree.map(lambda p, g, now: close(now, step(np.float64(p), np.float64(g))), agent.critic, grads, first.critic)
    slow, _ = update_critic(agent, batch, ones, dataclasses.replace(ARGS, copy_every=0, tau=0.1))
    jax.tree.map(
        lambda old, p, now: close(now, 0.9 * np.float64(old) + 0.1 * np.float64(p)),
        *(agent.target_critic, slow.critic, slow.target_critic),
    )


def test_rollouts_go_on_from_what_the_model_said_and_weigh_by_what_came_before(agent, batch):
    """Of a model that counts: observations rise by one, and the end has half of their first number's probability."""

    def count(obs, action, key):
        return obs + 1, obs[:, 1] * 10 + action, jnp.minimum(obs[:, 0] / 4, 1)

    obs = np.float32([[1, 0, 0, 0], [3, 5, 0, 0]])
    rows, weight = jax.jit(partial(mg.rollouts, step=count, args=ARGS))(agent, obs, jax.random.key(2))
    assert rows.obs.shape == (6, 4) and weight.shape == (6,)
    steps = rows.obs.reshape(3, 2, 4)
    np.testing.assert_array_equal(steps, obs + np.arange(3)[:, None, None])
    np.testing.assert_array_equal(rows.next_obs, rows.obs + 1)
    close(rows.terminal, [1 / 4, 3 / 4, 2 / 4, 1, 3 / 4, 1])
    close(weight, [1, 1, 3 / 4, 1 / 4, 3 / 8, 0])
    close(rows.reward, rows.obs[:, 1] * 10 + rows.action)


def test_actions_are_drawn_of_the_softmax_over_q_in_rollouts_as_in_the_environment(agent):
    obs = np.float32([0, 1, 1, 0])
    logits = q_of(agent.critic, obs[None])[0] / 0.5
    p = np.exp(logits) / np.exp(logits).sum()
    stay = lambda obs, action, key: (obs, jnp.zeros(len(obs)), jnp.zeros(len(obs)))  # noqa: E731
    many = np.tile(obs, (4000, 1))
    rows, _ = jax.jit(partial(mg.rollouts, step=stay, args=ARGS))(agent, many, jax.random.key(0))
    for actions in (mg.explore(agent, many, jax.random.key(1), ARGS), rows.action):
        np.testing.assert_allclose([(np.asarray(actions) == a).mean() for a in range(3)], p, atol=0.03)
    assert mg.act(agent, obs[None], None, ARGS).tolist() == [p.argmax()]


def test_imagined_bits_are_drawn_by_the_sigmoid_of_their_logits(agent):
    many, action = np.tile(np.float32([0, 1, 1, 0]), (8000, 1)), np.full(8000, 2)
    next_obs, reward, terminal = jax.jit(mg.model_step)(agent, many, action, jax.random.key(3))
    assert {*np.unique(next_obs)} == {0.0, 1.0}
    np.testing.assert_allclose(next_obs.mean(0), sigmoid(part(agent, "next_obs", many[:1], [2]))[0], atol=0.025)
    close(reward[0], part(agent, "reward", many[:1], [2])[0, 0])
    close(terminal[0], 1 - sigmoid(part(agent, "goes_on", many[:1], [2])[0, 0]))


def test_each_kind_of_experience_is_as_many_transitions_of_its_own(agent, batch):
    """Rollouts begin at the first two of the six; only the learned model learns, and before it is used."""

    def exact(obs, action, key):
        return 1 - obs, obs[:, 0] - action, obs[:, 1] > 0

    made = jax.jit(partial(mg.experience, exact=exact))
    of = lambda kind: made(agent, batch, jax.random.key(4), dataclasses.replace(ARGS, experience=kind))  # noqa: E731
    now, rows, weight, info = of(0.0)
    assert same(rows, batch) and weight.tolist() == [1.0] * 6 and same(now, agent) and info["foreseen"] == 0

    now, rows, weight, _ = of(2.0)
    obs, action = np.asarray(rows.obs), np.asarray(rows.action)
    assert same(now, agent) and same(obs[:2], batch.obs[:2]) and same(obs[2:], rows.next_obs[:4])
    np.testing.assert_array_equal(rows.next_obs, 1 - obs)
    np.testing.assert_array_equal(rows.reward, obs[:, 0] - action)
    np.testing.assert_array_equal(rows.terminal, obs[:, 1])
    ended = np.float32([1 - obs[:2, 1], (1 - obs[:2, 1]) * (1 - obs[2:4, 1])]).ravel()
    close(weight, [1, 1, *ended])

    now, rows, weight, info = of(1.0)
    first = jax.tree.map(lambda x: x[:2], batch)
    better, expected = update_model(agent, first, ARGS)
    jax.tree.map(close, now.model, better.model)
    close(info["model_loss"], expected["model_loss"])
    assert (
        same(now.critic, agent.critic) and same(rows.obs[:2], batch.obs[:2]) and same(rows.obs[2:], rows.next_obs[:4])
    )
    close(rows.reward, part(now, "reward", rows.obs, np.asarray(rows.action))[:, 0])
    close(rows.terminal, 1 - sigmoid(part(now, "goes_on", rows.obs, np.asarray(rows.action))[:, 0]))
    assert rows.obs.shape == batch.obs.shape and weight[:2].tolist() == [1, 1] and (weight[2:] < 1).all()


def test_an_update_learns_from_each_of_its_batches_in_turn(agent, batch):
    args = dataclasses.replace(ARGS, experience=0.0)
    both = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch)
    new, info = jax.jit(mg.update)(agent, both, jax.random.key(0), args, 0)
    now, losses = agent, []
    for i in range(2):
        rows = jax.tree.map(lambda x, i=i: x[i], both)
        now, one = update_critic(now, rows, np.ones(6, np.float32), args)
        losses.append(one["critic_loss"])
    jax.tree.map(close, new.critic, now.critic)
    close(info["critic_loss"], np.mean(losses))
    assert int(new.updates) == 2 and same(new.model, agent.model)


@pytest.mark.parametrize(
    "env, changes, said",
    [
        ("CartPole-v1", {}, "observations of 0 and 1; those of CartPole-v1 are in"),
        ("ProcMaze-v0", {"batch_size": 7}, "--batch-size 7 is no multiple of --imagined-steps 3"),
        ("ProcMaze-v0", {"experience": (0.0, 1.5)}, "--experience is 0, 1 or 2, not"),
    ],
)
def test_what_does_not_go_together_is_refused(env, changes, said):
    with pytest.raises(InputError, match=said):
        mg.possible(env_task(env), dataclasses.replace(ARGS, **changes))


def test_only_an_environment_that_shows_its_state_is_a_perfect_model(monkeypatch):
    task, args = env_task("ProcMaze-v0"), dataclasses.replace(ARGS, experience=(1.0, 2.0))
    assert mg.possible(task, args)
    assert exact_model(task)
    monkeypatch.setattr(mg, "exact_model", lambda task: None)
    assert mg.possible(task, dataclasses.replace(args, experience=(0.0, 1.0))) is None
    with pytest.raises(InputError, match="the state of ProcMaze-v0 cannot be read off its observations"):
        mg.possible(task, args)
