"""The losses of riql against the same equations in plain numpy."""

import json

import jax
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, log_std_of, mlp
from scipy.stats import norm

from shared.errors import InputError

SMALL = {"n_critics": 3}

SIZES = {"hidden_dims": (8, 8), "batch_size": B, "n_critics": 4}


def quantile_of(agent, batch, alpha):
    """Linear between the two nearest of the 4 sorted values."""
    q = np.sort(heads(agent.target_critic, batch.obs, batch.action), 0)
    low = int(np.floor(3 * alpha))
    return q[low] + (3 * alpha - low) * (q[min(low + 1, 3)] - q[low])


def advantage(agent, batch, alpha):
    return quantile_of(agent, batch, alpha) - mlp(agent.value, batch.obs)[:, 0]


def test_riql_value_is_an_expectile_of_the_quantile_over_target_critics(batch):
    riql = compiled("riql")
    args = riql.Args(**SIZES, expectile=0.9, quantile=0.4)
    agent = agent_of(riql, args, seed=7)
    u = advantage(agent, batch, 0.4)
    assert (u > 0).any() and (u < 0).any()
    close(riql.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.1, 0.9) * u**2).mean())
    least = heads(agent.target_critic, batch.obs, batch.action).min(0)
    close(riql.quantile_q(agent, batch, riql.Args(**SIZES, quantile=0.0))[0], least)


@pytest.mark.parametrize("deterministic", [True, False])
def test_riql_actor_clones_with_weights_of_the_quantile(batch, deterministic):
    riql = compiled("riql")
    args = riql.Args(**SIZES, beta=4.0, max_weight=1.2, quantile=0.4, deterministic=deterministic)
    agent = agent_of(riql, args, seed=7)
    batch = batch._replace(action=1.5 * batch.action)  # corrupted actions leave [-1, 1] and are not clipped
    weight = np.minimum(np.exp(4.0 * advantage(agent, batch, 0.4)), 1.2)
    assert (weight == 1.2).any() and (weight < 1.2).any() and (np.abs(batch.action) > 1).any()
    mean = mlp(agent.actor, batch.obs)
    if deterministic:
        bc = ((np.tanh(mean) - batch.action) ** 2).sum(-1)
    else:
        bc = -norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(riql.actor_loss(agent.actor, agent, batch, args)[0], (weight * bc).mean())
    mode = np.tanh(mean) if deterministic else np.clip(mean, -1, 1)
    close(riql.act(agent, batch.obs, jax.random.key(0), args), mode)


def test_riql_huber_is_quadratic_up_to_one_over_sigma_squared():
    riql = compiled("riql")
    x = np.float32([-3.0, -0.2, 0.0, 0.1, 0.25, 3.0])
    close(riql.huber(x, 0.1), x**2 / 200)  # a small sigma: squares
    close(riql.huber(x, 100.0), np.abs(x) - 5e-5 * (np.abs(x) > 0))  # a large one: absolute values
    close(riql.huber(x, 2.0), [2.875, 0.08, 0, 0.02, 0.125, 2.875])
    slope = jax.vmap(jax.grad(lambda x: riql.huber(x, 2.0)))(x)
    close(slope, [-1, -0.8, 0, 0.4, 1, 1])  # bounded: an outlier pulls no harder


def test_riql_critic_has_clipped_targets_and_hubers_loss(batch):
    riql = compiled("riql")
    args = riql.Args(**SIZES, discount=0.9, huber_sigma=1.2, min_target=-1.0, max_target=1.0)
    agent = agent_of(riql, args, seed=7)
    batch = batch._replace(reward=2 * batch.reward)
    y = batch.reward + 0.9 * (1 - batch.terminal) * mlp(agent.value, batch.next_obs)[:, 0]
    assert (np.abs(y) > 1).any() and (np.abs(y) < 1).any()
    x = np.abs(np.clip(y, -1, 1) - heads(agent.critic, batch.obs, batch.action))
    delta = 1 / 1.2**2
    assert (x < delta).any() and (x > delta).any()
    expected = np.where(x < delta, x**2 / (2 * delta), x - delta / 2).mean()
    close(riql.critic_loss(agent.critic, agent, batch, args)[0], expected)


def test_riql_updates_everything_with_the_old_value_and_targets(batch):
    riql = compiled("riql")
    args = riql.Args(**SIZES, value_lr=0.1, critic_lr=0.1, tau=0.5)
    agent = agent_of(riql, args, seed=7)
    new, metrics = jax.jit(riql.update)(agent, batch, jax.random.key(0), args)
    close(metrics["value_loss"], riql.value_loss(agent.value, agent, batch, args)[0])
    close(metrics["critic_loss"], riql.critic_loss(agent.critic, agent, batch, args)[0])
    close(metrics["actor_loss"], riql.actor_loss(agent.actor, agent, batch, args)[0])
    after = agent.replace(value=new.value)
    assert abs(float(metrics["critic_loss"] - riql.critic_loss(agent.critic, after, batch, args)[0])) > 1e-3
    jax.tree.map(lambda t, o, c: close(t, 0.5 * (o + c)), new.target_critic, agent.target_critic, new.critic)


def test_riql_actor_learning_rate_decays_to_zero(batch):
    riql = compiled("riql")
    args = riql.Args(**SIZES, updates=3)
    agent, key, update = agent_of(riql, args, seed=7), jax.random.key(0), jax.jit(riql.update)
    for _ in range(3):
        agent, _ = update(agent, batch, key, args)
    still, _ = update(agent, batch, key, args)
    jax.tree.map(np.testing.assert_array_equal, still.actor, agent.actor)


@pytest.mark.long
def test_riql_and_iql_learn_from_the_same_corrupted_data_with_its_statistics(pendulum, tmp_path):
    """The statistics, with which evaluation normalises too, are those of the corrupted data."""

    def task(name, **options):
        module, out = load(name), tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        sizes = {"hidden_dims": (8, 8), "batch_size": 8, "normalize_obs": True, "eval_episodes": 1, "updates": 2}
        module.main(module.Args(dataset=pendulum, log_every=2, out=str(out), **sizes, **options))
        return json.loads((out / "run.json").read_text())["task"]

    clean, spoilt = task("riql"), task("riql", corruption=("obs", "reward"), corruption_scale=20.0)
    assert np.greater(spoilt["obs_std"], 3 * np.array(clean["obs_std"])).all()
    assert spoilt["hash"] != clean["hash"] and spoilt["id"] == f"{clean['id']}+obs+reward"
    assert spoilt["options"]["corruption"] == ["obs", "reward"] and spoilt["options"]["corruption_scale"] == 20.0
    same = task("iql", corruption=("reward", "obs"), corruption_scale=20.0)
    assert (same["hash"], same["obs_std"], same["id"]) == (spoilt["hash"], spoilt["obs_std"], spoilt["id"])


def test_riql_presets_corrupt_what_their_names_say():
    riql = load("riql")
    for name, preset in riql.PRESETS.items():
        (element,) = preset["corruption"]
        assert name.split("-")[1] == element.split("_")[0]
        riql.Args(**preset)


def test_riql_begins_as_the_authors_networks_do():
    """RIQL.py of YangRui2015/RIQL at cc07d81: critics within 1 / sqrt(outputs), V and policy plain linear layers."""
    riql = compiled("riql")
    agent = riql.init(jax.random.key(0), riql.Args(hidden_dims=(64, 32), n_critics=3), SPEC)

    def largest(tree, layer, kind="kernel"):
        return float(np.abs(tree["params"][f"Dense_{layer}"][kind]).max())

    for layer, outputs in ((0, 64), (1, 32)):
        assert 0.9 / np.sqrt(outputs) < largest(agent.critic, layer) <= 1 / np.sqrt(outputs)
        assert largest(agent.critic, layer, "bias") == np.float32(0.1)
    assert largest(agent.critic, 2) <= 3e-3
    for tree in (agent.value, agent.actor):
        for layer, inputs in ((0, 3), (1, 64), (2, 32)):
            assert 0.7 / np.sqrt(inputs) < largest(tree, layer) <= 1 / np.sqrt(inputs)
            assert largest(tree, layer, "bias") == 0


def test_riql_begins_as_iql_does_if_asked_to():
    """Orthogonal with gain sqrt(2) in every layer, so that a comparison with IQL is of the losses alone."""
    riql = compiled("riql")
    agent = riql.init(jax.random.key(0), riql.Args(hidden_dims=(16, 8), n_critics=3, orthogonal=True), SPEC)
    for tree in (agent.actor, agent.value, agent.critic):
        for layer in range(3):
            kernel, bias = (np.array(tree["params"][f"Dense_{layer}"][kind]) for kind in ("kernel", "bias"))
            kernel = kernel.reshape(-1, *kernel.shape[-2:])  # the critics' ensemble
            for k in kernel:
                wide = k if k.shape[0] <= k.shape[1] else k.T
                close(wide @ wide.T, 2 * np.eye(len(wide)))
            assert not bias.any()


def test_riql_refuses_targets_that_are_all_clipped_to_one_number():
    """Every lane of a grid has its own pair."""
    riql = load("riql")
    for low, high in ((5.0, 5.0), (5.0, -5.0), ((-100.0, 5.0), (1.0, 1000.0))):
        with pytest.raises(InputError, match="--min-target .* must be lower than --max-target"):
            riql.main(riql.Args(dataset="/nowhere.npz", min_target=low, max_target=high))
