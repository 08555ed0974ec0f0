"""The run around an algorithm: command line, lanes, schedule, metrics, checkpoints and resume.

A *lane* is one (seed, hyperparameter setting). `--seeds 8 --alpha 1 2.5 4` makes 24 lanes that train
in one job: sharded over the local devices by a one-axis mesh, and on each device mapped one after the
other (CPU) or vmapped (GPU, TPU). Nothing here knows any one algorithm.
"""

import contextlib
import csv
import dataclasses
import datetime
import errno
import importlib.metadata
import inspect
import io
import itertools
import json
import math
import os
import platform
import resource
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from shared.data import InputError, Task, nearest, slugify
from shared.distributed import gather, join, meet, merge_records, merge_tables, share
from shared.evaluation import Evaluator, fine_tuning, interval
from shared.untrusted import read_npz

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------- the command line


def _floats(values: list[str]) -> float | tuple[float, ...]:
    if not values:
        raise ValueError("needs at least one number")
    numbers = tuple(float(v) for v in values)
    return numbers if len(numbers) > 1 else numbers[0]


# A float hyperparameter. Several values on the command line become a grid of lanes; inside `update`
# it is a traced scalar, so that changing it never compiles anything anew.
Float = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]",
        instance_from_str=_floats,
        is_instance=lambda x: isinstance(x, int | float | tuple),
        str_from_instance=lambda x: [str(v) for v in (x if isinstance(x, tuple) else (x,))],
    ),
]


@dataclasses.dataclass(frozen=True)
class DatasetArgs:
    """Arguments of every script that has a dataset."""

    dataset: str = "hopper-medium"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    preset: str = "auto"
    """Per-dataset settings of the paper: picked by the dataset's id (auto), none, or a name."""
    env: str = ""
    """Gymnasium id to evaluate (and to interact) in; empty: the one stored with the dataset."""
    clip_actions: bool = False
    """Clip the data's actions to the action space instead of refusing them."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """Arguments that every script has; steps are updates, or environment steps where a script interacts."""

    seeds: int = 1
    """Number of seeds; each is a lane, all train in this one job."""
    seed: int = 0
    """First seed."""
    log_every: int = 1_000
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: int = 50_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: int = 10
    """Episodes of every lane at each evaluation, seeded alike for all lanes."""
    checkpoint_every: int = 100_000
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""
    out: str = ""
    """Run directory; empty: results/<algorithm>/<dataset>/<time> in the repository."""
    resume: bool = False
    """Continue the run in --out from its checkpoint."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Log to Weights & Biases too, one run per lane; its failure never stops training."""
    distributed: str = ""
    """Several processes share the lanes: auto (SLURM, TPU pods, Open MPI), or HOST:PORT,PROCESSES,PROCESS."""


@dataclasses.dataclass(frozen=True)
class OfflineArgs(RunArgs, DatasetArgs):
    """Arguments of every offline script."""

    updates: int = 1_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""


EnvSteps = Annotated[int, tyro.conf.arg(aliases=["--online-steps"])]


@dataclasses.dataclass(frozen=True)
class OnlineArgs(RunArgs):
    """Arguments of every script that interacts; steps are environment steps."""

    env_steps: EnvSteps = 1_000_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    buffer_size: int = 1_000_000
    """Transitions kept in each lane's replay buffer."""


@dataclasses.dataclass(frozen=True)
class HybridArgs(OnlineArgs, DatasetArgs):
    """Arguments of every script that interacts and has a dataset from the beginning."""


@dataclasses.dataclass(frozen=True)
class FinetuneArgs(HybridArgs):
    """Arguments of every script that trains offline first, then interacts."""

    offline_updates: int = 1_000_000
    """Gradient updates of each lane before its first environment step."""
    offline_eval_every: int = 100_000
    """Of these, updates between two evaluations; their end is always evaluated."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Directory of an offline run, or of a fine-tuning one (its agents at the end of the offline phase), whose agents
    are fine-tuned, lane by lane of the same seed; without any offline updates here."""


def hyperparameters(cls: type) -> type:
    """Makes `cls` a frozen dataclass and a pytree whose leaves are its `Float` fields.

    All other fields are static (part of the tree's structure), so one object serves as command line,
    as a lane's traced hyperparameters, and as the record in run.json.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    traced = float_fields(cls)
    static = [f.name for f in dataclasses.fields(cls) if f.name not in traced]
    return jax.tree_util.register_dataclass(cls, data_fields=traced, meta_fields=static)


def float_fields(cls: type) -> list[str]:
    """Names of the fields that may be swept."""
    return [f.name for f in dataclasses.fields(cls) if f.type == Float]


def preset_for(dataset: str, presets: dict[str, dict[str, Any]], name: str = "auto") -> str | None:
    """Key of `presets` that `dataset` picks: the longest one that a word of its id begins with, or `name` itself."""
    if name == "none":
        return None
    if name != "auto":
        if name not in presets:
            raise InputError(f"No preset '{name}'; {nearest(name, presets)} (or auto, none).")
        return name
    slug = f"-{slugify(dataset)}"
    return max((key for key in presets if f"-{key}" in slug), key=len, default=None)


def is_fraction(name: str) -> bool:
    """Whether an argument of this name lies in [0, 1]."""
    usual = ("discount", "tau", "expectile", "quantile", "dropout", "corruption_rate")
    return name in usual or name.endswith(("_share", "_ratio", "_fraction", "_lambda", "_tau"))


def parse(cls: type, presets: dict[str, dict[str, Any]], doc: str, argv: list[str] | None = None):
    """Command line -> `cls`. What is given there wins over the preset, the preset over the defaults."""
    options = {"description": inspect.cleandoc(doc), "args": argv}
    args = tyro.cli(cls, **options)
    key = preset_for(args.dataset, presets, args.preset) if isinstance(args, DatasetArgs) else None
    if key is not None:
        args = tyro.cli(cls, default=dataclasses.replace(cls(), **presets[key]), **options)
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if (field.type == Float or isinstance(value, float)) and not np.all(np.isfinite(value)):
            raise InputError(f"--{field.name.replace('_', '-')} must be finite, not {value}.")
        if is_fraction(field.name) and not (np.all(np.array(value) >= 0.0) and np.all(np.array(value) <= 1.0)):
            raise InputError(f"--{field.name.replace('_', '-')} must lie in [0, 1], not {value}.")
    counts = ("updates", "env_steps", "buffer_size", "offline_updates", "log_every", "eval_every", "eval_episodes")
    for name in ("seeds", *counts, "offline_eval_every", "checkpoint_every"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}.")
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, not {args.seed}.")
    return args


def launch(main: Callable, cls: type, presets: dict[str, dict[str, Any]], doc: str) -> None:
    """Runs `main` from the command line; bad input is one sentence on stderr and exit status 2."""
    try:
        args = parse(cls, presets, doc)
        join(args.distributed)
        use_cpu_devices(len(lane_settings(args)))
        meet()
        talks = not args.distributed or jax.process_index() == 0
        with contextlib.redirect_stdout(sys.stdout if talks else io.StringIO()):
            main(args)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"Stopped and saved; continue with --out {stop.out} --resume", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:  # the second Ctrl-C: at once
        sys.exit(130)


class Interrupted(Exception):
    """A signal ended the run after its checkpoint was written."""

    def __init__(self, signal: int, out: Path):
        super().__init__(signal)
        self.signal, self.out = signal, out


# ------------------------------------------------------------------------------------------ lanes


def use_cpu_devices(lanes: int) -> None:
    """On CPU, one virtual device per core that has a lane; before anything is computed."""
    with contextlib.suppress(RuntimeError):  # the backend is up already (a notebook): its devices are used
        jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), lanes))


def lane_settings(args: RunArgs) -> list[dict[str, float]]:
    """One dict per lane: its seed, and its value of every hyperparameter given several values.

    Settings are the outer loop and seeds the inner: lane = setting * args.seeds + (seed - args.seed).
    """
    values = {name: getattr(args, name) for name in float_fields(type(args))}
    swept = {name: value for name, value in values.items() if isinstance(value, tuple)}
    return [
        {"seed": args.seed + s, **dict(zip(swept, setting, strict=True))}
        for setting in itertools.product(*swept.values())
        for s in range(args.seeds)
    ]


def with_settings(args: RunArgs, settings: list[dict[str, float]]) -> RunArgs:
    """`args` with every `Float` field an array [L] of the lanes' values."""
    values = {n: [s.get(n, getattr(args, n)) for s in settings] for n in float_fields(type(args))}
    return dataclasses.replace(args, **{n: np.array(v, np.float32) for n, v in values.items()})


def make_mesh(lanes: int) -> jax.sharding.Mesh:
    """A one-axis mesh over as many local devices as have a lane."""
    devices = jax.local_devices()[:lanes]
    return jax.make_mesh((len(devices),), ("lane",), (AxisType.Auto,), devices=devices)


def over_lanes(
    f: Callable, mesh: jax.sharding.Mesh, in_axes: tuple, donate: bool = False, vmap: bool = False
) -> Callable:
    """Compiles `f`, written for one lane, for all lanes; `in_axes` as in vmap: 0 per lane, None shared.

    Lanes are split over the mesh without communication; those of one device are vmapped, except on
    CPU, where vmap is 15-50 % slower than one after the other for networks (not for what only moves
    memory: `vmap` asks for it everywhere). `donate` gives up the first argument.
    """
    laned = [i for i, axis in enumerate(in_axes) if axis == 0]

    def on_device(*args):
        if vmap or mesh.devices.flat[0].platform != "cpu":
            return jax.vmap(f, in_axes)(*args)

        def one_lane(lane_args):
            merged = list(args)
            for i, value in zip(laned, lane_args, strict=True):
                merged[i] = value
            return f(*merged)

        lane_args = [args[i] for i in laned]
        if len(jax.tree.leaves(lane_args)[0]) == 1:  # a loop of one would copy everything twice
            squeezed = jax.tree.map(lambda x: x[0], lane_args)
            return jax.tree.map(lambda x: x[None], one_lane(squeezed))
        return jax.lax.map(one_lane, lane_args)

    specs = tuple(PartitionSpec("lane") if axis == 0 else PartitionSpec() for axis in in_axes)
    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("lane"), check_vma=False)
    return jax.jit(sharded, donate_argnums=(0,) if donate else ())


# ---------------------------------------------------------------------------------------- the run


class Run:
    """Everything around `train`: lanes, schedule, progress, metrics, evaluation, checkpoints.

    Attributes:
      init_keys: [L] one PRNG key per lane, for `init`.
      lane_args: `args` with every `Float` field an array [L]; the other fields are static.
      done: updates (online: environment steps) done so far; below 0 in the phases that come before them.
    L counts the lanes padded to a multiple of the devices (the last lane again; never reported).
    """

    def __init__(self, file: str, args: RunArgs, task: Task, act: Callable, unit: int = 1, before: int = 0):
        """`file`: the algorithm's. `act(agent, obs [B, O], key, args) -> action [B, A]`.

        `unit`: updates per step of the algorithm's scan (a delayed policy makes it 2); every interval
        must be a multiple of it. `before`: updates of something else before the first one (a model of the
        data); they are logged to before.csv, and checkpoints hold them as all others.
        """
        self.args, self.task, self.file = args, task, Path(file).resolve()
        self.algorithm = self.file.stem
        self.first_lane, self.settings = share(lane_settings(args))
        self.swept = [name for name in self.settings[0] if name != "seed"]
        self.online = hasattr(args, "env_steps")
        self.total = args.env_steps if self.online else args.updates
        self.before = before
        self.from_run = Path(args.from_run) if getattr(args, "from_run", "") else None
        self.offline_updates = 0 if self.from_run else getattr(args, "offline_updates", 0)
        self.chunk = self._online_chunk = _chunk_length(args, self.total, unit, before, self.offline_updates)
        self.mesh = make_mesh(len(self.settings))
        size = self.mesh.devices.size
        padded = self.settings + [self.settings[-1]] * (-len(self.settings) % size)
        self.padded_settings = padded
        self.sharding = sharding = NamedSharding(self.mesh, PartitionSpec("lane"))
        keys = jax.vmap(jax.random.key)(np.array([s["seed"] for s in padded]))
        init_keys, train_keys, eval_keys = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
        self.init_keys = jax.device_put(init_keys, sharding)
        self._train_keys = jax.device_put(train_keys, sharding)
        self._eval_keys = jax.device_put(eval_keys, sharding)
        self.lane_args = jax.device_put(with_settings(args, padded), sharding)
        self._chunk_keys = self.over_lanes(_chunk_keys, in_axes=(0, None, None))

        def policy(agent, obs, step, key, args):
            return act(agent, obs, jax.random.fold_in(key, step), args)

        policy = self.over_lanes(policy, in_axes=(0, 0, None, 0, 0))
        self._evaluate = Evaluator(task, policy, len(padded), len(self.settings), args.eval_episodes)
        self.pretrained = self.offline_updates
        """Offline updates behind the first environment step, here or in the run that --from names."""
        self.done, self.diverged, self._signal = -before - self.offline_updates, {}, None
        self._tables: dict[str, io.TextIOWrapper] = {}

    def over_lanes(self, f: Callable, in_axes: tuple, donate: bool = False, vmap: bool = False) -> Callable:
        """`over_lanes` on this run's mesh."""
        return over_lanes(f, self.mesh, in_axes, donate, vmap)

    def replicate(self, tree: Any) -> Any:
        """`tree` once on every device of the mesh, so that no call copies it."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    # -- opening and closing

    def __enter__(self) -> "Run":
        args = self.args
        slug = self.task.id.replace("/", "-").strip("-")
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        default = ROOT / "results" / self.algorithm / slug / stamp
        self.merged_out = self.out = Path(args.out).expanduser().resolve() if args.out else default
        if jax.process_count() > 1:
            if not args.out:
                raise InputError("Several processes need an --out, the same for all.")
            self.out = self.out / f"process-{jax.process_index()}"
        self._file_checkpoint = self.out / "checkpoint" / "state.npz"
        self._file_previous = self._file_checkpoint.with_name("previous.npz")
        self._wall, self._compile, self._started = 0.0, 0.0, time.time()
        self._sums, self._summed = {}, 0
        try:
            self._open_directory()
        except OSError as error:
            raise InputError(f"Cannot write to {self.out}: {error.strerror}.") from None
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        in_main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        self._old_handlers = {s: signal.signal(s, self._on_signal) for s in _SIGNALS} if in_main else {}
        self._wandb = _WandbLanes(self) if args.wandb != "off" else None
        lanes, unit = len(self.settings), "env steps" if self.online else "updates"
        print(f"{self.algorithm} on {self.task.id}: {lanes} lanes x {self.total:,} {unit} -> {self.out}")
        earlier = self.before + self.offline_updates
        total, done = (earlier + self.total) * lanes, (earlier + self.done) * lanes
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, disable=None, initial=done)
        return self

    def _open_directory(self) -> None:
        """An empty place for a new run, or the state of the one to be resumed; refuses what it would overwrite."""
        if self.args.resume:
            if not holds_checkpoint(self.out):
                raise InputError(f"--resume: there is no checkpoint in {self.out}; give --out an earlier run.")
            self._table_sizes = self._read_checkpoint_header()
            return
        for folder in {self.out, self.merged_out}:
            if (folder / "run.json").exists() and status_of(folder) in ("finished", "") or holds_checkpoint(folder):
                raise InputError(f"{folder} holds a run already; add --resume or choose another --out.")
        (self.out / "checkpoint").mkdir(parents=True, exist_ok=True)
        self._table_sizes = {}
        self._cut_tables()
        self._write_record("running")

    def _table_files(self) -> list[Path]:
        return [path for name in _TABLES if (path := self.out / f"{name}.csv").exists()]

    def _cut_tables(self) -> None:
        """Takes away rows written after the checkpoint: they are computed again."""
        for table in self._table_files():
            os.truncate(table, self._table_sizes.get(table.stem, 0))

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        self._bar.close()
        for s, handler in self._old_handlers.items():
            signal.signal(s, handler)
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        for table in self._tables.values():
            table.close()
        status = "finished" if kind is None else "interrupted" if kind is Interrupted else "failed"
        told = kind is KeyboardInterrupt  # which waits for nobody
        try:
            if not (kind is InputError and self.args.resume):  # a checkpoint that does not fit: nothing was changed
                self._write_record(status)
            if self._wandb:
                self._wandb.close()
            if status == "finished":
                self._file_previous.unlink(missing_ok=True)
            told, together = True, not told and self._all_finished(status)
            if together:
                self._merge()
                self._summary()
        except OSError as second:
            if second.errno not in _DISK:
                raise
            error = error or second
            told or self._all_finished("failed")
        if isinstance(error, OSError) and error.errno in _DISK:
            try:
                saved = self._file_checkpoint.exists()
            except OSError:  # not even to be looked at
                saved = False
            left = "mend that and go on with --resume" if saved else "there is no checkpoint yet"
            raise InputError(f"Cannot write to {self.out} any more: {error.strerror}; {left}.") from None

    def _on_event(self, name: str, seconds: float, **_) -> None:
        if name.startswith("/jax/core/compile/"):
            self._compile += seconds

    def _on_signal(self, number: int, _) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        tqdm.write("Stopping after this chunk (again: at once, without saving).", file=sys.stderr)

    # -- training

    def chunks(self) -> Iterator[jax.Array]:
        """Keys [L, n] of the next n updates, until all are done; update u's key depends on (seed, u).

        Those of `before` come first, then the offline ones of a script that interacts: `done` is below 0 then.
        """
        while self.done < self.total:
            if self.online and self.done >= 0:
                self.chunk = self._online_chunk
            yield self._chunk_keys(self._train_keys, self.done, jnp.zeros(self.chunk))

    def shorten_chunks(self, most: int) -> None:
        """Chunks of at most `most` environment steps: where each takes its time, a signal waits no longer."""
        self._online_chunk = max(n for n in range(1, min(most, self.chunk) + 1) if self.chunk % n == 0)

    def step_keys(self, step: int) -> jax.Array:
        """[L] the keys of one step; from `total` on none that `chunks` gives."""
        return self._chunk_keys(self._train_keys, step, jnp.zeros(1))[:, 0]

    @property
    def offline(self) -> bool:
        """Whether the next chunk is of the offline updates that come before the first environment step."""
        return -self.offline_updates <= self.done < 0

    def log(self, agent: Any, metrics: dict[str, jax.Array], updates: int | None = None, state: Any = None) -> None:
        """After a chunk: writes its mean metrics {name: [L]}; evaluates and saves when it is time.

        `updates`: gradient updates done since the first environment step, where the schedule counts those.
        `state`: what a checkpoint needs besides `agent` (a replay buffer).
        """
        metrics = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        previous, self.done = self.done, self.done + self.chunk
        early, offline = previous < -self.offline_updates, -self.offline_updates <= previous < 0
        begin = -self.offline_updates - self.before if early else -self.offline_updates if offline else 0
        count = self.done - begin  # steps since the phase began
        interacts = self.online and not (early or offline)
        self._steps = [self.pretrained + (updates or 0), count] if interacts else [count, 0]
        phase = "before" if early else "offline" if offline else ""
        self._bar.update(self.chunk * len(self.settings))
        last, ends = self.done >= self.total, self.done in (0, -self.offline_updates)
        if metrics:
            self._report_divergence(metrics, phase)
            self._sums = {name: self._sums.get(name, 0.0) + m for name, m in metrics.items()}
            self._summed += 1
        if self._summed and (last or ends or self._passes(self.args.log_every, count)):
            metrics = {name: total / self._summed for name, total in self._sums.items()}
            self._sums, self._summed = {}, 0
            rows = [
                [*self._lane(i), *self._steps, self._seconds(), *(m[i] for m in metrics.values())]
                for i in range(len(self.settings))
            ]
            self._append(phase or "metrics", [*_LANE_COLUMNS, "wall_s", *metrics], rows)
            if self._wandb and not early:
                self._wandb.log(metrics, self._steps)
        every = self.args.offline_eval_every if offline else self.args.eval_every
        if last or (offline and ends) or (not early and self._passes(every, count)):
            self.evaluate(agent)
        stop = self._signal  # read once: it may come at any moment
        if last or stop or (offline and ends) or self._passes(self.args.checkpoint_every, count):
            self.save((agent, state))
        if stop and not last:
            raise Interrupted(stop, self.merged_out)

    def evaluate(self, agent: Any) -> None:
        """Appends one row per lane and episode to returns.csv."""
        if self.task.env_spec is None:
            return
        episodes = self._evaluate(agent, self._eval_keys, self.lane_args)
        scores = self.task.score(episodes.returns)
        at = [*self._steps, self._seconds()]
        rows = [
            [*self._lane(i), *at, e, episodes.returns[i, e], episodes.lengths[i, e], scores[i, e]]
            for i, e in np.ndindex(episodes.returns.shape)
        ]
        self._append("returns", [*_LANE_COLUMNS, "wall_s", "episode", "return", "length", "score"], rows)
        self.final_returns, self.final_scores = episodes.returns, scores
        self._bar.set_postfix_str(f"return {episodes.returns.mean():.1f} score {scores.mean():.1f}", refresh=False)
        at, of = (self._steps[0], self.offline_updates) if self.done < 0 else (self.done, self.total)
        tqdm.write(
            f"  {at:>9,}/{of:,}{' offline' * (self.done < 0)}  return {episodes.returns.mean():9.2f}"
            f"  score {scores.mean():6.1f}  ({self._seconds():.0f} s)"
        )
        if self._wandb:
            self._wandb.log({"return": episodes.returns.mean(1), "score": scores.mean(1)}, self._steps)

    def _passes(self, every: int, count: int) -> bool:
        return count // every > (count - self.chunk) // every

    def _lane(self, i: int) -> list:
        return [self.first_lane + i, *(self.settings[i][name] for name in ("seed", *self.swept))]

    def _seconds(self) -> float:
        return round(self._wall + time.time() - self._started, 3)

    def _report_divergence(self, metrics: dict[str, np.ndarray], phase: str) -> None:
        where = {"before": "pre-training ", "offline": "offline "}.get(phase, "")
        for i, setting in enumerate(self.settings):
            bad = [name for name, m in metrics.items() if not np.isfinite(m[i])]
            if bad and i not in self.diverged:
                self.diverged[i] = self._steps[1] or self._steps[0]
                named = ", ".join(f"{k}={v}" for k, v in setting.items())
                tqdm.write(
                    f"Lane {self.first_lane + i} ({named}) has diverged: {bad[0]} is not finite at "
                    f"{where}step {self.diverged[i]}; the other lanes go on.",
                    file=sys.stderr,
                )

    # -- files

    def _append(self, name: str, columns: list[str], rows: list[list]) -> None:
        """Appends whole rows to `<name>.csv` in one write."""
        path = self.out / f"{name}.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if name not in self._tables:
            self._tables[name] = path.open("ab", buffering=0)
        size = path.stat().st_size
        if size == 0:
            at = columns.index("seed") + 1
            writer.writerow([*columns[:at], *self.swept, *columns[at:]])
        writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])
        left = text.getvalue().encode()
        try:
            while left:
                left = left[self._tables[name].write(left) :]
        except OSError:
            os.truncate(path, size)  # of these rows all or none
            raise

    def save(self, tree: Any) -> None:
        """Writes a checkpoint under a temporary name and renames it: a kill leaves the previous one.

        Until the run has finished the previous one is kept beside it, for `--resume` after damage to the last.
        """
        header = {
            "algorithm": self.algorithm,
            "done": self.done,
            "pretrained": self.pretrained,
            "wall_s": self._seconds(),
            "args": _comparable(self.args),
            "settings": self.settings,
            "task": self.task.describe(),
            "bytes": {path.stem: path.stat().st_size for path in self.out.glob("*.csv")},
            "sums": {name: total.tolist() for name, total in self._sums.items()},
            "summed": self._summed,
            "diverged": self.diverged,
        }
        with contextlib.suppress(OSError):  # there is none yet, or the file system has no links
            self._file_previous.unlink(missing_ok=True)
            os.link(self._file_checkpoint, self._file_previous)
        if self.online and self.done == 0:  # the offline phase ends: for --from
            save_tree(self._file_checkpoint.with_name("offline.npz"), (tree[0], None), header)
        save_tree(self._file_checkpoint, tree, header)
        self._write_record("running")

    def restore(self, agent: Any, state: Any = None) -> Any:
        """`agent` (and `state`) from the checkpoint when --resume was given, else as they are.

        With --from, `agent` is the one trained there.
        """
        if self.args.resume:
            agent, state = load_tree(self._file_checkpoint, (agent, state))
            self._cut_tables()
            self._write_record("running")
            tqdm.write(f"Resumed at step {self.done:,}.")
        elif self.from_run:
            agent = self._pretrained_agent(agent)
            self._steps = [self.pretrained, 0]
            self.evaluate(agent)
        return agent if state is None else (agent, state)

    def _pretrained_agent(self, agent: Any) -> Any:
        """`agent` with the networks of the run that --from names: of its lanes of the same seed and setting."""
        offline = self.from_run / "checkpoint" / "offline.npz"
        path = offline if offline.exists() else offline.with_name("state.npz")
        if not path.exists():
            raise InputError(f"--from: there is no checkpoint in {self.from_run}.")
        header = read_header(path)
        args, there, here = header["args"], header["task"], json.loads(json.dumps(self.task.describe()))
        if "env_steps" in args and header["done"] != 0:
            what = "have interacted already" if header["done"] > 0 else "are still in their offline phase"
            raise InputError(f"--from: the agents of {self.from_run} {what}.")
        if header["done"] < args.get("updates", 0):
            raise InputError(
                f"--from: the run in {self.from_run} ended after {header['done']:,} of {args['updates']:,} updates; "
                "resume it first."
            )
        for name in ("hash", "spec", "obs_mean", "obs_std", "options"):
            if there[name] != here[name]:
                what = "data" if name in ("hash", "spec") else "observation statistics" if "obs" in name else "options"
                raise InputError(
                    f"--from: the run in {self.from_run} was trained with other {what} of '{there['id']}' than "
                    f"this one of '{here['id']}' ({name})."
                )
        lanes = []
        for setting in self.padded_settings:
            shared = lambda other, s=setting: all(other[n] == s[n] for n in s.keys() & other.keys())  # noqa: E731
            found = [i for i, other in enumerate(header["settings"]) if shared(other)]
            if len(found) != 1:
                raise InputError(
                    f"--from: {self.from_run} has {len(found) or 'no'} lanes with "
                    f"{', '.join(f'{k}={v}' for k, v in setting.items())}; it has seeds "
                    f"{', '.join(sorted({str(s['seed']) for s in header['settings']}))}."
                )
            lanes += found
        self.pretrained = args["offline_updates"] if "env_steps" in args else header["done"]
        return load_lanes(path, agent, np.array(lanes))

    def _read_checkpoint_header(self) -> dict[str, int]:
        """Goes on where it ended; returns the sizes of the tables then.

        The previous checkpoint takes the place of a last one that is damaged, which is kept as damaged.npz.
        """
        last, previous = self._file_checkpoint, self._file_previous
        damaged = previous.exists() and not is_whole(last) and is_whole(previous)
        header = read_header(previous if damaged else last)
        if header["algorithm"] != self.algorithm:
            raise InputError(f"{self.out} is a run of {header['algorithm']}, not of {self.algorithm}.")
        if header["task"]["hash"] != self.task.hash:
            raise InputError(f"The dataset '{self.task.id}' has changed since the run in {self.out} began.")
        for name, value in _comparable(self.args).items():
            if header["args"].get(name) != value:
                raise InputError(
                    f"--resume with --{name.replace('_', '-')} {value}, but the run was started with "
                    f"{header['args'].get(name)}; use the same."
                )
        if header["settings"] != json.loads(json.dumps(self.settings)):
            raise InputError(
                f"The checkpoint in {self.out} is of other lanes; resume with as many processes as before."
            )
        self.done, self._wall = header["done"], header["wall_s"]
        self.pretrained = header.get("pretrained", 0)
        self.diverged = {int(k): v for k, v in header["diverged"].items()}
        self._sums = {name: np.array(total) for name, total in header.get("sums", {}).items()}
        self._summed = header.get("summed", 0)
        if damaged:
            tqdm.write(f"{last} is damaged: the checkpoint before it is used.", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):
                os.replace(last, last.with_name("damaged.npz"))
            os.replace(previous, last)
        return header["bytes"]

    def _write_record(self, status: str) -> None:
        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        record = {
            "algorithm": self.algorithm,
            "file": os.path.relpath(self.file, ROOT),
            "status": status,
            "command": " ".join([os.path.relpath(self.file, ROOT), *sys.argv[1:]]),
            "args": dataclasses.asdict(self.args),
            "task": self.task.describe(),
            "lanes": [{"lane": i, **s} for i, s in enumerate(self.settings, self.first_lane)],
            "diverged": {str(self.first_lane + i): u for i, u in self.diverged.items()},
            "steps_done": self.done,
            "versions": {p: _version(p) for p in ("jax", "flax", "optax", "gymnasium", "mujoco", "numpy")},
            "hardware": {
                "device": device.device_kind,
                "devices": int(self.mesh.devices.size),
                "cpu": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
            },
            "compile_s": round(self._compile, 2),
            "wall_s": self._seconds(),
            "peak_memory_mib": round(
                stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20
            ),
        }
        with replacing(self.out / "run.json") as file:
            file.write(json.dumps(record, indent=1).encode())

    def _all_finished(self, status: str) -> bool:
        """Whether every process has; each waits here for the others, however it ended.

        Raises:
          Interrupted: this one has finished, and another was stopped.
          InputError: this one has finished, and another has failed.
        """
        found = [one.decode().split() for one in gather(f"{status} {self._signal or 0}".encode())]
        if status != "finished":
            return False
        for i, (other, number) in enumerate(found):
            if other == "interrupted":
                raise Interrupted(int(number), self.merged_out)
            if other == "failed":
                raise InputError(f"Process {i} of {len(found)} has failed; mend that and resume all with --resume.")
        return True

    def _merge(self) -> None:
        """The tables and records of all processes in --out, written by process 0."""
        if jax.process_count() == 1:
            return
        for path in [self.out / "run.json", *(self.out / f"{name}.csv" for name in _TABLES)]:
            parts = gather(path.read_bytes() if path.exists() else b"")
            if any(parts) and not jax.process_index():
                content = merge_records(parts) if path.suffix == ".json" else merge_tables(parts)
                with replacing(self.merged_out / path.name) as file:
                    file.write(content)
        for name in ("final_returns", "final_scores"):
            own = np.array(self.__dict__.pop(name, ()), np.float64)  # empty in a process that had finished before
            parts = [np.frombuffer(part, own.dtype) for part in gather(own.tobytes())]
            if all(part.size for part in parts):
                setattr(self, name, np.concatenate(parts).reshape(-1, self.args.eval_episodes))
        self.settings, self.out = lane_settings(self.args), self.merged_out

    def _summary(self) -> None:
        """Prints the table of the last evaluation and writes curve.png; of all lanes, by process 0."""
        if jax.process_index():
            return
        if (self.out / "returns.csv").exists():
            _plot_curve(self.out, self.swept, f"{self.algorithm} on {self.task.id}")
        if not hasattr(self, "final_returns"):
            return
        print(f"\n{'setting':<34}{'lanes':>6}{'return':>10}{'score':>9}{'std':>7}")
        groups: dict[tuple, list[int]] = {}
        for i, s in enumerate(self.settings):
            groups.setdefault(tuple(f"{k}={s[k]:g}" for k in self.swept), []).append(i)
        for name, lanes in groups.items():
            scores = self.final_scores[lanes].mean(1)
            label = " ".join((self.algorithm, *name))
            print(
                f"{label:<34}{len(lanes):>6}{self.final_returns[lanes].mean():>10.1f}"
                f"{scores.mean():>9.1f}{scores.std():>7.1f}"
            )
        for label, value in self.task.baselines.items():
            print(f"{label:<34}{'':>6}{value:>10.1f}{float(self.task.score(np.array(value))):>9.1f}")
        if self.pretrained:
            unit = "score" if np.isfinite(self.final_scores).any() else "return"
            curve = _by_env_step(self.out / "returns.csv", unit)
            result = fine_tuning(np.array(list(curve)), np.array(list(curve.values())), unit == "score")
            head = "".join(f"{name:>24}" for name in result._fields)
            print(f"\n{f'fine-tuning ({unit}) [95 % of mean]':<34}{'lanes':>6}{head}")
            for name, lanes in groups.items():
                cells = "".join(f"{_with_interval(x[lanes]):>24}" for x in result)
                print(f"{' '.join((self.algorithm, *name)):<34}{len(lanes):>6}{cells}")


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_TABLES = ("before", "offline", "metrics", "returns")
_LANE_COLUMNS = ["lane", "seed", "update", "env_step"]


def _chunk_keys(key: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(len(length)))


def _chunk_length(args: RunArgs, total: int, unit: int, before: int = 0, offline: int = 0) -> int:
    """The longest chunk that divides the total, every interval and what comes before."""
    every = {n: getattr(args, n) for n in ("log_every", "eval_every", "checkpoint_every")}
    chunk = math.gcd(total, before, offline, *(min(v, max(total, offline)) for v in every.values()))
    if offline:
        chunk = math.gcd(chunk, min(args.offline_eval_every, offline))
    before += offline
    if chunk % unit or (chunk < 100 and total > 100 * chunk):
        intervals = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in every.items())
        raise InputError(
            f"{total} steps{f' after {before}' if before else ''} and {intervals} have only {chunk} as a common "
            f"divisor; choose multiples of {100 * unit}."
        )
    return chunk


def _comparable(args: RunArgs) -> dict:
    """The arguments that a resumed run must share, as JSON gives them back."""
    free = ("out", "resume", "wandb", "preset", "distributed")
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(args).items() if k not in free}))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """A file to write that takes the place of `path` once it is whole; after an error nothing has happened."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


# ------------------------------------------------------------------------------------ checkpoints


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def save_tree(path: Path, tree: Any, header: dict) -> None:
    """One npz: every leaf under its path in the tree, and the header as JSON. Atomic; no pickle."""
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for name, leaf in _named_leaves(tree).items()
    }
    with replacing(path) as file:
        np.savez(file, __header__=np.array(json.dumps(header)), **arrays)


def holds_checkpoint(run_dir: Path) -> bool:
    """Whether a run can be resumed there: from its last checkpoint, or the one before."""
    return any((run_dir / "checkpoint" / name).exists() for name in ("state.npz", "previous.npz"))


def status_of(run_dir: Path) -> str:
    """The status in run.json; empty where that is not readable."""
    try:
        return str(json.loads((run_dir / "run.json").read_text())["status"])
    except (ValueError, KeyError, TypeError):
        return ""


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written, by the archive's checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile and zlib each raise their own kinds
        return False


def read_header(path: Path) -> dict:
    """The header of a checkpoint."""
    try:
        header = json.loads(str(_read_checkpoint(path, lambda name: name == "__header__")["__header__"]))
        return dict(header)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a readable checkpoint (its header is missing or damaged).") from None


def _read_checkpoint(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    try:
        return read_npz(path, wanted)
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        raise InputError(f"{path} is not a readable checkpoint ({error}).") from None


def load_tree(path: Path, template: Any, partial: bool = False) -> Any:
    """The tree of a checkpoint, with the structure, shapes and sharding of `template` (arrays or their shapes).

    `partial`: the checkpoint may hold more.
    """
    names = _named_leaves(template)
    stored = _read_checkpoint(path, lambda n: n in names or not (partial or n == "__header__"))
    if missing := sorted(names.keys() ^ stored.keys()):
        raise InputError(f"{path} does not fit this algorithm's networks: {missing[0]} is on one side only.")

    def load(name: str, leaf: Any) -> Any:
        value = stored[name]
        if _is_key(leaf):
            return jax.device_put(jax.random.wrap_key_data(value), leaf.sharding)
        if value.shape != np.shape(leaf):
            raise InputError(f"{path} does not fit this run: {name} has shape {value.shape}, not {np.shape(leaf)}.")
        on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return jax.device_put(value, leaf.sharding) if on_device else value

    return jax.tree.unflatten(jax.tree.structure(template), [load(n, leaf) for n, leaf in names.items()])


def load_lanes(path: Path, agent: Any, lanes: np.ndarray) -> Any:
    """`agent` with what a checkpoint of another run holds under the same names: its `lanes` [L] of every array.

    What the checkpoint lacks stays as it is, and so do the optimisers of another form; both are told.
    """
    names = _named_leaves(agent)
    stored = _read_checkpoint(path, lambda n: f"{n.removeprefix('[0]')}" in names)
    stored = {n.removeprefix("[0]"): value for n, value in stored.items()}
    fields: dict[str, list[str]] = {}
    for name in names:
        fields.setdefault(name.split("[")[0].split(".")[1], []).append(name)
    taken = dict(names)
    for field, leaves in fields.items():
        fits = [n in stored and stored[n].shape[1:] == names[n].shape[1:] for n in leaves]
        if all(fits):
            taken |= {n: jax.device_put(stored[n][lanes], names[n].sharding) for n in leaves}
        elif not any(n in stored for n in leaves) or "opt" in field:
            tqdm.write(f"--from: '{field}' is not in {path} in this form and starts anew.")
        else:
            wrong = leaves[fits.index(False)]
            shapes = f"{stored[wrong].shape[1:]}, not {names[wrong].shape[1:]}" if wrong in stored else "missing"
            raise InputError(f"--from: {path} does not fit this algorithm's networks: {wrong} is {shapes}.")
    return jax.tree.unflatten(jax.tree.structure(agent), [taken[n] for n in names])


# ------------------------------------------------------------------------------- wandb and picture


class _WandbLanes:
    """One wandb run per lane, grouped; the first failure is reported and ends the logging only."""

    def __init__(self, run: Run):
        self.runs, self.ok = [], True
        self._try(self._open, run)

    def _open(self, run: Run) -> None:
        import wandb

        for i, setting in enumerate(run.settings):
            self.runs.append(
                wandb.init(
                    project=f"offline-rl-{run.algorithm}",
                    group=f"{run.task.id}/{run.out.name}",
                    name="-".join([run.task.id, *(f"{k}{v}" for k, v in setting.items())]),
                    config={**dataclasses.asdict(run.args), **setting, "lane": i},
                    mode=run.args.wandb,
                    dir=str(run.out),
                    reinit="create_new",
                )
            )

    def log(self, values: dict[str, np.ndarray], steps: list[int]) -> None:
        axes = dict(zip(("update", "env_step"), steps, strict=True))
        for i, one in enumerate(self.runs if self.ok else []):
            self._try(one.log, {n: float(v[i]) for n, v in values.items()} | axes)

    def close(self) -> None:
        for one in self.runs:  # after a failure too: what was logged before is kept
            self._try(one.finish)

    def _try(self, f: Callable, *args: Any) -> None:
        try:
            f(*args)
        except Exception as error:
            if self.ok:
                tqdm.write(f"wandb failed and is off from here on ({error}); training goes on.", file=sys.stderr)
            self.ok = False


def _evaluations(returns: Path) -> list[dict[str, str]]:
    """Rows of returns.csv; where a run interacted, without those from before the end of offline training."""
    with returns.open() as f:
        rows = list(csv.DictReader(f))
    if not any(int(r["env_step"]) for r in rows):
        return rows
    first = max((int(r["update"]) for r in rows if r["env_step"] == "0"), default=0)
    return [r for r in rows if r["env_step"] != "0" or int(r["update"]) == first]


def _with_interval(x: np.ndarray) -> str:
    low, high = interval(x)
    return f"{x.mean():.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(x).all() else "-"


def _by_env_step(returns: Path, unit: str) -> dict[int, list[float]]:
    """{environment step: mean "score" or "return" of every lane}."""
    lanes: dict[int, dict[int, list[float]]] = {}
    for r in _evaluations(returns):
        lanes.setdefault(int(r["env_step"]), {}).setdefault(int(r["lane"]), []).append(float(r[unit]))
    return {step: [float(np.mean(of[i])) for i in sorted(of)] for step, of in lanes.items()}


def _plot_curve(out: Path, swept: list[str], title: str) -> None:
    """curve.png from returns.csv: every lane thin, the mean of each setting thick."""
    from matplotlib.figure import Figure

    rows = _evaluations(out / "returns.csv")
    y = "score" if all(r["score"] not in ("", "nan") for r in rows) else "return"
    x = "env_step" if any(int(r["env_step"]) for r in rows) else "update"
    lanes: dict[tuple, dict[int, list[float]]] = {}
    for r in rows:
        key = (tuple(f"{k}={r[k]}" for k in swept), r["lane"])
        lanes.setdefault(key, {}).setdefault(int(r[x]), []).append(float(r[y]))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys(key[0] for key in lanes))
    for n, setting in enumerate(settings):
        curves = [{u: np.mean(v) for u, v in c.items()} for k, c in lanes.items() if k[0] == setting]
        for c in curves:
            axes.plot(c.keys(), c.values(), color=f"C{n % 10}", alpha=0.3, lw=0.8)
        mean = {u: np.mean([c[u] for c in curves if u in c]) for u in curves[0]}
        label = " ".join(setting) or f"mean of {len(curves)} seeds"
        axes.plot(mean.keys(), mean.values(), color=f"C{n % 10}", lw=2, marker="o", ms=3, label=label)
    axes.set(xlabel=x.replace("_", " "), ylabel="normalised score" if y == "score" else "return", title=title)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    with replacing(out / "curve.png") as file:
        figure.savefig(file, dpi=120, format="png")
