"""Decision Transformer: its loss and network in numpy, what sees what, and how it acts."""

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small, train
from reference import agent_of, close, compiled
from transformer_in_numpy import DISCRETE, SPEC, B, T, dense, norm, transformer, window

from results.sequence_speed import cached_play
from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import load_run
from shared.sequences import Window

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "warmup_updates": 1000, "token_dropout": 0.1}
TINY = {"width": 8, "layers": 1, "heads": 2, "context": T, "batch_size": B, "token_dropout": 0.0, "max_timestep": 6}


def setting(spec=SPEC, **changes):
    dt = compiled("decision_transformer")
    args = dt.Args(**TINY | changes)
    return dt, args, agent_of(dt, args, spec)


@partial(jax.jit, static_argnums=0)
def _apply(net, actor, w):
    return net.apply(actor, w)


def apply(agent, w: Window) -> np.ndarray:
    return np.asarray(_apply(agent.net, agent.actor, w))


def outputs(agent, w: Window) -> np.ndarray:
    """[B, T, A]"""
    p, spec = agent.actor["params"], agent.net.spec
    found = []
    for b in range(len(w.mask)):
        tokens, known = [], []
        for t in range(len(w.mask[b])):
            time = np.float64(p["Embed_0"]["embedding"])[min(w.timestep[b, t], agent.net.max_timestep - 1)]
            action = np.eye(spec.action_dim)[w.action[b, t]] if spec.discrete else w.action[b, t]
            for name, x in (("return", w.return_to_go[b, t][None]), ("obs", w.obs[b, t]), ("action", action)):
                tokens.append(norm(p["LayerNorm_0"], dense(p[f"embed_{name}"], x) + time))
                known.append(w.mask[b, t])
        x = transformer(p["Transformer_0"], np.stack(tokens), np.array(known), agent.net.heads)
        out = dense(p["head"], x[1::3])
        found.append(out if spec.discrete else np.tanh(out))
    return np.stack(found)


@pytest.mark.long
@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_the_loss_is_the_error_at_the_steps_that_are_there(spec):
    """Tokens in the order return, state, action; the action is read where the state is; padding counts nothing."""
    dt, args, agent = setting(spec, layers=1 if spec.discrete else 2)
    w = window(spec, first=3)  # timesteps 3 .. 6, of which the last has no embedding of its own
    out = outputs(agent, w)
    there = w.mask > 0
    close(apply(agent, w)[there], out[there])
    if spec.discrete:
        log_prob = out - np.log(np.exp(out).sum(-1, keepdims=True))
        expected = -np.take_along_axis(log_prob, w.action[..., None], -1)[..., 0][there].mean()
    else:
        expected = ((out - w.action) ** 2)[there].mean()
    loss, info = jax.jit(dt.actor_loss)(agent.actor, agent, w, jax.random.key(0), args)
    close(loss, expected)
    close(info["padding"], 1 - there.mean())


@pytest.mark.long
def test_nothing_sees_the_future_its_own_action_or_padding():
    dt, _, agent = setting()
    w, other = window(), window(seed=1)
    out = apply(agent, w)
    for t in range(T):
        later = np.arange(T)[None, :, None] > t

        def mixed(name, later=later):
            a, b = np.asarray(getattr(w, name)), np.asarray(getattr(other, name))
            return np.where(later.reshape(1, T, *(1,) * (a.ndim - 2)), b, a)

        changed = w._replace(**{n: mixed(n) for n in ("obs", "return_to_go")})
        changed = changed._replace(action=np.where(later | (np.arange(T)[None, :, None] == t), other.action, w.action))
        found = apply(agent, changed)
        there = w.mask[:, : t + 1] > 0
        np.testing.assert_allclose(found[:, : t + 1][there], out[:, : t + 1][there], atol=1e-6)
        if t + 1 < T:
            assert np.abs(found[:, t + 1] - out[:, t + 1])[w.mask[:, t + 1] > 0].min() > 1e-4
    unread = w._replace(
        obs=np.where(w.mask[..., None] > 0, w.obs, 9.0), action=np.where(w.mask[..., None] > 0, w.action, 9.0)
    )
    there = w.mask > 0
    np.testing.assert_allclose(apply(agent, unread)[there], out[there], atol=1e-6)
    earlier = w._replace(action=np.where(np.arange(T)[None, :, None] == 1, other.action, w.action))
    assert np.abs(apply(agent, earlier)[0, 2] - out[0, 2]).min() > 1e-5


@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_acting_is_the_network_on_the_last_steps(spec):
    """Also before the window is full, after it has moved on, and past the last timestep that has an embedding."""
    dt, args, agent = setting(spec, target_return=5.0, return_scale=2.0)
    r, steps, n = np.random.default_rng(2), 9, 2
    obs = r.normal(size=(n, steps, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, steps - 1))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: np.stack([x] * n), dt.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward: dt.act(agent, carry, obs, reward, None, args))
    actions = []
    for t in range(steps):
        action, carry = act(carry, obs[:, t], reward[:, t])
        actions.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*actions[:-1], np.zeros_like(actions[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        wanted = (5.0 - np.cumsum(reward, 1)[:, at]) / 2.0
        w = Window(np.ones_like(wanted), timestep, obs[:, at], known, return_to_go=wanted)
        out = outputs(agent, w)[:, -1]
        if spec.discrete:
            np.testing.assert_array_equal(actions[-1], out.argmax(-1))
        else:
            close(actions[-1], out)


@pytest.mark.long
def test_a_cache_of_keys_and_values_gives_the_windows_actions_as_long_as_no_step_leaves_it():
    """By results/sequence_speed.py; later the window's steps have forgotten what they had seen, and the two differ."""
    dt, args, agent = setting(layers=2, return_scale=1.0)
    r = np.random.default_rng(2)
    obs, reward = r.normal(size=(T, 3)).astype(np.float32), r.normal(size=T).astype(np.float32)
    reward[0] = 0.0
    wanted = args.target_return - np.cumsum(reward)
    cached = jax.jit(cached_play)(agent, obs, wanted)

    @jax.jit
    def played(agent, args):
        def step(carry, given):
            action, carry = dt.act(agent, carry, given[0][None], given[1][None], None, args)
            return carry, action[0]

        first = jax.tree.map(lambda x: x[None], dt.initial_carry(agent, args))
        return jax.lax.scan(step, first, (obs, reward))[1]

    close(cached, played(agent, args))
    assert np.abs(cached - played(agent, dataclasses.replace(args, context=T - 1)))[-1].max() > 1e-3


@pytest.mark.long
def test_an_update_is_adamw_after_a_clip_with_a_warm_up():
    dt, args, agent = setting(
        return_scale=2.0, warmup_updates=4, weight_decay=0.1, learning_rate=0.01, max_grad_norm=0.1
    )
    w, key = window(), jax.random.key(0)
    scaled = w._replace(return_to_go=w.return_to_go / 2.0)
    grads = jax.jit(jax.grad(lambda p: dt.actor_loss(p, agent, scaled, key, args)[0]))(agent.actor)
    norm = np.asarray(jax.jit(optax.global_norm)(grads))
    assert norm > 0.1
    new, info = jax.jit(dt.update)(agent, w, key, args)
    close(info["grad_norm"], norm)
    g, p = (np.asarray(tree["params"]["head"]["kernel"]) for tree in (grads, agent.actor))
    g = g * 0.1 / norm
    close(new.actor["params"]["head"]["kernel"], p - 0.01 / 4 * (g / (np.abs(g) + 1e-8) + 0.1 * p))


@pytest.mark.long
def test_dropout_is_for_training_alone():
    dt, args, agent = setting(token_dropout=0.5)
    loss = jax.jit(dt.actor_loss)
    losses = [float(loss(agent.actor, agent, window(), jax.random.key(i), args)[0]) for i in range(2)]
    assert losses[0] != losses[1]
    close(apply(agent, window())[0], outputs(agent, window())[0])


def test_what_cannot_be_asked_is_refused(tmp_path, pendulum):
    dt = load("decision_transformer")
    data = load_dataset(pendulum, "Pendulum-v1")
    asked = dt.resolved(small("decision_transformer", pendulum, ""), data)
    assert asked.target_return == data.episode_returns().max() and asked.max_timestep == 200
    for changes, message in (
        ({"context": 31}, "has 30 rows"),
        ({"context": 201}, "end after 200 steps"),
        ({"target_return": 1e5}, "sign or scale"),
        ({"heads": 3}, "must be a multiple of --heads 3"),
        ({"heads": 0}, "must be a multiple of --heads 0"),
    ):
        with pytest.raises(InputError, match=message):
            dt.resolved(small("decision_transformer", pendulum, "", **changes), data)


@pytest.mark.long
def test_a_run_acts_as_it_was_evaluated_and_can_be_asked_for_another_return(tmp_path):
    """With discrete actions; the tests of lanes train continuous ones."""
    r, n, path = np.random.default_rng(0), 100, tmp_path / "cartpole.npz"
    rows = {"observations": r.normal(size=(n, 4)).astype(np.float32), "actions": r.integers(0, 2, n)}
    np.savez(path, **rows, rewards=np.ones(n, np.float32), terminals=np.arange(n) % 20 == 19)
    changes = {"eval_episodes": 2, "learning_rate": 0.01, "max_episode_steps": 6}
    agent = train("decision_transformer", str(path), tmp_path / "run", env="CartPole-v1", **changes)
    assert agent["[0].actor['params']['head']['kernel']"].shape[-1] == 2
    policies = load_run(tmp_path / "run")
    policy, env = policies.act_in(0), policies.task.make_env()
    total, reward, over, obs = 0.0, None, False, env.reset(seed=10_001)[0]
    while not over and total < 6:
        obs, reward, over, *_ = env.step(policy(obs, reward))
        total += reward
    last = (tmp_path / "run" / "returns.csv").read_text().splitlines()
    column = last[0].split(",").index("return")
    np.testing.assert_allclose(total, float(last[-1].split(",")[column]), rtol=1e-4)
    other = load_run(tmp_path / "run", {"target_return": "30"})
    assert (np.asarray(other.args.target_return) == 30).all()
    with pytest.raises(InputError, match="--set target_return=3600 is of another .* are 20 to 20."):
        load_run(tmp_path / "run", {"target_return": "3600"})
