"""OPPO: its losses and networks in numpy, who is preferred to whom, what z* follows, and what the policy is told."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close
from transformer_in_numpy import B, T, dense, norm, transformer, window

from shared.data import load_dataset
from shared.errors import InputError
from shared.sequences import Window, sequences

SMALL = {
    "width": 8, "layers": 1, "heads": 2, "context": 3, "foresee": 5, "latent_dim": 3, "known_pairs": 50.0,
    "warmup_updates": 1000,
}  # fmt: skip
Z = 3
TINY = {"width": 8, "layers": 1, "heads": 2, "encoder_heads": 4, "context": T, "batch_size": B, "latent_dim": Z}
TINY |= {
    "token_dropout": 0.0,
    "max_timestep": 6,
    "preference_weight": 0.3,
    "norm_weight": 0.7,
    "preference_margin": 0.5,
}
TINY |= {"learning_rate": 0.01, "latent_lr": 0.02, "weight_decay": 0.1, "warmup_updates": 4, "max_grad_norm": 0.1}


def steps_alone(seed: int) -> Window:
    return window(seed=seed, first=3)._replace(reward=None, terminal=None, return_to_go=None)


@pytest.fixture(scope="module")
def setting():
    """OPPO, its arguments, an agent, windows, and pairs, of which the second has no preferred one."""
    oppo = load("oppo")
    args = oppo.Args(**TINY)
    pairs = oppo.Pairs(steps_alone(1), steps_alone(2), np.float32([1, 0, 1, 1, 1]))
    return oppo, args, agent_of(oppo, args), steps_alone(0), pairs


@pytest.fixture(scope="module")
def graded(setting):
    """The loss of encoder and actor, what is said of it, and its gradients."""
    oppo, args, agent, w, pairs = setting
    grad = jax.jit(jax.value_and_grad(oppo.representation_loss, has_aux=True))
    return grad((agent.encoder, agent.actor), agent, w, pairs, jax.random.key(0), args)


def times(p, w, b, t):
    return np.float64(p["Embed_0"]["embedding"])[min(w.timestep[b, t], 5)]


def contexts(agent, w):
    """[B, Z]"""
    p, found = jax.tree.map(np.asarray, agent.encoder)["params"], []
    for b in range(len(w.mask)):
        tokens = []
        for t in range(T):
            for name, x in (("obs", w.obs[b, t]), ("action", w.action[b, t])):
                tokens.append(norm(p["LayerNorm_0"], dense(p[f"embed_{name}"], x) + times(p, w, b, t)))
        mask = np.repeat(w.mask[b], 2)
        x = transformer(p["Transformer_0"], np.stack(tokens), mask, 4, causal=False)
        found.append(dense(p["head"], x[mask > 0].mean(0)))
    return np.stack(found)


def actions(agent, w, z):
    """[B, T, A]; `z` [B, Z]"""
    p, found = jax.tree.map(np.asarray, agent.actor)["params"], []
    for b in range(len(w.mask)):
        tokens = []
        for t in range(len(w.mask[b])):
            for name, x in (("context", z[b]), ("obs", w.obs[b, t]), ("action", w.action[b, t])):
                tokens.append(norm(p["LayerNorm_0"], dense(p[f"embed_{name}"], x) + times(p, w, b, t)))
        x = transformer(p["Transformer_0"], np.stack(tokens), np.repeat(w.mask[b], 3), 2)
        found.append(np.tanh(dense(p["head"], x[1::3])))
    return np.stack(found)


def preferences_of(z_star, better, worse):
    return np.linalg.norm(z_star - better, axis=1) - np.linalg.norm(z_star - worse, axis=1)


def test_the_losses_are_the_action_error_the_triplet_and_the_length(setting, graded):
    """The action error is of the windows alone, lengths are of the windows and both pieces of the pairs."""
    oppo, args, agent, w, pairs = setting
    (loss, (info, mean)), _ = graded
    own, better, worse = (contexts(agent, x) for x in (w, pairs.better, pairs.worse))
    matching = ((actions(agent, w, own) - w.action) ** 2)[w.mask > 0].mean()
    nearer = preferences_of(np.asarray(agent.z_star), better, worse)[pairs.told > 0]
    preference = np.maximum(nearer + 0.5, 0.0).mean()
    length = ((np.linalg.norm(np.concatenate([own, better, worse]), axis=1) - 1.0) ** 2).mean()
    close(info["actor_loss"], matching)
    close(info["preference_loss"], preference)
    close(info["norm_loss"], length)
    close(info["accuracy"], (nearer < 0).mean())
    close(loss, matching + 0.3 * preference + 0.7 * length)
    close(mean, own.mean(0))


def test_the_triplet_counts_where_one_is_preferred_and_is_zero_beyond_the_margin():
    oppo = load("oppo")
    args, z_star = oppo.Args(preference_margin=1.0), np.zeros(2, np.float32)
    better, worse = np.float32([[3, 4], [1, 0], [0, 2]]), np.float32([[0, 1], [0, 5], [9, 9]])
    loss, right = jax.jit(oppo.preference_loss)(z_star, better, worse, np.float32([1, 1, 0]), args)
    close(loss, (5 - 1 + 1 + 0) / 2)
    close(right, 0.5)
    loss, right = oppo.preference_loss(z_star, better, worse, np.zeros(3, np.float32), args)
    assert loss == 0 and right == 0
    grad = jax.grad(lambda z: oppo.preference_loss(z, better, worse, np.float32([1, 0, 0]), args)[0])(z_star)
    close(grad, [-3 / 5, -4 / 5 + 1])
    assert np.isfinite(jax.grad(oppo.norm_loss)(np.zeros((2, 3), np.float32))).all()


def test_an_update_is_of_encoder_and_actor_then_of_z_star_by_the_new_encoder(setting, graded):
    """Each is clipped by itself; the actor alone has a warm-up."""
    oppo, args, agent, w, pairs = setting
    agent = agent.replace(z_mean=jnp.float32([0.5, -0.5, 1.0]))
    new, info = jax.jit(oppo.update)(agent, w, pairs, jax.random.key(0), args)
    for name, grad, rate in zip(("encoder", "actor"), graded[1], (0.01, 0.01 / 4), strict=True):
        size = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grad)))
        assert size > 0.1
        g, p = (np.float64(x["params"]["head"]["kernel"]) for x in (grad, getattr(agent, name)))
        g = g * 0.1 / size
        close(getattr(new, name)["params"]["head"]["kernel"], p - rate * (g / (np.abs(g) + 1e-8) + 0.1 * p))
    better, worse, z = contexts(new, pairs.better), contexts(new, pairs.worse), np.float64(agent.z_star)
    away = [(z - x) / np.linalg.norm(z - x, axis=1, keepdims=True) for x in (better, worse)]
    active = pairs.told * (preferences_of(z, better, worse) + 0.5 > 0)
    assert active.sum() > 0
    g = (active[:, None] * (away[0] - away[1])).sum(0) / pairs.told.sum()
    close(new.z_star, z - 0.02 * (g / (np.abs(g) + 1e-8) + 0.1 * z))
    close(info["z_star_norm"], np.linalg.norm(new.z_star))
    close(new.z_mean, agent.z_mean + 0.01 * (contexts(agent, w).mean(0) - agent.z_mean))
    np.testing.assert_array_equal(new.z_other, agent.z_other)


def test_steps_are_adamws_of_clipped_gradients_after_a_warm_up():
    oppo = load("oppo")
    opt, p = oppo.optimizer(oppo.Args(**TINY), 2), np.float32([1.0, -2.0])
    step, now, state, m, v = jax.jit(opt.update), np.float64(p), opt.init(p), np.zeros(2), np.zeros(2)
    gradients = [[3e-7, -4e-7], [3.0, 4.0], [0.03, -0.04], [-0.06, 0.0], [0.0, 0.5]]  # the first one keeps its sign
    for t, g in enumerate(np.float32(gradients), 1):
        updates, state = step(g, state, p)
        p, g = p + updates, g * min(1.0, 0.1 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        now = now - 0.01 * min(t / 2, 1.0) * (adam + 0.1 * now)
        close(p, now)


@pytest.fixture(scope="module")
def log():
    """Three episodes of 4, 6 and 3 rows: terminal, a time limit, terminal."""
    r, n = np.random.default_rng(0), 13
    rows = {"observations": r.normal(size=(n, 3)).astype(np.float32), "actions": np.zeros((n, 2), np.float32)}
    rows |= {"rewards": np.float32([1, 2, 3, 4, 10, 20, 30, 40, 50, 60, 3, 3, 1])}
    return rows | {"terminals": np.isin(np.arange(n), (3, 12)), "timeouts": np.arange(n) == 9}


@pytest.fixture
def data(log, tmp_path):
    np.savez(tmp_path / "log.npz", **log)
    return load_dataset(str(tmp_path / "log.npz"), "none")


def test_pieces_are_whole_or_end_with_a_terminal_row(data):
    oppo = load("oppo")
    starts, score = oppo.pieces(data, 3)
    np.testing.assert_array_equal(starts, [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12])  # not 8 and 9, before a time limit
    np.testing.assert_array_equal(score, [6, 9, 7, 4, 60, 90, 120, 150, 7, 4, 1])
    equal = dataclasses.replace(data, reward=np.zeros(13, np.float32))
    with pytest.raises(InputError, match="--foresee 3: .* no two pieces"):
        oppo.pieces(equal, 3)
    cut = data.select(data.episode() == 1)
    with pytest.raises(InputError, match="--foresee 7: .* no two pieces"):
        oppo.pieces(cut, 7)


def test_the_piece_of_more_reward_is_preferred_and_pairs_come_again(data):
    oppo = load("oppo")
    args = oppo.Args(**TINY | {"batch_size": 200})
    starts, score = oppo.pieces(data, 3)
    agent = agent_of(oppo, oppo.Args(**TINY))
    preferences = oppo.Preferences(sequences(data, "obs", "action"), jnp.asarray(starts), jnp.asarray(score))
    draw = jax.jit(lambda pairs_key, known: preferences.pairs(
        agent.replace(pairs_key=pairs_key), jax.random.key(1), dataclasses.replace(args, known_pairs=known)
    ))  # fmt: skip
    worth = {tuple(x): s for x, s in zip(data.obs[starts], score, strict=True)}
    first = lambda w: [tuple(x[m > 0][0]) for x, m in zip(np.asarray(w.obs), np.asarray(w.mask), strict=True)]  # noqa: E731

    def seen(key, known):
        pairs = draw(jax.random.key_data(jax.random.key(key)), known)
        return list(zip(first(pairs.better), first(pairs.worse), np.asarray(pairs.told), strict=True))

    found = seen(0, 1e6)
    assert len({x[:2] for x in found}) > 50
    for better, worse, told in found:
        assert told == (worth[better] != worth[worse]) and worth[better] >= worth[worse]
    assert {told for *_, told in found} == {0.0, 1.0}
    few = {x[:2] for x in seen(0, 4.0)}
    assert 2 <= len(few) <= 4 and few == {x[:2] for x in seen(0, 4.0)} and few != {x[:2] for x in seen(1, 4.0)}
    assert len({x[:2] for x in seen(0, 1.0)}) == 1


def test_contexts_are_judged_by_the_order_of_rewards(data):
    oppo = load("oppo")
    args, agent = oppo.Args(**TINY), agent_of(oppo, oppo.Args(**TINY))
    rows = sequences(data, "obs", "action")
    starts = jnp.arange(13)
    windows = jax.jit(lambda: rows.after(starts, T))()
    near = -np.linalg.norm(contexts(agent, windows) - np.asarray(agent.z_star), axis=1)
    judged = jax.jit(
        lambda agent, score: oppo.judged(agent, jax.random.key(0), oppo.Preferences(rows, starts, score), args)
    )
    close(judged(agent, near)["correlation"], 1.0)
    found = judged(agent, -near)
    close(found["correlation"], -1.0)
    own, place = contexts(agent, windows), np.asarray(jax.random.randint(jax.random.key(0), (256,), 0, 13))
    star = np.tile(np.asarray(agent.z_star), (13, 1))
    changed = np.abs(actions(agent, windows, own) - actions(agent, windows, star)).mean(-1)
    mask = np.asarray(windows.mask)[place]
    close(found["sensitivity"], (mask * changed[place]).sum() / mask.sum())
    assert found["sensitivity"] > 1e-3 and found["z_norm"] > 0
    deaf = jax.tree_util.tree_map_with_path(lambda path, x: 0.0 * x if "embed_context" in str(path) else x, agent.actor)
    assert judged(agent.replace(actor=deaf), near)["sensitivity"] == 0.0


@pytest.mark.parametrize("told", ["learned", "unit", "mean", "random"])
def test_acting_is_the_network_on_the_last_steps_in_one_context(setting, told):
    oppo, args, agent, *_ = setting
    args = dataclasses.replace(args, told_context=told)
    agent = agent.replace(z_mean=jnp.float32([0.5, -0.5, 1.0]))
    close(np.linalg.norm(agent.z_other), 1.0)
    star = np.asarray(agent.z_star)
    z = {"learned": star, "unit": star / np.linalg.norm(star), "mean": agent.z_mean, "random": agent.z_other}[told]
    r, n = np.random.default_rng(2), 2
    obs, done = r.normal(size=(n, T + 1, 3)).astype(np.float32), []
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), oppo.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs: oppo.act(agent, carry, obs, jnp.ones(n), None, args))
    for t in range(T + 1):
        action, carry = act(carry, obs[:, t])
        done.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*done[:-1], np.zeros_like(done[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        w = Window(np.ones(timestep.shape, np.float32), timestep, obs[:, at], known)
        close(done[-1], actions(agent, w, np.tile(np.asarray(z), (n, 1)))[:, -1])


def test_what_cannot_be_trained_is_refused(pendulum, tmp_path):
    oppo = load("oppo")
    run = partial(small, "oppo", pendulum, tmp_path / "run", env="none")
    for changes, message in (
        ({"known_pairs": (0.0, 5.0)}, "--known-pairs .* between 1 and"),
        ({"known_pairs": 1e10}, "--known-pairs .* between 1 and"),
        ({"encoder_heads": 3}, "must be a multiple of --heads 3"),
        ({"context": 31}, "--context 31"),
        ({"foresee": 31}, "--foresee 31"),
    ):
        with pytest.raises(InputError, match=message):
            oppo.main(run(**changes))
