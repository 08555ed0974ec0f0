"""The losses of cql_plus against the same equations in plain numpy, and the choices that make the plus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from scipy.special import logsumexp

from shared.arguments import parse
from shared.errors import InputError

SMALL = {"n_actions": 2}


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def policy_of(params, obs):
    """Two networks of two hidden layers: Dense_0..2 for the mean, Dense_3..5 for the log standard deviation."""
    p = params["params"]
    std_network = {"params": {f"Dense_{i}": p[f"Dense_{i + 3}"] for i in range(3)}}
    mean_network = {"params": {f"Dense_{i}": p[f"Dense_{i}"] for i in range(3)}}
    scale, offset = np.float64(p["log_std_scale"]), np.float64(p["log_std_offset"])
    return np.clip(mlp(mean_network, obs), -9, 9), np.clip(scale * mlp(std_network, obs) + offset, -5, 2)


def args_of(**changes):
    return load("cql_plus").Args(**{"hidden_dims": (8, 8), "batch_size": B, "n_actions": 3} | changes)


@pytest.mark.long
@pytest.mark.parametrize("use_target_actor", [False, True])
def test_cql_plus_critic(batch, use_target_actor):
    cql_plus, n = compiled("cql_plus"), 3
    args = args_of(cql_alpha=2.0, discount=0.9, use_target_actor=use_target_actor)
    agent, key = agent_of(cql_plus, args), jax.random.key(2)
    target_key, gap_key = jax.random.split(key)
    bootstrap = agent.target_actor if use_target_actor else agent.actor
    noise = np.asarray(jax.random.normal(target_key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*policy_of(bootstrap, batch.next_obs), noise)
    next_q = heads(agent.target_critic, batch.next_obs, next_action, activation=elu).min(0)
    y = batch.reward + 0.9 * (1 - batch.terminal) * next_q
    q = heads(agent.critic, batch.obs, batch.action, activation=elu)

    keys = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (n, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (n, B, 2))) for k in keys[1:]]
    now, now_lp = tanh_normal(*policy_of(agent.actor, batch.obs), noise[0])
    following, following_lp = tanh_normal(*policy_of(agent.actor, batch.next_obs), noise[1])
    logits = []
    for actions, log_density in ((uniform, 2 * np.log(0.5)), (following, following_lp), (now, now_lp)):
        obs = np.broadcast_to(batch.obs, (n, B, 3))  # policy actions at s' are evaluated at s
        logits.append(heads(agent.critic, obs, actions, activation=elu) - log_density)
    gap = (logsumexp(np.concatenate(logits, 1), axis=1) - q).mean(1)
    expected = ((q - y) ** 2).mean(1).sum() + 2.0 * gap.sum()
    close(cql_plus.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


@pytest.mark.long
def test_cql_plus_policy(batch):
    cql_plus = compiled("cql_plus")
    args = args_of()
    agent, key = agent_of(cql_plus, args), jax.random.key(4)
    agent = agent.replace(log_alpha=jnp.float32(-0.3))
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    action, log_prob = tanh_normal(*policy_of(agent.actor, batch.obs), noise)
    q = heads(agent.critic, batch.obs, action, activation=elu).min(0)
    close(cql_plus.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())


def test_cql_plus_penalty_does_not_reach_the_policy(batch):
    cql_plus, args = compiled("cql_plus"), args_of()
    agent = agent_of(cql_plus, args)

    def loss(actor):
        return cql_plus.critic_loss(agent.critic, agent.replace(actor=actor), batch, jax.random.key(0), args)[0]

    assert all(np.abs(g).max() == 0.0 for g in jax.tree.leaves(jax.jit(jax.grad(loss))(agent.actor)))


def test_cql_plus_evaluates_its_151_actions_in_as_many_products_as_few(batch):
    cql_plus = compiled("cql_plus")

    def products(n):
        args = args_of(n_actions=n)
        agent = agent_of(cql_plus, args)
        loss = jax.make_jaxpr(jax.grad(lambda c: cql_plus.critic_loss(c, agent, batch, jax.random.key(0), args)[0]))
        return str(loss(agent.critic)).count("dot_general")

    assert products(50) == products(2)


@pytest.mark.long
def test_cql_plus_starts_from_small_last_layers_and_a_narrow_policy(batch):
    cql_plus = compiled("cql_plus")
    small = cql_plus.init(jax.random.key(0), args_of(hidden_dims=(256, 256)), SPEC)
    large = cql_plus.init(jax.random.key(0), args_of(hidden_dims=(256, 256), last_layer_scale=1.0), SPEC)
    for params, layers in ((small.critic, ("Dense_2",)), (small.actor, ("Dense_2", "Dense_5"))):
        for layer in layers:
            bound = np.sqrt(3 * 0.01 / 256)
            assert 0.9 * bound < np.abs(params["params"][layer]["kernel"]).max() <= bound
            assert not np.any(params["params"][layer]["bias"])
    mean, log_std = policy_of(small.actor, batch.obs)
    assert np.abs(mean).max() < 0.2 and np.abs(log_std + 1.0).max() < 0.2
    assert np.abs(heads(small.critic, batch.obs, batch.action, activation=elu)).max() < 0.2
    ratio = large.critic["params"]["Dense_2"]["kernel"] / small.critic["params"]["Dense_2"]["kernel"]
    np.testing.assert_allclose(ratio, 10.0, rtol=1e-4)


@pytest.mark.long
def test_cql_plus_target_policy_follows_the_policy(batch):
    cql_plus, args = compiled("cql_plus"), args_of(tau=0.25, actor_lr=0.1)
    agent = agent_of(cql_plus, args)
    new, _ = cql_plus.update(agent, batch, jax.random.key(0), args)
    expected = jax.tree.map(
        lambda old, actor: 0.75 * np.asarray(old) + 0.25 * np.asarray(actor), agent.target_actor, new.actor
    )
    jax.tree.map(close, new.target_actor, expected)


@pytest.mark.long
def test_cql_plus_shared_network_and_relu_are_cql(batch):
    """With CQL's choices, and weights as CQL has them, the networks are CQL's."""
    cql, cql_plus = compiled("cql"), compiled("cql_plus")
    args = args_of(critic_activation="relu", separate_std=False)
    cql_args = cql.Args(hidden_dims=(8, 8), batch_size=B, n_actions=3, cql_alpha=args.cql_alpha)
    plain = agent_of(cql, cql_args, seed=1)  # none of its deviations is clipped
    agent = cql_plus.init(jax.random.key(0), args, SPEC)
    names = ("actor", "critic", "target_critic", "log_alpha")
    agent = agent.replace(**{f: getattr(plain, f) for f in names})
    key = jax.random.key(1)
    for loss, params in (("critic_loss", plain.critic), ("actor_loss", plain.actor)):
        expected = getattr(cql, loss)(params, plain, batch, key, cql_args)[0]
        close(getattr(cql_plus, loss)(params, agent, batch, key, args)[0], expected)


@pytest.mark.parametrize("changes", [{}, {"max_reward": 1.0}, {"max_reward": 1.0, "normalize_reward": True}])
def test_cql_plus_clips_rewards_before_it_scales_them(pendulum, monkeypatch, changes):
    """Without, Adroit's Q goes to 1e6."""
    cql_plus = load("cql_plus")
    seen = []

    class Stop(Exception):
        pass

    class Run:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def replicate(self, transitions):
            seen.append(np.asarray(transitions.take(jnp.arange(300)).reward))
            raise Stop

    monkeypatch.setattr(cql_plus, "Run", Run)
    with pytest.raises(Stop):
        cql_plus.main(cql_plus.Args(dataset=pendulum, **changes))
    with np.load(pendulum) as file:
        expected = np.minimum(file["rewards"], changes.get("max_reward", np.inf))
    if changes.get("normalize_reward"):
        expected = (expected - expected.min()) / (1.0 - expected.min()) * 2 - 1
    close(seen[0], expected)


@pytest.mark.parametrize("given", [["--reward-scale", "0.1"], ["--reward-shift", "1"]])
def test_cql_plus_refuses_a_scale_or_shift_that_the_normalisation_of_rewards_would_undo(given):
    """Also where a preset asks for it."""
    module = load("cql_plus")
    args = parse(module.Args, module.PRESETS, "", ["--dataset", "kitchen-mixed", *given])
    with pytest.raises(InputError, match="--normalize-reward would undo --reward-scale and --reward-shift"):
        module.main(args)
