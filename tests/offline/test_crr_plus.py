"""The losses of crr_plus against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, mlp, tanh_normal
from scipy.stats import norm

from shared.arguments import parse
from shared.errors import InputError

SMALL = {"value_samples": 2}


def net(params, *inputs):
    """Plain numpy: Dense, LayerNorm if there is one, relu, ...; the last layer is linear."""
    if "LayerNorm_0" not in params:
        return mlp({"params": params}, *inputs)
    x = np.concatenate(inputs, -1).astype(np.float64)
    for i in range(2):
        x = x @ np.float64(params[f"Dense_{i}"]["kernel"]) + np.float64(params[f"Dense_{i}"]["bias"])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(
            x * np.float64(params[f"LayerNorm_{i}"]["scale"]) + np.float64(params[f"LayerNorm_{i}"]["bias"]), 0
        )
    return x @ np.float64(params["Dense_2"]["kernel"]) + np.float64(params["Dense_2"]["bias"])


def heads(critics, *inputs):
    one = [jax.tree.map(lambda x, i=i: x[i], critics["params"]["mlp"]) for i in range(2)]
    return np.stack([net(c, *inputs)[..., 0] for c in one])


def policy(actor, obs):
    p = actor["params"]
    log_std = np.float64(p["log_std_scale"]) * net(p["log_std"], obs) + np.float64(p["log_std_offset"])
    return np.clip(net(p["mean"], obs), -9, 9), np.clip(log_std, -5, 2)


def log_prob(action, mean, log_std):
    action = np.clip(action.astype(np.float64), -0.999, 0.999)
    return (norm.logpdf(np.arctanh(action), mean, np.exp(log_std)) - np.log(1 - action**2)).sum(-1)


def advantage(agent, batch, key, n, over):
    noise = np.asarray(jax.random.normal(key, (n, B, 2)))
    mean, log_std = policy(agent.actor, batch.obs)
    v = [heads(agent.critic, batch.obs, tanh_normal(mean, log_std, e)[0]).min(0) for e in noise]
    return heads(agent.critic, batch.obs, batch.action).min(0) - over(v, axis=0)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_crr_critic_punishes_what_is_too_high(batch, layer_norm):
    crr = compiled("crr_plus")
    args = crr.Args(hidden_dims=(8, 8), batch_size=B, critic_expectile=0.8, layer_norm=layer_norm)
    agent, key = agent_of(crr, args), jax.random.key(3)
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*policy(agent.target_actor, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    d = heads(agent.critic, batch.obs, batch.action) - y
    assert (d > 0).any() and (d < 0).any()
    expected = (np.where(d > 0, 0.8, 0.2) * d**2).mean(1).sum()
    close(crr.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


@jax.jit
def slope_of_cloning(actor, agent, batch, weight):
    crr = load("crr_plus")

    def cloning(actor):
        distribution = agent.nets.actor.apply(actor, batch.obs)
        return -(weight * crr.tanh_gaussian_log_prob(*distribution, crr.before_tanh(batch.action))).mean()

    return jax.grad(cloning)(actor)


@pytest.mark.parametrize("mode", ["exp", "indicator", "softmax"])
@pytest.mark.parametrize("baseline", ["mean", "max"])
def test_crr_actor(batch, mode, baseline):
    crr = compiled("crr_plus")
    args = crr.Args(
        hidden_dims=(8, 8),
        batch_size=B,
        value_samples=3,
        temperature=0.5,
        max_weight=1.5,
        weight_mode=mode,
        baseline=baseline,
    )
    agent, key = agent_of(crr, args, seed=2), jax.random.key(5)
    adv = advantage(agent, batch, key, 3, {"mean": np.mean, "max": np.max}[baseline])
    assert (adv > 0).any() and (adv < 0).any()
    weight = {
        "exp": np.minimum(np.exp(adv / 0.5), 1.5),
        "indicator": (adv > 0) * 1.0,
        "softmax": B * np.exp(adv / 0.5) / np.exp(adv / 0.5).sum(),
    }[mode]
    expected = -(weight * log_prob(batch.action, *policy(agent.actor, batch.obs))).mean()
    step = jax.jit(jax.value_and_grad(crr.actor_loss, has_aux=True))
    (loss, info), grads = step(agent.actor, agent, batch, key, args)
    close(loss, expected)
    close(info["clipped"], (weight >= 1.5).mean())
    jax.tree.map(close, grads, slope_of_cloning(agent.actor, agent, batch, weight))  # the weight is not differentiated


@pytest.mark.long
def test_crr_losses_are_of_the_old_parameters_and_all_targets_move(batch):
    crr = compiled("crr_plus")
    args = crr.Args(hidden_dims=(8, 8), batch_size=B, value_samples=2, critic_lr=0.1, actor_lr=0.1, tau=0.25)
    agent, key = agent_of(crr, args), jax.random.key(0)
    critic_key, actor_key = jax.random.split(key)
    new, metrics = crr.update(agent, batch, key, args)
    close(metrics["critic_loss"], crr.critic_loss(agent.critic, agent, batch, critic_key, args)[0])
    close(metrics["actor_loss"], crr.actor_loss(agent.actor, agent, batch, actor_key, args)[0])
    for target, online in (("target_actor", "actor"), ("target_critic", "critic")):
        expected = jax.tree.map(
            lambda x, y: 0.75 * np.asarray(x) + 0.25 * np.asarray(y), getattr(agent, target), getattr(new, online)
        )
        jax.tree.map(close, getattr(new, target), expected)
        moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(), getattr(new, online), getattr(agent, online))
        assert max(jax.tree.leaves(moved)) > 0.05


@pytest.mark.long
def test_crr_is_crr_plus_without_its_choices(batch):
    crr = compiled("crr_plus")
    plus, plain = crr.Args(hidden_dims=(8, 8)), crr.Args(hidden_dims=(8, 8), batch_size=B, **crr.PRESETS["crr"])
    agents = [crr.init(jax.random.key(0), args, SPEC) for args in (plus, plain)]
    for agent, norm_layers, small in zip(agents, (2, 0), (True, False), strict=True):
        for layers in (agent.critic["params"]["mlp"], agent.actor["params"]["mean"], agent.actor["params"]["log_std"]):
            assert sum("LayerNorm" in name for name in layers) == norm_layers
            assert (np.abs(layers["Dense_2"]["kernel"]).max() < np.sqrt(3 * 0.01 / 8)) == small
    agent, key = agent_of(crr, plain), jax.random.key(1)  # and the critic's loss is half the squared error
    d, _ = crr.critic_loss(agent.critic, agent, batch, key, plain)
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*policy(agent.target_actor, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    close(d, 0.5 * ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum())


def test_crr_log_prob_is_finite_at_the_actions_bounds():
    crr = compiled("crr_plus")
    action = jnp.array([[-1.0, 1.0]])
    u, log_std = crr.before_tanh(action), jnp.full((1, 2), -5.0)
    value, grad = jax.value_and_grad(lambda m: crr.tanh_gaussian_log_prob(m, log_std, u).sum())(jnp.zeros((1, 2)))
    assert np.isfinite(value) and np.isfinite(grad).all()
    close(value, log_prob(np.array([[-1.0, 1.0]]), np.zeros((1, 2)), np.full((1, 2), -5.0))[0])


@pytest.mark.parametrize("given", [["--reward-scale", "0.1"], ["--reward-shift", "1"]])
def test_crr_plus_refuses_a_scale_or_shift_that_the_normalisation_of_rewards_would_undo(given):
    """Also where a preset asks for it."""
    module = load("crr_plus")
    args = parse(module.Args, module.PRESETS, "", ["--dataset", "kitchen-mixed", *given])
    with pytest.raises(InputError, match="--normalize-reward would undo --reward-scale and --reward-shift"):
        module.main(args)
