"""GCPC: its losses and networks in numpy, what is hidden from the autoencoder, and how the policy acts."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, timeless, write_goals
from jobs import agents, small
from reference import agent_of, close, compiled, exact_gelu
from transformer_in_numpy import B, dense, relu, transformer, window

from shared.arguments import preset_for
from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset
from shared.run import launch
from shared.sequences import sequences
from shared.task import Spec

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "future_steps": 4, "slots": 2, "autoencoder_updates": 4}
SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0), goal_shape=(2,))
K, F, S = 4, 3, 2
TINY = {"width": 8, "layers": 1, "heads": 2, "context": K, "future_steps": F, "slots": S, "token_dropout": 0.0}
TINY |= {"batch_size": B, "hidden_dims": (8, 8)}


def setting(**changes):
    gcpc = compiled("gcpc")
    args = gcpc.Args(**TINY | changes)
    r = np.random.default_rng(3)
    past = window(steps=K)
    past = past._replace(mask=past.mask * np.float32([1, 0, 1, 1]))  # a state that is left out
    there = np.float32(np.arange(K + F) < np.array([7, 6, 5, 4, 7])[:, None])
    there[:, :K] *= window(steps=K).mask
    drawn, goal = r.normal(size=(B, K + F, 2)).astype(np.float32), r.normal(size=(B, 2)).astype(np.float32)
    return gcpc, args, agent_of(gcpc, args, SPEC), gcpc.PlanBatch(past, goal, drawn, jnp.asarray(there))


def sinusoid(n, width=8):
    half = np.arange(width // 2)
    return np.array([[*np.sin(i / 10_000 ** (half / 4)), *np.cos(i / 10_000 ** (half / 4))] for i in range(n)])


def plan(agent, obs, mask, goal):
    """[B, S, W]"""
    p, found = agent.autoencoder["params"], []
    for b in range(len(obs)):
        tokens = [*np.float64(p["slot"]), dense(p["embed_goal"], goal[b]), *dense(p["embed_obs"], obs[b])]
        known = np.array([1] * (S + 1) + [*mask[b]])
        tokens = np.stack(tokens) + sinusoid(S + 1 + K)
        found.append(transformer(p["encoder"], tokens, known, 2, causal=False, activation=exact_gelu)[:S])
    return np.stack(found)


def drawn(agent, slots):
    p, found = agent.autoencoder["params"], []
    for one in slots:
        tokens = np.concatenate([one, np.repeat(np.float64(p["hidden"])[None], K + F, 0)]) + sinusoid(S + K + F)
        x = transformer(p["decoder"], tokens, np.ones(S + K + F), 2, causal=False, activation=exact_gelu)
        found.append(dense(p["head"], x[S:]))
    return np.stack(found)


def acts(agent, obs, goal, slots):
    p = agent.actor["params"]
    now = relu(dense(p["Dense_0"], np.concatenate([obs, goal], -1)))
    x = np.concatenate([now, relu(dense(p["Dense_1"], slots.reshape(len(obs), -1)))], -1)
    return dense(p["Dense_4"], relu(dense(p["Dense_3"], relu(dense(p["Dense_2"], x)))))


@pytest.mark.long
def test_blocks_have_the_exact_gelu():
    """As the released code has it; JAX's default differs by 1e-4 here."""
    block, x, seen = load("gcpc").Block(1, 0.0), np.zeros((1, 1, 2), np.float32), np.ones((1, 1, 1), bool)
    p = jax.jit(block.init, static_argnums=3)(jax.random.key(0), x, seen, False)["params"]
    p["Dense_2"] = {"kernel": np.zeros((2, 8), np.float32), "bias": np.full(8, -2.0, np.float32)}
    p["Dense_3"] = {"kernel": np.ones((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    out = jax.jit(block.apply, static_argnums=3)({"params": p}, x, seen, False)
    np.testing.assert_allclose(out, np.full((1, 1, 2), 8 * exact_gelu(-2.0)), rtol=1e-5)


@pytest.mark.long
def test_the_whole_way_is_drawn_from_the_slots_alone():
    """Of steps that are left out or hidden too; what is beyond the episode counts nothing."""
    gcpc, args, agent, batch = setting()
    error = ((drawn(agent, plan(agent, batch.past.obs, batch.past.mask, batch.goal)) - batch.drawn) ** 2).mean(-1)
    there = np.asarray(batch.there) > 0
    loss, info = jax.jit(gcpc.reconstruction_loss)(agent.autoencoder, agent, batch, jax.random.key(0), args)
    close(loss, error[there].mean())
    close(info["future_error"], error[:, K:][there[:, K:]].mean())


@pytest.mark.long
def test_the_policy_is_cloned_with_the_plan_in_its_hand():
    gcpc, args, agent, batch = setting()
    slots = plan(agent, batch.past.obs, batch.past.mask, batch.goal)
    out = acts(agent, batch.past.obs[:, -1], batch.goal, slots)
    close(jax.jit(gcpc.actor_loss)(agent.actor, agent, batch, args), ((out - batch.past.action[:, -1]) ** 2).mean())
    new, _ = jax.jit(gcpc.update)(agent, batch, jax.random.key(0), args)
    jax.tree.map(np.testing.assert_array_equal, new.autoencoder, agent.autoencoder)  # frozen
    assert np.abs(new.actor["params"]["Dense_4"]["kernel"] - agent.actor["params"]["Dense_4"]["kernel"]).max() > 0
    new, _ = jax.jit(gcpc.fit)(agent, batch, jax.random.key(0), args)
    jax.tree.map(np.testing.assert_array_equal, new.actor, agent.actor)
    assert np.abs(new.autoencoder["params"]["slot"] - agent.autoencoder["params"]["slot"]).max() > 0


def test_gradients_of_both_stages_are_clipped_as_in_the_authors_trainer():
    """To a norm of 1: Adam sees 0.6 and 0.8 of them, which its first moment tells."""
    gcpc = compiled("gcpc")
    grads, default = {"a": jnp.float32([3.0]), "b": jnp.float32([4.0])}, gcpc.Args()
    assert default.max_grad_norm == 1.0
    for norm, expected in ((1.0, (0.06, 0.08)), (0.0, (0.3, 0.4))):
        args = gcpc.Args(**TINY | {"max_grad_norm": norm})
        tx = load("gcpc").clipped_adam(args.actor_lr, args)
        moment = jax.jit(lambda grads, tx=tx: tx.update(grads, tx.init(grads))[1])(grads)[1][0].mu
        np.testing.assert_allclose([*moment["a"], *moment["b"]], expected, rtol=1e-5)
    _, args, agent, batch = setting(max_grad_norm=1e-3)
    for step, opt in ((gcpc.fit, "autoencoder_opt"), (gcpc.update, "actor_opt")):
        new, _ = jax.jit(step)(agent, batch, jax.random.key(0), args)
        squares = [(np.float64(x) ** 2).sum() for x in jax.tree.leaves(getattr(new, opt)[1][0].mu)]
        np.testing.assert_allclose(np.sqrt(sum(squares)), 1e-4, rtol=1e-3)


def test_kitchen_has_the_authors_sizes():
    gcpc = load("gcpc")
    kitchen = gcpc.PRESETS[preset_for("kitchen-mixed-v0", gcpc.PRESETS)]
    found = {name: kitchen[name] for name in ("context", "future_steps", "actor_lr", "batch_size", "eval_episodes")}
    assert found == {"context": 5, "future_steps": 30, "actor_lr": 1e-4, "batch_size": 256, "eval_episodes": 50}


@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_drawn_for_each_row(hidden, tmp_path):
    """Goals are later states; the present state stays, or in the first stage one of those that are kept."""
    gcpc, n = compiled("gcpc"), 4000
    data = goal_dataset(load_dataset(write_goals(tmp_path / "goals.npz")))
    states = data.data.obs
    windows = gcpc.GoalWindows(sequences(data.data, "obs", "action"), None)
    args = gcpc.Args(**TINY | {"batch_size": n, "context": 5})
    batch = jax.jit(lambda key: gcpc.sample(key, windows, args, hidden))(jax.random.key(0))
    row_of = {tuple(x): i for i, x in enumerate(states)}
    row, goal = (np.array([row_of[tuple(y)] for y in np.asarray(x)]) for x in (batch.past.obs[:, -1], batch.goal))
    end, start = row // 30 * 30 + 29, row // 30 * 30
    assert ((goal > row) | (row == end)).all() and (goal <= end).all()
    near = row < end - 10
    np.testing.assert_allclose(((goal - row - 1) / np.maximum(end - row - 1, 1))[near].mean(), 0.5, atol=0.03)
    there = np.minimum(row - start + 1, 5)
    mask = np.asarray(batch.past.mask)
    assert (mask.sum(1) >= 1).all() and (mask <= (np.arange(5) >= 5 - there[:, None])).all()
    full = mask[there == 5]
    if hidden:
        np.testing.assert_allclose(full.sum(1).mean(), 0.8 * 3 + 0.05 * (2.2 + 1.6 + 1.2 + 1), atol=0.1)
        assert 0.5 < full[:, 0].mean() / full[:, -1].mean() < 1.0
        at = row[:, None] + np.arange(-4, F + 1)
        known = (at >= start[:, None]) & (at <= end[:, None])
        np.testing.assert_array_equal(batch.there, known)
        np.testing.assert_array_equal(np.asarray(batch.drawn)[known], states[at[known]])
    else:
        assert mask[:, -1].all() and (np.diff(mask, axis=1) >= 0).all()  # the last ones, without a hole
        np.testing.assert_allclose(np.bincount(full.sum(1).astype(int), minlength=6)[1:] / len(full),
                                   [0.05, 0.05, 0.05, 0.05, 0.8], atol=0.02)  # fmt: skip


def test_acting_reads_the_last_states_and_the_goal():
    gcpc, args, agent, _ = setting()
    r, n = np.random.default_rng(5), 2
    obs, goal = r.normal(size=(n, 6, 3)).astype(np.float32), r.normal(size=(n, 2)).astype(np.float32)
    carry = jax.tree.map(lambda x: np.stack([x] * n), gcpc.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs: gcpc.act(agent, carry, obs, goal, None, None, args))
    for t in range(6):
        action, carry = act(carry, obs[:, t])
        seen, mask = np.zeros((n, K, 3)), np.zeros((n, K))
        m = min(t + 1, K)
        seen[:, K - m :], mask[:, K - m :] = obs[:, t + 1 - m : t + 1], 1.0
        close(action, np.clip(acts(agent, obs[:, t], goal, plan(agent, seen, mask, goal)), -1, 1))


@pytest.mark.long
def test_without_slots_the_policy_is_a_network_on_state_and_goal():
    gcpc, args, agent, batch = setting(slots=0)
    p = agent.actor["params"]
    now = relu(dense(p["Dense_0"], np.concatenate([batch.past.obs[:, -1], batch.goal], -1)))
    out = dense(p["Dense_3"], relu(dense(p["Dense_2"], relu(dense(p["Dense_1"], now)))))
    close(jax.jit(gcpc.actor_loss)(agent.actor, agent, batch, args), ((out - batch.past.action[:, -1]) ** 2).mean())


@pytest.mark.long
def test_without_slots_there_is_no_phase_of_an_autoencoder(tmp_path, monkeypatch):
    """From the command line, as the claim gives it; what was drawn at first of the autoencoder is left as it was."""
    gcpc, out = load("gcpc"), tmp_path / "run"
    sizes = "--seeds 2 --updates 40 --log-every 20 --eval-every 40 --width 8 --layers 1 --heads 2 --context 3"
    sizes += " --future-steps 4 --batch-size 8 --hidden-dims 8 --slots 0 --autoencoder-updates 0"
    where = ["--dataset", write_goals(tmp_path / "goals.npz"), "--env", "none", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [gcpc.__file__, *where, *sizes.split()])
    launch(gcpc.main, gcpc.Args, gcpc.PRESETS, gcpc.__doc__)
    rows = timeless(out / "metrics.csv")
    assert [row["update"] for row in rows] == ["20", "20", "40", "40"] and "actor_loss" in rows[0]
    assert not (out / "before.csv").exists() or not timeless(out / "before.csv")
    agent = agents(out)
    assert agent["[0].actor_opt[1][0].count"].tolist() == [40, 40]
    assert agent["[0].autoencoder_opt[1][0].count"].tolist() == [0, 0]


def test_sizes_that_make_no_plan_are_refused(tmp_path):
    path = write_goals(tmp_path / "goals.npz")
    for changes, message in (
        ({"width": 9, "heads": 3}, "--width must be even, .* not 9, "),
        ({"future_steps": -1}, "--future-steps and --slots at least 0, not 8, -1 and "),
        ({"slots": -1}, "--future-steps and --slots at least 0, not .* and -1"),
        ({"width": 8, "heads": 3}, "--width 8 must be a multiple of --heads 3"),
        ({"context": 31}, "--context 31: "),
        ({"autoencoder_updates": 0}, "--autoencoder-updates 0: nothing would have learned the plan of --slots 2"),
        ({"slots": 0}, "--slots 0: without a plan --autoencoder-updates must be 0, not 4"),
    ):
        args = small("gcpc", path, tmp_path / "run", **{"width": 8, "heads": 2, **changes})
        with pytest.raises(InputError, match=message):
            load("gcpc").main(args)
