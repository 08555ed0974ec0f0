"""Compiled programs: kept for the next run, and held against the memory that is left before they are called."""

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from shared.errors import InputError, cache_folder

GIB = 2**30
KEPT = 2 * GIB
"""Compiled programs that are kept, in bytes; those that were not used for longest go first."""


def keep_programs() -> None:
    """Programs that take a second and more to compile are kept in the cache's folder, those of each processor apart.

    JAX_COMPILATION_CACHE_DIR in the environment stays as it is; where nothing can be written nothing is kept.
    """
    folder = cache_folder() / "programs" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if jax.config.jax_compilation_cache_dir or not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_max_size", KEPT)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """A program may use what another processor has not."""
    rows = info.read_text(errors="replace").splitlines() if info.exists() else []
    known = {row.split(":")[0].strip(): row for row in rows if row.startswith(("model name", "flags", "Features"))}
    said = [platform.machine(), platform.processor(), *(known[name] for name in sorted(known))]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def fitting(program: Callable, devices: list, advice: str) -> Callable:
    """The compiled `program`; before its first call, whether what it will allocate fits into what is left.

    Raises:
      InputError: it does not; `advice` says what needs less.
    """
    known: list[Any] = []

    def call(*args):
        if not known:  # it is compiled here, and not again by the call
            known.append(extra_bytes(program.lower(*args).compile()))
            check_memory(known[0], devices, advice)
        return program(*args)

    call.lower = program.lower  # as every compiled program has it
    return call


def check_memory(needed: int | None, devices: list, advice: str) -> None:
    """Raises the InputError of `fitting`; `needed`: bytes on each of `devices`, None: not known."""
    left = free_bytes(devices)
    if needed is not None and left is not None and needed > left:
        raise InputError(
            f"Training would need {needed / GIB:.2f} GiB more on each of {len(devices)} devices, of which there are "
            f"{left / GIB:.2f} left; {advice}."
        )


def extra_bytes(compiled: Any) -> int | None:
    """What a call allocates on each device beside its arguments: intermediate values, and outputs in new places."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return int(found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes)


def free_bytes(devices: list) -> int | None:
    """Left for each of the devices: of an accelerator's own memory, or of what CPU devices share; None: not known."""
    told = devices[0].memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"] - told.get("bytes_in_use", 0)
    if devices[0].platform != "cpu":
        return None
    left = free_host_bytes()
    return None if left is None else left // len(devices)


def free_host_bytes() -> int | None:
    """Of the machine's memory, or of what its container may have; None: not known."""
    left = [x for x in (_of_machine(), _of_group(Path("/sys/fs/cgroup"))) if x is not None]
    return min(left, default=None)


def resident_bytes(path: Path = Path("/proc/self/statm")) -> int:
    """Of this process, in memory; 0 where that is not known."""
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def _of_machine(path: Path = Path("/proc/meminfo")) -> int | None:
    """Linux only."""
    if not path.exists():
        return None
    rows = (line.split() for line in path.read_text().splitlines())
    return next((1024 * int(words[1]) for words in rows if words[0] == "MemAvailable:"), None)


def _of_group(group: Path) -> int | None:
    """What a container's limit leaves, files that are cached not counted (cgroup, second version)."""
    try:
        limit = int((group / "memory.max").read_text())  # "max": there is none
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - int((group / "memory.current").read_text()) + int(rows["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
