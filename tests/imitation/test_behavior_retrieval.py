"""The losses of behavior_retrieval against the equations in plain numpy; what is retrieved, and what is cloned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from jobs import SHORT, small
from reference import SPEC, B, agent_of, close, log_std_of, mlp
from scipy.stats import norm

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"demo_episodes": 1, "embed_updates": 4, "embed_batch": 8, "embed_hidden_dims": (8,), "threshold": 0.5}


def setting(**changes):
    module = load("behavior_retrieval")
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "embed_hidden_dims": (8, 6), "latent_dim": 4}
    args = module.Args(**{**sizes, **changes})
    return module, args, agent_of(module, args)


@pytest.mark.long
def test_the_autoencoder_reconstructs_and_stays_near_a_normal():
    module, args, agent = setting(kl_weight=0.3)
    x, key = np.random.default_rng(0).normal(size=(B, 5)).astype(np.float32), jax.random.key(1)
    mean, log_var = np.split(mlp(agent.encoder, x), 2, -1)
    z = mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(key, (B, 4)))
    error = ((mlp(agent.decoder, z) - x) ** 2).mean()
    kl = (-norm.entropy(scale=np.exp(log_var / 2)) + 0.5 * np.log(2 * np.pi) + 0.5 * (mean**2 + np.exp(log_var))).sum(1)
    found, info = module.embed_loss((agent.encoder, agent.decoder), agent.nets, x, key, args)
    close(found, error + 0.3 * kl.mean())
    close(info["kl"], kl.mean())


@pytest.mark.long
def test_the_policy_is_cloned_by_its_likelihood(batch):
    module, args, agent = setting()
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(module.actor_loss(agent.actor, agent, batch, args)[0], -log_prob.mean())
    new, metrics = module.update(agent, batch, jax.random.key(0), args)
    close(metrics["actor_loss"], -log_prob.mean())
    assert new.encoder is agent.encoder and module.actor_loss(new.actor, agent, batch, args)[0] < -log_prob.mean()


@pytest.fixture
def parts(tmp_path):
    """Prior data and demonstrations: one episode of it, and one of another file."""
    data = load_dataset(write_pendulum(tmp_path / "pendulum.npz"))
    other = load_dataset(write_pendulum(tmp_path / "pendulum-other.npz", seed=1))
    demos = other.select(np.arange(300) < 30)
    return data, dataclasses.replace(demos, obs=np.r_[data.obs[:10], demos.obs[10:]], action=np.r_[
        data.action[:10], demos.action[10:]])  # fmt: skip


@pytest.mark.long
def test_similarity_is_minus_the_distance_to_the_nearest_demonstrated_pair(parts, monkeypatch):
    module, args, _ = setting()
    spec = SPEC._replace(action_dim=1)
    agent = agent_of(module, args, spec)
    data, demos = parts
    prior = module.prior_of(data, demos, 300)
    inputs = np.concatenate([data.obs, data.action], 1)

    def embedded(d):
        x = (np.concatenate([d.obs, d.action], 1) - inputs.mean(0)) / inputs.std(0)
        return np.concatenate([mlp(agent.encoder, x)[:, :4], x[:, 3:]], 1)

    distance = np.linalg.norm(embedded(data)[:, None] - embedded(demos)[None], axis=-1).min(1)
    expected = (distance.max() - distance) / np.ptp(distance)
    found = np.asarray(module.retrieve(agent, prior).similarity)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found[:10] > 0.99).all() and found.min() == 0 and found.max() == 1
    monkeypatch.setattr(module, "BLOCK", 7)  # does not divide 300
    np.testing.assert_allclose(module.retrieve(agent, prior).similarity, found, atol=1e-3)


@pytest.mark.long
def test_where_all_rows_are_demonstrated_all_are_retrieved(parts):
    """The data are the demonstrations: no distance tells rows apart."""
    module, args, _ = setting()
    data, _ = parts
    prior = module.prior_of(data, data, 300)
    agent = module.retrieve(agent_of(module, args, SPEC._replace(action_dim=1)), prior)
    np.testing.assert_array_equal(agent.similarity, np.ones(300))


def test_retrieved_rows_are_drawn_alike():
    module, chosen = load("behavior_retrieval"), np.zeros(50, bool)
    chosen[[3, 17, 49]] = True
    rows = np.asarray(module.draw(jax.random.key(0), jnp.asarray(chosen), 3000))
    found, counts = np.unique(rows, return_counts=True)
    assert found.tolist() == [3, 17, 49] and (np.abs(counts - 1000) < 120).all()


def test_a_batch_is_demonstrations_and_what_was_retrieved(parts, monkeypatch):
    module, args, _ = setting(batch_size=8, task_share=0.25, threshold=0.5)
    data, demos = parts
    agent = agent_of(module, args, SPEC._replace(action_dim=1))
    similar = np.where(np.arange(300) % 100 < 30, 0.5, 0.49).astype(np.float32)
    monkeypatch.setattr(module, "update", lambda agent, batch, key, args: (agent, {"obs": batch.obs}))
    monkeypatch.setattr(jnp, "mean", lambda x: x)  # every batch as it is
    keys = jax.random.split(jax.random.key(0), 20)
    prior = module.prior_of(data, demos, 100)
    _, metrics = module.train(agent.replace(similarity=jnp.asarray(similar)), keys, args, prior)
    assert metrics["obs"].shape == (20, 8, 3)
    shown, others = np.asarray(metrics["obs"])[:, :2, 0].ravel(), np.asarray(metrics["obs"])[:, 2:, 0].ravel()
    assert {*shown} <= {*demos.obs[:, 0]} and {*others} <= {*data.obs[similar >= 0.5][:, 0]} and len({*others}) > 40
    close(metrics["retrieved"], 0.3)
    close(metrics["of_dataset"], 1 / 3)


@pytest.mark.long
def test_retrieval_finds_the_data_of_the_demonstrations_task(tmp_path):
    """Two datasets of clusters apart; the demonstrations are of the first: what is retrieved is, too."""
    paths = []
    for i, name in enumerate(("one", "two", "demos")):
        path = write_pendulum(tmp_path / f"pendulum-{name}.npz", n=300 if name != "demos" else 60, seed=i)
        with np.load(path) as file:
            arrays = dict(file)
        shift = 2.0 if name == "two" else -2.0
        arrays["observations"] = 0.3 * arrays["observations"] + np.float32(shift)
        np.savez(path, **arrays)
        paths.append(path)
    module = load("behavior_retrieval")
    sizes = {"embed_updates": 300, "embed_batch": 64, "embed_hidden_dims": (16,), "threshold": 0.6, "env": SHORT}
    sizes |= {"more_data": (paths[1],), "demos": (paths[2],), "demo_episodes": 0, "embed_lr": 1e-2, "latent_dim": 4}
    module.main(small("behavior_retrieval", paths[0], tmp_path / "run", **sizes))
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["of_dataset"]) > 0.95 and 0.1 < float(last["retrieved"]) < 0.6


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    module, goals = load("behavior_retrieval"), write_goals(tmp_path / "maze.npz")
    for dataset, changes, message in (
        (pendulum, {"demos": (goals,)}, "has other observations"),
        (pendulum, {"embed_updates": 0}, "--embed-updates must be at least 1"),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("behavior_retrieval", dataset, tmp_path / "run", **changes))
