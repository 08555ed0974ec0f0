"""The plans, their diffusion model and Q of ldcq against the same equations in plain numpy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from networks_in_numpy import sinusoidal
from reference import SPEC, B, close, differences, exact_gelu, mlp
from scipy.stats import norm

from shared.errors import InputError
from shared.sequences import Sequences
from shared.transitions import FIELDS, Transitions

SMALL = {
    "window_steps": 4, "replan_every": 2, "latent_dim": 3, "diffusion_steps": 4, "sampling_steps": 2, "extra_steps": 1,
    "plan_candidates": 3, "backup_candidates": 3, "plan_updates": 4, "diffusion_updates": 4, "denoiser_dims": (8,),
    "embedding_dim": 8,
}  # fmt: skip
H, Z = 4, 3
"""Steps of a window, size of a plan."""


class Linear(NamedTuple):
    """In the denoiser's place: W x + 0.1 t + the sum of the state."""

    def apply(self, params, x, t, obs):
        return x @ params["w"] + 0.1 * t[:, None] + obs.sum(-1, keepdims=True)


def linear(params, x, t, obs):
    return x @ np.float64(params["w"]) + 0.1 * np.asarray(t)[:, None] + obs.sum(-1, keepdims=True)


def args_of(**changes):
    return load("ldcq").Args(**{**SMALL, "hidden_dims": (8, 8), "batch_size": B} | changes)


@functools.cache
def tiny_agent():
    """With a linear denoiser and plans of another scale than 1; nothing of it is compiled."""
    r = np.random.default_rng(0)
    start = functools.partial(load("ldcq").init, args=args_of(), spec=SPEC)
    agent = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(start, jax.random.key(0)))
    some = lambda tree: jax.tree.map(lambda x: np.float32(0.4 * r.normal(size=x.shape)), tree)  # noqa: E731
    networks = {name: some(getattr(agent, name)) for name in ("plans", "critic", "target_critic")}
    scale = {"plan_mean": np.float32(r.normal(size=Z)), "plan_std": np.float32(r.uniform(0.5, 2, Z))}
    denoiser = {"w": np.float32(0.4 * r.normal(size=(Z, Z)))}
    return agent.replace(nets=agent.nets._replace(denoiser=Linear()), denoiser=denoiser, **networks, **scale)


def started():
    """As it begins."""
    return jax.jit(functools.partial(load("ldcq").init, args=args_of(), spec=SPEC))(jax.random.key(0))


def gaussian(params, *inputs):
    mean, std = np.split(mlp(params, *inputs), 2, -1)
    return mean, np.logaddexp(0, std) + 0.01


def layer_norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def norm_mlp(p, x):
    for i in range(sum(name.startswith("Dense") for name in p)):
        x = exact_gelu(layer_norm(p[f"LayerNorm_{i}"], dense(p[f"Dense_{i}"], x)))
    return x


def q_of(critics, obs, plan):
    """[E, ...]"""
    found = []
    for e in range(2):
        p = jax.tree.map(lambda x, e=e: x[e], critics)["params"]
        x = np.concatenate([norm_mlp(p["NormMLP_0"], obs), norm_mlp(p["NormMLP_1"], plan)], -1)
        found.append(dense(p["Dense_0"], norm_mlp(p["NormMLP_2"], x))[..., 0])
    return np.stack(found)


def window_batch(seed=1):
    """Two of five windows end before their last step."""
    r = np.random.default_rng(seed)
    terminal = np.float32([0, 1, 0, 0, 1])
    mask = np.float32(np.arange(H) < np.array([4, 2, 4, 4, 3])[:, None])
    obs, action = r.normal(size=(B, H, 3)), r.uniform(-0.9, 0.9, (B, H, 2))
    obs, action = np.float32(mask[..., None] * obs), np.float32(mask[..., None] * action)
    reward, next_obs = np.float32(r.normal(size=B)), np.float32(r.normal(size=(B, 3)))
    known = np.float32([1, 0, 1, 1, 1])
    return load("ldcq").WindowBatch(mask, obs, action, reward, terminal, next_obs, known)


def posterior(agent, batch):
    rows = np.concatenate([batch.obs, batch.action, batch.mask[..., None]], -1).reshape(B, -1)
    return gaussian(agent.plans[0], rows)


# --------------------------------------------------------------------------------------------- plans


def test_ldcq_shares_what_it_shares():
    """The schedule and windows are those of the files beside it."""
    module = load("ldcq")
    assert not differences(module, load("dwm")) & {"alpha_bars", "posteriors", "sinusoidal"}
    assert not differences(module, load("tacorl")) & {"clipped_adam"}


@pytest.mark.long
def test_ldcq_begins_with_pytorchs_weights_at_the_rates_of_the_authors_scripts():
    """Uniform within 1 / sqrt(inputs); Q's rate is that of train_q_net.py, not the default of its class."""
    module, agent = load("ldcq"), started()
    whole = module.Args()
    assert (whole.critic_lr, whole.plan_lr, whole.tau, whole.discount) == (5e-4, 5e-5, 0.005, 0.995)
    trees = agent.plans, agent.denoiser, jax.tree.map(lambda x: x[0], agent.critic)
    layers = [x for path, x in jax.tree_util.tree_leaves_with_path(trees) if path[-1].key == "kernel"]
    assert len(layers) > 20
    for kernel in layers:
        bound = len(kernel) ** -0.5
        assert np.abs(kernel).max() <= bound
        if kernel.size > 50:
            assert np.abs(kernel).max() > 0.9 * bound


def test_ldcq_layers_have_the_exact_gelu():
    """As the released code has it; JAX's default differs by 1e-4 here."""
    x = jnp.float32([[1.0, -1.0]])  # what is normalised already
    p = {
        "Dense_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "LayerNorm_0": {"scale": jnp.ones(2), "bias": -2.0 - x[0]},
    }
    out = load("ldcq").NormMLP((2,)).apply({"params": p}, x)
    np.testing.assert_allclose(out, [exact_gelu(np.float64([-2.0, -2.0]))], rtol=1e-4)


def test_ldcq_loss_of_the_autoencoder():
    """Actions number by number, each told those before it; steps after an end are not learned."""
    module, agent, batch, key = load("ldcq"), tiny_agent(), window_batch(), jax.random.key(2)
    mean, std = posterior(agent, batch)
    plan = mean + std * np.asarray(jax.random.normal(key, mean.shape))
    _, prior, decoder, end_decoder = agent.plans
    p_mean, p_std = gaussian(prior, batch.obs[:, 0])
    kl = (np.log(p_std / std) + (std**2 + (mean - p_mean) ** 2) / (2 * p_std**2) - 0.5).sum(-1).mean()
    log_probs = []
    for b in range(B):
        for h in range(int(batch.mask[b].sum())):
            total = 0.0
            for i in range(2):
                one = {"params": decoder["params"][f"Gaussian_{i}"]}
                m, s = gaussian(one, batch.obs[b, h], plan[b], *[batch.action[b, h, j : j + 1] for j in range(i)])
                total += norm.logpdf(batch.action[b, h, i], m[0], s[0])
            log_probs.append(total)
    assert len(log_probs) == 17
    end = norm.logpdf(batch.next_obs, *gaussian(end_decoder, batch.obs[:, 0], plan)).sum(-1)
    end = end[batch.successor > 0].mean()  # of the states that are known
    loss, info = jax.jit(module.plan_loss)(agent.plans, agent, batch, key, args_of(kl_weight=0.3))
    np.testing.assert_allclose(loss, -np.mean(log_probs) - end / H + 0.3 * kl / H, rtol=1e-3)
    close(info["kl"], kl / H)


def test_ldcq_decoder_is_told_its_own_means_where_it_acts():
    agent, r = tiny_agent(), np.random.default_rng(3)
    obs, plan = np.float32(r.normal(size=(B, 3))), np.float32(r.normal(size=(B, Z)))
    first = gaussian({"params": agent.plans[2]["params"]["Gaussian_0"]}, obs, plan)
    second = gaussian({"params": agent.plans[2]["params"]["Gaussian_1"]}, obs, plan, first[0])
    mean, std = jax.jit(agent.nets.decoder.apply)(agent.plans[2], obs, plan)
    close(mean, np.concatenate([first[0], second[0]], -1))
    close(std, np.concatenate([first[1], second[1]], -1))


# ------------------------------------------------------------------------------------------- windows


def windows_of():
    """Three episodes of six rows: one is cut, one terminates at its end, one in its middle and goes on."""
    n = 18
    obs = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    terminal = np.isin(np.arange(n), [11, 14]).astype(np.float32)
    reward, action = np.arange(n) + 100.0, np.stack([np.arange(n), np.arange(n)], 1)
    known = np.float32(np.arange(n) != 11)
    rows = np.concatenate([obs, action, reward[:, None], terminal[:, None], obs + 0.5, known[:, None]], 1)
    start, starts = np.repeat([0, 6, 12], 6), np.array([0, 1, 2, *range(6, 15)])
    data = Transitions(jnp.float32(rows), None, None, SPEC, (*FIELDS, "successor"))
    return load("ldcq").Windows(Sequences(data, jnp.asarray(start), jnp.asarray(start + 5)), jnp.asarray(starts))


def test_ldcq_windows_never_leave_their_episode():
    """They are whole, or end with a terminal row; what they are worth ends there, too."""
    windows = windows_of()
    starts = np.asarray(windows.starts)
    batch = jax.jit(windows.take)(jnp.arange(len(starts)), args_of(discount=0.9))
    for i, row in enumerate(starts):
        last = min(row + H - 1, {0: 99, 1: 11, 2: 14}[row // 6])
        steps = np.arange(row, last + 1)
        np.testing.assert_array_equal(batch.mask[i], np.arange(H) < len(steps))
        np.testing.assert_array_equal(batch.action[i, :, 0], np.append(steps, np.zeros(H - len(steps))))
        np.testing.assert_array_equal(batch.obs[i, : len(steps), 0], 3 * steps)
        np.testing.assert_array_equal(batch.next_obs[i], np.arange(3 * last, 3 * last + 3) + 0.5)
        assert batch.terminal[i] == (last in (11, 14)) and batch.successor[i] == (last != 11)
        close(batch.reward[i], (0.9 ** np.arange(len(steps)) * (100 + steps)).sum())


# ------------------------------------------------------------------------------------- the diffusion


def test_ldcq_loss_of_the_diffusion_model():
    module, agent, batch, key = load("ldcq"), tiny_agent(), window_batch(), jax.random.key(5)
    plan = np.random.default_rng(4).normal(size=(B, Z)).astype(np.float32)
    t_key, noise_key = jax.random.split(key)
    t = np.asarray(jax.random.randint(t_key, (B,), 0, 4))
    abar = module.alpha_bars(4)[t][:, None]
    noised = np.sqrt(abar) * plan + np.sqrt(1 - abar) * np.asarray(jax.random.normal(noise_key, plan.shape))
    clean = linear(agent.denoiser, noised, t, batch.obs[:, 0])
    snr = abar / (1 - abar)
    assert snr.min() < 2.0 < snr.max()
    loss = jax.jit(module.diffusion_loss)(agent.denoiser, agent, plan, batch.obs[:, 0], key, args_of(snr_clip=2.0))
    close(loss, (np.minimum(snr, 2.0) * (clean - plan) ** 2).mean())


@pytest.mark.parametrize("sampling", ["ddpm", "ddim"])
def test_ldcq_plans_are_the_short_reverse_chain_whose_last_step_is_repeated(sampling):
    module, agent, key = load("ldcq"), tiny_agent(), jax.random.key(3)
    args, obs = args_of(extra_steps=2, sampling=sampling), window_batch().next_obs
    table = module.posteriors(args)
    np.testing.assert_array_equal(table["t"], [3, 0])
    first_key, noise_key = jax.random.split(key)
    x = np.float64(jax.random.normal(first_key, (B, Z)))
    noise = jax.random.normal(jax.random.split(noise_key, 4)[0], (B, Z))
    clean = linear(agent.denoiser, x, np.full(B, 3), obs)
    x = table["of_x_0"][0] * clean + table["of_x_t"][0] * x + table["std"][0] * np.asarray(noise)
    for _ in range(3):  # without noise, the last step is the prediction itself
        x = linear(agent.denoiser, x, np.zeros(B), obs)
    close(jax.jit(module.sample_plans)(agent, obs, key, args), x)


def test_ldcq_plans_of_the_prior_have_the_same_scale():
    module, agent, key, obs = load("ldcq"), tiny_agent(), jax.random.key(3), window_batch().next_obs
    mean, std = gaussian(agent.plans[1], obs)
    plan = mean + std * np.asarray(jax.random.normal(key, (B, Z)))
    found = jax.jit(module.sample_plans)(agent, obs, key, args_of(proposal="prior"))
    close(found, (plan - agent.plan_mean) / agent.plan_std)


def test_ldcq_denoiser():
    net = load("ldcq").Denoiser((8, 4), 8)
    r, t = np.random.default_rng(2), np.arange(B)
    x, obs = r.normal(size=(B, Z)).astype(np.float32), r.normal(size=(B, 3)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, obs)
    params = jax.tree.map(lambda s: np.float32(0.3 * r.normal(size=s.shape)), shapes)
    p = params["params"]
    time, state = norm_mlp(p["NormMLP_0"], sinusoidal(t, 128)), norm_mlp(p["NormMLP_1"], np.float64(obs))

    def block(i, x):
        b = p[f"ResidualBlock_{i}"]
        scale, shift = np.split(dense(b["Dense_0"], time), 2, -1)
        h = np.concatenate([x, layer_norm(b["LayerNorm_0"], dense(b["Dense_1"], state))], -1)
        h = exact_gelu(layer_norm(b["LayerNorm_1"], dense(b["Dense_2"], h)) * (scale + 1) + shift)
        return x + exact_gelu(layer_norm(b["LayerNorm_2"], dense(b["Dense_3"], h)))

    first = dense(p["Dense_0"], np.float64(x))
    top = block(0, first)
    low = block(1, norm_mlp(p["NormMLP_2"], top))
    up = block(2, norm_mlp(p["NormMLP_3"], low) + top)
    expected = dense(p["Dense_1"], block(3, up + first))
    np.testing.assert_allclose(jax.jit(net.apply)(params, x, t, obs), expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------- values


def candidates(agent, obs, key, args, n=3):
    plan = np.asarray(jax.jit(load("ldcq").sample_plans)(agent, jnp.concatenate([obs] * n), key, args))
    plan = plan.reshape(n, B, Z)
    return plan, q_of(agent.target_critic, np.stack([obs] * n), plan)


def test_ldcq_each_critic_picks_the_plan_that_the_other_prefers():
    module, agent, batch, key = load("ldcq"), tiny_agent(), window_batch(), jax.random.key(6)
    args = args_of(discount=0.9)
    _, q = candidates(agent, batch.next_obs, key, args)
    y, info = jax.jit(module.target)(agent, batch, key, args)
    assert (q[0].argmax(0) != q[1].argmax(0)).any()
    for i in range(2):
        best = q[1 - i].argmax(0)
        next_q = q.min(0)[best, np.arange(B)]
        close(y[i], batch.reward + 0.9**4 * (1 - batch.terminal) * next_q)
    close(info["choice_gap"], (q.min(0).max(0) - q.min(0).mean(0)).mean())


def test_ldcq_critic_loss_is_weighted():
    module, agent, batch = load("ldcq"), tiny_agent(), window_batch()
    r = np.random.default_rng(5)
    plan, y, weight = (np.float32(r.normal(size=s)) for s in ((B, Z), (2, B), B))
    error = (q_of(agent.critic, batch.obs[:, 0], plan) - y) ** 2
    loss, (found, _) = jax.jit(module.critic_loss)(agent.critic, agent, batch, plan, y, weight)
    close(loss, (weight * error).mean(1).sum())
    close(found, error.mean(0))


@pytest.mark.parametrize("block", (2, 3, 1024))
def test_ldcq_windows_are_drawn_by_their_priorities(block, monkeypatch):
    """In proportion to p^alpha, whatever the blocks; weights (S p)^-b undo it as b goes to 1."""
    monkeypatch.setattr(load("ldcq"), "BLOCK", block)
    module, priorities = load("ldcq"), jnp.float32([0.0, 1.0, 16.0, 81.0])
    args = args_of(priority=0.5, priority_weight=0.4)
    draw = jax.jit(functools.partial(module.draw_windows), static_argnums=2)  # of its own: not of another block's size
    for progress, b in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0)):
        window, weight = draw(priorities, jax.random.key(0), 4000, progress, args)
        share = np.bincount(window, minlength=4) / 4000
        np.testing.assert_allclose(share, np.array([0, 1, 4, 9]) / 14, atol=0.02)
        expected = (4 * np.array([1, 4, 9]) / 14) ** -b
        close(weight, (expected / expected[0])[np.asarray(window) - 1])
    window, weight = draw(priorities, jax.random.key(0), 4000, 0.0, args_of(priority=0.0))
    assert set(np.asarray(window)) == {0, 1, 2, 3} and (weight == 1).all()


@pytest.mark.long
def test_ldcq_update_moves_priorities_targets_and_nothing_of_the_plans():
    module, windows, args, key = load("ldcq"), windows_of(), args_of(tau=0.1), jax.random.key(8)
    agent = tiny_agent().replace(priorities=jnp.full(12, 100.0))
    new, _ = jax.jit(module.update)(agent, windows, key, args)
    window_key, target_key = jax.random.split(key)
    window, _ = module.draw_windows(agent.priorities, window_key, B, 0.0, args)
    batch = windows.take(window, args)
    plan = (posterior(agent, batch)[0] - agent.plan_mean) / agent.plan_std
    y, _ = jax.jit(module.target)(agent, batch, target_key, args)
    error = ((q_of(agent.critic, np.asarray(batch.obs[:, 0]), plan) - y) ** 2).mean(0) + 5e-6
    for i, w in enumerate(np.asarray(window)):
        assert np.isclose(new.priorities[w], error[np.asarray(window) == w], rtol=1e-3).any(), i
    assert (np.delete(new.priorities, window) == 100.0).all() and len(set(np.asarray(window))) < 12
    expected = jax.tree.map(lambda o, n: 0.9 * o + 0.1 * n, agent.target_critic, new.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new.target_critic, expected)
    for name in ("plans", "denoiser"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(agent, name))
    assert int(new.step) == 1


@pytest.mark.long
def test_ldcq_both_stages_before_the_first_update_log_the_same():
    """A table has one header. Nothing is computed here."""
    module, names = load("ldcq"), []
    start = functools.partial(module.init, args=args_of(), spec=SPEC, n_windows=12)
    agent = jax.eval_shape(start, jax.random.key(0))
    for step in (module.update_plans, module.update_denoiser):
        fit = functools.partial(module.fit, args=args_of(), windows=windows_of(), step=step)
        new, metrics = jax.eval_shape(fit, agent, jax.random.split(jax.random.key(0), 2))
        assert jax.tree.structure(new) == jax.tree.structure(agent)
        names.append(list(metrics))
    assert names[0] == names[1] and {"plan_loss", "kl", "diffusion_loss"} <= set(names[0])


# -------------------------------------------------------------------------------------------- acting


@pytest.mark.long
def test_ldcq_follows_the_best_plan_and_makes_a_new_one_when_it_is_used_up():
    module, agent, args, key = load("ldcq"), tiny_agent(), args_of(replan_every=3), jax.random.key(2)
    obs, taken = window_batch().next_obs, np.array([0, 1, 2, 0, 1])
    old = np.random.default_rng(7).normal(size=(B, Z)).astype(np.float32)
    act = jax.jit(module.act)
    action, carry = act(agent, module.Carry(old, taken), obs, jnp.zeros(B), key, args)
    made, q = candidates(agent, obs, key, args)
    best = made[q.min(0).argmax(0), np.arange(B)]
    plan = np.where((taken == 0)[:, None], best, old)
    close(carry.plan, plan)
    np.testing.assert_array_equal(carry.taken, [1, 2, 0, 1, 2])
    mean, _ = agent.nets.decoder.apply(agent.plans[2], obs, plan * agent.plan_std + agent.plan_mean)
    close(action, np.clip(mean, -1, 1))
    begin = module.initial_carry(agent, args)
    assert begin.plan.shape == (Z,) and int(begin.taken) == 0
    _, carry = act(agent, module.Carry(old, np.full(B, 3)), obs, jnp.zeros(B), key, args_of(replan_every=0))
    assert not carry.taken.any()  # four steps of a window


def test_ldcq_scales_plans_to_those_of_the_data():
    module, windows, args, key = load("ldcq"), windows_of(), args_of(), jax.random.key(4)
    agent = jax.jit(module.plan_scale)(tiny_agent(), key, args, windows)
    batch = windows.sample(key, 2_000, args)
    rows = np.concatenate([batch.obs, batch.action, batch.mask[..., None]], -1).reshape(2000, -1)
    mean, _ = gaussian(agent.plans[0], rows)
    np.testing.assert_allclose(agent.plan_mean, mean.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(agent.plan_std, mean.std(0) + 1e-3, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampling_steps": 5}, "--sampling-steps must be from 1 to --diffusion-steps 4, not 5"),
        ({"plan_updates": 0}, "--plan-updates, --diffusion-updates and --latent-dim must be at least 1"),
        ({"snr_clip": (5.0, 0.0)}, "--snr-clip must be above 0, not 0"),
        ({"window_steps": 32}, "--window-steps 32: the longest episode of .* has 30 rows"),
    ],
)
def test_ldcq_refuses(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load("ldcq").main(small("ldcq", pendulum, tmp_path / "run", env="none", **changes))
