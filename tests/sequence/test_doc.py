"""DoC: its losses in numpy, who is trained against whom, its batches, and how it acts."""

import jax
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close, compiled
from test_sequences import TERMINAL, log
from transformer_in_numpy import DISCRETE, SPEC, B, T, dense, norm, relu, transformer, window

from shared.errors import InputError
from shared.sequences import sequences

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "future": 2, "prior_samples": 3, "warmup_updates": 1000}
TINY = {"width": 8, "layers": 1, "heads": 2, "context": T, "future": T, "batch_size": B, "token_dropout": 0.0}
TINY |= {"latent_dim": 3, "max_timestep": 6, "prior_samples": 7}
KNOWN = np.float32(np.arange(B) != 1)
"""The second outcome is not."""


def setting(spec=SPEC, **changes):
    doc = compiled("doc")
    args = doc.Args(**TINY | changes)
    r = np.random.default_rng(4)
    future = window(spec, seed=1)
    future = future._replace(**{n: getattr(future, n)[:, ::-1] for n in ("mask", "obs", "action", "reward")})
    next_obs, (reward, togo) = r.normal(size=(B, 3)).astype(np.float32), r.normal(size=(2, B)).astype(np.float32)
    batch = doc.DocBatch(window(spec, first=3), future, togo, window(spec, seed=2, first=1), reward, next_obs, KNOWN)
    return doc, args, agent_of(doc, args, spec), batch


def mlp(p, *inputs):
    return dense(p["Dense_1"], relu(dense(p["Dense_0"], np.concatenate(inputs, -1))))


def tokens(p, net, w):
    """[B, T, 3, W] of the trunk."""
    found = []
    for b in range(len(w.mask)):
        x = []
        for t in range(w.mask.shape[1]):
            time = np.float64(p["Embed_0"]["embedding"])[min(w.timestep[b, t], net.max_timestep - 1)]
            action = np.eye(net.spec.action_dim)[w.action[b, t]] if net.spec.discrete else w.action[b, t]
            for name, y in (("reward", w.reward[b, t][None]), ("obs", w.obs[b, t]), ("action", action)):
                x.append(norm(p["LayerNorm_0"], dense(p[f"embed_{name}"], y) + time))
        found.append(transformer(p["Transformer_0"], np.stack(x), np.repeat(w.mask[b], 3), net.heads))
    return np.stack(found).reshape(*w.mask.shape, 3, -1)


def gaussian(p, x):
    mean, log_std = np.split(dense(p, x), 2, -1)
    return mean, np.clip(log_std, -5, 2)


def parts(doc, args, agent, batch, key):
    """h, z, q, prior, action, value in numpy; the noise of z is that of the loss."""
    spec = agent.nets.classifier.spec
    p, e = agent.actor["params"], agent.encoder["params"]
    h = tokens(p["trunk"], agent.nets.actor.trunk, batch.past)[:, -1, 1]
    last = batch.future.mask.sum(1).astype(int) - 1
    q = gaussian(e["Dense_0"], tokens(e["trunk"], agent.nets.encoder.trunk, batch.future)[np.arange(B), last, 2])
    z = q[0] + np.exp(q[1]) * np.asarray(jax.random.normal(jax.random.split(key, 3)[2], (B, 3)))
    out = mlp(p["action_head"], h, z)
    return (
        h,
        z,
        q,
        gaussian(p["prior_head"], h),
        out if spec.discrete else np.tanh(out),
        mlp(p["value_head"], h, z)[:, 0],
    )


def information(agent, batch, h, z):
    c, spec = agent.classifier["params"], agent.nets.classifier.spec
    action = np.asarray(batch.later.action)[:, -1]
    action = np.eye(spec.action_dim)[action] if spec.discrete else action
    outcome = mlp(c["MLP_1"], batch.reward[:, None], batch.next_obs)
    f = mlp(c["MLP_0"], h, action, z) @ outcome.T
    known = KNOWN > 0
    return (np.diag(f) - np.log(np.exp(f[:, known]).mean(1)))[known].mean()


@pytest.mark.long
@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_the_loss_is_the_sum_of_its_four_parts(spec):
    weights = {"value_weight": 0.7, "prior_weight": 0.3, "mi_weight": 2.0}
    doc, args, agent, batch = setting(spec, **weights)
    key = jax.random.key(3)
    h, z, q, p, out, v = parts(doc, args, agent, batch, key)
    action = np.asarray(batch.past.action)[:, -1]
    if spec.discrete:
        loss_pi = -(out[np.arange(B), action] - np.log(np.exp(out).sum(-1))).mean()
    else:
        loss_pi = ((out - action) ** 2).mean()
    loss_v = ((v - batch.return_to_go) ** 2).mean()
    kl = (p[1] - q[1] + (np.exp(2 * q[1]) + (q[0] - p[0]) ** 2) / (2 * np.exp(2 * p[1])) - 0.5).sum(-1).mean()
    h = tokens(agent.actor["params"]["trunk"], agent.nets.actor.trunk, batch.later)[:, -1, 1]
    mi = information(agent, batch, h, z)
    loss, (info, (seen, latent)) = jax.jit(doc.actor_loss)((agent.actor, agent.encoder), agent, batch, key, args)
    for found, wanted in ((seen, h), (latent, z), (info["actor_loss"], loss_pi), (info["value_loss"], loss_v)):
        close(found, wanted)
    close(info["kl"], kl)
    close(info["mi"], mi)
    close(loss, loss_pi + 0.7 * loss_v + 0.3 * kl + 2.0 * mi)
    close(jax.jit(doc.classifier_loss)(agent.classifier, agent, batch, seen, latent), -mi)


@pytest.mark.long
def test_the_classifier_and_the_encoder_pull_in_opposite_directions():
    """f learns to tell outcomes by z, the encoder to keep z from telling; what the policy sees is not bent by it."""
    doc, _, agent, batch = setting()
    key = jax.random.key(0)

    @jax.jit
    def grads(weight):
        args = doc.Args(**TINY, mi_weight=weight)
        loss = lambda params: doc.actor_loss(params, agent, batch, key, args)[0]  # noqa: E731
        return jax.grad(loss)((agent.actor, agent.encoder))

    (actor, encoder), (actor_0, encoder_0) = grads(1.0), grads(0.0)
    jax.tree.map(np.testing.assert_array_equal, actor, actor_0)
    step = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), encoder, encoder_0)
    moved = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(1e-3) * g, agent.encoder, step)

    @jax.jit
    def told(encoder):
        q = agent.nets.encoder.apply(encoder, batch.future)
        h = agent.nets.actor.apply(agent.actor, batch.later, method="seen")
        return doc.information(agent, agent.classifier, h, batch, q.sample(jax.random.split(key, 3)[2]))

    assert told(moved) < told(agent.encoder)
    h, z = np.ones((B, 8), np.float32), np.ones((B, 3), np.float32)
    back = jax.jit(jax.grad(lambda h, z: doc.classifier_loss(agent.classifier, agent, batch, h, z), (0, 1)))(h, z)
    assert not any(np.asarray(x).any() for x in back)


@pytest.mark.long
def test_past_and_future_of_a_step():
    """The past tells the reward of the step before; the future begins with the present step."""
    doc = compiled("doc")
    data = sequences(log(), "obs", "action", "reward", "next_obs", "return_to_go", "successor")
    args = doc.Args(context=3, future=2, return_scale=10.0)
    batch = doc.batch_of(data, np.array([1, 6, 3]), np.array([2, 6, 4]), args)
    assert batch.past.obs[..., 0].tolist() == [[0, 0, 1], [4, 5, 6], [0, 0, 3]]
    assert batch.past.mask.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert batch.past.reward.tolist() == [[0, 0, 1], [10, 20, 30], [0, 0, 0]]
    assert batch.future.reward.tolist() == [[2, 3], [40, 0], [10, 20]]
    assert batch.future.mask.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert batch.later.obs[..., 0].tolist() == [[0, 1, 2], [4, 5, 6], [0, 3, 4]]
    assert batch.later.reward.tolist() == [[0, 1, 2], [10, 20, 30], [0, 0, 10]]
    assert batch.reward.tolist() == [3, 40, 20] and batch.next_obs[:, 0].tolist() == [3, 7, 5]
    close(batch.return_to_go, [0.5, 4.0, 10.0])
    hidden = sequences(log(successor=~TERMINAL), "obs", "action", "reward", "next_obs", "return_to_go", "successor")
    ends = np.flatnonzero(TERMINAL)
    assert doc.batch_of(hidden, ends, ends, args).known.tolist() == [0.0] * len(ends) and batch.known.all()


@pytest.mark.long
def test_every_step_that_z_is_made_of_is_kept_from_it():
    """Of a step's future, cut where its episode ends, each step is drawn as often as another."""
    doc = compiled("doc")
    data = sequences(log(), "obs", "action", "reward", "next_obs", "return_to_go", "successor")
    batch = doc.sample(jax.random.key(0), data, doc.Args(context=2, future=3, return_scale=1.0, batch_size=4000))
    row, later = (np.asarray(w.obs)[:, -1, 0].astype(int) for w in (batch.past, batch.later))
    end = np.asarray(data.end)
    for i in range(8):
        counts = np.bincount(later[row == i], minlength=8)
        there = (np.arange(8) >= i) & (np.arange(8) <= min(i + 2, end[i]))
        assert not counts[~there].any() and (counts[there] > 0.8 * counts.sum() / there.sum()).all()


@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
def test_it_acts_on_the_latent_of_the_highest_value(spec):
    """Step by step, with the rewards that led to each observation, also after the window has moved on."""
    doc, args, agent, _ = setting(spec)
    r, steps = np.random.default_rng(2), 6
    obs = r.normal(size=(1, steps, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((1, 1)), r.normal(size=(1, steps - 1))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: np.asarray(x)[None], doc.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward, key: doc.act(agent, carry, obs, reward, key, args))
    p, actions = agent.actor["params"], []
    for t in range(steps):
        key = jax.random.fold_in(jax.random.key(9), t)
        action, carry = act(carry, obs[:, t], reward[:, t], key)
        actions.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*actions[:-1], np.zeros_like(actions[0])], 1)[:, at]
        w = window(spec, batch=1)._replace(mask=np.ones((1, len(known[0]))), timestep=np.arange(t + 1)[None, at])
        w = w._replace(obs=obs[:, at], action=known, reward=reward[:, at])
        h = tokens(p["trunk"], agent.nets.actor.trunk, w)[:, -1, 1]
        mean, log_std = gaussian(p["prior_head"], h)
        z = (mean + np.exp(log_std) * np.asarray(jax.random.normal(key, (7, 1, 3))))[:, 0]
        v = mlp(p["value_head"], np.repeat(h, 7, 0), z)[:, 0]
        out = mlp(p["action_head"], h, z[[v.argmax()]])
        if spec.discrete:
            assert actions[-1][0] == out.argmax()
        else:
            close(actions[-1], np.tanh(out))


@pytest.mark.long
def test_what_cannot_be_asked_is_refused(tmp_path, pendulum):
    for changes, message in (
        ({"context": 31}, "--context 31: "),
        ({"future": 31}, "--future 31: "),
        ({"width": 8, "heads": 3}, "--width 8 must be a multiple of --heads 3"),
    ):
        args = small("doc", pendulum, tmp_path / "run", **{"context": 2, "future": 2, **changes})
        with pytest.raises(InputError, match=message):
            load("doc").main(args)
