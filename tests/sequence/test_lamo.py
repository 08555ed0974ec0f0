"""LaMo: its losses and networks in numpy, what is learned and what stays, the text, and weights from a GPT-2 file."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close, gelu
from safetensors.numpy import save_file
from transformer_in_numpy import DISCRETE, SPEC, B, T, block, dense, norm, window

from shared.data import load_dataset
from shared.errors import InputError
from shared.sequences import Window

SMALL = {
    "width": 8, "layers": 1, "heads": 2, "context": 3, "warmup_updates": 1000, "language_updates": 4,
    "language_batch": 2, "language_length": 6, "bracket_kinds": 2, "rank": 2,
}  # fmt: skip
N = 7
TINY = {"width": 8, "layers": 2, "heads": 2, "context": T, "batch_size": B, "token_dropout": 0.0, "max_timestep": 6}
TINY |= {"rank": 2, "lora_alpha": 3.0, "bracket_kinds": 3, "language_length": N, "language_batch": 3}
TINY |= {"return_scale": 2.0, "language_weight": 0.5, "learning_rate": 0.01, "adapter_lr": 0.002, "weight_decay": 0.1}
TINY |= {"warmup_updates": 4, "max_grad_norm": 0.1}


def agent_with_a_change(lamo, args, spec=SPEC):
    """An agent whose language model, change and new parts are all in general position."""
    agent, r = agent_of(lamo, args, spec), np.random.default_rng(7)
    return agent.replace(actor=jax.tree.map(lambda x: x + 0.3 * r.normal(size=x.shape).astype(np.float32), agent.actor))


@pytest.fixture(scope="module")
def setting():
    """LaMo, its arguments, an agent, windows and text."""
    lamo = load("lamo")
    args = lamo.Args(**TINY)
    w = window(first=3)._replace(reward=None, terminal=None)
    text = np.random.default_rng(1).integers(0, 6, (3, N)).astype(np.int32)
    return lamo, args, agent_with_a_change(lamo, args), w, text


def blocks_of(agent, language=None):
    """The language model's parameters with the change, W + 3 / 2 A B."""
    p = jax.tree.map(np.float64, (language or agent.language)["params"])
    for name, own in jax.tree.map(np.float64, agent.actor.adapters).items():
        change = np.concatenate([own["a"][k] @ own["b"][k] for k in range(3)], 1)
        p[name]["Dense_0"] = {
            "kernel": p[name]["Dense_0"]["kernel"] + 1.5 * change,
            "bias": p[name]["Dense_0"]["bias"] + own["bias"],
        }
    return p


def trunk(p, x, mask):
    visible = np.tril(np.broadcast_to(mask > 0, (len(x), len(x))))
    for name in sorted(k for k in p if k.startswith("h_")):
        x = block(p[name], x, visible, 2, gelu)
    return norm(p["ln_f"], x)


def actions(agent, w, language=None):
    """[B, T, A] or logits, returns as the window has them."""
    p, tokens_p, head, spec = (
        blocks_of(agent, language),
        agent.actor.tokens["params"],
        agent.actor.head["params"],
        agent.spec,
    )
    found = []
    for b in range(len(w.mask)):
        tokens = []
        for t in range(len(w.mask[b])):
            time = np.float64(tokens_p["Embed_0"]["embedding"])[min(w.timestep[b, t], 5)]
            action = np.eye(spec.action_dim)[w.action[b, t]] if spec.discrete else w.action[b, t]
            for name, x in (("return", w.return_to_go[b, t][None]), ("obs", w.obs[b, t]), ("action", action)):
                own = tokens_p[f"embed_{name}"]
                h = dense(own["Dense_0"], x)
                tokens.append(norm(tokens_p["LayerNorm_0"], dense(own["Dense_1"], gelu(h)) + h) + time)
        x = trunk(p, np.stack(tokens), np.repeat(w.mask[b], 3))[1::3]
        found.append(dense(head["Dense_1"], gelu(dense(head["Dense_0"], x))))
    return np.stack(found)


def cross_entropy(p, text):
    """Mean of -log P(token | those before it)."""
    wte, wpe, found = p["wte"]["embedding"], p["wpe"]["embedding"], []
    for one in text:
        x = trunk(p, wte[one[:-1]] + wpe[: len(one) - 1], np.ones(len(one) - 1))
        logits = x @ wte.T
        log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(-log_prob[np.arange(len(one) - 1), one[1:]])
    return np.mean(found)


@pytest.fixture(scope="module")
def graded(setting):
    """The joint loss, its parts, and its gradients, of windows whose returns are divided."""
    lamo, args, agent, w, text = setting
    scaled = w._replace(return_to_go=w.return_to_go / 2.0)
    grad = jax.jit(jax.value_and_grad(lamo.joint_loss, has_aux=True))
    return grad(agent.actor, agent, scaled, text, jax.random.key(0), args), scaled


@pytest.mark.long
def test_the_loss_is_the_action_error_and_that_of_text_by_the_changed_language_model(setting, graded):
    _, _, agent, _, text = setting
    ((loss, info), _), scaled = graded
    acting = ((actions(agent, scaled) - scaled.action) ** 2)[scaled.mask > 0].mean()
    telling = cross_entropy(blocks_of(agent), text)
    close(info["actor_loss"], acting)
    close(info["language_loss"], telling)
    close(loss, acting + 0.5 * telling)


@pytest.mark.long
def test_an_update_leaves_the_language_model_and_learns_its_change_slowly(setting, graded):
    """Clipped together, with a warm-up."""
    lamo, args, agent, w, text = setting
    (_, grads), _ = graded
    new, info = jax.jit(lamo.update)(agent, w, text, jax.random.key(0), args)
    jax.tree.map(np.testing.assert_array_equal, new.language, agent.language)
    assert agent.actor.language == ()
    size = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert size > 0.1
    close(info["grad_norm"], size)
    parts = {
        "head": (lambda x: x.head["params"]["Dense_1"]["kernel"], 0.01),
        "tokens": (lambda x: x.tokens["params"]["embed_obs"]["Dense_0"]["kernel"], 0.01),
        "a": (lambda x: x.adapters["h_0"]["a"], 0.002),
        "b": (lambda x: x.adapters["h_1"]["b"], 0.002),
        "bias": (lambda x: x.adapters["h_1"]["bias"], 0.002),
    }
    for name, (part, rate) in parts.items():
        g, p = np.float64(part(grads)) * 0.1 / size, np.float64(part(agent.actor))
        step = np.where(np.abs(g) > 1e-6, g / (np.abs(g) + 1e-8), 0.0) + 0.1 * p
        there = np.abs(g) > 1e-6  # of keys' biases there is no gradient but rounding's
        assert there.mean() > 0.5, name
        close(np.where(there, part(new.actor), 0), np.where(there, p - rate / 4 * step, 0))


@pytest.mark.long
def test_all_weights_of_the_language_model_are_learned_if_asked_for(setting):
    lamo, _, _, w, text = setting
    args = lamo.Args(**TINY | {"adapt": "all", "layers": 1})
    agent = agent_with_a_change(lamo, args)
    scaled = w._replace(return_to_go=w.return_to_go / 2.0)
    new, info = jax.jit(lamo.update)(agent, w, text, jax.random.key(0), args)
    own = agent.actor.language
    close(info["actor_loss"], ((actions(agent, scaled, own) - scaled.action) ** 2)[scaled.mask > 0].mean())
    jax.tree.map(np.testing.assert_array_equal, new.language, agent.language)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), new.actor.language, own)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.long
def test_the_change_begins_as_none_and_discrete_actions_have_logits(setting):
    lamo, _, _, _, text = setting
    args = lamo.Args(**TINY | {"layers": 1})
    agent = agent_of(lamo, args, DISCRETE)
    unchanged = lamo.adapted(agent.language, agent.actor.adapters, args)
    jax.tree.map(np.testing.assert_array_equal, unchanged, agent.language)
    assert np.abs(agent.actor.adapters["h_0"]["a"]).max() > 0
    agent, w = agent_with_a_change(lamo, args, DISCRETE), window(DISCRETE)
    logits = actions(agent, w)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_prob, w.action[..., None], -1)[..., 0][w.mask > 0].mean()
    close(jax.jit(lamo.actor_loss)(agent.actor, agent, w, jax.random.key(0), args), expected)


def test_text_closes_what_was_opened_last():
    lamo = load("lamo")
    args = lamo.Args(bracket_kinds=3, language_length=200, language_batch=8)
    found = np.asarray(jax.jit(lambda key: lamo.texts(key, args, None))(jax.random.key(0)))
    assert found.shape == (8, 200) and np.unique(found).tolist() == list(range(6))
    deepest = 0
    for text in found:
        stack = []
        for token in text:
            if token < 3:
                stack.append(token)
            else:
                assert stack.pop() == token - 3
            deepest = max(deepest, len(stack))
    assert deepest == lamo.DEPTH
    assert len({tuple(x) for x in found}) == 8


def test_text_of_a_file_is_taken_piece_by_piece():
    lamo = load("lamo")
    args = lamo.Args(language_length=4, language_batch=300)
    found = np.asarray(jax.jit(lambda key: lamo.texts(key, args, jnp.arange(10, 20)))(jax.random.key(0)))
    assert {tuple(x) for x in found} == {tuple(range(i, i + 4)) for i in range(10, 17)}


@pytest.mark.long
def test_the_language_model_learns_before_the_policy_or_stays_as_it_was_drawn(setting):
    lamo, _, _, _, _ = setting
    args = lamo.Args(**TINY | {"layers": 1, "adapt": "all", "language_lr": 0.03})
    agent, keys = agent_of(lamo, args), jax.random.split(jax.random.key(0), 30)
    fit = jax.jit(lambda agent, keys, args: lamo.fit(agent, keys, args, None))
    new, first = fit(agent, keys, args)
    jax.tree.map(np.testing.assert_array_equal, new.actor.language, new.language)
    assert fit(new, keys, args)[1]["language_loss"] < first["language_loss"] - 0.1
    same, _ = fit(agent, keys, dataclasses.replace(args, language_lr=0.0))
    jax.tree.map(np.testing.assert_array_equal, same.language, agent.language)


def gpt2(width: int = 8, layers: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a small GPT-2 of 6 tokens and 9 places."""
    r, sizes = np.random.default_rng(seed), {"attn.c_attn": 3, "attn.c_proj": 1, "mlp.c_fc": 4}
    found = {"wte.weight": (6, width), "wpe.weight": (9, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    for i in range(layers):
        for name, times in sizes.items():
            found |= {f"h.{i}.{name}.weight": (width, times * width), f"h.{i}.{name}.bias": (times * width,)}
        found |= {f"h.{i}.mlp.c_proj.weight": (4 * width, width), f"h.{i}.mlp.c_proj.bias": (width,)}
        found |= {f"h.{i}.ln_{j}.{part}": (width,) for j in (1, 2) for part in ("weight", "bias")}
    return {name: r.normal(size=shape).astype(np.float32) for name, shape in found.items()}


def next_token_logits(w, text):
    """Of GPT-2 as it is published, [N, V]: x W + b everywhere, queries, keys and values side by side, two heads."""
    lin = lambda x, name: x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # noqa: E731
    ln = lambda x, name: norm({"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}, x)  # noqa: E731
    w = {name: np.float64(x) for name, x in w.items()}
    x = w["wte.weight"][text] + w["wpe.weight"][: len(text)]
    for i in range(2):
        q, k, v = np.split(lin(ln(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1)
        seen = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = np.where(np.tri(len(text)) > 0, q[:, h] @ k[:, h].T / 2.0, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            seen.append(weights / weights.sum(1, keepdims=True) @ v[:, h])
        x = x + lin(np.concatenate(seen, 1), f"h.{i}.attn.c_proj")
        x = x + lin(gelu(lin(ln(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return ln(x, "ln_f") @ w["wte.weight"].T


def write(path, arrays: dict) -> str:
    save_file(arrays, path)
    return str(path)


@pytest.mark.long
def test_weights_of_gpt2_tell_the_next_token_as_they_do_elsewhere(tmp_path, pendulum, monkeypatch):
    lamo, arrays, text = load("lamo"), gpt2(), np.int32([1, 5, 0, 3, 3, 2])
    masks = {"h.0.attn.bias": np.ones((1, 1, 9, 9), np.float32)}  # of older files
    named = {f"transformer.{name}": x for name, x in (arrays | masks).items()}
    language = lamo.read_gpt2(write(tmp_path / "gpt2.safetensors", named))
    args = lamo.Args(**TINY)
    net = lamo.Language(6, 9, 8, 2, 2, 0.0)
    close(jax.jit(net.apply)(language, text[None])[0], next_token_logits(arrays, text))
    agent = lamo.init(jax.random.key(0), args, SPEC, pretrained=language)
    jax.tree.map(np.testing.assert_array_equal, agent.language, language)
    monkeypatch.setattr(lamo, "GPT2_HEAD", 4)
    data = load_dataset(pendulum, "Pendulum-v1")
    asked = partial(lamo.resolved, data=data, pretrained=language)
    tell = small("lamo", pendulum, "", width=128, layers=3)
    told = asked(tell, text=np.arange(6, dtype=np.int32))
    assert (told.width, told.layers, told.language_updates) == (8, 2, 0)
    for changes, words, message in (
        ({}, np.arange(7), "token 6 is none of the language model's 6"),
        ({"language_length": 10}, np.arange(6), "has 9 places"),
        ({"language_length": 1}, np.arange(6), "--language-length must be at least 2"),
        ({}, None, "--text of a file, or --language-weight must be 0"),
        ({"heads": 3}, np.arange(6), "--heads 3: GPT-2's heads see 4 numbers each, of 8 here"),
        ({"heads": 4}, np.arange(6), "--heads 4: GPT-2's heads see 4 numbers each, of 8 here"),
    ):
        with pytest.raises(InputError, match=message):
            asked(dataclasses.replace(tell, **changes), text=words)


def test_what_is_no_gpt2_and_no_text_is_refused(tmp_path):
    lamo, arrays, path = load("lamo"), gpt2(layers=1), tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="no file of .safetensors: No such file"):
        lamo.read_gpt2(str(path))
    path.write_bytes(b"weights")
    with pytest.raises(InputError, match="no file of .safetensors: Error while"):
        lamo.read_gpt2(str(path))
    for part in ("wpe.weight", "h.0.mlp.c_fc.bias", "ln_f.bias"):
        with pytest.raises(InputError, match=f"no weights of GPT-2, there is no '{part}'"):
            lamo.read_gpt2(write(path, {n: x for n, x in arrays.items() if n != part}))
    for broken in (
        arrays | {"h.0.attn.c_attn.weight": np.zeros((8, 8), np.float32)},
        {n: arrays[n] for n in list(arrays)[:4]},
    ):
        with pytest.raises(InputError, match="no weights of GPT-2, whose blocks"):
            lamo.read_gpt2(write(path, broken))
    with pytest.raises(InputError, match="no .npy file"):
        lamo.read_text(str(tmp_path / "none.npy"), 3)
    for words, message in (
        (np.zeros((2, 5), int), "one row of whole numbers"),
        (np.zeros(2, int), "at least 3"),
        (np.zeros(9), "one row of whole numbers"),
        (np.arange(-1, 8), "from 0 on"),
    ):
        np.save(tmp_path / "text.npy", words)
        with pytest.raises(InputError, match=message):
            lamo.read_text(str(tmp_path / "text.npy"), 3)


@pytest.mark.long
def test_acting_is_the_network_on_the_last_steps(setting):
    """What it gives is not bounded, what is done is; what was earned is asked for no more."""
    lamo, args, agent, *_ = setting
    agent = agent.replace(actor=agent.actor._replace(head=jax.tree.map(lambda x: 2.0 * x, agent.actor.head)))
    args, r, n = dataclasses.replace(args, target_return=5.0), np.random.default_rng(2), 2
    obs = r.normal(size=(n, T + 1, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, T))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), lamo.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward: lamo.act(agent, carry, obs, reward, None, args))
    done, free = [], []
    for t in range(T + 1):
        action, carry = act(carry, obs[:, t], reward[:, t])
        done.append(np.asarray(action))
        at = slice(max(0, t + 1 - T), t + 1)
        known = np.stack([*done[:-1], np.zeros_like(done[0])], 1)[:, at]
        timestep = np.broadcast_to(np.arange(t + 1)[at], (n, min(t + 1, T)))
        wanted = (5.0 - np.cumsum(reward, 1)[:, at]) / 2.0
        w = Window(np.ones_like(wanted), timestep, obs[:, at], known, return_to_go=wanted)
        free.append(actions(agent, w)[:, -1])
        close(done[-1], np.clip(free[-1], -1.0, 1.0))
    assert np.abs(free).max() > 1.0
