"""TD3+BC, IQL and CQL beside CORL's PyTorch: updates per second, peak memory.

    git clone https://github.com/corl-team/CORL /tmp/corl
    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    python results/corl_speed.py --corl /tmp/corl --torch-python /tmp/torch/bin/python

Each side of a case (algorithm, lanes) is a process of its own, which makes one round of updates whenever it is told to;
the two take turns in changing order, so that a busy machine slows both alike. CORL's own `train` runs from its
checkout, on batches that its own buffer draws, from synthetic rows of the same shape (11 observations, 3 actions).
Writes results/corl_speed.json, from which `make report` makes its table.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.ensemble_speed import ACTION, OBS, about_machine, corl_buffer, corl_module, ours
from results.sides import serve, take_turns
from shared.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"td3_bc": "TD3+BC", "iql": "IQL", "cql": "CQL"}
SHARE = {"td3_bc": 1, "iql": 1, "cql": 16}
"""Of so many updates one is made: CQL's take longer."""
NOTE = """\
TD3+BC, IQL and CQL beside CORL's PyTorch ({corl}, torch {torch}), on {hardware}, jax {jax}: the files' own defaults on
both sides (two layers of 256, CQL three), batches of {batch}, {rows:,} synthetic rows, every side a process of its own,
{rounds} interleaved rounds, updates per lane and round: {updates} (CQL: {cql}). CORL trains one agent in a process: its
several lanes are one after the other, at the rate of one. It returns to Python after every update, and reads every
loss there, as its training loop does. Peak memory is the whole process's, interpreter and libraries included."""


def corl(algorithm: str, args: argparse.Namespace):
    """-> (a round of `args.updates` updates of one agent, 0 seconds to compile)."""
    peer = corl_module(args.corl / "algorithms" / "offline" / f"{algorithm}.py")
    import torch

    torch.set_num_threads(args.threads)
    buffer = corl_buffer(peer, args.rows)

    def optimised(**nets: Any) -> dict[str, Any]:
        adams = {f"{name}_optimizer": torch.optim.Adam(net.parameters(), lr=3e-4) for name, net in nets.items()}
        return nets | adams

    if algorithm == "td3_bc":
        critics = {name: peer.Critic(OBS, ACTION) for name in ("critic_1", "critic_2")}
        trainer = peer.TD3_BC(1.0, **optimised(actor=peer.Actor(OBS, ACTION, 1.0), **critics), device="cpu")
    elif algorithm == "iql":
        given = optimised(actor=peer.GaussianPolicy(OBS, ACTION, 1.0))
        for kind, net in (("q", peer.TwinQ(OBS, ACTION)), ("v", peer.ValueFunction(OBS))):
            given |= {f"{kind}_network": net, f"{kind}_optimizer": torch.optim.Adam(net.parameters(), lr=3e-4)}
        trainer = peer.ImplicitQLearning(1.0, **given, device="cpu")
    else:
        critics = {name: peer.FullyConnectedQFunction(OBS, ACTION) for name in ("critic_1", "critic_2")}
        given = optimised(actor=peer.TanhGaussianPolicy(OBS, ACTION, 1.0), **critics)
        trainer = peer.ContinuousCQL(target_entropy=-float(ACTION), **given, device="cpu")

    def a_round():
        for _ in range(args.updates):
            trainer.train(buffer.sample(args.batch))

    return a_round, 0.0


def commands_of(algorithm: str, lanes: int, args: argparse.Namespace) -> dict[str, list[str]]:
    """{side: command line of its process}."""
    sizes = {"rows": args.rows, "batch": args.batch, "threads": args.threads, "corl": args.corl}
    sizes["updates"] = max(1, args.updates // SHARE[algorithm])
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    here = str(Path(__file__).resolve())
    return {
        "ours": [sys.executable, here, *words, "--serve", "ours", algorithm, str(lanes)],
        "CORL": [str(args.torch_python), here, *words, "--serve", "CORL", algorithm, "1"],
    }


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--corl", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--torch-python", type=Path, metavar="FILE", help="a Python that has torch")
    option("--rows", type=int, default=100_000, help="transitions (%(default)s)")
    option("--batch", type=int, default=256, help="transitions per update (%(default)s)")
    option("--updates", type=int, default=200, help="of each lane in a round (%(default)s)")
    option("--rounds", type=int, default=6, help="timed rounds (%(default)s)")
    option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (%(default)s, the cores)")
    option("--algorithms", nargs="+", choices=NAMES, default=list(NAMES), help="all of them, where none is named")
    option("--lanes", type=int, default=8, help="lanes of the second comparison (%(default)s)")
    option("--out", type=Path, default=ROOT / "results" / "corl_speed.json", metavar="FILE")
    option("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        if args.serve:
            side, algorithm, lanes = args.serve
            made = corl(algorithm, args) if side == "CORL" else ours(algorithm, {}, int(lanes), args, "map")
            serve({"updates": made[0]}, made[1])
            return 0
        if not args.torch_python:
            raise InputError("--torch-python names a Python that has torch; see the top of this file.")
        sizes = {name: getattr(args, name) for name in ("batch", "rows", "rounds", "updates")}
        about = NOTE.format(cql=max(1, args.updates // SHARE["cql"]), **about_machine(args), **sizes)
        cases = []
        for algorithm, lanes in itertools.product(args.algorithms, (1, args.lanes)):
            updates = max(1, args.updates // SHARE[algorithm])
            amounts = {"updates": {"ours": lanes * updates, "CORL": updates}}
            measured = take_turns(commands_of(algorithm, lanes, args), amounts, args.rounds)
            title = f"{NAMES[algorithm]}, {lanes} lane{'s' * (lanes > 1)}"
            rates = measured.per_s["updates"]
            found = {"updates_per_s": rates, "compile_s": measured.compile_s, "peak_mib": measured.peak_mib}
            cases.append({"name": title, **found})
            args.out.write_text(json.dumps({"note": about, "cases": cases}, indent=1) + "\n")
            print(title, {side: round(float(np.median(r)), 2) for side, r in rates.items()}, flush=True)
    except InputError as error:
        print(f"corl_speed.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
