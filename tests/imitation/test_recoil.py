"""The losses of recoil against the equations in plain numpy, and its bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals
from jobs import small
from reference import B, agent_of, close, differences, heads, log_std_of, mlp, normed_v
from scipy.stats import norm, spearmanr

from shared.arguments import preset_for
from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import hidden

SMALL = {"demo_episodes": 1}


def setting(**changes):
    recoil = load("recoil")
    args = recoil.Args(**{"hidden_dims": (8, 8), "batch_size": B, "discount": 0.9, **changes})
    return recoil, args, agent_of(recoil, args, seed=7)


@pytest.fixture
def demos(batch):
    return type(batch)(obs=-batch.obs[::-1], action=0.5 * batch.action[::-1])


def advantage(agent, batch):
    return heads(agent.target_critic, batch.obs, batch.action).min(0) - normed_v(agent.value, batch.obs)


def test_its_networks_and_its_policy_are_those_of_f_dvl():
    recoil, f_dvl = load("recoil"), load("f_dvl")
    assert differences(recoil, f_dvl) == {
        "Args",
        "value_loss",
        "critic_loss",
        "actor_optimizer",
        "update",
        "train",
        "main",
    }


@pytest.mark.long
def test_v_is_a_gumbel_regression_or_an_expectile_of_q(batch):
    recoil, args, agent = setting(gumbel_temperature=0.5, gumbel_clip=1.0)
    u = advantage(agent, batch)
    z = np.minimum(u / 0.5, 1.0)
    assert (z == 1.0).any() and (z < 1.0).any()
    close(recoil.value_loss(agent.value, agent, batch, args)[0], ((np.exp(z) - z - 1) * np.exp(-z.max())).mean())
    args = dataclasses.replace(args, maximizer="expectile", expectile=0.9)
    assert (u > 0).any() and (u < 0).any()
    close(recoil.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.1, 0.9) * u**2).mean())


def test_the_rescaling_of_the_gumbel_regression_is_not_differentiated():
    recoil, args, _ = setting()
    for u in ([0.5, 2.0, -1.0], [-3.0, -2.0]):
        gradient = jax.grad(lambda u: recoil.maximizer_loss(u, args).sum())(jnp.array(u))
        close(gradient, (np.exp(u) - 1) * np.exp(-max(*u, -1.0)))


@pytest.mark.parametrize("clip, lifts", [(7.0, True), (0.6, True), (0.0, False), (-1.0, False)])
def test_a_clip_above_0_is_what_lifts_v(clip, lifts):
    """The slope of the loss in V at 0, of each Q from -2 to 2: without, none of those above it lifts V."""
    recoil, args, _ = setting(gumbel_clip=clip)
    loss = jax.vmap(lambda q, v: recoil.maximizer_loss((q - v)[None], args)[0], (0, None))
    slope = jax.jacobian(loss, 1)(jnp.linspace(-2.0, 2.0, 9), 0.0)
    assert bool((slope < 0).any()) == lifts and (slope > 0).any()


def test_the_policy_is_cloned_with_advantage_weights(batch):
    recoil, args, agent = setting(beta=4.0, max_weight=3.0)
    weight = np.minimum(np.exp(4.0 * advantage(agent, batch)), 3.0)
    assert (weight == 3.0).any() and (weight < 3.0).any()
    mean = np.tanh(mlp(agent.actor, batch.obs))
    log_prob = norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1)
    close(recoil.actor_loss(agent.actor, agent, batch, jax.random.key(0), args)[0], -(weight * log_prob).mean())


def test_q_is_drawn_to_a_bound_where_it_was_demonstrated_and_to_bellman_where_it_was_not(batch, demos):
    recoil, args, agent = setting(step_cost=0.5)
    y = np.where(batch.terminal > 0, -0.5 / 0.1, -0.5 + 0.9 * normed_v(agent.value, batch.next_obs))
    q, shown = heads(agent.critic, batch.obs, batch.action), heads(agent.critic, demos.obs, demos.action)
    expected = (0.5 * (shown - 0.5 / 0.1) ** 2 + 0.5 * (q - y) ** 2).mean(1).sum()
    loss = jax.jit(recoil.critic_loss)
    found, info = loss(agent.critic, agent, batch, demos, args)
    close(found, expected)
    close([info["q"], info["q_demo"]], [q.mean(), shown.mean()])
    unknown = np.where(batch.terminal[:, None] > 0, 9.0, batch.next_obs)  # what follows an end is not looked at
    close(loss(agent.critic, agent, batch._replace(next_obs=unknown), demos, args)[0], expected)


class Table:
    """Values of five states of one action each, by the number in their observation."""

    @staticmethod
    def apply(table, obs, action=None):
        return table[obs[:, 0].astype(int)]


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_values_lie_between_the_bounds(discount, batch):
    """State 0 is demonstrated and in the data, 1 is demonstrated, 2 stays as it is, 3 ends, 4 and 0 lead to 1."""
    recoil, args, agent = setting(discount=discount, batch_size=4, step_cost=2.0)
    agent = agent.replace(nets=agent.nets._replace(critic=Table))
    column = lambda *numbers: jnp.array(numbers, jnp.float32)[:, None]  # noqa: E731
    batch = batch._replace(obs=column(0, 2, 3, 4), next_obs=column(1, 2, 0, 1), terminal=column(0, 0, 1, 0)[:, 0])
    demos = batch._replace(obs=column(0, 1, 0, 1))

    def better(_, q):
        return q - jax.grad(lambda x: recoil.critic_loss(x, agent.replace(value=q[0]), batch, demos, args)[0])(q)

    q = jax.jit(lambda q: jax.lax.fori_loop(0, 5000, better, q))(jnp.zeros((2, 5)))
    bound = 2.0 / (1.0 - discount)
    before = -2.0 + discount * bound
    np.testing.assert_allclose(q, [[(2 * bound + before) / 3, bound, -bound, -bound, before]] * 2, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_an_update_is_v_then_the_actor_then_q(batch, demos):
    recoil, args, agent = setting(value_lr=0.1, updates=3, tau=0.5)
    key, update = jax.random.key(0), jax.jit(recoil.update)
    new, metrics = update(agent, batch, demos, key, args)
    after = agent.replace(value=new.value)
    close(metrics["value_loss"], recoil.value_loss(agent.value, agent, batch, args)[0])
    close(metrics["actor_loss"], recoil.actor_loss(agent.actor, after, batch, key, args)[0])
    close(metrics["critic_loss"], recoil.critic_loss(agent.critic, after, batch, demos, args)[0])
    assert abs(float(metrics["critic_loss"] - recoil.critic_loss(agent.critic, agent, batch, demos, args)[0])) > 1e-3
    half = jax.tree.map(lambda a, b: (a + b) / 2, agent.target_critic, new.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.target_critic, half)
    other, _ = update(agent, batch, demos._replace(action=-demos.action), key, args)
    jax.tree.map(np.testing.assert_array_equal, (other.value, other.actor), (new.value, new.actor))  # data's alone
    for _ in range(2):
        new, _ = update(new, batch, demos, key, args)
    still, _ = update(new, batch, demos, key, args)
    jax.tree.map(np.testing.assert_array_equal, still.actor, new.actor)  # the cosine has come to its end


def test_values_are_compared_with_the_true_returns_of_their_episodes(pendulum, monkeypatch):
    recoil, args, _ = setting()
    data = load_dataset(pendulum)
    data = dataclasses.replace(hidden(data, ("rewards",)), successor=np.arange(300) % 30 != 29)
    returns, agent = np.random.default_rng(0).permutation(10).astype(float), None
    parts = recoil.parts_of(data, data, returns)
    assert parts.transitions.fields == ("obs", "action", "terminal", "next_obs") and len(parts.returns) == 290
    q = np.float32(parts.compared.obs[:, 0])
    monkeypatch.setattr(recoil, "q_values", lambda net, critics, obs, action: jnp.stack([obs[:, 0], obs[:, 0] + 9]))
    monkeypatch.setattr(recoil, "update", lambda agent, batch, demos, key, args: (agent, {"q": batch.obs.mean()}))
    agent = setting()[2]
    _, metrics = recoil.train(agent, jax.random.split(jax.random.key(0), 2), args, parts)
    row = {tuple(o): e for o, e in zip(np.asarray(data.obs), data.episode(), strict=True)}
    true = [returns[row[tuple(o)]] for o in np.asarray(parts.compared.obs)]
    np.testing.assert_allclose(metrics["q_correlation"], spearmanr(q, true).statistic, atol=1e-5)
    _, metrics = recoil.train(agent, jax.random.split(jax.random.key(0), 2), args, recoil.parts_of(data, data, None))
    assert "q_correlation" not in metrics


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    recoil, goals = load("recoil"), write_goals(tmp_path / "maze.npz")
    for dataset, changes, message in (
        (pendulum, {"demos": (goals,)}, "has other observations"),
        (pendulum, {"discount": (0.9, 1.0)}, "--discount must be below 1"),
        (pendulum, {"step_cost": 0.0}, "--step-cost and --gumbel-temperature must be above 0"),
        (pendulum, {"gumbel_temperature": (1.0, 0.0)}, "--step-cost and --gumbel-temperature must be above 0"),
        (pendulum, {"gumbel_clip": (7.0, 0.0)}, "--gumbel-clip must be above 0, not .*: V would only fall"),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            recoil.main(small("recoil", dataset, tmp_path / "run", **changes))


def test_settings_are_those_released():
    """Defaults of the authors' train script for imitation, and of IQL's configuration for MuJoCo, which it loads."""
    args = load("recoil").Args()
    assert (args.step_cost, args.discount, args.tau, args.batch_size) == (2.0, 0.99, 0.005, 1024)
    assert (args.maximizer, args.gumbel_temperature, args.gumbel_clip) == ("gumbel", 1.0, 7.0)
    assert (args.beta, args.max_weight, args.updates) == (3.0, 100.0, 1_000_000)


@pytest.mark.parametrize(
    "dataset, settings",
    [
        ("D4RL/pen/cloned-v2", {"dropout": 0.1}),
        ("relocate-human-v1", {"dropout": 0.1}),
        ("D4RL/kitchen/mixed-v2", {"beta": 0.5, "dropout": 0.1}),
        ("hopper-random-v2", {}),
    ],
)
def test_hands_and_kitchen_have_their_configurations(dataset, settings):
    """configs/adroit_config.py, kitchen_config.py and mujoco_config.py of the released code."""
    presets = load("recoil").PRESETS
    assert presets.get(preset_for(dataset, presets), {}) == settings
