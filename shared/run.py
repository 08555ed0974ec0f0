"""The run around an algorithm: lanes, schedule, progress, logging, evaluation, checkpoints and resume.

Nothing here knows any one algorithm.
"""

import contextlib
import dataclasses
import datetime
import errno
import io
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from shared.arguments import RunArgs, parse
from shared.checkpoint import (
    Checkpoints,
    comparable,
    holds_checkpoint,
    load_lanes,
    load_tree,
    pretrained_lanes,
    refuse_another_run,
    sizes_of,
)
from shared.data import preset_objection
from shared.distributed import all_finished, gather, join, meet, merge_files, share
from shared.errors import ROOT, EvaluationFailed, InputError, Interrupted, first_line
from shared.evaluation import Evaluator, Stopped
from shared.lanes import lane_settings, layout_on, make_mesh, over_lanes, replicated, use_cpu_devices, with_settings
from shared.policies import Policy, at_step, seen_by
from shared.programs import fitting, keep_programs
from shared.record import LANE_COLUMNS, TABLES, Means, Tables, WandbLanes, refuse_to_overwrite, summarise, write_record
from shared.schedule import chunk_keys, chunk_length
from shared.signals import Signals
from shared.task import Task


def launch(main: Callable, cls: type, presets: dict[str, dict[str, Any]], doc: str) -> None:
    """Runs `main` from the command line; bad input is one sentence on stderr and exit status 2."""
    try:
        told: list[str] = []  # by process 0 alone, and which it is shows when all have joined
        args = parse(cls, presets, doc, objection=preset_objection, tell=told.append)
        join(args.distributed)
        use_cpu_devices(len(lane_settings(args)))
        if args.compile_cache:
            keep_programs()
        meet()
        with contextlib.redirect_stdout(io.StringIO() if args.distributed and jax.process_index() else sys.stdout):
            print(*told, sep="\n", end="\n" * bool(told), flush=True)
            main(args)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"Stopped and saved; continue with --out {shlex.quote(str(stop.out))} --resume", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:  # the second Ctrl-C: at once
        sys.exit(130)


class Run:
    """Everything around `train`: lanes, schedule, progress, metrics, evaluation, checkpoints.

    Attributes:
      init_keys: [L] one PRNG key per lane, for `init`.
      lane_args: `args` with every `Float` field an array [L]; the other fields are static.
      layout: "map" or "vmap", how the lanes of one device are computed.
      done: updates (online: environment steps) done so far; below 0 in the phases that come before them.
    L counts the lanes padded to a multiple of the devices (the last lane again; never reported).
    """

    def __init__(self, file: str, args: RunArgs, task: Task, act: Policy, unit: int = 1, before: int = 0):
        """`file`: the algorithm's. `act(agent, obs [B, O], key, args) -> action [B, A]`, or with a carry: see
        `StatefulPolicy`; with goals see `seen_by`.

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
        self.chunk = self._online_chunk = chunk_length(args, self.total, unit, before, self.offline_updates)
        self.mesh = make_mesh(len(self.settings))
        self.layout = layout_on(self.mesh, args.layout)
        if args.lanes_per_call and self.layout == "map":
            raise InputError("--lanes-per-call is for lanes that are vmapped; here each is computed by itself (map).")
        padded = self.settings + [self.settings[-1]] * (-len(self.settings) % self.mesh.devices.size)
        self.padded_settings = padded
        self.sharding = sharding = NamedSharding(self.mesh, PartitionSpec("lane"))
        keys = jax.vmap(jax.random.key)(np.array([s["seed"] for s in padded]))
        init_keys, train_keys, eval_keys = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
        self.init_keys = jax.device_put(init_keys, sharding)
        self._train_keys = jax.device_put(train_keys, sharding)
        self._eval_keys = jax.device_put(eval_keys, sharding)
        self.lane_args = jax.device_put(with_settings(args, padded), sharding)
        self._chunk_keys = self.over_lanes(chunk_keys, in_axes=(0, None, None))
        self._signals = Signals()
        self._evaluate = Evaluator(
            task.capped(args.max_episode_steps), at_step(seen_by(act, task)), self.over_lanes, len(padded),
            len(self.settings), args.eval_episodes * max(1, len(task.tasks)),
            stopped=lambda: self._signals.number is not None,
        )  # fmt: skip
        self.final_returns = self.final_scores = np.empty(0)  # [L, episodes] of the last evaluation
        self.pretrained = self.offline_updates
        """Offline updates behind the first environment step, here or in the run that --from names."""
        self.done, self.diverged, self._sizes, self.notes = -before - self.offline_updates, {}, {}, []

    def over_lanes(self, f: Callable, in_axes: tuple, donate: bool = False, vmap: bool = False) -> Callable:
        """`over_lanes` on this run's mesh, in its layout; `vmap`: for what only moves memory, vmapped in either.

        What is to be donated its first argument (an update) is asked before its first call whether it fits.
        """
        at_once = 0 if vmap else self.args.lanes_per_call
        program = over_lanes(f, self.mesh, in_axes, donate, "vmap" if vmap else self.layout, at_once)
        if not donate:
            return program
        fewer = ", or --lanes-per-call" * (self.layout == "vmap")
        return fitting(program, list(self.mesh.devices.flat), f"give fewer --seeds, smaller networks or batches{fewer}")

    def init(self, init: Callable) -> Any:
        """The agents [L] of `init(key, args)`; on CPU always mapped: LAPACK on a batch can wait there for ever."""
        self._sizes = sizes_of(init)
        return over_lanes(init, self.mesh, in_axes=(0, 0))(self.init_keys, self.lane_args)

    def replicate(self, tree: Any) -> Any:
        """`tree` where every device of the mesh can read it, so that no call copies it."""
        return replicated(tree, self.mesh)

    # -- opening and closing

    def __enter__(self) -> "Run":
        args = self.args
        slug = self.task.id.replace("/", "-").strip("-")
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        default = ROOT / "results" / "runs" / self.algorithm / slug / stamp
        self.merged_out = self.out = Path(args.out).expanduser().resolve() if args.out else default
        if jax.process_count() > 1:
            if not args.out:
                raise InputError("Several processes need an --out, the same for all.")
            self.out = self.out / f"process-{jax.process_index()}"
        self._checkpoints = Checkpoints(self.out)
        self._tables = Tables(self.out, self.swept)
        self._wall, self._compile, self._started = 0.0, 0.0, time.time()
        self._means = Means()
        self._steps, self._evaluated, self._wandb_ids = [0, 0], True, []
        try:
            self._open_directory()
        except OSError as error:
            raise InputError(f"Cannot write to {self.out}: {error.strerror}.") from None
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        self._signals.listen()
        self._wandb = WandbLanes(self, self._wandb_ids) if args.wandb != "off" else None
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
            refuse_to_overwrite(folder)
        (self.out / "checkpoint").mkdir(parents=True, exist_ok=True)
        self._table_sizes = {}
        self._tables.cut(self._table_sizes)
        self._write_record("running")

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        self._bar.close()
        self._signals.restore()
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        self._tables.close()
        status = "finished" if kind is None else "interrupted" if kind is Interrupted else "failed"
        told = kind is KeyboardInterrupt  # which waits for nobody
        try:
            if not (kind is InputError and self.args.resume):  # a checkpoint that does not fit: nothing was changed
                self._write_record(status)
            if self._wandb:
                self._wandb.close()
            if status == "finished":
                self._checkpoints.previous.unlink(missing_ok=True)
            told, together = True, not told and all_finished(status, self._signals.number or 0, self.merged_out)
            if together:
                self._merge()
                if not jax.process_index():
                    ran = (self.out, self.algorithm, self.task, self.settings, self.swept)
                    summarise(*ran, self.final_returns, self.final_scores, bool(self.pretrained))
        except OSError as second:
            if second.errno not in _DISK:
                raise
            error = error or second
            told or all_finished("failed", self._signals.number or 0, self.merged_out)
        if isinstance(error, OSError) and error.errno in _DISK:
            try:
                saved = self._checkpoints.last.exists()
            except OSError:  # not even to be looked at
                saved = False
            left = "mend that and go on with --resume" if saved else "there is no checkpoint yet"
            raise InputError(f"Cannot write to {self.out} any more: {error.strerror}; {left}.") from None

    def _on_event(self, name: str, seconds: float, **_) -> None:
        if name.startswith("/jax/core/compile/"):
            self._compile += seconds

    def note(self, sentence: str | None) -> None:
        """Tells the user (not again where a run is resumed) and run.json. None: nothing is to be said."""
        self.notes += [sentence] if sentence else []
        if sentence and not self.args.resume:
            tqdm.write(f"note: {sentence}")

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
        """[L] the keys of one step; no step's lie before the first, and from `total` on where that cannot grow."""
        return self._chunk_keys(self._train_keys, step, jnp.zeros(1))[:, 0]

    @property
    def offline(self) -> bool:
        """Whether the next chunk is of the offline updates that come before the first environment step."""
        return -self.offline_updates <= self.done < 0

    def log(self, agent: Any, metrics: dict[str, jax.Array], updates: int | None = None, state: Any = None) -> None:
        """After a chunk: writes its mean metrics {name: [L]} (None: not known yet); evaluates and saves in time.

        `updates`: gradient updates done since the first environment step, where the schedule counts those.
        `state`: what a checkpoint needs besides `agent` (a replay buffer).
        """
        known, metrics = Means.known_and_all(metrics, len(self.padded_settings))
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
            self._report_divergence(known, phase)
            self._means.add(metrics)
        if self._means.count and (last or ends or self._passes(self.args.log_every, count)):
            metrics = self._means.take()
            rows = [
                [*self._lane(i), *self._steps, self._seconds(), *(m[i] for m in metrics.values())]
                for i in range(len(self.settings))
            ]
            self._tables.append(phase or "metrics", [*LANE_COLUMNS, "wall_s", *metrics], rows)
            if self._wandb and not early:
                self._wandb.log(metrics, self._steps)
        every = self.args.offline_eval_every if offline else self.args.eval_every
        if last or (offline and ends) or (not early and self._passes(every, count)):
            if last and self.task.env_spec:
                self.save((agent, state), evaluated=False)
            try:
                self.evaluate(agent)
            except (Interrupted, EvaluationFailed):
                self.save((agent, state), evaluated=False)
                raise
        stop = self._signals.number  # read once: it may come at any moment
        if last or stop or (offline and ends) or self._passes(self.args.checkpoint_every, count):
            self.save((agent, state))
        if stop and not last:
            raise Interrupted(stop, self.merged_out)

    def evaluate(self, agent: Any) -> None:
        """Appends one row per lane and episode to returns.csv.

        Raises:
          Interrupted: a signal came meanwhile; nothing was appended.
          EvaluationFailed: the environment raised something.
        """
        if self.task.env_spec is None:
            return
        try:
            episodes = self._evaluate(agent, self._eval_keys, self.lane_args)
        except Stopped:
            raise Interrupted(self._signals.number, self.merged_out) from None
        except Exception as error:  # environments raise their own kinds
            raise EvaluationFailed(
                f"{self.task.env_spec.id} failed in the evaluation ({first_line(error)}); the agents are saved in "
                f"{self.out / 'checkpoint'}."
            ) from error
        columns, steps = episodes.columns(self.task), episodes.success_steps
        scores = columns["score"]
        at = [*self._steps, self._seconds()]
        rows = [[*self._lane(i), *at, e, *(x[i, e] for x in columns.values())] for i, e in np.ndindex(scores.shape)]
        self._tables.append("returns", [*LANE_COLUMNS, "wall_s", "episode", *columns], rows)
        self.final_returns, self.final_scores = episodes.returns, scores
        self._bar.set_postfix_str(f"return {episodes.returns.mean():.1f} score {scores.mean():.1f}", refresh=False)
        at, of = (self._steps[0], self.offline_updates) if self.done < 0 else (self.done, self.total)
        tqdm.write(
            f"  {at:>9,}/{of:,}{' offline' * (self.done < 0)}  return {episodes.returns.mean():9.2f}"
            f"  score {scores.mean():6.1f}  ({self._seconds():.0f} s)"
            + (f"  successes after {steps[steps > 0].mean():.0f} steps" if steps is not None and steps.any() else "")
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

    def save(self, tree: Any, evaluated: bool = True) -> None:
        """Writes a checkpoint; not `evaluated`: an evaluation is due at this step, with which a resumed run begins."""
        header = {
            "algorithm": self.algorithm,
            "done": self.done,
            "pretrained": self.pretrained,
            "wall_s": self._seconds(),
            "args": comparable(self.args),
            "settings": self.settings,
            "task": self.task.describe(),
            "bytes": self._tables.sizes(),
            "sums": {name: total.tolist() for name, total in self._means.sums.items()},
            "summed": self._means.count,
            "diverged": self.diverged,
            "steps": self._steps,
            "sizes": self._sizes,
            "evaluated": evaluated,
            "wandb": self._wandb.ids if self._wandb else [],
        }
        offline_ends = self.online and self.done == 0
        self._checkpoints.save(tree, header, len(self.settings), offline_ends)
        self._write_record("running")

    def restore(self, agent: Any, state: Any = None) -> Any:
        """`agent` (and `state`) from the checkpoint when --resume was given, else as they are.

        With --from, `agent` is the one trained there.
        """
        if self.args.resume:
            agent, state = load_tree(self._checkpoints.last, (agent, state))
            self._tables.cut(self._table_sizes)
            self._write_record("running")
            tqdm.write(f"Resumed at step {self.done:,}.")
            if not self._evaluated:
                self.evaluate(agent)
                if self.done >= self.total:
                    self.save((agent, state))
        elif self.from_run:
            path, lanes, self.pretrained = pretrained_lanes(self.from_run, self.task, self.padded_settings)
            agent = load_lanes(path, agent, lanes)
            self._steps = [self.pretrained, 0]
            self.evaluate(agent)
        return agent if state is None else (agent, state)

    def _read_checkpoint_header(self) -> dict[str, int]:
        """Goes on where it ended; returns the sizes of the tables then."""
        header = self._checkpoints.header()
        refuse_another_run(self.out, header, self.algorithm, self.task, self.args, self.settings)
        self.done, self._wall = header["done"], header["wall_s"]
        self.pretrained = header.get("pretrained", 0)
        self.diverged = {int(k): v for k, v in header["diverged"].items()}
        self._means = Means(header.get("sums", {}), header.get("summed", 0))
        self._steps, self._evaluated = header.get("steps", [0, 0]), header.get("evaluated", True)
        self._wandb_ids = header.get("wandb", [])
        self.chunk = self._online_chunk = math.gcd(self.chunk, self.done)  # the run may have had other intervals
        self._checkpoints.repair()
        return header["bytes"]

    def _write_record(self, status: str) -> None:
        found = {
            "algorithm": self.algorithm,
            "file": os.path.relpath(self.file, ROOT),
            "status": status,
            "command": shlex.join([os.path.relpath(self.file, ROOT), *sys.argv[1:]]),
            "args": dataclasses.asdict(self.args),
            "task": self.task.describe(),
            "lanes": [{"lane": i, **s} for i, s in enumerate(self.settings, self.first_lane)],
            "layout": self.layout,
            "diverged": {str(self.first_lane + i): u for i, u in self.diverged.items()},
            "steps_done": self.done,
            "compile_s": round(self._compile, 2),
            "wall_s": self._seconds(),
        }
        write_record(self.out / "run.json", found | {"notes": self.notes}, int(self.mesh.devices.size))

    def _merge(self) -> None:
        """The tables and records of all processes in --out, written by process 0."""
        if jax.process_count() == 1:
            return
        merge_files(self.out, self.merged_out, ("run.json", *(f"{name}.csv" for name in TABLES)))
        for name in ("final_returns", "final_scores"):
            own = np.array(getattr(self, name), np.float64)  # empty in a process that had finished before
            parts = [np.frombuffer(part, own.dtype) for part in gather(own.tobytes())]
            whole = np.concatenate(parts) if all(part.size for part in parts) else own[:0]
            setattr(self, name, whole.reshape(-1, self._evaluate.episodes))
        self.settings, self.out = lane_settings(self.args), self.merged_out


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
