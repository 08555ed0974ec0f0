"""Meta-DT: its world model, prompts and network in numpy, and what the policy keeps from one try to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_pendulum
from jobs import small
from reference import close, compiled, differences, mlp, relu
from transformer_in_numpy import SPEC, B, dense, norm, transformer, window

from shared.data import load_dataset
from shared.errors import InputError

SMALL = {
    "try_steps": 4, "context_updates": 4, "history_steps": 2, "prompt_steps": 2, "prompt_tries": 2, "context": 3,
    "width": 8, "layers": 1, "heads": 2, "recurrent_dim": 6, "latent_dim": 4, "unprompted_updates": 1,
    "warmup_updates": 1000,
}  # fmt: skip
T, K, H, P, M, Z = 5, 3, 2, 2, 2, 4
"""Steps of a try, of a window, of a history, of a prompt; tries that are kept; size of what is known of a task."""
TINY = SMALL | {"try_steps": T, "hidden_dims": (8, 8), "batch_size": B, "token_dropout": 0.0}
TINY |= {"return_scale": 2.0, "target_return": 3.0, "task_weight": 0.5, "unprompted_updates": 0}
TINY |= {"learning_rate": 0.01, "warmup_updates": 1, "weight_decay": 0.1, "varies": ("rewards", "dynamics")}


@pytest.fixture(scope="module")
def module():
    return compiled("meta_dt")


@pytest.fixture(scope="module")
def args(module):
    return module.Args(**TINY)


def in_general_position(module, args, spec):
    """Nothing is compiled, and no parameter is zero."""
    r, agent = np.random.default_rng(0), jax.eval_shape(lambda key: module.init(key, args, spec), jax.random.key(0))
    agent = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), agent)
    shake = lambda tree: jax.tree.map(lambda x: np.float32(0.4 * r.normal(size=x.shape)), tree)  # noqa: E731
    return agent.replace(models=shake(agent.models), actor=shake(agent.actor))


@pytest.fixture(scope="module")
def agent(module, args):
    return in_general_position(module, args, SPEC)


def of(steps, **changes):
    return steps._replace(terminal=None, **changes)


@pytest.fixture(scope="module")
def batch(module):
    """Windows, prompts that three of them have, and what is known of their tasks."""
    prompt = of(window(seed=3, steps=P), mask=np.repeat(np.float32([[1], [1], [0], [1], [0]]), P, 1))
    z = np.random.default_rng(4).normal(size=(B, K, Z)).astype(np.float32)
    return module.Batch(of(window(seed=2, steps=K)), z, prompt)


# ------------------------------------------------------------------------------------ the world model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def task(p, before):
    """z of the steps [h, ...] before one."""
    e = p["params"]["encoder"]
    x = [before.obs, before.action, before.reward[:, None]]
    x = np.concatenate([relu(dense(e[f"Dense_{i}"], x[i])) for i in range(3)], -1)
    cell, memory = e["GRUCell_0"], np.zeros(6)
    for step in x:
        r, u = (sigmoid(dense(cell[f"i{g}"], step) + dense(cell[f"h{g}"], memory)) for g in "rz")
        new = np.tanh(dense(cell["in"], step) + r * dense(cell["hn"], memory))
        memory = (1 - u) * new + u * memory
    return dense(e["Dense_3"], memory)


def guesses(p, z, obs, action, next_obs):
    """The reward, and the next state."""
    found = []
    for name, states in (("reward_model", (obs, next_obs)), ("dynamics_model", (obs,))):
        d = p["params"][name]
        x = [z, relu(dense(d["embed_action"], action)), *(relu(dense(d["embed_obs"], s)) for s in states)]
        found.append(mlp({"params": {k: v for k, v in d.items() if "Dense" in k}}, np.concatenate(x)))
    return found[0][0], found[1]


def misses(p, steps):
    """z, and what was missed, of the last step but one of `steps` [h + 2]."""
    now, after = (jax.tree.map(lambda x, i=i: np.asarray(x)[i], steps) for i in (-2, -1))
    z = task(p, jax.tree.map(lambda x: np.asarray(x)[:-2], steps))
    reward, next_obs = guesses(p, z, now.obs, now.action, after.obs)
    return z, now.reward - reward, after.obs - next_obs


@pytest.mark.long
def test_the_world_model_is_told_the_task_by_the_steps_before_one(module, agent, args):
    """And is not asked about a try's last step, whose next state is not there."""
    steps = of(window(seed=1, steps=H + 2))
    steps.mask[:, -2:], steps.mask[1, -1] = 1, 0
    found = [misses(agent.models, jax.tree.map(lambda x, b=b: x[b], steps)) for b in range(B)]
    known = np.arange(B) != 1
    rewards, dynamics = (np.array([m[i] for m in found]) for i in (1, 2))
    expected = {"rewards": (rewards[known] ** 2).mean(), "dynamics": (dynamics[known] ** 2).mean()}
    for varies in (("rewards",), ("dynamics",), ("rewards", "dynamics")):
        own = dataclasses.replace(args, varies=varies)
        loss, info = jax.jit(module.model_loss)(agent.models, agent, steps, own)
        close(loss, sum(expected[name] for name in varies))
        close(info["reward_loss"], expected["rewards"])
        error = {"rewards": np.abs(rewards), "dynamics": np.abs(dynamics).sum(1)}
        close(module.model_error(rewards, dynamics, own), sum(error[name] for name in varies))


def test_the_gates_of_the_encoder_begin_as_one_orthogonal_matrix(module):
    """Of all three together, as the authors' code has it, for what comes in and for the memory."""
    inputs = [np.zeros((1, H, n), np.float32) for n in (3, 2, 1)]
    cell = jax.jit(module.TaskEncoder(2, 8).init)(jax.random.key(0), *inputs)["params"]["GRUCell_0"]
    for kind, size in (("i", 6), ("h", 8)):
        stacked = np.concatenate([cell[f"{kind}{gate}"]["kernel"] for gate in "rzn"], axis=1)
        np.testing.assert_allclose(stacked @ stacked.T, np.eye(size), atol=1e-5)


@pytest.mark.long
def test_the_models_learn_first_and_then_the_actor_alone(module, agent, args, batch):
    steps = of(window(seed=1, steps=H + 2))
    steps.mask[:] = 1
    key = jax.random.key(0)
    first = jax.jit(module.update_models)(agent, steps, key, args)[0]
    second = jax.jit(module.update)(agent, batch, key, args)[0]
    differ = lambda a, b: [np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]  # noqa: E731
    assert all(differ(first.models, agent.models)) and not any(differ(first.actor, agent.actor))
    assert not any(differ(second.models, agent.models)) and np.mean(differ(second.actor, agent.actor)) > 0.9
    assert int(first.updates) == 0 and int(second.updates) == 1


# ------------------------------------------------------------------------------------ the actor


def test_the_transformer_is_harmodts(module):
    assert not {"Block", "Transformer", "optimizer"} & differences(load("meta_dt"), load("harmodt"))


def actions(agent, batch, weight=0.5, prompted=True):
    """[B, K, A], returns divided by 2."""
    p, found = agent.actor["params"], []
    for b in range(len(batch.window.mask)):
        tokens, known = [], []
        for name, steps in (("prompt", batch.prompt), ("embed", batch.window)):
            for t in range(steps.mask.shape[1]):
                obs, time = steps.obs[b, t], np.float64(p[f"{name}_time"]["embedding"])[steps.timestep[b, t]]
                if name == "embed":
                    obs = np.concatenate([dense(p["encode_obs"], obs), weight * np.asarray(batch.z)[b, t]])
                for kind, x in (
                    ("return", steps.return_to_go[b, t][None] / 2),
                    ("obs", obs),
                    ("action", steps.action[b, t]),
                ):
                    tokens.append(norm(p["LayerNorm_0"], dense(p[f"{name}_{kind}"], x) + time))
                    known.append(steps.mask[b, t] * (prompted or name == "embed"))
        x = transformer(p["Transformer_0"], np.stack(tokens), np.array(known), 2)
        found.append(np.tanh(dense(p["head"], x[3 * batch.prompt.mask.shape[1] + 1 :: 3])))
    return np.stack(found)


def test_the_actor_is_told_the_task_and_reads_the_prompt(module, agent, args, batch):
    there = batch.window.mask > 0
    loss = jax.jit(lambda batch, args: module.actor_loss(
        agent.actor, agent, module.scaled(agent, batch, args), jax.random.key(0)
    ))  # fmt: skip
    for changes, how in (
        ({}, {}),
        ({"task_weight": 0.0}, {"weight": 0.0}),
        ({"prompt_share": 0.0}, {"prompted": False}),
        ({"unprompted_updates": 1}, {"prompted": False}),
    ):
        expected = ((actions(agent, batch, **how) - batch.window.action) ** 2)[there].mean()
        close(loss(batch, dataclasses.replace(args, **changes)), expected)


# ------------------------------------------------------------------------------------ prompts


def test_a_piece_is_drawn_in_proportion_to_its_error(module, args):
    """From the step on that has a whole history before it: of five steps, two begin one of two steps."""
    error = np.float32([9, 9, 1, 2, 4])  # sums 3 and 6
    keys = jax.random.split(jax.random.key(0), 4000)
    pieces = jax.jit(jax.vmap(module.piece, (0, None, None)))
    for power in (0.0, 1.0, 2.0):
        drawn = np.asarray(pieces(keys, error, dataclasses.replace(args, error_power=power)))
        assert set(drawn.tolist()) == {2, 3}
        assert abs((drawn == 3).mean() - 6**power / (3**power + 6**power)) < 0.03


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Trials of 30 rows, which are tries of 7: four whole ones, and two rows."""
    return load_dataset(write_pendulum(tmp_path_factory.mktemp("log") / "log.npz"), env="none")


@pytest.mark.long
def test_windows_and_prompts_are_of_one_trial_and_of_different_tries(module, agent, log):
    args = module.Args(**TINY | {"try_steps": 7, "batch_size": 400, "prompt_share": 0.75})
    data = log
    tries, trials = module.trials_of(data, args)
    np.testing.assert_array_equal(np.flatnonzero(tries.last[:30]), [6, 13, 20, 27, 29])
    assert tries.task.data["episode_returns"][0] == tries.episode_returns().min() > data.episode_returns().min()
    own = in_general_position(module, args, data.spec)
    notes, batch = jax.jit(
        lambda key: (lambda notes: (notes, trials.sample(notes, key, args)))(module.noted(own, trials, args))
    )(jax.random.key(1))
    row_of = {tuple(x): i for i, x in enumerate(np.asarray(data.obs))}
    there = np.asarray(batch.window.mask) > 0
    rows = np.array([[row_of.get(tuple(x), -1) for x in w] for w in np.asarray(batch.window.obs)])
    pieces = np.array([[row_of.get(tuple(x), -1) for x in w] for w in np.asarray(batch.prompt.obs)])
    shown = np.asarray(batch.prompt.mask)[:, 0] > 0
    assert 0.65 < shown.mean() < 0.85
    row = rows[:, -1]
    assert (row // 30 == pieces[:, 0] // 30).all() and (row % 30 // 7 != pieces[:, 0] % 30 // 7).all()
    assert (pieces[:, 1] == pieces[:, 0] + 1).all() and set((pieces[:, 0] % 30 % 7).tolist()) == {2, 3, 4, 5}
    assert set((pieces[:, 0] % 30 // 7).tolist()) == {0, 1, 2, 3}  # the rest of a trial is no whole try
    np.testing.assert_array_equal(np.asarray(batch.z)[there], np.asarray(notes.z)[rows[there]])
    returns = tries.return_to_go()
    close(np.asarray(batch.window.return_to_go)[there], returns[rows[there]])
    close(returns[21], data.reward[21:28].sum())
    for at in (0, 1, 8, 27, 29, 100):  # the first one of a try knows nothing, its last one has no error
        steps = jax.tree.map(lambda x: x[0], trials.around(jnp.array([at]), args))
        z, of_reward, of_obs = misses(own.models, steps)
        assert (np.asarray(steps.obs)[:2].any(1) == (at % 30 % 7 >= np.array([2, 1]))).all()
        close(notes.z[at], z)
        close(notes.error[at], 0.0 if at in (27, 29) else abs(of_reward) + np.abs(of_obs).sum())


# ------------------------------------------------------------------------------------ acting


@pytest.mark.long
def test_the_policy_keeps_its_best_tries_and_is_prompted_with_them(module, agent, args):
    """Four tries of five steps in two environments, of which two are kept; the first one has no prompt."""
    n, r = 2, np.random.default_rng(2)
    obs = r.normal(size=(n, 4 * T, 3)).astype(np.float32)
    reward = np.concatenate([np.zeros((n, 1)), r.normal(size=(n, 4 * T - 1))], 1).astype(np.float32)
    carry = jax.tree.map(lambda x: jnp.stack([x] * n), module.initial_carry(agent, args))
    act = jax.jit(lambda carry, obs, reward, key: module.act(agent, carry, obs, reward, key, args))
    done, after = [], np.roll(reward, -1, 1)
    for t in range(4 * T):
        action, carry = jax.device_get(act(carry, obs[:, t], reward[:, t], jax.random.key(t)))
        done.append(action)
        first = t - t % T
        rows = np.arange(first, t + 1)
        seen = np.stack([*done, np.zeros_like(action)], 1)[:, :-1]
        for b in range(n):
            zs = []
            for row in rows:
                index = np.arange(row - H, row)
                inside = index >= first
                before = [np.where(inside.reshape(-1, *[1] * (x.ndim - 1)), x[np.maximum(index, 0)], 0)
                          for x in (obs[b], seen[b], after[b])]  # fmt: skip
                zs.append(task(agent.models, module.Window(None, None, *before)))
            close(carry.z[b, : t % T + 1], zs)
            earned = np.cumsum(after[b, first : t + 1]) - after[b, first : t + 1]
            steps = module.Window(np.ones(len(rows)), rows - first, obs[b, rows],
                                  np.where(rows[:, None] < t, seen[b, rows], 0), return_to_go=3.0 - earned)  # fmt: skip
            steps = jax.tree.map(lambda x: x[None, -K:], steps)
            prompt = jax.tree.map(lambda x, b=b: x[b : b + 1], carry.prompt)
            expected = actions(agent, module.Batch(steps, np.array(zs)[None, -K:], prompt))
            close(action[b], expected[0, -1])
            tries = [np.arange(T * i, T * i + T) for i in range(t // T)]
            best = sorted(tries, key=lambda rows: after[b, rows].sum())[-M:]
            assert carry.kept.mask[b].sum() == T * len(best)
            kept = {round(float(x[0]), 3) for x, m in zip(carry.kept.return_to_go[b], carry.kept.mask[b]) if m[0]}
            assert kept == {round(float(after[b, rows].sum()), 3) for rows in best}
            if not best:
                assert not prompt.mask.any()
                continue
            piece = [int(i) for i in range(t) if np.allclose(obs[b, i], prompt.obs[0, 0])][0]
            whole, offset = next((one, piece - one[0]) for one in best if piece in one)
            assert H <= offset <= T - P and prompt.timestep[0].tolist() == [offset, offset + 1]
            close(prompt.obs[0], obs[b, piece : piece + P])
            close(prompt.action[0], seen[b, piece : piece + P])
            close(prompt.return_to_go[0], np.cumsum(after[b, whole][::-1])[::-1][offset : offset + P])
            at = [i for i in range(M) if np.allclose(carry.kept.obs[b, i, 0], obs[b, whole[0]])][0]
            z = task(agent.models, jax.tree.map(lambda x, b=b, at=at: x[b, at, 1:3], carry.kept))
            guess, next_guess = guesses(agent.models, z, obs[b, whole[3]], seen[b, whole[3]], obs[b, whole[4]])
            missed = abs(after[b, whole[3]] - guess) + np.abs(obs[b, whole[4]] - next_guess).sum()
            close(carry.kept_error[b, at, 3:], [missed, 0.0])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"try_steps": 20}, "--try-steps 20: no episode of .* has two such tries"),
        ({"prompt_steps": 3}, "are more than a try's steps, --try-steps 4"),
        ({"context": 5}, "--context 5: the longest episode"),
        ({"varies": ()}, "--varies: name what"),
    ],
)
def test_what_does_not_fit_is_refused(pendulum, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        load("meta_dt").main(small("meta_dt", pendulum, tmp_path / "run", env="none", **changes))
