"""The losses of ss_orl against the equations in plain numpy; what its inverse model sees and what it imputes."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_pendulum
from iql_in_numpy import check_iql
from jobs import SHORT, small, train
from reference import SPEC, B, agent_of, close, mlp
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import load_labelled

SMALL = {
    "labelled_fraction": 0.5, "labelled_below": 1.0, "inverse_updates": 4, "holdout_every": 2, "inverse_batch": 8,
    "inverse_hidden_dims": (8,),
}  # fmt: skip


def setting(**changes):
    module = load("ss_orl")
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "inverse_hidden_dims": (8,), "inverse_dropout": 0.5}
    args = module.Args(**{**sizes, **changes})
    r = np.random.default_rng(0)
    shown = module.Shown(np.float32(r.normal(size=(B, 9))), np.float32(r.uniform(-1, 1, (B, 2))))
    return module, args, agent_of(module, args), shown


def gaussian(params, states):
    """Mean and log standard deviation, each by two layers of its own."""
    layers = params["params"]
    heads = [{"params": {"Dense_0": layers[f"Dense_{i}"], "Dense_1": layers[f"Dense_{i + 1}"]}} for i in (0, 2)]
    mean, raw = (mlp(head, states) for head in heads)
    return mean, -5 + 7 * (np.tanh(raw) + 1) / 2


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("ss_orl"), batch)


@pytest.mark.long
def test_the_inverse_model_is_fitted_by_its_likelihood():
    module, _, agent, shown = setting()
    mean, log_std = gaussian(agent.inverse, shown.states)
    expected = -norm.logpdf(shown.action, mean, np.exp(log_std)).mean()
    close(module.inverse_loss(agent.inverse, agent.nets, shown), expected)
    dropped = module.inverse_loss(agent.inverse, agent.nets, shown, jax.random.key(0))
    assert abs(dropped - expected) > 1e-3


@pytest.mark.long
def test_the_inverse_model_begins_orthogonal_with_a_gain_of_1():
    """As the released one (PyTorch's orthogonal_); IQL's networks have a gain of sqrt 2."""
    module, args, _, _ = setting()
    layers = module.init(jax.random.key(0), args, SPEC).inverse["params"]
    for i, layer in enumerate(layers.values()):
        singular = np.linalg.svd(layer["kernel"], compute_uv=False)
        np.testing.assert_allclose(singular, np.ones(min(layer["kernel"].shape)), atol=1e-5, err_msg=f"layer {i}")


@pytest.mark.parametrize("past", [0, 1, 2])
def test_a_window_never_reaches_into_another_episode(past, pendulum):
    module, data = load("ss_orl"), load_dataset(pendulum)
    lengths = np.arange(300) % 30 == 29
    lengths[4] = True
    data = dataclasses.replace(data, last=lengths)
    found = module.windows(data, past)
    mean, std = data.obs.mean(0), data.obs.std(0)
    begin = 0
    for t in range(60):
        expected = [(data.obs[t - k] - mean) / std if t - k >= begin else np.zeros(3) for k in range(past, -1, -1)]
        expected.append((data.next_obs[t] - mean) / std)
        np.testing.assert_allclose(found[t], np.concatenate(expected), rtol=1e-4, atol=1e-5)
        begin = t + 1 if lengths[t] else begin


def test_known_actions_stay_and_the_best_model_gives_the_others():
    module, _, agent, shown = setting()
    labelled = np.float32([1, 0, 0, 1, 0])
    of_model, _ = gaussian(agent.best_inverse, shown.states)
    assert np.abs(of_model).max() > 1 > np.abs(of_model).min()
    found = module.imputed(agent, np.where(labelled[:, None] > 0, shown.action, np.nan), shown.states, labelled)
    close(found, np.where(labelled[:, None] > 0, shown.action, np.clip(of_model, -1, 1)))


def test_the_model_of_least_error_is_kept():
    module, _, agent, _ = setting()
    agent = agent.replace(holdout_error=np.float32(0.5))
    worse, better = module.judge(agent, 0.6), module.judge(agent, 0.4)
    jax.tree.map(np.testing.assert_array_equal, worse.best_inverse, agent.best_inverse)
    jax.tree.map(np.testing.assert_array_equal, better.best_inverse, agent.inverse)
    assert worse.holdout_error == 0.5 and better.holdout_error == np.float32(0.4)


def test_no_hidden_action_is_looked_at_and_whole_episodes_are_held_out(pendulum):
    module = load("ss_orl")
    args = module.Args(dataset=pendulum, labelled_fraction=0.4)
    data, labelled, truth = load_labelled(args)
    one = module.watched(data, labelled, truth.action, args)
    other = module.watched(data, labelled, 0 * truth.action, args)
    jax.tree.map(np.testing.assert_array_equal, *(x._replace(compared=None) for x in (one, other)))
    assert len(one.known.action) == 90 and len(one.held_out.action) == 30 and len(one.compared.action) == 180
    row = {float(a): i for i, a in enumerate(truth.action[:, 0])}
    judged = {row[float(a)] // 30 for a in one.held_out.action[:, 0]}
    fitted = {row[float(a)] // 30 for a in one.known.action[:, 0]}
    assert len(judged) == 1 and not judged & fitted
    assert judged | fitted == {*np.flatnonzero(labelled) // 30}
    rows = one.transitions.take(np.arange(300))
    np.testing.assert_allclose(rows.action, np.where(labelled[:, None], truth.action, 0.0))
    np.testing.assert_array_equal(one.states, module.windows(data, 1))
    alone = module.watched(data, labelled, truth.action, dataclasses.replace(args, unlabelled="none"))
    assert len(alone.transitions.rows) == 120 and (np.asarray(alone.labelled) == 1).all()


@pytest.mark.long
def test_actions_of_learnable_dynamics(tmp_path):
    """s' says what was done: imputed actions are the true ones; they are written beside the known ones."""
    path, out = write_pendulum(tmp_path / "pendulum.npz", n=3000), tmp_path / "pendulum-ss.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["next_observations"] = arrays["observations"].copy()
    arrays["next_observations"][:, 2:] += arrays["actions"]
    np.savez(path, **arrays)
    module = load("ss_orl")
    sizes = {"inverse_updates": 600, "holdout_every": 50, "inverse_batch": 64, "inverse_hidden_dims": (64,)}
    sizes |= {
        "inverse_lr": 5e-3,
        "inverse_dropout": 0.0,
        "labelled_fraction": 0.5,
        "past": 0,
        "updates": 50,
        "eval_every": 50,
    }
    sizes |= {"log_every": 50, "checkpoint_every": 50, "normalize_return": True, "env": SHORT}
    args = small("ss_orl", path, tmp_path / "run", write_dataset=str(out), **sizes)
    module.main(args)
    truth, found = load_dataset(path), load_dataset(str(out))
    _, labelled, _ = load_labelled(args)
    np.testing.assert_allclose(found.action[labelled], truth.action[labelled], atol=1e-5)
    np.testing.assert_allclose(found.reward, truth.reward, rtol=1e-6)  # not scaled
    gap = (found.action - truth.action)[~labelled]
    assert 0 < gap.var() < 0.2 * truth.action.var()
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    np.testing.assert_allclose(
        float(last["label_r2"]), 1 - (gap**2).mean() / truth.action[~labelled].var(), rtol=1e-3
    )  # fmt: skip
    assert module.accuracy(None, None, dataclasses.replace(args, unlabelled="none")) == {}  # there is no model


@pytest.mark.long
def test_without_a_model_nothing_is_asked_of_its_fit(pendulum, tmp_path):
    """One labelled episode, of which none can be held out, is enough to learn from it alone."""
    sizes = {"labelled_fraction": 0.1, "inverse_updates": 3, "holdout_every": 2}
    agents = train("ss_orl", pendulum, tmp_path / "run", unlabelled="none", env="none", **sizes)
    trained = [x for name, x in agents.items() if name.startswith(("[0].actor[", "[0].critic["))]
    assert trained and all(np.isfinite(x).all() for x in trained)


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    module = load("ss_orl")
    for dataset, changes, message in (
        (pendulum, {"labelled_fraction": 0.0}, "none of the 10 episodes of .* keeps its labels"),
        (pendulum, {"labelled_fraction": 0.1}, "Of 1 labelled episodes 0 are held out"),
        (pendulum, {"hide": ("rewards",)}, "--hide rewards, --past 1: actions alone are imputed"),
        (pendulum, {"past": -1}, "--past -1: actions alone are imputed"),
        (pendulum, {"inverse_updates": 3}, "--inverse-updates 3 must be a multiple of --holdout-every"),
        (pendulum, {"unlabelled": "none", "write_dataset": "x.npz"}, "there are no labels to write"),
        (cartpole, {}, "This needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("ss_orl", dataset, tmp_path / "run", **changes))
