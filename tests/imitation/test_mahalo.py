"""The losses of mahalo against the equations in plain numpy; which part of the data has what in which scenario."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals, write_pendulum
from jobs import small, train
from reference import B, agent_of, close, heads, relu, tanh_normal
from scipy.stats import spearmanr

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {"warm_updates": 4, "demo_episodes": 2}
BOUNDS = np.float32(-0.4), np.float32(0.6)
NOISE = np.random.default_rng(0).standard_normal((2, B, 2)).astype(np.float32)


def setting(**changes):
    mahalo = load("mahalo")
    args = mahalo.Args(**{"hidden_dims": (8, 8), "batch_size": B, "discount": 0.9, **changes})
    return mahalo, args, agent_of(mahalo, args, seed=7)


@pytest.fixture
def rewarded(batch):
    return batch._replace(obs=-batch.obs[::-1], next_obs=0.5 * batch.obs, action=None, next_action=None)


def gaussian(params, obs):
    """Mean and log standard deviation: the last two layers stand beside each other."""
    layers, x = {k: jax.tree.map(np.float64, v) for k, v in params["params"].items()}, np.float64(obs)
    out = lambda name, x: x @ layers[name]["kernel"] + layers[name]["bias"]  # noqa: E731
    for i in range(2):
        x = relu(out(f"Dense_{i}", x))
    return out("Dense_2", x), np.clip(out("Dense_3", x), np.log(1e-5), np.log(10))


def sampled(agent, obs, noise):
    return tanh_normal(*gaussian(agent.actor, obs), np.asarray(noise))


def label_of(agent, batch):
    """[B] of the reward function."""
    alone = jax.tree.map(lambda x: x[None], agent.reward)
    return heads(alone, batch.obs, batch.next_obs, batch.terminal[:, None])[0]


def bellman(agent, batch, noise):
    """Q, the label, and what follows by the targets and by the critics themselves, as the paper has them."""
    low, high = np.minimum(-1, 2 * BOUNDS[0]) / 0.1, np.maximum(1, 2 * BOUNDS[1]) / 0.1
    action, _ = sampled(agent, batch.next_obs, noise)
    target = heads(agent.target_critic, batch.next_obs, action).min(0)
    own = heads(agent.critic, batch.next_obs, action)
    left = 0.9 * (1 - batch.terminal)
    q = heads(agent.critic, batch.obs, batch.action)
    return q, label_of(agent, batch), left * np.clip(target, low, high), left * np.clip(own, low, high)


def summed(first, second, weight):
    return first / weight + second if weight > 1 else first + weight * second


@pytest.mark.long
@pytest.mark.parametrize("consistency_weight, reward_weight", [(4.0, 0.5), (0.3, 30.0)])
def test_the_game_of_critics_and_rewards(consistency_weight, reward_weight, batch, rewarded):
    mahalo, args, agent = setting(consistency_weight=consistency_weight, reward_weight=reward_weight)
    q, label, target, own = bellman(agent, batch, NOISE[0])
    clipped = np.clip(label, *BOUNDS)
    assert (clipped != label).any() and (clipped == label).any()
    pessimism = (heads(agent.critic, batch.obs, sampled(agent, batch.obs, NOISE[1])[0]) - q).mean(1).sum()
    error = 0.5 * ((q - clipped - target) ** 2).mean(1).sum() + 0.5 * ((q - clipped - own) ** 2).mean(1).sum()
    of_reward = 0.5 * ((q - label - target) ** 2).mean(1).sum() + 0.5 * ((q - label - own) ** 2).mean(1).sum()
    fit = ((label_of(agent, rewarded) - rewarded.reward) ** 2).mean()
    game = summed(pessimism, error, consistency_weight)
    params = agent.critic, agent.reward
    found, info = mahalo.critic_loss(params, agent, batch, rewarded, NOISE, mahalo.Bounds(*BOUNDS), args)
    close(found, game + summed(of_reward, fit, reward_weight))
    close([info["pessimism"], info["bellman_error"], info["reward_error"]], [pessimism, error, fit])
    alone = dataclasses.replace(args, adversarial=0.0)
    close(mahalo.critic_loss(params, agent, batch, rewarded, NOISE, mahalo.Bounds(*BOUNDS), alone)[0], game)


@pytest.mark.long
def test_the_game_lowers_the_policys_values_alone(batch, rewarded):
    """PSPI, in states that are none of the batch's: Q of what the policy does there, and nothing of the data's."""
    mahalo, args, agent = setting(relative=False, consistency_weight=0.0, adversarial=0.0)
    states, bounds = np.float32(0.5 * batch.obs[::-1] + 0.2), mahalo.Bounds(*BOUNDS)
    noise = np.random.default_rng(1).standard_normal((3, B, 2)).astype(np.float32)
    expected = heads(agent.critic, states, sampled(agent, states, noise[2])[0]).mean(1).sum()
    params = agent.critic, agent.reward
    close(mahalo.critic_loss(params, agent, batch, rewarded, noise, bounds, args, states)[0], expected)
    key = jax.random.key(2)
    _, metrics = jax.jit(mahalo.update)(agent, batch, rewarded, key, bounds, args, states=states)
    noise = jax.random.normal(key, (3, B, 2))
    close(metrics["critic_loss"], heads(agent.critic, states, sampled(agent, states, noise[2])[0]).mean(1).sum())


def test_states_are_of_all_rows_of_both_parts_alike(paths):
    mahalo = load("mahalo")
    args = mahalo.Args(
        dataset=paths[0], demos=paths[1:], demo_episodes=3, scenario="rlfo", env="Pendulum-v1", batch_size=4000
    )
    parts = mahalo.parts_of(args)[1]
    seen = np.asarray(mahalo.states_of_both(jax.random.split(jax.random.key(0), 3), parts, args))
    shown = {tuple(row) for row in np.asarray(parts.rewarded.take(jnp.arange(90)).obs)}
    assert abs(np.mean([tuple(row) in shown for row in seen]) - 90 / 390) < 0.03
    assert len(np.unique(seen, axis=0)) > 380


@pytest.mark.long
def test_the_game_without_the_datas_values_runs(pendulum, tmp_path):
    relative, absolute = (
        train("mahalo", pendulum, tmp_path / str(x), env="none", relative=x, actor_lr=1e-3) for x in (True, False)
    )
    critic = [name for name in absolute if name.startswith("[0].critic[")]
    assert critic and any((relative[name] != absolute[name]).any() for name in critic)
    assert all(np.isfinite(absolute[name]).all() for name in critic)


def test_values_that_follow_are_bounded(batch):
    mahalo, args, agent = setting()
    high = jax.tree.map(lambda x: 100 * x, agent.critic)
    agent = agent.replace(target_critic=high, critic=high)
    bounds = mahalo.Bounds(jnp.float32(-3.0), jnp.float32(0.2))
    _, _, _, target, own = mahalo.bellman((high, agent.reward), agent, batch, NOISE[0], bounds, args)
    for values in (target, own):
        assert np.asarray(values).min() >= -0.9 * 6 / 0.1 - 1e-3 and np.asarray(values).max() <= 0.9 * 1 / 0.1 + 1e-3
    np.testing.assert_array_equal(target[batch.terminal > 0], 0.0)


@pytest.mark.long
def test_rewards_do_not_learn_from_pessimism_nor_critics_from_rewards(batch, rewarded):
    mahalo, args, agent = setting(consistency_weight=1.0, reward_weight=1.0)
    bounds = mahalo.Bounds(*BOUNDS)

    def gradient(**changes):
        changed = dataclasses.replace(args, **changes)
        loss = lambda params: mahalo.critic_loss(params, agent, batch, rewarded, NOISE, bounds, changed)[0]  # noqa: E731
        return jax.grad(loss)((agent.critic, agent.reward))

    whole, alone = gradient(), gradient(adversarial=0.0)
    jax.tree.map(close, whole[0], alone[0])  # the critics' is the same without the rewards' part
    assert all((x == 0).all() for x in jax.tree.leaves(alone[1])) and all(x.any() for x in jax.tree.leaves(whole[1]))
    # the rewards' own is that of a regression on what Q leaves over, and of its fit
    q, label, target, own = bellman(agent, batch, NOISE[0])
    _, pull = jax.vjp(lambda r: mahalo.rewards_of(agent.nets.net, r, batch), agent.reward)
    _, pull_fit = jax.vjp(lambda r: mahalo.rewards_of(agent.nets.net, r, rewarded), agent.reward)
    left = ((label + target - q) + (label + own - q)).sum(0) / B
    expected = jax.tree.map(
        lambda *x: x[0] + x[1],
        pull(jnp.float32(left))[0],
        pull_fit(jnp.float32(2 * (label_of(agent, rewarded) - rewarded.reward) / B))[0],
    )
    jax.tree.map(close, whole[1], expected)


def test_the_warm_start_is_cloning_its_values_and_the_fit(batch, rewarded):
    mahalo, args, agent = setting()
    q, label, target, own = bellman(agent, batch, NOISE[0])
    clipped = np.clip(label, *BOUNDS)
    error = 0.5 * ((q - clipped - target) ** 2).mean(1).sum() + 0.5 * ((q - clipped - own) ** 2).mean(1).sum()
    fit = ((label_of(agent, rewarded) - rewarded.reward) ** 2).mean()
    params = agent.critic, agent.reward
    found = mahalo.warm_critic_loss(params, agent, batch, rewarded, NOISE, mahalo.Bounds(*BOUNDS), args)[0]
    close(found, error + fit)
    for log_alpha in (-1.0, 1.0):
        agent = agent.replace(log_alpha=jnp.float32(log_alpha))
        mean, log_std = gaussian(agent.actor, batch.obs)
        u = np.arctanh(np.float64(batch.action))
        _, of_data = tanh_normal(mean, log_std, (u - mean) / np.exp(log_std))
        _, log_prob = sampled(agent, batch.obs, NOISE[1])
        expected = summed(-of_data.mean(), log_prob.mean(), np.exp(log_alpha))
        close(mahalo.warm_actor_loss(agent.actor, agent, batch, NOISE[1], args)[0], expected)
        action, _ = sampled(agent, batch.obs, NOISE[1])
        expected = summed(-heads(agent.critic, batch.obs, action)[1].mean(), log_prob.mean(), np.exp(log_alpha))
        close(mahalo.actor_loss(agent.actor, agent, batch, NOISE[1], args)[0], expected)


def test_weight_matrices_are_bounded_one_by_one():
    mahalo, args, agent = setting(max_norm=2.0)
    critic = jax.tree.map(lambda x: x * jnp.array([0.01, 10.0]).reshape(2, *[1] * (x.ndim - 1)), agent.critic)
    found = mahalo.bounded(critic, args)
    for name, layer in found["params"].items():
        was = critic["params"][name]
        np.testing.assert_array_equal(layer["bias"], was["bias"])
        close(layer["kernel"][0], was["kernel"][0])
        norm = np.linalg.norm(was["kernel"][1])
        assert norm > 2.0
        close(layer["kernel"][1], 2.0 * was["kernel"][1] / norm)


@pytest.mark.long
@pytest.mark.parametrize("warm", [False, True])
def test_an_update_is_of_critics_then_the_entropys_weight_then_the_actor(warm, batch, rewarded):
    mahalo, args, agent = setting(critic_lr=0.01, actor_lr=0.02, alpha_lr=0.1, tau=0.5, max_norm=3.0)
    bounds, key = mahalo.Bounds(*BOUNDS), jax.random.key(2)
    new, metrics = jax.jit(mahalo.update, static_argnames="warm")(agent, batch, rewarded, key, bounds, args, warm=warm)
    noise = jax.random.normal(key, (2, B, 2))
    loss, loss_pi = (getattr(mahalo, f"{'warm_' * warm}{name}_loss") for name in ("critic", "actor"))
    close(metrics["critic_loss"], loss((agent.critic, agent.reward), agent, batch, rewarded, noise, bounds, args)[0])
    assert max(np.linalg.norm(x["kernel"], axis=(1, 2)).max() for x in new.critic["params"].values()) < 3.001
    half = jax.tree.map(lambda a, b: (a + b) / 2, agent.target_critic, new.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.target_critic, half)
    _, log_prob = sampled(agent, batch.obs, noise[1])
    close(new.log_alpha, -0.1 * np.sign(2 - log_prob.mean()))  # entropy above -dim(A): less weight
    between = agent.replace(critic=new.critic, log_alpha=new.log_alpha)
    close(metrics["actor_loss"], loss_pi(agent.actor, between, batch, noise[1], args)[0])
    bias = [x["params"]["Dense_2"]["bias"] for x in (new.actor, agent.actor)]
    close(np.abs(bias[0] - bias[1]), 0.01 if warm else 0.02)  # Adam's first step is its size


@pytest.fixture
def paths(tmp_path):
    return write_pendulum(tmp_path / "pendulum.npz"), write_pendulum(tmp_path / "pendulum-shown.npz", n=90, seed=1)


@pytest.mark.parametrize("scenario", ["il", "ilfo", "rl", "rlfo"])
def test_a_scenario_says_what_is_known_of_the_demonstrations(scenario, paths):
    mahalo = load("mahalo")
    args = mahalo.Args(dataset=paths[0], demos=paths[1:], demo_episodes=2, scenario=scenario, env="Pendulum-v1")
    data, rewarded, whole, returns = mahalo.load_parts(args)
    assert len(whole.obs) == 300 and len(rewarded.obs) == 60 and len(returns) == 10
    assert np.isnan(data.reward).all() and np.isnan(whole.reward).all()
    joined = scenario in ("il", "rl")
    assert len(data.obs) == 300 + 60 * joined
    if joined:
        np.testing.assert_array_equal(data.action[300:], rewarded.action)
    assert (rewarded.reward == 1).all() == scenario.startswith("il")
    bounds = mahalo.parts_of(args)[1].bounds
    expected = (0, 1) if scenario.startswith("il") else (rewarded.reward.min(), rewarded.reward.max())
    close(bounds, expected)
    assert mahalo.parts_of(args)[1].rewarded.fields == ("obs", "reward", "terminal", "next_obs")


def test_rewards_of_a_few_episodes_of_the_data_itself(paths, monkeypatch):
    mahalo = load("mahalo")
    args = mahalo.Args(dataset=paths[0], demo_episodes=3, scenario="rl_sample", env="none", batch_size=4)
    data, rewarded, whole, returns = mahalo.load_parts(args)
    assert len(data.obs) == 300 and len(rewarded.obs) == 90 and np.isnan(data.reward).all()
    other = mahalo.load_parts(dataclasses.replace(args, split_seed=1))[1]
    assert (other.obs != rewarded.obs).any()
    parts = mahalo.parts_of(args)[1]
    label = np.random.default_rng(3).normal(size=300).astype(np.float32)
    monkeypatch.setattr(mahalo, "rewards_of", lambda net, reward, batch: jnp.asarray(label))
    monkeypatch.setattr(
        mahalo,
        "update",
        lambda agent, batch, rewarded, key, bounds, args, warm, states: (agent, {"r": rewarded.reward}),
    )
    agent = setting()[2]
    _, metrics = mahalo.train(agent, jax.random.split(jax.random.key(0), 5), args, parts, False)
    summed = np.clip(label, rewarded.reward.min(), rewarded.reward.max()).reshape(10, 30).sum(1)
    close(metrics["label_correlation"], spearmanr(summed, returns).statistic)
    assert np.isfinite(metrics["r"])


@pytest.mark.parametrize("unit", ["episodes", "transitions"])
@pytest.mark.parametrize("hide", [("rewards",), ("actions",), ("rewards", "actions")])
@pytest.mark.parametrize("scenario", ["il", "ilfo", "rlfo", "rl_sample"])
def test_demonstrations_labelled_and_unlabelled_rows_at_once(scenario, hide, unit, paths):
    """Of 300 rows 60 keep their labels, 60 others are shown."""
    mahalo, demonstrates = load("mahalo"), scenario != "rl_sample"
    args = mahalo.Args(
        dataset=paths[0], demos=paths[1:], demo_episodes=2, scenario=scenario, env="Pendulum-v1", hide=hide,
        labelled_fraction=0.2, labelled_unit=unit,
    )  # fmt: skip
    data, rewarded, whole, returns = mahalo.load_parts(args)
    truth = load_dataset(paths[0], "Pendulum-v1")
    kept = [i for i in range(300) if (rewarded.obs == truth.obs[i]).all(1).any()]
    shown = 60 * demonstrates
    assert len(kept) == (60 if "rewards" in hide else 300) and len(rewarded.obs) == shown + len(kept)
    np.testing.assert_array_equal(rewarded.reward[shown:], truth.reward[kept])
    assert not demonstrates or (rewarded.reward[:shown] == 1).all() == scenario.startswith("il")
    assert len(data.obs) == (60 if "actions" in hide else 300) + 60 * (scenario == "il")
    assert np.isfinite(data.action).all() and np.isnan(data.reward).all() and len(returns) == 10
    if hide == ("rewards", "actions"):
        np.testing.assert_array_equal(data.obs[:60], truth.obs[kept])
        assert np.isnan(whole.action).any(1).sum() == 240
    counts = {name: part["rows"] for name, part in data.task.data["parts"].items()}
    assert counts == {"labelled": 60, "unlabelled": 240} | ({"demonstrations": 60} if demonstrates else {})
    assert len({part["hash"] for part in data.task.data["parts"].values()}) == len(counts)
    assert whole.task.options["hidden"] == sorted(hide)
    low, high = mahalo.parts_of(args)[1].bounds
    expected = np.r_[rewarded.reward, 0, 1] if scenario.startswith("il") else rewarded.reward
    close([low, high], [expected.min(), expected.max()])


def test_ends_are_left_out_of_the_data(tmp_path):
    mahalo, path = load("mahalo"), write_pendulum(tmp_path / "pendulum.npz")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["terminals"] = np.arange(300) % 60 == 59
    np.savez(path, **arrays)
    args = mahalo.Args(dataset=path, env="none")
    kept, all_rows = (mahalo.load_parts(dataclasses.replace(args, remove_terminals=x))[0] for x in (True, False))
    assert all_rows.terminal.sum() == 5 and not kept.terminal.any() and len(kept.obs) == 295
    shown = mahalo.Args(dataset=path, demos=(path,), demo_episodes=10, scenario="rl", env="Pendulum-v1")
    joined = mahalo.load_parts(shown)[0]
    assert len(joined.obs) == 295 + 300 and joined.terminal.sum() == 5 and not joined.terminal[:295].any()


def test_bad_input_is_one_sentence(pendulum, cartpole, tmp_path):
    mahalo, goals, unpaid = load("mahalo"), write_goals(tmp_path / "maze.npz"), str(tmp_path / "pendulum-unpaid.npz")
    with np.load(pendulum) as file:
        np.savez(unpaid, **{name: file[name] for name in file.files if name != "rewards"})
    for dataset, changes, message in (
        (pendulum, {"scenario": "ilfo"}, "--scenario ilfo needs --demos"),
        (pendulum, {"scenario": "ilfo", "demos": (goals,)}, "has other observations"),
        (pendulum, {"demo_episodes": 0}, "--demo-episodes 0: rl_sample needs one"),
        (pendulum, {"discount": 1.0}, "--discount must be below 1"),
        (pendulum, {"consistency_weight": (1.0, -1.0)}, "--consistency-weight must be at least 0, not "),
        (pendulum, {"adversarial": -1.0}, "--adversarial must be at least 0, not -1.0"),
        (pendulum, {"reward_weight": -1.0}, "--reward-weight must be at least 0, not -1.0"),
        (pendulum, {"max_norm": 0.0}, "--max-norm must be above 0, not 0.0"),
        (pendulum, {"warm_updates": 0, "adversarial": (1.0, 0.0)}, "fitted in the warm start alone, and --warm"),
        (pendulum, {"labelled_fraction": 0.01}, "--labelled-fraction 0.01: none of the 10 episodes of"),
        (pendulum, {"scenario": "ilfo", "demos": (pendulum,), "hide": ("actions",)}, "has no row of known action"),
        (
            pendulum,
            {"scenario": "rlfo", "demos": (unpaid,), "demo_episodes": 0},
            "learns from rewards; '.*unpaid.npz' has none",
        ),
        (cartpole, {}, "needs continuous actions"),
    ):
        with pytest.raises(InputError, match=message):
            mahalo.main(small("mahalo", dataset, tmp_path / "run", **changes))


def test_settings_are_those_released():
    """Defaults of main.py of AnqiLi/mahalo, and the flags of its README."""
    args = load("mahalo").Args()
    assert (args.critic_lr, args.alpha_lr, args.actor_lr, args.consistency_weight) == (5e-4, 5e-4, 5e-7, 10.0)
    assert (args.reward_weight, args.max_norm, args.warm_updates, args.tau) == (1e5, 100.0, 100_000, 0.005)
    assert (args.hidden_dims, args.batch_size, args.remove_terminals) == ((256, 256, 256), 256, True)
