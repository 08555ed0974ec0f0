"""JOWA's losses against numpy, what a token sees, its codes, and plans against all sequences of actions."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import make  # of datasets/
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import close
from scipy.special import log_softmax, logsumexp, softmax

from shared.arguments import preset_for
from shared.data import Dataset
from shared.errors import InputError
from shared.sequences import Window
from shared.task import Spec, Task

SMALL = {
    "model_updates": 4, "codes": 16, "context": 3, "width": 8, "layers": 1, "heads": 2, "critic_hidden_dims": (8,),
    "n_atoms": 5, "copy_every": 0, "plan_length": 1, "token_dims": 2,
}  # fmt: skip

jowa = load("jowa")
A, N, V, K, T, B = 3, 6, 5, 2, 4, 4
SPEC = Spec((5,), A, True)  # two tokens of two numbers (the last one filled up), two of the task
ARGS = jowa.Args(
    n_tasks=2, token_dims=2, codes=V, context=T, width=8, layers=1, heads=2, token_dropout=0.0, critic_dropout=0.0,
    critic_hidden_dims=(8,), n_atoms=N, v_min=-2.0, v_max=3.0, discount=0.8, world_weight=0.3, cql_alpha=0.7,
    copy_every=2, learning_rate=0.01, model_lr=0.02, weight_decay=0.0, max_grad_norm=0.0, batch_size=B,
)  # fmt: skip
Z = np.linspace(-2, 3, N)
LEGAL = np.float32([[1, 1, 1], [1, 0, 1]])


def with_(**changes):
    return dataclasses.replace(ARGS, **changes)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def agent():
    """Targets differ from the critic, and find action 1 best, which task 1 has not."""
    init = jax.jit(partial(jowa.init, spec=SPEC, legal=LEGAL))
    agent, other = (init(jax.random.key(seed), ARGS) for seed in (0, 1))
    louder = lambda tree: jax.tree.map(lambda x: 20.0 * x + 0.1, tree)  # noqa: E731
    target = louder(other.critic)
    target["params"]["Dense_1"]["bias"] = target["params"]["Dense_1"]["bias"].at[2 * N - 1].add(6.0)
    return agent.replace(
        model=jax.tree.map(lambda x: 5.0 * x, agent.model),
        critic=louder(agent.critic),
        target_critic=target,
    )


@pytest.fixture(scope="module")
def blocks():
    """T + 1 steps: a window whose second block is terminal, one of T, one of a single block, and a whole one."""
    r = np.random.default_rng(0)
    mask = np.float32([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    terminal = np.float32([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    action = np.int32([[0, 1, 0, 0, 0], [2, 0, 2, 0, 0], [1, 0, 0, 0, 0], [0, 1, 2, 2, 1]])
    task = np.int32([0, 1, 0, 0])
    return jowa.Blocks(
        tokens=r.integers(0, V, (B, T + 1, K)).astype(np.int32) * mask[..., None].astype(np.int32),
        action=action,
        reward=np.float32([[1, -1, 0, 0, 0], [0, 1, 1, -1, 0], [1, 0, 0, 0, 0], [0, -1, 0, 1, 1]]),
        terminal=terminal,
        mask=mask,
        task=task,
    )


def random_outputs(seed=1):
    r = np.random.default_rng(seed)
    draw = lambda *shape: r.normal(size=shape).astype(np.float32)  # noqa: E731
    return jowa.Foreseen(draw(B, T, K + 1, 8), draw(B, T, K + 1, V), draw(B, T, 3), draw(B, T, 2))


def test_the_models_loss_is_three_cross_entropies_of_what_follows(blocks):
    """Written out token by token: no loss at the observation's last token, nor of what no block of the episode has."""
    blocks = jowa.part(blocks, 0, T)
    out, tokens, rewards, ends, right = random_outputs(), [], [], [], []
    ce = lambda logits, label: -log_softmax(np.float64(logits))[label]  # noqa: E731
    for b, t in itertools.product(range(B), range(T)):
        if not blocks.mask[b, t]:
            continue
        for k in range(K - 1):
            tokens.append(ce(out.tokens[b, t, k], blocks.tokens[b, t, k + 1]))
            if t > 0:
                right.append(out.tokens[b, t, k].argmax() == blocks.tokens[b, t, k + 1])
        if t + 1 < T and blocks.mask[b, t + 1]:
            tokens.append(ce(out.tokens[b, t, K], blocks.tokens[b, t + 1, 0]))
            right.append(out.tokens[b, t, K].argmax() == blocks.tokens[b, t + 1, 0])
        rewards.append(ce(out.reward[b, t], int(blocks.reward[b, t]) + 1))
        ends.append(ce(out.end[b, t], int(blocks.terminal[b, t])))
    loss, info = jax.jit(jowa.model_loss)(out, blocks)
    close(info["token_loss"], np.mean(tokens))
    close(info["reward_loss"], np.mean(rewards))
    close(info["end_loss"], np.mean(ends))
    close(loss, np.mean(tokens) + np.mean(rewards) + np.mean(ends))
    close(info["foreseen"], np.mean(right))


def project(p, reward, goes_on):
    """C51's algorithm, atom by atom."""
    target = np.zeros(N)
    for j in range(N):
        place = (np.clip(reward + 0.8 * goes_on * Z[j], -2, 3) + 2) / 1.0
        low, high = int(np.floor(place)), int(np.ceil(place))
        if low == high:
            target[low] += p[j]
        else:
            target[low] += p[j] * (high - place)
            target[high] += p[j] * (place - low)
    return target


def test_targets_are_projected_on_the_atoms():
    r = np.random.default_rng(2)
    p, reward, goes_on = softmax(r.normal(size=(4, N)), axis=1), np.float32([1, 0, -1, 1]), np.float32([1, 1, 1, 0])
    found = jowa.projected(jnp.float32(p), reward, goes_on, ARGS)
    close(found, [project(*x) for x in zip(p, reward, goes_on, strict=True)])
    close(found.sum(1), 1.0)
    close(found[3], [0, 0, 0, 1, 0, 0])


def logits_of(agent, critic, features):
    layers, x = critic["params"], np.float64(features)
    x = np.maximum(x @ np.float64(layers["Dense_0"]["kernel"]) + np.float64(layers["Dense_0"]["bias"]), 0)
    x = x @ np.float64(layers["Dense_1"]["kernel"]) + np.float64(layers["Dense_1"]["bias"])
    return x.reshape(*x.shape[:-1], A, N)


@pytest.mark.long
@pytest.mark.parametrize("learn_last", [True, False])
def test_q_learns_from_the_next_blocks_best_legal_action_and_is_pushed_down_elsewhere(agent, blocks, learn_last):
    r = np.random.default_rng(1)
    features, next_features = r.normal(size=(2, B, T, 8)).astype(np.float32)
    logits = logits_of(agent, agent.critic, features)
    target = logits_of(agent, agent.target_critic, next_features)
    errors, gaps, qs, others = [], [], [], []
    for b, t in itertools.product(range(B), range(T)):
        if not blocks.mask[b, t]:
            continue
        legal = LEGAL[blocks.task[b]] > 0
        q = np.where(legal, softmax(logits[b, t], axis=1) @ Z, -np.inf)
        chosen = blocks.action[b, t]
        gaps.append(logsumexp(q[legal]) - q[chosen])
        qs.append(q[chosen])
        follows = blocks.mask[b, t + 1] and (learn_last or t + 1 < T)
        if follows or blocks.terminal[b, t]:
            values = softmax(target[b, t], axis=1) @ Z
            best = np.where(legal, values, -np.inf).argmax()
            others.append(values.argmax() != best)
            p = softmax(target[b, t, best])
            y = project(p, blocks.reward[b, t], 1 - blocks.terminal[b, t])
            errors.append(-(y * log_softmax(logits[b, t, chosen])).sum())
    assert len(errors) == 5 + 3 + learn_last and any(others)
    bellman, gap, info = jax.jit(partial(jowa.critic_losses, args=with_(learn_last=learn_last)))(
        agent.critic, agent, features, next_features, blocks
    )
    close(bellman, np.mean(errors))
    close(gap, np.mean(gaps))
    close(info["q"], np.mean(qs))


joint = jax.jit(jax.value_and_grad(jowa.joint_loss, has_aux=True))


@pytest.mark.long
def test_the_joint_loss_weighs_its_parts_and_moves_the_trunk_unless_it_is_not_to(agent, blocks):
    """Of a window's last block the next features are of the window one row later, at its last place."""
    params, key = (agent.model, agent.critic), jax.random.key(3)
    (loss, info), (grads, of_critic) = joint(params, agent, blocks, key, ARGS)
    close(loss, 0.3 * info["model_loss"] + info["bellman_loss"] + 0.7 * info["gap"])
    forward = jax.jit(agent.nets.model.apply)
    out, later = (
        forward(agent.model, blocks.tokens[:, i : i + T], blocks.action[:, i : i + T], blocks.task) for i in (0, 1)
    )
    features = np.asarray(out.features[:, :, 1])
    following = np.concatenate([features[:, 1:], np.asarray(later.features[:, -1:, 1])], 1)
    bellman = jax.jit(partial(jowa.critic_losses, args=ARGS))(agent.critic, agent, features, following, blocks)[0]
    close(info["bellman_loss"], bellman)
    close(info["model_loss"], jowa.model_loss(out, jowa.part(blocks, 0, T))[0])
    alone = joint(params, agent, blocks, key, with_(world_weight=0.0))[1][0]["params"]
    assert (
        np.abs(alone["embed_obs"]["embedding"]).max() > 0 and not np.asarray(alone["next"]["Dense_0"]["kernel"]).any()
    )
    apart, critic_alone = joint(params, agent, blocks, key, with_(world_weight=0.0, shared_trunk=False))[1]
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(apart))
    jax.tree.map(close, critic_alone, of_critic)


def test_a_token_sees_itself_and_what_came_before_it_and_the_task(agent, blocks):
    """Q, at the observation's last token, does not see the action of its own block, but those before it."""
    forward = jax.jit(agent.nets.model.apply)
    tokens, action, task = np.array(blocks.tokens[:, :T]), np.array(blocks.action[:, :T]), np.array(blocks.task)
    one = np.asarray(forward(agent.model, tokens, action, task).features)
    changed = action.copy()
    changed[:, 1] = (changed[:, 1] + 1) % A
    differs = np.abs(np.asarray(forward(agent.model, tokens, changed, task).features) - one).max((0, 3)) > 1e-6
    assert differs.tolist() == [[False] * 3, [False, False, True], [True] * 3, [True] * 3]
    moved = tokens.copy()
    moved[:, 2, 1] = (moved[:, 2, 1] + 1) % V
    differs = np.abs(np.asarray(forward(agent.model, moved, action, task).features) - one).max((0, 3)) > 1e-6
    assert differs.tolist() == [[False] * 3, [False] * 3, [False, True, True], [True] * 3]
    other = np.asarray(forward(agent.model, tokens, action, 1 - task).features)
    assert (np.abs(other - one).max((0, 3)) > 1e-6).all()


def adams_step(old, grad, new, rate, scale=1.0):
    """`new` is what Adam's first step makes of `old`."""
    g = scale * np.float64(grad)
    np.testing.assert_allclose(new, old - rate * g / (np.abs(g) + 1e-8), rtol=2e-4, atol=2e-4)


update = jax.jit(jowa.update)


@pytest.mark.long
def test_stage_1_moves_the_model_alone_and_stage_2_both_whose_target_is_copied(agent, blocks):
    key = jax.random.key(4)
    grads = jax.jit(jax.grad(jowa.world_loss, has_aux=True))(agent.model, agent, blocks, key, ARGS)[0]
    first, info = jax.jit(jowa.update_model)(agent, blocks, key, ARGS)
    big = lambda g: np.where(np.abs(g) > 1e-4, 1.0, np.nan)  # noqa: E731  Adam divides noise by noise elsewhere
    check = lambda rate, p, g, now: adams_step(p * big(g), g * big(g), now * big(g), rate)  # noqa: E731
    jax.tree.map(partial(check, 0.02), agent.model, grads, first.model)
    assert same(first.critic, agent.critic) and same(first.critic_opt, agent.critic_opt) and int(first.updates) == 0
    close(info["model_loss"], info["token_loss"] + info["reward_loss"] + info["end_loss"])

    _, (of_model, of_critic) = joint((agent.model, agent.critic), agent, blocks, key, ARGS)
    second, _ = update(agent, blocks, key, ARGS)
    jax.tree.map(partial(check, 0.01), agent.model, of_model, second.model)
    jax.tree.map(partial(check, 0.01), agent.critic, of_critic, second.critic)
    assert same(second.target_critic, agent.target_critic) and int(second.updates) == 1
    third, _ = update(second, blocks, key, ARGS)
    assert same(third.target_critic, third.critic) and not same(third.critic, second.critic)


def test_gradients_of_both_are_clipped_together_and_weights_decay():
    grads = ({"a": jnp.float32([3.0])}, {"b": jnp.float32([0.0, 4.0])})
    close(jowa.clipped(grads, with_(max_grad_norm=1.0))[1]["b"], [0, 0.8])
    close(jowa.clipped(grads, with_(max_grad_norm=1.0))[0]["a"], [0.6])
    for limit in (0.0, 9.0):
        assert same(jowa.clipped(grads, with_(max_grad_norm=limit)), grads)
    adam, p = jowa.optimizer(0.1, with_(weight_decay=0.5)), jnp.float32([2.0])
    close(adam.update(jnp.zeros(1), adam.init(p), p)[0], [-0.1 * 0.5 * 2])


# ------------------------------------------------------------------------------------------------ codes


def data_of(obs, action, terminal=None):
    n = len(obs)
    last = np.zeros(n, bool) if terminal is None else terminal
    last[-1] = True
    arrays = {"reward": np.full(n, -2.0, np.float32), "terminal": last, "last": last}
    obs = np.float32(obs)
    return Dataset(Task("log", "", SPEC), obs, np.int32(action), next_obs=obs, **arrays)


OBS = [[0, 1, 2, 1, 0], [0, 1, 0, 0, 1], [5, 5, 2, 1, 0], [2, 0, 0, 1, 0]]


def test_the_datas_pieces_are_its_codes_and_the_task_is_told():
    args = with_(codes=6)
    data = data_of(OBS, [0, 2, 1, 0])
    book = jowa.codebook_of(data.obs, args)
    known = book[np.isfinite(book[:, 0])].tolist()
    assert sorted(known) == [[0, 0], [0, 1], [2, 0], [5, 5]]
    tokens = jowa.tokenised(data, book, args)
    assert tokens.spec.obs_shape == (3,) and tokens.obs[:, -1].tolist() == [0, 1, 0, 0]
    back = book[tokens.obs[:, :2].astype(int)].reshape(4, 4)
    np.testing.assert_array_equal(back, [[0, 1, 2, 0], [0, 1, 0, 0], [5, 5, 2, 0], [2, 0, 0, 0]])
    piece, task = jowa.pieces(jnp.float32(OBS), args)
    np.testing.assert_array_equal(jowa.nearest_code(piece, book), tokens.obs[:, :2])
    assert task.tolist() == [0, 1, 0, 0]
    np.testing.assert_array_equal(jowa.legal_actions(data, args), [[1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(jowa.legal_actions(data, with_(n_tasks=1)), [[1, 1, 1]])


def test_of_too_many_pieces_means_are_the_codes():
    r = np.random.default_rng(0)
    centres = np.float32([[0, 0], [10, 0], [0, 10]])
    obs = (centres[r.integers(0, 3, 300)] + r.normal(scale=0.1, size=(300, 2))).astype(np.float32)
    book = jowa.codebook_of(obs, with_(n_tasks=1, codes=3))
    assert book.shape == (3, 2)
    near = np.abs(book[:, None] - centres).max(-1).argmin(0)
    assert len({*near.tolist()}) == 3 and np.abs(book[near] - centres).max() < 0.05


def test_the_preset_for_minatar_tells_the_lines_of_a_game_apart(tmp_path):
    """A token for each line, without one that is filled up; with pgx, lanes of both weights are trained and played."""
    preset = jowa.PRESETS[preset_for("minatar-breakout-mixed", jowa.PRESETS)]
    args, spec = jowa.Args(**preset), Spec((10 * 10 * 4,), A, True)
    grid = np.float32(np.random.default_rng(0).random((2, 10, 10, 4)) < 0.5)
    assert jowa.tokens_of(args, spec) == 10
    np.testing.assert_array_equal(jowa.pieces(grid.reshape(2, 400), args)[0], grid.reshape(2, 10, 40))
    pytest.importorskip("pgx", reason="an extra: pip install pgx==2.6.0")
    make.make("minatar-breakout-mixed", steps=300)
    sizes = {"token_dims": 40, "context": 2, "codes": 160, "n_tasks": 1, "batch_size": 2, "model_updates": 0}
    train(
        "jowa", "minatar-breakout-mixed", tmp_path / "run", **sizes, planning=False, world_weight=(0.0, 1.0), seeds=2,
        v_min=0.0, v_max=0.0, max_episode_steps=4,
    )  # fmt: skip
    rows = (tmp_path / "run" / "returns.csv").read_text().splitlines()
    assert len(rows) == 1 + 4  # an episode of every lane


def test_rewards_count_by_their_sign_and_windows_keep_their_masks():
    obs = np.float32([[[3, 1, 1], [2, 0, 1]]])
    found = jowa.blocks_of(
        Window(
            np.float32([[1, 0]]),
            None,
            jnp.asarray(obs),
            np.int32([[2, 0]]),
            np.float32([[-3, 0]]),
            np.float32([[1, 0]]),
        )
    )
    assert found.tokens.tolist() == [[[3, 1], [2, 0]]] and found.task.tolist() == [1]
    assert (
        found.reward.tolist() == [[-1, 0]] and found.mask.tolist() == [[1, 0]] and found.terminal.tolist() == [[1, 0]]
    )


# ------------------------------------------------------------------------------------------------ plans

WALK = np.array([[1, 2, 3], [0, 3, 4], [4, 0, 1], [2, 2, 0], [3, 1, 2]])
"""A chain of states whose first token is s, and the second 4 - s: [state, action] -> the next state."""
PAYS = np.array([[0, 1, -1], [1, 0, 0], [-1, 1, 1], [0, -1, 1], [1, 0, -1]])
ENDS = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
VALUE = np.array([[0.1, 0.3, -0.2], [0.9, 0.2, 0.4], [1.5, 0.3, 0.1], [-0.5, 2.0, 0.2], [0.6, 0.7, 1.1]])


class Chain:
    """A world model that is right: the second token follows from the first one, as it was foreseen."""

    action_dim = A

    def apply(self, params, tokens, action, task):
        state = tokens[..., 0]
        after = jnp.asarray(WALK)[state, action]
        nothing = jnp.zeros(state.shape, jnp.int32)
        logits = jnp.stack([4 - state, nothing, after], -1)
        features = jnp.broadcast_to(jax.nn.one_hot(state, V)[:, :, None], (*state.shape, K + 1, V))
        hot = lambda x, n: 9.0 * jax.nn.one_hot(x, n)  # noqa: E731
        pays, ends = jnp.asarray(PAYS)[state, action] + 1, jnp.asarray(ENDS)[state, action]
        right = tokens[..., 1] == 4 - state  # what was not foreseen in its order is worth nothing
        return jowa.Foreseen(features * right[:, :, None, None], hot(logits, V), hot(pays, 3), hot(ends, 2))


class Value:
    """Logits by which Q is VALUE, of the two atoms 0 and 3."""

    def apply(self, params, features):
        p = (features @ jnp.asarray(VALUE, jnp.float32) + 2.0) / 5.0
        return jnp.log(jnp.stack([1.0 - p, p], -1)).reshape(*features.shape[:-1], A * 2)


CHAIN = with_(n_tasks=2, n_atoms=2, context=5)
BOOK = np.float32([[s, s] for s in range(V)])


def chain_agent(legal=((1, 1, 1), (1, 0, 1))):
    nets = jowa.Networks(Chain(), Value())
    fake = {"params": {"position": jnp.zeros((CHAIN.context * (K + 1), 1))}}
    return jowa.Agent(nets, fake, {}, {}, None, None, jnp.asarray(BOOK), jnp.float32(legal), jnp.int32(0))


def worth(state, actions, task):
    """sum_h gamma^h r_h + gamma^H max_a Q, of legal actions; nothing counts behind an end."""
    legal, total, weight = LEGAL[task] > 0, 0.0, 1.0
    for a in actions:
        if not legal[a]:
            return -np.inf
        total, weight, state = total + weight * PAYS[state, a], weight * 0.8 * (1 - ENDS[state, a]), WALK[state, a]
    return total + weight * VALUE[state][legal].max()


def searched(state, task, length, width):
    """The beam, path by path."""
    legal = LEGAL[task] > 0
    paths = [((), state)]
    for _ in range(length):
        new = []
        for path, at in paths:
            q = np.where(legal, VALUE[at], -np.inf)
            new += [((*path, a), WALK[at, a]) for a in np.argsort(-q, kind="stable")[:width] if legal[a]]
        paths = sorted(new, key=lambda x: -worth(state, x[0], task))[:width]
    return paths[0][0][0]


@pytest.mark.parametrize("length, width", [(1, 1), (2, 2), (2, 3), (3, 2)])
def test_plans_are_the_beams_and_of_full_width_the_best_of_all(length, width):
    args = dataclasses.replace(CHAIN, plan_length=length, beam_width=width)
    cases = [(s, task) for s in range(V) for task in range(2)]
    tokens = np.zeros((len(cases), 5, K), np.int32)
    tokens[:, 1] = [[s, 4 - s] for s, _ in cases]
    at, task = np.full(len(cases), 1, np.int32), np.int32([task for _, task in cases])
    plan = jax.jit(partial(jowa.plan, chain_agent(), args=args))
    found = plan(tokens, np.zeros((len(cases), 5), np.int32), at, task).tolist()
    assert found == [searched(s, task, length, width) for s, task in cases]
    greedy = [int(np.where(LEGAL[task] > 0, VALUE[s], -np.inf).argmax()) for s, task in cases]
    if (length, width) == (2, 3):
        every = list(itertools.product(range(A), repeat=2))
        assert found == [max(every, key=lambda x, s=s, task=task: worth(s, x, task))[0] for s, task in cases]
        assert found != greedy
    if width == 1:
        assert found == greedy


def test_the_policy_remembers_as_many_blocks_as_leave_room_for_a_plan():
    agent, obs = chain_agent(), lambda s: np.float32([[s, s, 4 - s, 4 - s, 1, 0]])
    for planning, learn_last, most in ((False, True, 5), (True, True, 3), (False, False, 4), (True, False, 2)):
        args = dataclasses.replace(CHAIN, planning=planning, learn_last=learn_last)
        act, carry = jax.jit(partial(jowa.act, args=args)), jowa.initial_carry(agent, args)
        carry = jax.tree.map(lambda x: x[None], carry)
        states, actions = [0, 1, 2, 3, 4, 0, 2], []
        for s in states:
            action, carry = act(agent, carry, obs(s), np.zeros(1, np.float32), jax.random.key(0))
            actions.append(int(action[0]))
        assert int(carry.seen[0]) == most
        assert (
            carry.tokens[0, :most, 0].tolist() == states[-most:] and carry.action[0, :most].tolist() == actions[-most:]
        )
        assert actions == [searched(s, 0, 2, 2) if planning else int(VALUE[s].argmax()) for s in states]


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"context": 1}, "--context 1: a block and those that follow it are at least 3"),
        ({"context": 1, "planning": False}, "are at least 2"),
        ({"plan_length": 4}, "--context 4: a block and those that follow it are at least 5"),
        ({"plan_length": 3, "learn_last": False}, "--context 4: a block and those that follow it are at least 5"),
        ({"context": 2, "planning": False, "learn_last": False}, "are at least 3"),
        ({"world_weight": (0.1, 0.0)}, "--world-weight 0: a plan needs a model"),
        ({"n_atoms": 1}, "--n-atoms must be at least 2, not 1"),
        ({"n_tasks": 5}, "--n-tasks 5: observations of 'log' have 5 numbers"),
        ({"v_min": (-1.0, 3.0)}, "must be less than --v-max"),
        ({"v_min": (-1.0, 3.0), "v_max": (2.0, 5.0)}, "must be less than --v-max"),  # each meets each
        ({"v_min": (-1.0, 0.0), "v_max": (0.0, 2.0, 3.0)}, "must be less than --v-max"),
        ({"v_min": 0.0, "v_max": 0.0, "discount": (0.8, 0.9)}, "each has its own range of returns; give --v-min"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        jowa.resolved(with_(**changes), data_of(OBS, [0, 2, 1, 0]))


def test_atoms_span_the_returns_of_the_signs_where_none_are_given():
    found = jowa.resolved(with_(v_min=0.0, v_max=0.0), data_of(OBS, [0, 2, 1, 0]))
    close([found.v_min, found.v_max], [-(1 + 0.8 + 0.64 + 0.512), -1])
    close(jowa.atoms(ARGS), Z)
