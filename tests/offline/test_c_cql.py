"""The losses of c_cql against the same equations in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, mlp, tanh_normal
from scipy.special import logsumexp

from shared.task import Spec
from shared.transitions import Batch

SMALL = {"n_actions": 2, "inverse_hidden_dims": (8, 8), "inverse_updates": 2}
N = 3
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B, "n_actions": N}
WEIGHTS = {"cql_alpha": 2.0, "cql_temperature": 0.7, "context_weight": 0.4, "state_noise": 0.3, "discount": 0.9}


@pytest.fixture(scope="module")
def c_cql():
    return load("c_cql")


@pytest.fixture(scope="module")
def agent(c_cql):
    return agent_of(c_cql, c_cql.Args(**SIZES), seed=2).replace(log_alpha=jnp.float32(-0.3))


@pytest.fixture(scope="module")
def losses(c_cql):
    """Compiled once."""
    return {name: jax.jit(getattr(c_cql, name)) for name in ("critic_loss", "actor_loss", "inverse_loss")}


def policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


def drawn(agent, obs, key, *n):
    mean, log_std = policy(agent.actor, obs)
    return tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (*n, *mean.shape))))


def noisy(obs, eps, key):
    return obs + eps * np.asarray(jax.random.normal(key, obs.shape))


def context_of(agent, obs, next_obs):
    return np.tanh(mlp(agent.inverse, obs, next_obs))


def soft_maximum(agent, obs, kinds, temperature):
    """[2, B] of kinds of actions [N, B, A] with their log densities [N, B]."""
    values = [heads(agent.critic, obs, a[k]) - d[k] for a, d in kinds for k in range(N)]
    return temperature * logsumexp(np.stack(values) / temperature, axis=0)


def uniform(key):
    return np.asarray(jax.random.uniform(key, (N, B, 2), minval=-1.0, maxval=1.0)), np.full((N, B), 2 * np.log(0.5))


def penalties(agent, batch, gap_key, context_key, args):
    """CQL's gap and that at perturbed states [2], and the mean correction."""
    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    kinds = [uniform(uniform_key), drawn(agent, batch.next_obs, next_key, N), drawn(agent, batch.obs, now_key, N)]
    q = heads(agent.critic, batch.obs, batch.action)
    gap = (soft_maximum(agent, batch.obs, kinds, args.cql_temperature) - q).mean(1)
    noise_key, uniform_key, now_key = jax.random.split(context_key, 3)
    near = noisy(batch.obs, args.state_noise, noise_key)
    context = context_of(agent, near, batch.next_obs)
    kinds = [uniform(uniform_key), drawn(agent, near, now_key, N)]
    above = soft_maximum(agent, near, kinds, args.cql_temperature) - heads(agent.critic, near, context)
    alive = 1 - batch.terminal
    return gap, (alive * above).mean(1), (alive * np.abs(context - batch.action).mean(1)).mean()


@pytest.mark.long
def test_c_cql_critic_loss_is_bellman_error_and_penalties_at_both_states(c_cql, agent, batch, losses):
    args, key = c_cql.Args(**SIZES, **WEIGHTS), jax.random.key(3)
    target_key, gap_key, context_key = jax.random.split(key, 3)
    next_action, _ = drawn(agent, batch.next_obs, target_key)
    y = batch.reward + 0.9 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    bellman = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    gap, context_gap, correction = penalties(agent, batch, gap_key, context_key, args)
    loss, info = losses["critic_loss"](agent.critic, agent, batch, key, args)
    close(loss, bellman + 2.0 * (gap.sum() + 0.4 * context_gap.sum()))
    close([info["gap"], info["context_gap"], info["correction"]], [gap.mean(), context_gap.mean(), correction])


@pytest.mark.long
def test_c_cql_what_follows_a_terminal_row_is_never_looked_at(c_cql, agent, batch, losses):
    args, key = c_cql.Args(**SIZES, **WEIGHTS), jax.random.key(3)
    other = batch._replace(next_obs=np.where(batch.terminal[:, None] == 1, 3.0, batch.next_obs).astype(np.float32))

    def at(batch):  # CQL's own penalty takes policy actions at s' there as at any row: it is left out
        loss, info = losses["critic_loss"](agent.critic, agent, batch, key, args)
        return loss - 2.0 * 2 * info["gap"], losses["inverse_loss"](agent.inverse, agent, batch, key, args)

    close(at(other), at(batch))
    alive = batch._replace(terminal=np.zeros(B, np.float32))
    assert abs(at(alive._replace(next_obs=other.next_obs))[0] - at(alive)[0]) > 1e-3


def test_c_cql_without_noise_and_with_a_perfect_model_the_context_is_the_datas_action(c_cql, agent, batch, losses):
    """Then both penalties push the same action up: the paper's sentence that it generalises CQL."""
    args, key = c_cql.Args(**SIZES, **{**WEIGHTS, "state_noise": 0.0}), jax.random.key(3)
    batch = batch._replace(action=np.float32(context_of(agent, batch.obs, batch.next_obs)))
    _, info = losses["critic_loss"](agent.critic, agent, batch, key, args)
    close(info["correction"], 0.0)
    close(info["q_context"], info["q"])
    _, info = losses["critic_loss"](agent.critic, agent, batch, key, dataclasses.replace(args, state_noise=0.3))
    assert info["correction"] > 0.01 and abs(info["q_context"] - info["q"]) > 1e-3


def test_c_cql_inverse_model_is_fitted_to_clean_or_to_noisy_states(c_cql, agent, batch, losses):
    args, key = c_cql.Args(**SIZES, state_noise=0.3), jax.random.key(1)
    alive = batch.terminal == 0
    for noise in (False, True):
        obs = noisy(batch.obs, 0.3, key) if noise else batch.obs
        expected = ((context_of(agent, obs, batch.next_obs) - batch.action) ** 2)[alive].mean()
        chosen = dataclasses.replace(args, noisy_inverse=noise)
        close(losses["inverse_loss"](agent.inverse, agent, batch, key, chosen), expected)


def test_c_cql_actor_climbs_the_least_critic_at_both_states(c_cql, agent, batch, losses):
    args, key = c_cql.Args(**SIZES, state_noise=0.3, actor_weight=0.5), jax.random.key(4)
    data_key, noise_key, near_key = jax.random.split(key, 3)
    expected = []
    for obs, k in ((batch.obs, data_key), (noisy(batch.obs, 0.3, noise_key), near_key)):
        action, log_prob = drawn(agent, obs, k)
        expected.append((np.exp(-0.3) * log_prob - heads(agent.critic, obs, action).min(0)).mean())
    close(losses["actor_loss"](agent.actor, agent, batch, key, args)[0], expected[0] + 0.5 * expected[1])


@pytest.mark.long
def test_c_cql_the_inverse_model_stands_still_while_the_agent_learns(c_cql, agent, batch, losses):
    args = c_cql.Args(**SIZES)
    new, metrics = jax.jit(c_cql.update)(agent, batch, jax.random.key(1), args)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (new.inverse, agent.inverse)), strict=True))
    critic_key, actor_key = jax.random.split(jax.random.key(1))
    close(metrics["critic_loss"], losses["critic_loss"](agent.critic, agent, batch, critic_key, args)[0])
    close(metrics["actor_loss"], losses["actor_loss"](agent.actor, agent, batch, actor_key, args)[0])
    assert (new.log_alpha > agent.log_alpha) == (metrics["entropy"] < -2)
    layer = [x["params"]["Dense_0"]["kernel"] for x in (new.target_critic, agent.target_critic, new.critic)]
    close(layer[0], 0.995 * layer[1] + 0.005 * layer[2])


def test_c_cql_noise_of_evaluation_is_on_what_the_policy_sees(c_cql, agent, batch):
    key = jax.random.key(5)
    for noise in (0.0, 0.4):
        mean, _ = policy(agent.actor, noisy(batch.obs, noise, key))
        close(c_cql.act(agent, batch.obs, key, c_cql.Args(**SIZES, obs_noise=noise)), np.tanh(mean))


@pytest.mark.long
def test_c_cql_inverse_model_finds_the_action_that_returns_on_a_double_integrator(c_cql):
    """x' = x + v / 5, v' = v + a / 5 of positions x and velocities v: the action that leads from s^ to s' is
    5 (v' - v^), whatever x is; the data's action corrected by what the noise did to v."""
    r, n = np.random.default_rng(0), 256
    args = c_cql.Args(**{**SIZES, "hidden_dims": (8,)}, inverse_lr=3e-3)
    args = dataclasses.replace(args, inverse_hidden_dims=(32,), batch_size=n)
    agent = c_cql.init(jax.random.key(0), args, Spec((2,), 1, False, (-1.0,), (1.0,)))
    data = []
    for _ in range(400):
        obs, action = r.uniform(-1, 1, (n, 2)), r.uniform(-0.9, 0.9, (n, 1))
        moved = np.concatenate([obs[:, 1:], action], 1) / 5
        data.append((obs, action, obs + moved))
    obs, action, next_obs = (jnp.float32(np.stack(x)) for x in zip(*data, strict=True))

    @jax.jit
    def fit(agent, obs, action, next_obs):
        def step(agent, row):
            batch = Batch(row[0], row[1], jnp.zeros(n), jnp.zeros(n), row[2])
            return c_cql.update_inverse(agent, batch, jax.random.key(0), args)

        return jax.lax.scan(step, agent, (obs, action, next_obs))

    agent, metrics = fit(agent, obs, action, next_obs)
    near = obs[0] + 0.05 * jnp.float32(r.normal(size=(n, 2)))
    returns = 5 * (next_obs[0, :, 1:] - near[:, 1:])
    inside = np.abs(returns) < 0.9
    found = agent.nets.inverse.apply(agent.inverse, near, next_obs[0])
    error = [np.abs(np.asarray(x - returns))[inside].mean() for x in (found, action[0])]
    assert error[0] < 0.5 * error[1]
