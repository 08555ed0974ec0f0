"""The losses of uni_o4's three stages, AM-Q and its gate, the schedules, and the rollouts between PPO updates."""

import csv
import dataclasses

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_pendulum
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp
from released import ANTMAZE, every, table, wrong_settings
from scipy.stats import norm
from test_online import final, stop_after

from shared.data import load_dataset
from shared.errors import InputError
from shared.online import LaneEnvs
from shared.task import Spec
from shared.transitions import FIELDS, Batch, Transitions, unpack

SMALL = {
    "pretrain_updates": 4, "critic_per_clone": 2, "critic_hidden_dims": (8, 8), "value_hidden_dims": (8, 8),
    "model_hidden_dims": (8, 8), "n_actors": 2, "n_models": 2, "rollout_length": 3, "rollout_starts": 4,
    "gate_every": 2, "steps_per_iteration": 4, "minibatch_size": 2, "epochs": 2,
}  # fmt: skip

P, M = 3, 2


def tiny(**changes):
    values = {
        "hidden_dims": (8, 8), "critic_hidden_dims": (8, 8), "value_hidden_dims": (8,),
        "model_hidden_dims": (8,), "batch_size": B,
        "n_actors": P, "n_models": M, "offline_updates": 1000, "env_steps": 100, "rollout_length": 4,
        "rollout_starts": 6, "gate_every": 2, "steps_per_iteration": 6, "minibatch_size": 2, "epochs": 3,
    }  # fmt: skip
    return load("uni_o4").Args(**values | changes)


@pytest.fixture
def agent():
    return agent_of(compiled("uni_o4"), tiny())


def member(params, i):
    return jax.tree.map(lambda x: x[i], params)


def policy_of(params, obs):
    mean, log_std = np.split(np.tanh(mlp(params, obs)), 2, -1)
    return mean, -5 + 2.5 * (log_std + 1)


def model_of(params, obs, action):
    x = mlp(params, obs, action, activation=lambda x: x / (1 + np.exp(-x)))
    mean, log_std, end = np.split(x, [3, 6], -1)
    log_std = 0.25 - np.log1p(np.exp(0.25 - log_std))
    return mean, -5 + np.log1p(np.exp(log_std + 5)), end[..., 0]


def log_prob_of(mean, log_std, action):
    return norm.logpdf(action, mean, np.exp(log_std)).sum(-1)


def value_of(agent, obs):
    return mlp(agent.value, obs)[..., 0]


def noise_of(key, *shape):
    return np.asarray(jax.random.normal(key, shape))


def ppo(ratio, adv, clip):
    return -np.minimum(ratio * adv, np.clip(ratio, 1 - clip, 1 + clip) * adv)


# ---------------------------------------------------------------------------------------- stage 1


def test_uni_o4_critics_are_those_of_iql(agent, batch):
    module, args = compiled("uni_o4"), tiny(expectile=0.8, discount=0.9)
    q = heads(agent.target_critic, batch.obs, batch.action).min(0)
    u = q - value_of(agent, batch.obs)
    close(module.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.2, 0.8) * u**2).mean())
    y = batch.reward + 0.9 * (1 - batch.terminal) * value_of(agent, batch.next_obs)
    q = heads(agent.critic, batch.obs, batch.action)
    close(module.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())


@pytest.mark.parametrize("disagreement", ["kl", "data"])
def test_uni_o4_clones_are_kept_from_the_most_likely_other(agent, batch, disagreement):
    module, key = compiled("uni_o4"), jax.random.key(2)
    args = tiny(disagreement_weight=0.3, disagreement=disagreement)
    dists = [policy_of(member(agent.actors, i), batch.obs) for i in range(P)]
    noise, expected, apart = noise_of(key, P, B, 2), 0.0, []
    for i, (mean, log_std) in enumerate(dists):
        action = mean + np.exp(log_std) * noise[i] if disagreement == "kl" else batch.action
        others = np.max([log_prob_of(*dists[j], action) for j in range(P) if j != i], axis=0)
        apart.append(log_prob_of(mean, log_std, action) - others)
        expected += (-log_prob_of(mean, log_std, batch.action) - 0.3 * apart[-1]).mean()
    loss, info = module.clone_loss(agent.actors, agent, batch, key, args)
    close(loss, expected)
    close(info["disagreement"], np.mean(apart))
    grad = jax.grad(lambda p, args: module.clone_loss(p, agent, batch, key, args)[0])
    plain = grad(agent.actors, tiny(disagreement_weight=0.0, disagreement=disagreement))
    if disagreement == "data":  # the other policy is no variable: the term is a weight of cloning
        jax.tree.map(lambda x, y: close(x, 1.3 * y), grad(agent.actors, args), plain)
    else:
        differs = jax.tree.map(lambda x, y: np.abs(x - 1.3 * y).max() > 1e-2, grad(agent.actors, args), plain)
        assert all(jax.tree.leaves(differs))


def test_uni_o4_one_policy_is_plain_cloning(batch):
    module, args = compiled("uni_o4"), tiny(n_actors=1)
    agent = agent_of(module, args)
    expected = -log_prob_of(*policy_of(member(agent.actors, 0), batch.obs), batch.action).mean()
    close(module.clone_loss(agent.actors, agent, batch, jax.random.key(0), args)[0], expected)


def test_uni_o4_model_predicts_the_step_and_the_end(agent, batch):
    module, expected = compiled("uni_o4"), 0.0
    batches = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch)  # each member has its own
    for i in range(M):
        b = member(batches, i)
        mean, log_std, end = model_of(member(agent.model, i), b.obs, b.action)
        p = 1 / (1 + np.exp(-end))
        cross_entropy = -np.where(b.terminal > 0, np.log(p), np.log(1 - p))
        expected += (cross_entropy - log_prob_of(mean, log_std, b.next_obs - b.obs)).mean()
    close(module.model_loss(agent.model, agent, batches)[0], expected)


def test_uni_o4_model_learns_no_successor_that_is_not_known(batch):
    """It learns that the episode ends there, and nothing of what stands in next_obs."""
    module, args = compiled("uni_o4"), tiny()
    agent = module.init(jax.random.key(0), args, SPEC)
    known, losses = np.float32([1, 0, 1, 1, 1]), []
    for filling, terminal in ((0.0, 1.0), (30.0, 1.0), (0.0, 0.0)):
        b = batch._replace(
            next_obs=np.where(known[:, None] > 0, batch.next_obs, np.float32(filling)),
            terminal=np.where(known > 0, batch.terminal, np.float32(terminal)),
            successor=known,
        )
        many = jax.tree.map(lambda x: np.stack([x] * args.n_models), b)
        losses.append(float(module.model_loss(agent.model, agent, many)[0]))
    close(losses[0], losses[1])
    assert abs(losses[0] - losses[2]) > 1e-4


def transitions(n=40):
    r = np.random.default_rng(0)
    rows = np.float32(r.normal(size=(n, 3 + 2 + 2 + 3)))
    rows[:, 6] = r.random(n) < 0.2
    return Transitions(jnp.asarray(rows), None, None, SPEC, FIELDS)


def test_uni_o4_stage_1_counts_and_old_policies_are_the_clones():
    module, args = compiled("uni_o4"), tiny(critic_per_clone=3)
    old = module.init(jax.random.key(0), args, SPEC)
    keys = jax.random.split(jax.random.key(1), 6)
    new, info = jax.jit(module.fit)(old, keys, args, transitions(), transitions())
    counts = {name: int(getattr(new, f"{name}_opt")[0].count) for name in ("critic", "value", "clone", "model")}
    assert counts == {"critic": 6, "value": 6, "clone": 2, "model": 2}
    jax.tree.map(np.testing.assert_array_equal, new.actors, new.old_actors)
    assert np.abs(new.actors["params"]["Dense_0"]["kernel"] - old.actors["params"]["Dense_0"]["kernel"]).max() > 0
    assert {"critic_loss", "value_loss", "clone_loss", "model_loss"} <= info.keys()


def test_uni_o4_only_the_policies_learn_from_the_cloned_rows():
    module, args = compiled("uni_o4"), tiny(critic_per_clone=3)
    old, keys, data = module.init(jax.random.key(0), args, SPEC), jax.random.split(jax.random.key(1), 6), transitions()
    others = dataclasses.replace(data, rows=jnp.flip(data.rows, 0) * 0.5)
    first, second = (jax.jit(module.fit)(old, keys, args, data, cloned)[0] for cloned in (data, others))
    jax.tree.map(np.testing.assert_array_equal, (first.critic, first.model), (second.critic, second.model))
    assert np.abs(first.actors["params"]["Dense_0"]["kernel"] - second.actors["params"]["Dense_0"]["kernel"]).max() > 0


def test_uni_o4_clones_the_rows_from_which_a_reward_is_reached(tmp_path, monkeypatch):
    path = write_pendulum(tmp_path / "pendulum.npz")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["rewards"] = np.zeros_like(arrays["rewards"])
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="no reward above 0"):
        train("uni_o4", path, tmp_path / "none", clone_successes=True)
    arrays["rewards"][70] = 1.0
    np.savez(path, **arrays)
    data, sizes = load_dataset(path), []
    first = int(data.starts()[data.episode()[70]])

    def fit(agent, keys, args, transitions, cloned):
        sizes.append((len(transitions.rows), len(cloned.rows)))
        raise RuntimeError("seen")

    monkeypatch.setattr(load("uni_o4"), "fit", fit)
    with pytest.raises(RuntimeError, match="seen"):
        train("uni_o4", path, tmp_path / "some", clone_successes=True)
    assert sizes[0] == (len(data.obs), 71 - first)


# ---------------------------------------------------------------------------------------- stage 2


def test_uni_o4_offline_ppo_asks_old_policies_own_actions(agent, batch):
    """Sampled from the old policy, judged by Q - V of the data, the advantage normalised for each policy."""
    module, args, key = compiled("uni_o4"), tiny(), jax.random.key(5)
    noise, expected, advs = noise_of(key, P, B, 2), 0.0, []
    for i in range(P):
        old = policy_of(member(agent.old_actors, i), batch.obs)
        action = np.clip(old[0] + np.exp(old[1]) * noise[i], -1, 1)
        adv = heads(agent.critic, batch.obs, action).min(0) - value_of(agent, batch.obs)
        new = policy_of(member(agent.actors, i), batch.obs)
        ratio = np.exp(log_prob_of(*new, action) - log_prob_of(*old, action))
        expected += ppo(ratio, (adv - adv.mean()) / adv.std(), 0.2).mean()
        advs.append(adv.mean())
    loss, info = module.actor_loss(agent.actors, agent, batch, key, 0.2, args)
    close(loss, expected)
    close(info["adv"], np.mean(advs))
    assert 0 < float(info["clipped"]) <= 1


def test_uni_o4_clip_falls_then_stays_and_the_learning_rate_falls_to_zero(agent, batch, monkeypatch):
    module, args, clips, moves = compiled("uni_o4"), tiny(clip=0.25, actor_lr=1e-3), [], []

    def actor_loss(actors, agent, batch, key, clip, args):
        clips.append(float(clip))
        return 100.0 * sum(x.sum() for x in jax.tree.leaves(actors)), {}

    monkeypatch.setattr(load("uni_o4"), "actor_loss", actor_loss)
    for t in (0, 100, 200, 201, 500, 1000):
        new, _ = module.update(agent, batch, jax.random.key(0), args, t)
        kernel = new.actors["params"]["Dense_0"]["kernel"] - agent.actors["params"]["Dense_0"]["kernel"]
        moves.append(np.abs(kernel).max())
    close(clips, [0.25, 0.225, 0.2, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(moves, [1e-3, 9e-4, 8e-4, 7.99e-4, 5e-4, 0.0], rtol=1e-2, atol=1e-6)


def test_uni_o4_gradients_are_clipped_policy_by_policy(agent, batch, monkeypatch):
    """A policy's step does not depend on the size of another one's gradient."""
    module, args = compiled("uni_o4"), tiny()

    def steps(factor):
        def actor_loss(actors, *_):
            scale = jnp.array([1.0, factor, 1.0])
            total = sum((jnp.sin(x) * scale.reshape(-1, *[1] * (x.ndim - 1))).sum() for x in jax.tree.leaves(actors))
            return 1e-6 * total, {}

        monkeypatch.setattr(load("uni_o4"), "actor_loss", actor_loss)
        return module.update(agent, batch, jax.random.key(0), args, 0)[0].actors

    small, large = steps(1.0), steps(1e12)
    for i in (0, 2):
        jax.tree.map(close, member(small, i), member(large, i))


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_uni_o4_am_q_is_q_along_the_models_rollouts(agent, form):
    """All policies have the same starts, noise and members; nothing counts after the end."""
    module, args, key, data = compiled("uni_o4"), tiny(am_q=form), jax.random.key(3), transitions()
    model = jax.tree.map(lambda x: x, agent.model)
    for name in ("kernel", "bias"):  # ends that depend on the state
        model["params"]["Dense_1"][name] = model["params"]["Dense_1"][name].at[..., -1].multiply(3.0)
    agent = agent.replace(model=model)
    start_key, noise_key = jax.random.split(key)
    start = np.asarray(data.sample(start_key, (M, 1, 3)).obs)
    low, high = np.asarray(data.rows)[:, :3].min(0), np.asarray(data.rows)[:, :3].max(0)
    expected, lengths = [], []
    for i in range(P):
        obs, alive, total, visited = start[:, 0].astype(np.float64), np.ones((M, 3)), 0.0, 0.0
        for k in jax.random.split(noise_key, 4):
            noise = noise_of(k, M, 1, 3, 3)[:, 0]
            action = policy_of(member(agent.actors, i), obs)[0]
            total += (alive * heads(agent.critic, obs, action).min(0)).sum()
            visited += alive.sum()
            for m in range(M):
                mean, log_std, end = model_of(member(agent.model, m), obs[m], action[m])
                obs[m] = np.clip(obs[m] + mean + np.exp(log_std) * noise[m], low, high)
                alive[m] *= end < 0
        expected.append(total / (visited if form == "mean" else M * 3 * 4))
        lengths.append(visited)
    assert min(lengths) < M * 3 * 4  # some did end
    close(module.am_q(agent.actors, agent, key, args, data), expected)
    twins = jax.tree.map(lambda x: x.at[1].set(x[0]), agent.actors)
    scores = np.asarray(module.am_q(twins, agent, key, args, data))
    close(scores[0], scores[1])


def with_scores(monkeypatch, scores):
    monkeypatch.setattr(load("uni_o4"), "am_q", lambda *_: jnp.float32(scores))


@pytest.mark.parametrize("gate", [True, False])
def test_uni_o4_old_policies_are_replaced_where_am_q_has_risen(agent, monkeypatch, gate):
    module, seed = compiled("uni_o4"), jax.random.key_data(jax.random.key(0))
    agent = agent.replace(score=jnp.float32([2.0, 5.0, 3.0]))
    with_scores(monkeypatch, [4.0, 4.0, np.nan])
    new = module.judge(agent, seed, tiny(gate=gate), None)
    risen = [True, False, False] if gate else [True] * 3
    for i, accepted in enumerate(risen):
        expected = member(agent.actors if accepted else agent.old_actors, i)
        jax.tree.map(np.testing.assert_array_equal, member(new.old_actors, i), expected)
    assert new.accepted.tolist() == [float(r) for r in risen]
    np.testing.assert_array_equal(new.score, [4.0, 5.0, 3.0] if gate else [4.0, 4.0, np.nan])
    jax.tree.map(np.testing.assert_array_equal, new.actors, agent.actors)


def test_uni_o4_actor_is_the_policy_of_highest_am_q(agent, monkeypatch, batch):
    """As it was accepted, or as it is; the first judgement accepts every clone."""
    module, seed = compiled("uni_o4"), jax.random.key_data(jax.random.key(0))
    agent = agent.replace(score=jnp.float32([2.0, 5.0, 3.0]))
    with_scores(monkeypatch, [4.0, 1.0, np.nan])
    for deploy, expected in (("accepted", member(agent.old_actors, 1)), ("last", member(agent.actors, 0))):
        new = module.judge(agent, seed, tiny(deploy=deploy), None)
        jax.tree.map(np.testing.assert_array_equal, new.actor, expected)
        close(module.act(new, batch.obs, None, tiny()), policy_of(expected, batch.obs)[0])
    with_scores(monkeypatch, [-3.0, -2.0, -4.0])
    first = module.judge(module.init(jax.random.key(0), tiny(), SPEC), seed, tiny(), None)
    assert first.score.tolist() == [-3.0, -2.0, -4.0] and first.accepted.tolist() == [1.0] * P
    jax.tree.map(np.testing.assert_array_equal, first.actor, member(first.actors, 1))


def test_uni_o4_judges_after_every_so_many_updates_of_the_stage(agent, monkeypatch):
    """Counted from the stage's first update, whatever the chunk; the same starts and noise at every judgement."""
    module, seed, seen = compiled("uni_o4"), jax.random.key_data(jax.random.key(7)), []

    def am_q(actors, agent, key, args, transitions):
        jax.debug.callback(lambda k: seen.append(k.tolist()), jax.random.key_data(key))
        return jnp.full(P, 1.0)

    monkeypatch.setattr(load("uni_o4"), "am_q", am_q)
    run = jax.jit(module.train)
    for start, n, judgements in ((0, 3, 1), (3, 3, 2), (6, 1, 0), (7, 3, 2)):  # those numbered 1; 3, 5; none; 7, 9
        keys = jax.random.split(jax.random.key(start), n)
        agent, _ = run(agent, keys, tiny(gate_every=2), transitions(), seed, start)
        jax.effects_barrier()
        assert len(seen) == judgements, start
        assert all(k == seed.tolist() for k in seen)
        seen.clear()


# ---------------------------------------------------------------------------------------- stage 3


def test_uni_o4_advantages_stop_at_ends_and_bootstrap_at_time_limits():
    module, args = compiled("uni_o4"), tiny(discount=0.9, gae_lambda=0.8)
    reward, v, next_v = np.float32([1, 2, 3, 4, 5]), np.float32([5, 4, 3, 2, 1]), np.float32([4, 9, 2, 8, 7])
    terminal, ended = np.float32([0, 1, 0, 0, 0]), np.float32([0, 1, 0, 1, 0])  # a terminal one, then a time limit
    d = [1 + 0.9 * 4 - 5, 2 - 4, 3 + 0.9 * 2 - 3, 4 + 0.9 * 8 - 2, 5 + 0.9 * 7 - 1]
    expected = [d[0] + 0.72 * d[1], d[1], d[2] + 0.72 * d[3], d[3], d[4]]
    close(module.advantages(v, next_v, Batch(reward=reward, terminal=terminal), ended, args), expected)


@pytest.mark.parametrize("clip_value", [True, False])
def test_uni_o4_online_losses(agent, batch, clip_value):
    module, args = compiled("uni_o4"), tiny(online_clip=0.1, entropy_weight=0.2, clip_value=clip_value)
    r = np.random.default_rng(1)
    mean, log_std = policy_of(agent.actor, batch.obs)
    log_prob = log_prob_of(mean, log_std, batch.action)
    old, adv = np.float32(log_prob + [0.02, -0.3, 0.3, 0.3, -0.3]), np.float32([1, 1, 1, -1, -1])
    entropy = norm.entropy(0, np.exp(log_std)).sum(-1).mean()
    expected = ppo(np.exp(log_prob - old), adv, 0.1).mean() - 0.2 * entropy
    close(module.online_actor_loss(agent.actor, agent, batch, old, adv, args)[0], expected)

    v = value_of(agent, batch.obs)
    old_v, target = np.float32(v + r.normal(size=B)), np.float32(v + r.normal(size=B))
    error = (v - target) ** 2
    if clip_value:
        error = np.maximum(error, (old_v + np.clip(v - old_v, -0.1, 0.1) - target) ** 2)
    close(module.baseline_loss(agent.value, agent, batch, old_v, target, args)[0], error.mean())


def rollout_of(n):
    r, shapes = np.random.default_rng(0), {"obs": (3,), "action": (2,), "next_obs": (3,), "reward": ()}
    return Batch(terminal=jnp.zeros(n), **{k: jnp.float32(r.normal(size=(n, *s))) for k, s in shapes.items()})


def test_uni_o4_ppo_update_passes_over_the_rollout(agent, monkeypatch):
    """Every transition once per epoch, in minibatches of another order; the advantage normalised over all of them."""
    module, args, seen = compiled("uni_o4"), tiny(steps_per_iteration=7), []
    n, rollout = 7, rollout_of(7)
    rollout = rollout._replace(obs=jnp.arange(float(n))[:, None] * jnp.ones(3))
    online_actor_loss = module.online_actor_loss

    def spy(actor, agent, batch, old_log_prob, adv, args):
        jax.debug.callback(lambda *x: seen.append([np.asarray(y) for y in x]), batch.obs[:, 0], adv)
        return online_actor_loss(actor, agent, batch, old_log_prob, adv, args)

    spy.__name__ = "online_actor_loss"
    monkeypatch.setattr(load("uni_o4"), "online_actor_loss", spy)
    new, info = module.update_online(agent, rollout, np.zeros(n), jax.random.key(0), args, 0)
    jax.effects_barrier()
    assert module.gradient_steps(args) == 9 == len(seen) == int(new.actor_opt[1][0].count)
    order = np.concatenate([s[0] for s in seen]).reshape(3, 6)
    assert all(len(set(epoch)) == 6 for epoch in order) and len({tuple(epoch) for epoch in order}) == 3
    v, next_v = value_of(agent, rollout.obs), value_of(agent, rollout.next_obs)
    adv = np.asarray(module.advantages(np.float32(v), np.float32(next_v), rollout, np.zeros(n), args))
    normal = (adv - adv.mean()) / (adv.std() + 1e-5)
    for at, given in seen:
        close(given, normal[at.astype(int)])
    assert set(info) >= {"online_actor_loss", "baseline_loss", "kl", "entropy"}


def test_uni_o4_online_learning_rates_fall_to_zero(agent):
    module, args = compiled("uni_o4"), tiny(env_steps=100, online_actor_lr=1e-4, online_value_lr=1e-2)
    rollout = rollout_of(6)
    moved = []
    for t in (5, 55, 105):
        new, _ = jax.jit(module.update_online)(agent, rollout, np.zeros(6), jax.random.key(0), args, t)
        for name in ("actor", "value"):
            change = jax.tree.map(lambda x, y: np.abs(x - y).max(), getattr(new, name), getattr(agent, name))
            moved.append(max(jax.tree.leaves(change)))
    assert moved[0] > moved[2] > moved[4] == 0 and moved[1] > moved[3] > moved[5] == 0
    jax.tree.map(np.testing.assert_array_equal, new.actors, agent.actors)


def test_uni_o4_the_first_rollout_is_learned_from_at_the_rates_themselves(agent, monkeypatch):
    """Rollouts of 6 steps: the first ends with step 5, the last of 18 steps with step 17, when two thirds are over."""
    module, rates = load("uni_o4"), []
    optimizer = module.ppo_optimizer

    def spy(rate, *more, **eps):
        rates.append(float(rate))
        return optimizer(rate, *more, **eps)

    monkeypatch.setattr(module, "ppo_optimizer", spy)
    args = tiny(env_steps=18, online_actor_lr=1e-4, online_value_lr=3e-2)
    for t in (5, 17):
        module.update_online(agent, rollout_of(6), np.zeros(6), jax.random.key(0), args, t)
    close(rates, [1e-4, 3e-2, 1e-4 / 3, 1e-2])


def test_uni_o4_rollouts_are_the_environments_and_updates_come_when_they_are_full(pendulum, tmp_path, monkeypatch):
    """Chunks of 2 steps, updates after every 8: rows and ends of the environment, and the axes of the tables."""
    module, stepped, learned = compiled("uni_o4"), [], []
    step, update = LaneEnvs.step, module.update_online

    def spy_step(self, actions):
        rows = step(self, actions)
        self.ended[:] = self.length.sum() % 3 == 0
        stepped.append((rows, self.ended.astype(np.float32)))
        return rows

    def spy_update(agent, batch, ended, key, args, t):
        jax.debug.callback(lambda *x: learned.append([np.array(y) for y in x]), batch.obs, batch.reward, ended, t)
        return update(agent, batch, ended, key, args, t)

    monkeypatch.setattr(LaneEnvs, "step", spy_step)
    monkeypatch.setattr(load("uni_o4"), "update_online", spy_update)
    train("uni_o4", pendulum, tmp_path / "run", env_steps=20, steps_per_iteration=8, discount=0.9)
    assert [int(x[3]) for x in learned] == [7, 15]
    rows, ends = np.stack([r[0] for r, _ in stepped]), np.stack([e[0] for _, e in stepped])
    for n, (obs, reward, ended, _) in enumerate(learned):
        part = slice(8 * n, 8 * n + 8)
        np.testing.assert_array_equal(obs, rows[part, :3])
        np.testing.assert_array_equal(reward, rows[part, 4])
        np.testing.assert_array_equal(ended, ends[part])
    table = [(r["update"], r["env_step"]) for r in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert table == [("12", "8"), ("20", "16")]  # 4 offline; 2 epochs of 4 minibatches each time
    for name, updates in (("before", ["2", "4"]), ("offline", ["2", "4"])):
        rows = csv.DictReader((tmp_path / "run" / f"{name}.csv").open())
        assert [r["update"] for r in rows] == updates


@pytest.mark.parametrize("env", ["Pendulum-v1", "phys2d/Pendulum-v0"])
def test_uni_o4_stopped_in_every_stage_goes_on_as_if_nothing_had_happened(env, pendulum, tmp_path, monkeypatch):
    """One run, stopped once in each; online in the middle of an episode and of a rollout. Rows are Pendulum's own."""
    args = {"env_steps": 20, "steps_per_iteration": 8, "seeds": 2, "eval_every": 10, "env": env}
    train("uni_o4", pendulum, tmp_path / "whole", **args)
    for stop in (-6, -2, 10):
        with monkeypatch.context() as m, pytest.raises(Exception, match="15"):
            stop_after(m, stop)
            train("uni_o4", pendulum, tmp_path / "stopped", resume=stop > -6, **args)
    train("uni_o4", pendulum, tmp_path / "stopped", resume=True, **args)
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, stopped[name], err_msg=name)
    task, hand = load_dataset(pendulum, env=env).normalize_obs().task, gym.make("Pendulum-v1").unwrapped
    batch = unpack(whole["[1]['rows']"], task.spec)
    hand.reset(seed=0)
    for lane, t in np.ndindex(2, 8):
        cos, sin, speed = batch.obs[lane, t] * task.obs_std + task.obs_mean
        hand.state = np.array([np.arctan2(sin, cos), speed])
        new, reward, *_ = hand.step(2.0 * np.clip(batch.action[lane, t], -1, 1))
        np.testing.assert_allclose(batch.next_obs[lane, t] * task.obs_std + task.obs_mean, new, atol=1e-3)
        np.testing.assert_allclose(batch.reward[lane, t], reward, atol=2e-2)
    goes_on = (batch.next_obs[:, :-1] == batch.obs[:, 1:]).all(-1)
    assert (goes_on == (np.arange(7) != 3)).all()  # the newest four of the third rollout, then the second's
    assert not whole["[1]['ended']"].any() and np.abs(batch.obs[0] - batch.obs[1]).min(0).max() > 0


def test_uni_o4_an_episode_that_does_not_come_back_ends_before_the_restart(pendulum, tmp_path, monkeypatch):
    """Stopped after two steps of the second rollout of 8: what follows them in it is of another episode."""
    module, out, args, learned = load("uni_o4"), tmp_path / "run", {"env_steps": 20, "steps_per_iteration": 8}, []
    with monkeypatch.context() as m, pytest.raises(Exception, match="15"):
        stop_after(m, 10)
        train("uni_o4", pendulum, out, **args)
    update = module.update_online

    def spy(agent, batch, ended, key, args, t):
        jax.debug.callback(lambda *x: learned.append([np.array(y) for y in x]), batch.obs, batch.next_obs, ended)
        return update(agent, batch, ended, key, args, t)

    monkeypatch.setattr(LaneEnvs, "restore", lambda self, state: np.zeros(len(self.envs), bool))
    monkeypatch.setattr(module, "update_online", spy)
    train("uni_o4", pendulum, out, resume=True, **args)
    ((obs, next_obs, ended),) = learned
    goes_on = (next_obs[:-1] == obs[1:]).all(-1)
    assert goes_on.tolist() == [True, False] + [True] * 5 and ended.tolist() == [0, 1] + [0] * 6


def test_uni_o4_goes_online_with_another_runs_agents(pendulum, tmp_path):
    """--from skips both offline stages; the chosen actor, V and the ensemble come with it."""
    old = train("uni_o4", pendulum, tmp_path / "whole", env_steps=8, online_actor_lr=0.0, online_value_lr=0.0)
    new = train("uni_o4", pendulum, tmp_path / "new", from_run=str(tmp_path / "whole"), online_actor_lr=0.0)
    assert not (tmp_path / "new" / "before.csv").exists() and not (tmp_path / "new" / "offline.csv").exists()
    for name in old:
        if name.split("[")[1].startswith("0].") and any(f in name for f in (".actor[", ".actors[", ".score")):
            np.testing.assert_array_equal(old[name], new[name], err_msg=name)


def test_uni_o4_explores_with_samples(agent, batch):
    module, key = compiled("uni_o4"), jax.random.key(1)
    mean, log_std = policy_of(agent.actor, batch.obs)
    close(module.explore(agent, batch.obs, key, tiny()), mean + np.exp(log_std) * noise_of(key, B, 2))


def test_uni_o4_initial_policies_differ():
    agent = compiled("uni_o4").init(jax.random.key(0), tiny(), Spec((3,), 2, False, (-1.0,) * 2, (1.0,) * 2))
    for trees, n in ((agent.actors, P), (agent.critic, 2), (agent.model, M)):
        first = trees["params"]["Dense_0"]["kernel"]
        assert all(np.abs(first[i] - first[j]).max() > 1e-3 for i in range(n) for j in range(i))


def test_uni_o4_first_weights_are_those_released():
    """net.py of Lei-Kun/Uni-O4: PyTorch's default for Q and V; transition_model/models/nets.py: half a unit's size."""
    module, args = (
        compiled("uni_o4"),
        tiny(critic_hidden_dims=(64, 64), value_hidden_dims=(64,), model_hidden_dims=(64,)),
    )
    agent = module.init(jax.random.key(0), args, SPEC)
    for layer, fan_in in (
        (agent.critic["params"]["Dense_1"], 64),
        (agent.critic["params"]["Dense_2"], 64),
        (agent.value["params"]["Dense_1"], 64),
    ):
        kernel = np.abs(layer["kernel"])
        assert 0.9 / np.sqrt(fan_in) < kernel.max() <= 1 / np.sqrt(fan_in)
    for layer, fan_in in ((agent.model["params"]["Dense_0"], 5), (agent.model["params"]["Dense_1"], 64)):
        np.testing.assert_allclose(np.std(layer["kernel"]), 0.5 / np.sqrt(fan_in), rtol=0.1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"minibatch_size": 5}, "--minibatch-size 5 is more than --steps-per-iteration 4"),
        ({"env_steps": 3}, "--env-steps 3 are less than --steps-per-iteration 4: nothing would be learned"),
    ],
)
def test_uni_o4_refuses(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        train("uni_o4", pendulum, tmp_path / "run", **changes)


def test_uni_o4_settings_are_those_released():
    """scripts/ and ppo_finetune/scripts of Lei-Kun/Uni-O4 at 1eecc45; of several values that are tried, one of them.

    A scale of 0.1 is the scripts' "number"; HalfCheetah-medium's and -medium-expert's are "dynamic".
    """
    theirs = table(
        """
        hopper-medium-v2 relu 2000000 10000 1e-4 2e-5 128 0.1
        hopper-medium-replay-v2 relu 2000000 10000 1e-4 2e-5 128 0.1
        halfcheetah-medium-v2 tanh 2000000 10000 1e-4 3e-5 128 0.1
        halfcheetah-medium-replay-v2 tanh 2000000 10000 1e-4 3e-5 128 0.1
        halfcheetah-medium-expert-v2 relu 2000000 10000 1e-4 2e-5 128 0.1
        walker2d-medium-v2 relu 2000000 10000 1e-4 1e-5 128 1.0
        walker2d-medium-replay-v2 relu 500000 10000 1e-4 1e-5 128 1.0
        walker2d-medium-expert-v2 relu 2000000 10000 1e-4 1e-5 128 1.0
        pen-human-v1 relu 1000000 10000 1e-5 3e-6 256 0.1
        pen-cloned-v1 relu 2000000 10000 1e-5 3e-6 256 0.1
        door-human-v1 relu 2000000 5000 1e-5 8e-6 256 1.0
        door-cloned-v1 relu 2000000 10000 1e-5 8e-6 256 1.0
        hammer-human-v1 tanh 2000000 10000 1e-5 8e-6 256 0.1
        hammer-cloned-v1 tanh 2000000 10000 1e-5 8e-6 256 0.1
        relocate-human-v1 tanh 2000000 10000 1e-5 8e-6 256 1.0
        relocate-cloned-v1 tanh 2000000 10000 1e-5 8e-6 256 1.0
        kitchen-complete-v0 relu 500000 1000 1e-5 2e-5 128 1.0
        kitchen-partial-v0 relu 1000000 1000 1e-5 2e-5 128 1.0
        kitchen-mixed-v0 relu 1000000 1000 1e-5 2e-5 128 1.0
        """,
        actor_activation=str, pretrain_updates=int, offline_updates=int, actor_lr=float, online_actor_lr=float,
        minibatch_size=int, reward_scale=float,
    )  # fmt: skip
    antmaze = every(
        ANTMAZE, expectile=0.9, critic_hidden_dims=(256,) * 3, value_hidden_dims=(256,) * 3, clone_successes=True,
        actor_lr=3e-5, eval_episodes=30,
    )  # fmt: skip
    more = {d: {"disagreement_weight": 0.0 if d == "kitchen-mixed-v0" else 0.1} for d in theirs}
    assert not wrong_settings(load("uni_o4"), theirs | antmaze)
    assert not wrong_settings(load("uni_o4"), more)
    assert load("uni_o4").Args().reward_scale == 1.0
