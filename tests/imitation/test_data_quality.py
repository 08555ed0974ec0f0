"""What data_quality measures of data and of a clone's way, against plain numpy; each lane clones its own part."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from jobs import small
from reference import B, agent_of, close, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.jax_envs import jax_env
from shared.task import env_task


@pytest.fixture
def three(pendulum, tmp_path):
    """The module, its arguments, and three datasets of 300, 90 and 150 rows as one."""
    module = load("data_quality")
    others = tuple(write_pendulum(tmp_path / f"pendulum{n}.npz", n=n, seed=n) for n in (90, 150))
    sizes = {"env": "Pendulum-v1", "batch_size": 64, "hidden_dims": (8,)}
    args = module.Args(dataset=pendulum, parts=others, part=(0.0, 1.0, 2.0), **sizes)
    return module, args, *module.load_parts(args)


@pytest.mark.long
def test_the_clone_is_a_mean_over_batch_and_dimensions(batch):
    module = load("data_quality")
    args = module.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(module, args)
    expected = ((np.tanh(mlp(agent.actor, batch.obs)) - batch.action) ** 2).mean()
    close(module.actor_loss(agent.actor, agent, batch, args), expected)
    close(module.act(agent, batch.obs, None, args), np.tanh(mlp(agent.actor, batch.obs)))
    new, metrics = module.update(agent, batch, args)
    close(metrics["actor_loss"], expected)
    assert module.actor_loss(new.actor, new, batch, args) < expected


def test_the_spread_in_a_neighbourhood_by_hand():
    """Neighbours of two: 0 with 1, 1 with 0, 5 with 6, 6 with 5; of three values their variances."""
    module = load("data_quality")
    points, values = np.array([[0.0], [1.0], [5.0], [5.9]]), np.array([[0, 1], [2, 1], [3, 3], [3, 9]])
    close(module.spread(points, values, 2), (1 + 1 + 9 + 9) / 4)
    close(module.spread(points, values, 10), values.var(0).sum())  # there are no more rows


def test_the_measures_of_data(pendulum):
    module = load("data_quality")
    data = load_dataset(pendulum).normalize_obs()
    data = dataclasses.replace(data, successor=np.arange(300) % 30 != 29)
    action, args = data.action / data.action.std(), module.Args(n_neighbours=4, radius=0.7)
    found = module.measures_of(data, action, args)

    def variance(points, values):
        nearest = np.argsort(((points[:, None] - points) ** 2).sum(-1), 1)[:, :4]
        return values[nearest].var(1).sum(1).mean()

    at, known = np.concatenate([data.obs, action], 1), data.successor
    close(found["action_variance"], variance(data.obs, action))
    close(found["transition_diversity"], variance(at[known], (data.next_obs - data.obs)[known]))
    near = ((data.obs[:, None] - data.obs) ** 2).sum(-1) <= 0.7**2
    close(found["state_similarity"], (near.sum() - 300) / (300 * 299))
    assert found["horizon"] == 30


def test_actions_are_standardised_over_all_parts_together(three):
    module, args, data, of = three
    parts = module.on_device(data, of, args)
    action = data.action / data.action.std(0)
    right = [module.measures_of(data.select(of == p), action[of == p], args) for p in range(3)]
    for name, found in parts.measures.items():
        close(found, [x[name] for x in right])
    close(data.obs.mean(0), 0.0)
    assert np.abs(data.obs[of == 1].mean(0)).max() > 0.01
    np.testing.assert_array_equal(parts.size, [300, 90, 150])


def test_a_lane_draws_all_rows_of_its_part_and_no_others(three, monkeypatch):
    """And logs what is measured of its part. Actions are the rows' numbers here, the agent how often each was drawn."""
    module, args, data, of = three
    parts = module.on_device(dataclasses.replace(data, action=np.arange(540, dtype=np.float32)[:, None]), of, args)
    count = lambda agent, batch, args: (agent.at[batch.action[:, 0].astype(int)].add(1), {})  # noqa: E731
    monkeypatch.setattr(module, "update", count)
    keys, train = jax.random.split(jax.random.key(0), 8), jax.jit(module.train)
    for part in range(3):
        lane = dataclasses.replace(args, part=jnp.float32(part), batch_size=1000)
        drawn, metrics = train(jnp.zeros(540), keys, lane, parts, module.Watched(None, None))
        np.testing.assert_array_equal(drawn > 0, of == part)
        assert metrics == {name: x[part] for name, x in parts.measures.items()}


# ------------------------------------------------------------------------------- on the clone's way


def test_a_lane_may_clone_all_parts_together(three, monkeypatch):
    module, args, data, of = three
    args = dataclasses.replace(args, part=jnp.float32(-1), batch_size=2000)
    parts = module.on_device(data, of, args)
    np.testing.assert_array_equal(parts.size, [300, 90, 150, 540])
    monkeypatch.setattr(module, "update", lambda agent, batch, args: (batch.obs, {}))
    agent = jnp.zeros((2000, data.obs.shape[1]))
    drawn, metrics = module.train(
        agent, jax.random.split(jax.random.key(0), 1), args, parts, module.Watched(None, None)
    )
    assert {tuple(x) for x in np.asarray(drawn)} <= {tuple(x) for x in data.obs}
    assert all((np.asarray(drawn)[:, None] == data.obs[of == p]).all(-1).any(1).mean() > 0.1 for p in range(3))
    close(metrics["horizon"], 540 / len(data.ends()))
    close(module.distance_to_data(data.obs[::7], parts, -1), 0.0)


def test_the_distance_is_to_the_nearest_row_of_the_part_itself(three):
    """Rows of other parts, and what fills up a smaller one, are no data of it."""
    module, args, data, of = three
    parts = module.on_device(data, of, args)
    visited = np.r_[data.obs[of == 0][:5], data.obs[of == 2][:5], np.zeros((1, 3), np.float32)]
    for part in range(3):
        rows = data.obs[of == part]
        expected = np.sqrt(((visited[:, None] - rows) ** 2).sum(-1).min(1))
        close(module.distance_to_data(visited, parts, part), expected.mean())
        assert expected.min() == 0 or part == 1


@pytest.mark.long
def test_the_clone_is_watched_where_it_comes_to(monkeypatch):
    """In a world that ends episodes: starts, then where its own actions lead; compared there with the expert."""
    module = load("data_quality")
    task = dataclasses.replace(env_task("PointOpen-v0"), obs_mean=np.float32([4, 4, 0, 0]), obs_std=np.float32([2] * 4))
    args = module.Args(hidden_dims=(8,), watch_envs=3, watch_steps=6, part=jnp.float32(0))
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, task.spec)
    env, net = jax_env(task), SimpleNamespace(apply=lambda actor, obs: jnp.full((len(obs), 2), actor))
    right = agent.replace(net=net, actor=jnp.float32([1.0, 0.0]))
    came_to = module.visit(right, jax.random.key(1), args, env)
    visited = came_to.reshape(6, 3, 4) * task.obs_std + task.obs_mean
    monkeypatch.setattr(module, "visit", lambda *_: came_to)
    world = task.make_env().unwrapped.world
    np.testing.assert_allclose(np.diff(visited[..., 0], axis=0), world.speed, atol=1e-6)
    np.testing.assert_allclose(np.ptp(visited[..., 1], axis=0), 0.0, atol=1e-6)
    assert np.ptp(visited[0, :, 0]) > 0  # each environment has a start of its own
    obs, ends = np.zeros((8, 4), np.float32), jnp.arange(4)
    parts = module.Parts(None, jnp.asarray(obs), jnp.zeros(1, int), jnp.full(1, 4), ends, {})
    found = module.watch(right, jax.random.key(1), args, parts, module.Watched(env, lambda x: 0 * x[:, :2]))
    close(found["action_divergence"], 0.5)
    close(found["visited_distance"], np.linalg.norm(came_to, axis=-1).mean())
    assert module.watch(right, None, args, parts, module.Watched(None, None)) == {}
    planner = module.find_expert("environments.point_behaviour:expert", task)
    action = planner(jnp.float32([[-1, 0, 0, 0], [0, 1, 0, 0]]))
    assert action.shape == (2, 2) and np.abs(action).max() <= 1.0


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    module, goals = load("data_quality"), write_goals(tmp_path / "maze.npz")
    for dataset, changes, message in (
        (pendulum, {"part": 1.0}, "--part 1: there are 1 datasets, with numbers from 0; -1 is all"),
        (pendulum, {"part": -2.0}, "--part -2: there are 1 datasets"),
        (pendulum, {"part": (0.0, 0.5), "parts": (pendulum,)}, r"--part 0\.5: there are 2 datasets"),
        (pendulum, {"parts": (goals,)}, "has other observations"),
        (pendulum, {"n_neighbours": 1}, "--n-neighbours must be at least 2"),
        (pendulum, {"radius": 0.0}, "--radius above 0"),
        (pendulum, {"expert": "x:y"}, "an environment in JAX is needed"),
        (pendulum, {"expert": "x:y", "env": "phys2d/Pendulum-v0"}, "--expert x:y: there is no such function"),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("data_quality", dataset, tmp_path / "run", **changes))


def test_parts_are_the_first_episodes_of_each(three):
    module, args, whole, _ = three
    data, of = module.load_parts(dataclasses.replace(args, part_episodes=2))
    np.testing.assert_array_equal(of, np.repeat([0, 1, 2], 60))
    assert data.task.id.endswith("pendulum.npz+2") and [d["rows"] for d in whole.task.data["datasets"]] == [
        300,
        90,
        150,
    ]
    first = load_dataset(args.parts[1], args.env)
    close((data.obs * data.task.obs_std + data.task.obs_mean)[120:], first.obs[:60])
