"""The grid on a real Ray cluster of this machine: a head and two workers, one of which is killed in the middle."""

import json
import threading
import time

import pytest
from test_results import alive

from results import benchmark

ray = pytest.importorskip("ray", reason="an optional requirement: pip install ray")

# Counts to 8 and keeps what it has counted to in its checkpoint; writes down where it began and that it ended.
JOB = """import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).resolve()
checkpoint = out / "checkpoint" / "state.npz"
begin = int(checkpoint.read_text()) if "--resume" in sys.argv else 0
with open(out.parents[4] / "log", "a") as f:
    f.write(json.dumps(["begin", out.parent.name, begin, os.getpid(), os.getppid()]) + "\\n")
checkpoint.parent.mkdir(exist_ok=True)
for n in range(begin, 8):
    time.sleep(0.5)
    checkpoint.write_text(str(n + 1))
with open(out.parents[4] / "log", "a") as f:
    f.write(json.dumps(["end", out.parent.name, begin, os.getpid(), os.getppid()]) + "\\n")
(out / "run.json").write_text(json.dumps({"status": "finished"}))
"""


@pytest.fixture(scope="module")
def cluster():
    """One of them is gone after the test that kills it; the others need one."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    workers = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(
        address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(benchmark.ROOT)}}
    )
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


def test_every_job_is_done_once_though_a_worker_is_killed(cluster, tmp_path):
    """The job of the killed worker dies with it, and goes on elsewhere from its checkpoint."""
    (tmp_path / "algorithms" / "offline").mkdir(parents=True)
    waits = "    while n and not (out.parents[4] / 'go').exists():\n        time.sleep(0.05)\n"
    job = JOB.replace("    time.sleep(0.5)\n", waits)
    (tmp_path / "algorithms" / "offline" / "bc.py").write_text(job)
    (tmp_path / "datasets").mkdir()
    names = ["a", "b", "c", "d"]
    (tmp_path / "datasets" / "recipes.txt").write_text("".join(f"{name}\tx\n" for name in names))

    def log() -> list[list]:
        path = tmp_path / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    killed = []

    def kill_a_worker() -> None:
        """Once both jobs have a checkpoint, behind which they wait until it is done: however slow the machine is."""
        while len(list(tmp_path.glob("results/runs/bc/*/*/checkpoint/state.npz"))) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        killed.extend(log())
        cluster[0].remove_node(cluster[1][0], allow_graceful=False)
        for _ in range(600):
            if not all(alive(line[3]) for line in killed):
                break
            time.sleep(0.1)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    argv = ["--algorithms", "bc", "--datasets", *names, "--engine", "ray"]
    assert benchmark.main(argv, tmp_path) == 0
    thread.join()
    assert len(killed) == 2, "both workers were at a job"
    ends = [line[1] for line in log() if line[0] == "end"]
    assert sorted(ends) == names, "every result is there once"
    again = [line for line in log() if line[0] == "begin" and line[2] > 0]
    assert len(again) == 1 and again[0][1] in {line[1] for line in killed}
    (dead,) = [line for line in killed if line[1] == again[0][1]]
    assert not alive(dead[3])
    assert benchmark.main(argv, tmp_path) == 0 and len(log()) == 9  # nothing is run again: 4 + 1 begin, 4 end


def test_a_job_that_dies_goes_on_from_its_checkpoint(cluster, tmp_path, capsys):
    """As by want of memory: the worker lives. One that dies again and again is given up."""
    (tmp_path / "algorithms" / "offline").mkdir(parents=True)
    dies = "    if out.parent.name == 'b' or n == begin == 0:\n        os.kill(os.getpid(), 9)\n"
    job = JOB.replace("    time.sleep(0.5)\n", "").replace("(str(n + 1))\n", f"(str(n + 1))\n{dies}")
    (tmp_path / "algorithms" / "offline" / "bc.py").write_text(job)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "recipes.txt").write_text("a\tx\nb\tx\n")
    argv = ["--algorithms", "bc", "--datasets", "a", "b", "--engine", "ray"]
    assert benchmark.main(argv, tmp_path) == 1
    assert "Missing: bc on b" in capsys.readouterr().out
    began = [json.loads(line)[1:3] for line in (tmp_path / "log").read_text().splitlines() if '"begin"' in line]
    assert sorted(began) == [["a", 0], ["a", 1], *(["b", n] for n in range(1 + benchmark.RETRIES))]


def test_a_cluster_that_is_too_small_is_told(cluster, tmp_path, capsys):
    (tmp_path / "algorithms" / "offline").mkdir(parents=True)
    (tmp_path / "algorithms" / "offline" / "bc.py").write_text(JOB)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "recipes.txt").write_text("a\tx\n")
    argv = ["--algorithms", "bc", "--datasets", "a", "--engine", "ray", "--gpus", "1"]
    assert benchmark.main(argv, tmp_path) == 2
    assert "0 GPUs, a job needs 1 and 1" in capsys.readouterr().err
