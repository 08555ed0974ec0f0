"""What ota adds to hiql: the value of options, against plain numpy and plain Python."""

import jax
import numpy as np
import pytest
from conftest import load, write_goals
from goal_reference import GOAL_SPEC, TINY, goal_batch, steps_to_goals
from jobs import small
from reference import B, agent_of, close, compiled, gelu, heads, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset

SMALL = {"subgoal_steps": 5, "option_steps": 3}
NET = {"activation": gelu, "layer_norm": True}


def setting(**changes):
    ota = compiled("ota")
    args = ota.Args(**TINY, representation_dim=4, discount=0.9, **changes)
    r, plain = np.random.default_rng(1), goal_batch()
    goals = {k: r.normal(size=(B, 2)).astype(np.float32) for k in ("option_goal", "low_goal", "high_goal", "subgoal")}
    states = {k: r.normal(size=(B, 3)).astype(np.float32) for k in ("option_obs", "subgoal_obs")}
    own = {k: getattr(plain, k) for k in ("obs", "action", "next_obs", "goal", "terminal")}
    batch = ota.HierarchicalBatch(**own, **goals, **states, option_terminal=np.float32([1, 0, 0, 1, 0]))
    return ota, args, agent_of(ota, args, GOAL_SPEC), batch


def values(agent, value, obs, goal):
    x = mlp(agent.representation, obs, goal, **NET)
    return heads(value, obs, 2.0 * x / np.linalg.norm(x, axis=-1, keepdims=True), **NET)


@pytest.mark.long
def test_each_value_has_its_own_step():
    ota, args, agent, batch = setting(expectile=0.7)

    def expected(value, target, later, goal, terminal):
        next_v, mask = values(agent, target, later, goal), 1.0 - terminal
        adv = terminal - 1.0 + 0.9 * mask * next_v.min(0) - values(agent, target, batch.obs, goal).mean(0)
        error = terminal - 1.0 + 0.9 * mask * next_v - values(agent, value, batch.obs, goal)
        return (np.where(adv < 0, 0.3, 0.7) * error**2).mean(1).sum()

    params = agent.representation, agent.low_value, agent.high_value
    loss, info = ota.value_loss(params, agent, batch, args)
    low = expected(agent.low_value, agent.target_low_value, batch.next_obs, batch.goal, batch.terminal)
    option = batch.option_obs, batch.option_goal, batch.option_terminal
    high = expected(agent.high_value, agent.target_high_value, *option)
    close([info["low_value_loss"], info["high_value_loss"], loss], [low, high, low + high])


def test_each_policy_follows_its_own_value():
    ota, args, agent, batch = setting(high_beta=2.0, low_beta=3.0)
    for loss, params, info, value, later, goal in (
        (ota.high_actor_loss, agent.high_actor, "high_adv", agent.high_value, batch.subgoal_obs, batch.high_goal),
        (ota.low_actor_loss, agent.low_actor, "low_adv", agent.low_value, batch.next_obs, batch.low_goal),
    ):
        adv = values(agent, value, later, goal).mean(0) - values(agent, value, batch.obs, goal).mean(0)
        close(loss(params, agent, batch, args)[1][info], adv.mean())


def test_options_end_at_their_goals(tmp_path):
    ota = compiled("ota")
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    row = np.random.default_rng(0).integers(0, 300, 30_000)
    ahead = np.minimum(row + 3, row // 30 * 30 + 29)
    args = ota.Args(option_steps=3, discount=0.5)
    end, goal = (np.asarray(x) for x in ota.option_rows(jax.random.key(0), row, data, args))
    assert ((end <= ahead) & (end >= row)).all()
    early = end < ahead  # only where the goal is nearer
    np.testing.assert_array_equal(goal[early], end[early])
    assert 0.2 < early.mean() < 0.5
    assert (goal[~early] == ahead[~early]).mean() > 0.25  # the option's end as the goal
    whole = ota.Args(option_steps=3, value_goals=(1.0, 0.0, 0.0))
    end, goal = ota.option_rows(jax.random.key(0), row, data, whole)
    np.testing.assert_array_equal(end, goal)
    np.testing.assert_array_equal(end, ahead)
    later = ota.Args(option_steps=3, value_goals=(0.0, 1.0, 0.0))
    end, goal = (np.asarray(x) for x in ota.option_rows(jax.random.key(0), row, data, later))
    np.testing.assert_array_equal(end, np.minimum(ahead, goal))


def test_an_option_whose_end_is_its_goal_may_end_early_too(tmp_path):
    """What an option is for, and whether its end is the goal, are drawn apart, as in the authors' sampler."""
    ota = compiled("ota")
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    row = np.arange(300).repeat(100)
    row = row[row % 30 < 27]  # three steps ahead are of the episode
    args = ota.Args(option_steps=3, discount=0.5, value_goals=(0.2, 0.5, 0.3))
    end, goal = (np.asarray(x) for x in ota.option_rows(jax.random.key(0), row, data, args))
    assert abs((end < row + 3).mean() - 0.5 / 0.8 * 0.75) < 0.02  # of three later goals in four
    others = 0.5 * 0.875  # are later goals, at most three steps ahead
    assert abs((goal == end).mean() - 0.2 - others) < 0.02


def test_options_longer_than_a_subgoals_steps_are_refused(tmp_path):
    args = small("ota", write_goals(tmp_path / "goals.npz"), tmp_path / "run", option_steps=6, subgoal_steps=5)
    with pytest.raises(InputError, match="--option-steps 6: 1 to --subgoal-steps 5"):
        load("ota").main(args)


def test_goals_of_the_value_lie_as_far_ahead_as_the_discount_looks(tmp_path):
    ota, data = compiled("ota"), goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz"))).transitions()
    args = ota.Args(batch_size=4000, discount=0.8, value_goals=(0.0, 1.0, 0.0))
    batch = ota.sample(jax.random.key(0), data, args)
    assert abs(steps_to_goals(data, batch.obs, batch.goal).mean() - 5.0) < 0.6  # 1 / (1 - 0.8), but for the end
    args = ota.Args(option_steps=99, discount=0.8, value_goals=(0.0, 1.0, 0.0))  # an option that ends at its goal
    row = np.tile(np.arange(5), 1000)
    assert abs((ota.option_rows(jax.random.key(0), row, data, args)[1] - row).mean() - 5.0) < 0.6
