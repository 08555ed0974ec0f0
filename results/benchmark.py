"""Makes the runs of the result tables: algorithm by dataset, one job after the other.

    python results/benchmark.py                     # the runs of results/claims/; what `make benchmark` does
    python results/benchmark.py --algorithms td3_bc iql --datasets hopper-medium --updates 100000
    python results/benchmark.py --dry-run           # what would be done, in which order
    python results/benchmark.py --full --at-once 8  # the score tables at the papers' sizes (`make benchmark-gpu`)
    python results/benchmark.py --engine ray --cpus 4   # side by side on a Ray cluster (pip install ray)

A job runs algorithms/*/<algorithm>.py with `--out results/runs/<algorithm>/<dataset>/<name>`. Jobs may
be stopped and started again at any time: a finished one is never run again (where it was made with
other arguments, that is said), an unfinished one goes on from its checkpoint, one that left no checkpoint
begins anew. Several processes may share a grid.

With `--engine ray` the jobs are tasks of the cluster that RAY_ADDRESS names (`ray start`; else of one on this
machine); a task whose machine dies is given to another, and goes on from the checkpoint. All machines need
the repository at the same place of one file system.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.grid import Entry, evaluation_file, full_grid, grid
from shared.checkpoint import holds_checkpoint, renamed
from shared.errors import InputError, nearest
from shared.record import status_of
from shared.task import recipes

ROOT = Path(__file__).resolve().parents[1]


RETRIES = 3
"""Of a job that dies, on Ray."""


class Job(NamedTuple):
    algorithm: str
    dataset: str
    command: list[str]
    """Without --resume; paths from the repository's root, as run.json will show them."""
    out: Path
    evaluations: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.algorithm} on {self.dataset}"


def make_jobs(entries: list[Entry], name: str, more: list[str], root: Path) -> list[Job]:
    """The entries' commands; `more` arguments come last and win.

    Raises:
      InputError: an algorithm or dataset that does not exist.
    """
    files = {file.stem: file for file in sorted((root / "algorithms").glob("*/*.py"))}
    jobs = []
    for entry in entries:
        algorithm, dataset = entry.algorithm, entry.dataset
        if algorithm not in files:
            raise InputError(f"There is no algorithm '{algorithm}'; {nearest(algorithm, files)}.")
        check_dataset(dataset, root)
        arguments = [*shlex.split(entry.arguments), *more]
        out = entry.directory(name, more)
        command = [sys.executable, str(files[algorithm].relative_to(root))]
        of = "--env" if files[algorithm].parent.name == "online" else "--dataset"
        command += [of, dataset, *arguments, "--out", str(out)]
        jobs.append(Job(algorithm, dataset, command, root / out, entry.evaluations))
    return jobs


def check_dataset(dataset: str, root: Path) -> None:
    """A recipe's name, a file or directory, or a possible Minari id (those end in a version)."""
    names = recipes(root)
    if dataset not in names and not (root / dataset).exists() and not re.search(r"-v\d+$", dataset):
        raise InputError(f"There is no dataset '{dataset}'; {nearest(dataset, names)}.")


def state(job: Job) -> str:
    """ "new", "resume" (from a checkpoint), "again" (there is none), "evaluate" (only that is left) or "finished".

    "changed": it is finished, but was made with other arguments.
    """
    with contextlib.suppress(OSError):  # there is no run.json yet
        if status_of(job.out) == "finished":
            return "changed" if changed(job) else "evaluate" if missing_evaluations(job) else "finished"
    if holds_checkpoint(job.out):
        return "resume"
    return "again" if job.out.exists() and any(job.out.iterdir()) else "new"


def changed(job: Job) -> str:
    """The first argument that a finished run had another value of, as "--seeds 8"; empty: there is none.

    Under today's names; one that the run was made before has no value: "no --orthogonal". The dataset, whose names
    have versions, is not compared.
    """
    had, given = json.loads((job.out / "run.json").read_text()).get("args", {}), {}
    for word in job.command[2:]:
        if word.startswith("--"):
            values = given[word[2:].replace("-", "_")] = []  # of a flag that is given twice the last one counts
        else:
            values.append(word)
    had = renamed(had, {name.removeprefix("no_") for name in given} | {*given})
    for name, values in given.items():
        if name.startswith("no_") and name[3:] in had:
            name, values = name[3:], ["False"]
        if name in ("dataset", "preset", "out"):
            continue
        if name not in had:
            return f"no --{name.replace('_', '-')}"
        before = had[name] if isinstance(had[name], list) else [had[name]]
        values = values or ["True"] * len(before)  # a flag, or an empty list
        if [_plain(x) for x in before] != [_plain(x) for x in values]:
            return " ".join([f"--{name.replace('_', '-')}", *map(str, before)])
    return ""


def _plain(value) -> float | str:
    """A number, however it is written; else the text."""
    with contextlib.suppress(ValueError):
        return str(value) if isinstance(value, bool) else float(value)
    return str(value)


def missing_evaluations(job: Job) -> list[str]:
    return [change for change in job.evaluations if not evaluation_file(job.out, change).exists()]


@contextlib.contextmanager
def locked(job: Job) -> Iterator[bool]:
    """Whether this process alone has the job's directory; a killed owner's lock is gone with it."""
    job.out.mkdir(parents=True, exist_ok=True)
    handle = os.open(job.out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def clear(directory: Path) -> None:
    """Removes what is in `directory`; it stays itself, since its lock is held."""
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def execute(command: list[str], root: Path, end: float = math.inf) -> int:
    """Runs a job to its exit status; a signal is left to the job, which saves and ends. It dies with this process.

    At `end` (time.time()) it is asked to save and end.
    """
    process = subprocess.Popen(command, cwd=root, preexec_fn=_die_with_parent)

    def forward(number: int, _) -> None:
        if number != signal.SIGINT:  # the terminal has sent Ctrl-C to the job already
            process.send_signal(number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            status = process.wait(None if end == math.inf else max(0.0, end - time.time()))
        except subprocess.TimeoutExpired:
            process.terminate()
            status = process.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _die_with_parent() -> None:
    """On Linux: a job whose owner was killed must not go on beside the one that takes its place."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def perform(job: Job, root: Path, label: str = "", end: float = math.inf) -> int | None:
    """Does what is left of a job, as far as it comes by `end` -> its exit status.

    None where nothing is left or another process has it.
    """
    with locked(job) as mine:
        now = state(job)
        if now == "changed":
            said = f"{job.out} was made with {changed(job)}: remove it, and it is made again."
            print(said, file=sys.stderr, flush=True)
        if not mine or now in ("finished", "changed"):
            return None
        if now == "again":
            clear(job.out)
        print(f"{label}{job.name} ({now})", flush=True)
        status = 0 if now == "evaluate" else execute(job.command + ["--resume"] * (now == "resume"), root, end)
        for change in missing_evaluations(job) if not status else []:
            evaluation = [sys.executable, "-m", "shared.evaluation", str(job.out), "--set", *change.split()]
            status = status or execute(evaluation, root, end)
    if status not in (0, 130, 143):
        print(f"{job.name} ended with status {status}.", file=sys.stderr, flush=True)
    return status


def run_jobs(jobs: list[Job], hours: float, max_jobs: int, root: Path) -> None:
    """Runs what is unfinished within the bounds, one after the other."""
    end, started = time.time() + 3600 * hours, 0
    for n, job in enumerate(jobs, 1):
        if started >= max_jobs or time.time() >= end:
            return
        status = perform(job, root, f"[{n}/{len(jobs)}] ", end)
        started += status is not None
        if status in (130, 143):  # interrupted: the next job is not wanted either
            return


def run_side_by_side(at_once: int, *arguments) -> None:
    """`run_jobs(*arguments)` in so many processes, each taking what no other has; a signal reaches all of them.

    They share one accelerator, so none may reserve its memory.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_jobs, args=arguments, daemon=True) for _ in range(at_once)]
    for worker in workers:
        worker.start()

    def forward(number: int, _) -> None:
        if number != signal.SIGINT:
            for worker in workers:
                worker.terminate()

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    for worker in workers:
        worker.join()
    for number, handler in old.items():
        signal.signal(number, handler)


def run_on_ray(jobs: list[Job], hours: float, max_jobs: int, root: Path, cpus: float, gpus: float) -> None:
    """Runs what is unfinished within the bounds, as many at once as the cluster has `cpus` and `gpus` for.

    Raises:
      InputError: Ray is not installed, or the cluster is too small for one job.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install ray.") from None
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, log_to_driver=True, logging_level="error")
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(perform)
    there = ray.cluster_resources()
    slots = int(min(there.get(name, 0) / n for name, n in (("CPU", cpus), ("GPU", gpus)) if n))
    if slots < 1:
        has = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        raise InputError(f"The cluster has {has}, a job needs {cpus:g} and {gpus:g}.")
    end, deaths = time.time() + 3600 * hours, Counter()
    waiting, running = [job for job in jobs if state(job) not in ("finished", "changed")][:max_jobs], {}
    while waiting or running:
        while waiting and len(running) < slots and time.time() < end:
            job = waiting.pop(0)
            running[task.remote(job, root, end=end)] = job
        if not running:
            return
        (done,), _ = ray.wait(list(running))
        job = running.pop(done)
        try:
            status = ray.get(done)
            if status is not None and status > 128 and status not in (130, 143):  # killed, by want of memory maybe
                deaths[job.name] += 1
                waiting += [job] if deaths[job.name] <= RETRIES else []
        except ray.exceptions.RayError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            print(f"{job.name} was given up by Ray: {reason}", file=sys.stderr, flush=True)


def finish(jobs: list[Job]) -> int:
    """Prints what is missing; 0 if nothing is."""
    missing = [job.name for job in jobs if state(job) != "finished"]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are finished.")
    if missing:
        print(f"Missing: {', '.join(missing)}.")
    return 1 if missing else 0


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line -> exit status: 0 all finished, 1 something is missing, 2 bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = parser.add_argument
    option("--algorithms", nargs="+", default=[], help="with --datasets: all pairs; alone: of the claims' runs")
    option("--datasets", nargs="+", default=[], help="with --algorithms: all pairs; alone: of the claims' runs")
    option("--seeds", type=int, help="lanes of each job")
    option("--updates", type=int, help="updates of each lane (offline scripts only)")
    option("--extra", default="", help="more arguments for every job, as one string")
    option("--name", default="", help="the runs' name (default: <series>-<variant>-<length>)")
    option(
        "--hours",
        type=float,
        default=float("inf"),
        help="end after this time: what runs then saves, and goes on the next time",
    )
    option("--max-jobs", type=int, default=sys.maxsize, help="begin no more than so many jobs")
    option("--at-once", type=int, default=1, help="so many jobs side by side; each begins --max-jobs at most")
    option("--full", action="store_true", help="the score tables' runs at their files' own sizes, a million updates")
    option("--engine", choices=["local", "ray"], default="local", help="one job after the other, or a Ray cluster")
    option("--cpus", type=float, default=1, help="with --engine ray: CPUs of each job")
    option("--gpus", type=float, default=0, help="with --engine ray: GPUs of each job")
    option("--dry-run", action="store_true", help="print the jobs and do nothing")
    args = parser.parse_args(argv)
    try:
        if args.algorithms and args.datasets:
            entries = [Entry(a, d, "") for d in args.datasets for a in args.algorithms]
        else:
            entries = full_grid(root) if args.full else grid(root)
            chosen = {0: args.algorithms, 1: args.datasets}
            for i, names in chosen.items():
                for name in sorted(set(names) - {entry[i] for entry in entries}):
                    known = nearest(name, [entry[i] for entry in entries])
                    raise InputError(f"No run of results/claims/ has '{name}'; {known}.")
            entries = [e for e in entries if all(not names or e[i] in names for i, names in chosen.items())]
        more = [] if args.seeds is None else ["--seeds", str(args.seeds)]
        more += [] if args.updates is None else ["--updates", str(args.updates)]
        jobs = make_jobs(entries, args.name, more + shlex.split(args.extra), root)
        if args.dry_run:
            for job in jobs:
                print(f"{state(job):<9}{shlex.join(job.command)}")
            return 0
        if args.engine == "ray":
            run_on_ray(jobs, args.hours, args.max_jobs, root, args.cpus, args.gpus)
        else:
            bounds = (jobs, args.hours, args.max_jobs, root)
            run_jobs(*bounds) if args.at_once <= 1 else run_side_by_side(args.at_once, *bounds)
    except (InputError, ValueError) as error:  # ValueError: a quote in --extra is not closed
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return finish(jobs)


if __name__ == "__main__":
    sys.exit(main())
