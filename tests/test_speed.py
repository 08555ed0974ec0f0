"""results/speed.py: what it counts, and that it measures a file."""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from subprocess import TimeoutExpired

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ALGORITHMS

from results import action_time, corl_speed, online_speed, speed
from results.peer_speed import _compiled
from results.speed import alone, arithmetic, candidates, products, run_case, write_log
from results.step_profile import KINDS, Program, profile


def counts(f, *shapes):
    return products(jax.make_jaxpr(f)(*(np.zeros(shape, np.float32) for shape in shapes)).jaxpr)


def test_a_products_arithmetic_is_two_for_each_pair():
    assert arithmetic(counts(lambda x, w: x @ w, (5, 3), (3, 7))) == 2 * 5 * 3 * 7
    batched = counts(lambda x, w: jax.vmap(jnp.dot)(x, w), (4, 5, 3), (4, 3, 7))
    assert arithmetic(batched) == 4 * 2 * 5 * 3 * 7
    assert arithmetic(counts(lambda x: x.sum() + jnp.tanh(x).max(), (5, 3))) == 0


def test_loops_count_as_often_as_they_run_and_branches_by_the_costliest():
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (jax.lax.scan(lambda d, _: (d @ w, None), c, None, 3)[0], None), x, None, 4)[0]

    assert arithmetic(counts(loop, (5, 3), (3, 3))) == 12 * 2 * 5 * 3 * 3

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: (x @ w).sum(), lambda: (x @ w @ w).sum())

    assert arithmetic(counts(jax.jit(branch), (5, 3), (3, 3))) == 2 * 2 * 5 * 3 * 3
    mapped = counts(lambda x, w: jax.lax.map(lambda row: row @ w, x), (6, 5, 3), (3, 7))
    assert arithmetic(mapped) == 6 * 2 * 5 * 3 * 7


def test_a_gradient_costs_two_products_more():
    def loss(w, x):
        return ((jax.nn.relu(x @ w)) ** 2).sum()

    forward = arithmetic(counts(loss, (3, 7), (5, 3)))
    assert arithmetic(counts(jax.grad(loss), (3, 7), (5, 3))) == 2 * forward  # none to the data
    assert arithmetic(counts(jax.grad(loss, (0, 1)), (3, 7), (5, 3))) == 3 * forward


def test_the_limits_program_makes_those_products_and_no_others():
    """None is left out by the compiler, which may not know that the results are thrown away."""
    asked = counts(lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, None, 6)[0], (50, 30), (30, 30))
    program = alone(asked, jax.devices()[:2])
    assert products(jax.make_jaxpr(program)().jaxpr) == asked
    assert program().shape == (2,)
    text = program.func.lower(*program.args).compile().as_text()
    assert "while" in text and ("dot" in text or "custom-call" in text or "matmul" in text)


def test_every_file_that_updates_on_a_dataset_is_measured():
    found = candidates()
    assert {"td3_bc", "hiql", "seabo", "otr", "decision_transformer", "pdt", "mopo"} <= set(found)
    assert not {"rlpd", "sac", "iql_finetune", "pql"} & set(found)
    assert set(found) <= {path.stem for path in ALGORITHMS}


@pytest.mark.parametrize("lanes", [3])
def test_a_case_is_timed_beside_its_limit(tmp_path, monkeypatch, lanes):
    monkeypatch.setattr(jax.config, "update", lambda *args: None)  # devices and precision are this process's
    log = tmp_path / "log.npz"
    assert math.isclose(write_log(log, "hopper", 2000), 2000 * 27 * 4 / 2**20)
    case = {"algorithm": "bc", "shape": "hopper", "lanes": lanes, "layout": "auto", "precision": "float32", "chunk": 2}
    found = run_case(
        case | {"log": str(log), "seconds": 0.0, "out": str(tmp_path / "run"), "turn": str(tmp_path / "turn")}
    )
    assert json.loads(json.dumps(found)) == found
    hidden, batch = found["hidden_dims"], found["batch_size"]
    sizes = [11, *hidden, 3]
    forward = sum(2 * batch * a * b for a, b in zip(sizes, sizes[1:], strict=False))
    assert math.isclose(found["mflop_per_update"] * 1e6, 3 * forward - 2 * batch * sizes[0] * sizes[1])
    assert 0 < found["share"]["min"] <= found["share"]["median"] <= found["share"]["max"]
    assert found["updates_per_s"]["median"] > 0 and found["layout"] == "map" and found["compile_s"] > 0


def test_what_comes_before_the_updates_is_as_short_as_a_call():
    defaults = {"updates": 5, "offline_updates": 9000, "vae_updates": 9000, "value_updates": 2, "holdout_every": 100}
    assert speed.before(defaults, 4) == {"vae_updates": 4, "holdout_every": 4}
    rollouts = {"rollout_every": 1000, "rollout_batch": 50_000, "termination": True}
    short = {"rollout_every": 4, "rollout_batch": 200, "termination": False}  # as many for each update
    assert speed.before(rollouts, 4) == short


@pytest.mark.parametrize("cores, turns", [(0, 1), (1, 2)])
def test_cases_side_by_side_take_turns_or_have_cores_of_their_own(tmp_path, monkeypatch, capsys, cores, turns):
    seen, running = [], []

    def measure(case, own, limit):
        running.append(own)
        assert len(running) <= 2 and limit == 7.0
        seen.append((tuple(own), case["turn"]))
        time.sleep(0.05)  # so that the other place is taken, too
        assert not own or [tuple(x) for x in running].count(tuple(own)) == 1
        running.remove(own)
        if case["lanes"] == 8:
            long = case["algorithm"] == "iql"
            raise TimeoutExpired("python", limit) if long else RuntimeError("a long story\ntoo large")
        return {"updates_per_s": {"median": 2.0}}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    out = tmp_path / "speed.json"
    words = "speed.py --algorithms bc iql --shapes hopper --lanes 1 8 --rows 2000 --limit 7 --at-once 2"
    monkeypatch.setattr(sys, "argv", [*words.split(), *["--cores", str(cores)] * bool(cores), "--out", str(out)])
    speed.main()
    record = json.loads(out.read_text())
    assert [case["asked"]["algorithm"] for case in record["cases"]] == ["bc", "iql"]
    assert record["hardware"]["cores"] == (cores or 2) and record["hardware"]["side_by_side"] == (2 if cores else 1)
    assert len({turn for _, turn in seen}) == turns
    assert {own for own, _ in seen} == ({(4,), (5,)} if cores else {()})
    told = {case["asked"]["algorithm"]: case["why"] for case in record["left_out"]}
    assert told == {"bc": "too large", "iql": "it took longer than 7 seconds"}
    errors = capsys.readouterr().err
    assert all(f"is left out: {why}\n" in errors for why in told.values())
    monkeypatch.setattr(speed, "measure", lambda *_: {"updates_per_s": {"median": 2.0}})
    speed.main()
    record = json.loads(out.read_text())
    assert len(record["cases"]) == 4 and not record["left_out"]


def test_a_case_leaves_an_accelerators_memory_to_the_cases_beside_it(tmp_path, monkeypatch):
    (tmp_path / "case.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    monkeypatch.setattr(speed, "__file__", str(tmp_path / "case.py"))
    assert speed.measure({}, (), 60)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    assert speed.measure({}, (), 60)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"  # who asks for it gets it


@pytest.mark.parametrize("name", ["deas", pytest.param("adaptdiffuser", marks=pytest.mark.long)])
def test_an_episodes_first_actions_are_those_that_act_gives(name, monkeypatch):
    """Of a file whose policy remembers a chunk, and of one with goals; two lanes, which differ."""
    sizes = {"adaptdiffuser": {"diffusion_steps": 2, "sampling_steps": 2, "window_steps": 4, "plan_steps": 4}}
    monkeypatch.setattr(action_time, "HIDDEN", (8, 8))
    monkeypatch.setattr(action_time, "STEPS", 3)
    act, _, calls = action_time.prepare_steps(name, 2, sizes.get(name, {}))
    found = np.asarray(act())
    assert found.shape == (2, 3, 3) and calls >= 1
    assert np.abs(found).max() <= 1 and np.abs(found[0] - found[1]).max() > 1e-3


def test_an_updates_time_is_told_by_kind():
    """A batch drawn, a product, its gradient, Adam: every kind of operation has the one that it is."""
    adam, table = optax.adam(1e-3), jnp.ones((1000, 30))

    def step(state, key):
        w, opt = state
        rows = table[jax.random.randint(key, (50,), 0, len(table))]
        updates, opt = adam.update(jax.grad(lambda w: (jnp.tanh(rows @ w) ** 2).mean())(w), opt)
        return (optax.apply_updates(w, updates), opt), None

    state, keys = (jnp.ones((30, 30)), adam.init(jnp.ones((30, 30)))), jax.random.split(jax.random.key(0), 3)
    compiled, _ = _compiled(jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0]), state, keys)
    program = Program(compiled.as_text())
    kinds = {name: program.kind(name) for names in program.inside.values() for name in names}
    assert {program.kind(n) for n, code in program.opcode.items() if code == "dot"} == {"products"}
    assert {program.kind(n) for n, code in program.opcode.items() if code == "gather"} == {"gather"}
    adams = [n for n, line in program.lines.items() if "sqrt(" in line]
    assert adams and {kinds[n] for n in adams} == {"optimiser"}
    assert {kinds[n] for n, line in program.lines.items() if " xor(" in line} == {"random numbers"}
    assert {kinds[n] for n, line in program.lines.items() if " tanh(" in line} == {"elementwise"}
    found = profile(compiled, lambda state: compiled(state, keys), state, 3, 1)
    assert set(found["shares"]) == set(KINDS) and math.isclose(sum(found["shares"].values()), 1.0)
    for kind in ("products", "elementwise", "optimiser", "gather", "random numbers"):
        assert found["shares"][kind] > 0, kind
    assert found["ms"] > 0 and found["operations"] > 5 and found["covered"] > 0


@pytest.mark.long
def test_interaction_compiled_and_on_the_host_makes_the_steps_that_are_counted(monkeypatch):
    """More than one look at the signals waits for, too."""
    seen = {}

    def timed(cases, rounds):
        for name, (work, online) in cases.items():
            work()
            seen[name] = online.env is not None, int(online.replay.inserted[0])
        return {"compiled": [1.0, 2.0, 3.0], "stepped": [2.0, 6.0, 12.0]}

    monkeypatch.setattr(online_speed, "timed", timed)
    monkeypatch.setattr(online_speed, "ROWS", 100)
    monkeypatch.setattr(online_speed, "SIZES", {"tiny": {"n_critics": 2, "hidden_dims": (4,), "batch_size": 4}})
    (case,) = online_speed.compiled_beside_stepped(online_speed.load_rlpd(), [1], 1, 60, 3)
    assert seen == {"compiled": (True, 60), "stepped": (False, 60)}
    assert case["ms"] == {"compiled": 2000 / 60, "stepped": 6000 / 60} and case["stepped_over_compiled"] == [2, 3, 4]


def test_corls_sides_are_asked_for_the_same_work(capsys):
    args = argparse.Namespace(rows=10, batch=4, threads=1, corl=Path("corl"), updates=32, torch_python=Path("py"))
    ours, theirs = corl_speed.commands_of("cql", 8, args).values()
    assert ours[-3:] == ["ours", "cql", "8"] and theirs[-3:] == ["CORL", "cql", "1"] and theirs[0] == "py"
    assert ours[1:-3] == theirs[1:-3] and "--updates 2 --serve" in " ".join(ours)
    assert corl_speed.main(["--corl", "nowhere"]) == 2 and "--torch-python names a Python" in capsys.readouterr().err
    assert corl_speed.main(["--corl", "nowhere", "--serve", "CORL", "iql", "1"]) == 2
    assert "There is no nowhere/algorithms/offline/iql.py." in capsys.readouterr().err
    assert corl_speed.main(["--corl", "nowhere", "--torch-python", "nowhere"]) == 2
    assert "nowhere is no Python that has torch." in capsys.readouterr().err
