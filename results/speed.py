"""Gradient updates per second, evaluation steps per second and memory (`make speed`).

  python results/speed.py                                       every case below, into results/speed.json
  python results/speed.py --algorithms td3_bc --lanes 1 8 32    some of them; the others' cases stay in the file

A case is a job of the algorithm's file from its command line, with the paper's network and batch sizes, on 1M
synthetic transitions of a D4RL shape, without evaluation. Its rate is read off metrics.csv, from the second compiled
call on; loading and compiling are apart. One update = one critic step on one batch, of one lane; rates are sums over
the lanes.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES = {"hopper": (11, 3), "ant": (111, 8)}
UPDATES = {"td3_bc": 400, "iql": 300, "rebrac": 60, "cql": 10} | {
    "bc": 1000, "awac": 100, "spot": 200, "prdc": 200, "mcep": 200, "a2pr": 60, "rorl": 10, "riql": 100,
    "crr_plus": 20, "cql_plus": 10, "f_dvl": 60, "trajectory_weighting": 300, "diffusion_ql": 40, "edp": 40,
    "fql": 60, "ofql": 60,
}  # fmt: skip
"""Updates of one lane in one compiled call: about a second or two on two CPU cores."""
BOTH_SHAPES = ("td3_bc", "iql", "rebrac", "cql")
"""The others are measured in the first shape only."""
ROWS, CALLS = 1_000_000, 5
LIMIT = 900
"""Seconds after which a case is given up."""


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


def measure(algorithm: str, shape: str, lanes: int, calls: int, log: Path, updates: int, limit: float = LIMIT) -> dict:
    """One case: {updates_per_s: {median, min, max}, compile_s, memory_mib, ...}.

    Raises:
      RuntimeError: the job failed.
      subprocess.TimeoutExpired: it took longer than `limit` seconds.
    """
    script = next(ROOT.glob(f"algorithms/*/{algorithm}.py"))
    total = updates * (calls + 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, script, "--dataset", log, "--preset", "none", "--seeds", lanes, "--out", out]
        command += ["--updates", total, "--log-every", updates, "--eval-every", total, "--checkpoint-every", total]
        command += ["--vae-updates", updates] if "vae_updates" in script.read_text() else []
        environment = os.environ | {"OFFLINE_RL_CACHE": str(log.parent / "cache")}
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=limit, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        record = json.loads((out / "run.json").read_text())
        with (out / "metrics.csv").open() as file:
            at = [float(row["wall_s"]) for row in csv.DictReader(file) if row["lane"] == "0"]
    rates = [lanes * updates / (b - a) for a, b in zip(at, at[1:], strict=False)]
    return {
        "algorithm": algorithm,
        "shape": shape,
        "lanes": lanes,
        "updates_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "compile_s": record["compile_s"],
        "memory_mib": record["peak_memory_mib"],
        "batch_size": record["args"]["batch_size"],
        "hidden_dims": record["args"]["hidden_dims"],
        "devices": record["hardware"]["devices"],
        "cores": len(os.sched_getaffinity(0)),
        "device": record["hardware"]["device"],
        "jax": record["versions"]["jax"],
    }


def measure_evaluation(lanes: int, episodes: int) -> dict:
    """Environment steps per second of `shared.evaluation`, an untrained BC policy in HalfCheetah-v5."""
    import jax

    from shared.lanes import use_cpu_devices
    from shared.run import Run
    from shared.task import env_task

    use_cpu_devices(lanes)
    path = ROOT / "algorithms" / "offline" / "bc.py"
    module_spec = importlib.util.spec_from_file_location("bc", path)
    module = sys.modules["bc"] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    task = env_task("HalfCheetah-v5")  # episodes of a fixed length
    args = dataclasses.replace(module.Args(), seeds=lanes, eval_episodes=episodes)
    run = Run(str(path), args, task, module.act)
    agent = run.init(partial(module.init, spec=task.spec))
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
    parser.add_argument("--algorithms", nargs="+", default=[*UPDATES, "evaluation"], choices=[*UPDATES, "evaluation"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--calls", type=int, default=CALLS, help="timed calls of each case")
    parser.add_argument("--rows", type=int, default=ROWS, help="transitions of the synthetic log")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:  # a process of its own: the number of CPU devices is fixed when JAX starts
        print(json.dumps(measure_evaluation(args.one, 10)))
        return
    cases = [(a, s, n) for s in args.shapes for a in args.algorithms for n in args.lanes if a != "evaluation"]
    cases = [c for c in cases if c[1] == args.shapes[0] or c[0] in BOTH_SHAPES]
    cases += [("evaluation", "-", n) for n in args.lanes if n <= 8 and "evaluation" in args.algorithms]
    record = json.loads(args.out.read_text()) if args.out.exists() else {"cases": []}
    for case in record["cases"]:
        case.setdefault("cores", record["hardware"]["cores"])
    record["hardware"] = {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor() or platform.machine()}
    with tempfile.TemporaryDirectory() as folder:
        logs = {shape: Path(folder) / f"{shape}.npz" for shape in args.shapes}
        mib = {shape: write_log(path, shape, args.rows) for shape, path in logs.items()}
        for case in cases:
            algorithm, shape, lanes = case
            try:
                if algorithm == "evaluation":
                    command = [sys.executable, __file__, "--one", str(lanes)]
                    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
                    result = json.loads(done.stdout.splitlines()[-1])
                else:
                    result = measure(algorithm, shape, lanes, args.calls, logs[shape], UPDATES[algorithm])
                    result["dataset_mib"] = mib[shape]
            except (RuntimeError, subprocess.SubprocessError) as error:
                print(f"{' '.join(map(str, case))} is left out: {error}", file=sys.stderr, flush=True)
                continue
            rate = result.get("env_steps_per_s") or result["updates_per_s"]["median"]
            print(f"{algorithm:>20} {shape:>7} {lanes:>3} lanes {rate:>10.1f}/s", flush=True)
            same = [c for c in record["cases"] if (c["algorithm"], c.get("shape", "-"), c["lanes"]) == case]
            record["cases"] = [c for c in record["cases"] if c not in same] + [result]
            args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
