"""HarmoDT: its loss and network in numpy, which weights masks exchange, and that each task acts by its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close, compiled
from transformer_in_numpy import SPEC, B, T, dense, norm, transformer, window

from shared.data import load_dataset
from shared.errors import InputError
from shared.task import env_task

SMALL = {
    "n_tasks": 1, "width": 8, "layers": 1, "heads": 2, "context": 3, "prompt_steps": 2, "mask_every": 2,
    "mask_change": 0.1, "task_batch": 4, "warmup_updates": 1000,
}  # fmt: skip
K, P = 3, 2
TINY = {"width": 8, "layers": 1, "heads": 2, "context": T, "prompt_steps": P, "task_batch": B, "n_tasks": K}
TINY |= {"token_dropout": 0.0, "max_timestep": 6, "return_scale": 2.0, "sparsity": 0.5, "updates": 10}
TINY |= {"learning_rate": 0.01, "warmup_updates": 1, "weight_decay": 0.1}
TOLD = SPEC._replace(obs_shape=(3 + K,))
"""Observations of three numbers, and which of three tasks it is."""


@pytest.fixture(scope="module")
def setting():
    """HarmoDT, its arguments, an agent with prompts, and windows of three tasks."""
    harmodt = compiled("harmodt")
    args = harmodt.Args(**TINY)
    agent = agent_of(harmodt, args, TOLD)
    prompts = window(seed=9, batch=K, steps=P)._replace(mask=np.ones((K, P), np.float32), reward=None, terminal=None)
    windows = [window(seed=k)._replace(reward=None, terminal=None) for k in range(K)]
    return harmodt, args, agent.replace(prompts=prompts), jax.tree.map(lambda *x: np.stack(x), *windows)


def under(agent, k):
    """The parameters of the task `k`: of the blocks the weights that its mask leaves, in the order of their names."""
    p, at, mask = jax.tree.map(np.asarray, agent.actor)["params"], 0, np.asarray(agent.masks[k])
    blocks = p["Transformer_0"]
    for block in sorted(name for name in blocks if name.startswith("Block")):
        for layer in sorted(name for name in blocks[block] if name.startswith("Dense")):
            kernel = blocks[block][layer]["kernel"]
            blocks[block][layer]["kernel"] = kernel * mask[at : at + kernel.size].reshape(kernel.shape)
            at += kernel.size
    assert at == len(mask)
    return p


def outputs(agent, k, w):
    """[B, T, A] of the task `k`, returns divided by 2."""
    p, found = under(agent, k), []
    for b in range(len(w.mask)):
        tokens, known = [], []
        for name, steps, at in (("prompt", agent.prompts, k), ("embed", w, b)):
            for t in range(len(steps.mask[at])):
                time = np.float64(p[f"{name}_time"]["embedding"])[min(steps.timestep[at, t], 5)]
                for kind, x in (
                    ("return", steps.return_to_go[at, t][None] / 2),
                    ("obs", steps.obs[at, t]),
                    ("action", steps.action[at, t]),
                ):
                    tokens.append(norm(p["LayerNorm_0"], dense(p[f"{name}_{kind}"], x) + time))
                    known.append(steps.mask[at, t])
        x = transformer(p["Transformer_0"], np.stack(tokens), np.array(known), 2)
        found.append(np.tanh(dense(p["head"], x[3 * P + 1 :: 3])))
    return np.stack(found)


@pytest.mark.long
def test_each_task_has_its_loss_and_gradient_under_its_own_mask(setting):
    harmodt, args, agent, windows = setting
    assert agent.masks.mean(1).tolist() == [0.5] * K and (agent.masks[0] != agent.masks[1]).any()
    losses, grads = jax.jit(harmodt.task_gradients)(agent, windows, jax.random.key(0), args)
    for k in range(K):
        w = jax.tree.map(lambda x, k=k: x[k], windows)
        there = w.mask > 0
        close(losses[k], ((outputs(agent, k, w) - w.action) ** 2)[there].mean())
    weights = jax.jit(lambda g: load("harmodt").weights_of(g)[0])
    gradients = np.asarray(jax.jit(jax.vmap(weights))(grads))
    assert np.abs(gradients[agent.masks == 0]).max() > 0  # of hidden weights, too
    new, info = jax.jit(harmodt.update)(agent, windows, jax.random.key(0), args)
    close(info["worst_loss"], losses.max())
    moved = np.asarray(weights(new.actor)) != np.asarray(weights(agent.actor))
    hidden = np.asarray(agent.masks).max(0) == 0
    assert hidden.any() and not moved[hidden].any() and moved[~hidden].mean() > 0.9
    under_masks = jax.jit(jax.vmap(harmodt.masked))(grads, agent.masks)
    own = weights(jax.tree.map(lambda g: np.asarray(g).mean(0), under_masks))
    close(own, (np.asarray(agent.masks) * np.asarray(gradients)).mean(0))


def test_masks_exchange_what_agrees_least_for_what_agrees_most():
    harmodt = compiled("harmodt")
    args, r = harmodt.Args(**TINY | {"harmony": 3.0}), np.random.default_rng(0)
    masks = np.float32(r.permuted(np.tile([1, 1, 1, 1, 0, 0], (K, 1)), axis=1))
    gradients = r.normal(size=(K, 6)).astype(np.float32)
    new = np.asarray(jax.jit(harmodt.exchanged)(masks, gradients, 1.0, args))
    mean = (masks * gradients).mean(0)
    for k in range(K):
        kept, hidden = np.flatnonzero(masks[k]), np.flatnonzero(masks[k] == 0)
        worth = 3.0 * mean * gradients[k] + gradients[k] ** 2
        out, taken = kept[worth[kept].argmin()], hidden[(mean * gradients[k])[hidden].argmax()]
        expected = masks[k].copy()
        expected[out], expected[taken] = 0, 1
        np.testing.assert_array_equal(new[k], expected)
    most = np.asarray(harmodt.exchanged(masks, gradients, 9.0, args))  # no more than are hidden
    assert (most.sum(1) == 4).all() and ((most != masks).sum(1) == 4).all()
    whole = np.ones((K, 6), np.float32)
    np.testing.assert_array_equal(harmodt.exchanged(whole, gradients, 1.0, args), whole)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    close(harmodt.cosines(gradients), np.mean([unit[i] @ unit[j] for i in range(K) for j in range(K) if i != j]))


def test_the_number_that_is_exchanged_falls_by_a_cosine(setting):
    harmodt, args, agent, windows = setting
    args = dataclasses.replace(args, mask_change=0.1)
    change = jax.jit(harmodt.harmonize)
    size = agent.masks.shape[1]
    for done, share in ((0, 1.0), (5, 0.5), (10, 0.0)):
        new, info = change(agent.replace(updates=jnp.int32(done)), windows, jax.random.key(0), args)
        given = np.asarray((new.masks < agent.masks).sum(1))
        assert given.tolist() == [round(0.1 * size * share)] * K
        close(info["exchanged"], given.mean() / size)
        close(info["density"], 0.5)


def test_by_default_masks_exchange_as_little_as_the_authors(setting):
    """At most 100 weights at a change; over a run about one of fifty."""
    harmodt, tiny, agent, _ = setting
    assert agent.masks.shape[1] == 12 * tiny.width**2 * tiny.layers
    args = harmodt.Args()
    size, changes = 12 * args.width**2 * args.layers, args.updates // args.mask_every
    assert 90 <= round(args.mask_change * size) <= 100
    assert 0.018 < args.mask_change * (0.5 + 0.5 * np.cos(np.pi * np.arange(1, changes + 1) / changes)).sum() < 0.022


def test_each_environment_is_acted_in_by_its_own_task(setting):
    """With the task left out of what the network sees; the window moves on, and what was earned is asked no more."""
    harmodt, args, agent, _ = setting
    args, r, n = dataclasses.replace(args, target_return=5.0), np.random.default_rng(2), 2
    obs = r.normal(size=(n, T + 1, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, T))], 1).astype(np.float32)
    tasks, actions = np.array([2, 0]), []
    carry = jax.tree.map(lambda x: np.stack([x] * n), harmodt.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward: harmodt.act(agent, carry, obs, reward, None, args))
    for t in range(T + 1):
        action, carry = act(carry, np.concatenate([obs[:, t], np.eye(K, dtype=np.float32)[tasks]], 1), reward[:, t])
        actions.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*actions[:-1], np.zeros_like(actions[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        wanted = 5.0 - np.cumsum(reward, 1)[:, at]
        w = harmodt.Window(np.ones_like(wanted), timestep, obs[:, at], known, return_to_go=wanted)
        for b, k in enumerate(tasks):
            close(actions[-1][b], outputs(agent, k, jax.tree.map(lambda x, b=b: x[b : b + 1], w))[0, -1])


def test_windows_and_prompts_are_of_their_task(tmp_path):
    harmodt, r, n = load("harmodt"), np.random.default_rng(0), 120
    task = np.repeat(np.tile(np.arange(K), 4), 10)  # episodes of ten rows
    seen = np.concatenate([r.normal(size=(n, 3)), np.eye(K)[task]], 1).astype(np.float32)
    rows = {"observations": seen, "actions": r.uniform(-1, 1, (n, 2)).astype(np.float32)}
    rows |= {"rewards": r.normal(size=n).astype(np.float32), "timeouts": np.arange(n) % 10 == 9}
    np.savez(path := tmp_path / "tasks.npz", **rows, terminals=np.zeros(n, bool))
    data, args = load_dataset(str(path), "none"), harmodt.Args(**TINY | {"task_batch": 200})
    found, prompts = harmodt.by_task(data, args)
    windows = jax.jit(lambda key: found.windows(key, args))(jax.random.key(0))
    assert windows.obs.shape == (K, 200, T, 3)
    row_of = {tuple(x): i for i, x in enumerate(seen[:, :3])}
    for k in range(K):
        there = np.asarray(windows.mask[k]) > 0
        rows_seen = {row_of[tuple(x)] for x in np.asarray(windows.obs[k])[there]}
        assert rows_seen == set(np.flatnonzero(task == k))
        begun = np.flatnonzero(task == k)[::10]
        best = begun[data.episode_returns()[begun // 10].argmax()]
        np.testing.assert_array_equal(prompts.obs[k], seen[best : best + P, :3])
    for changes, message in (({"n_tasks": 4}, "not a one among zeros"), ({"n_tasks": 6}, "not a one among zeros")):
        with pytest.raises(InputError, match=message):
            harmodt.main(small("harmodt", str(path), tmp_path / "run", env="none", **changes))
    fewer = data.select(task < 2)
    with pytest.raises(InputError, match="no row of task 3"):
        harmodt.by_task(fewer, args)
    changed = data.obs.copy()
    changed[1, -K:] = np.roll(changed[1, -K:], 1)
    with pytest.raises(InputError, match="of more than one task"):
        harmodt.by_task(dataclasses.replace(data, obs=changed), args)


def test_the_environment_must_have_as_many_tasks():
    harmodt = compiled("harmodt")
    task = env_task("TurnedPoint-v0")
    assert harmodt.of_tasks(task, harmodt.Args(n_tasks=8)).tasks == tuple(range(1, 9))
    assert harmodt.of_tasks(env_task("Pendulum-v1"), harmodt.Args(n_tasks=1)).tasks == ()
    for n in (1, 3):
        with pytest.raises(InputError, match=f"--n-tasks {n}: TurnedPoint-v0 has 8"):
            harmodt.of_tasks(task, harmodt.Args(n_tasks=n))
