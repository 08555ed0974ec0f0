"""Gradient updates per second beside two other JAX collections, measured in one process.

    git clone https://github.com/EmptyJackson/unifloral /tmp/unifloral
    git clone https://github.com/nissymori/JAX-CORL /tmp/jax-corl
    pip install --no-deps --target /tmp/peer-packages distrax tensorflow-probability dm-tree six \
        decorator cloudpickle gast omegaconf antlr4-python3-runtime==4.9.3
    python results/peer_speed.py --unifloral /tmp/unifloral --jax-corl /tmp/jax-corl \
        --packages /tmp/peer-packages

Their own update functions run from their checkouts, with stand-ins for the packages that no update uses (d4rl, gym,
wandb), on batches and networks of one size. Data: 1M synthetic rows, 11 observations, 3 actions. A call of MOPO and
COMBO makes rollouts in a model and then the updates that learn from them. Rounds are interleaved in changing order, so
that a busy machine slows all sides alike; compiling is timed apart. Writes results/peer_speed.json, from which
`make report` makes its table.
"""

import argparse
import dataclasses
import importlib.util
import itertools
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
from shared.replay import init_replay
from shared.task import Spec, Task
from shared.transitions import FIELDS

ROOT = Path(__file__).resolve().parents[1]
OBS, ACTION = 11, 3
NOTE = """\
Beside other collections' own update functions, in one process on {hardware}, jax {jax}, {rounds}
interleaved rounds. One update is one critic step, on batches and networks of one size. The work is
not quite the same: Unifloral ({uf}) takes both critic steps between two TD3 or ReBRAC actor steps on
one batch, and IQL's advantages from V before its step (15 passes through a network; ours, like the
authors' code, asks the new V: 16); JAX-CORL ({jc}) adds layer norm to TD3's and AWAC's critics and
IQL's value, averages AWAC's loss over all pairs of the batch, moves its target once in 8 updates, and
returns to Python every 8 updates (CQL: 2). A round of MOPO's and COMBO's updates begins with rollouts
of 5 steps in untrained models of four layers of 200, {rollouts} for each update of a lane; ours asks
all 7 members, Unifloral its 5 elites, and what its COMBO pushes down has no gradient. Lanes of theirs
are their updates vmapped by us, of MOPO and COMBO mapped one after the other."""


class Case(NamedTuple):
    """One algorithm beside the collections that have it."""

    algorithm: str
    settings: dict[str, Any]
    """Ours, where they are not the file's defaults."""
    unifloral: str | None
    jax_corl: str | None
    """Their files' names, None where they have none."""
    share: int = 1
    """Of so many updates one is made: its updates take longer than TD3+BC's."""
    fields: tuple[str, ...] = ()
    """Of our batches, where they are not the usual ones."""
    model_based: bool = False
    """A call begins with rollouts in a model."""


OF_MODEL = (*FIELDS, "successor")
CASES = {
    "TD3+BC": Case("td3_bc", {}, "td3_bc", "td3bc"),
    "IQL": Case("iql", {}, "iql", "iql"),
    "AWAC": Case("awac", {}, None, "awac", 2),
    "XQL": Case("f_dvl", {"divergence": "reverse_kl", "batch_size": 256}, None, "xql"),
    "ReBRAC": Case("rebrac", {}, "rebrac", None, 4, (*FIELDS, "next_action")),
    "CQL": Case("cql", {}, None, "cql", 8),
    "CQL with one action of a kind": Case("cql", {"n_actions": 1, "importance_sampling": False}, "cql", None, 4),
    "MOPO": Case("mopo", {"hidden_dims": (256,) * 3}, "mopo", None, 4, OF_MODEL, model_based=True),
    "COMBO with one action of a kind": Case(
        "combo", {"hidden_dims": (256,) * 3, "n_actions": 1}, "combo", None, 4, OF_MODEL, model_based=True
    ),
}
ROLLOUTS, ROLLOUT_STEPS, KEPT = 20, 5, 5
"""For each update of a lane; their steps; calls whose rollouts are kept."""
UNIFLORAL = {name: {"num_critics": 2} for name in ("cql", "mopo", "combo")}
JAX_CORL = {
    "awac": {"actor_hidden_dims": (256,) * 3, "critic_hidden_dims": (256,) * 3},
    "cql": {"hidden_dims": (256,) * 3, "action_dim": ACTION, "n_jitted_updates": 2},
}
"""What makes their batches and networks as large as ours; fewer updates in a call compile sooner."""


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

    jax.tree_map = jax.tree.map  # Unifloral's model-based files call it so

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


def ours_with_model(
    algorithm: str, lanes: int, data: Dataset, updates: int, fields: Iterable[str], **settings: Any
) -> Side:
    """A call: rollouts in each lane's untrained model, and `updates` that learn from them and from the data."""
    module = load(next(ROOT.glob(f"algorithms/*/{algorithm}.py")), f"ours_{algorithm}")
    rollouts = {"rollout_every": updates, "rollout_batch": ROLLOUTS * updates, "rollout_rounds": KEPT}
    args, mesh = module.Args(**settings, **rollouts, rollout_steps=float(ROLLOUT_STEPS)), make_mesh(lanes)
    args = dataclasses.replace(
        args, **{name: jnp.full(lanes, getattr(args, name)) for name in float_fields(type(args))}
    )
    transitions = data.transitions(*fields)
    keys = jax.random.split(jax.random.key(0), lanes)
    agent = over_lanes(partial(module.init, spec=data.task.spec), mesh, (0, 0))(keys, args)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lane"))
    replay = init_replay(lanes, KEPT * ROLLOUTS * updates * ROLLOUT_STEPS, data.task.spec, sharding)

    def never(obs):
        return jnp.zeros(len(obs), bool)

    make_rollouts = partial(module.rollout, steps=ROLLOUT_STEPS, ends=never, exact=None)
    train = over_lanes(partial(module.train, make_rollouts=make_rollouts), mesh, (0, 0, 0, None), donate=True)

    def call(state, f):
        lane, keys = state
        keys, now = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        lane, _ = f(lane, jax.vmap(lambda key: jax.random.split(key, updates))(now), args, transitions)
        return lane, keys

    now = jax.vmap(lambda key: jax.random.split(key, updates))(keys)
    return Side(partial(_compiled, train, (agent, replay), now, args, transitions), call, ((agent, replay), keys))


def unifloral_with_model(root: Path, algorithm: str, lanes: int, data: Dataset, updates: int) -> Side:
    load(root / "algorithms" / "termination_fns.py", "termination_fns")
    dynamics = load(root / "algorithms" / "dynamics.py", "dynamics")
    peer = load(root / "algorithms" / f"{algorithm}.py", f"unifloral_{algorithm}")
    batch = ROLLOUTS * updates
    rollouts = {"rollout_interval": updates, "rollout_length": ROLLOUT_STEPS, "rollout_batch_size": batch}
    args = dataclasses.replace(peer.Args(), **UNIFLORAL[algorithm], **rollouts)
    rows = {"obs": data.obs, "action": data.action, "reward": data.reward, "next_obs": data.next_obs}
    rows |= {"next_action": np.roll(data.action, -1, 0), "done": data.terminal.astype(np.float32)}
    rows = dynamics.Transition(*(jnp.asarray(rows[name]) for name in dynamics.Transition._fields))
    model, sizes = dynamics.Args(), {"obs_dim": OBS, "action_dim": ACTION}
    sizes |= {"n_layers": model.n_layers, "layer_size": model.layer_size}
    actor, critics, alpha = peer.TanhGaussianActor(ACTION), peer.VectorQ(args.num_critics), peer.EntropyCoef()
    obs, action = jnp.zeros(OBS), jnp.zeros(ACTION)

    def init(key):
        inputs = {"actor": (actor, [obs]), "vec_q": (critics, [obs, action]), "alpha": (alpha, [])}
        inputs["vec_q_target"] = inputs["vec_q"]
        made = {name: peer.create_train_state(args, key, *inputs[name]) for name in peer.AgentTrainState._fields}
        ensemble = dynamics.EnsembleDynamicsModel(num_ensemble=model.num_elites, **sizes)
        model_params = ensemble.init(key, jnp.zeros(OBS + ACTION))
        buffer = jax.tree.map(lambda x: jnp.zeros((batch * ROLLOUT_STEPS * KEPT, *x.shape[1:])), rows)
        return (key, peer.AgentTrainState(**made), buffer), model_params

    def train_lane(state, rows):
        lane, model_params = state
        net = dynamics.EnsembleDynamicsModel(num_ensemble=model.num_elites, **sizes)
        # their class sets the number of members on the network itself, which today's flax forbids
        ensemble = types.SimpleNamespace(apply=net.apply)
        elites, never = jnp.arange(model.num_elites), lambda obs, action, next_obs: jnp.zeros((), bool)
        learned = dynamics.EnsembleDynamics(ensemble, model_params, elites, never)
        learned.dataset = rows
        rollout = learned.make_rollout_fn(
            batch_size=batch, rollout_length=ROLLOUT_STEPS, step_penalty_coef=getattr(args, "step_penalty_coef", 0.0)
        )
        step = peer.make_train_step(args, actor.apply, critics.apply, alpha.apply, rows, rollout)
        lane, metrics = jax.lax.scan(step, lane, None, updates)
        return (lane, model_params), metrics

    def train_lanes(states, rows):
        # one after the other: under vmap their `cond` would make the rollouts before every update
        return jax.lax.map(lambda state: train_lane(state, rows), states)

    keys = jax.random.split(jax.random.PRNGKey(0), lanes)
    state = jax.vmap(init)(keys) if lanes > 1 else init(keys[0])
    train = jax.jit(train_lanes if lanes > 1 else train_lane)
    return Side(partial(_compiled, train, state, rows), lambda s, f: f(s, rows)[0], state)


def unifloral(root: Path, algorithm: str, lanes: int, data: Dataset, updates: int) -> Side:
    peer = load(root / "algorithms" / f"{algorithm}.py", f"unifloral_{algorithm}")
    args = dataclasses.replace(peer.Args(), **UNIFLORAL.get(algorithm, {}))
    rows = {"obs": data.obs, "action": data.action, "reward": data.reward, "next_obs": data.next_obs}
    rows |= {"next_action": np.roll(data.action, -1, 0), "done": data.terminal.astype(np.float32)}
    rows = peer.Transition(*(jnp.asarray(rows[name]) for name in peer.Transition._fields))
    mean, std = rows.obs.mean(0), rows.obs.std(0)
    obs, action = jnp.zeros(OBS), jnp.zeros(ACTION)
    parts: dict[str, Any] = {}
    if algorithm == "td3_bc":
        parts = {"actor": peer.DeterministicTanhActor(ACTION, mean, std), "dual_q": peer.DualQNetwork(mean, std)}
    elif algorithm == "rebrac":
        actor = peer.DeterministicTanhActor(ACTION, mean, std, args.actor_ln, args.norm_obs)
        parts = {"actor": actor, "dual_q": peer.DualQNetwork(mean, std, args.critic_ln, args.norm_obs)}
    elif algorithm == "iql":
        parts = {"actor": peer.TanhGaussianActor(ACTION, mean, std), "dual_q": peer.DualQNetwork(mean, std)}
        parts["value"] = peer.StateValueFunction(mean, std)
    else:
        parts = {"actor": peer.TanhGaussianActor(ACTION), "vec_q": peer.VectorQ(args.num_critics)}
        parts["alpha"] = peer.EntropyCoef()
    inputs = {"actor": [obs], "value": [obs], "dual_q": [obs, action], "vec_q": [obs, action], "alpha": []}

    def init(key):
        names = {field: field.removesuffix("_target") for field in peer.AgentTrainState._fields}
        made = {field: peer.create_train_state(args, key, parts[n], inputs[n]) for field, n in names.items()}
        return key, peer.AgentTrainState(**made)

    def train(state, rows):
        step = peer.make_train_step(args, *(net.apply for net in parts.values()), rows)
        return jax.lax.scan(step, state, None, updates // getattr(args, "num_critic_updates_per_step", 1))

    keys = jax.random.split(jax.random.PRNGKey(0), lanes)
    state = jax.vmap(init)(keys) if lanes > 1 else init(keys[0])
    train = jax.jit(jax.vmap(train, (0, None)) if lanes > 1 else train)
    return Side(partial(_compiled, train, state, rows), lambda s, f: f(s, rows)[0], state)


def jax_corl(root: Path, name: str, lanes: int, data: Dataset, updates: int) -> Side:
    peer = load(root / "algos" / f"{name}.py", f"jax_corl_{name}")
    config = peer.config
    for field, value in JAX_CORL.get(name, {}).items():
        setattr(config, field, value)
    rows = {
        "observations": data.obs,
        "actions": data.action,
        "rewards": data.reward,
        "next_observations": data.next_obs,
        "dones": data.terminal.astype(np.float32),
        "dones_float": data.last.astype(np.float32),
    }
    rows = peer.Transition(*(jnp.asarray(rows[name]) for name in peer.Transition._fields))
    create = getattr(peer, f"create_{name}_train_state")
    algo = {"td3bc": "TD3BC"}.get(name, name.upper())
    n_times = getattr(peer, algo).update_n_times
    keys = jax.random.split(jax.random.PRNGKey(0), lanes)
    states = [create(key, rows.observations[0], rows.actions[0], config) for key in keys]
    form = jax.tree.structure(states[0])  # each has an optimiser of its own in it
    stacked = map(jnp.stack, zip(*map(jax.tree.leaves, states), strict=True))
    state = states[0] if lanes == 1 else form.unflatten(stacked)

    def update(state, rows, key):
        return n_times(state, rows, key, config)

    update = jax.jit(update if lanes == 1 else jax.vmap(update, (0, None, 0)))

    def call(state, f):
        state, key = state
        for _ in range(updates // config.n_jitted_updates):
            key, now = jax.random.split(key)
            state, _ = f(state, rows, now if lanes == 1 else jax.random.split(now, lanes))
        return state, key

    return Side(partial(_compiled, update, state, rows, keys[0] if lanes == 1 else keys), call, (state, keys[0]))


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
    option("--cases", nargs="+", default=list(CASES), choices=CASES, help="(all)")
    option("--out", type=Path, default=ROOT / "results" / "peer_speed.json", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        slowest = max(CASES[title].share for title in args.cases)
        if args.updates < 8 * args.lanes * slowest:
            raise InputError(f"--updates must be at least {8 * args.lanes * slowest}: 8 for each lane of every case.")
        use_cpu_devices(args.lanes)
        device = jax.local_devices()[0]
        prepare_peers(args.packages)
        cores = len(os.sched_getaffinity(0))
        note = NOTE.format(
            hardware=f"{cores} CPU core{'s' * (cores > 1)}" if device.platform == "cpu" else device.device_kind,
            jax=jax.__version__,
            rounds=args.rounds,
            rollouts=ROLLOUTS,
            uf=commit(args.unifloral),
            jc=commit(args.jax_corl),
        )
        data, cases = synthetic(args.rows), []
        for title, lanes in itertools.product(args.cases, (1, args.lanes)):
            case = CASES[title]
            updates = args.updates // case.share // lanes // 8 * 8  # JAX-CORL does 8 in one call
            mine, theirs = (ours_with_model, unifloral_with_model) if case.model_based else (ours, unifloral)
            sides = {"ours": mine(case.algorithm, lanes, data, updates, case.fields, **case.settings)}
            if case.unifloral:
                sides["Unifloral"] = theirs(args.unifloral, case.unifloral, lanes, data, updates)
            if case.jax_corl:
                sides["JAX-CORL"] = jax_corl(args.jax_corl, case.jax_corl, lanes, data, updates)
            rates, compile_s = compare(sides, lanes * updates, args.rounds)
            name = f"{title}, {lanes} lane{'s' * (lanes > 1)}"
            cases.append({"name": name, "updates_per_s": rates, "compile_s": compile_s, "updates": lanes * updates})
            args.out.write_text(json.dumps({"note": note, "cases": cases}, indent=1) + "\n")
            print(name, {side: round(float(np.median(r)), 1) for side, r in rates.items()}, compile_s, flush=True)
    except InputError as error:
        print(f"peer_speed.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
