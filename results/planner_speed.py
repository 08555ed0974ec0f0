"""Diffuser beside its authors' PyTorch: gradient updates and plans per second, of 1 and of several lanes.

    git clone https://github.com/jannerm/diffuser /tmp/diffuser
    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch einops numpy
    python results/planner_speed.py --diffuser /tmp/diffuser --torch-python /tmp/torch/bin/python

Their temporal U-Net and their diffusion (loss, reverse chain) run from their checkout, in a process of their own; ours
are adaptdiffuser's `train` and `act`. The sides take turns in changing order, so that a busy machine slows all alike;
compiling is timed apart. A lane of theirs would be a process of its own: their rate is that of one.
Writes results/planner_speed.json, from which `make report` makes its table.
"""

import argparse
import json
import os
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from results.sides import serve, take_turns, torch_version
from shared.errors import InputError

OBS, ACTION = 4, 2
NOTE = """\
Diffuser (adaptdiffuser.py with `--preset diffuser`) beside its authors' code ({commit}, torch {torch}, {threads}
thread{s}) on {cores} CPU core{s}, jax {jax}: a temporal U-Net of {channels} channels times {factors}, windows and
plans of {steps} steps, {chain} steps of the diffusion, batches of {batch}, {rounds} interleaved rounds. Ours also
learns an inverse model of the dynamics; theirs follows plans with the environment's controller. A plan is what the
first action of an episode takes; an action after it, up to --replan-every, is one call of the inverse model."""


def ours(lanes: int, args: argparse.Namespace):
    """-> ({what: a round}, seconds to compile all)."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from results.peer_speed import _compiled, load
    from shared.arguments import float_fields
    from shared.data import Dataset
    from shared.goals import GoalTransitions
    from shared.lanes import make_mesh, over_lanes, use_cpu_devices
    from shared.task import Spec, Task

    use_cpu_devices(lanes)
    module, mesh = load(ROOT / "algorithms" / "generative" / "adaptdiffuser.py", "adaptdiffuser"), make_mesh(lanes)
    hyper = module.Args(
        rounds=0, channels=args.channels, channel_factors=tuple(args.factors), window_steps=args.steps,
        plan_steps=args.steps, diffusion_steps=args.chain, sampling_steps=args.chain, batch_size=args.batch,
    )  # fmt: skip
    hyper = dataclasses.replace(hyper, **{n: jnp.full(lanes, getattr(hyper, n)) for n in float_fields(type(hyper))})
    spec = Spec((OBS,), ACTION, False, (-1.0,) * ACTION, (1.0,) * ACTION, goal_shape=(OBS,))
    keys = jax.random.split(jax.random.key(0), lanes)
    agent = over_lanes(partial(module.init, spec=spec), mesh, (0, 0))(keys, hyper)
    (obs, action), last = rows(args), np.arange(1, args.rows + 1) % 1000 == 0
    ends = {"terminal": np.zeros(args.rows, bool), "last": last}
    data = Dataset(Task("", "", spec), obs, action, np.zeros(args.rows, np.float32), obs, **ends)
    end = (np.arange(args.rows) // 1000 + 1) * 1000 - 1
    transitions = GoalTransitions(data.transitions(), None, jnp.asarray(end))
    starts = jnp.asarray(np.flatnonzero(end - np.arange(args.rows) >= args.steps - 1))
    windows = module.Windows(transitions, starts)
    now = jax.vmap(lambda key: jax.random.split(key, args.updates))(keys)
    train = over_lanes(partial(module.train, adapts=False), mesh, (0, 0, 0, None), donate=True)
    train, seconds = _compiled(train, agent, now, hyper, windows)

    def act(agent, key, hyper, seen):
        carry = jax.vmap(lambda _: module.initial_carry(agent, hyper))(seen)
        return module.act(agent, carry, seen, seen[::-1], jnp.zeros(len(seen)), key, hyper)[0]

    seen = jnp.asarray(obs[: args.plans])
    act, more = _compiled(over_lanes(act, mesh, (0, 0, 0, None)), agent, keys, hyper, seen)

    def updates():
        nonlocal agent
        agent = jax.block_until_ready(train(agent, now, hyper, windows)[0])

    return {"updates": updates, "plans": lambda: jax.block_until_ready(act(agent, keys, hyper, seen))}, seconds + more


def theirs(lanes: int, args: argparse.Namespace):
    import torch

    torch.set_num_threads(args.threads)
    package = types.ModuleType("diffuser")
    package.__path__ = [str(args.diffuser / "diffuser")]
    models = types.ModuleType("diffuser.models")
    models.__path__ = [str(args.diffuser / "diffuser" / "models")]
    utils = types.ModuleType("diffuser.utils")  # of which the diffusion uses what shows its progress
    utils.Silent = lambda: types.SimpleNamespace(update=lambda values: None, stamp=lambda: None)
    package.utils = utils
    sys.modules |= {"diffuser": package, "diffuser.models": models, "diffuser.utils": utils}
    from diffuser.models.diffusion import GaussianDiffusion
    from diffuser.models.temporal import TemporalUnet

    log, sys.stdout = sys.stdout, sys.stderr  # the U-Net says its sizes where our answers go
    net = TemporalUnet(args.steps, OBS + ACTION, OBS, dim=args.channels, dim_mults=tuple(args.factors))
    sys.stdout = log
    diffusion = GaussianDiffusion(
        net, args.steps, OBS, ACTION, n_timesteps=args.chain, loss_type="l2", clip_denoised=True, predict_epsilon=False
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=2e-4)
    obs, action = rows(args)
    data, rng = torch.tensor(np.hstack([action, obs])), np.random.default_rng(0)
    seen = torch.tensor(obs[: args.plans])

    def updates():
        for _ in range(args.updates):
            start = torch.tensor(rng.integers(args.rows // 1000, size=args.batch) * 1000)
            x = data[start[:, None] + torch.arange(args.steps)]
            loss, _ = diffusion.loss(x, {0: x[:, 0, ACTION:], args.steps - 1: x[:, -1, ACTION:]})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return {"updates": updates, "plans": lambda: diffusion({0: seen, args.steps - 1: seen.flip(0)}, verbose=False)}, 0.0


SIDES = {"ours": ours, "the authors'": theirs}


def rows(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Random observations and actions in [-1, 1], episodes of 1000."""
    rng = np.random.default_rng(0)
    return tuple(rng.uniform(-1, 1, (args.rows, n)).astype(np.float32) for n in (OBS, ACTION))


def main(argv: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--diffuser", type=Path, required=True, metavar="DIR", help="the authors' checkout")
    option("--torch-python", type=Path, required=True, metavar="FILE", help="a Python that has torch and einops")
    option("--lanes", type=int, nargs="+", default=[1, 8])
    option("--channels", type=int, default=32, help="of the U-Net's first level (%(default)s)")
    option("--factors", type=int, nargs="+", default=[1, 4, 8], help="of its levels (1 4 8)")
    option("--steps", type=int, default=128, help="of a window and of a plan (%(default)s)")
    option("--chain", type=int, default=64, help="steps of the diffusion (%(default)s)")
    option("--batch", type=int, default=32, help="windows per update (%(default)s)")
    option("--plans", type=int, default=1, help="made together, of each lane (%(default)s)")
    option("--rows", type=int, default=100_000, help="of the data (%(default)s)")
    option("--updates", type=int, default=2, help="of each lane in a round (%(default)s)")
    option("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (%(default)s, the cores)")
    option("--out", type=Path, default=ROOT / "results" / "planner_speed.json", metavar="FILE")
    option("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(*SIDES[args.serve[0]](int(args.serve[1]), args))
        return 0
    cases = []
    try:
        for lanes in args.lanes:
            given = sys.argv[1:] if argv is None else argv
            own = [str(Path(__file__).resolve()), *given]
            commands = {
                side: [sys.executable if side == "ours" else str(args.torch_python), *own, "--serve", side, str(lanes)]
                for side in SIDES
            }
            amounts = {
                what: {side: n * (lanes if side == "ours" else 1) for side in SIDES}
                for what, n in (("updates", args.updates), ("plans", args.plans))
            }
            found = take_turns(commands, amounts, args.rounds)
            cases.append({"lanes": lanes, **found._asdict()})
            medians = {what: {s: float(np.median(r)) for s, r in of.items()} for what, of in found.per_s.items()}
            print(lanes, medians, flush=True)
    except InputError as error:
        print(f"planner_speed.py: {error}", file=sys.stderr)
        return 2
    args.out.write_text(json.dumps({"note": note(args), "cases": cases}, indent=1) + "\n")
    return 0


def note(args: argparse.Namespace) -> str:
    import jax

    from results.peer_speed import commit

    cores = len(os.sched_getaffinity(0))
    return NOTE.format(
        commit=commit(args.diffuser),
        torch=torch_version(args.torch_python),
        jax=jax.__version__,
        cores=cores,
        s="s" * (cores > 1),
        threads=args.threads,
        channels=args.channels,
        factors="×".join(map(str, args.factors)),
        steps=args.steps,
        chain=args.chain,
        batch=args.batch,
        rounds=args.rounds,
    )


if __name__ == "__main__":
    sys.exit(main())
