"""PDT: its losses and networks in numpy, what each gradient reaches, what is told, what was played, and the phases."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, timeless
from jobs import small, train
from reference import agent_of, close
from scipy.stats import norm as normal
from transformer_in_numpy import SPEC, B, block, dense, norm, relu, window

from shared.arguments import float_fields
from shared.errors import InputError
from shared.sequences import Window
from shared.task import env_task, registered_env

SMALL = {
    "width": 8, "layers": 1, "heads": 2, "context": 3, "lookahead": 2, "latent_dim": 2, "future_candidates": 4,
    "learning_starts": 8, "return_updates": 2, "learn_every": 4, "updates_per_round": 2, "env_steps": 16,
    "warmup_updates": 2, "init_temperature": 0.1,
}  # fmt: skip
K, F, Z = 3, 2, 2
TINY = {"width": 8, "layers": 1, "heads": 2, "context": K, "lookahead": F, "latent_dim": Z, "batch_size": B}
TINY |= {"token_dropout": 0.0, "kl_weight": 0.3, "future_candidates": 6, "reward_scale": 0.5, "init_temperature": 0.2}
TINY |= {"learning_rate": 0.01, "return_lr": 0.02, "alpha_lr": 0.03, "weight_decay": 0.1, "warmup_updates": 4}
MASK = np.float32([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0]])


@pytest.fixture(scope="module")
def setting():
    """PDT, its arguments, an agent, and windows [B, K + F] that begin late, end early, or have no future."""
    pdt = load("pdt")
    args = pdt.Args(**TINY)
    w = window(steps=K + F)._replace(mask=MASK, reward=None, terminal=None, timestep=None)
    return pdt, args, agent_of(pdt, args), w


@pytest.fixture(scope="module")
def losses(setting):
    """Loss, and what is said of it: of pre-training, of what was played, and with returns for tokens."""
    pdt, args, agent, w = setting
    loss = jax.jit(pdt.actor_loss, static_argnums=5)
    found = {online: loss(agent.actor, agent, w, jax.random.key(0), args, online) for online in (False, True)}
    returns = dataclasses.replace(args, pretrain="return")
    found["return"] = loss(agent.actor, agent, w, jax.random.key(0), returns, True)
    return found


def halves(x):
    mean, log_std = np.split(x, 2, -1)
    return mean, np.clip(log_std, -10, 2)


def attend(p, x, mask, backwards):
    """One sequence [N, W] by the transformer with two heads."""
    n = len(x)
    ordered = np.triu(np.ones((n, n))) if backwards else np.tril(np.ones((n, n)))
    return norm(p["LayerNorm_0"], block(p["Block_0"], x, (ordered > 0) & (mask > 0) | np.eye(n, dtype=bool), 2))


def params(agent):
    return jax.tree.map(np.float64, agent.actor)["params"]


def policy(agent, w, z):
    """Mean and log standard deviation [B, T, A]."""
    p, found = params(agent), []
    for b in range(len(z)):
        tokens = []
        for t in range(z.shape[1]):
            for name, x in (("obs", w.obs[b, t]), ("future", z[b, t]), ("action", w.action[b, t])):
                tokens.append(norm(p["norm"], dense(p[f"embed_{name}"], x)))
        x = attend(p["trunk"], np.stack(tokens), np.repeat(w.mask[b, : z.shape[1]], 3), backwards=False)
        found.append(dense(p["head"], x[1::3]))
    mean, log_std = np.split(np.stack(found), 2, -1)
    return mean, 3.5 * np.tanh(log_std) - 1.5


def futures(agent, w):
    """Mean and log standard deviation [B, T - 1, Z]."""
    p, found = params(agent), []
    for b in range(len(w.mask)):
        tokens = []
        for t in range(len(w.mask[b])):
            for name, x in (("obs", w.obs[b, t]), ("action", w.action[b, t])):
                tokens.append(norm(p["read_norm"], dense(p[f"read_{name}"], x)))
        x = attend(p["reader"], np.stack(tokens), np.repeat(w.mask[b], 2), backwards=True)
        found.append(dense(p["future_head"], x[2::2]))
    return halves(np.stack(found))


def prior(agent, obs):
    p = params(agent)
    return halves(dense(p["prior_head"], relu(dense(p["embed_obs"], obs))))


def returns(agent, obs, z):
    p = params(agent)
    seen = np.concatenate([dense(p["embed_obs"], obs), dense(p["embed_future"], z)], -1)
    return halves(dense(p["return_head"], relu(seen)))


def divergence(one, other):
    (m, s), (n, t) = one, other
    return (t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).mean(-1)


def drawn(agent, w, key):
    """z [B, K, Z] of `read`, and g."""
    mean, log_std = (x[:, :K] for x in futures(agent, w))
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], mean.shape))
    return (mean + np.exp(log_std) * noise) * MASK[:, :K, None], (mean, log_std)


def imitation(agent, w, z, key):
    """-log pi and the entropy over the steps that are there."""
    mean, log_std = policy(agent, w, z)
    seen, std = MASK[:, :K] > 0, np.exp(log_std)
    u = np.arctanh(np.clip(np.float64(w.action[:, :K]), -0.999, 0.999))
    v = mean + std * np.asarray(jax.random.normal(jax.random.split(key)[1], mean.shape))
    log_prob = lambda u: (normal.logpdf(u, mean, std) - np.log(1 - np.tanh(u) ** 2)).sum(-1)  # noqa: E731
    return -log_prob(u)[seen].mean(), -log_prob(v)[seen].mean()


def test_the_losses_are_imitation_two_divergences_and_what_was_earned(setting, losses):
    pdt, args, agent, w = setting
    read_key, policy_key = jax.random.split(jax.random.key(0))
    z, g = drawn(agent, w, read_key)
    nll, entropy = imitation(agent, w, z, policy_key)
    seen = MASK[:, :K] > 0
    bound = divergence(g, (np.zeros_like(g[0]), np.zeros_like(g[1])))[seen].mean()
    prior_kl = divergence(g, prior(agent, w.obs[:, :K]))[seen].mean()
    mean, log_std = (x[..., 0] for x in returns(agent, w.obs[:, :K], z))
    earned = -normal.logpdf(0.5 * w.return_to_go[:, :K], mean, np.exp(log_std))[seen].mean()
    for online in (False, True):
        loss, info = losses[online]
        for name, value in (("nll", nll), ("entropy", entropy), ("kl", bound), ("prior_kl", prior_kl)):
            close(info[name], value)
        close(info["return_loss"], online * earned)
        close(loss, nll - 0.2 * entropy + 0.3 * bound + prior_kl + online * earned)


def test_pre_training_reads_no_reward(setting):
    pdt, args, agent, w = setting
    for pretrain in ("future", "return"):
        changed = dataclasses.replace(args, pretrain=pretrain)
        loss = lambda w: pdt.actor_loss(agent.actor, agent, w, jax.random.key(0), changed, False)[0]  # noqa: E731, B023
        assert np.isfinite(jax.eval_shape(loss, w._replace(return_to_go=None)).size)


def test_with_returns_for_tokens_there_is_nothing_but_imitation(setting, losses):
    pdt, args, agent, w = setting
    z = np.zeros((B, K, Z))
    z[..., 0] = 0.5 * w.return_to_go[:, :K]
    nll, entropy = imitation(agent, w, z, jax.random.split(jax.random.key(0))[1])
    loss, info = losses["return"]
    close(info["nll"], nll)
    close(loss, nll - 0.2 * entropy)
    assert info["kl"] == info["prior_kl"] == info["return_loss"] == 0
    random = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0))[0], (B, 1)))
    z[..., 0] = random
    changed = dataclasses.replace(args, pretrain="return")
    loss = jax.jit(lambda actor: pdt.actor_loss(actor, agent, w, jax.random.key(0), changed, False)[1])
    info = loss(agent.actor)
    close(info["nll"], imitation(agent, w, z, jax.random.split(jax.random.key(0))[1])[0])


def test_the_prior_follows_futures_and_does_not_lead_them(setting):
    pdt, args, agent, w = setting
    past = jax.tree.map(lambda x: x[:, :K], w)

    def three(actor):
        z, future = pdt.read(actor, agent, w, jax.random.key(0), args)
        earned = pdt.return_loss(actor, agent, past, z, args)
        return jnp.stack([*pdt.future_losses(actor, agent, past, future), earned])

    grads = jax.jit(jax.jacobian(three))(agent.actor)["params"]
    size = lambda name, i: np.abs(grads[name]["kernel"][i]).max()  # noqa: E731
    assert size("future_head", 0) > 1e-4 and size("future_head", 1) == 0
    assert size("prior_head", 0) == 0 and size("prior_head", 1) > 1e-4 and size("embed_obs", 1) > 1e-4
    assert all(size(name, 2) > 1e-5 for name in ("future_head", "embed_future", "return_head"))


def test_a_future_is_of_what_follows_and_of_nothing_before(setting):
    pdt, args, agent, w = setting
    read = jax.jit(lambda obs: agent.net.apply(agent.actor, w._replace(obs=obs), method="future")[0])
    whole = read(w.obs)
    close(whole, futures(agent, w)[0])
    after = np.arange(1, K + F)
    for t in range(K + F):
        changed = np.abs(read(w.obs + 0.3 * (np.arange(K + F) == t)[:, None]) - whole).max(-1) > 1e-6
        for b in range(B):
            np.testing.assert_array_equal(changed[b], (after == t) | (after < t) & (MASK[b, t] > 0))


def test_an_update_is_of_everything_then_of_the_temperature(setting, monkeypatch):
    """Of a loss whose gradient is 2 p; in pre-training the return predictor stays as it is."""
    pdt, args, agent, w = setting
    args = dataclasses.replace(args, max_grad_norm=1e-6)  # so small that the optimiser's epsilon tells it

    def squares(actor, agent, window, key, args, online):
        loss = sum((x**2).sum() for x in jax.tree.leaves(actor))
        return loss, {"entropy": jnp.where(online, 1.0, -3.0)}

    monkeypatch.setattr(pdt, "actor_loss", squares)
    size = 2 * np.sqrt(sum((np.float64(p) ** 2).sum() for p in jax.tree.leaves(agent.actor)))
    for online in (False, True):
        update = jax.jit(lambda agent, online=online: pdt.update(agent, w, jax.random.key(0), args, online))
        new, info = update(agent)
        for name in ("head", "prior_head", "future_head", "return_head"):
            for kind in ("kernel", "bias"):
                p = np.float64(agent.actor["params"][name][kind])
                g = 2 * p * 1e-6 / size
                step = g / (np.abs(g) + 1e-8) + 0.1 * p
                ratio = np.linalg.norm(p) / np.linalg.norm(step) if kind == "kernel" else 1.0
                moves = online or name != "return_head"
                close(new.actor["params"][name][kind], p - moves * 0.01 / 4 * ratio * step)
        rises = 1 if online else -1  # log alpha falls as the entropy is above the target, -2
        close(new.log_alpha, np.log(0.2) - 0.03 * rises)
        close(info["alpha"], np.exp(new.log_alpha))
    assert pdt.alpha_loss(0.0, -3.0, 2) == -1


def test_an_agent_that_has_learned_nothing_tells_a_return_of_one_from_two(setting):
    """Tokens are normalised: without a bias they would be the same."""
    pdt, args, _, w = setting
    agent = jax.jit(pdt.init, static_argnums=2)(jax.random.key(0), args, SPEC)
    told = lambda x: pdt.as_token(jnp.full((B, K + F), x), args)  # noqa: E731
    for name in ("head", "prior_head", "return_head", "future_head"):  # mean and deviation: an orthogonal layer each
        for half in np.split(np.float64(agent.actor["params"][name]["kernel"]), 2, axis=1):
            np.testing.assert_allclose(half.T @ half, np.eye(half.shape[1]), atol=1e-5)
    policy = jax.jit(lambda z: agent.net.apply(agent.actor, w, z)[0])
    assert np.abs(policy(told(1.0)) - policy(told(2.0)))[0, 0].min() > 1e-3
    embed = agent.actor["params"]
    for name, inputs in (("embed_obs", 3), ("embed_future", Z), ("embed_action", 2), ("read_obs", 3)):
        bias = np.abs(embed[name]["bias"])
        assert bias.min() > 0 and 0.5 * inputs**-0.5 < bias.max() <= inputs**-0.5


def test_before_the_first_round_the_return_predictor_alone_is_trained(setting):
    pdt, args, agent, w = setting
    new = jax.jit(pdt.update_returns)(agent, w, jax.random.key(3), args)
    past = jax.tree.map(lambda x: x[:, :K], w)
    z, _ = drawn(agent, w, jax.random.key(3))
    loss = jax.jit(jax.grad(lambda actor, z: pdt.return_loss(actor, agent, past, z, args)))
    grads = loss(agent.actor, np.float32(z))["params"]["return_head"]
    old, now = agent.actor["params"], new.actor["params"]
    close(now["return_head"]["kernel"], old["return_head"]["kernel"] - 0.02 * np.sign(grads["kernel"]))
    for name in old.keys() - {"return_head"}:
        jax.tree.map(np.testing.assert_array_equal, old[name], now[name])
    dropping = agent.replace(net=agent.net.clone(dropout=0.9))  # nothing is dropped meanwhile
    again = jax.jit(pdt.update_returns)(dropping, w, jax.random.key(3), args)
    close(again.return_opt[0].mu["kernel"], 0.1 * grads["kernel"])


def test_what_promises_most_is_told_once_there_is_a_promise(setting):
    pdt, args, agent, _ = setting
    obs, key = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32), jax.random.key(1)
    tell = jax.jit(partial(pdt.told, args=args))
    mean, log_std = prior(agent, obs)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, (6, 3, Z)))
    promised = returns(agent, np.broadcast_to(obs, (6, 3, 3)), z)[0][..., 0]
    best = promised.argmax(0)
    assert best.any()
    close(tell(agent, obs, jnp.zeros(3), key), z[0])
    close(tell(agent.replace(tuned=jnp.ones(())), obs, jnp.zeros(3), key), z[best, np.arange(3)])
    changed = dataclasses.replace(args, pretrain="return")
    tuned = agent.replace(tuned=jnp.ones(()), best_return=jnp.float32(7.0))
    found = pdt.told(tuned, obs, jnp.float32([1, 2, 3]), key, changed)
    close(found, [[3.0, 0], [2.5, 0], [2.0, 0]])
    found = pdt.told(agent, obs, jnp.zeros(3), key, changed)
    close(found[:, 0], jax.random.normal(key, (3,)))


def test_acting_is_the_network_on_the_last_steps_and_what_was_told_at_each(setting):
    pdt, args, agent, _ = setting
    r, n = np.random.default_rng(2), 2
    obs, done, told = r.normal(size=(n, K + 1, 3)).astype(np.float32), [], []
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), pdt.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward, key: pdt.act(agent, carry, obs, reward, key, args))
    for t in range(K + 1):
        action, carry = act(carry, obs[:, t], jnp.full(n, 1.0 * (t > 0)), jax.random.key(t))
        done.append(np.asarray(action))
        told.append(np.asarray(carry.z[:, -1]))
        at = slice(max(0, t + 1 - K), t + 1)
        known = np.stack([*done[:-1], np.zeros_like(done[0])], 1)[:, at]
        w = Window(np.ones((n, known.shape[1]), np.float32), obs=obs[:, at], action=known)
        close(done[-1], np.tanh(policy(agent, w, np.stack(told, 1)[:, at])[0][:, -1]))
        close(carry.earned, t)
    assert np.abs(np.diff(told, axis=0)).min() > 0


def test_what_is_tried_out_is_kept_for_an_episode(setting):
    pdt, args, agent, _ = setting
    obs = np.random.default_rng(2).normal(size=(4, 1, 3)).astype(np.float32)
    explore = jax.jit(lambda agent, carry, obs, e, key: pdt.explore(agent, carry, obs, jnp.zeros(1), e, key, args))

    def play(agent, episode, seed):
        carry, told, done = jax.tree.map(lambda x: x[None], pdt.initial_carry(agent, args)), [], []
        for t in range(4):
            action, carry = explore(agent, carry, obs[t], jax.random.key(episode), jax.random.key(seed + t))
            told.append(np.asarray(carry.z[0, -1]))
            done.append(np.asarray(action))
        return np.stack(told), np.stack(done)

    told, done = play(agent, 0, 10)
    again, other = play(agent, 0, 20), play(agent, 1, 10)
    np.testing.assert_array_equal(told, np.broadcast_to(told[0], told.shape))
    np.testing.assert_array_equal(told, again[0])
    assert np.abs(told - other[0]).max() > 1e-3 and np.abs(done - again[1]).max() > 1e-3
    chosen = play(agent.replace(tuned=jnp.ones(())), 0, 10)[0]
    assert np.abs(np.diff(chosen, axis=0)).max(1).min() > 1e-4


def test_whole_episodes_are_drawn_by_what_they_earned():
    """Three of 2, 3 and 1 steps, and one that goes on."""
    pdt = load("pdt")
    reward, ended = np.float32([1, 2, 0, 4, 3, 5, 100, 100]), np.isin(np.arange(8), (1, 4, 5))
    obs, action = np.arange(24, dtype=np.float32).reshape(8, 3), np.zeros((8, 2), np.float32)
    played = pdt.played_by(obs, action, reward, ended)
    np.testing.assert_array_equal(played.start, [0, 0, 2, 2, 2, 5, 6, 6])
    np.testing.assert_array_equal(played.end[:6], [1, 1, 4, 4, 4, 5])
    close(played.rows[:6, -1], [3, 2, 7, 7, 3, 5])
    np.testing.assert_array_equal(played.rows[:, :3], obs)
    close(played.drawn, np.cumsum([0, 0, 4 / 3, 4 / 3, 4 / 3, 2, 0, 0]))
    assert played.best_return == 7
    args = pdt.Args(**TINY | {"batch_size": 300})
    w = jax.jit(lambda played, key: played.sample(key, args, SPEC))(played, jax.random.key(0))
    rows = np.asarray(w.obs)[:, K - 1, 0] / 3
    assert set(rows) == {2, 3, 4, 5} and abs((rows == 5).mean() - 1 / 3) < 0.1
    first = np.flatnonzero(rows == 3)[0]
    np.testing.assert_array_equal(w.mask[first], [0, 1, 1, 1, 0])
    close(w.return_to_go[first], [0, 7, 7, 3, 0])
    nothing = pdt.played_by(obs, action, reward, np.zeros(8, bool))
    assert nothing.drawn[-1] == 0


def test_diversity_is_how_far_futures_decide_where_episodes_end():
    pdt = load("pdt")
    decided = np.repeat(np.float32([[0, 0], [3, 1], [-2, 5]]), 2, axis=0)
    assert pdt.diversity_of(decided) == 1.0
    alike = np.tile(np.float32([[0, 0], [3, 1]]), (3, 1))
    assert pdt.diversity_of(alike) == -1.0
    x = np.float32([[1], [3], [6], [8], [0]])  # the last has no other: means 2 and 7
    close(pdt.diversity_of(x), (25 - 2) / (25 + 2))
    assert abs(pdt.diversity_of(np.random.default_rng(0).normal(size=(4000, 2)))) < 0.05
    assert pdt.diversity_of(x[:3]) == 0.0


def test_rounds_begin_after_the_first_steps_and_nothing_need_come_before(pendulum, tmp_path, monkeypatch):
    """Of updates their number counts here; what they do the tests above say."""
    pdt = load("pdt")

    def counted(agent, window, key, args, online):
        assert online
        return agent.replace(log_alpha=agent.log_alpha + 1.0), {"actor_loss": window.return_to_go.max()}

    monkeypatch.setattr(pdt, "update", counted)
    monkeypatch.setattr(pdt, "update_returns", lambda agent, *_: agent.replace(diversity=agent.diversity + 1.0))
    agent = train("pdt", pendulum, tmp_path / "run", env="PendulumShort-v0", pretrain="none", log_every=4)
    assert not (tmp_path / "run" / "offline.csv").exists()
    rows = timeless(tmp_path / "run" / "metrics.csv")
    assert [(int(r["env_step"]), int(r["update"])) for r in rows] == [(12, 2), (16, 4)]
    assert agent["[0].tuned"] == 1 and agent["[0].best_return"] < 0
    close(float(rows[-1]["best_return"]), agent["[0].best_return"][0])
    assert agent["[0].diversity"] == 2  # updates of the return predictor; that of a single episode is 0
    close(agent["[0].log_alpha"], np.log(0.1) + 4)


def test_environments_in_jax_are_played_compiled_as_stepped_and_go_on_where_they_were(monkeypatch):
    """Episodes of four steps from one start, without chance but the policy's; rounds after 4, 7 and 10 steps.

    Stopped after six, in an episode and between rounds, a run goes on as if nothing had happened.
    """
    pdt, lanes, steps = load("pdt"), 2, 11
    spec = registered_env("PointHiddenCorner-v0", {"jitter": 0.0}, 4)
    task = dataclasses.replace(env_task("PointHiddenCorner-v0"), env_spec=spec)
    args = pdt.Args(**TINY, learning_starts=4, learn_every=3)
    every = {name: jnp.full(lanes, getattr(args, name)) for name in float_fields(pdt.Args)}
    lane_args = dataclasses.replace(args, **every)
    keys, agents = jax.random.split(jax.random.key(0), (lanes, steps + 2)), jax.random.split(jax.random.key(1), lanes)
    init = jax.jit(jax.vmap(lambda key, args: pdt.init(key, args, task.spec)))
    fresh = init(agents, lane_args)
    monkeypatch.setattr(pdt, "begin", lambda agent, played, key, args: agent.replace(tuned=jnp.ones(())))
    monkeypatch.setattr(pdt, "learn", lambda agent, played, key, args: (agent, {"best": played.best_return}))
    found = {}
    for way in ("compiled", "stepped"):
        if way == "stepped":
            monkeypatch.setattr(pdt, "jax_env", lambda task: None)
        run = SimpleNamespace(
            task=task, padded_settings=[{"seed": i} for i in range(lanes)], total=steps, done=0, chunk=6, args=args,
            lane_args=lane_args, step_keys=lambda t: keys[:, t], shorten_chunks=lambda n: None,
            over_lanes=lambda f, in_axes, **_: jax.jit(jax.vmap(f, in_axes)),
        )  # fmt: skip
        loop = pdt.Rollout(run)
        agent, told = loop.steps(fresh, keys[:, :6])
        assert told == {}  # the return predictor alone has begun
        saved = jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else jnp.array(x), loop.state())
        run.args, run.done = dataclasses.replace(args, resume=True), 6
        run.restore = lambda agent, state, saved=saved: (agent, saved)
        again = pdt.Rollout(run)
        again.restore(agent)
        for one in (loop, again):
            _, told = one.steps(agent, keys[:, 6:steps])
        jax.tree.map(np.testing.assert_array_equal, loop.state(), again.state())
        found[way] = [*(getattr(loop, name) for name in ("obs", "action", "reward", "ended")), agent.diversity, told]
    assert (found["compiled"][3] == (np.arange(steps) % 4 == 3)).all()
    assert np.abs(np.diff(found["compiled"][1], axis=1)).min() > 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found["compiled"], found["stepped"])


def test_agents_of_another_pre_training_are_refused(tmp_path):
    pdt, run = load("pdt"), str(tmp_path)
    for before, pretrain, message in (
        ({"pretrain": "future"}, "none", "--pretrain none begins with the interaction: it takes no agents by --from"),
        ({"pretrain": "future"}, "return", f"the agents of {run} were trained with --pretrain future"),
        ({"pretrain": "none"}, "future", f"the agents of {run} were trained with --pretrain none"),
        ({}, "future", f"the agents of {run} were trained by another algorithm"),
    ):
        (tmp_path / "run.json").write_text(json.dumps({"args": before}))
        with pytest.raises(InputError, match=message):
            pdt.main(pdt.Args(pretrain=pretrain, from_run=run))
    (tmp_path / "run.json").write_text(json.dumps({"args": {"pretrain": "return"}}))
    pdt.require_pretrained_alike(pdt.Args(pretrain="return", from_run=run))
    pdt.require_pretrained_alike(pdt.Args(pretrain="none"))


def test_what_cannot_be_trained_is_refused(pendulum, tmp_path):
    pdt = load("pdt")
    for changes, message in (
        ({"learning_starts": 7, "env": "PendulumShort-v0"}, "--learning-starts 7 is less than one episode, 8"),
        ({"env": "phys2d/Pendulum-v0", "learning_starts": 7}, "--learning-starts 7 is less than one episode"),
        ({"learning_starts": 16, "env": "PendulumShort-v0"}, "--learning-starts 16: of --env-steps 16 none is left"),
        ({"env": "none"}, "no environment to interact with"),
        ({"heads": 3}, "must be a multiple of --heads 3"),
        ({"context": 31}, "--context 31"),
    ):
        with pytest.raises(InputError, match=message):
            pdt.main(small("pdt", pendulum, tmp_path / "run", **changes))
