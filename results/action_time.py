"""Time to draw actions from diffusion and flow policies, networks of one size.

  python results/action_time.py                        every case below, into results/action_time.json
  python results/action_time.py --candidates 1 50      also as Diffusion-QL, EDP and OFQL act: the best of 50 by Q

One call of the algorithm's compiled `act` with untrained networks of 3 layers of 256, Hopper's shapes (11
observations, 3 actions), compile time apart. All cases take turns in every round, in changing order, so that a
busy machine slows all alike; `over_ofql` is the median over the rounds of the time divided by OFQL's.
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
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from shared.task import Spec

ALGORITHMS = ("diffusion_ql", "edp", "fql", "ofql")
SPEC = Spec((11,), 3, False, (-1.0,) * 3, (1.0,) * 3)
HIDDEN = (256, 256, 256)
SECONDS = 0.05
"""Calls of about this long in all are timed together."""


def prepare(algorithm: str, batch: int, candidates: int) -> tuple | None:
    """(one call, seconds of the compilation, calls in a round); None where it draws no candidates."""
    path = next(ROOT.glob(f"algorithms/*/{algorithm}.py"))
    module_spec = importlib.util.spec_from_file_location(algorithm, path)
    module = sys.modules[algorithm] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    args = module.Args(hidden_dims=HIDDEN)
    if hasattr(args, "n_candidates"):
        args = dataclasses.replace(args, n_candidates=candidates)
    elif candidates > 1:
        return None
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, SPEC)
    obs = jax.device_put(np.random.default_rng(0).normal(size=(batch, 11)).astype(np.float32))
    inputs = jax.device_put((agent, obs, jax.random.key(1), args))
    act, seconds = jax.jit(module.act), []
    for _ in range(3):  # the first compiles
        start = time.perf_counter()
        assert np.isfinite(act(*inputs)).all()
        seconds.append(time.perf_counter() - start)
    return lambda: act(*inputs), seconds[0] - seconds[2], max(1, int(SECONDS / seconds[2]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 1000], help="states per call")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1], help="actions drawn per state")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "action_time.json")
    args = parser.parse_args()
    cases = {case: prepare(*case) for case in itertools.product(args.algorithms, args.batches, args.candidates)}
    cases = {case: prepared for case, prepared in cases.items() if prepared}
    seconds = {case: [] for case in cases}
    for n in range(args.rounds):
        for case in np.random.default_rng(n).permutation(len(cases)):
            case, (act, _, calls) = list(cases.items())[case]
            start = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(act())
            seconds[case].append((time.perf_counter() - start) / calls)
    results = []
    for (algorithm, batch, candidates), times in seconds.items():
        ofql = seconds.get(("ofql", batch, candidates), [float("nan")])
        results.append(
            {
                "algorithm": algorithm,
                "batch": batch,
                "candidates": candidates,
                "ms": {"median": 1e3 * statistics.median(times), "min": 1e3 * min(times), "max": 1e3 * max(times)},
                "over_ofql": statistics.median(a / b for a, b in zip(times, ofql, strict=False)),
                "compile_s": cases[algorithm, batch, candidates][1],
            }
        )
        ms, ratio = results[-1]["ms"]["median"], results[-1]["over_ofql"]
        print(f"{algorithm:>12} batch {batch:>5} candidates {candidates:>3} {ms:>9.3f} ms {ratio:>6.2f}x ofql")
    record = {
        "command": " ".join(["results/action_time.py", *sys.argv[1:]]),
        "rounds": args.rounds,
        "hidden_dims": HIDDEN,
        "cases": results,
        "hardware": {
            "device": jax.local_devices()[0].device_kind,
            "cores": len(os.sched_getaffinity(0)),
            "cpu": platform.processor() or platform.machine(),
        },
        "jax": jax.__version__,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
