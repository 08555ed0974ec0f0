"""Samples against a known density: cases by hand, and the world of two dimensions that has one."""

import sys

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "datasets"))
import make
from environments.plane_bandit import PlaneFunctional

from shared.data import load_dataset
from shared.densities import Density, density_of, energy_distance, judged, modes_covered


def test_energy_distance_by_hand():
    """x = 0, 3 and y = 1, 4, 4: 2 (1 + 4 + 4 + 2 + 1 + 1) / 6 - 2 (3) / 2 - 2 (3 + 3 + 0) / 6."""
    x, y = jnp.float32([[0], [3]]), jnp.float32([[1], [4], [4]])
    assert float(energy_distance(x, y)) == pytest.approx(26 / 6 - 3 - 2)
    plane = jnp.float32([[0, 0], [3, 4]])
    assert float(energy_distance(plane, plane + jnp.float32([6, 8]))) == pytest.approx((10 + 15 + 5 + 10) / 2 - 10)


def test_modes_are_covered_by_a_quarter_of_their_share():
    """Of two modes, a sample of eight is enough, and one that is out of reach is of none."""
    density = Density(None, np.float32([[-1, 0], [1, 0]]), 0.2)
    x = np.float32([[-1, 0.1]] * 7 + [[1, 0.1]])
    assert float(modes_covered(x, density)) == 2
    x[-1, 1] = 0.3
    assert float(modes_covered(x, density)) == 1
    assert float(modes_covered(np.r_[x, x, np.float32([[1, 0]])], density)) == 1


@pytest.mark.parametrize("name, reward", [("modes8", 0.5625), ("rings", 0.75)])
def test_data_are_of_the_density_and_pay_by_where_they_fall(name, reward):
    make.make(f"toy-{name}", steps=1000)
    data = load_dataset(f"toy-{name}")
    assert data.last.all() and data.terminal.all() and data.spec.action_dim == 2 and not data.obs.any()
    np.testing.assert_allclose(data.reward.mean(), reward, atol=0.03)
    density = density_of(data.task)
    found = jax.jit(lambda x, key: judged(x, density, key))(data.action, jax.random.key(1))
    assert abs(float(found["energy_distance"])) < 0.01
    shrunk = jax.jit(lambda x, key: judged(x, density, key))(0.5 * data.action, jax.random.key(1))
    assert float(shrunk["energy_distance"]) > 0.05
    if name == "modes8":
        assert (float(found["modes_covered"]), float(shrunk["modes_covered"])) == (8, 0)
    else:
        assert found.keys() == {"energy_distance"}


def test_the_plane_pays_by_its_places():
    modes, rings = PlaneFunctional("modes8"), PlaneFunctional("rings")
    assert [float(modes.pays(c)) for c in modes.centres] == [(k + 1) / 8 for k in range(8)]
    assert float(modes.pays(jnp.zeros(2))) == float(rings.pays(jnp.zeros(2))) == 0
    assert float(rings.pays(jnp.float32([0, -0.8]))) == 1 and float(rings.pays(jnp.float32([0.4, 0]))) == 0.5
    env = gym.make("PlaneBandit-v0", density="modes8")
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(modes.centres[7])
    assert terminated and float(reward) == 1
    with pytest.raises(ValueError, match="density is modes8 or rings, not moons"):
        gym.make("PlaneBandit-v0", density="moons")
