"""Metamon: its losses in numpy, PopArt, what carries no gradient, its windows, and how it acts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import agent_of, close
from test_sequences import log
from transformer_in_numpy import DISCRETE, block, dense, norm, softmax

from shared.errors import InputError
from shared.sequences import sequences, shown

SMALL = {"width": 8, "layers": 1, "heads": 2, "context": 3, "train_discounts": (0.5,), "n_critics": 2}
TINY = {"width": 6, "layers": 1, "heads": 2, "hidden_dims": (5,), "context": 3, "train_discounts": (0.5,)}
TINY |= {"n_critics": 3, "discount": 0.9, "memory": 2.0, "batch_size": 5, "popart_rate": 0.3, "critic_weight": 7.0}
B, K, G, E, A = 5, 3, 2, 3, 4


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def setting(**changes):
    """The module, arguments, an agent whose PopArt has seen something, and rows [B, K + 1] of a log."""
    metamon = load("metamon")
    args = metamon.Args(**TINY | changes)
    r = np.random.default_rng(3)
    moments = {"mean": [0.5, -1.0], "square": [3.0, 9.0], "scale": [0.7, 1.3], "shift": [0.2, -0.4]}
    popart = metamon.PopArt(*(jnp.float32(moments[n]) for n in moments), jnp.int32(4))
    agent = agent_of(metamon, args, DISCRETE).replace(popart=popart)
    first = np.array([0, 2, 0, 7, 1])[:, None]  # timestep of a window's first step
    length = np.array([3, 3, 1, 2, 3])[:, None]  # steps of the window that are there
    offset = np.arange(-1, K)
    mask = (offset + first >= 0) & (offset < length)
    known = {
        "timestep": np.int32(first + offset),
        "obs": r.normal(size=(B, K + 1, 3)),
        "action": r.integers(0, A, (B, K + 1)).astype(np.int32),
        "reward": r.normal(size=(B, K + 1)),
        "terminal": (offset == length - 1) * (np.arange(B)[:, None] < 3),
        "next_obs": r.normal(size=(B, K + 1, 3)),
    }
    known["obs"][:, 1:] = known["next_obs"][:, :-1]
    rows = shown(mask, {n: jnp.asarray(np.float32(x) if x.dtype != np.int32 else x) for n, x in known.items()})
    return metamon, args, agent, rows


def heads(params, h):
    """[..., G, A]"""
    p = params["params"]
    return dense(p["Dense_1"], leaky(dense(p["Dense_0"], h))).reshape(*h.shape[:-1], -1, A)


def ensemble(params, h):
    return np.stack([heads(jax.tree.map(lambda x, i=i: x[i], params), h) for i in range(E)])


def embedded(agent, obs, action, reward, timestep, memory):
    """h [n, W] of the states of one episode, or of a part of it: none is padding."""
    p, h = agent.trunk["params"], []
    for t in range(len(obs)):
        before = float(timestep[t] > 0)
        x = np.concatenate([obs[t], before * np.eye(A)[action[t]], [before * reward[t]]])
        x = dense(p["Dense_1"], leaky(dense(p["Dense_0"], x)))
        waves = timestep[t] / 10_000 ** (np.arange(3) / 2)
        h.append(x + np.concatenate([np.sin(waves), np.cos(waves)]))
    age = np.arange(len(obs))[:, None] - np.arange(len(obs))
    h = block(p["Block_0"], np.stack(h), (age >= 0) & (age < memory), 2, leaky)
    return norm(p["LayerNorm_0"], h)


def by_hand(agent, rows, key, args):
    """Of all steps that are there: what the losses are made of, in numpy."""
    rows = jax.tree.map(np.asarray, rows)
    drawn = np.asarray(jax.random.randint(key, (2, B, K, G), 0, E))
    gammas, found = np.array([0.5, 0.9]), []
    mean, square, scale, shift, _ = map(np.asarray, agent.popart)
    std = np.sqrt(square - mean**2)
    for b in range(B):
        n = int(rows.mask[b, 1:].sum())
        obs = np.concatenate([rows.obs[b, 1 : n + 1], rows.next_obs[b, n : n + 1]])
        time = rows.timestep[b, 1] + np.arange(n + 1)
        h = embedded(agent, obs, rows.action[b], rows.reward[b], time, args.memory)
        for t in range(n):
            action, nxt = rows.action[b, t + 1], h[t + 1]
            pi = softmax(heads(agent.target_actor, nxt))
            v = std * (scale * (pi * ensemble(agent.target_critic, nxt)).sum(-1) + shift) + mean  # [E, G]
            v = np.mean([v[drawn[i, b, t], np.arange(G)] for i in range(2)], axis=0)
            y = 10.0 * rows.reward[b, t + 1] + gammas * (1 - rows.terminal[b, t + 1]) * v
            x, pi = ensemble(agent.critic, h[t]), softmax(heads(agent.actor, h[t]))
            adv = x[..., action].mean(0) - (pi * x.mean(0)).sum(-1)
            found.append((y, x[..., action], adv, np.log(pi)[:, action], h[t], action))
    y, q, adv, log_prob, embedding, action = (np.stack(x) for x in zip(*found, strict=True))
    step = 0.3 / (1 - 0.7**6)
    new_mean, new_square = mean + step * (y.mean(0) - mean), square + step * ((y**2).mean(0) - square)
    new_std = np.sqrt(new_square - new_mean**2)
    new_scale, new_shift = scale * std / new_std, (std * shift + mean - new_mean) / new_std
    target_q = (y - new_mean) / new_std
    loss_q = ((new_scale * q + new_shift - target_q[:, None]) ** 2).mean()
    moved = new_mean, new_square, new_scale, new_shift
    return loss_q, new_scale * adv, log_prob, moved, (embedding, action, target_q)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["binary", "exp", "none"])
def test_the_losses_and_the_moments(kind):
    metamon, args, agent, rows = setting(filter=kind, beta=0.7, max_weight=1.2)
    key, params = jax.random.key(5), (agent.trunk, agent.actor, agent.critic)
    loss_q, adv, log_prob, moments, _ = by_hand(agent, rows, key, args)
    assert 0.2 < (adv > 0).mean() < 0.8 and 0.1 < (np.exp(0.7 * adv) > 1.2).mean() < 0.8
    weight = {"binary": adv > 0, "exp": np.minimum(np.exp(0.7 * adv), 1.2), "none": np.ones_like(adv)}[kind]
    loss, (popart, info) = jax.jit(metamon.total_loss)(params, agent, rows, key, args)
    close(info["actor_loss"], -(weight * log_prob).mean())
    close(info["weight"], weight[:, -1].mean())
    if kind == "none":
        close(loss, info["actor_loss"])
        assert "critic_loss" not in info and popart.count == 4
        return
    close(info["critic_loss"], loss_q)
    close(loss, info["actor_loss"] + 7.0 * loss_q)
    for new, wanted in zip(popart, (*moments, 5), strict=True):
        close(new, wanted)


@pytest.mark.long
def test_targets_and_filter_carry_no_gradient_and_the_embedding_learns_from_both_losses():
    metamon, args, agent, rows = setting(filter="exp")
    key, params = jax.random.key(2), (agent.trunk, agent.actor, agent.critic)
    step = jax.tree.map(lambda x: x[:, 1:], rows)

    def embed(trunk):
        return agent.nets.trunk.apply(trunk, metamon.states_of(rows), args.memory)

    @jax.jit
    def fixed(h):
        y = metamon.td_target(agent, h[:, 1:], step, key, args)
        popart = agent.popart.moved(y, step.mask, args.popart_rate)
        return y, popart, metamon.advantage(agent, popart, h[:, :-1], step)

    y, popart, adv = fixed(embed(agent.trunk))

    def with_constants(params):
        trunk, actor, critic = params
        h = embed(trunk)[:, :-1]
        loss_q, _ = metamon.critic_loss(critic, agent, popart, h, step, y)
        return metamon.actor_loss(actor, agent, h, step, adv, args)[0] + args.critic_weight * loss_q

    found = jax.jit(jax.grad(lambda p: metamon.total_loss(p, agent, rows, key, args)[0]))(params)
    jax.tree.map(close, found, jax.jit(jax.grad(with_constants))(params))
    assert all(np.abs(x).max() > 0 for tree in found for x in jax.tree.leaves(tree)[:1])


@pytest.mark.long
def test_an_update_is_one_step_on_both_losses_then_one_of_the_targets():
    """Gradients of the last layers of actor and critics, by hand, in AdamW's moments after a clip; its step; the rest.

    Of -f log pi they are -f (1[a] - pi) at the logits, of (scale x + shift - y)^2 twice the error times scale at x.
    """
    metamon, args, agent, rows = setting(
        filter="exp", beta=0.7, max_weight=1.2, learning_rate=0.01, weight_decay=0.1, warmup_updates=4, tau=0.25,
        max_grad_norm=0.1,
    )  # fmt: skip
    key = jax.random.key(5)
    new, info = jax.jit(metamon.update)(agent, rows, key, args)
    loss_q, adv, log_prob, moments, (h, action, target_q) = by_hand(agent, rows, key, args)
    weight, n = np.minimum(np.exp(0.7 * adv), 1.2), len(h)
    close(info["critic_loss"], loss_q)
    close(info["actor_loss"], -(weight * log_prob).mean())
    for x, wanted in zip(new.popart, (*moments, 5), strict=True):
        close(x, wanted)

    def of_last_layer(params, outputs):
        hidden = leaky(dense(params["params"]["Dense_0"], h))
        return {"kernel": hidden.T @ outputs.reshape(n, -1), "bias": outputs.reshape(n, -1).sum(0)}

    chosen = np.eye(A)[action][:, None]  # [n, 1, A]
    logits = -weight[..., None] * (chosen - softmax(heads(agent.actor, h))) / (n * G)
    grads = {"actor": of_last_layer(agent.actor, logits)}
    _, _, scale, shift = moments
    for i in range(E):
        critic = jax.tree.map(lambda x, i=i: x[i], agent.critic)
        error = scale * (chosen * heads(critic, h)).sum(-1) + shift - target_q  # [n, G]
        grads[i] = of_last_layer(critic, 7.0 * 2.0 * (scale * error)[..., None] * chosen / (n * E * G))
    clip = 0.1 / (float(info["grad_norm"]) + 1e-6)
    assert clip < 0.5
    moments = dict(zip(("trunk", "actor", "critic"), new.opt[1][0].mu, strict=True))
    sizes = [(np.float64(x) ** 2).sum() for x in jax.tree.leaves(moments)]
    np.testing.assert_allclose(np.sqrt(sum(sizes)), 0.1 * 0.1, rtol=1e-3)  # clipped together

    def last(tree, which):
        """The last layer, of one critic where `which` is its number."""
        layer = tree["params"]["Dense_1"]
        return {part: np.float64(x if which == "actor" else x[which]) for part, x in layer.items()}

    for which, grad in grads.items():
        name = "actor" if which == "actor" else "critic"
        old, moved, moment = (last(x, which) for x in (getattr(agent, name), getattr(new, name), moments[name]))
        old_target, target = (last(getattr(x, f"target_{name}"), which) for x in (agent, new))
        for part, g in grad.items():
            np.testing.assert_allclose(moment[part], 0.1 * clip * g, rtol=1e-3, atol=1e-6)
            g = 10.0 * moment[part]
            close(moved[part], old[part] - 0.01 / 4 * (g / (np.abs(g) + 1e-8) + 0.1 * old[part]))
            close(target[part], 0.25 * moved[part] + 0.75 * old_target[part])


@pytest.mark.long
def test_an_update_of_imitation_leaves_critics_but_for_the_decay_of_weights():
    metamon, args, agent, rows = setting(filter="none", learning_rate=0.01, weight_decay=0.1, warmup_updates=1)
    new, _ = jax.jit(metamon.update)(agent, rows, jax.random.key(5), args)
    jax.tree.map(lambda a, b: close(a, b * (1 - 0.01 * 0.1)), new.critic, agent.critic)
    jax.tree.map(np.testing.assert_array_equal, new.popart, agent.popart)


def test_probabilities_are_kept_from_0_and_1_where_values_and_actions_are_made_of_them():
    """Of 0.996, 0.002, 0.0015 and 0.0005 the first and the last go to a bound."""
    metamon, p, n = load("metamon"), np.array([0.996, 0.002, 0.0015, 0.0005]), 3000
    pi = np.array([0.99, 0.002, 0.0015, 0.001]) / 0.9945
    slopes = jax.jit(jax.jacobian(lambda logits: jnp.log(metamon.probabilities(logits))))(np.log(p))
    free = np.array([0, 1, 1, 0])
    unclipped = free[:, None] * (np.eye(4) - p)  # of the logarithms; the sum's is that of what is free
    close(slopes, unclipped - (p * free) @ unclipped / 0.9945)
    given = SimpleNamespace(apply=lambda outputs, *_: outputs)  # networks whose outputs are their parameters
    logits, q = np.tile(np.log(p), (1, 1, G, 1)), np.array([1.0, 2.0, 3.0, 400.0])
    popart = metamon.PopArt(*np.float32([[0, 0], [1, 1], [1, 1], [0, 0]]), 0)
    critic = np.tile(q, (E, 1, 1, G, 1))
    nets = metamon.Networks(SimpleNamespace(apply=lambda _, states, memory: states.obs), given, given, DISCRETE)
    agent = metamon.Agent(nets, None, logits, critic, logits, critic, popart, None)
    args = metamon.Args(**TINY | {"filter": "none"})
    one = lambda x: np.float32([[x]])  # noqa: E731
    step = metamon.Window(one(1.0), reward=one(0.3), terminal=one(0.0), action=np.array([[3]]))
    sure = agent.replace(actor=np.tile(np.array([50.0, 0, 0, 0]), (n, G, 1)))  # without a bound: the first, always

    def places():
        y, adv = metamon.td_target(agent, None, step, key, args), metamon.advantage(agent, popart, None, step)
        carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), metamon.initial_carry(agent, args))
        drawn, _ = metamon.act(sure, carry, jnp.zeros((n, 3)), jnp.zeros(n), key, args)
        return y, adv, metamon.actor_loss(logits, agent, None, step, None, args)[0], drawn

    key = jax.random.key(1)
    y, adv, loss, drawn = jax.jit(places)()
    close(y, 10 * 0.3 + np.array([[[0.5, 0.9]]]) * (pi @ q))
    close(adv, np.full((1, 1, G), 400.0 - pi @ q))
    close(loss, -np.log(pi[3]))
    assert 0 < (drawn > 0).sum() < 30  # 3 of 993 are expected, which are 9


def test_its_step_sizes_are_the_authors_own():
    """Not AMAGO's, which they override."""
    args = load("metamon").Args()
    assert (args.learning_rate, args.weight_decay) == (1.5e-4, 1e-4)
    assert (args.warmup_updates, args.max_grad_norm) == (1000, 1.5)


def test_values_stay_where_they_are_when_popart_moves():
    _, _, agent, _ = setting()
    r = np.random.default_rng(0)
    x, y, mask = r.normal(size=(7, G)), r.normal(5.0, 3.0, (4, 6, G)), np.float32(r.uniform(size=(4, 6)) < 0.7)
    move = jax.jit(lambda popart, n: jax.lax.fori_loop(0, n, lambda _, p: p.moved(jnp.float32(y), mask, 0.3), popart))
    moved = move(agent.popart, 1)
    assert (
        np.abs(moved.mean - agent.popart.mean).min() > 0.5 and np.abs(moved.scale / agent.popart.scale - 1).max() > 0.1
    )
    close(moved.value(x), agent.popart.value(x))
    for old, still in zip(moved, moved.moved(jnp.float32(y), mask, 0.0), strict=True):
        if old is not moved.count:
            close(still, old)  # and none is NaN
    moved = move(moved, 100)
    close(moved.mean, y[mask > 0].mean(0))
    close(moved.std(), y[mask > 0].std(0))


@pytest.mark.long
def test_windows_lie_anywhere_in_an_episode_and_begin_with_the_row_before():
    metamon = load("metamon")
    data = sequences(log(), "obs", "action", "reward", "terminal", "next_obs")
    args = metamon.Args(context=3, batch_size=400)
    sample = jax.jit(metamon.sample)
    rows = jax.tree.map(np.asarray, sample(jax.random.key(0), data, args))
    steps = {tuple(o[m > 0]) for o, m in zip(rows.obs[:, 1:, 0], rows.mask[:, 1:], strict=True)}
    assert steps == {(0, 1, 2), (3, 4, 5), (4, 5, 6), (7,)}
    for i in range(20):
        there = rows.timestep[i, 1] > 0
        assert rows.mask[i, 0] == there and (rows.obs[i, 0, 0] == rows.obs[i, 1, 0] - 1 if there else True)
    states = metamon.states_of(data.take(jnp.array([4, 7]), jnp.arange(-1, 3)))
    assert states.obs[0, :, 0].tolist() == [4, 5, 6, 7] and states.timestep[0].tolist() == [1, 2, 3, 4]
    assert states.reward[0].tolist() == [10, 20, 30, 40] and states.mask[0].tolist() == [1, 1, 1, 1]
    whole = sample(jax.random.key(1), data, metamon.Args(context=50, batch_size=50))
    assert (np.asarray(whole.timestep[:, 1]) == 0).all() and not np.asarray(whole.mask[:, 0]).any()


def test_it_draws_actions_of_the_last_discount_from_what_it_remembers():
    """Step by step, with the action and the reward before each, also after the window has moved on."""
    metamon, args, agent, _ = setting()
    r, steps = np.random.default_rng(2), 6
    obs, reward = r.normal(size=(1, steps, 3)).astype(np.float32), r.normal(size=(1, steps)).astype(np.float32)
    reward[:, 0] = 0.0
    carry = jax.tree.map(lambda x: x[None], metamon.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward, key: metamon.act(agent, carry, obs, reward, key, args))
    actions = [0]
    for t in range(steps):
        key = jax.random.fold_in(jax.random.key(9), t)
        action, carry = act(carry, obs[:, t], reward[:, t], key)
        at = slice(max(0, t + 1 - K), t + 1)
        h = embedded(agent, obs[0, at], np.array(actions)[at], reward[0, at], np.arange(steps)[at], args.memory)[-1]
        wanted = jax.random.categorical(key, jnp.float32(heads(agent.actor, h)[-1])[None])
        assert action.tolist() == wanted.tolist() and action.dtype == jnp.int32
        actions.append(int(action[0]))
    assert len(set(actions[1:])) > 1


@pytest.mark.long
def test_what_cannot_be_asked_is_refused(tmp_path, pendulum):
    choices, frames, end = (
        tmp_path / "choices.npz",
        np.random.default_rng(0).normal(size=(41, 4)),
        np.arange(40) % 20 == 19,
    )
    found = {"observations": frames[:-1], "next_observations": frames[1:], "rewards": frames[1:, 0], "timeouts": end}
    np.savez(choices, **found, actions=np.arange(40) % 3)
    for dataset, changes, message in (
        (pendulum, {}, "discrete actions"),
        (str(choices), {"context": 21}, "--context 21: "),
        (str(choices), {"width": 8, "heads": 3}, "--width 8 must be a multiple of --heads 3"),
        (str(choices), {"memory": (0.0, 20.0)}, "--memory 0: at least the present step is seen"),
        (str(choices), {"train_discounts": (0.9, 1.5)}, r"--train-discounts must lie in \[0, 1\], unlike 0.9 1.5"),
    ):
        args = small("metamon", dataset, tmp_path / "run", **changes)
        with pytest.raises(InputError, match=message):
            load("metamon").main(args)
