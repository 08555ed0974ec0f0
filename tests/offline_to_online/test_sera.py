"""SERA's reward against plain numpy; the rest is cal_ql's, word for word."""

import ast
import dataclasses

import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, load
from jobs import small
from reference import agent_of, close, heads
from scipy.special import digamma

from shared.errors import InputError
from shared.transitions import Batch

SMALL = {"actor_hidden_dims": (8,), "n_actions": 2, "entropy_neighbours": 3}

sera = load("sera")
N = 9
ARGS = sera.Args(hidden_dims=(8, 8), actor_hidden_dims=(8, 8), batch_size=N, n_actions=2, entropy_neighbours=3)


@pytest.fixture(scope="module")
def agent():
    return agent_of(sera, ARGS)


@pytest.fixture(scope="module")
def rows():
    r = np.random.default_rng(0)
    numbers = {k: r.normal(size=(N, d)) for k, d in (("obs", 3), ("next_obs", 3), ("action", 2))}
    numbers |= {k: r.normal(size=N) for k in ("reward", "return_to_go")} | {"terminal": np.zeros(N)}
    return jax.tree.map(np.float32, Batch(**numbers))


@pytest.mark.parametrize("condition", ("q", "none"))
def test_sera_entropy_is_of_the_nearest_neighbours_in_state_and_value(agent, rows, condition):
    args = dataclasses.replace(ARGS, condition=condition)
    v = heads(agent.critic, rows.obs, rows.action).min(0)
    s, v = (rows.obs - rows.obs.mean(0)) / rows.obs.std(0), (v - v.mean()) / v.std()
    expected = []
    for i in range(N):
        far_s = [np.linalg.norm(s[i] - s[j]) for j in range(N) if j != i]
        far_v = [abs(v[i] - v[j]) for j in range(N) if j != i]
        if condition == "none":
            expected.append(np.log(1 + sorted(far_s)[2]))
            continue
        radius = sorted(np.maximum(far_s, far_v))[2]
        expected.append(digamma(sum(x < radius for x in far_v) + 1) / 3 + np.log(2 * radius))
    close(jax.jit(sera.state_entropy)(agent, rows, args), np.array(expected))


def test_sera_gives_rare_states_more(agent, rows):
    """One state far away from all others has the highest entropy of all."""
    far = rows._replace(obs=np.where(np.arange(N)[:, None] == 4, 30.0, rows.obs).astype(np.float32))
    for condition in ("q", "none"):
        entropy = jax.jit(sera.state_entropy)(agent, far, dataclasses.replace(ARGS, condition=condition))
        assert entropy.argmax() == 4


def test_sera_adds_the_bonus_to_rewards_online_alone(agent, rows):
    key = jax.random.key(2)
    bonus = 0.5 * np.tanh(np.asarray(jax.jit(sera.state_entropy)(agent, rows, ARGS)))
    args = dataclasses.replace(ARGS, bonus_weight=0.5)
    new, info = jax.jit(sera.update_online)(agent, rows, key, args, 0)
    same, _ = jax.jit(sera.update)(agent, rows._replace(reward=rows.reward + bonus), key, args)
    jax.tree.map(close, new.critic, same.critic)
    close(info["bonus"], bonus.mean())
    plain, _ = jax.jit(sera.update)(agent, rows, key, args)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), plain.critic, new.critic)
    assert max(jax.tree.leaves(moved)) > 1e-6
    none, _ = jax.jit(sera.update_online)(agent, rows, key, dataclasses.replace(args, bonus_weight=0.0), 0)
    jax.tree.map(close, none.critic, plain.critic)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entropy_neighbours": 8}, "--entropy-neighbours 8: a batch of 8 has no so many others"),
    ],
)
def test_sera_refuses(changes, said, pendulum, tmp_path):
    with pytest.raises(InputError, match=said):
        sera.main(small("sera", pendulum, tmp_path / "run", **changes))


def test_sera_has_everything_else_from_cal_ql_to_the_letter():
    paths = {p.stem: p.read_text() for p in ALGORITHMS if p.stem in ("sera", "cal_ql")}

    def parts(name):
        tree = ast.parse(paths[name])
        return {n.name: ast.get_source_segment(paths[name], n) for n in tree.body if hasattr(n, "name")}

    own, theirs = parts("sera"), parts("cal_ql")
    changed = {name for name in theirs if own[name] != theirs[name]}
    assert changed == {"Args", "update", "main"}  # update has no t
    assert own.keys() - theirs.keys() == {"state_entropy", "update_online"}
