"""Windows of sequences on the device, on a hand-written log of three episodes; targets, scales and contexts.

rows      0 1 2 | 3 4 5 6 | 7
ends with terminal, time limit, end of the log
"""

import ast
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT, load
from jax.sharding import SingleDeviceSharding

from shared.arguments import preset_for
from shared.data import Dataset
from shared.errors import InputError
from shared.replay import init_replay
from shared.sequences import (
    horizon,
    replay_windows,
    require_context,
    require_target,
    return_scale,
    sequences,
    target_returns,
    window_starts,
)
from shared.task import Spec, Task, recipe_name, registered_env

SPEC = Spec((2,), 1, False, (-1.0,), (1.0,))
LAST = np.bool_([0, 0, 1, 0, 0, 0, 1, 1])
TERMINAL = np.bool_([0, 0, 1, 0, 0, 0, 0, 0])
REWARD = np.float32([1, 2, 3, 10, 20, 30, 40, 100])
FIELDS = ("obs", "action", "reward", "terminal", "return_to_go")


def log(env: str | None = None, **changes) -> Dataset:
    obs = np.stack([np.arange(8), 10.0 + np.arange(8)], 1).astype(np.float32)
    action = np.linspace(-0.6, 0.6, 8, dtype=np.float32)[:, None]
    task = Task("log", "", changes.pop("spec", SPEC), registered_env(env) if env else None)
    return dataclasses.replace(Dataset(task, obs, action, REWARD, obs + 1, TERMINAL, LAST), **changes)


def rows_of(window) -> list:
    """Each step's row, None where the window is padded, there with zeros alone."""
    mask = np.asarray(window.mask) > 0
    for x in (window.obs, window.action, window.reward, window.return_to_go, window.timestep):
        assert not np.asarray(x)[~mask].any()
    rows = np.asarray(window.obs)[..., 0].astype(int)
    return [[row if m else None for row, m in zip(*one, strict=True)] for one in zip(rows.tolist(), mask, strict=True)]


def test_windows_stay_within_their_episode_and_are_padded_on_the_left():
    data = sequences(log(), *FIELDS)
    every = np.arange(8)
    assert rows_of(data.until(every, 3)) == [
        [None, None, 0], [None, 0, 1], [0, 1, 2],
        [None, None, 3], [None, 3, 4], [3, 4, 5], [4, 5, 6],
        [None, None, 7],
    ]  # fmt: skip
    assert rows_of(data.after(every, 3)) == [
        [0, 1, 2], [None, 1, 2], [None, None, 2],
        [3, 4, 5], [4, 5, 6], [None, 5, 6], [None, None, 6],
        [None, None, 7],
    ]  # fmt: skip
    assert rows_of(data.take(np.array([1, 5]), np.arange(-2, 3))) == [[None, 0, 1, 2, None], [3, 4, 5, 6, None]]
    assert rows_of(data.take(np.array([1, 4]), np.array([[0, -1], [2, 5]]))) == [[1, 0], [6, None]]
    assert rows_of(data.after(np.array([3]), 1)) == [[3]]


def test_a_window_begins_where_it_is_whole_or_ends_with_a_terminal_row():
    assert window_starts(log(), 1).tolist() == list(range(8))
    assert window_starts(log(), 3).tolist() == [0, 1, 2, 3, 4]
    assert window_starts(log(), 5).tolist() == [0, 1, 2]
    within = log(terminal=np.bool_([0, 0, 1, 0, 1, 0, 0, 0]))  # the episode goes on after it
    assert window_starts(within, 4).tolist() == [0, 1, 2, 3, 4]
    unknown = log(successor=np.bool_([1, 1, 0, 1, 1, 1, 0, 0]))  # row 6 bootstraps from nothing known, row 2 needs not
    assert window_starts(unknown, 3).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"^--chunk-length 5: no episode of 'log' has so many rows with a successor"):
        window_starts(log(terminal=np.zeros(8, bool)), 5, "--chunk-length")


def test_a_windows_columns_are_the_rows_own():
    """Returns-to-go end with the task, the time limit and the log, not with the window."""
    data = log()
    window = jax.jit(lambda s, row: s.after(row, 3))(sequences(data, *FIELDS), np.array([1, 4]))
    for name in ("obs", "action", "reward", "terminal"):
        wanted = getattr(data, name).astype(np.float32)
        found = np.asarray(getattr(window, name))
        np.testing.assert_array_equal(found[0, 1:], wanted[1:3])
        np.testing.assert_array_equal(found[1], wanted[4:7])
        assert not found[0, 0].any()
    assert window.return_to_go.tolist() == [[0, 5, 3], [90, 70, 40]]
    assert window.timestep.tolist() == [[0, 1, 2], [1, 2, 3]] and window.mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert window.next_obs is None


def test_discrete_actions_stay_numbers_of_choices():
    spec = Spec((2,), 9, True)
    data = sequences(log(spec=spec, action=np.arange(8, dtype=np.int32)), "obs", "action")
    window = data.until(np.array([1]), 3)
    assert window.action.dtype == np.int32 and window.action.tolist() == [[0, 0, 1]]
    assert window.reward is None


def test_episodes_are_drawn_by_their_length_or_by_weight():
    keys, n = jax.random.key(0), 40_000
    drawn = np.asarray(sequences(log(), "obs").rows(keys, n))
    np.testing.assert_allclose(np.bincount(drawn, minlength=8) / n, 1 / 8, atol=0.01)
    weights = np.float64([0, 0, 0, 1, 1, 1, 1, 4])
    drawn = np.asarray(sequences(log(), "obs", weights=weights).rows(keys, (n // 4, 4))).ravel()
    np.testing.assert_allclose(np.bincount(drawn, minlength=8) / n, weights / 8, atol=0.01)


def test_rows_without_a_successor_are_left_out_of_the_bounds():
    data = sequences(log(successor=np.bool_([1, 1, 1, 1, 1, 1, 0, 1])), "obs", "next_obs")
    assert data.start.tolist() == [0, 0, 0, 3, 3, 3, 6] and data.end.tolist() == [2, 2, 2, 5, 5, 5, 6]


def test_single_rows_are_no_sequences():
    with pytest.raises(InputError, match="no sequences"):
        sequences(log(last=np.ones(8, bool)), "obs")


def test_a_context_is_one_that_an_episode_can_have():
    assert require_context(log(), 4) == 4 and horizon(log()) == 4 and horizon(log("Pendulum-v1")) == 200
    with pytest.raises(InputError, match=r"--window 5: the longest episode of 'log' has 4 rows"):
        require_context(log(), 5, "--window")
    with pytest.raises(InputError, match=r"--context 201: episodes of Pendulum-v1 end after 200 steps"):
        require_context(log("Pendulum-v1"), 201)
    with pytest.raises(InputError, match="at least 1"):
        require_context(log(), 0)


def test_targets_are_of_the_datas_sign_and_scale():
    """The log's episodes return 6, 100 and 100."""
    assert target_returns(log(), 0.0) == 100.0 and target_returns(log(), (50.0, 0.0, 1000.0)) == (50.0, 100.0, 1000.0)
    costs = log(reward=-REWARD)
    assert target_returns(costs, 0.0) == -6.0 and target_returns(costs, -3.0) == -3.0
    for data, target in ((log(), -1.0), (log(), 1001.0), (costs, 1.0), (costs, -1001.0), (log(), (1.0, -1.0))):
        with pytest.raises(InputError, match=r"--target-return -?\d+ is of another .* are -?\d+ to -?\d+\."):
            target_returns(data, target)
    told = log().task
    require_target(1e6, told)  # nothing is known of its returns
    for known, fine, foreign in (
        ([6.0, 100.0], (6.0, 100.0, 1000.0), {1001.0: "another", -1.0: "another", 0.0: "asks for a return of 0, not"}),
        ([-1500.0, -120.0], (-1.0, -15e3), {1.0: "another", -16e3: "another", 0.0: "asks for a return of 0, not"}),
        ([0.0, 1.0], (0.0, 10.0), {11.0: "another", -1.0: "another"}),
        ([-5.0, 5.0], (0.0, -50.0, 50.0), {51.0: "another"}),
    ):
        task = dataclasses.replace(told, data={"episode_returns": known})
        for target in fine:
            require_target(target, task)
        for target, message in foreign.items():
            with pytest.raises(InputError, match=f"--set target_return={target:g} .*{message}.* {known[0]:g} to"):
                require_target(target, task)
    nothing = log(reward=np.zeros(8, np.float32))
    assert target_returns(nothing, 0.0) == 0.0 and return_scale(nothing, 0.0) == 1.0
    assert return_scale(log(), 0.0) == 100.0 == return_scale(costs, 0.0)
    assert return_scale(log(), 7.0) == 7.0 and return_scale(log(), (7.0, 0.0)) == (7.0, 100.0)
    for scale in (-7.0, (7.0, -7.0)):
        with pytest.raises(InputError, match="--return-scale -7: .* or 0 for the largest of 'log', 100"):
            return_scale(log(), scale)


def test_windows_of_a_replay_buffer_end_with_their_episode_and_the_newest_row():
    """A ring of 6 holds rows 2 to 7: 2 is terminal, 5 is followed by a new episode, 7 is the newest."""
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 6, SPEC, SingleDeviceSharding(jax.devices()[0])))
    first = replay_windows(replay, jax.random.key(0), 4, 3)
    assert not np.asarray(first.reward).any()  # nothing was inserted yet
    for row in range(8):
        obs = 100.0 * (row > 5) + np.array([row, 10.0 + row])
        terminal = row == 2  # and the next episode begins where this one ended
        replay = replay.insert(np.float32([*obs, 0.1 * row, row, terminal, *(obs + 1)]))
    window = jax.jit(lambda replay: replay_windows(replay, jax.random.key(1), 300, 3))(replay)
    rows = {
        tuple(r[m > 0].astype(int)) for r, m in zip(np.asarray(window.reward), np.asarray(window.mask), strict=True)
    }
    assert rows == {(2,), (3, 4, 5), (4, 5), (5,), (6, 7), (7,)}
    for name in ("obs", "action", "reward", "terminal", "next_obs", "successor"):
        assert not np.asarray(getattr(window, name))[np.asarray(window.mask) == 0].any()
    inside = np.asarray(window.mask) > 0
    assert (np.asarray(window.successor)[inside] == 1).all() and window.obs.shape == (300, 3, 2)
    np.testing.assert_array_equal(window.next_obs[inside], np.asarray(window.obs)[inside] + 1)


# ------------------------------------------------------------------------- the files' own defaults

ASKS = {"require_context": "--context", "window_starts": "--window-steps", "require_steps": ""}
"""What refuses more rows than an episode has, and the option that it names where it is told none."""


def asked_of_episodes(path: Path) -> dict[str, int]:
    """{argument of a file: rows beside as many as it says} that an episode must have."""
    text, found = path.read_text(), {}
    if not any(f"{name}(" in text for name in ASKS):
        return {}
    for function in (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)):
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        made = {(getattr(call.func, "attr", getattr(call.func, "id", "")), len(call.args)) for call in calls}
        if not (asks := {name for name, _ in made} & ASKS.keys()):
            continue
        words = [node.value for node in ast.walk(function) if isinstance(node, ast.Constant)]
        options = {word for word in words if isinstance(word, str) and re.fullmatch(r"--[a-z-]+", word)}
        options |= {ASKS[name] for name in asks if ASKS[name] and (name, 2) in made}
        found |= {option[2:].replace("-", "_"): int("require_steps" in asks) for option in options}
    return found


def rows_of_longest(dataset: str) -> int:
    """Of a recipe's data, the longest episode: by the record of a run on it, by a lock's name, else their mean."""
    records = (json.loads(path.read_text()) for path in (ROOT / "results" / "runs").glob(f"*/{dataset}/*/run.json"))
    data = [record["task"].get("data") or {} for record in records]
    if known := [facts["longest"] for facts in data if "longest" in facts]:
        return max(known)
    if steps := re.search(r"combination-lock-h(\d+)", dataset):
        return int(steps[1])
    table = json.loads((ROOT / "datasets" / "table.json").read_text())
    return next(row["steps"] // row["episodes"] for row in table if row["name"] == recipe_name(dataset))


def test_what_is_asked_of_episodes_is_found():
    files = {path.stem: path for path in ALGORITHMS}
    for name, arguments in {
        "bc": {},
        "bisimulation_history": {"window_steps": 0},
        "deas": {"chunk_length": 0},
        "gcpc": {"context": 1, "future_steps": 1},
        "hiql": {"subgoal_steps": 1},
        "metadiffuser": {"window_steps": 0},
        "oppo": {"context": 0, "foresee": 0},
    }.items():
        assert asked_of_episodes(files[name]) == arguments, name
    assert (rows_of_longest("combination-lock-h10-trajectory"), rows_of_longest("point-mazes-demos")) == (10, 24)
    assert rows_of_longest("hopper-medium") == 1_000_000 // 2_414


@pytest.mark.parametrize("path", [path for path in ALGORITHMS if asked_of_episodes(path)], ids=lambda path: path.stem)
def test_the_defaults_of_a_file_fit_the_episodes_of_its_default_data(path):
    module = load(path.stem)
    key = preset_for(module.Args.dataset, module.PRESETS)
    args = dataclasses.replace(module.Args(), **module.PRESETS.get(key, {}))
    longest = rows_of_longest(args.dataset)
    for argument, beside in asked_of_episodes(path).items():
        assert 1 <= getattr(args, argument) + beside <= longest, (argument, args.dataset, longest)
