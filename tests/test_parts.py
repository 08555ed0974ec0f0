"""Datasets made of parts: what is demonstrated, labelled and hidden, and labels written as a dataset."""

import dataclasses

import make  # of datasets/
import numpy as np
import pytest
from conftest import write_goals, write_pendulum
from scipy.stats import spearmanr

from shared.arguments import DemoArgs, LabelArgs
from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import (
    best_episodes,
    hidden,
    joined,
    load_demonstrated,
    load_labelled,
    rank_correlation,
    relabelled,
    write_dataset,
)


@pytest.fixture
def other(tmp_path) -> str:
    return write_pendulum(tmp_path / "pendulum-other.npz", n=120, seed=1)


def returns(data):
    return data.reward.reshape(-1, 30).sum(1)


def test_demonstrations_are_the_best_episodes_and_the_datas_rewards_are_gone(pendulum):
    truth = load_dataset(pendulum)
    data, demos, true_returns = load_demonstrated(DemoArgs(dataset=pendulum, demo_episodes=2))
    np.testing.assert_allclose(true_returns, returns(truth), rtol=1e-5)
    best = np.sort(np.argsort(-returns(truth))[:2])
    rows = np.concatenate([np.arange(30 * e, 30 * e + 30) for e in best])
    np.testing.assert_array_equal(demos.reward, truth.reward[rows])
    np.testing.assert_array_equal(demos.obs, truth.obs[rows])
    np.testing.assert_array_equal(demos.last, np.arange(60) % 30 == 29)
    assert np.isnan(data.reward).all() and np.isfinite(data.action).all()
    assert data.task.baselines == truth.task.baselines  # shown beside results, used for nothing else
    with pytest.raises(InputError, match="learns from rewards"):
        data.require()


def test_demonstrations_of_other_files_and_their_record(pendulum, other):
    args = DemoArgs(dataset=pendulum, demos=(other, pendulum), demo_episodes=0)
    data, demos, _ = load_demonstrated(args)
    one, two = load_dataset(pendulum), load_dataset(other)
    np.testing.assert_array_equal(demos.obs, np.concatenate([two.obs, one.obs]))
    parts = data.task.data["parts"]
    assert parts["demonstrations"] | {"hash": ""} == {
        "id": f"{other}+{pendulum}", "hash": "", "rows": 420, "episodes": 14,
    }  # fmt: skip
    assert parts["unlabelled"]["rows"] == 300 and parts["unlabelled"]["episodes"] == 10
    assert len(parts["demonstrations"]["hash"]) == 16 and parts["demonstrations"]["hash"] != parts["unlabelled"]["hash"]
    fewer, *_ = load_demonstrated(dataclasses.replace(args, demo_episodes=1))
    assert len({data.task.hash, fewer.task.hash, one.task.hash}) == 3  # a change of any part is another problem
    again, *_ = load_demonstrated(args)
    assert again.task.hash == data.task.hash


def test_several_datasets_are_one(pendulum, other):
    one, two = load_dataset(pendulum), load_dataset(other)
    both = joined([one, two])
    assert len(both.obs) == 420 and both.task.data["rows"] == 420 and both.task.data["episodes"] == 14
    np.testing.assert_array_equal(both.reward, np.r_[one.reward, two.reward])
    np.testing.assert_array_equal(both.episode()[300:], 10 + two.episode())
    assert both.task.id == f"{pendulum}+{other}" and "episode_returns" not in both.task.data
    assert both.task.data["datasets"] == [
        {"id": pendulum, "hash": one.task.hash, "rows": 300},
        {"id": other, "hash": two.task.hash, "rows": 120},
    ]
    assert both.task.baselines["dataset best episode"] == pytest.approx(max(returns(one).max(), returns(two).max()))
    assert both.task.baselines["dataset mean"] == pytest.approx(np.r_[returns(one), returns(two)].mean(), rel=1e-5)
    data, demos, _ = load_demonstrated(DemoArgs(dataset=pendulum, more_data=(other,)))
    assert len(data.obs) == 420 and returns(demos) == pytest.approx(np.r_[returns(one), returns(two)].max())


def test_names_of_arrays_are_told_of_the_datasets_that_have_them(pendulum, tmp_path):
    """Demonstrations with names of their own beside a file, or a recipe's dataset, with the usual ones."""
    with np.load(pendulum) as file:
        arrays = {("payment" if name == "rewards" else name): file[name] for name in file.files}
    shown = str(tmp_path / "pendulum-shown.npz")
    np.savez(shown, **arrays)
    told = DemoArgs(dataset=pendulum, demos=(shown,), fields=("reward=payment",), demo_episodes=2)
    _, demos, _ = load_demonstrated(told)
    np.testing.assert_array_equal(
        demos.reward, load_demonstrated(DemoArgs(dataset=pendulum, demo_episodes=2)).demos.reward
    )
    make.make("pendulum-narrow", steps=400)
    data, demos, _ = load_demonstrated(dataclasses.replace(told, dataset="pendulum-narrow", episode_length=10))
    assert len(data.ends()) == 2 and len(demos.obs) == 20  # a recipe's episodes are known
    with pytest.raises(
        InputError, match="--fields reward=paiment: no dataset has an array 'paiment'; did you mean pay"
    ):
        load_demonstrated(dataclasses.replace(told, fields=("reward=paiment",)))
    with pytest.raises(InputError, match="is a Minari dataset, whose fields are known"):
        load_demonstrated(DemoArgs(dataset="pendulum-narrow", fields=("reward=payment",)))


def test_returns_that_are_hidden_are_not_told(pendulum, other):
    """MAHALO puts demonstrations, their rewards hidden, behind data without any."""
    data, demos, _ = load_demonstrated(DemoArgs(dataset=pendulum, demos=(other,), demo_episodes=0))
    assert data.task.baselines and joined([data, hidden(demos, ("rewards",))]).task.baselines == {}


@pytest.mark.parametrize("unit", ["episodes", "transitions"])
def test_a_share_keeps_its_labels(unit, pendulum):
    truth = load_dataset(pendulum)
    args = LabelArgs(dataset=pendulum, labelled_fraction=0.2, labelled_unit=unit, hide=("rewards", "actions"))
    data, labelled, told = load_labelled(args)
    assert labelled.sum() == 60
    whole = labelled.reshape(-1, 30).all(1) == labelled.reshape(-1, 30).any(1)
    assert whole.all() == (unit == "episodes")
    np.testing.assert_array_equal(np.isnan(data.reward), ~labelled)
    np.testing.assert_array_equal(np.isnan(data.action[:, 0]), ~labelled)
    np.testing.assert_array_equal(data.reward[labelled], truth.reward[labelled])
    np.testing.assert_array_equal(data.obs, truth.obs)
    np.testing.assert_array_equal(told.reward, truth.reward)
    parts = data.task.data["parts"]
    assert parts["labelled"]["rows"] == 60 and parts["unlabelled"]["rows"] == 240
    assert parts["labelled"]["episodes"] == len({*(np.flatnonzero(labelled) // 30)})
    same, other = (load_labelled(dataclasses.replace(args, split_seed=s)).labelled for s in (0, 1))
    assert (same == labelled).all() and (other != labelled).any()


def test_labels_may_be_of_the_worst_episodes_alone(pendulum):
    truth = load_dataset(pendulum)
    worst = np.argsort(returns(truth))[:5]
    found = set()
    for seed in range(20):
        args = LabelArgs(dataset=pendulum, labelled_fraction=0.2, labelled_below=0.5, split_seed=seed)
        found |= {*(np.flatnonzero(load_labelled(args).labelled) // 30)}
    assert found == {*worst}


def test_bad_parts_are_one_sentence(pendulum, goals, other, tmp_path):
    maze = write_goals(tmp_path / "maze.npz")
    for args, message in (
        (DemoArgs(dataset=pendulum, demos=(maze,)), r"'.*maze.npz' has other observations than '.*': \(2,\) and 2"),
        (DemoArgs(dataset=pendulum, more_data=(maze,)), "has other observations"),
        (DemoArgs(dataset=goals, demos=(maze,), env="none"), "has no rewards to choose its best episodes by; pass"),
        (DemoArgs(dataset=goals, env="none"), "has no rewards to choose its best episodes by; name --demos"),
        (DemoArgs(dataset=pendulum, demo_episodes=0), "--demo-episodes 0: without --demos"),
    ):
        with pytest.raises(InputError, match=message):
            load_demonstrated(args)
    with pytest.raises(InputError, match="none of the 10 episodes of .* keeps its labels"):
        load_labelled(LabelArgs(dataset=pendulum, labelled_fraction=0.04))
    with pytest.raises(InputError, match="none of the 300 transitions of"):
        load_labelled(LabelArgs(dataset=pendulum, labelled_fraction=0.0, labelled_unit="transitions"))
    with pytest.raises(InputError, match="learns from rewards"):
        load_labelled(LabelArgs(dataset=goals, env="none"))


def test_demonstrations_of_another_environment_of_the_same_sizes(pendulum, other):
    one, two = load_dataset(pendulum), load_dataset(other, env="Pendulum-v1")
    joined([one, two])
    changed = dataclasses.replace(two.task.env_spec, id="ChangedPendulum-v0")
    two = dataclasses.replace(two, task=dataclasses.replace(two.task, env_spec=changed))
    with pytest.raises(InputError, match="is of ChangedPendulum-v0, '.*' of Pendulum-v1; --env ID says"):
        joined([one, two])


def test_datasets_of_other_keys_are_not_joined(tmp_path):
    """Their observations would have one size, but other meanings."""
    import h5py

    names = {"one": ("arm", "object"), "two": ("arm", "target"), "three": ("hand", "wheel")}
    for file_name, keys in names.items():
        with h5py.File(tmp_path / f"{file_name}.hdf5", "w") as file:
            for e in range(3):
                for key in keys:
                    file[f"data/demo_{e}/obs/{key}"] = np.random.default_rng(e).normal(size=(20, 2))
                file[f"data/demo_{e}/actions"], file[f"data/demo_{e}/rewards"] = np.zeros((20, 1)), np.arange(20.0)
    one, two, three = (load_dataset(str(tmp_path / f"{name}.hdf5")) for name in names)
    assert one.task.data["keys"] == {"arm": 2, "object": 2} and len(joined([one, one]).obs) == 120
    with pytest.raises(InputError, match="observes arm, target, '.*' arm, object: of these keys arm are in both"):
        joined([one, two])
    args = DemoArgs(dataset=one.task.id, demos=(three.task.id,))
    with pytest.raises(InputError, match="observes hand, wheel, '.*' arm, object: of these keys none are in both"):
        load_demonstrated(args)


def test_discrete_actions_are_not_hidden(cartpole):
    with pytest.raises(InputError, match="This needs continuous actions; those of"):
        load_labelled(LabelArgs(dataset=cartpole, hide=("actions",)))


def test_labels_are_written_as_a_dataset_that_loads_alike(pendulum, tmp_path):
    data, *_ = load_demonstrated(DemoArgs(dataset=pendulum))
    label = np.linspace(-1, 1, 300)
    terminal = np.arange(300) == 89
    data = dataclasses.replace(relabelled(data, reward=label), terminal=terminal, successor=np.arange(300) != 59)
    write_dataset(tmp_path / "pendulum-labels.npz", data)
    found = load_dataset(str(tmp_path / "pendulum-labels.npz"))
    np.testing.assert_array_equal(found.reward, np.float32(label))
    np.testing.assert_allclose(found.action, data.action, atol=1e-6)
    for name in ("obs", "terminal", "last", "successor"):
        np.testing.assert_array_equal(getattr(found, name), getattr(data, name), err_msg=name)
    np.testing.assert_array_equal(found.next_obs[data.successor], data.next_obs[data.successor])
    assert found.task.data["rewards"] and found.spec == data.spec
    assert [p.name for p in tmp_path.glob("pendulum-labels*")] == ["pendulum-labels.npz"]


def test_what_cannot_be_written_is_one_sentence(pendulum, tmp_path):
    data = load_dataset(pendulum)
    with pytest.raises(InputError, match=r"ends in \.npz"):
        write_dataset(tmp_path / "labels.csv", data)
    with pytest.raises(InputError, match="Cannot write to .*: No such file"):
        write_dataset(tmp_path / "no" / "labels.npz", data)
    with pytest.raises(InputError, match="are not finite: reward of row 7"):
        relabelled(data, reward=np.where(np.arange(300) == 7, np.nan, 0.0))


def test_an_episode_is_chosen_whole(pendulum):
    data = load_dataset(pendulum)
    assert len(best_episodes(data, 99).obs) == 300
    three = best_episodes(data, 3)
    assert three.last.sum() == 3 and three.last[-1]


def test_data_without_rewards_has_no_returns(goals):
    assert load_demonstrated(DemoArgs(dataset=goals, demos=(goals,), demo_episodes=0, env="none")).returns is None


def test_correlation_of_ranks_with_ties():
    r = np.random.default_rng(0)
    x, y = r.integers(0, 5, 40).astype(np.float32), r.integers(0, 3, 40).astype(np.float32)
    y += x * (np.arange(40) % 2)
    np.testing.assert_allclose(rank_correlation(x, y), spearmanr(x, y).statistic, rtol=1e-5)
    np.testing.assert_allclose(rank_correlation(x, -(x**3)), -1.0, rtol=1e-6)
    assert rank_correlation(x, np.ones(40)) == 0.0
    valid = r.random(40) < 0.7
    expected = spearmanr(x[valid], y[valid]).statistic
    np.testing.assert_allclose(rank_correlation(x, np.where(valid, y, 99.0), valid), expected, rtol=1e-5)
    assert rank_correlation(x, np.where(valid, 2.0, y), valid) == 0.0  # of the valid ones all are equal
    assert rank_correlation(x, y, np.zeros(40, bool)) == 0.0
