"""The losses and phases of spot_finetune; the estimates of the density are compared in tests/offline/test_spot.py."""

import csv

import jax
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import B, agent_of, close, heads, mlp, smoothed_next_action
from released import ANTMAZE, every, table, wrong_settings

from shared.errors import InputError

SMALL = {"latent_samples": 2, "vae_hidden_dims": (8, 8), "vae_updates": 2}


def tiny(**changes):
    sizes = {"hidden_dims": (8, 8), "vae_hidden_dims": (8, 8), "batch_size": B, "dropout": 0.0, "env_steps": 100}
    return load("spot_finetune").Args(**sizes | changes)


@pytest.fixture
def agent():
    return agent_of(load("spot_finetune"), tiny(), seed=3)


def elbo(vae, obs, action, key, beta):
    """[B] of the negative bound, with one latent, every mean as in the authors' code."""
    encoder, decoder = ({"params": vae["params"][name]} for name in ("encoder", "decoder"))
    mean, log_std = np.split(mlp(encoder, obs, action), 2, axis=-1)
    log_std = np.clip(log_std, -4, 15)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, (1, *mean.shape)))[0]
    kl = (-log_std + (np.exp(2 * log_std) + mean**2) / 2 - 0.5).mean(-1)
    return ((np.tanh(mlp(decoder, obs, z)) - action) ** 2).mean(-1) + beta * kl


def actor_loss(agent, batch, key, weight):
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    return -q.mean() / np.abs(q).mean() + weight * elbo(agent.vae, batch.obs, pi, jax.random.split(key)[1], 0.7).mean()


def critic_loss(agent, batch, key, args, discount):
    q = heads(agent.target_critic, batch.next_obs, smoothed_next_action(agent, batch, key, args)).min(0)
    y = batch.reward + discount * (1 - batch.terminal) * q
    return ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()


def test_spot_finetune_offline_losses_are_spots(agent, batch):
    module, key, args = load("spot_finetune"), jax.random.key(2), tiny(support_weight=0.3, kl_weight=0.7, discount=0.9)
    close(module.actor_loss(agent.actor, agent, batch, key, args)[0], actor_loss(agent, batch, key, 0.3))
    close(module.critic_loss(agent.critic, agent, batch, key, args)[0], critic_loss(agent, batch, key, args, 0.9))
    expected = elbo(agent.vae, batch.obs, batch.action, key, 0.7).mean()
    close(module.vae_loss(agent.vae, agent, batch, key, args)[0], expected)


def test_spot_finetune_lets_the_constraint_go_to_a_share_of_it():
    module, args = load("spot_finetune"), tiny(env_steps=1000, min_decay=0.2)
    close([module.remaining(t, args) for t in (0, 250, 800, 801, 999)], [1.0, 0.75, 0.2, 0.2, 0.2])


def test_spot_finetune_online_step_has_the_weight_and_the_discount_of_the_environment(agent, batch):
    """At step 50 of 100 half of lambda; the VAE stays as it is."""
    module, key = load("spot_finetune"), jax.random.key(4)
    args = tiny(support_weight=2.0, kl_weight=0.7, discount=0.9, online_discount=0.5, tau=0.2)
    new, info = jax.jit(module.update_online)(agent, batch, key, args, 50)
    critic_key, actor_key = jax.random.split(key)
    close(info["critic_loss"], critic_loss(agent, batch, critic_key, args, 0.5))
    close(info["actor_loss"], 2 * actor_loss(agent.replace(critic=new.critic), batch, actor_key, 1.0))
    close(info["support_weight"], 1.0)
    jax.tree.map(np.testing.assert_array_equal, new.vae, agent.vae)
    for net in ("actor", "critic"):
        expected = jax.tree.map(lambda n, o: 0.2 * n + 0.8 * o, getattr(new, net), getattr(agent, f"target_{net}"))
        jax.tree.map(close, getattr(new, f"target_{net}"), expected)


def test_spot_finetune_leaves_the_actor_alone_at_odd_environment_steps(agent, batch):
    module = load("spot_finetune")
    new, info = jax.jit(module.update_online)(agent, batch, jax.random.key(4), tiny(), 51)
    for name in ("actor", "target_actor", "target_critic", "actor_opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(agent, name))
    assert int(new.critic_opt[0].count) == 1 and info["actor_loss"] == 0


def test_spot_finetune_explores_with_clipped_noise(agent, batch):
    module, obs, key = load("spot_finetune"), np.repeat(batch.obs[:1], 1000, axis=0), jax.random.key(0)
    policy = np.tanh(mlp(agent.actor, batch.obs[:1]))
    noise = np.clip(0.4 * np.asarray(jax.random.normal(key, (1000, 2))), -0.5, 0.5)
    close(module.explore(agent, obs, key, tiny(exploration_noise=0.4)), policy + noise)
    close(module.act(agent, obs[:3], None, tiny()), np.repeat(policy, 3, axis=0))


def test_spot_finetune_goes_on_from_a_run_of_spot_with_new_moments(pendulum, tmp_path, capfd):
    """8 online steps of the critics and 4 of the actor, counted from the first; the VAE has those of before."""
    vae = {"vae_hidden_dims": (8, 8), "vae_updates": 4}
    before = train("spot", pendulum, tmp_path / "offline", **vae)
    capfd.readouterr()
    after = train("spot_finetune", pendulum, tmp_path / "online", from_run=str(tmp_path / "offline"), **vae)
    assert "starts anew" not in "".join(capfd.readouterr())
    assert after["[0].critic_opt[0].count"].tolist() == [8] and after["[0].actor_opt[0].count"].tolist() == [4]
    assert all((before[k] == after[k]).all() for k in before if ".vae[" in k)
    decay = [float(row["support_weight"]) for row in csv.DictReader((tmp_path / "online" / "metrics.csv").open())]
    close(np.array(decay) / 0.1, [1 - 0.5 / 8, 1 - 2.5 / 8, 1 - 4.5 / 8, (0.25 + 0.2) / 2])


def test_spot_finetune_needs_a_run_with_a_vae(pendulum, tmp_path):
    (tmp_path / "run.json").write_text('{"args": {"updates": 4}}')
    with pytest.raises(InputError, match="no VAE; take those of spot.py"):
        train("spot_finetune", pendulum, tmp_path / "online", from_run=str(tmp_path))


def test_spot_finetune_settings_are_those_released():
    """configs/finetune/spot of corl-team/CORL: AntMaze, and the cloned sets of Adroit."""
    weights = table(
        """
        antmaze-umaze-v2 0.25
        antmaze-umaze-diverse-v2 0.25
        antmaze-medium-play-v2 0.05
        antmaze-medium-diverse-v2 0.025
        antmaze-large-play-v2 0.025
        antmaze-large-diverse-v2 0.025
        pen-cloned-v1 1.0
        door-cloned-v1 1.0
        hammer-cloned-v1 1.0
        relocate-cloned-v1 1.0
        """,
        support_weight=float,
    )
    hands = every(weights.keys() - set(ANTMAZE), min_decay=0.5, online_discount=0.99, reward_shift=0.0)
    mazes = every(ANTMAZE, min_decay=0.2, online_discount=0.995, reward_shift=-1.0, eval_episodes=100)
    common = every(
        weights, actor_lr=1e-4, critic_lr=3e-4, vae_lr=1e-3, exploration_noise=0.1, discount=0.99, kl_weight=0.5,
        small_last_layers=True, normalize_obs=False, dropout=0.0, vae_updates=100_000, policy_delay=2,
    )  # fmt: skip
    for expected in (weights, hands | mazes, common):
        assert not wrong_settings(load("spot_finetune"), expected)
