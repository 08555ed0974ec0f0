"""Gradient updates per second beside two other JAX collections, measured in one process.

    git clone https://github.com/EmptyJackson/unifloral /tmp/unifloral
    git clone https://github.com/nissymori/JAX-CORL /tmp/jax-corl
    pip install --no-deps --target /tmp/peer-packages distrax tensorflow-probability dm-tree six \
        decorator cloudpickle gast omegaconf antlr4-python3-runtime==4.9.3
    python results/peer_speed.py --unifloral /tmp/unifloral --jax-corl /tmp/jax-corl \
        --packages /tmp/peer-packages

Their own update functions run from their checkouts, with stand-ins for the packages that no update
uses (d4rl, gym, wandb). Data: 1M synthetic rows, 11 observations, 3 actions. Rounds are interleaved
in changing order, so that a busy machine slows all sides alike; compiling is timed apart.
Writes results/peer_speed.json, from which `make report` makes its table.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.arguments import float_fields
from shared.data import Dataset
from shared.errors import InputError
from shared.goals import GoalDataset
from shared.lanes import make_mesh, over_lanes, use_cpu_devices
from shared.task import Spec, Task

ROOT = Path(__file__).resolve().parents[1]
OBS, ACTION = 11, 3
NOTE = """\
Beside other collections' own update functions, in one process on {hardware}, jax {jax}, {rounds}
interleaved rounds of about {updates} updates. One update is one critic step on a batch of 256,
networks 256×256. The work is not quite the same: Unifloral ({uf}) takes both critic steps between
two TD3 actor steps on one batch; JAX-CORL ({jc}) adds layer norm to TD3's critics and IQL's value,
and returns to Python every 8 updates. Unifloral's lanes are its update vmapped by us; JAX-CORL has
none."""


class Side(NamedTuple):
    """One collection in a comparison."""

    build: Callable[[], tuple[Callable, float]]
    """-> (compiled function, seconds it took to trace and compile)."""
    call: Callable[[Any, Callable], Any]
    """(state, compiled function) -> the state after all updates of one round."""
    state: Any


def synthetic(rows: int) -> Dataset:
    """Random transitions, a terminal every 1000 rows."""
    rng = np.random.default_rng(0)
    normal = partial(rng.standard_normal, dtype=np.float32)
    terminal = np.arange(1, rows + 1) % 1000 == 0
    spec = Spec((OBS,), ACTION, False, (-1.0,) * ACTION, (1.0,) * ACTION)
    return Dataset(
        task=Task("synthetic", "", spec),
        obs=normal((rows, OBS)),
        action=np.tanh(normal((rows, ACTION))),
        reward=normal(rows),
        next_obs=normal((rows, OBS)),
        terminal=terminal,
        last=terminal,
    )


# --------------------------------------------------------------------------------------- the sides


def load(file: Path, name: str) -> types.ModuleType:
    """A file as a module; what it does to the command line and environment is undone."""
    if not file.exists():
        raise InputError(f"There is no {file}.")
    argv, environment = sys.argv, dict(os.environ)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    sys.argv = [str(file)]  # JAX-CORL reads its settings when it is imported
    try:
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return module


class _StandIn(types.ModuleType):
    """A package of which only names are looked up (`gym.Env` in an annotation)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name)


def prepare_peers(packages: Path | None) -> None:
    """Makes the peers' imports succeed with today's jax."""
    if packages:
        sys.path.append(str(packages))
    for name in ("d4rl", "gym", "wandb"):
        sys.modules[name] = _StandIn(name)
    # tensorflow-probability, below distrax, looks for this table where jax once had it
    import jax._src.core
    import jax.interpreters.xla

    jax.interpreters.xla.pytype_aval_mappings = jax._src.core.pytype_aval_mappings
    try:
        import distrax  # noqa: F401
        import omegaconf  # noqa: F401
    except ImportError as error:
        raise InputError(f"The peers need a package: {error}; see the top of {__file__}.") from None


def ours(
    algorithm: str, lanes: int, data: Dataset | GoalDataset, updates: int, fields: Iterable[str] = (), **settings: Any
) -> Side:
    """`fields`: of a batch, where they are not the usual ones; `settings`: arguments other than the file's defaults."""
    module = load(next(ROOT.glob(f"algorithms/*/{algorithm}.py")), f"ours_{algorithm}")
    args, mesh = module.Args(**settings), make_mesh(lanes)
    args = dataclasses.replace(
        args, **{name: jnp.full(lanes, getattr(args, name)) for name in float_fields(type(args))}
    )
    transitions = data.transitions(*fields)
    keys = jax.random.split(jax.random.key(0), lanes)
    agent = over_lanes(partial(module.init, spec=data.task.spec), mesh, (0, 0))(keys, args)
    train = over_lanes(module.train, mesh, (0, 0, 0, None), donate=True)

    def call(state, f):
        agent, keys = state
        keys, now = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        now = jax.vmap(lambda key: jax.random.split(key, updates))(now)
        agent, _ = f(agent, now, args, transitions)
        return agent, keys

    now = jax.vmap(lambda key: jax.random.split(key, updates))(keys)
    return Side(partial(_compiled, train, agent, now, args, transitions), call, (agent, keys))


def unifloral(root: Path, algorithm: str, lanes: int, data: Dataset, updates: int) -> Side:
    peer = load(root / "algorithms" / f"{algorithm}.py", f"unifloral_{algorithm}")
    args = peer.Args()
    rows = peer.Transition(
        jnp.asarray(data.obs),
        jnp.asarray(data.action),
        jnp.asarray(data.reward),
        jnp.asarray(data.next_obs),
        jnp.asarray(data.terminal, jnp.float32),
    )
    mean, std = rows.obs.mean(0), rows.obs.std(0)
    obs, action = jnp.zeros(OBS), jnp.zeros(ACTION)
    q = peer.DualQNetwork(mean, std)
    if algorithm == "td3_bc":
        actor, value = peer.DeterministicTanhActor(ACTION, mean, std), None
        per_step = args.num_critic_updates_per_step
    else:
        actor, value = peer.TanhGaussianActor(ACTION, mean, std), peer.StateValueFunction(mean, std)
        per_step = 1
    networks = {"actor": (actor, [obs]), "actor_target": (actor, [obs])}
    networks |= {"dual_q": (q, [obs, action]), "dual_q_target": (q, [obs, action])}
    networks |= {"value": (value, [obs])}

    def init(key):
        parts = {name: peer.create_train_state(args, key, *networks[name]) for name in fields}
        return key, peer.AgentTrainState(**parts)

    def train(state, rows):
        nets = [net.apply for net in (actor, q, value) if net is not None]
        step = peer.make_train_step(args, *nets, rows)
        return jax.lax.scan(step, state, None, updates // per_step)

    fields = peer.AgentTrainState._fields
    keys = jax.random.split(jax.random.PRNGKey(0), lanes)
    state = jax.vmap(init)(keys) if lanes > 1 else init(keys[0])
    train = jax.jit(jax.vmap(train, (0, None)) if lanes > 1 else train)
    return Side(partial(_compiled, train, state, rows), lambda s, f: f(s, rows)[0], state)


def jax_corl(root: Path, algorithm: str, data: Dataset, updates: int) -> Side:
    name = {"td3_bc": "td3bc", "iql": "iql"}[algorithm]
    peer = load(root / "algos" / f"{name}.py", f"jax_corl_{name}")
    config = peer.config
    rows = {
        "observations": data.obs,
        "actions": data.action,
        "rewards": data.reward,
        "next_observations": data.next_obs,
        "dones": data.terminal.astype(np.float32),
        "dones_float": data.last.astype(np.float32),
    }
    rows = peer.Transition(*(jnp.asarray(rows[name]) for name in peer.Transition._fields))
    create = peer.create_td3bc_train_state if name == "td3bc" else peer.create_iql_train_state
    key = jax.random.PRNGKey(0)
    state = create(key, rows.observations[0], rows.actions[0], config)
    algo = peer.TD3BC if name == "td3bc" else peer.IQL
    update = jax.jit(algo.update_n_times, static_argnums=(3,))

    def call(state, f):
        state, key = state
        for _ in range(updates // config.n_jitted_updates):
            key, now = jax.random.split(key)
            state, _ = f(state, rows, now)
        return state, key

    return Side(partial(_compiled, update, state, rows, key, config), call, (state, key))


def _compiled(f: Callable, *args: Any) -> tuple[Callable, float]:
    """An ahead-of-time compiled `f`, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    compiled = f.lower(*args).compile()
    return compiled, time.perf_counter() - start


# ---------------------------------------------------------------------------------- the comparison


def compare(sides: dict[str, Side], updates: int, rounds: int) -> tuple[dict, dict]:
    """({side: updates per second of every round}, {side: seconds to compile}).

    `updates`: of all lanes together, in one round.
    """
    functions, states, compile_s = {}, {}, {}
    for name, side in sides.items():
        functions[name], compile_s[name] = side.build()
        states[name] = jax.block_until_ready(side.call(side.state, functions[name]))  # not timed
    rates: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            states[name] = jax.block_until_ready(sides[name].call(states[name], functions[name]))
            rates[name].append(round(updates / (time.perf_counter() - start), 1))
    return rates, {name: round(seconds, 2) for name, seconds in compile_s.items()}


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--unifloral", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--jax-corl", type=Path, required=True, metavar="DIR", help="its checkout")
    option("--packages", type=Path, metavar="DIR", help="where the packages they need are")
    option("--rows", type=int, default=1_000_000, help="transitions (%(default)s)")
    option("--updates", type=int, default=2000, help="of all lanes in a round (%(default)s)")
    option("--rounds", type=int, default=7, help="timed rounds (%(default)s)")
    option("--lanes", type=int, default=8, help="lanes of the second comparison (%(default)s)")
    option("--out", type=Path, default=ROOT / "results" / "peer_speed.json", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        if args.updates < 8 * args.lanes:
            raise InputError("--updates must be at least 8 per lane.")
        use_cpu_devices(args.lanes)
        device = jax.local_devices()[0]
        prepare_peers(args.packages)
        data, cases = synthetic(args.rows), []
        for lanes in (1, args.lanes):
            updates = args.updates // lanes // 8 * 8  # JAX-CORL does 8 in one call
            for algorithm, title in (("td3_bc", "TD3+BC"), ("iql", "IQL")):
                sides = {
                    "ours": ours(algorithm, lanes, data, updates),
                    "Unifloral": unifloral(args.unifloral, algorithm, lanes, data, updates),
                }
                if lanes == 1:
                    sides["JAX-CORL"] = jax_corl(args.jax_corl, algorithm, data, updates)
                rates, compile_s = compare(sides, lanes * updates, args.rounds)
                name = f"{title}, {lanes} lane{'s' * (lanes > 1)}"
                cases.append({"name": name, "updates_per_s": rates, "compile_s": compile_s})
                medians = {side: round(float(np.median(r))) for side, r in rates.items()}
                print(name, medians, compile_s, flush=True)
    except InputError as error:
        print(f"peer_speed.py: {error}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    where = f"{cores} CPU core{'s' * (cores > 1)}" if device.platform == "cpu" else device.device_kind
    note = NOTE.format(
        hardware=where,
        jax=jax.__version__,
        rounds=args.rounds,
        updates=args.updates,
        uf=commit(args.unifloral),
        jc=commit(args.jax_corl),
    )
    args.out.write_text(json.dumps({"note": note, "cases": cases}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
