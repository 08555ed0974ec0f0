"""The losses of mcep against the same equations in plain numpy; the target policy against the base algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import B, agent_of, close, compiled, heads, mlp, smoothed_next_action, tanh_normal
from scipy.stats import norm

BASES = ["td3_bc", "awac"]


def gaussian(actor, obs):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def log_prob(action, mean, log_std):
    u = np.arctanh(action.astype(np.float64))
    return (norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - action.astype(np.float64) ** 2)).sum(-1)


@pytest.mark.parametrize("base", BASES)
def test_mcep_critic_bootstraps_from_the_target_policy(batch, base):
    mcep = compiled("mcep")
    args = mcep.Args(base=base, hidden_dims=(8, 8), batch_size=B, policy_noise=0.6, noise_clip=0.4)
    agent, key = agent_of(mcep, args), jax.random.key(7)
    if base == "td3_bc":
        next_action = smoothed_next_action(agent, batch, key, args)
    else:
        noise = np.asarray(jax.random.normal(key, (B, 2)))
        next_action, _ = tanh_normal(*gaussian(agent.actor, batch.next_obs), noise)
    y = batch.reward + 0.99 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(mcep.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_mcep_each_td3_bc_policy_has_its_own_alpha_and_normaliser(batch):
    mcep = compiled("mcep")
    args = mcep.Args(hidden_dims=(8, 8), batch_size=B, alpha=1.7, evaluation_alpha=6.0)
    agent, key = agent_of(mcep, args), jax.random.key(0)
    losses = []
    for actor, alpha in ((agent.actor, 1.7), (agent.evaluation, 6.0)):
        pi = np.tanh(mlp(actor, batch.obs))
        q = heads(agent.critic, batch.obs, pi)[0]
        losses.append(-alpha / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean())
    close(mcep.actor_loss(agent.actor, agent, batch, key, args)[0], losses[0])
    close(mcep.evaluation_loss(agent.evaluation, agent, batch, key, args)[0], losses[1])


def test_mcep_awac_target_policy_is_weighted_cloning(batch):
    mcep = compiled("mcep")
    args = mcep.Args(base="awac", hidden_dims=(8, 8), batch_size=B, temperature=0.02, max_weight=2.0)
    agent, key = agent_of(mcep, args), jax.random.key(5)
    mean, log_std = gaussian(agent.actor, batch.obs)
    sampled, _ = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (B, 2))))
    adv = heads(agent.critic, batch.obs, batch.action).min(0) - heads(agent.critic, batch.obs, sampled).min(0)
    weight = np.minimum(np.exp(adv / 0.02), 2.0)
    assert (weight == 2.0).any() and (weight < 2.0).any()
    expected = -(weight * log_prob(batch.action, mean, log_std)).mean()
    step = jax.jit(jax.value_and_grad(mcep.actor_loss, has_aux=True))
    (loss, _), grads = step(agent.actor, agent, batch, key, args)
    close(loss, expected)

    def cloning(actor):  # the weight is not differentiated
        distribution = agent.nets.actor.apply(actor, batch.obs)
        return -(weight * mcep.tanh_gaussian_log_prob(*distribution, mcep.before_tanh(batch.action))).mean()

    jax.tree.map(close, grads, jax.jit(jax.grad(cloning))(agent.actor))


@pytest.mark.parametrize("max_q", [1e4, 0.3])
def test_mcep_awac_evaluation_policy_climbs_the_mean_q(batch, max_q):
    mcep = compiled("mcep")
    args = mcep.Args(base="awac", hidden_dims=(8, 8), batch_size=B, evaluation_temperature=0.7, max_q=max_q)
    agent, key = agent_of(mcep, args), jax.random.key(5)
    mean, log_std = gaussian(agent.evaluation, batch.obs)
    action, _ = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (B, 2))))
    q = heads(agent.critic, batch.obs, action).mean(0)
    assert (q.max() > max_q) == (max_q < 1)
    expected = (-np.minimum(q, max_q) - 0.7 * log_prob(batch.action, mean, log_std)).mean()
    loss = lambda e: mcep.evaluation_loss(e, agent, batch, key, args)[0]  # noqa: E731

    def reparameterised(evaluation):  # through the sampled action
        mean, log_std = agent.nets.actor.apply(evaluation, batch.obs)
        action = jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))
        q = jax.vmap(agent.nets.critic.apply, (0, None, None))(agent.critic, batch.obs, action).mean(0)
        log_prob = mcep.tanh_gaussian_log_prob(mean, log_std, mcep.before_tanh(batch.action))
        return -(jnp.where(q < max_q, q, 0.0) + 0.7 * log_prob).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(agent.evaluation)
    close(value, expected)
    jax.tree.map(close, grads, jax.jit(jax.grad(reparameterised))(agent.evaluation))


@pytest.mark.parametrize("base", BASES)
def test_mcep_nothing_depends_on_the_evaluation_policy(batch, base):
    """Were it in the target, MCEP would be the base algorithm with a mild constraint."""
    mcep = compiled("mcep")
    args = mcep.Args(base=base, hidden_dims=(8, 8), batch_size=B, actor_lr=0.1, awac_actor_lr=0.1, tau=0.5)
    agent = agent_of(mcep, args)
    other = agent.replace(evaluation=agent_of(mcep, args, seed=5).evaluation)
    n = int(mcep.delay(args))
    batches = jax.tree.map(lambda x: np.stack([x] * n), batch)
    keys = (jax.random.split(jax.random.key(0), n), jax.random.split(jax.random.key(1), 2))
    for _ in range(2):
        agent, other = (mcep.update(a, batches, keys, args)[0] for a in (agent, other))
    for name in ("actor", "critic", "target_actor", "target_critic"):
        jax.tree.map(np.testing.assert_array_equal, getattr(agent, name), getattr(other, name))
    moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(), agent.evaluation, agent.actor)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.long
def test_mcep_target_policy_is_td3_bc(pendulum, tmp_path):
    """A whole run: the same actor, critics and targets as td3_bc.py of the same seed."""
    mcep = train("mcep", pendulum, tmp_path / "mcep", updates=20, normalize_return=False, alpha=2.5)
    td3_bc = train("td3_bc", pendulum, tmp_path / "td3_bc", updates=20, alpha=2.5)
    assert td3_bc.keys() < mcep.keys()
    for name, value in td3_bc.items():
        np.testing.assert_array_equal(mcep[name], value, err_msg=name)
    assert any(
        np.abs(mcep[n] - mcep[n.replace(".evaluation", ".actor")]).max() > 0 for n in mcep if ".evaluation[" in n
    )


@pytest.mark.long
@pytest.mark.parametrize("base", BASES)
def test_mcep_acts_with_either_policy_of_the_same_training(pendulum, tmp_path, base):
    mcep = load("mcep")
    with jax.debug_key_reuse(True):  # the check takes a part of a batch of keys for the whole: mapped
        trained = train("mcep", pendulum, tmp_path / "evaluation", base=base, layout="map")
    target = train("mcep", pendulum, tmp_path / "target", base=base, act_with="target", layout="map")
    for name, value in trained.items():
        np.testing.assert_array_equal(target[name], value, err_msg=name)
    agent = agent_of(mcep, args := mcep.Args(base=base, hidden_dims=(8, 8)))
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for policy, actor in (("evaluation", agent.evaluation), ("target", agent.actor)):
        args = mcep.Args(base=base, hidden_dims=(8, 8), act_with=policy)
        expected = np.tanh(mlp(actor, obs) if base == "td3_bc" else gaussian(actor, obs)[0])
        close(mcep.act(agent, obs, None, args), expected)


def test_mcep_evaluation_policy_is_the_milder_one():
    mcep = load("mcep")
    for args in (mcep.Args(), mcep.Args(**mcep.PRESETS["pen-"])):
        assert args.evaluation_alpha > args.alpha and args.evaluation_temperature < args.temperature
