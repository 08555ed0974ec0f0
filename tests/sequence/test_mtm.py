"""MTM: its loss and network in numpy, what its masks hide, and how it acts in each of its uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_pendulum
from jobs import small
from reference import agent_of, close, exact_gelu
from transformer_in_numpy import SPEC, B, T, dense, norm, transformer

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "warmup_updates": 1000, "token_dropout": 0.1}
TINY = {"width": 8, "layers": 1, "heads": 2, "context": T, "batch_size": B, "token_dropout": 0.0}
NAMES = ("obs", "returns", "action")


def sinusoid(n, width=8):
    half = np.arange(width // 2)
    return np.array([[*np.sin(i / 10_000 ** (half / 4)), *np.cos(i / 10_000 ** (half / 4))] for i in range(n)])


def of_kind(p, i):
    return {name: x[i] for name, x in p.items()}


def filled(agent, parts, kept, there):
    """What the network makes of `parts`, one window at a time."""
    p, found = agent.model["params"], []
    for b in range(len(there)):
        tokens, at = [], [(i, t) for i in range(3) for t in range(len(there[b])) if kept[b, i, t]]
        for i, t in at:
            kind = np.float64(p["encoder_kinds"])[i, 0] + sinusoid(T)[t] / 2
            tokens.append(dense(p[f"embed_{NAMES[i]}"], np.float64(parts[i][b, t])) + kind)
        seen = transformer(p["encoder"], np.stack(tokens), np.ones(len(at)), 2, causal=False, activation=exact_gelu)
        tokens = []
        for i in range(3):
            for t in range(T):
                x = seen[at.index((i, t))] if (i, t) in at else np.float64(p["hidden"])[i, 0]
                tokens.append(
                    dense(of_kind(p["decode"], i), x) + np.float64(p["decoder_kinds"])[i, 0] + sinusoid(T)[t] / 2
                )
        x = transformer(p["decoder"], np.stack(tokens), np.tile(there[b], 3), 2, causal=False, activation=exact_gelu)
        heads = [norm(of_kind(p["norm"], i), x[i * T : i * T + T]) for i in range(3)]
        heads = [exact_gelu(dense(of_kind(p["last"], i), h)) for i, h in enumerate(heads)]
        found.append([dense(p[f"{n}_head"], h) for n, h in zip(NAMES, heads, strict=True)])
    return [np.stack(x) for x in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def setting():
    """MTM, its arguments, an agent, windows of which some end early and some actions are not known, and a mask."""
    mtm, r = load("mtm"), np.random.default_rng(0)
    args = mtm.Args(**TINY)
    there = np.float32(np.arange(T) < np.array([4, 3, 4, 2, 4])[:, None])
    known = np.array([[1] * 4, [1] * 4, [0] * 4, [1] * 4, [1, 0, 1, 1]], bool)
    parts = mtm.Parts(*(r.normal(size=(B, T, n)).astype(np.float32) for n in (3, 1, 2)))
    kept = np.float32(r.random((B, 3, T)) < 0.6)
    kept[:, 0, 0] = 1.0
    return mtm, args, agent_of(mtm, args, SPEC), parts, known, there, kept


def test_blocks_have_the_exact_gelu():
    """As the released code has it; JAX's default differs by 1e-4 here."""
    block, x = load("mtm").Block(1, 0.0), jnp.zeros((1, 1, 2))
    p = block.init(jax.random.key(0), x, jnp.ones((1, 1, 1), bool), False)["params"]
    p["Dense_2"] = {"kernel": jnp.zeros((2, 8)), "bias": jnp.full(8, -2.0)}
    p["Dense_3"] = {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)}
    out = block.apply({"params": p}, x, jnp.ones((1, 1, 1), bool), False)
    np.testing.assert_allclose(out, np.full((1, 1, 2), 8 * exact_gelu(-2.0)), rtol=1e-5)


def test_the_loss_is_the_error_of_all_that_is_there_from_what_is_kept(setting):
    mtm, args, agent, parts, known, there, kept = setting
    loss_of = jax.jit(mtm.model_loss)
    loss, info = loss_of(agent.model, agent, parts, known, there, kept, jax.random.key(0))
    real = np.stack([there, there, there * known], 1)
    out = filled(agent, parts, kept * real, there)
    errors = [((x - y) ** 2).mean(-1)[real[:, i] > 0].mean() for i, (x, y) in enumerate(zip(out, parts, strict=True))]
    for name, error in zip(NAMES, errors, strict=True):
        close(info[f"{name}_loss"], error)
    close(loss, sum(errors))
    close(info["kept"], (kept * real).sum() / real.sum())
    # What is hidden is seen by nothing: other numbers in its place change its own targets alone.
    hidden = [np.where((real[:, i] > 0)[..., None], x, 7.0).astype(np.float32) for i, x in enumerate(parts)]
    close(loss_of(agent.model, agent, mtm.Parts(*hidden), known, there, kept, jax.random.key(0))[0], loss)
    other = [np.where((kept[:, i] > 0)[..., None], x, 7.0).astype(np.float32) for i, x in enumerate(parts)]
    with_others = agent.net.apply(agent.model, mtm.Parts(*other), kept * real, there)
    for x, y in zip(with_others, out, strict=True):
        close(np.asarray(x)[there > 0], y[there > 0])


def test_autoregressive_masks_hide_what_follows_a_random_token_and_a_random_part_of_the_rest():
    mtm, n = load("mtm"), 20_000
    draw = jax.jit(mtm.draw_mask, static_argnums=1)
    kept = np.asarray(draw(jax.random.key(0), n, mtm.Args(**TINY | {"train_mask": "random"})))
    counts = np.floor(T * np.array(mtm.RATIOS) + 1e-4)
    np.testing.assert_array_equal(np.unique(kept.sum(-1)), np.unique(counts))
    np.testing.assert_allclose(kept.mean((0, 2)), counts.mean() / T, atol=0.01)
    kept = np.asarray(draw(jax.random.key(0), n, mtm.Args(**TINY)))
    position, share = np.arange(T), counts.mean() / T
    # P(t is kept) = share P(p > t) or, before the cut's kind, P(p >= t)
    later, now = (T - 1 - position) / T, (T - position) / T
    np.testing.assert_allclose(kept[:, 0].mean(0), share * (0.2 * later + 0.8 * now), atol=0.015)
    np.testing.assert_allclose(kept[:, 1].mean(0), share * (0.3 * later + 0.7 * now), atol=0.015)
    np.testing.assert_allclose(kept[:, 2].mean(0), share * later, atol=0.015)
    assert not kept[:, 2, -1].any() and kept[:, 0, -1].any()


def test_each_use_shows_what_it_says():
    mtm = load("mtm")
    shown = {
        use: np.asarray(mtm.kept_for(use, jnp.array([1]), 3)[0]).tolist()
        for use in ("bc", "rcbc", "inverse", "forward")
    }
    assert shown == {
        "bc": [[1, 1, 0], [0, 0, 0], [1, 0, 0]],
        "rcbc": [[1, 1, 0], [1, 1, 1], [1, 0, 0]],
        "inverse": [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
        "forward": [[1, 1, 0], [0, 0, 0], [1, 1, 0]],
    }
    args = mtm.Args(**TINY | {"train_mask": "forward"})
    drawn = np.asarray(mtm.draw_mask(jax.random.key(0), 50, args))
    allowed = [np.asarray(mtm.kept_for("forward", jnp.array([p]), T)[0]).tolist() for p in range(T)]
    assert {str(x.tolist()) for x in drawn} == {str(x) for x in allowed}


@pytest.mark.parametrize("use", ["rcbc", "two-stage"])
def test_acting_fills_in_the_present_action(use, setting):
    """While the window fills up from the left, and after it has moved on."""
    mtm, _, agent, *_ = setting
    args, r, n = mtm.Args(**TINY | {"act_as": use, "target": 0.9}), np.random.default_rng(2), 2
    obs = r.normal(size=(n, T + 2, 3)).astype(np.float32)
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), mtm.initial_carry(agent, args))
    act, actions = jax.jit(lambda carry, obs: mtm.act(agent, carry, obs, None, None, args)), []
    for t in range(T + 2):
        action, carry = act(carry, obs[:, t])
        actions.append(np.asarray(action))
        if use == "two-stage":
            kept = np.zeros((n, 3, T))
            kept[:, :2, 0] = 1
            asked = np.full((n, T, 1), 0.8)
            first = filled(
                agent, [np.repeat(obs[:, t : t + 1], T, 1), asked, np.zeros((n, T, 2))], kept, np.ones((n, T))
            )
            states = np.concatenate([obs[:, t : t + 1], first[0][:, 1:]], 1)
            kept[:, :2] = 1
            parts = [states, np.concatenate([asked[:, :1], first[1][:, 1:]], 1), np.zeros((n, T, 2))]
            out = filled(agent, parts, kept, np.ones((n, T)))[2][:, 0]
        else:
            at = min(t, T - 1)
            known = slice(t - at, t + 1)
            states, done = np.zeros((n, T, 3)), np.zeros((n, T, 2))
            states[:, : at + 1], done[:, : at + 1] = obs[:, known], np.stack([*actions[:-1], done[:, 0]], 1)[:, known]
            kept = np.asarray(mtm.kept_for(use, jnp.full(n, at), T))
            out = filled(agent, [states, np.full((n, T, 1), 0.8), done], kept, np.ones((n, T)))[2][:, at]
        close(actions[-1], np.clip(out, -1, 1))


def test_an_update_is_adamw_whose_biases_do_not_decay():
    mtm = load("mtm")
    args = mtm.Args(**TINY | {"learning_rate": 0.1, "weight_decay": 0.5, "warmup_updates": 2, "updates": 6})
    opt, params = mtm.optimizer(args), {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    state, step, rates = opt.init(params), jax.jit(opt.update), []
    for _ in range(6):
        updates, state = step(jax.tree.map(jnp.zeros_like, params), state, params)
        rates.append(-float(updates["kernel"][0]) / 0.5)
        assert updates["bias"][0] == 0.0
    falling = 0.5 * (1 + np.cos(np.pi * np.array([0, 0, 0, 1, 2, 3]) / 4))
    np.testing.assert_allclose(rates, 0.1 * np.array([0.5, 1, 1, 1, 1, 1]) * falling, rtol=1e-5)


def test_episodes_without_actions_are_half_of_what_is_drawn_and_returns_are_averages(tmp_path, capsys):
    mtm, path = load("mtm"), write_pendulum(tmp_path / "pendulum.npz")
    data = load_dataset(path, "Pendulum-v1")
    labelled = np.isin(data.episode(), [2, 7])
    hidden = dataclasses.replace(data, action=np.where(labelled[:, None], data.action, np.nan))
    args = mtm.Args(**TINY | {"holdout": 0.5})
    windows = mtm.windows_of(hidden, labelled, args)
    assert windows.judged.mask.shape == (27, T) and len(windows.data.start) == 270
    step, left = np.arange(300) % 30, data.return_to_go()
    average = left / (200 - step)
    (of,) = set(data.episode()[labelled]) - {
        int(np.flatnonzero(data.obs[:, 0] == x)[0]) // 30 for x in np.asarray(windows.judged.obs)[:, 0, 0]
    }
    trained = data.episode() != ({2, 7} - {of}).pop()
    close([windows.low, windows.high], [average[trained].min(), average[trained].max()])
    row = windows.data.rows(jax.random.key(0), 4000)
    window = windows.data.take(row, jnp.arange(T))
    parts, known = windows.parts(window)
    np.testing.assert_allclose(np.asarray(known)[:, 0].mean(), 0.5, atol=0.03)
    there = np.asarray(window.mask) > 0
    rows = np.flatnonzero(trained)[np.minimum(np.asarray(row)[:, None] + np.arange(T), 269)]
    expected = 2 * (average[rows] - windows.low) / (windows.high - windows.low) - 1
    close(np.asarray(parts.returns)[there][:, 0], expected[there])
    assert np.isfinite(parts.action).all()
    assert not capsys.readouterr().out.count("--holdout")
    for changes, which in (
        ({"holdout": 0.1}, "0 of the 2 with actions are held out, none has 4"),
        ({"context": 31}, "1 of the 2 with actions are held out, none has 31"),
    ):
        none = mtm.windows_of(hidden, labelled, dataclasses.replace(args, **changes))
        (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--holdout")]
        assert none.judged is None and f"the model is judged by no episode, since {which} such rows in a row." in told
    assert mtm.windows_of(hidden, labelled, dataclasses.replace(args, holdout=0.0)).judged is None
    assert not capsys.readouterr().out
    alone = mtm.windows_of(hidden, labelled, dataclasses.replace(args, labelled_only=True))
    assert len(alone.data.start) == 30 and alone.data.transitions.table is None


def test_the_model_is_judged_by_what_each_use_fills_in(setting):
    mtm, args, agent, parts, *_ = setting
    window = mtm.Window(
        mask=np.ones((B, T), np.float32),
        timestep=np.zeros((B, T), np.int32),
        obs=parts.obs,
        action=parts.action,
        return_to_go=parts.returns[..., 0],
    )
    windows = mtm.Windows(None, window, jnp.float32(1.0), jnp.float32(-1.0), jnp.float32(1.0))
    found = jax.jit(lambda: mtm.judge(agent, windows, args))()
    for use, at in (("bc", T - 1), ("rcbc", T - 1), ("inverse", T - 2), ("forward", T - 2)):
        out = filled(agent, parts, np.asarray(mtm.kept_for(use, jnp.full(B, at), T)), np.ones((B, T)))
        true, guess = (parts.obs[:, -1], out[0][:, -1]) if use == "forward" else (parts.action[:, at], out[2][:, at])
        close(found[f"{use}_error"], ((true - guess) ** 2).mean())


def test_a_trained_policy_is_asked_for_a_share_alone():
    check = load("mtm").CHECKS["target"]
    check(0.0, None), check(1.2, None)
    for target in (-0.5, 3600.0):
        with pytest.raises(InputError, match=f"--set target={target:g} is no share"):
            check(target, None)


def test_what_cannot_be_trained_is_refused(pendulum, tmp_path):
    for changes, message in (
        ({"context": 31}, "has 30 rows"),
        ({"context": 1}, "--context must be at least 2"),
        ({"width": 9, "heads": 3}, "--width even"),
        ({"heads": 3}, "must be a multiple of --heads 3"),
        ({"hide": ("rewards",)}, "actions alone may be missing"),
        ({"labelled_only": True, "labelled_unit": "transitions"}, "needs --labelled-unit episodes"),
        ({"holdout": 1.0}, "no episode with actions is left"),
        ({"target": 3600.0}, "--target 3600 is no share: 0 asks for an average reward to come of -"),
        ({"target": (0.5, -1.0)}, "--target -1 is no share"),
    ):
        with pytest.raises(InputError, match=message):
            load("mtm").main(small("mtm", pendulum, tmp_path / "run", **changes))
