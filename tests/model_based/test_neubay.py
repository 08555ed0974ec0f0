"""neubay's memory against a loop, its losses against plain numpy, its rollouts step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small
from reference import SPEC, agent_of, close, differences, mlp, tanh_normal

from shared.errors import InputError
from shared.sequences import Sequences
from shared.transitions import Batch, Transitions

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 4,
    "rollout_steps": 3.0, "history": 2, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,), "hidden_dims": (8,),
    "n_critics": 3, "memory_dim": 6, "lru_dim": 4, "memory_layers": 1, "rollouts_per_update": 3,
}  # fmt: skip
B, T = 3, 4
SIZES = {**SMALL, "batch_size": 5}


@functools.cache
def compiled(function):
    """Once for all tests."""
    return jax.jit(function)


@functools.cache
def applied(net):
    return jax.jit(net.apply)


@pytest.fixture
def neubay():
    return load("neubay")


@pytest.fixture
def args(neubay):
    return neubay.Args(**SIZES)


@pytest.fixture
def agent(neubay, args):
    r = np.random.default_rng(3)
    scale = {f"{x}_mean": jnp.float32(r.normal(size=n)) for x, n in (("input", 5), ("output", 4))}
    scale |= {f"{x}_std": jnp.float32(r.uniform(0.5, 2, n)) for x, n in (("input", 5), ("output", 4))}
    agent = agent_of(neubay, args).replace(**scale, log_alpha=jnp.float32(-0.3))
    return agent.replace(best_model=agent.model, holdout_error=jnp.float32([3.0, 1.0, 2.0]))


@pytest.fixture
def rollouts(neubay):
    """Three rollouts of four steps: histories of 1, 2 and 0 steps; they end after 4, 3 (terminal) and 2 (cut)."""
    r = np.random.default_rng(0)
    obs = r.normal(size=(B, T + 1, 3)).astype(np.float32)
    real = np.float32([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    valid = np.float32([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    terminal = np.float32([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    action = r.uniform(-0.9, 0.9, (B, T, 2)).astype(np.float32)
    reward, seen = r.normal(size=(2, B, T)).astype(np.float32)
    return neubay.Rollouts(obs[:, :-1], action, reward, seen, terminal, obs[:, 1:], real, valid, None)


def test_neubay_shares_what_the_family_has_in_common(neubay):
    shared = {"tanh_gaussian_log_prob", "sample_tanh_gaussian"}
    assert not shared & differences(neubay, load("mopo")) and shared <= vars(neubay).keys()
    assert "temperature" not in differences(neubay, load("ravl"))


# ----------------------------------------------------------------------------------------- the memory


@pytest.mark.long
def test_neubay_memory_is_a_complex_recurrence(neubay):
    net, r = neubay.LRU(4), np.random.default_rng(0)
    x, state = jnp.float32(r.normal(size=(2, 5, 6))), jnp.float32(r.normal(size=(2, 4, 2)))
    params = net.init(jax.random.key(0), x, state)
    p = params["params"]
    size, turn = np.exp(-np.exp(p["decay"])), np.exp(p["angle"])
    assert (size <= 0.9).all() and (size >= 0).all() and (turn < 6.2832).all()
    factor, h = size * np.exp(1j * turn), state[..., 0] + 1j * np.asarray(state[..., 1])
    found, last = applied(net)(params, x, state)
    for t in range(5):
        into = x[:, t] @ p["Dense_0"]["kernel"]
        h = factor * h + np.sqrt(1 - size**2) * (into[:, :4] + 1j * np.asarray(into[:, 4:]))
        out = np.concatenate([h.real, h.imag], -1) @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
        close(found[:, t], np.where(out > 0, out, 0.01 * out) + x[:, t])
    close(last, np.stack([h.real, h.imag], -1))


@pytest.mark.long
def test_neubay_acts_step_by_step_as_along_a_rollout(neubay, agent, rollouts, args):
    """The carry holds the memory and the action before; actions here are the policy's own."""
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape)), neubay.initial_carry(agent, args))
    obs = jnp.concatenate([rollouts.obs[:, :1], rollouts.next_obs], axis=1)
    reward, actions = jnp.pad(rollouts.seen, ((0, 0), (1, 0))), []
    for t in range(T + 1):
        action, carry = compiled(neubay.act)(agent, carry, obs[:, t], reward[:, t], None, args)
        actions.append(action)
    actions = jnp.stack(actions, 1)
    inputs = neubay.inputs_of(rollouts._replace(action=actions[:, :-1]))
    close(actions, jnp.tanh(applied(agent.nets.actor)(agent.actor, inputs)[0]))
    assert inputs.shape == (B, T + 1, 6)
    close(inputs[1, 2], np.r_[rollouts.obs[1, 2], actions[1, 1], rollouts.seen[1, 1]])
    close(inputs[1, 0], np.r_[rollouts.obs[1, 0], np.zeros(3)])


# ----------------------------------------------------------------------------------------- the losses


def heads(agent, critic, inputs, action):
    """[E, B, T] by hand, on what the memory gives."""
    memory = {"params": critic["params"]["memory"]}
    x = np.concatenate([applied(agent.nets.critic.memory)(memory, inputs)[0], action], -1)
    out = []
    for e in range(3):
        first, last = (critic["params"][f"EnsembleDense_{i}"] for i in (0, 1))
        h = x @ first["kernel"][e] + first["bias"][e]
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        h = np.where(h > 0, h, 0.01 * h)
        out.append((h @ last["kernel"][e] + last["bias"][e])[..., 0])
    return np.stack(out)


def policy(agent, inputs, key):
    mean, log_std, _ = applied(agent.nets.actor)(agent.actor, inputs)
    return tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, mean.shape)))


def weighted(x, rollouts, weight=0.8):
    real, imagined = rollouts.valid * rollouts.real == 1, rollouts.valid * (1 - rollouts.real) == 1
    means = [x[part].sum() / max(part.sum(), 1) for part in (real, imagined)]
    return weight * means[0] + (1 - weight) * means[1]


@pytest.mark.long
def test_neubay_critics_are_taught_by_two_random_heads_along_valid_steps(neubay, agent, rollouts, args):
    key = jax.random.key(2)
    action_key, heads_key = jax.random.split(key)
    inputs = neubay.inputs_of(rollouts)
    action, log_prob = policy(agent, inputs, action_key)
    two = jax.random.choice(heads_key, 3, (2,), replace=False)
    next_q = heads(agent, agent.target_critic, inputs, action)[np.asarray(two)].min(0)
    y = rollouts.reward + 0.99 * (1 - rollouts.terminal) * (next_q - np.exp(-0.3) * log_prob)[:, 1:]
    q = heads(agent, agent.critic, inputs[:, :-1], rollouts.action)
    huber = np.where(np.abs(q - y) < 1, 0.5 * (q - y) ** 2, np.abs(q - y) - 0.5)
    loss, info = compiled(neubay.critic_loss)(agent.critic, agent, rollouts, key, args)
    close(loss, np.mean([weighted(x, rollouts) for x in huber]))
    close(info["q"], np.mean([weighted(x, rollouts) for x in q]))
    after = rollouts._replace(reward=np.where(rollouts.valid == 1, rollouts.reward, 1e3))
    close(compiled(neubay.critic_loss)(agent.critic, agent, after, key, args)[0], loss)  # what is cut off means nothing


def test_neubay_actor_ascends_the_mean_of_all_heads(neubay, agent, rollouts, args):
    key = jax.random.key(2)
    inputs = neubay.inputs_of(rollouts)[:, :-1]
    action, log_prob = policy(agent, inputs, key)
    q = heads(agent, agent.critic, inputs, action).mean(0)
    loss, info = compiled(neubay.actor_loss)(agent.actor, agent, rollouts, key, args)
    close(loss, weighted(np.exp(-0.3) * log_prob - q, rollouts))
    close(info["entropy"], -weighted(log_prob, rollouts))
    close(info["q_pi_real"], q[rollouts.real == 1].mean())
    for made in (rollouts, rollouts._replace(real=np.zeros((B, T), np.float32))):  # then the target counts as little
        info = compiled(neubay.actor_loss)(agent.actor, agent, made, key, args)[1]
        close(info["surplus"], weighted(2 - log_prob, made))
        close(neubay.alpha_loss(0.5, info["surplus"]), 0.5 * info["surplus"])


@pytest.mark.long
def test_neubay_one_update_moves_memories_by_their_own_rate(neubay, agent, rollouts):
    args = neubay.Args(**{**SIZES, "memory_lr": 0.0, "updates": 10})
    optimizers = {"actor_opt": neubay.actor_optimizer(args).init(agent.actor)}
    optimizers |= {"critic_opt": neubay.optimizer(args.critic_lr, args.memory_lr).init(agent.critic)}
    agent = agent.replace(**optimizers)
    new, metrics = jax.jit(neubay.update)(agent, rollouts, jax.random.key(3), args)
    critic_key, _ = jax.random.split(jax.random.key(3))
    close(metrics["critic_loss"], compiled(neubay.critic_loss)(agent.critic, agent, rollouts, critic_key, args)[0])
    for name in ("actor", "critic"):
        old, now = getattr(agent, name)["params"], getattr(new, name)["params"]
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), old["memory"], now["memory"])))
        moved = [
            k for k in old if k != "memory" and not np.array_equal(*(jax.tree.leaves(x[k])[0] for x in (old, now)))
        ]
        assert moved
    last = "EnsembleDense_1"
    kernels = [x["params"][last]["kernel"] for x in (agent.target_critic, new.critic, new.target_critic)]
    close(kernels[2], 0.995 * kernels[0] + 0.005 * kernels[1])
    assert (new.log_alpha > agent.log_alpha) == (metrics["surplus"] < 0)


# ------------------------------------------------------------------------------------------ the model


def test_neubay_model_predicts_standardised_outcomes_with_normalised_layers(neubay, agent):
    r = np.random.default_rng(0)
    rows = Batch(
        r.normal(size=(3, 5, 3)), r.uniform(-1, 1, (3, 5, 2)), r.normal(size=(3, 5)), np.zeros((3, 5)),
        r.normal(size=(3, 5, 3)), successor=np.float32([[1, 0, 1, 1, 1]] * 3),
    )  # fmt: skip
    params = agent.model["params"]
    x = (np.concatenate([rows.obs, rows.action], -1) - agent.input_mean) / agent.input_std

    def norm(h):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return np.where(h > 0, h, 0.01 * h)

    nll = 0.0
    y = (np.concatenate([rows.next_obs, rows.reward[..., None]], -1) - agent.output_mean) / agent.output_std
    for e in range(3):
        one = {k: {n: v[e] for n, v in p.items()} for k, p in params.items() if "Dense" in k}
        mean, log_std = np.split(mlp({"params": one}, x[e], activation=norm), 2, -1)
        mean[:, :3] += x[e][:, :3]  # the network gives the change
        log_std = 0.25 - np.logaddexp(0, 0.25 - log_std)
        log_std = -5 + np.logaddexp(0, log_std + 5)
        error = np.array((mean - y[e]) ** 2 / np.exp(log_std) ** 2 + 2 * log_std)
        error[:, :3] *= rows.successor[e][:, None]  # the reward before an end is known
        nll += error.mean()
    loss, info = compiled(neubay.model_loss)(agent.model, agent, rows, neubay.Args(**SIZES))
    close(info["model_nll"], nll)
    close(loss, nll)


def test_neubay_keeps_each_member_as_it_was_at_its_least_error(neubay, agent, data):
    held_out = data.transitions.take(jnp.arange(12))
    error = np.asarray(compiled(neubay.squared_error)(agent.model, agent, held_out))
    old = jax.tree.map(jnp.zeros_like, agent.model)
    before = agent.replace(best_model=old, holdout_error=jnp.float32(error * [1.02, 1.005, 0.9]), waited=jnp.int32(2))
    after = jax.jit(neubay.judge)(before, held_out)  # better by 2 %, by half a percent, worse
    close(after.holdout_error, [error[0], 1.005 * error[1], 0.9 * error[2]])
    for new, kept in zip(jax.tree.leaves(agent.model), jax.tree.leaves(after.best_model), strict=True):
        np.testing.assert_array_equal(kept[0], new[0])
        assert not np.asarray(kept[1:]).any()
    assert after.waited == 0 and jax.jit(neubay.judge)(after, held_out).waited == 1


def test_neubay_a_network_that_says_nothing_predicts_that_nothing_changes(neubay, agent):
    r = np.random.default_rng(0)
    obs, action, reward = r.normal(2.0, 3.0, size=(50, 3)), r.uniform(-1, 1, (50, 2)), r.normal(5.0, 2.0, 50)
    agent = agent.replace(**jax.tree.map(jnp.float32, neubay.scale_of(obs, action, reward)))
    silent = jax.tree.map(jnp.zeros_like, agent.model)
    mean = compiled(neubay.predict)(silent, agent, jnp.float32(obs), jnp.float32(action))[0]
    outcome = np.asarray(mean) * agent.output_std + agent.output_mean
    np.testing.assert_allclose(outcome[..., :3], np.stack([obs] * 3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outcome[..., 3], reward.mean(), rtol=1e-4)


def test_neubay_disagreement_is_of_the_elites_means(neubay, agent, args):
    mean = np.random.default_rng(0).normal(size=(3, 6, 4))
    mean[1, 0, 2] += 100.0  # one dimension alone
    expected = np.sqrt((mean[[1, 2]].std(0) ** 2).mean(-1))  # of two members half their distance
    close(neubay.disagreement(agent, jnp.float32(mean), args), expected)
    close(expected[0], np.linalg.norm(mean[1, 0] - mean[2, 0]) / 2 / np.sqrt(4))


# --------------------------------------------------------------------------------------- the rollouts


@pytest.fixture
def data(neubay):
    """Three episodes of 20 rows whose observations follow each other."""
    r = np.random.default_rng(0)
    obs = np.cumsum(r.normal(size=(61, 3)), 0)
    rows = [obs[:-1], r.uniform(-1, 1, (60, 2)), r.normal(size=(60, 1)), np.zeros((60, 1)), obs[1:], np.ones((60, 1))]
    start = jnp.arange(60) // 20 * 20
    rows = jnp.float32(np.concatenate(rows, 1))
    return Sequences(Transitions(rows, None, None, SPEC, (*neubay.FIELDS, "successor")), start, start + 19)


@pytest.fixture
def certain(agent):
    """An agent whose models have no noise."""
    model = agent.nets.model.clone(log_std_range=(-31.0, -30.0))
    return agent.replace(nets=agent.nets._replace(model=model), usual=jnp.float32(0.5))


@functools.cache
def rolling(neubay):
    """Compiled once: rollouts that end beyond `limit`, in an environment where in truth nothing moves."""

    def still(obs, action, key):
        return obs, 0.0 * obs[:, 0], obs[:, 0] > jnp.inf

    def roll(agent, made, key, args, data, limit):
        return neubay.rollout(agent, made, key, args, data, lambda next_obs: next_obs[..., 0] > limit, still)

    return jax.jit(roll)


def rolled(neubay, agent, args, data, limit=np.inf, rounds=1):
    made = neubay.empty_rollouts(args, SPEC, 3)
    for i in range(rounds):
        made, info = rolling(neubay)(agent, made, jax.random.key(3 + i), args, data, limit)  # at first no ends
    return jax.tree.map(np.asarray, made), info


def test_neubay_a_rollout_goes_on_from_a_history_in_one_model(neubay, certain, args, data):
    made, info = rolled(neubay, certain, args, data)
    rows, members = np.asarray(data.transitions.rows), set()
    assert made.made == 1 and not made.valid[4:].any()
    for i in range(4):
        past = int(made.real[i].sum())
        assert past <= 2 and made.valid[i].sum() == past + 3
        first = int(np.abs(rows[:, :3] - made.obs[i, 0]).sum(1).argmin())
        for t in range(past + 3):
            if t < past:
                close(np.r_[made.obs[i, t], made.action[i, t], made.reward[i, t]], rows[first + t, :6])
            if t:
                close(made.obs[i, t], made.next_obs[i, t - 1])
        assert first % 20 == 0 or past == 2  # shorter only where the episode began
        mean = compiled(neubay.predict)(certain.best_model, certain, made.obs[i], made.action[i])[0]
        outcome = np.asarray(mean) * certain.output_std + certain.output_mean
        gap = np.abs(outcome[:, past : past + 3, :3] - made.next_obs[i, past : past + 3]).max((1, 2))
        members.add(int(gap.argmin()))
        assert gap.min() < 1e-4 < np.sort(gap)[1]
        close(made.reward[i, past : past + 3], outcome[gap.argmin(), past : past + 3, 3])
    assert members <= {1, 2}  # the elites
    close(info["rollout_length"], 3.0)
    begin = made.real.sum(1).astype(int)
    moved = np.linalg.norm(made.next_obs - made.obs, axis=-1)[(made.valid * (1 - made.real)) == 1]
    at = np.arange(4)
    whole = np.linalg.norm(made.next_obs[at, begin[:4] + 2] - made.obs[at, begin[:4]], axis=-1)
    close(info["error_1"], moved.mean())
    close(info["error_h"], whole.mean())


@pytest.mark.long
def test_neubay_the_last_rows_of_episodes_are_learned_from(neubay, certain, data):
    """Thirty episodes of two rows, every other of which terminates: a third of the rollouts are an end's history."""
    rows, row = np.array(data.transitions.rows), jnp.arange(60)
    rows[1::4, 6] = 1.0
    transitions = data.transitions.__class__(jnp.asarray(rows), None, None, SPEC, data.transitions.fields)
    short, n = Sequences(transitions, row // 2 * 2, row // 2 * 2 + 1), 3_000
    for history in (0, 1, 2):
        args = neubay.Args(**{**SIZES, "rollout_batch": n, "rollout_rounds": 1, "history": history})
        made, info = rolled(neubay, certain, args, short)
        first, past = np.abs(made.obs[:, 0, None] - rows[None, :, :3]).sum(-1).argmin(1), made.real.sum(1).astype(int)
        ends = (past > 0) & ((first + past) % 2 == 0)
        assert history == 0 and not ends.any() or abs(ends.mean() - 1 / 3) < 0.03
        np.testing.assert_array_equal(made.valid.sum(1), past + np.where(ends, 0, 3))
        np.testing.assert_array_equal(past[ends], min(history, 2))
        begun = (first + past)[~ends]  # the others begin in any row alike
        if history:
            at, i = past[ends] - 1, np.flatnonzero(ends)
            last = [getattr(made, x)[i, at] for x in ("obs", "action", "reward", "terminal", "next_obs")]
            close(np.concatenate([x.reshape(len(i), -1) for x in last], 1), rows[first[ends] + at, :10])
            np.testing.assert_allclose(np.bincount(begun, minlength=60) / n, 1 / 90, atol=0.008)
        close(info["rollout_length"], 3.0 * (~ends).mean())
        close(info["history_length"], past.mean())


def test_neubay_a_rollout_is_cut_where_models_disagree_and_ends_where_the_task_does(neubay, certain, args, data):
    made, _ = rolled(neubay, certain, args, data)
    imagined = made.valid * (1 - made.real)
    u = compiled(neubay.disagreement)(
        certain,
        compiled(neubay.predict)(certain.best_model, certain, made.obs.reshape(-1, 3), made.action.reshape(-1, 2))[0],
        args,
    )
    u = np.asarray(u).reshape(made.valid.shape)
    threshold = float(np.median(u[imagined == 1]))
    cut, _ = rolled(neubay, certain.replace(threshold=jnp.float32(threshold)), args, data)
    for i in range(4):
        past, over = int(made.real[i].sum()), u[i] > threshold
        stop = next((t for t in range(past, past + 3) if over[t]), past + 3)
        assert cut.valid[i].sum() == stop and not cut.terminal[i, :stop].any()  # cut, it bootstraps
    still = (cut.valid == 0) & (cut.real == 0)
    assert still.any()
    np.testing.assert_array_equal(cut.next_obs[still], cut.obs[still])  # what goes on nowhere cannot become infinite
    limit = float(np.median(made.next_obs[..., 0][imagined == 1]))
    ended, _ = rolled(neubay, certain, args, data, limit)
    for i in range(4):
        beyond = (made.next_obs[i, :, 0] > limit) & (imagined[i] == 1)
        last = int(np.argmax(beyond)) + 1 if beyond.any() else int(made.valid[i].sum())
        assert ended.valid[i].sum() == last and ended.terminal[i, last - 1] == beyond.any()


def test_neubay_penalty_and_ring(neubay, certain, args, data):
    plain, _ = rolled(neubay, certain, args, data)
    hard, info = rolled(neubay, certain, neubay.Args(**{**SIZES, "reward_penalty": 2.0}), data)
    for name in ("obs", "action", "seen", "next_obs", "valid"):  # the memory is not told of the penalty
        np.testing.assert_array_equal(getattr(hard, name), getattr(plain, name))
    np.testing.assert_array_equal(plain.reward, plain.seen)
    imagined = plain.valid * (1 - plain.real) == 1
    lost, at = (plain.reward - hard.reward)[imagined], (plain.obs[imagined], plain.action[imagined])
    u = compiled(neubay.disagreement)(certain, compiled(neubay.predict)(certain.best_model, certain, *at)[0], args)
    np.testing.assert_allclose(lost, 2 * u / 0.5, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(lost.shape, imagined.sum())
    np.testing.assert_array_equal((plain.reward == hard.reward)[:4][plain.real[:4] == 1], True)
    turned, _ = rolled(neubay, certain, args, data, rounds=6)
    assert turned.made == 6 and turned.valid.any(1).all()
    five, _ = rolled(neubay, certain, args, data, rounds=5)
    np.testing.assert_array_equal(turned.obs[4:], five.obs[4:])
    assert not np.array_equal(turned.obs[:4], five.obs[:4])


def test_neubay_refuses_what_it_cannot_learn_from(neubay, pendulum, tmp_path):
    for change in ({"n_elites": 4}, {"rollout_steps": 2.5}, {"holdout_rows": 0}):
        with pytest.raises(InputError, match="A model needs 5 rows"):
            neubay.main(small("neubay", pendulum, tmp_path / "run", **change))
    for change in ({}, {"truncation": False, "reward_penalty": (0.0, 1.0)}):
        with pytest.raises(InputError, match="One elite disagrees with nobody"):
            neubay.main(small("neubay", pendulum, tmp_path / "run", n_elites=1, **change))


@pytest.mark.long
def test_neubay_fits_and_sets_the_threshold(neubay, agent, data):
    args = neubay.Args(**{**SIZES, "disagreement_quantile": 0.5, "model_lr": 1e-2})
    agent = agent.replace(holdout_error=jnp.full(3, 1e9))
    keys, rows = jax.random.split(jax.random.key(0), 40), jnp.arange(12, 60)
    held_out = data.transitions.take(jnp.arange(12))
    fitted, info = jax.jit(neubay.fit)(agent, keys, args, data, held_out, rows)
    seen = data.transitions.take(rows)
    mean = compiled(neubay.predict)(fitted.best_model, fitted, seen.obs, seen.action)[0]
    close(fitted.threshold, np.quantile(neubay.disagreement(fitted, mean, args), 0.5))
    close(fitted.usual, np.mean(neubay.disagreement(fitted, mean, args)))
    start = compiled(neubay.squared_error)(agent.model, agent, held_out)
    assert info["elites_error"] < np.sort(start)[:2].mean()
    assert optax.tree_utils.tree_get(fitted.model_opt, "count") == fitted.fitted
    free = neubay.Args(**{**SIZES, "truncation": False})
    _, info = jax.eval_shape(neubay.fit, agent, keys, free, data, held_out, rows)
    assert "threshold" not in info  # a lane whose numbers are not finite has diverged


def test_neubay_cuts_at_a_quantile_of_the_datas_disagreement_or_nowhere(neubay, args):
    u = jnp.arange(11.0)
    assert neubay.cut_at(u, args) == 10.0 and neubay.cut_at(u, neubay.Args(disagreement_quantile=0.5)) == 5.0
    assert neubay.cut_at(u, neubay.Args(truncation=False)) == jnp.inf


def test_neubay_predicts_what_never_changes_as_it_is(neubay):
    """A constant input is 0 after its mean; a constant output stays there whatever the model makes of it."""
    x = np.float32([[3.0, 1.0], [3.0, 5.0]])
    scale = neubay.scale_of(x, 2 * x, np.float32([1.0, 9.0]))
    np.testing.assert_array_equal(scale["input_std"], [1.0, 2.0, 1.0, 4.0])
    np.testing.assert_allclose(scale["output_std"], [1e-6, 2.0, 4.0])
    np.testing.assert_allclose(7.0 * scale["output_std"] + scale["output_mean"], [3.0, 17.0, 33.0], rtol=1e-5)
