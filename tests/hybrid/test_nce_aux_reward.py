"""The losses of nce_aux_reward against plain numpy; pairs of one episode, what is rewarded, what PPO may move."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import close, mlp
from scipy.special import log_softmax

from shared.data import Dataset
from shared.errors import InputError
from shared.jax_envs import JaxEnv
from shared.sequences import Sequences
from shared.task import Spec, Task, env_task
from shared.transitions import Batch

SMALL = {
    "env": "", "eval_env": "PointMazesUnseen-v0", "before_updates": 8, "before_batch_size": 8, "n_envs": 2,
    "steps_per_iteration": 4, "ppo_epochs": 1, "batch_size": 4, "aux_steps": 2,
}  # fmt: skip

nce = load("nce_aux_reward")
B, A, K = 6, 3, 2
SPEC = Spec((3,), A, True)
ARGS = nce.Args(
    hidden_dims=(8, 8), latent_dim=4, before_batch_size=B, nce_steps=3, progress_steps=8, aux_weight=0.5, aux_steps=K,
    n_envs=2, steps_per_iteration=8, ppo_epochs=1, batch_size=4, gae_lambda=0.8, discount=0.9, entropy_cost=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def agent():
    """Biases are not zero, and the first policy is not near uniform."""
    agent, r = jax.jit(nce.init, static_argnums=2)(jax.random.key(0), ARGS, SPEC), np.random.default_rng(0)
    shake = lambda tree: jax.tree.map(lambda x: x + 0.3 * r.normal(size=x.shape).astype(np.float32), tree)  # noqa: E731
    return agent.replace(**{name: shake(getattr(agent, name)) for name in ("models", "torso", "actor", "value")})


@pytest.fixture
def states():
    r = np.random.default_rng(1)
    return [r.normal(size=(B, 3)).astype(np.float32) for _ in range(2)]


@pytest.mark.long
def test_nce_tells_what_follows_from_what_follows_others(agent, states):
    batch = nce.Pairs(*states, np.ones(B, np.int32))
    query = mlp(agent.models["query"], mlp(agent.models["torso"], states[0]))
    later = mlp(agent.models["successor"], states[1])
    query, later = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, later))
    logits = query @ later.T / 0.1
    loss, info = nce.nce_loss(agent.models, agent.nets, batch, ARGS)
    close(loss, -np.diag(log_softmax(logits, axis=1)).mean())
    close(info["nce_accuracy"], (logits.argmax(1) == np.arange(B)).mean())


@pytest.mark.long
def test_progress_is_the_signed_logarithm_of_the_steps_between(agent, states):
    steps = np.int32([3, -3, 0, 8, -1, 1])
    f = mlp(agent.models["progress"], *states)[:, 0]
    target = np.float64([np.log(4), -np.log(4), 0, np.log(9), -np.log(2), np.log(2)])
    close(nce.progress_loss(agent.models, agent.nets, nce.Pairs(*states, steps))[0], ((f - target) ** 2).mean())


def demos(*unknown: int) -> Sequences:
    """Two episodes, of 12 and of 5 rows, whose last one is terminal; observations are (episode, step, row).

    What the rows `unknown` lead to is not known: their own state stands there.
    """
    row, known = np.arange(17), ~np.isin(np.arange(17), unknown)
    obs = np.stack([row >= 12, np.where(row < 12, row, row - 12), row], 1).astype(np.float32)
    next_obs, last = np.where(known[:, None], obs + np.float32([0, 1, 1]), obs), np.isin(row, (11, 16))
    zeros = np.zeros(17, np.int32), np.zeros(17, np.float32)
    return nce.watched(Dataset(Task("log", "", SPEC), obs, *zeros, next_obs, last, last, known))


def test_pairs_are_of_one_episode_and_as_far_apart_as_they_say():
    args = dataclasses.replace(ARGS, before_batch_size=2000)
    near, far = (
        jax.jit(f, static_argnums=())(jax.random.key(0), demos(), args) for f in (nce.nce_pairs, nce.progress_pairs)
    )
    for found in (near, far):
        first, second = np.asarray(found.first), np.asarray(found.second)
        assert (first[:, 0] == second[:, 0]).all()
        np.testing.assert_array_equal(second[:, 1] - first[:, 1], found.steps)
        assert np.abs(found.steps).min() == 1  # no state is its own successor
        later = np.where((np.asarray(found.steps) > 0)[:, None], second, first)
        assert set(later[:, 2]) == set(range(1, 18)) and {(0, 12), (1, 5)} <= {tuple(x) for x in later[:, :2]}
    inside = np.asarray(near.first)[:, 2] < 8  # nothing is cut there
    counts = np.bincount(np.asarray(near.steps)[inside], minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 0.8 * counts[1:].mean()
    steps = np.asarray(far.steps)
    assert steps.max() == 8 and steps.min() == -8 and abs((steps > 0).mean() - (steps < 0).mean()) < 0.1
    assert (np.abs(steps) == 1).mean() > 2 * (np.abs(steps) == 3).mean()  # in the logarithm uniform: ln 2 to ln (4 / 3)


@pytest.mark.parametrize("unknown", [(16,), (11, 16)])
def test_the_last_known_state_stands_for_what_is_not_known(unknown):
    args = dataclasses.replace(ARGS, before_batch_size=2000)
    found = jax.jit(nce.nce_pairs)(jax.random.key(0), demos(*unknown), args)
    first, second, steps = (np.asarray(x) for x in found)
    np.testing.assert_array_equal(second - first, np.stack([0 * steps, steps, steps], 1))
    assert steps.min() == 1 and set(first[:, 2]) == set(range(17)) - set(unknown)
    assert set(second[:, 2]) == {x + 1 for x in range(17)} - {x + 1 for x in unknown}


def test_demonstrations_that_lead_nowhere_are_refused():
    with pytest.raises(InputError, match="'log' does not say which states it leads to"):
        demos(*range(17))


@pytest.mark.long
def test_demonstrations_need_no_rewards(tmp_path):
    """Eight episodes of 20 rows, of the maze's numbers and actions."""
    r, row, spec = np.random.default_rng(0), np.arange(160), env_task("PointMazes-v0").spec
    frames = r.normal(size=(161, *spec.obs_shape)).astype(np.float32)
    arrays = {
        "observations": frames[:-1],
        "actions": r.integers(0, spec.action_dim, 160),
        "next_observations": frames[1:],
    }
    ends = {"terminals": row % 40 == 19, "timeouts": row % 40 == 39}
    np.savez(tmp_path / "mazes.npz", **arrays, **ends)
    more = {"env": "PointMazes-v0", "eval_env": ""}
    agent = train("nce_aux_reward", str(tmp_path / "mazes.npz"), tmp_path / "run", **more)
    assert all(np.isfinite(x).all() for x in agent.values())


def test_ppo_has_the_clipped_surrogate_the_entropy_and_the_values_error(agent, states):
    r = np.random.default_rng(2)
    action, adv, target = r.integers(0, A, B), r.normal(size=B).astype(np.float32), r.normal(size=B).astype(np.float32)
    z = np.maximum(mlp(agent.torso, states[0]), 0)
    log_probs, v = log_softmax(mlp(agent.actor, z), axis=1), mlp(agent.value, z)[:, 0]
    log_prob = log_probs[np.arange(B), action]
    old = (log_prob + r.normal(scale=0.3, size=B)).astype(np.float32)
    ratio, a = np.exp(log_prob - old), (adv - adv.mean()) / (adv.std() + 1e-8)
    assert (np.abs(ratio - 1) > 0.2).any()
    surrogate = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    entropy = -(np.exp(log_probs) * log_probs).sum(1).mean()
    batch, params = Batch(obs=states[0], action=action.astype(np.int32)), (agent.torso, agent.actor, agent.value)
    loss = jax.jit(jax.value_and_grad(nce.ppo_loss, has_aux=True), static_argnums=1)
    (found, _), grads = loss(params, agent.nets, batch, old, adv, target, ARGS)
    close(found, surrogate - 0.3 * entropy + 0.5 * ((v - target) ** 2).mean())
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[0]))
    frozen = dataclasses.replace(ARGS, frozen_torso=True)
    (same, _), grads = loss(params, agent.nets, batch, old, adv, target, frozen)
    close(same, found)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads[0]))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[1:]))


def test_models_share_nothing_and_ppo_leaves_them_alone(agent, states):
    near, far = nce.Pairs(*states, np.ones(B, np.int32)), nce.Pairs(*states, np.arange(B, dtype=np.int32))
    update = jax.jit(nce.update_models)
    one, info = update(agent, near, far, ARGS)
    other, _ = update(agent, near, far._replace(steps=-far.steps), ARGS)
    for name in ("torso", "query", "successor"):
        jax.tree.map(np.testing.assert_array_equal, one.models[name], other.models[name])
    kernel = lambda agent: agent.models["progress"]["params"]["Dense_0"]["kernel"]  # noqa: E731
    assert np.abs(kernel(one) - kernel(other)).max() > 0
    close(info["nce_loss"] + info["progress_loss"], info["models_loss"])
    jax.tree.map(np.testing.assert_array_equal, one.torso, agent.torso)
    jax.tree.map(np.testing.assert_array_equal, nce.take_torso(one, ARGS).torso, one.models["torso"])
    anew = dataclasses.replace(ARGS, pretrained_torso=False)
    jax.tree.map(np.testing.assert_array_equal, nce.take_torso(one, anew).torso, agent.torso)


def counting(limit: int) -> JaxEnv:
    """Observations count the steps since reset, beside a number of the episode; action 2 pays; a time limit ends."""
    obs = lambda t: jnp.stack([t, 2.0 * t, 1.0 - t]).astype(jnp.float32)  # noqa: E731
    step = lambda t, action, keys: (t + 1, obs(t + 1), jnp.float32(action == 2), False, t + 1 >= limit)  # noqa: E731
    return JaxEnv(lambda keys, params=None: (jnp.int32(0), obs(jnp.int32(0))), step, None)


@pytest.mark.long
def test_progress_over_k_steps_is_rewarded_within_the_episode(agent):
    loop = nce.begin(
        jax.random.key(1),
        ARGS,
        counting(3),
    )
    loop, steps = jax.jit(partial(nce.collect, env=counting(3), args=ARGS))(agent, loop, jax.random.key(2))
    assert steps.batch.obs[:, 0, 0].tolist() == [0, 1, 2, 0] and steps.ended[:, 0].tolist() == [0, 0, 1, 0]
    before, after = np.float32([0, 0, 1, 0]), np.float32([1, 2, 3, 1])  # k = 2 steps back, or the first state
    obs = lambda t: np.stack([t, 2 * t, 1 - t], 1)  # noqa: E731
    f = mlp(agent.models["progress"], obs(before), obs(after))[:, 0]
    close(steps.progress[:, 0], f)
    close(steps.batch.reward, (np.asarray(steps.batch.action) == 2) + 0.5 * np.asarray(steps.progress))
    z = np.maximum(mlp(agent.torso, steps.batch.obs), 0)
    log_probs = log_softmax(mlp(agent.actor, z), axis=-1)
    close(steps.log_prob, np.take_along_axis(log_probs, np.asarray(steps.batch.action)[..., None], -1)[..., 0])
    assert loop.history[:, 0, 0].tolist() == [0, 1]

    new, info = jax.jit(nce.update)(agent, steps, jax.random.key(3), ARGS)
    jax.tree.map(np.testing.assert_array_equal, new.models, agent.models)
    assert np.abs(new.torso["params"]["Dense_0"]["kernel"] - agent.torso["params"]["Dense_0"]["kernel"]).max() > 0
    assert {"ppo_loss", "entropy", "v", "value_loss"} <= info.keys()


def test_by_default_progress_of_a_whole_episode_pays_less_than_the_goal_that_ends_it():
    args, steps = nce.Args(), env_task("PointMazes-v0").env_spec.max_episode_steps
    most = args.aux_weight * np.log1p(args.aux_steps) * (args.discount ** np.arange(steps)).sum()
    assert most < 1.0


def test_advantages_end_with_the_episode_and_bootstrap_at_time_limits():
    v, next_v = np.float32([1, 2, 3, 4]), np.float32([2, 9, 4, 5])
    batch = Batch(reward=np.float32([1, 1, 1, 1]), terminal=np.float32([0, 0, 1, 0]))
    found = nce.advantages(v, next_v, batch, np.float32([0, 1, 1, 0]), ARGS)
    delta = [1 + 0.9 * 2 - 1, 1 + 0.9 * 9 - 2, 1 - 3, 1 + 0.9 * 5 - 4]
    close(found, [delta[0] + 0.72 * delta[1], *delta[1:]])


@pytest.mark.long
def test_a_batch_is_no_more_than_an_iteration(data_for, tmp_path):
    args = dataclasses.replace(ARGS, dataset=data_for("nce_aux_reward"), batch_size=9, out=str(tmp_path / "run"))
    with pytest.raises(InputError, match="--batch-size 9 is more than an iteration's 8"):
        nce.main(args)


def test_a_single_pair_of_which_nothing_is_told_apart_is_refused(data_for, tmp_path):
    data = data_for("nce_aux_reward")
    args = dataclasses.replace(ARGS, dataset=data, out=str(tmp_path / "run"), before_batch_size=1)
    with pytest.raises(InputError, match="^--before-batch-size must be at least 2, "):
        nce.main(args)
