"""Files as other collections have them: what their arrays say of episodes, whatever the arrays are called.

Eight episodes of 50 rows unless a test says otherwise; the right values are written here, never computed by the loader.
"""

import os
from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from shared.data import load_dataset
from shared.errors import InputError
from shared.fields import jumps
from shared.sequences import sequences

E, T = 8, 50
N = E * T
ENDS = np.arange(N) % T == T - 1
STARTS = np.arange(N) % T == 0
NONE = np.zeros(N, bool)
SOME = ENDS & (np.arange(N) // T < 3)
"""Ends of the first three episodes."""


def log(**changes) -> dict[str, np.ndarray]:
    """A D4RL-like table without flags; a change to None takes an array away."""
    r = np.random.default_rng(0)
    frames = np.cumsum(r.uniform(0.0, 0.3, (E, T + 1, 4)), 1) + 100.0 * np.arange(E)[:, None, None]
    arrays = {
        "observations": frames[:, :-1].reshape(N, 4).astype(np.float32),
        "actions": r.uniform(-1, 1, (N, 2)).astype(np.float32),
        "rewards": np.repeat(np.arange(1.0, E + 1), T),
        "next_observations": frames[:, 1:].reshape(N, 4).astype(np.float32),
    }
    return {name: x for name, x in (arrays | changes).items() if x is not None}


def write(path, arrays: dict) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, x in arrays.items():
                file[name] = x
    return str(path)


def counts(data) -> tuple[int, int, int]:
    """Rows, episodes, terminals; of the arrays, and as they are told."""
    told = data.task.data
    found = len(data.obs), len(data.ends()), int(data.terminal.sum())
    assert (told["rows"], told["episodes"], told["terminals"]) == found
    return found


# ------------------------------------------------------------------------------------------ flags

TERMINALS = {
    **dict.fromkeys(("terminals", "terminal", "terminated", "terminateds", "terminations", "is_terminal"), ENDS),
    **dict.fromkeys(("dones", "done", "Dones"), ENDS),
    **dict.fromkeys(("not_done", "masks", "nonterminals", "not-done"), ~ENDS),
    **dict.fromkeys(("discount", "discounts"), 0.99 * ~ENDS),
}


@pytest.mark.parametrize("following", [True, False])
@pytest.mark.parametrize("name", TERMINALS)
def test_terminations_by_any_of_their_names(name, following, tmp_path):
    changes = {} if following else {"next_observations": None}
    data = load_dataset(write(tmp_path / "x.npz", log(**{name: TERMINALS[name].astype(np.float32)}, **changes)))
    assert counts(data) == (N, E, E) and (data.terminal == ENDS).all() and (data.last == ENDS).all()
    assert data.task.data["time_limits"] == 0 and data.task.data["not_read"] == []


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float64])
def test_flags_of_any_type(kind, shape, tmp_path):
    data = load_dataset(write(tmp_path / "x.hdf5", log(done=ENDS.astype(kind).reshape(shape))))
    assert counts(data) == (N, E, E)


LIMITS = ("timeouts", "timeout", "truncateds", "truncated", "truncations", "TimeLimit.truncated")


@pytest.mark.parametrize("name", LIMITS)
def test_time_limits_by_any_of_their_names(name, tmp_path):
    data = load_dataset(write(tmp_path / "x.npz", log(**{name: ENDS & ~SOME}, dones=SOME)))
    assert counts(data) == (N, E, 3) and data.task.data["time_limits"] == 5 and data.task.data["cuts"] == 0


CUTS = {
    **dict.fromkeys(("episode_ends", "episode_terminals", "is_last", "dones_float", "ends", "traj_ends"), ENDS),
    **dict.fromkeys(("is_first", "episode_starts", "starts", "first"), STARTS),
    **dict.fromkeys(("episode_ids", "episode_index", "traj_id", "episode"), np.arange(N) // T * 7 + 3),
    "episode_lengths": np.full(E, T),
    "meta_episode_ends": None,
}


@pytest.mark.parametrize("name", [name for name, x in CUTS.items() if x is not None])
def test_an_end_of_an_episode_is_no_termination(name, tmp_path):
    data = load_dataset(write(tmp_path / "x.npz", log(next_observations=None, **{name: CUTS[name]})))
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all() and data.task.data["cuts"] == E


def test_what_speaks_of_episodes_and_is_not_understood_is_told_or_refused(tmp_path):
    """A table that terminates in three rows would be three episodes of 50 and one of 250."""
    arrays = log(next_observations=None, terminals=SOME)
    for i, (name, x) in enumerate({"episodes": E, "step_type": np.full(N, 7), "discount": np.arange(N)}.items()):
        data = load_dataset(write(tmp_path / f"{i}.npz", arrays | {name: x}))
        assert any(note.startswith(f"{name} ") and "not used" in note for note in data.task.data["notes"])
    with pytest.raises(InputError, match=r"are 401 rows in 8 episodes, here are 400.*ignore=episode_lengths"):
        load_dataset(write(tmp_path / "x.npz", arrays | {"episode_lengths": np.full(E, T) + (np.arange(E) == 2)}))
    data = load_dataset(write(tmp_path / "y.npz", log(next_observations=None, episode_id=np.arange(N) // T % 2)))
    assert counts(data) == (N, E, 0) and "6 times a value comes back" in data.task.data["notes"][0]


def test_ends_as_numbers_of_rows(tmp_path):
    ends = np.arange(T, N + 1, T)
    data = load_dataset(write(tmp_path / "x.npz", log(next_observations=None, episode_ends=ends)))
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all()


def test_done_is_terminated_or_truncated_where_a_file_has_the_others(tmp_path):
    """tianshou and old gym: done marks time limits, too."""
    three = log(terminated=SOME, truncated=ENDS & ~SOME, done=ENDS)
    two = log(done=ENDS, timeouts=ENDS & ~SOME)
    apart = log(done=SOME, timeouts=ENDS & ~SOME)
    only_ends = log(terminals=SOME, dones=ENDS)
    for i, arrays in enumerate((three, two, apart, only_ends)):
        data = load_dataset(write(tmp_path / f"{i}.npz", arrays))
        assert counts(data) == (N, E, 3) and (data.terminal == SOME).all(), i
        assert data.task.data["time_limits"] == (0 if arrays is only_ends else 5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"terminals": SOME, "is_terminal": ENDS}, ["terminals", "is_terminal", "3", "8"]),
        ({"terminated": SOME, "not_done": ~ENDS}, ["terminated", "not_done", "3", "8"]),
        ({"terminals": ENDS, "dones": SOME}, ["terminals", "dones", "8", "3"]),
        ({"terminals": ENDS, "timeouts": ENDS}, ["terminals", "timeouts", "8"]),
        ({"dones": SOME, "timeouts": ENDS}, ["dones", "timeouts", "3", "8"]),
        ({"terminals": np.roll(SOME, -9), "is_last": ENDS}, ["terminals", "is_last", "3", "8"]),
        ({"is_last": ENDS, "is_first": np.roll(STARTS, 4)}, ["is_last", "is_first"]),
    ],
)
def test_flags_that_contradict_each_other_are_refused_with_both_counts(flags, words, tmp_path):
    with pytest.raises(InputError, match="contradict") as error:
        load_dataset(write(tmp_path / "x.npz", log(**flags)))
    assert all(word in str(error.value) for word in words), error.value
    ignored = load_dataset(write(tmp_path / "x.npz", log(**flags)), fields=(f"ignore={list(flags)[1]}",))
    assert counts(ignored)[2] == flags[next(iter(flags))].sum() * ("is_last" not in list(flags)[:1])


def test_a_flag_of_other_values_is_refused(tmp_path):
    with pytest.raises(InputError, match="dones holds 2"):
        load_dataset(write(tmp_path / "x.npz", log(dones=2 * ENDS)))


@pytest.mark.parametrize("name", ["finished_last", "mask", "reset", "end_flag", "my_done"])
def test_a_flag_whose_meaning_its_name_does_not_say(name, tmp_path):
    path = write(tmp_path / "x.npz", log(**{name: ENDS}))
    with pytest.raises(InputError, match=f"{name} may say where episodes end.*--fields"):
        load_dataset(path)
    assert counts(load_dataset(path, fields=(f"terminal={name}",))) == (N, E, E)
    assert counts(load_dataset(path, fields=(f"timeout={name}",))) == (N, E, 0)
    assert counts(load_dataset(path, fields=(f"ignore={name}",))) == (N, E, 0)  # the next observations say where


def test_fields_by_other_names(tmp_path):
    arrays = log(terminals=ENDS)
    renamed = {"S": arrays["observations"], "A": arrays["actions"], "payoff": arrays["rewards"], "stop": ENDS}
    path = write(tmp_path / "x.npz", renamed | {"S2": arrays["next_observations"]})
    with pytest.raises(InputError, match=r"no observations; it holds S \(400, 4\), A \(400, 2\)"):
        load_dataset(path)
    data = load_dataset(path, fields=("obs=S", "next_obs=S2", "action=A", "reward=payoff", "terminal=stop"))
    assert counts(data) == (N, E, E) and data.reward.sum() == arrays["rewards"].sum()
    for given, words in (("obs=Q", "no array 'Q'"), ("state=S", "expected ROLE=NAME"), ("S", "expected ROLE=NAME")):
        with pytest.raises(InputError, match=words):
            load_dataset(path, fields=(given,))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("obs=next_observations", "obs=observations"), "'next_observations' is obs already; only one"),
        (("reward=rewards", "reward=bonus"), "'rewards' is reward already; only one"),
        (("timeout=cut", "terminal=cut"), "'cut' is timeout already; an array has one role"),
    ],
)
def test_fields_that_cannot_all_be_read(fields, words, tmp_path):
    path = write(tmp_path / "x.npz", log(bonus=np.ones(N), cut=ENDS))
    with pytest.raises(InputError, match=words):
        load_dataset(path, fields=fields)


def test_every_array_that_was_not_read_is_named(tmp_path, capsys):
    path = write(tmp_path / "x.hdf5", log(terminals=ENDS, **{"infos/qpos": np.zeros((N, 15)), "weight": np.ones(N)}))
    data = load_dataset(path)
    assert data.task.data["not_read"] == ["infos/qpos (400, 15)", "weight (400,)"]
    assert data.task.data["read"]["terminals"] == "terminal"
    told = capsys.readouterr().out
    assert "400 rows in 8 episodes of 50 rows: 8 terminate, 0 end by a time limit, 0 are cut" in told
    assert "not read: infos/qpos (400, 15), weight (400,)" in told
    assert data.task.describe()["data"] == data.task.data


# ------------------------------------------------------------------------------------- boundaries


@pytest.mark.parametrize("flags", [{}, {"terminals": NONE}, {"terminals": NONE, "timeouts": NONE}])
def test_a_file_that_says_nothing_of_its_episodes_is_asked_about(flags, tmp_path):
    path = write(tmp_path / "x.hdf5", log(next_observations=None, **flags))
    with pytest.raises(InputError, match="nothing of where its 400 rows.*--episode-length N.*--fields"):
        load_dataset(path)
    data = load_dataset(path, episode_length=T)
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all() and data.task.data["time_limits"] == E
    assert data.usable().sum() == N - E


def test_an_episode_length_counts_from_the_last_termination(tmp_path):
    ended = np.arange(N) == 19
    data = load_dataset(write(tmp_path / "x.npz", log(next_observations=None, terminals=ended)), episode_length=100)
    assert data.ends().tolist() == [19, 119, 219, 319, 399]


ROUNDED = {
    "float64": lambda x: x.astype(np.float64) + np.random.default_rng(1).uniform(-1e-6, 1e-6, x.shape),
    "float16": lambda x: x.astype(np.float16),
    "two digits": lambda x: x.round(2),
    "cut after three digits": lambda x: np.floor(x.astype(np.float64) * 1000) / 1000,
    "through other units": lambda x: (x - np.float32(271.3)) / np.float32(97.1) * np.float32(97.1) + np.float32(271.3),
}


@pytest.mark.parametrize("flags", [{"timeouts": ENDS}, {}])
@pytest.mark.parametrize("how", ROUNDED)
def test_next_observations_of_another_precision(how, flags, tmp_path):
    """With flags and without: 8 episodes, never 400 of one row."""
    arrays = log(terminals=NONE, **flags)
    data = load_dataset(
        write(tmp_path / "x.npz", arrays | {"next_observations": ROUNDED[how](arrays["next_observations"])})
    )
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all()


def test_observations_of_whole_numbers_are_compared_exactly():
    cells = np.array([[0], [1], [2], [3], [9], [10]])
    assert jumps(cells, cells + 1).tolist() == [False, False, False, True, False]
    assert jumps(cells.astype(np.float32), cells.astype(np.float64) + 1).tolist() == [False, False, False, True, False]


def test_the_files_own_flags_are_never_overruled(tmp_path):
    """Next observations of another kind (here: noisy) part no flagged episode; it is told how many differ."""
    noisy = log()["next_observations"] + np.random.default_rng(0).normal(0, 0.05, (N, 4)).astype(np.float32)
    data = load_dataset(write(tmp_path / "x.npz", log(next_observations=noisy, timeouts=ENDS)))
    assert counts(data) == (N, E, 0) and "of 392 rows within episodes" in data.task.data["notes"][0]


def test_single_transitions_are_told(tmp_path):
    order = np.random.default_rng(0).permutation(N)
    data = load_dataset(write(tmp_path / "x.npz", {k: x[order] for k, x in log(terminals=ENDS).items()}))
    assert len(data.ends()) >= N - 2 and data.terminal.sum() == E
    assert any("single transitions" in note for note in data.task.data["notes"])


# ------------------------------------------------------------------------------ reports of users


def test_a_log_that_goes_on_at_the_goal(tmp_path):
    """D4RL 199: AntMaze terminates in every row at the goal; not an episode for each of them."""
    place = np.tile(np.minimum(np.arange(T), 40), E)[:, None] * np.ones(4) + 0.5 * (np.arange(N) // T)[:, None]
    there = np.tile(np.arange(T) >= 40, E) & (np.arange(N) < 6 * T)
    arrays = {"observations": place, "terminals": there, "rewards": there * 1.0, "timeouts": ENDS & ~there}
    data = load_dataset(write(tmp_path / "x.hdf5", log(next_observations=None, **arrays)))
    assert counts(data) == (N, E, 60) and (data.last == ENDS).all()
    assert data.episode_returns().tolist() == [1.0] * 6 + [0.0] * 2
    assert "goes on after 54 rows that terminate" in data.task.data["notes"][0]
    short = {"terminals": np.isin(np.arange(N), (48, 49)), "timeouts": ENDS & (np.arange(N) > T)}
    apart = log()["observations"].copy()
    apart[49] += 500.0  # an episode of one row, somewhere else
    data = load_dataset(write(tmp_path / "y.hdf5", log(observations=apart, next_observations=None, **short)))
    assert data.ends()[:2].tolist() == [48, 49] and len(data.ends()) == E + 1


@pytest.mark.parametrize("flags", [{"terminals": ENDS}, {"terminals": SOME, "timeouts": ENDS & ~SOME}])
def test_next_observations_that_were_shifted_over_the_ends_of_episodes(flags, tmp_path):
    """D4RL 145: what is stored behind an episode's last row is the first observation of the next one."""
    obs = log()["observations"]
    for i, end in enumerate((obs[:1], obs[-1:])):
        data = load_dataset(write(tmp_path / f"{i}.npz", log(next_observations=np.r_[obs[1:], end], **flags)))
        assert counts(data)[:2] == (N, E) and (data.successor == ~ENDS).all()
        np.testing.assert_array_equal(data.next_obs[ENDS], obs[ENDS])
        assert any("8 last rows is the next episode's first" in note for note in data.task.data["notes"])
    near = obs.copy()
    near[2 * T : 3 * T] += near[2 * T - 1] - near[2 * T] + 0.1  # the third episode begins where the second ended
    data = load_dataset(
        write(tmp_path / "near.npz", log(observations=near, next_observations=np.roll(near, -1, 0), **flags))
    )
    assert (data.successor == ~ENDS).all()
    honest = load_dataset(write(tmp_path / "honest.npz", log(**flags)))
    assert honest.successor.all() and honest.task.data["notes"] == []


def test_a_log_without_resets_that_is_cut_by_time_limits_keeps_its_successors(tmp_path):
    """D4RL 85: in Maze2D a timeout says that the goal has changed."""
    walk = np.cumsum(np.random.default_rng(0).uniform(0.1, 0.3, (N + 1, 4)), 0).astype(np.float32)
    walk[:: T // 2] += 0.2
    data = load_dataset(
        write(
            tmp_path / "x.npz", log(observations=walk[:-1], next_observations=walk[1:], timeouts=ENDS, terminals=NONE)
        )
    )
    assert counts(data) == (N, E, 0) and data.successor.all()


def test_demonstrations_without_rewards_or_ends(tmp_path):
    """MimicGen 30: groups of observations and actions alone are episodes to be cloned."""
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for e, part in enumerate(episodes_of(log())):
            file[f"data/demo_{e}/obs/object"], file[f"data/demo_{e}/actions"] = part["observations"], part["actions"]
            file[f"data/demo_{e}/states"] = np.zeros((T, 9))
    data = load_dataset(str(tmp_path / "x.hdf5"))
    assert counts(data) == (N, E, 0) and data.require(reward=False) is data and data.obs.shape == (N, 4)


def test_d3rlpy_of_version_1(tmp_path):
    """d3rlpy 166: terminals are terminations, episode_terminals ends of episodes."""
    arrays = log(next_observations=None, terminals=SOME.astype(np.float32), episode_terminals=ENDS.astype(np.float32))
    arrays |= {"discrete_action": np.array(False), "create_mask": np.array(False), "version": np.bytes_("1.0")}
    data = load_dataset(write(tmp_path / "x.h5", arrays))
    assert counts(data) == (N, E, 3) and data.task.data["cuts"] == 5


def test_actions_beyond_one_keep_their_range(tmp_path):
    """robomimic 38: 1.79 in one dimension is no reason to clip."""
    action = log()["actions"].copy()
    action[7, 1] = 1.75
    data = load_dataset(write(tmp_path / "x.npz", log(actions=action, terminals=ENDS)))
    np.testing.assert_allclose(data.task.to_env(data.action), action, atol=1e-6)


# ------------------------------------------------------------------------------ missing successors


@pytest.mark.parametrize("following", [True, False])
def test_a_reward_in_the_last_row_before_a_time_limit_counts(following, tmp_path):
    """The last four of eight episodes reach the goal there: they rank first, with next observations or without."""
    reward = (ENDS & (np.arange(N) >= N // 2)).astype(np.float32)
    changes = {} if following else {"next_observations": None}
    data = load_dataset(write(tmp_path / "x.hdf5", log(rewards=reward, terminals=NONE, timeouts=ENDS, **changes)))
    assert data.episode_returns().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.top_episodes(0.5).obs[0, 0] > 400.0 and len(data.top_episodes(0.5).obs) == N // 2
    assert data.reward_range() == (0.0, 1.0) and data.return_range() == 1.0
    assert data.return_to_go()[N - 2] == 1.0
    assert data.transitions().rows.shape[0] == (N if following else N - E)
    assert data.transitions("obs", "action").rows.shape[0] == N


def test_what_follows_a_termination_is_unknown_without_a_successor(tmp_path):
    data = load_dataset(write(tmp_path / "x.hdf5", log(next_observations=None, terminals=ENDS)))
    at = np.flatnonzero(ENDS)
    np.testing.assert_array_equal(data.next_obs[at], data.obs[at])  # not the next episode's first
    assert not data.successor[at].any() and data.usable().all()
    batch = data.transitions("obs", "action", "reward", "terminal", "next_obs", "successor").take(jnp.asarray(at))
    assert batch.terminal.all() and not batch.successor.any()


def test_returns_to_go_of_many_discounts_stay_beside_their_rows(tmp_path):
    data = load_dataset(write(tmp_path / "x.hdf5", log(next_observations=None, timeouts=ENDS)))
    both = data.with_returns(np.array([0.0, 1.0]), None, False)
    assert both.return_to_go.shape == (2, N - E) == (2, len(both.transitions.rows))
    reward = both.transitions.take(jnp.arange(N - E)).reward
    np.testing.assert_array_equal(both.return_to_go[0], reward)


@pytest.mark.parametrize("flags", [{"timeouts": ENDS}, {"terminals": NONE}])
def test_next_observations_that_are_no_numbers_where_an_episode_was_cut(flags, tmp_path):
    following = log()["next_observations"]
    following[ENDS] = np.nan
    data = load_dataset(write(tmp_path / "x.npz", log(next_observations=following, **flags)))
    assert counts(data) == (N, E, 0) and (data.successor == ~ENDS).all() and np.isfinite(data.next_obs).all()
    following[5] = np.nan
    with pytest.raises(InputError, match="NaN or infinite next observations, first in row 5"):
        load_dataset(write(tmp_path / "y.npz", log(next_observations=following, timeouts=ENDS)))


# -------------------------------------------------------------------------------------- no rewards


def test_without_rewards_only_those_who_need_none_learn(tmp_path):
    data = load_dataset(write(tmp_path / "x.npz", log(rewards=None, dones=ENDS)))
    assert data.task.data["rewards"] is False and data.task.baselines == {}
    with pytest.raises(InputError, match="learns from rewards; .* has none") as error:
        data.require()
    assert "\n" not in str(error.value)
    assert data.require(reward=False) is data


# ----------------------------------------------------------------------------------------- formats


def episodes_of(arrays: dict) -> list[dict]:
    return [{name: x[e * T : (e + 1) * T] for name, x in arrays.items()} for e in range(E)]


def test_robomimic(tmp_path):
    """data/demo_0 .. 7: observations are groups of arrays, demonstrations come in the order of their numbers."""
    arrays = log()
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for e in (0, 1, 2, 3, 4, 5, 6, 7):
            demo = file.create_group(f"data/demo_{e + 5}")  # 10, 11, 12 come after 9
            rows = slice(e * T, (e + 1) * T)
            demo["obs/arm"], demo["obs/object"] = arrays["observations"][rows, :3], arrays["observations"][rows, 3:]
            demo["obs/camera"] = np.zeros((T, 8, 8, 3), np.uint8)
            demo["actions"], demo["rewards"], demo["dones"] = arrays["actions"][rows], np.full(T, e), ENDS[rows]
        file["mask/train"] = np.array([b"demo_5"])
    data = load_dataset(str(tmp_path / "x.hdf5"))
    assert counts(data) == (N, E, E) and (data.last == ENDS).all()
    np.testing.assert_array_equal(data.obs, arrays["observations"])
    assert data.episode_returns().tolist() == [T * e for e in range(E)]
    assert "data/demo_5/obs/camera (50, 8, 8, 3)" in data.task.data["not_read"]


@pytest.mark.parametrize("following", [True, False])
def test_observations_of_other_arrays_are_not_joined(following, tmp_path):
    """As many numbers, but not the same ones: of an episode, or of the next observations."""
    arrays = {}
    for e, part in enumerate(episodes_of(log())):
        keys = ("arm", "goal") if e == 3 and not following else ("arm", "object")
        for name, names in (("obs", keys), ("next_obs", ("arm", "goal") if following else keys)):
            x = part["observations" if name == "obs" else "next_observations"]
            arrays |= {f"data/demo_{e}/{name}/{key}": x[:, 2 * i : 2 * i + 2] for i, key in enumerate(names)}
        arrays |= {f"data/demo_{e}/actions": part["actions"]}
    with pytest.raises(InputError, match="some observations are of arm, object, others of arm, goal"):
        load_dataset(write(tmp_path / "x.hdf5", arrays))


def test_one_value_of_a_whole_episode(tmp_path):
    """Where an episode has one row, too; a discount that never ends anything is no flag."""
    parts, arrays = [slice(0, 1), slice(1, 4), slice(4, 6)], {}
    for e, rows in enumerate(parts):
        arrays |= {f"episode_{e}/{name}": x[rows] for name, x in log(next_observations=None).items()}
        whole = {"terminated": e == 0, "episode_id": 7 * e, "discount": 0.9, "path_lengths": [1, 3, 2][e]}
        arrays |= {f"episode_{e}/{name}": np.array(x) for name, x in whole.items()}
    data = load_dataset(write(tmp_path / "x.hdf5", arrays))
    assert counts(data) == (6, 3, 1) and np.flatnonzero(data.last).tolist() == [0, 3, 5] and data.terminal[0]
    assert any(note.startswith("discount ") and "not used" in note for note in data.task.data["notes"])


def test_d3rlpy(tmp_path):
    """Version 2: observations_0, ..., one terminated flag of each episode."""
    arrays = {"version": np.bytes_("2.1"), "total_size": np.array(E)}
    for e, part in enumerate(episodes_of(log(next_observations=None))):
        arrays |= {f"{name}_{e}": x for name, x in part.items()} | {f"terminated_{e}": np.array(e < 3)}
    data = load_dataset(write(tmp_path / "x.h5", arrays))
    assert counts(data) == (N, E, 3) and (data.terminal == SOME).all() and (data.last == ENDS).all()
    assert data.usable().sum() == N - 5


def test_tianshou(tmp_path):
    found = log()
    arrays = {"obs": found["observations"], "act": found["actions"], "rew": found["rewards"]}
    arrays |= {"obs_next": found["next_observations"], "terminated": SOME, "truncated": ENDS & ~SOME, "done": ENDS}
    data = load_dataset(write(tmp_path / "x.hdf5", arrays | {"info/x": np.zeros(N)}))
    assert counts(data) == (N, E, 3) and data.task.data["time_limits"] == 5 and data.usable().all()


def test_groups_with_one_observation_more_than_actions(tmp_path):
    arrays = {}
    for e, part in enumerate(episodes_of(log())):
        last = part["next_observations"][-1:]
        arrays[f"episode_{e}/observations"] = np.concatenate([part["observations"], last])
        arrays |= {f"episode_{e}/{name}": part[name] for name in ("actions", "rewards")}
    data = load_dataset(write(tmp_path / "x.hdf5", arrays))
    assert counts(data) == (N, E, 0) and data.successor.all()
    np.testing.assert_array_equal(data.next_obs, log()["next_observations"])


def imitation_log(**changes) -> dict[str, np.ndarray]:
    """A file of the library imitation: one observation more in each episode, which is parted by `indices`."""
    parts = episodes_of(log())
    frames = [np.concatenate([x["observations"], x["next_observations"][-1:]]) for x in parts]
    arrays = {"obs": np.concatenate(frames), "acts": log()["actions"], "rews": log()["rewards"]}
    return arrays | {"indices": np.arange(T, N, T), "terminal": np.ones(E, bool)} | changes


def test_imitation(tmp_path):
    """Its `terminal` is set at time limits, too: no termination, unless the user says so."""
    path = write(tmp_path / "x.npz", imitation_log())
    data = load_dataset(path)
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all() and data.successor.all()
    np.testing.assert_array_equal(data.obs, log()["observations"])
    np.testing.assert_array_equal(data.next_obs, log()["next_observations"])
    assert data.episode_returns().tolist() == [T * (e + 1) for e in range(E)]
    assert "indices" in data.task.data["read"] and "terminal" not in data.task.data["read"]
    assert any(note.startswith("terminal says which episodes were whole") for note in data.task.data["notes"])
    known = np.arange(E) < 3
    data = load_dataset(write(tmp_path / "y.npz", imitation_log(terminal=known)), fields=("terminal=terminal",))
    assert counts(data) == (N, E, 3) and (data.terminal == SOME).all()
    one = {name: x[:T] for name, x in imitation_log().items()} | {"obs": imitation_log()["obs"][: T + 1]}
    data = load_dataset(write(tmp_path / "z.npz", one | {"indices": np.zeros(0), "terminal": np.ones(1, bool)}))
    assert counts(data) == (T, 1, 0)


def test_split_points_that_are_none_are_refused(tmp_path):
    wrong = np.arange(T, N, T)
    wrong[3] = wrong[2]
    for changes, message in (
        ({"indices": wrong}, "its split points do not part 400 rows into episodes of at least one"),
        ({"indices": wrong / 7}, "its split points do not part 400 rows"),
        ({"indices": np.full(E - 1, np.nan)}, "its split points do not part 400 rows"),
        ({"indices": np.array(["a"] * (E - 1))}, "its split points do not part 400 rows"),
        ({"indices": np.arange(T, N, T)[:-1]}, "action has 400 rows, obs has 408"),
        ({"rews": np.ones(N - 1)}, r"rews of shape \(399,\) is neither of 400 rows nor of their episodes"),
    ):
        with pytest.raises(InputError, match=message):
            load_dataset(write(tmp_path / "x.npz", imitation_log(**changes)))


def test_cs285(tmp_path):
    """Its flag of the end of a rollout, set at the longest length, too, is no termination."""
    data = load_dataset(write(tmp_path / "x.npz", log(source_terminal_flag=ENDS, episode_ends=ENDS)))
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all() and data.successor.all()
    with pytest.raises(InputError, match="episode_ends and source_terminal_flag contradict each other"):
        load_dataset(write(tmp_path / "y.npz", log(episode_ends=ENDS, source_terminal_flag=SOME)))


DEMOS = Path(os.environ.get("OFFLINE_RL_DEMOS", ROOT.parent / "shared" / "data" / "demos"))
"""Demonstrations of others, beside the repository."""
COLLECTED = {
    "adroit_door_human_dapg": (6729, 25, "AdroitHandDoor-v1"),
    "adroit_pen_human_sparse_rlkit": (4975, 25, "AdroitHandPen-v1"),
    "ant_expert_cs285": (2000, 2, "Ant-v5"),
    "cartpole_expert_imitation": (26964, 57, "CartPole-v1"),
    "cartpole_expert_stable_baselines": (49527, 100, "CartPole-v1"),
    "halfcheetah_expert_cs285": (2000, 2, "HalfCheetah-v5"),
    "hopper_expert_cs285": (2000, 2, "Hopper-v5"),
    "pendulum_expert_imitation": (11200, 56, "Pendulum-v1"),
    "pendulum_expert_stable_baselines": (20000, 100, "Pendulum-v1"),
    "walker2d_expert_cs285": (2000, 2, "Walker2d-v5"),
}
"""Name -> rows, episodes, environment."""


@pytest.mark.skipif(not DEMOS.is_dir(), reason="the demonstrations are not beside the repository")
@pytest.mark.parametrize("name", COLLECTED)
def test_demonstrations_of_others_are_read_by_path(name):
    data = load_dataset(str(DEMOS / f"{name}.npz"), clip_actions=True)
    rows, episodes, env = COLLECTED[name]
    assert counts(data) == (rows, episodes, 0) and data.task.env_spec.id == env
    with np.load(DEMOS / f"{name}.npz", allow_pickle=False) as file:
        rewards = file["rews"] if "rews" in file else file["rewards"]
        if "indices" in file:
            starts = np.r_[0, file["indices"]]
            obs = np.delete(file["obs"], np.r_[file["indices"], rows] + np.arange(episodes), axis=0)
        else:
            ends = file["episode_ends"] if "episode_ends" in file else np.roll(file["episode_starts"], -1)
            starts = np.r_[0, np.flatnonzero(ends)[:-1] + 1]
            obs = file["obs"] if "obs" in file else file["observations"]
    np.testing.assert_array_equal(data.starts(), starts)
    np.testing.assert_allclose(data.episode_returns(), np.add.reduceat(rewards, starts), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(data.obs, np.float32(obs))
    bare = name.endswith("stable_baselines") or "door" in name  # what followed an episode's last action was not kept
    assert data.usable().sum() == rows - episodes * bare
    if name.endswith("cs285") or "door" in name:
        with pytest.raises(InputError, match="outside Box.*pass --clip-actions"):
            load_dataset(str(DEMOS / f"{name}.npz"))


def test_rlds(tmp_path):
    """The last row of an episode holds its last observation; is_terminal there speaks of what led to it."""
    parts, rows = episodes_of(log()), []
    for e, part in enumerate(parts):
        rows.append(
            {
                "observation": np.concatenate([part["observations"], part["next_observations"][-1:]]),
                "action": np.concatenate([part["actions"], np.zeros((1, 2))]),
                "reward": np.r_[part["rewards"], 0.0],
                "is_first": np.arange(T + 1) == 0,
                "is_last": np.arange(T + 1) == T,
                "is_terminal": (np.arange(T + 1) == T) & (e < 3),
                "discount": np.where((np.arange(T + 1) == T) & (e < 3), 0.0, 1.0),
            }
        )
    data = load_dataset(write(tmp_path / "x.npz", {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}))
    assert counts(data) == (N, E, 3) and (data.terminal == SOME).all() and data.usable().all()
    np.testing.assert_array_equal(data.next_obs, log()["next_observations"])
    assert data.episode_returns().tolist() == [T * (e + 1) for e in range(E)]


@pytest.mark.parametrize("first", [0.0, np.nan])
def test_dm_env(first, tmp_path):
    """V-D4RL: the action and reward beside an observation are those that led to it; dm_env has no first reward."""
    parts, rows = episodes_of(log()), []
    for e, part in enumerate(parts):
        rows.append(
            {
                "observation": np.concatenate([part["observations"], part["next_observations"][-1:]]),
                "action": np.concatenate([np.zeros((1, 2)), part["actions"]]),
                "reward": np.r_[first, part["rewards"]],
                "discount": np.r_[first + 1.0, np.ones(T - 1), np.float32(e >= 3)],
                "step_type": np.r_[0, np.ones(T - 1, int), 2],
            }
        )
    data = load_dataset(write(tmp_path / "x.hdf5", {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}))
    assert counts(data) == (N, E, 3) and (data.terminal == SOME).all() and data.usable().all()
    np.testing.assert_allclose(data.action, log()["actions"], atol=1e-6)
    np.testing.assert_array_equal(data.next_obs, log()["next_observations"])
    assert data.episode_returns().tolist() == [T * (e + 1) for e in range(E)]


def test_ogbench_compact(tmp_path):
    """Rows that are not valid hold the last observation of a trajectory; both they and the row before are terminals."""
    frames = np.concatenate([log()["observations"].reshape(E, T, 4), np.full((E, 1, 4), 7.0)], 1).reshape(-1, 4)
    end = np.arange(len(frames)) % (T + 1) == T
    arrays = {
        "observations": frames.astype(np.float32),
        "actions": np.zeros((len(frames), 2), np.float32),
        "terminals": np.minimum(end + np.r_[end[1:], True], 1).astype(np.float32),
        "valids": 1.0 - end,
    }
    data = load_dataset(write(tmp_path / "x.npz", arrays))
    assert counts(data) == (N, E, 0) and (data.last == ENDS).all() and data.usable().all()
    assert (data.next_obs[ENDS] == 7.0).all()


def test_ogbench_with_one_task(tmp_path):
    """Rewards are -1 and 0; masks say where the task ended, terminals where a trajectory did."""
    reward = np.where(SOME, 0.0, -1.0)
    arrays = log(rewards=reward, terminals=ENDS.astype(np.float32), masks=1.0 - SOME)
    data = load_dataset(write(tmp_path / "antmaze-large-navigate-singletask-task1-v0.npz", arrays))
    assert counts(data) == (N, E, 3) and (data.terminal == SOME).all()
    assert data.task.reference["of"] == "success" and data.task.baselines["dataset mean"] == 3 / 8
    assert (data.reward.min(), data.reward.max()) == (-1.0, 0.0)


def test_a_row_that_terminates_within_a_trajectory(tmp_path):
    """OGBench's masks: bootstrapping and returns end at the goal, the trajectory goes on; the next row is of it."""
    goal = np.isin(np.arange(N), (20, 70, 71))
    reward = np.where(goal, 0.0, -1.0)
    for i, changes in enumerate(({}, {"next_observations": None})):
        arrays = log(rewards=reward, terminals=ENDS.astype(np.float32), masks=1.0 - goal, **changes)
        data = load_dataset(write(tmp_path / f"{i}.npz", arrays))
        assert counts(data) == (N, E, 3) and (data.terminal == goal).all() and (data.last == ENDS).all()
        assert data.task.data["cuts"] == E and "3 lie within episodes" in data.task.data["notes"][0]
        assert data.successor[goal].all()  # what follows is known
        togo = data.return_to_go()
        assert togo[[0, 20, 21, 50, 70, 71, 72, 99]].tolist() == [-20, 0, -29, -20, 0, 0, -28, -1]
        assert data.episode_returns().tolist() == [-20, -20, *[-50] * 6]
        windows = sequences(data, "obs", "terminal").after(np.array([19, 48]), 4)
        np.testing.assert_array_equal(windows.obs[0], data.obs[19:23])
        assert windows.mask.tolist() == [[1] * 4, [0, 0, 1, 1]] and windows.terminal[0].tolist() == [0, 1, 0, 0]
        action, known = data.next_action()
        assert known[20] and (action[20] == data.action[21]).all()
        total, row, weight = data.n_step(3, 0.5)
        assert (total[19], row[19], weight[19]) == (-1.0, 20, 0.0) and row[20] == 20 and row[21] == 23
        assert data.usable()[goal].all()


def test_images_in_either_order_of_axes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (N + 1, 9, 12, 12), dtype=np.uint8)
    arrays = {"image": frames[:-1], "action": log()["actions"], "reward": np.ones(N), "is_last": ENDS}
    first = load_dataset(write(tmp_path / "first.npz", arrays))
    last = load_dataset(write(tmp_path / "last.npz", arrays | {"image": np.moveaxis(frames[:-1], 1, -1)}))
    assert first.obs.shape == last.obs.shape == (N, 12, 12, 9) and first.obs.dtype == np.uint8
    np.testing.assert_array_equal(first.obs, last.obs)
    following = np.where(ENDS[:, None, None, None], np.nan, frames[1:])
    known = load_dataset(write(tmp_path / "following.npz", arrays | {"next_image": following}))
    np.testing.assert_array_equal(known.next_obs, last.next_obs)
    grey = load_dataset(write(tmp_path / "grey.npz", arrays | {"image": frames[:-1, 0]}))
    assert grey.obs.shape == (N, 144) and "(12, 12) are laid flat" in grey.task.data["notes"][0]


def test_several_tables_in_a_file_are_not_taken_for_episodes(tmp_path):
    arrays = {f"{part}/{name}": x for part in ("train", "val") for name, x in log(terminals=ENDS).items()}
    with pytest.raises(InputError, match=r"several datasets \(train, val\)"):
        load_dataset(write(tmp_path / "x.hdf5", arrays))
    one = {name: x for name, x in arrays.items() if "train" in name}
    assert counts(load_dataset(write(tmp_path / "y.hdf5", one))) == (N, E, E)


def test_what_is_no_dataset_is_listed(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/pose"] = np.zeros((5, 2)), np.bytes_("x")
        file["weights/layer_1"] = np.zeros((3, 3))
    with pytest.raises(InputError, match=r"it holds .*weights/layer_1 \(3, 3\)"):
        load_dataset(str(tmp_path / "x.hdf5"))


# ----------------------------------------------------------------------------------------- actions


def test_whole_numbers_of_floating_point_are_offered_as_choices(tmp_path):
    action = np.random.default_rng(0).integers(0, 6, (N, 1)).astype(np.float32)
    path = write(tmp_path / "x.npz", log(actions=action, terminals=ENDS))
    with pytest.raises(InputError, match="whole numbers 0 to 5 as actions: pass --discrete") as error:
        load_dataset(path)
    assert "clip" not in str(error.value)
    data = load_dataset(path, discrete=True)
    assert data.spec.discrete and data.spec.action_dim == 6
    np.testing.assert_array_equal(data.action, action[:, 0])
    with pytest.raises(InputError, match="--discrete needs one whole number"):
        load_dataset(write(tmp_path / "y.npz", log(terminals=ENDS)), discrete=True)


def test_several_choices_in_a_row_are_refused(tmp_path):
    action = np.random.default_rng(0).integers(0, 3, (N, 2))
    with pytest.raises(InputError, match="choices of several kinds"):
        load_dataset(write(tmp_path / "x.npz", log(actions=action, terminals=ENDS)))


def test_without_an_environment_the_data_gives_the_range_of_actions(tmp_path):
    """No advice that would clip them."""
    data = load_dataset(write(tmp_path / "x.npz", log(actions=3.0 * log()["actions"], terminals=ENDS)))
    most = 3.0 * np.abs(log()["actions"]).max()
    np.testing.assert_allclose(data.spec.action_high, [most, most], rtol=1e-6)
    np.testing.assert_allclose(data.task.to_env(data.action), 3.0 * log()["actions"], atol=1e-5)
    assert any("without an environment" in note for note in data.task.data["notes"])


# ------------------------------------------------------------------------------------------- cache


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(tmp_path / "file"))
    assert counts(load_dataset(write(tmp_path / "x.npz", log(terminals=ENDS)))) == (N, E, E)


def test_what_another_reader_understood_is_read_again(tmp_path, monkeypatch):
    from shared import formats

    path = write(tmp_path / "x.npz", log(terminals=ENDS))
    load_dataset(path)
    read = []
    monkeypatch.setattr(formats, "read_file", lambda *how: read.append(how) or formats_read(*how))
    formats_read = __import__("shared.files", fromlist=["read_file"]).read_file
    load_dataset(path)
    assert not read
    load_dataset(path, episode_length=20)  # read in another way
    assert len(read) == 1
    monkeypatch.setattr(formats, "_reader", lambda: b"another version")
    load_dataset(path)
    assert len(read) == 2
