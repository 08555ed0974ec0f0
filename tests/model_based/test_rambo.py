"""The game of rambo against plain numpy, and its sign; what it shares with mopo is the same, line by line."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT, train
from reference import SPEC, B, agent_of, close, compiled, differences, heads, mlp
from scipy.stats import norm

from shared.arguments import preset_for

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,), "adversary_updates": 3,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


@pytest.fixture
def rambo():
    return compiled("rambo")


@pytest.fixture
def args(rambo):
    return rambo.Args(**SIZES)


@pytest.fixture
def agent(rambo, args):
    return agent_of(rambo, args).replace(holdout_error=jnp.float32([1.0, 3.0, 2.0]))


def made(agent, batch):
    """Outcomes (s', r) near the batch's."""
    r = np.random.default_rng(1)
    return np.float32(np.concatenate([batch.obs + 0.1 * r.normal(size=(B, 3)), r.normal(size=(B, 1))], 1))


def test_rambo_differs_from_mopo_by_the_game_alone(rambo):
    """What mopo's tests hold of the model, of SAC's losses and of the order of updates holds here."""
    found = differences(load("rambo"), load("mopo"))
    assert found == {"Args", "Agent", "_of", "actor_optimizer", "init", "main", "rollout", "temperature", "train"}


@pytest.mark.long
def test_rambo_advantage_is_normalised_and_of_the_online_critics(rambo, agent, batch, args):
    outcome, terminal = made(agent, batch), jnp.array([False, True, False, False, True])
    next_action = np.tanh(np.split(mlp(agent.actor, outcome[:, :3]), 2, -1)[0])
    next_q = heads(agent.critic, outcome[:, :3], next_action).min(0)
    adv = outcome[:, 3] + 0.99 * (1 - np.float32(terminal)) * next_q
    adv -= heads(agent.critic, batch.obs, batch.action).min(0)
    found = rambo.advantage(agent, batch.obs, batch.action, outcome, terminal, args)
    close(found, (adv - adv.mean()) / (adv.std() + 1e-6))


def test_rambo_likelihood_is_of_the_elites_mixture_in_all_dimensions_together(rambo, agent, batch, args):
    """Members 0 and 2; far outcomes, whose density is 0 in float32, keep a finite logarithm."""
    outcome = made(agent, batch)
    mean, std = (np.float64(x)[[0, 2]] for x in rambo.outcomes(agent, batch.obs, batch.action))
    expected = np.log(np.exp(norm.logpdf(outcome, mean, std).sum(-1)).mean(0))
    found = rambo.mixture_log_prob(agent.best_model, agent, batch.obs, batch.action, outcome, args)
    close(found, expected)
    far = rambo.mixture_log_prob(agent.best_model, agent, batch.obs, batch.action, outcome + 1e3, args)
    assert np.isfinite(far).all() and (far < -1e3).all()


def test_rambo_model_makes_good_outcomes_rarer_and_keeps_to_the_data(rambo, agent, batch, args):
    """Of lambda = 1: the loss, and the sign: a step lowers the likelihood of what has a high advantage."""
    args = rambo.Args(**SIZES, adversary_weight=1.0)
    outcome, adv = made(agent, batch), np.float32([1.0, -1.0, 0.5, 0.0, -0.5])
    of_data = batch._replace(
        **{f: np.stack([getattr(batch, f)] * 3) for f in ("obs", "action", "reward", "next_obs")},
        successor=np.ones((3, B), np.float32),
    )
    inputs = (agent, batch.obs, batch.action, outcome, adv, of_data)
    log_prob = rambo.mixture_log_prob(agent.best_model, agent, batch.obs, batch.action, outcome, args)
    likelihood, _ = rambo.model_loss(agent.best_model, agent, of_data, args)
    loss, _ = rambo.adversary_loss(agent.best_model, *inputs, args)
    close(loss, (adv * log_prob).mean() + likelihood)
    close(rambo.adversary_loss(agent.best_model, *inputs, rambo.Args(**SIZES, adversary_weight=0.0))[0], likelihood)

    def game(model):
        return rambo.adversary_loss(model, *inputs, args)[0] - rambo.model_loss(model, agent, of_data, args)[0]

    grads = jax.jit(jax.grad(game))(agent.best_model)
    model = jax.tree.map(lambda x, g: np.asarray(x) - np.float32(1e-3) * np.asarray(g), agent.best_model, grads)
    change = rambo.mixture_log_prob(model, agent, batch.obs, batch.action, outcome, args) - log_prob
    assert (change * adv).sum() < -1e-4


def test_rambo_clones_by_the_likelihood_of_the_datas_actions(rambo, agent, batch):
    mean, log_std = np.split(mlp(agent.actor, batch.obs), 2, -1)
    u = np.arctanh(np.clip(batch.action, -0.999, 0.999))
    log_prob = norm.logpdf(u, mean, np.exp(np.clip(log_std, -5, 2))) - np.log(1 - np.tanh(u) ** 2)
    close(rambo.clone_loss(agent.actor, agent, batch), -log_prob.sum(-1).mean())


@pytest.mark.long
def test_rambo_the_game_changes_the_model_alone(rambo, agent, args):
    """A step of it at each of `adversary_updates`, on rows that are not held out."""
    r = np.random.default_rng(0)
    rows = np.concatenate([r.normal(size=(40, 10)), np.ones((40, 1))], 1)
    rows[:, 6] = 0.0
    ends = lambda next_obs: next_obs[..., 0] > 1.0  # noqa: E731
    rows[:20, 5] = np.nan  # rewards of the rows held out, which no update may see
    data = rambo.Transitions(jnp.float32(rows), None, None, SPEC, (*rambo.FIELDS, "successor"))
    new, info = jax.jit(lambda a, s: rambo.adversary(a, jax.random.key(0), s, data, ends, 20))(agent, args)
    assert np.isfinite(info["adversary_loss"]) and np.isnan(info["holdout_error"])
    for field in ("actor", "critic", "target_critic", "model"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, field), getattr(agent, field))
    kernel = new.best_model["params"]["Dense_0"]["kernel"]
    assert (np.abs(np.asarray(kernel) - agent.best_model["params"]["Dense_0"]["kernel"]).max((1, 2)) > 1e-5).all()
    assert new.adversary_opt[0].count == 3


@pytest.mark.long
def test_rambo_sees_normalised_observations_and_begins_with_a_clone(rambo, pendulum, tmp_path):
    train("rambo", pendulum, tmp_path / "run", env=SHORT, adversary_weight=(0.0, 1.0))
    before = list(csv.DictReader((tmp_path / "run" / "before.csv").open()))
    assert float(before[-1]["clone_loss"]) != 0.0
    metrics = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert metrics[-1]["holdout_error"] != metrics[-2]["holdout_error"]
    assert '"normalize_obs"' in (tmp_path / "run" / "run.json").read_text()


def test_rambo_actor_has_one_step_size_and_an_unbounded_temperature(rambo, agent, args):
    """As in the authors' code, unlike mopo, after which it is made."""
    step = load("rambo").actor_optimizer(args)
    state = jax.jit(step.init)(agent.actor)
    state = jax.tree.map(lambda x: x + args.updates if x.ndim == 0 else x, state)  # at its last update
    moved, _ = jax.jit(step.update)(jax.tree.map(np.ones_like, agent.actor), state, agent.actor)
    assert all((np.asarray(x) < 0).all() for x in jax.tree.leaves(moved))
    close(rambo.temperature(agent.replace(log_alpha=jnp.float32(0.3))), np.exp(0.3))


@pytest.mark.parametrize("uniform", [True, False])
def test_rambo_rollouts_are_of_the_policy_or_of_uniform_actions(rambo, agent, uniform):
    """A policy that does the same everywhere: 0.99 along both axes."""
    args = rambo.Args(**SIZES, uniform_rollouts=uniform)
    agent.actor["params"]["Dense_2"] = {"kernel": np.zeros((8, 4)), "bias": np.float32([3.0, 3.0, -5.0, -5.0])}
    data = rambo.Transitions(jnp.ones((20, 11)), None, None, SPEC, (*rambo.FIELDS, "successor"))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    replay = jax.tree.map(lambda x: x[0], load("rambo").init_replay(1, 40, SPEC, sharding))
    never = lambda next_obs: next_obs[..., 0] > np.inf  # noqa: E731
    replay, _ = rambo.rollout(agent, replay, jax.random.key(0), args, data, 2, never, None)
    action = np.asarray(jax.jit(replay.take)(np.arange(16)).action)
    assert (action.min() < -0.5 and action.max() < 1.0) if uniform else np.allclose(action, np.tanh(3.0), atol=1e-2)


def test_rambo_presets_are_the_authors_table(rambo):
    def of(dataset):
        preset = rambo.PRESETS[preset_for(dataset, rambo.PRESETS)]
        return preset["rollout_steps"], preset["adversary_weight"]

    def uniform(dataset):
        return rambo.PRESETS[preset_for(dataset, rambo.PRESETS)].get("uniform_rollouts", False)

    assert of("antmaze-umaze-v0") == (5, 3e-4) and of("antmaze-umaze-diverse-v0") == (5, 0)
    assert uniform("antmaze-umaze-diverse-v0") and uniform("antmaze-medium-play-v0") and not uniform("antmaze-umaze-v0")
    assert of("halfcheetah") == of("halfcheetah-medium-expert-v2") == (5, 3e-4) and of("halfcheetah-random-v2") == (
        5,
        0,
    )

    assert of("hopper-medium-replay-v2") == (2, 3e-4) and of("hopper-medium-v2") == (5, 3e-4)
    assert of("walker2d-medium-v2") == (5, 0) and of("walker2d-medium-expert-v2") == (2, 3e-4)
    assert of("antmaze-large-play-v0") == (5, 3e-4) and of("antmaze-large-diverse-v0") == (5, 0)
