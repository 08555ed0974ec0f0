"""What an update's time goes to on a CPU: products, elementwise work, the optimiser, gathers, random numbers, copies.

  python results/step_profile.py                          the algorithms below, one lane, into results/step_profile.json
  python results/step_profile.py --algorithms td3_bc iql  some of them; the others' cases stay in the file

The compiled program that updates one lane is run under JAX's profiler, which tells how long every operation of it took
each time. An operation's time is the lower quartile of its times, times how often it ran: what other processes took of
the core meanwhile does not count. Its kind is told from the compiled program's text: a fusion with a product in it is a
product, one with a gather a gather; else the most of its instructions decide, by the file they come from (optax) or the
name of what made them (jax.random). Operations of nanoseconds, as in loops over scalars, look longer under a profiler
than they are. `covered` is the time of all operations over the processor's of an update without it: on one core
(`taskset -c 0`) what is missing is the time between them. Networks and batches are the files' own, the data synthetic.
"""

import argparse
import collections
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from results.peer_speed import Side, _compiled, load, ours, synthetic
from shared.goals import goal_dataset
from shared.replay import init_replay
from shared.sequences import sequences
from shared.transitions import FIELDS

ALGORITHMS = ("td3_bc", "iql", "cql", "rebrac", "rlpd", "fql", "hiql", "decision_transformer")
KINDS = ("products", "elementwise", "optimiser", "gather", "random numbers", "copies")
MOVES = {"copy", "transpose", "bitcast", "reshape", "concatenate", "slice", "dynamic-slice", "dynamic-update-slice"}
MOVES |= {"pad", "broadcast", "iota", "reverse", "parameter", "constant", "tuple", "get-tuple-element"}
RANDOM = re.compile(r"threefry|random_bits|_randint|_normal|_uniform|_gamma|_shuffle|_permutation|_bernoulli|_split")
AROUND = {"while", "call", "conditional"}
"""Their time is that of the operations inside."""
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\S+) ([a-z][\w\-]*)\(")


# ------------------------------------------------------------------------------ what a program's operations are


class Program:
    """A compiled program's text, and what kind of work its operations are."""

    def __init__(self, text: str):
        self.inside: dict[str, list[str]] = {}
        """{computation: its instructions' names}"""
        self.lines: dict[str, str] = {}
        self.opcode: dict[str, str] = {}
        tables: dict[str, dict[str, str]] = collections.defaultdict(dict)
        computation = table = ""
        for line in text.splitlines():
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = line
            elif table and (row := re.match(r"(\d+) (.*)", line)):
                tables[table][row[1]] = row[2]
            elif found := INSTRUCTION.match(line):
                name, self.opcode[found[1]] = found[1], found[2]
                self.inside[computation].append(name)
                self.lines[name] = line
            elif start := re.match(r"(?:ENTRY )?%([\w.\-]+) ", line):
                table, computation = "", start[1]
                self.inside[computation] = []
        files = {n: name for n, name in tables["FileNames"].items() if "optax" in name}
        places = {n for n, x in tables["FileLocations"].items() if re.search(r"file_name_id=(\d+)", x)[1] in files}
        frames = tables["StackFrames"].items()
        self.optax = {n for n, x in frames if re.search(r"file_location_id=(\d+)", x)[1] in places}

    def leaves(self, name: str) -> list[str]:
        """The instructions that an operation is made of: itself, or those of the computation it calls."""
        called = re.search(r"(?:calls|to_apply)=%([\w.\-]+)", self.lines[name])
        if not called or self.opcode[name] not in ("fusion", "call"):
            return [name]
        return [leaf for one in self.inside[called[1]] for leaf in self.leaves(one)]

    def kind(self, name: str) -> str:
        """One of KINDS."""
        leaves = self.leaves(name)
        codes = {self.opcode[leaf] for leaf in leaves}
        if codes & {"dot", "convolution"} or "matmul" in self.lines[name]:
            return "products"
        if codes & {"gather"}:
            return "gather"
        votes = collections.Counter(self.origin(x) for x in leaves if self.opcode[x] not in ("parameter", "constant"))
        if votes and (origin := votes.most_common(1)[0][0]) != "elementwise":
            return origin
        return "copies" if codes <= MOVES else "elementwise"

    def origin(self, leaf: str) -> str:
        """Of one instruction, by its file or name."""
        frame = re.search(r"stack_frame_id=(\d+)", self.lines[leaf])
        if frame and frame[1] in self.optax:
            return "optimiser"
        name = re.search(r'op_name="([^"]*)"', self.lines[leaf])
        return "random numbers" if name and RANDOM.search(name[1]) else "elementwise"


def operations(folder: str, module: str) -> dict[str, list[float]]:
    """{operation of the program: nanoseconds, every time it ran}, from what the profiler wrote."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    (path,) = Path(folder).rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and event.name == stats.get("hlo_op"):
                    found[event.name].append(event.duration_ns)
    return found


# ---------------------------------------------------------------------------------------- the updates


def rlpd(rows: int, updates: int) -> Side:
    """rlpd.py's updates at UTD 1, the batches' draw included; interaction is apart (online_speed.py)."""
    module, data = load(ROOT / "algorithms" / "hybrid" / "rlpd.py", "ours_rlpd"), synthetic(rows)
    args, spec = module.Args(utd=1), data.task.spec
    transitions = data.transitions()
    ring = jax.tree.map(lambda x: x[0], init_replay(1, rows, spec, jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    replay = ring.insert(jnp.zeros(ring.rows.shape[-1]))

    def train(agent, keys, data, replay):
        def step(agent, key):
            sample_key, update_key = jax.random.split(key)
            batch = module.sample(sample_key, data, replay, args)
            return module.update(agent, batch, update_key, args)

        return jax.lax.scan(step, agent, keys)

    agent, keys = module.init(jax.random.key(0), args, spec), jax.random.split(jax.random.key(1), updates)
    inputs = (keys, transitions, replay)
    train = jax.jit(train, donate_argnums=0)
    return Side(partial(_compiled, train, agent, *inputs), lambda agent, f: f(agent, *inputs)[0], agent)


def side(algorithm: str, rows: int, updates: int) -> Side:
    """One lane's updates."""
    if algorithm == "rlpd":
        return rlpd(rows, updates)
    data = synthetic(rows)
    if algorithm == "decision_transformer":
        windows = sequences(data, "obs", "action", "return_to_go")
        return ours(algorithm, 1, SimpleNamespace(transitions=lambda: windows, task=data.task), updates)
    fields = (*FIELDS, "next_action") if algorithm == "rebrac" else ()
    return ours(algorithm, 1, goal_dataset(data) if algorithm == "hiql" else data, updates, fields)


def measure(algorithm: str, rows: int, updates: int, rounds: int) -> dict:
    """The shares of the kinds; `updates` in a call, `rounds` calls with the profiler and as many without, in turn."""
    one = side(algorithm, rows, updates)
    compiled, _ = one.build()
    found = profile(compiled, lambda state: one.call(state, compiled), one.state, updates, rounds)
    return {"algorithm": algorithm, **found}


def profile(compiled, call: Callable, state, updates: int, rounds: int) -> dict:
    """Of `call(state)` -> the next state, which runs the `compiled` program once."""
    program = Program(compiled.as_text())
    module = re.match(r"HloModule ([\w.\-]+)", compiled.as_text())[1]
    state = jax.block_until_ready(call(state))
    plain, taken = [], collections.defaultdict(list)
    quiet = jax.profiler.ProfileOptions()
    quiet.python_tracer_level = 0
    for _ in range(rounds):
        start = time.process_time()
        state = jax.block_until_ready(call(state))
        plain.append((time.process_time() - start) / updates)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=quiet):
                state = jax.block_until_ready(call(state))
            for name, times in operations(folder, module).items():
                taken[name] += times
    ms: collections.Counter = collections.Counter()
    for name, times in taken.items():
        if program.opcode[name] not in AROUND:
            ms[program.kind(name)] += 1e-6 * float(np.quantile(times, 0.25)) * len(times) / (updates * rounds)
    total = sum(ms.values())
    return {
        "ms": total,
        "shares": {kind: ms[kind] / total for kind in KINDS},
        "operations": sum(len(t) for n, t in taken.items() if program.opcode[n] not in AROUND) / (updates * rounds),
        "covered": total / (1e3 * min(plain)),
    }


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    option("--rows", type=int, default=1_000_000, help="transitions (%(default)s)")
    option("--updates", type=int, default=20, help="of one call (%(default)s)")
    option("--rounds", type=int, default=3, help="calls with the profiler (%(default)s)")
    option("--out", type=Path, default=ROOT / "results" / "step_profile.json", metavar="FILE")
    args = parser.parse_args(argv)
    cases = json.loads(args.out.read_text())["cases"] if args.out.exists() else []
    cores = len(os.sched_getaffinity(0))
    for algorithm in args.algorithms:
        found = measure(algorithm, args.rows, args.updates, args.rounds)
        found |= {"rows": args.rows, "cores": cores, "jax": jax.__version__}
        cases = sorted([c for c in cases if c["algorithm"] != algorithm] + [found], key=lambda c: c["algorithm"])
        args.out.write_text(json.dumps({"cases": cases}, indent=1) + "\n")
        print(algorithm, {kind: f"{100 * share:.0f} %" for kind, share in found["shares"].items()}, flush=True)


if __name__ == "__main__":
    main()
