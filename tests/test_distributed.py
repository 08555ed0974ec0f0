"""Lanes shared by several processes: real ones on loopback, and what can go wrong before they meet."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, load, write_pendulum
from test_run import record, rows

from shared import distributed
from shared.data import InputError


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(
    folder: Path, out: str, name: str = "bc", steps: tuple = ("--updates", 40), more: tuple = ()
) -> subprocess.Popen:
    words = [
        sys.executable, load(name).__file__, "--dataset", folder / "pendulum.npz", *steps, "--log-every", 10,
        "--eval-every", 20, "--checkpoint-every", 20, "--eval-episodes", 2, "--batch-size", 8, "--hidden-dims", 8, 8,
        "--seeds", 3, "--out", folder / out, *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(w) for w in words], cwd=folder, env=environment, **quiet)


def finish(*processes: subprocess.Popen) -> list[str]:
    """What each printed; they must all end well."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, said, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in said]


@pytest.mark.parametrize(
    "name, steps", [("bc", ("--updates", 40)), ("rlpd", ("--env-steps", 40, "--learning-starts", 10))]
)
def test_two_processes_make_the_tables_of_one(name, steps, tmp_path):
    """Row by row, but for the times; each keeps the checkpoint of its own lanes."""
    write_pendulum(tmp_path / "pendulum.npz")
    port = free_port()
    parts = [("--distributed", f"localhost:{port},2,{i}") for i in range(2)]
    both = finish(*(start(tmp_path, "two", name, steps, part) for part in parts))
    finish(start(tmp_path, "one", name, steps))
    for table in ("metrics", "returns"):
        one, two = (
            [{k: v for k, v in row.items() if k != "wall_s"} for row in rows(tmp_path / out, table)]
            for out in ("one", "two")
        )
        assert one == two and len(one) > 0
    whole = record(tmp_path / "two")
    assert whole["status"] == "finished" and whole["processes"] == 2
    assert whole["lanes"] == record(tmp_path / "one")["lanes"] == [{"lane": i, "seed": i} for i in range(3)]
    assert re.search(rf"^{name} +3 ", both[0], re.M) and name not in both[1]  # the table of all three lanes, told once
    for i, lanes in enumerate((1, 2)):
        with np.load(tmp_path / "two" / f"process-{i}" / "checkpoint" / "state.npz") as file:
            header = json.loads(str(file["__header__"]))
        assert [s["seed"] for s in header["settings"]] == [[0], [1, 2]][i] and len(header["settings"]) == lanes


def test_lanes_are_shared_in_blocks(monkeypatch):
    for count, lanes in ((1, 5), (2, 5), (3, 7), (4, 4)):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        found = []
        for i in range(count):
            monkeypatch.setattr(jax, "process_index", lambda i=i: i)
            first, mine = distributed.share(list(range(lanes)))
            assert first == mine[0] and lanes // count <= len(mine) <= lanes // count + 1
            found += mine
        assert found == list(range(lanes))
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    with pytest.raises(InputError, match="8 processes have only 3 lanes"):
        distributed.share([0, 1, 2])


def test_tables_are_merged_step_by_step():
    """Lanes of several processes side by side; episodes stay in their order."""
    head = "lane,seed,update,env_step,episode,return\n"
    merged = distributed.merge_tables(
        [f"{head}0,0,5,0,0,a\n0,0,5,0,1,b\n0,0,10,0,0,c\n".encode(), b"", f"{head}1,1,5,0,0,d\n1,1,10,0,0,e\n".encode()]
    )
    assert merged.decode() == f"{head}0,0,5,0,0,a\n0,0,5,0,1,b\n1,1,5,0,0,d\n0,0,10,0,0,c\n1,1,10,0,0,e\n"


@pytest.mark.parametrize("how", ["here", "localhost:1,2", "localhost:1,two,0", "localhost:1,1,5"])
def test_bad_places_are_told_in_one_sentence(how):
    with pytest.raises(InputError, match="is auto or HOST:PORT,PROCESSES,PROCESS") as error:
        distributed.join(how)
    assert "\n" not in str(error.value)
