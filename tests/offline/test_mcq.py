"""The losses of mcq against the same equations in plain numpy, and what lambda does to actions without data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import B, agent_of, close, compiled, heads, mlp, tanh_normal

from shared.arguments import preset_for
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"vae_hidden_dims": (8, 8), "n_draws": 3}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture
def mcq():
    return compiled("mcq")


@pytest.fixture
def agent(mcq):
    return agent_of(mcq, mcq.Args(**SIZES), seed=2).replace(log_alpha=jnp.float32(-0.3))


def part(vae, name):
    return {"params": vae["params"][name]}


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, len(obs), 2))))


def pseudo(agent, obs, key):
    z = np.clip(np.asarray(jax.random.normal(key, (3, len(obs), 4))), -0.5, 0.5)
    q = [heads(agent.critic, obs, np.tanh(mlp(part(agent.vae, "decoder"), obs, one))) for one in z]
    return np.stack(q).max(0).min(0)  # over actions for each critic, then over critics


def test_mcq_pseudo_value_is_the_least_of_the_critics_best_behaviour_action(mcq, agent, batch):
    key = jax.random.key(1)
    expected = pseudo(agent, batch.obs, key)
    close(mcq.pseudo_value(agent, batch.obs, key, mcq.Args(**SIZES)), expected)
    assert (expected < 0).any()  # not held at 0


@pytest.mark.parametrize("weight", [0.7, 1.0, 0.0])
def test_mcq_critic_loss_weighs_the_bellman_error_against_the_pseudo_values(mcq, agent, batch, weight):
    args, key = mcq.Args(**SIZES, bellman_weight=weight, discount=0.9), jax.random.key(2)
    next_key, pi_key, vae_key = jax.random.split(key, 3)
    action, log_prob = drawn(agent.actor, batch.next_obs, next_key)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - np.exp(-0.3) * log_prob
    y = batch.reward + 0.9 * (1 - batch.terminal) * target_v
    bellman = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    obs = np.concatenate([batch.obs, batch.next_obs])
    ood = np.stack([heads(agent.critic, obs, a) for a in drawn(agent.actor, obs, pi_key, 3)[0]])  # [n, E, 2B]
    pulled = ((ood - pseudo(agent, obs, vae_key)) ** 2).mean((0, 2)).sum()
    loss, info = mcq.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, weight * bellman + (1 - weight) * pulled)
    close(info["ood_loss"], pulled)


def test_mcq_pseudo_values_are_not_differentiated(mcq, agent, batch):
    """The slope of the loss on the policy's actions is that of a regression on fixed numbers, by finite differences."""
    args, key = mcq.Args(**SIZES, bellman_weight=0.0), jax.random.key(2)
    grads, _ = jax.jit(jax.grad(mcq.critic_loss, has_aux=True))(agent.critic, agent, batch, key, args)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    _, pi_key, vae_key = jax.random.split(key, 3)
    obs = np.concatenate([batch.obs, batch.next_obs])
    actions, limit = drawn(agent.actor, obs, pi_key, 3)[0], pseudo(agent, obs, vae_key)

    def along(step):
        moved = jax.tree.map(lambda p, g: np.float64(p) + step * np.float64(g) / norm, agent.critic, grads)
        return np.mean([((heads(moved, obs, a) - limit) ** 2).mean(1).sum() for a in actions])

    np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, norm, rtol=1e-3)


def test_mcq_vae_loss_is_reconstruction_plus_kl_in_sums_over_dimensions(mcq, agent, batch):
    args, key = mcq.Args(**SIZES, kl_weight=0.7), jax.random.key(1)
    mean, log_std = np.split(mlp(part(agent.vae, "encoder"), batch.obs, batch.action), 2, -1)
    log_std = np.clip(log_std, -4, 15)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, mean.shape))
    error = ((np.tanh(mlp(part(agent.vae, "decoder"), batch.obs, z)) - batch.action) ** 2).sum(-1).mean()
    kl = (-log_std + (np.exp(2 * log_std) + mean**2) / 2 - 0.5).sum(-1).mean()
    close(mcq.vae_loss(agent.vae, agent, batch, key, args)[0], error + 0.7 * kl)


def test_mcq_actor_ascends_the_least_online_critic(mcq, agent, batch):
    args, key = mcq.Args(**SIZES), jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.obs, key)
    q = heads(agent.critic, batch.obs, action).min(0)
    close(mcq.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())
    assert mcq.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows
    close(mcq.act(agent, batch.obs, key, args), np.tanh(np.split(mlp(agent.actor, batch.obs), 2, -1)[0]))


@pytest.mark.long
def test_mcq_updates_vae_temperature_critics_actor(mcq, agent, batch):
    """Each sees the ones before it."""
    args, key = mcq.Args(**SIZES, tau=0.2), jax.random.key(3)
    new, metrics = jax.jit(mcq.update)(agent, batch, key, args)
    vae_key, alpha_key, critic_key, actor_key = jax.random.split(key, 4)
    close(metrics["vae_loss"], mcq.vae_loss(agent.vae, agent, batch, vae_key, args)[0])
    _, log_prob = drawn(agent.actor, batch.obs, alpha_key)
    assert (new.log_alpha > agent.log_alpha) == (-log_prob.mean() < -2)
    before = agent.replace(vae=new.vae, log_alpha=new.log_alpha)
    critic_loss, actor_loss = jax.jit(mcq.critic_loss), jax.jit(mcq.actor_loss)
    close(metrics["critic_loss"], critic_loss(agent.critic, before, batch, critic_key, args)[0])
    for stale in (agent.replace(vae=new.vae), agent.replace(log_alpha=new.log_alpha)):
        assert abs(float(critic_loss(agent.critic, stale, batch, critic_key, args)[0] - metrics["critic_loss"])) > 1e-6
    with_critic = before.replace(critic=new.critic)
    close(metrics["actor_loss"], actor_loss(agent.actor, with_critic, batch, actor_key, args)[0])
    assert abs(float(actor_loss(agent.actor, before, batch, actor_key, args)[0] - metrics["actor_loss"])) > 1e-5
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)


@pytest.mark.long
def test_mcq_values_outside_the_data_stay_at_the_best_inside(mcq):
    """A bandit of one dimension: data in [-0.5, 0.2], rewards rising to its edge; SAC's Q goes on rising."""
    r = np.random.default_rng(0)
    action = r.uniform(-0.5, 0.2, (64, 1)).astype(np.float32)
    obs = np.zeros((64, 1), np.float32)
    batch = Batch(obs=obs, action=action, reward=action[:, 0], terminal=np.ones(64, np.float32), next_obs=obs)
    rates = dict.fromkeys(("actor_lr", "critic_lr", "vae_lr"), 3e-3)
    args = mcq.Args(hidden_dims=(32,), vae_hidden_dims=(16, 16), batch_size=64, kl_weight=0.01, **rates)
    agent = mcq.init(jax.random.key(0), args, Spec((1,), 1, False, (-1.0,), (1.0,)))

    @jax.jit
    def run(weight):
        one = mcq.Args(**{**vars(args), "bellman_weight": weight})
        keys = jax.random.split(jax.random.key(1), 600)
        return jax.lax.scan(lambda a, key: mcq.update(a, batch, key, one), agent, keys)[0].critic

    over = {}
    for weight in (1.0, 0.7):
        critic = run(jnp.float32(weight))
        inside, outside = (heads(critic, np.zeros((9, 1)), np.linspace(*ends, 9)[:, None]).min(0).max()
                           for ends in ((-0.5, 0.2), (0.5, 1.0)))  # fmt: skip
        over[weight] = outside - inside
    assert over[1.0] > 0.3 and -0.3 < over[0.7] < 0.1


def test_mcq_presets_are_those_of_the_authors_readme(mcq):
    """lambda 0.7 in MCQ_config.py of dmksjfl/MCQ; README: 0.9 on hopper-medium-replay-v2 and maze2d-medium-v1."""

    def weight(dataset):
        key = preset_for(dataset, mcq.PRESETS)
        return mcq.Args(**(mcq.PRESETS[key] if key else {})).bellman_weight

    assert [weight(f"hopper-{kind}-v2") for kind in ("medium", "medium-replay", "medium-expert")] == [0.7, 0.9, 0.7]
    assert weight("maze2d-medium-v1") == 0.9 and weight("maze2d-large-v1") == 0.7
    args = mcq.Args()
    assert (args.actor_lr, args.critic_lr, args.vae_lr, args.batch_size, args.n_draws) == (3e-4, 3e-4, 1e-3, 256, 10)
    assert (args.hidden_dims, args.vae_hidden_dims, args.tau) == ((400, 400), (750, 750), 0.005)
