"""Gradient updates per second beside OGBench's and FQL's own JAX agents, same sizes, measured in one process each.

    git clone https://github.com/seohongpark/ogbench /tmp/ogbench
    git clone https://github.com/seohongpark/fql /tmp/fql
    pip install --no-deps --target /tmp/peer-packages distrax tensorflow-probability dm-tree six \
        decorator cloudpickle gast ml_collections absl-py
    python results/agent_speed.py --ogbench /tmp/ogbench --fql /tmp/fql --packages /tmp/peer-packages

Their agents and datasets run from their checkouts, as their main.py calls them: a batch is drawn on the host, then one
jitted update. Their lanes are this update vmapped by us, a batch drawn for each. Data: synthetic rows, 11 observations,
3 actions. Rounds are interleaved in changing order, so that a busy machine slows all sides alike; compiling is timed
apart. Writes results/agent_speed.json, from which `make report` makes its table.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.jax_references import packages
from results.peer_speed import Side, _compiled, commit, compare, ours, synthetic
from shared.data import Dataset
from shared.errors import InputError
from shared.goals import goal_dataset
from shared.lanes import use_cpu_devices
from shared.transitions import FIELDS

ROOT = Path(__file__).resolve().parents[1]
NOTE = """\
Beside OGBench's ({ogbench}) and FQL's ({fql}) own JAX agents, on {hardware}, jax {jax}, {rounds} interleaved
rounds of {updates} updates of each lane. Layers of {hidden}, batches of {batch}; all else as published. Theirs
draw a batch on the host and return to Python at every update; their lanes are vmapped by us."""


class Peer(NamedTuple):
    """A repository of agents."""

    root: str
    """The folder in a checkout from which its modules are named."""
    agents: tuple[str, ...]
    """Of algorithms that have the same name here."""
    goals: bool


PEERS = {
    "ogbench": Peer("impls", ("gcbc", "gcivl", "gciql", "qrl", "crl", "hiql"), True),
    "fql": Peer("", ("iql", "rebrac", "fql"), False),
}
FIELDS_OF = {"rebrac": (*FIELDS, "next_action")}


def their_dataset(load: Any, config: Any, data: Dataset, goals: bool) -> Any:
    """What their main.py samples from."""
    datasets = load("utils.datasets")
    columns = {"observations": data.obs, "actions": data.action, "next_observations": data.next_obs}
    columns |= {"terminals": data.last.astype(np.float32), "rewards": data.reward}
    rows = datasets.Dataset.create(**columns, masks=1.0 - data.terminal.astype(np.float32))
    if not goals:
        rows.return_next_actions = config["agent_name"] == "rebrac"
        return rows
    return getattr(datasets, config["dataset_class"])(rows, config)


def theirs(load: Any, algorithm: str, lanes: int, data: Dataset, updates: int, sizes: dict, goals: bool) -> Side:
    """Their loop; the state is (agents of all lanes, updates done)."""
    module = load(f"agents.{algorithm}")
    config = module.get_config()
    names = {k: v for k, v in config.items() if k.endswith("hidden_dims") and isinstance(v, tuple)}
    config.update(dict.fromkeys(names, sizes["hidden_dims"]) | {"batch_size": sizes["batch_size"]})
    rows = their_dataset(load, config, data, goals)
    (agent_class,) = (x for name, x in vars(module).items() if name.endswith("Agent"))
    example = rows.sample(1)
    agents = [agent_class.create(s, example["observations"], example["actions"], config) for s in range(lanes)]
    actor_every = config.get("actor_freq", 1)

    def batch() -> dict:
        drawn = [rows.sample(sizes["batch_size"]) for _ in range(lanes)]
        return drawn[0] if lanes == 1 else jax.tree.map(lambda *x: np.stack(x), *drawn)

    def build() -> tuple[Any, float]:
        kinds, seconds = [], 0.0
        for with_actor in (True, False)[:actor_every]:
            more = {"full_update": with_actor} if actor_every > 1 else {}
            step = partial(lambda agent, batch, more: agent.update(batch, **more), more=more)
            compiled, s = _compiled(jax.jit(step if lanes == 1 else jax.vmap(step)), state, batch())
            kinds, seconds = [*kinds, compiled], seconds + s
        return kinds, seconds

    def call(at: tuple, kinds: list) -> tuple:
        agent, done = at
        for i in range(done + 1, done + updates + 1):
            agent, _ = kinds[0 if i % actor_every == 0 else 1](agent, batch())
        return agent, done + updates

    form = jax.tree.structure(agents[0])  # each has an optimiser of its own in it
    state = agents[0] if lanes == 1 else form.unflatten(map(jnp.stack, zip(*map(jax.tree.leaves, agents), strict=True)))
    return Side(build, call, (state, 0))


def cases_of(name: str, args: argparse.Namespace) -> list[dict]:
    """All cases beside one repository, whose packages are named as the other's are."""
    peer, load = PEERS[name], packages(getattr(args, name), PEERS[name].root)
    sizes = {"hidden_dims": tuple(args.hidden_dims), "batch_size": args.batch_size}
    data = synthetic(args.rows)
    mine = goal_dataset(data) if peer.goals else data
    cases = []
    for algorithm in (a for a in peer.agents if not args.algorithms or a in args.algorithms):
        for lanes in args.lanes:
            sides = {
                "ours": ours(algorithm, lanes, mine, args.updates, FIELDS_OF.get(algorithm, ()), **sizes),
                "the authors'": theirs(load, algorithm, lanes, data, args.updates, sizes, peer.goals),
            }
            rates, compile_s = compare(sides, lanes * args.updates, args.rounds)
            title = f"{algorithm}, {lanes} lane{'s' * (lanes > 1)}"
            cases.append({"name": title, "updates_per_s": rates, "compile_s": compile_s})
            print(title, {side: float(np.median(r)) for side, r in rates.items()}, file=sys.stderr, flush=True)
    return cases


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    for name in PEERS:
        option(f"--{name}", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--packages", type=Path, metavar="DIR", help="where the packages they need are")
    option("--algorithms", nargs="+", help="some of them")
    option("--rows", type=int, default=1_000_000, help="transitions (%(default)s)")
    option("--lanes", type=int, nargs="+", default=[1, 8])
    option("--hidden-dims", type=int, nargs="+", default=[256, 256, 256])
    option("--batch-size", type=int, default=256)
    option("--updates", type=int, default=20, help="of each lane in a round (%(default)s)")
    option("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    option("--out", type=Path, default=ROOT / "results" / "agent_speed.json", metavar="FILE")
    option("--serve", choices=list(PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.packages:
        sys.path.append(str(args.packages))
    try:
        use_cpu_devices(max(args.lanes))
        if args.serve:
            print(json.dumps(cases_of(args.serve, args)))
            return 0
        cases = []
        for name in PEERS:
            own = [sys.executable, str(Path(__file__).resolve()), *(sys.argv[1:] if argv is None else argv)]
            done = subprocess.run([*own, "--serve", name], stdout=subprocess.PIPE, text=True)
            if done.returncode:
                return done.returncode
            cases += json.loads(done.stdout.splitlines()[-1])
    except InputError as error:
        print(f"agent_speed.py: {error}", file=sys.stderr)
        return 2
    cores, device = len(os.sched_getaffinity(0)), jax.local_devices()[0]
    note = NOTE.format(
        ogbench=commit(args.ogbench),
        fql=commit(args.fql),
        hardware=f"{cores} CPU core{'s' * (cores > 1)}" if device.platform == "cpu" else device.device_kind,
        jax=jax.__version__,
        rounds=args.rounds,
        updates=args.updates,
        hidden="×".join(map(str, args.hidden_dims)),
        batch=args.batch_size,
    )
    args.out.write_text(json.dumps({"note": note, "cases": cases}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
