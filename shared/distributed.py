"""Several processes or hosts: each trains and evaluates lanes of its own, process 0 merges the tables.

Lanes do not communicate, so that nothing does while a run trains; JAX's own services connect the processes
(jax.distributed) and carry the tables at the end (multihost_utils).
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from shared.checkpoint import replacing
from shared.errors import InputError, Interrupted


def join(how: str) -> None:
    """Joins the other processes; before anything is computed.

    `how`: "auto" (SLURM, TPU pods, Open MPI), or HOST:PORT,PROCESSES,PROCESS of the coordinator, which is
    process 0; empty: there is only this one.

    Raises:
      InputError: none of these, or the coordinator is not to be reached.
    """
    if not how:
        return
    try:
        if how == "auto":
            jax.distributed.initialize()
        else:
            address, processes, process = how.split(",")
            jax.distributed.initialize(address, int(processes), int(process))
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"--distributed {how} is auto or HOST:PORT,PROCESSES,PROCESS of a job ({reason}).") from None


def share(lanes: Sequence) -> tuple[int, Sequence]:
    """The first of this process's lanes, and they; blocks of equal length, give or take one.

    Raises:
      InputError: there are more processes than lanes.
    """
    index, count = jax.process_index(), jax.process_count()
    if count > len(lanes):
        raise InputError(f"{count} processes have only {len(lanes)} lanes; give more --seeds or start fewer.")
    first, last = (i * len(lanes) // count for i in (index, index + 1))
    return first, lanes[first:last]


def meet() -> None:
    """Opens the channel of `gather`, for which no process waits longer than half a minute: at the start, together."""
    gather(b"")


def gather(content: bytes) -> list[bytes]:
    """What each process has, in order; all must call it, after `meet`.

    Raises:
      InputError: another process has gone.
    """
    if jax.process_count() == 1:
        return [content]
    try:
        sizes = multihost_utils.process_allgather(np.array([len(content)], np.int32)).ravel()
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        rows = multihost_utils.process_allgather(padded)
    except jax.errors.JaxRuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"Another process is gone, so that nothing is merged; resume all ({reason}).") from None
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def all_finished(status: str, signal: int, out: Path) -> bool:
    """Whether every process has; each waits here for the others, however it ended.

    Raises:
      Interrupted: this one has finished, and another was stopped.
      InputError: this one has finished, and another has failed.
    """
    found = [one.decode().split() for one in gather(f"{status} {signal}".encode())]
    if status != "finished":
        return False
    for i, (other, number) in enumerate(found):
        if other == "interrupted":
            raise Interrupted(int(number), out)
        if other == "failed":
            raise InputError(f"Process {i} of {len(found)} has failed; mend that and resume all with --resume.")
    return True


def merge_files(own: Path, merged: Path, names: Sequence[str]) -> None:
    """The records and tables of all processes in one place, written by process 0."""
    for name in names:
        path = own / name
        parts = gather(path.read_bytes() if path.exists() else b"")
        if any(parts) and not jax.process_index():
            content = merge_records(parts) if path.suffix == ".json" else merge_tables(parts)
            with replacing(merged / name) as file:
                file.write(content)


def merge_tables(tables: list[bytes]) -> bytes:
    """One CSV of those of all processes: the rows of a step in the order of the lanes, as of one process."""
    readers = [csv.DictReader(io.StringIO(table.decode())) for table in tables if table]
    rows = [row for reader in readers for row in reader]
    rows.sort(key=lambda row: (int(row["update"]), int(row["env_step"]), int(row["lane"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, readers[0].fieldnames or [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def merge_records(records: list[bytes]) -> bytes:
    """One run.json: the lanes of all, their devices, the longest time."""
    found = [json.loads(record) for record in records]
    merged = found[0] | {"lanes": [lane for one in found for lane in one["lanes"]]}
    merged["diverged"] = {lane: step for one in found for lane, step in one["diverged"].items()}
    merged["hardware"] = found[0]["hardware"] | {"devices": sum(one["hardware"]["devices"] for one in found)}
    merged["processes"] = len(found)
    for name in ("compile_s", "wall_s", "peak_memory_mib"):
        merged[name] = max(one[name] for one in found)
    return json.dumps(merged, indent=1).encode()
