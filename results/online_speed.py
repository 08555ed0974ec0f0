"""Environment steps per second of RLPD against a plain loop, and against its authors' own code.

    git clone https://github.com/ikostrikov/rlpd /tmp/rlpd
    pip install --no-deps --target /tmp/peer-packages tfp-nightly dm-tree six decorator cloudpickle gast

  python results/online_speed.py                       UTD 1 and 20, 1 and 8 lanes, into results/online_speed.json
  python results/online_speed.py --rounds 10 --utd 1   other rounds, some of the cases
  python results/online_speed.py --rlpd /tmp/rlpd --packages /tmp/peer-packages     the authors' code, too
  python results/online_speed.py --compiled            instead, what it gains that a JAX environment is compiled, too

Both step Hopper-v5 and do the same updates at the paper's sizes (10 critics of two layers of 256, batch 256, half of it
data). The plain loop keeps its transitions in NumPy, samples there, and calls a compiled critic update G times and a
compiled actor update once per environment step. The authors' agent and buffers are stepped as in their training
script, one environment. Rounds of all are interleaved, so that ratios hold on a busy machine. A profile says what a
step of ours is made of: the environments (their observations included), the transfer of what they gave, the arithmetic
of the compiled call, and the host: the call itself (a program that hands the same arrays through) and all the rest.

With --compiled it is PointUMaze-v0, which is written in JAX: a chunk of steps as one program, environment included,
beside the same steps made one by one through gymnasium, with the paper's sizes and with small ones. These cases stand
beside the others in the file, which are left as they are.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import shared.online
from results.peer_speed import commit
from shared.lanes import use_cpu_devices
from shared.online import Interaction
from shared.run import Run
from shared.task import env_task
from shared.transitions import FIELDS, Batch, Transitions, unpack

ROWS = 100_000
"""Synthetic transitions of the dataset."""
SIZES = {"the paper's": {}, "small": {"n_critics": 2, "hidden_dims": (32, 32), "batch_size": 32}}
"""Of networks and batches, with --compiled."""


def load_rlpd():
    """The algorithm's file as a module."""
    spec = importlib.util.spec_from_file_location("our_rlpd", ROOT / "algorithms" / "hybrid" / "rlpd.py")
    module = sys.modules["our_rlpd"] = importlib.util.module_from_spec(spec)  # theirs is a package of that name
    spec.loader.exec_module(module)
    return module


def ours(
    rlpd, task, rows: np.ndarray, lanes: int, utd: int, steps: int, out: Path, **sizes: Any
) -> tuple[Callable[[], None], Interaction]:
    """`steps` environment steps of every lane, as rlpd.py's main makes them; and what makes them."""
    args = rlpd.Args(seeds=lanes, utd=utd, env_steps=100 * steps, log_every=steps, learning_starts=0, out=str(out))
    args = dataclasses.replace(args, **sizes)
    run = Run(rlpd.__file__, args, task, rlpd.act)
    data = run.replicate(Transitions(jnp.asarray(rows), None, None, task.spec, FIELDS))
    agent = run.init(partial(rlpd.init, spec=task.spec))
    online = Interaction(run, data, rlpd.explore, rlpd.sample, rlpd.update, updates_per_step=utd)
    state = {"agent": agent}

    def work() -> None:
        until = run.done + steps
        while run.done < until:
            keys = next(run.chunks())[:, : until - run.done]
            state["agent"], metrics = online.steps(state["agent"], keys)
            jax.block_until_ready(metrics)
            run.done += keys.shape[1]

    return work, online


def plain(rlpd, task, rows: np.ndarray, utd: int, steps: int) -> Callable[[], None]:
    """The same for one agent in one environment, in Python."""
    args = dataclasses.replace(rlpd.Args(), utd=1)
    agent = rlpd.init(jax.random.key(0), args, task.spec)
    act = jax.jit(lambda agent, obs, key: rlpd.explore(agent, obs[None], key, args)[0])
    update_critic = jax.jit(lambda agent, batch, key: rlpd.update_critic(agent, batch, key, args)[0])
    update_both = jax.jit(lambda agent, batch, key: rlpd.update(agent, batch, key, args)[0])
    env, half, random = task.make_env(), args.batch_size // 2, np.random.default_rng(0)
    replay, state = np.zeros_like(rows), {"agent": agent, "n": 0, "key": jax.random.key(1)}
    state["obs"] = env.reset(seed=0)[0].astype(np.float32)

    def batch() -> Batch:
        new = replay[random.integers(state["n"], size=half)]
        return unpack(np.concatenate([rows[random.integers(len(rows), size=half)], new]), task.spec)

    def key() -> jax.Array:
        state["key"], new = jax.random.split(state["key"])
        return new

    def work() -> None:
        for _ in range(steps):
            action = np.asarray(act(state["agent"], state["obs"], key()))
            obs, reward, terminal, truncated, _ = env.step(task.to_env(action))
            obs = obs.astype(np.float32)
            replay[state["n"] % len(replay)] = np.concatenate([state["obs"], action, [reward, terminal], obs])
            state["obs"], state["n"] = obs, state["n"] + 1
            if terminal or truncated:
                state["obs"] = env.reset()[0].astype(np.float32)
            for _ in range(utd - 1):
                state["agent"] = update_critic(state["agent"], batch(), key())
            last = jax.tree.map(lambda x: x[None], batch())
            state["agent"] = update_both(state["agent"], last, key())
        jax.block_until_ready(state["agent"])

    return work


def released(checkout: Path, task, rows: np.ndarray, utd: int, steps: int) -> Callable[[], None]:
    """The same by the authors' agent and buffers."""
    from results.jax_references import Space, packages

    sys.modules["gym"] = gymnasium  # of the older one they use what is the same here
    sys.modules["gym.spaces"], sys.modules["gym.utils"] = gymnasium.spaces, gymnasium.utils
    peer, args, spec = packages(checkout, frozen=True), load_rlpd().Args(), task.spec
    data, ring = peer("rlpd.data.dataset"), peer("rlpd.data.replay_buffer")
    env, half = task.make_env(), args.batch_size * utd // 2
    size, ends = spec.obs_shape[0], np.cumsum([spec.obs_shape[0], spec.action_dim, 1, 1])
    obs, action, reward, terminal, next_obs = np.split(rows, ends, axis=1)
    named = {"observations": obs, "next_observations": next_obs, "actions": action, "rewards": reward[:, 0]}
    old = data.Dataset(named | {"masks": 1.0 - terminal[:, 0], "dones": terminal[:, 0] > 0})
    space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    new = ring.ReplayBuffer(space, env.action_space, len(rows))
    agent = peer("rlpd.agents.sac.sac_learner").SACLearner.create(
        0, Space(size), Space(spec.action_dim), hidden_dims=args.hidden_dims, num_qs=args.n_critics,
        num_min_qs=args.subset_size, critic_layer_norm=True, backup_entropy=args.backup_entropy,
    )  # fmt: skip
    state = {"agent": agent, "obs": env.reset(seed=0)[0].astype(np.float32)}

    def work() -> None:
        for _ in range(steps):
            action, state["agent"] = state["agent"].sample_actions(state["obs"])
            obs, reward, terminal, truncated, _ = env.step(task.to_env(action))
            obs = obs.astype(np.float32)
            seen = {"observations": state["obs"], "actions": action, "rewards": reward, "next_observations": obs}
            new.insert(seen | {"masks": 1.0 - terminal, "dones": terminal or truncated})
            state["obs"] = env.reset()[0].astype(np.float32) if terminal or truncated else obs
            parts = new.sample(half), old.sample(half)
            both = {n: np.stack([p[n] for p in parts], 1).reshape(2 * half, *parts[0][n].shape[1:]) for n in parts[0]}
            state["agent"], _ = state["agent"].update(both, utd)
        jax.block_until_ready(state["agent"])

    return work


def timed(cases: dict, rounds: int) -> dict[Any, list[float]]:
    """{case: seconds of every round}, after one that compiles; the cases take turns."""
    for work, _ in cases.values():
        work()
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, (work, _) in cases.items():
            start = time.perf_counter()
            work()
            seconds[case].append(time.perf_counter() - start)
    return seconds


def compiled_beside_stepped(rlpd, lanes: list[int], utd: int, steps: int, rounds: int) -> list[dict]:
    """Of every size and number of lanes: the whole interaction as one program, and its environment on the host."""
    task, found = env_task("PointUMaze-v0"), []
    rows = synthetic_rows(task)
    for (name, sizes), n in itertools.product(SIZES.items(), lanes):
        with tempfile.TemporaryDirectory() as folder:
            make = partial(ours, rlpd, task, rows, n, utd, steps, **sizes)
            cases = {"compiled": make(Path(folder) / "compiled")}
            with mock.patch.object(shared.online, "jax_env", lambda task: None):
                cases["stepped"] = make(Path(folder) / "stepped")
            seconds = timed(cases, rounds)
        ratios = [a / b for a, b in zip(seconds["stepped"], seconds["compiled"], strict=True)]
        ms = {case: 1e3 * statistics.median(times) / steps for case, times in seconds.items()}
        found.append({"sizes": name, "lanes": n, "utd": utd, "ms": ms, "stepped_over_compiled": ratios})
        print(name, n, "lanes", ms, f"x{statistics.median(ratios):.2f}", flush=True)
    return found


def synthetic_rows(task) -> np.ndarray:
    """Random transitions, none terminal."""
    before = task.spec.obs_shape[0] + task.spec.action_dim
    rows = np.random.default_rng(0).uniform(-1, 1, (ROWS, before + 2 + task.spec.obs_shape[0])).astype(np.float32)
    rows[:, before + 1] = 0.0
    return rows


def profile(work: Callable[[], None], online: Interaction, lanes: int, steps: int) -> dict:
    """What a step of all lanes is made of: shares of its time, one thing waiting for the other, and milliseconds."""
    spent = dict.fromkeys(("environment", "transfer", "call", "hand through"), 0.0)
    envs_step, compiled, hand_through = online.envs.step, online._step, jax.jit(lambda *x: x[:4])
    few = jax.tree.map(jnp.copy, dataclasses.replace(online.replay, rows=online.replay.rows[:, :1]))

    def timed(name, f, *args, **more):
        start = time.perf_counter()
        out = jax.block_until_ready(f(*args, **more))
        spent[name] += time.perf_counter() - start
        return out

    def step(agent, replay, total, memory, now, *rest, learning):
        now = timed("transfer", jax.device_put, now)
        timed("hand through", hand_through, agent, few, total, memory, now, *rest)
        return timed("call", compiled, agent, replay, total, memory, now, *rest, learning=learning)

    online._step = step
    online.envs.step = partial(timed, "environment", envs_step)
    work()  # compiles
    spent |= dict.fromkeys(spent, 0.0)
    start = time.perf_counter()
    work()
    whole = time.perf_counter() - start - spent["hand through"]
    online._step, online.envs.step = compiled, envs_step
    parts = {"environment": spent["environment"], "transfer": spent["transfer"]}
    parts["arithmetic"] = max(spent["call"] - spent["hand through"], 0.0)
    parts["host"] = whole - sum(parts.values())
    return {"lanes": lanes, "ms": 1e3 * whole / steps, "shares": {name: x / whole for name, x in parts.items()}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utd", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="environment steps of a round at UTD 1")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "online_speed.json")
    parser.add_argument("--rlpd", type=Path, help="a checkout of ikostrikov/rlpd")
    parser.add_argument("--packages", type=Path, help="a folder of packages that it needs")
    parser.add_argument("--compiled", action="store_true", help="an environment in JAX, compiled and on the host")
    options = parser.parse_args()
    if options.packages:
        sys.path.append(str(options.packages))
    use_cpu_devices(max(options.lanes))
    rlpd, task = load_rlpd(), env_task("Hopper-v5")
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    record: dict[str, Any] = {
        "command": " ".join(["results/online_speed.py", *sys.argv[1:]]),
        "hardware": {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor() or platform.machine()},
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
    }
    if options.compiled:
        found = compiled_beside_stepped(rlpd, options.lanes, options.utd[0], options.steps, options.rounds)
        options.out.write_text(json.dumps(earlier | {"compiled": record | {"cases": found}}, indent=1) + "\n")
        return
    rows = synthetic_rows(task)
    cases: dict[tuple, tuple[Callable, int]] = {}
    online: dict[tuple, Interaction] = {}
    with tempfile.TemporaryDirectory() as folder:
        for utd in options.utd:
            steps = max(4, options.steps // utd)
            cases["plain loop", 1, utd] = plain(rlpd, task, rows, utd, steps), steps
            if options.rlpd:
                cases["the authors' code", 1, utd] = released(options.rlpd, task, rows, utd, steps), steps
            for lanes in options.lanes:
                work, online[lanes, utd] = ours(
                    rlpd, task, rows, lanes, utd, steps, Path(folder) / f"{lanes}-{utd}"
                )  # fmt: skip
                cases["rlpd", lanes, utd] = work, steps
        seconds = timed(cases, options.rounds)
        profiles = [
            {"utd": utd} | profile(cases["rlpd", lanes, utd][0], one, lanes, cases["rlpd", lanes, utd][1])
            for (lanes, utd), one in online.items()
        ]
    record |= {"cases": [], "profiles": profiles}
    if options.rlpd:
        record["authors"] = commit(options.rlpd)
    if "compiled" in earlier:
        record["compiled"] = earlier["compiled"]
    for (name, lanes, utd), times in seconds.items():
        rates = [lanes * cases[name, lanes, utd][1] / t for t in times]
        paired = [a / b for a, b in zip(seconds["plain loop", 1, utd], times, strict=True)]
        theirs = seconds.get(("the authors' code", 1, utd))
        record["cases"].append(
            {
                "name": name,
                "lanes": lanes,
                "utd": utd,
                "env_steps_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
                "gradient_steps_per_s": utd * statistics.median(rates),
                "ratio_to_plain_loop": lanes * statistics.median(paired),
            }
        )
        if theirs:
            own = [lanes * a / b for a, b in zip(theirs, times, strict=True)]
            record["cases"][-1]["ratio_to_authors"] = statistics.median(own)
        one = record["cases"][-1]
        print(
            f"{name:>10} {lanes:>2} lanes  UTD {utd:>2} {one['env_steps_per_s']['median']:>9.1f} env steps/s"
            f" {one['gradient_steps_per_s']:>9.1f} gradient steps/s  x{one['ratio_to_plain_loop']:.2f}"
            + (f"  x{one['ratio_to_authors']:.2f} the authors'" if theirs else "")
        )
    for one in profiles:
        print(one)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
