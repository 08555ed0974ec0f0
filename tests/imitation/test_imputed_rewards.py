"""The losses of imputed_rewards against the equations in plain numpy; what it imputes, and from what."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from iql_in_numpy import check_iql
from jobs import small, train
from reference import B, agent_of, close, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import load_labelled

SMALL = {
    "labelled_fraction": 0.5, "reward_updates": 4, "holdout_every": 2, "reward_batch": 8, "reward_hidden_dims": (8,),
}  # fmt: skip


def setting(**changes):
    module = load("imputed_rewards")
    args = module.Args(**{"hidden_dims": (8, 8), "batch_size": B, "reward_hidden_dims": (8,), **changes})
    r = np.random.default_rng(0)
    scales = module.Scales(r.normal(size=8), r.uniform(0.5, 2, 8), np.float32(-3.0), np.float32(4.0))
    return module, args, agent_of(module, args), jax.tree.map(np.float32, scales)


def predicted(params, batch, scales):
    x = np.concatenate([batch.obs, batch.action, batch.next_obs], 1)
    return -3.0 + 4.0 * mlp(params, (x - scales.input_mean) / scales.input_std)[:, 0]


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("imputed_rewards"), batch)


@pytest.mark.long
def test_the_reward_model_is_fitted_by_least_squares(batch):
    module, _, agent, scales = setting()
    expected = (((predicted(agent.reward, batch, scales) - batch.reward) / 4.0) ** 2).mean()
    close(module.reward_loss(agent.reward, agent.nets, batch, scales), expected)


@pytest.mark.long
def test_known_rewards_stay_and_the_best_model_gives_the_others(batch):
    module, args, agent, scales = setting()
    labelled = np.float32([1, 0, 0, 1, 0])
    of_model = predicted(agent.best_reward, batch, scales)
    assert np.abs(of_model - predicted(agent.reward, batch, scales)).max() > 0.01
    hidden = batch._replace(reward=np.where(labelled > 0, batch.reward, np.nan))
    found = module.imputed(agent, hidden, labelled, scales, args)
    close(found, np.where(labelled > 0, batch.reward, of_model))
    zero = module.imputed(agent, hidden, labelled, scales, dataclasses.replace(args, impute="zero"))
    close(zero, np.where(labelled > 0, batch.reward, 0.0))


def test_the_model_of_least_error_is_kept():
    module, _, agent, _ = setting()
    agent = agent.replace(holdout_error=np.float32(0.5))
    worse, better = module.judge(agent, 0.6), module.judge(agent, 0.4)
    jax.tree.map(np.testing.assert_array_equal, worse.best_reward, agent.best_reward)
    jax.tree.map(np.testing.assert_array_equal, better.best_reward, agent.reward)
    assert worse.holdout_error == 0.5 and better.holdout_error == np.float32(0.4)


def test_no_hidden_reward_is_looked_at(pendulum, tmp_path):
    """Other rewards of the rows without labels: the same in all that is trained on, compared with the truth aside."""
    module = load("imputed_rewards")
    args = module.Args(dataset=pendulum, labelled_fraction=0.2)
    data, labelled, truth = load_labelled(args)
    one = module.imputable(data, labelled, truth.reward, args)
    other = module.imputable(data, labelled, 0 * truth.reward, args)
    same = [x._replace(compared=None) for x in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *same)
    assert labelled.sum() == 60 and one.labelled.sum() == 60 and len(one.known.rows) == 54
    assert len(one.held_out.obs) == 6 and len(one.compared.obs) == 240
    fitted = np.asarray(one.known.take(np.arange(54)).obs)[:, 0]
    held = np.asarray(one.held_out.obs)[:, 0]
    assert {*fitted, *held} == {*data.obs[labelled][:, 0]}
    rows = one.transitions.take(np.arange(300))
    np.testing.assert_allclose(rows.reward, np.where(labelled, truth.reward, 0.0))
    np.testing.assert_array_equal(one.labelled, labelled)
    shown = one.held_out.reward, one.known.take(np.arange(54)).reward
    np.testing.assert_allclose(np.sort(np.concatenate(shown)), np.sort(truth.reward[labelled]))
    np.testing.assert_allclose(one.scales.reward_mean, np.mean(shown[1]), rtol=1e-4, atol=1e-6)
    alone = module.imputable(data, labelled, truth.reward, dataclasses.replace(args, impute="none"))
    assert len(alone.transitions.rows) == 60 and (np.asarray(alone.labelled) == 1).all()


@pytest.mark.long
def test_labels_of_a_reward_that_is_learnable(tmp_path):
    """After fitting, imputed rewards are the true ones; they are written for other scripts, the known ones as known."""
    path, out = write_pendulum(tmp_path / "pendulum.npz", n=900), tmp_path / "pendulum-imputed.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["rewards"] = 5.0 + 2.0 * arrays["observations"][:, 0] - arrays["next_observations"][:, 1]
    np.savez(path, **arrays)
    module = load("imputed_rewards")
    sizes = {"reward_updates": 400, "holdout_every": 50, "reward_batch": 64, "reward_hidden_dims": (32,), "updates": 50}
    sizes |= {"eval_every": 50, "log_every": 50, "checkpoint_every": 50, "labelled_fraction": 0.3, "reward_lr": 1e-2}
    args = small("imputed_rewards", path, tmp_path / "run", env="none", write_dataset=str(out), **sizes)
    module.main(args)
    truth, found = load_dataset(path, env="none"), load_dataset(str(out), env="none")
    _, labelled, _ = load_labelled(args)
    np.testing.assert_allclose(found.reward[labelled], truth.reward[labelled])
    gap = found.reward - truth.reward
    assert 0 < gap[~labelled].var() < 0.02 * truth.reward.var()
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    r2 = float(metrics[-1].split(",")[metrics[0].split(",").index("label_r2")])
    np.testing.assert_allclose(r2, 1 - (gap[~labelled] ** 2).mean() / truth.reward[~labelled].var(), rtol=1e-3)
    assert module.accuracy(None, None, dataclasses.replace(args, impute="none")) == {}  # there are no labels


@pytest.mark.long
@pytest.mark.parametrize("impute", ["zero", "none"])
def test_without_a_model_nothing_is_asked_of_its_fit(impute, pendulum, tmp_path):
    sizes = {"holdout": 0.0, "reward_updates": 3, "holdout_every": 2}
    agents = train("imputed_rewards", pendulum, tmp_path / "run", impute=impute, env="none", **sizes)
    trained = [x for name, x in agents.items() if name.startswith(("[0].actor[", "[0].critic["))]
    assert trained and all(np.isfinite(x).all() for x in trained)


def test_bad_input_is_one_sentence(pendulum, tmp_path):
    module, goals = load("imputed_rewards"), write_goals(tmp_path / "maze.npz")
    for dataset, changes, message in (
        (pendulum, {"labelled_fraction": 0.0}, "none of the 300 transitions of .* keeps its labels"),
        (pendulum, {"labelled_fraction": 0.01}, "Of 3 labelled rows 0 are held out"),
        (pendulum, {"hide": ("actions",)}, "--hide actions: rewards are what is imputed here"),
        (pendulum, {"impute": "none", "holdout": 1.0}, "Of 150 labelled rows all are held out"),
        (pendulum, {"reward_updates": 3}, "--reward-updates 3 must be a multiple of --holdout-every"),
        (pendulum, {"impute": "none", "write_dataset": "x.npz"}, "there are no labels to write"),
        (goals, {"env": "none"}, "learns from rewards"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("imputed_rewards", dataset, tmp_path / "run", **changes))
