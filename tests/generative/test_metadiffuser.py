"""The contexts, losses and guided plans of metadiffuser against the same equations in plain numpy."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import load, write_pendulum
from jobs import small
from networks_in_numpy import mish
from reference import close, differences, mlp

from shared.data import load_dataset
from shared.errors import InputError
from shared.sequences import Window, sequences, window_starts
from shared.task import Spec
from shared.transitions import FIELDS, Batch

SMALL = {
    "context_updates": 4, "context_rows": 3, "latent_dim": 4, "window_steps": 4, "diffusion_steps": 3,
    "sampling_steps": 3, "channels": 8, "channel_factors": (1,), "ema_start": 0,
}  # fmt: skip
SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0))
D, B, T, Z, C = 5, 4, 4, 4, 3
"""Columns of a window: action 2, obs 3; windows, their steps, size of a context, its transitions."""


class Linear(NamedTuple):
    """In the U-Net's place: what it says is W x + b t + M z."""

    def apply(self, params, x, t, z):
        return x @ params["w"] + 0.1 * t[:, None, None] * params["b"] + (z @ params["m"])[:, None]


def linear(params, x, t, z):
    w, b, m = (np.float64(params[k]) for k in ("w", "b", "m"))
    return x @ w + 0.1 * np.asarray(t)[:, None, None] * b + (z @ m)[:, None]


@pytest.fixture(scope="module")
def module():
    return load("metadiffuser")


def args_of(**changes):
    floats = {
        "guidance": 1.5,
        "reward_guide": 0.7,
        "dynamics_guide": 0.4,
        "discount": 0.9,
        "context_dropout": 0.5,
    }
    floats = {k: np.float32(v) for k, v in floats.items()}
    return load("metadiffuser").Args(**{**SMALL, **floats, "hidden_dims": (8, 8), "batch_size": B} | changes)


@pytest.fixture(scope="module")
def agent(module):
    """With a linear denoiser, another average of it, and models in general position."""
    r = np.random.default_rng(0)
    agent = jax.eval_shape(lambda key: module.init(key, args_of(), SPEC), jax.random.key(0))
    agent = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), agent)
    shake = lambda x: np.float32(0.4 * r.normal(size=x.shape))  # noqa: E731
    sizes = {"w": (D, D), "b": (D,), "m": (Z, D)}
    net = lambda: {k: np.float32(0.3 * r.normal(size=size)) for k, size in sizes.items()}  # noqa: E731
    agent = agent.replace(models=jax.tree.map(shake, agent.models), denoiser=net(), ema_denoiser=net())
    return agent.replace(nets=agent.nets._replace(denoiser=Linear()), rewards=np.float32([0.5, -0.25]))


@pytest.fixture(scope="module")
def windows(module):
    """Four of them: the second without a context, of the third nothing is left after two steps, and of the last step's
    next_obs nothing is known."""
    r = np.random.default_rng(1)
    rows = [
        {
            "obs": r.uniform(-1, 1, (B, n, 3)).astype(np.float32),
            "action": r.uniform(-1, 1, (B, n, 2)).astype(np.float32),
            "reward": r.uniform(-1, 1, (B, n)).astype(np.float32),
            "next_obs": r.uniform(-1, 1, (B, n, 3)).astype(np.float32),
        }
        for n in (T, C)
    ]
    mask, successor = np.ones((B, T), np.float32), np.ones((B, T), np.float32)
    mask[2, 2:], successor[2, 1] = 0, 0
    steps = Window(mask=mask, timestep=np.arange(T), successor=successor, **rows[0])
    return module.WindowBatch(steps, Batch(**rows[1]), np.float32([1, 0, 1, 1]))


def features(agent, *transition):
    return mlp({"params": agent.models["params"]["encoder"]}, *transition)


def context(agent, batch):
    c = batch.context
    return features(agent, c.obs, c.action, c.reward[..., None], c.next_obs).mean(1) * batch.known[:, None]


def models(agent, obs, action, z):
    z = np.broadcast_to(z[:, None], (*obs.shape[:2], Z))
    reward, change = ({"params": agent.models["params"][name]} for name in ("reward_model", "dynamics_model"))
    return mlp(reward, obs, action, z)[..., 0], obs + mlp(change, obs, action, z)


def given(x, obs):
    x = np.array(x, np.float64)
    x[:, 0, 2:] = obs
    return x


# ------------------------------------------------------------------------------------------- windows


def test_metadiffuser_parts_of_the_planner_are_written_alike(module):
    shared = {"mish", "sinusoidal", "neighbours", "ConvBlock", "ResidualBlock", "alpha_bars"}
    assert shared <= vars(module).keys() and not shared & differences(module, load("adaptdiffuser"))


@pytest.mark.long
def test_metadiffuser_unet_is_adaptdiffusers_told_of_the_task(module):
    """What the context says is added to the embedding of the time: to the bias of its last layer."""
    r, sizes = np.random.default_rng(2), (8, (1, 2))
    x, t, z = r.normal(size=(2, 4, D)), np.array([0, 9]), np.repeat(r.normal(size=(1, Z)), 2, 0)
    net = module.TemporalUNet(*sizes)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, z)["params"]
    own = jax.tree.map(lambda leaf: np.float32(0.3 * r.normal(size=leaf.shape)), shapes)
    time, task = ({f"Dense_{i}": own[f"Dense_{i + j}"] for i in range(2)} for j in (0, 2))
    time["Dense_1"]["bias"] = r.normal(size=8)
    added = mlp({"params": task}, z[:1], activation=mish)[0]
    other = {name: p for name, p in own.items() if "Dense" not in name} | {"Dense_0": time["Dense_0"]}
    other["Dense_1"] = {**time["Dense_1"], "bias": time["Dense_1"]["bias"] + added}
    other |= {f"Dense_{i - 2}": own[f"Dense_{i}"] for i in range(4, 8)}
    plain = load("adaptdiffuser").TemporalUNet(*sizes)
    found, expected = jax.jit(lambda: (net.apply({"params": own}, x, t, z), plain.apply({"params": other}, x, t)))()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_metadiffuser_a_window_follows_its_context_in_one_episode(module, tmp_path):
    """Episodes of 30 rows: windows of four begin in the first 27; a window that begins its episode has no context.

    The first episode terminates in row 10, though its rows go on, and in its last, of which there is no next_obs.
    """
    data = load_dataset(write_pendulum(tmp_path / "log.npz"), env="none")
    terminal, successor = np.isin(np.arange(300), (10, 29)), np.arange(300) != 29
    data = dataclasses.replace(data, terminal=terminal, successor=successor)
    found = module.Windows(sequences(data, *FIELDS, "successor"), jax.numpy.asarray(window_starts(data, 4)))
    sample = jax.jit(lambda key: found.sample(key, args_of(batch_size=3000, context_rows=5)))
    batch = jax.device_get(sample(jax.random.key(0)))
    rows = {tuple(o): i for i, o in enumerate(data.obs)} | {(0.0, 0.0, 0.0): -1}
    at = np.array([[rows[tuple(o)] for o in w] for w in batch.steps.obs])
    inside = at >= 0  # a window at the end of the first episode is shorter
    np.testing.assert_array_equal(at, np.where(inside, at[:, :1] + np.arange(4), -1))
    assert set(at[:, 0]) == set(range(30)) | {30 * i + j for i in range(1, 10) for j in range(27)}
    np.testing.assert_array_equal(batch.steps.mask > 0, inside & ((at <= 10) | (at[:, :1] > 10)))
    np.testing.assert_array_equal(batch.steps.successor > 0, inside & (at != 29))
    before = np.array([[rows[tuple(o)] for o in c] for c in batch.context.obs])
    first = at[:, 0] % 30 == 0
    np.testing.assert_array_equal(batch.known, ~first)
    assert (before // 30 == at[:, :1] // 30).all() and (before[~first] < at[~first, :1]).all()
    assert {tuple(x) for x in (at[:, :1] - before)[at[:, 0] % 30 == 1].tolist()} == {(1,) * 5}
    assert set((at[:, :1] - before)[at[:, 0] % 30 == 5].ravel()) == {1, 2, 3, 4, 5}


def test_metadiffuser_networks_see_observations_and_rewards_from_minus_one_to_one(module, tmp_path):
    data = load_dataset(write_pendulum(tmp_path / "log.npz"), env="none")
    unit, rewards = module.in_limits(data)
    assert unit.task.options["obs_limits"]
    for x in (unit.obs, unit.reward[:, None]):
        np.testing.assert_allclose([x.min(0), x.max(0)], [[-1] * x.shape[1], [1] * x.shape[1]], atol=1e-5)
    np.testing.assert_allclose(unit.task.observe(data.obs[7]), unit.obs[7], rtol=1e-5)
    np.testing.assert_allclose(unit.reward, data.reward * rewards[0] + rewards[1], rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------- losses


def test_metadiffuser_models_are_right_about_steps_that_the_context_does_not_hold(module, agent, windows):
    z, steps = context(agent, windows), windows.steps
    assert not z[1].any() and z[0].any()
    reward, next_obs = models(agent, steps.obs, steps.action, z)
    wrong = (reward - steps.reward) ** 2 + steps.successor * ((next_obs - steps.next_obs) ** 2).sum(-1)
    close(jax.jit(module.context_loss)(agent.models, agent, windows)[0], wrong[steps.mask > 0].mean())


def test_metadiffuser_denoises_with_the_context_or_without(module, agent, windows):
    args, key = args_of(), jax.random.key(5)
    t_key, noise_key, drop_key = jax.random.split(key, 3)
    t = np.asarray(jax.random.randint(t_key, (B,), 0, 3))
    left, noise = module.alpha_bars(3)[t][:, None, None], np.asarray(jax.random.normal(noise_key, (B, T, D)))
    kept = np.asarray(jax.random.uniform(drop_key, (B, 1))) >= 0.5
    assert len(set(kept[:, 0])) == 2
    x = np.concatenate([windows.steps.action, windows.steps.obs], -1)
    noised = given(np.sqrt(left) * x + np.sqrt(1 - left) * noise, x[:, 0, 2:])
    clean = given(linear(agent.denoiser, noised, t, context(agent, windows) * kept), x[:, 0, 2:])
    loss, grads = jax.jit(jax.value_and_grad(module.diffusion_loss))(agent.denoiser, agent, windows, key, args)
    close(loss, ((clean - x) ** 2)[windows.steps.mask > 0].mean())
    assert all(np.any(x) for x in jax.tree.leaves(grads))


def test_metadiffuser_learns_the_models_first_and_then_the_denoiser_alone(module, agent, windows):
    args = args_of(ema_decay=0.8, ema_start=20)
    adam = module.optax.adam(1e-3)
    opt = adam.init(agent.denoiser)
    ready = agent.replace(denoiser_opt=(opt[0]._replace(count=np.int32(29)), *opt[1:]))

    @jax.jit
    def both(ready):
        return tuple(
            learn(ready, windows, jax.random.key(0), args)[0] for learn in (module.update_models, module.update)
        )

    first, second = jax.device_get(both(ready))
    differ = lambda a, b: [np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]  # noqa: E731
    assert all(differ(first.models, ready.models)) and not any(differ(first.denoiser, ready.denoiser))
    assert all(differ(second.denoiser, ready.denoiser)) and not any(differ(second.models, ready.models))
    expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, ready.ema_denoiser, second.denoiser)
    jax.tree.map(close, second.ema_denoiser, expected)


# --------------------------------------------------------------------------------------------- plans


def objective(agent, x, z):
    action, obs = x[..., :2], x[..., 2:]
    reward, next_obs = models(agent, obs, action, z)
    wrong = ((obs[:, 1:] - next_obs[:, :-1]) ** 2).sum((1, 2))
    return 0.7 * reward @ 0.9 ** np.arange(T) - 0.4 * wrong


def slope_of(agent, x, z):
    """By finite differences, element by element."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape[1:]):
        step = np.zeros_like(x)
        step[(slice(None), *i)] = 1e-5
        found[(slice(None), *i)] = (objective(agent, x + step, z) - objective(agent, x - step, z)) / 2e-5
    return found


def test_metadiffuser_the_dual_guide_is_the_gradient_of_reward_and_agreement(module, agent, windows):
    x, z = np.concatenate([windows.steps.action, windows.steps.obs], -1).astype(np.float64), context(agent, windows)
    found = jax.jit(lambda x, z: (module.objective(x, agent, z, args_of()), jax.grad(
        lambda x: module.objective(x, agent, z, args_of()).sum())(x)))(np.float32(x), np.float32(z))  # fmt: skip
    close(found[0], objective(agent, x, z))
    np.testing.assert_allclose(found[1], slope_of(agent, x, z), rtol=1e-2, atol=1e-3)


def chain(module, agent, obs, z, known, key, steps=(2, 1, 0), last=None, ddim=False):
    """The guided reverse chain, from noise or from a noised plan; `ddim`: without further noise."""
    first_key, noise_key = jax.random.split(key)
    abar = module.alpha_bars(3)
    x = np.float64(jax.random.normal(first_key, (B, T, D)))
    x = given(x if last is None else np.sqrt(abar[steps[0]]) * last + np.sqrt(1 - abar[steps[0]]) * x, obs)
    for i, (t, k) in enumerate(zip(steps, jax.random.split(noise_key, len(steps)), strict=True)):
        before = abar[steps[i + 1]] if i + 1 < len(steps) else 1.0
        beta, at = 1 - abar[t] / before, np.full(B, t)
        without = linear(agent.ema_denoiser, x, at, np.zeros_like(z))
        clean = np.clip(without + 1.5 * (linear(agent.ema_denoiser, x, at, z) - without), -1, 1)
        clean = given(clean, obs)  # the guides see the state that is there: no loss trains what the network says of it
        variance = beta * (1 - before) / (1 - abar[t])
        mean = beta * np.sqrt(before) / (1 - abar[t]) * clean + (1 - before) * np.sqrt(1 - beta) / (1 - abar[t]) * x
        if ddim:
            noise = (x - np.sqrt(abar[t]) * clean) / np.sqrt(1 - abar[t])
            mean = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
        mean = mean + variance * known[:, None, None] * slope_of(agent, clean, z)
        x = given(mean + (not ddim) * np.sqrt(variance) * np.asarray(jax.random.normal(k, x.shape)), obs)
    return x


@pytest.mark.parametrize(
    "changes, steps, warm",
    [
        ({}, (2, 1, 0), False),
        ({"sampling_steps": 2, "sampling": "ddim"}, (2, 0), False),
        ({"warm_steps": 2}, (1, 0), True),
    ],
    ids=["whole", "few", "warm"],
)
def test_metadiffuser_plans_are_the_guided_chain_from_the_state(module, agent, windows, changes, steps, warm):
    """A plan without a context is not guided."""
    obs, z, key = windows.steps.obs[:, 0], np.float32(context(agent, windows)), jax.random.key(3)
    last = np.random.default_rng(8).uniform(-1, 1, (B, T, D)).astype(np.float32) if warm else None
    made = jax.jit(module.make_plans)(agent, obs, z, windows.known, key, args_of(**changes), last)
    expected = chain(module, agent, obs, np.float64(z), windows.known, key, steps, last, "sampling" in changes)
    np.testing.assert_allclose(made, expected, rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(made[:, 0, 2:], obs)


def test_metadiffuser_what_the_network_says_of_the_given_state_counts_nothing(module, agent, windows):
    """No loss trains it, and the guides look at the state itself."""
    obs, z, key = windows.steps.obs[:, 0], np.float32(context(agent, windows)), jax.random.key(3)
    plan = jax.jit(module.make_plans)
    made = plan(agent, obs, z, windows.known, key, args_of(reward_guide=5.0, dynamics_guide=5.0))

    class Other:
        @staticmethod
        def apply(params, x, t, z):
            return agent.nets.denoiser.apply(params, x, t, z).at[:, 0, 2:].add(0.3)

    other = agent.replace(nets=agent.nets._replace(denoiser=Other))
    close(plan(other, obs, z, windows.known, key, args_of(reward_guide=5.0, dynamics_guide=5.0)), made)


@pytest.mark.parametrize("warm", [0, 2])
def test_metadiffuser_acts_for_the_task_that_its_transitions_tell(module, agent, warm):
    """The mean over the episode so far; of the step before the first observation nothing, and no plan either."""
    args, r = args_of(warm_steps=warm), np.random.default_rng(7)
    obs, before = (r.uniform(-1, 1, (B, 3)).astype(np.float32) for _ in range(2))
    action, total = r.uniform(-1, 1, (B, 2)).astype(np.float32), r.normal(size=(B, Z)).astype(np.float32)
    count, reward = np.array([-1, 0, 1, 4]), np.float32([0, 1, 2, 3])
    total[:2] = 0  # nothing was seen
    plan = r.uniform(-1, 1, (B, T, D)).astype(np.float32)
    carry, key = module.Carry(before, action, total, count, plan), jax.random.key(2)

    @jax.jit
    def both(carry, z, known):
        acted = module.act(agent, carry, obs, reward, key, args)
        if not warm:
            return acted, module.make_plans(agent, obs, z, known, key, args)
        anew, warm_key = jax.random.split(key)
        rest = plan[:, [1, 2, 3, 3]]
        made = module.make_plans(agent, obs, z, known, warm_key, args, rest)
        return acted, made.at[0].set(module.make_plans(agent, obs, z, known, anew, args)[0])

    seen = features(agent, before, action, 0.5 * reward[:, None] - 0.25, obs)
    expected = total + np.where(count >= 0, 1, 0)[:, None] * seen
    z = expected / np.array([1, 1, 2, 5])[:, None]
    (acted, new), made = jax.device_get(both(carry, np.float32(z), np.float32([0, 1, 1, 1])))
    close(new.total, expected)
    assert new.count.tolist() == [0, 1, 2, 5] and not z[0].any()
    np.testing.assert_allclose(acted, np.clip(made[:, 0, :2], -1, 1), rtol=1e-3, atol=1e-4)
    for now, known in ((new.obs, obs), (new.action, acted)):
        np.testing.assert_array_equal(now, known)
    np.testing.assert_allclose(new.plan, made, rtol=1e-3, atol=1e-4)
    begin = module.initial_carry(agent, args)
    assert begin.obs.shape == (3,) and begin.action.shape == (2,) and int(begin.count) == -1
    assert begin.plan.shape == (T, D)


def test_metadiffuser_makes_a_plan_in_no_more_steps_than_there_are_and_says_so(capsys):
    args = load("metadiffuser").resolved(load("metadiffuser").Args(diffusion_steps=4, sampling_steps=9, warm_steps=0))
    assert args.sampling_steps == 4
    assert capsys.readouterr().out == "--sampling-steps 9: a plan is made in all 4 there are\n"
    with pytest.raises(InputError, match="--warm-steps 6: a plan is made in --sampling-steps 4"):
        load("metadiffuser").resolved(load("metadiffuser").Args(diffusion_steps=4, sampling_steps=9, warm_steps=6))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"window_steps": 7, "channel_factors": (1, 2)}, "--window-steps must be a multiple of 2"),
        ({"diffusion_steps": 1}, "--diffusion-steps and --sampling-steps must be at least 2"),
        ({"warm_steps": 4}, "--warm-steps 4: a plan is made in --sampling-steps 3"),
        ({"channels": 4}, "--channels must be a multiple of 8"),
        ({"channel_factors": ()}, "--channel-factors: at least one level"),
        ({"channel_factors": (1, -1)}, "--channel-factors: at least one level, of a factor of at least 1"),
        ({"window_steps": 32}, "--window-steps 32: no episode of .* has so many rows"),
    ],
)
def test_metadiffuser_refuses(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load("metadiffuser").main(small("metadiffuser", pendulum, tmp_path / "run", env="none", **changes))


def test_metadiffuser_diffuser_neither_learns_nor_plans_with_a_context(module):
    args = module.Args(**module.PRESETS["diffuser"])
    assert args.guidance == args.reward_guide == args.dynamics_guide == 0.0 and args.context_dropout == 1.0
