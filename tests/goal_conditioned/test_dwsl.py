"""The losses of dwsl against the equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import GOAL_SPEC, TINY, goal_batch
from jobs import small
from reference import agent_of, close, compiled, mlp

from shared.arguments import preset_for
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

SMALL = {"bins": 6}
SURVIVORS = {
    "jnp.maximum(batch.valid.sum(), 1.0) -> batch.valid.sum()": "a batch without a row that has a later state is none",
}


def setting(**changes):
    dwsl = compiled("dwsl")
    args = dwsl.Args(**TINY, bins=4, **changes)
    plain = goal_batch()
    own = {k: getattr(plain, k) for k in ("obs", "action", "next_obs", "goal")}
    batch = dwsl.DistanceBatch(**own, steps=np.int32([1, 2, 4, 9, 1]), valid=np.float32([1, 1, 1, 1, 0]))
    return dwsl, args, agent_of(dwsl, args, GOAL_SPEC), batch


def probabilities(agent, obs, goal):
    logits = mlp(agent.distance, obs, goal)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_the_distance_is_a_classifier_of_the_datas_steps():
    dwsl, args, agent, batch = setting()
    p = probabilities(agent, batch.obs, batch.goal)
    expected = -np.log(p[[0, 1, 2, 3], [0, 1, 3, 3]]).mean()  # 9 steps are in the last class; the fifth row has none
    close(dwsl.distance_loss(agent.distance, agent, batch, args), expected)


def test_the_soft_minimum_lies_between_the_least_and_the_mean():
    dwsl, args, agent, batch = setting(soft_min=0.3)
    p, d = probabilities(agent, batch.obs, batch.goal), np.arange(4) / 4
    found = dwsl.soft_min_distance(agent, batch.obs, batch.goal, args)
    close(found, -0.3 * np.log((p * np.exp(-d / 0.3)).sum(-1)))
    assert (found < p @ d).all()
    near = dwsl.soft_min_distance(agent, batch.obs, batch.goal, dwsl.Args(**TINY, bins=4, soft_min=0.003))
    far = dwsl.soft_min_distance(agent, batch.obs, batch.goal, dwsl.Args(**TINY, bins=4, soft_min=1e3))
    assert (near < 0.05).all()
    np.testing.assert_allclose(far, p @ d, rtol=1e-2)


def test_actions_that_shorten_the_way_are_cloned_more():
    dwsl, args, agent, batch = setting(soft_min=0.3, temperature=0.1, max_weight=0.0685)
    d = np.arange(4) / 4

    def distance(obs):
        return -0.3 * np.log((probabilities(agent, obs, batch.goal) * np.exp(-d / 0.3)).sum(-1))

    weight = np.minimum(np.exp((distance(batch.obs) - 0.25 - distance(batch.next_obs)) / 0.1), 0.0685)
    error = ((np.tanh(mlp(agent.actor, batch.obs, batch.goal)) - batch.action) ** 2).sum(-1)
    close(dwsl.actor_loss(agent.actor, agent, batch, args)[0], (weight * error)[:4].mean())
    assert (weight[:4] == 0.0685).any() and (weight[:4] < 0.0685).any()


def test_several_steps_are_one_class():
    dwsl, args, agent, batch = setting(nstep=3, temperature=1.0)
    batch = batch._replace(steps=np.int32([3, 3, 4, 99, 3]))
    p = probabilities(agent, batch.obs, batch.goal)
    expected = -np.log(p[[0, 1, 2, 3], [0, 0, 1, 3]]).mean()
    close(dwsl.distance_loss(agent.distance, agent, batch, args), expected)
    far, near = (dwsl.soft_min_distance(agent, x, batch.goal, args) for x in (batch.obs, batch.next_obs))
    adv = (far - near - 0.25)[:4].mean()
    close(dwsl.actor_loss(agent.actor, agent, batch, args)[1]["adv"], adv)


def test_goals_lie_behind_the_next_state_and_their_steps_are_counted(tmp_path):
    dwsl = compiled("dwsl")
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    row_of = {tuple(x): i for i, x in enumerate(np.asarray(data.take(np.arange(300)).obs))}
    for nstep in (1, 3):
        batch = dwsl.sample(jax.random.key(0), data, dwsl.Args(batch_size=5000, nstep=nstep))
        row, goal = (np.array([row_of[tuple(y)] for y in np.asarray(x)]) for x in (batch.obs, batch.goal))
        end = row // 30 * 30 + 29
        at = row + nstep <= end
        np.testing.assert_array_equal(batch.valid, at)
        assert ((goal >= row + nstep) & (goal <= end))[at].all()
        np.testing.assert_array_equal(np.asarray(batch.steps)[at], (goal - row)[at])
        share = (goal - row - nstep)[at] / (end - row - nstep + 1)[at]
        assert 0.4 < share.mean() < 0.5
    ahead = np.minimum(row + 3, end)
    np.testing.assert_array_equal(batch.next_obs, data.take(ahead).obs)


def test_first_weights_are_orthogonal_of_gain_one():
    dwsl = load("dwsl")
    agent = dwsl.init(jax.random.key(0), dwsl.Args(**TINY, bins=4), GOAL_SPEC)
    for net in (agent.actor, agent.distance):
        kernel = net["params"]["Dense_1"]["kernel"]
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(len(kernel)), atol=1e-5)


def test_one_class_of_the_distance_is_refused(goals, tmp_path):
    with pytest.raises(InputError, match="--bins 1: at least 2"):
        load("dwsl").main(small("dwsl", goals, tmp_path / "run", env="none", bins=1))


@pytest.mark.parametrize(
    ("dataset", "bins"),
    [
        ("antmaze-umaze-v2", 100),
        ("antmaze-umaze-diverse-v2", 100),
        ("D4RL/antmaze/medium-play-v1", 150),
        ("antmaze-medium-diverse-v2", 150),
        ("antmaze-large-play-v2", 200),
        ("D4RL/antmaze/large-diverse-v1", 200),
        ("antmaze-ultra-play-v0", 140),
    ],
)
def test_antmaze_has_classes_by_the_size_of_its_maze(dataset, bins):
    """The released run_dwsl.json's; all else is its base's."""
    dwsl = load("dwsl")
    args = dwsl.Args(**dwsl.PRESETS[preset_for(dataset, dwsl.PRESETS)])
    assert (args.bins, args.nstep, args.hidden_dims, args.updates) == (bins, 3, (512, 512), 80_000)
    assert preset_for("antmaze-large-navigate-v0", dwsl.PRESETS) is None  # OGBench's is another
