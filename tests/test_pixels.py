"""Images: bytes on the device, shifted at random, seen through an encoder; from a dataset to a film of the policy."""

import ast
import dataclasses
import shutil

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALGORITHMS, load
from environments.point_env import IDS
from jobs import train

from shared.checkpoint import read_header
from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import load_run
from shared.evaluation import main as evaluation
from shared.goals import goal_dataset
from shared.run import Run
from shared.task import Spec
from shared.transitions import random_shift

SHORT = "PixelsTest/Short-v0"
gym.register(SHORT, "environments.point_env:PointEnv", max_episode_steps=3, kwargs=IDS["PointPixels"][0])
NAMES = ("bc", "td3_bc", "iql", "gcbc", "hiql")
E, T, SIDE = 4, 10, 16
N = E * T
SEEN = Spec((SIDE, SIDE, 3), 2, False, (-1.0, -1.0), (1.0, 1.0))


@pytest.fixture
def pictures(tmp_path) -> str:
    """40 rows in 4 episodes, the first two of which terminate; the next observation of row 12 is not the next row's."""
    r = np.random.default_rng(0)
    frames = r.integers(0, 256, (E, T + 1, SIDE, SIDE, 3), dtype=np.uint8)
    next_obs = frames[:, 1:].reshape(N, SIDE, SIDE, 3).copy()
    next_obs[12] = 7
    ends = np.arange(N) % T == T - 1
    path = tmp_path / "pictures.npz"
    np.savez(
        path,
        observations=frames[:, :-1].reshape(N, SIDE, SIDE, 3),
        next_observations=next_obs,
        actions=r.uniform(-1, 1, (N, 2)).astype(np.float32),
        rewards=r.normal(size=N).astype(np.float32),
        terminals=ends & (np.arange(N) < 2 * T),
        timeouts=ends & (np.arange(N) >= 2 * T),
    )
    return str(path)


# ------------------------------------------------------------------------------------- on the device


def test_images_are_bytes_on_the_device_each_stored_once(pictures):
    data = load_dataset(pictures)
    held = data.transitions(random_shift=2)
    assert held.frames.dtype == jnp.uint8 and held.frames.shape == (N + E + 1, SIDE, SIDE, 3)
    assert held.rows.shape == (N, 2 + 1 + 1)  # action, reward, terminal
    batch = held.sample(jax.random.key(0), 6)
    assert batch.obs.dtype == batch.next_obs.dtype == jnp.uint8 and batch.obs.shape == (6, SIDE, SIDE, 3)
    cloned = data.transitions("obs", "action").sample(jax.random.key(0), 6)
    assert cloned.next_obs is None and cloned.obs.shape == (6, SIDE, SIDE, 3)


def test_every_row_has_its_own_images(pictures):
    data = load_dataset(pictures)
    for index in (np.arange(N), np.arange(N).reshape(8, 5)):
        batch = data.transitions().take(jnp.asarray(index))
        np.testing.assert_array_equal(batch.obs, data.obs[index])
        np.testing.assert_array_equal(batch.next_obs, data.next_obs[index])
        np.testing.assert_array_equal(batch.reward, data.reward[index])
    assert (data.next_obs[12] == 7).all() and not data.last[12]


def test_images_are_not_normalised(pictures):
    data = load_dataset(pictures)
    assert data.normalize_obs() is data


def test_who_has_no_encoder_refuses_images(pictures):
    data = load_dataset(pictures)
    with pytest.raises(InputError, match="image observations; this needs vectors"):
        data.require(discrete=False)
    assert data.require(discrete=False, images=True) is data


def test_stacked_frames_are_channels_in_either_order_of_axes(tmp_path):
    stacked = np.random.default_rng(0).integers(0, 256, (N, 2, 3, 8, 8), dtype=np.uint8)  # [frames, C, H, W]
    arrays = {"actions": np.zeros((N, 2)), "rewards": np.ones(N), "dones": np.arange(N) % T == T - 1}
    right = np.concatenate([stacked[:, 0], stacked[:, 1]], axis=1).transpose(0, 2, 3, 1)
    for name, x in (("first", stacked), ("last", np.moveaxis(stacked, 2, -1))):
        np.savez(tmp_path / f"{name}.npz", observations=x, **arrays)
        data = load_dataset(str(tmp_path / f"{name}.npz"))
        np.testing.assert_array_equal(data.obs, right)


# -------------------------------------------------------------------------------------- random shift


def test_random_shift_against_plain_numpy():
    key = jax.random.key(3)
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
    found = np.asarray(random_shift(key, jnp.asarray(images), 2))
    corners = np.asarray(jax.random.randint(key, (50, 2), 0, 5))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    right = [p[y : y + 6, x : x + 5] for p, (y, x) in zip(padded, corners, strict=True)]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, right)
    assert len(np.unique(corners, axis=0)) > 15 and {0, 4} <= set(corners.ravel())
    rows = random_shift(key, jnp.asarray(images).reshape(10, 5, 6, 5, 3), 2)
    np.testing.assert_array_equal(np.asarray(rows).reshape(found.shape), found)


def test_obs_and_next_obs_are_shifted_apart_and_rows_stay_the_same(pictures):
    data = load_dataset(pictures)
    held = data.transitions(random_shift=3)
    batch = held.sample(jax.random.key(1), 30)
    rows = [int(np.flatnonzero(data.reward == r)[0]) for r in np.asarray(batch.reward)]
    moved = [np.abs(np.asarray(x, int) - y[rows]).reshape(30, -1).any(1) for x, y in
             ((batch.obs, data.obs), (batch.next_obs, data.next_obs))]  # fmt: skip
    assert moved[0].mean() > 0.8 and moved[1].mean() > 0.8
    np.testing.assert_array_equal(held.take(jnp.arange(N)).obs, data.obs)  # what is taken by its index stays
    assert all(set(x.ravel()) <= set(data.obs[i].ravel()) for x, i in zip(np.asarray(batch.obs), rows, strict=True))


def test_vectors_are_not_shifted(pendulum):
    with pytest.raises(InputError, match="--random-shift moves images"):
        load_dataset(pendulum).transitions(random_shift=1)


# ------------------------------------------------------------------------------------------- encoder


def test_the_encoder_is_made_of_convolutions():
    module, r = load("bc"), np.random.default_rng(0)
    for stride, side in ((1, 8), (2, 9)):
        x, kernel = r.normal(size=(2, side, side, 3)).astype(np.float32), r.normal(size=(3, 3, 3, 4)).astype(np.float32)
        right = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(module.patches(x, stride) @ kernel.reshape(27, 4), right, rtol=1e-4, atol=1e-4)
    for side, channels in ((16, 3), (32, 9)):
        obs = jax.ShapeDtypeStruct((2, side, side, channels), jnp.uint8)
        params = jax.eval_shape(module.Encoder().init, jax.random.key(0), obs)
        assert params["params"]["Dense_0"]["kernel"].shape == (9 * channels, 32)
        assert params["params"]["Dense_4"]["kernel"].shape == ((side // 2) ** 2 * 32, 50)
        assert jax.eval_shape(module.Encoder().apply, params, obs).shape == (2, 50)


def test_the_encoder_is_written_in_one_way():
    """Files that have it have the same lines."""
    written = {"Encoder": {}, "patches": {}}
    for path in ALGORITHMS:
        source = path.read_text()
        for node in ast.parse(source).body:
            if getattr(node, "name", "") in written:
                written[node.name].setdefault(ast.get_source_segment(source, node), []).append(path.stem)
    for texts in written.values():
        assert [sorted(names) for names in texts.values()] == [sorted(NAMES)]


def changed(before, after) -> bool:
    return any(np.abs(x - y).max() > 0 for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_the_critics_train_the_encoder_and_the_actor_does_not(pictures):
    td3_bc, iql = load("td3_bc"), load("iql")
    batch = load_dataset(pictures).transitions().take(jnp.arange(8))
    key = jax.random.key(0)
    args = td3_bc.Args(hidden_dims=(8,), batch_size=8)
    agent = jax.jit(td3_bc.init, static_argnums=2)(key, args, SEEN)
    new, _ = jax.jit(td3_bc.update_critic)(agent, batch, key, args)
    assert changed(agent.encoder, new.encoder) and changed(agent.critic, new.critic)
    new, _ = jax.jit(td3_bc.update_actor)(agent, batch, args)
    assert not changed(agent.encoder, new.encoder) and changed(agent.actor, new.actor)
    args = iql.Args(hidden_dims=(8,), batch_size=8, critic_lr=0.0, updates=10)  # Q stands still, V and the actor learn
    agent, update = jax.jit(iql.init, static_argnums=2)(key, args, SEEN), jax.jit(iql.update)
    new, _ = update(agent, batch, key, args)
    assert not changed(agent.encoder, new.encoder) and changed(agent.value, new.value)
    assert changed(agent.actor, new.actor)
    new, _ = update(agent, batch, key, dataclasses.replace(args, critic_lr=1e-3))
    assert changed(agent.encoder, new.encoder)


# ------------------------------------------------------------------------------------ the whole path


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_agree_on_images(name, pictures, tmp_path):
    found = [
        train(name, pictures, tmp_path / layout, layout=layout, seeds=2, random_shift=1, hidden_dims=(8,), env="none")
        for layout in ("map", "vmap")
    ]
    for path, value in found[0].items():
        np.testing.assert_allclose(value, found[1][path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_a_policy_of_images_is_resumed_loaded_and_filmed(pictures, tmp_path, monkeypatch):
    known = {"random_shift": 1, "hidden_dims": (8,), "env": SHORT, "updates": 8, "eval_every": 8}
    out, log = tmp_path / "parts", Run.log

    def copied(self, *args, **kwargs):
        log(self, *args, **kwargs)
        if self.done == 4:
            shutil.copytree(self.out, out)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", copied)
        straight = train("td3_bc", pictures, tmp_path / "straight", **known)
    assert read_header(out / "checkpoint" / "state.npz")["done"] == 4
    resumed = train("td3_bc", pictures, out, resume=True, **known)
    for path, value in straight.items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    policies = load_run(out)
    env = policies.task.make_env()
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.uint8 and env.action_space.contains(policies.act_in(0)(obs))
    evaluation([str(out), "--episodes", "2", "--video", str(tmp_path / "x.gif")])
    assert (tmp_path / "x.gif").stat().st_size > 0 and (out / "evaluation.csv").read_text().count("\n") == 3


def encoders(agents: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """{part of the agent: the arrays of its encoder}."""
    found = {}
    for path, value in agents.items():
        if "Encoder_0" in path and "opt" not in path:
            found.setdefault(path.split(".")[1].split("[")[0], []).append(value)
    return found


@pytest.mark.parametrize(
    "name, parts",
    [
        ("gcbc", {"actor"}),
        pytest.param("hiql", {"high_actor", "low_actor", "representation", "value"}, marks=pytest.mark.long),
    ],
)
def test_a_picture_is_a_goal(name, parts, pictures, tmp_path, monkeypatch):
    """Trained on pictures, told by a picture where to go, and not indifferent to it; each part has an encoder."""
    first, init = {}, Run.init

    def kept(self, init_lane):
        agent = init(self, init_lane)
        leaves = jax.tree_util.tree_leaves_with_path(agent)
        first.update({"[0]" + jax.tree_util.keystr(path): np.array(x) for path, x in leaves})
        return agent

    monkeypatch.setattr(Run, "init", kept)
    known = {"hidden_dims": (8,), "subgoal_steps": 3, "eval_episodes": 1, "tasks": (2,), "max_episode_steps": 3}
    after = encoders(train(name, pictures, tmp_path / "run", env="PointPixelGoals-v0", **known))
    before = encoders(first)
    assert before.keys() == after.keys() >= parts and all(changed(before[part], after[part]) for part in parts)
    policies = load_run(tmp_path / "run")
    assert policies.task.spec.obs_shape == policies.task.spec.goal_shape == (SIDE, SIDE, 3)
    env = policies.task.make_env()
    first, _ = env.reset(seed=0, options={"task_id": 2})
    other = {**first, "desired_goal": first["observation"]}
    assert first["desired_goal"].dtype == np.uint8 and (first["desired_goal"] != first["observation"]).any()
    act = policies.act_in(0)
    assert np.abs(act(first) - act(other)).max() > 0
    env.unwrapped.state = env.unwrapped.state._replace(position=env.unwrapped.state.goal)
    stays = env.step(np.zeros(2, np.float32))[0]
    np.testing.assert_array_equal(stays["observation"], first["desired_goal"])


@pytest.mark.long
def test_the_low_actors_loss_reaches_its_encoder(pictures):
    hiql, spec, r = load("hiql"), SEEN._replace(goal_shape=SEEN.obs_shape), np.random.default_rng(0)
    args = hiql.Args(hidden_dims=(8,), batch_size=8, representation_dim=4, subgoal_steps=3)
    data = goal_dataset(load_dataset(pictures)).transitions()
    batch = jax.jit(hiql.sample)(jax.random.key(1), data, args)
    agent = jax.eval_shape(lambda key: hiql.init(key, args, spec), jax.random.key(0))  # nothing of it is compiled
    agent = jax.tree.map(lambda x: np.asarray(0.1 * r.normal(size=x.shape), x.dtype), agent)
    grads = jax.jit(jax.grad(lambda p: hiql.low_actor_loss(p, agent, batch, args)[0]))(agent.low_actor)
    assert changed(grads["params"]["Encoder_0"], jax.tree.map(np.zeros_like, grads["params"]["Encoder_0"]))
