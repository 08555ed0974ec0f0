"""SAC-N and EDAC with many critics beside CORL's PyTorch and Unifloral's JAX: updates per second, peak memory.

    git clone https://github.com/corl-team/CORL /tmp/corl
    git clone https://github.com/EmptyJackson/unifloral /tmp/unifloral
    pip install --no-deps --target /tmp/peer-packages distrax tensorflow-probability dm-tree six \
        decorator cloudpickle gast omegaconf antlr4-python3-runtime==4.9.3
    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    python results/ensemble_speed.py --corl /tmp/corl --unifloral /tmp/unifloral --packages /tmp/peer-packages \
        --torch-python /tmp/torch/bin/python

Each side of a case (algorithm, critics, lanes) is a process of its own, which makes one round of updates whenever it is
told to. The sides of a case take turns in changing order, so that a busy machine slows all of them alike; its peak
memory is the process's. Their own update functions run from their checkouts, on the same synthetic rows (11
observations, 3 actions). Writes results/ensemble_speed.json, from which `make report` makes its table.
"""

import argparse
import itertools
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.sides import serve, take_turns, torch_version
from shared.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
OBS, ACTION = 11, 3
NAMES = {"sac_n": "SAC-N", "edac": "EDAC"}
NOTE = """\
SAC-N and EDAC beside CORL's PyTorch ({corl}, torch {torch}) and Unifloral's JAX ({unifloral}), on {hardware}, jax
{jax}: three layers of 256, batches of {batch}, {rows:,} synthetic rows, every side a process of its own, {rounds}
interleaved rounds, updates per lane and round: {updates}. Peak memory is the whole process's, interpreter and libraries
included. Unifloral's lanes are its update vmapped by us; CORL has none. Lanes that are mapped are copied in and out
once a round: rounds of few updates show them slower than runs are."""


class Case(NamedTuple):
    algorithm: str
    n_critics: int
    lanes: int

    @property
    def title(self) -> str:
        return f"{NAMES[self.algorithm]}, {self.n_critics} critics, {self.lanes} lane{'s' * (self.lanes > 1)}"


# ---------------------------------------------------------------- the sides, each in a process of its own


def ours(algorithm: str, settings: dict[str, Any], lanes: int, args: argparse.Namespace, layout: str):
    """-> (a round of `args.updates` updates, seconds to compile)."""
    import dataclasses
    from functools import partial

    import jax
    import jax.numpy as jnp

    from results.peer_speed import _compiled, load, synthetic
    from shared.arguments import float_fields
    from shared.lanes import make_mesh, over_lanes, use_cpu_devices

    use_cpu_devices(1 if layout == "vmap" else lanes)
    module = load(ROOT / "algorithms" / "offline" / f"{algorithm}.py", f"ours_{algorithm}")
    data, mesh = synthetic(args.rows), make_mesh(lanes)
    hyper = module.Args(batch_size=args.batch, **settings)
    fields = float_fields(type(hyper))
    hyper = dataclasses.replace(hyper, **{name: jnp.full(lanes, getattr(hyper, name)) for name in fields})
    keys = jax.random.split(jax.random.key(0), lanes)
    agent = over_lanes(partial(module.init, spec=data.spec), mesh, (0, 0), layout=layout)(keys, hyper)
    train = over_lanes(module.train, mesh, (0, 0, 0, None), donate=True, layout=layout)
    now = jax.vmap(lambda key: jax.random.split(key, args.updates))(keys)
    rows = data.transitions()
    train, compile_s = _compiled(train, agent, now, hyper, rows)

    def a_round():
        nonlocal agent
        agent, _ = train(agent, now, hyper, rows)
        jax.block_until_ready(agent)

    return a_round, compile_s


def unifloral(case: Case, args: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from results.peer_speed import _compiled, load, prepare_peers, synthetic

    prepare_peers(args.packages)
    peer = load(args.unifloral / "algorithms" / f"{case.algorithm}.py", f"unifloral_{case.algorithm}")
    config, data = peer.Args(), synthetic(args.rows)
    config.num_critics, config.batch_size = case.n_critics, args.batch
    terminal = data.terminal.astype(np.float32)
    rows = peer.Transition(*(jnp.asarray(x) for x in (data.obs, data.action, data.reward, data.next_obs, terminal)))
    actor, q, alpha = peer.TanhGaussianActor(ACTION), peer.VectorQ(case.n_critics), peer.EntropyCoef()
    obs, action = jnp.zeros(OBS), jnp.zeros(ACTION)
    networks = {"actor": (actor, [obs]), "vec_q": (q, [obs, action]), "vec_q_target": (q, [obs, action])}
    networks["alpha"] = (alpha, [])

    def init(key):
        parts = {name: peer.create_train_state(config, key, *net) for name, net in networks.items()}
        return key, peer.AgentTrainState(**parts)

    def train(state, rows):
        step = peer.make_train_step(config, actor.apply, q.apply, alpha.apply, rows)
        return jax.lax.scan(step, state, None, args.updates)[0]

    keys = jax.random.split(jax.random.PRNGKey(0), case.lanes)
    state = jax.vmap(init)(keys) if case.lanes > 1 else init(keys[0])
    train = jax.jit(jax.vmap(train, (0, None)) if case.lanes > 1 else train)
    train, compile_s = _compiled(train, state, rows)

    def a_round():
        nonlocal state
        state = jax.block_until_ready(train(state, rows))

    return a_round, compile_s


class _StandIn(types.ModuleType):
    """A package of which names are looked up and called when CORL's file is read, and nothing else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self  # a decorator of what it is given


def corl_module(file: Path) -> types.ModuleType:
    """One of CORL's files; of the packages around its update, stand-ins."""
    import importlib.util

    if not file.exists():
        raise InputError(f"There is no {file}.")
    stand_ins = {name: _StandIn(name) for name in ("d4rl", "gym", "pyrallis", "wandb", "tqdm")}
    sys.modules.update(stand_ins)
    spec = importlib.util.spec_from_file_location("corl_peer", file)
    peer = sys.modules["corl_peer"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(peer)
    for name in stand_ins:  # torch looks for some of them
        del sys.modules[name]
    return peer


def corl_buffer(peer: types.ModuleType, rows: int):
    """CORL's replay buffer, full of synthetic rows."""
    import torch

    rng = np.random.default_rng(0)
    normal = lambda *shape: torch.tensor(rng.standard_normal(shape, dtype=np.float32))  # noqa: E731
    buffer = peer.ReplayBuffer(OBS, ACTION, rows, "cpu")
    buffer._states, buffer._actions = normal(rows, OBS), torch.tanh(normal(rows, ACTION))
    buffer._rewards, buffer._next_states = normal(rows, 1), normal(rows, OBS)
    buffer._dones = (torch.arange(1, rows + 1) % 1000 == 0).float()[:, None]
    buffer._size = buffer._pointer = rows
    return buffer


def corl(case: Case, args: argparse.Namespace):
    import torch

    torch.set_num_threads(args.threads)
    peer = corl_module(args.corl / "algorithms" / "offline" / f"{case.algorithm}.py")
    buffer = corl_buffer(peer, args.rows)
    actor, critic = peer.Actor(OBS, ACTION, 256), peer.VectorizedCritic(OBS, ACTION, 256, case.n_critics)
    optimised = [x for net in (actor, critic) for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = getattr(peer, {"sac_n": "SACN", "edac": "EDAC"}[case.algorithm])(*optimised, device="cpu")

    def a_round():
        for _ in range(args.updates):
            trainer.update(buffer.sample(args.batch))

    return a_round, 0.0


SIDES: dict[str, Callable] = {
    "ours": lambda case, args: ours(case.algorithm, {"n_critics": case.n_critics}, case.lanes, args, "map"),
    "ours, vmapped": lambda case, args: ours(case.algorithm, {"n_critics": case.n_critics}, case.lanes, args, "vmap"),
    "Unifloral": unifloral,
    "CORL": corl,
}


# ---------------------------------------------------------------------------------- the comparison


def commands_of(case: Case, args: argparse.Namespace) -> dict[str, list[str]]:
    """{side: command line of its process}."""
    sides = ["ours", "Unifloral", "CORL"] if case.lanes == 1 else ["ours", "ours, vmapped", "Unifloral"]
    own = ("out", "serve", "lanes", "critics", "algorithms")
    given = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in own and value}
    return {
        side: [
            str(args.torch_python) if side == "CORL" else sys.executable,
            str(Path(__file__).resolve()),
            *(str(word) for pair in given.items() for word in pair),
            *("--serve", side, case.algorithm, str(case.n_critics), str(case.lanes)),
        ]
        for side in sides
    }


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--corl", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--unifloral", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--packages", type=Path, metavar="DIR", help="where the packages that Unifloral needs are")
    option("--torch-python", type=Path, required=True, metavar="FILE", help="a Python that has torch")
    option("--rows", type=int, default=100_000, help="transitions (%(default)s)")
    option("--batch", type=int, default=256, help="transitions per update (%(default)s)")
    option("--updates", type=int, default=4, help="of each lane in a round (%(default)s)")
    option("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (%(default)s, the cores)")
    option("--algorithms", nargs="+", choices=NAMES, default=list(NAMES), help="both, where none is named")
    option("--critics", type=int, nargs="+", default=[10, 50], help="in the ensemble (10 50)")
    option("--lanes", type=int, default=8, help="lanes of the second comparison (%(default)s)")
    option("--out", type=Path, default=ROOT / "results" / "ensemble_speed.json", metavar="FILE")
    option("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        if args.serve:
            side, algorithm, *sizes = args.serve
            a_round, compile_s = SIDES[side](Case(algorithm, *map(int, sizes)), args)
            serve({"updates": a_round}, compile_s)
            return 0
        cases, about = [], note(args)
        for case in itertools.starmap(Case, itertools.product(args.algorithms, args.critics, (1, args.lanes))):
            commands = commands_of(case, args)
            amounts = {"updates": dict.fromkeys(commands, case.lanes * args.updates)}
            measured = take_turns(commands, amounts, args.rounds)
            rates = measured.per_s["updates"]
            found = {"updates_per_s": rates, "compile_s": measured.compile_s, "peak_mib": measured.peak_mib}
            cases.append({"name": case.title, **found})
            args.out.write_text(json.dumps({"note": about, "cases": cases}, indent=1) + "\n")
            medians = {side: round(float(np.median(r)), 2) for side, r in rates.items()}
            print(case.title, medians, measured.peak_mib, flush=True)
    except InputError as error:
        print(f"ensemble_speed.py: {error}", file=sys.stderr)
        return 2
    return 0


def about_machine(args: argparse.Namespace) -> dict[str, str]:
    """What a note says of versions and cores."""
    import jax

    from results.peer_speed import commit

    cores = len(os.sched_getaffinity(0))
    hardware = f"{cores} CPU core{'s' * (cores > 1)}"
    return {
        "corl": commit(args.corl),
        "torch": torch_version(args.torch_python),
        "jax": jax.__version__,
        "hardware": hardware,
    }


def note(args: argparse.Namespace) -> str:
    from results.peer_speed import commit

    sizes = {name: getattr(args, name) for name in ("batch", "rows", "rounds", "updates")}
    return NOTE.format(unifloral=commit(args.unifloral), **about_machine(args), **sizes)


if __name__ == "__main__":
    sys.exit(main())
