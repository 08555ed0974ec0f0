"""The losses and attacks of rorl against the same equations in plain numpy."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal

from shared.errors import InputError

SMALL = {"n_critics": 3, "n_samples": 2}

E, N = 3, 4
SIZES = {"hidden_dims": (8, 8), "batch_size": B, "n_critics": E, "n_samples": N}


def distribution(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -5, 2)


def near(obs, eps, key):
    """[N, B, O]: the same N perturbations around every observation."""
    return obs + eps * np.asarray(jax.random.uniform(key, (N, 1, obs.shape[-1]), minval=-1.0, maxval=1.0))


def kl(one, other):
    """KL(one || other), the textbook's form."""
    (m, s), (n, t) = one, other
    return (t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum(-1)


def bellman_of(agent, batch, key):
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.next_obs), noise)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - np.exp(agent.log_alpha) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    return ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()


@pytest.mark.long
def test_rorl_without_terms_is_sac_n(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, terms=())
    agent, key = agent_of(rorl, args), jax.random.key(2)
    agent = agent.replace(log_alpha=jnp.float32(-0.3))
    loss, info = rorl.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, bellman_of(agent, batch, jax.random.split(key, 3)[0]))
    assert not any("ood" in name or "smooth" in name for name in info)

    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (B, 2)))
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.obs), noise)
    q = heads(agent.critic, batch.obs, action).min(0)
    close(rorl.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())
    assert rorl.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows


@pytest.mark.long
def test_rorl_with_zero_weights_trains_as_sac_n(batch):
    rorl = compiled("rorl")
    off = {"policy_smooth_reg": 0.0, "q_smooth_reg": 0.0, "ood_reg": 0.0}
    weighted, plain = rorl.Args(**SIZES, **off), rorl.Args(**SIZES, terms=())
    update = jax.jit(rorl.update)
    one = other = full = agent_of(rorl, plain)
    for i in range(3):
        one, _ = update(one, batch, jax.random.key(i), weighted)
        other, _ = update(other, batch, jax.random.key(i), plain)
        full, _ = update(full, batch, jax.random.key(i), rorl.Args(**SIZES, policy_smooth_eps=0.4))
    jax.tree.map(close, (one.actor, one.critic, one.log_alpha), (other.actor, other.critic, other.log_alpha))
    for name in ("actor", "critic"):
        change = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), getattr(full, name), getattr(one, name))
        assert max(jax.tree.leaves(change)) > 1e-5


def test_rorl_policy_smoothing_is_the_largest_divergence_either_way(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, policy_smooth_eps=0.4)
    agent, key = agent_of(rorl, args), jax.random.key(3)
    there = distribution(agent.actor, near(batch.obs, 0.4, key))
    here = distribution(agent.actor, batch.obs)
    expected = (kl(here, there) + kl(there, here)).max(0).mean()
    close(rorl.policy_smoothing(agent.actor, agent, batch, key, args), expected)

    key = jax.random.key(5)
    there = distribution(agent.actor, near(batch.obs, 0.4, jax.random.split(key)[1]))
    plain = rorl.actor_loss(agent.actor, agent, batch, key, rorl.Args(**SIZES, terms=()))[0]
    loss = rorl.actor_loss(agent.actor, agent, batch, key, rorl.Args(**SIZES, policy_smooth_eps=0.4))[0]
    close(loss - plain, 0.1 * (kl(here, there) + kl(there, here)).max(0).mean())


def test_rorl_q_smoothing_punishes_increases_more(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, q_smooth_eps=0.4, q_smooth_tau=0.2)
    agent, key = agent_of(rorl, args), jax.random.key(3)
    q = heads(agent.critic, batch.obs, batch.action)
    d = np.stack([heads(agent.critic, s, batch.action) - q for s in near(batch.obs, 0.4, key)])  # [N, E, B]
    assert (d > 0).any() and (d < 0).any()
    expected = np.where(d > 0, 0.8, 0.2) * d**2
    loss = rorl.q_smoothing(agent.critic, agent, batch, jnp.float32(q), key, args)
    close(loss, expected.mean(1).max(0).mean())


def test_rorl_lowers_q_by_the_critics_disagreement(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, ood_eps=0.4, uncertainty=1.5)
    agent, key = agent_of(rorl, args), jax.random.key(3)
    near_key, action_key = jax.random.split(key)
    there = near(batch.obs, 0.4, near_key)
    noise = np.asarray(jax.random.normal(action_key, (N, B, 2)))
    action, _ = tanh_normal(*distribution(agent.actor, there), noise)
    std = np.stack([heads(agent.critic, s, a) for s, a in zip(there, action)]).std(1, ddof=1)  # [N, B]
    loss, info = rorl.ood_loss(agent.critic, agent, batch, key, args)
    close(loss, (1.5**2 * std**2).mean())
    close(info["std_ood"], std.mean())

    def slope(critic):  # what the squared error's gradient is while its target stands still
        q = rorl.q_values(agent.nets.critic, critic, jnp.float32(there), jnp.float32(action))
        return (2 * 1.5 * std * q).mean()

    grads = jax.grad(lambda c: rorl.ood_loss(c, agent, batch, key, args)[0])(agent.critic)
    jax.tree.map(close, grads, jax.grad(slope)(agent.critic))
    to_policy = jax.grad(lambda p: rorl.ood_loss(agent.critic, agent.replace(actor=p), batch, key, args)[0])
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(to_policy(agent.actor)))


def test_rorl_weights_the_terms_of_the_critic(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, q_smooth_eps=0.4, q_smooth_reg=0.7, ood_eps=0.3, ood_reg=0.5)
    agent, key = agent_of(rorl, args), jax.random.key(3)
    target_key, smooth_key, ood_key = jax.random.split(key, 3)
    q = jnp.float32(heads(agent.critic, batch.obs, batch.action))
    expected = bellman_of(agent, batch, target_key)
    expected += 0.7 * rorl.q_smoothing(agent.critic, agent, batch, q, smooth_key, args)
    expected += 0.5 * rorl.ood_loss(agent.critic, agent, batch, ood_key, args)[0]
    close(rorl.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


@pytest.mark.long
def test_rorl_uncertainty_falls_with_every_update_to_its_minimum(batch):
    rorl = compiled("rorl")
    args = rorl.Args(**SIZES, uncertainty=2.0, uncertainty_decay=0.3, uncertainty_min=1.5)
    agent, seen, update = agent_of(rorl, args), [], jax.jit(rorl.update)
    for i in range(4):
        agent, info = update(agent, batch, jax.random.key(i), args)
        seen.append(float(info["lambda"]))
    close(seen, [2.0, 1.7, 1.5, 1.5])


def candidates(obs, n, scale, key):
    noise = scale * np.asarray(jax.random.uniform(key, (n, *obs.shape), minval=-1.0, maxval=1.0))
    return np.concatenate([noise, np.zeros_like(noise[:1])])


def mean_q(agent, obs, seen):
    """Of the action at `seen`, judged at the true observation."""
    return heads(agent.critic, obs, np.tanh(distribution(agent.actor, seen)[0])).mean(0)


def test_rorl_attacks_choose_the_worst_perturbation(batch):
    rorl = compiled("rorl")
    agent, key, obs = agent_of(rorl, rorl.Args(**SIZES), seed=1), jax.random.key(4), batch.obs
    attack = {
        name: np.asarray(rorl.attacked(agent, obs, key, rorl.Args(**SIZES, attack=name, attack_scale=0.5)))
        for name in ("none", "random", "action_diff", "min_q")
    }
    np.testing.assert_array_equal(attack["none"], obs)
    close(attack["random"], obs + candidates(obs, 1, 0.5, key)[0])
    noise = candidates(obs, 50, 0.5, key)
    here = distribution(agent.actor, obs)
    there = [distribution(agent.actor, obs + x) for x in noise]
    worst = np.argmax([kl(here, x) + kl(x, here) for x in there], 0)
    close(attack["action_diff"], obs + noise[worst, np.arange(B)])
    q = np.stack([mean_q(agent, obs, obs + x) for x in noise])
    close(attack["min_q"], obs + noise[q.argmin(0), np.arange(B)])
    assert (mean_q(agent, obs, attack["min_q"]) < mean_q(agent, obs, attack["random"])).all()
    close(
        rorl.act(agent, obs, key, rorl.Args(**SIZES, attack="min_q", attack_scale=0.5)),
        np.tanh(distribution(agent.actor, attack["min_q"])[0]),
    )


@pytest.mark.parametrize("name", ["action_diff", "min_q"])
def test_rorl_gradient_attacks_are_worse_and_stay_within_the_scale(batch, name):
    rorl = compiled("rorl")
    agent, key, obs = agent_of(rorl, rorl.Args(**SIZES)), jax.random.key(4), batch.obs
    args = {**SIZES, "attack": name, "attack_scale": 0.3, "attack_samples": 5}

    def harm(seen):
        here, there = distribution(agent.actor, obs), distribution(agent.actor, seen)
        return -mean_q(agent, obs, seen) if name == "min_q" else kl(here, there) + kl(there, here)

    sampled, climbed = (np.asarray(rorl.attacked(agent, obs, key, rorl.Args(**args, attack_steps=n))) for n in (0, 10))
    assert np.abs(climbed - obs).max() <= 0.3 + 1e-6
    assert (harm(climbed) >= harm(sampled) - 1e-6).all() and harm(climbed).mean() > harm(sampled).mean()
    assert (harm(sampled) >= harm(obs)).all()


@pytest.mark.long
def test_rorl_attack_scales_change_the_evaluation_only(pendulum, tmp_path):
    rorl = load("rorl")
    args = rorl.Args(
        **{**SIZES, "batch_size": 8}, dataset=pendulum, updates=4, log_every=2, eval_every=4, eval_episodes=2,
        checkpoint_every=4, attack="min_q", attack_scale=(0.0, 1.0), out=str(tmp_path / "run"),
    )  # fmt: skip
    rorl.main(args)
    with np.load(tmp_path / "run" / "checkpoint" / "state.npz") as file:
        leaves = {k: file[k] for k in file.files if k.startswith("[0]")}
    assert leaves
    for path, value in leaves.items():
        np.testing.assert_array_equal(value[0], value[1], err_msg=path)
    rows = list(csv.DictReader((tmp_path / "run" / "returns.csv").open()))
    returns = {scale: [r["return"] for r in rows if r["attack_scale"] == scale] for scale in ("0", "1")}
    assert len(returns["0"]) == 2 and returns["0"] != returns["1"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["args"]["attack"] == "min_q"


@pytest.mark.parametrize("name, wide", [("rorl", "actor"), ("ro2o", "critic")])
def test_first_layers_begin_within_the_authors_bounds(name, wide):
    """1 / sqrt(outputs) where they read the wrong side of a matrix, in RORL the policy's, in RO2O the critics'.

    lifelong_rl/torch/pytorch_util.py of YangRui2015/RORL at c604043, algorithms/offline/ro2o_mujoco.py of
    BattleWen/RO2O.
    """
    module = compiled(name)
    agent = module.init(jax.random.key(0), module.Args(hidden_dims=(64, 64), n_critics=3), SPEC)
    for field, inputs in (("actor", 3), ("critic", 5)):
        largest = float(np.abs(getattr(agent, field)["params"]["Dense_0"]["kernel"]).max())
        bound = 1 / np.sqrt(64 if field == wide else inputs)
        assert 0.85 * bound < largest <= bound


def test_rorl_refuses_one_critic_where_their_deviation_is_asked_for():
    rorl = load("rorl")
    with pytest.raises(InputError, match="--n-critics must be at least 2"):
        rorl.main(rorl.Args(dataset="/nowhere.npz", n_critics=1))
    with pytest.raises(InputError, match="nowhere"):
        rorl.main(rorl.Args(dataset="/nowhere.npz", n_critics=1, terms=("policy", "q")))
