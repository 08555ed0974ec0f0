"""ChangedPhysics-v0: the physics that was to change has changed, and nothing else."""

import csv
import dataclasses

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from conftest import load
from environments.changed_physics import ChangedPhysics
from jobs import train

from shared import evaluation
from shared.errors import InputError
from shared.online import LaneEnvs
from shared.task import Task, env_task


def changed_physics(task: Task, **change: float) -> Task:
    return task.in_env("ChangedPhysics-v0", env=task.describe()["env"], **change)


def inner(env: gym.Env) -> gym.Env:
    """The environment whose physics is changed."""
    return env.unwrapped.env.unwrapped if isinstance(env.unwrapped, ChangedPhysics) else env.unwrapped


def pendulum_step(task, angle: float, speed: float, action: float) -> np.ndarray:
    env = task.make_env()
    env.reset(seed=0)
    inner(env).state = np.array([angle, speed])
    return env.step(np.float32([action]))[0]


def test_pendulum_accelerates_by_the_changed_gravity():
    """theta'' = 3 g / (2 l) sin(theta) + 3 u / (m l^2), one step of 0.05 s from the same state."""
    task = env_task("Pendulum-v1")
    for factor in (1.0, 0.3, 2.0):
        obs = pendulum_step(changed_physics(task, gravity=factor), 0.5, 0.2, 1.0)
        speed = 0.2 + 0.05 * (1.5 * 10.0 * factor * np.sin(0.5) + 3.0 * 1.0)
        np.testing.assert_allclose(obs[2], speed, rtol=1e-5)
    np.testing.assert_allclose(
        pendulum_step(task, 0.5, 0.2, 1.0)[2], 0.2 + 0.05 * (15.0 * np.sin(0.5) + 3.0), rtol=1e-5
    )


def test_hopper_falls_by_the_changed_gravity():
    """In the air, without contact: the vertical speed of the centre of mass after one step of the same state."""
    task, speeds = env_task("Hopper-v5"), []
    for factor in (0.0, 1.0, 2.0):
        env = changed_physics(task, gravity=factor).make_env()
        env.reset(seed=0)
        base = inner(env)
        base.set_state(base.init_qpos + np.array([0.0, 5.0, 0.0, 0.0, 0.0, 0.0]), np.zeros(6))
        env.step(np.zeros(3, np.float32))
        mujoco.mj_subtreeVel(base.model, base.data)
        speeds.append(base.data.subtree_linvel[1, 2])
    np.testing.assert_allclose(speeds, -9.81 * base.dt * np.array([0.0, 1.0, 2.0]), rtol=0.02, atol=1e-3)


def slide(task) -> float:
    """How far a Hopper slides that stands on the ground and is pushed along it."""
    env = task.make_env()
    env.reset(seed=0)
    base = inner(env)
    base.set_state(base.init_qpos - np.array([0.0, 0.05, 0.0, 0.0, 0.0, 0.0]), np.array([1.0, 0, 0, 0, 0, 0]))
    for _ in range(10):
        env.step(np.zeros(3, np.float32))
    return float(base.data.geom("foot_geom").xpos[0])


def test_hopper_slides_farther_with_less_friction_and_the_class_is_not_changed():
    task = env_task("Hopper-v5")
    usual, slippery = slide(task), slide(changed_physics(task, friction=0.05))
    assert slippery > usual + 0.04 and slide(changed_physics(task)) == usual
    model = inner(changed_physics(task, friction=0.3).make_env()).model
    np.testing.assert_allclose(model.geom_friction, 0.3 * task.make_env().unwrapped.model.geom_friction)
    assert task.make_env().unwrapped.model.opt.gravity[2] == -9.81


def test_noise_is_on_the_actions_in_units_of_half_their_range_and_is_the_seeds():
    task = env_task("Pendulum-v1")
    noisy = changed_physics(task, noise=0.1)
    env, actions = noisy.make_env(), []
    pendulum = env.unwrapped.env
    step = pendulum.step
    pendulum.step = lambda a: (actions.append(a), step(a))[1]
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        for _ in range(100):
            env.step(np.float32([0.5]))
    x = np.array(actions).reshape(3, 100)
    assert abs(x.std() - 0.2) < 0.03 and abs(x.mean() - 0.5) < 0.04  # the range is [-2, 2]
    assert np.array_equal(x[0], x[1]) and np.abs(x[0] - x[2]).min() > 0
    np.testing.assert_array_less(np.abs(x), 2.0 + 1e-6)


def test_a_lane_steps_the_changed_environment_and_comes_back_after_a_restart():
    task = env_task("Pendulum-v1")
    noisy = changed_physics(task, gravity=2.0, noise=0.3)
    assert noisy.spec == task.spec and noisy.env_spec.max_episode_steps == 200
    action = np.full((1, 1), 0.5, np.float32)
    envs, plain = LaneEnvs(noisy, [5]), LaneEnvs(task, [5])
    assert np.array_equal(envs.obs, plain.obs)
    for _ in range(7):
        row, other = envs.step(action), plain.step(action)
    assert not np.allclose(row, other)
    again = LaneEnvs(noisy, [5])
    again.restore(envs.state())
    np.testing.assert_array_equal(again.step(action), envs.step(action))


def test_what_cannot_be_changed_is_said():
    with pytest.raises(InputError, match="MuJoCo"):
        changed_physics(env_task("Pendulum-v1"), friction=0.3)
    with pytest.raises(InputError, match="gravity"):
        changed_physics(env_task("MountainCarContinuous-v0"), gravity=2.0)
    with pytest.raises(InputError, match="continuous"):
        changed_physics(env_task("CartPole-v1"), noise=0.1)
    with pytest.raises(InputError, match="written in JAX"):
        changed_physics(env_task("phys2d/Pendulum-v0"), noise=0.1)
    assert changed_physics(env_task("MountainCarContinuous-v0"), noise=0.1).env_spec.max_episode_steps == 999


def test_a_task_without_an_environment_or_with_other_shapes_is_said():
    task = env_task("Pendulum-v1")
    with pytest.raises(InputError, match="--env"):
        changed_physics(dataclasses.replace(task, env_spec=None), gravity=2.0)
    with pytest.raises(InputError, match="other observations or actions"):
        task.in_env("Hopper-v5")
    with pytest.raises(InputError, match="not registered"):
        task.in_env("ChangedPhysics-v0", env="os:system")


def test_it_is_an_id_like_any_other():
    """Also of another environment's id alone; the arguments of the one inside reach it; it draws what that draws."""
    env = gym.make("ChangedPhysics-v0", env="Pendulum-v1", gravity=2.0, render_mode="rgb_array")
    env.reset(seed=0)
    assert inner(env).g == 20.0 and env.render().ndim == 3 and "rgb_array" in env.metadata["render_modes"]
    steps = 1
    while not env.step(np.zeros(1, np.float32))[3]:
        steps += 1
    assert steps == 200
    of = {"id": "Hopper-v5", "kwargs": {"forward_reward_weight": 3.0}, "max_episode_steps": 7}
    env = gym.make("ChangedPhysics-v0", env=of, friction=0.5)
    env.reset(seed=0)
    assert inner(env)._forward_reward_weight == 3.0
    assert [env.step(np.zeros(3, np.float32))[3] for _ in range(7)] == [False] * 6 + [True]


@pytest.mark.long
def test_a_stored_run_comes_back_with_its_physics(pendulum, tmp_path, monkeypatch):
    """A policy that was evaluated in changed physics is evaluated there again, from its checkpoint alone."""
    module, out = load("td3_bc"), tmp_path / "run"

    def changed(*args, loaded=module.load_dataset):
        data = loaded(*args)
        return dataclasses.replace(data, task=changed_physics(data.task, gravity=0.3, noise=0.1))

    monkeypatch.setattr(module, "load_dataset", changed)
    train("td3_bc", pendulum, out)
    monkeypatch.undo()
    task = evaluation.load_run(out).task
    env = task.make_env()
    assert task.env_spec.id == "ChangedPhysics-v0" and inner(env).g == 3.0 and env.unwrapped.noise == 0.1
    evaluation.main([str(out), "--episodes", "2"])
    first = [next(csv.DictReader((out / f"{name}.csv").open()))["return"] for name in ("returns", "evaluation")]
    assert float(first[0]) == pytest.approx(float(first[1]), rel=1e-6)
