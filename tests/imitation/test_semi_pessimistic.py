"""The losses of semi_pessimistic against the equations in plain numpy; its bound, its bootstrap, what it looks at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_goals
from jobs import small, train
from reference import B, agent_of, close, heads, mlp, smoothed_next_action

from shared.data import load_dataset
from shared.errors import InputError
from shared.parts import load_labelled
from shared.task import Spec

SMALL = {"labelled_fraction": 0.5, "reward_updates": 4, "reward_batch": 8, "reward_hidden_dims": (8,), "n_models": 2}
DISCRETE = Spec((3,), 4, True)
M = 3


def setting(discrete: bool = False, **changes):
    module = load("semi_pessimistic")
    sizes = {"hidden_dims": (8, 8), "batch_size": B, "reward_hidden_dims": (8,), "n_models": M, "discount": 0.9}
    args = module.Args(**sizes | changes)
    r, width = np.random.default_rng(0), 7 if discrete else 5
    scales = module.Scales(r.normal(size=width), r.uniform(0.5, 2, width), -3.0, 4.0, -9.0, 2.0)
    agent = agent_of(module, args, *([DISCRETE] if discrete else []), seed=3)
    return module, args, agent, jax.tree.map(np.float32, scales)


def predicted(agent, inputs, scales):
    return -3.0 + 4.0 * heads(agent.reward, (inputs - scales.input_mean) / scales.input_std)


def all_q(critics, obs):
    return np.stack([mlp(jax.tree.map(lambda x, i=i: x[i], critics), obs) for i in range(2)])


@pytest.mark.long
def test_the_critics_of_continuous_actions_are_td3s(batch):
    module, args, agent, _ = setting(policy_noise=0.6, noise_clip=0.4)
    key = jax.random.key(7)
    next_action = smoothed_next_action(agent, batch, key, args)
    y = batch.reward + 0.9 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    expected = sum(((q - y) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(module.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


@pytest.mark.long
def test_the_critics_of_discrete_actions_are_double_dqns(batch):
    module, args, agent, _ = setting(discrete=True)
    agent = agent.replace(target_critic=jax.tree.map(jnp.negative, agent.critic))  # which prefers other actions
    action, rows = np.array([0, 3, 1, 1, 2]), np.arange(B)
    batch = batch._replace(action=jnp.array(action))
    greedy = all_q(agent.critic, batch.next_obs).min(0).argmax(-1)
    y = batch.reward + 0.9 * (1 - batch.terminal) * all_q(agent.target_critic, batch.next_obs)[:, rows, greedy].min(0)
    q = all_q(agent.critic, batch.obs)[:, rows, action]
    close(module.critic_loss(agent.critic, agent, batch, None, args)[0], ((q - y) ** 2).mean(1).sum())
    np.testing.assert_array_equal(module.act(agent, batch.next_obs, None, args), greedy)


def test_the_actor_is_td3_bcs(batch):
    module, args, agent, _ = setting(alpha=1.7)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    expected = -1.7 / np.abs(q).mean() * q.mean() + ((pi - batch.action) ** 2).mean()
    close(module.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_each_reward_model_is_fitted_to_its_own_sample(batch):
    module, _, agent, scales = setting()
    counts = np.float32([[1, 0, 2, 0, 1], [0, 0, 3, 1, 0], [0, 0, 0, 0, 0]])  # of the last there is none in the batch
    error = ((predicted(agent, np.c_[batch.obs, batch.action], scales) - batch.reward) / 4.0) ** 2
    expected = (counts[0] * error[0]).sum() / 4 + (counts[1] * error[1]).sum() / 4
    close(module.reward_loss(agent.reward, agent.nets, batch, counts, scales), expected)


@pytest.mark.long
def test_a_bootstrap_sample_draws_as_many_units_as_there_are():
    module, args, agent, _ = setting(n_models=200)
    unit = np.repeat(np.arange(4), [3, 1, 5, 2])
    counts = np.asarray(module.bootstrapped(agent, unit, args))
    assert counts.shape == (200, 11)
    first = counts[:, [0, 3, 4, 9]]  # of each unit
    np.testing.assert_array_equal(counts, first[:, unit])
    assert (first.sum(1) == 4).all()
    assert 0.25 < (first == 0).mean() < 0.38  # (3 / 4)^4 = 0.316
    assert len(np.unique(first, axis=0)) > 20
    again = module.bootstrapped(agent, unit, args)
    np.testing.assert_array_equal(counts, again)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_bound_lies_standard_deviations_below_the_mean_and_within_what_is_known(batch, discrete):
    module, args, agent, scales = setting(discrete, pessimism=1.5)
    action = batch.action
    if discrete:
        batch = batch._replace(action=jnp.array([0, 3, 1, 1, 2]))
        action = np.eye(4)[batch.action]
    rewards = predicted(agent, np.c_[batch.obs, action], scales)
    bound = rewards.mean(0) - 1.5 * rewards.std(0)
    wide, narrow = scales._replace(reward_low=np.float32(-1e3)), np.float32(np.median(bound))
    close(module.lower_bound(agent, batch, wide, args), bound)
    clipped = module.lower_bound(agent, batch, wide._replace(reward_low=narrow), args)
    close(clipped, np.maximum(bound, narrow))
    assert (bound < narrow).any() and (bound > narrow).any()
    none = dataclasses.replace(args, pessimism=0.0)
    close(module.lower_bound(agent, batch, wide._replace(reward_high=np.float32(1e3)), none), rewards.mean(0))


def test_known_rewards_stay_and_the_bound_gives_the_others(batch):
    module, args, agent, scales = setting()
    labelled = np.float32([1, 0, 0, 1, 0])
    bound = module.lower_bound(agent, batch, scales, args)
    hidden = batch._replace(reward=np.where(labelled > 0, batch.reward, np.nan))

    def found(**changes):
        return module.imputed(agent, hidden, labelled, scales, dataclasses.replace(args, **changes))

    close(found(), np.where(labelled > 0, batch.reward, bound))
    close(found(keep_known=False), bound)
    close(found(impute="zero", keep_known=False), np.where(labelled > 0, batch.reward, 0.0))


def test_no_hidden_reward_is_looked_at(pendulum):
    """Other rewards of the rows without labels: the same in all that is trained on, compared with the truth aside."""
    module = load("semi_pessimistic")
    args = module.Args(dataset=pendulum, labelled_fraction=0.3)
    data, labelled, truth = load_labelled(args)
    one = module.imputable(data, labelled, truth.reward, args)
    other = module.imputable(data, labelled, 0 * truth.reward, args)
    jax.tree.map(np.testing.assert_array_equal, one._replace(compared=None), other._replace(compared=None))
    rows = one.transitions.take(np.arange(300))
    np.testing.assert_allclose(rows.reward, np.where(labelled, truth.reward, 0.0))
    known = truth.reward[labelled]
    np.testing.assert_allclose(one.known.take(np.arange(90)).reward, known)
    np.testing.assert_array_equal(one.unit, np.repeat([0, 1, 2], 30))
    close(
        [one.scales.reward_low, one.scales.reward_high, one.scales.reward_mean],
        [known.min(), known.max(), known.mean()],
    )
    assert len(one.compared.obs) == 210
    single = module.imputable(data, labelled, truth.reward, dataclasses.replace(args, labelled_unit="transitions"))
    np.testing.assert_array_equal(single.unit, np.arange(90))
    alone = module.imputable(data, labelled, truth.reward, dataclasses.replace(args, impute="none"))
    assert len(alone.transitions.rows) == 90 and (np.asarray(alone.labelled) == 1).all()


@pytest.mark.long
def test_the_models_agree_where_there_are_labels_and_the_bound_falls_where_there_are_none(tmp_path):
    """Labels of low positions alone: the bound of high ones lies below the truth, that of low ones beside it."""
    r, n, module = np.random.default_rng(0), 900, load("semi_pessimistic")
    obs = r.normal(size=(n, 3)).astype(np.float32)
    obs[:, 0] = np.repeat(np.linspace(-2, 2, 30), 30) + 0.1 * obs[:, 1]  # episodes lie side by side
    path, out = tmp_path / "rows.npz", tmp_path / "labelled.npz"
    arrays = {"observations": obs, "next_observations": obs, "actions": r.uniform(-2, 2, (n, 1)).astype(np.float32)}
    np.savez(path, **arrays, rewards=obs[:, 0], timeouts=np.arange(n) % 30 == 29, terminals=np.zeros(n, bool))
    sizes = {"reward_batch": 64, "reward_hidden_dims": (32,), "n_models": 5, "reward_lr": 1e-2, "pessimism": 2.0}
    sizes |= {"labelled_fraction": 0.3, "labelled_below": 0.4, "write_dataset": str(out), "env": "none"}
    args = small("semi_pessimistic", str(path), tmp_path / "run", **sizes)
    data, labelled, truth = load_labelled(args)
    rows = module.imputable(data, labelled, truth.reward, args)
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, data.spec)
    agent, metrics = jax.jit(module.fit)(agent, jax.random.split(jax.random.key(1), 400), args, rows)
    lanes = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), agent), jax.tree.map(lambda x: jnp.float32([x, 9.0]), args)
    module.write_labels(lanes[1], lanes[0], data, labelled, rows.scales)  # of a grid of lanes, the first one's
    found = load_dataset(str(out), env="none")
    np.testing.assert_allclose(found.reward[labelled], truth.reward[labelled])
    near, far = ~labelled & (truth.obs[:, 0] < -0.6), truth.obs[:, 0] > 1.0
    assert np.abs(found.reward - truth.reward)[near].mean() < 0.15
    assert (found.reward < truth.reward)[far].all()
    hidden = found.reward[~labelled] <= truth.reward[~labelled] + 1e-3 * rows.scales.reward_std
    close(metrics["label_below"], hidden.mean())
    assert module.accuracy(None, None, dataclasses.replace(args, impute="none")) == {}  # there are no labels


def test_discrete_actions_have_no_actor(batch):
    module, args, agent, _ = setting(discrete=True, tau=0.5)
    batch = batch._replace(action=jnp.array([0, 3, 1, 1, 2]))
    new, metrics = jax.jit(module.update)(agent, batch, jax.random.key(0), args)
    assert new.actor is None and "actor_loss" not in metrics
    half = jax.tree.map(lambda a, b: (a + b) / 2, agent.target_critic, new.critic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.target_critic, half)


@pytest.mark.long
def test_without_models_nothing_is_asked_of_their_fit(pendulum, tmp_path):
    agents = train("semi_pessimistic", pendulum, tmp_path / "run", impute="zero", reward_updates=0, env="none")
    trained = [x for name, x in agents.items() if name.startswith(("[0].actor[", "[0].critic["))]
    assert trained and all(np.isfinite(x).all() for x in trained)


def test_bad_input_is_one_sentence(pendulum, tmp_path):
    module, goals = load("semi_pessimistic"), write_goals(tmp_path / "maze.npz")
    for dataset, changes, message in (
        (pendulum, {"labelled_fraction": 0.0}, "none of the 10 episodes of .* keeps its labels"),
        (pendulum, {"hide": ("actions",)}, "--hide actions: rewards are what is imputed here"),
        (pendulum, {"n_models": 0}, "--reward-updates and --n-models must be at least 1"),
        (pendulum, {"reward_updates": 0}, "--reward-updates and --n-models must be at least 1"),
        (pendulum, {"n_models": 1, "pessimism": (0.0, 1.0)}, "--n-models must be at least 2 with --pessimism"),
        (pendulum, {"impute": "none", "write_dataset": "x.npz"}, "there are no labels to write"),
        (goals, {"env": "none"}, "learns from rewards"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("semi_pessimistic", dataset, tmp_path / "run", **changes))
