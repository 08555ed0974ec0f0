"""The losses of seabo against the equations in plain numpy, its search and its labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from iql_in_numpy import check_iql
from jobs import small
from scipy.stats import spearmanr

from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import load_demonstrated


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("seabo"), batch)


@pytest.mark.parametrize("neighbour", [1, 3])
@pytest.mark.parametrize("key", ["sas", "sa", "ss"])
def test_distances_are_to_the_kth_nearest_demonstrated_transition(key, neighbour, pendulum):
    seabo = load("seabo")
    data, demos, _ = load_demonstrated(seabo.Args(dataset=pendulum, demo_episodes=2))
    demos = dataclasses.replace(demos, successor=np.arange(60) != 59)
    columns = {"s": "obs", "a": "action"}
    names = [columns[c] for c in key]
    names[-1] = "next_obs" if key.endswith("s") else names[-1]
    own, shown = (np.concatenate([getattr(d, n) for n in names], 1) for d in (data, demos))
    shown = shown[:59] if key != "sa" else shown  # what is compared must be known
    expected = np.sort(np.linalg.norm(own[:, None] - shown[None], axis=-1), axis=1)[:, neighbour - 1]
    found = seabo.distances(data, demos, seabo.Args(key=key, neighbour=neighbour))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def searched(seabo, data, distance, returns=()):
    columns = np.float32(distance), data.episode(), data.starts(), np.flatnonzero(data.usable()), np.float32(returns)
    return seabo.Searched(data.transitions(), *map(jnp.asarray, columns))


def test_labels_fall_with_the_distance(pendulum):
    seabo, data = load("seabo"), load_dataset(pendulum)
    distance = np.random.default_rng(0).uniform(0, 2, 300)
    shown = searched(seabo, data, distance)
    shown = shown._replace(transitions=dataclasses.replace(shown.transitions, spec=data.spec._replace(action_dim=4)))
    args = seabo.Args(squash_alpha=3.0, squash_beta=2.0)
    np.testing.assert_allclose(seabo.labels(shown, args), 3.0 * np.exp(-2.0 * distance / 4), rtol=1e-5)
    whole = dataclasses.replace(args, by_dimensions=False)
    np.testing.assert_allclose(seabo.labels(shown, whole), 3.0 * np.exp(-2.0 * distance), rtol=1e-5)


def test_a_row_is_trained_on_with_its_own_label(pendulum, monkeypatch):
    """Rows whose next observation is not known are left out: numbers of rows and of labels differ."""
    seabo, data = load("seabo"), load_dataset(pendulum)
    data = dataclasses.replace(data, successor=np.arange(300) % 30 != 29)
    distance = np.arange(300) / 300
    args = seabo.Args(squash_alpha=2.0, squash_beta=1.0, reward_shift=-1.0, batch_size=50)
    monkeypatch.setattr(seabo, "update", lambda agent, batch, key, args: (agent, {"r": batch.reward}))
    monkeypatch.setattr(seabo.Transitions, "draw", lambda self, key, n: jnp.arange(n))
    returns = -distance.reshape(10, 30).sum(1)
    shown = searched(seabo, data, distance, returns)
    _, metrics = seabo.train(None, jax.random.split(jax.random.key(0), 1), args, shown)
    rows = np.flatnonzero(data.successor)[:50]
    np.testing.assert_allclose(metrics["r"], 2 * np.exp(-rows / 300).mean() - 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["label_correlation"], 1.0, rtol=1e-5)


def test_labels_follow_the_true_returns():
    """On data of four controllers, one demonstration, with and without its actions."""
    import make  # of datasets/

    make.make("pendulum-mixed", steps=4000)
    seabo = load("seabo")
    for key in ("sas", "ss"):
        args = seabo.Args(dataset="pendulum-mixed", env="none", key=key)
        data, demos, returns = load_demonstrated(args)
        label = np.asarray(seabo.labels(searched(seabo, data, seabo.distances(data, demos, args)), args))
        assert len(returns) == 20 and spearmanr(label.reshape(20, 200).sum(1), returns).statistic > 0.6
        np.testing.assert_array_equal(label.reshape(20, 200)[returns.argmax()], 1.0)  # the demonstration itself


@pytest.mark.long
def test_labels_are_written_as_a_dataset(pendulum, tmp_path):
    seabo, path = load("seabo"), tmp_path / "pendulum-seabo.npz"
    args = small("seabo", pendulum, tmp_path / "run", squash_beta=(2.0, 7.0), write_dataset=str(path))
    seabo.main(args)
    data, demos, _ = load_demonstrated(args)
    expected = np.exp(-2.0 * seabo.distances(data, demos, args))
    np.testing.assert_allclose(load_dataset(str(path)).reward, expected, rtol=1e-5)


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    seabo, goals = load("seabo"), write_goals(tmp_path / "maze.npz")
    far = write_pendulum(tmp_path / "pendulum-far.npz", shift=1000.0)
    for dataset, changes, message in (
        (pendulum, {"demos": (goals,)}, "has other observations"),
        (pendulum, {"demos": (far,)}, r"have nothing in common with '.*': its rows are 2.4\de\+03 to .* all labels 0"),
        (pendulum, {"demos": (far,), "squash_beta": (0.0, 1e-9)}, "--squash-beta makes all labels equal"),
        (pendulum, {"neighbour": 31}, "--neighbour 31: the demonstrations have 30 transitions to search"),
        (pendulum, {"neighbour": 0}, "--neighbour 0: "),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            seabo.main(small("seabo", dataset, tmp_path / "run", **changes))


def test_settings_are_those_released():
    """README and defaults of IQL/main_iql.py of dmksjfl/SEABO."""
    seabo = load("seabo")
    args, maze, hand = seabo.Args(), seabo.PRESETS["antmaze"], seabo.PRESETS["pen-"]
    assert (args.squash_alpha, args.squash_beta, args.neighbour, args.key) == (1.0, 0.5, 1, "sas")
    assert (args.expectile, args.beta, args.discount, args.tau, args.by_dimensions) == (0.7, 3.0, 0.99, 0.005, True)
    assert (maze["squash_beta"], maze["reward_shift"], maze["expectile"], maze["beta"]) == (5.0, -1.0, 0.9, 10.0)
    assert (hand["by_dimensions"], hand["beta"], hand["dropout"]) == (False, 0.5, 0.1)
