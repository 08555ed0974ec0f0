"""Lanes shared by several processes: real ones on loopback, and what can go wrong before they meet."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, load, timeless, write_pendulum
from test_run import record, rows

import shared.run
from shared import distributed
from shared.errors import InputError


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(
    folder: Path,
    out: str,
    name: str = "bc",
    steps: tuple = ("--updates", 40),
    more: tuple = (),
    code: str = "",
    before: tuple = (),
) -> subprocess.Popen:
    """`code`: run in the place of the script, whose path is its first argument; `before` are the next."""
    words = [
        sys.executable, *(["-c", code] if code else []), load(name).__file__, *before,
        *([load(name).__file__] if code else []), "--dataset", folder / "pendulum.npz", *steps, "--log-every", 10,
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


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one")
    write_pendulum(folder / "pendulum.npz")
    finish(start(folder, "run"))
    return folder / "run"


@pytest.mark.parametrize(
    "name, steps",
    [
        ("bc", ("--updates", 40)),
        pytest.param("rlpd", ("--env-steps", 40, "--learning-starts", 10), marks=pytest.mark.long),
    ],
)
def test_two_processes_make_the_tables_of_one(name, steps, request, tmp_path):
    """Row by row, but for the times; each keeps the checkpoint of its own lanes."""
    write_pendulum(tmp_path / "pendulum.npz")
    port = free_port()
    parts = [("--distributed", f"localhost:{port},2,{i}") for i in range(2)]
    both = finish(*(start(tmp_path, "two", name, steps, part) for part in parts))
    if name == "bc":
        shutil.copytree(request.getfixturevalue("one"), tmp_path / "one")
    else:
        finish(start(tmp_path, "one", name, steps))
    for table in ("metrics", "returns"):
        one, two = (
            [{k: v for k, v in row.items() if k != "wall_s"} for row in rows(tmp_path / out, table)]
            for out in ("one", "two")
        )
        assert [row.keys() for row in one] == [row.keys() for row in two] and len(one) > 0
        numbers = [[[float(x) for x in row.values()] for row in table] for table in (one, two)]
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)  # one lane compiles to other sums than two
    whole = record(tmp_path / "two")
    assert whole["status"] == "finished" and whole["processes"] == 2
    assert whole["lanes"] == record(tmp_path / "one")["lanes"] == [{"lane": i, "seed": i} for i in range(3)]
    assert re.search(rf"^{name} +3 ", both[0], re.M) and name not in both[1]  # the table of all three lanes, told once
    for i, lanes in enumerate((1, 2)):
        with np.load(tmp_path / "two" / f"process-{i}" / "checkpoint" / "state.npz") as file:
            header = json.loads(str(file["__header__"]))
        assert [s["seed"] for s in header["settings"]] == [[0], [1, 2]][i] and len(header["settings"]) == lanes


@pytest.mark.parametrize("index", [0, 1])
def test_process_0_alone_tells_of_the_preset(index, tmp_path, monkeypatch, capsys):
    for name in ("join", "meet", "use_cpu_devices"):
        monkeypatch.setattr(shared.run, name, lambda *_: None)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    words = ["td3_bc.py", "--dataset", str(tmp_path / "antmaze-umaze-v2.npz"), "--distributed", "auto"]
    monkeypatch.setattr(sys, "argv", words)
    module, seen = load("td3_bc"), []
    shared.run.launch(seen.append, module.Args, module.PRESETS, "doc")
    assert seen[0].preset == "antmaze"
    assert ("preset antmaze: reward_shift -1" in capsys.readouterr().out) == (index == 0)


PATCHED = """
import importlib.util, os, sys, time
script, late, stop, *sys.argv = sys.argv[1:]
spec = importlib.util.spec_from_file_location("bc", script)
bc = sys.modules["bc"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bc)
from shared.run import Run, launch
enter, log = Run.__enter__, Run.log
def enter_late(self):
    time.sleep(float(late))
    return enter(self)
def stop_and_log(self, *args, **kwargs):
    if self.done + self.chunk == int(stop):
        os.kill(os.getpid(), 15)
    log(self, *args, **kwargs)
Run.__enter__, Run.log = enter_late, stop_and_log
launch(bc.main, bc.Args, bc.PRESETS, bc.__doc__)
"""


@pytest.mark.long  # it waits for 40 s
def test_a_process_may_end_long_after_the_others(tmp_path):
    """The channel that carries the tables is opened at the start: to open it no process waits for over 30 s."""
    write_pendulum(tmp_path / "pendulum.npz")
    port, processes = free_port(), []
    for i, late in enumerate((0, 40)):
        part = ("--distributed", f"localhost:{port},2,{i}")
        processes.append(start(tmp_path, "run", more=part, code=PATCHED, before=(late, -1)))
    finish(*processes)
    assert record(tmp_path / "run")["processes"] == 2
    assert {row["lane"] for row in rows(tmp_path / "run", "metrics")} == {"0", "1", "2"}


def test_several_processes_do_not_overwrite_the_run_of_one(one, tmp_path):
    write_pendulum(tmp_path / "pendulum.npz")
    shutil.copytree(one, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    port = free_port()
    both = [start(tmp_path, "run", more=("--distributed", f"localhost:{port},2,{i}")) for i in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2 and "holds a run already" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_several_processes_stop_and_resume(one, tmp_path):
    """Both are stopped, then one alone. The hint to go on names the folder that they share; nothing is merged then."""
    write_pendulum(tmp_path / "pendulum.npz")

    def both(*more, **patch):
        port = free_port()
        parts = [("--distributed", f"localhost:{port},2,{i}", *more) for i in range(2)]
        return [start(tmp_path, "run", more=parts[i], **{k: v[i] for k, v in patch.items()}) for i in range(2)]

    for stops, more in (((20, 20), ()), ((-1, 30), ("--resume",))):
        for process in both(*more, code=(PATCHED, PATCHED), before=[(0, stop) for stop in stops]):
            _, err = process.communicate(timeout=300)
            assert process.returncode == 143 and f"--out {tmp_path / 'run'} --resume" in err, err
        assert not (tmp_path / "run" / "metrics.csv").exists()
    finish(*both("--resume"))
    for table in ("metrics.csv", "returns.csv"):
        assert timeless(tmp_path / "run" / table) == timeless(one / table)


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


def test_a_process_that_is_gone_is_told_in_one_sentence(monkeypatch):
    def gone(_):
        raise jax.errors.JaxRuntimeError("UNKNOWN: connection closed by peer\nmore")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gone)
    with pytest.raises(InputError, match="Another process is gone.*closed by peer"):
        distributed.gather(b"x")
