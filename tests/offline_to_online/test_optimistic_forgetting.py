"""Optimistic forgetting: its losses and its planner in numpy, what is forgotten of a log, and an episode's labels."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import SPEC, agent_of, close, mlp

from shared.data import Dataset
from shared.env_models import costs
from shared.errors import InputError
from shared.jax_envs import JaxEnv
from shared.task import Task, env_task

SMALL = {
    "env": "PointGuarded-v0", "plan_samples": 4, "plan_iterations": 1, "elite_share": 0.5, "n_models": 2, "steps": 2,
    "updates_per_episode": 2, "forget_steps": 60,
}  # fmt: skip

module = load("optimistic_forgetting")
N = 5
ARGS = module.Args(
    hidden_dims=(6,), n_models=2, plan_samples=8, plan_iterations=2, elite_share=0.25, steps=3, batch_size=N,
    env_steps=6, buffer_size=6, discount=0.9, tau=0.25, learning_rate=0.1, constraint_threshold=0.5,
    safe_threshold=0.4, forget_steps=10, updates_per_episode=2,
)  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def agent():
    return agent_of(module, ARGS)


@pytest.fixture(scope="module")
def rows():
    r = np.random.default_rng(1)
    numbers = {"obs": r.normal(size=(N, 3)), "next_obs": r.normal(size=(N, 3)), "action": r.uniform(-1, 1, (N, 2))}
    flags = {"terminal": [0, 1, 1, 0, 0], "violation": [0, 1, 0, 0, 0], "goal": [0, 0, 1, 0, 0]}
    numbers |= flags | {"success": [0, 0, 1, 1, 0]}
    return module.Rows(**{n: jnp.float32(x) for n, x in numbers.items()})


def predicted(agent, obs, action, m):
    params = jax.tree.map(lambda x: x[m], agent.dynamics)
    mean, log_var = np.split(mlp(params, obs, action), 2, -1)
    return obs + mean, np.clip(log_var, -10, 2)


def one(params, s):
    return mlp(params, s)[:, 0]


@pytest.mark.long
def test_the_losses(agent, rows):
    """f_S and f_C learn from what is kept; dynamics, V and f_G from all rows."""
    params = {n: getattr(agent, n) for n in module.LEARNED}
    kept = module.Rows(*(x[jnp.array([0, 3, 1, 2, 2])] for x in rows))
    kept = kept._replace(obs=kept.obs + 0.5, next_obs=kept.next_obs - 0.5)
    total, found = jax.jit(module.total_loss)(params, agent, module.Batches(rows, kept), ARGS)
    b, k = (jax.tree.map(np.asarray, x) for x in (rows, kept))
    nll = []
    for m in range(2):
        mean, log_var = predicted(agent, b.obs, b.action, m)
        nll.append(((b.next_obs - mean) ** 2 / np.exp(log_var) + log_var) / 2)
    f = {n: partial(one, getattr(agent, n)) for n in (*module.LEARNED[1:], "target_value", "target_safe")}
    entropy = lambda x, y: -y * np.log(sigmoid(x)) - (1 - y) * np.log(1 - sigmoid(x))  # noqa: E731
    y_v = -1 + 0.9 * np.where(b.terminal, -10.0, f["target_value"](b.next_obs))
    y_v[2] = 0.0
    y_s = np.maximum(k.success, 0.3 * (1 - k.terminal) * sigmoid(f["target_safe"](k.next_obs)))
    at_ends = np.array([2, 3, 4])
    wanted = {
        "dynamics_loss": np.mean(nll),
        "value_loss": ((f["value"](b.obs) - y_v) ** 2).mean(),
        "constraint_loss": entropy(f["constraint"](k.next_obs), k.violation).mean(),
        "goal_loss": entropy(f["goal"](b.next_obs), b.goal).mean(),
        "safe_set_loss": (
            entropy(f["safe"](k.obs), y_s).sum()
            + entropy(f["safe"](k.next_obs[at_ends]), np.array([0, 1, 1])).sum()
        ) / N,
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        close(found[name], value)
    close(total, sum(wanted.values()))


def test_a_step_of_adam_then_one_of_the_targets(agent, rows):
    new, _ = jax.jit(module.update)(agent, module.Batches(rows, rows), ARGS)
    for name in module.LEARNED:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), getattr(new, name), getattr(agent, name))
        assert 0.05 < max(jax.tree.leaves(moved)) < 0.11  # Adam's first step is the step size
    for name in ("value", "safe"):
        target = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, getattr(new, name), getattr(agent, f"target_{name}"))
        jax.tree.map(close, getattr(new, f"target_{name}"), target)


def test_what_plans_are_worth(agent):
    r = np.random.default_rng(5)
    obs, actions = r.normal(size=3), r.uniform(-1, 1, (3, 20, 2))
    f = lambda name, s: mlp(getattr(agent, name), s[None])[0, 0]  # noqa: E731
    value, danger, safe = np.zeros((2, 20)), np.zeros((2, 20, 3)), np.ones((2, 20))
    for m, i in np.ndindex(2, 20):
        s, over = obs, False
        for t in range(3):
            s = predicted(agent, s, actions[t, i], m)[0]
            if not over:
                danger[m, i, t] = sigmoid(f("constraint", s))
                value[m, i] += sigmoid(f("goal", s)) - 1
                over = f("goal", s) >= 0
        if not over:
            value[m, i] += f("value", s)
            safe[m, i] = sigmoid(f("safe", s))
    value, danger, safe = value.mean(0), danger.mean(0).max(-1), safe.mean(0)
    most, least = np.sort(danger)[12:14].mean(), np.sort(safe)[6:8].mean()
    args = dataclasses.replace(ARGS, constraint_threshold=most, safe_threshold=least)
    scored = jax.jit(module.plan_scores)(agent, jnp.float32(obs), jnp.float32(actions), args)
    lost = 1e3 * ((2 + danger - most) * (danger > most) + (1 + least - safe) * (safe < least))
    np.testing.assert_allclose(scored[0], value - lost, rtol=1e-4, atol=1e-3)
    assert scored[1].tolist() == (lost == 0).tolist() and 0 < sum(lost == 0) < 13


def test_the_plan_is_the_best_sequence_that_was_drawn(agent):
    obs, key = jnp.float32([0.3, -0.2, 0.5]), jax.random.key_data(jax.random.key(4))
    action, feasible = jax.jit(module.plan)(agent, obs, key, ARGS)
    mean, std = np.zeros((3, 2)), np.ones((3, 2))
    score = jax.jit(module.plan_scores)
    for k in jax.random.split(key, 2):
        drawn = np.clip(mean[:, None] + std[:, None] * np.asarray(jax.random.normal(k, (3, 8, 2))), -1, 1)
        values, allowed = map(np.asarray, score(agent, obs, jnp.float32(drawn), ARGS))
        elites = drawn[:, np.argsort(-values)[:2]]
        mean, std = elites.mean(1), np.maximum(elites.std(1), 0.05)
    close(action, drawn[0, values.argmax()])
    assert feasible == allowed[values.argmax()]


def steps(*ends: str) -> Dataset:
    """Episodes of three rows, numbered by their obs; each ends at a goal, in a violation, or by the time limit."""
    n = 3 * len(ends)
    obs = np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    last, end = np.arange(n) % 3 == 2, np.repeat(ends, 3)
    reward = np.where(last & (end == "goal"), 1.0, 0.0).astype(np.float32)
    terminal = last & (end != "limit")
    next_obs = np.where((last & (end == "violation"))[:, None], -1.0, obs).astype(np.float32)
    action = np.zeros((n, 2), np.float32)
    return Dataset(Task("log", "", SPEC), obs, action, reward, next_obs, terminal, last)


def cost(obs):
    return np.asarray(obs)[..., 0] < 0


def test_labels_and_which_rows_stay():
    data = steps("limit", "goal", "violation", "goal", "limit")
    log = module.log_of(data, cost, dataclasses.replace(ARGS, n_demos=1))
    row = log.rows.obs[:, 0].astype(int).tolist()
    assert row == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14]  # the second success is left out
    assert log.episode.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    label = {n: {o for o, x in zip(row, getattr(log.rows, n), strict=True) if x} for n in module.Rows._fields[4:]}
    assert label == {"violation": {8}, "goal": {5}, "success": {3, 4, 5}}
    assert np.flatnonzero(log.stays).tolist() == [3, 4, 5, 8]
    for forgetting, wanted in (("optimistic", [0, 2, 4, 4]), ("fifo", [0, 3, 6, 6])):
        args = dataclasses.replace(ARGS, forget_share=0.5, forgetting=forgetting)
        assert [int(module.forgotten(log, t, args)) for t in (0, 5, 10, 20)] == wanted
    with pytest.raises(InputError, match="--n-demos 0: all episodes of 'log' are successful"):
        module.log_of(steps("goal", "goal"), cost, dataclasses.replace(ARGS, n_demos=0))


def test_rows_whose_next_state_is_not_known_have_no_labels():
    """Of terminal ones that is told: what an episode ended in is what the log is there for."""
    data = steps("limit", "goal", "violation", "violation")
    known = ~np.isin(np.arange(12), (2, 8))  # a time limit and a violation, at whose own states nothing is the matter
    data = dataclasses.replace(data, successor=known, next_obs=np.where(known[:, None], data.next_obs, data.obs))
    log = module.log_of(data, cost, dataclasses.replace(ARGS, n_demos=-1))
    assert log.rows.obs[:, 0].tolist() == np.flatnonzero(known).tolist()
    assert log.episode.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert log.rows.obs[log.rows.violation > 0, 0].tolist() == [11.0]
    assert module.ends_left_out(data).startswith("1 of 3 terminal rows of 'log' are left out")
    assert module.ends_left_out(steps("limit", "violation")) is None
    with pytest.raises(InputError, match="'log' does not say which states it leads to"):
        module.log_of(dataclasses.replace(data, successor=np.zeros(12, bool)), cost, ARGS)


def lane(agent, seed: int):
    return agent.replace(order_key=jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize("forgetting", ["optimistic", "fifo"])
def test_each_lane_draws_the_order_in_which_rows_are_forgotten(agent, forgetting):
    """Of fifo whole episodes, in every one the first step before the next: not the file's order."""
    log = module.log_of(steps(*["limit", "goal", "violation"] * 4), cost, dataclasses.replace(ARGS, n_demos=-1))
    args = dataclasses.replace(ARGS, forgetting=forgetting)
    order = jax.jit(lambda agent: module.staying(agent, log, args))
    one, again, other = (np.asarray(order(lane(agent, seed))) for seed in (0, 0, 1))
    assert one.tolist() == again.tolist() != other.tolist()
    firsts = set()
    for stays in (one, other, *(np.asarray(order(lane(agent, seed))) for seed in range(2, 30))):
        assert sorted(stays.tolist()) == list(range(36))
        oldest = stays[::-1]
        if forgetting == "fifo":
            assert (oldest.reshape(12, 3) == oldest[::3, None] + np.arange(3)).all() and (oldest[::3] % 3 == 0).all()
        else:
            assert set(stays[: int(log.stays.sum())].tolist()) == set(np.flatnonzero(log.stays).tolist())
        firsts.add(int(oldest[0]))
    assert len(firsts) > 6
    init = jax.jit(module.init, static_argnums=2)
    keys = {tuple(init(jax.random.key(seed), ARGS, SPEC).order_key.tolist()) for seed in (0, 1)}
    assert len(keys) == 2


def test_batches_are_of_experience_and_the_log_of_which_some_is_kept(agent, rows):
    log = module.log_of(steps("limit", "goal", "limit"), cost, dataclasses.replace(ARGS, n_demos=-1))
    args = dataclasses.replace(ARGS, batch_size=500, forget_share=1.0)
    order = jax.jit(module.staying)(agent, log, args)

    @jax.jit
    def seen(replay, t):
        batches = module.sample(jax.random.key(0), log, order, replay, t, args)
        return batches.all.obs[:, 0], batches.kept.obs[:, 0]

    fresh, none = set(np.asarray(rows.obs[:, 0])[:2].tolist()), module.no_experience(args, SPEC)
    full = module.insert(none, rows, 2)
    old = [set(np.asarray(log.rows.obs)[np.asarray(order)[: 9 - n], 0].tolist()) for n in (0, 3, 6)]
    assert old[2] == {3.0, 4.0, 5.0}  # the demonstration
    for replay, t, more, kept in ((none, 0, set(), 0), (full, 0, fresh, 0), (full, 5, fresh, 1), (full, 10, fresh, 2)):
        of_all, of_kept = (set(x.tolist()) for x in seen(replay, t))
        assert of_all == old[0] | more and of_kept == old[kept] | more
    again = module.insert(module.insert(full, rows, 3), rows, 3)  # eight rows in a ring of six
    ring = np.asarray(rows.obs)[[1, 2, 2, 0, 1, 0], 0]
    assert sorted(again.rows.obs[:, 0].tolist()) == sorted(ring.tolist()) and again.inserted == 8


def test_violations_are_counted_that_the_ring_has_let_go_of(rows):
    """The second of an episode's rows is one; six rows are kept of fifteen."""
    replay = module.no_experience(ARGS, SPEC)
    for _ in range(5):
        replay = module.insert(replay, rows, 3)
    assert len(replay.rows.goal) == 6 and replay.rows.violation.sum() == 2
    assert replay.violations == 5
    assert module.insert(replay, rows, 1).violations == 5  # the row behind an episode's end is none


def world(end: str) -> JaxEnv:
    """Counting steps: the third one leads to a goal, into a hazard, or nowhere; the fourth is the last one."""

    def step(state, action, keys):
        new = state + 1
        obs = jnp.where((new == 3) & (end == "violation"), -1.0, new) * jnp.ones(3)
        return new, obs, jnp.where((new == 3) & (end == "goal"), 1.0, 0.0), (new == 3) & (end != "limit"), new >= 4

    return JaxEnv(lambda keys: (jnp.int32(0), jnp.zeros(3)), step, None)


@pytest.mark.parametrize("end", ["goal", "violation", "limit"])
def test_an_episode_is_labelled_by_how_it_ended(agent, end):
    play = jax.jit(lambda key: module.play(agent, key, ARGS, world(end), lambda obs: obs[..., 0] < 0, 6))
    rows, n, info = play(jax.random.key(0))
    length = 4 if end == "limit" else 3
    assert n == length and info["steps"] == length
    assert rows.obs[:length, 0].tolist() == list(range(length))
    assert (info["success"], info["violation"]) == (end == "goal", end == "violation")
    assert rows.success[:length].tolist() == [float(end == "goal")] * length
    assert rows.violation[:length].tolist() == [0, 0, float(end == "violation"), 0][:length]
    assert rows.terminal[:length].tolist() == [0, 0, float(end != "limit"), 0][:length]
    assert 0.0 <= info["unfeasible"] <= 1.0


@pytest.mark.long
def test_each_online_episode_is_followed_by_updates_and_forgets_more(agent):
    """Two episodes of at most five steps: of six rows that may be forgotten three are after one, all after both."""
    log = module.log_of(steps("limit", "goal", "limit"), cost, dataclasses.replace(ARGS, n_demos=-1))
    args = dataclasses.replace(ARGS, forget_share=1.0)
    more = {"args": args, "log": log, "env": world("violation"), "cost": lambda obs: obs[..., 0] < 0, "limit": 5}
    online = jax.jit(lambda carry, keys, start: module.train_online(carry, keys, start=start, **more))
    one, first = online((agent, module.no_experience(args, SPEC)), jax.random.split(jax.random.key(0), 5), 0)
    two, second = online(one, jax.random.split(jax.random.key(1), 5), 5)
    assert (one[1].inserted, two[1].inserted) == (3, 6)
    assert (first["violations"], second["violations"]) == (1, 1) and two[1].rows.violation.sum() == 2
    assert (first["kept_rows"], second["kept_rows"]) == (6, 3)
    assert [int(x.opt[0].count - agent.opt[0].count) for x, _ in (one, two)] == [2, 4]


def test_costs_are_read_off_observations_and_asked_of_who_tells_them(pendulum, tmp_path):
    cost = costs(env_task("PointGuarded-v0"))
    assert cost(jnp.float32([[3.5, 2.5, 7.5, 7.5], [1.5, 1.5, 7.5, 7.5]])).tolist() == [1, 0]
    with pytest.raises(InputError, match="What states cost is needed, and Pendulum-v1 does not tell it"):
        costs(env_task("Pendulum-v1"))
    args = small("optimistic_forgetting", pendulum, tmp_path / "run", env="phys2d/Pendulum-v0")
    with pytest.raises(InputError, match="What states cost is needed"):
        module.main(args)


@pytest.mark.long
def test_agents_go_on_in_a_run_of_another_length(data_for, tmp_path):
    """What a run has seen online is none of its agents' parts."""
    data, name = data_for("optimistic_forgetting"), "optimistic_forgetting"
    sizes = {"env_steps": 80, "offline_updates": 80, "log_every": 80, "eval_every": 160, "offline_eval_every": 80}
    first = train(name, data, tmp_path / "first", **sizes)
    longer = sizes | {"env_steps": 160, "buffer_size": 100, "from_run": str(tmp_path / "first")}
    then = train(name, data, tmp_path / "then", **longer)
    assert first.keys() == then.keys() and not [path for path in first if "replay" in path or "inserted" in path]
    (first,), (then,) = (x["[0].opt[0].count"] for x in (first, then))
    assert (first, then) == (80 + 2, 80 + 2 * 2)
    with np.load(tmp_path / "then" / "checkpoint" / "state.npz") as file:
        assert file["[1].rows.goal"].shape == (1, 100) and 0 < file["[1].inserted"] <= 160
    assert json.loads((tmp_path / "then" / "run.json").read_text())["status"] == "finished"


def test_an_episode_fits_into_the_buffer(data_for, tmp_path):
    data, name = data_for("optimistic_forgetting"), "optimistic_forgetting"
    with pytest.raises(InputError, match="--buffer-size 79 is less than an episode's 80 steps"):
        module.main(small(name, data, tmp_path / "run", buffer_size=79))
