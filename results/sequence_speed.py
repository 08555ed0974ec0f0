"""Sequence models: updates and actions per second beside other code; what acting costs by how it remembers.

    git clone https://github.com/tinkoff-ai/CORL /tmp/corl
    git clone https://github.com/nissymori/JAX-CORL /tmp/jax-corl
    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    python results/sequence_speed.py --corl /tmp/corl --jax-corl /tmp/jax-corl --torch-python /tmp/torch/bin/python

Four parts, of which --parts names some (the others' cases stay in the file):

- beside: decision_transformer beside CORL's dt.py (PyTorch) and JAX-CORL's algos/dt.py, each in a process of its own. A
  lane of theirs would be another process: their rate is that of one;
- updates: those of every file of algorithms/sequence as its `main` makes them, of as many lanes, and the share of the
  limit that their own matrix products set, as results/speed.py measures both;
- actions: the compiled `act` of the same files, by turns with decision_transformer's;
- memory: decision_transformer's `act`, which runs the network on a ring of the last K steps, beside the same on all
  that an episode of --history steps has seen, and beside a cache of keys and values, which gives the same actions as
  long as no step leaves the window.

What is compared takes turns, so that a busy machine slows all alike; compiling is timed apart.
Writes results/sequence_speed.json, from which `make report` makes its tables.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from results.sides import serve, take_turns, torch_version
from shared.errors import InputError

OBS, ACTION, LENGTH = 11, 3, 1000
"""Hopper's shapes; rows of an episode."""
NOTE = """\
decision_transformer.py beside CORL's dt.py ({corl}, torch {torch}, {threads} thread{s}) and JAX-CORL's algos/dt.py
({jax_corl}), on {cores} CPU cores, jax {jax}: {layers} blocks of width {width}, windows of {context} steps, batches of
{batch}, {rounds} interleaved rounds. The work is not quite the same: CORL's and ours have dropout in the attention's
weights, JAX-CORL also foretells states and returns; the two return to Python after every update, and CORL's windows
are drawn here without its loader's processes. An action is of one episode whose window is full; JAX-CORL does not
compile it."""


# ------------------------------------------------------------------------- beside other code


def rows(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random observations, actions in [-1, 1] and returns-to-go [E, LENGTH, ...] of E episodes."""
    rng, n = np.random.default_rng(0), args.rows // LENGTH
    obs, action = (rng.uniform(-1, 1, (n, LENGTH, size)).astype(np.float32) for size in (OBS, ACTION))
    return obs, action, np.broadcast_to(np.arange(LENGTH, 0, -1, dtype=np.float32) / LENGTH, (n, LENGTH))


def ours(lanes: int, args: argparse.Namespace):
    """-> ({what: a round}, seconds to compile all)."""
    import jax

    from results.peer_speed import _compiled
    from shared.data import Dataset
    from shared.sequences import sequences
    from shared.task import Task

    module, hyper, mesh, over_lanes = prepared("decision_transformer", lanes, args)
    keys = jax.random.split(jax.random.key(0), lanes)
    agent = over_lanes(partial(module.init, spec=spec_of()), mesh, (0, 0))(keys, hyper)
    obs, action, _ = rows(args)
    flat, last = obs.reshape(-1, OBS), np.arange(1, args.rows + 1) % LENGTH == 0
    reward = np.full(args.rows, 1.0 / LENGTH, np.float32)
    data = Dataset(Task("", "", spec_of()), flat, action.reshape(-1, ACTION), reward, flat, np.zeros_like(last), last)
    windows = sequences(data, "obs", "action", "return_to_go")
    now = jax.vmap(lambda key: jax.random.split(key, args.updates))(keys)
    train, seconds = _compiled(over_lanes(module.train, mesh, (0, 0, 0, None), donate=True), agent, now, hyper, windows)
    act, more = acting(module, agent, hyper, mesh, lanes, args.actions)

    def updates():
        nonlocal agent
        agent = jax.block_until_ready(train(agent, now, hyper, windows)[0])

    return {"updates": updates, "actions": lambda: act(agent)}, seconds + more


def corl(lanes: int, args: argparse.Namespace):
    import torch

    torch.set_num_threads(args.threads)
    stand_in("d4rl", "gym", "wandb", "tqdm", "tqdm.auto")
    sys.modules["pyrallis"] = types.SimpleNamespace(wrap=lambda: lambda f: f)
    for name in ("tqdm", "trange"):
        setattr(sys.modules["tqdm.auto"], name, None)
    sys.modules["gym"].Env = sys.modules["gym"].Wrapper = object
    file = importlib.util.spec_from_file_location("corl_dt", args.corl / "algorithms" / "offline" / "dt.py")
    sys.modules["corl_dt"] = dt = importlib.util.module_from_spec(file)
    file.loader.exec_module(dt)
    for name in ("d4rl", "gym", "wandb", "tqdm", "tqdm.auto", "pyrallis"):  # which torch looks for, too
        del sys.modules[name]

    sizes = {"seq_len": args.context, "embedding_dim": args.width, "num_layers": args.layers, "num_heads": 1}
    dropout = {f"{part}_dropout": 0.1 for part in ("attention", "residual", "embedding")}
    net = dt.DecisionTransformer(OBS, ACTION, episode_len=LENGTH, **sizes, **dropout)
    optim = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: min((step + 1) / 10_000, 1))
    obs, action, togo = (torch.tensor(x) for x in rows(args))
    mask, rng = torch.zeros(args.batch, args.context, dtype=torch.bool), np.random.default_rng(0)

    def updates():
        net.train()
        for _ in range(args.updates):
            episode = torch.tensor(rng.integers(len(obs), size=args.batch))[:, None]
            at = torch.tensor(rng.integers(LENGTH - args.context, size=args.batch))[:, None]
            at = at + torch.arange(args.context)
            a = action[episode, at]
            out = net(obs[episode, at], a, togo[episode, at], at, padding_mask=mask)
            loss = ((out - a) ** 2).mean()
            optim.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            optim.step()
            scheduler.step()

    seen = [x[:1, : args.context] for x in (obs, action, togo)]

    @torch.no_grad()
    def actions():
        net.eval()
        for _ in range(args.actions):
            net(*seen, torch.arange(args.context)[None])[0, -1].numpy()

    return {"updates": updates, "actions": actions}, 0.0


def jax_corl(lanes: int, args: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from results.peer_speed import load

    stand_in("d4rl", "gym", "wandb", "omegaconf")
    sys.modules["gym"].Env = object
    sys.modules["omegaconf"].OmegaConf = types.SimpleNamespace(from_cli=dict)
    peer = load(args.jax_corl / "algos" / "dt.py", "jax_corl_dt")
    config = peer.DTConfig(batch_size=args.batch, context_len=args.context, n_blocks=args.layers, embed_dim=args.width)
    obs, action, togo = map(jnp.asarray, rows(args))
    steps = jnp.broadcast_to(jnp.arange(LENGTH), togo.shape)
    data = peer.Trajectory(steps, obs, action, togo[..., None], jnp.ones(togo.shape))
    lengths, rng = jnp.full(len(obs), LENGTH), jax.random.PRNGKey(0)
    state, update = peer.create_dt_train_state(rng, OBS, ACTION, config), jax.jit(peer.DT.update)

    def updates():
        nonlocal state, rng
        for _ in range(args.updates):
            rng, data_rng, update_rng = jax.random.split(rng, 3)
            batch = peer.sample_traj_batch(data_rng, data, args.batch, args.context, len(obs), lengths)
            state, loss = update(state, batch, update_rng)
        jax.block_until_ready((state, loss))

    seen = [x[:1, : args.context] for x in (data.timesteps, data.states, data.actions, data.returns_to_go)]

    def actions():
        for _ in range(args.actions):
            np.asarray(peer.DT.get_action(state, *seen)[0, -1])

    return {"updates": updates, "actions": actions}, 0.0


SIDES = {"ours": ours, "CORL": corl, "JAX-CORL": jax_corl}


def stand_in(*names: str) -> None:
    """Packages that neither an update nor an action uses."""
    for name in names:
        sys.modules[name] = types.ModuleType(name)


def beside(args: argparse.Namespace, argv: list[str]) -> dict:
    if not (args.corl and args.jax_corl and args.torch_python):
        raise InputError("--parts beside needs --corl, --jax-corl and --torch-python; see the top of this file.")
    cases = []
    for lanes in args.lanes:
        own = [str(Path(__file__).resolve()), *argv]
        python = {"CORL": str(args.torch_python)}
        commands = {s: [python.get(s, sys.executable), *own, "--serve", s, str(lanes)] for s in SIDES}
        amounts = {
            what: {side: n * (lanes if side == "ours" else 1) for side in SIDES}
            for what, n in (("updates", args.updates), ("actions", args.actions))
        }
        found = take_turns(commands, amounts, args.rounds)
        cases.append({"lanes": lanes, **found._asdict()})
        print(lanes, {what: {s: float(np.median(r)) for s, r in of.items()} for what, of in found.per_s.items()})
    return {"note": note(args), "cases": cases}


def note(args: argparse.Namespace) -> str:
    import jax

    from results.peer_speed import commit

    sizes = {name: getattr(args, name) for name in ("layers", "width", "context", "batch", "rounds", "threads")}
    return NOTE.format(
        corl=commit(args.corl),
        jax_corl=commit(args.jax_corl),
        torch=torch_version(args.torch_python),
        jax=jax.__version__,
        cores=len(os.sched_getaffinity(0)),
        s="s" * (args.threads > 1),
        **sizes,
    )


# ------------------------------------------------------------------------ acting, of our files


def spec_of(discrete: bool = False, goal: bool = False):
    from shared.task import Spec

    if discrete:
        return Spec((OBS,), ACTION, True)
    return Spec((OBS,), ACTION, False, (-1.0,) * ACTION, (1.0,) * ACTION, **({"goal_shape": (OBS,)} if goal else {}))


def prepared(name: str, lanes: int, args: argparse.Namespace, **changes):
    """-> (module, Args of all lanes, mesh, over_lanes)."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from results.peer_speed import load
    from shared.arguments import float_fields
    from shared.lanes import make_mesh, over_lanes, use_cpu_devices

    use_cpu_devices(lanes)
    mesh = make_mesh(lanes)
    module = load(next(ROOT.glob(f"algorithms/sequence/{name}.py")), name)
    known = {f.name: f.default for f in dataclasses.fields(module.Args)}
    sizes = {"width": args.width, "layers": args.layers, "heads": 1, "encoder_heads": 1, "context": args.context}
    sizes |= {"batch_size": args.batch, "max_timestep": LENGTH, "n_tasks": 1, "return_scale": 1.0} | changes
    hyper = module.Args(**{n: x for n, x in sizes.items() if n in known})
    swept = {n: jnp.full(lanes, getattr(hyper, n)) for n in float_fields(type(hyper))}
    jax.config.update("jax_default_matmul_precision", "float32")
    return module, dataclasses.replace(hyper, **swept), mesh, over_lanes


def acting(module, agent, hyper, mesh, lanes: int, steps: int):
    """`steps` actions of one episode of each lane, one after the other; ({agent: none}, seconds to compile)."""
    import inspect

    import jax
    import jax.numpy as jnp

    from results.peer_speed import _compiled
    from shared.lanes import over_lanes

    goals = (jnp.zeros((1, OBS)),) if "goal" in inspect.signature(module.act).parameters else ()

    def play(agent, keys, hyper):
        first = jax.tree.map(lambda x: x[None], module.initial_carry(agent, hyper))

        def step(carry, key):
            obs = jax.random.normal(key, (1, OBS))
            action, carry = module.act(agent, carry, obs, *goals, jnp.zeros(1), key, hyper)
            return carry, action

        return jax.lax.scan(step, first, keys)[1]

    keys = jax.vmap(lambda key: jax.random.split(key, steps))(jax.random.split(jax.random.key(1), lanes))
    act, seconds = _compiled(over_lanes(play, mesh, (0, 0, 0)), agent, keys, hyper)
    return lambda agent: jax.block_until_ready(act(agent, keys, hyper)), seconds


CHOOSING, SEEKING = ("metamon", "more_3s"), ("gcpc",)
"""Files for discrete actions, and for goals."""


REMARK = (
    "; meta_dt's data is two episodes of ten tries, since each round begins with its world model's word on all rows"
)
"""Of the part `updates`, behind what its table is of."""


def every_file(part: str, args: argparse.Namespace, argv: list[str]) -> dict:
    """Each case in a process of its own: how many devices a CPU has is fixed when JAX starts.

    Cases of other files stay, where they were measured at the same sizes.
    """
    cases = []
    for name in args.files:
        for lanes in args.lanes:
            command = [sys.executable, str(Path(__file__).resolve()), *argv, "--one", part, name, str(lanes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise InputError(f"{name}: {done.stderr[-1000:]}")
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(cases[-1]), flush=True)
    sizes = {"width": args.width, "layers": args.layers, "context": args.context, "batch": args.batch}
    before = json.loads(args.out.read_text()).get(part, {}) if args.out.exists() else {}
    if sizes.items() <= before.items():
        made = {(case["algorithm"], case["lanes"]) for case in cases}
        cases += [case for case in before["cases"] if (case["algorithm"], case["lanes"]) not in made]
    return {**sizes, "cases": sorted(cases, key=lambda case: (case["algorithm"], case["lanes"]))}


def acts(name: str, lanes: int, args: argparse.Namespace) -> dict:
    """Rates of rounds in which the file and decision_transformer take turns."""
    import jax

    sides, compile_s = {}, {}
    for side in dict.fromkeys((name, "decision_transformer")):
        module, hyper, mesh, over_lanes = prepared(side, lanes, args)
        keys = jax.random.split(jax.random.key(0), lanes)
        spec = spec_of(side in CHOOSING, side in SEEKING)
        agent = over_lanes(partial(module.init, spec=spec), mesh, (0, 0))(keys, hyper)
        act, compile_s[side] = acting(module, agent, hyper, mesh, lanes, args.actions)
        sides[side] = partial(act, agent)
        sides[side]()
    rates: dict[str, list] = {side: [] for side in sides}
    for r in range(args.rounds):
        for side in list(sides)[:: 1 if r % 2 else -1]:
            rates[side].append(lanes * args.actions / seconds(sides[side]))
    found = {"actions_per_s": rates[name], "dt_per_s": rates["decision_transformer"]}
    return {"algorithm": name, "lanes": lanes, **found, "compile_s": round(compile_s[name], 2)}


def updating(name: str, lanes: int, args: argparse.Namespace) -> dict:
    """Of the file's `main`, on random episodes, at sizes that all files share."""
    import dataclasses

    from results.speed import load, run_case

    obs, action, _ = rows(args)
    rng, n = np.random.default_rng(1), obs.shape[0] * LENGTH
    choice = rng.integers(0, ACTION, n) if name in CHOOSING else action.reshape(n, ACTION)
    steps = {"observations": obs.reshape(n, OBS), "actions": choice, "rewards": rng.uniform(size=n).astype(np.float32)}
    ends = {"terminals": np.zeros(n, bool), "timeouts": np.arange(1, n + 1) % LENGTH == 0}
    chunk = args.updates
    sizes = {"width": args.width, "layers": args.layers, "heads": 1, "encoder_heads": 1, "context": args.context}
    sizes |= {
        "batch_size": args.batch,
        "task_batch": args.batch,
        "n_tasks": 1,
        "future": args.context,
        "mask_every": chunk,
    }
    sizes |= dict.fromkeys(("context_updates", "language_updates", "unprompted_updates"), chunk)
    sizes |= {"try_steps": LENGTH // 10}
    if "try_steps" in {field.name for field in dataclasses.fields(load(name).Args)}:  # all rows are read in each round
        steps, ends = ({what: x[: 2 * LENGTH] for what, x in of.items()} for of in (steps, ends))
    known = {field.name for field in dataclasses.fields(load(name).Args)}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/log.npz", **steps, **ends)
        case = {"algorithm": name, "shape": "hopper", "lanes": lanes, "layout": "auto", "precision": "float32"}
        case |= {"log": f"{folder}/log.npz", "out": f"{folder}/run", "turn": f"{folder}/turn", "seconds": 0.5}
        found = run_case(case | {"chunk": chunk, "settings": {k: x for k, x in sizes.items() if k in known}})
    kept = ("algorithm", "lanes", "layout", "updates_per_s", "share", "mflop_per_update", "compile_s", "memory_mib")
    return {what: found[what] for what in kept}


def seconds(f, *given) -> float:
    start = time.perf_counter()
    f(*given)
    return time.perf_counter() - start


# ----------------------------------------------------------------- what remembering costs, of DT


def empty_cache(agent, steps: int):
    """Keys and values [layers, 2, 3 steps + 1, heads, W / heads] of one episode; the first place is never seen."""
    import jax.numpy as jnp

    net = agent.net
    return jnp.zeros((net.layers, 2, 3 * steps + 1, net.heads, net.width // net.heads))


def cached_act(agent, cache, before, obs, wanted, step):
    """decision_transformer's action [A] with a window as long as the episode, of the newest three tokens alone.

    `before` [A]: the action before; `wanted` []: the return-to-go, scaled; `step` [].
    """
    import jax
    import jax.numpy as jnp

    p, net = agent.actor["params"], agent.net

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    time_of = lambda t: p["Embed_0"]["embedding"][jnp.clip(t, 0, net.max_timestep - 1)]  # noqa: E731
    given = dense(p["embed_action"], before), dense(p["embed_return"], wanted[None]), dense(p["embed_obs"], obs)
    x = norm(p["LayerNorm_0"], jnp.stack([g + time_of(t) for g, t in zip(given, (step - 1, step, step), strict=True)]))
    place, first = jnp.arange(cache.shape[2]), 3 * step
    visible = (place <= first + jnp.arange(3)[:, None]) & (place > 0)
    for i in range(net.layers):
        block = p["Transformer_0"][f"Block_{i}"]
        q, k, v = dense(block["Dense_0"], norm(block["LayerNorm_0"], x)).reshape(3, 3, net.heads, -1).swapaxes(0, 1)
        cache = jax.lax.dynamic_update_slice(cache, jnp.stack([k, v])[None], (i, 0, first, 0, 0))
        scores = jnp.einsum("qhd,khd->hqk", q, cache[i, 0]) / jnp.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e9))
        x = x + dense(block["Dense_1"], jnp.einsum("hqk,khd->qhd", weights, cache[i, 1]).reshape(x.shape))
        x = x + dense(block["Dense_3"], jax.nn.relu(dense(block["Dense_2"], norm(block["LayerNorm_1"], x))))
    return jnp.tanh(dense(p["head"], norm(p["Transformer_0"]["LayerNorm_0"], x)[2])), cache


def cached_play(agent, obs, wanted):
    """Actions [T, A] of one episode whose observations are `obs` [T, O]; `wanted` [T]."""
    import jax
    import jax.numpy as jnp

    def step(carry, given):
        action, cache = cached_act(agent, *carry, *given)
        return (cache, action), action

    first = empty_cache(agent, len(obs)), jnp.zeros(agent.net.spec.action_dim)
    return jax.lax.scan(step, first, (obs, wanted, jnp.arange(len(obs))))[1]


def memory(args: argparse.Namespace, argv: list[str]) -> dict:
    cases = []
    for lanes in args.lanes:
        command = [sys.executable, str(Path(__file__).resolve()), *argv, "--one", "memory", "", str(lanes)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InputError(done.stderr[-1000:])
        cases += json.loads(done.stdout.splitlines()[-1])
        print(done.stdout, flush=True)
    return {"width": args.width, "layers": args.layers, "history": args.history, "cases": cases}


def memories(lanes: int, args: argparse.Namespace) -> list[dict]:
    """Milliseconds of one action of every lane, each way in every round."""
    import jax

    from results.peer_speed import _compiled

    ways, steps = {}, args.actions

    def way(context: int):
        module, hyper, mesh, over_lanes = prepared("decision_transformer", lanes, args, context=context)
        keys = jax.random.split(jax.random.key(0), lanes)
        agent = over_lanes(partial(module.init, spec=spec_of()), mesh, (0, 0))(keys, hyper)
        return module, agent, hyper, mesh, over_lanes

    for context in (*args.contexts, args.history):
        module, agent, hyper, mesh, over_lanes = way(context)
        ways["ring", context] = partial(acting(module, agent, hyper, mesh, lanes, steps)[0], agent)
        if context == args.history:
            continue
        obs = jax.random.normal(jax.random.key(2), (lanes, context, OBS))
        play = over_lanes(cached_play, mesh, (0, 0, 0))
        play, _ = _compiled(play, agent, obs, obs[..., 0])
        ways["cache", context] = lambda play=play, agent=agent, obs=obs: jax.block_until_ready(
            play(agent, obs, obs[..., 0])
        )
    taken: dict = {key: [] for key in ways}
    for f in ways.values():
        f()
    for r in range(args.rounds):
        names = list(ways)
        for key in names[r % len(names) :] + names[: r % len(names)]:
            made = key[1] if key[0] == "cache" else steps
            taken[key].append(1e3 * seconds(ways[key]) / made)
    whole = taken["ring", args.history]
    return [
        {
            "context": context,
            "lanes": lanes,
            "ms": {"ring": taken["ring", context], "cache": taken["cache", context], "whole": whole},
        }
        for context in args.contexts
    ]


PARTS = {
    "beside": beside,
    "updates": partial(every_file, "updates"),
    "actions": partial(every_file, "actions"),
    "memory": memory,
}
ONE = {"updates": updating, "actions": acts, "memory": lambda _, lanes, args: memories(lanes, args)}


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    option("--corl", type=Path, metavar="DIR", help="CORL's checkout")
    option("--jax-corl", type=Path, metavar="DIR", help="JAX-CORL's checkout")
    option("--torch-python", type=Path, metavar="FILE", help="a Python that has torch")
    files = sorted(p.stem for p in ROOT.glob("algorithms/sequence/*.py"))
    option("--files", nargs="+", default=files, choices=files, help="of the parts `updates` and `actions` (all)")
    option("--lanes", type=int, nargs="+", default=[1, 8])
    option("--width", type=int, default=128, help="of a token (%(default)s)")
    option("--layers", type=int, default=3, help="blocks of the transformer (%(default)s)")
    option("--context", type=int, default=20, help="steps of a window (%(default)s)")
    option("--contexts", type=int, nargs="+", default=[20, 100], help="of the part `memory` (20 100)")
    option("--history", type=int, default=1000, help="steps of an episode in the part `memory` (%(default)s)")
    option("--batch", type=int, default=64, help="windows per update (%(default)s)")
    option("--rows", type=int, default=100_000, help="of the data (%(default)s)")
    option("--updates", type=int, default=2, help="of each lane in a round (%(default)s)")
    option("--actions", type=int, default=20, help="of each lane in a round (%(default)s)")
    option("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (%(default)s, the cores)")
    option("--out", type=Path, default=ROOT / "results" / "sequence_speed.json", metavar="FILE")
    option("--serve", nargs=2, help=argparse.SUPPRESS)
    option("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    if args.serve:
        serve(*SIDES[args.serve[0]](int(args.serve[1]), args))
        return 0
    if args.one:
        part, name, lanes = args.one
        print(json.dumps(ONE[part](name, int(lanes), args)))
        return 0
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    try:
        for part in args.parts:
            record[part] = PARTS[part](args, given)
            every = [word for word in given if word != "--files" and word not in args.files]  # the cases of others stay
            record[part] |= {"command": " ".join(["results/sequence_speed.py", *every]), "rounds": args.rounds}
            record[part] |= {"hardware": {"cores": len(os.sched_getaffinity(0))}}
            if part == "updates" and any(case["algorithm"] == "meta_dt" for case in record[part]["cases"]):
                record[part] |= {"remark": REMARK}
            args.out.write_text(json.dumps(record, indent=1) + "\n")
    except InputError as error:
        print(f"sequence_speed.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
