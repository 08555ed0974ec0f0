"""MO-DT: its objectives and network in numpy, how their gradients are combined, and how it acts with regions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import close, differences
from transformer_in_numpy import SPEC, B, T, dense, norm, softmax, transformer, window

from shared.errors import InputError
from shared.sequences import Window

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "warmup_updates": 1000, "regions": 3}
TINY = {"width": 8, "layers": 1, "heads": 2, "context": T, "batch_size": B, "token_dropout": 0.0, "max_timestep": 6}
TINY |= {"return_scale": 2.0, "target_return": 5.0, "next_obs_weight": 0.5, "next_return_weight": 2.0}
TINY |= {"learning_rate": 0.01, "warmup_updates": 1, "weight_decay": 0.0, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def module():
    return load("mo_dt")


def setting(module, regions):
    """Nothing is compiled, and no parameter is zero."""
    args, r = module.Args(**TINY, regions=regions), np.random.default_rng(0)
    agent = jax.eval_shape(lambda key: module.init(key, args, SPEC), jax.random.key(0))
    agent = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), agent)
    actor = jax.tree.map(lambda x: np.float32(0.4 * r.normal(size=x.shape)), agent.actor)
    return args, agent.replace(actor=actor)


@pytest.fixture(scope="module")
def plain(module):
    return setting(module, 0)


@pytest.fixture(scope="module")
def parted(module):
    return setting(module, 3)


@pytest.fixture(scope="module")
def steps():
    return window()._replace(reward=None, terminal=None)


def region_of(action):
    """Of three parts of [-1, 1]."""
    return np.digitize(action, [-1 / 3, 1 / 3])


def outputs(agent, w, region=None):
    """Actions, logits of regions, next states and next returns of windows [B, T]."""
    p, n, found = agent.actor["params"], agent.net.regions, []
    kinds = 4 if n else 3
    region = region_of(w.action) if region is None else region
    for b in range(len(w.mask)):
        tokens, known = [], []
        for t in range(len(w.mask[b])):
            time = np.float64(p["Embed_0"]["embedding"])[min(w.timestep[b, t], 5)]
            told = [("return", w.return_to_go[b, t][None]), ("obs", w.obs[b, t]), ("action", w.action[b, t])]
            if n:
                told.insert(2, ("region", np.eye(n)[region[b, t]].ravel()))
            for name, x in told:
                tokens.append(norm(p["LayerNorm_0"], dense(p[f"embed_{name}"], x) + time))
                known.append(w.mask[b, t])
        x = transformer(p["Transformer_0"], np.stack(tokens), np.array(known), 2).reshape(-1, kinds, 8)
        action = np.tanh(dense(p["head_action"], x[:, -2]))
        logits = np.zeros(())
        if n:
            action = -1 + 2 * (region[b] + 0.5) / n + action / n
            logits = dense(p["head_region"], x[:, 1]).reshape(len(x), -1, n)
        found.append((action, logits, dense(p["head_obs"], x[:, -1]), dense(p["head_return"], x[:, -1])[:, 0]))
    return tuple(map(np.stack, zip(*found, strict=True)))


def losses(agent, w):
    """Of windows whose returns are scaled; row b has b mod 4 steps of padding."""
    action, logits, next_obs, next_return = outputs(agent, w)
    there, followed = w.mask > 0, (w.mask[:, :-1] > 0) & (w.mask[:, 1:] > 0)
    found = [
        ((action - w.action) ** 2)[there].mean(),
        ((next_obs[:, :-1] - w.obs[:, 1:]) ** 2)[followed].mean(),
        ((next_return[:, :-1] - w.return_to_go[:, 1:]) ** 2)[followed].mean(),
    ]
    if agent.net.regions:
        p = np.take_along_axis(softmax(logits), region_of(w.action)[..., None], -1)[..., 0]
        found.append(-np.log(p)[there].mean())
    return np.array(found)


def test_the_transformer_is_dts(module):
    assert not {"Transformer", "optimizer", "train"} & differences(module, load("decision_transformer"))


@pytest.mark.long
def test_with_regions_the_objectives_are_actions_states_returns_and_regions(module, parted, steps):
    args, agent = parted
    found, info = jax.jit(module.objectives)(agent.actor, agent, steps, jax.random.key(0))
    close(found, losses(agent, steps))
    close([info[f"{name}_loss"] for name in ("action", "obs", "return", "region")], found)
    assert 0.0 < float(info["attention_entropy"]) < 1.0
    np.testing.assert_array_equal(module.region_of(np.float32([-1, -0.4, -0.3, 0.3, 0.4, 1]), 3), [0, 0, 1, 1, 2, 2])


@pytest.mark.long
def test_equal_and_learned_weights(module, plain, steps):
    """Returns are divided by their scale; without weights there is DT's error of the actions alone."""
    args, agent = plain
    scaled = steps._replace(return_to_go=steps.return_to_go / 2.0)
    expected = losses(agent, scaled)
    c = np.float64(agent.actor["params"]["log_variance"])[:3]
    loss = jax.jit(module.weighted_loss)
    for changes, value, share in (
        ({}, expected @ [1, 0.5, 2], 1 / 3.5),
        ({"next_obs_weight": 0.0, "next_return_weight": 0.0}, expected[0], 1.0),
        ({"objective_weights": "uncertainty"}, (np.exp(-c) * expected + c).sum() / 2, np.exp(-c[0]) / np.exp(-c).sum()),
    ):
        found, info = loss(agent.actor, agent, scaled, jax.random.key(0), dataclasses.replace(args, **changes))
        close(found, value)
        close(info["action_weight"], share)
    new, info = jax.jit(module.update)(agent, steps, jax.random.key(0), args)
    close(info["loss"], expected @ [1, 0.5, 2])
    assert (new.actor["params"]["log_variance"] == agent.actor["params"]["log_variance"]).all()


def test_the_shortest_combination_of_gradients(module):
    """Against the simplex point by point; an objective that is the sum of others, and more, gets nothing."""
    r = np.random.default_rng(1)
    grid = np.array([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)]) / 40
    for rows in (r.normal(size=(3, 5)), np.diag([1.0, 2.0, 3.0]), np.array([[1.0, 0], [0, 1], [2, 2]])):
        gram = rows @ rows.T
        w = np.asarray(module.min_norm(jnp.float32(gram)))
        assert w.min() >= 0 and abs(w.sum() - 1) < 1e-5
        best = min(x @ gram @ x for x in grid)
        assert w @ gram @ w < best + 0.02 * np.trace(gram)
    close(np.asarray(module.min_norm(jnp.diag(jnp.float32([1, 1e9])))), [1.0, 0.0])
    assert w[2] < 0.05 and abs(w[0] - 0.5) < 0.05


@pytest.mark.long
def test_mgda_weighs_what_the_objectives_share(module, plain, steps):
    """The heads have no say in the weights, and go along with them."""
    args, agent = plain
    key = jax.random.key(0)

    @jax.jit
    def both(agent):
        each = jax.jacrev(lambda p: module.objectives(p, agent, steps, key)[0])(agent.actor)
        return each, module.mgda_gradient(agent, steps, key)

    each, (found, info) = jax.device_get(both(agent))
    shared = {name: x for name, x in each["params"].items() if "head" not in name}
    assert len(shared) == len(each["params"]) - 3
    rows = np.concatenate([x.reshape(3, -1) for x in jax.tree.leaves(shared)], 1)
    w = np.asarray(module.min_norm(jnp.asarray(rows @ rows.T)))
    close(info["action_weight"], w[0])
    assert not np.allclose(w, 1 / 3, atol=0.02)
    jax.tree.map(lambda g, e: close(g, np.tensordot(w, e, 1)), found, each)


@pytest.mark.long
def test_the_entropy_of_attention_is_a_share_of_that_of_even_attention(module):
    """Rows see one, two, three tokens; the first of four is padding, and what sees itself alone counts nothing."""
    even = np.float32([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1 / 2, 1 / 2, 0], [0, 1 / 3, 1 / 3, 1 / 3]])
    mask = np.float32([[0, 1, 1, 1]])
    close(module.attention_entropy(even[None, None], mask), 1.0)
    peaked = even.copy()
    peaked[3] = [0, 0, 0, 1]
    close(module.attention_entropy(np.stack([even, peaked])[None], mask), (1 + 0.5) / 2)


@pytest.mark.long
def test_the_region_is_chosen_first_and_the_action_within_it(module, parted):
    args, agent = parted
    params = jax.tree.map(np.array, agent.actor["params"])
    params["head_region"]["bias"][:] = [0.0, 0.0, -1.0, 0.0, 0.0, -1.0]  # so that several are chosen
    params["Transformer_0"]["LayerNorm_0"]["bias"][:] = 0.0
    agent = agent.replace(actor={"params": params})
    r, n = np.random.default_rng(2), 2
    obs = r.normal(size=(n, T + 1, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, T))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), module.initial_carry(agent, args))
    act, actions, chosen = jax.jit(lambda *x: module.act(agent, *x, None, args)), [], set()
    for t in range(T + 1):
        action, carry = act(carry, obs[:, t], reward[:, t])
        actions.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*actions[:-1], np.zeros_like(actions[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        wanted = (5.0 - np.cumsum(reward, 1)[:, at]) / 2.0
        w = Window(np.ones_like(wanted), timestep, obs[:, at], known, return_to_go=wanted)
        region = region_of(known)
        region[:, -1] = outputs(agent, w)[1][:, -1].argmax(-1)
        close(actions[-1], outputs(agent, w, region)[0][:, -1])
        np.testing.assert_array_equal(region_of(actions[-1]), region[:, -1])
        chosen |= set(region[:, -1].ravel().tolist())
    assert len(chosen) > 1


def test_what_cannot_be_learned_is_refused(pendulum, tmp_path):
    with pytest.raises(InputError, match="--context must be at least 2"):
        load("mo_dt").main(small("mo_dt", pendulum, tmp_path / "run", env="none", context=1))
    with pytest.raises(InputError, match="--regions 1: one region tells nothing"):
        load("mo_dt").main(small("mo_dt", pendulum, tmp_path / "run", env="none", regions=1))
