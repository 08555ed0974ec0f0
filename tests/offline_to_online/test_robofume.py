"""RoboFuME against plain numpy: the judge, what it rewards, Cal-QL with cloning, and practice without resets."""

import csv
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, tanh_normal
from scipy.special import expit, logsumexp
from scipy.stats import norm

from shared.data import Dataset
from shared.errors import InputError
from shared.replay import init_replay
from shared.task import Task, env_task

SMALL = {
    "n_actions": 2, "actor_hidden_dims": (8, 8), "classifier_updates": 4, "learning_starts": 2, "attempt_steps": 3,
    "reset_every": 6,
}  # fmt: skip

robofume = load("robofume")
N = 2
FUNCTIONS = ("actor_loss", "sample", "batch_of", "practise")
actor_loss, sample, batch_of, practise = (jax.jit(getattr(robofume, x)) for x in FUNCTIONS)


@jax.jit
def critic_loss(critic, agent, batch, key, args):
    """The loss, and its gradients in what is no critic of its own."""

    def of_others(others):
        return robofume.critic_loss(critic, agent.replace(**others), batch, key, args)

    return jax.value_and_grad(of_others, has_aux=True)({k: getattr(agent, k) for k in ("actor", "target_critic")})


def tiny(**changes):
    sizes = {"hidden_dims": (8,), "actor_hidden_dims": (8,), "batch_size": B, "n_actions": N}
    return robofume.Args(**sizes | {"discount": 0.9, "cql_alpha": 2.0, "reset_every": 20, "attempt_steps": 4} | changes)


@pytest.fixture(scope="module")
def agent():
    return agent_of(robofume, tiny()).replace(log_alpha=jnp.float32(-0.4))


@pytest.fixture(scope="module")
def rows():
    """Five: two demonstrations, of which the second succeeds; three others."""
    r = np.random.default_rng(0)
    x = lambda *shape: np.float32(r.normal(size=shape))  # noqa: E731
    action = np.float32(r.uniform(-0.9, 0.9, (B, 2)))
    action[0] = 1.0, -1.0
    success, left = np.float32([0, 1, 1, 0, 1]), np.float32([3, 1, np.inf, np.inf, np.inf])
    demo = np.float32([1, 1, 0, 0, 0])
    return robofume.Rows(x(B, 3), action, 4 * x(B, 3), np.array([0, 1, 0, 1, 1]), success, left, demo)


def network(params, x):
    """Dense, layer normalisation, ReLU; then Dense."""
    layers, x = params["params"]["Layers_0"], np.float64(x)
    x = x @ np.float64(layers["Dense_0"]["kernel"]) + np.float64(layers["Dense_0"]["bias"])
    p = layers["LayerNorm_0"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = np.maximum(x * np.float64(p["scale"]) + np.float64(p["bias"]), 0)
    last = params["params"]["Dense_0"]
    return x @ np.float64(last["kernel"]) + np.float64(last["bias"])


def q_of(critics, obs, action):
    x = np.concatenate([obs, action], -1)
    return np.stack([network(jax.tree.map(lambda x, i=i: x[i], critics), x)[..., 0] for i in range(2)])


def distribution(params, obs):
    mean, log_std = np.split(network(params, obs), 2, -1)
    return mean, np.clip(log_std, np.log(1e-5), np.log(10.0))


def test_success_is_the_classifiers_but_for_demonstrations(agent, rows):
    code = np.eye(2)[np.asarray(rows.task)]
    logits = network(agent.classifier, np.c_[rows.next_obs, code])[:, 0]
    assert (np.float64(logits > 0)[2:] != np.asarray(rows.success)[2:]).any()
    assert (np.float64(logits > 0)[:2] != np.asarray(rows.success)[:2]).any()
    for learned in (0.0, 1.0):
        batch = batch_of(rows, agent, tiny(learned_reward=learned))
        judged = np.float64(logits > 0) if learned else np.asarray(rows.success)
        success = np.where(np.asarray(rows.demo) > 0, rows.success, judged)
        close(batch.reward, success - 1)
        close(batch.terminal, success)
        close(batch.obs, np.c_[rows.obs, code])
        close(batch.next_obs, np.c_[rows.next_obs, code])
        close(batch.return_to_go[:2], [-1 - 0.9, 0.0])  # the third step succeeds, which costs nothing
        close(batch.return_to_go[2:], -10.0 * (1 - success[2:]))


def test_the_classifier_has_smoothed_labels(agent):
    r = np.random.default_rng(1)
    ends, others = r.normal(size=(3, 5)).astype(np.float32), r.normal(size=(4, 5)).astype(np.float32)
    p = expit(network(agent.classifier, np.concatenate([ends, others]))[:, 0])
    label = np.r_[[0.9] * 3, [0.1] * 4]
    args = tiny(label_smoothing=0.1)
    loss, info = jax.jit(lambda p: robofume.classifier_loss(p, agent.nets.classifier, ends, others, args))(
        agent.classifier
    )
    close(loss, -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())
    close(info["classifier_accuracy"], ((p > 0.5) == (label > 0.5)).mean())


def test_critics_are_cal_qls(agent, rows):
    batch, key = batch_of(rows, agent, tiny(learned_reward=0.0)), jax.random.key(3)
    batch = batch._replace(return_to_go=jnp.array([-1.0, 40.0, 0.3, -40.0, 1.0]))
    bellman_key, gap_key = jax.random.split(key)
    action, _ = tanh_normal(
        *distribution(agent.actor, batch.next_obs), np.asarray(jax.random.normal(bellman_key, (B, 2)))
    )
    y = batch.reward + 0.9 * (1 - batch.terminal) * q_of(agent.target_critic, batch.next_obs, action).min(0)
    q = q_of(agent.critic, batch.obs, batch.action)
    keys = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (N, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (N, B, 2))) for k in keys[1:]]
    now = tanh_normal(*distribution(agent.actor, batch.obs), noise[0])
    following = tanh_normal(*distribution(agent.actor, batch.next_obs), noise[1])
    gaps = []
    for b in range(B):
        terms = []
        for kind, (actions, log_density) in enumerate([(uniform, np.full((N, B), -2 * np.log(2))), now, following]):
            for k in range(N):
                value = q_of(agent.critic, np.asarray(batch.obs[b]), actions[k, b])
                bounded = np.maximum(value, float(batch.return_to_go[b])) if kind else value
                terms.append(bounded - log_density[k, b])
        gaps.append(logsumexp(terms, axis=0) - q[:, b])
    (loss, info), grads = critic_loss(agent.critic, agent, batch, key, tiny())
    close(info["gap"], np.mean(gaps))
    close(loss, ((q - np.asarray(y)) ** 2).mean() + 2.0 * np.mean(gaps))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


def test_the_policy_is_sacs_and_clones_demonstrations_alone(agent, rows):
    batch, key = batch_of(rows, agent, tiny()), jax.random.key(4)
    mean, log_std = distribution(agent.actor, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (B, 2))))
    q = q_of(agent.critic, batch.obs, action).min(0)
    clipped = np.clip(np.float64(batch.action), -0.999, 0.999)
    of_data = (norm.logpdf(np.arctanh(clipped), mean, np.exp(log_std)) - np.log(1 - clipped**2)).sum(-1)
    args = tiny(rl_weight=0.7, cloning_weight=0.3)
    loss, info = actor_loss(agent.actor, agent, batch, rows.demo, key, args)
    close(loss, 0.7 * (np.exp(-0.4) * log_prob - q).mean() - 0.3 * of_data[:2].mean())
    close(info["entropy"], -log_prob.mean())
    assert actor_loss(agent.actor, agent, batch, 0 * rows.demo, key, args)[1]["cloning_loss"] == 0  # there is none
    assert jax.grad(robofume.alpha_loss)(0.0, -5.0, 3) < 0 < jax.grad(robofume.alpha_loss)(0.0, -1.0, 3)


def test_an_update_takes_all_losses_of_the_old_parameters(agent, rows):
    key, args = jax.random.key(5), tiny(tau=0.5)
    new, metrics = jax.jit(robofume.update)(agent, rows, key, args)
    batch, keys = batch_of(rows, agent, args), jax.random.split(key)
    close(metrics["critic_loss"], critic_loss(agent.critic, agent, batch, keys[0], args)[0][0])
    close(metrics["actor_loss"], actor_loss(agent.actor, agent, batch, rows.demo, keys[1], args)[0])
    jax.tree.map(lambda t, c, o: close(t, 0.5 * (c + o)), new.target_critic, new.critic, agent.target_critic)
    jax.tree.map(np.testing.assert_array_equal, new.classifier, agent.classifier)


def test_cloning_alone_leaves_the_temperature_where_it_is(agent, rows):
    """However large: nothing would hold it, and 0 times infinity is no number."""
    update, key = jax.jit(robofume.update), jax.random.key(5)
    for log_alpha in (-0.4, 100.0):
        old = agent.replace(log_alpha=jnp.float32(log_alpha))
        new, metrics = update(old, rows, key, tiny(rl_weight=0.0))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.actor, new.actor_opt, metrics)))
        assert new.log_alpha == old.log_alpha
        jax.tree.map(np.testing.assert_array_equal, new.alpha_opt, old.alpha_opt)
        close(metrics["actor_loss"], metrics["cloning_loss"])
    new, _ = update(agent, rows, key, tiny(actor_lr=0.01))
    close(abs(new.log_alpha + 0.4), 0.01)


def log(rewards, last, seed=0):
    n, r = len(rewards), np.random.default_rng(seed)
    arrays = {"obs": r.normal(size=(n, 3)), "action": r.uniform(-1, 1, (n, 2)), "next_obs": r.normal(size=(n, 3))}
    return Dataset(
        Task("log", "", SPEC), **{k: np.float32(x) for k, x in arrays.items()}, reward=np.float32(rewards),
        terminal=np.zeros(n, bool), last=np.array(last, bool),
    )  # fmt: skip


DATA = log([0, 0, 1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1, 0, 1])
"""Three episodes: a success at the third of four rows; none; at once, and again."""
WAY_BACK = log([0, 1], [0, 1], seed=1)


def test_demonstrations_end_where_they_first_succeed():
    found = robofume.demonstrations(DATA, 1, tiny())
    np.testing.assert_array_equal(found.obs, DATA.obs[[0, 1, 2, 6]])
    assert found.steps_left.tolist() == [3, 2, 1, 1] and found.success.tolist() == [0, 0, 1, 1]
    assert found.task.tolist() == [1] * 4 and found.demo.tolist() == [1] * 4
    with pytest.raises(InputError, match=r"'log' has no reward of 2 or more \(--success-threshold\)\.$"):
        robofume.demonstrations(DATA, 0, tiny(success_threshold=2.0))


def cut(data: Dataset, *rows: int) -> Dataset:
    """Without the next observations of these rows, in whose place their own stand."""
    known = ~np.isin(np.arange(len(data.obs)), rows)
    return dataclasses.replace(data, successor=known, next_obs=np.where(known[:, None], data.next_obs, data.obs))


def test_rows_whose_next_state_is_not_known_tell_nothing_of_it():
    """Two, of which one succeeds: neither a step nor an end; their episode's other step stays."""
    data = log([0, 0, 1, 0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1, 0, 1, 1])
    found = robofume.demonstrations(cut(data, 3, 5), 0, tiny())
    np.testing.assert_array_equal(found.obs, data.obs[[0, 1, 2, 4, 6, 7, 8]])
    assert found.steps_left.tolist() == [3, 2, 1, 2, 2, 1, 1]
    there = robofume.sources(cut(data, 3, 5), None, cut(data, *range(8)), tiny())
    close(there.ends[0][there.ends[1] == 0], data.next_obs[[2, 7, 8]])
    np.testing.assert_array_equal(there.prior.obs, data.obs[8:])
    assert there.prior.success.shape == (1, 2)
    with pytest.raises(InputError, match=r"'log' does not say which states its successes lead to"):
        robofume.demonstrations(cut(data, 2, 5, 7, 8), 0, tiny())
    with pytest.raises(InputError, match=r"'log' does not say which states it leads to"):
        robofume.sources(data, None, cut(data, *range(9)), tiny())


@pytest.mark.parametrize("back", (None, WAY_BACK))
def test_ends_of_one_task_are_none_of_the_other(back):
    found = robofume.sources(DATA, back, DATA, tiny(start_radius=1.5))
    first, done = DATA.obs[[0, 4, 6]], DATA.next_obs[[2, 6]]
    more = WAY_BACK.next_obs[1:] if back else np.zeros((0, 3))
    close(found.ends[0], np.concatenate([done, first, more]))
    assert found.ends[1].tolist() == [0] * 2 + [1] * (3 + len(more))
    passed = [(DATA.next_obs[:2], 0), (WAY_BACK.next_obs[:1] if back else np.zeros((0, 3)), 1)]
    others = [*passed, (done, 1), (np.concatenate([first, more]), 0)]
    close(found.others[0], np.concatenate([x for x, _ in others]))
    assert found.others[1].tolist() == [task for x, task in others for _ in x]
    close(found.home, first.mean(0))
    near = np.linalg.norm(DATA.next_obs - first.mean(0), axis=1) <= 1.5
    assert 0 < near.sum() < 8
    close(found.prior.success, np.c_[DATA.reward >= 1, near])
    assert len(found.demos.task) == (6 if back else 4)


def test_batches_are_of_demonstrations_prior_data_and_the_replay_buffer():
    args = tiny(batch_size=16, demo_share=0.25, online_share=0.5)
    data = robofume.sources(DATA, WAY_BACK, DATA, args)
    replay = init_replay(1, 20, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.jit(
        lambda replay: jax.tree.map(lambda x: x[0], replay).insert(jnp.full(10, 7.0)).insert(jnp.full(10, 9.0))
    )(replay)
    rows, newest, terminal = sample(jax.random.key(0), data, replay, args)
    assert rows.demo.tolist() == [1] * 2 + [0] * 14 and rows.obs.shape == (16, 3)
    assert set(rows.obs[8:, 0].tolist()) == {7.0, 9.0} and not {7.0, 9.0} & set(rows.obs[:8, 0].tolist())
    assert set(rows.task[8:].tolist()) == {0, 1} and np.isinf(rows.steps_left[2:]).all()
    of_replay = np.where(np.asarray(rows.task[8:]) == 0, 1.0, 0.0)  # rewards are 7 and 9, home is far away
    np.testing.assert_array_equal(rows.success[8:], of_replay)
    assert newest.obs[0] == 9.0 and newest.success.tolist() == [1, 0] and terminal == 9.0
    rows = jax.jit(robofume.draw, static_argnums=2)(jax.random.key(0), data._replace(prior=None), 8, args)
    assert rows.demo.tolist() == [1] * 8


def test_the_classifier_learns_of_prior_states_that_they_are_no_ends_of_either_task():
    args = tiny(demo_share=0.25)
    data = robofume.sources(DATA, WAY_BACK, log([0] * 3, [0, 0, 1], seed=2), args)
    no_ends = jax.jit(robofume.no_ends, static_argnums=2)
    states, task = no_ends(jax.random.key(0), data, 40, args)
    of_demos, of_prior = ({tuple(x) for x in np.asarray(known)} for known in (data.others[0], data.prior.next_obs))
    assert [tuple(x) in of_demos for x in np.asarray(states)] == [True] * 10 + [False] * 30
    assert [tuple(x) in of_prior for x in np.asarray(states)] == [False] * 10 + [True] * 30
    known = {(*x, t) for x, t in zip(np.asarray(data.others[0]), data.others[1].tolist(), strict=True)}
    assert all((*x, t) in known for x, t in zip(np.asarray(states[:10]), task[:10].tolist(), strict=True))
    assert set(task[10:].tolist()) == {0, 1}
    states, _ = no_ends(jax.random.key(0), data._replace(prior=None), 40, args)
    assert {tuple(x) for x in np.asarray(states)} <= of_demos and len(states) == 40


def test_fitting_moves_the_classifier_alone_towards_its_labels(agent):
    args = tiny(classifier_lr=3e-2)
    data = robofume.sources(DATA, WAY_BACK, DATA, args)
    new, first = jax.jit(robofume.fit)(agent, jax.random.split(jax.random.key(0), 30), args, data)
    jax.tree.map(np.testing.assert_array_equal, new.replace(classifier=0, classifier_opt=0),
                 agent.replace(classifier=0, classifier_opt=0))  # fmt: skip
    logits = network(new.classifier, np.c_[data.ends[0], np.eye(2)[np.asarray(data.ends[1])]])
    before = network(agent.classifier, np.c_[data.ends[0], np.eye(2)[np.asarray(data.ends[1])]])
    assert logits.mean() > before.mean() and np.isfinite(first["classifier_loss"])


def after(agent, steps, args):
    """The agent after steps that succeed or not: [(task, attempt, streak)], and the last metrics."""
    found = []
    for done in steps:
        success = np.float32([done, done])
        newest = robofume.Rows(*(np.zeros(n, np.float32) for n in (3, 2, 3)), 0, success, np.inf, 0)
        agent, metrics = practise(agent, newest, np.float32(0), args)
        found.append((int(agent.task), int(agent.attempt), int(agent.streak)))
    return found, metrics


def test_the_task_changes_after_two_successes_in_a_row_or_in_time(agent):
    args = tiny(learned_reward=0.0)
    found, metrics = after(agent, [0, 1, 0, 0], args)
    assert found == [(0, 1, 0), (0, 2, 1), (0, 3, 0), (1, 0, 0)] and metrics["attempts"] == 1
    found, metrics = after(agent, [1, 1, 1], args)
    assert found == [(0, 1, 1), (1, 0, 0), (1, 1, 1)] and metrics["success"] == 1 and metrics["attempts"] == 0


def test_a_reset_begins_the_task_anew_and_is_counted(agent):
    args = tiny(learned_reward=0.0)
    back = agent.replace(task=jnp.int32(1), attempt=jnp.int32(1), since=jnp.int32(18))
    found, metrics = after(back, [0, 0], args)
    assert found == [(1, 2, 0), (0, 0, 0)] and metrics["resets"] == 1
    assert after(back, [0], args)[1]["resets"] == 0


@pytest.mark.parametrize("ends, resets", [((), [19, 39]), ((5,), [25, 45]), ((5, 24), [44]), ((19,), [39])])
def test_resets_are_counted_from_when_the_environment_last_began_anew(agent, ends, resets):
    """One that ends by itself, after step 5, has twenty steps again; both begin the task anew."""
    newest = robofume.Rows(*(np.zeros(n, np.float32) for n in (3, 2, 3)), 0, np.zeros(2, np.float32), np.inf, 0)
    args, counts = tiny(learned_reward=0.0, attempt_steps=1000), [0]
    agent = agent.replace(task=jnp.int32(1))
    for t in range(50):
        agent, metrics = practise(agent, newest, np.float32(t in ends), args)
        counts.append(int(metrics["resets"]))
        assert int(agent.task) == (0 if counts[-1] or t >= min(ends, default=50) else 1)
    assert np.flatnonzero(np.diff(counts)).tolist() == resets and counts[-1] == len(resets)


@pytest.mark.parametrize("task", [0, 1])
def test_an_end_of_the_environments_own_ends_the_attempt_and_begins_the_task_anew(agent, task):
    """At the goal it says yes once: the next state is the start's. It may end on the way back, too."""
    args, began = tiny(learned_reward=0.0), agent.replace(task=jnp.int32(task), attempt=jnp.int32(1))
    for success in (1.0, 0.0):  # at the goal, and where nothing is reached
        newest = robofume.Rows(*(np.zeros(n, np.float32) for n in (3, 2, 3)), 0, np.float32([success] * 2), np.inf, 0)
        new, metrics = practise(began, newest, np.float32(1), args)
        assert (int(new.task), int(new.attempt), int(new.streak), int(new.since)) == (0, 0, 0, 0)
        assert metrics["attempts"] == 1 and metrics["resets"] == 0


def test_with_a_learned_reward_the_classifier_says_when_it_is_done(agent):
    says = np.asarray(jax.jit(robofume.seems_done)(agent, np.zeros((2, 3), np.float32), np.arange(2)))
    task = int(says.argmax()) if says.any() else 0
    own = agent.replace(task=jnp.int32(task))
    found, metrics = after(own, [1 - says[task]] * 2, tiny())
    assert found[1] == ((1 - task, 0, 0) if says[task] else (task, 2, 0))
    assert metrics["predicted"] == says[task] and metrics["success"] == 1 - says[task]
    close(metrics["false_positive"], says[task])


def test_a_reset_of_the_networks_leaves_all_else(agent):
    agent = agent.replace(log_alpha=jnp.float32(-0.7), alpha_opt=jax.tree.map(lambda x: x + 2, agent.alpha_opt))
    agent = agent.replace(task=jnp.int32(1), attempt=jnp.int32(3), streak=jnp.int32(1), since=jnp.int32(5))
    begin, key = jax.jit(partial(robofume.begin, spec=SPEC)), jax.random.key(8)
    old, new = (begin(agent, key, dataclasses.replace(tiny(), new_networks=x)) for x in (0.0, 1.0))
    fresh = jax.jit(robofume.init, static_argnums=2)(key, tiny(), SPEC)
    for name in ("actor", "critic", "target_critic", "actor_opt", "critic_opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(old, name), getattr(agent, name))
        jax.tree.map(close, getattr(new, name), getattr(fresh, name))
    for name in ("classifier", "classifier_opt", "log_alpha", "alpha_opt", "task", "attempt", "streak", "since"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(agent, name))


def test_the_policy_that_is_evaluated_is_the_forward_one(agent):
    obs = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    expected = np.tanh(distribution(agent.actor, np.c_[obs, np.tile([1.0, 0.0], (4, 1))])[0])
    act = jax.jit(robofume.act)
    for task in (0, 1):
        close(act(agent.replace(task=jnp.int32(task)), obs, None, tiny()), expected)
    noise = np.asarray(jax.random.normal(jax.random.key(1), (4, 2)))
    back = tanh_normal(*distribution(agent.actor, np.c_[obs, np.tile([0.0, 1.0], (4, 1))]), noise)[0]
    close(jax.jit(robofume.explore)(agent.replace(task=jnp.int32(1)), obs, jax.random.key(1), tiny()), back)


def test_practice_is_reset_seldom_and_evaluation_ends_as_ever():
    task = env_task("PointRoundTrip-v0")
    practice = robofume.practice_task(task, tiny(practice_env="PointNoEnd-v0", reset_every=700))
    assert practice.env_spec.id == "PointNoEnd-v0" and practice.env_spec.max_episode_steps == 700
    assert task.env_spec.max_episode_steps == 100
    assert robofume.practice_task(task, tiny(reset_every=7)).env_spec.max_episode_steps == 7


def test_names_of_arrays_are_told_of_the_datasets_that_have_them(pendulum, tmp_path):
    with np.load(pendulum) as file:
        usual = {name: file[name] for name in file.files}
    np.savez(
        tmp_path / "pendulum-named.npz",
        **{("payment" if k == "rewards" else k): 2 * v if k == "rewards" else v for k, v in usual.items()},
    )
    named = str(tmp_path / "pendulum-named.npz")
    told = tiny(dataset=named, back_dataset=pendulum, fields=("reward=payment",))
    data, back, prior = robofume.load_datasets(told)
    np.testing.assert_array_equal(data.reward, 2 * usual["rewards"])
    np.testing.assert_array_equal(back.reward, usual["rewards"])
    assert prior is None
    data, back, prior = robofume.load_datasets(
        dataclasses.replace(told, dataset=pendulum, back_dataset="", prior_dataset=named)
    )
    np.testing.assert_array_equal(prior.reward, 2 * data.reward)
    assert back is None


def test_rewards_of_prior_data_are_asked_for_where_they_count(pendulum, tmp_path):
    with np.load(pendulum) as file:
        np.savez(tmp_path / "pendulum-mute.npz", **{name: file[name] for name in file.files if name != "rewards"})
    mute = str(tmp_path / "pendulum-mute.npz")
    data, _, prior = robofume.load_datasets(tiny(dataset=pendulum, prior_dataset=mute))
    assert len(prior.obs) == len(data.obs)
    counts = [{"prior_dataset": mute, "learned_reward": x} for x in (0.0, (0.0, 1.0))]
    for changes in (*counts, {"back_dataset": mute}):
        with pytest.raises(InputError, match="learns from rewards; '.*pendulum-mute.npz' has none"):
            robofume.load_datasets(tiny(dataset=pendulum, **changes))


def test_a_run_from_another_one_takes_its_classifier_as_it_is(pendulum, tmp_path):
    first = train("robofume", pendulum, tmp_path / "first")
    then = train("robofume", pendulum, tmp_path / "then", from_run=str(tmp_path / "first"))
    assert (tmp_path / "first" / "before.csv").exists() and not (tmp_path / "then" / "before.csv").exists()
    last = list(csv.DictReader((tmp_path / "first" / "metrics.csv").open()))[-1]
    assert (last["update"], last["env_step"]) == ("10", "8")  # 4 offline, and after 2 steps one after each
    kept = [name for name in first if name.startswith(("[0].classifier[", "[0].classifier_opt["))]
    assert any("kernel" in name for name in kept)
    for name in kept:
        np.testing.assert_array_equal(then[name], first[name], err_msg=name)


def test_other_data_and_endless_costs_are_refused(pendulum, tmp_path):
    with np.load(pendulum) as file:
        wider = {name: file[name] for name in file.files} | {"observations": np.zeros((300, 4))}
    wider |= {"next_observations": np.zeros((300, 4))}
    np.savez(tmp_path / "wider.npz", **wider)
    with pytest.raises(InputError, match="wider.npz' has other observations or actions than '.*pendulum.npz'"):
        robofume.load_datasets(tiny(dataset=pendulum, back_dataset=str(tmp_path / "wider.npz")))
    with pytest.raises(InputError, match="--discount must be below 1, not 1.0: what a step costs for ever"):
        robofume.main(tiny(discount=1.0))
    for smoothing in (0.5, (0.1, 0.7)):
        with pytest.raises(InputError, match="--label-smoothing must be below 0.5, not .*: all labels are alike then"):
            robofume.main(tiny(label_smoothing=smoothing))
