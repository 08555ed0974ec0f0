"""Who acts in point worlds: shortest ways, grades of skill, episodes that depend on their number alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments.point import World
from environments.point_behaviour import Behaviour, _normal, rollout, route
from environments.point_truth import lattice, steps_to

KEY = jax.random.key(0)
GRID = {"discrete": True, "speed": 1.0, "jitter": 0.0}


def played(world: World, behaviour: Behaviour, episodes: int = 64, steps: int = 60, first: int = 0):
    return jax.tree.map(np.asarray, rollout(world, behaviour, KEY, first, episodes, steps))


def test_the_planner_takes_the_fewest_steps_over_cells():
    world = World("medium", start="sampled", **GRID)
    batch, table = played(world, Behaviour()), lattice(world)
    steps = steps_to(table)[table.nearest(batch.obs[:, 0, :2])]
    wanted = np.maximum(steps, 1)  # one that starts at its goal is there after its first step
    np.testing.assert_array_equal(batch.length, wanted)
    assert len(set(wanted)) > 5 and batch.reward.max(1).min() == 1.0


def test_the_planner_masters_forces_wind_and_turns_and_goes_around_hazards():
    world = World("hazard", inertia=0.75, wind=(0.05, -0.05), turn=1.0)
    batch = played(world, Behaviour(avoid_hazards=True))
    within = np.arange(60) < batch.length[:, None]
    assert batch.terminal[np.arange(64), batch.length - 1].all() and not (batch.cost * within).any()
    world = World("hazard", start="sampled")
    blind, careful = (played(world, Behaviour(avoid_hazards=careful)) for careful in (False, True))
    costs = [(b.cost * (np.arange(60) < b.length[:, None])).sum() for b in (blind, careful)]
    assert costs[0] > 0 == costs[1]


@pytest.mark.long
def test_grades_of_skill():
    """Fewer episodes reach the goal in time, and later, from expert to medium to random."""
    grades = Behaviour(noise=0.25), Behaviour(noise=0.5, random=0.2, detours=3), Behaviour("uniform")
    batches = [played(World("umaze"), grade, steps=50) for grade in grades]
    success = [b.reward.max(1).mean() for b in batches]
    length = [b.length.mean() for b in batches]
    assert success[0] == 1.0 and success[0] > success[1] + 0.05 and success[1] > success[2] + 0.5
    assert length[0] < length[1] - 5 < length[2] - 10


def test_episodes_depend_on_their_number_alone():
    early, late = (played(World("umaze"), Behaviour(noise=0.25), steps=50, first=first) for first in (0, 60))
    for a, b in zip(jax.tree.leaves(early), jax.tree.leaves(late)):
        np.testing.assert_array_equal(a[60:], b[:4])
    assert len(np.unique(early.action[:, 0], axis=0)) > 60


def test_stitching_pieces_go_to_goals_nearby_and_stay():
    world = World("medium", observation="goal", start="sampled", goal="sampled", at_goal="stay")
    batch = played(world, Behaviour(noise=0.5, near=4))
    tables = route(world)
    start, goal = (np.floor(batch.obs[k][:, 0]).astype(int) for k in ("achieved_goal", "desired_goal"))
    steps = tables.steps[0, start[:, 1] * 8 + start[:, 0], goal[:, 1] * 8 + goal[:, 0]]
    assert (steps == 4).all() and (batch.length == 60).all() and batch.reward[:, -5:].mean() > 0.8


def test_a_region_holds_its_starts_and_goals():
    world = World("fourrooms", observation="goal", start="sampled", goal="sampled")
    batch = played(world, dataclasses.replace(Behaviour(noise=0.5), region=(0, 0, 6, 13)))
    x = np.concatenate([batch.obs["achieved_goal"][:, 0, 0], batch.obs["desired_goal"][:, 0, 0]])
    assert x.max() < 6 and len(np.unique(x)) > 3
    assert not (batch.obs["achieved_goal"][:, 0] == batch.obs["desired_goal"][:, 0]).all(1).any()


def test_a_walk_keeps_its_direction():
    batch = played(World("open", at_goal="stay"), Behaviour("walk", hold=8), steps=40)
    changes = (np.diff(batch.action, axis=1) != 0).any(-1)
    assert changes[:, 7::8].all() and not np.delete(changes, np.arange(7, 39, 8), axis=1).any()


def test_positions_have_few_binary_digits_so_that_no_processor_rounds_them():
    batch = played(World("medium", at_goal="next", goal="sampled"), Behaviour(noise=0.5), steps=100)
    assert (batch.obs[..., :2] * 1024 % 1 == 0).all() and (batch.action * 256 % 1 == 0).all()


def test_the_noise_is_nearly_normal():
    z = np.asarray(_normal(KEY, (200_000,)), np.float64)
    moments = [z.mean(), z.std(), (z**3).mean(), (np.abs(z) > 2).mean()]
    np.testing.assert_allclose(moments, [0, 1, 0, 0.0455], atol=0.01)
    assert len(np.unique(z * 65536 % 1)) == 1


def test_a_route_leads_through_a_teleport():
    world = World("teleport", start=(3.5, 2.5), **GRID)
    tables, cell = route(world), lambda x, y: int(y) * 9 + int(x)
    assert tables.next[0, cell(3, 2), cell(7, 3)] == cell(3, 3) and tables.steps[0, cell(3, 2), cell(7, 3)] == 5
    assert tables.steps[0, cell(1, 5), cell(7, 3)] == np.iinfo(np.int16).max
    assert tables.next[0, cell(1, 5), cell(7, 3)] == cell(1, 5)
    assert jnp.asarray(tables.steps).dtype == jnp.int16
