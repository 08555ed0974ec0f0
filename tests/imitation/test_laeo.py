"""The losses of laeo against the equations in plain numpy, and what its examples are."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from jobs import small
from reference import B, agent_of, close, heads, mlp, tanh_normal
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import GoalDataset


def setting(seed=0, **changes):
    laeo = load("laeo")
    args = laeo.Args(**{"hidden_dims": (8, 8), "batch_size": B, "latent_dim": 4, "discount": 0.5, **changes})
    r = np.random.default_rng(0)
    states = {k: r.normal(size=(B, 3)).astype(np.float32) for k in ("obs", "next_obs", "future", "example")}
    action, terminal = r.uniform(-0.9, 0.9, (B, 2)).astype(np.float32), np.float32([0, 1, 0, 0, 1])
    agent = agent_of(laeo, args, seed=seed).replace(log_alpha=np.float32(-0.7))
    return laeo, args, agent, laeo.ExampleBatch(**states, action=action, terminal=terminal)


def one(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def similarities(agent, batch, action, goal):
    """f of every row with every goal [2, B, B]."""
    pairs = [one(agent.critic, i) for i in range(2)]
    return np.stack([mlp(phi, batch.obs, action) @ mlp(psi, goal).T for phi, psi in pairs])


def actor(agent, obs):
    mean, log_std = np.split(mlp(agent.actor, obs), 2, axis=-1)
    return mean, np.clip(log_std, -5, 2)


def normals(key):
    return np.asarray(jax.random.normal(key, (B, 2)))


@pytest.mark.long
def test_a_rows_future_is_told_from_those_of_all_others():
    laeo, args, agent, batch = setting()
    assert agent.classifier is None
    sigma = 1 / (1 + np.exp(-similarities(agent, batch, batch.action, batch.future)))
    own = np.eye(B, dtype=bool)
    expected = -(np.log(sigma[:, own]).sum() + np.log(1 - sigma[:, ~own]).sum()) / sigma.size
    close(laeo.contrastive_loss(agent.critic, agent, batch, args)[0], expected)


@pytest.mark.parametrize("reward", ["none", "classifier"])
def test_the_actor_climbs_the_lesser_value_and_keeps_to_the_data(reward):
    laeo, args, agent, batch = setting(bc_share=0.2, reward=reward, seed=3 if reward == "none" else 6)
    key = jax.random.key(2)
    mean, log_std = actor(agent, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, normals(key))
    if reward == "none":
        q = similarities(agent, batch, action, batch.example).diagonal(axis1=1, axis2=2)
    else:
        q = heads(agent.critic, batch.obs, action)
    assert (q[0] < q[1]).any() and (q[0] > q[1]).any()
    u = np.arctanh(batch.action)
    of_data = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    expected = (0.8 * (np.exp(-0.7) * log_prob - q.min(0)) - 0.2 * of_data).mean()
    close(laeo.actor_loss(agent.actor, agent, batch, key, args)[0], expected)
    edge = batch._replace(action=np.ones((B, 2), np.float32))
    u = np.full((B, 2), np.arctanh(1 - 1e-3))
    of_edge = (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    found = laeo.actor_loss(agent.actor, agent, edge, key, args)[1]["bc_loss"]
    np.testing.assert_allclose(found, -of_edge.mean(), rtol=1e-3)


def test_a_learned_reward_is_bootstrapped_and_stays_where_an_episode_ends():
    laeo, args, agent, batch = setting(reward="classifier")
    success, other = (mlp(agent.classifier, x)[:, 0] for x in (batch.example, batch.next_obs))
    expected = np.log1p(np.exp(-success)).mean() + np.log1p(np.exp(other)).mean()
    close(laeo.classifier_loss(agent.classifier, agent, batch), expected)
    key, r = jax.random.key(1), 1 / (1 + np.exp(-other))
    next_action, _ = tanh_normal(*actor(agent, batch.next_obs), normals(key))
    next_q = heads(agent.target_critic, batch.next_obs, next_action)
    assert (next_q[0] < next_q[1]).any() and (next_q[0] > next_q[1]).any()
    y = r + 0.5 * np.where(batch.terminal > 0, 2 * r, next_q.min(0))
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(laeo.td_loss(agent.critic, agent, batch, key, args)[0], expected)


@pytest.mark.long
@pytest.mark.parametrize("reward", ["none", "classifier"])
def test_all_losses_take_the_networks_of_before(reward):
    laeo, args, agent, batch = setting(reward=reward, tau=0.5, kept_entropy=0.3)
    key = jax.random.key(0)
    actor_key, critic_key = jax.random.split(key)
    new, metrics = jax.jit(laeo.update)(agent, batch, key, args)
    loss, info = laeo.actor_loss(agent.actor, agent, batch, actor_key, args)
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-3)
    if reward == "none":
        close(metrics["critic_loss"], laeo.contrastive_loss(agent.critic, agent, batch, args)[0])
    else:
        close(metrics["critic_loss"], laeo.td_loss(agent.critic, agent, batch, critic_key, args)[0])
        close(metrics["classifier_loss"], laeo.classifier_loss(agent.classifier, agent, batch))
    assert (new.log_alpha > agent.log_alpha) == (info["entropy"] < 0.3)
    close(laeo.alpha_loss(-0.7, 1.0, args), np.exp(-0.7) * (1.0 - 0.3))
    half = jax.tree.map(lambda a, b: (a + b) / 2, agent.target_critic, new.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.target_critic, half)


def test_a_temperature_of_0_is_none_and_stays_so():
    laeo, args, _, batch = setting(first_alpha=0.0)
    agent, key = agent_of(laeo, args), jax.random.key(0)
    new, metrics = jax.jit(laeo.update)(agent, batch, key, args)
    assert new.log_alpha == -np.inf and metrics["alpha"] == 0.0
    action, _ = tanh_normal(*actor(agent, batch.obs), normals(jax.random.split(key)[0]))
    f = similarities(agent, batch, action, batch.example).diagonal(axis1=1, axis2=2).min(0)
    np.testing.assert_allclose(metrics["actor_loss"], -f.mean(), rtol=1e-3)
    assert agent_of(laeo, laeo.Args(hidden_dims=(8, 8), first_alpha=np.e)).log_alpha == 1.0


def test_futures_lie_k_steps_ahead_up_to_the_last_observation(tmp_path):
    laeo, data = load("laeo"), load_dataset(write_pendulum(tmp_path / "pendulum.npz"))
    examples = np.float32([[1, 2, 3], [4, 5, 6]])
    shown = laeo.Shown(GoalDataset(data, None).transitions(), np.arange(300, dtype=np.float32), examples)
    batch = laeo.sample(jax.random.key(0), shown, laeo.Args(batch_size=20_000, discount=0.8))
    came_to = {tuple(x): i for i, x in enumerate(data.next_obs)}
    row = np.asarray(batch.terminal).astype(int)  # rows are told by their numbers
    np.testing.assert_array_equal(batch.obs, data.obs[row])
    np.testing.assert_array_equal(batch.next_obs, data.next_obs[row])
    np.testing.assert_array_equal(batch.action, data.action[row])
    future = np.array([came_to[tuple(x)] for x in np.asarray(batch.future)])
    assert ((future >= row) & (future // 30 == row // 30)).all()
    steps = (future - row + 1)[row % 30 < 5]
    for k in (1, 2, 5):
        assert abs((steps == k).mean() - 0.2 * 0.8 ** (k - 1)) < 0.02
    assert (future % 30 == 29).any()  # what the last row came to
    for discount, ahead in ((0.0, row), (1.0, row // 30 * 30 + 29)):
        batch = laeo.sample(jax.random.key(0), shown, laeo.Args(batch_size=20_000, discount=discount))
        np.testing.assert_array_equal(batch.future, data.next_obs[ahead])
    shown_examples = np.asarray(batch.example)[:, 0]
    assert set(shown_examples) == {1.0, 4.0} and 0.45 < (shown_examples == 1).mean() < 0.55


def test_examples_are_states_that_good_rewards_came_to(tmp_path):
    laeo, path = load("laeo"), write_pendulum(tmp_path / "pendulum.npz")
    data = load_dataset(path)
    good = data.next_obs[data.reward >= 1.5]
    assert 5 < len(good) < 100
    all_good, own = laeo.success_examples(data, laeo.Args(success_reward=1.5))
    np.testing.assert_array_equal(all_good, good)
    assert own is data
    few, _ = laeo.success_examples(data, laeo.Args(success_reward=1.5, examples=3))
    np.testing.assert_array_equal(few, good[[0, round((len(good) - 1) / 2), -1]])


def test_examples_of_another_dataset_are_named_and_have_arrays_of_their_own_names(tmp_path):
    laeo, path = load("laeo"), write_pendulum(tmp_path / "pendulum.npz")
    with np.load(write_pendulum(tmp_path / "other.npz", n=60, seed=1)) as file:
        arrays = {("seen" if name == "observations" else name): file[name] for name in file.files}
    np.savez(tmp_path / "shown.npz", **arrays)
    args = laeo.Args(dataset=path, examples_from=str(tmp_path / "shown.npz"), fields=("obs=seen",), examples=1000)
    data = load_dataset(path)
    found, named = laeo.success_examples(data, args)
    np.testing.assert_array_equal(found, arrays["seen"])
    parts = named.task.data["parts"]
    assert parts["examples"]["rows"] == 60 and parts["unlabelled"]["rows"] == 300
    assert len({named.task.hash, data.task.hash, *(part["hash"] for part in parts.values())}) == 4
    fewer = laeo.success_examples(data, dataclasses.replace(args, examples=5))[1].task.data["parts"]
    assert fewer["examples"]["rows"] == 5 and fewer["unlabelled"] == parts["unlabelled"]


def test_bad_input_is_one_sentence(tmp_path):
    laeo, path, goals = load("laeo"), write_pendulum(tmp_path / "pendulum.npz"), write_goals(tmp_path / "goals.npz")
    for changes, message in (
        ({"success_reward": 99.0}, "has 0 rows of reward 99.0 or more"),
        ({"examples": 0}, "--examples 0: "),
        ({"reward": "classifier", "discount": (0.9, 1.0)}, "--reward classifier: with --discount 1 "),
        ({"batch_size": 1}, "--batch-size 1: .* other rows of a batch; there are none"),
        ({"first_alpha": (1.0, -0.1)}, "--first-alpha must be at least 0, not "),
        ({"examples_from": goals}, r"--examples-from: observations of .* have the shape \(2,\), not \(3,\)"),
    ):
        with pytest.raises(InputError, match=message):
            laeo.main(small("laeo", path, tmp_path / "run", **changes))
    with pytest.raises(InputError, match="learns from rewards"):
        laeo.main(small("laeo", goals, tmp_path / "run", env="none"))
