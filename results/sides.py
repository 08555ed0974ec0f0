"""Sides of a comparison of speed, each in a process of its own, which take turns: a busy machine slows all alike."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shared.errors import InputError


class Measured(NamedTuple):
    per_s: dict[str, dict[str, list[float]]]
    """{what: {side: of every round}}"""
    compile_s: dict[str, float]
    """{side: seconds}"""
    peak_mib: dict[str, int]
    """{side: of its process}"""


def serve(rounds: dict[str, Callable], compile_s: float) -> None:
    """A side's process: {what: a round of it}, one untimed each, then one for each line that names what; JSON lines."""
    for a_round in rounds.values():
        a_round()
    print(json.dumps({"compile_s": round(compile_s, 2)}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        rounds[line.strip()]()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": round(peak)}), flush=True)


def take_turns(commands: dict[str, list[str]], amounts: dict[str, dict[str, int]], rounds: int) -> Measured:
    """The sides' `commands`, which `serve`; `amounts` {what: {side: made in one round, by all lanes together}}.

    Raises:
      InputError: a side that ends before it is asked to.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides: dict[str, subprocess.Popen] = {}

    def answer(name: str) -> dict:
        line = sides[name].stdout.readline()
        if not line:
            raise InputError(f"{name} ended: {' '.join(commands[name])}")
        return json.loads(line)

    try:
        compile_s = {}
        for name, command in commands.items():  # one after the other: none is slowed by another's compilation
            sides[name] = subprocess.Popen(command, **pipes)
            compile_s[name] = answer(name)["compile_s"]
        per_s: dict[str, dict[str, list[float]]] = {what: {name: [] for name in commands} for what in amounts}
        names = list(commands)
        for r in range(rounds):
            for what, made in amounts.items():
                for name in names[r % len(names) :] + names[: r % len(names)]:
                    print(what, file=sides[name].stdin, flush=True)
                    per_s[what][name].append(round(made[name] / answer(name)["seconds"], 3))
        for name in names:
            sides[name].stdin.close()
        peak = {name: answer(name)["peak_mib"] for name in names}
    finally:
        for side in sides.values():
            side.kill()
            side.wait()
    return Measured(per_s, compile_s, peak)


def torch_version(python: Path) -> str:
    """Of the PyTorch that `python` has.

    Raises:
      InputError: it is no Python, or has no PyTorch.
    """
    command = [str(python), "-c", "import torch; print(torch.__version__)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise InputError(f"{python} is no Python that has torch.") from None
