"""The planner of adaptdiffuser, its losses and rounds against the same equations in plain numpy."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, timeless, write_goals
from jobs import small
from networks_in_numpy import mish, sinusoidal
from reference import close, differences, mlp
from test_going_on import stop_at

from shared.data import load_dataset
from shared.errors import InputError
from shared.goals import goal_dataset
from shared.task import Spec

SMALL = {
    "window_steps": 8, "plan_steps": 16, "diffusion_steps": 3, "sampling_steps": 3, "round_updates": 4,
    "generated_plans": 6, "kept_share": 0.5, "reference_rows": 5, "channels": 8, "channel_factors": (1,),
    "ema_start": 0, "rounds": 0,
}  # fmt: skip
"""Without rounds, whose programs take the longest to compile; the tests below have one."""
SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0), goal_shape=(3,))
D, B = 5, 4
"""Columns of a row: action 2, obs 3; windows in a batch."""


class Linear(NamedTuple):
    """In the U-Net's place: what it says is W x + b t."""

    scale: float = 1.0

    def apply(self, params, x, t):
        return x @ params["w"] + 0.1 * t[:, None, None] * params["b"]


def args_of(**changes):
    return load("adaptdiffuser").Args(**{**SMALL, "rounds": 1, "hidden_dims": (8, 8), "batch_size": B} | changes)


@functools.cache
def tiny_agent():
    """With a linear denoiser, another average of it, and ranges that are not [-1, 1]."""
    module, r = load("adaptdiffuser"), np.random.default_rng(0)
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args_of(), SPEC)
    linear = lambda: {"w": np.float32(0.4 * r.normal(size=(D, D))), "b": np.float32(r.normal(size=D))}  # noqa: E731
    low, high = np.float32([-1, -1, -2, 0, 1]), np.float32([1, 1, 4, 1, 3])
    inverse = jax.tree.map(lambda x: x + np.float32(0.1 * r.normal(size=x.shape)), agent.inverse)
    nets = agent.nets._replace(denoiser=Linear())
    return agent.replace(nets=nets, denoiser=linear(), ema_denoiser=linear(), low=low, high=high, inverse=inverse)


def windows_of(steps=8, n=B, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (n, steps, D)).astype(np.float32)


def linear(params, x, t):
    return x @ np.float64(params["w"]) + 0.1 * np.asarray(t)[:, None, None] * params["b"]


def given(x, ends):
    x = np.array(x, np.float64)
    x[:, 0, 2:], x[:, -1, 2:] = ends
    return x


# ------------------------------------------------------------------------------------------- network


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def convolution(p, x, kernel, stride=1):
    """Step i of the output sees the steps i stride - kernel // 2 ... of the input."""
    weights, half = np.float64(p["kernel"]).reshape(kernel, x.shape[-1], -1), kernel // 2
    out = []
    for i in range(0, x.shape[1], stride):
        seen = [(i + k - half, k) for k in range(kernel) if 0 <= i + k - half < x.shape[1]]
        out.append(sum(x[:, at] @ weights[k] for at, k in seen) + np.float64(p["bias"]))
    return np.stack(out, 1)


def conv_block(p, x):
    x = convolution(p["Dense_0"], x, 5)
    groups = x.reshape(*x.shape[:2], 8, -1)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return mish(x * np.float64(p["GroupNorm_0"]["scale"]) + np.float64(p["GroupNorm_0"]["bias"]))


def residual(p, x, time):
    h = conv_block(p["ConvBlock_0"], x) + dense(p["Dense_0"], mish(time))[:, None]
    return conv_block(p["ConvBlock_1"], h) + (dense(p["Dense_1"], x) if "Dense_1" in p else x)


def unet(params, x, t, channels):
    """Of two levels."""
    p = params["params"]
    time = dense(p["Dense_1"], mish(dense(p["Dense_0"], sinusoidal(t, channels))))
    block = lambda i, x: residual(p[f"ResidualBlock_{i}"], x, time)  # noqa: E731
    x = block(1, block(0, x))
    low = block(3, block(2, convolution(p["Dense_2"], x, 3, 2)))
    x = block(5, block(4, low))
    x = block(7, block(6, np.concatenate([x, low], -1)))
    out = np.zeros((len(x), 2 * x.shape[1], x.shape[2]))
    zero = np.zeros_like(x[:, :1])
    before, after = np.concatenate([zero, x[:, :-1]], 1), np.concatenate([x[:, 1:], zero], 1)
    out[:, ::2] = dense(p["Dense_3"], np.concatenate([before, x], -1))
    out[:, 1::2] = dense(p["Dense_4"], np.concatenate([x, after], -1))
    return dense(p["Dense_5"], conv_block(p["ConvBlock_0"], out))


@pytest.mark.long
def test_adaptdiffuser_temporal_unet():
    """At another length than it was made for."""
    module = load("adaptdiffuser")
    net, r, t = module.TemporalUNet(8, (1, 2)), np.random.default_rng(2), np.array([0, 1, 5, 9])
    params = jax.eval_shape(net.init, jax.random.key(0), windows_of(4), jnp.zeros(B, jnp.int32))
    params = jax.tree.map(lambda x: np.float32(0.3 * r.normal(size=x.shape)), params)
    x = windows_of(12)
    np.testing.assert_allclose(jax.jit(net.apply)(params, x, t), unet(params, x, t, 8), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------- the diffusion


def test_adaptdiffuser_noise_schedule():
    left = np.cos((np.arange(6) / 5 + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - left[1:] / left[:-1], 0.999)
    np.testing.assert_allclose(load("adaptdiffuser").alpha_bars(5), np.cumprod(1 - beta), rtol=1e-6)
    assert beta.max() == 0.999


def loss_in_numpy(params, x, key, abar):
    t_key, noise_key = jax.random.split(key)
    t = np.asarray(jax.random.randint(t_key, (len(x),), 0, len(abar)))
    noise, left, ends = (
        np.asarray(jax.random.normal(noise_key, x.shape)),
        abar[t][:, None, None],
        (x[:, 0, 2:], x[:, -1, 2:]),
    )
    clean = given(linear(params, given(np.sqrt(left) * x + np.sqrt(1 - left) * noise, ends), t), ends)
    return ((clean - x) ** 2).mean()


@pytest.mark.long
def test_adaptdiffuser_losses():
    module, agent, args, key = load("adaptdiffuser"), tiny_agent(), args_of(plan_share=0.3), jax.random.key(5)
    x, plans, abar = windows_of(), windows_of(16, seed=2), module.alpha_bars(3)
    of_data, of_plans = (loss_in_numpy(agent.denoiser, y, k, abar) for y, k in zip((x, plans), jax.random.split(key)))
    close(jax.jit(module.planner_loss)(agent.denoiser, agent, x, plans, key, args)[0], 0.7 * of_data + 0.3 * of_plans)
    close(jax.jit(module.planner_loss)(agent.denoiser, agent, x, None, key, args)[0], of_data)
    obs = x[..., 2:]
    action = np.clip(mlp(agent.inverse, obs[:, :-1], obs[:, 1:] - obs[:, :-1]), -1, 1)
    close(jax.jit(module.inverse_loss)(agent.inverse, agent, x), ((action - x[:, :-1, :2]) ** 2).mean())


@pytest.mark.parametrize("apart", [False, True])
def test_adaptdiffuser_ends_of_a_plan_are_given(apart):
    """The first state and the last goal, which is a state, or behind it; nothing else is touched."""
    module = load("adaptdiffuser")
    layout = module.Layout(slice(2, 5), slice(5, 6) if apart else slice(2, 5), 5 + apart)
    x = np.random.default_rng(0).normal(size=(B, 4, layout.dim)).astype(np.float32)
    ends = module.Ends(x[::-1, 1, 2:5], x[::-1, 2, layout.goal])
    found = np.array(module.inpaint(jnp.asarray(x), ends, layout))
    np.testing.assert_array_equal(found[:, 0, 2:5], ends.obs)
    np.testing.assert_array_equal(found[:, -1, layout.goal], ends.goal)
    found[:, 0, 2:5], found[:, -1, layout.goal] = x[:, 0, 2:5], x[:, -1, layout.goal]
    np.testing.assert_array_equal(found, x)
    agent = jax.eval_shape(
        functools.partial(module.init, args=args_of(), spec=SPEC._replace(goal_shape=(1,))), jax.random.key(0)
    )
    assert agent.nets.layout == module.Layout(slice(2, 5), slice(5, 6), 6)


@pytest.mark.parametrize(
    "changes, at, warm",
    [
        ({}, (2, 1, 0), False),
        ({"sampling_steps": 2, "sampling": "ddim"}, (2, 0), False),
        ({"warm_steps": 2}, (1, 0), True),
    ],
    ids=["whole", "few", "warm"],
)
def test_adaptdiffuser_plans_are_the_reverse_chain_with_given_ends(changes, at, warm):
    """Of all steps, of some of them, or of the last ones from a plan that is noised as much."""
    module, agent, args, key = load("adaptdiffuser"), tiny_agent(), args_of(**changes), jax.random.key(3)
    ends = module.Ends(windows_of(seed=4)[:, 0, 2:], windows_of(seed=5)[:, 0, 2:])
    last = windows_of(16, seed=6) if warm else None
    first_key, noise_key = jax.random.split(key)
    abar = module.alpha_bars(3)
    x = np.float64(jax.random.normal(first_key, (B, 16, D)))
    x = given(np.sqrt(abar[at[0]]) * last + np.sqrt(1 - abar[at[0]]) * x if warm else x, ends)
    for i, (t, k) in enumerate(zip(at, jax.random.split(noise_key, len(at)), strict=True)):
        before = abar[at[i + 1]] if i + 1 < len(at) else 1.0
        beta = 1 - abar[t] / before
        clean = np.clip(linear(agent.ema_denoiser, x, np.full(B, t)), -1, 1)
        if args.sampling == "ddim":
            noise = (x - np.sqrt(abar[t]) * clean) / np.sqrt(1 - abar[t])
            x = given(np.sqrt(before) * clean + np.sqrt(1 - before) * noise, ends)
            continue
        x = beta * np.sqrt(before) / (1 - abar[t]) * clean + (1 - before) * np.sqrt(1 - beta) / (1 - abar[t]) * x
        x = given(x + np.sqrt(beta * (1 - before) / (1 - abar[t])) * np.asarray(jax.random.normal(k, x.shape)), ends)
    close(jax.jit(module.make_plans)(agent, ends, key, args, last), x)


def test_adaptdiffuser_few_steps_are_those_of_all_planners():
    for name in ("dwm", "ldcq", "metadiffuser"):
        assert not differences(load("adaptdiffuser"), load(name)) & {"posteriors"}, name


# ----------------------------------------------------------------------------- the guide by returns


@functools.cache
def guided_agent():
    """Its J in general position; the gradient that guides is of another average than the one that learns."""
    args, r = args_of(guide_steps=2, channel_factors=(1, 2)), np.random.default_rng(3)
    agent = jax.eval_shape(functools.partial(load("adaptdiffuser").init, args=args, spec=SPEC), jax.random.key(0))
    draw = lambda x: np.float32(0.3 * r.normal(size=x.shape))  # noqa: E731
    nets = agent.nets._replace(denoiser=Linear())
    return tiny_agent().replace(
        nets=nets, guide=jax.tree.map(draw, agent.guide), ema_guide=jax.tree.map(draw, agent.guide)
    )


def returns_in_numpy(params, x, t):
    """J(x, t), of two levels."""
    p = params["params"]
    time = dense(p["Dense_1"], mish(dense(p["Dense_0"], sinusoidal(t, 8))))
    block = lambda i, x: residual(p[f"ResidualBlock_{i}"], x, time)  # noqa: E731
    x = block(3, block(2, convolution(p["Dense_2"], block(1, block(0, x)), 3, 2)))
    return dense(p["Dense_4"], mish(dense(p["Dense_3"], np.concatenate([x.mean(1), time], -1))))[:, 0]


@pytest.mark.long
def test_adaptdiffuser_guide_learns_returns_of_noised_windows():
    module, agent, key, x = load("adaptdiffuser"), guided_agent(), jax.random.key(4), windows_of()
    args, value, abar = args_of(guide_steps=2), np.linspace(0, 1, B).astype(np.float32), module.alpha_bars(3)
    t_key, noise_key = jax.random.split(key)
    t = np.asarray(jax.random.randint(t_key, (B,), 0, 3))
    left, noise = abar[t][:, None, None], np.asarray(jax.random.normal(noise_key, x.shape))
    noised = given(np.sqrt(left) * x + np.sqrt(1 - left) * noise, (x[:, 0, 2:], x[:, -1, 2:]))
    loss = jax.jit(module.guide_loss)(agent.guide, agent, x, value, key, args)
    np.testing.assert_allclose(loss, ((returns_in_numpy(agent.guide, noised, t) - value) ** 2).mean(), rtol=1e-3)


@pytest.mark.long
def test_adaptdiffuser_guide_moves_plans_along_the_gradient_of_the_return():
    """Against finite differences; the ends stay given, and the last steps of the diffusion are not guided."""
    module, agent, x = load("adaptdiffuser"), guided_agent(), windows_of()
    ends, args = module.Ends(x[::-1, 0, 2:], x[::-1, -1, 2:]), args_of(guide_steps=2, guide_scale=np.float32(0.5))
    guide = jax.jit(module.guided)
    expected = given(x, (ends.obs, ends.goal))
    for _ in range(2):
        slope = np.zeros_like(expected)
        for i in np.ndindex(*x.shape[1:]):
            step = np.zeros_like(expected)
            step[(slice(None), *i)] = 1e-5
            higher, lower = (returns_in_numpy(agent.ema_guide, expected + s * step, np.full(B, 2)) for s in (1, -1))
            slope[(slice(None), *i)] = (higher - lower) / 2e-5
        expected = given(expected + 0.5 * 0.7 * slope, (ends.obs, ends.goal))
    begin = np.float32(given(x, (ends.obs, ends.goal)))
    found = guide(agent, begin, 2, 0.7, ends, args)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found - begin).max() > 0.05
    np.testing.assert_array_equal(guide(agent, begin, 1, 0.7, ends, args), begin)


@pytest.mark.long
def test_adaptdiffuser_returns_that_are_asked_for_follow_the_windows(tmp_path):
    """In ranges of the data's, under each lane's discount; and a run with a guide logs its loss."""
    module, path = load("adaptdiffuser"), Path(write_goals(tmp_path / "goals.npz"))
    log = dict(np.load(path)) | {"rewards": np.arange(300.0)}
    np.savez(path, **log)
    sizes = {"env": "none", "layout": "map", "rounds": 0, "guide_steps": 1, "seeds": 1, "discount": (0.0, 0.5)}
    data = goal_dataset(load_dataset(str(path), env="none").require())
    discounts, returns = module.returns_of(data, args_of(discount=np.float32([0.5, 0.0, 0.5])))
    np.testing.assert_array_equal(discounts, [0, 0.5])
    np.testing.assert_allclose(returns[0], np.arange(300) / 299, rtol=1e-5)
    raw = [sum(0.5**j * (i + j) for j in range(30 - i % 30)) for i in range(300)]
    np.testing.assert_allclose(returns[1], (raw - np.min(raw)) / np.ptp(raw), rtol=1e-4, atol=1e-6)
    found = module.Windows(None, None, jnp.asarray(discounts), jnp.asarray(returns))
    np.testing.assert_allclose(found.return_of(np.array([5, 7]), 0.5), returns[1][[5, 7]])
    module.main(small("adaptdiffuser", str(path), tmp_path / "run", **sizes))
    assert all(float(row["guide_loss"]) > 0 for row in timeless(tmp_path / "run" / "metrics.csv"))


# ------------------------------------------------------------------------------------------- windows


@functools.cache
def windows(folder):
    module = load("adaptdiffuser")
    data = goal_dataset(load_dataset(write_goals(folder / "goals.npz"), env="none").require(reward=False))
    transitions = data.transitions()
    starts = np.flatnonzero(np.asarray(transitions.end) - np.arange(len(transitions.end)) >= 7)
    return data, module.Windows(transitions, jnp.asarray(starts))


def test_adaptdiffuser_windows_never_leave_their_episode(tmp_path):
    data, found = windows(tmp_path)
    x = np.asarray(found.sample(jax.random.key(0), 2000, 8))
    rows = {tuple(o): i for i, o in enumerate(data.data.obs)}
    at = np.array([[rows[tuple(o)] for o in w] for w in x[..., 2:]])
    np.testing.assert_array_equal(at, at[:, :1] + np.arange(8))
    assert (at[:, 0] // 30 == at[:, -1] // 30).all()
    assert set(at[:, 0] % 30) == set(range(23))  # all that have seven rows after them
    np.testing.assert_array_equal(x[..., :2], data.data.action[at])


def test_adaptdiffuser_plans_begin_and_end_at_all_states_and_are_compared_with_all_steps(tmp_path):
    """Those too that no whole window begins with, at the end of an episode."""
    data, found = windows(tmp_path)
    rows = {tuple(o): i for i, o in enumerate(data.data.obs)}
    ends, steps = found.ends(jax.random.key(0), 8000), np.asarray(found.steps(jax.random.key(1), 8000))
    start, goal, at = ([rows[tuple(o)] for o in np.asarray(x)] for x in (ends.obs, ends.goal, steps[:, 0]))
    assert set(start) == set(goal) == set(at) == set(range(len(rows)))
    assert abs(np.corrcoef(start, goal)[0, 1]) < 0.1
    np.testing.assert_array_equal(steps[:, 1], data.data.next_obs[at])


def test_adaptdiffuser_range_of_the_data():
    module = load("adaptdiffuser")
    low, high = np.float32([-2, 0, 1]), np.float32([4, 1, 1])
    np.testing.assert_allclose(module.to_unit(np.stack([low, high, (low + high) / 2]), low, high),
                               [[-1, -1, 0], [1, 1, 0], [0, 0, 0]], atol=1e-6)  # fmt: skip


# -------------------------------------------------------------------------------------------- rounds


def test_adaptdiffuser_distance_of_a_plan_is_that_of_its_worst_step():
    module, layout = load("adaptdiffuser"), tiny_agent().nets.layout
    plans, reference = windows_of(16, 6), windows_of(2, 9, seed=3)[..., 2:]
    expected = [
        max(min(np.sqrt(((p[t : t + 2, 2:] - r) ** 2).sum()) for r in reference) for t in range(15)) for p in plans
    ]
    close(module.plan_distance(plans, reference, layout), expected)


@pytest.mark.long
def test_adaptdiffuser_a_round_keeps_the_plans_nearest_to_the_data(tmp_path):
    """Half of six plans, with the inverse model's actions."""
    module, args = load("adaptdiffuser"), args_of()
    _, data = windows(tmp_path)
    spec = SPEC._replace(obs_shape=(2,), goal_shape=(2,))
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, spec)
    r = np.random.default_rng(0)
    ema = {"w": np.float32(0.4 * r.normal(size=(4, 4))), "b": np.float32(r.normal(size=4))}
    agent = agent.replace(nets=agent.nets._replace(denoiser=Linear()), denoiser=ema, ema_denoiser=ema)
    agent = agent.replace(low=jnp.float32([-1, -1, -4, -4]), high=jnp.float32([1, 1, 4, 4]))
    key = jax.random.key(1)
    new = jax.jit(module.begin_round)(agent, key, args, data)
    assert new.plans.shape == (3, 16, 4) and module.kept_plans(args_of(kept_share=0.0)) == 1
    reference = module.to_unit(data.steps(jax.random.split(key)[1], 5), agent.low[2:], agent.high[2:])
    distance = module.plan_distance(new.plans, reference, agent.nets.layout)
    assert (np.diff(distance) > 0).all() and float(distance[-1]) < 2 * float(new.plan_distance)
    close(new.kept_distance, distance.mean())
    rest = 6 * float(new.plan_distance) - float(distance.sum())  # of the three that were not kept
    assert rest / 3 > float(distance[-1])
    obs = np.asarray(new.plans[..., 2:])
    action = np.clip(mlp(agent.inverse, obs[:, :-1], obs[:, 1:] - obs[:, :-1]), -1, 1)
    close(new.plans[:, :-1, :2], action)


@pytest.mark.long
def test_adaptdiffuser_a_run_logs_the_same_before_and_after_a_round_begins(goals, tmp_path, monkeypatch):
    """Also where it went on from a checkpoint within the round."""
    sizes = {"rounds": 1, "round_updates": 4, "updates": 6, "log_every": 2, "checkpoint_every": 2, "eval_every": 6}
    job = functools.partial(small, "adaptdiffuser", goals, env="none", layout="map", **sizes)
    load("adaptdiffuser").main(job(out=tmp_path / "whole"))
    before, first, last = timeless(tmp_path / "whole" / "metrics.csv")
    names = ("plan_loss", "plan_distance", "kept_distance")
    assert [before[name] for name in names] == ["nan"] * 3
    assert all(np.isfinite(float(first[name])) and np.isfinite(float(last[name])) for name in names)
    assert first["plan_distance"] == last["plan_distance"] and first["plan_loss"] != last["plan_loss"]
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["diverged"] == {}
    stop_at(lambda: load("adaptdiffuser").main(job(out=tmp_path / "cut")), 4, monkeypatch)
    load("adaptdiffuser").main(job(out=tmp_path / "cut", resume=True))
    assert timeless(tmp_path / "cut" / "metrics.csv") == [before, first, last]


@pytest.mark.long
def test_adaptdiffuser_average_follows_every_tenth_update():
    module, x = load("adaptdiffuser"), windows_of()
    update = jax.jit(module.update)
    for done, tau in ((3, 1.0), (28, 0.0), (29, 0.2)):
        args = args_of(ema_decay=0.8, ema_start=20)
        agent = tiny_agent().replace(step=jnp.int32(done))
        agent = agent.replace(
            denoiser_opt=module.optax.adam(1e-3).init(agent.denoiser), plans=jnp.asarray(windows_of(16))
        )
        new, _ = update(agent, x, agent.plans, jax.random.key(0), args)
        expected = jax.tree.map(lambda o, n, tau=tau: (1 - tau) * o + tau * n, agent.ema_denoiser, new.denoiser)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.ema_denoiser, expected)
        assert int(new.step) == done + 1 and int(new.inverse_opt[0].count) == 1
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), agent.denoiser, new.denoiser)))


# -------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("warm", [0, 2])
def test_adaptdiffuser_follows_its_plan_and_makes_a_new_one_at_its_end(warm):
    """Of four episodes the first begins, and the third's plan is used up."""
    module, agent, args = load("adaptdiffuser"), tiny_agent(), args_of(replan_every=3, warm_steps=warm)
    r = np.random.default_rng(7)
    obs, goal = (r.uniform(agent.low[2:], agent.high[2:], (B, 3)).astype(np.float32) for _ in range(2))
    old = r.uniform(-1, 1, (B, 16, D)).astype(np.float32)
    key, taken = jax.random.key(2), np.array([-1, 1, 3, 2])
    action, carry = jax.jit(module.act)(agent, module.Carry(old, taken), obs, goal, jnp.zeros(B), key, args)
    unit = lambda x: (2 * x - agent.low[2:] - agent.high[2:]) / (agent.high[2:] - agent.low[2:])  # noqa: E731
    ends, make = module.Ends(unit(obs), unit(goal)), jax.jit(module.make_plans)
    plan = old.copy()
    if warm:
        key, warm_key = jax.random.split(key)
        rest = old[:, np.minimum(np.arange(16) + 3, 15)]  # three steps of the last plan are done
        plan[2] = make(agent, ends, warm_key, args, rest)[2]
        plan[0] = make(agent, ends, key, args)[0]
    else:
        plan[[0, 2]] = make(agent, ends, key, args)[np.array([0, 2])]
    close(carry.plan, plan)
    np.testing.assert_array_equal(carry.taken, [1, 2, 1, 3])
    target = plan[np.arange(B), [1, 2, 1, 3], 2:]
    close(action, np.clip(mlp(agent.inverse, unit(obs), target - unit(obs)), -1, 1))
    if not warm:
        begin = module.initial_carry(agent, args)
        assert begin.plan.shape == (16, D) and int(begin.taken) == -1
        carry = module.Carry(old, np.full(B, 15))  # fifteen steps lead through sixteen states
        _, carry = jax.jit(module.act)(agent, carry, obs, goal, jnp.zeros(B), key, args_of())
        np.testing.assert_array_equal(carry.taken, 1)


def test_adaptdiffuser_makes_a_plan_in_no_more_steps_than_there_are_and_says_so(capsys):
    args = load("adaptdiffuser").resolved(load("adaptdiffuser").Args(diffusion_steps=4, sampling_steps=9, warm_steps=0))
    assert args.sampling_steps == 4
    assert capsys.readouterr().out == "--sampling-steps 9: a plan is made in all 4 there are\n"
    with pytest.raises(InputError, match="--warm-steps 6: a plan is made in --sampling-steps 4"):
        load("adaptdiffuser").resolved(load("adaptdiffuser").Args(diffusion_steps=4, sampling_steps=9, warm_steps=6))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"window_steps": 7, "channel_factors": (1, 2)}, "--window-steps must be a multiple of 2"),
        ({"channels": 4}, "--channels must be a multiple of 8"),
        ({"rounds": 2}, "2 rounds of 4 updates do not fit into --updates 4"),
        ({"generated_plans": 0}, "--generated-plans and --reference-rows must be at least 1"),
        ({"sampling_steps": 0}, "--sampling-steps must be at least 1, not 0.$"),
        ({"kept_share": 0.0}, "--kept-share must be above 0"),
        ({"warm_steps": 3, "sampling_steps": 2}, "--warm-steps 3: a plan is made in --sampling-steps 2"),
        ({"window_steps": 32, "plan_steps": 32}, "--window-steps 32: the longest episode of .* has 30 rows"),
    ],
)
def test_adaptdiffuser_refuses(goals, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load("adaptdiffuser").main(small("adaptdiffuser", goals, tmp_path / "run", env="none", **changes))


@pytest.mark.long
def test_adaptdiffuser_needs_a_window_of_rows_that_have_a_successor(goals, tmp_path):
    """Where none is stored an episode's last row has none: of thirty rows twenty-nine are left."""
    with np.load(goals) as file:
        np.savez(goals, **{name: x for name, x in file.items() if name != "next_observations"})
    sizes = {"env": "none", "window_steps": 30, "plan_steps": 30}
    with pytest.raises(InputError, match="--window-steps 30: no episode of .* has so many rows with a successor"):
        load("adaptdiffuser").main(small("adaptdiffuser", goals, tmp_path / "run", **sizes))
