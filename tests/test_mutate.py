"""What tests/mutate.py puts into a source, and that results/mutants.json is of files that exist."""

import json
import subprocess
import sys

from conftest import ALGORITHMS, ROOT
from mutate import defects, explained

SOURCE = """
def critic_loss(critic, agent, batch, args):
    q = jax.lax.stop_gradient(agent.target_critic.min(0))
    y = batch.reward + args.discount * (1.0 - batch.terminal) * jnp.clip(q, 0.0, 1.0)
    return ((critic - y) ** 2).mean(), {"q": q.mean()}


def update(agent, batch, args):
    agent = agent.replace(value=fit(agent, batch))
    loss = critic_loss(agent.critic, agent, batch, args)
    return agent, loss


def init(key):
    return -key
"""


def test_every_kind_of_defect_is_made_once():
    found = [(d.where, d.change) for d in defects(SOURCE)]
    assert found == [
        ("critic_loss", "jax.lax.stop_gradient(agent.target_critic.min(0)) -> agent.target_critic.min(0)"),
        ("critic_loss", "agent.target_critic.min(0) -> agent.target_critic.max(0)"),
        ("critic_loss", "agent.target_critic -> agent.critic"),
        (
            "critic_loss",
            "batch.reward + args.discount * (1.0 - batch.terminal) * jnp.clip(q, 0.0, 1.0) -> "
            "batch.reward - args.discount * (1.0 - batch.terminal) * jnp.clip(q, 0.0, 1.0)",
        ),
        ("critic_loss", "jnp.clip(q, 0.0, 1.0) -> q"),
        ("critic_loss", "args.discount -> args.discount * 0.5"),
        ("critic_loss", "1.0 - batch.terminal -> 1.0"),
        ("critic_loss", "((critic - y) ** 2).mean() -> ((critic - y) ** 2).sum()"),
        ("critic_loss", "critic - y -> critic + y"),
        ("update", "agent_before for agent in: loss = critic_loss(agent.critic, agent, batch, args)"),
    ]
    stale = defects(SOURCE)[-1].source
    assert "agent_before = agent\n    agent = agent.replace" in stale
    assert "critic_loss(agent.critic, agent_before, batch, args)" in stale
    for defect in defects(SOURCE):
        compile(defect.source, "source", "exec")


def test_every_file_has_defects_and_an_explanation_is_of_one_that_exists():
    for path in ALGORITHMS:
        found = {d.change for d in defects(path.read_text())}
        assert found, path.stem
        assert explained(ROOT / "tests" / path.parent.name / f"test_{path.name}").keys() <= found, path.stem


KEEPS = """
import sys
from pathlib import Path

sys.path[:0] = ["{root}", "{root}/tests"]
from mutate import survives

test = Path("{test}")
print([survives("mex", test, f"VALUE = {{value}}", test) for value in (1, 2, 1)])
"""


def test_every_defect_meets_tests_that_load_the_file_at_their_top(tmp_path):
    """pytest keeps a test file that it has imported, and with it the algorithm of before."""
    test = tmp_path / "test_mex.py"
    test.write_text("from conftest import load\n\nmex = load('mex')\n\n\ndef test():\n    assert mex.VALUE == 1\n")
    code = KEEPS.format(root=ROOT, test=test)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[True, False, True]"], done.stderr


def test_the_committed_results_are_of_files_that_exist():
    path = ROOT / "results" / "mutants.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    assert table.keys() <= {p.stem for p in ALGORITHMS}
