"""The chunks, values and policy of deas against the same equations in plain numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close, differences, gelu, mlp
from scipy.stats import norm

from shared.arguments import preset_for
from shared.data import Dataset
from shared.errors import InputError
from shared.task import Spec, Task

SMALL = {"chunk_length": 3, "n_candidates": 3, "flow_steps": 2, "value_classes": 5}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}
LOW, HIGH = -2.0, 3.0
MIDDLES = LOW + (HIGH - LOW) / 5 * (np.arange(5) + 0.5)


@pytest.fixture(scope="module")
def deas():
    return load("deas")


@pytest.fixture(scope="module", params=[True, False], ids=["classes", "numbers"])
def form(request, deas):
    """(arguments, agent) of both forms, with values between LOW and HIGH."""
    floats = {"expectile": 0.8, "discount": 0.95, "chunk_discount": 0.5}
    args = deas.Args(**SIZES, classification=request.param, **{k: np.float32(v) for k, v in floats.items()})
    return args, jax.device_get(agent_of(deas, args).replace(low=np.float32(LOW), high=np.float32(HIGH)))


@pytest.fixture
def chunks(batch):
    """Chunks of three actions, two of which the task's end cuts."""
    r = np.random.default_rng(1)
    action, reward = r.uniform(-0.9, 0.9, (B, 6)).astype(np.float32), r.normal(size=(B, 3)).astype(np.float32)
    return batch._replace(action=action, reward=reward)


def outputs(params, *inputs):
    return mlp(params, *inputs, activation=gelu, layer_norm=True)


def critics(params, *inputs):
    """[E, ..., bins]"""
    return np.stack([outputs(jax.tree.map(lambda x, i=i: x[i], params), *inputs) for i in range(2)])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(args, output):
    return softmax(output) @ MIDDLES if args.classification else output[..., 0]


def cross_entropy(label, output):
    return -(label * np.log(softmax(output))).sum(-1)


# -------------------------------------------------------------------------------------------- chunks

"""
rows      0 1 2 3 4 5 | 6 7 8 9 | 10 11
row 3 is terminal, the log goes on; row 9 is cut by a time limit; row 11 is terminal
"""
TERMINAL = np.bool_([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1])
LAST = np.bool_([0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1])
REWARD = np.float32([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])


def log(**changes) -> Dataset:
    obs, action = np.arange(12, dtype=np.float32)[:, None], np.linspace(-0.55, 0.55, 12, dtype=np.float32)[:, None]
    task = Task("log", "", Spec((1,), 1, False, (-1.0,), (1.0,)))
    return dataclasses.replace(Dataset(task, obs, action, REWARD, obs + 0.5, TERMINAL, LAST), **changes)


def test_deas_chunks_never_leave_their_episode_and_end_with_the_task(deas):
    """Rows 4, 5 (cut before three rows), 8 and 9 begin none; the last action fills up what the task's end left."""
    data = log()
    found = deas.chunks_of(data, 3)
    assert found.starts.tolist() == [0, 1, 2, 3, 6, 7, 10, 11]
    got = jax.jit(found.sample, static_argnums=(1, 2))(jax.random.key(0), 500, 3)
    rows = {0: [0, 1, 2], 1: [1, 2, 3], 2: [2, 3, 3], 3: [3, 3, 3], 6: [6, 7, 8], 7: [7, 8, 9], 10: [10, 11, 11],
            11: [11, 11, 11]}  # fmt: skip
    ends = {1: [0, 0, 0], 2: [0, 0, 1], 3: [0, 1, 1], 10: [0, 0, 1], 11: [0, 1, 1]}
    row = np.asarray(got.obs[:, 0]).astype(int)
    assert set(row) == rows.keys()
    at = np.array([rows[i] for i in row])
    np.testing.assert_array_equal(got.action, data.action[at, 0])
    np.testing.assert_array_equal(got.reward, np.where([ends.get(i, [0, 0, 0]) for i in row], 0, REWARD[at]))
    np.testing.assert_array_equal(got.terminal, [i in ends for i in row])
    np.testing.assert_array_equal(got.next_obs[:, 0], at[:, -1] + 0.5)


def test_deas_single_actions_are_all_rows(deas):
    assert deas.chunks_of(log(), 1).starts.tolist() == list(range(12))
    with pytest.raises(InputError, match=r"^--chunk-length 7: the longest episode of 'log' has 6 rows\.$"):
        deas.chunks_of(log(), 7)


def test_deas_a_row_without_a_successor_ends_no_chunk_that_is_bootstrapped(deas):
    """The rows 5 and 9 have no next_obs: what would end there is left out."""
    known = np.bool_([1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0])
    found = deas.chunks_of(log(successor=known), 3)
    obs = np.asarray(found.transitions.take(found.starts).obs)[:, 0]
    assert obs.tolist() == [0, 1, 2, 3, 6, 10, 11]
    cut = log(terminal=np.zeros(12, bool), last=np.arange(12) % 3 == 2, successor=np.arange(12) % 3 < 2)
    with pytest.raises(InputError, match="no episode of 'log' has so many rows with a successor"):
        deas.chunks_of(cut, 3)


def test_deas_values_lie_between_the_returns_of_the_data(deas):
    """Chunk after chunk, far beyond the end; row 5's and row 9's rewards go on for ever."""
    end = [3, 3, 3, 3, 5, 5, 9, 9, 9, 9, 11, 11]

    def reward(row, step):
        return REWARD[row + step] if row + step <= end[row] else 0 if TERMINAL[end[row]] else REWARD[end[row]]

    expected = [sum(0.9 ** (3 * (k // 3)) * 0.5 ** (k % 3) * reward(row, k) for k in range(600)) for row in range(12)]
    np.testing.assert_allclose(deas.value_range(log(), 3, 0.5, 0.9), (min(expected), max(expected)), rtol=1e-6)
    args = deas.Args(chunk_length=3, chunk_discount=np.float32([0.5, 1.0, 0.5]), discount=np.float32([0.9, 0.9, 0.9]))
    low, high = deas.value_ranges(log(), args)
    assert low[0] == low[2] and high[0] == high[2] and high[1] > high[0]
    np.testing.assert_allclose([low[0], high[0]], (min(expected), max(expected)), rtol=1e-6)
    with pytest.raises(InputError, match=r"^All chunks of 'log' have one return, 0: there is nothing to be learned\.$"):
        deas.value_range(log(reward=np.zeros(12, np.float32)), 3, 0.5, 0.9)


# -------------------------------------------------------------------------------------------- values


def test_deas_label_is_a_gaussian_cut_at_the_ends(deas, form):
    """Outside of the range it is that of its end; within, its mean is the number, to a hundredth of a class."""
    args, agent = form
    target, edges = np.float32([-9.0, -2.0, 0.4, 0.6, 3.0, 50.0]), np.linspace(LOW, HIGH, 6)
    below = norm.cdf(edges, np.clip(target, LOW, HIGH)[:, None], 0.75)
    expected = np.diff(below, axis=-1) / (below[:, -1:] - below[:, :1])
    found = np.asarray(jax.jit(deas.label)(agent, target, args))
    close(found, expected)
    close(found.sum(-1), 1.0)
    np.testing.assert_array_equal(found[0], found[1])
    assert abs(found[2] @ MIDDLES - 0.4) < 0.05 and abs(found[3] @ MIDDLES - 0.6) < 0.05


def test_deas_value_is_an_expectile_of_the_lesser_target_critic(deas, form, chunks):
    args, agent = form
    found = critics(agent.target_critic, chunks.obs, chunks.action)
    q, output = expected(args, found), outputs(agent.value, chunks.obs)
    v, least = expected(args, output), q.argmin(0)
    assert len(set(least)) == 2
    error = (q.min(0) - v) ** 2
    if args.classification:
        error = cross_entropy(softmax(found[least, np.arange(B)]), output)
    weight = np.where(q.min(0) >= v, 0.8, 0.2)
    assert len(set(weight)) == 2
    loss, info = jax.jit(deas.value_loss)(agent.value, agent, chunks, args)
    close(loss, (weight * error).mean())
    close(info["above_v"], (weight == 0.8).mean())


def candidates(agent, obs, key):
    """[N, B, H A]"""
    obs, x = np.broadcast_to(obs, (3, *obs.shape)), np.float64(jax.random.normal(key, (3, len(obs), 6)))
    for i in range(2):
        x = x + mlp(agent.actor, obs, x, np.full((3, x.shape[1], 1), i / 2), activation=gelu) / 2
    return np.clip(x, -1, 1)


def q_of(args, params, obs, action):
    return np.stack([expected(args, critics(params, obs, a)).min(0) for a in action])


@pytest.mark.parametrize("next_value", ["expectile", "policy"])
def test_deas_critics_learn_from_the_value_after_a_chunk(deas, form, chunks, next_value):
    args, agent = form
    args, key = dataclasses.replace(args, next_value=next_value), jax.random.key(1)
    next_v = expected(args, outputs(agent.value, chunks.next_obs))
    if next_value == "policy":
        action = candidates(agent, chunks.next_obs, key)
        next_v = q_of(args, agent.target_critic, chunks.next_obs, action).max(0)
    y = chunks.reward @ [1, 0.5, 0.25] + 0.95**3 * (1 - chunks.terminal) * next_v
    output = critics(agent.critic, chunks.obs, chunks.action)
    errors = (expected(args, output) - y) ** 2
    if args.classification:
        errors = cross_entropy(np.asarray(deas.label(agent, np.float32(y), args)), output)
    loss, info = jax.jit(deas.critic_loss)(agent.critic, agent, chunks, key, args)
    close(loss, errors.mean())
    close(info["target"], y.mean())


def test_deas_parts_of_the_family_are_written_alike(deas):
    assert not {"flow_loss", "integrate"} & differences(deas, load("idql"))
    assert not {"MLP"} & differences(deas, load("fql"))


@pytest.mark.long
@pytest.mark.parametrize("form", [True], indirect=True)
def test_deas_takes_one_step_of_all_losses_of_the_old_parameters(deas, form, chunks):
    args, agent = form
    args, key = dataclasses.replace(args, tau=np.float32(0.2)), jax.random.key(2)
    critic_key, flow_key = jax.random.split(key)

    @jax.jit
    def update_and_losses(agent):
        loss_v = deas.value_loss(agent.value, agent, chunks, args)
        loss_q = deas.critic_loss(agent.critic, agent, chunks, critic_key, args)
        loss_pi = deas.flow_loss(agent.actor, agent, chunks, flow_key, args)
        return deas.update(agent, chunks, key, args), (loss_v[0], loss_q[0], loss_pi)

    (new, metrics), losses = jax.device_get(update_and_losses(agent))
    close([metrics[name] for name in ("value_loss", "critic_loss", "actor_loss")], losses)
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)
    for name in ("actor", "critic", "value"):
        changed = jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), getattr(agent, name), getattr(new, name))
        assert all(jax.tree.leaves(changed)), name


# -------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("form", [True], indirect=True)
def test_deas_executes_the_best_chunk_to_its_end(deas, form, batch):
    """Environments whose chunk is used up choose anew, the others go on."""
    args, agent = form
    key, taken = jax.random.key(4), np.array([0, 1, 2, 0, 2])
    old = np.random.default_rng(3).uniform(-1, 1, (B, 3, 2)).astype(np.float32)
    act = jax.jit(deas.act)
    action, carry = act(agent, deas.Carry(old, taken), batch.obs, np.zeros(B), key, args)
    drawn = candidates(agent, batch.obs, key)
    best = drawn[q_of(args, agent.critic, batch.obs, drawn).argmax(0), np.arange(B)].reshape(B, 3, 2)
    chunk = np.where((taken == 0)[:, None, None], best, old)
    np.testing.assert_allclose(carry.chunk, chunk, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(action, chunk[np.arange(B), taken], rtol=1e-3, atol=1e-4)
    assert carry.taken.tolist() == [1, 2, 0, 1, 0]
    begin = deas.initial_carry(agent, args)
    assert begin.chunk.shape == (3, 2) and int(begin.taken) == 0


@pytest.mark.parametrize("form", [True], indirect=True)
def test_deas_may_plan_again_within_a_chunk(deas, form, batch):
    args, agent = form
    args, old = dataclasses.replace(args, replan_every=2), np.zeros((B, 3, 2), np.float32)
    act = jax.jit(lambda carry: deas.act(agent, carry, batch.obs, 0.0, jax.random.key(0), args)[1].taken)
    assert act(deas.Carry(old, np.array([0, 1, 1, 0, 0]))).tolist() == [1, 0, 0, 1, 1]


def test_deas_presets_are_the_papers_lengths(deas):
    """Of arXiv 2510.07730: chunks of 8 for scene and puzzle, of 4 for cubes; 101 classes are its VLA critic's."""
    for dataset, length in (
        ("scene-play", 8),
        ("puzzle-4x4-play", 8),
        ("cube-double-play", 4),
        ("cube-single-play", 4),
    ):
        key = preset_for(f"{dataset}-singletask-v0", deas.PRESETS)
        assert deas.Args(**deas.PRESETS[key]).chunk_length == length
    args = deas.Args()
    assert (args.chunk_discount, args.discount, args.expectile, args.value_classes, args.label_std) == (
        0.9,
        0.999,
        0.7,
        101,
        0.75,
    )


def test_deas_refuses_labels_that_tell_nothing(deas, pendulum, tmp_path):
    for changes, words in (
        ({"value_classes": 1}, "--value-classes must be at least 2"),
        ({"label_std": (0.0, 0.75)}, "--label-std must be above 0"),
    ):
        with pytest.raises(InputError, match=words):
            deas.main(small("deas", pendulum, tmp_path / "run", env="none", **changes))
        deas.check(deas.Args(**changes, classification=False))
