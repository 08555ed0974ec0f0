"""What tests/mutate.py puts into a source, and that results/mutants.json is of files that exist."""

import json

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


def test_the_committed_results_are_of_files_that_exist():
    path = ROOT / "results" / "mutants.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    assert table.keys() <= {p.stem for p in ALGORITHMS}
