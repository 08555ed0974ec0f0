"""Where environments terminate, and exact steps, as functions of observations: against the environments themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.env_models import exact_model, termination
from shared.errors import InputError
from shared.replay import init_replay
from shared.task import Task, env_task
from shared.transitions import Batch


def played(task: Task, steps: int, seed: int = 0) -> list[tuple]:
    """(obs, action in [-1, 1], reward, next_obs, terminated) of random actions."""
    env, r, rows = task.make_env(), np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = r.uniform(-1, 1, task.spec.action_dim).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(task.to_env(action))
        rows.append((task.observe(obs), action, reward, task.observe(next_obs), terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    return [np.array(x) for x in zip(*rows, strict=True)]


@pytest.mark.parametrize("env", ["Hopper-v5", "Walker2d-v5", "Ant-v5", "InvertedPendulum-v5", "HalfCheetah-v5"])
def test_a_rule_ends_where_the_environment_does(env):
    task = env_task(env)
    *_, next_obs, terminated = played(task, 300)
    np.testing.assert_array_equal(termination(task)(jnp.asarray(next_obs, jnp.float32)), terminated)
    assert terminated.any() == (env != "HalfCheetah-v5")


def test_a_rule_sees_normalised_observations_and_the_environments_options():
    task = env_task("Hopper-v5")
    obs = played(task, 200)[3]
    shift = dataclasses.replace(task, obs_mean=np.float32(obs.mean(0)), obs_std=np.float32(obs.std(0)))
    seen = np.float32((obs - shift.obs_mean) / shift.obs_std)
    np.testing.assert_array_equal(termination(shift)(seen), termination(task)(np.float32(obs)))
    options = {"terminate_when_unhealthy": False}
    hardy = dataclasses.replace(task, env_spec=dataclasses.replace(task.env_spec, kwargs=options))
    assert not np.asarray(termination(hardy)(np.float32(obs))).any()
    whole = {"exclude_current_positions_from_observation": False}
    whole = dataclasses.replace(task, env_spec=dataclasses.replace(task.env_spec, kwargs=whole))
    moved = np.c_[np.full(len(obs), 5.0), obs]
    np.testing.assert_array_equal(termination(whole)(moved), termination(task)(obs))


def test_an_environment_without_a_rule_is_named_and_can_be_left_endless():
    for task, name in ((env_task("Pusher-v5"), "Pusher-v5"), (Task("log", "", env_task("Pendulum-v1").spec), "'log'")):
        with pytest.raises(InputError, match=rf"Where {name}.* terminates is not known .*--no-termination"):
            termination(task)
        assert not np.asarray(termination(task, known=False)(jnp.ones((4, 3)))).any()
        assert exact_model(task) is None


@pytest.mark.parametrize(
    "env", ["Pendulum-v1", "phys2d/Pendulum-v0", "PointUMaze-v0", "PointForce-v0", "PointHazard-v0"]
)
def test_the_exact_model_steps_as_the_environment_does(env):
    task = dataclasses.replace(env_task(env), options={"reward_scale": 2.0, "reward_shift": 1.0})
    obs, action, reward, next_obs, terminated = played(task, 150)
    task = dataclasses.replace(task, obs_mean=np.full(obs.shape[1], 0.5, np.float32), obs_std=np.float32(2.0))
    see = lambda x: np.float32((x - 0.5) / 2)  # noqa: E731
    found = exact_model(task)(see(obs), action, jax.random.key(0))
    np.testing.assert_allclose(found[0], see(next_obs), atol=2e-4)
    np.testing.assert_allclose(found[1], 2 * reward + 1, atol=2e-3)
    np.testing.assert_array_equal(found[2], terminated)
    np.testing.assert_array_equal(termination(task)(see(next_obs)), terminated)


@pytest.mark.parametrize("env", ["PointPixels-v0", "PointHidden-v0", "Hopper-v5"])
def test_where_observations_do_not_tell_the_state_there_is_no_exact_model(env):
    assert exact_model(env_task(env)) is None


def test_a_ring_takes_the_valid_rows_only_and_has_no_others():
    spec = env_task("Pendulum-v1").spec
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ring = jax.tree.map(lambda x: x[0], init_replay(1, 5, spec, sharding))

    def rows(*numbers):
        x = jnp.float32(numbers)
        return Batch(x[:, None] * jnp.ones(3), x[:, None], x, x < 0, -x[:, None] * jnp.ones(3))

    ring = ring.extend(rows(1, 2, 3, 4), jnp.array([True, False, True, False]))
    assert ring.size() == 2
    drawn = ring.sample(jax.random.key(0), 100)
    assert set(np.asarray(drawn.reward)) == {1.0, 3.0}  # none of the rows that are still zero
    np.testing.assert_array_equal(drawn.next_obs[:, 0], -drawn.reward)
    ring = ring.extend(rows(5, 6, 7, 8), jnp.ones(4, bool))
    assert ring.size() == 5 and set(np.asarray(ring.rows[:, 4])) == {3.0, 5.0, 6.0, 7.0, 8.0}
    np.testing.assert_array_equal(ring.take(jnp.arange(5)).reward, [8, 7, 6, 5, 3])
    assert set(np.asarray(ring.sample(jax.random.key(1), 100, newest=2).reward)) == {7.0, 8.0}
    with pytest.raises(ValueError, match="6 rows do not fit"):
        ring.extend(rows(1, 2, 3, 4, 5, 6), jnp.ones(6, bool))


def test_the_counts_of_a_ring_do_not_outgrow_its_integers():
    """A search over horizons inserts more than 2 ** 31 rows; from such a count on all draws would be of one row."""
    spec = env_task("Pendulum-v1").spec
    ring = jax.tree.map(lambda x: x[0], init_replay(1, 5, spec, jax.sharding.SingleDeviceSharding(jax.devices()[0])))

    def step(ring, i):
        x = jnp.float32([2 * i, 2 * i + 1])
        two = Batch(x[:, None] * jnp.ones(3), x[:, None], x, x < 0, x[:, None] * jnp.ones(3))
        ring = ring.extend(two, jnp.ones(2, bool))
        return ring, (ring.inserted, ring.size(), ring.take(jnp.arange(2)).reward)

    ring, (inserted, size, newest) = jax.lax.scan(step, ring, jnp.arange(20))
    assert inserted.max() < 10 and size.tolist() == [2, 4] + [5] * 18
    np.testing.assert_array_equal(newest, [[2 * i + 1, 2 * i] for i in range(20)])
    row = ring.rows[0]
    for i in range(12):  # one by one: the row before stays unready
        ring = ring.insert(row.at[4].set(100.0 + i), ready=i % 2 == 1)
        assert ring.inserted < 10 and ring.size() == (5 if i % 2 else 4)
        assert ring.take(jnp.int32(0)).reward == (100.0 + i if i % 2 else 99.0 + i if i else 39.0)
