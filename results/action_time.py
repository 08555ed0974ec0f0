"""Time to draw actions from diffusion and flow policies, networks of one size.

  python results/action_time.py                        every case below, into results/action_time.json
  python results/action_time.py --candidates 1 50      also as Diffusion-QL, EDP and OFQL act: the best of 50 by Q
  python results/action_time.py --lanes 1 8            planners and policies with a memory, too, of so many lanes

One call of the algorithm's compiled `act` with untrained networks of 3 layers of 256, Hopper's shapes (11
observations, 3 actions), compile time apart. All cases take turns in every round, in changing order, so that a
busy machine slows all alike; `over_ofql` is the median over the rounds of the time divided by OFQL's.

With --lanes it is the first STEPS actions of an episode of each lane, one after the other on one device: a plan or a
chunk of actions is made where the last one is used up, and costs the actions that follow it nothing. These cases
stand beside the others in the file, which are left as they are.
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
from shared.arguments import GoalArgs
from shared.task import Spec

ALGORITHMS = ("diffusion_ql", "edp", "fql", "ofql")
SPEC = Spec((11,), 3, False, (-1.0,) * 3, (1.0,) * 3)
HIDDEN = (256, 256, 256)
PLANNERS = ("ofql", "idql", "ldcq", "deas", "adaptdiffuser", "metadiffuser")
UNET = {"channels": 16, "channel_factors": (1, 2), "diffusion_steps": 20, "sampling_steps": 20, "window_steps": 32}
SIZES = {"adaptdiffuser": {**UNET, "plan_steps": 32, "rounds": 0}, "metadiffuser": UNET}
"""Of the planners; the others have their files' own."""
STEPS = 32
SECONDS = 0.05
"""Calls of about this long in all are timed together."""


def module_of(algorithm: str):
    path = next(ROOT.glob(f"algorithms/*/{algorithm}.py"))
    module_spec = importlib.util.spec_from_file_location(algorithm, path)
    module = sys.modules[algorithm] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def prepare(algorithm: str, batch: int, candidates: int) -> tuple | None:
    """(one call, seconds of the compilation, calls in a round); None where it draws no candidates."""
    module = module_of(algorithm)
    args = module.Args(hidden_dims=HIDDEN)
    if hasattr(args, "n_candidates"):
        args = dataclasses.replace(args, n_candidates=candidates)
    elif candidates > 1:
        return None
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, SPEC)
    obs = jax.device_put(np.random.default_rng(0).normal(size=(batch, 11)).astype(np.float32))
    return compiled(module.act, jax.device_put((agent, obs, jax.random.key(1), args)))


def compiled(act, inputs: tuple) -> tuple:
    """(one call, seconds of the compilation, calls in a round)."""
    act, seconds = jax.jit(act), []
    for _ in range(3):  # the first compiles
        start = time.perf_counter()
        assert np.isfinite(act(*inputs)).all()
        seconds.append(time.perf_counter() - start)
    return lambda: act(*inputs), seconds[0] - seconds[2], max(1, int(SECONDS / seconds[2]))


def prepare_steps(algorithm: str, lanes: int, sizes: dict | None = None) -> tuple:
    """(one call: STEPS actions of each lane [L, STEPS, A], seconds of the compilation, calls in a round)."""
    module = module_of(algorithm)
    args = module.Args(hidden_dims=HIDDEN, **SIZES.get(algorithm, {}) | (sizes or {}))
    goals = issubclass(module.Args, GoalArgs)
    spec = SPEC._replace(goal_shape=SPEC.obs_shape) if goals else SPEC
    agents = jax.jit(lambda keys: jax.lax.map(lambda key: module.init(key, args, spec), keys))
    keys = jax.random.split(jax.random.key(0), lanes)
    obs = np.random.default_rng(0).normal(size=(1, 11)).astype(np.float32)

    def one(lane):
        agent, key = lane
        carry = module.initial_carry(agent, args) if hasattr(module, "initial_carry") else ()
        carry = jax.tree.map(lambda x: x[None], carry)

        def step(carry, key):
            if not hasattr(module, "initial_carry"):
                return carry, module.act(agent, obs, key, args)[0]
            seen = (obs, -obs) if goals else (obs,)
            action, carry = module.act(agent, carry, *seen, np.zeros(1, np.float32), key, args)
            return carry, action[0]

        return jax.lax.scan(step, carry, jax.random.split(key, STEPS))[1]

    return compiled(lambda *lanes: jax.lax.map(one, lanes), (agents(keys), keys))


def timed(cases: dict, rounds: int) -> dict:
    """{case: seconds of a call in every round}, the cases in changing order."""
    seconds = {case: [] for case in cases}
    for n in range(rounds):
        for case in np.random.default_rng(n).permutation(len(cases)):
            case, (act, _, calls) = list(cases.items())[case]
            start = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(act())
            seconds[case].append((time.perf_counter() - start) / calls)
    return seconds


def measure_steps(algorithms, lanes: list[int], rounds: int) -> list[dict]:
    """One case for every algorithm and number of lanes."""
    cases = {case: prepare_steps(*case) for case in itertools.product(algorithms, lanes)}
    found = []
    for (algorithm, n), times in (seconds := timed(cases, rounds)).items():
        rates = [n * STEPS / t for t in times]
        found.append(
            {
                "algorithm": algorithm,
                "lanes": n,
                "actions_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
                "over_ofql": statistics.median(a / b for a, b in zip(times, seconds["ofql", n], strict=True)),
                "compile_s": cases[algorithm, n][1],
            }
        )
        rate, ratio = found[-1]["actions_per_s"]["median"], found[-1]["over_ofql"]
        print(f"{algorithm:>14} {n:>2} lanes {rate:>10,.0f} actions/s {ratio:>8.2f}x ofql's time")
    return found


def hardware() -> dict:
    return {
        "device": jax.local_devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": platform.processor() or platform.machine(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", help="(by default those of this file)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 1000], help="states per call")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1], help="actions drawn per state")
    parser.add_argument("--lanes", nargs="+", type=int, help="of planners and policies, an episode's first actions")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "action_time.json")
    args = parser.parse_args()
    earlier = json.loads(args.out.read_text()) if args.out.exists() else {}
    command = " ".join(["results/action_time.py", *sys.argv[1:]])
    if args.lanes:
        found = measure_steps(args.algorithms or PLANNERS, args.lanes, args.rounds)
        steps = {"command": command, "rounds": args.rounds, "steps": STEPS, "cases": found, "hardware": hardware()}
        args.out.write_text(json.dumps(earlier | {"episodes": steps | {"jax": jax.__version__}}, indent=1) + "\n")
        return
    asked = itertools.product(args.algorithms or ALGORITHMS, args.batches, args.candidates)
    cases = {case: prepared for case in asked if (prepared := prepare(*case))}
    seconds = timed(cases, args.rounds)
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
        "command": command,
        "rounds": args.rounds,
        "hidden_dims": HIDDEN,
        "cases": results,
        "hardware": hardware(),
        "jax": jax.__version__,
    }
    record |= {"episodes": earlier["episodes"]} if "episodes" in earlier else {}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
