"""The losses and weights of goat against the equations in plain numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import GOAL_SPEC, TINY, goal_batch
from jobs import small
from reference import B, agent_of, close, compiled, mlp

from shared.arguments import parse
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

SMALL = {"n_critics": 3, "queue_size": 20}
SURVIVORS = {
    "jnp.maximum(batch.valid.sum(), 1.0) -> batch.valid.sum()": "a batch without a row that has a later state is none",
}


def setting(**changes):
    goat = compiled("goat")
    args = goat.Args(**{**TINY, **SMALL, "discount": 0.5, **changes})
    plain = goal_batch()
    own = {k: getattr(plain, k) for k in ("obs", "action", "next_obs", "goal")}
    flags = {"reward": np.float32([1, 0, 0, 1, 1]), "valid": np.float32([1, 1, 1, 1, 0])}
    return goat, args, agent_of(goat, args, GOAL_SPEC), goat.HindsightBatch(**own, **flags)


def q_of(critics, obs, goal, action):
    """[E, B]"""
    one = [jax.tree.map(lambda x, i=i: x[i], critics) for i in range(3)]
    return np.stack([mlp(c, obs, goal, action)[:, 0] for c in one])


def pi(actor, obs, goal):
    return np.tanh(mlp(actor, obs, goal))


def values(agent, obs, goal):
    return q_of(agent.critic, obs, goal, pi(agent.actor, obs, goal))


def test_every_critic_has_a_target_of_its_own_between_bounds():
    goat, args, agent, batch = setting()
    next_action = pi(agent.target_actor, batch.next_obs, batch.goal)
    y = batch.reward + 0.5 * q_of(agent.target_critic, batch.next_obs, batch.goal, next_action)
    assert (y > 2).any() and (np.abs(y) < 2).any()
    y = np.clip(y, -2, 2)
    q = q_of(agent.critic, batch.obs, batch.goal, batch.action)
    close(goat.critic_loss(agent.critic, agent, batch, args)[0], ((y - q) ** 2)[:, :4].mean(1).sum())
    assert (y > q)[:, :4].any() and (y < q)[:, :4].any()
    weight = np.where(y < q, 0.2, 0.8)[:, :4]
    expected = ((weight * ((y - q) ** 2)[:, :4]).mean(1) / weight.mean(1)).sum()
    args = dataclasses.replace(args, td_expectile=0.8)
    close(goat.critic_loss(agent.critic, agent, batch, args)[0], expected)


def test_an_advantage_is_of_the_ensembles_mean_at_the_policys_actions():
    goat, args, agent, batch = setting()
    v, next_v = (values(agent, x, batch.goal) for x in (batch.obs, batch.next_obs))
    adv, deviation = goat.advantages(agent, batch, args)
    close(adv, batch.reward + 0.5 * next_v.mean(0) - v.mean(0))
    close(deviation, v.std(0))


QUEUE = np.float32([np.nan, np.nan, -1.0, 0.0, 1.0, 2.0])


def weigh(adv, deviation, step=9, **asked):
    off = dict.fromkeys(("exponential_weight", "best_weight", "uncertainty_weight"), False)
    args = load("goat").Args(**{**off, **asked})
    return load("goat").weights(np.float32(adv), np.float32(deviation), (QUEUE, 3 * QUEUE), step, args)


def test_weights_are_exponential_of_the_best_and_of_the_uncertain():
    adv, deviation = [-1.5, 0.0, 1.3, 2.0], [-3.0, 0.0, 6.0, 1.5]
    close(weigh(adv, deviation), np.ones(4))
    exponential = np.minimum(np.exp(2.0 * np.array(adv)), 10.0)
    close(weigh(adv, deviation, exponential_weight=True), exponential)
    best = np.where(np.array(adv) >= np.percentile([-1, 0, 1, 2], 20), 1.0, 0.05)
    assert best.tolist() == [0.05, 1, 1, 1]
    close(weigh(adv, deviation, best_weight=True, percentile_rise=2.0), best)  # the tenth update
    later = weigh(adv, deviation, 99, best_weight=True, percentile_rise=2.0, max_percentile=70.0)
    close(later, [0.05, 0.05, 1, 1])
    uncertain = np.clip((np.array(deviation) + 3) / 9 * 2 + 0.4, 0, 1.5)
    assert uncertain[0] == 0.4 and uncertain[2] == 1.5 and uncertain[1] < 1.5
    asked = {"uncertainty_weight": True, "uncertainty_scale": 2.0, "min_uncertainty_weight": 0.4}
    close(weigh(adv, deviation, **asked), uncertain)
    one = load("goat").Args(exponential_weight=False, best_weight=False)
    level = QUEUE, np.zeros(6, np.float32)  # a single critic never disagrees
    close(load("goat").weights(np.zeros(4), np.zeros(4, np.float32), level, 9, one), np.full(4, 0.5))
    whole = weigh(adv, deviation, exponential_weight=True, best_weight=True, percentile_rise=2.0, **asked)
    close(whole, exponential * best * uncertain)


@pytest.mark.long
def test_actions_are_cloned_by_their_weights_with_the_networks_of_before():
    goat, args, agent, batch = setting(learning_rate=0.1, tau=0.5, percentile_rise=40.0)
    agent = agent.replace(advantages=agent.advantages.at[-2:].set(7.0))
    adv, deviation = goat.advantages(agent, batch, args)
    new, metrics = goat.update(agent, batch, jax.random.key(0), args)
    for queue, now, before in ((new.advantages, adv, [7, 7]), (new.deviations, deviation, [np.nan] * 2)):
        close(queue, [*[np.nan] * 13, *before, *now[:4], np.nan])  # the last row has no later state
    weight = goat.weights(adv, deviation, (new.advantages, new.deviations), 0, args)
    error = ((pi(agent.actor, batch.obs, batch.goal) - batch.action) ** 2).mean(-1)
    close(metrics["actor_loss"], (weight * error)[:4].mean())
    close(metrics["critic_loss"], goat.critic_loss(agent.critic, agent, batch, args)[0])
    for name in ("actor", "critic"):
        half = jax.tree.map(lambda a, b: (a + b) / 2, getattr(agent, f"target_{name}"), getattr(new, name))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), getattr(new, f"target_{name}"), half)
    assert new.step == 1
    plain = dataclasses.replace(
        args, **dict.fromkeys(("exponential_weight", "best_weight", "uncertainty_weight"), False)
    )
    close(goat.update(agent, batch, jax.random.key(0), plain)[1]["actor_loss"], error[:4].mean())  # GCSL


def test_goals_are_later_states_and_rewarded_where_the_next_one_achieves_them(tmp_path):
    goat = compiled("goat")
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    states = np.asarray(data.take(np.arange(300)).obs)
    row_of = {tuple(x): i for i, x in enumerate(states)}
    for radius in (0.0, 0.5):
        batch = goat.sample(jax.random.key(0), data, goat.Args(batch_size=5000, goal_radius=radius))
        row, goal = (np.array([row_of[tuple(y)] for y in np.asarray(x)]) for x in (batch.obs, batch.goal))
        end = row // 30 * 30 + 29
        np.testing.assert_array_equal(batch.valid, row < end)
        at = row < end
        assert ((goal > row) & (goal <= end))[at].all()
        assert 0.4 < ((goal - row - 1)[at] / (end - row)[at]).mean() < 0.5
        apart = np.linalg.norm(states[goal] - states[np.minimum(row + 1, end)], axis=-1)
        np.testing.assert_array_equal(np.asarray(batch.reward)[at], (apart <= radius)[at])
        assert 0.05 < np.asarray(batch.reward)[at].mean() < (0.2 if radius == 0 else 0.5)


def test_settings_are_those_released():
    """goat/algo/config.py of YangRui2015/GOAT: targets move once in a cycle of n_batches updates."""
    for dataset, rise, share, n_batches in (
        ("fetchreach-left", 0.15, 0.05, 5),
        ("fetchpush-right", 0.01, 0.05, 20),
        ("handreach-near", 0.01, 0.05, 20),
        ("point-open-right", 0.1, 0.1, 4),
    ):
        goat = compiled("goat")
        args = parse(goat.Args, goat.PRESETS, goat.__doc__, ["--dataset", dataset])
        assert (args.percentile_rise, args.tau) == (rise, pytest.approx(share / n_batches))
        sizes = {"fetchreach-left": (512, 2_500), "point-open-right": (128, 40_000)}
        assert (args.batch_size, args.updates) == sizes.get(dataset, (512, 40_000))


def test_a_queue_holds_a_batch(tmp_path):
    args = small("goat", write_goals(tmp_path / "goals.npz"), tmp_path / "run", queue_size=B)
    with pytest.raises(InputError, match="--queue-size 5: at least one batch of 8"):
        load("goat").main(args)


def test_percentiles_that_are_none_are_refused(goals, tmp_path):
    for changes, words in (
        ({"max_percentile": 101.0}, r"--max-percentile lie in \[0, 100\]"),
        ({"percentile_rise": (-0.1, 0.1)}, "--percentile-rise must be at least 0"),
    ):
        with pytest.raises(InputError, match=words):
            load("goat").main(small("goat", goals, tmp_path / "run", **changes))
