"""Gradient updates per second, evaluation steps per second and memory (`make speed`).

  python results/speed.py                                       every case below, into results/speed.json
  python results/speed.py --algorithms td3_bc --lanes 1 8 32    some of them

Each case is a process of its own, because the number of CPU devices is fixed when JAX starts: `train` of
the algorithm's file, with the paper's network and batch sizes, on 1M synthetic transitions of a D4RL shape,
compile time apart. One update = one critic step on one batch, of one lane; rates are sums over the lanes.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES = {"hopper": (11, 3), "ant": (111, 8)}
UPDATES = {"td3_bc": 400, "iql": 300, "rebrac": 60, "cql": 10}
"""Updates of one lane in one compiled call: about a second or two on two CPU cores."""
ROWS, CALLS = 1_000_000, 5
LIMIT = 600
"""Seconds after which a case is given up."""


def measure(algorithm: str, shape: str, lanes: int, calls: int) -> dict:
    """One case, in this process: {updates_per_s: {median, min, max}, compile_s, memory_mib, ...}."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shared.data import FIELDS, Spec, Task, Transitions
    from shared.run import Run, use_cpu_devices

    use_cpu_devices(lanes)
    path = next(ROOT.glob(f"algorithms/*/{algorithm}.py"))
    module_spec = importlib.util.spec_from_file_location(algorithm, path)
    module = sys.modules[algorithm] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    obs_dim, action_dim = SHAPES[shape]
    spec = Spec((obs_dim,), action_dim, False, (-1.0,) * action_dim, (1.0,) * action_dim)
    fields = (*FIELDS, "next_action") if algorithm == "rebrac" else FIELDS
    width = 2 * obs_dim + action_dim * (1 + ("next_action" in fields)) + 2
    args = dataclasses.replace(module.Args(), seeds=lanes)
    run = Run(str(path), args, Task("synthetic", "", spec), module.act)
    rows = np.random.default_rng(1).uniform(-1.0, 1.0, (ROWS, width)).astype(np.float32)
    transitions = jax.block_until_ready(run.replicate(Transitions(jnp.asarray(rows), None, None, spec, fields)))
    del rows
    agent = jax.block_until_ready(
        run.over_lanes(partial(module.init, spec=spec), in_axes=(0, 0))(run.init_keys, run.lane_args)
    )
    train = run.over_lanes(module.train, in_axes=(0, 0, 0, None), donate=True)
    updates = UPDATES.get(algorithm, 100)
    keys = [run._chunk_keys(run.init_keys, updates * i, jnp.zeros(updates)) for i in range(calls + 1)]
    start = time.perf_counter()
    compiled = train.lower(agent, keys[0], run.lane_args, transitions).compile()
    compile_s = time.perf_counter() - start
    agent, _ = jax.block_until_ready(compiled(agent, keys[0], run.lane_args, transitions))
    rates = []
    for key in keys[1:]:
        start = time.perf_counter()
        agent, metrics = jax.block_until_ready(compiled(agent, key, run.lane_args, transitions))
        rates.append(lanes * updates / (time.perf_counter() - start))
    assert all(np.isfinite(m).all() for m in metrics.values())
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {
        "algorithm": algorithm,
        "shape": shape,
        "lanes": lanes,
        "updates_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "compile_s": compile_s,
        "memory_mib": peak / 2**20,
        "dataset_mib": ROWS * width * 4 / 2**20,
        "batch_size": args.batch_size,
        "hidden_dims": args.hidden_dims,
        "devices": run.mesh.devices.size,
        "device": device.device_kind,
        "jax": jax.__version__,
    }


def measure_evaluation(lanes: int, episodes: int) -> dict:
    """Environment steps per second of `shared.evaluation`, an untrained BC policy in HalfCheetah-v5."""
    import jax

    from shared.data import env_task
    from shared.run import Run, use_cpu_devices

    use_cpu_devices(lanes)
    path = ROOT / "algorithms" / "offline" / "bc.py"
    module_spec = importlib.util.spec_from_file_location("bc", path)
    module = sys.modules["bc"] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    task = env_task("HalfCheetah-v5")  # episodes of a fixed length
    args = dataclasses.replace(module.Args(), seeds=lanes, eval_episodes=episodes)
    run = Run(str(path), args, task, module.act)
    agent = run.over_lanes(partial(module.init, spec=task.spec), in_axes=(0, 0))(run.init_keys, run.lane_args)
    run._evaluate(agent, run._eval_keys, run.lane_args)  # makes the environments and compiles
    start = time.perf_counter()
    lengths = run._evaluate(agent, run._eval_keys, run.lane_args).lengths
    seconds = time.perf_counter() - start
    return {
        "algorithm": "evaluation",
        "env": "HalfCheetah-v5",
        "lanes": lanes,
        "episodes": episodes,
        "env_steps_per_s": float(lengths.sum() / seconds),
        "device": jax.local_devices()[0].device_kind,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(UPDATES))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--calls", type=int, default=CALLS, help="timed calls of each case")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        algorithm, shape, lanes = args.one
        case = measure_evaluation(int(lanes), 10) if algorithm == "evaluation" else None
        print(json.dumps(case or measure(algorithm, shape, int(lanes), args.calls)))
        return
    cases = [(a, s, n) for s in args.shapes for a in args.algorithms for n in args.lanes]
    cases += [("evaluation", "-", n) for n in args.lanes if n <= 8]
    results = []
    for case in cases:
        command = [sys.executable, __file__, "--calls", str(args.calls), "--one", *map(str, case)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{' '.join(map(str, case))}: not finished after {LIMIT} s, left out", file=sys.stderr, flush=True)
            continue
        if done.returncode:
            sys.exit(f"{' '.join(map(str, case))} failed:\n{done.stderr[-2000:]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
        r = results[-1]
        rate = r.get("env_steps_per_s") or r["updates_per_s"]["median"]
        print(f"{r['algorithm']:>10} {case[1]:>7} {case[2]:>3} lanes {rate:>10.1f}/s", flush=True)
        record = {"command": " ".join(["results/speed.py", *sys.argv[1:]]), "cases": results}
        record["hardware"] = {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor() or platform.machine()}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
