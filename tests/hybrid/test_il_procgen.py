"""The losses of il_procgen against plain numpy; the memory's scores and order by hand; the kinds of imitation."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import agent_of, close, mlp
from scipy.special import log_softmax

from shared.errors import InputError
from shared.jax_envs import JaxEnv
from shared.task import Spec
from shared.transitions import Batch

SMALL = {
    "env": "", "eval_env": "PointMazesUnseen-v0", "cloning_updates": 8, "cloning_batch_size": 8, "n_envs": 2,
    "steps_per_iteration": 4, "ppo_epochs": 1, "batch_size": 4, "memory_size": 200, "count_cells": 64,
    "cloning_per_iteration": 2,
}  # fmt: skip

il = load("il_procgen")
B, A = 6, 3
SPEC = Spec((3,), A, True)
ARGS = il.Args(
    hidden_dims=(8, 8), cloning_batch_size=16, cloning_per_iteration=1, memory_size=12, count_cells=4096, n_envs=2,
    steps_per_iteration=8, ppo_epochs=1, batch_size=4, gae_lambda=0.8, discount=0.9, entropy_cost=0.3,
    value_coefficient=0.7, learning_rate=0.01, return_score=2.0, local_score=0.5, global_score=0.25,
)  # fmt: skip


gradient = jax.jit(jax.grad(il.cloning_loss, has_aux=True), static_argnums=1)
clone, first_memory = jax.jit(il.clone), jax.jit(il.first_memory, static_argnums=2)


def with_(**changes):
    return dataclasses.replace(ARGS, **changes)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def agent():
    return agent_of(il, ARGS, SPEC)


@pytest.fixture(scope="module")
def batch() -> Batch:
    r = np.random.default_rng(1)
    return Batch(obs=r.normal(size=(B, 3)).astype(np.float32), action=np.int32([0, 1, 2, 2, 1, 0]))


def adams_step(old, grad, new, scale=1.0):
    """`new` is what Adam's first step makes of `old`."""
    g = scale * np.float64(grad)
    close(new, old - 0.01 * g / (np.abs(g) + 1e-5))


def log_probs_of(agent, batch):
    every = log_softmax(mlp(agent.actor, batch.obs, activation=np.tanh), axis=1)
    return every, every[np.arange(len(every)), batch.action]


def test_the_actors_loss_is_the_clipped_surrogate_minus_the_entropy(agent, batch):
    r = np.random.default_rng(2)
    every, log_prob = log_probs_of(agent, batch)
    adv, old = r.normal(size=B).astype(np.float32), (log_prob + r.normal(scale=0.3, size=B)).astype(np.float32)
    ratio, a = np.exp(log_prob - old), (adv - adv.mean()) / (adv.std() + 1e-8)
    assert (np.abs(ratio - 1) > 0.2).any()
    entropy = -(np.exp(every) * every).sum(1).mean()
    expected = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean() - 0.3 * entropy
    loss, info = il.actor_loss(agent.actor, agent.nets.actor, batch, old, adv, ARGS)
    close(loss, expected)
    close(info["entropy"], entropy)


def test_the_values_error_is_the_larger_one_of_the_plain_and_the_clipped_mean(agent, batch):
    v = mlp(agent.value, batch.obs, activation=np.tanh)[:, 0]
    old = (v + np.linspace(-0.6, 0.5, B)).astype(np.float32)
    clipped = old + np.clip(v - old, -0.2, 0.2)
    for first in (0, 1):  # rows whose plain error is the larger one, and others: one mean, then the other is larger
        target = np.where(np.arange(B) % 3 == first, clipped, v).astype(np.float32)
        plain, other = (v - target) ** 2, (clipped - target) ** 2
        for near in (target, (v + clipped - target).astype(np.float32)):
            plain, other = (v - near) ** 2, (clipped - near) ** 2
            larger = max(plain.mean(), other.mean())
            close(il.value_loss(agent.value, agent.nets.value, batch, old, near, ARGS)[0], 0.7 * larger)
            assert np.maximum(plain, other).mean() > 1.01 * larger


def test_cloning_is_the_mean_negative_log_likelihood(agent, batch):
    every, log_prob = log_probs_of(agent, batch)
    loss, info = il.cloning_loss(agent.actor, agent.nets.actor, batch)
    close(loss, -log_prob.mean())
    close(info["cloned_accuracy"], (every.argmax(1) == batch.action).mean())


def test_an_episodes_score_is_its_return_its_distinct_states_and_their_rarity():
    state = np.uint32([7, 7, 5, 7, 9, 9])
    episode, reward = np.int32([0, 0, 0, 4, 4, 4]), np.float32([0, 0, 1, 0, 0.5, 0])
    seen = np.int32([4, 4, 1, 4, 9, 9])
    one = 2 * 1 + 0.5 * 2 / 3 + 0.25 * (1 / 2 + 1 / 2 + 1) / 3
    two = 2 * 0.5 + 0.5 * 2 / 3 + 0.25 * (1 / 2 + 1 / 3 + 1 / 3) / 3
    close(jax.jit(il.scores)(state, episode, reward, seen, ARGS), [one] * 3 + [two] * 3)


def test_states_are_told_apart_by_their_hundredths_and_in_whatever_place_they_differ():
    r = np.random.default_rng(0)
    obs = (r.integers(0, 2, (3000, 20)) + 0.5).astype(np.float32)
    found = np.asarray(il.hashed(jnp.asarray(obs)))
    assert len(np.unique(found)) == len(np.unique(obs, axis=0))
    np.testing.assert_array_equal(il.hashed(obs + 0.004), found)
    assert (np.asarray(il.hashed(obs + np.eye(20)[3] * 0.01)) != found).all()
    assert len(np.unique(found % 64)) == 64


def rows(score, mark) -> "il.Memory":
    score = np.float32(score)
    mark = np.full((len(score), 1), mark, np.float32) + np.arange(len(score))[:, None] / 10
    return il.Memory(mark, np.int32(mark[:, 0]), score, np.zeros(len(score), np.float32))


def test_the_best_rows_are_kept_and_of_equals_the_new_ones():
    old, new = rows([5, 3, 3, -np.inf], 10), rows([-np.inf, 3, 4], 20)
    found = il.ranked(old, new)
    assert found.score.tolist() == [5, 4, 3, 3]
    close(found.obs[:, 0], [10, 20.2, 20.1, 10.1])
    assert found.action.tolist() == [10, 20, 20, 10]


DEMOS = {
    "obs": np.float32([[0, 0, 0], [1, 0, 0], [0, 0, 0], [5, 0, 0]]),
    "action": np.int32([0, 1, 2, 1]),
    "reward": np.float32([0, 0, 0, 1]),
    "episode": np.int32([0, 0, 0, 1]),
}


def test_the_first_memory_is_the_demonstrations_best_episode_first_and_empty_with_rapid():
    found = first_memory(DEMOS, ARGS, SPEC)
    best, other = 2 + 0.5 + 0.25, 0.5 * 2 / 3 + 0.25
    close(found.score[:4], [best, other, other, other])
    assert (found.score[4:] == -np.inf).all() and int(il.remembered(found)) == 4
    assert found.obs[:4, 0].tolist() == [5, 0, 1, 0] and found.action[:4].tolist() == [1, 0, 1, 2]
    assert found.demonstrated[:4].tolist() == [1] * 4 and not found.demonstrated[4:].any()
    assert int(il.remembered(first_memory(DEMOS, with_(imitation=4.0), SPEC))) == 0


def loop_of(past_obs, past_ended) -> "il.Loop":
    """An empty memory, of one environment, after the steps that are given (zeros before them)."""
    obs, ended = np.zeros((4, 1, 3), np.float32), np.ones((4, 1), np.float32)
    if past_obs:
        obs[-len(past_obs) :, 0, 0], ended[-len(past_obs) :, 0] = past_obs, past_ended
    past = il.Past(obs, np.zeros((4, 1), np.int32), np.zeros((4, 1), np.float32), ended)
    counts = np.zeros(4096, np.int32)
    return il.Loop((), np.zeros((1, 3), np.float32), il.no_memory(12, SPEC), past, counts)


def steps_of(obs, reward, ended) -> "il.Steps":
    n = len(obs)
    seen = np.zeros((n, 1, 3), np.float32)
    seen[:, 0, 0] = obs
    action = np.arange(n, dtype=np.int32)[:, None]
    return il.Steps(
        Batch(obs=seen, action=action, reward=np.float32(reward)[:, None]), None, np.float32(ended)[:, None]
    )


remember = jax.jit(il.remember)


def test_an_episode_enters_when_it_ends_whole_also_where_it_began_earlier_and_never_again():
    """Two steps of the past belong to the first episode; the last episode has not ended yet."""
    loop = remember(loop_of([1, 2], [0, 0]), steps_of([1, 4, 4], [0, 1, 0], [1, 1, 0]), ARGS)
    assert int(il.remembered(loop.memory)) == 4
    seen = {1.0: 1, 4.0: 2}  # the agent's own steps count when they are made: the past's were before these
    rare = lambda states: np.mean([1 / np.sqrt(seen.get(s, 1)) for s in states])  # noqa: E731
    short, long = 2 + 0.5 + 0.25 * rare([4.0]), 0.5 * 2 / 3 + 0.25 * rare([1.0, 2.0, 1.0])
    close(loop.memory.score[:4], [short, long, long, long])
    assert loop.memory.obs[:4, 0].tolist() == [4, 1, 2, 1] and loop.memory.action[:4].tolist() == [1, 0, 0, 0]
    assert not loop.memory.demonstrated.any() and int(loop.counts.sum()) == 3
    assert loop.past.obs[:, 0, 0].tolist() == [2, 1, 4, 4] and loop.past.ended[:, 0].tolist() == [0, 1, 1, 0]

    later = remember(loop, steps_of([3], [0], [1]), ARGS)  # of its own episode, [4, 3], and of no other
    assert int(il.remembered(later.memory)) == 6
    mean = 0.5 * 1 + 0.25 * rare([4.0, 3.0])
    at = np.asarray(later.memory.obs[:6, 0]).tolist().index(3.0)
    close(later.memory.score[at], mean)
    assert int(later.counts.sum()) == 4


def test_states_are_counted_over_all_of_training():
    loop = loop_of([], [])
    for n in (1, 2, 3):
        loop = remember(loop, steps_of([7], [0], [1]), ARGS)
        assert int(loop.counts.max()) == n
    best = 0.5 + 0.25 / np.sqrt(np.array([1, 2, 3]))
    close(loop.memory.score[:3], best)


def counting(limit: int) -> JaxEnv:
    """Observations count the steps since reset; action 2 pays; a time limit ends."""
    obs = lambda t: jnp.stack([t, 2.0 * t, 1.0 - t]).astype(jnp.float32)  # noqa: E731
    step = lambda t, action, keys: (t + 1, obs(t + 1), jnp.float32(action == 2), False, t + 1 >= limit)  # noqa: E731
    return JaxEnv(lambda keys, params=None: (jnp.int32(0), obs(jnp.int32(0))), step, None)


begin = jax.jit(partial(il.begin, env=counting(3), spec=SPEC, limit=3))


@pytest.fixture(scope="module")
def trained(agent):
    """`(imitation, demos, ...) -> (loop before, agent, loop, metrics)` of one iteration, compiled once."""
    env = counting(3)
    train = jax.jit(partial(il.train, env=env))

    def run(imitation: float, cloned: bool = True):
        args = with_(imitation=imitation)
        loop = begin(jax.random.key(1), args, DEMOS)
        (new, after), info = train((agent, loop), jax.random.split(jax.random.key(2), 8), args)
        return loop, new, after, info

    return run


@pytest.mark.long
def test_an_iteration_is_ppo_and_then_cloning_of_what_the_memory_holds(agent, trained):
    loop, alone, after, info = trained(0.0)
    assert info["remembered"] > 4 and 0 < info["demos_left"] < 1 and info["cloning_loss"] == 0
    assert not same(alone.actor, agent.actor) and not same(alone.value, agent.value)
    _, conc, memory, info = trained(2.0)
    assert same(conc.value, alone.value) and same(memory.memory, after.memory)
    expected, more = clone(alone, memory.memory, jax.random.split(cloning_key(), 1), ARGS)
    jax.tree.map(close, conc.actor, expected.actor)
    jax.tree.map(close, conc.actor_opt, expected.actor_opt)
    close(info["cloning_loss"], more["cloning_loss"])
    assert not same(conc.actor, alone.actor)
    assert same(trained(3.0)[1], conc) and same(trained(1.0)[1], alone)
    _, nothing, _, info = trained(5.0)
    assert same(nothing, agent) and info["entropy"] == 0
    _, rapid, memory, info = trained(4.0)
    assert info["demos_left"] == 0 and info["remembered"] > 0 and not same(rapid.actor, alone.actor)
    assert same(rapid.value, alone.value) and not memory.memory.demonstrated.any()


def cloning_key():
    return jax.random.split(jax.random.split(jax.random.key(2), 8)[0], 3)[2]


def test_cloning_draws_rows_that_are_there_and_of_none_learns_nothing(agent):
    memory = first_memory(DEMOS, ARGS, SPEC)
    new, info = clone(agent, memory, jax.random.split(jax.random.key(0), 1), ARGS)
    spoilt = memory._replace(action=memory.action.at[4:].set(2), obs=memory.obs.at[4:].set(9.0))
    assert same(clone(agent, spoilt, jax.random.split(jax.random.key(0), 1), ARGS)[0], new)
    assert same(new.value, agent.value) and same(new.value_opt, agent.value_opt)
    row = jax.random.randint(jax.random.split(jax.random.key(0), 1)[0], (16,), 0, 4)
    batch = Batch(obs=memory.obs[row], action=memory.action[row])
    _, log_prob = log_probs_of(agent, batch)
    close(info["cloning_loss"], -log_prob.mean())
    grads, _ = gradient(agent.actor, agent.nets.actor, batch)
    jax.tree.map(adams_step, agent.actor, grads, new.actor)
    empty = il.no_memory(12, SPEC)
    assert same(clone(new, empty, jax.random.split(jax.random.key(0), 1), ARGS)[0], new)


def test_who_clones_before_does_it_and_who_does_not_waits(agent):
    memory, keys = first_memory(DEMOS, ARGS, SPEC), jax.random.split(jax.random.key(3), 2)
    pretrain = jax.jit(il.pretrain)
    found = [pretrain(agent, keys, with_(imitation=float(kind)), memory)[0] for kind in range(6)]
    assert [not same(new, agent) for new in found] == [False, True, False, True, False, True]
    twice = clone(clone(agent, memory, keys[:1], ARGS)[0], memory, keys[1:], ARGS)[0]
    jax.tree.map(close, found[1].actor, twice.actor)


def test_ppos_gradients_are_clipped_for_each_network_and_its_steps_are_adams(agent, batch):
    grads, _ = gradient(agent.actor, agent.nets.actor, batch)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert norm > 0.01
    descend = jax.jit(partial(il.descend, il.cloning_loss), static_argnums=(3, 4))
    for limit, scale in ((0.01, 0.01 / norm), (0.0, 1.0)):
        args = with_(max_grad_norm=limit)
        new, _, _ = descend(agent.actor, agent.actor_opt, args, True, agent.nets.actor, batch)
        jax.tree.map(partial(adams_step, scale=scale), agent.actor, grads, new)


def test_advantages_end_with_the_episode_and_bootstrap_at_time_limits():
    v, next_v = np.float32([1, 2, 3, 4]), np.float32([2, 9, 4, 5])
    batch = Batch(reward=np.float32([1, 1, 1, 1]), terminal=np.float32([0, 0, 1, 0]))
    found = il.advantages(v, next_v, batch, np.float32([0, 1, 1, 0]), ARGS)
    delta = [1 + 0.9 * 2 - 1, 1 + 0.9 * 9 - 2, 1 - 3, 1 + 0.9 * 5 - 4]
    close(found, [delta[0] + 0.72 * delta[1], *delta[1:]])


def test_steps_are_the_policys_in_all_environments(agent):
    loop = begin(jax.random.key(1), ARGS, DEMOS)
    _, steps = jax.jit(partial(il.collect, env=counting(3), args=ARGS))(agent, loop, jax.random.key(2))
    assert steps.batch.obs[:, 0, 0].tolist() == [0, 1, 2, 0] and steps.ended[:, 0].tolist() == [0, 0, 1, 0]
    assert steps.batch.next_obs[:, 1, 0].tolist() == [1, 2, 3, 1] and not steps.batch.terminal.any()
    every = log_softmax(mlp(agent.actor, steps.batch.obs, activation=np.tanh), axis=-1)
    action = np.asarray(steps.batch.action)
    close(steps.log_prob, np.take_along_axis(every, action[..., None], -1)[..., 0])
    np.testing.assert_array_equal(steps.batch.reward, action == 2)


def test_evaluation_samples_or_takes_the_likeliest(agent):
    obs = np.tile(np.float32([0.3, -0.2, 0.5]), (4000, 1))
    p = np.exp(log_softmax(mlp(agent.actor, obs[:1], activation=np.tanh)[0]))
    action = np.asarray(il.act(agent, obs, jax.random.key(0), ARGS))
    np.testing.assert_allclose([(action == a).mean() for a in range(A)], p, atol=0.03)
    assert il.act(agent, obs[:1], None, with_(sample_actions=False)).tolist() == [p.argmax()]


@pytest.mark.parametrize(
    "changes, limit, said",
    [
        ({}, None, "those of 'demos' have no time limit"),
        ({"batch_size": 9}, 60, "--batch-size 9 is more than an iteration's 8"),
        ({"imitation": (0.0, 6.0)}, 60, "--imitation is one of 0 to 5"),
        ({"memory_size": 159}, 60, "--memory-size 159: the demonstrations have 160 rows"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, limit, said):
    task = SimpleNamespace(id="demos", env_spec=SimpleNamespace(max_episode_steps=limit))
    data = SimpleNamespace(obs=np.zeros((160, 3)), task=task)
    assert il.possible(data, with_(memory_size=160, batch_size=8, imitation=(0.0, 5.0))) == 60 if limit else True
    with pytest.raises(InputError, match=said):
        il.possible(data, with_(**{"memory_size": 160} | changes))
