"""The model, sampler and expanded targets of dwm against the same equations in plain numpy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import SPEC, B, close, differences, heads, mlp

from shared.errors import InputError
from shared.sequences import Sequences
from shared.transitions import FIELDS, Batch, Transitions

SMALL = {
    "window_steps": 4, "rollout_steps": 2.0, "diffusion_steps": 4, "sampling_steps": 2, "model_updates": 4,
    "windows_per_update": 4, "channels": 8, "channel_factors": (1,), "ema_start": 0, "model_hidden_dims": (8,),
}  # fmt: skip
D, T = 5, 4
"""Columns of a row of SPEC: obs 3, reward, ended; steps of a window."""


class Linear(NamedTuple):
    """In the U-Net's place: W x + 0.1 t b + the sum of the action + told y."""

    def apply(self, params, x, t, action, wanted, told):
        return x @ params["w"] + 0.1 * t[:, None, None] * params["b"] + (action.sum(-1) + told * wanted)[:, None, None]


def linear(params, x, t, action, wanted, told):
    given = (action.sum(-1) + told * wanted)[:, None, None]
    return x @ np.float64(params["w"]) + 0.1 * np.asarray(t)[:, None, None] * params["b"] + given


def args_of(**changes):
    return load("dwm").Args(**{**SMALL, "hidden_dims": (8, 8), "batch_size": B} | changes)


@functools.cache
def tiny_agent(world_model="diffusion"):
    """IQL's, with ranges that are not [-1, 1]; the diffusion model is linear, and its average another one.

    Nothing of it is compiled.
    """
    r = np.random.default_rng(0)
    start = functools.partial(load("dwm").init, args=args_of(world_model=world_model, learner="iql"), spec=SPEC)
    agent = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(start, jax.random.key(0)))
    fill = lambda tree: jax.tree.map(lambda x: np.float32(0.4 * r.normal(size=x.shape)), tree)  # noqa: E731
    names = "model", "actor", "critic", "value", "target_actor", "target_critic"
    agent = agent.replace(**{name: fill(getattr(agent, name)) for name in names})
    low, high = np.float32([-2, 0, 1, -3, 0]), np.float32([4, 1, 3, 5, 1])
    agent = agent.replace(low=low, high=high)
    if world_model == "one_step":
        return agent
    some = lambda: {"w": np.float32(0.4 * r.normal(size=(D, D))), "b": np.float32(r.normal(size=D))}  # noqa: E731
    return agent.replace(nets=agent.nets._replace(model=Linear()), model=some(), ema_model=some())


def given(x, obs):
    x = np.array(x, np.float64)
    x[:, 0, :3], x[:, 0, 4] = obs, -1
    return x


def some_windows(seed=1):
    r = np.random.default_rng(seed)
    x = r.uniform(-1, 1, (B, T, D)).astype(np.float32)
    x[..., 4] = np.where(np.arange(T) > r.integers(1, T + 1, (B, 1)), 1, -1)
    return x, r.uniform(-1, 1, (B, T, 2)).astype(np.float32), r.uniform(0, 1, B).astype(np.float32)


def unit(x, agent, at=slice(None)):
    low, high = np.float64(agent.low[at]), np.float64(agent.high[at])
    return (2 * x - low - high) / (high - low)


def data_units(x, agent):
    low, high = np.float64(agent.low), np.float64(agent.high)
    return 0.5 * (x * (high - low) + low + high)


# ------------------------------------------------------------------------------------- the diffusion


def test_dwm_shares_what_it_shares():
    """The U-Net's blocks and the schedule are adaptdiffuser's, the networks of TD3+BC SynthER's."""
    assert not differences(load("dwm"), load("adaptdiffuser")) & {
        "mish", "sinusoidal", "neighbours", "ConvBlock", "ResidualBlock", "alpha_bars", "to_unit",
    }  # fmt: skip
    assert not differences(load("dwm"), load("synther")) & {"Actor", "q_values", "update_actor", "update", "act"}


@pytest.mark.parametrize("sampling", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_dwm_few_steps_are_the_posteriors_of_a_shorter_chain(sampling, steps):
    """Marginals are kept: of x_0 = 1 and noise, the next step has mean sqrt(abar') and variance 1 - abar'."""
    module = load("dwm")
    table = module.posteriors(args_of(sampling=sampling, sampling_steps=steps))
    at = {1: [3], 2: [3, 0], 4: [3, 2, 1, 0]}[steps]
    np.testing.assert_array_equal(table["t"], at)
    abar = module.alpha_bars(4)[at]
    following = np.append(abar[1:], 1.0)
    np.testing.assert_allclose(table["of_x_0"] + table["of_x_t"] * np.sqrt(abar), np.sqrt(following), rtol=1e-6)
    var = table["of_x_t"] ** 2 * (1 - abar) + table["std"] ** 2
    np.testing.assert_allclose(var, 1 - following, atol=1e-9)
    assert (table["std"][:-1] > 0).all() == (sampling == "ddpm" or steps == 1) and table["std"][-1] == 0
    if sampling == "ddpm" and steps == 4:
        beta = 1 - abar / following
        np.testing.assert_allclose(table["std"] ** 2, beta * (1 - following) / (1 - abar), rtol=1e-6)


def test_dwm_loss_of_the_diffusion_model():
    module, agent, args, key = load("dwm"), tiny_agent(), args_of(return_dropout=0.5), jax.random.key(5)
    x, action, wanted = some_windows()
    t_key, noise_key, told_key = jax.random.split(key, 3)
    t = np.asarray(jax.random.randint(t_key, (B,), 0, 4))
    told = np.float64(jax.random.uniform(told_key, (B,)) >= 0.5)
    assert 0 < told.sum() < B
    left = module.alpha_bars(4)[t][:, None, None]
    noised = np.sqrt(left) * x + np.sqrt(1 - left) * np.asarray(jax.random.normal(noise_key, x.shape))
    clean = given(linear(agent.model, given(noised, x[:, 0, :3]), t, action[:, 0], wanted, told), x[:, 0, :3])
    loss = jax.jit(module.diffusion_loss)(agent.model, agent, x, action[:, 0], wanted, key, args)
    close(loss, ((clean - x) ** 2).mean())


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_dwm_samples_are_the_short_reverse_chain_of_the_average(guidance):
    module, agent, key = load("dwm"), tiny_agent(), jax.random.key(3)
    args = args_of(guidance=np.float32(guidance))
    _, action, wanted = some_windows()
    action, obs = action[:, 0], some_windows(4)[0][:, 1, :3]
    table = module.posteriors(args)
    first_key, noise_key = jax.random.split(key)
    x, ema = given(jax.random.normal(first_key, (B, T, D)), obs), agent.ema_model
    for i, k in enumerate(jax.random.split(noise_key, 2)):
        t = np.full(B, table["t"][i])
        with_y, without = (linear(ema, x, t, action, wanted, told) for told in (1, 0))
        clean = np.clip(without + guidance * (with_y - without), -1, 1)
        noise = np.asarray(jax.random.normal(k, x.shape))
        x = given(table["of_x_0"][i] * clean + table["of_x_t"][i] * x + table["std"][i] * noise, obs)
    close(jax.jit(module.sampled_windows)(agent, obs, action, wanted, key, args), x)
    raw = data_units(np.concatenate([obs, 0 * obs[:, :2]], -1), agent)[:, :3].astype(np.float32)
    close(jax.jit(module.predict)(agent, raw, action, wanted, key, args), x)


def test_dwm_unet_is_told_what_is_asked_or_not():
    """With the flag down it does not depend on the return-to-go; on the action it always does."""
    net = load("dwm").TemporalUNet(8, (1,))
    x, action, wanted = some_windows()
    t, told = jnp.arange(B), np.float32([1, 0, 1, 0, 1])
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, action[:, 0], wanted, told)
    r = np.random.default_rng(2)
    params = jax.tree.map(lambda x: np.float32(0.3 * r.normal(size=x.shape)), params)
    apply = jax.jit(net.apply)
    first = apply(params, x, t, action[:, 0], wanted, told)
    changed = np.abs(first - apply(params, x, t, action[:, 0], wanted + 1, told)).max((1, 2))
    np.testing.assert_array_equal(changed > 1e-6, told > 0)
    assert (np.abs(first - apply(params, x, t, action[:, 1], wanted, told)).max((1, 2)) > 1e-6).all()
    assert first.shape == x.shape


# ----------------------------------------------------------------------------------- the one-step model


def one_step(params, obs, action):
    out = mlp(params, obs, action)
    return np.concatenate([obs + out[..., :3], out[..., 3:]], -1)


def test_dwm_loss_of_the_one_step_model():
    """Of steps that are over nothing is learned."""
    module, agent = load("dwm"), tiny_agent("one_step")
    x, action, _ = some_windows()
    found, errors = one_step(agent.model, x[:, :-1, :3], action[:, :-1]), []
    for b in range(B):
        for h in range(T - 1):
            if x[b, h, 4] < 0:
                target = np.append(x[b, h + 1, :3], [x[b, h, 3], x[b, h + 1, 4]])
                errors.append(((found[b, h] - target) ** 2).mean())
    assert len(errors) < B * (T - 1)
    close(jax.jit(module.one_step_loss)(agent.model, agent, x, action), np.mean(errors))


@pytest.mark.parametrize("of_data", [False, True])
def test_dwm_one_step_model_is_unrolled_with_the_policy_or_given_actions(of_data):
    module, agent = load("dwm"), tiny_agent("one_step")
    x, action, _ = some_windows()
    obs, a, expected = np.float64(x[:, 0, :3]), np.float64(action[:, 0]), np.zeros((B, T, D))
    expected[:, 0, :3], expected[:, 0, 4] = obs, -1
    for h in range(T - 1):
        row = one_step(agent.model, obs, a).clip(-1, 1)
        expected[:, h, 3], expected[:, h + 1, :3], expected[:, h + 1, 4] = row[:, 3], row[:, :3], row[:, 4]
        obs = row[:, :3]
        raw = data_units(np.concatenate([obs, 0 * obs[:, :2]], -1), agent)[:, :3]
        a = action[:, h + 1] if of_data else np.tanh(mlp(agent.actor, raw))
    given_actions = action if of_data else None
    close(jax.jit(module.unrolled_windows)(agent, x[:, 0, :3], action[:, 0], args_of(), given_actions), expected)


# ------------------------------------------------------------------------------------------- windows


def windows_of():
    """Three episodes of six rows: one is cut, one terminates at its end, one in its middle and goes on."""
    n = 18
    obs = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    terminal = np.isin(np.arange(n), [11, 14]).astype(np.float32)
    reward, action = np.arange(n) + 100.0, np.stack([np.arange(n), np.arange(n)], 1)
    rows = np.concatenate([obs, action, reward[:, None], terminal[:, None], obs + 0.5], 1).astype(np.float32)
    start = np.repeat([0, 6, 12], 6)
    module, data = load("dwm"), Transitions(jnp.asarray(rows), None, None, SPEC, FIELDS)
    starts = np.array([0, 1, 2, *range(6, 15)])
    wanted = jnp.stack([jnp.arange(n), 100.0 + jnp.arange(n)])
    discounts = jnp.float32([0.5, 0.9])
    return module.Windows(
        Sequences(data, jnp.asarray(start), jnp.asarray(start + 5)), discounts, wanted, starts, starts
    )


def test_dwm_windows_never_leave_their_episode():
    """They are whole, or go on standing still after a terminal row, whose next_obs is the last."""
    windows = windows_of()
    batch = jax.jit(windows.sample, static_argnums=2)(jax.random.key(0), windows.starts, 300, args_of(discount=0.9))
    first = np.asarray(batch.action[:, 0, 0]).astype(int)
    assert set(first) == set(windows.starts)
    np.testing.assert_array_equal(batch.wanted, 100 + first)
    for i, row in enumerate(first):
        end = {0: 99, 1: 11, 2: 14}[row // 6]
        for h in range(T):
            over, at = row + h > end, min(row + h, end)
            obs = np.arange(3 * at, 3 * at + 3) + 0.5 * over
            np.testing.assert_array_equal(batch.rows[i, h], [*obs, 0 if over else 100 + at, over])


def test_dwm_episodes_are_held_out_whole():
    held_out = load("dwm").held_out_rows
    start = np.repeat(np.arange(0, 200, 10), 10)
    rows = held_out(start)
    assert rows.sum() == 20 and all(len(set(rows[start == s])) == 1 for s in np.unique(start))
    assert held_out(np.repeat([0, 3], 3)).sum() == 3 and not held_out(np.zeros(5, int)).any()


@pytest.mark.long
def test_dwm_judges_by_distances_in_half_ranges():
    module, agent, windows = load("dwm"), tiny_agent("one_step"), windows_of()
    args, key = args_of(world_model="one_step"), jax.random.key(1)
    found = jax.jit(module.judge)(agent, key, args, windows)
    batch = windows.sample(jax.random.split(key)[0], windows.starts, 500, args)
    first = np.float32(unit(batch.rows[:, 0, :3], agent, slice(3)))
    predicted = np.asarray(module.unrolled_windows(agent, first, batch.action[:, 0], args, batch.action))
    apart = np.linalg.norm(predicted[..., :3] - unit(batch.rows, agent)[..., :3], axis=-1)
    ended = np.asarray(batch.rows[..., -1])
    assert 0 < ended[:, 3].mean() < 1  # what stands still after an end is not judged
    apart = np.average(apart, axis=0, weights=1 - ended)
    assert found.keys() == {"error_1", "error_3"}
    close(found["error_1"], apart[1])
    close(found["error_3"], apart[3])


# --------------------------------------------------------------------------------------- the targets


@pytest.mark.parametrize("steps", [1.0, 3.0])
def test_dwm_expanded_target(steps):
    """Rewards before H and the value at H, discounted; nothing after an end, be it the data's or a predicted one."""
    module, r = load("dwm"), np.random.default_rng(0)
    reward, value = r.normal(size=(4, T)), r.normal(size=4)
    ended, terminal = np.zeros((4, T)), np.array([0, 1.0, 0, 0])
    ended[2, 2] = 1  # and not in the row after it: what has ended stays so
    expected = np.zeros(4)
    for b in range(4):
        alive = 1.0
        for h in range(int(steps) + 1):
            if (h > 0 and terminal[b]) or ended[b, h]:
                alive = 0.0
            expected[b] += alive * 0.9**h * (value[b] if h == steps else reward[b, h])
    args = args_of(discount=0.9, rollout_steps=steps)
    close(jax.jit(module.expanded)(reward, ended, terminal, value, args), expected)


@pytest.mark.long
@pytest.mark.parametrize("learner", ["td3_bc", "iql"])
def test_dwm_target_is_the_mean_of_futures_less_their_deviation(learner, batch):
    """The first reward is the data's; V is TD3's or IQL's, of the state at H."""
    module, agent = load("dwm"), tiny_agent()
    args = args_of(learner=learner, futures=2, pessimism=0.7, policy_noise=0.6, noise_clip=0.4, discount=0.9)
    key = jax.random.key(7)
    model_key, value_key = jax.random.split(key)
    repeated = Batch(*(None if x is None else np.concatenate([x, x]) for x in batch))
    wanted = np.full(2 * B, 0.9, np.float32)
    x = jax.jit(module.predict)(agent, repeated.obs, repeated.action, wanted, model_key, args)
    rows = data_units(x, agent)
    obs = rows[:, 2, :3]
    if learner == "iql":
        value = mlp(agent.value, obs)[:, 0]
    else:
        noise = np.clip(0.6 * np.asarray(jax.random.normal(value_key, (2 * B, 2))), -0.4, 0.4)
        value = heads(agent.target_critic, obs, np.clip(np.tanh(mlp(agent.target_actor, obs)) + noise, -1, 1)).min(0)
    ended = rows[:, :, 4] > 0.5
    goes_on = 1 - repeated.terminal
    second, third = goes_on * (1 - ended[:, 1]), goes_on * (1 - ended[:, 1]) * (1 - ended[:, 2])
    assert ended.any() and not ended.all()
    y = repeated.reward + 0.9 * second * rows[:, 1, 3] + 0.81 * third * value
    y = y.reshape(2, B)
    found, info = jax.jit(module.target)(agent, batch, key, args)
    close(found, y.mean(0) - 0.7 * y.std(0))
    close(info["off_data"], module.off_data(x[:B, 2, :3], np.float32(unit(batch.obs, agent, slice(3)))))


@pytest.mark.long
def test_dwm_losses_of_the_learners(batch):
    module, args = load("dwm"), args_of(learner="iql", expectile=0.8, beta=2.0, max_weight=0.5)
    agent, y = tiny_agent(), np.float32([1, 2, 3, 4, 5])
    close(module.critic_loss(agent.critic, agent, batch, y, args)[0],
          sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action)))  # fmt: skip
    q, v = heads(agent.target_critic, batch.obs, batch.action).min(0), mlp(agent.value, batch.obs)[:, 0]
    u, pi = q - v, np.tanh(mlp(agent.actor, batch.obs))
    close(module.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.2, 0.8) * u**2).mean())
    weight = np.minimum(np.exp(2 * u), 0.5)
    assert len(set(weight)) > 1 and weight.max() == 0.5
    close(module.actor_loss(agent.actor, agent, batch, args)[0], (weight * ((pi - batch.action) ** 2).sum(1)).mean())
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -2.5 / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean()
    close(module.actor_loss(agent.actor, agent, batch, args_of())[0], expected)


def test_dwm_distance_from_the_data():
    r = np.random.default_rng(0)
    x, known = r.normal(size=(4, 3)), r.normal(size=(7, 3))
    close(load("dwm").off_data(x, known), np.mean([min(np.linalg.norm(k - o) for k in known) for o in x]))


def test_dwm_average_follows_every_tenth_update():
    module, args = load("dwm"), args_of(ema_decay=0.8, ema_start=20)
    update, batch = jax.jit(module.update_model), load("dwm").WindowBatch(*some_windows())
    for done, tau in ((3, 1.0), (28, 0.0), (29, 0.2)):
        agent = tiny_agent().replace(fitted=jnp.int32(done))
        agent = agent.replace(model_opt=module.optax.adam(1e-3).init(agent.model))
        new, _ = update(agent, batch, jax.random.key(0), args)
        expected = jax.tree.map(lambda o, n, tau=tau: (1 - tau) * o + tau * n, agent.ema_model, new.model)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.ema_model, expected)
        assert int(new.fitted) == done + 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"window_steps": 5, "channel_factors": (1, 2)}, "--window-steps must be a multiple of 2"),
        ({"channels": 4}, "--channels must be a multiple of 8"),
        ({"channel_factors": ()}, "--channel-factors: at least one level"),
        ({"channel_factors": (1, 0)}, "--channel-factors: at least one level, of a factor of at least 1"),
        ({"rollout_steps": (1.0, 4.0)}, "--rollout-steps must be whole, at least 1 and less than --window-steps 4"),
        ({"sampling_steps": 5}, "--sampling-steps must be from 1 to --diffusion-steps 4, not 5.$"),
        ({"model_updates": 0}, "--model-updates must be at least 1, not 0"),
        ({"pessimism": (0.0, 1.0)}, "--pessimism .* needs --futures of at least 2"),
        ({"world_model": "one_step", "futures": 2}, "--futures 2: the model of single steps foretells one"),
        ({"window_steps": 32}, "--window-steps 32: the longest episode of .* has 30 rows"),
    ],
)
def test_dwm_refuses(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load("dwm").main(small("dwm", pendulum, tmp_path / "run", env="none", **changes))
