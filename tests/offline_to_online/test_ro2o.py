"""The losses of ro2o against the same equations in plain numpy, and what changes online."""

import csv
import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal

from shared.errors import InputError
from shared.replay import init_replay

SMALL = {"n_critics": 3, "n_samples": 2, "learning_starts": 4}

E, N = 3, 4
SIZES = {"hidden_dims": (8, 8), "batch_size": B, "n_critics": E, "n_samples": N}
FAR = {"policy_smooth_eps": 0.4, "q_smooth_eps": 0.3, "ood_eps": 0.2}


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


def bellman_of(agent, batch, key, reduce):
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.next_obs), noise)
    target_v = reduce(heads(agent.target_critic, batch.next_obs, action)) - np.exp(agent.log_alpha) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    return ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()


def q_smoothing_of(agent, batch, key):
    q = heads(agent.critic, batch.obs, batch.action)
    d = np.stack([heads(agent.critic, s, batch.action) - q for s in near(batch.obs, 0.3, key)])  # [N, E, B]
    assert (d > 0).any() and (d < 0).any()
    return (np.where(d > 0, 0.8, 0.2) * d**2).mean(1).max(0).mean()


def lowering_of(agent, batch, key, uncertainty):
    near_key, action_key = jax.random.split(key)
    there, noise = near(batch.obs, 0.2, near_key), np.asarray(jax.random.normal(action_key, (N, B, 2)))
    action, _ = tanh_normal(*distribution(agent.actor, there), noise)
    std = np.stack([heads(agent.critic, s, a) for s, a in zip(there, action)]).std(1, ddof=1)  # [N, B]
    return (uncertainty**2 * std**2).mean()


def soft_policy_of(agent, batch, key, reduce):
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.obs), np.asarray(jax.random.normal(key, (B, 2))))
    q = reduce(heads(agent.critic, batch.obs, action))
    return (np.exp(agent.log_alpha) * log_prob - q).mean(), action


def policy_smoothing_of(agent, batch, key):
    here, there = distribution(agent.actor, batch.obs), distribution(agent.actor, near(batch.obs, 0.4, key))
    return (kl(here, there) + kl(there, here)).max(0).mean()


def least(q):
    return q.min(0)


def general(ro2o, args):
    return agent_of(ro2o, args).replace(log_alpha=jnp.float32(-0.3))


def test_ro2o_has_its_common_parts_from_rorl_to_the_letter():
    ro2o, rorl = compiled("ro2o"), compiled("rorl")
    for name in (
        "Actor", "Critic", "Agent", "sample_tanh_gaussian", "q_values", "perturbed", "symmetric_kl",
        "policy_smoothing", "q_smoothing", "ood_loss", "alpha_loss", "init", "update",
    ):  # fmt: skip
        ours, theirs = (  # but for the first weights, of which each paper's code has its own
            re.sub("(actor|critic)_init", "hidden_init", inspect.getsource(getattr(module, name)))
            for module in (ro2o, rorl)
        )
        assert ours == theirs, name


def test_ro2o_critics(batch):
    ro2o = compiled("ro2o")
    args = ro2o.Args(**SIZES, **FAR, q_smooth_reg=0.7, uncertainty=1.5, uncertainty_decay=0.1, uncertainty_min=1.0)
    agent, key = general(ro2o, args).replace(step=jnp.int32(2)), jax.random.key(3)
    target_key, smooth_key, ood_key = jax.random.split(key, 3)
    expected = bellman_of(agent, batch, target_key, least)
    expected += 0.7 * q_smoothing_of(agent, batch, smooth_key) + 0.1 * lowering_of(agent, batch, ood_key, 1.3)
    loss, info = ro2o.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, expected)
    close(info["lambda"], 1.3)


def test_ro2o_policy(batch):
    ro2o = compiled("ro2o")
    args = ro2o.Args(**SIZES, **FAR, policy_smooth_reg=0.6)
    agent, key = general(ro2o, args), jax.random.key(4)
    action_key, smooth_key = jax.random.split(key)
    expected = soft_policy_of(agent, batch, action_key, least)[0]
    expected += 0.6 * policy_smoothing_of(agent, batch, smooth_key)
    close(ro2o.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_ro2o_antmaze_has_a_lower_bound_cloning_and_targets_of_ones_own(batch):
    ro2o = load("ro2o")
    preset = {**ro2o.PRESETS["antmaze-umaze"], **FAR}
    args = ro2o.Args(**SIZES, **preset)
    agent, key = general(ro2o, args), jax.random.key(4)
    action_key, smooth_key = jax.random.split(key)
    expected, action = soft_policy_of(agent, batch, action_key, lambda q: q.mean(0) - 4 * q.std(0, ddof=1))
    expected += policy_smoothing_of(agent, batch, smooth_key) + 5.0 * ((action - batch.action) ** 2).mean()
    close(ro2o.actor_loss(agent.actor, agent, batch, key, args)[0], expected)

    target_key, _, ood_key = jax.random.split(key, 3)
    expected = bellman_of(agent, batch, target_key, lambda q: q) + 0.3 * lowering_of(agent, batch, ood_key, 1.0)
    close(ro2o.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_ro2o_rewards_of_antmaze_are_minus_2_and_2():
    preset = load("ro2o").PRESETS["antmaze"]
    assert [preset["reward_scale"] * r + preset["reward_shift"] for r in (0, 1)] == [-2, 2]


def parameters(agent):
    return agent.actor, agent.critic, agent.target_critic, agent.log_alpha


def test_ro2o_goes_on_online_as_it_was_with_the_least_uncertainty(batch):
    ro2o = compiled("ro2o")
    args = ro2o.Args(**SIZES, **FAR, uncertainty=3.0, uncertainty_decay=0.1, uncertainty_min=1.2)
    agent, key = general(ro2o, args), jax.random.key(5)
    online, info = jax.jit(ro2o.update_online)(agent, batch, key, args, jnp.int32(7))
    assert info["lambda"] == np.float32(1.2)
    offline, _ = jax.jit(ro2o.update)(agent.replace(step=jnp.int32(50)), batch, key, args)
    jax.tree.map(close, parameters(online), parameters(offline))


@pytest.mark.parametrize("terms", [("policy", "q", "ood"), ("policy", "ood", "bc")])
def test_ro2o_without_its_terms_online_is_sac_n_there(batch, terms):
    ro2o = compiled("ro2o")
    left = tuple(term for term in terms if term == "bc")
    args = ro2o.Args(**SIZES, **FAR, terms=terms, online_reg=False)
    plain, full = ro2o.Args(**SIZES, terms=left), ro2o.Args(**SIZES, **FAR, terms=terms)
    agent, key = general(ro2o, args), jax.random.key(5)
    online, info = jax.jit(ro2o.update_online)(agent, batch, key, args)
    expected, _ = jax.jit(ro2o.update)(agent, batch, key, plain)
    jax.tree.map(np.testing.assert_array_equal, parameters(online), parameters(expected))
    assert not any("smooth" in name or "ood" in name for name in info)
    for other in (jax.jit(ro2o.update)(agent, batch, key, args), jax.jit(ro2o.update_online)(agent, batch, key, full)):
        change = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), other[0].critic, online.critic)
        assert max(jax.tree.leaves(change)) > 1e-6


def test_ro2o_learns_online_from_what_it_collected_only():
    ro2o = compiled("ro2o")
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, jax.devices()[0]))
    for i in range(3):
        replay = replay.insert(jnp.full(replay.rows.shape[-1], i + 1.0))
    batch = ro2o.sample(jax.random.key(0), None, replay, ro2o.Args(batch_size=64))
    assert batch.obs.shape == (64, 3) and set(np.unique(batch.reward)) == {1.0, 2.0, 3.0}


def test_ro2o_explores_with_samples_and_is_evaluated_with_the_mean(batch):
    ro2o = compiled("ro2o")
    args = ro2o.Args(**SIZES)
    agent, key = general(ro2o, args), jax.random.key(6)
    mean, log_std = distribution(agent.actor, batch.obs)
    close(ro2o.act(agent, batch.obs, key, args), np.tanh(mean))
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    close(ro2o.explore(agent, batch.obs, key, args), tanh_normal(mean, log_std, noise)[0])


def tiny(module, dataset, out, **changes):
    args = {
        **SIZES, "batch_size": 8, "dataset": dataset, "env": "Pendulum-v1", "log_every": 2, "eval_every": 8,
        "eval_episodes": 1, "checkpoint_every": 8, "out": str(out),
    } | changes  # fmt: skip
    module.main(module.Args(**args))
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k != "__header__"}


def test_ro2o_updates_once_per_step_after_the_first_ones_and_carries_everything_over(pendulum, tmp_path):
    state = tiny(
        load("ro2o"),
        pendulum,
        tmp_path / "run",
        offline_updates=4,
        offline_eval_every=4,
        env_steps=8,
        learning_starts=6,
    )
    assert state["[0].step"] == 6
    assert all(v == 6 for k, v in state.items() if k.startswith("[0]") and k.endswith("count"))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [(r["update"], r["env_step"]) for r in rows] == [("6", "8")]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["task"]["obs_mean"] is not None


def test_ro2o_continues_an_agent_of_rorl(pendulum, tmp_path):
    before = tiny(load("rorl"), pendulum, tmp_path / "rorl", updates=4, eval_every=4, checkpoint_every=4)
    after = tiny(
        load("ro2o"), pendulum, tmp_path / "ro2o", from_run=str(tmp_path / "rorl"), env_steps=8, learning_starts=8
    )
    names = [k for k in after if k.startswith("[0]")]
    assert names and {k for k in before if k.startswith("[0]")} == set(names)
    for name in names:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize("changes", [{}, {"terms": (), "actor_q": "lcb"}])
def test_ro2o_refuses_the_spread_of_one_critic(changes):
    ro2o = load("ro2o")
    with pytest.raises(InputError, match="--n-critics must be at least 2"):
        ro2o.main(ro2o.Args(n_critics=1, **changes))


def test_ro2o_of_one_critic_without_its_spread_has_finite_losses(batch):
    """SAC with one critic: what is refused above is not needed here."""
    ro2o, args = compiled("ro2o"), load("ro2o").Args(**SIZES | {"n_critics": 1, "terms": ("policy", "q")})
    _, info = ro2o.update(agent_of(ro2o, args), batch._replace(next_action=None), jax.random.key(0), args)
    assert all(np.isfinite(value).all() for value in info.values())
