"""What was trained is saved before anything can go wrong, and goes on under other circumstances than it began in."""

import dataclasses
import os
import re
import shutil
import signal

import gymnasium as gym
import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, load, timeless, write_pendulum
from jobs import train
from released import settings
from test_run import PENDULUM, assert_same, fake_wandb, outcome, record, rows, toy

import shared.run
from shared.checkpoint import holds_checkpoint, read_header
from shared.errors import EvaluationFailed, InputError, Interrupted
from shared.evaluation import load_run
from shared.lanes import make_mesh
from shared.task import MAX_EPISODE_STEPS, Task, registered_env


class Hostile(gym.Env):
    """Pendulum-v1's spaces; without an end, and `happens` at the third step of the second episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-2.0, 2.0, (1,))
    happens = staticmethod(lambda: None)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3 and self.seed == 10_001:
            type(self).happens()
        return np.full(3, self.steps, np.float32), 1.0, False, False, {}


gym.register("GoingOn/Endless-v0", Hostile, disable_env_checker=True)
gym.register("GoingOn/Hostile-v0", Hostile, max_episode_steps=5, disable_env_checker=True)
HOSTILE = Task("toy", "hash of the data", PENDULUM, registered_env("GoingOn/Hostile-v0"))


def test_an_environment_without_a_time_limit_is_cut_and_says_where(tmp_path):
    endless = Task("toy", "hash", PENDULUM, registered_env("GoingOn/Endless-v0"))
    assert endless.capped().env_spec.max_episode_steps == MAX_EPISODE_STEPS
    assert HOSTILE.capped() is HOSTILE and HOSTILE.capped(3).env_spec.max_episode_steps == 3
    assert HOSTILE.capped(9).env_spec.max_episode_steps == 5
    toy(tmp_path / "run", endless, max_episode_steps=7, eval_episodes=2)
    assert {r["length"] for r in rows(tmp_path / "run", "returns")} == {"7"}
    assert record(tmp_path / "run")["args"]["max_episode_steps"] == 7


@pytest.mark.parametrize("at", [4, 12])
def test_an_environment_that_fails_loses_nothing(at, tmp_path, monkeypatch):
    """The run ends with its agents saved; with a sound environment it goes on to what it would have been."""

    def fail():
        if trained["now"] == at:
            raise RuntimeError("the simulator is unstable")

    trained = {}
    monkeypatch.setattr(Hostile, "happens", fail)
    note = {"during": lambda run: trained.update(now=run.done + run.chunk), "eval_episodes": 2}
    with pytest.raises(EvaluationFailed, match=r"Hostile-v0 failed .*\(the simulator is unstable\).* saved"):
        toy(tmp_path / "run", HOSTILE, checkpoint_every=100, **note)
    assert record(tmp_path / "run")["status"] == "failed"
    assert read_header(tmp_path / "run" / "checkpoint" / "state.npz")["done"] == at
    monkeypatch.setattr(Hostile, "happens", lambda: None)
    toy(tmp_path / "run", HOSTILE, checkpoint_every=100, resume=True, **note)
    toy(tmp_path / "whole", HOSTILE, checkpoint_every=100, **note)
    assert_same(tmp_path / "run", tmp_path / "whole")
    toy(tmp_path / "run", HOSTILE, checkpoint_every=100, resume=True, **note)  # finished: nothing is evaluated twice
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("at", [4, 12])
def test_a_signal_is_seen_inside_an_evaluation(at, tmp_path, monkeypatch):
    def terminate():
        if trained["now"] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    trained = {}
    monkeypatch.setattr(Hostile, "happens", terminate)
    endless = Task("toy", "hash of the data", PENDULUM, registered_env("GoingOn/Endless-v0"))
    note = {"during": lambda run: trained.update(now=run.done + run.chunk), "eval_episodes": 2, "max_episode_steps": 50}
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", endless, **note)
    assert record(tmp_path / "run")["status"] == "interrupted"
    monkeypatch.setattr(Hostile, "happens", lambda: None)
    toy(tmp_path / "run", endless, resume=True, **note)
    toy(tmp_path / "whole", endless, **note)
    assert_same(tmp_path / "run", tmp_path / "whole")


def stop_at(run_of, step: int, monkeypatch) -> None:
    """`run_of()` until `step`, where a signal comes."""
    log = shared.run.Run.log

    def patched(self, *args, **kwargs):
        if self.done + self.chunk == step:
            os.kill(os.getpid(), signal.SIGTERM)
        log(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(shared.run.Run, "log", patched)
        run_of()


def bc(folder, out, **changes) -> None:
    module = load("bc")
    sizes = {"updates": 8, "log_every": 4, "eval_every": 8, "eval_episodes": 1, "batch_size": 8, "hidden_dims": (8, 8)}
    module.main(module.Args(dataset=str(folder / "pendulum.npz"), env="none", out=str(out), seeds=3, **sizes | changes))


@pytest.fixture
def folder(tmp_path):
    write_pendulum(tmp_path / "pendulum.npz")
    return tmp_path


@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_three_lanes_go_on_on_another_number_of_devices(first, then, folder, monkeypatch):
    def on(devices):
        monkeypatch.setattr(shared.run, "make_mesh", lambda lanes: make_mesh(devices))

    on(first)
    stop_at(lambda: toy(folder / "run", seeds=3), 6, monkeypatch)
    on(then)
    toy(folder / "run", seeds=3, resume=True)
    toy(folder / "whole", seeds=3)
    assert_same(folder / "run", folder / "whole")
    arrays, _, _ = outcome(folder / "run")
    assert {len(x) for x in arrays.values()} == {3}


def test_a_finished_run_goes_on_for_longer(folder, capfd):
    toy(folder / "run", updates=8)
    toy(folder / "run", updates=12, resume=True)
    toy(folder / "whole", updates=12)
    assert_same(folder / "run", folder / "whole")
    assert "--updates 12, not 8: schedules over the run's length follow the new one" in capfd.readouterr().out
    with pytest.raises(InputError, match="has done 12 already"):
        toy(folder / "run", updates=8, resume=True)


def test_what_is_drawn_between_phases_is_that_of_a_longer_run(tmp_path):
    """LDCQ's scale of plans: of no step's key, and the same however many --updates follow (as its weights are here)."""
    data, sizes = write_pendulum(tmp_path / "pendulum.npz"), {"env": "none", "priority_weight": 1.0, "eval_every": 2}
    train("ldcq", data, tmp_path / "run", updates=2, **sizes)
    longer = train("ldcq", data, tmp_path / "run", updates=4, resume=True, **sizes)
    whole = train("ldcq", data, tmp_path / "whole", updates=4, **sizes)
    assert any("plan_mean" in name for name in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(longer[name], value, err_msg=name)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_no_key_is_a_steps_of_a_longer_run(path):
    """Of a script whose --updates may grow: what is drawn beside the steps has keys from before the first."""
    grows = "env_steps" not in {f.name for f in dataclasses.fields(load(path.stem).Args)}
    assert not grows or "step_keys(run.total" not in path.read_text()


def test_other_intervals_and_a_dataset_that_has_moved(folder, monkeypatch):
    stop_at(lambda: bc(folder, folder / "run", log_every=2), 6, monkeypatch)
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "pendulum.npz", folder / "elsewhere")
    bc(folder / "elsewhere", folder / "run", log_every=8, checkpoint_every=8, resume=True)
    bc(folder / "elsewhere", folder / "whole", log_every=8)
    arrays, _, _ = outcome(folder / "run")
    for name, value in outcome(folder / "whole")[0].items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert [row["update"] for row in timeless(folder / "run" / "metrics.csv")] == ["2"] * 3 + ["4"] * 3 + ["6"] * 3 + [
        "8"
    ] * 3
    write_pendulum(folder / "elsewhere" / "pendulum.npz", seed=1)
    with pytest.raises(InputError, match="has changed"):
        bc(folder / "elsewhere", folder / "run", resume=True)


def test_a_wandb_run_goes_on_under_its_id(folder, monkeypatch):
    fake = fake_wandb(monkeypatch)
    stop_at(lambda: toy(folder / "run", seeds=2, wandb="offline"), 6, monkeypatch)
    toy(folder / "run", seeds=2, wandb="offline", resume=True)
    ids = [run.options["id"] for run in fake.runs]
    assert len(ids) == 4 and ids[:2] == ids[2:] and ids[0] != ids[1]
    assert all(run.options["resume"] == "allow" for run in fake.runs)


def test_a_checkpoint_of_padded_lanes_still_loads(folder):
    """As runs wrote them before: the last lane again, until the devices were full."""
    bc(folder, folder / "run")
    path = folder / "run" / "checkpoint" / "state.npz"
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files}
    padded = {k: v if k == "__header__" else np.concatenate([v, v[-1:]]) for k, v in arrays.items()}
    np.savez(path, **padded)
    agents = jax.tree.leaves(load_run(folder / "run").agent)
    assert all(np.shape(x)[0] == 4 for x in agents) and holds_checkpoint(folder / "run")
    bc(folder, folder / "run", updates=16, resume=True)
    assert {len(v) for v in outcome(folder / "run")[0].values()} == {3}


FROM = re.compile(r"--dataset (\S+) .*--from results/runs/(\w+)/")
GOING_ON = [(path.stem, *found) for path in ALGORITHMS for found in FROM.findall(path.read_text())]


@pytest.mark.parametrize("name, dataset, before", GOING_ON)
def test_a_documented_run_can_go_on_from_the_one_it_names(name, dataset, before):
    """Their presets leave rewards and observations alike: --from refuses a run that was trained with other ones."""
    there, here = (settings(load(n), dataset) for n in (before, name))
    nothing = {"normalize_obs": False, "normalize_return": False, "reward_scale": 1.0, "reward_shift": 0.0}
    for option, without in nothing.items():
        assert getattr(here, option, without) == getattr(there, option, without), option


def test_some_runs_are_documented_to_go_on_from_others():
    assert ("cql_finetune", "hopper-medium", "cql") in GOING_ON and len(GOING_ON) >= 7
