"""Updates per second, as a share of what the machine's matrix products allow; evaluation steps per second; memory.

  python results/speed.py                                       every file that updates on a dataset, into speed.json
  python results/speed.py --algorithms td3_bc --lanes 1 8 32    some of them; the others' cases stay in the file
  python results/speed.py --lanes 1 8 64 --layouts map vmap --precisions float32 bfloat16 --chunks 12 120
  python results/speed.py --at-once 6 --cores 2                 six cases side by side, each on two cores of its own

A case is a job of the algorithm's file, with the paper's network and batch sizes, on 1M synthetic transitions of a D4RL
shape, without evaluation. After each round of compiled calls of its updates their very matrix products are made by
themselves, on all cores, and the two times are compared: the share of the limit is arithmetic per second of the one
over that of the other, in rounds of which both halves ran back to back, so that it says the same on a slow machine and
on a fast one. Compiling and loading are apart. One update = one critic step on one batch, of one lane; rates are sums
over the lanes.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES = {"hopper": (11, 3), "ant": (111, 8)}
BOTH_SHAPES = ("td3_bc", "iql", "rebrac", "cql")
"""The others are measured in the first shape only."""
ROWS = 1_000_000
ROUNDS, SECONDS, LONG_ENOUGH = 3, 4.0, 0.1
"""Rounds at least, and seconds of them; a round is so many calls as last LONG_ENOUGH together."""
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
"""Of matrix products. JAX's own choice is float32 on a CPU, tensorfloat32 on an accelerator that has it."""
LIMIT = 600
"""Seconds after which a case is given up."""
CASE = ("algorithm", "shape", "lanes", "layout", "precision", "chunk")


def candidates() -> list[str]:
    """The files that update on a dataset: they have --updates, or (sequence models) --offline-updates."""
    found = [path for path in sorted(ROOT.glob("algorithms/*/*.py")) if "(RunArgs" not in path.read_text()]
    bases = ("(OfflineArgs)", "(GoalArgs)", "(DemoArgs)", "(LabelArgs)")
    pretrained = [path for path in found if path.parent.name == "sequence" and "(FinetuneArgs)" in path.read_text()]
    return [path.stem for path in found if path in pretrained or any(base in path.read_text() for base in bases)]


def write_log(path: Path, shape: str, rows: int) -> float:
    """A log of episodes of 1000 steps whose states fill three dimensions of the space; returns its MiB on a device."""
    obs_dim, action_dim = SHAPES[shape]
    random = np.random.default_rng(1)
    phase = random.uniform(0.0, 2 * np.pi, (-(-rows // 1000), 1, 3)) + 0.02 * np.arange(1000)[None, :, None]
    phase = phase * [1.0, 1.3, 1.7]
    obs = np.sin(phase.reshape(-1, 3)[:rows] @ random.normal(size=(3, obs_dim))).astype(np.float32)
    np.savez(
        path,
        observations=obs,
        actions=random.uniform(-1.0, 1.0, (rows, action_dim)).astype(np.float32),
        rewards=random.uniform(-1.0, 1.0, rows).astype(np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % 1000 == 999,
    )
    return rows * (2 * obs_dim + action_dim + 2) * 4 / 2**20


# ------------------------------------------------------------------------------- the machine's limit


def products(jaxpr, times: int = 1) -> collections.Counter:
    """How often a program makes each matrix product, {(shapes and types of both sides, dimensions): times}.

    What a loop of known length repeats counts so often; of a `while` one pass counts, of branches the costliest.
    Under a `shard_map` those of one device count.
    """
    found: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            sides = tuple((x.aval.shape, str(x.aval.dtype)) for x in equation.invars)
            found[(sides, equation.params["dimension_numbers"])] += times
        inner = [products(sub, times * equation.params.get("length", 1)) for sub in within(equation)]
        if equation.primitive.name == "cond" and inner:
            inner = [max(inner, key=arithmetic)]
        for counts in inner:
            found.update(counts)
    return found


def within(equation) -> Iterator:
    """The programs inside an equation."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            one = getattr(one, "jaxpr", one)  # a closed one
            if hasattr(one, "eqns"):
                yield one


def arithmetic(counts: collections.Counter) -> float:
    """Floating-point operations of the products: two for each pair of numbers that is multiplied and added."""
    total = 0.0
    for (((left, _), (right, _)), ((contracted, _), (batched, _))), times in counts.items():
        shared = math.prod(left[i] for i in (*contracted, *batched))
        free = math.prod(left) // shared * (math.prod(right) // shared)
        total += 2.0 * times * free * shared
    return total


def alone(counts: collections.Counter, devices: list) -> Callable:
    """A compiled program that makes these products on each of `devices`, and nothing else; call it with no argument."""
    import jax
    import jax.numpy as jnp

    def on_device(lane):
        total = lane.sum()
        for (((left, left_type), (right, right_type)), numbers), times in counts.items():

            def step(a, _, numbers=numbers, right=right, right_type=right_type):
                b = jnp.ones(right, right_type)
                product = jax.lax.optimization_barrier(jax.lax.dot_general(a, b, numbers))
                first = product[(0,) * product.ndim].astype(a.dtype)
                return a.at[(0,) * a.ndim].add(1e-20 * first), None  # so that no product is that of before

            a = jnp.full(left, 0.5, left_type) + total.astype(left_type) * 0
            total = total + jax.lax.scan(step, a, None, length=times)[0].ravel()[0].astype(total.dtype)
        return total[None]

    mesh = jax.make_mesh((len(devices),), ("lane",), (jax.sharding.AxisType.Auto,), devices=devices)
    spec = jax.sharding.PartitionSpec("lane")
    program = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    return functools.partial(program, np.zeros(len(devices), np.float32))


# ------------------------------------------------------------------------------------------- one case


class Enough(Exception):
    """A case has been timed."""


def load(algorithm: str):
    """The module of an algorithm file."""
    if algorithm in sys.modules:
        return sys.modules[algorithm]
    path = next(ROOT.glob(f"algorithms/*/{algorithm}.py"))
    spec = importlib.util.spec_from_file_location(algorithm, path)
    module = sys.modules[algorithm] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(call: Callable) -> tuple[float, object]:
    """Seconds of a call until its result is there, and the result."""
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def run_case(case: dict) -> dict:
    """Trains until the updates have been timed; {updates_per_s, share, compile_s, memory_mib, ...}.

    It is a process of its own: how many devices a CPU has is fixed when JAX starts.
    """
    import jax

    from shared.run import Run

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    jax.config.update("jax_default_matmul_precision", case["precision"])
    module, chunk, lanes = load(case["algorithm"]), case["chunk"], case["lanes"]
    rounds: dict[str, list] = {"ours": [], "limit": []}
    made: dict[str, Any] = {}
    turn = filelock.FileLock(case["turn"])
    over_lanes = Run.over_lanes

    def watched(run, f, in_axes, donate=False, vmap=False):
        program = over_lanes(run, f, in_axes, donate, vmap)
        if not donate:
            return program
        seen: list = []

        def call(*args):
            if run.done < 0 and not run.offline:  # a model or an autoencoder comes first
                return program(*args)
            if not seen:
                counts = products(jax.make_jaxpr(program)(*args).jaxpr)
                used = run.mesh.devices.size
                seen.append((alone(counts, jax.local_devices()), arithmetic(counts) * used))
                made.update(flop=seen[0][1], devices=used, args=run.args, out=run.out)
                result = program(*args)
                jax.block_until_ready((result, seen[0][0]()))
                turn.acquire()
                return result
            calls: list[float] = []
            while sum(calls) < LONG_ENOUGH:  # again with the agents that came of it
                seconds, result = timed(functools.partial(program, *args))
                calls.append(seconds)
                args = (result[0], *args[1:])
            rounds["ours"].append(statistics.fmean(calls))
            rounds["limit"].append(statistics.fmean(timed(seen[0][0])[0] for _ in calls))
            made["seconds"] = made.get("seconds", 0.0) + sum(calls)
            if len(rounds["ours"]) >= ROUNDS and made["seconds"] >= case["seconds"]:
                raise Enough
            return result

        return call

    Run.over_lanes = watched
    defaults = {f.name: f.default for f in dataclasses.fields(module.Args)}
    total = 100 * chunk  # the calls are enough before that
    settings = dict.fromkeys(("updates", "eval_every", "checkpoint_every"), total) | before(defaults, chunk)
    settings |= {"log_every": chunk, "seeds": lanes, "layout": case["layout"], "compile_cache": False}
    settings |= {"dataset": case["log"], "env": "none", "preset": "none", "out": case["out"]}
    if "offline_updates" in defaults:  # an environment comes after them
        settings |= {"offline_updates": settings.pop("updates"), "offline_eval_every": total}
        settings |= {"env_steps": total, "env": "Hopper-v5"}
    settings |= case.get("settings", {})
    try:
        with contextlib.suppress(Enough):
            module.main(module.Args(**settings))
    finally:
        turn.release()
        Run.over_lanes = over_lanes
    record = json.loads((made["out"] / "run.json").read_text())
    rates = [lanes * chunk / seconds for seconds in rounds["ours"]]
    all_devices = len(jax.local_devices())
    per_device = made["flop"] / made["devices"]
    padded = -(-lanes // made["devices"]) * made["devices"]  # the last lane again, until each device has as many
    shares = [
        (made["flop"] / ours) / (per_device * all_devices / limit)
        for ours, limit in zip(rounds["ours"], rounds["limit"], strict=True)
    ]
    return {
        **{name: case[name] for name in CASE},
        "layout": record["layout"],  # where it was "auto"
        "updates_per_s": summary(rates),
        "share": summary(shares),
        "mflop_per_update": made["flop"] / (padded * chunk) / 1e6,
        "limit_gflop_per_s": summary([per_device * all_devices / limit / 1e9 for limit in rounds["limit"]]),
        "compile_s": record["compile_s"],
        "memory_mib": record["peak_memory_mib"],
        "batch_size": getattr(made["args"], "batch_size", None),  # HarmoDT has batches of each task
        "hidden_dims": list(getattr(made["args"], "hidden_dims", ())),
        "devices": made["devices"],
        "cores": len(os.sched_getaffinity(0)),
        "device": record["hardware"]["device"],
        "jax": record["versions"]["jax"],
    }


def before(defaults: dict[str, Any], chunk: int) -> dict[str, Any]:
    """Settings by which what comes before the updates, or between many of them, is as short as one call.

    Rollouts in a model begin every call, as many for each update as by default; they end nowhere.
    """
    phases = [name for name in defaults if name.endswith("_updates") and name != "offline_updates"]
    settings = {name: chunk for name in phases if isinstance(defaults[name], int) and defaults[name] >= 1000}
    settings |= {name: chunk for name in ("holdout_every", "rollout_every") if name in defaults}
    if {"rollout_batch", "rollout_every"} <= defaults.keys():
        settings["rollout_batch"] = max(1, defaults["rollout_batch"] * chunk // defaults["rollout_every"])
    return settings | ({"termination": False} if "termination" in defaults else {})


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(case: dict, cores: Collection[int], limit: float) -> dict:
    """`run_case` in a process of its own, on `cores` or on all; others may share the accelerator's memory.

    Raises:
      RuntimeError: the job failed.
      subprocess.TimeoutExpired: it took longer than `limit` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = case | {"out": folder + "/run", "cores": list(cores)}
        command = [sys.executable, __file__, "--one", json.dumps(asked)]
        cache = str(Path(case.get("log", folder)).parent / "cache")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ | {"OFFLINE_RL_CACHE": cache},
        )
        try:
            told, errors = process.communicate(timeout=limit)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(errors[-2000:])
    return json.loads(told.splitlines()[-1])


def measure_evaluation(case: dict, episodes: int = 10) -> dict:
    """Environment steps per second of `shared.evaluation`, an untrained BC policy in HalfCheetah-v5."""
    import jax

    from shared.lanes import use_cpu_devices
    from shared.run import Run
    from shared.task import env_task

    lanes = case["lanes"]
    use_cpu_devices(lanes)
    module = load("bc")
    task = env_task("HalfCheetah-v5")  # episodes of a fixed length
    args = dataclasses.replace(module.Args(), seeds=lanes, eval_episodes=episodes)
    run = Run(module.__file__, args, task, module.act)
    agent = run.init(functools.partial(module.init, spec=task.spec))
    run._evaluate(agent, run._eval_keys, run.lane_args)  # makes the environments and compiles
    seconds, found = timed(lambda: run._evaluate(agent, run._eval_keys, run.lane_args))
    return {
        "algorithm": "evaluation",
        "env": "HalfCheetah-v5",
        "lanes": lanes,
        "episodes": episodes,
        "env_steps_per_s": float(found.lengths.sum() / seconds),
        "device": jax.local_devices()[0].device_kind,
    }


def main() -> None:
    """Command line."""
    names = candidates()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=[*names, "evaluation"], choices=[*names, "evaluation"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--layouts", nargs="+", default=["auto"], choices=["auto", "map", "vmap"])
    parser.add_argument(
        "--precisions", nargs="+", default=["float32"], choices=["float32", "tensorfloat32", "bfloat16"]
    )
    parser.add_argument("--chunks", nargs="+", type=int, default=[12], help="updates in one compiled call")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timed calls in each case, at least")
    parser.add_argument("--rows", type=int, default=ROWS, help="transitions of the synthetic log")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        help="so many cases are compiled side by side; they are timed in turn, so this is for accelerators",
    )
    parser.add_argument(
        "--cores",
        type=int,
        help="with --at-once, on a CPU: each case has so many cores to itself, and is timed beside the others",
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a case is given up")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        case = json.loads(args.one)
        if case["cores"]:
            os.sched_setaffinity(0, case["cores"])  # of this thread, and of all that JAX begins
        one = measure_evaluation if case["algorithm"] == "evaluation" else run_case
        print(json.dumps(one(case)))
        return
    there = sorted(os.sched_getaffinity(0))
    if args.cores and args.at_once * args.cores > len(there):
        parser.error(f"--at-once {args.at_once} with --cores {args.cores}: there are {len(there)} cores.")
    cases = [
        dict(zip(CASE, (algorithm, shape, lanes, layout, precision, chunk), strict=True))
        for shape in args.shapes
        for algorithm in args.algorithms
        for lanes in args.lanes
        for layout in args.layouts
        for precision in args.precisions
        for chunk in args.chunks
        if algorithm != "evaluation" and (shape == args.shapes[0] or algorithm in BOTH_SHAPES)
    ]
    record = json.loads(args.out.read_text()) if args.out.exists() else {"cases": []}
    record["hardware"] = {
        "cores": args.cores or len(there),
        "side_by_side": args.at_once if args.cores else 1,
        "cpu": platform.processor() or platform.machine(),
    }
    cases += [{"algorithm": "evaluation", "lanes": n} for n in args.lanes if n <= 8 and "evaluation" in args.algorithms]
    slots: queue.SimpleQueue = queue.SimpleQueue()
    for slot in range(args.at_once):
        slots.put(slot)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        logs = {shape: Path(folder) / f"{shape}.npz" for shape in args.shapes}
        mib = {shape: write_log(path, shape, args.rows) for shape, path in logs.items()}

        def one(case: dict) -> dict | Exception:
            slot = slots.get()
            cores = there[slot * args.cores : (slot + 1) * args.cores] if args.cores else ()
            asked = case | {"turn": f"{folder}/{slot if args.cores else 'all'}.turn"}
            try:
                if case["algorithm"] == "evaluation":
                    return measure(asked, cores, args.limit)
                asked |= {"log": str(logs[case["shape"]]), "seconds": args.seconds}
                return measure(asked, cores, args.limit) | {"dataset_mib": mib[case["shape"]]}
            except (RuntimeError, subprocess.SubprocessError) as error:
                return error
            finally:
                slots.put(slot)

        for case, result in zip(cases, pool.map(one, cases), strict=True):
            told = " ".join(map(str, case.values()))
            others = [c for c in record.get("left_out", []) if c["asked"] != case]
            if isinstance(result, Exception):
                why = why_not(result)
                print(f"{told} is left out: {why}", file=sys.stderr, flush=True)
                record["left_out"] = [*others, {"asked": case, "why": why}]
            else:
                rate = result.get("env_steps_per_s") or result["updates_per_s"]["median"]
                share = f", {100 * result['share']['median']:.0f} % of the limit" if "share" in result else ""
                print(f"{told:>50}: {rate:>10.1f}/s{share}", flush=True)
                record["left_out"] = others
                record["cases"] = [c for c in record["cases"] if c.get("asked") != case] + [result | {"asked": case}]
            args.out.write_text(json.dumps(record, indent=1) + "\n")


def why_not(error: Exception) -> str:
    """In a few words, why a case has no result."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:.0f} seconds"
    return (str(error).strip().splitlines() or [""])[-1].removeprefix("shared.errors.InputError: ")


if __name__ == "__main__":
    main()
