"""MORE-3S: its losses and network in numpy, what sees what, where texts are found, and how it acts."""

import dataclasses
from functools import partial

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close
from transformer_in_numpy import B, T, dense, norm, relu, softmax, window

from shared.errors import InputError
from shared.sequences import Window
from shared.task import Spec, Task

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "warmup_updates": 1000}
SPEC = Spec((7,), 3, True)
PLACE, NAMES = (2, 3, 4), (0, 1, 4, 4, 2, 3, 0, 4, 3, 4, 4, 4)
"""Columns 2 to 4 are letters 0 to 3, or 4 for none; names of at most four letters."""
TINY = {"width": 8, "layers": 2, "heads": 2, "context": T, "batch_size": B, "token_dropout": 0.0, "max_timestep": 6}
TINY |= {"alignment_weight": 0.3, "alignment_temperature": 0.5}


class Named:
    """The module with an `init` that knows where texts are, as `main` gives it."""

    def __init__(self, module):
        self.init = partial(module.init, place=PLACE, names=NAMES)


@pytest.fixture(scope="module")
def setting():
    m = load("more_3s")
    args = m.Args(**TINY)
    named = Named(m)
    return m, args, agent_of(named, args, SPEC)


def texts(seed: int = 0) -> Window:
    w = window(SPEC, seed=seed, first=3)._replace(reward=None, terminal=None)
    w.obs[..., 2:5] = np.random.default_rng(seed + 5).integers(0, 5, (B, T, 3))
    return w


@partial(jax.jit, static_argnums=0)
def _apply(net, actor, w):
    return net.apply(actor, w)


def apply(agent, w):
    return [np.asarray(x) for x in _apply(agent.net, agent.actor, w)]


def text(p, codes):
    """One text [N]."""
    letters = (np.asarray(codes)[:, None] == np.arange(4)).astype(float).reshape(-1)
    return dense(p["Dense_1"], relu(dense(p["Dense_0"], letters)))


def attend(p, x, wanted, mask):
    """One block on the tokens [N, W] of a sequence, of which each sees those before it; two heads."""
    n, width = x.shape
    q, k, v = np.split(dense(p["Dense_0"], norm(p["LayerNorm_0"], x)), 3, -1)
    k, v = (dense(p[name], np.c_[y, wanted]).reshape(n, 2, -1) for name, y in (("key", k), ("value", v)))
    seen = np.zeros_like(v)
    for i in range(n):
        at = np.flatnonzero((np.arange(n) <= i) & (mask > 0))
        for h in range(2):
            if len(at):
                seen[i, h] = softmax(k[at, h] @ q.reshape(n, 2, -1)[i, h] / np.sqrt(width / 2)) @ v[at, h]
    x = x + dense(p["Dense_1"], seen.reshape(n, width))
    return x + dense(p["Dense_3"], relu(dense(p["Dense_2"], norm(p["LayerNorm_1"], x))))


def outputs(agent, w, told=True):
    """Logits and cosines [B, T, A]."""
    p, found, cosines = jax.tree.map(np.float64, agent.actor)["params"], [], []
    names = np.stack([text(p["text"], NAMES[4 * a : 4 * a + 4]) for a in range(3)])
    for b in range(len(w.mask)):
        states, tokens = [], []
        for t in range(len(w.mask[b])):
            before = names[w.action[b, t - 1]] * w.mask[b, t - 1] if t else np.zeros(8)
            kinds = [relu(dense(p["embed_obs"], np.r_[w.obs[b, t, :2], w.obs[b, t, 5:]])), before]
            kinds += [text(p["text"], np.r_[w.obs[b, t, 2:5], 4])] if told else []
            states.append(dense(p["state"], relu(dense(p["fuse"], np.concatenate(kinds)))))
            time = p["Embed_0"]["embedding"][min(w.timestep[b, t], 5)]
            tokens.append(norm(p["LayerNorm_0"], states[-1] + time))
        x = np.stack(tokens)
        for i in range(2):
            x = attend(p[f"Block_{i}"], x, w.return_to_go[b], w.mask[b])
        found.append(dense(p["head"], norm(p["LayerNorm_1"], x)))
        length = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        cosines.append((np.stack(states) / length(np.stack(states))) @ (names / length(names)).T)
    return np.stack(found), np.stack(cosines)


def cross_entropy(logits, w):
    there = w.mask > 0
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_prob, w.action[..., None], -1)[..., 0][there].mean()


@pytest.mark.long
def test_the_loss_is_that_of_actions_and_of_states_beside_the_texts_of_actions(setting):
    m, args, agent = setting
    w = texts()
    logits, cosines = outputs(agent, w)
    there = w.mask > 0
    found = apply(agent, w)
    assert found[0].shape == found[1].shape == (B, T, 3)
    close(found[0][there], logits[there])
    close(found[1][there], cosines[there])
    action, alignment = cross_entropy(logits, w), cross_entropy(cosines / 0.5, w)
    loss, info = jax.jit(m.actor_loss)(agent.actor, agent, w, jax.random.key(0), args)
    close(info["action_loss"], action)
    close(info["alignment_loss"], alignment)
    close(info["accuracy"], (logits.argmax(-1) == w.action)[there].mean())
    close(loss, action + 0.3 * alignment)


def test_nothing_sees_its_own_action_the_future_or_padding(setting):
    _, _, agent = setting
    w, other = texts(), texts(1)
    logits, cosines = apply(agent, w)
    for t in range(T):
        later = np.arange(T)[None, :] > t
        changed = w._replace(
            obs=np.where(later[..., None], other.obs, w.obs),
            return_to_go=np.where(later, other.return_to_go, w.return_to_go),
            action=np.where(np.arange(T)[None] >= t, (w.action + 1) % 3, w.action),
        )
        found, near = apply(agent, changed)
        there = w.mask[:, : t + 1] > 0
        np.testing.assert_allclose(found[:, : t + 1][there], logits[:, : t + 1][there], atol=1e-6)
        np.testing.assert_allclose(near[:, : t + 1][there], cosines[:, : t + 1][there], atol=1e-6)
    unread = w._replace(
        obs=np.where(w.mask[..., None] > 0, w.obs, 3.0), action=np.where(w.mask > 0, w.action, 2),
        return_to_go=np.where(w.mask > 0, w.return_to_go, 9.0),
    )  # fmt: skip
    there = w.mask > 0
    np.testing.assert_allclose(apply(agent, unread)[0][there], logits[there], atol=1e-6)


def test_every_token_sees_the_action_before_it_the_text_and_the_return(setting):
    m, args, agent = setting
    w = texts()
    logits = apply(agent, w)[0]
    before = np.where(np.arange(T)[None] == 1, (w.action + 1) % 3, w.action)
    assert np.abs(apply(agent, w._replace(action=before))[0] - logits)[0, 2:].max(-1).min() > 1e-4
    assert np.abs(apply(agent, w._replace(return_to_go=w.return_to_go + 1.0))[0] - logits)[0].max(-1).min() > 1e-4
    obs = w.obs.copy()
    obs[..., 3] = (obs[..., 3] + 1) % 5
    changed = w._replace(obs=obs)
    assert np.abs(apply(agent, changed)[0] - logits)[0].max(-1).min() > 1e-4
    untold = agent_of(Named(m), dataclasses.replace(args, told=False), SPEC)
    close(apply(untold, w)[0][0], outputs(untold, w, told=False)[0][0])
    np.testing.assert_array_equal(apply(untold, changed)[0], apply(untold, w)[0])


def test_acting_is_the_network_on_the_last_steps(setting):
    m, args, agent = setting
    args = dataclasses.replace(args, target_return=5.0, return_scale=2.0)
    r, steps, n = np.random.default_rng(2), T + 2, 2
    obs = r.normal(size=(n, steps, 7)).astype(np.float32)
    obs[..., 2:5] = r.integers(0, 5, (n, steps, 3))
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, steps - 1))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), m.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward: m.act(agent, carry, obs, reward, None, args))
    actions = []
    for t in range(steps):
        action, carry = act(carry, obs[:, t], reward[:, t])
        actions.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*actions[:-1], np.zeros_like(actions[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        wanted = (5.0 - np.cumsum(reward, 1)[:, at]) / 2.0
        w = Window(np.ones_like(wanted), timestep, obs[:, at], known, return_to_go=wanted)
        np.testing.assert_array_equal(actions[-1], outputs(agent, w)[0][:, -1].argmax(-1))


def test_an_update_is_adamw_after_a_clip_with_a_warm_up(setting):
    m, args, agent = setting
    args = dataclasses.replace(
        args, return_scale=2.0, warmup_updates=4, weight_decay=0.1, learning_rate=0.01, max_grad_norm=0.1
    )
    w, key = texts(), jax.random.key(0)
    scaled = w._replace(return_to_go=w.return_to_go / 2.0)
    grads = jax.jit(jax.grad(lambda p: m.actor_loss(p, agent, scaled, key, args)[0]))(agent.actor)
    size = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert size > 0.1
    new, _ = jax.jit(m.update)(agent, w, key, args)
    for path in (("head",), ("text", "Dense_0"), ("Block_0", "key")):
        g, p, q = (x["params"] for x in (grads, agent.actor, new.actor))
        for name in path:
            g, p, q = g[name], p[name], q[name]
        g, p = np.float64(g["kernel"]) * 0.1 / size, np.float64(p["kernel"])
        close(q["kernel"], p - 0.01 / 4 * (g / (np.abs(g) + 1e-8) + 0.1 * p))


class Told(gym.Env):
    observation_space = gym.spaces.Dict(
        {
            "a": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
            "mission": gym.spaces.Text(5, charset="abc on"),
            "z": gym.spaces.Discrete(3),
        }
    )
    action_space = gym.spaces.Discrete(2)


class ToldGoals(Told):
    """Seen in the order observation, achieved_goal, a mission, z."""

    observation_space = gym.spaces.Dict(
        {
            "achieved_goal": gym.spaces.Box(-1.0, 1.0, (4,), np.float32),
            "mission": gym.spaces.Text(5, charset="abc on"),
            "observation": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
            "z": gym.spaces.Discrete(3),
        }
    )


class ToldTwice(Told):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Text(5, charset="no"), "b": gym.spaces.Text(5, charset="no")})


for env in (Told, ToldGoals, ToldTwice):
    gym.register(f"TextsTest/{env.__name__}-v0", env, max_episode_steps=5)


def test_texts_are_found_in_the_observation_and_names_are_of_its_letters():
    m = load("more_3s")
    task = Task("log", "", Spec((10,), 2, True), gym.spec("TextsTest/Told-v0"))
    found = m.texts_of(m.Args(action_texts=("on", "no can")), task.spec, task)
    assert found[:3] == (2, 5, 6)
    assert found.names == (5, 4, 6, 6, 6, 6, 4, 5, 0, 3, 1, 4)
    goals = dataclasses.replace(task, spec=Spec((14,), 2, True), env_spec=gym.spec("TextsTest/ToldGoals-v0"))
    assert m.texts_of(m.Args(action_texts=("on", "no")), goals.spec, goals)[:3] == (6, 5, 6)
    plain = m.texts_of(m.Args(), Spec((4,), 2, True), None)
    assert (
        plain[:3] == (0, 0, 37)
        and len(plain.names) == 16
        and plain.names[:7] == plain.names[8:15]
        and plain.names[7::8] == (0, 1)
    )
    with pytest.raises(InputError, match="--action-texts: 3 names, but there are 2 actions"):
        m.texts_of(m.Args(action_texts=("a", "b", "c")), task.spec, task)
    with pytest.raises(InputError, match="--action-texts: the texts of 'log' have no 'f'"):
        m.texts_of(m.Args(action_texts=("on", "off")), task.spec, task)
    for names in (("on", "on"), ("on", "")):
        with pytest.raises(InputError, match="--action-texts: every action needs a name of its own"):
            m.texts_of(m.Args(action_texts=names), task.spec, task)
    twice = dataclasses.replace(task, env_spec=gym.spec("TextsTest/ToldTwice-v0"))
    with pytest.raises(InputError, match="one text at most can be read; those of 'log' have 2"):
        m.texts_of(m.Args(action_texts=("on", "no")), twice.spec, twice)


def test_what_cannot_be_trained_is_refused(pendulum, tmp_path):
    m, r, n = load("more_3s"), np.random.default_rng(0), 40
    frames, log = r.normal(size=(n + 1, 4)).astype(np.float32), str(tmp_path / "log.npz")
    rows = {"observations": frames[:-1], "actions": r.integers(0, 2, n), "rewards": np.ones(n, np.float32)}
    np.savez(log, **rows, next_observations=frames[1:], timeouts=np.arange(n) % 20 == 19)
    for data, changes, message in (
        (pendulum, {}, "needs discrete actions"),
        (log, {"heads": 3}, "must be a multiple of --heads 3"),
        (log, {"context": 21}, "--context 21"),
        (log, {"target_return": 1000.0}, "--target-return 1000"),
        (log, {"action_texts": ("left",)}, "1 names, but there are 2"),
    ):
        with pytest.raises(InputError, match=message):
            m.main(small("more_3s", data, tmp_path / "run", **{"env": "none", **changes}))
